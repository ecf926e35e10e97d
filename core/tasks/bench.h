/* bench.h -- how fast, against what the memory allows: measurements through the operation table, the same on every backend.
 *
 *   bytes that had to move   weights read once a step + the keys and values that the plan keeps
 *   the ceiling              the fastest that big buffers were read, copied or added on this device in this run
 *   share                    bytes / time / ceiling
 *
 * A sample is many queued calls between two waits (some milliseconds); a row gives the tenth, fiftieth and ninetieth percentile of the
 * samples, per call. Buffers are rotated so that no cache holds what the next call reads. Inputs are random, never zero. */
#ifndef MOA_TASKS_BENCH_H
#define MOA_TASKS_BENCH_H

#include "core/engine/engine.h"
#include "core/engine/profile.h"

typedef struct moa_bench {
    moa_backend *backend; /* borrowed */
    size_t big_bytes;     /* of the ceiling's buffers, and of what is rotated: several times any cache */
    int32_t reps;         /* samples */
    double sample_s;      /* least length of a sample */
    bool (*cancelled)(void *user); /* between samples, or NULL: E_CANCELLED */
    void *user;
} moa_bench;

typedef struct moa_bench_time {
    double p10_us, median_us, p90_us; /* of one call */
    int32_t n_sample, n_call;         /* calls a sample */
} moa_bench_time;

typedef struct moa_bench_rate {
    double read, add,
        copy; /* bytes/s: `argmax` reads, `add` reads twice and writes once, `copy` reads and writes once */
    double best;
} moa_bench_rate;
moa_status moa_bench_ceiling(const moa_bench *x, moa_bench_rate *out, moa_err *err);

/* One measured thing. What does not apply is 0. */
typedef struct moa_bench_row {
    int32_t n_seq, depth;          /* sequences; tokens there (prefill: of the prompt) */
    double weight_bytes, kv_bytes; /* that one call has to read */
    double kept;                   /* KV bytes / those of a dense plan */
    double flop;                   /* of one call (prefill) */
    double tok_s;                  /* n_seq tokens a call */
    double peak_flop_s;            /* of a large product in this run (ttft) */
    moa_bench_time time;
} moa_bench_row;

typedef struct moa_bench_case {
    const moa_shape *shape;
    moa_kv_type kv_type;
    const moa_rule *rules; /* (n_layer, n_head), or NULL: dense */
    int32_t n_seq;
    int32_t depth;      /* tokens there */
    int32_t n_reserved; /* N; 0: what the measurement needs */
} moa_bench_case;

/* Decode attention of one layer, n_seq queries: the layers' rules take turns. Needs no weights. */
moa_status moa_bench_attn_decode(const moa_bench *x, const moa_bench_case *c, moa_bench_row *out,
                                 moa_err *err);
/* Prefill attention of one layer over a prompt of depth tokens, in chunks of chunk (0: 512). flop: 4 d of each visible pair. */
moa_status moa_bench_attn_prefill(const moa_bench *x, const moa_bench_case *c, int32_t chunk,
                                  moa_bench_row *out, moa_err *err);
/* Whole greedy steps of n_seq sequences in lanes. shape and kv_type are the engine's. */
moa_status moa_bench_step(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_row *out,
                          moa_err *err);
/* Tokens a step at least takes of a sequence in moa_bench_step: depth + this <= n_reserved */
int32_t moa_bench_step_tokens(const moa_bench *x);
/* Single-sequence steps (steady.h) without and with head statistics, alternating. */
moa_status moa_bench_probe(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_row *off,
                           moa_bench_row *on, moa_err *err);

/* The matrix rate: a product of 2048 rows with 8192 x 8192 half-precision weights, flop/s. */
moa_status moa_bench_matrix(const moa_bench *x, double *flop_s, moa_err *err);
/* Time to first token: a prompt of depth random tokens, whole, and its first token chosen: without statistics, with sampled and with exact
 * ones, in turn. flop: all products and the visible pairs of attention. */
enum { MOA_BENCH_UNWATCHED, MOA_BENCH_SAMPLED, MOA_BENCH_EXACT, MOA_N_BENCH_WATCH };
moa_status moa_bench_ttft(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_row out[MOA_N_BENCH_WATCH],
                          moa_err *err);

/* What keys and values take of the device, by its own account, over a prompt of depth tokens, MOA_BENCH_STEPS steps, and closing. Bytes. */
enum { MOA_BENCH_STEPS = 130 };
typedef struct moa_bench_memory {
    double formula_prompt, formula_end; /* moa_kv_formula(): plan */
    double pages_prompt, pages_end;     /* pages held */
    double most_over;                   /* pages held - formula, the most after any step */
    double pool;                        /* what the pool was made: the peak of the run */
    double growth_prompt, growth_end;   /* of the device's memory in use, against before; NaN: the device does not tell */
    double growth_closed;
} moa_bench_memory;
moa_status moa_bench_memory_of(const moa_bench *x, moa_engine *e, const moa_bench_case *c, moa_bench_memory *out,
                               moa_err *err);

/* Items of the influence profile, one after the other; p is for as many tokens at least. See bench_profile.c. */
typedef struct moa_bench_profile_case {
    int32_t depth, n_item; /* tokens of an item; n_item at least 1 */
} moa_bench_profile_case;
typedef struct moa_bench_profile_row {
    int32_t depth, n_item, n_supervised, n_kept; /* n_kept: layers that are not computed again */
    int32_t n_together;                          /* items that go through at once: a round */
    moa_bench_time item;                         /* of an item, by round */
    double total_s;                              /* of all of them */
    double flop;                                 /* of an item */
    double part_s[MOA_N_PROFILE_KIND], watched_s; /* of a round whose operations are waited for one by one */
    double device_bytes; /* in use on the device, by its own account, weights included; NaN: it does not tell */
    double map_bytes;    /* of an item's maps */
    double n_clamped, loss; /* sum, mean of all items */
} moa_bench_profile_row;
moa_status moa_bench_profile(const moa_bench *x, moa_engine *e, moa_profile *p, const moa_bench_profile_case *c,
                             moa_bench_profile_row *out, moa_err *err);

/* --- what the files of the measuring code share ----------------------------------------------------------------------------- */

double moa_bench_now(void); /* seconds */
/* Fills device memory with random numbers, magnitudes in [1/4, 2) either sign, as halves or floats. */
moa_status moa_bench_random(moa_backend *b, void *dst, size_t bytes, bool half, moa_err *err);
/* bytes of K and V a token of a KV head takes, its part of the page's scales counted */
double moa_bench_token_bytes(const moa_bench_case *c);
/* Times run(ctx), which queues one call (and does not wait): recorded if the backend can. per_call: divides the times. */
moa_status moa_bench_measure(const moa_bench *x, moa_status (*run)(void *ctx, moa_err *err), void *ctx,
                             double per_call, moa_bench_time *out, moa_err *err);
/* percentiles of n samples (sorted in place), microseconds, n >= 1 */
moa_bench_time moa_bench_percentiles(double *seconds, int32_t n);
/* keys that KV head k of a layer keeps for a query that is token n_tok of N = n_reserved (its own counted) */
int32_t moa_bench_kept(const moa_bench_case *c, int32_t layer, int32_t head_kv, int32_t n_reserved,
                       int32_t n_tok);
/* KV bytes of one step of n_seq sequences, all layers */
double moa_bench_kv_bytes(const moa_bench_case *c, int32_t n_reserved, int32_t n_tok, double *kept);

#endif
