/* plan_file.c -- plan files, read strictly and written so that every value reads back exactly.
 *
 *   {"format": "moa-plan", "version": 1,                                      ours; a file with the two keys below alone is complete
 *    "model": {"name": ..., "architecture": ..., "n_layer": 30, ...},
 *    "sink": 64, "block": 64,
 *    "alphas": [[...] n_head values] n_layer rows, "betas": the same shape,
 *    ...anything else: kept as it stood, byte for byte} */
#include "plans/plan.h"

#include <cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/text.h"

static bool key_is(const moa_json_member *m, const char *key) {
    return m->key_bytes == strlen(key) && memcmp(m->key, key, m->key_bytes) == 0;
}

static const moa_json_member *find(const moa_json_member *members, size_t n, const char *key) {
    for (size_t i = 0; i < n; i++)
        if (key_is(&members[i], key)) return &members[i];
    return NULL;
}

/* The members that none of the keys names, as text for writing back; NULL in *out when there are none. */
static moa_status keep_extra(const moa_json_member *members, size_t n, const char *const *keys, char **out, moa_err *err) {
    moa_buf b = {0};
    *out = NULL;
    for (size_t i = 0; i < n; i++) {
        bool known = false;
        for (const char *const *k = keys; *k; k++) known |= key_is(&members[i], *k);
        if (known) continue;
        if (b.size) moa_buf_str(&b, ", ");
        moa_buf_printf(&b, "\"%.*s\": ", (int)members[i].key_bytes, members[i].key);
        moa_buf_append(&b, members[i].value, members[i].value_bytes);
    }
    if (!moa_buf_ok(&b)) {
        moa_buf_free(&b);
        return moa_fail(err, MOA_E_MEMORY, "no memory for the plan's other keys");
    }
    *out = b.data;
    return MOA_OK;
}

static moa_status check_integer(const moa_json_member *m, int32_t expected, moa_err *err) {
    char copy[32];
    if (!m) return MOA_OK;
    if (m->value_bytes < sizeof copy) {
        memcpy(copy, m->value, m->value_bytes);
        copy[m->value_bytes] = 0;
        char *end;
        const double x = strtod(copy, &end);
        if (end != copy && *end == 0 && x == expected) return MOA_OK;
    }
    return moa_fail(err, MOA_E_UNSUPPORTED, "plan: \"%.*s\" is %.*s, this program knows %d", (int)m->key_bytes, m->key,
                    (int)(m->value_bytes < 40 ? m->value_bytes : 40), m->value, expected);
}

static cJSON *tree(const moa_json_member *m) { return cJSON_ParseWithLength(m->value, m->value_bytes); }

static bool matrix_shape(const cJSON *rows, const char *key, int32_t *n_layer, int32_t *n_head, moa_err *err) {
    if (!cJSON_IsArray(rows) || !rows->child) {
        (void)moa_fail(err, MOA_E_INVALID, "plan: \"%s\" is not a list of layers", key);
        return false;
    }
    int32_t layer = 0, first = 0;
    for (const cJSON *row = rows->child; row; row = row->next, layer++) {
        if (layer == MOA_PLAN_LAYER_MAX || !cJSON_IsArray(row)) {
            (void)moa_fail(err, MOA_E_INVALID, "plan: \"%s\": layer %d is %s", key, layer,
                           cJSON_IsArray(row) ? "above the limit of 1024" : "not a list of heads");
            return false;
        }
        int32_t heads = 0;
        for (const cJSON *x = row->child; x && heads <= MOA_PLAN_HEAD_MAX; x = x->next) heads++;
        if (layer == 0) first = heads;
        if (heads != first || heads < 1 || heads > MOA_PLAN_HEAD_MAX) {
            (void)moa_fail(err, MOA_E_INVALID, "plan: \"%s\": layer %d has %d heads, layer 0 has %d (limit %d)", key, layer, heads,
                           first, MOA_PLAN_HEAD_MAX);
            return false;
        }
    }
    *n_layer = layer;
    *n_head = first;
    return true;
}

static moa_status fill(moa_plan *p, const cJSON *rows, const char *key, bool alpha, moa_err *err) {
    int32_t layer = 0;
    for (const cJSON *row = rows->child; row; row = row->next, layer++) {
        int32_t head = 0;
        for (const cJSON *x = row->child; x; x = x->next, head++) {
            if (!cJSON_IsNumber(x) || !isfinite(x->valuedouble))
                return moa_fail(err, MOA_E_INVALID, "plan: \"%s\": layer %d head %d is not a finite number", key, layer, head);
            moa_rule *rule = moa_plan_at(p, layer, head);
            if (alpha) rule->alpha = x->valuedouble;
            else rule->beta = x->valuedouble;
        }
    }
    return MOA_OK;
}

static void copy_text(char *to, size_t bytes, const cJSON *object, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsString(x)) return;
    size_t n = strlen(x->valuestring);
    if (n >= bytes) n = bytes - 1;
    memcpy(to, x->valuestring, n);
    to[n] = 0;
}

/* the "model" object: what it says must agree with the matrices */
static moa_status read_model(moa_plan *p, const moa_json_member *m, moa_err *err) {
    static const char *const keys[] = {"name", "architecture", "n_layer", "n_head", "n_head_kv", "fingerprint", NULL};
    moa_json_member members[MOA_JSON_MEMBER_MAX];
    size_t n = 0;
    if (!m) return MOA_OK;
    moa_status s = MOA_OK;
    cJSON *object = NULL;
    MOA_TRY(moa_json_members(m->value, m->value_bytes, members, MOA_JSON_MEMBER_MAX, &n, err));
    MOA_TRY(keep_extra(members, n, keys, &p->model_extra, err));
    object = tree(m);
    if (!object) {
        s = moa_fail(err, MOA_E_MEMORY, "plan: no memory to read \"model\"");
        goto out;
    }
    copy_text(p->model, sizeof p->model, object, "name");
    copy_text(p->arch, sizeof p->arch, object, "architecture");
    copy_text(p->fingerprint, sizeof p->fingerprint, object, "fingerprint");
    MOA_TRY(check_integer(find(members, n, "n_layer"), p->n_layer, err));
    MOA_TRY(check_integer(find(members, n, "n_head"), p->n_head, err));
    const cJSON *kv = cJSON_GetObjectItemCaseSensitive(object, "n_head_kv");
    if (cJSON_IsNumber(kv)) {
        const double x = kv->valuedouble;
        if (!(x >= 1 && x <= p->n_head && x == (int32_t)x && p->n_head % (int32_t)x == 0)) {
            s = moa_fail(err, MOA_E_INVALID, "plan: model n_head_kv %g does not divide its %d heads", x, p->n_head);
            goto out;
        }
        p->n_head_kv = (int32_t)x;
    }
out:
    cJSON_Delete(object);
    return s;
}

moa_status moa_plan_parse(moa_plan **out, const char *text, size_t n, moa_err *err) {
    static const char *const keys[] = {"alphas", "betas", "format", "version", "model", "sink", "block", NULL};
    *out = NULL;
    moa_status s = MOA_OK;
    cJSON *alphas = NULL, *betas = NULL;
    moa_plan *p = NULL;
    moa_json_member members[MOA_JSON_MEMBER_MAX];
    size_t n_members;
    MOA_TRY(moa_json_members(text, n, members, MOA_JSON_MEMBER_MAX, &n_members, err));
    const moa_json_member *a = find(members, n_members, "alphas"), *b = find(members, n_members, "betas"),
                          *format = find(members, n_members, "format");
    if (!a || !b) {
        s = moa_fail(err, MOA_E_INVALID, "plan: the key \"%s\" is missing", a ? "betas" : "alphas");
        goto out;
    }
    if (format && (format->value_bytes != 10 || memcmp(format->value, "\"moa-plan\"", 10) != 0)) {
        s = moa_fail(err, MOA_E_UNSUPPORTED, "plan: the format is %.*s, not \"moa-plan\"",
                     (int)(format->value_bytes < 40 ? format->value_bytes : 40), format->value);
        goto out;
    }
    MOA_TRY(check_integer(find(members, n_members, "version"), 1, err));
    MOA_TRY(check_integer(find(members, n_members, "sink"), MOA_SINK_TOK, err));
    MOA_TRY(check_integer(find(members, n_members, "block"), MOA_PAGE_TOK, err));
    alphas = tree(a);
    betas = tree(b);
    if (!alphas || !betas) {
        s = moa_fail(err, MOA_E_MEMORY, "plan: no memory for its %zu bytes", n);
        goto out;
    }
    int32_t layers, heads, layers_b, heads_b;
    if (!matrix_shape(alphas, "alphas", &layers, &heads, err) || !matrix_shape(betas, "betas", &layers_b, &heads_b, err)) {
        s = MOA_E_INVALID;
        goto out;
    }
    if (layers != layers_b || heads != heads_b) {
        s = moa_fail(err, MOA_E_INVALID, "plan: \"alphas\" is %d x %d, \"betas\" %d x %d", layers, heads, layers_b, heads_b);
        goto out;
    }
    MOA_TRY(moa_plan_uniform(&p, layers, heads, (moa_rule){0, 0}, err));
    MOA_TRY(fill(p, alphas, "alphas", true, err));
    MOA_TRY(fill(p, betas, "betas", false, err));
    MOA_TRY(read_model(p, find(members, n_members, "model"), err));
    MOA_TRY(keep_extra(members, n_members, keys, &p->extra, err));
    *out = p;
    p = NULL;
out:
    cJSON_Delete(alphas);
    cJSON_Delete(betas);
    moa_plan_close(&p);
    return s;
}

moa_status moa_plan_load(moa_plan **out, const char *path, moa_err *err) {
    moa_buf b = {0};
    *out = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(moa_file_read(path, MOA_PLAN_FILE_MAX, &b, err));
    s = moa_plan_parse(out, b.data ? b.data : "", b.size, err);
    if (s != MOA_OK && err) {
        const moa_err inner = *err;
        (void)moa_fail(err, s, "%s: %s", path, inner.text);
    }
out:
    moa_buf_free(&b);
    return s;
}

static void print_matrix(const moa_plan *p, const char *key, bool alpha, moa_buf *out) {
    moa_buf_printf(out, "\"%s\": [", key);
    for (int32_t l = 0; l < p->n_layer; l++) {
        moa_buf_str(out, l ? ",\n  [" : "\n  [");
        for (int32_t h = 0; h < p->n_head; h++) {
            const moa_rule *rule = moa_plan_at(p, l, h);
            if (h) moa_buf_str(out, ", ");
            moa_json_number(out, alpha ? rule->alpha : rule->beta);
        }
        moa_buf_str(out, "]");
    }
    moa_buf_str(out, "\n ]");
}

static void print_model(const moa_plan *p, moa_buf *out) {
    moa_buf_str(out, " \"model\": {\"name\": ");
    moa_text_json(p->model, strlen(p->model), out);
    moa_buf_str(out, ", \"architecture\": ");
    moa_text_json(p->arch, strlen(p->arch), out);
    moa_buf_printf(out, ", \"n_layer\": %d, \"n_head\": %d", p->n_layer, p->n_head);
    if (p->n_head_kv) moa_buf_printf(out, ", \"n_head_kv\": %d", p->n_head_kv);
    if (p->fingerprint[0]) {
        moa_buf_str(out, ", \"fingerprint\": ");
        moa_text_json(p->fingerprint, strlen(p->fingerprint), out);
    }
    if (p->model_extra) moa_buf_printf(out, ", %s", p->model_extra);
    moa_buf_str(out, "},\n");
}

moa_status moa_plan_print(const moa_plan *p, bool superset, moa_buf *out, moa_err *err) {
    moa_buf_str(out, "{");
    if (superset) {
        moa_buf_str(out, "\"format\": \"moa-plan\", \"version\": 1,\n");
        print_model(p, out);
        moa_buf_printf(out, " \"sink\": %d, \"block\": %d,\n ", MOA_SINK_TOK, MOA_PAGE_TOK);
        if (p->extra) moa_buf_printf(out, "%s,\n ", p->extra);
    }
    print_matrix(p, "alphas", true, out);
    moa_buf_str(out, ",\n ");
    print_matrix(p, "betas", false, out);
    moa_buf_str(out, "}\n");
    return moa_buf_ok(out) ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory to write a plan of %d layers", p->n_layer);
}

moa_status moa_plan_save(const moa_plan *p, const char *path, bool superset, moa_err *err) {
    moa_buf b = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_plan_print(p, superset, &b, err));
    MOA_TRY(moa_file_save(path, b.data, b.size, 0644, 1, err));
out:
    moa_buf_free(&b);
    return s;
}
