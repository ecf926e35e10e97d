/* Tokens through the layers.
 *
 *   n > 1   a chunk:  for each layer: take pages, store K and V, attend, free what the chunk has made invisible
 *   n == 1  a step:   take pages for all layers, one upload of what changed, the layers, free
 *
 * A layer's pages are taken just before it runs and freed just after, so that only one layer at a time holds the chunk
 * beside its old window. Freed pages may be handed to the next layer at once: operations run in queue order.
 *
 * A step reads all that changes (id, position, page tables, spans) from device memory, so its operations are recorded the
 * second time they run (the first lets the backend allocate what it wants) and replayed from then on, until a buffer moves.
 *
 * A step is one operation where the backend has that, takes the model's shape and the model is of a size for it ($MOASCOPE_STEP=0:
 * never; 1, cluster: of any, by all multiprocessors or by clusters of them); else it
 * goes by the fused operations where the backend has them and takes the shape: five launches a layer rather than
 * sixteen, of several rows nine rather than twenty. $MOASCOPE_FUSED=0 goes by the single operations, which it is checked against.
 *
 * While keys of the windows are lost (seq.c), a chunk is attended as if its tokens were as many sequences that share one page
 * table, so that each can have its own spans: attn_decode with a stride of 0.
 *
 * Only a chunk that has passed all layers counts: then the ids are appended, the statistics added, the retired pages free.
 * Any failure or cancelling before that rolls back to the tokens there were (seq.c). */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/engine_impl.h"

enum { LONG_CHUNK = 512, LOOK_LAYERS = 4, STEP_ROWS = 15, STEP_ROWS_MB = 8 };

typedef struct pass {
    moa_engine *e;
    moa_seq *s;                  /* or NULL: several, then */
    const moa_lanes_rows *lanes; /* one token of each of n sequences */
    const moa_forward *f;
    int32_t n, pos0;
    const int32_t *ids, *pos; /* device */
    float *last;              /* host, for the last token's logits; or NULL */
    float *rows;              /* host scratch (n_logits, n_vocab) for each_logits; or NULL */
    const int32_t *targets;   /* (n) of these tokens, and their losses; or NULL */
    float *losses;
    bool stopped;             /* by each_logits */
    bool fused;               /* a step, by fused operations where there are some */
} pass;

static const moa_shape *shape_of(const pass *p) {
    return &p->e->model->shape;
}

/* --- one layer ------------------------------------------------------------------------------------------------------------ */

static moa_status multiply(const pass *p, const float *x, const moa_dev_weight *w, const moa_dev_weight *bias,
                           float *y, moa_err *err) {
    moa_engine *e = p->e;
    return e->vt->matmul(e->backend, &(moa_args_matmul){.x = x, .w = w, .bias = bias, .y = y, .n_tok = p->n},
                         err);
}

/* y = x W^T (+ y), x normalised first where there is a norm; *taken false: nothing was done */
static moa_status fused_product(const pass *p, const moa_args_fused_product *a, moa_err *err) {
    moa_engine *e = p->e;
    *a->taken = false;
    return p->fused && e->vt->fused_product ? e->vt->fused_product(e->backend, a, err) : MOA_OK;
}

/* x += y W^T: back onto the residual stream */
static moa_status add_back(const pass *p, const float *y, const moa_dev_weight *w, moa_err *err) {
    moa_engine *e = p->e;
    bool taken;
    const moa_status s = fused_product(
        p, &(moa_args_fused_product){.in = {.x = y, .n_tok = p->n}, .w = w, .y = e->ws.x, .accumulate = true, .taken = &taken},
        err);
    if (s != MOA_OK || taken) return s;
    return e->vt->matmul(
        e->backend, &(moa_args_matmul){.x = y, .w = w, .y = e->ws.x, .n_tok = p->n, .accumulate = true}, err);
}

static moa_status normalise(const pass *p, const float *x, const moa_dev_weight *w, float *y, int32_t n,
                            moa_err *err) {
    moa_engine *e = p->e;
    const moa_shape *shape = shape_of(p);
    return e->vt->rmsnorm(
        e->backend,
        &(moa_args_rmsnorm){.x = x, .w = w, .y = y, .n_tok = n, .n = shape->d_model, .eps = shape->rms_eps},
        err);
}

static moa_args_rope rope_of(const pass *p, float *x, int32_t n_head) {
    const moa_shape *shape = shape_of(p);
    return (moa_args_rope){.x = x,
                           .pos = p->pos,
                           .freq_factors = p->e->rope_freqs,
                           .n_tok = p->n,
                           .n_head = n_head,
                           .d_head = shape->d_head,
                           .rope_dim = shape->rope_dim,
                           .kind = shape->rope_kind,
                           .theta = shape->rope_theta,
                           .scale = shape->rope_scale};
}
static moa_status rotate(const pass *p, float *x, int32_t n_head, moa_err *err) {
    const moa_args_rope a = rope_of(p, x, n_head);
    return p->e->vt->rope(p->e->backend, &a, err);
}

static moa_kv_view view(const pass *p, int32_t layer) {
    const moa_shape *shape = shape_of(p);
    const moa_lanes_rows *y = p->lanes;
    const int32_t max_pages = y ? y->max_pages : p->s->max_pages;
    const int64_t row = (int64_t)shape->n_head_kv * max_pages;
    return (moa_kv_view){.pool = p->e->pool.data,
                         .table = (y ? y->table : p->s->d_table) + layer * row,
                         .table_seq_stride = y ? y->stride : row,
                         .n_head_kv = shape->n_head_kv,
                         .d_head = shape->d_head,
                         .max_pages = max_pages,
                         .type = p->e->kv_type};
}

/* n queries of one sequence, each under its own spans */
static moa_status attend_one_by_one(const pass *p, int32_t layer, moa_err *err) {
    moa_seq *s = p->s;
    moa_engine *e = p->e;
    const moa_shape *shape = shape_of(p);
    const size_t n = (size_t)p->n * (size_t)shape->n_head;
    moa_kv_view kv = view(p, layer);
    kv.table_seq_stride = 0;
    for (int32_t t = 0; t < p->n; t++)
        moa_seq_spans_at(s, layer, p->pos0 + t, e->row_span + (int64_t)t * shape->n_head);
    const moa_status status =
        e->vt->upload(e->backend, e->ws.row_span, e->row_span, n * sizeof *e->row_span, err);
    if (status != MOA_OK) return status;
    return e->vt->attn_decode(e->backend,
                              &(moa_args_attn_decode){.q = e->ws.q,
                                                      .o = e->ws.o,
                                                      .kv = kv,
                                                      .pos = p->pos,
                                                      .span = e->ws.row_span,
                                                      .span_seq_stride = shape->n_head,
                                                      .n_seq = p->n,
                                                      .n_head = shape->n_head,
                                                      .scale = moa_attn_scale(shape),
                                                      .probe = moa_probe_args(s, layer, p->n)},
                              err);
}

/* one query each of n sequences */
static moa_status attend_rows(const pass *p, int32_t layer, moa_err *err) {
    const moa_shape *shape = shape_of(p);
    const moa_lanes_rows *y = p->lanes;
    const int32_t *span = y ? y->span : p->s->d_shown;
    return p->e->vt->attn_decode(
        p->e->backend,
        &(moa_args_attn_decode){.q = p->e->ws.q,
                                .o = p->e->ws.o,
                                .kv = view(p, layer),
                                .pos = p->pos,
                                .span = span + (int64_t)layer * shape->n_head,
                                .span_seq_stride = y ? y->stride : shape->n_head,
                                .n_seq = p->n,
                                .n_head = shape->n_head,
                                .scale = moa_attn_scale(shape),
                                .probe = y ? (moa_probe){0} : moa_probe_args(p->s, layer, 1)},
        err);
}

static moa_status attend(const pass *p, int32_t layer, moa_err *err) {
    moa_seq *s = p->s;
    moa_engine *e = p->e;
    const moa_shape *shape = shape_of(p);
    const int64_t at = (int64_t)layer * shape->n_head;
    if (p->lanes || p->n == 1) return attend_rows(p, layer, err);
    if (s->has_gaps) return attend_one_by_one(p, layer, err);
    return e->vt->attn_prefill(e->backend,
                               &(moa_args_attn_prefill){.q = e->ws.q,
                                                        .o = e->ws.o,
                                                        .kv = view(p, layer),
                                                        .span = s->d_shown + at,
                                                        .span_host = s->shown + at,
                                                        .pos0 = p->pos0,
                                                        .n_tok = p->n,
                                                        .n_head = shape->n_head,
                                                        .scale = moa_attn_scale(shape),
                                                        .probe = moa_probe_args(s, layer, p->n)},
                               err);
}

static moa_status fused_qkv(const pass *p, int32_t layer, bool *taken, moa_err *err) {
    moa_engine *e = p->e;
    const moa_shape *shape = shape_of(p);
    const moa_engine_layer *w = &e->layers[layer];
    *taken = false;
    if (!p->fused || !e->vt->fused_qkv) return MOA_OK;
    return e->vt->fused_qkv(
        e->backend,
        &(moa_args_fused_qkv){.in = {.x = e->ws.x, .norm = w->attn_norm, .eps = shape->rms_eps, .n_tok = p->n},
                              .wq = w->wq,
                              .wk = w->wk,
                              .wv = w->wv,
                              .bq = w->bq,
                              .bk = w->bk,
                              .bv = w->bv,
                              .q = e->ws.q,
                              .k = e->ws.k,
                              .v = e->ws.v,
                              .rope = rope_of(p, e->ws.q, shape->n_head),
                              .kv = view(p, layer),
                              .seq = p->lanes ? p->lanes->seq : NULL,
                              .n_head = shape->n_head,
                              .taken = taken},
        err);
}

/* q, k, v of the chunk; k and v to their pages */
static moa_status queries_keys_values(const pass *p, int32_t layer, moa_err *err) {
    moa_engine *e = p->e;
    const moa_shape *shape = shape_of(p);
    const moa_engine_layer *w = &e->layers[layer];
    moa_workspace *ws = &e->ws;
    bool taken;
    moa_status s = fused_qkv(p, layer, &taken, err);
    if (s != MOA_OK || taken) return s;
    MOA_TRY(normalise(p, ws->x, w->attn_norm, ws->h, p->n, err));
    MOA_TRY(multiply(p, ws->h, w->wq, w->bq, ws->q, err));
    MOA_TRY(multiply(p, ws->h, w->wk, w->bk, ws->k, err));
    MOA_TRY(multiply(p, ws->h, w->wv, w->bv, ws->v, err));
    MOA_TRY(rotate(p, ws->q, shape->n_head, err));
    MOA_TRY(rotate(p, ws->k, shape->n_head_kv, err));
    MOA_TRY(e->vt->kv_store(e->backend,
                            &(moa_args_kv_store){.k = ws->k,
                                                 .v = ws->v,
                                                 .kv = view(p, layer),
                                                 .seq = p->lanes ? p->lanes->seq : NULL,
                                                 .pos = p->pos,
                                                 .n_tok = p->n},
                            err));
out:
    return s;
}

static moa_status attention_half(const pass *p, int32_t layer, moa_err *err) {
    moa_workspace *ws = &p->e->ws;
    moa_status s = queries_keys_values(p, layer, err);
    if (s == MOA_OK && p->s) s = moa_capture_rows(p->s, layer, ws->q, ws->k, p->pos, p->n, err);
    if (s == MOA_OK) s = attend(p, layer, err);
    return s == MOA_OK ? add_back(p, ws->o, p->e->layers[layer].wo, err) : s;
}

/* silu(gate) * up, into ws.gate */
static moa_status gate_and_up(const pass *p, const moa_engine_layer *w, moa_err *err) {
    moa_engine *e = p->e;
    moa_workspace *ws = &e->ws;
    const moa_fused_in in = {.x = ws->x, .norm = w->ffn_norm, .eps = shape_of(p)->rms_eps, .n_tok = p->n};
    bool taken = false;
    moa_status s = MOA_OK;
    if (p->fused && e->vt->fused_gate_up)
        MOA_TRY(e->vt->fused_gate_up(
            e->backend,
            &(moa_args_fused_gate_up){.in = in, .gate = w->gate, .up = w->up, .y = ws->gate, .taken = &taken},
            err));
    if (taken) return MOA_OK;
    MOA_TRY(normalise(p, ws->x, w->ffn_norm, ws->h, p->n, err));
    MOA_TRY(multiply(p, ws->h, w->gate, NULL, ws->gate, err));
    MOA_TRY(multiply(p, ws->h, w->up, NULL, ws->up, err));
    MOA_TRY(e->vt->silu_mul(
        e->backend,
        &(moa_args_silu_mul){
            .gate = ws->gate, .up = ws->up, .y = ws->gate, .n = (int64_t)p->n * shape_of(p)->d_ff},
        err));
out:
    return s;
}

static moa_status feed_forward_half(const pass *p, int32_t layer, moa_err *err) {
    const moa_engine_layer *w = &p->e->layers[layer];
    const moa_status s = gate_and_up(p, w, err);
    return s == MOA_OK ? add_back(p, p->e->ws.gate, w->down, err) : s;
}

static moa_status run_layer(const pass *p, int32_t layer, moa_err *err) {
    const moa_status s = attention_half(p, layer, err);
    return s == MOA_OK ? feed_forward_half(p, layer, err) : s;
}

static moa_status embed(const pass *p, moa_err *err) {
    moa_engine *e = p->e;
    return e->vt->embed(e->backend,
                        &(moa_args_embed){.w = e->embed, .ids = p->ids, .y = e->ws.x, .n_tok = p->n}, err);
}

/* logits of n tokens of the chunk from row `first` on, into ws.logits */
static moa_status project(const pass *p, int32_t first, int32_t n, moa_err *err) {
    moa_engine *e = p->e;
    const int32_t d_model = shape_of(p)->d_model;
    float *y = p->lanes ? p->lanes->logits : e->ws.logits;
    const float *x = e->ws.x + (int64_t)first * d_model;
    const moa_fused_in in = {.x = x, .norm = e->out_norm, .eps = shape_of(p)->rms_eps, .n_tok = n};
    bool taken;
    moa_status s =
        fused_product(p, &(moa_args_fused_product){.in = in, .w = e->output, .y = y, .taken = &taken}, err);
    if (s == MOA_OK && !taken) s = normalise(p, x, e->out_norm, e->ws.h, n, err);
    if (s != MOA_OK || taken) return s;
    return e->vt->matmul(e->backend, &(moa_args_matmul){.x = e->ws.h, .w = e->output, .y = y, .n_tok = n},
                         err);
}

static moa_status download_logits(const pass *p, float *host, int32_t n, moa_err *err) {
    moa_engine *e = p->e;
    return e->vt->download(e->backend, host, e->ws.logits,
                           (size_t)n * (size_t)shape_of(p)->n_vocab * sizeof *host, err);
}

/* --- losses on the device --------------------------------------------------------------------------------------------------- */

bool moa_engine_can_judge(const moa_engine *e) {
    return e->vt->cross_entropy != NULL;
}

/* Space that the layers are done with: the ids of the chunk, and the first of its gates. */
static moa_status upload_targets(const pass *p, moa_err *err) {
    moa_engine *e = p->e;
    return e->vt->upload(e->backend, e->ws.in, p->targets, (size_t)p->n * sizeof *p->targets, err);
}

static moa_status download_losses(const pass *p, bool any, moa_err *err) {
    moa_engine *e = p->e;
    const moa_status s = any ? e->vt->download(e->backend, p->losses, e->ws.gate,
                                               (size_t)p->n * sizeof *p->losses, err)
                             : MOA_OK;
    for (int32_t i = 0; i < p->n; i++)
        if (p->targets[i] < 0) p->losses[i] = NAN;
    return s;
}

/* tokens first .. first + n - 1 of the chunk, whose logits begin at row 0 and are used up */
static moa_status judge_rows(const pass *p, int32_t first, int32_t n, moa_err *err) {
    moa_engine *e = p->e;
    return e->vt->cross_entropy(e->backend,
                                &(moa_args_cross_entropy){.logits = e->ws.logits,
                                                          .target = e->ws.in + first,
                                                          .loss = e->ws.gate + first,
                                                          .n_row = n,
                                                          .n_vocab = shape_of(p)->n_vocab,
                                                          .scale = 1},
                                err);
}

/* runs of judged tokens, as many rows at once as there is room for logits */
static moa_status every_loss(const pass *p, moa_err *err) {
    const int32_t block = p->e->n_logits;
    bool any = false;
    moa_status s = MOA_OK;
    for (int32_t first = 0, n; first < p->n; first += n) {
        if (p->targets[first] < 0) {
            n = 1;
            continue;
        }
        for (n = 1; n < block && first + n < p->n && p->targets[first + n] >= 0;)
            n++;
        if (!any) MOA_TRY(upload_targets(p, err));
        any = true;
        MOA_TRY(project(p, first, n, err));
        MOA_TRY(judge_rows(p, first, n, err));
    }
    MOA_TRY(download_losses(p, any, err));
out:
    return s;
}

/* --- a step: one token ------------------------------------------------------------------------------------------------------ */

static bool fused_wanted(void) {
    const char *text = getenv("MOASCOPE_FUSED");
    return !text || strcmp(text, "0") != 0;
}

/* By itself only where that is measured faster: one row from 64 MB of weights a layer on (Llama-3-8B's: 132 in Q4_0, 436 in BF16; alone,
 * small models go faster by five launches a layer), two to STEP_ROWS rows of small models (SmolLM2's: 3 MB). */
static bool whole_wanted(const pass *p) {
    const uint64_t mb = (uint64_t)1 << 20;
    const moa_engine *e = p->e;
    const char *text = getenv("MOASCOPE_STEP");
    if ((p->n != 1 && !p->lanes) || !p->fused || !e->vt->step_decode || (p->s && p->s->capture)) return false;
    if (text && *text) return strcmp(text, "0") != 0;
    const uint64_t layer = e->weight_bytes / (uint64_t)shape_of(p)->n_layer;
    return p->n == 1 ? layer >= 64 * mb : p->n <= STEP_ROWS && layer <= STEP_ROWS_MB * mb;
}

/* all layers of a row or more as one operation; their embeddings are there */
static moa_status whole_step(const pass *p, bool logits, bool *taken, moa_err *err) {
    moa_engine *e = p->e;
    const moa_shape *shape = shape_of(p);
    const moa_lanes_rows *y = p->lanes;
    const moa_kv_view kv = view(p, 0);
    *taken = false;
    if (!whole_wanted(p)) return MOA_OK;
    return e->vt->step_decode(
        e->backend,
        &(moa_args_step_decode){.layers = e->layers,
                                .out_norm = e->out_norm,
                                .output = e->output,
                                .x = e->ws.x,
                                .q = e->ws.q,
                                .o = e->ws.o,
                                .gate = e->ws.gate,
                                .logits = !logits ? NULL : y ? y->logits : e->ws.logits,
                                .rope = rope_of(p, e->ws.q, shape->n_head),
                                .kv = kv,
                                .table_layer_stride = (int64_t)kv.n_head_kv * kv.max_pages,
                                .seq = y ? y->seq : NULL,
                                .span = y ? y->span : p->s->d_shown,
                                .span_seq_stride = y ? y->stride : 0,
                                .n_layer = shape->n_layer,
                                .n_head = shape->n_head,
                                .n_tok = p->n,
                                .eps = shape->rms_eps,
                                .scale = moa_attn_scale(shape),
                                .probe = y ? (moa_probe){0} : moa_probe_args(p->s, 0, 1),
                                .taken = taken},
        err);
}

/* p's rows are single tokens, of as many sequences */
static moa_status step_operations(const pass *p, bool logits, moa_err *err) {
    pass q = *p;
    bool taken = false;
    q.fused = fused_wanted();
    moa_status s = embed(&q, err);
    if (s == MOA_OK) s = whole_step(&q, logits, &taken, err);
    if (s != MOA_OK || taken) return s;
    for (int32_t l = 0; l < shape_of(p)->n_layer && s == MOA_OK; l++)
        s = run_layer(&q, l, err);
    return s == MOA_OK && logits ? project(&q, 0, p->n, err) : s;
}

moa_status moa_lanes_operations(moa_engine *e, const moa_lanes_rows *rows, moa_err *err) {
    const pass p = {.e = e, .lanes = rows, .n = rows->n, .ids = rows->ids, .pos = rows->pos};
    return step_operations(&p, true, err);
}

/* a step of a sequence, with the sums of its statistics */
static moa_status step_and_sums(const pass *p, bool logits, moa_err *err) {
    const moa_status s = step_operations(p, logits, err);
    return s == MOA_OK ? moa_probe_sum(p->s, p->pos, p->n, err) : s;
}

moa_status moa_seq_step_operations(moa_seq *s, const int32_t *id, const int32_t *pos, moa_err *err) {
    const pass p = {.e = s->engine, .s = s, .n = 1, .ids = id, .pos = pos};
    return step_and_sums(&p, true, err);
}

/* A recording that cannot be made is no error: the operations are then called one by one. */
static void *record_step(const pass *p, bool logits) {
    moa_engine *e = p->e;
    void *recording = NULL;
    if (e->vt->record_begin(e->backend, NULL) != MOA_OK) return NULL;
    const moa_status operations = step_and_sums(p, logits, NULL);
    const moa_status end = e->vt->record_end(e->backend, &recording, NULL);
    if (operations == MOA_OK && end == MOA_OK) return recording;
    if (end == MOA_OK) e->vt->recording_free(e->backend, recording);
    return NULL;
}

static moa_status play_step(const pass *p, bool logits, moa_err *err) {
    moa_seq *s = p->s;
    moa_engine *e = s->engine;
    const bool can = e->vt->record_begin && e->vt->record_end && e->vt->replay && e->vt->recording_free &&
                     !s->no_recording;
    if (can && !s->recording[logits] && s->step_done[logits]) {
        s->recording[logits] = record_step(p, logits);
        s->no_recording = !s->recording[logits];
    }
    if (s->recording[logits]) return e->vt->replay(e->backend, s->recording[logits], err);
    const moa_status status = step_and_sums(p, logits, err);
    s->step_done[logits] = status == MOA_OK;
    return status;
}

static moa_status run_step(pass *p, moa_err *err) {
    moa_seq *s = p->s;
    moa_engine *e = s->engine;
    const bool judged = p->targets && p->targets[0] >= 0, logits = p->last || p->rows || judged;
    moa_status status = MOA_OK;
    for (int32_t l = 0; l < shape_of(p)->n_layer && status == MOA_OK; l++)
        status = moa_seq_extend(s, l, p->pos0 + 1, err);
    if (status == MOA_OK) status = moa_seq_state_upload(s, err);
    if (status == MOA_OK) status = play_step(p, logits, err);
    if (status != MOA_OK) return status;
    if (!logits && !p->targets) return e->vt->sync(e->backend, err);
    float *host = p->last ? p->last : p->rows;
    if (host) status = download_logits(p, host, 1, err);
    if (status == MOA_OK && judged) status = upload_targets(p, err);
    if (status == MOA_OK && judged) status = judge_rows(p, 0, 1, err);
    if (status == MOA_OK && p->targets) status = download_losses(p, judged, err);
    if (status == MOA_OK && p->rows) p->stopped = !p->f->each_logits(p->f->user, p->pos0, host);
    return status;
}

/* --- a chunk ---------------------------------------------------------------------------------------------------------------- */

static bool cancelled(const pass *p) {
    return p->f->cancelled && p->f->cancelled(p->f->user);
}

static moa_status every_logits(pass *p, moa_err *err) {
    const int32_t n_vocab = shape_of(p)->n_vocab, block = p->s->engine->n_logits;
    moa_status s = MOA_OK;
    for (int32_t first = 0; first < p->n && !p->stopped; first += block) {
        const int32_t n = p->n - first < block ? p->n - first : block;
        MOA_TRY(project(p, first, n, err));
        MOA_TRY(download_logits(p, p->rows, n, err));
        for (int32_t i = 0; i < n && !p->stopped; i++)
            p->stopped = !p->f->each_logits(p->f->user, p->pos0 + first + i, p->rows + (int64_t)i * n_vocab);
        if (p->last && first + n == p->n)
            memcpy(p->last, p->rows + (int64_t)(n - 1) * n_vocab, (size_t)n_vocab * sizeof *p->last);
    }
out:
    return s;
}

static moa_status run_chunk(pass *p, moa_err *err) {
    moa_seq *seq = p->s;
    const int32_t n_after = p->pos0 + p->n;
    moa_status s = MOA_OK;
    MOA_TRY(embed(p, err));
    for (int32_t l = 0; l < shape_of(p)->n_layer; l++) {
        if (cancelled(p)) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted after %d tokens", seq->n_past));
        MOA_TRY(moa_seq_extend(seq, l, n_after, err));
        MOA_TRY(moa_seq_state_upload(seq, err));
        MOA_TRY(run_layer(p, l, err));
        moa_seq_trim(seq, l, n_after, true);
        /* the host runs ahead of a GPU: who may cancel is heard every few layers of a long chunk, for 20 us a wait */
        if (p->f->cancelled && p->n >= LONG_CHUNK && l % LOOK_LAYERS == LOOK_LAYERS - 1)
            MOA_TRY(seq->engine->vt->sync(seq->engine->backend, err));
    }
    if (p->targets) MOA_TRY(every_loss(p, err));
    if (p->rows)
        MOA_TRY(every_logits(p, err));
    else if (p->last) {
        MOA_TRY(project(p, p->n - 1, 1, err));
        MOA_TRY(download_logits(p, p->last, 1, err));
    }
    MOA_TRY(moa_probe_sum(seq, p->pos, p->n, err));
    /* also what makes cancelling prompt: the host never runs more than a chunk ahead */
    MOA_TRY(seq->engine->vt->sync(seq->engine->backend, err));
out:
    return s;
}

/* --- a call ----------------------------------------------------------------------------------------------------------------- */

static moa_status upload_input(pass *p, const int32_t *ids, moa_err *err) {
    moa_engine *e = p->e;
    for (int32_t i = 0; i < p->n; i++) {
        e->in[i] = ids[i];
        e->in[p->n + i] = p->pos0 + i;
    }
    p->ids = e->ws.in;
    p->pos = e->ws.in + p->n;
    return e->vt->upload(e->backend, e->ws.in, e->in, 2 * (size_t)p->n * sizeof *e->in, err);
}

static void commit(const pass *p, const int32_t *ids) {
    moa_seq *s = p->s;
    memcpy(s->ids + s->n_past, ids, (size_t)p->n * sizeof *ids);
    moa_probe_commit(s, p->n);
    s->n_past += p->n;
    s->n_journal = 0;
    moa_kv_pages_settle(&s->engine->pages);
    for (int32_t l = 0; p->n == 1 && l < shape_of(p)->n_layer; l++)
        moa_seq_trim(s, l, s->n_past, false);
    if (s->has_gaps) moa_seq_show_spans(s);
}

static moa_status run_pass(pass *p, const int32_t *ids, moa_err *err) {
    moa_seq *s = p->s;
    const moa_shape *shape = shape_of(p);
    memcpy(s->from_before, s->from, (size_t)shape->n_layer * (size_t)shape->n_head_kv * sizeof *s->from);
    moa_status status = moa_probe_begin(s, p->n, err);
    if (status != MOA_OK) return status;
    status = upload_input(p, ids, err);
    if (status == MOA_OK) status = p->n == 1 ? run_step(p, err) : run_chunk(p, err);
    if (status == MOA_OK) {
        commit(p, ids);
        return MOA_OK;
    }
    moa_probe_rollback(s, p->n);
    moa_seq_rollback(s);
    return status;
}

static moa_status check(const moa_seq *s, const moa_forward *f, moa_err *err) {
    const int32_t n_vocab = s->engine->model->shape.n_vocab;
    if (f->n < 1 || f->n > s->n_reserved - s->n_past)
        return moa_fail(err, MOA_E_INVALID, "%d tokens to append to %d, but %d are reserved", f->n, s->n_past,
                        s->n_reserved);
    if (f->chunk < 0) return moa_fail(err, MOA_E_USAGE, "a chunk of %d tokens; at least 1", f->chunk);
    if (f->targets && (f->each_logits || !moa_engine_can_judge(s->engine)))
        return moa_fail(err, MOA_E_UNSUPPORTED, "backend %s: no losses %s", s->engine->vt->name,
                        f->each_logits ? "beside logits" : "on the device");
    for (int32_t i = 0; f->targets && i < f->n; i++)
        if (f->targets[i] >= n_vocab)
            return moa_fail(err, MOA_E_INVALID, "target %d has id %d; the vocabulary has %d", i, f->targets[i],
                            n_vocab);
    for (int32_t i = 0; i < f->n; i++)
        if (f->ids[i] < 0 || f->ids[i] >= n_vocab)
            return moa_fail(err, MOA_E_INVALID, "token %d has id %d; the vocabulary has %d", i, f->ids[i],
                            n_vocab);
    return MOA_OK;
}

/* pages this call may need at most, with what other sequences hold */
static moa_status reserve(moa_seq *s, int32_t n, int32_t chunk, bool fit, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_kv_course course = {.shape = &e->model->shape,
                                  .widest = s->widest,
                                  .n_past = s->n_past,
                                  .n = n,
                                  .chunk = chunk,
                                  .n_reserved = s->n_reserved};
    return moa_engine_reserve(e, moa_kv_pages_peak(&course) + e->pages.used - s->n_held, fit, err);
}

moa_status moa_seq_reserve_steps(moa_seq *s, moa_err *err) {
    return reserve(s, 1, 1, false, err);
}

moa_status moa_seq_forward(moa_seq *s, const moa_forward *f, moa_err *err) {
    moa_engine *e = s->engine;
    moa_status status = check(s, f, err);
    if (status != MOA_OK) return status;
    const int32_t chunk = f->chunk > 0 && f->chunk < e->chunk ? f->chunk : e->chunk;
    pass p = {.e = e, .s = s, .f = f};
    if ((status = reserve(s, f->n, chunk, true, err)) != MOA_OK) return status;
    moa_probe_prompt(s, f->n, chunk);
    if (f->each_logits) {
        p.rows = malloc((size_t)e->n_logits * (size_t)e->model->shape.n_vocab * sizeof *p.rows);
        if (!p.rows) return moa_fail(err, MOA_E_MEMORY, "no memory for %d rows of logits", e->n_logits);
    }
    for (int32_t done = 0; done < f->n && status == MOA_OK && !p.stopped; done += p.n) {
        if (cancelled(&p)) {
            status = moa_fail(err, MOA_E_CANCELLED, "interrupted after %d tokens", s->n_past);
            break;
        }
        const int32_t most = s->has_gaps && chunk > MOA_GAP_TOK ? MOA_GAP_TOK : chunk;
        p.n = f->n - done < most ? f->n - done : most;
        p.pos0 = s->n_past;
        p.last = done + p.n == f->n ? f->logits : NULL;
        if (f->targets) p.targets = f->targets + done, p.losses = f->losses + done;
        /* grows the pool only where lost keys made the chunks other than foreseen */
        status = reserve(s, p.n, p.n, false, err);
        if (status == MOA_OK) status = run_pass(&p, f->ids + done, err);
        if (status == MOA_OK && f->progress) f->progress(f->user, done + p.n, f->n);
    }
    if (status == MOA_OK && p.stopped)
        status = moa_fail(err, MOA_E_CANCELLED, "stopped after %d tokens", s->n_past);
    free(p.rows);
    return status;
}
