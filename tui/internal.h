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
/* mouse.c: TUI_KEY_CLICK, _WHEEL_UP, _WHEEL_DOWN at a cell of the screen */
void tui_mouse(tui_app *app, int key, int y, int x);
/* tour.c */
int tui_tour_rows(const tui_app *app); /* that its text takes above the prompt line; 0: no tour, or no room */
bool tui_tour_key(tui_app *app, int key);
void tui_tour_turn(tui_app *app); /* puts the cursor on the step's head once it is known */
void tui_tour_draw(tui_app *app, viz_pane p);
moa_status tui_tour_start(tui_app *app, moa_err *err);
/* blame.c */
bool tui_blame_answer(tui_app *app, uint32_t job, const moa_msg_map *m); /* was it blame's? */
bool tui_blame_failed(tui_app *app, uint32_t job);
void tui_blame_go(tui_app *app); /* the first question, if it is not asked yet */
void tui_blame_free(tui_app *app);
void tui_map_resend(tui_app *app); /* runs.c: the map asked for meanwhile */
/* views/run.c: what compare shows too */
void tui_output_draw(tui_app *app, viz_canvas *c, viz_rect rect, const tui_run *r, bool focus);
double tui_output_kl(const tui_app *app, int32_t i); /* KL(A||plan) of A's i-th output token; NAN: not compared */
int32_t tui_output_selected(tui_app *app, const tui_run *r); /* output token under the cursor, -1: none */
tui_run *tui_output_focused(tui_app *app);
tui_run_fn tui_token_left, tui_token_right, tui_token_up, tui_token_down, tui_token_first, tui_token_last, tui_token_hot_next, tui_token_hot_previous, tui_token_tint,
    tui_token_other_run;
/* popup.c */
void tui_popup_key(tui_app *app, int key);
void tui_popup_draw(tui_app *app, viz_pane p);
/* picker.c: the popup of model files */
moa_status tui_picker_open(tui_app *app, moa_err *err);
moa_status tui_picker_take(tui_app *app, moa_err *err); /* loads the row under the cursor */
int tui_picker_count(const tui_app *app);               /* rows that the typed filter leaves */
void tui_picker_draw(tui_app *app, viz_pane in, int first, int y);
void tui_picker_free(tui_app *app);
/* commands.c: ~ is the home folder */
void tui_path_expand(const char *path, char *out, size_t n);
/* views/heads.c: "cover<95", "span>=256", "need95>512" by the metrics of the heads screen; is_figure: the word is one of these */
bool tui_figure_matches(const tui_app *app, int32_t layer, int32_t head, const char *word, bool *is_figure);
/* views/plan.c: does the filter leave head `at` (layer*n_head + head)? */
bool tui_plan_shown(const tui_app *app, int32_t at);
/* plan_edit.c */
void tui_plan_free(tui_app *app);

/* script.c: keys and commands from a file */
moa_status tui_script_open(tui_app *app, const char *path, moa_err *err);
void tui_script_close(tui_app *app);
void tui_script_step(tui_app *app); /* plays what can be played now */
bool tui_script_waits(const tui_app *app);
void tui_script_failed(tui_app *app, const char *why); /* a command of it failed: the exit code will say so */
void tui_script_wait(tui_app *app, double seconds);
void tui_script_sync(tui_app *app); /* the rest waits until the engine is idle */

#endif
