/* plan.h -- a plan: one rule (alpha, beta) per layer and query head, and the file it lives in.
 *
 * The interchange file is {"alphas": [[...] * n_head] * n_layer, "betas": ...}; our own is a superset ("format": "moa-plan", ...).
 * Values round-trip exactly, unknown keys survive. Everything read is untrusted. No device, no engine here. */
#ifndef MOA_PLANS_PLAN_H
#define MOA_PLANS_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/buf.h"
#include "core/base/status.h"
#include "core/engine/spans.h"

enum { MOA_PLAN_LAYER_MAX = 1024, MOA_PLAN_HEAD_MAX = 1024 };
#define MOA_PLAN_FILE_MAX ((size_t)64 << 20) /* bytes */

typedef struct moa_plan {
    int32_t n_layer, n_head;
    moa_rule *rules; /* (n_layer, n_head), owned */
    /* of the superset; 0 or "" where the file does not say */
    int32_t n_head_kv;
    char model[256], arch[64], fingerprint[65];
    /* members we do not know, as they stood in the file ("note": "...", "provenance": {...}), owned; or NULL */
    char *extra, *model_extra;
} moa_plan;

static inline moa_rule *moa_plan_at(const moa_plan *p, int32_t layer, int32_t head) {
    return &p->rules[(int64_t)layer * p->n_head + head];
}

/* every head (alpha, beta). {0, 1} is full attention */
moa_status moa_plan_uniform(moa_plan **out, int32_t n_layer, int32_t n_head, moa_rule rule, moa_err *err);
moa_status moa_plan_copy(moa_plan **out, const moa_plan *from, moa_err *err);
void moa_plan_close(moa_plan **p);
bool moa_plan_equal(const moa_plan *a, const moa_plan *b); /* same shape, bit-equal rules */

/* Strict: duplicate keys, trailing bytes, invalid UTF-8, non-finite values, ragged rows are refused with place and reason. */
moa_status moa_plan_parse(moa_plan **out, const char *text, size_t n, moa_err *err);
moa_status moa_plan_load(moa_plan **out, const char *path, moa_err *err);
/* superset: with format, version, model, sink, block and what the file brought along; else the two interchange keys alone */
moa_status moa_plan_print(const moa_plan *p, bool superset, moa_buf *out, moa_err *err);
moa_status moa_plan_save(const moa_plan *p, const char *path, bool superset, moa_err *err); /* atomic, keeps path~ */

/* E_INVALID with both counts when the plan is for another shape of model */
moa_status moa_plan_fits(const moa_plan *p, int32_t n_layer, int32_t n_head, moa_err *err);

/* "full", "uniform:0.5", "sink" (every head the minimum), or a file; for a model of this shape. Says which head or layer count differs. */
moa_status moa_plan_open(moa_plan **out, const char *spec, int32_t n_layer, int32_t n_head, moa_err *err);

/* --- what a plan means at a length N ------------------------------------------------------------------------------------- */

typedef struct moa_plan_at_n {
    int32_t n;
    int32_t span_min, span_max; /* tokens */
    double span_mean;
    double kv_density;         /* mean over query heads of tokens kept / N, one cache per query head (MHA, as published) */
    double kv_density_grouped; /* with n_head_kv KV heads, each keeping the widest span of its group; NAN without */
    double mha_ratio;          /* KV of the MHA-expanded plan / dense GQA = kv_density * n_head / n_head_kv; NAN without */
    double attn_density;       /* visible pairs / causal pairs, mean over heads */
    double dense_share;        /* share of heads with span >= N */
    int32_t n_clamped;         /* heads with alpha + beta*N <= 0: only the minimum of 128 saves them */
} moa_plan_at_n;
/* n_head_kv 0: unknown */
moa_plan_at_n moa_plan_describe(const moa_plan *p, int32_t n, int32_t n_head_kv);

typedef struct moa_rule_class {
    moa_rule rule;
    int32_t n_head; /* heads that have it, over all layers */
} moa_rule_class;
/* Distinct rules, most used first; *out malloc'ed, the caller's. */
moa_status moa_plan_classes(const moa_plan *p, moa_rule_class **out, int32_t *n_out, moa_err *err);
int32_t moa_plan_max_rules_per_layer(const moa_plan *p);

/* widest span of head's KV group at n */
int32_t moa_plan_group_span(const moa_plan *p, int32_t layer, int32_t head, int32_t n_head_kv, int32_t n);

/* --- coverage: what a window keeps of a head's attention, from its distance histogram --------------------------------------- */

/* hist (1 + n_bin): [0] sink mass, [1+d] mass at distance [64d, 64d+64); any scale. Share of the mass that span (a multiple of 64)
 * keeps: exact for distance windows. NAN when there is no mass. */
double moa_coverage(const float *hist, int32_t n_bin, int32_t span);
/* smallest span that covers at least share (0..1] of the mass; 0 when there is no mass */
int32_t moa_coverage_span(const float *hist, int32_t n_bin, double share);

/* The same mass on a log scale, for pictures: two bins an octave. share (n): [0] the sink's share, [1 + k] that of distances from
 * 64 * 2^(k/2) tokens on (blocks 0, 1, 2, 3, 5, ...), the last bin with all that is beyond. False, and zeros, when there is no mass. */
bool moa_coverage_octaves(const float *hist, int32_t n_bin, float *share, int32_t n);
/* bins, the sink's counted, that the distances below n_block * 64 tokens fall in */
int32_t moa_coverage_n_octave(int32_t n_block);

/* --- selectors: L14.H13  L14.*  L10-20.H0,4  *.H3  G3 (a KV group)  *  --------------------------------------------------- */

/* Sets mask[layer*n_head+head] = 1 for what text selects. E_USAGE names the place that does not parse. n_head_kv for L.G */
moa_status moa_select(const char *text, int32_t n_layer, int32_t n_head, int32_t n_head_kv, uint8_t *mask, moa_err *err);

/* "alpha=0 beta=0.25", "w=1024", "full", "sink", "alpha+=64", "beta-=0.125": applied to one rule */
moa_status moa_rule_edit(moa_rule *rule, const char *text, moa_err *err);

#endif
