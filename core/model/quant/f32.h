/* f32.h -- IEEE single precision, little-endian: norms and biases are stored so. A "block" is one element. */
#ifndef MOA_QUANT_F32_H
#define MOA_QUANT_F32_H

#include <stdint.h>
#include <string.h>

#include "core/base/hd.h"

enum { moa_f32_id = 0, moa_f32_len = 1 };

typedef struct moa_block_f32 {
    uint8_t x[4];
} moa_block_f32;
MOA_STATIC_ASSERT(sizeof(moa_block_f32) == 4, "an F32 element is 4 bytes");

/* the float with these bits */
static inline MOA_HD float moa_f32_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline MOA_HD void moa_decode_f32(const void *block, float *out) {
    memcpy(out, block, 4);
}

#endif
