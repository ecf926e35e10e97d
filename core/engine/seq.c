/* A sequence: its plan, the pages its KV heads hold, and what they have lost.
 *
 *      key   0..63 |               | from                    n_past
 *   head k   sink  |  gone: -1     | held: the window        | next query
 *
 * Per KV head the held keys are the sink and one range [from, n_past). Normally `from` trails the window of the group's widest
 * head. After widening (an edited rule; a rule with beta > 0 in a longer turn) or after a cancelled chunk the window may reach
 * back beyond `from`: those keys are lost until a new prefill. Attention must not look for them, so while that lasts the
 * spans shown to it end at `from`; since such a span grows with every token, each token of a chunk then has its own
 * (engine_forward.c). So every chunking still gives the same result.
 *
 * The table and the spans live on the host and are mirrored on the device; a dirty range is uploaded once before a step. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

static int32_t pages_of(int32_t n_tok) {
    return (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
}
static const moa_shape *shape_of(const moa_seq *s) {
    return &s->engine->model->shape;
}

/* --- open, close, reset ---------------------------------------------------------------------------------------------------- */

moa_status moa_seq_open(moa_seq **out, moa_engine *e, moa_err *err) {
    *out = NULL;
    moa_seq *s = calloc(1, sizeof *s);
    if (!s) return moa_fail(err, MOA_E_MEMORY, "no memory for a sequence");
    s->engine = e;
    s->next = e->seqs;
    e->seqs = s;
    *out = s;
    return MOA_OK;
}

static void drop_pages(moa_seq *s) {
    const moa_shape *shape = shape_of(s);
    const int64_t n = s->table ? (int64_t)shape->n_layer * shape->n_head_kv * s->max_pages : 0;
    for (int64_t i = 0; i < n; i++) {
        if (s->table[i] < 0) continue;
        moa_kv_pages_drop(&s->engine->pages, s->table[i]);
        s->table[i] = -1;
    }
    s->n_held = 0;
    s->dirty_first = 0;
    s->dirty_end = n;
    for (int64_t i = 0; s->from && i < (int64_t)shape->n_layer * shape->n_head_kv; i++)
        s->from[i] = MOA_SINK_TOK;
}

void moa_seq_forget_recordings(moa_seq *s) {
    for (int i = 0; i < 2; i++) {
        if (s->recording[i]) s->engine->vt->recording_free(s->engine->backend, s->recording[i]);
        s->recording[i] = NULL;
        s->step_done[i] = false;
    }
    if (s->steady) moa_steady_forget_recording(s->steady);
}

void moa_seq_reset(moa_seq *s) {
    drop_pages(s);
    s->n_past = 0;
    s->n_plan++;
    s->peak_held = 0;
    s->has_gaps = false;
    if (s->span) moa_seq_show_spans(s);
    moa_probe_restart(s);
}

void moa_seq_close(moa_seq **ps) {
    moa_seq *s = *ps;
    if (!s) return;
    drop_pages(s);
    moa_seq_forget_recordings(s);
    moa_capture_close(s);
    (void)moa_probe_plan(s, false, 1, NULL);
    moa_engine_free(s->engine, &s->state);
    for (moa_seq **at = &s->engine->seqs; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    free(s->ids);
    free(s->span);
    free(s->table);
    free(s->journal);
    free(s);
    *ps = NULL;
}

/* --- the plan ------------------------------------------------------------------------------------------------------------- */

/* What a plan brings: made whole before anything of the old one is touched. */
typedef struct plan_parts {
    int32_t *ids;
    int32_t *
        spans; /* one block: span, measure, shown (n_layer, n_head each), widest, from, from_before (n_layer, n_head_kv) */
    int32_t *table;
    moa_journal_entry *journal;
    int64_t journal_capacity;
    moa_dev_mem state;
} plan_parts;

static void drop_parts(moa_engine *e, plan_parts *p) {
    free(p->ids);
    free(p->spans);
    free(p->table);
    free(p->journal);
    moa_engine_free(e, &p->state);
}

static size_t n_span(const moa_shape *shape) {
    return (size_t)shape->n_layer * (size_t)shape->n_head;
}
static size_t n_widest(const moa_shape *shape) {
    return (size_t)shape->n_layer * (size_t)shape->n_head_kv;
}

/* elements, padded so that what follows is aligned on the device */
static size_t table_elems(const moa_shape *shape, int32_t n_reserved) {
    return (n_widest(shape) * (size_t)pages_of(n_reserved) + 63) & ~(size_t)63;
}
static size_t span_elems(const moa_shape *shape) {
    return (n_span(shape) + 63) & ~(size_t)63;
}

size_t moa_seq_state_bytes(const moa_shape *shape, int32_t n_reserved) {
    return (table_elems(shape, n_reserved) + 2 * span_elems(shape)) * sizeof(int32_t);
}

static moa_status make_parts(moa_engine *e, int32_t n_reserved, plan_parts *p, moa_err *err) {
    const moa_shape *shape = &e->model->shape;
    const size_t n_table = n_widest(shape) * (size_t)pages_of(n_reserved);
    p->journal_capacity = (int64_t)n_widest(shape) * (e->chunk / MOA_PAGE_TOK + 2);
    p->ids = calloc((size_t)n_reserved, sizeof *p->ids);
    p->spans = calloc(3 * (n_span(shape) + n_widest(shape)), sizeof *p->spans);
    p->table = malloc(n_table * sizeof *p->table);
    p->journal = calloc((size_t)p->journal_capacity, sizeof *p->journal);
    if (!p->ids || !p->spans || !p->table || !p->journal)
        return moa_fail(err, MOA_E_MEMORY, "no memory for the page tables of %d tokens (%zu entries)",
                        n_reserved, n_table);
    for (size_t i = 0; i < n_table; i++)
        p->table[i] = -1;
    return moa_engine_alloc(e, moa_seq_state_bytes(shape, n_reserved), &p->state, err);
}

/* Replaces the old plan's parts by the new ones; cannot fail. The old ones are left in p. */
static void take_parts(moa_seq *s, plan_parts *p, int32_t n_reserved) {
    const moa_shape *shape = shape_of(s);
    const int32_t max_pages = pages_of(n_reserved), n_used = pages_of(s->n_past);
    int32_t *spans = p->spans, *from = spans + 3 * n_span(shape) + n_widest(shape);
    for (size_t i = 0; i < n_widest(shape); i++) {
        from[i] = s->from ? s->from[i] : MOA_SINK_TOK;
        for (int32_t k = 0; k < n_used; k++)
            p->table[i * (size_t)max_pages + (size_t)k] = s->table[i * (size_t)s->max_pages + (size_t)k];
    }
    for (int32_t i = 0; i < s->n_past; i++)
        p->ids[i] = s->ids[i];
    const plan_parts old = {s->ids, s->span, s->table, s->journal, 0, s->state};
    s->ids = p->ids;
    s->span = spans;
    s->measure = spans + n_span(shape);
    s->shown = spans + 2 * n_span(shape);
    s->widest = spans + 3 * n_span(shape);
    s->from = from;
    s->from_before = from + n_widest(shape);
    s->table = p->table;
    s->journal = p->journal;
    s->journal_capacity = p->journal_capacity;
    s->state = p->state;
    s->d_table = s->state.data;
    s->d_shown = s->d_table + table_elems(shape, n_reserved);
    s->d_measure = s->d_shown + span_elems(shape);
    s->n_reserved = n_reserved;
    s->max_pages = max_pages;
    s->dirty_first = 0;
    s->dirty_end = (int64_t)n_widest(shape) * max_pages;
    s->shown_dirty = s->measure_dirty = true;
    *p = old;
}

static moa_status check_rules(const moa_shape *shape, const moa_rule *rules, moa_err *err) {
    for (int32_t l = 0; rules && l < shape->n_layer; l++)
        for (int32_t h = 0; h < shape->n_head; h++) {
            const moa_rule r = rules[(int64_t)l * shape->n_head + h];
            if (!isfinite(r.alpha) || !isfinite(r.beta))
                return moa_fail(err, MOA_E_INVALID, "layer %d head %d: the rule (%g, %g) is not finite", l, h,
                                r.alpha, r.beta);
        }
    return MOA_OK;
}

static void set_spans(moa_seq *s, const moa_rule *rules, const moa_rule *measure) {
    const moa_shape *shape = shape_of(s);
    moa_kv_spans(shape, rules, s->n_reserved, s->span, s->widest);
    for (size_t i = 0; i < n_span(shape); i++)
        s->measure[i] = measure ? moa_span(measure[i], s->n_reserved) : s->span[i];
    s->measure_differs = memcmp(s->measure, s->span, n_span(shape) * sizeof *s->span) != 0;
}

moa_status moa_seq_plan(moa_seq *s, const moa_rule *rules, const moa_rule *measure, int32_t n_reserved,
                        int watch, char *note, size_t note_bytes, moa_err *err) {
    moa_engine *e = s->engine;
    const moa_shape *shape = shape_of(s);
    plan_parts parts = {0};
    moa_status status = MOA_OK;
    if (note && note_bytes) *note = 0;
    if (n_reserved < 1 || n_reserved < s->n_past || n_reserved > shape->n_ctx)
        return moa_fail(err, MOA_E_INVALID,
                        "%d tokens to be reserved: the sequence has %d and the model's context is %d",
                        n_reserved, s->n_past, shape->n_ctx);
    if ((status = check_rules(shape, rules, err)) != MOA_OK ||
        (status = check_rules(shape, measure, err)) != MOA_OK)
        return status;
    /* recordings hold the addresses of what is about to move */
    moa_seq_forget_recordings(s);
    status = make_parts(e, n_reserved, &parts, err);
    if (status == MOA_OK) status = moa_probe_plan(s, (watch & MOA_WATCH_STATS) != 0, n_reserved, err);
    if (status == MOA_OK)
        status = moa_capture_plan(s, (watch & MOA_WATCH_CAPTURE) != 0, n_reserved, note, note_bytes, err);
    if (status == MOA_OK) {
        s->sampled = (watch & MOA_WATCH_SAMPLED) != 0;
        take_parts(s, &parts, n_reserved);
        s->n_plan++;
        set_spans(s, rules, measure);
        for (int32_t l = 0; l < shape->n_layer; l++)
            moa_seq_trim(s, l, s->n_past, false);
        moa_seq_show_spans(s);
        s->peak_held = s->n_held;
        moa_kv_pages_reset_peak(&e->pages);
    }
    drop_parts(e, &parts);
    return status;
}

/* --- pages ---------------------------------------------------------------------------------------------------------------- */

static void mark(moa_seq *s, int64_t at) {
    if (s->dirty_first >= s->dirty_end) {
        s->dirty_first = at;
        s->dirty_end = at + 1;
    } else {
        if (at < s->dirty_first) s->dirty_first = at;
        if (at + 1 > s->dirty_end) s->dirty_end = at + 1;
    }
}

static void set_page(moa_seq *s, int64_t at, int32_t page) {
    s->n_held += (page >= 0) - (s->table[at] >= 0);
    if (s->n_held > s->peak_held) s->peak_held = s->n_held;
    s->table[at] = page;
    s->n_change++;
    mark(s, at);
}

moa_status moa_seq_extend(moa_seq *s, int32_t layer, int32_t n_after, moa_err *err) {
    const moa_shape *shape = shape_of(s);
    for (int32_t k = 0; k < shape->n_head_kv; k++)
        for (int32_t i = s->n_past / MOA_PAGE_TOK; i < pages_of(n_after); i++) {
            const int64_t at = moa_seq_at(s, layer, k) + i;
            if (s->table[at] >= 0) continue;
            const int32_t page = moa_kv_pages_take(&s->engine->pages);
            if (page < 0)
                return moa_fail(err, MOA_E_FAILED,
                                "layer %d: the pool of %d KV pages is empty, %lld are in use", layer,
                                s->engine->pages.capacity, (long long)s->engine->pages.used);
            set_page(s, at, page);
        }
    return MOA_OK;
}

void moa_seq_trim(moa_seq *s, int32_t layer, int32_t n_after, bool journal) {
    const moa_shape *shape = shape_of(s);
    for (int32_t k = 0; k < shape->n_head_kv; k++) {
        const int64_t head = (int64_t)layer * shape->n_head_kv + k, row = moa_seq_at(s, layer, k);
        int32_t i = s->from[head] / MOA_PAGE_TOK;
        for (; i < pages_of(n_after) && !moa_keep(s->widest[head], n_after, i); i++) {
            const int32_t page = s->table[row + i];
            if (page < 0) continue;
            set_page(s, row + i, -1);
            if (!journal || i >= pages_of(s->n_past)) {
                moa_kv_pages_drop(&s->engine->pages, page);
                continue;
            }
            assert(s->n_journal < s->journal_capacity);
            const bool freed = moa_kv_pages_retire(&s->engine->pages, page);
            s->journal[s->n_journal++] = (moa_journal_entry){page, layer, k, i, !freed};
        }
        if (i * MOA_PAGE_TOK > s->from[head]) s->from[head] = i * MOA_PAGE_TOK;
    }
}

void moa_seq_rollback(moa_seq *s) {
    const moa_shape *shape = shape_of(s);
    moa_kv_pages *pages = &s->engine->pages;
    for (int32_t l = 0; l < shape->n_layer; l++)
        for (int32_t k = 0; k < shape->n_head_kv; k++)
            for (int32_t i = pages_of(s->n_past); i < s->max_pages; i++) {
                const int64_t at = moa_seq_at(s, l, k) + i;
                if (s->table[at] < 0) continue;
                moa_kv_pages_drop(pages, s->table[at]);
                set_page(s, at, -1);
            }
    memcpy(s->from, s->from_before, n_widest(shape) * sizeof *s->from);
    for (int64_t j = 0; j < s->n_journal; j++) {
        const moa_journal_entry *e = &s->journal[j];
        int32_t *from = &s->from[(int64_t)e->layer * shape->n_head_kv + e->head_kv];
        const int32_t end = (e->index + 1) * MOA_PAGE_TOK;
        if (e->shared) moa_kv_pages_share(pages, e->page);
        if (e->shared || moa_kv_pages_revive(pages, e->page))
            set_page(s, moa_seq_at(s, e->layer, e->head_kv) + e->index, e->page);
        else if (end > *from)
            *from = end < s->n_past ? end : s->n_past;
    }
    s->n_journal = 0;
    moa_kv_pages_settle(pages);
    moa_seq_show_spans(s);
}

/* keys the widest head of this group would see at n_past but which are gone */
static int32_t lost(const moa_seq *s, int64_t head) {
    const int32_t first = moa_window_first(s->widest[head], s->n_past);
    const int32_t from = s->from[head] < s->n_past ? s->from[head] : s->n_past;
    return from > first ? from - first : 0;
}

void moa_seq_spans_at(const moa_seq *s, int32_t layer, int32_t pos, int32_t *span) {
    const moa_shape *shape = shape_of(s);
    const int32_t group = shape->n_head / shape->n_head_kv;
    for (int32_t h = 0; h < shape->n_head; h++) {
        const int32_t from = s->from[(int64_t)layer * shape->n_head_kv + h / group];
        span[h] = s->span[(int64_t)layer * shape->n_head + h];
        if (moa_window_first(span[h], pos) < from) span[h] = MOA_SINK_TOK + pos - from + 1;
    }
}

void moa_seq_show_spans(moa_seq *s) {
    const moa_shape *shape = shape_of(s);
    s->has_gaps = moa_seq_lost(s) > 0;
    for (int32_t l = 0; l < shape->n_layer; l++) {
        int32_t *shown = s->shown + (int64_t)l * shape->n_head;
        moa_seq_spans_at(s, l, s->n_past, shown);
    }
    s->shown_dirty = true;
}

moa_status moa_seq_state_upload(moa_seq *s, moa_err *err) {
    moa_engine *e = s->engine;
    const size_t span_bytes = n_span(shape_of(s)) * sizeof(int32_t);
    moa_status status = MOA_OK;
    if (s->dirty_first < s->dirty_end) {
        status = e->vt->upload(e->backend, s->d_table + s->dirty_first, s->table + s->dirty_first,
                               (size_t)(s->dirty_end - s->dirty_first) * sizeof *s->table, err);
        if (status != MOA_OK) return status;
        s->dirty_first = s->dirty_end = 0;
    }
    if (s->shown_dirty) {
        status = e->vt->upload(e->backend, s->d_shown, s->shown, span_bytes, err);
        if (status != MOA_OK) return status;
        s->shown_dirty = false;
    }
    if (s->measure_dirty && s->measure_differs) {
        status = e->vt->upload(e->backend, s->d_measure, s->measure, span_bytes, err);
        if (status != MOA_OK) return status;
    }
    s->measure_dirty = false;
    return MOA_OK;
}

/* --- looking at it --------------------------------------------------------------------------------------------------------- */

int32_t moa_seq_n_past(const moa_seq *s) {
    return s->n_past;
}
int32_t moa_seq_n_reserved(const moa_seq *s) {
    return s->n_reserved;
}
const int32_t *moa_seq_ids(const moa_seq *s) {
    return s->ids;
}
const int32_t *moa_seq_spans(const moa_seq *s) {
    return s->span;
}
moa_engine *moa_seq_engine(const moa_seq *s) {
    return s->engine;
}

int64_t moa_seq_lost(const moa_seq *s) {
    int64_t n = 0;
    for (size_t i = 0; s->from && i < n_widest(shape_of(s)); i++)
        n += lost(s, (int64_t)i);
    return n;
}

double moa_seq_kv_density(const moa_seq *s) {
    const size_t n = n_widest(shape_of(s));
    if (!s->from || s->n_past == 0) return NAN;
    double kept = 0;
    for (size_t i = 0; i < n; i++)
        kept += moa_n_seen(s->widest[i], s->n_past - 1);
    /* lost() speaks of the next query, whose window has moved by one; what it lacks was lacking before */
    return (kept - (double)moa_seq_lost(s)) / (double)n / s->n_past;
}

void moa_seq_pages(const moa_seq *s, moa_pages *out) {
    const moa_engine *e = s->engine;
    const moa_shape *shape = shape_of(s);
    *out = (moa_pages){.n_layer = shape->n_layer,
                       .n_head_kv = shape->n_head_kv,
                       .max_pages = s->max_pages,
                       .used = e->pages.used,
                       .free = e->pages.capacity - e->pages.used,
                       .peak = e->pages.peak,
                       .page_bytes = e->page_bytes,
                       .used_bytes = (uint64_t)e->pages.used * e->page_bytes,
                       .pool_bytes = e->pool.bytes};
}

void moa_seq_page_map(const moa_seq *s, uint8_t *held) {
    const int64_t n = (int64_t)n_widest(shape_of(s)) * s->max_pages;
    for (int64_t i = 0; i < n; i++)
        held[i] = s->table[i] >= 0;
}
