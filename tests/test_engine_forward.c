/* The engine's logits: against a brute-force pass in double, whatever the chunks, the plan, the turns and the interruptions. */
#include "engine_fixture.h"

enum { N_MAX = 400 };
/* absolute, logits of size 1 to 20 */
static const double TOLERANCE = 1e-4;      /* float32 activations against double */
static const double FAST_TOLERANCE = 2e-2; /* the fast CPU matmul rounds activations to 16 bits, block by block; 4e-3 seen */
static const double DEVICE_TOLERANCE = 1e-3; /* CUDA, MOASCOPE_CUDA_PRECISE=1: fast exponentials; 7e-5 seen */
/* CUDA as it comes: operands of products rounded to float16. Not a difference, but the relative error of all logits that the
 * project allows itself; differences of 7e-3 to 1.9e-2 seen */
static const double COARSE_TOLERANCE = 5e-3;
static double tolerance(bool fast) {
    return device_is_coarse() ? COARSE_TOLERANCE : test_device() ? DEVICE_TOLERANCE : fast ? FAST_TOLERANCE : TOLERANCE;
}
/* what tolerance() limits */
static double far_apart(const float *a, const float *b, int64_t n) {
    return device_is_coarse() ? relative_error(a, b, n) : max_diff(a, b, n);
}

static const moa_engine_config f32 = {.kv_type = MOA_KV_F32, .chunk = 128};

static void check_brute(const char *model, bool fast, moa_kv_type type, uint64_t seed, int what) {
    rig r = rig_open((rig_config){.model = model, .fast = fast, .engine = {.kv_type = type, .chunk = 128}});
    moa_pcg32 g = moa_pcg32_seed(seed, 1);
    const int32_t n = 250 + (int32_t)random_below(&g, 150);
    int32_t ids[N_MAX], span[64];
    moa_rule rules[64];
    random_ids(&g, ids, n, r.shape->n_vocab);
    random_rules(&g, rules, r.n_span, what);
    for (int32_t i = 0; i < r.n_span; i++) span[i] = brute_span(rules[i], n);
    plan_sees sees = {span, r.shape->n_head};
    brute b = brute_run(r.model, ids, n, type, sees_by_plan, &sees, false);
    float *rows = whole(&r, rules, ids, n, 0);
    /* half-precision K and V: the last bit of a rounded value may differ between float and double */
    const double limit = type == MOA_KV_F32 || device_is_coarse() ? tolerance(fast) : 4e-3;
    const double d = far_apart(b.logits, rows, (int64_t)n * r.shape->n_vocab);
    print_message("%s %s %s plan %d N %d: %s from brute force %.2e\n", model, fast ? "fast" : "reference",
                  type == MOA_KV_F32 ? "f32" : "f16", what, n, device_is_coarse() ? "relative error" : "largest difference", d);
    if (d > limit) fail_msg("difference %g above %g", d, limit);
    free(rows);
    brute_free(&b);
    rig_close(&r);
}

static void test_brute_force(void **state) {
    (void)state;
    for (int i = 0; i < 12; i += EVERY) {
        const int what = i / 4;
        const bool fast = i % 2;
        check_brute(tiny_models[i / 2 % 2], fast, MOA_KV_F32, (fast ? 21 : 11) + (uint64_t)what, what);
    }
    check_brute("tiny_quants", false, MOA_KV_F32, 5, 0);
    check_brute("tiny_llama", false, MOA_KV_F16, 6, 0);
}

/* A plan whose spans reach N is full attention, exactly: the same operations on the same numbers. */
static void test_dense_is_span_at_least_n(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = f32});
    moa_pcg32 g = moa_pcg32_seed(3, 1);
    int32_t ids[N_MAX];
    moa_rule rules[64], narrow[64];
    random_ids(&g, ids, 300, r.shape->n_vocab);
    for (int32_t i = 0; i < r.n_span; i++) {
        rules[i] = i % 2 ? (moa_rule){300, 0} : (moa_rule){1e6, 2};
        narrow[i] = (moa_rule){i == 0 ? 256 : 320, 0};
    }
    float *a = whole(&r, NULL, ids, 300, 0), *b = whole(&r, rules, ids, 300, 0), *c = whole(&r, narrow, ids, 300, 0);
    assert_memory_equal(a, b, 300 * (size_t)r.shape->n_vocab * sizeof *a);
    assert_true(max_diff(a, c, 300 * (int64_t)r.shape->n_vocab) > 1e-3); /* one block less of one head shows */
    free(a), free(b), free(c);
    rig_close(&r);
}

static void check_chunks(const char *model, bool fast, bool recording, int what) {
    static const int32_t chunks[] = {64, 100, 1, 7, 128, 63};
    rig r = rig_open((rig_config){.model = model, .fast = fast, .recording = recording,
                                  .engine = {.kv_type = MOA_KV_F32, .chunk = 512}});
    moa_pcg32 g = moa_pcg32_seed(31 + (uint64_t)what, 1);
    int32_t ids[N_MAX];
    moa_rule rules[64];
    random_ids(&g, ids, N_MAX, r.shape->n_vocab);
    random_rules(&g, rules, r.n_span, what);
    float *one = whole(&r, rules, ids, N_MAX, 0);
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        float *rows = whole(&r, rules, ids, N_MAX, chunks[c]);
        const double d = far_apart(one, rows, (int64_t)N_MAX * r.shape->n_vocab);
        if (d > tolerance(fast)) fail_msg("%s plan %d, chunks of %d: difference %g", model, what, chunks[c], d);
        free(rows);
    }
    if (recording) {
        assert_true(r.spy->n_replay > 300);
        assert_true(r.spy->n_record < 10); /* once a plan, not once a step */
    }
    free(one);
    rig_close(&r);
}

static void test_chunks_agree(void **state) {
    (void)state;
    for (int i = 0; i < 12; i += EVERY) {
        const int m = i % 2, fast = i / 2 % 2, what = i / 4;
        check_chunks(tiny_models[m], fast, (what + fast) % 2 == 0, what);
    }
}

/* --- turns ------------------------------------------------------------------------------------------------------------------- */

/* Nothing was dropped between the turns: the second turn equals a fresh prefill of everything. */
static void test_second_turn_equals_fresh_prefill(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_qwen2", .recording = true, .engine = f32});
    moa_pcg32 g = moa_pcg32_seed(4, 1);
    int32_t ids[N_MAX];
    moa_rule rules[64];
    const int32_t n_vocab = r.shape->n_vocab, n1 = 150, n2 = 370;
    random_ids(&g, ids, n2, n_vocab);
    for (int what = 0; what < 2; what++) {
        /* fixed rules give the same spans at both lengths as long as they stay below N, so what a window drops is never wanted again */
        for (int32_t i = 0; i < r.n_span; i++) rules[i] = what == 0 ? (moa_rule){0, 1} : (moa_rule){128, 0};
        float *fresh = whole(&r, rules, ids, n2, 0), *rows = take((size_t)n2 * (size_t)n_vocab, sizeof *rows);
        moa_seq_reset(r.s);
        must(moa_seq_plan(r.s, rules, NULL, n1, 0, NULL, 0, err));
        feed(&r, ids, n1 - 10, 0, rows);
        must(moa_seq_plan(r.s, rules, NULL, n2, 0, NULL, 0, err));
        assert_int_equal(moa_seq_lost(r.s), 0);
        feed(&r, ids + n1 - 10, n2 - n1 + 10, 50, rows + (int64_t)(n1 - 10) * n_vocab);
        assert_true(far_apart(fresh, rows, (int64_t)n2 * n_vocab) < tolerance(false));
        assert_memory_equal(moa_seq_ids(r.s), ids, (size_t)n2 * sizeof *ids);
        free(fresh), free(rows);
    }
    rig_close(&r);
}

/* Two turns with widening: a key is seen if its query's turn sees it and if no earlier moment had dropped its page. */
typedef struct turns {
    const int32_t *span1, *span2;      /* (n_layer, n_head) of the turns */
    const int32_t *widest1, *widest2;  /* (n_layer, n_head_kv) */
    int32_t n1, n_head, n_head_kv;
} turns;
static bool sees_by_turns(void *user, int32_t layer, int32_t head, int32_t i, int32_t j) {
    const turns *t = user;
    const int32_t kv = head / (t->n_head / t->n_head_kv);
    const int32_t at = layer * t->n_head + head, at_kv = layer * t->n_head_kv + kv;
    const int32_t span = i < t->n1 ? t->span1[at] : t->span2[at];
    if (!(j <= i && (j < 64 || i - j < span - 64))) return false;
    if (i < t->n1 || j < 64 || j >= t->n1) return true;
    /* freed at the end of turn 1: the page's last token is outside the window of every later query of the group */
    const int32_t last = j / 64 * 64 + 63;
    return t->n1 - last < t->widest1[at_kv] - 64;
}

/* The spans shown to attention end in the middle of a page here: tokens of the first turn that are left. */
static void check_widening(bool fast) {
    rig r = rig_open((rig_config){.model = "tiny_llama", .fast = fast, .recording = true, .engine = f32});
    moa_pcg32 g = moa_pcg32_seed(8, 1);
    const int32_t n1 = 230, n2 = 390, n_vocab = r.shape->n_vocab, group = r.shape->n_head / r.shape->n_head_kv;
    int32_t ids[N_MAX], span1[64], span2[64], widest1[64] = {0}, widest2[64] = {0};
    moa_rule rules1[64], rules2[64];
    random_ids(&g, ids, n2, n_vocab);
    random_rules(&g, rules1, r.n_span, 2);
    rules1[1] = (moa_rule){192, 0};
    random_rules(&g, rules2, r.n_span, 0);
    rules2[0] = (moa_rule){0, 1};
    int64_t lost = 0;
    for (int32_t i = 0; i < r.n_span; i++) {
        span1[i] = brute_span(rules1[i], n1);
        span2[i] = brute_span(rules2[i], n2);
        if (span1[i] > widest1[i / group]) widest1[i / group] = span1[i];
        if (span2[i] > widest2[i / group]) widest2[i / group] = span2[i];
    }
    for (int32_t k = 0; k < r.n_span / group; k++)
        for (int32_t j = 64; j < n1; j++)
            lost += n1 - j < widest2[k] - 64 && n1 - (j / 64 * 64 + 63) >= widest1[k] - 64;
    assert_true(lost > 0);
    turns t = {span1, span2, widest1, widest2, n1, r.shape->n_head, r.shape->n_head_kv};
    brute b = brute_run(r.model, ids, n2, MOA_KV_F32, sees_by_turns, &t, false);
    for (int32_t chunk = 0; chunk <= 100; chunk += 50) {
        float *rows = take((size_t)n2 * (size_t)n_vocab, sizeof *rows);
        moa_seq_reset(r.s);
        must(moa_seq_plan(r.s, rules1, NULL, n1, 0, NULL, 0, err));
        feed(&r, ids, n1, chunk, rows);
        assert_int_equal(moa_seq_lost(r.s), 0);
        must(moa_seq_plan(r.s, rules2, NULL, n2, MOA_WATCH_STATS, NULL, 0, err));
        assert_int_equal(moa_seq_lost(r.s), lost);
        feed(&r, ids + n1, n2 - n1, chunk, rows + (int64_t)n1 * n_vocab);
        const double d = far_apart(b.logits, rows, (int64_t)n2 * n_vocab);
        if (d > tolerance(fast)) fail_msg("chunks of %d: difference %g after widening", chunk, d);
        /* the probe too sees one row of mass 1 a query */
        moa_head_stats stats[64];
        must(moa_seq_stats(r.s, stats, err));
        for (int32_t i = 0; i < r.n_span; i++) {
            assert_int_equal(stats[i].n_query, n2 - n1);
            assert_true(fabs((double)stats[i].sink + (double)stats[i].window - 1) < 1e-3);
        }
        free(rows);
    }
    brute_free(&b);
    rig_close(&r);
}

static void test_widening_sees_what_is_left(void **state) {
    (void)state;
    check_widening(false);
    check_widening(true);
}

/* --- interruptions ----------------------------------------------------------------------------------------------------------- */

static bool cancel_after(void *user) {
    long *left = user;
    return (*left)-- <= 0;
}

/* Cancelled at every possible question: the sequence holds whole chunks, and going on gives what an undisturbed run gives. */
static void test_cancel_leaves_whole_chunks(void **state) {
    (void)state;
    int n_cancelled = 0, n_lost = 0;
    for (int what = 0; what < 3; what++) {
        rig r = rig_open((rig_config){.model = "tiny_llama", .engine = f32});
        moa_pcg32 g = moa_pcg32_seed(77, 1);
        const int32_t n = 390, chunk = 100, n_vocab = r.shape->n_vocab;
        int32_t ids[N_MAX];
        moa_rule rules[64];
        random_ids(&g, ids, n, n_vocab);
        random_rules(&g, rules, r.n_span, what);
        float *expected = whole(&r, rules, ids, n, chunk), *last = take((size_t)n_vocab, sizeof *last);
        for (long questions = 0;; questions += EVERY > 1 ? 2 : 1) {
            long left = questions;
            moa_forward f = {.ids = ids, .n = n, .chunk = chunk, .cancelled = cancel_after, .user = &left};
            moa_seq_reset(r.s);
            must(moa_seq_plan(r.s, rules, NULL, n, MOA_WATCH_STATS, NULL, 0, err));
            moa_err e = {0};
            const moa_status s = moa_seq_forward(r.s, &f, &e);
            if (s == MOA_OK) break;
            n_cancelled++;
            assert_int_equal(s, MOA_E_CANCELLED);
            const int32_t n_past = moa_seq_n_past(r.s);
            assert_int_equal(n_past % chunk, 0);
            moa_pages pages;
            moa_seq_pages(r.s, &pages);
            const moa_kv_bytes formula = moa_kv_formula(r.shape, MOA_KV_F32, rules, n, n_past);
            assert_true(pages.used_bytes <= formula.plan);
            n_lost += moa_seq_lost(r.s) > 0;
            if (moa_seq_lost(r.s) == 0) assert_true(pages.used_bytes == formula.plan);
            /* statistics count what is in the sequence */
            moa_head_stats stats[64];
            assert_int_equal(moa_seq_stats(r.s, stats, &e), n_past > 0 ? MOA_OK : MOA_E_FAILED);
            if (n_past > 0) assert_int_equal(stats[0].n_query, n_past);
            const bool exact = moa_seq_lost(r.s) == 0;
            f = (moa_forward){.ids = ids + n_past, .n = n - n_past, .chunk = chunk, .logits = last};
            must(moa_seq_forward(r.s, &f, err));
            if (exact) assert_true(far_apart(expected + (int64_t)(n - 1) * n_vocab, last, n_vocab) < tolerance(false));
            for (int32_t i = 0; i < n_vocab; i++) assert_true(isfinite((double)last[i]));
            moa_seq_pages(r.s, &pages);
            assert_true(pages.used_bytes == moa_kv_formula(r.shape, MOA_KV_F32, rules, n, n).plan);
        }
        free(expected), free(last);
        rig_close(&r);
    }
    /* with two layers no question comes after a page was reused: losing keys is test_engine_fail's */
    assert_int_equal(n_lost, 0);
    assert_true(n_cancelled > (EVERY > 1 ? 10 : 20));
}

static bool stop_at_70(void *user, int32_t pos, const float *logits) {
    (void)logits;
    *(int32_t *)user = pos;
    return pos < 70;
}

static void test_each_logits_can_stop(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = f32});
    moa_pcg32 g = moa_pcg32_seed(1, 1);
    int32_t ids[200], seen = -1;
    random_ids(&g, ids, 200, r.shape->n_vocab);
    must(moa_seq_plan(r.s, NULL, NULL, 200, 0, NULL, 0, err));
    const moa_forward f = {.ids = ids, .n = 200, .chunk = 64, .each_logits = stop_at_70, .user = &seen};
    assert_int_equal(moa_seq_forward(r.s, &f, NULL), MOA_E_CANCELLED);
    assert_int_equal(seen, 70);
    assert_int_equal(moa_seq_n_past(r.s), 128); /* the chunk under way is finished */
    rig_close(&r);
}

static void test_refusals(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = f32});
    int32_t ids[20] = {0};
    moa_err e = {0};
    moa_rule rules[64] = {{NAN, 0}};
    const int32_t n_ctx = r.shape->n_ctx;
    assert_int_equal(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = 1}, &e), MOA_E_INVALID); /* no plan yet */
    assert_int_equal(moa_seq_plan(r.s, rules, NULL, 10, 0, NULL, 0, &e), MOA_E_INVALID);
    assert_int_equal(moa_seq_plan(r.s, NULL, NULL, n_ctx + 1, 0, NULL, 0, &e), MOA_E_INVALID);
    assert_non_null(strstr(e.text, "4096"));
    assert_int_equal(moa_seq_plan(r.s, NULL, NULL, 0, 0, NULL, 0, &e), MOA_E_INVALID);
    must(moa_seq_plan(r.s, NULL, NULL, 10, 0, NULL, 0, err));
    assert_int_equal(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = 11}, &e), MOA_E_INVALID);
    ids[3] = r.shape->n_vocab;
    assert_int_equal(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = 5}, &e), MOA_E_INVALID);
    ids[3] = -1;
    assert_int_equal(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = 5}, &e), MOA_E_INVALID);
    assert_int_equal(moa_seq_n_past(r.s), 0);
    ids[3] = 0;
    feed(&r, ids, 5, 0, NULL);
    assert_int_equal(moa_seq_plan(r.s, NULL, NULL, 4, 0, NULL, 0, &e), MOA_E_INVALID);
    feed(&r, ids, 5, 0, NULL); /* still the old plan */
    rig_close(&r);
}

/* Two sequences share the pool and do not see each other, though the pool moves while both hold pages. */
static void test_two_sequences(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .recording = true, .engine = f32});
    moa_pcg32 g = moa_pcg32_seed(9, 1);
    const int32_t n = 300, n_vocab = r.shape->n_vocab;
    int32_t ids[2][N_MAX];
    moa_rule rules[64];
    random_ids(&g, ids[0], n, n_vocab);
    random_ids(&g, ids[1], n, n_vocab);
    random_rules(&g, rules, r.n_span, 0);
    float *expected[2], *rows[2];
    for (int i = 0; i < 2; i++) {
        expected[i] = whole(&r, rules, ids[i], n, 0);
        rows[i] = take((size_t)n * (size_t)n_vocab, sizeof *rows[i]);
    }
    moa_seq_reset(r.s);
    moa_seq *both[2] = {r.s, NULL};
    must(moa_seq_open(&both[1], r.e, err));
    for (int i = 0; i < 2; i++) must(moa_seq_plan(both[i], rules, NULL, n, 0, NULL, 0, err));
    for (int32_t at = 0; at < n;)
        for (int i = 0; i < 2; i++) {
            const int32_t part = at < 120 ? 60 : 1;
            r.s = both[i];
            feed(&r, ids[i] + at, part, 0, rows[i] + (int64_t)at * n_vocab);
            if (i == 1) at += part;
        }
    for (int i = 0; i < 2; i++) {
        assert_true(far_apart(expected[i], rows[i], (int64_t)n * n_vocab) < tolerance(false));
        free(expected[i]), free(rows[i]);
    }
    r.s = both[0];
    moa_seq_close(&both[1]);
    moa_pages pages;
    moa_seq_pages(r.s, &pages);
    assert_true(pages.used_bytes == moa_kv_formula(r.shape, MOA_KV_F32, rules, n, n).plan);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force),
        cmocka_unit_test(test_dense_is_span_at_least_n),
        cmocka_unit_test(test_chunks_agree),
        cmocka_unit_test(test_second_turn_equals_fresh_prefill),
        cmocka_unit_test(test_widening_sees_what_is_left),
        cmocka_unit_test(test_cancel_leaves_whole_chunks),
        cmocka_unit_test(test_each_logits_can_stop),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_two_sequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
