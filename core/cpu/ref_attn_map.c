/* Attention of one head over a region, summed into cells: each query's whole softmax first, then its part inside [k0, k1).
 * q, k (max_tok, d_head) -> mass (rows, cols), max (rows, cols) or NULL, stat (rows, MOA_N_STAT) or NULL
 * A row with no queries (rows > q1 - q0) is zero everywhere. */
#include <math.h>
#include <stdlib.h>

#include "core/cpu/cpu.h"

/* a (i + 1): A of query i, 0 where not visible; returns the log-sum-exp */
static double softmax_row(const moa_args_attn_map *m, int32_t i, double *a) {
    double max = -INFINITY, sum = 0;
    for (int32_t j = 0; j <= i; j++) {
        a[j] = -INFINITY;
        if (!moa_sees(m->span, i, j)) continue;
        double dot = 0;
        for (int32_t d = 0; d < m->d_head; d++)
            dot += (double)m->q[(int64_t)i * m->d_head + d] * m->k[(int64_t)j * m->d_head + d];
        a[j] = dot * m->scale;
        if (a[j] > max) max = a[j];
    }
    for (int32_t j = 0; j <= i; j++)
        sum += exp(a[j] - max);
    for (int32_t j = 0; j <= i; j++)
        a[j] = exp(a[j] - max) / sum;
    return max + log(sum);
}

static void add_stat(const moa_args_attn_map *m, int32_t i, const double *a, double lse, double *stat) {
    for (int32_t j = 0; j <= i; j++) {
        if (a[j] > 0) stat[MOA_STAT_ENTROPY] -= a[j] * log(a[j]);
        if (j < MOA_SINK_TOK)
            stat[MOA_STAT_SINK] += a[j];
        else if (i - j < moa_window(m->measure_span))
            stat[MOA_STAT_WINDOW] += a[j];
        stat[MOA_STAT_DISTANCE] += a[j] * (i - j);
    }
    stat[MOA_STAT_LSE] += lse;
}

/* first query or key of part r when [from, to) is cut into `parts` */
static int32_t cut(int32_t from, int32_t to, int32_t r, int32_t parts) {
    return from + (int32_t)((int64_t)r * (to - from) / parts);
}

moa_status moa_ref_attn_map(moa_backend *b, const moa_args_attn_map *m, moa_err *err) {
    (void)b;
    double *a = moa_cpu_scratch((size_t)m->q1, sizeof *a, err);
    double *mass = moa_cpu_scratch((size_t)m->cols, sizeof *mass, err);
    const bool ok = a && mass;
    for (int32_t r = 0; ok && r < m->rows; r++) {
        const int32_t first = cut(m->q0, m->q1, r, m->rows), end = cut(m->q0, m->q1, r + 1, m->rows);
        double stat[MOA_N_STAT] = {0};
        for (int32_t c = 0; c < m->cols; c++) {
            mass[c] = 0;
            if (m->max) m->max[(int64_t)r * m->cols + c] = 0;
        }
        for (int32_t i = first; i < end; i++) {
            add_stat(m, i, a, softmax_row(m, i, a), stat);
            for (int32_t c = 0; c < m->cols; c++)
                for (int32_t j = cut(m->k0, m->k1, c, m->cols);
                     j < cut(m->k0, m->k1, c + 1, m->cols) && j <= i; j++) {
                    mass[c] += a[j];
                    if (m->max && a[j] > m->max[(int64_t)r * m->cols + c])
                        m->max[(int64_t)r * m->cols + c] = (float)a[j];
                }
        }
        for (int32_t c = 0; c < m->cols; c++)
            m->mass[(int64_t)r * m->cols + c] = (float)mass[c];
        for (int32_t s = 0; m->stat && s < MOA_N_STAT; s++)
            m->stat[(int64_t)r * MOA_N_STAT + s] = end > first ? (float)(stat[s] / (end - first)) : 0;
    }
    free(a);
    free(mass);
    return ok ? MOA_OK : MOA_E_MEMORY;
}
