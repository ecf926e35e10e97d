/* plan_export.h -- a plan in the words of other programs.
 *
 *   name         what it is                                                    lost
 *   moa          the interchange file: alphas and betas alone                  nothing
 *   csv          layer, head, alpha, beta, and the span at each length         nothing
 *   windows      JSON: the window of every head at each length                 the rules between the lengths
 *   minference   MInference's pattern file: ["stream_llm", sink, window, 1]    the rules: one length, prefill only
 *   duo          DuoAttention's (and kvpress') full_attention_heads.tsv and    most: a KV head is full, or has the one
 *                config.json, per KV head                                      constant window of all
 *
 * A window counts the query's own position: query i sees key j iff j <= i and (j < sink or i - j < window). What an export cannot
 * say it widens, never narrows, and moa_export_loss says how often. Heads are query heads, but for duo. */
#ifndef MOA_PLANS_PLAN_EXPORT_H
#define MOA_PLANS_PLAN_EXPORT_H

#include "plans/plan.h"

/* name, lengths it takes at least and at most, needs the number of KV heads */
#define MOA_EXPORT_MAP(X)                                                                                    \
    X(MOA, "moa", 0, 0, false)                                                                               \
    X(CSV, "csv", 0, 256, false)                                                                             \
    X(WINDOWS, "windows", 1, 256, false)                                                                     \
    X(MINFERENCE, "minference", 1, 1, false)                                                                 \
    X(DUO, "duo", 0, 0, true)

typedef enum moa_export_format {
#define X(id, ...) MOA_EXPORT_##id,
    MOA_EXPORT_MAP(X)
#undef X
        MOA_N_EXPORT
} moa_export_format;

typedef struct moa_export {
    moa_export_format format;
    int32_t n_head_kv; /* 0: unknown */
    const int32_t *at; /* lengths in tokens, 1..MOA_N_MAX, borrowed */
    int n_at;
} moa_export;

/* E_USAGE, with the list, for a name that is none of them */
moa_status moa_export_find(const char *name, moa_export_format *out, moa_err *err);
/* Appends the file to *main; duo's config.json to *side, which stays empty otherwise. loss (LOSS_BYTES): what the format could
 * not say, one sentence, or "". E_USAGE when the lengths or the KV heads it needs are not there. */
enum { MOA_EXPORT_LOSS_BYTES = 256 };
moa_status moa_plan_export(const moa_plan *p, const moa_export *how, moa_buf *main, moa_buf *side,
                           char loss[MOA_EXPORT_LOSS_BYTES], moa_err *err);

#endif
