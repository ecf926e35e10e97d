/* map -- one head's attention at screen resolution, and the edge of its window on it.
 *
 *        0-63   0    200   400          exact figures of the cursor's query and key come from a row of their own (mapview.h),
 *     0  ## │ *                         so that they hold at every zoom; the cells are pooled by the engine to just what the
 *        ## │ -=*   ·   ·               screen can show
 *   200  #* │ ▏.:=*   ·   ·
 *        ## │    ▏.:=*   ·              cells outside the plan's window are dimmed, never hidden
 *   cov     ▇▇▆▅▅▆                      by query, left to right */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "tui/internal.h"
#include "tui/mapview.h"
#include "tui/search.h"
#include "tui/textview.h"
#include "viz/png.h"

enum { CONTEXT_TOKENS = 24, TOP_MAX = 64, FOLLOW_EACH = 16 };

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_map); }
static bool shown(const tui_app *app) { return tui_view_at(app->view) == &tui_view_map; }
static tui_run *run_of(tui_app *app) { return &app->runs[app->newest]; }

static viz_rect map_pane(tui_app *app) {
    viz_rect panes[TUI_PANES_MAX];
    const tui_frame f = tui_frame_now(app);
    const int focus = f.size == TUI_SMALL ? TUI_MAP_MAP : vars(app)->focus; /* a hidden map is asked for as if it were shown */
    const tui_layout_ask ask = {TUI_LAYOUT_MAP, f.size, f.body, focus, false};
    (void)tui_layout_panes(&ask, panes);
    return panes[TUI_MAP_MAP];
}

/* after anything that changes what is to be seen */
static void refresh(tui_app *app) {
    tui_map_window w;
    tui_view_state *v = vars(app);
    if (!shown(app) || !app->canvas || !tui_map_window_of(app, v, map_pane(app), &w)) return;
    if (app->cursor.query >= w.q.hi) app->cursor.query = w.q.hi - 1;
    if (app->cursor.query < 0) app->cursor.query = w.q.hi - 1;
    if (app->cursor.key < 0) app->cursor.key = 0;
    if (app->cursor.key > app->cursor.query) app->cursor.key = app->cursor.query;
    tui_map_scroll(app, v, &w);
    tui_map_ask_for(app, v, &w);
    tui_dirty(app);
}

/* --- text of tokens --------------------------------------------------------------------------------------------------------------- */

static int put_piece(tui_app *app, viz_pane p, int y, int x, int w, viz_style s, int32_t pos) {
    moa_buf b = {0}, cut = {0};
    tui_run_piece_shown(run_of(app), pos, true, !app->caps.utf8, &b);
    int used = 0;
    if (b.data && w > 0) {
        (void)moa_text_cut(b.data, b.size, w, &cut);
        if (cut.data) used = viz_text(p, y, x, s, cut.data);
    }
    moa_buf_free(&b);
    moa_buf_free(&cut);
    return used;
}

static int piece_cells(tui_app *app, int32_t pos) {
    moa_buf b = {0};
    tui_run_piece_shown(run_of(app), pos, true, !app->caps.utf8, &b);
    const int n = b.data ? moa_text_cells(b.data, b.size) : 0;
    moa_buf_free(&b);
    return n;
}

/* the tokens around pos, pos itself marked, flowing over h lines of the pane; returns the line after */
static int put_context(tui_app *app, viz_pane p, int y, int h, int32_t pos, viz_role role) {
    const int32_t n = tui_map_n(app);
    if (pos < 0 || pos >= n || p.w < 8 || h < 1) return y;
    const int room = h == 1 ? (p.w - piece_cells(app, pos)) / 2 : p.w * (h / 2) + p.w / 4, end = y + h;
    int32_t first = pos;
    for (int used = 0; first > 0 && pos - first < CONTEXT_TOKENS * h; first--) {
        used += piece_cells(app, first - 1);
        if (used > room) break;
    }
    int x = 0;
    for (int32_t t = first; t < n && y < end; t++) {
        const int cells = piece_cells(app, t);
        if (x > 0 && x + cells > p.w) {
            if (y + 1 == end && t > pos) break;
            y++, x = 0;
            if (y == end) break;
        }
        moa_buf b = {0}, cut = {0};
        tui_run_piece_shown(run_of(app), t, true, !app->caps.utf8, &b);
        const char *s = b.data ? b.data : "", *blank = app->caps.utf8 ? "␣" : "_";
        if (strncmp(s, blank, strlen(blank)) == 0) { /* words apart, as in the text; a line does not begin with a blank */
            s += strlen(blank);
            if (x > 0) x += viz_text(p, y, x, viz_fg(VIZ_DIM), " ");
        }
        (void)moa_text_cut(s, strlen(s), p.w - x, &cut);
        if (cut.data) x += viz_text(p, y, x, t == pos ? (viz_style){role, VIZ_DEFAULT, VIZ_A_BOLD | VIZ_A_UNDERLINE} : viz_fg(VIZ_DIM), cut.data);
        moa_buf_free(&b);
        moa_buf_free(&cut);
    }
    return end;
}

/* does the token begin a section: after a blank line, or a mark of the chat template? */
static bool section_at(tui_app *app, int32_t pos) {
    size_t n;
    if (pos <= 0) return false;
    const char *s = tui_run_piece(run_of(app), pos - 1, &n);
    return n >= 2 && memmem(s, n, "\n\n", 2) != NULL;
}

/* --- numbers ----------------------------------------------------------------------------------------------------------------------- */

/* 0.1873, 2.1e-05, - */
static const char *share_text(char out[24], double v) {
    if (isnan(v)) (void)snprintf(out, 24, "-");
    else if (v == 0) (void)snprintf(out, 24, "0");
    else if (v < 1e-4) (void)snprintf(out, 24, "%.1e", v);
    else (void)snprintf(out, 24, "%.4f", v);
    return out;
}

/* at most 5 cells: ".187", "1.00", "~0", "0" */
static void value_text(char out[8], double v) {
    if (v >= 0.9995) (void)snprintf(out, 8, "1.00");
    else if (v >= 0.0005) (void)snprintf(out, 8, ".%03d", (int)lround(v * 1000));
    else (void)snprintf(out, 8, v > 0 ? "~0" : "0");
}

static viz_scale scale_of(const tui_view_state *v) { return (viz_scale)(v->v[V_SCALE] % VIZ_SCALE_COUNT); }
static bool own_range(const tui_view_state *v) {
    return v->v[V_RANGE] == TUI_RANGE_OWN || (v->v[V_RANGE] == TUI_RANGE_AUTO && scale_of(v) != VIZ_SCALE_LIFT);
}

static void slot_name(const tui_app *app, tui_slot slot, char *out, size_t n) {
    const tui_run *r = &app->runs[slot];
    (void)snprintf(out, n, slot == TUI_A ? "A #%d full attention" : slot == TUI_B ? "B #%d plan" : "#%d A's tokens through the plan", r->number);
}

/* one sentence about whose attention the picture is */
static void whose_text(const tui_app *app, const tui_map *m, char *out, size_t n) {
    const tui_run *r = &app->runs[m->slot];
    char name[64];
    slot_name(app, m->slot, name, sizeof name);
    const int32_t own = tui_map_run_span(app, r, m->layer, m->head);
    if (own >= r->n_reserved && r->dense) (void)snprintf(out, n, "%s: what it attended to", name);
    else if (m->span >= MOA_N_MAX) (void)snprintf(out, n, "%s without its mask (its q and k): not what it saw", name);
    else (void)snprintf(out, n, "%s: what it attended to, span %d (cov: of that; a: of all keys)", name, m->span);
}

/* --- the map ---------------------------------------------------------------------------------------------------------------------- */

typedef struct picture {
    tui_app *app;
    tui_view_state *v;
    const tui_map *m;
    tui_map_geo g;
    viz_pane all, plot;
    viz_axis q, k;      /* q: map rows, half cells with half blocks */
    float *shade;       /* (buckets) 0..1 */
    float *cells;       /* (q.cells, k.cells) */
    float *edge, *old;  /* (q.cells); old NULL: the run's edge is the plan's */
    float *sink, *factor;
    float lo_hi[2];
    int32_t span, run_span;
    bool figures;       /* values are written into the cells */
} picture;

static void picture_free(picture *p) {
    free(p->shade), free(p->cells), free(p->edge), free(p->old), free(p->sink), free(p->factor);
}

/* gutter and, without the sink, the factor that makes rows sum to 1 again */
static void sinks(picture *p) {
    const int rows = viz_axis_buckets(&p->q);
    if (!p->m->stat || !p->sink || !p->factor) return;
    for (int r = 0; r < rows; r++) {
        const float s = p->m->stat[(size_t)r * MOA_N_STAT + MOA_STAT_SINK];
        p->factor[r] = p->v->v[V_SINK] == TUI_SINK_RENORM && s < 0.9999f ? 1 / (1 - s) : 1;
    }
    for (int y = 0; y < p->q.cells; y++) p->sink[y] = p->m->stat[(size_t)viz_axis_bucket_of_cell(&p->q, y) * MOA_N_STAT + MOA_STAT_SINK];
}

static bool picture_make(picture *p) {
    tui_map_axes(p->m, &p->g, &p->q, &p->k);
    const size_t buckets = (size_t)viz_axis_buckets(&p->q) * (size_t)viz_axis_buckets(&p->k), rows = (size_t)p->q.cells;
    const tui_run *r = &p->app->runs[p->m->slot];
    p->shade = malloc(buckets * sizeof *p->shade);
    p->cells = malloc(rows * (size_t)p->k.cells * sizeof *p->cells);
    p->edge = calloc(rows, sizeof *p->edge);
    p->sink = calloc(rows, sizeof *p->sink);
    p->factor = calloc(rows, sizeof *p->factor);
    p->run_span = tui_map_run_span(p->app, r, p->m->layer, p->m->head);
    p->span = tui_map_plan_span(p->app, p->m->layer, p->m->head);
    if (p->run_span < r->n_reserved && p->run_span != p->span) p->old = calloc(rows, sizeof *p->old);
    if (!p->shade || !p->cells || !p->edge || !p->sink || !p->factor) return false;
    for (int i = 0; i < viz_axis_buckets(&p->q); i++) p->factor[i] = 1;
    sinks(p);
    const bool max = p->v->v[V_MAX] && p->m->max;
    const viz_attn a = {.v = max ? p->m->max : p->m->mass, .q = p->q, .k = p->k, .max = max, .scale = scale_of(p->v), .own = own_range(p->v), .factor = p->factor};
    viz_attn_scale(&a, p->shade, p->lo_hi);
    viz_attn_spread(&p->q, &p->k, p->shade, p->cells);
    if (p->span) tui_map_edges(p->span, &p->q, &p->k, p->edge);
    if (p->old) tui_map_edges(p->run_span, &p->q, &p->k, p->old);
    p->figures = p->k.per >= TUI_MAP_VALUE_CELLS - 1 && p->q.per == p->g.half;
    return true;
}

static int cursor_row(const picture *p) { /* cell row, -1: not in sight */
    const int c = viz_axis_cell(&p->q, p->app->cursor.query);
    return c < 0 || c / p->g.half >= p->plot.h ? -1 : c / p->g.half;
}

static int cursor_col(const picture *p) {
    const int c = viz_axis_cell(&p->k, p->app->cursor.key);
    return c < 0 || c >= p->plot.w ? -1 : c;
}

static void draw_top_axis(picture *p) {
    viz_tick t[64];
    char now[16];
    const int y = p->g.plot.y - p->all.y - p->g.top, x0 = p->g.plot.x - p->all.x, at = cursor_col(p);
    const bool gutter_at = p->g.gutter && p->app->cursor.key < p->k.t0;
    (void)snprintf(now, sizeof now, "%d", p->app->cursor.key);
    const int w = (int)strlen(now);
    int from = at < 0 ? -100 : at - (w - 1) / 2;
    if (at >= 0 && p->k.per > 1) from = at;
    if (from + w > p->plot.w) from = p->plot.w - w;
    if (at >= 0 && from < 0) from = 0;
    viz_text(p->all, y, p->g.in.x - p->all.x, viz_fg(VIZ_DIM), p->app->caps.utf8 ? (p->g.gutter ? "q↓" : "q↓ k→") : "q");
    if (p->g.gutter) viz_text(p->all, y, x0 - 4, gutter_at ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_DIM), gutter_at ? now : "sink");
    const int n = viz_axis_ticks(&p->k, true, 2, t, 64);
    for (int i = 0; i < n; i++) {
        const int len = (int)strlen(t[i].label);
        if (at >= 0 && t[i].cell <= from + w && t[i].cell + len >= from) continue;
        viz_text(p->all, y, x0 + t[i].cell, viz_fg(VIZ_DIM), t[i].label);
    }
    if (at >= 0) viz_text(p->all, y, x0 + from, viz_bold(VIZ_ACCENT), now);
    if (p->g.top < 2 || p->k.per < 1) return;
    for (int32_t key = p->k.t0; key < p->k.t1; key++) {
        const int c = viz_axis_cell(&p->k, key);
        const viz_style s = key == p->app->cursor.key ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_DIM);
        (void)put_piece(p->app, p->all, y + 1, x0 + c, p->k.per > 1 ? p->k.per - 1 : 1, s, key);
    }
}

static void draw_left_axis(picture *p) {
    viz_tick t[200];
    const int x = p->g.in.x - p->all.x, y0 = p->g.plot.y - p->all.y, at = cursor_row(p), w = p->g.left - 1;
    char text[24];
    if (p->q.per == p->g.half && p->g.top == 2) { /* a token a row: its text and its number */
        for (int32_t q = p->q.t0; q < p->q.t1; q++) {
            const int row = viz_axis_cell(&p->q, q) / p->g.half;
            const bool here = row == at;
            const int len = snprintf(text, sizeof text, "%s%d", p->app->caps.utf8 ? "·" : ".", q) - (p->app->caps.utf8 ? 1 : 0);
            if (row >= p->plot.h) break;
            const int used = put_piece(p->app, p->all, y0 + row, x, w - len, here ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_TEXT), q);
            viz_text(p->all, y0 + row, x + used, here ? viz_bold(VIZ_ACCENT) : viz_fg(VIZ_FAINT), text);
        }
        return;
    }
    const int n = viz_axis_ticks(&p->q, false, 2 * p->g.half - 1, t, 200);
    for (int i = 0; i < n; i++) {
        const int row = t[i].cell / p->g.half;
        if (row != at && row < p->plot.h) viz_text_right(p->all, y0 + row, x, w, viz_fg(VIZ_DIM), t[i].label);
    }
    if (at < 0) return;
    (void)snprintf(text, sizeof text, "%d", p->app->cursor.query);
    viz_text_right(p->all, y0 + at, x, w, viz_bold(VIZ_ACCENT), text);
}

/* § where a section begins, on both axes, as long as they are few enough to mean something */
static void draw_sections(picture *p) {
    int count = 0;
    for (int32_t t = p->q.t0; t < p->q.t1; t++) count += section_at(p->app, t);
    if (count > p->plot.h / 2 || !p->app->caps.utf8) return;
    for (int32_t t = p->q.t0 > p->k.t0 ? p->k.t0 : p->q.t0; t < p->q.t1 || t < p->k.t1; t++) {
        if (!section_at(p->app, t)) continue;
        const int r = viz_axis_cell(&p->q, t), c = viz_axis_cell(&p->k, t);
        if (r >= 0 && r / p->g.half < p->plot.h) {
            viz_text(p->all, p->g.plot.y - p->all.y + r / p->g.half, p->g.in.x - p->all.x + p->g.left - 1, viz_fg(VIZ_CAT2), "§");
        }
        if (c >= 0 && c < p->plot.w) {
            const viz_cell *cell = viz_canvas_at(p->all.c, p->g.plot.y - 1, p->g.plot.x + c);
            if (cell->n == 1 && cell->text[0] == ' ') viz_text(p->all, p->g.plot.y - p->all.y - 1, p->g.plot.x - p->all.x + c, viz_fg(VIZ_CAT2), "§");
        }
    }
}

/* numbers in coloured cells: the last level of zoom */
static void draw_figures(picture *p) {
    const int cols = viz_axis_buckets(&p->k), rows = viz_axis_buckets(&p->q);
    const bool color = p->app->caps.depth >= VIZ_256;
    const float *v = p->v->v[V_MAX] && p->m->max ? p->m->max : p->m->mass;
    for (int r = 0; r < rows && r < p->plot.h; r++)
        for (int c = 0; c < cols; c++) {
            char text[8];
            const size_t i = (size_t)r * (size_t)cols + (size_t)c;
            const int32_t q = viz_axis_bucket_first(&p->q, r), key = viz_axis_bucket_first(&p->k, c);
            const int x = c * p->k.per;
            if (isnan(p->shade[i])) {
                viz_text_right(p->plot, r, x, p->k.per - 1, viz_fg(VIZ_FAINT), "·");
                continue;
            }
            const bool out = p->span && !p->v->v[V_OVERLAY_OFF] && !moa_sees(p->span, q, key);
            const int level = viz_ramp_level((double)p->shade[i]);
            viz_style s = {out ? VIZ_DIM : VIZ_TEXT, VIZ_DEFAULT, out ? VIZ_A_DIM : VIZ_A_BOLD};
            if (color) {
                s.bg = viz_heat_color((int)p->app->ramp, level, out);
                s.fg = viz_rgb(viz_luminance(viz_ramp_rgb(p->app->ramp, level, out)) > 0.2 ? 0x0b1016 : out ? 0x9aa3b2 : 0xf2f4f8);
                s.attr = 0;
            }
            const double figure = (double)v[i] * (double)p->factor[r];
            value_text(text, figure);
            viz_fill(p->plot, r, x, 1, p->k.per, s, " ");
            if (figure >= 0.0005 || !color) viz_text_right(p->plot, r, x, p->k.per - 1, s, text); /* the shade tells the small ones */
            const int32_t first = p->span ? moa_window_first(p->span, q) : 0;
            if (!p->v->v[V_OVERLAY_OFF] && first > MOA_SINK_TOK && key == first)
                viz_text(p->plot, r, x, (viz_style){VIZ_EDGE, s.bg, VIZ_A_BOLD}, p->app->caps.utf8 ? "▏" : "|");
        }
}

static void draw_gutter(picture *p) {
    const viz_pane g = viz_pane_sub(p->all, p->g.plot.y - p->all.y, p->g.plot.x - p->all.x - 3, p->g.plot.h, 3);
    const viz_heat h = {.rows = p->q.cells, .cols = 0, .t = p->cells, .sink = p->sink, .ramp = p->app->ramp, .cursor_row = -1, .cursor_col = -1};
    viz_heat_draw(g, &h);
}

/* brackets that leave the ground as it is */
static void bracket(viz_pane p, int y, int x, const char *glyph) {
    if (y < 0 || y >= p.h || x < -1 || p.x + x < 0 || p.x + x >= p.c->cols) return;
    const viz_cell *cell = viz_canvas_at(p.c, p.y + y, p.x + x);
    const bool heat = viz_color_kind(cell->style.bg) == VIZ_KIND_HEAT || viz_color_kind(cell->style.bg) == VIZ_KIND_RGB;
    const bool light = heat && viz_luminance((uint32_t)viz_color_resolve(cell->style.bg, VIZ_24BIT)) > 0.2;
    viz_text(p, y, x, (viz_style){light ? viz_rgb(0x0b1016) : (viz_color)VIZ_ACCENT, heat ? cell->style.bg : (viz_color)VIZ_DEFAULT, VIZ_A_BOLD}, glyph);
}

static void draw_cursor(picture *p) {
    const int row = cursor_row(p);
    int col = cursor_col(p);
    if (row < 0) return;
    const viz_pane wide = viz_pane_sub(p->all, p->g.plot.y - p->all.y, p->g.plot.x - p->all.x - p->g.gutter - 1, p->g.plot.h, p->g.plot.w + p->g.gutter + 2);
    const int x0 = p->g.gutter + 1;
    if (col < 0 && p->g.gutter && p->app->cursor.key < p->k.t0) { /* on the sink */
        bracket(wide, row, 0, "[");
        bracket(wide, row, 3, "]");
        viz_cursor(wide, row, 1);
        return;
    }
    if (col < 0) return;
    if (p->k.per > 1) { /* inside the token's own cells */
        bracket(wide, row, x0 + col, "[");
        bracket(wide, row, x0 + col + p->k.per - 1, "]");
        viz_cursor(wide, row, x0 + col + 1);
        return;
    }
    bracket(wide, row, x0 + col - 1, "[");
    bracket(wide, row, x0 + col + 1, "]");
    viz_cursor(wide, row, x0 + col);
}

static void draw_strip(picture *p, int y, const char *label, int which, float hi) {
    const int rows = viz_axis_buckets(&p->q), x0 = p->g.plot.x - p->all.x;
    if (!p->m->stat) return;
    const int w = p->g.plot.w;
    float *s = malloc((size_t)w * sizeof *s);
    if (!s) return;
    for (int x = 0; x < w; x++) { /* the mean of the rows that share a cell; the row of a cell */
        const int a = (int)((int64_t)x * rows / w), b = (int)(((int64_t)x + 1) * rows / w);
        double sum = 0;
        for (int r = a; r < (b > a ? b : a + 1); r++) {
            const float *st = p->m->stat + (size_t)r * MOA_N_STAT;
            sum += (double)(which == MOA_STAT_ENTROPY ? st[MOA_STAT_ENTROPY] : st[MOA_STAT_SINK] + st[MOA_STAT_WINDOW]);
        }
        s[x] = (float)(sum / (b > a ? b - a : 1));
    }
    viz_text_cut(p->all, y, p->g.in.x - p->all.x, p->g.left + p->g.gutter, viz_fg(VIZ_DIM), label);
    viz_spark(p->all, y, x0, w, viz_fg(which == MOA_STAT_ENTROPY ? VIZ_CAT1 : VIZ_CAT3), s, w, 0, hi);
    const int32_t d = p->app->cursor.query - p->q.t0;
    if (d >= 0 && p->app->cursor.query < p->q.t1) {
        const int x = x0 + (int)((int64_t)d * w / (p->q.t1 - p->q.t0));
        viz_restyle(p->all, y, x, 1, 1, VIZ_BG_SELECT, 0);
    }
    free(s);
}

/* lo [ramp] hi unit */
static int draw_scale(picture *p, int y, int x) {
    char lo[24], hi[24];
    const char *unit = "", *times = p->app->caps.utf8 ? "×" : "x";
    const double a = (double)p->lo_hi[0], b = (double)p->lo_hi[1];
    switch (scale_of(p->v)) {
    case VIZ_SCALE_LIFT:
        (void)snprintf(lo, sizeof lo, "%s%.2g", times, pow(10, a));
        (void)snprintf(hi, sizeof hi, "%s%.3g", times, pow(10, b));
        unit = "uniform";
        break;
    case VIZ_SCALE_LOG:
        (void)snprintf(lo, sizeof lo, "%.0e", pow(10, a));
        (void)snprintf(hi, sizeof hi, "%.3g", pow(10, b));
        unit = p->v->v[V_MAX] ? "max" : "mass";
        break;
    case VIZ_SCALE_LINEAR:
        (void)snprintf(lo, sizeof lo, "0");
        (void)snprintf(hi, sizeof hi, "%.3g", b);
        unit = p->v->v[V_MAX] ? "max" : "mass";
        break;
    default:
        (void)snprintf(lo, sizeof lo, "lowest");
        (void)snprintf(hi, sizeof hi, "highest");
        unit = "rank";
    }
    return viz_legend(p->all, y, x, p->app->ramp, lo, hi, unit);
}

static void draw_legend(picture *p, int y) {
    const int x0 = p->g.in.x - p->all.x, end = x0 + p->g.in.w;
    const bool u8 = p->app->caps.utf8;
    char text[64], a[24];
    int x = x0 + draw_scale(p, y, x0) + 2;
    if (!p->span) return;
    const bool off = p->v->v[V_OVERLAY_OFF] != 0;
    const tui_run *r = &p->app->runs[p->m->slot];
    const bool sees_all = p->span >= r->n_reserved;
    (void)snprintf(text, sizeof text, sees_all ? "span %s: all" : "span %s", viz_count_text(a, p->span));
    if (x + 2 + (int)strlen(text) < end) {
        x += viz_text(p->all, y, x, viz_bold(off ? VIZ_FAINT : VIZ_EDGE), u8 ? "▏" : "|");
        x += viz_text(p->all, y, x, viz_fg(VIZ_DIM), text) + 2;
    }
    if (p->old && !off) {
        (void)snprintf(text, sizeof text, "run's %s", viz_count_text(a, p->run_span));
        if (x + 2 + (int)strlen(text) < end) {
            x += viz_text(p->all, y, x, viz_bold(VIZ_ACCENT), u8 ? "┊" : ":");
            x += viz_text(p->all, y, x, viz_fg(VIZ_DIM), text) + 2;
        }
    }
    const char *rest = off ? "o shows the window" : p->g.gutter ? "dim: cut   sink 0..100%" : "dim: cut";
    if (x + (int)strlen(rest) < end) viz_text(p->all, y, x, viz_fg(VIZ_FAINT), rest);
}

static viz_heat heat_of(const picture *p) {
    const bool overlay = !p->v->v[V_OVERLAY_OFF];
    int keep = 0;
    while (p->k.t0 < MOA_SINK_TOK && keep < p->k.cells && viz_axis_end(&p->k, keep) <= MOA_SINK_TOK) keep++;
    return (viz_heat){.rows = p->q.cells, .cols = p->k.cells, .t = p->cells, .edge = overlay && p->span ? p->edge : NULL,
                      .edge2 = overlay ? p->old : NULL, .ramp = p->app->ramp, .cursor_row = -1, .cursor_col = -1, .keep_cols = keep};
}
static void heat(picture *p) {
    const viz_heat h = heat_of(p);
    viz_heat_draw(p->plot, &h);
}

/* "keys 64 to 612 x queries 0 to 612, 8 x 11 a cell" */
static void title_of(const picture *p, int level, int levels, bool wide, char *title, size_t n_title, char *note, size_t n_note) {
    const tui_map *m = p->m;
    char name[64];
    slot_name(p->app, m->slot, name, sizeof name);
    const double tq = (double)(m->q1 - m->q0) / (p->q.cells > p->g.half ? (double)p->q.cells / p->g.half : 1), tk = (double)(m->k1 - m->k0) / p->k.cells;
    (void)snprintf(title, n_title, "L%02d H%02d  %s", m->layer, m->head, name);
    if (p->figures) (void)snprintf(note, n_note, "A, figures");
    else if (p->k.per && p->q.per) (void)snprintf(note, n_note, "1 token a cell");
    else (void)snprintf(note, n_note, wide ? "cell %.3g x %.3g tokens  zoom %d/%d" : "%.3gx%.3g tok  zoom %d/%d", tq < 1 ? 1 : tq, tk < 1 ? 1 : tk, level, levels + 1);
}

static void modes_text(const tui_view_state *v, char *out, size_t n) {
    (void)snprintf(out, n, "%s %s%s sink %s", v->v[V_MAX] ? "max" : "mass", viz_scale_name(scale_of(v)), own_range(v) == (scale_of(v) == VIZ_SCALE_LIFT) ? (own_range(v) ? " own" : " fixed") : "", tui_map_sink_name((int)v->v[V_SINK]));
}

/* nothing to show: one sentence about what is missing */
static const char *missing(const tui_app *app) {
    const tui_run *r = &app->runs[app->newest];
    if (app->link.state == TUI_LINK_DEAD && !app->map.there) return "The engine ended: :engine restart starts it again.";
    if (app->link.state == TUI_LINK_LOADING || app->link.state == TUI_LINK_HELLO) return "The model is loading; a run comes next.";
    if (!app->model.loaded) return "No model is loaded: :load NAME loads one.";
    if (app->prompt.size == 0 && !r->number) return "No prompt yet: i on the Run screen types one, :prompt open FILE reads one.";
    if (!r->number) return "Nothing has run yet: R runs with full attention, r under the plan.";
    if (r->state == TUI_RUN_FAILED) return "The run failed; the Run screen says why. R or r runs again.";
    if (r->state == TUI_RUN_PREFILL) return "The map comes as soon as the prompt is read.";
    if (moa_clean_bytes(r->note)) return moa_clean_text(r->note); /* captures over the limit: it says so */
    return "Waiting for the map.";
}

static void draw_picture(picture *p, const tui_map_window *w, bool focus) {
    char title[96], note[96], modes[96], text[256];
    const int bottom = p->g.in.y + p->g.in.h - p->all.y;
    title_of(p, w->level, w->levels, p->all.w >= 90, title, sizeof title, note, sizeof note);
    modes_text(p->v, modes, sizeof modes);
    if (p->g.framed) {
        (void)snprintf(text, sizeof text, "%s  %s", modes, note);
        const int room = p->all.w - (int)strlen(title) - 12;
        (void)viz_box(p->all, title, (int)strlen(text) <= room ? text : (int)strlen(modes) <= room ? modes : NULL, focus);
    } else {
        int x = viz_text(p->all, 0, 0, viz_bold(focus ? VIZ_FRAME_FOCUS : VIZ_TITLE), title) + 2;
        viz_text_cut(p->all, 0, x, p->all.w - x, viz_fg(VIZ_DIM), modes);
    }
    if (p->figures) draw_figures(p);
    else heat(p);
    if (p->g.gutter) draw_gutter(p);
    draw_top_axis(p);
    draw_left_axis(p);
    draw_sections(p);
    draw_cursor(p);
    int y = p->g.plot.y + p->g.plot.h - p->all.y;
    draw_strip(p, y++, p->app->caps.utf8 ? "cov q→" : "cov q>", MOA_STAT_SINK, 1);
    if (p->g.n_strip > 1) draw_strip(p, y++, p->app->caps.utf8 ? "ent q→" : "ent q>", MOA_STAT_ENTROPY, (float)log((double)p->m->n_past + 1));
    draw_legend(p, y++);
    if (p->g.whose && y < bottom) {
        whose_text(p->app, p->m, text, sizeof text);
        viz_text_cut(p->all, y, p->g.in.x - p->all.x, p->g.in.w, viz_fg(VIZ_DIM), text);
    }
}

/* the cursor to the middle of the cell's queries and keys */
static void click_map(tui_app *app, int y, int x, int64_t half) {
    tui_map_window w;
    viz_axis q, k;
    if (!app->map.there || !tui_map_window_of(app, vars(app), map_pane(app), &w)) return;
    tui_map_axes(&app->map, &w.geo, &q, &k);
    const int row = y * (int)half;
    if (row >= q.cells || x >= k.cells) return;
    app->cursor.query = (viz_axis_first(&q, row) + viz_axis_end(&q, row) - 1) / 2;
    app->cursor.key = (viz_axis_first(&k, x) + viz_axis_end(&k, x) - 1) / 2;
    if (app->cursor.key > app->cursor.query) app->cursor.key = app->cursor.query;
    vars(app)->v[V_FOLLOW_OFF] = 1;
    refresh(app);
}

static void draw_map(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    tui_map_window w;
    tui_view_state *v = vars(app);
    const bool there = tui_map_window_of(app, v, rect, &w) && app->map.there && app->map.slot == app->newest;
    if (!there) {
        viz_pane in = viz_box(viz_pane_of(c, rect), "Map", NULL, focus);
        viz_text_wrap(in, 0, 1, in.w - 2, in.h, viz_fg(VIZ_DIM), missing(app));
        return;
    }
    picture p = {.app = app, .v = v, .m = &app->map, .g = w.geo, .all = viz_pane_of(c, rect), .plot = viz_pane_of(c, w.geo.plot)};
    if (picture_make(&p)) draw_picture(&p, &w, focus);
    tui_hit_add(app, w.geo.plot, click_map, w.geo.half);
    picture_free(&p);
}

/* The map that is there as a picture file, 8 (or PIXELS) pixels a value, its numbers and its origin in words. */
static moa_status save_png(tui_app *app, const tui_args *a, moa_err *err) {
    tui_map_window w;
    tui_view_state *v = vars(app);
    char path[4096], name[64], title[160], note[160], keys[96], shade[160], lo_hi[96];
    char *end = NULL;
    const long px = a->argc > 1 ? strtol(a->argv[1], &end, 10) : 8;
    if (a->argc < 1 || a->argc > 2 || (end && *end) || px < 1 || px > 64) return moa_fail(err, MOA_E_USAGE, "usage: png FILE [PIXELS], 1 to 64 a value");
    if (v->v[V_INFLUENCE]) return moa_fail(err, MOA_E_FAILED, "png writes attention, and this is influence: i goes back to it");
    if (!tui_map_window_of(app, v, map_pane(app), &w) || !app->map.there || app->map.slot != app->newest) return moa_fail(err, MOA_E_FAILED, "no map: %s", missing(app));
    const tui_map *m = &app->map;
    picture p = {.app = app, .v = v, .m = m, .g = w.geo, .all = viz_pane_of(app->canvas, map_pane(app)), .plot = viz_pane_of(app->canvas, w.geo.plot)};
    moa_buf b = {0};
    moa_status s = picture_make(&p) ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the map");
    if (s == MOA_OK) {
        const viz_heat h = heat_of(&p);
        slot_name(app, m->slot, name, sizeof name);
        (void)snprintf(title, sizeof title, "attention of L%02d H%02d, %s, N %d", m->layer, m->head, name, app->runs[m->slot].n_reserved);
        whose_text(app, m, note, sizeof note);
        (void)snprintf(keys, sizeof keys, "queries %d to %d down, keys %d to %d across, %d x %d values", m->q0, m->q1 - 1, m->k0, m->k1 - 1, p.q.cells, p.k.cells);
        (void)snprintf(lo_hi, sizeof lo_hi, "%g to %g%s", (double)p.lo_hi[0], (double)p.lo_hi[1], scale_of(v) == VIZ_SCALE_LIFT || scale_of(v) == VIZ_SCALE_LOG ? " (log10)" : "");
        modes_text(v, shade, sizeof shade);
        const viz_png_text texts[] = {{"Title", title}, {"Description", note}, {"Axes", keys}, {"Shades", shade}, {"Range", lo_hi}, {"Model", moa_clean_text(app->model.name)}, {"Software", "moascope"}};
        s = viz_heat_png(&h, (int)px, texts, (int)(sizeof texts / sizeof *texts), &b, err);
    }
    tui_path_expand(a->argv[0], path, sizeof path);
    if (s == MOA_OK) s = moa_file_save(path, b.data, b.size, 0644, 0, err);
    if (s == MOA_OK) tui_say(app, TUI_GOOD, "Wrote the map as a picture of %ld x %ld pixels", p.k.cells * px, p.q.cells * px);
    moa_buf_free(&b);
    picture_free(&p);
    return s;
}

/* --- under the cursor --------------------------------------------------------------------------------------------------------------- */

static int line(viz_pane in, int y, const char *label, viz_style s, const char *text) {
    const int w = in.w >= 30 ? 9 : 5;
    viz_text_cut(in, y, 0, w, viz_fg(VIZ_DIM), label);
    viz_text_cut(in, y, w, in.w - w, s, text);
    return y + 1;
}

static int token_line(tui_app *app, viz_pane in, int y, const char *label, int32_t pos, viz_role role) {
    char a[24];
    int x = viz_text(in, y, 0, viz_fg(VIZ_DIM), label);
    x += viz_text(in, y, x, viz_bold(role), viz_count_text(a, pos)) + 1;
    (void)put_piece(app, in, y, x, in.w - x, viz_bold(VIZ_TEXT), pos);
    return y + 1;
}

/* mass and maximum of the cell of the screen that the cursor is in */
static bool cell_figures(tui_app *app, const tui_map_geo *g, double *mass, double *max, int32_t r[4]) {
    const tui_map *m = &app->map;
    viz_axis q, k;
    if (!m->there || m->layer != app->cursor.layer || m->head != app->cursor.head) return false;
    tui_map_axes(m, g, &q, &k);
    const int row = viz_axis_cell(&q, app->cursor.query), col = viz_axis_cell(&k, app->cursor.key);
    if (row < 0 || col < 0) return false;
    const int b = viz_axis_bucket_of_cell(&k, col), first = viz_axis_bucket_of_cell(&q, row / g->half * g->half);
    int last = row / g->half * g->half + g->half - 1;
    if (last >= q.cells) last = q.cells - 1;
    last = viz_axis_bucket_of_cell(&q, last);
    r[0] = viz_axis_bucket_first(&q, first), r[1] = viz_axis_bucket_end(&q, last);
    r[2] = viz_axis_bucket_first(&k, b), r[3] = viz_axis_bucket_end(&k, b);
    *mass = 0;
    *max = m->max ? 0 : (double)NAN;
    for (int i = first; i <= last; i++) {
        const size_t at = (size_t)i * (size_t)m->cols + (size_t)b;
        *mass += (double)m->mass[at];
        if (m->max && (double)m->max[at] > *max) *max = (double)m->max[at];
    }
    *mass /= r[1] > r[0] ? r[1] - r[0] : 1;
    return true;
}

static int window_lines(tui_app *app, viz_pane in, int y) {
    const int32_t q = app->cursor.query, key = app->cursor.key, span = tui_map_plan_span(app, app->cursor.layer, app->cursor.head);
    char text[64], a[24], b[24];
    if (!span) return y;
    const bool sees = moa_sees(span, q, key), sink = key < MOA_SINK_TOK;
    (void)snprintf(text, sizeof text, sees ? (sink ? "yes, sink" : "yes") : "NO, cut");
    y = line(in, y, in.w >= 30 ? "in span" : "span", viz_bold(sees ? VIZ_GOOD : VIZ_BAD), text);
    (void)snprintf(text, sizeof text, "%s %s W %s", viz_count_text(a, q - key), q - key < moa_window(span) ? "<" : app->caps.utf8 ? "≥" : ">=", viz_count_text(b, moa_window(span)));
    return line(in, y, in.w >= 30 ? "distance" : "dist", viz_fg(VIZ_TEXT), text);
}

/* what stands around the key and around the query, in the lines that are left */
static void contexts(tui_app *app, viz_pane in, int y) {
    const int room = in.h - y, gap = room >= 4 ? 1 : 0, both = room - gap - (room >= 7);
    if (room < 1) return;
    y = put_context(app, in, y + gap, both > 1 ? both / 2 : 1, app->cursor.key, VIZ_CAT1);
    if (both > 1) (void)put_context(app, in, y + (room >= 7), both - both / 2, app->cursor.query, VIZ_ACCENT);
}

static void draw_cursor_pane(tui_app *app, viz_canvas *c, viz_rect rect, bool focus, const tui_map_geo *g) {
    viz_pane in = viz_box(viz_pane_of(c, rect), "Under the cursor", NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    const int32_t q = app->cursor.query, key = app->cursor.key, n = tui_map_n(app);
    char text[96], a[24], b[24];
    if (n < 1 || q < 0 || key < 0 || q >= n) {
        viz_text(in, 0, 0, viz_fg(VIZ_DIM), "-");
        return;
    }
    tui_row_figures f;
    double mass, max;
    int32_t r[4];
    int y = token_line(app, in, 0, "q ", q, VIZ_ACCENT);
    y = token_line(app, in, y, "k ", key, VIZ_ACCENT);
    if (in.h >= 15) y++;
    const bool known = tui_map_row_figures(app, &f), masked = !vars(app)->v[V_NO_MASK];
    (void)snprintf(text, sizeof text, "%s", share_text(a, masked ? f.a_run : f.a));
    const bool cut_too = known && masked && f.run_cut > 0; /* the rank is among all keys: beside the A that knows them all */
    if (!cut_too && known && in.w >= 30) (void)snprintf(text + strlen(text), sizeof text - strlen(text), "  #%s of %s", viz_count_text(b, f.rank), viz_count_text(a, q + 1));
    else if (!cut_too && known) (void)snprintf(text + strlen(text), sizeof text - strlen(text), "  #%s", viz_count_text(b, f.rank));
    y = line(in, y, "A", viz_bold(VIZ_TEXT), text);
    if (cut_too) {
        (void)snprintf(text, sizeof text, "%s  #%s", share_text(a, f.a), viz_count_text(b, f.rank));
        y = line(in, y, in.w >= 30 ? "no mask" : "free", viz_fg(VIZ_DIM), text);
    }
    y = window_lines(app, in, y);
    if (in.h >= 15) y++;
    if (cell_figures(app, g, &mass, &max, r)) {
        (void)snprintf(text, sizeof text, in.w >= 30 ? "%s  max %s" : "%s max %s", share_text(a, mass), share_text(b, max));
        y = line(in, y, "cell", viz_fg(VIZ_TEXT), text);
        if (in.h >= 13 && (r[1] - r[0] > 1 || r[3] - r[2] > 1)) {
            (void)snprintf(text, sizeof text, "%d-%d x %d-%d", r[0], r[1] - 1, r[2], r[3] - 1);
            y = line(in, y, "", viz_fg(VIZ_FAINT), text);
        }
    } else if (known && key < MOA_SINK_TOK) y = line(in, y, "sink", viz_fg(VIZ_TEXT), share_text(a, f.sink));
    else y = line(in, y, "cell", viz_fg(VIZ_DIM), "-");
    if (known) {
        (void)snprintf(text, sizeof text, in.w >= 30 ? "sink %s  cut %s" : "sink %s cut %s", viz_percent_text(a, f.sink, in.w >= 26), viz_percent_text(b, f.cut, in.w >= 26));
        y = line(in, y, in.w >= 30 ? "this q" : "q", viz_fg(f.cut > 0.1 ? VIZ_WARN : VIZ_TEXT), text);
    }
    contexts(app, in, y);
}

/* --- the row ------------------------------------------------------------------------------------------------------------------------ */

static void draw_row(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char title[64], note[40] = "", a[24], text[48];
    int32_t n, top[TOP_MAX];
    const float *row = tui_map_row(app, &n);
    const int32_t q = app->cursor.query, span = tui_map_plan_span(app, app->cursor.layer, app->cursor.head);
    tui_view_state *v = vars(app);
    tui_row_figures f;
    const bool known = tui_map_row_figures(app, &f), u8 = app->caps.utf8;
    (void)snprintf(title, sizeof title, rect.w >= 34 ? "Keys of query %d" : "Keys of q %d", q);
    if (known && rect.w >= 34) (void)snprintf(note, sizeof note, "cut %s", viz_percent_text(a, f.cut, 1));
    viz_pane in = viz_box(viz_pane_of(c, rect), q >= 0 ? title : "Keys", note, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!row) {
        viz_text(in, 0, 0, viz_fg(VIZ_DIM), "-");
        return;
    }
    const int room = in.h > 4 ? in.h - 1 : in.h;
    const int32_t k = tui_map_top(row, n, top, TOP_MAX);
    if (v->v[V_ROW_AT] >= k) v->v[V_ROW_AT] = k - 1;
    int32_t first = focus && v->v[V_ROW_AT] >= room ? (int32_t)v->v[V_ROW_AT] - room + 1 : 0;
    for (int y = 0; y < room && first + y < k; y++) {
        const int32_t j = top[first + y];
        const bool sees = !span || moa_sees(span, q, j);
        const int num = 6;
        viz_text_cut(in, y, 0, 7, viz_fg(VIZ_TEXT), share_text(a, (double)row[j]));
        (void)snprintf(text, sizeof text, "%d", j);
        viz_text_right(in, y, 7, num, viz_fg(VIZ_DIM), text);
        (void)put_piece(app, in, y, 8 + num, in.w - num - 10, viz_fg(sees ? VIZ_TEXT : VIZ_DIM), j);
        viz_text(in, y, in.w - 1, viz_bold(sees ? VIZ_GOOD : VIZ_BAD), sees ? (u8 ? "✓" : "+") : u8 ? "✗" : "x");
        if (j == app->cursor.key) viz_restyle(in, y, 0, 1, in.w, VIZ_BG_SELECT, 0);
        if (focus && first + y == v->v[V_ROW_AT]) {
            viz_restyle(in, y, 0, 1, in.w, VIZ_BG_SELECT, VIZ_A_BOLD);
            viz_cursor(in, y, 0);
        }
    }
    if (room == in.h) return;
    int x = viz_text(in, in.h - 1, 0, viz_fg(VIZ_FAINT), u8 ? "✓ kept ✗ cut" : "+ kept x cut");
    if (known && in.w >= 24) viz_printf(in, in.h - 1, x + 1, viz_fg(f.cut > 0.1 ? VIZ_WARN : VIZ_DIM), "%s", viz_percent_text(a, f.cut, 1));
    if (known && in.w >= 32) viz_text(in, in.h - 1, x + 8, viz_fg(VIZ_FAINT), "without mask");
}

/* --- distances ------------------------------------------------------------------------------------------------------------------------ */

static void cdf_axis(viz_pane in, int y, int x0, int w, double top) {
    char a[16];
    int free_from = 0;
    for (int64_t d = 64; (double)d <= top; d *= 4) {
        const int x = (int)(log((double)d / 64) / log(top / 64) * (w - 1) + 0.5);
        viz_short_text(a, d);
        if (x < free_from || x + (int)strlen(a) > w) continue;
        viz_text(in, y, x0 + x, viz_fg(VIZ_DIM), a);
        free_from = x + (int)strlen(a) + 1;
    }
}

static void draw_cdf(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    const tui_run *truth = tui_truth(app);
    const int32_t layer = app->cursor.layer, head = app->cursor.head, span = tui_map_plan_span(app, layer, head);
    int32_t n_bin = 0;
    const float *h = tui_run_hist(truth, layer, head, &n_bin);
    char a[24], b[24], text[96];
    viz_pane in = viz_box(viz_pane_of(c, rect), "Mass by distance", rect.w >= 34 ? "log scale" : NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    if (!h || n_bin < 1) {
        viz_text_cut(in, 0, 0, in.w, viz_fg(VIZ_DIM), "Nothing was measured: R runs.");
        return;
    }
    const int x0 = 5, w = in.w - x0, rows = in.h >= 10 ? in.h - 4 : in.h > 4 ? in.h - 3 : in.h - 1;
    const double top = n_bin > 1 ? 64.0 * n_bin : 128;
    float *cum = malloc((size_t)w * sizeof *cum);
    if (!cum || rows < 1) {
        free(cum);
        return;
    }
    int edge = -1;
    for (int i = 0; i < w; i++) {
        const double d = 64 * pow(top / 64, w > 1 ? (double)i / (w - 1) : 1);
        cum[i] = (float)moa_coverage(h, n_bin, MOA_SINK_TOK + moa_roundup64((int32_t)d));
        if (span && d <= (double)moa_window(span)) edge = i;
    }
    viz_columns(in, 0, x0, rows, w, viz_fg(VIZ_CAT1), cum, w, 0, 1);
    viz_text(in, 0, 0, viz_fg(VIZ_DIM), "100%");
    if (rows > 1) viz_text(in, rows - 1, 2, viz_fg(VIZ_DIM), "0%");
    for (int y = 0; edge >= 0 && edge < w && y < rows; y++) {
        const bool full = (double)cum[edge] * rows >= rows - y && app->caps.utf8;
        viz_text(in, y, x0 + edge, (viz_style){VIZ_EDGE, full ? VIZ_CAT1 : VIZ_DEFAULT, VIZ_A_BOLD}, app->caps.utf8 ? "▏" : "|");
    }
    cdf_axis(in, rows, x0, w, top);
    (void)snprintf(text, sizeof text, "sink %s  span keeps %s", viz_percent_text(a, moa_coverage(h, n_bin, MOA_SINK_TOK), 1),
                   viz_percent_text(b, span ? moa_coverage(h, n_bin, span) : (double)NAN, 1));
    if (rows + 1 < in.h) viz_text_cut(in, rows + 1, 0, in.w, viz_fg(VIZ_TEXT), text);
    const int32_t s95 = moa_coverage_span(h, n_bin, 0.95), s99 = moa_coverage_span(h, n_bin, 0.99);
    (void)snprintf(text, sizeof text, "95%% needs %s  99%% %s", viz_count_text(a, s95), viz_count_text(b, s99));
    if (rows + 2 < in.h) viz_text_cut(in, rows + 2, 0, in.w, viz_fg(VIZ_DIM), text);
    (void)snprintf(text, sizeof text, "%s #%d, all queries", truth->dense ? "full attention" : tui_run_saw_all(truth) ? "run" : "windowed run", truth->number);
    if (rows + 3 < in.h) viz_text_cut(in, rows + 3, 0, in.w, viz_fg(VIZ_FAINT), text);
    free(cum);
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    tui_view_state *v = vars(app);
    const int focus = v->focus;
    tui_map_window w;
    if (!viz_rect_empty(p[TUI_MAP_MAP]) && v->v[V_INFLUENCE]) tui_influence_draw(app, c, p[TUI_MAP_MAP], focus == TUI_MAP_MAP, v->v[V_SIGNED] != 0);
    else if (!viz_rect_empty(p[TUI_MAP_MAP]) && v->v[V_TEXT]) v->v[V_TEXT] = 1 + tui_text_draw(app, c, p[TUI_MAP_MAP], focus == TUI_MAP_MAP);
    else if (!viz_rect_empty(p[TUI_MAP_MAP])) draw_map(app, c, p[TUI_MAP_MAP], focus == TUI_MAP_MAP);
    if (!viz_rect_empty(p[TUI_MAP_CURSOR])) {
        (void)tui_map_window_of(app, vars(app), map_pane(app), &w);
        draw_cursor_pane(app, c, p[TUI_MAP_CURSOR], focus == TUI_MAP_CURSOR, &w.geo);
    }
    if (viz_rect_empty(p[TUI_MAP_ROW])) return;
    if (v->v[V_SIDE]) draw_cdf(app, c, p[TUI_MAP_ROW], focus == TUI_MAP_ROW);
    else draw_row(app, c, p[TUI_MAP_ROW], focus == TUI_MAP_ROW);
}

/* --- moving ------------------------------------------------------------------------------------------------------------------------- */


static bool in_row_list(tui_app *app) { return vars(app)->focus == TUI_MAP_ROW && !vars(app)->v[V_SIDE]; }

/* the n-th line of the list becomes the cursor's key */
static void row_to(tui_app *app, int64_t at) {
    int32_t n, top[TOP_MAX];
    const float *row = tui_map_row(app, &n);
    if (!row) return;
    const int32_t k = tui_map_top(row, n, top, TOP_MAX);
    if (at >= k) at = k - 1;
    if (at < 0) at = 0;
    vars(app)->v[V_ROW_AT] = at;
    app->cursor.key = top[at];
    refresh(app);
}

static int32_t middle(int32_t first, int32_t end) { return first + (end - first - 1) / 2; }

/* by cells of the screen: tokens when zoomed in */
static moa_status move_by(tui_app *app, int dq, int dk, moa_err *err) {
    tui_map_window w;
    tui_view_state *v = vars(app);
    if (!tui_map_window_of(app, v, map_pane(app), &w)) return moa_fail(err, MOA_E_FAILED, "%s", missing(app));
    if (dq && in_row_list(app)) {
        row_to(app, v->v[V_ROW_AT] + dq);
        return MOA_OK;
    }
    if (v->v[V_TEXT] && !v->v[V_INFLUENCE]) { /* the cursor goes over the text */
        v->v[V_FOLLOW_OFF] = 1;
        tui_text_move(app, (int)v->v[V_TEXT] - 1, dq, dk);
        return MOA_OK;
    }
    tui_cursor *c = &app->cursor;
    const int32_t q0 = w.level ? (int32_t)v->v[V_Q0] : 0, k0 = w.level ? (int32_t)v->v[V_K0] : w.k.lo;
    const viz_axis q = viz_axis_of(q0, q0 + w.n_q, w.n_q < w.q.cells ? w.n_q : w.q.cells, w.q.cells, w.geo.half);
    const viz_axis k = viz_axis_of(k0, k0 + w.n_k, w.n_k < w.k.cells ? w.n_k : w.k.cells, w.k.cells, w.level > w.levels ? TUI_MAP_VALUE_CELLS : 2);
    const int32_t n = w.q.hi;
    if (dq) {
        /* rows of cells: with half blocks two map rows; beyond the window by as many tokens as a row has here */
        const int row = viz_axis_cell(&q, c->query) / w.geo.half;
        const int to = (row + dq) * w.geo.half, in = to >= 0 && to < q.cells;
        const int32_t each = viz_axis_end(&q, w.geo.half - 1 < q.cells ? w.geo.half - 1 : 0) - q.t0;
        int64_t t = in ? middle(viz_axis_first(&q, to), viz_axis_end(&q, to + w.geo.half - 1 < q.cells ? to + w.geo.half - 1 : to)) : (int64_t)c->query + (int64_t)dq * each;
        c->query = (int32_t)(t < 0 ? 0 : t >= n ? n - 1 : t);
        v->v[V_FOLLOW_OFF] = 1;
    }
    if (dk && c->key < w.k.lo) c->key = dk > 0 ? k.t0 : 0; /* out of the sink's gutter */
    else if (dk) {
        const int col = viz_axis_bucket_of_cell(&k, viz_axis_cell(&k, c->key)) + dk;
        const int32_t each = viz_axis_bucket_end(&k, 0) - k.t0;
        int64_t t = col >= 0 && col < viz_axis_buckets(&k) ? middle(viz_axis_bucket_first(&k, col), viz_axis_bucket_end(&k, col)) : (int64_t)c->key + (int64_t)dk * each;
        if (t < w.k.lo) t = w.geo.gutter ? 0 : w.k.lo;
        c->key = (int32_t)(t >= n ? n - 1 : t);
    }
    if (c->key > c->query) c->key = c->query;
    refresh(app);
    return MOA_OK;
}

static moa_status go_left(tui_app *app, const tui_args *a, moa_err *err) { return move_by(app, 0, -tui_times(a), err); }
static moa_status go_right(tui_app *app, const tui_args *a, moa_err *err) { return move_by(app, 0, tui_times(a), err); }
static moa_status go_up(tui_app *app, const tui_args *a, moa_err *err) { return move_by(app, -tui_times(a), 0, err); }
static moa_status go_down(tui_app *app, const tui_args *a, moa_err *err) { return move_by(app, tui_times(a), 0, err); }
static moa_status page_up(tui_app *app, const tui_args *a, moa_err *err) { return move_by(app, -10 * tui_times(a), 0, err); }
static moa_status page_down(tui_app *app, const tui_args *a, moa_err *err) { return move_by(app, 10 * tui_times(a), 0, err); }

static moa_status go_to(tui_app *app, int32_t query, int32_t key) {
    const int32_t n = tui_map_n(app);
    if (n < 1) return MOA_OK;
    app->cursor.query = query < 0 ? 0 : query >= n ? n - 1 : query;
    app->cursor.key = key < 0 ? 0 : key > app->cursor.query ? app->cursor.query : key;
    vars(app)->v[V_FOLLOW_OFF] = query < n - 1;
    refresh(app);
    return MOA_OK;
}
static moa_status first_query(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    return go_to(app, 0, app->cursor.key);
}
static moa_status last_query(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    return go_to(app, INT32_MAX, app->cursor.key);
}
static moa_status first_key(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    return go_to(app, app->cursor.query, 0);
}
static moa_status last_key(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    return go_to(app, app->cursor.query, app->cursor.query);
}
/* to the first key inside the window, where what is lost begins */
static moa_status edge_key(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    const int32_t span = tui_map_plan_span(app, app->cursor.layer, app->cursor.head);
    if (!span) return moa_fail(err, MOA_E_FAILED, "there is no plan");
    return go_to(app, app->cursor.query, moa_window_first(span, app->cursor.query));
}
static moa_status run_at(tui_app *app, const tui_args *a, moa_err *err) {
    int q, k;
    if (a->argc != 2 || sscanf(a->argv[0], "%d", &q) != 1 || sscanf(a->argv[1], "%d", &k) != 1) return moa_fail(err, MOA_E_USAGE, "usage: at QUERY KEY");
    return go_to(app, q, k);
}

static void head_by(tui_app *app, int layers, int heads) { tui_cursor_move(app, app->cursor.layer + layers, app->cursor.head + heads); }
static moa_status head_left(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    head_by(app, 0, -tui_times(a));
    return MOA_OK;
}
static moa_status head_right(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    head_by(app, 0, tui_times(a));
    return MOA_OK;
}
static moa_status layer_up(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    head_by(app, -tui_times(a), 0);
    return MOA_OK;
}
static moa_status layer_down(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    head_by(app, tui_times(a), 0);
    return MOA_OK;
}

/* --- zoom and modes ------------------------------------------------------------------------------------------------------------------ */

static moa_status zoom_by(tui_app *app, int by, moa_err *err) {
    tui_map_window w, to;
    tui_view_state *v = vars(app);
    if (!tui_map_window_of(app, v, map_pane(app), &w)) return moa_fail(err, MOA_E_FAILED, "%s", missing(app));
    v->v[V_LEVEL] += by;
    if (v->v[V_LEVEL] > w.last) v->v[V_LEVEL] = w.last;
    if (v->v[V_LEVEL] < 0) v->v[V_LEVEL] = 0;
    (void)tui_map_window_of(app, v, map_pane(app), &to);
    const int32_t q0 = w.level ? (int32_t)v->v[V_Q0] : 0, k0 = w.level ? (int32_t)v->v[V_K0] : w.k.lo;
    v->v[V_Q0] = viz_zoom_around(&to.q, to.n_q, q0, w.n_q, app->cursor.query);
    v->v[V_K0] = viz_zoom_around(&to.k, to.n_k, k0, w.n_k, app->cursor.key);
    refresh(app);
    return MOA_OK;
}
static moa_status zoom_in(tui_app *app, const tui_args *a, moa_err *err) { return zoom_by(app, tui_times(a), err); }
static moa_status zoom_out(tui_app *app, const tui_args *a, moa_err *err) { return zoom_by(app, -tui_times(a), err); }
static moa_status zoom_whole(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return zoom_by(app, -1000, err);
}
static moa_status enter(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    if (!in_row_list(app)) return zoom_by(app, 2, err);
    row_to(app, vars(app)->v[V_ROW_AT]);
    vars(app)->focus = TUI_MAP_MAP;
    return MOA_OK;
}

static moa_status turn_pool(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    vars(app)->v[V_MAX] ^= 1;
    tui_say(app, TUI_INFO, vars(app)->v[V_MAX] ? "Cells show their largest single A" : "Cells show their mass: the sum over keys, the mean over queries");
    return MOA_OK;
}
static moa_status turn_scale(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    static const char *const what[] = {"lift: mass compared with uniform attention, log scale", "log of the mass", "the mass itself", "the rank among all cells"};
    vars(app)->v[V_SCALE] = (vars(app)->v[V_SCALE] + 1) % VIZ_SCALE_COUNT;
    tui_say(app, TUI_INFO, "Shades show %s", what[vars(app)->v[V_SCALE]]);
    return MOA_OK;
}
static moa_status turn_range(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    tui_view_state *v = vars(app);
    v->v[V_RANGE] = own_range(v) ? TUI_RANGE_FIXED : TUI_RANGE_OWN;
    tui_say(app, TUI_INFO, own_range(v) ? "Shades span this map's own range" : "Shades span a fixed range: heads can be compared");
    return MOA_OK;
}
static moa_status turn_sink(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    tui_view_state *v = vars(app);
    v->v[V_SINK] = (v->v[V_SINK] + 1) % TUI_SINK_N;
    tui_say(app, TUI_INFO, "Sink (keys 0 to 63): %s", tui_map_sink_name((int)v->v[V_SINK]));
    refresh(app);
    return MOA_OK;
}
static moa_status turn_overlay(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    vars(app)->v[V_OVERLAY_OFF] ^= 1;
    return MOA_OK;
}
static moa_status turn_mask(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    tui_view_state *v = vars(app);
    v->v[V_NO_MASK] ^= 1;
    tui_say(app, TUI_INFO, v->v[V_NO_MASK] ? "Without the run's mask: what q and k of this run would attend to, all keys visible" : "With the run's own mask: what it attended to");
    refresh(app);
    return MOA_OK;
}
static moa_status turn_influence(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    vars(app)->v[V_INFLUENCE] ^= 1;
    tui_say(app, TUI_INFO, vars(app)->v[V_INFLUENCE] ? "Influence: how the loss changes, to first order, without a block of 64 x 64" : "Attention");
    return MOA_OK;
}
static moa_status turn_signed(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    vars(app)->v[V_INFLUENCE] = 1;
    vars(app)->v[V_SIGNED] ^= 1;
    return MOA_OK;
}
static moa_status turn_follow(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    vars(app)->v[V_FOLLOW_OFF] ^= 1;
    tui_say(app, TUI_INFO, vars(app)->v[V_FOLLOW_OFF] ? "The cursor stays" : "The cursor goes with the newest token");
    refresh(app);
    return MOA_OK;
}
static void side(tui_app *app, int which, bool focus) {
    tui_view_state *v = vars(app);
    const bool small = tui_layout_size(app->canvas->rows, app->canvas->cols) == TUI_SMALL;
    const bool on = v->focus == TUI_MAP_ROW && v->v[V_SIDE] == which;
    if (!focus && !small) { /* d turns the side pane over and leaves the focus */
        v->v[V_SIDE] = !v->v[V_SIDE];
        return;
    }
    v->v[V_SIDE] = which;
    v->focus = on ? TUI_MAP_MAP : TUI_MAP_ROW;
    if (!on) v->v[V_ROW_AT] = 0;
}
static moa_status show_row(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    side(app, 0, true);
    refresh(app);
    return MOA_OK;
}
static moa_status show_text(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    tui_view_state *v = vars(app);
    v->v[V_TEXT] = !v->v[V_TEXT];
    v->focus = TUI_MAP_MAP;
    refresh(app);
    return MOA_OK;
}
static moa_status show_cdf(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    side(app, 1, false);
    return MOA_OK;
}

/* --- search ---------------------------------------------------------------------------------------------------------------------------- */

static int lower(int c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

/* positions whose text, together with what follows, begins with the needle; blanks before it do not count */
static bool matches(const tui_run *r, int32_t pos, int32_t n, const char *needle) {
    const char *w = needle;
    bool begun = false;
    for (int32_t t = pos; t < n && *w; t++) {
        size_t len;
        const char *s = tui_run_piece(r, t, &len);
        for (size_t i = 0; i < len && *w; i++) {
            if (!begun && t == pos && (s[i] == ' ' || s[i] == '\n')) continue;
            if (lower((unsigned char)s[i]) != lower((unsigned char)*w)) return false;
            begun = true;
            w++;
        }
        if (!begun) return false;
    }
    return *w == 0 && begun;
}

static bool search(tui_app *app, const char *needle, int dir, int *n_match) {
    const tui_run *r = run_of(app);
    const int32_t n = tui_map_n(app), here = app->cursor.key;
    int32_t found = -1;
    int count = 0;
    if (n < 1 || !*needle) return false;
    for (int32_t t = 0; t < n; t++) count += matches(r, t, n, needle);
    for (int32_t i = 1; i <= n && found < 0; i++) {
        const int32_t t = (int32_t)((((int64_t)here + (int64_t)dir * i) % n + n) % n);
        if (matches(r, t, n, needle)) found = t;
    }
    *n_match = count;
    if (found < 0) return false;
    (void)go_to(app, found > app->cursor.query ? found : app->cursor.query, found);
    return true;
}

/* --- events ------------------------------------------------------------------------------------------------------------------------------ */

static void event(tui_app *app, int what) {
    tui_view_state *v = vars(app);
    if (what == TUI_EV_STARTED || what == TUI_EV_LOADED) {
        app->map.there = app->row.there = false; /* of tokens that are no more */
        v->v[V_LEVEL] = 0;
        v->v[V_FOLLOW_OFF] = 0;
        if (app->cursor.key == 0) app->cursor.key = app->cursor.query;
    }
    if (!shown(app)) return;
    const bool running = app->slot_running >= 0;
    /* the row of every FOLLOW_EACH-th token: a row makes the engine send the map once more, so one for every token would slow it down */
    if (what == TUI_EV_MAP && running && !v->v[V_FOLLOW_OFF] && app->map.there && app->map.n_past - 1 - app->cursor.query >= FOLLOW_EACH) {
        app->cursor.query = app->map.n_past - 1;
        tui_map_ask_row(app);
    }
    if (what == TUI_EV_CURSOR || what == TUI_EV_PLAN || what == TUI_EV_STARTED || what == TUI_EV_DONE) refresh(app);
    if ((what == TUI_EV_PAGES || what == TUI_EV_STATS || what == TUI_EV_TOKEN) && !app->map.there && !app->map_waiting) refresh(app); /* the first one of a run */
}

static const tui_command commands[] = {
    {"left", "h Left", NULL, "one cell to the left", NULL, NULL, TUI_CMD_COUNT, go_left, NULL},
    {"right", "l Right", NULL, "one cell to the right", NULL, NULL, TUI_CMD_COUNT, go_right, NULL},
    {"up", "k Up", NULL, "one row up (in the list: the key before)", NULL, NULL, TUI_CMD_COUNT, go_up, NULL},
    {"down", "j Down", NULL, "one row down (in the list: the next key)", NULL, NULL, TUI_CMD_COUNT, go_down, NULL},
    {"page up", "PgUp C-b C-u", NULL, "ten rows up", NULL, NULL, TUI_CMD_COUNT, page_up, NULL},
    {"page down", "PgDn C-f C-d", NULL, "ten rows down", NULL, NULL, TUI_CMD_COUNT, page_down, NULL},
    {"query first", "gg", NULL, "the first query", NULL, NULL, 0, first_query, NULL},
    {"query last", "G", NULL, "the newest query", NULL, NULL, 0, last_query, NULL},
    {"key first", "Home", NULL, "key 0", NULL, NULL, 0, first_key, NULL},
    {"key last", "End $", NULL, "the query's own position", NULL, NULL, 0, last_key, NULL},
    {"key edge", "^", NULL, "the first key inside the window", NULL, NULL, 0, edge_key, NULL},
    {"at", NULL, "QUERY KEY", "put the cursor on a query and a key", NULL, NULL, 0, run_at, NULL},
    {"zoom in", "+", NULL, "twice as close around the cursor, down to single tokens and figures", "- zoom", NULL, TUI_CMD_COUNT, zoom_in, NULL},
    {"zoom out", "-", NULL, "half as close", NULL, NULL, TUI_CMD_COUNT, zoom_out, NULL},
    {"zoom whole", "0", NULL, "everything", "whole", NULL, 0, zoom_whole, NULL},
    {"zoom", "Enter", NULL, "four times as close (in the list: to that key)", NULL, NULL, 0, enter, NULL},
    {"row", "e", NULL, "the cursor's query key by key, largest first; again: back to the map", "row", NULL, 0, show_row, NULL},
    {"text", "t", NULL, "the text tinted by what the query looks at, and what is cut; again: the map", "text", NULL, 0, show_text, NULL},
    {"distances", "d", NULL, "how much of the mass lies within a distance", "distance", NULL, 0, show_cdf, NULL},
    {"mask", "a", NULL, "the run's own mask, or all keys (from the run's q and k)", "mask", NULL, 0, turn_mask, NULL},
    {"pool", "m", NULL, "cells show their mass or their largest A", "mass/max", NULL, 0, turn_pool, NULL},
    {"sink mode", "S", NULL, "sink: split off, shown, renormalised without it, hidden", "sink", NULL, 0, turn_sink, NULL},
    {"overlay", "o", NULL, "the window's edge and dimming, on or off", "window", NULL, 0, turn_overlay, NULL},
    {"scale", "gm", NULL, "shades: lift, log, linear, rank", NULL, NULL, 0, turn_scale, NULL},
    {"range", "gr", NULL, "shades: this map's own range, or a fixed one", NULL, NULL, 0, turn_range, NULL},
    {"follow", "f", NULL, "while tokens come: the cursor goes with the newest, or stays", NULL, NULL, 0, turn_follow, NULL},
    {"png", NULL, "FILE [PIXELS]", "the map as a picture, 8 pixels a value, and words that say what it is", NULL, NULL, 0, save_png, NULL},
    {"influence", "i", NULL, "this head's influence in place of its attention, and back", "influence", NULL, 0, turn_influence, NULL},
    {"influence sign", "gi", NULL, "influence signed or absolute", NULL, NULL, 0, turn_signed, NULL},
    {"head left", "H", NULL, "the head before, same zoom", "L head", NULL, TUI_CMD_COUNT, head_left, NULL},
    {"head right", "L", NULL, "the next head, same zoom", NULL, NULL, TUI_CMD_COUNT, head_right, NULL},
    {"layer up", "K", NULL, "the same head, one layer up", NULL, NULL, TUI_CMD_COUNT, layer_up, NULL},
    {"layer down", "J", NULL, "the same head, one layer down", NULL, NULL, TUI_CMD_COUNT, layer_down, NULL},
    {0},
};

const tui_view tui_view_map = {.name = "map", .title = "Map", .key = '3', .layout = TUI_LAYOUT_MAP, .commands = commands, .draw = draw, .search = search, .enter = refresh, .event = event};
