#!/usr/bin/env bash
# The heads screen played from scripts against the scripted engine: nothing measured, measured, metrics, marks, search, live edits. $1: the build folder.
# What an edit does to coverage is checked against the plan screen, which takes its figure on another way to the picture.
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
has() { grep -qE -- "$2" "$1" || fail "$1 lacks: $2"; }
lacks() { ! grep -qE -- "$2" "$1" || fail "$1 has: $2"; }

cat > script <<'S'
:sync loaded
2
:dump before.txt
:prompt what stood in the ledger, and who wrote it there
R
:sync run
:view heads
:dump need.txt
.2
:dump lost0.txt
l l j
:dump moved.txt
v l j v
:dump marked.txt
:set-rule @marked w=128
:dump narrow.txt
.4
:dump entropy.txt
.9
:dump rule.txt
/ "span<200" Enter
:dump found.txt
/ "cover>1000" Enter
:dump none.txt
gg 0
> >
:dump wide.txt
u u
Enter
:sync map
:dump map.txt
4
:dump plan.txt
:plan save edited.json
S
timeout 60 "$moascope" fake --no-restore --engine "$fake tok_s=0 'name=Tiny' 'shape=4 4 2 8 1000 4096'" --size 120x40 --script script \
    --plan uniform:0.9 -n 900 2> err || fail "exit code $?: $(cat err)"

has before.txt "Nothing measured yet: R runs"
has before.txt "not measured: R runs dense"
lacks before.txt "covers +[0-9]"
has need.txt "span that keeps 95 %, tokens"
has need.txt "smallest span: 95% at [0-9,]+  99% at [0-9,]+"
has lost0.txt "mass cut by the plan"
has lost0.txt "\[ *[0-9]+ *\]"
has moved.txt "L01 H02  KV group 1 \(H2-3\)"
has marked.txt "\* 4 marked"
has narrow.txt "128 \+ 0 N = 128"
has entropy.txt "entropy, nats"
has rule.txt "a 0\+0.9N +b 128\+0N"
has found.txt "L0[12] H0[23]"
has none.txt "[Nn]o match|[Nn]othing|not found"
has map.txt "L00 H00"
# the four marked heads of the rectangle, and nobody else, have the rule
python3 - <<'P' || fail "the saved plan"
import json
p = json.load(open("edited.json"))
got = {(l, h) for l in range(4) for h in range(4) if p["alphas"][l][h] == 128 and p["betas"][l][h] == 0}
assert got == {(1, 2), (1, 3), (2, 2), (2, 3)}, got
P
# the inspector's coverage of L02 H03 is the plan table's
a=$(sed -nE 's/.*covers +([0-9.]+%) of the mass.*/\1/p' narrow.txt) b=$(sed -nE 's/.*L02 H03 +128 +0 +128 +([0-9.]+%).*/\1/p' plan.txt)
[ -n "$a" ] && [ "$a" = "$b" ] || fail "coverage of L02 H03: heads '$a', plan '$b'"

for mode in 24bit 256 8 never; do
    for size in 60x16 80x24 120x40 200x50; do
        printf ':sync l\n:prompt hello there\nR\n:sync r\n2\n:dump m.txt\n' > script
        timeout 60 "$moascope" fake --no-restore --engine "$fake tok_s=0 'shape=32 32 8 16 1000 4096'" --size $size --color $mode --script script 2> err || fail "$size $mode: exit code $?"
        has m.txt "L00" && has m.txt "128"
        [ "$(wc -L < m.txt)" -le "${size%x*}" ] || fail "$size $mode: wider than the screen"
    done
done
[ $bad = 0 ] && echo "heads: all there"
exit $bad
