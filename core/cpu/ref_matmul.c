/* y = x W^T (+ bias) (+ y): each output is one dot product, summed in double.
 * x (n_tok, n_in), w (n_out, n_in) packed, bias (n_out) -> y (n_tok, n_out) */
#include <stdlib.h>

#include "core/cpu/cpu.h"

moa_status moa_ref_matmul(moa_backend *b, const moa_args_matmul *a, moa_err *err) {
    (void)b;
    const int32_t n_in = a->w->n_in, n_out = a->w->n_out;
    float *row = moa_cpu_scratch((size_t)n_in, sizeof *row, err);
    float *bias = moa_cpu_scratch((size_t)n_out, sizeof *bias, err);
    if (row && bias) {
        for (int32_t o = 0; o < n_out; o++)
            bias[o] = 0;
        if (a->bias) a->bias->type->decode(a->bias->data, bias, (size_t)n_out);
        for (int32_t o = 0; o < n_out; o++) {
            a->w->type->decode(moa_weight_row(a->w, o), row, (size_t)n_in);
            for (int32_t t = 0; t < a->n_tok; t++) {
                const float *x = a->x + (int64_t)t * n_in;
                float *y = a->y + (int64_t)t * n_out + o;
                double sum = bias[o];
                for (int32_t i = 0; i < n_in; i++)
                    sum += (double)x[i] * row[i];
                *y = (float)(a->accumulate ? *y + sum : sum);
            }
        }
    }
    const bool ok = row && bias;
    free(row);
    free(bias);
    return ok ? MOA_OK : MOA_E_MEMORY;
}
