/* steady.h -- one sequence decoded token after token without the host in the way.
 *
 *   host    feed t0 |  queue, queue, queue ...      told t1      told t2 ...      a step's numbers, read from shared memory
 *   device          [step t0 -> t1][step t1 -> t2][step t2 -> t3] ...             ids and positions stay here
 *
 * A step is one replay of a recording that ends by drawing the next token. The host looks at what is told (moa_told), a step or two behind;
 * it uploads nothing but, every 64 tokens, the page tables that changed. An end token, or the last reserved one, makes the device idle.
 *
 * A watched sequence (MOA_WATCH_STATS) is watched in every stat_every-th step, by position, and goes by a recording without the
 * statistics in between: in each step they would cost an H100 a tenth of Llama-3-8B's time and a third of SmolLM2's. Their
 * counts of queries say how many there were. */
#ifndef MOA_ENGINE_STEADY_H
#define MOA_ENGINE_STEADY_H

#include "core/engine/engine.h"

typedef struct moa_steady moa_steady;

/* what a run takes: 32 where a step is a recording, 1 elsewhere (there a step costs many times what watching it does) */
int32_t moa_steady_stat_every(const moa_seq *s);

typedef struct moa_steady_config {
    moa_sampling sampling;
    const int32_t *end; /* (n_end) ids after which nothing is queued by itself, copied */
    int32_t n_end;
    int32_t n_top; /* likeliest tokens to be told; at most MOA_TOP_MAX and the vocabulary */
    int32_t stat_every; /* 0 or 1: watched in each step */
} moa_steady_config;

/* whether s can be decoded this way: its backend has shared memory, and no keys inside its spans are lost */
bool moa_steady_can(const moa_seq *s);

/* s is borrowed, planned, and has room for a token at least. Between open and close nobody else appends to it or plans it anew. */
moa_status moa_steady_open(moa_steady **out, moa_seq *s, const moa_steady_config *c, moa_err *err);
/* What was queued beyond the last token taken is not in the sequence; but watched statistics have counted up to two such tokens,
 * where the caller stopped by itself. */
void moa_steady_close(moa_steady **d);

/* Appends id to the sequence and tells what was chosen to follow it (told may be NULL). If id is what was told last, its step
 * may long be under way. E_INVALID: no such id, no room. On failure the sequence holds the tokens taken before. */
moa_status moa_steady_next(moa_steady *d, int32_t id, moa_told *told, moa_err *err);

#endif
