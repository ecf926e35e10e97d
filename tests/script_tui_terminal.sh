#!/usr/bin/env bash
# The workbench in a real terminal (tmux): it comes and goes without a trace whatever ends it, stops and comes back, follows every change of
# size, takes pastes as text, and is usable with every TERM, LANG and colour setting. $1: the build folder.
set -u
build=$(cd "$1" && pwd) || exit 1
moascope=$build/moascope fake=$build/fake_engine
[ -x "$moascope" ] && [ -x "$fake" ] || { echo "skipped: moascope or fake_engine is not built"; exit 77; }
command -v tmux > /dev/null || { echo "skipped: no tmux"; exit 77; }
work=$(mktemp -d) || exit 1
sock=moascope-test-$$
t() { tmux -L "$sock" "$@"; }
trap 't kill-server 2>/dev/null; rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state HOME=$work
cp "$fake" "$work/fake_engine"
bad=0
fail() { echo "FAILED: $*"; t capture-pane -p | sed 's/^/    /' | head -30; bad=1; }
cap() { t capture-pane -p; }
wait_for() { local i; for i in $(seq 1 500); do cap | grep -qF -- "$1" && return 0; sleep 0.03; done; fail "never saw: $1 ($2)"; return 1; }
# the shell in the pane: prompt "$ ", and a command that starts the workbench on the scripted engine
shell() { # environment...
  t kill-server 2>/dev/null; sleep 0.1
  t -f /dev/null new-session -d -x 100 -y 30 "env -u NO_COLOR -u COLORTERM PS1='go> ' LC_ALL=C.UTF-8 $* bash --norc --noprofile -i"
  t set -g window-size manual > /dev/null
  wait_for 'go>' shell
}
go() { t send-keys "clear; stty -g > before; $moascope fake --no-restore --no-session --engine '$work/fake_engine tok_s=40 name=Tiny' -n 400 -p hello $*; echo rc=\$?" Enter; }
cd "$work" || exit 1
restored() { # label, expected exit code
  wait_for "rc=$2" "$1" || return
  t send-keys "stty -g > after; echo checked" Enter; wait_for "checked" "$1"; sleep 0.2
  cmp -s before after || fail "$1: terminal settings differ"
  [ "$(t display -p '#{alternate_on}#{cursor_flag}')" = 01 ] || fail "$1: alternate screen or cursor ($(t display -p '#{alternate_on}#{cursor_flag}'))"
}
pid_of() { t list-panes -F '#{pane_pid}' | xargs -I{} pgrep -P {} -x moascope; }

# --- ends: by key, by command, by signals, by a crash --------------------------------------------------------------------------------
shell COLORTERM=truecolor
go; wait_for ready start
[ "$(t display -p '#{alternate_on}')" = 1 ] || fail "no alternate screen"
t capture-pane -p -e | grep -qE $'\e\\[([0-9;]*;)?(38|48);2;' || fail "no 24-bit colours"
t send-keys Q; restored "Q" 0
go; wait_for ready start; t send-keys r; wait_for "tok/s" run; t send-keys : ; t send-keys -l 'quit!'; t send-keys Enter; restored "quit! while running" 0
go; wait_for ready start; t send-keys : ; t send-keys -l 'crash yes'; t send-keys Enter; wait_for "segmentation fault" crash; restored "SIGSEGV" 139
for s in TERM:0 HUP:0 ABRT:134 FPE:136; do
  go; wait_for ready start; kill -"${s%:*}" "$(pid_of)"; restored "SIG${s%:*}" "${s#*:}"
done
go; wait_for ready start; kill -KILL "$(pid_of)"; wait_for "rc=137" kill; t send-keys "reset; clear" Enter; sleep 0.5
for i in $(seq 1 30); do pgrep -f "$work/fake_engine" > /dev/null || break; sleep 0.1; done
pgrep -f "$work/fake_engine" > /dev/null && fail "an engine process was left behind"

# --- Ctrl-Z and fg, with a draft in the prompt; twice quickly too --------------------------------------------------------------------
shell COLORTERM=truecolor
go; wait_for ready start; t send-keys : ; t send-keys -l 'set n 20'; wait_for ":set n 20" draft
for i in 1 2 3 4 5; do
  t send-keys C-z; wait_for "Stopped" "stop $i"
  [ "$(t display -p '#{alternate_on}')" = 0 ] || fail "stopped with the alternate screen"
  t send-keys "clear; fg" Enter; wait_for ":set n 20" "draft after fg $i"
done
t send-keys -l '48'; t send-keys Enter; wait_for "N 2048" "the draft ran"
t send-keys Q; sleep 0.5; t send-keys 'e=$?; clear; echo rc=$e' Enter; restored "after fg" 0 # the shell went on when we were stopped

# --- sizes --------------------------------------------------------------------------------------------------------------------------------
go; wait_for ready start; t send-keys r; wait_for "tok/s" run
for i in $(seq 1 60); do t resize-window -x $((20 + (i * 37) % 180)) -y $((5 + (i * 13) % 50)); sleep 0.02; done
t resize-window -x 50 -y 14; wait_for "needs 60x16" small
t resize-window -x 61 -y 17; wait_for "RUN" small
t resize-window -x 100 -y 30; wait_for "decode" back
for i in $(seq 1 20); do [ "$(cap | grep -c .)" -ge 26 ] && break; sleep 0.1; done
t send-keys Q; restored "after 60 sizes" 0

# --- a paste is text: three lines with a command in the middle run nothing ------------------------------------------------------------------
go; wait_for ready start; t send-keys :
printf 'first\nquit!\nthird' | t load-buffer -
t paste-buffer -p; wait_for ":first quit! third" paste
t send-keys Escape; sleep 0.3; wait_for "ready" "still there"
t send-keys -l '4'; wait_for "PLAN" "keys work after a paste"
t send-keys Q; restored "after a paste" 0

# --- readline: history, Ctrl-R, Alt-b, wide characters; Esc leaves ---------------------------------------------------------------------------
go; wait_for ready start
t send-keys : ; t send-keys -l 'set n 512'; t send-keys Enter; wait_for "N 512" set
t send-keys : Up; wait_for ":set n 512" history; t send-keys Escape; sleep 0.2
t send-keys : C-r; t send-keys -l 'n 5'; wait_for "reverse-i-search" search; t send-keys Enter; sleep 0.3
t send-keys : ; t send-keys -l 'mark 日本'; t send-keys M-b; t send-keys -l x; wait_for ":mark x日本" "wide characters"
t send-keys C-c; sleep 0.2; t send-keys Q; restored "after editing" 0

# --- every terminal, locale and colour setting ----------------------------------------------------------------------------------------------------
for term in xterm-256color xterm screen-256color tmux-256color linux vt100 xterm-mono nonsense dumb; do
  for lang in C.UTF-8 C; do
    for color in "" NO_COLOR=1 COLORTERM=truecolor; do
      shell $color
      t send-keys "export TERM=$term LC_ALL=$lang" Enter
      go
      if [ $term = dumb ]; then wait_for "needs a terminal" dumb; wait_for "rc=3" "dumb"; continue; fi
      wait_for ready "$term $lang $color" || continue
      t send-keys r; wait_for "tok/s" "$term $lang $color run" || continue
      cap | grep -qE '\[[0-9;]+m|\?25|38;2' && fail "$term $lang $color: escape sequences as text"
      if [ $lang = C ]; then cap | LC_ALL=C grep -q '[^ -~]' && fail "$term $lang $color: not ASCII"; fi
      if [ "$color" = NO_COLOR=1 ]; then t capture-pane -p -e | grep -qE $'\e\\[([0-9;]*;)?(3[0-8]|4[0-8]|9[0-7])[;m]' && fail "$term $lang $color: colours"; fi
      t send-keys Q; wait_for "rc=0" "$term $lang $color end"
    done
  done
done
[ $bad = 0 ] && echo "the terminal is always as it was"
exit $bad
