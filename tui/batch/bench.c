/* bench.c -- `moascope bench`: how fast, beside what this device's memory allows, in one run.
 *
 *   ceiling       read 2950 GB/s, add 2811, copy 2970
 *   what          plan           batch  depth  kept   MB read   us p10  median     p90   GB/s  share   tok/s
 *   decode-attn   groups:.8,.2       1   4096  0.51       8.5      4.9     5.0     5.1   1700   58 %
 *
 * The model is a file, or a known shape with random weights. What a row has to read: the weights once, and the keys and values that
 * the plan keeps. A row that does not fit the device says so, and the others follow.
 *
 * --replay paper: the decode table of "Mixture of Attention Spans" (arXiv 2406.14909v3, table 5): Vicuna-7B in half precision, a plan of
 * density .5 (half the KV groups .8, half .2), at its batches, beside our own dense at the largest batch that fits. Its tokens/s are
 * of an A100-80GB, averaged over the last quarter of the sequence; here it is the end of the sequence, where a step costs most. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/text.h"
#include "core/tasks/bench.h"
#include "tui/batch/batch.h"
#include "tui/load.h"
#include "version.h"

enum {
    OPT_SHAPE = MOA_OPT_OWN,
    OPT_TYPE,
    OPT_WHAT,
    OPT_PLANS,
    OPT_BATCH,
    OPT_DEPTH,
    OPT_REPS,
    OPT_BIG,
    OPT_ITEMS,
    OPT_REPLAY
};
enum { LIST_MAX = 32, PAPER_ROWS = 3 };

#define WHAT_MAP(X)                                                                                          \
    X(DECODE_ATTN, "decode-attn")                                                                            \
    X(PREFILL_ATTN, "prefill-attn")                                                                          \
    X(STEP, "step") X(LOAD, "load") X(PROBE, "probe") X(TTFT, "ttft") X(MEMORY, "memory")                   \
    X(PROFILE, "profile")
typedef enum what {
#define X(id, text) WHAT_##id,
    WHAT_MAP(X)
#undef X
        N_WHAT
} what;
static const char *const what_names[N_WHAT] = {
#define X(id, text) text,
    WHAT_MAP(X)
#undef X
};

typedef struct job {
    const moa_args *args;
    moa_bench x;
    moa_model *model;     /* owned; of a file: with its data only where an engine needs it */
    moa_backend *backend; /* owned until an engine has it */
    moa_engine *engine;   /* owned */
    moa_bench_rate rate;
    moa_kv_type kv_type;
    char device[256];
    double load_s, open_s; /* the last loading, and of it the model's file */
    double matrix_flop_s;  /* of a large product; 0: not measured */
    int n_row;
    moa_buf rows; /* JSON */
} job;

/* --- plans --------------------------------------------------------------------------------------------------------------------- */

/* "groups:B,B,...": the KV heads of every layer in as many equal parts, each with alpha 0 and its beta */
static moa_status plan_groups(moa_plan **out, const char *list, const moa_shape *m, moa_err *err) {
    double beta[LIST_MAX];
    int n = 0;
    for (const char *at = list; *at && n < LIST_MAX; n++) {
        char *end;
        beta[n] = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(beta[n] > 0 && beta[n] <= 1))
            return moa_fail(err, MOA_E_USAGE, "groups:%.60s: the shares are numbers above 0, up to 1", list);
        at = *end ? end + 1 : end;
    }
    if (n < 1 || n > m->n_head_kv)
        return moa_fail(err, MOA_E_USAGE, "groups:%.60s: %d shares for %d KV heads", list, n, m->n_head_kv);
    const moa_status s = moa_plan_uniform(out, m->n_layer, m->n_head, (moa_rule){0, 1}, err);
    for (int32_t l = 0; s == MOA_OK && l < m->n_layer; l++)
        for (int32_t h = 0; h < m->n_head; h++)
            moa_plan_at(*out, l, h)->beta = beta[h / (m->n_head / m->n_head_kv) * n / m->n_head_kv];
    return s;
}

static moa_status open_plan(const job *j, const char *spec, moa_plan **out, moa_err *err) {
    const moa_shape *m = &j->model->shape;
    *out = NULL;
    if (strncmp(spec, "groups:", 7) == 0) return plan_groups(out, spec + 7, m, err);
    return moa_plan_open(out, spec, m->n_layer, m->n_head, err);
}

/* --- rows ------------------------------------------------------------------------------------------------------------------------ */

static void head(void) {
    (void)printf("%-13s %-20s %5s %6s %5s %9s %9s %9s %9s %7s %6s %9s\n", "what", "plan", "batch", "depth",
                 "kept", "MB read", "us p10", "median", "us p90", "GB/s", "share", "tok/s");
}

static void json_number(moa_buf *b, const char *name, double x) {
    moa_buf_printf(b, ", \"%s\": ", name);
    moa_json_number(b, x);
}

static void begin_row(job *j, const char *name, const char *plan) {
    moa_buf_str(&j->rows, j->n_row++ ? ",\n  {\"what\": " : "\n  {\"what\": ");
    moa_text_json(name, strlen(name), &j->rows);
    moa_buf_str(&j->rows, ", \"plan\": ");
    moa_text_json(plan, strlen(plan), &j->rows);
}

static void tell(job *j, const char *name, const char *plan, const moa_bench_row *r) {
    const double bytes = r->weight_bytes + r->kv_bytes, rate = bytes / r->time.median_us * 1e6;
    moa_buf *b = &j->rows;
    begin_row(j, name, plan);
    json_number(b, "batch", r->n_seq);
    json_number(b, "depth", r->depth);
    json_number(b, "kept", r->kept);
    json_number(b, "weight_bytes", r->weight_bytes);
    json_number(b, "kv_bytes", r->kv_bytes);
    json_number(b, "p10_us", r->time.p10_us);
    json_number(b, "median_us", r->time.median_us);
    json_number(b, "p90_us", r->time.p90_us);
    json_number(b, "samples", r->time.n_sample);
    json_number(b, "calls_a_sample", r->time.n_call);
    json_number(b, "bytes_s", bytes > 0 ? rate : (double)NAN);
    json_number(b, "share", bytes > 0 ? rate / j->rate.best : (double)NAN);
    json_number(b, "flop_s", r->flop > 0 ? r->flop / r->time.median_us * 1e6 : (double)NAN);
    if (r->peak_flop_s > 0) json_number(b, "matrix_share", r->flop / r->time.median_us * 1e6 / r->peak_flop_s);
    json_number(b, "tok_s", r->tok_s > 0 ? r->tok_s : (double)NAN);
    moa_buf_str(b, "}");
    (void)printf("%-13s %-20.20s %5d %6d %5.2f ", name, plan, r->n_seq, r->depth, r->kept);
    if (bytes > 0)
        (void)printf("%9.1f ", bytes / 1e6);
    else
        (void)printf("%9s ", "-");
    (void)printf("%9.1f %9.1f %9.1f ", r->time.p10_us, r->time.median_us, r->time.p90_us);
    if (bytes > 0)
        (void)printf("%7.1f %5.1f%% ", rate / 1e9, 100 * rate / j->rate.best);
    else
        (void)printf("%7s %6s ", "-", "-");
    if (r->tok_s > 0)
        (void)printf("%9.1f", r->tok_s);
    else
        (void)printf("%9s", "-");
    if (r->flop > 0) (void)printf("  %.2f TFLOP/s", r->flop / r->time.median_us / 1e6);
    if (r->peak_flop_s > 0)
        (void)printf(", %.0f %% of a large product", 100 * r->flop / r->time.median_us * 1e6 / r->peak_flop_s);
    (void)printf("\n");
    (void)fflush(stdout);
}

/* a row that could not be measured: told, and not an error of the whole where it is for want of memory */
static moa_status tell_failure(job *j, const char *name, const char *plan, const moa_bench_case *c,
                               moa_status s, moa_err *err) {
    if (s != MOA_E_MEMORY || !err) return s;
    begin_row(j, name, plan);
    json_number(&j->rows, "batch", c->n_seq);
    json_number(&j->rows, "depth", c->depth);
    moa_buf_str(&j->rows, ", \"error\": ");
    moa_text_json(err->text, strlen(err->text), &j->rows);
    moa_buf_str(&j->rows, "}");
    (void)printf("%-13s %-20.20s %5d %6d does not fit: %s\n", name, plan, c->n_seq, c->depth, err->text);
    (void)fflush(stdout);
    *err = (moa_err){0};
    return MOA_OK;
}

/* --- opening -------------------------------------------------------------------------------------------------------------------- */

static bool on_progress(void *user, uint64_t done, uint64_t total) {
    moa_progress_show(user, "loading", (double)done / 1e6, (double)total / 1e6, "MB");
    return !moa_interrupted(NULL);
}

static moa_status open_backend(job *j, moa_err *err) {
    const moa_backend_config config = {.n_threads = (int32_t)moa_args_int(j->args, MOA_OPT_THREADS)};
    const moa_status s = moa_backend_open(&j->backend, moa_args_text(j->args, MOA_OPT_DEVICE), &config,
                                          j->device, sizeof j->device, err);
    moa_device_info info = {0};
    j->x.backend = j->backend;
    if (s == MOA_OK) moa_remark(j->args, "%s", j->device); /* why this one */
    if (s == MOA_OK && j->backend->vt->info(j->backend, &info, NULL) == MOA_OK)
        (void)snprintf(j->device, sizeof j->device, "%s", info.name);
    return s;
}

static moa_status open_model(job *j, bool data, moa_err *err) {
    const char *shape = moa_args_text(j->args, OPT_SHAPE), *name = moa_args_model(j->args, 0);
    const bool paper = moa_args_text(j->args, OPT_REPLAY) != NULL;
    const char *type = moa_args_has(j->args, OPT_TYPE) || !paper ? moa_args_text(j->args, OPT_TYPE) : "f16";
    char path[PATH_MAX];
    moa_model_close(&j->model);
    if (name && shape) return moa_fail(err, MOA_E_USAGE, "a model or --shape, not both");
    if (!name && !shape && paper) shape = "vicuna-7b";
    if (shape) return moa_model_random(&j->model, shape, type, 1, err);
    if (!name) return moa_fail(err, MOA_E_USAGE, "which model? give a GGUF file, a name, or --shape NAME");
    moa_status s = moa_model_find(name, path, sizeof path, err);
    if (s != MOA_OK) return s;
    if (!data) return moa_model_open(&j->model, path, true, NULL, NULL, err);
    MOA_TRY(moa_model_open_lazy(&j->model, path, err));
    if (!j->backend->vt->reads_files) MOA_TRY(moa_model_read(j->model, on_progress, (void *)(uintptr_t)j->args, err));
out:
    return s;
}

/* weights that are made fill any machine if asked to: better said than found out */
static moa_status check_memory(const job *j, moa_err *err) {
    moa_device_info info = {0};
    const moa_status s = j->backend->vt->info(j->backend, &info, err);
    /* a CPU keeps what was made, and its own form of it */
    const double need = (double)j->model->weight_bytes * (strcmp(j->backend->vt->name, "cpu") == 0 ? 2 : 1);
    if (s == MOA_OK && j->model->make && info.free_bytes > 0 && need > (double)info.free_bytes)
        return moa_fail(err, MOA_E_MEMORY, "the weights of %s take %.1f GiB, %.1f are free", j->model->name,
                        need / 0x1p30, (double)info.free_bytes / 0x1p30);
    return s;
}

/* the engine with its weights; the seconds of loading model and engine, device's own start left out */
static moa_status open_engine(job *j, moa_err *err) {
    const moa_engine_config config = {.kv_type = j->kv_type,
                                      .chunk = (int32_t)moa_args_int(j->args, MOA_OPT_CHUNK)};
    moa_status s = MOA_OK;
    if (j->engine) return MOA_OK;
    if (!j->backend) MOA_TRY(open_backend(j, err));
    const double start = moa_bench_now();
    MOA_TRY(open_model(j, true, err));
    j->open_s = moa_bench_now() - start;
    MOA_TRY(check_memory(j, err));
    moa_backend *b = j->backend;
    j->backend = NULL; /* the engine closes it, also when it cannot be opened */
    MOA_TRY(moa_engine_open(&j->engine, j->model, b, &config, on_progress, (void *)(uintptr_t)j->args, err));
    j->load_s = moa_bench_now() - start;
    j->x.backend = moa_engine_backend(j->engine);
out:
    return s;
}

static void close_engine(job *j) {
    moa_engine_close(&j->engine);
    moa_backend_close(&j->backend);
    j->x.backend = NULL;
}

/* --- what is measured ------------------------------------------------------------------------------------------------------------ */

static void tell_memory(job *j, const char *plan, const moa_bench_case *c, const moa_bench_memory *m) {
    const struct {
        const char *name;
        double value;
    } fields[] = {{"formula_prompt_bytes", m->formula_prompt}, {"pages_prompt_bytes", m->pages_prompt},
                  {"growth_prompt_bytes", m->growth_prompt},   {"formula_end_bytes", m->formula_end},
                  {"pages_end_bytes", m->pages_end},           {"growth_end_bytes", m->growth_end},
                  {"most_over_bytes", m->most_over},           {"pool_bytes", m->pool},
                  {"growth_closed_bytes", m->growth_closed}};
    begin_row(j, "memory", plan);
    json_number(&j->rows, "depth", c->depth);
    (void)printf("%-13s %-20.20s %5d %6d  MB:", "memory", plan, 1, c->depth);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_number(&j->rows, fields[i].name, fields[i].value);
        (void)printf(" %.*s ", (int)strlen(fields[i].name) - 6, fields[i].name);
        if (isnan(fields[i].value))
            (void)printf("-");
        else
            (void)printf("%.1f", fields[i].value / 1e6);
    }
    moa_buf_str(&j->rows, "}");
    (void)printf("\n");
    (void)fflush(stdout);
}

static moa_status memory_case(job *j, const char *plan, const moa_bench_case *c, moa_err *err) {
    moa_bench_memory m;
    const moa_status s = moa_bench_memory_of(&j->x, j->engine, c, &m, err);
    if (s != MOA_OK) return tell_failure(j, "memory", plan, c, s, err);
    tell_memory(j, plan, c, &m);
    return MOA_OK;
}

/* without statistics and with them: what watching costs a prompt */
static moa_status ttft_case(job *j, const char *plan, const moa_bench_case *c, moa_err *err) {
    static const char *const names[MOA_N_BENCH_WATCH] = {"ttft", "ttft sampled", "ttft exact"};
    moa_bench_row rows[MOA_N_BENCH_WATCH];
    moa_status s = j->matrix_flop_s > 0 ? MOA_OK : moa_bench_matrix(&j->x, &j->matrix_flop_s, err);
    if (s == MOA_OK) s = moa_bench_ttft(&j->x, j->engine, c, rows, err);
    if (s != MOA_OK) return tell_failure(j, names[0], plan, c, s, err);
    for (int w = 0; w < MOA_N_BENCH_WATCH; w++) {
        rows[w].peak_flop_s = j->matrix_flop_s;
        tell(j, names[w], plan, &rows[w]);
    }
    return MOA_OK;
}

static moa_status one_case(job *j, what w, const char *plan_name, const moa_bench_case *c, moa_err *err) {
    moa_bench_row r = {0}, on = {0};
    moa_status s = MOA_OK;
    if (w == WHAT_TTFT) return ttft_case(j, plan_name, c, err);
    if (w == WHAT_MEMORY) return memory_case(j, plan_name, c, err);
    switch (w) {
    case WHAT_DECODE_ATTN: s = moa_bench_attn_decode(&j->x, c, &r, err); break;
    case WHAT_PREFILL_ATTN:
        s = moa_bench_attn_prefill(&j->x, c, (int32_t)moa_args_int(j->args, MOA_OPT_CHUNK), &r, err);
        break;
    case WHAT_STEP: s = moa_bench_step(&j->x, j->engine, c, &r, err); break;
    default: s = moa_bench_probe(&j->x, j->engine, c, &r, &on, err); break;
    }
    if (s != MOA_OK) return tell_failure(j, what_names[w], plan_name, c, s, err);
    tell(j, w == WHAT_PROBE ? "probe off" : what_names[w], plan_name, &r);
    if (w == WHAT_PROBE) tell(j, "probe on", plan_name, &on);
    return MOA_OK;
}

/* --- the influence profile -------------------------------------------------------------------------------------------------------- */

static const char *const part_names[MOA_N_PROFILE_KIND] = {"products", "attention", "influence", "rows", "head", "host"};

static void tell_profile(job *j, const moa_bench_profile_row *r) {
    const double item_s = r->item.median_us * 1e-6, rate = r->flop / item_s;
    moa_buf *b = &j->rows;
    begin_row(j, "profile", "full");
    json_number(b, "depth", r->depth);
    json_number(b, "items", r->n_item);
    json_number(b, "together", r->n_together);
    json_number(b, "supervised", r->n_supervised);
    json_number(b, "item_s", item_s);
    json_number(b, "item_p10_s", r->item.p10_us * 1e-6);
    json_number(b, "item_p90_s", r->item.p90_us * 1e-6);
    json_number(b, "total_s", r->total_s);
    json_number(b, "tok_s", r->depth / item_s);
    json_number(b, "flop", r->flop);
    json_number(b, "flop_s", rate);
    json_number(b, "matrix_share", rate / j->matrix_flop_s);
    json_number(b, "layers_kept", r->n_kept);
    json_number(b, "device_bytes", r->device_bytes);
    json_number(b, "map_bytes", r->map_bytes);
    json_number(b, "clamped", r->n_clamped);
    json_number(b, "loss", r->loss);
    (void)printf("%-13s %6d tokens: %.4f s an item (p10 %.4f, p90 %.4f, %d items, %d together), %.0f tok/s, %.1f TFLOP/s, ", "profile",
                 r->depth, item_s, r->item.p10_us * 1e-6, r->item.p90_us * 1e-6, r->n_item, r->n_together, r->depth / item_s, rate / 1e12);
    (void)printf("%.0f %% of a large product; ", 100 * rate / j->matrix_flop_s);
    (void)printf("%d layers kept, ", r->n_kept);
    if (!isnan(r->device_bytes)) (void)printf("%.2f GB of the device in use, ", r->device_bytes / 1e9);
    (void)printf("maps %.2f MB\n  of %.4f s watched:", r->map_bytes / 1e6, r->watched_s);
    json_number(b, "watched_s", r->watched_s);
    moa_buf_str(b, ", \"parts\": {");
    for (int i = 0; i < MOA_N_PROFILE_KIND; i++) {
        moa_buf_printf(b, "%s\"%s\": ", i ? ", " : "", part_names[i]);
        moa_json_number(b, r->part_s[i]);
        (void)printf(" %s %.4f (%.0f %%)", part_names[i], r->part_s[i], 100 * r->part_s[i] / r->watched_s);
    }
    moa_buf_str(b, "}}");
    (void)printf("\n");
    (void)fflush(stdout);
}

/* one profile for the longest items, as `profile` has it */
static moa_status profile_rows(job *j, moa_err *err) {
    int32_t depth[LIST_MAX], longest = 0;
    const int n = moa_args_ints(j->args, OPT_DEPTH, depth, LIST_MAX);
    moa_profile *p = NULL;
    moa_status s = MOA_OK;
    if (n > LIST_MAX) return moa_fail(err, MOA_E_USAGE, "at most %d depths", LIST_MAX);
    for (int i = 0; i < n; i++)
        longest = depth[i] > longest ? depth[i] : longest;
    MOA_TRY(open_engine(j, err));
    if (j->matrix_flop_s <= 0) MOA_TRY(moa_bench_matrix(&j->x, &j->matrix_flop_s, err));
    (void)printf("a large product: %.1f TFLOP/s\n", j->matrix_flop_s / 1e12);
    MOA_TRY(moa_profile_open(&p, j->engine, longest, err));
    for (int i = 0; i < n; i++) {
        const moa_bench_profile_case c = {.depth = depth[i], .n_item = (int32_t)moa_args_int(j->args, OPT_ITEMS)};
        moa_bench_profile_row r;
        MOA_TRY(moa_bench_profile(&j->x, j->engine, p, &c, &r, err));
        tell_profile(j, &r);
    }
out:
    moa_profile_close(&p);
    return s;
}

static moa_status load_rows(job *j, moa_err *err) {
    double *seconds = malloc(2 * (size_t)j->x.reps * sizeof *seconds);
    moa_status s = MOA_OK;
    if (!seconds) return moa_fail(err, MOA_E_MEMORY, "no memory for %d samples", j->x.reps);
    for (int32_t i = 0; i < j->x.reps; i++) {
        close_engine(j);
        MOA_TRY(open_engine(j, err));
        seconds[i] = j->load_s;
        seconds[j->x.reps + i] = j->open_s;
    }
    const moa_bench_row file = {.weight_bytes = (double)j->model->weight_bytes,
                                .time = moa_bench_percentiles(seconds + j->x.reps, j->x.reps)};
    tell(j, "load: file", "-", &file);
    const moa_bench_row r = {.n_seq = 0,
                             .weight_bytes = (double)j->model->weight_bytes,
                             .time = moa_bench_percentiles(seconds, j->x.reps)};
    tell(j, "load", "-", &r);
out:
    free(seconds);
    return s;
}

static moa_status rows_of(job *j, what w, moa_err *err) {
    int32_t batch[LIST_MAX], depth[LIST_MAX];
    const int n_batch = moa_args_ints(j->args, OPT_BATCH, batch, LIST_MAX),
              n_depth = moa_args_ints(j->args, OPT_DEPTH, depth, LIST_MAX);
    const bool attention = w == WHAT_DECODE_ATTN || w == WHAT_PREFILL_ATTN, engine = !attention,
               alone = w != WHAT_DECODE_ATTN && w != WHAT_STEP, prompt = attention || w == WHAT_TTFT || w == WHAT_MEMORY;
    moa_status s = engine ? open_engine(j, err) : MOA_OK;
    if (n_batch > LIST_MAX || n_depth > LIST_MAX)
        return moa_fail(err, MOA_E_USAGE, "at most %d batches and depths", LIST_MAX);
    for (int i = 0; s == MOA_OK && (i == 0 || moa_args_list(j->args, OPT_PLANS, i)); i++) {
        const char *spec = moa_args_list(j->args, OPT_PLANS, i);
        moa_plan *plan = NULL;
        if (!spec) spec = "full";
        s = open_plan(j, spec, &plan, err);
        for (int b = 0; s == MOA_OK && b < (alone ? 1 : n_batch); b++)
            for (int d = 0; s == MOA_OK && d < n_depth; d++) {
                const moa_bench_case c = {.shape = &j->model->shape,
                                          .kv_type = j->kv_type,
                                          .rules = plan->rules,
                                          .n_seq = alone ? 1 : batch[b],
                                          .depth = depth[d]};
                if (prompt && c.depth < 1) continue; /* over nothing */
                s = one_case(j, w, spec, &c, err);
            }
        moa_plan_close(&plan);
    }
    return s;
}

/* --- the paper's table ------------------------------------------------------------------------------------------------------------ */

static const struct {
    int32_t total, batch;
    double moa_a100, vllm_a100;
} paper[PAPER_ROWS] = {{4096, 50, 1099.0, 628.8}, {8192, 25, 535.7, 323.0}, {16384, 12, 257.3, 145.5}};

/* the most dense sequences that fit what is free, less a reserve for tables and logits */
static int32_t dense_batch(job *j, int32_t total) {
    const moa_shape *m = &j->model->shape;
    moa_device_info info = {0};
    const double seq = (double)((total + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK) * m->n_layer * m->n_head_kv *
                       (double)moa_kv_page_bytes(j->kv_type, m->d_head);
    if (j->x.backend->vt->info(j->x.backend, &info, NULL) != MOA_OK || info.free_bytes == 0) return 1;
    const double room = ((double)info.free_bytes - (double)(512 << 20)) / (seq + 4.0 * m->n_vocab);
    return room < 1 ? 1 : room > 256 ? 256 : (int32_t)room;
}

static moa_status replay_row(job *j, int row, const char *spec, int32_t batch, double *tok_s, moa_err *err) {
    const int32_t total = paper[row].total;
    moa_plan *plan = NULL;
    moa_bench_row r = {0};
    moa_status s = open_plan(j, spec, &plan, err);
    *tok_s = NAN;
    if (s != MOA_OK) return s;
    const moa_bench_case c = {.shape = &j->model->shape,
                              .kv_type = j->kv_type,
                              .rules = plan->rules,
                              .n_seq = batch,
                              .depth = total - moa_bench_step_tokens(&j->x),
                              .n_reserved = total};
    s = moa_bench_step(&j->x, j->engine, &c, &r, err);
    if (s == MOA_OK) {
        tell(j, "replay", spec, &r);
        *tok_s = r.tok_s;
    } else
        s = tell_failure(j, "replay", spec, &c, s, err);
    moa_plan_close(&plan);
    return s;
}

static moa_status replay(job *j, moa_err *err) {
    int32_t given[LIST_MAX];
    const int n = moa_args_has(j->args, OPT_BATCH) ? moa_args_ints(j->args, OPT_BATCH, given, LIST_MAX) : 0;
    const char *spec = moa_args_list(j->args, OPT_PLANS, 0);
    moa_status s = MOA_OK;
    if (!spec) spec = "groups:0.8,0.2";
    MOA_TRY(open_engine(j, err));
    for (int i = 0; i < PAPER_ROWS; i++) {
        double ours, dense = NAN;
        int32_t fits = i < n ? given[i] : dense_batch(j, paper[i].total);
        MOA_TRY(replay_row(j, i, spec, i < n ? given[i] : paper[i].batch, &ours, err));
        for (int tries = 0; tries < 4 && fits > 0 && !(dense > 0); tries++, fits--)
            MOA_TRY(replay_row(j, i, "full", fits, &dense, err));
        (void)printf("  N %d: plan %.1f tok/s, dense %.1f, ratio %.2f; paper (A100-80GB): %.1f, vLLM %.1f\n",
                     paper[i].total, ours, dense, ours / dense, paper[i].moa_a100, paper[i].vllm_a100);
    }
out:
    return s;
}

/* --- the command -------------------------------------------------------------------------------------------------------------------- */

static moa_status wanted(const moa_args *args, bool on[N_WHAT], moa_err *err) {
    const char *text = moa_args_text(args, OPT_WHAT);
    for (const char *at = text; *at;) {
        const size_t n = strcspn(at, ",");
        int found = -1;
        for (int w = 0; w < N_WHAT; w++)
            if (strlen(what_names[w]) == n && memcmp(what_names[w], at, n) == 0) found = w;
        if (found < 0)
            return moa_fail(err, MOA_E_USAGE,
                            "--what %.*s: known are decode-attn, prefill-attn, step, load, probe, ttft, memory and profile", (int)n,
                            at);
        on[found] = true;
        at += n + (at[n] == ',');
    }
    return MOA_OK;
}

static moa_status settings(job *j, moa_err *err) {
    const char *kv = moa_args_text(j->args, MOA_OPT_KV), *paper_name = moa_args_text(j->args, OPT_REPLAY);
    if (!moa_kv_type_find(kv, &j->kv_type))
        return moa_fail(err, MOA_E_USAGE, "--kv %s: K and V are cached as " MOA_KV_TYPE_NAMES, kv);
    if (paper_name && strcmp(paper_name, "paper") != 0)
        return moa_fail(err, MOA_E_USAGE, "--replay %s: only `paper` is known", paper_name);
    const int64_t big = moa_args_int(j->args, OPT_BIG);
    const bool cuda = strcmp(j->x.backend->vt->name, "cuda") == 0;
    const int64_t reps = moa_args_int(j->args, OPT_REPS);
    j->x.reps = reps > 0 ? (int32_t)reps : paper_name ? 3 : 10;
    j->x.big_bytes = big > 0 ? (size_t)big << 20 : (size_t)(cuda ? 1024 : 256) << 20;
    j->x.sample_s = cuda ? 0.01 : 0.02;
    j->x.cancelled = moa_interrupted;
    return MOA_OK;
}

static void result_json(const job *j, moa_buf *out) {
    moa_buf_str(out, "{\"device\": ");
    moa_text_json(j->device, strlen(j->device), out);
    moa_buf_str(out, ", \"model\": ");
    moa_text_json(j->model->name, strlen(j->model->name), out);
    moa_buf_printf(out, ", \"kv\": \"%s\", \"reps\": %d, \"ceiling\": {\"read\": ",
                   moa_kv_type_name(j->kv_type), j->x.reps);
    moa_json_number(out, j->rate.read);
    json_number(out, "add", j->rate.add);
    json_number(out, "copy", j->rate.copy);
    json_number(out, "best", j->rate.best);
    moa_buf_str(out, "},\n \"rows\": [");
    moa_buf_append(out, j->rows.data, j->rows.size);
    moa_buf_str(out, "\n ],\n \"version\": ");
    moa_text_json(MOA_VERSION, strlen(MOA_VERSION), out);
    moa_buf_str(out, "}\n");
}

static moa_status measure(job *j, moa_err *err) {
    bool on[N_WHAT] = {false};
    moa_status s = MOA_OK;
    MOA_TRY(wanted(j->args, on, err));
    MOA_TRY(open_model(j, false, err));
    MOA_TRY(open_backend(j, err));
    MOA_TRY(settings(j, err));
    (void)printf("%s\n%s\n", j->device, j->model->name);
    MOA_TRY(moa_bench_ceiling(&j->x, &j->rate, err));
    (void)printf("ceiling: read %.1f GB/s, add %.1f, copy %.1f (buffers of %zu MiB)\n", j->rate.read / 1e9,
                 j->rate.add / 1e9, j->rate.copy / 1e9, j->x.big_bytes >> 20);
    head();
    if (moa_args_text(j->args, OPT_REPLAY)) return replay(j, err);
    if (on[WHAT_LOAD]) MOA_TRY(load_rows(j, err));
    for (int w = 0; w < N_WHAT; w++)
        if (on[w] && w != WHAT_LOAD) MOA_TRY(w == WHAT_PROFILE ? profile_rows(j, err) : rows_of(j, (what)w, err));
out:
    return s;
}

static moa_status run(const moa_args *args, moa_err *err) {
    const char *json_path = moa_args_text(args, MOA_OPT_JSON);
    job j = {.args = args};
    moa_buf text = {0};
    moa_interrupt_catch();
    moa_status s = measure(&j, err);
    if (json_path && j.model && (s == MOA_OK || j.n_row > 0)) {
        result_json(&j, &text);
        const moa_status saved = moa_output_save(json_path, &text, s == MOA_OK ? err : NULL);
        if (s == MOA_OK) s = saved;
    }
    close_engine(&j);
    moa_model_close(&j.model);
    moa_buf_free(&j.rows);
    moa_buf_free(&text);
    return s;
}

static const int options[] = {MOA_OPT_DEVICE, MOA_OPT_KV,    MOA_OPT_CHUNK, MOA_OPT_THREADS,
                              MOA_OPT_JSON,   MOA_OPT_QUIET, MOA_OPT_MODEL, MOA_OPT_END};
static const moa_option own[] = {
    {"--shape", MOA_OPTION_TEXT, "NAME", NULL, 0, 0, false,
     "random weights of a known shape: llama3-8b, llama3-70b-layer, vicuna-7b, smollm2, qwen2.5-1.5b, "
     "qwen2.5-0.5b"},
    {"--type", MOA_OPTION_TEXT, "q4_0|q4_1|q4_k|q4_k_m|q8_0|bf16|f16", "q4_0", 0, 0, false, "their type"},
    {"--what", MOA_OPTION_TEXT, "WHAT,WHAT,...", "decode-attn,step", 0, 0, false,
     "decode-attn, prefill-attn, step, load, probe, ttft, memory, profile"},
    {"--plan", MOA_OPTION_LIST, "PLAN...", NULL, 0, 0, false,
     "FILE, full, uniform:D, sink, or groups:B,B,...: parts of the KV heads with alpha 0 and each its beta; "
     "default full"},
    {"--batch", MOA_OPTION_INTS, "B,B,...", "1", 1, 4096, false, "sequences at once"},
    {"--depth", MOA_OPTION_INTS, "N,N,...", "4096", 0, 16777216, false, "tokens that are there"},
    {"--reps", MOA_OPTION_INT, "N", "0", 0, 10000, false, "samples a row; 0: 10, or 3 in a replay"},
    {"--big", MOA_OPTION_INT, "MIB", "0", 0, 1048576, false,
     "of the ceiling's buffers and what is rotated past the caches; 0: 1024 on a GPU, 256 on a CPU"},
    {"--items", MOA_OPTION_INT, "N", "3", 1, 4096, false, "of each depth, in profile"},
    {"--replay", MOA_OPTION_TEXT, "paper", NULL, 0, 0, false, "the paper's decode table"},
    {0}};

const moa_batch moa_batch_bench = {
    .name = "bench",
    .help = "how fast, beside what this device's memory allows",
    .usage = "[MODEL | --shape NAME] [options]",
    .options = options,
    .own = own,
    .min_words = 0,
    .max_words = 1,
    .more =
        "The ceiling is measured in the same run. MB read: the weights once and the keys and values the plan "
        "keeps; share: of\n"
        "the ceiling. Times are microseconds of one call: of one layer (decode-attn, prefill-attn), of one "
        "step of all sequences\n"
        "(step, replay), of loading (load), of a whole prompt to its first token (ttft). memory: what the keys and values of a run take of "
        "the\n"
        "device beside what the formula says. profile: items of the influence profile, of each depth, random tokens, and what their time "
        "goes to.\n"
        "What stands there before a step is random: nothing is prefilled.",
    .run = run,
};
