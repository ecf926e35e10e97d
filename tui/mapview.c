/* mapview.c -- what the map screen shows; mapview.h has the picture. */
#include "tui/mapview.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *tui_map_sink_name(int mode) {
    static const char *const names[TUI_SINK_N] = {"split", "shown", "renormalised", "hidden"};
    return names[mode >= 0 && mode < TUI_SINK_N ? mode : 0];
}

int32_t tui_map_n(const tui_app *app) {
    const tui_run *r = &app->runs[app->newest];
    if (!r->number) return 0;
    int32_t n = r->n_prompt;
    if (r->state == TUI_RUN_PREFILL && r->done < (uint64_t)n) n = (int32_t)r->done;
    if (app->map.there && app->map.slot == app->newest && app->map.n_past > n) n = app->map.n_past;
    if (r->pages.there && r->pages.n_past > n) n = r->pages.n_past;
    return n;
}

int32_t tui_map_sink_tok(const tui_view_state *v, int32_t n) {
    return v->v[V_SINK] != TUI_SINK_SHOW && n > MOA_SINK_TOK + 8 ? MOA_SINK_TOK : 0;
}

int32_t tui_map_plan_span(const tui_app *app, int32_t layer, int32_t head) {
    const moa_plan *p = app->plan.now;
    if (!p || layer < 0 || head < 0 || layer >= p->n_layer || head >= p->n_head) return 0;
    return moa_span(*moa_plan_at(p, layer, head), tui_plan_n(app));
}

int32_t tui_map_run_span(const tui_app *app, const tui_run *r, int32_t layer, int32_t head) {
    (void)app;
    if (r->dense || !r->spans || layer < 0 || head < 0 || layer >= r->n_layer || head >= r->n_head) return MOA_N_MAX;
    return r->spans[(size_t)layer * (size_t)r->n_head + (size_t)head];
}

/* --- where ------------------------------------------------------------------------------------------------------------------- */

tui_map_geo tui_map_geometry(viz_rect pane, viz_caps caps, bool tokens, bool gutter, int label_cells) {
    tui_map_geo g = {.in = pane, .half = viz_caps_half(caps) ? 2 : 1};
    g.framed = pane.h >= 22 && pane.w >= 60;
    if (g.framed) g.in = viz_rect_inset(pane, 1, 1);
    const int head = g.framed ? 0 : 1;
    g.whose = g.in.h >= 20;
    g.n_strip = g.in.h >= 16 ? 2 : 1;
    g.left = tokens ? (g.in.w >= 70 ? 17 : 12) : (label_cells > 4 ? label_cells : 4) + 1;
    g.top = tokens ? 2 : 1;
    g.gutter = gutter ? 3 : 0;
    const int below = g.n_strip + 1 + g.whose;
    g.plot = (viz_rect){g.in.y + head + g.top, g.in.x + g.left + g.gutter, g.in.h - head - g.top - below, g.in.w - g.left - g.gutter - 1};
    if (g.plot.h < 1) g.plot.h = 1;
    if (g.plot.w < 1) g.plot.w = 1;
    return g;
}

static int digits(int32_t n) {
    int d = 1;
    while (n >= 10) n /= 10, d++;
    return d;
}

bool tui_map_window_of(tui_app *app, tui_view_state *v, viz_rect pane, tui_map_window *out) {
    const int32_t n = tui_map_n(app);
    memset(out, 0, sizeof *out);
    if (n < 1 || viz_rect_empty(pane)) return false;
    const int32_t lo = tui_map_sink_tok(v, n);
    const bool gutter = lo > 0 && v->v[V_SINK] == TUI_SINK_SPLIT;
    for (int pass = 0; pass < 2; pass++) { /* how wide the axes are depends on what is shown, and the other way round: numbers first */
        out->geo = tui_map_geometry(pane, app->caps, pass == 1, gutter, digits(n));
        out->q = (viz_zoom){0, n, out->geo.plot.h * out->geo.half, out->geo.half, out->geo.half};
        out->k = (viz_zoom){lo, n, out->geo.plot.w, 1, TUI_MAP_VALUE_CELLS};
        if (pass == 0) {
            out->levels = viz_zoom_levels(&out->q, &out->k);
            out->last = out->levels + 1;
            if (v->v[V_LEVEL] > out->last) v->v[V_LEVEL] = out->last;
            if (v->v[V_LEVEL] < 0) v->v[V_LEVEL] = 0;
            out->level = (int)v->v[V_LEVEL];
            out->tokens = out->level >= out->levels;
            if (!out->tokens) break;
        }
    }
    out->n_q = viz_zoom_count(&out->q, out->level, out->levels);
    out->n_k = viz_zoom_count(&out->k, out->level, out->levels);
    return true;
}

void tui_map_scroll(tui_app *app, tui_view_state *v, const tui_map_window *w) {
    v->v[V_Q0] = viz_zoom_scroll(&w->q, w->n_q, (int32_t)v->v[V_Q0], app->cursor.query);
    if (app->cursor.key >= w->k.lo) v->v[V_K0] = viz_zoom_scroll(&w->k, w->n_k, (int32_t)v->v[V_K0], app->cursor.key);
    else v->v[V_K0] = viz_zoom_scroll(&w->k, w->n_k, (int32_t)v->v[V_K0], (int32_t)v->v[V_K0] + w->n_k / 2); /* in the gutter: stay */
}

void tui_map_ask_for(tui_app *app, const tui_view_state *v, const tui_map_window *w) {
    const tui_run *r = &app->runs[app->newest];
    const bool running = app->slot_running >= 0;
    const bool whole = w->level == 0;
    if (r->state == TUI_RUN_PREFILL && r->done < r->total) return; /* STATS and PAGES tell when there is something */
    tui_map_ask a = {.layer = app->cursor.layer, .head = app->cursor.head, .span = v->v[V_NO_MASK] ? MOA_N_MAX : 0, .follow = running};
    a.measure_span = tui_map_plan_span(app, a.layer, a.head);
    a.q0 = whole ? 0 : (int32_t)v->v[V_Q0];
    a.k0 = whole ? w->k.lo : (int32_t)v->v[V_K0];
    a.q1 = whole ? 0 : a.q0 + w->n_q;
    a.k1 = whole ? 0 : a.k0 + w->n_k;
    a.rows = w->q.cells < w->n_q || (whole && running) ? w->q.cells : w->n_q;
    a.cols = w->k.cells < w->n_k || (whole && running) ? w->k.cells : w->n_k;
    tui_map_request(app, &a);
    tui_map_ask_row(app);
}

void tui_map_ask_row(tui_app *app) {
    const int32_t q = app->cursor.query;
    if (q < 0 || q >= tui_map_n(app)) return;
    const tui_map_ask a = {.layer = app->cursor.layer, .head = app->cursor.head, .span = MOA_N_MAX, .q0 = q, .q1 = q + 1, .k1 = q + 1, .rows = 1, .cols = q + 1};
    tui_row_request(app, &a);
}

/* --- what is there --------------------------------------------------------------------------------------------------------------- */

void tui_map_axes(const tui_map *m, const tui_map_geo *g, viz_axis *q, viz_axis *k) {
    const bool figures = m->cols == m->k1 - m->k0 && m->cols * TUI_MAP_VALUE_CELLS <= g->plot.w;
    *q = viz_axis_of(m->q0, m->q1, m->rows, g->plot.h * g->half, g->half);
    *k = viz_axis_of(m->k0, m->k1, m->cols, g->plot.w, figures ? TUI_MAP_VALUE_CELLS : 2);
}

void tui_map_edges(int32_t span, const viz_axis *q, const viz_axis *k, float *edge) {
    for (int r = 0; r < q->cells; r++) {
        const int32_t first = moa_window_first(span, viz_axis_first(q, r));
        edge[r] = 0;
        if (first <= MOA_SINK_TOK || first <= k->t0) continue;
        edge[r] = (float)(first >= k->t1 ? k->cells : viz_axis_cell(k, first));
    }
}

const float *tui_map_row(const tui_app *app, int32_t *n) {
    const tui_map *m = &app->row;
    *n = 0;
    if (!m->there || m->slot != app->newest || m->layer != app->cursor.layer || m->head != app->cursor.head || m->rows != 1 || m->k0 != 0 ||
        m->q0 != app->cursor.query || m->cols != m->q0 + 1)
        return NULL;
    *n = m->cols;
    return m->mass;
}

bool tui_map_row_figures(const tui_app *app, tui_row_figures *out) {
    int32_t n;
    const float *row = tui_map_row(app, &n);
    const tui_run *r = &app->runs[app->newest];
    const int32_t q = app->cursor.query, key = app->cursor.key, plan = tui_map_plan_span(app, app->cursor.layer, app->cursor.head);
    const int32_t own = tui_map_run_span(app, r, app->cursor.layer, app->cursor.head);
    *out = (tui_row_figures){(double)NAN, (double)NAN, 0, (double)NAN, (double)NAN, (double)NAN};
    if (!row || key < 0 || key >= n) return false;
    double kept = 0, run_kept = 0, all = 0, sink = 0;
    int32_t rank = 1;
    for (int32_t j = 0; j < n; j++) {
        const double a = (double)row[j];
        all += a;
        if (j < MOA_SINK_TOK) sink += a;
        if (plan && moa_sees(plan, q, j)) kept += a;
        if (moa_sees(own, q, j)) run_kept += a;
        rank += row[j] > row[key];
    }
    out->a = (double)row[key];
    out->rank = rank;
    out->sink = all > 0 ? sink / all : (double)NAN;
    if (plan && all > 0) out->cut = kept >= all ? 0 : 1 - kept / all;
    if (all > 0) out->run_cut = run_kept >= all ? 0 : 1 - run_kept / all;
    out->a_run = !moa_sees(own, q, key) ? 0 : run_kept > 0 ? out->a / run_kept : (double)NAN;
    return true;
}

int32_t tui_map_top(const float *row, int32_t n, int32_t *keys, int32_t max) {
    int32_t k = 0;
    for (int32_t j = 0; j < n; j++) {
        if (k == max && !(row[j] > row[keys[k - 1]])) continue;
        int32_t i = k < max ? k++ : k - 1;
        for (; i > 0 && row[j] > row[keys[i - 1]]; i--) keys[i] = keys[i - 1];
        keys[i] = j;
    }
    return k;
}
