/* profile.c -- `moascope profile`: what shorter spans would cost every head, measured on calibration data, for `search`.
 *
 *   DATA.jsonl --> items of each length --> forward and backward through the model --> mean over items --> INFLUENCE.npz
 *
 *   abs_N, signed_N   float32 [n_layer][n_head][nb][nb]    (query block, key block) of 64 tokens, nb = ceil(N/64)
 *   joint_N           float32 [n_layer][n_head][nb + 1]    entry w: block 0 and the newest w blocks are kept
 *   span_N            int32   [n_layer][n_head]            with --plan: the spans that the model had
 *   meta              JSON text: model, plan, items, tokens, losses, what was cut, skipped and clamped
 *
 * The influence is on the margin, log((1 - p) / p), unless --loss says cross-entropy, as published: of an answer that is certain at full attention
 * hardly any cross-entropy is lost to first order, and plans found by it gave up what the answer came from (docs/proof.md).
 *
 * --plan P profiles the model that P makes, as if it reserved N tokens: what another window of a head would change then. That is where
 * the sum over heads is right to first order; at full attention it is not (docs/proof.md). `refine` does it in rounds.
 *
 * Items go through the model several at once, as many as have the tokens of the longest length together.
 *
 * ^C ends the work after the layers under way: the mean over the items done by then is written and said to be that; the exit code is
 * 130. A length without any finished item is not in the file. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/npy.h"
#include "core/base/text.h"
#include "core/engine/profile.h"
#include "core/tasks/items.h"
#include "tui/batch/batch.h"
#include "tui/load.h"
#include "version.h"

enum { LENGTHS_MAX = 64, OPT_ITEMS = MOA_OPT_OWN, OPT_LOSS };

/* one length's work */
typedef struct stage {
    int32_t n_tok;
    moa_token_items items;
    moa_influence sums;
    double seconds; /* of the items done */
} stage;

typedef struct job {
    const moa_args *args;
    moa_loaded loaded;
    moa_profile *profile;
    stage stages[LENGTHS_MAX];
    int n_stage;
    bool planned, margin; /* a plan that cuts something; the loss is the margin */
    double tok_done, tok_total; /* of whole items */
    double tok_item;            /* of those under way */
} job;

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- the file ----------------------------------------------------------------------------------------------------------------- */

static const char readme[] =
    "Influence profile: to first order, the change of the loss (of the supervised tokens, mean; nats) if heads saw less; mean over items. "
    "gradient_of in meta: cross-entropy, or margin, log((1 - p) / p) of a token; loss in meta is cross-entropy.\n"
    "For each length N, nb = ceil(N/64):\n"
    "abs_N, signed_N float32 [n_layer][n_head][nb][nb]  (query block, key block): sums over blocks of 64 x 64 "
    "of |E_ij| and E_ij, E_ij = A_ij / (1 - A_ij) * (sum_n G_in A_in - G_ij), G = dL/dA\n"
    "joint_N float32 [n_layer][n_head][nb + 1]  entry w: every row keeps the first 64 tokens and the newest w "
    "blocks, its own counted, renormalised; entry 0 is unused\n"
    "span_N int32 [n_layer][n_head]  where the model was profiled under a plan: its spans, tokens. joint_N is then the change from those; keys "
    "that are not seen have no E: abs_N and signed_N are 0 there\n"
    "meta: JSON text\n";

static void meta_model(const moa_model *m, moa_buf *out) {
    moa_buf_str(out, "\"model\": {\"name\": ");
    moa_text_json(m->name, strlen(m->name), out);
    moa_buf_str(out, ", \"architecture\": ");
    moa_text_json(m->arch, strlen(m->arch), out);
    moa_buf_printf(out, ", \"n_layer\": %d, \"n_head\": %d, \"n_head_kv\": %d, \"d_head\": %d, \"fingerprint\": \"%s\"}",
                   m->shape.n_layer, m->shape.n_head, m->shape.n_head_kv, m->shape.d_head, m->fingerprint);
}

static void meta_stage(const stage *t, moa_buf *out) {
    const moa_influence *f = &t->sums;
    int64_t n_tok = 0, n_cut = 0, n_tok_cut = 0;
    for (int32_t i = 0; i < f->n_item; i++) {
        n_tok += t->items.data[i].n;
        n_cut += t->items.data[i].n_cut > 0;
        n_tok_cut += t->items.data[i].n_cut;
    }
    moa_buf_printf(out,
                   "\"%d\": {\"items\": %d, \"items_wanted\": %d, \"tokens\": %lld, \"supervised\": %lld, "
                   "\"loss\": %.9g, \"clamped\": %lld, \"cut\": %lld, \"tokens_cut\": %lld, \"skipped\": %d, "
                   "\"seconds\": %.3f, \"item\": [",
                   t->n_tok, f->n_item, t->items.n, (long long)n_tok, (long long)f->n_supervised,
                   f->loss / f->n_item, (long long)f->n_clamped, (long long)n_cut, (long long)n_tok_cut,
                   t->items.n_skipped, t->seconds);
    for (int32_t i = 0; i < f->n_item; i++)
        moa_buf_printf(out, "%s%d", i ? ", " : "", t->items.item[i]);
    moa_buf_str(out, "]}");
}

/* item: 0-based among the items of the data file */
static void meta(const job *j, bool complete, moa_buf *out) {
    const char *data = moa_args_text(j->args, MOA_OPT_DATA);
    bool any = false;
    moa_buf_str(out, "{\"format\": \"moa-influence\", \"version\": 1, ");
    meta_model(j->loaded.model, out);
    moa_buf_printf(out, ", \"block\": %d, \"sink\": %d, \"device\": \"%s\", \"data\": ", MOA_PAGE_TOK, MOA_SINK_TOK,
                   j->loaded.device);
    moa_text_json(data, strlen(data), out);
    if (j->planned) {
        moa_buf_str(out, ", \"plan\": ");
        const char *plan = moa_args_text(j->args, MOA_OPT_PLAN);
        moa_text_json(plan, strlen(plan), out);
    }
    moa_buf_printf(out, ", \"gradient_of\": \"%s\"", moa_args_text(j->args, OPT_LOSS));
    moa_buf_printf(out, ", \"complete\": %s, \"program\": \"%s\", \"lengths\": {", complete ? "true" : "false",
                   MOA_VERSION);
    for (int i = 0; i < j->n_stage; i++) {
        if (j->stages[i].sums.n_item == 0) continue;
        if (any) moa_buf_str(out, ", ");
        meta_stage(&j->stages[i], out);
        any = true;
    }
    moa_buf_str(out, "}}");
}

/* means of count sums, as float32 */
static moa_status add_means(moa_npy_writer *w, const char *kind, const moa_influence *f, const double *sums,
                            const moa_npy_shape *shape, moa_err *err) {
    enum { PART = 4096 };
    float part[PART];
    char name[64];
    size_t n = 1;
    moa_status s = MOA_OK;
    (void)snprintf(name, sizeof name, "%s_%d", kind, f->n_tok);
    MOA_TRY(moa_npz_begin(w, name, shape, err));
    for (int d = 0; d < shape->n_dim; d++)
        n *= shape->shape[d];
    for (size_t at = 0, some; at < n; at += some) {
        some = n - at < PART ? n - at : PART;
        for (size_t i = 0; i < some; i++)
            part[i] = (float)(sums[at + i] / f->n_item);
        MOA_TRY(moa_npy_append(w, part, some * sizeof *part, err));
    }
out:
    return s;
}

static moa_status add_spans(moa_npy_writer *w, const job *j, int32_t n_tok, moa_err *err) {
    const moa_plan *p = j->loaded.plan;
    const size_t n = (size_t)p->n_layer * (size_t)p->n_head;
    const moa_npy_shape shape = {MOA_NPY_I32, 2, {(size_t)p->n_layer, (size_t)p->n_head}};
    char name[64];
    int32_t *span = malloc(n * sizeof *span);
    if (!span) return moa_fail(err, MOA_E_MEMORY, "no memory for the spans of %zu heads", n);
    for (size_t i = 0; i < n; i++)
        span[i] = moa_span(p->rules[i], n_tok);
    (void)snprintf(name, sizeof name, "span_%d", n_tok);
    const moa_status s = moa_npz_add(w, name, &shape, span, err);
    free(span);
    return s;
}

static moa_status add_stage(moa_npy_writer *w, const moa_influence *f, moa_err *err) {
    const size_t l = (size_t)f->n_layer, h = (size_t)f->n_head, nb = (size_t)f->nb;
    const moa_npy_shape map = {MOA_NPY_F32, 4, {l, h, nb, nb}}, curve = {MOA_NPY_F32, 3, {l, h, nb + 1}};
    moa_status s = MOA_OK;
    MOA_TRY(add_means(w, "abs", f, f->abs, &map, err));
    MOA_TRY(add_means(w, "signed", f, f->sum, &map, err));
    MOA_TRY(add_means(w, "joint", f, f->joint, &curve, err));
out:
    return s;
}

static moa_status save(const job *j, const char *path, bool complete, moa_err *err) {
    moa_npy_writer *w = NULL;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    meta(j, complete, &text);
    if (!moa_buf_ok(&text)) return moa_fail(err, MOA_E_MEMORY, "%s: no memory for its description", path);
    MOA_TRY(moa_npy_open(&w, path, NULL, err));
    for (int i = 0; i < j->n_stage; i++)
        if (j->stages[i].sums.n_item > 0) {
            MOA_TRY(add_stage(w, &j->stages[i].sums, err));
            if (j->planned) MOA_TRY(add_spans(w, j, j->stages[i].n_tok, err));
        }
    MOA_TRY(moa_npz_text(w, "meta", text.data, err));
    MOA_TRY(moa_npz_text(w, "README", readme, err));
    s = moa_npy_commit(&w, err);
out:
    moa_npy_close(&w);
    moa_buf_free(&text);
    return s;
}

/* --- the work ----------------------------------------------------------------------------------------------------------------- */

static int by_length(const void *a, const void *b) {
    const int32_t x = ((const stage *)a)->n_tok, y = ((const stage *)b)->n_tok;
    return x < y ? -1 : x > y;
}

/* short lengths first: what an interruption leaves is then whole lengths */
static moa_status take_lengths(job *j, moa_err *err) {
    int32_t lengths[LENGTHS_MAX];
    const int n = moa_args_ints(j->args, MOA_OPT_LENGTHS, lengths, LENGTHS_MAX), n_ctx = j->loaded.model->shape.n_ctx;
    if (n > LENGTHS_MAX) return moa_fail(err, MOA_E_USAGE, "%d lengths; at most %d", n, LENGTHS_MAX);
    for (int i = 0; i < n; i++) {
        if (lengths[i] < 2 || lengths[i] > n_ctx)
            return moa_fail(err, MOA_E_USAGE, "length %d: from 2 to the model's context of %d tokens", lengths[i], n_ctx);
        j->stages[i].n_tok = lengths[i];
    }
    qsort(j->stages, (size_t)n, sizeof *j->stages, by_length);
    for (int i = 0; i < n; i++)
        if (i == 0 || j->stages[i].n_tok != j->stages[i - 1].n_tok) j->stages[j->n_stage++].n_tok = j->stages[i].n_tok;
    return MOA_OK;
}

static moa_status take_items(job *j, const moa_items *items, moa_err *err) {
    const int32_t most = (int32_t)moa_args_int(j->args, OPT_ITEMS);
    for (int i = 0; i < j->n_stage; i++) {
        stage *t = &j->stages[i];
        const moa_encode how = {.form = MOA_FORM_AUTO, .n_max = t->n_tok};
        const moa_status s = moa_items_encode(j->loaded.model, items, &how, most, &t->items, err);
        if (s != MOA_OK) return s;
        if (t->items.n == 0)
            return moa_fail(err, MOA_E_INVALID, "no item fits a length of %d tokens: %s", t->n_tok,
                            t->items.why[0] ? t->items.why : "there is none");
        j->tok_total += (double)t->items.n_tok;
        moa_remark(j->args, "length %d: %d items, %lld tokens, %lld supervised; %d cut, %d skipped%s%s", t->n_tok,
                   t->items.n, (long long)t->items.n_tok, (long long)t->items.n_supervised, t->items.n_cut,
                   t->items.n_skipped, t->items.n_skipped ? ": " : "", t->items.n_skipped ? t->items.why : "");
        if ((double)t->items.n_tok < 0.75 * t->n_tok * t->items.n)
            moa_remark(j->args,
                       "length %d: the items have %.0f tokens on the average: far windows are measured on few of them",
                       t->n_tok, (double)t->items.n_tok / t->items.n);
    }
    return MOA_OK;
}

static void on_progress(void *user, int32_t done, int32_t total) {
    const job *j = user;
    moa_progress_show(j->args, "profile", j->tok_done + j->tok_item * done / total, j->tok_total, "tokens");
}

/* of a stage's items, as many at once as go together */
static moa_status run_items(job *j, stage *t, moa_profile_item *items, moa_err *err) {
    moa_status s = MOA_OK;
    for (int32_t i = 0; i < t->items.n; i++)
        items[i] = (moa_profile_item){.ids = t->items.data[i].ids,
                                      .n = t->items.data[i].n,
                                      .supervise_from = t->items.data[i].supervise_from,
                                      .cancelled = moa_interrupted,
                                      .progress = on_progress,
                                      .user = j,
                                      .rules = j->planned ? j->loaded.plan->rules : NULL,
                                      .margin = j->margin};
    for (int32_t i = 0, n; i < t->items.n && s == MOA_OK; i += n) {
        const double start = now_s();
        n = moa_profile_take(j->profile, items + i, t->items.n - i);
        j->tok_item = 0;
        for (int32_t k = i; k < i + n; k++)
            j->tok_item += items[k].n;
        s = moa_profile_add_all(j->profile, items + i, n, &t->sums, NULL, err);
        if (s != MOA_OK) break;
        t->seconds += now_s() - start;
        j->tok_done += j->tok_item;
    }
    return s;
}

static moa_status run_stage(job *j, stage *t, moa_err *err) {
    moa_profile_item *items = calloc((size_t)t->items.n + 1, sizeof *items);
    moa_status s = items ? moa_influence_open(&t->sums, &j->loaded.model->shape, t->n_tok, err)
                         : moa_fail(err, MOA_E_MEMORY, "no memory for %d items", t->items.n);
    if (s == MOA_OK) s = run_items(j, t, items, err);
    free(items);
    if (t->sums.n_item == 0) return s;
    moa_progress_show(j->args, "profile", j->tok_total, j->tok_total, "tokens"); /* clears the line */
    moa_remark(j->args, "length %d: %d items in %.2f s, %s loss %.4f nats, %lld rows clamped", t->n_tok, t->sums.n_item,
               t->seconds, j->planned ? "the plan's" : "dense", t->sums.loss / t->sums.n_item, (long long)t->sums.n_clamped);
    return s;
}

static int32_t items_done(const job *j) {
    int32_t n = 0;
    for (int i = 0; i < j->n_stage; i++)
        n += j->stages[i].sums.n_item;
    return n;
}

static moa_status work(job *j, moa_err *err) {
    const char *path = moa_args_text(j->args, MOA_OPT_OUTPUT);
    const int32_t longest = j->stages[j->n_stage - 1].n_tok;
    moa_status s = MOA_OK;
    int32_t wanted = 0;
    moa_remark(j->args, "activations of %d tokens: %.1f MiB of device memory", longest,
               (double)moa_profile_need(j->loaded.engine, longest) / 1048576);
    MOA_TRY(moa_profile_open(&j->profile, j->loaded.engine, longest, err));
    for (int i = 0; i < j->n_stage; i++)
        wanted += j->stages[i].items.n;
    for (int i = 0; i < j->n_stage && s == MOA_OK; i++)
        s = run_stage(j, &j->stages[i], err);
    if (s != MOA_OK && (s != MOA_E_CANCELLED || items_done(j) == 0)) goto out;
    moa_err unsaved = {0};
    const moa_status saved = save(j, path, s == MOA_OK, &unsaved);
    if (saved != MOA_OK) {
        s = moa_fail(err, saved, "%s", unsaved.text);
        goto out;
    }
    if (s == MOA_E_CANCELLED)
        (void)moa_fail(err, s, "interrupted: %s has the mean over %d of %d items", path, items_done(j), wanted);
    else
        moa_remark(j->args, "%s", path);
out:
    return s;
}

static moa_status take_words(job *j, moa_err *err) {
    const char *loss = moa_args_text(j->args, OPT_LOSS);
    j->margin = strcmp(loss, "margin") == 0;
    if (!j->margin && strcmp(loss, "cross-entropy") != 0)
        return moa_fail(err, MOA_E_USAGE, "--loss %s: it is cross-entropy or margin", loss);
    for (int i = 0; i < j->n_stage; i++)
        j->planned = j->planned || moa_plan_describe(j->loaded.plan, j->stages[i].n_tok, 0).dense_share < 1;
    return MOA_OK;
}

static moa_status run(const moa_args *args, moa_err *err) {
    const char *data = moa_args_text(args, MOA_OPT_DATA);
    moa_items items = {0};
    job j = {.args = args};
    moa_status s = MOA_OK;
    moa_interrupt_catch();
    if (!data) MOA_TRY(moa_fail(err, MOA_E_USAGE, "which items? --data DATA.jsonl, as `moascope calibrate` writes it"));
    if (!moa_args_has(args, MOA_OPT_LENGTHS)) MOA_TRY(moa_fail(err, MOA_E_USAGE, "which lengths? --lengths 512,1024"));
    if (!moa_args_has(args, MOA_OPT_OUTPUT)) MOA_TRY(moa_fail(err, MOA_E_USAGE, "where to? -o INFLUENCE.npz"));
    MOA_TRY(moa_args_place(moa_args_text(args, MOA_OPT_OUTPUT), err));
    MOA_TRY(moa_items_read(&items, data, err));
    MOA_TRY(moa_load(&j.loaded, args, 0, err));
    MOA_TRY(take_lengths(&j, err));
    MOA_TRY(take_words(&j, err));
    MOA_TRY(take_items(&j, &items, err));
    MOA_TRY(work(&j, err));
out:
    moa_profile_close(&j.profile);
    for (int i = 0; i < LENGTHS_MAX; i++) {
        moa_influence_free(&j.stages[i].sums);
        moa_token_items_free(&j.stages[i].items);
    }
    moa_items_free(&items);
    moa_load_close(&j.loaded);
    return s;
}

static const int options[] = {MOA_OPT_DATA,      MOA_OPT_LENGTHS, MOA_OPT_OUTPUT, MOA_OPT_DEVICE, MOA_OPT_THREADS,
                              MOA_OPT_REFERENCE, MOA_OPT_QUIET,   MOA_OPT_MODEL,  MOA_OPT_PLAN,   MOA_OPT_END};
static const moa_option own[] = {
    {"--items", MOA_OPTION_INT, "N", "0", 0, 1048576, false, "items of each length at most; 0: all"},
    {"--loss", MOA_OPTION_TEXT, "margin|cross-entropy", "margin", 0, 0, false,
     "what the influence is on; margin: log((1 - p) / p) of the answer's tokens, which certain ones lose too"},
    {0}};

const moa_batch moa_batch_profile = {
    .name = "profile",
    .help = "measure what shorter spans would cost every head",
    .usage = "MODEL --data DATA.jsonl --lengths 512,1024 -o INFLUENCE.npz",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 1,
    .more = "For each length N the file has abs_N and signed_N [n_layer][n_head][nb][nb], joint_N "
            "[n_layer][n_head][nb + 1] and meta; with --plan also span_N, and joint_N is the change from the plan's spans.\n"
            "Items longer than a length lose the middle of their context, never their answer. ^C keeps the mean over "
            "the items done (exit code 130).",
    .run = run,
};
