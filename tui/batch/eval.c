/* eval.c -- `moascope eval`: what a model can still do under span rules, as figures: retrieval, passkey, needle, facts, perplexity, items.
 *
 *   for each length: for each case: make it once, run it under every --plan (greedy), judge       -> table, --json
 *
 * Answers are made --batch at a time: prompts one after the other, then all decode in step, cases and plans mixed. Too much memory for
 * that: half as many from then on.
 * Plans are compared on the same cases. With --json FILE every result goes to FILE.part as it comes, so an interrupted evaluation goes on
 * where it stopped when the same command is given again; the file itself appears whole. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/base/text.h"
#include "core/tasks/answer.h"
#include "core/tasks/cases.h"
#include "core/tasks/loss.h"
#include "core/tasks/part.h"
#include "core/tasks/score.h"
#include "tui/batch/batch.h"
#include "tui/load.h"
#include "version.h"

enum { LENGTH_MAX = 64, PLAN_MAX = 256, NAME_CELLS = 28, BATCH_MAX = 64 };
#define RESULT_MAX ((int64_t)1 << 22)

enum {
    OWN_TASK = MOA_OPT_OWN,
    OWN_ITEMS,
    OWN_DEPTHS,
    OWN_FORM,
    OWN_DOCS,
    OWN_N,
    OWN_SEED,
    OWN_BATCH,
    OWN_QUICK,
};
static const moa_option own[] = {
    {"--task", MOA_OPTION_TEXT, "retrieval|passkey|needle|facts|ppl|jsonl", NULL, 0, 0, false,
     "what to measure"},
    {"--items", MOA_OPTION_INT, "N", "50", 1, 100000, false,
     "cases a length (needle: a cell of the grid; ppl: windows)"},
    {"--depths", MOA_OPTION_INT, "D", "11", 1, 1000, false, "needle: depths from 0 to 1"},
    {"--form", MOA_OPTION_TEXT, "auto|chat|continue", "auto", 0, 0, false,
     "the model's chat template, or plain text that the answer goes on from"},
    {"--docs", MOA_OPTION_LIST, "FILE...", NULL, 0, 0, false,
     "texts, .jsonl or folders: what ppl reads and what fills passkey, needle and facts"},
    {"-n --predict", MOA_OPTION_INT, "N", "0", 0, 100000, false,
     "answer tokens at most; 0: what the task needs"},
    {"--seed -s", MOA_OPTION_INT, "S", "2", 0, 4294967295.0, false,
     "of the synthetic documents (calibrate's is 1)"},
    {"--batch", MOA_OPTION_INT, "N", "8", 1, BATCH_MAX, false, "answers decoded together; 1: one after the other"},
    {"--quick", MOA_OPTION_FLAG, NULL, NULL, 0, 0, false,
     "lengths 512,1024 and 10 cases (needle: 5 depths, 1) unless given"},
    {0},
};
static const int options[] = {MOA_OPT_PLAN, MOA_OPT_LENGTHS, MOA_OPT_DATA,    MOA_OPT_DEVICE,
                              MOA_OPT_KV,   MOA_OPT_CHUNK,   MOA_OPT_THREADS, MOA_OPT_REFERENCE,
                              MOA_OPT_JSON, MOA_OPT_FORCE,   MOA_OPT_QUIET,   MOA_OPT_MODEL,
                              MOA_OPT_END};

typedef struct result {
    bool done, whole;
    int32_t n_prompt, n_gen;
    double depth;
    char *expected, *answer, *source; /* owned or NULL */
    moa_case_score score;
    double loss, loss_late; /* sums, nats: of all judged tokens, of the later half of the window */
    int64_t n_loss, n_late;
    double prefill_s, decode_s, kv_density;
} result;

typedef struct eval {
    const moa_args *args;
    moa_loaded loaded;
    moa_seq *seqs[BATCH_MAX]; /* (n_batch) open ones; [0] always */
    int32_t n_batch;
    moa_task task;
    int32_t lengths[LENGTH_MAX];
    int n_length;
    int32_t n_item, n_depth;
    const char *specs[PLAN_MAX]; /* as given */
    moa_plan *plans[PLAN_MAX];   /* owned */
    int n_plan;
    moa_docs docs;
    moa_items items;
    moa_cases *cases;
    moa_part *part;
    result *results;               /* (length, case, plan): at() */
    int64_t first[LENGTH_MAX + 1]; /* first result of each length */
    double tok_done, tok_total;    /* for the time left */
    float *each;                   /* (longest) losses of a window */
} eval;

static result *at(const eval *e, int l, int32_t i, int p) {
    return &e->results[e->first[l] + (int64_t)i * e->n_plan + p];
}

static bool is_loss(const eval *e) {
    return e->task == MOA_TASK_PPL;
}

/* --- what is asked for ---------------------------------------------------------------------------------------------------------- */

static moa_status parse_lengths(eval *e, moa_err *err) {
    static const int32_t usual[] = {512, 1024, 2048, 4096};
    const int n = moa_args_ints(e->args, MOA_OPT_LENGTHS, e->lengths, LENGTH_MAX);
    if (n > LENGTH_MAX) return moa_fail(err, MOA_E_USAGE, "%d lengths, at most %d", n, LENGTH_MAX);
    if (n > 0) {
        e->n_length = n;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < i; k++)
                if (e->lengths[i] == e->lengths[k])
                    return moa_fail(err, MOA_E_USAGE, "the length %d twice", e->lengths[i]);
        return MOA_OK;
    }
    for (int i = 0; i < (moa_args_has(e->args, OWN_QUICK) ? 2 : 4); i++)
        if (usual[i] <= e->loaded.model->shape.n_ctx) e->lengths[e->n_length++] = usual[i];
    return e->n_length > 0 ? MOA_OK
                           : moa_fail(err, MOA_E_USAGE, "say --lengths: the model's context is %d",
                                      e->loaded.model->shape.n_ctx);
}

static moa_status parse_options(eval *e, moa_err *err) {
    const moa_args *a = e->args;
    const bool quick = moa_args_has(a, OWN_QUICK);
    const char *task = moa_args_text(a, OWN_TASK);
    if (!task)
        return moa_fail(err, MOA_E_USAGE,
                        "--task retrieval, passkey, needle, facts, ppl or jsonl: which one?");
    if (!moa_task_parse(task, &e->task))
        return moa_fail(err, MOA_E_USAGE, "--task %s: it is retrieval, passkey, needle, facts, ppl or jsonl",
                        task);
    const bool needle = e->task == MOA_TASK_NEEDLE;
    e->n_item = (int32_t)moa_args_int(a, OWN_ITEMS);
    e->n_depth = (int32_t)moa_args_int(a, OWN_DEPTHS);
    if (!moa_args_has(a, OWN_ITEMS)) e->n_item = needle ? (quick ? 1 : 3) : quick ? 10 : 50;
    if (!moa_args_has(a, OWN_DEPTHS) && quick) e->n_depth = 5;
    if (e->task == MOA_TASK_JSONL && !moa_args_has(a, MOA_OPT_DATA))
        return moa_fail(err, MOA_E_USAGE, "--task jsonl needs --data DATA.jsonl");
    if (e->task != MOA_TASK_JSONL && moa_args_has(a, MOA_OPT_DATA))
        return moa_fail(err, MOA_E_USAGE,
                        "--data is of --task jsonl; %s makes its documents, or takes --docs", task);
    if (is_loss(e) && !moa_args_has(a, OWN_DOCS))
        return moa_fail(err, MOA_E_USAGE, "--task ppl needs --docs FILE...");
    if ((e->task == MOA_TASK_RETRIEVAL || e->task == MOA_TASK_JSONL) && moa_args_has(a, OWN_DOCS))
        return moa_fail(err, MOA_E_USAGE, "--docs: %s takes no documents", task);
    return MOA_OK;
}

static moa_status read_files(eval *e, moa_err *err) {
    const char *data = moa_args_text(e->args, MOA_OPT_DATA);
    moa_status s = MOA_OK;
    for (int i = 0; moa_args_list(e->args, OWN_DOCS, i); i++)
        MOA_TRY(moa_docs_add(&e->docs, moa_args_list(e->args, OWN_DOCS, i), err));
    if (data) MOA_TRY(moa_items_read(&e->items, data, err));
out:
    return s;
}

static moa_status open_plans(eval *e, moa_err *err) {
    const moa_shape *m = &e->loaded.model->shape;
    const char *spec;
    for (int i = 0; (spec = moa_args_list(e->args, MOA_OPT_PLAN, i)) || i == 0; i++) {
        if (i == PLAN_MAX) return moa_fail(err, MOA_E_USAGE, "more than %d plans", PLAN_MAX);
        e->specs[i] = spec ? spec : "full";
        const moa_status s = moa_plan_open(&e->plans[i], e->specs[i], m->n_layer, m->n_head, err);
        if (s != MOA_OK) return s;
        e->n_plan++;
    }
    return MOA_OK;
}

static moa_status open_cases(eval *e, moa_err *err) {
    moa_form form;
    if (!moa_form_parse(moa_args_text(e->args, OWN_FORM), &form))
        return moa_fail(err, MOA_E_USAGE, "--form %s: it is auto, chat or continue",
                        moa_args_text(e->args, OWN_FORM));
    const moa_cases_config c = {.task = e->task,
                                .form = form,
                                .lengths = e->lengths,
                                .n_length = e->n_length,
                                .n_item = e->n_item,
                                .n_depth = e->n_depth,
                                .n_gen = (int32_t)moa_args_int(e->args, OWN_N),
                                .seed = (uint64_t)moa_args_int(e->args, OWN_SEED),
                                .docs = &e->docs,
                                .items = &e->items};
    moa_status s = moa_cases_open(&e->cases, e->loaded.model, &c, err);
    if (s != MOA_OK) return s;
    int32_t longest = 0;
    for (int l = 0; l < e->n_length; l++) {
        int32_t n_cut, n_skipped;
        const int32_t n = moa_cases_n(e->cases, l);
        const char *why = moa_cases_losses(e->cases, l, &n_cut, &n_skipped);
        if (n_cut || n_skipped)
            moa_remark(e->args, "at %d tokens: %d of %d items cut, %d skipped%s%s", e->lengths[l], n_cut, n,
                       n_skipped, n_skipped ? ": " : "", why);
        e->first[l + 1] = e->first[l] + (int64_t)n * e->n_plan;
        e->tok_total += (double)e->lengths[l] * n * e->n_plan;
        if (e->lengths[l] > longest) longest = e->lengths[l];
    }
    if (e->first[e->n_length] > RESULT_MAX)
        return moa_fail(err, MOA_E_USAGE, "%lld results; at most %lld", (long long)e->first[e->n_length],
                        (long long)RESULT_MAX);
    e->results = calloc((size_t)e->first[e->n_length], sizeof *e->results);
    if (is_loss(e)) e->each = malloc((size_t)longest * sizeof *e->each);
    if (!e->results || (is_loss(e) && !e->each))
        s = moa_fail(err, MOA_E_MEMORY, "no memory for %lld results", (long long)e->first[e->n_length]);
    return s;
}

/* --- resumed ------------------------------------------------------------------------------------------------------------------------ */

static void hash_text(moa_sha256 *h, const char *text) {
    if (text) moa_sha256_add(h, text, strlen(text) + 1);
}

/* What the results depend on. */
static moa_status make_key(const eval *e, moa_buf *key, moa_err *err) {
    moa_sha256 h;
    char hex[65];
    moa_sha256_init(&h);
    for (int32_t i = 0; i < e->docs.n; i++)
        hash_text(&h, e->docs.data[i].text);
    for (int32_t i = 0; i < e->items.n; i++) {
        const moa_item *it = &e->items.data[i];
        hash_text(&h, it->prompt), hash_text(&h, it->context), hash_text(&h, it->question);
        hash_text(&h, it->n_answer ? it->answers[0] : "");
        if (it->ids) moa_sha256_add(&h, it->ids, (size_t)it->n_ids * sizeof *it->ids);
    }
    for (int p = 0; p < e->n_plan; p++)
        moa_sha256_add(&h, e->plans[p]->rules,
                       (size_t)e->plans[p]->n_layer * (size_t)e->plans[p]->n_head * sizeof(moa_rule));
    moa_sha256_hex(&h, hex);
    moa_buf_printf(key, "eval %s, model %s, KV %s, %s, -n %d, seed %lld, %d items, %d depths, lengths",
                   moa_task_name(e->task), e->loaded.model->fingerprint, moa_load_kv_type(e->args),
                   moa_form_name(moa_cases_form(e->cases)), moa_cases_n_gen(e->cases),
                   (long long)moa_args_int(e->args, OWN_SEED), e->n_item, e->n_depth);
    for (int l = 0; l < e->n_length; l++)
        moa_buf_printf(key, " %d", e->lengths[l]);
    moa_buf_printf(key, ", %d plans, files %s", e->n_plan, hex);
    return moa_buf_ok(key) ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the evaluation's key");
}

static void put_text(moa_buf *b, const char *key, const char *text) {
    moa_buf_printf(b, "\"%s\": ", key);
    moa_text_json(text ? text : "", text ? strlen(text) : 0, b);
    moa_buf_str(b, ", ");
}
static void put_number(moa_buf *b, const char *key, double x) {
    moa_buf_printf(b, "\"%s\": ", key);
    moa_json_number(b, x);
    moa_buf_str(b, ", ");
}

/* One result as the members of an object, without braces. */
static void put_result(const eval *e, const result *r, moa_buf *b) {
    if (!isnan(r->depth)) put_number(b, "position", r->depth);
    if (is_loss(e)) {
        put_number(b, "loss", r->loss / (double)r->n_loss);
        put_number(b, "loss_late", r->n_late ? r->loss_late / (double)r->n_late : (double)NAN);
        put_number(b, "n_judged", (double)r->n_loss);
        put_number(b, "n_late", (double)r->n_late);
    } else {
        put_text(b, "expected", r->expected);
        put_text(b, "answer", r->answer);
        moa_buf_printf(b, "\"ended\": %s, ", r->whole ? "true" : "false");
        if (moa_task_synthetic(e->task)) {
            moa_buf_printf(b, "\"right\": %s, ", r->score.exact == 1 ? "true" : "false");
        } else {
            put_number(b, "exact", r->score.exact);
            put_number(b, "f1", r->score.f1);
            put_number(b, "rouge_l", r->score.rouge_l);
        }
    }
    put_text(b, "source", r->source);
    put_number(b, "prompt_tokens", r->n_prompt);
    put_number(b, "answer_tokens", r->n_gen);
    put_number(b, "kv_density", r->kv_density);
    put_number(b, "prefill_s", r->prefill_s);
    put_number(b, "decode_s", r->decode_s);
    b->size -= 2; /* the last comma */
}

static moa_status keep(eval *e, int l, int32_t i, int p, moa_err *err) {
    moa_buf line = {0};
    if (!e->part) return MOA_OK;
    moa_buf_printf(&line, "{\"length\": %d, \"case\": %d, \"plan\": %d, ", e->lengths[l], i, p);
    put_result(e, at(e, l, i, p), &line);
    moa_buf_str(&line, "}");
    const moa_status s = moa_buf_ok(&line) ? moa_part_add(e->part, line.data, line.size, err)
                                           : moa_fail(err, MOA_E_MEMORY, "no memory for a result");
    moa_buf_free(&line);
    return s;
}

static double number_of(const cJSON *o, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(o, key);
    return cJSON_IsNumber(x) ? x->valuedouble : cJSON_IsTrue(x) ? 1 : cJSON_IsFalse(x) ? 0 : (double)NAN;
}
static char *text_of(const cJSON *o, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(o, key);
    return strdup(cJSON_IsString(x) ? x->valuestring : "");
}
/* a whole number in [0, end), else -1 */
static int64_t index_of(const cJSON *o, const char *key, int64_t end) {
    const double x = number_of(o, key);
    return x >= 0 && x < (double)end && x == floor(x) ? (int64_t)x : -1;
}

static void take_result(eval *e, const cJSON *o, result *r) {
    *r = (result){.done = true,
                  .whole = number_of(o, "ended") == 1,
                  .depth = number_of(o, "position"),
                  .n_prompt = (int32_t)index_of(o, "prompt_tokens", 1 << 24),
                  .n_gen = (int32_t)index_of(o, "answer_tokens", 1 << 24),
                  .expected = text_of(o, "expected"),
                  .answer = text_of(o, "answer"),
                  .source = text_of(o, "source"),
                  .score = {number_of(o, moa_task_synthetic(e->task) ? "right" : "exact"), number_of(o, "f1"),
                            number_of(o, "rouge_l")},
                  .prefill_s = number_of(o, "prefill_s"),
                  .decode_s = number_of(o, "decode_s"),
                  .kv_density = number_of(o, "kv_density")};
    if (!is_loss(e)) return;
    r->n_loss = index_of(o, "n_judged", 1 << 24);
    r->n_late = index_of(o, "n_late", 1 << 24);
    r->loss = number_of(o, "loss") * (double)r->n_loss;
    r->loss_late = r->n_late > 0 ? number_of(o, "loss_late") * (double)r->n_late : 0;
}

/* A line of FILE.part. What does not fit this evaluation is refused: the key was equal, so the file is damaged. */
static moa_status resume_line(eval *e, const char *line, size_t n, int32_t number, moa_err *err) {
    moa_status s = moa_json_check(line, n, NULL);
    cJSON *o = s == MOA_OK ? cJSON_ParseWithLength(line, n) : NULL;
    const int64_t length = index_of(o, "length", INT32_MAX), p = index_of(o, "plan", e->n_plan);
    int l = 0;
    while (l < e->n_length && e->lengths[l] != length)
        l++;
    const int64_t i = l < e->n_length ? index_of(o, "case", moa_cases_n(e->cases, l)) : -1;
    if (i < 0 || p < 0) {
        s = moa_fail(err, MOA_E_INVALID,
                     "%s: line %d is not a result of this evaluation; remove the file, or say --force",
                     moa_part_path(e->part), number + 2);
    } else if (!at(e, l, (int32_t)i, (int)p)->done) {
        result *r = at(e, l, (int32_t)i, (int)p);
        take_result(e, o, r);
        e->tok_done += e->lengths[l];
        if (is_loss(e) ? r->n_loss < 1 || r->n_late < 0 || !isfinite(r->loss) : !isfinite(r->score.exact))
            s = moa_fail(err, MOA_E_INVALID,
                         "%s: line %d is a result without figures; remove the file, or say --force",
                         moa_part_path(e->part), number + 2);
    }
    cJSON_Delete(o);
    return s;
}

static moa_status resume(eval *e, moa_err *err) {
    const char *path = moa_args_text(e->args, MOA_OPT_JSON);
    moa_buf key = {0};
    moa_status s = MOA_OK;
    if (!path || strcmp(path, "-") == 0) return MOA_OK;
    MOA_TRY(make_key(e, &key, err));
    MOA_TRY(moa_part_open(&e->part, path, key.data, moa_args_has(e->args, MOA_OPT_FORCE), err));
    for (int32_t i = 0; i < moa_part_n(e->part); i++) {
        size_t n;
        const char *line = moa_part_line(e->part, i, &n);
        MOA_TRY(resume_line(e, line, n, i, err));
    }
    if (moa_part_n(e->part) > 0)
        moa_remark(e->args, "%s: %d of %lld results are there already", moa_part_path(e->part),
                   moa_part_n(e->part), (long long)e->first[e->n_length]);
out:
    moa_buf_free(&key);
    return s;
}

/* --- run ------------------------------------------------------------------------------------------------------------------------------ */

static void on_progress(void *user, int32_t done, int32_t total) {
    const eval *e = user;
    (void)total;
    moa_progress_show(e->args, moa_task_name(e->task), e->tok_done + done, e->tok_total, "tokens");
}

static char *copy(const char *text) {
    return strdup(text ? text : "");
}

/* a result under way: which it is, and its case, made once for all its plans */
typedef struct asked {
    moa_case *c; /* borrowed */
    int32_t i;
    int p;
} asked;

static void take_answer(eval *e, int l, const asked *x, const moa_answer *a) {
    result *r = at(e, l, x->i, x->p);
    r->answer = copy(a->text.data);
    r->score = moa_cases_judge(e->cases, x->c, r->answer ? r->answer : "");
    r->n_gen = a->n_gen;
    r->whole = a->whole;
    r->prefill_s = a->prefill_s;
    r->decode_s = a->decode_s;
    r->kv_density = a->kv_density;
}

static moa_status run_answers(eval *e, int l, const asked *x, int32_t n, moa_err *err) {
    moa_ask asks[BATCH_MAX] = {0};
    moa_answer answers[BATCH_MAX] = {0};
    for (int32_t k = 0; k < n; k++)
        asks[k] = (moa_ask){.ids = x[k].c->tokens.ids,
                            .n_ids = x[k].c->tokens.n,
                            .n_gen = moa_cases_n_gen(e->cases),
                            .rules = e->plans[x[k].p]->rules,
                            .stop = x[k].c->stop,
                            .progress = on_progress,
                            .cancelled = moa_interrupted,
                            .user = e};
    const moa_status s = n == 1 ? moa_answer_make(e->seqs[0], &asks[0], &answers[0], err)
                                : moa_answer_batch(e->seqs, asks, n, answers, err);
    for (int32_t k = 0; k < n; k++) {
        if (s == MOA_OK) take_answer(e, l, &x[k], &answers[k]);
        moa_answer_free(&answers[k]);
    }
    return s;
}

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static moa_status run_loss(eval *e, const moa_case *c, int p, result *r, moa_err *err) {
    const moa_loss_job job = {.ids = c->tokens.ids,
                              .n = c->tokens.n,
                              .from = c->tokens.supervise_from,
                              .rules = e->plans[p]->rules,
                              .each = e->each,
                              .progress = on_progress,
                              .cancelled = moa_interrupted,
                              .user = e};
    moa_loss loss = {0};
    const double start = now_s();
    const moa_status s = moa_loss_add(e->seqs[0], &job, &loss, err);
    if (s != MOA_OK) return s;
    const int32_t n = c->tokens.n - c->tokens.supervise_from;
    for (int32_t i = c->tokens.n / 2 - c->tokens.supervise_from; i < n; i++)
        if (i >= 0) r->loss_late += (double)e->each[i], r->n_late++;
    r->loss = loss.sum;
    r->n_loss = loss.n;
    r->prefill_s = now_s() - start;
    r->kv_density = moa_seq_kv_density(e->seqs[0]);
    return MOA_OK;
}

/* the result is whole: into the part file with it */
static moa_status finish(eval *e, int l, const asked *x, moa_err *err) {
    result *r = at(e, l, x->i, x->p);
    r->depth = x->c->depth;
    r->n_prompt = x->c->tokens.n;
    r->expected = copy(x->c->n_expected ? x->c->expected[0] : "");
    r->source = copy(x->c->source);
    if (!r->expected || !r->source || (!is_loss(e) && !r->answer))
        return moa_fail(err, MOA_E_MEMORY, "no memory for a result");
    r->done = true;
    e->tok_done += e->lengths[l];
    return keep(e, l, x->i, x->p, err);
}

/* Fewer at once, from now on: sequences that are not needed give their pages back. */
static void halve(eval *e, const moa_err *why) {
    e->n_batch /= 2;
    for (int32_t k = e->n_batch; k < BATCH_MAX; k++)
        moa_seq_close(&e->seqs[k]);
    for (int32_t k = 0; k < e->n_batch; k++)
        moa_seq_reset(e->seqs[k]);
    (void)moa_engine_hold(e->loaded.engine, NULL, 0, NULL);
    moa_remark(e->args, "%d answers at a time from here on: %s", e->n_batch, why->text);
}

/* n results that belong together, at most n_batch of them at a time */
static moa_status run_together(eval *e, int l, const asked *x, int32_t n, moa_err *err) {
    moa_status s = MOA_OK;
    for (int32_t done = 0, now; done < n && s == MOA_OK; done += s == MOA_OK ? now : 0) {
        now = n - done < e->n_batch ? n - done : e->n_batch;
        if (moa_interrupted(NULL)) return moa_fail(err, MOA_E_CANCELLED, "interrupted");
        s = is_loss(e) ? run_loss(e, x[done].c, x[done].p, at(e, l, x[done].i, x[done].p), err)
                       : run_answers(e, l, x + done, now, err);
        if (s == MOA_E_MEMORY && now > 1) {
            halve(e, err);
            *err = (moa_err){0};
            s = MOA_OK, now = 0;
        }
        for (int32_t k = 0; k < now && s == MOA_OK; k++)
            s = finish(e, l, &x[done + k], err);
    }
    return s;
}

/* a length's results that are not there yet, n_batch by n_batch */
static moa_status run_length(eval *e, int l, moa_err *err) {
    moa_case cases[BATCH_MAX + 1] = {0}; /* of x, and one before them whose results are done */
    asked x[BATCH_MAX];
    int32_t n = 0, n_case = 0;
    moa_status s = MOA_OK;
    for (int32_t i = 0; i < moa_cases_n(e->cases, l) && s == MOA_OK; i++) {
        bool made = false;
        for (int p = 0; p < e->n_plan && s == MOA_OK; p++) {
            if (at(e, l, i, p)->done) continue;
            if (!made) s = moa_cases_make(e->cases, l, i, &cases[n_case++], err);
            made = true;
            x[n++] = (asked){&cases[n_case - 1], i, p};
            if (s != MOA_OK || n < e->n_batch) continue;
            s = run_together(e, l, x, n, err);
            for (int32_t k = 0; k + 1 < n_case; k++)
                moa_case_free(&cases[k]);
            moa_case last = cases[n_case - 1]; /* its other plans are to come */
            memset(cases, 0, sizeof cases);
            cases[0] = last;
            n = 0, n_case = 1;
        }
    }
    if (s == MOA_OK && n > 0) s = run_together(e, l, x, n, err);
    for (int32_t k = 0; k <= BATCH_MAX; k++)
        moa_case_free(&cases[k]);
    return s;
}

static moa_status open_seqs(eval *e, moa_err *err) {
    moa_status s = MOA_OK;
    const int32_t chunk = (int32_t)moa_args_int(e->args, MOA_OPT_CHUNK);
    e->n_batch = is_loss(e) ? 1 : (int32_t)moa_args_int(e->args, OWN_BATCH);
    if (chunk > 0 && chunk < e->n_batch) e->n_batch = chunk; /* a step is a chunk of so many tokens */
    for (int32_t k = 0; k < e->n_batch && s == MOA_OK; k++)
        s = moa_seq_open(&e->seqs[k], e->loaded.engine, err);
    return s;
}

static moa_status run_all(eval *e, moa_err *err) {
    moa_status s = MOA_OK;
    int64_t n_done = 0;
    for (int l = 0; l < e->n_length && s == MOA_OK; l++)
        s = run_length(e, l, err);
    moa_progress_show(e->args, moa_task_name(e->task), 1, 1, "tokens");
    for (int64_t k = 0; k < e->first[e->n_length]; k++)
        n_done += e->results[k].done;
    if (s == MOA_E_CANCELLED)
        s = moa_fail(err, s, "interrupted after %lld of %lld results%s", (long long)n_done,
                     (long long)e->first[e->n_length],
                     e->part ? "; the same command goes on from there"
                             : "; with --json FILE they would have been kept");
    return s;
}

/* --- summed up -------------------------------------------------------------------------------------------------------------------------- */

typedef struct summary {
    int64_t n, n_right; /* cases done, right ones (exact) */
    double accuracy, low, high;
    double f1, rouge_l;              /* means; NAN: not of this task */
    double loss, loss_se, loss_late; /* nats a token; standard error over windows */
    int64_t n_judged;
    int64_t decile_n[10], decile_right[10];
    double prompt_tokens, kv_density, prefill_s, decode_s; /* mean, mean, sums */
} summary;

static void add_loss(summary *s, const eval *e, int l, int p) {
    double sum = 0, late = 0, squares = 0;
    int64_t n_late = 0;
    for (int32_t i = 0; i < moa_cases_n(e->cases, l); i++) {
        const result *r = at(e, l, i, p);
        if (!r->done) continue;
        sum += r->loss, s->n_judged += r->n_loss;
        late += r->loss_late, n_late += r->n_late;
    }
    s->loss = sum / (double)s->n_judged;
    s->loss_late = late / (double)n_late;
    for (int32_t i = 0; i < moa_cases_n(e->cases, l); i++) {
        const result *r = at(e, l, i, p);
        if (r->done) squares += pow(r->loss / (double)r->n_loss - s->loss, 2);
    }
    s->loss_se = s->n > 1 ? sqrt(squares / (double)(s->n - 1) / (double)s->n) : (double)NAN;
}

static summary sum_up(const eval *e, int l, int p) {
    summary s = {0};
    for (int32_t i = 0; i < moa_cases_n(e->cases, l); i++) {
        const result *r = at(e, l, i, p);
        if (!r->done) continue;
        const bool right = r->score.exact == 1;
        s.n++;
        s.n_right += right;
        s.f1 += r->score.f1;
        s.rouge_l += r->score.rouge_l;
        s.prompt_tokens += r->n_prompt;
        s.kv_density += r->kv_density;
        s.prefill_s += r->prefill_s;
        s.decode_s += r->decode_s;
        if (isnan(r->depth)) continue;
        const int d = r->depth >= 1 ? 9 : (int)(r->depth * 10);
        s.decile_n[d]++;
        s.decile_right[d] += right;
    }
    const double n = (double)s.n;
    s.accuracy = (double)s.n_right / n;
    s.f1 /= n, s.rouge_l /= n, s.prompt_tokens /= n, s.kv_density /= n;
    moa_score_wilson(s.n_right, s.n, &s.low, &s.high);
    if (is_loss(e)) add_loss(&s, e, l, p);
    return s;
}

/* the longest length with at least 90 % right; 0: none */
static int32_t effective_context(const eval *e, int p) {
    int32_t longest = 0;
    for (int l = 0; l < e->n_length; l++) {
        const summary s = sum_up(e, l, p);
        if (s.n > 0 && 10 * s.n_right >= 9 * s.n && e->lengths[l] > longest) longest = e->lengths[l];
    }
    return longest;
}

static moa_plan_at_n described(const eval *e, int p, int l) {
    return moa_plan_describe(e->plans[p], e->lengths[l], e->loaded.model->shape.n_head_kv);
}

/* --- the table ------------------------------------------------------------------------------------------------------------------------------ */

static void put_cell(const eval *e, int l, int p, moa_buf *out) {
    const summary s = sum_up(e, l, p);
    if (s.n == 0)
        moa_buf_printf(out, "%16s", "-");
    else if (is_loss(e))
        moa_buf_printf(out, "%10.4g %+4.1f%%", exp(s.loss), 100 * (exp(s.loss - sum_up(e, l, 0).loss) - 1));
    else if (e->task == MOA_TASK_JSONL)
        moa_buf_printf(out, "   %4.2f %4.2f %4.2f", s.accuracy, s.f1, s.rouge_l);
    else
        moa_buf_printf(out, "  %4.2f %4.2f-%4.2f", s.accuracy, s.low, s.high);
}

static void put_name(const char *name, moa_buf *out) {
    moa_buf clean = {0};
    moa_text_clean(name, strlen(name), MOA_TEXT_LINE, &clean);
    const size_t n = clean.size,
                 skip = n > NAME_CELLS ? n - NAME_CELLS : 0; /* of a path its end tells more */
    size_t from = skip;
    while (from < n && ((unsigned char)clean.data[from] & 0xC0) == 0x80)
        from++;
    const int used = clean.data ? moa_text_cut(clean.data + from, n - from, NAME_CELLS, out) : 0;
    moa_buf_printf(out, "%*s", NAME_CELLS - used, "");
    moa_buf_free(&clean);
}

static void put_grid(const eval *e, int p, moa_buf *out) {
    moa_buf_printf(out, "\n%s: share right, depth against length\n   depth", e->specs[p]);
    for (int l = 0; l < e->n_length; l++)
        moa_buf_printf(out, " %7d", e->lengths[l]);
    moa_buf_str(out, "\n");
    for (int32_t d = 0; d < e->n_depth; d++) {
        moa_buf_printf(out, "    %4.2f", e->n_depth > 1 ? d / (double)(e->n_depth - 1) : 0.5);
        for (int l = 0; l < e->n_length; l++) {
            int n = 0, right = 0;
            for (int32_t i = d; i < moa_cases_n(e->cases, l); i += e->n_depth)
                n += at(e, l, i, p)->done, right += at(e, l, i, p)->done && at(e, l, i, p)->score.exact == 1;
            if (n > 0)
                moa_buf_printf(out, " %7.2f", right / (double)n);
            else
                moa_buf_printf(out, " %7s", "-");
        }
        moa_buf_str(out, "\n");
    }
}

static void put_table(const eval *e, moa_buf *out) {
    const int last = e->n_length - 1;
    moa_buf_printf(out, "%s, %s, form %s; %s\n%-*s %6s", moa_task_name(e->task), e->loaded.model->name,
                   is_loss(e) ? "text" : moa_form_name(moa_cases_form(e->cases)),
                   is_loss(e)                  ? "perplexity, and against the first plan"
                   : e->task == MOA_TASK_JSONL ? "exact match, F1, ROUGE-L"
                                               : "share right and its 95 % interval",
                   NAME_CELLS, "plan", "KV %");
    for (int l = 0; l < e->n_length; l++)
        moa_buf_printf(out, "%16d", e->lengths[l]);
    if (moa_task_synthetic(e->task)) moa_buf_str(out, "  effective");
    moa_buf_str(out, "\n");
    for (int p = 0; p < e->n_plan; p++) {
        put_name(e->specs[p], out);
        moa_buf_printf(out, " %6.1f", 100 * described(e, p, last).kv_density_grouped);
        for (int l = 0; l < e->n_length; l++)
            put_cell(e, l, p, out);
        if (moa_task_synthetic(e->task)) moa_buf_printf(out, " %10d", effective_context(e, p));
        moa_buf_str(out, "\n");
    }
    for (int p = 0; e->task == MOA_TASK_NEEDLE && p < e->n_plan; p++)
        put_grid(e, p, out);
}

/* --- JSON ------------------------------------------------------------------------------------------------------------------------------------- */

static void put_deciles(const summary *s, moa_buf *b) {
    moa_buf_str(b, "\"deciles\": [");
    for (int d = 0; d < 10; d++)
        moa_buf_printf(b, "%s{\"n\": %lld, \"right\": %lld}", d ? ", " : "", (long long)s->decile_n[d],
                       (long long)s->decile_right[d]);
    moa_buf_str(b, "], ");
}

static void put_length(const eval *e, int l, int p, moa_buf *b) {
    const summary s = sum_up(e, l, p);
    const moa_plan_at_n d = described(e, p, l);
    moa_buf_printf(b, "    {\"length\": %d, \"n\": %lld, ", e->lengths[l], (long long)s.n);
    if (is_loss(e)) {
        put_number(b, "perplexity", exp(s.loss));
        put_number(b, "loss", s.loss);
        put_number(b, "loss_standard_error", s.loss_se);
        put_number(b, "loss_late", s.loss_late);
        put_number(b, "n_judged", (double)s.n_judged);
    } else {
        put_number(b, "accuracy", s.accuracy);
        put_number(b, "n_right", (double)s.n_right);
        put_number(b, "low", s.low);
        put_number(b, "high", s.high);
        if (moa_task_synthetic(e->task))
            put_deciles(&s, b);
        else
            put_number(b, "exact", s.accuracy), put_number(b, "f1", s.f1),
                put_number(b, "rouge_l", s.rouge_l);
    }
    put_number(b, "span_mean", d.span_mean);
    put_number(b, "kv_density_plan", d.kv_density_grouped);
    put_number(b, "kv_density", s.kv_density);
    put_number(b, "prompt_tokens", s.prompt_tokens);
    put_number(b, "prefill_s", s.prefill_s);
    put_number(b, "decode_s", s.decode_s);
    moa_buf_str(b, "\"items\": [\n");
    for (int32_t i = 0; i < moa_cases_n(e->cases, l); i++) {
        moa_buf_str(b, i ? ",\n      {" : "      {");
        put_result(e, at(e, l, i, p), b);
        moa_buf_str(b, "}");
    }
    moa_buf_str(b, "]}");
}

static void put_plan(const eval *e, int p, moa_buf *b) {
    put_text(b, "plan", e->specs[p]);
    if (moa_task_synthetic(e->task)) put_number(b, "effective_context", effective_context(e, p));
    moa_buf_str(b, "\"lengths\": [\n");
    for (int l = 0; l < e->n_length; l++) {
        put_length(e, l, p, b);
        moa_buf_str(b, l + 1 < e->n_length ? ",\n" : "\n");
    }
    moa_buf_str(b, "  ]");
}

/* One plan: its members stand in the top object; several: in "plans". */
static void put_json(const eval *e, moa_buf *b) {
    const moa_model *m = e->loaded.model;
    moa_buf_str(b, "{");
    put_text(b, "task", moa_task_name(e->task));
    put_text(b, "model", m->name);
    put_text(b, "fingerprint", m->fingerprint);
    put_text(b, "device", e->loaded.device);
    put_text(b, "device_why", e->loaded.why);
    put_text(b, "kv_type", moa_load_kv_type(e->args));
    put_text(b, "form", moa_form_name(moa_cases_form(e->cases)));
    put_number(b, "answer_limit", moa_cases_n_gen(e->cases));
    put_number(b, "seed", (double)moa_args_int(e->args, OWN_SEED));
    if (e->task == MOA_TASK_NEEDLE) put_number(b, "depths", e->n_depth);
    put_text(b, "version", MOA_VERSION);
    moa_buf_str(b, "\n  ");
    if (e->n_plan > 1) moa_buf_str(b, "\"plans\": [{");
    for (int p = 0; p < e->n_plan; p++) {
        moa_buf_str(b, p ? "},\n  {" : "");
        put_plan(e, p, b);
    }
    moa_buf_str(b, e->n_plan > 1 ? "}]}\n" : "}\n");
}

/* --- in all ----------------------------------------------------------------------------------------------------------------------------------- */

static void close_eval(eval *e) {
    for (int64_t k = 0; e->results && k < e->first[e->n_length]; k++) {
        free(e->results[k].expected);
        free(e->results[k].answer);
        free(e->results[k].source);
    }
    free(e->results);
    free(e->each);
    moa_part_close(&e->part);
    moa_cases_close(&e->cases);
    moa_items_free(&e->items);
    moa_docs_free(&e->docs);
    for (int p = 0; p < e->n_plan; p++)
        moa_plan_close(&e->plans[p]);
    for (int k = 0; k < BATCH_MAX; k++)
        moa_seq_close(&e->seqs[k]);
    moa_load_close(&e->loaded);
}

static moa_status show(const eval *e, moa_status ran, moa_err *err) {
    const char *path = moa_args_text(e->args, MOA_OPT_JSON);
    const bool to_stdout = path && strcmp(path, "-") == 0;
    moa_buf json = {0}, table = {0};
    moa_status s = MOA_OK;
    put_table(e, &table);
    if (path && ran == MOA_OK) {
        put_json(e, &json);
        MOA_TRY(moa_output_save(path, &json, err));
    }
    if (!to_stdout) s = moa_output_save("-", &table, ran == MOA_OK ? err : NULL);
out:
    moa_buf_free(&json);
    moa_buf_free(&table);
    return s;
}

static moa_status run(const moa_args *args, moa_err *err) {
    eval e = {.args = args};
    moa_status s = MOA_OK;
    moa_interrupt_catch();
    MOA_TRY(parse_options(&e, err));
    MOA_TRY(read_files(&e, err));
    MOA_TRY(moa_load(&e.loaded, args, 0, err));
    MOA_TRY(parse_lengths(&e, err));
    MOA_TRY(open_plans(&e, err));
    MOA_TRY(open_cases(&e, err));
    MOA_TRY(resume(&e, err));
    MOA_TRY(open_seqs(&e, err));
    s = run_all(&e, err);
    if (s == MOA_OK) {
        MOA_TRY(show(&e, s, err));
        moa_part_remove(&e.part);
    } else if (s == MOA_E_CANCELLED) {
        (void)show(&e, s, err);
    }
out:
    close_eval(&e);
    return s;
}

const moa_batch moa_batch_eval = {
    .name = "eval",
    .help = "what a model can still do under span rules: retrieval, passkey, needle, facts, perplexity, "
            "JSONL items",
    .usage = "MODEL --task retrieval|passkey|needle|facts [--plan P ...] [--lengths N,N]\nMODEL --task ppl "
             "--docs FILE... "
             "[--plan P ...]\nMODEL --task jsonl --data DATA.jsonl [--plan P ...]",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 1,
    .more = "--plan may be repeated: all plans are measured on the same cases and shown in one table.\n"
            "effective: the longest length with at least 90 % right. KV %: kept at the longest length, one "
            "cache per KV head.\n"
            "^C ends the evaluation; with --json FILE the same command goes on from FILE.part.",
    .run = run,
};
