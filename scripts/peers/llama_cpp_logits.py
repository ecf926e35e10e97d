#!/usr/bin/env python3
"""Logits of llama.cpp for given ids: who checks the oracle?

tests/oracle/forward.py judges moascope, so it is itself held against an implementation that shares nothing
with it. On quantised weights llama.cpp rounds activations to 8 bits, and keys and values to 16: its logits are then
further off than any error looked for here (KL about 3e-3 nats on SmolLM2 Q4_1). With --f32 the model is first rewritten with its
weights dequantised to float32, and keys and values are kept in float32: then the two must agree to rounding.

    scripts/peers/llama_cpp_logits.py MODEL --ids ids.json --logits llama.npy --f32
    tests/oracle/forward.py MODEL --ids ids.json --logits oracle.npy
    tests/oracle/compare.py oracle.npy llama.npy --kl-mean 1e-9 --kl-worst 1e-8 --top1 1

Needs llama-cpp-python, and gguf for --f32 (see llama_cpp_bench.py for the environment).
"""
import argparse
import json
import os
import sys
import tempfile

import numpy as np


def write_f32(source, target):
    """The same model with every tensor as float32. Metadata is carried over, the file type said anew."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    r = GGUFReader(source)
    w = GGUFWriter(target, r.get_field("general.architecture").contents())
    for name, field in r.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == GGUFValueType.ARRAY else None
        w.add_key_value(name, field.contents(), kind, sub_type=sub)
    w.add_file_type(0)
    for t in r.tensors:
        w.add_tensor(t.name, dequantize(t.data, t.tensor_type).astype(np.float32, copy=False))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    p = argparse.ArgumentParser(description="Prompt logits of llama.cpp.")
    p.add_argument("model")
    p.add_argument("--ids", required=True, help="JSON array of token ids")
    p.add_argument("--logits", required=True, help="float32 [n_tok][n_vocab]")
    p.add_argument("--f32", action="store_true", help="dequantised weights, float32 keys and values")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    try:
        from llama_cpp import GGML_TYPE_F16, GGML_TYPE_F32, Llama
    except ImportError:
        sys.exit("llama_cpp_logits: no llama-cpp-python here, see llama_cpp_bench.py --help")
    with open(args.ids) as f:
        ids = json.load(f)
    kv = GGML_TYPE_F32 if args.f32 else GGML_TYPE_F16
    with tempfile.TemporaryDirectory() as tmp:
        model = args.model
        if args.f32:
            model = os.path.join(tmp, "f32.gguf")
            write_f32(args.model, model)
        llama = Llama(model, n_ctx=len(ids) + 1, n_batch=len(ids), n_ubatch=len(ids), logits_all=True, type_k=kv,
                      type_v=kv, flash_attn=False, n_threads=args.threads, n_threads_batch=args.threads, verbose=False)
        llama.eval(ids)
        np.save(args.logits, np.asarray(llama.scores[:len(ids)], dtype=np.float32))


if __name__ == "__main__":
    main()
