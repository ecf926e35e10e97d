/* Copies rows of q and k (after RoPE) to the capture buffers, which are head-major so that one head's rows are consecutive.
 * q (n_tok, n_head, d_head), k (n_tok, n_head_kv, d_head), pos (n_tok) -> cap_q (n_head, max_tok, d_head), cap_k (n_head_kv, ..)
 * k is rounded as the cache rounds it, so that a map shows the attention that was computed. pos outside 0..max_tok-1: skipped */
#include "core/cpu/cpu.h"
#include "core/cpu/half.h"

moa_status moa_ref_capture(moa_backend *b, const moa_args_capture *a, moa_err *err) {
    (void)b, (void)err;
    for (int32_t t = 0; t < a->n_tok; t++) {
        const int32_t pos = a->pos[t];
        if (pos < 0 || pos >= a->max_tok) continue;
        for (int32_t h = 0; h < a->n_head; h++)
            for (int32_t i = 0; i < a->d_head; i++)
                a->cap_q[((int64_t)h * a->max_tok + pos) * a->d_head + i] =
                    a->q[((int64_t)t * a->n_head + h) * a->d_head + i];
        for (int32_t h = 0; h < a->n_head_kv; h++)
            for (int32_t i = 0; i < a->d_head; i++) {
                const float k = a->k[((int64_t)t * a->n_head_kv + h) * a->d_head + i];
                a->cap_k[((int64_t)h * a->max_tok + pos) * a->d_head + i] =
                    a->type == MOA_KV_F16 ? moa_half_to_float(moa_float_to_half(k)) : k;
            }
    }
    return MOA_OK;
}
