#!/usr/bin/env bash
# The workbench at work, in three sizes of terminal: first picture before the model, runs, comparing, edits and what they change on
# the screen, undo, files, completion, search, help on each screen. $1: the build folder.
. "$(dirname "$0")/tui_lib.sh" "$1"
prompt=$here/data/prompt_600.txt
row() { screen | grep -E "L0?0 H0?0" | grep -E "$1" >/dev/null; } # the first head's row of the plan screen
sees_row() { if until_ 15 row "$1"; then ok; else fail "the row of L00 H00 does not show '$1'"; fi; }

first_picture() {
  fake_script "load_ms 700"
  ui_start --prompt-file "$prompt" --no-restore
  see 'loading|starting' 5 # the picture is there, the model is not
  shows 'Where does the spare key' || fail "the prompt is not shown while the model loads"
  settle
  see 'ready' && see 'Fake 135M: 30 layers of 9 heads'
  see '477 tokens'
  ui_end
}

runs() {
  keys R
  see 'stop: length|length'
  settle
  see '#1'
  keys r
  settle
  see '#2'
  keys c
  settle
  see '#3|KL'
  keys 5 # compare
  settle
  see 'COMPARE'
  see 'KL\(A \|\| plan\)'
}

edits() {
  keys 4
  see 'PLAN'
  sees_row ' 0 +1 +576 +100\.0%'
  text '<<<<' # 256 narrower
  sees_row ' -256 +1 +320 +[0-9]+\.[0-9]%'
  row ' 320 +100\.0%' && fail "the coverage did not change"
  see '●4'
  text '{{'
  sees_row ' -256 +0\.75 +192'
  text '}'
  sees_row ' -256 +0\.875 +256'
  text '>'
  sees_row ' -192 +0\.875 +320'
  keys u u
  sees_row ' -256 +0\.75 +192'
  keys C-r
  sees_row ' -256 +0\.875 +256'
  see 'KV 12\.7 MiB 1\.00×' # not the widest of its group: costs what it did
  cmd 'set-rule * w=128'
  see 'KV 4\.22 MiB 0\.33×'
  keys u
  see 'KV 12\.7 MiB 1\.00×'
  keys U
  see 'Undo list'
  keys g Enter
  sees_row ' 0 +1 +576 +100\.0%'
  keys U G Enter
  see 'KV 4\.22 MiB 0\.33×'
  keys u
}

files() {
  rm -f "$work"/a.json*
  cmd "plan save a.json"
  see 'Saved'
  [ -s "$work/a.json" ] || fail "a.json was not written"
  "$moa" plan check "$work/a.json" >/dev/null 2>&1 || fail "a.json does not pass plan check"
  unseen '●'
  text '<'
  see '●1'
  keys D
  see '1 head differs'
  keys q
  cmd 'plan reload'
  see 'lose the edits'
  keys n
  unseen 'lose the edits'
  see '●1'
  cmd 'plan reload'
  see 'lose the edits'
  keys y
  unseen '●'
  printf ' ' >>"$work/a.json" # another hand
  text '<'
  keys W
  see 'changed on disk'
  cmd 'plan save!'
  see 'Saved'
  [ -e "$work/a.json~" ] || fail "no a.json~ was kept"
  cmd 'plan save a.json'
  see 'Saved'
}

prompts() {
  text ':plan sa'
  keys Tab
  see ':plan save'
  keys Tab
  see 'save!'
  keys C-c
  unseen ':plan save'
  text ':vi'
  keys Tab
  see ':view'
  keys C-c
  cmd 'nonsense'
  see 'nonsense'
  keys / 
  text 'L05 H03'
  keys Enter
  see '1 match'
  see 'L05 H03'
  keys / 
  text 'no such head'
  keys Enter
  see 'Not found'
  keys C-p
  see 'Commands'
  text 'undo list'
  see 'undo-list'
  keys Escape
  unseen 'type to narrow'
}

helps() {
  local k
  for k in 1 2 3 4 5 6 7; do
    keys $k ?
    see 'Keys and commands' || return
    see 'Enter runs the row'
    keys q
    unseen 'Keys and commands'
  done
}

for size in "80 24" "120 40" "200 50"; do
  # shellcheck disable=SC2086
  ui_open $size
  [ "$size" = "80 24" ] && first_picture
  fake_script "tok_s 0" "prefill_tok_s 0"
  ui_start --prompt-file "$prompt" -n 40 --no-restore
  settle
  runs
  edits
  files
  prompts
  helps
  ui_end
done
: >"$work/fake"
paint=$("$here/first_paint.py" $((MOA_TEST_SLOW > 1 ? 3 : 9)) Prompt env TERM=screen-256color "$moa" Fake --engine "$fake load_ms=3000" --no-session) || fail "first_paint.py: $paint"
answer=$("$here/key_answer.py" 6 $((50 * MOA_TEST_SLOW)) env TERM=screen-256color "$moa" Fake --engine "$fake tok_s=40 'shape=30 9 3 64 1000 8192'" --no-session --no-restore \
  -n 4000 --prompt 'what stood in the ledger') || fail "key_answer.py: $answer"
verdict "three sizes; $paint; $answer"
