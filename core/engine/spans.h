/* spans.h -- what "visible" means. The only definition: CPU, CUDA, plans, tests and pictures all call this.
 *
 *   rule (alpha, beta), N tokens reserved    S = roundup64(max(min(trunc(alpha + beta*N), N), 128))   tokens, sink included
 *   window                                   W = S - 64        the query's own position counts
 *   query i sees key j                       j <= i  and  (j < 64  or  i - j < W)
 *
 *      key j  0..63 |                       |<-- W -->|
 *             sink  |  cut: gone for good   | window  i        S >= N sees everything: dense
 *
 *   A KV head keeps what the widest query head of its group may still see, in pages of 64 tokens; page 0 is the sink.
 *   Source: "Mixture of Attention Spans" (arXiv 2406.14909v3); exact at token granularity, the same in prefill and decode. */
#ifndef MOA_ENGINE_SPANS_H
#define MOA_ENGINE_SPANS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/hd.h"

enum {
    MOA_PAGE_TOK = 64,  /* tokens of a KV page, and of a block in plans and maps */
    MOA_SINK_TOK = 64,  /* tokens never dropped */
    MOA_SPAN_MIN = 128, /* shortest span: the sink and one block */
};
#define MOA_N_MAX (1 << 24) /* longest sequence a plan may be asked about, tokens */

/* alpha in tokens (may be negative), beta dimensionless; per layer and query head, in the checkpoint's order of heads */
typedef struct moa_rule {
    double alpha, beta;
} moa_rule;

static inline MOA_HD int32_t moa_roundup64(int32_t n) { return (n + 63) & ~63; }

/* span in tokens of a rule when n tokens are reserved, 1 <= n <= MOA_N_MAX; alpha and beta finite */
static inline MOA_HD int32_t moa_span(moa_rule rule, int32_t n) {
    const double x = rule.alpha + rule.beta * (double)n;
    int32_t s = x >= (double)n ? n : x <= (double)MOA_SPAN_MIN ? MOA_SPAN_MIN : (int32_t)x; /* (int32_t): truncates */
    if (s < MOA_SPAN_MIN) s = MOA_SPAN_MIN;
    return moa_roundup64(s);
}

static inline MOA_HD int32_t moa_window(int32_t span) { return span - MOA_SINK_TOK; }

static inline MOA_HD bool moa_sees(int32_t span, int32_t i, int32_t j) {
    return j <= i && (j < MOA_SINK_TOK || i - j < moa_window(span));
}

/* the first key at or after the sink that query i sees: keys [0, min(64, i+1)) and [first, i] are the visible ones */
static inline MOA_HD int32_t moa_window_first(int32_t span, int32_t i) {
    const int32_t first = i - moa_window(span) + 1;
    return first > MOA_SINK_TOK ? first : MOA_SINK_TOK;
}

/* how many keys query i sees */
static inline MOA_HD int32_t moa_n_seen(int32_t span, int32_t i) {
    return i + 1 < span ? i + 1 : span;
}

/* May some query at position >= n_past still see a token of this page? span: the widest of the KV head's group.
 * Pages that hold no token yet (page*64 >= n_past) are kept: they are about to be written. */
static inline MOA_HD bool moa_keep(int32_t span, int32_t n_past, int32_t page) {
    const int32_t last = page * MOA_PAGE_TOK + MOA_PAGE_TOK - 1;
    return page == 0 || n_past - last < moa_window(span);
}

/* pages a KV head holds once n_past tokens are stored and the dead pages are freed */
static inline MOA_HD int32_t moa_n_pages(int32_t span, int32_t n_past) {
    const int32_t used = (n_past + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK;
    /* page p >= 1 is dead when n_past - (64p+63) >= W  <=>  p <= (n_past - W - 63) / 64 */
    const int32_t x = n_past - moa_window(span) - (MOA_PAGE_TOK - 1);
    const int32_t dead = x >= MOA_PAGE_TOK ? x / MOA_PAGE_TOK : 0;
    return used - dead;
}

#endif
