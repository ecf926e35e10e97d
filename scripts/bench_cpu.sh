#!/usr/bin/env bash
# moascope beside llama.cpp on the CPU of this machine, in one run.
#
#   scripts/bench_cpu.sh [MODEL [MOASCOPE]] [--ids F] [--rounds R] [--threads T] [-- options of moascope run]
#
# Same model file, same 512 token ids, 128 tokens decoded after them, greedy, 2 threads. The two take turns, round
# by round, because a machine's speed drifts by more than the difference looked for; the table gives medians, the
# range beside them, and the ratio of the medians. llama.cpp runs with flash attention, the faster setting here,
# and throws one warm-up round away each time; moascope is a fresh process each time and throws nothing away.
# A busy machine is said: figures taken on one are not to be used.
#
# MODEL     default: SmolLM2 as scripts/fetch_model.py keeps it
# MOASCOPE  default: the first of build/release, build/dev, build that has one, else the one in PATH
# PEERS_PYTHON names the Python with llama-cpp-python (default ~/.cache/moascope/peers-venv/bin/python);
# scripts/peers/llama_cpp_bench.py --help says how to make it.
set -u -o pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
peers=${PEERS_PYTHON:-$HOME/.cache/moascope/peers-venv/bin/python}
ids=$root/tests/data/prompt_600.smollm2.json n_prompt=512 n_gen=128 rounds=5 threads=2
model='' moascope='' extra=()
usage() { sed -n 's/^#   \(scripts.*\)/usage: \1/p' "$0" >&2; exit 2; }
fail() { echo "bench_cpu: $1" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
        --ids | --rounds | --threads)
            [ $# -ge 2 ] || usage
            case $1 in --ids) ids=$2 ;; --rounds) rounds=$2 ;; --threads) threads=$2 ;; esac
            shift 2 ;;
        --) shift; extra=("$@"); break ;;
        -*) usage ;;
        *)
            if [ -z "$model" ]; then model=$1; elif [ -z "$moascope" ]; then moascope=$1; else usage; fi
            shift ;;
    esac
done
case $rounds$threads in *[!0-9]*) usage ;; esac
: "${model:=${XDG_CACHE_HOME:-$HOME/.cache}/moascope/models/SmolLM2-135M-Instruct-Q4_1.gguf}"
if [ -z "$moascope" ]; then
    for b in "$root"/build/release "$root"/build/dev "$root"/build; do
        for f in "$b/moascope" "$b/tui/moascope" "$b/bin/moascope"; do
            [ -n "$moascope" ] || { [ -x "$f" ] && [ -f "$f" ] && moascope=$f; }
        done
    done
    : "${moascope:=$(command -v moascope)}"
fi
[ -r "$model" ] || fail "cannot read $model (scripts/fetch_model.py smollm2 fetches it)"
[ -n "$moascope" ] || fail "no moascope built, name it as the second argument"
"$peers" -c 'import llama_cpp' 2>/dev/null ||
    fail "$peers has no llama-cpp-python; see $root/scripts/peers/llama_cpp_bench.py --help"

dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
"$peers" - "$ids" "$n_prompt" >"$dir/ids.json" <<'PY' || fail "cannot use $ids"
import json, sys
ids = json.load(open(sys.argv[1]))[:int(sys.argv[2])]
if len(ids) < int(sys.argv[2]):
    sys.exit("bench_cpu: %s holds %d ids, needed are %s" % (sys.argv[1], len(ids), sys.argv[2]))
print(json.dumps(ids))
PY

echo "$(basename "$model"), $n_prompt + $n_gen tokens, $threads threads, $rounds rounds," \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
busy=$(
    { sed -n '1p' /proc/stat; sleep 2; sed -n '1p' /proc/stat; } |
        awk '{ t = 0; for (i = 2; i <= NF; i++) t += $i; if (NR == 2) print int(100 - 100 * ($5 - idle) / (t - all)); idle = $5; all = t }'
)
# Not a detail: with about seven other processes on two cores llama.cpp's decode rate was seen to fall from 94 to
# 1.4 tok/s and moascope's from 116 to 33 (spinning OpenMP threads would explain it; not looked into). A ratio taken
# then says nothing.
[ "$busy" -le 10 ] || echo "WARNING: other programs use $busy % of the CPUs, do not report these figures"
for r in $(seq "$rounds"); do
    "$peers" "$root/scripts/peers/llama_cpp_bench.py" "$model" --ids "$dir/ids.json" --prefill "$n_prompt" \
        --decode "$n_gen" --threads "$threads" --repeats 1 --flash-attn >"$dir/llama.$r" 2>"$dir/log" ||
        fail "llama.cpp: $(tail -n 1 "$dir/log")"
    "$moascope" run "$model" --ids "$dir/ids.json" -n "$n_gen" --temp 0 --device cpu --threads "$threads" --ignore-eos \
        --json - "${extra[@]}" >"$dir/moascope.$r" 2>"$dir/log" || fail "moascope: $(tail -n 1 "$dir/log")"
    printf '\rround %d of %d' "$r" "$rounds" >&2
done
printf '\r\033[K' >&2

"$peers" - "$dir" "$rounds" "$n_gen" <<'PY'
import json, statistics, sys
folder, rounds, n_gen = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
runs = {e: [json.load(open("%s/%s.%d" % (folder, e, r))) for r in range(1, rounds + 1)] for e in ("llama", "moascope")}
print("%-10s %24s %24s" % ("", "prefill tok/s", "decode tok/s"))
medians = {}
for engine, name in (("llama", "llama.cpp"), ("moascope", "moascope")):
    cells = []
    for key in ("prefill_tok_s", "decode_tok_s"):
        v = [r[key] for r in runs[engine]]
        medians[engine, key] = statistics.median(v)
        cells.append("%.1f (%.1f..%.1f)" % (medians[engine, key], min(v), max(v)))
    print("%-10s %24s %24s" % (name, *cells))
print("%-10s %24s %24s" % ("ratio", *("%.2fx" % (medians["moascope", k] / medians["llama", k])
                                      for k in ("prefill_tok_s", "decode_tok_s"))))
a, b = runs["llama"][0]["tokens"], runs["moascope"][0]["tokens"]
same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
print("%s; first %d of %d greedy tokens equal (llama.cpp rounds activations to 8 bits)"
      % (runs["llama"][0]["version"], same, len(a)))
if len(b) < n_gen:
    print("moascope stopped after %d of %d tokens (%s): its decode rate is of those"
          % (len(b), n_gen, runs["moascope"][0].get("stop_reason")))
PY
