# play_lib.sh -- the workbench played from scripts without a terminal: `. play_lib.sh BUILD` in script_tui_*.sh.
#
#   play SIZE "engine options" ARGS... < script     the workbench on the scripted engine, no terminal; stdout and stderr go to out and err
#   has FILE TEXT, lacks FILE TEXT                  a dump holds the text, or not;  has_re, lacks_re: a regular expression
#   fail WORDS                                      says so and sets bad; end with `exit $bad`
#
# The working folder is a new one, and so is the state folder; both go at the end.
set -u
build=$(cd "$1" && pwd) || exit 1
moascope=$build/moascope fake=$build/fake_engine
[ -x "$moascope" ] && [ -x "$fake" ] || { echo "skipped: moascope or fake_engine is not built"; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state HOME=$work LC_ALL=C.UTF-8
unset NO_COLOR COLORTERM
cd "$work" || exit 1
bad=0
fail() { echo "FAILED: $*"; bad=1; }
play() { local size=$1 engine=$2; shift 2; cat > script; timeout 240 "$moascope" fake --no-restore --engine "$fake $engine" --size "$size" --script script "$@" > out 2> err; }
has() { grep -qF -- "$2" "$1" || fail "$1 lacks: $2"; }
lacks() { ! grep -qF -- "$2" "$1" || fail "$1 has: $2"; }
has_re() { grep -qE -- "$2" "$1" || fail "$1 lacks: $2"; }
lacks_re() { ! grep -qE -- "$2" "$1" || fail "$1 has: $2"; }
