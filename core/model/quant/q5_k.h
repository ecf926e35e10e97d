/* q5_k.h -- Q4_K with a fifth bit for every weight: 256 weights in 8 sub-blocks of 32, 5.5 bits a weight.
 *
 *   byte  0   2      4            16             48                          176
 *        | d | dmin | s0 .. s11  | h0  ...  h31 | q0  q1  ...         q127  |       d, dmin: half
 *
 *   w = (d * scale_j) * q - dmin * min_j      weight 32 j + i, q in 0..31; s and q as in q4_k.h
 *
 *   h: bit j of h[i] is the fifth bit of weight 32 j + i. */
#ifndef MOA_QUANT_Q5_K_H
#define MOA_QUANT_Q5_K_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"
#include "core/model/quant/q4_k.h"

enum { moa_q5_k_id = 13, moa_q5_k_len = 256 };

typedef struct moa_block_q5_k {
    uint8_t d[2], dmin[2];
    uint8_t s[12];
    uint8_t h[32];
    uint8_t q[128];
} moa_block_q5_k;
MOA_STATIC_ASSERT(sizeof(moa_block_q5_k) == 176, "a Q5_K block is 176 bytes");

static inline MOA_HD void moa_decode_q5_k(const void *block, float *out) {
    const moa_block_q5_k *b = (const moa_block_q5_k *)block;
    const float d = moa_f16_load(b->d), dmin = moa_f16_load(b->dmin);
    for (int j = 0; j < 8; j++) {
        uint8_t scale, min;
        moa_q4_k_scale(b->s, j, &scale, &min);
        const float step = d * (float)scale, low = dmin * (float)min;
        const uint8_t *q = b->q + 32 * (j / 2);
        const int shift = 4 * (j % 2);
        for (int i = 0; i < 32; i++) {
            const int code = ((q[i] >> shift) & 15) | ((b->h[i] >> j) & 1) << 4;
            out[32 * j + i] = step * (float)code - low;
        }
    }
}

#endif
