#!/bin/bash
# The measurements of a GPU in one run: bench_gpu.sh BUILD OUT [SECTION...]
#   attn     decode attention of a layer under unequal spans: 8B and 7B shapes, 4k to 128k tokens, 1 to 32 sequences
#   small    SmolLM2 where it is fetched: steps, steps and prompts with statistics, time to first token, memory, loading from a warm file
#   8b       Llama-3-8B's shape in Q4_0 with random weights: the same, and steps at up to 32k tokens
#   bf16     its steps in BF16      7b   Vicuna-7B's shape in Q4_0: steps at 16k
#   replay   the paper's decode table on the 7B shape in F16: 72 GB of GPU memory
#   trace    what a steady step asks of the driver, greedy and drawn
#   peers    PyTorch, FlashInfer, transformers where they are installed (PYTHON=...), after a row of ours in the same run
# Without names: all of them, in this order, about five minutes on an H100. Each command has a limit of its own (EACH=100 seconds), and what it
# measured until then is kept. At the end OUT/bench.json holds everything and OUT/bench.md the tables beside the goals (bench_table.py).
set -u
build=${1:?BUILD folder} out=${2:?OUT folder}
shift 2
[ $# -gt 0 ] || set -- attn small 8b bf16 7b replay trace peers
source=$(cd "$(dirname "$0")/.." && pwd)
moascope=$build/moascope
smol=${SMOLLM2:-$HOME/.cache/moascope/models/SmolLM2-135M-Instruct-Q4_1.gguf}
each=${EACH:-100} reps=${REPS:-5}
mkdir -p "$out" || exit 1
failed=0
# bench NAME options...
bench() {
    local name=$1 start=$SECONDS; shift
    timeout -s INT -k 10 "$each" "$moascope" bench --device cuda --reps "$reps" "$@" --json "$out/$name.json" > "$out/$name.txt" 2> "$out/$name.err" || {
        echo "FAILED: $name"; tail -3 "$out/$name.err"; failed=1; }
    echo "== $name ($((SECONDS - start)) s)"; cat "$out/$name.txt"
}
plans="full groups:0.8,0.2"
small() {
    [ -f "$smol" ] || { echo "small: no $smol: not run"; return; }
    bench small-steps "$smol" --what step --plan full uniform:0.5 --batch 1,8,32 --depth 0,4096
    bench small-rest "$smol" --what load,probe,ttft,memory --plan full uniform:0.5 --depth 512,4096
}
attn() {
    local shape
    for shape in llama3-8b vicuna-7b; do
        bench attn-$shape-1 --shape $shape --what decode-attn --plan $plans --batch 1 --depth 4096,16384,131072
        bench attn-$shape-8 --shape $shape --what decode-attn --plan $plans --batch 8 --depth 16384
        bench attn-$shape-32 --shape $shape --what decode-attn --plan $plans --batch 32 --depth 8192
        bench prefill-$shape --shape $shape --what prefill-attn --plan $plans --depth 8192
    done
}
8b() {
    bench 8b-q4_0 --shape llama3-8b --type q4_0 --what step,probe,ttft,memory --plan $plans --batch 1 --depth 0,4096
    bench 8b-q4_0-long --shape llama3-8b --type q4_0 --what step --plan $plans --batch 1,8 --depth 16384,32768
}
bf16() { bench 8b-bf16 --shape llama3-8b --type bf16 --what step --plan $plans --batch 1 --depth 0,16384; }
7b() { bench 7b-q4_0 --shape vicuna-7b --type q4_0 --what step --plan $plans --batch 1 --depth 0,16384; }
replay() { bench replay --replay paper --reps 3; }
trace() {
    [ -f "$smol" ] || { echo "trace: no $smol: not run"; return; }
    local temp code
    for temp in 0 0.8; do
        echo "== trace --temp $temp"
        timeout "$each" "$source/scripts/gpu/trace_step.sh" "$out/trace-$temp.json" "$moascope" run "$smol" --device cuda --temp $temp --seed 1 \
            --ignore-eos --no-session -q -n 300 -p "Once upon a time"
        code=$?
        [ $code = 0 ] || [ $code = 77 ] || failed=1
    done
}
peers() {
    local shape peer
    for shape in llama3-8b vicuna-7b; do
        bench peers-$shape-ours --shape $shape --what decode-attn --plan $plans --batch 1,8 --depth 4096,16384
        for peer in torch_attention flashinfer_decode; do
            timeout "$each" "${PYTHON:-python3}" -B "$source/scripts/peers/$peer.py" --shape $shape --plan $plans --batch 1,8 --depth 4096,16384 \
                --json "$out/peers-$shape-$peer.json" || failed=1
        done
    done
    timeout "$each" "${PYTHON:-python3}" -B "$source/scripts/peers/hf_generate.py" --json "$out/peers-hf.json" || failed=1
}
for what in "$@"; do
    case $what in
    attn | small | 8b | bf16 | 7b | replay | trace | peers) $what ;;
    *) echo "bench_gpu.sh: $what: attn, small, 8b, bf16, 7b, replay, trace or peers"; exit 2 ;;
    esac
done
python3 -B "$source/scripts/bench_table.py" "$out" || failed=1
exit $failed
