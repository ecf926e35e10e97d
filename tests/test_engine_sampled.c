/* Statistics of a prompt by some of its blocks (probe_rows.h): which are taken and what they count, and on an engine how far the estimate is
 * from what all queries give. MOA_TEST_DEVICE=cuda runs the same on a GPU. */
#include "engine_fixture.h"

#include "core/engine/probe_rows.h"

/* --- which queries ---------------------------------------------------------------------------------------------------------- */

static void test_weights_of_a_prompt_sum_to_its_queries(void **state) {
    (void)state;
    moa_pcg32 g = moa_pcg32_seed(7, 1);
    for (int round = 0; round < 3000; round++) {
        const int32_t from = round % 3 ? (int32_t)(moa_pcg32_next(&g) % 5000) : 0;
        const moa_probe_rows r = {.from = from,
                                  .end = from + 1 + (int32_t)(moa_pcg32_next(&g) % 4000),
                                  .every = 1 + (int32_t)(moa_pcg32_next(&g) % 20),
                                  .seed = moa_pcg32_next(&g)};
        const int32_t n = moa_probe_n_taken(&r);
        int64_t sum = 0, rows = 0;
        int32_t before = -1, o = 0, weight;
        for (int32_t i = r.from; i < r.end; i++) {
            const int32_t w = moa_probe_weight(&r, i);
            sum += w;
            if (w == 0 || i / MOA_PAGE_TOK == before) continue;
            before = i / MOA_PAGE_TOK; /* the next block taken, in the list as well */
            assert_int_equal(moa_probe_taken(&r, o, &weight), before);
            assert_int_equal(weight, w);
            o++;
        }
        assert_int_equal(o, n);
        assert_int_equal(sum, r.end - r.from);
        assert_true(moa_probe_weight(&r, r.end - 1) == 1);
        /* and by chunks, each block of a chunk once */
        for (int32_t pos = r.from, len; pos < r.end; pos += len, rows++) {
            int32_t first, at = 0;
            len = 1 + (int32_t)(moa_pcg32_next(&g) % 700);
            if (len > r.end - pos) len = r.end - pos;
            const int32_t count = moa_probe_taken_in(&r, pos, len, &first);
            for (int32_t b = pos / MOA_PAGE_TOK; b <= (pos + len - 1) / MOA_PAGE_TOK; b++) {
                const int32_t i = b * MOA_PAGE_TOK > pos ? b * MOA_PAGE_TOK : pos;
                if (moa_probe_weight(&r, i) == 0) continue;
                assert_true(at < count && moa_probe_taken(&r, first + at, &weight) == b);
                at++;
            }
            assert_int_equal(at, count);
        }
    }
}

/* over many seeds each query counts once on average, whatever its place in the stratum */
static void test_each_query_counts_once_in_expectation(void **state) {
    (void)state;
    enum { SEEDS = 20000, BLOCKS = 40 };
    static double sum[BLOCKS];
    memset(sum, 0, sizeof sum);
    for (int32_t s = 0; s < SEEDS; s++) {
        const moa_probe_rows r = {.from = 0, .end = BLOCKS * MOA_PAGE_TOK, .every = 16, .seed = (uint32_t)s};
        for (int32_t b = 0; b < BLOCKS; b++) sum[b] += moa_probe_weight(&r, b * MOA_PAGE_TOK + 5);
    }
    for (int32_t b = 0; b < BLOCKS; b++) /* variance of a weight: n - 1 */
        assert_true(fabs(sum[b] / SEEDS - 1) < 5 * sqrt(15.0 / SEEDS));
}

/* --- on an engine ----------------------------------------------------------------------------------------------------------- */

enum { N_TINY = 700, N_CUT = 410 };

typedef struct watched {
    rig r;
    int32_t ids[N_TINY];
    moa_rule rules[64], measure[64];
} watched;

static watched open_watched(const char *model) {
    watched w = {.r = rig_open((rig_config){.model = model, .fast = true, .engine = {.chunk = 150}})};
    moa_pcg32 g = moa_pcg32_seed(91, 1);
    random_ids(&g, w.ids, N_TINY, w.r.shape->n_vocab);
    random_rules(&g, w.rules, w.r.n_span, 0);
    random_rules(&g, w.measure, w.r.n_span, 0);
    return w;
}

/* the prompt in two calls, a conversation's turns */
static void watch(watched *w, int bits, int32_t every, uint32_t seed, moa_head_stats *stats) {
    moa_seq_reset(w->r.s);
    moa_seq_sample(w->r.s, every, seed);
    must(moa_seq_plan(w->r.s, w->rules, w->measure, N_TINY, MOA_WATCH_STATS | bits, NULL, 0, err));
    feed(&w->r, w->ids, N_CUT, 0, NULL);
    feed(&w->r, w->ids + N_CUT, N_TINY - N_CUT, 0, NULL);
    must(moa_seq_stats(w->r.s, stats, err));
}

static double close_to(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance)) print_error("%g and %g: off by %g, %g allowed\n", a, b, fabs(a - b), tolerance);
    return fabs(a - b) <= tolerance;
}

/* float32 against float32 on the CPU; on a GPU the exact pass takes each row's log-sum-exp from another kernel */
static double near(void) { return test_device() ? 2e-3 : 1e-6; }

static void same_stats(const watched *w, const moa_head_stats *a, const moa_head_stats *b) {
    for (int32_t i = 0; i < w->r.n_span; i++) {
        assert_int_equal(a[i].n_query, b[i].n_query);
        assert_true(close_to((double)a[i].entropy, (double)b[i].entropy, 8 * near()));
        assert_true(close_to((double)a[i].sink, (double)b[i].sink, near()));
        assert_true(close_to((double)a[i].window, (double)b[i].window, near()));
        assert_true(close_to((double)a[i].distance, (double)b[i].distance, N_TINY * near()));
        assert_true(close_to((double)a[i].worst_cover, (double)b[i].worst_cover, 4 * near()));
    }
}

static void test_every_block_is_exact(void **state) {
    (void)state;
    watched w = open_watched("tiny_llama");
    moa_head_stats exact[64], all[64];
    float *a = NULL, *b = NULL;
    int32_t n_bin, bucket_tok;
    int64_t qa[MOA_HIST_BUCKETS], qb[MOA_HIST_BUCKETS];
    watch(&w, 0, 0, 0, exact);
    must(moa_seq_hist(w.r.s, 1, &a, &n_bin, &bucket_tok, qa, err));
    watch(&w, MOA_WATCH_SAMPLED, 1, 3, all);
    must(moa_seq_hist(w.r.s, 1, &b, &n_bin, &bucket_tok, qb, err));
    same_stats(&w, exact, all);
    assert_memory_equal(qa, qb, sizeof qa);
    for (int32_t i = 0; i < w.r.shape->n_head * MOA_HIST_BUCKETS * (1 + n_bin); i++)
        assert_true(close_to((double)a[i], (double)b[i], 100 * near()));
    free(a);
    free(b);
    rig_close(&w.r);
}

/* Means over all draws are the exact means: sums over seeds, where chance is what is left. Each block has mass 64 a query of weight. */
static void test_sampled_means_are_unbiased(void **state) {
    (void)state;
    enum { SEEDS = 60 };
    watched w = open_watched("tiny_llama");
    moa_head_stats exact[64], one[64];
    double sum[64][3] = {{0}}, square[64][3] = {{0}};
    watch(&w, 0, 0, 0, exact);
    for (uint32_t seed = 0; seed < SEEDS; seed++) {
        moa_watched how;
        watch(&w, MOA_WATCH_SAMPLED, 3, seed, one);
        moa_seq_watched(w.r.s, &how);
        assert_int_equal(how.every, 3);
        assert_int_equal(how.n_query, N_TINY);
        /* 6 whole blocks in 2 strata, the last of 26; the part of 38, 3 blocks, the last of 60 */
        assert_int_equal(how.n_seen, 2 * 64 + 26 + 38 + 64 + 60);
        for (int32_t i = 0; i < w.r.n_span; i++) {
            const double x[3] = {(double)one[i].entropy, (double)one[i].sink, (double)one[i].distance};
            assert_int_equal(one[i].n_query, N_TINY);
            for (int k = 0; k < 3; k++) sum[i][k] += x[k], square[i][k] += x[k] * x[k];
        }
        float *hist = NULL;
        int32_t n_bin, bucket_tok;
        int64_t queries[MOA_HIST_BUCKETS], n = 0;
        must(moa_seq_hist(w.r.s, 0, &hist, &n_bin, &bucket_tok, queries, err));
        for (int b = 0; b < MOA_HIST_BUCKETS; b++) {
            double mass = 0;
            for (int32_t k = 0; k <= n_bin; k++) mass += (double)hist[b * (1 + n_bin) + k];
            assert_true(close_to(mass, (double)queries[b], 1e-3 * ((double)queries[b] + 1)));
            n += queries[b];
        }
        assert_int_equal(n, N_TINY);
        free(hist);
    }
    for (int32_t i = 0; i < w.r.n_span; i++) {
        const double x[3] = {(double)exact[i].entropy, (double)exact[i].sink, (double)exact[i].distance};
        for (int k = 0; k < 3; k++) {
            const double mean = sum[i][k] / SEEDS, spread = sqrt(fabs(square[i][k] / SEEDS - mean * mean));
            assert_true(close_to(mean, x[k], 5 * spread / sqrt(SEEDS) + 10 * near() * (1 + fabs(x[k]))));
        }
    }
    rig_close(&w.r);
}

/* chunks of any size see the same rows; tokens that come one by one count as they are */
static void test_chunks_do_not_change_what_is_looked_at(void **state) {
    (void)state;
    static const int32_t chunks[] = {150, 64, 100, 7};
    moa_head_stats one[64], other[64];
    watched w = open_watched("tiny_qwen2");
    for (int c = 0; c < 4; c++) {
        moa_seq_reset(w.r.s);
        moa_seq_sample(w.r.s, 4, 11);
        must(moa_seq_plan(w.r.s, w.rules, NULL, N_TINY, MOA_WATCH_STATS | MOA_WATCH_SAMPLED, NULL, 0, err));
        feed(&w.r, w.ids, N_TINY - 1, chunks[c], NULL);
        feed(&w.r, w.ids + N_TINY - 1, 1, 0, NULL);
        must(moa_seq_stats(w.r.s, c ? other : one, err));
        if (c) same_stats(&w, one, other);
    }
    assert_int_equal(one[0].n_query, N_TINY);
    rig_close(&w.r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_of_a_prompt_sum_to_its_queries),
        cmocka_unit_test(test_each_query_counts_once_in_expectation),
        cmocka_unit_test(test_every_block_is_exact),
        cmocka_unit_test(test_sampled_means_are_unbiased),
        cmocka_unit_test(test_chunks_do_not_change_what_is_looked_at),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
