/* rules.c -- the keys that change rules and marks, the same on every screen.
 *
 * They act on the marked heads, or on the one under the cursor when none is marked; with the group lock on whole KV groups. Each is one
 * step of the undo list, and the step's name tells what it did. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tui/internal.h"

typedef struct edit {
    const char *verb;
    double by;
    moa_rule rule;
} edit;

static moa_status each_target(tui_app *app, const edit *e, tui_rule_fn fn, moa_err *err) {
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan; load a model, or :plan open FILE");
    const int32_t n_head = app->plan.now->n_head;
    const size_t n = (size_t)app->plan.now->n_layer * (size_t)n_head;
    uint8_t *mask = malloc(n);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    const int32_t n_target = tui_plan_targets(app, mask);
    char what[96];
    if (n_target == 1) {
        const uint8_t *at = memchr(mask, 1, n);
        const int32_t i = (int32_t)(at - mask);
        (void)snprintf(what, sizeof what, "L%02d H%02d %s", i / n_head, i % n_head, e->verb);
    } else (void)snprintf(what, sizeof what, "%d heads %s", n_target, e->verb);
    edit copy = *e;
    const int32_t changed = tui_plan_edit(app, mask, what, fn, &copy);
    free(mask);
    if (changed == 0 && e->by != 0) /* a step beyond the shortest or the longest */
        tui_say(app, TUI_INFO, "Nothing changes: %s; a span goes from %d, sink and newest block, to all of N", what, MOA_SPAN_MIN);
    else if (changed == 0) tui_say(app, TUI_INFO, "Nothing changes: %s", what);
    else if (changed > 1) tui_say(app, TUI_INFO, "%s (%d changed); u undoes", what, changed);
    return MOA_OK;
}

/* The span moves by whole blocks from what it is now: a rule beyond the sequence is first brought back to it. */
static bool move_span(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user) {
    (void)layer;
    (void)head;
    const edit *e = user;
    const int32_t n = tui_plan_n(app);
    const double x = rule->alpha + rule->beta * n;
    double to = (x < MOA_SPAN_MIN ? MOA_SPAN_MIN : x > n ? moa_roundup64(n) : x) + e->by;
    if (to < MOA_SPAN_MIN) to = MOA_SPAN_MIN;
    if (to > moa_roundup64(n)) to = moa_roundup64(n);
    const double alpha = to - rule->beta * n;
    if (moa_span((moa_rule){alpha, rule->beta}, n) == moa_span(*rule, n)) return false;
    rule->alpha = alpha;
    return true;
}

static moa_status move(tui_app *app, const tui_args *a, double by, moa_err *err) {
    const double d = by * (a->count > 0 ? a->count : 1);
    char verb[40];
    (void)snprintf(verb, sizeof verb, "span %+g", d);
    return each_target(app, &(edit){.verb = verb, .by = d}, move_span, err);
}
moa_status tui_rule_widen(tui_app *app, const tui_args *a, moa_err *err) { return move(app, a, 64, err); }
moa_status tui_rule_narrow(tui_app *app, const tui_args *a, moa_err *err) { return move(app, a, -64, err); }

static bool move_beta(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user) {
    (void)app;
    (void)layer;
    (void)head;
    double b = rule->beta + ((const edit *)user)->by;
    if (b < 0) b = 0;
    if (b > 1) b = 1;
    if (rule->beta > 1 || rule->beta < 0) b = rule->beta > 1 ? 1 : 0; /* from outside: to the nearest end first */
    rule->beta = b;
    return true;
}
static moa_status beta(tui_app *app, const tui_args *a, double by, moa_err *err) {
    const double d = by * (a->count > 0 ? a->count : 1);
    char verb[40];
    (void)snprintf(verb, sizeof verb, "beta %+g", d);
    return each_target(app, &(edit){.verb = verb, .by = d}, move_beta, err);
}
moa_status tui_rule_beta_up(tui_app *app, const tui_args *a, moa_err *err) { return beta(app, a, 0.125, err); }
moa_status tui_rule_beta_down(tui_app *app, const tui_args *a, moa_err *err) { return beta(app, a, -0.125, err); }

static bool set_rule(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user) {
    (void)app;
    (void)layer;
    (void)head;
    *rule = ((const edit *)user)->rule;
    return true;
}
moa_status tui_rule_full(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return each_target(app, &(edit){.verb = "full", .rule = {0, 1}}, set_rule, err);
}
moa_status tui_rule_sink(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return each_target(app, &(edit){.verb = "sink only", .rule = {MOA_SPAN_MIN, 0}}, set_rule, err);
}

static bool widen_free(tui_app *app, int32_t layer, int32_t head, moa_rule *rule, void *user) {
    (void)user;
    const int32_t n = tui_plan_n(app), g = app->plan.now->n_head / app->model.n_head_kv, own = moa_span(*rule, n);
    int32_t best = own;
    moa_rule widest = *rule;
    for (int32_t k = head / g * g; k < head / g * g + g; k++) {
        const moa_rule r = *moa_plan_at(app->plan.now, layer, k);
        if (moa_span(r, n) > best) {
            best = moa_span(r, n);
            widest = r;
        }
    }
    *rule = widest;
    return best > own;
}

/* every head, or the marked ones: the question "what may I have for nothing?" is about the whole plan */
moa_status tui_rule_free_widen(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!app->plan.now || !app->model.loaded) return moa_fail(err, MOA_E_FAILED, "free widening needs a model: which heads share a KV head is in it");
    const size_t n = (size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head;
    const bool some = memchr(app->plan.marks, 1, n) != NULL;
    uint8_t *mask = malloc(n);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    if (some) memcpy(mask, app->plan.marks, n);
    else memset(mask, 1, n);
    const tui_kv before = tui_kv_at(app, app->plan.now, tui_plan_n(app));
    const int32_t changed = tui_plan_edit(app, mask, some ? "free widening of the marked heads" : "free widening of all heads", widen_free, NULL);
    const tui_kv after = tui_kv_at(app, app->plan.now, tui_plan_n(app));
    free(mask);
    tui_say(app, changed ? TUI_GOOD : TUI_INFO, "%d heads widened to the widest of their KV group: %+lld bytes of KV", changed,
            (long long)after.plan - (long long)before.plan);
    return MOA_OK;
}

moa_status tui_rule_group_lock(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    app->plan.group_lock = !app->plan.group_lock;
    tui_say(app, TUI_INFO, app->plan.group_lock ? "Edits apply to whole KV groups" : "Edits apply to single heads");
    return MOA_OK;
}

/* `=` and `w` open the prompt (tui_command.prompt); typed as a command they say how */
moa_status tui_rule_ask(tui_app *app, const tui_args *a, moa_err *err) {
    (void)app;
    (void)a;
    return moa_fail(err, MOA_E_USAGE, "usage: set-rule @targets alpha=A beta=B | w=SPAN | full | sink");
}

moa_status tui_rule_copy(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan");
    app->plan.clip = *moa_plan_at(app->plan.now, app->cursor.layer, app->cursor.head);
    app->plan.has_clip = true;
    char text[80];
    const int n = snprintf(text, sizeof text, "alpha=%g beta=%g", app->plan.clip.alpha, app->plan.clip.beta);
    term_clipboard(text, (size_t)n);
    tui_say(app, TUI_INFO, "Copied %s", text);
    return MOA_OK;
}

moa_status tui_rule_paste(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!app->plan.has_clip) return moa_fail(err, MOA_E_FAILED, "no rule was copied; y copies the one under the cursor");
    char verb[60];
    (void)snprintf(verb, sizeof verb, "pasted (%g, %g)", app->plan.clip.alpha, app->plan.clip.beta);
    return each_target(app, &(edit){.verb = verb, .rule = app->plan.clip}, set_rule, err);
}

moa_status tui_mark_toggle(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan");
    const size_t n = (size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head;
    uint8_t *mask = malloc(n);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    memcpy(mask, app->plan.marks, n);
    mask[(size_t)app->cursor.layer * (size_t)app->plan.now->n_head + (size_t)app->cursor.head] ^= 1;
    char what[40];
    (void)snprintf(what, sizeof what, "mark L%02d H%02d", app->cursor.layer, app->cursor.head);
    tui_plan_mark(app, mask, what);
    free(mask);
    return MOA_OK;
}

moa_status tui_mark_alike(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no plan");
    const size_t n = (size_t)app->plan.now->n_layer * (size_t)app->plan.now->n_head;
    uint8_t *mask = malloc(n);
    if (!mask) return moa_fail(err, MOA_E_MEMORY, "no memory for a selection");
    const moa_rule rule = *moa_plan_at(app->plan.now, app->cursor.layer, app->cursor.head);
    int count = 0;
    for (size_t i = 0; i < n; i++) {
        mask[i] = app->plan.now->rules[i].alpha == rule.alpha && app->plan.now->rules[i].beta == rule.beta;
        count += mask[i];
    }
    char what[60];
    (void)snprintf(what, sizeof what, "mark %d heads of (%g, %g)", count, rule.alpha, rule.beta);
    tui_plan_mark(app, mask, what);
    tui_say(app, TUI_INFO, "Marked %d heads with rule (%g, %g)", count, rule.alpha, rule.beta);
    free(mask);
    return MOA_OK;
}
