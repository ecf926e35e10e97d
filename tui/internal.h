/* internal.h -- what app.c, draw.c, commands.c and script.c share and views need not know. */
#ifndef TUI_INTERNAL_H
#define TUI_INTERNAL_H

#include "tui/app.h"
#include "tui/term.h"

/* app.c */
void tui_command_run(tui_app *app, const tui_command *row, int count, bool from_key);
void tui_search(tui_app *app, int dir);
void tui_prompt_changed(tui_app *app, const char *name);
moa_status tui_prompt_open(tui_app *app, const char *path, moa_err *err);
bool tui_idle(const tui_app *app); /* nothing is on its way to or from the engine */
void tui_remember_model(tui_app *app);
/* commands.c */
moa_status tui_quit(tui_app *app); /* asks first when the plan is not saved */
moa_status tui_kill_engine(tui_app *app, moa_err *err);
/* rules.c: rows of the command table */
typedef moa_status tui_run_fn(tui_app *app, const tui_args *args, moa_err *err);
tui_run_fn tui_rule_widen, tui_rule_narrow, tui_rule_beta_up, tui_rule_beta_down, tui_rule_ask, tui_rule_full, tui_rule_sink, tui_rule_free_widen,
    tui_rule_group_lock, tui_rule_copy, tui_rule_paste, tui_mark_toggle, tui_mark_alike;
/* popup.c */
void tui_popup_key(tui_app *app, int key);
void tui_popup_draw(tui_app *app, viz_pane p);
/* plan_edit.c */
void tui_plan_free(tui_app *app);

/* script.c: keys and commands from a file */
moa_status tui_script_open(tui_app *app, const char *path, moa_err *err);
void tui_script_close(tui_app *app);
void tui_script_step(tui_app *app); /* plays what can be played now */
bool tui_script_waits(const tui_app *app);
void tui_script_failed(tui_app *app, const char *why); /* a command of it failed: the exit code will say so */
void tui_script_sync(tui_app *app); /* the rest waits until the engine is idle */

#endif
