#!/usr/bin/env python3
"""Writes tests/fuzz/corpus/gguf: seeds for fuzz_gguf, and for test_model_hostile what each must be answered with.

  ok_*     valid micro models; written by pip's gguf, which is not ours
  bad_*    one wrong thing each, at least one for every row of the list of loader bugs found in other programs (the number
           or CVE is in the name). tests/data/gguf_hostile.tsv: file <TAB> words that the refusal must contain

    pip install gguf numpy;  python3 tests/fuzz/make_gguf_corpus.py
"""
import os
import struct

import gguf
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
FOLDER = os.path.join(HERE, "corpus", "gguf")
U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORMAT = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(s)) + s


def value(t, v):
    if t == STR:
        return text(v)
    if t == ARR:  # (element type, list)
        return struct.pack("<IQ", v[0], len(v[1])) + b"".join(value(v[0], x) for x in v[1])
    return struct.pack("<" + FORMAT[t], v)


def kv(key, t, v):
    return text(key) + struct.pack("<I", t) + (v if isinstance(v, bytes) and t != STR else value(t, v))


def tensor(name, dims, t, offset):
    return text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", t, offset)


def head(n_tensors, n_kv, magic=b"GGUF", version=3):
    return magic + struct.pack("<IQQ", version, n_tensors, n_kv)


def pad(b, align=32):
    return b + bytes(-len(b) % align)


def one(kvs=(), tensors=(), data=b"", align=32, n_kv=None, n_tensors=None):
    """a whole file of packed entries"""
    kvs, tensors = list(kvs), list(tensors)
    h = head(len(tensors) if n_tensors is None else n_tensors, len(kvs) if n_kv is None else n_kv)
    return pad(h + b"".join(kvs) + b"".join(tensors), align) + data


ARCH = kv("general.architecture", STR, "llama")


class Micro:
    """A valid llama of one layer as lists that can be bent: d_model 32, 2 heads over 1 KV head of 16, d_ff 32, 4 tokens."""

    def __init__(self):
        self.kv = {
            "general.architecture": (STR, "llama"),
            "llama.block_count": (U32, 1),
            "llama.context_length": (U32, 256),
            "llama.embedding_length": (U32, 32),
            "llama.feed_forward_length": (U32, 32),
            "llama.attention.head_count": (U32, 2),
            "llama.attention.head_count_kv": (U32, 1),
            "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
            "llama.rope.dimension_count": (U32, 16),
            "tokenizer.ggml.model": (STR, "gpt2"),
            "tokenizer.ggml.pre": (STR, "smollm"),
            "tokenizer.ggml.tokens": (ARR, (STR, ["<|e|>", "a", "b", "ab"])),
            "tokenizer.ggml.token_type": (ARR, (I32, [3, 1, 1, 1])),
            "tokenizer.ggml.merges": (ARR, (STR, ["a b"])),
            "tokenizer.ggml.eos_token_id": (U32, 0),
        }
        q4, f32 = 2, 0
        b = "blk.0."
        self.tensors = {
            "token_embd.weight": ([32, 4], q4),
            b + "attn_norm.weight": ([32], f32),
            b + "attn_q.weight": ([32, 32], q4),
            b + "attn_k.weight": ([32, 16], q4),
            b + "attn_v.weight": ([32, 16], q4),
            b + "attn_output.weight": ([32, 32], q4),
            b + "ffn_norm.weight": ([32], f32),
            b + "ffn_gate.weight": ([32, 32], q4),
            b + "ffn_up.weight": ([32, 32], q4),
            b + "ffn_down.weight": ([32, 32], q4),
            "output_norm.weight": ([32], f32),
        }

    def set(self, key, t, v):
        self.kv[key] = (t, v)
        return self

    def drop(self, key):
        del self.kv[key]
        return self

    def bytes(self):
        entries, data, rng = [], b"", np.random.default_rng(7)
        for name, (dims, t) in self.tensors.items():
            n = int(np.prod(dims))
            entries.append(tensor(name, dims, t, len(data)))
            if t == 0:
                raw = rng.normal(1, 0.1, n).astype("<f4").tobytes()
            else:
                raw = gguf.quants.quantize(rng.normal(0, 0.2, (n // 32, 32)).astype(np.float32), gguf.GGMLQuantizationType(t)).tobytes()
            data = pad(data + raw)
        return one([kv(k, t, v) for k, (t, v) in self.kv.items()], entries, data)


def ok_files():
    """by pip's gguf: the smallest llama and qwen2, several types, and a file without tensors"""
    for arch, layers in (("llama", 1), ("qwen2", 2)):
        w = gguf.GGUFWriter(os.path.join(FOLDER, "ok_" + arch), arch)
        rng = np.random.default_rng(11)
        w.add_name("Micro " + arch)
        w.add_block_count(layers)
        w.add_context_length(512)
        w.add_embedding_length(32)
        w.add_feed_forward_length(32)
        w.add_head_count(2)
        w.add_head_count_kv(1)
        w.add_layer_norm_rms_eps(1e-6)
        w.add_rope_freq_base(10000.0)
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(2.0)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("smollm" if arch == "llama" else "qwen2")
        w.add_token_list(["<|endoftext|>", "a", "b", "c", "ab", "abc"])
        w.add_token_types([3, 1, 1, 1, 1, 1])
        w.add_token_merges(["a b", "ab c"])
        w.add_eos_token_id(0)
        w.add_add_bos_token(False)
        w.add_chat_template("{{ messages }}")

        def matrix(name, rows, cols, t):
            x = rng.normal(0, 0.2, (rows, cols)).astype(np.float32)
            w.add_tensor(name, gguf.quants.quantize(x, t), raw_dtype=t)

        def vector(name, n):
            w.add_tensor(name, rng.normal(1, 0.1, n).astype(np.float32))

        T = gguf.GGMLQuantizationType
        matrix("token_embd.weight", 6, 32, T.Q8_0)
        for i in range(layers):
            b = "blk.%d." % i
            vector(b + "attn_norm.weight", 32)
            matrix(b + "attn_q.weight", 32, 32, T.Q4_0)
            matrix(b + "attn_k.weight", 16, 32, T.Q4_1)
            matrix(b + "attn_v.weight", 16, 32, T.Q5_0)
            if arch == "qwen2":
                vector(b + "attn_q.bias", 32)
                vector(b + "attn_k.bias", 16)
                vector(b + "attn_v.bias", 16)
            matrix(b + "attn_output.weight", 32, 32, T.Q5_1)
            vector(b + "ffn_norm.weight", 32)
            matrix(b + "ffn_gate.weight", 32, 32, T.Q4_0)
            matrix(b + "ffn_up.weight", 32, 32, T.BF16 if i else T.Q4_0)
            matrix(b + "ffn_down.weight", 32, 32, T.Q8_0)
        vector("output_norm.weight", 32)
        if arch == "qwen2":
            matrix("output.weight", 6, 32, T.Q4_1)
        else:
            w.add_tensor("rope_freqs.weight", np.linspace(1, 8, 8).astype(np.float32))
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()


def bad_files():
    big = 0xFFFFFFFFFFFFFFFF
    f32 = bytes(128)
    yield "empty", b"", "not a GGUF file"
    yield "magic", b"GGML" + head(0, 0)[4:], "not a GGUF file"
    yield "version_1", head(0, 0, version=1), "version 1"
    yield "version_4", head(0, 0, version=4), "version 4"
    yield "big_endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"
    yield "cve_2024_21802_n_dims", one([ARCH], [tensor("t", [1] * 64, 0, 0)], f32), "64 dimensions"
    yield "n_dims_0", one([ARCH], [tensor("t", [], 0, 0) + bytes(32)], f32), "0 dimensions"
    yield "cve_2024_21825_array_count", one([kv("a", ARR, struct.pack("<IQ", U64, 2**61)), bytes(64)], n_kv=1), "array of 2305843009213693952"
    yield "cve_2024_21825_string_array_count", one([kv("a", ARR, struct.pack("<IQ", STR, 2**61 + 1)), bytes(64)], n_kv=1), "array of 2305843009213693953"
    yield "array_over_limit", one([kv("a", ARR, struct.pack("<IQ", U8, (64 << 20) + 1)), bytes(64)], n_kv=1), "the limit is 67108864"
    yield "cve_2024_21836_n_tensors", head(big // 40, 0), "tensors, the limit is 1048576"
    yield "n_tensors_more_than_file", head(1 << 20, 0) + bytes(1000), "the file has 1000 left"
    yield "cve_2024_23605_n_kv", head(0, big // 24), "metadata entries, the limit is 65536"
    yield "n_kv_more_than_file", head(0, 65536) + bytes(1000), "the file has 1000 left"
    yield "cve_2024_23496_string_len_max", one([struct.pack("<Q", big) + bytes(64)], n_kv=1), "18446744073709551615 bytes"
    yield "cve_2024_23496_value_len_max", one([text("a") + struct.pack("<IQ", STR, big) + bytes(64)], n_kv=1), "18446744073709551615 bytes"
    yield "string_past_end", one([text("a") + struct.pack("<IQ", STR, 5000) + bytes(64)], n_kv=1), "needs 5000 bytes"
    yield "imp_532_string_2_60", one([text("a") + struct.pack("<IQ", STR, 2**60) + bytes(64)], n_kv=1), "the limit is 16777216"
    yield "imp_532_unknown_element_type", one([kv("a", ARR, struct.pack("<IQ", 99, 2**60)), bytes(64)], n_kv=1), "unknown element type 99"
    yield "unknown_value_type", one([text("a") + struct.pack("<I", 13) + bytes(64)], n_kv=1), "unknown type 13"
    yield "cve_2024_32878_error_after_first_tensor", one([ARCH], [tensor("t", [32], 0, 0), tensor("u", [32], 77, 128)], f32 * 2), "unknown type 77"
    yield "cve_2024_41130_no_value", one([text("general.architecture") + struct.pack("<I", STR)], n_kv=1)[:56], "needs 8 bytes"
    yield "nested_array", one([kv("a", ARR, struct.pack("<IQIQ", ARR, 1, U8, 1) + b"x")], n_kv=1), "arrays of arrays"
    yield "bool_2", one([kv("general.flag", BOOL, b"\2")]), "2 is not a truth value"
    yield "24884_empty_key", one([kv("", U8, 1), ARCH]), "the name is empty"
    yield "key_escape_sequence", one([kv("a\x1b]52;c;aGk=\x07", U8, 1)]), "holds byte 0x1b"
    yield "28969_tensor_name_osc", one([ARCH], [tensor("t\x1b]8;;http://x\x07", [32], 0, 0)], f32), "holds byte 0x1b"
    yield "tensor_name_64", one([ARCH], [tensor("t" * 64, [32], 0, 0)], f32), "64 bytes, the limit is 63"
    yield "24885_key_twice", one([kv("a", U8, 1), ARCH, kv("a", U8, 2)]), "metadata key a is there twice"
    yield "tensor_twice", one([ARCH], [tensor("t", [32], 0, 0), tensor("t", [32], 0, 128)], f32 * 2), "tensor t is there twice"
    yield "24263_dim_0", one([ARCH], [tensor("t", [0], 0, 0)], f32), "dimension 0 is 0"
    yield "24263_dim_0_second", one([ARCH], [tensor("t", [32, 0], 0, 0)], f32), "dimension 1 is 0"
    yield "dim_negative", one([ARCH], [tensor("t", [2**63], 0, 0)], f32), "dimension 0 is 9223372036854775808"
    yield "cve_2026_33298_elements", one([ARCH], [tensor("t", [2**32, 2**32], 0, 0)], f32), "more than a file can hold"
    yield "cve_2026_33298_bytes", one([ARCH], [tensor("t", [2**31, 2**31, 2], 0, 0)], f32), "more than a file can hold"
    yield "cve_2026_33298_f64", one([ARCH], [tensor("t", [2**30, 2**31], 28, 0)], f32), "more than a file can hold"
    yield "cve_2025_53630_sum", one([ARCH], [tensor("t", [2**61 - 8], 24, 0), tensor("u", [2**61 - 8], 24, 2**61)], f32), "cut short"
    yield "cve_2026_27940_sum_padded", one([ARCH], [tensor("t", [2**63 - 1], 24, 0)], f32), "cut short"
    yield "cve_2026_7482_offset", one([ARCH], [tensor("t", [32], 0, big - 127)], f32), "offset 18446744073709551488, expected 0"
    yield "cve_2026_7482_end", one([ARCH], [tensor("t", [64], 0, 0)], f32), "cut short"
    yield "offset_hole", one([ARCH], [tensor("t", [32], 0, 0), tensor("u", [32], 0, 160)], f32 * 4), "offset 160, expected 128"
    yield "offset_overlap", one([ARCH], [tensor("t", [32], 0, 0), tensor("u", [32], 0, 0)], f32 * 2), "offset 0, expected 128"
    yield "offset_unaligned", one([ARCH], [tensor("t", [31], 0, 0), tensor("u", [32], 0, 124)], f32 * 2), "offset 124, expected 128"
    yield "row_not_blocks", one([ARCH], [tensor("t", [33], 2, 0)], f32), "rows of 33 elements, Q4_0"
    yield "24997_alignment_2_31", one([kv("general.alignment", U32, 0x80000000)], [tensor("t", [32], 0, 0)], f32), "general.alignment"
    yield "24759_alignment_0", one([kv("general.alignment", U32, 0)], [tensor("t", [32], 0, 0)], f32), "general.alignment"
    yield "24759_alignment_24", one([kv("general.alignment", U32, 24)], [tensor("t", [32], 0, 0)], f32), "24 is not a power of two"
    yield "alignment_string", one([kv("general.alignment", STR, "32")]), "expected an integer"
    yield "alignment_u64_max", one([kv("general.alignment", U64, big)]), "18446744073709551615"
    # from here on a whole micro model with one thing bent
    m = Micro
    yield "architecture_missing", m().drop("general.architecture").bytes(), "general.architecture is missing"
    yield "architecture_unknown", m().set("general.architecture", STR, "mamba\x1b[2J").bytes(), "architecture mamba?[2J is not supported"
    yield "architecture_type", m().set("general.architecture", U32, 7).bytes(), "expected STRING"
    yield "25821_block_count_100000", m().set("llama.block_count", U32, 100000).bytes(), "expected 1 to 1024"
    yield "25821_block_count_600", m().set("llama.block_count", U32, 600).bytes(), "blk.1.attn_norm.weight is missing"
    yield "1bit_455_head_count_0", m().set("llama.attention.head_count", U32, 0).bytes(), "head_count"
    yield "1bit_694_n_layer_max", m().set("llama.block_count", U32, 0xFFFFFFFF).bytes(), "4294967295, expected 1 to 1024"
    yield "block_count_0", m().set("llama.block_count", U32, 0).bytes(), "0, expected 1 to 1024"
    yield "block_count_negative", m().set("llama.block_count", I32, -1).bytes(), "-1, expected 1 to 1024"
    yield "cve_2026_21869_negative_context", m().set("llama.context_length", I64, -5).bytes(), "-5, expected 1 to"
    yield "14145_vocabulary_smaller", m().set("tokenizer.ggml.tokens", ARR, (STR, ["<|e|>", "a", "b"])).bytes(), "3 tokens but token_embd.weight has 4"
    yield "cve_2025_49847_token_65537", m().set("tokenizer.ggml.tokens", ARR, (STR, ["<|e|>", "a", "b", "c" * 65537])).bytes(), "65537 bytes, the limit is 65536"
    yield "cve_2025_52566_types_shorter", m().set("tokenizer.ggml.token_type", ARR, (I32, [3, 1])).bytes(), "2 entries for 4 tokens"
    yield "26690_token_type_u8", m().set("tokenizer.ggml.token_type", ARR, (U8, [3, 1, 1, 1])).bytes(), "an array of U8, expected an array of I32"
    yield "26690_tokens_i32", m().set("tokenizer.ggml.tokens", ARR, (I32, [1, 2, 3, 4])).bytes(), "an array of I32, expected an array of STRING"
    yield "tokens_scalar", m().set("tokenizer.ggml.tokens", STR, "abcd").bytes(), "STRING, expected an array of STRING"
    yield "24885_missing_tokens", m().drop("tokenizer.ggml.tokens").bytes(), "tokenizer.ggml.tokens is missing"
    yield "24885_eos_out_of_range", m().set("tokenizer.ggml.eos_token_id", U32, 4).bytes(), "4, expected 0 to 3"
    yield "25969_unigram_model", m().set("tokenizer.ggml.model", STR, "llama").bytes(), "llama"
    yield "cve_2024_34359_template_2_mb", m().set("tokenizer.chat_template", STR, "{{ x }}" * 160000).bytes()[:4000], "needs 1120000 bytes"


def main():
    os.makedirs(FOLDER, exist_ok=True)
    for name in os.listdir(FOLDER):
        if name.startswith(("ok_", "bad_")):
            os.remove(os.path.join(FOLDER, name))
    ok_files()
    with open(os.path.join(FOLDER, "ok_micro"), "wb") as f:
        f.write(Micro().bytes())
    with open(os.path.join(FOLDER, "ok_empty"), "wb") as f:
        f.write(one([ARCH]))
    with open(os.path.join(FOLDER, "ok_types"), "wb") as f:  # every value type, alone and as an array
        scalars = {U8: 255, I8: -1, U16: 65535, I16: -2, U32: 2**32 - 1, I32: -3, F32: 0.5, BOOL: 1, STR: "text", U64: 2**64 - 1, I64: -4, F64: 0.25}
        entries = [ARCH, kv("general.alignment", U32, 64)]
        for t, v in scalars.items():
            entries += [kv("scalar.%d" % t, t, v), kv("array.%d" % t, ARR, (t, [v] * 3)), kv("none.%d" % t, ARR, (t, []))]
        f.write(one(entries, [tensor("t", [4, 3, 2, 1], 0, 0), tensor("u", [32, 2], 20, 128)], bytes(128 + 36), align=64))
    rows = []
    for name, data, words in bad_files():
        with open(os.path.join(FOLDER, "bad_" + name), "wb") as f:
            f.write(data)
        rows.append("bad_%s\t%s\n" % (name, words))
    with open(os.path.join(HERE, "..", "data", "gguf_hostile.tsv"), "w") as f:
        f.writelines(rows)
    print(len(rows), "hostile files")


if __name__ == "__main__":
    main()
