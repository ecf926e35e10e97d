#!/bin/bash
# The proof that searched plans keep what uniform windows lose, from documents to a table, on any model and device:
#
#   proof.sh MODEL OUT [--device D] [--budget small|quick|standard|full] [--task retrieval|passkey] [--stages A,B,...] [--limit SECONDS]
#            [--corpus DIR] [--moascope FILE] [--rate TOK_S] [--print]
#
#   calibrate    questions on long made-up documents, answered by the dense model, right ones kept      cal/KIND.jsonl
#   profile      what shorter spans would cost every head, on the margin, all three measures at once     influence/KIND.npz
#   search       a front of plans for a KV density, over the lengths profiled and those evaluated       plans/VARIANT/plan_*.json
#   validate     held-out items, other documents, longer than any profiled: the front's best            plans/VARIANT/best.json
#   main         the task, full attention, uniform:.5 and ours, at the lengths up to 4k, then 8k        eval/TASK-*.json
#   perplexity   held-out texts, the same plans            densities   .25 and .75
#   far          the task at 16k, also under the plans of rounds and heads where they are there    measures    abs and signed beside joint, at .5
#   rounds       the task's items and running text beside them, the plan found in rounds (`refine`): influence on the answers' margin
#   mix          calibrated on the task's items and on summaries of texts, in turns, at .5
#   kinds        other calibration data at .5
#   heads        one rule a query head at .5: of the KV memory (head), and of all query heads, as published plans count (query)
#   passkey      the plans of main at another task than they were calibrated for
# in the order of their worth: a run that is cut off has the main table. At 8k and beyond only where full attention still knows something.
#
# quick: minutes on a GPU, with 16k and the plans a query head in it; few items, wide intervals.
# A VARIANT is KIND-MEASURE-PER-DENSITY. Seeds: calibration 1, held-out items 3, evaluation 2: no document is in two of them.
# Everything is a file; what is there is not made again, and an evaluation goes on from its .part. Ended by --limit (each command gets the
# time that is left, then ^C) or by hand: the same call goes on. Before it starts it prints what is left to do, in tokens and time.
# proof_table.py OUT... makes the table. --corpus: the folder of scripts/corpus.py (calibration/, heldout/).
set -u
usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
model=$1 out=$2; shift 2
source=$(cd "$(dirname "$0")/.." && pwd)
device=auto budget=standard task=retrieval limit=0 rate=0 print=0 corpus=$HOME/.cache/moascope/corpus moascope=
all="calibrate profile search validate main perplexity rounds mix densities far measures kinds heads passkey"
stages=
while [ $# -gt 0 ]; do
    case $1 in
    --print) print=1; shift; continue ;;
    --device | --budget | --task | --stages | --limit | --corpus | --moascope | --rate) [ $# -ge 2 ] || usage ;;
    *) usage ;;
    esac
    case $1 in
    --device) device=$2 ;; --budget) budget=$2 ;; --task) task=$2 ;; --stages) stages=${2//,/ } ;; --limit) limit=$2 ;;
    --corpus) corpus=$2 ;; --moascope) moascope=$2 ;; --rate) rate=$2 ;;
    esac
    shift 2
done
if [ -z "$stages" ]; then
    stages=$all
    [ "$budget" != quick ] || stages="calibrate profile search validate main perplexity rounds heads far"
fi
for stage in $stages; do
    case " $all " in *" $stage "*) ;; *) echo "proof.sh: $stage is no stage: $all" >&2; exit 2 ;; esac
done
case $task in retrieval | passkey) ;; *) usage ;; esac
[ -n "$moascope" ] || for b in release dev .; do [ -x "$source/build/$b/moascope" ] && { moascope=$source/build/$b/moascope; break; }; done
[ -x "$moascope" ] || { echo "proof.sh: no moascope: --moascope FILE" >&2; exit 2; }
[ -f "$model" ] || [ -d "$model" ] || { echo "proof.sh: $model is not there" >&2; exit 3; }
command -v python3 > /dev/null || { echo "proof.sh: python3 is not there (its standard library is enough)" >&2; exit 1; }

# A span is never below 128 tokens, so that no plan keeps less than a quarter at 512 tokens: no length below that is calibrated or bounded.
# items and lengths. further, far: beyond `lengths`, tried only where full attention still answers; few: lengths of the comparisons
case $budget in
small) cal_lengths=512,768 n_cal=3 n_profile=2 hold_length=1024 n_hold=2 lengths=768,1024 further='' far='' n_eval=4 few=1024 n_few=4
       ppl_lengths=768 n_ppl=2 passkey_lengths=768 n_passkey=2 n_plan=4 kinds=facts ;;
quick) cal_lengths=1024,2048 n_cal=8 n_profile=4 hold_length=3072 n_hold=3 lengths=1024,4096 further=8192 far=16384 n_eval=12
       few=4096,8192 n_few=12 ppl_lengths=4096 n_ppl=3 passkey_lengths='' n_passkey=0 n_plan=4 kinds=mix ;;
standard) cal_lengths=1024,2048,4096 n_cal=24 n_profile=12 hold_length=6144 n_hold=6 lengths=512,1024,2048,4096 further=8192 far=16384
       n_eval=50 few=4096,8192 n_few=50 ppl_lengths=4096 n_ppl=8 passkey_lengths=4096,8192 n_passkey=20 n_plan=6 kinds="mix passkey facts summary" ;;
full) cal_lengths=1024,2048,4096,8192 n_cal=60 n_profile=50 hold_length=12288 n_hold=20 lengths=512,1024,2048,4096 further=8192 far=16384
       n_eval=100 few=1024,2048,4096,8192 n_few=100 ppl_lengths=2048,8192,16384 n_ppl=24 passkey_lengths=1024,4096,8192,16384 n_passkey=50
       n_plan=12 kinds="mix passkey needle facts summary spread" ;;
*) usage ;;
esac
# SmolLM2 answers at most 2k to 4k, and only passkey: its own lengths
if [ "$budget" != small ] && [ "$task" = passkey ]; then
    cal_lengths=512,1024,2048 hold_length=3072 lengths=512,1024,2048 further=4096 far='' few=1024,2048 ppl_lengths=2048 passkey_lengths=''
    kinds="mix retrieval facts summary"
fi
extend=512,$lengths${further:+,$further}${far:+,$far},$hold_length

mkdir -p "$out"/{cal,influence,plans,eval,log} || exit 1
settings="$(basename "$model") $budget $task"
if [ -f "$out/settings" ] && [ "$(cat "$out/settings")" != "$settings" ]; then
    echo "proof.sh: $out is of '$(cat "$out/settings")', not of '$settings'" >&2; exit 2
fi
[ $print = 1 ] || echo "$settings" > "$out/settings"
main_kind=$task
n_round=8
[ "$budget" != quick ] || n_round=4
n_level=1 # solves: the mean of the lengths and each alone; validation chooses
main=$main_kind-joint-group-0.5

# --- what things cost: tokens through the model, a backward pass counted as four forward ones ----------------------------------------
sum() { local s=0 x; for x in ${1//,/ }; do s=$((s + x)); done; echo $s; }
bytes=$(stat -Lc %s "$model" 2> /dev/null || echo 500000000)
if [ "$rate" = 0 ]; then # tokens/s in prefill, measured on an H100 and on two busy cores
    case $device in cpu*) rate=$((60000000000 / bytes)) ;; *) rate=$((17000000000000 / bytes)); [ $rate -gt 60000 ] && rate=60000 ;; esac
    [ "$rate" -gt 0 ] || rate=1
fi
total=0 noted=' '
note() { # NAME TOKENS: one line of the list of what is to do
    case $noted in *" $1 "*) return ;; esac
    noted="$noted$1 "
    printf '  %-34s %12d tokens  %6d s\n' "$1" "$2" $(($2 / rate))
    total=$((total + $2))
}

# --- running ----------------------------------------------------------------------------------------------------------------------------
begin=$SECONDS
left() { if [ "$limit" -gt 0 ]; then echo $((limit - (SECONDS - begin))); else echo 1000000; fi; }
# step NAME TOKENS RESULT command...: runs moascope unless RESULT is there; what it printed is in log/NAME.txt
step() {
    local name=$1 tokens=$2 result=$3 code start; shift 3
    [ -e "$result" ] && return 0
    if [ $print = 1 ]; then note "$name" "$tokens"; return 0; fi
    [ "$(left)" -gt 5 ] || { echo "proof.sh: the limit of $limit s is reached before $name; the same call goes on"; exit 0; }
    echo "== $name ($((SECONDS - begin)) s, about $((tokens / rate)) s)"
    start=$(date +%s.%N)
    timeout -s INT -k 20 "$(left)" "$moascope" "$@" < /dev/null > "$out/log/$name.txt" 2> "$out/log/$name.err"
    code=$?
    if [ $code -eq 0 ]; then
        python3 - "$name" "$tokens" "$start" >> "$out/times.jsonl" <<'P'
import json, sys, time
print(json.dumps({"step": sys.argv[1], "tokens": int(sys.argv[2]), "seconds": round(time.time() - float(sys.argv[3]), 2)}))
P
        grep -v '^$' "$out/log/$name.txt" | tail -n 12
        return 0
    fi
    if [ $code -eq 124 ] || [ $code -eq 130 ]; then echo "proof.sh: $name was ended by the limit; the same call goes on"; exit 0; fi
    echo "proof.sh: $name failed (exit code $code):"; tail -n 3 "$out/log/$name.err"
    failed=1
    return 1
}
failed=0

calibrate() { # KIND
    local from=(--synthetic "$1")
    case $1 in
    mix) from=(--synthetic "$main_kind" --docs "$corpus/calibration" --ask summary) ;;
    summary | spread) from=(--docs "$corpus/calibration" --ask "$1") ;;
    esac
    step "calibrate-$1" $(($(sum $cal_lengths) * n_cal)) "$out/cal/$1.jsonl" calibrate "$model" "${from[@]}" --lengths $cal_lengths \
        --items $n_cal --only-right --seed 1 --device "$device" -o "$out/cal/$1.jsonl"
}
holdout() {
    step calibrate-heldout $((hold_length * n_hold * 2)) "$out/cal/heldout.jsonl" calibrate "$model" --synthetic $main_kind \
        --lengths $hold_length --items $((n_hold * 2)) --only-right --seed 3 --device "$device" -o "$out/cal/heldout.jsonl"
}
profile() { # KIND
    step "profile-$1" $(($(sum $cal_lengths) * n_profile * 5)) "$out/influence/$1.npz" profile "$model" --data "$out/cal/$1.jsonl" \
        --lengths $cal_lengths --items $n_profile --device "$device" -o "$out/influence/$1.npz"
}
search() { # KIND MEASURE PER DENSITY
    local per=(--per "$3")
    [ "$3" != query ] || per=(--per head --budget head)
    step "search-$1-$2-$3-$4" 0 "$out/plans/$1-$2-$3-$4/pareto.json" search "$out/influence/$1.npz" --measure $2 "${per[@]}" --density $4 \
        --extend $extend --stretch --intervals $n_level --plans $n_plan --force -o "$out/plans/$1-$2-$3-$4"
}
validate() { # KIND MEASURE PER DENSITY
    step "validate-$1-$2-$3-$4" $((hold_length * n_hold * (n_plan + 2))) "$out/plans/$1-$2-$3-$4/validate.json" validate "$model" \
        --plans "$out/plans/$1-$2-$3-$4" --data "$out/cal/heldout.jsonl" --length $hold_length --items $n_hold --plan uniform:$4 \
        --device "$device" --json "$out/plans/$1-$2-$3-$4/validate.json" --force
}
variant() { calibrate $1 && profile $1 && search "$@" && holdout && validate "$@"; }
# in place of profile, search and validation: the rounds judge by items and texts of their own
refined() {
    local v=$main_kind-rounds-group-0.5 n=$((n_profile / 2))
    calibrate $main_kind || return 1
    [ -e "$out/cal/text.jsonl" ] || [ $print = 1 ] || python3 "$source/scripts/text_items.py" "$model" "$corpus/calibration" \
        --lengths $cal_lengths --items $((2 * n)) --moascope "$moascope" -o "$out/cal/text.jsonl" || { failed=1; return 1; }
    step "refine-$main_kind" $(($(sum $cal_lengths) * n * 14 * n_round)) "$out/plans/$v/refine.json" refine "$model" \
        --data "$out/cal/$main_kind.jsonl" --text "$out/cal/text.jsonl" --lengths $cal_lengths --extend $extend --density 0.5 \
        --items $n --judge $n --step 0.2 --rounds $n_round --device "$device" -o "$out/plans/$v"
}
best() { echo "$out/plans/$1/best.json"; }
# evaluate NAME TASK LENGTHS ITEMS PLAN...
evaluate() {
    local name=$1 what=$2 at=$3 items=$4 plans=() docs=() p; shift 4
    for p in "$@"; do plans+=(--plan "$p"); done
    case $what in ppl) docs=(--docs "$corpus/heldout") ;; esac
    [ -e "$out/eval/$name.json" ] || [ $print = 1 ] || printf '%s\n' "$what" "$at" "$items" "$@" > "$out/eval/$name.args"
    step "eval-$name" $(($(sum $at) * items * $#)) "$out/eval/$name.json" eval "$model" --task $what --lengths $at --items $items \
        --seed 2 "${plans[@]}" ${docs[@]+"${docs[@]}"} --device "$device" --json "$out/eval/$name.json"
}
# accuracy of the first plan of an evaluation at a length, percent; 100 where nothing is known
accuracy() { # NAME LENGTH
    python3 - "$out/eval/$1.json" "$2" <<'P' 2> /dev/null || echo 100
import json, sys
d = json.load(open(sys.argv[1]))
for x in d.get("plans", [d])[0]["lengths"]:
    if x["length"] == int(sys.argv[2]): print(int(100 * x["accuracy"]))
P
}

knows() { # NAME LENGTH: full attention is right at least once in ten there
    [ $print = 1 ] || [ "$(accuracy "$1" "$2")" -ge 10 ] || { echo "full attention is below 10 % at $2 tokens: no longer ones"; return 1; }
}
main_lengths() {
    local n=${lengths##*,}
    evaluate $task-$n $task $lengths $n_eval full uniform:0.5 "$(best $main)" || return 1
    [ -n "$further" ] && knows $task-$n $n && evaluate $task-$further $task $further $n_eval full uniform:0.5 "$(best $main)"
}
far() { # ten of full attention's first
    [ -n "$far" ] || return 0
    [ $print = 1 ] || { [ -e "$out/eval/$task-$further.json" ] && knows $task-$further $further; } || return 0
    evaluate $task-$far-first $task $far 10 full && knows $task-$far-first $far || return 0
    local v plans=()
    for v in $main_kind-rounds-group-0.5 $main_kind-joint-head-0.5 $main_kind-joint-query-0.5; do
        [ -e "$(best $v)" ] && plans+=("$(best $v)")
    done
    evaluate $task-$far $task $far $n_eval full uniform:0.5 "$(best $main)" || return 1
    [ ${#plans[@]} -eq 0 ] || evaluate $task-$far-others $task $far $n_eval "${plans[@]}"
}
# the comparisons' lengths at which full attention still answers
few_lengths() {
    local at list=
    for at in ${few//,/ }; do
        [ $print = 1 ] || case ",$lengths," in *",$at,"*) true ;; *) [ -e "$out/eval/$task-$at.json" ] ;; esac && list=$list,$at
    done
    echo "${list#,}"
}
densities() {
    local d list at=$lengths
    for d in 0.25 0.75; do
        variant $main_kind joint group $d || continue
        list=$(few_lengths); [ -n "$list" ] || continue
        evaluate $task-density-$d $task "$list" $n_few uniform:$d "$(best $main_kind-joint-group-$d)"
        evaluate ppl-density-$d ppl $ppl_lengths $n_ppl uniform:$d "$(best $main_kind-joint-group-$d)"
    done
}
others() { # NAME KIND-MEASURE-PER...: at density .5
    local name=$1 v plans=() list; shift
    for v in "$@"; do
        # shellcheck disable=SC2086
        variant ${v//-/ } 0.5 && plans+=("$(best $v-0.5)")
    done
    list=$(few_lengths)
    [ ${#plans[@]} -gt 0 ] && [ -n "$list" ] || return 1
    evaluate $task-$name $task "$list" $n_few "${plans[@]}"
    evaluate ppl-$name ppl $ppl_lengths $n_ppl "${plans[@]}"
}
rounds() {
    local list
    refined || return 1
    list=$(few_lengths); [ -n "$list" ] || return 1
    evaluate $task-rounds $task "$list" $n_few "$(best $main_kind-rounds-group-0.5)"
    evaluate ppl-rounds ppl $ppl_lengths $n_ppl "$(best $main_kind-rounds-group-0.5)"
}
run_stages() {
    local stage k
    for stage in $stages; do
        case $stage in
        calibrate) calibrate $main_kind && holdout ;;
        profile) profile $main_kind ;;
        search) search $main_kind joint group 0.5 ;;
        validate) validate $main_kind joint group 0.5 ;;
        main) main_lengths ;;
        far) far ;;
        perplexity) evaluate ppl-main ppl $ppl_lengths $n_ppl full uniform:0.5 "$(best $main)" ;;
        passkey) [ -z "$passkey_lengths" ] || evaluate passkey-main passkey $passkey_lengths $n_passkey full uniform:0.5 "$(best $main)" ;;
        mix) others kind-mix mix-joint-group ;;
        rounds) rounds ;;
        densities) densities ;;
        measures) others measures $main_kind-abs-group $main_kind-signed-group ;;
        kinds) for k in $kinds; do others kind-$k $k-joint-group; done ;;
        heads) others heads $main_kind-joint-head $main_kind-joint-query ;;
        esac
    done
}
if [ $print = 0 ]; then
    echo "to do, at $rate tokens/s (a guess; --rate TOK_S):"
    (print=1; run_stages; printf '  %-34s %12d tokens  %6d s\n' "in all, at most" $total $((total / rate)))
else
    run_stages
    printf '  %-34s %12d tokens  %6d s\n' "in all, at most" $total $((total / rate))
    exit 0
fi
run_stages
[ $failed = 0 ] && echo "proof.sh: $stages: done in $((SECONDS - begin)) s; scripts/proof_table.py $out makes the table"
exit $failed
