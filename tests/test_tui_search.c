/* tui search: what an engine may send while a step runs. It may be remote or another program: results and influence that do not fit, are
 * not numbers or would overflow are left out, and the figures of plans always name the lengths they are of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/npy.h"
#include "tui/search.h"

enum { LAYERS = 2, HEADS = 4, KV = 2, N = 200, NB = 4, JOB = 7 };

static tui_app *app_open(tui_step running) {
    tui_app *app = calloc(1, sizeof *app);
    assert_non_null(app);
    app->caps = (viz_caps){VIZ_24BIT, true};
    app->slot_running = -1;
    app->link.state = TUI_LINK_READY;
    app->model = (tui_model){.loaded = true, .n_layer = LAYERS, .n_head = HEADS, .n_head_kv = KV, .d_head = 16, .n_ctx = 4096, .kv_elem_bytes = 2};
    assert_int_equal(moa_plan_uniform(&app->plan.now, LAYERS, HEADS, (moa_rule){0, 1}, NULL), MOA_OK);
    assert_int_equal(tui_planner_open(&app->planner, NULL), MOA_OK);
    tui_planner *p = app->planner;
    p->lengths[0] = N, p->n_length = 1;
    p->running = (int)running;
    p->steps[running].state = TUI_STEP_RUNS;
    p->job = JOB;
    return app;
}

static void app_close(tui_app *app) {
    tui_planner_close(&app->planner);
    moa_plan_close(&app->plan.now);
    free(app);
}

/* --- influence ------------------------------------------------------------------------------------------------------------------ */

typedef struct layer {
    float abs[HEADS * NB * NB], sum[HEADS * NB * NB], joint[HEADS * (NB + 1)];
    moa_msg_influence m;
} layer;

static void layer_make(layer *x, int32_t l, bool maps) {
    *x = (layer){0};
    for (int i = 0; i < HEADS * NB * NB; i++) x->abs[i] = 1, x->sum[i] = -1;
    for (int i = 0; i < HEADS * (NB + 1); i++) x->joint[i] = .5f;
    x->m = (moa_msg_influence){.n_tok = N, .nb = NB, .layer = l, .n_head = HEADS, .n_item = 1, .loss = 1, .abs = {x->abs, maps ? HEADS * NB * NB : 0},
                               .sum = {x->sum, maps ? HEADS * NB * NB : 0}, .joint = {x->joint, HEADS * (NB + 1)}};
}

static void test_influence(void **state) {
    (void)state;
    tui_app *app = app_open(TUI_STEP_PROFILE);
    tui_planner *p = app->planner;
    layer x;
    for (int what = 0; what < 3; what++) { /* values that are no numbers */
        layer_make(&x, 0, true);
        if (what == 0) x.abs[3] = NAN;
        if (what == 1) x.sum[0] = INFINITY;
        if (what == 2) x.joint[HEADS * (NB + 1) - 1] = NAN;
        assert_true(tui_planner_influence(app, JOB, &x.m));
        assert_null(p->incoming);
    }
    layer_make(&x, 0, true);
    x.m.loss = INFINITY; /* shown as unknown, and written to files */
    assert_true(tui_planner_influence(app, JOB, &x.m));
    assert_int_equal(p->incoming->n_have, HEADS);
    assert_true(isnan(p->incoming->loss));
    layer_make(&x, 1, false); /* the other layer without maps: its heads would be free to cut */
    assert_true(tui_planner_influence(app, JOB, &x.m));
    assert_int_equal(p->incoming->n_have, HEADS);
    layer_make(&x, 1, true);
    x.m.head0 = 1; /* beyond the last head */
    assert_true(tui_planner_influence(app, JOB, &x.m));
    assert_int_equal(p->incoming->n_have, HEADS);
    layer_make(&x, 1, true);
    assert_false(tui_planner_influence(app, JOB + 1, &x.m)); /* another's */
    assert_true(tui_planner_influence(app, JOB, &x.m));
    assert_null(p->incoming);
    assert_int_equal(p->n_influence, 1);
    p->measure = MOA_MEASURE_ABS; /* window of one block, of 4: (2,1), (3,1), (3,2) are cut */
    assert_true(tui_influence_loss(app, 0, 1, HEADS - 1, 128) == 3);
    app_close(app);
}

/* --- results -------------------------------------------------------------------------------------------------------------------- */

static void test_result(void **state) {
    (void)state;
    const int32_t wants[] = {INT32_MAX, INT32_MIN, -1, MOA_WIRE_ITEMS_MAX + 1, 4};
    for (size_t k = 0; k < 5; k++) {
        tui_app *app = app_open(TUI_STEP_CALIBRATE);
        tui_planner *p = app->planner;
        const int32_t lengths[] = {128, 192, 256}, n[] = {2, 2, 2}, right[] = {1, 0, 2};
        const double loss[] = {NAN, NAN, NAN};
        memcpy(p->lengths, lengths, sizeof lengths);
        p->n_length = 3;
        const moa_msg_result m = {.kind = MOA_WIRE_CALIBRATE, .state = MOA_WIRE_CANCELLED, .lengths = {lengths, 3}, .n_plan = 1, .n_want = wants[k], .n = {n, 3}, .right = {right, 3},
                                  .loss = {loss, 3}};
        assert_true(tui_planner_result(app, JOB, &m));
        assert_int_equal(p->running, -1);
        assert_int_equal(p->steps[TUI_STEP_CALIBRATE].state, k == 4 ? TUI_STEP_PART : TUI_STEP_FAILED);
        assert_string_equal(p->steps[TUI_STEP_CALIBRATE].text, k == 4 ? "6 of 12 items, 3 right" : "its result does not fit");
        app_close(app);
    }
}

/* --- figures and their lengths ---------------------------------------------------------------------------------------------------- */

static tui_influence *flat(int32_t n_tok) {
    tui_influence *f;
    assert_int_equal(tui_influence_open(&f, LAYERS, HEADS, n_tok, true, NULL), MOA_OK);
    assert_true(tui_influence_curves(f));
    return f;
}

static void test_lengths(void **state) {
    (void)state;
    tui_app *app = app_open(TUI_STEP_SEARCH);
    tui_planner *p = app->planner;
    moa_plan *plan;
    const double gap = 0;
    moa_err err = {0};
    tui_influence_put(p, flat(1024));
    assert_int_equal(moa_plan_uniform(&plan, LAYERS, HEADS, (moa_rule){512, 0}, NULL), MOA_OK);
    tui_planner_solved(app, MOA_OK, "", &plan, &gap, 1);
    assert_int_equal(p->found_lengths[0], 1024);
    assert_true(p->found[0].density[0] == .5);
    tui_influence_put(p, flat(512)); /* a shorter one comes, then the measure changes: all figures are made anew */
    assert_int_equal(tui_setting_set(app, TUI_SET_MEASURE, "signed", &err), MOA_OK);
    assert_int_equal(p->n_found_length, 2);
    for (int i = 0; i < 2; i++) assert_true(p->found[0].density[i] == 512. / p->found_lengths[i]);
    app_close(app);
}

/* a plan is found at the profiled length and the longer ones it will be judged at, in a thread; the screen waits for nothing */
static void test_solver(void **state) {
    (void)state;
    for (int round = 0; round < 3; round++) {
        tui_app *app = app_open(TUI_STEP_SEARCH);
        tui_planner *p = app->planner;
        moa_err err = {0};
        tui_influence *f = flat(1024);
        for (int i = 0; i < LAYERS * HEADS * 16 * 16; i++) f->abs[i] = (float)(1 + i % 7) * 1e-3f;
        assert_true((free(f->curve[MOA_MEASURE_ABS]), free(f->curve[MOA_MEASURE_SIGNED]), tui_influence_curves(f)));
        tui_influence_put(p, f);
        p->valid_at = round == 0 ? 1024 : round == 1 ? 1030 : 1536; /* profiled; as many blocks as 1088; longer */
        p->try_at = round == 1 ? 1080 : 2048;
        assert_int_equal(tui_solver_start(app, &err), MOA_OK);
        for (int i = 0; i < 6000 && p->solver; i++) {
            (void)usleep(10000);
            tui_solver_read(app);
        }
        assert_null(p->solver);
        assert_true(p->n_found >= 1);
        const int32_t lengths[] = {1024, p->valid_at, p->try_at};
        for (int k = 0; k < p->n_found; k++)
            for (int i = 0; i < 3; i++) assert_true(moa_plan_describe(p->found[k].plan, lengths[i], KV).kv_density_grouped <= p->density + 1e-9);
        assert_int_equal(tui_solver_start(app, &err), MOA_OK); /* closed while it works */
        app_close(app);
    }
}

/* --- influence from a file, read while the screen goes on ---------------------------------------------------------------------------- */

/* the loop's part until the file is read or given up */
static void wait_for_file(tui_app *app) {
    for (int i = 0; i < 6000 && tui_influence_reading(app); i++) {
        (void)usleep(10000);
        tui_influence_read(app);
    }
    assert_false(tui_influence_reading(app));
}

/* one map of another program, nb blocks a side, zeros: a sparse file */
static void make_large(const char *path, int n_head, int nb) {
    char header[128];
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    int n = snprintf(header, sizeof header, "%c%s%c%c..{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, %d, %d), }", 0x93, "NUMPY", 1, '0', LAYERS, n_head, nb, nb);
    memset(header + n, ' ', sizeof header - (size_t)n);
    header[7] = 0, header[8] = sizeof header - 10, header[9] = 0, header[sizeof header - 1] = '\n';
    assert_int_equal(fwrite(header, 1, sizeof header, f), sizeof header);
    assert_int_equal(fflush(f), 0);
    assert_int_equal(ftruncate(fileno(f), (off_t)sizeof header + (off_t)LAYERS * n_head * nb * nb * 4), 0);
    (void)fclose(f);
}

static void test_file_meanwhile(void **state) {
    (void)state;
    char path[] = "/tmp/moascope-test-search-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    (void)close(fd);
    make_large(path, HEADS, 1024); /* 32 MB, several looks */
    for (int what = 0; what < 5; what++) {
        tui_app *app = app_open(TUI_STEP_SEARCH);
        tui_planner *p = app->planner;
        moa_err err = {0};
        p->running = -1;
        tui_influence_put(p, flat(512));
        assert_int_equal(tui_influence_load(app, path, &err), MOA_OK);
        assert_true(tui_influence_reading(app) && tui_influence_fd(app) >= 0 && p->influence[0]->n_tok == 512);
        assert_int_equal(tui_influence_load(app, path, &err), MOA_E_FAILED);
        assert_int_equal(tui_planner_start(app, TUI_STEP_SEARCH, &err), MOA_E_FAILED);
        if (what == 1) tui_influence_cancel(app);
        if (what == 2) app->model.n_head = 8; /* another model came meanwhile */
        if (what == 3) tui_planner_fit(app, false); /* as that is told */
        if (what == 4) { /* quit: nobody waits */
            app_close(app);
            break;
        }
        wait_for_file(app);
        assert_int_equal(p->n_influence, what == 3 ? 0 : 1);
        if (what < 3) assert_int_equal(p->influence[0]->n_tok, what == 0 ? 65536 : 512);
        if (what == 1) assert_non_null(strstr(tui_said(app)->text, "not read to its end"));
        if (what == 2) assert_non_null(strstr(tui_said(app)->text, "another model"));
        app_close(app);
    }
    (void)unlink(path);
}

/* --- a file of more lengths than the screen has room for --------------------------------------------------------------------------- */

static void test_many_lengths(void **state) {
    (void)state;
    char path[] = "/tmp/moascope-test-search-XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    (void)close(fd);
    for (int n = TUI_FIND_LENGTHS; n <= TUI_FIND_LENGTHS + 1; n++) {
        moa_npy_writer *w;
        moa_err err = {0};
        tui_app *app = app_open(TUI_STEP_SEARCH);
        app->planner->running = -1;
        assert_int_equal(moa_npy_open(&w, path, NULL, &err), MOA_OK);
        for (int i = 0; i < n; i++) {
            char name[32];
            float curve[LAYERS * HEADS * 32] = {0};
            const moa_npy_shape shape = {MOA_NPY_F32, 3, {LAYERS, HEADS, (size_t)i + 3}};
            (void)snprintf(name, sizeof name, "joint_%d", 128 + 64 * i);
            assert_int_equal(moa_npz_add(w, name, &shape, curve, &err), MOA_OK);
        }
        assert_int_equal(moa_npy_commit(&w, &err), MOA_OK);
        assert_int_equal(tui_influence_load(app, path, &err), MOA_OK);
        wait_for_file(app);
        assert_true((strstr(tui_said(app)->text, "more than 8 lengths") != NULL) == (n > TUI_FIND_LENGTHS));
        assert_int_equal(app->planner->n_influence, n > TUI_FIND_LENGTHS ? 0 : n);
        app_close(app);
    }
    (void)unlink(path);
}

/* --- rounds: refusals, an engine that is not there, results that do not fit, what is kept when it stops ------------------------------------ */

static tui_found round_plan(const char *name, double span) {
    tui_found f = {.valid = (double)NAN, .gap = (double)NAN, .predicted = .1};
    (void)snprintf(f.name, sizeof f.name, "%s", name);
    assert_int_equal(moa_plan_uniform(&f.plan, LAYERS, HEADS, (moa_rule){span, 0}, NULL), MOA_OK);
    return f;
}

/* a round whose two candidates are being validated; the front's one plan has 2 nats */
static tui_app *in_a_round(void) {
    tui_app *app = app_open(TUI_STEP_SEARCH);
    tui_planner *p = app->planner;
    const double gap = 0;
    moa_plan *plan;
    moa_err err = {0};
    assert_int_equal(tui_rounds_start(app, &err), MOA_E_FAILED); /* no plan */
    p->lengths[0] = 1024;
    tui_influence_put(p, flat(1024));
    assert_int_equal(moa_plan_uniform(&plan, LAYERS, HEADS, (moa_rule){512, 0}, NULL), MOA_OK);
    tui_planner_solved(app, MOA_OK, "", &plan, &gap, 1);
    p->best = 0;
    p->found[0].valid = 2;
    assert_int_equal(tui_rounds_start(app, &err), MOA_E_FAILED); /* it is not validated */
    p->steps[TUI_STEP_CALIBRATE].state = p->steps[TUI_STEP_PROFILE].state = p->steps[TUI_STEP_VALIDATE].state = TUI_STEP_DONE;
    p->lengths[0] = 512;
    assert_int_equal(tui_rounds_start(app, &err), MOA_E_FAILED); /* influence is of another length */
    assert_null(p->rounds);
    p->lengths[0] = 1024;
    p->n_round = 2;
    assert_int_equal(tui_rounds_start(app, &err), MOA_OK); /* there is no engine to ask: the step has failed, all else is there */
    assert_int_equal(p->running, -1);
    assert_int_equal(p->steps[TUI_STEP_ROUNDS].state, TUI_STEP_FAILED);
    const tui_found a = round_plan("round 1a", 256), b = round_plan("round 1b", 384);
    assert_true(tui_planner_add(app, &a) && tui_planner_add(app, &b));
    assert_string_equal(p->found[p->n_found].name, "uniform"); /* still behind the plans */
    p->rounds->from = 1, p->rounds->n_new = 2, p->rounds->there = true;
    p->rounds->phase = TUI_ROUND_VALIDATE;
    p->rounds->n_sum = 2;
    p->running = TUI_STEP_ROUNDS;
    p->steps[TUI_STEP_ROUNDS].state = TUI_STEP_RUNS;
    p->job = JOB;
    return app;
}

static void test_rounds(void **state) {
    (void)state;
    const int32_t at = 1536, n[] = {3, 3, 3}, right[] = {0, 0, 0};
    for (int what = 0; what < 4; what++) {
        tui_app *app = in_a_round();
        tui_planner *p = app->planner;
        layer x;
        const double loss[] = {1.5, what == 2 ? (double)NAN : 1.25, 9};
        const uint32_t n_plan = what == 0 ? 3 : 2;
        const moa_msg_result m = {.kind = MOA_WIRE_VALIDATE, .state = what == 1 ? MOA_WIRE_CANCELLED : MOA_WIRE_FINISHED, .lengths = {&at, 1}, .n_plan = (int32_t)n_plan, .n_want = 3,
                                  .n = {n, n_plan}, .right = {right, n_plan}, .loss = {loss, n_plan}};
        layer_make(&x, 0, false); /* influence while plans are judged */
        assert_true(tui_planner_influence(app, JOB, &x.m));
        assert_null(p->incoming);
        assert_false(tui_planner_result(app, 0, &m)); /* job 0 is nobody's */
        if (what == 3) tui_planner_forget_engine(app, "it ended");
        else assert_true(tui_planner_result(app, JOB, &m));
        assert_int_equal(p->running, -1);
        assert_int_equal(p->n_found, 3);
        assert_int_equal(p->steps[TUI_STEP_ROUNDS].state, what == 1 ? TUI_STEP_PART : TUI_STEP_FAILED); /* after 2: no engine for the next */
        assert_int_equal(p->best, what == 2 ? 1 : 0);
        assert_int_equal(p->rounds->round, what == 2 ? 2 : 1);
        assert_true(isnan(p->found[2].valid) && isnan(p->found[1].valid) == (what != 2));
        app_close(app);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_influence), cmocka_unit_test(test_result),       cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_solver),    cmocka_unit_test(test_many_lengths), cmocka_unit_test(test_file_meanwhile),
        cmocka_unit_test(test_rounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
