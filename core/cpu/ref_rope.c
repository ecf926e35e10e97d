/* Rotary position embedding, in place: pair i of every head turns by pos * scale * theta^(-2i/rope_dim) / factor[i].
 * x (n_tok, n_head, d_head), pos (n_tok), freq_factors (rope_dim/2). Elements from rope_dim on stay as they are. */
#include <math.h>
#include <stdlib.h>

#include "core/cpu/cpu.h"

moa_status moa_ref_rope(moa_backend *b, const moa_args_rope *a, moa_err *err) {
    (void)b;
    const int32_t half = a->rope_dim / 2;
    float *factor = moa_cpu_scratch((size_t)half, sizeof *factor, err);
    if (!factor) return MOA_E_MEMORY;
    for (int32_t i = 0; i < half; i++)
        factor[i] = 1;
    if (a->freq_factors) a->freq_factors->type->decode(a->freq_factors->data, factor, (size_t)half);
    for (int32_t t = 0; t < a->n_tok; t++)
        for (int32_t h = 0; h < a->n_head; h++) {
            float *x = a->x + ((int64_t)t * a->n_head + h) * a->d_head;
            for (int32_t i = 0; i < half; i++) {
                const double frequency = pow(a->theta, -2.0 * i / a->rope_dim) / factor[i];
                const double angle = (double)a->pos[t] * a->scale * frequency;
                float *u = a->kind == MOA_ROPE_PAIRS ? &x[2 * i] : &x[i];
                float *v = a->kind == MOA_ROPE_PAIRS ? &x[2 * i + 1] : &x[i + half];
                const double u0 = *u, v0 = *v;
                *u = (float)(u0 * cos(angle) - v0 * sin(angle));
                *v = (float)(u0 * sin(angle) + v0 * cos(angle));
            }
        }
    free(factor);
    return MOA_OK;
}
