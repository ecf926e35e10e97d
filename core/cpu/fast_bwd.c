/* fast_bwd.c -- gradients of the operations that work row by row, for the influence profile.
 *
 *   matmul_t        rows of W are decoded to float32, a stretch at a time, by all threads; then OpenBLAS multiplies, a task
 *                   a tile of TOKENS x COLUMNS of dx, on our threads. Stretches add up in their order.
 *   the others      rows or stretches shared out among the threads
 *
 * Where tiles and stretches are cut depends on shapes alone: results do not depend on the number of threads. */
#include <cblas.h>
#include <math.h>
#include <string.h>

#include "core/base/size.h"
#include "core/cpu/cpu.h"

enum { TOKENS = 128, COLUMNS = 256, ROWS = 8, STRETCH = 8192 };
#define PANEL_BYTES ((size_t)32 << 20)

/* --- matmul_t -------------------------------------------------------------------------------------------------------- */

typedef struct product {
    const moa_args_matmul_t *a;
    const float *rows; /* (n_row, n_in) */
    float *panel;      /* where they are decoded to; NULL: rows of float32, in place */
    int32_t first, n_row, n_col_tile;
} product;

static void decode_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const product *p = ctx;
    const moa_dev_weight *w = p->a->w;
    for (int32_t r = task * ROWS; r < (task + 1) * ROWS && r < p->n_row; r++)
        w->type->decode(moa_weight_row(w, p->first + r), p->panel + (int64_t)r * w->n_in, (size_t)w->n_in);
}

static void product_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const product *p = ctx;
    const moa_args_matmul_t *a = p->a;
    const int32_t n_in = a->w->n_in, n_out = a->w->n_out;
    const int32_t t = task / p->n_col_tile * TOKENS, c = task % p->n_col_tile * COLUMNS;
    const int32_t n_tok = a->n_tok - t < TOKENS ? a->n_tok - t : TOKENS,
                  n_col = n_in - c < COLUMNS ? n_in - c : COLUMNS;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n_tok, n_col, p->n_row, 1,
                a->dy + (int64_t)t * n_out + p->first, n_out, p->rows + c, n_in,
                a->accumulate || p->first > 0 ? 1 : 0, a->dx + (int64_t)t * n_in + c, n_in);
}

moa_status moa_fast_matmul_t(moa_backend *b, const moa_args_matmul_t *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    const moa_dev_weight *w = a->w;
    const size_t row_bytes = (size_t)w->n_in * sizeof(float);
    product p = {.a = a, .n_col_tile = (w->n_in - 1) / COLUMNS + 1};
    if (a->n_tok <= 0) return MOA_OK;
    int32_t most = PANEL_BYTES / row_bytes < 1 ? 1 : (int32_t)(PANEL_BYTES / row_bytes);
    if (most > w->n_out) most = w->n_out;
    if (w->type->id != MOA_F32) {
        p.panel = moa_cpu_room(cpu, (size_t)most * row_bytes, err);
        if (!p.panel) return MOA_E_MEMORY;
    }
    for (p.first = 0; p.first < w->n_out; p.first += p.n_row) {
        p.n_row = w->n_out - p.first < most ? w->n_out - p.first : most;
        p.rows = p.panel ? p.panel : (const float *)moa_weight_row(w, p.first);
        if (p.panel) moa_pool_run(cpu->pool, decode_task, &p, (p.n_row - 1) / ROWS + 1);
        moa_pool_run(cpu->pool, product_task, &p, ((a->n_tok - 1) / TOKENS + 1) * p.n_col_tile);
    }
    return MOA_OK;
}

/* --- rmsnorm_bwd, silu_mul_bwd --------------------------------------------------------------------------------------- */

static void rmsnorm_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const moa_args_rmsnorm_bwd *a = ctx;
    for (int32_t t = task * ROWS; t < (task + 1) * ROWS && t < a->n_tok; t++) {
        const float *x = a->x + (int64_t)t * a->n, *dy = a->dy + (int64_t)t * a->n, *w = a->w->values;
        float *dx = a->dx + (int64_t)t * a->n;
        double square = 0, dot = 0;
        for (int32_t i = 0; i < a->n; i++) {
            square += (double)x[i] * x[i];
            dot += (double)x[i] * w[i] * dy[i];
        }
        const double r = 1 / sqrt(square / a->n + a->eps);
        const float forth = (float)r, back = (float)(r * r * r * dot / a->n);
        for (int32_t i = 0; i < a->n; i++)
            dx[i] = (a->accumulate ? dx[i] : 0) + (forth * w[i] * dy[i] - back * x[i]);
    }
}

moa_status moa_fast_rmsnorm_bwd(moa_backend *b, const moa_args_rmsnorm_bwd *a, moa_err *err) {
    (void)err;
    moa_pool_run(((moa_cpu *)b)->pool, rmsnorm_task, (void *)(uintptr_t)a, (a->n_tok + ROWS - 1) / ROWS);
    return MOA_OK;
}

typedef struct silu_job {
    const moa_kern *kern;
    const moa_args_silu_mul_bwd *a;
} silu_job;

/* with h = exp(-|g|) nothing overflows: s = 1 / (1 + h) or h / (1 + h) */
static void silu_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const silu_job *j = ctx;
    const moa_args_silu_mul_bwd *a = j->a;
    enum { N = 256 };
    float h[N];
    const int64_t end = (int64_t)(task + 1) * STRETCH < a->n ? (int64_t)(task + 1) * STRETCH : a->n;
    for (int64_t at = (int64_t)task * STRETCH; at < end; at += N) {
        const int32_t n = end - at < N ? (int32_t)(end - at) : N;
        for (int32_t i = 0; i < n; i++)
            h[i] = -fabsf(a->gate[at + i]);
        j->kern->exp_shift(h, n, 0);
        for (int32_t i = 0; i < n; i++) {
            const float gate = a->gate[at + i], up = a->up[at + i], dy = a->dy[at + i];
            const float large = 1 / (1 + h[i]), small = h[i] / (1 + h[i]);
            const float s = gate >= 0 ? large : small, rest = gate >= 0 ? small : large;
            a->d_gate[at + i] = dy * up * s * (1 + gate * rest);
            a->d_up[at + i] = dy * gate * s;
        }
    }
}

moa_status moa_fast_silu_mul_bwd(moa_backend *b, const moa_args_silu_mul_bwd *a, moa_err *err) {
    (void)err;
    moa_cpu *cpu = (moa_cpu *)b;
    silu_job j = {.kern = cpu->kern, .a = a};
    moa_pool_run(cpu->pool, silu_task, &j, (int32_t)((a->n + STRETCH - 1) / STRETCH));
    return MOA_OK;
}

/* --- cross_entropy --------------------------------------------------------------------------------------------------- */

typedef struct loss_job {
    const moa_kern *kern;
    const moa_args_cross_entropy *a;
} loss_job;

static void loss_task(void *ctx, int32_t r, int32_t thread) {
    (void)thread;
    const loss_job *j = ctx;
    const moa_args_cross_entropy *a = j->a;
    float *z = a->logits + (int64_t)r * a->n_vocab;
    const float max = j->kern->max(z, a->n_vocab), at_target = z[a->target[r]];
    double sum = 0, others = 0; /* others: all but the target, which is not taken off the sum: 1 - p would cancel */
    j->kern->exp_shift(z, a->n_vocab, max);
    for (int32_t i = 0; i < a->target[r]; i++)
        others += z[i];
    for (int32_t i = a->target[r] + 1; i < a->n_vocab; i++)
        others += z[i];
    sum = others + z[a->target[r]];
    a->loss[r] = (float)(max + log(sum) - at_target);
    const double by = a->margin ? fmax(others, MOA_MARGIN_TINY * sum) : sum;
    const float scale = (float)(a->scale / by);
    for (int32_t i = 0; i < a->n_vocab; i++)
        z[i] *= scale;
    z[a->target[r]] = (float)(-a->scale * others / by);
}

moa_status moa_fast_cross_entropy(moa_backend *b, const moa_args_cross_entropy *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    loss_job j = {.kern = cpu->kern, .a = a};
    for (int32_t r = 0; r < a->n_row; r++)
        if (a->target[r] < 0 || a->target[r] >= a->n_vocab)
            return moa_fail(err, MOA_E_INVALID, "target %d of row %d is outside the vocabulary of %d",
                            a->target[r], r, a->n_vocab);
    moa_pool_run(cpu->pool, loss_task, &j, a->n_row);
    return MOA_OK;
}
