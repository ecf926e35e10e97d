/* term.c -- ncurses and readline, kept in one file; term.h says what the rest of the program sees of them.
 *
 * Rules that keep the two apart (each was somebody's bug): ncurses owns the tty in raw mode, so ^C and ^Z are keys; readline gets
 * whole characters from our queue, is called while the queue has bytes, never gets a lone ESC, prints to /dev/null, and must not
 * export LINES and COLUMNS. Signals only write to a pipe; the size is asked for in the main loop. Colours are pairs found by
 * alloc_pair() (extended pairs: COLOR_PAIR() holds 8 bits only) and set by setcchar().
 *
 * This is the one file with static state: the terminal, ncurses and readline are process-wide whether we like it or not. */
#include "tui/term.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <langinfo.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

#define NCURSES_WIDECHAR 1
#include <ncurses.h>
#include <term.h>

#include <readline/history.h>
#include <readline/readline.h>

#undef TUI_KEY_END /* nothing of ncurses' macros may shadow ours */
#include "core/base/file.h"
#include "core/base/path.h"
#include "core/base/text.h"
#include "tui/command.h"
#include "tui/term_direct.h"

enum { PASTE_MAX = 1 << 20, QUEUE_MAX = 4096, PUSHED_MAX = 4096, RESTORE_MAX = 512, HISTORY_MAX = 1000 };
enum { CODE_PASTE_BEGIN = 1000, CODE_PASTE_END = 1001, CODE_HOME = 1002, CODE_END = 1003, CODE_MOUSE = 1004, CODE_MOUSE_OLD = 1005, CODE_F = 1010 };

static struct {
    bool open, screen, headless;
    SCREEN *curses;
    int rows, cols; /* headless */
    viz_caps caps;
    viz_cell *shown; /* what ncurses was told last, (shown_rows, shown_cols) */
    int shown_rows, shown_cols;
    bool repaint, pasting, resized;
    moa_buf paste;
    bool mouse;                   /* asked for */
    char report[24];              /* of the mouse, as far as it came: "0;12;3" */
    int n_report, skip, mouse_y, mouse_x; /* n_report -1: none has begun; skip: bytes of an old report to come */
    int pushed[PUSHED_MAX], n_pushed;
    struct termios saved;
    bool saved_ok;
    char restore[RESTORE_MAX]; /* bytes that put the terminal back; written by signal handlers too */
    size_t restore_bytes;
    int err_saved;
    off_t log_start;
    char log_path[PATH_MAX];
    int signal_pipe[2];
} T = {.n_report = -1, .err_saved = -1, .signal_pipe = {-1, -1}};

/* --- colours ---------------------------------------------------------------------------------------------------------- */

moa_status term_color_depth(const term_color_ask *ask, viz_depth *out, moa_err *err) {
    const char *o = ask->option ? ask->option : "auto";
    static const struct {
        const char *word;
        viz_depth depth;
    } words[] = {{"never", VIZ_MONO}, {"mono", VIZ_MONO}, {"8", VIZ_8}, {"16", VIZ_8}, {"256", VIZ_256}, {"24bit", VIZ_24BIT}, {"truecolor", VIZ_24BIT}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(o, words[i].word) == 0) {
            *out = words[i].depth;
            return MOA_OK;
        }
    if (strcmp(o, "auto") != 0)
        return moa_fail(err, MOA_E_USAGE, "--color %s: auto, never, 8, 256 or 24bit are possible", o);
    const bool said = ask->colorterm && (strcmp(ask->colorterm, "truecolor") == 0 || strcmp(ask->colorterm, "24bit") == 0);
    if (ask->no_color && *ask->no_color) *out = VIZ_MONO;
    else if (ask->n_color < 8) *out = VIZ_MONO;
    else if (ask->has_rgb || said) *out = VIZ_24BIT;
    else *out = ask->n_color >= 256 ? VIZ_256 : VIZ_8;
    return MOA_OK;
}

static int pair_of(viz_style s) {
    int32_t fg = viz_color_resolve(s.fg, T.caps.depth), bg = viz_color_resolve(s.bg, T.caps.depth);
    if (T.caps.depth == VIZ_24BIT) { /* 0..7 would mean the eight ANSI colours */
        if (fg >= 0 && fg < 8) fg = 8;
        if (bg >= 0 && bg < 8) bg = 8;
    }
    if (fg < 0 && bg < 0) return 0;
    const int pair = alloc_pair(fg, bg);
    return pair < 0 ? 0 : pair;
}

static attr_t attr_of(viz_style s) {
    const uint8_t a = T.caps.depth == VIZ_MONO ? viz_style_mono(s) : s.attr;
    return (a & VIZ_A_BOLD ? A_BOLD : 0) | (a & VIZ_A_DIM ? A_DIM : 0) | (a & VIZ_A_UNDERLINE ? A_UNDERLINE : 0) |
           (a & VIZ_A_REVERSE ? A_REVERSE : 0) | (a & VIZ_A_ITALIC ? A_ITALIC : 0);
}

/* --- putting the terminal back -------------------------------------------------------------------------------------------- */

static void restore_add(const char *bytes) {
    if (!bytes || bytes == (char *)-1) return;
    const size_t n = strlen(bytes);
    if (T.restore_bytes + n > RESTORE_MAX) return;
    memcpy(T.restore + T.restore_bytes, bytes, n);
    T.restore_bytes += n;
}

static void write_all(int fd, const char *bytes, size_t n) {
    while (n > 0) {
        const ssize_t k = write(fd, bytes, n);
        if (k <= 0) {
            if (k < 0 && errno == EINTR) continue;
            return;
        }
        bytes += k;
        n -= (size_t)k;
    }
}

/* Nothing but write(2), tcsetattr and signal functions: the heap may be gone. */
static void on_fatal(int sig) {
    static const struct {
        int sig;
        const char *text;
    } names[] = {{SIGSEGV, "segmentation fault"}, {SIGBUS, "bus error"}, {SIGILL, "illegal instruction"}, {SIGFPE, "arithmetic error"},
                 {SIGABRT, "abort"}, {SIGTRAP, "trap"}, {SIGSYS, "bad system call"}};
    if (T.screen) {
        write_all(STDOUT_FILENO, T.restore, T.restore_bytes);
        if (T.saved_ok) (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &T.saved);
    }
    const int fd = T.err_saved >= 0 ? T.err_saved : STDERR_FILENO;
    const char *text = "signal";
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].sig == sig) text = names[i].text;
    static const char a[] = "\nmoascope: ", b[] = ". The terminal was put back; plans on disk are whole.\nCalled from:\n";
    write_all(fd, a, sizeof a - 1);
    write_all(fd, text, strlen(text));
    write_all(fd, b, sizeof b - 1);
    void *frames[32];
    backtrace_symbols_fd(frames, backtrace(frames, 32), fd);
    (void)signal(sig, SIG_DFL);
    (void)raise(sig);
}

static void on_signal(int sig) {
    const int keep = errno;
    const char c = (char)sig;
    (void)!write(T.signal_pipe[1], &c, 1);
    errno = keep;
}

static void catch_signals(void) {
    static char stack[64 * 1024];
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS};
    static const int told[] = {SIGTERM, SIGHUP, SIGINT, SIGCHLD, SIGTSTP, SIGWINCH};
    void *warm[1];
    (void)backtrace(warm, 1); /* loads what it needs now, not in the handler */
    const stack_t alt = {.ss_sp = stack, .ss_size = sizeof stack};
    (void)sigaltstack(&alt, NULL);
    struct sigaction sa = {.sa_handler = on_fatal, .sa_flags = SA_ONSTACK | SA_RESETHAND};
    (void)sigemptyset(&sa.sa_mask);
    for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) (void)sigaction(fatal[i], &sa, NULL);
    sa.sa_handler = on_signal;
    sa.sa_flags = SA_RESTART;
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) (void)sigaction(told[i], &sa, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
}

int term_signal_fd(void) { return T.signal_pipe[0]; }

int term_signals(void) {
    int bits = 0;
    char bytes[64];
    ssize_t n;
    while ((n = read(T.signal_pipe[0], bytes, sizeof bytes)) > 0)
        for (ssize_t i = 0; i < n; i++) switch (bytes[i]) {
            case SIGTERM: bits |= TERM_SIG_TERM; break;
            case SIGHUP: bits |= TERM_SIG_HUP; break;
            case SIGINT: bits |= TERM_SIG_INT; break;
            case SIGCHLD: bits |= TERM_SIG_CHLD; break;
            case SIGTSTP: bits |= TERM_SIG_STOP; break;
            case SIGWINCH: T.resized = true; break;
            default: break;
            }
    return bits;
}

/* --- standard error while the screen is up ----------------------------------------------------------------------------------- */

static void redirect_errors(const char *path) {
    T.log_path[0] = 0;
    if (!path || strlen(path) >= sizeof T.log_path) return;
    const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return;
    T.log_start = lseek(fd, 0, SEEK_END);
    T.err_saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
    (void)dup2(fd, STDERR_FILENO);
    (void)close(fd);
    (void)snprintf(T.log_path, sizeof T.log_path, "%s", path);
}

/* what was said to fd 2 meanwhile (its last 16 KiB), cleaned: engines and drivers write there */
static void replay_errors(void) {
    if (T.err_saved < 0) return;
    (void)fflush(stderr);
    (void)dup2(T.err_saved, STDERR_FILENO);
    (void)close(T.err_saved);
    T.err_saved = -1;
    const int fd = open(T.log_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    const off_t end = lseek(fd, 0, SEEK_END);
    off_t at = T.log_start;
    if (end - at > 16384) at = end - 16384;
    if (end <= at) (void)unlink(T.log_path);
    else {
        static char bytes[16384];
        const ssize_t n = pread(fd, bytes, sizeof bytes, at);
        moa_buf clean = {0};
        if (n > 0) moa_text_clean(bytes, (size_t)n, T.caps.utf8 ? 0 : MOA_TEXT_ASCII, &clean);
        if (clean.data) write_all(STDERR_FILENO, clean.data, clean.size);
        moa_buf_free(&clean);
    }
    (void)close(fd);
}

/* --- open and close ---------------------------------------------------------------------------------------------------------- */

static bool locale_is_utf8(void) {
    return strcmp(nl_langinfo(CODESET), "UTF-8") == 0 && wcwidth(L'▀') == 1;
}

static void our_keys(void) {
    (void)define_key("\033[200~", CODE_PASTE_BEGIN);
    (void)define_key("\033[201~", CODE_PASTE_END);
    (void)define_key("\033[<", CODE_MOUSE);
    (void)define_key("\033[M", CODE_MOUSE_OLD);
    static const char *const home[] = {"\033[H", "\033[1~", "\033[7~", "\033OH"}, *const end[] = {"\033[F", "\033[4~", "\033[8~", "\033OF"};
    for (int i = 0; i < 4; i++) {
        (void)define_key(home[i], CODE_HOME);
        (void)define_key(end[i], CODE_END);
    }
    static const char *const f[] = {"\033[11~", "\033[12~", "\033[13~", "\033[14~"};
    for (int i = 0; i < 4; i++) (void)define_key(f[i], CODE_F + i);
}

/* a screen for the terminal's own description, or for ours when 24 bits are wanted */
static moa_status start_curses(const term_config *c, moa_err *err) {
    const char *term = getenv("TERM");
    int e = 0;
    if (!term || !*term || strcmp(term, "dumb") == 0)
        return moa_fail(err, MOA_E_UNSUPPORTED, "TERM is %s: the workbench needs a terminal that can move its cursor; `moascope chat` works on any",
                        term && *term ? term : "not set");
    if (setupterm(term, STDOUT_FILENO, &e) != OK) term = "xterm-256color";
    else if (!tigetstr("cup") || tigetstr("cup") == (char *)-1)
        return moa_fail(err, MOA_E_UNSUPPORTED, "TERM is %s, a terminal that cannot move its cursor; `moascope chat` works on any", term);
    if (e != 1 && setupterm(term, STDOUT_FILENO, &e) != OK)
        return moa_fail(err, MOA_E_UNSUPPORTED, "no description of terminal %s (install ncurses-base, or set TERM=xterm)", getenv("TERM"));
    const term_color_ask ask = {c->color, getenv("NO_COLOR"), getenv("COLORTERM"), term, tigetnum("colors"), tigetflag("RGB") > 0};
    const moa_status s = term_color_depth(&ask, &T.caps.depth, err);
    if (s != MOA_OK) return s;
    (void)del_curterm(cur_term);
    char *old = getenv("TERMINFO");
    old = old ? strdup(old) : NULL;
    if (T.caps.depth == VIZ_24BIT) {
        (void)setenv("TERMINFO", TERM_DIRECT, 1);
        T.curses = newterm(TERM_DIRECT_NAME, stdout, stdin);
    }
    if (old) (void)setenv("TERMINFO", old, 1);
    else (void)unsetenv("TERMINFO");
    free(old);
    if (!T.curses) {
        if (T.caps.depth == VIZ_24BIT) T.caps.depth = ask.n_color >= 256 ? VIZ_256 : ask.n_color >= 8 ? VIZ_8 : VIZ_MONO;
        T.curses = newterm(term, stdout, stdin);
    }
    return T.curses ? MOA_OK : moa_fail(err, MOA_E_UNSUPPORTED, "cannot use this terminal (TERM=%s)", term);
}

/* pastes in brackets, the mouse's buttons (1000) as text (1006) */
#define MODES_OFF "\033[?1006l\033[?1000l\033[?2004l"
static const char paste_on[] = "\033[?2004h", mouse_on[] = "\033[?1000h\033[?1006h", mouse_off[] = "\033[?1006l\033[?1000l";

static void modes_on(void) {
    if (T.caps.depth == VIZ_MONO && (!getenv("TERM") || strncmp(getenv("TERM"), "vt", 2) == 0)) return;
    write_all(STDOUT_FILENO, paste_on, sizeof paste_on - 1);
    if (T.mouse) write_all(STDOUT_FILENO, mouse_on, sizeof mouse_on - 1);
}

void term_mouse(bool on) {
    if (T.screen && T.mouse && !on) write_all(STDOUT_FILENO, mouse_off, sizeof mouse_off - 1);
    T.mouse = on;
    if (T.screen) modes_on();
}
bool term_mouse_on(void) { return T.mouse; }
void term_mouse_at(int *y, int *x) { *y = T.mouse_y, *x = T.mouse_x; }

static void start_screen(void) {
    (void)raw();
    (void)noecho();
    (void)nonl();
    (void)keypad(stdscr, TRUE);
    (void)nodelay(stdscr, TRUE);
    (void)intrflush(stdscr, FALSE);
    (void)scrollok(stdscr, FALSE);
    (void)leaveok(stdscr, FALSE);
    (void)set_escdelay(25);
    if (T.caps.depth != VIZ_MONO && has_colors()) {
        (void)start_color();
        (void)use_default_colors();
    } else T.caps.depth = VIZ_MONO;
    our_keys();
    restore_add(MODES_OFF);
    restore_add(tigetstr("sgr0"));
    restore_add(tigetstr("op"));
    restore_add(tigetstr("rmkx"));
    restore_add(tigetstr("cnorm"));
    restore_add(tigetstr("rmcup"));
    modes_on();
    T.screen = true;
    T.repaint = true;
}

static void line_setup(void);

moa_status term_open(const term_config *c, moa_err *err) {
    (void)setlocale(LC_CTYPE, ""); /* numbers stay as they are typed */
    (void)unsetenv("LINES"); /* exported ones would freeze the size */
    (void)unsetenv("COLUMNS");
    T.headless = c->headless;
    T.mouse = c->mouse;
    T.caps = (viz_caps){VIZ_24BIT, !c->ascii && (c->headless || locale_is_utf8())};
    if (pipe2(T.signal_pipe, O_CLOEXEC | O_NONBLOCK) != 0) return moa_fail(err, MOA_E_FAILED, "no pipe for signals: %s", strerror(errno));
    T.open = true;
    line_setup();
    if (c->headless) {
        const term_color_ask ask = {c->color, getenv("NO_COLOR"), NULL, NULL, 1 << 24, true};
        const moa_status s = term_color_depth(&ask, &T.caps.depth, err);
        if (s != MOA_OK) return s;
        T.rows = c->rows;
        T.cols = c->cols;
        catch_signals();
        return MOA_OK;
    }
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return moa_fail(err, MOA_E_USAGE, "standard %s is not a terminal: the workbench needs one (`moascope run` does the same work without)",
                        isatty(STDIN_FILENO) ? "output" : "input");
    T.saved_ok = tcgetattr(STDIN_FILENO, &T.saved) == 0;
    const moa_status s = start_curses(c, err);
    if (s != MOA_OK) return s;
    start_screen();
    catch_signals(); /* after ncurses installed its own */
    (void)atexit(term_close);
    redirect_errors(c->log_path);
    return MOA_OK;
}

void term_close(void) {
    if (!T.open) return;
    T.open = false;
    if (rl_line_buffer && term_line_now() == TERM_LINE_EDITING) term_line_cancel();
    if (T.screen) {
        T.screen = false;
        write_all(STDOUT_FILENO, MODES_OFF, sizeof MODES_OFF - 1);
        (void)endwin();
        if (T.saved_ok) (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &T.saved);
        delscreen(T.curses);
        T.curses = NULL;
    }
    replay_errors();
    free(T.shown);
    T.shown = NULL;
    moa_buf_free(&T.paste);
}

viz_caps term_caps(void) { return T.caps; }
bool term_headless(void) { return T.headless; }

void term_resize(int rows, int cols) {
    if (!T.headless || rows < 1 || cols < 1 || rows > VIZ_ROWS_MAX || cols > VIZ_COLS_MAX) return;
    T.rows = rows;
    T.cols = cols;
    term_push_key(TUI_KEY_RESIZE);
}
int term_fd(void) { return T.headless ? -1 : STDIN_FILENO; }
const char *term_log_path(void) { return T.log_path; }

void term_size(int *rows, int *cols) {
    if (T.headless) {
        *rows = T.rows;
        *cols = T.cols;
        return;
    }
    getmaxyx(stdscr, *rows, *cols);
    if (*rows > VIZ_ROWS_MAX) *rows = VIZ_ROWS_MAX;
    if (*cols > VIZ_COLS_MAX) *cols = VIZ_COLS_MAX;
}

/* --- showing ------------------------------------------------------------------------------------------------------------------ */

static bool cell_same(const viz_cell *a, const viz_cell *b) {
    return a->n == b->n && a->width == b->width && a->style.fg == b->style.fg && a->style.bg == b->style.bg && a->style.attr == b->style.attr &&
           memcmp(a->text, b->text, a->n) == 0;
}

static void show_cell(int y, int x, const viz_cell *cell) {
    wchar_t wide[CCHARW_MAX + 1] = {L' '};
    int n = 0;
    for (size_t i = 0; i < cell->n && n < CCHARW_MAX;) {
        int32_t cp;
        i += moa_utf8_next(cell->text + i, cell->n - i, &cp, NULL);
        wide[n++] = (wchar_t)cp;
    }
    wide[n > 0 ? n : 1] = 0;
    cchar_t cc;
    int pair = pair_of(cell->style);
    if (setcchar(&cc, wide, attr_of(cell->style), 0, &pair) == OK) (void)mvadd_wch(y, x, &cc);
}

bool term_draw(const viz_canvas *c) {
    if (T.headless || !T.screen) return true;
    struct pollfd p = {STDOUT_FILENO, POLLOUT, 0};
    if (poll(&p, 1, 0) == 0) return false; /* the terminal is slow: a later frame will do */
    if (T.shown_rows != c->rows || T.shown_cols != c->cols || T.repaint) {
        viz_cell *shown = realloc(T.shown, sizeof *shown * (size_t)c->rows * (size_t)c->cols);
        if (!shown) return false;
        memset(shown, 0, sizeof *shown * (size_t)c->rows * (size_t)c->cols);
        T.shown = shown;
        T.shown_rows = c->rows;
        T.shown_cols = c->cols;
        (void)erase();
        if (T.repaint) (void)clearok(curscr, TRUE);
        T.repaint = false;
    }
    for (int y = 0; y < c->rows; y++)
        for (int x = 0; x < c->cols; x++) {
            const viz_cell *cell = viz_canvas_at(c, y, x);
            viz_cell *shown = &T.shown[(size_t)y * (size_t)c->cols + (size_t)x];
            if (cell->width == 0) {
                *shown = *cell;
                continue;
            }
            /* a wide character next to a change may have lost a half: write it again */
            if (cell_same(cell, shown) && cell->width == 1) continue;
            show_cell(y, x, cell);
            *shown = *cell;
        }
    if (c->cursor_y >= 0 && c->cursor_x >= 0) {
        (void)curs_set(1);
        (void)move(c->cursor_y, c->cursor_x);
    } else {
        (void)curs_set(0);
        (void)move(c->rows - 1, c->cols - 1);
    }
    (void)refresh();
    return true;
}

void term_repaint(void) { T.repaint = true; }
void term_bell(void) {
    if (T.screen) (void)beep();
}

void term_clipboard(const char *bytes, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (!T.screen || n > 65536) return;
    moa_buf out = {0};
    moa_buf_str(&out, "\033]52;c;");
    for (size_t i = 0; i < n; i += 3) {
        const unsigned a = (unsigned char)bytes[i], b = i + 1 < n ? (unsigned char)bytes[i + 1] : 0, c = i + 2 < n ? (unsigned char)bytes[i + 2] : 0;
        const unsigned v = a << 16 | b << 8 | c;
        const char four[4] = {digits[v >> 18], digits[v >> 12 & 63], i + 1 < n ? digits[v >> 6 & 63] : '=', i + 2 < n ? digits[v & 63] : '='};
        moa_buf_append(&out, four, 4);
    }
    moa_buf_str(&out, "\a");
    if (moa_buf_ok(&out)) write_all(STDOUT_FILENO, out.data, out.size);
    moa_buf_free(&out);
}

/* --- suspending, editing a file ---------------------------------------------------------------------------------------------- */

static void leave_screen(void) {
    write_all(STDOUT_FILENO, MODES_OFF, sizeof MODES_OFF - 1);
    (void)def_prog_mode();
    (void)endwin();
}

static void enter_screen(void) {
    (void)reset_prog_mode();
    (void)refresh();
    modes_on();
    T.repaint = true;
    T.resized = true; /* the size may have changed meanwhile */
}

static double seconds(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double term_suspend(void) {
    if (!T.screen) return 0;
    const double from = seconds();
    leave_screen();
    struct sigaction dfl = {.sa_handler = SIG_DFL}, old;
    (void)sigemptyset(&dfl.sa_mask);
    (void)sigaction(SIGTSTP, &dfl, &old);
    (void)kill(0, SIGTSTP); /* the whole group, as the shell would */
    (void)sigaction(SIGTSTP, &old, NULL);
    enter_screen();
    return seconds() - from;
}

moa_status term_edit_file(const char *path, moa_err *err) {
    if (!T.screen) return moa_fail(err, MOA_E_UNSUPPORTED, "an editor needs a terminal");
    const char *editor = getenv("VISUAL");
    if (!editor || !*editor) editor = getenv("EDITOR");
    if (!editor || !*editor) editor = "vi";
    leave_screen();
    const pid_t pid = fork();
    if (pid == 0) {
        static const int back[] = {SIGTSTP, SIGINT, SIGQUIT, SIGPIPE, SIGCHLD, SIGWINCH, SIGTERM, SIGHUP};
        for (size_t i = 0; i < sizeof back / sizeof *back; i++) (void)signal(back[i], SIG_DFL);
        if (T.err_saved >= 0) (void)dup2(T.err_saved, STDERR_FILENO);
        /* the variable may hold options, so a shell reads it; the file name is an argument, never shell text */
        char command[PATH_MAX];
        (void)snprintf(command, sizeof command, "exec %s \"$1\"", editor);
        (void)execl("/bin/sh", "sh", "-c", command, "sh", path, (char *)NULL);
        _exit(127);
    }
    int status = -1;
    if (pid > 0)
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {}
    enter_screen();
    if (pid < 0) return moa_fail(err, MOA_E_FAILED, "cannot start %s: %s", editor, strerror(errno));
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return moa_fail(err, MOA_E_FAILED, "%s ended with status %d", editor, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return MOA_OK;
}

/* --- keys ----------------------------------------------------------------------------------------------------------------------- */

void term_push_key(int key) {
    if (T.n_pushed < PUSHED_MAX) T.pushed[T.n_pushed++] = key;
}

void term_push_paste(const char *bytes, size_t n) {
    moa_buf_clear(&T.paste);
    moa_buf_append(&T.paste, bytes, n > PASTE_MAX ? PASTE_MAX : n);
    term_push_key(TUI_KEY_PASTE);
}

const char *term_pasted(size_t *n) {
    *n = T.paste.size;
    return T.paste.data ? T.paste.data : "";
}

static int from_code(int code) {
    switch (code) {
    case KEY_UP: return TUI_KEY_UP;
    case KEY_DOWN: return TUI_KEY_DOWN;
    case KEY_LEFT: return TUI_KEY_LEFT;
    case KEY_RIGHT: return TUI_KEY_RIGHT;
    case KEY_HOME:
    case CODE_HOME: return TUI_KEY_HOME;
    case KEY_END:
    case CODE_END: return TUI_KEY_END;
    case KEY_PPAGE: return TUI_KEY_PGUP;
    case KEY_NPAGE: return TUI_KEY_PGDN;
    case KEY_IC: return TUI_KEY_INSERT;
    case KEY_DC: return TUI_KEY_DELETE;
    case KEY_BACKSPACE: return TUI_KEY_BACKSPACE;
    case KEY_ENTER: return TUI_KEY_ENTER;
    case KEY_BTAB: return TUI_KEY_BACKTAB;
    case KEY_RESIZE: return TUI_KEY_RESIZE;
    default: break;
    }
    if (code >= KEY_F(1) && code <= KEY_F(12)) return TUI_KEY_F1 + (code - KEY_F(1));
    if (code >= CODE_F && code < CODE_F + 4) return TUI_KEY_F1 + (code - CODE_F);
    return TUI_KEY_NONE;
}

static int from_char(wint_t c) {
    switch (c) {
    case 9: return TUI_KEY_TAB;
    case 13: return TUI_KEY_ENTER;
    case 27: return TUI_KEY_ESC;
    case 8:
    case 127: return TUI_KEY_BACKSPACE;
    case 32: return TUI_KEY_SPACE;
    default: return (int)c;
    }
}

static void paste_char(wint_t c) {
    char bytes[4];
    if (c == 13) c = 10;
    if (T.paste.size < PASTE_MAX) moa_buf_append(&T.paste, bytes, moa_utf8_put((int32_t)c, bytes));
}

/* One more character of a report "button;column;row", M: pressed, m: let go. Returns the key that it makes, TUI_KEY_NONE: none, or not yet. */
static int mouse_char(wint_t c) {
    int button, x, y;
    if (((c >= '0' && c <= '9') || c == ';') && T.n_report + 1 < (int)sizeof T.report) {
        T.report[T.n_report++] = (char)c;
        return TUI_KEY_NONE;
    }
    T.report[T.n_report] = 0;
    T.n_report = -1;
    if (c != 'M' || sscanf(T.report, "%5d;%5d;%5d", &button, &x, &y) != 3 || x < 1 || y < 1) return TUI_KEY_NONE;
    T.mouse_x = x - 1;
    T.mouse_y = y - 1;
    button &= ~(4 | 8 | 16); /* with Shift, Alt, Ctrl */
    return button == 0 ? TUI_KEY_CLICK : button == 64 ? TUI_KEY_WHEEL_UP : button == 65 ? TUI_KEY_WHEEL_DOWN : TUI_KEY_NONE;
}

/* one key from ncurses; TUI_KEY_NONE: nothing more there */
static int read_key(void) {
    for (;;) {
        wint_t c = 0;
        const int r = get_wch(&c);
        if (r == ERR) return TUI_KEY_NONE;
        if (r == OK && T.skip > 0) {
            T.skip--;
            continue;
        }
        if (r == OK && T.n_report >= 0) {
            const int key = mouse_char(c);
            if (key == TUI_KEY_NONE) continue;
            return key;
        }
        T.skip = 0;
        T.n_report = r == KEY_CODE_YES && c == CODE_MOUSE ? 0 : -1;
        if (T.n_report == 0) continue;
        if (r == KEY_CODE_YES && c == CODE_MOUSE_OLD) { /* a terminal that knows no text form: three bytes that are not keys */
            T.skip = 3;
            continue;
        }
        if (r == KEY_CODE_YES && c == CODE_PASTE_BEGIN) {
            T.pasting = true;
            moa_buf_clear(&T.paste);
            continue;
        }
        if (r == KEY_CODE_YES && c == CODE_PASTE_END) {
            T.pasting = false;
            return TUI_KEY_PASTE;
        }
        if (T.pasting) {
            if (r == OK) paste_char(c);
            continue;
        }
        if (r == KEY_CODE_YES) {
            const int key = from_code((int)c);
            if (key == TUI_KEY_NONE) continue;
            return key;
        }
        if (c != 27) return from_char(c);
        wint_t next = 0; /* Alt-x arrives as ESC x at once */
        const int r2 = get_wch(&next);
        if (r2 == OK && next != 27 && next >= 32) return TUI_KEY_ALT | from_char(next);
        if (r2 == OK) (void)unget_wch((wchar_t)next);
        else if (r2 == KEY_CODE_YES) (void)ungetch((int)next);
        return TUI_KEY_ESC;
    }
}

int term_key(bool *gone) {
    *gone = false;
    if (T.n_pushed > 0) {
        const int key = T.pushed[0];
        memmove(T.pushed, T.pushed + 1, sizeof *T.pushed * (size_t)--T.n_pushed);
        return key;
    }
    if (T.headless || !T.screen) return TUI_KEY_NONE;
    if (T.resized) {
        T.resized = false;
        struct winsize w = {0};
        if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_row > 0 && w.ws_col > 0 && is_term_resized(w.ws_row, w.ws_col)) {
            (void)resizeterm(w.ws_row, w.ws_col);
            T.repaint = true;
        }
        return TUI_KEY_RESIZE;
    }
    struct pollfd p = {STDIN_FILENO, POLLIN, 0};
    if (poll(&p, 1, 0) > 0 && (p.revents & (POLLERR | POLLNVAL) || (p.revents & POLLHUP && !(p.revents & POLLIN)))) *gone = true;
    return read_key();
}

/* --- the line editor -------------------------------------------------------------------------------------------------------- */

static const char *const history_names[TERM_LINE_KINDS] = {"history-command", "history-search", "history-prompt", NULL};

static struct {
    term_line_state state;
    term_line_ask ask;
    char label[128];
    moa_buf text, candidates;
    unsigned char queue[QUEUE_MAX];
    size_t n_queue;
    HISTORY_STATE *history[TERM_LINE_KINDS];
    int scroll; /* first byte of the line in sight */
} L;

static int queue_get(FILE *unused) {
    (void)unused;
    if (L.n_queue == 0) return EOF;
    const int c = L.queue[0];
    memmove(L.queue, L.queue + 1, --L.n_queue);
    return c;
}
static int queue_there(void) { return L.n_queue > 0; }
static void queue_put(const char *bytes, size_t n) {
    if (n > QUEUE_MAX - L.n_queue) return;
    memcpy(L.queue + L.n_queue, bytes, n);
    L.n_queue += n;
}
static void nothing(void) {}

static void show_matches(char **matches, int n, int longest) {
    (void)longest;
    moa_buf_clear(&L.candidates);
    for (int i = 1; i <= n; i++) moa_buf_printf(&L.candidates, "%s\n", matches[i]);
}

/* candidates of the ask -> readline's array: the common beginning, then all of them */
static char **complete(const char *text, int start, int end) {
    (void)start;
    (void)end;
    rl_attempted_completion_over = 1;
    if (!L.ask.complete) return NULL;
    moa_buf b = {0};
    size_t word_at = 0;
    L.ask.complete(L.ask.user, rl_line_buffer, (size_t)rl_point, &word_at, &b);
    const size_t n_text = strlen(text);
    size_t n = 0;
    for (size_t i = 0; i < b.size; i++) n += b.data[i] == '\n';
    char **matches = n ? calloc(n + 2, sizeof *matches) : NULL;
    size_t k = 0;
    for (char *line = b.data; matches && line && *line;) {
        char *stop = strchr(line, '\n');
        if (!stop) break;
        *stop = 0;
        if (strncmp(line, text, n_text) == 0 && (matches[k + 1] = strdup(line))) k++;
        line = stop + 1;
    }
    moa_buf_free(&b);
    if (k == 0) {
        free(matches);
        return NULL;
    }
    size_t common = strlen(matches[1]);
    for (size_t i = 2; i <= k; i++)
        for (size_t j = 0; j < common; j++)
            if (matches[i][j] != matches[1][j]) common = j;
    matches[0] = strndup(matches[1], common);
    rl_completion_suppress_append = k == 1 && common > 0 && (matches[0][common - 1] == '/' || matches[0][common - 1] == '=');
    if (k == 1) { /* unique: readline wants it in [0] alone */
        free(matches[1]);
        matches[1] = NULL;
    }
    return matches;
}

static void history_path(term_line_kind kind, char *out, size_t out_bytes) {
    out[0] = 0;
    if (!history_names[kind] || moa_path_place(MOA_PLACE_STATE, history_names[kind], out, out_bytes, NULL) != MOA_OK) out[0] = 0;
}

static void history_switch(term_line_kind kind) {
    if (!L.history[kind]) {
        HISTORY_STATE empty = {0};
        history_set_history_state(&empty);
        using_history();
        stifle_history(HISTORY_MAX);
        char path[PATH_MAX];
        history_path(kind, path, sizeof path);
        if (*path && !T.headless) (void)read_history(path);
        L.history[kind] = history_get_history_state();
        return;
    }
    history_set_history_state(L.history[kind]);
    using_history();
}

static void history_keep(term_line_kind kind) {
    free(L.history[kind]);
    L.history[kind] = history_get_history_state();
}

static void history_put(term_line_kind kind, const char *line) {
    if (!*line || kind == TERM_LINE_ANSWER) return;
    HIST_ENTRY *last = history_length > 0 ? history_get(history_base + history_length - 1) : NULL;
    if (last && strcmp(last->line, line) == 0) return;
    add_history(line);
    char path[PATH_MAX], folder[PATH_MAX];
    history_path(kind, path, sizeof path);
    if (!*path || T.headless) return;
    if (moa_path_place(MOA_PLACE_STATE, "", folder, sizeof folder, NULL) != MOA_OK || moa_dir_make(folder, NULL) != MOA_OK) return;
    const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return;
    moa_buf b = {0};
    moa_buf_printf(&b, "%s\n", line);
    if (moa_buf_ok(&b)) write_all(fd, b.data, b.size); /* after each line, not only at the end */
    moa_buf_free(&b);
    (void)close(fd);
}

static void line_done(char *line) {
    rl_callback_handler_remove();
    L.n_queue = 0;
    moa_buf_clear(&L.text);
    if (line) {
        moa_buf_str(&L.text, line);
        history_put(L.ask.kind, line);
        L.state = TERM_LINE_DONE;
    } else L.state = TERM_LINE_CANCELLED;
    history_keep(L.ask.kind);
    free(line);
}

static void line_setup(void) {
    rl_readline_name = "moascope";
    rl_catch_signals = 0;
    rl_catch_sigwinch = 0;
    rl_change_environment = 0;
    rl_prep_term_function = NULL;
    rl_deprep_term_function = NULL;
    rl_outstream = fopen("/dev/null", "we");
    rl_instream = fopen("/dev/null", "re");
    rl_getc_function = queue_get;
    rl_input_available_hook = queue_there;
    rl_redisplay_function = nothing;
    rl_completion_display_matches_hook = show_matches;
    rl_attempted_completion_function = complete;
    rl_completer_word_break_characters = " \t";
    rl_basic_word_break_characters = " \t";
    rl_completer_quote_characters = NULL;
    rl_completion_query_items = 0;
    rl_ignore_completion_duplicates = 1;
    (void)rl_variable_bind("enable-bracketed-paste", "off");
    (void)rl_variable_bind("bell-style", "none");
    (void)rl_variable_bind("show-all-if-ambiguous", "on");
    (void)rl_variable_bind("page-completions", "off");
    (void)rl_variable_bind("keyseq-timeout", "0");
}

void term_line_start(const term_line_ask *ask) {
    if (L.state == TERM_LINE_EDITING) term_line_cancel();
    L.ask = *ask;
    (void)snprintf(L.label, sizeof L.label, "%s", ask->label);
    L.n_queue = 0;
    L.scroll = 0;
    moa_buf_clear(&L.candidates);
    moa_buf_clear(&L.text);
    history_switch(ask->kind);
    rl_callback_handler_install(L.label, line_done);
    rl_set_screen_size(24, 10000); /* one endless line: sideways scrolling is ours */
    if (ask->initial && *ask->initial) (void)rl_insert_text(ask->initial);
    L.state = TERM_LINE_EDITING;
}

void term_line_cancel(void) {
    if (L.state != TERM_LINE_EDITING) return;
    RL_SETSTATE(RL_STATE_CALLBACK); /* else the next call does nothing, and a half-typed search is taken up by the next line */
    rl_callback_sigcleanup();
    RL_UNSETSTATE(RL_STATE_CALLBACK);
    rl_free_line_state();
    RL_UNSETSTATE(RL_STATE_ISEARCH | RL_STATE_NSEARCH | RL_STATE_VIMOTION | RL_STATE_NUMERICARG | RL_STATE_MULTIKEY);
    rl_callback_handler_remove();
    history_keep(L.ask.kind);
    L.n_queue = 0;
    moa_buf_clear(&L.candidates);
    L.state = TERM_LINE_CANCELLED;
}

term_line_state term_line_now(void) { return L.state; }
term_line_kind term_line_kind_now(void) { return L.ask.kind; }

const char *term_line_text(void) {
    if (L.state == TERM_LINE_EDITING) return rl_line_buffer ? rl_line_buffer : "";
    return L.text.data ? L.text.data : "";
}

const char *term_line_candidates(void) { return L.state == TERM_LINE_EDITING && L.candidates.data ? L.candidates.data : ""; }

static void insert_paste(void) {
    size_t n;
    const char *bytes = term_pasted(&n);
    char *text = malloc(n + 1);
    if (!text) return;
    for (size_t i = 0; i < n; i++) text[i] = bytes[i] == '\n' || bytes[i] == '\t' ? ' ' : bytes[i];
    text[n] = 0;
    (void)rl_insert_text(text);
    free(text);
}

/* the bytes a terminal would have sent for a key */
static void queue_key(int key) {
    static const struct {
        int key;
        const char *bytes;
    } list[] = {{TUI_KEY_UP, "\033[A"}, {TUI_KEY_DOWN, "\033[B"}, {TUI_KEY_RIGHT, "\033[C"}, {TUI_KEY_LEFT, "\033[D"}, {TUI_KEY_HOME, "\033[H"},
                {TUI_KEY_END, "\033[F"}, {TUI_KEY_DELETE, "\033[3~"}, {TUI_KEY_BACKSPACE, "\x7f"}, {TUI_KEY_ENTER, "\r"}, {TUI_KEY_TAB, "\t"},
                {TUI_KEY_SPACE, " "}};
    if (key & TUI_KEY_ALT) {
        queue_put("\033", 1);
        key &= ~TUI_KEY_ALT;
    }
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i].key == key) {
            queue_put(list[i].bytes, strlen(list[i].bytes));
            return;
        }
    if (key <= 0 || key >= TUI_KEY_BASE) {
        L.n_queue = 0; /* no byte sequence of its own: nothing, also not a lone ESC before it */
        return;
    }
    char bytes[4];
    queue_put(bytes, moa_utf8_put(key, bytes));
}

static void feed(const char *bytes, size_t n) {
    queue_put(bytes, n);
    while (L.n_queue > 0 && L.state == TERM_LINE_EDITING) rl_callback_read_char();
}

/* Within an incremental search readline (8.2) crashes on keys of more than one byte, C-x t say: it reads the second from a state that is
 * gone. So every key that is no part of a search ends it first, by C-j, which keeps the line. */
static bool ends_search(int key) {
    if (key >= 32 && key < TUI_KEY_BASE) return false;
    return key != TUI_KEY_BACKSPACE && key != TUI_KEY_ENTER && key != TUI_KEY_SPACE && key != tui_ctrl('r') && key != tui_ctrl('s') && key != tui_ctrl('g');
}

term_line_state term_line_key(int key) {
    if (L.state != TERM_LINE_EDITING) return L.state;
    if (key == TUI_KEY_ESC || key == tui_ctrl('c') || (key == tui_ctrl('g') && !RL_ISSTATE(RL_STATE_ISEARCH))) {
        term_line_cancel();
        return L.state;
    }
    if (key == TUI_KEY_BACKSPACE && rl_end == 0 && !RL_ISSTATE(RL_STATE_ISEARCH)) { /* back out of an empty line */
        term_line_cancel();
        return L.state;
    }
    if (key != TUI_KEY_TAB) moa_buf_clear(&L.candidates);
    if (RL_ISSTATE(RL_STATE_ISEARCH) && ends_search(key)) feed("\n", 1);
    if (L.state != TERM_LINE_EDITING) return L.state;
    if (key == TUI_KEY_PASTE) insert_paste();
    else queue_key(key);
    feed("", 0);
    return L.state;
}

/* cells of one character of a user's line as viz_text draws it */
static int line_cells(const char *s, size_t n, size_t *used) {
    int32_t cp;
    bool valid;
    *used = moa_utf8_next(s, n, &cp, &valid);
    if (!valid || cp < 32 || cp == 127 || moa_text_unsafe(cp)) return 1;
    if (!T.caps.utf8) return 1;
    return moa_cp_cells(cp);
}

static int cells_between(const char *s, int from, int to) {
    int cells = 0;
    for (int i = from; i < to;) {
        size_t used;
        cells += line_cells(s + i, (size_t)(to - i), &used);
        i += (int)used;
    }
    return cells;
}

void term_line_draw(viz_pane p, int y) {
    if (L.state != TERM_LINE_EDITING) return;
    const char *label = rl_display_prompt && *rl_display_prompt ? rl_display_prompt : L.label;
    const char *text = rl_line_buffer ? rl_line_buffer : "";
    const int x = viz_text(p, y, 0, viz_bold(VIZ_ACCENT), label), room = p.w - x - 1;
    const int n = (int)strlen(text), point = rl_point < n ? rl_point : n;
    if (room < 1) return;
    if (L.scroll > point || L.scroll > n) L.scroll = point;
    while (cells_between(text, L.scroll, point) > room) { /* whole characters leave on the left */
        size_t used;
        (void)line_cells(text + L.scroll, (size_t)(n - L.scroll), &used);
        L.scroll += (int)used;
    }
    if (L.scroll > 0 && cells_between(text, 0, n) <= room) L.scroll = 0;
    int end = L.scroll;
    for (int cells = 0; end < n;) {
        size_t used;
        cells += line_cells(text + end, (size_t)(n - end), &used);
        if (cells > room) break;
        end += (int)used;
    }
    (void)viz_bytes(p, y, x, viz_fg(VIZ_TEXT), text + L.scroll, (size_t)(end - L.scroll));
    if (L.scroll > 0) (void)viz_text(p, y, x, viz_fg(VIZ_DIM), "<");
    viz_cursor(p, y, x + cells_between(text, L.scroll, point));
}
