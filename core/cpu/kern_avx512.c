/* kern_avx512.c -- 16 lanes: AVX-512 F, BW, VL, DQ and VNNI. */
#if defined(__AVX512VNNI__)
#define V 16
#define MR 6
#define NV 4
#include "core/cpu/vector_types.h"

#include <immintrin.h>

static inline vf half_load(const uint16_t *p) {
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline void half_store(uint16_t *p, vf x) {
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline vf vmax(vf a, vf b) {
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}
static inline void transpose(vf r[V]) {
    __m512 t[16], u[16];
    for (int i = 0; i < 16; i += 2) { /* pairs of rows, then quadruples, inside each 128 bits */
        t[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            u[i + 2 * k] = _mm512_shuffle_ps(t[i + k], t[i + k + 2], 0x44);
            u[i + 2 * k + 1] = _mm512_shuffle_ps(t[i + k], t[i + k + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) { /* then the 128-bit quarters: u[i], u[i+4], u[i+8], u[i+12] */
        t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = (vf)_mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = (vf)_mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = (vf)_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = (vf)_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#include "core/cpu/kern_float.h"

const moa_kern moa_kern_avx512 = {
    .name = "AVX-512 VNNI",
    .qdot_max_tok = INT32_MAX,
    .quantize = moa_quantize_avx512,
    .qdot = moa_qdot_avx512,
    KERN_FLOAT,
};
#else
typedef int moa_kern_avx512_is_empty;
#endif
