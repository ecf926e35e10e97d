/* Every call of the backend that can fail is made to fail once, each in turn: a clean error with a sentence, nothing leaked, and
 * the engine usable: the work is taken up where the sequence stands and ends with the same logits. */
#include "engine_fixture.h"

enum { N1 = 150, N2 = 260, PROMPT = 130 };

typedef struct work {
    rig r;
    int32_t ids[N2];
    moa_rule rules1[64], rules2[64];
    float *last, *map;
    bool lost; /* keys were lost on the way: the result may differ */
    int n_failures; /* steps that had to be repeated */
} work;

/* The steps of a conversation. Each can be repeated after it has failed. */
static moa_status step_plan1(work *w, moa_err *err) {
    return moa_seq_plan(w->r.s, w->rules1, w->rules2, N1, MOA_WATCH_STATS | MOA_WATCH_CAPTURE, NULL, 0, err);
}
static moa_status step_plan2(work *w, moa_err *err) {
    return moa_seq_plan(w->r.s, w->rules2, w->rules1, N2, MOA_WATCH_STATS | MOA_WATCH_CAPTURE, NULL, 0, err);
}
static bool look(void *user, int32_t pos, const float *logits) {
    (void)user, (void)pos;
    return isfinite((double)logits[0]);
}
/* feeds up to token `to`, `each` at a time */
static moa_status feed_to(work *w, int32_t to, int32_t each, bool rows, moa_err *err) {
    moa_status s = MOA_OK;
    while (s == MOA_OK && moa_seq_n_past(w->r.s) < to) {
        const int32_t at = moa_seq_n_past(w->r.s), n = to - at < each ? to - at : each;
        s = moa_seq_forward(w->r.s, &(moa_forward){.ids = w->ids + at, .n = n, .logits = w->last, .each_logits = rows ? look : NULL}, err);
    }
    return s;
}
static moa_status step_prefill(work *w, moa_err *err) { return feed_to(w, PROMPT, PROMPT, true, err); }
static moa_status step_decode(work *w, moa_err *err) { return feed_to(w, PROMPT + 5, 1, false, err); }
static moa_status step_prefill2(work *w, moa_err *err) { return feed_to(w, N2 - 6, 100, false, err); }
static moa_status step_decode2(work *w, moa_err *err) { return feed_to(w, N2, 1, false, err); }
static moa_status step_map(work *w, moa_err *err) {
    float stat[10 * MOA_N_STAT];
    return moa_seq_map(w->r.s, &(moa_map_request){.layer = 1, .head = 2, .q1 = N2, .k1 = N2, .rows = 10, .cols = 10}, w->map, w->map + 100,
                       stat, err);
}
static moa_status step_hist(work *w, moa_err *err) {
    float *hist = NULL;
    int32_t n_bin, bucket_tok;
    int64_t queries[MOA_HIST_BUCKETS], sum = 0;
    const moa_status s = moa_seq_hist(w->r.s, 1, &hist, &n_bin, &bucket_tok, queries, err);
    if (s != MOA_OK) return s;
    /* also after failures: mass and queries speak of the same tokens */
    double mass = 0;
    for (int32_t i = 0; i < w->r.shape->n_head * MOA_HIST_BUCKETS * (1 + n_bin); i++) mass += (double)hist[i];
    for (int b = 0; b < MOA_HIST_BUCKETS; b++) sum += queries[b];
    assert_true(fabs(mass / w->r.shape->n_head - (double)sum) < 1e-2);
    free(hist);
    return MOA_OK;
}

static moa_status (*const steps[])(work *, moa_err *) = {step_plan1,    step_prefill, step_decode, step_plan2,
                                                         step_prefill2, step_decode2, step_map,    step_hist};

/* One conversation in which the nth fallible call fails (0: none). Returns whether that call was reached. */
static bool converse(work *w, long nth) {
    moa_err e = {0};
    moa_backend *backend = spy_open(true, true);
    w->r.spy = spy_of(backend);
    w->r.spy->fail_at = nth;
    w->lost = false;
    w->n_failures = 0;
    const moa_engine_config config = {.kv_type = MOA_KV_F32, .chunk = 64};
    moa_status s = moa_engine_open(&w->r.e, w->r.model, backend, &config, NULL, NULL, &e);
    if (s != MOA_OK) {
        assert_null(w->r.e);
        assert_true(strlen(e.text) > 5);
        assert_int_equal(spy_left.live, 0);
        assert_int_equal(spy_left.live_weights, 0);
        return true;
    }
    must(moa_seq_open(&w->r.s, w->r.e, err));
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        s = steps[i](w, &e);
        if (s == MOA_OK) continue;
        w->n_failures++;
        assert_true(w->r.spy->failed);
        assert_true(strlen(e.text) > 5);
        w->lost = w->lost || moa_seq_lost(w->r.s) > 0;
        moa_err again = {0};
        if (steps[i](w, &again) != MOA_OK) fail_msg("call %ld, step %zu: not usable after the failure: %s", nth, i, again.text);
    }
    const bool reached = w->r.spy->failed;
    if (!reached) assert_true(w->r.spy->n_replay > 0);
    moa_pages p;
    moa_seq_pages(w->r.s, &p);
    assert_true(p.used_bytes <= moa_kv_formula(w->r.shape, MOA_KV_F32, w->rules2, N2, N2).plan);
    if (!w->lost) assert_int_equal(p.used_bytes, moa_kv_formula(w->r.shape, MOA_KV_F32, w->rules2, N2, N2).plan);
    moa_seq_close(&w->r.s);
    moa_engine_close(&w->r.e);
    assert_int_equal(spy_left.live, 0);
    assert_int_equal(spy_left.live_weights, 0);
    assert_int_equal(spy_left.live_recordings, 0);
    return reached;
}

static void prepare(work *w) {
    moa_pcg32 g = moa_pcg32_seed(17, 1);
    *w = (work){.r = {.model = open_model("tiny_llama")}};
    w->r.shape = &w->r.model->shape;
    w->r.n_span = w->r.shape->n_layer * w->r.shape->n_head;
    w->last = take((size_t)w->r.shape->n_vocab, sizeof *w->last);
    w->map = take(200, sizeof *w->map);
    random_ids(&g, w->ids, N2, w->r.shape->n_vocab);
    random_rules(&g, w->rules1, w->r.n_span, 2); /* windows that drop pages within the first turn */
    random_rules(&g, w->rules2, w->r.n_span, 2);
    w->rules2[7] = (moa_rule){192, 0};
    w->rules1[7] = (moa_rule){192, 0};
}

static void finish(work *w) {
    free(w->last), free(w->map);
    moa_model_close(&w->r.model);
}

static void test_every_backend_call_fails_once(void **state) {
    (void)state;
    work w;
    prepare(&w);
    const int32_t n_vocab = w.r.shape->n_vocab;
    float *expected = take((size_t)n_vocab, sizeof *expected), map[200];
    assert_false(converse(&w, 0));
    assert_int_equal(w.n_failures, 0);
    memcpy(expected, w.last, (size_t)n_vocab * sizeof *expected);
    memcpy(map, w.map, sizeof map);
    long n = 1, n_lost = 0;
    for (; converse(&w, n); n++) {
        n_lost += w.lost;
        if (w.lost || w.n_failures == 0) continue; /* 0: opening failed, or a recording was given up */
        const double d = max_diff(expected, w.last, n_vocab);
        if (d > 1e-4) fail_msg("call %ld failed once: the result differs by %g", n, d);
        assert_true(max_diff(map, w.map, 100) < 1e-3);
    }
    print_message("%ld calls failed in turn; after %ld of them keys were lost and counted\n", n - 1, n_lost);
    assert_true(n > 300);
    assert_true(n_lost < n / 2);
    free(expected);
    finish(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_backend_call_fails_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
