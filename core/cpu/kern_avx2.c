/* kern_avx2.c -- 8 lanes: AVX2 with FMA and half conversions. */
#if defined(__AVX2__)
#define V 8
#define MR 6
#define NV 2
#include "core/cpu/vector_types.h"

#include <immintrin.h>

static inline vf half_load(const uint16_t *p) {
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline void half_store(uint16_t *p, vf x) {
    _mm_storeu_si128((__m128i *)(void *)p,
                     _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vf vmax(vf a, vf b) {
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}
static inline void transpose(vf r[V]) {
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            u[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
            u[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = (vf)_mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = (vf)_mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

#include "core/cpu/kern_float.h"

const moa_kern moa_kern_avx2 = {
    .name = "AVX2",
    .qdot_max_tok = 32,
    .quantize = moa_quantize_avx2,
    .qdot = moa_qdot_avx2,
    KERN_FLOAT,
};
#else
typedef int moa_kern_avx2_is_empty;
#endif
