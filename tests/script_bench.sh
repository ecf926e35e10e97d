#!/bin/bash
# moascope bench on the CPU: rows, figures against each other and against the formulas, JSON, refusals.
. "$(dirname "$0")/batch_lib.sh" "$1"
llama=$source/tests/data/tiny_llama.gguf
few="--device cpu --reps 1 --big 8"

expect 2 "$moascope" bench; says "which model"
expect 2 "$moascope" bench "$llama" --shape smollm2; says "not both"
expect 2 "$moascope" bench --shape gpt2; says "vicuna-7b"
expect 2 "$moascope" bench --shape smollm2 --type q3; says "q4_0"
expect 3 "$moascope" bench --shape smollm2 --type q4_k; says "576"
expect 2 "$moascope" bench "$llama" --what decode; says "decode-attn"
expect 2 "$moascope" bench "$llama" $few --plan groups:2; says "groups:2"
expect 2 "$moascope" bench "$llama" $few --plan groups:.1,.2,.3,.4,.5,.6,.7,.8,.9; says "KV heads"
expect 2 "$moascope" bench "$llama" --kv f8; says "q8 or f32"
expect 2 "$moascope" bench "$llama" --replay all; says "paper"
expect 2 "$moascope" bench "$llama" $few --what step --depth 16777216; says "context"

if [ -n "$threads_only" ]; then
    expect 0 "$moascope" bench "$llama" $few --what decode-attn,prefill-attn,step --batch 3 --depth 100 --json "$temp/a.json"
    check "$temp/a.json" "len(j['rows'])>=3"
    echo "not tested: bench but one row of each kind under the thread sanitizer"
    exit $failed
fi
# every kind of row, of a file and of a shape without its weights
expect 0 "$moascope" bench "$llama" $few --what decode-attn,prefill-attn,step,load,probe --plan full uniform:0.5 --batch 1,3 \
    --depth 0,200 --json "$temp/a.json"
grep -q "^ceiling: read" "$temp/out" || complain "no ceiling in the text"
grep -q "^step " "$temp/out" || complain "no step row in the text"
expect 0 "$moascope" bench --shape llama3-8b $few --what decode-attn,prefill-attn --plan groups:0.75,0.25 full --batch 2 --depth 512 --json "$temp/b.json"
python3 - "$temp/a.json" "$temp/b.json" << 'EOF' || failed=1
import json, sys
bad = []
def need(what, *facts):
    if not what: bad.append(facts)
a, b = (json.load(open(f)) for f in sys.argv[1:3])
for j in (a, b):
    c = j["ceiling"]
    need(c["best"] == max(c["read"], c["add"], c["copy"]) and min(c["read"], c["add"], c["copy"]) > 1e7, c)
    for r in j["rows"]:
        need(0 < r["p10_us"] <= r["median_us"] <= r["p90_us"], r)
        if r["bytes_s"] is not None:
            total = r["weight_bytes"] + r["kv_bytes"]
            need(abs(r["bytes_s"] / (total / r["median_us"] * 1e6) - 1) < 1e-9, r)
            need(abs(r["share"] * c["best"] / r["bytes_s"] - 1) < 1e-9, r)
kinds = {}
for r in a["rows"]: kinds.setdefault(r["what"], []).append(r)
need({k: len(v) for k, v in kinds.items()} == {"load: file": 1, "load": 1, "decode-attn": 4, "prefill-attn": 2, "step": 8, "probe off": 4, "probe on": 4}, {k: len(v) for k, v in kinds.items()})
for r in kinds["step"]:
    need(abs(r["tok_s"] / (r["batch"] / r["median_us"] * 1e6) - 1) < 1e-9, r)
    need(r["weight_bytes"] > 0 and r["kv_bytes"] > 0, r)
three = {(r["plan"], r["depth"], r["batch"]): r for r in kinds["step"]}
for (plan, depth, batch), r in three.items():
    if depth < 200: continue # how many steps a sample takes depends on the clock, and the tokens that are there with it
    need(abs(r["kv_bytes"] / batch / three[plan, depth, 1]["kv_bytes"] - 1) < 0.2, plan, depth, batch)
    need(three["uniform:0.5", depth, batch]["kv_bytes"] < three["full", depth, batch]["kv_bytes"], plan, depth, batch)
# 8 KV heads x 128 x 2 x 2 bytes, 512 tokens, 2 sequences; spans of 384 and 128 (0.25 * 512) for halves of the heads
full = next(r for r in b["rows"] if r["what"] == "decode-attn" and r["plan"] == "full")
half = next(r for r in b["rows"] if r["what"] == "decode-attn" and r["plan"] != "full")
need(full["kv_bytes"] == 8 * 128 * 2 * 2 * 512 * 2 and full["kept"] == 1, full)
need(half["kv_bytes"] == 128 * 2 * 2 * 2 * (4 * 384 + 4 * 128) and half["kept"] == 0.5, half)
# 4 d of every visible pair
pre = next(r for r in b["rows"] if r["what"] == "prefill-attn" and r["plan"] != "full")
pairs = sum(16 * min(i + 1, 384) + 16 * min(i + 1, 128) for i in range(512))
need(abs(pre["flop_s"] * pre["median_us"] / 1e6 / (4 * 128 * pairs) - 1) < 1e-9, pre["flop_s"])
for facts in bad: print("FAILED:", *facts)
sys.exit(1 if bad else 0)
EOF
# a whole prompt, and the memory of a run: no page more than the formula's at any step, and the table of it all
mkdir "$temp/table"
expect 0 "$moascope" bench "$llama" $few --what ttft,memory --plan full uniform:0.5 --depth 0,200 --json "$temp/table/small-rest.json"
expect 2 "$moascope" bench "$llama" $few --what ttft --depth 16777216; says "context"
python3 - "$temp/table/small-rest.json" << 'EOF' || failed=1
import json, sys
rows = json.load(open(sys.argv[1]))["rows"]
bad = [r for r in rows if r["what"] == "memory" and not (
    r["pages_prompt_bytes"] == r["formula_prompt_bytes"] > 0 and r["pages_end_bytes"] == r["formula_end_bytes"] and r["most_over_bytes"] == 0 and
    r["pool_bytes"] >= r["formula_end_bytes"] and r["growth_end_bytes"] is None)]
bad += [r for r in rows if r["what"].startswith("ttft") and not (r["flop_s"] > 0 and r["matrix_share"] > 0 and r["depth"] == 200 and
    abs(r["tok_s"] * r["median_us"] / 2e8 - 1) < 1e-9)]
full, half = (next(r for r in rows if r["what"] == "ttft" and r["plan"] == p) for p in ("full", "uniform:0.5"))
flop = [r["flop_s"] * r["median_us"] / 1e6 for r in (full, half)]
pairs = [200 * 201 / 2, 192 * 193 / 2 + 8 * 192] # 2 layers, 6 heads of 16; spans of N = 264 and of roundup64(132) = 192
if abs((flop[0] - flop[1]) / (4 * 16 * 2 * 6 * (pairs[0] - pairs[1])) - 1) > 1e-6: bad.append((flop, pairs))
kinds = sorted(r["what"] for r in rows)
if kinds != sorted(["memory", "ttft", "ttft exact", "ttft sampled"] * 2): bad.append(kinds)
for r in bad: print("FAILED:", r)
sys.exit(bool(bad))
EOF
expect 0 python3 -B "$source/scripts/bench_table.py" "$temp/table"
grep -q "| P6 | small-rest uniform:0.5, 200 tokens: pages held - formula at most, bytes | 0 | <= 0 | yes |" "$temp/table/bench.md" || complain "no P6 in the table"
# a written file of random weights is one that loads
expect 0 python3 -B "$source/scripts/gpu/random_gguf.py" --shape smollm2 "$temp/random.gguf"
expect 0 "$moascope" bench "$temp/random.gguf" $few --what load --json "$temp/load.json"
python3 -c '
import json, sys
r = json.load(open(sys.argv[1]))["rows"]
sys.exit(0 if [x["what"] for x in r] == ["load: file", "load"] and r[1]["weight_bytes"] == 91710720 else "FAILED: %s" % r)' "$temp/load.json" || failed=1
rm -f "$temp/random.gguf"
# the peers' scripts are given the same bytes as our own rows
for plan in full groups:0.75,0.25 groups:0.8,0.2; do
    expect 0 "$moascope" bench --shape llama3-8b $few --what decode-attn --plan $plan --batch 1,2 --depth 300,512 --json "$temp/a.json"
    for peer in torch_attention flashinfer_decode; do
        expect 0 python3 -B "$source/scripts/peers/$peer.py" --dry-run --plan $plan --batch 1,2 --depth 300,512 --json "$temp/b.json"
        python3 -c '
import json, sys
a, b = ([(r["batch"], r["depth"], r["kv_bytes"], r["kept"]) for r in json.load(open(f))["rows"]] for f in sys.argv[1:])
sys.exit(0 if len(a) == 4 and a == b else "FAILED: %s, ours %s" % (b, a))' "$temp/a.json" "$temp/b.json" || failed=1
    done
done
exit $failed
