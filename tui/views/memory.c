/* memory -- where the bytes are: by formula beside what was measured, layer by layer, page by page.
 *
 *   total    one line a kind: predicted | measured | bar. The same tokens in both columns, so a difference is an edit of the plan, or a bug.
 *   layers   sorted bars; Enter goes down into the KV groups of a layer, and from a group to the map of its widest head
 *   pages    one glyph a page of 64 tokens of one KV head: sink, held, freed, not yet, and what the plan now would do otherwise */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/engine.h"
#include "tui/internal.h"
#include "tui/memview.h"
#include "viz/axis.h"

enum { V_BY_LAYER, V_DOWN, V_SCROLL }; /* list in layer order; inside a layer; first line shown */

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_memory); }

static const char *missing(const tui_app *app) {
    if (app->link.state == TUI_LINK_DEAD) return "The engine ended: :engine restart starts it again.";
    if (app->link.state == TUI_LINK_LOADING || app->link.state == TUI_LINK_HELLO) return "The model is loading.";
    return "No model is loaded: :load NAME loads one.";
}

static void run_name(const tui_app *app, const tui_run *r, char *out, size_t n) {
    if (!r) (void)snprintf(out, n, "no run yet");
    else (void)snprintf(out, n, "%s #%d", r == &app->runs[TUI_A] ? "A full attention" : r == &app->runs[TUI_B] ? "B plan" : "A's tokens", r->number);
}

/* --- total ------------------------------------------------------------------------------------------------------------------------ */

typedef struct total_row {
    const char *label;
    uint64_t predicted, measured;
    bool has_predicted, has_measured;
    viz_role role;
} total_row;

static uint64_t kv_of_rules(const tui_app *app, const moa_rule *rules, int32_t n, int32_t n_past, uint64_t *dense, uint64_t *mha) {
    const tui_model *m = &app->model;
    const moa_shape shape = {.n_layer = m->n_layer, .n_head = m->n_head, .n_head_kv = m->n_head_kv, .d_head = m->d_head};
    const moa_kv_bytes b = moa_kv_formula(&shape, tui_kv_type(app), rules, n, n_past);
    *dense = b.dense;
    *mha = b.mha;
    return b.plan;
}

static bool plan_fits(const tui_app *app) {
    return app->plan.now && app->plan.now->n_layer == app->model.n_layer && app->plan.now->n_head == app->model.n_head;
}

/* label, predicted, measured, then a bar of what is known best on the scale of `most` */
static void total_line(viz_pane in, int y, const total_row *t, uint64_t most) {
    char a[16];
    const viz_style s = viz_fg(VIZ_TEXT), unknown = viz_fg(VIZ_FAINT);
    viz_text_cut(in, y, 0, 13, viz_fg(VIZ_DIM), t->label);
    viz_text_right(in, y, 13, 10, t->has_predicted ? s : unknown, t->has_predicted ? viz_bytes_text(a, t->predicted) : "-");
    viz_text_right(in, y, 24, 10, t->has_measured ? s : unknown, t->has_measured ? viz_bytes_text(a, t->measured) : "-");
    const int x = 36, w = in.w - x > 50 ? 50 : in.w - x;
    const uint64_t v = t->has_measured ? t->measured : t->predicted;
    if (w >= 6 && (t->has_measured || t->has_predicted)) viz_bar(in, y, x, w, most ? (double)v / (double)most : (double)NAN, t->role);
}

static const char *kv_label(const tui_app *app, bool plan) {
    switch (tui_kv_type(app)) {
    case MOA_KV_Q8: return plan ? "KV plan, q8" : "KV full, q8";
    case MOA_KV_F32: return plan ? "KV plan, f32" : "KV full, f32";
    default: return plan ? "KV plan" : "KV full";
    }
}

static int total_rows(const tui_app *app, total_row t[8]) {
    const tui_run *r = tui_mem_run(app);
    int32_t n, n_past;
    uint64_t dense = 0, mha = 0, plan = 0;
    int k = 0;
    tui_mem_n(app, &n, &n_past);
    plan = kv_of_rules(app, plan_fits(app) ? app->plan.now->rules : NULL, n, n_past, &dense, &mha);
    const bool held_plan = r && !r->dense, held_dense = r && r->dense;
    t[k++] = (total_row){"weights", app->model.weight_bytes, 0, true, false, VIZ_CAT8};
    t[k++] = (total_row){kv_label(app, true), plan, held_plan ? r->pages.used_bytes : 0, plan_fits(app), held_plan, VIZ_RUN_B};
    t[k++] = (total_row){kv_label(app, false), dense, held_dense ? r->pages.used_bytes : 0, true, held_dense, VIZ_RUN_A};
    if (mha != dense) t[k++] = (total_row){"KV if MHA", mha, 0, true, false, VIZ_CAT4};
    t[k++] = (total_row){"KV peak", 0, r ? r->pages.peak_bytes : 0, false, r != NULL, VIZ_CAT1};
    t[k++] = (total_row){"KV pool", 0, r ? r->pages.pool_bytes : 0, false, r != NULL, VIZ_CAT1};
    t[k++] = (total_row){"workspace", r ? r->pages.workspace_bytes : 0, 0, r != NULL, false, VIZ_CAT3};
    t[k++] = (total_row){"q,k captured", r ? r->pages.capture_bytes : 0, 0, r != NULL, false, VIZ_CAT2};
    return k;
}

/* what the device has, in one bar: ours by kind, others', free */
static void device_line(const tui_app *app, viz_pane in, int y) {
    const tui_run *r = tui_mem_run(app);
    const uint64_t total = app->model.device_total_bytes, left = app->model.device_free_bytes;
    char a[16], b[16], text[64];
    viz_text_cut(in, y, 0, 13, viz_fg(VIZ_DIM), "device");
    if (!total) {
        viz_text_right(in, y, 24, 10, viz_fg(VIZ_FAINT), "-");
        return;
    }
    (void)snprintf(text, sizeof text, "%s of %s", viz_bytes_text(a, total > left ? total - left : 0), viz_bytes_text(b, total));
    viz_text_right(in, y, 13, 21, viz_fg(VIZ_TEXT), text);
    const int x = 36, w = in.w - x > 50 ? 50 : in.w - x;
    if (w < 6) return;
    const struct {
        uint64_t bytes;
        viz_role role;
        const char *letter;
    } part[] = {{app->model.weight_bytes, VIZ_CAT8, "w"},
                {r ? r->pages.pool_bytes : 0, VIZ_CAT1, "k"},
                {r ? r->pages.workspace_bytes + r->pages.capture_bytes : 0, VIZ_CAT2, "s"}};
    uint64_t ours = 0;
    const bool color = in.c->caps.depth >= VIZ_256 && in.c->caps.utf8;
    viz_bar(in, y, x, w, total > left ? (double)(total - left) / (double)total : 0, VIZ_FAINT);
    for (int i = 0; i < 3; i++) { /* on top of what is used */
        const int from = (int)((double)ours / (double)total * w + 0.5), to = (int)((double)(ours + part[i].bytes) / (double)total * w + 0.5);
        for (int c = from; c < to && c < w; c++) viz_text(in, y, x + c, viz_fg(part[i].role), color ? "━" : part[i].letter);
        ours += part[i].bytes;
    }
}

/* a sentence: is what was held what the formula says, and what would the plan now change? */
static void verdict(const tui_app *app, viz_pane in, int y) {
    const tui_run *r = tui_mem_run(app);
    char a[16], b[16], name[40], text[160];
    uint64_t dense, mha;
    if (!r) {
        viz_text_cut(in, y, 0, in.w, viz_fg(VIZ_DIM), "Nothing has run yet: R or r measures what is held.");
        return;
    }
    run_name(app, r, name, sizeof name);
    const tui_pages *g = &r->pages;
    const bool fits = plan_fits(app), one = y + 1 >= in.h;
    const uint64_t now = fits ? kv_of_rules(app, app->plan.now->rules, g->n_reserved, g->n_past, &dense, &mha) : 0;
    const int64_t d = (int64_t)now - (int64_t)g->used_bytes;
    if (one && fits && d != 0) y--; /* a single line tells the change */
    else {
        const bool same = g->used_bytes == g->formula_plan;
        if (same) (void)snprintf(text, sizeof text, "%s held just what its formula says: %s", name, viz_bytes_text(a, g->used_bytes));
        else (void)snprintf(text, sizeof text, "%s held %s, its formula says %s", name, viz_bytes_text(a, g->used_bytes), viz_bytes_text(b, g->formula_plan));
        viz_text_cut(in, y, 0, in.w, viz_fg(same ? VIZ_GOOD : VIZ_WARN), text);
    }
    if (y + 1 >= in.h || !fits) return;
    if (d == 0) (void)snprintf(text, sizeof text, "The plan now would hold the same");
    else
        (void)snprintf(text, sizeof text, "The plan now would hold %s: %s %s", viz_bytes_text(a, now), viz_bytes_text(b, (uint64_t)(d < 0 ? -d : d)),
                       d < 0 ? "less" : g->lost > 0 ? "more" : "more (a rerun fills it)");
    viz_text_cut(in, y + 1, 0, in.w, viz_fg(d > 0 ? VIZ_WARN : d < 0 ? VIZ_GOOD : VIZ_DIM), text);
    if (y + 2 >= in.h || g->lost <= 0) return;
    (void)snprintf(text, sizeof text, "%d keys inside its spans were gone before they were widened: a rerun brings them back", g->lost);
    viz_text_cut(in, y + 2, 0, in.w, viz_fg(VIZ_WARN), text);
}

static void draw_total(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char title[64], note[96], a[24], b[24];
    total_row t[8];
    int32_t n, n_past;
    tui_mem_n(app, &n, &n_past);
    (void)snprintf(title, sizeof title, "Memory");
    (void)snprintf(note, sizeof note, "N %s, after %s tokens", viz_count_text(a, n), viz_count_text(b, n_past));
    viz_pane in = viz_box(viz_pane_of(c, rect), title, app->model.loaded ? note : NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!app->model.loaded) {
        viz_text_cut(in, 0, 0, in.w, viz_fg(VIZ_DIM), missing(app));
        return;
    }
    const int k = total_rows(app, t), room = in.h - 1 - (in.h >= 9 ? 3 : 2);
    uint64_t most = 1;
    for (int i = 0; i < k; i++) { /* one scale for all: lengths may be compared */
        const uint64_t v = t[i].has_measured ? t[i].measured : t[i].predicted;
        if (v > most) most = v;
    }
    viz_text_right(in, 0, 13, 10, viz_fg(VIZ_FAINT), "predicted");
    viz_text_right(in, 0, 24, 10, viz_fg(VIZ_FAINT), "measured");
    int y = 1;
    /* few lines: peak and pool go first, then what is kept beside */
    static const char *const first_out[] = {"KV pool", "KV peak", "workspace", "q,k captured"};
    int out = k - room > 0 ? k - room : 0;
    for (int i = 0; i < k; i++) {
        bool drop = false;
        for (int j = 0; j < out && j < 4; j++) drop = drop || strcmp(t[i].label, first_out[j]) == 0;
        if (drop || y >= in.h) continue;
        total_line(in, y++, &t[i], most);
    }
    if (y < in.h) device_line(app, in, y++);
    if (in.h - y >= 4) y++;
    if (y < in.h) verdict(app, in, y);
}

/* --- layers and groups --------------------------------------------------------------------------------------------------------------- */

static int32_t group_size(const tui_app *app) { return app->model.n_head_kv > 0 ? app->model.n_head / app->model.n_head_kv : 1; }
static int32_t cursor_kv(const tui_app *app) { return app->cursor.head / group_size(app); }

static bool is_here(tui_app *app, const tui_mem_unit *u) { return u->kv >= 0 ? u->kv == cursor_kv(app) : u->layer == app->cursor.layer; }

static void unit_line(tui_app *app, viz_pane in, int y, const tui_mem_unit *u, uint64_t most) {
    char text[48], a[16], b[24];
    const int32_t g = group_size(app);
    if (u->kv < 0) (void)snprintf(text, sizeof text, "L%02d", u->layer);
    else if (g == 1) (void)snprintf(text, sizeof text, "H%02d", u->kv);
    else (void)snprintf(text, sizeof text, "H%02d-%02d", u->kv * g, u->kv * g + g - 1);
    const int w0 = u->kv < 0 ? 4 : 7;
    int x = viz_text_cut(in, y, 0, w0, viz_bold(VIZ_TEXT), text);
    viz_text_right(in, y, x, 9, viz_fg(VIZ_TEXT), u->span_max || u->has_held ? viz_bytes_text(a, u->predicted) : "-");
    viz_text_right(in, y, x + 9, 10, viz_fg(u->has_held ? VIZ_TEXT : VIZ_FAINT), u->has_held ? viz_bytes_text(a, u->held) : "-");
    x += 20;
    if (in.w - x >= 30) {
        if (u->span_min == u->span_max) (void)snprintf(text, sizeof text, "%s", viz_count_text(b, u->span_max));
        else (void)snprintf(text, sizeof text, "%d-%d", u->span_min, u->span_max);
        viz_text_right(in, y, x, 11, viz_fg(VIZ_DIM), text);
        x += 12;
    }
    const int w = in.w - x - (in.w - x >= 16 ? 7 : 2);
    if (w >= 4) viz_bar(in, y, x, w, most ? (double)tui_mem_size(u) / (double)most : 0, u->has_held ? VIZ_RUN_B : VIZ_BAR);
    if (w >= 4 && u->has_held && u->predicted != u->held && most) { /* where the plan now would be */
        const int at = (int)((double)u->predicted / (double)most * w + 0.5);
        viz_text(in, y, x + (at < w ? at : w - 1), viz_bold(VIZ_ACCENT), in.c->caps.utf8 ? "┃" : "|");
    }
    if (in.w - x >= 16) {
        (void)snprintf(text, sizeof text, "%3.0f%%", u->dense ? 100.0 * (double)tui_mem_size(u) / (double)u->dense : 0.0);
        viz_text_right(in, y, in.w - 6, 5, viz_fg(VIZ_DIM), text);
    }
    if (u->n_lost) viz_text(in, y, in.w - 1, viz_bold(VIZ_BAD), in.c->caps.utf8 ? "✗" : "x");
    else if (u->n_spare) viz_text(in, y, in.w - 1, viz_fg(VIZ_GOOD), in.c->caps.utf8 ? "▿" : "-");
    if (!is_here(app, u)) return;
    viz_restyle(in, y, 0, 1, in.w, VIZ_BG_SELECT, 0);
    if (in.c->caps.depth == VIZ_MONO) viz_text(in, y, w0 - 1, viz_bold(VIZ_ACCENT), ">");
    viz_cursor(in, y, 0);
}

static void click_unit(tui_app *app, int y, int x, int64_t first) {
    const tui_view_state *v = vars(app);
    int32_t n;
    (void)x;
    tui_mem_unit *u = tui_mem_list(app, v->v[V_DOWN] ? app->cursor.layer : -1, !v->v[V_BY_LAYER], &n);
    const int32_t i = (int32_t)first + y;
    if (u && i < n) tui_cursor_move(app, u[i].layer, u[i].kv >= 0 ? u[i].kv * group_size(app) : app->cursor.head);
    free(u);
}

static void draw_layers(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    tui_view_state *v = vars(app);
    char title[64];
    int32_t n, at = 0;
    const int32_t inside = v->v[V_DOWN] ? app->cursor.layer : -1;
    tui_mem_unit *u = tui_mem_list(app, inside, !v->v[V_BY_LAYER], &n);
    if (inside >= 0) (void)snprintf(title, sizeof title, "L%02d  %d KV groups", inside, n);
    else (void)snprintf(title, sizeof title, "%d layers", n);
    viz_pane box = viz_pane_of(c, rect), in = viz_box(box, u ? title : "Layers", u ? (v->v[V_BY_LAYER] ? "in order" : "largest first") : NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!u) {
        viz_text_cut(in, 0, 0, in.w, viz_fg(VIZ_DIM), "-");
        return;
    }
    uint64_t most = 1;
    for (int32_t i = 0; i < n; i++) {
        if (u[i].dense > most) most = u[i].dense; /* a full bar is full attention: lengths tell the density */
        if (is_here(app, &u[i])) at = i;
    }
    const int x = inside >= 0 ? 7 : 4, rows = in.h - 1;
    viz_text_right(in, 0, x, 9, viz_fg(VIZ_FAINT), "plan now");
    viz_text_right(in, 0, x + 9, 10, viz_fg(VIZ_FAINT), "held");
    if (in.w - x - 20 >= 30) viz_text_right(in, 0, x + 20, 11, viz_fg(VIZ_FAINT), "span");
    if (in.w - x - 20 >= 16) viz_text_right(in, 0, in.w - 8, 7, viz_fg(VIZ_FAINT), "of full");
    int32_t first = (int32_t)v->v[V_SCROLL];
    if (first > at) first = at;
    if (first < at - rows + 1) first = at - rows + 1;
    if (first > n - rows) first = n - rows;
    if (first < 0) first = 0;
    v->v[V_SCROLL] = first;
    tui_hit_add(app, (viz_rect){in.y + 1, in.x, rows, in.w}, click_unit, first);
    for (int32_t i = 0; i < rows && first + i < n; i++) unit_line(app, in, 1 + i, &u[first + i], most);
    free(u);
}

/* --- pages ------------------------------------------------------------------------------------------------------------------------------ */

static const struct {
    const char *glyph, *ascii;
    viz_role role;
} page_look[TUI_PAGE_COUNT] = {
    [TUI_PAGE_NONE] = {"·", ".", VIZ_FAINT},   [TUI_PAGE_SINK] = {"◆", "S", VIZ_CAT2},  [TUI_PAGE_HELD] = {"■", "#", VIZ_CAT1},
    [TUI_PAGE_SPARE] = {"▣", "+", VIZ_GOOD},   [TUI_PAGE_FREED] = {"□", "o", VIZ_FAINT}, [TUI_PAGE_LOST] = {"✗", "x", VIZ_BAD},
};

static int page_glyph(viz_pane p, int y, int x, tui_page s) {
    return viz_text(p, y, x, s == TUI_PAGE_LOST ? viz_bold(page_look[s].role) : viz_fg(page_look[s].role), p.c->caps.utf8 ? page_look[s].glyph : page_look[s].ascii);
}

/* of `each` pages that share a glyph the one that says most: lost, spare, then held over freed over not yet */
static tui_page shared_page(const tui_pages *g, const uint8_t *held, int32_t first, int32_t each, int32_t span) {
    static const int weight[TUI_PAGE_COUNT] = {[TUI_PAGE_NONE] = 0, [TUI_PAGE_FREED] = 1, [TUI_PAGE_HELD] = 2, [TUI_PAGE_SINK] = 3, [TUI_PAGE_SPARE] = 4, [TUI_PAGE_LOST] = 5};
    tui_page best = TUI_PAGE_NONE;
    for (int32_t p = first; p < first + each && p < g->max_pages; p++) {
        const tui_page s = tui_page_of(held[p] != 0, p, g->n_past, span);
        if (weight[s] > weight[best]) best = s;
    }
    return best;
}

static void page_legend(viz_pane in, int y, const int32_t count[TUI_PAGE_COUNT]) {
    int x = 0;
    static const tui_page order[] = {TUI_PAGE_LOST, TUI_PAGE_SPARE, TUI_PAGE_HELD, TUI_PAGE_FREED, TUI_PAGE_SINK, TUI_PAGE_NONE};
    for (int i = 0; i < TUI_PAGE_COUNT; i++) {
        char text[40];
        const tui_page s = order[i];
        if (count[s] == 0) continue;
        (void)snprintf(text, sizeof text, " %s %d", tui_page_name(s), count[s]);
        if (x + 1 + (int)strlen(text) > in.w) break;
        x += page_glyph(in, y, x, s);
        x += viz_text(in, y, x, viz_fg(VIZ_DIM), text) + 2;
    }
}

/* how the page map is cut: pages a glyph, cells a glyph, lines a group */
typedef struct page_cut {
    int32_t each;
    int step, w, lines;
} page_cut;

/* All groups in sight, if a glyph may stand for several pages, down to one line a group; else they scroll to the cursor's. */
static page_cut cut_pages(const tui_pages *g, int w, int rows) {
    page_cut c = {1, 2 * g->max_pages <= w ? 2 : 1, w, 1};
    for (;; c.each++) {
        const int64_t a_line = (int64_t)c.each * (w / c.step);
        c.lines = (int)((g->max_pages + a_line - 1) / a_line);
        if (c.lines <= 1 || (int64_t)c.lines * g->n_head_kv <= rows) return c;
    }
}

static int page_group(tui_app *app, viz_pane in, int y, const tui_run *r, int32_t kv, const page_cut *c) {
    const tui_pages *g = &r->pages;
    const int32_t layer = app->cursor.layer, span = tui_mem_span(app, layer, kv), size = group_size(app);
    const uint8_t *held = g->held + ((size_t)layer * (size_t)g->n_head_kv + (size_t)kv) * (size_t)g->max_pages;
    const bool here = kv == cursor_kv(app);
    char label[24];
    if (size == 1) (void)snprintf(label, sizeof label, "H%02d", kv);
    else (void)snprintf(label, sizeof label, "H%02d-%02d", kv * size, kv * size + size - 1);
    if (y >= 0 && y < in.h) viz_text_cut(in, y, 0, 7, here ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_DIM), label);
    int x = 0;
    for (int32_t p = 0; p < g->max_pages; p += c->each, x += c->step) {
        if (x + c->step > c->w) x = 0, y++;
        if (y >= 0 && y < in.h) (void)page_glyph(in, y, 8 + x, shared_page(g, held, p, c->each, span));
    }
    return y + 1;
}

/* token numbers over the pages, when a group is one line */
static void page_axis(viz_pane in, const tui_pages *g, const page_cut *c) {
    viz_tick t[64];
    if (c->lines > 1 || g->max_pages < 1) return;
    const int cells = (g->max_pages + c->each - 1) / c->each * c->step;
    const viz_axis a = {.t0 = 0, .t1 = g->max_pages * MOA_PAGE_TOK, .cells = cells};
    const int n = viz_axis_ticks(&a, true, 2, t, 64);
    for (int i = 0; i < n; i++) viz_text(in, 0, 8 + t[i].cell, viz_fg(VIZ_FAINT), t[i].label);
}

static void draw_pages(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    const tui_run *r = tui_mem_run(app);
    char title[64], note[64], name[40];
    run_name(app, r, name, sizeof name);
    (void)snprintf(title, sizeof title, "Pages of L%02d", app->cursor.layer);
    (void)snprintf(note, sizeof note, "%s", name);
    viz_pane in = viz_box(viz_pane_of(c, rect), title, note, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!app->model.loaded || !r || in.w < 12) {
        viz_text_cut(in, 0, 0, in.w, viz_fg(VIZ_DIM), app->model.loaded ? "The page map comes with a run." : "-");
        return;
    }
    const tui_pages *g = &r->pages;
    int32_t count[TUI_PAGE_COUNT] = {0};
    for (int32_t k = 0; k < g->n_head_kv; k++)
        for (int32_t p = 0; p < g->max_pages; p++) {
            const size_t i = ((size_t)app->cursor.layer * (size_t)g->n_head_kv + (size_t)k) * (size_t)g->max_pages + (size_t)p;
            count[tui_page_of(g->held[i] != 0, p, g->n_past, tui_mem_span(app, app->cursor.layer, k))]++;
        }
    const bool axis = in.h >= 6;
    const int rows = in.h - 2 - axis > 1 ? in.h - 2 - axis : 1;
    const page_cut cut = cut_pages(g, in.w - 8, rows);
    if (axis) page_axis(in, g, &cut);
    int y = 0;
    if (cut.lines * g->n_head_kv > rows) { /* too many even so */
        y = -(cut.lines * cursor_kv(app) - rows / 2);
        if (y < rows - cut.lines * g->n_head_kv) y = rows - cut.lines * g->n_head_kv;
        if (y > 0) y = 0;
    }
    const viz_pane map = viz_pane_sub(in, axis, 0, rows, in.w);
    for (int32_t k = 0; k < g->n_head_kv; k++) y = page_group(app, map, y, r, k, &cut);
    page_legend(in, in.h - 1, count);
    char text[96], a[16];
    (void)snprintf(text, sizeof text, in.w > 44 ? "1 glyph = %d page%s of 64 tokens, %s" : "%d page%s a glyph, %s", cut.each, cut.each > 1 ? "s" : "", viz_bytes_text(a, g->page_bytes * (uint64_t)cut.each));
    if (in.h >= 4) viz_text_cut(in, in.h - 2, 0, in.w, viz_fg(VIZ_FAINT), text);
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    const int focus = vars(app)->focus;
    if (!viz_rect_empty(p[TUI_MEMORY_TOTAL])) draw_total(app, c, p[TUI_MEMORY_TOTAL], focus == TUI_MEMORY_TOTAL);
    if (!viz_rect_empty(p[TUI_MEMORY_LAYERS])) draw_layers(app, c, p[TUI_MEMORY_LAYERS], focus == TUI_MEMORY_LAYERS);
    if (!viz_rect_empty(p[TUI_MEMORY_PAGES])) draw_pages(app, c, p[TUI_MEMORY_PAGES], focus == TUI_MEMORY_PAGES);
}

/* --- keys --------------------------------------------------------------------------------------------------------------------------------- */

static moa_status go_by(tui_app *app, int64_t by, moa_err *err) {
    tui_view_state *v = vars(app);
    int32_t n, at = 0;
    tui_mem_unit *u = tui_mem_list(app, v->v[V_DOWN] ? app->cursor.layer : -1, !v->v[V_BY_LAYER], &n);
    if (!u) return moa_fail(err, MOA_E_FAILED, "no model is loaded; :load MODEL");
    for (int32_t i = 0; i < n; i++)
        if (is_here(app, &u[i])) at = i;
    int64_t to = at + by;
    to = to < 0 ? 0 : to >= n ? n - 1 : to;
    if (u[to].kv >= 0) tui_cursor_move(app, u[to].layer, u[to].kv * group_size(app));
    else tui_cursor_move(app, u[to].layer, app->cursor.head);
    free(u);
    return MOA_OK;
}

static moa_status go_up(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, -tui_times(a), err); }
static moa_status go_down(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, tui_times(a), err); }
static moa_status page_up(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, -8 * tui_times(a), err); }
static moa_status page_down(tui_app *app, const tui_args *a, moa_err *err) { return go_by(app, 8 * tui_times(a), err); }
static moa_status go_first(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return go_by(app, -(1 << 28), err);
}
static moa_status go_last(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return go_by(app, 1 << 28, err);
}

/* the head of the group that makes it hold so much */
static int32_t widest_head(const tui_app *app, int32_t layer, int32_t kv) {
    const int32_t g = group_size(app), n = tui_plan_n(app);
    int32_t best = kv * g;
    for (int32_t h = kv * g; plan_fits(app) && h < kv * g + g; h++)
        if (moa_span(*moa_plan_at(app->plan.now, layer, h), n) > moa_span(*moa_plan_at(app->plan.now, layer, best), n)) best = h;
    return best;
}

static moa_status go_in(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    tui_view_state *v = vars(app);
    if (!app->model.loaded) return moa_fail(err, MOA_E_FAILED, "no model is loaded; :load MODEL");
    if (!v->v[V_DOWN]) {
        v->v[V_DOWN] = 1;
        v->v[V_SCROLL] = 0;
        return MOA_OK;
    }
    tui_cursor_move(app, app->cursor.layer, widest_head(app, app->cursor.layer, cursor_kv(app)));
    for (int i = 0; i < tui_view_count(); i++)
        if (strcmp(tui_view_at(i)->name, "map") == 0) tui_view_switch(app, i);
    return MOA_OK;
}
static moa_status go_out(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    vars(app)->v[V_DOWN] = 0;
    return MOA_OK;
}
static moa_status turn_order(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    vars(app)->v[V_BY_LAYER] ^= 1;
    return MOA_OK;
}

/* Esc and Backspace leave the layer first, then the screen */
static bool key_first(tui_app *app, int key) {
    if ((key != TUI_KEY_ESC && key != TUI_KEY_BACKSPACE) || !vars(app)->v[V_DOWN] || app->n_pending) return false;
    vars(app)->v[V_DOWN] = 0;
    return true;
}

static bool search(tui_app *app, const char *needle, int dir, int *n_match) {
    int layer, used = 0; /* "L14", "14" */
    (void)dir;
    *n_match = -1;
    if (sscanf(needle, "%*[Ll]%d%n", &layer, &used) < 1 && sscanf(needle, "%d%n", &layer, &used) < 1) return false;
    if (needle[used] || layer < 0 || layer >= app->model.n_layer) return false;
    tui_cursor_move(app, layer, app->cursor.head);
    return true;
}

static const tui_command commands[] = {
    {"row up", "k Up", NULL, "the line above", NULL, NULL, TUI_CMD_COUNT, go_up, NULL},
    {"row down", "j Down", NULL, "the line below", NULL, NULL, TUI_CMD_COUNT, go_down, NULL},
    {"page up", "PgUp C-b C-u K", NULL, "eight lines up", NULL, NULL, TUI_CMD_COUNT, page_up, NULL},
    {"page down", "PgDn C-f C-d J", NULL, "eight lines down", NULL, NULL, TUI_CMD_COUNT, page_down, NULL},
    {"row first", "gg Home", NULL, "the first line", NULL, NULL, 0, go_first, NULL},
    {"row last", "G End", NULL, "the last line", NULL, NULL, 0, go_last, NULL},
    {"in", "Enter l Right", NULL, "into the KV groups of the layer; from a group: the map of its widest head", "in", NULL, 0, go_in, NULL},
    {"out", "h Left", NULL, "back to the layers", "out", NULL, 0, go_out, NULL},
    {"order", "s", NULL, "largest first, or in order", "order", NULL, 0, turn_order, NULL},
    {0},
};

const tui_view tui_view_memory = {.name = "memory", .title = "Memory", .key = '6', .layout = TUI_LAYOUT_MEMORY, .commands = commands, .draw = draw, .key_first = key_first, .search = search};
