/* plan_export.c -- one writer a format; plan_export.h says what each can and cannot express. */
#include "plans/plan_export.h"

#include <stdio.h>
#include <string.h>

#include "core/base/json.h"

static const struct {
    const char *name;
    int min_at, max_at;
    bool kv;
} formats[] = {
#define X(id, name, min_at, max_at, kv) {name, min_at, max_at, kv},
    MOA_EXPORT_MAP(X)
#undef X
};

moa_status moa_export_find(const char *name, moa_export_format *out, moa_err *err) {
    char list[128] = "";
    for (int f = 0; f < MOA_N_EXPORT; f++) {
        if (strcmp(name, formats[f].name) == 0) {
            *out = (moa_export_format)f;
            return MOA_OK;
        }
        const size_t used = strlen(list);
        (void)snprintf(list + used, sizeof list - used, "%s%s", f ? ", " : "", formats[f].name);
    }
    return moa_fail(err, MOA_E_USAGE, "no export to '%.64s'; there are %s", name, list);
}

static int32_t window_at(const moa_plan *p, int32_t layer, int32_t head, int32_t n) {
    return moa_window(moa_span(*moa_plan_at(p, layer, head), n));
}

static void put_csv(const moa_plan *p, const moa_export *how, moa_buf *b) {
    moa_buf_str(b, "layer,head,alpha,beta");
    for (int i = 0; i < how->n_at; i++)
        moa_buf_printf(b, ",span_%d", how->at[i]);
    moa_buf_str(b, "\n");
    for (int32_t l = 0; l < p->n_layer; l++)
        for (int32_t h = 0; h < p->n_head; h++) {
            const moa_rule rule = *moa_plan_at(p, l, h);
            moa_buf_printf(b, "%d,%d,", l, h);
            moa_json_number(b, rule.alpha);
            moa_buf_str(b, ",");
            moa_json_number(b, rule.beta);
            for (int i = 0; i < how->n_at; i++)
                moa_buf_printf(b, ",%d", moa_span(rule, how->at[i]));
            moa_buf_str(b, "\n");
        }
}

static void put_windows(const moa_plan *p, const moa_export *how, moa_buf *b) {
    moa_buf_printf(
        b,
        "{\n  \"format\": \"moa-windows\",\n  \"version\": 1,\n  \"n_layer\": %d,\n  \"n_head\": %d,\n"
        "  \"sink\": %d,\n  \"visible\": \"query i sees key j iff j <= i and (j < sink or i - j < "
        "window)\",\n"
        "  \"lengths\": [",
        p->n_layer, p->n_head, MOA_SINK_TOK);
    for (int i = 0; i < how->n_at; i++) {
        moa_buf_printf(b, "%s\n    {\"n\": %d, \"windows\": [", i ? "," : "", how->at[i]);
        for (int32_t l = 0; l < p->n_layer; l++) {
            moa_buf_str(b, l ? ",\n      [" : "\n      [");
            for (int32_t h = 0; h < p->n_head; h++)
                moa_buf_printf(b, "%s%d", h ? ", " : "", window_at(p, l, h, how->at[i]));
            moa_buf_str(b, "]");
        }
        moa_buf_str(b, "\n    ]}");
    }
    moa_buf_str(b, "\n  ]\n}\n");
}

static void put_minference(const moa_plan *p, int32_t n, moa_buf *b) {
    moa_buf_str(b, "[");
    for (int32_t l = 0; l < p->n_layer; l++) {
        moa_buf_str(b, l ? ",\n  {" : "\n  {");
        for (int32_t h = 0; h < p->n_head; h++)
            moa_buf_printf(b, "%s\"%d\": [\"stream_llm\", %d, %d, 1.0]", h ? ", " : "", h, MOA_SINK_TOK,
                           window_at(p, l, h, n));
        moa_buf_str(b, "}");
    }
    moa_buf_str(b, "\n]\n");
}

/* the widest window a KV head needs when it is the same at every length, else 0: full */
static int32_t constant_window(const moa_plan *p, int32_t layer, int32_t kv, int32_t group) {
    int32_t widest = 0;
    for (int32_t h = kv * group; h < (kv + 1) * group; h++) {
        const moa_rule rule = *moa_plan_at(p, layer, h);
        if (rule.beta != 0 || rule.alpha >= MOA_N_MAX) return 0;
        const int32_t window = window_at(p, layer, h, MOA_N_MAX);
        if (window > widest) widest = window;
    }
    return widest;
}

/* Dense at every length as the plan says it? Then "full" loses nothing. */
static bool always_dense(moa_rule rule) {
    return (rule.beta >= 1 && rule.alpha >= 0) || (rule.beta >= 0 && rule.alpha >= MOA_N_MAX);
}

static void put_duo(const moa_plan *p, int32_t n_head_kv, moa_buf *tsv, moa_buf *config,
                    char loss[MOA_EXPORT_LOSS_BYTES]) {
    const int32_t group = p->n_head / n_head_kv, heads = p->n_layer * p->n_head;
    int32_t recent = 0, to_full = 0, wider = 0;
    for (int32_t l = 0; l < p->n_layer; l++)
        for (int32_t k = 0; k < n_head_kv; k++) {
            const int32_t window = constant_window(p, l, k, group);
            if (window > recent) recent = window;
            moa_buf_printf(tsv, "%.18e%c", window ? 0.0 : 1.0, k == n_head_kv - 1 ? '\n' : '\t');
        }
    for (int32_t l = 0; l < p->n_layer; l++)
        for (int32_t h = 0; h < p->n_head; h++) {
            if (constant_window(p, l, h / group, group) == 0)
                to_full += !always_dense(*moa_plan_at(p, l, h));
            else
                wider += window_at(p, l, h, MOA_N_MAX) < recent;
        }
    if (recent == 0) recent = moa_window(MOA_SPAN_MIN); /* nothing streams; their loader wants a number */
    moa_buf_printf(config, "{\"sink_size\": %d, \"recent_size\": %d}\n", MOA_SINK_TOK, recent);
    if (to_full + wider > 0)
        (void)snprintf(
            loss, MOA_EXPORT_LOSS_BYTES,
            "of %d heads %d become full (their KV head's span grows with the length) and %d get the "
            "wider window of %d tokens: there is one window for all",
            heads, to_full, wider, recent);
}

moa_status moa_plan_export(const moa_plan *p, const moa_export *how, moa_buf *main, moa_buf *side,
                           char loss[MOA_EXPORT_LOSS_BYTES], moa_err *err) {
    const char *name = formats[how->format].name;
    const int max_at = formats[how->format].max_at;
    moa_status s = MOA_OK;
    loss[0] = 0;
    if (how->n_at < formats[how->format].min_at)
        return moa_fail(err, MOA_E_USAGE, "%s holds windows, not rules: say the length with --at N", name);
    if (how->n_at > max_at)
        return moa_fail(err, MOA_E_USAGE, "%s takes %d length%s, not %d", name, max_at,
                        max_at == 1 ? "" : "s", how->n_at);
    if (formats[how->format].kv && (how->n_head_kv < 1 || p->n_head % how->n_head_kv != 0))
        return moa_fail(
            err, MOA_E_USAGE,
            "%s is per KV head, and %d do not divide %d heads: --model MODEL or --model-heads-kv K", name,
            how->n_head_kv, p->n_head);
    switch (how->format) {
    case MOA_EXPORT_MOA: s = moa_plan_print(p, false, main, err); break;
    case MOA_EXPORT_CSV: put_csv(p, how, main); break;
    case MOA_EXPORT_WINDOWS: put_windows(p, how, main); break;
    case MOA_EXPORT_MINFERENCE:
        put_minference(p, how->at[0], main);
        (void)snprintf(loss, MOA_EXPORT_LOSS_BYTES, "windows of %d tokens' length, for prefill only",
                       how->at[0]);
        break;
    case MOA_EXPORT_DUO: put_duo(p, how->n_head_kv, main, side, loss); break;
    case MOA_N_EXPORT: break;
    }
    if (s == MOA_OK && (!moa_buf_ok(main) || !moa_buf_ok(side)))
        s = moa_fail(err, MOA_E_MEMORY, "no memory to export a plan of %d x %d heads", p->n_layer, p->n_head);
    return s;
}
