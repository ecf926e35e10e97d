/* plans/: the search. Enumeration is the oracle of small problems; seeded ones of real size check the certificate; --bench measures:
 *
 *   test_plans_search --bench [n_instance [max_rules]]      1,024 heads x 48 rules x 3 lengths, two-sided bounds
 *   test_plans_search --front [max_rules]                   the whole front of one of them
 *   test_plans_search --lp SEED MAX_RULES FILE              one instance for another solver, its best and bound on stdout */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/npy.h"
#include "plans/grid.h"
#include "plans/pareto.h"
#include "plans/search.h"
#include "plans/search_problem.h"
#include "plans/search_solve.h"
#include "tests/thread_cases.h"

static uint64_t random_state;
static double uniform01(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 11) / 9007199254740992.0;
}
static double normal(void) { return sqrt(-2 * log(1 - uniform01())) * cos(6.283185307179586 * uniform01()); }
static int below(int n) { return (int)(uniform01() * n); }

/* --- instances of real size ------------------------------------------------------------------------------------------------------ */

/* a power-law tail and a uniform part per head, scales log-normal, a quarter of the heads retrieval-like */
static moa_losses *instance(uint64_t seed, int32_t n_layer, int32_t n_head, const int32_t *lengths, int32_t n_length) {
    moa_losses *l;
    moa_err err = {0};
    random_state = seed * 7919 + 17;
    if (moa_losses_open(&l, n_layer, n_head, n_head, lengths, n_length, &err) != MOA_OK) fail_msg("%s", err.text);
    for (int32_t layer = 0; layer < n_layer; layer++)
        for (int32_t h = 0; h < n_head; h++) {
            const double scale = exp(1.2 * normal()) / (n_layer * n_head), power = .4 + 1.6 * uniform01();
            const double flat = uniform01() < .25 ? .5 + uniform01() : .05 * uniform01();
            for (int32_t i = 0; i < n_length; i++) {
                double *c = moa_losses_at(l, i, layer, h);
                const double wobble = exp(.15 * normal()), nb = l->nb[i];
                for (int32_t w = 1; w < l->nb[i]; w++)
                    c[w] = 60 * scale * wobble * (pow(w, -power) - pow(nb, -power) + flat * (1 - w / nb));
                c[l->nb[i] - 1] = 0; /* nb - 1 newest blocks and the sink are everything */
            }
        }
    return l;
}

static const int32_t lengths3[] = {2048, 4096, 8192}, target16k[] = {16384};

static const double GAP = 1e-4;

static moa_solve_result solve_instance(uint64_t seed, int32_t max_rules, bool cap_only) {
    moa_losses *l = instance(seed, 32, 32, lengths3, 3);
    const moa_search_config c = {.density = .5, .density_low = cap_only ? -1 : 0, .max_rules = max_rules, .alpha_step = 1024, .extend = target16k,
                                 .n_extend = 1};
    moa_problem p;
    moa_choice choice;
    moa_solve_result r;
    moa_err err = {0};
    if (moa_problem_open(&p, l, &c, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_int_equal(p.n_rule, 48);
    p.n_bound = 3; /* the target shapes the grid alone */
    moa_problem_choice(&p, -1, NULL, &choice);
    int32_t *pick = malloc(1024 * sizeof *pick);
    const moa_solve_config config = {.seed = seed, .gap = GAP, .effort = 1};
    if (moa_solve(&choice, &config, pick, &r, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_int_equal(r.end, MOA_SOLVE_PLAN);
    assert_true(moa_choice_ok(&choice, pick));
    assert_true(r.best >= r.bound);
    assert_float_equal(moa_choice_value(&choice, pick, NULL), r.best, 1e-9 * fabs(r.best));
    free(pick);
    moa_problem_free(&p);
    moa_losses_close(&l);
    return r;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int bench(int n, int max_rules) {
    double gaps[256], seconds[256];
    if (n > 256) n = 256;
    (void)printf("seed      best         bound        gap %%    CPU s  prices\n");
    for (int i = 0; i < n; i++) {
        const moa_solve_result r = solve_instance((uint64_t)i + 1, max_rules, false);
        gaps[i] = 100 * moa_solve_gap(r.best, r.bound);
        seconds[i] = r.cpu_seconds;
        (void)printf("%4d %12.6f %12.6f %9.4f %8.3f %5d\n", i + 1, r.best, r.bound, gaps[i], r.cpu_seconds, r.n_price);
        (void)fflush(stdout);
    }
    qsort(gaps, (size_t)n, sizeof *gaps, by_value);
    qsort(seconds, (size_t)n, sizeof *seconds, by_value);
    (void)printf("%d instances, %d rules a layer (0: any): gap median %.4f %% worst %.4f %%; CPU median %.3f s worst %.3f s\n", n,
                 max_rules, gaps[n / 2], gaps[n - 1], seconds[n / 2], seconds[n - 1]);
    return 0;
}

static double cpu_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int front(int max_rules) {
    moa_losses *l = instance(1, 32, 32, lengths3, 3);
    const moa_search_config c = {.density = .5, .max_rules = max_rules, .alpha_step = 1024, .extend = target16k, .n_extend = 1, .seed = 1};
    moa_search_result r;
    moa_err err = {0};
    const double begin = cpu_s();
    if (moa_search_run(l, &c, &r, &err) != MOA_OK) return (void)fprintf(stderr, "%s\n", err.text), 1;
    (void)printf("%d solves, %d proven empty, %d open; %d plans; gap median %.4f %% worst %.4f %%; %.2f CPU s\n", r.n_solve,
                 r.n_infeasible, r.n_none, r.n_found, 100 * r.gap_median, 100 * r.gap_worst, cpu_s() - begin);
    for (int32_t i = 0; i < r.n_found; i++)
        (void)printf("%2d objective %2d  %.4f %.4f %.4f  gap %.4f %%  %.2f s\n", i + 1, r.found[i].objective, r.found[i].loss[0],
                     r.found[i].loss[1], r.found[i].loss[2], 100 * r.found[i].gap, r.found[i].seconds);
    moa_search_result_free(&r);
    moa_losses_close(&l);
    return 0;
}

static int write_lp(uint64_t seed, int max_rules, const char *path) {
    moa_losses *l = instance(seed, 32, 32, lengths3, 3);
    const moa_search_config c = {.density = .5, .max_rules = max_rules, .alpha_step = 1024, .extend = target16k, .n_extend = 1};
    moa_problem p = {0};
    moa_choice choice;
    moa_buf text = {0};
    moa_err err = {0};
    moa_status s = moa_problem_open(&p, l, &c, &err);
    p.n_bound = 3;
    moa_problem_choice(&p, -1, NULL, &choice);
    if (s == MOA_OK) s = moa_solve_lp(&choice, &text, &err);
    if (s == MOA_OK) s = moa_file_save(path, text.data, text.size, 0644, 0, &err);
    if (s != MOA_OK) (void)fprintf(stderr, "%s\n", err.text);
    moa_buf_free(&text);
    moa_problem_free(&p);
    moa_losses_close(&l);
    const moa_solve_result r = solve_instance(seed, max_rules, false);
    (void)printf("%.12g %.12g %.3f\n", r.best, r.bound, r.cpu_seconds);
    return s != MOA_OK;
}

/* of the grids that whole searches are tested with, tokens, and instances of real size; fewer where a sanitizer slows the search */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STEP = 512, N_SEED = 4 };
#else
enum { STEP = 256, N_SEED = 20 };
#endif

/* the gap asked for is reached, whatever the seed and the limit */
static void test_real_size(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= N_SEED; seed++)
        for (int32_t k = 0; k <= 2; k++) {
            const moa_solve_result r = solve_instance(seed, k, false);
            const double gap = moa_solve_gap(r.best, r.bound);
            if (gap > GAP * (1 + 1e-9)) fail_msg("seed %d, %d rules a layer: gap %g %%, asked for %g %%", (int)seed, k, 100 * gap, 100 * GAP);
        }
    const moa_solve_result caps = solve_instance(3, 2, true), both = solve_instance(3, 2, false);
    assert_true(caps.bound <= both.best); /* fewer bounds, no greater loss */
}

/* --- enumeration ------------------------------------------------------------------------------------------------------------------ */

enum { SMALL_UNITS = 8, SMALL_RULES = 5, SMALL_ROWS = 3, N_TRY = 25, STEP_TRY = 120 };

typedef struct small {
    moa_choice c;
    double loss[SMALL_UNITS * SMALL_RULES], row[SMALL_ROWS][SMALL_UNITS * SMALL_RULES];
    uint8_t allow[SMALL_UNITS * SMALL_RULES];
} small;

static void make_small(small *s, int32_t n_layer, int32_t n_unit, int32_t n_rule, int32_t n_row, int32_t max_rules) {
    const int32_t n = n_layer * n_unit;
    *s = (small){0};
    s->c = (moa_choice){.n_layer = n_layer, .n_unit = n_unit, .n_rule = n_rule, .n_row = n_row, .max_rules = max_rules,
                        .loss = s->loss, .allow = s->allow};
    for (int32_t i = 0; i < n_layer * n_rule; i++) s->allow[i] = MOA_RULE_MAY;
    for (int32_t i = 0; i < n * n_rule; i++) s->loss[i] = normal();
    for (int32_t k = 0; k < n_row; k++) {
        double least = 0, most = 0;
        for (int32_t u = 0; u < n; u++) {
            double a = INFINITY, b = -INFINITY;
            for (int32_t r = 0; r < n_rule; r++) {
                const double x = uniform01() + .3 * s->loss[u * n_rule + r] * (k % 2 ? 1 : -1);
                s->row[k][u * n_rule + r] = x;
                a = fmin(a, x), b = fmax(b, x);
            }
            least += a, most += b;
        }
        const double high = least + (most - least) * (.1 + .6 * uniform01());
        s->c.row[k] = s->row[k];
        s->c.hi[k] = high;
        s->c.lo[k] = uniform01() < .5 ? -INFINITY : high - (most - least) * (.02 + .2 * uniform01());
    }
}

static bool next_pick(int32_t *pick, int32_t n, int32_t n_rule) {
    for (int32_t u = 0; u < n; u++) {
        if (++pick[u] < n_rule) return true;
        pick[u] = 0;
    }
    return false;
}

static double enumerate(const moa_choice *c) {
    int32_t pick[SMALL_UNITS] = {0};
    double best = INFINITY;
    do {
        const double x = moa_choice_value(c, pick, NULL);
        if (x < best && moa_choice_ok(c, pick)) best = x;
    } while (next_pick(pick, c->n_layer * c->n_unit, c->n_rule));
    return best;
}

/* what every answer owes; returns 1 if the optimum was found and proven */
static int check_small(const moa_choice *c, uint64_t seed) {
    int32_t pick[SMALL_UNITS];
    moa_solve_result r;
    moa_err err = {0};
    const moa_solve_config config = {.seed = seed};
    const double truth = enumerate(c);
    assert_int_equal(moa_solve(c, &config, pick, &r, &err), MOA_OK);
    if (truth == INFINITY) {
        assert_int_not_equal(r.end, MOA_SOLVE_PLAN);
        return r.end == MOA_SOLVE_INFEASIBLE;
    }
    assert_int_not_equal(r.end, MOA_SOLVE_INFEASIBLE);
    assert_true(r.bound <= truth + 1e-9 * (1 + fabs(truth)));
    if (r.end != MOA_SOLVE_PLAN) return 0;
    assert_true(moa_choice_ok(c, pick));
    assert_true(r.best >= truth - 1e-9);
    assert_float_equal(r.best, moa_choice_value(c, pick, NULL), 1e-12);
    return r.best <= truth + 1e-9 && r.bound >= r.best - 1e-9;
}

static void test_enumeration(void **state) {
    (void)state;
    static const struct {
        int32_t n_layer, n_unit, n_rule, n_row, max_rules, least; /* least: of N_TRY, optimal and proven */
    } cases[] = {
        {7, 1, 5, 1, 0, N_TRY}, {2, 3, 5, 2, 0, N_TRY}, {3, 2, 5, 3, 0, N_TRY}, {2, 4, 4, 2, 2, N_TRY},
        {2, 3, 5, 3, 2, N_TRY}, {3, 2, 5, 2, 1, N_TRY}, {2, 4, 4, 2, 3, 0},  {1, 6, 5, 3, 2, N_TRY},
    };
    random_state = 5;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int proven = 0;
        for (int k = 0; k < N_TRY; k++) {
            small s;
            make_small(&s, cases[i].n_layer, cases[i].n_unit, cases[i].n_rule, cases[i].n_row, cases[i].max_rules);
            proven += check_small(&s.c, (uint64_t)k);
        }
        if (proven < cases[i].least) fail_msg("case %zu: %d of %d proven optimal, expected %d", i, proven, N_TRY, cases[i].least);
    }
}

/* rows in whole steps, the same for all units of a layer as memory is, or not: what the counting bound is for. Odd steps, so that budgets are
 * missed by some; bounds off the steps; now and then a row that has no steps beside them. */
static void make_whole(small *s, int32_t n_layer, int32_t n_unit, int32_t n_rule, int32_t n_row, int32_t max_rules, int kind) {
    make_small(s, n_layer, n_unit, n_rule, n_row, max_rules);
    const double step = exp(3 * normal());
    for (int32_t k = 0; k < (kind == 2 ? n_row - 1 : n_row); k++) {
        int32_t most = 0, least = 0;
        for (int32_t l = 0; l < n_layer; l++)
            for (int32_t u = 0; u < n_unit; u++) {
                int32_t a = INT32_MAX, b = 0;
                for (int32_t r = 0; r < n_rule; r++) {
                    const int32_t at = (l * n_unit + u) * n_rule + r, x = kind == 1 ? below(9) : 1 + 7 * r * (k + 1) / (k + 2);
                    s->row[k][at] = step * x;
                    a = x < a ? x : a, b = x > b ? x : b;
                    if (k == 0) s->loss[at] = 3 * fabs(normal()) / (1 + x);
                }
                least += a, most += b;
            }
        s->c.hi[k] = step * (least + (most - least) * (.2 + .6 * uniform01()));
        s->c.lo[k] = uniform01() < .3 ? -INFINITY : s->c.hi[k] - step * (most - least) * (.05 + .2 * uniform01());
    }
}

static void test_whole_steps(void **state) {
    (void)state;
    static const int32_t limits[] = {0, 1, 2, 2, 3};
    random_state = 23;
    for (int kind = 0; kind < 3; kind++)
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
            int proven = 0;
            for (int k = 0; k < STEP_TRY; k++) {
                small s;
                make_whole(&s, i == 3 ? 3 : 2, i == 3 ? 2 : 3, i == 3 ? 5 : 4, 2 + (k & 1), limits[i], kind);
                proven += check_small(&s.c, (uint64_t)k);
            }
            if (limits[i] < 3 && proven < STEP_TRY) fail_msg("kind %d, %d rules a layer: %d of %d proven", kind, limits[i], proven, STEP_TRY);
        }
}

/* rules that a layer has to have, or may not */
static void test_allowed(void **state) {
    (void)state;
    random_state = 11;
    for (int k = 0; k < 3 * N_TRY; k++) {
        small s;
        if (k < N_TRY) make_small(&s, 2, 3, 5, 2, 2);
        else make_whole(&s, 2, 3, 5, 2, 2, k < 2 * N_TRY ? 0 : 1);
        s.allow[below(5)] = MOA_RULE_MUST;
        s.allow[5 + below(5)] = MOA_RULE_NO;
        s.allow[5 + below(5)] = k % 2 ? MOA_RULE_MUST : MOA_RULE_MAY;
        assert_int_equal(check_small(&s.c, 1), 1);
    }
}

/* --- the whole search --------------------------------------------------------------------------------------------------------------- */

static moa_losses *small_losses(int32_t n_head_kv) {
    static const int32_t lengths[] = {512, 1024, 2048};
    moa_losses *l = instance(3, 6, 6, lengths, 3);
    l->n_head_kv = n_head_kv;
    l->kv_known = 1;
    return l;
}

static void check_result(const moa_losses *l, const moa_search_config *c, const moa_search_result *r) {
    assert_true(r->n_found > 0);
    for (int32_t i = 0; i < r->n_found; i++) {
        const moa_found *f = &r->found[i];
        for (int32_t b = 0; b < r->n_bound; b++) {
            /* counted here anew, from the plan alone */
            const moa_plan_at_n d = moa_plan_describe(f->plan, r->bound_at[b], l->n_head_kv);
            const double x = c->budget == MOA_BUDGET_HEAD ? d.kv_density : d.kv_density_grouped;
            assert_float_equal(x, f->density[b], 1e-12);
            assert_true(x <= r->density_high + 1e-9);
            if (c->per != MOA_PER_HEAD || c->budget == MOA_BUDGET_HEAD) assert_true(x >= r->density_low - 1e-9);
        }
        for (int32_t k = 0; k < l->n_length; k++) {
            double sum = 0;
            for (int32_t layer = 0; layer < l->n_layer; layer++)
                for (int32_t h = 0; h < l->n_head; h++)
                    sum += moa_losses_rule(l, k, layer, h, *moa_plan_at(f->plan, layer, h));
            assert_float_equal(sum, f->loss[k], 1e-9 * (1 + fabs(sum)));
            if (f->level[k] < INFINITY) assert_true(sum <= f->level[k] + 1e-9 * (1 + fabs(sum)));
        }
        if (c->max_rules > 0) assert_true(moa_plan_max_rules_per_layer(f->plan) <= c->max_rules);
        for (int32_t j = 0; j < r->n_found; j++) { /* nobody is beaten everywhere */
            bool beaten = j != i;
            for (int32_t k = 0; k < l->n_length; k++) beaten &= r->found[j].loss[k] < f->loss[k];
            assert_false(beaten);
        }
    }
}

static void test_search(void **state) {
    (void)state;
    static const int32_t extend[] = {4096};
    const moa_search_config cases[] = {
        {.density = .5, .alpha_step = STEP, .extend = extend, .n_extend = 1},
        {.density = .5, .alpha_step = STEP, .extend = extend, .n_extend = 1, .max_rules = 2, .n_thread = 3},
        {.density = .4, .alpha_step = STEP, .per = MOA_PER_HEAD, .budget = MOA_BUDGET_HEAD},
        {.density = .6, .alpha_step = STEP, .per = MOA_PER_HEAD, .budget = MOA_BUDGET_KV, .density_low = -1},
        {.density = .5, .alpha_step = STEP, .max_rules = 3, .n_plan_max = 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        moa_losses *l = small_losses(i == 2 ? 3 : 2);
        moa_search_result r;
        moa_err err = {0};
        if (moa_search_run(l, &cases[i], &r, &err) != MOA_OK) fail_msg("case %zu: %s", i, err.text);
        check_result(l, &cases[i], &r);
        if (cases[i].n_plan_max) assert_true(r.n_found <= cases[i].n_plan_max);
        moa_search_result_free(&r);
        moa_losses_close(&l);
    }
}

static void test_threads_agree(void **state) {
    (void)state;
    moa_losses *l = small_losses(STEP > 256 ? 2 : 3); /* sanitized: a quarter of the solves */
    moa_search_result a, b;
    moa_search_config c = {.density = .45, .alpha_step = STEP, .max_rules = 2, .seed = 9, .n_thread = 1};
    assert_int_equal(moa_search_run(l, &c, &a, NULL), MOA_OK);
    c.n_thread = 4;
    assert_int_equal(moa_search_run(l, &c, &b, NULL), MOA_OK);
    assert_int_equal(a.n_found, b.n_found);
    for (int32_t i = 0; i < a.n_found; i++) {
        assert_true(moa_plan_equal(a.found[i].plan, b.found[i].plan));
        assert_true(a.found[i].bound == b.found[i].bound);
    }
    moa_search_result_free(&a);
    moa_search_result_free(&b);
    moa_losses_close(&l);
}

static void test_locks_and_forbidden(void **state) {
    (void)state;
    moa_losses *l = small_losses(3);
    moa_search_result r;
    moa_plan *lock;
    moa_err err = {0};
    uint8_t locked[36] = {0};
    const moa_rule forbid[] = {{0, 1}};
    assert_int_equal(moa_plan_uniform(&lock, 6, 6, (moa_rule){777, 0}, NULL), MOA_OK);
    for (int h = 0; h < 4; h++) locked[2 * 6 + h] = 1;
    *moa_plan_at(lock, 2, 1) = (moa_rule){0, .625};
    const moa_search_config c = {.density = .5, .alpha_step = 256, .max_rules = 2, .lock = lock, .locked = locked, .forbid = forbid, .n_forbid = 1};
    if (moa_search_run(l, &c, &r, &err) != MOA_OK) fail_msg("%s", err.text);
    check_result(l, &c, &r);
    for (int32_t i = 0; i < r.n_found; i++) {
        assert_true(moa_plan_at(r.found[i].plan, 2, 0)->alpha == 777 && moa_plan_at(r.found[i].plan, 2, 1)->beta == .625);
        for (int32_t k = 0; k < 36; k++) {
            const moa_rule x = r.found[i].plan->rules[k];
            assert_false(x.alpha == 0 && x.beta == 1);
            if (k / 6 != 2) assert_false(x.alpha == 777);
        }
    }
    moa_search_result_free(&r);
    *moa_plan_at(lock, 2, 2) = (moa_rule){128, 0};
    assert_int_equal(moa_search_run(l, &c, &r, &err), MOA_E_FAILED); /* three locked rules in a layer of two */
    assert_non_null(strstr(err.text, "layer 2"));
    moa_plan_close(&lock);
    moa_losses_close(&l);
}

static bool yes(void *user) {
    int *count = user;
    return --*count <= 0;
}

static void test_refusals(void **state) {
    (void)state;
    moa_losses *l = small_losses(3);
    moa_search_result r;
    moa_err err = {0};
    assert_int_equal(moa_search_run(l, &(moa_search_config){.density = 0}, &r, &err), MOA_E_USAGE);
    assert_int_equal(moa_search_run(l, &(moa_search_config){.density = .5, .density_low = .6}, &r, &err), MOA_E_USAGE);
    assert_int_equal(moa_search_run(l, &(moa_search_config){.density = .01, .density_low = -1}, &r, &err), MOA_E_FAILED);
    assert_non_null(strstr(err.text, "out of reach"));
    /* each bound alone can be met, both at once cannot: whatever is .5 at 512 tokens of these rules is more at 65536, or much less */
    assert_int_equal(moa_search_run(l, &(moa_search_config){.density = .5, .max_rules = 2, .per = MOA_PER_HEAD}, &r, &err),
                     MOA_E_UNSUPPORTED);
    int count = 3;
    assert_int_equal(moa_search_run(l, &(moa_search_config){.density = .5, .cancelled = yes, .user = &count}, &r, &err),
                     MOA_E_CANCELLED);
    assert_int_equal(r.n_found, 0);
    moa_losses_close(&l);
}

/* --- influence, grid, pareto ---------------------------------------------------------------------------------------------------------- */

static void test_grid(void **state) {
    (void)state;
    moa_rule *rules;
    int32_t n;
    const moa_grid_config paper = {.length = lengths3, .n_length = 3, .extend = target16k, .n_extend = 1, .step = 1024};
    assert_int_equal(moa_grid_make(&paper, &rules, &n, NULL), MOA_OK);
    assert_int_equal(n, 48);
    for (int32_t i = 0; i < n; i++) {
        assert_true(rules[i].alpha + rules[i].beta * 2048 > 0);
        assert_true(rules[i].alpha + rules[i].beta * 16384 <= 16384);
    }
    free(rules);
    static const int32_t shorts[] = {512, 1024, 2048};
    assert_int_equal(moa_grid_step(&(moa_grid_config){.length = shorts, .n_length = 3}), 64);
    assert_int_equal(moa_grid_step(&(moa_grid_config){.length = lengths3, .n_length = 3}), 256);
    static const int32_t odd[] = {800}, tiny[] = {2}, wide[] = {128, 65536, MOA_N_MAX};
    assert_int_equal(moa_grid_step(&(moa_grid_config){.length = odd, .n_length = 1}), 128);
    assert_int_equal(moa_grid_step(&(moa_grid_config){.length = tiny, .n_length = 1}), 64);
    /* whatever the lengths, the default has a grid that is not too large */
    for (int32_t k = 2; k <= 3; k++) {
        assert_int_equal(moa_grid_make(&(moa_grid_config){.length = wide, .n_length = k}, &rules, &n, NULL), MOA_OK);
        assert_in_range(n, 9, MOA_GRID_RULE_MAX - 1);
        free(rules);
    }
    assert_int_equal(moa_grid_step(&(moa_grid_config){.length = shorts, .n_length = 3, .step = 64}), 64);
    /* a fine grid: rules of the same spans are one */
    const moa_grid_config fine = {.length = shorts, .n_length = 3, .step = 16};
    assert_int_equal(moa_grid_make(&fine, &rules, &n, NULL), MOA_OK);
    for (int32_t i = 0; i < n; i++)
        for (int32_t j = 0; j < i; j++) {
            bool same = true;
            for (int k = 0; k < 3; k++) same &= moa_span(rules[i], shorts[k]) == moa_span(rules[j], shorts[k]);
            assert_false(same);
        }
    /* nothing is left when all of it is forbidden */
    const moa_grid_config none = {.length = shorts, .n_length = 3, .step = 16, .forbid = rules, .n_forbid = n};
    moa_rule *left;
    int32_t n_left;
    if (moa_grid_make(&none, &left, &n_left, NULL) == MOA_OK) {
        for (int32_t i = 0; i < n_left; i++) /* their twins took their places */
            for (int32_t j = 0; j < n; j++) assert_false(left[i].alpha == rules[j].alpha && left[i].beta == rules[j].beta);
        free(left);
    }
    free(rules);
}

/* a stretched curve at the same share of the document; a rule's loss there is told by its span there */
static void test_stretch(void **state) {
    (void)state;
    const int32_t at[] = {256, 512}, more[] = {1024, 512, 768, 1024};
    moa_losses *l;
    moa_err err = {0};
    assert_int_equal(moa_losses_open(&l, 1, 2, 1, at, 2, &err), MOA_OK);
    for (int w = 1; w < 7; w++) moa_losses_at(l, 1, 0, 1)[w] = 70 - 10 * w; /* of 8 blocks: 60 ... 10, 0, 0 */
    assert_int_equal(moa_losses_stretch(l, more, 4, &err), MOA_OK);
    assert_int_equal(l->n_length, 4);
    assert_true(l->length[2] == 768 && l->length[3] == 1024 && l->nb[3] == 16 && isnan(l->dense[3]));
    for (int32_t span = 128; span <= 1024; span += 64) { /* half a block between those of 512 tokens */
        const double want = span <= 256 ? 60 : span >= 1024 ? 0 : 70 - 10 * (span / 128. - 1);
        assert_float_equal(moa_losses_rule(l, 3, 0, 1, (moa_rule){span, 0}), want, 1e-9);
    }
    const moa_rule fixed = {256, .5}, elastic = {0, 1}; /* the same up to 512 tokens */
    assert_true(moa_losses_rule(l, 1, 0, 1, fixed) == 0 && moa_losses_rule(l, 1, 0, 1, elastic) == 0);
    assert_true(moa_losses_rule(l, 3, 0, 1, fixed) > 0 && moa_losses_rule(l, 3, 0, 1, elastic) == 0);
    assert_true(moa_losses_rule(l, 3, 0, 0, fixed) == 0);
    const int32_t many[] = {1100, 1200, 1300, 1400, 1500, 1600, 1700, 1800, 1900, 2000, 2100, 2200, 2300};
    assert_int_equal(moa_losses_stretch(l, many, 13, &err), MOA_E_INVALID);
    moa_losses_close(&l);
}

/* the mask itself, token by token, against the curves */
static void test_curves(void **state) {
    (void)state;
    enum { NB = 5, N = NB * 64 };
    float map[NB * NB] = {0};
    double curve[NB + 1];
    random_state = 3;
    for (int q = 0; q < NB; q++)
        for (int k = 0; k <= q; k++) map[q * NB + k] = (float)normal();
    moa_losses_from_map(map, NB, curve);
    for (int32_t span = 128; span <= N; span += 64) {
        double cut = 0;
        for (int q = 0; q < NB; q++)
            for (int k = 0; k <= q; k++) {
                bool whole = true; /* every pair of the block is seen */
                for (int i = q * 64; i < q * 64 + 64; i++)
                    for (int j = k * 64; j < k * 64 + 64 && j <= i; j++) whole &= moa_sees(span, i, j);
                if (!whole) cut += (double)map[q * NB + k];
            }
        assert_float_equal(curve[span / 64 - 1], cut, 1e-6);
    }
}

static void test_pareto(void **state) {
    (void)state;
    const double p[] = {1, 5, 2, 4, 3, 3, 2, 4, 4, 4, 5, 1, 1, 6};
    uint8_t keep[7];
    assert_int_equal(moa_pareto_front(p, 7, 2, keep), 4);
    const uint8_t want[] = {1, 1, 1, 0, 0, 1, 0};
    assert_memory_equal(keep, want, sizeof want);
    assert_int_equal(moa_pareto_thin(p, 7, 2, 3, keep), 3);
    assert_true(keep[0] && keep[5] && (keep[2] || keep[1]));
}

static void save_npz(const char *path, const char *name, const moa_npy_shape *shape, const float *data, const char *meta) {
    moa_npy_writer *w;
    assert_int_equal(moa_npy_open(&w, path, NULL, NULL), MOA_OK);
    assert_int_equal(moa_npz_add(w, name, shape, data, NULL), MOA_OK);
    if (meta) assert_int_equal(moa_npz_text(w, "meta", meta, NULL), MOA_OK);
    assert_int_equal(moa_npy_commit(&w, NULL), MOA_OK);
}

static void test_files(void **state) {
    (void)state;
    char path[] = "/tmp/moa_influence_XXXXXX";
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    (void)close(fd);
    static float data[2 * 4 * 4 * 4];
    for (int i = 0; i < 128; i++) data[i] = (float)i;
    const moa_npy_shape map = {MOA_NPY_F32, 4, {2, 4, 4, 4}}, curve = {MOA_NPY_F32, 3, {2, 4, 5}}, bad = {MOA_NPY_F32, 4, {2, 4, 4, 3}};
    const char *meta = "{\"model\": {\"name\": \"m\", \"n_head_kv\": 2}, \"lengths\": {\"250\": {\"loss\": 1.5}}}";
    moa_losses *l;
    moa_err err = {0};
    moa_losses_config c = {.path = path, .measure = MOA_MEASURE_JOINT};
    save_npz(path, "joint_250", &curve, data, meta);
    if (moa_losses_load(&l, &c, &err) != MOA_OK) fail_msg("%s", err.text);
    assert_int_equal(l->n_head_kv, 2);
    assert_int_equal(l->length[0], 250);
    assert_true(l->dense[0] == 1.5 && moa_losses_at(l, 0, 1, 3)[2] == 37 && moa_losses_rule(l, 0, 1, 3, (moa_rule){0, 1}) == 0);
    assert_true(moa_losses_rule(l, 0, 1, 3, (moa_rule){192, 0}) == 37);
    moa_losses_at(l, 0, 1, 3)[2] = -2; /* a gain counts as nothing, a loss stays */
    moa_losses_drop_gains(l);
    assert_true(moa_losses_rule(l, 0, 1, 3, (moa_rule){192, 0}) == 0 && moa_losses_rule(l, 0, 1, 3, (moa_rule){128, 0}) == 36);
    moa_losses_close(&l);
    c.measure = MOA_MEASURE_ABS;
    assert_int_equal(moa_losses_load(&l, &c, &err), MOA_E_INVALID);
    assert_non_null(strstr(err.text, "abs_250"));
    save_npz(path, "anything", &map, data, NULL);
    c.n_head_kv = 4;
    assert_int_equal(moa_losses_load(&l, &c, &err), MOA_OK);
    assert_int_equal(l->length[0], 256);
    assert_true(moa_losses_at(l, 0, 0, 0)[2] == 13); /* the one block beyond two and the sink: (3, 1) */
    moa_losses_close(&l);
    c.n_head_kv = 3;
    assert_int_equal(moa_losses_load(&l, &c, &err), MOA_E_INVALID);
    c.n_head_kv = 0;
    save_npz(path, "anything", &bad, data, NULL);
    assert_int_equal(moa_losses_load(&l, &c, &err), MOA_E_INVALID);
    data[5] = NAN;
    save_npz(path, "anything", &map, data, NULL);
    assert_int_equal(moa_losses_load(&l, &c, &err), MOA_E_INVALID);
    save_npz(path, "abs_256", &map, data, "{\"lengths\": {\"-3\": 1}}");
    assert_int_equal(moa_losses_load(&l, &c, &err), MOA_E_INVALID);
    assert_null(l);
    (void)unlink(path);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench(argc > 2 ? atoi(argv[2]) : 20, argc > 3 ? atoi(argv[3]) : 2);
    if (argc > 1 && strcmp(argv[1], "--front") == 0) return front(argc > 2 ? atoi(argv[2]) : 2);
    if (argc > 4 && strcmp(argv[1], "--lp") == 0) return write_lp(strtoull(argv[2], NULL, 10), atoi(argv[3]), argv[4]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grid),        cmocka_unit_test(test_curves), cmocka_unit_test(test_stretch),       cmocka_unit_test(test_pareto),
        cmocka_unit_test(test_files),       cmocka_unit_test(test_enumeration),   cmocka_unit_test(test_allowed),
        cmocka_unit_test(test_whole_steps),
        cmocka_unit_test(test_search),      cmocka_unit_test(test_threads_agree), cmocka_unit_test(test_locks_and_forbidden),
        cmocka_unit_test(test_refusals),    cmocka_unit_test(test_real_size),
    };
    thread_cases("test_plans_search", "test_threads_agree");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
