/* What the probe and the maps say, against the whole N x N attention of the brute-force pass. */
#include "engine_fixture.h"

enum { N_MAX = 400 };
/* of a mass of 1, mean of some hundred queries: float32 sums (CPU); probabilities of half precision (CUDA) */
static double tolerance(void) { return test_device() ? 5e-3 : 5e-5; }

typedef struct probed {
    rig r;
    brute b;
    int32_t n, ids[N_MAX], span[64], measure[64];
    moa_rule rules[64], measure_rules[64];
} probed;

static double *attention(const probed *p, int32_t l, int32_t h) {
    return p->b.a + ((int64_t)l * p->r.shape->n_head + h) * p->n * p->n;
}

/* n tokens: most in chunks, then single ones */
static void open_probed(probed *p, const char *model, bool fast, bool measure, int watch) {
    p->r = rig_open((rig_config){.model = model, .fast = fast, .recording = true,
                                 .engine = {.kv_type = MOA_KV_F32, .chunk = 90}});
    moa_pcg32 g = moa_pcg32_seed(41 + fast, 1);
    p->n = 333;
    random_ids(&g, p->ids, p->n, p->r.shape->n_vocab);
    random_rules(&g, p->rules, p->r.n_span, 0);
    random_rules(&g, p->measure_rules, p->r.n_span, 0);
    for (int32_t i = 0; i < p->r.n_span; i++) {
        p->span[i] = brute_span(p->rules[i], p->n);
        p->measure[i] = measure ? brute_span(p->measure_rules[i], p->n) : p->span[i];
    }
    plan_sees sees = {p->span, p->r.shape->n_head};
    p->b = brute_run(p->r.model, p->ids, p->n, MOA_KV_F32, sees_by_plan, &sees, true);
    must(moa_seq_plan(p->r.s, p->rules, measure ? p->measure_rules : NULL, p->n, watch, NULL, 0, err));
    feed(&p->r, p->ids, p->n - 20, 0, NULL);
    for (int32_t i = p->n - 20; i < p->n; i++) feed(&p->r, p->ids + i, 1, 0, NULL);
}

static void close_probed(probed *p) {
    brute_free(&p->b);
    rig_close(&p->r);
}

static void check_head(const probed *p, int32_t l, int32_t h, const moa_head_stats *s) {
    const double *a = attention(p, l, h);
    const int32_t measure = p->measure[l * p->r.shape->n_head + h];
    double entropy = 0, sink = 0, window = 0, distance = 0, worst = INFINITY, cover_of_worst = 0;
    for (int32_t i = 0; i < p->n; i++) {
        double cover = 0;
        for (int32_t j = 0; j <= i; j++) {
            const double x = a[(int64_t)i * p->n + j];
            if (x > 0) entropy -= x * log(x);
            if (j < 64) sink += x;
            else if (i - j < measure - 64) window += x;
            if (j < 64 || i - j < measure - 64) cover += x;
            distance += x * (i - j);
        }
        if (cover < worst) worst = cover;
        if (i == s->worst_query) cover_of_worst = cover;
    }
    assert_int_equal(s->n_query, p->n);
    assert_true(fabs(entropy / p->n - (double)s->entropy) < tolerance() * 6);
    assert_true(fabs(sink / p->n - (double)s->sink) < tolerance());
    assert_true(fabs(window / p->n - (double)s->window) < tolerance());
    assert_true(fabs(distance / p->n - (double)s->distance) < tolerance() * p->n);
    /* a single query: float32 activations move its scores by some 1e-5 */
    assert_true(fabs(worst - (double)s->worst_cover) < 4 * tolerance());
    assert_true(fabs(worst - cover_of_worst) < 4 * tolerance());
}

static void test_stats_equal_brute_force(void **state) {
    (void)state;
    for (int m = 0; m < 2; m++)
        for (int measure = 0; measure < 2; measure++) {
            probed p;
            moa_head_stats stats[64];
            open_probed(&p, tiny_models[m], m == 0, measure, MOA_WATCH_STATS);
            must(moa_seq_stats(p.r.s, stats, err));
            for (int32_t l = 0; l < p.r.shape->n_layer; l++)
                for (int32_t h = 0; h < p.r.shape->n_head; h++) check_head(&p, l, h, &stats[l * p.r.shape->n_head + h]);
            close_probed(&p);
        }
}

/* Mass per query bucket and distance bin, and from it the coverage of every window, without another run. */
static void check_hist(const probed *p, int32_t l) {
    float *hist = NULL;
    int32_t n_bin, bucket_tok;
    int64_t queries[MOA_HIST_BUCKETS], sum = 0;
    must(moa_seq_hist(p->r.s, l, &hist, &n_bin, &bucket_tok, queries, err));
    assert_int_equal(n_bin, (p->n + 63) / 64);
    assert_int_equal(bucket_tok, (p->n + 7) / 8);
    for (int b = 0; b < MOA_HIST_BUCKETS; b++) sum += queries[b];
    assert_int_equal(sum, p->n);
    for (int32_t h = 0; h < p->r.shape->n_head; h++) {
        const double *a = attention(p, l, h);
        double total = 0;
        for (int b = 0; b < MOA_HIST_BUCKETS; b++) {
            const float *row = hist + ((int64_t)h * MOA_HIST_BUCKETS + b) * (1 + n_bin);
            double expected[32] = {0}, mass = 0;
            int64_t n_query = 0;
            for (int32_t i = b * bucket_tok; i < p->n && i < (b + 1) * bucket_tok; i++, n_query++)
                for (int32_t j = 0; j <= i; j++) expected[j < 64 ? 0 : 1 + (i - j) / 64] += a[(int64_t)i * p->n + j];
            assert_int_equal(queries[b], n_query);
            for (int32_t k = 0; k <= n_bin; k++) {
                assert_true(fabs(expected[k] - (double)row[k]) < tolerance() * p->n / 8);
                mass += (double)row[k];
            }
            assert_true(fabs(mass - (double)n_query) < 20 * tolerance()); /* every query has mass 1 */
            total += mass;
        }
        assert_true(fabs(total - p->n) < 200 * tolerance());
    }
    free(hist);
}

static void test_histogram_equals_brute_force(void **state) {
    (void)state;
    for (int fast = 0; fast < 2; fast++) {
        probed p;
        open_probed(&p, "tiny_llama", fast, false, MOA_WATCH_STATS);
        for (int32_t l = 0; l < p.r.shape->n_layer; l++) check_hist(&p, l);
        close_probed(&p);
    }
}

/* A dense run's histogram tells what any window would keep. */
static void test_coverage_of_windows_from_a_dense_run(void **state) {
    (void)state;
    probed p = {.n = 320};
    p.r = rig_open((rig_config){.model = "tiny_llama", .engine = {.kv_type = MOA_KV_F32}});
    moa_pcg32 g = moa_pcg32_seed(13, 1);
    random_ids(&g, p.ids, p.n, p.r.shape->n_vocab);
    for (int32_t i = 0; i < p.r.n_span; i++) p.span[i] = p.n;
    plan_sees sees = {p.span, p.r.shape->n_head};
    p.b = brute_run(p.r.model, p.ids, p.n, MOA_KV_F32, sees_by_plan, &sees, true);
    must(moa_seq_plan(p.r.s, NULL, NULL, p.n, MOA_WATCH_STATS, NULL, 0, err));
    feed(&p.r, p.ids, p.n, 0, NULL);
    for (int32_t l = 0; l < p.r.shape->n_layer; l++) {
        float *hist = NULL;
        int32_t n_bin, bucket_tok;
        int64_t queries[MOA_HIST_BUCKETS];
        must(moa_seq_hist(p.r.s, l, &hist, &n_bin, &bucket_tok, queries, err));
        for (int32_t h = 0; h < p.r.shape->n_head; h++)
            for (int32_t span = 128; span <= 384; span += 64) {
                double kept = 0, expected = 0;
                for (int b = 0; b < MOA_HIST_BUCKETS; b++) {
                    const float *row = hist + ((int64_t)h * MOA_HIST_BUCKETS + b) * (1 + n_bin);
                    for (int32_t k = 0; k <= n_bin; k++)
                        if (k == 0 || (k - 1) * 64 < span - 64) kept += (double)row[k];
                }
                for (int32_t i = 0; i < p.n; i++)
                    for (int32_t j = 0; j <= i; j++)
                        if (j < 64 || i - j < span - 64) expected += attention(&p, l, h)[(int64_t)i * p.n + j];
                assert_true(fabs(kept - expected) < 20 * tolerance());
            }
        free(hist);
    }
    close_probed(&p);
}

static void test_off_costs_nothing(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = {.chunk = 64}});
    moa_pcg32 g = moa_pcg32_seed(1, 1);
    int32_t ids[200];
    moa_head_stats stats[64];
    float *hist = NULL, cell;
    int32_t n_bin, bucket_tok;
    int64_t queries[MOA_HIST_BUCKETS];
    random_ids(&g, ids, 200, r.shape->n_vocab);
    for (int watch = 0; watch < 2; watch++) {
        const int64_t bytes_before = r.spy->live_bytes;
        const long calls_before = r.spy->n_calls, allocs_before = r.spy->n_alloc;
        moa_seq_reset(r.s);
        must(moa_seq_plan(r.s, NULL, NULL, 200, watch ? MOA_WATCH_STATS | MOA_WATCH_CAPTURE : 0, NULL, 0, err));
        feed(&r, ids, 200, 0, NULL);
        assert_int_equal(r.spy->n_op[SPY_capture] > 0, watch);
        assert_int_equal(moa_seq_capture_bytes(r.s) > 0, watch);
        if (watch) continue;
        assert_int_equal(r.spy->n_alloc - allocs_before, 2); /* tables and spans, the pool */
        /* 4 chunks: input, table, a sync each; spans once; 2 layers of 14 operations, embedding */
        assert_int_equal(r.spy->n_calls - calls_before, 2 + 4 * (1 + 2 + 1) + 1 + 4 * (1 + 2 * 14));
        assert_true(r.spy->live_bytes > bytes_before);
        assert_int_equal(moa_seq_stats(r.s, stats, NULL), MOA_E_FAILED);
        assert_int_equal(moa_seq_hist(r.s, 0, &hist, &n_bin, &bucket_tok, queries, NULL), MOA_E_FAILED);
        const moa_map_request m = {.q1 = 1, .k1 = 1, .rows = 1, .cols = 1};
        assert_int_equal(moa_seq_map(r.s, &m, &cell, NULL, NULL, NULL), MOA_E_FAILED);
    }
    rig_close(&r);
}

/* --- maps -------------------------------------------------------------------------------------------------------------------- */

static int32_t cut(int32_t from, int32_t to, int32_t r, int32_t parts) {
    return from + (int32_t)((int64_t)r * (to - from) / parts);
}

/* the map against sums of a full attention matrix */
static void check_map(rig *r, const double *a, int32_t n, moa_map_request m) {
    const size_t cells = (size_t)m.rows * (size_t)m.cols;
    float *mass = take(cells, sizeof *mass), *max = take(cells, sizeof *max), *stat = take((size_t)m.rows * MOA_N_STAT, sizeof *stat);
    must(moa_seq_map(r->s, &m, mass, max, stat, err));
    for (int32_t y = 0; y < m.rows; y++) {
        const int32_t i0 = cut(m.q0, m.q1, y, m.rows), i1 = cut(m.q0, m.q1, y + 1, m.rows);
        double row = 0, sink = 0;
        for (int32_t x = 0; x < m.cols; x++) {
            double sum = 0, top = 0;
            for (int32_t i = i0; i < i1; i++)
                for (int32_t j = cut(m.k0, m.k1, x, m.cols); j < cut(m.k0, m.k1, x + 1, m.cols); j++) {
                    sum += a[(int64_t)i * n + j];
                    if (a[(int64_t)i * n + j] > top) top = a[(int64_t)i * n + j];
                }
            assert_true(fabs(sum - (double)mass[y * m.cols + x]) < tolerance() * (i1 - i0));
            assert_true(fabs(top - (double)max[y * m.cols + x]) < tolerance());
            row += (double)mass[y * m.cols + x];
        }
        for (int32_t i = i0; i < i1; i++)
            for (int32_t j = 0; j < 64 && j < n; j++) sink += a[(int64_t)i * n + j];
        assert_true(fabs(sink / (i1 - i0) - (double)stat[y * MOA_N_STAT + MOA_STAT_SINK]) < tolerance());
        if (m.k0 == 0 && m.k1 >= m.q1) assert_true(fabs(row - (i1 - i0)) < 1e-4 * (i1 - i0)); /* rows of A sum to 1 */
    }
    free(mass), free(max), free(stat);
}

static void test_maps_equal_the_run(void **state) {
    (void)state;
    for (int m = 0; m < 2; m++) {
        probed p;
        open_probed(&p, tiny_models[m], false, false, MOA_WATCH_CAPTURE);
        moa_pcg32 g = moa_pcg32_seed(19, 1);
        for (int32_t l = 0; l < p.r.shape->n_layer; l++)
            for (int32_t h = 0; h < p.r.shape->n_head; h++) {
                check_map(&p.r, attention(&p, l, h), p.n,
                          (moa_map_request){.layer = l, .head = h, .q1 = p.n, .k1 = p.n, .rows = 1 + (p.n - 1) / 64, .cols = 40});
                moa_map_request z = {.layer = l, .head = h};
                z.q0 = (int32_t)random_below(&g, (uint32_t)p.n);
                z.q1 = z.q0 + 1 + (int32_t)random_below(&g, (uint32_t)(p.n - z.q0));
                z.k0 = (int32_t)random_below(&g, (uint32_t)p.n);
                z.k1 = z.k0 + 1 + (int32_t)random_below(&g, (uint32_t)(p.n - z.k0));
                z.rows = 1 + (int32_t)random_below(&g, (uint32_t)(z.q1 - z.q0));
                z.cols = 1 + (int32_t)random_below(&g, (uint32_t)(z.k1 - z.k0));
                check_map(&p.r, attention(&p, l, h), p.n, z);
            }
        close_probed(&p);
    }
}

/* Another span over the q and k of a windowed run. In layer 0, q and k do not depend on the spans, so the dense map of a
 * windowed run is the attention of a dense run; in layer 1 it is not. */
static void test_map_under_another_span(void **state) {
    (void)state;
    probed p;
    open_probed(&p, "tiny_llama", false, false, MOA_WATCH_CAPTURE);
    int32_t dense[64];
    for (int32_t i = 0; i < p.r.n_span; i++) dense[i] = p.n;
    plan_sees sees = {dense, p.r.shape->n_head};
    brute full = brute_run(p.r.model, p.ids, p.n, MOA_KV_F32, sees_by_plan, &sees, true);
    const int32_t n_head = p.r.shape->n_head, rows = 12;
    float mass[12 * 12];
    for (int32_t h = 0; h < n_head; h++) {
        const moa_map_request m = {.head = h, .span = MOA_N_MAX, .q1 = p.n, .k1 = p.n, .rows = rows, .cols = rows};
        check_map(&p.r, full.a + (int64_t)h * p.n * p.n, p.n, m);
        /* and under a narrower one: the run's own rows, cut and normalised again */
        double *cut_rows = take((size_t)p.n * (size_t)p.n, sizeof *cut_rows);
        for (int32_t i = 0; i < p.n; i++) {
            double sum = 0;
            for (int32_t j = 0; j <= i; j++) {
                const double x = full.a[((int64_t)h * p.n + i) * p.n + j];
                cut_rows[(int64_t)i * p.n + j] = j < 64 || i - j < 192 - 64 ? x : 0;
                sum += cut_rows[(int64_t)i * p.n + j];
            }
            for (int32_t j = 0; j <= i; j++) cut_rows[(int64_t)i * p.n + j] /= sum;
        }
        check_map(&p.r, cut_rows, p.n, (moa_map_request){.head = h, .span = 192, .q1 = p.n, .k1 = p.n, .rows = 7, .cols = 9});
        free(cut_rows);
    }
    double difference = 0;
    for (int32_t h = 0; h < n_head; h++) {
        const moa_map_request m = {.layer = 1, .head = h, .span = MOA_N_MAX, .q1 = p.n, .k1 = p.n, .rows = 1, .cols = 12};
        const double *a = full.a + ((int64_t)n_head + h) * p.n * p.n;
        must(moa_seq_map(p.r.s, &m, mass, NULL, NULL, err));
        for (int32_t x = 0; x < 12; x++) {
            double sum = 0;
            for (int32_t i = 0; i < p.n; i++)
                for (int32_t j = cut(0, p.n, x, 12); j < cut(0, p.n, x + 1, 12); j++) sum += a[(int64_t)i * p.n + j];
            difference += fabs(sum - (double)mass[x]);
        }
    }
    assert_true(difference > 0.01);
    brute_free(&full);
    close_probed(&p);
}

/* Captures move to larger buffers when a later turn reserves more, and maps are possible between decode steps. */
static void test_maps_over_turns(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_qwen2", .recording = true, .engine = {.kv_type = MOA_KV_F16, .chunk = 64}});
    moa_pcg32 g = moa_pcg32_seed(23, 1);
    const int32_t n = 200;
    int32_t ids[N_MAX], span[64];
    random_ids(&g, ids, n, r.shape->n_vocab);
    for (int32_t i = 0; i < r.n_span; i++) span[i] = 1000;
    plan_sees sees = {span, r.shape->n_head};
    brute b = brute_run(r.model, ids, n, MOA_KV_F16, sees_by_plan, &sees, true);
    must(moa_seq_plan(r.s, NULL, NULL, 130, MOA_WATCH_CAPTURE, NULL, 0, err));
    feed(&r, ids, 100, 0, NULL);
    must(moa_seq_plan(r.s, NULL, NULL, n, MOA_WATCH_CAPTURE, NULL, 0, err));
    for (int32_t i = 100; i < n; i++) {
        feed(&r, ids + i, 1, 0, NULL);
        if (i % 9) continue;
        float row[N_MAX];
        const moa_map_request m = {.layer = 1, .head = 4, .q0 = i, .q1 = i + 1, .k1 = i + 1, .rows = 1, .cols = i + 1};
        must(moa_seq_map(r.s, &m, row, NULL, NULL, err));
        const double *a = b.a + ((int64_t)r.shape->n_head + 4) * n * n + (int64_t)i * n;
        for (int32_t j = 0; j <= i; j++) assert_true(fabs(a[j] - (double)row[j]) < 2e-3); /* half-precision keys */
    }
    brute_free(&b);
    rig_close(&r);
}

static void test_capture_limit_and_late_capture_are_noted(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = {.capture_limit_bytes = 100000}});
    char note[200];
    int32_t ids[10] = {0};
    must(moa_seq_plan(r.s, NULL, NULL, 4000, MOA_WATCH_CAPTURE, note, sizeof note, err));
    assert_non_null(strstr(note, "4000 tokens"));
    assert_int_equal(moa_seq_capture_bytes(r.s), 0);
    must(moa_seq_plan(r.s, NULL, NULL, 20, MOA_WATCH_CAPTURE, note, sizeof note, err));
    assert_string_equal(note, "");
    assert_int_equal(moa_seq_capture_bytes(r.s), 2 * (6 + 2) * 20 * 16 * 4);
    must(moa_seq_plan(r.s, NULL, NULL, 20, 0, note, sizeof note, err));
    feed(&r, ids, 10, 0, NULL);
    must(moa_seq_plan(r.s, NULL, NULL, 20, MOA_WATCH_CAPTURE, note, sizeof note, err));
    assert_non_null(strstr(note, "first 10 tokens"));
    assert_int_equal(moa_seq_capture_bytes(r.s), 0);
    rig_close(&r);
}

static void test_map_refusals(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama"});
    int32_t ids[50] = {0};
    float cells[64];
    must(moa_seq_plan(r.s, NULL, NULL, 50, MOA_WATCH_CAPTURE, NULL, 0, err));
    feed(&r, ids, 40, 0, NULL);
    const moa_map_request good = {.q0 = 10, .q1 = 20, .k0 = 0, .k1 = 20, .rows = 5, .cols = 5};
    must(moa_seq_map(r.s, &good, cells, NULL, NULL, err));
    for (int c = 0; c < 13; c++) {
        moa_map_request bad = good;
        int32_t *const field[] = {&bad.layer, &bad.layer, &bad.head, &bad.head, &bad.q0, &bad.q1, &bad.q1,
                                  &bad.k0, &bad.k1, &bad.rows, &bad.cols, &bad.span, &bad.measure_span};
        const int32_t value[] = {-1, 2, -1, 6, -1, 41, 10, 20, 41, 11, 0, 64, -5};
        *field[c] = value[c];
        moa_err e = {0};
        assert_int_equal(moa_seq_map(r.s, &bad, cells, NULL, NULL, &e), MOA_E_INVALID);
        assert_true(strlen(e.text) > 10);
    }
    rig_close(&r);
}

/* Both begin anew with a plan: buckets and bins are fractions of its N. */
static void test_plan_restarts_statistics(void **state) {
    (void)state;
    rig r = rig_open((rig_config){.model = "tiny_llama", .engine = {.chunk = 64}});
    moa_pcg32 g = moa_pcg32_seed(3, 1);
    int32_t ids[300], n_bin, bucket_tok;
    int64_t queries[MOA_HIST_BUCKETS], sum = 0;
    float *hist = NULL;
    moa_head_stats stats[64];
    random_ids(&g, ids, 300, r.shape->n_vocab);
    must(moa_seq_plan(r.s, NULL, NULL, 150, MOA_WATCH_STATS, NULL, 0, err));
    feed(&r, ids, 140, 0, NULL);
    must(moa_seq_plan(r.s, NULL, NULL, 300, MOA_WATCH_STATS, NULL, 0, err));
    assert_int_equal(moa_seq_stats(r.s, stats, NULL), MOA_E_FAILED);
    feed(&r, ids + 140, 160, 0, NULL);
    must(moa_seq_stats(r.s, stats, err));
    assert_int_equal(stats[3].n_query, 160);
    must(moa_seq_hist(r.s, 1, &hist, &n_bin, &bucket_tok, queries, err));
    for (int b = 0; b < MOA_HIST_BUCKETS; b++) sum += queries[b];
    assert_int_equal(sum, 160);
    assert_int_equal(queries[0], 0);
    assert_int_equal(n_bin, 5);
    double mass = 0;
    for (int32_t i = 0; i < MOA_HIST_BUCKETS * (1 + n_bin); i++) mass += (double)hist[i];
    assert_true(fabs(mass - 160) < 1e-3);
    free(hist);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stats_equal_brute_force),
        cmocka_unit_test(test_histogram_equals_brute_force),
        cmocka_unit_test(test_coverage_of_windows_from_a_dense_run),
        cmocka_unit_test(test_off_costs_nothing),
        cmocka_unit_test(test_maps_equal_the_run),
        cmocka_unit_test(test_map_under_another_span),
        cmocka_unit_test(test_maps_over_turns),
        cmocka_unit_test(test_capture_limit_and_late_capture_are_noted),
        cmocka_unit_test(test_map_refusals),
        cmocka_unit_test(test_plan_restarts_statistics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
