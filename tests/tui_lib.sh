# tui_lib.sh -- the real program in a real terminal (tmux), for script_tui_*.sh: `. tui_lib.sh BUILD`.
#
#   ui_open 80 24              a shell in a terminal of that size, on a tmux server of our own
#   ui_start ARGS...           types the workbench's command line into it and waits for the first picture
#   keys Down C-r; text 'x'    what is pressed, as tmux names keys; what is typed, letter by letter
#   cmd 'set gen 9'            :set gen 9 and Enter
#   settle                     waits until the engine is idle, by `:sync TOKEN`
#   see/unseen REGEX [LIMIT]   waits until the screen shows it (no longer shows it); fails with the screen
#   screen                     the screen as text
#
# Nothing sleeps for a fixed time: everything polls for what must come, up to a limit that MOA_TEST_SLOW multiplies. Sanitized builds are
# recognised and set it. State folders are of the test alone.
set -u
build=$(cd "$1" && pwd) || exit 1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
moa=$build/moascope
fake=$build/fake_engine
name=$(basename "$0" .sh)
command -v tmux >/dev/null || { echo "skipped: there is no tmux"; exit 77; }
[ -x "$moa" ] && [ -x "$fake" ] || { echo "skipped: $moa or fake_engine was not built"; exit 77; }
work=$(mktemp -d) || exit 1
socket=moa-test-$$-0
bad=0
n_check=0
tmux_() { tmux -L "$socket" -f /dev/null "$@"; }
cleanup() {
  tmux_ kill-server 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
if [ -z "${MOA_TEST_SLOW:-}" ]; then
  MOA_TEST_SLOW=1
  grep -qE '^MOA_SANITIZE:[A-Z]*=.+' "$build/CMakeCache.txt" 2>/dev/null && MOA_TEST_SLOW=6
fi
sanitized=$(grep -oE '^MOA_SANITIZE:[A-Z]*=.+' "$build/CMakeCache.txt" 2>/dev/null | cut -d= -f2)
export XDG_STATE_HOME=$work/state XDG_CONFIG_HOME=$work/config ASAN_OPTIONS="detect_leaks=1:handle_segv=0:handle_abort=0:log_path=$work/asan"
export LSAN_OPTIONS="suppressions=$here/sanitizers/lsan.supp:print_suppressions=0" UBSAN_OPTIONS="print_stacktrace=1:log_path=$work/asan" TSAN_OPTIONS="suppressions=$here/sanitizers/tsan.supp:handle_segv=0:log_path=$work/asan"
export EDITOR=true VISUAL=true LC_ALL=C.UTF-8
export TMUX_TMPDIR=$work # its sockets go with the folder
unset NO_COLOR COLORTERM MOASCOPE_MODEL MOASCOPE_ENGINE LLAMA_ARG_MODEL TMUX LINES COLUMNS

fail() { # what; the screen
  echo "FAIL ($name): $*"
  bad=$((bad + 1))
  [ $bad -gt 4 ] && return
  echo "  --- the screen:"
  screen | sed 's/^/  | /'
}
ok() { n_check=$((n_check + 1)); }

# polls COMMAND until it succeeds, at most LIMIT seconds (times MOA_TEST_SLOW)
until_() { # limit command...
  local limit=$1 end; shift
  end=$((SECONDS + limit * MOA_TEST_SLOW + 1))
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.03
  done
}
screen() { tmux_ capture-pane -p -t t 2>/dev/null; }
shows() { screen | grep -qE -- "$1"; }
hides() { ! shows "$1"; }
see() { if until_ "${2:-15}" shows "$1"; then ok; else fail "'$1' did not come"; return 1; fi; }
unseen() { if until_ "${2:-15}" hides "$1"; then ok; else fail "'$1' did not go away"; return 1; fi; }
keys() { tmux_ send-keys -t t "$@"; }
text() { tmux_ send-keys -t t -l -- "$1"; }
cmd() { text ":$1"; keys Enter; }
n_sync=0
settle() { # [limit]
  n_sync=$((n_sync + 1))
  cmd "sync tok${n_sync}."
  see "(^|[^c]) tok${n_sync}\\." "${1:-20}" # in the tab line, not in the command
}
fact() { tmux_ display-message -p -t t "#{$1}"; } # alternate_on, cursor_flag, pane_dead ...
is() { [ "$(fact "$1")" = "$2" ]; }

# a terminal with a shell in it; its prompt is SH>
ui_open() { # columns rows [TERM]
  tmux_ kill-server 2>/dev/null
  n_open=$((${n_open:-0} + 1))
  socket=moa-test-$$-$n_open # a server on its way out would take a new one with it
  tmux_ new-session -d -s t -x "$1" -y "$2" "env PS1='SH> ' PS2='' PROMPT_COMMAND= TERM=${3:-screen-256color} bash --norc --noprofile -i" || { echo "FAIL: tmux does not start"; exit 1; }
  tmux_ set-option -g history-limit 5000 \; set-option -g status off \; resize-window -t t -x "$1" -y "$2"
  see 'SH>' || exit 1
  text "cd $work; set +m; set -m; clear"
  keys Enter
  until_ 5 shows '^SH> *$' || fail "the shell does not answer"
}
# types a line into the shell
sh_line() { text "$1"; keys Enter; }
# the command line of the workbench with the fake engine; more options, and lines of its script in $FAKE
fake_line() { echo "$moa Fake --engine '$fake --script $work/fake' $*; echo \"ended with \$?.\""; }
fake_script() { printf '%s\n' "$@" >"$work/fake"; }
ui_start() {
  [ -e "$work/fake" ] || : >"$work/fake"
  sh_line "clear; $(fake_line "$@")"
  see '1 *(RUN|Run)' 20
}
ui_end() { # quits without asking; the shell is back, the program ended with 0
  cmd 'quit!'
  see 'ended with 0\.'
  terminal_is_back
}
terminal_is_back() {
  if until_ 5 is alternate_on 0 && until_ 5 is cursor_flag 1; then ok; else fail "alternate screen $(fact alternate_on), cursor $(fact cursor_flag)"; fi
}
ui_pid() { pgrep -n -P "$(fact pane_pid)" -f "$moa Fake" || pgrep -n -P "$(fact pane_pid)" moascope; }
engine_pid() { pgrep -n -P "$(ui_pid)"; }

# what sanitizers found, also in processes that went away long ago
verdict() {
  local f
  for f in "$work"/asan*; do [ -e "$f" ] && { echo "FAIL ($name): a sanitizer spoke:"; head -60 "$f"; bad=99; break; }; done
  [ $bad = 0 ] && echo "$name: $n_check checks, $*"
  [ $bad = 0 ]
  exit $?
}
