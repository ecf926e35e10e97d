#!/bin/sh
# Makes the pictures of docs/screens from the real program: SmolLM2 on the CPU, a fixed prompt, greedy. shoot.sh BUILD [MODEL]
# run, heads, map, plan, memory, compare, a step of the tour as text (120x40) and as SVG. What they show is measured anew each time; only speeds differ.
set -eu
cd "$(dirname "$0")/.."
build=${1:?usage: shoot.sh BUILD [MODEL]}
model=${2:-$HOME/.cache/moascope/models/SmolLM2-135M-Instruct-Q4_1.gguf}
[ -f "$model" ] || { echo "shoot.sh: $model is not there; scripts/fetch_model.py smollm2 fetches it" >&2; exit 1; }
out=docs/screens
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

{
    echo ":sync loaded"
    echo "R"
    echo ":sync dense"
    echo ":set-rule @class:local w=256"
    echo ":set-rule @class:sink w=128"
    echo "1 r"
    echo ":sync plan"
    echo "c"
    echo ":sync compared"
    echo ":go L14.H3" # it copies: after "behind the" it looks at what followed that before, which its new window loses
    for view in run heads map plan memory compare; do
        echo ":view $view"
        [ $view = compare ] && echo "] ] ] Enter" # the heads to blame for one of its tokens
        echo ":sync"
        echo ":sync"
        echo ":dump $work/$view.txt txt"
        echo ":dump $work/$view.svg svg"
    done
    echo ":tour"
    echo "Enter Enter"
    echo ":sync step 3: a window"
    for _ in 1 2; do echo "<"; done
    echo ":sync"
    echo ":sync"
    echo ":dump $work/tour.txt txt"
    echo ":dump $work/tour.svg svg"
    echo ":quit!"
} >"$work/script"

"$build/moascope" "$model" --device cpu --no-session --no-restore --prompt-file tests/data/prompt_600.txt -n 32 --temp 0 --seed 1 \
    --script "$work/script" --size 120x40
for file in "$work"/*.txt "$work"/*.svg; do
    size=$(wc -c <"$file")
    [ "$size" -gt 1000 ] && [ "$size" -lt 300000 ] || { echo "shoot.sh: $file has $size bytes" >&2; exit 1; }
done
grep -q "$(printf '\033')" "$work"/*.txt && { echo "shoot.sh: escape sequences in the text" >&2; exit 1; }
mv "$work"/*.txt "$work"/*.svg "$out/"
ls -l "$out"
