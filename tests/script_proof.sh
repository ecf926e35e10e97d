#!/bin/bash
# The proof (scripts/proof.sh) at its small size on a CPU: a calibrated, profiled, searched and validated 50 % plan against a uniform one on
# real SmolLM2; it goes on where it was stopped, and the table says what the evaluations say, counted again here.
set -u
build=$1
source=$(cd "$(dirname "$0")/.." && pwd)
moascope=$build/moascope
model=${SMOLLM2:-$HOME/.cache/moascope/models/SmolLM2-135M-Instruct-Q4_1.gguf}
[ -x "$moascope" ] || { echo "skipped: $moascope is not built"; exit 77; }
[ -f "$model" ] || { echo "skipped: no SmolLM2 (scripts/fetch_model.py smollm2 fetches it)"; exit 77; }
command -v python3 > /dev/null || { echo "skipped: no python3 for the table"; exit 77; }
if grep -q '^MOA_SANITIZE:STRING=..*' "$build/CMakeCache.txt" 2> /dev/null; then
    echo "skipped: a sanitizer makes the model too slow for this; script_tasks.sh runs the commands under it on a tiny one"; exit 77
fi
temp=$(mktemp -d) || exit 1
trap 'rm -r "$temp"' EXIT
failed=0
complain() { echo "FAILED: $*"; failed=1; }
proof() { "$source/scripts/proof.sh" "$model" "$temp/out" --device cpu --budget small --task passkey --moascope "$moascope" "$@"; }
proof --print > "$temp/list" || complain "--print"
grep -q "eval-passkey-1024 .* tokens" "$temp/list" || complain "the list of what is to do: $(cat "$temp/list")"
[ -e "$temp/out/settings" ] && complain "--print began something"
# quick: 16k and both ways to count a rule a query head, and nothing of the long stages
"$source/scripts/proof.sh" "$model" "$temp/quick" --budget quick --moascope "$moascope" --print > "$temp/list" || complain "--budget quick --print"
for name in eval-retrieval-16384 search-retrieval-joint-head-0.5 search-retrieval-joint-query-0.5 eval-retrieval-heads eval-ppl-main; do
    grep -q "^  $name " "$temp/list" || complain "quick lacks $name: $(cat "$temp/list")"
done
grep -q "density-0.25\|kind-" "$temp/list" && complain "quick has the long stages: $(cat "$temp/list")"
# stopped at once, then within the evaluation, then done
proof --stages calibrate --limit 1 > "$temp/log" 2>&1 || complain "a limit is no failure: $(cat "$temp/log")"
grep -q "the same call goes on" "$temp/log" || complain "nothing was said of the limit: $(cat "$temp/log")"
proof --stages calibrate,profile,search,validate > "$temp/log" 2>&1 || complain "$(cat "$temp/log")"
proof --stages main --limit 8 > "$temp/log" 2>&1 || complain "$(cat "$temp/log")"
python3 -B "$source/scripts/proof_table.py" "$temp/out" > "$temp/part.md" || complain "the table of an unfinished run"
proof --stages main > "$temp/log" 2>&1 || complain "$(cat "$temp/log")"
proof --stages calibrate,profile,search,validate,main > "$temp/again" 2>&1 || complain "$(cat "$temp/again")"
grep -q "^== " "$temp/again" && complain "what was there was made again: $(cat "$temp/again")"
python3 -B "$source/scripts/proof_table.py" "$temp/out" --data "$temp/data.jsonl" --md "$temp/proof.md" || complain "the table"
"$source/scripts/proof.sh" "$model" "$temp/out" --device cpu --budget full --task passkey --moascope "$moascope" > /dev/null 2>&1
[ $? -eq 2 ] || complain "two settings in one folder"
python3 - "$temp/out" "$temp/data.jsonl" "$temp/proof.md" <<'P' || complain "the figures"
import glob, json, math, sys
out, data, md = sys.argv[1:]
d = json.load(open(out + "/eval/passkey-1024.json"))
text = open(md).read()
names = ["full", "uniform:0.5", "passkey-joint-group-0.5"]
assert [p["plan"].split("/")[-2] if "/" in p["plan"] else p["plan"] for p in d["plans"]] == names
rows = {r["plan"]: r for r in map(json.loads, open(data)) if r["kind"] == "eval" and r["length"] == 1024}
total = {}
for p, name in zip(d["plans"], names):
    for x in p["lengths"]:
        right, n = sum(i["right"] for i in x["items"]), len(x["items"])
        assert n == 4 and all(i["right"] == (i["answer"].strip(" .\n") == i["expected"]) or not i["right"] for i in x["items"]), x["items"]
        total[name] = total.get(name, 0) + right
        mid = (right / n + 3.841459 / (2 * n)) / (1 + 3.841459 / n)
        half = 1.959964 * math.sqrt(right / n * (1 - right / n) / n + 3.841459 / (4 * n * n)) / (1 + 3.841459 / n)
        cell = f"{100 * right / n:.0f} ({100 * max(0, mid - half):.0f}-{100 * min(1, mid + half):.0f})"
        line = next(s for s in text.splitlines() if s.startswith(f"| `{name}`"))
        assert cell in line, (cell, line)
        assert x["kv_density_plan"] <= (1 if name == "full" else .5) + 1e-9, (name, x["length"], x["kv_density_plan"])
    assert rows[name]["right"] == "".join("01"[i["right"]] for i in p["lengths"][-1]["items"])
print("right of 8:", total)
assert total["full"] == 8, "full attention knows its passkeys at 768 and 1024 tokens"
assert total[names[2]] >= total["uniform:0.5"], "the plan found loses against uniform windows"
v = json.load(open(out + "/plans/passkey-joint-group-0.5/validate.json"))
loss = {p["plan"].split("/")[-1]: p["loss"] for p in v["plans"]}
print("held-out losses:", {k: round(x, 3) for k, x in loss.items()})
best = loss[v["best"].split("/")[-1]]
assert best == min(x for k, x in loss.items() if k.startswith("plan_"))
assert best < loss["uniform:0.5"], "on held-out items, too"
P
[ $failed = 0 ] && echo "proof: ok"
exit $failed
