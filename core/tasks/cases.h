/* cases.h -- what an evaluation asks: for every length a list of cases, each made when it is needed, and how its answer is judged.
 *
 *     retrieval, passkey, facts   synthetic documents (synth.h); case i asks in decile i % 10 of the document
 *     needle                      a grid: case i asks at depth i % n_depth; the text is the caller's documents, or made up
 *     jsonl                       the items of a DATA.jsonl, cut to the length
 *     ppl                         windows of the caller's documents, spread evenly over them; every token but the first is judged
 *
 *   The same config makes the same cases, whatever other lengths are asked for with it and wherever an interrupted run goes on. */
#ifndef MOA_TASKS_CASES_H
#define MOA_TASKS_CASES_H

#include "core/tasks/docs.h"
#include "core/tasks/items.h"
#include "core/tasks/synth.h"

#define MOA_TASK_MAP(X)                                                                                      \
    X(RETRIEVAL, "retrieval", 1)                                                                             \
    X(PASSKEY, "passkey", 1)                                                                                 \
    X(NEEDLE, "needle", 1)                                                                                   \
    X(FACTS, "facts", 1)                                                                                     \
    X(JSONL, "jsonl", 0)                                                                                     \
    X(PPL, "ppl", 0)
typedef enum moa_task {
#define X(name, text, synthetic) MOA_TASK_##name,
    MOA_TASK_MAP(X)
#undef X
        MOA_TASK_COUNT
} moa_task;
const char *moa_task_name(moa_task t);
bool moa_task_parse(const char *text, moa_task *out);
bool moa_task_synthetic(moa_task t); /* right or wrong, so that there is an effective context */

typedef struct moa_cases_config {
    moa_task task;
    moa_form form;          /* AUTO: MOA_SYNTH_FORM for the synthetic tasks, else items.h's rule */
    const int32_t *lengths; /* (n_length) tokens, answer included */
    int32_t n_length;
    int32_t n_item;  /* cases a length (needle: a cell) at most; >= 1 */
    int32_t n_depth; /* needle: depths from 0 to 1, >= 1 */
    int32_t n_gen;   /* answer tokens at most; 0: what the task needs */
    uint64_t seed;
    const moa_docs *docs;   /* ppl: needed; passkey, needle, facts: fill the documents; else NULL. Borrowed */
    const moa_items *items; /* jsonl: needed. Borrowed */
} moa_cases_config;

typedef struct moa_cases moa_cases;
/* Model and config's arrays are borrowed until close. E_INVALID for lengths beyond the model's context, or without a single case. */
moa_status moa_cases_open(moa_cases **out, const moa_model *m, const moa_cases_config *config, moa_err *err);
void moa_cases_close(moa_cases **c);
int32_t moa_cases_n(const moa_cases *c, int32_t length_i);
int32_t moa_cases_n_gen(const moa_cases *c);
moa_form moa_cases_form(const moa_cases *c); /* never AUTO for the synthetic tasks */
/* jsonl: how many items were cut and skipped at this length, and why the first was skipped; other tasks: 0, 0, "" */
const char *moa_cases_losses(const moa_cases *c, int32_t length_i, int32_t *n_cut, int32_t *n_skipped);

enum { MOA_CASE_EXPECTED_MAX = MOA_ITEM_ANSWERS_MAX };
typedef struct moa_case {
    moa_tokens tokens;                     /* the prompt; ppl: the window, supervise_from = 1 */
    double depth;                          /* 0..1; NAN: none */
    char *expected[MOA_CASE_EXPECTED_MAX]; /* (n_expected), owned */
    int n_expected;
    int stop; /* MOA_STOP_AT_* of answer.h */
    char source[160];
} moa_case;
void moa_case_free(moa_case *c);
/* moa_case_free in any case. */
moa_status moa_cases_make(const moa_cases *c, int32_t length_i, int32_t i, moa_case *out, moa_err *err);

typedef struct moa_case_score {
    double exact, f1,
        rouge_l; /* best over the expected answers; synthetic tasks: exact is right or wrong, the others NAN */
} moa_case_score;
moa_case_score moa_cases_judge(const moa_cases *c, const moa_case *x, const char *answer);

#endif
