/* q5_1.h -- 32 weights as 5-bit codes above a minimum, one scale: 6 bits a weight. The fifth bits lie apart.
 *
 *   byte  0   2   4          8                        24
 *        | d | m | h0 .. h3 | q0  q1  ...        q15 |       d, m: half; bit i of h (little-endian 32): fifth
 * bit of weight i low nibbles: weights 0..15, high nibbles: weights 16..31
 *
 *   w = d * q + m                                            q in 0..31 */
#ifndef MOA_QUANT_Q5_1_H
#define MOA_QUANT_Q5_1_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"

enum { moa_q5_1_id = 7, moa_q5_1_len = 32 };

typedef struct moa_block_q5_1 {
    uint8_t d[2], m[2], h[4];
    uint8_t q[16];
} moa_block_q5_1;
MOA_STATIC_ASSERT(sizeof(moa_block_q5_1) == 24, "a Q5_1 block is 24 bytes");

static inline MOA_HD void moa_decode_q5_1(const void *block, float *out) {
    const moa_block_q5_1 *b = (const moa_block_q5_1 *)block;
    const float d = moa_f16_load(b->d), m = moa_f16_load(b->m);
    for (int i = 0; i < 16; i++) {
        const int high0 = (b->h[i / 8] >> (i % 8)) & 1, high1 = (b->h[2 + i / 8] >> (i % 8)) & 1;
        out[i] = d * (float)((b->q[i] & 15) | high0 << 4) + m;
        out[i + 16] = d * (float)((b->q[i] >> 4) | high1 << 4) + m;
    }
}

#endif
