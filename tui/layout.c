/* layout.c -- where everything goes. Pure. */
#include "tui/layout.h"

#include <string.h>

tui_size tui_layout_size(int rows, int cols) {
    if (rows >= 46 && cols >= 180) return TUI_LARGE;
    if (rows >= 30 && cols >= 110) return TUI_WIDE;
    if (rows >= 22 && cols >= 76) return TUI_NORMAL;
    if (rows >= 16 && cols >= 60) return TUI_SMALL;
    return TUI_TINY;
}

viz_rect tui_cut_top(viz_rect *r, int h, int gap) {
    if (h > r->h) h = r->h;
    if (h < 0) h = 0;
    viz_rect out = {r->y, r->x, h, r->w};
    const int used = h + gap < r->h ? h + gap : r->h;
    r->y += used;
    r->h -= used;
    return out;
}

viz_rect tui_cut_bottom(viz_rect *r, int h, int gap) {
    if (h > r->h) h = r->h;
    if (h < 0) h = 0;
    viz_rect out = {r->y + r->h - h, r->x, h, r->w};
    const int used = h + gap < r->h ? h + gap : r->h;
    r->h -= used;
    return out;
}

viz_rect tui_cut_left(viz_rect *r, int w, int gap) {
    if (w > r->w) w = r->w;
    if (w < 0) w = 0;
    viz_rect out = {r->y, r->x, r->h, w};
    const int used = w + gap < r->w ? w + gap : r->w;
    r->x += used;
    r->w -= used;
    return out;
}

viz_rect tui_cut_right(viz_rect *r, int w, int gap) {
    if (w > r->w) w = r->w;
    if (w < 0) w = 0;
    viz_rect out = {r->y, r->x + r->w - w, r->h, w};
    const int used = w + gap < r->w ? w + gap : r->w;
    r->w -= used;
    return out;
}

tui_frame tui_layout_frame(int rows, int cols) {
    tui_frame f = {.size = tui_layout_size(rows, cols)};
    viz_rect all = {0, 0, rows, cols};
    if (f.size == TUI_TINY) { /* the notice, and the prompt where there is a second line */
        if (rows >= 2) f.prompt = tui_cut_bottom(&all, 1, 0);
        f.body = all;
        return f;
    }
    f.status = tui_cut_top(&all, 1, 0);
    f.tabs = tui_cut_top(&all, 1, 0);
    f.footer = tui_cut_bottom(&all, 1, 0);
    f.prompt = tui_cut_bottom(&all, 1, 0);
    f.body = all;
    return f;
}

static int at_least(int v, int least) { return v > least ? v : least; }

static void run_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    const bool wide = a->size >= TUI_WIDE;
    out[TUI_RUN_PROGRESS] = tui_cut_bottom(&r, wide ? 6 : 3, 0); /* without a frame where rows are few */
    out[TUI_RUN_PROMPT] = tui_cut_top(&r, a->size == TUI_LARGE ? 10 : wide ? 7 : 5, 0);
    out[TUI_RUN_TOKEN] = wide ? tui_cut_right(&r, a->size == TUI_LARGE ? 48 : 36, 0) : tui_cut_bottom(&r, 2, 0);
    if (a->two && r.w >= 60) {
        out[TUI_RUN_OUT] = tui_cut_left(&r, r.w / 2, 0);
        out[TUI_RUN_OUT_B] = r;
    } else out[TUI_RUN_OUT] = r;
}

static void heads_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    viz_rect side = tui_cut_right(&r, a->size == TUI_LARGE ? 60 : a->size == TUI_WIDE ? 48 : 40, 0);
    out[TUI_HEADS_GRID] = r;
    if (a->size >= TUI_WIDE) {
        out[TUI_HEADS_INSPECT] = tui_cut_top(&side, a->size == TUI_LARGE ? 16 : 14, 0);
        out[TUI_HEADS_JOBS] = tui_cut_bottom(&side, 8, 0);
        out[TUI_HEADS_COVER] = side;
    } else {
        out[TUI_HEADS_INSPECT] = tui_cut_top(&side, 12, 0);
        out[TUI_HEADS_COVER] = side;
    }
}

static void map_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    viz_rect side = tui_cut_right(&r, a->size == TUI_LARGE ? 44 : a->size == TUI_WIDE ? 34 : 26, 0);
    out[TUI_MAP_MAP] = r;
    out[TUI_MAP_CURSOR] = tui_cut_top(&side, at_least(side.h / 2, 10), 0);
    out[TUI_MAP_ROW] = side;
}

static void plan_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    if (a->size >= TUI_WIDE) {
        viz_rect side = tui_cut_right(&r, a->size == TUI_LARGE ? 56 : 44, 0);
        out[TUI_PLAN_TABLE] = r;
        out[TUI_PLAN_BUDGET] = tui_cut_top(&side, 11, 0);
        out[TUI_PLAN_CLASSES] = tui_cut_top(&side, side.h / 2, 0);
        out[TUI_PLAN_UNDO] = side;
    } else {
        out[TUI_PLAN_BUDGET] = tui_cut_bottom(&r, 7, 0);
        out[TUI_PLAN_TABLE] = r;
    }
}

static void compare_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    const bool wide = a->size >= TUI_WIDE;
    viz_rect bottom = tui_cut_bottom(&r, a->size == TUI_LARGE ? 14 : wide ? 11 : 7, 0);
    out[TUI_COMPARE_KL] = tui_cut_bottom(&r, wide ? 7 : 4, 0);
    out[TUI_COMPARE_A] = tui_cut_left(&r, r.w / 2, 0);
    out[TUI_COMPARE_B] = r;
    out[TUI_COMPARE_COST] = tui_cut_left(&bottom, bottom.w / 2, 0);
    out[TUI_COMPARE_BLAME] = bottom;
}

static void memory_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    out[TUI_MEMORY_TOTAL] = tui_cut_top(&r, a->size >= TUI_WIDE ? 15 : 10, 0);
    out[TUI_MEMORY_LAYERS] = tui_cut_left(&r, r.w / 2, 0);
    out[TUI_MEMORY_PAGES] = r;
}

static void log_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    if (a->size >= TUI_WIDE) out[TUI_LOG_JOBS] = tui_cut_right(&r, 44, 0);
    out[TUI_LOG_LIST] = r;
}

/* where rows are few the front and the curve share a place: the curve is there while it has the focus */
static void search_panes(const tui_layout_ask *a, viz_rect r, viz_rect *out) {
    out[TUI_SEARCH_STEPS] = tui_cut_left(&r, a->size == TUI_LARGE ? 46 : a->size == TUI_WIDE ? 40 : 34, 0);
    if (a->size == TUI_LARGE) {
        viz_rect top = tui_cut_top(&r, r.h * 11 / 20, 0);
        out[TUI_SEARCH_FRONT] = tui_cut_left(&top, top.w / 2, 0);
        out[TUI_SEARCH_CURVE] = top;
        out[TUI_SEARCH_PLANS] = r;
    } else if (a->size == TUI_WIDE) {
        out[TUI_SEARCH_FRONT] = tui_cut_top(&r, r.h * 9 / 24, 0);
        out[TUI_SEARCH_CURVE] = tui_cut_bottom(&r, r.h / 2, 0);
        out[TUI_SEARCH_PLANS] = r;
    } else {
        const int under = a->focus == TUI_SEARCH_CURVE ? TUI_SEARCH_CURVE : TUI_SEARCH_FRONT;
        out[under] = tui_cut_top(&r, r.h / 2, 0);
        out[TUI_SEARCH_PLANS] = r;
    }
}

int tui_layout_panes(const tui_layout_ask *ask, viz_rect out[TUI_PANES_MAX]) {
    static void (*const make[TUI_LAYOUT_COUNT])(const tui_layout_ask *, viz_rect, viz_rect *) = {
        [TUI_LAYOUT_RUN] = run_panes,         [TUI_LAYOUT_HEADS] = heads_panes,   [TUI_LAYOUT_MAP] = map_panes,
        [TUI_LAYOUT_PLAN] = plan_panes,       [TUI_LAYOUT_COMPARE] = compare_panes,
        [TUI_LAYOUT_MEMORY] = memory_panes,   [TUI_LAYOUT_LOG] = log_panes,
        [TUI_LAYOUT_SEARCH] = search_panes,
    };
    static const int count[TUI_LAYOUT_COUNT] = {TUI_RUN_N, TUI_HEADS_N, TUI_MAP_N, TUI_PLAN_N, TUI_COMPARE_N, TUI_MEMORY_N, TUI_LOG_N, TUI_SEARCH_N};
    const int n = count[ask->view];
    memset(out, 0, sizeof *out * TUI_PANES_MAX);
    if (ask->size == TUI_TINY || viz_rect_empty(ask->body)) return n;
    if (ask->size == TUI_SMALL) { /* one at a time */
        const int f = ask->focus >= 0 && ask->focus < n ? ask->focus : 0;
        out[f] = ask->body;
        return n;
    }
    make[ask->view](ask, ask->body, out);
    for (int i = 0; i < n; i++)
        if (out[i].h < 2 || out[i].w < 2) out[i] = (viz_rect){0, 0, 0, 0};
    return n;
}
