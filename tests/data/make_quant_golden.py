#!/usr/bin/env python3
"""Writes tests/data/quant_golden.bin: packed blocks of every format and what pip's gguf decodes them to.

Random bytes in every field, then the corners: scales 0, -0, the largest, the smallest, infinite and NaN; all codes 0, all 1 bits.
    per format: id u32 | n_block u32 | block_len u32 | block_bytes u32 | packed bytes | n_block * block_len float32

    pip install gguf numpy;  python3 tests/data/make_quant_golden.py
"""
import os
import struct

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

# format: byte offsets of its half-precision scales
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
HALVES = [0x0000, 0x8000, 0x7BFF, 0xFBFF, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0x7C00, 0xFC00, 0x7E00]


def packed(t, rng):
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[t]
    if block_len == 1:  # F32, F16, BF16: 600 random patterns, among them every kind of exponent
        return rng.integers(0, 256, (600, block_bytes), dtype=np.uint8)
    n_random = 12 if block_len == 256 else 48
    raw = rng.integers(0, 256, (n_random, block_bytes), dtype=np.uint8)
    for at in SCALES[t]:  # random but finite, mostly of the size that models have
        raw[:, at:at + 2] = rng.normal(0, 0.02, (n_random, 1)).astype("<f2").view(np.uint8)
    corners = rng.integers(0, 256, (len(HALVES), block_bytes), dtype=np.uint8)
    corners[::3] = 0
    corners[1::3] = 255
    for k, at in enumerate(SCALES[t]):
        corners[:, at:at + 2] = np.roll(np.array(HALVES, "<u2"), k).reshape(-1, 1).view(np.uint8)
    return np.concatenate([raw, corners])


def main():
    rng = np.random.default_rng(5)
    out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "quant_golden.bin")
    with open(out, "wb") as f, np.errstate(all="ignore"):
        for t in [T.F32, T.F16, T.BF16] + list(SCALES):
            raw = packed(t, rng)
            block_len, block_bytes = gguf.GGML_QUANT_SIZES[t]
            if t == T.F32:
                x = raw.view("<f4")
            elif t == T.F16:
                x = raw.view("<f2").astype("<f4")
            else:
                x = gguf.quants.dequantize(raw, t)
            f.write(struct.pack("<IIII", t, len(raw), block_len, block_bytes) + raw.tobytes() + x.astype("<f4").tobytes())


if __name__ == "__main__":
    main()
