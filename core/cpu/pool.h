/* pool.h -- the CPU backend's threads: one job at a time, cut into numbered tasks that any thread may take.
 *
 * A decode step is some three hundred jobs of a few microseconds, so the pool must neither lose a wake-up's time on each nor
 * burn a core between steps:
 *
 *   - the caller works too, and a job is done when its tasks are, not when every thread has woken: late threads cost nothing;
 *   - idle threads look for work for a few microseconds (the gap between two jobs of a step), then sleep;
 *   - a task is claimed by one compare-and-swap on (job number, next task), which also proves that the job read is that job.
 *
 * Which thread runs a task is not determined; what a task computes must not depend on it. */
#ifndef MOA_CPU_POOL_H
#define MOA_CPU_POOL_H

#include <stdint.h>

#include "core/base/status.h"

typedef struct moa_pool moa_pool;
/* thread: 0 .. n_threads - 1, the caller's is 0: an index for scratch memory */
typedef void (*moa_task_fn)(void *ctx, int32_t task, int32_t thread);

/* n_threads >= 1, the caller included. Fails when threads cannot be made. */
moa_status moa_pool_open(moa_pool **out, int32_t n_threads, moa_err *err);
void moa_pool_close(moa_pool **pool); /* no job may be running */
/* Runs fn for tasks 0 .. n_task - 1 and returns when all are done. From one thread at a time, never from within a task. */
void moa_pool_run(moa_pool *pool, moa_task_fn fn, void *ctx, int32_t n_task);

#endif
