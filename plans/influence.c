/* influence.c -- profiles read into curves of loss over spans; everything in the file is checked against its own shapes. */
#include "plans/influence.h"

#include <cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/npy.h"
#include "core/base/size.h"
#include "plans/plan.h"

const char *moa_measure_name(moa_measure m) {
    static const char *const names[] = {
#define X(NAME, name) name,
        MOA_MEASURE_MAP(X)
#undef X
    };
    return names[m];
}

/* --- curves --------------------------------------------------------------------------------------------------------------------- */

static bool curve_count(int32_t n_layer, int32_t n_head, int32_t nb, size_t *n) {
    size_t bytes;
    return moa_size_mul((size_t)n_layer, (size_t)n_head, n) && moa_size_mul(*n, (size_t)nb + 1, n) &&
           moa_size_mul(*n, sizeof(double), &bytes) && bytes <= MOA_LOSSES_FILE_MAX;
}

moa_status moa_losses_open(moa_losses **out, int32_t n_layer, int32_t n_head, int32_t n_head_kv,
                           const int32_t *length, int32_t n_length, moa_err *err) {
    *out = NULL;
    if (n_layer < 1 || n_layer > MOA_PLAN_LAYER_MAX || n_head < 1 || n_head > MOA_PLAN_HEAD_MAX)
        return moa_fail(err, MOA_E_INVALID, "influence of %d layers x %d heads: the limits are 1..%d and 1..%d",
                        n_layer, n_head, MOA_PLAN_LAYER_MAX, MOA_PLAN_HEAD_MAX);
    if (n_head_kv < 1 || n_head_kv > n_head || n_head % n_head_kv != 0)
        return moa_fail(err, MOA_E_INVALID, "%d KV heads do not divide %d heads", n_head_kv, n_head);
    if (n_length < 1 || n_length > MOA_LOSSES_LENGTH_MAX)
        return moa_fail(err, MOA_E_INVALID, "%d lengths: from 1 to %d", n_length, MOA_LOSSES_LENGTH_MAX);
    moa_losses *l = calloc(1, sizeof *l);
    if (!l) return moa_fail(err, MOA_E_MEMORY, "no memory for an influence table");
    l->n_layer = n_layer, l->n_head = n_head, l->n_head_kv = n_head_kv, l->n_length = n_length;
    for (int32_t i = 0; i < n_length; i++) {
        size_t n;
        if (length[i] < 2 || length[i] > MOA_N_MAX || (i > 0 && length[i] <= length[i - 1])) {
            moa_losses_close(&l);
            return moa_fail(err, MOA_E_INVALID, "influence lengths ascend from 2 to %d tokens; number %d is %d", MOA_N_MAX, i,
                            length[i]);
        }
        l->length[i] = length[i];
        l->nb[i] = moa_roundup64(length[i]) / MOA_PAGE_TOK;
        l->dense[i] = NAN;
        if (curve_count(n_layer, n_head, l->nb[i], &n)) l->curve[i] = calloc(n, sizeof(double));
        if (!l->curve[i]) {
            moa_losses_close(&l);
            return moa_fail(err, MOA_E_MEMORY, "no memory for the curves of %d x %d heads at %d tokens", n_layer, n_head,
                            length[i]);
        }
    }
    *out = l;
    return MOA_OK;
}

void moa_losses_close(moa_losses **l) {
    if (!*l) return;
    for (int i = 0; i < MOA_LOSSES_LENGTH_MAX; i++) free((*l)->curve[i]);
    free(*l);
    *l = NULL;
}

void moa_losses_from_map(const float *map, int32_t nb, double *curve) {
    /* distance[d]: mass of the blocks d behind their query's, the sink's column left out; a window of w cuts d >= w */
    for (int32_t w = 0; w <= nb; w++) curve[w] = 0;
    for (int32_t q = 0; q < nb; q++)
        for (int32_t k = 1; k <= q; k++) curve[q - k] += (double)map[(size_t)q * (size_t)nb + (size_t)k];
    for (int32_t w = nb - 1; w >= 0; w--) curve[w] += curve[w + 1];
    curve[0] = 0;
}

double moa_losses_rule(const moa_losses *l, int32_t i, int32_t layer, int32_t head, moa_rule rule) {
    const int32_t s = moa_span(rule, l->length[i]) / MOA_PAGE_TOK;
    return s >= l->nb[i] ? 0 : moa_losses_at(l, i, layer, head)[s - 1];
}

void moa_losses_drop_gains(moa_losses *l) {
    for (int32_t i = 0; i < l->n_length; i++) {
        const size_t n = (size_t)l->n_layer * (size_t)l->n_head * ((size_t)l->nb[i] + 1);
        for (size_t k = 0; k < n; k++)
            if (l->curve[i][k] < 0) l->curve[i][k] = 0;
    }
}

/* from (nb + 1) to (to_nb + 1), to_nb > nb */
static void stretch(const double *from, int32_t nb, double *to, int32_t to_nb) {
    for (int32_t w = 1; w <= to_nb; w++) {
        const double at = (double)(w + 1) * nb / to_nb - 1; /* w + 1: the sink's block is kept too */
        const int32_t low = at < 1 ? 1 : at >= nb ? nb : (int32_t)at, high = low < nb && at > 1 ? low + 1 : low;
        to[w] = from[low] + (at > low ? at - low : 0) * (from[high] - from[low]);
    }
}

moa_status moa_losses_stretch(moa_losses *l, const int32_t *length, int32_t n, moa_err *err) {
    const int32_t last = l->n_length - 1;
    const size_t heads = (size_t)l->n_layer * (size_t)l->n_head;
    int32_t more[MOA_LOSSES_LENGTH_MAX], n_more = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t k = n_more;
        bool twin = length[i] <= l->length[last];
        for (int32_t m = 0; m < n_more; m++) twin |= more[m] == length[i];
        if (twin) continue;
        if (l->n_length + n_more == MOA_LOSSES_LENGTH_MAX || length[i] > MOA_N_MAX)
            return moa_fail(err, MOA_E_INVALID, "length %d beside %d others: at most %d lengths of at most %d tokens", length[i],
                            l->n_length + n_more, MOA_LOSSES_LENGTH_MAX, MOA_N_MAX);
        for (; k > 0 && more[k - 1] > length[i]; k--) more[k] = more[k - 1];
        more[k] = length[i];
        n_more++;
    }
    for (int32_t i = 0; i < n_more; i++) {
        const int32_t at = l->n_length, nb = moa_roundup64(more[i]) / MOA_PAGE_TOK;
        size_t count;
        if (nb == l->nb[last]) continue; /* the same blocks: nothing to tell apart */
        if (curve_count(l->n_layer, l->n_head, nb, &count)) l->curve[at] = calloc(count, sizeof(double));
        if (!l->curve[at])
            return moa_fail(err, MOA_E_MEMORY, "no memory for the curves of %d x %d heads at %d tokens", l->n_layer, l->n_head, more[i]);
        l->length[at] = more[i], l->nb[at] = nb, l->dense[at] = (double)NAN;
        l->n_length++;
        for (size_t h = 0; h < heads; h++)
            stretch(l->curve[last] + h * ((size_t)l->nb[last] + 1), l->nb[last], l->curve[at] + h * ((size_t)nb + 1), nb);
    }
    return MOA_OK;
}

/* --- the file --------------------------------------------------------------------------------------------------------------------- */

static int32_t json_int(const cJSON *object, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(x) && x->valuedouble >= 1 && x->valuedouble <= MOA_N_MAX ? (int32_t)x->valuedouble : 0;
}

static void json_text(char *to, size_t bytes, const cJSON *object, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(object, key);
    if (cJSON_IsString(x)) (void)snprintf(to, bytes, "%s", x->valuestring);
}

static int ascending(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* what the file says it is */
typedef struct about {
    cJSON *meta; /* NULL: none */
    int32_t length[MOA_LOSSES_LENGTH_MAX];
    int32_t n_length;
} about;

static moa_status read_meta(about *a, const char *path, moa_err *err) {
    static const char *const names[] = {"meta", NULL};
    moa_npz z = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_npz_read(&z, path, names, (size_t)64 << 20, err));
    const moa_npy_array *m = moa_npz_find(&z, "meta");
    if (!m || m->shape.type != MOA_NPY_TEXT) goto out;
    MOA_TRY(moa_json_check(m->data, m->bytes, err));
    a->meta = cJSON_ParseWithLength(m->data, m->bytes);
    if (!a->meta) MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: its description cannot be read", path));
    const cJSON *lengths = cJSON_GetObjectItemCaseSensitive(a->meta, "lengths");
    for (const cJSON *x = lengths ? lengths->child : NULL; x; x = x->next) {
        char *end;
        const long n = x->string ? strtol(x->string, &end, 10) : 0;
        if (n < 2 || n > MOA_N_MAX || *end)
            MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: \"%s\" is no length", path, x->string ? x->string : ""));
        if (a->n_length == MOA_LOSSES_LENGTH_MAX)
            MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: more than %d lengths; name those to take", path, MOA_LOSSES_LENGTH_MAX));
        a->length[a->n_length++] = (int32_t)n;
    }
    qsort(a->length, (size_t)a->n_length, sizeof *a->length, ascending);
out:
    moa_npz_free(&z);
    return s;
}

static moa_status no_kv(const moa_losses_config *c, const about *a, int32_t n_head, int32_t *n_head_kv, bool *known, moa_err *err) {
    const cJSON *model = a->meta ? cJSON_GetObjectItemCaseSensitive(a->meta, "model") : NULL;
    const int32_t said = model ? json_int(model, "n_head_kv") : 0;
    *known = c->n_head_kv > 0 || said > 0;
    *n_head_kv = c->n_head_kv > 0 ? c->n_head_kv : said > 0 ? said : n_head;
    if (*n_head_kv > n_head || n_head % *n_head_kv != 0)
        return moa_fail(err, MOA_E_INVALID, "%s: %d KV heads do not divide its %d heads", c->path, *n_head_kv, n_head);
    return MOA_OK;
}

static moa_status check_values(const char *path, const moa_npy_array *a, moa_err *err) {
    const float *x = a->data;
    for (size_t i = 0; i < a->bytes / sizeof *x; i++)
        if (!isfinite(x[i]))
            return moa_fail(err, MOA_E_INVALID, "%s: %s: value %zu of %zu is not finite", path, a->name, i,
                            a->bytes / sizeof *x);
    return MOA_OK;
}

/* (n_layer, n_head, nb, nb) or (n_layer, n_head, nb + 1), float32 */
static moa_status check_shape(const char *path, const moa_npy_array *a, int32_t nb, bool curve, moa_err *err) {
    const size_t *d = a->shape.shape, want = (size_t)nb + (curve ? 1 : 0);
    const int n_dim = curve ? 3 : 4;
    bool ok = a->shape.type == MOA_NPY_F32 && a->shape.n_dim == n_dim;
    for (int k = 2; ok && k < n_dim; k++) ok = d[k] == want;
    ok = ok && d[0] >= 1 && d[0] <= MOA_PLAN_LAYER_MAX && d[1] >= 1 && d[1] <= MOA_PLAN_HEAD_MAX;
    if (ok) return MOA_OK;
    char have[160] = "";
    for (int k = 0; k < a->shape.n_dim; k++)
        (void)snprintf(have + strlen(have), sizeof have - strlen(have), "%s%zu", k ? "x" : "", d[k]);
    return moa_fail(err, MOA_E_INVALID, "%s: %s is %s%s, expected float32 [layers][heads]%s of %zu", path, a->name, have,
                    a->shape.type == MOA_NPY_F32 ? "" : ", not float32", curve ? "[windows]" : "[blocks][blocks]", want);
}

static void take(moa_losses *l, int32_t i, const moa_npy_array *a, bool curve) {
    const float *x = a->data;
    const size_t nb = (size_t)l->nb[i], each = curve ? nb + 1 : nb * nb;
    for (int32_t layer = 0; layer < l->n_layer; layer++)
        for (int32_t h = 0; h < l->n_head; h++) {
            const float *from = x + ((size_t)layer * (size_t)l->n_head + (size_t)h) * each;
            double *to = moa_losses_at(l, i, layer, h);
            if (!curve) moa_losses_from_map(from, l->nb[i], to);
            else
                for (size_t w = 1; w <= nb; w++) to[w] = (double)from[w];
        }
}

void moa_losses_rebase(moa_losses *l, int32_t i) {
    const size_t heads = (size_t)l->n_layer * (size_t)l->n_head, nb = (size_t)l->nb[i];
    for (size_t h = 0; h < heads; h++) {
        double *curve = l->curve[i] + h * (nb + 1);
        for (size_t w = 1; w <= nb; w++) curve[w] -= curve[nb];
    }
}

static moa_status open_for(moa_losses **out, const moa_losses_config *c, const about *a, const moa_npy_array *first, moa_err *err) {
    const int32_t n_layer = (int32_t)first->shape.shape[0], n_head = (int32_t)first->shape.shape[1];
    int32_t n_head_kv;
    bool known;
    moa_status s = no_kv(c, a, n_head, &n_head_kv, &known, err);
    if (s != MOA_OK) return s;
    s = moa_losses_open(out, n_layer, n_head, n_head_kv, a->length, a->n_length, err);
    if (s != MOA_OK) return s;
    moa_losses *l = *out;
    l->kv_known = known;
    l->planned = a->meta && cJSON_GetObjectItemCaseSensitive(a->meta, "plan");
    const cJSON *model = a->meta ? cJSON_GetObjectItemCaseSensitive(a->meta, "model") : NULL;
    if (!model) return MOA_OK;
    json_text(l->model, sizeof l->model, model, "name");
    json_text(l->arch, sizeof l->arch, model, "architecture");
    json_text(l->fingerprint, sizeof l->fingerprint, model, "fingerprint");
    const cJSON *lengths = cJSON_GetObjectItemCaseSensitive(a->meta, "lengths");
    for (int32_t i = 0; lengths && !l->planned && i < l->n_length; i++) {
        char key[16];
        (void)snprintf(key, sizeof key, "%d", l->length[i]);
        const cJSON *loss = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(lengths, key), "loss");
        if (cJSON_IsNumber(loss)) l->dense[i] = loss->valuedouble;
    }
    return MOA_OK;
}

/* one array at a time: the maps of a large model are gigabytes */
static moa_status load_length(moa_losses **l, const moa_losses_config *c, const about *a, int32_t i, moa_err *err) {
    const bool curve = c->measure == MOA_MEASURE_JOINT;
    char name[MOA_NPY_NAME_MAX];
    const char *const names[] = {name, NULL};
    moa_npz z = {0};
    moa_status s = MOA_OK;
    (void)snprintf(name, sizeof name, "%s_%d", moa_measure_name(c->measure), a->length[i]);
    MOA_TRY(moa_npz_read(&z, c->path, names, MOA_LOSSES_FILE_MAX, err));
    const moa_npy_array *x = moa_npz_find(&z, name);
    if (!x) MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: there is no array %s", c->path, name));
    MOA_TRY(check_shape(c->path, x, moa_roundup64(a->length[i]) / MOA_PAGE_TOK, curve, err));
    MOA_TRY(check_values(c->path, x, err));
    if (!*l) MOA_TRY(open_for(l, c, a, x, err));
    if (x->shape.shape[0] != (size_t)(*l)->n_layer || x->shape.shape[1] != (size_t)(*l)->n_head)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: %s has %zu x %zu heads, the others %d x %d", c->path, name, x->shape.shape[0],
                         x->shape.shape[1], (*l)->n_layer, (*l)->n_head));
    if ((*l)->planned && !curve)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: %s is of a model under a plan, whose wider windows only joint knows", c->path, name));
    take(*l, i, x, curve);
    if ((*l)->planned) moa_losses_rebase(*l, i);
out:
    moa_npz_free(&z);
    return s;
}

/* a file of one array under any name; n 0: it is not such a file */
static moa_status load_plain(moa_losses **l, const moa_losses_config *c, about *a, moa_err *err) {
    moa_npz z = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_npz_read(&z, c->path, NULL, MOA_LOSSES_FILE_MAX, err));
    if (z.n != 1 || z.arrays[0].shape.n_dim != 4)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: neither a profile (abs_N, signed_N, joint_N and meta) nor one array [layers][heads]"
                         "[blocks][blocks]: it holds %d arrays", c->path, z.n));
    const moa_npy_array *x = &z.arrays[0];
    if (x->shape.shape[3] < 1 || x->shape.shape[3] > MOA_N_MAX / MOA_PAGE_TOK)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: %s has %zu blocks a row", c->path, x->name, x->shape.shape[3]));
    const int32_t nb = (int32_t)x->shape.shape[3];
    MOA_TRY(check_shape(c->path, x, nb, false, err));
    MOA_TRY(check_values(c->path, x, err));
    a->n_length = 1;
    a->length[0] = nb * MOA_PAGE_TOK;
    MOA_TRY(open_for(l, c, a, x, err));
    take(*l, 0, x, false);
out:
    moa_npz_free(&z);
    return s;
}

moa_status moa_losses_load(moa_losses **out, const moa_losses_config *c, moa_err *err) {
    about a = {0};
    moa_losses *l = NULL;
    moa_status s = MOA_OK;
    *out = NULL;
    MOA_TRY(read_meta(&a, c->path, err));
    const bool plain = a.n_length == 0 && c->n_length == 0;
    if (c->n_length > MOA_LOSSES_LENGTH_MAX)
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "%d lengths; at most %d", c->n_length, MOA_LOSSES_LENGTH_MAX));
    if (c->n_length > 0) {
        memcpy(a.length, c->length, (size_t)c->n_length * sizeof *c->length);
        a.n_length = c->n_length;
        qsort(a.length, (size_t)a.n_length, sizeof *a.length, ascending);
        for (int32_t i = 0; i < a.n_length; i++)
            if (a.length[i] < 2 || a.length[i] > MOA_N_MAX || (i > 0 && a.length[i] == a.length[i - 1]))
                MOA_TRY(moa_fail(err, MOA_E_USAGE, "length %d: each once, from 2 to %d tokens", a.length[i], MOA_N_MAX));
    }
    if (plain) MOA_TRY(load_plain(&l, c, &a, err));
    for (int32_t i = 0; !plain && i < a.n_length; i++) MOA_TRY(load_length(&l, c, &a, i, err));
    *out = l;
    l = NULL;
out:
    cJSON_Delete(a.meta);
    moa_losses_close(&l);
    return s;
}
