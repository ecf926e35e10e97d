/* Steady decoding (core/engine/steady.h) and drawn steps in lanes: the same tokens, sequences, pages and statistics as single steps
 * whose logits the host looks at. */
#include "core/engine/steady.h"
#include "engine_fixture.h"

enum { PROMPT = 150, GEN = 170, N = PROMPT + GEN };

static const moa_sampling hows[] = {{.temp = 0, .top_p = 1},
                                    {.temp = .8f, .top_k = 40, .top_p = .95f, .min_p = .05f, .seed = 7},
                                    {.temp = 1.5f, .top_k = 0, .top_p = 1, .seed = 123456789}};

typedef struct pair {
    rig r;
    moa_seq *other; /* steps one by one */
    int32_t ids[N];
    moa_rule rules[64];
    float *logits;
} pair;

static pair open_pair(const char *model, bool fast, bool recording, int watch) {
    pair p = {.r = rig_open((rig_config){.model = model, .fast = fast, .recording = recording,
                                         .engine = {.kv_type = MOA_KV_F32, .chunk = 100}})};
    moa_pcg32 g = moa_pcg32_seed(91, 1);
    random_ids(&g, p.ids, PROMPT, p.r.shape->n_vocab);
    random_rules(&g, p.rules, p.r.n_span, 0);
    must(moa_seq_open(&p.other, p.r.e, err));
    p.logits = take((size_t)p.r.shape->n_vocab, sizeof *p.logits);
    moa_seq *both[] = {p.r.s, p.other};
    for (int i = 0; i < 2; i++) {
        must(moa_seq_plan(both[i], p.rules, NULL, N, watch, NULL, 0, err));
        must(moa_seq_forward(both[i], &(moa_forward){.ids = p.ids, .n = PROMPT, .logits = p.logits}, err));
    }
    return p;
}

static void close_pair(pair *p) {
    moa_seq_close(&p->other);
    free(p->logits);
    rig_close(&p->r);
}

/* what follows id, chosen by the host */
static int32_t step(pair *p, const moa_sampling *how, int32_t id) {
    moa_sampler *s = NULL;
    must(moa_sampler_open(&s, how, p->r.shape->n_vocab, err));
    must(moa_seq_forward(p->other, &(moa_forward){.ids = &id, .n = 1, .logits = p->logits}, err));
    const int32_t next = moa_sampler_next(s, p->logits, moa_seq_n_past(p->other));
    moa_sampler_close(&s);
    return next;
}

static void same_seqs(const pair *p) {
    const int32_t n = moa_seq_n_past(p->other);
    assert_int_equal(moa_seq_n_past(p->r.s), n);
    assert_memory_equal(moa_seq_ids(p->r.s), moa_seq_ids(p->other), (size_t)n * sizeof(int32_t));
    moa_pages pages;
    moa_seq_pages(p->r.s, &pages);
    const size_t cells = (size_t)pages.n_layer * (size_t)pages.n_head_kv * (size_t)pages.max_pages;
    uint8_t *a = take(cells, 1), *b = take(cells, 1);
    moa_seq_page_map(p->r.s, a);
    moa_seq_page_map(p->other, b);
    assert_memory_equal(a, b, cells);
    free(a), free(b);
}

static void check_told(const pair *p, const moa_told *t, int32_t expected) {
    float logprob, entropy;
    moa_top top[MOA_TOP_MAX];
    if (test_device() && t->id != expected) skip(); /* another device's logits: the draw may fall elsewhere */
    assert_int_equal(t->id, expected);
    assert_int_equal(t->pos, moa_seq_n_past(p->r.s));
    moa_logits_describe(p->logits, p->r.shape->n_vocab, t->id, 5, top, &logprob, &entropy);
    const double limit = test_device() ? 2e-2 : 2e-5;
    assert_true(fabs((double)logprob - (double)t->logprob) < limit && fabs((double)entropy - (double)t->entropy) < limit);
    assert_int_equal(t->n_top, 5);
    for (int i = 0; i < 5; i++)
        assert_true(fabs((double)top[i].logprob - (double)t->top[i].logprob) < limit && t->top[i].id >= 0);
    assert_int_equal(t->top[5].id, -1);
}

static void test_same_tokens_as_single_steps(void **state) {
    (void)state;
    for (int k = 0; k < 6; k++) {
        const moa_sampling how = hows[k % 3];
        pair p = open_pair(tiny_models[k % 2], k % 4 == 1, k < 4, 0);
        const moa_steady_config c = {.sampling = how, .n_top = 5};
        moa_steady *d = NULL;
        moa_told told;
        int32_t id = 5;
        must(moa_steady_open(&d, p.r.s, &c, err));
        for (int i = 0; i < GEN; i++) {
            const int32_t next = step(&p, &how, id);
            must(moa_steady_next(d, id, &told, err));
            check_told(&p, &told, next);
            if (i % 31 == 0) same_seqs(&p);
            id = i % 40 == 39 ? (next + 1) % p.r.shape->n_vocab : next; /* now and then another than was chosen */
        }
        same_seqs(&p);
        moa_err e = {0};
        assert_int_equal(moa_steady_next(d, id, NULL, &e), MOA_E_INVALID);
        assert_non_null(strstr(e.text, "reserved"));
        if (k < 4) assert_true(p.r.spy->n_replay > GEN - 10 && p.r.spy->n_replay < 3 * GEN);
        moa_steady_close(&d);
        close_pair(&p);
    }
}

/* An end token makes the device idle; the caller may go on all the same. What was queued in vain is nowhere to be seen. */
static void test_ends_and_what_follows(void **state) {
    (void)state;
    pair p = open_pair("tiny_llama", false, true, MOA_WATCH_STATS);
    int32_t end[64], n_end = 0, id = 5, stopped = 0;
    for (int32_t i = 0; i < 64; i++) end[n_end++] = i * 4; /* a quarter of what is drawn */
    const moa_sampling how = {.temp = 3, .top_p = 1, .seed = 3};
    const moa_steady_config c = {.sampling = how, .n_top = 5, .end = end, .n_end = n_end};
    moa_steady *d = NULL;
    moa_told told;
    must(moa_steady_open(&d, p.r.s, &c, err));
    for (int i = 0; i < 60; i++) {
        const int32_t next = step(&p, &how, id);
        must(moa_steady_next(d, id, &told, err));
        check_told(&p, &told, next);
        stopped += next % 4 == 0;
        id = next;
    }
    assert_true(stopped > 5);
    same_seqs(&p);
    moa_steady_close(&d);
    /* both go on by single steps, and as another steady decode */
    for (int i = 0; i < 5; i++) {
        const int32_t next = step(&p, &how, id);
        must(moa_seq_forward(p.r.s, &(moa_forward){.ids = &id, .n = 1}, err));
        id = next;
    }
    must(moa_steady_open(&d, p.r.s, &c, err));
    const int32_t next = step(&p, &how, id);
    must(moa_steady_next(d, id, &told, err));
    check_told(&p, &told, next);
    moa_steady_close(&d);
    same_seqs(&p);
    moa_head_stats a[64], b[64];
    must(moa_seq_stats(p.r.s, a, err));
    must(moa_seq_stats(p.other, b, err));
    const int64_t n = b[0].n_query, ahead = a[0].n_query - n; /* steps queued for a token that was not taken */
    assert_int_equal(n, PROMPT + 66);
    assert_true(ahead >= 0 && ahead <= 4);
    for (int32_t i = 0; i < p.r.n_span; i++)
        assert_true(fabs((double)a[i].entropy - (double)b[i].entropy) < (ahead ? .1 : 1e-5));
    close_pair(&p);
}

/* watched now and then: the same tokens, and every count of queries says so */
static void test_watched_every_few(void **state) {
    (void)state;
    for (int k = 0; k < 4; k++) {
        const int32_t every = (int32_t[]){1, 4, 16, 7}[k];
        pair p = open_pair(tiny_models[k % 2], false, k != 3, MOA_WATCH_STATS);
        moa_steady *d = NULL;
        moa_told told;
        moa_head_stats a[64], b[64];
        int32_t id = 5, watched = 0;
        must(moa_steady_open(&d, p.r.s, &(moa_steady_config){.sampling = hows[1], .n_top = 5, .stat_every = every}, err));
        for (int i = 0; i < GEN; i++) { /* to the last reserved: nothing is ahead at the end */
            const int32_t next = step(&p, &hows[1], id);
            watched += (PROMPT + i) % every == 0;
            must(moa_steady_next(d, id, &told, err));
            check_told(&p, &told, next);
            id = next;
        }
        moa_steady_close(&d);
        same_seqs(&p);
        must(moa_seq_stats(p.r.s, a, err));
        must(moa_seq_stats(p.other, b, err));
        assert_int_equal(b[0].n_query, N);
        for (int32_t i = 0; i < p.r.n_span; i++) {
            assert_int_equal(a[i].n_query, PROMPT + watched);
            assert_true(fabs((double)a[i].entropy - (double)b[i].entropy) < (every == 1 ? 1e-5 : 1));
        }
        for (int32_t l = 0; l < p.r.shape->n_layer; l++) {
            float *hist = NULL;
            int32_t n_bin, bucket_tok;
            int64_t queries[MOA_HIST_BUCKETS], sum = 0;
            double mass = 0;
            must(moa_seq_hist(p.r.s, l, &hist, &n_bin, &bucket_tok, queries, err));
            for (int i = 0; i < MOA_HIST_BUCKETS; i++) sum += queries[i];
            for (int64_t i = 0; i < (int64_t)p.r.shape->n_head * MOA_HIST_BUCKETS * (1 + n_bin); i++) mass += (double)hist[i];
            assert_int_equal(sum, PROMPT + watched);
            assert_true(fabs(mass / p.r.shape->n_head - (double)sum) < 1e-2);
            free(hist);
        }
        close_pair(&p);
    }
}

static void test_refusals(void **state) {
    (void)state;
    pair p = open_pair("tiny_llama", false, true, 0);
    const moa_steady_config c = {.sampling = hows[0], .n_top = 5};
    moa_steady *d = NULL, *second = NULL;
    moa_err e = {0};
    moa_seq *empty = NULL;
    must(moa_seq_open(&empty, p.r.e, err));
    assert_false(moa_steady_can(empty));
    assert_int_equal(moa_steady_open(&second, empty, &c, &e), MOA_E_INVALID);
    must(moa_steady_open(&d, p.r.s, &c, err));
    assert_int_equal(moa_steady_open(&second, p.r.s, &c, &e), MOA_E_INVALID);
    assert_null(second);
    assert_int_equal(moa_steady_next(d, -1, NULL, &e), MOA_E_INVALID);
    assert_int_equal(moa_steady_next(d, p.r.shape->n_vocab, NULL, &e), MOA_E_INVALID);
    must(moa_steady_next(d, 3, NULL, err));
    assert_int_equal(moa_seq_n_past(p.r.s), PROMPT + 1);
    must(moa_seq_plan(p.r.s, NULL, NULL, N, 0, NULL, 0, err));
    assert_int_equal(moa_steady_next(d, 3, NULL, &e), MOA_E_INVALID);
    assert_non_null(strstr(e.text, "plan"));
    moa_steady_close(&d);
    moa_seq_close(&empty);
    close_pair(&p);
}

/* each call of the backend fails once: the tokens taken so far stay, and the rest comes out the same */
static void test_failures(void **state) {
    (void)state;
    pair p = open_pair("tiny_llama", false, true, MOA_WATCH_STATS);
    const moa_sampling how = hows[1];
    int32_t expected[40], id = 9;
    for (int i = 0; i < 40; i++) expected[i] = id = step(&p, &how, id);
    moa_seq_reset(p.r.s);
    must(moa_seq_forward(p.r.s, &(moa_forward){.ids = p.ids, .n = PROMPT}, err));
    for (long nth = 1; nth < 500; nth += nth < 100 ? EVERY : 13 * EVERY) {
        moa_err e = {0};
        moa_steady *d = NULL;
        moa_seq_reset(p.r.s);
        must(moa_seq_forward(p.r.s, &(moa_forward){.ids = p.ids, .n = PROMPT}, err));
        p.r.spy->n_calls = 0;
        p.r.spy->fail_at = nth;
        p.r.spy->failed = false;
        int done = 0;
        for (int tries = 0; done < 40 && tries < 3; tries++) {
            moa_status s = d ? MOA_OK : moa_steady_open(&d, p.r.s, &(moa_steady_config){.sampling = how, .n_top = 5}, &e);
            while (s == MOA_OK && done < 40) {
                moa_told told;
                s = moa_steady_next(d, done ? expected[done - 1] : 9, &told, &e);
                if (s == MOA_OK) {
                    assert_int_equal(told.id, expected[done]);
                    done++;
                }
            }
            if (s != MOA_OK) assert_true(strlen(e.text) > 5 && p.r.spy->failed);
            assert_int_equal(moa_seq_n_past(p.r.s), PROMPT + done);
        }
        assert_int_equal(done, 40);
        moa_steady_close(&d);
        p.r.spy->fail_at = 0;
    }
    close_pair(&p);
}

/* drawn steps of several sequences: those of each alone, with its own seed */
static void test_lanes_draw(void **state) {
    (void)state;
    pair p = open_pair("tiny_qwen2", true, true, 0);
    const moa_sampling how = {.temp = 1, .top_k = 30, .top_p = .9f, .seed = 40};
    moa_lanes *l = NULL;
    moa_seq *both[2] = {p.other, NULL};
    int32_t ids[2 * 100], made[2], alone[100], id = 4;
    must(moa_seq_open(&both[1], p.r.e, err));
    must(moa_seq_plan(both[1], p.rules, NULL, N, 0, NULL, 0, err));
    must(moa_seq_forward(both[1], &(moa_forward){.ids = p.ids, .n = PROMPT - 20}, err));
    must(moa_lanes_open(&l, p.r.e, &(moa_lanes_config){.seqs = both, .n_seq = 2, .sampling = how}, err));
    for (int i = 0; i < 2; i++) must(moa_lanes_feed(l, i, id, err));
    must(moa_lanes_greedy(l, 100, ids, made, NULL, NULL, err));
    moa_lanes_close(&l);
    moa_sampling second = how;
    second.seed++;
    for (int i = 0; i < 2; i++) {
        moa_steady *d = NULL;
        moa_told told = {.id = 4};
        moa_seq_reset(p.r.s);
        must(moa_seq_forward(p.r.s, &(moa_forward){.ids = p.ids, .n = PROMPT - 20 * i}, err));
        must(moa_steady_open(&d, p.r.s, &(moa_steady_config){.sampling = i ? second : how}, err));
        for (int k = 0; k < 100; k++) {
            must(moa_steady_next(d, told.id, &told, err));
            alone[k] = told.id;
        }
        moa_steady_close(&d);
        assert_int_equal(made[i], 100);
        if (!test_device()) assert_memory_equal(alone, ids + 100 * i, sizeof alone);
    }
    moa_seq_close(&both[1]);
    close_pair(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_tokens_as_single_steps),
                                       cmocka_unit_test(test_ends_and_what_follows), cmocka_unit_test(test_watched_every_few),
                                       cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_failures), cmocka_unit_test(test_lanes_draw)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
