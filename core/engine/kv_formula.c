/* KV memory by formula, from nothing but shapes and spans (spans.h): what the screen predicts, what the pool is sized by and
 * what the tests compare the pages really held with.
 *
 * A run's course: chunks of a prefill, then single tokens. While a chunk passes through layer l, that layer holds the old
 * window and the whole chunk; the layers before it have already freed what the chunk made invisible, those behind have not
 * stored it yet:
 *
 *      layers 0..l-1   kept(p + n)         l   pages(p + n) - dead(p)         l+1..   kept(p)
 *
 * The peak is the largest such sum; decoding never holds more than kept() at its own peak, since a page is freed
 * before the next one is begun. */
#include "core/engine/engine_impl.h"

static int32_t pages_of(int32_t n_tok) {
    return (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
}

void moa_kv_spans(const moa_shape *shape, const moa_rule *rules, int32_t n_reserved, int32_t *span,
                  int32_t *widest) {
    const int32_t group = shape->n_head / shape->n_head_kv;
    for (int32_t l = 0; l < shape->n_layer; l++)
        for (int32_t h = 0; h < shape->n_head; h++) {
            const int64_t at = (int64_t)l * shape->n_head + h;
            int32_t *w = &widest[(int64_t)l * shape->n_head_kv + h / group];
            span[at] = moa_span(rules ? rules[at] : (moa_rule){0, 1}, n_reserved);
            if (h % group == 0 || span[at] > *w) *w = span[at];
        }
}

static int64_t layer_kept(const moa_shape *shape, const int32_t *widest, int32_t layer, int32_t n_past) {
    int64_t n = 0;
    for (int32_t h = 0; h < shape->n_head_kv; h++)
        n += moa_n_pages(widest[(int64_t)layer * shape->n_head_kv + h], n_past);
    return n;
}

int64_t moa_kv_pages_at(const moa_shape *shape, const int32_t *widest, int32_t n_past) {
    int64_t n = 0;
    for (int32_t l = 0; l < shape->n_layer; l++)
        n += layer_kept(shape, widest, l, n_past);
    return n;
}

/* most pages held while chunk [p, p + n) passes through the layers */
static int64_t chunk_peak(const moa_kv_course *c, int32_t p, int32_t n) {
    const moa_shape *shape = c->shape;
    const int64_t n_new = (int64_t)shape->n_head_kv * (pages_of(p + n) - pages_of(p));
    int64_t held = moa_kv_pages_at(shape, c->widest, p), peak = held;
    for (int32_t l = 0; l < shape->n_layer; l++) {
        if (held + n_new > peak) peak = held + n_new;
        held += layer_kept(shape, c->widest, l, p + n) - layer_kept(shape, c->widest, l, p);
    }
    return peak;
}

int64_t moa_kv_pages_peak(const moa_kv_course *c) {
    int64_t peak = 0;
    int32_t p = c->n_past;
    for (int32_t left = c->n; left > 0;) {
        const int32_t n = left < c->chunk ? left : c->chunk;
        const int64_t x = n > 1 ? chunk_peak(c, p, n) : 0;
        if (x > peak) peak = x;
        p += n;
        left -= n;
    }
    /* kept() is largest just after a page was begun, and the last such moment is the largest */
    const int32_t begun = (c->n_reserved - 1) / MOA_PAGE_TOK * MOA_PAGE_TOK + 1;
    const int64_t x = moa_kv_pages_at(c->shape, c->widest, begun > c->n_past ? begun : c->n_past);
    return x > peak ? x : peak;
}

/* Of all KV heads the pages that the widest head of the layer sees from the chunk's first query on: page 0, then a run to the last one. */
uint64_t moa_kv_halves_peak(const moa_kv_course *c) {
    const moa_shape *shape = c->shape;
    const uint64_t n_head = (uint64_t)shape->n_head_kv, page_bytes = moa_kv_page_bytes(MOA_KV_F16, shape->d_head),
                   table = (n_head * (uint64_t)pages_of(c->n_reserved) * sizeof(int32_t) + 255) & ~(uint64_t)255;
    int32_t widest = 0, most = 0;
    for (int32_t i = 0; i < shape->n_layer * shape->n_head_kv; i++)
        if (c->widest[i] > widest) widest = c->widest[i];
    for (int32_t p = c->n_past, left = c->n, n; left > 0; p += n, left -= n) {
        n = left < c->chunk ? left : c->chunk;
        const int32_t first = moa_window_first(widest, p) / MOA_PAGE_TOK, last = (p + n - 1) / MOA_PAGE_TOK,
                      pages = 1 + (last >= first ? last - first + 1 : 0);
        if (n > 1 && pages > most) most = pages;
    }
    return most > 0 ? table + n_head * (uint64_t)most * page_bytes : 0;
}

moa_kv_bytes moa_kv_formula(const moa_shape *shape, moa_kv_type type, const moa_rule *rules,
                            int32_t n_reserved, int32_t n_past) {
    const uint64_t page_bytes = moa_kv_page_bytes(type, shape->d_head);
    const int32_t group = shape->n_head / shape->n_head_kv;
    uint64_t n = 0;
    for (int32_t l = 0; l < shape->n_layer; l++)
        for (int32_t k = 0; k < shape->n_head_kv; k++) {
            int32_t widest = 0;
            for (int32_t h = k * group; h < (k + 1) * group; h++) {
                const moa_rule rule = rules ? rules[(int64_t)l * shape->n_head + h] : (moa_rule){0, 1};
                const int32_t span = moa_span(rule, n_reserved);
                if (span > widest) widest = span;
            }
            n += (uint64_t)moa_n_pages(widest, n_past);
        }
    const uint64_t whole = (uint64_t)shape->n_layer * (uint64_t)pages_of(n_past) * page_bytes;
    return (moa_kv_bytes){.plan = n * page_bytes,
                          .dense = whole * (uint64_t)shape->n_head_kv,
                          .mha = whole * (uint64_t)shape->n_head};
}
