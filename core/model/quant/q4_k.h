/* q4_k.h -- 256 weights in 8 sub-blocks of 32: 4-bit codes, a 6-bit scale and minimum each: 4.5 bits a
 * weight.
 *
 *   byte  0   2      4            16                            144
 *        | d | dmin | s0 .. s11  | q0  q1  ...           q127  |       d, dmin: half
 *
 *   w = (d * scale_j) * q - dmin * min_j      weight 32 j + i, q in 0..15, scale and min in 0..63
 *
 *   q: 32 bytes serve two sub-blocks: low nibbles of q[32 k + i] are sub-block 2k, high nibbles sub-block 2k
 * + 1. s: sixteen 6-bit numbers in 12 bytes; the first four of each kind lie whole, the last four are split
 *
 *          bits 7 6 | 5..0                    bits 7..4     | 3..0
 *      s[j]   sc_{j+4} high 2 | sc_j      s[j+8]  m_{j+4} low 4 | sc_{j+4} low 4      j = 0..3
 *      s[j+4]  m_{j+4} high 2 |  m_j */
#ifndef MOA_QUANT_Q4_K_H
#define MOA_QUANT_Q4_K_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f16.h"

enum { moa_q4_k_id = 12, moa_q4_k_len = 256 };

typedef struct moa_block_q4_k {
    uint8_t d[2], dmin[2];
    uint8_t s[12];
    uint8_t q[128];
} moa_block_q4_k;
MOA_STATIC_ASSERT(sizeof(moa_block_q4_k) == 144, "a Q4_K block is 144 bytes");

/* scale and minimum of sub-block j (0..7) out of the 12 packed bytes; Q5_K packs them the same way */
static inline MOA_HD void moa_q4_k_scale(const uint8_t *s, int j, uint8_t *scale, uint8_t *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        *min = (uint8_t)((s[j + 4] >> 4) | (s[j] >> 6) << 4);
    }
}

static inline MOA_HD void moa_decode_q4_k(const void *block, float *out) {
    const moa_block_q4_k *b = (const moa_block_q4_k *)block;
    const float d = moa_f16_load(b->d), dmin = moa_f16_load(b->dmin);
    for (int j = 0; j < 8; j++) {
        uint8_t scale, min;
        moa_q4_k_scale(b->s, j, &scale, &min);
        const float step = d * (float)scale, low = dmin * (float)min;
        const uint8_t *q = b->q + 32 * (j / 2);
        const int shift = 4 * (j % 2);
        for (int i = 0; i < 32; i++)
            out[32 * j + i] = step * (float)((q[i] >> shift) & 15) - low;
    }
}

#endif
