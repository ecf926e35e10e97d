#!/bin/bash
# What a steady decode asks of the CUDA driver, step by step: trace_step.sh OUT.json PROGRAM ARGS...
#   e.g. trace_step.sh trace.json build/moascope run MODEL --device cuda --temp 0.8 --ignore-eos -n 300 -p "Once"
# Counts the driver's calls over 100 graph launches from the 61st on (TRACE_SKIP, TRACE_STEPS); the program must make at least 160.
# Exits 1 where a step is more than one replay: kernels launched beside the graphs, uploads in more than one step of 32 (page tables go up
# once every 64 tokens), any download or wait. Needs CUPTI (CUDA_HOME/extras/CUPTI) and a C compiler; exits 77 without.
set -u
out=${1:?OUT.json} here=$(cd "$(dirname "$0")" && pwd)
shift
cupti=${CUPTI_HOME:-${CUDA_HOME:-/usr/local/cuda}/extras/CUPTI}
include=$(for d in "$cupti/include" "$cupti/../../include" "${CUDA_HOME:-/usr/local/cuda}/include"; do [ -f "$d/cupti.h" ] && echo "$d" && break; done)
library=$(ls -d "$cupti/lib64" "${CUDA_HOME:-/usr/local/cuda}/lib64" 2>/dev/null | while read -r d; do ls "$d"/libcupti.so* >/dev/null 2>&1 && echo "$d" && break; done)
[ -n "$include" ] && [ -n "$library" ] || { echo "trace_step.sh: no CUPTI under $cupti: not run"; exit 77; }
temp=$(mktemp -d) || exit 1
trap 'rm -rf "$temp"' EXIT
file=$(ls "$library"/libcupti.so* | head -1)
${CC:-cc} -shared -fPIC -O1 -o "$temp/trace_step.so" "$here/trace_step.c" -I"$include" -I"${CUDA_HOME:-/usr/local/cuda}/include" \
    "$file" -Wl,-rpath,"$library" || { echo "trace_step.sh: does not compile: not run"; exit 77; }
TRACE_OUT=$out CUDA_INJECTION64_PATH=$temp/trace_step.so LD_LIBRARY_PATH=$library:${LD_LIBRARY_PATH:-} "$@" >/dev/null || exit 1
[ -s "$out" ] || { echo "trace_step.sh: nothing was counted"; exit 1; }
cat "$out"
python3 - "$out" <<'PY'
import json, sys
t = json.load(open(sys.argv[1]))
n = t["steps"]
bad = [k for k, most in (("kernel_launches", 0), ("downloads", 0), ("synchronisations", 0), ("memsets", 0), ("copies", 0), ("uploads", n // 32))
       if t[k] > most]
if n < 100 or t["graph_launches"] != n:
    bad.append("graph_launches")
print("steady: one replay a step" if not bad else "not steady: " + ", ".join("%s %s" % (k, t[k]) for k in bad))
sys.exit(bool(bad))
PY
