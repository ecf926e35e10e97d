/* command.h -- everything the user can do is one row of a table: name, keys, usage, help, function.
 *
 * The row feeds the `:` prompt and its completion, the palette (^P), the help overlay (?), the footer, the key map, --script and
 * the journal. Adding an action is adding a row: the tables are command.c's (global) and each view's (tui_view.commands), and a
 * view's rows come first when its view is on the screen.
 *
 * Keys are written as people write them: "j Down" (two keys for the same thing), "gg" (a sequence), "C-r", "Space", "PgDn", "F2".
 * A count typed before a key ("5j") is in args->count; a row flagged COUNT takes it, others ignore it. */
#ifndef TUI_COMMAND_H
#define TUI_COMMAND_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/buf.h"
#include "core/base/status.h"

typedef struct tui_app tui_app;
typedef struct tui_view tui_view;

/* --- keys: a Unicode scalar value, or one of these ------------------------------------------------------------------- */

/* C-a is 1 .. C-z is 26 as terminals send them; Alt adds TUI_KEY_ALT */
#define TUI_KEY_MAP(X)                                                                                       \
    X(UP, "Up") X(DOWN, "Down") X(LEFT, "Left") X(RIGHT, "Right") X(HOME, "Home") X(END, "End")              \
    X(PGUP, "PgUp") X(PGDN, "PgDn") X(INSERT, "Ins") X(DELETE, "Del") X(BACKSPACE, "Backspace")              \
    X(ENTER, "Enter") X(ESC, "Esc") X(TAB, "Tab") X(BACKTAB, "S-Tab") X(SPACE, "Space")                      \
    X(F1, "F1") X(F2, "F2") X(F3, "F3") X(F4, "F4") X(F5, "F5") X(F6, "F6") X(F7, "F7") X(F8, "F8")          \
    X(F9, "F9") X(F10, "F10") X(F11, "F11") X(F12, "F12")                                                    \
    X(RESIZE, "Resize") X(PASTE, "Paste") X(WHEEL_UP, "WheelUp") X(WHEEL_DOWN, "WheelDown") X(CLICK, "Click")

enum { TUI_KEY_NONE = 0, TUI_KEY_BASE = 0x200000, TUI_KEY_ALT = 0x400000 };
typedef enum tui_key {
    TUI_KEY_BEFORE_ = TUI_KEY_BASE,
#define X(name, text) TUI_KEY_##name,
    TUI_KEY_MAP(X)
#undef X
        TUI_KEY_END_
} tui_key;
static inline int tui_ctrl(char c) { return c & 0x1f; }

/* Reads one key of a row's list: "C-r" -> 18, "Up" -> TUI_KEY_UP, "gg" -> 'g','g'. Returns how many keys it took (<= max), 0: not a key. */
int tui_key_parse(const char *word, size_t n, int *out, int max);
/* "C-r", "Up", "é"; out at least 16 bytes */
void tui_key_name(int key, char out[16]);

/* --- rows ------------------------------------------------------------------------------------------------------------- */

typedef struct tui_args {
    const char *rest; /* what follows the name, blanks trimmed; never NULL, NUL-terminated, user's text */
    int argc;
    char **argv; /* rest in words ("quoted words" kept whole); borrowed during the call */
    int count;   /* typed before the key; 0: none */
    bool from_key;
} tui_args;
static inline int tui_times(const tui_args *a) { return a->count > 0 ? a->count : 1; }

enum {
    TUI_CMD_COUNT = 1,  /* 5j is one call with count 5 */
    TUI_CMD_HIDDEN = 2, /* not in palette and help */
    TUI_CMD_EDIT = 4,   /* changes the plan or the marks */
};

typedef struct tui_command {
    const char *name;  /* "set-rule", "plan open": what is typed after `:` */
    const char *keys;  /* "u", "gg", "k Up", or NULL */
    const char *usage; /* of what follows the name: "SEL alpha=A beta=B|w=N|full|sink"; NULL: nothing */
    const char *help;  /* one line, no full stop */
    const char *footer; /* word beside the key in the footer ("undo"), NULL: not there */
    const char *prompt; /* a key opens the command line with this text instead of running ("set-rule @marked "), or NULL */
    int flags;
    /* Does it. An error is shown to the user; MOA_OK with nothing said is fine. */
    moa_status (*run)(tui_app *app, const tui_args *args, moa_err *err);
    /* Appends candidates for the word that starts with prefix, one a line; NULL: none */
    void (*complete)(tui_app *app, const char *prefix, moa_buf *out);
} tui_command;

/* NULL-name-terminated */
extern const tui_command tui_commands[];

/* The row a line names (longest name first: "plan open"), of the view, then global; *rest: what follows. NULL: none. */
const tui_command *tui_command_find(const tui_view *view, const char *line, const char **rest);
/* The row bound to the n keys typed so far; *more: true if they begin a longer sequence of some row. */
const tui_command *tui_command_by_keys(const tui_view *view, const int *keys, int n, bool *more);
/* i-th row as shown in help and palette (view's first, then global; hidden ones left out); NULL at the end */
const tui_command *tui_command_at(const tui_view *view, int i);

/* Runs a typed line (without ':'). The error is returned, not shown. Unknown: E_USAGE that names near ones. */
moa_status tui_command_line(tui_app *app, const char *line, moa_err *err);
/* Completion of a line up to point: appends whole replacement words, one a line, and tells where the word begins. */
void tui_command_complete(tui_app *app, const char *line, size_t point, size_t *word_at, moa_buf *out);
/* rows whose name, key or help contain all words of query (separated by blanks, any case), best first; returns how many (<= max) */
int tui_command_search(const tui_view *view, const char *query, const tui_command **out, int max);
/* first key of a row, "" if none */
void tui_command_key(const tui_command *row, char out[32]);

/* words of rest into argv (malloc'ed block, one free); quotes "..." and '...' group */
moa_status tui_words(const char *rest, char ***argv, int *argc, moa_err *err);

#endif
