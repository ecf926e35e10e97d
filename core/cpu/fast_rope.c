/* fast_rope.c -- rotary embedding from a table of the angles' cosines and sines.
 *
 * All layers turn q and k of the same tokens by the same angles, so the table of the last call is kept and used again while
 * positions and parameters stay the same: 60 calls a step of SmolLM2 compute it once. Angles are computed in double: at
 * position 30000 a float angle would be off by 2e-3. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "core/cpu/cpu.h"

struct moa_rope_table {
    int32_t n_tok, rope_dim; /* that the table is of; n_tok 0: none */
    float theta, scale;
    const moa_dev_weight *factors; /* only compared */
    size_t tok_room, pair_room;    /* capacity */
    int32_t *pos;                  /* (n_tok) */
    float *turn;                   /* (n_tok, rope_dim/2, 2): cosine, sine */
};

enum { ROWS = 16 };

void moa_rope_table_free(struct moa_rope_table *t) {
    if (!t) return;
    free(t->pos);
    free(t->turn);
    free(t);
}

void moa_rope_table_forget(struct moa_rope_table *t, const moa_dev_weight *factors) {
    if (t && t->factors == factors) t->n_tok = 0;
}

typedef struct job {
    const moa_args_rope *a;
    struct moa_rope_table *table;
} job;

static void table_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_rope *a = j->a;
    const int32_t half = a->rope_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        const double frequency =
            pow(a->theta, -2.0 * i / a->rope_dim) / (a->freq_factors ? a->freq_factors->values[i] : 1.0f);
        for (int32_t t = task * ROWS; t < (task + 1) * ROWS && t < a->n_tok; t++) {
            const double angle = (double)a->pos[t] * a->scale * frequency;
            float *turn = j->table->turn + ((int64_t)t * half + i) * 2;
            turn[0] = (float)cos(angle);
            turn[1] = (float)sin(angle);
        }
    }
}

static bool same(const struct moa_rope_table *t, const moa_args_rope *a) {
    return t->n_tok == a->n_tok && t->rope_dim == a->rope_dim && t->theta == a->theta &&
           t->scale == a->scale && t->factors == a->freq_factors &&
           memcmp(t->pos, a->pos, sizeof *a->pos * (size_t)a->n_tok) == 0;
}

static moa_status table_make(moa_cpu *cpu, const moa_args_rope *a, moa_err *err) {
    if (!cpu->rope) cpu->rope = calloc(1, sizeof *cpu->rope);
    struct moa_rope_table *t = cpu->rope;
    if (!t) return moa_fail(err, MOA_E_MEMORY, "no memory for the table of rotations");
    if (t->n_tok && same(t, a)) return MOA_OK;
    const size_t n = (size_t)a->n_tok, n_pair = n * (size_t)(a->rope_dim / 2);
    t->n_tok = 0;
    if (n > t->tok_room || n_pair > t->pair_room) {
        moa_rope_table_free(t);
        cpu->rope = t = calloc(1, sizeof *t);
        if (t) {
            t->pos = moa_cpu_scratch(n, sizeof *t->pos, err);
            t->turn = moa_cpu_scratch(n_pair, 2 * sizeof *t->turn, err);
        }
        if (!t || !t->pos || !t->turn)
            return moa_fail(err, MOA_E_MEMORY, "no memory for the rotations of %d tokens", a->n_tok);
        t->tok_room = n;
        t->pair_room = n_pair;
    }
    job j = {.a = a, .table = t};
    moa_pool_run(cpu->pool, table_task, &j, (a->n_tok + ROWS - 1) / ROWS);
    memcpy(t->pos, a->pos, sizeof *a->pos * n);
    t->n_tok = a->n_tok;
    t->rope_dim = a->rope_dim;
    t->theta = a->theta;
    t->scale = a->scale;
    t->factors = a->freq_factors;
    return MOA_OK;
}

static void turn_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const job *j = ctx;
    const moa_args_rope *a = j->a;
    const int32_t half = a->rope_dim / 2;
    const int64_t n_row = (int64_t)a->n_tok * a->n_head;
    for (int64_t r = (int64_t)task * ROWS * 4; r < (int64_t)(task + 1) * ROWS * 4 && r < n_row; r++) {
        const float *restrict turn = j->table->turn + r / a->n_head * half * 2;
        float *restrict x = a->x + r * a->d_head;
        if (a->kind == MOA_ROPE_PAIRS) {
            for (int32_t i = 0; i < half; i++) {
                const float u = x[2 * i], v = x[2 * i + 1];
                x[2 * i] = u * turn[2 * i] - v * turn[2 * i + 1];
                x[2 * i + 1] = u * turn[2 * i + 1] + v * turn[2 * i];
            }
        } else {
            for (int32_t i = 0; i < half; i++) {
                const float u = x[i], v = x[i + half];
                x[i] = u * turn[2 * i] - v * turn[2 * i + 1];
                x[i + half] = u * turn[2 * i + 1] + v * turn[2 * i];
            }
        }
    }
}

moa_status moa_fast_rope(moa_backend *b, const moa_args_rope *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    if (a->n_tok <= 0) return MOA_OK;
    const moa_status s = table_make(cpu, a, err);
    if (s != MOA_OK) return s;
    job j = {.a = a, .table = cpu->rope};
    const int64_t n_row = (int64_t)a->n_tok * a->n_head;
    moa_pool_run(cpu->pool, turn_task, &j, (int32_t)((n_row + ROWS * 4 - 1) / (ROWS * 4)));
    return MOA_OK;
}
