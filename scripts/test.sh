#!/bin/sh
# Builds and runs all tests from a fresh clone: packages, demo model, the release build's tests, then the same suite under the address,
# undefined-behaviour and thread sanitizers (the last without what starts no thread). A test that cannot run here says "skipped" and why; each
# preset ends with a summary.
#   scripts/test.sh             all
#   scripts/test.sh release     one preset (release, dev, asan, tsan, fuzz, cpu-only)
#   MOA_TEST_CUDA_ARCHS=LIST    GPU architectures of the release build, where there is nvcc but no GPU to run on (default 90-real)
set -eu
cd "$(dirname "$0")/.."

sh scripts/packages.sh test
python3 scripts/fetch_model.py smollm2 >/dev/null || echo "test.sh: the demo model could not be fetched; its tests will say skipped" >&2

status=0
archs=${MOA_TEST_CUDA_ARCHS:-90-real}
cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
for preset in ${*:-release asan tsan}; do
    echo "--- $preset" >&2
    start=$(date +%s)
    set -- -DMOA_TESTS=ON # scripts/start.sh may have left a build without them, and without GPU code
    [ "$preset" = release ] && set -- "$@" -DMOA_CUDA=AUTO
    # a list chosen before, by hand or by start.sh, stays; where code for a GPU can only be compiled, one architecture will do
    if [ "$preset" = release ] && ! [ -e /dev/nvidiactl ] && ! [ -e /dev/dxg ] && command -v nvcc >/dev/null &&
        ! grep -q '^CMAKE_CUDA_ARCHITECTURES:' build/release/CMakeCache.txt 2>/dev/null; then
        echo "test.sh: no GPU here: GPU code is compiled for $archs only (MOA_TEST_CUDA_ARCHS)" >&2
        set -- "$@" "-DCMAKE_CUDA_ARCHITECTURES=$archs"
    fi
    cmake --preset "$preset" "$@"
    cmake --build --preset "$preset"
    built=$(date +%s)
    ctest --preset "$preset" -j "$cores" --no-tests=error || status=$?
    log=build/$preset/Testing/Temporary/LastTest.log
    [ -f "$log" ] && grep -aE '^ *skipped: |^not tested: |: not run$' "$log" | sort -u | sed "s/^ */test.sh: $preset: /" >&2 || true
    echo "test.sh: $preset: build $((built - start)) s, tests $(($(date +%s) - built)) s, status $status so far" >&2
done
exit $status
