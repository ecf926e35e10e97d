#!/bin/bash
# The measurements of a GPU, as JSON files and a text each: bench_gpu.sh BUILD OUT [attn] [steps] [replay] [probe] [load] [peers]
#   attn     decode attention of a layer under unequal spans: 8B and 7B shapes, 4k to 128k tokens, 1 to 32 sequences; about 2 minutes
#   steps    whole decode steps, random weights of true shapes, and SmolLM2 where it is fetched; about 4 minutes, most of it making weights
#   replay   the paper's decode table on the 7B shape; about 2 minutes, and 72 GB of GPU memory
#   probe    steps without and with head statistics     load    SmolLM2 from a warm file
#   peers    PyTorch, FlashInfer, transformers where they are installed (PYTHON=...), after a row of ours in the same run
# Without names: all of them.
set -u
build=${1:?BUILD folder} out=${2:?OUT folder}
shift 2
[ $# -gt 0 ] || set -- attn steps replay probe load peers
source=$(cd "$(dirname "$0")/.." && pwd)
moascope=$build/moascope
smol=${SMOLLM2:-$HOME/.cache/moascope/models/SmolLM2-135M-Instruct-Q4_1.gguf}
mkdir -p "$out" || exit 1
failed=0
# bench NAME options...
bench() {
    local name=$1; shift
    "$moascope" bench --device cuda "$@" --json "$out/$name.json" > "$out/$name.txt" 2> "$out/$name.err" || {
        echo "FAILED: $name"; cat "$out/$name.err"; failed=1; }
    echo "== $name"; cat "$out/$name.txt"
}
plans="full groups:0.8,0.2"
attn() {
    for shape in llama3-8b vicuna-7b; do
        bench attn-$shape-1 --shape $shape --what decode-attn --plan $plans --batch 1 --depth 4096,16384,131072
        bench attn-$shape-8 --shape $shape --what decode-attn --plan $plans --batch 8 --depth 16384
        bench attn-$shape-32 --shape $shape --what decode-attn --plan $plans --batch 32 --depth 8192
    done
}
steps() {
    [ -f "$smol" ] && bench steps-smollm2 "$smol" --what step --plan full uniform:0.5 --batch 1,8,32 --depth 0,4096
    bench steps-8b-q4_0 --shape llama3-8b --type q4_0 --what step --plan $plans --batch 1,8 --depth 0,4096,16384,32768
    bench steps-8b-bf16 --shape llama3-8b --type bf16 --what step --plan $plans --batch 1,8 --depth 0,16384
    bench steps-7b-q4_0 --shape vicuna-7b --type q4_0 --what step --plan $plans --batch 1 --depth 0,4096,16384
}
replay() { bench replay --replay paper; }
probe() {
    [ -f "$smol" ] && bench probe-smollm2 "$smol" --what probe --depth 512,4096
    bench probe-8b --shape llama3-8b --type q4_0 --what probe --plan $plans --depth 4096
}
load() { if [ -f "$smol" ]; then bench load-smollm2 "$smol" --what load; else echo "load: no $smol: not run"; fi; }
peers() {
    for shape in llama3-8b vicuna-7b; do
        bench peers-$shape-ours --shape $shape --what decode-attn --plan $plans --batch 1,8 --depth 4096,16384
        for peer in torch_attention flashinfer_decode; do
            "${PYTHON:-python3}" -B "$source/scripts/peers/$peer.py" --shape $shape --plan $plans --batch 1,8 --depth 4096,16384 \
                --json "$out/peers-$shape-$peer.json" || failed=1
        done
    done
    "${PYTHON:-python3}" -B "$source/scripts/peers/hf_generate.py" --json "$out/peers-hf.json" || failed=1
}
for what in "$@"; do
    case $what in
    attn | steps | replay | probe | load | peers) $what ;;
    *) echo "bench_gpu.sh: $what: attn, steps, replay, probe, load or peers"; exit 2 ;;
    esac
done
exit $failed
