#!/usr/bin/env python3
"""The plan search against HiGHS: the same problems as .lp files, solved by another program.

    highs.py TEST_PLANS_SEARCH [SEED:RULES ...] [--limit SECONDS] [--mip-gap G]
    highs.py --lp FILE.lp [--limit SECONDS] [--mip-gap G]      one file, best and bound on stdout

Exit 1 if HiGHS finds a plan below our proven bound, or proves a bound above the loss of our plan: then one of the two is wrong.
Needs highspy (requirements.txt). Exit 77 without it.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

try:
    import highspy
except ImportError:
    print("skipped: no highspy")
    sys.exit(77)


def solve(path, limit, gap):
    h = highspy.Highs()
    h.setOptionValue("output_flag", False)
    h.setOptionValue("threads", 1)
    h.setOptionValue("time_limit", float(limit))
    h.setOptionValue("mip_rel_gap", gap)
    if h.readModel(path) == highspy.HighsStatus.kError:
        sys.exit(f"{path}: HiGHS cannot read it")
    start = time.process_time()
    h.run()
    info = h.getInfo()
    status = h.modelStatusToString(h.getModelStatus())
    return info.objective_function_value, info.mip_dual_bound, status, time.process_time() - start


def main():
    a = argparse.ArgumentParser()
    a.add_argument("program", nargs="?")
    a.add_argument("cases", nargs="*", default=["1:0", "2:2", "3:2"])
    a.add_argument("--lp")
    a.add_argument("--limit", type=float, default=60)
    a.add_argument("--mip-gap", type=float, default=1e-4)
    args = a.parse_args()
    if args.lp:
        print("%.12g %.12g %s %.2f" % solve(args.lp, args.limit, args.mip_gap))
        return 0
    bad = 0
    print("seed rules |         ours       bound  gap %   CPU s |        HiGHS       bound  gap %   CPU s  status")
    for case in args.cases:
        seed, rules = case.split(":")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.lp")
            out = subprocess.run([args.program, "--lp", seed, rules, path], check=True, capture_output=True, text=True).stdout
            best, bound, seconds = map(float, out.split())
            theirs, their_bound, status, their_s = solve(path, args.limit, args.mip_gap)
        print(f"{seed:>4} {rules:>5} | {best:12.6f} {bound:11.6f} {100 * (best - bound) / abs(best):6.4f} {seconds:7.2f} | "
              f"{theirs:12.6f} {their_bound:11.6f} {100 * (theirs - their_bound) / abs(theirs):6.4f} {their_s:7.1f}  {status}", flush=True)
        tolerance = 1e-6 * max(1, abs(best))
        if theirs < bound - tolerance or their_bound > best + tolerance:
            print("FAILED: the certificates contradict each other")
            bad = 1
    return bad


sys.exit(main())
