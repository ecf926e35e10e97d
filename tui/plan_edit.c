/* plan_edit.c -- the plan on the screen: edits with undo, files, and what a head's rule means.
 *
 *   changes [0 .. n_done) done | [n_done .. n_change) undone, can be redone      a new edit drops the undone ones
 *
 * A change keeps old and new rules of the heads it touched (and the marks, when they changed), so undo is exact whatever the edit was. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/engine/engine.h"
#include "tui/app.h"
#include "tui/internal.h"
#include "tui/journal.h"

static size_t n_heads(const moa_plan *p) { return (size_t)p->n_layer * (size_t)p->n_head; }

static int32_t n_head_kv(const tui_app *app) {
    if (app->model.loaded) return app->model.n_head_kv;
    return app->plan.now && app->plan.now->n_head_kv > 0 ? app->plan.now->n_head_kv : 0;
}

static void tell_plan(tui_app *app) {
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i)->event) tui_view_at(i)->event(app, TUI_EV_PLAN);
    tui_dirty(app);
}

/* --- history ------------------------------------------------------------------------------------------------------------------- */

static void change_free(tui_change *c) {
    free(c->at);
    free(c->before);
    free(c->after);
    free(c->marks_before);
    free(c->marks_after);
    memset(c, 0, sizeof *c);
}

static void history_clear(tui_plan *p) {
    for (int i = 0; i < p->n_change; i++) change_free(&p->changes[i]);
    free(p->changes);
    p->changes = NULL;
    p->n_change = p->n_done = p->n_saved = 0;
}

void tui_plan_free(tui_app *app) {
    tui_plan *p = &app->plan;
    history_clear(p);
    moa_plan_close(&p->now);
    moa_plan_close(&p->disk);
    moa_clean_close(&p->shown);
    free(p->marks);
    p->marks = NULL;
}

/* moves *c into the history; on lack of memory the edit stays but cannot be undone, and the user is told */
static void history_push(tui_app *app, tui_change *c) {
    tui_plan *p = &app->plan;
    for (int i = p->n_done; i < p->n_change; i++) change_free(&p->changes[i]);
    p->n_change = p->n_done;
    if (p->n_saved > p->n_done) p->n_saved = -1;
    tui_change *grown = realloc(p->changes, ((size_t)p->n_change + 1) * sizeof *grown);
    if (!grown) {
        change_free(c);
        p->n_saved = -1;
        tui_say(app, TUI_WARN, "No memory to remember this edit: it cannot be undone");
        journal_edit(app, NULL);
        return;
    }
    p->changes = grown;
    p->changes[p->n_change++] = *c;
    p->n_done = p->n_change;
    memset(c, 0, sizeof *c);
    journal_edit(app, &p->changes[p->n_done - 1]);
}

static void apply(tui_plan *p, const tui_change *c, bool forward) {
    for (int32_t i = 0; i < c->n; i++) p->now->rules[c->at[i]] = forward ? c->after[i] : c->before[i];
    const uint8_t *marks = forward ? c->marks_after : c->marks_before;
    if (marks && p->marks) memcpy(p->marks, marks, n_heads(p->now));
}

bool tui_plan_undo(tui_app *app) {
    tui_plan *p = &app->plan;
    if (p->n_done == 0) return false;
    apply(p, &p->changes[--p->n_done], false);
    tui_say(app, TUI_INFO, "Undone: %s", p->changes[p->n_done].what);
    journal_undo_pos(app);
    tell_plan(app);
    return true;
}

bool tui_plan_redo(tui_app *app) {
    tui_plan *p = &app->plan;
    if (p->n_done == p->n_change) return false;
    tui_say(app, TUI_INFO, "Done again: %s", p->changes[p->n_done].what);
    apply(p, &p->changes[p->n_done++], true);
    journal_undo_pos(app);
    tell_plan(app);
    return true;
}

bool tui_plan_dirty(const tui_app *app) {
    const tui_plan *p = &app->plan;
    if (!p->now) return false;
    if (p->disk) return !moa_plan_equal(p->now, p->disk);
    for (int i = 0; i < p->n_done; i++)
        if (p->changes[i].n > 0) return true; /* never on disk: any edit of a rule is one to save */
    return false;
}

int tui_plan_edits(const tui_app *app) {
    const tui_plan *p = &app->plan;
    if (!tui_plan_dirty(app)) return 0;
    const int saved = p->n_saved < 0 ? 0 : p->n_saved, from = saved < p->n_done ? saved : p->n_done, to = saved < p->n_done ? p->n_done : saved;
    int n = 0;
    for (int i = from; i < to; i++) n += p->changes[i].n > 0; /* marks are steps, but not edits of the plan */
    return n;
}

/* --- edits -------------------------------------------------------------------------------------------------------------------- */

int32_t tui_plan_edit(tui_app *app, const uint8_t *mask, const char *what, tui_rule_fn fn, void *user) {
    tui_plan *p = &app->plan;
    if (!p->now) return 0;
    const size_t n = n_heads(p->now);
    tui_change c = {0};
    c.at = malloc(n * sizeof *c.at);
    c.before = malloc(n * sizeof *c.before);
    c.after = malloc(n * sizeof *c.after);
    if (!c.at || !c.before || !c.after) {
        change_free(&c);
        tui_say(app, TUI_BAD, "No memory for an edit");
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        moa_rule rule = p->now->rules[i];
        if (!mask[i] || !fn(app, (int32_t)i / p->now->n_head, (int32_t)i % p->now->n_head, &rule, user)) continue;
        if (!isfinite(rule.alpha) || !isfinite(rule.beta) || (rule.alpha == p->now->rules[i].alpha && rule.beta == p->now->rules[i].beta)) continue;
        c.at[c.n] = (int32_t)i;
        c.before[c.n] = p->now->rules[i];
        c.after[c.n++] = rule;
    }
    const int32_t changed = c.n;
    if (changed == 0) {
        change_free(&c);
        return 0;
    }
    (void)snprintf(c.what, sizeof c.what, "%.80s", what);
    apply(p, &c, true);
    history_push(app, &c);
    tell_plan(app);
    return changed;
}

static bool take_rule(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user) {
    (void)app;
    *rule = *moa_plan_at(user, layer, head);
    return true;
}

moa_status tui_plan_set_all(tui_app *app, const moa_plan *to, const char *what, moa_err *err) {
    tui_plan *p = &app->plan;
    if (!p->now) return moa_fail(err, MOA_E_FAILED, "there is no plan to change; load a model first");
    if (to->n_layer != p->now->n_layer || to->n_head != p->now->n_head)
        return moa_fail(err, MOA_E_INVALID, "the plan has %d layers of %d heads, this one %d of %d", to->n_layer, to->n_head, p->now->n_layer, p->now->n_head);
    uint8_t *mask = malloc(n_heads(p->now));
    moa_plan *copy = NULL;
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for an edit");
    memset(mask, 1, n_heads(p->now));
    const moa_status s = moa_plan_copy(&copy, to, err);
    if (s == MOA_OK && tui_plan_edit(app, mask, what, take_rule, copy) == 0) tui_say(app, TUI_INFO, "Nothing changes: every head has that rule already");
    moa_plan_close(&copy);
    free(mask);
    return s;
}

void tui_plan_mark(tui_app *app, const uint8_t *marks, const char *what) {
    tui_plan *p = &app->plan;
    if (!p->now || !p->marks || memcmp(marks, p->marks, n_heads(p->now)) == 0) return;
    tui_change c = {0};
    const size_t n = n_heads(p->now);
    c.marks_before = malloc(n);
    c.marks_after = malloc(n);
    if (!c.marks_before || !c.marks_after) {
        change_free(&c);
        memcpy(p->marks, marks, n);
        return;
    }
    memcpy(c.marks_before, p->marks, n);
    memcpy(c.marks_after, marks, n);
    (void)snprintf(c.what, sizeof c.what, "%.80s", what);
    apply(p, &c, true);
    history_push(app, &c);
    tell_plan(app);
}

static bool has_word(const char *text, const char *word, const char **rest) {
    const size_t n = strlen(word);
    if (strncmp(text, word, n) != 0) return false;
    *rest = text + n;
    return true;
}

moa_status tui_plan_select(const tui_app *app, const char *text, uint8_t *mask, moa_err *err) {
    const tui_plan *p = &app->plan;
    if (!p->now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model first");
    const size_t n = n_heads(p->now);
    const char *rest;
    memset(mask, 0, n);
    if (has_word(text, "@marked", &rest) && !*rest) memcpy(mask, p->marks, n);
    else if (has_word(text, "@cursor", &rest) && !*rest) mask[(size_t)app->cursor.layer * (size_t)p->now->n_head + (size_t)app->cursor.head] = 1;
    else if (has_word(text, "@shown", &rest) && !*rest) {
        for (size_t i = 0; i < n; i++) mask[i] = tui_plan_shown(app, (int32_t)i);
    } else if (has_word(text, "@targets", &rest) && !*rest) (void)tui_plan_targets(app, mask);
    else if (has_word(text, "@class:", &rest)) {
        for (size_t i = 0; i < n; i++) mask[i] = strcmp(tui_head_class(app, (int32_t)i / p->now->n_head, (int32_t)i % p->now->n_head), rest) == 0;
    } else return moa_select(text, p->now->n_layer, p->now->n_head, n_head_kv(app), mask, err);
    for (size_t i = 0; i < n; i++)
        if (mask[i]) return MOA_OK;
    return moa_fail(err, MOA_E_USAGE, "%s selects no head", text);
}

int32_t tui_plan_targets(const tui_app *app, uint8_t *mask) {
    const tui_plan *p = &app->plan;
    if (!p->now) return 0;
    const int32_t heads = p->now->n_head, kv = n_head_kv(app), g = kv > 0 ? heads / kv : 1;
    const size_t n = n_heads(p->now);
    int32_t count = 0;
    memcpy(mask, p->marks, n);
    for (size_t i = 0; i < n; i++) count += mask[i];
    if (count == 0) mask[(size_t)app->cursor.layer * (size_t)heads + (size_t)app->cursor.head] = 1;
    if (p->group_lock && g > 1)
        for (size_t i = 0; i < n; i += (size_t)g) {
            uint8_t any = 0;
            for (int32_t k = 0; k < g; k++) any |= mask[i + (size_t)k];
            memset(mask + i, any, (size_t)g);
        }
    count = 0;
    for (size_t i = 0; i < n; i++) count += mask[i];
    return count;
}

/* --- files -------------------------------------------------------------------------------------------------------------------- */

static void note_disk(tui_plan *p) {
    struct stat st;
    p->disk_mtime_ns = p->disk_size = -1;
    if (*p->path && stat(p->path, &st) == 0) {
        p->disk_mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        p->disk_size = (int64_t)st.st_size;
    }
}

bool tui_plan_disk_changed(const tui_app *app) {
    const tui_plan *p = &app->plan;
    struct stat st;
    if (!*p->path || p->disk_size < 0) return false;
    if (stat(p->path, &st) != 0) return errno != ENOENT;
    return (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec != p->disk_mtime_ns || (int64_t)st.st_size != p->disk_size;
}

static void name_plan(tui_app *app, const char *text) {
    const char *slash = strrchr(text, '/');
    if (slash && slash[1]) text = slash + 1;
    moa_clean_close(&app->plan.shown);
    app->plan.shown = moa_clean_of(text, strlen(text), MOA_TEXT_LINE | (app->caps.utf8 ? 0 : MOA_TEXT_ASCII));
}

static bool spec_is_file(const char *spec) {
    return strcmp(spec, "full") != 0 && strcmp(spec, "sink") != 0 && strncmp(spec, "uniform:", 8) != 0;
}

moa_status tui_plan_open(tui_app *app, const char *spec, moa_err *err) {
    tui_plan *p = &app->plan;
    moa_plan *opened = NULL, *disk = NULL;
    uint8_t *marks = NULL;
    moa_status s = MOA_OK;
    if (strlen(spec) >= sizeof p->path) return moa_fail(err, MOA_E_INVALID, "the plan's path is %zu bytes long", strlen(spec));
    if (app->model.loaded) s = moa_plan_open(&opened, spec, app->model.n_layer, app->model.n_head, err);
    else if (spec_is_file(spec)) s = moa_plan_load(&opened, spec, err);
    else return moa_fail(err, MOA_E_FAILED, "%s needs a model's number of layers and heads; none is loaded", spec);
    if (s != MOA_OK) goto out;
    if (spec_is_file(spec)) MOA_TRY(moa_plan_copy(&disk, opened, err));
    marks = calloc(n_heads(opened), 1);
    if (!marks) {
        s = moa_fail(err, MOA_E_MEMORY, "no memory for a plan");
        goto out;
    }
    history_clear(p);
    moa_plan_close(&p->now);
    moa_plan_close(&p->disk);
    free(p->marks);
    p->now = opened, p->disk = disk, p->marks = marks;
    opened = disk = NULL;
    marks = NULL;
    (void)snprintf(p->path, sizeof p->path, "%s", spec_is_file(spec) ? spec : "");
    p->superset = !spec_is_file(spec) || p->now->fingerprint[0] || p->now->model[0];
    note_disk(p);
    name_plan(app, strcmp(spec, "full") == 0 ? "full attention" : spec);
    if (app->cursor.layer >= p->now->n_layer) app->cursor.layer = p->now->n_layer - 1;
    if (app->cursor.head >= p->now->n_head) app->cursor.head = p->now->n_head - 1;
    journal_plan_opened(app);
    tell_plan(app);
out:
    moa_plan_close(&opened);
    moa_plan_close(&disk);
    free(marks);
    return s;
}

/* "full attention", "uniform:0.5", or that it came from a session */
static void name_base(tui_app *app, const moa_plan *base) {
    char text[48] = "of the session";
    bool uniform = base->rules[0].alpha == 0;
    for (size_t i = 1; i < n_heads(base); i++) uniform = uniform && base->rules[i].alpha == 0 && base->rules[i].beta == base->rules[0].beta;
    if (uniform && base->rules[0].beta == 1) (void)snprintf(text, sizeof text, "full attention");
    else if (uniform) (void)snprintf(text, sizeof text, "uniform:%g", base->rules[0].beta);
    name_plan(app, text);
}

void tui_plan_restore(tui_app *app, moa_plan *base, tui_change *changes, int n_change, int n_done, const char *path) {
    tui_plan *p = &app->plan;
    moa_err err = {0};
    tui_plan_free(app);
    p->changes = changes;
    p->n_change = n_change;
    p->path[0] = 0;
    p->marks = calloc(n_heads(base), 1);
    if (!p->marks) {
        history_clear(p);
        moa_plan_close(&base);
        tui_say(app, TUI_BAD, "No memory for the plan of the session");
        return;
    }
    if (*path && strlen(path) < sizeof p->path) {
        (void)snprintf(p->path, sizeof p->path, "%s", path);
        name_plan(app, path);
        if (moa_plan_load(&p->disk, path, &err) != MOA_OK) tui_say(app, TUI_WARN, "%s; the session has the plan, W writes it", err.text);
        else if (moa_plan_fits(p->disk, base->n_layer, base->n_head, NULL) != MOA_OK) moa_plan_close(&p->disk);
        note_disk(p);
    } else name_base(app, base);
    p->now = base;
    p->superset = true;
    p->n_saved = p->disk && moa_plan_equal(p->now, p->disk) ? 0 : p->disk ? -1 : 0;
    while (p->n_done < n_done) { /* the newest step that is as on disk is the one that was saved */
        apply(p, &p->changes[p->n_done++], true);
        if (p->disk && moa_plan_equal(p->now, p->disk)) p->n_saved = p->n_done;
    }
    tell_plan(app);
}

void tui_plan_forget(tui_app *app) {
    tui_plan *p = &app->plan;
    moa_err err = {0};
    tui_plan_free(app);
    p->path[0] = 0;
    p->disk_mtime_ns = p->disk_size = -1;
    if (app->model.loaded && tui_plan_open(app, "full", &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
    else tell_plan(app);
}

/* the superset says which model a plan is for */
static void fill_model(tui_app *app, moa_plan *p) {
    if (!app->model.loaded) return;
    p->n_head_kv = app->model.n_head_kv;
    (void)snprintf(p->model, sizeof p->model, "%s", moa_clean_text(app->model.name));
    (void)snprintf(p->arch, sizeof p->arch, "%s", moa_clean_text(app->model.arch));
    (void)snprintf(p->fingerprint, sizeof p->fingerprint, "%s", app->model.fingerprint);
}

moa_status tui_plan_save(tui_app *app, const char *path, bool force, moa_err *err) {
    tui_plan *p = &app->plan;
    if (!p->now) return moa_fail(err, MOA_E_FAILED, "there is no plan");
    const bool other = *path && strcmp(path, p->path) != 0;
    if (!*path) path = p->path;
    if (!*path) return moa_fail(err, MOA_E_USAGE, "this plan has no file yet; :plan save FILE");
    if (strlen(path) >= sizeof p->path) return moa_fail(err, MOA_E_INVALID, "the plan's path is %zu bytes long", strlen(path));
    moa_buf shown = {0};
    moa_text_shell(path, strlen(path), &shown);
    const char *name = shown.data ? shown.data : "the file";
    moa_status s = MOA_OK;
    if (!force && other && access(path, F_OK) == 0)
        s = moa_fail(err, MOA_E_FAILED, "%s exists; :plan save! overwrites it (and keeps it as %s~)", name, name);
    else if (!force && !other && tui_plan_disk_changed(app))
        s = moa_fail(err, MOA_E_FAILED, "%s changed on disk since it was read; D shows how, :plan save! overwrites it", name);
    if (s != MOA_OK) goto out;
    if (p->superset || other) fill_model(app, p->now);
    MOA_TRY(moa_plan_save(p->now, path, p->superset || other, err));
    moa_plan_close(&p->disk);
    MOA_TRY(moa_plan_copy(&p->disk, p->now, err));
    if (other) {
        (void)snprintf(p->path, sizeof p->path, "%s", path);
        p->superset = true;
        name_plan(app, path);
    }
    p->n_saved = p->n_done;
    note_disk(p);
    journal_plan_saved(app);
    tui_say(app, TUI_GOOD, "Saved %s", name);
    tell_plan(app);
out:
    moa_buf_free(&shown);
    return s;
}

/* --- what it means ---------------------------------------------------------------------------------------------------------------- */

int32_t tui_plan_n(const tui_app *app) {
    int32_t n = app->n_user;
    if (n <= 0 && app->runs[app->newest].n_reserved > 0) n = app->runs[app->newest].n_reserved;
    if (n <= 0 && app->prompt_tokens_known) n = app->n_prompt_tok + app->options.n_gen;
    if (n <= 0) n = app->model.loaded && app->model.n_ctx < 4096 ? app->model.n_ctx : 4096;
    if (n > MOA_N_MAX) n = MOA_N_MAX;
    return n < 1 ? 1 : n;
}

bool tui_run_saw_all(const tui_run *r) {
    if (r->dense) return true;
    for (int64_t i = 0; r->spans && i < (int64_t)r->n_layer * r->n_head; i++)
        if (r->spans[i] < r->n_reserved) return false;
    return r->spans != NULL;
}

const tui_run *tui_truth(const tui_app *app) {
    static const tui_slot order[] = {TUI_A, TUI_F, TUI_B};
    for (int i = 0; i < 3; i++) {
        const tui_run *r = &app->runs[order[i]];
        int32_t n_bin;
        if (!r->number) continue;
        for (int32_t l = 0; l < r->n_layer; l++)
            if (tui_run_hist(r, l, 0, &n_bin)) return r;
    }
    return NULL;
}

/* by the bytes of an element: bf16 takes what f16 takes */
moa_kv_type tui_kv_type(const tui_app *app) {
    return app->model.kv_elem_bytes == 4 ? MOA_KV_F32 : app->model.kv_elem_bytes == 1 ? MOA_KV_Q8 : MOA_KV_F16;
}

uint64_t tui_kv_page_bytes(const tui_app *app) {
    return app->model.loaded ? moa_kv_page_bytes(tui_kv_type(app), app->model.d_head) : 0;
}

tui_kv tui_kv_at(const tui_app *app, const moa_plan *plan, int32_t n) {
    const tui_model *m = &app->model;
    if (!m->loaded || (plan && (plan->n_layer != m->n_layer || plan->n_head != m->n_head))) return (tui_kv){0};
    const moa_shape shape = {.n_layer = m->n_layer, .n_head = m->n_head, .n_head_kv = m->n_head_kv, .d_head = m->d_head, .d_model = m->d_model, .d_ff = m->d_ff,
                             .n_vocab = m->n_vocab, .n_ctx = m->n_ctx};
    const moa_kv_bytes b = moa_kv_formula(&shape, tui_kv_type(app), plan ? plan->rules : NULL, n, n);
    return (tui_kv){b.plan, b.dense, b.mha};
}

/* Thresholds in :help classes. Shares of mass: sink, inside 256 tokens, beyond a quarter of the prompt. */
const char *tui_head_class(const tui_app *app, int32_t layer, int32_t head) {
    int32_t n_bin;
    const tui_run *r = tui_truth(app);
    const float *h = tui_run_hist(r, layer, head, &n_bin);
    if (!h) return "-";
    double all = 0, local = 0, distant = 0;
    for (int32_t i = 0; i <= n_bin; i++) {
        all += (double)h[i];
        if (i >= 1 && i <= 4) local += (double)h[i];
        if (i >= 1 && (i - 1) * 64 >= r->n_prompt / 4) distant += (double)h[i];
    }
    if (!(all > 0)) return "-";
    if ((double)h[0] / all > 0.6) return "sink";
    if (distant / all > 0.25) return "distant";
    if (local / all > 0.6) return "local";
    return "mixed";
}

void tui_head_describe(const tui_app *app, int32_t layer, int32_t head, tui_head_figures *out) {
    const tui_plan *p = &app->plan;
    const double unknown = (double)NAN;
    *out = (tui_head_figures){.cover = unknown, .entropy = unknown, .worst_cover = unknown, .worst_query = -1};
    if (!p->now || layer < 0 || head < 0 || layer >= p->now->n_layer || head >= p->now->n_head) return;
    const int32_t n = tui_plan_n(app), kv = n_head_kv(app), g = kv > 0 ? p->now->n_head / kv : 1;
    out->rule = *moa_plan_at(p->now, layer, head);
    out->span = moa_span(out->rule, n);
    out->group_span = kv > 0 ? moa_plan_group_span(p->now, layer, head, kv, n) : out->span;
    out->is_widest = out->span == out->group_span;
    for (int32_t k = head / g * g; k < head / g * g + g; k++)
        if (k != head && moa_span(*moa_plan_at(p->now, layer, k), n) >= out->span) out->is_widest = false;
    const uint64_t page = tui_kv_page_bytes(app);
    out->kv_alone_bytes = (uint64_t)moa_n_pages(out->span, n) * page;
    out->kv_group_bytes = (uint64_t)moa_n_pages(out->group_span, n) * page;
    const tui_run *truth = tui_truth(app);
    if (!truth || truth->n_layer != p->now->n_layer || truth->n_head != p->now->n_head) return;
    int32_t n_bin;
    const float *h = tui_run_hist(truth, layer, head, &n_bin);
    out->cover_dense = tui_run_saw_all(truth);
    if (h) {
        out->cover = moa_coverage(h, n_bin, out->span);
        out->span95 = moa_coverage_span(h, n_bin, 0.95);
        out->span99 = moa_coverage_span(h, n_bin, 0.99);
    }
    out->entropy = tui_run_stat(truth, truth->stats.entropy, layer, head);
    out->worst_cover = tui_run_stat(truth, truth->stats.worst_cover, layer, head);
    if (truth->stats.there) out->worst_query = truth->stats.worst_query[(size_t)layer * (size_t)truth->n_head + (size_t)head];
}
