/* synth.h -- synthetic long documents with one question each, made to a token length: what retrieval under spans is measured with.
 *
 *   retrieval   a record of lines `line brave-owl: REGISTER_CONTENT is <48213>`, all names different; one line is asked for
 *               (the form of LongEval's line retrieval)
 *   passkey     a number of five digits in a text about nothing
 *   needle      one sentence ("the secret number of Lisbon is ...") in a text; the text may be the caller's
 *   facts       two hops: which colour is the door of the town where Clara lives? Three to eight such chains are spread over the text, the
 *               asked chain's two sentences half the document apart
 *
 *        | opening | unit unit unit [asked] unit unit ... unit | question | room for the answer |
 *                  |<- depth 0                        depth 1 ->|
 *        |<----------------------------------- n_tok ---------------------------------------->|
 *
 * The same config gives the same document, on every machine, for one tokenizer: the generator is PCG32 seeded by (seed, index), the
 * number of units is what fits. Every index is another document. Chat and continuation form ask the same thing; the continuation
 * ends in the words that the answer goes on from. */
#ifndef MOA_TASKS_SYNTH_H
#define MOA_TASKS_SYNTH_H

#include "core/tasks/items.h"

#define MOA_SYNTH_MAP(X)                                                                                     \
    X(RETRIEVAL, "retrieval")                                                                                \
    X(PASSKEY, "passkey")                                                                                    \
    X(NEEDLE, "needle")                                                                                      \
    X(FACTS, "facts")
typedef enum moa_synth_kind {
#define X(name, text) MOA_SYNTH_##name,
    MOA_SYNTH_MAP(X)
#undef X
        MOA_SYNTH_COUNT
} moa_synth_kind;
const char *moa_synth_name(moa_synth_kind k);
bool moa_synth_parse(const char *text, size_t n, moa_synth_kind *out);

/* The form in which the small models do best, and so the default of those who ask. Line retrieval under full attention at 1,024 tokens,
 * Qwen2.5-Coder-0.5B, the same number of digits: continuation 6 of 6, chat 1 of 6; at 512: 5 of 5, 4 of 5. */
#define MOA_SYNTH_FORM MOA_FORM_CONTINUE

typedef struct moa_synth {
    moa_synth_kind kind;
    moa_form form;         /* AUTO: MOA_SYNTH_FORM */
    int32_t n_tok, n_room; /* tokens in all; of them left free for the answer (>= 1) */
    double depth;          /* where the asked unit lies, 0..1 */
    uint64_t seed;
    int32_t index; /* of the document */
    const char *
        filler; /* a text (n_filler bytes, UTF-8, borrowed) whose sentences, from a random one on, fill passkey, needle and
                         * facts; NULL: made up */
    size_t n_filler;
} moa_synth;

typedef struct moa_synth_item {
    moa_item item; /* prompt, context (the units), question, source, form, length = n_tok; no answer. Owned */
    char expected[32];
    double depth;     /* as it came out: of the asked unit among the units */
    int32_t n_unit;   /* lines or sentences */
    int32_t n_prompt; /* tokens, template included: at most n_tok - n_room */
} moa_synth_item;
/* E_INVALID when n_tok is too short for the question and a handful of units, or too long for the words there are. */
moa_status moa_synth_make(const moa_model *m, const moa_synth *how, moa_synth_item *out, moa_err *err);
void moa_synth_free(moa_synth_item *it);

/* Is this the expected answer? By its first number (facts: first colour). */
bool moa_synth_right(moa_synth_kind kind, const char *answer, const char *expected);

/* A sentence that states a number about something, and what asks for it; for documents of the caller's: which: 0.. tells them apart. */
typedef struct moa_fact {
    char sentence[96], about[48], value[16];
} moa_fact;
void moa_synth_fact(uint64_t seed, int32_t index, int32_t which, moa_fact *out);

#endif
