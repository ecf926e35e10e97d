/* validate.c -- `moascope validate`: which plan of a folder keeps held-out answers likeliest at a length, and DIR/best.json.
 *
 *   plan_*.json of DIR  x  items of DATA.jsonl, cut to N  ->  mean cross-entropy of the supervised tokens  ->  the lowest is chosen
 *
 * Full attention and every --plan are measured too, for comparison; they are not chosen. Spans are those of a run that reserves just the
 * item's tokens; prefill sees what decoding would see (spans.h), so one teacher-forced pass judges both. Losses of finished items are kept
 * in DIR/best.json.part: an interrupted validation goes on. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/base/text.h"
#include "core/tasks/items.h"
#include "core/tasks/loss.h"
#include "core/tasks/part.h"
#include "tui/batch/batch.h"
#include "tui/load.h"
#include "version.h"

enum { PLAN_MAX = 1024, NAME_CELLS = 28 };
enum { OWN_PLANS = MOA_OPT_OWN, OWN_ITEMS, OWN_FORM };
static const moa_option own[] = {
    {"--plans", MOA_OPTION_TEXT, "DIR", NULL, 0, 0, false,
     "the folder with plan_*.json; best.json is written there"},
    {"--items", MOA_OPTION_INT, "N", "0", 0, 1048576, false, "items to use at most; 0: all"},
    {"--form", MOA_OPTION_TEXT, "auto|chat|continue", "auto", 0, 0, false,
     "for items that do not say theirs"},
    {0},
};
static const int options[] = {MOA_OPT_DATA, MOA_OPT_LENGTH, MOA_OPT_PLAN,    MOA_OPT_DEVICE,
                              MOA_OPT_KV,   MOA_OPT_CHUNK,  MOA_OPT_THREADS, MOA_OPT_REFERENCE,
                              MOA_OPT_JSON, MOA_OPT_FORCE,  MOA_OPT_QUIET,   MOA_OPT_MODEL,
                              MOA_OPT_END};

typedef struct candidate {
    char *name;     /* file name or spec, owned */
    moa_plan *plan; /* owned */
    bool from_dir;  /* may be chosen */
    moa_loss loss;  /* over all items */
    double *items;  /* (n_item) sums, NAN: not yet; owned */
} candidate;

typedef struct job {
    const moa_args *args;
    moa_loaded loaded;
    moa_seq *seq;
    moa_items items;
    moa_token_items tokens;
    int32_t length;
    candidate plans[PLAN_MAX];
    int n_plan, best; /* best: -1: none */
    moa_part *part;
    double tok_done, tok_total;
} job;

/* --- what is compared -------------------------------------------------------------------------------------------------------------- */

static moa_status add_plan(job *j, const char *name, const char *path, bool from_dir, moa_err *err) {
    const moa_shape *m = &j->loaded.model->shape;
    if (j->n_plan == PLAN_MAX) return moa_fail(err, MOA_E_INVALID, "more than %d plans", PLAN_MAX);
    candidate *c = &j->plans[j->n_plan];
    *c = (candidate){.from_dir = from_dir, .name = strdup(name)};
    j->n_plan++;
    if (!c->name) return moa_fail(err, MOA_E_MEMORY, "no memory for plan %s", name);
    return moa_plan_open(&c->plan, path, m->n_layer, m->n_head, err);
}

static int wanted(const struct dirent *e) {
    const size_t n = strlen(e->d_name);
    return strncmp(e->d_name, "plan_", 5) == 0 && n > 10 && strcmp(e->d_name + n - 5, ".json") == 0;
}
static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name); /* not by the locale */
}

static moa_status add_folder(job *j, const char *dir, moa_err *err) {
    struct dirent **list = NULL;
    const int n = scandir(dir, &list, wanted, by_name);
    moa_status s = MOA_OK;
    if (n < 0) return moa_fail(err, MOA_E_IO, "%s: cannot list the folder: %s", dir, strerror(errno));
    if (n == 0) s = moa_fail(err, MOA_E_INVALID, "%s: there is no plan_*.json in the folder", dir);
    for (int i = 0; i < n && s == MOA_OK; i++) {
        char path[PATH_MAX];
        if (snprintf(path, sizeof path, "%s/%s", dir, list[i]->d_name) >= (int)sizeof path)
            s = moa_fail(err, MOA_E_INVALID, "%s/%s: the path is too long", dir, list[i]->d_name);
        else
            s = add_plan(j, list[i]->d_name, path, true, err);
    }
    for (int i = 0; i < n; i++)
        free(list[i]);
    free(list);
    return s;
}

static moa_status open_plans(job *j, moa_err *err) {
    const char *spec;
    moa_status s = MOA_OK;
    MOA_TRY(add_plan(j, "full", "full", false, err));
    for (int i = 0; (spec = moa_args_list(j->args, MOA_OPT_PLAN, i)); i++)
        if (strcmp(spec, "full") != 0) MOA_TRY(add_plan(j, spec, spec, false, err));
    MOA_TRY(add_folder(j, moa_args_text(j->args, OWN_PLANS), err));
out:
    return s;
}

static moa_status encode_items(job *j, moa_err *err) {
    moa_encode how = {.n_max = j->length};
    moa_status s = MOA_OK;
    if (!moa_form_parse(moa_args_text(j->args, OWN_FORM), &how.form))
        return moa_fail(err, MOA_E_USAGE, "--form %s: it is auto, chat or continue",
                        moa_args_text(j->args, OWN_FORM));
    if (j->length > j->loaded.model->shape.n_ctx)
        return moa_fail(err, MOA_E_USAGE, "--length %d: the model's context is %d", j->length,
                        j->loaded.model->shape.n_ctx);
    MOA_TRY(moa_items_encode(j->loaded.model, &j->items, &how, (int32_t)moa_args_int(j->args, OWN_ITEMS),
                             &j->tokens, err));
    if (j->tokens.n == 0)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "none of %d items fits %d tokens: %s", j->items.n, j->length,
                         j->tokens.why));
    moa_remark(j->args,
               "%d items, %lld tokens, %lld of them supervised; %d cut by %lld tokens in all, %d skipped%s%s",
               j->tokens.n, (long long)j->tokens.n_tok, (long long)j->tokens.n_supervised, j->tokens.n_cut,
               (long long)j->tokens.n_tok_cut, j->tokens.n_skipped, j->tokens.n_skipped ? ": " : "",
               j->tokens.why);
    for (int p = 0; p < j->n_plan; p++) {
        j->plans[p].items = malloc((size_t)j->tokens.n * sizeof(double));
        if (!j->plans[p].items) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d losses", j->tokens.n));
        for (int32_t i = 0; i < j->tokens.n; i++)
            j->plans[p].items[i] = (double)NAN;
    }
    j->tok_total = (double)j->tokens.n_tok * j->n_plan;
out:
    return s;
}

/* --- resumed ---------------------------------------------------------------------------------------------------------------------------- */

static moa_status make_key(const job *j, moa_buf *key, moa_err *err) {
    moa_sha256 h;
    char hex[65];
    moa_sha256_init(&h);
    for (int32_t i = 0; i < j->tokens.n; i++) {
        moa_sha256_add(&h, j->tokens.data[i].ids, (size_t)j->tokens.data[i].n * sizeof(int32_t));
        moa_sha256_add(&h, &j->tokens.data[i].supervise_from, sizeof(int32_t));
    }
    for (int p = 0; p < j->n_plan; p++) {
        const moa_plan *plan = j->plans[p].plan;
        moa_sha256_add(&h, plan->rules, (size_t)plan->n_layer * (size_t)plan->n_head * sizeof(moa_rule));
    }
    moa_sha256_hex(&h, hex);
    moa_buf_printf(key, "validate, model %s, KV %s, length %d, %d items, %d plans, %s",
                   j->loaded.model->fingerprint, moa_load_kv_type(j->args), j->length, j->tokens.n, j->n_plan,
                   hex);
    return moa_buf_ok(key) ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the key of the validation");
}

/* "PLAN ITEM SUM" */
static moa_status resume_line(job *j, int32_t number, moa_err *err) {
    char copy[96], *end = NULL;
    size_t n;
    const char *line = moa_part_line(j->part, number, &n);
    long p = -1, i = -1;
    double sum = (double)NAN;
    if (n < sizeof copy) {
        memcpy(copy, line, n);
        copy[n] = 0;
        p = strtol(copy, &end, 10);
        i = strtol(end, &end, 10);
        sum = strtod(end, &end);
    }
    if (!end || *end || p < 0 || p >= j->n_plan || i < 0 || i >= j->tokens.n || !isfinite(sum))
        return moa_fail(err, MOA_E_INVALID,
                        "%s: line %d is not a loss of this validation; remove the file, or say --force",
                        moa_part_path(j->part), number + 2);
    if (isnan(j->plans[p].items[i])) j->tok_done += j->tokens.data[i].n;
    j->plans[p].items[i] = sum;
    return MOA_OK;
}

static moa_status resume(job *j, const char *best, moa_err *err) {
    moa_buf key = {0};
    moa_status s = MOA_OK;
    MOA_TRY(make_key(j, &key, err));
    MOA_TRY(moa_part_open(&j->part, best, key.data, moa_args_has(j->args, MOA_OPT_FORCE), err));
    for (int32_t k = 0; k < moa_part_n(j->part); k++)
        MOA_TRY(resume_line(j, k, err));
    if (moa_part_n(j->part) > 0)
        moa_remark(j->args, "%s: %d of %lld losses are there already", moa_part_path(j->part),
                   moa_part_n(j->part), (long long)j->n_plan * j->tokens.n);
out:
    moa_buf_free(&key);
    return s;
}

/* --- run ---------------------------------------------------------------------------------------------------------------------------------- */

static void on_progress(void *user, int32_t done, int32_t total) {
    const job *j = user;
    (void)total;
    moa_progress_show(j->args, "validate", j->tok_done + done, j->tok_total, "tokens");
}

static moa_status run_item(job *j, int p, int32_t i, moa_err *err) {
    const moa_tokens *t = &j->tokens.data[i];
    const moa_loss_job work = {.ids = t->ids,
                               .n = t->n,
                               .from = t->supervise_from,
                               .rules = j->plans[p].plan->rules,
                               .progress = on_progress,
                               .cancelled = moa_interrupted,
                               .user = j};
    moa_loss loss = {0};
    moa_buf line = {0};
    moa_status s = MOA_OK;
    MOA_TRY(moa_loss_add(j->seq, &work, &loss, err));
    moa_buf_printf(&line, "%d %d ", p, i);
    moa_json_number(&line, loss.sum);
    if (!moa_buf_ok(&line)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for a loss"));
    MOA_TRY(moa_part_add(j->part, line.data, line.size, err));
    j->plans[p].items[i] = loss.sum;
    j->tok_done += t->n;
out:
    moa_buf_free(&line);
    return s;
}

static moa_status run_all(job *j, moa_err *err) {
    moa_status s = MOA_OK;
    for (int p = 0; p < j->n_plan && s == MOA_OK; p++)
        for (int32_t i = 0; i < j->tokens.n && s == MOA_OK; i++)
            if (isnan(j->plans[p].items[i]))
                s = moa_interrupted(NULL) ? moa_fail(err, MOA_E_CANCELLED, "interrupted")
                                          : run_item(j, p, i, err);
    moa_progress_show(j->args, "validate", 1, 1, "tokens");
    if (s == MOA_E_CANCELLED)
        s = moa_fail(err, s, "interrupted after %.0f of %.0f tokens; the same command goes on from there",
                     j->tok_done, j->tok_total);
    return s;
}

/* --- the choice ----------------------------------------------------------------------------------------------------------------------------- */

static moa_plan_at_n described(const job *j, int p) {
    return moa_plan_describe(j->plans[p].plan, j->length, j->loaded.model->shape.n_head_kv);
}

static double mean_loss(const candidate *c) {
    return c->loss.sum / (double)c->loss.n;
}

/* the lowest loss; of equals the one that keeps less */
static void choose(job *j) {
    j->best = -1;
    for (int p = 0; p < j->n_plan; p++) {
        candidate *c = &j->plans[p];
        c->loss = (moa_loss){.n = j->tokens.n_supervised};
        for (int32_t i = 0; i < j->tokens.n; i++)
            c->loss.sum += c->items[i];
        if (!c->from_dir) continue;
        const candidate *b = j->best >= 0 ? &j->plans[j->best] : NULL;
        if (!b || c->loss.sum < b->loss.sum ||
            (c->loss.sum == b->loss.sum &&
             described(j, p).kv_density_grouped < described(j, j->best).kv_density_grouped))
            j->best = p;
    }
}

/* standard error over items of the mean difference to full attention, nats a token */
static double difference(const job *j, int p, double *error) {
    const candidate *full = &j->plans[0], *c = &j->plans[p];
    const int32_t n = j->tokens.n;
    const double per_item = (double)j->tokens.n_supervised / n, mean = (c->loss.sum - full->loss.sum) / n;
    double squares = 0;
    for (int32_t i = 0; i < n; i++)
        squares += pow(c->items[i] - full->items[i] - mean, 2);
    *error = n > 1 ? sqrt(squares / (n - 1) / n) / per_item : (double)NAN;
    return mean / per_item;
}

static void put_table(const job *j, moa_buf *out) {
    moa_buf_printf(out,
                   "cross-entropy of %lld answer tokens in %d items of up to %d tokens, nats a token\n%-*s "
                   "%6s %6s %9s %9s %9s\n",
                   (long long)j->tokens.n_supervised, j->tokens.n, j->length, NAME_CELLS, "plan", "KV %",
                   "span", "loss", "-full", "+-");
    for (int p = 0; p < j->n_plan; p++) {
        moa_buf clean = {0};
        double error;
        const double over = difference(j, p, &error);
        const moa_plan_at_n d = described(j, p);
        moa_text_clean(j->plans[p].name, strlen(j->plans[p].name), MOA_TEXT_LINE, &clean);
        const int used = clean.data ? moa_text_cut(clean.data, clean.size, NAME_CELLS, out) : 0;
        moa_buf_printf(out, "%*s %6.1f %6.0f %9.5f %+9.5f %9.5f%s\n", NAME_CELLS - used, "",
                       100 * d.kv_density_grouped, d.span_mean, mean_loss(&j->plans[p]), over, error,
                       p == j->best ? "  <- best" : "");
        moa_buf_free(&clean);
    }
}

static void put_text(moa_buf *b, const char *key, const char *text) {
    moa_buf_printf(b, "\"%s\": ", key);
    moa_text_json(text, strlen(text), b);
    moa_buf_str(b, ", ");
}
static void put_number(moa_buf *b, const char *key, double x) {
    moa_buf_printf(b, "\"%s\": ", key);
    moa_json_number(b, x);
    moa_buf_str(b, ", ");
}

static void put_candidate(const job *j, int p, moa_buf *b) {
    double error;
    const double over = difference(j, p, &error);
    const moa_plan_at_n d = described(j, p);
    put_text(b, "plan", j->plans[p].name);
    put_number(b, "loss", mean_loss(&j->plans[p]));
    put_number(b, "loss_over_full", over);
    put_number(b, "standard_error", error);
    put_number(b, "kv_density", d.kv_density_grouped);
    put_number(b, "span_mean", d.span_mean);
    b->size -= 2;
}

static void put_facts(const job *j, moa_buf *b) {
    put_number(b, "length", j->length);
    put_number(b, "items", j->tokens.n);
    put_number(b, "supervised_tokens", (double)j->tokens.n_supervised);
    put_number(b, "items_cut", j->tokens.n_cut);
    put_number(b, "items_skipped", j->tokens.n_skipped);
    put_text(b, "data", moa_args_text(j->args, MOA_OPT_DATA));
    put_text(b, "model", j->loaded.model->name);
    put_text(b, "fingerprint", j->loaded.model->fingerprint);
    put_text(b, "device", j->loaded.device);
    put_text(b, "version", MOA_VERSION);
}

static moa_status save_json(const job *j, moa_err *err) {
    const char *path = moa_args_text(j->args, MOA_OPT_JSON);
    moa_buf b = {0};
    moa_buf_str(&b, "{");
    put_facts(j, &b);
    put_text(&b, "best", j->plans[j->best].name);
    moa_buf_str(&b, "\n  \"plans\": [\n");
    for (int p = 0; p < j->n_plan; p++) {
        moa_buf_str(&b, p ? ",\n    {" : "    {");
        put_candidate(j, p, &b);
        moa_buf_str(&b, ", \"losses\": [");
        for (int32_t i = 0; i < j->tokens.n; i++) {
            moa_buf_str(&b, i ? ", " : "");
            moa_json_number(&b,
                            j->plans[p].items[i] / (j->tokens.data[i].n - j->tokens.data[i].supervise_from));
        }
        moa_buf_str(&b, "]}");
    }
    moa_buf_str(&b, "]}\n");
    const moa_status s = moa_output_save(path, &b, err);
    moa_buf_free(&b);
    return s;
}

/* The chosen plan, with what it was chosen by as a member "validation" (unless the file has one of its own). */
static moa_status save_best(job *j, const char *path, moa_err *err) {
    moa_plan *plan = j->plans[j->best].plan;
    moa_buf b = {0};
    moa_status s = MOA_OK;
    if (!plan->extra || !strstr(plan->extra, "\"validation\"")) {
        if (plan->extra && plan->extra[0]) moa_buf_printf(&b, "%s, ", plan->extra);
        moa_buf_str(&b, "\"validation\": {");
        put_facts(j, &b);
        put_candidate(j, j->best, &b);
        moa_buf_str(&b, "}");
        if (!moa_buf_ok(&b)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "%s: no memory", path));
        free(plan->extra);
        plan->extra = b.data;
        b = (moa_buf){0};
    }
    MOA_TRY(moa_plan_save(plan, path, true, err));
out:
    moa_buf_free(&b);
    return s;
}

/* --- in all --------------------------------------------------------------------------------------------------------------------------------- */

static void close_job(job *j) {
    for (int p = 0; p < j->n_plan; p++) {
        free(j->plans[p].name);
        free(j->plans[p].items);
        moa_plan_close(&j->plans[p].plan);
    }
    moa_part_close(&j->part);
    moa_token_items_free(&j->tokens);
    moa_items_free(&j->items);
    moa_seq_close(&j->seq);
    moa_load_close(&j->loaded);
    free(j);
}

static moa_status finish(job *j, const char *best, moa_err *err) {
    const char *json = moa_args_text(j->args, MOA_OPT_JSON);
    moa_buf table = {0};
    moa_status s = MOA_OK;
    choose(j);
    put_table(j, &table);
    MOA_TRY(save_best(j, best, err));
    if (json) MOA_TRY(save_json(j, err));
    if (!json || strcmp(json, "-") != 0) MOA_TRY(moa_output_save("-", &table, err));
    moa_remark(j->args, "%s is %s", best, j->plans[j->best].name);
    moa_part_remove(&j->part);
out:
    moa_buf_free(&table);
    return s;
}

static moa_status run(const moa_args *args, moa_err *err) {
    char best[PATH_MAX];
    const char *dir = moa_args_text(args, OWN_PLANS), *data = moa_args_text(args, MOA_OPT_DATA);
    moa_status s = MOA_OK;
    job *j = calloc(1, sizeof *j); /* a candidate each for PLAN_MAX plans */
    if (!j) return moa_fail(err, MOA_E_MEMORY, "no memory for a validation");
    j->args = args;
    j->length = (int32_t)moa_args_int(args, MOA_OPT_LENGTH);
    moa_interrupt_catch();
    if (!dir || !data || j->length == 0)
        MOA_TRY(moa_fail(err, MOA_E_USAGE, "validate needs --plans DIR, --data DATA.jsonl and --length N"));
    if (snprintf(best, sizeof best, "%s/best.json", dir) >= (int)sizeof best)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: the path is too long", dir));
    MOA_TRY(moa_items_read(&j->items, data, err));
    MOA_TRY(moa_load(&j->loaded, args, 0, err));
    MOA_TRY(open_plans(j, err));
    MOA_TRY(encode_items(j, err));
    MOA_TRY(resume(j, best, err));
    MOA_TRY(moa_seq_open(&j->seq, j->loaded.engine, err));
    MOA_TRY(run_all(j, err));
    MOA_TRY(finish(j, best, err));
out:
    close_job(j);
    return s;
}

const moa_batch moa_batch_validate = {
    .name = "validate",
    .help = "cross-entropy of the plans of a folder on held-out items, and the choice",
    .usage = "MODEL --plans DIR --data DATA.jsonl --length N [--plan P ...]",
    .options = options,
    .own = own,
    .min_words = 1,
    .max_words = 1,
    .more = "DIR/best.json is the plan_*.json with the lowest loss; full attention and every --plan are "
            "shown beside them.\n"
            "^C ends the validation; the same command goes on from DIR/best.json.part.",
    .run = run,
};
