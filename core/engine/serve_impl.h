/* serve_impl.h -- what the files of the engine process share; nobody else includes it.
 *
 *   serve.c       the loop: descriptors, queue of jobs, devices, loading
 *   serve_run.c   a run and what is told about it: tokens, statistics, maps, pages
 *   serve_task.c  the search's work: calibration items, influence, plans compared */
#ifndef MOA_ENGINE_SERVE_IMPL_H
#define MOA_ENGINE_SERVE_IMPL_H

#include <sys/types.h>

#include "core/engine/run.h"
#include "core/engine/serve.h"
#include "core/engine/wire.h"

enum { MOA_SERVE_QUEUE = 64 };

typedef struct moa_ids {
    int32_t *data; /* owned */
    int32_t n, capacity;
} moa_ids;

typedef struct moa_serve_items moa_serve_items; /* serve_task.c */

typedef struct moa_serve_state {
    moa_serve_config config;
    moa_wire_reader in;
    moa_buf out; /* encoded, not yet written: from out_at */
    size_t out_at;
    bool greeted;
    bool closed;              /* QUIT, end of input, or a broken descriptor: leave */
    bool fatal;               /* the device is lost; closed_err says how */
    moa_status closed_status; /* and why, if not in peace */
    moa_err closed_err;

    moa_buf queue[MOA_SERVE_QUEUE]; /* frames of jobs that wait */
    uint32_t queue_job[MOA_SERVE_QUEUE];
    int n_queue;
    uint32_t job; /* running, 0: none */
    bool busy, cancelled;

    pid_t devices_pid; /* of the child that looks for GPUs, 0: none */
    int devices_fd;
    uint32_t hello_job;
    moa_buf devices;

    /* the loaded model */
    moa_model *model;
    moa_engine *engine;
    moa_seq *seq;
    char device[32], device_why[256];
    double phase_start, phase_told;
    int load_stage;
    bool load_whole; /* in one stage */

    /* the conversation: all its ids; the sequence holds a beginning of them, or is stale and must be filled anew */
    moa_ids talk;
    bool stale,
        reply_open; /* reply_open: the conversation ends inside an assistant's turn of the chat template */
    moa_run_reference reference;

    moa_serve_items *items; /* calibrated, of this model; NULL: none */

    /* of the last run */
    int watch;
    int32_t n_prompt, n_reserved; /* n_prompt: tokens it had to take; 0: there was no run */
    moa_rule *rules, *measure;    /* (n_layer, n_head), owned; NULL: dense; NULL: as rules */
    int32_t stats_every;
    bool snapshots_due;
    int32_t hist_next; /* the layer the next HIST is of, when a slow reader made them stop */

    /* the map the screen looks at */
    moa_msg_select_map map;
    uint32_t map_job;
    bool map_now, map_follow;
} moa_serve_state;

/* --- serve.c */
void moa_serve_send(moa_serve_state *sv, uint32_t job, moa_wire_msg *m);
void moa_serve_fail(moa_serve_state *sv, uint32_t job, moa_status s, const moa_err *err);
size_t moa_serve_waiting(const moa_serve_state *sv); /* bytes not yet written */
void moa_serve_drain(moa_serve_state *sv,
                     size_t bytes); /* waits until at most so many are left, reading meanwhile */
bool moa_serve_cancelled(void *sv); /* reads what came in */
double moa_serve_now(void);         /* seconds, monotonic */
static inline moa_wire_str moa_serve_str(const char *text) {
    moa_wire_str s = {text, 0};
    while (text && text[s.n])
        s.n++;
    return s;
}
bool moa_ids_append(moa_ids *ids, const int32_t *more, size_t n);

/* --- serve_run.c */
void moa_serve_run(moa_serve_state *sv, const moa_msg_run *r);
void moa_serve_tokenize(moa_serve_state *sv, uint32_t job, const moa_msg_tokenize *t);
bool moa_serve_map_ready(
    const moa_serve_state *sv); /* a map is asked for, there is something captured, the pipe is empty */
void moa_serve_map(moa_serve_state *sv);    /* answers it */
void moa_serve_forget(moa_serve_state *sv); /* frees the conversation and what belongs to the last run */

/* --- serve_task.c */
void moa_serve_task(moa_serve_state *sv, const moa_msg_task *ask);
void moa_serve_items_close(moa_serve_items **items);

#endif
