/* Lanes: several sequences decoded in step give what each gives alone.
 *
 *   greedy     batches of 1, 3, 8 with prompts from 1 to 300 tokens, other plans and limits each: ids against moa_run one by one,
 *              on the double-accumulating reference, where a row's sums do not depend on the batch. With recording and without
 *   logits     a step's logits against one by one, on the fast operations too, within rounding
 *   end        an end token idles its lane, in the middle of a look, and the others go on
 *   pages      after decoding in lanes the pages held are what the formula says; all go back
 *   fork       a forked sequence goes on like its origin, which is not disturbed
 *   fill       random tokens: the pages of a prefill, finite logits
 *   refusals   plans changed meanwhile, lost keys, watched sequences, ids outside */
#include "engine_fixture.h"

enum { MOST = 8, GEN = 100 };

typedef struct crew {
    rig r;
    moa_seq *seqs[MOST];
    int32_t n, n_prompt[MOST], n_reserved[MOST];
    int32_t *ids[MOST];
    moa_rule *rules[MOST];
    int32_t first[MOST]; /* what the prompt's logits choose */
} crew;

static const int32_t lengths[MOST] = {70, 1, 300, 64, 129, 5, 200, 63};

static int32_t best_of(const float *x, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static void prefill(crew *c, int32_t i) {
    float *logits = take((size_t)c->r.shape->n_vocab, sizeof *logits);
    must(moa_seq_plan(c->seqs[i], c->rules[i], NULL, c->n_reserved[i], 0, NULL, 0, err));
    const moa_forward f = {.ids = c->ids[i], .n = c->n_prompt[i], .logits = logits};
    must(moa_seq_forward(c->seqs[i], &f, err));
    c->first[i] = best_of(logits, c->r.shape->n_vocab);
    free(logits);
}

static crew crew_open(rig_config config, int32_t n, uint64_t seed) {
    crew c = {.r = rig_open(config), .n = n};
    moa_pcg32 g = moa_pcg32_seed(seed, 5);
    for (int32_t i = 0; i < n; i++) {
        must(moa_seq_open(&c.seqs[i], c.r.e, err));
        c.n_prompt[i] = lengths[i];
        c.n_reserved[i] = lengths[i] + GEN + 10 * i;
        c.ids[i] = take((size_t)lengths[i], sizeof *c.ids[i]);
        c.rules[i] = take((size_t)c.r.n_span, sizeof *c.rules[i]);
        random_ids(&g, c.ids[i], lengths[i], c.r.shape->n_vocab);
        random_rules(&g, c.rules[i], c.r.n_span, i % 3);
        prefill(&c, i);
    }
    return c;
}

static void crew_close(crew *c) {
    for (int32_t i = 0; i < c->n; i++) {
        moa_seq_close(&c->seqs[i]);
        free(c->ids[i]);
        free(c->rules[i]);
    }
    rig_close(&c->r);
}

/* n greedy ids after the prompt, by one sequence alone */
static void alone(crew *c, int32_t i, int32_t n, int32_t *out) {
    const int32_t n_vocab = c->r.shape->n_vocab;
    float *logits = take((size_t)n_vocab, sizeof *logits);
    int32_t id = 0;
    moa_seq_reset(c->r.s);
    must(moa_seq_plan(c->r.s, c->rules[i], NULL, c->n_reserved[i], 0, NULL, 0, err));
    moa_forward f = {.ids = c->ids[i], .n = c->n_prompt[i], .logits = logits};
    for (int32_t k = 0; k < n; k++) {
        must(moa_seq_forward(c->r.s, &f, err));
        out[k] = id = best_of(logits, n_vocab);
        f.ids = &id;
        f.n = 1;
    }
    moa_seq_reset(c->r.s);
    free(logits);
}

/* The reference sums a row alike in every batch, so its ids are equal. A GPU has other kernels for other batches: there ids may part
 * where two logits are as good as equal, and what follows then is another text. */
static void same_ids(crew *c, int32_t i, const int32_t *got, const int32_t *expected, int32_t n) {
    const int32_t n_vocab = c->r.shape->n_vocab;
    int32_t k = 0;
    while (k < n && got[k] == expected[k])
        k++;
    if (k == n) return;
    if (!test_device())
        fail_msg("sequence %d: id %d of %d is %d, alone it is %d", i, k, n, got[k], expected[k]);
    float *logits = take((size_t)n_vocab, sizeof *logits);
    const moa_forward prompt = {.ids = c->ids[i], .n = c->n_prompt[i]},
                      first = {.ids = &c->first[i], .n = 1, .logits = logits};
    moa_seq_reset(c->r.s);
    must(moa_seq_plan(c->r.s, c->rules[i], NULL, c->n_reserved[i], 0, NULL, 0, err));
    must(moa_seq_forward(c->r.s, &prompt, err));
    must(moa_seq_forward(c->r.s, &first, err));
    for (int32_t at = 0; at < k; at++)
        must(moa_seq_forward(c->r.s, &(moa_forward){.ids = &expected[at], .n = 1, .logits = logits}, err));
    const double gap = fabs((double)logits[got[k]] - (double)logits[expected[k]]);
    print_message("sequence %d parts at id %d of %d, logits %g apart\n", i, k, n, gap);
    assert_true(gap < 2e-2);
    moa_seq_reset(c->r.s);
    free(logits);
}

static moa_lanes *lanes_of(crew *c, const int32_t *end, int32_t n_end) {
    moa_lanes *l = NULL;
    const moa_lanes_config config = {.seqs = c->seqs, .n_seq = c->n, .end = end, .n_end = n_end};
    must(moa_lanes_open(&l, c->r.e, &config, err));
    return l;
}

static void feed_first(crew *c, moa_lanes *l) {
    for (int32_t i = 0; i < c->n; i++)
        must(moa_lanes_feed(l, i, c->first[i], err));
}

static void check_pages(const crew *c) {
    int64_t held = 0;
    moa_pages pages;
    for (int32_t i = 0; i < c->n; i++) {
        const moa_kv_bytes kv =
            moa_kv_formula(c->r.shape, MOA_KV_F16, c->rules[i], c->n_reserved[i], moa_seq_n_past(c->seqs[i]));
        moa_seq_pages(c->seqs[i], &pages);
        held += (int64_t)(kv.plan / pages.page_bytes);
    }
    moa_seq_pages(c->seqs[0], &pages);
    /* at most one page per KV head was taken ahead: sequences that are full or at a border have none */
    assert_true(pages.used >= held);
    assert_true(pages.used <= held + (int64_t)c->n * c->r.shape->n_layer * c->r.shape->n_head_kv);
}

/* --- greedy ------------------------------------------------------------------------------------------------------------------ */

static void same_tokens(rig_config config, int32_t n, uint64_t seed) {
    crew c = crew_open(config, n, seed);
    int32_t expected[GEN], *ids = take((size_t)n * GEN, sizeof *ids), made[MOST];
    moa_lanes *l = lanes_of(&c, NULL, 0);
    feed_first(&c, l);
    /* in three calls: 1, 69 (over a look's end), the rest */
    static const int32_t parts[] = {1, 69, 29};
    int32_t done = 0;
    int32_t *all = take((size_t)n * GEN, sizeof *all);
    for (int p = 0; p < 3; p++) {
        must(moa_lanes_greedy(l, parts[p], ids, made, NULL, NULL, err));
        for (int32_t i = 0; i < n; i++) {
            assert_int_equal(made[i], parts[p]);
            memcpy(all + i * GEN + done, ids + i * parts[p], (size_t)parts[p] * sizeof *ids);
        }
        done += parts[p];
        check_pages(&c);
    }
    for (int32_t i = 0; i < n; i++) {
        alone(&c, i, GEN, expected);
        assert_int_equal(expected[0], c.first[i]);
        same_ids(&c, i, all + i * GEN, expected + 1, done);
        assert_int_equal(moa_seq_n_past(c.seqs[i]), lengths[i] + done);
        const int32_t *held = moa_seq_ids(c.seqs[i]);
        assert_memory_equal(held, c.ids[i], (size_t)lengths[i] * sizeof *held);
        assert_int_equal(held[lengths[i]], c.first[i]);
        assert_memory_equal(held + lengths[i] + 1, all + i * GEN, (size_t)(done - 1) * sizeof *held);
    }
    if (config.recording) assert_true(c.r.spy->n_replay > 0);
    moa_lanes_close(&l);
    free(ids);
    free(all);
    crew_close(&c);
}

static void test_greedy(void **state) {
    (void)state;
    static const int32_t sizes[] = {1, 3, 8};
    for (int m = 0; m < 2; m++)
        for (int k = 0; k < 3; k++)
            if ((m * 3 + k) % EVERY == 0 || EVERY == 1)
                same_tokens((rig_config){.model = tiny_models[m], .recording = k != 1}, sizes[k],
                            100 + (uint64_t)k);
}

static void test_greedy_small_chunk(void **state) {
    (void)state;
    same_tokens((rig_config){.model = "tiny_llama", .recording = true, .engine = {.chunk = 16}}, 3, 7);
}

/* a lane that stops at its limit while others go on; and none beyond */
static void test_limit(void **state) {
    (void)state;
    crew c = crew_open((rig_config){.model = "tiny_llama", .recording = true}, 3, 11);
    int32_t *ids = take(3 * 200, sizeof *ids), made[3], expected[GEN];
    moa_lanes *l = lanes_of(&c, NULL, 0);
    feed_first(&c, l);
    must(moa_lanes_greedy(l, 200, ids, made, NULL, NULL, err));
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(made[i], GEN + 10 * i);
        assert_int_equal(moa_seq_n_past(c.seqs[i]), c.n_reserved[i]);
        assert_false(moa_lanes_active(l, i));
        alone(&c, i, GEN, expected);
        same_ids(&c, i, ids + i * 200, expected + 1, GEN - 1);
        assert_int_equal(moa_lanes_feed(l, i, 1, NULL), MOA_E_INVALID);
    }
    moa_lanes_close(&l);
    free(ids);
    crew_close(&c);
}

static void test_end(void **state) {
    (void)state;
    const rig_config config = {.model = "tiny_qwen2", .recording = true};
    int32_t expected[3][GEN], *ids = take(3 * GEN, sizeof *ids), made[3];
    crew c = crew_open(config, 3, 13); /* the same without ends */
    moa_lanes *l = lanes_of(&c, NULL, 0);
    feed_first(&c, l);
    must(moa_lanes_greedy(l, GEN - 1, ids, made, NULL, NULL, err));
    for (int32_t i = 0; i < 3; i++) {
        expected[i][0] = c.first[i];
        memcpy(expected[i] + 1, ids + i * (GEN - 1), (GEN - 1) * sizeof *ids);
    }
    moa_lanes_close(&l);
    crew_close(&c);
    c = crew_open(config, 3, 13);
    const int32_t end[] = {c.r.shape->n_vocab - 1, expected[1][20]};
    l = lanes_of(&c, end, 2);
    feed_first(&c, l);
    must(moa_lanes_greedy(l, GEN - 1, ids, made, NULL, NULL, err));
    for (int32_t i = 0; i < 3; i++) {
        int32_t n = 1;
        while (n < GEN && expected[i][n] != end[0] && expected[i][n] != end[1])
            n++;
        const int32_t want = n < GEN ? n : GEN - 1;
        assert_int_equal(made[i], want);
        assert_memory_equal(ids + i * (GEN - 1), expected[i] + 1, (size_t)want * sizeof *ids);
        assert_int_equal(moa_lanes_active(l, i), want == GEN - 1 && n >= GEN);
        assert_int_equal(moa_seq_n_past(c.seqs[i]), lengths[i] + want);
    }
    assert_true(made[1] <= 20);
    moa_lanes_close(&l);
    free(ids);
    crew_close(&c);
}

/* --- logits ------------------------------------------------------------------------------------------------------------------- */

static void test_logits(void **state) {
    (void)state;
    for (int fast = 0; fast < 2; fast++) {
        crew c = crew_open((rig_config){.model = "tiny_qwen2", .fast = fast, .recording = true}, 8, 17);
        const int32_t n_vocab = c.r.shape->n_vocab;
        float *rows = take((size_t)(MOST * n_vocab), sizeof *rows),
              *single = take((size_t)n_vocab, sizeof *single);
        moa_lanes *l = lanes_of(&c, NULL, 0);
        for (int32_t i = 0; i < 8; i++)
            if (i != 5) must(moa_lanes_feed(l, i, 3 + i, err));
        must(moa_lanes_step(l, rows, err));
        for (int32_t i = 0; i < 8; i++) {
            assert_false(moa_lanes_active(l, i));
            assert_int_equal(moa_seq_n_past(c.seqs[i]), lengths[i] + (i != 5));
            if (i == 5) continue;
            const int32_t id = 3 + i;
            const moa_forward prompt = {.ids = c.ids[i], .n = lengths[i]},
                              step = {.ids = &id, .n = 1, .logits = single};
            moa_seq_reset(c.r.s);
            must(moa_seq_plan(c.r.s, c.rules[i], NULL, c.n_reserved[i], 0, NULL, 0, err));
            must(moa_seq_forward(c.r.s, &prompt, err));
            must(moa_seq_forward(c.r.s, &step, err));
            const double d = max_diff(rows + (int64_t)i * n_vocab, single, n_vocab);
            if (fast || test_device())
                assert_true(d < 2e-2);
            else
                assert_true(d == 0);
        }
        moa_lanes_close(&l);
        /* and a sequence goes on alone after the lanes, from the very same state */
        const int32_t next = 9;
        const moa_forward f = {.ids = &next, .n = 1, .logits = single};
        must(moa_seq_forward(c.seqs[7], &f, err));
        must(moa_seq_forward(c.r.s, &f, err));
        assert_int_equal(moa_seq_n_past(c.seqs[7]), moa_seq_n_past(c.r.s));
        free(rows);
        free(single);
        crew_close(&c);
    }
}

/* --- fork, fill ---------------------------------------------------------------------------------------------------------------- */

static void test_fork(void **state) {
    (void)state;
    for (int32_t which = 0; which < 4;
         which++) { /* 70, 1, 300 and 64 tokens: with an unfinished page and without */
        crew c = crew_open((rig_config){.model = "tiny_llama"}, which + 1, 19);
        int32_t expected[GEN], *ids = take(2 * GEN, sizeof *ids), made[2];
        moa_pages before, after;
        moa_seq *copy = NULL;
        moa_lanes *l = NULL;
        moa_seq_pages(c.seqs[which], &before);
        must(moa_seq_open(&copy, c.r.e, err));
        must(moa_seq_plan(copy, c.rules[which], NULL, c.n_reserved[which], 0, NULL, 0, err));
        must(moa_seq_fork(copy, c.seqs[which], err));
        moa_seq_pages(copy, &after);
        const int64_t n_row = (int64_t)c.r.shape->n_layer * c.r.shape->n_head_kv;
        assert_int_equal(after.used - before.used, lengths[which] % 64 ? n_row : 0);
        moa_seq *pair[] = {copy, c.seqs[which]};
        must(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = pair, .n_seq = 2}, err));
        /* one goes its own way: the other must not notice */
        must(moa_lanes_feed(l, 0, (c.first[which] + 1) % c.r.shape->n_vocab, err));
        must(moa_lanes_feed(l, 1, c.first[which], err));
        must(moa_lanes_greedy(l, GEN - 1, ids, made, NULL, NULL, err));
        moa_lanes_close(&l);
        alone(&c, which, GEN, expected);
        same_ids(&c, which, ids + (GEN - 1), expected + 1, GEN - 1);
        assert_memory_not_equal(ids, expected + 1, (GEN - 1) * sizeof *ids);
        moa_seq_reset(copy);
        must(moa_seq_plan(copy, NULL, NULL, c.n_reserved[which] + 1, 0, NULL, 0, err));
        assert_int_equal(moa_seq_fork(copy, c.seqs[which], NULL), MOA_E_INVALID);
        moa_seq_close(&copy);
        free(ids);
        crew_close(&c);
    }
}

static void test_fill(void **state) {
    (void)state;
    for (int type = 0; type < 2; type++) {
        crew c = crew_open(
            (rig_config){.model = "tiny_llama", .engine = {.kv_type = type ? MOA_KV_F32 : MOA_KV_F16}}, 3,
            23);
        const int32_t n_vocab = c.r.shape->n_vocab;
        float *rows = take((size_t)(3 * n_vocab), sizeof *rows);
        for (int32_t i = 0; i < 3; i++)
            moa_seq_reset(c.seqs[i]);
        must(moa_engine_hold(c.r.e, c.seqs, 3, err));
        moa_pages held, now;
        moa_seq_pages(c.seqs[0], &held);
        for (int32_t i = 0; i < 3; i++) {
            must(moa_seq_fill_random(c.seqs[i], c.n_reserved[i] - 70, 1 + (uint64_t)i, err));
            assert_int_equal(moa_seq_n_past(c.seqs[i]), c.n_reserved[i] - 70);
            assert_int_equal(moa_seq_lost(c.seqs[i]), 0);
        }
        moa_seq_pages(c.seqs[0], &now);
        int64_t want = 0;
        for (int32_t i = 0; i < 3; i++)
            want += (int64_t)(moa_kv_formula(c.r.shape, type ? MOA_KV_F32 : MOA_KV_F16, c.rules[i],
                                             c.n_reserved[i], c.n_reserved[i] - 70)
                                  .plan /
                              now.page_bytes);
        assert_int_equal(now.used, want);
        moa_lanes *l = lanes_of(&c, NULL, 0);
        int32_t *ids = take(3 * 70, sizeof *ids), made[3];
        for (int32_t i = 0; i < 3; i++)
            must(moa_lanes_feed(l, i, 1, err));
        must(moa_lanes_greedy(l, 69, ids, made, NULL, NULL, err));
        for (int32_t i = 0; i < 3; i++)
            must(moa_lanes_feed(l, i, ids[i * 69 + 68], err));
        must(moa_lanes_step(l, rows, err));
        for (int32_t i = 0; i < 3 * n_vocab; i++)
            assert_true(isfinite(rows[i]));
        assert_true(max_diff(rows, rows + n_vocab, n_vocab) > 0);
        moa_seq_pages(c.seqs[0], &now);
        assert_int_equal(now.pool_bytes, held.pool_bytes); /* it never had to grow */
        moa_lanes_close(&l);
        for (int32_t i = 0; i < 3; i++)
            moa_seq_reset(c.seqs[i]);
        must(moa_engine_hold(c.r.e, NULL, 0, err));
        moa_seq_pages(c.seqs[0], &now);
        assert_int_equal(now.pool_bytes, 0);
        prefill(&c, 0); /* and it grows again */
        free(ids);
        free(rows);
        crew_close(&c);
    }
}

/* --- refusals, failures --------------------------------------------------------------------------------------------------------- */

static void test_refusals(void **state) {
    (void)state;
    crew c = crew_open((rig_config){.model = "tiny_llama", .engine = {.chunk = 4}}, 5, 29);
    moa_err why = {0};
    int32_t ids[16], made[5];
    moa_lanes *l = NULL;
    assert_int_equal(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = c.seqs, .n_seq = 5}, &why),
                     MOA_E_INVALID);
    assert_non_null(strstr(why.text, "5 sequences"));
    assert_int_equal(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = c.seqs, .n_seq = 0}, &why),
                     MOA_E_INVALID);
    moa_seq *twice[] = {c.seqs[0], c.seqs[1], c.seqs[0]};
    assert_int_equal(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = twice, .n_seq = 3}, &why),
                     MOA_E_INVALID);
    moa_seq *fresh = NULL;
    assert_int_equal(moa_seq_open(&fresh, c.r.e, &why), MOA_OK);
    assert_int_equal(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = &fresh, .n_seq = 1}, &why),
                     MOA_E_INVALID);
    assert_int_equal(moa_seq_plan(fresh, NULL, NULL, 100, MOA_WATCH_STATS, NULL, 0, &why), MOA_OK);
    assert_int_equal(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = &fresh, .n_seq = 1}, &why),
                     MOA_E_INVALID);
    assert_non_null(strstr(why.text, "watched"));
    moa_seq_close(&fresh);
    assert_null(l);
    /* a plan widened: keys are gone */
    assert_int_equal(moa_seq_plan(c.seqs[2], NULL, NULL, 420, 0, NULL, 0, &why), MOA_OK);
    if (moa_seq_lost(c.seqs[2]) > 0)
        assert_int_equal(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = c.seqs, .n_seq = 3}, &why),
                         MOA_E_INVALID);
    assert_int_equal(moa_lanes_open(&l, c.r.e, &(moa_lanes_config){.seqs = c.seqs, .n_seq = 2}, &why),
                     MOA_OK);
    assert_int_equal(moa_lanes_feed(l, 0, c.r.shape->n_vocab, &why), MOA_E_INVALID);
    assert_int_equal(moa_lanes_feed(l, 0, 1, &why), MOA_OK);
    assert_int_equal(moa_lanes_greedy(l, 3, ids, made, NULL, NULL, &why), MOA_OK);
    assert_int_equal(made[0], 3);
    assert_int_equal(made[1], 0);
    moa_lanes_close(&l);
    crew_close(&c);
}

/* a sequence used by someone else between two steps is noticed */
static void test_meanwhile(void **state) {
    (void)state;
    crew c = crew_open((rig_config){.model = "tiny_llama"}, 2, 31);
    moa_err why = {0};
    int32_t ids[16], made[2];
    const int32_t id = 1;
    moa_lanes *l = lanes_of(&c, NULL, 0);
    feed_first(&c, l);
    must(moa_lanes_greedy(l, 2, ids, made, NULL, NULL, err));
    must(moa_seq_forward(c.seqs[1], &(moa_forward){.ids = &id, .n = 1}, err));
    assert_int_equal(moa_lanes_greedy(l, 2, ids, made, NULL, NULL, &why), MOA_E_INVALID);
    assert_non_null(strstr(why.text, "lane 1"));
    moa_lanes_close(&l);
    l = lanes_of(&c, NULL, 0);
    feed_first(&c, l);
    must(moa_seq_plan(c.seqs[0], NULL, NULL, c.n_reserved[0], 0, NULL, 0, err));
    assert_int_equal(moa_lanes_greedy(l, 2, ids, made, NULL, NULL, &why), MOA_E_INVALID);
    moa_lanes_close(&l);
    crew_close(&c);
}

static bool always(void *user) {
    (void)user;
    return true;
}

/* every call of the backend fails once: then the same steps are asked for again, and the ids are as if nothing had been */
static void test_failures(void **state) {
    (void)state;
    int32_t expected[2][12], ids[24], made[2];
    for (long at = 1;; at += EVERY) {
        crew c = crew_open((rig_config){.model = "tiny_llama", .recording = true}, 2, 37);
        moa_lanes *l = NULL;
        moa_err why = {0};
        const moa_lanes_config config = {.seqs = c.seqs, .n_seq = 2};
        if (at == 1)
            for (int32_t i = 0; i < 2; i++)
                alone(&c, i, 11, expected[i]);
        c.r.spy->failed = false;
        c.r.spy->fail_at = c.r.spy->n_calls + at;
        moa_status s = moa_lanes_open(&l, c.r.e, &config, &why);
        if (s != MOA_OK) assert_int_equal(moa_lanes_open(&l, c.r.e, &config, &why), MOA_OK);
        feed_first(&c, l);
        assert_int_equal(moa_lanes_greedy(l, 10, ids, made, always, NULL, &why), MOA_E_CANCELLED);
        s = moa_lanes_greedy(l, 10, ids, made, NULL, NULL, &why);
        if (s != MOA_OK) assert_int_equal(moa_lanes_greedy(l, 10, ids, made, NULL, NULL, &why), MOA_OK);
        for (int32_t i = 0; i < 2; i++) {
            assert_int_equal(made[i], 10);
            same_ids(&c, i, ids + i * 10, expected[i] + 1, 10);
        }
        const bool failed = c.r.spy->failed;
        c.r.spy->fail_at = 0;
        moa_lanes_close(&l);
        crew_close(&c);
        if (!failed) break;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),    cmocka_unit_test(test_greedy_small_chunk),
        cmocka_unit_test(test_limit),     cmocka_unit_test(test_end),
        cmocka_unit_test(test_logits),    cmocka_unit_test(test_fork),
        cmocka_unit_test(test_fill),      cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_meanwhile), cmocka_unit_test(test_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
