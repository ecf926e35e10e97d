#!/bin/bash
# `moascope search` end to end: a profile of a tiny model, plans from it, what they say of themselves against `plan show`, refusals.
. "$(dirname "$0")/batch_lib.sh" "$1"
python3 - "$temp/data.jsonl" <<'P'
import json, random, sys
random.seed(1)
with open(sys.argv[1], "w") as f:
    for n in (700, 900):
        f.write(json.dumps({"ids": [random.randrange(3, 200) for _ in range(n)], "supervise_from": 500}) + "\n")
P
expect 0 "$moascope" profile "$source/tests/data/tiny_llama.gguf" --data "$temp/data.jsonl" --lengths 512,768 --device cpu -o "$temp/i.npz"
expect 0 "$moascope" search "$temp/i.npz" --density 0.5,0.7 --density-low 0.3 --extend 1536 --max-rules 2 --alpha-step 256 -o "$temp/plans"
says "density 0.3 to 0.5"
python3 - "$temp/plans" "$moascope" <<'P' || complain "the plans are not what the table says"
import glob, json, subprocess, sys
folder, moascope = sys.argv[1:]
table = json.load(open(folder + "/pareto.json"))
assert table["plans"] and len(glob.glob(folder + "/plan_*.json")) == len(table["plans"])
for p in table["plans"]:
    path = folder + "/" + p["file"]
    plan = json.load(open(path))
    said = plan["provenance"]
    assert said["loss"] == p["loss"] and said["search"]["max_rules"] == 2 and 0 <= p["gap"] < .05, p
    assert p["bound"] <= p["best"] and p["rules_per_layer"] <= 2
    kv = plan["model"]["n_head_kv"]
    shown = json.loads(subprocess.run([moascope, "plan", "show", path, "--at", "512,768,1536", "--model-heads-kv", str(kv), "--json", "-"],
                                      check=True, capture_output=True).stdout)
    grouped = {str(x["n"]): x["kv_density_grouped"] for x in shown["lengths"]}
    assert set(grouped) == set(p["kv_density"])
    for n, x in p["kv_density"].items():
        assert .3 - 1e-9 <= x <= p["density"] + 1e-9 and abs(grouped[n] - x) < 1e-9, (n, x, grouped)
P
expect 1 "$moascope" search "$temp/i.npz" -o "$temp/plans"; says "--force"
expect 0 "$moascope" search "$temp/i.npz" --density-low 0 --measure abs --per head --threads 1 --plans 3 -o "$temp/plans" --force --lp "$temp/a.lp" -q
[ "$(ls "$temp/plans" | grep -c '^plan_.*json$')" -le 3 ] || complain "more than three plans"
grep -q "^Binary" "$temp/a.lp" || complain "no .lp file"
cp "$temp/plans/plan_01.json" "$temp/lock.json"
expect 0 "$moascope" search "$temp/i.npz" --density 0.6 --density-low 0 --lock "$temp/lock.json" --locked "0.0-0.1,1.*" --forbid 0,1 -o "$temp/locked" --threads 2
python3 - "$temp/lock.json" "$temp/locked/plan_01.json" <<'P' || complain "locked heads changed"
import json, sys
a, b = (json.load(open(f)) for f in sys.argv[1:])
for k in ("alphas", "betas"):
    assert a[k][0][:2] == b[k][0][:2] and a[k][1] == b[k][1]
P
expect 1 "$moascope" search "$temp/i.npz" --density 0.001 --density-low 0 -o "$temp/none"; says "out of reach"
[ -e "$temp/none" ] && complain "a folder without plans was made"
expect 2 "$moascope" search "$temp/i.npz" --density 2 -o "$temp/none"
expect 2 "$moascope" search "$temp/i.npz" --density 0.5; says "-o DIR"
expect 2 "$moascope" search "$temp/i.npz" --measure sum -o "$temp/none"; says "joint, abs, signed"
expect 2 "$moascope" search "$temp/i.npz" --locked 99.0 --lock full -o "$temp/none"; says "99.0"
expect 3 "$moascope" search "$temp/data.jsonl" -o "$temp/none"
[ $failed = 0 ] && echo "search: ok"
exit $failed
