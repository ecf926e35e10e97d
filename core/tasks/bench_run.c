/* Whole runs: the time to the first token, and what memory a run takes and gives back. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/sampler.h"
#include "core/engine/steady.h"
#include "core/tasks/bench.h"

enum { MATRIX_N = 8192, MATRIX_ROWS = 2048, SPARE = 64 };

/* --- the matrix rate ------------------------------------------------------------------------------------------------------------- */

typedef struct product {
    moa_backend *b;
    moa_args_matmul args;
} product;

static moa_status run_product(void *ctx, moa_err *err) {
    const product *p = ctx;
    return p->b->vt->matmul(p->b, &p->args, err);
}

/* halves between 1/4 and 2, either sign */
static void fill_halves(uint16_t *out, size_t n) {
    moa_pcg32 g = moa_pcg32_seed(n, 37);
    for (size_t i = 0; i < n; i++) {
        const uint32_t r = moa_pcg32_next(&g);
        out[i] = (uint16_t)((r >> 16 & 0x8000u) | (13 + (r >> 10 & 3) % 3) << 10 | (r & 0x3ffu));
    }
}

moa_status moa_bench_matrix(const moa_bench *x, double *flop_s, moa_err *err) {
    moa_backend *b = x->backend;
    const bool cuda = strcmp(b->vt->name, "cuda") == 0;
    const int32_t n = cuda ? MATRIX_N : MATRIX_N / 4, rows = cuda ? MATRIX_ROWS : MATRIX_ROWS / 4;
    const size_t bytes = (size_t)n * (size_t)n * sizeof(uint16_t);
    moa_dev_weight *w = NULL;
    void *in = NULL, *out = NULL;
    moa_bench_time t;
    moa_status s = MOA_OK;
    uint16_t *halves = malloc(bytes);
    if (!halves) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu bytes of weights", bytes);
    fill_halves(halves, (size_t)n * (size_t)n);
    const moa_weight host = {.name = "matrix", .type = MOA_F16, .n_out = n, .n_in = n, .data = halves, .bytes = bytes};
    MOA_TRY(b->vt->weight_load(b, &host, false, &w, err));
    MOA_TRY(b->vt->alloc(b, (size_t)rows * (size_t)n * sizeof(float), &in, err));
    MOA_TRY(b->vt->alloc(b, (size_t)rows * (size_t)n * sizeof(float), &out, err));
    MOA_TRY(moa_bench_random(b, in, (size_t)rows * (size_t)n * sizeof(float), false, err));
    product p = {b, {.x = in, .w = w, .y = out, .n_tok = rows}};
    MOA_TRY(moa_bench_measure(x, run_product, &p, 1, &t, err));
    *flop_s = 2.0 * n * n * rows / t.p10_us * 1e6;
out:
    b->vt->free(b, out);
    b->vt->free(b, in);
    b->vt->weight_free(b, w);
    free(halves);
    return s;
}

/* --- time to first token ------------------------------------------------------------------------------------------------------------ */

static double elements(const moa_weight *w) {
    return w->bytes > 0 ? (double)w->n_out * w->n_in : 0;
}

/* products of every token, the output's of one; 4 d of every visible pair */
static double prompt_flop(const moa_model *m, const moa_bench_case *c, int32_t n_reserved) {
    double per_tok = 0, pairs = 0;
    for (int32_t l = 0; l < m->shape.n_layer; l++) {
        const moa_layer *y = &m->layers[l];
        per_tok += elements(&y->wq) + elements(&y->wk) + elements(&y->wv) + elements(&y->wo) + elements(&y->gate) +
                   elements(&y->up) + elements(&y->down);
        for (int32_t h = 0; h < m->shape.n_head; h++) {
            const moa_rule rule = c->rules ? c->rules[(int64_t)l * m->shape.n_head + h] : (moa_rule){0, 1};
            const double span = fmin((double)moa_span(rule, n_reserved), (double)c->depth);
            pairs += span * (span + 1) / 2 + (c->depth - span) * span;
        }
    }
    return 2 * per_tok * c->depth + 2.0 * m->shape.n_vocab * m->shape.d_model + 4.0 * m->shape.d_head * pairs;
}

static void random_prompt(int32_t *ids, int32_t n, int32_t n_vocab) {
    moa_pcg32 g = moa_pcg32_seed((uint64_t)n, 41);
    for (int32_t i = 0; i < n; i++)
        ids[i] = (int32_t)(moa_pcg32_next(&g) % (uint32_t)n_vocab);
}

static moa_status check_depth(const moa_engine *e, const moa_bench_case *c, int32_t more, moa_err *err) {
    const int32_t n_ctx = moa_engine_model(e)->shape.n_ctx;
    if (c->depth >= 1 && c->depth <= n_ctx - more) return MOA_OK;
    return moa_fail(err, MOA_E_USAGE, "a prompt of %d tokens: at least one, at most %d (context %d)", c->depth,
                    n_ctx - more, n_ctx);
}

/* a prompt from nothing to its first token, seconds */
static moa_status one_prompt(moa_seq *q, const int32_t *ids, int32_t n, float *logits, double *seconds, moa_err *err) {
    const moa_forward f = {.ids = ids, .n = n, .logits = logits};
    uint64_t best;
    const double start = moa_bench_now();
    const moa_status s = moa_seq_forward(q, &f, err);
    if (s != MOA_OK) return s;
    moa_sample_rank(logits, moa_engine_model(moa_seq_engine(q))->shape.n_vocab, &best, 1);
    *seconds = moa_bench_now() - start;
    return MOA_OK;
}

moa_status moa_bench_ttft(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_row out[MOA_N_BENCH_WATCH],
                          moa_err *err) {
    static const int watch[MOA_N_BENCH_WATCH] = {0, MOA_WATCH_STATS | MOA_WATCH_SAMPLED, MOA_WATCH_STATS};
    const moa_model *m = moa_engine_model(e);
    const int32_t n_vocab = m->shape.n_vocab, n_reserved = c->depth + SPARE, reps = x->reps;
    double *seconds = malloc(MOA_N_BENCH_WATCH * (size_t)reps * sizeof *seconds);
    float *logits = malloc((size_t)n_vocab * sizeof *logits);
    int32_t *ids = malloc((size_t)(c->depth > 0 ? c->depth : 1) * sizeof *ids);
    moa_seq *q = NULL;
    moa_status s = MOA_OK;
    for (int w = 0; w < MOA_N_BENCH_WATCH; w++)
        out[w] = (moa_bench_row){.n_seq = 1, .depth = c->depth};
    if (!seconds || !logits || !ids) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a prompt of %d", c->depth));
    MOA_TRY(check_depth(e, c, SPARE, err));
    random_prompt(ids, c->depth, n_vocab);
    MOA_TRY(moa_seq_open(&q, e, err));
    MOA_TRY(moa_seq_plan(q, c->rules, NULL, n_reserved, 0, NULL, 0, err));
    MOA_TRY(moa_engine_hold(e, &q, 1, err));
    for (int32_t i = -1; i < reps; i++) /* the first ones let everything be allocated */
        for (int w = 0; w < MOA_N_BENCH_WATCH; w++) {
            if (x->cancelled && x->cancelled(x->user)) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted"));
            moa_seq_reset(q);
            MOA_TRY(moa_seq_plan(q, c->rules, NULL, n_reserved, watch[w], NULL, 0, err));
            double one;
            MOA_TRY(one_prompt(q, ids, c->depth, logits, &one, err));
            if (i >= 0) seconds[w * reps + i] = one;
        }
    for (int w = 0; w < MOA_N_BENCH_WATCH; w++) {
        out[w].time = moa_bench_percentiles(seconds + w * reps, reps);
        out[w].tok_s = c->depth / out[w].time.median_us * 1e6;
        out[w].flop = prompt_flop(m, c, n_reserved);
        (void)moa_bench_kv_bytes(c, n_reserved, c->depth, &out[w].kept);
    }
out:
    moa_seq_close(&q);
    (void)moa_engine_hold(e, NULL, 0, NULL);
    free(seconds);
    free(logits);
    free(ids);
    return s;
}

/* --- memory ---------------------------------------------------------------------------------------------------------------------------- */

static double in_use(moa_backend *b) {
    moa_device_info info = {0};
    if (b->vt->info(b, &info, NULL) != MOA_OK || info.free_bytes == 0 || info.sm == 0) return (double)NAN;
    return (double)info.memory_bytes - (double)info.free_bytes;
}

typedef struct weighing {
    moa_seq *q;
    const moa_bench_case *c;
    moa_kv_type type;
    int32_t n_reserved;
    double before;
} weighing;

static void weigh(const weighing *w, moa_backend *b, double *formula, double *held, double *growth) {
    moa_pages pages;
    moa_seq_pages(w->q, &pages);
    const moa_kv_bytes kv = moa_kv_formula(w->c->shape, w->type, w->c->rules, w->n_reserved, moa_seq_n_past(w->q));
    *formula = (double)kv.plan;
    *held = (double)pages.used_bytes;
    if (growth) *growth = in_use(b) - w->before;
}

static moa_status weigh_steps(const weighing *w, moa_bench_memory *out, moa_err *err) {
    moa_steady *d = NULL;
    moa_told told = {.id = 1};
    double formula, held;
    moa_status s = moa_steady_open(&d, w->q, &(moa_steady_config){.n_top = 0}, err);
    for (int i = 0; i < MOA_BENCH_STEPS && s == MOA_OK; i++) {
        s = moa_steady_next(d, told.id, &told, err);
        weigh(w, NULL, &formula, &held, NULL);
        if (i == 0 || held - formula > out->most_over) out->most_over = held - formula;
    }
    moa_steady_close(&d);
    return s;
}

moa_status moa_bench_memory_of(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_memory *out,
                               moa_err *err) {
    moa_backend *b = x->backend;
    const int32_t n_reserved = c->depth + MOA_BENCH_STEPS;
    weighing w = {.c = c, .type = c->kv_type, .n_reserved = n_reserved};
    int32_t *ids = malloc((size_t)(c->depth > 0 ? c->depth : 1) * sizeof *ids);
    moa_pages pages;
    moa_status s = MOA_OK;
    *out = (moa_bench_memory){0};
    if (!ids) return moa_fail(err, MOA_E_MEMORY, "no memory for a prompt of %d", c->depth);
    MOA_TRY(check_depth(e, c, MOA_BENCH_STEPS, err));
    random_prompt(ids, c->depth, c->shape->n_vocab);
    for (int round = 0; round < 2; round++) { /* what is allocated once and for all is there before the second */
        MOA_TRY(b->vt->sync(b, err));
        w.before = in_use(b);
        MOA_TRY(moa_seq_open(&w.q, e, err));
        MOA_TRY(moa_seq_plan(w.q, c->rules, NULL, n_reserved, 0, NULL, 0, err));
        MOA_TRY(moa_engine_hold(e, &w.q, 1, err));
        MOA_TRY(moa_seq_forward(w.q, &(moa_forward){.ids = ids, .n = c->depth}, err));
        weigh(&w, b, &out->formula_prompt, &out->pages_prompt, &out->growth_prompt);
        MOA_TRY(weigh_steps(&w, out, err));
        weigh(&w, b, &out->formula_end, &out->pages_end, &out->growth_end);
        moa_seq_pages(w.q, &pages);
        out->pool = (double)pages.pool_bytes;
        moa_seq_close(&w.q);
        MOA_TRY(moa_engine_hold(e, NULL, 0, err));
        out->growth_closed = in_use(b) - w.before;
    }
out:
    moa_seq_close(&w.q);
    (void)moa_engine_hold(e, NULL, 0, NULL);
    free(ids);
    return s;
}
