/* engine_impl.h -- what the files of the engine share; nobody else includes it.
 *
 *   engine.c          opening: weights, workspace; the memory need
 *   seq.c             a sequence: plan, pages by its spans, lost keys
 *   kv_pages.c        the pool's bookkeeping         kv_formula.c  the same by formula
 *   engine_forward.c  tokens through the layers      lanes.c  several sequences in step
 *   steady.c          one sequence, step after step without the host
 *   probe.c map.c     what the attention told        run.c sampler.c  a whole run
 *
 * All device memory goes through moa_engine_alloc(), so that its sum is known at any time. */
#ifndef MOA_ENGINE_IMPL_H
#define MOA_ENGINE_IMPL_H

#include <math.h>

#include "core/engine/engine.h"
#include "core/engine/kv_pages.h"

enum { MOA_GAP_TOK = 64 }; /* tokens of a chunk at most while keys are lost: each then has its own spans */

typedef struct moa_dev_mem {
    void *data;
    size_t bytes;
} moa_dev_mem;

typedef moa_layer_weights moa_engine_layer;

/* Activations of one chunk, device. q, k, v, o share their memory with gate and up: the two halves of a layer. */
typedef struct moa_workspace {
    int32_t *in;       /* (2 * chunk): ids (n), then positions (n) */
    int32_t *row_span; /* (MOA_GAP_TOK, n_head) spans of one layer, token by token */
    float *x, *h;      /* (chunk, d_model): the residual stream; what the norms give */
    float *q, *o;      /* (chunk, n_head, d_head) */
    float *k, *v;      /* (chunk, n_head_kv, d_head) */
    float *gate, *up;  /* (chunk, d_ff) */
    float *logits;     /* (n_logits, n_vocab) */
} moa_workspace;

struct moa_engine {
    const moa_model *model; /* borrowed */
    moa_backend *backend;   /* owned */
    const moa_backend_vtable *vt;
    moa_kv_type kv_type;
    int32_t chunk;    /* tokens the workspace holds */
    int32_t n_logits; /* rows of logits it holds */
    uint64_t capture_limit_bytes;

    moa_engine_layer *layers; /* (n_layer) */
    moa_dev_weight *embed, *rope_freqs, *out_norm,
        *output; /* rope_freqs may be NULL; output is embed when tied */
    moa_dev_mem workspace_mem;
    moa_workspace ws;
    int32_t *in, *row_span; /* host copies of ws.in and ws.row_span */
    moa_kv_pages pages;
    moa_dev_mem pool;
    size_t page_bytes;
    bool halves;        /* a prompt's attention copies pages in halves */
    int64_t held_pages; /* the pool is not made smaller than this: moa_engine_hold() */
    moa_seq *seqs;      /* open sequences, a list */
    moa_lanes *lanes;   /* open lanes, a list */

    uint64_t weight_bytes, device_bytes, device_peak; /* device_*: with the weights */
};

/* A page retired while a chunk is under way: where it came from. */
typedef struct moa_journal_entry {
    int32_t page;
    int32_t layer, head_kv, index; /* of the table */
    bool shared;                   /* others still use it */
} moa_journal_entry;

struct moa_seq {
    moa_engine *engine;
    moa_seq *next;

    int32_t *ids; /* (n_reserved at least) */
    int32_t ids_capacity;
    int32_t n_past, n_reserved, max_pages;
    int32_t *span;    /* (n_layer, n_head): by the rules */
    int32_t *measure; /* (n_layer, n_head) */
    int32_t *widest;  /* (n_layer, n_head_kv): of the group */
    bool measure_differs;

    /* mirrored on the device: state = [table | shown | measure] */
    int32_t *table; /* (n_layer, n_head_kv, max_pages) page of the pool or -1 */
    int32_t *shown; /* (n_layer, n_head) spans given to attention: less than span where keys are gone */
    int64_t dirty_first, dirty_end; /* part of table to be uploaded */
    bool shown_dirty, measure_dirty;
    moa_dev_mem state;
    int32_t *d_table, *d_shown, *d_measure;

    int64_t n_held, peak_held; /* pages; peak since the plan was set */
    uint64_t n_plan, n_change; /* plans, resets; entries of the table changed: how lanes see that theirs is old */
    int32_t *
        from; /* (n_layer, n_head_kv): keys [from, n_past) and the sink are held; MOA_SINK_TOK: all of them */
    int32_t *from_before;       /* the same before the chunk under way */
    bool has_gaps;              /* some key that a head may see is gone */
    moa_journal_entry *journal; /* pages retired by the chunk under way */
    int64_t n_journal, journal_capacity;

    /* MOA_WATCH_STATS: probe = [stat | sums: hist, queries, totals | sums as they were before the chunk] */
    moa_dev_mem probe;
    float *d_stat, *d_hist; /* (n_layer, n of the chunk, n_head, MOA_N_STAT); (n_layer, n_head, 8, 1+n_bin) */
    int64_t *d_queries;     /* (MOA_HIST_BUCKETS) */
    moa_stat_total *d_totals, *totals; /* (n_layer, n_head); totals: host */
    int32_t n_bin, bucket_tok;
    bool hist_stale; /* the sums must be begun before use */
    bool blind;      /* the operations being queued are not to be watched (steady.h) */
    int64_t n_query; /* tokens that the sequence has counted since; the sums' own count may be ahead (steady.h) */
    int64_t n_seen;  /* of these, looked at */
    bool sampled;    /* MOA_WATCH_SAMPLED */
    int32_t sample_every; /* wanted; 0: by the prompt's length */
    uint32_t sample_seed;
    moa_probe_rows rows;  /* of the newest prompt; every 0: all of it */

    /* MOA_WATCH_CAPTURE */
    moa_dev_mem *capture; /* (n_layer): q (n_head, max_tok, d_head), then k (n_head_kv, max_tok, d_head) */
    int32_t *capture_tok; /* (n_layer): max_tok */

    void *recording[2]; /* a decode step without and with logits */
    bool step_done[2];  /* that step has run once, unrecorded: its backend has allocated what it needs */
    bool no_recording;  /* recording failed here: go without */
    struct moa_steady *steady; /* that decodes it, or NULL */
};

/* of q.k */
static inline float moa_attn_scale(const moa_shape *shape) {
    return (float)(1 / sqrt((double)shape->d_head));
}

/* --- engine.c */
moa_status moa_engine_alloc(moa_engine *e, size_t bytes, moa_dev_mem *out, moa_err *err);
void moa_engine_free(moa_engine *e, moa_dev_mem *m);
/* room for n_pages in the pool; what is in use is kept. fit: when nothing is, make it just that large */
moa_status moa_engine_reserve(moa_engine *e, int64_t n_pages, bool fit, moa_err *err);

/* --- kv_formula.c: pages, by the spans of KV heads: widest (n_layer, n_head_kv) */
int64_t moa_kv_pages_at(const moa_shape *shape, const int32_t *widest, int32_t n_past);
typedef struct moa_kv_course {
    const moa_shape *shape;
    const int32_t *widest;
    int32_t n_past, n, chunk; /* n tokens come in chunks */
    int32_t n_reserved;       /* and then single ones up to here */
} moa_kv_course;
int64_t moa_kv_pages_peak(const moa_kv_course *c); /* most pages held at any moment of it */
/* bytes of the largest copy of a layer's visible pages in halves, with its table, that a chunk of it makes */
uint64_t moa_kv_halves_peak(const moa_kv_course *c);
/* spans (n_layer, n_head) by rules (NULL: dense), and the widest of each group (n_layer, n_head_kv) */
void moa_kv_spans(const moa_shape *shape, const moa_rule *rules, int32_t n_reserved, int32_t *span,
                  int32_t *widest);

/* --- seq.c */
static inline int64_t moa_seq_at(const moa_seq *s, int32_t layer, int32_t head_kv) {
    return ((int64_t)layer * s->engine->model->shape.n_head_kv + head_kv) * s->max_pages;
}
moa_status moa_seq_extend(moa_seq *s, int32_t layer, int32_t n_after,
                          moa_err *err); /* pages for tokens n_past..n_after-1 */
void moa_seq_trim(moa_seq *s, int32_t layer, int32_t n_after,
                  bool journal);     /* frees what is dead at n_after */
void moa_seq_rollback(moa_seq *s);   /* an unfinished chunk: its pages go back, retired ones return */
void moa_seq_show_spans(moa_seq *s); /* shown and has_gaps, for a query at n_past */
/* the same for one layer and the query at pos >= n_past: span (n_head) */
void moa_seq_spans_at(const moa_seq *s, int32_t layer, int32_t pos, int32_t *span);
void moa_seq_forget_recordings(moa_seq *s);
/* engine_forward.c: one token of s, its id and position in device memory, to the logits in ws.logits; room in the pool for the rest */
moa_status moa_seq_step_operations(moa_seq *s, const int32_t *id, const int32_t *pos, moa_err *err);
moa_status moa_seq_reserve_steps(moa_seq *s, moa_err *err);
size_t moa_seq_state_bytes(const moa_shape *shape, int32_t n_reserved);
moa_status moa_seq_state_upload(moa_seq *s, moa_err *err); /* what is dirty */

/* --- lanes: one token of each of n sequences. All device; a row's table and spans stand in blocks `stride` elements apart */
typedef struct moa_lanes_rows {
    int32_t n, max_pages;
    int64_t stride;
    const int32_t *table; /* (n_layer, n_head_kv, max_pages) of row 0 */
    const int32_t *span;  /* (n_layer, n_head) of row 0 */
    const int32_t *ids, *pos, *seq; /* (n); seq: 0, 1, 2, ... */
    float *logits;                  /* (n, n_vocab) */
} moa_lanes_rows;
/* engine_forward.c: all layers, to the logits */
moa_status moa_lanes_operations(moa_engine *e, const moa_lanes_rows *rows, moa_err *err);
void moa_lanes_forget_recordings(moa_lanes *l);          /* lanes.c */
void moa_steady_forget_recording(struct moa_steady *d);  /* steady.c */
moa_lanes *moa_lanes_next(const moa_lanes *l);           /* of the engine's list */
int64_t moa_lanes_pages_most(const moa_seq *s);          /* pages the sequence may hold at any time while it is decoded in lanes */

/* --- probe.c */
size_t moa_probe_bytes(const moa_shape *shape, int32_t n_reserved, int32_t chunk);
moa_status moa_probe_plan(moa_seq *s, bool on, int32_t n_reserved,
                          moa_err *err); /* memory for it; begins anew */
void moa_probe_restart(moa_seq *s);
void moa_probe_prompt(moa_seq *s, int32_t n, int32_t chunk); /* n tokens will come, in chunks of so many at most: which are looked at */
moa_status moa_probe_begin(moa_seq *s, int32_t n, moa_err *err); /* before the operations of a chunk */
moa_probe moa_probe_args(const moa_seq *s, int32_t layer, int32_t n);
/* after the layers: the chunk's rows, at pos (n, device), are added to the sums */
moa_status moa_probe_sum(moa_seq *s, const int32_t *pos, int32_t n, moa_err *err);
void moa_probe_commit(moa_seq *s, int32_t n);                    /* the chunk is done: count it; n_past is still what it was */
void moa_probe_rollback(moa_seq *s, int32_t n);

/* --- map.c */
size_t moa_capture_layer_bytes(const moa_shape *shape, int32_t n_reserved); /* SIZE_MAX: too much to count */
moa_status moa_capture_plan(moa_seq *s, bool on, int32_t n_reserved, char *note, size_t note_bytes,
                            moa_err *err);
void moa_capture_close(moa_seq *s);
moa_status moa_capture_rows(moa_seq *s, int32_t layer, const float *q, const float *k, const int32_t *pos,
                            int32_t n, moa_err *err);

#endif
