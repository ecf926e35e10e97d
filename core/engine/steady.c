/* steady.h: how it is done.
 *
 *   device   [id | pos | limit | step | end ids]          shared   told (N_TOLD)
 *
 * Tokens [0, n_past) count; those up to n_fed have their step queued. At most AHEAD steps are queued before the first of them is told.
 * Where a page begins the queue first runs empty: then the pages that went out of sight are free before others are taken, as
 * in single steps, and one upload brings both. On a backend that cannot record, a queued step has run: there nothing is ahead. */
#include "core/engine/steady.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"

enum { AHEAD = 3, N_TOLD = 16, ID = 0, POS = 1, LIMIT = 2, STEP = 3, END = 4 };

struct moa_steady {
    moa_engine *engine;
    moa_seq *s;
    moa_steady_config c;
    int32_t *host; /* what goes up: id, pos, limit, step, end ids (n_end) */
    moa_dev_mem state;
    moa_told *told, *d_told; /* (N_TOLD) shared */
    int32_t n_fed;
    int32_t next; /* what the device feeds next by itself, when that has been told; -1: idle or unknown */
    uint32_t n_told;
    uint64_t n_plan;
    int32_t trimmed; /* as in lanes.c */
    void *recording[2]; /* a step; one that is watched */
    bool step_done[2], no_recording;
};

enum { STAT_EVERY = 32 };
int32_t moa_steady_stat_every(const moa_seq *s) {
    return s->engine->vt->replay ? STAT_EVERY : 1;
}

bool moa_steady_can(const moa_seq *s) {
    return s->engine->vt->share && s->engine->vt->unshare && s->n_reserved > 0 && !s->has_gaps;
}

void moa_steady_forget_recording(moa_steady *d) {
    for (int i = 0; i < 2; i++) {
        if (d->recording[i]) d->engine->vt->recording_free(d->engine->backend, d->recording[i]);
        d->recording[i] = NULL;
        d->step_done[i] = false;
    }
}

static moa_status steady_memory(moa_steady *d, const moa_steady_config *c, moa_err *err) {
    moa_engine *e = d->engine;
    void *host = NULL, *device = NULL;
    const size_t n = END + (size_t)c->n_end;
    d->host = calloc(n, sizeof *d->host);
    if (!d->host) return moa_fail(err, MOA_E_MEMORY, "no memory for %d end tokens", c->n_end);
    if (c->n_end) memcpy(d->host + END, c->end, (size_t)c->n_end * sizeof *c->end);
    d->host[LIMIT] = d->s->n_reserved;
    moa_status s = moa_engine_alloc(e, n * sizeof *d->host, &d->state, err);
    if (s == MOA_OK) s = e->vt->share(e->backend, N_TOLD * sizeof *d->told, &host, &device, err);
    d->told = host;
    d->d_told = device;
    return s;
}

moa_status moa_steady_open(moa_steady **out, moa_seq *s, const moa_steady_config *c, moa_err *err) {
    *out = NULL;
    if (!moa_steady_can(s) || s->steady)
        return moa_fail(err, MOA_E_INVALID, "the sequence cannot be decoded steadily: %s",
                        s->steady ? "it is already" : "lost keys, no plan, or a device without shared memory");
    moa_steady *d = calloc(1, sizeof *d);
    if (!d) return moa_fail(err, MOA_E_MEMORY, "no memory for a steady decode");
    *d = (moa_steady){
        .engine = s->engine, .s = s, .c = *c, .n_fed = s->n_past, .next = -1, .n_plan = s->n_plan, .trimmed = -1};
    s->steady = d;
    const moa_status status = steady_memory(d, c, err);
    if (status == MOA_OK)
        *out = d;
    else
        moa_steady_close(&d);
    return status;
}

void moa_steady_close(moa_steady **pd) {
    moa_steady *d = *pd;
    if (!d) return;
    moa_steady_forget_recording(d);
    if (d->told) d->engine->vt->unshare(d->engine->backend, d->told);
    moa_engine_free(d->engine, &d->state);
    d->s->steady = NULL;
    free(d->host);
    free(d);
    *pd = NULL;
}

/* --- a step ------------------------------------------------------------------------------------------------------------------ */

static moa_status operations(moa_steady *d, bool watched, moa_err *err) {
    moa_engine *e = d->engine;
    int32_t *at = d->state.data;
    d->s->blind = !watched;
    const moa_status s = moa_seq_step_operations(d->s, at + ID, at + POS, err);
    d->s->blind = false;
    if (s != MOA_OK) return s;
    return e->vt->sample(e->backend,
                         &(moa_args_sample){.logits = e->ws.logits,
                                            .how = d->c.sampling,
                                            .id = at + ID,
                                            .pos = at + POS,
                                            .limit = at + LIMIT,
                                            .end = at + END,
                                            .told = d->d_told,
                                            .step = (uint32_t *)(void *)(at + STEP),
                                            .n_seq = 1,
                                            .n_vocab = e->model->shape.n_vocab,
                                            .n_end = d->c.n_end,
                                            .told_stride = N_TOLD,
                                            .n_top = d->c.n_top},
                         err);
}

static bool can_record(const moa_steady *d) {
    const moa_backend_vtable *vt = d->engine->vt;
    return vt->record_begin && vt->record_end && vt->replay && vt->recording_free && !d->no_recording;
}

/* as in engine_forward.c: a recording that cannot be made is no error */
static void *record(moa_steady *d, bool watched) {
    moa_engine *e = d->engine;
    void *recording = NULL;
    if (e->vt->record_begin(e->backend, NULL) != MOA_OK) return NULL;
    const moa_status s = operations(d, watched, NULL), end = e->vt->record_end(e->backend, &recording, NULL);
    if (s == MOA_OK && end == MOA_OK) return recording;
    if (end == MOA_OK) e->vt->recording_free(e->backend, recording);
    return NULL;
}

static moa_status play(moa_steady *d, moa_err *err) {
    const bool watched = d->s->d_stat && (d->c.stat_every <= 1 || d->n_fed % d->c.stat_every == 0);
    if (can_record(d) && !d->recording[watched] && d->step_done[watched]) {
        d->recording[watched] = record(d, watched);
        d->no_recording = !d->recording[watched];
    }
    if (d->recording[watched]) return d->engine->vt->replay(d->engine->backend, d->recording[watched], err);
    const moa_status s = operations(d, watched, err);
    d->step_done[watched] = s == MOA_OK;
    return s;
}

/* before the first token of a page, and before the first of all: all that is queued has been told */
static moa_status begin_page(moa_steady *d, moa_err *err) {
    moa_seq *q = d->s;
    moa_status s = MOA_OK;
    assert(d->n_fed == q->n_past);
    MOA_TRY(moa_probe_begin(q, 1, err));
    MOA_TRY(moa_seq_reserve_steps(q, err));
    for (int32_t l = 0; l < d->engine->model->shape.n_layer; l++)
        MOA_TRY(moa_seq_extend(q, l, d->n_fed + 1, err));
    s = moa_seq_state_upload(q, err);
out:
    return s;
}

static moa_status feed(moa_steady *d, int32_t id, moa_err *err) {
    moa_engine *e = d->engine;
    d->host[ID] = id;
    d->host[POS] = d->s->n_past;
    memcpy(d->host + STEP, &d->n_told, sizeof d->n_told);
    d->n_fed = d->s->n_past;
    const moa_status s = begin_page(d, err);
    return s != MOA_OK ? s
                       : e->vt->upload(e->backend, d->state.data, d->host,
                                       (END + (size_t)d->c.n_end) * sizeof *d->host, err);
}

/* the device's own next token; false: it is idle, or must not yet */
static bool may_queue(const moa_steady *d) {
    if (d->n_fed >= d->s->n_reserved) return false;
    return d->n_fed == d->s->n_past || (can_record(d) && (d->step_done[0] || d->step_done[1]) && d->n_fed % MOA_PAGE_TOK != 0 &&
                                        d->n_fed - d->s->n_past < AHEAD);
}

static moa_status queue(moa_steady *d, moa_err *err) {
    moa_status s = MOA_OK;
    if (d->n_fed % MOA_PAGE_TOK == 0) s = begin_page(d, err);
    if (s == MOA_OK) s = play(d, err);
    if (s == MOA_OK) d->n_fed++;
    return s;
}

/* --- what is told --------------------------------------------------------------------------------------------------------------- */

static bool is_told(const moa_steady *d) {
    return __atomic_load_n(&d->told[d->n_told % N_TOLD].stamp, __ATOMIC_ACQUIRE) == d->n_told + 1;
}

/* A step takes 100 us to 100 ms. After half a second the device is asked, which waits for it and says what is wrong with it. */
static moa_status wait_for_told(moa_steady *d, moa_err *err) {
    moa_engine *e = d->engine;
    const struct timespec nap = {.tv_nsec = 10000};
    for (int i = 0; i < 10000; i++) {
        if (is_told(d)) return MOA_OK;
        (void)nanosleep(&nap, NULL);
    }
    const moa_status s = e->vt->sync(e->backend, err);
    if (s != MOA_OK || is_told(d)) return s;
    return moa_fail(err, MOA_E_FAILED, "the step of token %d ended without a word", d->s->n_past);
}

static void count(moa_steady *d, int32_t id) {
    moa_seq *s = d->s;
    s->ids[s->n_past] = id;
    moa_probe_commit(s, 1);
    s->n_past++;
    s->n_journal = 0;
    moa_kv_pages_settle(&d->engine->pages);
    const int32_t border = (s->n_past + 1) / MOA_PAGE_TOK;
    for (int32_t l = 0; border != d->trimmed && l < d->engine->model->shape.n_layer; l++)
        moa_seq_trim(s, l, s->n_past, false);
    d->trimmed = border;
}

static bool ends(const moa_steady *d, int32_t id) {
    for (int32_t i = 0; i < d->c.n_end; i++)
        if (d->host[END + i] == id) return true;
    return false;
}

static moa_status check(const moa_steady *d, int32_t id, moa_err *err) {
    const moa_seq *s = d->s;
    if (id < 0 || id >= d->engine->model->shape.n_vocab)
        return moa_fail(err, MOA_E_INVALID, "id %d; the vocabulary has %d", id, d->engine->model->shape.n_vocab);
    if (s->n_past >= s->n_reserved)
        return moa_fail(err, MOA_E_INVALID, "all %d tokens that were reserved are there", s->n_reserved);
    if (s->n_plan != d->n_plan)
        return moa_fail(err, MOA_E_INVALID, "the sequence has another plan than when its steady decode began");
    return MOA_OK;
}

moa_status moa_steady_next(moa_steady *d, int32_t id, moa_told *told, moa_err *err) {
    moa_seq *q = d->s;
    moa_status s = MOA_OK;
    MOA_TRY(check(d, id, err));
    /* steps that are queued for another token are over before this one's: their words are of other stamps */
    if (id != d->next) {
        if (d->n_fed > q->n_past) MOA_TRY(d->engine->vt->sync(d->engine->backend, err));
        d->n_told += (uint32_t)(d->n_fed - q->n_past);
        MOA_TRY(feed(d, id, err));
    }
    d->next = -1; /* until all went well */
    while (may_queue(d))
        MOA_TRY(queue(d, err));
    MOA_TRY(wait_for_told(d, err));
    const moa_told *t = &d->told[d->n_told % N_TOLD];
    if (told) *told = *t;
    d->n_told++;
    count(d, id);
    d->next = ends(d, t->id) || q->n_past >= q->n_reserved ? -1 : t->id;
    return MOA_OK;
out:
    return s;
}
