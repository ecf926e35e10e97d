/* fast_rows.c -- the operations that go through memory once: embed, rmsnorm, silu_mul, add, kv_store, capture.
 * Rows or stretches are shared out among the threads when there is enough to share. */
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/cpu/half.h"

enum { ROWS = 8, STRETCH = 16384 /* elements: some microseconds */ };

static int32_t n_stretch(int64_t n) {
    return (int32_t)((n + STRETCH - 1) / STRETCH);
}

typedef struct job {
    const moa_cpu *cpu;
    const void *args;
    int32_t n_row;
} job;

static int32_t row_end(const job *j, int32_t task) {
    return (task + 1) * ROWS < j->n_row ? (task + 1) * ROWS : j->n_row;
}

static void run_rows(moa_cpu *cpu, moa_task_fn fn, const void *args, int32_t n_row) {
    job j = {.cpu = cpu, .args = args, .n_row = n_row};
    moa_pool_run(cpu->pool, fn, &j, (n_row + ROWS - 1) / ROWS);
}

/* --- embed ----------------------------------------------------------------------------------------------------------- */

static void embed_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_embed *a = j->args;
    for (int32_t t = task * ROWS; t < row_end(j, task); t++)
        a->w->type->decode(moa_weight_row(a->w, a->ids[t]), a->y + (int64_t)t * a->w->n_in,
                           (size_t)a->w->n_in);
}

moa_status moa_fast_embed(moa_backend *b, const moa_args_embed *a, moa_err *err) {
    for (int32_t t = 0; t < a->n_tok; t++)
        if (a->ids[t] < 0 || a->ids[t] >= a->w->n_out)
            return moa_fail(err, MOA_E_INVALID, "token id %d at row %d is outside the vocabulary of %d",
                            a->ids[t], t, a->w->n_out);
    run_rows((moa_cpu *)b, embed_task, a, a->n_tok);
    return MOA_OK;
}

/* --- rmsnorm, silu_mul, add ------------------------------------------------------------------------------------------ */

static void rmsnorm_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_rmsnorm *a = j->args;
    for (int32_t t = task * ROWS; t < row_end(j, task); t++)
        j->cpu->kern->rmsnorm(a->x + (int64_t)t * a->n, a->w->values, a->y + (int64_t)t * a->n, a->n, a->eps);
}

moa_status moa_fast_rmsnorm(moa_backend *b, const moa_args_rmsnorm *a, moa_err *err) {
    (void)err;
    run_rows((moa_cpu *)b, rmsnorm_task, a, a->n_tok);
    return MOA_OK;
}

static int64_t stretch_bytes(int64_t n, int32_t task) {
    return n - (int64_t)task * STRETCH < STRETCH ? n - (int64_t)task * STRETCH : STRETCH;
}

static void silu_mul_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_silu_mul *a = j->args;
    const int64_t at = (int64_t)task * STRETCH;
    j->cpu->kern->silu_mul(a->gate + at, a->up + at, a->y + at, stretch_bytes(a->n, task));
}

moa_status moa_fast_silu_mul(moa_backend *b, const moa_args_silu_mul *a, moa_err *err) {
    (void)err;
    moa_cpu *cpu = (moa_cpu *)b;
    job j = {.cpu = cpu, .args = a};
    moa_pool_run(cpu->pool, silu_mul_task, &j, n_stretch(a->n));
    return MOA_OK;
}

static void add_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_add *a = j->args;
    const int64_t at = (int64_t)task * STRETCH;
    j->cpu->kern->add(a->x + at, a->y + at, stretch_bytes(a->n, task));
}

moa_status moa_fast_add(moa_backend *b, const moa_args_add *a, moa_err *err) {
    (void)err;
    moa_cpu *cpu = (moa_cpu *)b;
    job j = {.cpu = cpu, .args = a};
    moa_pool_run(cpu->pool, add_task, &j, n_stretch(a->n));
    return MOA_OK;
}

/* --- kv_store -------------------------------------------------------------------------------------------------------- */

static void put(const moa_kern *kern, unsigned char *row, moa_kv_type type, const float *x, int32_t n) {
    uint16_t *halves = (uint16_t *)(void *)row;
    if (type == MOA_KV_F32)
        memcpy(row, x, sizeof *x * (size_t)n);
    else if (type == MOA_KV_F16)
        kern->to_half(x, halves, n);
    else
        for (int32_t i = 0; i < n; i++)
            halves[i] = moa_float_to_bf16(x[i]);
}

static void kv_store_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_kv_store *a = j->args;
    const moa_kv_view *kv = &a->kv;
    const size_t row_bytes = moa_kv_row_bytes(kv->type, kv->d_head), v_at = moa_kv_v_at(kv->type, kv->d_head);
    for (int32_t t = task * ROWS; t < row_end(j, task); t++) {
        if (a->pos[t] < 0) continue;
        for (int32_t h = 0; h < kv->n_head_kv; h++) {
            const int64_t from = ((int64_t)t * kv->n_head_kv + h) * kv->d_head;
            unsigned char *to = moa_kv_page_of(kv, a->seq ? a->seq[t] : 0, h, a->pos[t]) +
                                (size_t)(a->pos[t] % MOA_PAGE_TOK) * row_bytes;
            put(j->cpu->kern, to, kv->type, a->k + from, kv->d_head);
            put(j->cpu->kern, to + v_at, kv->type, a->v + from, kv->d_head);
        }
    }
}

/* The rows t .. t + n - 1 of KV head h are tokens at .. of one page of q8: the exponents once for all of them. */
static void put_q8(const moa_args_kv_store *a, int32_t t, int32_t n, int32_t h) {
    const moa_kv_view *kv = &a->kv;
    const int32_t d = kv->d_head, at = a->pos[t] % MOA_PAGE_TOK;
    const int64_t stride = (int64_t)kv->n_head_kv * d;
    const float *k = a->k + t * stride + (int64_t)h * d, *v = a->v + t * stride + (int64_t)h * d;
    unsigned char *page = moa_kv_page_of(kv, a->seq ? a->seq[t] : 0, h, a->pos[t]);
    int8_t *codes = (int8_t *)page;
    uint8_t *exponents = moa_kv_k_exponents(page, d);
    for (int32_t i = 0; i < d; i++) {
        const int32_t before = at == 0 ? 0 : exponents[i];
        int32_t now = before;
        for (int32_t r = 0; r < n; r++) {
            const int32_t own = moa_kv_exponent(k[r * stride + i]);
            now = own > now ? own : now;
        }
        for (int32_t r = 0; now > before && r < at; r++)
            codes[r * d + i] = moa_kv_k_shift(codes[r * d + i], now - before);
        exponents[i] = (uint8_t)now;
    }
    for (int32_t r = 0; r < n; r++, k += stride, v += stride) {
        int8_t *k_row = codes + (at + r) * d, *v_row = k_row + moa_kv_v_at(MOA_KV_Q8, d);
        uint32_t top = 0;
        for (int32_t i = 0; i < d; i++) {
            const uint32_t size = moa_kv_bits(v[i]) & 0x7fffffffu;
            top = size > top ? size : top;
            k_row[i] = moa_kv_k_code(k[i], exponents[i]);
        }
        const float scale = moa_kv_v_scale(top);
        moa_kv_v_scales(page, d)[at + r] = scale;
        for (int32_t i = 0; i < d; i++)
            v_row[i] = moa_kv_v_code(v[i], scale);
    }
}

/* a KV head: its rows page by page */
static void kv_store_q8_task(void *ctx, int32_t head, int32_t thread) {
    (void)thread;
    const moa_args_kv_store *a = ((const job *)ctx)->args;
    for (int32_t t = 0, n; t < a->n_tok; t += n) {
        n = 1;
        if (a->pos[t] < 0) continue;
        while (t + n < a->n_tok && a->pos[t + n] == a->pos[t] + n && a->pos[t + n] % MOA_PAGE_TOK != 0 &&
               (!a->seq || a->seq[t + n] == a->seq[t]))
            n++;
        put_q8(a, t, n, head);
    }
}

moa_status moa_fast_kv_store(moa_backend *b, const moa_args_kv_store *a, moa_err *err) {
    for (int32_t t = 0; t < a->n_tok; t++)
        for (int32_t h = 0; h < a->kv.n_head_kv && a->pos[t] >= 0; h++) {
            const int32_t seq = a->seq ? a->seq[t] : 0;
            if (a->pos[t] / MOA_PAGE_TOK >= a->kv.max_pages || !moa_kv_page_of(&a->kv, seq, h, a->pos[t]))
                return moa_fail(err, MOA_E_FAILED, "no KV page for token %d of sequence %d, KV head %d",
                                a->pos[t], seq, h);
        }
    moa_cpu *cpu = (moa_cpu *)b;
    job j = {.cpu = cpu, .args = a};
    if (a->kv.type == MOA_KV_Q8)
        moa_pool_run(cpu->pool, kv_store_q8_task, &j, a->kv.n_head_kv);
    else
        run_rows(cpu, kv_store_task, a, a->n_tok);
    return MOA_OK;
}

/* --- capture --------------------------------------------------------------------------------------------------------- */

static void capture_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_capture *a = j->args;
    const size_t row = sizeof(float) * (size_t)a->d_head;
    for (int32_t t = task * ROWS; t < row_end(j, task); t++) {
        const int32_t pos = a->pos[t];
        if (pos < 0 || pos >= a->max_tok) continue;
        for (int32_t h = 0; h < a->n_head; h++)
            memcpy(a->cap_q + ((int64_t)h * a->max_tok + pos) * a->d_head,
                   a->q + ((int64_t)t * a->n_head + h) * a->d_head, row);
        for (int32_t h = 0; h < a->n_head_kv; h++) {
            const float *k = a->k + ((int64_t)t * a->n_head_kv + h) * a->d_head;
            float *to = a->cap_k + ((int64_t)h * a->max_tok + pos) * a->d_head;
            if (a->type == MOA_KV_F32) {
                memcpy(to, k, row);
                continue;
            }
            unsigned char *page = a->type == MOA_KV_Q8 ? moa_kv_page_of(&a->kv, 0, h, pos) : NULL;
            const int8_t *codes = (const int8_t *)page + (ptrdiff_t)(pos % MOA_PAGE_TOK) * a->d_head;
            for (int32_t i = 0; i < a->d_head; i++)
                to[i] = page                     ? moa_kv_k_value(codes[i], moa_kv_k_exponents(page, a->d_head)[i])
                        : a->type == MOA_KV_BF16 ? moa_bf16_to_float(moa_float_to_bf16(k[i]))
                                                 : moa_half_to_float(moa_float_to_half(k[i]));
        }
    }
}

moa_status moa_fast_capture(moa_backend *b, const moa_args_capture *a, moa_err *err) {
    const moa_status status = moa_cpu_capture_check(a, err);
    if (status != MOA_OK) return status;
    run_rows((moa_cpu *)b, capture_task, a, a->n_tok);
    return MOA_OK;
}
