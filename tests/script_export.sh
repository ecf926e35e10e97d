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

# --- sessions export, prune --------------------------------------------------------------------------------------------
printf 'a \033[31mred\033[0m fox \342\200\256and \360\237\246\212' > "$temp/prompt"
expect 0 "$moascope" run "$llama" --prompt-file "$temp/prompt" -n 5 --temp 0.5 --seed 9007199254740991 --ignore-eos --plan uniform:0.5 --json "$temp/run.json"
expect 0 "$moascope" run "$llama" -p "two" -n 3 --temp 0 --ignore-eos
expect 0 "$moascope" sessions list --json "$temp/list.json"
check "$temp/list.json" "len(j['sessions']) == 2"
expect 0 "$moascope" sessions export all --json "$temp/all.json"
python3 - "$temp/all.json" "$temp/run.json" "$temp/prompt" "$temp/list.json" << 'END' || complain "sessions export"
import json, sys
raw = open(sys.argv[1], "rb").read(); j = json.loads(raw); run = json.load(open(sys.argv[2])); kept = json.load(open(sys.argv[4]))["sessions"]
assert not any(b < 32 and b not in b"\n" for b in raw) and "\u202e" not in raw.decode()
assert j["format"] == "moa-sessions" and j["version"] == 1 and [s["id"] for s in j["sessions"]] == [s["id"] for s in kept]
first = min(j["sessions"], key=lambda s: s["id"]); r, = first["runs"]
assert r["prompt"] == open(sys.argv[3]).read() and r["output"] == run["text"] and r["seed"] == 9007199254740991 == run["seed"]
assert r["n_prompt"] == run["prompt_tokens"] and r["n_gen"] == len(run["tokens"]) == 5
assert r["sampling"]["temp"] == 0.5 and r["kv_bytes"] == run["kv_bytes"] and r["kv_bytes_dense"] == run["kv_bytes_dense"]
assert all(b == 0.5 for row in r["plan"]["betas"] for b in row) and len(r["plan"]["betas"]) == first["n_layer"]
assert max(j["sessions"], key=lambda s: s["id"])["runs"][0]["plan"]["betas"] == [[1] * 6] * 2
assert isinstance(first["edits"], list)
END
# edits and texts that no program of ours wrote: damaged JSON comes as a string, unsafe characters escaped
python3 - "$temp/state/moascope/sessions.db" << 'END' || complain "no store to write to"
import sqlite3, struct, sys
db = sqlite3.connect(sys.argv[1]); i, = db.execute("SELECT min(id) FROM session").fetchone()
pack = lambda *c: struct.pack("<ii4d", *c)
db.execute("INSERT INTO edit VALUES(?, 0, 0, 'narrow', ?)", (i, pack(0, 1, 0, 1, 64, 1 / 3) + pack(-2, 3, 0, 0, 1, 0)))
db.execute("INSERT INTO edit VALUES(?, 1, 0, 'undone', ?)", (i, pack(1, 0, 0, 1, 0, .5)))
db.execute("UPDATE session SET undo_pos=1 WHERE id=?", (i,))
db.execute("UPDATE run SET stats=?, sampling='{broken' WHERE session=?", ('{"a": "\u202e\U000E0041"}', i))
db.commit()
END
first=$(python3 -c "import json; print(min(s['id'] for s in json.load(open('$temp/list.json'))['sessions']))")
expect 0 "$moascope" sessions export "$first" --json -
cp "$temp/out" "$temp/one.json"
check "$temp/one.json" "len(j['sessions']) == 1 and j['sessions'][0]['edits'] == [{'label': 'narrow', 'in_force': True, 'changes': [{'layer': 0, 'head': 1, 'before': [0, 1], 'after': [64, 1/3]}], 'marks': [{'layer': 1, 'head': 3, 'marked': True}]}, {'label': 'undone', 'in_force': False, 'changes': [{'layer': 1, 'head': 0, 'before': [0, 1], 'after': [0, 0.5]}], 'marks': []}]"
python3 - "$temp/one.json" << 'END' || complain "stored JSON does not come back, or not safely"
import json, sys
raw = open(sys.argv[1], encoding="utf-8").read(); r = json.loads(raw)["sessions"][0]["runs"][0]
assert r["sampling"] == "{broken", r["sampling"]
assert r["stats"] == {"a": "\u202e\U000E0041"}, r["stats"]
assert not set("\u202e\U000E0041") & set(raw)
END
expect 2 "$moascope" sessions export; says "ID|all"
expect 2 "$moascope" sessions export x
expect 3 "$moascope" sessions export 999999
expect 3 "$moascope" sessions replay 1; says "settings cannot be read"
expect 2 "$moascope" sessions forget; says "export or prune"

kept() { "$moascope" sessions list --json - | python3 -c 'import json,sys; print(*(s["id"] for s in json.load(sys.stdin)["sessions"]))'; }
both=$(kept)
expect 2 "$moascope" sessions prune; says "--older-than"
expect 2 "$moascope" sessions prune --older-than 30; says "like 30d"
expect 2 "$moascope" sessions prune --older-than -1d
expect 0 "$moascope" sessions prune --keep 0 --dry-run
grep -q "2 sessions would go" "$temp/out" || complain "a dry run says what would go"
[ "$(kept)" = "$both" ] || complain "a dry run took sessions"
expect 0 "$moascope" sessions prune --older-than 1d
[ "$(kept)" = "$both" ] || complain "prune took what is not old"
python3 -c "import sqlite3,sys; db=sqlite3.connect(sys.argv[1]); db.execute('UPDATE session SET changed=changed-864000 WHERE id=$first'); db.commit()" "$temp/state/moascope/sessions.db"
expect 0 "$moascope" sessions prune --older-than 9d --json "$temp/gone.json"
check "$temp/gone.json" "[s['id'] for s in j['gone']] == [$first] and not j['dry_run'] and j['n_open'] == 0"
[ -n "$(kept)" ] && [[ " $(kept) " != *" $first "* ]] || complain "prune left the old session, or took both"
expect 0 "$moascope" sessions prune --keep 0
[ -z "$(kept)" ] || complain "--keep 0 left sessions"
expect 0 "$moascope" sessions export all --json "$temp/none.json"
check "$temp/none.json" "j['sessions'] == []"

exit $failed
