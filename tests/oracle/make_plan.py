#!/usr/bin/env python3
"""A mixed plan for a model's shape: every kind of rule, neighbours unlike, the same file each time.

The rules are chosen for one N, so that spans from 128 to dense are all in use there, and so that each clause of
the span formula decides for some head: the floor of 128, the cap at N, a negative alpha, truncation just below
a block, a span that is a whole number of blocks. Heads of one group get different rules, layers are shifted
against each other by a number prime to the list's length, so each rule comes to stand on each head.

    make_plan.py MODEL N OUT.json
"""
import json
import sys

from gguf import GGUFReader


def rules(n):
    return [
        (0.0, 1.0),  # dense
        (0.0, 0.0),  # the floor: 128
        (128.0, 0.125),
        (-0.5 * n, 1.0),  # short for short texts, grows with all of N
        (192.9 - 0.25 * n, 0.25),  # 192.9 tokens: truncated to 192, three blocks; rounded up it would be four
        (320.0, 0.0),  # whole blocks, the same at every N
        (8.0 * n, 0.0),  # the cap: dense
        (0.0, 0.3),
        (-2.0 * n, 1.0),  # below zero, the floor again
        (0.0, 0.75),
        (65.0, 0.5),
    ]


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: make_plan.py MODEL N OUT.json")
    reader = GGUFReader(sys.argv[1])
    arch = reader.get_field("general.architecture").contents()
    n_layer = reader.get_field(arch + ".block_count").contents()
    n_head = reader.get_field(arch + ".attention.head_count").contents()
    r = rules(int(sys.argv[2]))
    pick = [[r[(7 * l + 3 * h) % len(r)] for h in range(n_head)] for l in range(n_layer)]
    plan = {"alphas": [[a for a, _ in row] for row in pick], "betas": [[b for _, b in row] for row in pick],
            "note": "test plan: spans from 128 to dense at N = " + sys.argv[2]}
    with open(sys.argv[3], "w") as f:
        json.dump(plan, f)
        f.write("\n")


if __name__ == "__main__":
    main()
