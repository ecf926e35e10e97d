/* Lanes: several sequences decoded in step.
 *
 *   device   [lane 0: table | spans][lane 1: table | spans]... [id | pos | limit | seq | end | log][logits]
 *
 * The operations take sequences that stand a fixed stride apart, so the lanes have a page table of their own, all with the room
 * of the longest sequence; it follows the sequences' tables, entry by entry where they changed.
 *
 *   greedy   a look:  pages for up to 64 tokens ahead of every lane, what changed in the tables goes up,
 *                     64 steps are queued, each ending in `argmax` or `sample`, which moves ids and positions on by itself,
 *                     the log of chosen ids comes down: count tokens, free what is out of sight
 *
 * So a step in between costs the host one replay. Where a lane stops (end token, no room) both sides know by the same rule; the
 * device's lane is idle from that step on. Pages are taken at most one per KV head too early. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

typedef struct lane {
    moa_seq *s;
    int32_t id;      /* to be fed next, -1: idle */
    int32_t n_past;  /* as the lanes know it */
    int32_t n_ready; /* tokens that there are pages for */
    int32_t
        trimmed; /* (n_past + 1) / 64 when it was last trimmed: between such borders nothing goes out of sight */
    uint64_t n_plan, n_change;
} lane;

struct moa_lanes {
    moa_engine *engine;
    moa_lanes *next;
    lane *lanes; /* (n_seq) */
    int32_t n_seq, n_end, max_pages;
    moa_sampling sampling;
    int32_t *host; /* the device's block, up to seq: tables and spans, id, pos, limit, seq, end */
    size_t block;  /* elements of a lane's table and spans */
    size_t n_host; /* elements up to the log */
    int32_t *log;  /* host copy (n_seq, MOA_LANES_LOOK) */
    moa_dev_mem state, logits;
    moa_lanes_rows rows;
    int32_t *d_limit, *d_end, *d_log;
    bool rows_dirty;    /* id, pos differ from the device's */
    void *recording[2]; /* a step up to the logits; with argmax */
    bool step_done[2], no_recording;
};

static const moa_shape *shape_of(const moa_lanes *l) {
    return &l->engine->model->shape;
}
static int32_t pages_of(int32_t n_tok) {
    return (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
}
static size_t padded(size_t n) {
    return (n + 63) & ~(size_t)63;
}
static size_t n_table(const moa_lanes *l) {
    return (size_t)shape_of(l)->n_layer * (size_t)shape_of(l)->n_head_kv * (size_t)l->max_pages;
}
static size_t n_span(const moa_lanes *l) {
    return (size_t)shape_of(l)->n_layer * (size_t)shape_of(l)->n_head;
}
static int32_t *host_ids(const moa_lanes *l) {
    return l->host + (size_t)l->n_seq * l->block;
}
static int32_t *host_pos(const moa_lanes *l) {
    return host_ids(l) + padded((size_t)l->n_seq);
}

moa_lanes *moa_lanes_next(const moa_lanes *l) {
    return l->next;
}

/* The sink, the window (which begins inside a page), and one page ahead. */
int64_t moa_lanes_pages_most(const moa_seq *s) {
    const moa_shape *shape = &s->engine->model->shape;
    const int32_t all = pages_of(s->n_reserved);
    int64_t n = 0;
    for (int64_t i = 0; i < (int64_t)shape->n_layer * shape->n_head_kv; i++) {
        const int32_t most = s->widest[i] / MOA_PAGE_TOK + 2;
        n += most < all ? most : all;
    }
    return n;
}

void moa_lanes_forget_recordings(moa_lanes *l) {
    for (int i = 0; i < 2; i++) {
        if (l->recording[i]) l->engine->vt->recording_free(l->engine->backend, l->recording[i]);
        l->recording[i] = NULL;
        l->step_done[i] = false;
    }
}

/* --- open, close ----------------------------------------------------------------------------------------------------------- */

static moa_status check_config(const moa_engine *e, const moa_lanes_config *c, moa_err *err) {
    if (c->n_seq < 1 || c->n_seq > e->chunk)
        return moa_fail(err, MOA_E_INVALID, "%d sequences in step; this engine takes 1 to %d (its chunk)",
                        c->n_seq, e->chunk);
    for (int32_t i = 0; i < c->n_seq; i++) {
        const moa_seq *s = c->seqs[i];
        assert(s->engine == e);
        if (s->n_reserved == 0) return moa_fail(err, MOA_E_INVALID, "sequence %d has no plan yet", i);
        if (s->has_gaps)
            return moa_fail(err, MOA_E_INVALID, "sequence %d lacks keys inside its spans: prefill it again",
                            i);
        if (s->d_stat || s->capture)
            return moa_fail(err, MOA_E_INVALID, "sequence %d is watched: that needs it decoded alone", i);
        for (int32_t k = 0; k < i; k++)
            if (c->seqs[k] == s) return moa_fail(err, MOA_E_INVALID, "sequence %d is also sequence %d", i, k);
    }
    return MOA_OK;
}

/* where everything stands */
static bool lay_out(moa_lanes *l) {
    const size_t n = (size_t)l->n_seq, rows = padded(n);
    size_t blocks;
    l->block = padded(n_table(l)) + padded(n_span(l));
    if (!moa_size_mul(n, l->block, &blocks) || blocks > SIZE_MAX / 64) return false;
    l->n_host = blocks + 4 * rows + padded((size_t)l->n_end + 1);
    return true;
}

static void hand_out(moa_lanes *l) {
    int32_t *d = l->state.data;
    const size_t rows = padded((size_t)l->n_seq);
    int32_t *ids = d + (size_t)l->n_seq * l->block;
    l->d_limit = ids + 2 * rows;
    l->d_end = ids + 4 * rows;
    l->d_log = d + l->n_host;
    l->rows = (moa_lanes_rows){.n = l->n_seq,
                               .max_pages = l->max_pages,
                               .stride = (int64_t)l->block,
                               .table = d,
                               .span = d + padded(n_table(l)),
                               .ids = ids,
                               .pos = ids + rows,
                               .seq = ids + 3 * rows,
                               .logits = l->logits.data};
}

static void copy_table(moa_lanes *l, int32_t i) {
    const moa_seq *s = l->lanes[i].s;
    int32_t *to = l->host + (size_t)i * l->block;
    for (size_t h = 0; h < (size_t)shape_of(l)->n_layer * (size_t)shape_of(l)->n_head_kv; h++)
        memcpy(to + h * (size_t)l->max_pages, s->table + h * (size_t)s->max_pages,
               (size_t)s->max_pages * sizeof *to);
    l->lanes[i].n_change = s->n_change;
}

static void fill_host(moa_lanes *l, const moa_lanes_config *c) {
    const size_t rows = padded((size_t)l->n_seq);
    int32_t *ids = host_ids(l), *pos = host_pos(l);
    for (size_t i = 0; i < (size_t)l->n_seq * l->block; i++)
        l->host[i] = -1;
    for (int32_t i = 0; i < l->n_seq; i++) {
        const moa_seq *s = c->seqs[i];
        l->lanes[i] = (lane){.s = c->seqs[i], .id = -1, .n_past = s->n_past, .n_plan = s->n_plan};
        copy_table(l, i);
        memcpy(l->host + (size_t)i * l->block + padded(n_table(l)), s->span, n_span(l) * sizeof *s->span);
        ids[i] = 0;
        pos[i] = -1;
        ids[2 * rows + (size_t)i] = s->n_reserved;
        ids[3 * rows + (size_t)i] = i;
    }
    for (int32_t i = 0; i < c->n_end; i++)
        ids[4 * rows + (size_t)i] = c->end[i];
}

moa_status moa_lanes_open(moa_lanes **out, moa_engine *e, const moa_lanes_config *c, moa_err *err) {
    moa_status s = check_config(e, c, err);
    moa_lanes *l = NULL;
    size_t bytes = 0;
    *out = NULL;
    if (s != MOA_OK) return s;
    l = calloc(1, sizeof *l);
    if (!l) return moa_fail(err, MOA_E_MEMORY, "no memory for %d lanes", c->n_seq);
    *l = (moa_lanes){.engine = e, .next = e->lanes, .n_seq = c->n_seq, .n_end = c->n_end, .sampling = c->sampling};
    e->lanes = l;
    for (int32_t i = 0; i < c->n_seq; i++)
        if (c->seqs[i]->max_pages > l->max_pages) l->max_pages = c->seqs[i]->max_pages;
    const size_t n_log = (size_t)c->n_seq * MOA_LANES_LOOK;
    if (!lay_out(l) || !moa_size_mul((size_t)c->n_seq, (size_t)shape_of(l)->n_vocab, &bytes) ||
        !moa_size_mul(bytes, sizeof(float), &bytes))
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "the tables of %d lanes are more than can be counted", c->n_seq));
    l->lanes = calloc((size_t)c->n_seq, sizeof *l->lanes);
    l->host = calloc(l->n_host, sizeof *l->host);
    l->log = calloc(n_log, sizeof *l->log);
    if (!l->lanes || !l->host || !l->log)
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the page tables of %d lanes", c->n_seq));
    MOA_TRY(moa_engine_alloc(e, bytes, &l->logits, err));
    MOA_TRY(moa_engine_alloc(e, (l->n_host + n_log) * sizeof *l->host, &l->state, err));
    hand_out(l);
    fill_host(l, c);
    MOA_TRY(e->vt->upload(e->backend, l->state.data, l->host, l->n_host * sizeof *l->host, err));
    *out = l;
    return MOA_OK;
out:
    moa_lanes_close(&l);
    return s;
}

void moa_lanes_close(moa_lanes **pl) {
    moa_lanes *l = *pl;
    if (!l) return;
    moa_lanes_forget_recordings(l);
    moa_engine_free(l->engine, &l->state);
    moa_engine_free(l->engine, &l->logits);
    for (moa_lanes **at = &l->engine->lanes; *at; at = &(*at)->next)
        if (*at == l) {
            *at = l->next;
            break;
        }
    free(l->lanes);
    free(l->host);
    free(l->log);
    free(l);
    *pl = NULL;
}

/* --- what is fed ------------------------------------------------------------------------------------------------------------- */

moa_status moa_lanes_feed(moa_lanes *l, int32_t i, int32_t id, moa_err *err) {
    assert(i >= 0 && i < l->n_seq);
    const moa_seq *s = l->lanes[i].s;
    if (id >= shape_of(l)->n_vocab)
        return moa_fail(err, MOA_E_INVALID, "lane %d: id %d; the vocabulary has %d", i, id,
                        shape_of(l)->n_vocab);
    if (id >= 0 && s->n_past >= s->n_reserved)
        return moa_fail(err, MOA_E_INVALID, "lane %d: all %d tokens that were reserved are there", i,
                        s->n_reserved);
    l->lanes[i].id = id < 0 ? -1 : id;
    l->rows_dirty = true;
    return MOA_OK;
}

bool moa_lanes_active(const moa_lanes *l, int32_t i) {
    return l->lanes[i].id >= 0;
}

/* --- before the steps -------------------------------------------------------------------------------------------------------- */

/* whoever else used a sequence meanwhile may have changed what the lanes rely on */
static moa_status check_lanes(const moa_lanes *l, moa_err *err) {
    for (int32_t i = 0; i < l->n_seq; i++) {
        const lane *y = &l->lanes[i];
        if (y->s->n_plan != y->n_plan || y->s->n_past != y->n_past)
            return moa_fail(err, MOA_E_INVALID,
                            "lane %d: its sequence has %d tokens or another plan; it had %d when it was last "
                            "decoded here",
                            i, y->s->n_past, y->n_past);
    }
    return MOA_OK;
}

static int32_t ahead(const lane *y, int32_t n_step) {
    const int32_t room = y->s->n_reserved - y->n_past;
    return y->n_past + (n_step < room ? n_step : room);
}

static int64_t pages_missing(const moa_lanes *l, const lane *y, int32_t n_after) {
    int64_t n = 0;
    for (int32_t layer = 0; layer < shape_of(l)->n_layer; layer++)
        for (int32_t k = 0; k < shape_of(l)->n_head_kv; k++)
            for (int32_t p = y->n_past / MOA_PAGE_TOK; p < pages_of(n_after); p++)
                n += y->s->table[moa_seq_at(y->s, layer, k) + p] < 0;
    return n;
}

static moa_status take_pages(moa_lanes *l, int32_t n_step, moa_err *err) {
    moa_engine *e = l->engine;
    int64_t n = 0;
    moa_status s = MOA_OK;
    for (int32_t i = 0; i < l->n_seq; i++)
        if (moa_lanes_active(l, i) && ahead(&l->lanes[i], n_step) > l->lanes[i].n_ready)
            n += pages_missing(l, &l->lanes[i], ahead(&l->lanes[i], n_step));
    if (n > 0) MOA_TRY(moa_engine_reserve(e, e->pages.used + n, false, err));
    for (int32_t i = 0; i < l->n_seq && n > 0; i++)
        for (int32_t layer = 0; moa_lanes_active(l, i) && layer < shape_of(l)->n_layer; layer++)
            MOA_TRY(moa_seq_extend(l->lanes[i].s, layer, ahead(&l->lanes[i], n_step), err));
    for (int32_t i = 0; i < l->n_seq; i++)
        if (moa_lanes_active(l, i))
            l->lanes[i].n_ready = pages_of(ahead(&l->lanes[i], n_step)) * MOA_PAGE_TOK;
out:
    return s;
}

/* A lane's table goes up from its first to its last changed entry. The device's copy is in use by steps already queued, but
 * uploads keep queue order. */
static moa_status upload_tables(moa_lanes *l, moa_err *err) {
    moa_engine *e = l->engine;
    const size_t n_row = (size_t)shape_of(l)->n_layer * (size_t)shape_of(l)->n_head_kv;
    for (int32_t i = 0; i < l->n_seq; i++) {
        const moa_seq *s = l->lanes[i].s;
        int32_t *mine = l->host + (size_t)i * l->block;
        size_t first = SIZE_MAX, end = 0;
        if (l->lanes[i].n_change == s->n_change) continue;
        for (size_t h = 0; h < n_row; h++)
            if (memcmp(mine + h * (size_t)l->max_pages, s->table + h * (size_t)s->max_pages,
                       (size_t)s->max_pages * sizeof *mine) != 0) {
                if (first == SIZE_MAX) first = h * (size_t)l->max_pages;
                end = (h + 1) * (size_t)l->max_pages;
            }
        copy_table(l, i);
        if (end == 0) continue;
        const moa_status status =
            e->vt->upload(e->backend, (int32_t *)l->state.data + (size_t)i * l->block + first, mine + first,
                          (end - first) * sizeof *mine, err);
        if (status != MOA_OK) {
            l->lanes[i].n_change = s->n_change - 1; /* once more, next time: nothing of it may have arrived */
            memset(mine, 0xfe, n_table(l) * sizeof *mine);
            return status;
        }
    }
    return MOA_OK;
}

static moa_status upload_rows(moa_lanes *l, moa_err *err) {
    const size_t rows = padded((size_t)l->n_seq);
    int32_t *ids = host_ids(l), *pos = host_pos(l);
    if (!l->rows_dirty) return MOA_OK;
    for (int32_t i = 0; i < l->n_seq; i++) {
        const lane *y = &l->lanes[i];
        if (y->id >= 0) ids[i] = y->id;
        pos[i] = y->id >= 0 ? y->n_past : -1;
    }
    const moa_status s = l->engine->vt->upload(l->engine->backend, (void *)(uintptr_t)l->rows.ids, ids,
                                               2 * rows * sizeof *ids, err);
    l->rows_dirty = s != MOA_OK;
    return s;
}

static moa_status before(moa_lanes *l, int32_t n_step, moa_err *err) {
    moa_status s = MOA_OK;
    MOA_TRY(check_lanes(l, err));
    MOA_TRY(take_pages(l, n_step, err));
    MOA_TRY(upload_tables(l, err));
    MOA_TRY(upload_rows(l, err));
out:
    return s;
}

/* --- steps ---------------------------------------------------------------------------------------------------------------------- */

static moa_status choose_likeliest(moa_lanes *l, moa_err *err) {
    moa_engine *e = l->engine;
    return e->vt->argmax(e->backend,
                         &(moa_args_argmax){.logits = l->rows.logits,
                                            .id = (int32_t *)(uintptr_t)l->rows.ids,
                                            .pos = (int32_t *)(uintptr_t)l->rows.pos,
                                            .limit = l->d_limit,
                                            .log = l->d_log,
                                            .end = l->d_end,
                                            .n_seq = l->n_seq,
                                            .n_vocab = shape_of(l)->n_vocab,
                                            .log_stride = MOA_LANES_LOOK,
                                            .n_end = l->n_end},
                         err);
}

static moa_status draw(moa_lanes *l, moa_err *err) {
    moa_engine *e = l->engine;
    return e->vt->sample(e->backend,
                         &(moa_args_sample){.logits = l->rows.logits,
                                            .how = l->sampling,
                                            .id = (int32_t *)(uintptr_t)l->rows.ids,
                                            .pos = (int32_t *)(uintptr_t)l->rows.pos,
                                            .limit = l->d_limit,
                                            .log = l->d_log,
                                            .end = l->d_end,
                                            .n_seq = l->n_seq,
                                            .n_vocab = shape_of(l)->n_vocab,
                                            .log_stride = MOA_LANES_LOOK,
                                            .n_end = l->n_end},
                         err);
}

static moa_status operations(moa_lanes *l, bool choose, moa_err *err) {
    const moa_status s = moa_lanes_operations(l->engine, &l->rows, err);
    if (s != MOA_OK || !choose) return s;
    return l->sampling.temp == 0 ? choose_likeliest(l, err) : draw(l, err);
}

/* as in engine_forward.c: a recording that cannot be made is no error */
static void *record(moa_lanes *l, bool choose) {
    moa_engine *e = l->engine;
    void *recording = NULL;
    if (e->vt->record_begin(e->backend, NULL) != MOA_OK) return NULL;
    const moa_status s = operations(l, choose, NULL), end = e->vt->record_end(e->backend, &recording, NULL);
    if (s == MOA_OK && end == MOA_OK) return recording;
    if (end == MOA_OK) e->vt->recording_free(e->backend, recording);
    return NULL;
}

static moa_status play(moa_lanes *l, bool choose, moa_err *err) {
    moa_engine *e = l->engine;
    const bool can = e->vt->record_begin && e->vt->record_end && e->vt->replay && e->vt->recording_free &&
                     !l->no_recording;
    if (can && !l->recording[choose] && l->step_done[choose]) {
        l->recording[choose] = record(l, choose);
        l->no_recording = !l->recording[choose];
    }
    if (l->recording[choose]) return e->vt->replay(e->backend, l->recording[choose], err);
    const moa_status s = operations(l, choose, err);
    l->step_done[choose] = s == MOA_OK;
    return s;
}

/* the token a lane fed is in the sequence now */
static void count(moa_lanes *l, lane *y) {
    y->s->ids[y->s->n_past++] = y->id;
    y->n_past = y->s->n_past;
    (void)l;
}

static void trim(moa_lanes *l) {
    for (int32_t i = 0; i < l->n_seq; i++) {
        lane *y = &l->lanes[i];
        const int32_t border = (y->n_past + 1) / MOA_PAGE_TOK;
        for (int32_t layer = 0; border != y->trimmed && layer < shape_of(l)->n_layer; layer++)
            moa_seq_trim(y->s, layer, y->n_past, false);
        y->trimmed = border;
    }
}

static bool ends(const moa_lanes *l, int32_t id) {
    const int32_t *end = host_ids(l) + 4 * padded((size_t)l->n_seq);
    for (int32_t i = 0; i < l->n_end; i++)
        if (end[i] == id) return true;
    return false;
}

/* what n steps have chosen; the same rule as the operation's */
static void read_log(moa_lanes *l, int32_t n, int32_t *ids, int32_t *n_ids, int32_t n_step) {
    for (int32_t i = 0; i < l->n_seq; i++) {
        lane *y = &l->lanes[i];
        for (int32_t k = 0; k < n && y->id >= 0; k++) {
            const int32_t id = l->log[i * MOA_LANES_LOOK + y->n_past % MOA_LANES_LOOK];
            count(l, y);
            ids[(int64_t)i * n_step + n_ids[i]++] = id;
            y->id = ends(l, id) || y->n_past >= y->s->n_reserved ? -1 : id;
        }
    }
    trim(l);
}

static bool any_active(const moa_lanes *l) {
    for (int32_t i = 0; i < l->n_seq; i++)
        if (moa_lanes_active(l, i)) return true;
    return false;
}

static moa_status look(moa_lanes *l, int32_t n, moa_err *err) {
    moa_engine *e = l->engine;
    moa_status s = MOA_OK;
    MOA_TRY(before(l, n, err));
    for (int32_t k = 0; k < n; k++)
        MOA_TRY(play(l, true, err));
    MOA_TRY(e->vt->download(e->backend, l->log, l->d_log, (size_t)l->n_seq * MOA_LANES_LOOK * sizeof *l->log,
                            err));
out:
    if (s != MOA_OK) l->rows_dirty = true; /* the device may be ahead: back to what is counted */
    return s;
}

moa_status moa_lanes_greedy(moa_lanes *l, int32_t n_step, int32_t *ids, int32_t *n_ids,
                            bool (*cancelled)(void *user), void *user, moa_err *err) {
    memset(n_ids, 0, (size_t)l->n_seq * sizeof *n_ids);
    for (int32_t done = 0; done < n_step && any_active(l);) {
        const int32_t n = n_step - done < MOA_LANES_LOOK ? n_step - done : MOA_LANES_LOOK;
        if (cancelled && cancelled(user))
            return moa_fail(err, MOA_E_CANCELLED, "interrupted after %d of %d steps", done, n_step);
        const moa_status s = look(l, n, err);
        if (s != MOA_OK) return s;
        read_log(l, n, ids, n_ids, n_step);
        done += n;
    }
    return MOA_OK;
}

moa_status moa_lanes_step(moa_lanes *l, float *logits, moa_err *err) {
    moa_engine *e = l->engine;
    moa_status s = MOA_OK;
    MOA_TRY(before(l, 1, err));
    MOA_TRY(play(l, false, err));
    MOA_TRY(e->vt->download(e->backend, logits, l->rows.logits,
                            (size_t)l->n_seq * (size_t)shape_of(l)->n_vocab * sizeof *logits, err));
    for (int32_t i = 0; i < l->n_seq; i++) {
        if (!moa_lanes_active(l, i)) continue;
        count(l, &l->lanes[i]);
        l->lanes[i].id = -1;
    }
    l->rows_dirty = true;
    trim(l);
out:
    return s;
}
