/* Puts new K and V rows where the page table says, as the cache's type has them (kv_page.h).
 * k, v (n_tok, n_head_kv, d_head), seq (n_tok) or NULL, pos (n_tok): row t is token pos[t] of sequence seq[t]; pos < 0: skipped */
#include "core/cpu/cpu.h"
#include "core/cpu/half.h"

static void store(unsigned char *row, moa_kv_type type, int32_t i, float x) {
    if (type == MOA_KV_F32)
        ((float *)(void *)row)[i] = x;
    else if (type == MOA_KV_F16)
        ((uint16_t *)(void *)row)[i] = moa_float_to_half(x);
    else
        ((uint16_t *)(void *)row)[i] = moa_float_to_bf16(x);
}

/* token `at` of a page of q8: every exponent that is too small for it grows, and the earlier codes follow */
static void store_q8(unsigned char *page, int32_t d_head, int32_t at, const float *k, const float *v) {
    int8_t *k_codes = (int8_t *)page, *v_codes = k_codes + moa_kv_v_at(MOA_KV_Q8, d_head);
    uint8_t *exponents = moa_kv_k_exponents(page, d_head);
    uint32_t top = 0;
    for (int32_t i = 0; i < d_head; i++) {
        const int32_t before = at == 0 ? 0 : exponents[i], own = moa_kv_exponent(k[i]),
                      now = own > before ? own : before;
        for (int32_t t = 0; t < at; t++)
            k_codes[t * d_head + i] = moa_kv_k_shift(k_codes[t * d_head + i], now - before);
        exponents[i] = (uint8_t)now;
        k_codes[at * d_head + i] = moa_kv_k_code(k[i], now);
        const uint32_t size = moa_kv_bits(v[i]) & 0x7fffffffu;
        if (size > top) top = size;
    }
    const float scale = moa_kv_v_scale(top);
    moa_kv_v_scales(page, d_head)[at] = scale;
    for (int32_t i = 0; i < d_head; i++)
        v_codes[at * d_head + i] = moa_kv_v_code(v[i], scale);
}

moa_status moa_ref_kv_store(moa_backend *b, const moa_args_kv_store *a, moa_err *err) {
    (void)b;
    const moa_kv_view *kv = &a->kv;
    const size_t row_bytes = moa_kv_row_bytes(kv->type, kv->d_head), v_at = moa_kv_v_at(kv->type, kv->d_head);
    for (int32_t t = 0; t < a->n_tok; t++) {
        const int32_t pos = a->pos[t], seq = a->seq ? a->seq[t] : 0;
        if (pos < 0) continue;
        for (int32_t h = 0; h < kv->n_head_kv; h++) {
            unsigned char *page =
                pos / MOA_PAGE_TOK < kv->max_pages ? moa_kv_page_of(kv, seq, h, pos) : NULL;
            if (!page)
                return moa_fail(err, MOA_E_FAILED, "no KV page for token %d of sequence %d, KV head %d", pos,
                                seq, h);
            const int64_t from = ((int64_t)t * kv->n_head_kv + h) * kv->d_head;
            if (kv->type == MOA_KV_Q8) {
                store_q8(page, kv->d_head, pos % MOA_PAGE_TOK, a->k + from, a->v + from);
                continue;
            }
            unsigned char *row = page + (size_t)(pos % MOA_PAGE_TOK) * row_bytes;
            for (int32_t i = 0; i < kv->d_head; i++) {
                store(row, kv->type, i, a->k[from + i]);
                store(row + v_at, kv->type, i, a->v[from + i]);
            }
        }
    }
    return MOA_OK;
}
