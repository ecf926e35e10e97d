#!/bin/sh
# The engine process over the wire: tests/serve.py drives it with a tiny model.
command -v python3 > /dev/null || { echo "skipped: no python3"; exit 77; }
exec python3 "$(dirname "$0")/serve.py" "$1"
