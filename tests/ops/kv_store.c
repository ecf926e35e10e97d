/* kv_store.c -- tokens go into pages; for q8 whatever came before, in whatever chunks, the page must be what all its tokens at once give. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/ops.h"

/* what all sequences are to hold: (the sequence's tokens, n_head_kv, d_head) one after the other */
typedef struct store_rows {
    float *k, *v;
    size_t first[17]; /* of sequence s, in rows */
    size_t n;
} store_rows;

static store_rows store_rows_of(rig *r, const cache *c, bool broken) {
    store_rows x = {0};
    for (int32_t s = 0; s < c->n_seq; s++) {
        x.first[s] = x.n;
        x.n += (size_t)c->n_tok[s];
    }
    const size_t n = x.n * (size_t)c->n_head_kv * (size_t)c->d_head;
    x.k = floats(r, n, OUTLIERS);
    x.v = floats(r, n, NORMAL);
    for (size_t i = 0; i < n; i += 7)
        x.k[i] *= i % 2 ? 1e-7f : 1000.0f; /* subnormal halves, and some too large for half */
    for (size_t i = 0; i < n; i += 4001) {
        x.k[i] *= i % 2 ? 1e-38f : 1e30f;
        x.v[n - 1 - i] = i % 2 ? 0 : 1e-39f;
    }
    for (size_t i = 0; broken && i < n; i += 5003) {
        x.k[i] = i % 2 ? INFINITY : -INFINITY;
        x.v[i / 2] = INFINITY;
    }
    return x;
}

/* tokens from .. to - 1 of sequence s on one side, `chunk` in a call */
static void store_before(rig *r, const cache *c, const store_rows *x, int side, int32_t s, int32_t to, int32_t chunk) {
    const size_t stride = (size_t)c->n_head_kv * (size_t)c->d_head;
    moa_backend *b = r->b[side];
    for (int32_t t = 0; t < to; t += chunk) {
        const int32_t n = to - t < chunk ? to - t : chunk;
        const size_t bytes = (size_t)n * stride * 4;
        int32_t place[2][200];
        for (int32_t i = 0; i < n; i++)
            place[0][i] = s, place[1][i] = t + i;
        void *dev[4] = {0};
        const void *host[4] = {x->k + (x->first[s] + (size_t)t) * stride, x->v + (x->first[s] + (size_t)t) * stride, place[0],
                               place[1]};
        moa_err err = {0};
        for (int i = 0; i < 4; i++) {
            must(r, b->vt->alloc(b, i < 2 ? bytes : 4 * (size_t)n, &dev[i], &err), &err);
            must(r, b->vt->upload(b, dev[i], host[i], i < 2 ? bytes : 4 * (size_t)n, &err), &err);
        }
        CALL(kv_store, side, .k = dev[0], .v = dev[1], .kv = view(c, side), .seq = dev[2], .pos = dev[3], .n_tok = n);
        for (int i = 0; i < 4; i++)
            b->vt->free(b, dev[i]);
    }
}

/* the reference's pool beside pages encoded here, each from all its tokens at once */
static void store_check(rig *r, const cache *c, const store_rows *x) {
    const size_t bytes = page_size(c->type, c->d_head), row = (size_t)c->d_head * sizeof(double);
    unsigned char *image = fetch(r, c->pool, 0), *page = malloc(bytes);
    double *k = malloc(MOA_PAGE_TOK * row), *v = malloc(MOA_PAGE_TOK * row);
    if (!page || !k || !v) abort();
    for (int32_t s = 0; s < c->n_seq; s++)
        for (int32_t h = 0; h < c->n_head_kv; h++)
            for (int32_t p = 0; p * MOA_PAGE_TOK < c->n_tok[s]; p++) {
                const int32_t slot = c->table[s * c->stride + (int64_t)h * c->max_pages + p];
                if (slot < 0) continue;
                const unsigned char *got = image + GUARD_BYTES + (size_t)slot * bytes;
                const int32_t left = c->n_tok[s] - p * MOA_PAGE_TOK, n = left < MOA_PAGE_TOK ? left : MOA_PAGE_TOK;
                for (int32_t t = 0; t < n; t++)
                    for (int32_t i = 0; i < c->d_head; i++) {
                        const size_t at = ((x->first[s] + (size_t)(p * MOA_PAGE_TOK + t)) * (size_t)c->n_head_kv + (size_t)h) *
                                              (size_t)c->d_head +
                                          (size_t)i;
                        k[t * c->d_head + i] = x->k[at];
                        v[t * c->d_head + i] = x->v[at];
                    }
                memcpy(page, got, bytes); /* what no token owns is as it is */
                encode_page(c->type, page, n, c->d_head, k, v);
                for (size_t i = 0; i < bytes; i++)
                    if (page[i] != got[i]) {
                        char text[200];
                        (void)snprintf(text, sizeof text, "sequence %d head %d page %d of %d tokens: byte %zu is %d, encoded here %d",
                                       s, h, p, n, i, got[i], page[i]);
                        fail(r, text);
                        break;
                    }
            }
    free(image);
    free(page);
    free(k);
    free(v);
}

typedef struct store_shape {
    int32_t n_tok, n_head_kv, d_head;
    moa_kv_type type;
    bool ragged;
} store_shape;

static void kv_store_case(rig *r, uint64_t seed, const store_shape *a) {
    const int32_t n_seq = a->ragged ? (a->n_tok < 17 ? a->n_tok : 17) : 1;
    const bool q8 = a->type == MOA_KV_Q8;
    cache c = {.n_seq = n_seq, .n_head_kv = a->n_head_kv, .d_head = a->d_head, .max_pages = 12, .type = a->type};
    if (!case_begin(r, seed, "kv_store n_tok %d n_seq %d n_head_kv %d d_head %d %s", a->n_tok, n_seq, c.n_head_kv, c.d_head,
                    type_name(c.type)))
        return;
    c.n_tok = malloc(sizeof *c.n_tok * (size_t)n_seq);
    int32_t past[17], widest[17 * 3], seq[513], pos[513], fresh[17] = {0};
    for (int32_t s = 0; s < n_seq; s++) {
        past[s] = below(r, 200);
        for (int32_t h = 0; h < c.n_head_kv; h++)
            widest[s * c.n_head_kv + h] = 1 << 20;
    }
    for (int32_t i = 0; i < a->n_tok; i++) { /* the rows of a page of q8 stand together */
        seq[i] = !a->ragged ? 0 : q8 ? (int32_t)((int64_t)i * n_seq / a->n_tok) : i % n_seq;
        pos[i] = a->ragged && below(r, 5) == 0 ? -1 : past[seq[i]] + fresh[seq[i]]++;
    }
    for (int32_t s = 0; s < n_seq; s++)
        c.n_tok[s] = past[s] + fresh[s];
    cache_fill(r, &c, past, widest, true, NORMAL);
    const store_rows x = store_rows_of(r, &c, q8 && seed % 3 == 0);
    for (int32_t s = 0; s < n_seq; s++) /* the two sides by other chunks: what is held does not tell */
        for (int side = 0; side < 2; side++)
            store_before(r, &c, &x, side, s, past[s], side ? 1 + below(r, 90) : 1 + below(r, 30));
    const size_t stride = (size_t)c.n_head_kv * (size_t)c.d_head, n = (size_t)a->n_tok * stride;
    float *kh = floats(r, n, NORMAL), *vh = floats(r, n, NORMAL);
    for (int32_t i = 0; i < a->n_tok; i++) {
        if (pos[i] < 0) continue;
        const size_t from = (x.first[seq[i]] + (size_t)pos[i]) * stride;
        memcpy(kh + (size_t)i * stride, x.k + from, stride * 4);
        memcpy(vh + (size_t)i * stride, x.v + from, stride * 4);
    }
    const mem *k = mem_floats(r, kh, n), *v = mem_floats(r, vh, n);
    const mem *ds = mem_new(r, seq, sizeof *seq * (size_t)a->n_tok), *dp = mem_new(r, pos, sizeof *pos * (size_t)a->n_tok);
    for (int i = 0; i < 2; i++)
        CALL(kv_store, i, .k = F(k, i), .v = F(v, i), .kv = view(&c, i), .seq = a->ragged ? I(ds, i) : NULL, .pos = I(dp, i),
             .n_tok = a->n_tok);
    compare_bytes(r, c.pool, "pool");
    store_check(r, &c, &x);
    free(x.k);
    free(x.v);
    cache_free(&c);
    case_end(r);
}

void group_kv_store(rig *r) {
    static const int32_t sizes[] = {64, 80, 128, 96, 256};
    uint64_t seed = 1;
    for (int t = 0; t < N_TOK_COUNT; t++)
        for (int type = 0; type < MOA_N_KV_TYPE; type++)
            for (int ragged = 0; ragged < 2; ragged++, seed++) {
                const store_shape a = {.n_tok = tok_counts[t],
                                       .n_head_kv = 1 + t % 3,
                                       .d_head = sizes[(t + type) % 5],
                                       .type = (moa_kv_type)type,
                                       .ragged = ragged};
                kv_store_case(r, seed, &a);
            }
}
