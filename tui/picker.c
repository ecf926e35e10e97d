/* picker.c -- choosing a model from the usual folders: what opens when no model is named and none is remembered, and `:load` alone.
 *
 * The folders are read once, when it opens; names are typed to narrow, Enter loads. A model used before comes first. Nothing is
 * opened but directories: what a file holds, and whether it can run, the engine says when it loads it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/text.h"
#include "core/model/model.h"
#include "tui/internal.h"

enum { MODELS_MAX = 500 };

typedef struct model_row {
    char *path;               /* owned */
    moa_clean *name, *folder; /* as shown: a file may be called anything */
    uint64_t bytes;
} model_row;

struct tui_picker {
    model_row rows[MODELS_MAX];
    int n;
    bool more; /* there were more than MODELS_MAX */
};

static const char *base_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static model_row row_of(const char *path, uint64_t bytes) {
    const char *name = base_of(path), *home = getenv("HOME");
    const size_t n_home = home ? strlen(home) : 0, n = (size_t)(name - path);
    const bool at_home = n_home > 1 && n > n_home && strncmp(path, home, n_home) == 0 && path[n_home] == '/';
    moa_buf folder = {0};
    moa_buf_printf(&folder, "%s%.*s", at_home ? "~" : "", (int)(at_home ? n - n_home : n), path + (at_home ? n_home : 0));
    const model_row row = {strdup(path), moa_clean_of(name, strlen(name), MOA_TEXT_LINE),
                           folder.data ? moa_clean_of(folder.data, folder.size, MOA_TEXT_LINE) : NULL, bytes};
    moa_buf_free(&folder);
    return row;
}

/* snapshots are links into blobs: a file reached twice counts once */
static bool add_file(void *user, const char *path) {
    tui_picker *p = user;
    struct stat st;
    char *real = realpath(path, NULL);
    bool known = !real || stat(real, &st) != 0;
    for (int i = 0; !known && i < p->n; i++) {
        char *other = realpath(p->rows[i].path, NULL);
        known = other && strcmp(other, real) == 0;
        free(other);
    }
    free(real);
    if (known) return true;
    p->more = p->n == MODELS_MAX;
    if (p->more) return false;
    p->rows[p->n] = row_of(path, (uint64_t)st.st_size);
    p->n++;
    return p->rows[p->n - 1].path && p->rows[p->n - 1].name && p->rows[p->n - 1].folder;
}

void tui_picker_free(tui_app *app) {
    for (int i = 0; app->picker && i < app->picker->n; i++) {
        free(app->picker->rows[i].path);
        moa_clean_close(&app->picker->rows[i].name);
        moa_clean_close(&app->picker->rows[i].folder);
    }
    free(app->picker);
    app->picker = NULL;
}

moa_status tui_picker_open(tui_app *app, moa_err *err) {
    tui_picker_free(app);
    app->picker = calloc(1, sizeof *app->picker);
    if (!app->picker) return moa_fail(err, MOA_E_MEMORY, "no memory for the list of models");
    moa_model_each_file(add_file, app->picker);
    tui_popup_open(app, TUI_POPUP_MODELS, "Models");
    return MOA_OK;
}

/* the i-th row that the typed filter leaves, NULL beyond the last */
static const model_row *row_at(const tui_app *app, int i) {
    for (int k = 0; app->picker && k < app->picker->n; k++)
        if (strcasestr(moa_clean_text(app->picker->rows[k].name), app->popup_query) && i-- == 0) return &app->picker->rows[k];
    return NULL;
}

int tui_picker_count(const tui_app *app) {
    int n = 0;
    while (row_at(app, n)) n++;
    return n;
}

moa_status tui_picker_take(tui_app *app, moa_err *err) {
    const model_row *row = row_at(app, app->popup_at);
    if (!row) return MOA_OK;
    char path[4096];
    (void)snprintf(path, sizeof path, "%s", row->path);
    tui_popup_close(app);
    const moa_status s = tui_load(app, path, err);
    if (s == MOA_OK) tui_remember_model(app);
    return s;
}

static void draw_none(const tui_app *app, viz_pane in) {
    const viz_style text = viz_on(VIZ_TEXT, VIZ_BG_POPUP), dim = viz_on(VIZ_DIM, VIZ_BG_POPUP);
    if (app->picker && app->picker->n > 0) {
        viz_text_cut(in, 2, 2, in.w - 4, text, "No name has these letters.");
        return;
    }
    static const char *const where[] = {"$MOASCOPE_MODELS, the cache of fetch_model.py, ./models, ~/models,", "the caches of Hugging Face and llama.cpp, LM Studio's folders"};
    viz_text_cut(in, 2, 2, in.w - 4, text, "No GGUF file was found. Looked in:");
    for (int i = 0; i < 2; i++) viz_text_cut(in, 3 + i, 4, in.w - 6, dim, where[i]);
    viz_text_cut(in, 6, 2, in.w - 4, text, "scripts/fetch_model.py smollm2 fetches the demo's (98 MB);");
    viz_text_cut(in, 7, 2, in.w - 4, text, ":load FILE takes one from anywhere.");
}

/* in: the inside of the popup's frame, its line of typed letters drawn */
void tui_picker_draw(tui_app *app, viz_pane in, int first, int y) {
    const model_row *row;
    if (!row_at(app, 0)) draw_none(app, in);
    for (int i = first; (row = row_at(app, i)) && y < in.h - 1; i++, y++) {
        const viz_color bg = i == app->popup_at ? (viz_color)VIZ_BG_SELECT : (viz_color)VIZ_BG_POPUP;
        const int name_w = in.w > 72 ? 44 : in.w - 14;
        char size[16];
        for (int x = 0; x < in.w; x++) viz_text(in, y, x, viz_on(VIZ_TEXT, bg), " ");
        viz_text_cut(in, y, 2, name_w - 2, viz_on(VIZ_TEXT, bg), moa_clean_text(row->name));
        viz_text_right(in, y, name_w, 10, viz_on(VIZ_DIM, bg), viz_bytes_text(size, row->bytes));
        if (in.w > 72) viz_text_cut(in, y, name_w + 12, in.w - name_w - 13, viz_on(VIZ_DIM, bg), moa_clean_text(row->folder));
        if (i == app->popup_at && in.c->caps.depth == VIZ_MONO) viz_text(in, y, 0, viz_on(VIZ_ACCENT, bg), ">");
    }
}
