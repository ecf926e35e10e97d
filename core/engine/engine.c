/* Opening a model on a device: its weights, the workspace of one chunk, the pool of KV pages.
 *
 *   device memory   [weights as the backend packs them] [workspace, one allocation] [pool, one allocation, grows between calls]
 *
 * The workspace is laid out by one function that either counts or hands out addresses, so that what moa_engine_need() says
 * and what is taken cannot differ. The pool is sized before each forward call by the page formula (kv_formula.c): taking a
 * page never has to wait for memory while tokens are under way. When the pool is empty it is fitted exactly, so that a
 * narrower plan gives memory back to the device. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

enum { CHUNK_DEFAULT = 512, CHUNK_SHARE = 16, ALIGN = 256 }; /* the workspace takes 1/CHUNK_SHARE of what is free, unless asked to */
#define LOGITS_BYTES ((size_t)16 << 20) /* rows of logits computed at once when every token's are wanted */
#define CAPTURE_LIMIT_DEFAULT ((uint64_t)1 << 30)

/* --- device memory ------------------------------------------------------------------------------------------------------ */

moa_status moa_engine_alloc(moa_engine *e, size_t bytes, moa_dev_mem *out, moa_err *err) {
    assert(!out->data);
    const moa_status s = e->vt->alloc(e->backend, bytes ? bytes : 1, &out->data, err);
    if (s != MOA_OK) {
        out->data = NULL;
        return s;
    }
    out->bytes = bytes;
    e->device_bytes += bytes;
    if (e->device_bytes > e->device_peak) e->device_peak = e->device_bytes;
    return MOA_OK;
}

void moa_engine_free(moa_engine *e, moa_dev_mem *m) {
    if (!m->data) return;
    e->vt->free(e->backend, m->data);
    e->device_bytes -= m->bytes;
    *m = (moa_dev_mem){0};
}

static void pool_moved(moa_engine *e) {
    for (moa_seq *s = e->seqs; s; s = s->next)
        moa_seq_forget_recordings(s);
    for (moa_lanes *l = e->lanes; l; l = moa_lanes_next(l))
        moa_lanes_forget_recordings(l);
}

moa_status moa_engine_reserve(moa_engine *e, int64_t n_pages, bool fit, moa_err *err) {
    if (n_pages < e->held_pages) n_pages = e->held_pages;
    const bool refit = fit && e->pages.used == 0 && e->pages.capacity != n_pages;
    if (e->pages.capacity >= n_pages && !refit) return MOA_OK;
    size_t bytes;
    if (n_pages > INT32_MAX || !moa_size_mul((size_t)n_pages, e->page_bytes, &bytes))
        return moa_fail(err, MOA_E_MEMORY, "%lld KV pages of %zu bytes are more than can be counted",
                        (long long)n_pages, e->page_bytes);
    pool_moved(e);
    if (refit) {
        moa_engine_free(e, &e->pool);
        moa_kv_pages_close(&e->pages);
    }
    moa_kv_pages fresh = {0};
    moa_dev_mem pool = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_engine_alloc(e, bytes, &pool, err));
    if (e->pages.capacity > 0) {
        MOA_TRY(
            e->vt->copy(e->backend, pool.data, e->pool.data, (size_t)e->pages.capacity * e->page_bytes, err));
        MOA_TRY(e->vt->sync(e->backend, err));
    }
    MOA_TRY(moa_kv_pages_grow(refit ? &fresh : &e->pages, (int32_t)n_pages, err));
    if (refit) e->pages = fresh;
    moa_engine_free(e, &e->pool);
    e->pool = pool;
    return MOA_OK;
out:
    moa_kv_pages_close(&fresh);
    moa_engine_free(e, &pool);
    return s;
}

moa_status moa_engine_hold(moa_engine *e, moa_seq *const *seqs, int32_t n_seq, moa_err *err) {
    int64_t n_pages = 0, extra = 0;
    for (int32_t i = 0; i < n_seq; i++) {
        const moa_seq *s = seqs[i];
        if (s->n_reserved == 0)
            return moa_fail(err, MOA_E_INVALID, "sequence %d of %d has no plan yet", i, n_seq);
        const moa_kv_course prefill = {.shape = &e->model->shape,
                                       .widest = s->widest,
                                       .n = s->n_reserved,
                                       .chunk = e->chunk,
                                       .n_reserved = s->n_reserved};
        const int64_t most = moa_lanes_pages_most(s), peak = moa_kv_pages_peak(&prefill);
        n_pages += most;
        if (peak - most > extra) extra = peak - most;
    }
    e->held_pages = n_seq > 0 ? n_pages + extra : 0;
    /* nothing held and nothing in use: an empty pool */
    return n_seq > 0 || e->pages.used == 0 ? moa_engine_reserve(e, e->held_pages, true, err) : MOA_OK;
}

/* --- workspace ------------------------------------------------------------------------------------------------------------ */

/* Counts when base is NULL; else also hands out the addresses. */
typedef struct layout {
    char *base;
    size_t size;
    bool ok;
} layout;

static void *place(layout *at, size_t rows, size_t row_elems) {
    size_t bytes = 0;
    at->ok = at->ok && moa_size_mul(rows, row_elems, &bytes) && moa_size_mul(bytes, sizeof(float), &bytes) &&
             moa_size_pad(bytes, ALIGN, &bytes);
    void *p = at->base ? at->base + at->size : NULL;
    at->ok = at->ok && moa_size_add(at->size, bytes, &at->size);
    return p;
}

static layout lay_workspace(const moa_engine *e, char *base, moa_workspace *ws) {
    const moa_shape *shape = &e->model->shape;
    const size_t n = (size_t)e->chunk, d_head = (size_t)shape->d_head;
    layout at = {.base = base, .ok = true};
    ws->in = place(&at, n, 2);
    ws->row_span = place(&at, MOA_GAP_TOK, (size_t)shape->n_head);
    ws->x = place(&at, n, (size_t)shape->d_model);
    ws->h = place(&at, n, (size_t)shape->d_model);
    ws->logits = place(&at, (size_t)e->n_logits, (size_t)shape->n_vocab);
    layout attn = at, ffn = at;
    ws->q = place(&attn, n, (size_t)shape->n_head * d_head);
    ws->o = place(&attn, n, (size_t)shape->n_head * d_head);
    ws->k = place(&attn, n, (size_t)shape->n_head_kv * d_head);
    ws->v = place(&attn, n, (size_t)shape->n_head_kv * d_head);
    ws->gate = place(&ffn, n, (size_t)shape->d_ff);
    ws->up = place(&ffn, n, (size_t)shape->d_ff);
    attn.ok = attn.ok && ffn.ok;
    return attn.size > ffn.size ? attn : (layout){ffn.base, ffn.size, attn.ok};
}

static layout count_workspace(moa_engine *e) {
    const size_t row_bytes = (size_t)e->model->shape.n_vocab * sizeof(float);
    size_t rows = LOGITS_BYTES / row_bytes;
    if (rows < 1) rows = 1;
    e->n_logits = rows < (size_t)e->chunk ? (int32_t)rows : e->chunk;
    return lay_workspace(e, NULL, &e->ws);
}

/* What the device likes, when nobody said otherwise, halved until its workspace is a small part of the memory that the weights
 * left: an H100 multiplies 2048 rows at 580 TFLOP/s, 512 at 400. */
static moa_status choose_chunk(moa_engine *e, moa_err *err) {
    moa_device_info info = {0};
    const moa_status s = e->vt->info(e->backend, &info, err);
    const int32_t n_ctx = e->model->shape.n_ctx;
    if (s != MOA_OK || info.chunk <= e->chunk) return s;
    e->chunk = info.chunk < n_ctx ? info.chunk : n_ctx;
    while (e->chunk > CHUNK_DEFAULT && info.free_bytes > 0 &&
           count_workspace(e).size > info.free_bytes / CHUNK_SHARE)
        e->chunk = e->chunk / 2 > CHUNK_DEFAULT ? e->chunk / 2 : CHUNK_DEFAULT;
    return MOA_OK;
}

static moa_status open_workspace(moa_engine *e, bool asked, moa_err *err) {
    if (!asked) {
        const moa_status chosen = choose_chunk(e, err);
        if (chosen != MOA_OK) return chosen;
    }
    const layout need = count_workspace(e);
    if (!need.ok)
        return moa_fail(err, MOA_E_MEMORY, "the workspace for %d tokens does not fit the address space",
                        e->chunk);
    const moa_status s = moa_engine_alloc(e, need.size, &e->workspace_mem, err);
    if (s != MOA_OK) return s;
    (void)lay_workspace(e, e->workspace_mem.data, &e->ws);
    e->in = malloc(2 * (size_t)e->chunk * sizeof *e->in);
    e->row_span = malloc(MOA_GAP_TOK * (size_t)e->model->shape.n_head * sizeof *e->row_span);
    if (!e->in || !e->row_span)
        return moa_fail(err, MOA_E_MEMORY, "no memory for the ids of %d tokens", e->chunk);
    return MOA_OK;
}

/* --- weights -------------------------------------------------------------------------------------------------------------- */

typedef struct loader {
    moa_engine *e;
    moa_progress_fn progress;
    void *user;
    uint64_t done, total;
    void *made; /* room for the tensor under way of a model whose weights are not in memory */
    size_t made_bytes;
} loader;

/* the weight with data in ld->made: made there, or read from the file */
static moa_status bring(loader *ld, const moa_weight *w, moa_weight *out, moa_err *err) {
    const moa_model *m = ld->e->model;
    if (w->bytes > ld->made_bytes) {
        free(ld->made);
        ld->made_bytes = 0;
        ld->made = aligned_alloc(64, (w->bytes + 63) & ~(size_t)63);
        if (!ld->made)
            return moa_fail(err, MOA_E_MEMORY, "no memory for the %zu bytes of weight %s", w->bytes, w->name);
        ld->made_bytes = w->bytes;
    }
    *out = *w;
    out->data = ld->made;
    out->read = NULL;
    if (!m->make) return w->read(w, 0, w->bytes, ld->made, err);
    m->make(m, w, ld->made);
    return MOA_OK;
}

static moa_status load(loader *ld, const moa_weight *w, moa_dev_weight **out, moa_err *err) {
    moa_engine *e = ld->e;
    if (!w->data && w->bytes == 0) return MOA_OK; /* the model has none */
    moa_weight brought;
    const bool there = w->data || (w->read && e->vt->reads_files);
    if (!there && !w->read && !e->model->make)
        return moa_fail(err, MOA_E_INVALID, "%s: only the header was read, there are no weights to load",
                        w->name);
    moa_status s = there ? MOA_OK : bring(ld, w, &brought, err);
    if (s == MOA_OK) s = e->vt->weight_load(e->backend, there ? w : &brought, w->data != NULL, out, err);
    if (s != MOA_OK) return s;
    e->weight_bytes += w->bytes;
    ld->done += w->bytes;
    if (ld->progress && !ld->progress(ld->user, ld->done < ld->total ? ld->done : ld->total, ld->total))
        return moa_fail(err, MOA_E_CANCELLED, "loading was interrupted");
    return MOA_OK;
}

static moa_status load_layer(loader *ld, const moa_layer *from, moa_engine_layer *to, moa_err *err) {
    const struct {
        const moa_weight *w;
        moa_dev_weight **out;
    } parts[] = {{&from->attn_norm, &to->attn_norm},
                 {&from->wq, &to->wq},
                 {&from->wk, &to->wk},
                 {&from->wv, &to->wv},
                 {&from->bq, &to->bq},
                 {&from->bk, &to->bk},
                 {&from->bv, &to->bv},
                 {&from->wo, &to->wo},
                 {&from->ffn_norm, &to->ffn_norm},
                 {&from->gate, &to->gate},
                 {&from->up, &to->up},
                 {&from->down, &to->down}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const moa_status s = load(ld, parts[i].w, parts[i].out, err);
        if (s != MOA_OK) return s;
    }
    return MOA_OK;
}

static moa_status load_weights(loader *ld, moa_err *err) {
    moa_engine *e = ld->e;
    const moa_model *m = e->model;
    moa_status s = MOA_OK;
    e->layers = calloc((size_t)m->shape.n_layer, sizeof *e->layers);
    if (!e->layers)
        return moa_fail(err, MOA_E_MEMORY, "no memory for the table of %d layers", m->shape.n_layer);
    MOA_TRY(load(ld, &m->embed, &e->embed, err));
    MOA_TRY(load(ld, &m->rope_freqs, &e->rope_freqs, err));
    for (int32_t l = 0; l < m->shape.n_layer; l++)
        MOA_TRY(load_layer(ld, &m->layers[l], &e->layers[l], err));
    MOA_TRY(load(ld, &m->out_norm, &e->out_norm, err));
    if (m->tied)
        e->output = e->embed;
    else
        MOA_TRY(load(ld, &m->output, &e->output, err));
    e->device_bytes += e->weight_bytes;
    e->device_peak = e->device_bytes;
out:
    return s;
}

static void free_weights(moa_engine *e) {
    const moa_backend_vtable *vt = e->vt;
    if (e->output != e->embed) vt->weight_free(e->backend, e->output);
    vt->weight_free(e->backend, e->embed);
    vt->weight_free(e->backend, e->rope_freqs);
    vt->weight_free(e->backend, e->out_norm);
    for (int32_t l = 0; e->layers && l < e->model->shape.n_layer; l++) {
        const moa_engine_layer *y = &e->layers[l];
        moa_dev_weight *all[] = {y->attn_norm, y->wq, y->wk,       y->wv,   y->bq, y->bk,
                                 y->bv,        y->wo, y->ffn_norm, y->gate, y->up, y->down};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            vt->weight_free(e->backend, all[i]);
    }
    free(e->layers);
}

/* --- the engine ------------------------------------------------------------------------------------------------------------ */

static moa_status configure(moa_engine *e, const moa_engine_config *config, moa_err *err) {
    const moa_shape *shape = &e->model->shape;
    const int32_t chunk = config && config->chunk ? config->chunk : CHUNK_DEFAULT;
    if (e->vt->abi != MOA_BACKEND_ABI)
        return moa_fail(err, MOA_E_UNSUPPORTED, "backend %s has interface %u, this program %d", e->vt->name,
                        e->vt->abi, (int)MOA_BACKEND_ABI);
    if (chunk < 1) return moa_fail(err, MOA_E_USAGE, "a chunk of %d tokens; at least 1", chunk);
    e->chunk = chunk < shape->n_ctx ? chunk : shape->n_ctx;
    e->kv_type = config ? config->kv_type : MOA_KV_F16;
    e->capture_limit_bytes =
        config && config->capture_limit_bytes ? config->capture_limit_bytes : CAPTURE_LIMIT_DEFAULT;
    e->page_bytes = moa_kv_page_bytes(e->kv_type, shape->d_head);
    moa_device_info info = {0};
    e->halves = (e->kv_type == MOA_KV_BF16 || e->kv_type == MOA_KV_Q8) && shape->d_head % 8 == 0 &&
                e->vt->info(e->backend, &info, NULL) == MOA_OK && info.prefill_halves;
    return MOA_OK;
}

moa_status moa_engine_open(moa_engine **out, const moa_model *model, moa_backend *backend,
                           const moa_engine_config *config, moa_progress_fn progress, void *user,
                           moa_err *err) {
    moa_status s = MOA_OK;
    moa_engine *e = calloc(1, sizeof *e);
    *out = NULL;
    if (!e) {
        moa_backend_close(&backend);
        return moa_fail(err, MOA_E_MEMORY, "no memory for the engine");
    }
    e->model = model;
    e->backend = backend;
    e->vt = backend->vt;
    loader ld = {.e = e, .progress = progress, .user = user, .total = model->weight_bytes};
    MOA_TRY(configure(e, config, err));
    MOA_TRY(load_weights(&ld, err));
    MOA_TRY(open_workspace(e, config && config->chunk > 0, err));
    MOA_TRY(e->vt->sync(e->backend, err));
    free(ld.made);
    *out = e;
    return MOA_OK;
out:
    free(ld.made);
    moa_engine_close(&e);
    return s;
}

void moa_engine_close(moa_engine **pe) {
    moa_engine *e = *pe;
    if (!e) return;
    assert(!e->seqs && !e->lanes);
    moa_engine_free(e, &e->pool);
    moa_engine_free(e, &e->workspace_mem);
    moa_kv_pages_close(&e->pages);
    free(e->in);
    free(e->row_span);
    free_weights(e);
    moa_backend_close(&e->backend);
    free(e);
    *pe = NULL;
}

const moa_model *moa_engine_model(const moa_engine *e) {
    return e->model;
}
moa_backend *moa_engine_backend(const moa_engine *e) {
    return e->backend;
}
moa_kv_type moa_engine_kv_type(const moa_engine *e) {
    return e->kv_type;
}
uint64_t moa_engine_device_bytes(const moa_engine *e) {
    return e->device_bytes;
}
uint64_t moa_engine_device_peak(const moa_engine *e) {
    return e->device_peak;
}

moa_status moa_engine_need(const moa_engine *e, const moa_rule *rules, int32_t n_reserved, int32_t n_prompt,
                           bool capture, moa_memory_need *out, moa_err *err) {
    const moa_shape *shape = &e->model->shape;
    *out = (moa_memory_need){0};
    if (n_reserved < 1 || n_reserved > shape->n_ctx || n_prompt < 0 || n_prompt > n_reserved)
        return moa_fail(err, MOA_E_INVALID,
                        "%d tokens reserved for a prompt of %d; the model's context is %d", n_reserved,
                        n_prompt, shape->n_ctx);
    const size_t n_span = (size_t)shape->n_layer * (size_t)shape->n_head;
    int32_t *span = malloc(2 * n_span * sizeof *span);
    if (!span) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu spans", 2 * n_span);
    int32_t *widest = span + n_span;
    moa_kv_spans(shape, rules, n_reserved, span, widest);
    const moa_kv_course course = {
        .shape = shape, .widest = widest, .n = n_prompt, .chunk = e->chunk, .n_reserved = n_reserved};
    out->weights = e->weight_bytes;
    out->workspace = e->workspace_mem.bytes + moa_seq_state_bytes(shape, n_reserved);
    out->kv = (uint64_t)moa_kv_pages_peak(&course) * e->page_bytes;
    out->passing = e->halves ? moa_kv_halves_peak(&course) : 0;
    if (capture)
        out->capture = moa_probe_bytes(shape, n_reserved, e->chunk) +
                       (uint64_t)moa_capture_layer_bytes(shape, n_reserved) * (uint64_t)shape->n_layer;
    free(span);
    return MOA_OK;
}
