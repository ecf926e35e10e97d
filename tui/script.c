/* script.c -- a session from a file: for tests, demonstrations and bug reports.
 *
 *   :command words     as typed at the prompt
 *   :sync TOKEN        the rest waits until nothing is on its way to or from the engine; TOKEN shows in the tab line
 *   :wait SECONDS      lets time pass
 *   :dump FILE [txt|names|ansi|svg]
 *   keys               separated by blanks: j Down C-r gg "text typed key by key"
 *   # comment
 *
 * Without a terminal (--size) the program ends after the last line; exit code 1 if a command failed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "tui/internal.h"
#include "tui/search.h"

enum { SYNC_LIMIT_S = 60, SYNC_SEARCH_S = 3600 }; /* steps of the search take as long as they take */

struct tui_script {
    moa_buf text;
    size_t at;      /* byte of the next line */
    int line;
    bool waiting;   /* for the engine, because of :sync */
    double since;   /* when that began, monotonic */
    double until;   /* :wait SECONDS, monotonic; 0: not */
    int settle;     /* turns to let pass so that what was just done is drawn and sent */
};

moa_status tui_script_open(tui_app *app, const char *path, moa_err *err) {
    app->script = calloc(1, sizeof *app->script);
    if (!app->script) return moa_fail(err, MOA_E_MEMORY, "no memory for a script");
    return moa_file_read(path, 16 << 20, &app->script->text, err);
}

void tui_script_close(tui_app *app) {
    if (!app->script) return;
    moa_buf_free(&app->script->text);
    free(app->script);
    app->script = NULL;
}

void tui_script_failed(tui_app *app, const char *why) {
    app->exit_code = 1;
    (void)fprintf(stderr, "moascope: script line %d: %s\n", app->script->line, why);
}

void tui_script_sync(tui_app *app) {
    if (!app->script) return;
    app->script->waiting = true;
    app->script->since = app->now;
}

void tui_script_wait(tui_app *app, double seconds) {
    if (app->script) app->script->until = app->now + seconds;
}

bool tui_script_waits(const tui_app *app) { return app->script && (app->script->waiting || app->script->until > app->now); }

/* "text" is typed, other words are keys */
static void play_keys(tui_app *app, char *line) {
    for (char *w = line; *w;) {
        while (*w == ' ' || *w == '\t') w++;
        if (!*w) break;
        if (*w == '"') {
            for (w++; *w && *w != '"';) {
                int32_t cp;
                w += moa_utf8_next(w, strlen(w), &cp, NULL);
                tui_key_in(app, cp == ' ' ? TUI_KEY_SPACE : cp);
            }
            if (*w) w++;
            continue;
        }
        const size_t n = strcspn(w, " \t");
        int keys[64];
        const int k = tui_key_parse(w, n, keys, 64);
        if (k == 0) tui_script_failed(app, "a key was expected");
        for (int i = 0; i < k; i++) tui_key_in(app, keys[i]);
        w += n;
    }
}

static void play_line(tui_app *app, char *line) {
    if (line[0] == '#' || line[0] == 0) return;
    if (line[0] != ':') {
        play_keys(app, line);
        return;
    }
    moa_err err = {0};
    app->n_held = 0; /* as a key does */
    if (tui_command_line(app, line + 1, &err) != MOA_OK) {
        tui_say(app, TUI_BAD, "%s", err.text);
        tui_script_failed(app, err.text);
    }
}

void tui_script_step(tui_app *app) {
    struct tui_script *s = app->script;
    if (s->settle > 0) {
        s->settle--;
        return;
    }
    if (s->until > app->now) return;
    if (tui_influence_reading(app)) return; /* the next line finds what the file has */
    if (s->waiting) {
        if (!tui_idle(app)) {
            if (app->now - s->since < (tui_planner_busy(app) ? SYNC_SEARCH_S : SYNC_LIMIT_S)) return;
            char why[160];
            (void)snprintf(why, sizeof why, "not idle after %d s: engine state %d, run in slot %d, map %d, blame %d, tokens asked by job %u, %zu bytes to send", SYNC_LIMIT_S,
                           (int)app->link.state, app->slot_running, app->map_waiting, app->blame.active, app->tokenize_job, app->link.out.size - app->link.out_done);
            tui_script_failed(app, why);
        }
        s->waiting = false;
    }
    for (int i = 0; i < 64 && !s->waiting && !app->quit; i++) {
        if (s->at >= s->text.size) {
            if (term_headless()) app->quit = true;
            tui_script_close(app);
            return;
        }
        char *line = s->text.data + s->at;
        const size_t n = strcspn(line, "\n");
        s->at += n + 1;
        s->line++;
        line[n] = 0;
        play_line(app, line);
        if (!app->script) return;
        s->settle = 1; /* one turn of the loop between lines: messages come in, requests go out */
        return;
    }
}
