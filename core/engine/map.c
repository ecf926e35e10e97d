/* Maps of what a head attends to, made from captured q and k (MOA_WATCH_CAPTURE) at any time after the tokens have passed.
 *
 *   capture of layer l:   q (n_head, max_tok, d_head) | k (n_head_kv, max_tok, d_head)      float32, one allocation a layer
 *
 * Pages come and go with the spans; the capture keeps every row, so that a map can also be masked with a span that the run
 * did not have (what would this head have seen?). That answers for one layer's q and k as they were computed: not a rerun.
 * A longer N in a later turn moves the rows to larger buffers, layer by layer; each layer knows its own size, so a failure
 * half-way leaves a valid mixture. Without the first tokens no row of A can be normalised: a capture that would begin in the middle
 * of a sequence is refused with a note. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

size_t moa_capture_layer_bytes(const moa_shape *shape, int32_t n_reserved) {
    size_t bytes;
    const size_t heads = (size_t)shape->n_head + (size_t)shape->n_head_kv;
    if (!moa_size_mul(heads, (size_t)n_reserved, &bytes) ||
        !moa_size_mul(bytes, (size_t)shape->d_head * sizeof(float), &bytes))
        return SIZE_MAX;
    return bytes;
}

/* rows of a head in a layer's capture; the KV heads follow the query heads */
static float *head_rows(const moa_shape *shape, int32_t head, int32_t max_tok, float *base) {
    return base + (size_t)head * (size_t)max_tok * (size_t)shape->d_head;
}

void moa_capture_close(moa_seq *s) {
    for (int32_t l = 0; s->capture && l < s->engine->model->shape.n_layer; l++)
        moa_engine_free(s->engine, &s->capture[l]);
    free(s->capture);
    free(s->capture_tok);
    s->capture = NULL;
    s->capture_tok = NULL;
}

/* room for n_reserved rows in one layer; the rows of the tokens there are kept */
static moa_status widen_layer(moa_seq *s, int32_t l, int32_t n_reserved, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    const size_t row_bytes = (size_t)s->n_past * (size_t)shape->d_head * sizeof(float);
    moa_dev_mem fresh = {0};
    moa_status status = moa_engine_alloc(e, moa_capture_layer_bytes(shape, n_reserved), &fresh, err);
    for (int32_t h = 0; status == MOA_OK && row_bytes > 0 && h < shape->n_head + shape->n_head_kv; h++)
        status = e->vt->copy(e->backend, head_rows(shape, h, n_reserved, fresh.data),
                             head_rows(shape, h, s->capture_tok[l], s->capture[l].data), row_bytes, err);
    if (status == MOA_OK && row_bytes > 0) status = e->vt->sync(e->backend, err);
    if (status != MOA_OK) {
        moa_engine_free(e, &fresh);
        return status;
    }
    moa_engine_free(e, &s->capture[l]);
    s->capture[l] = fresh;
    s->capture_tok[l] = n_reserved;
    return MOA_OK;
}

moa_status moa_capture_plan(moa_seq *s, bool on, int32_t n_reserved, char *note, size_t note_bytes,
                            moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    const size_t layer = moa_capture_layer_bytes(shape, n_reserved);
    size_t total;
    if (!moa_size_mul(layer, (size_t)shape->n_layer, &total)) total = SIZE_MAX;
    if (on && total > e->capture_limit_bytes) {
        if (note && note_bytes)
            (void)snprintf(
                note, note_bytes,
                "maps are off: captured q and k of %d tokens would take %.0f MiB, the limit is %.0f MiB",
                n_reserved, (double)total / 1048576, (double)e->capture_limit_bytes / 1048576);
        on = false;
    }
    if (on && !s->capture && s->n_past > 0) {
        if (note && note_bytes)
            (void)snprintf(note, note_bytes,
                           "maps are off: the first %d tokens were not captured; prefill again to have them",
                           s->n_past);
        on = false;
    }
    if (!on) {
        moa_capture_close(s);
        return MOA_OK;
    }
    if (!s->capture) {
        s->capture = calloc((size_t)shape->n_layer, sizeof *s->capture);
        s->capture_tok = calloc((size_t)shape->n_layer, sizeof *s->capture_tok);
        if (!s->capture || !s->capture_tok) {
            moa_capture_close(s);
            return moa_fail(err, MOA_E_MEMORY, "no memory for the captures of %d layers", shape->n_layer);
        }
    }
    moa_status status = MOA_OK;
    for (int32_t l = 0; l < shape->n_layer && status == MOA_OK; l++) {
        /* with no tokens to keep the buffers are fitted; else they only grow */
        const bool fit = s->n_past == 0 ? s->capture_tok[l] == n_reserved : s->capture_tok[l] >= n_reserved;
        if (!fit && s->n_past == 0) moa_engine_free(e, &s->capture[l]);
        if (!fit) status = widen_layer(s, l, n_reserved, err);
    }
    if (status != MOA_OK && s->n_past == 0) moa_capture_close(s);
    return status;
}

moa_status moa_capture_rows(moa_seq *s, int32_t layer, const float *q, const float *k, const int32_t *pos,
                            int32_t n, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    if (!s->capture) return MOA_OK;
    const int32_t max_tok = s->capture_tok[layer];
    float *base = s->capture[layer].data;
    return e->vt->capture(e->backend,
                          &(moa_args_capture){.q = q,
                                              .k = k,
                                              .cap_q = base,
                                              .cap_k = head_rows(shape, shape->n_head, max_tok, base),
                                              .pos = pos,
                                              .n_tok = n,
                                              .n_head = shape->n_head,
                                              .n_head_kv = shape->n_head_kv,
                                              .d_head = shape->d_head,
                                              .max_tok = max_tok,
                                              .type = e->kv_type,
                                              .kv = {.pool = e->pool.data,
                                                     .table = s->d_table + moa_seq_at(s, layer, 0),
                                                     .table_seq_stride = (int64_t)shape->n_head_kv * s->max_pages,
                                                     .n_head_kv = shape->n_head_kv,
                                                     .d_head = shape->d_head,
                                                     .max_pages = s->max_pages,
                                                     .type = e->kv_type}},
                          err);
}

uint64_t moa_seq_capture_bytes(const moa_seq *s) {
    uint64_t n = 0;
    for (int32_t l = 0; s->capture && l < s->engine->model->shape.n_layer; l++)
        n += s->capture[l].bytes;
    return n;
}

static moa_status check(const moa_seq *s, const moa_map_request *r, moa_err *err) {
    const moa_shape *shape = &s->engine->model->shape;
    if (!s->capture)
        return moa_fail(err, MOA_E_FAILED, "there is no map: q and k of this sequence were not captured");
    if (r->layer < 0 || r->layer >= shape->n_layer || r->head < 0 || r->head >= shape->n_head)
        return moa_fail(err, MOA_E_INVALID, "layer %d head %d of a model with %d layers of %d heads",
                        r->layer, r->head, shape->n_layer, shape->n_head);
    if (r->q0 < 0 || r->q1 <= r->q0 || r->q1 > s->n_past || r->k0 < 0 || r->k1 <= r->k0 || r->k1 > s->n_past)
        return moa_fail(err, MOA_E_INVALID, "queries %d..%d and keys %d..%d of a sequence of %d tokens",
                        r->q0, r->q1, r->k0, r->k1, s->n_past);
    if (r->rows < 1 || r->rows > r->q1 - r->q0 || r->cols < 1 || r->cols > r->k1 - r->k0)
        return moa_fail(err, MOA_E_INVALID, "%d x %d cells for %d queries and %d keys", r->rows, r->cols,
                        r->q1 - r->q0, r->k1 - r->k0);
    const int32_t spans[] = {r->span, r->measure_span};
    for (int i = 0; i < 2; i++)
        if (spans[i] != 0 && (spans[i] < MOA_SPAN_MIN || spans[i] > MOA_N_MAX))
            return moa_fail(err, MOA_E_INVALID, "a span of %d tokens; %d to %d, or 0 for the run's", spans[i],
                            MOA_SPAN_MIN, MOA_N_MAX);
    return MOA_OK;
}

moa_status moa_seq_map(moa_seq *s, const moa_map_request *r, float *mass, float *max, float *stat,
                       moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = &e->model->shape;
    moa_status status = check(s, r, err);
    if (status != MOA_OK) return status;
    const size_t rows = (size_t)r->rows, cells = rows * (size_t)r->cols; /* two positive int32 */
    const size_t n = cells * (max ? 2 : 1) + (stat ? rows * MOA_N_STAT : 0);
    const int64_t at = (int64_t)r->layer * shape->n_head + r->head;
    const int32_t max_tok = s->capture_tok[r->layer], head_kv = r->head / (shape->n_head / shape->n_head_kv);
    float *base = s->capture[r->layer].data;
    moa_dev_mem out = {0};
    size_t bytes;
    if (!moa_size_mul(n, sizeof(float), &bytes))
        return moa_fail(err, MOA_E_MEMORY, "a map of %d x %d cells does not fit the address space", r->rows,
                        r->cols);
    if ((status = moa_engine_alloc(e, bytes, &out, err)) != MOA_OK) return status;
    float *d_mass = out.data, *d_max = max ? d_mass + cells : NULL,
          *d_stat = stat ? d_mass + n - rows * MOA_N_STAT : NULL;
    const moa_args_attn_map args = {.q = head_rows(shape, r->head, max_tok, base),
                                    .k = head_rows(shape, shape->n_head + head_kv, max_tok, base),
                                    .d_head = shape->d_head,
                                    .span = r->span ? r->span : s->span[at],
                                    .q0 = r->q0,
                                    .q1 = r->q1,
                                    .k0 = r->k0,
                                    .k1 = r->k1,
                                    .rows = r->rows,
                                    .cols = r->cols,
                                    .scale = moa_attn_scale(shape),
                                    .mass = d_mass,
                                    .max = d_max,
                                    .stat = d_stat,
                                    .measure_span = r->measure_span ? r->measure_span : s->measure[at]};
    status = e->vt->attn_map(e->backend, &args, err);
    if (status == MOA_OK) status = e->vt->download(e->backend, mass, d_mass, cells * sizeof *mass, err);
    if (status == MOA_OK && max) status = e->vt->download(e->backend, max, d_max, cells * sizeof *max, err);
    if (status == MOA_OK && stat)
        status = e->vt->download(e->backend, stat, d_stat, rows * MOA_N_STAT * sizeof *stat, err);
    moa_engine_free(e, &out);
    return status;
}
