/* The measuring code: what it counts against brute force, its random numbers, its percentiles, and that a timed thing is called. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/tasks/bench.h"

static const moa_rule some[] = {{0, 1}, {0, .5}, {0, .2}, {-64, .5}, {128, 0}, {0, 0}};

/* keys that some head of the group sees, by going through them all */
static void test_kept(void **state) {
    (void)state;
    moa_shape m = {.n_layer = 3, .n_head = 12, .n_head_kv = 4, .d_head = 64};
    moa_rule rules[36];
    for (int i = 0; i < 36; i++)
        rules[i] = some[(i * 7 + i / 5) % 6];
    const int32_t lengths[] = {1, 63, 64, 65, 200, 700, 1024};
    for (int k = 0; k < 7; k++)
        for (int dense = 0; dense < 2; dense++) {
            const int32_t n = lengths[k], n_reserved = n + 100;
            const moa_bench_case c = {
                .shape = &m, .rules = dense ? NULL : rules, .n_seq = 3, .kv_type = MOA_KV_F16};
            int64_t sum = 0;
            for (int32_t l = 0; l < 3; l++)
                for (int32_t h = 0; h < 4; h++) {
                    int32_t seen = 0;
                    for (int32_t j = 0; j < n; j++) {
                        bool any = false;
                        for (int32_t q = 3 * h; q < 3 * h + 3; q++)
                            any = any || moa_sees(moa_span(dense ? some[0] : rules[12 * l + q], n_reserved),
                                                  n - 1, j);
                        seen += any;
                    }
                    assert_int_equal(moa_bench_kept(&c, l, h, n_reserved, n), seen);
                    sum += seen;
                }
            double kept;
            assert_true(moa_bench_kv_bytes(&c, n_reserved, n, &kept) == (double)(sum * 3 * 2 * 64 * 2));
            assert_true(fabs(kept - (double)sum / (12.0 * n)) < 1e-12);
            if (dense) assert_true(kept == 1);
            moa_bench_case q8 = c;
            q8.kv_type = MOA_KV_Q8; /* 128 codes, a scale of V, and a 64th of 64 exponents of K */
            assert_true(moa_bench_kv_bytes(&q8, n_reserved, n, &kept) == (double)(sum * 3 * (2 * 64 + 4 + 1)));
        }
}

static void test_percentiles(void **state) {
    (void)state;
    double many[100], one[] = {3}, two[] = {4, 2};
    for (int i = 0; i < 100; i++)
        many[i] = (double)((i * 37) % 100); /* 0..99 in some order */
    moa_bench_time t = moa_bench_percentiles(many, 100);
    assert_true(t.p10_us == 10e6 && t.median_us == 49.5e6 && t.p90_us == 90e6 && t.n_sample == 100);
    t = moa_bench_percentiles(one, 1);
    assert_true(t.p10_us == 3e6 && t.median_us == 3e6 && t.p90_us == 3e6);
    t = moa_bench_percentiles(two, 2);
    assert_true(t.p10_us == 2e6 && t.median_us == 3e6 && t.p90_us == 4e6);
}

static moa_backend *open_cpu(void) {
    moa_backend *b = NULL;
    const moa_backend_config config = {.n_threads = 1};
    assert_int_equal(moa_cpu_open(&b, &config, NULL), MOA_OK);
    return b;
}

static void test_random(void **state) {
    (void)state;
    moa_backend *b = open_cpu();
    const size_t sizes[] = {4, 6, 4096, ((size_t)8 << 20) + 12};
    for (int k = 0; k < 4; k++)
        for (int half = 0; half < 2; half++) {
            void *p = NULL;
            moa_err err = {0};
            unsigned char *x = malloc(sizes[k] + 4);
            assert_non_null(x);
            assert_int_equal(b->vt->alloc(b, sizes[k] + 4, &p, &err), MOA_OK);
            memset(p, 0xee, sizes[k] + 4);
            assert_int_equal(moa_bench_random(b, p, sizes[k], half, &err), MOA_OK);
            assert_int_equal(b->vt->download(b, x, p, sizes[k] + 4, &err), MOA_OK);
            for (int i = 0; i < 4; i++)
                assert_int_equal(x[sizes[k] + (size_t)i], 0xee);
            for (size_t i = 0; i + 4 <= sizes[k]; i += half ? 2 : 4) {
                float f;
                const moa_dtype_info *info = moa_dtype_find(half ? MOA_F16 : MOA_F32);
                info->decode(x + i, &f, 1);
                assert_true(fabs((double)f) >= .25 && fabs((double)f) < 2);
            }
            free(x);
            b->vt->free(b, p);
        }
    moa_backend_close(&b);
}

static moa_status count_call(void *ctx, moa_err *err) {
    (void)err;
    ++*(int64_t *)ctx;
    return MOA_OK;
}
static moa_status fail_call(void *ctx, moa_err *err) {
    return ++*(int64_t *)ctx > 5 ? moa_fail(err, MOA_E_DEVICE, "call %d fails", 5) : MOA_OK;
}
static bool always(void *user) {
    (void)user;
    return true;
}

static void test_measure(void **state) {
    (void)state;
    moa_backend *b = open_cpu();
    moa_bench x = {.backend = b, .reps = 5, .sample_s = 1e-4};
    moa_bench_time t;
    moa_err err = {0};
    int64_t calls = 0;
    assert_int_equal(moa_bench_measure(&x, count_call, &calls, 2, &t, &err), MOA_OK);
    assert_int_equal(t.n_sample, 5);
    assert_int_equal(calls,
                     1 + 1 + 2 + 6 * (int64_t)t.n_call); /* first, calibration, one more than is timed */
    calls = 0;
    assert_int_equal(moa_bench_measure(&x, fail_call, &calls, 1, &t, &err), MOA_E_DEVICE);
    x.cancelled = always;
    assert_int_equal(moa_bench_measure(&x, count_call, &calls, 1, &t, &err), MOA_E_CANCELLED);
    x.cancelled = NULL;
    x.big_bytes = 1 << 20;
    moa_bench_rate rate = {0};
    assert_int_equal(moa_bench_ceiling(&x, &rate, &err), MOA_OK);
    assert_true(rate.read > 1e6 && rate.add > 1e6 && rate.copy > 1e6 && rate.best >= rate.read &&
                rate.best >= rate.add && rate.best >= rate.copy);
    moa_backend_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kept), cmocka_unit_test(test_percentiles),
                                       cmocka_unit_test(test_random), cmocka_unit_test(test_measure)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
