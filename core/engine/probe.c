/* What attention told about itself, gathered while it ran (MOA_WATCH_STATS).
 *
 *   per chunk    stat (n_layer, n, n_head, MOA_N_STAT) on the device, written by the attention kernels
 *   all along    totals per head: sums and the worst query, added to from stat;  queries of each bucket
 *                hist (n_layer, n_head, 8, 1 + n_bin), added to by the attention kernels
 *
 * All of it stays on the device until somebody asks: watching costs a step no word to the host.
 *
 * Both begin anew with every moa_seq_plan() and moa_seq_reset(): the histogram's buckets and bins are fractions of the N
 * reserved then (bucket_tok = ceil(N/8), n_bin = ceil(N/64)), and the measured window is the new plan's.
 * A chunk that is not finished must not count: its stat rows are dropped, and the sums are put back from a copy made before it.
 * (A single token makes no copy, which would cost more than the step; when one fails, which only a failing device can
 * cause, everything gathered begins anew.)
 *
 * A prompt costs a second look at all its scores, half of its attention again; sampled (MOA_WATCH_SAMPLED), one block of queries in 16
 * is looked at and counts for the others: see probe_rows.h. Chunks that are attended token by token, and single tokens, count as they are.
 * Off: no memory and no operation. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

static int32_t div_up(int32_t a, int32_t b) {
    return (a + b - 1) / b;
}

static size_t stat_elems(const moa_shape *shape, int32_t n) {
    return (size_t)shape->n_layer * (size_t)n * (size_t)shape->n_head * MOA_N_STAT;
}
static size_t layer_hist_elems(const moa_shape *shape, int32_t n_bin) {
    return (size_t)shape->n_head * MOA_HIST_BUCKETS * (1 + (size_t)n_bin);
}
static size_t pad(size_t elems) {
    return (elems + 63) & ~(size_t)63;
}

static size_t totals_bytes(const moa_shape *shape) {
    return (size_t)shape->n_layer * (size_t)shape->n_head * sizeof(moa_stat_total);
}
/* hist, queries, totals: bytes, each part on a border of 256 */
static size_t hist_bytes(const moa_shape *shape, int32_t n_bin) {
    return pad((size_t)shape->n_layer * layer_hist_elems(shape, n_bin)) * sizeof(float);
}
static size_t sums_bytes(const moa_shape *shape, int32_t n_bin) {
    return hist_bytes(shape, n_bin) + pad(MOA_HIST_BUCKETS * 2) * sizeof(float) +
           pad(totals_bytes(shape) / sizeof(float)) * sizeof(float);
}

size_t moa_probe_bytes(const moa_shape *shape, int32_t n_reserved, int32_t chunk) {
    return pad(stat_elems(shape, chunk)) * sizeof(float) + 2 * sums_bytes(shape, div_up(n_reserved, MOA_PAGE_TOK));
}

static void drop(moa_seq *s) {
    moa_engine_free(s->engine, &s->probe);
    free(s->totals);
    s->totals = s->d_totals = NULL;
    s->d_queries = NULL;
    s->d_stat = s->d_hist = NULL;
}

moa_status moa_probe_plan(moa_seq *s, bool on, int32_t n_reserved, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    if (!on) {
        drop(s);
        return MOA_OK;
    }
    moa_dev_mem fresh = {0};
    moa_stat_total *totals = malloc(totals_bytes(shape));
    if (!totals)
        return moa_fail(err, MOA_E_MEMORY, "no memory for the statistics of %d heads", shape->n_layer * shape->n_head);
    const moa_status status = moa_engine_alloc(e, moa_probe_bytes(shape, n_reserved, e->chunk), &fresh, err);
    if (status != MOA_OK) {
        free(totals);
        return status;
    }
    drop(s);
    s->probe = fresh;
    s->totals = totals;
    s->n_bin = div_up(n_reserved, MOA_PAGE_TOK);
    s->bucket_tok = div_up(n_reserved, MOA_HIST_BUCKETS);
    s->d_stat = fresh.data;
    s->d_hist = s->d_stat + pad(stat_elems(shape, e->chunk));
    char *at = (char *)s->d_hist + hist_bytes(shape, s->n_bin);
    s->d_queries = (int64_t *)(void *)at;
    s->d_totals = (moa_stat_total *)(void *)(at + pad(MOA_HIST_BUCKETS * 2) * sizeof(float));
    moa_probe_restart(s);
    return MOA_OK;
}

void moa_probe_restart(moa_seq *s) {
    s->n_query = s->n_seen = 0;
    s->rows = (moa_probe_rows){0};
    s->hist_stale = true;
}

void moa_probe_prompt(moa_seq *s, int32_t n, int32_t chunk) {
    const int32_t n_block = (s->n_past + n - 1) / MOA_PAGE_TOK - s->n_past / MOA_PAGE_TOK + 1;
    int32_t every = s->sample_every;
    if (!s->d_stat || n == 1) return;
    if (every <= 0) {
        every = div_up(n_block, MOA_SAMPLE_STRATA);
        if (every > MOA_SAMPLE_EVERY) every = MOA_SAMPLE_EVERY;
    }
    s->rows = (moa_probe_rows){.from = s->n_past, .end = s->n_past + n, .seed = s->sample_seed};
    if (s->sampled && chunk > 1) s->rows.every = every;
}

/* of the chunk under way, of n tokens */
static moa_probe_rows rows_of(const moa_seq *s, int32_t n) {
    return n > 1 && !s->has_gaps ? s->rows : (moa_probe_rows){0};
}

void moa_seq_sample(moa_seq *s, int32_t every, uint32_t seed) {
    s->sample_every = every;
    s->sample_seed = seed;
}

void moa_seq_watched(const moa_seq *s, moa_watched *out) {
    *out = (moa_watched){.every = s->rows.every > 0 ? s->rows.every : 1,
                         .seed = s->rows.seed,
                         .n_query = s->n_query,
                         .n_seen = s->n_seen};
}

static moa_status begin_sums(moa_seq *s, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    for (int64_t i = 0; i < (int64_t)shape->n_layer * shape->n_head; i++)
        s->totals[i] = (moa_stat_total){.worst_cover = INFINITY, .worst_query = -1};
    moa_status status = e->vt->zero(e->backend, s->d_hist, sums_bytes(shape, s->n_bin), err);
    if (status == MOA_OK) status = e->vt->upload(e->backend, s->d_totals, s->totals, totals_bytes(shape), err);
    return status;
}

/* the sums as they were before the chunk under way */
static void *before(const moa_seq *s) {
    return (char *)s->d_hist + sums_bytes(&s->engine->model->shape, s->n_bin);
}

moa_status moa_probe_begin(moa_seq *s, int32_t n, moa_err *err) {
    moa_engine *e = s->engine;
    moa_status status = MOA_OK;
    if (!s->d_stat) return MOA_OK;
    if (s->hist_stale) {
        status = begin_sums(s, err);
        if (status == MOA_OK) s->hist_stale = false;
    }
    if (status == MOA_OK && n > 1)
        status = e->vt->copy(e->backend, before(s), s->d_hist, sums_bytes(&e->model->shape, s->n_bin), err);
    return status;
}

moa_probe moa_probe_args(const moa_seq *s, int32_t layer, int32_t n) {
    const moa_shape *shape = &s->engine->model->shape;
    if (!s->d_stat || s->blind) return (moa_probe){0};
    return (moa_probe){.stat = s->d_stat + (size_t)layer * (size_t)n * (size_t)shape->n_head * MOA_N_STAT,
                       .measure_span =
                           s->measure_differs ? s->d_measure + (int64_t)layer * shape->n_head : NULL,
                       .hist = s->d_hist + (size_t)layer * layer_hist_elems(shape, s->n_bin),
                       .n_bin = s->n_bin,
                       .bucket_tok = s->bucket_tok,
                       .rows = rows_of(s, n)};
}

moa_status moa_probe_sum(moa_seq *s, const int32_t *pos, int32_t n, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    if (!s->d_stat || s->blind) return MOA_OK;
    return e->vt->stat_sum(e->backend,
                           &(moa_args_stat_sum){.stat = s->d_stat,
                                                .pos = pos,
                                                .total = s->d_totals,
                                                .queries = s->d_queries,
                                                .n_layer = shape->n_layer,
                                                .n_tok = n,
                                                .n_head = shape->n_head,
                                                .bucket_tok = s->bucket_tok,
                                                .rows = rows_of(s, n)},
                           err);
}

void moa_probe_commit(moa_seq *s, int32_t n) {
    const moa_probe_rows rows = rows_of(s, n);
    if (!s->d_stat) return;
    s->n_query += n;
    for (int32_t i = 0; i < n; i++)
        s->n_seen += moa_probe_weight(&rows, s->n_past + i) > 0;
}

void moa_probe_rollback(moa_seq *s, int32_t n) {
    moa_engine *e = s->engine;
    if (!s->d_stat || s->hist_stale) return;
    if (n > 1 && e->vt->copy(e->backend, s->d_hist, before(s), sums_bytes(&e->model->shape, s->n_bin), NULL) == MOA_OK)
        return;
    moa_probe_restart(s);
}

moa_status moa_seq_stats(moa_seq *s, moa_head_stats *stats, moa_err *err) {
    const moa_shape *shape = &s->engine->model->shape;
    if (!s->totals || s->n_query == 0)
        return moa_fail(err, MOA_E_FAILED, "no statistics were gathered: nothing was watched");
    const moa_status status =
        s->engine->vt->download(s->engine->backend, s->totals, s->d_totals, totals_bytes(shape), err);
    if (status != MOA_OK) return status;
    for (int64_t i = 0; i < (int64_t)shape->n_layer * shape->n_head; i++) {
        const moa_stat_total *sum = &s->totals[i];
        const double n = (double)sum->n_query;
        stats[i] = (moa_head_stats){.n_query = sum->n_query,
                                    .entropy = (float)(sum->entropy / n),
                                    .sink = (float)(sum->sink / n),
                                    .window = (float)(sum->window / n),
                                    .distance = (float)(sum->distance / n),
                                    .worst_cover = sum->worst_cover,
                                    .worst_query = sum->worst_query};
    }
    return MOA_OK;
}

moa_status moa_seq_hist(moa_seq *s, int32_t layer, float **hist, int32_t *n_bin, int32_t *bucket_tok,
                        int64_t queries[MOA_HIST_BUCKETS], moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    *hist = NULL;
    if (layer < 0 || layer >= shape->n_layer)
        return moa_fail(err, MOA_E_INVALID, "layer %d of a model with %d layers", layer, shape->n_layer);
    if (!s->d_hist || s->n_query == 0)
        return moa_fail(err, MOA_E_FAILED, "no histogram was gathered: nothing was watched");
    const size_t n = layer_hist_elems(shape, s->n_bin);
    float *out = malloc(n * sizeof *out);
    if (!out) return moa_fail(err, MOA_E_MEMORY, "no memory for a histogram of %zu values", n);
    moa_status status = e->vt->download(e->backend, out, s->d_hist + (size_t)layer * n, n * sizeof *out, err);
    if (status == MOA_OK)
        status = e->vt->download(e->backend, queries, s->d_queries, MOA_HIST_BUCKETS * sizeof *queries, err);
    if (status != MOA_OK) {
        free(out);
        return status;
    }
    *hist = out;
    *n_bin = s->n_bin;
    *bucket_tok = s->bucket_tok;
    return MOA_OK;
}
