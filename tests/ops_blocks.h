/* ops_blocks.h -- random weights of every type for programs that compare operations: block by block, with scales that keep the
 * values near those of a model. */
#ifndef MOA_TESTS_OPS_BLOCKS_H
#define MOA_TESTS_OPS_BLOCKS_H

#include <stdlib.h>
#include <string.h>

#include "core/engine/backend.h"

static uint64_t block_rng; /* not 0 */

static uint32_t bits(void) {
    block_rng ^= block_rng << 13;
    block_rng ^= block_rng >> 7;
    block_rng ^= block_rng << 17;
    return (uint32_t)(block_rng >> 32);
}
static float normal(void) { /* of variance 1, with an outlier now and then */
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(bits() >> 8) * 0x1p-24f - 0.5f;
    return sum * 1.7320508f * (bits() % 101 == 0 ? 15.0f : 1.0f);
}

/* where the half-precision scales of a block lie, and their size */
typedef struct scales {
    moa_dtype type;
    int at[2]; /* -1: none */
    uint16_t size[2];
} scales;
static const scales places[] = {
    {MOA_Q4_0, {0, -1}, {0x2100, 0}},     {MOA_Q4_1, {0, 2}, {0x2100, 0x2d00}},
    {MOA_Q5_0, {0, -1}, {0x1d00, 0}},     {MOA_Q5_1, {0, 2}, {0x1d00, 0x2d00}},
    {MOA_Q8_0, {0, -1}, {0x1400, 0}},     {MOA_Q4_K, {0, 2}, {0x0d00, 0x1800}},
    {MOA_Q5_K, {0, 2}, {0x0b00, 0x1800}}, {MOA_Q6_K, {208, -1}, {0x0700, 0}},
};
static void fill_block(moa_dtype type, const moa_dtype_info *info, unsigned char *block) {
    if (type == MOA_F32 || type == MOA_F16 || type == MOA_BF16) {
        const float x = normal() * 0.05f;
        uint32_t b;
        memcpy(&b, &x, 4);
        const uint16_t brain = (uint16_t)(b >> 16),
                       half = (uint16_t)(0x2400u + bits() % 0x800u + (bits() & 1) * 0x8000u);
        memcpy(block,
               type == MOA_F32   ? (const void *)&x
               : type == MOA_F16 ? (const void *)&half
                                 : (const void *)&brain,
               info->block_bytes);
        return;
    }
    for (size_t i = 0; i < info->block_bytes; i++)
        block[i] = (unsigned char)bits();
    for (size_t p = 0; p < sizeof places / sizeof *places; p++)
        for (int k = 0; k < 2; k++) {
            const uint16_t scale =
                (uint16_t)(places[p].size[k] + bits() % 0x200u + (bits() % 3 == 0) * 0x8000u);
            if (places[p].type == type && places[p].at[k] >= 0) memcpy(block + places[p].at[k], &scale, 2);
        }
}
#endif
