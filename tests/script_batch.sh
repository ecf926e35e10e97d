#!/bin/bash
# The subcommands end to end: run, plan, chat, sessions, engine --devices, on tiny random models and, where it is fetched, SmolLM2.
. "$(dirname "$0")/batch_lib.sh" "$1"
llama=$source/tests/data/tiny_llama.gguf
text="the quick brown fox jumps over the lazy dog, again and again and again. "
text=$text$text$text$text

# --- usage -------------------------------------------------------------------------------------------------------------
expect 0 "$moascope" --help
expect 0 "$moascope" --version
expect 0 "$moascope" help run
grep -q -- "--top-k K" "$temp/out" || complain "help run lacks --top-k"
grep -o ' X([a-z_]*)' "$build/gen/batch_list.h" | sed 's/ X(\(.*\))/\1/' > "$temp/commands"
[ "$(wc -l < "$temp/commands")" -ge 5 ] || complain "no list of subcommands"
while read -r command; do
    expect 0 "$moascope" "$command" --help
    grep -q "^usage: moascope $command" "$temp/out" || complain "$command --help has no usage"
done < "$temp/commands"
expect 2 "$moascope" run; says "usage: moascope run MODEL"
expect 2 "$moascope" run "$llama" -p a --ids b; says "one of --prompt"
expect 2 "$moascope" run "$llama" -p a -n -3
expect 2 "$moascope" run "$llama" -p a -ngl 99; says "--device"
expect 2 "$moascope" run "$llama" -p a --batch 4 --maps "$temp/m.npz"; says "not with --batch"
expect 2 "$moascope" run "$llama" -p a --batch 4097; says "4097"
expect 2 "$moascope" run "$llama" -p a --device gpu
expect 2 "$moascope" run "$llama" -p a --top-p 0
expect 2 "$moascope" run "$llama" -p a -ctk f16 -ctv f32; says "one type"
expect 2 "$moascope" run "$llama" -p ""; says "no tokens"
expect 2 "$moascope" plan nonsense
expect 3 "$moascope" run "$source/tests/data/prompt_600.txt" -p a
expect 3 "$moascope" run "$llama" -p "$text" -c 20; says "-c 20"
[ "$("$moascope" run "$temp/none.gguf" -p a > /dev/null 2>&1; echo $?)" -ne 0 ] || complain "a model that is not there"

# --- run ---------------------------------------------------------------------------------------------------------------
for model in "$llama" "$source/tests/data/tiny_qwen2.gguf"; do
    for device in "--device cpu" "--reference"; do
        # shellcheck disable=SC2086
        expect 0 "$moascope" run "$model" $device -p "$text" -n 12 --temp 0 --ignore-eos --json "$temp/a.json" --kv f32
        cp "$temp/a.json" "$temp/${device#--}.json"
    done
    check "$temp/reference.json" "j['tokens']==json.load(open('$temp/device cpu.json'))['tokens']"
done
expect 0 "$moascope" run "$llama" -p "$text" -n 12 --temp 0 --ignore-eos --json "$temp/a.json"
for key in model device plan prompt_tokens tokens text stop_reason prefill_tok_s decode_tok_s ttft_ms kv_bytes kv_bytes_dense kv_bytes_mha \
    kv_density spans peak_device_bytes seed version; do check "$temp/a.json" "'$key' in j"; done
check "$temp/a.json" "len(j['tokens'])==12 and j['stop_reason']=='length' and j['kv_bytes']==j['kv_bytes_dense'] and j['kv_bytes_mha']==3*j['kv_bytes']"
check "$temp/a.json" "j['spans']['min']==j['spans']['max']>=j['prompt_tokens']+12 and j['kv_density']==1 and j['prefill_tok_s']>0"
expect 0 "$moascope" run "$llama" -p "$text" -n 12 --temp 0 --ignore-eos --json - -q
cp "$temp/out" "$temp/b.json"; check "$temp/b.json" "j['tokens']==json.load(open('$temp/a.json'))['tokens']"
[ -s "$temp/err" ] && complain "--quiet is not quiet"
# the seed that was drawn gives the same again
expect 0 "$moascope" run "$llama" -p "$text" -n 20 --temp 1 --json "$temp/a.json"
expect 0 "$moascope" run "$llama" -p "$text" -n 20 --temp 1 --json "$temp/b.json" --seed "$(python3 -c "import json; print(json.load(open('$temp/a.json'))['seed'])")"
check "$temp/b.json" "j['tokens']==json.load(open('$temp/a.json'))['tokens']"
# the same input as text, file, pipe and ids
printf '%s' "$text" > "$temp/prompt.txt"
expect 0 "$moascope" run "$llama" -f "$temp/prompt.txt" -n 5 --temp 0 --json "$temp/a.json"
"$moascope" run "$llama" -n 5 --temp 0 --json "$temp/b.json" < "$temp/prompt.txt" > /dev/null 2>&1 || complain "run from a pipe"
check "$temp/b.json" "j['tokens']==json.load(open('$temp/a.json'))['tokens']"
echo "[67, 79, 50, 95, 168]" > "$temp/ids.json"
expect 0 "$moascope" run "$llama" --ids "$temp/ids.json" -n 0 --json "$temp/a.json"
check "$temp/a.json" "j['prompt_tokens']==5 and j['tokens']==[] and j['ttft_ms'] is None"
for bad in '[67, 276]' '[1.5]' '[-1]' '{"a": 1}' '[1,2' '[]' '[1,"2"]'; do
    echo "$bad" > "$temp/ids.json"
    expect 3 "$moascope" run "$llama" --ids "$temp/ids.json"
done
printf 'one\n\ntwo\r\nthree' > "$temp/lines.txt"
expect 0 "$moascope" run "$llama" --prompts "$temp/lines.txt" -n 2 --temp 0 --json "$temp/a.json"
check "$temp/a.json" "[r['prompt_tokens'] for r in j['runs']]==[2,3,3]"
# several in step give what each gives alone: greedy (across the 64 steps between two looks) and sampled, copies and lines
for how in "--temp 0 --ignore-eos -n 150 --plan uniform:0.5" "--temp 1 --seed 7 -n 20" "--temp 0 -n 0" "--temp 0 -n 1" "--temp 0 -n 300"; do
    expect 0 "$moascope" run "$llama" -p "$text" $how --device cpu --reference --batch 3 --json "$temp/a.json"
    for i in 0 1 2; do
        alone=$how; case $how in *seed*) alone="--temp 1 --seed $((7 + i)) -n 20";; esac
        expect 0 "$moascope" run "$llama" -p "$text" $alone --device cpu --reference --json "$temp/b.json"
        check "$temp/b.json" "[(r['tokens'],r['text'],r['stop_reason']) for r in json.load(open('$temp/a.json'))['runs']][$i]==(j['tokens'],j['text'],j['stop_reason'])"
    done
    check "$temp/a.json" "j['prefilled_tokens']*3==j['prompt_tokens'] and j['generated_tokens']==sum(len(r['tokens']) for r in j['runs']) and j['batch']==3"
done
expect 0 "$moascope" run "$llama" --prompts "$temp/lines.txt" -n 40 --temp 0 --reference --batch 2 --json "$temp/a.json"
expect 0 "$moascope" run "$llama" --prompts "$temp/lines.txt" -n 40 --temp 0 --reference --json "$temp/b.json"
check "$temp/b.json" "[r['tokens'] for g in json.load(open('$temp/a.json'))['batches'] for r in g['runs']]==[r['tokens'] for r in j['runs']]"
check "$temp/a.json" "[g['batch'] for g in j['batches']]==[2,1]"
expect 0 "$moascope" run "$llama" -p hello --chat --system "Be brief." -n 3 --json "$temp/a.json"
check "$temp/a.json" "j['prompt_tokens']>20"
# a plan: less memory, and the formula is what was measured
expect 0 "$moascope" run "$llama" -p "$text$text" -n 30 --temp 0 --ignore-eos --plan uniform:0.3 --json "$temp/a.json"
check "$temp/a.json" "j['kv_bytes']==j['kv_bytes_plan']<j['kv_bytes_dense'] and j['spans']['max']==192"
expect 3 "$moascope" run "$llama" -p a --plan "$source/tests/data/plans/meta-llama--Llama-3.2-1B-Instruct.moa.json"; says "layers"
# statistics of some of the prompt's blocks, and of all
expect 0 "$moascope" run "$llama" -p "$text$text" -n 0 --probe sampled --json "$temp/a.json"
check "$temp/a.json" "j['probe']['queries']==j['prompt_tokens']>j['probe']['looked_at']>0 and j['probe']['sampled_every']==-(-(-(-j['prompt_tokens']//64))//4)"
expect 0 "$moascope" run "$llama" -p "$text$text" -n 0 --probe exact --json "$temp/a.json"
check "$temp/a.json" "j['probe']['queries']==j['prompt_tokens']==j['probe']['looked_at'] and j['probe']['sampled_every']==1"
expect 0 "$moascope" run "$llama" -p a -n 0 --json "$temp/a.json"
check "$temp/a.json" "'probe' not in j"
expect 2 "$moascope" run "$llama" -p a --probe some; says "sampled, exact or off"
expect 2 "$moascope" run "$llama" -p a --probe off --stats "$temp/s.npz"; says "--probe off"
# files
expect 0 "$moascope" run "$llama" -p "$text$text" -n 4 --temp 0 --ignore-eos --plan uniform:0.4 --json "$temp/a.json" --logits "$temp/l.npy" --maps "$temp/m.npz" --stats "$temp/s.npz"
python3 - "$temp" <<'PY' || complain "the files of run"
import ast, json, struct, sys, zipfile
temp = sys.argv[1]
def npy(b):
    assert b[:8] == b"\x93NUMPY\x01\x00"
    n = struct.unpack_from("<H", b, 8)[0]
    h = ast.literal_eval(b[10:10 + n].decode())
    data = b[10 + n:]
    code = {"<f4": "f", "<i4": "i", "<i8": "q"}.get(h["descr"])
    if code is None:
        return h["shape"], data
    return h["shape"], struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)
def npz(path):
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
        assert all(i.date_time == (1980, 1, 1, 0, 0, 0) and i.compress_type == 0 for i in z.infolist())
        return {i[:-4]: npy(z.read(i)) for i in z.namelist()}
j = json.load(open(temp + "/a.json"))
n, L, H = j["prompt_tokens"], 2, 6
shape, logits = npy(open(temp + "/l.npy", "rb").read())
assert shape == (n, 276), shape
last = logits[-276:]
assert last.index(max(last)) == j["tokens"][0]
m, s = npz(temp + "/m.npz"), npz(temp + "/s.npz")
nb = (n + 63) // 64
assert m["mass"][0] == (L, H, nb, nb) and m["span"][0] == (L, H) and set(m["span"][1]) == {j["spans"]["max"]}
mass, span = m["mass"][1], j["spans"]["max"]
for h in range(L * H):
    for q in range(nb):
        row = mass[(h * nb + q) * nb:(h * nb + q + 1) * nb]
        assert abs(sum(row) - min(64, n - 64 * q)) < 1e-3
        for k in range(nb):  # exactly the blocks with something to see
            last_q = min(n, 64 * q + 64) - 1
            seen = k <= q and (k == 0 or 64 * q - (64 * k + 63) < span - 64)
            assert (row[k] > 0) == seen, (h, q, k)
assert n % 64 != 0 and nb > 3 and span < n, "the test wants a ragged last block and a cut"
assert s["entropy"][0] == (L, H) and s["hist"][0][:2] == (L, H) and s["n_query"][1] == (n,)
bins = s["hist"][0][2]
for h in range(L * H):
    assert abs(sum(s["hist"][1][h * bins:(h + 1) * bins]) - 1) < 1e-4
    sink = sum(mass[(h * nb + q) * nb] for q in range(nb)) / n
    assert abs(sink - s["sink"][1][h]) < 1e-4 and abs(s["sink"][1][h] + s["window"][1][h] - 1) < 1e-4
assert b"nats" in s["README"][1] and b"64 x 64" in m["README"][1]
PY
cp "$temp/m.npz" "$temp/m2.npz"
expect 0 "$moascope" run "$llama" -p "$text$text" -n 4 --temp 0 --ignore-eos --plan uniform:0.4 --maps "$temp/m.npz"
cmp -s "$temp/m.npz" "$temp/m2.npz" || complain "the same run gives another maps file"
expect 1 "$moascope" run "$llama" -p a -n 1 --maps /nowhere/m.npz
expect 1 "$moascope" run "$llama" -p a -n 1 --json /nowhere/a.json
# a command spelled wrong is no model's name; a model's name is no command
for word in serach benhc evall plna; do
  "$moascope" $word < /dev/null > "$temp/out" 2> "$temp/err"
  [ $? -eq 2 ] && grep -q "did you mean '" "$temp/err" || complain "moascope $word: $(cat "$temp/err")"
done
for word in SmolLM2 qwen ./serach bench.gguf x; do
  "$moascope" $word < /dev/null > "$temp/out" 2> "$temp/err"
  [ $? -eq 2 ] && grep -q 'not a terminal' "$temp/err" || complain "moascope $word: $(cat "$temp/err")"
done
# where a result cannot be written is said before the work, with nothing printed
for option in --json --logits --maps --stats; do
  "$moascope" run "$llama" -p abc -n 5 $option /nowhere/at/all > "$temp/out" 2> "$temp/err"
  [ $? -eq 1 ] && [ ! -s "$temp/out" ] && grep -q '/nowhere/at/all: cannot write there' "$temp/err" || complain "$option into a folder that is not there: $(cat "$temp/out" "$temp/err")"
  "$moascope" run "$llama" -p abc -n 5 $option "$temp" > "$temp/out" 2> "$temp/err"
  [ $? -eq 1 ] && [ ! -s "$temp/out" ] && grep -q 'it is a folder' "$temp/err" || complain "$option into a folder's own name: $(cat "$temp/err")"
done
"$moascope" run "$llama" -n 5 < /dev/null > "$temp/out" 2> "$temp/err"
[ $? -eq 2 ] && grep -q 'no prompt: --prompt TEXT' "$temp/err" || complain "a run without a prompt: $(cat "$temp/err")"
[ -w /dev/full ] && { "$moascope" run "$llama" -p a -n 5 > /dev/full 2> "$temp/err"; [ $? -eq 1 ] || complain "a full disk behind stdout"; }
# ^C: what was made is kept, exit code 130
timeout --preserve-status -s INT 0.5 "$moascope" run "$llama" -p "$text" -n 3700 --temp 0 --ignore-eos --reference --json "$temp/c.json" --logits "$temp/c.npy" > "$temp/out" 2> "$temp/err"
code=$?
if [ $code -ne 0 ] && [ $code -ne 130 ]; then complain "^C: exit code $code"; fi
if [ $code -eq 0 ]; then echo "(the run was done before ^C came)"; else
    grep -q interrupted "$temp/err" || complain "^C: $(cat "$temp/err")"
    [ -e "$temp/c.json" ] && check "$temp/c.json" "j['stop_reason'] in ('cancelled','length')"
    for left in "$temp"/c.*.??????; do [ -e "$left" ] && complain "^C left $left"; done
fi

# --- plan --------------------------------------------------------------------------------------------------------------
plans=$source/tests/data/plans
for f in "$plans"/*.json; do
    expect 0 "$moascope" plan check "$f" --at 4096
    expect 0 "$moascope" plan convert "$f" -o "$temp/own.json"
    expect 0 "$moascope" plan convert "$temp/own.json" --plain -o "$temp/plain.json"
    python3 -c 'import json,sys; a,b,o=(json.load(open(f)) for f in sys.argv[1:]); sys.exit(not (a==b and set(b)=={"alphas","betas"} and o["format"]=="moa-plan"))' \
        "$f" "$temp/plain.json" "$temp/own.json" || complain "$f does not survive the way there and back"
done
eight=$plans/gradientai--Llama-3-8B-Instruct-262k.moa.json
expect 0 "$moascope" plan show "$eight" --at 1024,32768 --model-heads-kv 8 --json "$temp/a.json"
check "$temp/a.json" "j['lengths'][0]['n_clamped']==375 and j['max_rules_per_layer']<=2 and 9<=j['distinct_rules']<=17"
check "$temp/a.json" "abs(j['lengths'][1]['kv_density']-0.5)<0.01 and abs(j['lengths'][1]['kv_density_grouped']-0.68)<0.01 and abs(j['lengths'][1]['mha_ratio']-1.98)<0.01"
expect 0 "$moascope" plan show "$eight" --at 4096
expect 0 "$moascope" plan edit "$eight" "L3.*" w=1024 "L0.H1" full -o "$temp/e.json"
expect 0 "$moascope" plan diff "$eight" "$temp/e.json" --json "$temp/a.json"
check "$temp/a.json" "set((c['layer'] for c in j['changes']))=={0,3} and j['n_changed']==len(j['changes'])<=33"
expect 0 "$moascope" plan uniform 0.25 -m "$llama" -o "$temp/u.json"
check "$temp/u.json" "j['betas']==[[0.25]*6]*2"
expect 0 "$moascope" plan check "$temp/u.json" -m "$llama"
expect 0 "$moascope" run "$llama" -p "$text" -n 2 --plan "$temp/u.json"
expect 3 "$moascope" plan check "$eight" -m "$llama"
expect 1 "$moascope" plan check "$eight" --at 512 --strict
expect 2 "$moascope" plan show full
expect 2 "$moascope" plan edit "$eight" "L99.*" full; expect 2 "$moascope" plan edit "$eight" "L1.*" "beta=x"; expect 2 "$moascope" plan edit "$eight" "L1.*"
expect 2 "$moascope" plan export "$eight"; says "moa, csv, windows, minference, duo"
printf '{"alphas": [[1, 2]], "betas": [[1]]}' > "$temp/bad.json"; expect 3 "$moascope" plan check "$temp/bad.json"
printf '{"alphas": [[1]], "betas": [[1e999]]}' > "$temp/bad.json"; expect 3 "$moascope" plan check "$temp/bad.json"

# --- chat, sessions, engine ----------------------------------------------------------------------------------------------
printf 'one\ntwo \\\nlines\n:plan uniform:0.5\n:set stats on\n:run\n:stats\n:describe L1.H0\n:set temp 0.5\n:set\n:reset\nthree\n:quit\nnever\n' |
    "$moascope" chat "$llama" -n 4 --seed 1 > "$temp/out" 2> "$temp/err" || complain "chat: $(tail -1 "$temp/err")"
grep -q "^L1 H0: alpha 0, beta 0.5" "$temp/err" || complain "chat: :describe"
grep -q "temp 0.5" "$temp/err" || complain "chat: :set"
printf ':nonsense\n' | "$moascope" chat "$llama" > "$temp/out" 2> "$temp/err"; [ $? -eq 2 ] || complain "chat: an unknown command is not wrong usage"
expect 0 "$moascope" sessions list
expect 0 "$moascope" sessions list --store "$temp/other.db" --json "$temp/a.json"; check "$temp/a.json" "j['sessions']==[]"
kept() { "$moascope" sessions list --max 100000 --json - | python3 -c 'import json,sys; print(len(json.load(sys.stdin)["sessions"]))'; }
before=$(kept)
expect 0 "$moascope" run "$llama" -p "not kept" -n 2 --no-session
[ "$(kept)" -eq "$before" ] || complain "--no-session keeps the run"
expect 0 "$moascope" run "$llama" -p "$(printf 'kept \033[31m')" -n 2 --ignore-eos --seed 77
[ "$(kept)" -eq $((before + 1)) ] || complain "the run is not kept"
expect 0 "$moascope" sessions list --max 1 --json "$temp/a.json"
id=$(python3 -c "import json; print(json.load(open('$temp/a.json'))['sessions'][0]['id'])")
expect 0 "$moascope" sessions show "$id" --json "$temp/a.json"
check "$temp/a.json" "len(j['runs'])==1 and j['runs'][0]['seed']==77 and j['runs'][0]['n_gen']==2 and j['runs'][0]['prompt'].startswith('kept')"
expect 0 "$moascope" sessions show "$id"
LC_ALL=C grep -q "$(printf '[\001-\011\013-\037\177]')" "$temp/out" && complain "control bytes of a prompt reach the terminal"
expect 2 "$moascope" sessions show x
expect 3 "$moascope" sessions show 999999999
expect 0 "$moascope" engine --devices; grep -q "^cpu" "$temp/out" || complain "engine --devices has no cpu"

# --- a real model ----------------------------------------------------------------------------------------------------------
smol=${XDG_CACHE_HOME:-$HOME/.cache}/moascope/models/SmolLM2-135M-Instruct-Q4_1.gguf
if [ -e "$smol" ]; then
    expect 0 "$moascope" run "$smol" --chat -p "What is the capital of France?" -n 20 --temp 0 --json "$temp/a.json"
    check "$temp/a.json" "'Paris' in j['text'] and j['stop_reason']=='end' and j['kv_bytes_mha']==3*j['kv_bytes_dense']"
else
    echo "SmolLM2 is not fetched: the part with a real model did not run"
fi
[ $failed -eq 0 ] && echo "ok"
exit $failed
