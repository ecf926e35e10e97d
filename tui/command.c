/* command.c -- keys, names, words, completion: how a row of the table is found. The global rows are in commands.c. */
#include "tui/command.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/base/text.h"
#include "tui/app.h"

/* --- keys -------------------------------------------------------------------------------------------------------------- */

static const char *const key_names[] = {
#define X(name, text) text,
    TUI_KEY_MAP(X)
#undef X
};

int tui_key_parse(const char *word, size_t n, int *out, int max) {
    if (n == 0 || max < 1) return 0;
    for (size_t i = 0; i < sizeof key_names / sizeof *key_names; i++)
        if (strlen(key_names[i]) == n && memcmp(key_names[i], word, n) == 0) {
            out[0] = TUI_KEY_BASE + 1 + (int)i;
            return 1;
        }
    if (n == 3 && word[0] == 'C' && word[1] == '-') {
        out[0] = tui_ctrl(word[2]);
        return 1;
    }
    if (n >= 3 && word[0] == 'M' && word[1] == '-') {
        int32_t cp;
        if (moa_utf8_next(word + 2, n - 2, &cp, NULL) != n - 2) return 0;
        out[0] = TUI_KEY_ALT | cp;
        return 1;
    }
    int k = 0;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        bool valid;
        if (k == max) return 0;
        i += moa_utf8_next(word + i, n - i, &cp, &valid);
        if (!valid || cp <= 32) return 0;
        out[k++] = cp;
    }
    return k;
}

void tui_key_name(int key, char out[16]) {
    const char *alt = key & TUI_KEY_ALT ? "M-" : "";
    key &= ~TUI_KEY_ALT;
    if (key > TUI_KEY_BASE && key < TUI_KEY_END_) (void)snprintf(out, 16, "%s%s", alt, key_names[key - TUI_KEY_BASE - 1]);
    else if (key > 0 && key < 32) (void)snprintf(out, 16, "%sC-%c", alt, key == 28 ? '\\' : key + 'a' - 1);
    else {
        char bytes[5] = {0};
        (void)moa_utf8_put(key, bytes);
        (void)snprintf(out, 16, "%s%s", alt, moa_text_unsafe(key) ? "?" : bytes);
    }
}

void tui_command_key(const tui_command *row, char out[32]) {
    out[0] = 0;
    if (row->keys) (void)snprintf(out, 32, "%.*s", (int)strcspn(row->keys, " "), row->keys);
}

/* does the row have a sequence that begins with keys? *whole: is it all of it? */
static bool row_keys(const tui_command *row, const int *keys, int n, bool *whole) {
    bool begins = false;
    *whole = false;
    for (const char *w = row->keys; w && *w;) {
        const size_t len = strcspn(w, " ");
        int seq[8];
        const int k = tui_key_parse(w, len, seq, 8);
        if (k >= n && memcmp(seq, keys, sizeof *keys * (size_t)n) == 0) {
            begins = true;
            if (k == n) *whole = true;
        }
        w += len;
        while (*w == ' ') w++;
    }
    return begins;
}

const tui_command *tui_command_by_keys(const tui_view *view, const int *keys, int n, bool *more) {
    const tui_command *const tables[] = {view ? view->commands : NULL, tui_commands};
    const tui_command *found = NULL;
    *more = false;
    for (int t = 0; t < 2; t++)
        for (const tui_command *row = tables[t]; row && row->name; row++) {
            bool whole;
            if (!row_keys(row, keys, n, &whole)) continue;
            if (!whole) *more = true;
            else if (!found) found = row;
        }
    return found;
}

/* --- names ------------------------------------------------------------------------------------------------------------- */

static bool name_at(const char *name, const char *line, size_t *n) {
    *n = strlen(name);
    return strncmp(name, line, *n) == 0 && (line[*n] == 0 || line[*n] == ' ');
}

const tui_command *tui_command_find(const tui_view *view, const char *line, const char **rest) {
    const tui_command *const tables[] = {view ? view->commands : NULL, tui_commands};
    const tui_command *found = NULL;
    size_t best = 0, n;
    while (*line == ' ') line++;
    for (int t = 0; t < 2; t++)
        for (const tui_command *row = tables[t]; row && row->name; row++)
            if (name_at(row->name, line, &n) && n > best) {
                found = row;
                best = n;
            }
    if (rest) {
        *rest = line + best;
        while (**rest == ' ') (*rest)++;
    }
    return found;
}

const tui_command *tui_command_at(const tui_view *view, int i) {
    const tui_command *const tables[] = {view ? view->commands : NULL, tui_commands};
    for (int t = 0; t < 2; t++)
        for (const tui_command *row = tables[t]; row && row->name; row++)
            if (!(row->flags & TUI_CMD_HIDDEN) && i-- == 0) return row;
    return NULL;
}

static bool contains(const char *text, const char *word, size_t n) {
    for (; text && *text; text++)
        if (strncasecmp(text, word, n) == 0) return true;
    return n == 0;
}

int tui_command_search(const tui_view *view, const char *query, const tui_command **out, int max) {
    int n = 0;
    for (int pass = 0; pass < 2; pass++) { /* names first, then keys and help */
        const tui_command *row;
        for (int i = 0; (row = tui_command_at(view, i)) != NULL; i++) {
            bool name = true, all = true;
            for (const char *w = query; *w;) {
                while (*w == ' ') w++;
                const size_t k = strcspn(w, " ");
                if (k == 0) break;
                const bool in_name = contains(row->name, w, k);
                if (!in_name) name = false;
                if (!in_name && !contains(row->help, w, k) && !(row->keys && contains(row->keys, w, k))) all = false;
                w += k;
            }
            if (n < max && (pass == 0 ? name : all && !name)) out[n++] = row;
        }
    }
    return n;
}

/* --- words --------------------------------------------------------------------------------------------------------------- */

moa_status tui_words(const char *rest, char ***argv, int *argc, moa_err *err) {
    const size_t n = strlen(rest);
    *argc = 0;
    *argv = calloc(1, (n / 2 + 2) * sizeof(char *) + n + 1);
    if (!*argv) return moa_fail(err, MOA_E_MEMORY, "no memory for a command of %zu bytes", n);
    char *to = (char *)(*argv + n / 2 + 2);
    while (*rest) {
        while (*rest == ' ' || *rest == '\t') rest++;
        if (!*rest) break;
        (*argv)[(*argc)++] = to;
        for (char quote = 0; *rest && (quote || (*rest != ' ' && *rest != '\t')); rest++) {
            if (quote ? *rest == quote : *rest == '"' || *rest == '\'') quote = quote ? 0 : *rest;
            else *to++ = *rest;
        }
        *to++ = 0;
    }
    return MOA_OK;
}

static void near_names(const tui_view *view, const char *line, char *out, size_t out_bytes) {
    const size_t n = strcspn(line, " ");
    size_t used = 0;
    out[0] = 0;
    const tui_command *row;
    for (int i = 0, k = 0; (row = tui_command_at(view, i)) != NULL && k < 3; i++) {
        const size_t common = n > 2 ? 2 : n;
        if (strncasecmp(row->name, line, common) != 0) continue;
        used += (size_t)snprintf(out + used, used < out_bytes ? out_bytes - used : 0, "%s%s", k ? ", " : "; near: ", row->name);
        k++;
    }
}

moa_status tui_command_line(tui_app *app, const char *line, moa_err *err) {
    const tui_view *view = tui_view_at(app->view);
    const char *rest;
    while (*line == ' ' || *line == ':') line++;
    if (!*line) return MOA_OK;
    const tui_command *row = tui_command_find(view, line, &rest);
    if (!row) {
        char near[160];
        near_names(view, line, near, sizeof near);
        return moa_fail(err, MOA_E_USAGE, "no command `%.*s`%s (? lists them)", (int)strcspn(line, " "), line, near);
    }
    tui_args args = {.rest = rest};
    char *trimmed = strdup(rest);
    if (!trimmed) return moa_fail(err, MOA_E_MEMORY, "no memory for a command");
    for (size_t n = strlen(trimmed); n > 0 && trimmed[n - 1] == ' '; n--) trimmed[n - 1] = 0;
    args.rest = trimmed;
    moa_status s = tui_words(trimmed, &args.argv, &args.argc, err);
    if (s == MOA_OK) s = row->run(app, &args, err);
    free(args.argv);
    free(trimmed);
    return s;
}

/* --- completion ------------------------------------------------------------------------------------------------------------- */

/* the part of a row's name from byte `at` on, up to a blank, if the name begins with line[0..at) */
static void complete_name(const tui_command *row, const char *line, size_t at, const char *prefix, moa_buf *out) {
    if (strncmp(row->name, line, at) != 0 || strlen(row->name) < at) return;
    const char *word = row->name + at;
    if (strncmp(word, prefix, strlen(prefix)) != 0) return;
    moa_buf_printf(out, "%.*s\n", (int)strcspn(word, " "), word);
}

void tui_command_complete(tui_app *app, const char *line, size_t point, size_t *word_at, moa_buf *out) {
    const tui_view *view = tui_view_at(app->view);
    char *head = strndup(line, point);
    if (!head) return;
    size_t at = point;
    while (at > 0 && head[at - 1] != ' ') at--;
    *word_at = at;
    const char *rest;
    const tui_command *row = tui_command_find(view, head, &rest), *each;
    for (int i = 0; (each = tui_command_at(view, i)) != NULL; i++) complete_name(each, head, at, head + at, out);
    if (row && row->complete && (size_t)(rest - head) <= at) row->complete(app, head + at, out);
    free(head);
}
