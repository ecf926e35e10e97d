/* quant.cuh -- block formats as kernels read them: in units of at most 32 weights, one unit a thread.
 *
 *   row of a matrix   | block | block | ...            a block: 32 weights, or 256 of a K format, or one element
 *   units             |u0|u1|.. |                      the block itself, or one of a K block's eight sub-blocks of 32
 *
 * What a block means is core/model/quant's business alone: a thread copies its block into registers with the widest loads the
 * block's size allows (blocks of 18, 22, 34 bytes lie on even addresses only) and decodes it with the host's own function.
 * A format of 32 that core adds works here unseen. The K formats would make a thread hold 256 weights: their sub-blocks are
 * read separately below (the products insist on units of 32, so a new one of 256 does not compile until it is added). */
#ifndef MOA_CUDA_QUANT_CUH
#define MOA_CUDA_QUANT_CUH

#include "cuda/cuda_common.cuh"

#include "quant_include.h"
#include "quant_list.h"

/* bytes from device memory into registers; WORD: the widest type that divides the block's size */
template <typename WORD, int BYTES> __device__ static inline void copy_words(void *to, const void *from) {
    WORD words[BYTES / sizeof(WORD)];
#pragma unroll
    for (int i = 0; i < (int)(BYTES / sizeof(WORD)); i++)
        words[i] = __ldg(static_cast<const WORD *>(from) + i);
    memcpy(to, words, BYTES);
}
template <int BYTES> __device__ static inline void copy_block(void *to, const void *from) {
    if constexpr (BYTES % 16 == 0)
        copy_words<uint4, BYTES>(to, from);
    else if constexpr (BYTES % 4 == 0)
        copy_words<uint32_t, BYTES>(to, from);
    else if constexpr (BYTES % 2 == 0)
        copy_words<uint16_t, BYTES>(to, from);
    else
        copy_words<uint8_t, BYTES>(to, from);
}

/* one for each format: len weights a unit; decode(row, u, out): unit u of a row (len floats) */
#define X(stem)                                                                                              \
    struct whole_##stem {                                                                                    \
        enum { len = moa_##stem##_len };                                                                     \
        __device__ static inline void decode(const void *row, int u, float *out) {                           \
            moa_block_##stem block;                                                                          \
            copy_block<sizeof block>(&block, static_cast<const moa_block_##stem *>(row) + u);                \
            moa_decode_##stem(&block, out);                                                                  \
        }                                                                                                    \
    };
MOA_QUANT_LIST(X)
#undef X

/* the unit a format is read in: the whole block, but for the K formats below */
#define X(stem) typedef whole_##stem unit_##stem;
#define unit_q4_k unit_q4_k_whole
#define unit_q5_k unit_q5_k_whole
#define unit_q6_k unit_q6_k_whole
MOA_QUANT_LIST(X)
#undef unit_q4_k
#undef unit_q5_k
#undef unit_q6_k
#undef X

__device__ static inline float half_bits(uint32_t bits) {
    return __half2float(__ushort_as_half((unsigned short)bits));
}
__device__ static inline int byte_of(const uint32_t *words, int i) {
    return (int)(words[i / 4] >> 8 * (i % 4) & 255u);
}

/* scale and minimum of sub-block j, times d and dmin: the first 16 bytes of a Q4_K or Q5_K block */
__device__ static inline void k_scale(const uint8_t *block, int j, float *step, float *low) {
    uint32_t head[4];
    copy_words<uint4, 16>(head, block);
    uint8_t s[12], scale, min;
    memcpy(s, head + 1, 12);
    /* j varies over a warp's threads; both cases are computed from registers, so that s is never indexed by it */
    uint32_t sc = 0, mn = 0;
#pragma unroll
    for (int k = 0; k < 8; k++) {
        moa_q4_k_scale(s, k, &scale, &min);
        if (k == j) sc = scale, mn = min;
    }
    *step = half_bits(head[0] & 0xffffu) * (float)sc;
    *low = half_bits(head[0] >> 16) * (float)mn;
}

struct unit_q4_k {
    enum { len = 32 };
    __device__ static inline void decode(const void *row, int u, float *out) {
        const uint8_t *block = static_cast<const uint8_t *>(row) + (int64_t)(u / 8) * sizeof(moa_block_q4_k);
        const int j = u % 8, shift = 4 * (j % 2);
        float step, low;
        k_scale(block, j, &step, &low);
        uint32_t q[8];
        copy_words<uint4, 32>(q, block + 16 + 32 * (j / 2));
#pragma unroll
        for (int i = 0; i < 32; i++)
            out[i] = step * (float)(byte_of(q, i) >> shift & 15) - low;
    }
};

struct unit_q5_k {
    enum { len = 32 };
    __device__ static inline void decode(const void *row, int u, float *out) {
        const uint8_t *block = static_cast<const uint8_t *>(row) + (int64_t)(u / 8) * sizeof(moa_block_q5_k);
        const int j = u % 8, shift = 4 * (j % 2);
        float step, low;
        k_scale(block, j, &step, &low);
        uint32_t h[8], q[8];
        copy_words<uint4, 32>(h, block + 16);
        copy_words<uint4, 32>(q, block + 48 + 32 * (j / 2));
#pragma unroll
        for (int i = 0; i < 32; i++)
            out[i] = step * (float)((byte_of(q, i) >> shift & 15) | (byte_of(h, i) >> j & 1) << 4) - low;
    }
};

struct unit_q6_k {
    enum { len = 32 };
    __device__ static inline void decode(const void *row, int u, float *out) {
        const uint8_t *block = static_cast<const uint8_t *>(row) + (int64_t)(u / 8) * sizeof(moa_block_q6_k);
        const int group = u % 8, r = group % 4;
        uint32_t l[8], h[8];
        copy_words<uint16_t, 32>(l, block + 64 * (group / 4) + 32 * (r % 2));
        copy_words<uint16_t, 32>(h, block + 128 + 32 * (group / 4));
        const uint16_t scales = __ldg(reinterpret_cast<const uint16_t *>(block + 192 + 2 * group));
        const float d = half_bits(__ldg(reinterpret_cast<const uint16_t *>(block + 208)));
        const float step0 = d * (float)(int8_t)(scales & 255), step1 = d * (float)(int8_t)(scales >> 8);
#pragma unroll
        for (int i = 0; i < 32; i++) {
            const int q = (byte_of(l, i) >> 4 * (r / 2) & 15) | (byte_of(h, i) >> 2 * r & 3) << 4;
            out[i] = (i < 16 ? step0 : step1) * (float)(q - 32);
        }
    }
};

#endif
