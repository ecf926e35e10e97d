/* mouse.c -- what a click and the wheel do.
 *
 * Whoever draws something that may be clicked says so while it draws (tui_hit_add), so that a click can never mean another place than the
 * eye's: tabs, words of the footer, heads, rows of tables, tokens, rows of popups. A click selects; twice on the same cell is Enter. The
 * wheel moves the selection of the pane under it by keys, and zooms the map. Shift with the button stays the terminal's: copying text. */
#include "tui/internal.h"

enum { WHEEL_ROWS = 3 };
static const double twice_s = 0.4;

void tui_hit_add(tui_app *app, viz_rect rect, tui_hit_fn *click, int64_t value) {
    if (app->n_hit == TUI_HITS_MAX || viz_rect_empty(rect)) return;
    app->hits[app->n_hit++] = (tui_hit){rect, click, value};
}

static bool inside(viz_rect r, int y, int x) { return y >= r.y && y < r.y + r.h && x >= r.x && x < r.x + r.w; }

/* the pane of the view at a cell, -1: none; it gets the focus */
static int focus_pane(tui_app *app, int y, int x) {
    const tui_view *v = tui_view_at(app->view);
    viz_rect panes[TUI_PANES_MAX];
    const tui_frame f = tui_frame_now(app);
    const tui_layout_ask ask = {v->layout, f.size, f.body, tui_view_vars(app, v)->focus, app->runs[TUI_A].number && app->runs[TUI_B].number};
    const int n = tui_layout_panes(&ask, panes);
    for (int i = 0; i < n; i++)
        if (inside(panes[i], y, x)) {
            tui_view_vars(app, v)->focus = i;
            return i;
        }
    return -1;
}

static void wheel(tui_app *app, int y, int x, bool up) {
    int key = up ? TUI_KEY_UP : TUI_KEY_DOWN, times = WHEEL_ROWS;
    if (app->popup == TUI_POPUP_NONE) {
        const tui_view *v = tui_view_at(app->view);
        const int pane = focus_pane(app, y, x);
        if (pane < 0) return;
        if (v == &tui_view_map && pane == TUI_MAP_MAP) key = up ? '+' : '-';
        if (v == &tui_view_map || v == &tui_view_heads) times = 1;
    }
    while (times-- > 0) tui_key_in(app, key);
}

static void click(tui_app *app, int y, int x) {
    const bool twice = app->now - app->click_at < twice_s && y == app->click_y && x == app->click_x;
    app->click_at = twice ? 0 : app->now;
    app->click_y = y, app->click_x = x;
    const int view = app->view;
    if (app->popup == TUI_POPUP_NONE && !twice) (void)focus_pane(app, y, x);
    for (int i = app->n_hit - 1; i >= 0; i--) {
        const tui_hit h = app->hits[i];
        if (!inside(h.rect, y, x)) continue;
        if (!h.click) return;
        if (twice && view == app->view) tui_key_in(app, TUI_KEY_ENTER);
        else h.click(app, y - h.rect.y, x - h.rect.x, h.value);
        return;
    }
}

void tui_mouse(tui_app *app, int key, int y, int x) {
    tui_dirty(app);
    if (term_line_now() == TERM_LINE_EDITING || app->popup == TUI_POPUP_ASK) return; /* what is typed stays */
    if (key == TUI_KEY_CLICK) click(app, y, x);
    else wheel(app, y, x, key == TUI_KEY_WHEEL_UP);
}
