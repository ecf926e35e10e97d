/* Timing, and the ceiling that everything is held against. */
#include "core/tasks/bench.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/engine/sampler.h"

enum { PATTERN_BYTES = 8 << 20, CALLS_MAX = 2000, READ_ROWS = 1024 };

double moa_bench_now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

moa_status moa_bench_random(moa_backend *b, void *dst, size_t bytes, bool half, moa_err *err) {
    const size_t part = bytes < PATTERN_BYTES ? (bytes + 3) & ~(size_t)3 : PATTERN_BYTES;
    moa_pcg32 g = moa_pcg32_seed(bytes, 31);
    moa_status s = MOA_OK;
    uint32_t *pattern = malloc(part ? part : 4);
    if (!pattern) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu random bytes", part);
    for (size_t i = 0; i < part / 4; i++) {
        const uint32_t r = moa_pcg32_next(&g), e = (r >> 10 & 3) % 3;
        pattern[i] = half ? (r & 0x83ff83ffu) | (13 + e) << 10 | (13 + (e + 1) % 3) << 26
                          : (r & 0x80000000u) | (125 + e) << 23 | (r >> 8 & 0x7fffffu);
    }
    MOA_TRY(b->vt->upload(b, dst, pattern, part < bytes ? part : bytes, err));
    for (size_t at = part; at < bytes; at += part)
        MOA_TRY(b->vt->copy(b, (char *)dst + at, dst, bytes - at < part ? bytes - at : part, err));
    s = b->vt->sync(b, err);
out:
    free(pattern);
    return s;
}

/* --- timing -------------------------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

moa_bench_time moa_bench_percentiles(double *seconds, int32_t n) {
    qsort(seconds, (size_t)n, sizeof *seconds, by_size);
    const double mid = n % 2 ? seconds[n / 2] : (seconds[n / 2 - 1] + seconds[n / 2]) / 2;
    return (moa_bench_time){.p10_us = 1e6 * seconds[n / 10],
                            .median_us = 1e6 * mid,
                            .p90_us = 1e6 * seconds[(9 * n) / 10 < n ? (9 * n) / 10 : n - 1],
                            .n_sample = n,
                            .n_call = 1};
}

typedef struct timing {
    const moa_bench *x;
    moa_status (*run)(void *ctx, moa_err *err);
    void *ctx;
    void *recording; /* or NULL: called directly */
} timing;

static moa_status once(const timing *t, moa_err *err) {
    moa_backend *b = t->x->backend;
    return t->recording ? b->vt->replay(b, t->recording, err) : t->run(t->ctx, err);
}

static moa_status sample(const timing *t, int32_t n, double *seconds, moa_err *err) {
    moa_backend *b = t->x->backend;
    moa_status s = MOA_OK;
    const double start = moa_bench_now();
    for (int32_t i = 0; i < n; i++)
        MOA_TRY(once(t, err));
    MOA_TRY(b->vt->sync(b, err));
    *seconds = (moa_bench_now() - start) / n;
out:
    return s;
}

/* the first call lets the backend allocate; then it is recorded. What cannot be recorded is called. */
static moa_status prepare(timing *t, moa_err *err) {
    moa_backend *b = t->x->backend;
    moa_status s = t->run(t->ctx, err);
    if (s == MOA_OK) s = b->vt->sync(b, err);
    if (s != MOA_OK || !b->vt->record_begin || b->vt->record_begin(b, NULL) != MOA_OK) return s;
    const moa_status run = t->run(t->ctx, NULL), end = b->vt->record_end(b, &t->recording, NULL);
    if (end != MOA_OK) t->recording = NULL;
    if (run != MOA_OK && t->recording) {
        b->vt->recording_free(b, t->recording);
        t->recording = NULL;
    }
    return MOA_OK;
}

moa_status moa_bench_measure(const moa_bench *x, moa_status (*run)(void *ctx, moa_err *err), void *ctx,
                             double per_call, moa_bench_time *out, moa_err *err) {
    timing t = {.x = x, .run = run, .ctx = ctx};
    moa_status s = MOA_OK;
    double one = 0;
    double *seconds = malloc((size_t)x->reps * sizeof *seconds);
    if (!seconds) return moa_fail(err, MOA_E_MEMORY, "no memory for %d samples", x->reps);
    MOA_TRY(prepare(&t, err));
    MOA_TRY(sample(&t, 1, &one, err));
    MOA_TRY(sample(&t, 2, &one, err));
    const double want = one > 0 ? x->sample_s / one : CALLS_MAX;
    const int32_t n = want < 1 ? 1 : want > CALLS_MAX ? CALLS_MAX : (int32_t)want;
    MOA_TRY(sample(&t, n, &one, err)); /* clocks rise */
    for (int32_t i = 0; i < x->reps; i++) {
        if (x->cancelled && x->cancelled(x->user))
            MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted after %d of %d samples", i, x->reps));
        MOA_TRY(sample(&t, n, &seconds[i], err));
        seconds[i] /= per_call;
    }
    *out = moa_bench_percentiles(seconds, x->reps);
    out->n_call = n;
out:
    if (t.recording) x->backend->vt->recording_free(x->backend, t.recording);
    free(seconds);
    return s;
}

/* --- the ceiling ----------------------------------------------------------------------------------------------------------------- */

typedef struct big {
    moa_backend *b;
    char *memory;
    size_t half; /* bytes of each of two halves */
    moa_args_argmax read;
} big;

static moa_status run_add(void *ctx, moa_err *err) {
    const big *g = ctx;
    const moa_args_add a = {.x = (const float *)(const void *)g->memory,
                            .y = (float *)(void *)(g->memory + g->half),
                            .n = (int64_t)(g->half / sizeof(float))};
    return g->b->vt->add(g->b, &a, err);
}
static moa_status run_copy(void *ctx, moa_err *err) {
    const big *g = ctx;
    return g->b->vt->copy(g->b, g->memory + g->half, g->memory, g->half, err);
}
static moa_status run_read(void *ctx, moa_err *err) {
    const big *g = ctx;
    return g->b->vt->argmax(g->b, &g->read, err);
}

/* rows to be searched through, never at an end */
static moa_status plan_read(big *g, int32_t *rows, moa_err *err) {
    int32_t *host = malloc(4 * READ_ROWS * sizeof *host);
    if (!host) return moa_fail(err, MOA_E_MEMORY, "no memory for %d rows", READ_ROWS);
    for (int i = 0; i < READ_ROWS; i++) {
        host[i] = host[READ_ROWS + i] = host[3 * READ_ROWS + i] = 0;
        host[2 * READ_ROWS + i] = INT32_MAX;
    }
    g->read = (moa_args_argmax){.logits = (const float *)(const void *)g->memory,
                                .id = rows,
                                .pos = rows + READ_ROWS,
                                .limit = rows + 2 * READ_ROWS,
                                .log = rows + 3 * READ_ROWS,
                                .end = rows,
                                .n_seq = READ_ROWS,
                                .n_vocab = (int32_t)(2 * g->half / sizeof(float) / READ_ROWS),
                                .log_stride = 1};
    const moa_status s = g->b->vt->upload(g->b, rows, host, 4 * READ_ROWS * sizeof *host, err);
    free(host);
    return s;
}

moa_status moa_bench_ceiling(const moa_bench *x, moa_bench_rate *out, moa_err *err) {
    moa_backend *b = x->backend;
    big g = {.b = b, .half = x->big_bytes / 2 & ~(size_t)4095};
    void *memory = NULL, *rows = NULL;
    moa_bench_time t;
    moa_status s = MOA_OK;
    MOA_TRY(b->vt->alloc(b, 2 * g.half, &memory, err));
    MOA_TRY(b->vt->alloc(b, 4 * READ_ROWS * sizeof(int32_t), &rows, err));
    g.memory = memory;
    MOA_TRY(moa_bench_random(b, memory, 2 * g.half, false, err));
    MOA_TRY(plan_read(&g, rows, err));
    MOA_TRY(moa_bench_measure(x, run_read, &g, 1, &t, err));
    out->read = (double)g.read.n_vocab * READ_ROWS * sizeof(float) / t.p10_us * 1e6;
    MOA_TRY(moa_bench_measure(x, run_copy, &g, 1, &t, err));
    out->copy = 2 * (double)g.half / t.p10_us * 1e6;
    MOA_TRY(moa_bench_measure(x, run_add, &g, 1, &t, err));
    out->add = 3 * (double)g.half / t.p10_us * 1e6;
    out->best = out->read > out->add ? out->read : out->add;
    if (out->copy > out->best) out->best = out->copy;
out:
    b->vt->free(b, rows);
    b->vt->free(b, memory);
    return s;
}

/* --- what a plan keeps ------------------------------------------------------------------------------------------------------------- */

int32_t moa_bench_kept(const moa_bench_case *c, int32_t layer, int32_t head_kv, int32_t n_reserved,
                       int32_t n_tok) {
    const int32_t group = c->shape->n_head / c->shape->n_head_kv;
    int32_t most = 0;
    for (int32_t h = head_kv * group; h < (head_kv + 1) * group; h++) {
        const moa_rule rule = c->rules ? c->rules[(int64_t)layer * c->shape->n_head + h] : (moa_rule){0, 1};
        const int32_t seen = moa_n_seen(moa_span(rule, n_reserved), n_tok - 1);
        if (seen > most) most = seen;
    }
    return most;
}

double moa_bench_token_bytes(const moa_bench_case *c) {
    return (double)moa_kv_page_bytes(c->kv_type, c->shape->d_head) / MOA_PAGE_TOK;
}

double moa_bench_kv_bytes(const moa_bench_case *c, int32_t n_reserved, int32_t n_tok, double *kept) {
    const moa_shape *m = c->shape;
    double n = 0;
    for (int32_t l = 0; l < m->n_layer; l++)
        for (int32_t k = 0; k < m->n_head_kv; k++)
            n += moa_bench_kept(c, l, k, n_reserved, n_tok);
    *kept = n / ((double)m->n_layer * m->n_head_kv * n_tok);
    return n * moa_bench_token_bytes(c) * c->n_seq;
}
