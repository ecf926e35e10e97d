#include "core/cpu/pack.h"

#include <string.h>

#include "core/base/size.h"
#include "core/model/quant/q4_k.h" /* moa_q4_k_scale */

static const struct kind {
    moa_dtype type;
    int bits;
    moa_pack_scale scale;
    int32_t zero;
} kinds[MOA_N_PACK] = {
#define X(type, bits, scale, zero) {MOA_##type, bits, MOA_SCALE_##scale, zero},
    MOA_PACK_MAP(X)
#undef X
};

static const size_t scale_bytes[] = {
    [MOA_SCALE_D] = 32, [MOA_SCALE_DM] = 64, [MOA_SCALE_K] = 32, [MOA_SCALE_S6] = 32};
static const size_t super_bytes[] = {
    [MOA_SCALE_D] = 0, [MOA_SCALE_DM] = 0, [MOA_SCALE_K] = 64, [MOA_SCALE_S6] = 32};

static int kind_of(moa_dtype type) {
    for (int k = 0; k < MOA_N_PACK; k++)
        if (kinds[k].type == type) return k;
    return -1;
}

bool moa_pack_has(moa_dtype type) {
    return kind_of(type) >= 0;
}

bool moa_pack_plan(moa_pack *p, moa_dtype type, int32_t n_out, int32_t n_in) {
    const int kind = kind_of(type);
    const struct kind *k = &kinds[kind];
    *p = (moa_pack){.kind = kind,
                    .zero = k->zero,
                    .halves = k->scale == MOA_SCALE_S6,
                    .n_group = (n_out - 1) / MOA_PACK_ROWS + 1,
                    .n_block = n_in / MOA_PACK_BLOCK};
    const size_t n_block = (size_t)p->n_block;
    p->q_bytes = n_block * 64 * (size_t)k->bits;
    p->scale_bytes = n_block * scale_bytes[k->scale];
    p->super_bytes = (n_block + 7) / 8 * super_bytes[k->scale];
    return moa_size_mul(p->q_bytes + p->scale_bytes + p->super_bytes, (size_t)p->n_group, &p->bytes);
}

/* --- one block of one row, as codes and scales --------------------------------------------------------------------------- */

typedef struct block {
    uint8_t q[MOA_PACK_BLOCK];
    uint8_t scale[4]; /* two halves, or sc and mn; as the packed form has them */
    uint8_t super[4];
} block;

/* bit 4 of input i's code is bit i of the four bytes */
static void fifth_bits(block *b, const uint8_t *high) {
    for (int i = 0; i < 32; i++)
        b->q[i] |= (uint8_t)((high[i / 8] >> i % 8 & 1) << 4);
}

static void nibbles(block *b, const uint8_t *q) {
    for (int i = 0; i < 16; i++) {
        b->q[i] = q[i] & 15;
        b->q[i + 16] = q[i] >> 4;
    }
}

/* sub-block j of a Q4_K or Q5_K block: d, dmin, 12 bytes of scales, then (Q5_K: 32 bytes of fifth bits and) 128 bytes */
static void block_k(block *b, const uint8_t *at, int j, bool five) {
    const uint8_t *q = at + (five ? 48 : 16) + 32 * (j / 2);
    memcpy(b->super, at, 4);
    moa_q4_k_scale(at + 4, j, &b->scale[0], &b->scale[1]);
    for (int i = 0; i < 32; i++) {
        b->q[i] = q[i] >> 4 * (j % 2) & 15;
        if (five) b->q[i] |= (uint8_t)((at[16 + i] >> j & 1) << 4);
    }
}

static void block_6(block *b, const uint8_t *at, int group) {
    const int r = group % 4;
    const uint8_t *l = at + 64 * (group / 4) + 32 * (r % 2), *h = at + 128 + 32 * (group / 4);
    for (int i = 0; i < 32; i++)
        b->q[i] = (uint8_t)((l[i] >> 4 * (r / 2) & 15) | (h[i] >> 2 * r & 3) << 4);
    memcpy(b->scale, at + 192 + 2 * group, 2);
    memcpy(b->super, at + 208, 2);
}

/* block n of a row as stored */
static void block_read(block *b, int kind, const uint8_t *row, int32_t n) {
    const uint8_t *at;
    switch (kind) {
    case MOA_PACK_Q4_0:
        at = row + (size_t)n * 18;
        memcpy(b->scale, at, 2);
        nibbles(b, at + 2);
        break;
    case MOA_PACK_Q4_1:
        at = row + (size_t)n * 20;
        memcpy(b->scale, at, 4);
        nibbles(b, at + 4);
        break;
    case MOA_PACK_Q5_0:
        at = row + (size_t)n * 22;
        memcpy(b->scale, at, 2);
        nibbles(b, at + 6);
        fifth_bits(b, at + 2);
        break;
    case MOA_PACK_Q5_1:
        at = row + (size_t)n * 24;
        memcpy(b->scale, at, 4);
        nibbles(b, at + 8);
        fifth_bits(b, at + 4);
        break;
    case MOA_PACK_Q8_0:
        at = row + (size_t)n * 34;
        memcpy(b->scale, at, 2);
        for (int i = 0; i < 32; i++)
            b->q[i] = at[2 + i] ^ 0x80; /* int8 + 128 */
        break;
    case MOA_PACK_Q4_K: block_k(b, row + (size_t)(n / 8) * 144, n % 8, false); break;
    case MOA_PACK_Q5_K: block_k(b, row + (size_t)(n / 8) * 176, n % 8, true); break;
    default: block_6(b, row + (size_t)(n / 8) * 210, n % 8); break;
    }
}

/* --- into the packed form ------------------------------------------------------------------------------------------------ */

static void put_codes(unsigned char *out, int bits, int r, const uint8_t *q) {
    uint8_t low[16], high[8] = {0};
    if (bits == 8) {
        for (int c = 0; c < 8; c++)
            memcpy(out + 64 * c + 4 * r, q + 4 * c, 4);
        return;
    }
    for (int i = 0; i < 16; i++)
        low[i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
    for (int c = 0; c < 4; c++)
        memcpy(out + 64 * c + 4 * r, low + 4 * c, 4);
    if (bits == 5) {
        for (int i = 0; i < 32; i++)
            high[i / 4] |= (uint8_t)((q[i] >> 4) << i % 4);
        for (int c = 0; c < 8; c++)
            out[256 + 8 * c + r / 2] |= (unsigned char)(high[c] << r % 2 * 4);
    }
    if (bits == 6) {
        for (int i = 0; i < 32; i++)
            high[i / 16 * 4 + i % 4] |= (uint8_t)((q[i] >> 4) << i / 4 % 4 * 2);
        memcpy(out + 256 + 4 * r, high, 4);
        memcpy(out + 320 + 4 * r, high + 4, 4);
    }
}

static void put_scales(unsigned char *scale, unsigned char *super, moa_pack_scale form, int r,
                       const block *b) {
    switch (form) {
    case MOA_SCALE_DM: memcpy(scale + 32 + 2 * r, b->scale + 2, 2); /* fall through */
    case MOA_SCALE_D: memcpy(scale + 2 * r, b->scale, 2); break;
    case MOA_SCALE_K: memcpy(super + 32 + 2 * r, b->super + 2, 2); /* fall through */
    case MOA_SCALE_S6:
        scale[r] = b->scale[0];
        scale[16 + r] = b->scale[1];
        memcpy(super + 2 * r, b->super, 2);
    }
}

void moa_pack_fill(const moa_pack *p, int32_t g, const unsigned char *rows, size_t row_bytes, int32_t n_out) {
    const struct kind *k = &kinds[p->kind];
    const moa_pack_group at = moa_pack_at(p, g);
    const size_t q = at.q - p->memory, s = at.scale - p->memory,
                 u = at.super - p->memory; /* the same, writable */
    for (int r = 0; r < MOA_PACK_ROWS && g * MOA_PACK_ROWS + r < n_out; r++)
        for (int32_t n = 0; n < p->n_block; n++) {
            block b = {0};
            block_read(&b, p->kind, rows + (size_t)(g * MOA_PACK_ROWS + r) * row_bytes, n);
            put_codes(p->memory + q + (size_t)n * 64 * (size_t)k->bits, k->bits, r, b.q);
            put_scales(p->memory + s + (size_t)n * scale_bytes[k->scale],
                       p->memory + u + (size_t)(n / 8) * super_bytes[k->scale], k->scale, r, &b);
        }
}
