/* term.h -- the terminal and the line editor. tui/term.c is the only file behind which ncurses and readline are.
 *
 *   tty bytes --ncurses--> keys --+--> views and commands
 *                                 +--> our byte queue --> readline (callback interface) --> the line, drawn by us
 *   viz_canvas --term_draw--> ncurses --> tty
 *
 * One thread. readline never touches the tty: it reads our queue and writes to nothing. The terminal is put back whatever ends
 * the program: atexit for every exit(), a fatal-signal handler that only does write(2) and tcsetattr() on bytes prepared before.
 * While the screen is up fd 2 goes to a log file, shown after the end.
 * Headless (script, tests): no terminal at all, the same keys and the same line editor. */
#ifndef TUI_TERM_H
#define TUI_TERM_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/buf.h"
#include "core/base/status.h"
#include "viz/canvas.h"

typedef struct term_config {
    bool headless;
    int rows, cols;     /* headless: the size */
    const char *color;  /* auto, never, 8, 256, 24bit; NULL: auto */
    bool ascii;         /* --ascii; else by locale */
    bool mouse;           /* clicks and the wheel come as keys */
    const char *log_path; /* where fd 2 goes while the screen is up; NULL: nowhere */
} term_config;

/* What the colour options mean here: --color over NO_COLOR (set and not empty) over COLORTERM and TERM. E_USAGE for an unknown word.
 * n_color, has_rgb: what terminfo says. Pure, for tests. */
typedef struct term_color_ask {
    const char *option, *no_color, *colorterm, *term;
    int n_color;
    bool has_rgb;
} term_color_ask;
moa_status term_color_depth(const term_color_ask *ask, viz_depth *out, moa_err *err);

/* Opens the screen. E_UNSUPPORTED when standard input or output is not a terminal or cannot move its cursor. */
moa_status term_open(const term_config *config, moa_err *err);
void term_close(void); /* puts the terminal back, replays the log to fd 2; may be called twice */
viz_caps term_caps(void);
void term_size(int *rows, int *cols);
bool term_headless(void);
void term_resize(int rows, int cols); /* headless: another size, told by TUI_KEY_RESIZE; else nothing */
int term_fd(void); /* to poll for input; -1 headless */

/* The next key (command.h), TUI_KEY_NONE when there is none, TUI_KEY_RESIZE after a change of size, TUI_KEY_PASTE with the text in
 * term_pasted(). *gone: the terminal went away. Never blocks. */
int term_key(bool *gone);
const char *term_pasted(size_t *n); /* raw bytes of the last paste, borrowed until the next term_key */
/* Clicks and the wheel as keys (TUI_KEY_CLICK ...), or left to the terminal; where the last one was, from 0. */
void term_mouse(bool on);
bool term_mouse_on(void);
void term_mouse_at(int *y, int *x);
void term_push_key(int key);        /* comes out of term_key before what is typed (scripts) */
void term_push_paste(const char *bytes, size_t n);

/* Shows the canvas (only what changed goes out). False when the tty would block: draw later. */
bool term_draw(const viz_canvas *canvas);
void term_repaint(void); /* ^L: everything anew at the next draw */
void term_bell(void);
/* Ctrl-Z: puts the terminal back, stops the process group, comes back after SIGCONT. Seconds spent stopped. */
double term_suspend(void);
/* Runs $VISUAL/$EDITOR/vi on a file with the terminal its own. E_FAILED with its exit code. */
moa_status term_edit_file(const char *path, moa_err *err);
/* OSC 52 to the terminal's clipboard, at most 64 KiB */
void term_clipboard(const char *bytes, size_t n);
/* the file fd 2 goes to, "" if none */
const char *term_log_path(void);

/* Signals arrive as bytes of a pipe (poll term_signal_fd) and are taken as a set of bits. SIGWINCH is seen by term_key itself. */
enum { TERM_SIG_TERM = 1, TERM_SIG_HUP = 2, TERM_SIG_INT = 4, TERM_SIG_CHLD = 8, TERM_SIG_STOP = 16 };
int term_signal_fd(void);
int term_signals(void);

/* --- the line editor: one line at a time, readline's keys, history a kind -------------------------------------------- */

typedef enum term_line_kind { TERM_LINE_COMMAND, TERM_LINE_SEARCH, TERM_LINE_PROMPT, TERM_LINE_ANSWER, TERM_LINE_KINDS } term_line_kind;

typedef struct term_line_ask {
    term_line_kind kind;
    const char *label;   /* ":", "/", "write to: " */
    const char *initial; /* text already there, or NULL */
    /* candidates for completion, one a line, *word_at: byte where the word begins; NULL: none */
    void (*complete)(void *user, const char *line, size_t point, size_t *word_at, moa_buf *out);
    void *user;
} term_line_ask;

typedef enum term_line_state { TERM_LINE_IDLE, TERM_LINE_EDITING, TERM_LINE_DONE, TERM_LINE_CANCELLED } term_line_state;

void term_line_start(const term_line_ask *ask);
/* Feeds one key (TUI_KEY_PASTE inserts the paste, newlines as spaces in one-line kinds). Esc and C-c cancel. */
term_line_state term_line_key(int key);
void term_line_cancel(void);
term_line_state term_line_now(void);
term_line_kind term_line_kind_now(void); /* of the line last started */
const char *term_line_text(void);    /* raw user text; after DONE the accepted line */
/* Draws label, line and cursor into row y, scrolled sideways to keep the cursor in sight; sets the canvas's cursor. */
void term_line_draw(viz_pane p, int y);
/* candidates of the last completion that was not unique, one a line, "" if none: shown above the prompt */
const char *term_line_candidates(void);

#endif
