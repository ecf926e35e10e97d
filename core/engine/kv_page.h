/* kv_page.h -- how a page of the KV cache lies in memory, by type. The only definition: engine, CPU, CUDA and tests all call this.
 *
 *   f16 bf16 f32   [K 64 x d_head][V 64 x d_head]                                          elements of the type
 *   q8             [K codes 64 x d_head][V codes 64 x d_head][V scales 64 float][K exponents d_head bytes][to a multiple of 16]
 *
 * q8 keeps a byte for each element. What it is worth comes from a power of two for each channel of K in the page, and from a scale for
 * each token of V:
 *
 *      k = (code + 1/2) 2^(E - 127), code = floor(k / 2^(E - 127))       E of the channel: 2^(E - 120) > |k| for all its tokens
 *      v = code scale,               code = round(v / scale)             scale of the token: its largest |v| / 127
 *
 * K has a few channels that are far larger than the others, the same ones for all tokens: with a scale a token they would swallow the
 * rest (mean KL of the logits, 320 tokens of Qwen2.5-Coder-0.5B: 8.7e-3 with a scale a token, 9.3e-3 with one for each 32 channels of it,
 * 4.3e-4 so). V has none, and a scale a token can be multiplied with the token's probability.
 *
 * A page is written token by token, and a later token may need a larger E. The codes before it then follow by a shift: the floor of a
 * floor is the floor of the whole, so they become what they would have been had the larger E been known. What a page holds is the same
 * however its tokens were cut into chunks, and requantising loses nothing twice. (What a query saw of it before is another matter: it
 * saw the E of its time.) Token 0 of a page begins it anew. E = 0 is a channel of zeros; E = 255 one that met an infinity or a NaN. */
#ifndef MOA_ENGINE_KV_PAGE_H
#define MOA_ENGINE_KV_PAGE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/engine/spans.h"

/* name, bytes of an element or code of K and V */
#define MOA_KV_TYPE_MAP(X)                                                                                   \
    X(F16, "f16", 2)                                                                                         \
    X(F32, "f32", 4)                                                                                         \
    X(BF16, "bf16", 2)                                                                                       \
    X(Q8, "q8", 1)
typedef enum moa_kv_type {
#define X(name, text, bytes) MOA_KV_##name,
    MOA_KV_TYPE_MAP(X)
#undef X
        MOA_N_KV_TYPE
} moa_kv_type;

static inline const char *moa_kv_type_name(moa_kv_type t) {
    switch (t) {
#define X(name, text, bytes)                                                                                 \
    case MOA_KV_##name: return text;
        MOA_KV_TYPE_MAP(X)
#undef X
    default: return "?";
    }
}
#define MOA_KV_TYPE_NAMES "f16, bf16, q8 or f32" /* for messages */
/* false: no type is called that; *out is then left alone */
static inline bool moa_kv_type_find(const char *text, moa_kv_type *out) {
    for (int t = 0; t < MOA_N_KV_TYPE; t++) {
        if (strcmp(text, moa_kv_type_name((moa_kv_type)t)) != 0) continue;
        *out = (moa_kv_type)t;
        return true;
    }
    return false;
}

static inline MOA_HD size_t moa_kv_elem_bytes(moa_kv_type t) {
    return t == MOA_KV_F32 ? 4 : t == MOA_KV_Q8 ? 1 : 2;
}

/* --- where things lie, in bytes from the page's beginning; d_head >= 1 ----------------------------------------------- */

static inline MOA_HD size_t moa_kv_row_bytes(moa_kv_type t, int32_t d_head) {
    return (size_t)d_head * moa_kv_elem_bytes(t);
}
/* K begins at 0 */
static inline MOA_HD size_t moa_kv_v_at(moa_kv_type t, int32_t d_head) {
    return MOA_PAGE_TOK * moa_kv_row_bytes(t, d_head);
}
/* q8: float (64) and uint8_t (d_head) */
static inline MOA_HD size_t moa_kv_v_scale_at(int32_t d_head) {
    return 2 * (size_t)MOA_PAGE_TOK * (size_t)d_head;
}
static inline MOA_HD size_t moa_kv_k_exponent_at(int32_t d_head) {
    return moa_kv_v_scale_at(d_head) + MOA_PAGE_TOK * sizeof(float);
}
static inline MOA_HD size_t moa_kv_page_bytes(moa_kv_type t, int32_t d_head) {
    const size_t both = 2 * moa_kv_v_at(t, d_head);
    return t == MOA_KV_Q8 ? (moa_kv_k_exponent_at(d_head) + (size_t)d_head + 15) & ~(size_t)15 : both;
}

/* --- numbers of q8: whole operations on bits, the same on every machine ---------------------------------------------- */

static inline MOA_HD uint32_t moa_kv_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline MOA_HD float moa_kv_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* the smallest E that takes k; 0: it is less than 2^-120 */
static inline MOA_HD int32_t moa_kv_exponent(float k) {
    const int32_t e = (int32_t)(moa_kv_bits(k) >> 23 & 255u);
    return e == 255 ? 255 : e > 6 ? e - 6 : 0;
}
/* 2^(E - 127); 0 and infinity at the ends */
static inline MOA_HD float moa_kv_step(int32_t exponent) {
    return moa_kv_of_bits((uint32_t)exponent << 23);
}
/* exponent >= moa_kv_exponent(k) */
static inline MOA_HD int8_t moa_kv_k_code(float k, int32_t exponent) {
    const int32_t own = moa_kv_exponent(k);
    if (own == 0 || exponent == 255) return (int8_t)(k < 0 ? -1 : 0);
    const float y = k * moa_kv_of_bits((uint32_t)(254 - exponent) << 23); /* exact */
    const int32_t whole = (int32_t)y;                                     /* |y| < 128 */
    return (int8_t)(whole - (y < (float)whole));
}
/* the code once its channel's exponent has grown by `by` */
static inline MOA_HD int8_t moa_kv_k_shift(int8_t code, int32_t by) {
    const int32_t most = by < 8 ? by : 8; /* beyond: only the sign is left */
    return (int8_t)((code + 256) / (1 << most) - 256 / (1 << most));
}
static inline MOA_HD float moa_kv_k_value(int8_t code, int32_t exponent) {
    return ((float)code + 0.5f) * moa_kv_step(exponent);
}

/* of a token's largest |v|, by its bits (a NaN is larger than all): 0 where it is too small to divide by, else finite or not as it is */
static inline MOA_HD float moa_kv_v_scale(uint32_t top_bits) {
    const float scale = moa_kv_of_bits(top_bits) / 127.0f;
    if (top_bits > 0x7f800000u) return moa_kv_of_bits(0x7fc00000u);
    return scale < 1.17549435e-38f ? 0.0f : scale;
}
static inline MOA_HD int8_t moa_kv_v_code(float v, float scale) {
    if (!(scale > 0.0f && scale <= 3.40282347e38f)) return 0;
    return (int8_t)((int32_t)moa_kv_bits(v / scale + 12582912.0f) - 0x4b400000); /* 3 * 2^22: the sum's last bits are the rounded whole */
}

#endif
