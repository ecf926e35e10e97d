/* From logits to a token.
 *
 *   all -> sorted by logit, then id -> top-k -> top-p -> min-p -> temperature -> one draw of PCG32
 *
 * Each filter keeps a prefix of the sorted candidates, at least one:
 *   top-p   the fewest whose plain probabilities (among the top-k) reach p
 *   min-p   those with at least p times the probability of the best
 * With top-k on, only k candidates are ever sorted: a heap of the k best with the worst on top.
 * A NaN counts as -inf: a broken row of logits must not break the order. */
#include "core/engine/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

struct moa_sampler {
    moa_sampling how;
    int32_t n_vocab, n_max; /* candidates ever looked at */
    moa_pcg32 random;
    candidate *best; /* (n_max) */
    double *p;       /* (n_max) */
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

/* [0, 1), 53 random bits */
static double uniform(moa_pcg32 *g) {
    const uint64_t high = moa_pcg32_next(g), low = moa_pcg32_next(g);
    return (double)((high << 32 | low) >> 11) * 0x1p-53;
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
    s->n_max = how->temp == 0 ? 1 : how->top_k > 0 && how->top_k < n_vocab ? how->top_k : n_vocab;
    s->random = moa_pcg32_seed(how->seed, 54);
    s->best = calloc((size_t)s->n_max, sizeof *s->best);
    s->p = calloc((size_t)s->n_max, sizeof *s->p);
    if (!s->best || !s->p) {
        moa_sampler_close(&s);
        return moa_fail(err, MOA_E_MEMORY, "no memory to sort %d tokens",
                        how->top_k > 0 ? how->top_k : n_vocab);
    }
    *out = s;
    return MOA_OK;
}

void moa_sampler_close(moa_sampler **s) {
    if (!*s) return;
    free((*s)->best);
    free((*s)->p);
    free(*s);
    *s = NULL;
}

static float clean(float logit) {
    return isnan(logit) ? -INFINITY : logit;
}
static bool better(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

static int by_rank(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return better(*x, *y) ? -1 : better(*y, *x);
}

/* restores the heap (worst on top) below i */
static void sink(candidate *heap, int32_t n, int32_t i) {
    for (;;) {
        int32_t worst = i;
        for (int64_t c = 2 * (int64_t)i + 1; c <= 2 * (int64_t)i + 2 && c < n; c++)
            if (better(heap[worst], heap[c])) worst = (int32_t)c;
        if (worst == i) return;
        const candidate t = heap[i];
        heap[i] = heap[worst];
        heap[worst] = t;
        i = worst;
    }
}

/* the n_max best of all, sorted */
static void rank(moa_sampler *s, const float *logits) {
    for (int32_t id = 0; id < s->n_max; id++)
        s->best[id] = (candidate){clean(logits[id]), id};
    if (s->n_max < s->n_vocab) {
        for (int32_t i = s->n_max / 2; i-- > 0;)
            sink(s->best, s->n_max, i);
        for (int32_t id = s->n_max; id < s->n_vocab; id++) {
            const candidate c = {clean(logits[id]), id};
            if (!better(c, s->best[0])) continue;
            s->best[0] = c;
            sink(s->best, s->n_max, 0);
        }
    }
    qsort(s->best, (size_t)s->n_max, sizeof *s->best, by_rank);
}

/* p[i] = exp((logit - best) / temp), sum returned; a row of -inf alone gives its first token everything */
static double weigh(moa_sampler *s, int32_t n, double temp) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        s->p[i] = i == 0 ? 1 : exp(((double)s->best[i].logit - (double)s->best[0].logit) / temp);
        if (isnan(s->p[i])) s->p[i] = 0; /* -inf - -inf */
        sum += s->p[i];
    }
    return sum;
}

int32_t moa_sampler_next(moa_sampler *s, const float *logits) {
    rank(s, logits);
    if (s->how.temp == 0) return s->best[0].id;
    int32_t n = s->n_max;
    const double sum = weigh(s, n, 1);
    if (s->how.top_p < 1) {
        const double enough = (double)s->how.top_p * sum;
        double have = s->p[0];
        int32_t k = 1;
        while (k < n && have < enough)
            have += s->p[k++];
        n = k;
    }
    if (s->how.min_p > 0)
        while (n > 1 && s->p[n - 1] < (double)s->how.min_p)
            n--; /* p[0] is 1 */
    double left = uniform(&s->random) * weigh(s, n, (double)s->how.temp);
    for (int32_t i = 0; i < n; i++) {
        left -= s->p[i];
        if (left < 0) return s->best[i].id;
    }
    return s->best[0].id; /* rounding only */
}

/* --- what a row of logits says ------------------------------------------------------------------------------------------------ */

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
        const candidate c = {clean(logits[i]), i};
        int32_t at = n_top;
        while (at > 0 && better(c, (candidate){clean(logits[top[at - 1].id]), top[at - 1].id}))
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
