/* viz attn: uniform attention against counting, shades of attentions whose shade is known, ranges, the future */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "viz/attn.h"

static double uniform_by_hand(int q0, int q1, int k0, int k1) {
    double s = 0;
    for (int q = q0; q < q1; q++)
        for (int k = k0; k < k1 && k <= q; k++) s += 1.0 / (q + 1);
    return s / (q1 - q0);
}

static void test_uniform(void **state) {
    (void)state;
    srand(3);
    for (int i = 0; i < 3000; i++) {
        const int q0 = rand() % 1500, q1 = q0 + 1 + rand() % 500, k0 = rand() % 1800, k1 = k0 + 1 + rand() % 400;
        const double want = uniform_by_hand(q0, q1, k0, k1), got = viz_attn_uniform(q0, q1, k0, k1);
        assert_true(fabs(got - want) <= 1e-4 * want + 1e-12);
    }
    assert_true(viz_attn_uniform(5, 5, 0, 3) == 0);
    double all = 0; /* keys in parts add up to everything */
    for (int k = 0; k < 100000; k += 1000) all += viz_attn_uniform(99000, 100000, k, k + 1000);
    assert_true(fabs(all - 1) < 1e-4);
}

/* an attention as the engine pools it: sums over the parts */
static void pool(const viz_axis *q, const viz_axis *k, double (*a)(int, int), bool max, float *out) {
    const int rows = viz_axis_buckets(q), cols = viz_axis_buckets(k);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < cols; c++) {
            double s = 0;
            for (int i = viz_axis_bucket_first(q, r); i < viz_axis_bucket_end(q, r); i++)
                for (int j = viz_axis_bucket_first(k, c); j < viz_axis_bucket_end(k, c) && j <= i; j++) s = max ? fmax(s, a(i, j)) : s + a(i, j);
            out[r * cols + c] = (float)s;
        }
}

static double even(int i, int j) { return j <= i ? 1.0 / (i + 1) : 0; }
static double band(int i, int j) { return j <= i && i - j < 10 ? 1.0 / (i < 9 ? i + 1 : 10) : 0; }

static void test_lift_of_uniform_is_the_middle(void **state) {
    (void)state;
    for (int max = 0; max < 2; max++)
        for (int cells = 7; cells < 130; cells += 11) { /* parts that differ by a token, and single tokens */
            const viz_axis q = viz_axis_of(64, 300, cells, cells, 1), k = viz_axis_of(0, 300, cells, cells, 1);
            const int n = viz_axis_buckets(&q) * viz_axis_buckets(&k);
            float *v = calloc((size_t)n, sizeof *v), *t = calloc((size_t)n, sizeof *t), range[2];
            assert_non_null(v);
            assert_non_null(t);
            pool(&q, &k, even, max, v);
            viz_attn_scale(&(viz_attn){.v = v, .q = q, .k = k, .max = max, .scale = VIZ_SCALE_LIFT}, t, range);
            assert_true(fabsf(range[0] + 2) < 1e-6f && fabsf(range[1] - 2) < 1e-6f);
            for (int r = 0; r < viz_axis_buckets(&q); r++)
                for (int c = 0; c < viz_axis_buckets(&k); c++) {
                    const float x = t[r * viz_axis_buckets(&k) + c];
                    const bool future = viz_axis_bucket_first(&k, c) >= viz_axis_bucket_end(&q, r);
                    if (future) assert_true(isnan(x));
                    else assert_true(fabsf(x - 0.5f) < (max ? 0.03f : 1e-3f)); /* the largest of a part lies above its mean */
                }
            free(v);
            free(t);
        }
}

static void test_scales(void **state) {
    (void)state;
    const viz_axis q = viz_axis_of(0, 40, 40, 40, 1), k = viz_axis_of(0, 40, 40, 40, 1);
    float v[1600], t[1600], range[2];
    pool(&q, &k, band, false, v);
    viz_attn a = {.v = v, .q = q, .k = k, .scale = VIZ_SCALE_LINEAR};
    viz_attn_scale(&a, t, range);
    assert_true(fabsf(t[30 * 40 + 25] - 0.1f) < 1e-6f && t[30 * 40 + 5] == 0 && isnan(t[5 * 40 + 6])); /* zero is not the future */
    a.own = true;
    viz_attn_scale(&a, t, range);
    assert_true(fabsf(range[1] - 1) < 1e-6f); /* query 0 gives all to itself */
    a.scale = VIZ_SCALE_LOG;
    a.own = false;
    viz_attn_scale(&a, t, range);
    assert_true(fabsf(t[30 * 40 + 25] - 0.75f) < 1e-5f); /* 1e-1 between 1e-4 and 1 */
    a.scale = VIZ_SCALE_RANK;
    viz_attn_scale(&a, t, range);
    assert_true(t[30 * 40 + 5] == 0 && t[0] == 1 && t[30 * 40 + 25] > 0 && t[30 * 40 + 25] < 1);
    a.scale = VIZ_SCALE_LIFT;
    a.own = true;
    viz_attn_scale(&a, t, range);
    assert_true(range[0] > -2 && range[1] < 2 && range[1] > range[0]);
    float factor[40];
    for (int i = 0; i < 40; i++) factor[i] = 2;
    a = (viz_attn){.v = v, .q = q, .k = k, .scale = VIZ_SCALE_LINEAR, .factor = factor};
    viz_attn_scale(&a, t, NULL);
    assert_true(fabsf(t[30 * 40 + 25] - 0.2f) < 1e-6f);
}

/* parts of 1 and 2 tokens draw no stripes: a flat row is flat */
static void test_no_stripes(void **state) {
    (void)state;
    const viz_axis q = viz_axis_of(299, 300, 1, 1, 1), k = viz_axis_of(0, 300, 197, 197, 1);
    float v[197], t[197];
    pool(&q, &k, even, false, v);
    const viz_scale scales[] = {VIZ_SCALE_LOG, VIZ_SCALE_LINEAR, VIZ_SCALE_LIFT, VIZ_SCALE_RANK};
    for (int s = 0; s < 3; s++) {
        viz_attn_scale(&(viz_attn){.v = v, .q = q, .k = k, .scale = scales[s], .own = scales[s] == VIZ_SCALE_LINEAR}, t, NULL);
        for (int c = 1; c < 197; c++) assert_true(fabsf(t[c] - t[0]) < 1e-4f);
    }
}

static void test_spread(void **state) {
    (void)state;
    const viz_axis q = viz_axis_of(0, 3, 3, 7, 2), k = viz_axis_of(0, 4, 4, 13, 3);
    float t[12], out[6 * 12];
    for (int i = 0; i < 12; i++) t[i] = (float)i;
    viz_attn_spread(&q, &k, t, out);
    for (int y = 0; y < 6; y++)
        for (int x = 0; x < 12; x++) assert_true(out[y * 12 + x] == (float)(y / 2 * 4 + x / 3));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uniform), cmocka_unit_test(test_lift_of_uniform_is_the_middle),
        cmocka_unit_test(test_scales),  cmocka_unit_test(test_no_stripes),
        cmocka_unit_test(test_spread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
