/* coverage.c -- what any window would keep, read off one histogram.
 *
 *   hist[0]      mass on the sink (j < 64)             never cut
 *   hist[1 + d]  mass at distance i - j in [64d, 64d + 64), j >= 64
 *
 *   A span S keeps the sink and the bins d < (S - 64) / 64: spans are multiples of 64, so this is exact, for every window at once,
 *   without a rerun. */
#include <math.h>

#include "plans/plan.h"

static double total(const float *hist, int32_t n_bin) {
    double sum = 0;
    for (int32_t d = 0; d <= n_bin; d++) sum += hist[d];
    return sum;
}

double moa_coverage(const float *hist, int32_t n_bin, int32_t span) {
    const double all = total(hist, n_bin);
    if (!(all > 0)) return NAN;
    const int32_t bins = moa_window(span) / MOA_PAGE_TOK;
    double sum = hist[0];
    for (int32_t d = 0; d < n_bin && d < bins; d++) sum += hist[1 + d];
    return sum / all;
}

int32_t moa_coverage_span(const float *hist, int32_t n_bin, double share) {
    const double all = total(hist, n_bin);
    if (!(all > 0)) return 0;
    double sum = hist[0];
    for (int32_t d = 0; d < n_bin; d++) {
        sum += hist[1 + d];
        /* the last bin closes the sum by definition, whatever the rounding */
        if (sum >= share * all || d == n_bin - 1) return MOA_SINK_TOK + (d + 1) * MOA_PAGE_TOK;
    }
    return MOA_SPAN_MIN;
}

int32_t moa_coverage_n_octave(int32_t n_block) { return n_block < 1 ? 1 : 2 + (int32_t)(2 * log2((double)n_block)); }

bool moa_coverage_octaves(const float *hist, int32_t n_bin, float *share, int32_t n) {
    const double all = total(hist, n_bin);
    for (int32_t i = 0; i < n; i++) share[i] = 0;
    if (!(all > 0)) return false;
    share[0] = (float)((double)hist[0] / all);
    for (int32_t d = 0; d < n_bin; d++) {
        const int32_t bin = moa_coverage_n_octave(d + 1) - 1;
        share[bin < n ? bin : n - 1] += (float)((double)hist[1 + d] / all);
    }
    return true;
}
