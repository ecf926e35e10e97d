# batch_lib.sh -- the frame of tests that run subcommands: `. batch_lib.sh BUILD` in script_*.sh.
#
#   expect CODE command...   runs it without input, output to $temp/out and $temp/err
#   says TEXT                stderr of the last one holds the text
#   check FILE EXPRESSION    python, with j = the JSON of the file
#   complain WORDS           says so and sets failed; end with `exit $failed`
#
# $source, $build, $moascope; $threads_only: not empty under the thread sanitizer, where one way through each kind of threads is enough; $temp goes at the end. The user's own settings and session store are out of reach.
set -u
build=$1
source=$(cd "$(dirname "$0")/.." && pwd)
moascope=$build/moascope
[ -x "$moascope" ] || { echo "skipped: $moascope is not built"; exit 77; }
command -v python3 > /dev/null || { echo "skipped: no python3 to read the results with"; exit 77; }
threads_only=$(grep -E '^MOA_SANITIZE:[A-Z]*=.*thread' "$build/CMakeCache.txt" 2> /dev/null)
temp=$(mktemp -d) || exit 1
trap 'rm -r "$temp"' EXIT
unset MOASCOPE_MODEL MOASCOPE_DEVICE MOASCOPE_THREADS LLAMA_ARG_MODEL LLAMA_ARG_DEVICE LLAMA_ARG_THREADS
export XDG_STATE_HOME=$temp/state
failed=0
complain() { echo "FAILED: $*"; failed=1; }
expect() {
    local want=$1 code; shift
    "$@" > "$temp/out" 2> "$temp/err" < /dev/null
    code=$?
    [ $code -eq "$want" ] || { complain "exit code $code, expected $want: $*"; cat "$temp/err"; }
}
says() { grep -qF -- "$1" "$temp/err" || { complain "stderr does not say '$1':"; cat "$temp/err"; }; }
check() { python3 -c 'import json,sys; j=json.load(open(sys.argv[1])); sys.exit(0 if eval(sys.argv[2]) else 1)' "$1" "$2" || complain "$1: not $2"; }
