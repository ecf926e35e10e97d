#!/usr/bin/env bash
# The search screen played from scripts against the scripted engine: every step, settings, locks, stops, an engine that dies or lies, influence on
# the other screens, files. $1: the build folder. Figures on the screen are computed again here from the files the program wrote.
data=$(cd "$(dirname "$0")/data" && pwd)
. "$(dirname "$0")/play_lib.sh" "$1"
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
threads_only=$(grep -E '^MOA_SANITIZE:[A-Z]*=.*thread' "$build/CMakeCache.txt" 2> /dev/null) # there one way through each thread is enough
FAST="tok_s=0 prefill_tok_s=0 'shape=8 6 2 16 1000 8192'"

# --- nothing yet, then step by step
play 120x40 "$FAST" <<'S' || fail "exit code $?: $(cat err)"
:sync loaded
8
:dump empty.txt
:step set measure joint
s
:sync one
:dump calibrated.txt
s
:sync two
:dump profiled.txt
s
:sync three
:dump found.txt
:dump found.names names
s
:sync four
:dump valid.txt
t
:sync five
:dump tried.txt
Tab
gg
Enter
:plan save first.json
:influence save inf.npz
4
:dump plan.txt
:go L3.H2
2
.i
:dump heads.txt
3
i
:dump map.txt
gi
:dump signed.txt
i
:dump attention.txt
u
4
:dump undone.txt
8
:step set measure signed
:dump signed_rows.txt
S
has empty.txt "8 SEARCH"
has empty.txt "None yet. s: next step"
has_re empty.txt "1 Calibrate +-"
has_re calibrated.txt "1 Calibrate +done"
has calibrated.txt "8 of 8 items, 4 right"
has_re calibrated.txt "2 Profile +-"
has_re profiled.txt "2 Profile +done"
has profiled.txt "by span"
has_re found.txt "3 Search +done"
has_re found.txt "plan 1 +(4|5)[0-9]%"
has_re found.txt "uniform +50% .* - "
has_re found.txt "full +100% +0 +0"
has found.txt "loss @1024 against loss @512"
has_re valid.txt "4 Validate +done"
has_re valid.txt "★plan [0-9]"
has_re valid.txt "full +100% +0 +0 +2\.000"
has_re tried.txt "full .* 5/5"
has_re tried.txt "Passkey at 2048 tokens: plan [0-9] [0-5] of 5"
has plan.txt "plan 1 of the search"
has plan.txt "mnat"
has_re plan.txt "loss, nats .*@512 .*@1024"
has heads.txt "loss with the shortest span, 1/1000 nats"
has_re heads.txt "loss +[+0-9].* nats @1024, at 128"
has map.txt "L03 H02  INFLUENCE, absolute"
has map.txt "1 block = 64x64 tok"
has signed.txt "INFLUENCE, signed"
lacks attention.txt "INFLUENCE"
lacks undone.txt "1 plan 1 of the search●"
# what the table says of plan 1 is what the plan and the influence in the files come to; its memory is within the bound
python3 - found.txt plan.txt first.json inf.npz signed_rows.txt <<'P' || fail "figures of plan 1"
import json, re, struct, sys, zipfile
found, screen, plan, npz, signed_rows = sys.argv[1:6]
def array(z, name):
    b = z.read(name + ".npy")
    n = struct.unpack_from("<H", b, 8)[0]
    shape = eval(re.search(r"'shape': (\([^)]*\))", b[10:10 + n].decode()).group(1))
    data = b[10 + n:]
    return shape, struct.unpack(f"<{len(data) // 4}f", data)
p = json.load(open(plan))
a, b = p["alphas"], p["betas"]
def span(l, h, n):
    return (int(max(min(int(a[l][h] + b[l][h] * n), n), 128)) + 63) // 64 * 64
losses, by_map = [], []
for n in (1536, 2048): # the bound holds where plans are judged, too
    kept = sum(max(span(l, g * 3 + k, n) for k in range(3)) for l in range(8) for g in range(2)) / (16 * n)
    assert 0.4 <= kept <= 0.5 + 1e-9, (n, kept)
with zipfile.ZipFile(npz) as z:
    for n in (512, 1024):
        (L, H, nb1), joint = array(z, f"joint_{n}")
        assert (L, H, nb1) == (8, 6, n // 64 + 1), (L, H, nb1)
        losses.append(sum(0 if span(l, h, n) >= n else max(0, joint[(l * H + h) * nb1 + span(l, h, n) // 64 - 1]) for l in range(L) for h in range(H)))
        kept = sum(max(span(l, g * 3 + k, n) for k in range(3)) for l in range(8) for g in range(2)) / (16 * n)
        assert kept <= 0.5 + 1e-9, (n, kept)
        # groups share a rule, and the curve falls as windows widen
        assert all(len({(a[l][g * 3 + k], b[l][g * 3 + k]) for k in range(3)}) == 1 for l in range(8) for g in range(2))
        # the block map, cut by hand, gives a sum of its own: absolute influence is never below the signed one
        s1, mabs = array(z, f"abs_{n}")
        s2, msum = array(z, f"signed_{n}")
        nb = n // 64
        by_map.append(sum(max(0, sum(msum[((l * H + h) * nb + q) * nb + k] for q in range(nb) for k in range(1, nb)
                                     if span(l, h, n) < n and k <= q - (span(l, h, n) // 64 - 1))) for l in range(L) for h in range(H)))
        assert s1 == s2 == (8, 6, n // 64, n // 64) and all(x >= abs(y) - 1e-9 for x, y in zip(mabs, msum))
row = re.search(r"plan 1 +\d+% +(\S+) +(\S+)", open(found).read())
shown = [float(x) for x in row.groups()]
assert all(abs(s - t) <= 5.1e-4 for s, t in zip(shown, losses)), (shown, losses)
again = [float(x) for x in re.search(r"plan 1 +\d+% +(\S+) +(\S+)", open(signed_rows).read()).groups()]
assert all(abs(s - t) <= 5.1e-4 for s, t in zip(again, by_map)) and again != shown, (again, by_map)
cost = re.search(r"loss, nats +(\S+) @512 +(\S+) @1024", open(screen).read())
assert [float(x) for x in cost.groups()] == shown, (cost.groups(), shown)
P

if [ -z "$threads_only" ]; then
# --- all steps with one key; settings typed and turned; locked heads keep their rules; settings make steps old
play 80x24 "$FAST" <<'S' || fail "exit code $?: $(cat err)"
:sync loaded
8
j l
:dump lengths.txt
h
:step set density 60%
:step set measure signed
:step set validate-items 2
A
:sync all
:dump all.txt
:plan set uniform:0.25
:lock L2.* L3.H0-2
:dump locked.txt
s
:sync again
Tab gg Enter
:plan save locked.json
:unlock
:step set lengths 512,1024,2048
:dump old.txt
S
has_re lengths.txt "lengths +1024,2048"
has_re all.txt "density +60 % of KV"
has_re all.txt "measure +signed"
has_re all.txt "4 Validate +done"
has_re all.txt "5 Rounds +-"
has_re all.txt "★plan"
has_re locked.txt "3 Search +to do again"
has locked.txt "9 locked"
has_re old.txt "1 Calibrate +to do again"
lacks_re old.txt "locked$"
python3 - <<'P' || fail "locked heads"
import json
p = json.load(open("locked.json"))
rules = [[(a, b) for a, b in zip(x, y)] for x, y in zip(p["alphas"], p["betas"])]
assert all(r == (0, 0.25) for r in rules[2]) and all(r == (0, 0.25) for r in rules[3][:3]), rules[2:4]
assert any(r != (0, 0.25) for l in rules for r in l)
P

fi
# --- what cannot be: each is one sentence, nothing is lost
play 80x24 "$FAST" <<'S' && fail "refused commands went through"
:sync loaded
8
:step profile
:dump no_items.txt
:step search
:dump no_influence.txt
:step validate
:dump no_plan.txt
:step set density 0
:dump density.txt
:step set lengths 12
:dump length.txt
:step set kinds summary
:dump kinds.txt
:influence save x.npz
:dump no_save.txt
:influence open /etc/passwd
:dump no_open.txt
:step set density 10%
:step all
:sync infeasible
:dump infeasible.txt
S
has no_items.txt "profiling needs calibrated items"
has no_influence.txt "searching needs the influence"
has no_plan.txt "there is no plan yet"
has_re density.txt "density: a share"
has length.txt "from 128 on"
has kinds.txt "needs documents"
has no_save.txt "there is no influence yet"
has_re no_open.txt "not|archive|zip"
has_re infeasible.txt "3 Search +failed"
has_re infeasible.txt "density|bound"

# --- ^C keeps what is done; runs wait for the step, the step for runs
play 120x40 "$FAST item_ms=60" <<'S' && fail "a run began beside a step"
:sync loaded
:prompt a prompt
8
s
:wait 0.2
r
:dump busy.txt
C-c
:sync stopped
:dump stopped.txt
s
:wait 0.1
C-c
:sync stopped
:dump part.txt
S
has busy.txt "the search is at work in the engine; C-c stops it"
has_re busy.txt "1 Calibrate +[0-9]+%|1 Calibrate +at work"
has_re busy.txt "calibrate +[0-9]*%? *$"
has_re stopped.txt "1 Calibrate +stopped, kept"
has_re stopped.txt "[1-7] of 8 items"
has_re part.txt "1 Calibrate +stopped, kept"

# --- an engine that dies, fails, lies: said, kept, and it can be started again
play 120x40 "$FAST die_item=3" <<'S' && fail "the engine did not die"
:sync loaded
8
s
:sync dead
:dump dead.txt
s
:dump again.txt
S
has_re dead.txt "1 Calibrate +failed"
has dead.txt "The engine ended"
has_re again.txt "engine (has )?ended"
play 120x40 "$FAST fail_item=2" <<'S' || fail "exit code $?: $(cat err)"
:sync loaded
8
A
:sync failed
:dump failed.txt
S
has_re failed.txt "1 Calibrate +failed"
has failed.txt "the item went wrong"
has_re failed.txt "2 Profile +-"
play 120x40 "$FAST odd_item=1" <<'S' || fail "exit code $?: $(cat err)"
:sync loaded
8
s
:sync odd
:dump odd.txt
7
:dump log.txt
S
has log.txt "does not fit the task"
has_re odd.txt "1 Calibrate +done"

if [ -n "$threads_only" ]; then
  echo "not tested: locks, rounds, the real engine, sizes and kinds of terminal under the thread sanitizer: the solver's and the file's threads again"
else
# --- rounds: heads that stand in for one another are told apart; each round is a line; stopped, gone on with, stopped with the engine
play 120x40 "$FAST stand_in=0.5 item_ms=15" <<'S' || fail "exit code $?: $(cat err)"
:sync loaded
8
:step set validate-length 1024
:step set measure joint
:step set loss cross-entropy
:dump loss.txt
:step set loss margin
:step set rounds 5
o
:sync rounds
:dump rounds.txt
7
:dump log.txt
8
Tab
Enter
:plan save round.json
:step rounds 1
:wait 0.08
:dump going.txt
C-c
:sync stopped
:dump stopped.txt
:step set rounds 2
o
:sync more
:dump more.txt
t
:sync tried
:dump tried.txt
:step set density 40%
:dump old.txt
o
:sync anew
:dump anew.txt
S
has_re loss.txt "loss +cross-entropy"
has_re rounds.txt "5 Rounds +done"
has_re rounds.txt "at most +5 more"
has_re rounds.txt "★round [1-5][ab] +50%"
has_re log.txt "Round 1 of 5: 1a 2\.0[0-9]+ \(predicted \+0\.[0-9]+\), 1b 2\.0[0-9]+"
has_re log.txt "Rounds: (done|no better plan is near)\. Best: round [1-5][ab]"
has_re going.txt "5 Rounds +1/1 [0-9]+%"
has_re stopped.txt "5 Rounds +stopped, kept"
has_re more.txt "5 Rounds +done"
has_re tried.txt "6 Try +done"
has_re tried.txt "Passkey at 2048 tokens: round [0-9][ab] [0-5] of 5"
has_re old.txt "5 Rounds +to do again"
has_re anew.txt "5 Rounds +done"
has_re anew.txt "★round [12][ab] +40%"
# the best of the rounds is better than the front's best by the law itself, and within the density at every length
python3 - log.txt rounds.txt round.json <<'P' || fail "what the rounds came to"
import json, re, sys
log, screen = (open(x).read() for x in sys.argv[1:3])
front = float(re.search(r"Best: plan \d, cross-entropy (\d\.\d+)", log).group(1))
best = float(re.search(r"★round \S+ +50% +\S+ +\S+ +(\S+)", screen).group(1))
assert best < front - .005, (front, best)
p = json.load(open(sys.argv[3]))
a, b = p["alphas"], p["betas"]
for n in (512, 1024, 2048):
    kept = sum(max((int(max(min(int(a[l][g * 3 + k] + b[l][g * 3 + k] * n), n), 128)) + 63) // 64 * 64 for k in range(3)) for l in range(8) for g in range(2)) / (16 * n)
    assert .4 <= kept <= .5 + 1e-9, (n, kept)
P
play 80x24 "$FAST stand_in=0.5 item_ms=20" <<'S' && fail "rounds went on without an engine"
:sync loaded
8
:step set validate-length 1024
A
:sync valid
o
:wait 0.1
:engine stop
:wait 0.2
:dump gone.txt
:step set rounds 40
:dump refused.txt
o
:dump dead.txt
S
has_re gone.txt "5 Rounds +failed"
has_re gone.txt "plan 6 .*2\.0"
has refused.txt "rounds: from 1 to 12"
has_re dead.txt "engine"

# --- the real engine on a tiny model: all steps and two rounds; the best plan's loss is what `validate` says of the file on the same items
cat > script <<'S'
:sync loaded
8
:step set lengths 512,640
:step set items 2
:step set kinds passkey,needle
:step set validate-length 700
:step set validate-items 2
:step set try-length 700
:step rounds 2
:sync rounds
:dump real.txt
Tab
Enter
:plan save plans/plan_01.json
S
mkdir plans
timeout 300 "$moascope" "$data/tiny_llama.gguf" --no-restore --device cpu --size 160x40 --script script > out 2> err || fail "the real engine: exit code $?: $(cat err)"
has_re real.txt "5 Rounds +done"
has_re real.txt "round 1[ab] +[45][0-9]%"
{ "$moascope" calibrate "$data/tiny_llama.gguf" --synthetic passkey,needle --lengths 700 --items 2 -n 48 -s 1001 --device cpu -q -o held.jsonl &&
  "$moascope" validate "$data/tiny_llama.gguf" --plans plans --data held.jsonl --length 700 --device cpu -q --json valid.json > out; } 2> err || fail "validate: $(cat err)"
python3 - real.txt valid.json <<'P' || fail "the loss of the best plan"
import json, re, sys
shown = re.search(r"★(\S+ \S+) +\d+% +\S+ +\S+ +(\S+)", open(sys.argv[1]).read())
text = json.dumps(json.load(open(sys.argv[2])))
losses = [float(x) for x in re.findall(r'"loss": ([0-9.]+)', text)]
assert any(abs(float(shown.group(2)) - x) <= 6e-4 for x in losses), (shown.groups(), losses)
assert max(losses) - min(losses) > .01, losses # full attention is another figure
P

fi
# --- influence from a file; the reference's shape; other shapes are refused
python3 - <<'P'
import struct, zipfile
def npy(shape, values):
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + struct.pack(f"<{len(values)}f", *values)
def put(name, **arrays):
    with zipfile.ZipFile(name, "w") as z:
        for k, (shape, v) in arrays.items(): z.writestr(k + ".npy", npy(shape, v))
put("plain.npz", anything=((8, 6, 16, 16), [1e-3 if k <= q else 0 for _ in range(48) for q in range(16) for k in range(16)]))
put("wrong.npz", joint_512=((8, 5, 9), [0] * 360))
put("nan.npz", joint_512=((8, 6, 9), [float("nan")] * 432))
put("empty.npz", other=((2,), [1, 2]))
P
play 120x40 "$FAST" <<'S' && fail "a wrong file was taken"
:sync loaded
8
:step set measure joint
:influence open plain.npz
:dump plain.txt
s
:sync found
:dump plain_found.txt
:influence open wrong.npz
:dump wrong.txt
:influence open nan.npz
:dump nan.txt
:influence open empty.npz
:dump nothing.txt
S
has_re plain.txt "2 Profile +done"
has plain.txt "plain.npz"
has_re plain.txt "lengths +1024"
has_re plain.txt "measure +abs"
has_re plain_found.txt "plan 1 +(4|5)[0-9]% +\+[0-9.]+"
has wrong.txt "joint_512 is not float32 [8][6][9]"
has nan.txt "not finite"
has nothing.txt "no influence in it"

[ -n "$threads_only" ] && exit $bad
# --- every size and kind of terminal: the panes are there, nothing is cut in the middle of the steps
for size in 61x17 80x24 120x40 200x50; do
  for how in "--color 24bit" "--color never" "--ascii --color never" "--color 8"; do
    # shellcheck disable=SC2086
    play $size "$FAST" $how <<'S' || fail "$size $how: exit code $?: $(cat err)"
:sync loaded
8
:step set validate-length 1024
:step set try-length 1024
A
:sync all
:dump all.txt
Tab
:dump plans.txt
Tab
:dump front.txt
Tab
:dump curve.txt
S
    has all.txt "3 Search"
    has plans.txt "plan 1"
    has_re front.txt "loss @1024"
    has curve.txt "by span"
    [[ $how == *ascii* ]] && LC_ALL=C grep -qP '[^\x00-\x7f]' all.txt plans.txt front.txt curve.txt && fail "$size $how: not ASCII"
  done
done
[ $bad = 0 ] && echo "the search screen: ok"
exit $bad
