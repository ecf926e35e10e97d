#include "core/cpu/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { MAX_THREADS = 1024, MAX_TASKS = 65535, SPINS = 300 /* pauses: about 5 us */ };

typedef struct worker {
    moa_pool *pool;
    pthread_t thread;
    int32_t index;
} worker;

struct moa_pool {
    _Atomic(moa_task_fn) fn; /* of the current job; they change only when all its tasks are done */
    _Atomic(void *) ctx;
    _Atomic int32_t base;                  /* added to task numbers */
    _Alignas(64) _Atomic uint64_t ticket;  /* job number << 32 | tasks << 16 | next task */
    _Alignas(64) _Atomic int32_t n_done;   /* tasks */
    _Alignas(64) _Atomic int32_t sleepers; /* workers in cond_wait or about to be */
    _Atomic bool caller_sleeps, stop;
    pthread_mutex_t lock; /* guards the two conditions' waits, nothing else */
    pthread_cond_t work, done;
    int32_t n_worker; /* started threads */
    worker *workers;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Claims and runs tasks until the job has none left. A claim that succeeds proves that the job was unfinished when fn and ctx
 * were read, hence that they are its own. */
static void take_tasks(moa_pool *p, int32_t thread) {
    uint64_t t = atomic_load(&p->ticket);
    for (;;) {
        const int32_t n = (int32_t)(t >> 16 & 0xffff), next = (int32_t)(t & 0xffff);
        if (next >= n) return;
        const moa_task_fn fn = atomic_load(&p->fn);
        void *const ctx = atomic_load(&p->ctx);
        const int32_t task = atomic_load(&p->base) + next;
        if (!atomic_compare_exchange_weak(&p->ticket, &t, t + 1)) continue; /* t is now what stands there */
        t++;
        fn(ctx, task, thread);
        if (atomic_fetch_add(&p->n_done, 1) + 1 == n && atomic_load(&p->caller_sleeps)) {
            (void)pthread_mutex_lock(&p->lock);
            (void)pthread_cond_signal(&p->done);
            (void)pthread_mutex_unlock(&p->lock);
        }
    }
}

static void *worker_main(void *arg) {
    const worker *w = arg;
    moa_pool *p = w->pool;
    uint64_t seen = 0; /* number of the last job taken part in */
    for (;;) {
        bool fresh = false;
        for (int i = 0; i < SPINS && !fresh; i++) {
            fresh = atomic_load(&p->ticket) >> 32 != seen;
            if (!fresh) relax();
        }
        if (!fresh) {
            (void)pthread_mutex_lock(&p->lock);
            (void)atomic_fetch_add(&p->sleepers, 1);
            while (atomic_load(&p->ticket) >> 32 == seen && !atomic_load(&p->stop))
                (void)pthread_cond_wait(&p->work, &p->lock);
            (void)atomic_fetch_sub(&p->sleepers, 1);
            (void)pthread_mutex_unlock(&p->lock);
        }
        if (atomic_load(&p->stop)) return NULL;
        seen = atomic_load(&p->ticket) >> 32;
        take_tasks(p, w->index);
    }
}

/* n <= MAX_TASKS tasks from base on */
static void run_some(moa_pool *p, moa_task_fn fn, void *ctx, int32_t base, int32_t n) {
    atomic_store(&p->fn, fn);
    atomic_store(&p->ctx, ctx);
    atomic_store(&p->base, base);
    atomic_store(&p->n_done, 0);
    atomic_store(&p->ticket, ((atomic_load(&p->ticket) >> 32) + 1) << 32 | (uint64_t)n << 16);
    if (atomic_load(&p->sleepers) > 0) {
        (void)pthread_mutex_lock(&p->lock);
        (void)pthread_cond_broadcast(&p->work);
        (void)pthread_mutex_unlock(&p->lock);
    }
    take_tasks(p, 0);
    for (int i = 0; i < SPINS && atomic_load(&p->n_done) < n; i++)
        relax();
    if (atomic_load(&p->n_done) == n) return;
    (void)pthread_mutex_lock(&p->lock);
    atomic_store(&p->caller_sleeps, true);
    while (atomic_load(&p->n_done) < n)
        (void)pthread_cond_wait(&p->done, &p->lock);
    atomic_store(&p->caller_sleeps, false);
    (void)pthread_mutex_unlock(&p->lock);
}

void moa_pool_run(moa_pool *p, moa_task_fn fn, void *ctx, int32_t n_task) {
    if (n_task <= 1 || p->n_worker == 0) {
        for (int32_t i = 0; i < n_task; i++)
            fn(ctx, i, 0);
        return;
    }
    for (int32_t base = 0; base < n_task; base += MAX_TASKS)
        run_some(p, fn, ctx, base, n_task - base < MAX_TASKS ? n_task - base : MAX_TASKS);
}

moa_status moa_pool_open(moa_pool **out, int32_t n_threads, moa_err *err) {
    *out = NULL;
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return moa_fail(err, MOA_E_USAGE, "%d threads: 1 to %d are possible", n_threads, MAX_THREADS);
    moa_pool *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
    if (!p) return moa_fail(err, MOA_E_MEMORY, "no memory for the thread pool");
    *p = (moa_pool){.n_worker = 0};
    (void)pthread_mutex_init(&p->lock, NULL);
    (void)pthread_cond_init(&p->work, NULL);
    (void)pthread_cond_init(&p->done, NULL);
    p->workers = calloc((size_t)n_threads, sizeof *p->workers);
    moa_status s = p->workers ? MOA_OK : moa_fail(err, MOA_E_MEMORY, "no memory for %d threads", n_threads);
    for (int32_t i = 1; i < n_threads && s == MOA_OK; i++) {
        worker *w = &p->workers[i - 1];
        *w = (worker){.pool = p, .index = i};
        const int code = pthread_create(&w->thread, NULL, worker_main, w);
        if (code != 0)
            s = moa_fail(err, MOA_E_FAILED, "thread %d of %d could not be started (error %d)", i, n_threads,
                         code);
        else
            p->n_worker++;
    }
    *out = p;
    if (s != MOA_OK) moa_pool_close(out);
    return s;
}

void moa_pool_close(moa_pool **pool) {
    moa_pool *p = pool ? *pool : NULL;
    if (!p) return;
    (void)pthread_mutex_lock(&p->lock);
    atomic_store(&p->stop, true);
    (void)pthread_cond_broadcast(&p->work);
    (void)pthread_mutex_unlock(&p->lock);
    for (int32_t i = 0; i < p->n_worker; i++)
        (void)pthread_join(p->workers[i].thread, NULL);
    (void)pthread_mutex_destroy(&p->lock);
    (void)pthread_cond_destroy(&p->work);
    (void)pthread_cond_destroy(&p->done);
    free(p->workers);
    free(p);
    *pool = NULL;
}
