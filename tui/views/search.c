/* search -- plans found, not guessed: what is measured and computed on the left, what came of it on the right.
 *
 *   1 Calibrate  done 0:12      | front: loss at one length against loss at another, a plan a point
 *       lengths  256,512        | plans: KV kept, predicted loss by length, cross-entropy on held-out items
 *   2 Profile    45%  0:40 left | the selected head: loss by window above, attention mass lost by window below
 *
 * Loss here is the predicted change of the mean cross-entropy against full attention, in nats, from the influence tables. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tui/internal.h"
#include "tui/search.h"

enum { V_ROW, V_AXES, V_TOP }; /* row of the steps; axes of the front: 0 loss against loss, 1 against density; first plan shown */
enum { N_ROW = TUI_STEP_COUNT + TUI_SETTING_COUNT, X_STATE = 13, X_VALUE = 18 };

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_search); }

/* row -> step and setting (-1: the step's own row) */
static void row_of(int row, tui_step *step, int *setting) {
    int at = 0;
    for (int s = 0; s < TUI_STEP_COUNT; s++) {
        *step = (tui_step)s;
        *setting = -1;
        if (at++ == row) return;
        for (int k = 0; k < TUI_SETTING_COUNT; k++)
            if (tui_setting_step((tui_setting)k) == *step) {
                *setting = k;
                if (at++ == row) return;
            }
    }
}

static const char *clock_text(char out[16], double s) {
    if (isnan(s)) (void)snprintf(out, 16, "-");
    else if (s < 9.95) (void)snprintf(out, 16, "%.1f s", s);
    else if (s < 3600) (void)snprintf(out, 16, "%d:%02d", (int)s / 60, (int)s % 60);
    else (void)snprintf(out, 16, "%.1f h", s / 3600);
    return out;
}

/* --- steps and settings ----------------------------------------------------------------------------------------------------- */

static viz_role state_text(tui_app *app, tui_step step, char *out, size_t n) {
    const tui_step_info *i = &app->planner->steps[step];
    const double left = app->planner->running == (int)step ? tui_planner_left(app) : (double)NAN;
    char t[16];
    switch (i->state) {
    case TUI_STEP_RUNS:
        if (step == TUI_STEP_ROUNDS) {
            const tui_rounds *r = app->planner->rounds;
            (void)snprintf(out, n, "%d/%d %.0f%%%s%s%s", r->round - r->first + 1, r->last - r->first + 1, 100 * i->share, isnan(left) ? "" : " ", isnan(left) ? "" : clock_text(t, left), isnan(left) ? "" : " left");
            return VIZ_ACCENT;
        }
        if (isnan(i->share)) (void)snprintf(out, n, "at work %s", clock_text(t, app->now - i->started_at));
        else if (isnan(left)) (void)snprintf(out, n, "%.0f%%", 100 * i->share);
        else (void)snprintf(out, n, "%.0f%%  %s left", 100 * i->share, clock_text(t, left));
        return VIZ_ACCENT;
    case TUI_STEP_DONE:
        if (i->seconds > 0) (void)snprintf(out, n, "done %s", clock_text(t, i->seconds));
        else (void)snprintf(out, n, "done");
        return VIZ_GOOD;
    case TUI_STEP_PART: (void)snprintf(out, n, "stopped, kept"); return VIZ_WARN;
    case TUI_STEP_OLD: (void)snprintf(out, n, "to do again"); return VIZ_WARN;
    case TUI_STEP_FAILED: (void)snprintf(out, n, "failed"); return VIZ_BAD;
    default: (void)snprintf(out, n, "-"); return VIZ_FAINT;
    }
}

static void select_row(viz_pane p, int y, bool focus) {
    viz_restyle(p, y, 0, 1, p.w, VIZ_BG_SELECT, 0);
    if (p.c->caps.depth == VIZ_MONO) viz_text(p, y, 0, viz_bold(VIZ_ACCENT), ">");
    if (focus) viz_cursor(p, y, 1);
}

static void draw_row(tui_app *app, viz_pane in, int y, int row, bool focus) {
    tui_step step;
    int setting;
    char text[160];
    row_of(row, &step, &setting);
    const tui_step_info *i = &app->planner->steps[step];
    if (setting < 0) {
        viz_printf(in, y, 1, i->state == TUI_STEP_RUNS ? viz_bold(VIZ_ACCENT) : viz_bold(VIZ_TITLE), "%d %s", (int)step + 1, tui_step_title(step));
        const viz_role role = state_text(app, step, text, sizeof text);
        viz_text_right(in, y, X_STATE, in.w - X_STATE - 1, viz_fg(role), text);
    } else {
        viz_text_cut(in, y, 4, X_VALUE - 5, viz_fg(VIZ_DIM), tui_setting_name((tui_setting)setting));
        tui_setting_text(app->planner, (tui_setting)setting, text, sizeof text);
        viz_text_cut(in, y, X_VALUE, in.w - X_VALUE - 1, viz_fg(VIZ_TEXT), text);
    }
    if (row == (int)vars(app)->v[V_ROW]) select_row(in, y, focus);
}

static const char *locked_text(const tui_app *app, char out[24]) {
    const tui_planner *p = app->planner;
    int32_t locked = 0;
    for (int32_t k = 0; p->locked && k < app->model.n_layer * app->model.n_head; k++) locked += p->locked[k];
    if (locked == 0) return NULL;
    (void)snprintf(out, 24, "%d locked", locked);
    return out;
}

static void draw_total(tui_app *app, viz_pane in, int y) {
    char t[16], text[96], number[24];
    const char *locked = locked_text(app, number);
    const double whole = tui_planner_whole(app);
    if (!isnan(whole)) (void)snprintf(text, sizeof text, "steps 1 to 4: about %s", clock_text(t, whole));
    else (void)snprintf(text, sizeof text, "A runs steps 1 to 4");
    const int x = 1 + viz_text(in, y, 1, viz_fg(VIZ_DIM), text);
    if (locked && x + (int)strlen(locked) + 2 < in.w) viz_text_right(in, y, x + 1, in.w - x - 2, viz_fg(VIZ_ACCENT), locked);
}

static void click_step(tui_app *app, int y, int x, int64_t row) {
    (void)y, (void)x;
    vars(app)->v[V_ROW] = row;
}

static void click_plan(tui_app *app, int y, int x, int64_t first) {
    (void)x;
    if ((int)first + y < app->planner->n_found + app->planner->n_reference) app->planner->selected = (int)first + y;
}

static void draw_steps(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    const tui_planner *p = app->planner;
    char number[24];
    const char *locked = rect.h - 2 < N_ROW + 1 ? locked_text(app, number) : NULL; /* no room for its row */
    const char *note = locked ? locked : *p->source ? p->source : NULL;
    viz_pane in = viz_pane_of(c, rect);
    if (rect.h == N_ROW + 1) { /* 80x24: every row is there, the frame is not */
        const int x = viz_text(in, 0, 0, viz_bold(focus ? VIZ_FRAME_FOCUS : VIZ_TITLE), "Search");
        if (note) viz_text_right(in, 0, x + 1, in.w - x - 2, viz_fg(VIZ_DIM), note);
        in = viz_pane_sub(in, 1, 0, in.h - 1, in.w);
    } else in = viz_box(in, "Search", note, focus);
    int spare = in.h - N_ROW - 1, y = 0;
    const bool texts = spare >= 2 * TUI_STEP_COUNT, bar = spare >= 1 && p->running >= 0;
    const int first = spare < 0 && vars(app)->v[V_ROW] > N_ROW / 2 ? -spare - 1 : 0; /* few rows: the half with the cursor */
    for (int row = first; row < N_ROW && y < in.h - (spare >= 0); row++) {
        tui_step step;
        int setting;
        row_of(row, &step, &setting);
        if (texts && setting < 0 && row > 0) y++;
        tui_hit_add(app, (viz_rect){in.y + y, in.x, 1, in.w}, click_step, row);
        draw_row(app, in, y++, row, focus);
        if (setting >= 0) continue;
        const tui_step_info *i = &p->steps[step];
        if (bar && p->running == (int)step) viz_bar(in, y++, 3, in.w - 4, i->share, VIZ_BAR);
        if (texts && *i->text && p->running != (int)step) viz_text_cut(in, y++, 3, in.w - 4, viz_fg(i->state == TUI_STEP_FAILED ? VIZ_BAD : VIZ_DIM), i->text);
    }
    if (spare >= 0) draw_total(app, in, in.h - 1);
}

/* --- the plans found ------------------------------------------------------------------------------------------------------------ */

static int n_rows(const tui_planner *p) { return p->n_found + p->n_reference; }

typedef struct columns { /* x of each, 0: not shown */
    int density, loss, n_loss, valid, gap, tried, end;
} columns;

/* the losses shown are those of the longest lengths */
static columns columns_of(const tui_planner *p, int w) {
    columns c = {.density = 10};
    int x = 16;
    bool tried = false;
    for (int i = 0; i < n_rows(p); i++) tried = tried || p->found[i].n_try > 0;
    c.n_loss = p->n_found_length;
    while (c.n_loss > 1 && x + 8 * c.n_loss + (tried ? 16 : 8) > w) c.n_loss--;
    c.loss = x;
    x += 8 * c.n_loss;
    c.valid = x, x += 8;
    if (tried && x + 8 <= w) c.tried = x, x += 8;
    if (x + 8 <= w) c.gap = x, x += 8;
    c.end = x;
    return c;
}

static void plans_header(const tui_planner *p, viz_pane in, const columns *c) {
    char text[32];
    viz_text(in, 0, 2, viz_fg(VIZ_DIM), "plan");
    viz_text_right(in, 0, c->density, 5, viz_fg(VIZ_DIM), "KV");
    for (int k = 0; k < c->n_loss; k++) {
        (void)snprintf(text, sizeof text, "@%d", p->found_lengths[p->n_found_length - c->n_loss + k]);
        viz_text_right(in, 0, c->loss + 8 * k, 8, viz_fg(VIZ_DIM), text);
    }
    viz_text_right(in, 0, c->valid, 8, viz_fg(VIZ_DIM), "valid");
    if (c->tried) viz_text_right(in, 0, c->tried, 8, viz_fg(VIZ_DIM), "passkey");
    if (c->gap) viz_text_right(in, 0, c->gap, 8, viz_fg(VIZ_DIM), "gap");
}

static void plans_row(tui_app *app, viz_pane in, int y, int k, const columns *c, bool focus) {
    const tui_planner *p = app->planner;
    const tui_found *f = &p->found[k];
    const int last = p->n_found_length - 1;
    char t[24], text[32];
    const bool best = k == p->best, reference = k >= p->n_found;
    viz_text(in, y, 1, viz_bold(VIZ_GOOD), best ? (in.c->caps.utf8 ? "★" : "*") : " ");
    viz_text_cut(in, y, 2, 8, best ? viz_bold(VIZ_GOOD) : viz_fg(reference ? VIZ_DIM : VIZ_TEXT), f->name);
    viz_text_right(in, y, c->density, 5, viz_fg(VIZ_TEXT), viz_percent_text(t, last >= 0 ? f->density[last] : (double)NAN, 0));
    for (int i = 0; i < c->n_loss; i++) viz_text_right(in, y, c->loss + 8 * i, 8, viz_fg(VIZ_TEXT), tui_loss_text(t, f->loss[p->n_found_length - c->n_loss + i]));
    viz_text_right(in, y, c->valid, 8, best ? viz_bold(VIZ_GOOD) : viz_fg(VIZ_TEXT), viz_real_text(t, f->valid, 3));
    (void)snprintf(text, sizeof text, "%d/%d", f->n_right, f->n_try);
    if (c->tried) viz_text_right(in, y, c->tried, 8, viz_fg(VIZ_TEXT), f->n_try ? text : "-");
    if (c->gap) viz_text_right(in, y, c->gap, 8, viz_fg(VIZ_DIM), viz_percent_text(t, f->gap, 2));
    if (k == p->selected) select_row(in, y, focus);
}

static void draw_plans(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    const tui_planner *p = app->planner;
    viz_pane in = viz_box(viz_pane_of(c, rect), "Plans", p->n_found ? "Enter opens" : NULL, focus);
    if (p->n_found == 0) {
        static const char *const lines[] = {"None yet. s: next step, A: all steps.", "Items the model answers, what each head's", "windows cost, plans, held-out items.",
                                            ":help search explains; gL locks heads."};
        for (int i = 0; i < 4 && i < in.h; i++) viz_text_cut(in, i, 1, in.w - 2, viz_fg(VIZ_DIM), lines[i]);
        return;
    }
    const columns cols = columns_of(p, in.w);
    plans_header(p, in, &cols);
    const int shown = in.h - 1;
    int top = (int)vars(app)->v[V_TOP];
    if (p->selected < top) top = p->selected;
    if (p->selected >= top + shown) top = p->selected - shown + 1;
    if (top > n_rows(p) - shown) top = n_rows(p) - shown;
    if (top < 0) top = 0;
    vars(app)->v[V_TOP] = top;
    tui_hit_add(app, (viz_rect){in.y + 1, in.x, shown, in.w}, click_plan, top);
    for (int i = 0; i < shown && top + i < n_rows(p); i++) plans_row(app, in, 1 + i, top + i, &cols, focus);
}

/* --- the front ------------------------------------------------------------------------------------------------------------------- */

typedef struct front {
    double (*x)(const tui_planner *p, const tui_found *f);
    double (*y)(const tui_planner *p, const tui_found *f);
    char title[64];
    double x0, x1, y0, y1;
} front;

static double loss_first(const tui_planner *p, const tui_found *f) { return f->loss[p->n_found_length > 1 ? 0 : 0]; }
static double loss_last(const tui_planner *p, const tui_found *f) { return f->loss[p->n_found_length - 1]; }
static double density_last(const tui_planner *p, const tui_found *f) { return f->density[p->n_found_length - 1]; }
static double valid(const tui_planner *p, const tui_found *f) {
    (void)p;
    return f->valid;
}

static bool any_valid(const tui_planner *p) {
    for (int i = 0; i < p->n_found; i++)
        if (!isnan(p->found[i].valid)) return true;
    return false;
}

static void widen(double *lo, double *hi, double v) {
    if (!isnan(v)) *lo = fmin(*lo, v), *hi = fmax(*hi, v);
}

static front front_of(tui_app *app) {
    const tui_planner *p = app->planner;
    const int n = p->n_found_length;
    const int32_t first = p->found_lengths[0], last = p->found_lengths[n - 1];
    int axes = (int)vars(app)->v[V_AXES] % 3;
    if (axes == 2 && !any_valid(p)) axes = 0;
    if (axes == 0 && n < 2) axes = 1;
    front f = {.x0 = INFINITY, .x1 = -INFINITY, .y0 = INFINITY, .y1 = -INFINITY, .y = loss_last};
    f.x = axes == 0 ? loss_first : axes == 1 ? density_last : loss_last;
    if (axes == 2) f.y = valid;
    if (axes == 0) (void)snprintf(f.title, sizeof f.title, "loss @%d against loss @%d", last, first);
    else if (axes == 1) (void)snprintf(f.title, sizeof f.title, "loss @%d against KV kept", last);
    else (void)snprintf(f.title, sizeof f.title, "held-out cross-entropy against loss @%d", last);
    for (int i = 0; i < (axes == 0 ? p->n_found : n_rows(p)); i++) {
        widen(&f.x0, &f.x1, f.x(p, &p->found[i]));
        widen(&f.y0, &f.y1, f.y(p, &p->found[i]));
    }
    if (!(f.x1 >= f.x0)) f.x0 = 0, f.x1 = 1;
    if (!(f.y1 >= f.y0)) f.y0 = 0, f.y1 = 1;
    const double dx = f.x1 > f.x0 ? 0.08 * (f.x1 - f.x0) : 0.1 * fabs(f.x0) + 1e-9, dy = f.y1 > f.y0 ? 0.08 * (f.y1 - f.y0) : 0.1 * fabs(f.y0) + 1e-9;
    f.x0 -= dx, f.x1 += dx, f.y0 -= dy, f.y1 += dy;
    return f;
}

static void axis_text(char out[24], const front *f, double v, bool x) {
    if (x && f->x == density_last) (void)snprintf(out, 24, "%.0f%%", 100 * v);
    else if (!x && f->y == valid) (void)snprintf(out, 24, "%.3f", v);
    else (void)tui_loss_text(out, v);
}

static void draw_point(tui_app *app, viz_pane plot, const front *f, int k) {
    const tui_planner *p = app->planner;
    const double vx = f->x(p, &p->found[k]), vy = f->y(p, &p->found[k]);
    const bool u8 = plot.c->caps.utf8, reference = k >= p->n_found, here = k == p->selected;
    if (isnan(vx) || isnan(vy)) return;
    int x = (int)((vx - f->x0) / (f->x1 - f->x0) * (plot.w - 1) + 0.5), y = plot.h - 1 - (int)((vy - f->y0) / (f->y1 - f->y0) * (plot.h - 1) + 0.5);
    const bool out = vx > f->x1 || vy > f->y1 || vx < f->x0 || vy < f->y0;
    x = x < 0 ? 0 : x >= plot.w ? plot.w - 1 : x;
    y = y < 0 ? 0 : y >= plot.h ? plot.h - 1 : y;
    const char *glyph = reference ? (k == p->n_found ? "u" : "f") : k == p->best ? (u8 ? "★" : "*") : here ? (u8 ? "◆" : "@") : u8 ? "●" : "o";
    const viz_role role = here ? VIZ_ACCENT : k == p->best ? VIZ_GOOD : reference ? VIZ_DIM : VIZ_BAR;
    if (out) { /* it lies beyond the picture, over there */
        const char *way = u8 ? (vy > f->y1 ? (vx > f->x1 ? "↗" : "↑") : vx > f->x1 ? "→" : vy < f->y0 ? "↓" : "←") : "+";
        if (x == plot.w - 1) x--;
        viz_text(plot, y, x + 1, viz_fg(VIZ_FAINT), way);
    }
    viz_text(plot, y, x, here || k == p->best ? viz_bold(role) : viz_fg(role), glyph);
    if (!here) return;
    const int n = (int)strlen(p->found[k].name);
    viz_text(plot, y, x + 2 + n < plot.w ? x + 2 : x - 1 - n, viz_bold(VIZ_ACCENT), p->found[k].name);
    viz_cursor(plot, y, x);
}

static void draw_front(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    const tui_planner *p = app->planner;
    char t[24];
    if (p->n_found == 0) {
        viz_pane in = viz_box(viz_pane_of(c, rect), "Front", NULL, focus);
        if (p->running == TUI_STEP_SEARCH && p->solver_total > 0) {
            char bound[24], gap[24];
            (void)tui_loss_text(t, p->solver_best);
            (void)tui_loss_text(bound, p->solver_bound);
            viz_printf(in, 0, 1, viz_fg(VIZ_TEXT), "solve %d of %d", p->solver_done + 1 > p->solver_total ? p->solver_total : p->solver_done + 1, p->solver_total);
            viz_printf(in, 1, 1, viz_fg(VIZ_DIM), "best %s, bound %s, gap %s", t, bound,
                       viz_percent_text(gap, p->solver_best > 0 ? (p->solver_best - p->solver_bound) / p->solver_best : (double)NAN, 3));
        } else viz_text_cut(in, 0, 1, in.w - 2, viz_fg(VIZ_DIM), "The plans found, each a point.");
        return;
    }
    const front f = front_of(app);
    viz_pane in = viz_box(viz_pane_of(c, rect), f.title, "x axes", focus);
    const viz_pane plot = viz_pane_sub(in, 0, 8, in.h - 1, in.w - 9);
    if (plot.h < 2 || plot.w < 10) return;
    for (int y = 0; y < plot.h; y++) viz_text(in, y, 7, viz_fg(VIZ_FAINT), c->caps.utf8 ? "│" : "|");
    axis_text(t, &f, f.y1, false);
    viz_text_right(in, 0, 0, 7, viz_fg(VIZ_DIM), t);
    axis_text(t, &f, f.y0, false);
    viz_text_right(in, plot.h - 1, 0, 7, viz_fg(VIZ_DIM), t);
    axis_text(t, &f, f.x0, true);
    viz_text(in, in.h - 1, 8, viz_fg(VIZ_DIM), t);
    axis_text(t, &f, f.x1, true);
    viz_text_right(in, in.h - 1, in.w - 10, 9, viz_fg(VIZ_DIM), t);
    if (in.w > 50) viz_text(in, in.h - 1, in.w / 2 - 8, viz_fg(VIZ_FAINT), "u uniform  f full");
    for (int k = n_rows(p) - 1; k >= 0; k--)
        if (k != p->selected) draw_point(app, plot, &f, k);
    draw_point(app, plot, &f, p->selected);
}

/* --- the selected head ---------------------------------------------------------------------------------------------------------------- */

/* columns of a curve over windows of 1 .. n blocks; the plan's own window stands out */
static void draw_columns(viz_pane p, const float *v, int n, int here, double hi, viz_role role) {
    for (int x = 0; x < p.w; x++) {
        const int i = p.w > 1 ? (int)((int64_t)x * (n - 1) / (p.w - 1)) : 0;
        const float a = fabsf(v[i]);
        const viz_role r = i == here ? VIZ_EDGE : v[i] < 0 ? VIZ_GOOD : role;
        viz_columns(p, 0, x, p.h, 1, viz_fg(r), &a, 1, 0, (float)hi);
        if (v[i] < 0 && p.c->caps.depth == VIZ_MONO) /* told by colour elsewhere */
            for (int y = 0; y < p.h; y++)
                if (viz_canvas_at(p.c, p.y + y, p.x + x)->text[0] != ' ') viz_text(p, y, x, viz_fg(VIZ_GOOD), "-");
    }
}

/* spans under the columns, and an arrow where the plan's own is; where it falls on a figure the figure stands out */
static void curve_axis(viz_pane in, int y, int w, int n, int here) {
    char t[16];
    int stride = 1;
    const int at = here >= 0 && here < n ? n > 1 ? (int)((int64_t)here * (w - 1) / (n - 1)) : 0 : -9;
    bool told = at < 0;
    while (n / stride > (w > 60 ? 8 : 4)) stride *= 2;
    for (int i = 0, end = -2; i < n; i++) {
        const int span = (i + 2) * MOA_PAGE_TOK, x = n > 1 ? (int)((int64_t)i * (w - 1) / (n - 1)) : 0;
        if ((i > 0 && (i + 2) % stride != 0) || x < end + 2 || x + 4 > w) continue;
        const bool on = at >= x && at < x + (int)strlen(viz_short_text(t, span));
        end = x + viz_text(in, y, 8 + x, on ? viz_bold(VIZ_EDGE) : viz_fg(VIZ_FAINT), t);
        told = told || on;
    }
    if (!told) viz_text(in, y, 8 + at, viz_bold(VIZ_EDGE), in.c->caps.utf8 ? "▲" : "^");
}

static void coverage_lost(tui_app *app, float *lost, int n) {
    int32_t n_bin;
    const float *h = tui_run_hist(tui_truth(app), app->cursor.layer, app->cursor.head, &n_bin);
    for (int i = 0; i < n; i++) lost[i] = h ? (float)(1 - moa_coverage(h, n_bin, (i + 2) * MOA_PAGE_TOK)) : NAN;
}

static void draw_head(tui_app *app, viz_pane in, const tui_influence *f, int length_i) {
    const float *curve = f->curve[app->planner->measure];
    const int n = f->nb - 1, w = in.w - 9; /* windows 1 .. nb - 1: with nb nothing is cut */
    float *lost = n > 0 ? malloc((size_t)n * sizeof *lost) : NULL;
    char t[24];
    if (!lost || !curve || w < 8 || in.h < 4) {
        free(lost);
        return;
    }
    const float *v = curve + ((size_t)app->cursor.layer * (size_t)f->n_head + (size_t)app->cursor.head) * (size_t)(f->nb + 1) + 1;
    const int32_t span = app->plan.now ? moa_span(*moa_plan_at(app->plan.now, app->cursor.layer, app->cursor.head), f->n_tok) : f->n_tok;
    const int here = moa_window(span) / MOA_PAGE_TOK - 1, top = (in.h - 1) / 2, under = in.h - 1 - top;
    double hi = 0, hi_lost = 0.01;
    coverage_lost(app, lost, n);
    for (int i = 0; i < n; i++) {
        hi = fmax(hi, fabs((double)v[i]));
        if (!isnan(lost[i])) hi_lost = fmax(hi_lost, (double)lost[i]);
    }
    viz_text_right(in, 0, 0, 7, viz_fg(VIZ_DIM), tui_loss_text(t, hi));
    viz_text_right(in, top - 1, 0, 7, viz_fg(VIZ_DIM), "loss");
    draw_columns(viz_pane_sub(in, 0, 8, top, w), v, n, here, hi > 0 ? hi : 1, VIZ_RUN_B);
    if (!isnan(lost[0])) {
        viz_text_right(in, top, 0, 7, viz_fg(VIZ_DIM), viz_percent_text(t, hi_lost, 0));
        viz_text_right(in, in.h - 2, 0, 7, viz_fg(VIZ_DIM), "cut");
        draw_columns(viz_pane_sub(in, top, 8, under, w), lost, n, here, hi_lost, VIZ_RUN_A);
    } else if (under > 0) viz_text_cut(in, top, 8, w, viz_fg(VIZ_DIM), "coverage: R runs the prompt with full attention");
    curve_axis(in, in.h - 1, w, n, here);
    free(lost);
    (void)length_i;
}

static void draw_curve(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    char title[64], note[64] = "", t[24], b[24];
    const int i = app->planner->n_influence - 1; /* the longest length says most */
    const tui_influence *f = tui_influence_at(app, i);
    (void)snprintf(title, sizeof title, "L%02d H%02d by span", app->cursor.layer, app->cursor.head);
    if (f && app->plan.now) {
        const int32_t span = moa_span(*moa_plan_at(app->plan.now, app->cursor.layer, app->cursor.head), f->n_tok);
        (void)snprintf(note, sizeof note, "span %s @%d: loss %s", viz_count_text(b, span), f->n_tok, tui_loss_text(t, tui_influence_loss(app, i, app->cursor.layer, app->cursor.head, span)));
    }
    viz_pane in = viz_box(viz_pane_of(c, rect), title, *note ? note : NULL, focus);
    if (!f) viz_text_cut(in, 0, 1, in.w - 2, viz_fg(VIZ_DIM), "Loss by window of this head, after step 2.");
    else draw_head(app, in, f, i);
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    const int focus = vars(app)->focus;
    if (!app->planner) return;
    if (!viz_rect_empty(p[TUI_SEARCH_STEPS])) draw_steps(app, c, p[TUI_SEARCH_STEPS], focus == TUI_SEARCH_STEPS);
    if (!viz_rect_empty(p[TUI_SEARCH_FRONT])) draw_front(app, c, p[TUI_SEARCH_FRONT], focus == TUI_SEARCH_FRONT);
    if (!viz_rect_empty(p[TUI_SEARCH_CURVE])) draw_curve(app, c, p[TUI_SEARCH_CURVE], focus == TUI_SEARCH_CURVE);
    if (!viz_rect_empty(p[TUI_SEARCH_PLANS])) draw_plans(app, c, p[TUI_SEARCH_PLANS], focus == TUI_SEARCH_PLANS);
}

/* --- keys --------------------------------------------------------------------------------------------------------------------------- */

static void select_plan(tui_app *app, int to) {
    tui_planner *p = app->planner;
    const int n = n_rows(p);
    p->selected = to >= n ? n - 1 : to;
    if (p->selected < 0) p->selected = 0;
    tui_dirty(app);
}

static moa_status move(tui_app *app, int down, int right) {
    tui_view_state *v = vars(app);
    if (v->focus == TUI_SEARCH_PLANS || v->focus == TUI_SEARCH_FRONT) select_plan(app, app->planner->selected + down + right);
    else if (v->focus == TUI_SEARCH_CURVE) tui_cursor_move(app, app->cursor.layer + down, app->cursor.head + right);
    else if (down) {
        const int64_t to = v->v[V_ROW] + down;
        v->v[V_ROW] = to < 0 ? 0 : to >= N_ROW ? N_ROW - 1 : to;
    } else {
        tui_step step;
        int setting;
        row_of((int)v->v[V_ROW], &step, &setting);
        if (setting >= 0) tui_setting_turn(app, (tui_setting)setting, right > 0 ? 1 : -1);
    }
    return MOA_OK;
}

static moa_status go_up(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return move(app, -tui_times(a), 0);
}
static moa_status go_down(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return move(app, tui_times(a), 0);
}
static moa_status go_left(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return move(app, 0, -tui_times(a));
}
static moa_status go_right(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return move(app, 0, tui_times(a));
}
static moa_status go_first(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    return move(app, -4096, 0);
}
static moa_status go_last(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    return move(app, 4096, 0);
}
static moa_status head_left(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    tui_cursor_move(app, app->cursor.layer, app->cursor.head - tui_times(a));
    return MOA_OK;
}
static moa_status head_right(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    tui_cursor_move(app, app->cursor.layer, app->cursor.head + tui_times(a));
    return MOA_OK;
}
static moa_status layer_up(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    tui_cursor_move(app, app->cursor.layer - tui_times(a), app->cursor.head);
    return MOA_OK;
}
static moa_status layer_down(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    tui_cursor_move(app, app->cursor.layer + tui_times(a), app->cursor.head);
    return MOA_OK;
}

/* the selected plan becomes the plan being edited, as one step of its history */
static moa_status open_plan(tui_app *app, moa_err *err) {
    const tui_planner *p = app->planner;
    char what[64];
    if (p->n_found == 0) return moa_fail(err, MOA_E_FAILED, "there is no plan yet; s runs the next step, A all of them");
    const tui_found *f = &p->found[p->selected];
    (void)snprintf(what, sizeof what, "%s of the search", f->name);
    const moa_status s = tui_plan_set_all(app, f->plan, what, err);
    if (s == MOA_OK) tui_say(app, TUI_GOOD, "%s is the plan now (u takes it back): r runs it, W writes it", f->name);
    return s;
}

static moa_status enter(tui_app *app, const tui_args *a, moa_err *err) {
    tui_step step;
    int setting;
    char key[48], line[96];
    (void)a;
    if (vars(app)->focus != TUI_SEARCH_STEPS) return open_plan(app, err);
    row_of((int)vars(app)->v[V_ROW], &step, &setting);
    if (setting < 0) return tui_planner_start(app, step, err);
    tui_setting_key((tui_setting)setting, key, sizeof key);
    (void)snprintf(line, sizeof line, "step set %s ", key);
    tui_line_start_command(app, line);
    return MOA_OK;
}

static moa_status next_step(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return tui_planner_next(app, err);
}
static moa_status all_steps(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return tui_planner_all(app, err);
}
static moa_status more_rounds(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return tui_planner_rounds(app, err);
}
static moa_status try_step(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    return tui_planner_start(app, TUI_STEP_TRY, err);
}
static moa_status turn_axes(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a, (void)err;
    tui_view_state *v = vars(app);
    v->v[V_AXES] = (v->v[V_AXES] + 1) % (any_valid(app->planner) ? 3 : 2);
    return MOA_OK;
}

static const tui_command commands[] = {
    {"next step", "s", NULL, "run the next step that is not done", "step", NULL, 0, next_step, NULL},
    {"all steps", "A", NULL, "run all steps that are not done, to the validated plan", "all", NULL, 0, all_steps, NULL},
    {"rounds", "o", NULL, "rounds: profile under the best plan, search near it, validate, again", "rounds", NULL, 0, more_rounds, NULL},
    {"try", "t", NULL, "passkey under the best plan, uniform windows as large, full attention", "passkey", NULL, 0, try_step, NULL},
    {"enter", "Enter", NULL, "run this step, type this setting, or make this plan the one being edited", "run/set/open", NULL, 0, enter, NULL},
    {"up", "k Up", NULL, "the row, plan or layer above", NULL, NULL, TUI_CMD_COUNT, go_up, NULL},
    {"down", "j Down", NULL, "the row, plan or layer below", NULL, NULL, TUI_CMD_COUNT, go_down, NULL},
    {"less", "h Left -", NULL, "less of this setting; the plan or head before", NULL, NULL, TUI_CMD_COUNT, go_left, NULL},
    {"more", "l Right +", NULL, "more of this setting; the next plan or head", "change", NULL, TUI_CMD_COUNT, go_right, NULL},
    {"first", "gg Home", NULL, "the first row", NULL, NULL, 0, go_first, NULL},
    {"last", "G End", NULL, "the last row", NULL, NULL, 0, go_last, NULL},
    {"axes", "x", NULL, "other axes for the front", NULL, NULL, 0, turn_axes, NULL},
    {"head left", "H", NULL, "the head before", "L head", NULL, TUI_CMD_COUNT, head_left, NULL},
    {"head right", "L", NULL, "the next head", NULL, NULL, TUI_CMD_COUNT, head_right, NULL},
    {"layer up", "K", NULL, "the same head, one layer up", NULL, NULL, TUI_CMD_COUNT, layer_up, NULL},
    {"layer down", "J", NULL, "the same head, one layer down", NULL, NULL, TUI_CMD_COUNT, layer_down, NULL},
    {0},
};

const tui_view tui_view_search = {.name = "search", .title = "Search", .key = '8', .layout = TUI_LAYOUT_SEARCH, .commands = commands, .draw = draw};
