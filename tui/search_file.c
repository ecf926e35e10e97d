/* search_file.c -- influence of the search screen as INFLUENCE.npz, the file of `moascope profile`.
 *
 *   abs_N, signed_N (n_layer, n_head, nb, nb), joint_N (n_layer, n_head, nb + 1), float32, for each length N; meta: JSON text.
 *   Read as well: one array (n_layer, n_head, nb, nb) under any name, as other programs make it: absolute influence at 64*nb tokens. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/npy.h"
#include "core/base/text.h"
#include "tui/search.h"
#include "version.h"

#define INFLUENCE_MAX ((size_t)2 << 30) /* bytes of elements */

/* --- reading ------------------------------------------------------------------------------------------------------------------ */

/* "joint_512" -> 512; 0: another name */
static int32_t length_of(const char *name, const char *kind) {
    const size_t n = strlen(kind);
    char *end;
    if (strncmp(name, kind, n) != 0 || name[n] != '_') return 0;
    const long v = strtol(name + n + 1, &end, 10);
    return *end == 0 && end != name + n + 1 && v >= 2 && v <= MOA_N_MAX ? (int32_t)v : 0;
}

static moa_status check_shape(const tui_app *app, const moa_npy_array *a, int32_t n_tok, bool map, moa_err *err) {
    const size_t nb = ((size_t)n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK, *d = a->shape.shape;
    const size_t l = (size_t)app->model.n_layer, h = (size_t)app->model.n_head;
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

static moa_status take_array(const tui_app *app, const moa_npy_array *a, int32_t n_tok, bool map, float **to, moa_err *err) {
    const moa_status s = a ? check_shape(app, a, n_tok, map, err) : MOA_OK;
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
static moa_status take_length(const tui_app *app, const moa_npz *z, const moa_npy_array *single, int32_t n_tok, tui_influence **out, moa_err *err) {
    const moa_npy_array *abs_of = single ? single : array_of(z, "abs", n_tok), *sum = single ? NULL : array_of(z, "signed", n_tok);
    const moa_npy_array *joint = single ? NULL : array_of(z, "joint", n_tok);
    moa_status s = MOA_OK;
    tui_influence *f = *out = calloc(1, sizeof *f);
    if (!f) return moa_fail(err, MOA_E_MEMORY, "no memory for influence");
    *f = (tui_influence){.n_tok = n_tok, .nb = (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK, .n_layer = app->model.n_layer, .n_head = app->model.n_head, .loss = (double)NAN};
    MOA_TRY(take_array(app, abs_of, n_tok, true, &f->abs, err));
    MOA_TRY(take_array(app, sum, n_tok, true, &f->sum, err));
    MOA_TRY(take_array(app, joint, n_tok, false, &f->joint, err));
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

moa_status tui_influence_load(tui_app *app, const char *path, moa_err *err) {
    tui_planner *p = app->planner;
    moa_npz z = {0};
    tui_influence *list[TUI_FIND_LENGTHS] = {0};
    int32_t lengths[TUI_FIND_LENGTHS];
    moa_status s = MOA_OK;
    int n = 0;
    if (!app->model.loaded) return moa_fail(err, MOA_E_FAILED, "influence is of a model; load it first");
    if (p->running >= 0) return moa_fail(err, MOA_E_FAILED, "%s is at work; C-c stops it", tui_step_title((tui_step)p->running));
    MOA_TRY(moa_npz_read(&z, path, NULL, INFLUENCE_MAX, err));
    n = lengths_in(&z, lengths);
    const moa_npy_array *single = n == 0 ? single_map(&z, &lengths[0]) : NULL;
    if (single) n = 1;
    if (n == 0) MOA_TRY(moa_fail(err, MOA_E_INVALID, "no influence in it: neither abs_N, signed_N, joint_N nor one array [layers][heads][nb][nb]"));
    if (n > TUI_FIND_LENGTHS) MOA_TRY(moa_fail(err, MOA_E_UNSUPPORTED, "it has more than %d lengths: `profile --lengths` makes one of fewer", TUI_FIND_LENGTHS));
    for (int i = 0; i < n; i++) MOA_TRY(take_length(app, &z, single, lengths[i], &list[i], err));
    const moa_npy_array *meta = moa_npz_find(&z, "meta");
    if (meta && meta->shape.type == MOA_NPY_TEXT && strstr(meta->data, "\"fingerprint\": \"") && !strstr(meta->data, app->model.fingerprint))
        tui_say(app, TUI_WARN, "This influence was measured on other weights: the file's fingerprint is not the model's");
    settle(app, list, n, path);
    tui_say(app, TUI_GOOD, "Influence of %d length%s from %s", n, n == 1 ? "" : "s", p->source);
    memset(list, 0, sizeof list);
out:
    for (int i = 0; i < TUI_FIND_LENGTHS; i++) tui_influence_close(&list[i]);
    moa_npz_free(&z);
    return s;
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
