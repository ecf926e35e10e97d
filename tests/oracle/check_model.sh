#!/usr/bin/env bash
# One model, all the way through, against the oracle.
#
# The prompt is tests/data/prompt_600.txt, tokenised by Hugging Face tokenizers so that moascope's own tokenizer
# has no part in it. Two runs: dense, and a mixed plan with spans from 128 to dense. For each, forward.py and
# moascope write logits, maps, statistics and a few greedy tokens (decode under the plan's pages), and compare.py
# says how far they are apart.
#
#   check_model.sh MODEL MOASCOPE [--device D] [--reference] [--kv T] [-n K] [--keep DIR] [-- compare.py options]
#
#   --device D     handed to moascope
#   --reference    handed to moascope: its double-accumulating reference ops instead of the fast ones; the oracle then
#                  multiplies in float64 too (in float32 it is 1.6e-3 off itself in a map of Qwen2.5-Coder-1.5B)
#   --kv T         handed to moascope: element type of keys and values (f32 leaves least to rounding)
#   -n K           tokens to generate (default 12; 0: none)
#   --keep DIR     leave the arrays there instead of a temporary folder
#   -- ...         other limits, e.g. -- --kl-mean 1e-3 for a backend with 16-bit keys and values
#
# PYTHON names an interpreter with numpy, gguf and tokenizers (tests/oracle/README.md).
# Exit: 0 all within limits, 1 not, 2 usage, 3 a file does not fit, 77 no such Python (ctest: skipped).
set -u -o pipefail

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
usage() { sed -n 's/^#   \(check_model.sh .*\)/usage: \1/p' "$0" >&2; exit 2; }

model='' moascope='' device='' reference='' kv='' n_gen=12 keep='' limits=()
while [ $# -gt 0 ]; do
    case $1 in
        --device | --kv | -n | --keep)
            [ $# -ge 2 ] || usage
            case $1 in --device) device=$2 ;; --kv) kv=$2 ;; -n) n_gen=$2 ;; --keep) keep=$2 ;; esac
            shift 2 ;;
        --reference) reference=1; shift ;;
        --) shift; limits=("$@"); break ;;
        -*) usage ;;
        *)
            if [ -z "$model" ]; then model=$1; elif [ -z "$moascope" ]; then moascope=$1; else usage; fi
            shift ;;
    esac
done
[ -n "$moascope" ] || usage
case $n_gen in '' | *[!0-9]*) usage ;; esac
if ! "$python" -c 'import numpy, gguf, tokenizers' 2>/dev/null; then
    echo "check_model: $python lacks numpy, gguf or tokenizers; set PYTHON (tests/oracle/README.md)" >&2
    exit 77
fi

if [ -n "$keep" ]; then
    mkdir -p "$keep" && dir=$keep || exit 1
else
    dir=$(mktemp -d) || exit 1
    trap 'rm -rf "$dir"' EXIT
    trap 'exit 130' INT TERM
fi

[ -r "$model" ] || { echo "check_model: cannot read $model" >&2; exit 3; }
"$python" "$here/tokenizer_ids.py" "$model" "$dir/ids.json" --text "$here/../data/prompt_600.txt" 2>"$dir/log" ||
    { tail -n 1 "$dir/log" >&2; exit 3; }
n_prompt=$("$python" -c 'import json, sys; print(len(json.load(open(sys.argv[1]))))' "$dir/ids.json")
n=$((n_prompt + n_gen))
[ "$n_prompt" -ge 300 ] || { echo "check_model: the prompt has $n_prompt tokens, expected 300 or more" >&2; exit 3; }
"$python" "$here/make_plan.py" "$model" "$n" "$dir/mixed.json" || exit 3

echo "$(basename "$model"): $n_prompt prompt tokens, N = $n${device:+, device $device}${kv:+, kv $kv}${reference:+, reference ops}"
rc=0
for plan in full mixed; do
    file=full
    [ $plan = full ] || file=$dir/$plan.json
    a=$dir/oracle-$plan b=$dir/moascope-$plan
    greedy=()
    [ "$n_gen" -eq 0 ] || greedy=(--greedy "$n_gen" --out "$a.json" --gaps "$a.gaps.json")
    if ! "$python" "$here/forward.py" "$model" --ids "$dir/ids.json" --plan "$file" -N "$n" --logits "$a.npy" \
        --maps "$a.maps.npz" --stats "$a.stats.npz" ${reference:+--double} "${greedy[@]}" 2>"$a.log"; then
        tail -n 3 "$a.log" >&2
        exit 3
    fi
    "$moascope" run "$model" --ids "$dir/ids.json" --plan "$file" -n "$n_gen" --temp 0 ${device:+--device "$device"} \
        ${kv:+--kv "$kv"} ${reference:+--reference} --logits "$b.npy" --maps "$b.maps.npz" --stats "$b.stats.npz" --json "$b.json" \
        >"$b.log" 2>&1
    status=$?
    if [ $status -ne 0 ]; then
        echo "check_model: $moascope ended with $status under the $plan plan:" >&2
        tail -n 3 "$b.log" >&2
        exit 1
    fi
    echo "-- plan $plan"
    for kind in .npy .maps.npz .stats.npz .json; do
        [ $kind != .json ] || [ "$n_gen" -gt 0 ] || continue
        extra=()
        [ $kind != .json ] || extra=(--gaps "$a.gaps.json")
        "$python" "$here/compare.py" "$a$kind" "$b$kind" "${extra[@]}" "${limits[@]}"
        status=$?
        [ $status -le $rc ] || rc=$status
    done
    [ -n "$keep" ] || rm -f "$a.npy" "$b.npy" # 0.4 GB each with a vocabulary of 152k
done
[ $rc -ne 0 ] || echo "all within limits"
exit $rc
