/* core/tasks/loss, answer, part on a tiny model: losses against a plain log-sum-exp in double of logits from another path through the
 * engine (token by token), greedy answers against moa_run, a part file that is torn, foreign, locked, damaged. */
#include "core/tasks/answer.h"
#include "core/tasks/loss.h"
#include "core/tasks/part.h"
#include "core/base/text.h"
#include "engine_fixture.h"

#include <unistd.h>

enum { N = 400 };

typedef struct tiny {
    moa_model *model;
    moa_engine *e;
    moa_seq *s;
} tiny;

static tiny open_tiny(void) {
    const moa_backend_config config = {.n_threads = 2};
    const moa_engine_config engine = {.kv_type = MOA_KV_F32, .chunk = 96};
    moa_backend *b = NULL;
    tiny t = {0};
    must(moa_model_open(&t.model, MOA_SOURCE_DIR "/tests/data/tiny_llama.gguf", false, NULL, NULL, err));
    must(moa_cpu_open(&b, &config, err));
    must(moa_engine_open(&t.e, t.model, b, &engine, NULL, NULL, err));
    must(moa_seq_open(&t.s, t.e, err));
    return t;
}

static void close_tiny(tiny *t) {
    moa_seq_close(&t->s);
    moa_engine_close(&t->e);
    moa_model_close(&t->model);
}

static double plain_loss(const float *logits, int32_t n, int32_t target) {
    double max = (double)logits[0], sum = 0;
    for (int32_t i = 1; i < n; i++)
        max = fmax(max, (double)logits[i]);
    for (int32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - max);
    return log(sum) + max - (double)logits[target];
}

static void test_loss_of_logits(void **state) {
    (void)state;
    static float x[70001];
    moa_pcg32 g = moa_pcg32_seed(1, 1);
    static const int32_t sizes[] = {1, 2, 15, 16, 17, 1023, 1024, 1025, 50257, 70001};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int scale = 0; scale < 4; scale++) {
            const int32_t n = sizes[k];
            for (int32_t i = 0; i < n; i++)
                x[i] = ((float)moa_pcg32_next(&g) / 4294967296.0f - 0.5f) * (float[]){0, 4, 60, 400}[scale] +
                       3.0f;
            if (n > 20) x[11] = -INFINITY;
            const int32_t target = (int32_t)random_below(&g, (uint32_t)n);
            if (n > 20 && target == 11) continue;
            const double want = plain_loss(x, n, target), got = moa_loss_of_logits(x, n, target);
            if (!(fabs(got - want) <= 2e-6 * fmax(1, fabs(want))))
                fail_msg("n %d scale %d: %.12g, expected %.12g", n, scale, got, want);
        }
    x[5] = NAN;
    assert_true(isnan(moa_loss_of_logits(x, 100, 1)));
    x[5] = INFINITY;
    assert_false(isfinite(moa_loss_of_logits(x, 100, 1)));
}

/* the same losses by decoding: one token a call, logits of each */
static double decoded(tiny *t, const int32_t *ids, int32_t n, int32_t from, const moa_rule *rules,
                      double *each) {
    const int32_t n_vocab = t->model->shape.n_vocab;
    float *logits = malloc((size_t)n_vocab * sizeof *logits);
    double sum = 0;
    moa_seq_reset(t->s);
    must(moa_seq_plan(t->s, rules, NULL, n, 0, NULL, 0, err));
    for (int32_t i = 0; i + 1 < n; i++) {
        must(moa_seq_forward(t->s, &(moa_forward){.ids = ids + i, .n = 1, .logits = logits}, err));
        if (i + 1 < from) continue;
        each[i + 1 - from] = plain_loss(logits, n_vocab, ids[i + 1]);
        sum += each[i + 1 - from];
    }
    free(logits);
    return sum;
}

static void test_loss_is_that_of_decoding(void **state) {
    (void)state;
    tiny t = open_tiny();
    const int32_t n_head = t.model->shape.n_layer * t.model->shape.n_head;
    moa_rule *rules = calloc((size_t)n_head, sizeof *rules);
    moa_pcg32 g = moa_pcg32_seed(9, 2);
    int32_t ids[N];
    double want[N];
    float each[N];
    random_ids(&g, ids, N, t.model->shape.n_vocab);
    for (int what = 0; what < 3; what++)
        for (int f = 0; f < 3; f++) {
            const int32_t from = (int32_t[]){1, 200, N - 1}[f];
            random_rules(&g, rules, n_head, what);
            const double sum = decoded(&t, ids, N, from, rules, want);
            moa_loss loss = {.sum = 100, .n = 7}; /* it adds */
            must(moa_loss_add(t.s,
                              &(moa_loss_job){.ids = ids, .n = N, .from = from, .rules = rules, .each = each},
                              &loss, err));
            assert_int_equal(loss.n, 7 + N - from);
            assert_true(fabs(loss.sum - 100 - sum) < 1e-3 * (1 + sum / 100));
            for (int32_t i = 0; i < N - from; i++)
                assert_true(fabs((double)each[i] - want[i]) < 1e-3);
            float here[N]; /* by the logits, judged on the host: the same but for rounding */
            moa_loss other = {0};
            must(moa_loss_add(t.s,
                              &(moa_loss_job){
                                  .ids = ids, .n = N, .from = from, .rules = rules, .each = here, .by_logits = true},
                              &other, err));
            assert_int_equal(other.n, N - from);
            assert_true(fabs(other.sum - (loss.sum - 100)) <= 1e-6 * (N - from));
            for (int32_t i = 0; i < N - from; i++)
                assert_true(fabs((double)each[i] - (double)here[i]) <= 2e-6 * (1 + fabs((double)here[i])));
        }
    free(rules);
    close_tiny(&t);
}

/* where they are wanted, whatever the chunks, and logits of the last token beside them */
static void test_losses_of_the_device(void **state) {
    (void)state;
    tiny t = open_tiny();
    const int32_t n_vocab = t.model->shape.n_vocab, chunks[] = {1, 7, 96};
    moa_pcg32 g = moa_pcg32_seed(4, 8);
    moa_err why = {0};
    int32_t ids[N], targets[N];
    float losses[N];
    float *rows = malloc((size_t)N * (size_t)n_vocab * sizeof *rows), *last = malloc((size_t)n_vocab * sizeof *last);
    random_ids(&g, ids, N, n_vocab);
    for (int32_t i = 0; i < N; i++) /* stretches without, single ones, all; the first chunk of 96 has none */
        targets[i] = i < 96 || (i < 200 && i % 5 < 2) || i % 97 == 3 ? -1 - i : (int32_t)random_below(&g, (uint32_t)n_vocab);
    collect c = {rows, 0, n_vocab};
    must(moa_seq_plan(t.s, NULL, NULL, N, 0, NULL, 0, err));
    must(moa_seq_forward(t.s, &(moa_forward){.ids = ids, .n = N, .each_logits = collect_row, .user = &c}, err));
    for (size_t k = 0; k < sizeof chunks / sizeof *chunks; k++) {
        moa_seq_reset(t.s);
        must(moa_seq_plan(t.s, NULL, NULL, N, 0, NULL, 0, err));
        moa_forward f = {.ids = ids, .n = N, .chunk = chunks[k], .targets = targets, .losses = losses, .logits = last};
        must(moa_seq_forward(t.s, &f, err));
        for (int32_t i = 0; i < N; i++) {
            assert_int_equal(isnan(losses[i]) != 0, targets[i] < 0);
            if (targets[i] >= 0)
                assert_true(fabs((double)losses[i] - plain_loss(rows + (int64_t)i * n_vocab, n_vocab, targets[i])) < 1e-3);
        }
        for (int32_t i = 0; i < n_vocab; i++)
            assert_true(fabsf(last[i] - rows[(int64_t)(N - 1) * n_vocab + i]) < 1e-3f);
    }
    moa_seq_reset(t.s);
    moa_forward f = {.ids = ids, .n = 2, .targets = targets, .losses = losses, .each_logits = collect_row, .user = &c};
    assert_int_equal(moa_seq_forward(t.s, &f, &why), MOA_E_UNSUPPORTED);
    f.each_logits = NULL;
    targets[1] = n_vocab;
    assert_int_equal(moa_seq_forward(t.s, &f, &why), MOA_E_INVALID);
    assert_non_null(strstr(why.text, "target 1"));
    free(rows);
    free(last);
    close_tiny(&t);
}

static bool always(void *user) {
    (void)user;
    return true;
}

static void test_loss_refused_and_cancelled(void **state) {
    (void)state;
    tiny t = open_tiny();
    int32_t ids[N] = {0};
    moa_loss loss = {0};
    moa_err why = {0};
    assert_int_equal(moa_loss_add(t.s, &(moa_loss_job){.ids = ids, .n = 10, .from = 0}, &loss, &why),
                     MOA_E_INVALID);
    assert_int_equal(moa_loss_add(t.s, &(moa_loss_job){.ids = ids, .n = 10, .from = 10}, &loss, &why),
                     MOA_E_INVALID);
    assert_int_equal(
        moa_loss_add(t.s, &(moa_loss_job){.ids = ids, .n = t.model->shape.n_ctx + 1, .from = 1}, &loss, &why),
        MOA_E_INVALID);
    assert_int_equal(
        moa_loss_add(t.s, &(moa_loss_job){.ids = ids, .n = N, .from = 200, .cancelled = always}, &loss, &why),
        MOA_E_CANCELLED);
    assert_true(loss.n == 0 && loss.sum == 0);
    close_tiny(&t);
}

typedef struct listed {
    int32_t ids[64];
    int n;
} listed;
static bool list(void *user, const moa_run_token *token) {
    listed *l = user;
    l->ids[l->n++] = token->id;
    return true;
}

static void test_answer_is_the_greedy_run(void **state) {
    (void)state;
    tiny t = open_tiny();
    moa_pcg32 g = moa_pcg32_seed(4, 4);
    int32_t ids[100];
    random_ids(&g, ids, 100, t.model->shape.n_vocab);
    listed l = {0};
    moa_run_result r;
    moa_seq_reset(t.s);
    must(moa_run(t.s,
                 &(moa_run_config){.ids = ids,
                                   .n_ids = 100,
                                   .n_gen = 40,
                                   .sampling = {.temp = 0, .top_p = 1},
                                   .token = list,
                                   .user = &l},
                 &r, err));
    moa_buf want = {0}, clean = {0};
    for (int i = 0; i < l.n; i++) {
        size_t n;
        const char *piece = moa_tokenizer_piece(t.model->tokenizer, l.ids[i], &n);
        if (!moa_tokenizer_is_control(t.model->tokenizer, l.ids[i])) moa_buf_append(&want, piece, n);
    }
    moa_utf8_replace(want.data ? want.data : "", want.size, &clean);
    moa_buf_str(&clean, "");
    for (int again = 0; again < 2; again++) { /* the sequence is reset */
        moa_answer a = {0};
        must(moa_answer_make(t.s, &(moa_ask){.ids = ids, .n_ids = 100, .n_gen = 40}, &a, err));
        assert_string_equal(a.text.data, clean.data);
        assert_int_equal(a.n_gen, r.n_gen);
        moa_answer_free(&a);
    }
    moa_answer a = {0};
    moa_err why = {0};
    assert_int_equal(moa_answer_make(t.s,
                                     &(moa_ask){.ids = ids, .n_ids = 100, .n_gen = 40, .cancelled = always},
                                     &a, &why),
                     MOA_E_CANCELLED);
    moa_answer_free(&a);
    moa_buf_free(&want), moa_buf_free(&clean);
    close_tiny(&t);
}

/* answers decoded together are those made alone: prompts and rules of any kind, limits, stop rules, one that ends at once */
static void test_answers_together(void **state) {
    (void)state;
    enum { TOGETHER = 9 };
    tiny t = open_tiny();
    const int32_t n_vocab = t.model->shape.n_vocab, n_head = t.model->shape.n_layer * t.model->shape.n_head;
    moa_pcg32 g = moa_pcg32_seed(11, 3);
    moa_seq *seqs[TOGETHER] = {0};
    moa_ask asks[TOGETHER];
    moa_answer alone[TOGETHER] = {0}, out[TOGETHER];
    static int32_t ids[TOGETHER][300];
    moa_rule *rules[3];
    for (int k = 0; k < 3; k++) {
        rules[k] = calloc((size_t)n_head, sizeof **rules);
        random_rules(&g, rules[k], n_head, k);
    }
    int n_whole = 0, n_text = 0;
    for (int i = 0; i < TOGETHER; i++) {
        must(moa_seq_open(&seqs[i], t.e, err));
        asks[i] = (moa_ask){.ids = ids[i],
                            .n_ids = i == 3 ? 1 : 40 + 31 * i,
                            .n_gen = i == 4 ? 1 : i == 5 ? 0 : 7 + 9 * i,
                            .rules = i % 4 == 3 ? NULL : rules[i % 4],
                            .stop = i % 3 == 0 ? MOA_STOP_AT_SENTENCE | MOA_STOP_AT_NUMBER : i % 3 == 1 ? MOA_STOP_AT_LINE : 0};
        random_ids(&g, ids[i], asks[i].n_ids, n_vocab);
        must(moa_answer_make(t.s, &asks[i], &alone[i], err));
        n_whole += alone[i].whole, n_text += alone[i].n_gen > 0;
    }
    assert_true(n_whole > 0 && n_whole < TOGETHER && n_text == TOGETHER - 1);
    moa_seq_reset(t.s);
    for (int again = 0; again < 2; again++)
        for (int32_t n = 1; n <= TOGETHER; n += 4) {
            must(moa_answer_batch(seqs, asks, n, out, err));
            for (int32_t i = 0; i < n; i++) {
                assert_string_equal(out[i].text.data, alone[i].text.data);
                assert_int_equal(out[i].n_gen, alone[i].n_gen);
                assert_int_equal(out[i].whole, alone[i].whole);
                assert_true(fabs(out[i].kv_density - alone[i].kv_density) < 1e-12);
                assert_true(out[i].prefill_s > 0 && (out[i].decode_s > 0) == (alone[i].n_gen > 0));
                moa_answer_free(&out[i]);
            }
        }
    moa_err why = {0};
    asks[0].cancelled = always;
    assert_int_equal(moa_answer_batch(seqs, asks, TOGETHER, out, &why), MOA_E_CANCELLED);
    for (int i = 0; i < TOGETHER; i++) {
        moa_answer_free(&out[i]), moa_answer_free(&alone[i]);
        moa_seq_close(&seqs[i]);
    }
    for (int k = 0; k < 3; k++)
        free(rules[k]);
    close_tiny(&t);
}

/* --- part files ------------------------------------------------------------------------------------------------------------------ */

static char folder[] = "/tmp/moa_part_XXXXXX";
static char final_path[64], part_path[64];

static int make_folder(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    (void)snprintf(final_path, sizeof final_path, "%s/x", folder);
    (void)snprintf(part_path, sizeof part_path, "%s/x.part", folder);
    return 0;
}
static int drop_folder(void **state) {
    (void)state;
    (void)unlink(part_path);
    return rmdir(folder);
}

static void append(const char *text) {
    FILE *f = fopen(part_path, "a");
    assert_non_null(f);
    (void)fputs(text, f);
    (void)fclose(f);
}

static void test_part_goes_on(void **state) {
    (void)state;
    moa_part *p = NULL, *q = NULL;
    moa_err why = {0};
    size_t n;
    must(moa_part_open(&p, final_path, "key \"1\"\n", false, err));
    moa_part_close(&p);
    assert_int_not_equal(access(part_path, F_OK), 0); /* nothing done: nothing left */
    must(moa_part_open(&p, final_path, "key \"1\"\n", false, err));
    must(moa_part_add(p, "one", 3, err));
    assert_int_equal(moa_part_open(&q, final_path, "key \"1\"\n", false, &why), MOA_E_IO); /* locked */
    must(moa_part_add(p, "", 0, err));
    moa_part_close(&p);
    append("torn by a cra");
    must(moa_part_open(&p, final_path, "key \"1\"\n", false, err));
    assert_int_equal(moa_part_n(p), 2);
    assert_memory_equal(moa_part_line(p, 0, &n), "one", 3);
    assert_int_equal(n, 3);
    (void)moa_part_line(p, 1, &n);
    assert_int_equal(n, 0);
    must(moa_part_add(p, "three", 5, err));
    moa_part_close(&p);
    assert_int_equal(moa_part_open(&p, final_path, "key 2", false, &why), MOA_E_USAGE);
    assert_non_null(strstr(why.text, "--force"));
    must(moa_part_open(&p, final_path, "key \"1\"\n", false, err)); /* untouched by the refusal */
    assert_int_equal(moa_part_n(p), 3);
    assert_memory_equal(moa_part_line(p, 2, &n), "three", 5);
    moa_part_close(&p);
    must(moa_part_open(&p, final_path, "key 2", true, err));
    assert_int_equal(moa_part_n(p), 0);
    moa_part_remove(&p);
    assert_int_not_equal(access(part_path, F_OK), 0);
}

static void test_part_of_a_torn_header(void **state) {
    (void)state;
    moa_part *p = NULL;
    append("{\"moascope-pa"); /* a crash in the very first write */
    must(moa_part_open(&p, final_path, "k", false, err));
    assert_int_equal(moa_part_n(p), 0);
    must(moa_part_add(p, "x", 1, err));
    moa_part_close(&p);
    must(moa_part_open(&p, final_path, "k", false, err));
    assert_int_equal(moa_part_n(p), 1);
    moa_part_remove(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_of_logits),
        cmocka_unit_test(test_loss_is_that_of_decoding),
        cmocka_unit_test(test_losses_of_the_device),
        cmocka_unit_test(test_loss_refused_and_cancelled),
        cmocka_unit_test(test_answer_is_the_greedy_run),
        cmocka_unit_test(test_answers_together),
        cmocka_unit_test(test_part_goes_on),
        cmocka_unit_test(test_part_of_a_torn_header),
    };
    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
