/* The influence profile (profile.h): seconds an item of each length, and what they go to.
 *
 *   items      random tokens, RESPONSE of them supervised at the end (of short ones a quarter)
 *   timed      n_item items, as many together as go, as `profile` does them, the host's sums included; before them a round that is not
 *              counted
 *   shares     a round more, each operation waited for: its parts are a little longer than in the timed ones
 *
 *   flop       4 of each weight and token (once forward, once back; what is computed again does not count), 14 d of each visible pair of a
 *              query head: two products of the forward pass and five of the backward. The influence has no products of its own then: what
 *              it needs, S and G, are among the five */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/sampler.h"
#include "core/tasks/bench.h"

enum { RESPONSE = 96 };

static double elements(const moa_weight *w) {
    return w->bytes > 0 ? (double)w->n_out * w->n_in : 0;
}

static double item_flop(const moa_model *m, int32_t n, int32_t n_supervised) {
    double weights = 0;
    for (int32_t l = 0; l < m->shape.n_layer; l++) {
        const moa_layer *y = &m->layers[l];
        weights += elements(&y->wq) + elements(&y->wk) + elements(&y->wv) + elements(&y->wo) + elements(&y->gate) +
                   elements(&y->up) + elements(&y->down);
    }
    const double pairs = (double)n * (n + 1) / 2 * m->shape.n_layer * m->shape.n_head;
    return 4 * weights * n + 4.0 * m->shape.n_vocab * m->shape.d_model * n_supervised + 14.0 * m->shape.d_head * pairs;
}

static double in_use(moa_backend *b) {
    moa_device_info info = {0};
    if (b->vt->info(b, &info, NULL) != MOA_OK || info.free_bytes == 0 || info.sm == 0) return (double)NAN;
    return (double)info.memory_bytes - (double)info.free_bytes;
}

moa_status moa_bench_profile(const moa_bench *x, moa_engine *e, moa_profile *p, const moa_bench_profile_case *c,
                             moa_bench_profile_row *out, moa_err *err) {
    const moa_model *m = moa_engine_model(e);
    const int32_t n = c->depth, n_item = c->n_item, n_supervised = n >= 4 * RESPONSE ? RESPONSE : n / 4 > 0 ? n / 4 : 1;
    moa_influence sums = {0};
    moa_pcg32 g = moa_pcg32_seed((uint64_t)n, 43);
    moa_status s = MOA_OK;
    int32_t *ids = calloc((size_t)n_item * (size_t)n + 1, sizeof *ids), n_round = 0;
    moa_profile_item *items = calloc((size_t)n_item, sizeof *items);
    double *seconds = malloc((size_t)n_item * sizeof *seconds);
    *out = (moa_bench_profile_row){.depth = n, .n_item = n_item, .n_supervised = n_supervised, .n_kept = moa_profile_kept(p)};
    if (!ids || !items || !seconds) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d items of %d tokens", n_item, n));
    for (int64_t t = 0; t < (int64_t)n_item * n; t++)
        ids[t] = (int32_t)(moa_pcg32_next(&g) % (uint32_t)m->shape.n_vocab);
    for (int32_t i = 0; i < n_item; i++)
        items[i] = (moa_profile_item){.ids = ids + (int64_t)i * n,
                                      .n = n,
                                      .supervise_from = n - n_supervised,
                                      .cancelled = x->cancelled,
                                      .user = x->user,
                                      .margin = true};
    out->n_together = moa_profile_take(p, items, n_item);
    MOA_TRY(moa_influence_open(&sums, &m->shape, n, err));
    MOA_TRY(moa_profile_add_all(p, items, out->n_together, &sums, NULL, err)); /* lets everything be allocated */
    for (int32_t i = 0, k; i < n_item; i += k) {
        k = moa_profile_take(p, items + i, n_item - i);
        const double start = moa_bench_now();
        MOA_TRY(moa_profile_add_all(p, items + i, k, &sums, NULL, err));
        const double took = moa_bench_now() - start;
        out->total_s += took;
        seconds[n_round++] = took / k;
    }
    items[0].seconds = out->part_s;
    const double start = moa_bench_now();
    MOA_TRY(moa_profile_add_all(p, items, out->n_together, &sums, NULL, err));
    out->watched_s = moa_bench_now() - start;
    out->item = moa_bench_percentiles(seconds, n_round);
    out->flop = item_flop(m, n, n_supervised);
    out->n_clamped = (double)sums.n_clamped;
    out->loss = sums.loss / sums.n_item;
    out->device_bytes = in_use(x->backend);
    out->map_bytes = (double)m->shape.n_layer * m->shape.n_head * (2.0 * sums.nb * sums.nb + sums.nb + 1) * sizeof(float);
out:
    moa_influence_free(&sums);
    free(ids);
    free(items);
    free(seconds);
    return s;
}
