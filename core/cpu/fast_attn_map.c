/* fast_attn_map.c -- attention of one head over a region, summed into cells. A task is a row of cells; it takes its queries 16 at
 * a time: scores against 64 keys a product, whole rows of scores kept, then softmax and sums. */
#include <math.h>
#include <string.h>

#include "core/base/size.h"
#include "core/cpu/cpu.h"

enum { QUERIES = 16 };

typedef struct job {
    const moa_args_attn_map *m;
    const moa_kern *kern;
    float *scratch; /* (n_threads, scratch_floats) */
    size_t scratch_floats;
    size_t n_key; /* row of scores: q1 rounded up to 64 */
} job;

static int32_t cut(int32_t from, int32_t to, int32_t r, int32_t parts) {
    return from + (int32_t)((int64_t)r * (to - from) / parts);
}

static double mass(const float *a, int32_t from, int32_t to) {
    double sum = 0;
    for (int32_t j = from; j < to; j++)
        sum += a[j];
    return sum;
}

/* s (queries first .. end-1, n_key): scores of all keys up to the last query's; k: scratch (d_head, 64), q scaled in qs */
static void scores(const job *j, int32_t first, int32_t end, float *qs, float *k, float *s) {
    const moa_args_attn_map *m = j->m;
    for (int32_t i = 0; i < (end - first) * m->d_head; i++)
        qs[i] = m->q[(int64_t)first * m->d_head + i] * m->scale;
    for (int32_t p = 0; p < end; p += MOA_PAGE_TOK) {
        /* a block no query sees is not computed */
        if (p > 0 && p + MOA_PAGE_TOK - 1 < moa_window_first(m->span, first)) continue;
        j->kern->page_k(m->k + (int64_t)p * m->d_head, MOA_KV_F32,
                        end - p < MOA_PAGE_TOK ? end - p : MOA_PAGE_TOK, m->d_head, k);
        const moa_gemm g = {.m = end - first,
                            .n = MOA_PAGE_TOK,
                            .k = m->d_head,
                            .a = qs,
                            .lda = m->d_head,
                            .b = k,
                            .ldb = MOA_PAGE_TOK,
                            .c = s + p,
                            .ldc = (int32_t)j->n_key};
        j->kern->gemm(&g);
    }
}

/* a (i + 1): scores, then probabilities; keys [64, hole) are cut and not touched. stat: added to */
static void softmax(const job *j, int32_t i, float *a, double *stat) {
    const moa_args_attn_map *m = j->m;
    const int32_t sink = i + 1 < MOA_SINK_TOK ? i + 1 : MOA_SINK_TOK, hole = moa_window_first(m->span, i),
                  n = hole <= i ? i + 1 - hole : 0;
    const float top = j->kern->max(a, sink), other = j->kern->max(a + hole, n),
                max = top > other ? top : other;
    double energy = 0, place = 0, sum = 0;
    for (int part = 0; part < 2; part++) {
        const int32_t from = part ? hole : 0, count = part ? n : sink;
        for (int32_t c = 0; c < count;
             c += MOA_PAGE_TOK) { /* the scores are still wanted when their exponentials are there */
            float s[MOA_PAGE_TOK], *e = a + from + c;
            const int32_t len = count - c < MOA_PAGE_TOK ? count - c : MOA_PAGE_TOK;
            memcpy(s, e, sizeof *s * (size_t)len);
            j->kern->exp_shift(e, len, max);
            for (int32_t x = 0; x < len; x++) {
                sum += e[x];
                energy += (double)e[x] * s[x];
                place += (double)e[x] * (from + c + x);
            }
        }
    }
    const float inverse = (float)(1 / sum);
    for (int32_t x = 0; x < sink; x++)
        a[x] *= inverse;
    for (int32_t x = 0; x < n; x++)
        a[hole + x] *= inverse;
    if (!m->stat) return;
    const int32_t w = moa_window_first(m->measure_span, i);
    const double lse = max + log(sum);
    stat[MOA_STAT_ENTROPY] += lse - energy / sum;
    stat[MOA_STAT_SINK] += mass(a, 0, sink);
    stat[MOA_STAT_WINDOW] += mass(a, w > hole ? w : hole, i + 1);
    stat[MOA_STAT_DISTANCE] += i - place / sum;
    stat[MOA_STAT_LSE] += lse;
}

/* query i's probabilities to the row's cells; cut keys do not count */
static void add_cells(const job *j, int32_t i, const float *a, double *cells, float *max) {
    const moa_args_attn_map *m = j->m;
    const int32_t hole = moa_window_first(m->span, i);
    for (int32_t c = 0; c < m->cols; c++) {
        const int32_t from = cut(m->k0, m->k1, c, m->cols), to = cut(m->k0, m->k1, c + 1, m->cols);
        for (int part = 0; part < 2; part++) {
            const int32_t lo = part && from < hole ? hole : from,
                          stop = part                   ? i + 1
                                 : i + 1 < MOA_SINK_TOK ? i + 1
                                                        : MOA_SINK_TOK,
                          hi = to < stop ? to : stop;
            if (lo >= hi) continue;
            cells[c] += mass(a, lo, hi);
            if (max) {
                const float top = j->kern->max(a + lo, hi - lo);
                if (top > max[c]) max[c] = top;
            }
        }
    }
}

static void map_task(void *ctx, int32_t r, int32_t thread) {
    const job *j = ctx;
    const moa_args_attn_map *m = j->m;
    float *s = j->scratch + (size_t)thread * j->scratch_floats, *k = s + QUERIES * j->n_key,
          *q = k + (size_t)m->d_head * MOA_PAGE_TOK;
    double *cells = (double *)(void *)(q + (size_t)m->d_head * QUERIES), stat[MOA_N_STAT] = {0};
    float *max = m->max ? m->max + (int64_t)r * m->cols : NULL;
    const int32_t begin = cut(m->q0, m->q1, r, m->rows), end = cut(m->q0, m->q1, r + 1, m->rows);
    memset(cells, 0, sizeof *cells * (size_t)m->cols);
    if (max) memset(max, 0, sizeof *max * (size_t)m->cols);
    for (int32_t first = begin; first < end; first += QUERIES) {
        const int32_t stop = first + QUERIES < end ? first + QUERIES : end;
        scores(j, first, stop, q, k, s);
        for (int32_t i = first; i < stop; i++) {
            float *a = s + (size_t)(i - first) * j->n_key;
            softmax(j, i, a, stat);
            add_cells(j, i, a, cells, max);
        }
    }
    for (int32_t c = 0; c < m->cols; c++)
        m->mass[(int64_t)r * m->cols + c] = (float)cells[c];
    for (int32_t x = 0; m->stat && x < MOA_N_STAT; x++)
        m->stat[(int64_t)r * MOA_N_STAT + x] = end > begin ? (float)(stat[x] / (end - begin)) : 0;
}

moa_status moa_fast_attn_map(moa_backend *b, const moa_args_attn_map *m, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    job j = {.m = m, .kern = cpu->kern};
    size_t bytes;
    j.n_key = ((size_t)m->q1 + MOA_PAGE_TOK - 1) & ~(size_t)(MOA_PAGE_TOK - 1);
    j.scratch_floats = QUERIES * j.n_key + (size_t)m->d_head * (MOA_PAGE_TOK + QUERIES) +
                       ((2 * (size_t)m->cols + 15) & ~(size_t)15);
    if (!moa_size_mul(j.scratch_floats * sizeof(float), (size_t)cpu->n_threads, &bytes)) bytes = SIZE_MAX;
    j.scratch = moa_cpu_room(cpu, bytes, err);
    if (!j.scratch) return MOA_E_MEMORY;
    moa_pool_run(cpu->pool, map_task, &j, m->rows);
    return MOA_OK;
}
