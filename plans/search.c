/* search.c -- the cells of a search, solved by threads; what comes out does not depend on how many.
 *
 *   first    the mean of the lengths, and every length alone: they give the ranges of the losses
 *   then     every length again, the others' losses below each combination of levels that split those ranges; the multipliers of the first
 *            solves are where these begin
 *   last     what another plan beats at every length is dropped, the rest perhaps thinned */
#include "plans/search.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "plans/pareto.h"
#include "plans/search_problem.h"

enum { CELL_MAX = 1024 };

typedef struct cell {
    int32_t objective; /* -1: the mean */
    double level[MOA_LOSSES_LENGTH_MAX];
    int32_t *pick; /* owned */
    moa_solve_result result;
    double loss[MOA_LOSSES_LENGTH_MAX];
    bool solved;
} cell;

typedef struct work {
    const moa_search_config *config;
    moa_problem *problem;
    cell *cells;
    int32_t n_cell, first, total; /* cells [first, n_cell) are to be solved now */
    atomic_int next, done;
    atomic_bool stop;
    pthread_mutex_t lock; /* status, err and the callbacks */
    moa_status status;
    moa_err err;
} work;

static bool cancelled(void *user) {
    work *w = user;
    if (atomic_load(&w->stop)) return true;
    if (!w->config->cancelled) return false;
    (void)pthread_mutex_lock(&w->lock);
    const bool yes = w->config->cancelled(w->config->user);
    (void)pthread_mutex_unlock(&w->lock);
    if (yes) atomic_store(&w->stop, true);
    return yes;
}

static void report(void *user, double best, double bound) {
    work *w = user;
    if (!w->config->progress) return;
    (void)pthread_mutex_lock(&w->lock);
    const moa_search_progress p = {atomic_load(&w->done), w->total, best < INFINITY ? best : NAN, bound,
                                   moa_solve_gap(best, bound)};
    w->config->progress(w->config->user, &p);
    (void)pthread_mutex_unlock(&w->lock);
}

static moa_status solve_cell(work *w, cell *x, moa_err *err) {
    const moa_problem *p = w->problem;
    const moa_search_config *c = w->config;
    const bool first = w->first == 0;
    const size_t n = (size_t)p->losses->n_layer * (size_t)p->n_unit;
    moa_choice choice;
    moa_problem_choice(p, x->objective, x->level, &choice);
    /* a cell begins where the solve of the same objective without levels ended: its rows come first */
    const moa_solve_config config = {.seed = c->seed, .gap = c->gap > 0 ? c->gap : 2e-4, .effort = first ? 1 : .25,
                                     .start = first ? NULL : w->cells[x->objective + 1].result.y,
                                     .cancelled = cancelled, .report = report, .user = w};
    x->pick = malloc(n * sizeof *x->pick);
    if (!x->pick) return moa_fail(err, MOA_E_MEMORY, "no memory for a plan of %zu units", n);
    const moa_status s = moa_solve(&choice, &config, x->pick, &x->result, err);
    if (s != MOA_OK) return s;
    for (int32_t i = 0; i < p->losses->n_length && x->result.end == MOA_SOLVE_PLAN; i++) {
        choice.loss = p->loss[i];
        x->loss[i] = moa_choice_value(&choice, x->pick, NULL);
    }
    x->solved = true;
    return MOA_OK;
}

static void *run_thread(void *user) {
    work *w = user;
    for (;;) {
        const int32_t i = atomic_fetch_add(&w->next, 1);
        moa_err err = {0};
        if (i >= w->n_cell || atomic_load(&w->stop)) return NULL;
        const moa_status s = solve_cell(w, &w->cells[i], &err);
        (void)atomic_fetch_add(&w->done, 1);
        if (s == MOA_OK) continue;
        (void)pthread_mutex_lock(&w->lock);
        if (w->status == MOA_OK) w->status = s, w->err = err;
        (void)pthread_mutex_unlock(&w->lock);
        atomic_store(&w->stop, true);
    }
}

static moa_status run_cells(work *w, int32_t first, int32_t n, moa_err *err) {
    pthread_t threads[MOA_SEARCH_THREAD_MAX];
    int32_t n_thread = 0, want = w->config->n_thread > 0 ? w->config->n_thread : 1;
    w->first = first;
    w->n_cell = n;
    atomic_store(&w->next, first);
    if (want > n - first) want = n - first;
    if (want > MOA_SEARCH_THREAD_MAX) want = MOA_SEARCH_THREAD_MAX;
    while (n_thread < want - 1 && pthread_create(&threads[n_thread], NULL, run_thread, w) == 0) n_thread++;
    (void)run_thread(w); /* this one works too, so a thread that could not be made is no error */
    for (int32_t i = 0; i < n_thread; i++) (void)pthread_join(threads[i], NULL);
    if (w->status == MOA_OK && atomic_load(&w->stop)) w->status = moa_fail(&w->err, MOA_E_CANCELLED, "the search was interrupted");
    return w->status == MOA_OK ? MOA_OK : moa_fail(err, w->status, "%s", w->err.text);
}

/* --- which cells ---------------------------------------------------------------------------------------------------------------- */

/* levels a length: as wanted, fewer where many lengths would make too many cells */
static int32_t levels_of(const moa_search_config *c, int32_t n_length, int32_t *n_cell) {
    int32_t n = c->n_interval > 0 ? c->n_interval : 4;
    for (;; n--) {
        double count = n_length;
        for (int32_t i = 1; i < n_length; i++) count *= n;
        if (n_length == 1 || n <= 1) return *n_cell = 0, 1;
        if (count <= CELL_MAX - 64) return *n_cell = (int32_t)count - n_length, n;
    }
}

static void add_cells(work *w, int32_t *n, int32_t n_level) {
    const int32_t n_length = w->problem->losses->n_length;
    double low[MOA_LOSSES_LENGTH_MAX], high[MOA_LOSSES_LENGTH_MAX];
    for (int32_t i = 0; i < n_length; i++) {
        low[i] = INFINITY, high[i] = -INFINITY;
        for (int32_t k = 0; k <= n_length; k++) {
            if (w->cells[k].result.end != MOA_SOLVE_PLAN) continue;
            low[i] = fmin(low[i], w->cells[k].loss[i]);
            high[i] = fmax(high[i], w->cells[k].loss[i]);
        }
    }
    for (int32_t m = 0; m < n_length; m++) {
        int32_t at[MOA_LOSSES_LENGTH_MAX] = {0};
        for (bool more = true; more;) {
            cell *x = &w->cells[*n];
            bool all_open = true;
            *x = (cell){.objective = m};
            for (int32_t i = 0; i < n_length; i++) {
                const bool open = i == m || at[i] == n_level - 1; /* the highest level binds nothing */
                all_open &= open;
                x->level[i] = open ? INFINITY : low[i] + (high[i] - low[i]) * (at[i] + 1) / n_level;
            }
            *n += !all_open;
            more = false;
            for (int32_t i = 0; i < n_length && !more; i++) {
                if (i == m) continue;
                if (++at[i] < n_level) more = true;
                else at[i] = 0;
            }
        }
    }
}

/* --- what is said when there is none ---------------------------------------------------------------------------------------------- */

static void reach(const moa_problem *p, int32_t b, double *least, double *most) {
    const size_t units = (size_t)p->losses->n_layer * (size_t)p->n_unit;
    *least = *most = 0;
    for (size_t u = 0; u < units; u++) {
        double low = INFINITY, high = 0;
        for (int32_t r = 0; r < p->n_rule; r++) {
            if (p->allow[u / (size_t)p->n_unit * (size_t)p->n_rule + (size_t)r] == MOA_RULE_NO) continue;
            low = fmin(low, p->kept[b][u * (size_t)p->n_rule + (size_t)r]);
            high = fmax(high, p->kept[b][u * (size_t)p->n_rule + (size_t)r]);
        }
        *least += low;
        *most += high;
    }
}

static moa_status say_infeasible(const moa_problem *p, const moa_solve_result *r, moa_err *err) {
    int32_t a = -1, b = -1; /* the rows that weigh most in the proof */
    for (int32_t k = 0; k < p->n_bound; k++) {
        double least, most;
        reach(p, k, &least, &most);
        if (least > p->high * (1 + 1e-12))
            return moa_fail(err, MOA_E_FAILED, "density at most %g at %d tokens is out of reach: the narrowest of %d rules keep %.4f",
                            p->high, p->bound_at[k], p->n_rule, least);
        if (most < p->low * (1 - 1e-12))
            return moa_fail(err, MOA_E_FAILED, "density at least %g at %d tokens is out of reach: the widest of %d rules keep %.4f",
                            p->low, p->bound_at[k], p->n_rule, most);
        if (a < 0 || fabs(r->weight[k]) > fabs(r->weight[a])) b = a, a = k;
        else if (b < 0 || fabs(r->weight[k]) > fabs(r->weight[b])) b = k;
    }
    if (p->moved)
        return moa_fail(err, MOA_E_FAILED, "no choice among %d rules has a density from %g to %g within a step of %g from the plan given",
                        p->n_rule, p->low, p->high, p->config->step);
    if (b < 0)
        return moa_fail(err, MOA_E_FAILED, "no choice among %d rules has a density from %g to %g at %d tokens", p->n_rule, p->low,
                        p->high, p->bound_at[a]);
    return moa_fail(err, MOA_E_FAILED,
                    "no choice among %d rules has a density from %g to %g at all %d lengths at once: that is proven, mainly from the "
                    "bounds at %d and %d tokens",
                    p->n_rule, p->low, p->high, p->n_bound, p->bound_at[a], p->bound_at[b]);
}

static moa_status check_first(const work *w, int32_t n, moa_err *err) {
    bool any = false;
    for (int32_t i = 0; i < n; i++) {
        if (w->cells[i].result.end == MOA_SOLVE_INFEASIBLE) return say_infeasible(w->problem, &w->cells[i].result, err);
        any |= w->cells[i].result.end == MOA_SOLVE_PLAN;
    }
    if (any) return MOA_OK;
    return moa_fail(err, MOA_E_FAILED,
                    "no plan found with a density from %g to %g at %d lengths, and no proof that there is none (loss at least %.6g): "
                    "a smaller lower bound leaves more room",
                    w->problem->low, w->problem->high, w->problem->n_bound, w->cells[0].result.bound);
}

/* --- the result ----------------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static moa_status take_found(const work *w, const cell *x, moa_found *f, moa_err *err) {
    const moa_problem *p = w->problem;
    const int32_t n_length = p->losses->n_length;
    const moa_status s = moa_problem_plan(p, x->pick, &f->plan, err);
    if (s != MOA_OK) return s;
    f->objective = x->objective;
    f->best = x->result.best, f->bound = x->result.bound, f->gap = moa_solve_gap(f->best, f->bound);
    f->seconds = x->result.cpu_seconds;
    memcpy(f->level, x->level, sizeof f->level);
    memcpy(f->loss, x->loss, sizeof f->loss);
    for (int32_t i = 0; i < n_length; i++) f->mean += x->loss[i] / n_length;
    for (int32_t b = 0; b < p->n_bound; b++) {
        const moa_plan_at_n d = moa_plan_describe(f->plan, p->bound_at[b], p->losses->n_head_kv);
        f->density_kv[b] = d.kv_density_grouped;
        f->density_head[b] = d.kv_density;
        f->density[b] = w->config->budget == MOA_BUDGET_HEAD ? d.kv_density : d.kv_density_grouped;
    }
    return MOA_OK;
}

static int by_last_loss(const void *a, const void *b, void *n_length) {
    const moa_found *x = a, *y = b;
    for (int32_t i = *(const int32_t *)n_length - 1; i >= 0; i--)
        if (x->loss[i] != y->loss[i]) return x->loss[i] < y->loss[i] ? -1 : 1;
    return 0;
}

static void count_solves(const work *w, int32_t n, moa_search_result *out) {
    double gaps[CELL_MAX];
    int32_t n_gap = 0;
    for (int32_t i = 0; i < n; i++) {
        const moa_solve_result *r = &w->cells[i].result;
        out->cpu_seconds += r->cpu_seconds;
        out->n_infeasible += r->end == MOA_SOLVE_INFEASIBLE;
        out->n_none += r->end == MOA_SOLVE_NONE;
        if (r->end == MOA_SOLVE_PLAN) gaps[n_gap++] = moa_solve_gap(r->best, r->bound);
    }
    out->n_solve = n;
    qsort(gaps, (size_t)n_gap, sizeof *gaps, by_value);
    out->gap_median = gaps[n_gap / 2];
    out->gap_worst = gaps[n_gap - 1];
}

static moa_status collect(const work *w, int32_t n, moa_search_result *out, moa_err *err) {
    const int32_t n_length = w->problem->losses->n_length;
    moa_status s = MOA_OK;
    double *point = malloc((size_t)n * (size_t)n_length * sizeof *point);
    uint8_t *keep = malloc((size_t)n);
    int32_t n_point = 0, from[CELL_MAX];
    if (!point || !keep) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d plans", n));
    for (int32_t i = 0; i < n; i++) {
        if (w->cells[i].result.end != MOA_SOLVE_PLAN) continue;
        memcpy(point + (size_t)n_point * (size_t)n_length, w->cells[i].loss, (size_t)n_length * sizeof *point);
        from[n_point++] = i;
    }
    int32_t left = moa_pareto_front(point, n_point, n_length, keep);
    if (w->config->n_plan_max > 0) left = moa_pareto_thin(point, n_point, n_length, w->config->n_plan_max, keep);
    out->found = calloc((size_t)left, sizeof *out->found);
    if (!out->found) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d plans", left));
    for (int32_t i = 0; i < n_point; i++)
        if (keep[i]) MOA_TRY(take_found(w, &w->cells[from[i]], &out->found[out->n_found++], err));
    int32_t dims = n_length;
    qsort_r(out->found, (size_t)out->n_found, sizeof *out->found, by_last_loss, &dims);
    count_solves(w, n, out);
out:
    free(point);
    free(keep);
    return s;
}

static moa_status write_lp(const moa_problem *p, const char *path, moa_err *err) {
    moa_choice choice;
    moa_buf text = {0};
    moa_status s = MOA_OK;
    moa_problem_choice(p, -1, NULL, &choice);
    MOA_TRY(moa_solve_lp(&choice, &text, err));
    MOA_TRY(moa_file_save(path, text.data, text.size, 0644, 0, err));
out:
    moa_buf_free(&text);
    return s;
}

moa_status moa_search_run(const moa_losses *losses, const moa_search_config *config, moa_search_result *out, moa_err *err) {
    moa_problem problem = {0};
    work w = {.config = config, .problem = &problem};
    moa_status s = MOA_OK;
    int32_t n_more, n = config->mean_only ? 1 : losses->n_length + 1; /* the mean is the first */
    *out = (moa_search_result){0};
    if (pthread_mutex_init(&w.lock, NULL) != 0) return moa_fail(err, MOA_E_MEMORY, "no memory for a lock");
    const int32_t n_level = levels_of(config, losses->n_length, &n_more);
    if (config->mean_only) n_more = 0;
    MOA_TRY(moa_problem_open(&problem, losses, config, err));
    if (config->lp_path) MOA_TRY(write_lp(&problem, config->lp_path, err));
    w.cells = calloc(CELL_MAX, sizeof *w.cells);
    if (!w.cells) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "no memory for %d solves", n + n_more));
    w.total = n + n_more;
    for (int32_t i = 0; i < n; i++) {
        w.cells[i].objective = i - 1;
        for (int32_t k = 0; k < losses->n_length; k++) w.cells[i].level[k] = INFINITY;
    }
    MOA_TRY(run_cells(&w, 0, n, err));
    MOA_TRY(check_first(&w, n, err));
    const int32_t first = n;
    if (n_more > 0) add_cells(&w, &n, n_level);
    if (n > first) MOA_TRY(run_cells(&w, first, n, err));
    MOA_TRY(collect(&w, n, out, err));
    out->n_bound = problem.n_bound;
    memcpy(out->bound_at, problem.bound_at, sizeof out->bound_at);
    out->density_low = problem.low, out->density_high = problem.high;
    out->n_rule = problem.n_rule, out->alpha_step = problem.alpha_step;
out:
    for (int32_t i = 0; w.cells && i < CELL_MAX; i++) free(w.cells[i].pick);
    free(w.cells);
    moa_problem_free(&problem);
    (void)pthread_mutex_destroy(&w.lock);
    if (s != MOA_OK) moa_search_result_free(out);
    return s;
}

void moa_search_result_free(moa_search_result *r) {
    for (int32_t i = 0; i < r->n_found; i++) moa_plan_close(&r->found[i].plan);
    free(r->found);
    *r = (moa_search_result){0};
}
