#!/usr/bin/env python3
"""Is B what A says? A is the oracle, B the program under test.

    compare.py A.npy  B.npy    logits [n_tok][n_vocab]: KL(A || B) per position in nats, agreement of the best token
    compare.py A.npz  B.npz    maps: largest difference of a 64x64 block sum, spans equal;
                               or statistics: largest difference per entry, relative to the entry's largest value
    compare.py A.json B.json   greedy ids; with --gaps, a first difference where A's best two logits were nearer
                               than --gap is a tie and not an error (what follows it is another text)

One line per figure: name, value, limit, ok or FAIL. Exit 0: all within limits; 1: not; 3: a file does not fit.
NaN is never within a limit. Logits are read in slices, they may be larger than memory.
"""
import argparse
import json
import sys

import numpy as np

ROWS = 64


class Report:
    def __init__(self):
        self.bad = False

    def row(self, name, value, limit, ok):
        self.bad |= not ok
        print("%-22s %12s   %-10s %s" % (name, value, limit, "ok" if ok else "FAIL"))

    def below(self, name, value, limit):
        self.row(name, "%.3g" % value, "<= %g" % limit, bool(value <= limit))

    def above(self, name, value, limit):
        self.row(name, "%.5g" % value, ">= %g" % limit, bool(value >= limit))


def die(text):
    sys.stderr.write("compare: %s\n" % text)
    sys.exit(3)


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def logits(a, b, args, report):
    if a.shape != b.shape or a.ndim != 2:
        die("shapes %s and %s, expected the same [n_tok][n_vocab]" % (a.shape, b.shape))
    if b.dtype != np.float32:
        die("%s: dtype %s, expected float32" % (args.b, b.dtype))
    kl, same, worst = [], 0, 0.0
    for i in range(0, len(a), ROWS):
        x, y = a[i:i + ROWS], b[i:i + ROWS]
        p, q = log_softmax(x), log_softmax(y)
        kl.append(np.sum(np.exp(p) * (p - q), axis=1))
        same += int((x.argmax(axis=1) == y.argmax(axis=1)).sum())
        worst = max(worst, float(np.abs(x - y).max()))  # max() keeps the left side where the right is NaN,
        if not np.isfinite(y).all():  # so say that apart
            worst = np.inf
    kl = np.concatenate(kl)
    report.below("KL mean [nats]", kl.mean(), args.kl_mean)
    report.below("KL worst [nats]", kl.max(), args.kl_worst)
    report.above("top-1 agreement", same / len(a), args.top1)
    print("%-22s %12.3g   %-10s" % ("largest |logit diff|", worst, "-"))


def maps(a, b, args, report):
    if a["mass"].shape != b["mass"].shape or a["span"].shape != b["span"].shape:
        die("mass %s and %s, span %s and %s" % (a["mass"].shape, b["mass"].shape, a["span"].shape, b["span"].shape))
    if b["mass"].dtype != np.float32 or b["span"].dtype != np.int32:
        die("%s: dtypes %s, %s, expected float32 and int32" % (args.b, b["mass"].dtype, b["span"].dtype))
    differ = int((a["span"] != b["span"]).sum())
    report.row("spans that differ", "%d" % differ, "= 0", differ == 0)
    diff = np.abs(a["mass"].astype(np.float64) - b["mass"])
    report.below("map block sums", diff.max(), args.map)
    if not diff.max() <= args.map:
        l, h, i, j = np.unravel_index(int(np.nanargmax(diff)), diff.shape)
        print("    at layer %d head %d block (%d, %d): %.6g, expected %.6g"
              % (l, h, i, j, b["mass"][l, h, i, j], a["mass"][l, h, i, j]))


def stats(a, b, args, report):
    for key in sorted(set(a.files) - {"README"}):
        if key not in b.files:
            die("%s: entry %s is missing" % (args.b, key))
        x, y = a[key].astype(np.float64), b[key]
        if key == "hist" and y.ndim == 3 and y.shape[2] > x.shape[2]:  # bins for all of N, more than the prompt fills
            x = np.pad(x, ((0, 0), (0, 0), (0, y.shape[2] - x.shape[2])))
        if x.shape != y.shape:
            die("%s: %s is %s, expected %s" % (args.b, key, y.shape, x.shape))
        report.below(key, np.abs(x - y).max() / np.abs(x).max(), args.stats)


def greedy(a, b, args, report):
    ended = False
    if isinstance(b, dict):  # what `run --json` writes
        ended = b.get("stop_reason") == "end"
        b = b["tokens"]
    if ended and a[:-1] == b:  # the end token is the oracle's last id; whether the program counts it is its choice
        a = b
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    if at == len(a) == len(b):
        report.row("greedy ids", "%d" % at, "= %d" % len(a), True)
        return
    gap = float("inf")
    if args.gaps and at < len(a):
        with open(args.gaps) as f:
            gap = json.load(f)[at]
    report.row("greedy ids", "%d" % at, "= %d" % len(a), gap < args.gap)
    print("    differ from token %d, where the best two logits are %.4g apart%s"
          % (at, gap, ": a tie" if gap < args.gap else ""))


def main():
    p = argparse.ArgumentParser(description="Compare the program's arrays with the oracle's.")
    p.add_argument("a", metavar="A", help="oracle")
    p.add_argument("b", metavar="B", help="program under test")
    p.add_argument("--kl-mean", type=float, default=1e-4)
    p.add_argument("--kl-worst", type=float, default=1e-3)
    p.add_argument("--top1", type=float, default=0.99)
    p.add_argument("--map", type=float, default=1e-3)
    p.add_argument("--stats", type=float, default=1e-3)
    p.add_argument("--gaps", help="JSON array: per greedy id, the gap between A's best two logits")
    p.add_argument("--gap", type=float, default=0.02)
    args = p.parse_args()
    report = Report()
    try:
        if args.a.endswith(".json"):
            with open(args.a) as fa, open(args.b) as fb:
                greedy(json.load(fa), json.load(fb), args, report)
        elif args.a.endswith(".npy"):
            logits(np.load(args.a, mmap_mode="r"), np.load(args.b, mmap_mode="r"), args, report)
        else:
            a, b = np.load(args.a), np.load(args.b)
            (maps if "mass" in a.files else stats)(a, b, args, report)
    except (OSError, ValueError, KeyError) as e:
        die("%s, %s: %s" % (args.a, args.b, e))
    sys.exit(1 if report.bad else 0)


if __name__ == "__main__":
    main()
