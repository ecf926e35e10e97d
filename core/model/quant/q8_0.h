/* q8_0.h -- 32 weights as signed bytes, one scale: 8.5 bits a weight.
 *
 *   byte  0   2                        34
 *        | d | q0  q1  ...        q31 |       d: half; q: int8
 *
 *   w = d * q                                 q in -128..127 */
#ifndef MOA_QUANT_Q8_0_H
#define MOA_QUANT_Q8_0_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"

enum { moa_q8_0_id = 8, moa_q8_0_len = 32 };

typedef struct moa_block_q8_0 {
    uint8_t d[2];
    int8_t q[32];
} moa_block_q8_0;
MOA_STATIC_ASSERT(sizeof(moa_block_q8_0) == 34, "a Q8_0 block is 34 bytes");

static inline MOA_HD void moa_decode_q8_0(const void *block, float *out) {
    const moa_block_q8_0 *b = (const moa_block_q8_0 *)block;
    const float d = moa_f16_load(b->d);
    for (int i = 0; i < 32; i++)
        out[i] = d * (float)b->q[i];
}

#endif
