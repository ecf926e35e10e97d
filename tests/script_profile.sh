#!/usr/bin/env bash
# `moascope profile`: its file against an independent program (tests/oracle/influence.py: float64, whole attention, automatic
# differentiation) on tiny models of both families with groups of 1, 3 and 6 query heads; its refusals; what ^C leaves.
#   PYTHON   an interpreter with numpy, gguf and jax (default ~/.cache/moascope/oracle-venv/bin/python); without it the comparison is
#            not made and the script, when all else holds, says so and exits 77
#   DEVICE   handed to moascope (default cpu)
#   LIMIT    relative error of its operations, norm-wise per layer (default 5e-3: the CPU's packed products round activations to 16 bits)
set -u
build=$1
source=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$build/moascope" ] || { echo "skipped: $build/moascope is not built"; exit 77; }
python=${PYTHON:-$HOME/.cache/moascope/oracle-venv/bin/python}
device=${DEVICE:-cpu}
temp=$(mktemp -d) || exit 1
trap 'rm -r "$temp"' EXIT
failed=0
complain() { echo "$1"; failed=1; }

python3 - "$temp" <<'EOF'
import json, random, sys
random.seed(5)
with open(sys.argv[1] + "/data.jsonl", "w") as f:
    for n, k in ((200, 150), (130, 1)):
        f.write(json.dumps({"ids": [random.randrange(276) for _ in range(n)], "supervise_from": k}) + "\n")
EOF
tiny=$source/tests/data/tiny_llama.gguf
profile() { "$build/moascope" profile "$@" > "$temp/out" 2> "$temp/err"; }
expect() { # code, words of the message, arguments
    local code=$1 words=$2; shift 2
    profile "$@"
    local got=$?
    [ $got -eq "$code" ] || complain "profile $*: exit code $got, expected $code"
    grep -q -- "$words" "$temp/err" || complain "profile $*: no \"$words\" in: $(cat "$temp/err")"
    [ ! -e "$temp/no.npz" ] || complain "profile $*: wrote a file"
}
expect 2 "which items" "$tiny" --device cpu --lengths 128 -o "$temp/no.npz"
expect 2 "which lengths" "$tiny" --device cpu --data "$temp/data.jsonl" -o "$temp/no.npz"
expect 2 "where to" "$tiny" --device cpu --data "$temp/data.jsonl" --lengths 128
expect 2 "context of 4096" "$tiny" --device cpu --data "$temp/data.jsonl" --lengths 4097 -o "$temp/no.npz"
expect 3 "fits a length of 4" "$tiny" --device cpu --data "$temp/data.jsonl" --lengths 4 -o "$temp/no.npz"
echo '{"ids": [1, 2, 276], "supervise_from": 1}' > "$temp/bad.jsonl"
expect 2 "cross-entropy or margin" "$tiny" --device cpu --data "$temp/data.jsonl" --lengths 128 --loss worst -o "$temp/no.npz"
expect 3 "276" "$tiny" --device cpu --data "$temp/bad.jsonl" --lengths 128 -o "$temp/no.npz"

# interrupted: the items done are there and are said to be that, or, when there is none, no file
python3 - "$temp" <<'EOF'
import json, random, sys
with open(sys.argv[1] + "/many.jsonl", "w") as f:
    for i in range(4000):
        f.write(json.dumps({"ids": [random.randrange(276) for _ in range(100)], "supervise_from": 50}) + "\n")
EOF
"$build/moascope" profile "$tiny" --device cpu --data "$temp/many.jsonl" --lengths 100 -o "$temp/many.npz" 2> "$temp/err" &
pid=$!
for _ in $(seq 200); do grep -q "length 100" "$temp/err" && break; sleep 0.05; done
sleep 1
kill -INT $pid
wait $pid
code=$?
[ $code -eq 130 ] || complain "interrupted: exit code $code, expected 130: $(cat "$temp/err")"
if [ -e "$temp/many.npz" ]; then
    grep -q "mean over [0-9]* of 4000 items" "$temp/err" || complain "interrupted: $(cat "$temp/err")"
fi
[ -z "$(find "$temp" -name 'many.npz?*')" ] || complain "interrupted: something is left beside the file"

if grep -qE '^MOA_SANITIZE:[A-Z]*=.*thread' "$build/CMakeCache.txt" 2> /dev/null; then
    echo "not tested: the values of a profile under the thread sanitizer; the profile interrupted above had its threads"
    exit $failed
fi
if "$python" -c 'import jax, gguf, numpy' 2> /dev/null; then
    (cd "$source/tests/data" && "$python" - "$temp" <<'EOF'
import sys
sys.path.insert(0, ".")
import make_tiny as t
T = t.T
def make(name, arch, n_head, n_head_kv):
    m = t.Model("%s/%s.gguf" % (sys.argv[1], name), arch, 11)
    d, ff, d_head, n_vocab = 96, 64, 16, 276
    t.shape(m, name, 3, d, ff, n_head, n_head_kv, 4096, 10000.0)
    m.w.add_key_length(d_head)
    m.w.add_value_length(d_head)
    m.w.add_rope_dimension_count(d_head)
    m.w.add_vocab_size(n_vocab)
    t.add_vocabulary(m.w, "smollm" if arch == "llama" else "qwen2", n_vocab)
    m.matrix("token_embd.weight", n_vocab, d, T.Q8_0, 4)
    for i in range(3):
        t.layer(m, i, d, ff, n_head * d_head, n_head_kv * d_head, [T.Q8_0, T.Q4_0, T.F16, T.F32, T.Q8_0, T.Q4_1, T.Q8_0], arch == "qwen2")
    m.vector("output_norm.weight", d, 1, 0.1)
    m.done()
make("llama_1", "llama", 3, 3)
make("qwen2_6", "qwen2", 6, 1)
EOF
    ) || complain "the models could not be made"
    models=("$tiny" "$temp/llama_1.gguf" "$temp/qwen2_6.gguf")
    if grep -q '^MOA_SANITIZE:STRING=..*' "$build/CMakeCache.txt" 2> /dev/null; then
        models=("$temp/qwen2_6.gguf")
        echo "a sanitized build: one model of three is compared; the values of all are the release build's to check"
    fi
    for model in "${models[@]}"; do
        name=$(basename "$model" .gguf)
        profile "$model" --reference --data "$temp/data.jsonl" --lengths 200 --loss cross-entropy -o "$temp/r.npz" || complain "$name: $(cat "$temp/err")"
        profile "$model" --device "$device" --data "$temp/data.jsonl" --lengths 200 --loss cross-entropy -o "$temp/f.npz" || complain "$name: $(cat "$temp/err")"
        "$python" "$source/tests/oracle/influence.py" "$model" --data "$temp/data.jsonl" --length 200 --against "$temp/r.npz:1e-5" \
            --against "$temp/f.npz:${LIMIT:-5e-3}" --finite 0 1 1 --finite 1 2 2 > "$temp/out" 2>&1 || complain "$name: $(cat "$temp/out")"
        echo "$name: $(grep '^joint' "$temp/out" | tr '\n' ' ')"
        # under a plan of many spans, by margin: windows wider than a head's own and narrower ones, an item shorter than the spans are of
        python3 - "$("$build/moascope" model info "$model" --json -)" "$temp/plan.json" <<'EOF' || complain "$name: no plan"
import json, sys
shape = json.loads(sys.argv[1])
rules = [(0, 0), (192, 0), (0, 1), (64, .5), (128, 0)]
rows = [[rules[(h + 2 * l) % 5] for h in range(shape["n_head"])] for l in range(shape["n_layer"])]
json.dump({"alphas": [[r[0] for r in row] for row in rows], "betas": [[r[1] for r in row] for row in rows]}, open(sys.argv[2], "w"))
EOF
        profile "$model" --reference --data "$temp/data.jsonl" --lengths 200 --plan "$temp/plan.json" --loss margin -o "$temp/r.npz" || complain "$name: $(cat "$temp/err")"
        profile "$model" --device "$device" --data "$temp/data.jsonl" --lengths 200 --plan "$temp/plan.json" --loss margin -o "$temp/f.npz" || complain "$name: $(cat "$temp/err")"
        "$python" "$source/tests/oracle/influence.py" "$model" --data "$temp/data.jsonl" --length 200 --plan "$temp/plan.json" --margin \
            --against "$temp/r.npz:1e-5" --against "$temp/f.npz:${LIMIT:-5e-3}" --finite 0 0 2 --finite 0 0 3 --finite 1 1 1 --finite 1 2 3 \
            > "$temp/out" 2>&1 || complain "$name, under a plan: $(cat "$temp/out")"
        echo "$name, under a plan: $(grep '^joint' "$temp/out" | tr '\n' ' ')"
    done
    [ $failed = 0 ] && echo "all within limits"
    exit $failed
fi
[ $failed = 0 ] || exit 1
echo "skipped: $python lacks jax, gguf or numpy: refusals and interruption hold, values were not compared"
exit 77
