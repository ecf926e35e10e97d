#!/bin/bash
# What leaves the program for others: plan export in every format, read back by an independent reader, and sessions export and prune.
. "$(dirname "$0")/batch_lib.sh" "$1"
plans=$source/tests/data/plans
llama=$source/tests/data/tiny_llama.gguf

# --- plan export -------------------------------------------------------------------------------------------------------
eight=$plans/gradientai--Llama-3-8B-Instruct-262k.moa.json
expect 0 "$moascope" plan export "$eight" --to moa -o "$temp/moa.json"
expect 0 "$moascope" plan export "$eight" --to csv --at 100,1536,5120,9216 -o "$temp/plan.csv"
expect 0 "$moascope" plan export "$eight" --to csv -o "$temp/rules.csv"
expect 0 "$moascope" plan export "$eight" --to windows --at 100,17408 -o "$temp/windows.json"
expect 0 "$moascope" plan export "$eight" --to minference --at 9216 -o "$temp/minference.json"; says "prefill only"
python3 - "$eight" "$temp" << 'END' || complain "an export differs from the plan"
import csv, json, sys
plan, temp = json.load(open(sys.argv[1])), sys.argv[2]
A, B = plan["alphas"], plan["betas"]
heads = [(l, h) for l in range(len(A)) for h in range(len(A[0]))]
def span(l, h, n):
    s = max(min(int(A[l][h] + B[l][h] * n), n), 128)
    return -(-s // 64) * 64
moa = json.load(open(temp + "/moa.json"))
assert set(moa) == {"alphas", "betas"} and moa["alphas"] == A and moa["betas"] == B
rows = list(csv.DictReader(open(temp + "/plan.csv")))
assert [(int(r["layer"]), int(r["head"])) for r in rows] == heads
for r, (l, h) in zip(rows, heads):
    assert float(r["alpha"]) == A[l][h] and float(r["beta"]) == B[l][h]
    for n in (100, 1536, 5120, 9216): assert int(r["span_%d" % n]) == span(l, h, n), (l, h, n)
assert open(temp + "/rules.csv").readline() == "layer,head,alpha,beta\n"
w = json.load(open(temp + "/windows.json"))
assert w["sink"] == 64 and [x["n"] for x in w["lengths"]] == [100, 17408]
for x in w["lengths"]: assert x["windows"] == [[span(l, h, x["n"]) - 64 for h in range(len(A[0]))] for l in range(len(A))]
m = json.load(open(temp + "/minference.json"))
assert len(m) == len(A)
for l, h in heads: assert m[l][str(h)] == ["stream_llm", 64, span(l, h, 9216) - 64, 1.0]
END
# the whole of the convention, pair by pair: a window list gives the same keys as the definition (5 tokens past a page, on purpose)
expect 0 "$moascope" plan uniform --shape 1x2 --alpha 200 --beta 0 -o "$temp/small.json"
expect 0 "$moascope" plan export "$temp/small.json" --to windows --at 517 -o "$temp/w.json"
python3 - "$temp/w.json" << 'END' || complain "the windows show other keys"
import json, sys
w = json.load(open(sys.argv[1])); n = 517; W = w["lengths"][0]["windows"][0][0]; sink = w["sink"]
assert W == 256 - 64
assert max(sum(j <= i and (j < sink or i - j < W) for j in range(n)) for i in range(n)) == 256
END
# DuoAttention: per KV head, full or the one window
expect 0 "$moascope" plan uniform --shape 2x4 --alpha 1024 --beta 0 -o "$temp/duo.json"
expect 0 "$moascope" plan export "$temp/duo.json" --to duo --model-heads-kv 2 -o "$temp/duo0"
[ -s "$temp/err" ] && complain "a plan that is DuoAttention's loses something"
expect 0 "$moascope" plan edit "$temp/duo.json" L0.H0,1 full L1.H2 "alpha=0 beta=0.25" L1.H0 "alpha=512 beta=0" -o "$temp/duo.json"
expect 0 "$moascope" plan export "$temp/duo.json" --to duo --model-heads-kv 2 -o "$temp/duo1"
says "of 8 heads 2 become full"; says "and 1 get the wider window of 960 tokens"
[ "$(cat "$temp/duo1/full_attention_heads.tsv")" = "$(printf '%.18e\t%.18e\n%.18e\t%.18e' 1 0 0 1)" ] || complain "duo: other heads are full"
check "$temp/duo1/config.json" "j == {'sink_size': 64, 'recent_size': 960}"
expect 2 "$moascope" plan export "$temp/duo.json" --to duo -o "$temp/duo2"; says "per KV head"
expect 2 "$moascope" plan export "$temp/duo.json" --to duo --model-heads-kv 2; says "-o FOLDER"
[ -e "$temp/duo2" ] && complain "a refused export left a folder"
expect 2 "$moascope" plan export "$eight" --to llama.cpp; says "moa, csv, windows, minference, duo"
expect 2 "$moascope" plan export "$eight"; says "moa, csv"
expect 2 "$moascope" plan export "$eight" --to windows; says "--at N"
expect 2 "$moascope" plan export "$eight" --to minference --at 1024,2048; says "1 length, not 2"
expect 2 "$moascope" plan export "$eight" --to moa --at 1024
expect 1 "$moascope" plan export "$eight" --to csv -o "$temp/none/plan.csv"

exit $failed
