/* app.c -- the loop, the keys, the start and the end of the workbench.
 *
 *   turn: script -> signals -> keys -> engine -> draw (at most 20 times a second, 10 while tokens stream, 60 after a key) -> poll
 *
 * Nothing in a turn waits: the only sleep is poll() over the tty, the engine's pipe and the signal pipe. */
#include "tui/app.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/path.h"
#include "core/model/model.h"
#include "tui/batch/batch.h"
#include "tui/internal.h"
#include "tui/load.h"
#include "tui/journal.h"
#include "tui/search.h"
#include "tui/term.h"

enum { KEYS_A_TURN = 256, PROMPT_MAX = 8 << 20 };

static double clock_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* --- views -------------------------------------------------------------------------------------------------------------- */

static const tui_view *const view_list[] = {
#define X(name) &tui_view_##name,
    MOA_VIEW_LIST(X)
#undef X
};

int tui_view_count(void) { return (int)(sizeof view_list / sizeof *view_list); }

const tui_view *tui_view_at(int i) { /* i-th by key */
    if (i < 0 || i >= tui_view_count()) return NULL;
    for (int k = 0; k < tui_view_count(); k++) {
        int before = 0;
        for (int j = 0; j < tui_view_count(); j++) before += view_list[j]->key < view_list[k]->key;
        if (before == i) return view_list[k];
    }
    return NULL;
}

const tui_view *tui_view_find(const char *name) {
    for (int i = 0; i < tui_view_count(); i++)
        if (strcmp(view_list[i]->name, name) == 0) return view_list[i];
    return NULL;
}

tui_view_state *tui_view_vars(tui_app *app, const tui_view *view) {
    int i = 0;
    while (i < tui_view_count() - 1 && tui_view_at(i) != view) i++;
    return &app->views[i];
}

void tui_view_switch(tui_app *app, int view) {
    const tui_view *old = tui_view_at(app->view), *now = tui_view_at(view);
    if (!now || view == app->view) return;
    if (old && old->leave) old->leave(app);
    app->view_before = app->view;
    app->view = view;
    app->n_pending = app->count = 0;
    if (now->enter) now->enter(app);
    tui_dirty(app);
}

void tui_dirty(tui_app *app) { app->dirty_screen = true; }

void tui_cursor_move(tui_app *app, int32_t layer, int32_t head) {
    const int32_t n_layer = app->plan.now ? app->plan.now->n_layer : 0, n_head = app->plan.now ? app->plan.now->n_head : 0;
    if (n_layer == 0) return;
    app->cursor.layer = layer < 0 ? 0 : layer >= n_layer ? n_layer - 1 : layer;
    app->cursor.head = head < 0 ? 0 : head >= n_head ? n_head - 1 : head;
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i)->event) tui_view_at(i)->event(app, TUI_EV_CURSOR);
    tui_dirty(app);
}

/* --- saying, asking, popups ---------------------------------------------------------------------------------------------- */

void tui_say(tui_app *app, tui_tone tone, const char *format, ...) {
    tui_line *l = &app->log[app->n_log++ % TUI_LOG_MAX];
    char text[1024];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t n = strlen(text);
    if (n >= sizeof l->text) { /* cut at a whole character */
        n = sizeof l->text - 4;
        n -= moa_utf8_tail(text, n);
        memcpy(text + n, "...", 3);
        n += 3;
    }
    memcpy(l->text, text, n);
    l->text[n] = 0;
    l->tone = tone;
    l->at = app->said_at = clock_s();
    if (tone >= TUI_WARN) app->n_held = app->n_log;
    tui_dirty(app);
}

const tui_line *tui_said(const tui_app *app) {
    const bool held = app->n_held && app->n_log - app->n_held < TUI_LOG_MAX;
    return &app->log[((held ? app->n_held : app->n_log) - 1) % TUI_LOG_MAX];
}

void tui_popup_open(tui_app *app, tui_popup kind, const char *title) {
    app->popup = kind;
    app->popup_at = app->popup_scroll = 0;
    app->popup_query[0] = 0;
    (void)snprintf(app->popup_title, sizeof app->popup_title, "%s", title);
    tui_dirty(app);
}

void tui_popup_close(tui_app *app) {
    app->popup = TUI_POPUP_NONE;
    moa_buf_clear(&app->popup_text);
    tui_dirty(app);
}

void tui_ask(tui_app *app, const char *question, moa_status (*yes)(tui_app *app, moa_err *err)) {
    tui_popup_open(app, TUI_POPUP_ASK, question);
    app->ask_yes = yes;
}

static void complete_line(void *user, const char *line, size_t point, size_t *word_at, moa_buf *out) {
    tui_command_complete(user, line, point, word_at, out);
}

void tui_line_start_command(tui_app *app, const char *initial) {
    const term_line_ask ask = {.kind = TERM_LINE_COMMAND, .label = ":", .initial = initial, .complete = complete_line, .user = app};
    term_line_start(&ask);
    tui_dirty(app);
}

/* --- keys -------------------------------------------------------------------------------------------------------------------- */

static void run_line(tui_app *app, const char *line) {
    moa_err err = {0};
    if (tui_command_line(app, line, &err) != MOA_OK) {
        tui_say(app, TUI_BAD, "%s", err.text);
        if (app->script) tui_script_failed(app, err.text);
    }
}

void tui_command_run(tui_app *app, const tui_command *row, int count, bool from_key) {
    if (row->prompt && from_key) {
        tui_line_start_command(app, row->prompt);
        return;
    }
    char *none[1] = {NULL};
    const tui_args args = {.rest = "", .argv = none, .count = count, .from_key = from_key};
    moa_err err = {0};
    if (row->run(app, &args, &err) == MOA_OK) return;
    tui_say(app, TUI_BAD, "%s", err.text);
    if (app->script) tui_script_failed(app, err.text);
}

void tui_search(tui_app *app, int dir) {
    const tui_view *v = tui_view_at(app->view);
    int n_match = -1;
    if (!*app->search) return;
    if (!v || !v->search) {
        tui_say(app, TUI_INFO, "Nothing to search on this screen");
        return;
    }
    moa_buf shown = {0};
    moa_text_clean(app->search, strlen(app->search), MOA_TEXT_LINE, &shown);
    const char *what = shown.data ? shown.data : "";
    if (!v->search(app, app->search, dir, &n_match)) tui_say(app, TUI_WARN, "Not found: %s", what);
    else if (n_match >= 0) tui_say(app, TUI_INFO, "/%s  %d match%s", what, n_match, n_match == 1 ? "" : "es");
    moa_buf_free(&shown);
    tui_dirty(app);
}

static void line_finished(tui_app *app, term_line_kind kind, const char *text) {
    char *copy = strdup(text); /* running a command may start another line */
    if (!copy) return;
    if (kind == TERM_LINE_COMMAND) run_line(app, copy);
    else if (kind == TERM_LINE_SEARCH) {
        if (*copy) (void)snprintf(app->search, sizeof app->search, "%s", copy);
        tui_search(app, app->search_back ? -1 : 1);
    } else if (kind == TERM_LINE_PROMPT) {
        moa_buf_clear(&app->prompt);
        moa_buf_str(&app->prompt, copy);
        tui_prompt_changed(app, "");
    }
    free(copy);
}

static void line_key(tui_app *app, int key, term_line_kind kind) {
    const term_line_state s = term_line_key(key);
    if (s == TERM_LINE_DONE) line_finished(app, kind, term_line_text());
    tui_dirty(app);
}

/* C-c: what is in front goes first; then the run; then, asked again, the program */
static void interrupt(tui_app *app) {
    if (app->now - app->interrupt_at > 2) app->n_interrupt = 0;
    app->interrupt_at = app->now;
    app->n_interrupt++;
    if (app->n_pending) app->n_pending = 0;
    else if (app->slot_running >= 0) {
        tui_run_cancel(app);
        if (app->n_interrupt >= 3) tui_ask(app, "The run has not stopped yet. End the engine process?", tui_kill_engine);
    } else if (tui_influence_reading(app)) tui_influence_cancel(app);
    else if (tui_planner_busy(app)) {
        tui_planner_stop(app);
        if (app->n_interrupt >= 3 && tui_planner_engine(app)) tui_ask(app, "The search has not stopped yet. End the engine process?", tui_kill_engine);
    } else if (app->n_interrupt >= 2) (void)tui_quit(app);
    else tui_say(app, TUI_INFO, "Nothing is running; C-c again, or Q, quits");
}

static void back(tui_app *app) {
    if (app->n_pending) app->n_pending = 0;
    else if (app->view_before >= 0 && app->view_before != app->view) {
        const int to = app->view_before;
        tui_view_switch(app, to);
        app->view_before = -1;
    }
    tui_dirty(app);
}

static bool view_key(tui_app *app, int key) {
    for (int i = 0; i < tui_view_count(); i++)
        if (key == tui_view_at(i)->key || key == TUI_KEY_F1 + (tui_view_at(i)->key - '1')) {
            tui_view_switch(app, i);
            return true;
        }
    return false;
}

static void table_key(tui_app *app, int key) {
    const tui_view *v = tui_view_at(app->view);
    bool more;
    if (app->n_pending == 0 && key & TUI_KEY_ALT && (key & 0xff) >= '0' && (key & 0xff) <= '9' && (key & ~TUI_KEY_ALT) < 128) {
        app->count = app->count * 10 + ((key & 0xff) - '0'); /* digits alone are screens: a count is typed with Alt */
        if (app->count > 100000) app->count = 100000;
        return;
    }
    if (app->n_pending == (int)(sizeof app->pending / sizeof *app->pending)) app->n_pending = 0;
    app->pending[app->n_pending++] = key;
    const tui_command *row = tui_command_by_keys(v, app->pending, app->n_pending, &more);
    if (row) {
        const int count = app->count;
        app->n_pending = app->count = 0;
        tui_command_run(app, row, count, true);
        return;
    }
    if (more) return; /* a sequence has begun */
    const int n = app->n_pending;
    app->n_pending = app->count = 0;
    if (n == 1 && !view_key(app, key) && (key == TUI_KEY_ESC || key == TUI_KEY_BACKSPACE)) back(app);
    else if (n == 1 && key >= 33 && key < 127 && key != 'q' && !(key >= '1' && key <= '9')) tui_say(app, TUI_INFO, "%c does nothing here; ? shows the keys", key);
}

void tui_key_in(tui_app *app, int key) {
    const tui_view *v = tui_view_at(app->view);
    tui_dirty(app);
    if (key == TUI_KEY_RESIZE) {
        app->resized = true;
        return;
    }
    app->n_held = 0;
    app->n_seen = app->n_log;
    if (key == TUI_KEY_CLICK || key == TUI_KEY_WHEEL_UP || key == TUI_KEY_WHEEL_DOWN) {
        int y, x;
        term_mouse_at(&y, &x);
        tui_mouse(app, key, y, x);
        return;
    }
    if (key == tui_ctrl('l')) {
        term_repaint();
        return;
    }
    if (key == tui_ctrl('z')) {
        const double slept = term_suspend();
        for (int i = 0; i < TUI_SLOTS; i++) app->runs[i].started_at += slept;
        app->resized = true;
        return;
    }
    if (term_line_now() == TERM_LINE_EDITING) {
        line_key(app, key, term_line_kind_now());
        return;
    }
    if (app->popup != TUI_POPUP_NONE) {
        tui_popup_key(app, key);
        return;
    }
    if (journal_key(app, key)) return;
    if (key == tui_ctrl('c')) {
        interrupt(app);
        return;
    }
    if (v && v->key_first && v->key_first(app, key)) return;
    if (app->tour && tui_tour_key(app, key)) return;
    if (key == TUI_KEY_PASTE) {
        tui_say(app, TUI_INFO, "Pasting is for prompts: press : or i first");
        return;
    }
    table_key(app, key);
}

/* --- prompts -------------------------------------------------------------------------------------------------------------------- */

void tui_prompt_changed(tui_app *app, const char *name) {
    moa_clean_close(&app->prompt_name);
    const char *slash = strrchr(name, '/');
    if (slash && slash[1]) name = slash + 1;
    app->prompt_name = moa_clean_of(name, strlen(name), MOA_TEXT_LINE | (app->caps.utf8 ? 0 : MOA_TEXT_ASCII));
    app->prompt_tokens_known = false;
    app->tokenize_job = 0;
    for (int i = 0; i < TUI_SLOTS; i++) app->runs[i].stale = true;
    journal_prompt(app);
    tui_dirty(app);
}

moa_status tui_prompt_open(tui_app *app, const char *path, moa_err *err) {
    moa_buf b = {0};
    const moa_status s = moa_file_read(path, PROMPT_MAX, &b, err);
    if (s != MOA_OK) {
        moa_buf_free(&b);
        return s;
    }
    moa_buf_free(&app->prompt);
    app->prompt = b;
    tui_prompt_changed(app, path);
    return MOA_OK;
}

/* asks how many tokens the prompt has, once the engine can tell */
static void want_tokens(tui_app *app) {
    if (app->prompt_tokens_known || app->tokenize_job || !app->model.loaded || app->prompt.size == 0 || app->link.state != TUI_LINK_READY) return;
    moa_wire_msg m = {.type = MOA_WIRE_TOKENIZE};
    m.u.tokenize = (moa_msg_tokenize){.text = {app->prompt.data, (uint32_t)app->prompt.size}, .chat = app->options.chat};
    if (tui_link_send(app, &m, NULL) == MOA_OK) app->tokenize_job = m.job;
}

bool tui_idle(const tui_app *app) {
    const tui_link_state s = app->link.state;
    return s != TUI_LINK_HELLO && s != TUI_LINK_LOADING && s != TUI_LINK_BUSY && app->slot_running < 0 && !tui_planner_busy(app) && !tui_influence_reading(app) && !app->map_waiting && !app->blame.active && app->tokenize_job == 0 &&
           app->link.out_done >= app->link.out.size;
}

/* --- start and end ----------------------------------------------------------------------------------------------------------------- */

enum { OWN_ENGINE, OWN_RUN, OWN_COLOR, OWN_ASCII, OWN_MOUSE, OWN_NO_RESTORE, OWN_SCRIPT, OWN_SIZE };
static const moa_option own_rows[] = {
    {"--engine", MOA_OPTION_TEXT, "COMMAND", NULL, 0, 0, true, "engine process, run by sh: \"ssh gpu-box moascope engine\""},
    {"--run", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "run the prompt as soon as the model is there: under --plan if given, else with full attention"},
    {"--color", MOA_OPTION_TEXT, "auto|never|8|256|24bit", "auto", 0, 0, false, "colours of the screen"},
    {"--ascii", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "draw with ASCII characters only"},
    {"--mouse", MOA_OPTION_TEXT, "on|off", "on", 0, 0, false, "click and wheel; off: left to the terminal, as Shift-drag always is"},
    {"--no-restore", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "start fresh: neither the last session nor the last model"},
    {"--script", MOA_OPTION_TEXT, "FILE|-", NULL, 0, 0, false, "keys and :commands to play; without a terminal if --size is given"},
    {"--size", MOA_OPTION_TEXT, "COLSxROWS", NULL, 0, 0, false, "no terminal: a screen of that size, for --script and :dump"},
    {0},
};
static const int shared[] = {MOA_OPT_MODEL, MOA_OPT_DEVICE, MOA_OPT_PLAN, MOA_OPT_PROMPT, MOA_OPT_PROMPT_FILE, MOA_OPT_CHAT, MOA_OPT_N, MOA_OPT_TEMP, MOA_OPT_TOP_K,
                             MOA_OPT_TOP_P, MOA_OPT_MIN_P, MOA_OPT_SEED, MOA_OPT_IGNORE_EOS, MOA_OPT_PROBE, MOA_OPT_KV, MOA_OPT_THREADS, MOA_OPT_REFERENCE,
                             MOA_OPT_CAPTURE_LIMIT, MOA_OPT_NO_SESSION, MOA_OPT_END};
const moa_batch moa_batch_workbench = {.name = "", .help = "the workbench", .usage = "[MODEL] [options]", .options = shared, .own = own_rows, .min_words = 0, .max_words = 1};

static void state_file(const char *name, char *out, size_t out_bytes) {
    if (moa_path_place(MOA_PLACE_STATE, name, out, out_bytes, NULL) != MOA_OK) out[0] = 0;
}

static void copy_option(char *out, size_t n, const char *text) { (void)snprintf(out, n, "%s", text ? text : ""); }

static moa_status read_options(tui_app *app, const moa_args *a, moa_err *err) {
    tui_options *o = &app->options;
    const char *model = moa_args_model(a, 0), *plan = moa_args_text(a, MOA_OPT_PLAN);
    if ((model && strlen(model) >= sizeof o->model) || (plan && strlen(plan) >= sizeof o->plan))
        return moa_fail(err, MOA_E_USAGE, "a path of more than %zu bytes", sizeof o->model - 1);
    copy_option(o->model, sizeof o->model, model);
    copy_option(o->plan, sizeof o->plan, plan);
    copy_option(o->engine, sizeof o->engine, moa_args_text(a, MOA_OPT_OWN + OWN_ENGINE));
    copy_option(o->device, sizeof o->device, moa_args_text(a, MOA_OPT_DEVICE));
    copy_option(o->kv_type, sizeof o->kv_type, moa_load_kv_type(a));
    const moa_status probe = moa_load_probe(a, MOA_WATCH_STATS | MOA_WATCH_SAMPLED, &o->watch, err);
    if (probe != MOA_OK) return probe;
    o->watch |= MOA_WATCH_CAPTURE;
    o->n_threads = (int)moa_args_int(a, MOA_OPT_THREADS);
    o->reference = moa_args_has(a, MOA_OPT_REFERENCE);
    o->capture_limit_bytes = (uint64_t)moa_args_int(a, MOA_OPT_CAPTURE_LIMIT) << 20;
    o->n_gen = (int32_t)moa_args_int(a, MOA_OPT_N);
    o->ignore_end = moa_args_has(a, MOA_OPT_IGNORE_EOS);
    o->chat = moa_args_has(a, MOA_OPT_CHAT);
    const int64_t seed = moa_args_int(a, MOA_OPT_SEED);
    o->sampling = (moa_sampling){.temp = (float)moa_args_real(a, MOA_OPT_TEMP), .top_k = (int32_t)moa_args_int(a, MOA_OPT_TOP_K),
                                 .top_p = (float)moa_args_real(a, MOA_OPT_TOP_P), .min_p = (float)moa_args_real(a, MOA_OPT_MIN_P),
                                 .seed = seed >= 0 ? (uint64_t)seed : (uint64_t)(clock_s() * 1e6) & 0xffffff};
    if (!moa_args_has(a, MOA_OPT_TEMP)) o->sampling.temp = 0; /* comparing runs is the point here: greedy unless asked otherwise */
    app->no_restore = moa_args_has(a, MOA_OPT_OWN + OWN_NO_RESTORE);
    app->run_when_loaded = moa_args_has(a, MOA_OPT_OWN + OWN_RUN);
    const char *text = moa_args_text(a, MOA_OPT_PROMPT), *file = moa_args_text(a, MOA_OPT_PROMPT_FILE);
    if (text && file) return moa_fail(err, MOA_E_USAGE, "--prompt and --prompt-file exclude each other");
    if (text) {
        moa_buf_str(&app->prompt, text);
        tui_prompt_changed(app, "");
    } else if (file) return tui_prompt_open(app, file, err);
    return MOA_OK;
}

/* the model used last, when none is named */
static void restore(tui_app *app) {
    char path[4096];
    moa_buf b = {0};
    state_file("last-model", path, sizeof path);
    if (app->no_restore || *app->options.model || !*path) return;
    if (moa_file_read(path, sizeof app->options.model - 1, &b, NULL) == MOA_OK && b.data) {
        b.data[strcspn(b.data, "\n")] = 0;
        copy_option(app->options.model, sizeof app->options.model, b.data);
    }
    moa_buf_free(&b);
}

void tui_remember_model(tui_app *app) {
    char path[4096], folder[4096];
    state_file("last-model", path, sizeof path);
    state_file("", folder, sizeof folder);
    if (app->no_restore || !*path || moa_dir_make(folder, NULL) != MOA_OK) return;
    (void)moa_file_save(path, app->options.model, strlen(app->options.model), 0600, 0, NULL);
}

static moa_status open_screen(tui_app *app, const moa_args *a, moa_err *err) {
    char log[4096], folder[4096], name[64];
    const char *size = moa_args_text(a, MOA_OPT_OWN + OWN_SIZE);
    int cols = 80, rows = 24;
    if (size && (sscanf(size, "%dx%d", &cols, &rows) != 2 || cols < 1 || rows < 1 || cols > VIZ_COLS_MAX || rows > VIZ_ROWS_MAX))
        return moa_fail(err, MOA_E_USAGE, "--size %s: COLSxROWS, at most %dx%d", size, VIZ_COLS_MAX, VIZ_ROWS_MAX);
    (void)snprintf(name, sizeof name, "screen-%ld.log", (long)getpid());
    state_file(name, log, sizeof log);
    state_file("", folder, sizeof folder);
    if (*log && moa_dir_make(folder, NULL) != MOA_OK) log[0] = 0;
    const bool script = moa_args_has(a, MOA_OPT_OWN + OWN_SCRIPT);
    const char *mouse = moa_args_text(a, MOA_OPT_OWN + OWN_MOUSE);
    if (strcmp(mouse, "on") != 0 && strcmp(mouse, "off") != 0) return moa_fail(err, MOA_E_USAGE, "--mouse %s: on or off", mouse);
    const term_config config = {.headless = size != NULL || (script && !isatty(STDOUT_FILENO)), .rows = rows, .cols = cols,
                                .color = moa_args_text(a, MOA_OPT_OWN + OWN_COLOR), .ascii = moa_args_has(a, MOA_OPT_OWN + OWN_ASCII), .mouse = strcmp(mouse, "on") == 0, .log_path = *log ? log : NULL};
    if (config.headless && !script) return moa_fail(err, MOA_E_USAGE, "--size needs --script: there is no terminal to take keys from");
    const moa_status s = term_open(&config, err);
    if (s != MOA_OK) return s;
    app->caps = term_caps();
    term_size(&rows, &cols);
    return viz_canvas_open(&app->canvas, rows, cols, app->caps, err);
}

static void fit_screen(tui_app *app) {
    int rows, cols;
    moa_err err = {0};
    app->resized = false;
    term_size(&rows, &cols);
    if (rows < 1) rows = 1;
    if (cols < 1) cols = 1;
    if ((rows != app->canvas->rows || cols != app->canvas->cols) && viz_canvas_resize(app->canvas, rows, cols, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
    const tui_view *v = tui_view_at(app->view);
    if (v && v->enter) v->enter(app); /* what it asked the engine for depends on the size */
    tui_dirty(app);
}

static void signals(tui_app *app) {
    const int bits = term_signals();
    if (bits & (TERM_SIG_TERM | TERM_SIG_HUP)) {
        app->quit = true;
        app->exit_code = 0;
    }
    if (bits & TERM_SIG_INT) tui_key_in(app, tui_ctrl('c'));
    if (bits & TERM_SIG_STOP) tui_key_in(app, tui_ctrl('z'));
}

static int keys(tui_app *app) {
    int n = 0;
    for (; n < KEYS_A_TURN && !app->quit; n++) {
        bool gone;
        const int key = term_key(&gone);
        if (gone) {
            app->quit = true; /* the terminal went away */
            app->exit_code = 1;
        }
        if (key == TUI_KEY_NONE) break;
        tui_key_in(app, key);
    }
    return n;
}

static void wait_for_something(tui_app *app, double frame_at) {
    double wait = app->dirty_screen ? frame_at - clock_s() : app->link.state == TUI_LINK_BUSY || app->link.state == TUI_LINK_LOADING || tui_planner_busy(app) ? 0.25 : 1.0;
    if (app->script) wait = tui_script_waits(app) ? 0.02 : 0;
    if (wait < 0 || app->quit) wait = 0;
    struct pollfd p[6] = {{term_signal_fd(), POLLIN, 0}, {term_fd(), POLLIN, 0}, {app->link.fd_in, POLLIN, 0}, {-1, POLLOUT, 0}, {tui_solver_fd(app), POLLIN, 0},
                         {tui_influence_fd(app), POLLIN, 0}};
    if (app->link.out_done < app->link.out.size) p[3].fd = app->link.fd_out;
    (void)poll(p, 6, (int)ceil(wait * 1000));
}

static void loop(tui_app *app) {
    double drawn_at = 0;
    bool answers = false; /* a key came since the last picture: whoever pressed it waits for it */
    while (!app->quit) {
        app->now = clock_s();
        if (app->script) tui_script_step(app);
        signals(app);
        answers = keys(app) > 0 || answers;
        if (app->resized) fit_screen(app);
        tui_link_flush(app);
        if (app->link.fd_in > 0) tui_link_read(app);
        tui_solver_read(app);
        tui_influence_read(app);
        want_tokens(app);
        journal_tick(app);
        if (app->tour) tui_tour_turn(app);
        app->now = clock_s();
        const double period = answers ? 0.016 : app->slot_running >= 0 || tui_planner_busy(app) ? 0.1 : 0.05;
        if (app->dirty_screen && app->now - drawn_at >= period) {
            app->dirty_screen = answers = false;
            tui_draw(app);
            if (!term_draw(app->canvas)) app->dirty_screen = true;
            drawn_at = app->now;
        }
        if (app->slot_running >= 0 || app->link.state == TUI_LINK_LOADING || tui_planner_busy(app)) tui_dirty(app); /* clocks and rates move */
        if (app->said_at > 0 && app->now - app->said_at > 10) {
            app->said_at = 0;
            tui_dirty(app);
        }
        if (app->n_held && app->now - tui_said(app)->at > TUI_HOLD_S) {
            app->n_held = 0;
            tui_dirty(app);
        }
        wait_for_something(app, drawn_at + period);
    }
}

static void close_all(tui_app *app) {
    journal_close(app);
    tui_link_close(app);
    term_close();
    for (int i = 0; i < TUI_SLOTS; i++) tui_run_free(&app->runs[i]);
    tui_planner_close(&app->planner);
    tui_plan_free(app);
    tui_blame_free(app);
    moa_clean **const cleans[] = {&app->link.devices, &app->link.no_gpu, &app->model.name, &app->model.path, &app->model.arch, &app->model.quant,
                                  &app->model.device, &app->model.device_why, &app->prompt_name};
    for (size_t i = 0; i < sizeof cleans / sizeof *cleans; i++) moa_clean_close(cleans[i]);
    free(app->map.mass), free(app->map.max), free(app->map.stat);
    free(app->row.mass), free(app->row.max), free(app->row.stat);
    moa_buf_free(&app->prompt);
    moa_buf_free(&app->popup_text);
    viz_canvas_close(&app->canvas);
    tui_picker_free(app);
    tui_script_close(app);
}

static moa_status begin(tui_app *app, const moa_args *a, moa_err *err) {
    app->link.fd_in = app->link.fd_out = -1;
    app->slot_running = app->view_before = -1;
    app->cursor.query = app->cursor.key = app->blame.query = -1;
    app->ramp = VIZ_RAMP_CIVIDIS;
    app->now = app->started_at = clock_s();
    app->caps = (viz_caps){VIZ_24BIT, true};
    moa_status s = read_options(app, a, err);
    if (s == MOA_OK) s = tui_planner_open(&app->planner, err);
    if (s == MOA_OK && moa_args_has(a, MOA_OPT_OWN + OWN_SCRIPT)) s = tui_script_open(app, moa_args_text(a, MOA_OPT_OWN + OWN_SCRIPT), err);
    if (s == MOA_OK) s = open_screen(app, a, err);
    return s;
}

/* the first picture is on the screen before the engine has said a word */
static void first_picture(tui_app *app, const moa_args *a) {
    moa_err err = {0};
    const journal_start start = {.model = *app->options.model != 0, .plan = moa_args_has(a, MOA_OPT_PLAN),
                                 .prompt = moa_args_has(a, MOA_OPT_PROMPT) || moa_args_has(a, MOA_OPT_PROMPT_FILE),
                                 .restore = !app->no_restore && !app->script && !moa_args_has(a, MOA_OPT_PLAN), .keep = !moa_args_has(a, MOA_OPT_NO_SESSION)};
    restore(app);
    tui_draw(app);
    (void)term_draw(app->canvas);
    journal_open(app, &start);
    if (!*app->options.model && !*app->options.engine && tui_picker_open(app, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
    if (*app->options.plan && strcmp(app->options.plan, "full") != 0 && strncmp(app->options.plan, "uniform:", 8) != 0 && strcmp(app->options.plan, "sink") != 0 &&
        tui_plan_open(app, app->options.plan, &err) != MOA_OK)
        tui_say(app, TUI_BAD, "%s", err.text);
    if (tui_engine_start(app, NULL, &err) != MOA_OK) tui_say(app, TUI_BAD, "%s", err.text);
    tui_dirty(app);
}

int tui_workbench(int argc, char **argv) {
    moa_err err = {0};
    moa_args a = {0};
    tui_app *app = calloc(1, sizeof *app);
    int code;
    if (!app) {
        (void)fprintf(stderr, "moascope: no memory\n");
        return 4;
    }
    moa_status s = moa_args_parse(&a, &moa_batch_workbench, argc, argv, &err);
    if (s == MOA_OK && moa_args_has(&a, MOA_OPT_HELP)) {
        moa_buf help = {0};
        moa_args_help(&moa_batch_workbench, &help);
        (void)fputs(help.data ? help.data : "", stdout);
        moa_buf_free(&help);
        moa_args_free(&a);
        free(app);
        return 0;
    }
    if (s == MOA_OK) s = begin(app, &a, &err);
    if (s == MOA_OK) {
        first_picture(app, &a);
        loop(app);
        code = app->exit_code;
    } else code = moa_status_exit_code(s);
    close_all(app);
    if (s != MOA_OK) (void)fprintf(stderr, "moascope: %s\n", err.text);
    moa_args_free(&a);
    free(app);
    return code;
}
