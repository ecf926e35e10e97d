/* quant_avx512.c -- packed rows times tokens with VNNI.
 *
 * vpdpbusd multiplies unsigned bytes by signed bytes, so the 16-bit activation v is two planes, v = 256 h + l with h and l signed
 * bytes: eight instructions sum the codes times h, the sum is shifted left by 8, eight more add the codes times l. That is
 * exact, and still half again as fast as float32 multiply-adds on dequantised weights.
 * A token's 64 bytes: 32 of h, 32 of l. */
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#include <string.h>

#include "core/cpu/quant.h"

/* the eight chunks of a block as bytes */
static inline __attribute__((always_inline)) void codes(const unsigned char *q, int bits, __m512i w[8]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    if (bits == 8) {
        for (int c = 0; c < 8; c++)
            w[c] = _mm512_load_si512(q + 64 * c);
        return;
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m512i v = _mm512_load_si512(q + 64 * c);
        w[c] = _mm512_and_si512(v, nibble);
        w[c + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    }
    if (bits == 5) {
        const __m512i sixteen = _mm512_set1_epi8(16);
#pragma GCC unroll 8
        for (int c = 0; c < 8; c++) {
            uint64_t mask;
            memcpy(&mask, q + 256 + 8 * c, 8);
            w[c] = _mm512_mask_add_epi8(w[c], mask, w[c], sixteen);
        }
    }
    if (bits == 6) {
        const __m512i two = _mm512_set1_epi8(0x30);
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            const __m512i h = _mm512_load_si512(q + 256 + 64 * k);
            /* low | (shifted & 0x30) */
            w[4 * k] = _mm512_ternarylogic_epi32(w[4 * k], _mm512_slli_epi16(h, 4), two, 0xf8);
            w[4 * k + 1] = _mm512_ternarylogic_epi32(w[4 * k + 1], _mm512_slli_epi16(h, 2), two, 0xf8);
            w[4 * k + 2] = _mm512_ternarylogic_epi32(w[4 * k + 2], h, two, 0xf8);
            w[4 * k + 3] = _mm512_ternarylogic_epi32(w[4 * k + 3], _mm512_srli_epi16(h, 2), two, 0xf8);
        }
    }
}

static inline __m512 halves16(const unsigned char *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline __m512 bytes16(const unsigned char *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}
static inline __m512 signed16(const unsigned char *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

/* sum + w times the four values at x, which are the same for all rows. The instruction can broadcast them from memory itself;
 * gcc 12 does not know and spends a second instruction (148 against 170 GFLOP/s a core on tiles of 8). */
static inline __attribute__((always_inline)) __m512i dpbusd_all(__m512i sum, __m512i w, const int8_t *x) {
    typedef int32_t four __attribute__((aligned(4), may_alias));
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*(const four *)(const void *)x));
    return sum;
}

/* codes of chunks [from, to) times the plane at x */
static inline __attribute__((always_inline)) __m512i plane(__m512i sum, const __m512i w[8], const int8_t *x,
                                                           int from, int to) {
#pragma GCC unroll 8
    for (int c = from; c < to; c++) {
        sum = dpbusd_all(sum, w[c], x + 4 * c);
    }
    return sum;
}

static inline __attribute__((always_inline)) __m512 dot(const __m512i w[8], const int8_t *x, int from, int to,
                                                        int32_t fix, bool has_fix) {
    __m512i sum = plane(_mm512_setzero_si512(), w, x, from, to);
    sum = _mm512_slli_epi32(sum, 8);
    if (has_fix) sum = _mm512_add_epi32(sum, _mm512_set1_epi32(fix));
    return _mm512_cvtepi32_ps(plane(sum, w, x + 32, from, to));
}

static inline __attribute__((always_inline)) void qdot(const int bits, const moa_pack_scale form,
                                                       const int n_tok, const moa_pack_group *g,
                                                       int32_t n_block, const int8_t *x,
                                                       const moa_xmeta *meta, float *out) {
    __m512 acc[MOA_TILE_MAX];
#pragma GCC unroll 8
    for (int t = 0; t < n_tok; t++)
        acc[t] = _mm512_setzero_ps();
    const unsigned char *q = g->q, *s = g->scale;
    __m512 super = _mm512_setzero_ps(), super_min = super;
    for (int32_t n = 0; n < n_block; n++, q += 64 * bits, s += form == MOA_SCALE_DM ? 64 : 32) {
        __m512i w[8];
        __m512 d, second = _mm512_setzero_ps(); /* second: minimum, or the other half's scale */
        codes(q, bits, w);
        if (n % 8 == 0 && form == MOA_SCALE_K) {
            super = halves16(g->super + (size_t)(n / 8) * 64);
            super_min = _mm512_sub_ps(_mm512_setzero_ps(), halves16(g->super + (size_t)(n / 8) * 64 + 32));
        }
        if (n % 8 == 0 && form == MOA_SCALE_S6) super = halves16(g->super + (size_t)(n / 8) * 32);
        if (form == MOA_SCALE_K) {
            d = _mm512_mul_ps(super, bytes16(s));
            second = _mm512_mul_ps(super_min, bytes16(s + 16));
        } else if (form == MOA_SCALE_S6) {
            d = _mm512_mul_ps(super, signed16(s));
            second = _mm512_mul_ps(super, signed16(s + 16));
        } else {
            d = halves16(s);
            if (form == MOA_SCALE_DM) second = halves16(s + 32);
        }
#pragma GCC unroll 8
        for (int t = 0; t < n_tok; t++, x += 64, meta++) {
            const __m512 scale = _mm512_set1_ps(meta->scale);
            if (form == MOA_SCALE_S6) {
                acc[t] =
                    _mm512_fmadd_ps(dot(w, x, 0, 4, meta->fix[0], true), _mm512_mul_ps(d, scale), acc[t]);
                acc[t] = _mm512_fmadd_ps(dot(w, x, 4, 8, meta->fix[1], true), _mm512_mul_ps(second, scale),
                                         acc[t]);
            } else {
                acc[t] = _mm512_fmadd_ps(dot(w, x, 0, 8, meta->fix[0], form == MOA_SCALE_D),
                                         _mm512_mul_ps(d, scale), acc[t]);
                if (form != MOA_SCALE_D) acc[t] = _mm512_fmadd_ps(second, _mm512_set1_ps(meta->sum), acc[t]);
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < n_tok; t++)
        _mm512_storeu_ps(out + 16 * t, acc[t]);
}

MOA_QDOT_FUNCTIONS(qdot, avx512, const int8_t *)

void moa_quantize_avx512(const float *x, int64_t stride, int32_t n_tok, int32_t n_block, int32_t zero,
                         bool halves, void *out, moa_xmeta *meta) {
    int8_t *v = out;
    const __m512i low_byte = _mm512_set1_epi32(0xff), half = _mm512_set1_epi32(128);
    for (int32_t n = 0; n < n_block; n++)
        for (int32_t t = 0; t < n_tok; t++, v += 64, meta++) {
            const float *p = x + t * stride + n * MOA_PACK_BLOCK;
            const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
            const float max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            const float scale = max / MOA_X_MAX, inverse = max > 0 ? MOA_X_MAX / max : 0;
            const __m512i limit = _mm512_set1_epi32(MOA_X_MAX),
                          ia = _mm512_min_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse))),
                                                limit),
                          ib = _mm512_min_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse))),
                                                limit);
            const __m512i ha = _mm512_srai_epi32(_mm512_add_epi32(ia, half), 8),
                          hb = _mm512_srai_epi32(_mm512_add_epi32(ib, half), 8);
            _mm_storeu_si128((__m128i *)(void *)v, _mm512_cvtepi32_epi8(ha));
            _mm_storeu_si128((__m128i *)(void *)(v + 16), _mm512_cvtepi32_epi8(hb));
            /* v - 256 h fits a signed byte: its low byte is it */
            _mm_storeu_si128((__m128i *)(void *)(v + 32),
                             _mm512_cvtepi32_epi8(_mm512_and_si512(ia, low_byte)));
            _mm_storeu_si128((__m128i *)(void *)(v + 48),
                             _mm512_cvtepi32_epi8(_mm512_and_si512(ib, low_byte)));
            const int32_t sa = _mm512_reduce_add_epi32(ia), sb = _mm512_reduce_add_epi32(ib);
            *meta = (moa_xmeta){.scale = scale,
                                .sum = scale * (float)(sa + sb),
                                .fix = {-zero * (halves ? sa : sa + sb), -zero * sb}};
        }
}
#else
typedef int moa_quant_avx512_is_empty;
#endif
