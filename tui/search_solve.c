/* search_solve.c -- the solver in a thread of this process, and how it tells the loop.
 *
 *   loop                               thread
 *   start: copies curves and locks --> problem, solves, plans
 *   poll(fd) <-- a byte in the pipe -- report: best, bound, done of total (under the lock)
 *   read: takes report or the plans <-- finished
 *
 * It makes a front, or for a round (search_rounds.c) the best plan near another one, of one influence and of the mean.
 *
 * The thread touches its own copy of everything: the screen may show, edit and load meanwhile. Who closes a solver at work leaves it: it
 * sees that it is cancelled, and what is left of it goes with its thread. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tui/search.h"

enum { PLANS = 6, THREADS_MAX = 8 }; /* plans of a front that is shown, compared and validated in minutes */

struct tui_solver {
    pthread_t thread;
    bool started;
    int fds[2]; /* pipe: a byte is "look" */
    atomic_bool cancel;
    moa_losses *losses; /* its own, as are near, around, lock and locked */
    moa_losses *near[2]; /* (n_near) in place of losses: one plan each, around a plan */
    int n_near;
    moa_plan *around;
    moa_plan *lock;     /* rules of locked heads; NULL: none is */
    uint8_t *locked;
    int32_t extend[2];
    moa_search_config config;
    pthread_mutex_t lock_report; /* of what follows */
    double best, bound;
    int done, total;
    bool finished, left; /* left: the thread frees it */
    moa_status status;
    moa_err err;
    moa_plan *plans[TUI_FIND_PLANS]; /* (n), owned until taken */
    double gaps[TUI_FIND_PLANS];
    int n;
    moa_found found[2]; /* (n_found) of near; plans owned until taken */
    int n_found;
};

static void wake(tui_solver *s) {
    const char byte = 1;
    ssize_t n;
    do n = write(s->fds[1], &byte, 1);
    while (n < 0 && errno == EINTR);
}

static bool on_cancelled(void *user) { return atomic_load(&((tui_solver *)user)->cancel); }

static void on_progress(void *user, const moa_search_progress *p) {
    tui_solver *s = user;
    (void)pthread_mutex_lock(&s->lock_report);
    s->best = p->best;
    s->bound = p->bound;
    s->done = p->done;
    s->total = p->total;
    (void)pthread_mutex_unlock(&s->lock_report);
    wake(s);
}

static moa_status work_near(tui_solver *s) {
    moa_status st = MOA_OK;
    for (int i = 0; i < s->n_near && st == MOA_OK; i++) {
        st = moa_rounds_find(s->near[i], &s->config, &s->found[s->n_found], &s->err);
        s->n_found += st == MOA_OK;
    }
    return st;
}

static moa_status work(tui_solver *s) {
    if (s->n_near > 0) return work_near(s);
    moa_search_result r = {0};
    const moa_status st = moa_search_run(s->losses, &s->config, &r, &s->err);
    for (int32_t i = 0; st == MOA_OK && i < r.n_found && s->n < TUI_FIND_PLANS; i++) {
        s->plans[s->n] = r.found[i].plan;
        s->gaps[s->n++] = r.found[i].gap;
        r.found[i].plan = NULL;
    }
    moa_search_result_free(&r);
    return st == MOA_OK && s->n == 0 ? moa_fail(&s->err, MOA_E_FAILED, "no plan was found") : st;
}

static void solver_free(tui_solver *s) {
    for (int i = 0; i < s->n; i++) moa_plan_close(&s->plans[i]);
    for (int i = 0; i < s->n_found; i++) moa_plan_close(&s->found[i].plan);
    for (int i = 0; i < 2; i++) moa_losses_close(&s->near[i]);
    moa_plan_close(&s->around);
    for (int i = 0; i < 2; i++)
        if (s->fds[i] >= 0) (void)close(s->fds[i]);
    moa_losses_close(&s->losses);
    moa_plan_close(&s->lock);
    free(s->locked);
    (void)pthread_mutex_destroy(&s->lock_report);
    free(s);
}

static void *thread_main(void *arg) {
    tui_solver *s = arg;
    const moa_status st = work(s);
    (void)pthread_mutex_lock(&s->lock_report);
    s->status = st;
    s->finished = true;
    const bool left = s->left;
    (void)pthread_mutex_unlock(&s->lock_report);
    if (left) solver_free(s);
    else wake(s);
    return NULL;
}

/* the longest length that plans are judged at; 0: it is profiled */
static int32_t judged_at(const tui_planner *p) {
    const int32_t longest = p->influence[p->n_influence - 1]->n_tok, most = p->valid_at > p->try_at ? p->valid_at : p->try_at;
    return most > longest ? most : 0;
}

/* the curves of the measure at the lengths of the planner's tables, and at the one that plans are judged at */
static moa_status copy_losses(const tui_app *app, tui_solver *s, moa_err *err) {
    const tui_planner *p = app->planner;
    const int32_t judged = judged_at(p);
    int32_t lengths[TUI_FIND_LENGTHS];
    const int n = p->n_influence;
    for (int i = 0; i < n; i++) {
        lengths[i] = p->influence[i]->n_tok;
        if (!p->influence[i]->curve[p->measure])
            return moa_fail(err, MOA_E_FAILED, "there is no %s influence at %d tokens; choose another measure", moa_measure_name(p->measure), lengths[i]);
    }
    const size_t heads = (size_t)app->model.n_layer * (size_t)app->model.n_head;
    const moa_status st = moa_losses_open(&s->losses, app->model.n_layer, app->model.n_head, app->model.n_head_kv, lengths, n, err);
    if (st != MOA_OK) return st;
    for (int i = 0; i < n; i++) {
        const float *from = p->influence[i]->curve[p->measure];
        for (size_t k = 0; k < heads * ((size_t)p->influence[i]->nb + 1); k++) s->losses->curve[i][k] = (double)from[k];
    }
    moa_losses_drop_gains(s->losses);
    return judged ? moa_losses_stretch(s->losses, &judged, 1, err) : MOA_OK;
}

static moa_status copy_locks(const tui_app *app, tui_solver *s, moa_err *err) {
    const tui_planner *p = app->planner;
    const size_t n = (size_t)app->model.n_layer * (size_t)app->model.n_head;
    if (!p->locked || !app->plan.now) return MOA_OK;
    s->locked = malloc(n);
    if (!s->locked) return moa_fail(err, MOA_E_MEMORY, "no memory for the locks of %zu heads", n);
    memcpy(s->locked, p->locked, n);
    s->config.locked = s->locked;
    const moa_status st = moa_plan_copy(&s->lock, app->plan.now, err);
    s->config.lock = s->lock;
    return st;
}

int tui_planner_extend(const tui_planner *p, int32_t out[2]) {
    const int32_t longest = p->influence[p->n_influence - 1]->n_tok, at[] = {p->valid_at, p->try_at};
    int n = 0;
    for (int i = 0; i < 2; i++) /* one that has losses too is a bound once (search.h) */
        if (at[i] > longest) out[n++] = at[i];
    return n;
}

/* bounds hold at the lengths that plans are judged at, too */
static void settle(const tui_app *app, tui_solver *s) {
    const tui_planner *p = app->planner;
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    s->config.n_extend = tui_planner_extend(p, s->extend);
    s->config.extend = s->extend;
    s->config.density = p->density;
    s->config.max_rules = p->max_rules;
    s->config.per = p->per_head ? MOA_PER_HEAD : MOA_PER_GROUP;
    s->config.n_plan_max = PLANS;
    s->config.seed = p->seed;
    s->config.n_thread = cpus < 1 ? 1 : cpus > THREADS_MAX ? THREADS_MAX : (int32_t)cpus;
    s->config.cancelled = on_cancelled;
    s->config.progress = on_progress;
    s->config.user = s;
}

/* v is taken over */
static moa_status launch(tui_app *app, tui_solver *v, moa_err *err) {
    moa_status s = MOA_OK;
    int e = 0;
    MOA_TRY(copy_locks(app, v, err));
    settle(app, v);
    if (pipe2(v->fds, O_CLOEXEC | O_NONBLOCK) != 0) MOA_TRY(moa_fail(err, MOA_E_FAILED, "no pipe for the solver: %s", strerror(errno)));
    e = pthread_create(&v->thread, NULL, thread_main, v);
    if (e != 0) MOA_TRY(moa_fail(err, MOA_E_FAILED, "no thread for the solver: %s", strerror(e)));
    v->started = true;
    app->planner->solver = v;
    app->planner->solver_best = app->planner->solver_bound = (double)NAN;
    app->planner->solver_done = app->planner->solver_total = 0;
    v = NULL;
out:
    tui_solver_close(&v);
    return s;
}

static tui_solver *solver_make(moa_err *err) {
    tui_solver *v = calloc(1, sizeof *v);
    if (!v) {
        (void)moa_fail(err, MOA_E_MEMORY, "no memory for the solver");
        return NULL;
    }
    (void)pthread_mutex_init(&v->lock_report, NULL);
    v->best = v->bound = (double)NAN;
    v->fds[0] = v->fds[1] = -1;
    return v;
}

moa_status tui_solver_start(tui_app *app, moa_err *err) {
    tui_solver *v = solver_make(err);
    if (!v) return MOA_E_MEMORY;
    const moa_status s = copy_losses(app, v, err);
    if (s == MOA_OK) return launch(app, v, err);
    tui_solver_close(&v);
    return s;
}

moa_status tui_solver_near(tui_app *app, const tui_solve_near *ask, moa_err *err) {
    tui_solver *v = solver_make(err);
    for (int i = 0; i < ask->n; i++) {
        moa_losses *l = ask->losses[i];
        if (v) v->near[v->n_near++] = l;
        else moa_losses_close(&l);
    }
    if (!v) return MOA_E_MEMORY;
    const moa_status s = moa_plan_copy(&v->around, ask->around, err);
    if (s != MOA_OK) {
        tui_solver_close(&v);
        return s;
    }
    v->config.around = v->around;
    v->config.step = ask->step;
    v->config.n_interval = 1;
    return launch(app, v, err);
}

void tui_solver_cancel(tui_planner *p) {
    if (p->solver) atomic_store(&p->solver->cancel, true);
}

int tui_solver_fd(const tui_app *app) { return app->planner && app->planner->solver ? app->planner->solver->fds[0] : -1; }

void tui_solver_read(tui_app *app) {
    tui_planner *p = app->planner;
    tui_solver *s = p ? p->solver : NULL;
    char bytes[64];
    if (!s || read(s->fds[0], bytes, sizeof bytes) <= 0) return;
    (void)pthread_mutex_lock(&s->lock_report);
    p->solver_best = s->best;
    p->solver_bound = s->bound;
    p->solver_done = s->done;
    p->solver_total = s->total;
    const bool finished = s->finished;
    (void)pthread_mutex_unlock(&s->lock_report);
    if (p->solver_total > 0 && p->running == TUI_STEP_SEARCH) p->steps[TUI_STEP_SEARCH].share = (double)p->solver_done / p->solver_total;
    tui_dirty(app);
    if (!finished) return;
    p->solver = NULL;
    (void)pthread_join(s->thread, NULL);
    s->started = false;
    const int n = s->n, n_found = s->n_found;
    s->n = s->n_found = 0; /* the plans are moved */
    if (s->n_near > 0) tui_rounds_solved(app, s->status, s->err.text, s->found, n_found);
    else tui_planner_solved(app, s->status, s->err.text, s->plans, s->gaps, n);
    tui_solver_close(&s);
}

void tui_solver_close(tui_solver **out) {
    tui_solver *s = *out;
    if (!s) return;
    *out = NULL;
    atomic_store(&s->cancel, true);
    if (!s->started) {
        solver_free(s);
        return;
    }
    const pthread_t thread = s->thread;
    (void)pthread_mutex_lock(&s->lock_report);
    const bool finished = s->finished;
    s->left = true;
    (void)pthread_mutex_unlock(&s->lock_report);
    if (!finished) (void)pthread_detach(thread); /* s is the thread's now */
    else {
        (void)pthread_join(thread, NULL);
        solver_free(s);
    }
}
