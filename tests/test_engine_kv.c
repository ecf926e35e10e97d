/* The cache's types through the engine: logits beside a brute-force pass that rounds K and V alike, memory beside the formula, chunks,
 * forks, interruptions, maps. What an operation does with a type is test_ops' part. */
#include "engine_fixture.h"

enum { N_MAX = 400 };

static double rms_diff(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sqrt(sum / (double)n);
}

/* Whole pages a chunk, so that no page is seen before its last token is there. */
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
    brute b = brute_run(r.model, ids, n, type, sees_by_plan, &sees, false),
          exact = brute_run(r.model, ids, n, MOA_KV_F32, sees_by_plan, &sees, false);
    float *rows = whole(&r, rules, ids, n, 0);
    const int64_t count = (int64_t)n * r.shape->n_vocab;
    const double d = max_diff(b.logits, rows, count), rms = rms_diff(b.logits, rows, count), lost = rms_diff(exact.logits, rows, count);
    print_message("%s %s %s plan %d N %d: from brute force %.2e at most, %.2e rms; from float32 keys and values %.2e rms\n", model,
                  fast ? "fast" : "reference", moa_kv_type_name(type), what, n, d, rms, lost);
    /* Where a number lies at the edge between two codes, float and double may take different ones: what is left is judged by what the
     * rounding changed. The fast products round activations themselves, a GPU's both operands. */
    const double far = device_is_coarse() ? relative_error(b.logits, rows, count) : d;
    if (type == MOA_KV_F32 && !(far < (device_is_coarse() ? 5e-3 : fast || test_device() ? 2e-2 : 1e-4))) fail_msg("difference %g", far);
    const double part = test_device() ? 2 : fast ? 0.8 : 0.1, rest = device_is_coarse() ? 5e-3 : 0;
    if (type != MOA_KV_F32 && !(rms < part * lost + rest)) fail_msg("%g from brute force, %g from float32", rms, lost);
    free(rows);
    brute_free(&b);
    brute_free(&exact);
    rig_close(&r);
}

static void test_brute_force(void **state) {
    (void)state;
    for (int i = 0; i < MOA_N_KV_TYPE * 4; i += EVERY) {
        const int type = i / 4, m = i / 2 % 2;
        const bool fast = i % 2;
        check_brute(tiny_models[m], fast, (moa_kv_type)type, (fast ? 9 : 5) + (uint64_t)type, fast ? 2 - m : m + 1);
    }
}

/* bytes of 64 tokens of a KV head, said again */
static uint64_t page_of(moa_kv_type type, int32_t d) {
    const uint64_t n = 128 * (uint64_t)d;
    return type == MOA_KV_F32 ? 4 * n : type == MOA_KV_Q8 ? (n + 256 + (uint64_t)d + 15) / 16 * 16 : 2 * n;
}

static void test_memory_is_the_formula(void **state) {
    (void)state;
    for (int type = 0; type < MOA_N_KV_TYPE; type++) {
        rig r = rig_open((rig_config){.model = "tiny_llama", .recording = true, .engine = {.kv_type = (moa_kv_type)type, .chunk = 100}});
        moa_pcg32 g = moa_pcg32_seed(50 + (uint64_t)type, 1);
        int32_t ids[N_MAX];
        moa_rule rules[64];
        moa_memory_need need;
        random_ids(&g, ids, N_MAX, r.shape->n_vocab);
        random_rules(&g, rules, r.n_span, 1 + type % 2);
        const uint64_t page = page_of((moa_kv_type)type, r.shape->d_head);
        assert_int_equal(moa_engine_kv_type(r.e), type);
        must(moa_seq_plan(r.s, rules, NULL, N_MAX, 0, NULL, 0, err));
        must(moa_engine_need(r.e, rules, N_MAX, 300, false, &need, err));
        for (int32_t n = 300; n <= N_MAX; n++) {
            feed(&r, ids + (n == 300 ? 0 : n - 1), n == 300 ? 300 : 1, 0, NULL);
            moa_pages p;
            moa_seq_pages(r.s, &p);
            const moa_kv_bytes formula = moa_kv_formula(r.shape, (moa_kv_type)type, rules, N_MAX, n);
            assert_int_equal(p.page_bytes, page);
            assert_int_equal(p.used_bytes, formula.plan);
            assert_int_equal(p.used_bytes, (uint64_t)p.used * page);
            assert_int_equal(formula.dense, (uint64_t)r.shape->n_layer * (uint64_t)r.shape->n_head_kv * (uint64_t)((n + 63) / 64) * page);
            assert_int_equal(formula.mha, formula.dense / (uint64_t)r.shape->n_head_kv * (uint64_t)r.shape->n_head);
            if (n == N_MAX) assert_int_equal(need.kv, (uint64_t)p.peak * page); /* what was predicted was needed */
        }
        rig_close(&r);
    }
    for (int32_t d = 1; d <= 300; d++)
        for (int type = 0; type < MOA_N_KV_TYPE; type++) {
            assert_int_equal(moa_kv_page_bytes((moa_kv_type)type, d), page_of((moa_kv_type)type, d));
            assert_true(type != MOA_KV_Q8 || moa_kv_page_bytes(MOA_KV_Q8, d) % 16 == 0);
        }
}

/* What a chunk's attention copies: of the layer with the widest head every page that one of its queries sees, by the method's own words. */
static uint64_t copied(const rig *r, const moa_rule *rules, int32_t n_reserved, int32_t n_prompt, int32_t chunk) {
    int64_t most = 0;
    for (int32_t l = 0; l < r->shape->n_layer; l++)
        for (int32_t p = 0; p < n_prompt; p += chunk) {
            const int32_t end = p + chunk < n_prompt ? p + chunk : n_prompt;
            int64_t pages = 0;
            for (int32_t j = 0; j < end; j += 64) {
                bool seen = false;
                for (int32_t h = 0; h < r->shape->n_head && end - p > 1; h++)
                    for (int32_t k = j; k < j + 64 && k < end; k++)
                        seen |= k < 64 || (k > p ? 0 : p - k) < brute_span(rules[l * r->shape->n_head + h], n_reserved) - 64;
                pages += seen;
            }
            if (pages > most) most = pages;
        }
    const uint64_t heads = (uint64_t)r->shape->n_head_kv;
    return most == 0 ? 0 : (heads * (uint64_t)((n_reserved + 63) / 64) * 4 + 255) / 256 * 256 + heads * (uint64_t)most * page_of(MOA_KV_F16, r->shape->d_head);
}

static void test_copies_in_halves_are_foreseen(void **state) {
    (void)state;
    static const int32_t prompts[] = {0, 1, 64, 65, 101, 300, 400};
    for (int type = 0; type < MOA_N_KV_TYPE; type++)
        for (int told = 0; told < 2; told++) {
            rig r = rig_open((rig_config){.model = "tiny_llama", .halves = told, .engine = {.kv_type = (moa_kv_type)type, .chunk = 100}});
            const bool there = told && (type == MOA_KV_BF16 || type == MOA_KV_Q8);
            moa_pcg32 g = moa_pcg32_seed(80 + (uint64_t)type, 1);
            for (int i = 0; i < 7; i++) {
                moa_rule rules[64];
                moa_memory_need need;
                random_rules(&g, rules, r.n_span, i % 3);
                must(moa_engine_need(r.e, rules, N_MAX, prompts[i], false, &need, err));
                if (!test_device()) assert_int_equal(need.passing, there ? copied(&r, rules, N_MAX, prompts[i], 100) : 0);
                if (there && prompts[i] > 1) assert_true(need.passing > 0);
            }
            rig_close(&r);
        }
}

/* Other chunks round alike, but for q8's pages that a query sees before they are full; and never far from float32. */
static void test_chunks(void **state) {
    (void)state;
    static const int32_t chunks[] = {64, 100, 1, 7, 63};
    for (int type = MOA_KV_BF16; type < MOA_N_KV_TYPE; type++) {
        rig r = rig_open((rig_config){.model = "tiny_qwen2", .fast = true, .recording = true,
                                      .engine = {.kv_type = (moa_kv_type)type, .chunk = 256}});
        rig exact = rig_open((rig_config){.model = "tiny_qwen2", .fast = true, .engine = {.kv_type = MOA_KV_F32, .chunk = 256}});
        moa_pcg32 g = moa_pcg32_seed(31, 1);
        int32_t ids[N_MAX];
        moa_rule rules[64];
        random_ids(&g, ids, N_MAX, r.shape->n_vocab);
        random_rules(&g, rules, r.n_span, 2);
        float *one = whole(&r, rules, ids, N_MAX, 0), *f32 = whole(&exact, rules, ids, N_MAX, 0);
        const int64_t count = (int64_t)N_MAX * r.shape->n_vocab;
        const double lost = rms_diff(one, f32, count);
        assert_true(lost > 0);
        for (size_t c = (size_t)type % EVERY; c < sizeof chunks / sizeof *chunks; c += EVERY) {
            float *rows = whole(&r, rules, ids, N_MAX, chunks[c]);
            const double apart = rms_diff(one, rows, count), far = rms_diff(f32, rows, count);
            print_message("%s, chunks of %d: %.2e from one chunk's, %.2e from float32 keys and values\n", moa_kv_type_name((moa_kv_type)type),
                          chunks[c], apart, far);
            if (!(far < 1.5 * lost)) fail_msg("%s, chunks of %d: %g from float32, %g in one chunk", moa_kv_type_name((moa_kv_type)type), chunks[c], far, lost);
            free(rows);
        }
        free(one), free(f32);
        rig_close(&r);
        rig_close(&exact);
    }
}

/* A fork goes on as its origin does, to the bit: what its last page holds was copied, scales and all. */
static void test_fork(void **state) {
    (void)state;
    static const int32_t forks[] = {64, 101, 127, 200};
    for (int type = 0; type < MOA_N_KV_TYPE; type++)
        for (size_t k = 0; k < sizeof forks / sizeof *forks; k++) {
            rig r = rig_open((rig_config){.model = "tiny_llama", .fast = true, .engine = {.kv_type = (moa_kv_type)type, .chunk = 128}});
            moa_seq *other = NULL;
            moa_pcg32 g = moa_pcg32_seed(3 + k, 1);
            const int32_t n = 260, n_vocab = r.shape->n_vocab;
            int32_t ids[N_MAX];
            moa_rule rules[64];
            random_ids(&g, ids, n, n_vocab);
            random_rules(&g, rules, r.n_span, 2);
            must(moa_seq_open(&other, r.e, err));
            must(moa_seq_plan(r.s, rules, NULL, n, 0, NULL, 0, err));
            must(moa_seq_plan(other, rules, NULL, n, 0, NULL, 0, err));
            feed(&r, ids, forks[k], 0, NULL);
            must(moa_seq_fork(other, r.s, err));
            float *a = take((size_t)n_vocab, sizeof *a), *b = take((size_t)n_vocab, sizeof *b);
            for (int32_t i = forks[k]; i < n; i += 3) { /* they write to their last pages by turns */
                const moa_forward f = {.ids = ids + i, .n = n - i < 3 ? n - i : 3, .chunk = 1, .logits = a}, f2 = {.ids = ids + i, .n = f.n, .chunk = 1, .logits = b};
                must(moa_seq_forward(r.s, &f, err));
                must(moa_seq_forward(other, &f2, err));
                assert_memory_equal(a, b, (size_t)n_vocab * sizeof *a);
            }
            free(a), free(b);
            moa_seq_close(&other);
            rig_close(&r);
        }
}

typedef struct stopper {
    int left;
} stopper;
static bool stop_after(void *user) {
    stopper *s = user;
    return s->left-- <= 0;
}

/* A cancelled chunk leaves the tokens before it: the next ones find a page whose exponents may have grown, and are no further from exact
 * than before. The same chunk again gives the same bits. */
static void test_cancelled_chunk(void **state) {
    (void)state;
    for (int type = MOA_KV_BF16; type < MOA_N_KV_TYPE; type++) {
        rig r = rig_open((rig_config){.model = "tiny_llama", .fast = true, .engine = {.kv_type = (moa_kv_type)type, .chunk = 128}});
        rig exact = rig_open((rig_config){.model = "tiny_llama", .fast = true, .engine = {.kv_type = MOA_KV_F32, .chunk = 128}});
        moa_pcg32 g = moa_pcg32_seed(77, 1);
        const int32_t n = 220, n_vocab = r.shape->n_vocab;
        int32_t ids[N_MAX];
        random_ids(&g, ids, n, n_vocab);
        must(moa_seq_plan(r.s, NULL, NULL, n, 0, NULL, 0, err));
        must(moa_seq_plan(exact.s, NULL, NULL, n, 0, NULL, 0, err));
        float *a = take((size_t)n_vocab, sizeof *a), *b = take((size_t)n_vocab, sizeof *b), *c = take((size_t)n_vocab, sizeof *c);
        feed(&r, ids, 90, 0, NULL);
        stopper s = {2};
        const moa_forward cut = {.ids = ids + 90, .n = 100, .cancelled = stop_after, .user = &s, .logits = a};
        assert_int_equal(moa_seq_forward(r.s, &cut, NULL), MOA_E_CANCELLED);
        assert_int_equal(moa_seq_n_past(r.s), 90);
        const moa_forward rest = {.ids = ids + 90, .n = 130, .logits = a}, all = {.ids = ids, .n = n, .logits = c};
        must(moa_seq_forward(r.s, &rest, err));
        must(moa_seq_forward(exact.s, &all, err));
        moa_seq_reset(r.s);
        feed(&r, ids, 90, 0, NULL);
        const moa_forward straight = {.ids = ids + 90, .n = 130, .logits = b};
        must(moa_seq_forward(r.s, &straight, err));
        const double lost = rms_diff(b, c, n_vocab), after = rms_diff(a, c, n_vocab);
        print_message("%s: %.2e from float32 keys and values, after a cancelled chunk %.2e\n", moa_kv_type_name((moa_kv_type)type), lost, after);
        assert_memory_equal(a, b, (size_t)n_vocab * sizeof *a); /* the first layer had stored the same tokens */
        free(a), free(b), free(c);
        rig_close(&r);
        rig_close(&exact);
    }
}

/* A map is of the keys that were held: rows sum to 1 and are those of brute force with the same rounding. */
static void test_map(void **state) {
    (void)state;
    for (int type = 0; type < MOA_N_KV_TYPE; type++) {
        rig r = rig_open((rig_config){.model = "tiny_qwen2", .engine = {.kv_type = (moa_kv_type)type, .chunk = 128}});
        moa_pcg32 g = moa_pcg32_seed(8, 1);
        const int32_t n = 200, side = 200;
        int32_t ids[N_MAX], span[64];
        random_ids(&g, ids, n, r.shape->n_vocab);
        for (int32_t i = 0; i < r.n_span; i++) span[i] = MOA_N_MAX;
        plan_sees sees = {span, r.shape->n_head};
        brute b = brute_run(r.model, ids, n, (moa_kv_type)type, sees_by_plan, &sees, true);
        must(moa_seq_plan(r.s, NULL, NULL, n, MOA_WATCH_CAPTURE, NULL, 0, err));
        feed(&r, ids, n, 0, NULL);
        float *mass = take((size_t)side * (size_t)side, sizeof *mass);
        double worst = 0;
        for (int32_t l = 0; l < r.shape->n_layer; l++)
            for (int32_t h = 0; h < r.shape->n_head; h++) {
                const moa_map_request q = {.layer = l, .head = h, .q1 = n, .k1 = n, .rows = side, .cols = side};
                must(moa_seq_map(r.s, &q, mass, NULL, NULL, err));
                for (int32_t i = 0; i < n; i++) {
                    double sum = 0;
                    for (int32_t j = 0; j < n; j++) {
                        const double want = b.a[(((int64_t)l * r.shape->n_head + h) * n + i) * n + j], got = (double)mass[i * side + j];
                        sum += got;
                        worst = fmax(worst, fabs(want - got));
                    }
                    assert_true(fabs(sum - 1) < 1e-4);
                }
            }
        print_message("%s: map %.2e from brute force\n", moa_kv_type_name((moa_kv_type)type), worst);
        assert_true(worst < (type == MOA_KV_Q8 ? 5e-3 : 2e-3) || test_device());
        free(mass);
        brute_free(&b);
        rig_close(&r);
    }
}

/* random pages hold numbers of every type, of about one size */
static void test_random_pages(void **state) {
    (void)state;
    for (int type = 0; type < MOA_N_KV_TYPE; type++) {
        rig r = rig_open((rig_config){.model = "tiny_llama", .engine = {.kv_type = (moa_kv_type)type}});
        must(moa_seq_plan(r.s, NULL, NULL, 300, 0, NULL, 0, err));
        must(moa_seq_fill_random(r.s, 250, 5, err));
        float *logits = take((size_t)r.shape->n_vocab, sizeof *logits);
        const moa_forward f = {.ids = (int32_t[]){1, 2, 3}, .n = 3, .logits = logits};
        must(moa_seq_forward(r.s, &f, err));
        for (int32_t i = 0; i < r.shape->n_vocab; i++) assert_true(isfinite(logits[i]));
        free(logits);
        rig_close(&r);
    }
}

static void test_names(void **state) {
    (void)state;
    moa_kv_type t = MOA_KV_F32;
    for (int i = 0; i < MOA_N_KV_TYPE; i++) {
        assert_true(moa_kv_type_find(moa_kv_type_name((moa_kv_type)i), &t));
        assert_int_equal(t, i);
    }
    assert_false(moa_kv_type_find("", &t));
    assert_false(moa_kv_type_find("q8_0", &t));
    assert_false(moa_kv_type_find("F16", &t));
    assert_string_equal(moa_kv_type_name(MOA_N_KV_TYPE), "?");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),        cmocka_unit_test(test_memory_is_the_formula),
        cmocka_unit_test(test_brute_force),  cmocka_unit_test(test_chunks),
        cmocka_unit_test(test_fork),         cmocka_unit_test(test_cancelled_chunk),
        cmocka_unit_test(test_map),          cmocka_unit_test(test_random_pages),
        cmocka_unit_test(test_copies_in_halves_are_foreseen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
