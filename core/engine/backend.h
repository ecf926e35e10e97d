/* backend.h -- the waist: one table of operations, a backend for each kind of device.
 *
 * The engine (backend-independent, core/engine) asks for memory, loads weights and calls operations in order on one queue; it
 * never dereferences a device pointer. An operation is one row of MOA_OP_MAP with one argument struct; adding a row
 * makes the compiler name every backend that lacks it. The CPU backend has a plain double-accumulating reference of every
 * operation (core/cpu/ref_*.c), which is what all others are tested against.
 *
 * All activations are float32, row-major, rows of tokens. Operations are asynchronous on the backend's queue and run in
 * order; download() and sync() wait. Arguments passed by value are fixed in a recorded step; what changes from step to step
 * (ids, positions, page tables, spans) is read from device memory, so that a decode step can be recorded once (a CUDA graph)
 * and replayed without host work. */
#ifndef MOA_ENGINE_BACKEND_H
#define MOA_ENGINE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/engine/sampler.h"
#include "core/engine/kv_page.h"
#include "core/engine/probe_rows.h"
#include "core/engine/spans.h"
#include "core/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moa_backend moa_backend;       /* a device, its queue and memory */
typedef struct moa_dev_weight moa_dev_weight; /* a weight as the backend keeps it (packed its own way) */

/* One layer's view of the KV cache. A page is one KV head's 64 tokens, as its type has it (kv_page.h). */
typedef struct moa_kv_view {
    void *pool;             /* device: pages, one after the other, 16-byte aligned */
    const int32_t *table;   /* device: (n_seq, n_head_kv, max_pages) page index in the pool, -1: freed or not yet there.
                             * A sequence's block of this layer starts at table + seq * table_seq_stride */
    int64_t table_seq_stride; /* elements from one sequence to the next */
    int32_t n_head_kv, d_head, max_pages;
    moa_kv_type type;
} moa_kv_view;

/* --- what attention can tell about itself, all from its own softmax ------------------------------------------------ */

enum { MOA_STAT_ENTROPY, /* nats */
       MOA_STAT_SINK,    /* mass on keys j < 64 */
       MOA_STAT_WINDOW,  /* mass on keys j >= 64 inside the measured span: i - j < measure_span - 64 */
       MOA_STAT_DISTANCE,/* mean of i - j over all visible keys, tokens */
       MOA_STAT_LSE,     /* log of the sum of exp(score), nats */
       MOA_N_STAT };
enum { MOA_HIST_BUCKETS = 8 }; /* the run's N tokens in 8 equal ranges of query position */

/* NULL pointers: not wanted. All device memory. Off must cost nothing. */
typedef struct moa_probe {
    float *stat;                 /* (n_tok, n_head, MOA_N_STAT), written */
    const int32_t *measure_span; /* (n_head) span that WINDOW is measured with; NULL: the span attended with */
    float *hist;                 /* (n_head, MOA_HIST_BUCKETS, 1 + n_bin), ADDED to: [0] sink mass, [1+d] mass on keys j >= 64
                                  * with (i-j)/64 == d; distances beyond the last bin go to the last */
    int32_t n_bin;
    int32_t bucket_tok; /* query i counts in bucket min(i / bucket_tok, 7) */
    moa_probe_rows rows; /* attn_prefill: stat is written of those queries at least that have a weight, hist counts each by its weight.
                          * All zero, as in attn_decode: of each, once */
} moa_probe;

/* --- operations: name, what it does -------------------------------------------------------------------------------- */

#define MOA_OP_MAP(X)                                                                                        \
    X(embed, "rows of the embedding table, dequantised")                                                     \
    X(rmsnorm, "y = x / sqrt(mean(x^2) + eps) * w")                                                          \
    X(matmul, "y = x W^T (+ bias) (+ y)")                                                                    \
    X(rope, "rotary position embedding, in place")                                                           \
    X(kv_store, "append new K and V rows to their pages")                                                    \
    X(attn_prefill, "attention of consecutive queries of one sequence over its pages, per-head spans")       \
    X(attn_decode, "attention of one query each of several sequences over their pages, per-head spans")      \
    X(silu_mul, "y = silu(gate) * up")                                                                       \
    X(add, "y += x")                                                                                         \
    X(capture, "copy q and k rows of a layer to the capture buffers, for maps")                              \
    X(attn_map, "attention of one head over a region, summed into cells")                                    \
    X(argmax, "the likeliest token of each row becomes the next id, and its position moves on")              \
    X(sample, "a token of each row is drawn, told, and becomes the next id; its position moves on")          \
    X(stat_sum, "statistics of queries are added to the sums of their heads")

/* Operations of the influence profile alone: gradients of activations (never of weights) over one whole sequence under full
 * causal attention or spans. A backend may lack them: the vtable's members are then NULL, and the profile says so. What has no row of its
 * own: the gradient of rope is rope with the sign of its scale turned; that of add is the same gradient on both sides. */
#define MOA_BWD_MAP(X)                                                                                       \
    X(matmul_t, "dx = dy W (+ dx)")                                                                          \
    X(rmsnorm_bwd, "gradient of rmsnorm with regard to x (+ dx)")                                            \
    X(silu_mul_bwd, "gradients of silu(gate) * up with regard to both")                                      \
    X(attn_full, "causal attention of a whole sequence, dense or under spans, and its log-sum-exp")          \
    X(attn_bwd, "its gradients with regard to q, k and v")                                                   \
    X(attn_influence, "what masking keys would change of the loss, by blocks and by windows")                \
    X(cross_entropy, "loss of each row, and its gradient in place of the logits")

/* Several operations of a decode step as one, for one row. A backend may lack them (NULL), and takes only shapes it can:
 * *taken is false when it did nothing, and the single operations are called instead. They stay what these are checked against. */
#define MOA_FUSED_MAP(X)                                                                                     \
    X(fused_qkv, "rmsnorm; q, k, v products with biases; rope of q and k; k and v to their pages")           \
    X(fused_gate_up, "rmsnorm; y = silu(gate) * up")                                                         \
    X(fused_product, "rmsnorm or not; y = x W^T (+ y)")                                                      \
    X(step_decode, "all layers of one row or more, from their embeddings to their logits")

typedef struct moa_args_embed {
    const moa_dev_weight *w; /* (n_vocab, d_model) */
    const int32_t *ids;      /* device (n_tok), in range */
    float *y;                /* (n_tok, d_model) */
    int32_t n_tok;
} moa_args_embed;

typedef struct moa_args_rmsnorm {
    const float *x; /* (n_tok, n) */
    const moa_dev_weight *w; /* (n) */
    float *y;       /* (n_tok, n), may be x */
    int32_t n_tok, n;
    float eps;
} moa_args_rmsnorm;

typedef struct moa_args_matmul {
    const float *x; /* (n_tok, n_in) */
    const moa_dev_weight *w;    /* (n_out, n_in) */
    const moa_dev_weight *bias; /* (n_out) or NULL */
    float *y;        /* (n_tok, n_out) */
    int32_t n_tok;
    bool accumulate; /* add to y instead of overwriting it: the residual */
} moa_args_matmul;

typedef struct moa_args_rope {
    float *x;           /* (n_tok, n_head, d_head) */
    const int32_t *pos; /* device (n_tok); < 0: an idle row, its x becomes anything finite */
    const moa_dev_weight *freq_factors; /* (rope_dim/2), divide the frequencies; or NULL */
    int32_t n_tok, n_head, d_head, rope_dim;
    moa_rope_kind kind;
    float theta, scale;
} moa_args_rope;

typedef struct moa_args_kv_store {
    const float *k, *v; /* (n_tok, n_head_kv, d_head) */
    moa_kv_view kv;
    const int32_t *seq; /* device (n_tok): which sequence each row belongs to; NULL: all sequence 0 */
    const int32_t *pos; /* device (n_tok); < 0: an idle row, not stored. q8 (kv_page.h): the rows of a page are
                         * ascending and no row of another page is between them; token 0 begins the page, the tokens before the first
                         * row's are there */
    int32_t n_tok;
} moa_args_kv_store;

typedef struct moa_args_attn_prefill {
    const float *q; /* (n_tok, n_head, d_head): positions pos0 .. pos0 + n_tok - 1 of sequence seq, already stored in kv */
    float *o;       /* (n_tok, n_head, d_head) */
    moa_kv_view kv;
    const int32_t *span; /* device (n_head) */
    const int32_t *span_host; /* the same on the host, for planning the work */
    int32_t seq, pos0, n_tok, n_head;
    float scale; /* of q.k: 1/sqrt(d_head) */
    moa_probe probe;
} moa_args_attn_prefill;

typedef struct moa_args_attn_decode {
    const float *q; /* (n_seq, n_head, d_head): row s is the newest token of sequence s, already stored in kv */
    float *o;       /* (n_seq, n_head, d_head) */
    moa_kv_view kv;
    const int32_t *pos;  /* device (n_seq): position of each query; < 0: idle row, o is zero */
    const int32_t *span; /* device (n_seq, n_head); sequence s starts at span + s * span_seq_stride */
    int64_t span_seq_stride;
    int32_t n_seq, n_head;
    float scale;
    moa_probe probe; /* stat is (n_seq, n_head, MOA_N_STAT), 0 in idle rows; hist sums over sequences, without idle ones */
} moa_args_attn_decode;

typedef struct moa_args_silu_mul {
    const float *gate, *up; /* (n) */
    float *y;               /* (n), may be gate or up */
    int64_t n;
} moa_args_silu_mul;

typedef struct moa_args_add {
    const float *x; /* (n) */
    float *y;       /* (n) */
    int64_t n;
} moa_args_add;

/* Captured q and k of one layer of one sequence, after RoPE: what maps are computed from, long after the pages are freed. */
typedef struct moa_args_capture {
    const float *q, *k; /* (n_tok, n_head, d_head), (n_tok, n_head_kv, d_head) */
    float *cap_q;       /* (n_head, max_tok, d_head) float32 */
    float *cap_k;       /* (n_head_kv, max_tok, d_head) float32, rounded to the KV type first so that maps match the run;
                         * of q8: read back from its page */
    const int32_t *pos; /* device (n_tok): rows to write; outside 0 .. max_tok - 1: not written */
    int32_t n_tok, n_head, n_head_kv, d_head, max_tok;
    moa_kv_type type;
    moa_kv_view kv; /* q8: where k has been stored, of sequence 0; else not looked at */
} moa_args_capture;

/* Attention of one head under a span, as cells: rows x cols equal-ish ranges of queries [q0,q1) and keys [k0,k1).
 * Row r covers queries q0 + r*(q1-q0)/rows .. q0 + (r+1)*(q1-q0)/rows - 1 (integer division), columns alike. rows <= q1-q0. */
typedef struct moa_args_attn_map {
    const float *q; /* (max_tok, d_head) of the head, from a capture */
    const float *k; /* (max_tok, d_head) of its KV head */
    int32_t d_head, span;
    int32_t q0, q1, k0, k1, rows, cols;
    float scale;
    float *mass; /* (rows, cols): sum of A over the cell's queries and keys */
    float *max;  /* (rows, cols): largest single A of the cell, 0 where nothing is visible; or NULL */
    float *stat; /* (rows, MOA_N_STAT): means over the row's queries (WINDOW by measure_span); or NULL */
    int32_t measure_span;
} moa_args_attn_map;

/* The end of a greedy step of several sequences: chooses on the device, so that the next step can follow without the host. A row
 * whose token is an end, or which has reached its limit, goes idle. */
typedef struct moa_args_argmax {
    const float *logits; /* (n_seq, n_vocab): row s is of the token at pos[s] */
    int32_t *id;         /* device (n_seq): the smallest id of the largest logit (NaN counts as none); idle rows keep theirs */
    int32_t *pos;        /* device (n_seq): < 0: an idle row; else + 1, or -1 when the row is done */
    const int32_t *limit; /* device (n_seq): tokens the sequence may hold: pos + 1 == limit ends it */
    int32_t *log;        /* device (n_seq, log_stride): the id chosen at pos goes to column pos % log_stride */
    const int32_t *end;  /* device (n_end): ids that end a sequence */
    int32_t n_seq, n_vocab, log_stride, n_end;
} moa_args_argmax;

/* What a step tells of a row, as a few numbers in the place of its logits. */
typedef struct moa_told {
    uint32_t stamp;         /* number of the row's step + 1, written last: who reads it finds the others there */
    int32_t id, pos;        /* the token chosen, and where it stands: pos of the token before it + 1 */
    float logprob, entropy; /* of id, and of the plain softmax, nats */
    int32_t n_top;
    moa_top top[MOA_TOP_MAX]; /* the n_top likeliest */
} moa_told;

/* The end of a step that draws (sample.h): exactly the same token on every backend. temp 0: the likeliest, as argmax has it. */
typedef struct moa_args_sample {
    const float *logits;  /* (n_seq, n_vocab): row s is of the token at pos[s] */
    moa_sampling how;     /* row s draws with the seed how.seed + s, for the position pos[s] + 1 */
    int32_t *id;          /* device (n_seq), as in argmax; idle rows keep theirs */
    int32_t *pos;         /* device (n_seq), as in argmax */
    const int32_t *limit; /* device (n_seq), as in argmax */
    const int32_t *end;   /* device (n_end) */
    int32_t *log;         /* device (n_seq, log_stride) as in argmax, or NULL */
    moa_told *told;       /* device or shared (n_seq, told_stride), or NULL: step[s] % told_stride is the column */
    uint32_t *step;       /* device (n_seq): steps that row s has taken, + 1 here; idle rows stand. NULL without told */
    int32_t n_seq, n_vocab, n_end, log_stride, told_stride, n_top; /* n_top at most MOA_TOP_MAX and n_vocab */
} moa_args_sample;

/* Sums of one head's statistics over its queries, each by its weight. */
typedef struct moa_stat_total {
    double entropy, sink, window, distance;
    float worst_cover;   /* smallest sink + window of a query looked at; begins at +inf */
    int32_t worst_query; /* its position, the first of equals; begins at -1 */
    int64_t n_query;     /* sum of the weights */
} moa_stat_total;

typedef struct moa_args_stat_sum {
    const float *stat;     /* (n_layer, n_tok, n_head, MOA_N_STAT) as attention wrote it */
    const int32_t *pos;    /* device (n_tok), ascending; < 0: an idle row, not counted */
    moa_stat_total *total; /* device (n_layer, n_head), ADDED to */
    int64_t *queries;      /* device (MOA_HIST_BUCKETS), ADDED to: weights by bucket, min(pos / bucket_tok, 7) */
    int32_t n_layer, n_tok, n_head, bucket_tok;
    moa_probe_rows rows; /* as attention had them: rows of stat without a weight are not read */
} moa_args_stat_sum;

/* --- fused operations of a decode step, one row ----------------------------------------------------------------------- */

typedef struct moa_fused_in {
    const float *x;             /* (n) */
    const moa_dev_weight *norm; /* (n), or NULL: x as it is */
    float eps;
    int32_t n_tok; /* rows, of as many sequences; 0 is 1. What the operation reads and writes for one row it does for each */
} moa_fused_in;

typedef struct moa_args_fused_qkv {
    moa_fused_in in;
    const moa_dev_weight *wq, *wk, *wv, *bq, *bk, *bv; /* biases may be NULL */
    float *q, *k;       /* (n_head, d_head), (n_head_kv, d_head): after rope */
    float *v;           /* (n_head_kv, d_head): written or not; NULL: q8 is not taken */
    moa_args_rope rope; /* of q; x, n_tok and n_head are not looked at */
    moa_kv_view kv;
    const int32_t *seq; /* device (n_tok) or NULL, as in kv_store */
    int32_t n_head;
    bool *taken;
} moa_args_fused_qkv;

typedef struct moa_args_fused_gate_up {
    moa_fused_in in;
    const moa_dev_weight *gate, *up; /* (d_ff, n) */
    float *y;                        /* (d_ff) */
    bool *taken;
} moa_args_fused_gate_up;

typedef struct moa_args_fused_product {
    moa_fused_in in;
    const moa_dev_weight *w; /* (n_out, n) */
    float *y;                /* (n_out), not x */
    bool accumulate;
    bool *taken;
} moa_args_fused_product;

/* the weights of a layer; biases may be NULL */
typedef struct moa_layer_weights {
    moa_dev_weight *attn_norm, *wq, *wk, *wv, *bq, *bk, *bv, *wo, *ffn_norm, *gate, *up, *down;
} moa_layer_weights;

/* What stands there for each layer begins with layer 0 and goes on by a fixed stride: the page table by
 * table_layer_stride, span and probe.measure_span by n_head, probe.stat by n_head * MOA_N_STAT, probe.hist by
 * n_head * MOA_HIST_BUCKETS * (1 + n_bin). */
typedef struct moa_args_step_decode {
    const moa_layer_weights *layers; /* host (n_layer), looked at during the call alone */
    const moa_dev_weight *out_norm, *output;
    float *x;      /* (d_model): the row's embedding; becomes what the last layer leaves */
    float *q, *o;  /* (n_head, d_head), space */
    float *gate;   /* (d_ff), space; may overlap q and o */
    float *logits; /* (n_vocab), or NULL: not wanted */
    moa_args_rope rope; /* of q and k, with the row's position; x, n_tok and n_head are not looked at */
    moa_kv_view kv;
    int64_t table_layer_stride; /* elements */
    const int32_t *seq;         /* device (1) or NULL, as in kv_store */
    const int32_t *span;        /* device (n_layer, n_head): of that sequence */
    int64_t span_seq_stride;    /* elements to those of the next row */
    int32_t n_layer, n_head;
    int32_t n_tok; /* rows, of as many sequences, without probe; 0 is 1. x, gate, logits, pos, seq and span have as many */
    float eps, scale; /* of the norms; of q.k */
    moa_probe probe;
    bool *taken;
} moa_args_step_decode;

/* --- operations of the influence profile ------------------------------------------------------------------------------- */

typedef struct moa_args_matmul_t {
    const float *dy;         /* (n_tok, n_out) */
    const moa_dev_weight *w; /* (n_out, n_in) */
    float *dx;               /* (n_tok, n_in) */
    int32_t n_tok;
    bool accumulate; /* add to dx */
} moa_args_matmul_t;

typedef struct moa_args_rmsnorm_bwd {
    const float *x;          /* (n_tok, n): what was normalised */
    const moa_dev_weight *w; /* (n) */
    const float *dy;         /* (n_tok, n) */
    float *dx;               /* (n_tok, n), neither x nor dy */
    int32_t n_tok, n;
    float eps;
    bool accumulate; /* add to dx: the residual's own gradient is there */
} moa_args_rmsnorm_bwd;

typedef struct moa_args_silu_mul_bwd {
    const float *gate, *up, *dy; /* (n) */
    float *d_gate, *d_up;        /* (n), may be gate and up */
    int64_t n;
} moa_args_silu_mul_bwd;

/* One sequence, queries and keys 0 .. n_tok - 1 after RoPE, no pages: every query sees all keys up to itself, or those of its head's
 * span. */
typedef struct moa_full {
    const float *q;     /* (n_tok, n_head, d_head) */
    const float *k, *v; /* (n_tok, n_head_kv, d_head) */
    int32_t n_tok, n_head, n_head_kv, d_head;
    float scale;         /* of q.k */
    const int32_t *span; /* device (n_head): moa_sees() of spans.h; NULL: full attention */
} moa_full;

typedef struct moa_args_attn_full {
    moa_full in;
    float *o;   /* (n_tok, n_head, d_head) */
    float *lse; /* (n_tok, n_head): log of the sum of exp(scale q.k) over the keys seen, nats */
} moa_args_attn_full;

typedef struct moa_args_attn_bwd {
    moa_full in;
    const float *o, *lse; /* as attn_full wrote them */
    const float *d_o;     /* (n_tok, n_head, d_head) */
    float *dq;            /* (n_tok, n_head, d_head) */
    float *dk, *dv;       /* (n_tok, n_head_kv, d_head): summed over the heads of the group */
} moa_args_attn_bwd;

#define MOA_INFLUENCE_TINY 1e-20 /* masses below this are not divided by */
#define MOA_INFLUENCE_MOST 60    /* of a key that is not seen, scale q.k - lse counts as no more than this, nats */
/* With A the attention, G_ij = d_o_i . v_j, delta_i = sum_j A_ij G_ij, to first order in the loss:
 *   masking key j and renormalising     E_ij = A_ij / (1 - A_ij) (delta_i - G_ij)        E_00 = -G_00 A_00
 *   keeping the keys K of row i only    E_i(K) = (sum_K A G) / (sum_K A) - delta_i
 * Under spans A = exp(scale q.k - lse) of keys that are not seen too, delta sums over those seen: E_i(K) is then what another window would
 * change, a wider one as well as a narrower one. E_ij of keys that are not seen is 0. */
typedef struct moa_args_attn_influence {
    moa_full in;
    const float *o, *lse, *d_o; /* as attn_bwd */
    float *abs, *sum; /* (n_head, nb, nb): sums of |E_ij| and of E_ij over blocks of 64 queries x 64 keys, nb = ceil(n_tok/64);
                       * 0 above the diagonal */
    float *joint;     /* (n_head, nb + 1): entry w = sum over all rows of E_i(block 0 and the newest w blocks, the row's own
                       * counted); entry 0 is 0 */
    int32_t *clamped; /* (1), ADDED to: rows of some head where a mass below MOA_INFLUENCE_TINY was to be divided by, or a key not seen
                       * weighed more than exp(MOA_INFLUENCE_MOST) times all seen */
} moa_args_attn_influence;

#define MOA_MARGIN_TINY 1e-12 /* 1 - p below this is not divided by */
typedef struct moa_args_cross_entropy {
    float *logits;         /* (n_row, n_vocab); becomes scale * d loss / d logits */
    const int32_t *target; /* device (n_row), in range */
    float *loss;           /* (n_row), nats */
    int32_t n_row, n_vocab;
    float scale;
    bool margin; /* the gradient is of log((1 - p) / p), p the target's share: cross-entropy's divided by 1 - p. loss stays what it is */
} moa_args_cross_entropy;

/* --- the driver part ------------------------------------------------------------------------------------------------- */

typedef struct moa_device_info {
    char name[96];        /* "NVIDIA H100 80GB HBM3", "CPU AMD EPYC, 2 threads, AVX-512" */
    uint64_t memory_bytes, free_bytes; /* 0: not known */
    int32_t sm;           /* compute capability * 10; 0 on the CPU */
    int32_t chunk;        /* tokens that a prefill step should take when there is memory for it; 0: no wish */
    bool prefill_halves;  /* attn_prefill makes float16 pages of the bf16 or q8 ones that a chunk sees, for as long as it runs */
} moa_device_info;

typedef struct moa_backend_config {
    int32_t device;    /* ordinal */
    int32_t n_threads; /* CPU: 0 = all cores this process may use */
    bool reference;    /* CPU: the double-accumulating reference for every operation */
} moa_backend_config;

typedef struct moa_backend_vtable {
    uint32_t abi;     /* MOA_BACKEND_ABI */
    const char *name; /* "cpu", "cuda" */
    bool reads_files; /* weight_load takes weights that are still in their file (moa_weight.read) and reads them itself */
    void (*close)(moa_backend *b); /* frees everything allocated from it */
    moa_status (*info)(moa_backend *b, moa_device_info *out, moa_err *err);

    moa_status (*alloc)(moa_backend *b, size_t bytes, void **out, moa_err *err); /* 256-byte aligned, content undefined */
    void (*free)(moa_backend *b, void *memory);                                  /* NULL is fine */
    moa_status (*upload)(moa_backend *b, void *dst, const void *host, size_t bytes, moa_err *err);   /* in queue order; host
                                                                                         may be reused on return */
    moa_status (*download)(moa_backend *b, void *host, const void *src, size_t bytes, moa_err *err); /* waits */
    moa_status (*zero)(moa_backend *b, void *dst, size_t bytes, moa_err *err);
    moa_status (*copy)(moa_backend *b, void *dst, const void *src, size_t bytes, moa_err *err); /* device to device, no overlap */
    moa_status (*sync)(moa_backend *b, moa_err *err);
    /* Memory that operations write to and the host reads while they run (moa_told): zeroed; its address on the host and on the device.
     * NULL members: the backend has none. */
    moa_status (*share)(moa_backend *b, size_t bytes, void **host, void **device, moa_err *err);
    void (*unshare)(moa_backend *b, void *host); /* NULL is fine; no operation may still write to it */

    /* Takes a weight as stored and keeps its own form of it; the host data may go afterwards. keep_host: the host data outlives
     * the backend, so that the CPU may use it in place. */
    moa_status (*weight_load)(moa_backend *b, const moa_weight *w, bool keep_host, moa_dev_weight **out, moa_err *err);
    void (*weight_free)(moa_backend *b, moa_dev_weight *w); /* NULL is fine */

    /* Recording of a fixed sequence of operations (a decode step). record_begin .. operations .. record_end gives a handle that
     * replay() runs. NULL members: the backend cannot, the engine then calls the operations each step. */
    moa_status (*record_begin)(moa_backend *b, moa_err *err);
    moa_status (*record_end)(moa_backend *b, void **recording, moa_err *err);
    moa_status (*replay)(moa_backend *b, void *recording, moa_err *err);
    void (*recording_free)(moa_backend *b, void *recording);

#define X(name, text) moa_status (*name)(moa_backend * b, const struct moa_args_##name *args, moa_err *err);
    MOA_OP_MAP(X)
    MOA_BWD_MAP(X) /* all or none */
    MOA_FUSED_MAP(X) /* any may be NULL */
#undef X
} moa_backend_vtable;

/* Every backend's struct begins with this. */
struct moa_backend {
    const moa_backend_vtable *vt;
};

enum { MOA_BACKEND_ABI = 8 };

/* What a loadable backend module (libmoascope-cuda.so) exports under the name "moa_backend_module". */
typedef struct moa_backend_module {
    uint32_t abi;
    const char *built_for; /* "sm_80, sm_90a, PTX 9.0" */
    /* number of devices; 0 with the reason in err when there is none to use */
    int32_t (*n_devices)(moa_err *err);
    moa_status (*device_info)(int32_t device, moa_device_info *out, moa_err *err);
    moa_status (*open)(moa_backend **out, const moa_backend_config *config, moa_err *err);
} moa_backend_module;

moa_status moa_cpu_open(moa_backend **out, const moa_backend_config *config, moa_err *err);

/* Loads the CUDA module once (beside the executable, in ../lib/moascope of it, or $MOASCOPE_CUDA_MODULE); NULL and why it is not there. */
const moa_backend_module *moa_cuda_module(moa_err *err);

/* Opens by the command line's words: "auto", "cpu", "cuda", "cuda:1". why (bytes why_bytes): one clause that says which device
 * was taken and why ("no NVIDIA driver: continuing on the CPU"). */
moa_status moa_backend_open(moa_backend **out, const char *device, const moa_backend_config *config, char *why,
                            size_t why_bytes, moa_err *err);
void moa_backend_close(moa_backend **b);

#ifdef __cplusplus
}
#endif
#endif
