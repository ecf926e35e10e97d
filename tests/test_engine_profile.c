/* The influence profile of whole items.
 *
 * What must hold of any profile, whatever the model: its loss, its shape, where gradients cannot be, what shorter items, cancelling and
 * refusals may not change. The values themselves are checked against an independent program in script_profile.sh. */
#include "engine_fixture.h"

#include "core/engine/profile.h"

enum { N = 200, K = 150, NB = 4 };

typedef struct bench {
    moa_model *model;
    moa_engine *e;
    int32_t ids[N];
} bench;

static bench bench_open(const char *name, bool reference) {
    bench b = {.model = open_model(name)};
    moa_backend *cpu = NULL;
    const moa_backend_config config = {.n_threads = 2, .reference = reference};
    char why[256];
    if (test_device() && !reference) must(moa_backend_open(&cpu, test_device(), &config, why, sizeof why, err));
    else must(moa_cpu_open(&cpu, &config, err));
    must(moa_engine_open(&b.e, b.model, cpu, NULL, NULL, NULL, err));
    moa_pcg32 g = moa_pcg32_seed(7, 3);
    random_ids(&g, b.ids, N, b.model->shape.n_vocab);
    return b;
}
static void bench_close(bench *b) {
    moa_engine_close(&b->e);
    moa_model_close(&b->model);
}

static size_t n_heads(const bench *b) { return (size_t)b->model->shape.n_layer * (size_t)b->model->shape.n_head; }

static moa_influence profile_item(bench *b, int32_t n_max, const moa_profile_item *item, double *loss) {
    moa_influence f = {0};
    moa_profile *p = NULL;
    must(moa_influence_open(&f, &b->model->shape, n_max, err));
    must(moa_profile_open(&p, b->e, n_max, err));
    must(moa_profile_add(p, item, &f, loss, err));
    moa_profile_close(&p);
    assert_null(p);
    return f;
}
static moa_influence profile_of(bench *b, int32_t n_max, int32_t n, int32_t from, double *loss) {
    return profile_item(b, n_max, &(moa_profile_item){.ids = b->ids, .n = n, .supervise_from = from}, loss);
}

static double norm(const double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sqrt(sum);
}
static void assert_near(const char *name, const double *x, const double *y, size_t n, double limit) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (x[i] - y[i]) * (x[i] - y[i]);
    const double far = sqrt(sum) / norm(y, n);
    if (!(far <= limit)) fail_msg("%s: relative error %.2e, limit %.0e", name, far, limit);
}


/* the loss is the one that ordinary prefill gives, of full attention and under a plan; margin changes nothing of it */
static void loss_is_the_models(void **state) {
    (void)state;
    moa_rule rules[64];
    moa_pcg32 g = moa_pcg32_seed(5, 1);
    for (size_t m = 0; m < 4; m++) {
        bench b = bench_open(tiny_models[m % 2], true);
        const int32_t n_vocab = b.model->shape.n_vocab;
        double loss = 0, want = 0;
        assert_true(n_heads(&b) <= 64);
        random_rules(&g, rules, (int32_t)n_heads(&b), m < 2 ? 1 : 2);
        moa_influence f = profile_item(&b, N, &(moa_profile_item){.ids = b.ids, .n = N, .supervise_from = K, .rules = m < 2 ? NULL : rules,
                                                                  .margin = m == 3}, &loss);
        moa_seq *s = NULL;
        float *rows = take((size_t)N * (size_t)n_vocab, sizeof *rows);
        collect c = {rows, 0, n_vocab};
        must(moa_seq_open(&s, b.e, err));
        must(moa_seq_plan(s, rules, NULL, N, 0, NULL, 0, err));
        must(moa_seq_forward(s, &(moa_forward){.ids = b.ids, .n = N, .each_logits = collect_row, .user = &c}, err));
        for (int32_t t = K; t < N; t++) {
            const float *z = rows + (int64_t)(t - 1) * n_vocab;
            double sum = 0;
            for (int32_t i = 0; i < n_vocab; i++) sum += exp((double)z[i] - z[b.ids[t]]);
            want += log(sum) / (N - K);
        }
        assert_float_equal(loss, want, 2e-3 * want); /* keys of half precision there */
        assert_float_equal(f.loss, loss, 0);
        assert_int_equal(f.n_item, 1);
        assert_int_equal(f.n_supervised, N - K);
        free(rows);
        moa_seq_close(&s);
        moa_influence_free(&f);
        bench_close(&b);
    }
}

/* rules that cut nothing are full attention; a shorter item takes the spans of the whole length, and what lies beyond it is all kept */
static void rules_of_the_length(void **state) {
    (void)state;
    bench b = bench_open("tiny_qwen2", false);
    const size_t n = n_heads(&b);
    moa_rule rules[64];
    assert_true(n <= 64);
    for (int shorter = 0; shorter < 2; shorter++) {
        const int32_t len = shorter ? 120 : N; /* of which a span of 128 sees all */
        const moa_rule dense[2] = {{0, 1}, {128, 0}};
        moa_influence x = profile_of(&b, N, len, 100, NULL), y = {0};
        for (size_t h = 0; h < n; h++) rules[h] = dense[shorter && h % 2];
        y = profile_item(&b, N, &(moa_profile_item){.ids = b.ids, .n = len, .supervise_from = 100, .rules = rules}, NULL);
        assert_memory_equal(x.sum, y.sum, n * NB * NB * sizeof *x.sum);
        assert_memory_equal(x.joint, y.joint, n * (NB + 1) * sizeof *x.joint);
        moa_influence_free(&x);
        moa_influence_free(&y);
    }
    /* 128 tokens seen of 150: the widest windows, beyond the item's 3 blocks of 4 too, all say the same and not 0 */
    for (size_t h = 0; h < n; h++) rules[h] = (moa_rule){0, 0};
    moa_influence z = profile_item(&b, N, &(moa_profile_item){.ids = b.ids, .n = 150, .supervise_from = 140, .rules = rules}, NULL);
    for (size_t h = 0; h < n; h++) {
        const double *joint = z.joint + h * (NB + 1);
        assert_true(joint[2] != 0 && joint[3] == joint[2] && joint[4] == joint[3]);
    }
    moa_influence_free(&z);
    bench_close(&b);
}

static void shapes_and_signs(void **state) {
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        bench b = bench_open(tiny_models[m], false);
        moa_influence f = profile_of(&b, N, N, K, NULL);
        const int32_t below_last = b.model->shape.n_head * (b.model->shape.n_layer - 1);
        for (size_t h = 0; h < n_heads(&b); h++) {
            const double *abs = f.abs + h * NB * NB, *sum = f.sum + h * NB * NB, *joint = f.joint + h * (NB + 1);
            for (int q = 0; q < NB; q++)
                for (int k = 0; k < NB; k++) {
                    assert_true(isfinite(abs[q * NB + k]) && isfinite(sum[q * NB + k]));
                    assert_true(fabs(sum[q * NB + k]) <= abs[q * NB + k] * (1 + 1e-6));
                    if (k > q) assert_float_equal(abs[q * NB + k], 0, 0);
                    else if ((int32_t)h < below_last || q >= K / 64) /* before the answer: through the layers above */
                        assert_true(abs[q * NB + k] > 0);
                }
            assert_float_equal(joint[0], 0, 0);
            assert_true(joint[1] != 0 && joint[NB - 2] != 0);
            assert_float_equal(joint[NB - 1], 0, 0); /* with the sink's block nothing is cut */
            assert_float_equal(joint[NB], 0, 0);
        }
        assert_int_equal(f.n_clamped, 0);
        moa_influence_free(&f);
        bench_close(&b);
    }
}

/* In the last layer only supervised rows have a gradient: with K = 150 those of blocks 2 and 3 */
static void last_layer_starts_at_the_answer(void **state) {
    (void)state;
    bench b = bench_open("tiny_llama", true);
    moa_influence f = profile_of(&b, N, N, 130, NULL); /* row 129 predicts token 130 */
    const int32_t n_head = b.model->shape.n_head;
    bool below = false;
    for (int32_t h = 0; h < n_head * b.model->shape.n_layer; h++)
        for (int q = 0; q < 2; q++)
            for (int k = 0; k <= q; k++) {
                const double x = f.abs[((int64_t)h * NB + q) * NB + k];
                if (h >= n_head * (b.model->shape.n_layer - 1)) assert_float_equal(x, 0, 0);
                else below = below || x > 0;
            }
    assert_true(below);
    moa_influence_free(&f);
    bench_close(&b);
}

static void fast_as_reference(void **state) {
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        bench x = bench_open(tiny_models[m], false), y = bench_open(tiny_models[m], true);
        moa_influence f = profile_of(&x, N, N, K, NULL), g = profile_of(&y, N, N, K, NULL);
        const size_t n = n_heads(&x);
        /* the fast products round activations to 16 bits (CPU) or multiply in half precision unless told not to (CUDA) */
        const char *gemm = getenv("MOASCOPE_CUDA_GEMM");
        const double coarse = test_device() && !(gemm && strcmp(gemm, "f32") == 0) ? 10 : 1;
        assert_near("abs", f.abs, g.abs, n * NB * NB, coarse * 2e-3);
        assert_near("sum", f.sum, g.sum, n * NB * NB, coarse * 1e-2);
        assert_near("joint", f.joint, g.joint, n * (NB + 1), coarse * 1e-2);
        assert_float_equal(f.loss, g.loss, coarse * 1e-4 * g.loss);
        moa_influence_free(&f);
        moa_influence_free(&g);
        bench_close(&x);
        bench_close(&y);
    }
}

/* a shorter item in the sums of a longer length is the item alone, in the corner; two items are their sum */
static void items_add_up(void **state) {
    (void)state;
    bench b = bench_open("tiny_qwen2", false);
    moa_influence alone = profile_of(&b, 70, 70, 20, NULL), whole = profile_of(&b, N, N, K, NULL), both = {0};
    moa_profile *p = NULL;
    must(moa_influence_open(&both, &b.model->shape, N, err));
    must(moa_profile_open(&p, b.e, N, err));
    must(moa_profile_add(p, &(moa_profile_item){.ids = b.ids, .n = 70, .supervise_from = 20}, &both, NULL, err));
    must(moa_profile_add(p, &(moa_profile_item){.ids = b.ids, .n = N, .supervise_from = K}, &both, NULL, err));
    for (size_t h = 0; h < n_heads(&b); h++) {
        for (size_t q = 0; q < NB; q++)
            for (size_t k = 0; k < NB; k++) {
                const double small = q < 2 && k < 2 ? alone.sum[(h * 2 + q) * 2 + k] : 0;
                const size_t at = (h * NB + q) * NB + k;
                assert_float_equal(both.sum[at], whole.sum[at] + small, 1e-6 * (fabs(both.sum[at]) + 1));
            }
        for (size_t w = 0; w <= NB; w++)
            assert_float_equal(both.joint[h * (NB + 1) + w], whole.joint[h * (NB + 1) + w] + (w < 3 ? alone.joint[h * 3 + w] : 0), 1e-6);
    }
    assert_int_equal(both.n_item, 2);
    moa_profile_close(&p);
    moa_influence_free(&alone);
    moa_influence_free(&whole);
    moa_influence_free(&both);
    bench_close(&b);
}

/* what is kept of the forward pass is what would be computed again: of no layer, of the last, of all */
static void kept_layers_change_nothing(void **state) {
    (void)state;
    bench b = bench_open("tiny_llama", false);
    const int32_t n_layer = b.model->shape.n_layer;
    const size_t n = n_heads(&b);
    moa_influence f[3] = {{0}};
    int32_t kept[3];
    double loss[3];
    for (int i = 0; i < 3; i++) {
        moa_profile *p = NULL;
        uint64_t keep = i == 0 ? 0 : i == 1 ? 1 : (uint64_t)1 << 30;
        do { /* grows until there is room for one layer */
            moa_profile_close(&p);
            must(moa_profile_open_as(&p, b.e, &(moa_profile_config){.n_tok_max = N, .n_room = i == 2 ? 2 * N + 7 : N, .keep_bytes = keep}, err));
            kept[i] = moa_profile_kept(p);
            keep += keep / 8 + 1;
        } while (i == 1 && kept[i] == 0);
        must(moa_influence_open(&f[i], &b.model->shape, N, err));
        for (int item = 0; item < 2; item++) /* the second finds what the first has left */
            must(moa_profile_add(p, &(moa_profile_item){.ids = b.ids, .n = item ? N : 90, .supervise_from = item ? K : 60}, &f[i], &loss[i],
                                 err));
        moa_profile_close(&p);
    }
    assert_int_equal(kept[0], 0);
    assert_int_equal(kept[1], 1);
    assert_int_equal(kept[2], n_layer);
    assert_true(n_layer > 1);
    for (int i = 1; i < 3; i++) {
        assert_memory_equal(f[i].abs, f[0].abs, n * NB * NB * sizeof *f[i].abs);
        assert_memory_equal(f[i].sum, f[0].sum, n * NB * NB * sizeof *f[i].sum);
        assert_memory_equal(f[i].joint, f[0].joint, n * (NB + 1) * sizeof *f[i].joint);
        assert_float_equal(loss[i], loss[0], 0);
    }
    for (int i = 0; i < 3; i++)
        moa_influence_free(&f[i]);
    bench_close(&b);
}

/* the times of the parts are those of the item, and asking for them changes nothing */
static void times_add_up(void **state) {
    (void)state;
    bench b = bench_open("tiny_qwen2", false);
    double part[MOA_N_PROFILE_KIND] = {0};
    moa_influence x = profile_of(&b, N, N, K, NULL),
                  y = profile_item(&b, N, &(moa_profile_item){.ids = b.ids, .n = N, .supervise_from = K, .seconds = part}, NULL);
    for (int i = 0; i < MOA_N_PROFILE_KIND; i++)
        assert_true(part[i] > 0 && part[i] < 60);
    assert_memory_equal(x.sum, y.sum, n_heads(&b) * NB * NB * sizeof *x.sum);
    moa_influence_free(&x);
    moa_influence_free(&y);
    bench_close(&b);
}

/* several items at once are what they are one after the other; what does not go together is refused */
static void items_go_together(void **state) {
    (void)state;
    for (size_t m = 0; m < 2; m++) {
        bench b = bench_open(tiny_models[m], false);
        const size_t n = n_heads(&b);
        moa_rule rules[64];
        moa_pcg32 g = moa_pcg32_seed(11, 1);
        assert_true(n <= 64);
        random_rules(&g, rules, (int32_t)n, 2);
        const moa_rule *r = m == 1 ? rules : NULL;
        moa_profile_item items[100] = {{.ids = b.ids, .n = 30, .supervise_from = 20, .rules = r},
                                       {.ids = b.ids + 50, .n = 2, .supervise_from = 1, .rules = r, .margin = true},
                                       {.ids = b.ids + 9, .n = N - 32, .supervise_from = 150, .rules = r}};
        moa_influence x = {0}, y = {0}, z = {0};
        moa_profile *p = NULL;
        moa_err e = {0};
        double loss[3] = {0}, one[3];
        must(moa_influence_open(&x, &b.model->shape, N, err));
        must(moa_influence_open(&y, &b.model->shape, N, err));
        must(moa_influence_open(&z, &b.model->shape, N, err));
        must(moa_profile_open_as(&p, b.e, &(moa_profile_config){.n_tok_max = N, .n_room = N}, err));
        assert_int_equal(moa_profile_take(p, items, 0), 0);
        assert_int_equal(moa_profile_take(p, items, 2), 2);
        assert_int_equal(moa_profile_take(p, items, 3), 3);
        must(moa_profile_add_all(p, items, 3, &x, loss, err));
        for (int i = 0; i < 3; i++) must(moa_profile_add(p, &items[i], &y, &one[i], err));
        for (int i = 0; i < 3; i++) assert_float_equal(loss[i], one[i], 1e-3 * one[i]);
        const double limit = test_device() ? 1e-2 : 1e-4;
        assert_near("abs", x.abs, y.abs, n * NB * NB, limit);
        assert_near("sum", x.sum, y.sum, n * NB * NB, limit);
        assert_near("joint", x.joint, y.joint, n * (NB + 1), limit);
        assert_int_equal(x.n_item, 3);
        assert_true(x.n_supervised == y.n_supervised && x.n_clamped == y.n_clamped);
        items[2].n++; /* a token too many */
        assert_int_equal(moa_profile_take(p, items, 3), 2);
        assert_int_equal(moa_profile_add_all(p, items, 3, &z, NULL, &e), MOA_E_INVALID);
        items[2].n--;
        items[2].rules = m == 1 ? NULL : rules;
        assert_int_equal(moa_profile_take(p, items, 3), 2);
        assert_int_equal(moa_profile_add_all(p, items, 3, &z, NULL, &e), MOA_E_INVALID);
        assert_int_equal(moa_profile_add_all(p, items, 0, &z, NULL, &e), MOA_E_INVALID);
        items[0].n = N; /* alone it goes, and what is wrong with it is said then */
        items[0].supervise_from = N;
        assert_int_equal(moa_profile_take(p, items, 3), 1);
        assert_int_equal(moa_profile_add_all(p, items, 1, &z, NULL, &e), MOA_E_INVALID);
        /* as many as there is room for the maps of: of 100 x 2 tokens not all */
        for (int i = 0; i < 100; i++) items[i] = (moa_profile_item){.ids = b.ids + i, .n = 2, .supervise_from = 1};
        const int32_t k = moa_profile_take(p, items, 100);
        assert_in_range(k, 2, 99);
        assert_int_equal(moa_profile_add_all(p, items, k + 1, &z, NULL, &e), MOA_E_INVALID);
        assert_int_equal(z.n_item, 0);
        must(moa_profile_add_all(p, items, k, &z, NULL, err));
        assert_int_equal(z.n_item, k);
        moa_profile_close(&p);
        moa_influence_free(&x);
        moa_influence_free(&y);
        moa_influence_free(&z);
        bench_close(&b);
    }
}

typedef struct stop {
    int asked, at;
} stop;
static bool stop_at(void *user) {
    stop *s = user;
    return ++s->asked == s->at;
}

/* cancelled at any layer: nothing is added, and the next item is as if it had not been */
static void cancelling_adds_nothing(void **state) {
    (void)state;
    bench b = bench_open("tiny_llama", false);
    const int32_t steps = 2 * b.model->shape.n_layer + 1;
    moa_influence want = profile_of(&b, N, N, K, NULL), f = {0};
    moa_profile *p = NULL;
    moa_err e = {0};
    must(moa_influence_open(&f, &b.model->shape, N, err));
    must(moa_profile_open(&p, b.e, N, err));
    for (int at = 1; at <= steps; at++) {
        stop s = {0, at};
        assert_int_equal(moa_profile_add(p, &(moa_profile_item){b.ids, N, K, stop_at, NULL, &s}, &f, NULL, &e), MOA_E_CANCELLED);
        assert_int_equal(f.n_item, 0);
        assert_float_equal(norm(f.abs, n_heads(&b) * NB * NB), 0, 0);
    }
    must(moa_profile_add(p, &(moa_profile_item){.ids = b.ids, .n = N, .supervise_from = K}, &f, NULL, err));
    assert_memory_equal(f.sum, want.sum, n_heads(&b) * NB * NB * sizeof *f.sum);
    moa_profile_close(&p);
    moa_influence_free(&f);
    moa_influence_free(&want);
    bench_close(&b);
}

static void refusals(void **state) {
    (void)state;
    bench b = bench_open("tiny_llama", false);
    moa_influence f = {0};
    moa_profile *p = NULL;
    moa_err e = {0};
    int32_t bad[N];
    memcpy(bad, b.ids, sizeof bad);
    bad[9] = b.model->shape.n_vocab;
    assert_int_equal(moa_profile_open(&p, b.e, 1, &e), MOA_E_INVALID);
    assert_int_equal(moa_profile_open(&p, b.e, b.model->shape.n_ctx + 1, &e), MOA_E_INVALID);
    assert_null(p);
    must(moa_influence_open(&f, &b.model->shape, 100, err));
    must(moa_profile_open(&p, b.e, N, err));
    const moa_profile_item items[] = {{b.ids, 1, 1},   {b.ids, 101, 50}, {b.ids, 100, 0}, {b.ids, 100, 100},
                                      {b.ids, -1, 1},  {bad, 100, 50}};
    for (size_t i = 0; i < sizeof items / sizeof *items; i++) {
        assert_int_equal(moa_profile_add(p, &items[i], &f, NULL, &e), MOA_E_INVALID);
        assert_int_equal(f.n_item, 0);
        assert_true(e.text[0] != 0);
    }
    moa_profile_close(&p);
    moa_profile_close(&p); /* nothing is left to close */
    moa_influence_free(&f);
    bench_close(&b);
    /* a backend that has no gradients: the spy passes on the ordinary operations alone */
    rig r = rig_open((rig_config){.model = "tiny_llama"});
    assert_int_equal(moa_profile_open(&p, r.e, N, &e), MOA_E_UNSUPPORTED);
    assert_string_equal(e.text, "backend spy has no gradients: the profile cannot run on it");
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_is_the_models),       cmocka_unit_test(rules_of_the_length),
        cmocka_unit_test(shapes_and_signs),
        cmocka_unit_test(last_layer_starts_at_the_answer), cmocka_unit_test(fast_as_reference),
        cmocka_unit_test(items_add_up),             cmocka_unit_test(items_go_together),
        cmocka_unit_test(kept_layers_change_nothing),
        cmocka_unit_test(times_add_up),             cmocka_unit_test(cancelling_adds_nothing),
        cmocka_unit_test(refusals)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
