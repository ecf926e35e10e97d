/* Statistics of a real model's prompt by some of its blocks: how far off they are, and, on a GPU, that it looks at the same queries and sees
 * the same. SmolLM2 is looked for in the model folders, or MOA_TEST_MODEL names it. */
#include "core/base/buf.h"
#include "engine_fixture.h"

static char model_path[1024];
enum { N = 1100 }; /* 18 blocks: four strata and the last */

typedef struct seen {
    moa_head_stats *heads; /* (n_layer, n_head) */
    double *cover;         /* (n_layer, n_head, n_bin): mass of the sink and of distances below 64 (1 + d) */
    moa_watched watched;
    int32_t n_bin;
} seen;

static void words(const moa_tokenizer *t, int32_t *ids) {
    static const char *const some[] = {"the ", "river ", "stone ", "carried ", "to ", "town ", "by ", "night, ", "and ", "old ",
                                       "bridge ", "was ", "of ", "wood. ", "No one ", "knew ", "why ", "line 42 ", "said ", "she "};
    moa_buf b = {0};
    moa_pcg32 g = moa_pcg32_seed(3, 3);
    int32_t *all = NULL;
    size_t n_all;
    for (int32_t i = 0; i < 2 * N; i++) moa_buf_str(&b, some[random_below(&g, 20)]);
    must(moa_tokenizer_encode(t, b.data, b.size, 0, &all, &n_all, err));
    assert_true(n_all >= N);
    memcpy(ids, all, N * sizeof *ids);
    free(all);
    moa_buf_free(&b);
}

static void gather_cover(moa_seq *q, const moa_shape *shape, seen *out) {
    for (int32_t l = 0; l < shape->n_layer; l++) {
        float *hist = NULL;
        int32_t bucket_tok;
        int64_t queries[MOA_HIST_BUCKETS], n = 0;
        must(moa_seq_hist(q, l, &hist, &out->n_bin, &bucket_tok, queries, err));
        if (!out->cover) out->cover = calloc((size_t)shape->n_layer * (size_t)shape->n_head * (size_t)out->n_bin, sizeof *out->cover);
        for (int b = 0; b < MOA_HIST_BUCKETS; b++) n += queries[b];
        assert_int_equal(n, N);
        for (int32_t h = 0; h < shape->n_head; h++) {
            double sum = 0;
            for (int32_t k = 0; k <= out->n_bin; k++) {
                for (int b = 0; b < MOA_HIST_BUCKETS; b++)
                    sum += (double)hist[((int64_t)h * MOA_HIST_BUCKETS + b) * (1 + out->n_bin) + k] / N;
                if (k > 0) out->cover[((int64_t)l * shape->n_head + h) * out->n_bin + k - 1] = sum;
            }
            assert_true(fabs(sum - 1) < 2e-3); /* every query that counts has mass 1 */
        }
        free(hist);
    }
}

static seen look_at(const moa_model *model, const char *device, int bits) {
    const moa_backend_config config = {.n_threads = 2};
    char why[256];
    moa_backend *b = NULL;
    moa_engine *e = NULL;
    moa_seq *q = NULL;
    seen out = {0};
    int32_t ids[N];
    const moa_shape *shape = &model->shape;
    words(model->tokenizer, ids);
    must(moa_backend_open(&b, device, &config, why, sizeof why, err));
    must(moa_engine_open(&e, model, b, &(moa_engine_config){.chunk = 512}, NULL, NULL, err));
    must(moa_seq_open(&q, e, err));
    must(moa_seq_plan(q, NULL, NULL, N, MOA_WATCH_STATS | bits, NULL, 0, err));
    must(moa_seq_forward(q, &(moa_forward){.ids = ids, .n = N}, err));
    out.heads = calloc((size_t)shape->n_layer * (size_t)shape->n_head, sizeof *out.heads);
    must(moa_seq_stats(q, out.heads, err));
    moa_seq_watched(q, &out.watched);
    gather_cover(q, shape, &out);
    moa_seq_close(&q);
    moa_engine_close(&e);
    return out;
}

static void close_seen(seen *s) {
    free(s->heads);
    free(s->cover);
}

/* largest and mean differences over heads: of a mean mass, of the mean entropy (nats), of the coverage of a window */
static void differ(const moa_shape *shape, const seen *a, const seen *b, double most[3], double mean[3]) {
    const int32_t n = shape->n_layer * shape->n_head;
    for (int k = 0; k < 3; k++) most[k] = mean[k] = 0;
    for (int32_t i = 0; i < n; i++) {
        double d[3] = {fabs((double)a->heads[i].sink - (double)b->heads[i].sink),
                       fabs((double)a->heads[i].entropy - (double)b->heads[i].entropy), 0};
        for (int32_t k = 0; k < a->n_bin; k++)
            d[2] = fmax(d[2], fabs(a->cover[(int64_t)i * a->n_bin + k] - b->cover[(int64_t)i * a->n_bin + k]));
        for (int k = 0; k < 3; k++) most[k] = fmax(most[k], d[k]), mean[k] += d[k] / n;
    }
}

static void test_one_block_in_five_of_a_real_prompt(void **state) {
    (void)state;
    moa_model *model = NULL;
    double most[3], mean[3];
    const char *device = test_device() ? test_device() : "cpu";
    must(moa_model_open(&model, model_path, false, NULL, NULL, err));
    seen exact = look_at(model, device, 0), sampled = look_at(model, device, MOA_WATCH_SAMPLED);
    assert_int_equal(sampled.watched.every, 5);
    assert_int_equal(sampled.watched.n_query, N);
    assert_int_equal(sampled.watched.n_seen, 4 * 64 + N % 64);
    assert_int_equal(exact.watched.every, 1);
    assert_int_equal(exact.watched.n_seen, N);
    differ(&model->shape, &exact, &sampled, most, mean);
    print_message("sampled against exact, mean and most over heads: sink %.4f %.4f, entropy %.3f %.3f nats, coverage %.4f %.4f\n", mean[0],
                  most[0], mean[1], most[1], mean[2], most[2]);
    /* chance of four draws, the same ones every time */
    assert_true(mean[0] < .08 && mean[1] < .2 && mean[2] < .06);
    assert_true(most[0] < .2 && most[1] < 1 && most[2] < .2);
    if (test_device()) { /* the same queries, the same figures but for halves */
        seen cpu = look_at(model, "cpu", MOA_WATCH_SAMPLED);
        assert_int_equal(cpu.watched.n_seen, sampled.watched.n_seen);
        differ(&model->shape, &cpu, &sampled, most, mean);
        print_message("%s against the CPU, both sampled: sink %.5f %.5f, entropy %.4f %.4f nats, coverage %.5f %.5f\n", device, mean[0], most[0],
                      mean[1], most[1], mean[2], most[2]);
        assert_true(mean[0] < 2e-3 && mean[1] < 1e-2 && mean[2] < 2e-3 && most[0] < 2e-2 && most[1] < .1 && most[2] < 2e-2);
        close_seen(&cpu);
    }
    close_seen(&exact);
    close_seen(&sampled);
    moa_model_close(&model);
}

int main(void) {
    if (EVERY > 1) {
        printf("skipped: a sanitized build would take a minute for the figures of a release build; test_engine_sampled looks at its memory\n");
        return 77;
    }
    const char *named = getenv("MOA_TEST_MODEL");
    if (moa_model_find(named && *named ? named : "SmolLM2-135M-Instruct-Q4_1", model_path, sizeof model_path, NULL) != MOA_OK) {
        printf("skipped: SmolLM2-135M-Instruct-Q4_1.gguf is in none of the model folders (scripts/fetch_model.py fetches it)\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_block_in_five_of_a_real_prompt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
