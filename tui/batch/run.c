/* run.c -- `moascope run`: prefill a prompt, generate, and everything that can be known about it as files.
 *
 *   text -> stdout        --json: the figures        --logits: every position's        --stats, --maps: what the heads did
 *
 * Text on a terminal is cleaned, elsewhere it is the model's bytes. Files appear whole or not at all. ^C ends the run; what
 * was made by then is written, and the exit code is 130. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/npy.h"
#include "core/base/text.h"
#include "core/engine/run.h"
#include "tui/batch/batch.h"
#include "tui/load.h"
#include "tui/record.h"
#include "tui/together.h"
#include "version.h"

enum { PROMPT_MAX = 64 << 20, BLOCK = 64 };

typedef struct job {
    const moa_args *args;
    moa_loaded loaded;
    moa_seq *seq;
    moa_sampling sampling;
    bool to_terminal, show_text;
    moa_record *record; /* in the session store, or NULL */
    const char *prompt; /* as typed, (n_prompt_bytes), borrowed; "" when it came as ids */
    size_t n_prompt_bytes;
    /* of the run under way */
    int32_t n_prompt;
    moa_npy_writer *logits;
    moa_text_stream stream;
    moa_id_list made;
    float *logprobs;   /* (made.n), owned */
    moa_buf text;      /* bytes of what was made, without control tokens */
    int watch;         /* MOA_WATCH_* of statistics */
    moa_status status; /* of what a callback had to do */
    moa_err err;
    char note[256];
} job;

/* --- what the heads did ------------------------------------------------------------------------------------------------------ */

static const char stats_readme[] =
    "Per-head statistics of attention over the prompt, from the attention's own softmax.\n"
    "entropy  float32 [n_layer][n_head]  mean entropy of a query's attention, nats\n"
    "sink     float32 [n_layer][n_head]  mean mass on the first 64 tokens, 0..1\n"
    "window   float32 [n_layer][n_head]  mean mass on keys j >= 64 with i - j < span - 64, 0..1\n"
    "distance float32 [n_layer][n_head]  mean of i - j, tokens\n"
    "worst_cover float32, worst_query int32  the query with the least sink + window mass, and its position "
    "(-1: none)\n"
    "hist     float32 [n_layer][n_head][1 + n_bin]  mean mass of a query: [0] on the first 64 tokens, [1 + "
    "d] on keys j >= 64 with\n"
    "         (i - j) / 64 == d; sums to 1\n"
    "span     int32 [n_layer][n_head]  tokens, the first 64 included\n"
    "n_query  int64  queries the means are over\n"
    "n_seen   int64  queries that were looked at; sampled_every int64: of the prompt one block of 64 queries in so many, drawn with\n"
    "         sample_seed int64, and the last block; 1: all. The means are estimates where it is more\n";

static const char maps_readme[] = "Attention of every head over the prompt, summed over blocks of 64 x 64.\n"
                                  "mass float32 [n_layer][n_head][nb][nb]  (query block, key block), nb = "
                                  "ceil(n_prompt / 64): sum of A over the block; a row of blocks\n"
                                  "     sums to its number of queries\n"
                                  "span int32 [n_layer][n_head]  tokens, the first 64 included; query i sees "
                                  "key j iff j <= i and (j < 64 or i - j < span - 64)\n"
                                  "n_prompt int64  tokens\n";

static moa_npy_shape shape_2(moa_npy_type type, const moa_shape *m) {
    return (moa_npy_shape){type, 2, {(size_t)m->n_layer, (size_t)m->n_head}};
}

static moa_status add_int64(moa_npy_writer *w, const char *name, int64_t value, moa_err *err) {
    const moa_npy_shape scalar = {.type = MOA_NPY_I64};
    return moa_npz_add(w, name, &scalar, &value, err);
}

static moa_status add_heads(moa_npy_writer *w, const moa_shape *m, const moa_head_stats *heads,
                            moa_err *err) {
    static const char *const names[] = {"entropy", "sink", "window", "distance", "worst_cover"};
    const size_t n = (size_t)m->n_layer * (size_t)m->n_head;
    const moa_npy_shape f32 = shape_2(MOA_NPY_F32, m), i32 = shape_2(MOA_NPY_I32, m);
    moa_status s = MOA_OK;
    float *column = malloc(n * sizeof *column);
    if (!column) return moa_fail(err, MOA_E_MEMORY, "no memory for the statistics of %zu heads", n);
    for (int c = 0; c < 5; c++) {
        for (size_t h = 0; h < n; h++) {
            const float all[] = {heads[h].entropy, heads[h].sink, heads[h].window, heads[h].distance,
                                 heads[h].worst_cover};
            column[h] = all[c];
        }
        MOA_TRY(moa_npz_add(w, names[c], &f32, column, err));
    }
    int32_t *worst = (int32_t *)(void *)column;
    for (size_t h = 0; h < n; h++)
        worst[h] = heads[h].worst_query;
    MOA_TRY(moa_npz_add(w, "worst_query", &i32, worst, err));
out:
    free(column);
    return s;
}

/* one layer's histogram, buckets summed, per query; begins the array at layer 0, when the number of bins is known */
static moa_status add_hist(moa_npy_writer *w, job *j, int32_t layer, moa_err *err) {
    const moa_shape *m = &j->loaded.model->shape;
    float *hist = NULL;
    int32_t n_bin = 0, bucket_tok = 0;
    int64_t queries[MOA_HIST_BUCKETS], total = 0;
    moa_status s = MOA_OK;
    MOA_TRY(moa_seq_hist(j->seq, layer, &hist, &n_bin, &bucket_tok, queries, err));
    const size_t row = 1 + (size_t)n_bin;
    if (layer == 0)
        MOA_TRY(moa_npz_begin(
            w, "hist", &(moa_npy_shape){MOA_NPY_F32, 3, {(size_t)m->n_layer, (size_t)m->n_head, row}}, err));
    for (int b = 0; b < MOA_HIST_BUCKETS; b++)
        total += queries[b];
    for (size_t h = 0; h < (size_t)m->n_head; h++) {
        float *at = hist + h * MOA_HIST_BUCKETS * row; /* in place: the sums go to the first bucket */
        for (size_t k = 0; k < row; k++) {
            double sum = 0;
            for (size_t b = 0; b < MOA_HIST_BUCKETS; b++)
                sum += at[b * row + k];
            at[k] = (float)(total ? sum / (double)total : 0);
        }
        MOA_TRY(moa_npy_append(w, at, row * sizeof *at, err));
    }
out:
    free(hist);
    return s;
}

static moa_status save_stats(job *j, const char *path, moa_err *err) {
    const moa_shape *m = &j->loaded.model->shape;
    const moa_npy_shape spans = shape_2(MOA_NPY_I32, m);
    moa_npy_writer *w = NULL;
    moa_status s = MOA_OK;
    moa_head_stats *heads = malloc((size_t)m->n_layer * (size_t)m->n_head * sizeof *heads);
    if (!heads) return moa_fail(err, MOA_E_MEMORY, "%s: no memory for the statistics", path);
    MOA_TRY(moa_seq_stats(j->seq, heads, err));
    MOA_TRY(moa_npy_open(&w, path, NULL, err));
    MOA_TRY(add_heads(w, m, heads, err));
    for (int32_t layer = 0; layer < m->n_layer; layer++)
        MOA_TRY(add_hist(w, j, layer, err));
    MOA_TRY(moa_npz_add(w, "span", &spans, moa_seq_spans(j->seq), err));
    moa_watched watched;
    moa_seq_watched(j->seq, &watched);
    MOA_TRY(add_int64(w, "n_query", heads[0].n_query, err));
    MOA_TRY(add_int64(w, "n_seen", watched.n_seen, err));
    MOA_TRY(add_int64(w, "sampled_every", watched.every, err));
    MOA_TRY(add_int64(w, "sample_seed", watched.seed, err));
    MOA_TRY(moa_npz_text(w, "README", stats_readme, err));
    s = moa_npy_commit(&w, err);
out:
    moa_npy_close(&w);
    free(heads);
    return s;
}

/* Blocks of exactly 64 x 64: the whole blocks at once, then the rest of the queries against whole blocks, and against itself. (The whole
 * blocks' queries do not see the rest's keys.) part: room for nb floats */
static moa_status head_blocks(job *j, int32_t layer, int32_t head, float *mass, float *part, moa_err *err) {
    const int32_t n = j->n_prompt, whole = n / BLOCK, nb = (n + BLOCK - 1) / BLOCK, edge = whole * BLOCK;
    moa_map_request r = {.layer = layer, .head = head, .q1 = edge, .k1 = edge, .rows = whole, .cols = whole};
    float *dense = NULL;
    moa_status s = MOA_OK;
    memset(mass, 0, (size_t)nb * (size_t)nb * sizeof *mass);
    if (whole > 0) {
        dense = malloc((size_t)whole * (size_t)whole * sizeof *dense);
        if (!dense) return moa_fail(err, MOA_E_MEMORY, "no memory for a map of %d x %d blocks", whole, whole);
        MOA_TRY(moa_seq_map(j->seq, &r, dense, NULL, NULL, err));
        for (int32_t q = 0; q < whole; q++)
            memcpy(mass + (size_t)q * (size_t)nb, dense + (size_t)q * (size_t)whole,
                   (size_t)whole * sizeof *mass);
    }
    if (edge == n) goto out;
    r.q0 = edge, r.q1 = n, r.rows = 1;
    if (whole > 0) {
        MOA_TRY(moa_seq_map(j->seq, &r, part, NULL, NULL, err));
        memcpy(mass + (size_t)whole * (size_t)nb, part, (size_t)whole * sizeof *mass);
    }
    r.k0 = edge, r.k1 = n, r.cols = 1;
    MOA_TRY(moa_seq_map(j->seq, &r, mass + (size_t)nb * (size_t)nb - 1, NULL, NULL, err));
out:
    free(dense);
    return s;
}

static moa_status save_maps(job *j, const char *path, moa_err *err) {
    const moa_shape *m = &j->loaded.model->shape;
    const size_t nb = (size_t)(j->n_prompt + BLOCK - 1) / BLOCK;
    const moa_npy_shape all = {MOA_NPY_F32, 4, {(size_t)m->n_layer, (size_t)m->n_head, nb, nb}},
                        spans = shape_2(MOA_NPY_I32, m);
    moa_npy_writer *w = NULL;
    moa_status s = MOA_OK;
    float *mass = malloc((nb * nb + nb) * sizeof *mass);
    if (!mass)
        return moa_fail(err, MOA_E_MEMORY, "%s: no memory for a map of %zu x %zu blocks", path, nb, nb);
    MOA_TRY(moa_npy_open(&w, path, NULL, err));
    MOA_TRY(moa_npz_begin(w, "mass", &all, err));
    for (int32_t l = 0; l < m->n_layer; l++)
        for (int32_t h = 0; h < m->n_head; h++) {
            moa_progress_show(j->args, "maps", l * m->n_head + h, m->n_layer * m->n_head, "heads");
            if (moa_interrupted(NULL))
                MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted: %s is not written", path));
            MOA_TRY(head_blocks(j, l, h, mass, mass + nb * nb, err));
            MOA_TRY(moa_npy_append(w, mass, nb * nb * sizeof *mass, err));
        }
    moa_progress_show(j->args, "maps", 1, 1, "heads");
    MOA_TRY(moa_npz_add(w, "span", &spans, moa_seq_spans(j->seq), err));
    MOA_TRY(add_int64(w, "n_prompt", j->n_prompt, err));
    MOA_TRY(moa_npz_text(w, "README", maps_readme, err));
    s = moa_npy_commit(&w, err);
out:
    moa_npy_close(&w);
    free(mass);
    return s;
}

/* --- the run's callbacks --------------------------------------------------------------------------------------------------------- */

static void on_planned(void *user, const moa_seq *seq, const char *note) {
    job *j = user;
    (void)seq;
    (void)snprintf(j->note, sizeof j->note, "%s", note ? note : "");
    if (j->note[0]) moa_remark(j->args, "%s", j->note);
}

static void on_progress(void *user, int32_t done, int32_t total) {
    moa_progress_show(((job *)user)->args, "prefill", done, total, "tokens");
}

static bool on_logits(void *user, int32_t pos, const float *logits) {
    job *j = user;
    (void)pos;
    j->status =
        moa_npy_append(j->logits, logits, (size_t)j->loaded.model->shape.n_vocab * sizeof *logits, &j->err);
    return j->status == MOA_OK;
}

static void show(job *j, const char *bytes, size_t n, bool end) {
    if (!j->show_text) return;
    if (!j->to_terminal) {
        (void)fwrite(bytes, 1, n, stdout);
    } else {
        moa_buf clean = {0};
        moa_text_push(&j->stream, bytes, n, &clean);
        if (end) moa_text_flush(&j->stream, &clean);
        (void)fwrite(clean.data ? clean.data : "", 1, clean.size, stdout);
        moa_buf_free(&clean);
    }
    (void)fflush(stdout);
}

static bool on_token(void *user, const moa_run_token *t) {
    job *j = user;
    const moa_tokenizer *tok = j->loaded.model->tokenizer;
    const char *stats = moa_args_text(j->args, MOA_OPT_STATS);
    if (t->index == 0 && stats)
        j->status = save_stats(j, stats, &j->err); /* just the prompt has been seen by now */
    int32_t *ids = realloc(j->made.data, (j->made.n + 1) * sizeof *ids);
    if (ids) j->made.data = ids;
    float *logprobs = realloc(j->logprobs, (j->made.n + 1) * sizeof *logprobs);
    if (logprobs) j->logprobs = logprobs;
    if (!ids || !logprobs) j->status = moa_fail(&j->err, MOA_E_MEMORY, "no memory for token %zu", j->made.n);
    if (j->status != MOA_OK) return false;
    ids[j->made.n] = t->id;
    logprobs[j->made.n++] = t->logprob;
    if (!moa_tokenizer_is_control(tok, t->id)) {
        size_t n;
        const char *piece = moa_tokenizer_piece(tok, t->id, &n);
        moa_buf_append(&j->text, piece, n);
        show(j, piece, n, false);
        moa_record_output(j->record, t->id, piece, n);
    } else
        moa_record_output(j->record, t->id, "", 0);
    return true;
}

/* --- the result -------------------------------------------------------------------------------------------------------------------- */

static void field(moa_buf *b, const char *name, double value) {
    moa_buf_printf(b, "  \"%s\": ", name);
    moa_json_number(b, value);
    moa_buf_str(b, ",\n");
}

static void field_count(moa_buf *b, const char *name, uint64_t value) {
    moa_buf_printf(b, "  \"%s\": %llu,\n", name, (unsigned long long)value);
}

static void field_text(moa_buf *b, const char *name, const char *text, size_t n) {
    moa_buf_printf(b, "  \"%s\": ", name);
    moa_text_json(text, n, b);
    moa_buf_str(b, ",\n");
}

static void probe_json(const job *j, moa_buf *b) {
    moa_watched watched;
    moa_seq_watched(j->seq, &watched);
    moa_buf_printf(b, "  \"probe\": {\"sampled_every\": %d, \"seed\": %u, \"queries\": %lld, \"looked_at\": %lld},\n", watched.every,
                   watched.seed, (long long)watched.n_query, (long long)watched.n_seen);
}

static void result_json(const job *j, const moa_run_result *r, moa_buf *b) {
    const moa_model *m = j->loaded.model;
    const char *plan = moa_args_text(j->args, MOA_OPT_PLAN);
    moa_buf_str(b, "{\n");
    field_text(b, "model", j->loaded.path, strlen(j->loaded.path));
    field_text(b, "model_name", m->name, strlen(m->name));
    field_text(b, "fingerprint", m->fingerprint, strlen(m->fingerprint));
    field_text(b, "device", j->loaded.device, strlen(j->loaded.device));
    field_text(b, "device_why", j->loaded.why, strlen(j->loaded.why));
    field_text(b, "plan", plan, strlen(plan));
    field_count(b, "prompt_tokens", (uint64_t)r->n_prompt);
    moa_buf_str(b, "  \"tokens\": [");
    for (size_t i = 0; i < j->made.n; i++)
        moa_buf_printf(b, "%s%d", i ? ", " : "", j->made.data[i]);
    moa_buf_str(b, "],\n  \"logprobs\": [");
    for (size_t i = 0; i < j->made.n; i++) {
        moa_buf_str(b, i ? ", " : "");
        moa_json_number(b, (double)j->logprobs[i]);
    }
    moa_buf_str(b, "],\n");
    field_text(b, "text", j->text.data ? j->text.data : "", j->text.size);
    field_text(b, "stop_reason", moa_stop_name(r->stop), strlen(moa_stop_name(r->stop)));
    field_count(b, "n_reserved", (uint64_t)r->n_reserved);
    field(b, "load_s", j->loaded.load_s);
    field(b, "prefill_tok_s", r->prefill_s > 0 ? r->n_prompt / r->prefill_s : (double)NAN);
    field(b, "decode_tok_s", r->decode_s > 0 ? r->n_gen / r->decode_s : (double)NAN);
    field(b, "ttft_ms", r->ttft_s > 0 ? 1e3 * r->ttft_s : (double)NAN);
    field_text(b, "kv_type", moa_load_kv_type(j->args), strlen(moa_load_kv_type(j->args)));
    field_count(b, "kv_bytes", r->kv_bytes);
    field_count(b, "kv_bytes_plan", r->kv_formula.plan);
    field_count(b, "kv_bytes_dense", r->kv_formula.dense);
    field_count(b, "kv_bytes_mha", r->kv_formula.mha);
    field_count(b, "kv_peak_bytes", r->kv_peak_bytes);
    field(b, "kv_density", r->kv_density);
    moa_buf_printf(b, "  \"spans\": {\"min\": %d, \"mean\": ", r->span_min);
    moa_json_number(b, r->span_mean);
    moa_buf_printf(b, ", \"max\": %d},\n", r->span_max);
    field_count(b, "peak_device_bytes", r->device_peak_bytes);
    field_count(b, "seed", j->sampling.seed);
    if (j->watch & MOA_WATCH_STATS) probe_json(j, b);
    field_text(b, "note", j->note, strlen(j->note));
    field_text(b, "version", MOA_VERSION, strlen(MOA_VERSION));
    b->size -= 2; /* the last comma and line end */
    moa_buf_str(b, "\n}");
}

static void say_figures(const job *j, const moa_run_result *r) {
    const char *type = moa_load_kv_type(j->args);
    const bool usual = strcmp(type, "f16") == 0;
    moa_remark(j->args, "prefill %d tokens in %.2f s, %.1f tok/s; decode %d tokens, %.1f tok/s; seed %llu",
               r->n_prompt, r->prefill_s, r->prefill_s > 0 ? r->n_prompt / r->prefill_s : 0, r->n_gen,
               r->decode_s > 0 ? r->n_gen / r->decode_s : 0, (unsigned long long)j->sampling.seed);
    moa_remark(
        j->args,
        "KV %.2f MiB%s%s, dense %.2f MiB, dense without grouping %.2f MiB; spans %d to %d tokens, mean %.0f",
        (double)r->kv_bytes / 1048576, usual ? "" : " in ", usual ? "" : type, (double)r->kv_formula.dense / 1048576,
        (double)r->kv_formula.mha / 1048576, r->span_min, r->span_max, r->span_mean);
}

static moa_status one_run(job *j, const moa_id_list *prompt, moa_buf *json, moa_err *err) {
    const char *logits = moa_args_text(j->args, MOA_OPT_LOGITS), *maps = moa_args_text(j->args, MOA_OPT_MAPS);
    const char *stats = moa_args_text(j->args, MOA_OPT_STATS);
    const int64_t limit = moa_args_int(j->args, MOA_OPT_CTX), n_gen = moa_args_int(j->args, MOA_OPT_N);
    moa_run_result r = {0};
    moa_status s = moa_load_probe(j->args, stats ? MOA_WATCH_STATS : 0, &j->watch, err);
    if (s != MOA_OK) return s;
    if (stats && !j->watch) return moa_fail(err, MOA_E_USAGE, "--stats %s with --probe off: there would be none", stats);
    if (limit > 0 && (int64_t)prompt->n + n_gen > limit)
        return moa_fail(err, MOA_E_INVALID, "%zu tokens and %lld to generate are more than -c %lld",
                        prompt->n, (long long)n_gen, (long long)limit);
    if (prompt->n > (size_t)j->loaded.model->shape.n_ctx)
        return moa_fail(err, MOA_E_INVALID, "%zu tokens do not fit the model's context of %d", prompt->n,
                        j->loaded.model->shape.n_ctx);
    moa_seq_reset(j->seq);
    moa_buf_clear(&j->text);
    j->made.n = 0;
    j->n_prompt = (int32_t)prompt->n;
    j->stream = (moa_text_stream){0};
    if (logits) {
        const moa_npy_shape shape = {MOA_NPY_F32, 2, {prompt->n, (size_t)j->loaded.model->shape.n_vocab}};
        MOA_TRY(moa_npy_open(&j->logits, logits, &shape, err));
    }
    const moa_run_config c = {.ids = prompt->data,
                              .n_ids = j->n_prompt,
                              .n_gen = (int32_t)n_gen,
                              .rules = j->loaded.plan->rules,
                              .watch = j->watch | (maps ? MOA_WATCH_CAPTURE : 0),
                              .sampling = j->sampling,
                              .ignore_end = moa_args_has(j->args, MOA_OPT_IGNORE_EOS),
                              .planned = on_planned,
                              .progress = on_progress,
                              .each_logits = logits ? on_logits : NULL,
                              .token = on_token,
                              .cancelled = moa_interrupted,
                              .user = j};
    moa_record_begin(j->record, j->prompt, j->n_prompt_bytes, j->seq, &c);
    s = moa_run(j->seq, &c, &r, err);
    moa_record_end(j->record, s == MOA_OK ? &r : NULL);
    if (s != MOA_OK) goto out;
    show(j, "", 0, true);
    if (j->show_text) (void)fputs("\n", stdout);
    if (j->status != MOA_OK) MOA_TRY(moa_fail(err, j->status, "%s", j->err.text));
    say_figures(j, &r);
    result_json(j, &r, json);
    if (r.stop == MOA_STOP_CANCELLED && r.n_prompt < j->n_prompt)
        MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted after %d of %d prompt tokens", r.n_prompt,
                         j->n_prompt));
    if (stats && j->made.n == 0) MOA_TRY(save_stats(j, stats, err));
    if (logits) MOA_TRY(moa_npy_commit(&j->logits, err));
    if (r.stop == MOA_STOP_CANCELLED)
        MOA_TRY(moa_fail(err, MOA_E_CANCELLED, "interrupted after %d tokens", r.n_gen));
    if (maps) MOA_TRY(save_maps(j, maps, err));
out:
    moa_npy_close(&j->logits);
    return s;
}

/* --- input ---------------------------------------------------------------------------------------------------------------------------- */

static moa_status check_usage(const moa_args *args, moa_err *err) {
    static const int inputs[] = {MOA_OPT_PROMPT, MOA_OPT_PROMPT_FILE, MOA_OPT_IDS, MOA_OPT_PROMPTS};
    int n = 0;
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        n += moa_args_has(args, inputs[i]);
    if (n > 1) return moa_fail(err, MOA_E_USAGE, "give one of --prompt, --prompt-file, --ids and --prompts");
    if (n == 0 && isatty(STDIN_FILENO))
        return moa_fail(err, MOA_E_USAGE,
                        "no input: give --prompt, --prompt-file, --ids or --prompts, or pipe the text in");
    if (moa_args_int(args, MOA_OPT_BATCH) > 1 &&
        (moa_args_has(args, MOA_OPT_LOGITS) || moa_args_has(args, MOA_OPT_MAPS) ||
         moa_args_has(args, MOA_OPT_STATS)))
        return moa_fail(err, MOA_E_USAGE,
                        "--logits, --maps and --stats are of one sequence: not with --batch");
    if (moa_args_has(args, MOA_OPT_IDS) &&
        (moa_args_has(args, MOA_OPT_CHAT) || moa_args_has(args, MOA_OPT_SYSTEM)))
        return moa_fail(err, MOA_E_USAGE, "--ids is used as it is: no --chat, no --system");
    if (moa_args_has(args, MOA_OPT_PROMPTS) &&
        (moa_args_has(args, MOA_OPT_LOGITS) || moa_args_has(args, MOA_OPT_MAPS) ||
         moa_args_has(args, MOA_OPT_STATS)))
        return moa_fail(err, MOA_E_USAGE,
                        "--logits, --maps and --stats are of one prompt: not with --prompts");
    return MOA_OK;
}

/* --- several in step ------------------------------------------------------------------------------------------------------------------ */

static void show_together(job *j, const moa_together *t, const moa_together_result *r) {
    for (int32_t i = 0; i < r->n; i++) {
        moa_buf text = {0};
        moa_together_text(t, &r->seqs[i], &text);
        j->stream = (moa_text_stream){0};
        show(j, text.data ? text.data : "", text.size, true);
        if (j->show_text) (void)fputs("\n", stdout);
        moa_buf_free(&text);
    }
    moa_remark(j->args,
               "%d sequences in step: prefill %lld tokens, %.1f tok/s; decode %lld tokens, %.1f tok/s in "
               "all; KV %.2f MiB, "
               "dense %.2f MiB; seed %llu",
               r->n, (long long)r->n_prefilled, r->prefill_s > 0 ? (double)r->n_prefilled / r->prefill_s : 0,
               (long long)r->n_gen, r->decode_s > 0 ? (double)r->n_gen / r->decode_s : 0,
               (double)r->kv_bytes / 1048576, (double)r->kv_bytes_dense / 1048576,
               (unsigned long long)j->sampling.seed);
}

static moa_status run_together(job *j, const moa_id_list *prompts, int32_t n, moa_buf *json, moa_err *err) {
    const int64_t limit = moa_args_int(j->args, MOA_OPT_CTX);
    const moa_together t = {.args = j->args,
                            .loaded = &j->loaded,
                            .sampling = j->sampling,
                            .n_gen = (int32_t)moa_args_int(j->args, MOA_OPT_N),
                            .ignore_end = moa_args_has(j->args, MOA_OPT_IGNORE_EOS),
                            .prompts = prompts,
                            .n = n};
    moa_together_result r;
    for (int32_t i = 0; i < n && limit > 0; i++)
        if ((int64_t)prompts[i].n + t.n_gen > limit)
            return moa_fail(err, MOA_E_INVALID, "%zu tokens and %d to generate are more than -c %lld",
                            prompts[i].n, t.n_gen, (long long)limit);
    moa_status s = moa_together_run(&t, &r, err);
    if (s == MOA_OK) {
        bool stopped = false;
        show_together(j, &t, &r);
        moa_together_json(&t, &r, moa_args_text(j->args, MOA_OPT_PLAN), json);
        for (int32_t i = 0; i < n; i++)
            stopped = stopped || r.seqs[i].stop == MOA_STOP_CANCELLED;
        if (stopped)
            s = moa_fail(err, MOA_E_CANCELLED, "interrupted after %lld tokens of %d sequences",
                         (long long)r.n_gen, n);
    }
    moa_together_free(&r);
    return s;
}

/* B copies of the prompt */
static moa_status run_copies(job *j, const moa_id_list *prompt, moa_buf *json, moa_err *err) {
    const int32_t n = (int32_t)moa_args_int(j->args, MOA_OPT_BATCH);
    moa_id_list *copies = malloc((size_t)n * sizeof *copies);
    if (!copies) return moa_fail(err, MOA_E_MEMORY, "no memory for %d prompts", n);
    for (int32_t i = 0; i < n; i++)
        copies[i] = *prompt;
    const moa_status s = run_together(j, copies, n, json, err);
    free(copies);
    return s;
}

/* one prompt, alone or in copies */
static moa_status run_ids(job *j, const moa_id_list *prompt, moa_buf *json, moa_err *err) {
    return moa_args_int(j->args, MOA_OPT_BATCH) > 1 ? run_copies(j, prompt, json, err)
                                                    : one_run(j, prompt, json, err);
}

/* the next line of text that is not empty, without its end; false: there is none */
static bool next_line(const moa_buf *text, size_t *at, const char **line, size_t *len) {
    while (*at < text->size) {
        const char *start = text->data + *at, *end = memchr(start, '\n', text->size - *at);
        *len = end ? (size_t)(end - start) : text->size - *at;
        *at += *len + 1;
        if (*len > 0 && start[*len - 1] == '\r') --*len;
        *line = start;
        if (*len > 0) return true;
    }
    return false;
}

/* lines in groups of B, each in step */
static moa_status run_groups(job *j, const moa_buf *text, moa_buf *json, moa_err *err) {
    const int32_t most = (int32_t)moa_args_int(j->args, MOA_OPT_BATCH);
    moa_id_list *prompts = calloc((size_t)most, sizeof *prompts);
    moa_status s = prompts ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for %d prompts", most);
    const char *line;
    size_t at = 0, len;
    int n_group = 0;
    moa_buf_str(json, "{\"batches\": [");
    while (s == MOA_OK) {
        int32_t n = 0;
        while (s == MOA_OK && n < most && next_line(text, &at, &line, &len)) {
            s = moa_load_text(j->args, j->loaded.model, line, len, &prompts[n], err);
            n += s == MOA_OK;
        }
        if (n > 0 && s == MOA_OK) {
            moa_buf_str(json, n_group++ ? ",\n" : "\n");
            s = run_together(j, prompts, n, json, err);
        }
        for (int32_t i = 0; i < n; i++)
            free(prompts[i].data);
        if (n < most) break;
    }
    moa_buf_str(json, "\n]}");
    free(prompts);
    if (s == MOA_OK && n_group == 0)
        return moa_fail(err, MOA_E_USAGE, "there is no prompt in it: every line is empty");
    return s;
}

/* --- lines, text, ids ----------------------------------------------------------------------------------------------------------------- */

static moa_status run_text(job *j, const char *text, size_t n, moa_buf *json, moa_err *err) {
    moa_id_list prompt;
    moa_status s = moa_load_text(j->args, j->loaded.model, text, n, &prompt, err);
    j->prompt = text;
    j->n_prompt_bytes = n;
    if (s == MOA_OK) s = run_ids(j, &prompt, json, err);
    free(prompt.data);
    return s;
}

/* one prompt a line; empty lines are skipped */
static moa_status run_lines(job *j, const moa_buf *text, moa_buf *json, moa_err *err) {
    moa_status s = MOA_OK;
    const char *line;
    size_t at = 0, len;
    int n = 0;
    if (moa_args_int(j->args, MOA_OPT_BATCH) > 1) return run_groups(j, text, json, err);
    moa_buf_str(json, "{\"runs\": [");
    while (s == MOA_OK && next_line(text, &at, &line, &len)) {
        moa_buf_str(json, n++ ? ",\n" : "\n");
        s = run_text(j, line, len, json, err);
    }
    moa_buf_str(json, "\n]}");
    if (s == MOA_OK && n == 0)
        return moa_fail(err, MOA_E_USAGE, "there is no prompt in it: every line is empty");
    return s;
}

static moa_status run_input(job *j, moa_buf *json, moa_err *err) {
    const char *prompt = moa_args_text(j->args, MOA_OPT_PROMPT), *ids = moa_args_text(j->args, MOA_OPT_IDS);
    const char *lines = moa_args_text(j->args, MOA_OPT_PROMPTS),
               *file = moa_args_text(j->args, MOA_OPT_PROMPT_FILE);
    moa_buf text = {0};
    moa_status s = MOA_OK;
    if (prompt) return run_text(j, prompt, strlen(prompt), json, err);
    if (ids) {
        moa_id_list list;
        s = moa_load_ids(ids, j->loaded.model, &list, err);
        if (s == MOA_OK) s = run_ids(j, &list, json, err);
        free(list.data);
        return s;
    }
    s = moa_file_read(lines ? lines : file ? file : "-", PROMPT_MAX, &text, err);
    if (s == MOA_OK)
        s = lines ? run_lines(j, &text, json, err)
                  : run_text(j, text.data ? text.data : "", text.size, json, err);
    moa_buf_free(&text);
    return s;
}

static moa_status run(const moa_args *args, moa_err *err) {
    const char *json_path = moa_args_text(args, MOA_OPT_JSON);
    moa_buf json = {0};
    job j = {.args = args,
             .prompt = "",
             .to_terminal = isatty(STDOUT_FILENO),
             .show_text = !json_path || strcmp(json_path, "-") != 0};
    moa_status s = MOA_OK;
    moa_interrupt_catch();
    MOA_TRY(check_usage(args, err));
    MOA_TRY(moa_load_sampling(args, &j.sampling, err));
    MOA_TRY(moa_load(&j.loaded, args, 0, err));
    MOA_TRY(moa_seq_open(&j.seq, j.loaded.engine, err));
    if (moa_args_int(args, MOA_OPT_BATCH) == 1) j.record = moa_record_open(args, &j.loaded, "run");
    s = run_input(&j, &json, err);
    if (json_path && (s == MOA_OK || (s == MOA_E_CANCELLED && json.size > 0))) {
        moa_buf_str(&json, "\n");
        const moa_status saved = moa_output_save(json_path, &json, s == MOA_OK ? err : NULL);
        if (s == MOA_OK) s = saved;
    }
out:
    moa_record_close(&j.record);
    moa_seq_close(&j.seq);
    moa_load_close(&j.loaded);
    moa_buf_free(&json);
    moa_buf_free(&j.text);
    free(j.made.data);
    free(j.logprobs);
    return s;
}

static const int options[] = {
    MOA_OPT_PROMPT,        MOA_OPT_PROMPT_FILE, MOA_OPT_PROMPTS,    MOA_OPT_IDS,
    MOA_OPT_CHAT,          MOA_OPT_SYSTEM,      MOA_OPT_N,          MOA_OPT_TEMP,
    MOA_OPT_TOP_K,         MOA_OPT_TOP_P,       MOA_OPT_MIN_P,      MOA_OPT_SEED,
    MOA_OPT_IGNORE_EOS,    MOA_OPT_PROBE,      MOA_OPT_PLAN,        MOA_OPT_DEVICE,     MOA_OPT_KV,
    MOA_OPT_CTX,           MOA_OPT_CHUNK,       MOA_OPT_THREADS,    MOA_OPT_REFERENCE,
    MOA_OPT_CAPTURE_LIMIT, MOA_OPT_BATCH,       MOA_OPT_JSON,       MOA_OPT_LOGITS,
    MOA_OPT_MAPS,          MOA_OPT_STATS,       MOA_OPT_NO_SESSION, MOA_OPT_QUIET,
    MOA_OPT_MODEL,         MOA_OPT_END};

const moa_batch moa_batch_run = {
    .name = "run",
    .help = "one prompt: prefill and generate",
    .usage = "MODEL --prompt TEXT [options]",
    .options = options,
    .min_words = 1,
    .max_words = 1,
    .more =
        "The generated text goes to stdout, everything else to stderr or the files named. Without an "
        "input option the text is\n"
        "read from stdin. --batch B: B copies in step, the i-th with seed + i; with --prompts, the lines in "
        "groups of B. A\n"
        "batch is not kept in the session store. ^C ends the run and keeps what was made (exit code 130).",
    .run = run,
};
