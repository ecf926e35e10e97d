/* Whole decode steps: of several sequences in lanes, and of one with and without the probe.
 *
 * The tokens that are there are random fills (no prefill): a step reads the same bytes. The N of the spans covers the steps that are
 * timed, so that the plan does not change under way. */
#include <stdlib.h>
#include <string.h>

#include "core/engine/steady.h"
#include "core/tasks/bench.h"

enum { WARM = 4, STEPS_MAX = 32 }; /* steps before timing; steps of a sample at most */

int32_t moa_bench_step_tokens(const moa_bench *x) {
    return WARM + x->reps * STEPS_MAX;
}

static double weight_bytes(const moa_model *m) {
    /* of the embedding a step reads single rows, unless it is the output too */
    return (double)m->weight_bytes - (m->tied ? 0 : (double)m->embed.bytes);
}

typedef struct crew {
    moa_engine *e;
    moa_seq **seqs; /* (n), owned */
    int32_t n, n_reserved;
    moa_lanes *lanes;
    int32_t *ids, *made; /* (n, STEPS_MAX), (n) */
} crew;

static void crew_close(crew *w) {
    moa_lanes_close(&w->lanes);
    for (int32_t i = 0; w->seqs && i < w->n; i++)
        moa_seq_close(&w->seqs[i]);
    (void)moa_engine_hold(w->e, NULL, 0, NULL);
    free(w->seqs);
    free(w->ids);
    free(w->made);
}

/* an allocation too much is an error on a GPU; on a CPU it may be granted, and the program killed later */
static moa_status check_memory(moa_engine *e, const moa_bench_case *c, int32_t n_reserved, moa_err *err) {
    moa_backend *b = moa_engine_backend(e);
    moa_device_info info = {0};
    double kept;
    const double need = moa_bench_kv_bytes(c, n_reserved, n_reserved, &kept);
    const moa_status s = b->vt->info(b, &info, err);
    if (s == MOA_OK && info.free_bytes > 0 && need > (double)info.free_bytes)
        return moa_fail(err, MOA_E_MEMORY,
                        "%.1f GiB of keys and values for %d sequences of %d tokens, %.1f free", need / 0x1p30,
                        c->n_seq, n_reserved, (double)info.free_bytes / 0x1p30);
    return s;
}

static moa_status crew_open(crew *w, moa_engine *e, const moa_bench_case *c, int32_t n_reserved,
                            moa_err *err) {
    const int32_t depth = c->depth > 0 ? c->depth : 1;
    moa_status s = MOA_OK;
    *w = (crew){.e = e, .n = c->n_seq, .n_reserved = n_reserved};
    w->seqs = calloc((size_t)c->n_seq, sizeof *w->seqs);
    w->ids = calloc((size_t)c->n_seq * STEPS_MAX, sizeof *w->ids);
    w->made = calloc((size_t)c->n_seq, sizeof *w->made);
    if (!w->seqs || !w->ids || !w->made)
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d sequences", c->n_seq));
    for (int32_t i = 0; i < c->n_seq; i++) {
        MOA_TRY(moa_seq_open(&w->seqs[i], e, err));
        MOA_TRY(moa_seq_plan(w->seqs[i], c->rules, NULL, n_reserved, 0, NULL, 0, err));
    }
    MOA_TRY(moa_engine_hold(e, w->seqs, c->n_seq, err));
    for (int32_t i = 0; i < c->n_seq; i++)
        MOA_TRY(moa_seq_fill_random(w->seqs[i], depth, 1 + (uint64_t)i, err));
    MOA_TRY(moa_lanes_open(&w->lanes, e, &(moa_lanes_config){.seqs = w->seqs, .n_seq = c->n_seq}, err));
    for (int32_t i = 0; i < c->n_seq; i++)
        MOA_TRY(moa_lanes_feed(w->lanes, i,
                               (int32_t)((uint32_t)(7919 * (i + 1)) % (uint32_t)c->shape->n_vocab), err));
out:
    return s;
}

/* seconds a step */
static moa_status take_steps(const moa_bench *x, crew *w, int32_t n, double *seconds, moa_err *err) {
    if (x->cancelled && x->cancelled(x->user)) return moa_fail(err, MOA_E_CANCELLED, "interrupted");
    const double start = moa_bench_now();
    const moa_status s = moa_lanes_greedy(w->lanes, n, w->ids, w->made, NULL, NULL, err);
    *seconds = (moa_bench_now() - start) / n;
    for (int32_t i = 0; s == MOA_OK && i < w->n; i++)
        if (w->made[i] != n)
            return moa_fail(err, MOA_E_FAILED, "sequence %d made %d of %d tokens", i, w->made[i], n);
    return s;
}

static moa_status check_case(const moa_bench *x, const moa_engine *e, const moa_bench_case *c,
                             int32_t *n_reserved, moa_err *err) {
    const int32_t n_ctx = moa_engine_model(e)->shape.n_ctx, depth = c->depth > 0 ? c->depth : 1,
                  most = n_ctx - moa_bench_step_tokens(x);
    if (c->n_seq < 1 || c->depth < 0 || depth > most)
        return moa_fail(err, MOA_E_USAGE,
                        "%d sequences of %d tokens: at least one, of at most %d (context %d)", c->n_seq,
                        c->depth, most, n_ctx);
    *n_reserved = c->n_reserved > 0 ? c->n_reserved : depth + moa_bench_step_tokens(x);
    if (*n_reserved < depth + moa_bench_step_tokens(x) || *n_reserved > n_ctx)
        return moa_fail(err, MOA_E_USAGE, "N = %d for %d tokens and %d steps; the context is %d", *n_reserved,
                        depth, moa_bench_step_tokens(x), n_ctx);
    return MOA_OK;
}

static void account(const moa_engine *e, const moa_bench_case *c, int32_t n_reserved, int32_t n_tok,
                    moa_bench_row *out) {
    out->weight_bytes = weight_bytes(moa_engine_model(e));
    out->kv_bytes = moa_bench_kv_bytes(c, n_reserved, n_tok, &out->kept);
    out->tok_s = c->n_seq / out->time.median_us * 1e6;
}

moa_status moa_bench_step(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_row *out,
                          moa_err *err) {
    crew w = {.e = e};
    double one = 0, *seconds = malloc((size_t)x->reps * sizeof *seconds);
    int32_t n_reserved = 0;
    moa_status s = MOA_OK;
    *out = (moa_bench_row){.n_seq = c->n_seq, .depth = c->depth};
    if (!seconds) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d samples", x->reps));
    MOA_TRY(check_case(x, e, c, &n_reserved, err));
    MOA_TRY(check_memory(e, c, n_reserved, err));
    MOA_TRY(crew_open(&w, e, c, n_reserved, err));
    MOA_TRY(take_steps(x, &w, 2, &one, err)); /* the first allocates, the second is recorded */
    MOA_TRY(take_steps(x, &w, WARM - 2, &one, err));
    /* longer than other samples: there is some host work around each, as there is around 64 steps of a run */
    const double want = one > 0 ? 20 * x->sample_s / one : STEPS_MAX;
    const int32_t n = want < 1 ? 1 : want > STEPS_MAX ? STEPS_MAX : (int32_t)want;
    for (int32_t i = 0; i < x->reps; i++)
        MOA_TRY(take_steps(x, &w, n, &seconds[i], err));
    out->time = moa_bench_percentiles(seconds, x->reps);
    out->time.n_call = n;
    account(e, c, n_reserved, moa_seq_n_past(w.seqs[0]) - n * x->reps / 2, out);
out:
    crew_close(&w);
    free(seconds);
    return s;
}

/* --- the probe ----------------------------------------------------------------------------------------------------------------------- */

/* n warm steps and n timed ones, seconds of one of these */
static moa_status single_steps(moa_seq *q, int32_t n, double *seconds, moa_err *err) {
    moa_steady *d = NULL;
    moa_told told = {.id = 1};
    double start = 0;
    moa_status s = moa_steady_open(&d, q, &(moa_steady_config){.n_top = 5, .stat_every = moa_steady_stat_every(q)}, err);
    for (int32_t i = 0; i < 2 * n && s == MOA_OK; i++) {
        if (i == n) start = moa_bench_now();
        s = moa_steady_next(d, told.id, &told, err);
    }
    *seconds = (moa_bench_now() - start) / n;
    moa_steady_close(&d);
    return s;
}

moa_status moa_bench_probe(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_row *off,
                           moa_bench_row *on, moa_err *err) {
    const int32_t n = 32, depth = c->depth > 0 ? c->depth : 1, n_reserved = depth + 4 * n * x->reps;
    double *seconds = malloc(2 * (size_t)x->reps * sizeof *seconds);
    moa_seq *q = NULL;
    moa_status s = MOA_OK;
    *off = *on = (moa_bench_row){.n_seq = 1, .depth = c->depth};
    if (!seconds) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d samples", x->reps));
    MOA_TRY(moa_seq_open(&q, e, err));
    MOA_TRY(moa_seq_plan(q, c->rules, NULL, n_reserved, 0, NULL, 0, err));
    MOA_TRY(moa_engine_hold(e, &q, 1, err));
    MOA_TRY(moa_seq_fill_random(q, depth, 5, err));
    for (int32_t i = 0; i < 2 * x->reps; i++) {
        const int watch = i % 2 ? MOA_WATCH_STATS : 0;
        if (x->cancelled && x->cancelled(x->user)) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted"));
        MOA_TRY(moa_seq_plan(q, c->rules, NULL, n_reserved, watch, NULL, 0, err));
        MOA_TRY(single_steps(q, n, &seconds[(i % 2) * x->reps + i / 2], err));
    }
    off->time = moa_bench_percentiles(seconds, x->reps);
    on->time = moa_bench_percentiles(seconds + x->reps, x->reps);
    off->time.n_call = on->time.n_call = n;
    moa_bench_case one = *c;
    one.n_seq = 1;
    account(e, &one, n_reserved, depth + n_reserved / 2 - depth / 2, off);
    account(e, &one, n_reserved, depth + n_reserved / 2 - depth / 2, on);
out:
    moa_seq_close(&q);
    (void)moa_engine_hold(e, NULL, 0, NULL);
    free(seconds);
    return s;
}
