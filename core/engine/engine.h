/* engine.h -- runs a model on a backend: sequences of tokens whose KV cache keeps, per KV head, just what its rules may still see.
 *
 *   engine   one model on one device: weights, workspace, the page pool
 *   seq      one conversation: its tokens, spans, page tables, what the probe gathered, what maps are made from
 *
 * A forward call takes n tokens: for each chunk and layer it stores the chunk's K and V, attends, then frees the pages no head
 * of the group can see again. Prefill and decode are the same call; one token takes the decode operations.
 * One thread at a time per engine. Everything here is backend-independent. */
#ifndef MOA_ENGINE_ENGINE_H
#define MOA_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/engine/backend.h"
#include "core/engine/spans.h"
#include "core/model/model.h"

typedef struct moa_engine moa_engine;
typedef struct moa_seq moa_seq;
typedef struct moa_lanes moa_lanes;

typedef struct moa_engine_config {
    moa_kv_type kv_type;          /* default MOA_KV_F16 */
    int32_t chunk;                /* tokens a prefill step takes at most; 0: 512, or what the device likes and has memory for */
    uint64_t capture_limit_bytes; /* most memory the captured q and k of a sequence may take; 0: 1 GiB */
} moa_engine_config;

/* model is borrowed until the engine is closed; backend is moved in: closed with the engine, also when open fails. */
moa_status moa_engine_open(moa_engine **out, const moa_model *model, moa_backend *backend, const moa_engine_config *config,
                           moa_progress_fn progress, void *user, moa_err *err);
void moa_engine_close(moa_engine **e); /* its sequences must be closed before */
const moa_model *moa_engine_model(const moa_engine *e);
moa_backend *moa_engine_backend(const moa_engine *e);
/* device memory taken by the engine and its sequences: now, and most so far. Bytes */
uint64_t moa_engine_device_bytes(const moa_engine *e);
moa_kv_type moa_engine_kv_type(const moa_engine *e);
uint64_t moa_engine_device_peak(const moa_engine *e);

/* Device memory this engine would take for a run, before taking it. Bytes.
 * workspace: activations, page tables, spans. kv: pages at the peak, with what a prefill chunk needs in passing.
 * capture: what watching takes, captured q and k and the statistics (0 unless asked for). passing: what the backend takes by itself for one
 * layer of a prompt at a time: pages of bf16 or q8 as halves, for tensor cores (0 elsewhere). */
typedef struct moa_memory_need {
    uint64_t weights, workspace, kv, capture, passing;
} moa_memory_need;
moa_status moa_engine_need(const moa_engine *e, const moa_rule *rules, int32_t n_reserved, int32_t n_prompt, bool capture,
                           moa_memory_need *out, moa_err *err);

/* Makes the pool large enough for all these sequences (planned, n_reserved each) to be filled and decoded in lanes, at once: it then
 * need not grow, which would copy it. It stays that large until called with n_seq 0, which
 * gives an unused pool back. */
moa_status moa_engine_hold(moa_engine *e, moa_seq *const *seqs, int32_t n_seq, moa_err *err);

/* --- KV memory by formula: the same figures for the screen, the batch output and the tests ------------------------------ */

typedef struct moa_kv_bytes {
    uint64_t plan;  /* grouped: each KV head keeps the widest span of its group */
    uint64_t dense; /* dense with GQA */
    uint64_t mha;   /* dense expanded to one KV head per query head */
} moa_kv_bytes;
/* after n_past tokens of a run that reserved n_reserved; rules (n_layer, n_head) or NULL: dense. In whole pages. */
moa_kv_bytes moa_kv_formula(const moa_shape *shape, moa_kv_type type, const moa_rule *rules, int32_t n_reserved, int32_t n_past);

/* --- a sequence --------------------------------------------------------------------------------------------------------- */

enum { MOA_WATCH_STATS = 1,   /* per-head statistics and distance histograms: of all prompt tokens, and of those that are generated, on a
                               * device that records its steps every 32nd (steady.h) */
       MOA_WATCH_CAPTURE = 2, /* keep q and k so that any map can be made later */
       MOA_WATCH_SAMPLED = 4, /* with MOA_WATCH_STATS: of a prompt only some blocks of 64 queries are looked at, each for as many as it
                               * stands for (probe_rows.h): means and histograms are unbiased, worst_query is the worst of those */ };
enum { MOA_SAMPLE_EVERY = 16, /* one block of so many, and the last */
       MOA_SAMPLE_STRATA = 4  /* of fewer in a prompt that would else have fewer draws than these */ };

moa_status moa_seq_open(moa_seq **out, moa_engine *e, moa_err *err);
void moa_seq_close(moa_seq **s);

/* Forgets all tokens; pages go back to the pool. The plan stays, statistics begin anew. */
void moa_seq_reset(moa_seq *s);

/* Rules (n_layer, n_head; NULL: dense) and N for what comes next; spans = moa_span(rule, n_reserved). n_reserved must not be
 * smaller than the tokens already there and not above the model's context (E_INVALID with the numbers).
 * Narrowing frees pages at once; widening takes effect as tokens come (keys that are gone stay gone until a new prefill:
 * moa_seq_lost() tells how many). measure: rules that the probe's WINDOW is measured with, NULL: the same rules.
 * watch: MOA_WATCH_* bits. Statistics and histograms begin anew here, since their buckets follow N. What capture would take
 * beyond the limit is switched off and said in note (may be NULL), likewise a capture that would lack the first tokens.
 * On failure the sequence goes on under the plan it had (statistics and captures may be gone). */
moa_status moa_seq_plan(moa_seq *s, const moa_rule *rules, const moa_rule *measure, int32_t n_reserved, int watch,
                        char *note, size_t note_bytes, moa_err *err);

typedef struct moa_forward {
    const int32_t *ids; /* n tokens to append */
    int32_t n;
    int32_t chunk;     /* 0: the engine's, which is also the most; any value >= 1 gives the same result within rounding */
    float *logits;     /* host (n_vocab) of the last token, or NULL */
    /* every token's logits in order (host, n_vocab, borrowed during the call), or NULL; return false to stop: E_CANCELLED
     * after the chunk under way */
    bool (*each_logits)(void *user, int32_t pos, const float *logits);
    /* Losses made on the device, one number a token comes down: losses[i] (n, host) becomes -ln softmax(logits of token i)[targets[i]],
     * nats; NAN where targets[i] (n) < 0. targets NULL: none. E_UNSUPPORTED beside each_logits, and where moa_engine_can_judge is false. */
    const int32_t *targets;
    float *losses;
    /* asked between layers and chunks, or NULL: true cancels (E_CANCELLED); the sequence then holds the chunks done so far.
     * Pages that only they needed and that the abandoned chunk has already reused count as lost. */
    bool (*cancelled)(void *user);
    /* after each chunk, or NULL */
    void (*progress)(void *user, int32_t done, int32_t total);
    void *user;
} moa_forward;
/* E_INVALID (nothing done) for ids out of range or more tokens than are reserved. On any failure the sequence holds whole chunks. */
moa_status moa_seq_forward(moa_seq *s, const moa_forward *f, moa_err *err);

/* the backend can make losses of logits */
bool moa_engine_can_judge(const moa_engine *e);

int32_t moa_seq_n_past(const moa_seq *s);
int32_t moa_seq_n_reserved(const moa_seq *s);
const int32_t *moa_seq_ids(const moa_seq *s);           /* (n_past), borrowed until the next call that changes it */
const int32_t *moa_seq_spans(const moa_seq *s);         /* (n_layer, n_head) tokens */
int64_t moa_seq_lost(const moa_seq *s);                 /* tokens x KV heads inside the current spans whose keys are gone */
double moa_seq_kv_density(const moa_seq *s); /* mean over KV heads of keys the newest token could see / tokens; NAN: no tokens */
moa_engine *moa_seq_engine(const moa_seq *s);

/* --- lanes: several sequences decoded in step, one token each --------------------------------------------------------------
 *
 *   seq 0  ...........t            one pass through the layers takes the newest token of each;
 *   seq 1  .....t                  own positions, spans and pages. A lane without a token to feed
 *   seq 2  ........t               is idle and costs its rows only
 *
 * Steps follow one another on the device, greedy ones and drawn ones: ids, positions and what ends a lane stay there; the host looks after
 * MOA_LANES_LOOK steps. Prompts are prefilled before, one sequence at a time (moa_seq_forward). */
enum { MOA_LANES_LOOK = 64 };
typedef struct moa_lanes_config {
    moa_seq *const *seqs; /* (n_seq), each once, of this engine; borrowed. Planned, without lost keys, not watched (E_INVALID) */
    int32_t n_seq;        /* at most the engine's chunk */
    const int32_t *end;   /* (n_end) ids that end a lane's decoding, copied */
    int32_t n_end;
    moa_sampling sampling; /* lane i draws with the seed sampling.seed + i; all zero: greedy */
} moa_lanes_config;
moa_status moa_lanes_open(moa_lanes **out, moa_engine *e, const moa_lanes_config *config, moa_err *err);
void moa_lanes_close(moa_lanes **l); /* before its sequences */

/* The token lane i feeds in the next step; id < 0: it goes idle. All lanes begin idle. E_INVALID: no such id, or no room. */
moa_status moa_lanes_feed(moa_lanes *l, int32_t i, int32_t id, moa_err *err);
bool moa_lanes_active(const moa_lanes *l, int32_t i);

/* Up to n_step steps, greedy or drawn as the configuration says: lane i makes n_ids[i] ids, into ids (n_seq, n_step). After each its choice is what it feeds next; an end
 * token or a full sequence makes it idle. cancelled, or NULL: asked between looks; true: E_CANCELLED, with what was made. */
moa_status moa_lanes_greedy(moa_lanes *l, int32_t n_step, int32_t *ids, int32_t *n_ids, bool (*cancelled)(void *user), void *user,
                            moa_err *err);
/* One step that gives logits instead: logits host (n_seq, n_vocab), rows of idle lanes undefined. All lanes are idle after it. */
moa_status moa_lanes_step(moa_lanes *l, float *logits, moa_err *err);

/* `from`'s tokens become `to`'s as well: whole pages are shared (counted), the last, unfinished one is copied. Both are of one
 * engine and have the same rules and n_reserved; to is empty and unwatched. E_INVALID otherwise. */
moa_status moa_seq_fork(moa_seq *to, const moa_seq *from, moa_err *err);

/* For measuring: the empty, planned sequence is given n tokens as a prefill would leave it, with random K and V (normal-like, never
 * zero) and random ids, without computing anything. */
moa_status moa_seq_fill_random(moa_seq *s, int32_t n, uint64_t seed, moa_err *err);
/* one page of such numbers, in host memory */
struct moa_pcg32;
void moa_kv_page_random(void *page, moa_kv_type type, int32_t d_head, struct moa_pcg32 *g);

/* --- pages -------------------------------------------------------------------------------------------------------------- */

typedef struct moa_pages {
    int32_t n_layer, n_head_kv, max_pages; /* max_pages: of N tokens */
    int64_t used, free, peak;              /* pages of the pool: in use now, free, most in use since the last moa_seq_plan */
    uint64_t page_bytes;
    uint64_t used_bytes, pool_bytes;
} moa_pages;
void moa_seq_pages(const moa_seq *s, moa_pages *out);
/* held (n_layer, n_head_kv, max_pages): 1 where a page is held; caller's */
void moa_seq_page_map(const moa_seq *s, uint8_t *held);

/* --- what the probe saw (MOA_WATCH_STATS) ------------------------------------------------------------------------------ */

typedef struct moa_head_stats {
    int64_t n_query;
    /* means over queries */
    float entropy;  /* nats */
    float sink;     /* mass on the first 64 tokens */
    float window;   /* mass inside the measured window (sink not counted) */
    float distance; /* tokens */
    /* the query whose sink + window was smallest */
    float worst_cover;
    int32_t worst_query; /* its position, -1: none */
} moa_head_stats;
/* What the statistics are of, since they began. */
typedef struct moa_watched {
    int32_t every;   /* of the newest prompt: one block of 64 queries in so many, and the last; 1: all */
    uint32_t seed;   /* which one: probe_rows.h */
    int64_t n_query; /* tokens they stand for */
    int64_t n_seen;  /* queries that were looked at */
} moa_watched;
void moa_seq_watched(const moa_seq *s, moa_watched *out);
/* How prompts under MOA_WATCH_SAMPLED are sampled from now on: one block of `every`, also of short prompts (0: MOA_SAMPLE_EVERY, as said
 * there), by this seed. Newly opened: 0, 0. */
void moa_seq_sample(moa_seq *s, int32_t every, uint32_t seed);

/* stats (n_layer, n_head), caller's. E_FAILED when nothing was watched. */
moa_status moa_seq_stats(moa_seq *s, moa_head_stats *stats, moa_err *err);

/* Distance histogram of one layer: (n_head, MOA_HIST_BUCKETS, 1 + n_bin) sums of mass, and queries per bucket
 * (MOA_HIST_BUCKETS). *hist is malloc'ed, the caller's. */
moa_status moa_seq_hist(moa_seq *s, int32_t layer, float **hist, int32_t *n_bin, int32_t *bucket_tok,
                        int64_t queries[MOA_HIST_BUCKETS], moa_err *err);

/* --- maps (MOA_WATCH_CAPTURE) ------------------------------------------------------------------------------------------- */

typedef struct moa_map_request {
    int32_t layer, head;
    int32_t span;         /* tokens to mask with; 0: the span of the run; MOA_N_MAX: dense. From captured q and k: not a rerun */
    int32_t measure_span; /* for the window statistics; 0: the run's */
    int32_t q0, q1, k0, k1; /* half-open ranges of positions, inside [0, n_past) */
    int32_t rows, cols;     /* 1 <= rows <= q1-q0, 1 <= cols <= k1-k0 */
} moa_map_request;
/* mass (rows, cols) sums, max (rows, cols) or NULL, stat (rows, MOA_N_STAT) or NULL: host, the caller's */
moa_status moa_seq_map(moa_seq *s, const moa_map_request *r, float *mass, float *max, float *stat, moa_err *err);
uint64_t moa_seq_capture_bytes(const moa_seq *s); /* device memory of the captured q and k; 0: capture is off */

#endif
