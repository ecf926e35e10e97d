#!/usr/bin/env bash
# Random keys, pastes, sizes and commands against the scripted engine, with fixed seeds: nothing crashes, nothing hangs, no sanitizer
# speaks. $1: the build folder; MOA_KEYS: events (default 6000).
set -u
build=$(cd "$1" && pwd) || exit 1
here=$(cd "$(dirname "$0")" && pwd) || exit 1
moascope=$build/moascope fake=$build/fake_engine
[ -x "$moascope" ] && [ -x "$fake" ] || { echo "skipped: moascope or fake_engine is not built"; exit 77; }
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
export XDG_STATE_HOME=$work/state HOME=$work LC_ALL=C.UTF-8 MOA_KEYS=${MOA_KEYS:-6000}
cd "$work" || exit 1
# what readline loses when a line is left in the middle of a search
export LSAN_OPTIONS=suppressions=$here/sanitizers/lsan.supp:print_suppressions=0
bad=0
for seed in 1 2 3 4 5 6; do
  python3 - $seed > script <<'P'
import os, random, sys
r = random.Random(int(sys.argv[1]))
n = int(os.environ["MOA_KEYS"]) // 6
keys = list("hjklHJKLgGnNuUrRcvtsSmiadeoFwpypxbBzZ0$*=<>{}[].+-\"/?:'@#%&()!~^_|,;") + "Up Down Left Right Home End PgUp PgDn Enter Esc Tab S-Tab Space Backspace Del Ins F1 F2 F3 F4 F5 F6 F7".split()
keys += ["C-" + c for c in "abdefgklnprtuwxy"] + ["M-b", "M-f", "M-3", "M-9"] + list("1234567") * 3 + ["日", "é", "\u202e", "🙂"]
commands = ["prompt a b c", "prompt what is 日本?", "r", "run", "run full", "compare", "stop", "set n 700", "set n 0", "set gen 5", "set temp 0.7", "set budget 1M", "set chat on",
            "set-rule L1.* w=256", "set-rule * full", "set-rule L0.H0,1 alpha=-64 beta=0.5", "mark L1-2.*", "unmark", "plan set sink", "plan set uniform:0.25", "plan open full", "plan save p.json",
            "plan save! p.json", "plan diff", "plan reload", "undo", "redo", "go L2.H3", "go L99.H99", "view map", "describe", "engine restart", "help classes", "nonsense", "set", "set-rule", "paste \x1b[31m日 two",
            "load other", "dump d.svg", "dump d.ansi", "search a", "set ramp magma", "mark @class:local"]
banned = {"o", "E", "Q", "q", "W"}
out = [":sync start"]
for i in range(n):
    x = r.random()
    if x < 0.80: out.append(" ".join(k for k in (r.choice(keys) for _ in range(r.randint(1, 6))) if k not in banned))
    elif x < 0.90: out.append(":" + r.choice(commands))
    elif x < 0.94: out.append(":resize %dx%d" % (r.randint(1, 220), r.randint(1, 70)))
    elif x < 0.97: out.append('"' + "".join(r.choice("abc 123 L.H=@*日\u0301") for _ in range(r.randint(1, 30))) + '"')
    else: out.append(r.choice(["Esc", "Esc Esc", ":sync s", "n n y"]))
print("\n".join(out))
P
  engine="tok_s=2000 'shape=4 8 2 16 1000 4096'"
  [ $seed = 4 ] && engine="$engine die_after=7\ 9"
  [ $seed = 5 ] && engine="$engine 'fail_after=4 E_DEVICE the device failed'"
  ascii=; [ $seed = 2 ] && ascii="--ascii --color never"
  # shellcheck disable=SC2086
  timeout 300 "$moascope" fake --no-restore --engine "$fake $engine" --size 100x30 $ascii --script script > out 2> err
  code=$?
  if [ $code != 0 ] && [ $code != 1 ]; then
    echo "FAILED: seed $seed: exit code $code"; grep -v '^moascope: script line' err | tail -30; cp script /tmp/moascope-keys-$seed.txt; bad=1
  fi
  grep -q 'not idle after' err && { echo "FAILED: seed $seed: an answer never came"; grep 'not idle' err | head -3; bad=1; }
  grep -qE 'runtime error|AddressSanitizer|LeakSanitizer|ThreadSanitizer' err && { echo "FAILED: seed $seed: a sanitizer"; grep -A12 -E 'runtime error|Sanitizer' err | head -40; bad=1; }
done
[ $bad = 0 ] && echo "$MOA_KEYS random events: no crash"
exit $bad
