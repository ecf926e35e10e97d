#!/bin/bash
# The proof with plans found in rounds and texts weighed in (`refine --text`), in minutes of a GPU or less: many plans of one model, each
# evaluation once over several of them, the most valuable first.
#
#   proof_rounds.sh MODEL OUT [--set passkey|retrieval|tiny] [--stages A,B,...] [--limit SECONDS] [--device D] [--profile N] [--judge N]
#                   [--rounds N] [--weight W] [--cap SECONDS] [--known] [--start PLAN] [--corpus DIR] [--moascope FILE] [--print]
#
#   items      questions answered by the dense model, right ones kept; running text beside them      cal/TASK.jsonl, cal/text.jsonl
#   half       50 % of the KV memory, a rule a KV group, in rounds from full attention                          plans/both-rounds-group-0.5
#   uniform    the same from uniform windows: of running text full attention has next to no slope, a plan that cuts has   both-uniform-group-0.5
#   again      the same from --start PLAN, what an earlier run came to                                         both-again-group-0.5
#   choose     one of these by more questions and texts than a refinement can ask, none of them evaluated on (seed 7, other stretches of
#              calibration/): of the plans that cost texts less than 1 % of perplexity the one with the most right answers; where none costs so
#              little, the one that costs texts least                                                             both-chosen-group-0.5
#   main       that one, or the best by the judged loss (both-best-group-0.5): the task at all lengths but the farthest
#   text       perplexity of held-out texts: full attention, uniform windows, that plan
#   far        the task at the farthest length
#   quarter    25 %, from that plan: effective context is the longest length with nine of ten right, over the mean span: 3 needs a third or less
#   heads      50 %, from that plan, a rule a query head, the KV memory counted by the widest head of a group
#   most       75 %, from that plan
#   third      32 %, from that plan, which is what three times the mean span asks for
#   others     75 and 25 % at once at all lengths, uniform windows beside them
#   passkey    retrieval models: passkeys under full attention, uniform windows and that plan
#   finer      lengths between, for the effective context; full attention too
#   measures   cross-entropy and margin, joint, abs and signed, at once (`profile`, `search`), 50 %, a rule a group
#   grid       margin by the three measures at 25, 50 and 75 %, a rule a group and a rule a query head
#   kinds      calibrated on other items: passkeys, facts, far-apart facts (spread), summaries, mixed, running text alone
#   texts      perplexity under all plans there are
#
# Plans are named KIND-MEASURE-PER-DENSITY. KIND both: the task's items and texts beside them. MEASURE rounds, uniform: refined from full
# attention, from uniform windows; best: the better one; margin: at once, influence at full attention on the margin, its curves over whole
# windows; margin.abs, margin.signed: sums of single keys; joint, abs, signed: the same on cross-entropy.
# --cap ends a refinement, at 50 % a rule a group from elsewhere than full attention after half as much again (best.json is
# kept as it goes); --limit ends everything. What is there is not made again, an evaluation or refinement goes on from its .part. --known: what
# full attention and uniform windows of half the length answer is known of an earlier run, of the same questions.
# Seeds: calibration 1, evaluation 2; texts of calibration/ and heldout/ differ (scripts/corpus.py). proof_table.py OUT... makes the table.
set -u
usage() { sed -n '5,6s/^# *//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
model=$1 out=$2; shift 2
source=$(cd "$(dirname "$0")/.." && pwd)
set=retrieval stages='' limit=0 device=auto n_profile='' n_judge='' n_round='' weight=20 cap=0 known=0 corpus=$HOME/.cache/moascope/corpus moascope='' print=0 begin_at=''
while [ $# -gt 0 ]; do
    case $1 in --print) print=1; shift; continue ;; --known) known=1; shift; continue ;; esac
    [ $# -ge 2 ] || usage
    case $1 in
    --set) set=$2 ;; --stages) stages=${2//,/ } ;; --limit) limit=$2 ;; --device) device=$2 ;; --profile) n_profile=$2 ;;
    --judge) n_judge=$2 ;; --rounds) n_round=$2 ;; --weight) weight=$2 ;; --cap) cap=$2 ;; --corpus) corpus=$2 ;; --moascope) moascope=$2 ;;
    --start) begin_at=$2 ;;
    *) usage ;;
    esac
    shift 2
done
all="items half uniform again choose main text far third quarter heads most others passkey finer measures grid kinds texts"
[ -n "$stages" ] || stages=$all
for stage in $stages; do
    case " $all " in *" $stage "*) ;; *) echo "proof_rounds.sh: $stage is no stage: $all" >&2; exit 2 ;; esac
done
[ -n "$moascope" ] || for b in release dev .; do [ -x "$source/build/$b/moascope" ] && { moascope=$source/build/$b/moascope; break; }; done
[ -x "$moascope" ] || { echo "proof_rounds.sh: no moascope: --moascope FILE" >&2; exit 2; }
[ -f "$model" ] || [ -d "$model" ] || { echo "proof_rounds.sh: $model is not there" >&2; exit 3; }

# lengths: calibrated, evaluated, the farthest; few: of the comparisons; n: questions a length where a goal hangs on them, and elsewhere
case $set in
tiny) task=passkey cal=512 extend=640 lengths=512,640 far=768 few=512 finer='' n_item=2 n_main=2 n_few=1 ppl=512 n_ppl=1 kinds="facts text"
    : "${n_profile:=1}" "${n_judge:=1}" "${n_round:=2}" ;;
passkey) task=passkey cal=512,1024,2048 extend=4096 lengths=512,1024,2048,4096 far='' few=1024,2048 finer=2560,3072,3584 n_item=14 n_main=40 n_few=16
    ppl=2048 n_ppl=16 kinds="retrieval facts needle spread summary mix text"
    : "${n_profile:=6}" "${n_judge:=8}" "${n_round:=8}" ;;
retrieval) task=retrieval cal=512,1024,2048,4096 extend=8192,16384 lengths=512,1024,2048,4096,8192 far=16384 few=1024,4096 n_item=14 n_main=50 n_few=25
    finer=1280,1536,1792,2560,3072,3584 ppl=4096 n_ppl=16 kinds="passkey facts spread summary mix text"
    : "${n_profile:=5}" "${n_judge:=6}" "${n_round:=8}" ;;
*) usage ;;
esac

mkdir -p "$out"/{cal,influence,plans,eval,log} || exit 1
settings="$(basename "$model") rounds $task"
if [ -f "$out/settings" ] && [ "$(cat "$out/settings")" != "$settings" ]; then
    echo "proof_rounds.sh: $out is of '$(cat "$out/settings")', not of '$settings'" >&2; exit 2
fi
echo "$settings" > "$out/settings"
begin=$SECONDS failed=0
left() { if [ "$limit" -gt 0 ]; then echo $((limit - (SECONDS - begin))); else echo 1000000; fi; }
# step NAME RESULT command...: runs moascope for at most the time left (or $for seconds) unless RESULT is there; its words are in log/NAME.*
step() {
    local name=$1 result=$2 code start time; shift 2
    [ -e "$result" ] && return 0
    if [ $print = 1 ]; then echo "$name: moascope $*"; return 0; fi
    time=$(left)
    [ "$time" -gt 1 ] || { echo "proof_rounds.sh: the limit of $limit s is reached before $name; the same call goes on"; exit 0; }
    [ "${for:-0}" -eq 0 ] || [ "$for" -gt "$time" ] || time=$for
    start=$(date +%s%3N)
    timeout -s INT -k 5 "$time" "$moascope" "$@" < /dev/null > "$out/log/$name.txt" 2> "$out/log/$name.err"
    code=$?
    time=$(($(date +%s%3N) - start))
    printf '{"step": "%s", "seconds": %d.%02d}\n' "$name" $((time / 1000)) $((time % 1000 / 10)) >> "$out/times.jsonl"
    echo "== $name: exit code $code, $time ms; $((SECONDS - begin)) s in all"
    grep -v '^$' "$out/log/$name.txt" | tail -n 14
    case $code in
    0) return 0 ;;
    124 | 130) return 1 ;; # its own limit; a later stage may do with what is there
    *) tail -n 3 "$out/log/$name.err"; failed=1; return 1 ;;
    esac
}
best() { echo "$out/plans/$1/best.json"; }
has() { [ $print = 1 ] || [ -e "$(best "$1")" ]; }

# evaluate NAME TASK LENGTHS ITEMS PLAN...; those that are there
evaluate() {
    local name=$1 what=$2 at=$3 items=$4 plans=() docs=() given=() p q seed=2 from=heldout; shift 4
    case $name in choose-*) seed=7 from=calibration ;; esac
    [ -n "$at" ] || return 0
    for p in "$@"; do
        case $known$what$p in "1${task}full" | "1${task}uniform:0.5") [ "$name" = $task-finer ] || continue ;; esac
        case $p in full | uniform:*) ;; *) has "$p" || continue; p=$(best "$p") ;; esac
        for q in ${given[@]+"${given[@]}"}; do cmp -s "$p" "$q" && continue 2; done # the best one under its own name
        given+=("$p"); plans+=(--plan "$p")
    done
    [ ${#given[@]} -gt 0 ] || return 0
    case $what in ppl) docs=(--docs "$corpus/$from") ;; esac
    [ -e "$out/eval/$name.json" ] || [ $print = 1 ] || printf '%s\n' "$what" "$at" "$items" "${given[@]}" > "$out/eval/$name.args"
    step "eval-$name" "$out/eval/$name.json" eval "$model" --task "$what" --lengths "$at" --items "$items" --seed $seed "${plans[@]}" \
        ${docs[@]+"${docs[@]}"} --device "$device" --json "$out/eval/$name.json"
}
calibrate() { # KIND
    local from=(--synthetic "$1")
    case $1 in
    mix) from=(--synthetic "$task" --docs "$corpus/calibration" --ask summary) ;;
    summary | spread) from=(--docs "$corpus/calibration" --ask "$1") ;;
    esac
    [ "$1" = "$task" ] || from+=(-n 48)
    step "calibrate-$1" "$out/cal/$1.jsonl" calibrate "$model" "${from[@]}" --lengths $cal --items $n_item --only-right --seed 1 \
        --device "$device" -o "$out/cal/$1.jsonl"
}
text() {
    [ -e "$out/cal/text.jsonl" ] || [ $print = 1 ] || python3 "$source/scripts/text_items.py" "$model" "$corpus/calibration" --lengths $cal \
        --items $((n_profile + n_judge)) --moascope "$moascope" -o "$out/cal/text.jsonl" || { failed=1; return 1; }
}
# refine NAME PER DENSITY ROUNDS SECONDS [START]: both-NAME-PER-DENSITY
refine() {
    local v=both-$1-$2-$3 start=() step=0.3
    case $1-$2-$# in again-*-* | *-head-*) step=0.15 ;; *-5) step=0.2 ;; esac # near a good plan; from full attention
    start=(--step "$step")
    [ $# -lt 6 ] || start+=(--plan "$6")
    for=$5 step "refine-$1-$2-$3" "$out/plans/$v/refine.json" refine "$model" --data "$out/cal/$task.jsonl" --text "$out/cal/text.jsonl" \
        --text-weight "$weight" --lengths $cal --extend $extend${far:+,$far} --density "$3" --per "$2" --items "$n_profile" --judge "$n_judge" \
        "${start[@]}" --rounds "$4" --device "$device" -o "$out/plans/$v"
    has "$v"
}
# of refinements' plans, judged by the same items
better() { # RESULT VARIANT...
    local result=$1 p files=(); shift
    for p in "$@"; do files+=("$(best "$p")"); done
    set -- "$result" "$@"
    has "$1" && [ $print = 0 ] && return 0
    if [ $print = 1 ]; then echo "$result: the best of ${*:2}"; return 0; fi
    python3 - "$(best "$result")" "${files[@]}" <<'P' || failed=1
import json, os, shutil, sys
there = [p for p in sys.argv[2:] if os.path.exists(p)]
judged = lambda p: json.load(open(p))["provenance"]["refine"]
of = {p: judged(p)["loss"] for p in there}
full = {judged(p)["full_attention"] for p in there}
if len(full) > 1: sys.exit("the plans were judged by different items")
if there:
    os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
    shutil.copy(min(there, key=of.get), sys.argv[1])
    print("judged, against full attention's %.4f:" % min(full), {p.split("/")[-2]: round(x, 4) for p, x in of.items()})
P
}
# as said at the top; RESULT VARIANT...
chosen() {
    local result=$1 p files=() lengths_all=$cal${extend:+,${extend%%,*}}; shift
    has "$result" && [ $print = 0 ] && return 0
    for p in "$@"; do [ -e "$(best "$p")" ] && files+=("$(best "$p")"); done
    [ ${#files[@]} -gt 0 ] || [ $print = 1 ] || return 0
    evaluate choose-$task $task "$lengths_all" $((n_main * 4 / 5)) "$@"
    evaluate choose-ppl ppl $ppl $((n_ppl * 2)) full "$@"
    if [ $print = 1 ]; then echo "$result: chosen of $*"; return 0; fi
    python3 - "$out/eval/choose-$task.json" "$out/eval/choose-ppl.json" "$(best "$result")" <<'P' || failed=1
import json, math, os, shutil, sys
right = {p["plan"]: sum(x["right"] for n in p["lengths"] for x in n["items"]) for p in json.load(open(sys.argv[1]))["plans"]}
texts = {p["plan"]: [x["loss"] for n in p["lengths"] for x in n["items"]] for p in json.load(open(sys.argv[2]))["plans"]}
full = texts["full"]
rise = {p: math.expm1(sum(a - b for a, b in zip(texts[p], full)) / len(full)) for p in right if p in texts}
within = {p: x for p, x in rise.items() if x < .01}
one = max(within, key=lambda p: (right[p], -rise[p])) if within else min(rise, key=rise.get)
for p in rise:
    print("%-24s %d right, perplexity %+.2f %%%s" % (p.split("/")[-2], right[p], 100 * rise[p], "  <- chosen" if p == one else ""))
os.makedirs(os.path.dirname(sys.argv[3]), exist_ok=True)
shutil.copy(one, sys.argv[3])
P
}
profile() { # KIND margin|cross-entropy
    step "profile-$1-$2" "$out/influence/$1-$2.npz" profile "$model" --data "$out/cal/$1.jsonl" --lengths $cal --items "$n_profile" --loss "$2" \
        --device "$device" -o "$out/influence/$1-$2.npz"
}
# search KIND MEASURE PER DENSITY: the plan of the least mean loss; on CPU cores, several at a time
search() {
    local loss=cross-entropy m=$2 dir=$out/plans/$1-$2-$3-$4 from
    case $2 in margin) loss=margin m=joint ;; margin.*) loss=margin m=${2#margin.} ;; esac
    from=$out/influence/$1-$loss.npz
    [ "$1" != both ] || from=$out/plans/both-rounds-group-0.5/round_01.npz
    [ ! -e "$dir/best.json" ] || return 0
    if [ $print = 1 ]; then echo "search $1-$2-$3-$4"; return 0; fi
    [ -e "$from" ] || { echo "search $1-$2-$3-$4: no $from"; return 1; }
    "$moascope" search "$from" --measure $m --per "$3" --density "$4" --extend $extend${far:+,$far} --stretch --intervals 1 \
        --force --threads 2 -o "$dir" > "$out/log/search-$1-$2-$3-$4.txt" 2>&1 &&
        python3 - "$dir" <<'P' && return 0
import json, os, shutil, sys
d = sys.argv[1]
p = min(json.load(open(d + "/pareto.json"))["plans"], key=lambda p: p["mean_loss"])
shutil.copy(os.path.join(d, p["file"]), d + "/best.json")
P
    echo "search $1-$2-$3-$4 failed:"; tail -n 2 "$out/log/search-$1-$2-$3-$4.txt"
    return 1
}
searches() { # VARIANT...: all at once
    local v pids=() p
    for v in "$@"; do
        IFS=- read -r kind measure per density <<< "$v"
        search "$kind" "$measure" "$per" "$density" &
        pids+=($!)
    done
    for p in ${pids[@]+"${pids[@]}"}; do wait "$p" || failed=1; done
}
# plans of the influence at full attention, where that was measured
at_once() { [ $print = 0 ] && [ ! -e "$out/plans/both-rounds-group-0.5/round_01.npz" ] || searches "$@"; }
kinds() {
    local k list=() ready=()
    for k in $kinds; do
        if [ "$k" = text ]; then # running text alone, by cross-entropy
            text && profile text cross-entropy && ready+=(text-joint-group-0.5)
        else
            { [ -e "$(best "$k-margin-group-0.5")" ] || { calibrate "$k" && profile "$k" margin; }; } && ready+=("$k-margin-group-0.5")
        fi
    done
    searches ${ready[@]+"${ready[@]}"}
    for k in ${ready[@]+"${ready[@]}"} "$task-margin-group-0.5"; do list+=("$k"); done
    evaluate $task-kinds $task $few $n_few "${list[@]}"
    evaluate ppl-kinds ppl $ppl $((n_ppl / 2 + 1)) full "${list[@]}"
}
# the plan that goes on: the chosen one, else the best by the judged loss
it() {
    it=both-chosen-group-0.5
    [ -e "$(best $it)" ] && return 0
    it=both-best-group-0.5
    better $it both-rounds-group-0.5 both-uniform-group-0.5 both-again-group-0.5
}
run() {
    local d p m list it
    case $1 in items | half | uniform | again | choose) ;; *) it ;; esac
    case $1 in
    items) calibrate $task && text ;;
    half) refine rounds group 0.5 "$n_round" "$cap" ;;
    uniform) refine uniform group 0.5 "$n_round" $((cap * 3 / 2)) uniform:0.5 ;;
    again) [ -z "$begin_at" ] || refine again group 0.5 "$n_round" $((cap * 3 / 2)) "$begin_at" ;;
    choose) if [ -n "$begin_at" ] && [ $print = 0 ]; then mkdir -p "$out/plans/both-start-group-0.5" && cp "$begin_at" "$(best both-start-group-0.5)"; fi
        chosen both-chosen-group-0.5 both-{rounds,uniform,again,start}-group-0.5 ;;
    main)
        evaluate $task-half $task $lengths $n_main $it full uniform:0.5 ;;
    text) at_once both-margin-group-0.5
        evaluate ppl-half ppl $ppl $n_ppl full $it uniform:0.5 both-margin-group-0.5 both-rounds-group-0.5 both-uniform-group-0.5 ;;
    far) evaluate $task-far $task "$far" $n_main $it full uniform:0.5 ;;
    third) refine rounds group 0.32 "$n_round" "$cap" "$(best $it)"
        evaluate $task-third $task "$lengths" $n_main both-rounds-group-0.32
        evaluate ppl-third ppl $ppl $n_ppl full both-rounds-group-0.32 uniform:0.32 ;;
    others) at_once both-margin-group-0.75 both-margin-group-0.25
        evaluate $task-others $task "$lengths${far:+,$far}" $n_main both-margin-group-0.75 both-margin-group-0.25 uniform:0.75 uniform:0.25 ;;
    passkey) [ $task = passkey ] || evaluate passkey-half passkey "$lengths" $((n_main / 2)) full uniform:0.5 $it ;;
    quarter) refine rounds group 0.25 "$n_round" "$cap" "$(best $it)" && at_once both-margin-group-0.25
        evaluate $task-quarter $task "$(echo $lengths | cut -d, -f 1-4)" $n_main both-rounds-group-0.25 &&
            evaluate $task-quarter-others $task $few $n_few both-margin-group-0.25 uniform:0.25 ;;
    heads) refine rounds head 0.5 "$n_round" "$cap" "$(best $it)" && at_once both-margin-head-0.5
        evaluate $task-heads $task $few $n_main both-rounds-head-0.5 both-margin-head-0.5 ;;
    most) refine rounds group 0.75 "$n_round" "$cap" "$(best $it)" && at_once both-margin-group-0.75
        evaluate $task-most $task $few $n_few both-rounds-group-0.75 both-margin-group-0.75 uniform:0.75 ;;
    finer) evaluate $task-finer $task "$finer" $n_main full $it both-rounds-group-0.32 both-rounds-group-0.25 ;;
    measures)
        list=("$task"-{margin,margin.abs,margin.signed,joint,abs,signed}-group-0.5)
        profile $task margin && profile $task cross-entropy && searches "${list[@]}"
        evaluate $task-measures $task $few $n_few "${list[@]}" ;;
    grid)
        list=()
        for m in margin margin.abs margin.signed; do for p in group head; do for d in 0.5 0.25 0.75; do list+=("$task-$m-$p-$d"); done; done; done
        profile $task margin && searches "${list[@]}"
        evaluate $task-grid $task $lengths $n_few "${list[@]}" uniform:0.25 uniform:0.5 uniform:0.75 full ;;
    kinds) kinds ;;
    texts)
        list=()
        for p in "$out"/plans/*/best.json; do [ -e "$p" ] && list+=("$(basename "$(dirname "$p")")"); done
        evaluate ppl-all ppl $ppl $((n_ppl / 2 + 1)) full uniform:0.25 uniform:0.5 uniform:0.75 ${list[@]+"${list[@]}"} ;;
    esac
}
for stage in $stages; do run "$stage"; done
[ $failed = 0 ] && echo "proof_rounds.sh: $stages: ended after $((SECONDS - begin)) s; scripts/proof_table.py $out makes the table"
exit $failed
