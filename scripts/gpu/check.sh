#!/bin/sh
# Everything that wants a GPU, in one call: parity of every operation, the driver part, timings, and the four sanitizers.
#
#   scripts/gpu/check.sh [PACK [LOGS]]       PACK: the folder of pack.sh (default build/gpu), LOGS: default PACK/logs
#
# The sanitizers run side by side (they wait for the CPU reference most of the time), each for SECONDS_EACH at most (default 240), all of them
# only when parity holds. TOOLS and BENCH=0 choose less. Exits 1 if anything failed. A short summary comes last; the full output is in LOGS.
set -u
cd "$(dirname "$0")/../.."
pack=${1:-build/gpu}
logs=${2:-$pack/logs}
each=${SECONDS_EACH:-240}
mkdir -p "$logs"
export CUDA_MODULE_LOADING=LAZY
failed=0
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | tee "$logs/gpu.txt"

run() { # run NAME LIMIT COMMAND...: says how it ended and how long it took
    name=$1 limit=$2
    shift 2
    start=$(date +%s)
    timeout "$limit" "$@" >"$logs/$name.txt" 2>&1
    code=$?
    echo "== $name: exit $code, $(($(date +%s) - start)) s"
    return $code
}

run driver 120 "$pack/run" test_ops_cuda || failed=1
tail -12 "$logs/driver.txt"
run gemm 120 "$pack/run" test_ops_gemm || failed=1
tail -5 "$logs/gemm.txt"
run parity 240 "$pack/run" test_ops --device cuda || failed=1
grep -v '^ *$' "$logs/parity.txt" | tail -40
if [ "${BENCH:-1}" = 1 ]; then
    run bench 120 "$pack/run" test_ops_cuda --bench || failed=1
    cat "$logs/bench.txt"
    for gemm in f32 tf32 bf16; do
        MOASCOPE_CUDA_GEMM=$gemm run "parity_matmul_$gemm" 60 "$pack/run" test_ops --device cuda --op matmul
        grep -E "worst" "$logs/parity_matmul_$gemm.txt"
        MOASCOPE_CUDA_GEMM=$gemm run "bench_matmul_$gemm" 60 "$pack/run" test_ops_cuda --bench matmul
        grep TFLOP "$logs/bench_matmul_$gemm.txt"
    done
fi
[ $failed = 0 ] || tools=${TOOLS:-memcheck}
sanitize() { # sanitize NAME TOOL ARGS...; test_ops_cuda fills the card on purpose, which they would report: only test_ops runs here
    name=$1 tool=$2
    shift 2
    run "$name" "$each" compute-sanitizer --target-processes all --tool "$tool" --error-exitcode 9 --print-limit 20 "$pack/run" test_ops \
        --device cuda "$@"
}
for tool in ${tools:-${TOOLS:-memcheck racecheck initcheck synccheck}}; do
    if [ "$tool" = racecheck ]; then # slow: an operation a process
        for op in $("$pack/run" test_ops --list | grep -vE "golden|brute"); do sanitize "racecheck_$op" racecheck --op "$op" & done
    else
        sanitize "$tool" "$tool" &
    fi
done
wait
for file in "$logs"/memcheck.txt "$logs"/initcheck.txt "$logs"/synccheck.txt "$logs"/racecheck_*.txt; do
    [ -f "$file" ] || continue
    grep -E "ERROR SUMMARY|RACECHECK SUMMARY|comparisons, .* failed|hazard" "$file" | sort | uniq -c | head -5 | sed "s|^|$(basename "$file" .txt): |"
    grep -qE "ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards" "$file" || failed=1
done
exit $failed
