/* blame.c -- from a wrong token to the heads that could not see what they wanted.
 *
 * For one query: every head's dense attention (from the captured q and k; nothing is run again), and how much of it lies outside the
 * head's span under the plan. The engine keeps one request for a map at a time, so the heads are asked one after the other; the map
 * on the screen waits meanwhile. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tui/internal.h"

static void ask_next(tui_app *app) {
    tui_blame *b = &app->blame;
    const int32_t layer = b->next / app->model.n_head, head = b->next % app->model.n_head;
    const int32_t span = moa_span(*moa_plan_at(app->plan.now, layer, head), app->runs[b->slot].n_reserved);
    moa_wire_msg m = {.type = MOA_WIRE_SELECT_MAP};
    m.u.select_map = (moa_msg_select_map){.layer = layer, .head = head, .span = MOA_N_MAX, .measure_span = span, .q0 = b->query, .q1 = b->query + 1, .k0 = 0,
                                          .k1 = b->query + 1, .rows = 1, .cols = 1};
    b->active = tui_link_send(app, &m, NULL) == MOA_OK;
    b->job = m.job;
}

moa_status tui_blame_start(tui_app *app, int32_t query, moa_err *err) {
    tui_blame *b = &app->blame;
    const tui_run *r = &app->runs[app->newest];
    if (!app->model.loaded || !app->engine_has_run) return moa_fail(err, MOA_E_FAILED, "the engine holds no run; r or R makes one");
    if (app->slot_running >= 0) return moa_fail(err, MOA_E_FAILED, "run #%d is not done", r->number);
    if (query < 0 || query >= r->n_prompt + r->n_token) return moa_fail(err, MOA_E_FAILED, "position %d is not in run #%d", query, r->number);
    const int32_t n = app->model.n_layer * app->model.n_head;
    float *cut = malloc((size_t)n * sizeof *cut);
    if (!cut) return moa_fail(err, MOA_E_MEMORY, "no memory for %d heads", n);
    for (int32_t i = 0; i < n; i++) cut[i] = NAN;
    free(b->cut);
    *b = (tui_blame){.active = true, .slot = app->newest, .query = query, .n = n, .cut = cut};
    if (!app->map_waiting) ask_next(app); /* else after the map on its way: the engine forgets a request that another overtakes */
    return MOA_OK;
}

void tui_blame_go(tui_app *app) {
    if (app->blame.active && app->blame.job == 0) ask_next(app);
}

static void finished(tui_app *app) {
    app->blame.active = false;
    tui_map_resend(app);
}

bool tui_blame_answer(tui_app *app, uint32_t job, const moa_msg_map *m) {
    tui_blame *b = &app->blame;
    if (!b->active || job != b->job) return false;
    if (m->stat.n == MOA_N_STAT && m->rows == 1 && b->next < b->n) {
        const double kept = (double)m->stat.data[MOA_STAT_SINK] + (double)m->stat.data[MOA_STAT_WINDOW];
        b->cut[b->next] = kept > 1 ? 0 : (float)(1 - kept);
    }
    b->next++;
    tui_dirty(app);
    if (b->next >= b->n || !app->plan.now || app->plan.now->n_layer * app->plan.now->n_head != b->n) finished(app);
    else ask_next(app);
    return true;
}

bool tui_blame_failed(tui_app *app, uint32_t job) {
    if (!app->blame.active || job != app->blame.job) return false;
    finished(app);
    return true;
}

void tui_blame_free(tui_app *app) {
    free(app->blame.cut);
    app->blame.cut = NULL;
}

int32_t tui_blame_top(const tui_app *app, int32_t *out, int32_t max) {
    const tui_blame *b = &app->blame;
    int32_t n = 0;
    for (int32_t i = 0; b->cut && i < b->n; i++) {
        if (isnan(b->cut[i]) || b->cut[i] < 1e-4f) continue;
        if (n == max && b->cut[out[n - 1]] >= b->cut[i]) continue;
        int32_t k = n < max ? n++ : n - 1; /* insertion into the few largest */
        for (; k > 0 && b->cut[out[k - 1]] < b->cut[i]; k--) out[k] = out[k - 1];
        out[k] = i;
    }
    return n;
}
