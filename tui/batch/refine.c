/* refine.c -- `moascope refine`: a plan found in rounds, each of which measures the influence of spans under the plan it has come to.
 *
 *   at = full attention (or --plan)
 *   round 1  profile at  -->  the least predicted loss at the density: what `search` finds
 *   round k  profile at  -->  influence of this round, and the mean over all rounds so far
 *                             each: the least predicted loss at the density, within a step of the best plan  -->  two candidates
 *            judge both by the true loss of other items  -->  the better one is the next `at`; where none is better than the best, the step
 *            is halved
 *   --path   before that the density falls by three quarters of a step a round
 *   --text   candidates also with texts weighed more and less than the loss does; the best one's weight is the next round's middle. Predicted
 *            losses of answers and of texts are wrong by factors of their own, and judging is cheap beside a profile
 *
 *   loss     answers (--data)   -log of the probability of the answer, nats; influence by default on the margin (profile.h). A token that
 *                               is likelier than under full attention counts as it does there (but for --gains): what is gained in the
 *                               wording of an answer does not make up for what is lost of its content
 *            texts (--text)     cross-entropy of a token, nats, times --text-weight: that a plan kept for answers alone costs much of it
 *
 * Why rounds: the influence of single heads at full attention does not add up (docs/proof.md). Heads stand in for one another: each may be
 * cut while the others are there. Under a plan the gradient sees what is already gone; the mean over the way from full attention to the plan
 * shares the whole loss of that way out among the heads (integrated gradients), where one end of it sees either nothing or too late.
 * What rounds add up, search and decide is plans/rounds.h, for the search screen as well.
 *
 *   DIR/round_NN.npz     influence of a round, as `profile --plan` writes it, the curves alone; with texts their weighted sum, the parts
 *                        beside it in round_NN_answers.npz and round_NN_texts.npz
 *   DIR/step_NN_X.json   candidates that keep more than --density (on the way)
 *   DIR/plan_NN_X.json   candidates within it; X: a of the round's influence, b of the mean, c of the first round's
 *                        without a step; d, e as b or c with texts weighed more and less; 00_s is --plan itself
 *   DIR/best.json        the plan of the least true loss within it
 *   DIR/refine.json      the table of rounds
 *   DIR/refine.json.part while it is not done: true losses. ^C ends it; the same command goes on, and comes to the same plans. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/npy.h"
#include "core/base/sha256.h"
#include "core/base/text.h"
#include "core/engine/profile.h"
#include "core/tasks/items.h"
#include "core/tasks/loss.h"
#include "core/tasks/part.h"
#include "plans/rounds.h"
#include "tui/batch/batch.h"
#include "tui/load.h"
#include "version.h"

enum { LENGTHS_MAX = MOA_LOSSES_LENGTH_MAX, ROUNDS_MAX = 64, PER_ROUND = 4, KEY_CHARS = 16 };
enum {
    OWN_DENSITY = MOA_OPT_OWN,
    OWN_ROUNDS,
    OWN_STEP,
    OWN_PATH,
    OWN_ITEMS,
    OWN_JUDGE,
    OWN_TEXT,
    OWN_TEXT_WEIGHT,
    OWN_LOSS,
    OWN_EXTEND,
    OWN_PER,
    OWN_ALPHA_STEP,
    OWN_FIRST,
    OWN_GAINS
};

enum { ANSWERS, TEXTS, N_KIND };

/* items of one length and kind: the first n_profile are profiled, n_judge from judge0 on are judged by */
typedef struct lot {
    moa_token_items items;
    int32_t n_profile, judge0, n_judge;
    float **full; /* (items.n) losses of their supervised tokens under full attention where they are needed, else NULL; owned */
} lot;

typedef struct stage {
    int32_t n_tok;
    lot lots[N_KIND];
} stage;

typedef struct candidate {
    int32_t round;
    char kind;                      /* 'a' to 'e', 's': as in its file's name */
    moa_plan *plan;                 /* owned */
    double density, predicted;      /* the largest of the bounded ones; the change against full attention */
    double text_weight;             /* that it was searched with */
    double loss[LENGTHS_MAX], mean; /* true ones, as said above */
    double part[N_KIND];            /* nats an answer, nats a token of text: means over the lengths */
    bool within;                    /* --density */
} candidate;

typedef struct job {
    const moa_args *args;
    moa_loaded loaded;
    moa_seq *seq;
    moa_items items[N_KIND];
    int n_kind; /* 1: no texts */
    stage stages[LENGTHS_MAX];
    int32_t n_stage, lengths[LENGTHS_MAX], extend[MOA_SEARCH_BOUND_MAX], n_extend;
    bool margin, gains;
    char key[65];
    moa_part *part;
    moa_rounds way; /* what a round searches and decides */
    moa_losses *now[N_KIND], *mean[N_KIND]; /* of the round; the sum over rounds, divided when used */
    double text_weight, spread; /* middle of the weights that are tried, and the factor to either side */
    candidate found[ROUNDS_MAX * PER_ROUND + 1];
    int32_t n_found, best, at, n_round; /* best: -1: none within; at: -1: --plan */
    double full[LENGTHS_MAX], full_mean, full_part[N_KIND], weight[N_KIND];
    double done, total; /* tokens of the round, a backward pass as four forward ones */
} job;

/* --- what is given ---------------------------------------------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static moa_status take_lengths(job *j, moa_err *err) {
    const int n = moa_args_ints(j->args, MOA_OPT_LENGTHS, j->lengths, LENGTHS_MAX),
              n_ctx = j->loaded.model->shape.n_ctx;
    if (n < 1 || n > LENGTHS_MAX)
        return moa_fail(err, MOA_E_USAGE, "which lengths? --lengths 1024,2048, at most %d", LENGTHS_MAX);
    qsort(j->lengths, (size_t)n, sizeof *j->lengths, by_number);
    for (int i = 0; i < n; i++) {
        if (j->lengths[i] < 2 || j->lengths[i] > n_ctx || (i > 0 && j->lengths[i] == j->lengths[i - 1]))
            return moa_fail(err, MOA_E_USAGE,
                            "length %d: each once, from 2 to the model's context of %d tokens", j->lengths[i],
                            n_ctx);
        j->stages[j->n_stage++].n_tok = j->lengths[i];
    }
    j->n_extend = moa_args_ints(j->args, OWN_EXTEND, j->extend, MOA_SEARCH_BOUND_MAX);
    if (j->n_extend > MOA_SEARCH_BOUND_MAX)
        return moa_fail(err, MOA_E_USAGE, "--extend: at most %d lengths", MOA_SEARCH_BOUND_MAX);
    const double step = moa_args_real(j->args, OWN_STEP);
    j->way = (moa_rounds){.density = moa_args_real(j->args, OWN_DENSITY),
                          .step = step,
                          .step_first = step,
                          .path = moa_args_has(j->args, OWN_PATH),
                          .length = j->lengths,
                          .n_length = j->n_stage,
                          .extend = j->extend,
                          .n_extend = j->n_extend,
                          .n_head_kv = j->loaded.model->shape.n_head_kv};
    return MOA_OK;
}

/* half of the items are profiled and half judge, unless it is said otherwise; a file with too few is used twice */
static void share_out(const job *j, lot *t) {
    const int32_t items = (int32_t)moa_args_int(j->args, OWN_ITEMS),
                  judge = (int32_t)moa_args_int(j->args, OWN_JUDGE), n = t->items.n;
    t->n_profile = items > 0 ? (items < n ? items : n) : n > 1 ? n / 2 : 1;
    t->n_judge = judge > 0 ? judge : n - t->n_profile;
    if (t->n_judge < 1 || t->n_judge > n) t->n_judge = n;
    t->judge0 = n - t->n_judge;
}

static moa_status take_items(job *j, moa_err *err) {
    for (int i = 0; i < j->n_stage; i++)
        for (int k = 0; k < j->n_kind; k++) {
            lot *t = &j->stages[i].lots[k];
            const char *what = k == TEXTS ? "texts" : "items";
            const moa_encode how = {.form = MOA_FORM_AUTO, .n_max = j->lengths[i]};
            const moa_status s = moa_items_encode(j->loaded.model, &j->items[k], &how, 0, &t->items, err);
            if (s != MOA_OK) return s;
            if (t->items.n == 0)
                return moa_fail(err, MOA_E_INVALID, "none of the %s fits a length of %d tokens: %s", what,
                                j->lengths[i], t->items.why[0] ? t->items.why : "there is none");
            share_out(j, t);
            t->full = calloc((size_t)t->items.n, sizeof *t->full);
            if (!t->full) return moa_fail(err, MOA_E_MEMORY, "no memory for the losses of %d %s", t->items.n, what);
            moa_remark(j->args, "length %d: %d %s are profiled, %d judge%s", j->lengths[i], t->n_profile,
                       what, t->n_judge, t->judge0 < t->n_profile ? ", some of them both" : "");
        }
    return MOA_OK;
}

static moa_status take_words(job *j, moa_err *err) {
    const char *loss = moa_args_text(j->args, OWN_LOSS), *per = moa_args_text(j->args, OWN_PER);
    j->margin = strcmp(loss, "margin") == 0;
    if (!j->margin && strcmp(loss, "cross-entropy") != 0)
        return moa_fail(err, MOA_E_USAGE, "--loss %s: it is cross-entropy or margin", loss);
    if (strcmp(per, "group") != 0 && strcmp(per, "head") != 0)
        return moa_fail(err, MOA_E_USAGE, "--per %s: it is group or head", per);
    j->gains = moa_args_has(j->args, OWN_GAINS);
    j->weight[ANSWERS] = 1;
    j->weight[TEXTS] = moa_args_real(j->args, OWN_TEXT_WEIGHT);
    j->n_kind = moa_args_has(j->args, OWN_TEXT) ? N_KIND : 1;
    j->text_weight = j->weight[TEXTS];
    j->spread = 4;
    j->n_round = (int32_t)moa_args_int(j->args, OWN_ROUNDS);
    return MOA_OK;
}

/* everything that the results depend on */
static void make_key(job *j) {
    moa_sha256 h;
    char text[512];
    moa_sha256_init(&h);
    for (int i = 0; i < j->n_stage * j->n_kind; i++) {
        const lot *l = &j->stages[i / j->n_kind].lots[i % j->n_kind];
        for (int32_t k = 0; k < l->items.n; k++) {
            const moa_tokens *t = &l->items.data[k];
            moa_sha256_add(&h, t->ids, (size_t)t->n * sizeof *t->ids);
            moa_sha256_add(&h, &t->supervise_from, sizeof t->supervise_from);
        }
        moa_sha256_add(&h, &l->n_profile, 3 * sizeof(int32_t));
    }
    const size_t n = (size_t)j->loaded.plan->n_layer * (size_t)j->loaded.plan->n_head;
    moa_sha256_add(&h, j->loaded.plan->rules, n * sizeof *j->loaded.plan->rules);
    moa_sha256_add(&h, j->extend, (size_t)j->n_extend * sizeof *j->extend);
    if (moa_args_has(j->args, OWN_FIRST))
        moa_sha256_add(&h, moa_args_text(j->args, OWN_FIRST), strlen(moa_args_text(j->args, OWN_FIRST)));
    (void)snprintf(text, sizeof text, "%s %s %.17g %.17g %.17g %d %d %s %d %d", j->loaded.model->fingerprint,
                   moa_load_kv_type(j->args), moa_args_real(j->args, OWN_DENSITY), moa_args_real(j->args, OWN_STEP), j->weight[TEXTS],
                   j->margin, moa_args_has(j->args, OWN_PATH), moa_args_text(j->args, OWN_PER),
                   (int)moa_args_int(j->args, OWN_ALPHA_STEP), j->gains);
    moa_sha256_add(&h, text, strlen(text));
    moa_sha256_hex(&h, j->key);
}

/* --- files ------------------------------------------------------------------------------------------------------------------------ */

static moa_status path_in(const job *j, const char *name, char out[PATH_MAX], moa_err *err) {
    if (snprintf(out, PATH_MAX, "%s/%s", moa_args_text(j->args, MOA_OPT_OUTPUT), name) < PATH_MAX)
        return MOA_OK;
    return moa_fail(err, MOA_E_USAGE, "the folder's name is longer than %d bytes", PATH_MAX - 32);
}

static const moa_plan *plan_at(const job *j) {
    return j->at < 0 ? j->loaded.plan : j->found[j->at].plan;
}

static void put_number(moa_buf *out, const char *before, double x) {
    moa_buf_str(out, before);
    moa_json_number(out, x);
}

/* sums of one length, of each kind */
typedef struct sums {
    moa_influence of[N_KIND];
} sums;

/* what of a round is in a file, by the weights of its kinds */
static int kind_of(const double *weight) {
    return weight[ANSWERS] > 0 ? ANSWERS : TEXTS;
}

static void put_influence_meta(const job *j, const sums *all, const double *weight, moa_buf *out) {
    const moa_model *m = j->loaded.model;
    moa_buf_str(out, "{\"format\": \"moa-influence\", \"version\": 1, \"model\": {\"name\": ");
    moa_text_json(m->name, strlen(m->name), out);
    moa_buf_str(out, ", \"architecture\": ");
    moa_text_json(m->arch, strlen(m->arch), out);
    moa_buf_printf(out,
                   ", \"n_layer\": %d, \"n_head\": %d, \"n_head_kv\": %d, \"d_head\": %d, \"fingerprint\": "
                   "\"%s\"}, \"key\": \"%s\", "
                   "\"plan\": \"of the round before\", \"gradient_of\": \"%s\", \"lengths\": {",
                   m->shape.n_layer, m->shape.n_head, m->shape.n_head_kv, m->shape.d_head, m->fingerprint,
                   j->key, kind_of(weight) == TEXTS ? "cross-entropy" : moa_args_text(j->args, OWN_LOSS));
    for (int i = 0; i < j->n_stage; i++) {
        const moa_influence *f = &all[i].of[kind_of(weight)];
        moa_buf_printf(out, "%s\"%d\": {\"items\": %d, \"supervised\": %lld, \"clamped\": %lld",
                       i ? ", " : "", f->n_tok, f->n_item, (long long)f->n_supervised,
                       (long long)f->n_clamped);
        put_number(out, ", \"loss\": ", f->loss / f->n_item);
        if (weight[ANSWERS] > 0 && weight[TEXTS] > 0) {
            put_number(out, ", \"text_loss\": ", all[i].of[TEXTS].loss / all[i].of[TEXTS].n_item);
            put_number(out, ", \"text_weight\": ", weight[TEXTS]);
        }
        moa_buf_str(out, "}");
    }
    moa_buf_str(out, "}}");
}

static moa_status put_curves(moa_npy_writer *w, const job *j, const sums *all, const double *weight, moa_err *err) {
    const moa_influence *f = &all->of[ANSWERS];
    const size_t l = (size_t)f->n_layer, h = (size_t)f->n_head, n = l * h * ((size_t)f->nb + 1);
    const moa_npy_shape curves = {MOA_NPY_F32, 3, {l, h, (size_t)f->nb + 1}},
                        spans = {MOA_NPY_I32, 2, {l, h}};
    char name[64];
    moa_status s = MOA_OK;
    float *mean = malloc(n * sizeof *mean);
    int32_t *span = malloc(l * h * sizeof *span);
    if (!mean || !span) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the curves of %zu heads", l * h));
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < j->n_kind; k++)
            sum += weight[k] * all->of[k].joint[i] / all->of[k].n_item;
        mean[i] = (float)sum;
    }
    for (size_t i = 0; i < l * h; i++)
        span[i] = moa_span(plan_at(j)->rules[i], f->n_tok);
    (void)snprintf(name, sizeof name, "joint_%d", f->n_tok);
    MOA_TRY(moa_npz_add(w, name, &curves, mean, err));
    (void)snprintf(name, sizeof name, "span_%d", f->n_tok);
    MOA_TRY(moa_npz_add(w, name, &spans, span, err));
out:
    free(mean);
    free(span);
    return s;
}

static moa_status save_influence(const job *j, const sums *all, const double *weight, const char *path, moa_err *err) {
    moa_npy_writer *w = NULL;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    put_influence_meta(j, all, weight, &text);
    if (!moa_buf_ok(&text)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "%s: no memory for its description", path));
    MOA_TRY(moa_npy_open(&w, path, NULL, err));
    for (int i = 0; i < j->n_stage; i++)
        MOA_TRY(put_curves(w, j, &all[i], weight, err));
    MOA_TRY(moa_npz_text(w, "meta", text.data, err));
    s = moa_npy_commit(&w, err);
out:
    moa_npy_close(&w);
    moa_buf_free(&text);
    return s;
}

/* a round's file in a folder; kind N_KIND: the weighted sum */
static moa_status path_of_round(const char *dir, int32_t k, int kind, char out[PATH_MAX], moa_err *err) {
    static const char *const part[] = {"_answers", "_texts", ""};
    if (snprintf(out, PATH_MAX, "%s/round_%02d%s.npz", dir, k, part[kind]) < PATH_MAX) return MOA_OK;
    return moa_fail(err, MOA_E_USAGE, "the folder's name is longer than %d bytes", PATH_MAX - 32);
}

/* the sum last: where it is, the parts are */
static moa_status save_round(const job *j, const sums *all, int32_t k, moa_err *err) {
    const char *dir = moa_args_text(j->args, MOA_OPT_OUTPUT);
    char path[PATH_MAX];
    moa_status s = MOA_OK;
    for (int kind = 0; kind < j->n_kind && j->n_kind > 1; kind++) {
        const double alone[N_KIND] = {kind == ANSWERS, kind == TEXTS};
        MOA_TRY(path_of_round(dir, k, kind, path, err));
        MOA_TRY(save_influence(j, all, alone, path, err));
    }
    MOA_TRY(path_of_round(dir, k, N_KIND, path, err));
    s = save_influence(j, all, j->weight, path, err);
out:
    return s;
}

static void put_found(const job *j, const candidate *c, moa_buf *out) {
    moa_buf_printf(out, "\"round\": %d, \"influence\": \"%s\"", c->round,
                   c->kind == 's'                     ? "none"
                   : c->kind == 'a'                   ? "round"
                   : c->kind == 'c' || c->round == 1 ? "first round"
                                                      : "mean");
    put_number(out, ", \"density\": ", c->density);
    put_number(out, ", \"predicted\": ", c->predicted);
    put_number(out, ", \"loss\": ", c->mean);
    put_number(out, ", \"answers\": ", c->part[ANSWERS]);
    if (j->n_kind > 1) put_number(out, ", \"texts\": ", c->part[TEXTS]);
    if (j->n_kind > 1 && c->kind != 's') put_number(out, ", \"text_weight\": ", c->text_weight);
    moa_buf_str(out, ", \"losses\": {");
    for (int i = 0; i < j->n_stage; i++) {
        moa_buf_printf(out, "%s\"%d\": ", i ? ", " : "", j->lengths[i]);
        moa_json_number(out, c->loss[i]);
    }
    moa_buf_str(out, "}");
}

static void name_of(const candidate *c, char out[32]) {
    (void)snprintf(out, 32, "%s_%02d_%c.json", c->within ? "plan" : "step", c->round, c->kind);
}

static moa_status save_plan(const job *j, candidate *c, const char *name, moa_err *err) {
    char path[PATH_MAX];
    moa_buf b = {0};
    moa_status s = path_in(j, name, path, err);
    if (s != MOA_OK) return s;
    moa_buf_str(&b, "\"provenance\": {\"refine\": {\"program\": \"" MOA_VERSION "\", ");
    put_found(j, c, &b);
    put_number(&b, ", \"full_attention\": ", j->full_mean);
    moa_buf_str(&b, "}}");
    if (!moa_buf_ok(&b)) {
        moa_buf_free(&b);
        return moa_fail(err, MOA_E_MEMORY, "%s: no memory", path);
    }
    free(c->plan->extra);
    c->plan->extra = b.data; /* moved */
    return moa_plan_save(c->plan, path, true, err);
}

static moa_status save_table(const job *j, moa_err *err) {
    const char *json = moa_args_text(j->args, MOA_OPT_JSON);
    char path[PATH_MAX], name[32];
    moa_buf b = {0};
    moa_status s = MOA_OK;
    MOA_TRY(path_in(j, "refine.json", path, err));
    put_number(&b, "{\"format\": \"moa-refine\", \"version\": 1, \"full_attention\": ", j->full_mean);
    name_of(&j->found[j->best], name);
    moa_buf_printf(&b, ", \"best\": \"%s\", \"plans\": [", name);
    for (int32_t i = 0; i < j->n_found; i++) {
        name_of(&j->found[i], name);
        moa_buf_printf(&b, "%s\n {\"file\": \"%s\", ", i ? "," : "", name);
        put_found(j, &j->found[i], &b);
        moa_buf_str(&b, "}");
    }
    moa_buf_str(&b, "]}\n");
    if (!moa_buf_ok(&b))
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a table of %d plans", j->n_found));
    MOA_TRY(moa_file_save(path, b.data, b.size, 0644, 0, err));
    if (json) s = moa_output_save(json, &b, err);
out:
    moa_buf_free(&b);
    return s;
}

/* --- a profile under the plan ------------------------------------------------------------------------------------------------------- */

static void on_progress(void *user, int32_t done, int32_t total) {
    const job *j = user;
    (void)total;
    moa_progress_show(j->args, "refine", j->done + done, j->total, "tokens");
}
static void on_profile(void *user, int32_t done, int32_t total) {
    const job *j = user;
    moa_progress_show(j->args, "refine", j->done + 4.0 * j->lengths[0] * done / total, j->total, "tokens");
}

/* as many at once as go together */
static moa_status profile_lot(job *j, moa_profile *p, int32_t n_tok, const lot *t, bool margin,
                              moa_influence *to, moa_err *err) {
    const bool planned = moa_plan_describe(plan_at(j), n_tok, 0).dense_share < 1;
    moa_profile_item *items = calloc((size_t)t->n_profile + 1, sizeof *items);
    moa_status s = items ? moa_influence_open(to, &j->loaded.model->shape, n_tok, err)
                         : moa_fail(err, MOA_E_MEMORY, "no memory for %d items", t->n_profile);
    for (int32_t i = 0; i < t->n_profile && s == MOA_OK; i++)
        items[i] = (moa_profile_item){.ids = t->items.data[i].ids,
                                      .n = t->items.data[i].n,
                                      .supervise_from = t->items.data[i].supervise_from,
                                      .cancelled = moa_interrupted,
                                      .progress = on_profile,
                                      .user = j,
                                      .rules = planned ? plan_at(j)->rules : NULL,
                                      .margin = margin};
    for (int32_t i = 0, n; i < t->n_profile && s == MOA_OK; i += n) {
        n = moa_profile_take(p, items + i, t->n_profile - i);
        s = moa_profile_add_all(p, items + i, n, to, NULL, err);
        for (int32_t k = i; k < i + n; k++)
            j->done += 5.0 * items[k].n;
    }
    free(items);
    return s;
}

static moa_status profile(job *j, int32_t k, moa_err *err) {
    sums all[LENGTHS_MAX] = {0};
    moa_profile *p = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(moa_profile_open(&p, j->loaded.engine, j->lengths[j->n_stage - 1], err));
    for (int i = 0; i < j->n_stage; i++)
        for (int kind = 0; kind < j->n_kind; kind++)
            MOA_TRY(profile_lot(j, p, j->lengths[i], &j->stages[i].lots[kind], j->margin && kind == ANSWERS,
                                &all[i].of[kind], err));
    MOA_TRY(save_round(j, all, k, err));
out:
    moa_profile_close(&p);
    for (int i = 0; i < j->n_stage * N_KIND; i++)
        moa_influence_free(&all[i / N_KIND].of[i % N_KIND]);
    return s;
}

static moa_status load_round(job *j, const char *path, int kind, moa_err *err) {
    const moa_shape *m = &j->loaded.model->shape;
    moa_status s = MOA_OK;
    moa_losses_close(&j->now[kind]);
    MOA_TRY(moa_losses_load(&j->now[kind], &(moa_losses_config){.path = path}, err));
    const moa_losses *l = j->now[kind];
    bool fits = l->n_length == j->n_stage && l->n_layer == m->n_layer && l->n_head == m->n_head &&
                strcmp(l->fingerprint, j->loaded.model->fingerprint) == 0;
    for (int i = 0; fits && i < j->n_stage; i++)
        fits = l->length[i] == j->lengths[i];
    if (!fits) MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: not of this model and these lengths; remove it", path));
    if (!j->mean[kind])
        MOA_TRY(moa_losses_open(&j->mean[kind], m->n_layer, m->n_head, m->n_head_kv, j->lengths, j->n_stage, err));
    moa_rounds_add(j->mean[kind], l);
out:
    return s;
}

/* the influence of round k: from its files, which are made if they are not there; added to the mean */
static moa_status influence(job *j, int32_t k, moa_err *err) {
    const bool given = k == 1 && moa_args_has(j->args, OWN_FIRST);
    const char *dir = moa_args_text(j->args, given ? OWN_FIRST : MOA_OPT_OUTPUT);
    char path[PATH_MAX];
    moa_status s = MOA_OK;
    MOA_TRY(path_of_round(dir, k, N_KIND, path, err));
    if (!given && access(path, F_OK) != 0) MOA_TRY(profile(j, k, err));
    for (int kind = 0; kind < j->n_kind; kind++) {
        MOA_TRY(path_of_round(dir, k, j->n_kind > 1 ? kind : N_KIND, path, err));
        MOA_TRY(load_round(j, path, kind, err));
    }
out:
    return s;
}

/* --- candidates ------------------------------------------------------------------------------------------------------------------- */

static bool cancelled(void *user) {
    return moa_interrupted(user);
}

/* what a search finds does not depend on it */
static int32_t n_thread(void) {
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > LENGTHS_MAX ? LENGTHS_MAX : (int32_t)n;
}

/* what a search is of */
typedef struct look {
    moa_losses *const *of; /* (n_kind) borrowed */
    double by, text_weight, density;
    const moa_plan *around; /* NULL: anywhere */
} look;

/* curves of both kinds in one, texts weighed */
static moa_status sum_up(const job *j, const look *l, double text_weight, moa_losses **out, moa_err *err) {
    moa_losses *sum = NULL;
    moa_status s = moa_losses_open(&sum, l->of[0]->n_layer, l->of[0]->n_head, j->way.n_head_kv, j->lengths, j->n_stage, err);
    for (int kind = 0; kind < j->n_kind && s == MOA_OK; kind++)
        moa_rounds_add_times(sum, l->of[kind], kind == TEXTS ? text_weight : 1);
    if (s == MOA_OK) s = moa_rounds_losses(sum, l->by, j->extend, j->n_extend, out, err);
    moa_losses_close(&sum);
    return s;
}

static moa_status add_found(job *j, const look *l, moa_plan **plan, candidate c, moa_err *err) {
    moa_losses *said = NULL;
    for (int32_t i = 0; i < j->n_found; i++)
        if (moa_plan_equal(j->found[i].plan, *plan)) return MOA_OK;
    const moa_status s = sum_up(j, l, j->weight[TEXTS], &said, err); /* of the loss that judges */
    if (s != MOA_OK) return s;
    c.plan = *plan;
    *plan = NULL; /* moved */
    c.predicted = moa_rounds_predict(said, c.plan);
    c.text_weight = l->text_weight;
    c.density = moa_rounds_density(&j->way, c.plan);
    c.within = moa_rounds_within(&j->way, c.density);
    j->found[j->n_found++] = c;
    moa_losses_close(&said);
    return MOA_OK;
}

/* the plan of the least predicted loss at a density. Nothing is added where it was found before. */
static moa_status find(job *j, const look *at, candidate c, moa_err *err) {
    moa_found r = {0};
    moa_losses *l = NULL;
    moa_status s = MOA_OK;
    MOA_TRY(sum_up(j, at, at->text_weight, &l, err));
    const moa_search_config config = {
        .density = at->density,
        .extend = j->extend,
        .n_extend = j->n_extend,
        .around = at->around,
        .step = j->way.step,
        .per = strcmp(moa_args_text(j->args, OWN_PER), "head") == 0 ? MOA_PER_HEAD : MOA_PER_GROUP,
        .alpha_step = (int32_t)moa_args_int(j->args, OWN_ALPHA_STEP),
        .n_interval = 1,
        .seed = 1,
        .n_thread = n_thread(),
        .cancelled = cancelled};
    MOA_TRY(moa_rounds_find(l, &config, &r, err));
    s = add_found(j, at, &r.plan, c, err);
out:
    moa_plan_close(&r.plan);
    moa_losses_close(&l);
    return s;
}

/* --- the true loss ---------------------------------------------------------------------------------------------------------------- */

static void plan_key(const moa_plan *p, char out[65]) {
    moa_sha256 h;
    moa_sha256_init(&h);
    moa_sha256_add(&h, p->rules, (size_t)p->n_layer * (size_t)p->n_head * sizeof *p->rules);
    moa_sha256_hex(&h, out);
    out[KEY_CHARS] = 0;
}

/* "PLAN LENGTH KIND ITEM LOSS" among the lines there were; NAN: not there */
static double known(const job *j, const char *want) {
    const size_t n_want = strlen(want);
    for (int32_t i = 0; i < moa_part_n(j->part); i++) {
        char number[64];
        size_t n;
        const char *line = moa_part_line(j->part, i, &n);
        if (n <= n_want || n - n_want >= sizeof number || memcmp(line, want, n_want) != 0) continue;
        memcpy(number, line + n_want, n - n_want);
        number[n - n_want] = 0;
        return strtod(number, NULL);
    }
    return (double)NAN;
}

/* which item of which length and kind */
typedef struct spot {
    int stage, kind;
    int32_t item;
} spot;

/* Sum of the tokens' losses; of those likelier than in full, as there. full NULL: as they are. */
static double sum_of(const float *each, const float *full, int32_t n) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += (double)(full && full[i] > each[i] ? full[i] : each[i]);
    return sum;
}

/* nats of all supervised tokens; the first plan that is judged is full attention, whose losses are kept */
static moa_status measure_item(job *j, const moa_plan *p, spot at, double *loss, moa_err *err) {
    const lot *t = &j->stages[at.stage].lots[at.kind];
    const moa_tokens *item = &t->items.data[at.item];
    const int32_t n = item->n - item->supervise_from;
    const bool all = at.kind == TEXTS || j->gains;
    float *each = malloc((size_t)n * sizeof *each);
    const moa_loss_job work = {.ids = item->ids,
                               .n = item->n,
                               .from = item->supervise_from,
                               .rules = p->rules,
                               .n_reserved = j->lengths[at.stage],
                               .each = each,
                               .progress = on_progress,
                               .cancelled = moa_interrupted,
                               .user = j};
    moa_loss sum = {0};
    moa_status s = MOA_OK;
    if (!each) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for the losses of %d tokens", n));
    MOA_TRY(moa_loss_add(j->seq, &work, &sum, err));
    *loss = all ? sum.sum : sum_of(each, t->full[at.item], n);
    if (!all && !t->full[at.item]) {
        t->full[at.item] = each;
        each = NULL; /* moved */
    }
out:
    free(each);
    return s;
}

static moa_status judge_item(job *j, const moa_plan *p, const char *key, spot at, double *loss,
                             moa_err *err) {
    const lot *t = &j->stages[at.stage].lots[at.kind];
    const bool needed = at.kind == ANSWERS && !j->gains && !t->full[at.item];
    moa_buf line = {0};
    char want[96];
    moa_status s = MOA_OK;
    (void)snprintf(want, sizeof want, "%.32s %d %d %d ", key, j->lengths[at.stage], at.kind, at.item);
    *loss = known(j, want);
    const bool is_new = !isfinite(*loss);
    if (is_new || needed) MOA_TRY(measure_item(j, p, at, loss, err));
    if (is_new) {
        moa_buf_str(&line, want);
        moa_json_number(&line, *loss);
        if (!moa_buf_ok(&line)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a loss"));
        MOA_TRY(moa_part_add(j->part, line.data, line.size, err));
    }
    j->done += t->items.data[at.item].n;
out:
    moa_buf_free(&line);
    return s;
}

/* mean over the items that judge: nats an answer, nats a token of text */
static moa_status judge_lot(job *j, const moa_plan *p, const char *key, spot at, double *loss, moa_err *err) {
    const lot *t = &j->stages[at.stage].lots[at.kind];
    moa_status s = MOA_OK;
    *loss = 0;
    for (at.item = t->judge0; at.item < t->items.n && s == MOA_OK; at.item++) {
        const moa_tokens *item = &t->items.data[at.item];
        double x = 0;
        s = judge_item(j, p, key, at, &x, err);
        *loss += x / t->n_judge / (at.kind == TEXTS ? item->n - item->supervise_from : 1);
    }
    return s;
}

/* loss (n_stage), *mean over lengths, part (N_KIND) */
static moa_status judge(job *j, const moa_plan *p, double *loss, double *mean, double *part, moa_err *err) {
    char key[65];
    moa_status s = MOA_OK;
    plan_key(p, key);
    *mean = part[ANSWERS] = part[TEXTS] = 0;
    for (int i = 0; i < j->n_stage; i++) {
        loss[i] = 0;
        for (int k = 0; k < j->n_kind; k++) {
            double x;
            MOA_TRY(judge_lot(j, p, key, (spot){i, k, 0}, &x, err));
            loss[i] += j->weight[k] * x;
            part[k] += x / j->n_stage;
        }
        *mean += loss[i] / j->n_stage;
    }
out:
    return s;
}

/* --- rounds ------------------------------------------------------------------------------------------------------------------------- */

static void begin_round(job *j) {
    j->done = j->total = 0;
    for (int i = 0; i < j->n_stage * j->n_kind; i++) {
        const lot *t = &j->stages[i / j->n_kind].lots[i % j->n_kind];
        for (int32_t k = 0; k < t->items.n; k++)
            j->total += t->items.data[k].n * ((k < t->n_profile ? 5.0 : 0) + (k >= t->judge0 ? j->n_kind > 1 ? 4.0 : 2.0 : 0));
    }
}

static const char *predicted_text(const candidate *c, char out[24]) {
    (void)snprintf(out, 24, isnan(c->predicted) ? "-" : "%+.4f", c->predicted);
    return out;
}

static void say(const job *j, const candidate *c) {
    char text[24], parts[96] = "";
    moa_progress_show(j->args, "refine", 1, 1, "tokens");
    if (j->n_kind > 1)
        (void)snprintf(parts, sizeof parts, " (%+.4f an answer, %+.5f a token of text, weighed %g)", c->part[ANSWERS] - j->full_part[ANSWERS],
                       c->part[TEXTS] - j->full_part[TEXTS], c->text_weight);
    moa_remark(j->args, "round %d%c: density %.4f, predicted %s, loss %.4f, %+.4f%s%s", c->round, c->kind, c->density,
               predicted_text(c, text), c->mean, c->mean - j->full_mean, parts,
               j->best >= 0 && c == &j->found[j->best] ? ", the best" : "");
}

/* judges what the round found; *next: the best of it, -1: nothing new */
static moa_status judge_found(job *j, int32_t from, int32_t *next, moa_err *err) {
    moa_status s = MOA_OK;
    char name[32];
    *next = -1;
    for (int32_t i = from; i < j->n_found; i++) {
        candidate *c = &j->found[i];
        MOA_TRY(judge(j, c->plan, c->loss, &c->mean, c->part, err));
        name_of(c, name);
        MOA_TRY(save_plan(j, c, name, err));
        if (*next < 0 || c->mean < j->found[*next].mean) *next = i;
        if (c->within && (j->best < 0 || c->mean < j->found[j->best].mean)) {
            j->best = i;
            MOA_TRY(save_plan(j, c, "best.json", err));
        }
        say(j, c);
    }
out:
    return s;
}

/* with texts weighed by the middle, and by more and by less */
static moa_status find_weighed(job *j, look l, candidate c, moa_err *err) {
    moa_status s = MOA_OK;
    l.text_weight = j->text_weight;
    MOA_TRY(find(j, &l, c, err));
    if (j->n_kind < N_KIND || !(j->text_weight > 0)) goto out;
    l.text_weight = j->text_weight * j->spread, c.kind = 'd';
    MOA_TRY(find(j, &l, c, err));
    l.text_weight = j->text_weight / j->spread, c.kind = 'e';
    MOA_TRY(find(j, &l, c, err));
out:
    return s;
}

/* candidates at the density, or on the way to it; *there: at it */
static moa_status find_all(job *j, int32_t k, bool *there, moa_err *err) {
    const moa_rounds_aim aim = moa_rounds_aim_from(&j->way, moa_rounds_density(&j->way, plan_at(j)));
    const moa_plan *around = aim.there && j->best >= 0 ? j->found[j->best].plan : plan_at(j);
    look now = {j->now, 1, j->text_weight, aim.density, around}, mean = {j->mean, 1.0 / k, j->text_weight, aim.density, around};
    moa_status s = MOA_OK;
    *there = aim.there;
    if (aim.anywhere) {
        now.around = NULL;
        return find_weighed(j, now, (candidate){.round = k, .kind = 'c'}, err);
    }
    MOA_TRY(find(j, &now, (candidate){.round = k, .kind = 'a'}, err));
    MOA_TRY(find_weighed(j, mean, (candidate){.round = k, .kind = 'b'}, err));
out:
    return s;
}

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* false in *more: nothing is left to try */
static moa_status run_round(job *j, int32_t k, bool *more, moa_err *err) {
    const int32_t from = j->n_found, best = j->best;
    bool there;
    int32_t next;
    moa_status s = MOA_OK;
    begin_round(j);
    const double begin = now_s();
    MOA_TRY(influence(j, k, err));
    const double measured = now_s();
    MOA_TRY(find_all(j, k, &there, err));
    const double found = now_s();
    MOA_TRY(judge_found(j, from, &next, err));
    moa_remark(j->args, "round %d, step %g: influence %.2f s, %d new plans found %.2f s, judged %.2f s", k, j->way.step, measured - begin,
               j->n_found - from, found - measured, now_s() - found);
    if (next >= 0) j->at = next; /* also where it is worse: its influence goes into the mean */
    if (j->best >= 0 && j->found[j->best].kind != 's') j->text_weight = j->found[j->best].text_weight;
    j->spread = 2;
    *more = moa_rounds_next(&j->way, there, j->best != best) && (next >= 0 || j->best >= 0);
out:
    return s;
}

/* the plan given is the first to be beaten, where it is within the density */
static moa_status judge_start(job *j, moa_err *err) {
    candidate c = {
        .kind = 's', .within = true, .density = moa_rounds_density(&j->way, j->loaded.plan), .predicted = (double)NAN};
    int32_t next;
    if (!moa_rounds_within(&j->way, c.density)) return MOA_OK;
    const moa_status s = moa_plan_copy(&c.plan, j->loaded.plan, err);
    if (s != MOA_OK) return s;
    j->found[j->n_found++] = c;
    return judge_found(j, 0, &next, err);
}

static moa_status work(job *j, moa_err *err) {
    bool more = true;
    moa_status s = MOA_OK;
    moa_plan *full = NULL;
    MOA_TRY(moa_plan_uniform(&full, j->loaded.plan->n_layer, j->loaded.plan->n_head, (moa_rule){0, 1}, err));
    begin_round(j);
    MOA_TRY(judge(j, full, j->full, &j->full_mean, j->full_part, err));
    if (j->n_kind > 1)
        moa_remark(j->args, "full attention: loss %.4f (%.4f an answer, %.4f a token of text)", j->full_mean,
                   j->full_part[ANSWERS], j->full_part[TEXTS]);
    else
        moa_remark(j->args, "full attention: loss %.4f", j->full_mean);
    j->best = j->at = -1;
    MOA_TRY(judge_start(j, err));
    for (int32_t k = 1; k <= j->n_round && more; k++)
        MOA_TRY(run_round(j, k, &more, err));
    if (j->best < 0)
        MOA_TRY(moa_fail(err, MOA_E_FAILED,
                         "after %d rounds with steps of %g no plan is within a density of %g; more rounds or "
                         "a larger --step",
                         j->n_round, moa_args_real(j->args, OWN_STEP), moa_args_real(j->args, OWN_DENSITY)));
    MOA_TRY(save_table(j, err));
out:
    moa_plan_close(&full);
    moa_progress_show(j->args, "refine", 1, 1, "tokens");
    if (s == MOA_E_CANCELLED)
        s = moa_fail(err, s, "interrupted in round %d; the same command goes on from there",
                     j->n_found ? j->found[j->n_found - 1].round : 1);
    return s;
}

/* --- in all ----------------------------------------------------------------------------------------------------------------------------- */

static moa_status clear_rounds(const job *j, moa_err *err) {
    for (int k = 1; k <= ROUNDS_MAX; k++) {
        for (int kind = 0; kind <= N_KIND; kind++) {
            char path[PATH_MAX];
            const moa_status s = path_of_round(moa_args_text(j->args, MOA_OPT_OUTPUT), k, kind, path, err);
            if (s != MOA_OK) return s;
            (void)unlink(path);
        }
    }
    return MOA_OK;
}

/* files of rounds are of the work that refine.json.part names: without it, or with --force, all begins anew */
static moa_status resume(job *j, moa_err *err) {
    char path[PATH_MAX], key[128];
    const bool force = moa_args_has(j->args, MOA_OPT_FORCE);
    moa_status s = MOA_OK;
    MOA_TRY(moa_dir_make(moa_args_text(j->args, MOA_OPT_OUTPUT), err));
    MOA_TRY(path_in(j, "refine.json", path, err));
    if (!force && access(path, F_OK) == 0)
        MOA_TRY(moa_fail(err, MOA_E_FAILED, "%s is there already; --force replaces it", path));
    make_key(j);
    (void)snprintf(key, sizeof key, "refine %s", j->key);
    MOA_TRY(moa_part_open(&j->part, path, key, force, err));
    if (moa_part_n(j->part) == 0)
        MOA_TRY(clear_rounds(j, err));
    else
        moa_remark(j->args, "%s: %d losses are there already", moa_part_path(j->part), moa_part_n(j->part));
out:
    return s;
}

static moa_status show(const job *j, moa_err *err) {
    const char *json = moa_args_text(j->args, MOA_OPT_JSON);
    moa_buf b = {0};
    char name[32], text[24];
    if (json && strcmp(json, "-") == 0) return MOA_OK;
    moa_buf_str(&b, "plan             density  predicted     loss |");
    for (int i = 0; i < j->n_stage; i++)
        moa_buf_printf(&b, " loss@%-6d", j->lengths[i]);
    moa_buf_printf(&b, "\n%-16s %7.4f %10s %8.4f |", "full attention", 1.0, "", j->full_mean);
    for (int i = 0; i < j->n_stage; i++)
        moa_buf_printf(&b, " %11.4f", j->full[i]);
    for (int32_t k = 0; k < j->n_found; k++) {
        const candidate *c = &j->found[k];
        name_of(c, name);
        moa_buf_printf(&b, "\n%-16s %7.4f %10s %8.4f |", name, c->density, predicted_text(c, text), c->mean);
        for (int i = 0; i < j->n_stage; i++)
            moa_buf_printf(&b, " %11.4f", c->loss[i]);
        moa_buf_str(&b, k == j->best ? "  <- best" : "");
    }
    moa_buf_str(&b, "\n");
    const moa_status s = moa_output_save("-", &b, err);
    moa_buf_free(&b);
    return s;
}

static void close_job(job *j) {
    for (int32_t i = 0; i < j->n_found; i++)
        moa_plan_close(&j->found[i].plan);
    for (int i = 0; i < LENGTHS_MAX * N_KIND; i++) {
        lot *t = &j->stages[i / N_KIND].lots[i % N_KIND];
        for (int32_t k = 0; t->full && k < t->items.n; k++)
            free(t->full[k]);
        free(t->full);
        moa_token_items_free(&t->items);
    }
    moa_part_close(&j->part);
    for (int k = 0; k < N_KIND; k++) {
        moa_losses_close(&j->now[k]);
        moa_losses_close(&j->mean[k]);
        moa_items_free(&j->items[k]);
    }
    moa_seq_close(&j->seq);
    moa_load_close(&j->loaded);
    free(j);
}

static moa_status run(const moa_args *args, moa_err *err) {
    const char *data = moa_args_text(args, MOA_OPT_DATA);
    moa_status s = MOA_OK;
    job *j = calloc(1, sizeof *j);
    if (!j) return moa_fail(err, MOA_E_MEMORY, "no memory for the rounds");
    j->args = args;
    moa_interrupt_catch();
    if (!data)
        MOA_TRY(
            moa_fail(err, MOA_E_USAGE, "which items? --data DATA.jsonl, as `moascope calibrate` writes it"));
    if (!moa_args_has(args, MOA_OPT_OUTPUT)) MOA_TRY(moa_fail(err, MOA_E_USAGE, "where to? -o DIR"));
    if (!(moa_args_real(args, OWN_DENSITY) > 0))
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "--density: above 0 and at most 1"));
    MOA_TRY(take_words(j, err));
    MOA_TRY(moa_items_read(&j->items[ANSWERS], data, err));
    if (j->n_kind > 1) MOA_TRY(moa_items_read(&j->items[TEXTS], moa_args_text(args, OWN_TEXT), err));
    MOA_TRY(moa_load(&j->loaded, args, 0, err));
    MOA_TRY(take_lengths(j, err));
    MOA_TRY(take_items(j, err));
    MOA_TRY(resume(j, err));
    MOA_TRY(moa_seq_open(&j->seq, j->loaded.engine, err));
    MOA_TRY(work(j, err));
    MOA_TRY(show(j, err));
    moa_part_remove(&j->part);
out:
    close_job(j);
    return s;
}

static const int options[] = {MOA_OPT_DATA,   MOA_OPT_LENGTHS,   MOA_OPT_PLAN,    MOA_OPT_DEVICE,
                              MOA_OPT_KV,     MOA_OPT_CHUNK,     MOA_OPT_THREADS, MOA_OPT_JSON,
                              MOA_OPT_OUTPUT, MOA_OPT_REFERENCE, MOA_OPT_FORCE,   MOA_OPT_QUIET,
                              MOA_OPT_MODEL,  MOA_OPT_END};
static const moa_option own[] = {
    {"--density", MOA_OPTION_REAL, "D", "0.5", 0, 1, false, "share of the KV kept at every length, at most"},
    {"--rounds", MOA_OPTION_INT, "R", "8", 1, ROUNDS_MAX, false,
     "rounds at most: a profile and two judged plans each, four with texts"},
    {"--step", MOA_OPTION_REAL, "S", "0.25", 0.001, 1, false,
     "how far a round may go: the mean change of the share that a head keeps"},
    {"--path", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false,
     "go down to the density by three quarters of a step a round, not at once"},
    {"--items", MOA_OPTION_INT, "N", "0", 0, 1048576, false,
     "items of each length to profile, its first; 0: half of them"},
    {"--judge", MOA_OPTION_INT, "M", "0", 0, 1048576, false,
     "items of each length to judge plans by, its last; 0: those not profiled"},
    {"--text", MOA_OPTION_TEXT, "TEXT.jsonl", NULL, 0, 0, false,
     "items of running text, whose cross-entropy is to be kept as well"},
    {"--text-weight", MOA_OPTION_REAL, "W", "20", 0, 1000000, false,
     "nats of an answer that a nat a token of text is worth"},
    {"--loss", MOA_OPTION_TEXT, "margin|cross-entropy", "margin", 0, 0, false,
     "what influence on answers is on, as in `profile`"},
    {"--extend", MOA_OPTION_INTS, "N,N,...", NULL, 1, 16777216, false,
     "further lengths at which the density holds, tokens"},
    {"--per", MOA_OPTION_TEXT, "group|head", "group", 0, 0, false,
     "one rule a KV group, or one a query head"},
    {"--alpha-step", MOA_OPTION_INT, "T", "0", 0, 16777216, false, "grid of alpha, tokens, as in `search`"},
    {"--first", MOA_OPTION_TEXT, "DIR", NULL, 0, 0, false,
     "an earlier run of the same items and start, whose first round's influence is taken"},
    {"--gains", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false,
     "judge answers by all of their loss: tokens that are likelier than under full attention make up for others"},
    {0},
};

const moa_batch moa_batch_refine = {
    .name = "refine",
    .help = "find a plan in rounds: profile under the plan, search nearby, judge by the true loss",
    .usage = "MODEL --data DATA.jsonl --lengths 512,1024 --density 0.5 -o DIR",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 1,
    .more = "Begins at full attention or --plan P, a plan that may keep more than the density or less. "
            "DIR/best.json is the plan of the least true "
            "loss within the density, DIR/refine.json the table of all.\n"
            "^C ends it; the same command goes on from DIR/refine.json.part.",
    .run = run,
};
