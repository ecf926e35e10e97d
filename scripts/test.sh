#!/bin/sh
# Builds and runs all tests from a fresh clone: packages, demo model, the release build's tests, then the same suite under the address,
# undefined-behaviour and thread sanitizers. A test that cannot run here says "skipped" and why.
#   scripts/test.sh             all
#   scripts/test.sh release     one preset (release, dev, asan, tsan, fuzz)
set -eu
cd "$(dirname "$0")/.."

sh scripts/packages.sh test
python3 scripts/fetch_model.py smollm2 >/dev/null || echo "test.sh: the demo model could not be fetched; its tests will say skipped" >&2

status=0
for preset in ${*:-release asan tsan}; do
    echo "--- $preset" >&2
    cmake --preset "$preset" -DMOA_TESTS=ON
    cmake --build --preset "$preset"
    ctest --preset "$preset" || status=$?
done
exit $status
