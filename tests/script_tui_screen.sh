#!/usr/bin/env bash
# The workbench played from scripts against the scripted engine: no terminal, every size and colour mode, failures of the engine,
# plans on disk, hostile names. $1: the build folder.
. "$(dirname "$0")/play_lib.sh" "$1"

# --- a session: load, run, compare, edit, save ------------------------------------------------------------------------------
play 120x40 "tok_s=0 'name=Tiny' 'shape=4 4 2 8 1000 4096'" --plan uniform:0.5 -n 40 <<'S' || fail "session: exit code $?"
:sync loaded
:dump loaded.txt
:prompt what stood in the ledger?
R
:sync a
r
:sync b
c
:sync c
:dump run.txt
4
:dump plan.txt
j Space j Space > > w "1024" Enter
:dump edited.txt
:plan save first.json
:set-rule L0.* full
:plan save
u
:dump undone.txt
:plan save first.json
5
:sync compare
Enter
:sync blame
:dump compare.txt
7
:dump log.txt
?
:dump help.txt
Esc C-p "undo" 
:dump palette.txt
Esc U
:dump undolist.txt
S
has loaded.txt "Tiny"; has loaded.txt "ready"; has loaded.txt "uniform:0.5"; has loaded.txt "loaded"
has run.txt "A full attention"; has run.txt "B plan"; has run.txt "what stood in the ledger?"; has run.txt "40 / 40 tokens"; has run.txt "Token 40 of 40"
has plan.txt "4 layers x 4 heads"; has plan.txt "KV plan"; has plan.txt "L03 H03"
[ "$(grep -c '│\* L00 H0[12]' edited.txt)" = 2 ] || fail "two marked rows"
[ "$(grep -cE '│\* L00 H0[12]   1,024      0 ' edited.txt)" = 2 ] || fail "w sets the span of the marked heads"
has undone.txt "Undone: L0.* full"
has compare.txt "KL(A || plan)"; has compare.txt "What it costs"; has compare.txt "Blame  query"; has compare.txt "first choice agrees"
has log.txt "Run #3 (plan on A's tokens)"; has log.txt "Saved 'first.json'"
has help.txt "oldest line kept"; has help.txt "take back the last edit"; has palette.txt "> undo"; has undolist.txt "Undo list"
grep -q '"format"' first.json && python3 - <<'P' || fail "the saved plan"
import json
p = json.load(open("first.json"))
assert len(p["alphas"]) == 4 and all(len(r) == 4 for r in p["alphas"]), p
assert p["alphas"][0][1] == 1024 and p["betas"][0][1] == 0 and p["betas"][1][0] == 0.5, p
assert p["model"], p
P

# --- every view at every size class and colour mode: right width, no control bytes, something to read -----------------------------
for size in 20x5 59x15 60x16 61x17 80x24 120x40 200x50 300x100; do
  for mode in 24bit 256 8 never; do
    for ascii in "" --ascii; do
      case $size$mode$ascii in *24bit) ;; 80x24* | 120x40*) ;; *) continue ;; esac # every mode at two sizes, every size once
      { echo ":sync x"; echo ":prompt hello there"; echo R; echo ":sync y"; echo r; echo ":sync z"
        for v in 1 2 3 4 5 6 7; do echo "$v"; echo ":sync v"; echo ":dump v$v.txt"; echo ":dump v$v.ansi ansi"; done
        echo "?"; echo ":dump v8.txt"; echo ":dump v8.ansi"; } |
        play $size "tok_s=0 'shape=4 4 2 8 1000 4096'" -n 20 --color $mode $ascii || fail "$size $mode $ascii: exit code $?: $(cat err)"
      python3 - "$size" "$mode" "$ascii" <<'P' || fail "$size $mode $ascii"
import re, sys, unicodedata
cols, rows = map(int, sys.argv[1].split("x"))
for v in range(1, 9):
    text = open(f"v{v}.txt", encoding="utf-8").read()
    lines = text.split("\n")[:-1]
    assert len(lines) == rows, (v, len(lines))
    for l in lines:
        w = sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in l)
        assert w <= cols, (v, w, l)
        assert all(ord(c) >= 32 and not 127 <= ord(c) < 160 for c in l), (v, l)
        if sys.argv[3]: assert all(ord(c) < 127 for c in l), (v, l)
    if cols < 60 or rows < 16: assert "needs 60x16" in text or f"have {cols}x{rows}"[:6] in text or cols < 40, text
    ansi = open(f"v{v}.ansi", encoding="utf-8").read()
    codes = set(re.findall(r"\x1b\[([0-9;]*)m", ansi))
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", ansi), v
    color = [c for c in codes if re.search(r"(^|;)(3|4)[0-8](;|$)", c)]
    if sys.argv[2] == "never": assert not color, color
    elif cols >= 60 and rows >= 16: assert color, (v, codes)
    if sys.argv[2] == "256": assert not any(";2;" in c and "38" in c.split(";")[:2] for c in codes), codes
P
    done
  done
done

# --- the engine fails in every way; the screen stays, says why, keeps what there was --------------------------------------------------
play 80x24 "tok_s=0 die_after=5\ 9" -n 20 <<'S'
:sync x
:prompt hello
r
:sync y
:dump dead.txt
:engine restart
:sync z
:dump again.txt
S
has dead.txt "engine ended"; has dead.txt "signal 9"; has dead.txt "hello"; has again.txt "ready"; has again.txt "hello"
# it lives but reads no more: found while a request is written, by a run and by a map; nothing waits for an answer
for request in r 3; do
  rm -f deaf.txt
  fake="exec $fake" play 80x24 "tok_s=0 deaf=1" -n 20 <<S # the run that cannot start is a failed line of the script
:sync x
:prompt hello
r
:sync y
$request
:sync z
:dump deaf.txt
S
  has deaf.txt "engine ended"; has deaf.txt "it closed its input"; lacks err "not idle"
done
play 80x24 "tok_s=0 'fail_after=3 E_MEMORY no memory for 3 pages'" -n 20 <<'S'
:sync x
:prompt hello
r
:sync y
:dump failed.txt
S
has failed.txt "no memory for 3 pages"; has failed.txt "ready"
play 80x24 "tok_s=0 garbage_after=3" -n 20 <<'S'
:sync x
:prompt hello
r
:sync y
:dump garbage.txt
S
has garbage.txt "engine ended"; has garbage.txt "not a message"
play 80x24 "'load_fail=E_UNSUPPORTED this architecture is not supported: mamba'" <<'S'
:sync x
:dump loadfail.txt
S
has loadfail.txt "mamba"; has loadfail.txt "no model"
play 80x24 "welcome_version=99" <<'S'
:sync x
:dump version.txt
S
has version.txt "version 99"
timeout 60 "$moascope" fake --no-restore --engine "exit 3" --size 80x24 --script <(printf ':sync x\n:dump gone.txt\n') || fail "an engine that ends at once"
has gone.txt "exit status 3"

# --- cancelling -----------------------------------------------------------------------------------------------------------------------
play 80x24 "tok_s=50" -n 4000 <<'S'
:sync x
:prompt hello
r
:wait 0.3
C-c
:sync y
:dump cancelled.txt
S
has cancelled.txt "cancelled"

# --- hostile text: model names, answers, prompts, file names ------------------------------------------------------------------------------
printf '{"alphas": [[0,0],[0,0]], "betas": [[1,1],[1,1]]}' > $'evil\e]52;c;AAAA\a.json'
printf 'prompt \e[31m with \x9b colours and \xe2\x80\xae reversed\n' > evil.txt
play 120x40 "tok_s=0 'shape=2 2 1 8 100 512' 'name=M\\x1b[2Jodel' 'answer=red \\x1b[41m and \\x07 bell \\xc2\\x9b31m'" -n 30 --prompt-file evil.txt --plan $'evil\e]52;c;AAAA\a.json' <<'S'
:sync x
r
:sync y
:dump evil1.ansi ansi
4
:dump evil2.ansi ansi
7
:dump evil3.ansi ansi
S
python3 - <<'P' || fail "hostile text"
import re
for n in (1, 2, 3):
    t = open(f"evil{n}.ansi", encoding="utf-8").read()
    rest = re.sub("\x1b\\[[0-9;]*m", "", t)
    assert not any(ord(c) < 32 and c != "\n" or 127 <= ord(c) < 160 or c == "\u202e" for c in rest), rest[:400]
assert "\u241b[41m" in re.sub("\x1b\\[[0-9;]*m", "", open("evil1.ansi", encoding="utf-8").read()) # shown, not done
P

# --- plans: refused, changed on disk, saved over --------------------------------------------------------------------------------------------
printf '{"alphas": [[0]], "betas": [[1]]}' > small.json
play 80x24 "tok_s=0 'shape=4 4 2 8 1000 4096'" <<'S' && fail "a plan of another shape must fail the script"
:sync x
:plan open small.json
:dump small.txt
S
has small.txt "layers"
play 80x24 "tok_s=0 'shape=4 4 2 8 1000 4096'" <<'S'
:sync x
:plan save changed.json
:set-rule L1.H1 w=512
S
( sleep 1; printf ' ' >> changed.json ) & 
play 80x24 "tok_s=0 'shape=4 4 2 8 1000 4096'" --plan changed.json <<'S' && fail "a change by others must be refused"
:sync x
:set-rule L2.H1 w=256
:wait 2
:plan save
:dump changed2.txt
D
:dump diff.txt
q
:plan save!
:dump forced.txt
S
wait
has changed2.txt "changed on disk"; has diff.txt "On disk"; has forced.txt "Saved"

# --- small screens: nothing is cut that a sentence needs, nothing collides; names say what is shown ---------------------------------------
play 80x24 "tok_s=400 'name=Tiny with a name of some length' 'shape=4 4 2 8 1000 8192'" -n 700 <<'S' || fail "small screens: exit code $? $(cat err)"
:sync loaded
8
:dump s8.txt
3
:dump s3.txt
5
:dump s5.txt
:prompt what stood in the ledger, and who wrote it there?
1
r
:wait 0.8
:dump s1.txt
:stop
:sync ran
4
:dump s4.txt
2 ?
:dump sh.txt
:view plan
:dump shp.txt
3
:dump sh3.txt
:unmark
:sync
:mark L0-1.*
:dump marked.txt
:unmark
:set-rule L0.* w=128
:dump own.txt
:set gen 20
R
:sync a
c
:sync c
]
:dump hot.txt
:plan save! here.json
D
:dump diff.txt
S
for row in '6 Try' 'passkey at' 'items  *5'; do has_re s8.txt "$row"; done
[ "$(tr -d '│─╭╮╰╯\n' < s3.txt | tr -s ' ' | grep -c ':prompt open FILE reads one\.')" = 1 ] || fail "the empty map's sentence is cut: $(head -5 s3.txt)"
has s5.txt "─ A full attention ─" && has s5.txt "─ B plan ─"
has_re s1.txt '[×x] +[0-9]+/700' # the ratio, a blank, the tokens
has s4.txt "mean 768"
has sh.txt "Keys and commands: Heads" && has shp.txt "Keys and commands: Plan" # the help goes with the screen below it
lacks sh3.txt "Keys and commands" && has sh3.txt "3 MAP"
lacks s4.txt "windowed run" # a plan that cuts nothing saw everything
has_re marked.txt "(8 marked|[*]8) *$"
lacks_re own.txt "(8 marked|[*]8) *$"
has_re own.txt 'own plan ●[0-9]' && lacks own.txt "full attent"
has diff.txt "On disk → on the screen"
lacks err "stands out"

# --- wrong usage -------------------------------------------------------------------------------------------------------------------------
for args in "--size 0x5 --script script" "--size 80x24" "--color pink --size 80x24 --script script" "--prompt a --prompt-file b"; do
  # shellcheck disable=SC2086
  timeout 20 "$moascope" $args > out 2> err; [ $? = 2 ] || fail "$args: exit code"
done
timeout 20 "$moascope" fake < /dev/null > out 2> err; [ $? = 2 ] || fail "no terminal: exit code"
has err "not a terminal"
[ $bad = 0 ] && echo "all screens as they should be"
exit $bad
