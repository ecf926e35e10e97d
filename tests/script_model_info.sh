#!/bin/sh
# `moascope model info` on every hostile file: exit code 3, one clean line on stderr, a description or nothing on stdout;
# on every valid one: exit code 0 and JSON that another parser reads.
set -u
build=$1
source=$(cd "$(dirname "$0")/.." && pwd)
[ -x "$build/moascope" ] || { echo "skipped: $build/moascope is not built"; exit 77; }
temp=$(mktemp -d) || exit 1
trap 'rm -r "$temp"' EXIT
failed=0 n=0

complain() { echo "$1"; failed=1; }

for file in "$source"/tests/fuzz/corpus/gguf/bad_*; do
    n=$((n + 1))
    "$build/moascope" model info "$file" > "$temp/out" 2> "$temp/err"
    code=$?
    name=$(basename "$file")
    [ $code -eq 3 ] || complain "$name: exit code $code, expected 3"
    [ "$(wc -l < "$temp/err")" -eq 1 ] || complain "$name: $(wc -l < "$temp/err") lines on stderr, expected 1"
    # nothing but newline below 0x20, no DEL, no C1: no byte of the file commands the terminal
    if LC_ALL=C grep -q "$(printf '[\001-\011\013-\037\177]')" "$temp/out" "$temp/err"; then
        complain "$name: control bytes in the output"
    fi
done
[ $n -ge 60 ] || complain "only $n hostile files"

for file in "$source"/tests/data/tiny_llama.gguf "$source"/tests/data/tiny_qwen2.gguf "$source"/tests/data/tiny_quants.gguf \
    "$source"/tests/fuzz/corpus/gguf/ok_llama "$source"/tests/fuzz/corpus/gguf/ok_qwen2 "$source"/tests/fuzz/corpus/gguf/ok_micro; do
    "$build/moascope" model info "$file" --json - > "$temp/out" 2> "$temp/err" || complain "$(basename "$file"): exit code $?"
    python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); assert d["supported"] and d["n_head"] % d["n_head_kv"] == 0 and len(d["fingerprint"]) == 64' \
        "$temp/out" || complain "$(basename "$file"): JSON"
done

# the folders are listed, and nothing found is no error
HOME=$temp XDG_CACHE_HOME=$temp MOASCOPE_MODELS=$source/tests/data "$build/moascope" model list > "$temp/out" 2> "$temp/err" || complain "list failed"
grep -q '^tiny_llama.gguf .*llama .*4096 tokens' "$temp/out" || complain "list lacks tiny_llama.gguf"
(cd "$temp" && HOME=$temp XDG_CACHE_HOME=$temp MOASCOPE_MODELS="" "$build/moascope" model list --json - > "$temp/out" 2> /dev/null) || complain "empty list failed"
[ "$(cat "$temp/out")" = "[]" ] || complain "an empty list is $(cat "$temp/out")"
echo "$n hostile files"
exit $failed
