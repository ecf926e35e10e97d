"""Seeds of fuzz_tokenizer (each pre-tokenizer, with and without bytes, special tokens, templates) and of fuzz_text."""
import os

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end|>", "</s>", "<s>"]
TEMPLATES = ["<|im_start|>system\nBe kind.<|im_end|> bos_token content | trim", "<|start_header_id|> <|eot_id|> Cutting Knowledge Date",
             "<|user|> <|end|> <|assistant|>", "<|user|> <|assistant|> eos_token", "[INST] <<SYS>> bos_token", "[INST] [/INST]", "none"]
TEXTS = ["", "Hello, world! it's 12345 o'clock\n\n  \tx", "e\u0301 \u1100\u1161\u11a8 \u212b q\u0307\u0323", "a" * 40 + "ab" * 30, "<|im_end|><u><uu> <|im_end",
         "中文 👩\u200d🚀 \u202e\x1b[2J", "\u180e\u2003 \u00a0x \r\n\r\n y", "'S'll 'ſ don't 1 22 333 4444"]


def write(folder, name, data):
    os.makedirs(os.path.join(HERE, folder), exist_ok=True)
    with open(os.path.join(HERE, folder, name), "wb") as f:
        f.write(data)


def entry(kind, text):
    b = text.encode()
    return bytes([kind, len(b)]) + b


def main():
    for i, text in enumerate(TEXTS):
        for pre in range(4):
            # letters a..f are tokens 97..102 when all bytes are; merges make ab, abab, abc, ...
            merges = bytes([97, 98, 0, 1, 97, 99, 101, 102, 32, 97, 200, 97])
            write("tokenizer", "bytes_%d_%d" % (pre, i), bytes([pre | 4]) + b"\1\xff" + merges + b"\xff" + text.encode())
            special = b"".join(entry(3, s) for s in SPECIAL) + entry(4, "<u>") + entry(4, "<uu>") + entry(3, "ab") + entry(6, "<0x0A>")
            template = TEMPLATES[(i + pre) % len(TEMPLATES)].encode()
            write("tokenizer", "special_%d_%d" % (pre, i), bytes([pre | 4 | 8 | 16 | 32]) + special + b"\1\xff" + merges + b"\xff" +
                  bytes([len(template)]) + template + text.encode())
    for how in list(range(8)) + [9, 13, 3 + 128, 3 + 8, 3 + 16, 6 + 8, 6 + 24, 6 + 40]:
        write("tokenizer", "strange_%d" % how, bytes([3 | 4 | 64]) + b"\1\xff\xff" + bytes([how]) + b"text")
    marks = "z" + "\u0307\u0323\u0345" * 40 + "\uac00\u11a8"
    write("tokenizer", "marks", bytes([1 | 4]) + b"\1\xff\xff" + marks.encode())
    write("tokenizer", "control_merges", bytes([3 | 4 | 8]) + entry(3, "a") + entry(1, "q") + entry(3, "qb") + b"\1\xff\0\1\1\2\xffaqb")
    write("tokenizer", "few_bytes", bytes([3]) + entry(1, "a") + entry(1, "b") + entry(1, "a") + b"\1\xff\0\1\xffaabbcab")
    write("tokenizer", "no_bytes", bytes([3]) + entry(1, "abc") + b"\1\xff\xffaabb")
    odd = ["\x1b[31m\x1b]52;c;AA\x07", "\u202e\u2066x\u2069", "👨\u200d👩\u200d👧 \u200d", "e" + "\u0301" * 20, "\ufeff\u2028\U000e0041", "❤\ufe0f\ufe0f",
           "plain\n\ttext", "\u0301", "<&>\"'\\", "\u0085\u009b31m", "作者 🇩🇪 👩🏽\u200d🚀"]
    for i, text in enumerate(odd):
        write("text", "odd_%d" % i, bytes([i & 3, i]) + text.encode())
        write("text", "cut_%d" % i, bytes([i & 3, 0]) + text.encode()[:-1] + b"\xff\xed\xa0\x80\xc0\xaf")


if __name__ == "__main__":
    main()
