/* loss.h -- cross-entropy of given tokens under span rules: what validate compares plans by, and perplexity.
 *
 *      ids   0 .. from-1 | from .. n-1            loss = sum over t in [from, n) of -ln p(ids[t] | ids[0..t))
 *            no logits   | logits of t-1 judge t
 *
 * Teacher-forced prefill under the plan of N = n tokens; visibility is token-exact, so decoding step by step would see the same
 * (spans.h). Where the backend has cross_entropy it makes the losses, some rows of logits at a time, and one number a token comes down; else
 * the logits do. Never [n_tok][n_vocab]. Sums are in double. */
#ifndef MOA_TASKS_LOSS_H
#define MOA_TASKS_LOSS_H

#include "core/engine/engine.h"

/* -ln softmax(logits)[target], nats; logits (n_vocab) finite or -inf. Within 2e-6 of the exact value. */
double moa_loss_of_logits(const float *logits, int32_t n_vocab, int32_t target);

typedef struct moa_loss_job {
    const int32_t *ids;    /* (n) */
    int32_t n, from;       /* 1 <= from < n */
    const moa_rule *rules; /* (n_layer, n_head); NULL: dense */
    int32_t n_reserved;    /* N of the span formula; 0: n */
    bool by_logits;        /* the logits come down and are judged here, also where the device could: what it is checked against */
    float *each;           /* (n - from) the tokens' losses, caller's, or NULL */
    void (*progress)(void *user, int32_t done, int32_t total); /* tokens, or NULL */
    bool (*cancelled)(void *user);                             /* or NULL */
    void *user;
} moa_loss_job;
typedef struct moa_loss {
    double sum; /* nats */
    int64_t n;  /* tokens judged */
} moa_loss;
/* The sequence is reset first. Adds to *out. E_CANCELLED when cancelled, E_FAILED when a loss is not finite. */
moa_status moa_loss_add(moa_seq *seq, const moa_loss_job *job, moa_loss *out, moa_err *err);

#endif
