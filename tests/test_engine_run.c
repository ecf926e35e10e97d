/* moa_run(): what stops it, what it tells, what it leaves in the sequence. */
#include "engine_fixture.h"

enum { LOG_MAX = 300 };
typedef struct log {
    moa_run_token t[LOG_MAX];
    int n, stop_at; /* stop_at: the token callback says false at this index; -1: never */
    long cancel_after; /* questions until cancelled() says true; -1: never */
    int32_t planned_reserved, done, total;
    char note[200];
} log_of_run;

static bool on_token(void *user, const moa_run_token *t) {
    log_of_run *g = user;
    assert_int_equal(t->index, g->n);
    g->t[g->n++] = *t;
    return t->index != g->stop_at;
}
static void on_planned(void *user, const moa_seq *s, const char *note) {
    log_of_run *g = user;
    g->planned_reserved = moa_seq_n_reserved(s);
    (void)snprintf(g->note, sizeof g->note, "%s", note);
}
static void on_progress(void *user, int32_t done, int32_t total) {
    log_of_run *g = user;
    assert_true(done > g->done);
    g->done = done;
    g->total = total;
}
static bool on_cancelled(void *user) {
    log_of_run *g = user;
    return g->cancel_after >= 0 && g->cancel_after-- == 0;
}

static const moa_sampling greedy = {.temp = 0, .top_p = 1};

static log_of_run *go(rig *r, moa_run_config c, moa_run_result *result) {
    log_of_run *g = take(1, sizeof *g);
    g->stop_at = g->cancel_after = -1;
    if (!c.user) c.user = g;
    c.token = on_token, c.planned = on_planned, c.progress = on_progress;
    must(moa_run(r->s, &c, result, err));
    return g;
}

/* Greedy decoding equals choosing, again and again, the largest logit of a fresh prefill of everything so far. */
static void test_greedy_equals_fresh_prefills(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .recording = true, .engine = {.kv_type = MOA_KV_F32, .chunk = 64}});
    moa_pcg32 g = moa_pcg32_seed(2, 1);
    const int32_t n_prompt = 180, n_gen = 40, n = n_prompt + n_gen, n_vocab = r.shape->n_vocab;
    int32_t ids[300];
    moa_rule rules[64];
    float *logits = take((size_t)n_vocab, sizeof *logits);
    random_ids(&g, ids, n_prompt, n_vocab);
    random_rules(&g, rules, r.n_span, 0);
    moa_run_result result;
    log_of_run *log = go(&r, (moa_run_config){.ids = ids, .n_ids = n_prompt, .n_gen = n_gen, .rules = rules,
                                              .sampling = greedy, .ignore_end = true}, &result);
    assert_int_equal(log->n, n_gen);
    assert_int_equal(log->planned_reserved, n);
    assert_int_equal(log->done, n_prompt);
    assert_int_equal(log->total, n_prompt);
    assert_int_equal(result.stop, MOA_STOP_LENGTH);
    assert_int_equal(result.n_prompt, n_prompt);
    assert_int_equal(result.n_gen, n_gen);
    assert_int_equal(result.n_reserved, n);
    assert_int_equal(moa_seq_n_past(r.s), n); /* the last token too has passed the layers */
    assert_true(result.prefill_s > 0 && result.ttft_s >= result.prefill_s && result.decode_s > 0);
    for (int32_t i = 0; i < n_gen; i++) {
        moa_seq_reset(r.s);
        must(moa_seq_plan(r.s, rules, NULL, n, 0, NULL, 0, err));
        must(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = n_prompt + i, .logits = logits}, err));
        int32_t best = 0;
        for (int32_t t = 1; t < n_vocab; t++)
            if (logits[t] > logits[best]) best = t;
        const moa_run_token *t = &log->t[i];
        assert_int_equal(t->id, best);
        assert_int_equal(t->pos, n_prompt + i);
        assert_int_equal(t->n_top, 5);
        assert_int_equal(t->top[0].id, best);
        assert_true(fabs((double)t->logprob - (double)t->top[0].logprob) < 1e-6);
        assert_true(isnan((double)t->kl));
        float logprob, entropy;
        moa_logits_describe(logits, n_vocab, best, 0, NULL, &logprob, &entropy);
        /* a step and a prefill round alike, or to 11 bits here and there: logits then differ by up to 2e-2 */
        const double limit = device_is_coarse() ? 4e-2 : 1e-4;
        assert_true(fabs((double)logprob - (double)t->logprob) < limit);
        assert_true(fabs((double)entropy - (double)t->entropy) < limit);
        ids[n_prompt + i] = best;
    }
    free(log), free(logits);
    rig_close(&r);
}

/* A dense run kept as the reference; a windowed one forced along its tokens and compared. */
static void test_reference_and_force(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_qwen2", .engine = {.kv_type = MOA_KV_F32}});
    moa_pcg32 g = moa_pcg32_seed(12, 1);
    const int32_t n_prompt = 300, n_gen = 12, n_vocab = r.shape->n_vocab;
    int32_t ids[400], forced[12];
    moa_rule rules[64];
    moa_run_reference ref = {0}, windowed = {0};
    moa_run_result result;
    random_ids(&g, ids, n_prompt, n_vocab);
    random_rules(&g, rules, r.n_span, 2);
    moa_run_config c = {.ids = ids, .n_ids = n_prompt, .n_gen = n_gen, .sampling = greedy, .ignore_end = true, .keep = &ref};
    log_of_run *dense = go(&r, c, &result);
    assert_int_equal(ref.n, n_gen);
    for (int i = 0; i < n_gen; i++) forced[i] = dense->t[i].id;
    c.against = &ref, c.keep = &windowed, c.force = forced, c.n_force = n_gen;
    moa_seq_reset(r.s);
    log_of_run *same = go(&r, c, &result);
    for (int i = 0; i < n_gen; i++) assert_true((double)same->t[i].kl < 1e-9);
    moa_seq_reset(r.s);
    c.rules = rules;
    log_of_run *other = go(&r, c, &result);
    for (int i = 0; i < n_gen; i++) {
        assert_int_equal(other->t[i].id, forced[i]);
        const double kl = moa_logits_kl(ref.logits + (int64_t)i * n_vocab, windowed.logits + (int64_t)i * n_vocab, n_vocab);
        assert_true(fabs(kl - (double)other->t[i].kl) < 1e-6 * (1 + kl));
        assert_true(kl > 1e-6);
    }
    /* fewer forced than generated: the rest is chosen; beyond the reference there is no KL */
    moa_seq_reset(r.s);
    c.rules = NULL, c.keep = NULL, c.n_force = 3, c.n_gen = n_gen + 2;
    log_of_run *part = go(&r, c, &result);
    for (int i = 0; i < n_gen; i++) assert_int_equal(part->t[i].id, forced[i]);
    assert_true(isnan((double)part->t[n_gen].kl));
    free(dense), free(same), free(other), free(part);
    moa_run_reference_free(&ref);
    moa_run_reference_free(&windowed);
    rig_close(&r);
}

static void test_what_stops_a_run(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = {.kv_type = MOA_KV_F32, .chunk = 16}});
    moa_pcg32 g = moa_pcg32_seed(2, 1);
    int32_t ids[4096];
    moa_run_result result;
    const int32_t n_ctx = r.shape->n_ctx;
    random_ids(&g, ids, n_ctx, r.shape->n_vocab);

    /* an end token, if it is chosen; <|im_end|> is id 2 of the tiny models. A flat, endless sampling meets it
     * sooner or later; after which seed depends on the last bits */
    moa_run_config c = {.ids = ids, .n_ids = 10, .n_gen = 290, .sampling = {.temp = 100, .top_p = 1, .seed = 4}};
    log_of_run *log = go(&r, c, &result);
    while (result.stop != MOA_STOP_END && c.sampling.seed < 40) {
        free(log);
        moa_seq_reset(r.s);
        c.sampling.seed++;
        log = go(&r, c, &result);
    }
    assert_int_equal(result.stop, MOA_STOP_END);
    assert_true(moa_tokenizer_is_end(r.model->tokenizer, log->t[log->n - 1].id));
    assert_int_equal(moa_seq_n_past(r.s), 10 + log->n);
    assert_int_equal(result.n_gen, log->n);
    const int at_end = log->n;
    free(log);
    moa_seq_reset(r.s);
    c.ignore_end = true;
    log = go(&r, c, &result);
    assert_int_equal(result.stop, MOA_STOP_LENGTH);
    assert_true(log->n == 290 && at_end < 290);
    free(log);

    /* prefill only */
    moa_seq_reset(r.s);
    c.n_gen = 0;
    log = go(&r, c, &result);
    assert_int_equal(log->n, 0);
    assert_int_equal(result.n_gen, 0);
    assert_int_equal(result.stop, MOA_STOP_LENGTH);
    assert_int_equal(moa_seq_n_past(r.s), 10);
    assert_true(result.decode_s == 0 && result.ttft_s == 0);
    free(log);

    /* the context: 2 tokens of room for 5 wanted */
    moa_seq_reset(r.s);
    must(moa_seq_plan(r.s, NULL, NULL, n_ctx - 12, 0, NULL, 0, err));
    moa_rule *rules = take((size_t)r.n_span, sizeof *rules); /* all at the minimum: quick */
    must(moa_seq_plan(r.s, rules, NULL, n_ctx - 12, 0, NULL, 0, err));
    feed(&r, ids, n_ctx - 12, 0, NULL);
    c.n_gen = 5;
    c.rules = rules;
    log = go(&r, c, &result);
    assert_int_equal(result.stop, MOA_STOP_CONTEXT);
    assert_int_equal(log->n, 2);
    assert_int_equal(moa_seq_n_past(r.s), n_ctx);
    free(log), free(rules);
    moa_err e = {0};
    c.n_ids = 1;
    assert_int_equal(moa_run(r.s, &c, &result, &e), MOA_E_INVALID);
    assert_non_null(strstr(e.text, "4096"));
    rig_close(&r);
}

static void test_cancelled_is_a_result(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = {.kv_type = MOA_KV_F32, .chunk = 16}});
    moa_pcg32 g = moa_pcg32_seed(2, 1);
    int32_t ids[200];
    moa_run_result result;
    random_ids(&g, ids, 200, r.shape->n_vocab);
    int in_prefill = 0, in_decode = 0;
    for (long questions = 0; questions < 40; questions++) {
        log_of_run *log = take(1, sizeof *log);
        log->cancel_after = questions;
        log->stop_at = -1;
        moa_seq_reset(r.s);
        moa_run_config c = {.ids = ids, .n_ids = 100, .n_gen = 30, .sampling = greedy, .ignore_end = true, .cancelled = on_cancelled,
                            .user = log, .token = on_token};
        must(moa_run(r.s, &c, &result, err));
        assert_int_equal(result.stop, MOA_STOP_CANCELLED);
        assert_int_equal(moa_seq_n_past(r.s), result.n_prompt + result.n_gen);
        assert_int_equal(log->n, result.n_gen); /* what was told is in the sequence */
        if (result.n_prompt < 100) in_prefill++;
        else in_decode++;
        free(log);
    }
    assert_true(in_prefill > 10 && in_decode > 10);
    /* the token callback's false: the token stays */
    log_of_run *log = take(1, sizeof *log);
    log->stop_at = 4;
    moa_seq_reset(r.s);
    moa_run_config c = {.ids = ids, .n_ids = 100, .n_gen = 30, .sampling = greedy, .ignore_end = true, .user = log, .token = on_token};
    must(moa_run(r.s, &c, &result, err));
    assert_int_equal(result.stop, MOA_STOP_CANCELLED);
    assert_int_equal(result.n_gen, 5);
    assert_int_equal(moa_seq_n_past(r.s), 105);
    free(log);
    rig_close(&r);
}

/* Turns of a conversation with dense rules: the same as one run over everything. */
static void test_turns_and_figures(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = {.kv_type = MOA_KV_F16}});
    moa_pcg32 g = moa_pcg32_seed(2, 1);
    int32_t ids[200];
    moa_run_result result;
    moa_rule rules[64];
    random_ids(&g, ids, 200, r.shape->n_vocab);
    for (int32_t i = 0; i < r.n_span; i++) rules[i] = i < r.n_span / 2 ? (moa_rule){0, 1} : (moa_rule){128, 0};
    moa_run_config c = {.ids = ids, .n_ids = 150, .n_gen = 50, .sampling = greedy, .ignore_end = true, .rules = rules};
    log_of_run *first = go(&r, c, &result);
    assert_int_equal(result.n_reserved, 200);
    c.ids = ids + 150, c.n_ids = 50;
    log_of_run *second = go(&r, c, &result);
    assert_int_equal(result.n_reserved, 300);
    assert_int_equal(result.n_prompt, 50);
    assert_int_equal(second->t[0].pos, 250);
    assert_int_equal(result.span_min, 128);
    assert_int_equal(result.span_max, 320);
    assert_true(fabs(result.span_mean - 224) < 1e-9);
    assert_int_equal(result.kv_bytes, result.kv_formula.plan);
    const moa_kv_bytes formula = moa_kv_formula(r.shape, MOA_KV_F16, rules, 300, 300);
    assert_int_equal(result.kv_formula.plan, formula.plan);
    const uint64_t page = 2 * 64 * 16 * 2;
    /* layer 0: 5 pages per KV head; layer 1, span 128 at 300 tokens: the sink, and pages 3 and 4 */
    assert_int_equal(formula.plan, page * (2 * 5 + 2 * 3));
    assert_int_equal(formula.dense, page * 2 * 2 * 5);
    assert_int_equal(formula.mha, page * 2 * 6 * 5);
    assert_true(fabs(result.kv_density - (300.0 + 128) / 2 / 300) < 1e-12);
    assert_true(result.kv_peak_bytes >= result.kv_bytes && result.device_bytes > result.kv_peak_bytes);
    assert_true(result.device_peak_bytes >= result.device_bytes);
    free(first), free(second);
    rig_close(&r);
}

static void test_run_refusals(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama"});
    int32_t ids[5] = {0}, wrong[1] = {276};
    moa_run_result result;
    const moa_run_config good = {.ids = ids, .n_ids = 5, .n_gen = 3, .sampling = greedy};
    moa_run_config bad[6] = {good, good, good, good, good, good};
    bad[0].n_ids = 0;
    bad[1].n_gen = -1;
    bad[2].force = ids, bad[2].n_force = 4;
    bad[3].force = wrong, bad[3].n_force = 1;
    bad[4].sampling.temp = -1;
    bad[5].ids = wrong, bad[5].n_ids = 1;
    for (int i = 0; i < 6; i++) {
        moa_err e = {0};
        assert_true(moa_run(r.s, &bad[i], &result, &e) != MOA_OK);
        assert_true(strlen(e.text) > 5);
        assert_int_equal(moa_seq_n_past(r.s), 0);
    }
    must(moa_run(r.s, &good, &result, err));
    assert_string_equal(moa_stop_name(MOA_STOP_CONTEXT), "context");
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy_equals_fresh_prefills), cmocka_unit_test(test_reference_and_force),
        cmocka_unit_test(test_what_stops_a_run),             cmocka_unit_test(test_cancelled_is_a_result),
        cmocka_unit_test(test_turns_and_figures),            cmocka_unit_test(test_run_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
