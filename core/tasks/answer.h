/* answer.h -- lets a model answer, greedily, under span rules, and stops as soon as the answer is there. One question, or several together:
 *
 *     prefill 0 | prefill 1 | ... | all decode in step, a few tokens at a time; who has its answer goes idle
 *
 * N of the span formula is prompt + limit, whatever the answer's real length: what is measured is a run that reserved that much. */
#ifndef MOA_TASKS_ANSWER_H
#define MOA_TASKS_ANSWER_H

#include "core/base/buf.h"
#include "core/engine/run.h"

enum {
    MOA_STOP_AT_LINE = 1,     /* a line break after something else than spaces */
    MOA_STOP_AT_NUMBER = 2,   /* the first number is whole: another character came behind it */
    MOA_STOP_AT_SENTENCE = 4, /* . ! or ? behind a letter */
};

typedef struct moa_ask {
    const int32_t *ids; /* (n_ids) the prompt */
    int32_t n_ids;
    int32_t n_gen;                                             /* limit */
    const moa_rule *rules;                                     /* (n_layer, n_head); NULL: dense */
    int stop;                                                  /* MOA_STOP_AT_* */
    void (*progress)(void *user, int32_t done, int32_t total); /* prefill, or NULL */
    bool (*cancelled)(void *user);                             /* or NULL */
    void *user;
} moa_ask;

typedef struct moa_answer {
    moa_buf text;  /* bytes without control tokens, invalid UTF-8 replaced; NUL-terminated */
    int32_t n_gen; /* tokens */
    bool whole;    /* ended by the model or a stop rule, not by the limit */
    double prefill_s, decode_s;
    uint64_t kv_peak_bytes;
    double kv_density; /* at the end */
} moa_answer;
void moa_answer_free(moa_answer *a);
/* The sequence is reset first. E_CANCELLED when cancelled. Zero-initialise out; moa_answer_free in any case. */
moa_status moa_answer_make(moa_seq *seq, const moa_ask *ask, moa_answer *out, moa_err *err);
/* The same of n questions together, whose rules may differ: prefilled one by one, decoded in step. seqs (n): of one engine, unwatched, each
 * once, the pool is held for them; asks (n) and out (n), as above each. All asks' callbacks are of the first. n at most the engine's chunk. A decode step is shared, so
 * decode_s is what falls to an answer's tokens, and kv_peak_bytes the pool's, of all. Logits of rows together may differ from those alone by
 * rounding: answers are the same but for exact ties. On failure none counts. */
moa_status moa_answer_batch(moa_seq *const *seqs, const moa_ask *asks, int32_t n, moa_answer *out, moa_err *err);
/* Is the answer there, by these rules? (of the text so far) */
bool moa_answer_done(const char *text, size_t n, int stop);

#endif
