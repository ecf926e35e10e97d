/* probe_rows.h -- which queries of a prompt the statistics look at, and what each of them stands for. The only definition: CPU, CUDA, the
 * sums and the tests all call this.
 *
 *   blocks of 64 queries    |part| 0 1 2 .. r-1 | r .. 2r-1 |  ...  | rest |last|
 *   taken                    all     one of r      one of r          one     all
 *   weight of its queries     1         r             r            how many   1
 *
 * A prompt's queries [from, end) fall into blocks by position, i / 64. The last block is always taken, and a first one that is not whole
 * (a later turn of a conversation). The whole blocks between them are cut into strata of `every`; of each one block is drawn, by a hash of
 * the seed and the stratum's number, equally likely every one, and its queries count as many times as the stratum has blocks.
 * So each query counts once in expectation -- sums, and histograms of sums, are unbiased -- and the weights of a
 * prompt sum to its number of queries exactly. Draws of strata are independent: what rises or repeats along the prompt does not meet
 * a fixed stride. */
#ifndef MOA_ENGINE_PROBE_ROWS_H
#define MOA_ENGINE_PROBE_ROWS_H

#include "core/engine/spans.h"

typedef struct moa_probe_rows {
    int32_t from, end; /* positions of the prompt, from < end; not looked at where every is 0 */
    int32_t every;     /* blocks of a stratum; 0: every query counts, once */
    uint32_t seed;
} moa_probe_rows;

/* 0 .. n - 1, for stratum k */
static inline MOA_HD int32_t moa_probe_draw(uint32_t seed, int32_t k, int32_t n) {
    uint32_t x = seed * 0x9e3779b9u + (uint32_t)k * 0x85ebca6bu + 0x6d2b79f5u;
    x = (x ^ (x >> 16)) * 0x21f0aaadu;
    x = (x ^ (x >> 15)) * 0x735a2d97u;
    x ^= x >> 15;
    return (int32_t)(((uint64_t)x * (uint32_t)n) >> 32);
}

/* the strata's blocks: [*first, *last), the last block of the prompt is *last */
static inline MOA_HD void moa_probe_middle(const moa_probe_rows *r, int32_t *first, int32_t *last) {
    *last = (r->end - 1) / MOA_PAGE_TOK;
    *first = (r->from + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
    if (*first > *last) *first = *last;
}

/* how often query i counts: 0, it is not looked at */
static inline MOA_HD int32_t moa_probe_weight(const moa_probe_rows *r, int32_t i) {
    int32_t first, last;
    const int32_t b = i / MOA_PAGE_TOK;
    if (r->every <= 0) return 1;
    moa_probe_middle(r, &first, &last);
    if (b < first || b >= last) return 1;
    const int32_t k = (b - first) / r->every, begin = first + k * r->every,
                  n = last - begin < r->every ? last - begin : r->every;
    return b - begin == moa_probe_draw(r->seed, k, n) ? n : 0;
}

/* Blocks taken of the prompt, in order: number o of them and its weight. every > 0 */
static inline MOA_HD int32_t moa_probe_n_taken(const moa_probe_rows *r) {
    int32_t first, last;
    moa_probe_middle(r, &first, &last);
    return (r->from / MOA_PAGE_TOK < first) + (last - first + r->every - 1) / r->every + 1;
}
static inline MOA_HD int32_t moa_probe_taken(const moa_probe_rows *r, int32_t o, int32_t *weight) {
    int32_t first, last;
    moa_probe_middle(r, &first, &last);
    const int32_t k = o - (r->from / MOA_PAGE_TOK < first);
    *weight = 1;
    if (k < 0) return r->from / MOA_PAGE_TOK;
    const int64_t begin = first + (int64_t)k * r->every;
    if (begin >= last) return last;
    const int32_t n = last - begin < r->every ? (int32_t)(last - begin) : r->every;
    *weight = n;
    return (int32_t)begin + moa_probe_draw(r->seed, k, n);
}

/* the blocks taken that queries pos .. pos + n - 1 have some of: number *first of them and how many */
static inline MOA_HD int32_t moa_probe_taken_in(const moa_probe_rows *r, int32_t pos, int32_t n, int32_t *first) {
    const int32_t all = moa_probe_n_taken(r);
    int32_t weight, o = 0, end;
    while (o < all && moa_probe_taken(r, o, &weight) < pos / MOA_PAGE_TOK)
        o++;
    for (end = o; end < all && moa_probe_taken(r, end, &weight) <= (pos + n - 1) / MOA_PAGE_TOK; end++) {
    }
    *first = o;
    return end - o;
}

#endif
