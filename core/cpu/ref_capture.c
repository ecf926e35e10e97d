/* Copies rows of q and k (after RoPE) to the capture buffers, which are head-major so that one head's rows are consecutive.
 * q (n_tok, n_head, d_head), k (n_tok, n_head_kv, d_head), pos (n_tok) -> cap_q (n_head, max_tok, d_head), cap_k (n_head_kv, ..)
 * k is rounded as the cache rounds it (of q8: read back from it), so that a map shows the attention that was computed. pos outside 0..max_tok-1: skipped */
#include "core/cpu/cpu.h"
#include "core/cpu/half.h"

/* element i of k's row t, head h, as the cache has it */
static float rounded(const moa_args_capture *a, int32_t t, int32_t h, int32_t i) {
    const float k = a->k[((int64_t)t * a->n_head_kv + h) * a->d_head + i];
    if (a->type == MOA_KV_F16) return moa_half_to_float(moa_float_to_half(k));
    if (a->type == MOA_KV_BF16) return moa_bf16_to_float(moa_float_to_bf16(k));
    if (a->type != MOA_KV_Q8) return k;
    unsigned char *page = moa_kv_page_of(&a->kv, 0, h, a->pos[t]);
    const int8_t *row = (const int8_t *)page + (ptrdiff_t)(a->pos[t] % MOA_PAGE_TOK) * a->d_head;
    return moa_kv_k_value(row[i], moa_kv_k_exponents(page, a->d_head)[i]);
}

moa_status moa_cpu_capture_check(const moa_args_capture *a, moa_err *err) {
    for (int32_t t = 0; a->type == MOA_KV_Q8 && t < a->n_tok; t++)
        for (int32_t h = 0; h < a->n_head_kv && a->pos[t] >= 0 && a->pos[t] < a->max_tok; h++)
            if (a->pos[t] / MOA_PAGE_TOK >= a->kv.max_pages || !moa_kv_page_of(&a->kv, 0, h, a->pos[t]))
                return moa_fail(err, MOA_E_FAILED, "no KV page for captured token %d, KV head %d", a->pos[t], h);
    return MOA_OK;
}

moa_status moa_ref_capture(moa_backend *b, const moa_args_capture *a, moa_err *err) {
    (void)b;
    const moa_status status = moa_cpu_capture_check(a, err);
    if (status != MOA_OK) return status;
    for (int32_t t = 0; t < a->n_tok; t++) {
        const int32_t pos = a->pos[t];
        if (pos < 0 || pos >= a->max_tok) continue;
        for (int32_t h = 0; h < a->n_head; h++)
            for (int32_t i = 0; i < a->d_head; i++)
                a->cap_q[((int64_t)h * a->max_tok + pos) * a->d_head + i] =
                    a->q[((int64_t)t * a->n_head + h) * a->d_head + i];
        for (int32_t h = 0; h < a->n_head_kv; h++)
            for (int32_t i = 0; i < a->d_head; i++)
                a->cap_k[((int64_t)h * a->max_tok + pos) * a->d_head + i] = rounded(a, t, h, i);
    }
    return MOA_OK;
}
