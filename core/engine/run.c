/* A run: plan for N = tokens there + prompt + limit, prefill, then one token after the other.
 *
 * Where nobody wants the logits themselves (a reference kept or compared with, given tokens), the device chooses and goes on by itself
 * (steady.h), the same tokens; the host hears of them. Otherwise:
 *
 *   logits(prompt) -> choose t0 -> logits(t0) -> choose t1 -> ... -> the last token also passes the layers, so that a next turn
 *   finds the whole answer in the sequence (its own logits are not computed)
 *
 * ttft: from the start of the prefill to the first token chosen. decode_s: from there on; it covers as many passes as there
 * are tokens. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/size.h"
#include "core/engine/engine_impl.h"
#include "core/engine/run.h"
#include "core/engine/steady.h"

enum { N_TOP = 5 };

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

const char *moa_stop_name(moa_stop s) {
    switch (s) {
#define X(name, text)                                                                                        \
    case MOA_STOP_##name: return text;
        MOA_STOP_MAP(X)
#undef X
    }
    return "?";
}

void moa_run_reference_free(moa_run_reference *r) {
    free(r->logits);
    *r = (moa_run_reference){0};
}

/* room for n rows, none filled */
static moa_status begin_reference(moa_run_reference *r, int32_t n, int32_t n_vocab, moa_err *err) {
    if (r->capacity < n || r->n_vocab != n_vocab) {
        size_t bytes;
        float *rows = NULL;
        if (moa_size_mul((size_t)(n > 0 ? n : 1), (size_t)n_vocab, &bytes) &&
            moa_size_mul(bytes, sizeof *rows, &bytes))
            rows = malloc(bytes);
        if (!rows) return moa_fail(err, MOA_E_MEMORY, "no memory to keep the logits of %d tokens", n);
        free(r->logits);
        *r = (moa_run_reference){.logits = rows, .n_vocab = n_vocab, .capacity = n};
    }
    r->n = 0;
    return MOA_OK;
}

typedef struct run {
    moa_seq *s;
    const moa_run_config *c;
    moa_run_result *r;
    const moa_model *model;
    moa_sampler *sampler;
    float *logits; /* (n_vocab) of the next token */
    moa_steady *steady; /* or NULL */
    moa_told told;      /* by it, of the next token: where .stamp is not 0 */
    int32_t n_gen;      /* limit, after the context's */
    bool clipped;       /* by the context */
    double start_s;
} run;

/* --- before --------------------------------------------------------------------------------------------------------------- */

static moa_status check(const run *x, moa_err *err) {
    const moa_run_config *c = x->c;
    const int32_t n_past = x->s->n_past, n_ctx = x->model->shape.n_ctx;
    if (c->n_ids < 1 || !c->ids)
        return moa_fail(err, MOA_E_USAGE, "a run of %d tokens; at least 1", c->n_ids);
    if (c->n_gen < 0 || c->n_force < 0 || c->n_force > c->n_gen)
        return moa_fail(err, MOA_E_USAGE, "%d tokens to generate, %d of them given", c->n_gen, c->n_force);
    for (int32_t i = 0; i < c->n_force; i++)
        if (c->force[i] < 0 || c->force[i] >= x->model->shape.n_vocab)
            return moa_fail(err, MOA_E_INVALID, "given token %d has id %d; the vocabulary has %d", i,
                            c->force[i], x->model->shape.n_vocab);
    if (c->n_ids > n_ctx - n_past)
        return moa_fail(err, MOA_E_INVALID, "%d tokens after %d do not fit the model's context of %d",
                        c->n_ids, n_past, n_ctx);
    return MOA_OK;
}

static moa_status begin(run *x, moa_err *err) {
    const moa_run_config *c = x->c;
    const moa_shape *shape = &x->model->shape;
    char note[256] = "";
    moa_status s = MOA_OK;
    MOA_TRY(check(x, err));
    const int32_t room = shape->n_ctx - x->s->n_past - c->n_ids;
    x->clipped = c->n_gen > room;
    x->n_gen = x->clipped ? room : c->n_gen;
    MOA_TRY(moa_sampler_open(&x->sampler, &c->sampling, shape->n_vocab, err));
    x->logits = malloc((size_t)shape->n_vocab * sizeof *x->logits);
    if (!x->logits) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d logits", shape->n_vocab));
    if (c->keep) MOA_TRY(begin_reference(c->keep, x->n_gen, shape->n_vocab, err));
    MOA_TRY(moa_seq_plan(x->s, c->rules, c->measure, x->s->n_past + c->n_ids + x->n_gen, c->watch, note,
                         sizeof note, err));
    x->r->n_reserved = x->s->n_reserved;
    if (c->planned) c->planned(c->user, x->s, note);
out:
    return s;
}

/* --- under way -------------------------------------------------------------------------------------------------------------- */

static moa_status prefill(run *x, moa_err *err) {
    const moa_run_config *c = x->c;
    const int32_t n_before = x->s->n_past;
    const moa_forward f = {.ids = c->ids,
                           .n = c->n_ids,
                           .chunk = c->chunk,
                           .logits = x->n_gen > 0 ? x->logits : NULL,
                           .each_logits = c->each_logits,
                           .cancelled = c->cancelled,
                           .progress = c->progress,
                           .user = c->user};
    x->start_s = now_s();
    const moa_status s = moa_seq_forward(x->s, &f, err);
    x->r->prefill_s = now_s() - x->start_s;
    x->r->n_prompt = x->s->n_past - n_before;
    return s;
}

static void describe(const run *x, int32_t index, int32_t id, moa_run_token *t) {
    const moa_run_reference *ref = x->c->against;
    const int32_t n_vocab = x->model->shape.n_vocab;
    *t = (moa_run_token){
        .index = index, .pos = x->s->n_past, .id = id, .kl = NAN, .n_top = n_vocab < N_TOP ? n_vocab : N_TOP};
    if (x->told.stamp) {
        t->logprob = x->told.logprob;
        t->entropy = x->told.entropy;
        memcpy(t->top, x->told.top, sizeof t->top);
        return;
    }
    moa_logits_describe(x->logits, n_vocab, id, t->n_top, t->top, &t->logprob, &t->entropy);
    if (ref && index < ref->n && ref->n_vocab == n_vocab)
        t->kl = (float)moa_logits_kl(ref->logits + (int64_t)index * n_vocab, x->logits, n_vocab);
}

static void keep(const run *x) {
    moa_run_reference *k = x->c->keep;
    const size_t n = (size_t)x->model->shape.n_vocab;
    if (k) memcpy(k->logits + (size_t)k->n++ * n, x->logits, n * sizeof *x->logits);
}

static moa_status open_steady(run *x, moa_err *err) {
    const moa_tokenizer *tok = x->model->tokenizer;
    const int32_t n_vocab = x->model->shape.n_vocab;
    int32_t n = 0, *ends = malloc((size_t)n_vocab * sizeof *ends);
    if (!ends) return moa_fail(err, MOA_E_MEMORY, "no memory for the end tokens among %d", n_vocab);
    for (int32_t id = 0; id < n_vocab && !x->c->ignore_end; id++)
        if (moa_tokenizer_is_end(tok, id)) ends[n++] = id;
    const moa_steady_config c = {.sampling = x->c->sampling, .end = ends, .n_end = n, .n_top = n_vocab < N_TOP ? n_vocab : N_TOP,
                                .stat_every = moa_steady_stat_every(x->s)};
    const moa_status s = moa_steady_open(&x->steady, x->s, &c, err);
    free(ends);
    return s;
}

/* The token at index passes the layers; what follows it is told, or its logits are there. Not to be cancelled: what was told
 * of is in the sequence. */
static moa_status pass_on(run *x, int32_t index, int32_t id, bool more, moa_err *err) {
    const bool logits = x->c->keep || x->c->against || index + 1 < x->c->n_force;
    moa_status s = MOA_OK;
    x->told = (moa_told){0};
    if (!x->steady && more && !logits && moa_steady_can(x->s)) s = open_steady(x, err);
    if (s != MOA_OK) return s;
    if (x->steady) return moa_steady_next(x->steady, id, more ? &x->told : NULL, err);
    const moa_forward f = {.ids = &id, .n = 1, .logits = more ? x->logits : NULL};
    return moa_seq_forward(x->s, &f, err);
}

/* One token: chosen, told, passed through the layers. *more: whether another is to follow. */
static moa_status one_token(run *x, int32_t index, bool *more, moa_err *err) {
    const moa_run_config *c = x->c;
    const bool forced = index < c->n_force;
    moa_run_token token;
    keep(x);
    const int32_t id = forced             ? c->force[index]
                       : x->told.stamp ? x->told.id
                                       : moa_sampler_next(x->sampler, x->logits, x->s->n_past);
    describe(x, index, id, &token);
    if (index == 0) x->r->ttft_s = now_s() - x->start_s;
    const bool stopped = c->token && !c->token(c->user, &token);
    const bool end = !forced && !c->ignore_end && moa_tokenizer_is_end(x->model->tokenizer, id);
    *more = !stopped && !end && index + 1 < x->n_gen;
    if (stopped)
        x->r->stop = MOA_STOP_CANCELLED;
    else if (end)
        x->r->stop = MOA_STOP_END;
    const moa_status s = pass_on(x, index, id, *more, err);
    if (s == MOA_OK) x->r->n_gen++;
    return s;
}

static moa_status generate(run *x, moa_err *err) {
    moa_status s = MOA_OK;
    bool more = x->n_gen > 0;
    x->r->stop = x->clipped ? MOA_STOP_CONTEXT : MOA_STOP_LENGTH;
    for (int32_t i = 0; more && s == MOA_OK; i++) {
        if (x->c->cancelled && x->c->cancelled(x->c->user))
            return moa_fail(err, MOA_E_CANCELLED, "interrupted after %d tokens", i);
        s = one_token(x, i, &more, err);
    }
    return s;
}

/* --- after ------------------------------------------------------------------------------------------------------------------ */

static void summarise(const run *x) {
    const moa_seq *s = x->s;
    const moa_engine *e = s->engine;
    const moa_shape *shape = &x->model->shape;
    const int64_t n = (int64_t)shape->n_layer * shape->n_head;
    moa_run_result *r = x->r;
    double sum = 0;
    r->kv_formula = moa_kv_formula(shape, e->kv_type, x->c->rules, s->n_reserved, s->n_past);
    r->kv_bytes = (uint64_t)s->n_held * e->page_bytes;
    r->kv_peak_bytes = (uint64_t)s->peak_held * e->page_bytes;
    r->kv_density = moa_seq_kv_density(s);
    r->span_min = r->span_max = s->span[0];
    for (int64_t i = 0; i < n; i++) {
        if (s->span[i] < r->span_min) r->span_min = s->span[i];
        if (s->span[i] > r->span_max) r->span_max = s->span[i];
        sum += s->span[i];
    }
    r->span_mean = sum / (double)n;
    r->device_bytes = e->device_bytes;
    r->device_peak_bytes = e->device_peak;
}

moa_status moa_run(moa_seq *seq, const moa_run_config *config, moa_run_result *result, moa_err *err) {
    run x = {.s = seq, .c = config, .r = result, .model = seq->engine->model};
    moa_status s = MOA_OK;
    *result = (moa_run_result){.stop = MOA_STOP_CANCELLED, .kv_density = NAN};
    MOA_TRY(begin(&x, err));
    s = prefill(&x, err);
    if (s == MOA_OK) s = generate(&x, err);
    if (result->ttft_s > 0) result->decode_s = now_s() - x.start_s - result->ttft_s;
    moa_steady_close(&x.steady);
    if (s == MOA_E_CANCELLED) {
        result->stop = MOA_STOP_CANCELLED;
        s = MOA_OK;
        if (err) *err = (moa_err){0};
    }
    summarise(&x);
out:
    moa_steady_close(&x.steady);
    moa_sampler_close(&x.sampler);
    free(x.logits);
    return s;
}
