#!/bin/sh
# Installs what moascope needs from Debian or Ubuntu: packages.sh run|test
#   run   compiler, build tools, libraries, Python's pip (it only downloads the demo model)
#   test  the above, and what the tests use
# Does nothing, and needs no root, when all is there already.
set -eu

run="build-essential cmake ninja-build pkg-config git ca-certificates python3 python3-pip
 libncurses-dev libreadline-dev libcjson-dev libopenblas-dev libpcre2-dev libutf8proc-dev libsqlite3-dev libpng-dev
 libminizip-dev zlib1g-dev"
test="libcmocka-dev clang tmux python3-numpy"

case ${1:-run} in
run) wanted=$run ;;
test) wanted="$run $test" ;;
*) echo "usage: packages.sh run|test" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "packages.sh: this is not Debian or Ubuntu; install the equivalents of:" $wanted >&2
    exit 0
fi
missing=
for p in $wanted; do
    dpkg-query -W -f='${db:Status-Abbrev}' "$p" 2>/dev/null | grep -q '^ii' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then as_root=
elif command -v sudo >/dev/null; then as_root=sudo
else
    echo "packages.sh: these packages are missing and neither root nor sudo is at hand:$missing" >&2
    exit 1
fi
echo "Installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -q >&2
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2
