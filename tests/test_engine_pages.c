/* KV memory: what is held is what the formula says, at every moment; nothing is lost from the pool; what was predicted is taken. */
#include "core/engine/kv_pages.h"
#include "engine_fixture.h"

enum { N_MAX = 700 };
static const moa_engine_config f16 = {.kv_type = MOA_KV_F16, .chunk = 128};

/* pages by counting tokens: page p is needed if its last token is still inside the window of a query to come, or is the sink */
static int64_t count_pages(const moa_shape *s, const moa_rule *rules, int32_t n_reserved, int32_t n_past) {
    const int32_t group = s->n_head / s->n_head_kv;
    int64_t n = 0;
    for (int32_t l = 0; l < s->n_layer; l++)
        for (int32_t k = 0; k < s->n_head_kv; k++)
            for (int32_t p = 0; p * 64 < n_past; p++) {
                bool needed = false;
                for (int32_t h = k * group; h < (k + 1) * group; h++) {
                    const int32_t span = brute_span(rules ? rules[l * s->n_head + h] : (moa_rule){0, 1}, n_reserved);
                    for (int32_t j = p * 64; j < p * 64 + 64; j++)
                        needed = needed || j < 64 || n_past - j < span - 64 || span >= n_reserved;
                }
                n += needed;
            }
    return n;
}

/* after every call: the pages held are those of the formula, page by page where the map says, and none has got lost */
static void check_held(rig *r, const moa_rule *rules, int32_t n_reserved) {
    const int32_t n_past = moa_seq_n_past(r->s);
    moa_pages p;
    moa_seq_pages(r->s, &p);
    const int64_t exact = count_pages(r->shape, rules, n_reserved, n_past);
    const moa_kv_bytes formula = moa_kv_formula(r->shape, MOA_KV_F16, rules, n_reserved, n_past);
    assert_int_equal(p.used, exact);
    assert_int_equal(p.page_bytes, 2 * 64 * r->shape->d_head * 2);
    assert_int_equal(p.used_bytes, formula.plan);
    assert_int_equal((int64_t)p.pool_bytes, (p.used + p.free) * (int64_t)p.page_bytes);
    uint8_t *held = take((size_t)(p.n_layer * p.n_head_kv * p.max_pages), 1);
    moa_seq_page_map(r->s, held);
    int64_t n_held = 0;
    for (int32_t row = 0; row < p.n_layer * p.n_head_kv; row++) {
        const uint8_t *page = held + (int64_t)row * p.max_pages;
        if (n_past > 0) assert_true(page[0]);
        if (n_past > 0) assert_true(page[(n_past - 1) / 64]);
        int64_t n = 0;
        int32_t widest = 0;
        const int32_t group = p.n_layer * r->shape->n_head / (p.n_layer * p.n_head_kv);
        for (int32_t i = 0; i < p.max_pages; i++) n += page[i];
        for (int32_t h = row * group; h < (row + 1) * group; h++)
            if (moa_seq_spans(r->s)[h] > widest) widest = moa_seq_spans(r->s)[h];
        /* never more than one page above the tokens needed */
        assert_true(n * 64 <= (n_past < widest ? (n_past + 63) / 64 * 64 : widest + 64));
        n_held += n;
    }
    assert_int_equal(n_held, exact);
    free(held);
}

static void test_held_equals_formula(void **state) {
    (void)state;
    for (int what = 0; what < 4; what++) {
        rig r = rig_open((rig_config){.model = "tiny_llama", .recording = true, .engine = f16});
        moa_pcg32 g = moa_pcg32_seed(50 + (uint64_t)what, 1);
        const int32_t n = 640, n_prompt = 301;
        int32_t ids[N_MAX];
        moa_rule rules[64];
        random_ids(&g, ids, n, r.shape->n_vocab);
        random_rules(&g, rules, r.n_span, what == 3 ? 0 : what);
        must(moa_seq_plan(r.s, what == 1 ? NULL : rules, NULL, n, 0, NULL, 0, err));
        feed(&r, ids, n_prompt, 0, NULL);
        check_held(&r, rules, n);
        moa_pages before, after;
        moa_seq_pages(r.s, &before);
        for (int32_t i = n_prompt; i < n; i++) {
            feed(&r, ids + i, 1, 0, NULL);
            check_held(&r, rules, n);
        }
        moa_seq_pages(r.s, &after);
        assert_int_equal(before.used + before.free, after.used + after.free); /* sized up front: the pool never grew */
        assert_true(after.peak <= after.used + after.free);
        moa_seq_reset(r.s);
        moa_seq_pages(r.s, &after);
        assert_int_equal(after.used, 0);
        rig_close(&r);
    }
}

/* The pool is as large as the peak it predicted, and a prefill really gets there: one page less would not do. */
static void test_pool_is_exact(void **state) {
    (void)state;
    static const int32_t chunks[] = {128, 100, 64, 5, 1};
    for (int what = 0; what < 3; what++)
        for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
            rig r = rig_open((rig_config){.model = "tiny_llama", .engine = f16});
            moa_pcg32 g = moa_pcg32_seed(60 + (uint64_t)what, 1);
            int32_t ids[N_MAX];
            moa_rule rules[64];
            random_ids(&g, ids, 600, r.shape->n_vocab);
            random_rules(&g, rules, r.n_span, what);
            must(moa_seq_plan(r.s, rules, NULL, 600, 0, NULL, 0, err));
            feed(&r, ids, 600, chunks[c], NULL);
            moa_pages p;
            moa_seq_pages(r.s, &p);
            assert_int_equal(p.peak, p.used + p.free);
            /* what a chunk needs in passing is one layer's */
            const int64_t passing = (int64_t)(chunks[c] + 63) / 64 * r.shape->n_head_kv;
            assert_true(p.peak <= count_pages(r.shape, rules, 600, 577) + passing);
            rig_close(&r);
        }
}

static void test_narrowing_frees_and_widening_counts_lost(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = f16});
    moa_pcg32 g = moa_pcg32_seed(7, 1);
    const int32_t n = 500, n_past = 410;
    int32_t ids[N_MAX];
    moa_rule rules[64];
    random_ids(&g, ids, n, r.shape->n_vocab);
    must(moa_seq_plan(r.s, NULL, NULL, n, 0, NULL, 0, err));
    feed(&r, ids, n_past, 0, NULL);
    moa_pages dense, narrow, wide;
    moa_seq_pages(r.s, &dense);
    /* one head narrower: free widening the other way round, its group still needs the pages */
    for (int32_t i = 0; i < r.n_span; i++) rules[i] = i == 1 ? (moa_rule){0, 0} : (moa_rule){0, 1};
    must(moa_seq_plan(r.s, rules, NULL, n, 0, NULL, 0, err));
    moa_seq_pages(r.s, &narrow);
    assert_int_equal(narrow.used, dense.used);
    for (int32_t i = 0; i < r.n_span; i++) rules[i] = (moa_rule){192, 0};
    must(moa_seq_plan(r.s, rules, NULL, n, 0, NULL, 0, err));
    moa_seq_pages(r.s, &narrow);
    assert_true(narrow.used < dense.used);
    check_held(&r, rules, n);
    assert_int_equal(moa_seq_lost(r.s), 0);
    /* back to dense: per KV head everything between the sink and the first page kept is gone */
    must(moa_seq_plan(r.s, NULL, NULL, n, 0, NULL, 0, err));
    moa_seq_pages(r.s, &wide);
    assert_int_equal(wide.used, narrow.used);
    const int32_t first = (n_past - 128 + 1) / 64 * 64; /* page of the oldest key the next query saw under span 192 */
    assert_int_equal(moa_seq_lost(r.s), (int64_t)r.shape->n_layer * r.shape->n_head_kv * (first - 64));
    assert_true(fabs(moa_seq_kv_density(r.s) - (double)(n_past - (first - 64)) / n_past) < 1e-12);
    moa_seq_reset(r.s);
    assert_int_equal(moa_seq_lost(r.s), 0);
    rig_close(&r);
}

/* moa_engine_need() before, the backend's own count after. */
static void test_need_is_what_is_taken(void **state) {
    (void)state;
    for (int watch = 0; watch < 2; watch++)
        for (int what = 0; what < 3; what++) {
            rig r = rig_open((rig_config){.model = "tiny_qwen2", .engine = {.kv_type = MOA_KV_F16, .chunk = 96}});
            moa_pcg32 g = moa_pcg32_seed(70 + (uint64_t)what, 1);
            const int32_t n = 555, n_prompt = 400;
            int32_t ids[N_MAX];
            moa_rule rules[64];
            moa_memory_need need;
            random_ids(&g, ids, n, r.shape->n_vocab);
            random_rules(&g, rules, r.n_span, what);
            must(moa_engine_need(r.e, rules, n, n_prompt, watch, &need, err));
            must(moa_seq_plan(r.s, rules, NULL, n, watch ? MOA_WATCH_STATS | MOA_WATCH_CAPTURE : 0, NULL, 0, err));
            feed(&r, ids, n_prompt, 0, NULL);
            for (int32_t i = n_prompt; i < n; i++) feed(&r, ids + i, 1, 0, NULL);
            moa_pages p;
            moa_seq_pages(r.s, &p);
            assert_int_equal(need.weights, r.model->weight_bytes);
            assert_int_equal(need.kv, p.pool_bytes);
            assert_int_equal((uint64_t)r.spy->live_bytes, need.workspace + need.kv + need.capture);
            assert_int_equal(moa_engine_device_bytes(r.e), need.weights + need.workspace + need.kv + need.capture);
            assert_int_equal(need.capture > 0, watch);
            rig_close(&r);
        }
}

static void test_narrower_plan_gives_device_memory_back(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = f16});
    moa_pcg32 g = moa_pcg32_seed(7, 1);
    int32_t ids[N_MAX];
    moa_rule rules[64];
    moa_pages dense, narrow;
    random_ids(&g, ids, 600, r.shape->n_vocab);
    random_rules(&g, rules, r.n_span, 2);
    must(moa_seq_plan(r.s, NULL, NULL, 600, 0, NULL, 0, err));
    feed(&r, ids, 600, 0, NULL);
    moa_seq_pages(r.s, &dense);
    moa_seq_reset(r.s);
    must(moa_seq_plan(r.s, rules, NULL, 600, 0, NULL, 0, err));
    feed(&r, ids, 600, 0, NULL);
    moa_seq_pages(r.s, &narrow);
    assert_true(narrow.pool_bytes * 2 < dense.pool_bytes);
    rig_close(&r);
}

/* --- the bookkeeping alone ---------------------------------------------------------------------------------------------------- */

static void test_pages_conserve(void **state) {
    (void)state;
    enum { N = 100, STEPS = 20000 };
    moa_kv_pages p = {0};
    moa_pcg32 g = moa_pcg32_seed(2, 1);
    int32_t uses[3 * N] = {0}, n_used = 0;
    must(moa_kv_pages_grow(&p, N, err));
    for (int step = 0; step < STEPS; step++) {
        const int32_t page = (int32_t)random_below(&g, (uint32_t)p.capacity);
        switch (random_below(&g, 6)) {
        case 0:
        case 1: {
            const int32_t got = moa_kv_pages_take(&p);
            assert_int_equal(got < 0, n_used == p.capacity);
            if (got < 0) break;
            assert_int_equal(uses[got], 0); /* nobody else has it */
            uses[got] = 1;
            n_used++;
            break;
        }
        case 2:
            if (uses[page] == 0) break;
            moa_kv_pages_share(&p, page);
            uses[page]++;
            break;
        case 3:
            if (uses[page] == 0) break;
            moa_kv_pages_drop(&p, page);
            n_used -= --uses[page] == 0;
            break;
        case 4:
            if (uses[page] == 0) break;
            assert_int_equal(moa_kv_pages_retire(&p, page), uses[page] == 1);
            n_used -= --uses[page] == 0;
            if (uses[page] == 0 && random_below(&g, 2)) {
                assert_true(moa_kv_pages_revive(&p, page));
                assert_false(moa_kv_pages_revive(&p, page));
                uses[page] = 1;
                n_used++;
            }
            break;
        default:
            if (random_below(&g, 10) == 0) moa_kv_pages_settle(&p);
            if (step == STEPS / 2) must(moa_kv_pages_grow(&p, 3 * N, err));
        }
        assert_int_equal(p.used, n_used);
    }
    for (int32_t i = 0; i < p.capacity; i++)
        while (uses[i] > 0) moa_kv_pages_drop(&p, i), uses[i]--;
    moa_kv_pages_settle(&p);
    assert_int_equal(p.used, 0);
    assert_int_equal(p.n_free, p.capacity); /* all of them, each once */
    for (int32_t i = 0; i < p.capacity; i++) {
        const int32_t got = moa_kv_pages_take(&p);
        assert_int_equal(uses[got]++, 0);
    }
    moa_kv_pages_close(&p);
}

static void test_retired_pages_go_last_and_oldest_first(void **state) {
    (void)state;
    moa_kv_pages p = {0};
    int32_t page[4];
    must(moa_kv_pages_grow(&p, 4, err));
    for (int i = 0; i < 4; i++) page[i] = moa_kv_pages_take(&p);
    assert_int_equal(moa_kv_pages_take(&p), -1);
    assert_true(moa_kv_pages_retire(&p, page[2]));
    assert_true(moa_kv_pages_retire(&p, page[0]));
    moa_kv_pages_drop(&p, page[3]);
    assert_int_equal(moa_kv_pages_take(&p), page[3]);
    assert_int_equal(moa_kv_pages_take(&p), page[2]);
    assert_false(moa_kv_pages_revive(&p, page[2]));
    assert_true(moa_kv_pages_revive(&p, page[0]));
    assert_int_equal(moa_kv_pages_take(&p), -1);
    assert_int_equal(p.used, 4);
    moa_kv_pages_settle(&p);
    assert_int_equal(moa_kv_pages_take(&p), -1);
    moa_kv_pages_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_held_equals_formula),
        cmocka_unit_test(test_pool_is_exact),
        cmocka_unit_test(test_narrowing_frees_and_widening_counts_lost),
        cmocka_unit_test(test_need_is_what_is_taken),
        cmocka_unit_test(test_narrower_plan_gives_device_memory_back),
        cmocka_unit_test(test_pages_conserve),
        cmocka_unit_test(test_retired_pages_go_last_and_oldest_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
