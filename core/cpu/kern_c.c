/* kern_c.c -- the float loops in 4 lanes of whatever the compiler has, and the choice between the tables. */
#define V 4
#define MR 4
#define NV 2
#include "core/cpu/vector_types.h"

#include <stdlib.h>

#include "core/cpu/half.h"

static inline vf half_load(const uint16_t *p) {
    return (vf){moa_half_to_float(p[0]), moa_half_to_float(p[1]), moa_half_to_float(p[2]),
                moa_half_to_float(p[3])};
}
static inline void half_store(uint16_t *p, vf x) {
    for (int i = 0; i < V; i++)
        p[i] = moa_float_to_half(x[i]);
}
static inline vf vmax(vf a, vf b) {
    const vi more = a > b;
    return (vf)(((vi)a & more) | ((vi)b & ~more));
}
static inline void transpose(vf r[V]) {
    for (int i = 0; i < V; i++)
        for (int j = 0; j < i; j++) {
            const float t = r[i][j];
            r[i][j] = r[j][i];
            r[j][i] = t;
        }
}

#include "core/cpu/kern_float.h"

const moa_kern moa_kern_c = {
    .name = "portable C",
    .qdot_max_tok = 1,
    .quantize = moa_quantize_c,
    .qdot = moa_qdot_c,
    KERN_FLOAT,
};

const moa_kern *moa_kern_choose(void) {
#if defined(__x86_64__)
    const char *word = getenv("MOASCOPE_CPU");
    const int most = !word || strcmp(word, "avx512") == 0 ? 2
                     : strcmp(word, "avx2") == 0          ? 1
                     : strcmp(word, "c") == 0             ? 0
                                                          : 2;
    __builtin_cpu_init();
    if (most >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni"))
        return &moa_kern_avx512;
    /* every AVX2 processor has F16C, which clang 14's builtin does not know by name */
    if (most >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &moa_kern_avx2;
#endif
    return &moa_kern_c;
}
