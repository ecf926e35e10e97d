/* What attention told about itself, gathered while it ran (MOA_WATCH_STATS).
 *
 *   per chunk    stat (n_layer, n, n_head, MOA_N_STAT) on the device -> host -> sums per head: means, the worst query
 *   all along    hist (n_layer, n_head, 8, 1 + n_bin) on the device, added to by the attention kernels
 *
 * Both begin anew with every moa_seq_plan() and moa_seq_reset(): the histogram's buckets and bins are fractions of the N
 * reserved then (bucket_tok = ceil(N/8), n_bin = ceil(N/64)), and the measured window is the new plan's.
 * A chunk that is not finished must not count: its stat rows are dropped, and hist is put back from a copy made before it.
 * (A single token makes no copy, which would cost more than the step; when one fails, which only a failing device can
 * cause, everything gathered begins anew.)
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

size_t moa_probe_bytes(const moa_shape *shape, int32_t n_reserved, int32_t chunk) {
    const size_t hist = (size_t)shape->n_layer * layer_hist_elems(shape, div_up(n_reserved, MOA_PAGE_TOK));
    return (pad(stat_elems(shape, chunk)) + 2 * pad(hist)) * sizeof(float);
}

static void drop(moa_seq *s) {
    moa_engine_free(s->engine, &s->probe);
    free(s->stat);
    free(s->sums);
    s->stat = NULL;
    s->sums = NULL;
    s->d_stat = s->d_hist = s->d_hist_before = NULL;
}

moa_status moa_probe_plan(moa_seq *s, bool on, int32_t n_reserved, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    if (!on) {
        drop(s);
        return MOA_OK;
    }
    moa_dev_mem fresh = {0};
    float *stat = malloc(stat_elems(shape, e->chunk) * sizeof *stat);
    moa_head_sums *sums = calloc((size_t)shape->n_layer * (size_t)shape->n_head, sizeof *sums);
    moa_status status =
        stat && sums ? MOA_OK
                     : moa_fail(err, MOA_E_MEMORY, "no memory for the statistics of %d tokens", e->chunk);
    if (status == MOA_OK)
        status = moa_engine_alloc(e, moa_probe_bytes(shape, n_reserved, e->chunk), &fresh, err);
    if (status != MOA_OK) {
        free(stat);
        free(sums);
        return status;
    }
    drop(s);
    s->probe = fresh;
    s->stat = stat;
    s->sums = sums;
    s->n_bin = div_up(n_reserved, MOA_PAGE_TOK);
    s->bucket_tok = div_up(n_reserved, MOA_HIST_BUCKETS);
    s->d_stat = fresh.data;
    s->d_hist = s->d_stat + pad(stat_elems(shape, e->chunk));
    s->d_hist_before = s->d_hist + pad((size_t)shape->n_layer * layer_hist_elems(shape, s->n_bin));
    moa_probe_restart(s);
    return MOA_OK;
}

void moa_probe_restart(moa_seq *s) {
    const moa_shape *shape = &s->engine->model->shape;
    s->n_query = 0;
    s->hist_stale = true;
    memset(s->bucket_queries, 0, sizeof s->bucket_queries);
    for (int64_t i = 0; s->sums && i < (int64_t)shape->n_layer * shape->n_head; i++)
        s->sums[i] = (moa_head_sums){.worst_cover = INFINITY, .worst_query = -1};
}

static size_t hist_bytes(const moa_seq *s) {
    const moa_shape *shape = &s->engine->model->shape;
    return (size_t)shape->n_layer * layer_hist_elems(shape, s->n_bin) * sizeof(float);
}

moa_status moa_probe_begin(moa_seq *s, int32_t n, moa_err *err) {
    moa_engine *e = s->engine;
    moa_status status = MOA_OK;
    if (!s->d_stat) return MOA_OK;
    if (s->hist_stale) {
        status = e->vt->zero(e->backend, s->d_hist, hist_bytes(s), err);
        if (status == MOA_OK) s->hist_stale = false;
    }
    if (status == MOA_OK && n > 1)
        status = e->vt->copy(e->backend, s->d_hist_before, s->d_hist, hist_bytes(s), err);
    return status;
}

moa_probe moa_probe_args(const moa_seq *s, int32_t layer, int32_t n) {
    const moa_shape *shape = &s->engine->model->shape;
    if (!s->d_stat) return (moa_probe){0};
    return (moa_probe){.stat = s->d_stat + (size_t)layer * (size_t)n * (size_t)shape->n_head * MOA_N_STAT,
                       .measure_span =
                           s->measure_differs ? s->d_measure + (int64_t)layer * shape->n_head : NULL,
                       .hist = s->d_hist + (size_t)layer * layer_hist_elems(shape, s->n_bin),
                       .n_bin = s->n_bin,
                       .bucket_tok = s->bucket_tok};
}

moa_status moa_probe_fetch(moa_seq *s, int32_t n, moa_err *err) {
    moa_engine *e = s->engine;
    if (!s->d_stat) return MOA_OK;
    return e->vt->download(e->backend, s->stat, s->d_stat, stat_elems(&e->model->shape, n) * sizeof(float),
                           err);
}

void moa_probe_commit(moa_seq *s, int32_t n) {
    const moa_shape *shape = &s->engine->model->shape;
    if (!s->d_stat) return;
    const float *row = s->stat;
    for (int32_t l = 0; l < shape->n_layer; l++)
        for (int32_t t = 0; t < n; t++)
            for (int32_t h = 0; h < shape->n_head; h++, row += MOA_N_STAT) {
                moa_head_sums *sum = &s->sums[(int64_t)l * shape->n_head + h];
                const float cover = row[MOA_STAT_SINK] + row[MOA_STAT_WINDOW];
                sum->entropy += (double)row[MOA_STAT_ENTROPY];
                sum->sink += (double)row[MOA_STAT_SINK];
                sum->window += (double)row[MOA_STAT_WINDOW];
                sum->distance += (double)row[MOA_STAT_DISTANCE];
                if (cover >= sum->worst_cover) continue;
                sum->worst_cover = cover;
                sum->worst_query = s->n_past + t;
            }
    s->n_query += n;
    for (int32_t t = 0; t < n; t++) {
        const int32_t bucket = (s->n_past + t) / s->bucket_tok;
        s->bucket_queries[bucket < MOA_HIST_BUCKETS ? bucket : MOA_HIST_BUCKETS - 1]++;
    }
}

void moa_probe_rollback(moa_seq *s, int32_t n) {
    moa_engine *e = s->engine;
    if (!s->d_stat || s->hist_stale) return;
    if (n > 1 && e->vt->copy(e->backend, s->d_hist, s->d_hist_before, hist_bytes(s), NULL) == MOA_OK) return;
    moa_probe_restart(s);
}

moa_status moa_seq_stats(moa_seq *s, moa_head_stats *stats, moa_err *err) {
    const moa_shape *shape = &s->engine->model->shape;
    if (!s->sums || s->n_query == 0)
        return moa_fail(err, MOA_E_FAILED, "no statistics were gathered: nothing was watched");
    const double n = (double)s->n_query;
    for (int64_t i = 0; i < (int64_t)shape->n_layer * shape->n_head; i++) {
        const moa_head_sums *sum = &s->sums[i];
        stats[i] = (moa_head_stats){.n_query = s->n_query,
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
    const moa_status status =
        e->vt->download(e->backend, out, s->d_hist + (size_t)layer * n, n * sizeof *out, err);
    if (status != MOA_OK) {
        free(out);
        return status;
    }
    *hist = out;
    *n_bin = s->n_bin;
    *bucket_tok = s->bucket_tok;
    memcpy(queries, s->bucket_queries, sizeof s->bucket_queries);
    return MOA_OK;
}
