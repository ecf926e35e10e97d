#!/bin/sh
# Collects what a GPU machine without our libraries needs, into one folder that can be copied there as it is.
#
#   scripts/gpu/pack.sh [BUILD [OUT]]        BUILD: a build folder with -DMOA_CUDA=ON (default build), OUT: default build/gpu
#
#   OUT/            moascope, test_ops, test_ops_cuda, test_ops_gemm, bench programs if built, libmoascope-cuda.so: stripped
#   OUT/lib/        the shared libraries they need, but for glibc, the compiler's and CUDA's own
#   OUT/run         sh OUT/run PROGRAM [ARGS]: runs one of them with those libraries
#
# For a small folder build the one architecture of that GPU: cmake -DCMAKE_CUDA_ARCHITECTURES=90-real. There it needs glibc 2.36 or newer,
# a driver for CUDA 13 and libcublas.so.13 (found through ldconfig, CUDA_HOME or /usr/local/cuda).
set -eu
cd "$(dirname "$0")/../.."
build=${1:-build}
out=${2:-build/gpu}
[ -f "$build/libmoascope-cuda.so" ] || { echo "pack.sh: $build has no libmoascope-cuda.so: build it with -DMOA_CUDA=ON" >&2; exit 2; }
rm -rf "$out"
mkdir -p "$out/lib"
for name in moascope test_ops test_ops_cuda test_ops_gemm libmoascope-cuda.so; do
    [ -f "$build/$name" ] || continue
    cp "$build/$name" "$out/$name"
    strip "$out/$name"
done
for file in "$out"/*; do
    [ -f "$file" ] || continue
    ldd "$file" | sed -n 's/^[[:space:]]*\([^ ]*\) => \(\/[^ ]*\) .*/\1 \2/p'
done | sort -u | while read -r name path; do
    case $name in
    libc.so.* | libm.so.* | libpthread.so.* | libdl.so.* | librt.so.* | ld-linux* | libstdc++.so.* | libgcc_s.so.* | libcublas* | libcuda*) ;;
    *) cp -L "$path" "$out/lib/$name" && strip --strip-unneeded "$out/lib/$name" ;;
    esac
done
cat >"$out/run" <<'RUN'
#!/bin/sh
# run PROGRAM [ARGS]: a program of this folder with the libraries beside it
here=$(cd "$(dirname "$0")" && pwd)
LD_LIBRARY_PATH=$here/lib:${CUDA_HOME:-/usr/local/cuda}/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
program=$1
shift
exec "$here/$program" "$@"
RUN
chmod +x "$out/run"
du -sh "$out" | cut -f1 | sed "s|^|$out: |"
ls "$out" "$out/lib"
