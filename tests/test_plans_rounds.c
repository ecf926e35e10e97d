/* plans/: what rounds add up, search and decide (rounds.h), against sums made here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "plans/rounds.h"

enum { LAYERS = 2, HEADS = 4, KV = 2 };
static const int32_t lengths[] = {512, 1024}, further[] = {2048};

static moa_rounds way(void) {
    return (moa_rounds){.density = .5, .step = .2, .step_first = .2, .length = lengths, .n_length = 2, .extend = further, .n_extend = 1, .n_head_kv = KV};
}

/* curves that fall with the window, another one for each head; some windows gain */
static moa_losses *losses(double scale, double gain) {
    moa_losses *l;
    assert_int_equal(moa_losses_open(&l, LAYERS, HEADS, KV, lengths, 2, NULL), MOA_OK);
    for (int i = 0; i < 2; i++)
        for (int layer = 0; layer < LAYERS; layer++)
            for (int h = 0; h < HEADS; h++)
                for (int w = 1; w < l->nb[i]; w++) moa_losses_at(l, i, layer, h)[w] = scale * (1 + (layer * 5 + h * 3) % 7) * (l->nb[i] - w) / l->nb[i] - gain;
    (void)snprintf(l->model, sizeof l->model, "a model");
    return l;
}

static void test_density(void **state) {
    (void)state;
    moa_rounds r = way();
    moa_plan *p;
    assert_int_equal(moa_plan_uniform(&p, LAYERS, HEADS, (moa_rule){0, .5}, NULL), MOA_OK);
    assert_float_equal(moa_rounds_density(&r, p), .5, 1e-12);
    *moa_plan_at(p, 1, 3) = (moa_rule){0, 1}; /* its group keeps all: 3 of 4 groups keep half */
    assert_float_equal(moa_rounds_density(&r, p), .625, 1e-12);
    *moa_plan_at(p, 1, 3) = (moa_rule){512, 0}; /* all at 512, half at 1024, no more than the group's other head at 2048 */
    assert_float_equal(moa_rounds_density(&r, p), .625, 1e-12);
    r.length++, r.n_length--;
    assert_float_equal(moa_rounds_density(&r, p), .5, 1e-12);
    *moa_plan_at(p, 1, 3) = (moa_rule){-1024, 1.125}; /* 1280 of 2048 at the further length alone: 5/8 for one group */
    assert_float_equal(moa_rounds_density(&r, p), (3 * .5 + .625) / 4, 1e-12);
    assert_true(moa_rounds_within(&r, .5) && moa_rounds_within(&r, .5 + 1e-10) && !moa_rounds_within(&r, .51));
    moa_plan_close(&p);
}

static void test_aim(void **state) {
    (void)state;
    moa_rounds r = way();
    moa_rounds_aim a = moa_rounds_aim_from(&r, 1);
    assert_true(!a.there && a.anywhere && a.density == .5);
    a = moa_rounds_aim_from(&r, .5);
    assert_true(a.there && !a.anywhere && a.density == .5);
    r.path = true;
    a = moa_rounds_aim_from(&r, 1);
    assert_true(!a.there && !a.anywhere);
    assert_float_equal(a.density, .85, 1e-12);
    a = moa_rounds_aim_from(&r, .6);
    assert_true(!a.there && a.density == .5);
}

static void test_next(void **state) {
    (void)state;
    moa_rounds r = way();
    assert_true(moa_rounds_next(&r, false, false) && r.step == .2); /* on the way nothing is judged worse */
    assert_true(moa_rounds_next(&r, true, true) && r.step == .2);
    for (int i = 1; i <= 4; i++) assert_true(moa_rounds_next(&r, true, false) && r.step == .2 / (1 << i));
    assert_false(moa_rounds_next(&r, true, false));
}

static void test_mean(void **state) {
    (void)state;
    moa_losses *a = losses(1, 0), *b = losses(3, .5), *sum, *out;
    assert_int_equal(moa_losses_open(&sum, LAYERS, HEADS, KV, lengths, 2, NULL), MOA_OK);
    moa_rounds_add(sum, a);
    moa_rounds_add(sum, b);
    assert_int_equal(moa_rounds_losses(sum, .5, further, 1, &out, NULL), MOA_OK);
    assert_string_equal(out->model, "a model");
    assert_int_equal(out->n_length, 3);
    for (int i = 0; i < 2; i++)
        for (int layer = 0; layer < LAYERS; layer++)
            for (int h = 0; h < HEADS; h++)
                for (int w = 1; w <= out->nb[i]; w++) {
                    const double mean = (moa_losses_at(a, i, layer, h)[w] + moa_losses_at(b, i, layer, h)[w]) / 2;
                    assert_float_equal(moa_losses_at(out, i, layer, h)[w], mean < 0 ? 0 : mean, 1e-12);
                }
    assert_true(moa_losses_at(out, 2, 0, 1)[31] > 0 && moa_losses_at(out, 2, 0, 1)[31] == moa_losses_at(out, 1, 0, 1)[15]); /* stretched: the same share */
    moa_losses_close(&a), moa_losses_close(&b), moa_losses_close(&sum), moa_losses_close(&out);
}

/* two kinds of loss weighed into one; what it says of a plan, counted here */
static void test_predict(void **state) {
    (void)state;
    moa_losses *a = losses(1, 0), *b = losses(3, .5), *sum;
    moa_plan *p;
    double want = 0;
    assert_int_equal(moa_losses_open(&sum, LAYERS, HEADS, KV, lengths, 2, NULL), MOA_OK);
    moa_rounds_add_times(sum, a, 1);
    moa_rounds_add_times(sum, b, 8);
    assert_int_equal(moa_plan_uniform(&p, LAYERS, HEADS, (moa_rule){0, .5}, NULL), MOA_OK);
    *moa_plan_at(p, 1, 3) = (moa_rule){0, 1};
    *moa_plan_at(p, 0, 2) = (moa_rule){512, 0};
    for (int i = 0; i < 2; i++)
        for (int layer = 0; layer < LAYERS; layer++)
            for (int h = 0; h < HEADS; h++) {
                const int nb = lengths[i] / 64, w = moa_span(*moa_plan_at(p, layer, h), lengths[i]) / 64 - 1;
                if (w + 1 < nb) want += moa_losses_at(a, i, layer, h)[w] + 8 * moa_losses_at(b, i, layer, h)[w];
            }
    assert_float_equal(moa_rounds_predict(sum, p), want / 2, 1e-9);
    moa_losses_close(&a), moa_losses_close(&b), moa_losses_close(&sum);
    moa_plan_close(&p);
}

static double share(moa_rule r, int32_t n) {
    const int32_t s = moa_span(r, n);
    return s >= n ? 1 : (double)s / n;
}

/* the plan keeps to the density and the step, its figures are those of its rules, and none of the whole front is better in the mean */
static void test_find(void **state) {
    (void)state;
    const double steps[] = {.02, .1, .25, 1};
    double last = INFINITY;
    moa_losses *from = losses(1, .2), *l;
    moa_plan *around;
    assert_int_equal(moa_rounds_losses(from, 1, further, 1, &l, NULL), MOA_OK);
    assert_int_equal(moa_plan_uniform(&around, LAYERS, HEADS, (moa_rule){0, .5}, NULL), MOA_OK);
    for (int k = 0; k < 4; k++) {
        moa_found f = {0};
        moa_search_result all = {0};
        moa_err err = {0};
        double moved = 0, mean = 0;
        moa_search_config c = {.density = .5, .extend = further, .n_extend = 1, .around = around, .step = steps[k], .n_interval = 1, .seed = 1};
        assert_int_equal(moa_rounds_find(l, &c, &f, &err), MOA_OK);
        c.n_interval = 0;
        assert_int_equal(moa_search_run(l, &c, &all, &err), MOA_OK);
        for (int i = 0; i < all.n_found; i++) assert_true(f.mean <= all.found[i].mean * (1 + 2e-3) + 1e-12);
        for (int layer = 0; layer < LAYERS; layer++)
            for (int h = 0; h < HEADS; h++) {
                const moa_rule r = *moa_plan_at(f.plan, layer, h);
                for (int b = 0; b < 3; b++) moved += fabs(share(r, b < 2 ? lengths[b] : 2048) - .5) / 3 / (LAYERS * HEADS);
                for (int i = 0; i < 3; i++) mean += moa_losses_rule(l, i, layer, h, r) / 3;
            }
        assert_true(moved <= steps[k] + 1e-9 && f.density[0] <= .5 + 1e-9);
        assert_float_equal(mean, f.mean, 1e-9);
        assert_true(f.mean <= last + 1e-9); /* a longer step is no worse */
        last = f.mean;
        moa_plan_close(&f.plan);
        moa_search_result_free(&all);
    }
    moa_search_config none = {.density = .1, .density_low = -1, .extend = further, .n_extend = 1, .around = around, .step = .05};
    moa_found f = {0};
    moa_err err = {0};
    assert_int_equal(moa_rounds_find(l, &none, &f, &err), MOA_E_FAILED);
    assert_null(f.plan);
    moa_plan_close(&around);
    moa_losses_close(&from), moa_losses_close(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_density), cmocka_unit_test(test_aim), cmocka_unit_test(test_next), cmocka_unit_test(test_mean), cmocka_unit_test(test_predict), cmocka_unit_test(test_find)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
