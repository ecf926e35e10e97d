/* Puts new K and V rows where the page table says, rounded to the cache's type.
 * k, v (n_tok, n_head_kv, d_head), seq (n_tok) or NULL, pos (n_tok): row t is token pos[t] of sequence seq[t]; pos < 0: skipped */
#include "core/cpu/cpu.h"
#include "core/cpu/half.h"

static void store(void *pool, int64_t at, moa_kv_type type, float x) {
    if (type == MOA_KV_F32)
        ((float *)pool)[at] = x;
    else
        ((uint16_t *)pool)[at] = moa_float_to_half(x);
}

moa_status moa_ref_kv_store(moa_backend *b, const moa_args_kv_store *a, moa_err *err) {
    (void)b;
    const moa_kv_view *kv = &a->kv;
    for (int32_t t = 0; t < a->n_tok; t++) {
        const int32_t pos = a->pos[t], seq = a->seq ? a->seq[t] : 0;
        if (pos < 0) continue;
        for (int32_t h = 0; h < kv->n_head_kv; h++) {
            const int64_t to = pos / MOA_PAGE_TOK < kv->max_pages ? moa_kv_row(kv, seq, h, pos) : -1;
            if (to < 0)
                return moa_fail(err, MOA_E_FAILED, "no KV page for token %d of sequence %d, KV head %d", pos,
                                seq, h);
            const int64_t from = ((int64_t)t * kv->n_head_kv + h) * kv->d_head;
            for (int32_t i = 0; i < kv->d_head; i++) {
                store(kv->pool, to + i, kv->type, a->k[from + i]);
                store(kv->pool, to + MOA_PAGE_TOK * kv->d_head + i, kv->type, a->v[from + i]);
            }
        }
    }
    return MOA_OK;
}
