/* Models with random weights: sizes as published, elements of the size they should have, none zero, the same for the same seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/engine.h"
#include "core/model/model.h"

/* parameters as the models' cards and configurations give them, exactly */
static void test_sizes(void **state) {
    (void)state;
    static const struct {
        const char *shape;
        uint64_t n_param;
    } known[] = {{"llama3-8b", 8030261248},
                 {"vicuna-7b", 6738415616},
                 {"smollm2", 134515008},
                 {"qwen2.5-1.5b", 1543714304},
                 {"qwen2.5-0.5b", 494032768}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        moa_model *m = NULL;
        moa_err err = {0};
        if (moa_model_random(&m, known[i].shape, "f16", 1, &err) != MOA_OK) fail_msg("%s", err.text);
        assert_int_equal(m->n_param, known[i].n_param);
        moa_model_close(&m);
    }
}

static void check_tensor(const moa_model *m, const moa_weight *w, bool floats) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)w->type);
    const size_t n = (size_t)w->n_out * (size_t)w->n_in;
    unsigned char *a = malloc(w->bytes), *b = malloc(w->bytes);
    float *x = malloc(n * sizeof *x);
    double sum = 0, square = 0;
    size_t zero = 0;
    assert_true(a && b && x);
    memset(a, 0xa5, w->bytes);
    m->make(m, w, a);
    m->make(m, w, b);
    assert_memory_equal(a, b, w->bytes);
    info->decode(a, x, n);
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(x[i]));
        sum += (double)x[i];
        square += (double)x[i] * (double)x[i];
        zero += x[i] == 0;
    }
    const double rms = sqrt(square / (double)n) * sqrt((double)w->n_in);
    if (w->n_out > 1) {
        assert_true(rms > (floats ? .68 : .95) &&
                    rms < (floats ? 1.45 : 1.05)); /* floats: to a power of two */
        assert_true(fabs(sum / (double)n) * sqrt((double)w->n_in) < 0.12);
    }
    if (floats) assert_int_equal(zero, 0);
    free(a);
    free(b);
    free(x);
}

static void test_tensors(void **state) {
    (void)state;
    static const char *const types[] = {"q4_0", "q4_1", "q8_0", "q4_k", "q4_k_m", "f16", "bf16"};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        moa_model *m = NULL;
        moa_err err = {0};
        const char *shape = strncmp(types[t], "q4_k", 4) == 0 ? "qwen2.5-1.5b" : "smollm2";
        if (moa_model_random(&m, shape, types[t], 3, &err) != MOA_OK) fail_msg("%s", err.text);
        const moa_layer *y = &m->layers[1];
        const moa_weight *some[] = {&y->wq, &y->wk, &y->wo, &y->attn_norm, &y->bq, &y->wv};
        for (size_t i = 0; i < sizeof some / sizeof *some; i++)
            if (some[i]->bytes) check_tensor(m, some[i], t >= 5);
        /* tensors differ from each other, and from those of another seed */
        unsigned char a[256], b[256], c[256];
        moa_weight part[] = {y->wk, y->wv, y->wk};
        for (int i = 0; i < 3; i++) {
            unsigned char *all = malloc(part[i].bytes);
            assert_non_null(all);
            m->make_seed = i == 2 ? 4 : 3;
            m->make(m, &part[i], all);
            memcpy(i == 0 ? a : i == 1 ? b : c, all, 256);
            free(all);
        }
        assert_memory_not_equal(a, b, 256);
        assert_memory_not_equal(a, c, 256);
        moa_model_close(&m);
    }
}

/* Q4_K_M: as many tensors of each type as Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf has, and its number of parameters */
static void test_mixed(void **state) {
    (void)state;
    moa_model *m = NULL;
    moa_err err = {0};
    int v = 0, down = 0, other = 0;
    if (moa_model_random(&m, "qwen2.5-1.5b", "q4_k_m", 1, &err) != MOA_OK) fail_msg("%s", err.text);
    for (int32_t l = 0; l < 28; l++) {
        const moa_layer *y = &m->layers[l];
        v += y->wv.type == MOA_Q6_K;
        down += y->down.type == MOA_Q6_K;
        other += y->wq.type == MOA_Q4_K && y->wk.type == MOA_Q4_K && y->wo.type == MOA_Q4_K && y->gate.type == MOA_Q4_K && y->up.type == MOA_Q4_K;
    }
    assert_true(v == 14 && down == 14 && other == 28);
    assert_true(m->embed.type == MOA_Q4_K && m->output.type == MOA_Q6_K && !m->tied);
    assert_int_equal(m->n_param, 1543714304 + 151936 * 1536);
    moa_model_close(&m);
}

/* an engine loads it, and what comes out is finite and of a sensible size */
static void test_engine(void **state) {
    (void)state;
    moa_model *m = NULL;
    moa_backend *b = NULL;
    moa_engine *e = NULL;
    moa_seq *s = NULL;
    moa_err err = {0};
    static const int32_t ids[] = {5, 17, 40000, 9, 5};
    if (moa_model_random(&m, "smollm2", "q4_0", 1, &err) != MOA_OK ||
        moa_cpu_open(&b, NULL, &err) != MOA_OK ||
        moa_engine_open(&e, m, b, NULL, NULL, NULL, &err) != MOA_OK || moa_seq_open(&s, e, &err) != MOA_OK ||
        moa_seq_plan(s, NULL, NULL, 16, 0, NULL, 0, &err) != MOA_OK)
        fail_msg("%s", err.text);
    float *logits = malloc((size_t)m->shape.n_vocab * sizeof *logits);
    assert_non_null(logits);
    if (moa_seq_forward(s, &(moa_forward){.ids = ids, .n = 5, .logits = logits}, &err) != MOA_OK)
        fail_msg("%s", err.text);
    double square = 0;
    for (int32_t i = 0; i < m->shape.n_vocab; i++) {
        assert_true(isfinite(logits[i]));
        square += (double)logits[i] * (double)logits[i];
    }
    const double rms = sqrt(square / m->shape.n_vocab);
    assert_true(rms > .5 && rms < 2);
    free(logits);
    moa_seq_close(&s);
    moa_engine_close(&e);
    moa_model_close(&m);
}

static void test_refusals(void **state) {
    (void)state;
    moa_model *m = NULL;
    moa_err err = {0};
    assert_int_equal(moa_model_random(&m, "gpt2", "f16", 1, &err), MOA_E_USAGE);
    assert_non_null(strstr(err.text, "vicuna-7b"));
    assert_int_equal(moa_model_random(&m, "smollm2", "q3", 1, &err), MOA_E_USAGE);
    assert_int_equal(moa_model_random(&m, "smollm2", "q4_k", 1, &err), MOA_E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "576"));
    assert_null(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sizes), cmocka_unit_test(test_tensors), cmocka_unit_test(test_mixed),
                                       cmocka_unit_test(test_engine), cmocka_unit_test(test_refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
