#include "core/tasks/answer.h"

#include "core/base/text.h"

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

static bool on_token(void *user, const moa_run_token *t) {
    listener *l = user;
    size_t n;
    const char *piece = moa_tokenizer_piece(l->t, t->id, &n);
    if (!moa_tokenizer_is_control(l->t, t->id)) moa_buf_append(&l->raw, piece, n);
    l->done = moa_answer_done(l->raw.data ? l->raw.data : "", l->raw.size, l->ask->stop);
    return !l->done;
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
    moa_utf8_replace(l.raw.data ? l.raw.data : "", l.raw.size, &out->text);
    moa_buf_str(&out->text, "");
    if (!moa_buf_ok(&l.raw) || !moa_buf_ok(&out->text))
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for an answer of %d tokens", r.n_gen));
    out->n_gen = r.n_gen;
    out->whole = l.done || r.stop == MOA_STOP_END;
    out->prefill_s = r.prefill_s;
    out->decode_s = r.decode_s;
    out->kv_peak_bytes = r.kv_peak_bytes;
    out->kv_density = r.kv_density;
out:
    moa_buf_free(&l.raw);
    return s;
}
