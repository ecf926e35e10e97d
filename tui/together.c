#include "tui/together.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/json.h"
#include "core/base/text.h"
#include "tui/batch/batch.h"
#include "version.h"

typedef struct crew {
    const moa_together *t;
    moa_together_result *r;
    const moa_shape *shape;
    moa_seq **seqs;         /* (n) */
    moa_sampler **samplers; /* (n) */
    moa_lanes *lanes;
    float *logits; /* (n, n_vocab) */
    int32_t *ends; /* (n_end) */
    int32_t n_end, n_started;
    int64_t n_total; /* prompt tokens, for the progress */
} crew;

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- before ------------------------------------------------------------------------------------------------------------------- */

static moa_status list_ends(crew *c, moa_err *err) {
    const moa_tokenizer *tok = c->t->loaded->model->tokenizer;
    c->ends = malloc((size_t)c->shape->n_vocab * sizeof *c->ends);
    if (!c->ends) return moa_fail(err, MOA_E_MEMORY, "no memory for the end tokens");
    for (int32_t id = 0; id < c->shape->n_vocab && !c->t->ignore_end; id++)
        if (moa_tokenizer_is_end(tok, id)) c->ends[c->n_end++] = id;
    return MOA_OK;
}

static moa_status open_seq(crew *c, int32_t i, moa_err *err) {
    const moa_together *t = c->t;
    moa_together_seq *s = &c->r->seqs[i];
    moa_sampling sampling = t->sampling;
    const int32_t n_prompt = (int32_t)t->prompts[i].n, room = c->shape->n_ctx - n_prompt;
    moa_status status = MOA_OK;
    if (room < 0)
        return moa_fail(err, MOA_E_INVALID, "prompt %d: %d tokens do not fit the model's context of %d", i,
                        n_prompt, c->shape->n_ctx);
    const int32_t n_gen = t->n_gen < room ? t->n_gen : room;
    *s = (moa_together_seq){.n_reserved = n_prompt + n_gen,
                            .stop = n_gen < t->n_gen ? MOA_STOP_CONTEXT : MOA_STOP_LENGTH};
    s->ids = malloc((size_t)(n_gen > 0 ? n_gen : 1) * sizeof *s->ids);
    if (!s->ids) return moa_fail(err, MOA_E_MEMORY, "no memory for %d ids", n_gen);
    sampling.seed += (uint64_t)i;
    status = moa_sampler_open(&c->samplers[i], &sampling, c->shape->n_vocab, err);
    if (status == MOA_OK) status = moa_seq_open(&c->seqs[i], t->loaded->engine, err);
    if (status == MOA_OK)
        status = moa_seq_plan(c->seqs[i], t->loaded->plan->rules, NULL, s->n_reserved, 0, NULL, 0, err);
    c->n_total += n_prompt;
    return status;
}

static moa_status crew_open(crew *c, moa_err *err) {
    const int32_t n = c->t->n;
    moa_status s = MOA_OK;
    c->shape = &c->t->loaded->model->shape;
    c->r->seqs = calloc((size_t)n, sizeof *c->r->seqs);
    c->r->n = n;
    c->seqs = calloc((size_t)n, sizeof *c->seqs);
    c->samplers = calloc((size_t)n, sizeof *c->samplers);
    c->logits = malloc((size_t)n * (size_t)c->shape->n_vocab * sizeof *c->logits);
    if (!c->r->seqs || !c->seqs || !c->samplers || !c->logits)
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d sequences of %d logits", n, c->shape->n_vocab));
    MOA_TRY(list_ends(c, err));
    for (int32_t i = 0; i < n; i++)
        MOA_TRY(open_seq(c, i, err));
    MOA_TRY(moa_engine_hold(c->t->loaded->engine, c->seqs, n, err));
out:
    return s;
}

static void crew_close(crew *c) {
    moa_lanes_close(&c->lanes);
    for (int32_t i = 0; i < c->t->n; i++) {
        if (c->seqs) moa_seq_close(&c->seqs[i]);
        if (c->samplers) moa_sampler_close(&c->samplers[i]);
    }
    (void)moa_engine_hold(c->t->loaded->engine, NULL, 0, NULL);
    free(c->seqs);
    free(c->samplers);
    free(c->logits);
    free(c->ends);
}

/* --- prefill --------------------------------------------------------------------------------------------------------------------- */

static void on_progress(void *user, int32_t done, int32_t total) {
    const crew *c = user;
    (void)total;
    moa_progress_show(c->t->args, "prefill", (double)(c->r->n_prompt + done), (double)c->n_total, "tokens");
}

static bool same_prompt(const crew *c, int32_t i) {
    const moa_id_list *a = &c->t->prompts[i];
    if (i == 0) return false;
    const moa_id_list *b = &c->t->prompts[i - 1];
    return a->n == b->n && memcmp(a->data, b->data, a->n * sizeof *a->data) == 0;
}

static moa_status prefill(crew *c, moa_err *err) {
    const size_t n_vocab = (size_t)c->shape->n_vocab;
    for (int32_t i = 0; i < c->t->n; i++) {
        const moa_id_list *p = &c->t->prompts[i];
        float *row = c->logits + (size_t)i * n_vocab;
        const moa_forward f = {.ids = p->data,
                               .n = (int32_t)p->n,
                               .logits = row,
                               .cancelled = moa_interrupted,
                               .progress = on_progress,
                               .user = c};
        const bool fork = same_prompt(c, i);
        const moa_status s =
            fork ? moa_seq_fork(c->seqs[i], c->seqs[i - 1], err) : moa_seq_forward(c->seqs[i], &f, err);
        if (s != MOA_OK) return s;
        if (fork) memcpy(row, row - n_vocab, n_vocab * sizeof *row);
        c->r->seqs[i].n_prompt = (int32_t)p->n;
        c->r->n_prompt += (int64_t)p->n;
        c->r->n_prefilled += fork ? 0 : (int64_t)p->n;
    }
    return MOA_OK;
}

/* --- steps ------------------------------------------------------------------------------------------------------------------------- */

static bool is_end(const crew *c, int32_t id) {
    for (int32_t i = 0; i < c->n_end; i++)
        if (c->ends[i] == id) return true;
    return false;
}

static int32_t limit_of(const moa_together_seq *s) {
    return s->n_reserved - s->n_prompt;
}

/* keeps a chosen token; true: another may follow */
static bool keep(const crew *c, int32_t i, int32_t id) {
    moa_together_seq *s = &c->r->seqs[i];
    if (s->n_gen >= limit_of(s)) return false;
    s->ids[s->n_gen++] = id;
    c->r->n_gen++;
    if (is_end(c, id)) {
        s->stop = MOA_STOP_END;
        return false;
    }
    return s->n_gen < limit_of(s);
}

static moa_status choose(crew *c, int32_t i, moa_err *err) {
    const int32_t id = moa_sampler_next(c->samplers[i], c->logits + (size_t)i * (size_t)c->shape->n_vocab,
                                        moa_seq_n_past(c->seqs[i]));
    return moa_lanes_feed(c->lanes, i, keep(c, i, id) ? id : -1, err);
}

static bool any_active(const crew *c) {
    for (int32_t i = 0; i < c->t->n; i++)
        if (moa_lanes_active(c->lanes, i)) return true;
    return false;
}

static void show_steps(const crew *c) {
    moa_progress_show(c->t->args, "decode", (double)c->r->n_gen, (double)c->t->n * c->t->n_gen, "tokens");
}

static moa_status steps(crew *c, moa_err *err) {
    const int32_t n = c->t->n;
    int32_t *ids = malloc((size_t)n * (MOA_LANES_LOOK + 1) * sizeof *ids),
            *made = ids + (size_t)n * MOA_LANES_LOOK;
    moa_status s = ids ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for the ids of %d lanes", n);
    while (s == MOA_OK && any_active(c)) {
        int32_t most = 1; /* steps until the longest is done */
        for (int32_t i = 0; i < n; i++)
            if (moa_lanes_active(c->lanes, i) && limit_of(&c->r->seqs[i]) - c->r->seqs[i].n_gen > most)
                most = limit_of(&c->r->seqs[i]) - c->r->seqs[i].n_gen;
        const int32_t n_step = most < MOA_LANES_LOOK ? most : MOA_LANES_LOOK;
        s = moa_lanes_greedy(c->lanes, n_step, ids, made, moa_interrupted, NULL, err);
        for (int32_t i = 0; i < n; i++)
            for (int32_t k = 0; k < made[i]; k++)
                (void)keep(c, i, ids[(size_t)i * (size_t)n_step + (size_t)k]);
        /* full to the last reserved token: nothing of it is left to be chosen */
        for (int32_t i = 0; s == MOA_OK && i < n; i++)
            if (moa_lanes_active(c->lanes, i) && c->r->seqs[i].n_gen >= limit_of(&c->r->seqs[i]))
                s = moa_lanes_feed(c->lanes, i, -1, err);
        show_steps(c);
    }
    free(ids);
    return s;
}

static moa_status generate(crew *c, moa_err *err) {
    const moa_lanes_config config = {.seqs = c->seqs, .n_seq = c->t->n, .end = c->ends, .n_end = c->n_end, .sampling = c->t->sampling};
    moa_status s = MOA_OK;
    if (c->t->n_gen == 0) return MOA_OK;
    MOA_TRY(moa_lanes_open(&c->lanes, c->t->loaded->engine, &config, err));
    for (int32_t i = 0; i < c->t->n; i++)
        MOA_TRY(choose(c, i, err));
    s = steps(c, err);
out:
    return s;
}

static void summarise(crew *c) {
    const moa_engine *e = c->t->loaded->engine;
    moa_together_result *r = c->r;
    moa_pages pages;
    moa_seq_pages(c->seqs[0], &pages);
    const moa_kv_type type = moa_engine_kv_type(e);
    r->kv_bytes = pages.used_bytes;
    r->device_peak_bytes = moa_engine_device_peak(e);
    for (int32_t i = 0; i < c->t->n; i++) {
        const moa_kv_bytes kv =
            moa_kv_formula(c->shape, type, NULL, r->seqs[i].n_reserved, moa_seq_n_past(c->seqs[i]));
        r->kv_bytes_dense += kv.dense;
        r->kv_bytes_mha += kv.mha;
    }
}

moa_status moa_together_run(const moa_together *t, moa_together_result *out, moa_err *err) {
    crew c = {.t = t, .r = out};
    moa_status s = MOA_OK;
    *out = (moa_together_result){0};
    MOA_TRY(crew_open(&c, err));
    const double start = now_s();
    s = prefill(&c, err);
    out->prefill_s = now_s() - start;
    if (s == MOA_OK) {
        s = generate(&c, err);
        out->decode_s = now_s() - start - out->prefill_s;
        moa_progress_show(t->args, "decode", 1, 1, "tokens");
    }
    if (s == MOA_E_CANCELLED) {
        for (int32_t i = 0; i < t->n; i++)
            if (out->seqs[i].stop != MOA_STOP_END && out->seqs[i].n_gen < limit_of(&out->seqs[i]))
                out->seqs[i].stop = MOA_STOP_CANCELLED;
        s = MOA_OK;
        if (err) *err = (moa_err){0};
    }
    if (s == MOA_OK) summarise(&c);
out:
    crew_close(&c);
    return s;
}

void moa_together_free(moa_together_result *r) {
    for (int32_t i = 0; r->seqs && i < r->n; i++)
        free(r->seqs[i].ids);
    free(r->seqs);
    *r = (moa_together_result){0};
}

/* --- the result ------------------------------------------------------------------------------------------------------------------- */

void moa_together_text(const moa_together *t, const moa_together_seq *s, moa_buf *out) {
    const moa_tokenizer *tok = t->loaded->model->tokenizer;
    for (int32_t i = 0; i < s->n_gen; i++) {
        size_t n;
        if (moa_tokenizer_is_control(tok, s->ids[i])) continue;
        const char *piece = moa_tokenizer_piece(tok, s->ids[i], &n);
        moa_buf_append(out, piece, n);
    }
}

static void seq_json(const moa_together *t, const moa_together_seq *s, uint64_t seed, moa_buf *b) {
    moa_buf text = {0};
    moa_buf_printf(b, "  {\"prompt_tokens\": %d, \"tokens\": [", s->n_prompt);
    for (int32_t i = 0; i < s->n_gen; i++)
        moa_buf_printf(b, "%s%d", i ? ", " : "", s->ids[i]);
    moa_together_text(t, s, &text);
    moa_buf_str(b, "], \"text\": ");
    moa_text_json(text.data ? text.data : "", text.size, b);
    moa_buf_printf(b, ", \"stop_reason\": \"%s\", \"n_reserved\": %d, \"seed\": %llu}",
                   moa_stop_name(s->stop), s->n_reserved, (unsigned long long)seed);
    moa_buf_free(&text);
}

static void text_field(moa_buf *b, const char *name, const char *text) {
    moa_buf_printf(b, " \"%s\": ", name);
    moa_text_json(text, strlen(text), b);
    moa_buf_str(b, ",\n");
}

static void number_field(moa_buf *b, const char *name, double x) {
    moa_buf_printf(b, " \"%s\": ", name);
    moa_json_number(b, x);
    moa_buf_str(b, ",\n");
}

static void count_field(moa_buf *b, const char *name, uint64_t n) {
    moa_buf_printf(b, " \"%s\": %llu,\n", name, (unsigned long long)n);
}

void moa_together_json(const moa_together *t, const moa_together_result *r, const char *plan, moa_buf *b) {
    moa_buf_str(b, "{\n");
    text_field(b, "model", t->loaded->path);
    text_field(b, "model_name", t->loaded->model->name);
    text_field(b, "fingerprint", t->loaded->model->fingerprint);
    text_field(b, "device", t->loaded->device);
    text_field(b, "device_why", t->loaded->why);
    text_field(b, "plan", plan);
    count_field(b, "batch", (uint64_t)r->n);
    count_field(b, "prompt_tokens", (uint64_t)r->n_prompt);
    count_field(b, "prefilled_tokens", (uint64_t)r->n_prefilled);
    count_field(b, "generated_tokens", (uint64_t)r->n_gen);
    number_field(b, "load_s", t->loaded->load_s);
    number_field(b, "prefill_tok_s", r->prefill_s > 0 ? (double)r->n_prefilled / r->prefill_s : (double)NAN);
    number_field(b, "decode_tok_s", r->decode_s > 0 ? (double)r->n_gen / r->decode_s : (double)NAN);
    count_field(b, "kv_bytes", (uint64_t)r->kv_bytes);
    count_field(b, "kv_bytes_dense", (uint64_t)r->kv_bytes_dense);
    count_field(b, "kv_bytes_mha", (uint64_t)r->kv_bytes_mha);
    count_field(b, "peak_device_bytes", (uint64_t)r->device_peak_bytes);
    count_field(b, "seed", (uint64_t)t->sampling.seed);
    text_field(b, "version", MOA_VERSION);
    moa_buf_str(b, " \"runs\": [\n");
    for (int32_t i = 0; i < r->n; i++) {
        seq_json(t, &r->seqs[i], t->sampling.seed + (uint64_t)i, b);
        moa_buf_str(b, i + 1 < r->n ? ",\n" : "\n");
    }
    moa_buf_str(b, " ]}");
}
