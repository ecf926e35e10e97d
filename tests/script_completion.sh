#!/bin/bash
# The manual page and the shells' completions: every command and option that --help tells is in them; bash really completes; groff, zsh and
# fish, where they are installed, find nothing wrong.
. "$(dirname "$0")/batch_lib.sh" "$1"
commands=$("$moascope" --help | sed -n 's/^  \([a-z]*\)  .*/\1/p')
[ "$(wc -w <<< "$commands")" -ge 16 ] || complain "--help lists $commands"
spellings() { "$moascope" ${1:+"$1"} --help | grep -oE '^ +(-[a-z], )?(--?[a-z-]+)' | tr -d ','; } # of a command, or of the workbench
for shell in bash zsh fish; do expect 0 "$moascope" completion $shell -o "$temp/moascope.$shell"; done
expect 2 "$moascope" completion tcsh; says "bash, zsh or fish"
expect 2 "$moascope" completion
expect 0 "$moascope" man -o "$temp/moascope.1"
for command in "" $commands; do
    [ -z "$command" ] || grep -q "^.SS moascope $command\$" "$temp/moascope.1" || complain "the manual has no $command"
    for word in $(command=$command; if [ -n "$command" ]; then spellings "$command"; else "$moascope" --no-such 2> /dev/null; echo --ascii --script; fi); do
        grep -qF -- "\\fB${word//-/\\-}\\fR" "$temp/moascope.1" || complain "the manual has no $word"
        grep -q -- "[ |\"]$word[ \"]" "$temp/moascope.bash" || complain "bash: no $word of '$command'"
        grep -qF -- "\"*$word[" "$temp/moascope.zsh" || complain "zsh: no $word of '$command'"
        dashes=-l; [ "${word#--}" = "$word" ] && { dashes=-o; [ ${#word} = 2 ] && dashes=-s; }
        grep -q -- " $dashes ${word##*-*-} " "$temp/moascope.fish" || grep -q -- " $dashes $(sed 's/^--*//' <<< "$word") " "$temp/moascope.fish" ||
            complain "fish: no $word of '$command'"
    done
done

# bash: what follows the words, the last of which is begun
offers() { # words... : the offers, one line
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _moascope
    echo "${COMPREPLY[*]}"
}
cd "$temp" || exit 1
: > "a model.gguf"
# shellcheck disable=SC1091
. "$temp/moascope.bash" || complain "bash cannot read it"
is() { local got=$1; shift; local want=$1; shift; [ "$got" = "$want" ] || complain "$*: '$got', expected '$want'"; }
is "$(offers moascope se)" "search sessions" "commands"
is "$(offers moascope plan sh)" show "verbs"
is "$(offers moascope run m.gguf --dev)" --device "options"
is "$(offers moascope run m.gguf --device cu)" cuda "values"
is "$(offers moascope run m.gguf -dev '')" "auto cpu cuda" "values of another spelling"
is "$(offers moascope --color '')" "auto never 8 256 24bit" "values of the workbench"
is "$(offers moascope run "a mo")" "a model.gguf" "files"
is "$(offers moascope run m.gguf --plan fu)" full "a word among files"
is "$(offers moascope run m.gguf --prompt-file "a m")" "a model.gguf" "files of an option"
is "$(offers moascope run m.gguf -n '')" "" "a number"
is "$(offers moascope completion '')" "bash zsh fish" "shells"
is "$(offers moascope eval m.gguf --task p)" "passkey ppl" "tasks"
[[ " $(offers moascope tokenize m.gguf --) " == *" --detokenize "* ]] || complain "a command's own options"
[[ " $(offers moascope tokenize m.gguf --) " != *" --density "* ]] || complain "another command's options"

if command -v groff > /dev/null; then
    groff -man -Tutf8 -ww -wall "$temp/moascope.1" > "$temp/page" 2> "$temp/warnings"
    [ -s "$temp/warnings" ] && complain "groff: $(head -3 "$temp/warnings")"
    grep -q "prefill and generate" "$temp/page" || complain "the page lacks the help of run"
else
    echo "not tested: the manual page by groff, which is not installed"
fi
for shell in zsh fish; do
    if ! command -v $shell > /dev/null; then
        echo "not tested: the completion by $shell, which is not installed"
    else
        $shell -n "$temp/moascope.$shell" || complain "$shell finds errors"
    fi
done
[ $failed = 0 ] && echo "manual and completions: ok"
exit $failed
