/* textview.h -- the text tinted by one query's attention, in place of the map. */
#ifndef TUI_TEXTVIEW_H
#define TUI_TEXTVIEW_H

#include "tui/app.h"

/* Draws it into the pane; returns the cells of a line, which tui_text_move is given back. */
int tui_text_draw(tui_app *app, viz_canvas *c, viz_rect rect, bool focus);
void tui_text_move(tui_app *app, int w, int lines, int tokens); /* the query goes so far; its row is asked for */
void tui_text_go(tui_app *app, int32_t query);

#endif
