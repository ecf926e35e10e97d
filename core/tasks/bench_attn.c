/* Attention of one layer, alone, on random keys.
 *
 *   layers   as many copies of a layer's cache as fill big_bytes, each with the rules of a layer of the model: one call takes
 *            them in turn, so that no cache holds what comes next
 *   pages    of a layer lie anywhere in the pool (shuffled), as in a long-lived one */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine.h"
#include "core/engine/sampler.h"
#include "core/tasks/bench.h"

enum { LAYERS_MAX = 64, PATTERN_BYTES = 8 << 20 };

typedef struct rig {
    const moa_bench *x;
    const moa_bench_case *c;
    moa_backend *b;
    int32_t n_layer, n_row, max_pages, n_reserved; /* n_row: queries at once */
    int32_t n_page, chunk;
    int32_t *table; /* host (n_layer, n_seq, n_head_kv, max_pages) */
    int32_t *span;  /* host (n_layer, n_head) */
    void *pool, *q, *o, *d_table, *d_span, *d_pos;
} rig;

static int32_t pages_of(int32_t n_tok) {
    return (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
}

static moa_rule rule_of(const rig *r, int32_t layer, int32_t head) {
    const moa_shape *m = r->c->shape;
    return r->c->rules ? r->c->rules[(int64_t)(layer % m->n_layer) * m->n_head + head] : (moa_rule){0, 1};
}

static bool held(const rig *r, int32_t layer, int32_t head_kv, int32_t page, bool all) {
    const moa_shape *m = r->c->shape;
    const int32_t group = m->n_head / m->n_head_kv;
    for (int32_t h = head_kv * group; h < (head_kv + 1) * group; h++)
        if (all || moa_keep(r->span[(int64_t)layer * m->n_head + h], r->c->depth - 1, page)) return true;
    return false;
}

/* pages of all layers, sequences and heads: numbered, then shuffled. all: as before a prefill's end, nothing is dropped */
static moa_status make_table(rig *r, bool all, moa_err *err) {
    const moa_shape *m = r->c->shape;
    const size_t n = (size_t)r->n_layer * (size_t)r->c->n_seq * (size_t)m->n_head_kv * (size_t)r->max_pages;
    moa_pcg32 g = moa_pcg32_seed(11, 3);
    r->table = malloc(n * sizeof *r->table);
    if (!r->table) return moa_fail(err, MOA_E_MEMORY, "no memory for a page table of %zu entries", n);
    int32_t *at = r->table;
    for (int32_t l = 0; l < r->n_layer; l++)
        for (int32_t s = 0; s < r->c->n_seq; s++)
            for (int32_t k = 0; k < m->n_head_kv; k++)
                for (int32_t p = 0; p < r->max_pages; p++)
                    *at++ = held(r, l, k, p, all) ? r->n_page++ : -1;
    int32_t *order = malloc((size_t)r->n_page * sizeof *order);
    if (!order) return moa_fail(err, MOA_E_MEMORY, "no memory for the order of %d pages", r->n_page);
    for (int32_t i = 0; i < r->n_page; i++) {
        const int32_t k = (int32_t)(((uint64_t)moa_pcg32_next(&g) * (uint64_t)(i + 1)) >> 32);
        order[i] = order[k];
        order[k] = i;
    }
    for (size_t i = 0; i < n; i++)
        if (r->table[i] >= 0) r->table[i] = order[r->table[i]];
    free(order);
    return MOA_OK;
}

/* how many copies of a layer fill big_bytes */
static int32_t layers_of(const moa_bench *x, const moa_bench_case *c, int32_t n_reserved, bool all) {
    double kept;
    const double bytes =
        moa_bench_kv_bytes(c, n_reserved, c->depth, &kept) / c->shape->n_layer / (all ? kept : 1);
    const double n = ceil((double)x->big_bytes / bytes);
    return n < 1 ? 1 : n > LAYERS_MAX ? LAYERS_MAX : (int32_t)n;
}

static moa_status upload(rig *r, const void *host, size_t bytes, void **out, moa_err *err) {
    const moa_status s = r->b->vt->alloc(r->b, bytes, out, err);
    return s == MOA_OK ? r->b->vt->upload(r->b, *out, host, bytes, err) : s;
}

static moa_status check_case(const moa_bench_case *c, moa_err *err) {
    if (c->depth < 1 || c->depth > MOA_N_MAX || c->n_seq < 1)
        return moa_fail(err, MOA_E_USAGE, "%d sequences of %d tokens; at least one of one", c->n_seq,
                        c->depth);
    return MOA_OK;
}

/* the pool: a block of random pages again and again */
static moa_status random_pages(rig *r, size_t bytes, moa_err *err) {
    const size_t page = moa_kv_page_bytes(r->c->kv_type, r->c->shape->d_head), most = page > PATTERN_BYTES ? page : PATTERN_BYTES / page * page,
                 part = bytes < most ? bytes : most;
    moa_pcg32 g = moa_pcg32_seed(bytes, 31);
    char *block = calloc(1, part ? part : 1);
    moa_status s = MOA_OK;
    if (!block) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu random bytes", part);
    for (size_t at = 0; at < part; at += page)
        moa_kv_page_random(block + at, r->c->kv_type, r->c->shape->d_head, &g);
    MOA_TRY(r->b->vt->upload(r->b, r->pool, block, part, err));
    for (size_t at = part; at < bytes; at += part)
        MOA_TRY(r->b->vt->copy(r->b, (char *)r->pool + at, r->pool, bytes - at < part ? bytes - at : part, err));
    s = r->b->vt->sync(r->b, err);
out:
    free(block);
    return s;
}

static moa_status rig_open(rig *r, const moa_bench *x, const moa_bench_case *c, int32_t n_row, bool all,
                           moa_err *err) {
    const moa_shape *m = c->shape;
    size_t bytes, row;
    moa_status s = check_case(c, err);
    if (s != MOA_OK) return s;
    *r = (rig){.x = x, .c = c, .b = x->backend, .n_row = n_row, .max_pages = pages_of(c->depth)};
    r->n_reserved = c->n_reserved > 0 ? c->n_reserved : c->depth;
    r->n_layer = layers_of(x, c, r->n_reserved, all);
    r->span = malloc((size_t)r->n_layer * (size_t)m->n_head * sizeof *r->span);
    int32_t *pos = malloc((size_t)c->n_seq * sizeof *pos);
    if (!r->span || !pos)
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the spans of %d layers", r->n_layer));
    for (int32_t l = 0; l < r->n_layer; l++)
        for (int32_t h = 0; h < m->n_head; h++)
            r->span[(int64_t)l * m->n_head + h] = moa_span(rule_of(r, l, h), r->n_reserved);
    for (int32_t i = 0; i < c->n_seq; i++)
        pos[i] = c->depth - 1;
    MOA_TRY(make_table(r, all, err));
    row = (size_t)n_row * (size_t)m->n_head * (size_t)m->d_head * sizeof(float);
    if (!moa_size_mul((size_t)r->n_page, moa_kv_page_bytes(c->kv_type, m->d_head), &bytes))
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "%d KV pages are more than can be counted", r->n_page));
    MOA_TRY(r->b->vt->alloc(r->b, bytes, &r->pool, err));
    MOA_TRY(random_pages(r, bytes, err));
    MOA_TRY(r->b->vt->alloc(r->b, row, &r->q, err));
    MOA_TRY(r->b->vt->alloc(r->b, row, &r->o, err));
    MOA_TRY(moa_bench_random(r->b, r->q, row, false, err));
    MOA_TRY(upload(r, r->table,
                   (size_t)r->n_layer * (size_t)c->n_seq * (size_t)m->n_head_kv * (size_t)r->max_pages *
                       sizeof *r->table,
                   &r->d_table, err));
    MOA_TRY(upload(r, r->span, (size_t)r->n_layer * (size_t)m->n_head * sizeof *r->span, &r->d_span, err));
    MOA_TRY(upload(r, pos, (size_t)c->n_seq * sizeof *pos, &r->d_pos, err));
out:
    free(pos);
    return s;
}

static void rig_close(rig *r) {
    void *all[] = {r->pool, r->q, r->o, r->d_table, r->d_span, r->d_pos};
    for (size_t i = 0; r->b && i < sizeof all / sizeof *all; i++)
        r->b->vt->free(r->b, all[i]);
    free(r->table);
    free(r->span);
}

static moa_kv_view view(const rig *r, int32_t layer) {
    const moa_shape *m = r->c->shape;
    const int64_t seq = (int64_t)m->n_head_kv * r->max_pages;
    return (moa_kv_view){.pool = r->pool,
                         .table = (const int32_t *)r->d_table + layer * seq * r->c->n_seq,
                         .table_seq_stride = seq,
                         .n_head_kv = m->n_head_kv,
                         .d_head = m->d_head,
                         .max_pages = r->max_pages,
                         .type = r->c->kv_type};
}

/* what was timed must have computed something */
static moa_status check_output(const rig *r, moa_err *err) {
    const size_t n = (size_t)r->n_row * (size_t)r->c->shape->n_head * (size_t)r->c->shape->d_head;
    float *o = malloc(n * sizeof *o);
    double power = 0;
    if (!o) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu values", n);
    moa_status s = r->b->vt->download(r->b, o, r->o, n * sizeof *o, err);
    for (size_t i = 0; s == MOA_OK && i < n; i++)
        power += (double)o[i] * (double)o[i];
    free(o);
    if (s == MOA_OK && !(isfinite(power) && power > 0))
        s = moa_fail(err, MOA_E_FAILED, "the attention that was timed gave values of square sum %g", power);
    return s;
}

/* --- decode ------------------------------------------------------------------------------------------------------------------------ */

static moa_status run_decode(void *ctx, moa_err *err) {
    const rig *r = ctx;
    const moa_shape *m = r->c->shape;
    moa_status s = MOA_OK;
    for (int32_t l = 0; l < r->n_layer && s == MOA_OK; l++)
        s = r->b->vt->attn_decode(
            r->b,
            &(moa_args_attn_decode){.q = r->q,
                                    .o = r->o,
                                    .kv = view(r, l),
                                    .pos = r->d_pos,
                                    .span = (const int32_t *)r->d_span + (int64_t)l * m->n_head,
                                    .n_seq = r->c->n_seq,
                                    .n_head = m->n_head,
                                    .scale = (float)(1 / sqrt((double)m->d_head))},
            err);
    return s;
}

moa_status moa_bench_attn_decode(const moa_bench *x, const moa_bench_case *c, moa_bench_row *out,
                                 moa_err *err) {
    rig r = {0};
    moa_status s = MOA_OK;
    *out = (moa_bench_row){.n_seq = c->n_seq, .depth = c->depth};
    MOA_TRY(rig_open(&r, x, c, c->n_seq, false, err));
    MOA_TRY(moa_bench_measure(x, run_decode, &r, r.n_layer, &out->time, err));
    MOA_TRY(check_output(&r, err));
    /* of the layers that took turns, not of the model's: their rules may repeat unevenly */
    double n = 0;
    for (int32_t l = 0; l < r.n_layer; l++)
        for (int32_t k = 0; k < c->shape->n_head_kv; k++)
            n += moa_bench_kept(c, l % c->shape->n_layer, k, r.n_reserved, c->depth);
    n /= r.n_layer;
    out->kept = n / ((double)c->shape->n_head_kv * c->depth);
    out->kv_bytes = n * moa_bench_token_bytes(c) * c->n_seq;
out:
    rig_close(&r);
    return s;
}

/* --- prefill ------------------------------------------------------------------------------------------------------------------------ */

static moa_status run_prefill(void *ctx, moa_err *err) {
    const rig *r = ctx;
    const moa_shape *m = r->c->shape;
    moa_status s = MOA_OK;
    for (int32_t l = 0; l < r->n_layer; l++)
        for (int32_t at = 0; at < r->c->depth && s == MOA_OK; at += r->chunk)
            s = r->b->vt->attn_prefill(
                r->b,
                &(moa_args_attn_prefill){.q = (const float *)r->q + (int64_t)at * m->n_head * m->d_head,
                                         .o = (float *)r->o + (int64_t)at * m->n_head * m->d_head,
                                         .kv = view(r, l),
                                         .span = (const int32_t *)r->d_span + (int64_t)l * m->n_head,
                                         .span_host = r->span + (int64_t)l * m->n_head,
                                         .pos0 = at,
                                         .n_tok = r->c->depth - at < r->chunk ? r->c->depth - at : r->chunk,
                                         .n_head = m->n_head,
                                         .scale = (float)(1 / sqrt((double)m->d_head))},
                err);
    return s;
}

moa_status moa_bench_attn_prefill(const moa_bench *x, const moa_bench_case *c, int32_t chunk,
                                  moa_bench_row *out, moa_err *err) {
    moa_bench one = *x;
    moa_bench_case alone = *c;
    rig r = {0};
    moa_status s = MOA_OK;
    one.big_bytes = 1; /* bound by arithmetic: one layer */
    alone.n_seq = 1;
    *out = (moa_bench_row){.n_seq = 1, .depth = c->depth};
    MOA_TRY(rig_open(&r, &one, &alone, c->depth, true, err));
    r.chunk = chunk > 0 ? chunk : 512;
    MOA_TRY(moa_bench_measure(x, run_prefill, &r, r.n_layer, &out->time, err));
    MOA_TRY(check_output(&r, err));
    double pairs = 0, causal = 0;
    for (int32_t h = 0; h < c->shape->n_head; h++)
        for (int32_t i = 0; i < c->depth; i++) {
            pairs += moa_n_seen(r.span[h], i);
            causal += i + 1;
        }
    out->kept = pairs / causal;
    out->flop = 4 * pairs * c->shape->d_head;
    out->tok_s = c->depth / out->time.median_us * 1e6;
out:
    rig_close(&r);
    return s;
}
