/* sample.h -- the arithmetic of choosing a token, the same bits on host and device.
 *
 *   Weights are integers: 2^40 for the best token, exp((logit - best) / temp) of that for the others, rounded. Their sums do not depend
 *   on the order of adding, so that a thousand threads and one loop agree on every comparison, and so on every token.
 *   What weighs less than 2^-41 of the best cannot be chosen: a token in two million million.
 *
 *   rank     larger logit first, then smaller id; NaN counts as -inf, -0 as 0: one 64-bit key, larger is better
 *   top-k    the k best
 *   top-p    of those the fewest, by rank, whose plain weights (temp 1) reach p of their sum
 *   min-p    of those the ones with a plain weight of p of the best's at least
 *   draw     r in [0, sum of their weights under temp): the first, by rank, at which the running sum exceeds r
 *
 * The random number of a token comes from the seed and the token's position alone: nothing has to be carried from step to step, and
 * a run that is taken up in the middle goes on as it would have.
 *
 * exp() is our own, of multiplications and additions that round as IEEE 754 says (no contraction to fma): libraries differ in the
 * last bit. Its relative error is below 2^-45. */
#ifndef MOA_ENGINE_SAMPLE_H
#define MOA_ENGINE_SAMPLE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/hd.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif
#ifdef __CUDA_ARCH__
#define MOA_MUL(a, b) __dmul_rn(a, b)
#define MOA_ADD(a, b) __dadd_rn(a, b)
#define MOA_DIV(a, b) __ddiv_rn(a, b)
#else
#define MOA_MUL(a, b) ((a) * (b))
#define MOA_ADD(a, b) ((a) + (b))
#define MOA_DIV(a, b) ((a) / (b))
#endif

#define MOA_WEIGHT_ONE ((uint64_t)1 << 40)
enum { MOA_SAMPLE_VOCAB_MAX = 1 << 22 }; /* so that a sum of weights stays below 2^62 */

/* --- rank ------------------------------------------------------------------------------------------------------------------- */

static inline MOA_HD uint64_t moa_rank_key(float logit, int32_t id) {
    union {
        float f;
        uint32_t u;
    } x;
    x.f = logit != logit ? -INFINITY : logit == 0.0f ? 0.0f : logit;
    const uint32_t ordered = x.u & 0x80000000u ? ~x.u : x.u | 0x80000000u;
    return (uint64_t)ordered << 32 | (uint32_t)(0x7fffffff - id);
}
static inline MOA_HD int32_t moa_rank_id(uint64_t key) {
    return 0x7fffffff - (int32_t)(uint32_t)key;
}
static inline MOA_HD float moa_rank_logit(uint64_t key) {
    union {
        uint32_t u;
        float f;
    } x;
    const uint32_t ordered = (uint32_t)(key >> 32);
    x.u = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
    return x.f;
}

/* --- weights ---------------------------------------------------------------------------------------------------------------- */

/* 2^40 exp((logit - best) / temp), rounded; logit <= best, temp > 0 */
static inline MOA_HD uint64_t moa_weight_of(float logit, float best, double temp) {
    if (logit == best) return MOA_WEIGHT_ONE;
    const double x = MOA_DIV((double)logit - (double)best, temp);
    if (!(x > -29.0)) return 0; /* also -inf - -inf; 2^40 e^-29 is below 1/2 */
    const double y = MOA_MUL(x, 1.4426950408889634074); /* 2^y */
    const int32_t n = (int32_t)MOA_ADD(y, -0.5);        /* towards 0: the nearest integer, for y < 0 */
    const double f = MOA_MUL(MOA_ADD(y, -(double)n), 0.69314718055994530942); /* |f| < 0.35 */
    double p = 1.0 / 479001600; /* the series of e^f to its twelfth power */
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 39916800);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 3628800);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 362880);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 40320);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 5040);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 720);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 120);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 24);
    p = MOA_ADD(MOA_MUL(p, f), 1.0 / 6);
    p = MOA_ADD(MOA_MUL(p, f), 0.5);
    p = MOA_ADD(MOA_MUL(p, f), 1.0);
    p = MOA_ADD(MOA_MUL(p, f), 1.0);
    const uint64_t fine = (uint64_t)MOA_MUL(p, 4503599627370496.0); /* 2^52 e^f, times 2^(n - 12): the result */
    const int shift = 12 - n;                                       /* n >= -42 */
    const uint64_t w = (fine + ((uint64_t)1 << (shift - 1))) >> shift;
    return w < MOA_WEIGHT_ONE ? w : MOA_WEIGHT_ONE;
}

/* the running sum that top-p has to reach, of a sum of weights; at least 1 */
static inline MOA_HD uint64_t moa_top_p_reach(uint64_t sum, float top_p) {
    const double want = MOA_MUL((double)sum, (double)top_p);
    const uint64_t whole = (uint64_t)want, reach = whole + ((double)whole < want);
    return reach < 1 ? 1 : reach > sum ? sum : reach;
}
static inline MOA_HD bool moa_min_p_keeps(uint64_t plain_weight, float min_p) {
    return (double)plain_weight >= MOA_MUL((double)MOA_WEIGHT_ONE, (double)min_p);
}

/* --- the draw --------------------------------------------------------------------------------------------------------------- */

static inline MOA_HD uint64_t moa_mix64(uint64_t z) { /* Stafford's variant 13, as in SplitMix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
/* 64 random bits for the token at pos */
static inline MOA_HD uint64_t moa_random_at(uint64_t seed, int32_t pos) {
    return moa_mix64(moa_mix64(seed + 0x9e3779b97f4a7c15u) ^ moa_mix64((uint64_t)(uint32_t)pos * 0xd1342543de82ef95u + 1));
}
/* floor(random * sum / 2^64): in [0, sum) */
static inline MOA_HD uint64_t moa_scale64(uint64_t random, uint64_t sum) {
    const uint64_t a = random >> 32, b = random & 0xffffffffu, c = sum >> 32, d = sum & 0xffffffffu;
    const uint64_t bc = b * c, ad = a * d, low = b * d;
    return a * c + (bc >> 32) + (ad >> 32) + (((bc & 0xffffffffu) + (ad & 0xffffffffu) + (low >> 32)) >> 32);
}

#endif
