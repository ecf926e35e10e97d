/* kern_float.h -- float32 loops in the compiler's vector types. Included by one file an instruction set, which defines first:
 *
 *   V                       lanes
 *   ISA(name)               name of a function or table of this set
 *   MR, NV                  rows and vectors of the GEMM's register tile
 *   half_load(p)            V halves as a vf        half_store(p, vf)  the reverse      transpose(vf r[V])   in place
 *   vmax(a, b)
 * and the types vf, vi below (vector_types.h). Tails that fill no vector are scalar. */
#include <math.h>
#include <string.h>

#include "core/cpu/half.h"
#include "core/cpu/kern.h"
#include "core/cpu/quant.h"
#include "core/engine/spans.h"

#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float *p) {
    return *(const vfu *)(const void *)p;
}
INLINE void store(float *p, vf x) {
    *(vfu *)(void *)p = x;
}
INLINE vf splat(float x) {
    return x - (vf){0};
}
INLINE vf pick(vi mask, vf yes, vf no) {
    return (vf)(((vi)yes & mask) | ((vi)no & ~mask));
}
INLINE float lanes_sum(vf x) {
    float s = 0;
    for (int i = 0; i < V; i++)
        s += x[i];
    return s;
}
INLINE float lanes_max(vf x) {
    float s = x[0];
    for (int i = 1; i < V; i++)
        s = x[i] > s ? x[i] : s;
    return s;
}

/* e^x to about 1e-7: 2^n times a polynomial on [-ln2/2, ln2/2] (Cephes' coefficients); 0 below -87.3, e^88 above */
INLINE vf vexp(vf x) {
    const vi tiny = x < splat(-87.3f);
    const vf y = pick(x > splat(88.0f), splat(88.0f), x);
    const vf n = (y * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounds to an integer */
    const vf r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r) * r + r + 1.0f;
    const vi e = (__builtin_convertvector(n, vi) + 127) << 23;
    return (vf)((vi)(p * (vf)e) & ~tiny);
}
static inline float exp_one(float x) {
    return vexp(splat(x))[0];
}

/* --- rows of float, half and bfloat16 -------------------------------------------------------------------------------- */

INLINE vf bf16_load(const uint16_t *p) {
    typedef uint16_t vh __attribute__((vector_size(2 * V), aligned(2), may_alias));
    typedef uint32_t vu __attribute__((vector_size(4 * V)));
    return (vf)(__builtin_convertvector(*(const vh *)(const void *)p, vu) << 16);
}
INLINE vf load_as(moa_dtype type, const void *row, int32_t i) {
    if (type == MOA_F32) return load((const float *)row + i);
    return type == MOA_F16 ? half_load((const uint16_t *)row + i) : bf16_load((const uint16_t *)row + i);
}
INLINE float load_one(moa_dtype type, const void *row, int32_t i) {
    if (type == MOA_F32) return ((const float *)row)[i];
    if (type == MOA_F16) return moa_half_to_float(((const uint16_t *)row)[i]);
    const uint32_t bits = (uint32_t)((const uint16_t *)row)[i] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

INLINE void dot_as(const moa_dtype type, const int n_tok, const void *row, const float *x, int64_t stride,
                   int32_t n, float *out) {
    vf acc[4][2] = {0};
    int32_t i = 0;
    for (; i + 2 * V <= n; i += 2 * V)
#pragma GCC unroll 2
        for (int u = 0; u < 2; u++) {
            const vf w = load_as(type, row, i + u * V);
#pragma GCC unroll 4
            for (int t = 0; t < n_tok; t++)
                acc[t][u] += w * load(x + t * stride + i + u * V);
        }
    for (int t = 0; t < n_tok; t++) {
        float sum = lanes_sum(acc[t][0] + acc[t][1]);
        for (int32_t k = i; k < n; k++)
            sum += load_one(type, row, k) * x[t * stride + k];
        out[t] = sum;
    }
}
INLINE void dot_type(const moa_dtype type, int32_t n_tok, const void *row, const float *x, int64_t stride,
                     int32_t n, float *out) {
    if (n_tok == 1)
        dot_as(type, 1, row, x, stride, n, out);
    else if (n_tok == 2)
        dot_as(type, 2, row, x, stride, n, out);
    else if (n_tok == 3)
        dot_as(type, 3, row, x, stride, n, out);
    else
        dot_as(type, 4, row, x, stride, n, out);
}
static void dot(moa_dtype type, const void *row, const float *x, int64_t stride, int32_t n_tok, int32_t n,
                float *out) {
    if (type == MOA_F32)
        dot_type(MOA_F32, n_tok, row, x, stride, n, out);
    else if (type == MOA_F16)
        dot_type(MOA_F16, n_tok, row, x, stride, n, out);
    else
        dot_type(MOA_BF16, n_tok, row, x, stride, n, out);
}

/* --- GEMM ------------------------------------------------------------------------------------------------------------ */

/* mr x (nv*V) of c stay in registers while k runs */
INLINE void gemm_tile(const int mr, const int nv, const moa_gemm *g, int32_t row, int32_t col) {
    vf acc[MR][NV];
    const float *a = g->a + (int64_t)row * g->lda, *b = g->b + col;
    float *c = g->c + (int64_t)row * g->ldc + col;
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++)
            acc[i][j] = g->accumulate ? load(c + (int64_t)i * g->ldc + j * V) : splat(0);
    for (int32_t p = 0; p < g->k; p++, b += g->ldb) {
        vf bv[NV];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++)
            bv[j] = load(b + j * V);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            const vf av = splat(a[(int64_t)i * g->lda + p]);
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++)
                acc[i][j] += av * bv[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++)
            store(c + (int64_t)i * g->ldc + j * V, acc[i][j]);
}

INLINE void gemm_strip(const int nv, const moa_gemm *g, int32_t col) {
    int32_t row = 0;
    for (; row + MR <= g->m; row += MR)
        gemm_tile(MR, nv, g, row, col);
    switch (g->m - row) {
    case 5: gemm_tile(MR < 5 ? 1 : 5, nv, g, row, col); break;
    case 4: gemm_tile(MR < 5 ? 1 : 4, nv, g, row, col); break;
    case 3: gemm_tile(3, nv, g, row, col); break;
    case 2: gemm_tile(2, nv, g, row, col); break;
    case 1: gemm_tile(1, nv, g, row, col); break;
    default: break;
    }
}
static void gemm_strip_full(const moa_gemm *g, int32_t col) {
    gemm_strip(NV, g, col);
}
static void gemm_strip_one(const moa_gemm *g, int32_t col) {
    gemm_strip(1, g, col);
}

static void gemm(const moa_gemm *g) {
    int32_t col = 0;
    for (; col + NV * V <= g->n; col += NV * V)
        gemm_strip_full(g, col);
    for (; col < g->n; col += V)
        gemm_strip_one(g, col);
}

/* --- vectors --------------------------------------------------------------------------------------------------------- */

static void rmsnorm(const float *x, const float *w, float *y, int32_t n, float eps) {
    vf acc[2] = {0};
    int32_t i = 0;
    for (; i + 2 * V <= n; i += 2 * V)
        for (int u = 0; u < 2; u++)
            acc[u] += load(x + i + u * V) * load(x + i + u * V);
    float sum = lanes_sum(acc[0] + acc[1]);
    for (; i < n; i++)
        sum += x[i] * x[i];
    const float r = 1 / sqrtf(sum / (float)n + eps);
    for (i = 0; i + V <= n; i += V)
        store(y + i, load(x + i) * r * load(w + i));
    for (; i < n; i++)
        y[i] = x[i] * r * w[i];
}

static void silu_mul(const float *gate, const float *up, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + V <= n; i += V)
        store(y + i, load(gate + i) / (1.0f + vexp(-load(gate + i))) * load(up + i));
    for (; i < n; i++)
        y[i] = gate[i] / (1.0f + exp_one(-gate[i])) * up[i];
}

static void add(const float *x, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + V <= n; i += V)
        store(y + i, load(y + i) + load(x + i));
    for (; i < n; i++)
        y[i] += x[i];
}

static void to_half(const float *x, uint16_t *y, int64_t n) {
    int64_t i = 0;
    for (; i + V <= n; i += V)
        half_store(y + i, load(x + i));
    for (; i < n; i++)
        y[i] = moa_float_to_half(x[i]);
}

static void from_half(const uint16_t *x, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + V <= n; i += V)
        store(y + i, half_load(x + i));
    for (; i < n; i++)
        y[i] = moa_half_to_float(x[i]);
}

/* --- attention ------------------------------------------------------------------------------------------------------- */

INLINE void page_k_as(const moa_dtype type, const void *k, int32_t n_tok, int32_t d_head, float *out) {
    const size_t elem = type == MOA_F32 ? 4 : 2;
    for (int32_t t0 = 0; t0 < MOA_PAGE_TOK; t0 += V) {
        int32_t d = 0;
        for (; d + V <= d_head; d += V) {
            vf r[V];
#pragma GCC unroll 16
            for (int i = 0; i < V; i++)
                r[i] = t0 + i < n_tok
                           ? load_as(type, (const char *)k + (size_t)(t0 + i) * (size_t)d_head * elem, d)
                           : splat(0);
            transpose(r);
#pragma GCC unroll 16
            for (int i = 0; i < V; i++)
                store(out + (d + i) * MOA_PAGE_TOK + t0, r[i]);
        }
        for (; d < d_head; d++)
            for (int i = 0; i < V; i++)
                out[d * MOA_PAGE_TOK + t0 + i] =
                    t0 + i < n_tok ? load_one(type, k, (t0 + i) * d_head + d) : 0;
    }
}
/* a code with the half that its rounding down took: 2^(E - 127) away from the value */
INLINE vf codes_load(const int8_t *p) {
    typedef int8_t vb __attribute__((vector_size(V), aligned(1), may_alias));
    return __builtin_convertvector(*(const vb *)(const void *)p, vf);
}
static void page_k_q8(const void *page, int32_t n_tok, int32_t d_head, float *out) {
    const int8_t *codes = page;
    const uint8_t *exponents = (const uint8_t *)page + moa_kv_k_exponent_at(d_head);
    for (int32_t t0 = 0; t0 < MOA_PAGE_TOK; t0 += V) {
        int32_t d = 0;
        for (; d + V <= d_head; d += V) {
            vf r[V];
#pragma GCC unroll 16
            for (int i = 0; i < V; i++)
                r[i] = t0 + i < n_tok ? codes_load(codes + (t0 + i) * d_head + d) + 0.5f : splat(0);
            transpose(r);
#pragma GCC unroll 16
            for (int i = 0; i < V; i++)
                store(out + (d + i) * MOA_PAGE_TOK + t0, r[i] * moa_kv_step(exponents[d + i]));
        }
        for (; d < d_head; d++)
            for (int i = 0; i < V; i++)
                out[d * MOA_PAGE_TOK + t0 + i] =
                    t0 + i < n_tok ? moa_kv_k_value(codes[(t0 + i) * d_head + d], exponents[d]) : 0;
    }
}
static void page_k(const void *page, moa_kv_type type, int32_t n_tok, int32_t d_head, float *out) {
    if (type == MOA_KV_F32)
        page_k_as(MOA_F32, page, n_tok, d_head, out);
    else if (type == MOA_KV_F16)
        page_k_as(MOA_F16, page, n_tok, d_head, out);
    else if (type == MOA_KV_BF16)
        page_k_as(MOA_BF16, page, n_tok, d_head, out);
    else
        page_k_q8(page, n_tok, d_head, out);
}

INLINE void page_v_as(const moa_dtype type, const void *v, int32_t n_tok, int32_t d_head, int32_t d_pad,
                      float *out) {
    const size_t elem = type == MOA_F32 ? 4 : 2;
    for (int32_t t = 0; t < MOA_PAGE_TOK; t++, out += d_pad) {
        const char *row = (const char *)v + (size_t)t * (size_t)d_head * elem;
        int32_t d = 0;
        for (; t < n_tok && d + V <= d_head; d += V)
            store(out + d, load_as(type, row, d));
        for (; d < d_pad; d++)
            out[d] = t < n_tok && d < d_head ? load_one(type, row, d) : 0;
    }
}
static void page_v_q8(const int8_t *codes, const float *scales, int32_t n_tok, int32_t d_head, int32_t d_pad,
                      float *out) {
    for (int32_t t = 0; t < MOA_PAGE_TOK; t++, codes += d_head, out += d_pad) {
        int32_t d = 0;
        for (; t < n_tok && d + V <= d_head; d += V)
            store(out + d, codes_load(codes + d) * scales[t]);
        for (; d < d_pad; d++)
            out[d] = t < n_tok && d < d_head ? (float)codes[d] * scales[t] : 0;
    }
}
static void page_v(const void *page, moa_kv_type type, int32_t n_tok, int32_t d_head, int32_t d_pad,
                   float *out) {
    const char *v = (const char *)page + moa_kv_v_at(type, d_head);
    const void *scales = (const char *)page + moa_kv_v_scale_at(d_head);
    if (type == MOA_KV_F32)
        page_v_as(MOA_F32, v, n_tok, d_head, d_pad, out);
    else if (type == MOA_KV_F16)
        page_v_as(MOA_F16, v, n_tok, d_head, d_pad, out);
    else if (type == MOA_KV_BF16)
        page_v_as(MOA_BF16, v, n_tok, d_head, d_pad, out);
    else
        page_v_q8((const int8_t *)v, scales, n_tok, d_head, d_pad, out);
}

static void softmax_page(float *s, int32_t lo, int32_t hi, float *max, float *sum, float *o, int32_t d_pad) {
    vf m = splat(-INFINITY), total = splat(0);
    for (int32_t j = 0; j < lo; j++)
        s[j] = -INFINITY;
    for (int32_t j = hi; j < MOA_PAGE_TOK; j++)
        s[j] = -INFINITY;
    for (int32_t j = 0; j < MOA_PAGE_TOK; j += V)
        m = vmax(load(s + j), m);
    const float page_max = lanes_max(m);
    if (page_max > *max) {
        const float shrink = exp_one(*max - page_max);
        *sum *= shrink;
        for (int32_t d = 0; d < d_pad; d += V)
            store(o + d, load(o + d) * shrink);
        *max = page_max;
    }
    for (int32_t j = 0; j < MOA_PAGE_TOK; j += V) {
        const vf p = vexp(load(s + j) - *max);
        total += p;
        store(s + j, p);
    }
    *sum += lanes_sum(total);
}

static void stat_page(float *s, int32_t lo, int32_t hi, float lse, float out[3]) {
    vf mass = splat(0), energy = splat(0), place = splat(0), index;
    for (int i = 0; i < V; i++)
        index[i] = (float)i;
    for (int32_t j = 0; j < lo; j++)
        s[j] = lse - 1000; /* e^-1000 is 0, and 0 times it is too */
    for (int32_t j = hi; j < MOA_PAGE_TOK; j++)
        s[j] = lse - 1000;
    for (int32_t j = 0; j < MOA_PAGE_TOK; j += V) {
        const vf x = load(s + j), p = vexp(x - lse);
        mass += p;
        energy += p * (lse - x);
        place += p * (index + (float)j);
        store(s + j, p);
    }
    out[0] = lanes_sum(mass);
    out[1] = lanes_sum(energy);
    out[2] = lanes_sum(place);
}

static void exp_shift(float *s, int32_t n, float shift) {
    int32_t i = 0;
    for (; i + V <= n; i += V)
        store(s + i, vexp(load(s + i) - shift));
    for (; i < n; i++)
        s[i] = exp_one(s[i] - shift);
}

static float max_of(const float *x, int32_t n) {
    float m = -INFINITY;
    int32_t i = 0;
    if (n >= V) {
        vf v = load(x);
        for (i = V; i + V <= n; i += V)
            v = vmax(load(x + i), v);
        m = lanes_max(v);
    }
    for (; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m;
}

#define KERN_FLOAT                                                                                           \
    .dot = dot, .gemm = gemm, .rmsnorm = rmsnorm, .silu_mul = silu_mul, .add = add, .to_half = to_half,      \
    .from_half = from_half, .page_k = page_k, .page_v = page_v, .softmax_page = softmax_page,                \
    .stat_page = stat_page, .exp_shift = exp_shift, .max = max_of
