/* q5_0.h -- 32 weights as 5-bit codes around zero, one scale: 5.5 bits a weight. The fifth bits lie apart.
 *
 *   byte  0   2          6                        22
 *        | d | h0 .. h3 | q0  q1  ...        q15 |       d: half; bit i of h (little-endian 32): fifth bit of
 * weight i low nibbles: weights 0..15, high nibbles: weights 16..31
 *
 *   w = d * (q - 16)                                     q in 0..31 */
#ifndef MOA_QUANT_Q5_0_H
#define MOA_QUANT_Q5_0_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"

enum { moa_q5_0_id = 6, moa_q5_0_len = 32 };

typedef struct moa_block_q5_0 {
    uint8_t d[2], h[4];
    uint8_t q[16];
} moa_block_q5_0;
MOA_STATIC_ASSERT(sizeof(moa_block_q5_0) == 22, "a Q5_0 block is 22 bytes");

static inline MOA_HD void moa_decode_q5_0(const void *block, float *out) {
    const moa_block_q5_0 *b = (const moa_block_q5_0 *)block;
    const float d = moa_f16_load(b->d);
    for (int i = 0; i < 16; i++) {
        const int high0 = (b->h[i / 8] >> (i % 8)) & 1, high1 = (b->h[2 + i / 8] >> (i % 8)) & 1;
        out[i] = d * (float)(((b->q[i] & 15) | high0 << 4) - 16);
        out[i + 16] = d * (float)(((b->q[i] >> 4) | high1 << 4) - 16);
    }
}

#endif
