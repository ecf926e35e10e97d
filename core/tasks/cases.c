#include "core/tasks/cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/sampler.h"
#include "core/tasks/answer.h"
#include "core/tasks/score.h"

struct moa_cases {
    const moa_model *m;
    moa_cases_config c;
    moa_form form;
    int32_t n_gen;
    int32_t *n; /* (n_length) */
    /* jsonl */
    moa_token_items *items; /* (n_length) */
    /* ppl */
    int32_t **ids; /* (docs) tokens of each document */
    int32_t *n_ids;
    int32_t bos; /* -1: none */
};

static const struct {
    const char *name;
    bool synthetic;
} tasks[] = {
#define X(name, text, synthetic) {text, synthetic},
    MOA_TASK_MAP(X)
#undef X
};

const char *moa_task_name(moa_task t) {
    return tasks[t].name;
}
bool moa_task_synthetic(moa_task t) {
    return tasks[t].synthetic;
}
bool moa_task_parse(const char *text, moa_task *out) {
    for (int t = 0; t < MOA_TASK_COUNT; t++)
        if (strcmp(text, tasks[t].name) == 0) {
            *out = (moa_task)t;
            return true;
        }
    return false;
}

static moa_synth_kind kind_of(moa_task t) {
    switch (t) {
    case MOA_TASK_PASSKEY: return MOA_SYNTH_PASSKEY;
    case MOA_TASK_NEEDLE: return MOA_SYNTH_NEEDLE;
    case MOA_TASK_FACTS: return MOA_SYNTH_FACTS;
    default: return MOA_SYNTH_RETRIEVAL;
    }
}

/* --- open ------------------------------------------------------------------------------------------------------------------- */

/* room for the answer: a number of five digits takes up to six tokens, a sentence around it some twenty more */
static int32_t default_n_gen(moa_task t, moa_form form) {
    if (t == MOA_TASK_PPL) return 0;
    if (t == MOA_TASK_JSONL) return 128;
    return form == MOA_FORM_CONTINUE ? 12 : 32;
}

static moa_status open_items(moa_cases *x, moa_err *err) {
    moa_status s = MOA_OK;
    x->items = calloc((size_t)x->c.n_length, sizeof *x->items);
    if (!x->items) return moa_fail(err, MOA_E_MEMORY, "no memory for %d lengths", x->c.n_length);
    for (int32_t l = 0; l < x->c.n_length; l++) {
        const moa_encode how = {.form = x->form, .n_max = x->c.lengths[l], .n_room = x->n_gen};
        MOA_TRY(moa_items_encode(x->m, x->c.items, &how, x->c.n_item, &x->items[l], err));
        x->n[l] = x->items[l].n;
        if (x->n[l] == 0)
            MOA_TRY(moa_fail(err, MOA_E_INVALID, "none of %d items fits %d tokens: %s", x->c.items->n,
                             x->c.lengths[l], x->items[l].why));
    }
out:
    return s;
}

static moa_status open_windows(moa_cases *x, moa_err *err) {
    const moa_tokenizer *t = x->m->tokenizer;
    const int32_t n_doc = x->c.docs->n;
    moa_status s = MOA_OK;
    int32_t *bos = NULL;
    size_t n = 0;
    x->ids = calloc((size_t)n_doc, sizeof *x->ids);
    x->n_ids = calloc((size_t)n_doc, sizeof *x->n_ids);
    if (!x->ids || !x->n_ids) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d documents", n_doc));
    MOA_TRY(moa_tokenizer_encode(t, "", 0, MOA_TOK_BOS, &bos, &n, err));
    x->bos = n > 0 ? bos[0] : -1;
    for (int32_t d = 0; d < n_doc; d++) {
        MOA_TRY(moa_tokenizer_encode(t, x->c.docs->data[d].text, x->c.docs->data[d].n_bytes, 0, &x->ids[d],
                                     &n, err));
        if (n > INT32_MAX)
            MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: %zu tokens", x->c.docs->data[d].name, n));
        x->n_ids[d] = (int32_t)n;
    }
out:
    free(bos);
    return s;
}

/* tokens of a window that come from the document */
static int32_t window_of(const moa_cases *x, int32_t length_i) {
    return x->c.lengths[length_i] - (x->bos >= 0);
}

static int64_t n_windows(const moa_cases *x, int32_t length_i) {
    int64_t n = 0;
    for (int32_t d = 0; d < x->c.docs->n; d++)
        n += x->n_ids[d] / window_of(x, length_i);
    return n;
}

static moa_status count_windows(moa_cases *x, moa_err *err) {
    for (int32_t l = 0; l < x->c.n_length; l++) {
        if (window_of(x, l) < 2)
            return moa_fail(err, MOA_E_INVALID, "windows of %d tokens judge nothing", x->c.lengths[l]);
        const int64_t n = n_windows(x, l);
        if (n == 0)
            return moa_fail(err, MOA_E_INVALID, "none of %d documents has %d tokens", x->c.docs->n,
                            x->c.lengths[l]);
        x->n[l] = n < x->c.n_item ? (int32_t)n : x->c.n_item;
    }
    return MOA_OK;
}

static moa_status check(const moa_cases_config *c, const moa_model *m, moa_err *err) {
    if (c->n_length < 1 || c->n_item < 1 || c->n_depth < 1 || c->n_gen < 0)
        return moa_fail(err, MOA_E_INVALID, "%d lengths, %d items, %d depths: at least one each", c->n_length,
                        c->n_item, c->n_depth);
    if ((int64_t)c->n_item * c->n_depth > 1 << 20)
        return moa_fail(err, MOA_E_INVALID, "%d items at %d depths: more than %d cases", c->n_item,
                        c->n_depth, 1 << 20);
    for (int32_t l = 0; l < c->n_length; l++)
        if (c->lengths[l] < 1 || c->lengths[l] > m->shape.n_ctx)
            return moa_fail(err, MOA_E_INVALID, "a length of %d tokens; the model's context is %d",
                            c->lengths[l], m->shape.n_ctx);
    if (c->task == MOA_TASK_PPL && (!c->docs || c->docs->n == 0))
        return moa_fail(err, MOA_E_USAGE, "perplexity needs documents");
    if (c->task == MOA_TASK_JSONL && (!c->items || c->items->n == 0))
        return moa_fail(err, MOA_E_USAGE, "jsonl needs items");
    return MOA_OK;
}

moa_status moa_cases_open(moa_cases **out, const moa_model *m, const moa_cases_config *config, moa_err *err) {
    moa_status s = MOA_OK;
    *out = NULL;
    moa_cases *x = calloc(1, sizeof *x);
    if (!x) return moa_fail(err, MOA_E_MEMORY, "no memory for an evaluation");
    x->m = m;
    x->c = *config;
    x->bos = -1;
    MOA_TRY(check(config, m, err));
    x->form = config->form;
    if (x->form == MOA_FORM_AUTO && moa_task_synthetic(config->task)) x->form = MOA_SYNTH_FORM;
    x->n_gen = config->n_gen > 0 ? config->n_gen : default_n_gen(config->task, x->form);
    x->n = calloc((size_t)config->n_length, sizeof *x->n);
    if (!x->n) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d lengths", config->n_length));
    if (config->task == MOA_TASK_JSONL) {
        MOA_TRY(open_items(x, err));
    } else if (config->task == MOA_TASK_PPL) {
        MOA_TRY(open_windows(x, err));
        MOA_TRY(count_windows(x, err));
    } else {
        for (int32_t l = 0; l < config->n_length; l++)
            x->n[l] = config->n_item * (config->task == MOA_TASK_NEEDLE ? config->n_depth : 1);
    }
    *out = x;
    return MOA_OK;
out:
    moa_cases_close(&x);
    return s;
}

void moa_cases_close(moa_cases **px) {
    moa_cases *x = *px;
    if (!x) return;
    for (int32_t l = 0; x->items && l < x->c.n_length; l++)
        moa_token_items_free(&x->items[l]);
    for (int32_t d = 0; x->ids && d < x->c.docs->n; d++)
        free(x->ids[d]);
    free(x->items);
    free(x->ids);
    free(x->n_ids);
    free(x->n);
    free(x);
    *px = NULL;
}

int32_t moa_cases_n(const moa_cases *x, int32_t length_i) {
    return x->n[length_i];
}
int32_t moa_cases_n_gen(const moa_cases *x) {
    return x->n_gen;
}
moa_form moa_cases_form(const moa_cases *x) {
    return x->form;
}

const char *moa_cases_losses(const moa_cases *x, int32_t length_i, int32_t *n_cut, int32_t *n_skipped) {
    *n_cut = x->items ? x->items[length_i].n_cut : 0;
    *n_skipped = x->items ? x->items[length_i].n_skipped : 0;
    return x->items ? x->items[length_i].why : "";
}

/* --- one case ------------------------------------------------------------------------------------------------------------------ */

void moa_case_free(moa_case *c) {
    moa_tokens_free(&c->tokens);
    for (int i = 0; i < c->n_expected; i++)
        free(c->expected[i]);
    *c = (moa_case){0};
}

static moa_status expect(moa_case *c, const char *text, moa_err *err) {
    if (c->n_expected == MOA_CASE_EXPECTED_MAX) return MOA_OK;
    c->expected[c->n_expected] = strdup(text);
    if (!c->expected[c->n_expected]) return moa_fail(err, MOA_E_MEMORY, "no memory for an expected answer");
    c->n_expected++;
    return MOA_OK;
}

static moa_status make_synthetic(const moa_cases *x, int32_t length_i, int32_t i, moa_case *out,
                                 moa_err *err) {
    const moa_cases_config *c = &x->c;
    /* each length has documents of its own, whatever other lengths are asked for */
    const uint64_t seed = c->seed * 1000003u + (uint64_t)(uint32_t)c->lengths[length_i];
    moa_pcg32 g = moa_pcg32_seed(seed, (uint64_t)(uint32_t)i * 64 + 48);
    const double u = moa_pcg32_next(&g) / 4294967296.0;
    moa_synth how = {.kind = kind_of(c->task),
                     .form = x->form,
                     .n_tok = c->lengths[length_i],
                     .n_room = x->n_gen,
                     .depth = (i % 10 + u) / 10,
                     .seed = seed,
                     .index = i};
    moa_synth_item it = {0};
    moa_status s = MOA_OK;
    if (c->task == MOA_TASK_NEEDLE)
        how.depth = c->n_depth > 1 ? (i % c->n_depth) / (double)(c->n_depth - 1) : 0.5;
    if (c->task != MOA_TASK_RETRIEVAL && c->docs && c->docs->n > 0) {
        const moa_doc *doc = &c->docs->data[moa_pcg32_next(&g) % (uint32_t)c->docs->n];
        how.filler = doc->text;
        how.n_filler = doc->n_bytes;
    }
    MOA_TRY(moa_synth_make(x->m, &how, &it, err));
    const moa_encode encode = {.form = x->form, .n_room = 1};
    MOA_TRY(moa_item_encode(x->m, &it.item, &encode, &out->tokens, err));
    MOA_TRY(expect(out, it.expected, err));
    out->depth = it.depth;
    out->stop = c->task == MOA_TASK_FACTS ? MOA_STOP_AT_LINE | MOA_STOP_AT_SENTENCE
                                          : MOA_STOP_AT_LINE | MOA_STOP_AT_NUMBER;
    (void)snprintf(out->source, sizeof out->source, "%s", it.item.source);
out:
    moa_synth_free(&it);
    return s;
}

static moa_status copy_tokens(const int32_t *ids, int32_t n, int32_t bos, moa_tokens *out, moa_err *err) {
    const int32_t lead = bos >= 0;
    out->ids = malloc((size_t)(n + lead) * sizeof *out->ids);
    if (!out->ids) return moa_fail(err, MOA_E_MEMORY, "no memory for %d tokens", n);
    if (lead) out->ids[0] = bos;
    memcpy(out->ids + lead, ids, (size_t)n * sizeof *ids);
    out->n = n + lead;
    return MOA_OK;
}

static moa_status make_item(const moa_cases *x, int32_t length_i, int32_t i, moa_case *out, moa_err *err) {
    const moa_token_items *t = &x->items[length_i];
    const moa_item *it = &x->c.items->data[t->item[i]];
    moa_status s = copy_tokens(t->data[i].ids, t->data[i].n, -1, &out->tokens, err);
    out->tokens.supervise_from = out->tokens.n;
    for (int32_t a = 0; a < it->n_answer && s == MOA_OK; a++)
        s = expect(out, it->answers[a], err);
    if (s == MOA_OK && it->ids) {
        moa_buf text = {0};
        for (int32_t k = it->supervise_from > 1 ? it->supervise_from : 1; k < it->n_ids; k++) {
            size_t bytes;
            const char *piece = moa_tokenizer_piece(x->m->tokenizer, it->ids[k], &bytes);
            if (!moa_tokenizer_is_control(x->m->tokenizer, it->ids[k])) moa_buf_append(&text, piece, bytes);
        }
        s = expect(out, text.data ? text.data : "", err);
        moa_buf_free(&text);
    }
    out->depth = (double)NAN;
    (void)snprintf(out->source, sizeof out->source, "line %d%s%.100s", it->line, it->source ? ": " : "",
                   it->source ? it->source : "");
    return s;
}

static moa_status make_window(const moa_cases *x, int32_t length_i, int32_t i, moa_case *out, moa_err *err) {
    const int32_t w = window_of(x, length_i);
    int64_t k = (int64_t)i * n_windows(x, length_i) / x->n[length_i];
    int32_t d = 0;
    while (k >= x->n_ids[d] / w)
        k -= x->n_ids[d++] / w;
    (void)snprintf(out->source, sizeof out->source, "%.100s, tokens from %lld on", x->c.docs->data[d].name,
                   (long long)k * w);
    out->depth = (double)NAN;
    const moa_status s = copy_tokens(x->ids[d] + k * w, w, x->bos, &out->tokens, err);
    out->tokens.supervise_from = 1;
    return s;
}

moa_status moa_cases_make(const moa_cases *x, int32_t length_i, int32_t i, moa_case *out, moa_err *err) {
    *out = (moa_case){0};
    if (x->c.task == MOA_TASK_JSONL) return make_item(x, length_i, i, out, err);
    if (x->c.task == MOA_TASK_PPL) return make_window(x, length_i, i, out, err);
    return make_synthetic(x, length_i, i, out, err);
}

/* --- judged ------------------------------------------------------------------------------------------------------------------- */

static void best(double *x, double y) {
    if (isnan(*x) || y > *x) *x = y;
}

moa_case_score moa_cases_judge(const moa_cases *x, const moa_case *c, const char *answer) {
    moa_case_score s = {(double)NAN, (double)NAN, (double)NAN};
    for (int i = 0; i < c->n_expected; i++) {
        if (moa_task_synthetic(x->c.task)) {
            s.exact = moa_synth_right(kind_of(x->c.task), answer, c->expected[i]) ? 1 : 0;
            continue;
        }
        best(&s.exact, moa_score_exact(answer, c->expected[i]));
        best(&s.f1, moa_score_f1(answer, c->expected[i]));
        best(&s.rouge_l, moa_score_rouge_l(answer, c->expected[i]));
    }
    return s;
}
