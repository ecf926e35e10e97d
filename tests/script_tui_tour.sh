#!/usr/bin/env bash
# :tour against the scripted engine: it needs a model and room; runs a text when nothing is measured; its figures are the screens' own;
# an edit changes the sentence; Esc leaves. $1: the build folder.
. "$(dirname "$0")/play_lib.sh" "$1"

for size in 80x24 120x40 200x50; do
  play $size "tok_s=0 'name=Tiny' 'shape=6 4 2 8 1000 4096'" -n 400 <<'S' || fail "$size: exit code $?: $(cat err)"
:sync loaded
:tour
:sync measured
:dump 1.txt
2 .1
:dump heads.txt
Enter
:sync map
:dump 2.txt
Enter
:sync map
:dump 3.txt
< < < < < < <
:sync narrow
:dump 3n.txt
Enter
:dump 4.txt
:plan set uniform:0.25
:dump 4n.txt
Enter
:dump 5.txt
Backspace
:dump 4b.txt
Enter Enter
:dump end.txt
u u
:tour
Esc
:dump left.txt
S
  for step in 1:span 2:sink 3:window 4:plan 5:memory; do has_re ${step%:*}.txt "Tour ${step%:*} of 5: .*${step#*:}"; done
  has 1.txt 'one of 24 attention heads'
  has_re 2.txt '3 MAP' && has_re 2.txt 'gives [0-9]+% of its'
  has_re 4.txt '4 PLAN' && has_re 5.txt '6 MEMORY'
  has 4b.txt 'Tour 4 of 5'
  lacks end.txt 'Tour' && has end.txt '6 MEMORY'
  lacks left.txt 'Tour'
  # sentences of several lines, put together
  said() { sed -n '/Tour/,$p' "$1" | tr -d '│╭╮╰╯─\n' | tr -s ' '; }
  before=$(said 3.txt | grep -oE 'span is [0-9]+ now' | grep -oE '[0-9]+') after=$(said 3n.txt | grep -oE 'span is [0-9]+ now' | grep -oE '[0-9]+')
  [ "${after:-0}" = $((${before:-0} - 7 * 64)) ] || fail "$size: seven times < made a span of $before to one of $after"
  [ "$(said 3.txt | grep -oE 'keeps [0-9.]+%')" != "$(said 3n.txt | grep -oE 'keeps [0-9.]+%')" ] || fail "$size: the coverage did not move"
  kv=$(said 4n.txt | grep -oE 'whole plan keeps [0-9.]+ [KM]iB' | grep -oE '[0-9.]+ [KM]iB')
  grep -qE "KV $kv" 4n.txt || fail "$size: the tour says $kv, the status line another figure"
  said 1.txt | grep -qE 'Heads that look near' || fail "$size: nothing was measured"
done
# no model; no room; a prompt of one's own stays
play 80x20 "tok_s=0" <<'S' && fail 'a tour in 20 rows'
:sync loaded
:tour
S
grep -q '60x24' err out || fail "what it needs is not said: $(cat err)"
play 80x24 "tok_s=0 'shape=6 4 2 8 1000 4096'" --prompt 'a prompt of mine' <<'S' || fail "exit code $?"
:sync loaded
:tour
:sync m
:resize 80x20
:dump small.txt
:resize 80x24
:dump large.txt
Esc 1
:dump mine.txt
S
lacks small.txt 'Tour' && has large.txt 'Tour 1 of 5' && has mine.txt 'a prompt of mine'
[ $bad = 0 ] && echo 'script_tui_tour: the five steps at three sizes'
exit $bad
