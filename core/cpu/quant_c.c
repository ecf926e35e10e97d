/* quant_c.c -- packed rows times tokens in portable C: the definition of what quant_avx2.c and quant_avx512.c compute.
 * A token's 64 bytes are its 32 values as int16 in order. */
#include "core/cpu/quant.h"

#include <math.h>
#include <string.h>

#include "core/cpu/half.h"

static float half_at(const unsigned char *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return moa_half_to_float(h);
}

/* chunk c of a block: 64 codes */
static inline void chunk(const unsigned char *q, int bits, int c, uint8_t *out) {
    for (int i = 0; i < 64; i++) {
        if (bits == 8) {
            out[i] = q[64 * c + i];
            continue;
        }
        out[i] = q[64 * (c % 4) + i] >> (c < 4 ? 0 : 4) & 15;
        if (bits == 5) out[i] |= (uint8_t)((q[256 + 8 * c + i / 8] >> i % 8 & 1) << 4);
        if (bits == 6) out[i] |= (uint8_t)((q[256 + 64 * (c / 4) + i] >> 2 * (c % 4) & 3) << 4);
    }
}

static inline void scales(const moa_pack_group *g, moa_pack_scale form, int32_t n, float d[2][16],
                          float m[16]) {
    for (int r = 0; r < 16; r++) {
        const unsigned char *s = g->scale + (size_t)n * (form == MOA_SCALE_DM ? 64 : 32),
                            *u = g->super + (size_t)(n / 8) * (form == MOA_SCALE_K ? 64 : 32);
        switch (form) {
        case MOA_SCALE_DM: m[r] = half_at(s + 32 + 2 * r); /* fall through */
        case MOA_SCALE_D: d[0][r] = d[1][r] = half_at(s + 2 * r); break;
        case MOA_SCALE_K:
            d[0][r] = d[1][r] = half_at(u + 2 * r) * s[r];
            m[r] = -(half_at(u + 32 + 2 * r) * s[16 + r]);
            break;
        case MOA_SCALE_S6:
            d[0][r] = half_at(u + 2 * r) * (float)(int8_t)s[r];
            d[1][r] = half_at(u + 2 * r) * (float)(int8_t)s[16 + r];
        }
    }
}

static inline void qdot(int bits, moa_pack_scale form, int n_tok, const moa_pack_group *g, int32_t n_block,
                        const int16_t *x, const moa_xmeta *meta, float *out) {
    memset(out, 0, sizeof *out * 16 * (size_t)n_tok);
    for (int32_t n = 0; n < n_block; n++) {
        float d[2][16], m[16] = {0};
        scales(g, form, n, d, m);
        int32_t sum[MOA_TILE_MAX][2][16] = {0};
        for (int c = 0; c < 8; c++) {
            uint8_t q[64];
            chunk(g->q + (size_t)n * 64 * (size_t)bits, bits, c, q);
            for (int t = 0; t < n_tok; t++)
                for (int r = 0; r < 16; r++)
                    for (int i = 0; i < 4; i++)
                        sum[t][c / 4][r] += q[4 * r + i] * x[(n * n_tok + t) * 32 + 4 * c + i];
        }
        for (int t = 0; t < n_tok; t++) {
            const moa_xmeta *e = &meta[n * n_tok + t];
            for (int r = 0; r < 16; r++) {
                float *o = &out[t * 16 + r];
                if (form == MOA_SCALE_S6) {
                    *o += (float)(sum[t][0][r] + e->fix[0]) * (d[0][r] * e->scale);
                    *o += (float)(sum[t][1][r] + e->fix[1]) * (d[1][r] * e->scale);
                } else {
                    *o += (float)(sum[t][0][r] + sum[t][1][r] + e->fix[0]) * (d[0][r] * e->scale);
                    if (form != MOA_SCALE_D) *o += m[r] * e->sum;
                }
            }
        }
    }
}

MOA_QDOT_FUNCTIONS(qdot, c, const int16_t *)

void moa_quantize_c(const float *x, int64_t stride, int32_t n_tok, int32_t n_block, int32_t zero, bool halves,
                    void *out, moa_xmeta *meta) {
    int16_t *v = out;
    for (int32_t n = 0; n < n_block; n++)
        for (int32_t t = 0; t < n_tok; t++) {
            const float *p = x + t * stride + n * MOA_PACK_BLOCK;
            float max = 0;
            for (int i = 0; i < MOA_PACK_BLOCK; i++)
                max = fabsf(p[i]) > max ? fabsf(p[i]) : max;
            const float scale = max / MOA_X_MAX, inverse = max > 0 ? MOA_X_MAX / max : 0;
            int32_t sum[2] = {0};
            for (int i = 0; i < MOA_PACK_BLOCK; i++) {
                const float r = nearbyintf(p[i] * inverse);
                const int32_t k = r > MOA_X_MAX ? MOA_X_MAX : r < -MOA_X_MAX ? -MOA_X_MAX : (int32_t)r;
                *v++ = (int16_t)k;
                sum[i / 16] += k;
            }
            *meta++ = (moa_xmeta){.scale = scale,
                                  .sum = scale * (float)(sum[0] + sum[1]),
                                  .fix = {-zero * (halves ? sum[0] : sum[0] + sum[1]), -zero * sum[1]}};
        }
}
