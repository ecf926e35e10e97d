#!/usr/bin/env bash
# What is said when CUDA cannot be used: a made-up driver library gives each error, a made-up module each way of not fitting.
set -u
build=$1
source=$(cd "$(dirname "$0")/.." && pwd)
cc=${CC:-cc}
command -v "$cc" >/dev/null || { echo "script_cuda_faults: no C compiler to make the fakes with"; exit 77; }
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
rc=0

mkdir "$dir/driver" "$dir/empty"
: >"$dir/empty/libcuda.so.1"
cat >"$dir/driver.c" <<'C'
#include <stdlib.h>
static int number(const char *name) { const char *s = getenv(name); return s ? atoi(s) : 0; }
int cuInit(unsigned flags) { return (int)flags + number("FAKE_CODE"); }
int cuDriverGetVersion(int *v) { *v = number("FAKE_VERSION"); return 0; }
int cuGetErrorString(int code, const char **text) { (void)code; *text = "made up"; return 0; }
C
cat >"$dir/module.c" <<'C'
#include "core/engine/backend.h"
static int32_t none(moa_err *err) {
    err->status = MOA_E_DEVICE;
    __builtin_strcpy(err->text, "no GPU of this kind");
    return 0;
}
static int32_t one(moa_err *err) { (void)err; return 1; }
static moa_status open_fails(moa_backend **out, const moa_backend_config *config, moa_err *err) {
    (void)out, (void)config;
    err->status = MOA_E_MEMORY;
    __builtin_strcpy(err->text, "the GPU is out of memory");
    return MOA_E_MEMORY;
}
#ifdef NO_SYMBOL
int something_else;
#else
extern const moa_backend_module exported __asm__("moa_backend_module");
const moa_backend_module exported = {ABI, "nothing", DEVICES, 0, open_fails};
#endif
C
make_lib() { # output, source, flags...
  local out=$1 from=$2; shift 2
  "$cc" -shared -fPIC -std=gnu17 -w -I"$source" "$@" -o "$out" "$from" || { echo "script_cuda_faults: cannot compile $from"; exit 1; }
}
make_lib "$dir/driver/libcuda.so.1" "$dir/driver.c"
make_lib "$dir/good.so" "$dir/module.c" -DABI=MOA_BACKEND_ABI -DDEVICES=none
make_lib "$dir/full.so" "$dir/module.c" -DABI=MOA_BACKEND_ABI -DDEVICES=one
make_lib "$dir/other.so" "$dir/module.c" -DABI=99 -DDEVICES=none
make_lib "$dir/stranger.so" "$dir/module.c" -DNO_SYMBOL

expect() { # text, device, VAR=value...
  local text=$1 device=$2 out; shift 2
  out=$(env "$@" "$build/test_ops" --device "$device" --op add 2>&1)
  if grep -qF -- "$text" <<<"$out"; then return; fi
  echo "FAILED: expected \"$text\" ($device, $*), got: $out"; rc=1
}
driver=LD_LIBRARY_PATH=$dir/driver
none=LD_LIBRARY_PATH=$dir/empty
expect "cuda: no NVIDIA driver" cuda "$none"
expect "tested: no NVIDIA driver: continuing on the CPU" auto "$none"
expect "as asked" cpu "$none"
expect "unknown device gpu: auto, cpu, cuda or cuda:N" gpu "$none"
expect "unknown device cuda:x" cuda:x "$none"
expect "no NVIDIA driver" cuda "$driver" FAKE_CODE=35
expect "too old: it offers CUDA 12.2, 13.0 needs driver 580 or newer" cuda "$driver" FAKE_CODE=35 FAKE_VERSION=12020
expect "stub library was found instead of the driver (see LD_LIBRARY_PATH)" cuda "$driver" FAKE_CODE=34
expect "no GPU is visible (see CUDA_VISIBLE_DEVICES)" cuda "$driver" FAKE_CODE=100
expect "busy or held exclusively" cuda "$driver" FAKE_CODE=46
expect "does not support what is needed" cuda "$driver" FAKE_CODE=801
expect "differ in version (reboot after an update)" cuda "$driver" FAKE_CODE=803
expect "failed without a reason" cuda "$driver" FAKE_CODE=999
expect "CUDA error 12345 (made up)" cuda "$driver" FAKE_CODE=12345
expect "continuing on the CPU" auto "$driver" FAKE_CODE=999
expect "the CUDA module does not load" cuda "$driver" MOASCOPE_CUDA_MODULE=/nowhere.so
expect "has no moa_backend_module" cuda "$driver" MOASCOPE_CUDA_MODULE="$dir/stranger.so"
expect "of another build: interface 99" cuda "$driver" MOASCOPE_CUDA_MODULE="$dir/other.so"
expect "cuda: no GPU of this kind" cuda "$driver" MOASCOPE_CUDA_MODULE="$dir/good.so"
expect "no GPU of this kind: continuing on the CPU" auto "$driver" MOASCOPE_CUDA_MODULE="$dir/good.so"
expect "there is no cuda:3: 1 GPU here" cuda:3 "$driver" MOASCOPE_CUDA_MODULE="$dir/full.so"
expect "the GPU is out of memory: continuing on the CPU" auto "$driver" MOASCOPE_CUDA_MODULE="$dir/full.so"
[ $rc = 0 ] && echo "cuda faults: every reason is said"
exit $rc
