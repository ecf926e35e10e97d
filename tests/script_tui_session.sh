#!/usr/bin/env bash
# What was done survives: the plan with its history, the prompt, the output up to the last half second, after a quit and after kill -9;
# a second window, a store that cannot be written. In a real terminal. $1: the build folder.
. "$(dirname "$0")/tui_lib.sh" "$1"
store=$XDG_STATE_HOME/moascope/sessions.db
first_row() { screen | grep -E "L0?0 H0?0" | grep -E "$1" >/dev/null; }
sees_row() { if until_ 15 first_row "$1"; then ok; else fail "the row of L00 H00 does not show '$1'"; fi; }
long() { cmd 'set n 2048'; } # at a few tokens every span is the least one, and edits of spans change nothing
shown() { "$moa" sessions show ${1:+"$1"} --json - 2>/dev/null; }
number() { shown | python3 -c "import json,sys; d=json.load(sys.stdin); print($1)" 2>/dev/null; } # of the newest session
hold() { [ "$(number "$1")" = "$2" ]; }
holds() { if until_ 10 hold "$1" "$2"; then ok; else fail "the store has $1 = $(number "$1"), not $2"; fi; }
steady_tokens() { [ "$(number 'd["runs"][-1]["n_gen"]')" -ge 20 ] 2>/dev/null; }

# a session: a prompt, five steps (one of them marks), two taken back
fake_script "tok_s 200"
ui_open 100 30
ui_start -n 60
settle
[ -e "$store" ] && [ "$("$moa" sessions list --json - | grep -c '"id"')" != 0 ] && fail "looking around left a session"
long
cmd 'prompt Where is the key?'
keys 4
see 'PLAN'
text '<<'
keys Space
text '<<'
see 'L00 H00|span -64'
keys u u
sees_row ' -128 +1 '
keys r
settle
keys 1
see 'stop: length'
cmd 'prompt Where is the key? And the lock?' # not run
settle
holds 'd["n_edit"]' 5
holds 'd["undo_pos"]' 3
holds 'len(d["runs"])' 1
holds 'd["runs"][0]["kind"] + d["runs"][0]["stop"]' planlength
holds 'd["runs"][0]["n_gen"]' 60
holds '"passkey is 71492" in d["runs"][0]["output"]' True
ui_end

# it comes back: prompt, edits, both ways of the history
ui_start -n 60
see 'Back in session 1'
see '3 edits, 1 run; n starts fresh'
see 'And the lock'
keys 4 # any other key is taken as what it is
see 'PLAN'
unseen 'Back in'
settle
sees_row ' -128 +1 '
keys C-r C-r
sees_row ' -256 +1 '
keys u u u
keys u
sees_row ' -64 +1 '
keys u
sees_row ' 0 +1 '
keys C-r
long
text '{'
sees_row ' -64 +0\.875 '
holds 'd["n_edit"]' 2
cmd 'plan save p.json'
see 'Saved'
text '<'
ui_end
(cd / && "$moa" sessions show 1 | grep -q "plan: $work/p.json") || fail "the plan's file is not kept by its whole path"

# kill -9 in the middle of a run: what was recovered is said
ui_start -n 4000
see 'Back in session 1'
settle
keys 1 r
until_ 10 steady_tokens || fail "no output is stored while it streams"
on_screen=$(screen | grep -oE '[0-9]+ / 4000' | head -1 | cut -d' ' -f1)
kill -KILL "$(ui_pid)"
see 'ended with 137\.'
sh_line 'reset; clear'
until_ 5 is alternate_on 0
kept=$(number 'd["runs"][-1]["n_gen"]')
[ "${kept:-0}" -ge $((${on_screen:-0} - 100 - 100 * (MOA_TEST_SLOW > 1))) ] || fail "$kept tokens were kept of at least $on_screen"
ui_start -n 60
see 'Recovered session 1: 3 edits, 2 runs, [0-9]+ tokens of the last; n starts fresh'
cmd 'view log'
see 'It ended suddenly: recovered session 1'
see 'at most the last half second of output: kept are [0-9]+ tokens'
settle
keys 4
see 'p\.json'
sees_row ' -128 +0\.875 '
keys u
sees_row ' -64 +0\.875 '
holds 'd["runs"][-1]["stop"].split(":")[0]' lost

# a second window meanwhile
other=$socket-b
tmux -L "$other" -f /dev/null new-session -d -s b -x 100 -y 30 "env TERM=screen-256color $moa Fake --engine '$fake'"
second() { tmux -L "$other" capture-pane -p -t b 2>/dev/null | grep -qE "$1"; }
pid=$(ui_pid)
until_ 15 second 'ready'
tmux -L "$other" send-keys -t b 7
until_ 15 second "session \(1\) is open in process $pid" || fail "the second window does not say who has the session"
tmux -L "$other" kill-server
until_ 5 eval '! tmux -L "$other" list-sessions 2>/dev/null'
ui_end

# declined with one key; and by options
ui_start -n 60
see 'Back in session'
keys n
keys 7 # the log keeps what the message line shows only until the next one
see 'fresh session'
keys 4
settle
sees_row ' 0 +1 '
long
screen | grep -q 'And the lock' && fail "the prompt was not forgotten"
text '<'
holds 'd["id"] != 1' True
ui_end
ui_start --no-restore
settle
screen | grep -q 'Back in' && fail "--no-restore restored"
ui_end
ui_start --plan uniform:0.5
settle
screen | grep -q 'Back in' && fail "a named plan did not go first"
ui_end

# nothing is kept with --no-session
before=$("$moa" sessions list --json - | grep -c '"id"')
ui_start --no-session
settle
long
keys 4
text '<<'
settle
ui_end
[ "$("$moa" sessions list --json - | grep -c '"id"')" = "$before" ] || fail "--no-session left a session"

# a damaged edit is left out, with what came after it
python3 - "$store" <<'P' || fail "no store to damage"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("UPDATE edit SET changes=zeroblob(40) WHERE session=1 AND seq=1")
db.execute("UPDATE session SET changed=changed+1000000 WHERE id=1")
db.commit()
P
ui_start -n 60
see 'do not fit its plan and were left out|Back in session 1'
settle
cmd 'view log'
see 'do not fit its plan and were left out'
keys 4
long
text '<'
ui_end

# a store that is no database; a folder that cannot be made; a disk that is full
printf 'this is no database, and longer than one header of a page would be: %0200d' 0 >"$store"
rm -f "$store"-wal "$store"-shm
ui_start -n 60
see 'damaged'
settle
ui_end
ls "$store".damaged-* >/dev/null 2>&1 || fail "the damaged store was not kept"
sh_line "export XDG_STATE_HOME=/dev/null/x"
ui_start -n 60
keys 7
see 'Sessions are not kept'
settle
long
keys 4
text '<'
see '●1'
ui_end
sh_line "export XDG_STATE_HOME=$work/full; trap '' XFSZ; ulimit -f 100; clear"
ui_start --prompt-file "$here/data/prompt_600.txt" -n 400
settle
keys 4 r
settle 60
long
text '<<<<<<<<<<<<'
settle
cmd 'view log'
see 'The work goes on, in memory'
keys 4
sees_row ' -768 +1 '
keys u
sees_row ' -704 +1 '
ui_end
verdict "sessions come back"
