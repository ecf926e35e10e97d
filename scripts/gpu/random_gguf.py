#!/usr/bin/env python3
"""Writes a GGUF file of a known shape with random weights: what loading is measured with where no model of that size can be had.

    random_gguf.py --shape llama3-8b OUT.gguf        Q4_0, 4.5 GB in some seconds

Matrices are Q4_0 with one scale each that keeps activations of size 1 (a block of random codes again and again: a disk does not mind), norms 1.
The vocabulary is as long as the shape's, of byte-level BPE: 256 bytes, tokens that each join two earlier ones, in the order of their
merges, and 256 control tokens. Needs nothing but Python.
"""
import argparse
import os
import random
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "peers"))
import peer  # noqa: E402

U32, F32, BOOL, STRING, ARRAY, I32 = 4, 6, 7, 8, 9, 5
TYPE_F32, TYPE_Q4_0 = 0, 2
ALIGN = 32


def text(s):
    b = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(b)) + b


def value(kind, x):
    if kind == STRING:
        return text(x)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], x)


def pair(key, kind, x):
    return text(key) + struct.pack("<I", kind) + value(kind, x)


def array(key, kind, xs):
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(xs)) + b"".join(value(kind, x) for x in xs)


def vocabulary(n):
    """tokens, their types, merges. A byte is spelled as GPT-2 does"""
    rng = random.Random(1)
    spelled, at = [], 0x100
    for b in range(256):
        plain = 0x21 <= b <= 0x7e or 0xa1 <= b <= 0xac or b >= 0xae
        spelled.append(chr(b if plain else at))
        at += not plain
    tokens, merges, seen = list(spelled), [], set(spelled)
    while len(tokens) < n - 256:
        left, right = tokens[rng.randrange(len(tokens))], tokens[rng.randrange(256)]
        if len(left) < 16 and left + right not in seen:
            seen.add(left + right)
            tokens.append(left + right)
            merges.append(left + " " + right)
    tokens += ["<|control_%d|>" % i for i in range(256)]
    return tokens, [1] * (n - 256) + [3] * 256, merges


def tensors(shape):
    """(name, dims with the shortest stride first, type)"""
    n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab = peer.SHAPES[shape]
    q, kv = n_head * d_head, n_head_kv * d_head
    out = [("token_embd.weight", (d_model, n_vocab), TYPE_Q4_0)]
    for i in range(n_layer):
        b = "blk.%d." % i
        out += [(b + "attn_norm.weight", (d_model,), TYPE_F32), (b + "attn_q.weight", (d_model, q), TYPE_Q4_0),
                (b + "attn_k.weight", (d_model, kv), TYPE_Q4_0), (b + "attn_v.weight", (d_model, kv), TYPE_Q4_0),
                (b + "attn_output.weight", (q, d_model), TYPE_Q4_0), (b + "ffn_norm.weight", (d_model,), TYPE_F32),
                (b + "ffn_gate.weight", (d_model, d_ff), TYPE_Q4_0), (b + "ffn_up.weight", (d_model, d_ff), TYPE_Q4_0),
                (b + "ffn_down.weight", (d_ff, d_model), TYPE_Q4_0)]
    return out + [("output_norm.weight", (d_model,), TYPE_F32), ("output.weight", (d_model, n_vocab), TYPE_Q4_0)]


def size_of(dims, kind):
    n = 1
    for d in dims:
        n *= d
    return 4 * n if kind == TYPE_F32 else n // 32 * 18


def header(shape):
    n_layer, n_head, n_head_kv, d_head, d_model, d_ff, n_vocab = peer.SHAPES[shape]
    tokens, types, merges = vocabulary(n_vocab)
    a = "llama."
    kv = [pair("general.architecture", STRING, "llama"), pair("general.name", STRING, "random " + shape),
          pair(a + "block_count", U32, n_layer), pair(a + "context_length", U32, 8192), pair(a + "embedding_length", U32, d_model),
          pair(a + "feed_forward_length", U32, d_ff), pair(a + "attention.head_count", U32, n_head),
          pair(a + "attention.head_count_kv", U32, n_head_kv), pair(a + "attention.key_length", U32, d_head),
          pair(a + "attention.value_length", U32, d_head), pair(a + "attention.layer_norm_rms_epsilon", F32, 1e-5),
          pair(a + "rope.freq_base", F32, 500000.0), pair(a + "vocab_size", U32, n_vocab),
          pair("tokenizer.ggml.model", STRING, "gpt2"), pair("tokenizer.ggml.pre", STRING, "llama-bpe"),
          array("tokenizer.ggml.tokens", STRING, tokens), array("tokenizer.ggml.token_type", I32, types),
          array("tokenizer.ggml.merges", STRING, merges), pair("tokenizer.ggml.bos_token_id", U32, n_vocab - 256),
          pair("tokenizer.ggml.eos_token_id", U32, n_vocab - 255), pair("tokenizer.ggml.add_bos_token", BOOL, True)]
    infos, at = [], 0
    for name, dims, kind in tensors(shape):
        infos.append(text(name) + struct.pack("<I%dQIQ" % len(dims), len(dims), *dims, kind, at))
        at += (size_of(dims, kind) + ALIGN - 1) // ALIGN * ALIGN
    return b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(kv)) + b"".join(kv) + b"".join(infos)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", default="llama3-8b", choices=sorted(n for n in peer.SHAPES if not n.startswith("qwen")))
    p.add_argument("out")
    args = p.parse_args()
    n_block = 1 << 20
    blocks = bytearray(os.urandom(18 * n_block))
    patterns = {}  # by the length of rows: scales differ
    with open(args.out, "wb") as f:
        head = header(args.shape)
        f.write(head + bytes(-len(head) % ALIGN))
        for _, dims, kind in tensors(args.shape):
            n = size_of(dims, kind)
            if kind == TYPE_F32:
                f.write(struct.pack("<f", 1.0) * dims[0])
            else:
                if dims[0] not in patterns:
                    low, high = struct.pack("<e", 1 / (21.5 * dims[0]) ** 0.5)
                    blocks[0::18], blocks[1::18] = bytes([low]) * n_block, bytes([high]) * n_block
                    patterns[dims[0]] = bytes(blocks)
                for at in range(0, n, len(blocks)):
                    f.write(memoryview(patterns[dims[0]])[:min(len(blocks), n - at)])
            f.write(bytes(-n % ALIGN))
    print("%s: %.2f GB" % (args.out, os.path.getsize(args.out) / 1e9))


if __name__ == "__main__":
    main()
