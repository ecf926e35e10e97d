/* quant_avx2.c -- packed rows times tokens with 16-bit multiply-adds.
 *
 * vpmaddwd multiplies pairs of int16 and adds each pair: the codes' even and odd bytes become two vectors of int16, which meet the
 * activations' even and odd values of a chunk. A token's 64 bytes are, for each chunk of four, x0 x2 x1 x3 as int16.
 * Eight rows at a time: the group's 16 rows are two passes over its blocks. */
#if defined(__AVX2__)
#include <immintrin.h>
#include <string.h>

#include "core/cpu/quant.h"

enum { ROWS = 8 };

static inline __m256i load(const unsigned char *p) {
    return _mm256_load_si256((const __m256i *)(const void *)p);
}

/* rows [8 half, 8 half + 8) of chunk c as bytes */
static inline __attribute__((always_inline)) __m256i codes(const unsigned char *q, int bits, int c,
                                                           int half) {
    if (bits == 8) return load(q + 64 * c + 32 * half);
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i v = load(q + 64 * (c % 4) + 32 * half);
    v = _mm256_and_si256(c < 4 ? v : _mm256_srli_epi16(v, 4), nibble);
    if (bits == 5) { /* byte k's bit is bit k%8 of mask byte k/8 */
        int32_t mask;
        memcpy(&mask, q + 256 + 8 * c + 4 * half, 4);
        const __m256i pick = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2,
                                              2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ull);
        const __m256i has =
            _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(mask), pick), bit), bit);
        v = _mm256_or_si256(v, _mm256_and_si256(has, _mm256_set1_epi8(16)));
    }
    if (bits == 6) {
        const __m256i h = load(q + 256 + 64 * (c / 4) + 32 * half);
        const int k = c % 4;
        const __m256i at = k == 0   ? _mm256_slli_epi16(h, 4)
                           : k == 1 ? _mm256_slli_epi16(h, 2)
                           : k == 2 ? h
                                    : _mm256_srli_epi16(h, 2);
        v = _mm256_or_si256(v, _mm256_and_si256(at, _mm256_set1_epi8(0x30)));
    }
    return v;
}

static inline __m256 halves8(const unsigned char *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline __m256 bytes8(const unsigned char *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
static inline __m256 signed8(const unsigned char *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}

/* sums of chunks [from, to) for up to four tokens, 64 bytes apart */
static inline __attribute__((always_inline)) void dot(__m256i sum[4], const unsigned char *q, int bits,
                                                      int half, const char *x, int n_tok, int from, int to) {
#pragma GCC unroll 8
    for (int c = from; c < to; c++) {
        const __m256i w = codes(q, bits, c, half);
        const __m256i even = _mm256_and_si256(w, _mm256_set1_epi16(0xff)), odd = _mm256_srli_epi16(w, 8);
#pragma GCC unroll 4
        for (int t = 0; t < n_tok; t++) {
            int32_t pair[2];
            memcpy(pair, x + 64 * t + 8 * c, 8);
            sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(even, _mm256_set1_epi32(pair[0])));
            sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(odd, _mm256_set1_epi32(pair[1])));
        }
    }
}

static inline __attribute__((always_inline)) void rows8(const int bits, const moa_pack_scale form,
                                                        const int n_tok, const int tile,
                                                        const moa_pack_group *g, int half, int32_t n_block,
                                                        const char *x, const moa_xmeta *meta, float *out) {
    __m256 acc[4];
#pragma GCC unroll 4
    for (int t = 0; t < n_tok; t++)
        acc[t] = _mm256_setzero_ps();
    const unsigned char *q = g->q, *s = g->scale;
    for (int32_t n = 0; n < n_block;
         n++, q += 64 * bits, s += form == MOA_SCALE_DM ? 64 : 32, x += 64 * tile, meta += tile) {
        __m256 d, second = _mm256_setzero_ps();
        const unsigned char *u = g->super + (size_t)(n / 8) * (form == MOA_SCALE_K ? 64 : 32);
        if (form == MOA_SCALE_K) {
            d = _mm256_mul_ps(halves8(u + 16 * half), bytes8(s + 8 * half));
            second = _mm256_sub_ps(_mm256_setzero_ps(),
                                   _mm256_mul_ps(halves8(u + 32 + 16 * half), bytes8(s + 16 + 8 * half)));
        } else if (form == MOA_SCALE_S6) {
            d = _mm256_mul_ps(halves8(u + 16 * half), signed8(s + 8 * half));
            second = _mm256_mul_ps(halves8(u + 16 * half), signed8(s + 16 + 8 * half));
        } else {
            d = halves8(s + 16 * half);
            if (form == MOA_SCALE_DM) second = halves8(s + 32 + 16 * half);
        }
        __m256i sum[4];
#pragma GCC unroll 4
        for (int t = 0; t < n_tok; t++)
            sum[t] = _mm256_set1_epi32(meta[t].fix[0]);
        dot(sum, q, bits, half, x, n_tok, 0, form == MOA_SCALE_S6 ? 4 : 8);
#pragma GCC unroll 4
        for (int t = 0; t < n_tok; t++) {
            acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]),
                                     _mm256_mul_ps(d, _mm256_set1_ps(meta[t].scale)), acc[t]);
            if (form == MOA_SCALE_DM || form == MOA_SCALE_K)
                acc[t] = _mm256_fmadd_ps(second, _mm256_set1_ps(meta[t].sum), acc[t]);
            sum[t] = _mm256_set1_epi32(meta[t].fix[1]);
        }
        if (form == MOA_SCALE_S6) {
            dot(sum, q, bits, half, x, n_tok, 4, 8);
#pragma GCC unroll 4
            for (int t = 0; t < n_tok; t++)
                acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[t]),
                                         _mm256_mul_ps(second, _mm256_set1_ps(meta[t].scale)), acc[t]);
        }
    }
#pragma GCC unroll 4
    for (int t = 0; t < n_tok; t++)
        _mm256_storeu_ps(out + 16 * t + ROWS * half, acc[t]);
}

static inline __attribute__((always_inline)) void qdot(const int bits, const moa_pack_scale form,
                                                       const int n_tok, const moa_pack_group *g,
                                                       int32_t n_block, const char *x, const moa_xmeta *meta,
                                                       float *out) {
    for (int half = 0; half < 2; half++)
        for (int t = 0; t < n_tok; t += 4)
            rows8(bits, form, n_tok < 4 ? n_tok : 4, n_tok, g, half, n_block, x + 64 * t, meta + t,
                  out + 16 * t);
}

MOA_QDOT_FUNCTIONS(qdot, avx2, const char *)

void moa_quantize_avx2(const float *x, int64_t stride, int32_t n_tok, int32_t n_block, int32_t zero,
                       bool halves, void *out, moa_xmeta *meta) {
    char *v = out;
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 0, 1, 4, 5,
                                           2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    for (int32_t n = 0; n < n_block; n++)
        for (int32_t t = 0; t < n_tok; t++, meta++) {
            const float *p = x + t * stride + n * MOA_PACK_BLOCK;
            const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
            __m256 max8 = _mm256_setzero_ps();
            for (int i = 0; i < 32; i += 8)
                max8 = _mm256_max_ps(max8, _mm256_and_ps(_mm256_loadu_ps(p + i), no_sign));
            float lanes[8], max = 0;
            _mm256_storeu_ps(lanes, max8);
            for (int i = 0; i < 8; i++)
                max = lanes[i] > max ? lanes[i] : max;
            const float scale = max / MOA_X_MAX, inverse = max > 0 ? MOA_X_MAX / max : 0;
            int32_t sum[2] = {0};
            for (int h = 0; h < 2; h++, v += 32) {
                const __m256i limit = _mm256_set1_epi32(MOA_X_MAX);
                const __m256i a = _mm256_min_epi32(
                    _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(p + 16 * h), _mm256_set1_ps(inverse))),
                    limit);
                const __m256i b =
                    _mm256_min_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(p + 16 * h + 8),
                                                                      _mm256_set1_ps(inverse))),
                                     limit);
                const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
                _mm256_storeu_si256((__m256i *)(void *)v, _mm256_shuffle_epi8(words, order));
                int32_t parts[8];
                _mm256_storeu_si256((__m256i *)(void *)parts, _mm256_add_epi32(a, b));
                for (int i = 0; i < 8; i++)
                    sum[h] += parts[i];
            }
            *meta = (moa_xmeta){.scale = scale,
                                .sum = scale * (float)(sum[0] + sum[1]),
                                .fix = {-zero * (halves ? sum[0] : sum[0] + sum[1]), -zero * sum[1]}};
        }
}
#else
typedef int moa_quant_avx2_is_empty;
#endif
