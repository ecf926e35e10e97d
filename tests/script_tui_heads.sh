#!/usr/bin/env bash
# The heads screen played from scripts against the scripted engine: nothing measured, measured, metrics, marks, search, live edits. $1: the build folder.
# What an edit does to coverage is checked against the plan screen, which takes its figure on another way to the picture.
. "$(dirname "$0")/play_lib.sh" "$1"

play 120x40 "tok_s=0 'name=Tiny' 'shape=4 4 2 8 1000 4096'" --plan uniform:0.9 -n 900 <<'S' || fail "exit code $?: $(cat err)"
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

has_re before.txt "Nothing measured yet: R runs"
has_re before.txt "not measured: R runs dense"
lacks_re before.txt "covers +[0-9]"
has_re need.txt "span that keeps 95 %, tokens"
has_re need.txt "smallest span: 95% at [0-9,]+  99% at [0-9,]+"
has_re lost0.txt "mass cut by the plan"
has_re lost0.txt "\[ *[0-9]+ *\]"
has_re moved.txt "L01 H02  KV group 1 \(H2-3\)"
has_re marked.txt "\* 4 marked"
has_re narrow.txt "128 \+ 0 N = 128"
has_re entropy.txt "entropy, nats"
has_re rule.txt "a 0\+0.9N +b 128\+0N"
has_re found.txt "L0[12] H0[23]"
has_re none.txt "[Nn]o match|[Nn]othing|not found"
has_re map.txt "L00 H00"
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

# a head's map as a picture file: its size is that of the values it says it has
play 120x40 "tok_s=0 'shape=4 4 2 8 1000 4096'" <<'S' || fail "png: exit code $?: $(cat err)"
:sync loaded
:prompt what stood in the ledger, and who wrote it there
R
:sync run
:view map
:go L2.H1
:sync map
:png map.png 3
:dump said.txt
S
python3 - map.png said.txt <<'P' || fail "the picture of a map"
import re, struct, sys, zlib
b = open(sys.argv[1], "rb").read()
assert b[:8] == b"\x89PNG\r\n\x1a\n"
chunks, at = {}, 8
while at < len(b):
    n, kind = struct.unpack_from(">I4s", b, at)
    data = b[at + 8:at + 8 + n]
    assert zlib.crc32(kind + data) == struct.unpack_from(">I", b, at + 8 + n)[0]
    chunks.setdefault(kind, []).append(data)
    at += 12 + n
w, h = struct.unpack_from(">II", chunks[b"IHDR"][0])
text = dict(c.split(b"\0", 1) for c in chunks[b"tEXt"])
down, across = map(int, re.search(rb"(\d+) x (\d+) values", text[b"Axes"]).groups())
assert (w, h) == (3 * across, 3 * down) and b"L02 H01" in text[b"Title"], (w, h, text)
pixels = zlib.decompress(b"".join(chunks[b"IDAT"]))
assert len(pixels) == h * (1 + 3 * w)
assert f"{w} x {h} pixels" in open(sys.argv[2]).read()
P
printf ':sync l\n:view map\n:png none.png\n' | play 80x24 "tok_s=0" && fail "png without a map"
[ -e none.png ] && fail "png without a map left a file"

for mode in 24bit 256 8 never; do
    for size in 60x16 80x24 120x40 200x50; do
        printf ':sync l\n:prompt hello there\nR\n:sync r\n2\n:dump m.txt\n' |
            play $size "tok_s=0 'shape=32 32 8 16 1000 4096'" --color $mode || fail "$size $mode: exit code $?"
        has_re m.txt "L00" && has_re m.txt "128"
        [ "$(wc -L < m.txt)" -le "${size%x*}" ] || fail "$size $mode: wider than the screen"
    done
done
# more heads than cells across: the grid follows the cursor, its title says which heads are shown, a click takes the one that is seen
play 80x24 "tok_s=0 'shape=20 64 8 8 1000 4096'" <<'S' || fail "64 heads: exit code $? $(cat err)"
:sync loaded
2
.9
:dump left.txt
:go L10.H63
:dump right.txt
:go L10.H40
:sync
:mouse click 4 7
:dump clicked.txt
:resize 200x50
:dump all.txt
S
has left.txt "Heads  20 x 64  H00-3" && has right.txt "-63 ─" && lacks left.txt " 60 "
has right.txt " 60" && lacks right.txt " 0   4 "
first=$(grep -oE 'x 64  H[0-9]+' clicked.txt | grep -oE '[0-9]+$')
has clicked.txt "─ L00 H$(printf %02d $((10#$first + 1))) " # the second cell: frame, blank and label take 6
lacks all.txt "64  H"

# the text tinted by one query: its cut is the row's, keys and clicks move the query, what was cut is told apart, t goes back
play 120x40 "tok_s=0 'shape=4 4 2 8 1000 4096'" --prompt "$(seq -s ' the ' 1 150)" -n 40 <<'S' || fail "text: exit code $? $(cat err)"
:sync loaded
R
:sync run
:plan set uniform:0.5
:go L1.H1
3
:sync map
:at 250 10
t
:sync row
:wait 0.2
:dump text.txt
:dump text.names names
h h
:sync left
:dump left.txt
k
:sync up
:dump up.txt
:mouse click 3 3
:sync click
:dump first.txt
:resize 60x16
:sync small
:dump small.txt
:resize 120x40
t
:sync back
:dump back.txt
S
has text.txt "L01 H01  what token 250 looks at"
cut=$(grep -oE 'cuts [0-9.]+%' text.txt | grep -oE '[0-9.]+%')
[ -n "$cut" ] && has_re text.txt "this q .*cut ${cut//./\\.}|Keys of query 250 . cut ${cut//./\\.}"
[ "$cut" != 0.0% ] || fail "a span of half the text cuts nothing of an even head"
has left.txt "what token 248 looks at"
up=$(grep -oE 'what token [0-9]+' up.txt | grep -oE '[0-9]+')
[ "${up:-999}" -lt 248 ] && [ "${up:-0}" -gt 180 ] || fail "a line up from 248 is ${up:-nothing}"
row=$(grep -oE 'what token [0-9]+' first.txt | grep -oE '[0-9]+')
[ "${row:-999}" -lt "${up:-0}" ] || fail "a click on the first line went to ${row:-nothing}"
has small.txt "what token" && has back.txt "mass lift" && lacks back.txt "looks at"

[ $bad = 0 ] && echo "heads: all there"
exit $bad
