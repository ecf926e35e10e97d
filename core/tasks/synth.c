#include "core/tasks/synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/base/text.h"
#include "core/engine/sampler.h"
#include "core/tasks/score.h"
#include "core/tasks/words.h"

enum {
    CHAIN_MIN = 3,
    CHAIN_MAX = 8,
    TOK_A_CHAIN = 96,
    SPECIAL_MAX = 2 * CHAIN_MAX,
    SENTENCE_MAX = 600,
    UNIT_MIN = 4
};
enum {
    N_ADJECTIVE = MOA_WORDS_N(moa_adjectives),
    N_NOUN = MOA_WORDS_N(moa_nouns),
    N_LINE_NAME = N_ADJECTIVE * N_NOUN
};

const char *moa_synth_name(moa_synth_kind k) {
    static const char *const names[] = {
#define X(name, text) text,
        MOA_SYNTH_MAP(X)
#undef X
    };
    return names[k];
}

bool moa_synth_parse(const char *text, size_t n, moa_synth_kind *out) {
    for (int k = 0; k < MOA_SYNTH_COUNT; k++)
        if (strlen(moa_synth_name((moa_synth_kind)k)) == n &&
            memcmp(moa_synth_name((moa_synth_kind)k), text, n) == 0) {
            *out = (moa_synth_kind)k;
            return true;
        }
    return false;
}

static int below(moa_pcg32 *g, int n) {
    return (int)(((uint64_t)moa_pcg32_next(g) * (uint64_t)n) >> 32);
}
#define PICK(g, list) ((list)[below((g), MOA_WORDS_N(list))])

/* --- units ---------------------------------------------------------------------------------------------------------------- */

/* Texts one after the other, each with what separates it from the one before. */
typedef struct units {
    moa_buf text;
    moa_buf ends;   /* size_t (n): where each unit ends in text */
    moa_buf tokens; /* int32_t (n) */
    int32_t n;
} units;

static size_t unit_end(const units *u, int32_t i) {
    return i < 0 ? 0 : ((const size_t *)(const void *)u->ends.data)[i];
}
static const char *unit_at(const units *u, int32_t i, size_t *n) {
    const size_t from = unit_end(u, i - 1);
    *n = unit_end(u, i) - from;
    return u->text.data + from;
}

typedef struct special {
    char text[164];
    double depth;
} special;

typedef struct maker {
    const moa_model *m;
    const moa_synth *how;
    moa_form form;
    moa_pcg32 g;
    units pool;         /* lines, or sentences of filler */
    int32_t *line_name; /* retrieval: a permutation of the names, (N_LINE_NAME), owned */
    size_t filler_at;   /* where in the caller's text the next sentence begins */
    special specials[SPECIAL_MAX];
    int n_special, asked; /* asked: index in specials */
    moa_buf record, question, prompt;
    char expected[32];
    int32_t asked_at, n_total; /* of the document built last */
} maker;

static moa_status no_memory(moa_err *err) {
    return moa_fail(err, MOA_E_MEMORY, "no memory for a synthetic document");
}

static moa_status count_tokens(const moa_model *m, const char *text, size_t n, int32_t *out, moa_err *err) {
    int32_t *ids = NULL;
    size_t n_ids = 0;
    const moa_status s = moa_tokenizer_encode(m->tokenizer, text, n, 0, &ids, &n_ids, err);
    free(ids);
    *out = n_ids > 0 ? (int32_t)n_ids : 1;
    return s;
}

/* --- what fills a document ---------------------------------------------------------------------------------------------------- */

static void put_line(maker *k, moa_buf *out) {
    const int name = k->line_name[k->pool.n];
    const int number = 10000 + below(&k->g, 90000);
    moa_buf_printf(out, "%sline %s-%s: REGISTER_CONTENT is <%d>", k->pool.n ? "\n" : "",
                   moa_adjectives[name / N_NOUN], moa_nouns[name % N_NOUN], number);
}

static void put_phrase(maker *k, moa_buf *out) {
    moa_buf_printf(out, "the %s %s", PICK(&k->g, moa_adjectives), PICK(&k->g, moa_nouns));
}

static void put_sentence(maker *k, moa_buf *out) {
    moa_pcg32 *g = &k->g;
    if (k->pool.n) moa_buf_str(out, below(g, 7) == 0 ? "\n\n" : " ");
    const int shape = below(g, 4);
    if (shape == 0) moa_buf_printf(out, "%s, ", PICK(g, moa_times));
    moa_buf_str(out, PICK(g, moa_names));
    if (shape == 1) moa_buf_printf(out, " and %s", PICK(g, moa_names));
    moa_buf_printf(out, " %s ", PICK(g, moa_verbs));
    put_phrase(k, out);
    if (shape != 2) {
        moa_buf_printf(out, " %s ", PICK(g, moa_places));
        put_phrase(k, out);
    } else {
        moa_buf_str(out, " and then ");
        moa_buf_printf(out, "%s ", PICK(g, moa_verbs));
        put_phrase(k, out);
    }
    moa_buf_str(out, ".");
}

/* NUL too: it would end the text early */
static bool is_space(char c) {
    return c == 0 || c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

/* The next sentence of the caller's text: up to . ! ? before a space, or a blank line; white space runs become one space. Goes around at
 * the end. The caller has checked that there is something besides space. */
static void put_found(maker *k, moa_buf *out) {
    const char *text = k->how->filler;
    const size_t n = k->how->n_filler;
    int n_break = 0;
    while (is_space(text[k->filler_at])) {
        n_break += text[k->filler_at] == '\n';
        k->filler_at = (k->filler_at + 1) % n;
    }
    if (k->pool.n) moa_buf_str(out, n_break > 1 ? "\n\n" : " ");
    size_t at = k->filler_at, taken = 0;
    for (; at < n; at++) {
        const char c = text[at];
        const bool last = at + 1 == n;
        if (c == '\n' && !last && (text[at + 1] == '\n' || text[at + 1] == '\r')) break;
        if (is_space(c)) {
            if (taken > SENTENCE_MAX - 100) break;
            if (!last && !is_space(text[at + 1])) moa_buf_str(out, " "), taken++;
            continue;
        }
        if (taken > SENTENCE_MAX && ((unsigned char)c & 0xC0) != 0x80)
            break; /* no space anywhere: between characters */
        moa_buf_append(out, &c, 1), taken++;
        if ((c == '.' || c == '!' || c == '?') && (last || is_space(text[at + 1]))) {
            at++;
            break;
        }
    }
    k->filler_at = at % n;
}

static moa_status add_unit(maker *k, moa_err *err) {
    units *u = &k->pool;
    const size_t from = u->text.size;
    int32_t tokens;
    if (k->how->kind == MOA_SYNTH_RETRIEVAL && u->n == N_LINE_NAME)
        return moa_fail(err, MOA_E_INVALID, "%d tokens of lines need more than the %d names there are",
                        k->how->n_tok, N_LINE_NAME);
    if (k->how->kind == MOA_SYNTH_RETRIEVAL)
        put_line(k, &u->text);
    else if (k->how->filler)
        put_found(k, &u->text);
    else
        put_sentence(k, &u->text);
    if (!moa_buf_ok(&u->text)) return no_memory(err);
    const moa_status s = count_tokens(k->m, u->text.data + from, u->text.size - from, &tokens, err);
    if (s != MOA_OK) return s;
    moa_buf_append(&u->ends, &u->text.size, sizeof u->text.size);
    moa_buf_append(&u->tokens, &tokens, sizeof tokens);
    if (!moa_buf_ok(&u->ends) || !moa_buf_ok(&u->tokens)) return no_memory(err);
    u->n++;
    return MOA_OK;
}

/* --- what is asked ------------------------------------------------------------------------------------------------------------- */

void moa_synth_fact(uint64_t seed, int32_t index, int32_t which, moa_fact *out) {
    moa_pcg32 g = moa_pcg32_seed(seed, (uint64_t)(uint32_t)index * 64 + 32);
    const int first = below(&g, MOA_WORDS_N(moa_towns));
    int number = 0;
    for (int32_t i = 0; i <= which; i++)
        number = 10000 + below(&g, 90000);
    (void)snprintf(out->about, sizeof out->about, "%s", moa_towns[(first + which) % MOA_WORDS_N(moa_towns)]);
    (void)snprintf(out->value, sizeof out->value, "%d", number);
    (void)snprintf(out->sentence, sizeof out->sentence, "The secret number of %s is %s.", out->about,
                   out->value);
}

static void ask(maker *k, const char *chat, const char *lead) {
    moa_buf_clear(&k->question);
    moa_buf_str(&k->question, chat);
    if (k->form == MOA_FORM_CONTINUE) moa_buf_printf(&k->question, "\n%s", lead);
}

static void add_special(maker *k, double depth, const char *text) {
    special *s = &k->specials[k->n_special++];
    s->depth = depth;
    (void)snprintf(s->text, sizeof s->text, " %s", text);
}

static void prepare_passkey(maker *k) {
    char text[160];
    (void)snprintf(k->expected, sizeof k->expected, "%d", 10000 + below(&k->g, 90000));
    (void)snprintf(text, sizeof text, "The pass key is %s. Remember it. %s is the pass key.", k->expected,
                   k->expected);
    add_special(k, k->how->depth, text);
    ask(k, "What is the pass key? Answer with the number.", "The pass key is");
}

static void prepare_needle(maker *k) {
    char chat[128], lead[96];
    moa_fact fact;
    moa_synth_fact(k->how->seed, k->how->index, 0, &fact);
    (void)snprintf(k->expected, sizeof k->expected, "%s", fact.value);
    add_special(k, k->how->depth, fact.sentence);
    (void)snprintf(chat, sizeof chat, "What is the secret number of %s? Answer with the number.", fact.about);
    (void)snprintf(lead, sizeof lead, "The secret number of %s is", fact.about);
    ask(k, chat, lead);
}

static void shuffle(moa_pcg32 *g, int32_t *x, int n) {
    for (int i = 0; i < n; i++)
        x[i] = i;
    for (int i = n - 1; i > 0; i--) {
        const int j = below(g, i + 1);
        const int32_t t = x[i];
        x[i] = x[j];
        x[j] = t;
    }
}

static void prepare_facts(maker *k) {
    int32_t names[MOA_WORDS_N(moa_names)], towns[MOA_WORDS_N(moa_towns)];
    char text[160], chat[160];
    int n_chain = k->how->n_tok / TOK_A_CHAIN;
    if (n_chain < CHAIN_MIN) n_chain = CHAIN_MIN;
    if (n_chain > CHAIN_MAX) n_chain = CHAIN_MAX;
    shuffle(&k->g, names, MOA_WORDS_N(moa_names));
    shuffle(&k->g, towns, MOA_WORDS_N(moa_towns));
    for (int c = 0; c < n_chain; c++) { /* chain 0 is asked */
        const char *name = moa_names[names[c]], *town = moa_towns[towns[c]],
                   *colour = PICK(&k->g, moa_colours);
        const double d = c == 0 ? k->how->depth : below(&k->g, 1 << 20) / (double)(1 << 20);
        (void)snprintf(text, sizeof text, "%s lives in %s.", name, town);
        add_special(k, d, text);
        (void)snprintf(text, sizeof text, "The door of the town hall of %s is %s.", town, colour);
        add_special(k, c == 0 ? fmod(d + 0.5, 1) : below(&k->g, 1 << 20) / (double)(1 << 20), text);
        if (c > 0) continue;
        (void)snprintf(k->expected, sizeof k->expected, "%s", colour);
        (void)snprintf(chat, sizeof chat,
                       "In which town does %s live, and what colour is the door of the town hall of that "
                       "town? Answer with "
                       "the colour.",
                       name);
        (void)snprintf(text, sizeof text, "The door of the town hall of the town where %s lives is", name);
        ask(k, chat, text);
    }
}

static const char *opening(const maker *k) {
    switch (k->how->kind) {
    case MOA_SYNTH_RETRIEVAL:
        return "Below is a record of lines. Each line begins with 'line' and its name, and ends with its "
               "<REGISTER_CONTENT>, a "
               "number of five digits. Remember the lines: at the end you are asked for the "
               "<REGISTER_CONTENT> of one of "
               "them.\n\n";
    case MOA_SYNTH_PASSKEY:
        return "There is a pass key hidden in the text below. Find it and remember it: at the end you are "
               "asked for it.\n\n";
    case MOA_SYNTH_NEEDLE:
        return "Read the text below. At the end you are asked about something that it says.\n\n";
    case MOA_SYNTH_FACTS:
        return "Read the text below. It says where people live and what the towns look like; at the end you "
               "are asked about "
               "that.\n\n";
    case MOA_SYNTH_COUNT: break;
    }
    return "";
}

/* --- a document of n units -------------------------------------------------------------------------------------------------- */

static void build_lines(maker *k, int32_t n) {
    char name[64], chat[160], lead[128];
    size_t bytes;
    k->n_total = n;
    k->asked_at = (int32_t)(k->how->depth * n);
    if (k->asked_at >= n) k->asked_at = n - 1;
    moa_buf_append(&k->record, k->pool.text.data, unit_end(&k->pool, n - 1));
    const char *line = unit_at(&k->pool, k->asked_at, &bytes);
    const char *from = memchr(line, ' ', bytes), *colon = memchr(line, ':', bytes),
               *number = memchr(line, '<', bytes);
    (void)snprintf(name, sizeof name, "%.*s", (int)(colon - from - 1), from + 1);
    (void)snprintf(k->expected, sizeof k->expected, "%.5s", number + 1);
    (void)snprintf(chat, sizeof chat,
                   "The record is over. What is the <REGISTER_CONTENT> in line %s? Answer with the number.",
                   name);
    (void)snprintf(lead, sizeof lead, "line %s: REGISTER_CONTENT is <", name);
    ask(k, chat, lead);
}

static int by_depth(const void *a, const void *b) {
    const special *x = *(const special *const *)a, *y = *(const special *const *)b;
    if (x->depth != y->depth) return x->depth < y->depth ? -1 : 1;
    return x < y ? -1 : x > y;
}

static void build_text(maker *k, int32_t n) {
    const special *order[SPECIAL_MAX];
    int next = 0;
    k->n_total = n + k->n_special;
    for (int i = 0; i < k->n_special; i++)
        order[i] = &k->specials[i];
    qsort(order, (size_t)k->n_special, sizeof *order, by_depth);
    for (int32_t i = 0, unit = 0; i < k->n_total; i++) {
        size_t bytes;
        if (next < k->n_special && (unit == n || order[next]->depth * (k->n_total - 1) <= i)) {
            if (order[next] == &k->specials[k->asked]) k->asked_at = i;
            moa_buf_str(&k->record, order[next++]->text + (i == 0));
            continue;
        }
        const char *text = unit_at(&k->pool, unit++, &bytes);
        if (unit == 1 && i > 0) moa_buf_str(&k->record, " ");
        moa_buf_append(&k->record, text, bytes);
    }
}

static moa_status build(maker *k, int32_t n, moa_synth_item *out, moa_err *err) {
    const moa_encode how = {.form = k->form, .n_room = 1};
    moa_tokens t = {0};
    moa_status s = MOA_OK;
    moa_buf_clear(&k->record);
    moa_buf_clear(&k->prompt);
    if (k->how->kind == MOA_SYNTH_RETRIEVAL)
        build_lines(k, n);
    else
        build_text(k, n);
    moa_buf_str(&k->prompt, opening(k));
    moa_buf_append(&k->prompt, k->record.data ? k->record.data : "", k->record.size);
    moa_buf_printf(&k->prompt, "\n\n%s", k->question.data ? k->question.data : "");
    if (!moa_buf_ok(&k->record) || !moa_buf_ok(&k->prompt) || !moa_buf_ok(&k->question) ||
        !moa_item_set(&out->item.prompt, k->prompt.data, k->prompt.size) ||
        !moa_item_set(&out->item.context, k->record.data ? k->record.data : "", k->record.size) ||
        !moa_item_set(&out->item.question, k->question.data, k->question.size))
        MOA_TRY(no_memory(err));
    out->item.form = k->form;
    MOA_TRY(moa_item_encode(k->m, &out->item, &how, &t, err));
    out->n_prompt = t.n;
    out->n_unit = k->n_total;
    out->depth = k->n_total > 1 ? (double)k->asked_at / (double)(k->n_total - 1) : 0;
out:
    moa_tokens_free(&t);
    return s;
}

/* As many units as fit: by the sum of their tokens at first, then by counting the whole. */
static moa_status build_to_length(maker *k, moa_synth_item *out, moa_err *err) {
    const int32_t budget = k->how->n_tok - k->how->n_room;
    int64_t sum;
    int32_t n = 0;
    moa_status s = MOA_OK;
    for (int i = 0; i < UNIT_MIN; i++)
        MOA_TRY(add_unit(k, err));
    MOA_TRY(build(k, UNIT_MIN, out, err));
    sum = out->n_prompt;
    if (sum > budget)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s of %d tokens: %lld are needed besides the %d for the answer",
                         moa_synth_name(k->how->kind), k->how->n_tok, (long long)sum, k->how->n_room));
    for (n = UNIT_MIN;; n++) {
        if (n == k->pool.n) MOA_TRY(add_unit(k, err));
        const int32_t more = ((const int32_t *)(const void *)k->pool.tokens.data)[n];
        if (sum + more > budget) break;
        sum += more;
    }
    for (;;) {
        MOA_TRY(build(k, n, out, err));
        if (out->n_prompt <= budget || n == UNIT_MIN) break;
        const int32_t mean = (int32_t)(sum / n) + 1, over = out->n_prompt - budget;
        n -= 1 + over / mean / 2;
        if (n < UNIT_MIN) n = UNIT_MIN;
    }
out:
    return s;
}

/* --- in all ------------------------------------------------------------------------------------------------------------------ */

static moa_status check(const moa_synth *how, moa_err *err) {
    if (how->n_room < 1 || how->n_tok <= how->n_room || how->n_tok > MOA_N_IDS_MAX)
        return moa_fail(err, MOA_E_INVALID, "a document of %d tokens with %d left for the answer", how->n_tok,
                        how->n_room);
    if (!(how->depth >= 0 && how->depth <= 1) || how->index < 0)
        return moa_fail(err, MOA_E_INVALID, "document %d, depth %g: the depth is from 0 to 1", how->index,
                        how->depth);
    if (!how->filler) return MOA_OK;
    size_t letters = 0;
    for (size_t i = 0; i < how->n_filler; i++)
        letters += !is_space(how->filler[i]);
    return letters > 0 ? MOA_OK
                       : moa_fail(err, MOA_E_INVALID, "the text to fill documents with has no words");
}

static moa_status prepare(maker *k, moa_err *err) {
    switch (k->how->kind) {
    case MOA_SYNTH_RETRIEVAL:
        k->line_name = malloc(N_LINE_NAME * sizeof *k->line_name);
        if (!k->line_name) return no_memory(err);
        shuffle(&k->g, k->line_name, N_LINE_NAME);
        return MOA_OK;
    case MOA_SYNTH_PASSKEY: prepare_passkey(k); break;
    case MOA_SYNTH_NEEDLE: prepare_needle(k); break;
    case MOA_SYNTH_FACTS: prepare_facts(k); break;
    case MOA_SYNTH_COUNT: break;
    }
    if (k->how->filler)
        k->filler_at = (size_t)(((uint64_t)moa_pcg32_next(&k->g) * (uint64_t)k->how->n_filler) >> 32);
    while (k->filler_at > 0 &&
           !is_space(k->how->filler[k->filler_at - 1])) /* not in the middle of a word or character */
        k->filler_at--;
    return MOA_OK;
}

moa_status moa_synth_make(const moa_model *m, const moa_synth *how, moa_synth_item *out, moa_err *err) {
    maker k = {.m = m, .how = how, .form = how->form};
    char source[128];
    moa_status s = MOA_OK;
    *out = (moa_synth_item){0};
    MOA_TRY(check(how, err));
    if (k.form == MOA_FORM_AUTO) k.form = MOA_SYNTH_FORM;
    k.g = moa_pcg32_seed(how->seed, (uint64_t)(uint32_t)how->index * 64 + (uint64_t)how->kind);
    MOA_TRY(prepare(&k, err));
    MOA_TRY(build_to_length(&k, out, err));
    memcpy(out->expected, k.expected, sizeof out->expected);
    out->item.length = how->n_tok;
    (void)snprintf(source, sizeof source, "synthetic %s, seed %llu, document %d, depth %.2f, expected %s",
                   moa_synth_name(how->kind), (unsigned long long)how->seed, how->index, out->depth,
                   out->expected);
    if (!moa_item_set(&out->item.source, source, strlen(source))) s = no_memory(err);
out:
    if (s != MOA_OK) moa_synth_free(out);
    moa_buf_free(&k.pool.text), moa_buf_free(&k.pool.ends), moa_buf_free(&k.pool.tokens);
    moa_buf_free(&k.record), moa_buf_free(&k.question), moa_buf_free(&k.prompt);
    free(k.line_name);
    return s;
}

void moa_synth_free(moa_synth_item *it) {
    moa_item_free(&it->item);
    *it = (moa_synth_item){0};
}

bool moa_synth_right(moa_synth_kind kind, const char *answer, const char *expected) {
    char number[32];
    if (kind == MOA_SYNTH_FACTS) {
        const int i = moa_score_word(answer, moa_colours, MOA_WORDS_N(moa_colours));
        return i >= 0 && strcmp(moa_colours[i], expected) == 0;
    }
    return moa_score_number(answer, number, sizeof number) && strcmp(number, expected) == 0;
}
