/* Sequences that get their tokens without computing: a fork of another's, and random ones for measuring.
 *
 *   fork   from  [page][page][page][pa]      whole pages: one more user
 *          to      ^     ^     ^   [pa]'     the unfinished one: a copy, since both will write to it
 *
 *   fill   the pages a prefill would have left, of a repeated block of random numbers: what is read costs the same */
#include <stdlib.h>
#include <string.h>

#include "core/engine/engine_impl.h"
#include "core/engine/sampler.h"

static int32_t pages_of(int32_t n_tok) {
    return (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
}
static int64_t n_row(const moa_seq *s) {
    return (int64_t)s->engine->model->shape.n_layer * s->engine->model->shape.n_head_kv;
}
static char *page_at(const moa_seq *s, int32_t page) {
    return (char *)s->engine->pool.data + (size_t)page * s->engine->page_bytes;
}

/* the table is set by hand here: all of it goes up with the next step */
static void own(moa_seq *s, int32_t n_past) {
    s->n_past = n_past;
    s->dirty_first = 0;
    s->dirty_end = n_row(s) * s->max_pages;
    s->n_change++;
    if (s->n_held > s->peak_held) s->peak_held = s->n_held;
    moa_seq_show_spans(s);
}

static moa_status check_empty(const moa_seq *s, int32_t n, moa_err *err) {
    if (s->n_past > 0 || n > s->n_reserved)
        return moa_fail(err, MOA_E_INVALID, "%d tokens for a sequence that has %d of %d", n, s->n_past,
                        s->n_reserved);
    if (s->d_stat || s->capture)
        return moa_fail(err, MOA_E_INVALID, "a watched sequence has to see its tokens computed");
    return MOA_OK;
}

/* --- fork -------------------------------------------------------------------------------------------------------------------- */

static moa_status copy_last_pages(moa_seq *to, const moa_seq *from, moa_err *err) {
    moa_engine *e = to->engine;
    const int32_t last = from->n_past / MOA_PAGE_TOK;
    if (from->n_past % MOA_PAGE_TOK == 0) return MOA_OK;
    for (int64_t h = 0; h < n_row(to); h++) {
        int32_t *mine = &to->table[h * to->max_pages + last];
        const int32_t page = moa_kv_pages_take(&e->pages), theirs = from->table[h * from->max_pages + last];
        if (page < 0)
            return moa_fail(err, MOA_E_FAILED, "the pool of %d KV pages is empty", e->pages.capacity);
        *mine = page;
        to->n_held++;
        const moa_status s =
            e->vt->copy(e->backend, page_at(to, page), page_at(from, theirs), e->page_bytes, err);
        if (s != MOA_OK) return s;
    }
    return MOA_OK;
}

moa_status moa_seq_fork(moa_seq *to, const moa_seq *from, moa_err *err) {
    moa_engine *e = to->engine;
    const moa_shape *shape = &e->model->shape;
    const size_t n = (size_t)shape->n_layer * (size_t)shape->n_head;
    moa_status s = check_empty(to, from->n_past, err);
    if (s != MOA_OK) return s;
    if (from->engine != e || to == from || to->n_reserved != from->n_reserved || from->has_gaps ||
        memcmp(to->span, from->span, n * sizeof *to->span) != 0)
        return moa_fail(err, MOA_E_INVALID,
                        "a fork needs the same spans and N on both sides, and no lost keys: N %d and %d",
                        to->n_reserved, from->n_reserved);
    s = moa_engine_reserve(e, e->pages.used + n_row(to), false, err);
    if (s != MOA_OK) return s;
    const int32_t whole = from->n_past / MOA_PAGE_TOK;
    for (int64_t h = 0; h < n_row(to); h++)
        for (int32_t p = 0; p < whole; p++) {
            const int32_t page = from->table[h * from->max_pages + p];
            if (page < 0) continue;
            moa_kv_pages_share(&e->pages, page);
            to->table[h * to->max_pages + p] = page;
            to->n_held++;
        }
    memcpy(to->from, from->from, (size_t)n_row(to) * sizeof *to->from);
    memcpy(to->ids, from->ids, (size_t)from->n_past * sizeof *to->ids);
    s = copy_last_pages(to, from, err);
    own(to, from->n_past);
    if (s != MOA_OK) moa_seq_reset(to);
    return s;
}

/* --- random ------------------------------------------------------------------------------------------------------------------- */

enum { PATTERN_BYTES = 8 << 20 };

void moa_kv_page_random(void *page, moa_kv_type type, int32_t d_head, moa_pcg32 *g) {
    unsigned char *bytes = page;
    const size_t n = 2 * MOA_PAGE_TOK * (size_t)d_head;
    for (size_t i = 0; i < n; i++) {
        const uint32_t r = moa_pcg32_next(g), exponent = (r >> 10 & 3) % 3;
        const uint32_t bits = (r & 0x80000000u) | (125 + exponent) << 23 | (r >> 8 & 0x7fffffu);
        const uint16_t half = (uint16_t)((r >> 16 & 0x8000u) | (13 + exponent) << 10 | (r & 0x3ffu)),
                       bf16 = (uint16_t)(bits >> 16);
        if (type == MOA_KV_F32)
            memcpy(bytes + 4 * i, &bits, 4);
        else if (type == MOA_KV_Q8)
            bytes[i] = (unsigned char)(r >> 24);
        else
            memcpy(bytes + 2 * i, type == MOA_KV_F16 ? &half : &bf16, 2);
    }
    if (type != MOA_KV_Q8) return;
    const float scale = 1.0f / 64;
    for (size_t i = 0; i < MOA_PAGE_TOK; i++)
        memcpy(bytes + moa_kv_v_scale_at(d_head) + 4 * i, &scale, 4);
    memset(bytes + moa_kv_k_exponent_at(d_head), 127 - 6, (size_t)d_head);
}

/* Random numbers into n pages from `first` on, which lie one after the other. */
static moa_status fill_run(moa_seq *s, const moa_dev_mem *pattern, int32_t first, int32_t n, moa_err *err) {
    moa_engine *e = s->engine;
    for (size_t at = 0, bytes = (size_t)n * e->page_bytes; at < bytes; at += pattern->bytes) {
        const size_t part = bytes - at < pattern->bytes ? bytes - at : pattern->bytes;
        const moa_status status = e->vt->copy(e->backend, page_at(s, first) + at, pattern->data, part, err);
        if (status != MOA_OK) return status;
    }
    return MOA_OK;
}

static moa_status take_kept(moa_seq *s, int32_t n, const moa_dev_mem *pattern, moa_err *err) {
    moa_kv_pages *pages = &s->engine->pages;
    int32_t first = 0, n_run = 0;
    moa_status status = MOA_OK;
    for (int64_t h = 0; h < n_row(s) && status == MOA_OK; h++) {
        s->from[h] = MOA_SINK_TOK;
        for (int32_t p = 0; p < pages_of(n) && status == MOA_OK; p++) {
            if (!moa_keep(s->widest[h], n, p)) {
                s->from[h] = (p + 1) * MOA_PAGE_TOK;
                continue;
            }
            const int32_t page = moa_kv_pages_take(pages);
            if (page < 0)
                return moa_fail(err, MOA_E_FAILED, "the pool of %d KV pages is empty, %lld are in use",
                                pages->capacity, (long long)pages->used);
            s->table[h * s->max_pages + p] = page;
            s->n_held++;
            if (n_run > 0 && page == first + n_run) {
                n_run++;
                continue;
            }
            if (n_run > 0) status = fill_run(s, pattern, first, n_run, err);
            first = page;
            n_run = 1;
        }
    }
    return status == MOA_OK && n_run > 0 ? fill_run(s, pattern, first, n_run, err) : status;
}

moa_status moa_seq_fill_random(moa_seq *s, int32_t n, uint64_t seed, moa_err *err) {
    moa_engine *e = s->engine;
    moa_pcg32 g = moa_pcg32_seed(seed, 29);
    moa_dev_mem pattern = {0};
    void *block = NULL;
    moa_status status = check_empty(s, n, err);
    if (status != MOA_OK) return status;
    const size_t bytes =
        e->page_bytes > PATTERN_BYTES ? e->page_bytes : PATTERN_BYTES / e->page_bytes * e->page_bytes;
    block = malloc(bytes);
    if (!block) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu random bytes", bytes);
    memset(block, 0, bytes);
    for (size_t at = 0; at + e->page_bytes <= bytes; at += e->page_bytes)
        moa_kv_page_random((char *)block + at, e->kv_type, e->model->shape.d_head, &g);
    status = moa_engine_alloc(e, bytes, &pattern, err);
    if (status == MOA_OK) status = e->vt->upload(e->backend, pattern.data, block, bytes, err);
    if (status == MOA_OK)
        status = moa_engine_reserve(e, e->pages.used + moa_kv_pages_at(&e->model->shape, s->widest, n), false,
                                    err);
    if (status == MOA_OK) status = take_kept(s, n, &pattern, err);
    if (status == MOA_OK) status = e->vt->sync(e->backend, err);
    for (int32_t i = 0; i < n; i++)
        s->ids[i] = (int32_t)(moa_pcg32_next(&g) % (uint32_t)e->model->shape.n_vocab);
    own(s, n);
    if (status != MOA_OK) moa_seq_reset(s);
    moa_engine_free(e, &pattern);
    free(block);
    return status;
}
