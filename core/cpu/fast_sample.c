/* fast_sample.c -- the end of a step that draws. The k best of a row by a heap (sampler.c); the softmax's sum and entropy, where they are
 * told, by the pool: stretches of the vocabulary, added up in order. */
#include <math.h>
#include <string.h>

#include "core/cpu/cpu.h"
#include "core/engine/sample.h"

enum { STRETCH = 8192 };

typedef struct sums {
    double exp, weighted; /* of e^x and of x e^x, x = logit - best */
} sums;

typedef struct job {
    const moa_args_sample *a;
    const float *row;
    float best;
    sums *part; /* (n_stretch) */
} job;

static void sum_stretch(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const int32_t first = task * STRETCH, left = j->a->n_vocab - first, n = left < STRETCH ? left : STRETCH;
    sums s = {0, 0};
    for (int32_t i = first; i < first + n; i++) {
        const float x = j->row[i] - j->best, p = expf(x);
        if (!(p > 0)) continue; /* NaN too */
        s.exp += (double)p;
        s.weighted += (double)p * (double)x;
    }
    j->part[task] = s;
}

static void tell(moa_cpu *cpu, const job *j, int32_t s, int32_t id, const uint64_t *keys) {
    const moa_args_sample *a = j->a;
    moa_told *t = a->told + (int64_t)s * a->told_stride + a->step[s] % (uint32_t)a->told_stride;
    const int32_t n_stretch = (a->n_vocab + STRETCH - 1) / STRETCH;
    const double best = (double)j->best;
    sums all = {0, 0};
    moa_pool_run(cpu->pool, sum_stretch, (void *)(uintptr_t)j, n_stretch);
    for (int32_t i = 0; i < n_stretch; i++) {
        all.exp += j->part[i].exp;
        all.weighted += j->part[i].weighted;
    }
    const double log_sum = log(all.exp), chosen = isnan(j->row[id]) ? (double)-INFINITY : (double)j->row[id];
    t->id = id;
    t->pos = a->pos[s] + 1;
    t->logprob = (float)(chosen - best - log_sum);
    t->entropy = all.exp > 0 ? (float)(log_sum - all.weighted / all.exp) : 0;
    t->n_top = a->n_top;
    for (int32_t i = 0; i < MOA_TOP_MAX; i++)
        t->top[i] = i < a->n_top ? (moa_top){moa_rank_id(keys[i]),
                                             (float)((double)moa_rank_logit(keys[i]) - best - log_sum)}
                                 : (moa_top){-1, -INFINITY};
    t->stamp = ++a->step[s];
}

static void move_on(const moa_args_sample *a, int32_t s, int32_t id) {
    const int32_t pos = a->pos[s];
    bool done = pos + 1 >= a->limit[s];
    for (int32_t i = 0; i < a->n_end; i++)
        done = done || a->end[i] == id;
    if (a->log) a->log[(int64_t)s * a->log_stride + pos % a->log_stride] = id;
    a->id[s] = id;
    a->pos[s] = done ? -1 : pos + 1;
}

moa_status moa_fast_sample(moa_backend *b, const moa_args_sample *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    const int32_t n = moa_sample_n(&a->how, a->n_vocab), n_rank = n > a->n_top ? n : a->n_top,
                  n_stretch = (a->n_vocab + STRETCH - 1) / STRETCH;
    uint64_t *keys =
        moa_cpu_room(cpu, (size_t)n_rank * sizeof *keys + (size_t)n_stretch * sizeof(sums), err);
    if (!keys) return MOA_E_MEMORY;
    for (int32_t s = 0; s < a->n_seq; s++) {
        if (a->pos[s] < 0) continue;
        job j = {.a = a, .row = a->logits + (int64_t)s * a->n_vocab, .part = (sums *)(void *)(keys + n_rank)};
        moa_sampling how = a->how;
        how.seed += (uint64_t)s;
        moa_sample_rank(j.row, a->n_vocab, keys, n_rank);
        j.best = moa_rank_logit(keys[0]);
        const int32_t id = moa_sample_choose(&how, keys, n, a->pos[s] + 1);
        if (a->told) tell(cpu, &j, s, id, keys);
        move_on(a, s, id);
    }
    return MOA_OK;
}
