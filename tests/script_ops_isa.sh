#!/usr/bin/env bash
# The parity test once more for each weaker set of kernels that this machine could choose (MOASCOPE_CPU).
set -u
rc=0
every=(--every 5) # what does not depend on the set runs whole in test_ops; in sanitized builds that itself leaves most out, and this takes each 23rd
grep -qE '^MOA_SANITIZE:[A-Z]*=.+' "$1/CMakeCache.txt" 2>/dev/null && every=(--every 23)
grep -qE '^MOA_SANITIZE:[A-Z]*=.*thread' "$1/CMakeCache.txt" 2>/dev/null && every=(--every 97) # the same threads, with other loops inside
for isa in c avx2; do
  out=$(MOASCOPE_CPU=$isa "$1/test_ops" "${every[@]}") || { echo "$out" | grep -E 'FAILED|tested'; rc=1; }
  echo "$isa, each ${every[1]}. case: $(tail -n 1 <<<"$out")"
done
exit $rc
