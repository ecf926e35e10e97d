/* f16.h -- IEEE half precision, and the conversion every scaled format below needs. A "block" is one element.
 *
 *   15 14    10 9         0      exponent 0: subnormal, mantissa * 2^-24; 31: infinity or NaN;
 *    s  eeeee  mmmmmmmmmm        else (1 + mantissa/1024) * 2^(exponent - 15)
 *
 * Bits are moved, not computed: exact for all 65536 patterns (NaN payloads included), and the same on host
 * and device without asking for hardware support. */
#ifndef MOA_QUANT_F16_H
#define MOA_QUANT_F16_H

#include <stdint.h>

#include "core/base/hd.h"
#include "core/model/quant/f32.h"

enum { moa_f16_id = 1, moa_f16_len = 1 };

typedef struct moa_block_f16 {
    uint8_t x[2];
} moa_block_f16;
MOA_STATIC_ASSERT(sizeof(moa_block_f16) == 2, "an F16 element is 2 bytes");

static inline MOA_HD float moa_f16_to_f32(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, mantissa = h & 0x3ff, exponent = (h >> 10) & 31;
    if (exponent == 0) {
        const float magnitude = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24: exact */
        return sign ? -magnitude : magnitude;
    }
    if (exponent == 31) return moa_f32_from_bits(sign | 0x7f800000u | mantissa << 13);
    return moa_f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* a half stored little-endian at any address */
static inline MOA_HD float moa_f16_load(const uint8_t *at) {
    return moa_f16_to_f32((uint16_t)(at[0] | at[1] << 8));
}

static inline MOA_HD void moa_decode_f16(const void *block, float *out) {
    *out = moa_f16_load((const uint8_t *)block);
}

#endif
