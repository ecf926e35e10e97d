/* fast_argmax.c -- the next token of each row. The vocabulary is shared out in stretches; a stretch goes by in blocks, and only a block
 * whose largest value beats what was found so far is looked through: a handful in a row. Ties go to the smaller id because blocks and
 * stretches come in order and only more is better.
 * The kernels' maximum loses its way over NaN among the first vector of a block: such a block is always looked through. */
#include <math.h>

#include "core/cpu/cpu.h"

enum { STRETCH = 8192, BLOCK = 256, VECTOR = 16 /* the widest of the kernels */ };

typedef struct best {
    float value; /* -inf: nothing but -inf and NaN */
    int32_t id;
} best;

typedef struct job {
    const moa_args_argmax *a;
    const moa_kern *kern;
    best *found; /* (n_seq, n_stretch) */
    int32_t n_stretch;
} job;

/* NaN compares false and is never taken */
static void look_through(const float *x, int32_t first, int32_t n, best *b) {
    for (int32_t i = first; i < first + n; i++)
        if (x[i] > b->value) *b = (best){x[i], i};
}

static best search(const moa_kern *kern, const float *x, int32_t n) {
    best b = {-INFINITY, 0};
    for (int32_t at = 0; at < n; at += BLOCK) {
        const int32_t len = n - at < BLOCK ? n - at : BLOCK;
        float odd = 0; /* 0, or NaN when something among the first is not finite */
        for (int32_t i = at; i < at + len && i < at + VECTOR; i++)
            odd += x[i] * 0.0f;
        if (odd == 0 && !(kern->max(x + at, len) > b.value)) continue;
        look_through(x, at, len, &b);
    }
    return b;
}

static void task(void *ctx, int32_t at, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const int32_t s = at / j->n_stretch, first = at % j->n_stretch * STRETCH, left = j->a->n_vocab - first;
    if (j->a->pos[s] < 0) return;
    best b =
        search(j->kern, j->a->logits + (int64_t)s * j->a->n_vocab + first, left < STRETCH ? left : STRETCH);
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
    job j = {.a = a, .kern = cpu->kern, .n_stretch = (a->n_vocab + STRETCH - 1) / STRETCH};
    j.found = moa_cpu_room(cpu, (size_t)a->n_seq * (size_t)j.n_stretch * sizeof *j.found, err);
    if (!j.found) return MOA_E_MEMORY;
    moa_pool_run(cpu->pool, task, &j, a->n_seq * j.n_stretch);
    for (int32_t s = 0; s < a->n_seq; s++)
        if (a->pos[s] >= 0) choose(&j, s);
    return MOA_OK;
}
