/* log -- what the program said, and the runs it made. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "tui/internal.h"

enum { V_AT }; /* lines back from the newest */

static tui_view_state *vars(tui_app *app) { return tui_view_vars(app, &tui_view_log); }
static int kept(const tui_app *app) { return app->n_log < TUI_LOG_MAX ? app->n_log : TUI_LOG_MAX; }
static const tui_line *line_at(const tui_app *app, int back) { return &app->log[(app->n_log - 1 - back) % TUI_LOG_MAX]; }

enum { LINE_ROWS_MAX = 4 };
static int rows_of(viz_pane in, const tui_line *l) {
    const int rows = viz_text_wrap(in, 0, 0, in.w - 12, 0, viz_fg(VIZ_TEXT), l->text);
    return rows < 1 ? 1 : rows > LINE_ROWS_MAX ? LINE_ROWS_MAX : rows;
}

static void draw_list(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    static const viz_role tones[] = {VIZ_TEXT, VIZ_GOOD, VIZ_WARN, VIZ_BAD};
    static const char *const signs[] = {" ", "+", "!", "x"};
    char note[48];
    (void)snprintf(note, sizeof note, "%d line%s", kept(app), kept(app) == 1 ? "" : "s");
    viz_pane in = viz_box(viz_pane_of(c, rect), "Log", note, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    const int n = kept(app), at = (int)vars(app)->v[V_AT];
    int first = at, below = 0, total = 0; /* newest at the bottom, the chosen line in the middle */
    while (first > 0 && below < in.h / 2) below += rows_of(in, line_at(app, --first));
    int shown = 0;
    for (int i = first; i < n && shown < in.h; i++) shown += rows_of(in, line_at(app, i));
    while (first > 0 && shown < in.h) shown += rows_of(in, line_at(app, --first)); /* the oldest stands at the top */
    for (int i = 0; i < n && total < in.h; i++) total += rows_of(in, line_at(app, i));
    if (total < in.h) first = 0; /* all of it, from the top */
    int y = total < in.h ? total : in.h;
    for (int i = first; i < n && y > 0; i++) {
        const tui_line *l = line_at(app, i);
        const int rows = rows_of(in, l);
        y -= rows;
        if (y < 0) break; /* half a message misleads */
        viz_printf(in, y, 0, viz_fg(VIZ_FAINT), "%7.1f s", l->at - app->started_at);
        viz_text(in, y, 10, viz_bold(tones[l->tone]), signs[l->tone]);
        (void)viz_text_wrap(in, y, 12, in.w - 12, rows, viz_fg(tones[l->tone]), l->text);
        if (i == at && focus && n > 1) viz_restyle(in, y, 0, rows, in.w, VIZ_BG_SELECT, 0);
    }
}

static void draw_jobs(tui_app *app, viz_canvas *c, viz_rect rect, bool focus) {
    static const char *const names[] = {"A full attention", "B plan", "A's tokens, plan"};
    static const char *const states[] = {"-", "prefill", "decode", "done", "failed"};
    viz_pane in = viz_box(viz_pane_of(c, rect), "Runs", NULL, focus);
    in = viz_pane_sub(in, 0, 1, in.h, in.w - 2);
    int y = 0;
    for (int i = 0; i < TUI_SLOTS; i++) {
        const tui_run *r = &app->runs[i];
        if (!r->number) continue;
        viz_printf(in, y++, 0, viz_bold(i == TUI_B ? VIZ_RUN_B : VIZ_RUN_A), "#%d %s", r->number, names[i]);
        viz_printf(in, y++, 2, viz_fg(VIZ_DIM), "%s  %d + %d tokens  %s", states[r->state], r->n_prompt, r->n_token, r->stop);
        if (r->state == TUI_RUN_FAILED) viz_text_cut(in, y++, 2, in.w - 2, viz_fg(VIZ_BAD), r->failed);
    }
    if (y == 0) viz_text(in, y++, 0, viz_fg(VIZ_DIM), "None yet.");
    y++;
    viz_text(in, y++, 0, viz_bold(VIZ_TITLE), "Engine");
    viz_text_cut(in, y++, 2, in.w - 2, viz_fg(VIZ_DIM), *app->options.engine ? "another program (--engine)" : "this program");
    if (app->model.loaded) viz_clean(in, y++, 2, in.w - 2, viz_fg(VIZ_DIM), app->model.device);
    if (moa_clean_bytes(app->model.device_why)) viz_clean(in, y++, 2, in.w - 2, viz_fg(VIZ_DIM), app->model.device_why);
    if (app->link.state == TUI_LINK_DEAD) viz_text_cut(in, y, 2, in.w - 2, viz_fg(VIZ_BAD), app->link.why);
}

static void draw(tui_app *app, viz_canvas *c, const viz_rect *p) {
    const int focus = vars(app)->focus;
    if (!viz_rect_empty(p[TUI_LOG_LIST])) draw_list(app, c, p[TUI_LOG_LIST], focus == TUI_LOG_LIST);
    if (!viz_rect_empty(p[TUI_LOG_JOBS])) draw_jobs(app, c, p[TUI_LOG_JOBS], focus == TUI_LOG_JOBS);
}

static moa_status go(tui_app *app, int64_t by) {
    int64_t at = vars(app)->v[V_AT] + by;
    if (at >= kept(app)) at = kept(app) - 1;
    vars(app)->v[V_AT] = at < 0 ? 0 : at;
    return MOA_OK;
}
static moa_status up(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return go(app, tui_times(a));
}
static moa_status down(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return go(app, -tui_times(a));
}
static moa_status page_up(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return go(app, 15L * tui_times(a));
}
static moa_status page_down(tui_app *app, const tui_args *a, moa_err *err) {
    (void)err;
    return go(app, -15L * tui_times(a));
}
static moa_status oldest(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    return go(app, TUI_LOG_MAX);
}
static moa_status newest(tui_app *app, const tui_args *a, moa_err *err) {
    (void)a;
    (void)err;
    return go(app, -TUI_LOG_MAX);
}

static bool search(tui_app *app, const char *needle, int dir, int *n_match) {
    const int n = kept(app), here = (int)vars(app)->v[V_AT];
    int found = -1, count = 0;
    for (int i = 0; i < n; i++) count += strcasestr(line_at(app, i)->text, needle) != NULL;
    for (int i = 1; i <= n && found < 0; i++) {
        const int k = ((here + (dir > 0 ? i : -i)) % n + n) % n; /* next: older */
        if (strcasestr(line_at(app, k)->text, needle)) found = k;
    }
    *n_match = count;
    if (found < 0) return false;
    vars(app)->v[V_AT] = found;
    return true;
}

static const tui_command commands[] = {
    {"line up", "k Up", NULL, "the line above (older)", NULL, NULL, TUI_CMD_COUNT, up, NULL},
    {"line down", "j Down", NULL, "the line below (newer)", NULL, NULL, TUI_CMD_COUNT, down, NULL},
    {"log page up", "PgUp C-b C-u", NULL, "15 lines older", NULL, NULL, TUI_CMD_COUNT, page_up, NULL},
    {"log page down", "PgDn C-f C-d", NULL, "15 lines newer", NULL, NULL, TUI_CMD_COUNT, page_down, NULL},
    {"oldest", "gg Home", NULL, "the oldest line kept", NULL, NULL, 0, oldest, NULL},
    {"newest", "G End", NULL, "the newest line", NULL, NULL, 0, newest, NULL},
    {0},
};

const tui_view tui_view_log = {.name = "log", .title = "Log", .key = '7', .layout = TUI_LAYOUT_LOG, .commands = commands, .draw = draw, .search = search};
