#!/bin/sh
# From a fresh clone to the workbench: packages, build, demo model, and a demo prompt running in it.
#   scripts/start.sh            everything; on the GPU if there is one, else on the CPU
#   scripts/start.sh ARGS...    the same, then moascope ARGS (another model, a subcommand ...)
# Each step is skipped when it is done already, so this is also the way to start it again.
set -eu
cd "$(dirname "$0")/.."

sh scripts/packages.sh run
if ! [ -f build/release/build.ninja ]; then
    set_up=-DMOA_CUDA=AUTO
    if ! [ -e /dev/nvidiactl ] && ! [ -e /dev/dxg ]; then # GPU code for every architecture would take many minutes
        set_up=-DMOA_CUDA=OFF
        echo "start.sh: no NVIDIA GPU here: built for the CPU alone (cmake --preset release -DMOA_CUDA=AUTO changes that)" >&2
    fi
    cmake --preset release -DMOA_TESTS=OFF $set_up
fi
cmake --build --preset release
model=$(python3 scripts/fetch_model.py smollm2 | tail -n 1)

if [ $# -gt 0 ]; then exec build/release/moascope "$@"; fi
exec build/release/moascope "$model" --prompt-file tests/data/prompt_600.txt -n 64 --run
