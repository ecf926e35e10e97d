#!/usr/bin/env python3
"""Writes the tiny random models of the tests: tiny_llama.gguf, tiny_qwen2.gguf, tiny_quants.gguf.

They mean nothing as language models; they are real files of each family (written by pip's gguf, an implementation that is
not ours), small enough to be committed, with everything a loader and an engine must get right: grouped heads, a head size
that is not d_model/n_head, tied and separate output, biases, both rotary layouts, every block format. The same seed gives the same bytes.

    pip install gguf numpy;  python3 tests/data/make_tiny.py [FOLDER]
"""
import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
            "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a", "e r", "o n", "Ġ t", "a t", "r e", "in g", "Ġ w", "e n", "Ċ Ċ", "Ġ Ġ"]


def byte_chars():
    """GPT-2's printable stand-in for each byte"""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    chars, extra = {}, 0
    for b in range(256):
        if b in keep:
            chars[b] = chr(b)
        else:
            chars[b] = chr(256 + extra)
            extra += 1
    return [chars[b] for b in range(256)]


def add_vocabulary(w, pre, n_vocab):
    tokens = SPECIALS + byte_chars() + [m.replace(" ", "") for m in MERGES]
    types = [3] * len(SPECIALS) + [1] * (len(tokens) - len(SPECIALS))
    while len(tokens) < n_vocab:  # unused entries, as padded vocabularies have them
        tokens.append("[PAD%d]" % len(tokens))
        types.append(5)
    assert len(tokens) == n_vocab == len(set(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(MERGES)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_pad_token_id(0)
    w.add_add_bos_token(False)
    w.add_chat_template(TEMPLATE)


def blocks(rng, rows, cols, t, std):
    """Packed bytes of a random matrix. The K formats have no quantiser in Python: random codes under a plausible scale."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[t]
    assert cols % block_len == 0, (cols, t)
    if t not in (T.Q4_K, T.Q5_K, T.Q6_K):
        return gguf.quants.quantize(rng.normal(0, std, (rows, cols)).astype(np.float32), t)
    n = rows * cols // block_len
    raw = rng.integers(0, 256, (n, block_bytes), dtype=np.uint8)
    if t == T.Q6_K:  # ... ql 128, qh 64, scales 16 x i8, d f16: value = d * scale * (q - 32), q 0..63, scale +-15
        raw[:, 192:208] = rng.integers(-15, 16, (n, 16), dtype=np.int8).view(np.uint8)
        raw[:, 208:210] = np.full((n, 1), std / 9 / 18.5, np.float16).view(np.uint8)
    else:  # d f16, dmin f16, scales 12: value = d * scale * q - dmin * min, scale = min 0..63 (no common offset), q 0..top
        top = 15 if t == T.Q4_K else 31
        raw[:, 8:12] = raw[:, 4:8]
        raw[:, 12:16] = (raw[:, 12:16] & 15) * 17
        d = std / 36.7 / (top * 0.3)
        raw[:, 0:2] = np.full((n, 1), d, np.float16).view(np.uint8)
        raw[:, 2:4] = np.full((n, 1), d * top / 2, np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


class Model:
    def __init__(self, path, arch, seed):
        self.w = gguf.GGUFWriter(path, arch)
        self.rng = np.random.default_rng(seed)

    def matrix(self, name, rows, cols, t, gain=1.0):
        self.w.add_tensor(name, blocks(self.rng, rows, cols, t, gain / np.sqrt(cols)), raw_dtype=t)

    def vector(self, name, n, mean, std, t=T.F32):
        x = self.rng.normal(mean, std, n).astype(np.float32)
        if t == T.F16:
            x = x.astype(np.float16)
        self.w.add_tensor(name, x)

    def done(self):
        self.w.write_header_to_file()
        self.w.write_kv_data_to_file()
        self.w.write_tensors_to_file()
        self.w.close()


def shape(m, name, n_layer, d_model, d_ff, n_head, n_head_kv, n_ctx, theta):
    w = m.w
    w.add_name(name)
    w.add_block_count(n_layer)
    w.add_context_length(n_ctx)
    w.add_embedding_length(d_model)
    w.add_feed_forward_length(d_ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(n_head_kv)
    w.add_rope_freq_base(theta)
    w.add_layer_norm_rms_eps(1e-5)


def layer(m, i, d_model, d_ff, q, kv, types, biases):
    """types: q k v o gate up down. Queries and keys get a gain so that attention is neither flat nor one-hot."""
    b = "blk.%d." % i
    m.vector(b + "attn_norm.weight", d_model, 1, 0.1)
    m.matrix(b + "attn_q.weight", q, d_model, types[0], 1.6)
    m.matrix(b + "attn_k.weight", kv, d_model, types[1], 1.6)
    m.matrix(b + "attn_v.weight", kv, d_model, types[2])
    if biases:
        m.vector(b + "attn_q.bias", q, 0, 0.3)
        m.vector(b + "attn_k.bias", kv, 0, 0.3)
        m.vector(b + "attn_v.bias", kv, 0, 0.3)
    m.matrix(b + "attn_output.weight", d_model, q, types[3])
    m.vector(b + "ffn_norm.weight", d_model, 1, 0.1)
    m.matrix(b + "ffn_gate.weight", d_ff, d_model, types[4], 1.5)
    m.matrix(b + "ffn_up.weight", d_ff, d_model, types[5])
    m.matrix(b + "ffn_down.weight", d_model, d_ff, types[6], 1.5)


def tiny_llama(path):
    m = Model(path, "llama", 1)
    d_model, d_ff, n_head, n_head_kv, d_head, n_vocab = 64, 32, 6, 2, 16, 276
    shape(m, "Tiny Llama", 2, d_model, d_ff, n_head, n_head_kv, 4096, 10000.0)
    m.w.add_key_length(d_head)  # n_head * d_head = 96, not d_model
    m.w.add_value_length(d_head)
    m.w.add_rope_dimension_count(d_head)
    m.w.add_vocab_size(n_vocab)
    add_vocabulary(m.w, "smollm", n_vocab)
    m.matrix("token_embd.weight", n_vocab, d_model, T.Q4_1, 8)
    layer(m, 0, d_model, d_ff, n_head * d_head, n_head_kv * d_head, [T.Q4_0, T.Q8_0, T.F16, T.Q4_1, T.Q4_1, T.Q5_0, T.Q5_1], False)
    layer(m, 1, d_model, d_ff, n_head * d_head, n_head_kv * d_head, [T.Q4_1, T.Q5_1, T.Q8_0, T.Q4_0, T.Q4_0, T.Q4_0, T.Q8_0], False)
    m.vector("output_norm.weight", d_model, 1, 0.1)
    m.matrix("output.weight", n_vocab, d_model, T.Q4_0, 2)
    m.done()


def tiny_qwen2(path):
    m = Model(path, "qwen2", 2)
    d_model, d_ff, n_head, n_head_kv, d_head, n_vocab = 96, 32, 6, 2, 16, 276
    shape(m, "Tiny Qwen2", 2, d_model, d_ff, n_head, n_head_kv, 8192, 1000000.0)
    add_vocabulary(m.w, "qwen2", n_vocab)
    m.matrix("token_embd.weight", n_vocab, d_model, T.Q4_0, 4)  # also the output: tied
    layer(m, 0, d_model, d_ff, n_head * d_head, n_head_kv * d_head, [T.Q4_0, T.Q5_0, T.Q8_0, T.Q4_0, T.Q4_1, T.Q4_0, T.Q5_1], True)
    layer(m, 1, d_model, d_ff, n_head * d_head, n_head_kv * d_head, [T.Q4_1, T.Q4_0, T.Q5_0, T.Q4_0, T.Q4_0, T.Q4_0, T.Q4_0], True)
    m.vector("output_norm.weight", d_model, 1, 0.1)
    m.done()


def tiny_quants(path):
    """every type: d_model 256 holds one block of the K formats"""
    m = Model(path, "llama", 3)
    d_model, d_ff, n_head, n_head_kv, d_head, n_vocab = 256, 32, 4, 2, 8, 276
    shape(m, "Tiny Quants", 2, d_model, d_ff, n_head, n_head_kv, 2048, 10000.0)
    m.w.add_key_length(d_head)
    m.w.add_value_length(d_head)
    m.w.add_rope_dimension_count(d_head)
    add_vocabulary(m.w, "smollm", n_vocab)
    m.matrix("token_embd.weight", n_vocab, d_model, T.Q4_K, 4)  # tied
    layer(m, 0, d_model, d_ff, n_head * d_head, n_head_kv * d_head, [T.Q4_K, T.Q5_K, T.Q6_K, T.Q8_0, T.Q5_K, T.BF16, T.Q4_0], False)
    layer(m, 1, d_model, d_ff, n_head * d_head, n_head_kv * d_head, [T.Q6_K, T.Q5_0, T.Q5_1, T.F32, T.F16, T.Q4_1, T.Q8_0], False)
    m.vector("output_norm.weight", d_model, 1, 0.1)
    m.done()


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    for make in (tiny_llama, tiny_qwen2, tiny_quants):
        make(os.path.join(folder, make.__name__ + ".gguf"))
