#!/bin/bash
# `moascope refine` end to end on a tiny model: its rounds, what they say against `plan show`, `validate` and `profile`; interrupted and gone on
# with it comes to the same plans; refusals.
. "$(dirname "$0")/batch_lib.sh" "$1"
tiny=$source/tests/data/tiny_llama.gguf
python3 - "$temp" <<'P'
import json, random, sys
random.seed(3)
with open(sys.argv[1] + "/data.jsonl", "w") as f:
    for n in (384, 512):
        for i in range(3):
            words = [random.randrange(3, 200) for _ in range(40)]
            ids = [random.choice(words) for _ in range(n - 30)] + words[:30]
            f.write(json.dumps({"ids": ids, "supervise_from": n - 30, "length": n}) + "\n")
    f.write(json.dumps({"ids": [random.randrange(3, 200) for _ in range(400)], "supervise_from": 380}) + "\n")
P
expect 0 python3 "$source/scripts/text_items.py" "$tiny" "$source/README.md" --lengths 384,512 --items 3 --tail 30 --moascope "$moascope" -o "$temp/text.jsonl"
expect 1 python3 "$source/scripts/text_items.py" "$tiny" "$source/README.md" --lengths 999999 --moascope "$moascope" -o "$temp/none"; says "none of 1 documents"
refine() { "$moascope" refine "$tiny" --gains --data "$temp/data.jsonl" --lengths 384,512 --device cpu --threads 2 --density 0.5 --extend 1024 --items 2 "$@"; }
if [ -n "$threads_only" ]; then
    expect 0 refine --rounds 1 --step 0.8 -o "$temp/a"
    [ -s "$temp/a/refine.json" ] || complain "no table"
    echo "not tested: refine but one round under the thread sanitizer: others go the same way"
    exit $failed
fi
expect 0 refine --path --loss cross-entropy --rounds 6 --step 0.3 -o "$temp/a" --json "$temp/a.json"
says "items are profiled"
python3 - "$temp/a" "$moascope" <<'P' || complain "the plans are not what the table says"
import glob, json, math, os, subprocess, sys
folder, moascope = sys.argv[1:]
table = json.load(open(folder + "/refine.json"))
plans = table["plans"]
assert len(plans) >= 4 and {p["file"] for p in plans} == {os.path.basename(f) for f in glob.glob(folder + "/plan_*") + glob.glob(folder + "/step_*")}
assert plans[0]["density"] > .5 and plans[0]["file"].startswith("step_01"), "the first round goes down by a step at most"
for p in plans:
    path = folder + "/" + p["file"]
    plan = json.load(open(path))
    shown = json.loads(subprocess.run([moascope, "plan", "show", path, "--at", "384,512,1024", "--model-heads-kv", str(plan["model"]["n_head_kv"]),
                                       "--json", "-"], check=True, capture_output=True).stdout)
    most = max(x["kv_density_grouped"] for x in shown["lengths"])
    assert abs(most - p["density"]) < 1e-9 and (most <= .5 + 1e-9) == p["file"].startswith("plan_"), (p, most)
    assert abs(p["loss"] - sum(p["losses"].values()) / 2) < 1e-9 and plan["provenance"]["refine"]["loss"] == p["loss"]
within = [p for p in plans if p["file"].startswith("plan_")]
best = min(within, key=lambda p: p["loss"])
assert table["best"] == best["file"]
a, b = json.load(open(folder + "/best.json")), json.load(open(folder + "/" + best["file"]))
assert a["alphas"] == b["alphas"] and a["betas"] == b["betas"]
assert best["loss"] <= min(p["loss"] for p in within)
P
# the losses are validate's, of the items that judge: the last of each length; the mean over them
head -n 3 "$temp/data.jsonl" | tail -n 1 > "$temp/judge.jsonl"
python3 - "$temp" <<'P'
import json, os, shutil, sys
t = sys.argv[1]
best = json.load(open(t + "/a/refine.json"))["best"]
os.mkdir(t + "/one"); shutil.copy(t + "/a/" + best, t + "/one/plan_01.json")
P
expect 0 "$moascope" validate "$tiny" --plans "$temp/one" --data "$temp/judge.jsonl" --length 384 --device cpu --json "$temp/v.json"
python3 - "$temp" <<'P' || complain "validate has other losses"
import json, sys
t = json.load(open(sys.argv[1] + "/a/refine.json"))
v = {p["plan"]: p["loss"] for p in json.load(open(sys.argv[1] + "/v.json"))["plans"]}
p = next(p for p in t["plans"] if p["file"] == t["best"])
assert abs(30 * v["plan_01.json"] - p["losses"]["384"]) < 1e-5, (v, p)
P
# the second round's influence is profile's under the first round's better plan
python3 - "$temp" <<'P' > "$temp/at"
import json, sys
t = json.load(open(sys.argv[1] + "/a/refine.json"))
print(min((p for p in t["plans"] if p["round"] == 1 and p["influence"] != "first round"), key=lambda p: p["loss"])["file"])
P
expect 0 "$moascope" profile "$tiny" --data "$temp/data.jsonl" --lengths 384,512 --items 2 --device cpu --threads 2 --loss cross-entropy --plan "$temp/a/$(cat "$temp/at")" -o "$temp/p.npz"
python3 - "$temp" <<'P' || complain "round 2 is not profiled under the plan of round 1"
import sys, zipfile
a, b = (zipfile.ZipFile(sys.argv[1] + f) for f in ("/a/round_02.npz", "/p.npz"))
for name in ("joint_384.npy", "joint_512.npy", "span_384.npy", "span_512.npy"):
    assert a.read(name) == b.read(name), name
P
# search knows what such a profile is of: wider windows than the plan's have their value, full attention is 0
expect 0 "$moascope" search "$temp/p.npz" --density 0.7 --around "$temp/a/$(cat "$temp/at")" --step 0.2 --density-low 0 -o "$temp/s"
python3 - "$temp/a/$(cat "$temp/at")" "$temp"/s/plan_*.json <<'P' || complain "search --around went farther than --step"
import json, sys
def spans(f, n):
    p = json.load(open(f))
    return [min((max(min(int(a + b * n), n), 128) + 63) // 64 * 64, n) / n for x, y in zip(p["alphas"], p["betas"]) for a, b in zip(x, y)]
for f in sys.argv[2:]:
    far = [abs(x - y) for n in (384, 512) for x, y in zip(spans(sys.argv[1], n), spans(f, n))]
    assert sum(far) / len(far) <= .2 + 1e-9, (f, sum(far) / len(far))
P
expect 1 "$moascope" search "$temp/p.npz" --density 0.5 --density-low 0 --around full --step 0.1 -o "$temp/none"; says "within a step of 0.1"
expect 3 "$moascope" search "$temp/p.npz" --density 0.5 --measure abs -o "$temp/none"; says "under a plan"
# interrupted twice, then gone on with: the same
for wait in 0.2 0.6; do
    refine --path --loss cross-entropy --rounds 6 --step 0.3 -o "$temp/b" > "$temp/out" 2> "$temp/err" < /dev/null &
    pid=$!
    sleep $wait
    kill -INT $pid 2> /dev/null
    wait $pid
    code=$?
    [ $code -eq 130 ] || [ $code -eq 0 ] || complain "interrupted: exit code $code: $(cat "$temp/err")"
    [ $code -eq 130 ] || rm -rf "$temp/b" # too fast to be interrupted
done
expect 0 refine --path --loss cross-entropy --rounds 6 --step 0.3 -o "$temp/b"
for f in best.json refine.json round_02.npz; do cmp -s "$temp/a/$f" "$temp/b/$f" || complain "$f is another after an interruption"; done
[ -e "$temp/b/refine.json.part" ] && complain "the part is left"
# at once, texts beside the answers: the loss is both, and round 1 is what search finds in round 1's influence
expect 0 refine --rounds 4 --text "$temp/text.jsonl" --text-weight 3 -o "$temp/t"
expect 0 "$moascope" search "$temp/t/round_01.npz" --density 0.5 --extend 1024 --stretch --intervals 1 -o "$temp/t1"
python3 - "$temp" <<'P' || complain "texts, or round 1 is not what search finds"
import json, sys
t = json.load(open(sys.argv[1] + "/t/refine.json"))
first = t["plans"][0]
assert first["file"] == "plan_01_c.json" and len(t["plans"]) > 1
for p in t["plans"]:
    assert p["file"].startswith("plan_") and abs(p["loss"] - p["answers"] - 3 * p["texts"]) < 1e-9, p
    assert p["answers"] > 20 * p["texts"], "thirty tokens against one"
found = json.load(open(sys.argv[1] + "/t1/pareto.json"))["plans"]
assert abs(min(p["mean_loss"] for p in found) / first["predicted"] - 1) < 1e-6, (found, first)  # the file has the sum in float32
tried = {(p["round"], p["file"][-6]): p["text_weight"] for p in t["plans"]}
assert tried[1, "c"] == 3 and tried.get((1, "d"), 12) == 12 and tried.get((1, "e"), .75) == .75 and {"d", "e"} & {k[1] for k in tried}, tried
P
# the parts of a round are its sum; another density from the same first round: what a run of its own finds, without the profile
python3 - "$temp/t" <<'P' || complain "a round's parts are not its sum"
import array, sys, zipfile
def curve(name, n): return array.array("f", zipfile.ZipFile("%s/round_01%s.npz" % (sys.argv[1], name)).read("joint_%d.npy" % n)[128:])
for n in (384, 512):
    a, t, s = curve("_answers", n), curve("_texts", n), curve("", n)
    assert len(s) > 8 and any(t) and all(abs(x + 3 * y - z) <= 1e-5 * (abs(x) + 3 * abs(y)) for x, y, z in zip(a, t, s))
P
other() { refine --rounds 2 --text "$temp/text.jsonl" --text-weight 3 --density 0.7 "$@"; }
expect 0 other -o "$temp/u"
expect 0 other --first "$temp/t" -o "$temp/v"
[ -e "$temp/v/round_01.npz" ] && complain "the first round was measured again"
for f in best.json refine.json; do cmp -s "$temp/u/$f" "$temp/v/$f" || complain "--first comes to another $f"; done
expect 1 other --first "$temp/nowhere" -o "$temp/w"; says "nowhere/round_01_answers.npz"
# without --gains an answer's token that is likelier than under full attention counts as there: by no plan less than full attention
expect 0 "$moascope" refine "$tiny" --data "$temp/data.jsonl" --lengths 384,512 --device cpu --density 0.5 --extend 1024 --items 2 --rounds 1 --text "$temp/text.jsonl" --text-weight 3 -o "$temp/n"
python3 - "$temp" <<'P' || complain "judged without gains"
import json, sys
n, t = (json.load(open(sys.argv[1] + d)) for d in ("/n/refine.json", "/t/refine.json"))
assert abs(n["full_attention"] - t["full_attention"]) < 1e-9
a, b = n["plans"][0], t["plans"][0]
assert a["file"] == b["file"] == "plan_01_c.json" and a["texts"] == b["texts"]
full = n["full_attention"]
assert a["answers"] > b["answers"] + 1e-3, "some token gains by a cut, in a random model"
assert all(p["answers"] + 3 * p["texts"] == p["loss"] or abs(p["loss"] - p["answers"] - 3 * p["texts"]) < 1e-9 for p in n["plans"])
P
# from a plan that is within, margin, per head
expect 0 refine --rounds 2 --plan uniform:0.5 --loss margin --per head -o "$temp/c" -q
python3 - "$temp/c/refine.json" <<'P' || complain "from a uniform plan"
import json, sys
t = json.load(open(sys.argv[1]))
assert len(t["plans"]) > 1 and all(p["density"] <= .5 + 1e-9 for p in t["plans"]), t
first = t["plans"][0]
assert first["file"] == "plan_00_s.json" and first["predicted"] is None and min(p["loss"] for p in t["plans"]) <= first["loss"], first
P
expect 1 refine --rounds 2 -o "$temp/c"; says "--force"
expect 0 refine --rounds 1 --step 0.8 --force -o "$temp/c"
expect 0 refine --rounds 1 --step 0.1 --judge 3 --loss margin -o "$temp/d"; says "some of them both"
expect 2 refine --density 2 -o "$temp/none"
expect 2 refine --loss worst -o "$temp/none"; says "cross-entropy or margin"
expect 2 "$moascope" refine "$tiny" --lengths 384 -o "$temp/none"; says "which items"
expect 2 "$moascope" refine "$tiny" --data "$temp/data.jsonl" --lengths 384; says "where to"
expect 2 "$moascope" refine "$tiny" --data "$temp/data.jsonl" --lengths 9999 -o "$temp/none" --device cpu; says "context of 4096"
[ -e "$temp/none" ] && complain "a refused command made a folder"
[ $failed = 0 ] && echo "refine: ok"
exit $failed
