/* plan.c -- `moascope plan VERB ...`: plan files without a model or a device.
 *
 *   show     what a plan means at given lengths          check    is the file valid, does it fit, what is odd about it
 *   diff     the heads whose rules differ                convert  our superset <-> the two keys of the interchange format
 *   uniform  one rule for every head                     edit     SELECTOR and EDIT pairs, as in the workbench
 *   export   in the formats of other programs (plans/plan_export.h)
 *
 * One function a verb. A plan is a file, or full, uniform:D, sink when the shape is known (--model or --shape). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/text.h"
#include "core/model/model.h"
#include "plans/plan.h"
#include "plans/plan_export.h"
#include "tui/batch/batch.h"

enum { AT_MAX = 256, OWN_SHAPE = MOA_OPT_OWN, OWN_PLAIN, OWN_ALPHA, OWN_BETA, OWN_STRICT, OWN_MODEL, OWN_TO };

typedef struct shape {
    int32_t n_layer, n_head, n_head_kv; /* 0: not known */
} shape;

/* --- plans and shapes ----------------------------------------------------------------------------------------------------------- */

/* of --model (its header), else --shape LxH; K of --model-heads-kv before the model's */
static moa_status shape_of(const moa_args *args, shape *out, moa_err *err) {
    const char *model = moa_args_text(args, OWN_MODEL), *text = moa_args_text(args, OWN_SHAPE);
    *out = (shape){0};
    if (model) {
        char path[4096];
        moa_model *m = NULL;
        moa_status s = moa_model_find(model, path, sizeof path, err);
        if (s == MOA_OK) s = moa_model_open(&m, path, true, NULL, NULL, err);
        if (s != MOA_OK) return s;
        *out = (shape){m->shape.n_layer, m->shape.n_head, m->shape.n_head_kv};
        moa_model_close(&m);
    } else if (text) {
        char rest = 0;
        if (sscanf(text, "%dx%d%c", &out->n_layer, &out->n_head, &rest) != 2 || out->n_layer < 1 ||
            out->n_layer > MOA_PLAN_LAYER_MAX || out->n_head < 1 || out->n_head > MOA_PLAN_HEAD_MAX)
            return moa_fail(err, MOA_E_USAGE, "--shape %s: expected LAYERSxHEADS, like 32x32, at most %dx%d",
                            text, MOA_PLAN_LAYER_MAX, MOA_PLAN_HEAD_MAX);
    }
    if (moa_args_has(args, MOA_OPT_MODEL_HEADS_KV))
        out->n_head_kv = (int32_t)moa_args_int(args, MOA_OPT_MODEL_HEADS_KV);
    return MOA_OK;
}

/* n_head_kv of *known is filled in from the file when nobody said it */
static moa_status open_plan(moa_plan **out, const char *spec, shape *known, moa_err *err) {
    const bool word =
        strcmp(spec, "full") == 0 || strcmp(spec, "sink") == 0 || strncmp(spec, "uniform:", 8) == 0;
    if (word && known->n_layer == 0)
        return moa_fail(err, MOA_E_USAGE,
                        "plan %s has no shape of its own: add --model MODEL or --shape LAYERSxHEADS", spec);
    moa_status s = known->n_layer > 0 ? moa_plan_open(out, spec, known->n_layer, known->n_head, err)
                                      : moa_plan_load(out, spec, err);
    if (s != MOA_OK) return s;
    if (known->n_head_kv == 0) known->n_head_kv = (*out)->n_head_kv;
    if (known->n_head_kv > 0 && (*out)->n_head % known->n_head_kv != 0) {
        s = moa_fail(err, MOA_E_INVALID, "%d heads do not divide among %d KV heads", (*out)->n_head,
                     known->n_head_kv);
        moa_plan_close(out);
    }
    return s;
}

static moa_status save_plan(const moa_args *args, const moa_plan *p, moa_err *err) {
    const char *path = moa_args_text(args, MOA_OPT_OUTPUT);
    const bool superset = !moa_args_has(args, OWN_PLAIN);
    if (path && strcmp(path, "-") != 0) return moa_plan_save(p, path, superset, err);
    moa_buf text = {0};
    moa_status s = moa_plan_print(p, superset, &text, err);
    if (s == MOA_OK) s = moa_output_save("-", &text, err);
    moa_buf_free(&text);
    return s;
}

static moa_status want_words(const moa_args *args, int min, int max, const char *usage, moa_err *err) {
    if (args->n_word - 1 >= min && args->n_word - 1 <= max) return MOA_OK;
    return moa_fail(err, MOA_E_USAGE, "usage: moascope plan %s", usage);
}

static void number(moa_buf *b, const char *before, double x) {
    moa_buf_str(b, before);
    if (x == floor(x) && fabs(x) < 1e15)
        moa_buf_printf(b, "%.0f", x);
    else
        moa_json_number(b, x);
}

/* --- show -------------------------------------------------------------------------------------------------------------------------- */

typedef struct view {
    const moa_plan *plan;
    const char *spec;
    int32_t n_head_kv;
    int32_t at[AT_MAX];
    int n_at;
    moa_rule_class *classes; /* owned */
    int32_t n_class;
} view;

static void show_json(const view *v, moa_buf *b) {
    const moa_plan *p = v->plan;
    moa_buf_str(b, "{\n  \"plan\": ");
    moa_text_json(v->spec, strlen(v->spec), b);
    moa_buf_printf(b, ",\n  \"n_layer\": %d,\n  \"n_head\": %d,\n  \"n_head_kv\": ", p->n_layer, p->n_head);
    moa_buf_printf(b, v->n_head_kv ? "%d" : "null", v->n_head_kv);
    moa_buf_printf(b, ",\n  \"distinct_rules\": %d,\n  \"max_rules_per_layer\": %d,\n  \"rules\": [",
                   v->n_class, moa_plan_max_rules_per_layer(p));
    for (int32_t c = 0; c < v->n_class; c++) {
        number(b, c ? ",\n    {\"alpha\": " : "\n    {\"alpha\": ", v->classes[c].rule.alpha);
        number(b, ", \"beta\": ", v->classes[c].rule.beta);
        moa_buf_printf(b, ", \"heads\": %d}", v->classes[c].n_head);
    }
    moa_buf_str(b, "\n  ],\n  \"lengths\": [");
    for (int i = 0; i < v->n_at; i++) {
        const moa_plan_at_n d = moa_plan_describe(p, v->at[i], v->n_head_kv);
        moa_buf_printf(b, "%s\n    {\"n\": %d, \"span_min\": %d, \"span_max\": %d", i ? "," : "", d.n,
                       d.span_min, d.span_max);
        number(b, ", \"span_mean\": ", d.span_mean);
        number(b, ", \"kv_density\": ", d.kv_density);
        number(b, ", \"kv_density_grouped\": ", d.kv_density_grouped);
        number(b, ", \"mha_ratio\": ", d.mha_ratio);
        number(b, ", \"attn_density\": ", d.attn_density);
        number(b, ", \"dense_share\": ", d.dense_share);
        moa_buf_printf(b, ", \"distinct_rules\": %d, \"n_clamped\": %d}", v->n_class, d.n_clamped);
    }
    moa_buf_str(b, "\n  ]\n}\n");
}

static void show_text(const view *v, moa_buf *b) {
    const moa_plan *p = v->plan;
    moa_text_clean(v->spec, strlen(v->spec), MOA_TEXT_LINE, b);
    moa_buf_printf(b, ": %d layers x %d heads, %d distinct rules, at most %d a layer\n", p->n_layer,
                   p->n_head, v->n_class, moa_plan_max_rules_per_layer(p));
    if (p->model[0]) {
        moa_buf_str(b, "for ");
        moa_text_clean(p->model, strlen(p->model), MOA_TEXT_LINE, b);
        moa_buf_str(b, "\n");
    }
    moa_buf_printf(b, "\n%10s %8s %8s %8s  %7s  %7s  %7s  %7s  %7s\n", "N tokens", "mean", "min", "max", "KV",
                   "grouped", "visible", "dense", "clamped");
    for (int i = 0; i < v->n_at; i++) {
        const moa_plan_at_n d = moa_plan_describe(p, v->at[i], v->n_head_kv);
        char grouped[16] = "-";
        if (!isnan(d.kv_density_grouped))
            (void)snprintf(grouped, sizeof grouped, "%.1f%%", 100 * d.kv_density_grouped);
        moa_buf_printf(b, "%10d %8.0f %8d %8d  %6.1f%%  %7s  %6.1f%%  %6.1f%%  %7d\n", d.n, d.span_mean,
                       d.span_min, d.span_max, 100 * d.kv_density, grouped, 100 * d.attn_density,
                       100 * d.dense_share, d.n_clamped);
    }
    moa_buf_printf(b,
                   "\nspans in tokens; KV: tokens kept per head / N; grouped: with KV heads shared (%s); "
                   "visible: pairs seen / causal pairs\n"
                   "dense: heads that see everything; clamped: heads whose rule gives nothing there, kept at "
                   "%d tokens\n\n%8s %12s %10s\n",
                   v->n_head_kv ? "as the model does" : "not known: --model or --model-heads-kv",
                   MOA_SPAN_MIN, "heads", "alpha", "beta");
    for (int32_t c = 0; c < v->n_class && c < 40; c++)
        moa_buf_printf(b, "%8d %12g %10g\n", v->classes[c].n_head, v->classes[c].rule.alpha,
                       v->classes[c].rule.beta);
    if (v->n_class > 40) moa_buf_printf(b, "%8s %d more\n", "...", v->n_class - 40);
}

static moa_status show(const moa_args *args, moa_err *err) {
    const char *json = moa_args_text(args, MOA_OPT_JSON);
    view v = {.spec = moa_args_word(args, 1)};
    shape known;
    moa_plan *plan = NULL;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    MOA_TRY(want_words(args, 1, 1,
                       "show PLAN [--at N,N,...] [--model MODEL | --model-heads-kv K] [--json F|-]", err));
    v.n_at = moa_args_ints(args, MOA_OPT_AT, v.at, AT_MAX);
    if (v.n_at > AT_MAX) MOA_TRY(moa_fail(err, MOA_E_USAGE, "--at: %d lengths, at most %d", v.n_at, AT_MAX));
    MOA_TRY(shape_of(args, &known, err));
    MOA_TRY(open_plan(&plan, v.spec, &known, err));
    v.plan = plan;
    v.n_head_kv = known.n_head_kv;
    MOA_TRY(moa_plan_classes(plan, &v.classes, &v.n_class, err));
    if (json)
        show_json(&v, &text);
    else
        show_text(&v, &text);
    MOA_TRY(moa_output_save(json ? json : "-", &text, err));
out:
    free(v.classes);
    moa_buf_free(&text);
    moa_plan_close(&plan);
    return s;
}

/* --- check ------------------------------------------------------------------------------------------------------------------------- */

static int oddities(const moa_plan *p, const int32_t *at, int n_at, int32_t n_head_kv, moa_buf *b) {
    int n = 0, wider = 0;
    for (int i = 0; i < n_at; i++) {
        const moa_plan_at_n d = moa_plan_describe(p, at[i], n_head_kv);
        if (d.n_clamped == 0) continue;
        moa_buf_printf(b,
                       "at %d tokens %d of %d heads get no span from their rule (alpha + beta*N <= 0): they "
                       "are kept at %d tokens\n",
                       at[i], d.n_clamped, p->n_layer * p->n_head, MOA_SPAN_MIN);
        n++;
    }
    if (moa_plan_max_rules_per_layer(p) > 2) {
        moa_buf_printf(
            b, "up to %d distinct rules in a layer: kernels that take two (the reference's) cannot run it\n",
            moa_plan_max_rules_per_layer(p));
        n++;
    }
    for (int32_t l = 0; l < p->n_layer && n_head_kv > 0 && n_at > 0; l++)
        for (int32_t h = 0; h < p->n_head; h++)
            wider += moa_span(*moa_plan_at(p, l, h), at[n_at - 1]) <
                     moa_plan_group_span(p, l, h, n_head_kv, at[n_at - 1]);
    if (wider > 0) {
        moa_buf_printf(b,
                       "at %d tokens %d heads are narrower than the widest of their KV group: narrowing them "
                       "saves no memory\n",
                       at[n_at - 1], wider);
        n++;
    }
    return n;
}

static moa_status check(const moa_args *args, moa_err *err) {
    int32_t at[AT_MAX];
    shape known;
    moa_plan *plan = NULL;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    MOA_TRY(
        want_words(args, 1, 1, "check PLAN [--model MODEL | --shape LxH] [--at N,N,...] [--strict]", err));
    const int n_at = moa_args_ints(args, MOA_OPT_AT, at, AT_MAX);
    if (n_at > AT_MAX) MOA_TRY(moa_fail(err, MOA_E_USAGE, "--at: %d lengths, at most %d", n_at, AT_MAX));
    MOA_TRY(shape_of(args, &known, err));
    MOA_TRY(open_plan(&plan, moa_args_word(args, 1), &known, err));
    const int n = oddities(plan, at, n_at, known.n_head_kv, &text);
    moa_buf_printf(&text, "valid: %d layers x %d heads%s; %d remark%s\n", plan->n_layer, plan->n_head,
                   known.n_layer > 0 ? ", as the model has" : "", n, n == 1 ? "" : "s");
    MOA_TRY(moa_output_save("-", &text, err));
    if (n > 0 && moa_args_has(args, OWN_STRICT))
        s = moa_fail(err, MOA_E_FAILED, "%d remark%s on the plan, and --strict", n, n == 1 ? "" : "s");
out:
    moa_buf_free(&text);
    moa_plan_close(&plan);
    return s;
}

/* --- diff -------------------------------------------------------------------------------------------------------------------------- */

static moa_status diff(const moa_args *args, moa_err *err) {
    const char *json = moa_args_text(args, MOA_OPT_JSON);
    shape known;
    moa_plan *a = NULL, *b = NULL;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    int32_t n = 0;
    MOA_TRY(want_words(args, 2, 2, "diff PLAN PLAN [--json F|-]", err));
    MOA_TRY(shape_of(args, &known, err));
    MOA_TRY(open_plan(&a, moa_args_word(args, 1), &known, err));
    known.n_layer = a->n_layer, known.n_head = a->n_head; /* so that the other may be "full" */
    MOA_TRY(open_plan(&b, moa_args_word(args, 2), &known, err));
    if (json) moa_buf_str(&text, "{\n  \"changes\": [");
    for (int32_t l = 0; l < a->n_layer; l++)
        for (int32_t h = 0; h < a->n_head; h++) {
            const moa_rule x = *moa_plan_at(a, l, h), y = *moa_plan_at(b, l, h);
            if (x.alpha == y.alpha && x.beta == y.beta) continue;
            if (json) {
                moa_buf_printf(&text, "%s\n    {\"layer\": %d, \"head\": %d", n ? "," : "", l, h);
                number(&text, ", \"alpha\": [", x.alpha), number(&text, ", ", y.alpha);
                number(&text, "], \"beta\": [", x.beta), number(&text, ", ", y.beta);
                moa_buf_str(&text, "]}");
            } else
                moa_buf_printf(&text, "L%d.H%d: alpha %g beta %g -> alpha %g beta %g\n", l, h, x.alpha,
                               x.beta, y.alpha, y.beta);
            n++;
        }
    if (json)
        moa_buf_printf(&text, "\n  ],\n  \"n_changed\": %d,\n  \"n_head\": %d\n}\n", n,
                       a->n_layer * a->n_head);
    else
        moa_buf_printf(&text, "%d of %d heads differ\n", n, a->n_layer * a->n_head);
    MOA_TRY(moa_output_save(json ? json : "-", &text, err));
out:
    moa_buf_free(&text);
    moa_plan_close(&a);
    moa_plan_close(&b);
    return s;
}

/* --- convert, uniform, edit ---------------------------------------------------------------------------------------------------------- */

static moa_status convert(const moa_args *args, moa_err *err) {
    shape known;
    moa_plan *plan = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(want_words(args, 1, 1, "convert PLAN [--plain] [-o FILE]", err));
    MOA_TRY(shape_of(args, &known, err));
    MOA_TRY(open_plan(&plan, moa_args_word(args, 1), &known, err));
    if (known.n_head_kv) plan->n_head_kv = known.n_head_kv;
    s = save_plan(args, plan, err);
out:
    moa_plan_close(&plan);
    return s;
}

static moa_status uniform(const moa_args *args, moa_err *err) {
    shape known;
    moa_plan *plan = NULL;
    moa_status s = MOA_OK;
    const char *density = moa_args_word(args, 1);
    moa_rule rule = {moa_args_real(args, OWN_ALPHA), moa_args_real(args, OWN_BETA)};
    MOA_TRY(want_words(args, 0, 1, "uniform [D | --alpha A --beta B] (--model MODEL | --shape LxH) [-o FILE]",
                       err));
    if (density && (moa_args_has(args, OWN_ALPHA) || moa_args_has(args, OWN_BETA)))
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "give a density, or --alpha and --beta"));
    if (!density && !moa_args_has(args, OWN_ALPHA) && !moa_args_has(args, OWN_BETA))
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "which rule? give a density like 0.5, or --alpha and --beta"));
    if (density) {
        char *end;
        rule = (moa_rule){0, strtod(density, &end)};
        if (end == density || *end || !(rule.beta > 0 && rule.beta <= 1))
            MOA_TRY(moa_fail(err, MOA_E_USAGE, "density %s: a number above 0 and at most 1", density));
    }
    MOA_TRY(shape_of(args, &known, err));
    if (known.n_layer == 0)
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "for which shape? add --model MODEL or --shape LAYERSxHEADS"));
    MOA_TRY(moa_plan_uniform(&plan, known.n_layer, known.n_head, rule, err));
    plan->n_head_kv = known.n_head_kv;
    s = save_plan(args, plan, err);
out:
    moa_plan_close(&plan);
    return s;
}

static moa_status edit(const moa_args *args, moa_err *err) {
    shape known;
    moa_plan *plan = NULL;
    uint8_t *mask = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(want_words(args, 3, 63, "edit PLAN SELECTOR EDIT [SELECTOR EDIT ...] [-o FILE]", err));
    if (args->n_word % 2 != 0)
        MOA_TRY(
            moa_fail(err, MOA_E_USAGE, "selector '%s' has no edit", moa_args_word(args, args->n_word - 1)));
    MOA_TRY(shape_of(args, &known, err));
    MOA_TRY(open_plan(&plan, moa_args_word(args, 1), &known, err));
    const int32_t n = plan->n_layer * plan->n_head;
    mask = malloc((size_t)n);
    if (!mask) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a selection of %d heads", n));
    for (int w = 2; w < args->n_word; w += 2) {
        int32_t selected = 0, changed = 0;
        memset(mask, 0, (size_t)n);
        MOA_TRY(moa_select(moa_args_word(args, w), plan->n_layer, plan->n_head, known.n_head_kv, mask, err));
        for (int32_t i = 0; i < n; i++) {
            if (!mask[i]) continue;
            const moa_rule before = plan->rules[i];
            MOA_TRY(moa_rule_edit(&plan->rules[i], moa_args_word(args, w + 1), err));
            selected++;
            changed += before.alpha != plan->rules[i].alpha || before.beta != plan->rules[i].beta;
        }
        moa_remark(args, "%s %s: %d heads selected, %d changed", moa_args_word(args, w),
                   moa_args_word(args, w + 1), selected, changed);
    }
    s = save_plan(args, plan, err);
out:
    free(mask);
    moa_plan_close(&plan);
    return s;
}

/* duo is a folder of two files, as its loader wants it */
static moa_status save_duo(const char *folder, const moa_buf *tsv, const moa_buf *config, moa_err *err) {
    char path[4096];
    moa_status s = moa_dir_make(folder, err);
    if (s != MOA_OK) return s;
    if (snprintf(path, sizeof path, "%s/full_attention_heads.tsv", folder) >= (int)sizeof path)
        return moa_fail(err, MOA_E_USAGE, "-o: a path of %zu bytes is too long", strlen(folder));
    s = moa_file_save(path, tsv->data, tsv->size, 0644, 0, err);
    if (s != MOA_OK) return s;
    (void)snprintf(path, sizeof path, "%s/config.json", folder);
    return moa_file_save(path, config->data, config->size, 0644, 0, err);
}

static moa_status export_plan(const moa_args *args, moa_err *err) {
    const char *to = moa_args_text(args, OWN_TO), *path = moa_args_text(args, MOA_OPT_OUTPUT);
    char loss[MOA_EXPORT_LOSS_BYTES] = "";
    int32_t at[AT_MAX];
    moa_export how = {.at = at};
    shape known;
    moa_plan *plan = NULL;
    moa_buf text = {0}, side = {0};
    moa_status s = MOA_OK;
    MOA_TRY(want_words(args, 1, 1, "export PLAN --to FORMAT [--at N,N,...] [-o FILE]", err));
    MOA_TRY(moa_export_find(to ? to : "", &how.format, err));
    if (how.format == MOA_EXPORT_DUO && (!path || strcmp(path, "-") == 0))
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "duo is a folder of two files: -o FOLDER"));
    /* the default lengths are for a look; an export holds what was asked for */
    if (moa_args_has(args, MOA_OPT_AT)) how.n_at = moa_args_ints(args, MOA_OPT_AT, at, AT_MAX);
    if (how.n_at > AT_MAX) MOA_TRY(moa_fail(err, MOA_E_USAGE, "--at: %d lengths, at most %d", how.n_at, AT_MAX));
    MOA_TRY(shape_of(args, &known, err));
    MOA_TRY(open_plan(&plan, moa_args_word(args, 1), &known, err));
    how.n_head_kv = known.n_head_kv;
    MOA_TRY(moa_plan_export(plan, &how, &text, &side, loss, err));
    MOA_TRY(how.format == MOA_EXPORT_DUO ? save_duo(path, &text, &side, err)
                                         : moa_output_save(path ? path : "-", &text, err));
    if (loss[0]) moa_remark(args, "%s: %s", to, loss);
out:
    moa_buf_free(&text);
    moa_buf_free(&side);
    moa_plan_close(&plan);
    return s;
}

/* --- the verbs -------------------------------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    moa_status (*run)(const moa_args *args, moa_err *err);
} verbs[] = {{"show", show},       {"check", check}, {"diff", diff},         {"convert", convert},
             {"uniform", uniform}, {"edit", edit},   {"export", export_plan}};

static moa_status run(const moa_args *args, moa_err *err) {
    const char *word = moa_args_word(args, 0);
    if (!word) return moa_fail(err, MOA_E_USAGE, "what? show, check, diff, convert, uniform, edit or export");
    for (size_t v = 0; v < sizeof verbs / sizeof *verbs; v++)
        if (strcmp(word, verbs[v].name) == 0) return verbs[v].run(args, err);
    return moa_fail(err, MOA_E_USAGE, "'%s': show, check, diff, convert, uniform, edit or export", word);
}

static const int options[] = {MOA_OPT_AT,     MOA_OPT_MODEL_HEADS_KV, MOA_OPT_JSON,
                              MOA_OPT_OUTPUT, MOA_OPT_QUIET,          MOA_OPT_END};
static const moa_option own[] = {
    {"--shape", MOA_OPTION_TEXT, "LxH", NULL, 0, 0, false, "layers x heads, where no model says it"},
    {"--plain", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false,
     "write the two keys of the interchange format alone"},
    {"--alpha", MOA_OPTION_REAL, "A", NULL, -16777216, 16777216, false, "uniform: tokens"},
    {"--beta", MOA_OPTION_REAL, "B", NULL, -1024, 1024, false, "uniform: share of N"},
    {"--strict", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false, "check: remarks are failures (exit 1)"},
    /* not the shared row: a model named in the environment must not decide what a plan is for */
    {"--model -m", MOA_OPTION_TEXT, "MODEL", NULL, 0, 0, false, "the model a plan is for: its shape"},
    {"--to", MOA_OPTION_TEXT, "FORMAT", NULL, 0, 0, false, "export: moa, csv, windows, minference or duo"},
    {0},
};

const moa_batch moa_batch_plan = {
    .name = "plan",
    .help = "look at, check, compare and edit plan files",
    .usage = "show PLAN [--at N,N,...] [--model-heads-kv K] [--json F|-]\n"
             "check PLAN [--model MODEL] [--strict]\n"
             "diff PLAN PLAN [--json F|-]\n"
             "convert PLAN [--plain] -o FILE\n"
             "uniform D --model MODEL -o FILE\n"
             "edit PLAN SELECTOR EDIT [SELECTOR EDIT ...] -o FILE\n"
             "export PLAN --to FORMAT [--at N,N,...] -o FILE",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 64,
    .more = "PLAN is a file, or full, uniform:D, sink with --model or --shape. SELECTOR: L14.H13  L14.*  "
            "L10-20.H0,4  *.H3  L3.G1  *\n"
            "EDIT: full  sink  w=1024  \"alpha=0 beta=0.25\"  alpha+=64  beta-=0.125\n"
            "FORMAT: moa (alphas and betas alone)  csv (rules, and spans --at lengths)  windows (JSON, every head's "
            "window)\n"
            "minference (one length, prefill)  duo (a folder; per KV head full or one window). What a format cannot "
            "say is said.",
    .run = run,
};
