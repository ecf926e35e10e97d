/* textview.c -- the text itself, tinted by what one query attends to: the map's row of a token, read in place.
 *
 *   The cursor is the query. Every key's ground is its attention times the number of keys it could have gone to: an even share is dark,
 *   a hundred even shares are bright, as in the map. Keys behind the window's edge are faint, and red when they had more than an even share:
 *   that is what the span takes away. The row is exact and has no mask, from the q and k that the newest run left in the engine.
 *
 * Of long texts the LONG tokens around the query are shown: lines are broken anew at each picture. */
#include "tui/textview.h"

#include <math.h>
#include <stdio.h>

#include "tui/flow.h"
#include "tui/mapview.h"
#include "viz/ramp.h"

enum { LONG = 8192 };

typedef struct part {
    const tui_run *r;
    int32_t from, n; /* positions [from, from + n) */
} part;

static part part_of(const tui_app *app) {
    part p = {.r = &app->runs[app->newest]};
    const int32_t n = tui_map_n(app);
    if (n > LONG) p.from = app->cursor.query > LONG * 3 / 4 ? app->cursor.query - LONG * 3 / 4 : 0;
    p.n = n - p.from < LONG ? n - p.from : LONG;
    return p;
}

static bool flow_of(const tui_app *app, const part *p, int w, tui_flow *f) {
    *f = (tui_flow){0};
    return w > 0 && p->n > 0 && tui_flow_tokens(f, p->r, p->from, p->n, true, !app->caps.utf8) && tui_flow_wrap(f, w);
}

static int32_t first_line(const tui_app *app, const part *p, const tui_flow *f, int rows) {
    int32_t first = tui_flow_line_of(f, app->cursor.query - p->from) - rows * 2 / 3;
    if (first > f->n_line - rows) first = f->n_line - rows;
    return first < 0 ? 0 : first;
}

typedef struct ink {
    const tui_app *app;
    const float *row; /* (n_row), or NULL: not there yet */
    int32_t n_row, from, span;
} ink;

static viz_style style_of(void *user, int32_t token) {
    const ink *k = user;
    const int32_t at = token + k->from, query = k->app->cursor.query;
    const viz_depth depth = k->app->caps.depth;
    if (at == query) return (viz_style){VIZ_TEXT, VIZ_BG_SELECT, VIZ_A_BOLD | VIZ_A_UNDERLINE};
    if (at > query || !k->row || at >= k->n_row) return viz_fg(at > query ? VIZ_FAINT : VIZ_DIM);
    const double shares = (double)k->row[at] * k->n_row; /* 1: as much as if it went to all alike */
    if (!moa_sees(k->span, query, at)) return (viz_style){shares > 1 ? VIZ_BAD : VIZ_FAINT, VIZ_DEFAULT, shares > 1 ? VIZ_A_UNDERLINE : 0};
    if (!(shares > 1)) return viz_fg(VIZ_DIM);
    const double t = shares >= 100 ? 1 : log10(shares) / 2;
    if (depth < VIZ_256) return (viz_style){VIZ_TEXT, VIZ_DEFAULT, t > 0.5 ? VIZ_A_BOLD | VIZ_A_UNDERLINE : VIZ_A_BOLD};
    const viz_color ground = viz_ramp_color(k->app->ramp, t, false);
    const int32_t rgb = viz_color_resolve(ground, VIZ_24BIT);
    return (viz_style){viz_rgb(rgb >= 0 && viz_luminance((uint32_t)rgb) > 0.30 ? 0x101418 : 0xe8ecf2), ground, t > 0.5 ? VIZ_A_BOLD : 0};
}

static void click(tui_app *app, int y, int x, int64_t w) {
    const part p = part_of(app);
    tui_flow f;
    if (flow_of(app, &p, (int)(w & 0xffff), &f)) {
        const int32_t at = tui_flow_token_under(&f, first_line(app, &p, &f, (int)(w >> 16)) + y, x);
        if (at >= 0) tui_text_go(app, p.from + at);
    }
    tui_flow_free(&f);
}

void tui_text_go(tui_app *app, int32_t query) {
    const int32_t n = tui_map_n(app);
    if (n == 0) return;
    app->cursor.query = query < 0 ? 0 : query >= n ? n - 1 : query;
    if (app->cursor.key > app->cursor.query) app->cursor.key = app->cursor.query;
    tui_map_ask_row(app);
    tui_dirty(app);
}

void tui_text_move(tui_app *app, int w, int lines, int tokens) {
    const part p = part_of(app);
    int32_t to = app->cursor.query + tokens;
    tui_flow f;
    if (lines && flow_of(app, &p, w, &f)) {
        const int32_t at = app->cursor.query - p.from, line = tui_flow_line_of(&f, at);
        int32_t goal = line + lines, found = -1;
        int x = 0;
        while (x < w && tui_flow_token_under(&f, line, x) != at) x++;
        goal = goal < 0 ? 0 : goal >= f.n_line ? f.n_line - 1 : goal;
        for (x = x == w ? 0 : x; x >= 0 && found < 0; x--) found = tui_flow_token_under(&f, goal, x); /* a short line: its end */
        while (found < 0 && goal > 0 && goal < f.n_line - 1) found = tui_flow_token_under(&f, goal += lines > 0 ? 1 : -1, 0); /* empty ones are passed over */
        if (found >= 0) to = p.from + found;
    }
    if (lines) tui_flow_free(&f);
    tui_text_go(app, to);
}

int tui_text_draw(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char title[96], note[64], cut[16], number[24];
    const part p = part_of(app);
    ink k = {.app = app, .from = p.from, .span = tui_map_plan_span(app, app->cursor.layer, app->cursor.head)};
    k.row = tui_map_row(app, &k.n_row);
    double lost = 0;
    for (int32_t i = 0; k.row && i < k.n_row; i++)
        if (!moa_sees(k.span, app->cursor.query, i)) lost += (double)k.row[i];
    (void)snprintf(title, sizeof title, "L%02d H%02d  what token %s looks at", app->cursor.layer, app->cursor.head, viz_count_text(number, app->cursor.query));
    (void)snprintf(note, sizeof note, "span %d cuts %s", k.span, viz_percent_text(cut, k.row ? lost : (double)NAN, 1));
    viz_pane in = viz_box(viz_pane_of(c, rect), title, (int)(strlen(title) + strlen(note)) + 10 <= rect.w ? note : NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    const viz_pane text = viz_pane_sub(in, 0, 0, in.h - 1, in.w);
    tui_flow f;
    if (flow_of(app, &p, text.w, &f)) {
        tui_flow_draw(&f, text, first_line(app, &p, &f, text.h), style_of, &k);
        tui_hit_add(app, viz_pane_rect(text), click, (int64_t)text.h << 16 | text.w);
    } else viz_text_wrap(text, 0, 0, text.w, text.h, viz_fg(VIZ_DIM), "Nothing has run yet: R runs with full attention, r under the plan.");
    tui_flow_free(&f);
    int x = 0;
    if (app->caps.depth >= VIZ_256) x = viz_legend(in, in.h - 1, 0, app->ramp, "even", "100 times an even share", "");
    viz_text_cut(in, in.h - 1, x ? x + 2 : 0, in.w - x - 2, viz_fg(VIZ_BAD), in.w > 60 ? "red: cut by the plan's span" : "red: cut");
    return text.w;
}
