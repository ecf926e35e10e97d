/* From logits to a token.
 *
 *   all -> sorted by logit, then id -> top-k -> top-p -> min-p -> temperature -> one draw
 *
 * Each filter keeps a prefix of the sorted candidates, at least one; what they compare, and the draw, is in sample.h, which the devices
 * compute with as well. With top-k on, only k candidates are ever sorted: a heap of the k best with the worst on top.
 * A NaN counts as -inf: a broken row of logits must not break the order. */
#include "core/engine/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "core/engine/sample.h"

struct moa_sampler {
    moa_sampling how;
    int32_t n_vocab, n_max; /* candidates ever looked at */
    uint64_t *best;         /* (n_max) keys */
};

/* --- PCG32 ----------------------------------------------------------------------------------------------------------------- */

uint32_t moa_pcg32_next(moa_pcg32 *g) {
    const uint64_t old = g->state;
    g->state = old * 6364136223846793005u + g->inc;
    const uint32_t x = (uint32_t)(((old >> 18) ^ old) >> 27), turn = (uint32_t)(old >> 59);
    return x >> turn | x << (-turn & 31);
}

moa_pcg32 moa_pcg32_seed(uint64_t seed, uint64_t stream) {
    moa_pcg32 g = {.inc = stream << 1 | 1};
    (void)moa_pcg32_next(&g);
    g.state += seed;
    (void)moa_pcg32_next(&g);
    return g;
}

/* --- the sampler ------------------------------------------------------------------------------------------------------------ */

moa_sampling moa_sampling_default(void) {
    return (moa_sampling){.temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .seed = 0};
}

moa_status moa_sampling_check(const moa_sampling *s, moa_err *err) {
    if (!isfinite(s->temp) || s->temp < 0 || s->temp > 100)
        return moa_fail(err, MOA_E_USAGE, "temperature %g; from 0 (greedy) to 100", (double)s->temp);
    if (s->top_k < 0) return moa_fail(err, MOA_E_USAGE, "top-k %d; at least 1, or 0 for off", s->top_k);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return moa_fail(err, MOA_E_USAGE, "top-p %g; above 0, at most 1 (off)", (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return moa_fail(err, MOA_E_USAGE, "min-p %g; from 0 (off) to 1", (double)s->min_p);
    return MOA_OK;
}

moa_status moa_sampler_open(moa_sampler **out, const moa_sampling *how, int32_t n_vocab, moa_err *err) {
    *out = NULL;
    const moa_status status = moa_sampling_check(how, err);
    if (status != MOA_OK) return status;
    moa_sampler *s = calloc(1, sizeof *s);
    if (!s) return moa_fail(err, MOA_E_MEMORY, "no memory for a sampler");
    s->how = *how;
    s->n_vocab = n_vocab;
    s->n_max = moa_sample_n(how, n_vocab);
    s->best = calloc((size_t)s->n_max, sizeof *s->best);
    if (!s->best) {
        const int32_t n_max = s->n_max;
        moa_sampler_close(&s);
        return moa_fail(err, MOA_E_MEMORY, "no memory to sort %d tokens", n_max);
    }
    *out = s;
    return MOA_OK;
}

void moa_sampler_close(moa_sampler **s) {
    if (!*s) return;
    free((*s)->best);
    free(*s);
    *s = NULL;
}

static int by_rank(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

/* restores the heap (worst on top) below i */
static void sink(uint64_t *heap, int32_t n, int32_t i) {
    for (;;) {
        int32_t worst = i;
        for (int64_t c = 2 * (int64_t)i + 1; c <= 2 * (int64_t)i + 2 && c < n; c++)
            if (heap[c] < heap[worst]) worst = (int32_t)c;
        if (worst == i) return;
        const uint64_t t = heap[i];
        heap[i] = heap[worst];
        heap[worst] = t;
        i = worst;
    }
}

void moa_sample_rank(const float *logits, int32_t n_vocab, uint64_t *keys, int32_t n) {
    for (int32_t id = 0; id < n; id++)
        keys[id] = moa_rank_key(logits[id], id);
    if (n < n_vocab) {
        for (int32_t i = n / 2; i-- > 0;)
            sink(keys, n, i);
        float worst = moa_rank_logit(keys[0]);
        for (int32_t id = n; id < n_vocab; id++) {
            if (!(logits[id] > worst)) continue; /* of equals the smaller id was there first */
            keys[0] = moa_rank_key(logits[id], id);
            sink(keys, n, 0);
            worst = moa_rank_logit(keys[0]);
        }
    }
    qsort(keys, (size_t)n, sizeof *keys, by_rank);
}

/* how many of the n best top-p and min-p keep */
static int32_t filter(const moa_sampling *how, const uint64_t *keys, int32_t n) {
    const float best = moa_rank_logit(keys[0]);
    uint64_t sum = 0, have = MOA_WEIGHT_ONE;
    for (int32_t i = 0; i < n && how->top_p < 1; i++)
        sum += moa_weight_of(moa_rank_logit(keys[i]), best, 1);
    if (how->top_p < 1) {
        const uint64_t reach = moa_top_p_reach(sum, how->top_p);
        int32_t k = 1;
        while (k < n && have < reach)
            have += moa_weight_of(moa_rank_logit(keys[k++]), best, 1);
        n = k;
    }
    while (how->min_p > 0 && n > 1 &&
           !moa_min_p_keeps(moa_weight_of(moa_rank_logit(keys[n - 1]), best, 1), how->min_p))
        n--;
    return n;
}

int32_t moa_sample_choose(const moa_sampling *how, const uint64_t *keys, int32_t n, int32_t pos) {
    const float best = moa_rank_logit(keys[0]);
    uint64_t sum = 0;
    if (how->temp == 0 || best == -INFINITY) return moa_rank_id(keys[0]);
    n = filter(how, keys, n);
    for (int32_t i = 0; i < n; i++)
        sum += moa_weight_of(moa_rank_logit(keys[i]), best, (double)how->temp);
    const uint64_t draw = moa_scale64(moa_random_at(how->seed, pos), sum);
    uint64_t have = 0;
    int32_t i = -1;
    do
        have += moa_weight_of(moa_rank_logit(keys[++i]), best, (double)how->temp);
    while (have <= draw); /* draw < sum */
    return moa_rank_id(keys[i]);
}

int32_t moa_sampler_next(moa_sampler *s, const float *logits, int32_t pos) {
    moa_sample_rank(logits, s->n_vocab, s->best, s->n_max);
    return moa_sample_choose(&s->how, s->best, s->n_max, pos);
}

/* --- what a row of logits says ------------------------------------------------------------------------------------------------ */

static float clean(float logit) {
    return isnan(logit) ? -INFINITY : logit;
}

static double log_sum_exp(const float *logits, int32_t n) {
    double max = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++)
        if ((double)logits[i] > max) max = (double)logits[i];
    if (max == -INFINITY) return -INFINITY;
    for (int32_t i = 0; i < n; i++)
        sum += exp((double)clean(logits[i]) - max);
    return max + log(sum);
}

void moa_logits_describe(const float *logits, int32_t n_vocab, int32_t id, int32_t n, moa_top *top,
                         float *logprob, float *entropy) {
    const double lse = log_sum_exp(logits, n_vocab);
    double h = 0;
    int32_t n_top = 0;
    assert(n <= MOA_TOP_MAX && id >= 0 && id < n_vocab);
    for (int32_t i = 0; i < n_vocab; i++) {
        const double l = (double)clean(logits[i]) - lse;
        if (l > -INFINITY) h -= exp(l) * l;
        const float c = clean(logits[i]);
        int32_t at = n_top;
        while (at > 0 && c > clean(logits[top[at - 1].id]))
            at--;
        if (at >= n) continue;
        if (n_top < n) n_top++;
        for (int32_t k = n_top - 1; k > at; k--)
            top[k] = top[k - 1];
        top[at] = (moa_top){i, (float)l};
    }
    for (int32_t k = n_top; k < n; k++)
        top[k] = (moa_top){-1, -INFINITY};
    if (logprob) *logprob = (float)((double)clean(logits[id]) - lse);
    if (entropy) *entropy = (float)h;
}

double moa_logits_kl(const float *p_logits, const float *q_logits, int32_t n_vocab) {
    const double p_lse = log_sum_exp(p_logits, n_vocab), q_lse = log_sum_exp(q_logits, n_vocab);
    double kl = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        const double p = (double)clean(p_logits[i]) - p_lse, q = (double)clean(q_logits[i]) - q_lse;
        if (p > -INFINITY) kl += exp(p) * (p - q);
    }
    return kl > 0 ? kl : 0; /* rounding */
}
