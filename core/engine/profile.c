/* The forward pass keeps x, the input of every layer; the backward pass runs the layers from the last to the first, each time
 * computing again what is between x and the layer's output. dx is the gradient of the residual stream, one buffer all the way:
 *
 *   x --+--> n = norm(x) --> q, k, v --> rope --> attention --> o --> Wo --+--> y --+--> m = norm(y) --> gate, up --> act --> Wdown --+--> next x
 *       +-----------------------------------------------------------------+        +--------------------------------------------------+
 *
 *   d_act = dx Wdown     d_gate, d_up from silu_mul     dm = d_gate Wgate + d_up Wup      dx += norm'(y) dm
 *   d_o   = dx Wo        influence; dq, dk, dv          dn = dq Wq + dk Wk + dv Wv        dx += norm'(x) dn
 *
 * The head of the model goes in chunks of rows, so that only ROWS_BYTES of logits exist at a time. Only rows that predict a
 * supervised token have a loss; the others have gradients through the layers above all the same, and count. */
#include "core/engine/profile.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

enum { ALIGN = 256, BLOCK = MOA_PAGE_TOK };
#define ROWS_BYTES ((size_t)64 << 20)

/* device; n: tokens at most */
typedef struct buffers {
    int32_t *ids, *pos, *target; /* (n) */
    float *x;                    /* (n_layer + 1, n, d_model): inputs of the layers, and what the last one gives */
    float *y, *h, *dx;           /* (n, d_model) */
    float *q, *o, *d_o, *dq;     /* (n, n_head, d_head) */
    float *k, *v, *dk, *dv;      /* (n, n_head_kv, d_head) */
    float *lse;                  /* (n, n_head) */
    float *gate, *up, *act;      /* (n, d_ff) */
    float *logits, *loss;        /* (n_row, n_vocab), (n) */
    float *abs, *sum, *joint;    /* (n_head, nb, nb) twice, (n_head, nb + 1) */
    int32_t *clamped;            /* (1) */
    int32_t *span;               /* (n_layer, n_head) */
} buffers;

struct moa_profile {
    moa_engine *e; /* borrowed */
    const moa_backend_vtable *vt;
    const moa_shape *shape;
    int32_t n_max, n_row; /* tokens; rows of logits */
    moa_dev_mem mem;
    buffers at;
    int32_t *host;            /* (3 n_max) ids, positions, targets */
    int32_t *span;            /* (n_layer, n_head) of the item under way */
    float *loss;              /* (n_max) */
    float *abs, *sum, *joint; /* of all layers of the item under way, as downloaded */
};

/* the item under way */
typedef struct pass {
    moa_profile *p;
    const moa_profile_item *item;
    int32_t n, nb, done;
    double loss;
    int32_t clamped;
} pass;

static int32_t blocks_of(int32_t n) {
    return (n + BLOCK - 1) / BLOCK;
}

/* --- sums ------------------------------------------------------------------------------------------------------------- */

moa_status moa_influence_open(moa_influence *f, const moa_shape *shape, int32_t n_tok, moa_err *err) {
    const int32_t nb = blocks_of(n_tok);
    const size_t heads = (size_t)shape->n_layer * (size_t)shape->n_head;
    size_t n_map = 0, n_curve = 0;
    *f = (moa_influence){.n_tok = n_tok, .nb = nb, .n_layer = shape->n_layer, .n_head = shape->n_head};
    if (n_tok >= 1 && moa_size_mul(heads, (size_t)nb * (size_t)nb, &n_map) &&
        moa_size_mul(heads, (size_t)nb + 1, &n_curve)) {
        f->abs = calloc(n_map, sizeof *f->abs);
        f->sum = calloc(n_map, sizeof *f->sum);
        f->joint = calloc(n_curve, sizeof *f->joint);
    }
    if (f->abs && f->sum && f->joint) return MOA_OK;
    moa_influence_free(f);
    return moa_fail(err, MOA_E_MEMORY, "no memory for the influence of %zu heads at %d tokens", heads, n_tok);
}

void moa_influence_free(moa_influence *f) {
    free(f->abs);
    free(f->sum);
    free(f->joint);
    *f = (moa_influence){0};
}

/* --- memory ----------------------------------------------------------------------------------------------------------- */

typedef struct layout {
    char *base; /* NULL: only counts */
    size_t size;
    bool ok;
} layout;

static void *place(layout *l, size_t rows, size_t row_elems) {
    size_t bytes = 0;
    l->ok = l->ok && moa_size_mul(rows, row_elems, &bytes) && moa_size_mul(bytes, sizeof(float), &bytes) &&
            moa_size_pad(bytes, ALIGN, &bytes);
    void *p = l->base ? l->base + l->size : NULL;
    l->ok = l->ok && moa_size_add(l->size, bytes, &l->size);
    return p;
}

static layout lay(const moa_shape *shape, int32_t n_max, int32_t n_row, char *base, buffers *b) {
    const size_t n = (size_t)n_max, d = (size_t)shape->d_model, f = (size_t)shape->d_ff,
                 nh = (size_t)shape->n_head, q = nh * (size_t)shape->d_head,
                 kv = (size_t)shape->n_head_kv * (size_t)shape->d_head, nb = (size_t)blocks_of(n_max);
    layout l = {.base = base, .ok = true};
    b->ids = place(&l, n, 1);
    b->pos = place(&l, n, 1);
    b->target = place(&l, n, 1);
    b->x = place(&l, ((size_t)shape->n_layer + 1) * n, d);
    b->y = place(&l, n, d);
    b->h = place(&l, n, d);
    b->dx = place(&l, n, d);
    b->q = place(&l, n, q);
    b->o = place(&l, n, q);
    b->d_o = place(&l, n, q);
    b->dq = place(&l, n, q);
    b->k = place(&l, n, kv);
    b->v = place(&l, n, kv);
    b->dk = place(&l, n, kv);
    b->dv = place(&l, n, kv);
    b->lse = place(&l, n, nh);
    b->loss = place(&l, n, 1);
    b->abs = place(&l, nh, nb * nb);
    b->sum = place(&l, nh, nb * nb);
    b->joint = place(&l, nh, nb + 1);
    b->clamped = place(&l, 1, 1);
    b->span = place(&l, (size_t)shape->n_layer, nh);
    layout head = l; /* the logits and the FFN's rows are never there at the same time */
    b->logits = place(&head, (size_t)n_row, (size_t)shape->n_vocab);
    b->gate = place(&l, n, f);
    b->up = place(&l, n, f);
    b->act = place(&l, n, f);
    if (head.size > l.size) l.size = head.size;
    l.ok = l.ok && head.ok;
    return l;
}

static int32_t logit_rows(const moa_shape *shape, int32_t n_max) {
    const size_t rows = ROWS_BYTES / ((size_t)shape->n_vocab * sizeof(float));
    return rows < 1 ? 1 : rows < (size_t)n_max ? (int32_t)rows : n_max;
}

uint64_t moa_profile_need(const moa_engine *e, int32_t n_tok_max) {
    const moa_shape *shape = &e->model->shape;
    buffers unused;
    const layout l = lay(shape, n_tok_max, logit_rows(shape, n_tok_max), NULL, &unused);
    return l.ok ? l.size : 0;
}

static bool has_gradients(const moa_backend_vtable *vt) {
    bool all = true;
#define X(name, text) all = all && vt->name;
    MOA_BWD_MAP(X)
#undef X
    return all;
}

static moa_status open_host(moa_profile *p, moa_err *err) {
    const size_t n = (size_t)p->n_max, nb = (size_t)blocks_of(p->n_max),
                 heads = (size_t)p->shape->n_layer * (size_t)p->shape->n_head;
    size_t n_map, n_curve;
    if (moa_size_mul(heads, nb * nb, &n_map) && moa_size_mul(heads, nb + 1, &n_curve)) {
        p->host = malloc(3 * n * sizeof *p->host);
        p->span = malloc(heads * sizeof *p->span);
        p->loss = malloc(n * sizeof *p->loss);
        p->abs = calloc(n_map, sizeof *p->abs);
        p->sum = calloc(n_map, sizeof *p->sum);
        p->joint = calloc(n_curve, sizeof *p->joint);
    }
    if (p->host && p->span && p->loss && p->abs && p->sum && p->joint) return MOA_OK;
    return moa_fail(err, MOA_E_MEMORY, "no memory for the influence of %zu heads at %d tokens", heads, p->n_max);
}

moa_status moa_profile_open(moa_profile **out, moa_engine *e, int32_t n_tok_max, moa_err *err) {
    const moa_shape *shape = &e->model->shape;
    moa_status s = MOA_OK;
    *out = NULL;
    if (!has_gradients(e->vt))
        return moa_fail(err, MOA_E_UNSUPPORTED, "backend %s has no gradients: the profile cannot run on it",
                        e->vt->name);
    if (n_tok_max < 2 || n_tok_max > shape->n_ctx)
        return moa_fail(err, MOA_E_INVALID, "a profile at %d tokens; from 2 to the model's context of %d",
                        n_tok_max, shape->n_ctx);
    moa_profile *p = calloc(1, sizeof *p);
    if (!p) return moa_fail(err, MOA_E_MEMORY, "no memory for the profile");
    *p = (moa_profile){.e = e, .vt = e->vt, .shape = shape, .n_max = n_tok_max};
    p->n_row = logit_rows(shape, n_tok_max);
    const layout need = lay(shape, n_tok_max, p->n_row, NULL, &p->at);
    if (!need.ok) {
        s = moa_fail(err, MOA_E_MEMORY, "the activations of %d tokens do not fit the address space", n_tok_max);
        goto out;
    }
    MOA_TRY(open_host(p, err));
    MOA_TRY(moa_engine_alloc(e, need.size, &p->mem, err));
    (void)lay(shape, n_tok_max, p->n_row, p->mem.data, &p->at);
    *out = p;
    p = NULL;
out:
    moa_profile_close(&p);
    return s;
}

void moa_profile_close(moa_profile **out) {
    moa_profile *p = *out;
    if (!p) return;
    moa_engine_free(p->e, &p->mem);
    free(p->host);
    free(p->span);
    free(p->loss);
    free(p->abs);
    free(p->sum);
    free(p->joint);
    free(p);
    *out = NULL;
}

/* --- operations, with what does not change filled in ------------------------------------------------------------------ */

static moa_status multiply(const pass *a, const float *x, const moa_dev_weight *w, const moa_dev_weight *bias,
                           float *y, moa_err *err) {
    return a->p->vt->matmul(a->p->e->backend,
                            &(moa_args_matmul){.x = x, .w = w, .bias = bias, .y = y, .n_tok = a->n}, err);
}

/* y += x W^T */
static moa_status multiply_add(const pass *a, const float *x, const moa_dev_weight *w, float *y, moa_err *err) {
    return a->p->vt->matmul(a->p->e->backend,
                            &(moa_args_matmul){.x = x, .w = w, .y = y, .n_tok = a->n, .accumulate = true}, err);
}

static moa_status back(const pass *a, const float *dy, const moa_dev_weight *w, float *dx, bool accumulate,
                       moa_err *err) {
    return a->p->vt->matmul_t(
        a->p->e->backend,
        &(moa_args_matmul_t){.dy = dy, .w = w, .dx = dx, .n_tok = a->n, .accumulate = accumulate}, err);
}

static moa_status normalise(const pass *a, const float *x, const moa_dev_weight *w, float *y, int32_t n,
                            moa_err *err) {
    return a->p->vt->rmsnorm(a->p->e->backend,
                             &(moa_args_rmsnorm){.x = x,
                                                 .w = w,
                                                 .y = y,
                                                 .n_tok = n,
                                                 .n = a->p->shape->d_model,
                                                 .eps = a->p->shape->rms_eps},
                             err);
}

/* dx of n rows; accumulate: the residual's gradient is there */
static moa_status normalise_back(const pass *a, const moa_args_rmsnorm_bwd *args, moa_err *err) {
    moa_args_rmsnorm_bwd all = *args;
    all.n = a->p->shape->d_model;
    all.eps = a->p->shape->rms_eps;
    return a->p->vt->rmsnorm_bwd(a->p->e->backend, &all, err);
}

/* sign -1: back, the gradient's way */
static moa_status rotate(const pass *a, float *x, int32_t n_head, float sign, moa_err *err) {
    const moa_shape *shape = a->p->shape;
    return a->p->vt->rope(a->p->e->backend,
                          &(moa_args_rope){.x = x,
                                           .pos = a->p->at.pos,
                                           .freq_factors = a->p->e->rope_freqs,
                                           .n_tok = a->n,
                                           .n_head = n_head,
                                           .d_head = shape->d_head,
                                           .rope_dim = shape->rope_dim,
                                           .kind = shape->rope_kind,
                                           .theta = shape->rope_theta,
                                           .scale = sign * shape->rope_scale},
                          err);
}

static float *layer_input(const pass *a, int32_t layer) {
    return a->p->at.x + (int64_t)layer * a->p->n_max * a->p->shape->d_model;
}

static size_t stream_bytes(const pass *a) {
    return (size_t)a->n * (size_t)a->p->shape->d_model * sizeof(float);
}

static moa_full full_of(const pass *a, int32_t layer) {
    const moa_shape *shape = a->p->shape;
    const buffers *b = &a->p->at;
    return (moa_full){.q = b->q,
                      .k = b->k,
                      .v = b->v,
                      .n_tok = a->n,
                      .n_head = shape->n_head,
                      .n_head_kv = shape->n_head_kv,
                      .d_head = shape->d_head,
                      .scale = moa_attn_scale(shape),
                      .span = a->item->rules ? b->span + (int64_t)layer * shape->n_head : NULL};
}

static moa_status step(pass *a, moa_err *err) {
    const moa_profile_item *item = a->item;
    const int32_t total = 2 * a->p->shape->n_layer + 1;
    if (item->cancelled && item->cancelled(item->user))
        return moa_fail(err, MOA_E_CANCELLED, "interrupted after %d of %d layers of an item of %d tokens",
                        a->done, total, a->n);
    if (item->progress && a->done > 0) item->progress(item->user, a->done, total);
    a->done++;
    return MOA_OK;
}

/* --- forward ---------------------------------------------------------------------------------------------------------- */

/* x of the layer -> q, k, v, o, lse, and y = x + o Wo^T */
static moa_status attention(const pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const moa_shape *shape = a->p->shape;
    const buffers *b = &a->p->at;
    const moa_backend_vtable *vt = a->p->vt;
    const float *x = layer_input(a, l);
    moa_status s = MOA_OK;
    MOA_TRY(normalise(a, x, w->attn_norm, b->h, a->n, err));
    MOA_TRY(multiply(a, b->h, w->wq, w->bq, b->q, err));
    MOA_TRY(multiply(a, b->h, w->wk, w->bk, b->k, err));
    MOA_TRY(multiply(a, b->h, w->wv, w->bv, b->v, err));
    MOA_TRY(rotate(a, b->q, shape->n_head, 1, err));
    MOA_TRY(rotate(a, b->k, shape->n_head_kv, 1, err));
    MOA_TRY(vt->attn_full(a->p->e->backend,
                          &(moa_args_attn_full){.in = full_of(a, l), .o = b->o, .lse = b->lse}, err));
    MOA_TRY(vt->copy(a->p->e->backend, b->y, x, stream_bytes(a), err));
    MOA_TRY(multiply_add(a, b->o, w->wo, b->y, err));
out:
    return s;
}

/* y -> gate, up */
static moa_status gates(const pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const buffers *b = &a->p->at;
    moa_status s = MOA_OK;
    MOA_TRY(normalise(a, b->y, w->ffn_norm, b->h, a->n, err));
    MOA_TRY(multiply(a, b->h, w->gate, NULL, b->gate, err));
    MOA_TRY(multiply(a, b->h, w->up, NULL, b->up, err));
out:
    return s;
}

static moa_status forward(pass *a, moa_err *err) {
    const buffers *b = &a->p->at;
    const moa_shape *shape = a->p->shape;
    const moa_backend_vtable *vt = a->p->vt;
    moa_backend *dev = a->p->e->backend;
    moa_status s = MOA_OK;
    MOA_TRY(vt->embed(
        dev, &(moa_args_embed){.w = a->p->e->embed, .ids = b->ids, .y = layer_input(a, 0), .n_tok = a->n},
        err));
    for (int32_t l = 0; l < shape->n_layer; l++) {
        MOA_TRY(step(a, err));
        MOA_TRY(attention(a, l, err));
        MOA_TRY(gates(a, l, err));
        MOA_TRY(vt->silu_mul(
            dev, &(moa_args_silu_mul){b->gate, b->up, b->act, (int64_t)a->n * shape->d_ff}, err));
        MOA_TRY(multiply_add(a, b->act, a->p->e->layers[l].down, b->y, err));
        MOA_TRY(vt->copy(dev, layer_input(a, l + 1), b->y, stream_bytes(a), err));
        MOA_TRY(vt->sync(dev, err)); /* so that ^C is at most a layer away */
    }
out:
    return s;
}

/* --- the loss ----------------------------------------------------------------------------------------------------------- */

/* rows row .. row + n - 1 of the last x: their losses, and their gradients into dx */
static moa_status head_rows(const pass *a, int32_t row, int32_t n, moa_err *err) {
    const buffers *b = &a->p->at;
    const moa_shape *shape = a->p->shape;
    const moa_engine *e = a->p->e;
    const moa_backend_vtable *vt = a->p->vt;
    const float *x = layer_input(a, shape->n_layer) + (int64_t)row * shape->d_model;
    moa_status s = MOA_OK;
    MOA_TRY(normalise(a, x, e->out_norm, b->h, n, err));
    MOA_TRY(vt->matmul(e->backend,
                       &(moa_args_matmul){.x = b->h, .w = e->output, .y = b->logits, .n_tok = n}, err));
    MOA_TRY(vt->cross_entropy(e->backend,
                              &(moa_args_cross_entropy){.logits = b->logits,
                                                        .target = b->target + row,
                                                        .loss = b->loss + row,
                                                        .n_row = n,
                                                        .n_vocab = shape->n_vocab,
                                                        .scale = 1 / (float)(a->n - a->item->supervise_from),
                                                        .margin = a->item->margin},
                              err));
    MOA_TRY(vt->matmul_t(e->backend,
                         &(moa_args_matmul_t){.dy = b->logits, .w = e->output, .dx = b->h, .n_tok = n}, err));
    MOA_TRY(normalise_back(a,
                           &(moa_args_rmsnorm_bwd){.x = x,
                                                   .w = e->out_norm,
                                                   .dy = b->h,
                                                   .dx = b->dx + (int64_t)row * shape->d_model,
                                                   .n_tok = n},
                           err));
out:
    return s;
}

/* the row of token t predicts token t + 1 */
static moa_status head(pass *a, moa_err *err) {
    const buffers *b = &a->p->at;
    const int32_t first = a->item->supervise_from - 1, n_loss = a->n - 1 - first;
    moa_backend *dev = a->p->e->backend;
    moa_status s = MOA_OK;
    MOA_TRY(step(a, err));
    MOA_TRY(a->p->vt->zero(dev, b->dx, stream_bytes(a), err));
    for (int32_t row = first; row < a->n - 1; row += a->p->n_row)
        MOA_TRY(head_rows(a, row, a->n - 1 - row < a->p->n_row ? a->n - 1 - row : a->p->n_row, err));
    MOA_TRY(a->p->vt->download(dev, a->p->loss, b->loss + first, (size_t)n_loss * sizeof *a->p->loss, err));
    a->loss = 0;
    for (int32_t i = 0; i < n_loss; i++)
        a->loss += a->p->loss[i] / n_loss;
    if (!isfinite(a->loss))
        MOA_TRY(moa_fail(err, MOA_E_FAILED, "the loss over %d tokens is not a number", n_loss));
out:
    return s;
}

/* --- backward ------------------------------------------------------------------------------------------------------------ */

/* dx of the layer's output -> dx of y */
static moa_status ffn_back(const pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const buffers *b = &a->p->at;
    moa_status s = MOA_OK;
    MOA_TRY(gates(a, l, err));
    MOA_TRY(back(a, b->dx, w->down, b->act, false, err));
    MOA_TRY(a->p->vt->silu_mul_bwd(a->p->e->backend,
                                   &(moa_args_silu_mul_bwd){.gate = b->gate,
                                                            .up = b->up,
                                                            .dy = b->act,
                                                            .d_gate = b->gate,
                                                            .d_up = b->up,
                                                            .n = (int64_t)a->n * a->p->shape->d_ff},
                                   err));
    MOA_TRY(back(a, b->gate, w->gate, b->h, false, err));
    MOA_TRY(back(a, b->up, w->up, b->h, true, err));
    MOA_TRY(normalise_back(
        a,
        &(moa_args_rmsnorm_bwd){
            .x = b->y, .w = w->ffn_norm, .dy = b->h, .dx = b->dx, .n_tok = a->n, .accumulate = true},
        err));
out:
    return s;
}

/* the layer's influence from d_o, to the host */
static moa_status influence(const pass *a, int32_t l, moa_err *err) {
    const moa_profile *p = a->p;
    const buffers *b = &p->at;
    const size_t n_head = (size_t)p->shape->n_head, nb = (size_t)a->nb, map = n_head * nb * nb,
                 curve = n_head * (nb + 1);
    moa_status s = MOA_OK;
    MOA_TRY(p->vt->attn_influence(p->e->backend,
                                  &(moa_args_attn_influence){.in = full_of(a, l),
                                                             .o = b->o,
                                                             .lse = b->lse,
                                                             .d_o = b->d_o,
                                                             .abs = b->abs,
                                                             .sum = b->sum,
                                                             .joint = b->joint,
                                                             .clamped = b->clamped},
                                  err));
    MOA_TRY(p->vt->download(p->e->backend, p->abs + (size_t)l * map, b->abs, map * sizeof *p->abs, err));
    MOA_TRY(p->vt->download(p->e->backend, p->sum + (size_t)l * map, b->sum, map * sizeof *p->sum, err));
    MOA_TRY(
        p->vt->download(p->e->backend, p->joint + (size_t)l * curve, b->joint, curve * sizeof *p->joint, err));
out:
    return s;
}

/* d_o -> dx of the layer's input */
static moa_status attention_back(const pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const buffers *b = &a->p->at;
    const moa_shape *shape = a->p->shape;
    moa_status s = MOA_OK;
    MOA_TRY(a->p->vt->attn_bwd(a->p->e->backend,
                               &(moa_args_attn_bwd){.in = full_of(a, l),
                                                    .o = b->o,
                                                    .lse = b->lse,
                                                    .d_o = b->d_o,
                                                    .dq = b->dq,
                                                    .dk = b->dk,
                                                    .dv = b->dv},
                               err));
    MOA_TRY(rotate(a, b->dq, shape->n_head, -1, err));
    MOA_TRY(rotate(a, b->dk, shape->n_head_kv, -1, err));
    MOA_TRY(back(a, b->dq, w->wq, b->h, false, err));
    MOA_TRY(back(a, b->dk, w->wk, b->h, true, err));
    MOA_TRY(back(a, b->dv, w->wv, b->h, true, err));
    MOA_TRY(normalise_back(a,
                           &(moa_args_rmsnorm_bwd){.x = layer_input(a, l),
                                                   .w = w->attn_norm,
                                                   .dy = b->h,
                                                   .dx = b->dx,
                                                   .n_tok = a->n,
                                                   .accumulate = true},
                           err));
out:
    return s;
}

static moa_status backward(pass *a, moa_err *err) {
    const buffers *b = &a->p->at;
    moa_backend *dev = a->p->e->backend;
    moa_status s = MOA_OK;
    MOA_TRY(a->p->vt->zero(dev, b->clamped, sizeof *b->clamped, err));
    for (int32_t l = a->p->shape->n_layer - 1; l >= 0; l--) {
        MOA_TRY(step(a, err));
        MOA_TRY(attention(a, l, err));
        MOA_TRY(ffn_back(a, l, err));
        MOA_TRY(back(a, b->dx, a->p->e->layers[l].wo, b->d_o, false, err));
        MOA_TRY(influence(a, l, err));
        if (l > 0) MOA_TRY(attention_back(a, l, err)); /* nothing is below the first layer */
    }
    MOA_TRY(a->p->vt->download(dev, &a->clamped, b->clamped, sizeof a->clamped, err));
out:
    return s;
}

/* --- an item ------------------------------------------------------------------------------------------------------------- */

static moa_status check(const moa_profile *p, const moa_profile_item *item, const moa_influence *to, moa_err *err) {
    const int32_t most = to->n_tok < p->n_max ? to->n_tok : p->n_max;
    if (item->n < 2 || item->n > most)
        return moa_fail(err, MOA_E_INVALID, "an item of %d tokens; from 2 to %d", item->n, most);
    if (item->supervise_from < 1 || item->supervise_from >= item->n)
        return moa_fail(err, MOA_E_INVALID, "supervised from token %d of %d; from 1 to %d", item->supervise_from,
                        item->n, item->n - 1);
    for (int32_t i = 0; i < item->n; i++)
        if (item->ids[i] < 0 || item->ids[i] >= p->shape->n_vocab)
            return moa_fail(err, MOA_E_INVALID, "token %d has id %d; the vocabulary has %d", i, item->ids[i],
                            p->shape->n_vocab);
    assert(to->n_layer == p->shape->n_layer && to->n_head == p->shape->n_head);
    return MOA_OK;
}

/* n_tok: what the spans are of */
static moa_status upload_spans(const pass *a, int32_t n_tok, moa_err *err) {
    const moa_profile *p = a->p;
    const size_t n = (size_t)p->shape->n_layer * (size_t)p->shape->n_head;
    if (!a->item->rules) return MOA_OK;
    for (size_t i = 0; i < n; i++)
        p->span[i] = moa_span(a->item->rules[i], n_tok);
    return p->vt->upload(p->e->backend, p->at.span, p->span, n * sizeof *p->span, err);
}

static moa_status upload(const pass *a, moa_err *err) {
    const moa_profile *p = a->p;
    const size_t bytes = (size_t)a->n * sizeof *p->host;
    int32_t *ids = p->host, *pos = ids + a->n, *target = pos + a->n;
    moa_status s = MOA_OK;
    for (int32_t i = 0; i < a->n; i++) {
        ids[i] = a->item->ids[i];
        pos[i] = i;
        target[i] = i + 1 < a->n ? a->item->ids[i + 1] : 0;
    }
    MOA_TRY(p->vt->upload(p->e->backend, p->at.ids, ids, bytes, err));
    MOA_TRY(p->vt->upload(p->e->backend, p->at.pos, pos, bytes, err));
    MOA_TRY(p->vt->upload(p->e->backend, p->at.target, target, bytes, err));
out:
    return s;
}

/* the item's blocks (nb of its own) into the sums' (to->nb) */
static void add_item(const pass *a, moa_influence *to) {
    const moa_profile *p = a->p;
    const int64_t heads = (int64_t)to->n_layer * to->n_head, nb = a->nb, nb_to = to->nb;
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t q = 0; q < nb; q++)
            for (int64_t k = 0; k <= q; k++) {
                to->abs[(h * nb_to + q) * nb_to + k] += p->abs[(h * nb + q) * nb + k];
                to->sum[(h * nb_to + q) * nb_to + k] += p->sum[(h * nb + q) * nb + k];
            }
        for (int64_t w = 0; w <= nb_to; w++) /* beyond the item's blocks: nothing more is cut */
            to->joint[h * (nb_to + 1) + w] += p->joint[h * (nb + 1) + (w < nb ? w : nb)];
    }
    to->n_item++;
    to->n_supervised += a->n - a->item->supervise_from;
    to->n_clamped += a->clamped;
    to->loss += a->loss;
}

moa_status moa_profile_add(moa_profile *p, const moa_profile_item *item, moa_influence *to, double *loss,
                           moa_err *err) {
    pass a = {.p = p, .item = item, .n = item->n, .nb = blocks_of(item->n)};
    moa_status s = MOA_OK;
    MOA_TRY(check(p, item, to, err));
    MOA_TRY(upload(&a, err));
    MOA_TRY(upload_spans(&a, to->n_tok, err));
    MOA_TRY(forward(&a, err));
    MOA_TRY(head(&a, err));
    MOA_TRY(backward(&a, err));
    add_item(&a, to);
    if (loss) *loss = a.loss;
out:
    return s;
}
