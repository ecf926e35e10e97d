/* fast_argmax.c -- the next token of each row. The vocabulary is shared out in stretches; a stretch first finds its largest value
 * (a maximum has no order of operations, so it vectorises), then the first place that has it. Ties go to the smaller id because
 * stretches are merged in order. */
#include <math.h>

#include "core/cpu/cpu.h"

enum { STRETCH = 8192, LANES = 16 };

typedef struct best {
    float value; /* -inf: nothing but -inf and NaN */
    int32_t id;
} best;

typedef struct job {
    const moa_args_argmax *a;
    best *found; /* (n_seq, n_stretch) */
    int32_t n_stretch;
} job;

/* NaN compares false and is never taken */
static best search(const float *x, int32_t n) {
    float most[LANES], top = -INFINITY;
    int32_t i = 0;
    for (int k = 0; k < LANES; k++)
        most[k] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            most[k] = x[i + k] > most[k] ? x[i + k] : most[k];
    for (; i < n; i++)
        most[0] = x[i] > most[0] ? x[i] : most[0];
    for (int k = 0; k < LANES; k++)
        top = most[k] > top ? most[k] : top;
    for (i = 0; i < n && x[i] != top;)
        i++;
    return (best){top, i < n ? i : 0};
}

static void task(void *ctx, int32_t at, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const int32_t s = at / j->n_stretch, first = at % j->n_stretch * STRETCH, left = j->a->n_vocab - first;
    if (j->a->pos[s] < 0) return;
    best b = search(j->a->logits + (int64_t)s * j->a->n_vocab + first, left < STRETCH ? left : STRETCH);
    b.id += first;
    j->found[at] = b;
}

static void choose(const job *j, int32_t s) {
    const moa_args_argmax *a = j->a;
    const int32_t pos = a->pos[s];
    best top = {-INFINITY, 0};
    for (int32_t i = 0; i < j->n_stretch; i++)
        if (j->found[s * j->n_stretch + i].value > top.value) top = j->found[s * j->n_stretch + i];
    bool done = pos + 1 >= a->limit[s];
    for (int32_t i = 0; i < a->n_end; i++)
        done = done || a->end[i] == top.id;
    a->id[s] = top.id;
    a->log[(int64_t)s * a->log_stride + pos % a->log_stride] = top.id;
    a->pos[s] = done ? -1 : pos + 1;
}

moa_status moa_fast_argmax(moa_backend *b, const moa_args_argmax *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    job j = {.a = a, .n_stretch = (a->n_vocab + STRETCH - 1) / STRETCH};
    j.found = moa_cpu_room(cpu, (size_t)a->n_seq * (size_t)j.n_stretch * sizeof *j.found, err);
    if (!j.found) return MOA_E_MEMORY;
    moa_pool_run(cpu->pool, task, &j, a->n_seq * j.n_stretch);
    for (int32_t s = 0; s < a->n_seq; s++)
        if (a->pos[s] >= 0) choose(&j, s);
    return MOA_OK;
}
