#!/usr/bin/env bash
# The screen and its engine process, in a real terminal: runs that are cancelled, resized and redrawn; an engine that dies, fails, talks
# nonsense or hangs; a model whose text is hostile; and the real engine on SmolLM2. $1: the build folder.
. "$(dirname "$0")/tui_lib.sh" "$1"
size() { tmux_ resize-window -t t -x "$1" -y "$2"; }
start() { # lines of the fake engine's script
  fake_script "$@"
  ui_start --no-restore -p "'Where is the key?'" -n 400
  settle
}

decoding() { see "B plan +#$1 " && see ' [1-9][0-9]* / 400 tokens'; } # run number; not the picture of the one before

running() { # ^C, sizes and ^L while tokens come
  start "tok_s 50"
  keys r
  see 'tok/s'
  size 60 16
  see 'RUN'
  see 'tok/s'
  size 20 5
  see 'needs 60x16'
  size 80 24
  see 'decode .* tokens'
  printf '\033[9;9HGARBAGE' >"$(fact pane_tty)" # as another program would
  see 'GARBAGE' 2
  keys C-l
  unseen 'GARBAGE'
  see 'tok/s'
  keys C-c
  see 'cancelled'
  keys 4 # and the screen lives
  see 'PLAN'
  unseen 'tok/s +[0-9]+ s left'
  keys 1 r
  decoding 2
  cmd 'stop'
  see 'cancelled'
  settle
  ui_end
}

deaths() {
  start "tok_s 50"
  keys 4
  text '<'
  keys 1 r
  decoding 1
  kill -KILL -- "-$(engine_pid)" # with the shell that it runs under
  see 'engine ended'
  see 'signal 9|Killed'
  see 'passkey' # the output so far is kept
  keys 4
  see ' -64 +1 ' # and so is the edit
  keys 1 r
  see 'Start it again\?'
  keys n
  see 'engine ended'
  cmd 'run' # typed, it is told
  see 'engine restart'
  keys r
  see 'Start it again\?'
  keys y
  see 'ready'
  settle
  keys r
  decoding 2
  cmd 'engine restart' # in the middle of a run
  see 'the engine was stopped'
  settle
  see 'ready'
  keys r
  decoding 3
  keys C-c
  see 'cancelled'
  cmd 'engine stop'
  see 'no engine'
  keys r
  see 'no engine|no model|:engine|:load'
  ui_end
  local case
  for case in "die_after 5 11|signal 11" "exit_after 5 3|exit status 3" "garbage_after 5|not a message" "fail_after 5 E_MEMORY the cache is full|the cache is full" "die_after -1 9|signal 9"; do
    start "tok_s 0" "${case%|*}"
    keys r
    see "${case#*|}"
    keys 4
    see 'PLAN'
    ui_end
  done
  fake_script "load_fail E_MEMORY 80 GiB do not fit"
  ui_start --no-restore
  see '80 GiB do not fit'
  ui_end
  start "tok_s 20" "hang_after 20" # it neither answers nor ends: asked three times, it is killed
  keys r
  see 'decode .* 20 / 400'
  keys C-c
  see 'stopping'
  keys C-c C-c
  see 'End the engine process'
  keys y
  see 'engine ended'
  pgrep -f "^$fake --script $work/fake" >/dev/null && fail "a hung engine was left behind"
  ui_end
}

hostile() { # nothing that could command a terminal gets out, by the raw bytes
  local evil='A\x1b]52;c;ZXZpbA==\x07B\x1b[2J\x1b[31mC\x9b31mD\xc2\x9b1mE\xe2\x80\xaeF\xe2\x81\xa6G\x1bP1$tx\x1b\\H\x07I\x08\x08J\rK\x7fL\xf3\xa0\x81\x81M\x1b[?1049lN \x1b]0;owned\x07O '
  : >"$work/raw"
  tmux_ pipe-pane -t t "cat >$work/raw"
  fake_script "tok_s 0" "answer $evil" $'name Evil\x1b]0;owned\x07\xe2\x80\xae' $'device GPU\x1b[2J'
  ui_start --no-restore -p "'x'" -n 60
  settle
  local k
  for k in r 1 3 5 7; do
    keys $k
    settle
  done
  keys 1
  see '␛'
  ui_end
  tmux_ pipe-pane -t t
  until_ 5 test -s "$work/raw" || fail "no bytes were captured"
  python3 - "$work/raw" <<'P' || fail "hostile bytes reached the terminal"
import re, sys
raw = open(sys.argv[1], "rb").read()
start = raw.find(b"\x1b[?1049h")  # from the alternate screen on: what the shell echoes before is the test's own
raw = raw[start:]
bad = [b"\x1b]", b"\x1bP", b"\x9b31", b"\xc2\x9b", "\u202e".encode(), "\u2066".encode(), "\U000e0041".encode(), b"\x7f", b"ZXZpbA==\x07"]
found = [b for b in bad if b in raw]
if start < 0 or len(raw) < 2000 or raw.count(b"\x1b[?1049l") != 1 or raw.count(b"\x07") or found:
    sys.exit("start %d, %d bytes, %d ends, %d bells, found %r" % (start, len(raw), raw.count(b"\x1b[?1049l"), raw.count(b"\x07"), found))
# the title of the window is the shell's
P
  ok
}

real() { # the whole way, with a model: fewer keys, the same screens
  local model=${MOA_TEST_MODEL:-$HOME/.cache/moascope/models/SmolLM2-135M-Instruct-Q4_1.gguf}
  if [ ! -f "$model" ]; then
    echo "not tested: the real engine, $model is not there"
    return
  fi
  sh_line "clear; $moa '$model' --device cpu --no-restore --prompt-file '$here/data/prompt_600.txt' -n 12; echo \"ended with \$?.\""
  see '1 *(RUN|Run)' 20
  see 'loading|ready' 60
  settle 60
  see 'ready'
  keys R
  see 'prefill' 60
  settle 120
  see 'stop: (length|end)' 60
  local full
  full=$(screen | grep -oE '#1')
  [ -n "$full" ] || fail "no run #1"
  keys 4
  see 'PLAN'
  cmd 'set-rule * w=256'
  see 'KV .* 0\.[0-9]+×'
  keys 1 r
  settle 120
  see '#2'
  keys c
  settle 120
  keys 5
  settle 60
  see 'perplexity'
  keys 3
  settle 60
  see 'MAP'
  keys 1 R
  see 'prefill +[0-9]+%|prefill' 60
  kill -KILL "$(engine_pid)"
  see 'engine ended' 30
  cmd 'engine restart'
  settle 60
  see 'ready'
  cmd 'quit!'
  see 'ended with 0\.'
  terminal_is_back
  echo "tested: the real engine on $(basename "$model")"
}

ui_open 80 24
if [ "$sanitized" = thread ]; then
  echo "not tested: cancelling, dead engines, hostile text under the thread sanitizer: the screen starts no thread in them"
  MOA_TEST_MODEL=$here/data/tiny_llama.gguf real
  verdict "the real engine"
fi
running
deaths
hostile
real
verdict "cancelling, sizes, dead engines, hostile text"
