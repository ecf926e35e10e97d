#!/usr/bin/env bash
# moascope tokenize: round trips through its own output, what is lost is said, exit codes. $1: the build folder.
set -u
here=$(cd "$(dirname "$0")" && pwd)
moa=$1/moascope
model=$here/data/tiny_llama.gguf
[ -x "$moa" ] || { echo "skipped: $moa was not built"; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
bad=0
fail() { echo "FAIL: $*"; bad=1; }
expect() { # exit code, what stderr says, command...
  local code=$1 says=$2 rc; shift 2
  "$@" >"$work/out" 2>"$work/err" </dev/null; rc=$?
  [ $rc = "$code" ] || fail "exit $rc, expected $code: $*"
  [ -z "$says" ] || grep -qF -- "$says" "$work/err" || fail "'$(cat "$work/err")' does not say '$says'"
  [ "$code" = 0 ] || [ "$(wc -l <"$work/err")" = 1 ] || fail "not one line: $(cat "$work/err")"
}

printf 'The quick brown fox\n\tjumps \\ over 12345 dogs. caf\xc3\xa9 \xe4\xbd\x9c\xf0\x9f\x98\x80 \x1b[2J <|im_end|>\n' >"$work/text"
for how in "" --ids; do
  "$moa" tokenize "$model" $how <"$work/text" >"$work/tokens" || fail "tokenize $how"
  "$moa" tokenize "$model" --detokenize <"$work/tokens" >"$work/back" || fail "detokenize $how"
  cmp "$work/text" "$work/back" || fail "round trip $how"
done
"$moa" tokenize "$model" <"$work/text" | LC_ALL=C grep -q "$(printf '\033')" && fail "an escape byte reached the output"
"$moa" tokenize "$model" -p hello --json - | python3 -c '
import json, sys
o = json.load(sys.stdin)
assert o["n_bytes"] == 5 and o["n_tokens"] == len(o["ids"]) == len(o["tokens"])
assert bytes.fromhex("".join(t["hex"] for t in o["tokens"])) == b"hello"' || fail "--json"
printf 'a\xffb' | "$moa" tokenize "$model" 2>"$work/err" >/dev/null || fail "invalid UTF-8"
grep -q '1 places of invalid UTF-8' "$work/err" || fail "the loss is not said"
printf '' | "$moa" tokenize "$model" --ids | grep -qx '\[\]' || fail "no text, no ids"

expect 2 "needs a MODEL" env -u MOASCOPE_MODEL "$moa" tokenize
expect 2 "one word too many" "$moa" tokenize "$model" more
expect 2 "two inputs" "$moa" tokenize "$model" -p a --prompt-file b
expect 2 "--system belongs to --chat" "$moa" tokenize "$model" -p a --system b
expect 3 "not a GGUF file" "$moa" tokenize "$here/script_tokenize.sh" -p a
expect 3 "/dev/zero" "$moa" tokenize "$model" --prompt-file /dev/zero
expect 3 "is not among the model's" "$moa" tokenize "$model" --detokenize -p "1 99999999"
expect 3 "is not a token id" "$moa" tokenize "$model" --detokenize -p "[1, -2]"
expect 3 "is not a token id" "$moa" tokenize "$model" --detokenize -p "12345678901234567890"
expect 0 "" "$moa" tokenize "$model" --detokenize -p "[ 1,2 ,3]"
[ $bad = 0 ] && echo "tokenize: round trips, losses and refusals as written"
exit $bad
