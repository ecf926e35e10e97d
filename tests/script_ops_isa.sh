#!/usr/bin/env bash
# The parity test once more for each weaker set of kernels that this machine could choose (MOASCOPE_CPU).
set -u
rc=0
for isa in c avx2; do
  out=$(MOASCOPE_CPU=$isa "$1/test_ops") || { echo "$out" | grep -E 'FAILED|tested'; rc=1; }
  echo "$isa: $(tail -n 1 <<<"$out")"
done
exit $rc
