#!/usr/bin/env bash
# Choosing a model: :load alone lists the files of the usual folders, typing narrows, Enter loads; a file's name cannot reach the terminal raw.
. "$(dirname "$0")/play_lib.sh" "$1"
export MOASCOPE_MODELS=$work/one:$work/two
mkdir -p one/deep two
head -c 3000000 /dev/zero > one/deep/alpha-7b.gguf
printf x > two/Beta-1B.gguf
printf x > "two/evil$(printf '\033')[31mred.gguf"
ln -s ../one/deep/alpha-7b.gguf two/twice.gguf # the same file by another way: listed once
play 100x30 "" <<'S'
:sync a
:load
:dump all.txt
"BETA"
:dump narrowed.txt
Backspace Backspace Backspace Backspace "zzz"
:dump none.txt
Esc
:dump closed.txt
:load
"alpha"
Enter
:sync b
:dump loaded.txt
:quit!
S
[ $? = 0 ] || fail "exit code; $(cat err)"
has all.txt alpha-7b.gguf
has all.txt Beta-1B.gguf
has all.txt "2.86 MiB"
has all.txt "3 files"
grep -q "$(printf '\033')" all.txt && fail "an escape character of a file's name is on the screen"
lacks narrowed.txt alpha
has narrowed.txt "1 file "
has none.txt "No name has these letters"
lacks closed.txt "type to narrow"
lacks loaded.txt "type to narrow"
[ "$(cat "$XDG_STATE_HOME"/moascope/last-model 2>/dev/null)" = "" ] || fail "--no-restore must not remember"
unset MOASCOPE_MODELS
rm -rf one two
play 80x24 "" <<'S'
:load
:dump empty.txt
:quit!
S
has empty.txt "No GGUF file was found"
has empty.txt "fetch_model.py"
exit $bad
