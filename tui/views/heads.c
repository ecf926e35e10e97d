/* heads -- every head of the model at once, coloured by one metric, and the selected one explained.
 *
 *        head 0    1    2  | 3    4    5  | ...     KV groups stand a little apart
 *   L00   12   87  [ 3]    | 45  ...                where a cell has room its value stands in it
 *   L01   ▀▀ ▀▀ ▄▄                                  else two layers share a row of half blocks, or one glyph a head
 *
 * What shrinking a head would cost is read off its distance histogram, for every window at once: the curve under the inspector,
 * with the current span on it, moves while the rule is edited. A value not measured is a dot, never zero. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tui/internal.h"
#include "tui/search.h"
#include "viz/ramp.h"

enum { V_METRIC, V_TOP, V_RANGE_AT, V_LEFT }; /* metric shown; first layer shown; where a range of marks began + 1, 0: none; first head shown */

/* name, title of the grid, scale of its legend: 0 a share 0..1, 1 its own range, 2 categories */
#define METRIC_MAP(X)                                                                                        \
    X(NEED, "need95", "span that keeps 95 %, tokens", 1)                                                     \
    X(LOST, "lost", "mass cut by the plan", 1)                                                               \
    X(COVER, "cover", "mass kept by the plan", 0)                                                            \
    X(ENTROPY, "entropy", "entropy, nats", 1)                                                                \
    X(SINK, "sink", "mass on the first 64 tokens", 0)                                                        \
    X(LOCAL, "local", "mass within 64 tokens", 0)                                                            \
    X(DISTANCE, "distance", "mean distance, tokens", 1)                                                      \
    X(SPAN, "span", "span under the plan, tokens", 1)                                                        \
    X(RULE, "rule", "rule of the plan", 2)                                                                   \
    X(CLASS, "class", "kind of head", 2)                                                                     \
    X(INFLUENCE, "influence", "loss with the shortest span, 1/1000 nats", 1)
enum {
#define X(id, name, title, scale) M_##id,
    METRIC_MAP(X)
#undef X
        N_METRIC
};
static const struct {
    const char *name, *title;
    int scale;
} metrics[] = {
#define X(id, name, title, scale) {name, title, scale},
    METRIC_MAP(X)
#undef X
};
static const char *const class_names[] = {"sink", "local", "distant", "mixed"};
static const viz_role category[] = {VIZ_CAT1, VIZ_CAT2, VIZ_CAT3, VIZ_CAT4, VIZ_CAT5, VIZ_CAT6, VIZ_CAT7, VIZ_CAT8};
enum { N_CATEGORY = sizeof category / sizeof *category };

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_heads); }
static int32_t kv_heads(const tui_app *app) {
    const int32_t kv = app->model.loaded ? app->model.n_head_kv : app->plan.now ? app->plan.now->n_head_kv : 0;
    return kv > 0 && app->plan.now && app->plan.now->n_head % kv == 0 ? kv : app->plan.now ? app->plan.now->n_head : 1;
}

/* --- one number a head --------------------------------------------------------------------------------------------------- */

static double local_share(const tui_app *app, int32_t layer, int32_t head) {
    int32_t n_bin;
    const float *h = tui_run_hist(tui_truth(app), layer, head, &n_bin);
    double all = 0;
    for (int32_t i = 0; h && i <= n_bin; i++) all += (double)h[i];
    return h && n_bin > 0 && all > 0 ? (double)h[1] / all : (double)NAN;
}

static double class_index(const char *class) {
    for (size_t i = 0; i < sizeof class_names / sizeof *class_names; i++)
        if (strcmp(class, class_names[i]) == 0) return (double)i;
    return (double)NAN;
}

static double rule_index(const moa_rule_class *classes, int32_t n, moa_rule rule) {
    for (int32_t i = 0; i < n; i++)
        if (classes[i].rule.alpha == rule.alpha && classes[i].rule.beta == rule.beta) return i;
    return (double)NAN;
}

static double value_of(const tui_app *app, int metric, int32_t layer, int32_t head) {
    const tui_run *t = tui_truth(app);
    tui_head_figures f;
    switch (metric) {
    case M_LOCAL: return local_share(app, layer, head);
    case M_INFLUENCE: return 1000 * tui_influence_loss(app, tui_influence_for(app, tui_plan_n(app)), layer, head, MOA_SPAN_MIN);
    case M_CLASS: return class_index(tui_head_class(app, layer, head));
    case M_ENTROPY: return t ? tui_run_stat(t, t->stats.entropy, layer, head) : (double)NAN;
    case M_SINK: return t ? tui_run_stat(t, t->stats.sink, layer, head) : (double)NAN;
    case M_DISTANCE: return t ? tui_run_stat(t, t->stats.distance, layer, head) : (double)NAN;
    default: break;
    }
    tui_head_describe(app, layer, head, &f);
    if (metric == M_LOST) return 1 - f.cover;
    if (metric == M_COVER) return f.cover;
    if (metric == M_NEED) return f.span95 ? f.span95 : (double)NAN;
    return f.span;
}

typedef struct grid {
    double *v; /* (n_layer, n_head), owned; NAN: unknown */
    double lo, hi;
    moa_rule_class *classes; /* of the plan, owned, when the metric is RULE */
    int32_t n_class;
} grid;

static void grid_free(grid *g) {
    free(g->v);
    free(g->classes);
}

static bool grid_make(const tui_app *app, int metric, grid *g) {
    const moa_plan *p = app->plan.now;
    *g = (grid){.lo = INFINITY, .hi = -INFINITY};
    g->v = malloc((size_t)p->n_layer * (size_t)p->n_head * sizeof *g->v);
    if (!g->v || (metric == M_RULE && moa_plan_classes(p, &g->classes, &g->n_class, NULL) != MOA_OK)) {
        grid_free(g);
        return false;
    }
    for (int32_t l = 0; l < p->n_layer; l++)
        for (int32_t h = 0; h < p->n_head; h++) {
            const double v = metric == M_RULE ? rule_index(g->classes, g->n_class, *moa_plan_at(p, l, h)) : value_of(app, metric, l, h);
            g->v[(size_t)l * (size_t)p->n_head + (size_t)h] = v;
            if (isnan(v)) continue;
            g->lo = fmin(g->lo, v);
            g->hi = fmax(g->hi, v);
        }
    if (metrics[metric].scale == 0) g->lo = 0, g->hi = 1;
    if (metric == M_INFLUENCE && g->hi >= g->lo) g->hi = fmax(g->hi, -g->lo), g->lo = -g->hi; /* its middle is: nothing changes */
    if (metric == M_LOST) g->lo = 0, g->hi = fmax(g->hi, 0.01); /* a plan that cuts nothing is dark all over */
    if (!(g->hi > g->lo)) g->hi = g->lo + 1;
    return true;
}

static double shade(const grid *g, double v) { return (v - g->lo) / (g->hi - g->lo); }

static void value_text(char out[16], int metric, double v) {
    if (isnan(v)) (void)snprintf(out, 16, "-");
    else if (metric == M_RULE) (void)snprintf(out, 16, "%c", 'a' + (int)v % 26);
    else if (metric == M_CLASS) (void)snprintf(out, 16, "%c", class_names[(int)v][0]);
    else if (metric == M_ENTROPY || (metric == M_INFLUENCE && fabs(v) < 9.95)) (void)snprintf(out, 16, "%.1f", fabs(v) < 0.05 ? 0 : v);
    else if (metric == M_INFLUENCE) (void)snprintf(out, 16, "%.0f", v);
    else if (metric == M_DISTANCE || metric == M_NEED || metric == M_SPAN) (void)(v < 10000 ? snprintf(out, 16, "%.0f", v) : snprintf(out, 16, "%.0fk", v / 1000));
    else (void)snprintf(out, 16, "%.0f", 100 * v);
}

/* --- the grid ---------------------------------------------------------------------------------------------------------------- */

enum { X_GRID = 4 }; /* "L00 " */

typedef struct geometry {
    int cell_w, gap; /* cells of a head, between KV groups */
    bool half;       /* two layers a row */
    int32_t group, n_head, top, shown; /* heads of a KV group; first layer shown, layers that fit */
    int32_t left, end;                 /* heads shown: [left, end) */
} geometry;

static int head_x(const geometry *g, int32_t head) { return X_GRID + (head - g->left) * g->cell_w + (head / g->group - g->left / g->group) * g->gap; }
static int grid_w(const geometry *g) { return head_x(g, g->n_head - 1) + g->cell_w; }

static geometry fit(tui_app *app, int h, int w) {
    const int32_t n_layer = app->plan.now->n_layer, n_head = app->plan.now->n_head;
    geometry g = {.cell_w = 6, .gap = 1, .group = n_head / kv_heads(app), .n_head = n_head};
    if (g.group < 2) g.gap = 0;
    while (grid_w(&g) > w && g.cell_w > 1) g.cell_w--;
    if (grid_w(&g) > w) g.gap = 0;
    const int32_t across = grid_w(&g) > w ? w - X_GRID : n_head; /* a cell each, and still not all: the rest is to the side */
    int32_t left = (int32_t)vars(app)->v[V_LEFT];
    if (app->cursor.head < left) left = app->cursor.head;
    if (app->cursor.head >= left + across) left = app->cursor.head - across + 1;
    if (left > n_head - across) left = n_head - across;
    if (left < 0) left = 0;
    vars(app)->v[V_LEFT] = left;
    g.left = left;
    g.end = left + across < n_head ? left + across : n_head;
    g.half = n_layer > h && viz_caps_half(app->caps);
    g.shown = g.half ? 2 * h : h;
    if (g.half && g.cell_w > 3) g.cell_w = 3; /* no room for figures anyway */
    int32_t top = (int32_t)vars(app)->v[V_TOP];
    if (app->cursor.layer < top) top = app->cursor.layer;
    if (app->cursor.layer >= top + g.shown) top = app->cursor.layer - g.shown + 1;
    if (top > n_layer - g.shown) top = n_layer - g.shown;
    if (top < 0) top = 0;
    if (g.half) top &= ~1;
    vars(app)->v[V_TOP] = top;
    g.top = top;
    return g;
}

static viz_ramp ramp_of(const tui_app *app, int metric) { return metric == M_INFLUENCE ? VIZ_RAMP_DIVERGE : app->ramp; }

static viz_color color_of(const tui_app *app, const grid *g, int metric, double v) {
    if (metrics[metric].scale == 2) return (viz_color)category[(int)v % N_CATEGORY];
    return viz_ramp_color(ramp_of(app, metric), shade(g, v), false);
}

/* dark letters on light grounds, light ones on dark */
static viz_color ink_on(viz_color ground) {
    const int32_t rgb = viz_color_resolve(ground, VIZ_24BIT);
    return viz_rgb(rgb >= 0 && viz_luminance((uint32_t)rgb) > 0.30 ? 0x101418 : 0xe8ecf2);
}

static void cell_wide(tui_app *app, viz_pane p, int y, int x, int w, const grid *g, int metric, double v) {
    char text[16], glyph[2] = {0};
    const bool color = app->caps.depth >= VIZ_256, category_cell = metrics[metric].scale == 2;
    if (isnan(v)) {
        viz_text(p, y, x + w / 2, viz_fg(VIZ_FAINT), "·");
        return;
    }
    value_text(text, metric, v);
    if (color) {
        const viz_color ground = color_of(app, g, metric, v);
        viz_fill(p, y, x, 1, w, viz_on(ground, ground), " ");
        if (w >= 4 || category_cell) viz_text(p, y, x + (w - (int)strlen(text)) / 2, viz_on(ink_on(ground), ground), text);
        return;
    }
    if (category_cell || w >= 5) { /* the shade as a glyph, the figure beside it */
        glyph[0] = category_cell ? 0 : viz_ramp_glyph(ramp_of(app, metric), shade(g, v));
        viz_text(p, y, x, viz_fg(VIZ_FAINT), glyph);
        viz_text_right(p, y, x + 1, w - 1 > 4 ? 4 : w - 1, category_cell ? viz_fg(category[(int)v % N_CATEGORY]) : viz_fg(VIZ_TEXT), text);
        return;
    }
    glyph[0] = viz_ramp_glyph(ramp_of(app, metric), shade(g, v));
    for (int k = 0; k < (w > 2 ? 2 : w); k++) viz_text(p, y, x + k, viz_fg(VIZ_TEXT), glyph);
}

static void cell_half(tui_app *app, viz_pane p, int y, int x, int w, const grid *g, int metric, double up, double down) {
    for (int k = 0; k < w; k++) {
        if (isnan(up) && isnan(down)) viz_text(p, y, x + k, viz_fg(VIZ_FAINT), k ? " " : "·");
        else if (isnan(up)) viz_text(p, y, x + k, viz_fg(color_of(app, g, metric, down)), "▄");
        else if (isnan(down)) viz_text(p, y, x + k, viz_fg(color_of(app, g, metric, up)), "▀");
        else viz_text(p, y, x + k, viz_on(color_of(app, g, metric, up), color_of(app, g, metric, down)), "▀");
    }
}

static void draw_cells(tui_app *app, viz_pane p, const geometry *geo, const grid *g, int metric) {
    const moa_plan *plan = app->plan.now;
    for (int32_t i = 0; i < geo->shown && geo->top + i < plan->n_layer; i += geo->half ? 2 : 1) {
        const int32_t l = geo->top + i;
        const int y = geo->half ? i / 2 : i;
        viz_printf(p, y, 0, viz_fg(l == app->cursor.layer || (geo->half && l + 1 == app->cursor.layer) ? VIZ_TEXT : VIZ_DIM), "L%02d", l);
        for (int32_t h = geo->left; h < geo->end; h++) {
            const double *v = &g->v[(size_t)l * (size_t)plan->n_head + (size_t)h];
            if (!geo->half) cell_wide(app, p, y, head_x(geo, h), geo->cell_w, g, metric, *v);
            else cell_half(app, p, y, head_x(geo, h), geo->cell_w, g, metric, v[0], l + 1 < plan->n_layer ? v[plan->n_head] : (double)NAN);
        }
    }
}

static void draw_marks(tui_app *app, viz_pane p, const geometry *geo) {
    for (int32_t i = 0; i < geo->shown && geo->top + i < app->plan.now->n_layer; i++)
        for (int32_t h = geo->left; h < geo->end; h++) {
            const bool here = geo->top + i == app->cursor.layer && h == app->cursor.head;
            const int y = geo->half ? i / 2 : i, x = head_x(geo, h);
            if (tui_plan_marked(app, geo->top + i, h)) viz_text(p, y, x, viz_bold(VIZ_ACCENT), "*");
            if (!here) continue;
            if (geo->cell_w >= 3) {
                viz_text(p, y, x, viz_bold(VIZ_ACCENT), tui_plan_marked(app, geo->top + i, h) ? "*" : "[");
                viz_text(p, y, x + geo->cell_w - 1, viz_bold(VIZ_ACCENT), "]");
            } else viz_restyle(p, y, x, 1, geo->cell_w, VIZ_ACCENT, VIZ_A_REVERSE | VIZ_A_BOLD);
            viz_cursor(p, y, x);
        }
}

static void draw_heads_row(viz_pane p, const geometry *g) {
    char text[16];
    for (int32_t h = g->left, last = -9; h < g->end; h++) {
        const int n = snprintf(text, sizeof text, "%d", h), x = head_x(g, h) + (g->cell_w > n ? (g->cell_w - n) / 2 : 0);
        if (x < last + 2 && g->cell_w < 3) continue;
        if (g->cell_w < 3 && h % 4 != 0) continue;
        viz_text(p, 0, x, viz_fg(VIZ_DIM), text);
        last = x + n;
    }
}

static void draw_legend(tui_app *app, viz_pane p, int y, const grid *g, int metric) {
    char lo[16], hi[16];
    int x = 0;
    if (metric == M_RULE) {
        for (int32_t i = 0; i < g->n_class && x < p.w - 18; i++) {
            char text[64];
            (void)snprintf(text, sizeof text, "%c %g%+gN  ", 'a' + i % 26, g->classes[i].rule.alpha, g->classes[i].rule.beta);
            x += viz_text(p, y, x, viz_fg(category[i % N_CATEGORY]), text);
        }
    } else if (metric == M_CLASS) {
        for (size_t i = 0; i < sizeof class_names / sizeof *class_names; i++) {
            x += viz_printf(p, y, x, viz_fg(category[i]), "%s", class_names[i]);
            x += 2;
        }
    } else {
        value_text(lo, metric, g->lo);
        value_text(hi, metric, g->hi);
        const bool share = metrics[metric].scale == 0 || metric == M_LOST;
        x += viz_legend(p, y, x, ramp_of(app, metric), lo, hi, share ? "%" : "");
    }
    int32_t marked = 0;
    for (int64_t i = 0; i < (int64_t)app->plan.now->n_layer * app->plan.now->n_head; i++) marked += app->plan.marks[i];
    if (marked > 0) viz_printf(p, y, p.w > x + 13 ? p.w - 12 : x + 2, viz_bold(VIZ_ACCENT), "* %d marked", marked);
}

/* the head of the cell; of two layers in a row the upper first, the lower at a second click */
static void click_head(tui_app *app, int y, int x, int64_t size) {
    if (!app->plan.now) return;
    const geometry g = fit(app, (int)(size >> 16) - 2, (int)(size & 0xffff));
    int32_t h = g.left, layer = g.top + (g.half ? 2 * y : y);
    while (h + 1 < g.end && head_x(&g, h + 1) <= x) h++;
    if (layer >= app->plan.now->n_layer || x < head_x(&g, g.left)) return;
    if (g.half && layer == app->cursor.layer && h == app->cursor.head && layer + 1 < app->plan.now->n_layer) layer++;
    tui_cursor_move(app, layer, h);
}

static void draw_grid(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char title[64], note[96];
    const int metric = (int)vars(app)->v[V_METRIC];
    const tui_run *t = tui_truth(app);
    (void)snprintf(title, sizeof title, "Heads");
    if (app->plan.now) (void)snprintf(title, sizeof title, "Heads  %d x %d", app->plan.now->n_layer, app->plan.now->n_head);
    (void)snprintf(note, sizeof note, "%s%s", metrics[metric].title, !t || metric == M_SPAN || metric == M_RULE || metric == M_INFLUENCE || tui_run_saw_all(t) ? "" : " (windowed run)");
    if (app->plan.now) {
        const geometry g = fit(app, rect.h - 4, rect.w - 4);
        const size_t n = strlen(title);
        if (g.end - g.left < g.n_head) (void)snprintf(title + n, sizeof title - n, "  H%02d-%02d", g.left, g.end - 1);
    }
    viz_pane in = viz_box(viz_pane_of(c, rect), title, note, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!app->plan.now) {
        viz_text(in, 0, 0, viz_fg(VIZ_DIM), "No model yet: :load MODEL, and every head of it is a cell here.");
        return;
    }
    grid g;
    if (in.h < 3 || !grid_make(app, metric, &g)) return;
    const geometry geo = fit(app, in.h - 2, in.w);
    draw_heads_row(in, &geo);
    const viz_pane cells = viz_pane_sub(in, 1, 0, in.h - 2, in.w);
    draw_cells(app, cells, &geo, &g, metric);
    draw_marks(app, cells, &geo);
    tui_hit_add(app, viz_pane_rect(cells), click_head, (int64_t)in.h << 16 | in.w);
    if (metric == M_INFLUENCE && !tui_influence_at(app, 0)) viz_text_cut(in, in.h - 1, 0, in.w, viz_fg(VIZ_WARN), "No influence yet: screen 8 measures it.");
    else if (!t && metric != M_SPAN && metric != M_RULE && metric != M_INFLUENCE) viz_text_cut(in, in.h - 1, 0, in.w, viz_fg(VIZ_WARN), !app->model.loaded ? "No model: .9 shows the plan's rules." : in.w < 49 ? "Not measured yet: R runs the prompt." : "Nothing measured yet: R runs with full attention.");
    else draw_legend(app, in, in.h - 1, &g, metric);
    grid_free(&g);
}

/* --- the inspector ------------------------------------------------------------------------------------------------------------ */

static int fact(viz_pane p, int y, const char *label, viz_style s, const char *text) {
    if (y >= p.h) return y;
    viz_text_cut(p, y, 0, 9, viz_fg(VIZ_DIM), label);
    viz_text_cut(p, y, 9, p.w - 9, s, text);
    return y + 1;
}

static viz_role cover_role(double cover) { return isnan(cover) ? VIZ_FAINT : cover < 0.8 ? VIZ_BAD : cover < 0.95 ? VIZ_WARN : VIZ_GOOD; }

static int fact_cost(tui_app *app, viz_pane in, int y, const tui_head_figures *f) {
    char a[24], b[24], text[160];
    if (!f->kv_group_bytes) return fact(in, y, "KV", viz_fg(VIZ_FAINT), "-");
    (void)snprintf(text, sizeof text, "%s, its group %s", viz_bytes_text(a, f->kv_alone_bytes), viz_bytes_text(b, f->kv_group_bytes));
    y = fact(in, y, "KV", viz_fg(VIZ_TEXT), text);
    if (kv_heads(app) == app->plan.now->n_head) return y;
    if (f->span < f->group_span)
        (void)snprintf(text, sizeof text, "widening is free to %s", viz_count_text(a, f->group_span));
    else (void)snprintf(text, sizeof text, "%s", f->is_widest ? "the widest: narrowing saves" : "tied: narrowing saves 0 B");
    return fact(in, y, "", viz_fg(VIZ_DIM), text);
}

/* predicted by the influence of the length nearest to N, where there is influence */
static int fact_loss(tui_app *app, viz_pane in, int y, int32_t span) {
    const int32_t l = app->cursor.layer, h = app->cursor.head;
    const int i = tui_influence_for(app, tui_plan_n(app));
    const tui_influence *of = tui_influence_at(app, i);
    char a[24], b[24], text[96];
    if (!of || span <= 0) return y;
    const moa_rule rule = *moa_plan_at(app->plan.now, l, h);
    (void)snprintf(text, sizeof text, "%s nats @%d, at 128 %s", tui_loss_text(a, tui_influence_loss(app, i, l, h, moa_span(rule, of->n_tok))), of->n_tok,
                   tui_loss_text(b, tui_influence_loss(app, i, l, h, MOA_SPAN_MIN)));
    return fact(in, y, "loss", viz_fg(VIZ_TEXT), text);
}

/* mass by distance: the sink, then two bins an octave; what the span reaches is bright */
static int fact_distance(tui_app *app, viz_pane in, int y, const tui_head_figures *f) {
    int32_t n_bin;
    const float *h = tui_run_hist(tui_truth(app), app->cursor.layer, app->cursor.head, &n_bin);
    enum { BINS = 28 };
    float bins[BINS];
    if (!h || y + 1 >= in.h || !moa_coverage_octaves(h, n_bin, bins, BINS)) return fact(in, y, "distance", viz_fg(VIZ_FAINT), "-");
    const int reach = moa_coverage_n_octave(moa_window(f->span) / MOA_PAGE_TOK), last = moa_coverage_n_octave(n_bin);
    viz_text_cut(in, y, 0, 9, viz_fg(VIZ_DIM), "distance");
    for (int i = 0; i < last && i < BINS && 9 + 2 * i + 1 < in.w; i++)
        for (int k = 0; k < 2; k++) viz_spark(in, y, 9 + 2 * i + k, 1, viz_fg(i == 0 ? VIZ_CAT1 : i < reach ? VIZ_BAR : VIZ_FAINT), &bins[i], 1, 0, 0.5f);
    viz_text(in, y + 1, 9, viz_fg(VIZ_FAINT), "sink");
    for (int i = 3; i < last && 9 + 2 * i + 5 < in.w; i += 4) {
        char t[16];
        viz_text(in, y + 1, 9 + 2 * i, viz_fg(VIZ_FAINT), viz_short_text(t, (int64_t)(64 * pow(2, (i - 1) / 2.0))));
    }
    return y + 2;
}

static void draw_inspector(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char title[64] = "Head", text[160], a[24], b[24];
    const moa_plan *plan = app->plan.now;
    const int32_t l = app->cursor.layer, h = app->cursor.head;
    if (plan) {
        const int32_t group = plan->n_head / kv_heads(app);
        if (group > 1) (void)snprintf(title, sizeof title, "L%02d H%02d  KV group %d (H%d-%d)", l, h, h / group, h / group * group, h / group * group + group - 1);
        else (void)snprintf(title, sizeof title, "L%02d H%02d", l, h);
    }
    viz_pane in = viz_box(viz_pane_of(c, rect), title, plan ? tui_head_class(app, l, h) : NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!plan) return;
    tui_head_figures f;
    tui_head_describe(app, l, h, &f);
    const int32_t n = tui_plan_n(app);
    const tui_run *t = tui_truth(app);
    int y = 0;
    (void)snprintf(text, sizeof text, "%g + %g N = %s%s", f.rule.alpha, f.rule.beta, viz_count_text(a, f.span), f.span >= n ? "  everything" : "");
    y = fact(in, y, "span", viz_bold(VIZ_TEXT), text);
    (void)snprintf(text, sizeof text, "%s of the mass%s", viz_percent_text(a, f.cover, 1), isnan(f.cover) ? "" : f.cover_dense ? "" : ", first order");
    y = fact(in, y, "covers", viz_fg(cover_role(f.cover)), text);
    y = fact_loss(app, in, y, f.span);
    if (t && t->stats.there) {
        if (f.worst_query >= 0 && f.worst_cover < 0.9995) (void)snprintf(text, sizeof text, "%s at token %s, run #%d", viz_percent_text(a, f.worst_cover, 1), viz_count_text(b, f.worst_query), t->number);
        else (void)snprintf(text, sizeof text, "- (run #%d cut nothing here)", t->number);
        y = fact(in, y, "worst", viz_fg(VIZ_TEXT), text);
        (void)snprintf(text, sizeof text, "%s sink, %s within 64", viz_percent_text(a, tui_run_stat(t, t->stats.sink, l, h), 1), viz_percent_text(b, local_share(app, l, h), 1));
        y = fact(in, y, "mass", viz_fg(VIZ_TEXT), text);
        (void)snprintf(text, sizeof text, "%s nats, %s tokens away", viz_real_text(a, f.entropy, 2), viz_real_text(b, tui_run_stat(t, t->stats.distance, l, h), 0));
        y = fact(in, y, "entropy", viz_fg(VIZ_TEXT), text);
        if (t->stats.every > 1) {
            (void)snprintf(text, sizeof text, "sampled 1 of %d query blocks", t->stats.every);
            y = fact(in, y, "", viz_fg(VIZ_DIM), text);
        }
    } else y = fact(in, y, "", viz_fg(VIZ_DIM), "not measured: R runs dense");
    y = fact_distance(app, in, y, &f);
    (void)fact_cost(app, in, y, &f);
}

/* --- coverage of every window --------------------------------------------------------------------------------------------------- */

/* share covered by the span at column x of w, spans 128 .. last on a log scale */
static int32_t span_at(int x, int w, int32_t last) {
    if (w < 2 || last <= MOA_SPAN_MIN) return MOA_SPAN_MIN;
    const double s = MOA_SPAN_MIN * pow((double)last / MOA_SPAN_MIN, (double)x / (w - 1));
    return (int32_t)(s / MOA_PAGE_TOK + 0.5) * MOA_PAGE_TOK;
}

static int column_of(int32_t span, int w, int32_t last) {
    if (last <= MOA_SPAN_MIN || w < 2) return 0;
    if (span > last) span = last;
    return (int)(log((double)span / MOA_SPAN_MIN) / log((double)last / MOA_SPAN_MIN) * (w - 1) + 0.5);
}

static void draw_curve(tui_app *app, viz_pane in, const float *hist, int32_t n_bin, const tui_head_figures *f) {
    const int32_t last = moa_roundup64(tui_plan_n(app)) > MOA_SPAN_MIN ? moa_roundup64(tui_plan_n(app)) : MOA_SPAN_MIN;
    const int h = in.h - 2, w = in.w - 5, here = column_of(f->span, w, last);
    char text[64], a[24];
    if (h < 2 || w < 10) return;
    double lo = 1;
    for (int x = 0; x < w; x++) lo = fmin(lo, moa_coverage(hist, n_bin, span_at(x, w, last)));
    lo = floor(lo * 20) / 20 - 0.05; /* the axis begins a step below the curve */
    if (lo < 0 || isnan(lo)) lo = 0;
    const viz_pane plot = viz_pane_sub(in, 0, 5, h, w);
    for (int x = 0; x < w; x++) {
        const int32_t span = x == here ? f->span : span_at(x, w, last);
        const float cover = (float)moa_coverage(hist, n_bin, span);
        const viz_role role = x == here ? VIZ_EDGE : cover >= 0.99f ? VIZ_GOOD : cover >= 0.95f ? VIZ_WARN : VIZ_BAR;
        viz_columns(plot, 0, x, h, 1, viz_fg(role), &cover, 1, (float)lo, 1);
    }
    viz_text_right(in, 0, 0, 4, viz_fg(VIZ_DIM), "100%");
    (void)snprintf(text, sizeof text, "%.0f%%", 100 * lo);
    viz_text_right(in, h - 1, 0, 4, viz_fg(VIZ_DIM), text);
    for (int32_t s = MOA_SPAN_MIN, end = -9; s <= last; s *= 2) {
        const int x = column_of(s, w, last);
        if (x < end + 2 || x + 5 > w) continue;
        end = x + viz_text(in, h, 5 + x, viz_fg(VIZ_FAINT), viz_short_text(a, s));
    }
    (void)snprintf(text, sizeof text, "%s95%% at %s  99%% at %s", w > 34 ? "smallest span: " : "", f->span95 ? viz_count_text(a, f->span95) : "-", "");
    int x = viz_text(in, h + 1, 0, viz_fg(VIZ_TEXT), text);
    viz_text(in, h + 1, x, viz_fg(VIZ_TEXT), f->span99 ? viz_count_text(a, f->span99) : "-");
}

static void draw_cover(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    viz_pane in = viz_box(viz_pane_of(c, rect), "Coverage of every span", "no rerun", focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    int32_t n_bin;
    const float *hist = app->plan.now ? tui_run_hist(tui_truth(app), app->cursor.layer, app->cursor.head, &n_bin) : NULL;
    if (!hist) {
        viz_text_wrap(in, 0, 0, in.w, 2, viz_fg(VIZ_DIM), "Known after a run: R, best with full attention.");
        return;
    }
    tui_head_figures f;
    tui_head_describe(app, app->cursor.layer, app->cursor.head, &f);
    draw_curve(app, in, hist, n_bin, &f);
}

/* --- memory and the run ------------------------------------------------------------------------------------------------------------ */

static int kv_row(viz_pane in, int y, const char *label, uint64_t bytes, uint64_t most, viz_role role, const char *after) {
    char b[16];
    if (y >= in.h) return y;
    viz_text_cut(in, y, 0, 9, viz_fg(VIZ_DIM), label);
    viz_text_right(in, y, 9, 9, viz_fg(VIZ_TEXT), bytes ? viz_bytes_text(b, bytes) : "-");
    const int room = in.w - 19 - 8;
    if (room > 4) viz_bar(in, y, 19, room, most && bytes ? (double)bytes / (double)most : (double)NAN, role);
    viz_text_right(in, y, in.w - 7, 7, viz_fg(VIZ_DIM), after);
    return y + 1;
}

static void draw_jobs(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char title[48], ratio[24], a[24];
    const int32_t n = tui_plan_n(app);
    (void)snprintf(title, sizeof title, "KV memory at N = %s", viz_count_text(a, n));
    viz_pane in = viz_box(viz_pane_of(c, rect), title, NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    const tui_kv kv = app->plan.now ? tui_kv_at(app, app->plan.now, n) : (tui_kv){0};
    const char *times = app->caps.utf8 ? "×" : "x";
    (void)snprintf(ratio, sizeof ratio, kv.dense ? "%.2f%s" : "-", kv.dense ? (double)kv.plan / (double)kv.dense : 0.0, times);
    char one[16];
    (void)snprintf(one, sizeof one, "1.00%s", times);
    int y = kv_row(in, 0, "plan", kv.plan, kv.mha, VIZ_RUN_B, ratio);
    y = kv_row(in, y, "full", kv.dense, kv.mha, VIZ_RUN_A, kv.dense ? one : "-");
    (void)snprintf(ratio, sizeof ratio, kv.dense ? "%.2f%s" : "-", kv.dense ? (double)kv.mha / (double)kv.dense : 0.0, times);
    y = kv_row(in, y, "if MHA", kv.mha, kv.mha, VIZ_CAT8, ratio);
    const tui_run *r = &app->runs[app->newest];
    if (r->pages.there) {
        (void)snprintf(ratio, sizeof ratio, "#%d", r->number);
        y = kv_row(in, y, "measured", r->pages.used_bytes, kv.mha > r->pages.used_bytes ? kv.mha : r->pages.used_bytes, VIZ_GOOD, ratio);
    }
    if (y >= in.h || r->state == TUI_RUN_EMPTY) return;
    const bool prefill = r->state == TUI_RUN_PREFILL;
    viz_printf(in, y, 0, viz_fg(VIZ_DIM), "run #%d  %s %s of %s tokens", r->number, prefill ? "prefill" : "decode", viz_count_text(a, prefill ? (int64_t)r->done : r->n_token),
               viz_short_text(ratio, prefill ? (int64_t)r->total : r->n_gen_limit));
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    const int focus = vars(app)->focus;
    if (!viz_rect_empty(p[TUI_HEADS_GRID])) draw_grid(app, c, p[TUI_HEADS_GRID], focus == TUI_HEADS_GRID);
    if (!viz_rect_empty(p[TUI_HEADS_INSPECT])) draw_inspector(app, c, p[TUI_HEADS_INSPECT], focus == TUI_HEADS_INSPECT);
    if (!viz_rect_empty(p[TUI_HEADS_COVER])) draw_cover(app, c, p[TUI_HEADS_COVER], focus == TUI_HEADS_COVER);
    if (!viz_rect_empty(p[TUI_HEADS_JOBS])) draw_jobs(app, c, p[TUI_HEADS_JOBS], focus == TUI_HEADS_JOBS);
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------- */


static moa_status move(tui_app *app, int32_t down, int32_t right, moa_err *err) {
    if (!app->plan.now) return moa_fail(err, MOA_E_FAILED, "there is no model; :load MODEL");
    tui_cursor_move(app, app->cursor.layer + down, app->cursor.head + right);
    return MOA_OK;
}

static moa_status go_left(tui_app *app, const tui_args *a, moa_err *err) { return move(app, 0, -tui_times(a), err); }
static moa_status go_right(tui_app *app, const tui_args *a, moa_err *err) { return move(app, 0, tui_times(a), err); }
static moa_status go_up(tui_app *app, const tui_args *a, moa_err *err) { return move(app, -tui_times(a), 0, err); }
static moa_status go_down(tui_app *app, const tui_args *a, moa_err *err) { return move(app, tui_times(a), 0, err); }
static moa_status page_up(tui_app *app, const tui_args *a, moa_err *err) { return move(app, -8 * tui_times(a), 0, err); }
static moa_status page_down(tui_app *app, const tui_args *a, moa_err *err) { return move(app, 8 * tui_times(a), 0, err); }
static moa_status go_top(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return move(app, -MOA_PLAN_LAYER_MAX, 0, err);
}
static moa_status go_bottom(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return move(app, MOA_PLAN_LAYER_MAX, 0, err);
}
static moa_status go_first(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return move(app, 0, -MOA_PLAN_HEAD_MAX, err);
}
static moa_status go_last(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return move(app, 0, MOA_PLAN_HEAD_MAX, err);
}

static moa_status to_map(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i) == &tui_view_map) tui_view_switch(app, i);
    (void)err;
    return MOA_OK;
}

static void show_metric(tui_app *app, int metric) {
    vars(app)->v[V_METRIC] = metric;
    tui_say(app, TUI_INFO, "Heads by %s: %s", metrics[metric].name, metrics[metric].title);
}

static moa_status set_metric(tui_app *app, const tui_args *a, moa_err *err) {
    if (a->argc == 0) {
        show_metric(app, ((int)vars(app)->v[V_METRIC] + 1) % N_METRIC);
        return MOA_OK;
    }
    for (int i = 0; i < N_METRIC; i++)
        if (strcasecmp(metrics[i].name, a->argv[0]) == 0) {
            show_metric(app, i);
            return MOA_OK;
        }
    return moa_fail(err, MOA_E_USAGE, "metric need95, lost, cover, entropy, sink, local, distance, span, rule, class or influence");
}

static void complete_metric(tui_app *app, const char *prefix, moa_buf *out) {
    (void)app;
    for (int i = 0; i < N_METRIC; i++)
        if (strncmp(metrics[i].name, prefix, strlen(prefix)) == 0) moa_buf_printf(out, "%s\n", metrics[i].name);
}

#define X(id, text, title, scale)                                                                            \
    static moa_status metric_##id(tui_app *app, const tui_args *a, moa_err *err) {                            \
        (void)a;                                                                                             \
        (void)err;                                                                                           \
        show_metric(app, M_##id);                                                                            \
        return MOA_OK;                                                                                       \
    }
METRIC_MAP(X)
#undef X

/* v: once to begin a rectangle of heads, once more to mark it */
static moa_status mark_range(tui_app *app, const tui_args *a, moa_err *err) {
    tui_view_state *v = vars(app);
    const moa_plan *p = app->plan.now;
    (void)a;
    if (!p) return moa_fail(err, MOA_E_FAILED, "there is no model; :load MODEL");
    const int32_t here = app->cursor.layer * p->n_head + app->cursor.head;
    if (v->v[V_RANGE_AT] == 0) {
        v->v[V_RANGE_AT] = here + 1;
        tui_say(app, TUI_INFO, "Range from L%02d.H%02d: move, then v marks the rectangle", app->cursor.layer, app->cursor.head);
        return MOA_OK;
    }
    const int32_t from = (int32_t)v->v[V_RANGE_AT] - 1, n = p->n_layer * p->n_head;
    v->v[V_RANGE_AT] = 0;
    if (from >= n) return MOA_OK; /* another model since */
    uint8_t *marks = malloc((size_t)n);
    if (!marks) return moa_fail(err, MOA_E_MEMORY, "no memory for %d marks", n);
    const int32_t l0 = from / p->n_head, h0 = from % p->n_head, l1 = app->cursor.layer, h1 = app->cursor.head;
    for (int32_t i = 0; i < n; i++) {
        const int32_t l = i / p->n_head, h = i % p->n_head;
        const bool in = l >= (l0 < l1 ? l0 : l1) && l <= (l0 > l1 ? l0 : l1) && h >= (h0 < h1 ? h0 : h1) && h <= (h0 > h1 ? h0 : h1);
        marks[i] = app->plan.marks[i] || in;
    }
    tui_plan_mark(app, marks, "mark a range");
    free(marks);
    return MOA_OK;
}

/* --- search: words like L14 H3 distant (0,0.5), and figures like cover<95 entropy>=2 -------------------------------------------- */

bool tui_figure_matches(const tui_app *app, int32_t l, int32_t h, const char *word, bool *is_figure) {
    for (int m = 0; m < N_METRIC; m++) {
        const size_t n = strlen(metrics[m].name);
        if (strncasecmp(word, metrics[m].name, n) != 0 || !strchr("<>=", word[n]) || !word[n]) continue;
        char *end;
        const bool or_equal = word[n] == '=' || word[n + 1] == '=';
        const char *number = word + n + 1 + (word[n + 1] == '=');
        const double limit = strtod(number, &end);
        *is_figure = end != number && *end == 0 && metrics[m].scale != 2;
        double v = value_of(app, m, l, h);
        if (metrics[m].scale == 0 || m == M_LOST) v *= 100;
        return *is_figure && !isnan(v) && ((word[n] == '<' && v < limit) || (word[n] == '>' && v > limit) || (or_equal && v == limit));
    }
    *is_figure = false;
    return false;
}

static bool word_matches(const tui_app *app, int32_t l, int32_t h, const char *word) {
    char text[128];
    bool is_figure;
    const bool yes = tui_figure_matches(app, l, h, word, &is_figure);
    if (is_figure) return yes;
    const moa_rule r = *moa_plan_at(app->plan.now, l, h);
    (void)snprintf(text, sizeof text, "L%d.H%d L%02d H%02d %s (%g,%g)%s", l, h, l, h, tui_head_class(app, l, h), r.alpha, r.beta, tui_plan_marked(app, l, h) ? " marked" : "");
    return strcasestr(text, word) != NULL;
}

static bool head_matches(const tui_app *app, int32_t l, int32_t h, const char *needle) {
    char copy[128];
    char *save = NULL;
    (void)snprintf(copy, sizeof copy, "%s", needle);
    for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        const bool invert = word[0] == '!' && word[1];
        if (word_matches(app, l, h, word + invert) == invert) return false;
    }
    return true;
}

static bool search(tui_app *app, const char *needle, int dir, int *n_match) {
    const moa_plan *p = app->plan.now;
    *n_match = 0;
    if (!p) return false;
    const int32_t n = p->n_layer * p->n_head, here = app->cursor.layer * p->n_head + app->cursor.head;
    int32_t found = -1;
    for (int32_t i = 1; i <= n; i++) {
        const int32_t at = (int32_t)(((int64_t)here + (int64_t)dir * i % n + n) % n);
        if (!head_matches(app, at / p->n_head, at % p->n_head, needle)) continue;
        ++*n_match;
        if (found < 0) found = at;
    }
    if (found < 0) return false;
    tui_cursor_move(app, found / p->n_head, found % p->n_head);
    return true;
}

static const tui_command commands[] = {
    {"head left", "h Left", NULL, "the head before", NULL, NULL, TUI_CMD_COUNT, go_left, NULL},
    {"head right", "l Right", NULL, "the next head", NULL, NULL, TUI_CMD_COUNT, go_right, NULL},
    {"layer up", "k Up K", NULL, "one layer up", NULL, NULL, TUI_CMD_COUNT, go_up, NULL},
    {"layer down", "j Down J", NULL, "one layer down", NULL, NULL, TUI_CMD_COUNT, go_down, NULL},
    {"page up", "PgUp C-b C-u", NULL, "eight layers up", NULL, NULL, TUI_CMD_COUNT, page_up, NULL},
    {"page down", "PgDn C-f C-d", NULL, "eight layers down", NULL, NULL, TUI_CMD_COUNT, page_down, NULL},
    {"layer first", "gg", NULL, "the first layer", NULL, NULL, 0, go_top, NULL},
    {"layer last", "G", NULL, "the last layer", NULL, NULL, 0, go_bottom, NULL},
    {"head first", "Home 0", NULL, "the first head of the layer", NULL, NULL, 0, go_first, NULL},
    {"head last", "End $", NULL, "the last head of the layer", NULL, NULL, 0, go_last, NULL},
    {"map", "Enter", NULL, "the map of this head", "map", NULL, 0, to_map, NULL},
    {"metric", "m", "[NAME]", "colour the heads by the next metric, or by the one named", "metric", NULL, 0, set_metric, complete_metric},
    {"mark range", "v", NULL, "begin a rectangle of heads; again: mark it", NULL, NULL, 0, mark_range, NULL},
    {"metric need95", ".1", NULL, "colour by the span that keeps 95 %", NULL, NULL, 0, metric_NEED, NULL},
    {"metric lost", ".2", NULL, "colour by mass the plan cuts", NULL, NULL, 0, metric_LOST, NULL},
    {"metric cover", ".3", NULL, "colour by mass the plan keeps", NULL, NULL, 0, metric_COVER, NULL},
    {"metric entropy", ".4", NULL, "colour by entropy", NULL, NULL, 0, metric_ENTROPY, NULL},
    {"metric sink", ".5", NULL, "colour by mass on the sink", NULL, NULL, 0, metric_SINK, NULL},
    {"metric local", ".6", NULL, "colour by mass within 64 tokens", NULL, NULL, 0, metric_LOCAL, NULL},
    {"metric distance", ".7", NULL, "colour by mean distance", NULL, NULL, 0, metric_DISTANCE, NULL},
    {"metric span", ".8", NULL, "colour by span", NULL, NULL, 0, metric_SPAN, NULL},
    {"metric rule", ".9", NULL, "colour by rule", NULL, NULL, 0, metric_RULE, NULL},
    {"metric class", ".0", NULL, "colour by kind of head", NULL, NULL, 0, metric_CLASS, NULL},
    {"metric influence", ".i", NULL, "colour by what the shortest span would cost, from the search's profile", NULL, NULL, 0, metric_INFLUENCE, NULL},
    {0},
};

const tui_view tui_view_heads = {.name = "heads", .title = "Heads", .key = '2', .layout = TUI_LAYOUT_HEADS, .commands = commands, .draw = draw, .search = search};
