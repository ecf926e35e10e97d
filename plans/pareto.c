/* pareto.c -- fronts and their thinning; a few hundred points at most, so plainly. */
#include "plans/pareto.h"

#include <math.h>
#include <stdbool.h>

static double range_of(const double *point, int32_t n, int32_t n_dim, int32_t d) {
    double low = INFINITY, high = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        low = fmin(low, point[i * n_dim + d]);
        high = fmax(high, point[i * n_dim + d]);
    }
    return high - low;
}

int32_t moa_pareto_front(const double *point, int32_t n, int32_t n_dim, uint8_t *keep) {
    int32_t left = 0;
    for (int32_t i = 0; i < n; i++) keep[i] = 1;
    for (int32_t i = 0; i < n; i++) {
        for (int32_t j = 0; j < n && keep[i]; j++) {
            if (j == i || !keep[j]) continue;
            bool as_good = true, better = false;
            for (int32_t d = 0; d < n_dim; d++) {
                const double eps = 1e-9 * range_of(point, n, n_dim, d), x = point[j * n_dim + d] - point[i * n_dim + d];
                as_good &= x <= eps;
                better |= x < -eps;
            }
            if (as_good && (better || j < i)) keep[i] = 0;
        }
        left += keep[i];
    }
    return left;
}

int32_t moa_pareto_thin(const double *point, int32_t n, int32_t n_dim, int32_t most, uint8_t *keep) {
    enum { POINT_MAX = 4096 };
    uint8_t stays[POINT_MAX] = {0};
    int32_t n_stay = 0, n_keep = 0;
    for (int32_t i = 0; i < n; i++) n_keep += keep[i];
    if (n_keep <= most || n > POINT_MAX) return n_keep;
    for (int32_t d = 0; d < n_dim && n_stay < most; d++) {
        int32_t best = -1;
        for (int32_t i = 0; i < n; i++)
            if (keep[i] && (best < 0 || point[i * n_dim + d] < point[best * n_dim + d])) best = i;
        n_stay += !stays[best];
        stays[best] = 1;
    }
    while (n_stay < most) {
        int32_t far = -1;
        double far_by = -1;
        for (int32_t i = 0; i < n; i++) {
            double near = INFINITY;
            if (!keep[i] || stays[i]) continue;
            for (int32_t j = 0; j < n; j++) {
                double sum = 0;
                if (!stays[j]) continue;
                for (int32_t d = 0; d < n_dim; d++) {
                    const double range = range_of(point, n, n_dim, d), x = point[i * n_dim + d] - point[j * n_dim + d];
                    sum += range > 0 ? x * x / (range * range) : 0;
                }
                near = fmin(near, sum);
            }
            if (near > far_by) far_by = near, far = i;
        }
        stays[far] = 1;
        n_stay++;
    }
    for (int32_t i = 0; i < n; i++) keep[i] = stays[i];
    return n_stay;
}
