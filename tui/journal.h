/* journal.h -- what is done on the screen, kept in the session store, and brought back at the next start.
 *
 *   edit, undo, run, token, end  --hook-->  journal  --sessions/store-->  SQLite
 *                                             ^
 *              start: the last session comes back, `n` as the first key declines it
 *
 * Every hook may be called at any time; without a store (none could be opened, --no-session) it does nothing. No hook fails: when
 * the store cannot be written the user is told once, the work goes on in memory, and everything is written anew as soon as that
 * succeeds. Nothing is stored before the first edit or run, so looking around leaves no session behind. */
#ifndef TUI_JOURNAL_H
#define TUI_JOURNAL_H

#include "tui/app.h"

typedef struct tui_journal tui_journal;

/* what the command line says, which goes before what an earlier session says */
typedef struct journal_start {
    bool model, plan, prompt; /* was given */
    bool restore;             /* look for an earlier session */
    bool keep;                /* false: no store at all */
} journal_start;

/* Opens the store and brings the last session back: model name into options.model, prompt, plan with its edits. */
void journal_open(tui_app *app, const journal_start *start);
void journal_close(tui_app *app); /* ends the run under way, leaves the session */
void journal_tick(tui_app *app);  /* each turn of the loop: writes output that waits */

/* The line that offers to start fresh, "" when there is none; and its key: true when it was taken. */
const char *journal_offer(const tui_app *app);
bool journal_key(tui_app *app, int key);

/* plan_edit.c: after the history has changed */
void journal_edit(tui_app *app, const tui_change *change); /* NULL: an edit that is not in the history */
void journal_undo_pos(tui_app *app);
void journal_plan_opened(tui_app *app);
void journal_plan_saved(tui_app *app);
void journal_prompt(tui_app *app);

/* runs.c, link.c */
void journal_loaded(tui_app *app); /* before the plan is fitted to the model */
void journal_run_begin(tui_app *app, tui_slot slot);
void journal_run_token(tui_app *app, const tui_token *token, const char *bytes);
void journal_run_end(tui_app *app, const tui_run *r); /* done, failed, or its engine gone */

#endif
