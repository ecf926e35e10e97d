/* cuda_fault.h -- what a CUDA error at start-up means to the user, and what to do about it.
 *
 * The numbers are the same in the driver API (which core/engine/backend.c asks, through dlopen) and in the runtime (which the
 * CUDA module asks), so that both say the same words. Header-only: the module does not link the engine. */
#ifndef MOA_ENGINE_CUDA_FAULT_H
#define MOA_ENGINE_CUDA_FAULT_H

#include <stdio.h>

enum { MOA_CUDA_DRIVER_MIN = 13000 }; /* of drivers 580 and newer: what a module made by CUDA 13 needs */

/* code, text */
#define MOA_CUDA_FAULT_MAP(X)                                                                                \
    X(2, "the GPU is out of memory")                                                                         \
    X(34, "the CUDA stub library was found instead of the driver (see LD_LIBRARY_PATH)")                     \
    X(46, "the GPU is busy or held exclusively by another process")                                          \
    X(100, "no GPU is visible (see CUDA_VISIBLE_DEVICES)")                                                   \
    X(101, "there is no GPU of that number")                                                                 \
    X(801, "this GPU or driver does not support what is needed")                                             \
    X(802, "the GPU's system services are not ready yet (nvidia-fabricmanager)")                             \
    X(803, "the driver's kernel module and its library differ in version (reboot after an update)")          \
    X(804, "the CUDA compatibility library does not work with this GPU (see LD_LIBRARY_PATH)")               \
    X(999, "the driver failed without a reason (a reboot or `nvidia-smi -r` may help)")

/* One clause without a full stop. driver: what cuDriverGetVersion or cudaDriverGetVersion gave, 0 without a driver;
 * built_for: the module's architectures, may be NULL; fallback: the API's own text for other codes, may be NULL. */
static inline void moa_cuda_fault_text(int code, int driver, const char *built_for, const char *fallback,
                                       char *out, size_t out_bytes) {
    const char *text = NULL;
    switch (code) {
#define X(number, words)                                                                                     \
    case number: text = words; break;
        MOA_CUDA_FAULT_MAP(X)
#undef X
    case 35:
        if (driver == 0)
            text = "no NVIDIA driver";
        else
            (void)snprintf(
                out, out_bytes,
                "the NVIDIA driver is too old: it offers CUDA %d.%d, %d.%d needs driver 580 or newer",
                driver / 1000, driver % 1000 / 10, MOA_CUDA_DRIVER_MIN / 1000,
                MOA_CUDA_DRIVER_MIN % 1000 / 10);
        break;
    case 209:
        (void)snprintf(out, out_bytes, "the CUDA module holds no code for this GPU: it was built for %s only",
                       built_for ? built_for : "others");
        break;
    default: (void)snprintf(out, out_bytes, "CUDA error %d (%s)", code, fallback ? fallback : "no text");
    }
    if (text) (void)snprintf(out, out_bytes, "%s", text);
}

#endif
