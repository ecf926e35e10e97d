#!/usr/bin/env python3
"""Token ids by Hugging Face tokenizers: the golden that moascope's tokenizer is held against.

A byte-level BPE is four things: a normaliser, a regular expression that cuts the text into words, an order of
merges, and a list of strings that are tokens of their own. GGUF files carry the last two and name the first
two in tokenizer.ggml.pre. This script builds the tokenizer anew from that, with the Rust implementation that
the models were trained with, encodes a fixed set of strings chosen to hurt, and writes one JSON object a line:

    {"text": ..., "bytes_hex": ..., "ids": [...], "ids_nospecial": [...]}

bytes_hex      the input, to be taken as it is: it may be invalid UTF-8 and may hold NUL
text           the same after each ill-formed sequence became U+FFFD (one per maximal subpart, as browsers do)
ids            special strings in the text become their tokens
ids_nospecial  control tokens (type 3) are spelled out as text; user-defined ones (type 4, such as Qwen's
               <tool_call>) are still tokens, since their strings stand for text

No BOS is added. A byte that the vocabulary lacks disappears, and its neighbours may then merge (SmolLM2 has no
token for 0x04 0x06 0x13 0x14 0x16 0x1d 0xf1 0xf2). The strings avoid letters that Unicode got after 3.2, so
that the age of a library's tables does not decide the test; emoji may be newer, no regular expression minds.

    tokenizer_ids.py MODEL OUT.jsonl[.gz] [--pre NAME]     the golden; --pre: another regex on the same vocabulary
    tokenizer_ids.py MODEL OUT.json --text FILE            the ids of one text as a JSON array, as --ids takes it

The same command writes the same bytes: the generator is seeded and gzip's time is zero.
"""
import argparse
import gzip
import json
import random
import sys
import unicodedata

from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

SEED = 20240621

# The regular expressions are data of the published tokenizer.json files.
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(regex):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# name: (pre-tokenizer, normaliser, ignore_merges: a word that is itself a token is not merged up to it)
PRE = {
    "smollm": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()]), None, False),
    "qwen2": (lambda: split(QWEN2), normalizers.NFC, False),
    "llama-bpe": (lambda: split(LLAMA3), None, True),
    "gpt-2": (gpt2, None, False),
}


def build(path, pre=None):
    r = GGUFReader(path)

    def key(name):
        field = r.get_field("tokenizer.ggml." + name)
        return None if field is None else field.contents()

    if key("model") != "gpt2":
        sys.exit("tokenizer_ids: %s: tokenizer model %s, only gpt2 (byte-level BPE) is known here"
                 % (path, key("model")))
    pre = pre or key("pre")
    if pre not in PRE:
        sys.exit("tokenizer_ids: %s: pre-tokenizer %s is not known here" % (path, pre))
    tokens, types = key("tokens"), key("token_type")
    merges = [tuple(m.split(" ")) for m in key("merges")]
    make, normaliser, ignore_merges = PRE[pre]
    # Added tokens stand in the vocabulary too: add_tokens finds them there and so keeps their ids.
    vocab = {t: i for i, t in enumerate(tokens)}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    tok.pre_tokenizer = make()
    if normaliser is not None:
        tok.normalizer = normaliser()
    for t, kind in zip(tokens, types):
        if kind == 3:
            tok.add_special_tokens([AddedToken(t, special=True, normalized=False)])
        elif kind == 4:
            tok.add_tokens([AddedToken(t, special=False, normalized=False)])
    special = [t for t, kind in zip(tokens, types) if kind in (3, 4)]
    assert all(tok.token_to_id(t) == i for i, t in enumerate(tokens)), "ids moved"
    return tok, special


def encode(tok, text, parse_special):
    tok.encode_special_tokens = not parse_special
    return tok.encode(text, add_special_tokens=False).ids


# --- the strings -----------------------------------------------------------------------------------------------

SPACES = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u1680", "\u180e",
          "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u2060", "\u3000",
          "\ufeff"]
DIGITS = list("0123456789") + ["42", "1999", "3.14159", "1,000,000", "0x1F", "1e-9", "٠١٢٣", "۴۵۶", "०१२", "１２３", "²", "³⁴",
                               "½", "Ⅷ", "①", "⑳", "〇", "一二三", "𝟘𝟙", "൧൨"]
CONTRACTIONS = [w + a + s for w in ("I", "we", "they", "It", "don", "X", "", "3", "é")
                for a in ("'", "’") for s in ("s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "Re", "ſ", "x", "", "ss")]
WORDS = ("the of and lamp keeper fog horn attention window span sink Hello WORLD camelCaseName snake_case_name "
         "SCREAMING_CASE co-operate naïve façade Straße İstanbul ǅ łódź œuvre Привет мир Ελληνικά ὀδός").split()
CJK = list("中文字符測試漢字仮名交じり文日本語テスト한국어처리々〆ヶ。、「」！？　") + ["你好，世界", "吾輩は猫である", "대한민국", "𠮷野家", "㍿", "㋿"]
RTL = ["שלום עולם", "בְּרֵאשִׁית", "مرحبا بالعالم", "اَلْعَرَبِيَّةُ", "\u202babc\u202c", "\u200fא\u200e", "سلام ۱۲۳", "ﷺ", "ܫܠܡܐ"]
INDIC = ["नमस्ते दुनिया", "क्षत्रिय", "தமிழ்", "ಕನ್ನಡ", "สวัสดีชาวโลก", "ខ្មែរ", "မြန်မာ", "བོད་ཡིག", "ไทย๑๒๓", "ગુજરાતી"]
EMOJI = ["😀", "👍🏽", "👩‍🚀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇬🇧", "🇩🇪🇫🇷", "❤️", "☎︎", "1️⃣", "🧑🏿‍🤝‍🧑🏻", "🫠", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "✨", "→", "∀x∈ℝ", "¯\\_(ツ)_/¯"]
COMBINING = ["e\u0301", "a\u0308\u0301", "o\u0302\u0323", "o\u0323\u0302", "A\u030a", "\u212b", "\u2126", "\u1100\u1161",
             "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0958", "\u0915\u093c", "\u2adc", "\ufb1d", "\u0344", "\u0301", " \u0301",
             "\n\u0301", "n\u0303o", "q\u0307\u0323", "\u1e0b\u0323", "\u0f73", "\ufb01", "\u1e9b\u0323", "Z" + "\u0335\u0348\u0352" * 4,
             "\u3099", "\u304b\u3099", "x\u20d7"]
PUNCT = list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~") + ["...", "--", "—", "…", "«»", "“q”", "??!", "=>", "->", "!=", "::", "//", "/*", "*/",
                                                    "```", "$$", "§", "¶", "•", "·", "€", "£", "´", "``", "''", "'''", "\"\"\""]
CODE = [
    "for (int i = 0; i < n; i++) {\n\tsum += a[i] * b[i];\n}\n",
    "def sees(i, j, span):\n    return j <= i and (j < 64 or i - j < span - 64)\n",
    "#include <stdio.h>\r\nint main(void)\r\n{\r\n    return printf(\"%d\\n\", 0x7f) < 0;\r\n}\r\n",
    "SELECT name, COUNT(*) FROM ships WHERE fog > 0.5 GROUP BY 1;\n",
    "<div class=\"lamp\">\n  <p>lit&nbsp;at 18:04</p>\n</div>\n",
    "{\"alphas\": [[0, -1024.5]], \"betas\": [[0.125, 1e0]], \"note\": null}\n",
    "__global__ void k(const float *__restrict__ x){int i=blockIdx.x*blockDim.x+threadIdx.x;}\n",
    "let f = |x: &str| -> Option<u32> { x.parse().ok() };",
    "\tmov\t%rax, -8(%rbp)\n\tjne\t.L3\n",
    "git commit -m 'fix: off-by-one' && make -j2 2>&1 | tee log.txt\n",
    "if x:\n\n\n        y = 1\n    \n\n  # end   ",
    "λ x → x ∘ x  -- 合成\n",
    "^(?:[a-z]+|\\d{2,})\\s*$",
    "https://example.org/a/b?c=d&e=%20f#g_h-i",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n",
]
CONTROL = ["\x00", "\x01", "\x04", "\x06", "\x07", "\x08", "\x13", "\x14", "\x16", "\x1b[31mred\x1b[0m", "\x1d", "\x1f", "\x7f", "\x80", "\x9f",
           "!\x04!", "a\x06a", "=\x13=", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000f0000", "\U00040000", "\u00ad", "\u200d", "\u200c",
           "\u034f", "\u061c", "\u2066"]
INVALID = [b"\xff", b"\xfe\xff", b"\x80", b"\xc0\x80", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x28\xa1", b"\xed\xa0\x80", b"\xed\xbf\xbf",
           b"\xf0\x9f\x98", b"\xf0\x80\x80\xaf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"a\xe4\xbd", b"\xe4\xbd\xe4\xbd\xa0",
           b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"caf\xe9 au lait", b"\x93quoted\x94", b"\xc2\xc2\xa0", b"\xef\xbb\xbf\xff", b"ok\xf1\x80\x80"]


def old_letters(rng):
    """One code point that Unicode 3.2 knew already."""
    while True:
        c = rng.choice((0x100, 0x530, 0x1000, 0x3000, 0x10000, 0x1f000, 0x20000))
        cp = rng.randrange(c, min(c * 2, 0x2a6d6))
        if not 0xd800 <= cp < 0xe000 and unicodedata.ucd_3_2_0.category(chr(cp)) != "Cn":
            return chr(cp)


def special_like(rng, special):
    t = rng.choice(special)
    cut = rng.randrange(1, len(t))
    return rng.choice([t, t, t + t, t[:cut], t[cut:], t[:cut] + " " + t[cut:], t[:cut] + t, t.upper(), " " + t + " ", "\n" + t + "\n",
                       "x" + t + "y", t + "\u0301", "<|im_start|>user\nhi<|im_end|>\n", "[INST]", "<s>", "</s>", "<|eot_id|>",
                       "<|im_start|", "<||>", "[PAD151665]", "<|endoftext|><|endoftext|>", "<tool_call>{}</tool_call>"])


def samples(special):
    """The strings, as bytes, each once. Corner cases first, then mixtures until there are enough."""
    rng = random.Random(SEED)
    pools = [SPACES, DIGITS, CONTRACTIONS, WORDS, CJK, RTL, INDIC, EMOJI, COMBINING, PUNCT, CODE, CONTROL]
    seen, out = set(), []

    def add(b):
        if b not in seen:
            seen.add(b)
            out.append(b)

    add(b"")
    for pool in pools:
        for s in pool:
            add(s.encode())
    for b in INVALID:
        add(b)
    for b in range(256):
        add(bytes([b]))
    for t in special:
        add(t.encode())
    for n in (2, 3, 4, 7, 8, 15, 16, 17, 31, 64, 100, 255):
        for c in (" ", "\t", "\n", "a", "A", "0", "9", "-", "=", "é", "中", "😀", "\r\n", " \n", "\u00a0", "ab"):
            add((c * n).encode())
            if n <= 17:
                add(("x" + c * n + "y").encode())

    def piece():
        kind = rng.randrange(18)
        if kind < len(pools):
            return rng.choice(pools[kind]).encode()
        if kind == 12:
            return "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 7))).encode()
        if kind == 13:
            return "".join(old_letters(rng) for _ in range(rng.randrange(1, 5))).encode()
        if kind == 14:
            return special_like(rng, special).encode()
        if kind == 15:
            return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzETAOIN'_- ") for _ in range(rng.randrange(1, 40))).encode()
        if kind == 16:
            return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(2, 9))).encode()
        return "".join(rng.choice("0123456789.,-+eE ") for _ in range(rng.randrange(1, 20))).encode()

    while len(out) < 2600:
        b = b"".join(rng.choice((b"", b"", b" ")) + piece() for _ in range(rng.randrange(1, 6)))
        if rng.randrange(16) == 0:  # damage: one byte lost, doubled or changed
            i = rng.randrange(len(b))
            b = b[:i] + rng.choice((b"", b[i:i + 1] * 2, bytes([rng.randrange(256)]))) + b[i + 1:]
        if rng.randrange(40) == 0:
            b += rng.choice(INVALID)
        add(b)
    return out


def main():
    p = argparse.ArgumentParser(description="Token ids by Hugging Face tokenizers, from a GGUF's vocabulary.")
    p.add_argument("model")
    p.add_argument("out")
    p.add_argument("--pre", choices=sorted(PRE), help="pre-tokenizer to use instead of the file's own")
    p.add_argument("--text", help="write the ids of this file's text instead of the golden")
    args = p.parse_args()
    tok, special = build(args.model, args.pre)

    if args.text:
        with open(args.text, "rb") as f:
            ids = encode(tok, f.read().decode("utf-8", "replace"), parse_special=True)
        with open(args.out, "w") as f:
            json.dump(ids, f)
            f.write("\n")
        sys.stderr.write("%d tokens\n" % len(ids))
        return

    lines, n_ids, differ = [], 0, 0
    for b in samples(special):
        text = b.decode("utf-8", "replace")
        ids, plain = encode(tok, text, True), encode(tok, text, False)
        n_ids += len(ids)
        differ += ids != plain
        lines.append(json.dumps({"text": text, "bytes_hex": b.hex(), "ids": ids, "ids_nospecial": plain},
                                separators=(",", ":")))
    data = ("\n".join(lines) + "\n").encode()
    with open(args.out, "wb") as f:
        if args.out.endswith(".gz"):
            data = gzip.compress(data, 9, mtime=0)
        f.write(data)
    sys.stderr.write("%d strings, %d ids, %d differ without specials, %d bytes written\n"
                     % (len(lines), n_ids, differ, len(data)))


if __name__ == "__main__":
    main()
