/* The end of a step that draws: everything sorted, every filter as sample.h says, sums in order.
 * logits (n_seq, n_vocab) -> id, pos, step (n_seq), log (n_seq, log_stride), told (n_seq, told_stride) */
#include <math.h>
#include <stdlib.h>

#include "core/cpu/cpu.h"
#include "core/engine/sample.h"

static int by_key(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

static uint64_t weight(const uint64_t *keys, int32_t i, double temp) {
    return moa_weight_of(moa_rank_logit(keys[i]), moa_rank_logit(keys[0]), temp);
}

/* one of n sorted keys */
static int32_t draw(const moa_sampling *how, const uint64_t *keys, int32_t n, uint64_t random) {
    uint64_t sum = 0, have = 0;
    if (how->temp == 0 || moa_rank_logit(keys[0]) == -INFINITY) return moa_rank_id(keys[0]);
    if (how->top_k > 0 && how->top_k < n) n = how->top_k;
    for (int32_t i = 0; i < n; i++)
        sum += weight(keys, i, 1);
    int32_t kept = 0;
    while (kept < n && (how->top_p >= 1 || kept == 0 || have < moa_top_p_reach(sum, how->top_p)))
        have += weight(keys, kept++, 1);
    n = kept;
    for (kept = 1; kept < n && moa_min_p_keeps(weight(keys, kept, 1), how->min_p); kept++)
        ;
    n = kept;
    sum = have = 0;
    for (int32_t i = 0; i < n; i++)
        sum += weight(keys, i, (double)how->temp);
    const uint64_t target = moa_scale64(random, sum);
    for (int32_t i = 0; i < n; i++)
        if ((have += weight(keys, i, (double)how->temp)) > target) return moa_rank_id(keys[i]);
    return moa_rank_id(keys[0]);
}

static bool is_end(const moa_args_sample *a, int32_t id) {
    for (int32_t i = 0; i < a->n_end; i++)
        if (a->end[i] == id) return true;
    return false;
}

static void tell(const moa_args_sample *a, int32_t s, int32_t id, int32_t pos, const uint64_t *keys) {
    moa_told *t = a->told + (int64_t)s * a->told_stride + a->step[s] % (uint32_t)a->told_stride;
    const float *row = a->logits + (int64_t)s * a->n_vocab;
    const double best = (double)moa_rank_logit(keys[0]);
    double sum = 0, weighted = 0;
    for (int32_t i = 0; i < a->n_vocab; i++) {
        const double x = (isnan(row[i]) ? (double)-INFINITY : (double)row[i]) - best, p = exp(x);
        if (!(p > 0)) continue;
        sum += p;
        weighted += p * x;
    }
    t->id = id;
    t->pos = pos + 1;
    t->logprob = (float)((isnan(row[id]) ? (double)-INFINITY : (double)row[id]) - best - log(sum));
    t->entropy = sum > 0 ? (float)(log(sum) - weighted / sum) : 0;
    t->n_top = a->n_top;
    for (int32_t i = 0; i < MOA_TOP_MAX; i++)
        t->top[i] = i < a->n_top ? (moa_top){moa_rank_id(keys[i]),
                                             (float)((double)moa_rank_logit(keys[i]) - best - log(sum))}
                                 : (moa_top){-1, -INFINITY};
    t->stamp = ++a->step[s];
}

moa_status moa_ref_sample(moa_backend *b, const moa_args_sample *a, moa_err *err) {
    (void)b;
    uint64_t *keys = moa_cpu_scratch((size_t)a->n_vocab, sizeof *keys, err);
    if (!keys) return MOA_E_MEMORY;
    for (int32_t s = 0; s < a->n_seq; s++) {
        const float *row = a->logits + (int64_t)s * a->n_vocab;
        const int32_t pos = a->pos[s];
        if (pos < 0) continue;
        for (int32_t i = 0; i < a->n_vocab; i++)
            keys[i] = moa_rank_key(row[i], i);
        qsort(keys, (size_t)a->n_vocab, sizeof *keys, by_key);
        const uint64_t random = moa_random_at(a->how.seed + (uint64_t)s, pos + 1);
        const int32_t id = draw(&a->how, keys, a->n_vocab, random);
        if (a->told) tell(a, s, id, pos, keys);
        if (a->log) a->log[(int64_t)s * a->log_stride + pos % a->log_stride] = id;
        a->id[s] = id;
        a->pos[s] = is_end(a, id) || pos + 1 >= a->limit[s] ? -1 : pos + 1;
    }
    free(keys);
    return MOA_OK;
}
