/* MODEL of the command line -> a file, by looking where people keep models.
 *
 *   a path to a file                       as it is
 *   NAME or NAME.gguf                      the first file called so, folders in the order below
 *   part of a file's name, any case        if just one file has it; else the candidates are named
 *
 *   $MOASCOPE_MODELS (folders joined by ':'), the program's cache (moascope/models), ./models, ~/models, the
 * Hugging Face cache (hub/models--ORG--NAME/snapshots/COMMIT/FILE), the old llama.cpp cache, LM Studio
 * (PUBLISHER/MODEL/FILE)
 *
 * A file reached twice (snapshots are links into blobs) counts once. Walks are bounded in depth and number.
 */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "core/base/buf.h"
#include "core/base/path.h"
#include "core/model/model.h"

enum {
    MAX_DEPTH = 4, /* hub/models--ORG--NAME/snapshots/COMMIT/FILE */
    MAX_ENTRIES = 20000,
    MAX_LISTED = 6,
};

typedef struct walk {
    moa_model_file_fn fn;
    void *user;
    int n_entries;
    bool stopped;
} walk;

static const char *base_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_model_name(const char *name) {
    const size_t n = strlen(name);
    return name[0] != '.' && n > 5 && strcasecmp(name + n - 5, ".gguf") == 0;
}

static int not_hidden(const struct dirent *e) {
    return e->d_name[0] != '.';
}

/* in alphabetical order, so that the same disk gives the same answer */
static void walk_folder(walk *w, const char *folder, int depth) {
    struct dirent **entries = NULL;
    const int n = scandir(folder, &entries, not_hidden, alphasort);
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX];
        struct stat st;
        const bool fits = snprintf(path, sizeof path, "%s/%s", folder, entries[i]->d_name) < (int)sizeof path;
        if (!w->stopped && fits && w->n_entries++ < MAX_ENTRIES && stat(path, &st) == 0) {
            if (S_ISREG(st.st_mode) && is_model_name(entries[i]->d_name))
                w->stopped = !w->fn(w->user, path);
            else if (S_ISDIR(st.st_mode) && depth > 1)
                walk_folder(w, path, depth - 1);
        }
        free(entries[i]);
    }
    free(entries);
}

/* VARIABLE or HOME, then the rest of the path; false when that variable is not set */
static bool under(const char *variable, const char *rest, char out[PATH_MAX]) {
    const char *base = getenv(variable);
    return base && *base && snprintf(out, PATH_MAX, "%s%s", base, rest) < PATH_MAX;
}

static void walk_list(walk *w, const char *folders) {
    while (folders && *folders) {
        const size_t n = strcspn(folders, ":");
        char folder[PATH_MAX];
        if (n > 0 && n < sizeof folder) {
            memcpy(folder, folders, n);
            folder[n] = 0;
            walk_folder(w, folder, MAX_DEPTH);
        }
        folders += n + (folders[n] == ':');
    }
}

/* the first of the places the Hugging Face cache may have been told to be */
static void walk_hugging_face(walk *w) {
    static const char *const places[][2] = {
        {"HF_HUB_CACHE", ""},
        {"HUGGINGFACE_HUB_CACHE", ""},
        {"HF_HOME", "/hub"},
        {"XDG_CACHE_HOME", "/huggingface/hub"},
        {"HOME", "/.cache/huggingface/hub"},
    };
    char folder[PATH_MAX];
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (under(places[i][0], places[i][1], folder)) {
            walk_folder(w, folder, MAX_DEPTH);
            return;
        }
}

void moa_model_each_file(moa_model_file_fn fn, void *user) {
    walk w = {.fn = fn, .user = user};
    char folder[PATH_MAX];
    walk_list(&w, getenv("MOASCOPE_MODELS"));
    if (moa_path_place(MOA_PLACE_CACHE, "models", folder, sizeof folder, NULL) == MOA_OK)
        walk_folder(&w, folder, 2);
    walk_folder(&w, "models", MAX_DEPTH);
    if (under("HOME", "/models", folder)) walk_folder(&w, folder, MAX_DEPTH);
    walk_hugging_face(&w);
    if (under("LLAMA_CACHE", "", folder) || under("HOME", "/.cache/llama.cpp", folder))
        walk_folder(&w, folder, MAX_DEPTH);
    if (under("HOME", "/.lmstudio/models", folder)) walk_folder(&w, folder, MAX_DEPTH);
    if (under("HOME", "/.cache/lm-studio/models", folder)) walk_folder(&w, folder, MAX_DEPTH);
}

/* --- choosing
 * ---------------------------------------------------------------------------------------------------------
 */

typedef struct search {
    const char *name;
    char exact[PATH_MAX];         /* "" until found */
    char *candidates[MAX_LISTED]; /* real paths that hold the name; owned */
    int n_candidates;             /* all, also beyond MAX_LISTED */
    char first[PATH_MAX];         /* the first candidate as it was found */
} search;

static bool is_exact(const char *file, const char *name) {
    const size_t n = strlen(name);
    return strcmp(file, name) == 0 || (strncmp(file, name, n) == 0 && strcasecmp(file + n, ".gguf") == 0);
}

static bool known(const search *s, const char *real) {
    for (int i = 0; i < s->n_candidates && i < MAX_LISTED; i++)
        if (strcmp(s->candidates[i], real) == 0) return true;
    return false;
}

static bool consider(void *user, const char *path) {
    search *s = user;
    const char *file = base_of(path);
    if (is_exact(file, s->name)) {
        (void)snprintf(s->exact, sizeof s->exact, "%s", path);
        return false;
    }
    if (!strcasestr(file, s->name)) return true;
    char *real = realpath(path, NULL);
    if (!real || known(s, real)) {
        free(real);
        return true;
    }
    if (s->n_candidates == 0) (void)snprintf(s->first, sizeof s->first, "%s", path);
    if (s->n_candidates < MAX_LISTED)
        s->candidates[s->n_candidates] = real;
    else
        free(real);
    s->n_candidates++;
    return true;
}

static moa_status tell_candidates(const search *s, moa_err *err) {
    moa_buf list = {0};
    for (int i = 0; i < s->n_candidates && i < MAX_LISTED; i++)
        moa_buf_printf(&list, "%s%s", i ? ", " : "", base_of(s->candidates[i]));
    if (s->n_candidates > MAX_LISTED) moa_buf_printf(&list, " and %d more", s->n_candidates - MAX_LISTED);
    const moa_status status = moa_fail(err, MOA_E_USAGE, "%d models are called something with \"%s\": %s",
                                       s->n_candidates, s->name, list.data ? list.data : "");
    moa_buf_free(&list);
    return status;
}

moa_status moa_model_find(const char *name_or_path, char *out, size_t out_bytes, moa_err *err) {
    struct stat st;
    const char *found = NULL;
    const bool there = stat(name_or_path, &st) == 0, is_path = strchr(name_or_path, '/') != NULL;
    if (!*name_or_path) return moa_fail(err, MOA_E_USAGE, "the model's name is empty");
    if (there && S_ISDIR(st.st_mode) && is_path)
        return moa_fail(err, MOA_E_UNSUPPORTED, "%s is a folder; give a GGUF file", name_or_path);
    if (!there && is_path) return moa_fail(err, MOA_E_IO, "%s: there is no such file", name_or_path);
    search *s = calloc(1, sizeof *s);
    if (!s) return moa_fail(err, MOA_E_MEMORY, "no memory to look for a model");
    moa_status status = MOA_OK;
    s->name = name_or_path;
    if (there && !S_ISDIR(st.st_mode))
        found = name_or_path;
    else
        moa_model_each_file(consider, s);
    if (!found && s->exact[0]) found = s->exact;
    if (!found && s->n_candidates == 1) found = s->first;
    if (!found && s->n_candidates > 1)
        status = tell_candidates(s, err);
    else if (!found)
        status = moa_fail(
            err, MOA_E_IO,
            "no model file is called %s: looked in $MOASCOPE_MODELS, the cache (~/.cache/moascope/models), "
            "./models, ~/models, the Hugging Face cache and LM Studio's folders",
            name_or_path);
    else if (snprintf(out, out_bytes, "%s", found) >= (int)out_bytes)
        status = moa_fail(err, MOA_E_INVALID, "the path of %s is longer than %zu bytes", name_or_path,
                          out_bytes - 1);
    for (int i = 0; i < s->n_candidates && i < MAX_LISTED; i++)
        free(s->candidates[i]);
    free(s);
    return status;
}
