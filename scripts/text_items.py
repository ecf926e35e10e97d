#!/usr/bin/env python3
"""Running text as items for `moascope refine --text` (and profile, validate): stretches of documents, the last tokens of each supervised.

    text_items.py MODEL DOC... --lengths 1024,2048 [--items 12] [--share 0.875 | --tail 64] [--seed 1] [--moascope FILE] -o TEXT.jsonl

A document is a text file or a folder of .txt files; MODEL's own tokenizer makes the tokens (`moascope tokenize`). The documents take turns,
where a stretch begins is drawn by the seed: {"ids": [...], "supervise_from": N - tail, "length": N} a line. The last --share of a stretch is
supervised: a backward pass costs the same for one token or all, and 64 of them say little of what text loses. --tail: so many tokens instead.
Documents shorter than a length are passed over there and said. Standard library only."""
import argparse
import json
import os
import random
import subprocess
import sys


def tokens(moascope, model, path):
    with open(path, "rb") as f:
        r = subprocess.run([moascope, "tokenize", model, "--ids"], stdin=f, capture_output=True)
    if r.returncode != 0:
        sys.exit("text_items: %s: %s" % (path, r.stderr.decode(errors="replace").strip()))
    return json.loads(r.stdout)


def files(docs):
    for d in docs:
        if os.path.isdir(d):
            yield from (os.path.join(d, x) for x in sorted(os.listdir(d)) if x.endswith(".txt"))
        else:
            yield d


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("docs", nargs="+")
    p.add_argument("--lengths", required=True)
    p.add_argument("--items", type=int, default=12)
    p.add_argument("--share", type=float, default=.875)
    p.add_argument("--tail", type=int)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--moascope", default="moascope")
    p.add_argument("-o", "--output", required=True)
    o = p.parse_args()
    lengths = [int(x) for x in o.lengths.split(",")]
    tails = {n: int(n * o.share) if o.tail is None else o.tail for n in lengths}
    if o.items < 1 or any(not 1 <= t < n for n, t in tails.items()):
        sys.exit("text_items: %s of lengths %s, %d items" % ("--share %g" % o.share if o.tail is None else "--tail %d" % o.tail, o.lengths, o.items))
    ids = [(path, tokens(o.moascope, o.model, path)) for path in files(o.docs)]
    draw = random.Random(o.seed)
    lines = []
    for n in lengths:
        fit = [x for _, x in ids if len(x) >= n]
        if not fit:
            sys.exit("text_items: none of %d documents has %d tokens" % (len(ids), n))
        if len(fit) < len(ids):
            print("text_items: %d of %d documents are shorter than %d tokens" % (len(ids) - len(fit), len(ids), n), file=sys.stderr)
        for i in range(o.items):
            doc = fit[i % len(fit)]
            at = draw.randrange(len(doc) - n + 1)
            lines.append(json.dumps({"ids": doc[at:at + n], "supervise_from": n - tails[n], "length": n}, separators=(",", ":")) + "\n")
    with open(o.output + ".new", "w", encoding="utf-8") as f:
        f.writelines(lines)
    os.replace(o.output + ".new", o.output)


if __name__ == "__main__":
    main()
