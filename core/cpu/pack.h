/* pack.h -- quantised matrices as the fast path keeps them: 16 rows side by side.
 *
 * A block of 32 inputs of 16 rows is 8 chunks of 64 bytes; chunk c holds, for each row r, the codes of inputs 4c .. 4c+3 in
 * bytes 4r .. 4r+3. So a vector register is 16 rows x 4 inputs: one multiply-accumulate instruction adds four products into
 * each row's lane, the activations are the same for all lanes, and nothing is summed across lanes. Codes are unsigned
 * (zero points are taken off by moa_xmeta.fix, minima by moa_xmeta.sum) and stay as narrow as they were:
 *
 *   bits   bytes a block   chunk c is
 *   4      256             c < 4: low nibbles of 64 bytes at 64c; else high nibbles of those at 64(c-4)
 *   5      320             the same, and the fifth bits of chunk c as a 64-bit mask at 256 + 8c
 *   6      384             the same, and bits 2(c%4), 2(c%4)+1 of the bytes at 256 + 64(c/4)
 *   8      512             64 bytes at 64c
 *
 *   scales   bytes a block   bytes a super-block of 8 blocks
 *   D        32  (half d of each row)                              w = d q           (zero point by fix)
 *   DM       64  (half d, half m)                                  w = d q + m
 *   K        32  (u8 sc, u8 mn)        64  (half d, half dmin)      w = (d sc) q - dmin mn
 *   S6       32  (s8 sc of each half)  32  (half d)                 w = (d sc) q
 *
 * Rows beyond n_out are zero. */
#ifndef MOA_CPU_PACK_H
#define MOA_CPU_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/model/dtype.h"

enum { MOA_PACK_ROWS = 16, MOA_PACK_BLOCK = 32 };

typedef enum moa_pack_scale { MOA_SCALE_D, MOA_SCALE_DM, MOA_SCALE_K, MOA_SCALE_S6 } moa_pack_scale;

/* type, bits of a code, scales, zero point */
#define MOA_PACK_MAP(X)                                                                                      \
    X(Q4_0, 4, D, 8)                                                                                         \
    X(Q4_1, 4, DM, 0)                                                                                        \
    X(Q5_0, 5, D, 16)                                                                                        \
    X(Q5_1, 5, DM, 0)                                                                                        \
    X(Q8_0, 8, D, 128)                                                                                       \
    X(Q4_K, 4, K, 0)                                                                                         \
    X(Q5_K, 5, K, 0)                                                                                         \
    X(Q6_K, 6, S6, 32)

enum {
#define X(type, bits, scale, zero) MOA_PACK_##type,
    MOA_PACK_MAP(X)
#undef X
        MOA_N_PACK
};

typedef struct moa_pack_group { /* where a group of 16 rows begins */
    const unsigned char *q, *scale, *super;
} moa_pack_group;

typedef struct moa_pack {
    int kind; /* MOA_PACK_Q4_0 .. */
    int32_t zero;
    bool halves; /* scales for each half block: Q6_K */
    int32_t n_group, n_block;
    size_t q_bytes, scale_bytes, super_bytes; /* of a group */
    size_t bytes;                             /* of memory */
    unsigned char *
        memory; /* the caller's, zero at first: all groups' codes, then all scales, then all super-block scales */
} moa_pack;

/* is there a packed form of this type? */
bool moa_pack_has(moa_dtype type);

/* Sizes for n_out rows of n_in, which divides into blocks; the caller then sets memory to `bytes` of zeros, 64-byte aligned.
 * false: the size does not fit */
bool moa_pack_plan(moa_pack *p, moa_dtype type, int32_t n_out, int32_t n_in);
/* Packs group g; rows: the matrix as stored, row_bytes apart, n_out of them. Groups may be filled by several threads. */
void moa_pack_fill(const moa_pack *p, int32_t g, const unsigned char *rows, size_t row_bytes, int32_t n_out);

static inline moa_pack_group moa_pack_at(const moa_pack *p, int32_t g) {
    const size_t n = (size_t)p->n_group, k = (size_t)g;
    return (moa_pack_group){.q = p->memory + k * p->q_bytes,
                            .scale = p->memory + n * p->q_bytes + k * p->scale_bytes,
                            .super = p->memory + n * (p->q_bytes + p->scale_bytes) + k * p->super_bytes};
}

#endif
