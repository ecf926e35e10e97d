#!/usr/bin/env bash
# Random keys into the real program in a real terminal: MOA_FUZZ_KEYS (5,000) of them from the seed MOA_FUZZ_SEED (1), with windows of every
# size in between. It must not crash, and its screen must still answer. Quitting is no crash: it is started again. $1: the build folder.
. "$(dirname "$0")/tui_lib.sh" "$1"
n_keys=${MOA_FUZZ_KEYS:-5000} seed=${MOA_FUZZ_SEED:-1}
python3 - "$n_keys" "$seed" >"$work/keys" <<'P'
# one call of `tmux send-keys -H` a line: keys that do something more often than others; no C-z (a shell would have to wake it up)
import random, sys
n, r = int(sys.argv[1]), random.Random(int(sys.argv[2]))
named = ["1b5b41", "1b5b42", "1b5b43", "1b5b44", "1b5b48", "1b5b46", "1b5b357e", "1b5b367e", "1b5b5a", "1b4f50", "1b5b31357e", "1b", "0d", "09", "7f", "20"]
words = [b":set n 9000\r", b":set-rule @marked beta=0.3\r", b":plan open uniform:0.3\r", b":plan save x.json\r", b":plan save! x.json\r", b":load Other\r", b":engine restart\r", b":view map\r", b":go L20.H3\r",
         b"/L1\r", b":prompt what \xe2\x80\xae is \xff this\r", b":set ramp magma\r", b":mark L3.*\r", b":dump d.svg\r", b":help classes\r", b":set chat on\r", b":plan diff\r"]
line = []
for i in range(n):
    k = r.random()
    if k < 0.60: b = [r.choice("hjklHJKL<>{}=+-0nNpyFUu*ggfsGtvr RciamMeSdb123456?/:")]; line += ["%02x" % ord(c) for c in b]
    elif k < 0.80: h = r.choice(named); line += [h[j:j + 2] for j in range(0, len(h), 2)]
    elif k < 0.95: line += ["%02x" % r.choice([c for c in range(1, 127) if c != 26])]
    elif k < 0.97: line += ["%02x" % c for c in r.choice(words)]
    else: line += ["%02x" % c for c in r.choice("äéß語😀\u0301\u202e").encode()]
    if len(line) > 100 or i == n - 1:
        print(" ".join(line))
        line = []
P
sizes=("80 24" "200 50" "60 16" "20 5" "120 40" "1 1" "300 12" "40 100")
# no shell gets the keys: a loop starts the program again whenever it was quit, and stays where it ended otherwise
cat >"$work/loop" <<L
stty -isig # keys come also while the program is only starting
while :; do
  "$moa" Fake --engine "$fake --script $work/fake" -n 60 --prompt-file "$here/data/prompt_600.txt"
  code=\$?
  echo \$code >>"$work/codes"
  [ \$code = 0 ] || { echo "ended with \$code."; exec sleep 1000; }
done
L
fake_script "tok_s 2000" "prefill_tok_s 0"
: >"$work/codes"
crashed() { grep -qvx 0 "$work/codes"; }
drawn() { [ "$(screen | wc -c)" -gt 10 ]; }
ui_open 80 24
sh_line "exec bash $work/loop"
see '1 *RUN' 20
settle
at=0
while read -r line; do
  at=$((at + 1))
  # shellcheck disable=SC2086
  keys -H $line
  if [ $((at % 4)) = 0 ]; then
    read -r w h <<<"${sizes[$((at / 4 % ${#sizes[@]}))]}"
    tmux_ resize-window -t t -x "$w" -y "$h"
    [ "$w" -lt 20 ] || until_ 10 drawn # it keeps up
  fi
  crashed && break
done <"$work/keys"
tmux_ resize-window -t t -x 80 -y 24
answers() { keys C-c; keys 4; shows '4 *PLAN'; } # C-c closes whatever is open; C-c twice quits, and the loop starts it again
if crashed; then fail "it ended with $(grep -vx 0 "$work/codes") at write $at of seed $seed"
elif until_ 30 answers; then ok
else fail "the screen does not answer after the keys of seed $seed"
fi
verdict "$n_keys keys from seed $seed in $at writes, quit by them $(wc -l <"$work/codes") times"
