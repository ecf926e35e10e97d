/* plans/: files, densities against the published figures, coverage, selectors, rule edits */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "plans/plan.h"

#define PLANS MOA_SOURCE_DIR "/tests/data/plans/"

/* What the paper, its code and the method page say of each published plan; heads_kv is the model's own. */
static const struct {
    const char *file;
    int32_t n_layer, n_head, n_head_kv, n_rule_min, n_rule_max;
    double grouped_32k, mha_32k; /* 0: no figure */
} published[] = {
    {"lmsys--vicuna-7b-v1.5-16k.moa.json", 32, 32, 32, 9, 17, .50, 0},
    {"lmsys--vicuna-13b-v1.5-16k.moa.json", 40, 40, 40, 9, 17, 0, 0},
    {"gradientai--Llama-3-8B-Instruct-262k.moa.json", 32, 32, 8, 9, 17, .68, 1.98},
    {"gradientai--Llama-3-70B-Instruct-262k.moa.json", 80, 64, 8, 9, 17, .63, 3.83},
    {"meta-llama--Llama-3.2-1B-Instruct.moa.json", 16, 32, 8, 9, 17, .62, 0},
    {"meta-llama--Llama-3.2-3B-Instruct.moa.json", 28, 24, 8, 9, 17, 0, 0},
};

static void test_published_figures(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        char path[512];
        moa_plan *p;
        moa_err err = {0};
        (void)snprintf(path, sizeof path, PLANS "%s", published[i].file);
        if (moa_plan_load(&p, path, &err) != MOA_OK) fail_msg("%s", err.text);
        assert_int_equal(p->n_layer, published[i].n_layer);
        assert_int_equal(p->n_head, published[i].n_head);
        moa_rule_class *classes;
        int32_t n_class;
        assert_int_equal(moa_plan_classes(p, &classes, &n_class, &err), MOA_OK);
        assert_in_range(n_class, published[i].n_rule_min, published[i].n_rule_max);
        assert_in_range(moa_plan_max_rules_per_layer(p), 1, 2);
        free(classes);
        const moa_plan_at_n d = moa_plan_describe(p, 32768, published[i].n_head_kv);
        /* searched for half of the memory at the profiled lengths */
        const double at_8k = moa_plan_describe(p, 8192, 0).kv_density;
        assert_true(at_8k > .46 && at_8k <= .5);
        if (published[i].grouped_32k > 0) assert_float_equal(d.kv_density_grouped, published[i].grouped_32k, .0051);
        if (published[i].mha_32k > 0) assert_float_equal(d.mha_ratio, published[i].mha_32k, .0051);
        moa_plan_close(&p);
    }
    moa_plan *p;
    assert_int_equal(moa_plan_load(&p, PLANS "gradientai--Llama-3-8B-Instruct-262k.moa.json", NULL), MOA_OK);
    assert_int_equal(moa_plan_describe(p, 1024, 8).n_clamped, 375);
    moa_plan_close(&p);
}

static void test_round_trip_is_exact(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof *published; i++)
        for (int superset = 0; superset < 2; superset++) {
            char path[512];
            moa_plan *p, *again;
            moa_err err = {0};
            (void)snprintf(path, sizeof path, PLANS "%s", published[i].file);
            assert_int_equal(moa_plan_load(&p, path, &err), MOA_OK);
            /* values a decimal printer gets wrong easily */
            moa_plan_at(p, 0, 0)->alpha = 0.1 + 0.2;
            moa_plan_at(p, 0, 1)->beta = 1.0 / 3;
            moa_plan_at(p, 1, 0)->alpha = -5e-324;
            moa_plan_at(p, 1, 1)->alpha = 1.7976931348623157e308;
            moa_buf b = {0};
            assert_int_equal(moa_plan_print(p, superset, &b, &err), MOA_OK);
            if (moa_plan_parse(&again, b.data, b.size, &err) != MOA_OK) fail_msg("%s", err.text);
            assert_true(moa_plan_equal(p, again));
            moa_plan_at(again, 1, 1)->beta += 1e-9;
            assert_false(moa_plan_equal(p, again));
            moa_plan_close(&p);
            moa_plan_close(&again);
            moa_buf_free(&b);
        }
}

static void test_unknown_keys_survive(void **state) {
    (void)state;
    static const char text[] = "{\"note\":\"a \\u00e9 b\",\"alphas\":[[0,1]],\"big\":12345678901234567890,\"betas\":[[1,0.5]],"
                               "\"model\":{\"name\":\"m\",\"n_head_kv\":1,\"x\":[1.10]},\"provenance\":{\"seed\":7}}";
    moa_plan *p;
    moa_err err = {0};
    moa_buf b = {0};
    if (moa_plan_parse(&p, text, sizeof text - 1, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_string_equal(p->model, "m");
    assert_int_equal(p->n_head_kv, 1);
    assert_int_equal(moa_plan_print(p, true, &b, &err), MOA_OK);
    assert_non_null(strstr(b.data, "\"note\": \"a \\u00e9 b\""));
    assert_non_null(strstr(b.data, "\"big\": 12345678901234567890"));
    assert_non_null(strstr(b.data, "\"x\": [1.10]"));
    assert_non_null(strstr(b.data, "\"provenance\": {\"seed\":7}"));
    moa_plan_close(&p);
    if (moa_plan_parse(&p, b.data, b.size, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_non_null(p->extra);
    moa_plan_close(&p);
    moa_buf_free(&b);
}

static void test_bad_files_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"", "expected"},
        {"[]", "object"},
        {"{\"alphas\":[[0]]}", "\"betas\" is missing"},
        {"{\"betas\":[[0]]}", "\"alphas\" is missing"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"alphas\":[[1]]}", "same key twice"},
        {"{\"alphas\":[[0]],\"betas\":[[0]]} x", "after the end"},
        {"{\"alphas\":[[0],[0,1]],\"betas\":[[0],[0,1]]}", "layer 1 has 2 heads"},
        {"{\"alphas\":[[0,0]],\"betas\":[[0]]}", "1 x 2"},
        {"{\"alphas\":[[0]],\"betas\":[[0],[0]]}", "1 x 1"},
        {"{\"alphas\":[[1e999]],\"betas\":[[0]]}", "beyond what a double"},
        {"{\"alphas\":[[\"0\"]],\"betas\":[[0]]}", "layer 0 head 0"},
        {"{\"alphas\":[[null]],\"betas\":[[0]]}", "layer 0 head 0"},
        {"{\"alphas\":[[NaN]],\"betas\":[[0]]}", "value was expected"},
        {"{\"alphas\":[[01]],\"betas\":[[0]]}", "',' or ']'"},
        {"{\"alphas\":[[]],\"betas\":[[]]}", "has 0 heads"},
        {"{\"alphas\":[],\"betas\":[]}", "not a list of layers"},
        {"{\"alphas\":{},\"betas\":[[0]]}", "not a list of layers"},
        {"{\"alphas\":[0],\"betas\":[[0]]}", "not a list of heads"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"version\":2}", "\"version\" is 2"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"sink\":4}", "\"sink\" is 4"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"block\":128}", "\"block\" is 128"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"format\":\"other\"}", "\"other\""},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"model\":{\"n_head\":2}}", "\"n_head\" is 2"},
        {"{\"alphas\":[[0,0]],\"betas\":[[0,0]],\"model\":{\"n_head_kv\":3}}", "n_head_kv"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"model\":3}", "object"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"a\":\"\xff\"}", "UTF-8"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"a\":\"\x01\"}", "control byte"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"a\":\"\\u0000\"}", "u0000"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"a\":\"\\ud800\"}", "surrogate"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],\"a\":{\"b\":1,\"b\":2}}", "same key twice"},
        {"\xEF\xBB\xBF{\"alphas\":[[0]],\"betas\":[[0]]}", "object"},
        {"{\"alphas\":[[0]],\"betas\":[[0]],}", "key was expected"},
        {"{\"alphas\":[[0,]],\"betas\":[[0]]}", "value was expected"},
        {"{\"alphas\":[[0]],\"betas\":[[0]]", "',' or '}'"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        moa_plan *p = NULL;
        moa_err err = {0};
        const moa_status s = moa_plan_parse(&p, rows[i].text, strlen(rows[i].text), &err);
        if (s == MOA_OK || p || !strstr(err.text, rows[i].says))
            fail_msg("row %zu %s: status %d, says: %s", i, rows[i].text, s, err.text);
    }
    moa_buf deep = {0};
    for (int i = 0; i < 200000; i++) moa_buf_str(&deep, "[");
    moa_err err = {0};
    assert_int_equal(moa_json_check(deep.data, deep.size, &err), MOA_E_INVALID);
    moa_buf_free(&deep);
}

static void test_every_truncation_is_refused(void **state) {
    (void)state;
    moa_plan *p;
    moa_buf b = {0};
    assert_int_equal(moa_plan_uniform(&p, 3, 4, (moa_rule){-1024, .875}, NULL), MOA_OK);
    assert_int_equal(moa_plan_print(p, true, &b, NULL), MOA_OK);
    moa_plan_close(&p);
    for (size_t n = 0; n + 2 < b.size; n++) { /* the last two bytes are "}\n" */
        assert_int_not_equal(moa_plan_parse(&p, b.data, n, NULL), MOA_OK);
        assert_null(p);
    }
    moa_buf_free(&b);
}

static void test_specs(void **state) {
    (void)state;
    moa_plan *p;
    moa_err err = {0};
    assert_int_equal(moa_plan_open(&p, "uniform:0.5", 2, 4, &err), MOA_OK);
    moa_plan_at_n d = moa_plan_describe(p, 4096, 2);
    assert_float_equal(d.kv_density, .5, 1e-12);
    assert_float_equal(d.kv_density_grouped, .5, 1e-12);
    moa_plan_close(&p);
    assert_int_equal(moa_plan_open(&p, "full", 2, 4, &err), MOA_OK);
    d = moa_plan_describe(p, 1000, 2);
    assert_float_equal(d.kv_density, 1, 1e-12);
    assert_float_equal(d.attn_density, 1, 1e-12);
    assert_true(d.dense_share == 1);
    moa_plan_close(&p);
    assert_int_equal(moa_plan_open(&p, "full", 30, 9, &err), MOA_OK); /* 270 times 1/270 is less than 1 */
    assert_true(moa_plan_describe(p, 1000, 3).dense_share == 1);
    moa_plan_close(&p);
    assert_int_equal(moa_plan_open(&p, "sink", 2, 4, &err), MOA_OK);
    d = moa_plan_describe(p, 1000, 0);
    assert_int_equal(d.span_max, 128);
    assert_true(isnan(d.kv_density_grouped));
    moa_plan_close(&p);
    assert_int_equal(moa_plan_open(&p, "uniform:0", 2, 4, &err), MOA_E_USAGE);
    assert_int_equal(moa_plan_open(&p, "uniform:1.5", 2, 4, &err), MOA_E_USAGE);
    assert_int_equal(moa_plan_open(&p, "uniform:nan", 2, 4, &err), MOA_E_USAGE);
    assert_int_equal(moa_plan_open(&p, PLANS "lmsys--vicuna-7b-v1.5-16k.moa.json", 30, 9, &err), MOA_E_INVALID);
    assert_non_null(strstr(err.text, "32 layers x 32 heads, the model has 30 x 9"));
    assert_null(p);
}

/* attention density by counting pairs one by one */
static void test_density_by_brute_force(void **state) {
    (void)state;
    moa_plan *p;
    assert_int_equal(moa_plan_uniform(&p, 1, 2, (moa_rule){0, .25}, NULL), MOA_OK);
    moa_plan_at(p, 0, 1)->beta = .6;
    const int32_t n = 777;
    double seen = 0;
    for (int h = 0; h < 2; h++)
        for (int32_t i = 0; i < n; i++)
            for (int32_t j = 0; j <= i; j++) seen += moa_sees(moa_span(*moa_plan_at(p, 0, h), n), i, j);
    assert_float_equal(moa_plan_describe(p, n, 1).attn_density, seen / 2 / (n * (n + 1.0) / 2), 1e-12);
    moa_plan_close(&p);
}

static void test_coverage_against_masses(void **state) {
    (void)state;
    enum { N = 700, BINS = 11 };
    float hist[1 + BINS] = {0};
    double mass[N], all = 0;
    const int32_t i = N - 1;
    for (int32_t j = 0; j <= i; j++) {
        mass[j] = 1.0 / (1 + (j * 7919 % 101));
        all += mass[j];
        if (j < MOA_SINK_TOK) hist[0] += (float)mass[j];
        else hist[1 + (i - j) / 64] += (float)mass[j];
    }
    for (int32_t span = 128; span <= 768; span += 64) {
        double kept = 0;
        for (int32_t j = 0; j <= i; j++)
            if (moa_sees(span, i, j)) kept += mass[j];
        assert_float_equal(moa_coverage(hist, BINS, span), kept / all, 1e-6);
    }
    for (double share = .1; share < 1; share += .1) {
        const int32_t span = moa_coverage_span(hist, BINS, share);
        assert_true(moa_coverage(hist, BINS, span) >= share);
        if (span > MOA_SPAN_MIN) assert_true(moa_coverage(hist, BINS, span - 64) < share);
    }
    const float nothing[1 + BINS] = {0};
    assert_true(isnan(moa_coverage(nothing, BINS, 128)));
    assert_int_equal(moa_coverage_span(nothing, BINS, .95), 0);
}

/* each block lands in the octave its distance says, counted with powers instead of logarithms */
static void test_octaves(void **state) {
    (void)state;
    enum { BINS = 300, N = 20 };
    float share[N], hist[1 + BINS];
    for (int i = 0; i <= BINS; i++) hist[i] = (float)(1 + i % 7);
    double all = 0, expected[N] = {0};
    for (int i = 0; i <= BINS; i++) all += hist[i];
    expected[0] = hist[0] / all;
    for (int d = 0; d < BINS; d++) {
        int bin = 1;
        while ((double)(d + 1) * (d + 1) >= pow(2, bin)) bin++; /* (d+1)^2 < 2^bin */
        expected[bin < N ? bin : N - 1] += hist[1 + d] / all;
        assert_int_equal(moa_coverage_n_octave(d + 1), bin + 1);
    }
    assert_true(moa_coverage_octaves(hist, BINS, share, N));
    for (int i = 0; i < N; i++) assert_float_equal(share[i], expected[i], 1e-6);
    assert_true(moa_coverage_octaves(hist, BINS, share, 4)); /* the last takes what is beyond */
    assert_float_equal(share[0] + share[1] + share[2] + share[3], 1, 1e-6);
    assert_int_equal(moa_coverage_n_octave(0), 1);
    const float nothing[1 + BINS] = {0};
    assert_false(moa_coverage_octaves(nothing, BINS, share, N));
    assert_true(share[0] == 0 && share[N - 1] == 0);
}

static int count(const char *text, moa_status expected) {
    uint8_t mask[30 * 9] = {0};
    moa_err err = {0};
    const moa_status s = moa_select(text, 30, 9, 3, mask, &err);
    if (s != expected) fail_msg("%s: status %d %s", text, s, err.text);
    int n = 0;
    for (size_t i = 0; i < sizeof mask; i++) n += mask[i];
    return n;
}

static void test_selectors(void **state) {
    (void)state;
    assert_int_equal(count("L14.H8", MOA_OK), 1);
    assert_int_equal(count("L14", MOA_OK), 9);
    assert_int_equal(count("L14.*", MOA_OK), 9);
    assert_int_equal(count("L10-20.H0,4", MOA_OK), 22);
    assert_int_equal(count("*.H3", MOA_OK), 30);
    assert_int_equal(count("G2", MOA_OK), 90);
    assert_int_equal(count("L0.G1 L1.H0", MOA_OK), 4);
    assert_int_equal(count("*", MOA_OK), 270);
    static const char *const bad[] = {"", "L30", "L1.H9", "L1.G3", "L2-1", "L1.", "L1.H", "X", "L1..H2", "L-1", "L1.H2x",
                                      "L99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) (void)count(bad[i], MOA_E_USAGE);
}

static void test_rule_edits(void **state) {
    (void)state;
    moa_rule r = {10, .5};
    assert_int_equal(moa_rule_edit(&r, "alpha=-1024 beta=1", NULL), MOA_OK);
    assert_true(r.alpha == -1024 && r.beta == 1);
    assert_int_equal(moa_rule_edit(&r, "a+=64 b-=0.125", NULL), MOA_OK);
    assert_true(r.alpha == -960 && r.beta == .875);
    assert_int_equal(moa_rule_edit(&r, "w=1024", NULL), MOA_OK);
    assert_true(r.alpha == 1024 && r.beta == 0);
    assert_int_equal(moa_rule_edit(&r, "full", NULL), MOA_OK);
    assert_true(r.alpha == 0 && r.beta == 1);
    const moa_rule before = r;
    static const char *const bad[] = {"", "alpha", "alpha=x", "beta=1e999", "w=-3", "alpha=1 gamma=2", "alpha==1", "nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(moa_rule_edit(&r, bad[i], NULL), MOA_E_USAGE);
        assert_true(r.alpha == before.alpha && r.beta == before.beta); /* all or nothing */
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_figures),       cmocka_unit_test(test_round_trip_is_exact),
        cmocka_unit_test(test_unknown_keys_survive),    cmocka_unit_test(test_bad_files_are_refused),
        cmocka_unit_test(test_every_truncation_is_refused), cmocka_unit_test(test_specs),
        cmocka_unit_test(test_density_by_brute_force),  cmocka_unit_test(test_coverage_against_masses), cmocka_unit_test(test_octaves),
        cmocka_unit_test(test_selectors),               cmocka_unit_test(test_rule_edits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
