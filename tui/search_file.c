/* search_file.c -- influence of the search screen as INFLUENCE.npz, the file of `moascope profile`.
 *
 *   abs_N, signed_N (n_layer, n_head, nb, nb), joint_N (n_layer, n_head, nb + 1), float32, for each length N; meta: JSON text.
 *
 *   open: a thread reads and checks (its own copy of everything) --> report through a pipe --> the loop puts it in the planner's place
 *
 *   Read as well: one array (n_layer, n_head, nb, nb) under any name, as other programs make it: absolute influence at 64*nb tokens. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/npy.h"
#include "core/base/text.h"
#include "tui/internal.h"
#include "tui/search.h"
#include "version.h"

#define INFLUENCE_MAX ((size_t)2 << 30) /* bytes of elements */

struct tui_reading {
    pthread_t thread;
    bool started;
    int fds[2]; /* pipe: a byte is "look" */
    atomic_bool cancel;
    char path[4096];
    int32_t n_layer, n_head; /* of the model it is for */
    char fingerprint[65];
    tui_influence *list[TUI_FIND_LENGTHS]; /* (n) owned until taken */
    int n;
    bool other_weights;
    pthread_mutex_t lock; /* of what follows */
    double share;
    bool finished, left; /* left: the thread frees it */
    moa_status status;
    moa_err err;
};

/* --- reading ------------------------------------------------------------------------------------------------------------------ */

/* "joint_512" -> 512; 0: another name */
static int32_t length_of(const char *name, const char *kind) {
    const size_t n = strlen(kind);
    char *end;
    if (strncmp(name, kind, n) != 0 || name[n] != '_') return 0;
    const long v = strtol(name + n + 1, &end, 10);
    return *end == 0 && end != name + n + 1 && v >= 2 && v <= MOA_N_MAX ? (int32_t)v : 0;
}

static moa_status check_shape(const tui_reading *r, const moa_npy_array *a, int32_t n_tok, bool map, moa_err *err) {
    const size_t nb = ((size_t)n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK, *d = a->shape.shape;
    const size_t l = (size_t)r->n_layer, h = (size_t)r->n_head;
    const bool fits = a->shape.type == MOA_NPY_F32 && a->shape.n_dim == (map ? 4 : 3) && d[0] == l && d[1] == h && d[2] == (map ? nb : nb + 1) && (!map || d[3] == nb);
    if (fits) return MOA_OK;
    return moa_fail(err, MOA_E_INVALID, "%.40s is not float32 [%zu][%zu][%zu]%s, as this model and %d tokens need", a->name, l, h, map ? nb : nb + 1, map ? "[nb]" : "", n_tok);
}

static bool finite_all(const moa_npy_array *a) {
    const float *v = a->data;
    for (size_t i = 0; i < a->bytes / sizeof *v; i++)
        if (!isfinite(v[i])) return false;
    return true;
}

static moa_status take_array(const tui_reading *r, const moa_npy_array *a, int32_t n_tok, bool map, float **to, moa_err *err) {
    const moa_status s = a ? check_shape(r, a, n_tok, map, err) : MOA_OK;
    if (!a || s != MOA_OK) return s;
    if (!finite_all(a)) return moa_fail(err, MOA_E_INVALID, "%.40s has values that are not finite", a->name);
    float *copy = malloc(a->bytes ? a->bytes : 1);
    if (!copy) return moa_fail(err, MOA_E_MEMORY, "no memory for %zu bytes of %.40s", a->bytes, a->name);
    memcpy(copy, a->data, a->bytes);
    free(*to);
    *to = copy;
    return MOA_OK;
}

static const moa_npy_array *array_of(const moa_npz *z, const char *kind, int32_t n_tok) {
    char name[64];
    (void)snprintf(name, sizeof name, "%s_%d", kind, n_tok);
    return moa_npz_find(z, name);
}

/* single: the one array of a file that is not ours, or NULL */
static moa_status take_length(const tui_reading *r, const moa_npz *z, const moa_npy_array *single, int32_t n_tok, tui_influence **out, moa_err *err) {
    const moa_npy_array *abs_of = single ? single : array_of(z, "abs", n_tok), *sum = single ? NULL : array_of(z, "signed", n_tok);
    const moa_npy_array *joint = single ? NULL : array_of(z, "joint", n_tok);
    moa_status s = MOA_OK;
    tui_influence *f = *out = calloc(1, sizeof *f);
    if (!f) return moa_fail(err, MOA_E_MEMORY, "no memory for influence");
    *f = (tui_influence){.n_tok = n_tok, .nb = (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK, .n_layer = r->n_layer, .n_head = r->n_head, .loss = (double)NAN};
    MOA_TRY(take_array(r, abs_of, n_tok, true, &f->abs, err));
    MOA_TRY(take_array(r, sum, n_tok, true, &f->sum, err));
    MOA_TRY(take_array(r, joint, n_tok, false, &f->joint, err));
    if (!tui_influence_curves(f)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the influence curves"));
out:
    if (s != MOA_OK) tui_influence_close(out);
    return s;
}

/* how many; more than the first TUI_FIND_LENGTHS are only counted, and may be counted again */
static int lengths_in(const moa_npz *z, int32_t *lengths) {
    static const char *const kinds[] = {"joint", "abs", "signed"};
    int n = 0;
    for (int i = 0; i < z->n; i++)
        for (int k = 0; k < 3; k++) {
            const int32_t v = length_of(z->arrays[i].name, kinds[k]);
            bool known = v == 0;
            for (int j = 0; j < n && j < TUI_FIND_LENGTHS; j++) known = known || lengths[j] == v;
            if (known) continue;
            if (n < TUI_FIND_LENGTHS) lengths[n] = v;
            n++;
        }
    return n;
}

static const moa_npy_array *single_map(const moa_npz *z, int32_t *n_tok) {
    if (z->n != 1 || z->arrays[0].shape.n_dim != 4 || z->arrays[0].shape.shape[3] > MOA_N_MAX / MOA_PAGE_TOK || z->arrays[0].shape.shape[3] < 1) return NULL;
    *n_tok = (int32_t)z->arrays[0].shape.shape[3] * MOA_PAGE_TOK;
    return &z->arrays[0];
}

static void settle(tui_app *app, tui_influence **list, int n, const char *path) {
    tui_planner *p = app->planner;
    const char *slash = strrchr(path, '/');
    moa_buf name = {0};
    while (p->n_influence > 0) tui_influence_close(&p->influence[--p->n_influence]);
    for (int i = 0; i < n; i++) tui_influence_put(p, list[i]);
    for (p->n_length = 0; p->n_length < p->n_influence; p->n_length++) p->lengths[p->n_length] = p->influence[p->n_length]->n_tok;
    moa_text_clean(slash && slash[1] ? slash + 1 : path, strlen(slash && slash[1] ? slash + 1 : path), MOA_TEXT_LINE, &name);
    (void)snprintf(p->source, sizeof p->source, "%.90s", name.data ? name.data : "a file");
    moa_buf_free(&name);
    for (int s = TUI_STEP_CALIBRATE; s <= TUI_STEP_PROFILE; s++) {
        p->steps[s] = (tui_step_info){.state = TUI_STEP_DONE};
        (void)snprintf(p->steps[s].text, sizeof p->steps[s].text, "from %.80s", p->source);
    }
    for (int s = TUI_STEP_SEARCH; s < TUI_STEP_COUNT; s++)
        if (p->steps[s].state != TUI_STEP_TODO) p->steps[s].state = TUI_STEP_OLD;
    if (!p->influence[0]->curve[p->measure]) /* a file of maps alone */
        for (int m = 0; m < MOA_MEASURE_COUNT; m++)
            if (p->influence[0]->curve[m]) p->measure = (moa_measure)m;
    for (int i = 0; i < tui_view_count(); i++)
        if (tui_view_at(i)->event) tui_view_at(i)->event(app, TUI_EV_PLAN);
    tui_dirty(app);
}

/* --- the thread ---------------------------------------------------------------------------------------------------------------- */

static void wake(const tui_reading *r) {
    const char byte = 1;
    ssize_t n;
    do n = write(r->fds[1], &byte, 1);
    while (n < 0 && errno == EINTR);
}

static bool go_on(void *user, uint64_t done, uint64_t total) {
    tui_reading *r = user;
    (void)pthread_mutex_lock(&r->lock);
    r->share = total > 0 && done <= total ? (double)done / (double)total : (double)NAN;
    (void)pthread_mutex_unlock(&r->lock);
    wake(r);
    return !atomic_load(&r->cancel);
}

static moa_status work(tui_reading *r, moa_err *err) {
    const moa_npz_watch watch = {go_on, r};
    moa_npz z = {0};
    int32_t lengths[TUI_FIND_LENGTHS];
    moa_status s = MOA_OK;
    MOA_TRY(moa_npz_read_watched(&z, r->path, NULL, INFLUENCE_MAX, &watch, err));
    int n = lengths_in(&z, lengths);
    const moa_npy_array *single = n == 0 ? single_map(&z, &lengths[0]) : NULL;
    if (single) n = 1;
    if (n == 0) MOA_TRY(moa_fail(err, MOA_E_INVALID, "no influence in it: neither abs_N, signed_N, joint_N nor one array [layers][heads][nb][nb]"));
    if (n > TUI_FIND_LENGTHS) MOA_TRY(moa_fail(err, MOA_E_UNSUPPORTED, "it has more than %d lengths: `profile --lengths` makes one of fewer", TUI_FIND_LENGTHS));
    for (r->n = 0; r->n < n; r->n++) {
        if (atomic_load(&r->cancel)) MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted"));
        MOA_TRY(take_length(r, &z, single, lengths[r->n], &r->list[r->n], err));
    }
    const moa_npy_array *meta = moa_npz_find(&z, "meta");
    r->other_weights = meta && meta->shape.type == MOA_NPY_TEXT && strstr(meta->data, "\"fingerprint\": \"") && !strstr(meta->data, r->fingerprint);
out:
    moa_npz_free(&z);
    return s;
}

static void reading_free(tui_reading *r) {
    for (int i = 0; i < TUI_FIND_LENGTHS; i++) tui_influence_close(&r->list[i]);
    for (int i = 0; i < 2; i++)
        if (r->fds[i] >= 0) (void)close(r->fds[i]);
    (void)pthread_mutex_destroy(&r->lock);
    free(r);
}

static void *thread_main(void *arg) {
    tui_reading *r = arg;
    moa_err err = {0};
    const moa_status s = work(r, &err);
    (void)pthread_mutex_lock(&r->lock);
    r->status = s;
    r->err = err;
    r->finished = true;
    const bool left = r->left;
    (void)pthread_mutex_unlock(&r->lock);
    if (left) reading_free(r);
    else wake(r);
    return NULL;
}

void tui_reading_close(tui_reading **out) {
    tui_reading *r = *out;
    if (!r) return;
    *out = NULL;
    atomic_store(&r->cancel, true);
    if (!r->started) {
        reading_free(r);
        return;
    }
    const pthread_t thread = r->thread;
    (void)pthread_mutex_lock(&r->lock);
    const bool finished = r->finished;
    r->left = true;
    (void)pthread_mutex_unlock(&r->lock);
    if (!finished) (void)pthread_detach(thread); /* r is the thread's now */
    else {
        (void)pthread_join(thread, NULL);
        reading_free(r);
    }
}

/* --- the loop's side ----------------------------------------------------------------------------------------------------------------- */

bool tui_influence_reading(const tui_app *app) { return app->planner && app->planner->reading; }
int tui_influence_fd(const tui_app *app) { return tui_influence_reading(app) ? app->planner->reading->fds[0] : -1; }

moa_status tui_influence_load(tui_app *app, const char *path, moa_err *err) {
    tui_planner *p = app->planner;
    moa_status s = MOA_OK;
    int e = 0;
    if (!app->model.loaded) return moa_fail(err, MOA_E_FAILED, "influence is of a model; load it first");
    if (p->running >= 0) return moa_fail(err, MOA_E_FAILED, "%s is at work; C-c stops it", tui_step_title((tui_step)p->running));
    if (p->reading) return moa_fail(err, MOA_E_FAILED, "another file is being read; C-c stops it");
    tui_reading *r = calloc(1, sizeof *r);
    if (!r) return moa_fail(err, MOA_E_MEMORY, "no memory to read a file");
    (void)pthread_mutex_init(&r->lock, NULL);
    r->fds[0] = r->fds[1] = -1;
    r->n_layer = app->model.n_layer, r->n_head = app->model.n_head;
    r->share = (double)NAN;
    (void)snprintf(r->fingerprint, sizeof r->fingerprint, "%s", app->model.fingerprint);
    if ((size_t)snprintf(r->path, sizeof r->path, "%s", path) >= sizeof r->path) MOA_TRY(moa_fail(err, MOA_E_USAGE, "a path of more than %zu bytes", sizeof r->path - 1));
    if (pipe2(r->fds, O_CLOEXEC | O_NONBLOCK) != 0) MOA_TRY(moa_fail(err, MOA_E_FAILED, "no pipe to read a file: %s", strerror(errno)));
    e = pthread_create(&r->thread, NULL, thread_main, r);
    if (e != 0) MOA_TRY(moa_fail(err, MOA_E_FAILED, "no thread to read a file: %s", strerror(e)));
    r->started = true;
    p->reading = r;
    p->reading_share = (double)NAN;
    r = NULL;
    tui_dirty(app);
out:
    tui_reading_close(&r);
    return s;
}

void tui_influence_cancel(tui_app *app) {
    if (!tui_influence_reading(app)) return;
    atomic_store(&app->planner->reading->cancel, true);
    tui_say(app, TUI_INFO, "Stopping: the file; the influence stays what it is");
}

static void come(tui_app *app, tui_reading *r) {
    tui_planner *p = app->planner;
    if (r->status == MOA_E_CANCELLED) tui_say(app, TUI_INFO, "The file was not read to its end; the influence stays what it was");
    else if (r->status != MOA_OK) {
        tui_say(app, TUI_BAD, "%s", r->err.text);
        if (app->script) tui_script_failed(app, r->err.text);
    } else if (!app->model.loaded || app->model.n_layer != r->n_layer || app->model.n_head != r->n_head)
        tui_say(app, TUI_WARN, "The influence that was read is of another model than the present one: it was left out");
    else {
        if (r->other_weights) tui_say(app, TUI_WARN, "This influence was measured on other weights: the file's fingerprint is not the model's");
        settle(app, r->list, r->n, r->path);
        memset(r->list, 0, sizeof r->list);
        tui_say(app, TUI_GOOD, "Influence of %d length%s from %s", r->n, r->n == 1 ? "" : "s", p->source);
    }
}

void tui_influence_read(tui_app *app) {
    tui_reading *r = tui_influence_reading(app) ? app->planner->reading : NULL;
    char bytes[64];
    if (!r || read(r->fds[0], bytes, sizeof bytes) <= 0) return;
    (void)pthread_mutex_lock(&r->lock);
    app->planner->reading_share = r->share;
    const bool finished = r->finished;
    (void)pthread_mutex_unlock(&r->lock);
    tui_dirty(app);
    if (!finished) return;
    come(app, r);
    tui_reading_close(&app->planner->reading);
}

/* --- writing ------------------------------------------------------------------------------------------------------------------- */

static void meta_text(const tui_app *app, moa_buf *out) {
    const tui_planner *p = app->planner;
    const char *name = moa_clean_text(app->model.name), *arch = moa_clean_text(app->model.arch);
    moa_buf_str(out, "{\"format\": \"moa-influence\", \"version\": 1, \"model\": {\"name\": ");
    moa_text_json(name, strlen(name), out);
    moa_buf_str(out, ", \"architecture\": ");
    moa_text_json(arch, strlen(arch), out);
    moa_buf_printf(out, ", \"n_layer\": %d, \"n_head\": %d, \"n_head_kv\": %d, \"d_head\": %d, \"fingerprint\": ", app->model.n_layer, app->model.n_head,
                   app->model.n_head_kv, app->model.d_head);
    moa_text_json(app->model.fingerprint, strlen(app->model.fingerprint), out); /* as the engine sent it */
    moa_buf_str(out, "}");
    moa_buf_printf(out, ", \"block\": %d, \"sink\": %d, \"data\": ", MOA_PAGE_TOK, MOA_SINK_TOK);
    moa_text_json(p->source, strlen(p->source), out);
    moa_buf_printf(out, ", \"seed\": %llu, \"program\": \"%s\", \"lengths\": {", (unsigned long long)p->seed, MOA_VERSION);
    for (int i = 0; i < p->n_influence; i++) {
        const tui_influence *f = p->influence[i];
        moa_buf_printf(out, "%s\"%d\": {\"items\": %d, \"supervised\": %llu, \"clamped\": %llu", i ? ", " : "", f->n_tok, f->n_item, (unsigned long long)f->n_supervised,
                       (unsigned long long)f->n_clamped);
        if (!isnan(f->loss)) moa_buf_printf(out, ", \"loss\": %.9g", f->loss);
        moa_buf_str(out, "}");
    }
    moa_buf_str(out, "}}");
}

static moa_status add_length(moa_npy_writer *w, const tui_influence *f, moa_err *err) {
    const size_t l = (size_t)f->n_layer, h = (size_t)f->n_head, nb = (size_t)f->nb;
    const moa_npy_shape map = {MOA_NPY_F32, 4, {l, h, nb, nb}}, curve = {MOA_NPY_F32, 3, {l, h, nb + 1}};
    const struct {
        const char *kind;
        const float *data;
        const moa_npy_shape *shape;
    } arrays[] = {{"abs", f->abs, &map}, {"signed", f->sum, &map}, {"joint", f->joint, &curve}};
    char name[64];
    for (size_t i = 0; i < 3; i++) {
        if (!arrays[i].data) continue;
        (void)snprintf(name, sizeof name, "%s_%d", arrays[i].kind, f->n_tok);
        const moa_status s = moa_npz_add(w, name, arrays[i].shape, arrays[i].data, err);
        if (s != MOA_OK) return s;
    }
    return MOA_OK;
}

moa_status tui_influence_save(const tui_app *app, const char *path, moa_err *err) {
    const tui_planner *p = app->planner;
    moa_npy_writer *w = NULL;
    moa_buf meta = {0};
    moa_status s = MOA_OK;
    if (p->n_influence == 0) return moa_fail(err, MOA_E_FAILED, "there is no influence yet: the search screen's step 2 measures it");
    meta_text(app, &meta);
    if (!moa_buf_ok(&meta)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the file's description"));
    MOA_TRY(moa_npy_open(&w, path, NULL, err));
    for (int i = 0; i < p->n_influence; i++) MOA_TRY(add_length(w, p->influence[i], err));
    MOA_TRY(moa_npz_text(w, "meta", meta.data, err));
    s = moa_npy_commit(&w, err);
out:
    moa_npy_close(&w);
    moa_buf_free(&meta);
    return s;
}
