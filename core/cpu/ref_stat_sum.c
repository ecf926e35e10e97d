/* Statistics of queries are added to the sums of their heads, in the order of the queries.
 * stat (n_layer, n_tok, n_head, MOA_N_STAT), pos (n_tok) -> total (n_layer, n_head), queries (MOA_HIST_BUCKETS) */
#include "core/cpu/cpu.h"

static void add(moa_stat_total *t, const float *x, int32_t pos, int32_t weight) {
    const float cover = x[MOA_STAT_SINK] + x[MOA_STAT_WINDOW];
    t->entropy += weight * (double)x[MOA_STAT_ENTROPY];
    t->sink += weight * (double)x[MOA_STAT_SINK];
    t->window += weight * (double)x[MOA_STAT_WINDOW];
    t->distance += weight * (double)x[MOA_STAT_DISTANCE];
    t->n_query += weight;
    if (cover >= t->worst_cover) return;
    t->worst_cover = cover;
    t->worst_query = pos;
}

static int32_t weight_of(const moa_args_stat_sum *a, int32_t i) {
    return a->pos[i] < 0 ? 0 : moa_probe_weight(&a->rows, a->pos[i]);
}

moa_status moa_ref_stat_sum(moa_backend *b, const moa_args_stat_sum *a, moa_err *err) {
    (void)b, (void)err;
    const float *x = a->stat;
    for (int32_t l = 0; l < a->n_layer; l++)
        for (int32_t i = 0; i < a->n_tok; i++) {
            const int32_t weight = weight_of(a, i);
            for (int32_t h = 0; h < a->n_head; h++, x += MOA_N_STAT)
                if (weight > 0) add(&a->total[(int64_t)l * a->n_head + h], x, a->pos[i], weight);
        }
    for (int32_t i = 0; i < a->n_tok; i++) {
        const int32_t bucket = a->pos[i] / a->bucket_tok;
        if (a->pos[i] >= 0) a->queries[bucket < MOA_HIST_BUCKETS ? bucket : MOA_HIST_BUCKETS - 1] += weight_of(a, i);
    }
    return MOA_OK;
}

/* Memory is read once and little is done with it: nothing to be faster at. */
moa_status moa_fast_stat_sum(moa_backend *b, const moa_args_stat_sum *a, moa_err *err) {
    return moa_ref_stat_sum(b, a, err);
}
