/* The sampler against a naive one that sorts everything, and its generator against published numbers. */
#include "core/engine/sample.h"
#include "engine_fixture.h"

/* the first outputs of pcg32_srandom(42, 54), from the generator's own demonstration program */
static void test_pcg32_known_values(void **state) {
    (void)state;
    static const uint32_t known[] = {0xa15c02b7u, 0x7b47f409u, 0xba1d3330u, 0x83d2f293u, 0xbfa4784bu, 0xcbed606eu};
    moa_pcg32 g = moa_pcg32_seed(42, 54);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) assert_int_equal(moa_pcg32_next(&g), known[i]);
}

/* --- the arithmetic that all devices share ------------------------------------------------------------------------------------------- */

static void test_weights(void **state) {
    (void)state;
    moa_pcg32 g = moa_pcg32_seed(21, 3);
    double worst = 0;
    for (int i = 0; i < 200000; i++) {
        const float best = (float)random_below(&g, 4000) / 50 - 40, logit = best - (float)moa_pcg32_next(&g) / 4294967296.0f * (float[]){1e-3f, 1, 35, 90}[i % 4];
        const double temp = i % 3 ? 1 : 0.1 + random_below(&g, 300) / 100.0, x = exp(((double)logit - (double)best) / temp) * 0x1p40;
        const double w = (double)moa_weight_of(logit, best, temp);
        worst = fmax(worst, fabs(w - x) - 1e-13 * x);
        assert_true(moa_weight_of(nextafterf(logit, -INFINITY), best, temp) <= moa_weight_of(logit, best, temp));
    }
    assert_true(worst < 0.51); /* rounding alone is a half */
    assert_true(moa_weight_of(-INFINITY, 0, 1) == 0 && moa_weight_of(5, 5, 1) == MOA_WEIGHT_ONE);
    assert_true(moa_weight_of(-INFINITY, -INFINITY, 1) == MOA_WEIGHT_ONE && moa_weight_of(0, INFINITY, 1) == 0);
    assert_true(moa_weight_of(-1, 0, 1e-30) == 0 && moa_weight_of(-1, 0, (double)100) < MOA_WEIGHT_ONE);
}

static void test_keys_scale_and_reach(void **state) {
    (void)state;
    moa_pcg32 g = moa_pcg32_seed(22, 3);
    const float logits[] = {-INFINITY, -3.5f, -1e-30f, 0, 1e-30f, 2, 3e38f, INFINITY};
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 8; k++) {
            assert_int_equal(moa_rank_key(logits[i], 7) > moa_rank_key(logits[k], 9), i >= k); /* of equals the smaller id */
            assert_true(moa_rank_logit(moa_rank_key(logits[i], 7)) == logits[i]);
            assert_int_equal(moa_rank_id(moa_rank_key(logits[i], 1 << k)), 1 << k);
        }
    assert_true(moa_rank_key(NAN, 3) == moa_rank_key(-INFINITY, 3) && moa_rank_key(-0.0f, 3) == moa_rank_key(0, 3));
    for (int i = 0; i < 100000; i++) {
        const uint64_t a = (uint64_t)moa_pcg32_next(&g) << 32 | moa_pcg32_next(&g),
                       b = ((uint64_t)moa_pcg32_next(&g) << 32 | moa_pcg32_next(&g)) >> random_below(&g, 60);
        __extension__ typedef unsigned __int128 wide;
        assert_true(moa_scale64(a, b) == (uint64_t)((wide)a * b >> 64));
        const float p = (float)(1 + random_below(&g, 1000)) / 1000;
        const uint64_t sum = b >> 2 ? b >> 2 : 1, reach = moa_top_p_reach(sum, p);
        assert_true(reach >= 1 && reach <= sum);
        assert_true(fabs((double)reach - (double)p * (double)sum) <= 1 + 1e-15 * (double)sum);
    }
    assert_true(moa_scale64(UINT64_MAX, 1) == 0 && moa_scale64(UINT64_MAX, 2) == 1 && moa_scale64(0, 1000) == 0);
}

/* neither seeds nor positions beside each other draw alike: bits, and pairs of neighbours, are even */
static void test_random_of_positions(void **state) {
    (void)state;
    enum { N = 40000 };
    int ones[64] = {0}, same[64] = {0}, across[64] = {0};
    /* a --seed draws the same tokens in every version: worked out apart, in Python */
    assert_true(moa_random_at(0, 0) == 0x48294f70ccf5e4fcu && moa_random_at(42, 1000) == 0xfb29f16a621004d8u);
    assert_true(moa_weight_of(-1.25f, 0.5f, 0.8) == 123361785727u);
    for (int32_t t = 0; t < N; t++) {
        const uint64_t r = moa_random_at(7, t), next = r ^ moa_random_at(7, t + 1), other = r ^ moa_random_at(8, t);
        for (int b = 0; b < 64; b++) ones[b] += r >> b & 1, same[b] += next >> b & 1, across[b] += other >> b & 1;
    }
    for (int b = 0; b < 64; b++) { /* six deviations of a fair coin */
        assert_true(abs(ones[b] - N / 2) < 600 && abs(same[b] - N / 2) < 600 && abs(across[b] - N / 2) < 600);
    }
}

static int32_t sample(moa_sampling how, const float *logits, int32_t n) {
    moa_sampler *s = NULL;
    must(moa_sampler_open(&s, &how, n, err));
    const int32_t id = moa_sampler_next(s, logits, 0);
    moa_sampler_close(&s);
    return id;
}

static void test_greedy_and_ties(void **state) {
    (void)state;
    const float logits[] = {1, 3, -2, 3, 2.5f}, none[] = {-INFINITY, -INFINITY, -INFINITY}, nan[] = {NAN, 1, NAN, 2};
    moa_sampling greedy = moa_sampling_default();
    greedy.temp = 0;
    assert_int_equal(sample(greedy, logits, 5), 1);
    assert_int_equal(sample(greedy, none, 3), 0);
    assert_int_equal(sample(greedy, nan, 4), 3);
    moa_sampling one = {.temp = 1, .top_k = 1, .top_p = 1, .seed = 9};
    assert_int_equal(sample(one, logits, 5), 1);
    assert_int_equal(sample((moa_sampling){.temp = 1, .top_p = 1e-6f, .seed = 9}, logits, 5), 1);
    assert_int_equal(sample((moa_sampling){.temp = 1, .top_p = 1, .min_p = 1, .seed = 3}, logits, 2), 1);
    assert_int_equal(sample((moa_sampling){.temp = 1, .top_p = 1, .seed = 3}, none, 3), 0);
}

/* --- the naive one: every candidate in a full sort, every filter as a fresh list ------------------------------------------------ */

typedef struct naive {
    double p; /* plain probability */
    float logit;
    int32_t id;
} naive;

static int by_logit_then_id(const void *a, const void *b) {
    const naive *x = a, *y = b;
    if (x->logit > y->logit) return -1;
    if (x->logit < y->logit) return 1;
    return x->id < y->id ? -1 : 1;
}

/* probability of each id after all filters; returns how many are possible */
static int32_t naive_distribution(moa_sampling how, const float *logits, int32_t n, double *out) {
    naive *all = take((size_t)n, sizeof *all);
    double sum = 0, max = -INFINITY;
    int32_t k = n;
    for (int32_t i = 0; i < n; i++) max = fmax(max, (double)logits[i]);
    for (int32_t i = 0; i < n; i++) all[i] = (naive){exp((double)logits[i] - max), logits[i], i};
    qsort(all, (size_t)n, sizeof *all, by_logit_then_id);
    if (how.top_k > 0 && how.top_k < k) k = how.top_k;
    for (int32_t i = 0; i < k; i++) sum += all[i].p;
    if (how.top_p < 1) {
        double before = 0;
        int32_t kept = 0;
        while (kept < k && (kept == 0 || before < (double)how.top_p * sum)) before += all[kept++].p;
        k = kept;
    }
    int32_t kept = 1;
    for (int32_t i = 1; i < k; i++)
        if (all[i].p >= (double)how.min_p * all[0].p) kept = i + 1;
    k = kept;
    sum = 0;
    for (int32_t i = 0; i < n; i++) out[i] = 0;
    for (int32_t i = 0; i < k; i++) sum += exp((double)all[i].logit / (double)how.temp);
    for (int32_t i = 0; i < k; i++) out[all[i].id] = exp((double)all[i].logit / (double)how.temp) / sum;
    free(all);
    return k;
}

static void test_filters_against_naive(void **state) {
    (void)state;
    enum { N = 60, DRAWS = 20000 };
    moa_pcg32 g = moa_pcg32_seed(5, 7);
    for (int round = 0; round < 40; round++) {
        float logits[N];
        double p[N];
        int32_t count[N] = {0};
        for (int i = 0; i < N; i++) logits[i] = (float)random_below(&g, 24) / 4; /* with ties */
        const moa_sampling how = {.temp = 0.25f * (float)(1 + random_below(&g, 8)),
                                  .top_k = (int32_t)random_below(&g, 3) * 12,
                                  .top_p = round % 2 ? 1.0f : 0.3f + 0.1f * (float)random_below(&g, 7),
                                  .min_p = round % 3 ? 0.0f : 0.02f * (float)(1 + random_below(&g, 20)),
                                  .seed = moa_pcg32_next(&g)};
        const int32_t possible = naive_distribution(how, logits, N, p);
        moa_sampler *s = NULL;
        must(moa_sampler_open(&s, &how, N, err));
        for (int d = 0; d < DRAWS; d++) count[moa_sampler_next(s, logits, d)]++;
        moa_sampler_close(&s);
        double chi2 = 0;
        int cells = 0;
        for (int i = 0; i < N; i++) {
            if (p[i] == 0) assert_int_equal(count[i], 0);
            const double expected = p[i] * DRAWS;
            if (expected < 5) continue;
            chi2 += (count[i] - expected) * (count[i] - expected) / expected;
            cells++;
        }
        assert_true(possible >= 1);
        /* the seeds are fixed: far above what chance gives (mean cells, deviation sqrt(2 cells)) */
        if (chi2 > cells + 6 * sqrt(2.0 * cells) + 6) fail_msg("round %d: chi2 %.1f with %d cells", round, chi2, cells);
    }
}

static void test_seed_decides(void **state) {
    (void)state;
    enum { N = 2000, DRAWS = 200 };
    moa_pcg32 g = moa_pcg32_seed(1, 2);
    float *logits = take(N, sizeof *logits);
    int32_t first[DRAWS];
    int differ = 0;
    for (int i = 0; i < N; i++) logits[i] = (float)random_below(&g, 1000) / 200;
    for (uint64_t seed = 1; seed <= 2; seed++)
        for (int again = 0; again < 2; again++) {
            moa_sampling how = moa_sampling_default();
            how.seed = seed;
            moa_sampler *s = NULL;
            must(moa_sampler_open(&s, &how, N, err));
            for (int d = 0; d < DRAWS; d++) {
                const int32_t id = moa_sampler_next(s, logits, d);
                if (!again && seed == 2) differ += id != first[d];
                if (!again) first[d] = id;
                else assert_int_equal(id, first[d]);
            }
            moa_sampler_close(&s);
        }
    assert_true(differ > DRAWS / 2);
    free(logits);
}

static void test_values_out_of_range(void **state) {
    (void)state;
    const moa_sampling bad[] = {{.temp = -1, .top_p = 1}, {.temp = NAN, .top_p = 1}, {.temp = 1, .top_p = 0}, {.temp = 1, .top_p = 1.5f},
                                {.temp = 1, .top_k = -1, .top_p = 1}, {.temp = 1, .top_p = 1, .min_p = -1},
                                {.temp = 1, .top_p = 1, .min_p = 2}, {.temp = 1, .top_p = NAN}, {.temp = 1, .top_p = 1, .min_p = NAN}};
    const moa_sampling fine = moa_sampling_default();
    moa_sampler *s = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        moa_err e = {0};
        assert_int_equal(moa_sampling_check(&bad[i], &e), MOA_E_USAGE);
        assert_true(strlen(e.text) > 5);
        assert_int_equal(moa_sampler_open(&s, &bad[i], 10, NULL), MOA_E_USAGE);
        assert_null(s);
    }
    must(moa_sampling_check(&fine, err));
}

static void test_describe_and_kl(void **state) {
    (void)state;
    enum { N = 500 };
    moa_pcg32 g = moa_pcg32_seed(6, 2);
    float p[N], q[N];
    for (int i = 0; i < N; i++) {
        p[i] = (float)random_below(&g, 400) / 40 + 80; /* exp() of these overflows a float */
        q[i] = (float)random_below(&g, 400) / 40 - 90;
    }
    p[17] = p[400] = 95;
    double sum = 0, entropy = 0, kl = 0, sum_q = 0;
    for (int i = 0; i < N; i++) sum += exp((double)p[i] - 80), sum_q += exp((double)q[i] + 90);
    for (int i = 0; i < N; i++) {
        const double lp = (double)p[i] - 80 - log(sum), lq = (double)q[i] + 90 - log(sum_q);
        entropy -= exp(lp) * lp;
        kl += exp(lp) * (lp - lq);
    }
    moa_top top[MOA_TOP_MAX];
    float logprob, h;
    moa_logits_describe(p, N, 33, 5, top, &logprob, &h);
    assert_true(fabs((double)h - entropy) < 1e-5);
    assert_true(fabs((double)logprob - ((double)p[33] - 80 - log(sum))) < 1e-5);
    assert_int_equal(top[0].id, 17);
    assert_int_equal(top[1].id, 400);
    for (int i = 0; i < 5; i++) {
        int better = 0;
        for (int j = 0; j < N; j++) better += p[j] > p[top[i].id] || (p[j] == p[top[i].id] && j < top[i].id);
        assert_int_equal(better, i);
        assert_true(fabs((double)top[i].logprob - ((double)p[top[i].id] - 80 - log(sum))) < 1e-5);
    }
    assert_true(fabs(moa_logits_kl(p, q, N) - kl) < 1e-9);
    assert_true(moa_logits_kl(p, p, N) < 1e-12);
    const float sure[] = {0, -INFINITY}, even[] = {0, 0};
    assert_true(fabs(moa_logits_kl(sure, even, 2) - log(2)) < 1e-12);
    assert_true(isinf(moa_logits_kl(even, sure, 2)));
    moa_logits_describe(sure, 2, 0, 3, top, &logprob, &h);
    assert_true(h == 0 && logprob == 0);
    assert_int_equal(top[2].id, -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights), cmocka_unit_test(test_keys_scale_and_reach), cmocka_unit_test(test_random_of_positions),
        cmocka_unit_test(test_pcg32_known_values), cmocka_unit_test(test_greedy_and_ties),
        cmocka_unit_test(test_filters_against_naive), cmocka_unit_test(test_seed_decides),
        cmocka_unit_test(test_values_out_of_range), cmocka_unit_test(test_describe_and_kl),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
