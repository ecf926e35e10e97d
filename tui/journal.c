/* journal.c -- see journal.h.
 *
 * The store holds base plan + edits + position; memory holds the plan as it is + history. `stale` says that they differ, because a write
 * failed or nothing was written yet; then everything is written anew (the base is the plan with its edits taken back) before
 * anything is added. So a hook has two ways only: add one row, or write all of it.
 *
 * Read back, the store is a file like any other: each edit must fit the plan's shape and must change exactly what the steps before it
 * left; from the first that does not on, the history is dropped and that is said. */
#include "tui/journal.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/json.h"
#include "core/engine/engine.h"
#include "sessions/store.h"
#include "tui/internal.h"

enum { EDITS_MAX = 100000 };
static const double RETRY_S = 5, COMMIT_S = 0.25;

struct tui_journal {
    moa_store *store;
    int64_t session;  /* 0: none begun */
    int64_t run;      /* of the run under way, 0: none */
    tui_slot slot;    /* of that run */
    bool stale;       /* the store's edits are not those in memory */
    bool failed;      /* the last write failed, and that was said */
    bool deaf;        /* restoring: hooks would write what was just read */
    double retry_at, ticked_at;
    char fingerprint[65]; /* of the session's model, "" unknown */
    int32_t n_layer, n_head;
    char offer[256];
};

/* --- failing --------------------------------------------------------------------------------------------------------------- */

static void write_failed(tui_app *app, const moa_err *err) {
    tui_journal *j = app->journal;
    j->stale = true;
    j->retry_at = app->now + RETRY_S;
    if (j->failed) return;
    j->failed = true;
    tui_say(app, TUI_WARN, "%.300s. The work goes on, in memory", err->text);
}

static void write_worked(tui_app *app) {
    tui_journal *j = app->journal;
    j->stale = false;
    if (j->failed) tui_say(app, TUI_GOOD, "The session store can be written again; edits are kept anew");
    j->failed = false;
}

/* --- edits on their way out --------------------------------------------------------------------------------------------------- */

static size_t n_heads(const moa_plan *p) { return (size_t)p->n_layer * (size_t)p->n_head; }

/* a step of the history as rows of the store; *out malloc'ed */
static moa_status step_rows(const moa_plan *plan, const tui_change *c, moa_change **out, int32_t *n, moa_err *err) {
    const size_t heads = n_heads(plan), n_mark = c->marks_before && c->marks_after ? heads : 0;
    *n = 0;
    *out = malloc(((size_t)c->n + n_mark + 1) * sizeof **out);
    if (!*out) return moa_fail(err, MOA_E_MEMORY, "no memory to keep an edit of %d heads", c->n);
    for (int32_t i = 0; i < c->n; i++)
        (*out)[(*n)++] = (moa_change){c->at[i] / plan->n_head, c->at[i] % plan->n_head, c->before[i], c->after[i]};
    for (size_t i = 0; i < n_mark; i++)
        if (c->marks_before[i] != c->marks_after[i])
            (*out)[(*n)++] = (moa_change){-1 - (int32_t)i / plan->n_head, (int32_t)i % plan->n_head, {c->marks_before[i], 0}, {c->marks_after[i], 0}};
    return MOA_OK;
}

static moa_status push(tui_app *app, const tui_change *c, moa_err *err) {
    moa_change *rows = NULL;
    int32_t n;
    moa_status s = step_rows(app->plan.now, c, &rows, &n, err);
    if (s == MOA_OK) s = moa_store_edit_push(app->journal->store, app->journal->session, c->what, rows, n, err);
    free(rows);
    return s;
}

/* the plan with all its edits taken back, as text; "" without a plan */
static moa_status base_text(const tui_app *app, moa_buf *out, moa_err *err) {
    const tui_plan *p = &app->plan;
    moa_plan *base = NULL;
    if (!p->now) return MOA_OK;
    moa_status s = moa_plan_copy(&base, p->now, err);
    if (s == MOA_OK) {
        for (int i = p->n_done - 1; i >= 0; i--)
            for (int32_t k = 0; k < p->changes[i].n; k++) base->rules[p->changes[i].at[k]] = p->changes[i].before[k];
        s = moa_plan_print(base, true, out, err);
    }
    moa_plan_close(&base);
    return s;
}

/* files are found again from any folder; what is no file here (a name, a path of another machine) stays as it was typed */
static void whole_path(const char *path, bool here, char out[PATH_MAX]) {
    char *whole = *path && here ? realpath(path, NULL) : NULL;
    (void)snprintf(out, PATH_MAX, "%s", whole ? whole : path);
    free(whole);
}

static void model_path(const tui_app *app, char out[PATH_MAX]) { whole_path(app->options.model, !*app->options.engine, out); }

static moa_status begin(tui_app *app, const moa_buf *base, moa_err *err) {
    tui_journal *j = app->journal;
    const tui_model *m = &app->model;
    char path[PATH_MAX], plan_path[PATH_MAX];
    model_path(app, path);
    whole_path(app->plan.path, true, plan_path);
    j->n_layer = app->plan.now ? app->plan.now->n_layer : m->n_layer;
    j->n_head = app->plan.now ? app->plan.now->n_head : m->n_head;
    (void)snprintf(j->fingerprint, sizeof j->fingerprint, "%s", m->loaded ? m->fingerprint : "");
    moa_session in = {.model_path = path, .model_name = (char *)(uintptr_t)moa_clean_text(m->name), .fingerprint = j->fingerprint,
                      .n_layer = j->n_layer, .n_head = j->n_head, .n_head_kv = m->n_head_kv, .plan_path = plan_path,
                      .plan = base->data};
    const moa_status s = moa_store_session_begin(j->store, &in, err);
    if (s == MOA_OK) j->session = in.id;
    return s;
}

/* all of the session but its runs */
static moa_status write_all(tui_app *app, moa_err *err) {
    tui_journal *j = app->journal;
    const tui_plan *p = &app->plan;
    moa_buf base = {0};
    char path[PATH_MAX];
    moa_status s = MOA_OK;
    whole_path(p->path, true, path);
    MOA_TRY(base_text(app, &base, err));
    MOA_TRY(j->session ? moa_store_session_plan(j->store, j->session, path, base.data, err) : begin(app, &base, err));
    for (int i = 0; i < p->n_change; i++) MOA_TRY(push(app, &p->changes[i], err));
    if (p->n_done < p->n_change) MOA_TRY(moa_store_undo_pos(j->store, j->session, p->n_done, err));
    MOA_TRY(moa_store_session_prompt(j->store, j->session, app->prompt.data, app->prompt.size, err));
out:
    moa_buf_free(&base);
    return s;
}

/* May a row be added? Writes everything first when the store is behind; *whole (may be NULL) says that this was done. */
static bool ready(tui_app *app, bool *whole) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    if (whole) *whole = false;
    if (!j || j->deaf) return false;
    if (j->session && !j->stale) return true;
    if (j->failed && app->now < j->retry_at) return false;
    if (write_all(app, &err) != MOA_OK) {
        write_failed(app, &err);
        return false;
    }
    write_worked(app);
    if (whole) *whole = true;
    return true;
}

void journal_edit(tui_app *app, const tui_change *change) {
    moa_err err = {0};
    bool whole;
    if (app->journal && !change) app->journal->stale = true;
    if (ready(app, &whole) && !whole && change && push(app, change, &err) != MOA_OK) write_failed(app, &err);
}

void journal_undo_pos(tui_app *app) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    bool whole;
    if (ready(app, &whole) && !whole && moa_store_undo_pos(j->store, j->session, app->plan.n_done, &err) != MOA_OK) write_failed(app, &err);
}

/* a session that has not begun has nothing to say about plans: it begins with the one there is then */
void journal_plan_opened(tui_app *app) {
    tui_journal *j = app->journal;
    if (!j || j->deaf || !j->session) return;
    j->stale = true;
    (void)ready(app, NULL);
}

void journal_plan_saved(tui_app *app) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    bool whole;
    char path[PATH_MAX];
    if (!j || !j->session || !ready(app, &whole) || whole) return;
    whole_path(app->plan.path, true, path);
    if (moa_store_session_plan_path(j->store, j->session, path, &err) != MOA_OK) write_failed(app, &err);
}

void journal_prompt(tui_app *app) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    bool whole;
    if (!j || !j->session || !ready(app, &whole) || whole) return;
    if (moa_store_session_prompt(j->store, j->session, app->prompt.data, app->prompt.size, &err) != MOA_OK) write_failed(app, &err);
}

/* --- runs ------------------------------------------------------------------------------------------------------------------------ */

static void sampling_json(const tui_app *app, moa_buf *b) {
    const moa_sampling *s = &app->options.sampling;
    moa_buf_printf(b, "{\"temp\": %.9g, \"top_k\": %d, \"top_p\": %.9g, \"min_p\": %.9g, \"n_gen\": %d", (double)s->temp, s->top_k, (double)s->top_p,
                   (double)s->min_p, app->options.n_gen);
    moa_buf_printf(b, ", \"chat\": %s, \"ignore_end\": %s, \"watch\": %d, \"kv\": \"%s\"}", app->options.chat ? "true" : "false",
                   app->options.ignore_end ? "true" : "false", app->options.watch, app->options.kv_type);
}

static void put_number(moa_buf *b, const char *key, double x) {
    moa_buf_printf(b, "%s\"%s\": ", b->size > 1 ? ", " : "", key);
    moa_json_number(b, x);
}

static double mean_of(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i];
    return n ? sum / (double)n : (double)NAN;
}

/* means over heads, and the worst query of all */
static void stats_json(const tui_run *r, moa_buf *b) {
    const size_t n = (size_t)r->n_layer * (size_t)r->n_head;
    moa_buf_str(b, "{");
    if (r->stats.there && n > 0) {
        const tui_stats *s = &r->stats;
        size_t worst = 0;
        for (size_t i = 1; i < n; i++)
            if (s->worst_query[i] >= 0 && (s->worst_query[worst] < 0 || s->worst_cover[i] < s->worst_cover[worst])) worst = i;
        put_number(b, "n_query", (double)s->n_query);
        put_number(b, "n_seen", (double)s->n_seen);
        put_number(b, "sampled_every", s->every);
        put_number(b, "entropy", mean_of(s->entropy, n));
        put_number(b, "sink", mean_of(s->sink, n));
        put_number(b, "window", mean_of(s->window, n));
        put_number(b, "distance", mean_of(s->distance, n));
        if (s->worst_query[worst] >= 0) {
            put_number(b, "worst_cover", (double)s->worst_cover[worst]);
            put_number(b, "worst_layer", (double)(worst / (size_t)r->n_head));
            put_number(b, "worst_head", (double)(worst % (size_t)r->n_head));
            put_number(b, "worst_query", s->worst_query[worst]);
        }
    }
    if (r->state == TUI_RUN_DONE) {
        put_number(b, "span_min", r->result.span_min);
        put_number(b, "span_mean", r->result.span_mean);
        put_number(b, "span_max", r->result.span_max);
        put_number(b, "kv_density", r->result.kv_density);
        put_number(b, "kv_peak_bytes", (double)r->result.kv_peak_bytes);
        put_number(b, "device_bytes", (double)r->result.device_bytes);
    }
    moa_buf_str(b, "}");
}

static moa_status store_begin(tui_app *app, const tui_run *r, moa_err *err) {
    tui_journal *j = app->journal;
    moa_buf plan = {0}, sampling = {0};
    moa_status s = MOA_OK;
    sampling_json(app, &sampling);
    if (!r->dense && app->plan.now) {
        moa_plan as_run = *app->plan.now; /* it may have been edited since: the rules are the run's own */
        as_run.rules = r->rules;
        MOA_TRY(moa_plan_print(&as_run, true, &plan, err));
    }
    const char *kind = j->slot == TUI_A ? "full" : j->slot == TUI_B ? "plan" : "compare";
    moa_run_record in = {.session = j->session, .kind = (char *)(uintptr_t)kind, .prompt = app->prompt.data, .plan = plan.data, .sampling = sampling.data,
                         .seed = app->options.sampling.seed, .device = (char *)(uintptr_t)moa_clean_text(app->model.device)};
    MOA_TRY(moa_store_run_begin(j->store, &in, err));
    j->run = in.id;
out:
    moa_buf_free(&plan);
    moa_buf_free(&sampling);
    return s;
}

void journal_run_begin(tui_app *app, tui_slot slot) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    if (!j || j->deaf) return;
    if (j->run) journal_run_end(app, &app->runs[j->slot]); /* its engine was taken from under it */
    j->run = 0;
    j->slot = slot;
    if (ready(app, NULL) && store_begin(app, &app->runs[slot], &err) != MOA_OK) write_failed(app, &err);
}

void journal_run_token(tui_app *app, const tui_token *token, const char *bytes) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    if (!j || !j->run) return;
    j->ticked_at = app->now;
    if (moa_store_run_output(j->store, j->run, bytes, token->control ? 0 : token->text_n, 1, &err) != MOA_OK) write_failed(app, &err);
}

/* the run could not be begun in the store when it began here: its output goes in at once */
static moa_status store_late(tui_app *app, const tui_run *r, moa_err *err) {
    tui_journal *j = app->journal;
    moa_status s = store_begin(app, r, err);
    for (int32_t i = 0; i < r->n_token && s == MOA_OK; i++) {
        const tui_token *t = &r->tokens[i];
        s = moa_store_run_output(j->store, j->run, r->pieces.data + t->text_at, t->control ? 0 : t->text_n, 1, err);
    }
    return s;
}

static moa_status store_made(tui_journal *j, const tui_run *r, moa_err *err) {
    int32_t *ids = malloc(((size_t)r->n_token + 1) * sizeof *ids);
    if (!ids) return moa_fail(err, MOA_E_MEMORY, "no memory for %d tokens", r->n_token);
    for (int32_t i = 0; i < r->n_token; i++) ids[i] = r->tokens[i].id;
    const moa_status s = moa_store_run_made(j->store, j->run, ids, r->n_token, err);
    free(ids);
    return s;
}

void journal_run_end(tui_app *app, const tui_run *r) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    moa_buf stats = {0};
    char stop[540];
    moa_status s = MOA_OK;
    if (!j || j->deaf || !ready(app, NULL)) return;
    if (!j->run) MOA_TRY(store_late(app, r, &err));
    if (r->state == TUI_RUN_DONE) (void)snprintf(stop, sizeof stop, "%s", r->stop);
    else if (r->state == TUI_RUN_FAILED) (void)snprintf(stop, sizeof stop, "failed: %s", r->failed);
    else (void)snprintf(stop, sizeof stop, "left"); /* quit, or another engine, in the middle of it */
    stats_json(r, &stats);
    const bool done = r->state == TUI_RUN_DONE;
    const moa_run_record end = {.id = j->run, .n_prompt = r->n_prompt, .n_gen = r->n_token, .n_reserved = r->n_reserved, .stop = stop, .stats = stats.data,
                                .prefill_s = r->prefill_s, .decode_s = r->decode_s, .ttft_s = r->ttft_s,
                                .kv_bytes = done ? (int64_t)r->result.kv_bytes : 0, .kv_plan = done ? (int64_t)r->result.kv_plan : 0,
                                .kv_dense = done ? (int64_t)r->result.kv_dense : 0, .kv_mha = done ? (int64_t)r->result.kv_mha : 0,
                                .device = (char *)(uintptr_t)moa_clean_text(app->model.device)};
    MOA_TRY(store_made(j, r, &err));
    s = moa_store_run_end(j->store, &end, &err);
out:
    if (s != MOA_OK) write_failed(app, &err);
    j->run = 0;
    moa_buf_free(&stats);
}

void journal_tick(tui_app *app) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    if (!j || app->now - j->ticked_at < COMMIT_S) return;
    j->ticked_at = app->now;
    if (j->failed && app->now >= j->retry_at) (void)ready(app, NULL);
    if (!j->failed && j->run && moa_store_tick(j->store, &err) != MOA_OK) write_failed(app, &err);
}

/* another model is another session; edits made so far go along with it, as its beginning */
void journal_loaded(tui_app *app) {
    tui_journal *j = app->journal;
    if (!j || !j->session) return;
    const tui_model *m = &app->model;
    const bool shape = m->n_layer == j->n_layer && m->n_head == j->n_head;
    if (shape && (!*j->fingerprint || strcmp(j->fingerprint, m->fingerprint) == 0)) return;
    (void)moa_store_session_release(j->store, j->session, NULL);
    j->session = 0;
    j->stale = false;
    j->offer[0] = 0;
    tui_say(app, TUI_INFO, "Another model than the session's: a new session begins with the first edit or run");
}

/* --- coming back ------------------------------------------------------------------------------------------------------------------- */

typedef struct reader {
    moa_plan *plan;  /* as it is after the edits read so far */
    uint8_t *marks;
    tui_change *changes; /* owned */
    int n;
    bool odd;        /* an edit that does not fit, or no memory */
} reader;

static void change_drop(tui_change *c) {
    free(c->at), free(c->before), free(c->after), free(c->marks_before), free(c->marks_after);
    memset(c, 0, sizeof *c);
}

static bool same_rule(moa_rule a, moa_rule b) { return memcmp(&a, &b, sizeof a) == 0; }

/* does the change fit what the steps before it left? then it is taken into c and applied */
static bool take_row(reader *r, tui_change *c, const moa_change *row) {
    const bool mark = row->layer < 0;
    const int32_t layer = mark ? -1 - row->layer : row->layer;
    if (layer < 0 || layer >= r->plan->n_layer || row->head < 0 || row->head >= r->plan->n_head) return false;
    const size_t at = (size_t)layer * (size_t)r->plan->n_head + (size_t)row->head;
    if (mark) {
        if (!c->marks_before || (row->after.alpha != 0 && row->after.alpha != 1) || row->before.alpha != r->marks[at]) return false;
        c->marks_after[at] = r->marks[at] = row->after.alpha == 1;
        return true;
    }
    if (!isfinite(row->after.alpha) || !isfinite(row->after.beta) || !same_rule(row->before, r->plan->rules[at])) return false;
    c->at[c->n] = (int32_t)at;
    c->before[c->n] = row->before;
    c->after[c->n++] = row->after;
    r->plan->rules[at] = row->after;
    return true;
}

static bool read_edit(void *user, const char *label, const moa_change *rows, int32_t n) {
    reader *r = user;
    const size_t heads = n_heads(r->plan);
    tui_change c = {0};
    bool marks = false, ok = r->n < EDITS_MAX && n > 0 && (size_t)n <= 2 * heads;
    tui_change *grown = ok ? realloc(r->changes, ((size_t)r->n + 1) * sizeof *grown) : NULL;
    if (grown) r->changes = grown;
    for (int32_t i = 0; i < n; i++) marks |= rows[i].layer < 0;
    moa_buf clean = {0};
    moa_text_clean(label, strlen(label), MOA_TEXT_LINE, &clean);
    (void)snprintf(c.what, sizeof c.what, "%.80s", clean.data ? clean.data : "");
    moa_buf_free(&clean);
    c.at = malloc(((size_t)n + 1) * sizeof *c.at);
    c.before = malloc(((size_t)n + 1) * sizeof *c.before);
    c.after = malloc(((size_t)n + 1) * sizeof *c.after);
    if (marks) {
        c.marks_before = malloc(heads);
        c.marks_after = malloc(heads);
    }
    ok = ok && grown && c.at && c.before && c.after && (!marks || (c.marks_before && c.marks_after));
    if (ok && marks) {
        memcpy(c.marks_before, r->marks, heads);
        memcpy(c.marks_after, r->marks, heads);
    }
    for (int32_t i = 0; i < n && ok; i++) ok = take_row(r, &c, &rows[i]);
    if (ok) r->changes[r->n++] = c;
    else change_drop(&c);
    r->odd = !ok;
    return ok;
}

/* base + edits as the store has them; E_INVALID only when there is nothing to begin from */
static moa_status read_plan(tui_app *app, const moa_session *x, int *n_odd, moa_err *err) {
    tui_journal *j = app->journal;
    moa_plan *base = NULL;
    reader r = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_plan_parse(&base, x->plan, strlen(x->plan), err));
    MOA_TRY(moa_plan_copy(&r.plan, base, err));
    r.marks = calloc(n_heads(base), 1);
    if (!r.marks) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a plan"));
    MOA_TRY(moa_store_edits(j->store, x->id, read_edit, &r, err));
    *n_odd = r.odd ? x->n_edit - r.n : 0;
    j->stale = r.odd; /* what did not fit is written over by what did */
    tui_plan_restore(app, base, r.changes, r.n, x->undo_pos < r.n ? x->undo_pos : r.n, x->plan_path);
    base = NULL;
    r.changes = NULL;
    r.n = 0;
out:
    for (int i = 0; i < r.n; i++) change_drop(&r.changes[i]);
    free(r.changes);
    free(r.marks);
    moa_plan_close(&r.plan);
    moa_plan_close(&base);
    return s;
}

/* The run that was under way when the program died: its end is noted, its tokens counted. -1: there was none. */
static int32_t close_lost_run(tui_journal *j, int64_t session) {
    moa_run_record *all = NULL;
    int32_t n = 0, kept = -1;
    if (moa_store_run_list(j->store, session, &all, &n, NULL) != MOA_OK) return -1;
    for (int32_t i = 0; i < n; i++) {
        if (!*all[i].stop) {
            char ended[] = "lost: the program ended";
            kept = all[i].n_gen;
            free(all[i].stop);
            all[i].stop = ended;
            (void)moa_store_run_end(j->store, &all[i], NULL);
            all[i].stop = NULL;
        }
        moa_run_record_free(&all[i]);
    }
    free(all);
    return kept;
}

static void say_restored(tui_app *app, const moa_session *x, int n_odd, int32_t lost_tokens) {
    tui_journal *j = app->journal;
    char when[32] = "-", lost[80] = "";
    const time_t t = isfinite(x->changed) && fabs(x->changed) < 1e11 ? (time_t)x->changed : 0;
    const long long id = (long long)x->id;
    struct tm tm;
    const bool today = localtime_r(&t, &tm) && time(NULL) - t < 20 * 3600;
    (void)strftime(when, sizeof when, today ? "%H:%M" : "%Y-%m-%d", &tm);
    if (lost_tokens >= 0) (void)snprintf(lost, sizeof lost, ", %d tokens of the last", lost_tokens);
    (void)snprintf(j->offer, sizeof j->offer, "%s session %lld: %d edit%s, %d run%s%s; n starts fresh", x->owner_pid ? "Recovered" : "Back in", id,
                   app->plan.n_done, app->plan.n_done == 1 ? "" : "s", x->n_run, x->n_run == 1 ? "" : "s", lost); /* fits 80 columns */
    tui_say(app, x->owner_pid ? TUI_WARN : TUI_INFO, "%s session %lld as it was at %s; u and C-r work on its %d edits; moascope sessions show %lld has its runs",
            x->owner_pid ? "It ended suddenly: recovered" : "Back in", id, when, app->plan.n_change, id);
    if (x->owner_pid) tui_say(app, TUI_INFO, "What was lost is at most the last half second of output%s%s", *lost ? ": kept are" : "", *lost ? lost + 1 : "");
    if (n_odd > 0) tui_say(app, TUI_WARN, "%d edits of the stored session do not fit its plan and were left out", n_odd);
}

static void restore(tui_app *app, const journal_start *start, const moa_session *x) {
    tui_journal *j = app->journal;
    moa_err err = {0};
    int n_odd = 0;
    if (*x->plan && read_plan(app, x, &n_odd, &err) != MOA_OK) {
        tui_say(app, TUI_WARN, "The plan of session %lld cannot be read: %.300s", (long long)x->id, err.text);
        (void)moa_store_session_release(j->store, x->id, NULL);
        return;
    }
    j->session = x->id;
    j->n_layer = x->n_layer;
    j->n_head = x->n_head;
    (void)snprintf(j->fingerprint, sizeof j->fingerprint, "%s", x->fingerprint);
    if (!start->model) (void)snprintf(app->options.model, sizeof app->options.model, "%s", x->model_path);
    if (!start->prompt) {
        moa_buf_clear(&app->prompt);
        moa_buf_str(&app->prompt, x->prompt);
        tui_prompt_changed(app, "");
    }
    say_restored(app, x, n_odd, x->owner_pid ? close_lost_run(j, x->id) : -1);
}

static void look_back(tui_app *app, const journal_start *start) {
    tui_journal *j = app->journal;
    moa_session x = {0};
    moa_err err = {0};
    char path[PATH_MAX];
    bool mine = false;
    model_path(app, path);
    moa_status s = moa_store_session_last(j->store, start->model ? path : NULL, &x, &err);
    if (s == MOA_E_INVALID) return; /* none */
    if (s == MOA_OK) s = moa_store_session_claim(j->store, x.id, &mine, &err);
    if (s != MOA_OK) write_failed(app, &err);
    else if (!mine)
        tui_say(app, TUI_WARN, "The last session (%lld) is open in process %d: this one is fresh", (long long)x.id, x.owner_pid);
    else if (strlen(x.model_path) >= sizeof app->options.model || strlen(x.fingerprint) >= sizeof j->fingerprint)
        (void)moa_store_session_release(j->store, x.id, NULL);
    else restore(app, start, &x);
    moa_session_free(&x);
}

const char *journal_offer(const tui_app *app) { return app->journal ? app->journal->offer : ""; }

bool journal_key(tui_app *app, int key) {
    tui_journal *j = app->journal;
    if (!j || !j->offer[0] || key == TUI_KEY_RESIZE) return false;
    j->offer[0] = 0;
    if (key == 'y' || key == 'Y' || key == TUI_KEY_ENTER) return true;
    if (key != 'n' && key != 'N') return false;
    (void)moa_store_session_release(j->store, j->session, NULL);
    j->session = 0;
    j->stale = false;
    j->deaf = true;
    moa_buf_clear(&app->prompt);
    tui_prompt_changed(app, "");
    tui_plan_forget(app);
    j->deaf = false;
    tui_say(app, TUI_INFO, "A fresh session; the other stays in the store (moascope sessions list)");
    app->n_held = app->n_log; /* what the engine says next must not wipe it away */
    return true;
}

/* --- start and end ------------------------------------------------------------------------------------------------------------------ */

void journal_open(tui_app *app, const journal_start *start) {
    moa_err err = {0};
    char note[512] = "";
    if (!start->keep) return;
    tui_journal *j = app->journal = calloc(1, sizeof *j);
    if (!j) return;
    if (moa_store_open(&j->store, NULL, note, sizeof note, &err) != MOA_OK) {
        tui_say(app, TUI_WARN, "Sessions are not kept: %.300s", err.text);
        free(j);
        app->journal = NULL;
        return;
    }
    if (*note) {
        moa_buf clean = {0};
        moa_text_clean(note, strlen(note), MOA_TEXT_LINE, &clean);
        tui_say(app, TUI_WARN, "%s", clean.data ? clean.data : "");
        moa_buf_free(&clean);
    }
    j->deaf = true;
    if (start->restore) look_back(app, start);
    j->deaf = false;
}

void journal_close(tui_app *app) {
    tui_journal *j = app->journal;
    if (!j) return;
    if (j->run) journal_run_end(app, &app->runs[j->slot]);
    if (j->session) (void)moa_store_session_release(j->store, j->session, NULL);
    moa_store_close(&j->store);
    free(j);
    app->journal = NULL;
}
