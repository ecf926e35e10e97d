#include "core/tasks/calib.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/buf.h"
#include "core/engine/sampler.h"
#include "core/model/chat.h"
#include "core/tasks/answer.h"

const char *moa_calib_name(moa_calib_kind k) {
    return k == MOA_CALIB_SUMMARY  ? "summary"
           : k == MOA_CALIB_SPREAD ? "spread"
                                   : moa_synth_name((moa_synth_kind)k);
}

bool moa_calib_needs_docs(moa_calib_kind k) {
    return k == MOA_CALIB_SUMMARY || k == MOA_CALIB_SPREAD;
}

moa_status moa_calib_parse(const char *text, moa_calib_kind *kinds, int *n_kind, moa_err *err) {
    for (const char *p = text;; p++) {
        const size_t n = strcspn(p, ",");
        int k = 0;
        while (k < MOA_CALIB_COUNT && (strlen(moa_calib_name((moa_calib_kind)k)) != n ||
                                       memcmp(moa_calib_name((moa_calib_kind)k), p, n) != 0))
            k++;
        if (k == MOA_CALIB_COUNT)
            return moa_fail(err, MOA_E_USAGE,
                            "'%.*s': it is retrieval, passkey, needle, facts, summary or spread",
                            (int)(n < 40 ? n : 40), p);
        if (*n_kind == MOA_CALIB_KINDS_MAX)
            return moa_fail(err, MOA_E_USAGE, "more than %d kinds", MOA_CALIB_KINDS_MAX);
        kinds[(*n_kind)++] = (moa_calib_kind)k;
        p += n;
        if (!*p) return MOA_OK;
    }
}

void moa_calib_free(moa_calib_item *it) {
    moa_item_free(&it->item);
    moa_tokens_free(&it->tokens);
    *it = (moa_calib_item){0};
}

static moa_status no_memory(moa_err *err) {
    return moa_fail(err, MOA_E_MEMORY, "no memory for a calibration item");
}

typedef struct maker {
    const moa_model *m;
    const moa_calib *c;
    moa_form form;
    int32_t length, index;
    uint64_t seed; /* of this length */
    moa_pcg32 g;
    moa_calib_item *out;
} maker;

static double random_share(moa_pcg32 *g) {
    return moa_pcg32_next(g) / 4294967296.0;
}

/* the tokens of the prompt, and how many more than the length allows there are with the answer's room */
static moa_status encode(maker *k, int32_t *over, moa_err *err) {
    const moa_encode how = {.form = k->form, .n_room = 1};
    moa_tokens_free(&k->out->tokens);
    const moa_status s = moa_item_encode(k->m, &k->out->item, &how, &k->out->tokens, err);
    *over = k->out->tokens.n + k->out->n_gen - k->length;
    return s;
}

/* --- synthetic ---------------------------------------------------------------------------------------------------------------- */

static moa_status make_synthetic(maker *k, moa_err *err) {
    moa_calib_item *out = k->out;
    const int32_t usual = k->form == MOA_FORM_CONTINUE ? 12 : 32; /* a number, a sentence around it */
    out->n_gen = k->c->n_gen < usual ? k->c->n_gen : usual;
    moa_synth how = {.kind = (moa_synth_kind)out->kind,
                     .form = k->form,
                     .n_tok = k->length,
                     .n_room = out->n_gen,
                     .depth = (k->index / k->c->n_kind % 10 + random_share(&k->g)) / 10,
                     .seed = k->seed,
                     .index = k->index};
    moa_synth_item it = {0};
    int32_t over;
    moa_status s = MOA_OK;
    if (out->kind != MOA_CALIB_RETRIEVAL && k->c->docs && k->c->docs->n > 0) {
        const moa_doc *doc = &k->c->docs->data[moa_pcg32_next(&k->g) % (uint32_t)k->c->docs->n];
        how.filler = doc->text;
        how.n_filler = doc->n_bytes;
    }
    MOA_TRY(moa_synth_make(k->m, &how, &it, err));
    out->item = it.item;
    it.item = (moa_item){0};
    memcpy(out->expected[0], it.expected, sizeof it.expected);
    out->n_expected = 1;
    if (k->form == MOA_FORM_CONTINUE) out->stop = MOA_STOP_AT_LINE;
    /* what comes after the number is no part of the answer, and would carry as much of the loss */
    if (k->form == MOA_FORM_CONTINUE)
        out->stop |= out->kind == MOA_CALIB_RETRIEVAL ? MOA_STOP_AT_NUMBER : MOA_STOP_AT_SENTENCE;
    s = encode(k, &over, err);
out:
    moa_synth_free(&it);
    return s;
}

/* --- documents ------------------------------------------------------------------------------------------------------------------ */

/* One of those that are long enough for three bytes a token, at random by their sizes; NULL: there is none */
static const moa_doc *choose(maker *k) {
    const moa_docs *d = k->c->docs;
    const size_t need = (size_t)k->length * 3;
    uint64_t n = 0;
    for (int32_t i = 0; d && i < d->n; i++)
        if (d->data[i].n_bytes >= need) n += d->data[i].n_bytes;
    if (n == 0) return NULL;
    uint64_t pick = ((uint64_t)moa_pcg32_next(&k->g) * n) >> 32; /* n is below 2^31 (docs.h) */
    for (int32_t i = 0;; i++) {
        if (d->data[i].n_bytes < need) continue;
        if (pick < d->data[i].n_bytes) return &d->data[i];
        pick -= d->data[i].n_bytes;
    }
}

/* the end of the sentence or line nearest behind `from`: where something can be put in */
static size_t gap_behind(const char *text, size_t n, size_t from) {
    for (size_t i = from; i + 1 < n; i++)
        if (text[i] == '\n' || (text[i] == '.' && text[i + 1] == ' ')) return i + 1;
    while (from < n && ((unsigned char)text[from] & 0xC0) == 0x80)
        from++;
    return from;
}

/* text with a fact in each third of it */
static void put_spread(const char *text, const moa_fact *facts, const double *depth, moa_buf *out) {
    const size_t n = strlen(text);
    size_t at = 0;
    for (int f = 0; f < MOA_CALIB_N_SPREAD; f++) {
        size_t gap = gap_behind(text, n, (size_t)(depth[f] * (double)n));
        if (gap < at) gap = at;
        moa_buf_append(out, text + at, gap - at);
        moa_buf_printf(out, " %s ", facts[f].sentence);
        at = gap;
    }
    moa_buf_append(out, text + at, n - at);
}

static void put_question(const maker *k, const moa_doc *doc, const moa_fact *facts, moa_buf *out) {
    const bool lead = k->form == MOA_FORM_CONTINUE;
    if (doc->question)
        moa_buf_printf(out, "%s%s", doc->question, lead ? "\nAnswer:" : "");
    else if (k->out->kind == MOA_CALIB_SUMMARY)
        moa_buf_printf(out,
                       "Summarise the text above in three sentences: what is it about at its beginning, in "
                       "its middle and at "
                       "its end?%s",
                       lead ? "\nSummary:" : "");
    else
        moa_buf_printf(out,
                       "Which secret numbers does the text above name for %s, for %s and for %s? Answer in "
                       "this order.%s%s%s",
                       facts[0].about, facts[1].about, facts[2].about, lead ? "\nThe secret number of " : "",
                       lead ? facts[0].about : "", lead ? " is" : "");
}

static moa_status set_item(maker *k, const moa_buf *context, const moa_buf *question, moa_err *err) {
    static const char opening[] = "Read the text below. At the end there is a question about it.\n\n";
    moa_item *it = &k->out->item;
    moa_buf prompt = {0};
    moa_buf_str(&prompt, opening);
    moa_buf_append(&prompt, context->data, context->size);
    moa_buf_printf(&prompt, "\n\n%s", question->data);
    const bool ok = moa_buf_ok(&prompt) && moa_item_set(&it->prompt, prompt.data, prompt.size) &&
                    moa_item_set(&it->context, context->data, context->size) &&
                    moa_item_set(&it->question, question->data, question->size);
    it->form = k->form;
    it->length = k->length;
    moa_buf_free(&prompt);
    return ok ? MOA_OK : no_memory(err);
}

/* As much of the document as fits; a try that is too long is repeated with fewer tokens. */
static moa_status fill(maker *k, const moa_doc *doc, const moa_fact *facts, const double *depth, double at,
                       moa_err *err) {
    moa_buf context = {0}, question = {0};
    char *text = NULL;
    int32_t over = 0, n_tok = k->length - k->out->n_gen;
    moa_status s = MOA_OK;
    put_question(k, doc, facts, &question);
    for (;;) {
        int32_t got;
        if (n_tok < 16)
            MOA_TRY(
                moa_fail(err, MOA_E_INVALID,
                         "%d tokens leave no room for a document beside the question and %d of the answer",
                         k->length, k->out->n_gen));
        free(text);
        MOA_TRY(moa_doc_part(k->m, doc, at, n_tok, &text, &got, err));
        moa_buf_clear(&context);
        if (facts)
            put_spread(text, facts, depth, &context);
        else
            moa_buf_str(&context, text);
        if (!moa_buf_ok(&context) || !moa_buf_ok(&question) || context.size == 0) MOA_TRY(no_memory(err));
        MOA_TRY(set_item(k, &context, &question, err));
        MOA_TRY(encode(k, &over, err));
        if (over <= 0) break;
        n_tok -= over;
    }
out:
    free(text);
    moa_buf_free(&context);
    moa_buf_free(&question);
    return s;
}

static moa_status make_from_document(maker *k, moa_err *err) {
    moa_calib_item *out = k->out;
    moa_fact facts[MOA_CALIB_N_SPREAD];
    double depth[MOA_CALIB_N_SPREAD];
    char source[200];
    const moa_doc *doc = choose(k);
    if (!doc)
        return moa_fail(err, MOA_E_INVALID, "none of the %d documents is long enough for %d tokens",
                        k->c->docs ? k->c->docs->n : 0, k->length);
    const bool spread = out->kind == MOA_CALIB_SPREAD && !doc->question;
    const double at = random_share(&k->g);
    out->n_gen = k->c->n_gen;
    if (spread && out->n_gen > 64) out->n_gen = 64; /* three numbers in a sentence each */
    if (k->form == MOA_FORM_CONTINUE) out->stop = MOA_STOP_AT_LINE;
    for (int f = 0; spread && f < MOA_CALIB_N_SPREAD; f++) {
        moa_synth_fact(k->seed, k->index, f, &facts[f]);
        depth[f] = (f + random_share(&k->g) * 0.9) / MOA_CALIB_N_SPREAD;
        (void)snprintf(out->expected[f], sizeof out->expected[f], "%s", facts[f].value);
        out->n_expected = f + 1;
    }
    moa_status s = fill(k, doc, spread ? facts : NULL, depth, at, err);
    (void)snprintf(source, sizeof source, "%s: %.100s at %.2f, seed %llu, item %d", moa_calib_name(out->kind),
                   doc->name, at, (unsigned long long)k->c->seed, k->index);
    if (s == MOA_OK && !moa_item_set(&out->item.source, source, strlen(source))) s = no_memory(err);
    return s;
}

/* --- in all ----------------------------------------------------------------------------------------------------------------------- */

moa_status moa_calib_make(const moa_model *m, const moa_calib *c, int32_t length, int32_t i,
                          moa_calib_item *out, moa_err *err) {
    maker k = {.m = m, .c = c, .form = c->form, .length = length, .index = i, .out = out};
    *out = (moa_calib_item){0};
    if (c->n_kind < 1 || c->n_gen < 1 || i < 0 || length < 1 || length > m->shape.n_ctx)
        return moa_fail(err, MOA_E_INVALID,
                        "item %d of %d tokens with %d for the answer; the model's context is %d", i, length,
                        c->n_gen, m->shape.n_ctx);
    out->kind = c->kinds[i % c->n_kind];
    if (k.form == MOA_FORM_AUTO && out->kind != MOA_CALIB_SUMMARY) k.form = MOA_SYNTH_FORM;
    if (k.form == MOA_FORM_AUTO) k.form = moa_chat_template_name(m, NULL) ? MOA_FORM_CHAT : MOA_FORM_CONTINUE;
    k.seed = c->seed * 1000003u + (uint64_t)(uint32_t)length;
    k.g = moa_pcg32_seed(k.seed, (uint64_t)(uint32_t)i * 64 + 50 + (uint64_t)out->kind);
    const moa_status s =
        moa_calib_needs_docs(out->kind) ? make_from_document(&k, err) : make_synthetic(&k, err);
    if (s != MOA_OK) moa_calib_free(out);
    return s;
}

bool moa_calib_right(const moa_calib_item *it, const char *answer) {
    if (!moa_calib_needs_docs(it->kind))
        return moa_synth_right((moa_synth_kind)it->kind, answer, it->expected[0]);
    for (int f = 0; f < it->n_expected; f++) {
        answer = strstr(answer, it->expected[f]);
        if (!answer) return false;
        answer += strlen(it->expected[f]);
    }
    return true;
}
