/* kern.h -- the inner loops of the fast path, once for each instruction set; the choice is made when the backend opens.
 *
 *   kern_float.h    float32 loops in the compiler's vector types, compiled three times (4, 8, 16 lanes)
 *   quant_*.c       dot products of packed weights (pack.h) with activations of 16 bits
 *   kern_c.c  kern_avx2.c  kern_avx512.c     the tables
 *
 * Every function here computes an element the same way whatever the thread or the tile it falls in: results do not depend on
 * the number of threads. MOASCOPE_CPU=c|avx2|avx512 in the environment takes a weaker table than the machine could (tests). */
#ifndef MOA_CPU_KERN_H
#define MOA_CPU_KERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/cpu/pack.h"
#include "core/engine/backend.h"

/* One token's block of 32 activations, x = scale * v with |v| <= MOA_X_MAX: 16 bits each, so that quantising activations
 * adds an error (NMSE about 1e-9) far below that of any 8-bit form. How v lies in the 64 bytes is the kernel's affair. */
enum { MOA_X_MAX = 127 * 256 + 127, MOA_X_BYTES = 64 };
typedef struct moa_xmeta {
    float scale;
    float sum; /* sum of the 32 values: what a block's minimum is multiplied with */
    int32_t fix
        [2]; /* -zero * sum of v over each half: takes the codes' zero point off; fix[0] both halves unless Q6_K */
} moa_xmeta;

/* Tokens go through the packed kernels in tiles of 8, 4, 2 or 1; tile k of a list starts at token t0 and its blocks lie
 * [block][token of the tile], from t0 * n_block on. */
enum { MOA_TILE_MAX = 8, MOA_N_TILE = 4 };
static inline int32_t moa_tile(int32_t n_left) {
    return n_left >= 8 ? 8 : n_left >= 4 ? 4 : n_left >= 2 ? 2 : 1;
}

/* 16 rows (a group) times the tokens of a tile: out (n_tok of the tile, 16), overwritten */
typedef void (*moa_qdot_fn)(const moa_pack_group *g, int32_t n_block, const void *x, const moa_xmeta *meta,
                            float *out);

typedef struct
    moa_gemm { /* c (m, n) = or += a (m, k) b (k, n); rows apart by lda, ldb, ldc; n a multiple of 16 */
    int32_t m, n, k, lda, ldb, ldc;
    const float *a, *b;
    float *c;
    bool accumulate;
} moa_gemm;

typedef struct moa_kern {
    const char *name;
    const moa_qdot_fn (*qdot)[MOA_N_TILE]; /* [kind of pack][log2 of the tile] */
    /* packed kernels beat dequantising and a float GEMM up to this many tokens */
    int32_t qdot_max_tok;
    /* a tile of tokens: x (n_tok, 32 * n_block) with rows apart by stride -> out, meta as above */
    void (*quantize)(const float *x, int64_t stride, int32_t n_tok, int32_t n_block, int32_t zero,
                     bool halves, void *out, moa_xmeta *meta);

    /* dot products of one row of type F32, F16 or BF16 with 1..4 tokens, n elements each, rows of x apart by stride */
    void (*dot)(moa_dtype type, const void *row, const float *x, int64_t stride, int32_t n_tok, int32_t n,
                float *out);
    void (*gemm)(const moa_gemm *g);
    void (*rmsnorm)(const float *x, const float *w, float *y, int32_t n, float eps);
    void (*silu_mul)(const float *gate, const float *up, float *y, int64_t n);
    void (*add)(const float *x, float *y, int64_t n);
    void (*to_half)(const float *x, uint16_t *y, int64_t n);
    void (*from_half)(const uint16_t *x, float *y, int64_t n);

    /* A page's K as (d_head, 64) and V as (64, d_pad) float32, tokens from n_tok on and columns from d_head on zero. K begins at k or the
     * page, V follows where the type has it; page_k of f32 needs n_tok rows and no whole page */
    void (*page_k)(const void *page, moa_kv_type type, int32_t n_tok, int32_t d_head, float *out);
    void (*page_v)(const void *page, moa_kv_type type, int32_t n_tok, int32_t d_head, int32_t d_pad, float *out);
    /* One row of 64 scores of which [lo, hi) are visible joins an online softmax: s becomes exp(s - max), 0 elsewhere; when the
     * maximum grows, sum and o (d_pad) shrink. lo < hi. */
    void (*softmax_page)(float *s, int32_t lo, int32_t hi, float *max, float *sum, float *o, int32_t d_pad);
    /* The same row once its log-sum-exp is known: s becomes the probabilities, 0 elsewhere; out: their sum, the sum of p * (lse - score),
     * and the sum of p * (index in the page) */
    void (*stat_page)(float *s, int32_t lo, int32_t hi, float lse, float out[3]);
    void (*exp_shift)(float *s, int32_t n, float shift); /* s becomes exp(s - shift) */
    float (*max)(const float *x, int32_t n);
} moa_kern;

extern const moa_kern moa_kern_c;
#if defined(__x86_64__)
extern const moa_kern moa_kern_avx2, moa_kern_avx512;
#endif

const moa_kern *moa_kern_choose(void);

#endif
