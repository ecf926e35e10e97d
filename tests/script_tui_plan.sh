#!/usr/bin/env bash
# The plan's table filtered: the rows shown are those of the whole table whose figures fit, edits of @shown change these and no others, and the
# cursor is on a row that is seen. $1: the build folder.
. "$(dirname "$0")/play_lib.sh" "$1"
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
play 200x50 "tok_s=0 'name=Tiny' 'shape=4 8 4 8 1000 4096'" --plan uniform:0.3 -n 900 <<'S' || fail "exit code $?: $(cat err)"
:sync loaded
:prompt what stood in the ledger, and who wrote it there
R
:sync run
:set-rule L1.* w=256
:set-rule L2.H0-3 w=512
:view plan
:dump all.txt
:filter cover<99.9 && span<=300
:dump cover.txt
:filter class!=local L2
:dump class.txt
:filter !L00 !H7 !span=256
:dump not.txt
:go L0.H0
:filter span=512
:dump moved.txt
:view heads
:dump at.txt
:view plan
:set-rule @shown w=640
:dump edited.txt
:filter
:dump back.txt
:set-rule @shown w=128
:dump every.txt
:filter nothing-like-this
:dump none.txt
:filter
f
L03
Enter
:dump typed.txt
S
python3 - <<'P' || fail "the rows that are shown"
import re
def rows(name): # (layer, head): (span, cover or None, class), and the head under the cursor
    out = {}
    for line in open(name):
        m = re.match(r"│..L(\d\d) H(\d\d) +\S+ +\S+ +([\d,]+) +([\d.]+%|-) +\S+ +(?:\S+ \S?i?B|-) +(\S+)", line)
        if m: out[int(m[1]), int(m[2])] = (int(m[3].replace(",", "")), None if m[4] == "-" else float(m[4][:-1]), m[5])
    return out
whole = rows("all.txt")
assert len(whole) == 32 and {s for s, _, _ in whole.values()} >= {256, 512}, whole
assert len({c for _, _, c in whole.values()}) > 1 and any(c is not None and c < 99.9 for _, c, _ in whole.values()), whole
def expect(name, keep):
    want = {k: v for k, v in whole.items() if keep(k, v)}
    assert want and len(want) < 32, (name, want)
    got = rows(name)
    assert got == want, (name, sorted(got), sorted(want))
    assert "%d of 32 heads" % len(want) in open(name).read(), name
expect("cover.txt", lambda k, v: v[1] is not None and v[1] < 99.9 and v[0] <= 300)
expect("class.txt", lambda k, v: v[2] != "local" and k[0] == 2)
expect("not.txt", lambda k, v: k[0] != 0 and k[1] != 7 and v[0] != 256)
expect("moved.txt", lambda k, v: v[0] == 512)
five = [k for k, v in whole.items() if v[0] == 512]
back = rows("back.txt")
assert all((back[k][0] == 640) == (k in five) and (k in five or back[k] == whole[k]) for k in whole), back
assert rows("edited.txt") == {} # none of them has 512 any more
assert len(back) == 32 and all(v[0] == 128 for v in rows("every.txt").values())
assert sorted(rows("typed.txt")) == [(3, h) for h in range(8)]
P
has none.txt "No head fits"
has_re at.txt "─ L02 H00  KV group" # where the cursor went
[ $bad = 0 ] && echo "the plan's filter: ok"
exit $bad
