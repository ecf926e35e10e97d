#include "core/tasks/answer.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/text.h"

enum { STEPS = 8 }; /* tokens between two looks at the text of answers decoded together */

typedef struct listener {
    const moa_ask *ask;
    const moa_tokenizer *t;
    moa_buf raw;
    bool done;
} listener;

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool moa_answer_done(const char *text, size_t n, int stop) {
    bool seen = false, digits = false;
    for (size_t i = 0; i < n; i++) {
        const char c = text[i], next = i + 1 < n ? text[i + 1] : 0;
        if ((stop & MOA_STOP_AT_LINE) && seen && c == '\n') return true;
        if ((stop & MOA_STOP_AT_SENTENCE) && seen && (c == '.' || c == '!' || c == '?')) return true;
        if ((stop & MOA_STOP_AT_NUMBER) && digits && !is_digit(c) &&
            !(c == ',' && (i + 1 == n || is_digit(next))))
            return true;
        seen = seen || (c != ' ' && c != '\n' && c != '\t' && c != '\r');
        digits = digits || is_digit(c);
    }
    return false;
}

static void on_progress(void *user, int32_t done, int32_t total) {
    const listener *l = user;
    if (l->ask->progress) l->ask->progress(l->ask->user, done, total);
}

static bool on_cancelled(void *user) {
    const listener *l = user;
    return l->ask->cancelled && l->ask->cancelled(l->ask->user);
}

/* true: the answer is there */
static bool hear(listener *l, int32_t id) {
    size_t n;
    const char *piece = moa_tokenizer_piece(l->t, id, &n);
    if (!moa_tokenizer_is_control(l->t, id)) moa_buf_append(&l->raw, piece, n);
    l->done = moa_answer_done(l->raw.data ? l->raw.data : "", l->raw.size, l->ask->stop);
    return l->done;
}

static bool on_token(void *user, const moa_run_token *t) {
    return !hear(user, t->id);
}

/* the bytes heard, as text */
static moa_status write_down(const listener *l, int32_t n_gen, moa_answer *out, moa_err *err) {
    moa_utf8_replace(l->raw.data ? l->raw.data : "", l->raw.size, &out->text);
    moa_buf_str(&out->text, "");
    out->n_gen = n_gen;
    return moa_buf_ok(&l->raw) && moa_buf_ok(&out->text)
               ? MOA_OK
               : moa_fail(err, MOA_E_MEMORY, "no memory for an answer of %d tokens", n_gen);
}

void moa_answer_free(moa_answer *a) {
    moa_buf_free(&a->text);
    *a = (moa_answer){0};
}

moa_status moa_answer_make(moa_seq *seq, const moa_ask *ask, moa_answer *out, moa_err *err) {
    listener l = {.ask = ask, .t = moa_engine_model(moa_seq_engine(seq))->tokenizer};
    moa_run_result r = {0};
    const moa_run_config c = {.ids = ask->ids,
                              .n_ids = ask->n_ids,
                              .n_gen = ask->n_gen,
                              .rules = ask->rules,
                              .sampling = {.temp = 0, .top_p = 1},
                              .progress = on_progress,
                              .token = on_token,
                              .cancelled = on_cancelled,
                              .user = &l};
    moa_status s = MOA_OK;
    *out = (moa_answer){0};
    moa_seq_reset(seq);
    MOA_TRY(moa_run(seq, &c, &r, err));
    if (r.stop == MOA_STOP_CANCELLED && !l.done)
        MOA_TRY(moa_fail(err, MOA_E_CANCELLED,
                         "interrupted after %d of %d prompt tokens and %d of the answer", r.n_prompt,
                         ask->n_ids, r.n_gen));
    MOA_TRY(write_down(&l, r.n_gen, out, err));
    out->whole = l.done || r.stop == MOA_STOP_END;
    out->prefill_s = r.prefill_s;
    out->decode_s = r.decode_s;
    out->kv_peak_bytes = r.kv_peak_bytes;
    out->kv_density = r.kv_density;
out:
    moa_buf_free(&l.raw);
    return s;
}

/* --- several together ------------------------------------------------------------------------------------------------------- */

typedef struct party {
    moa_seq *const *seqs;
    const moa_ask *asks;
    moa_answer *out;
    int32_t n;
    const moa_model *model;
    listener *listeners; /* (n) owned */
    int32_t *n_gen;      /* (n) tokens heard, owned */
    int32_t *limit;      /* (n) of them, owned */
    bool *ended;         /* (n) the model ended the answer, owned */
    int32_t *ends;       /* ids that end an answer, owned */
    int32_t n_end;
    int32_t *ids, *n_ids; /* (n, STEPS) and (n) of a look, owned */
    float *logits;        /* (n_vocab) owned */
    int32_t n_done;       /* prompt tokens of those before */
} party;

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static moa_status party_open(party *y, moa_err *err) {
    const size_t n = (size_t)y->n, n_vocab = (size_t)y->model->shape.n_vocab;
    y->listeners = calloc(n, sizeof *y->listeners);
    y->n_gen = calloc(n, sizeof *y->n_gen);
    y->limit = calloc(n, sizeof *y->limit);
    y->ended = calloc(n, sizeof *y->ended);
    y->ends = calloc(n_vocab, sizeof *y->ends);
    y->ids = calloc(n * STEPS, sizeof *y->ids);
    y->n_ids = calloc(n, sizeof *y->n_ids);
    y->logits = calloc(n_vocab, sizeof *y->logits);
    if (!y->listeners || !y->n_gen || !y->limit || !y->ended || !y->ends || !y->ids || !y->n_ids || !y->logits)
        return moa_fail(err, MOA_E_MEMORY, "no memory for %d answers together", y->n);
    for (int32_t id = 0; id < y->model->shape.n_vocab; id++)
        if (moa_tokenizer_is_end(y->model->tokenizer, id)) y->ends[y->n_end++] = id;
    for (int32_t i = 0; i < y->n; i++)
        y->listeners[i] = (listener){.ask = &y->asks[i], .t = y->model->tokenizer};
    return MOA_OK;
}

static void party_close(party *y) {
    for (int32_t i = 0; y->listeners && i < y->n; i++)
        moa_buf_free(&y->listeners[i].raw);
    free(y->listeners);
    free(y->n_gen);
    free(y->limit);
    free(y->ended);
    free(y->ends);
    free(y->ids);
    free(y->n_ids);
    free(y->logits);
}

static void on_party_progress(void *user, int32_t done, int32_t total) {
    const party *y = user;
    (void)total;
    if (y->asks[0].progress) y->asks[0].progress(y->asks[0].user, y->n_done + done, y->n_done + done);
}

static bool on_party_cancelled(void *user) {
    const party *y = user;
    return y->asks[0].cancelled && y->asks[0].cancelled(y->asks[0].user);
}

/* answer i has got a token; true: it goes on */
static bool take(party *y, int32_t i, int32_t id) {
    const bool done = hear(&y->listeners[i], id);
    y->n_gen[i]++;
    y->ended[i] = !done && moa_tokenizer_is_end(y->model->tokenizer, id);
    return !done && !y->ended[i] && y->n_gen[i] < y->limit[i];
}

static int32_t likeliest(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static moa_status plan(party *y, int32_t i, moa_err *err) {
    const moa_ask *ask = &y->asks[i];
    const int32_t room = y->model->shape.n_ctx - ask->n_ids;
    if (ask->n_ids < 1 || room < 0)
        return moa_fail(err, MOA_E_INVALID, "a prompt of %d tokens; from 1 to the model's context of %d", ask->n_ids,
                        y->model->shape.n_ctx);
    y->limit[i] = ask->n_gen < room ? ask->n_gen : room;
    return moa_seq_plan(y->seqs[i], ask->rules, NULL, ask->n_ids + y->limit[i], 0, NULL, 0, err);
}

/* the prompt of question i; *id: the first token of its answer, -1: that was all */
static moa_status prefill(party *y, int32_t i, int32_t *id, moa_err *err) {
    const moa_ask *ask = &y->asks[i];
    const double begin = now_s();
    const moa_forward f = {.ids = ask->ids,
                           .n = ask->n_ids,
                           .logits = y->limit[i] > 0 ? y->logits : NULL,
                           .cancelled = on_party_cancelled,
                           .progress = on_party_progress,
                           .user = y};
    *id = -1;
    const moa_status s = moa_seq_forward(y->seqs[i], &f, err);
    if (s != MOA_OK) return s;
    y->out[i].prefill_s = now_s() - begin;
    y->n_done += ask->n_ids;
    if (y->limit[i] == 0) return MOA_OK;
    const int32_t first = likeliest(y->logits, y->model->shape.n_vocab);
    if (take(y, i, first)) *id = first;
    return MOA_OK;
}

/* all lanes that were fed, until none goes on */
static moa_status decode(party *y, moa_lanes *lanes, moa_err *err) {
    for (bool more = true; more;) {
        more = false;
        const moa_status s = moa_lanes_greedy(lanes, STEPS, y->ids, y->n_ids, on_party_cancelled, y, err);
        if (s != MOA_OK) return s;
        for (int32_t i = 0; i < y->n; i++) {
            bool on = y->n_ids[i] > 0;
            for (int32_t k = 0; k < y->n_ids[i] && on; k++)
                on = take(y, i, y->ids[i * STEPS + k]);
            if (!on && moa_lanes_active(lanes, i)) (void)moa_lanes_feed(lanes, i, -1, NULL);
            more |= on;
        }
    }
    return MOA_OK;
}

/* as moa_seq_kv_density() had it with the answer's last token; the lanes may have gone some tokens on */
static double density_after(const moa_seq *s, const moa_shape *shape, int32_t n_tok) {
    const int32_t n_group = shape->n_head / shape->n_head_kv;
    const int64_t n = (int64_t)shape->n_layer * shape->n_head_kv;
    double kept = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t widest = 0;
        for (int32_t k = 0; k < n_group; k++) {
            const int32_t span = moa_seq_spans(s)[i * n_group + k];
            widest = span > widest ? span : widest;
        }
        kept += moa_n_seen(widest, n_tok - 1);
    }
    return kept / (double)n / n_tok;
}

static moa_status sum_up(party *y, double decode_s, moa_err *err) {
    int64_t n_tok = 0;
    moa_status s = MOA_OK;
    moa_pages pages;
    moa_seq_pages(y->seqs[0], &pages);
    for (int32_t i = 0; i < y->n; i++)
        n_tok += y->n_gen[i];
    for (int32_t i = 0; i < y->n && s == MOA_OK; i++) {
        moa_answer *a = &y->out[i];
        s = write_down(&y->listeners[i], y->n_gen[i], a, err);
        a->whole = y->listeners[i].done || y->ended[i];
        a->decode_s = n_tok > 0 ? decode_s * y->n_gen[i] / (double)n_tok : 0;
        a->kv_peak_bytes = (uint64_t)pages.peak * pages.page_bytes;
        a->kv_density = density_after(y->seqs[i], &y->model->shape, y->asks[i].n_ids + y->n_gen[i]);
    }
    return s;
}

moa_status moa_answer_batch(moa_seq *const *seqs, const moa_ask *asks, int32_t n, moa_answer *out, moa_err *err) {
    moa_engine *e = moa_seq_engine(seqs[0]);
    party y = {.seqs = seqs, .asks = asks, .out = out, .n = n, .model = moa_engine_model(e)};
    moa_lanes *lanes = NULL;
    moa_status s = MOA_OK;
    int32_t *first = NULL;
    bool any = false;
    memset(out, 0, (size_t)n * sizeof *out);
    MOA_TRY(party_open(&y, err));
    first = calloc((size_t)n, sizeof *first);
    if (!first) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d answers together", n));
    for (int32_t i = 0; i < n; i++)
        moa_seq_reset(seqs[i]);
    for (int32_t i = 0; i < n; i++)
        MOA_TRY(plan(&y, i, err));
    MOA_TRY(moa_engine_hold(e, seqs, n, err)); /* the pool grows once */
    for (int32_t i = 0; i < n; i++) {
        MOA_TRY(prefill(&y, i, &first[i], err));
        any |= first[i] >= 0;
    }
    const double begin = now_s();
    if (any) {
        const moa_lanes_config c = {.seqs = seqs, .n_seq = n, .end = y.ends, .n_end = y.n_end};
        MOA_TRY(moa_lanes_open(&lanes, e, &c, err));
        for (int32_t i = 0; i < n; i++)
            if (first[i] >= 0) MOA_TRY(moa_lanes_feed(lanes, i, first[i], err));
        MOA_TRY(decode(&y, lanes, err));
    }
    MOA_TRY(sum_up(&y, now_s() - begin, err));
out:
    moa_lanes_close(&lanes);
    party_close(&y);
    free(first);
    return s;
}
