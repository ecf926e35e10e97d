/* Every call of the backend that can fail is made to fail once, each in turn: a clean error with a sentence, nothing leaked, and
 * the engine usable: the work is taken up where the sequence stands and ends with the same logits. Then every allocation of
 * the host likewise. */
#include "engine_fixture.h"

/* --- the host's allocations: counted, and one of them refused ------------------------------------------------------------------ */

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
enum { CAN_REFUSE = 1 };
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static _Atomic long n_asked, refuse_at, n_live; /* refuse_at: -1 when not counting */

static bool refused(void) { return refuse_at >= 0 && ++n_asked == refuse_at; }
static void *counted(void *p) {
    if (p) n_live++;
    return p;
}
void *malloc(size_t n) { return refused() ? NULL : counted(__libc_malloc(n)); }
void *calloc(size_t n, size_t each) { return refused() ? NULL : counted(__libc_calloc(n, each)); }
void *aligned_alloc(size_t align, size_t n) { return refused() ? NULL : counted(__libc_memalign(align, n)); }
void *realloc(void *old, size_t n) {
    if (refused()) return NULL;
    void *p = __libc_realloc(old, n);
    if (!old) (void)counted(p);
    return p;
}
void free(void *p) {
    if (p) n_live--;
    __libc_free(p);
}
#else
enum { CAN_REFUSE = 0 };
static long n_asked, refuse_at, n_live;
#endif

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
    long n = 1, n_lost = 0, n_tried = 0;
    for (; converse(&w, n); n += EVERY) {
        n_tried++;
        n_lost += w.lost;
        if (w.lost || w.n_failures == 0) continue; /* 0: opening failed, or a recording was given up */
        const double d = max_diff(expected, w.last, n_vocab);
        if (d > 1e-4) fail_msg("call %ld failed once: the result differs by %g", n, d);
        assert_true(max_diff(map, w.map, 100) < 1e-3);
    }
    print_message("%ld calls, one in %d failed in turn; after %ld of those keys were lost and counted\n", n - 1, (int)EVERY, n_lost);
    assert_true(n > 300);
    assert_true(n_lost < n_tried / 2);
    free(expected);
    finish(&w);
}

/* --- the same with the host's memory -------------------------------------------------------------------------------------------- */

static bool never(void *user) {
    (void)user;
    return false;
}

/* a short conversation on the plain backend, up to the first refusal */
static moa_status short_conversation(work *w, moa_err *err) {
    const moa_backend_config config = {.n_threads = 1, .reference = true};
    const moa_engine_config engine = {.chunk = 32};
    const int both = MOA_WATCH_STATS | MOA_WATCH_CAPTURE;
    moa_backend *b = NULL;
    moa_engine *e = NULL;
    moa_run_reference keep = {0};
    moa_run_result result;
    moa_memory_need need;
    moa_status s;
    MOA_TRY(moa_cpu_open(&b, &config, err));
    MOA_TRY(moa_engine_open(&e, w->r.model, b, &engine, NULL, NULL, err));
    MOA_TRY(moa_seq_open(&w->r.s, e, err));
    MOA_TRY(moa_engine_need(e, w->rules1, 60, 30, true, &need, err));
    const moa_run_config c = {.ids = w->ids, .n_ids = 40, .n_gen = 2, .rules = w->rules1, .watch = both, .keep = &keep,
                              .sampling = {.temp = 1, .top_p = 1}, .each_logits = look, .cancelled = never, .ignore_end = true};
    MOA_TRY(moa_run(w->r.s, &c, &result, err));
    MOA_TRY(moa_seq_plan(w->r.s, w->rules2, w->rules1, 60, both, NULL, 0, err));
    MOA_TRY(moa_seq_forward(w->r.s, &(moa_forward){.ids = w->ids, .n = 3, .logits = w->last}, err));
    MOA_TRY(moa_seq_map(w->r.s, &(moa_map_request){.q1 = 40, .k1 = 40, .rows = 10, .cols = 10}, w->map, NULL, NULL, err));
    float *hist = NULL;
    int32_t n_bin, bucket_tok;
    int64_t queries[MOA_HIST_BUCKETS];
    MOA_TRY(moa_seq_hist(w->r.s, 1, &hist, &n_bin, &bucket_tok, queries, err));
    free(hist);
out:
    moa_run_reference_free(&keep);
    moa_seq_close(&w->r.s);
    moa_engine_close(&e);
    return s;
}

static void test_every_host_allocation_fails_once(void **state) {
    (void)state;
    if (!CAN_REFUSE || test_device()) {
        print_message("skipped: a sanitizer's allocator or a driver's threads would be counted with ours\n");
        skip();
    }
    work w;
    prepare(&w);
    must(short_conversation(&w, err)); /* whatever is allocated once in a process */
    long n = 1, n_unneeded = 0;
    for (;; n++) {
        moa_err e = {0};
        const long live = n_live;
        n_asked = 0;
        refuse_at = n;
        const moa_status s = short_conversation(&w, &e);
        const bool reached = n_asked >= n;
        refuse_at = -1;
        if (n_live != live) fail_msg("allocation %ld refused: %ld blocks leaked (%s)", n, (long)n_live - live, e.text);
        if (!reached) break;
        /* the C library's qsort asks for a buffer and does without: once a token sampled */
        n_unneeded += s == MOA_OK;
        if (s == MOA_OK) continue;
        if (s != MOA_E_MEMORY) fail_msg("allocation %ld refused: status %d, %s", n, (int)s, e.text);
        assert_true(strlen(e.text) > 5);
    }
    print_message("%ld allocations refused in turn\n", n - 1);
    assert_true(n_unneeded <= 2);
    assert_true(n > 100);
    finish(&w);
}

int main(void) {
    refuse_at = -1;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_backend_call_fails_once),
                                       cmocka_unit_test(test_every_host_allocation_fails_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
