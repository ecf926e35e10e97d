/* view.h -- one screen of the workbench. A new view is one file in tui/views: it defines `const tui_view tui_view_NAME` and the build
 * puts it in the table (view_list.h); screens are ordered by their digit key.
 *
 * A view holds no memory of its own beyond what it keeps in app->views[...] (tui_view_state: plain integers that survive switching):
 * everything it shows is in tui_app, every change goes through app.h's functions, every key is a row of its command table. draw() only
 * draws: it may be called at any time, at any size, with nothing loaded. */
#ifndef TUI_VIEW_H
#define TUI_VIEW_H

#include "tui/command.h"
#include "tui/layout.h"
#include "viz/canvas.h"

struct tui_view {
    const char *name;  /* "heads": `:view heads` */
    const char *title; /* tab, "Heads"; the current one is shown in capitals */
    char key;          /* '1'..'9' */
    tui_layout layout;
    const tui_command *commands; /* NULL-name-terminated rows, or NULL */
    /* Draws into its panes: rects (absolute) as tui_layout_panes gave them for this view, n_rect of them; empty ones are skipped. */
    void (*draw)(tui_app *app, viz_canvas *canvas, const viz_rect *rects);
    /* First look at a key before the tables (text being edited): true: taken. NULL: none. */
    bool (*key_first)(tui_app *app, int key);
    /* Moves to the next (dir 1) or previous (-1) match; *n_match: how many there are, or -1: not counted. false: no match. NULL: no search. */
    bool (*search)(tui_app *app, const char *needle, int dir, int *n_match);
    /* Shown and hidden again: asks the engine for what it needs (a map), or NULL. */
    void (*enter)(tui_app *app);
    void (*leave)(tui_app *app);
    /* An event of the engine arrived that may concern it (see tui_event), or NULL. */
    void (*event)(tui_app *app, int event);
};

#include "view_list.h"
#define X(name) extern const tui_view tui_view_##name;
MOA_VIEW_LIST(X)
#undef X

/* views ordered by key */
int tui_view_count(void);
const tui_view *tui_view_at(int i);
const tui_view *tui_view_find(const char *name); /* NULL: none */

#endif
