#!/usr/bin/env python3
"""Chat ids by Jinja2 and Hugging Face tokenizers: the golden that moascope's chat templates are held against.

A file's chat template is a Jinja program. Hugging Face renders it (trim_blocks, lstrip_blocks) and tokenises the text
with special strings becoming their tokens. This script does just that, for a fixed set of conversations, with the
templates of the model files given, and with small templates written here for the families no given file has; those
use the first file's vocabulary with some control tokens renamed. One JSON object a line:

    {"model": file or null, "rename": {id: text}, "bos": id, "eos": id, "template": text or null (the file's own),
     "name": family, "messages": [[role, text], ...], "reply": bool, "ids": [...]}

No message holds a special string: Hugging Face would turn it into a control token, which moascope refuses to do.

    chat_ids.py SMOLLM2.gguf OUT.jsonl[.gz] [MORE.gguf ...]

The same command writes the same bytes.
"""
import gzip
import json
import os
import sys

import jinja2.sandbox
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, models

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from tokenizer_ids import PRE  # noqa: E402

RENAME = {3: "<|begin_of_text|>", 4: "<|start_header_id|>", 5: "<|end_header_id|>", 6: "<|eot_id|>", 7: "<|user|>", 8: "<|assistant|>",
          9: "<|system|>", 10: "<|end|>", 11: "</s>", 12: "<s>"}
HEAD3 = "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>'"
ASK3 = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
FAMILIES = [  # name, bos, eos, template
    ("llama3", 3, 6, "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ " + HEAD3 + " }}{% endfor %}" + ASK3),
    ("llama3", 3, 6, "{{ bos_token }}{% set dated = 'Cutting Knowledge Date: December 2023\\nToday Date: 26 Jul 2024\\n\\n' %}"
     "{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' + dated }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}"
     "{% endif %}{{ '<|eot_id|>' }}{% for m in messages %}{% if not (loop.first and m['role'] == 'system') %}{{ " + HEAD3 + " }}{% endif %}"
     "{% endfor %}" + ASK3),
    ("phi3", 12, 11, "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"),
    ("zephyr", 12, 11, "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\\n' + m['content'] + eos_token + '\\n' }}"
     "{% elif m['role'] == 'system' %}{{ '<|system|>\\n' + m['content'] + eos_token + '\\n' }}"
     "{% else %}{{ '<|assistant|>\\n' + m['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"),
    ("llama2", 12, 11, "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set sys = '<<SYS>>\\n' + messages[0]['content'] +"
     " '\\n<</SYS>>\\n\\n' %}{% else %}{% set rest = messages %}{% set sys = '' %}{% endif %}{% for m in rest %}"
     "{% if loop.first %}{% set content = sys + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}"
     "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
     "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"),
    ("mistral", 12, 11, "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
     "{{ '[INST] ' + (messages[0]['content'] + '\\n\\n' if loop.index0 == 1 and messages[0]['role'] == 'system' else '') + m['content'] + ' [/INST]' }}"
     "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"),
    ("chatml", 12, 2, "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] | trim) + '<|im_end|>\\n' }}{% endfor %}"
     "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
]

SYSTEM = "You keep a lighthouse. Answer briefly."
CONVERSATIONS = [
    [("user", "Hello")],
    [("user", "")],
    [("user", " leading and trailing ")],
    [("user", "\n\ntwo lines before,\nand after\n\n")],
    [("user", "\u00a0\u2003wide spaces\u3000\t")],
    [("system", SYSTEM), ("user", "What is 12 * 34?")],
    [("system", ""), ("user", "no system message at all")],
    [("system", "  spaced system \n"), ("user", " spaced user ")],
    [("user", "Was ist das?"), ("assistant", "Ein Leuchtturm."), ("user", "Und das?")],
    [("system", SYSTEM), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"), ("user", "five")],
    [("user", "a"), ("assistant", " b "), ("user", "\nc")],
    [("user", "def f(x):\n    return x + 1\n"), ("assistant", "```python\nprint(f(1))\n```\n"), ("user", "Danke!\r\n")],
    [("user", "中文和日本語、한국어"), ("assistant", "好的。👩‍🚀"), ("user", "'s it's ' 1234567")],
    [("user", "{{ messages }} {% if x %} \\n \" '"), ("assistant", "<|not_a_token|> <s"), ("user", "[INST] quoted [/INST]")],
    [("user", "e\u0301 a\u030a \u212b"), ("assistant", "\u1100\u1161")],
]


def load(path, rename):
    r = GGUFReader(path)

    def key(name):
        field = r.get_field("tokenizer." + name)
        return None if field is None else field.contents()

    tokens, types = list(key("ggml.tokens")), key("ggml.token_type")
    for i, t in rename.items():
        assert types[i] == 3
        tokens[i] = t
    make, normaliser, ignore_merges = PRE[key("ggml.pre")]
    merges = [tuple(m.split(" ")) for m in key("ggml.merges")]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=ignore_merges))
    tok.pre_tokenizer = make()
    if normaliser is not None:
        tok.normalizer = normaliser()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == 3])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t, k in zip(tokens, types) if k == 4])
    return tok, tokens, key("chat_template"), key("ggml.bos_token_id"), key("ggml.eos_token_id")


def lines(model, rename, tok, tokens, template, own, name, bos, eos):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    program = env.from_string(template)
    for messages in CONVERSATIONS:
        for reply in (True, False):
            if reply and messages[-1][0] == "assistant" and name in ("llama2", "mistral"):
                continue
            text = program.render(messages=[{"role": r, "content": c} for r, c in messages], add_generation_prompt=reply,
                                  bos_token=tokens[bos], eos_token=tokens[eos])
            yield {"model": model, "rename": {str(i): t for i, t in rename.items()}, "bos": bos, "eos": eos,
                   "template": None if own else template, "name": name, "messages": messages, "reply": reply,
                   "ids": tok.encode(text, add_special_tokens=False).ids}


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    first, out, more = sys.argv[1], sys.argv[2], sys.argv[3:]
    rows = []
    for path in [first] + more:
        tok, tokens, template, bos, eos = load(path, {})
        rows += lines(os.path.basename(path), {}, tok, tokens, template, True, "chatml", bos, eos)
    tok, tokens, _, _, _ = load(first, RENAME)
    for name, bos, eos, template in FAMILIES:
        rows += lines(os.path.basename(first), RENAME, tok, tokens, template, False, name, bos, eos)
    data = ("\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n").encode()
    with open(out, "wb") as f:
        f.write(gzip.compress(data, 9, mtime=0) if out.endswith(".gz") else data)
    sys.stderr.write("%d conversations, %d bytes\n" % (len(rows), os.path.getsize(out)))


if __name__ == "__main__":
    main()
