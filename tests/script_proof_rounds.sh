#!/bin/bash
# scripts/proof_rounds.sh: its list of work, refusals, and what proof_table.py makes of a folder: the rounds that a real refinement (of a tiny
# model) told of, a perplexity beside full attention over twice as many windows, answers beside those of more questions. All counted again
# here. The stages themselves take a real model and minutes.
. "$(dirname "$0")/batch_lib.sh" "$1"
tiny=$source/tests/data/tiny_llama.gguf
p=$temp/proof
rounds() { "$source/scripts/proof_rounds.sh" "$tiny" "$p" --moascope "$moascope" "$@"; }
expect 2 rounds --stages half,nothing; says "nothing is no stage"
expect 2 rounds --set other
expect 3 "$source/scripts/proof_rounds.sh" "$temp/none.gguf" "$temp/o" --moascope "$moascope"; says "is not there"
expect 0 rounds --print
cp "$temp/out" "$temp/all"
expect 0 rounds --print --known
for x in "calibrate-retrieval: .* --only-right" "refine-rounds-group-0.5: .* --text-weight 20 .* --density 0.5" "refine-rounds-head-0.5: .* --plan .*/both-best-group-0.5/best.json" "refine-rounds-group-0.25: .* --plan .*/both-best" "search both-margin-head-0.5" \
    "refine-uniform-group-0.5: .* --plan uniform:0.5" "eval-retrieval-far: .* 16384" "eval-ppl-half: .* --plan full" "search retrieval-margin.signed-head-0.75" "search spread-margin-group-0.5" \
    "eval-choose-ppl: .* --seed 7 .*/calibration" "both-chosen-group-0.5: chosen of both-rounds" "refine-rounds-group-0.32: " "eval-passkey-half: .* --plan uniform:0.5" "eval-retrieval-others: .*16384" "profile-text-cross-entropy"; do
    grep -q -- "^$x" "$temp/all" && grep -q -- "^$x" "$temp/out" || complain "the list lacks $x"
done
grep -q "^eval-retrieval-half: .* --plan full" "$temp/all" || complain "full attention is not asked"
grep -q "^eval-retrieval-half: .* --plan full" "$temp/out" && complain "what is known is asked again"
expect 2 rounds --set passkey --print; says "not of"
# a refinement with texts, its words where the script leaves them; evaluations as the program writes them
python3 - "$temp" <<'P'
import json, random, sys
random.seed(3)
with open(sys.argv[1] + "/data.jsonl", "w") as f:
    for i in range(4):
        words = [random.randrange(3, 200) for _ in range(40)]
        f.write(json.dumps({"ids": [random.choice(words) for _ in range(354)] + words[:30], "supervise_from": 354, "length": 384}) + "\n")
P
expect 0 python3 "$source/scripts/text_items.py" "$tiny" "$source/README.md" --lengths 384 --items 4 --moascope "$moascope" -o "$temp/text.jsonl"
head -n 1 "$temp/text.jsonl" > "$temp/one.json"; check "$temp/one.json" 'len(j["ids"]) == 384 and j["supervise_from"] == 48'
expect 1 python3 "$source/scripts/text_items.py" "$tiny" "$source/README.md" --lengths 384 --share 1 --moascope "$moascope" -o "$temp/none"; says "--share 1"
expect 0 "$moascope" refine "$tiny" --data "$temp/data.jsonl" --text "$temp/text.jsonl" --lengths 384 --density 0.5 --rounds 3 --device cpu -o "$p/plans/both-rounds-group-0.5"
cp "$temp/err" "$p/log/refine-rounds-group-0.5.err"
plan=$p/plans/both-rounds-group-0.5/best.json
evaluate() { # NAME TASK ITEMS PLAN...
    local name=$1 task=$2 items=$3 plans=() docs=(); shift 3
    printf '%s\n' $task 256 $items "$@" > "$p/eval/$name.args"
    for x in "$@"; do plans+=(--plan "$x"); done
    [ $task = retrieval ] || docs=(--docs "$source/README.md")
    expect 0 "$moascope" eval "$tiny" --task $task --lengths 256 --items $items "${plans[@]}" ${docs[@]+"${docs[@]}"} --device cpu --json "$p/eval/$name.json"
}
# one of two plans by the rule: text may lose less than a hundredth, then right answers, counted again here
mkdir -p "$temp/corpus/calibration" "$temp/chosen/plans"/both-{rounds,start}-group-0.5
cp "$source/README.md" "$temp/corpus/calibration/a.txt"
cp "$plan" "$temp/chosen/plans/both-rounds-group-0.5/best.json"
python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); d["betas"] = [[0.9] * len(x) for x in d["betas"]]; d["alphas"] = [[0] * len(x) for x in d["alphas"]]; json.dump(d, open(sys.argv[2], "w"))' \
    "$plan" "$temp/wide.json"
expect 0 "$source/scripts/proof_rounds.sh" "$tiny" "$temp/chosen" --set tiny --stages choose --start "$temp/wide.json" --corpus "$temp/corpus" --device cpu --moascope "$moascope"
python3 - "$temp/chosen" <<'P' || complain "chosen: $(cat "$temp/out")"
import json, math, sys
d = sys.argv[1]
ppl = {p["plan"]: p["lengths"][0] for p in json.load(open(d + "/eval/choose-ppl.json"))["plans"]}
ask = {p["plan"]: p["lengths"] for p in json.load(open(d + "/eval/choose-passkey.json"))["plans"]}
assert len(ask) == 2 and len(ppl) == 3 and all(sum(len(n["items"]) for n in x) > 0 for x in ask.values())
mean = lambda p: sum(i["loss"] for i in ppl[p]["items"]) / len(ppl[p]["items"])
rise = {p: math.exp(mean(p) - mean("full")) - 1 for p in ask}
right = {p: sum(i["right"] for n in x for i in n["items"]) for p, x in ask.items()}
order = sorted(ask, key=lambda p: (0, -right[p], rise[p]) if rise[p] < .01 else (1, rise[p], 0))
assert json.load(open(order[0])) == json.load(open(d + "/plans/both-chosen-group-0.5/best.json")), (rise, right)
P
expect 0 python3 -B "$source/scripts/proof_table.py" "$temp/chosen" --data "$temp/chosen.jsonl" --md "$temp/chosen.md"
grep -q '"kind": "eval"' "$temp/chosen.jsonl" && complain "what chooses stands among the evaluations"
python3 - "$temp" <<'P' || complain "the choice's table: $(cat "$temp/chosen.md")"
import json, math, sys
d, text = sys.argv[1] + "/chosen", open(sys.argv[1] + "/chosen.md").read()
ppl = {p["plan"]: p["lengths"][0]["items"] for p in json.load(open(d + "/eval/choose-ppl.json"))["plans"]}
for p in json.load(open(d + "/eval/choose-passkey.json"))["plans"]:
    items = [i for n in p["lengths"] for i in n["items"]]
    rise = sum(a["loss"] - b["loss"] for a, b in zip(ppl[p["plan"]], ppl["full"])) / len(ppl["full"])
    row = "| `%s` | %d | %d | %+.2f " % (p["plan"].split("/")[-2], sum(i["right"] for i in items), len(items), 100 * math.expm1(rise))
    assert row in text, row
P
evaluate ppl-a ppl 8 full uniform:0.5
evaluate ppl-b ppl 4 "$plan"
expect 0 python3 -B "$source/scripts/proof_table.py" "$p" --data "$temp/data2.jsonl" --md "$temp/t.md"
python3 - "$p" "$temp" <<'P' || complain "the table: $(cat "$temp/t.md")"
import json, math, sys
p, temp = sys.argv[1:]
text = open(temp + "/t.md").read()
full = {i["source"]: i["loss"] for i in json.load(open(p + "/eval/ppl-a.json"))["plans"][0]["lengths"][0]["items"]}
d = json.load(open(p + "/eval/ppl-b.json"))
mine = d.get("plans", [d])[0]["lengths"][0]["items"]
assert len(full) == 8 and len(mine) == 4
d = [i["loss"] - full[i["source"]] for i in mine]  # the same windows, by name
want = "| `both-rounds-group-0.5` | %+.2f ± " % (100 * math.expm1(sum(d) / 4))
assert want in text and " n=4" in text, (want, text)
t = json.load(open(p + "/plans/both-rounds-group-0.5/refine.json"))
r = next(r for r in map(json.loads, open(temp + "/data2.jsonl")) if r["kind"] == "refine")["rounds"]
assert len(r) == len(t["plans"]) and all(abs(a["change"] - (b["loss"] - t["full_attention"])) < 1e-4 for a, b in zip(r, t["plans"])), (r, t)
assert all(a["round"] == "%d%s" % (b["round"], b["file"][-6]) and abs(a["weight"] - b["text_weight"]) < 1e-3 for a, b in zip(r, t["plans"]))
best = min(r, key=lambda x: x["change"])
assert "| `both-rounds-group-0.5` |" in text.split("Rounds, on the items")[1] and "%+.3f, %+.4f" % (best["answers"], best["texts"]) in text
P
[ $failed = 0 ] && echo "proof_rounds: ok"
exit $failed
