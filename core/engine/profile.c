/* The forward pass keeps x, the input of every layer; the backward pass runs the layers from the last to the first, each time
 * computing again what is between x and the layer's output. dx is the gradient of the residual stream, one buffer all the way:
 *
 *   x --+--> n = norm(x) --> q, k, v --> rope --> attention --> o --> Wo --+--> y --+--> m = norm(y) --> gate, up --> act --> Wdown --+--> next x
 *       +-----------------------------------------------------------------+        +--------------------------------------------------+
 *
 *   d_act = dx Wdown     d_gate, d_up from silu_mul     dm = d_gate Wgate + d_up Wup      dx += norm'(y) dm
 *   d_o   = dx Wo        influence; dq, dk, dv          dn = dq Wq + dk Wk + dv Wv        dx += norm'(x) dn
 *
 * What is between x and the output takes the memory of some ten times x. The layers from first_kept on keep it, as many as the device
 * has memory for, and are not computed again: a third of the products less.
 *
 * Gradients are GAIN times their size, so that those of tokens long before the answer are still within half precision, whose products
 * then need no scale of their own; sums are divided by it at the end. The maps of a layer are written to memory of the host by the device itself: nobody waits for them.
 *
 * Several items go through the layers together, one after the other in the rows of all buffers; attention alone takes them apart.
 *
 * The head of the model goes in chunks of rows, so that only ROWS_BYTES of logits exist at a time. Only rows that predict a
 * supervised token have a loss; the others have gradients through the layers above all the same, and count. */
#include "core/engine/profile.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

enum { ALIGN = 256, BLOCK = MOA_PAGE_TOK };
enum { ADD_THREADS = 8 }; /* of adding maps to the sums */
enum { ROOM_TOK = 16384 };   /* tokens that a GPU likes to have at once: more make no product faster */
enum { LAYERS_AHEAD = 8 }; /* that are queued without waiting, ^C is so far away */
#define ROWS_BYTES ((size_t)64 << 20)
#define GAIN 0x1p22                         /* a power of two */
#define RESERVE_BYTES ((uint64_t)3 << 30) /* of a device's free memory: workspace of its operations */

/* what a layer has computed from x, device */
typedef struct between {
    float *y;        /* (n, d_model) */
    float *q, *o;    /* (n, n_head, d_head) */
    float *k, *v;    /* (n, n_head_kv, d_head) */
    float *lse;      /* (n, n_head) */
    float *gate, *up; /* (n, d_ff) */
} between;

/* device; n: tokens at most */
typedef struct buffers {
    int32_t *ids, *pos, *target; /* (n) */
    float *x;                    /* (n_layer + 1, n, d_model): inputs of the layers, and what the last one gives */
    float *h, *dx;               /* (n, d_model) */
    float *d_o, *dq;             /* (n, n_head, d_head) */
    float *dk, *dv;              /* (n, n_head_kv, d_head) */
    float *act;                  /* (n, d_ff) */
    float *logits, *loss;        /* (n_row, n_vocab), (n) */
    int32_t *clamped;            /* (1) */
    int32_t *span;               /* (n_layer, n_head) */
} buffers;

struct moa_profile {
    moa_engine *e; /* borrowed */
    const moa_backend_vtable *vt;
    const moa_shape *shape;
    int32_t n_max, n_room, n_row; /* tokens of an item; of all items under way; rows of logits */
    int32_t first_kept; /* layer */
    moa_dev_mem mem;
    buffers at;
    between *layers; /* (n_layer): those before first_kept all the same memory */
    int32_t *host;            /* (3 n_room) ids, positions, targets */
    int32_t *span;            /* (n_layer, n_head) of the item under way */
    float *loss;              /* (n_room) */
    float *maps;   /* shared with the device: of all layers of the items under way */
    float *d_maps; /* the device's name of maps */
    size_t n_maps; /* numbers there is room for */
    struct part *parts; /* (n_room): the items under way */
};

/* an item under way */
typedef struct part {
    const moa_profile_item *item;
    int32_t first, n, nb;     /* its rows, in all buffers; its blocks */
    size_t abs, sum, joint;   /* where its maps begin: (n_layer, n_head, nb, nb) twice, (n_layer, n_head, nb + 1) */
    double loss;
} part;

/* the items under way */
typedef struct pass {
    moa_profile *p;
    const moa_profile_item *item; /* the first, whose word counts for all */
    int32_t n_part, n, done;      /* n: rows of all */
    double since; /* what is timed: the end of the last operation */
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

/* gate and up come last: the logits may lie there */
static void lay_between(layout *l, const moa_shape *shape, size_t n, between *b) {
    const size_t d = (size_t)shape->d_model, f = (size_t)shape->d_ff, nh = (size_t)shape->n_head,
                 q = nh * (size_t)shape->d_head, kv = (size_t)shape->n_head_kv * (size_t)shape->d_head;
    b->y = place(l, n, d);
    b->q = place(l, n, q);
    b->o = place(l, n, q);
    b->k = place(l, n, kv);
    b->v = place(l, n, kv);
    b->lse = place(l, n, nh);
    b->gate = place(l, n, f);
    b->up = place(l, n, f);
}

/* layers (n_layer), or NULL: not wanted */
static layout lay(const moa_profile *p, char *base, buffers *b, between *layers) {
    const moa_shape *shape = p->shape;
    const size_t n = (size_t)p->n_room, d = (size_t)shape->d_model, f = (size_t)shape->d_ff,
                 nh = (size_t)shape->n_head, q = nh * (size_t)shape->d_head,
                 kv = (size_t)shape->n_head_kv * (size_t)shape->d_head;
    between one;
    layout l = {.base = base, .ok = true};
    b->ids = place(&l, n, 1);
    b->pos = place(&l, n, 1);
    b->target = place(&l, n, 1);
    b->x = place(&l, ((size_t)shape->n_layer + 1) * n, d);
    b->h = place(&l, n, d);
    b->dx = place(&l, n, d);
    b->d_o = place(&l, n, q);
    b->dq = place(&l, n, q);
    b->dk = place(&l, n, kv);
    b->dv = place(&l, n, kv);
    b->loss = place(&l, n, 1);
    b->clamped = place(&l, 1, 1);
    b->span = place(&l, (size_t)shape->n_layer, nh);
    for (int32_t i = p->first_kept > 0 ? p->first_kept - 1 : 0; i < shape->n_layer; i++) {
        lay_between(&l, shape, n, &one);
        for (int32_t k = i < p->first_kept ? 0 : i; layers && k <= i; k++)
            layers[k] = one;
    }
    layout head = l; /* the logits and the FFN's rows are never there at the same time */
    b->logits = place(&head, (size_t)p->n_row, (size_t)shape->n_vocab);
    b->act = place(&l, n, f);
    if (head.size > l.size) l.size = head.size;
    l.ok = l.ok && head.ok;
    return l;
}

/* bytes of what one layer keeps; 0: does not fit a size */
static uint64_t between_bytes(const moa_profile *p) {
    layout l = {.ok = true};
    between unused;
    lay_between(&l, p->shape, (size_t)p->n_room, &unused);
    return l.ok ? l.size : 0;
}

static int32_t logit_rows(const moa_shape *shape, int32_t n_max) {
    const size_t rows = ROWS_BYTES / ((size_t)shape->n_vocab * sizeof(float));
    return rows < 1 ? 1 : rows < (size_t)n_max ? (int32_t)rows : n_max;
}

uint64_t moa_profile_need(const moa_engine *e, int32_t n_tok_max) {
    const moa_shape *shape = &e->model->shape;
    const moa_profile p = {
        .shape = shape, .n_room = n_tok_max, .n_row = logit_rows(shape, n_tok_max), .first_kept = shape->n_layer};
    buffers unused;
    const layout l = lay(&p, NULL, &unused, NULL);
    return l.ok ? l.size : 0;
}

int32_t moa_profile_kept(const moa_profile *p) {
    return p->shape->n_layer - p->first_kept;
}

static bool has_gradients(const moa_backend_vtable *vt) {
    bool all = true;
#define X(name, text) all = all && vt->name;
    MOA_BWD_MAP(X)
#undef X
    return all && vt->share;
}

static moa_status open_host(moa_profile *p, moa_err *err) {
    const size_t n = (size_t)p->n_room, nb = (size_t)blocks_of(p->n_max), most = (n - 1) / (size_t)p->n_max + 1, layers = (size_t)p->shape->n_layer,
                 heads = layers * (size_t)p->shape->n_head;
    size_t bytes = 0;
    void *host = NULL, *device = NULL;
    if (moa_size_mul(heads, 2 * nb * nb + nb + 1, &p->n_maps) && moa_size_mul(p->n_maps, most, &p->n_maps) &&
        moa_size_mul(p->n_maps, sizeof(float), &bytes)) {
        p->parts = calloc(n, sizeof *p->parts);
        p->host = malloc(3 * n * sizeof *p->host);
        p->span = malloc(heads * sizeof *p->span);
        p->loss = malloc(n * sizeof *p->loss);
        p->layers = calloc(layers, sizeof *p->layers);
    }
    if (!p->host || !p->span || !p->loss || !p->layers || !p->parts)
        return moa_fail(err, MOA_E_MEMORY, "no memory for the influence of %zu heads at %d tokens", heads, p->n_max);
    const moa_status s = p->vt->share(p->e->backend, bytes, &host, &device, err);
    p->maps = host;
    p->d_maps = device;
    return s;
}

/* what a GPU has to spare; of a CPU nothing: its memory is everybody's */
static uint64_t spare_bytes(const moa_profile *p) {
    moa_device_info info = {0};
    if (p->vt->info(p->e->backend, &info, NULL) != MOA_OK || info.sm == 0) return 0;
    return info.free_bytes > RESERVE_BYTES ? info.free_bytes - RESERVE_BYTES : 0;
}

/* as much room as lets every layer be kept; and what is left for keeping layers */
static void choose(moa_profile *p, const moa_profile_config *c, uint64_t *keep_bytes) {
    const uint64_t spare = spare_bytes(p), n_layer = (uint64_t)p->shape->n_layer;
    p->n_room = c->n_room > p->n_max ? c->n_room : p->n_max;
    for (int32_t room = ROOM_TOK; c->n_room == 0 && room > p->n_room; room /= 2) {
        moa_profile wide = *p;
        wide.n_room = room;
        const uint64_t need = moa_profile_need(p->e, room), all = between_bytes(&wide);
        if (need > 0 && all > 0 && need <= spare && (spare - need) / all >= n_layer) p->n_room = room;
    }
    const uint64_t need = moa_profile_need(p->e, p->n_room);
    *keep_bytes = c->keep_bytes != MOA_PROFILE_KEEP ? c->keep_bytes : spare > need ? spare - need : 0;
}

/* as many layers kept as keep_bytes hold; where the device has not that much in one piece, half as many, and so on */
static moa_status open_device(moa_profile *p, uint64_t keep_bytes, moa_err *err) {
    const uint64_t each = between_bytes(p), n_layer = (uint64_t)p->shape->n_layer;
    const uint64_t fit = each > 0 ? keep_bytes / each : 0;
    moa_status s = MOA_OK;
    for (int32_t n_kept = (int32_t)(fit < n_layer ? fit : n_layer);; n_kept /= 2) {
        p->first_kept = p->shape->n_layer - n_kept;
        const layout need = lay(p, NULL, &p->at, NULL);
        if (!need.ok)
            s = moa_fail(err, MOA_E_MEMORY, "the activations of %d tokens do not fit the address space", p->n_room);
        else
            s = moa_engine_alloc(p->e, need.size, &p->mem, err);
        if (s != MOA_E_MEMORY || n_kept == 0) break;
    }
    if (s == MOA_OK) (void)lay(p, p->mem.data, &p->at, p->layers);
    return s;
}

moa_status moa_profile_open_as(moa_profile **out, moa_engine *e, const moa_profile_config *c, moa_err *err) {
    const moa_shape *shape = &e->model->shape;
    const int32_t n_tok_max = c->n_tok_max;
    uint64_t keep_bytes = 0;
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
    *p = (moa_profile){.e = e, .vt = e->vt, .shape = shape, .n_max = n_tok_max, .n_row = logit_rows(shape, n_tok_max)};
    choose(p, c, &keep_bytes);
    MOA_TRY(open_host(p, err));
    MOA_TRY(open_device(p, keep_bytes, err));
    *out = p;
    p = NULL;
out:
    moa_profile_close(&p);
    return s;
}

moa_status moa_profile_open(moa_profile **out, moa_engine *e, int32_t n_tok_max, moa_err *err) {
    return moa_profile_open_as(out, e, &(moa_profile_config){.n_tok_max = n_tok_max, .keep_bytes = MOA_PROFILE_KEEP}, err);
}

void moa_profile_close(moa_profile **out) {
    moa_profile *p = *out;
    if (!p) return;
    moa_engine_free(p->e, &p->mem);
    free(p->host);
    free(p->span);
    free(p->loss);
    free(p->layers);
    free(p->parts);
    if (p->maps) p->vt->unshare(p->e->backend, p->maps);
    free(p);
    *out = NULL;
}

/* --- time ------------------------------------------------------------------------------------------------------------- */

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* the time since the last operation was of this kind; it waits for the device, and does nothing where no times are wanted */
static moa_status spent(pass *a, moa_profile_kind kind, moa_err *err) {
    if (!a->item->seconds) return MOA_OK;
    const moa_status s = a->p->vt->sync(a->p->e->backend, err);
    const double now = now_s();
    a->item->seconds[kind] += now - a->since;
    a->since = now;
    return s;
}

/* --- operations, with what does not change filled in ------------------------------------------------------------------ */

static moa_status multiply(pass *a, const float *x, const moa_dev_weight *w, const moa_dev_weight *bias,
                           float *y, moa_err *err) {
    const moa_status s = a->p->vt->matmul(
        a->p->e->backend, &(moa_args_matmul){.x = x, .w = w, .bias = bias, .y = y, .n_tok = a->n}, err);
    return s == MOA_OK ? spent(a, MOA_PROFILE_PRODUCTS, err) : s;
}

/* y += x W^T */
static moa_status multiply_add(pass *a, const float *x, const moa_dev_weight *w, float *y, moa_err *err) {
    const moa_status s = a->p->vt->matmul(
        a->p->e->backend, &(moa_args_matmul){.x = x, .w = w, .y = y, .n_tok = a->n, .accumulate = true}, err);
    return s == MOA_OK ? spent(a, MOA_PROFILE_PRODUCTS, err) : s;
}

static moa_status back(pass *a, const float *dy, const moa_dev_weight *w, float *dx, bool accumulate,
                       moa_err *err) {
    const moa_status s = a->p->vt->matmul_t(
        a->p->e->backend,
        &(moa_args_matmul_t){.dy = dy, .w = w, .dx = dx, .n_tok = a->n, .accumulate = accumulate}, err);
    return s == MOA_OK ? spent(a, MOA_PROFILE_PRODUCTS, err) : s;
}

static moa_status normalise(pass *a, const float *x, const moa_dev_weight *w, float *y, int32_t n,
                            moa_err *err) {
    const moa_status s = a->p->vt->rmsnorm(a->p->e->backend,
                                           &(moa_args_rmsnorm){.x = x,
                                                               .w = w,
                                                               .y = y,
                                                               .n_tok = n,
                                                               .n = a->p->shape->d_model,
                                                               .eps = a->p->shape->rms_eps},
                                           err);
    return s == MOA_OK ? spent(a, MOA_PROFILE_ROWS, err) : s;
}

/* dx of n rows; accumulate: the residual's gradient is there */
static moa_status normalise_back(pass *a, const moa_args_rmsnorm_bwd *args, moa_err *err) {
    moa_args_rmsnorm_bwd all = *args;
    all.n = a->p->shape->d_model;
    all.eps = a->p->shape->rms_eps;
    const moa_status s = a->p->vt->rmsnorm_bwd(a->p->e->backend, &all, err);
    return s == MOA_OK ? spent(a, MOA_PROFILE_ROWS, err) : s;
}

/* sign -1: back, the gradient's way */
static moa_status rotate(pass *a, float *x, int32_t n_head, float sign, moa_err *err) {
    const moa_shape *shape = a->p->shape;
    const moa_status s = a->p->vt->rope(a->p->e->backend,
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
    return s == MOA_OK ? spent(a, MOA_PROFILE_ROWS, err) : s;
}

static float *layer_input(pass *a, int32_t layer) {
    return a->p->at.x + (int64_t)layer * a->p->n_room * a->p->shape->d_model;
}

static size_t stream_bytes(pass *a) {
    return (size_t)a->n * (size_t)a->p->shape->d_model * sizeof(float);
}

static const between *between_of(const pass *a, int32_t layer) {
    return &a->p->layers[layer];
}

/* the layer's q, k, v, o and log-sum-exp of a part */
static moa_full full_of(pass *a, int32_t layer, const part *t) {
    const moa_shape *shape = a->p->shape;
    const between *m = between_of(a, layer);
    const int64_t q = (int64_t)t->first * shape->n_head * shape->d_head, kv = (int64_t)t->first * shape->n_head_kv * shape->d_head;
    return (moa_full){.q = m->q + q,
                      .k = m->k + kv,
                      .v = m->v + kv,
                      .n_tok = t->n,
                      .n_head = shape->n_head,
                      .n_head_kv = shape->n_head_kv,
                      .d_head = shape->d_head,
                      .scale = moa_attn_scale(shape),
                      .span = a->item->rules ? a->p->at.span + (int64_t)layer * shape->n_head : NULL};
}
static float *o_of(pass *a, int32_t layer, const part *t) {
    return between_of(a, layer)->o + (int64_t)t->first * a->p->shape->n_head * a->p->shape->d_head;
}
static float *lse_of(pass *a, int32_t layer, const part *t) {
    return between_of(a, layer)->lse + (int64_t)t->first * a->p->shape->n_head;
}

static moa_status copy_stream(pass *a, float *to, const float *from, moa_err *err) {
    const moa_status s = a->p->vt->copy(a->p->e->backend, to, from, stream_bytes(a), err);
    return s == MOA_OK ? spent(a, MOA_PROFILE_ROWS, err) : s;
}

static moa_status step(pass *a, moa_err *err) {
    const moa_profile_item *item = a->item;
    const int32_t total = 2 * a->p->shape->n_layer + 1;
    if (item->cancelled && item->cancelled(item->user))
        return moa_fail(err, MOA_E_CANCELLED, "interrupted after %d of %d layers of %d tokens", a->done, total, a->n);
    const moa_status s = a->done % LAYERS_AHEAD == 0 ? a->p->vt->sync(a->p->e->backend, err) : MOA_OK;
    if (item->progress && a->done > 0) item->progress(item->user, a->done, total);
    a->done++;
    return s;
}

/* --- forward ---------------------------------------------------------------------------------------------------------- */

/* x of the layer -> q, k, v, o, lse, and y = x + o Wo^T */
static moa_status attention(pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const moa_shape *shape = a->p->shape;
    const between *m = between_of(a, l);
    const float *x = layer_input(a, l);
    float *h = a->p->at.h;
    moa_status s = MOA_OK;
    MOA_TRY(normalise(a, x, w->attn_norm, h, a->n, err));
    MOA_TRY(multiply(a, h, w->wq, w->bq, m->q, err));
    MOA_TRY(multiply(a, h, w->wk, w->bk, m->k, err));
    MOA_TRY(multiply(a, h, w->wv, w->bv, m->v, err));
    MOA_TRY(rotate(a, m->q, shape->n_head, 1, err));
    MOA_TRY(rotate(a, m->k, shape->n_head_kv, 1, err));
    for (const part *t = a->p->parts; t < a->p->parts + a->n_part; t++)
        MOA_TRY(a->p->vt->attn_full(
            a->p->e->backend,
            &(moa_args_attn_full){.in = full_of(a, l, t), .o = o_of(a, l, t), .lse = lse_of(a, l, t)}, err));
    MOA_TRY(spent(a, MOA_PROFILE_ATTENTION, err));
    MOA_TRY(copy_stream(a, m->y, x, err));
    MOA_TRY(multiply_add(a, m->o, w->wo, m->y, err));
out:
    return s;
}

/* y -> gate, up */
static moa_status gates(pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const between *m = between_of(a, l);
    float *h = a->p->at.h;
    moa_status s = MOA_OK;
    MOA_TRY(normalise(a, m->y, w->ffn_norm, h, a->n, err));
    MOA_TRY(multiply(a, h, w->gate, NULL, m->gate, err));
    MOA_TRY(multiply(a, h, w->up, NULL, m->up, err));
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
        const between *m = between_of(a, l);
        MOA_TRY(step(a, err));
        MOA_TRY(attention(a, l, err));
        MOA_TRY(gates(a, l, err));
        MOA_TRY(vt->silu_mul(
            dev, &(moa_args_silu_mul){m->gate, m->up, b->act, (int64_t)a->n * shape->d_ff}, err));
        MOA_TRY(spent(a, MOA_PROFILE_ROWS, err));
        MOA_TRY(copy_stream(a, layer_input(a, l + 1), m->y, err));
        MOA_TRY(multiply_add(a, b->act, a->p->e->layers[l].down, layer_input(a, l + 1), err));
    }
out:
    return s;
}

/* --- the loss ----------------------------------------------------------------------------------------------------------- */

/* rows row .. row + n - 1 of the last x, of a part: their losses, and their gradients into dx */
static moa_status head_rows(pass *a, const part *t, int32_t row, int32_t n, moa_err *err) {
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
                                                        .scale = (float)(GAIN / (t->n - t->item->supervise_from)),
                                                        .margin = t->item->margin},
                              err));
    MOA_TRY(vt->matmul_t(e->backend,
                         &(moa_args_matmul_t){.dy = b->logits, .w = e->output, .dx = b->h, .n_tok = n}, err));
    MOA_TRY(spent(a, MOA_PROFILE_HEAD, err));
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
    moa_backend *dev = a->p->e->backend;
    moa_status s = MOA_OK;
    MOA_TRY(step(a, err));
    MOA_TRY(a->p->vt->zero(dev, b->dx, stream_bytes(a), err));
    for (const part *t = a->p->parts; t < a->p->parts + a->n_part; t++) {
        const int32_t end = t->first + t->n - 1;
        for (int32_t row = t->first + t->item->supervise_from - 1; row < end; row += a->p->n_row)
            MOA_TRY(head_rows(a, t, row, end - row < a->p->n_row ? end - row : a->p->n_row, err));
    }
    for (part *t = a->p->parts; t < a->p->parts + a->n_part; t++) {
        const int32_t from = t->item->supervise_from - 1, n_loss = t->n - 1 - from;
        MOA_TRY(a->p->vt->download(dev, a->p->loss, b->loss + t->first + from, (size_t)n_loss * sizeof *a->p->loss, err));
        t->loss = 0;
        for (int32_t i = 0; i < n_loss; i++)
            t->loss += a->p->loss[i] / n_loss;
        if (!isfinite(t->loss))
            MOA_TRY(moa_fail(err, MOA_E_FAILED, "the loss over %d tokens is not a number", n_loss));
    }
out:
    return s;
}

/* --- backward ------------------------------------------------------------------------------------------------------------ */

/* dx of the layer's output -> dx of y; gate and up become their gradients */
static moa_status ffn_back(pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const buffers *b = &a->p->at;
    const between *m = between_of(a, l);
    moa_status s = MOA_OK;
    MOA_TRY(back(a, b->dx, w->down, b->act, false, err));
    MOA_TRY(a->p->vt->silu_mul_bwd(a->p->e->backend,
                                   &(moa_args_silu_mul_bwd){.gate = m->gate,
                                                            .up = m->up,
                                                            .dy = b->act,
                                                            .d_gate = m->gate,
                                                            .d_up = m->up,
                                                            .n = (int64_t)a->n * a->p->shape->d_ff},
                                   err));
    MOA_TRY(spent(a, MOA_PROFILE_ROWS, err));
    MOA_TRY(back(a, m->gate, w->gate, b->h, false, err));
    MOA_TRY(back(a, m->up, w->up, b->h, true, err));
    MOA_TRY(normalise_back(
        a,
        &(moa_args_rmsnorm_bwd){
            .x = m->y, .w = w->ffn_norm, .dy = b->h, .dx = b->dx, .n_tok = a->n, .accumulate = true},
        err));
out:
    return s;
}

/* a part's influence from d_o, to the host */
static moa_status influence(pass *a, int32_t l, const part *t, moa_err *err) {
    const moa_profile *p = a->p;
    const moa_shape *shape = p->shape;
    const size_t map = (size_t)shape->n_head * (size_t)t->nb * (size_t)t->nb, curve = (size_t)shape->n_head * ((size_t)t->nb + 1);
    return p->vt->attn_influence(
        p->e->backend,
        &(moa_args_attn_influence){.in = full_of(a, l, t),
                                   .o = o_of(a, l, t),
                                   .lse = lse_of(a, l, t),
                                   .d_o = p->at.d_o + (int64_t)t->first * shape->n_head * shape->d_head,
                                   .abs = p->d_maps + t->abs + (size_t)l * map,
                                   .sum = p->d_maps + t->sum + (size_t)l * map,
                                   .joint = p->d_maps + t->joint + (size_t)l * curve,
                                   .clamped = p->at.clamped},
        err);
}

/* a part's d_o -> dq, dk, dv; right after its influence, of which a backend may use what it has made */
static moa_status attention_back(pass *a, int32_t l, const part *t, moa_err *err) {
    const buffers *b = &a->p->at;
    const moa_shape *shape = a->p->shape;
    const int64_t q = (int64_t)t->first * shape->n_head * shape->d_head, kv = (int64_t)t->first * shape->n_head_kv * shape->d_head;
    return a->p->vt->attn_bwd(a->p->e->backend,
                              &(moa_args_attn_bwd){.in = full_of(a, l, t),
                                                   .o = o_of(a, l, t),
                                                   .lse = lse_of(a, l, t),
                                                   .d_o = b->d_o + q,
                                                   .dq = b->dq + q,
                                                   .dk = b->dk + kv,
                                                   .dv = b->dv + kv},
                              err);
}

/* dq, dk, dv -> dx of the layer's input */
static moa_status qkv_back(pass *a, int32_t l, moa_err *err) {
    const moa_engine_layer *w = &a->p->e->layers[l];
    const buffers *b = &a->p->at;
    const moa_shape *shape = a->p->shape;
    moa_status s = MOA_OK;
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
        if (l < a->p->first_kept) {
            MOA_TRY(attention(a, l, err));
            MOA_TRY(gates(a, l, err));
        }
        MOA_TRY(ffn_back(a, l, err));
        MOA_TRY(back(a, b->dx, a->p->e->layers[l].wo, b->d_o, false, err));
        for (const part *t = a->p->parts; t < a->p->parts + a->n_part; t++) {
            MOA_TRY(influence(a, l, t, err));
            if (l > 0) MOA_TRY(attention_back(a, l, t, err)); /* nothing is below the first layer */
        }
        MOA_TRY(spent(a, MOA_PROFILE_INFLUENCE, err));
        if (l > 0) MOA_TRY(qkv_back(a, l, err));
    }
    MOA_TRY(a->p->vt->download(dev, &a->clamped, b->clamped, sizeof a->clamped, err));
out:
    return s;
}

/* --- items ------------------------------------------------------------------------------------------------------------- */

static size_t maps_of(const moa_profile *p, int32_t n) {
    const size_t heads = (size_t)p->shape->n_layer * (size_t)p->shape->n_head, nb = (size_t)blocks_of(n);
    return heads * (2 * nb * nb + nb + 1);
}

int32_t moa_profile_take(const moa_profile *p, const moa_profile_item *items, int32_t n_item) {
    int64_t tok = 0;
    size_t maps = 0;
    int32_t k = 0;
    for (; k < n_item; k++) {
        tok += items[k].n;
        if (items[k].n < 2 || tok > p->n_room || items[k].rules != items[0].rules) break;
        maps += maps_of(p, items[k].n);
        if (maps > p->n_maps) break;
    }
    return k > 0 ? k : n_item > 0;
}

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

/* places of the items' rows and maps */
static moa_status lay_parts(pass *a, const moa_profile_item *items, const moa_influence *to, moa_err *err) {
    moa_profile *p = a->p;
    const size_t heads = (size_t)p->shape->n_layer * (size_t)p->shape->n_head;
    size_t at = 0;
    for (int32_t i = 0; i < a->n_part; i++) {
        const moa_status s = check(p, &items[i], to, err);
        if (s != MOA_OK) return s;
        const size_t nb = (size_t)blocks_of(items[i].n), map = heads * nb * nb;
        p->parts[i] = (part){.item = &items[i], .first = a->n, .n = items[i].n, .nb = (int32_t)nb, .abs = at, .sum = at + map, .joint = at + 2 * map};
        a->n += items[i].n;
        at += maps_of(p, items[i].n);
    }
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
    for (const part *t = p->parts; t < p->parts + a->n_part; t++)
        for (int32_t i = 0; i < t->n; i++) {
            ids[t->first + i] = t->item->ids[i];
            pos[t->first + i] = i;
            target[t->first + i] = i + 1 < t->n ? t->item->ids[i + 1] : 0;
        }
    MOA_TRY(p->vt->upload(p->e->backend, p->at.ids, ids, bytes, err));
    MOA_TRY(p->vt->upload(p->e->backend, p->at.pos, pos, bytes, err));
    MOA_TRY(p->vt->upload(p->e->backend, p->at.target, target, bytes, err));
out:
    return s;
}

/* heads from .. end - 1 of all parts to the sums */
typedef struct adding {
    const pass *a;
    moa_influence *to;
    int64_t from, end;
    pthread_t thread;
    bool started;
} adding;

/* the item's blocks (nb of its own) into the sums' (to->nb) */
static void add_head(const moa_profile *p, const part *t, moa_influence *to, int64_t h) {
    const int64_t nb = t->nb, nb_to = to->nb;
    const float *abs = p->maps + t->abs + h * nb * nb, *sum = p->maps + t->sum + h * nb * nb, *joint = p->maps + t->joint + h * (nb + 1);
    for (int64_t q = 0; q < nb; q++)
        for (int64_t k = 0; k <= q; k++) {
            to->abs[(h * nb_to + q) * nb_to + k] += abs[q * nb + k] * (1 / GAIN);
            to->sum[(h * nb_to + q) * nb_to + k] += sum[q * nb + k] * (1 / GAIN);
        }
    for (int64_t w = 0; w <= nb_to; w++) /* beyond the item's blocks: nothing more is cut */
        to->joint[h * (nb_to + 1) + w] += joint[w < nb ? w : nb] * (1 / GAIN);
}

static void *add_heads(void *arg) {
    const adding *x = arg;
    for (int64_t h = x->from; h < x->end; h++)
        for (int32_t i = 0; i < x->a->n_part; i++)
            add_head(x->a->p, &x->a->p->parts[i], x->to, h);
    return NULL;
}

/* by several threads: the sums of a head are one thread's, so that they come out alike */
static void add_parts(const pass *a, moa_influence *to) {
    const int64_t heads = (int64_t)to->n_layer * to->n_head;
    const int32_t n_thread = heads >= ADD_THREADS ? ADD_THREADS : 1;
    adding x[ADD_THREADS];
    for (int32_t i = 0; i < n_thread; i++)
        x[i] = (adding){.a = a, .to = to, .from = heads * i / n_thread, .end = heads * (i + 1) / n_thread};
    for (int32_t i = 1; i < n_thread; i++)
        x[i].started = pthread_create(&x[i].thread, NULL, add_heads, &x[i]) == 0;
    for (int32_t i = 0; i < n_thread; i++)
        if (!x[i].started) add_heads(&x[i]);
    for (int32_t i = 1; i < n_thread; i++)
        if (x[i].started) (void)pthread_join(x[i].thread, NULL);
    for (int32_t i = 0; i < a->n_part; i++) {
        const part *t = &a->p->parts[i];
        to->n_item++;
        to->n_supervised += t->n - t->item->supervise_from;
        to->loss += t->loss;
    }
    to->n_clamped += a->clamped;
}

moa_status moa_profile_add_all(moa_profile *p, const moa_profile_item *items, int32_t n_item, moa_influence *to, double *loss,
                               moa_err *err) {
    pass a = {.p = p, .item = items, .n_part = n_item, .since = now_s()};
    moa_status s = MOA_OK;
    if (n_item < 1 || (n_item > 1 && moa_profile_take(p, items, n_item) < n_item))
        return moa_fail(err, MOA_E_INVALID, "%d items do not go together in %d tokens", n_item, p->n_room);
    MOA_TRY(lay_parts(&a, items, to, err));
    MOA_TRY(upload(&a, err));
    MOA_TRY(upload_spans(&a, to->n_tok, err));
    MOA_TRY(forward(&a, err));
    MOA_TRY(head(&a, err));
    MOA_TRY(backward(&a, err));
    add_parts(&a, to);
    for (int32_t i = 0; loss && i < n_item; i++)
        loss[i] = p->parts[i].loss;
    MOA_TRY(spent(&a, MOA_PROFILE_HOST, err));
out:
    return s;
}

moa_status moa_profile_add(moa_profile *p, const moa_profile_item *item, moa_influence *to, double *loss,
                           moa_err *err) {
    return moa_profile_add_all(p, item, 1, to, loss, err);
}
