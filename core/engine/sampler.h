/* sampler.h -- from logits to the next token: greedy, or temperature after top-k, top-p, min-p, with a seed.
 *
 * Names and defaults as llama.cpp users know them; the order is top-k, top-p, min-p, temperature. Same seed, same position, same logits:
 * the same choice on every machine and device (sample.h). */
#ifndef MOA_ENGINE_SAMPLER_H
#define MOA_ENGINE_SAMPLER_H

#include <stdint.h>

#include "core/base/status.h"

typedef struct moa_sampling {
    float temp;    /* 0: greedy. Default 0.8 */
    int32_t top_k; /* 0: off. Default 40 */
    float top_p;   /* 1: off. Default 0.95 */
    float min_p;   /* 0: off. Default 0.05 */
    uint64_t seed;
} moa_sampling;
moa_sampling moa_sampling_default(void);
moa_status moa_sampling_check(const moa_sampling *s, moa_err *err); /* E_USAGE with the value that is out of range */

/* PCG32 (O'Neill 2014, pcg-random.org): XSH-RR output of a 64-bit linear congruential generator */
typedef struct moa_pcg32 {
    uint64_t state, inc; /* inc is odd: it selects one of 2^63 streams */
} moa_pcg32;
moa_pcg32 moa_pcg32_seed(uint64_t seed, uint64_t stream);
uint32_t moa_pcg32_next(moa_pcg32 *g);

/* A row of logits on the host: the n best of n_vocab as keys (sample.h), the best first; n <= n_vocab */
void moa_sample_rank(const float *logits, int32_t n_vocab, uint64_t *keys, int32_t n);
/* candidates that a choice looks at: what moa_sample_choose wants ranked, at least 1 */
static inline int32_t moa_sample_n(const moa_sampling *s, int32_t n_vocab) {
    return s->temp == 0 ? 1 : s->top_k > 0 && s->top_k < n_vocab ? s->top_k : n_vocab;
}
/* The id of one of the n = moa_sample_n() best, for the token at pos */
int32_t moa_sample_choose(const moa_sampling *s, const uint64_t *keys, int32_t n, int32_t pos);

typedef struct moa_sampler moa_sampler;
moa_status moa_sampler_open(moa_sampler **out, const moa_sampling *s, int32_t n_vocab, moa_err *err);
void moa_sampler_close(moa_sampler **s);
/* logits (n_vocab), of the token that will stand at pos; ties: the smaller id */
int32_t moa_sampler_next(moa_sampler *s, const float *logits, int32_t pos);

enum { MOA_TOP_MAX = 8 };
typedef struct moa_top {
    int32_t id;
    float logprob; /* of the plain softmax, nats */
} moa_top;
/* log-probability of id, entropy (nats) of the plain softmax, and its n <= MOA_TOP_MAX best tokens */
void moa_logits_describe(const float *logits, int32_t n_vocab, int32_t id, int32_t n, moa_top *top, float *logprob,
                         float *entropy);
/* KL(p || q) of the softmaxes of two rows of logits, nats, in double */
double moa_logits_kl(const float *p_logits, const float *q_logits, int32_t n_vocab);

#endif
