/* q6_k.h -- 256 weights in 16 sub-blocks of 16: 6-bit codes around zero, a signed 8-bit scale each: 6.56 bits
 * a weight.
 *
 *   byte  0                128             192           208  210
 *        | l0  ...   l127 | h0  ...   h63 | s0 ... s15  | d |       d: half; s: int8
 *
 *   w = (d * s[n / 16]) * (q - 32)            weight n, q in 0..63
 *
 *   The block is two halves of 128 weights; half k has 64 bytes of l and 32 bytes of h. Within a half, weight
 * 32 r + i (r = 0..3, i = 0..31) takes its low four bits from l[32 (r % 2) + i] (low nibble for r < 2, high
 * nibble else) and its high two bits from bits 2r, 2r + 1 of h[i]. */
#ifndef MOA_QUANT_Q6_K_H
#define MOA_QUANT_Q6_K_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"

enum { moa_q6_k_id = 14, moa_q6_k_len = 256 };

typedef struct moa_block_q6_k {
    uint8_t l[128];
    uint8_t h[64];
    int8_t s[16];
    uint8_t d[2];
} moa_block_q6_k;
MOA_STATIC_ASSERT(sizeof(moa_block_q6_k) == 210, "a Q6_K block is 210 bytes");

static inline MOA_HD void moa_decode_q6_k(const void *block, float *out) {
    const moa_block_q6_k *b = (const moa_block_q6_k *)block;
    const float d = moa_f16_load(b->d);
    for (int group = 0; group < 8; group++) { /* 32 weights: half group / 4, r = group % 4 */
        const int r = group % 4;
        const uint8_t *l = b->l + 64 * (group / 4) + 32 * (r % 2), *h = b->h + 32 * (group / 4);
        for (int i = 0; i < 32; i++) {
            const int q = ((l[i] >> 4 * (r / 2)) & 15) | ((h[i] >> 2 * r) & 3) << 4;
            const float step = d * (float)b->s[2 * group + i / 16];
            out[32 * group + i] = step * (float)(q - 32);
        }
    }
}

#endif
