/* Gradients of the operations that work row by row, for the influence profile; every sum in double, one page an operation.
 *
 *   matmul_t       y = x W^T            dx = dy W
 *   rmsnorm_bwd    y = x r w            dx = r w dy - x r^3 / n sum(w dy x)          r = 1 / sqrt(mean(x^2) + eps)
 *   silu_mul_bwd   y = g s(g) u         du = dy g s,   dg = dy u s (1 + g (1 - s))   s = 1 / (1 + exp(-g))
 *   cross_entropy  L = lse - z_target   dz = softmax(z) - [target]     margin: that divided by 1 - p, p = softmax(z)_target; in both the
 *                                       target's own entry is the sum of the others, turned: p - 1 would cancel */
#include <math.h>
#include <stdlib.h>

#include "core/cpu/cpu.h"

/* dy (n_tok, n_out), w (n_out, n_in) -> dx (n_tok, n_in) */
moa_status moa_ref_matmul_t(moa_backend *b, const moa_args_matmul_t *a, moa_err *err) {
    (void)b;
    const int32_t n_in = a->w->n_in, n_out = a->w->n_out;
    const size_t n = (size_t)a->n_tok * (size_t)n_in;
    float *row = moa_cpu_scratch((size_t)n_in, sizeof *row, err);
    double *sum = moa_cpu_scratch(n, sizeof *sum, err);
    const bool ok = row && sum;
    for (size_t i = 0; ok && i < n; i++)
        sum[i] = a->accumulate ? a->dx[i] : 0;
    for (int32_t o = 0; ok && o < n_out; o++) {
        a->w->type->decode(moa_weight_row(a->w, o), row, (size_t)n_in);
        for (int32_t t = 0; t < a->n_tok; t++) {
            const double dy = a->dy[(int64_t)t * n_out + o];
            double *to = sum + (int64_t)t * n_in;
            for (int32_t i = 0; i < n_in; i++)
                to[i] += dy * row[i];
        }
    }
    for (size_t i = 0; ok && i < n; i++)
        a->dx[i] = (float)sum[i];
    free(row);
    free(sum);
    return ok ? MOA_OK : MOA_E_MEMORY;
}

/* x, dy (n_tok, n), w (n) -> dx (n_tok, n) */
moa_status moa_ref_rmsnorm_bwd(moa_backend *b, const moa_args_rmsnorm_bwd *a, moa_err *err) {
    (void)b;
    float *w = moa_cpu_scratch((size_t)a->n, sizeof *w, err);
    if (!w) return MOA_E_MEMORY;
    a->w->type->decode(a->w->data, w, (size_t)a->n);
    for (int32_t t = 0; t < a->n_tok; t++) {
        const float *x = a->x + (int64_t)t * a->n, *dy = a->dy + (int64_t)t * a->n;
        float *dx = a->dx + (int64_t)t * a->n;
        double square = 0, dot = 0;
        for (int32_t i = 0; i < a->n; i++) {
            square += (double)x[i] * x[i];
            dot += (double)x[i] * w[i] * dy[i];
        }
        const double r = 1 / sqrt(square / a->n + a->eps), back = r * r * r * dot / a->n;
        for (int32_t i = 0; i < a->n; i++)
            dx[i] = (float)(r * w[i] * dy[i] - back * x[i] + (a->accumulate ? dx[i] : 0));
    }
    free(w);
    return MOA_OK;
}

/* gate, up, dy (n) -> d_gate, d_up (n), which may be gate and up */
moa_status moa_ref_silu_mul_bwd(moa_backend *b, const moa_args_silu_mul_bwd *a, moa_err *err) {
    (void)b, (void)err;
    for (int64_t i = 0; i < a->n; i++) {
        const double gate = a->gate[i], up = a->up[i], dy = a->dy[i];
        const double sigmoid = 1 / (1 + exp(-gate)), rest = 1 / (1 + exp(gate));
        a->d_gate[i] = (float)(dy * up * sigmoid * (1 + gate * rest));
        a->d_up[i] = (float)(dy * gate * sigmoid);
    }
    return MOA_OK;
}

/* logits (n_row, n_vocab), target (n_row) -> loss (n_row), gradient in place of the logits */
moa_status moa_ref_cross_entropy(moa_backend *b, const moa_args_cross_entropy *a, moa_err *err) {
    (void)b;
    for (int32_t r = 0; r < a->n_row; r++) {
        float *z = a->logits + (int64_t)r * a->n_vocab;
        const int32_t target = a->target[r];
        if (target < 0 || target >= a->n_vocab)
            return moa_fail(err, MOA_E_INVALID, "target %d of row %d is outside the vocabulary of %d", target,
                            r, a->n_vocab);
        double max = -INFINITY, sum = 0;
        for (int32_t i = 0; i < a->n_vocab; i++)
            max = z[i] > max ? z[i] : max;
        for (int32_t i = 0; i < a->n_vocab; i++)
            sum += exp(z[i] - max);
        const double lse = max + log(sum);
        double others = 0; /* 1 - p */
        for (int32_t i = 0; i < a->n_vocab; i++)
            others += i == target ? 0 : exp(z[i] - lse);
        a->loss[r] = (float)(lse - z[target]);
        const double by = a->margin ? fmax(others, MOA_MARGIN_TINY) : 1;
        for (int32_t i = 0; i < a->n_vocab; i++)
            z[i] = (float)(a->scale * (i == target ? -others : exp(z[i] - lse)) / by);
    }
    return MOA_OK;
}
