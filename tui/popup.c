/* popup.c -- what lies over a view: help and palette (both from the command tables; Enter runs the row), the undo list, models, texts, questions. */
#include <stdio.h>
#include <string.h>

#include "tui/internal.h"

enum { ROWS_MAX = 256 };

/* rows of help or palette, after the typed filter */
static int rows_of(const tui_app *app, const tui_command **rows) {
    return tui_command_search(tui_view_at(app->view), app->popup_query, rows, ROWS_MAX);
}

static int count(const tui_app *app) {
    const tui_command *rows[ROWS_MAX];
    int n = 1;
    if (app->popup == TUI_POPUP_HELP || app->popup == TUI_POPUP_PALETTE) return rows_of(app, rows);
    if (app->popup == TUI_POPUP_UNDO) return app->plan.n_change + 1;
    if (app->popup == TUI_POPUP_MODELS) return tui_picker_count(app);
    for (size_t i = 0; i < app->popup_text.size; i++) n += app->popup_text.data[i] == '\n';
    return n;
}

/* --- keys ------------------------------------------------------------------------------------------------------------------------ */

static void run_row(tui_app *app) {
    const tui_command *rows[ROWS_MAX];
    const int n = rows_of(app, rows), at = app->popup_at;
    tui_popup_close(app);
    if (at < 0 || at >= n) return;
    char start[80];
    if (rows[at]->usage && !rows[at]->prompt) { /* it wants words: type them */
        (void)snprintf(start, sizeof start, "%s ", rows[at]->name);
        tui_line_start_command(app, start);
    } else tui_command_run(app, rows[at], 0, true);
}

static void go_to_step(tui_app *app) {
    const int to = app->popup_at;
    tui_popup_close(app);
    while (app->plan.n_done > to && tui_plan_undo(app)) {}
    while (app->plan.n_done < to && tui_plan_redo(app)) {}
}

static void take_model(tui_app *app) {
    moa_err err = {0};
    if (tui_picker_take(app, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
}

static void ask_key(tui_app *app, int key) {
    if (key != 'y' && key != 'Y' && key != 'n' && key != 'N' && key != TUI_KEY_ESC && key != 'q' && key != tui_ctrl('c')) return;
    moa_status (*yes)(tui_app *, moa_err *) = app->ask_yes;
    tui_popup_close(app);
    app->ask_yes = NULL;
    moa_err err = {0};
    if ((key == 'y' || key == 'Y') && yes && yes(app, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
}

static bool type_query(tui_app *app, int key) {
    const size_t n = strlen(app->popup_query);
    if (app->popup != TUI_POPUP_PALETTE && app->popup != TUI_POPUP_MODELS) return false;
    if (key == TUI_KEY_BACKSPACE && n > 0) app->popup_query[n - 1] = 0;
    else if (key == TUI_KEY_SPACE && n + 2 < sizeof app->popup_query) memcpy(app->popup_query + n, " ", 2);
    else if (key > 32 && key < 127 && n + 2 < sizeof app->popup_query) {
        app->popup_query[n] = (char)key;
        app->popup_query[n + 1] = 0;
    } else return false;
    app->popup_at = 0;
    return true;
}

void tui_popup_key(tui_app *app, int key) {
    const int n = count(app), page = app->canvas->rows > 12 ? app->canvas->rows - 10 : 4;
    if (app->popup == TUI_POPUP_ASK) {
        ask_key(app, key);
        return;
    }
    if (type_query(app, key)) return;
    switch (key) {
    case TUI_KEY_ESC:
    case 3: tui_popup_close(app); return;
    case '1': case '2': case '3': case '4': case '5': case '6': case '7': case '8': case '9': /* as without it, and it does not stay over another screen */
        for (int i = 0; i < tui_view_count(); i++)
            if (tui_view_at(i)->key == key) {
                tui_popup_close(app);
                tui_view_switch(app, i);
            }
        return;
    case 'q':
    case '?': tui_popup_close(app); return;
    case 'j':
    case TUI_KEY_DOWN: app->popup_at++; break;
    case 'k':
    case TUI_KEY_UP: app->popup_at--; break;
    case TUI_KEY_PGDN:
    case TUI_KEY_SPACE:
    case 6: app->popup_at += page; break;
    case TUI_KEY_PGUP:
    case 2: app->popup_at -= page; break;
    case 'g':
    case TUI_KEY_HOME: app->popup_at = 0; break;
    case 'G':
    case TUI_KEY_END: app->popup_at = n - 1; break;
    case TUI_KEY_ENTER:
        if (app->popup == TUI_POPUP_UNDO) go_to_step(app);
        else if (app->popup == TUI_POPUP_TEXT) tui_popup_close(app);
        else if (app->popup == TUI_POPUP_MODELS) take_model(app);
        else run_row(app);
        return;
    default: break;
    }
    if (app->popup_at >= n) app->popup_at = n - 1;
    if (app->popup_at < 0) app->popup_at = 0;
}

/* the list's row under a click */
static void click_row(tui_app *app, int y, int x, int64_t first) {
    (void)x;
    if (y + (int)first < count(app)) app->popup_at = (int)first + y;
}

/* --- drawing ------------------------------------------------------------------------------------------------------------------------ */

static void ground(viz_pane p) {
    for (int y = 0; y < p.h; y++)
        for (int x = 0; x < p.w; x++) viz_text(p, y, x, viz_on(VIZ_TEXT, VIZ_BG_POPUP), " ");
}

static viz_pane window(viz_pane p, int h, int w, const char *title, const char *note) {
    if (h > p.h - 2) h = p.h - 2;
    if (w > p.w - 4) w = p.w - 4;
    viz_pane box = viz_pane_sub(p, (p.h - h) / 2, (p.w - w) / 2, h, w);
    ground(box);
    viz_pane in = viz_box(box, title, note, true);
    viz_restyle(box, 0, 0, box.h, box.w, VIZ_BG_POPUP, 0);
    return in;
}

/* keeps popup_at in sight; returns the first row shown */
static int scroll_to(tui_app *app, int rows) {
    if (app->popup_at < app->popup_scroll) app->popup_scroll = app->popup_at;
    if (app->popup_at >= app->popup_scroll + rows) app->popup_scroll = app->popup_at - rows + 1;
    if (app->popup_scroll < 0) app->popup_scroll = 0;
    return app->popup_scroll;
}

static int draw_query(const tui_app *app, viz_pane in) {
    const int x = viz_text(in, 0, 1, (viz_style){VIZ_ACCENT, VIZ_BG_POPUP, VIZ_A_BOLD}, "> ");
    viz_cursor(in, 0, 1 + x + viz_text(in, 0, 1 + x, viz_on(VIZ_TEXT, VIZ_BG_POPUP), app->popup_query));
    return 2; /* the row that the list begins at */
}

static void draw_models(tui_app *app, viz_pane p) {
    const int n = count(app);
    char note[48];
    (void)snprintf(note, sizeof note, "%d file%s", n, n == 1 ? "" : "s");
    viz_pane in = window(p, n + 6 > 14 ? n + 6 : 14, 96, app->popup_title, note);
    const int y = draw_query(app, in);
    const int first = scroll_to(app, in.h - y - 1);
    tui_hit_add(app, (viz_rect){in.y + y, in.x, in.h - y - 1, in.w}, click_row, first);
    tui_picker_draw(app, in, first, y);
    viz_text(in, in.h - 1, 1, viz_on(VIZ_DIM, VIZ_BG_POPUP), "type to narrow · Enter loads · Esc closes");
}

static void draw_rows(tui_app *app, viz_pane p) {
    const tui_command *rows[ROWS_MAX];
    const int n = rows_of(app, rows);
    const bool palette = app->popup == TUI_POPUP_PALETTE;
    char note[48];
    (void)snprintf(note, sizeof note, "%d command%s", n, n == 1 ? "" : "s");
    char title[96];
    if (palette) (void)snprintf(title, sizeof title, "%s", app->popup_title);
    else (void)snprintf(title, sizeof title, "%s: %s", app->popup_title, tui_view_at(app->view)->title); /* a script may change the screen below it */
    viz_pane in = window(p, n + 4 > 14 ? n + 4 : 14, 96, title, note);
    int y = 0;
    if (palette) y = draw_query(app, in);
    const int first = scroll_to(app, in.h - y - 1), name_w = in.w > 80 ? 24 : 18;
    tui_hit_add(app, (viz_rect){in.y + y, in.x, in.h - y - 1, in.w}, click_row, first);
    for (int i = first; i < n && y < in.h - 1; i++, y++) {
        const viz_color bg = i == app->popup_at ? (viz_color)VIZ_BG_SELECT : (viz_color)VIZ_BG_POPUP;
        char name[120];
        (void)snprintf(name, sizeof name, "%s%s%s", rows[i]->name, rows[i]->usage ? " " : "", rows[i]->usage ? rows[i]->usage : "");
        viz_text_right(in, y, 0, 13, (viz_style){VIZ_KEY, bg, VIZ_A_BOLD}, rows[i]->keys ? rows[i]->keys : "");
        viz_text(in, y, 13, viz_on(VIZ_DIM, bg), "  ");
        viz_text_cut(in, y, 15, name_w, viz_on(VIZ_TEXT, bg), palette || in.w > 80 ? name : rows[i]->name);
        viz_text(in, y, 15 + name_w, viz_on(VIZ_DIM, bg), "  ");
        viz_text_cut(in, y, 17 + name_w, in.w - 18 - name_w, viz_on(VIZ_DIM, bg), rows[i]->help);
        if (i == app->popup_at && !palette) viz_cursor(in, y, 15);
        if (i == app->popup_at && p.c->caps.depth == VIZ_MONO) viz_text(in, y, 0, viz_on(VIZ_ACCENT, bg), ">");
    }
    viz_text(in, in.h - 1, 1, viz_on(VIZ_DIM, VIZ_BG_POPUP), palette ? "type to narrow · Enter runs · Esc closes" : "j k move · Enter runs the row · 1-8 screens · q closes · mouse, too");
}

static void draw_undo(tui_app *app, viz_pane p) {
    const int n = app->plan.n_change + 1;
    viz_pane in = window(p, n + 4 > 8 ? n + 4 : 8, 72, "Undo list", "Enter goes to that point");
    const int first = scroll_to(app, in.h - 1);
    tui_hit_add(app, viz_pane_rect(in), click_row, first);
    for (int i = first, y = 0; i < n && y < in.h - 1; i++, y++) {
        const viz_color bg = i == app->popup_at ? (viz_color)VIZ_BG_SELECT : (viz_color)VIZ_BG_POPUP;
        const bool here = i == app->plan.n_done, saved = i == app->plan.n_saved;
        char text[160];
        (void)snprintf(text, sizeof text, "%s %3d  %s%s", here ? "▸" : " ", i, i == 0 ? "as opened" : app->plan.changes[i - 1].what, saved ? "   (on disk)" : "");
        viz_text_cut(in, y, 1, in.w - 2, viz_on(i <= app->plan.n_done ? VIZ_TEXT : VIZ_FAINT, bg), text);
    }
}

static void draw_text(tui_app *app, viz_pane p) {
    const int n = count(app);
    int w = moa_text_cells(app->popup_title, strlen(app->popup_title)) + 18; /* and the note beside it */
    for (const char *s = app->popup_text.data ? app->popup_text.data : ""; *s;) {
        const size_t k = strcspn(s, "\n");
        const int cells = moa_text_cells(s, k);
        if (cells + 4 > w) w = cells + 4;
        s += k + (s[k] != 0);
    }
    viz_pane in = window(p, n + 2, w, app->popup_title, "q closes");
    if (app->popup_at > n - in.h) app->popup_at = n > in.h ? n - in.h : 0;
    const char *s = app->popup_text.data ? app->popup_text.data : "";
    for (int i = 0; *s; i++) {
        const size_t k = strcspn(s, "\n");
        if (i >= app->popup_at && i < app->popup_at + in.h) viz_bytes(in, i - app->popup_at, 1, viz_on(VIZ_TEXT, VIZ_BG_POPUP), s, k);
        s += k + (s[k] != 0);
    }
}

void tui_popup_draw(tui_app *app, viz_pane p) {
    switch (app->popup) {
    case TUI_POPUP_HELP:
    case TUI_POPUP_PALETTE: draw_rows(app, p); break;
    case TUI_POPUP_UNDO: draw_undo(app, p); break;
    case TUI_POPUP_MODELS: draw_models(app, p); break;
    case TUI_POPUP_TEXT: draw_text(app, p); break;
    default: break;
    }
}
