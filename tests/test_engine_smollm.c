/* A real model, when it is there (scripts/fetch_model.py): greedy text, and chunks that agree on real activations. */
#include "core/base/buf.h"
#include "engine_fixture.h"
#include "thread_cases.h"

static char model_path[1024];

typedef struct real {
    moa_model *model;
    moa_engine *e;
    moa_seq *s;
} real;

static real open_real(int32_t chunk, moa_kv_type type) {
    const moa_backend_config config = {.n_threads = 2};
    const moa_engine_config engine = {.kv_type = type, .chunk = chunk};
    moa_backend *b = NULL;
    real r = {0};
    must(moa_model_open(&r.model, model_path, false, NULL, NULL, err));
    must(moa_cpu_open(&b, &config, err));
    must(moa_engine_open(&r.e, r.model, b, &engine, NULL, NULL, err));
    must(moa_seq_open(&r.s, r.e, err));
    return r;
}

static void close_real(real *r) {
    moa_seq_close(&r->s);
    moa_engine_close(&r->e);
    moa_model_close(&r->model);
}

typedef struct text {
    const moa_tokenizer *t;
    moa_buf out;
} text;
static bool append(void *user, const moa_run_token *t) {
    text *x = user;
    size_t n;
    const char *piece = moa_tokenizer_piece(x->t, t->id, &n);
    moa_buf_append(&x->out, piece, n);
    return true;
}

static void test_capital_of_france(void **state) {
    (void)state;
    static const char prompt[] = "The capital of France is";
    real r = open_real(0, MOA_KV_F16);
    int32_t *ids = NULL;
    size_t n_ids;
    moa_run_result result;
    text x = {.t = r.model->tokenizer};
    must(moa_tokenizer_encode(x.t, prompt, strlen(prompt), MOA_TOK_BOS, &ids, &n_ids, err));
    const moa_run_config c = {.ids = ids, .n_ids = (int32_t)n_ids, .n_gen = 16, .sampling = {.temp = 0, .top_p = 1}, .token = append, .user = &x};
    must(moa_run(r.s, &c, &result, err));
    print_message("\"%s\" -> \"%s\"; prefill %.2f s, decode %.1f tokens/s\n", prompt, x.out.data, result.prefill_s,
                  result.n_gen / result.decode_s);
    assert_non_null(strstr(x.out.data, "Paris"));
    moa_buf_free(&x.out);
    free(ids);
    close_real(&r);
}

/* a text of n tokens: no meaning is needed, but real words give real attention */
static void words(const moa_tokenizer *t, int32_t *ids, int32_t n) {
    moa_buf b = {0};
    moa_pcg32 g = moa_pcg32_seed(3, 3);
    static const char *const some[] = {"the ", "river ", "stone ", "carried ", "to ", "town ", "by ", "night, ", "and ", "old ",
                                       "bridge ", "was ", "of ", "wood. ", "No one ", "knew ", "why ", "line 42 ", "said ", "she "};
    for (int32_t i = 0; i < 2 * n; i++) moa_buf_str(&b, some[random_below(&g, 20)]);
    int32_t *all = NULL;
    size_t n_all;
    must(moa_tokenizer_encode(t, b.data, b.size, 0, &all, &n_all, err));
    assert_true(n_all >= (size_t)n);
    memcpy(ids, all, (size_t)n * sizeof *ids);
    free(all);
    moa_buf_free(&b);
}

static void test_chunks_agree_on_real_activations(void **state) {
    (void)state;
    enum { N = 330 };
    static const int32_t chunks[] = {100, 64, 7};
    real r = open_real(512, MOA_KV_F32);
    const moa_shape *shape = &r.model->shape;
    const int32_t n_span = shape->n_layer * shape->n_head;
    int32_t ids[N];
    moa_pcg32 g = moa_pcg32_seed(5, 1);
    moa_rule *rules = take((size_t)n_span, sizeof *rules);
    float *first = take((size_t)shape->n_vocab, sizeof *first), *other = take((size_t)shape->n_vocab, sizeof *other);
    words(r.model->tokenizer, ids, N);
    random_rules(&g, rules, n_span, 0);
    must(moa_seq_plan(r.s, rules, NULL, N, 0, NULL, 0, err));
    must(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = N, .logits = first}, err));
    for (size_t c = 0; c < (EVERY > 1 ? 1 : sizeof chunks / sizeof *chunks); c++) { /* sanitized: one, as slow as ten */
        moa_seq_reset(r.s);
        must(moa_seq_plan(r.s, rules, NULL, N, 0, NULL, 0, err));
        must(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = N, .chunk = chunks[c], .logits = other}, err));
        const double kl = moa_logits_kl(first, other, shape->n_vocab), d = max_diff(first, other, shape->n_vocab);
        print_message("chunks of %d: largest difference in logits %.2e, KL %.2e nats\n", chunks[c], d, kl);
        assert_true(kl < 1e-5);
    }
    /* and the plan does something */
    moa_seq_reset(r.s);
    must(moa_seq_plan(r.s, NULL, NULL, N, 0, NULL, 0, err));
    must(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = N, .logits = other}, err));
    assert_true(moa_logits_kl(other, first, shape->n_vocab) > 1e-4);
    free(rules), free(first), free(other);
    close_real(&r);
}

/* Every token's logits of one long chunk come in several blocks (a row is 196 KB): the same as from short chunks, in order. */
static bool check_order(void *user, int32_t pos, const float *logits) {
    collect *c = user;
    assert_int_equal(pos, c->first++);
    memcpy(c->rows + (int64_t)pos * c->n_vocab, logits, (size_t)c->n_vocab * sizeof *logits);
    return true;
}
static void test_every_logits_come_in_order(void **state) {
    (void)state;
    enum { N = 200 };
    static const int32_t chunks[] = {512, 40};
    real r = open_real(512, MOA_KV_F32);
    const int32_t n_vocab = r.model->shape.n_vocab;
    float *rows[2], *last = take((size_t)n_vocab, sizeof *last);
    int32_t ids[N];
    words(r.model->tokenizer, ids, N);
    for (int i = 0; i < 2; i++) {
        rows[i] = take((size_t)N * (size_t)n_vocab, sizeof *rows[i]);
        collect c = {rows[i], 0, n_vocab};
        moa_seq_reset(r.s);
        must(moa_seq_plan(r.s, NULL, NULL, N, 0, NULL, 0, err));
        must(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = N, .chunk = chunks[i], .each_logits = check_order, .user = &c,
                                                 .logits = last}, err));
        assert_int_equal(c.first, N);
        assert_memory_equal(last, rows[i] + (int64_t)(N - 1) * n_vocab, (size_t)n_vocab * sizeof *last);
    }
    for (int32_t t = 0; t < N; t++)
        assert_true(moa_logits_kl(rows[0] + (int64_t)t * n_vocab, rows[1] + (int64_t)t * n_vocab, n_vocab) < 1e-5);
    free(rows[0]), free(rows[1]), free(last);
    close_real(&r);
}

/* Cancelled in the middle of a chunk, with 30 layers and a full pool: what the abandoned chunk reused is counted as lost, and
 * the sequence goes on. */
typedef struct stop {
    long left;
} stop;
static bool stop_after(void *user) {
    stop *s = user;
    return s->left-- <= 0;
}
static void test_cancel_with_a_full_pool(void **state) {
    (void)state;
    enum { N = 330, CHUNK = 150 };
    real r = open_real(CHUNK, MOA_KV_F16);
    const moa_shape *shape = &r.model->shape;
    int32_t ids[N];
    moa_rule *rules = take((size_t)(shape->n_layer * shape->n_head), sizeof *rules); /* all at the minimum */
    float *logits = take((size_t)shape->n_vocab, sizeof *logits);
    words(r.model->tokenizer, ids, N);
    stop s = {.left = 1 + shape->n_layer + 1 + 12}; /* a chunk, then 12 layers of the next */
    must(moa_seq_plan(r.s, rules, NULL, N, 0, NULL, 0, err));
    assert_int_equal(moa_seq_forward(r.s, &(moa_forward){.ids = ids, .n = N, .cancelled = stop_after, .user = &s}, NULL), MOA_E_CANCELLED);
    assert_int_equal(moa_seq_n_past(r.s), CHUNK);
    moa_pages p;
    moa_seq_pages(r.s, &p);
    const int64_t lost = moa_seq_lost(r.s), n_kv = (int64_t)shape->n_layer * shape->n_head_kv;
    print_message("%lld of %lld keys in the windows lost\n", (long long)lost, (long long)n_kv * 63);
    assert_true(lost >= 0 && lost <= 12 * shape->n_head_kv * 63); /* only layers that had run lost anything */
    assert_true(p.used_bytes <= moa_kv_formula(shape, MOA_KV_F16, rules, N, CHUNK).plan);
    must(moa_seq_forward(r.s, &(moa_forward){.ids = ids + CHUNK, .n = N - CHUNK, .logits = logits}, err));
    assert_int_equal(moa_seq_lost(r.s), 0); /* the windows have moved on */
    for (int32_t i = 0; i < shape->n_vocab; i++) assert_true(isfinite((double)logits[i]));
    free(rules), free(logits);
    close_real(&r);
}

int main(void) {
    if (moa_model_find("SmolLM2-135M-Instruct-Q4_1", model_path, sizeof model_path, NULL) != MOA_OK) {
        printf("skipped: SmolLM2-135M-Instruct-Q4_1.gguf is in none of the model folders (scripts/fetch_model.py fetches it)\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_capital_of_france),
        cmocka_unit_test(test_chunks_agree_on_real_activations),
        cmocka_unit_test(test_every_logits_come_in_order),
        cmocka_unit_test(test_cancel_with_a_full_pool),
    };
    thread_cases("test_engine_smollm", "test_capital_of_france");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
