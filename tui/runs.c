/* runs.c -- what the engine says becomes state, and how runs, loads and maps are asked for.
 *
 * The engine is another process, perhaps on another machine: every count in its messages is checked against the model before it is
 * believed; a message that does not fit is dropped and said once in the log. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/engine/engine.h"
#include "tui/internal.h"
#include "tui/journal.h"
#include "tui/search.h"

/* --- small things -------------------------------------------------------------------------------------------------------- */

static moa_clean *clean_str(tui_app *app, moa_wire_str s) {
    return moa_clean_of(s.data, s.n, MOA_TEXT_LINE | (app->caps.utf8 ? 0 : MOA_TEXT_ASCII));
}

static void set_clean(tui_app *app, moa_clean **to, moa_wire_str s) {
    moa_clean_close(to);
    *to = clean_str(app, s);
}

static void copy_text(char *out, size_t out_bytes, moa_wire_str s) {
    moa_buf b = {0};
    moa_text_clean(s.data, s.n, MOA_TEXT_LINE, &b);
    (void)snprintf(out, out_bytes, "%s", b.data ? b.data : "");
    moa_buf_free(&b);
}

static void tell(tui_app *app, int event) {
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i)->event) tui_view_at(i)->event(app, event);
    tui_dirty(app);
}

static void odd(tui_app *app, const char *what) { tui_say(app, TUI_WARN, "The engine sent %s that does not fit the model; it was left out", what); }

static size_t n_heads(const tui_app *app) { return (size_t)app->model.n_layer * (size_t)app->model.n_head; }

void tui_run_free(tui_run *r) {
    free(r->rules);
    free(r->ids);
    free(r->ends);
    free(r->spans);
    free(r->tokens);
    moa_buf_free(&r->pieces);
    moa_clean_close(&r->text);
    moa_clean_close(&r->note);
    free(r->stats.entropy);
    free(r->stats.worst_query);
    for (int32_t i = 0; r->hists && i < r->n_layer; i++) {
        free(r->hists[i].total);
        free(r->hists[i].buckets);
    }
    free(r->hists);
    free(r->pages.held);
    memset(r, 0, sizeof *r);
}

const char *tui_run_piece(const tui_run *r, int32_t pos, size_t *n) {
    *n = 0;
    if (pos < 0) return "";
    if (pos < r->n_prompt) {
        const int32_t from = pos ? r->ends[pos - 1] : 0;
        *n = (size_t)(r->ends[pos] - from);
        return r->pieces.data + from;
    }
    if (pos - r->n_prompt >= r->n_token) return "";
    const tui_token *t = &r->tokens[pos - r->n_prompt];
    *n = t->text_n;
    return r->pieces.data ? r->pieces.data + t->text_at : "";
}

static void shown(const char *s, size_t n, bool marks, bool ascii, moa_buf *out) {
    if (marks && n > 0 && s[0] == ' ') {
        moa_buf_str(out, ascii ? "_" : "␣");
        s++;
        n--;
    }
    for (size_t at = 0; at < n;) { /* line ends have a sign of their own that every font has */
        const char *stop = marks ? memchr(s + at, '\n', n - at) : NULL;
        const size_t k = stop ? (size_t)(stop - s) - at : n - at;
        moa_text_clean(s + at, k, MOA_TEXT_LINE | (ascii ? MOA_TEXT_ASCII : 0), out);
        if (stop) moa_buf_str(out, ascii ? "$" : "↵");
        at += k + (stop != NULL);
    }
}

void tui_run_piece_shown(const tui_run *r, int32_t pos, bool marks, bool ascii, moa_buf *out) {
    size_t n;
    const char *s = tui_run_piece(r, pos, &n);
    shown(s, n, marks, ascii, out);
}

void tui_bytes_shown(const char *s, size_t n, bool ascii, moa_buf *out) {
    shown(s, n, true, ascii, out);
}

const float *tui_run_hist(const tui_run *r, int32_t layer, int32_t head, int32_t *n_bin) {
    if (!r || !r->hists || layer < 0 || layer >= r->n_layer || head < 0 || head >= r->n_head || !r->hists[layer].total) return NULL;
    *n_bin = r->hists[layer].n_bin;
    return r->hists[layer].total + (size_t)head * (size_t)(1 + *n_bin);
}

double tui_run_stat(const tui_run *r, const float *array, int32_t layer, int32_t head) {
    if (!r || !r->stats.there || !array || layer < 0 || layer >= r->n_layer || head < 0 || head >= r->n_head) return (double)NAN;
    return (double)array[(size_t)layer * (size_t)r->n_head + (size_t)head];
}

int32_t tui_divergence(const tui_app *app) {
    const tui_run *a = &app->runs[TUI_A], *b = &app->runs[TUI_B];
    if (!a->number || !b->number || a->prompt_key != b->prompt_key) return -1;
    const int32_t n = a->n_token < b->n_token ? a->n_token : b->n_token;
    for (int32_t i = 0; i < n; i++)
        if (a->tokens[i].id != b->tokens[i].id) return i;
    if (a->state == TUI_RUN_DONE && b->state == TUI_RUN_DONE && a->n_token != b->n_token) return n;
    return -1;
}

bool tui_busy(const tui_app *app) { return app->link.state == TUI_LINK_LOADING || app->slot_running >= 0 || tui_planner_engine(app); }

static uint64_t hash_more(uint64_t h, const void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3ull;
    return h;
}

static uint64_t prompt_key(const tui_app *app) {
    uint64_t h = hash_more(0xcbf29ce484222325ull, app->prompt.data, app->prompt.size);
    h = hash_more(h, &app->options.chat, sizeof app->options.chat);
    return hash_more(h, app->model.fingerprint, strlen(app->model.fingerprint)) | 1;
}

/* --- asking ------------------------------------------------------------------------------------------------------------------ */

moa_status tui_engine_start(tui_app *app, const char *device, moa_err *err) {
    if (device && *device) (void)snprintf(app->options.device, sizeof app->options.device, "%s", device);
    app->model.loaded = false;
    app->engine_has_run = false;
    app->tokenize_job = 0; /* what was asked of the engine before is not answered any more */
    app->blame.active = false;
    app->map_waiting = app->map_again = app->row_again = false;
    app->load_done = app->load_total = 0;
    return tui_link_open(app, err); /* WELCOME leads to the loading of options.model */
}

void tui_engine_stop(tui_app *app) { tui_link_close(app); }

moa_status tui_load(tui_app *app, const char *model, moa_err *err) {
    if (tui_busy(app)) return moa_fail(err, MOA_E_FAILED, "the engine is busy; C-c stops it");
    if (strlen(model) >= sizeof app->options.model) return moa_fail(err, MOA_E_INVALID, "the name of the model is %zu bytes long", strlen(model));
    if (model != app->options.model) (void)snprintf(app->options.model, sizeof app->options.model, "%s", model);
    if (app->link.state == TUI_LINK_OFF || app->link.state == TUI_LINK_DEAD) return tui_engine_start(app, NULL, err);
    moa_wire_msg m = {.type = MOA_WIRE_LOAD};
    const tui_options *o = &app->options;
    m.u.load = (moa_msg_load){.path = {o->model, (uint32_t)strlen(o->model)}, .device = {o->device, (uint32_t)strlen(o->device)},
                              .kv_type = {o->kv_type, (uint32_t)strlen(o->kv_type)}, .n_threads = (uint32_t)o->n_threads,
                              .reference = o->reference, .capture_limit_bytes = o->capture_limit_bytes};
    const moa_status s = tui_link_send(app, &m, err);
    if (s != MOA_OK) return s;
    app->link.state = TUI_LINK_LOADING;
    app->model.loaded = app->engine_has_run = false;
    app->map_waiting = app->map_again = app->row_again = app->blame.active = false;
    app->load_done = app->load_total = 0;
    app->load_started = app->now;
    return MOA_OK;
}

/* rules of a plan as two arrays of numbers; *alphas is the one block to free */
static moa_status plan_arrays(const moa_plan *p, double **alphas, double **betas, moa_err *err) {
    const size_t n = (size_t)p->n_layer * (size_t)p->n_head;
    *alphas = malloc(2 * n * sizeof **alphas);
    if (!*alphas) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu rules", n);
    *betas = *alphas + n;
    for (size_t i = 0; i < n; i++) {
        (*alphas)[i] = p->rules[i].alpha;
        (*betas)[i] = p->rules[i].beta;
    }
    return MOA_OK;
}

static moa_status may_run(tui_app *app, tui_slot slot, moa_err *err) {
    if (app->link.state == TUI_LINK_LOADING) return moa_fail(err, MOA_E_FAILED, "the model is still loading");
    if (app->slot_running >= 0) return moa_fail(err, MOA_E_FAILED, "run #%d is not done; C-c stops it", app->runs[app->slot_running].number);
    if (tui_planner_engine(app)) return moa_fail(err, MOA_E_FAILED, "the search is at work in the engine; C-c stops it");
    if (app->link.state == TUI_LINK_DEAD) return moa_fail(err, MOA_E_FAILED, "the engine ended; :engine restart starts it again");
    if (!app->model.loaded) return moa_fail(err, MOA_E_FAILED, "no model is loaded; :load MODEL");
    if (app->prompt.size == 0) return moa_fail(err, MOA_E_FAILED, "there is no prompt; i edits it, :prompt open FILE reads one");
    if (slot != TUI_A && !app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan");
    if (slot == TUI_F) {
        const tui_run *a = &app->runs[TUI_A];
        if (a->state != TUI_RUN_DONE || a->prompt_key != prompt_key(app) || a->n_token == 0)
            return moa_fail(err, MOA_E_FAILED, "comparing needs a finished run with full attention of this prompt; R makes one");
    }
    return MOA_OK;
}

static moa_status reset_run(tui_app *app, tui_run *r, tui_slot slot, moa_err *err) {
    tui_run_free(r);
    r->number = ++app->n_run;
    r->dense = slot == TUI_A;
    r->prompt_key = prompt_key(app);
    r->n_layer = app->model.n_layer;
    r->n_head = app->model.n_head;
    r->n_gen_limit = app->options.n_gen;
    r->started_at = app->now;
    r->state = TUI_RUN_PREFILL;
    r->hists = calloc((size_t)r->n_layer, sizeof *r->hists);
    r->text = moa_clean_open(app->caps.utf8 ? 0 : MOA_TEXT_ASCII);
    if (!r->dense) {
        r->rules = malloc(n_heads(app) * sizeof *r->rules);
        if (r->rules) memcpy(r->rules, app->plan.now->rules, n_heads(app) * sizeof *r->rules);
    }
    if (!r->hists || !r->text || (!r->dense && !r->rules)) {
        tui_run_free(r);
        return moa_fail(err, MOA_E_MEMORY, "no memory for a run");
    }
    return MOA_OK;
}

moa_status tui_run_start(tui_app *app, tui_slot slot, moa_err *err) {
    moa_status s = may_run(app, slot, err);
    if (s != MOA_OK) return s;
    const tui_run *a = &app->runs[TUI_A];
    double *alphas = NULL, *betas = NULL;
    int32_t *force = NULL;
    moa_wire_msg m = {.type = MOA_WIRE_RUN};
    moa_msg_run *q = &m.u.run;
    if (app->plan.now) MOA_TRY(plan_arrays(app->plan.now, &alphas, &betas, err));
    const uint32_t n = alphas ? (uint32_t)n_heads(app) : 0;
    *q = (moa_msg_run){.text = {app->prompt.data, (uint32_t)app->prompt.size}, .chat = app->options.chat, .fresh = 1, .n_gen = (uint32_t)app->options.n_gen,
                       .temp = app->options.sampling.temp, .top_k = app->options.sampling.top_k, .top_p = app->options.sampling.top_p,
                       .min_p = app->options.sampling.min_p, .seed = app->options.sampling.seed, .ignore_end = app->options.ignore_end,
                       .watch = (uint32_t)app->options.watch, .stats_every = 16};
    q->measure_alphas = (moa_wire_f64s){alphas, n};
    q->measure_betas = (moa_wire_f64s){betas, n};
    if (slot == TUI_A) q->keep_reference = 1;
    else {
        q->alphas = (moa_wire_f64s){alphas, n};
        q->betas = (moa_wire_f64s){betas, n};
    }
    if (slot == TUI_F) {
        force = malloc((size_t)a->n_token * sizeof *force);
        if (!force) {
            s = moa_fail(err, MOA_E_MEMORY, "no memory for %d tokens", a->n_token);
            goto out;
        }
        for (int32_t i = 0; i < a->n_token; i++) force[i] = a->tokens[i].id;
        q->force = (moa_wire_i32s){force, (uint32_t)a->n_token};
        q->n_gen = (uint32_t)a->n_token;
        q->against_reference = 1;
    }
    MOA_TRY(reset_run(app, &app->runs[slot], slot, err));
    s = tui_link_send(app, &m, err);
    if (s != MOA_OK) {
        tui_run_free(&app->runs[slot]);
        goto out;
    }
    app->runs[slot].job = m.job;
    app->slot_running = (int)slot;
    app->newest = slot;
    app->cursor.run = slot == TUI_F ? TUI_A : slot; /* comparing is of A's tokens: ] goes to those that the plan changes */
    app->link.state = TUI_LINK_BUSY;
    app->engine_has_run = false; /* until it says STARTED */
    journal_run_begin(app, slot);
    app->map_waiting = app->map_again = app->row_again = app->blame.active = false;
out:
    free(alphas);
    free(force);
    tui_dirty(app);
    return s;
}

void tui_run_cancel(tui_app *app) {
    if (app->slot_running < 0) return;
    moa_wire_msg m = {.type = MOA_WIRE_CANCEL, .job = app->runs[app->slot_running].job};
    app->compare_next = false;
    if (tui_link_send(app, &m, NULL) == MOA_OK) {
        app->link.asked_at = app->now;
        tui_say(app, TUI_INFO, "Stopping run #%d", app->runs[app->slot_running].number);
    }
}

static void map_send(tui_app *app, bool row) {
    const tui_map_ask *k = row ? &app->row_ask : &app->map_ask;
    moa_wire_msg m = {.type = MOA_WIRE_SELECT_MAP};
    m.u.select_map = (moa_msg_select_map){.layer = k->layer, .head = k->head, .span = k->span, .measure_span = k->measure_span, .q0 = k->q0, .q1 = k->q1,
                                          .k0 = k->k0, .k1 = k->k1, .rows = k->rows, .cols = k->cols, .follow = k->follow};
    *(row ? &app->row_again : &app->map_again) = false;
    app->map_is_row = row;
    app->map_waiting = tui_link_send(app, &m, NULL) == MOA_OK;
    app->map_job = m.job;
}

void tui_map_request(tui_app *app, const tui_map_ask *ask) {
    app->map_ask = *ask;
    if (!app->model.loaded || !app->engine_has_run) return; /* it would not answer */
    if (app->map_waiting || app->blame.active) app->map_again = true; /* one on its way at most: holding a key down does not fill the pipe */
    else map_send(app, false);
}

void tui_row_request(tui_app *app, const tui_map_ask *ask) {
    app->row_ask = *ask;
    app->row_ask.follow = false;
    if (!app->model.loaded || !app->engine_has_run) return; /* it would not answer */
    if (app->map_waiting || app->blame.active) app->row_again = true;
    else map_send(app, true);
}

/* an answer came: what was asked meanwhile goes out. The engine follows what it was asked last, so a row in between asks for the map anew. */
static void map_next(tui_app *app, bool was_row) {
    if (app->map_waiting) return;
    if (app->blame.active) tui_blame_go(app); /* it waited for the map */
    else if (app->map_again || (was_row && app->map_ask.follow && app->slot_running >= 0)) map_send(app, false);
    else if (app->row_again) map_send(app, true);
}

void tui_map_resend(tui_app *app) { map_next(app, true); }

/* --- hearing: the model ------------------------------------------------------------------------------------------------------ */

static void on_welcome(tui_app *app, const moa_msg_welcome *w) {
    tui_link *l = &app->link;
    if (w->version != MOA_WIRE_VERSION) {
        tui_say(app, TUI_BAD, "The engine speaks version %u of the messages, this program version %d: both must be the same release", w->version, MOA_WIRE_VERSION);
        (void)snprintf(l->why, sizeof l->why, "its messages are version %u, this program's %d", w->version, MOA_WIRE_VERSION);
        tui_link_close(app);
        l->state = TUI_LINK_DEAD;
        return;
    }
    moa_clean_close(&l->devices);
    l->devices = moa_clean_of(w->devices.data, w->devices.n, app->caps.utf8 ? 0 : MOA_TEXT_ASCII);
    set_clean(app, &l->no_gpu, w->why);
    if (l->state != TUI_LINK_HELLO) return; /* a second WELCOME only brings the GPUs */
    l->state = TUI_LINK_IDLE;
    moa_err err = {0};
    if (*app->options.model && tui_load(app, app->options.model, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
}

static bool shape_ok(const moa_msg_loaded *m) {
    return m->n_layer >= 1 && m->n_layer <= MOA_PLAN_LAYER_MAX && m->n_head >= 1 && m->n_head <= MOA_PLAN_HEAD_MAX && m->n_head_kv >= 1 &&
           m->n_head % m->n_head_kv == 0 && m->d_head >= 1 && m->d_head <= 65536 && m->n_ctx >= 1 && m->n_ctx <= MOA_N_MAX && m->n_vocab >= 1 &&
           m->kv_elem_bytes >= 1 && m->kv_elem_bytes <= 8;
}

static void fit_plan(tui_app *app) {
    tui_plan *p = &app->plan;
    moa_err err = {0};
    if (p->now && p->now->n_layer == app->model.n_layer && p->now->n_head == app->model.n_head) return;
    if (p->now) tui_say(app, TUI_WARN, "The plan is for %d layers of %d heads, the model has %d of %d: full attention instead", p->now->n_layer, p->now->n_head,
                        app->model.n_layer, app->model.n_head);
    const char *spec = !p->now && *app->options.plan ? app->options.plan : "full";
    moa_status s = tui_plan_open(app, spec, &err);
    if (s == MOA_OK) return;
    tui_say(app, TUI_BAD, "%s", err.text);
    if (strcmp(spec, "full") != 0) s = tui_plan_open(app, "full", &err);
    if (s != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
}

static void on_loaded(tui_app *app, const moa_msg_loaded *m) {
    if (!shape_ok(m)) {
        odd(app, "a model shape");
        app->link.state = TUI_LINK_IDLE;
        return;
    }
    tui_model *t = &app->model;
    const bool same = t->n_layer == m->n_layer && t->n_head == m->n_head && strlen(t->fingerprint) == m->fingerprint.n &&
                      memcmp(t->fingerprint, m->fingerprint.data, m->fingerprint.n) == 0;
    if (!same)
        for (int i = 0; i < TUI_SLOTS; i++) tui_run_free(&app->runs[i]);
    set_clean(app, &t->name, m->name);
    set_clean(app, &t->path, m->path);
    set_clean(app, &t->arch, m->arch);
    set_clean(app, &t->quant, m->quant);
    set_clean(app, &t->device, m->device);
    set_clean(app, &t->device_why, m->device_why);
    copy_text(t->fingerprint, sizeof t->fingerprint, m->fingerprint);
    t->has_chat = m->chat_template.n > 0;
    t->n_layer = m->n_layer, t->n_head = m->n_head, t->n_head_kv = m->n_head_kv, t->d_head = m->d_head;
    t->d_model = m->d_model, t->d_ff = m->d_ff, t->n_vocab = m->n_vocab, t->n_ctx = m->n_ctx;
    t->kv_elem_bytes = m->kv_elem_bytes, t->weight_bytes = m->weight_bytes, t->n_param = m->n_param;
    t->device_total_bytes = m->device_total_bytes, t->device_free_bytes = m->device_free_bytes;
    t->loaded = true;
    tui_planner_fit(app, same);
    app->link.state = TUI_LINK_READY;
    app->prompt_tokens_known = false;
    journal_loaded(app);
    if (app->cursor.layer >= t->n_layer) app->cursor.layer = t->n_layer - 1;
    if (app->cursor.head >= t->n_head) app->cursor.head = t->n_head - 1;
    fit_plan(app);
    char size[16];
    tui_say(app, TUI_GOOD, "%s: %d layers of %d heads (%d KV heads), context %d, %s of weights, on %s", moa_clean_text(t->name), t->n_layer, t->n_head, t->n_head_kv,
            t->n_ctx, viz_bytes_text(size, t->weight_bytes), moa_clean_text(t->device));
    tell(app, TUI_EV_LOADED);
    if (!app->run_when_loaded) return;
    app->run_when_loaded = false;
    moa_err err = {0};
    const bool plan = *app->options.plan && strcmp(app->options.plan, "full") != 0;
    if (tui_run_start(app, plan ? TUI_B : TUI_A, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
}

static void on_tokens(tui_app *app, const moa_msg_tokens *m) {
    app->prompt_tokens_known = true;
    app->n_prompt_tok = (int32_t)m->ids.n;
    app->tokenize_job = 0;
    tell(app, TUI_EV_PLAN);
}

/* --- hearing: a run ------------------------------------------------------------------------------------------------------------- */

static tui_run *run_of(tui_app *app, uint32_t job) {
    if (app->slot_running < 0) return NULL;
    tui_run *r = &app->runs[app->slot_running];
    return r->job == job ? r : NULL;
}

static void on_progress(tui_app *app, uint32_t job, const moa_msg_progress *m) {
    if (m->phase == 0) {
        app->load_done = m->done;
        app->load_total = m->total;
    } else if (!tui_planner_progress(app, job, m)) {
        tui_run *r = run_of(app, job);
        if (!r) return;
        if (m->phase == 1) {
            r->done = m->done;
            r->total = m->total;
            r->prefill_s = m->seconds;
        } else r->decode_s = m->seconds;
    }
    tui_dirty(app);
}

static bool ends_ok(const int32_t *ends, uint32_t n, uint32_t total) {
    int32_t last = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (ends[i] < last || (uint32_t)ends[i] > total) return false;
        last = ends[i];
    }
    return true;
}

static void *copy_of(const void *bytes, size_t n) {
    void *p = malloc(n ? n : 1);
    if (p && n) memcpy(p, bytes, n);
    return p;
}

static void on_started(tui_app *app, uint32_t job, const moa_msg_started *m) {
    tui_run *r = run_of(app, job);
    if (!r) return;
    if (m->ends.n != m->ids.n || !ends_ok(m->ends.data, m->ends.n, m->pieces.n) || m->n_reserved < 1 || m->n_reserved > MOA_N_MAX ||
        (m->spans.n != 0 && m->spans.n != n_heads(app)) || m->ids.n > MOA_N_MAX) {
        odd(app, "the start of a run");
        return;
    }
    free(r->ids), free(r->ends), free(r->spans);
    r->ids = copy_of(m->ids.data, m->ids.n * sizeof *r->ids);
    r->ends = copy_of(m->ends.data, m->ends.n * sizeof *r->ends);
    r->spans = m->spans.n ? copy_of(m->spans.data, m->spans.n * sizeof *r->spans) : NULL;
    moa_buf_clear(&r->pieces);
    moa_buf_append(&r->pieces, m->pieces.data, m->pieces.n);
    if (!r->ids || !r->ends || !moa_buf_ok(&r->pieces)) {
        tui_say(app, TUI_BAD, "No memory for the %u tokens of the prompt", m->ids.n);
        return;
    }
    r->n_prompt = (int32_t)m->ids.n;
    r->n_new = m->n_new;
    r->n_reserved = m->n_reserved;
    r->total = (uint64_t)(m->n_new > 0 ? m->n_new : 0);
    moa_clean_close(&r->note);
    r->note = clean_str(app, m->note);
    if (m->note.n) tui_say(app, TUI_INFO, "%s", moa_clean_text(r->note));
    app->engine_has_run = true;
    if (app->cursor.query < 0 || app->cursor.query >= r->n_prompt) app->cursor.query = r->n_prompt - 1;
    if (app->cursor.key < 0 || app->cursor.key > app->cursor.query) app->cursor.key = 0;
    tell(app, TUI_EV_STARTED);
}

static void on_token(tui_app *app, uint32_t job, const moa_msg_token *m) {
    tui_run *r = run_of(app, job);
    if (!r || r->n_token >= MOA_N_MAX) return;
    if (m->top_logprobs.n != m->top_ids.n || m->top_ends.n != m->top_ids.n || !ends_ok(m->top_ends.data, m->top_ends.n, m->top_pieces.n)) {
        odd(app, "a token");
        return;
    }
    if (r->n_token == r->cap_token) {
        const int32_t cap = r->cap_token ? 2 * r->cap_token : 256;
        tui_token *grown = realloc(r->tokens, (size_t)cap * sizeof *grown);
        if (!grown) {
            tui_say(app, TUI_BAD, "No memory for more than %d tokens", r->n_token);
            return;
        }
        r->tokens = grown;
        r->cap_token = cap;
    }
    tui_token *t = &r->tokens[r->n_token];
    *t = (tui_token){.id = m->id, .pos = m->pos, .text_at = (uint32_t)r->pieces.size, .text_n = m->piece.n, .control = m->control != 0,
                     .logprob = m->logprob, .entropy = m->entropy, .kl = m->kl};
    moa_buf_append(&r->pieces, m->piece.data, m->piece.n);
    t->n_top = m->top_ids.n < MOA_TOP_MAX ? (int32_t)m->top_ids.n : MOA_TOP_MAX;
    const uint32_t base = (uint32_t)r->pieces.size;
    moa_buf_append(&r->pieces, m->top_pieces.data, m->top_pieces.n);
    for (int32_t i = 0; i < t->n_top; i++) {
        const int32_t from = i ? m->top_ends.data[i - 1] : 0;
        t->top_ids[i] = m->top_ids.data[i];
        t->top_logprob[i] = m->top_logprobs.data[i];
        t->top_at[i] = base + (uint32_t)from;
        t->top_n[i] = (uint32_t)(m->top_ends.data[i] - from);
    }
    if (!moa_buf_ok(&r->pieces)) return;
    if (!t->control) (void)moa_clean_push(r->text, (const char *)m->piece.data, m->piece.n);
    if (r->n_token == 0) r->first_token_at = app->now;
    r->n_token++;
    r->state = TUI_RUN_DECODE;
    journal_run_token(app, t, r->pieces.data + t->text_at);
    tell(app, TUI_EV_TOKEN);
}

static void on_stats(tui_app *app, const moa_msg_stats *m) {
    tui_run *r = &app->runs[app->newest];
    const size_t n = n_heads(app);
    const moa_wire_f32s in[] = {m->entropy, m->sink, m->window, m->distance, m->worst_cover};
    bool fits = r->number && m->n_layer == r->n_layer && m->n_head == r->n_head && m->worst_query.n == n;
    for (int i = 0; i < 5; i++) fits = fits && in[i].n == n;
    if (!fits) {
        if (r->number) odd(app, "statistics");
        return;
    }
    tui_stats *s = &r->stats;
    if (!s->entropy) {
        s->entropy = malloc(5 * n * sizeof *s->entropy);
        s->worst_query = malloc(n * sizeof *s->worst_query);
    }
    if (!s->entropy || !s->worst_query) return;
    float *to[] = {s->entropy, s->entropy + n, s->entropy + 2 * n, s->entropy + 3 * n, s->entropy + 4 * n};
    for (int i = 0; i < 5; i++) memcpy(to[i], in[i].data, n * sizeof(float));
    s->sink = to[1], s->window = to[2], s->distance = to[3], s->worst_cover = to[4];
    memcpy(s->worst_query, m->worst_query.data, n * sizeof(int32_t));
    s->n_past = m->n_past;
    s->n_query = m->n_query;
    s->n_seen = m->n_seen;
    s->every = m->every;
    s->there = true;
    tell(app, TUI_EV_STATS);
}

static void on_hist(tui_app *app, const moa_msg_hist *m) {
    tui_run *r = &app->runs[app->newest];
    size_t per_head, n;
    if (!r->number || !r->hists || m->layer < 0 || m->layer >= r->n_layer || m->n_head != r->n_head || m->n_bin < 0 || m->queries.n != MOA_HIST_BUCKETS ||
        !moa_size_mul((size_t)m->n_bin + 1, MOA_HIST_BUCKETS, &per_head) || !moa_size_mul(per_head, (size_t)m->n_head, &n) || n != m->hist.n) {
        if (r->number) odd(app, "a histogram");
        return;
    }
    tui_hist *h = &r->hists[m->layer];
    const size_t bins = (size_t)m->n_bin + 1;
    float *buckets = malloc((n ? n : 1) * sizeof *buckets), *total = calloc(bins * (size_t)m->n_head, sizeof *total);
    if (!buckets || !total) {
        free(buckets);
        free(total);
        return;
    }
    memcpy(buckets, m->hist.data, n * sizeof *buckets);
    for (int32_t head = 0; head < m->n_head; head++)
        for (size_t b = 0; b < MOA_HIST_BUCKETS; b++)
            for (size_t i = 0; i < bins; i++) total[(size_t)head * bins + i] += buckets[((size_t)head * MOA_HIST_BUCKETS + b) * bins + i];
    free(h->buckets);
    free(h->total);
    *h = (tui_hist){.n_head = m->n_head, .n_bin = m->n_bin, .bucket_tok = m->bucket_tok, .total = total, .buckets = buckets};
    memcpy(h->queries, m->queries.data, sizeof h->queries);
    tell(app, TUI_EV_HIST);
}

static void on_map(tui_app *app, uint32_t job, const moa_msg_map *m) {
    size_t n, n_stat;
    const bool row = job == app->map_job && app->map_is_row;
    if (tui_blame_answer(app, job, m)) return;
    if (job == app->map_job) app->map_waiting = false;
    if (m->rows < 1 || m->cols < 1 || !moa_size_mul((size_t)m->rows, (size_t)m->cols, &n) || m->mass.n != n || (m->max.n != 0 && m->max.n != n) ||
        !moa_size_mul((size_t)m->rows, MOA_N_STAT, &n_stat) || (m->stat.n != 0 && m->stat.n != n_stat) || m->layer < 0 || m->layer >= app->model.n_layer ||
        m->head < 0 || m->head >= app->model.n_head || m->q0 < 0 || m->q1 <= m->q0 || m->k0 < 0 || m->k1 <= m->k0) {
        odd(app, "a map");
        return;
    }
    tui_map *t = row ? &app->row : &app->map;
    free(t->mass), free(t->max), free(t->stat);
    *t = (tui_map){.there = true, .slot = app->newest, .layer = m->layer, .head = m->head, .span = m->span, .measure_span = m->measure_span, .q0 = m->q0,
                   .q1 = m->q1, .k0 = m->k0, .k1 = m->k1, .rows = m->rows, .cols = m->cols, .n_past = m->n_past};
    t->mass = copy_of(m->mass.data, n * sizeof *t->mass);
    t->max = m->max.n ? copy_of(m->max.data, n * sizeof *t->max) : NULL;
    t->stat = m->stat.n ? copy_of(m->stat.data, n_stat * sizeof *t->stat) : NULL;
    t->there = t->mass != NULL;
    map_next(app, row);
    tell(app, TUI_EV_MAP);
}

static void on_pages(tui_app *app, const moa_msg_pages *m) {
    tui_run *r = &app->runs[app->newest];
    size_t n;
    if (!r->number) return;
    if (m->n_layer != app->model.n_layer || m->n_head_kv != app->model.n_head_kv || m->max_pages < 0 ||
        !moa_size_mul((size_t)m->n_layer * (size_t)m->n_head_kv, (size_t)m->max_pages, &n) || n != m->held.n) {
        odd(app, "a page map");
        return;
    }
    tui_pages *p = &r->pages;
    free(p->held);
    *p = (tui_pages){.n_past = m->n_past, .n_reserved = m->n_reserved, .n_layer = m->n_layer, .n_head_kv = m->n_head_kv, .max_pages = m->max_pages, .lost = m->lost,
                     .page_bytes = m->page_bytes, .used_bytes = m->used_bytes, .peak_bytes = m->peak_bytes, .pool_bytes = m->pool_bytes,
                     .formula_plan = m->formula_plan, .formula_dense = m->formula_dense, .formula_mha = m->formula_mha,
                     .device_total_bytes = m->device_total_bytes, .device_free_bytes = m->device_free_bytes, .capture_bytes = m->capture_bytes,
                     .workspace_bytes = m->workspace_bytes};
    p->held = copy_of(m->held.data, n);
    p->there = p->held != NULL;
    if (m->device_total_bytes) {
        app->model.device_total_bytes = m->device_total_bytes;
        app->model.device_free_bytes = m->device_free_bytes;
    }
    tell(app, TUI_EV_PAGES);
}

static void after_run(tui_app *app, bool done) {
    const int slot = app->slot_running;
    app->slot_running = -1;
    app->link.asked_at = 0;
    if (app->link.state == TUI_LINK_BUSY) app->link.state = TUI_LINK_READY;
    if (!done || !app->compare_next || slot != TUI_A) return;
    app->compare_next = false;
    moa_err err = {0};
    if (tui_run_start(app, TUI_F, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
}

static void on_done(tui_app *app, uint32_t job, const moa_msg_done *m) {
    tui_run *r = run_of(app, job);
    if (!r) return;
    r->result = *m;
    copy_text(r->stop, sizeof r->stop, m->stop);
    r->prefill_s = m->prefill_s;
    r->decode_s = m->decode_s;
    r->ttft_s = m->ttft_s;
    r->state = TUI_RUN_DONE;
    (void)moa_clean_end(r->text);
    journal_run_end(app, r);
    const char *kind = app->slot_running == TUI_A ? "full attention" : app->slot_running == TUI_B ? "plan" : "plan on A's tokens";
    tui_say(app, TUI_GOOD, "Run #%d (%s): %d + %d tokens, prefill %.2f s, %.1f tok/s, %s", r->number, kind, m->n_prompt, m->n_gen, m->prefill_s,
            m->decode_s > 0 ? m->n_gen / m->decode_s : 0.0, r->stop);
    after_run(app, strcmp(r->stop, "cancelled") != 0);
    tell(app, TUI_EV_DONE);
}

static void on_failed(tui_app *app, uint32_t job, const moa_msg_failed *m) {
    char text[512];
    copy_text(text, sizeof text, m->text);
    tui_run *r = run_of(app, job);
    if (tui_planner_failed(app, job, text)) return;
    if (tui_blame_failed(app, job)) {
        tui_say(app, TUI_WARN, "%s", text);
        return;
    }
    if (job == app->map_job && app->map_waiting) {
        app->map_waiting = false;
        tui_say(app, TUI_WARN, "%s", text);
        map_next(app, false);
        return;
    }
    if (r) {
        r->state = TUI_RUN_FAILED;
        (void)snprintf(r->failed, sizeof r->failed, "%s", text);
        journal_run_end(app, r);
        after_run(app, false);
        app->compare_next = false;
    } else if (app->link.state == TUI_LINK_LOADING) app->link.state = TUI_LINK_IDLE;
    if (job == app->tokenize_job) app->tokenize_job = 0;
    tui_say(app, TUI_BAD, "%s", text);
    tell(app, TUI_EV_FAILED);
}

void tui_message(tui_app *app, const moa_wire_msg *msg) {
    switch (msg->type) {
    case MOA_WIRE_WELCOME: on_welcome(app, &msg->u.welcome); break;
    case MOA_WIRE_PROGRESS: on_progress(app, msg->job, &msg->u.progress); break;
    case MOA_WIRE_LOADED: on_loaded(app, &msg->u.loaded); break;
    case MOA_WIRE_TOKENS: on_tokens(app, &msg->u.tokens); break;
    case MOA_WIRE_STARTED: on_started(app, msg->job, &msg->u.started); break;
    case MOA_WIRE_TOKEN: on_token(app, msg->job, &msg->u.token); break;
    case MOA_WIRE_STATS: on_stats(app, &msg->u.stats); break;
    case MOA_WIRE_HIST: on_hist(app, &msg->u.hist); break;
    case MOA_WIRE_MAP: on_map(app, msg->job, &msg->u.map); break;
    case MOA_WIRE_PAGES: on_pages(app, &msg->u.pages); break;
    case MOA_WIRE_DONE: on_done(app, msg->job, &msg->u.done); break;
    case MOA_WIRE_FAILED: on_failed(app, msg->job, &msg->u.failed); break;
    case MOA_WIRE_INFLUENCE: (void)tui_planner_influence(app, msg->job, &msg->u.influence); break;
    case MOA_WIRE_RESULT: (void)tui_planner_result(app, msg->job, &msg->u.result); break;
    case MOA_WIRE_NOTE: {
        char text[400];
        copy_text(text, sizeof text, msg->u.note.text);
        tui_say(app, TUI_INFO, "%s", text);
        break;
    }
    default: break; /* what only the screen sends */
    }
    tui_dirty(app);
}
