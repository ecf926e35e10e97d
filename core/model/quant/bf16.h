/* bf16.h -- the upper half of a single: 8 exponent bits, 7 of mantissa. A "block" is one element. Exact. */
#ifndef MOA_QUANT_BF16_H
#define MOA_QUANT_BF16_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f32.h"

enum { moa_bf16_id = 30, moa_bf16_len = 1 };

typedef struct moa_block_bf16 {
    uint8_t x[2];
} moa_block_bf16;
MOA_STATIC_ASSERT(sizeof(moa_block_bf16) == 2, "a BF16 element is 2 bytes");

static inline MOA_HD void moa_decode_bf16(const void *block, float *out) {
    const uint8_t *at = (const uint8_t *)block;
    *out = moa_f32_from_bits((uint32_t)at[0] << 16 | (uint32_t)at[1] << 24);
}

#endif
