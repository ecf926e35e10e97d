#!/usr/bin/env bash
# The mouse in a real terminal: clicks on tabs, heads, rows, the map, popups and the footer; twice is Enter; the wheel; broken reports; off
# means that the terminal is told so; and it is told so at the end, too. $1: the build folder.
. "$(dirname "$0")/tui_lib.sh" "$1"

report() { text "$(printf '\033[<%d;%d;%d%s' "$1" $(($3 + 1)) $(($2 + 1)) "${4:-M}")"; } # button row column [m]
click() { report 0 "$@"; report 0 "$1" "$2" m; }
at() { see "(group lock)? +$1 *\$"; } # the head on the right of the tabs
calm() { settle; cmd sync; } # the token would stand where the head is told

fake_script 'tok_s 0' 'shape 8 4 2 8 1000 4096'
ui_open 120 40
ui_start --no-restore --no-session --prompt "'what stood in the ledger, and who wrote it there'" -n 700
see ready
until_ 5 is mouse_standard_flag 1 && until_ 5 is mouse_sgr_flag 1 && ok || fail 'the terminal was not asked for the mouse'
keys R
calm
click 1 11 && see '2 HEADS' # the tab
cmd 'metric entropy'
cmd 'go L00.H00' && at 'L00 H00'
column=$(screen | awk 'NR == 4 {print match($0, / 2 /)}') # of head 2's number
row=$(screen | grep -n '^│ L05 ' | cut -d: -f1)
click $((row - 1)) "$column" && at 'L05 H02'
click $((row - 1)) "$column" && see '3 MAP' # the same cell again
calm
see 'mass lift'
report 64 15 40 && see 'zoom 1/'
report 65 15 40 && see 'zoom 0/'
click 20 20 && see 'k [0-9]+' && before=$(screen | grep -oE '│ q [0-9]+' | head -1)
click 12 20
until_ 5 eval '[ "$(screen | grep -oE "│ q [0-9]+" | head -1)" != "$before" ]' && ok || fail "the cursor stayed at $before"
# rows of the plan's table
keys 4
see '4 PLAN'
row=$(screen | grep -n 'L01 H03' | head -1 | cut -d: -f1)
click $((row - 1)) 20 && at 'L01 H03'
report 65 $((row - 1)) 20 && at 'L02 H02' # three rows on
report 64 $((row - 1)) 20 && at 'L01 H03'
# a word of the footer, rows of a popup; what lies below is not clicked
column=$(screen | tail -1 | awk '{print index($0, "? help")}')
click 39 $((column)) && see 'Keys and commands: Plan'
click 1 11 && see '4 PLAN'
text q && unseen 'Keys and commands'
# a token of the output
keys 1
see '1 RUN'
row=$(screen | grep -n 'A full attention' | head -1 | cut -d: -f1)
click "$row" 3 && see 'Token [0-6][0-9]* of 700'
# reports of nonsense and halves of reports are no keys; nothing is typed by them
text "$(printf '\033[<')" && text '99999999999999999999999999;1' && text 'M' && report 0 500 500 && report 35 3 3 && report 66 3 3 && text "$(printf '\033[<0;0;0M')"
calm
see '1 RUN'
# a line that is typed is not lost by a click
text ':go L03' && click 1 11 && text '.H01' && keys Enter && at 'L03 H01' && see '1 RUN'
# off: the terminal's own
cmd 'set mouse off'
until_ 5 is mouse_any_flag 0 && ok || fail 'the mouse is still asked for'
cmd 'set mouse on'
until_ 5 is mouse_any_flag 1 && ok || fail 'the mouse is not asked for again'
cmd 'set mouse perhaps' && see 'on or off'
keys C-z
see 'Stopped|SH>'
until_ 5 is mouse_any_flag 0 && ok || fail 'suspended, and the mouse is still asked for'
sh_line fg
see '1 RUN'
until_ 5 is mouse_any_flag 1 && ok || fail 'back, and without the mouse'
cmd 'quit!' # the shell's line with "ended" is gone with C-z
until_ 5 is alternate_on 0
is mouse_any_flag 0 && ok || fail 'after the end the terminal still reports the mouse'
sh_line "clear; $(fake_line --mouse maybe)"
see 'on or off' && see 'ended with 2\.'
sh_line "clear; $(fake_line --mouse off --no-restore --no-session)"
see '1 *RUN' && see ready
is mouse_any_flag 0 && ok || fail '--mouse off, and it is asked for'
ui_end
sh_line "clear; $(fake_line --no-restore --no-session)"
see '1 *RUN' && see ready
until_ 5 is mouse_any_flag 1 && ok || fail 'not asked for after --mouse off'
cmd 'crash yes' # whatever ends it
see 'segmentation'
is mouse_any_flag 0 && ok || fail 'after a crash the terminal still reports the mouse'
verdict 'clicks, wheel, broken reports, on and off'
