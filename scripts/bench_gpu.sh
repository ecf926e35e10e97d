#!/bin/bash
# The measurements of a GPU in one run: bench_gpu.sh BUILD OUT [SECTION...]
#   attn     decode attention of a layer under unequal spans: 8B, 7B, SmolLM2's and Qwen2.5-1.5B's shapes, 4k to 128k tokens, 1 to 32 sequences;
#            prompts' attention at 8k
#   small    SmolLM2 where it is fetched: steps, steps and prompts with statistics, time to first token, memory, loading from a warm file
#   shapes   steps of SmolLM2's shape in Q4_1 and of Qwen2.5-1.5B's as its Q4_K_M file has them, random weights, up to 32k tokens and 32 sequences
#   8b       Llama-3-8B's shape in Q4_0 with random weights: as small, and steps at up to 32k tokens and 32 sequences
#   bf16     its steps in BF16      7b   Vicuna-7B's shape in Q4_0: steps at 16k
#   load     loading from a warm file: SmolLM2, and 4.2 GB of the 8B shape in Q4_0, which are written to OUT (scripts/gpu/random_gguf.py)
#   replay   the paper's decode table on the 7B shape in F16: 72 GB of GPU memory
#   trace    what a steady step asks of the driver, greedy and drawn
#   peers    PyTorch's and FlashInfer's decode attention where they are installed (PYTHON=...) in the rows of attn, which come first unless they
#            are in OUT already
#   hf       transformers' steps on the 7B and 8B shapes, half precision
# Without names: all of them, in this order, about ten minutes on an H100. Each command has a limit of its own (EACH=100 seconds; three times
# that for a peer, which may compile first), and what it measured until then is kept. At the end OUT/bench.json holds everything and OUT/bench.md
# the tables beside the goals (bench_table.py).
set -u
build=${1:?BUILD folder} out=${2:?OUT folder}
shift 2
[ $# -gt 0 ] || set -- attn small shapes 8b bf16 7b load replay trace peers hf
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
thirds="full groups:0.8,0.5,0.2" # of three KV heads
small() {
    [ -f "$smol" ] || { echo "small: no $smol: not run"; return; }
    bench small-steps "$smol" --what step --plan full uniform:0.5 --batch 1,8,32 --depth 0,4096
    bench small-rest "$smol" --what load,probe,ttft,memory --plan full uniform:0.5 --depth 512,4096
}
# the rows of scripts/peers/peer.py
decode_attn() {
    local shape
    for shape in llama3-8b vicuna-7b; do
        bench attn-$shape-1 --shape $shape --what decode-attn --plan $plans --batch 1 --depth 4096,16384,131072
        bench attn-$shape-8 --shape $shape --what decode-attn --plan $plans --batch 8 --depth 16384
        bench attn-$shape-32 --shape $shape --what decode-attn --plan $plans --batch 32 --depth 8192
    done
    bench attn-smollm2 --shape smollm2 --what decode-attn --plan $thirds --batch 1,8 --depth 4096,16384,32768
    bench attn-qwen2.5-1.5b --shape qwen2.5-1.5b --what decode-attn --plan $plans --batch 1,8 --depth 4096,16384,32768
}
attn() {
    local shape
    decode_attn
    for shape in llama3-8b vicuna-7b; do
        bench prefill-$shape --shape $shape --what prefill-attn --plan $plans --depth 8192
    done
}
# beyond SmolLM2's context of 8k: what its shape takes
shapes() {
    bench shape-smollm2 --shape smollm2 --type q4_1 --what step --plan $thirds --batch 1,8,32 --depth 0,4096,16384,32768
    bench shape-qwen2.5-1.5b --shape qwen2.5-1.5b --type q4_k_m --what step --plan $plans --batch 1,8,32 --depth 0,4096,16384,32768
}
8b() {
    bench 8b-q4_0 --shape llama3-8b --type q4_0 --what step,probe,ttft,memory --plan $plans --batch 1 --depth 0,4096
    bench 8b-q4_0-long --shape llama3-8b --type q4_0 --what step --plan $plans --batch 1,8 --depth 16384,32768
    bench 8b-q4_0-32 --shape llama3-8b --type q4_0 --what step --plan $plans --batch 32 --depth 4096,16384
}
bf16() {
    bench 8b-bf16 --shape llama3-8b --type bf16 --what step --plan $plans --batch 1 --depth 0,16384
    bench 8b-bf16-32 --shape llama3-8b --type bf16 --what step --plan $plans --batch 32 --depth 4096,16384
}
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
load() {
    [ ! -f "$smol" ] || bench load-small "$smol" --what load
    local big=$out/random-8b-q4_0.gguf
    "${PYTHON:-python3}" -B "$source/scripts/gpu/random_gguf.py" --shape llama3-8b "$big" || { failed=1; return; }
    bench load-8b "$big" --what load
    rm -f "$big"
}
peer() {
    local name=$1; shift
    timeout $((3 * each)) "${PYTHON:-python3}" -B "$source/scripts/peers/$name.py" "$@" || { echo "FAILED: $name"; failed=1; }
}
peers() {
    [ -f "$out/attn-qwen2.5-1.5b.json" ] || decode_attn
    peer flashinfer_decode --rows --big 512 --reps 10 --json "$out/peers-flashinfer.json"
    peer torch_attention --rows --only flash,cudnn --big 512 --reps 10 --json "$out/peers-torch.json"
}
hf() {
    local cache
    for cache in dynamic static; do
        peer hf_generate --shape vicuna-7b --batch 1,8 --depth 4096 --cache $cache --json "$out/peers-hf-vicuna-7b-$cache.json"
        peer hf_generate --shape llama3-8b --batch 1,8 --depth 4096 --cache $cache --json "$out/peers-hf-llama3-8b-$cache.json"
    done
}
for what in "$@"; do
    case $what in
    attn | small | shapes | 8b | bf16 | 7b | load | replay | trace | peers | hf) $what ;;
    *) echo "bench_gpu.sh: $what: attn, small, shapes, 8b, bf16, 7b, load, replay, trace, peers or hf"; exit 2 ;;
    esac
done
python3 -B "$source/scripts/bench_table.py" "$out" || failed=1
exit $failed
