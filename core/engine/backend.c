/* backend.c -- which device: the words of the command line, the CUDA module, and the reasons.
 *
 *   "auto"     the first GPU that opens, else the CPU, and why not the GPU
 *   "cpu"      the CPU
 *   "cuda"     the first GPU that opens, else an error
 *   "cuda:N"   that GPU, else an error
 *
 * The program does not link CUDA: it must start in milliseconds and run where there is none. The driver library is asked
 * first (is there one, does it initialise?), because its answers are the ones a user can act on; only then the module is
 * loaded, which brings the CUDA runtime and cuBLAS. dlopen() counts references itself, so nothing is kept between calls. */
#include "core/engine/backend.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/engine/cuda_fault.h"

#define MODULE_FILE "libmoascope-cuda.so"

/* --- the driver ------------------------------------------------------------------------------------------------------ */

/* Is there a driver that initialises? The library stays loaded: CUDA does not survive being unloaded. */
static moa_status driver_check(moa_err *err) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return moa_fail(err, MOA_E_DEVICE, "no NVIDIA driver");
    int (*init)(unsigned) = NULL, (*version)(int *) = NULL, (*error_text)(int, const char **) = NULL;
    *(void **)&init = dlsym(library, "cuInit");
    *(void **)&version = dlsym(library, "cuDriverGetVersion");
    *(void **)&error_text = dlsym(library, "cuGetErrorString");
    if (!init || !version)
        return moa_fail(err, MOA_E_DEVICE, "libcuda.so.1 is not an NVIDIA driver: it has no cuInit");
    const int code = init(0);
    if (code == 0) return MOA_OK;
    int driver = 0;
    (void)version(&driver);
    const char *text = NULL;
    if (error_text) (void)error_text(code, &text);
    char clause[256];
    moa_cuda_fault_text(code, driver, NULL, text, clause, sizeof clause);
    return moa_fail(err, MOA_E_DEVICE, "%s", clause);
}

/* --- the module ------------------------------------------------------------------------------------------------------ */

/* folder of the running executable */
static bool own_folder(char *out, size_t bytes) {
    const ssize_t n = readlink("/proc/self/exe", out, bytes - 1);
    if (n <= 0 || (size_t)n >= bytes - 1) return false;
    out[n] = 0;
    char *slash = strrchr(out, '/');
    if (!slash) return false;
    *slash = 0;
    return true;
}

/* The handle of the module, wherever it lies; NULL with the reason. */
static void *module_load(moa_err *err) {
    static const char *const places[] = {"/" MODULE_FILE, "/../lib/moascope/" MODULE_FILE,
                                         "/../lib64/moascope/" MODULE_FILE,
                                         "/../lib/" /* Debian's multiarch folder */
#ifdef __x86_64__
                                         "x86_64-linux-gnu/moascope/" MODULE_FILE
#else
                                         "aarch64-linux-gnu/moascope/" MODULE_FILE
#endif
    };
    const char *given = getenv("MOASCOPE_CUDA_MODULE");
    char folder[PATH_MAX], path[PATH_MAX + 64];
    if (given && *given) {
        void *handle = dlopen(given, RTLD_NOW | RTLD_LOCAL);
        if (!handle) (void)moa_fail(err, MOA_E_DEVICE, "the CUDA module does not load: %s", dlerror());
        return handle;
    }
    if (!own_folder(folder, sizeof folder)) {
        (void)moa_fail(err, MOA_E_DEVICE,
                       "the CUDA module was not looked for: /proc/self/exe cannot be read");
        return NULL;
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        (void)snprintf(path, sizeof path, "%s%s", folder, places[i]);
        if (access(path, F_OK) != 0) continue;
        void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!handle) (void)moa_fail(err, MOA_E_DEVICE, "the CUDA module does not load: %s", dlerror());
        return handle;
    }
    (void)moa_fail(err, MOA_E_DEVICE,
                   "there is a driver but no CUDA module: %s is neither in %s nor in its ../lib/moascope",
                   MODULE_FILE, folder);
    return NULL;
}

const moa_backend_module *moa_cuda_module(moa_err *err) {
    if (driver_check(err) != MOA_OK) return NULL;
    void *handle = module_load(err);
    if (!handle) return NULL;
    const moa_backend_module *module = dlsym(handle, "moa_backend_module");
    if (!module) {
        (void)moa_fail(err, MOA_E_DEVICE,
                       "the CUDA module has no moa_backend_module: it is not a part of this program");
    } else if (module->abi != MOA_BACKEND_ABI) {
        (void)moa_fail(err, MOA_E_DEVICE,
                       "the CUDA module is of another build: interface %u, this program has %u", module->abi,
                       MOA_BACKEND_ABI);
        module = NULL;
    }
    if (!module) (void)dlclose(handle); /* nothing of CUDA has run yet */
    return module;
}

/* --- opening --------------------------------------------------------------------------------------------------------- */

static moa_status cuda_open_one(moa_backend **out, const moa_backend_module *module,
                                const moa_backend_config *config, int32_t device, moa_err *err) {
    moa_backend_config c = *config;
    c.device = device;
    const moa_status s = module->open(out, &c, err);
    if (s == MOA_OK && (*out)->vt->abi != MOA_BACKEND_ABI) {
        moa_backend_close(out);
        return moa_fail(err, MOA_E_DEVICE, "the CUDA module's backend is of another build");
    }
    return s;
}

/* device < 0: the first that opens */
static moa_status cuda_open(moa_backend **out, int32_t device, const moa_backend_config *config,
                            int32_t *taken, moa_err *err) {
    const moa_backend_module *module = moa_cuda_module(err);
    if (!module) return MOA_E_DEVICE;
    moa_err first = {0};
    const int32_t n = module->n_devices(&first);
    if (n <= 0) return moa_fail(err, MOA_E_DEVICE, "%s", first.text[0] ? first.text : "no GPU is visible");
    if (device >= n)
        return moa_fail(err, MOA_E_DEVICE, "there is no cuda:%d: %d GPU%s here, counted from 0", device, n,
                        n == 1 ? "" : "s");
    moa_status s = MOA_E_DEVICE;
    const int32_t begin = device < 0 ? 0 : device, end = device < 0 ? n : device + 1;
    for (int32_t d = begin; d < end; d++) {
        moa_err why = {0};
        const moa_status tried = cuda_open_one(out, module, config, d, &why);
        *taken = d;
        if (tried == MOA_OK) return MOA_OK;
        if (d == begin) {
            s = tried;
            first = why;
        }
    }
    return moa_fail(err, s, "%s", first.text[0] ? first.text : "the GPU could not be opened");
}

/* "cuda" -> -1, "cuda:12" -> 12; false: neither */
static bool cuda_word(const char *word, int32_t *device) {
    *device = -1;
    if (strcmp(word, "cuda") == 0) return true;
    if (strncmp(word, "cuda:", 5) != 0 || word[5] == 0 || strlen(word) > 8) return false;
    *device = 0;
    for (const char *c = word + 5; *c; c++) {
        if (*c < '0' || *c > '9') return false;
        *device = *device * 10 + (*c - '0');
    }
    return true;
}

/* Says what was taken: "cuda:0 (NVIDIA H100): the first usable GPU". */
static void tell(moa_backend *b, const char *label, const char *reason, char *why, size_t why_bytes) {
    moa_device_info info = {0};
    if (!why || why_bytes == 0) return;
    if (b->vt->info(b, &info, NULL) != MOA_OK || !info.name[0])
        (void)snprintf(info.name, sizeof info.name, "%s", b->vt->name);
    (void)snprintf(why, why_bytes, "%s%s%s%s: %s", label, *label ? " (" : "", info.name, *label ? ")" : "",
                   reason);
}

moa_status moa_backend_open(moa_backend **out, const char *device, const moa_backend_config *config,
                            char *why, size_t why_bytes, moa_err *err) {
    const moa_backend_config plain = {0};
    char label[32];
    int32_t ordinal = -1, taken = 0;
    moa_err no_gpu = {0};
    if (!config) config = &plain;
    if (!device) device = "auto";
    *out = NULL;
    if (why && why_bytes) why[0] = 0;

    const bool is_auto = strcmp(device, "auto") == 0, is_cpu = strcmp(device, "cpu") == 0;
    if (!is_auto && !is_cpu && !cuda_word(device, &ordinal))
        return moa_fail(err, MOA_E_USAGE, "unknown device %s: auto, cpu, cuda or cuda:N", device);

    if (!is_cpu && !(is_auto && config->reference)) {
        const moa_status s = cuda_open(out, ordinal, config, &taken, &no_gpu);
        if (s == MOA_OK) {
            (void)snprintf(label, sizeof label, "cuda:%d", taken);
            tell(*out, label, ordinal >= 0 ? "as asked" : "the first usable GPU", why, why_bytes);
            return MOA_OK;
        }
        if (!is_auto) return moa_fail(err, s, "%s: %s", device, no_gpu.text);
    }
    const moa_status s = moa_cpu_open(out, config, err);
    if (s != MOA_OK) return s;
    if (no_gpu.text[0] && why)
        (void)snprintf(why, why_bytes, "%s: continuing on the CPU", no_gpu.text);
    else
        tell(*out, "", is_cpu ? "as asked" : "the reference runs on the CPU", why, why_bytes);
    return MOA_OK;
}

void moa_backend_close(moa_backend **b) {
    if (!b || !*b) return;
    (*b)->vt->close(*b);
    *b = NULL;
}
