/* q4_0.h -- 32 weights as 4-bit codes around zero, one scale: 4.5 bits a weight.
 *
 *   byte  0   2                        18
 *        | d | q0  q1  ...        q15 |       d: half
 *              low nibbles: weights 0..15, high nibbles: weights 16..31
 *
 *   w = d * (q - 8)                           q in 0..15 */
#ifndef MOA_QUANT_Q4_0_H
#define MOA_QUANT_Q4_0_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"

enum { moa_q4_0_id = 2, moa_q4_0_len = 32 };

typedef struct moa_block_q4_0 {
    uint8_t d[2];
    uint8_t q[16];
} moa_block_q4_0;
MOA_STATIC_ASSERT(sizeof(moa_block_q4_0) == 18, "a Q4_0 block is 18 bytes");

static inline MOA_HD void moa_decode_q4_0(const void *block, float *out) {
    const moa_block_q4_0 *b = (const moa_block_q4_0 *)block;
    const float d = moa_f16_load(b->d);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b->q[i] & 15) - 8);
        out[i + 16] = d * (float)((b->q[i] >> 4) - 8);
    }
}

#endif
