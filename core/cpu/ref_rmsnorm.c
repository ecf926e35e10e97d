/* y = x / sqrt(mean(x^2) + eps) * w, row by row.
 * x (n_tok, n), w (n) -> y (n_tok, n), which may be x */
#include <math.h>
#include <stdlib.h>

#include "core/cpu/cpu.h"

moa_status moa_ref_rmsnorm(moa_backend *b, const moa_args_rmsnorm *a, moa_err *err) {
    (void)b;
    float *w = moa_cpu_scratch((size_t)a->n, sizeof *w, err);
    if (!w) return MOA_E_MEMORY;
    a->w->type->decode(a->w->data, w, (size_t)a->n);
    for (int32_t t = 0; t < a->n_tok; t++) {
        const float *x = a->x + (int64_t)t * a->n;
        float *y = a->y + (int64_t)t * a->n;
        double sum = 0;
        for (int32_t i = 0; i < a->n; i++)
            sum += (double)x[i] * x[i];
        const double r = 1 / sqrt(sum / a->n + a->eps);
        for (int32_t i = 0; i < a->n; i++)
            y[i] = (float)(x[i] * r * w[i]);
    }
    free(w);
    return MOA_OK;
}
