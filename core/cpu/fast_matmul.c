/* fast_matmul.c -- y = x W^T, three ways:
 *
 *   packed     quantised weights stay as narrow as stored (pack.h); activations become 16-bit integers, tile by tile. For decode
 *              the weights stream through once; for prefill a task takes 64 tokens (their quantised form stays in the
 *              second-level cache) times some groups of 16 rows (a group stays in the first).
 *   dot        F32, F16, BF16 rows times a few tokens
 *   panel      everything else: rows are decoded to float32 and OpenBLAS multiplies, one thread each, on our threads
 *
 * The reads are cut by rows and tokens, never along a dot product, so results do not depend on the number of threads. */
#include <cblas.h>
#include <string.h>

#include "core/base/size.h"
#include "core/cpu/cpu.h"

enum { TOK_BLOCK = 64, DOT_MAX_TOK = 8, DOT_ROWS = 16, PANEL_BYTES = 256 << 10 };

typedef struct job {
    const moa_args_matmul *a;
    const moa_kern *kern;
    const float *bias; /* (n_out) or NULL */
    int32_t n_in, n_out;
    int32_t n_part, n_tok_block; /* tasks = n_part (of the rows) * n_tok_block */
    /* packed */
    char *x; /* (n_tok, n_block, 64 bytes), tiled */
    moa_xmeta *meta;
    /* panel */
    float *panels; /* (n_threads, panel_rows, n_in) */
    int32_t panel_rows;
} job;

static inline int32_t cut(int32_t n, int32_t part, int32_t n_part) {
    return (int32_t)((int64_t)n * part / n_part);
}

/* --- packed ---------------------------------------------------------------------------------------------------------- */

static void quantize_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_pack *p = &j->a->w->pack;
    const int32_t end = (task + 1) * MOA_TILE_MAX < j->a->n_tok ? (task + 1) * MOA_TILE_MAX : j->a->n_tok;
    for (int32_t t = task * MOA_TILE_MAX, n; t < end; t += n) {
        n = moa_tile(end - t);
        const size_t at = (size_t)t * (size_t)p->n_block;
        j->kern->quantize(j->a->x + (int64_t)t * j->n_in, j->n_in, n, p->n_block, p->zero, p->halves,
                          j->x + at * MOA_X_BYTES, j->meta + at);
    }
}

/* out (n, 16) to rows [row, row + 16) of y */
static void put_tile(const job *j, const float *out, int32_t t0, int32_t n, int32_t row) {
    const int32_t n_row = j->n_out - row < MOA_PACK_ROWS ? j->n_out - row : MOA_PACK_ROWS;
    for (int32_t t = 0; t < n; t++) {
        float *y = j->a->y + (int64_t)(t0 + t) * j->n_out + row;
        const float *o = out + t * MOA_PACK_ROWS;
        if (n_row == MOA_PACK_ROWS && !j->bias && !j->a->accumulate) {
            memcpy(y, o, sizeof *o * MOA_PACK_ROWS);
            continue;
        }
        for (int32_t r = 0; r < n_row; r++)
            y[r] = o[r] + (j->bias ? j->bias[row + r] : 0) + (j->a->accumulate ? y[r] : 0);
    }
}

static void packed_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_pack *p = &j->a->w->pack;
    const int32_t part = task % j->n_part, first = task / j->n_part * TOK_BLOCK;
    const int32_t end = first + TOK_BLOCK < j->a->n_tok ? first + TOK_BLOCK : j->a->n_tok;
    for (int32_t g = cut(p->n_group, part, j->n_part); g < cut(p->n_group, part + 1, j->n_part); g++) {
        const moa_pack_group group = moa_pack_at(p, g);
        for (int32_t t = first, n; t < end; t += n) {
            float out[MOA_TILE_MAX * MOA_PACK_ROWS];
            n = moa_tile(end - t);
            const size_t at = (size_t)t * (size_t)p->n_block;
            const int tile = n == 8 ? 3 : n == 4 ? 2 : n == 2 ? 1 : 0;
            j->kern->qdot[p->kind][tile](&group, p->n_block, j->x + at * MOA_X_BYTES, j->meta + at, out);
            put_tile(j, out, t, n, g * MOA_PACK_ROWS);
        }
    }
}

static moa_status packed(moa_cpu *cpu, job *j, moa_err *err) {
    const moa_pack *p = &j->a->w->pack;
    const size_t n = (size_t)j->a->n_tok * (size_t)p->n_block;
    j->x = moa_cpu_room(cpu, n * (MOA_X_BYTES + sizeof *j->meta), err);
    if (!j->x) return MOA_E_MEMORY;
    j->meta = (moa_xmeta *)(void *)(j->x + n * MOA_X_BYTES);
    moa_pool_run(cpu->pool, quantize_task, j, (j->a->n_tok - 1) / MOA_TILE_MAX + 1);
    j->n_tok_block = (j->a->n_tok - 1) / TOK_BLOCK + 1;
    j->n_part = 4 * cpu->n_threads < p->n_group ? 4 * cpu->n_threads : p->n_group;
    moa_pool_run(cpu->pool, packed_task, j, j->n_part * j->n_tok_block);
    return MOA_OK;
}

/* --- rows of floats times a few tokens ------------------------------------------------------------------------------- */

static void dot_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_matmul *a = j->a;
    for (int32_t o = task * DOT_ROWS; o < (task + 1) * DOT_ROWS && o < j->n_out; o++)
        for (int32_t t = 0; t < a->n_tok; t += 4) {
            const int32_t n = a->n_tok - t < 4 ? a->n_tok - t : 4;
            float out[4];
            j->kern->dot(a->w->type->id, moa_weight_row(a->w, o), a->x + (int64_t)t * j->n_in, j->n_in, n,
                         j->n_in, out);
            for (int32_t i = 0; i < n; i++) {
                float *y = a->y + (int64_t)(t + i) * j->n_out + o;
                *y = out[i] + (j->bias ? j->bias[o] : 0) + (a->accumulate ? *y : 0);
            }
        }
}

/* --- panels ---------------------------------------------------------------------------------------------------------- */

static void panel_task(void *ctx, int32_t task, int32_t thread) {
    const job *j = ctx;
    const moa_args_matmul *a = j->a;
    const int32_t first = task * j->panel_rows,
                  n = j->n_out - first < j->panel_rows ? j->n_out - first : j->panel_rows;
    const float *w = (const float *)moa_weight_row(a->w, first);
    if (a->w->type->id != MOA_F32) {
        float *panel = j->panels + (size_t)thread * (size_t)j->panel_rows * (size_t)j->n_in;
        for (int32_t r = 0; r < n; r++)
            a->w->type->decode(moa_weight_row(a->w, first + r), panel + (size_t)r * (size_t)j->n_in,
                               (size_t)j->n_in);
        w = panel;
    }
    for (int32_t t = 0; j->bias && t < a->n_tok; t++) {
        float *y = a->y + (int64_t)t * j->n_out + first;
        for (int32_t r = 0; r < n; r++)
            y[r] = j->bias[first + r] + (a->accumulate ? y[r] : 0);
    }
    const float keep = j->bias || a->accumulate ? 1 : 0;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, a->n_tok, n, j->n_in, 1, a->x, j->n_in, w, j->n_in,
                keep, a->y + first, j->n_out);
}

static moa_status panel(moa_cpu *cpu, job *j, moa_err *err) {
    const int32_t rows = PANEL_BYTES / 4 / j->n_in / 16 * 16;
    j->panel_rows = rows < 16 ? 16 : rows > 256 ? 256 : rows;
    if (j->a->w->type->id != MOA_F32) {
        size_t bytes;
        if (!moa_size_mul((size_t)cpu->n_threads * (size_t)j->panel_rows * sizeof(float), (size_t)j->n_in,
                          &bytes))
            bytes = SIZE_MAX;
        j->panels = moa_cpu_room(cpu, bytes, err);
        if (!j->panels) return MOA_E_MEMORY;
    }
    moa_pool_run(cpu->pool, panel_task, j, (j->n_out - 1) / j->panel_rows + 1);
    return MOA_OK;
}

moa_status moa_fast_matmul(moa_backend *b, const moa_args_matmul *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    job j = {.a = a,
             .kern = cpu->kern,
             .bias = a->bias ? a->bias->values : NULL,
             .n_in = a->w->n_in,
             .n_out = a->w->n_out};
    if (a->n_tok <= 0) return MOA_OK;
    if (a->w->pack.memory && a->n_tok <= cpu->kern->qdot_max_tok) return packed(cpu, &j, err);
    const bool floats = a->w->type->id == MOA_F32 || a->w->type->id == MOA_F16 || a->w->type->id == MOA_BF16;
    if (floats && a->n_tok <= DOT_MAX_TOK) {
        moa_pool_run(cpu->pool, dot_task, &j, (j.n_out - 1) / DOT_ROWS + 1);
        return MOA_OK;
    }
    return panel(cpu, &j, err);
}
