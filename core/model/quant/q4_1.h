/* q4_1.h -- 32 weights as 4-bit codes above a minimum, one scale: 5 bits a weight.
 *
 *   byte  0   2   4                        20
 *        | d | m | q0  q1  ...        q15 |       d, m: half
 *                  low nibbles: weights 0..15, high nibbles: weights 16..31
 *
 *   w = d * q + m                                 q in 0..15 */
#ifndef MOA_QUANT_Q4_1_H
#define MOA_QUANT_Q4_1_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"

enum { moa_q4_1_id = 3, moa_q4_1_len = 32 };

typedef struct moa_block_q4_1 {
    uint8_t d[2], m[2];
    uint8_t q[16];
} moa_block_q4_1;
MOA_STATIC_ASSERT(sizeof(moa_block_q4_1) == 20, "a Q4_1 block is 20 bytes");

static inline MOA_HD void moa_decode_q4_1(const void *block, float *out) {
    const moa_block_q4_1 *b = (const moa_block_q4_1 *)block;
    const float d = moa_f16_load(b->d), m = moa_f16_load(b->m);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b->q[i] & 15) + m;
        out[i + 16] = d * (float)(b->q[i] >> 4) + m;
    }
}

#endif
