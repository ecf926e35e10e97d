#!/usr/bin/env python3
"""Writes tests/data/task_scores.jsonl: answers judged by plain Python from the definitions, for tests/test_tasks_score.c.

exact and F1 as SQuAD's evaluation defines them (lower case, string.punctuation removed, articles removed, spaces joined), ROUGE-L as
rouge_score does (runs of [a-z0-9], F of the longest common subsequence, here by recursion over positions with a memo), Wilson's interval
as what it is: the p whose distance to the share seen is z standard errors of p, found by bisection.

    python3 tests/oracle/task_scores.py > tests/data/task_scores.jsonl      (standard library; the same seed gives the same file)
"""
import collections
import functools
import json
import math
import random
import re
import string
import sys

sys.setrecursionlimit(10000)


def normal(text):
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(a, b):
    return float(normal(a) == normal(b))


def f_measure(common, n, m):
    if n == 0 and m == 0:
        return 1.0
    if common == 0:
        return 0.0
    p, r = common / n, common / m
    return 2 * p * r / (p + r)


def f1(a, b):
    a, b = normal(a).split(), normal(b).split()
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return f_measure(common, len(a), len(b))


def rouge_l(a, b):
    a, b = (re.sub(r"[^a-z0-9]+", " ", t.lower()).split() for t in (a, b))

    @functools.lru_cache(None)
    def lcs(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + lcs(i + 1, j + 1) if a[i] == b[j] else max(lcs(i + 1, j), lcs(i, j + 1))

    return f_measure(lcs(0, 0), len(a), len(b))


def wilson(k, n, z=1.959963984540054):
    def bound(lo, hi, sign):
        # |k/n - p| - z sqrt(p(1-p)/n) changes its sign once between the share seen and the end of [0, 1]
        for _ in range(200):
            p = (lo + hi) / 2
            inside = abs(k / n - p) <= z * math.sqrt(p * (1 - p) / n)
            lo, hi = ((lo, p) if inside else (p, hi)) if sign < 0 else ((p, hi) if inside else (lo, p))
        return (lo + hi) / 2
    return [0.0 if k == 0 else bound(0, k / n, -1), 1.0 if k == n else bound(k / n, 1, +1)]


def main():
    rng = random.Random(5)
    words = ["the", "a", "An", "Red", "red", "door", "door's", "don't", "42", "4,200", "x-ray", "Straße", "ÉCOLE", "école", "the-end", "--", "?!", "_", "日本", "it"]
    pairs = [("", ""), ("", "x"), ("The", "a"), ("the cat", "cat"), ("The  Cat.", "cat"), ("a b c d", "a c d e"), ("x" * 300, "x" * 300),
             ("one two three", "three two one"), ("!!!", "???"), ("to be or not to be", "not to be or to be")]
    for _ in range(120):
        def text():
            return rng.choice(["", " "]) + rng.choice([" ", "  ", "\n", "\t"]).join(rng.choice(words) for _ in range(rng.randrange(0, 14)))
        a, b = text(), text()
        if rng.random() < 0.3:
            b = a.swapcase().replace("ß", "ß") if a.isascii() else a
        pairs.append((a, b))
    for a, b in pairs:
        print(json.dumps({"answer": a, "expected": b, "exact": exact(a, b), "f1": f1(a, b), "rouge_l": rouge_l(a, b)}))
    for k, n in [(0, 1), (1, 1), (0, 50), (50, 50), (49, 50), (25, 50), (1, 7), (300, 1000), (999, 1000)]:
        low, high = wilson(k, n)
        print(json.dumps({"right": k, "n": n, "low": low, "high": high}))


if __name__ == "__main__":
    main()
