/* packed.cuh -- block formats as the second version's products read them: repacked when a weight is loaded.
 *
 * A GGUF block of 18, 20, 22, 34 or 210 bytes lies on even addresses at best: a thread reads it two bytes at a time. Here a matrix
 * becomes streams, each of them row-major over (row, unit), a unit being 32 weights along n_in, so that a warp's 32 lanes read
 * 512 neighbouring bytes in 16-byte pieces:
 *
 *   low     16 bytes a unit: byte i = low four bits of weight i | of weight 16 + i << 4          all but Q8_0
 *           Q8_0: two planes a row, [n_unit x 16 bytes: weights 0..15][n_unit x 16 bytes: 16..31]
 *   high    the bits above the fourth, so placed that one shift and one mask bring them over the low ones:
 *           Q5_x: 4 bytes, bit 8 b + j      = fifth bit of weight 4 j + b                         j = 0..7, b = 0..3
 *           Q6_K: 8 bytes, bits 8 b + 2 j.. = high two of weight 4 j + b, second word: 16 + 4 j + b    j = 0..3
 *   scale   Q4_0, Q5_0, Q8_0: half d;   Q4_1, Q5_1: half d, half m;   Q6_K: two int8 (weights 0..15, 16..31)
 *   head    Q4_K, Q5_K: 16 bytes for 8 units: half d, half dmin, eight times 6 bits of scale and 6 of minimum, in order
 *           Q6_K: half d for 8 units
 *
 *   matrix  | low ... | high ... | scale ... | head ... |      each on 256 bytes; as many bytes as GGUF's, but for that
 *
 * Nothing is rounded: a code stays the code and a scale the bits it was. Every format is then the same sum,
 *
 *   w = step[i / 16] * (code - ZERO) + off           code: byte i % 4 of word i / 4 of eight words (signed in Q8_0)
 *
 * whose value is the host decoder's to the last bit (its products are exact in float32). F32, F16 and BF16 need none of this. */
#ifndef MOA_CUDA_PACKED_CUH
#define MOA_CUDA_PACKED_CUH

#include <cstring>

#include "cuda/quant.cuh"

enum packed_scales { SCALES_D, SCALES_DM, SCALES_K, SCALES_K6 };

/* LOW: 16-byte vectors a unit; HIGH, SCALE: bytes a unit; HEAD: bytes for 8 units */
template <int LOW_, int HIGH_, int SCALE_, int HEAD_, int ZERO_, packed_scales KIND_> struct packed_format {
    static constexpr int LOW = LOW_, HIGH = HIGH_, SCALE = SCALE_, HEAD = HEAD_, ZERO = ZERO_;
    static constexpr packed_scales KIND = KIND_;
};
typedef packed_format<1, 0, 2, 0, 8, SCALES_D> packed_q4_0;
typedef packed_format<1, 0, 4, 0, 0, SCALES_DM> packed_q4_1;
typedef packed_format<1, 4, 2, 0, 16, SCALES_D> packed_q5_0;
typedef packed_format<1, 4, 4, 0, 0, SCALES_DM> packed_q5_1;
typedef packed_format<2, 0, 2, 0, 0, SCALES_D> packed_q8_0;
typedef packed_format<1, 0, 0, 16, 0, SCALES_K> packed_q4_k;
typedef packed_format<1, 4, 0, 16, 0, SCALES_K> packed_q5_k;
typedef packed_format<1, 8, 2, 2, 32, SCALES_K6> packed_q6_k;

#define MOA_PACKED_MAP(X) X(q4_0) X(q4_1) X(q5_0) X(q5_1) X(q8_0) X(q4_k) X(q5_k) X(q6_k)

struct packed_view {
    uint8_t *low, *high, *scale, *head;
    int n_unit; /* of a row */
};

/* bytes of a packed matrix, and where its streams lie from `base` on */
template <typename F>
static inline size_t packed_place(uint8_t *base, int n_out, int n_unit, packed_view *v) {
    const size_t n = (size_t)n_out * (size_t)n_unit;
    const size_t sizes[4] = {n * 16 * F::LOW, n * F::HIGH, n * F::SCALE, n / 8 * F::HEAD};
    size_t at[4], end = 0;
    for (int i = 0; i < 4; i++) {
        at[i] = end;
        end += (sizes[i] + 255) & ~(size_t)255;
    }
    *v = {base + at[0], base + at[1], base + at[2], base + at[3], n_unit};
    return end;
}

/* --- reading -------------------------------------------------------------------------------------------- */

/* a unit as it lies in memory, in registers */
template <typename F> struct packed_raw {
    uint32_t q[4 * F::LOW];
    uint32_t h[F::HIGH ? F::HIGH / 4 : 1];
    uint32_t s[F::KIND == SCALES_K ? 4 : F::KIND == SCALES_K6 ? 2 : 1];
};

/* read once and not again: does not push x out of the L1 */
__device__ static inline uint4 load_stream(const void *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
__device__ static inline void store4(uint32_t *to, uint4 v) {
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

template <typename F>
__device__ static inline void packed_load(const packed_view &v, int row, int u, packed_raw<F> &r) {
    const int64_t first = (int64_t)row * v.n_unit, at = first + u;
#pragma unroll
    for (int p = 0; p < F::LOW; p++)
        store4(r.q + 4 * p, load_stream(v.low + 16 * (F::LOW * first + (int64_t)p * v.n_unit + u)));
    if constexpr (F::HIGH == 4) r.h[0] = __ldg(reinterpret_cast<const uint32_t *>(v.high) + at);
    if constexpr (F::HIGH == 8) {
        const uint2 h = __ldg(reinterpret_cast<const uint2 *>(v.high) + at);
        r.h[0] = h.x, r.h[F::HIGH / 4 - 1] = h.y;
    }
    if constexpr (F::SCALE == 2) r.s[0] = __ldg(reinterpret_cast<const uint16_t *>(v.scale) + at);
    if constexpr (F::SCALE == 4) r.s[0] = __ldg(reinterpret_cast<const uint32_t *>(v.scale) + at);
    if constexpr (F::KIND == SCALES_K) {
        const uint4 head = __ldg(reinterpret_cast<const uint4 *>(v.head) + at / 8);
        r.s[0] = head.x, r.s[1 % (sizeof r.s / 4)] = head.y;
        r.s[2 % (sizeof r.s / 4)] = head.z, r.s[3 % (sizeof r.s / 4)] = head.w;
    }
    if constexpr (F::KIND == SCALES_K6)
        r.s[1 % (sizeof r.s / 4)] = __ldg(reinterpret_cast<const uint16_t *>(v.head) + at / 8);
}
/* a unit that is not there: weights of zero */
template <typename F> __device__ static inline void packed_none(packed_raw<F> &r) {
    memset(&r, 0, sizeof r);
}

/* codes of weights 4 w .. 4 w + 3, a byte each */
template <typename F> __device__ static inline uint32_t packed_codes(const packed_raw<F> &r, int w) {
    if constexpr (F::LOW == 2) return r.q[w];
    uint32_t c = r.q[w % 4] >> 4 * (w / 4) & 0x0f0f0f0fu;
    if constexpr (F::HIGH == 4) c |= (w < 4 ? r.h[0] << (4 - w) : r.h[0] >> (w - 4)) & 0x10101010u;
    if constexpr (F::HIGH == 8) {
        const uint32_t h = r.h[w / 4 * (F::HIGH / 4 - 1)];
        c |= (w % 4 < 2 ? h << (4 - 2 * (w % 4)) : h >> (2 * (w % 4) - 4)) & 0x30303030u;
    }
    return c;
}

struct packed_step {
    float step[2], off; /* step[0]: weights 0..15 */
};
/* u: the unit's number in its row */
template <typename F> __device__ static inline packed_step packed_scale(const packed_raw<F> &r, int u) {
    packed_step p;
    p.off = 0;
    if constexpr (F::KIND == SCALES_K) {
        const int j = u % 8, bit = 12 * j % 32; /* 12 bits from bit 12 j on of the last three words */
        const uint32_t from = j < 3 ? r.s[1] : j < 6 ? r.s[2] : r.s[3], next = j < 3 ? r.s[2] : r.s[3];
        const uint32_t both = __funnelshift_r(from, next, (uint32_t)bit);
        p.step[0] = p.step[1] = half_bits(r.s[0] & 0xffffu) * (float)(both & 63u);
        p.off = -(half_bits(r.s[0] >> 16) * (float)(both >> 6 & 63u));
    } else if constexpr (F::KIND == SCALES_K6) {
        const float d = half_bits(r.s[1]);
        p.step[0] = d * (float)(int8_t)(r.s[0] & 255u);
        p.step[1] = d * (float)(int8_t)(r.s[0] >> 8 & 255u);
    } else {
        p.step[0] = p.step[1] = half_bits(r.s[0] & 0xffffu);
        if constexpr (F::KIND == SCALES_DM) p.off = half_bits(r.s[0] >> 16);
    }
    return p;
}

/* the 32 weights, as the host decodes them */
template <typename F>
__device__ static inline void packed_decode(const packed_raw<F> &r, int u, float w[32]) {
    const packed_step p = packed_scale<F>(r, u);
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const uint32_t c = packed_codes<F>(r, i / 4) >> 8 * (i % 4) & 255u;
        const int code = F::LOW == 2 ? (int)(int8_t)c : (int)c - F::ZERO;
        w[i] = p.step[i / 16] * (float)code;
        if constexpr (F::KIND == SCALES_DM || F::KIND == SCALES_K) w[i] += p.off;
    }
}

/* --- repacking ------------------------------------------------------------------------------------------- */

/* the codes and scales of unit u of a row as GGUF has them, into the streams */
struct packed_unit {
    uint8_t code[32];
    uint32_t scale; /* what goes to the scale stream */
};

template <typename F>
__device__ static inline void packed_store(const packed_view &v, int row, int u, const packed_unit &x) {
    const int64_t first = (int64_t)row * v.n_unit, at = first + u;
    uint32_t q[8] = {}, h[2] = {};
#pragma unroll
    for (int i = 0; i < 32; i++) {
        const uint32_t c = x.code[i], b = (uint32_t)i % 4, j = (uint32_t)i / 4;
        if (F::LOW == 2)
            q[j] |= c << 8 * b;
        else
            q[j % 4] |= (c & 15u) << (8 * b + 4 * (j / 4));
        if (F::HIGH == 4) h[0] |= (c >> 4 & 1u) << (8 * b + j);
        if (F::HIGH == 8) h[j / 4] |= (c >> 4 & 3u) << (8 * b + 2 * (j % 4));
    }
#pragma unroll
    for (int p = 0; p < F::LOW; p++)
        *reinterpret_cast<uint4 *>(v.low + 16 * (F::LOW * first + (int64_t)p * v.n_unit + u)) =
            make_uint4(q[4 * p], q[4 * p + 1], q[4 * p + 2], q[4 * p + 3]);
    if (F::HIGH == 4) reinterpret_cast<uint32_t *>(v.high)[at] = h[0];
    if (F::HIGH == 8) reinterpret_cast<uint2 *>(v.high)[at] = make_uint2(h[0], h[1]);
    if (F::SCALE == 2) reinterpret_cast<uint16_t *>(v.scale)[at] = (uint16_t)x.scale;
    if (F::SCALE == 4) reinterpret_cast<uint32_t *>(v.scale)[at] = x.scale;
}

__device__ static inline uint32_t half_at(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

/* unit u of a GGUF row of format F; unit 0 of a K block writes the head too. One overload a format. */
#define UNPACK(stem)                                                                                         \
    __device__ static inline void packed_unpack_##stem(const uint8_t *row, int u, packed_unit &x)
UNPACK(q4_0) {
    const uint8_t *b = row + (int64_t)u * sizeof(moa_block_q4_0);
    for (int i = 0; i < 32; i++)
        x.code[i] = b[2 + i % 16] >> 4 * (i / 16) & 15;
    x.scale = half_at(b);
}
UNPACK(q4_1) {
    const uint8_t *b = row + (int64_t)u * sizeof(moa_block_q4_1);
    for (int i = 0; i < 32; i++)
        x.code[i] = b[4 + i % 16] >> 4 * (i / 16) & 15;
    x.scale = half_at(b) | half_at(b + 2) << 16;
}
UNPACK(q5_0) {
    const uint8_t *b = row + (int64_t)u * sizeof(moa_block_q5_0);
    for (int i = 0; i < 32; i++)
        x.code[i] = (uint8_t)((b[6 + i % 16] >> 4 * (i / 16) & 15) | (b[2 + i / 8] >> i % 8 & 1) << 4);
    x.scale = half_at(b);
}
UNPACK(q5_1) {
    const uint8_t *b = row + (int64_t)u * sizeof(moa_block_q5_1);
    for (int i = 0; i < 32; i++)
        x.code[i] = (uint8_t)((b[8 + i % 16] >> 4 * (i / 16) & 15) | (b[4 + i / 8] >> i % 8 & 1) << 4);
    x.scale = half_at(b) | half_at(b + 2) << 16;
}
UNPACK(q8_0) {
    const uint8_t *b = row + (int64_t)u * sizeof(moa_block_q8_0);
    for (int i = 0; i < 32; i++)
        x.code[i] = b[2 + i];
    x.scale = half_at(b);
}
UNPACK(q4_k) {
    const uint8_t *b = row + (int64_t)(u / 8) * sizeof(moa_block_q4_k);
    const int j = u % 8;
    for (int i = 0; i < 32; i++)
        x.code[i] = b[16 + 32 * (j / 2) + i] >> 4 * (j % 2) & 15;
    x.scale = 0;
}
UNPACK(q5_k) {
    const uint8_t *b = row + (int64_t)(u / 8) * sizeof(moa_block_q5_k);
    const int j = u % 8;
    for (int i = 0; i < 32; i++)
        x.code[i] = (uint8_t)((b[48 + 32 * (j / 2) + i] >> 4 * (j % 2) & 15) | (b[16 + i] >> j & 1) << 4);
    x.scale = 0;
}
UNPACK(q6_k) {
    const uint8_t *b = row + (int64_t)(u / 8) * sizeof(moa_block_q6_k);
    const int j = u % 8, r = j % 4;
    const uint8_t *l = b + 64 * (j / 4) + 32 * (r % 2), *h = b + 128 + 32 * (j / 4);
    for (int i = 0; i < 32; i++)
        x.code[i] = (uint8_t)((l[i] >> 4 * (r / 2) & 15) | (h[i] >> 2 * r & 3) << 4);
    x.scale = half_at(b + 192 + 2 * j);
}
#undef UNPACK

/* the head of the K block that begins with unit u */
template <typename F>
__device__ static inline void packed_head(const uint8_t *row, const packed_view &v, int at_row, int u) {
    const int64_t at = ((int64_t)at_row * v.n_unit + u) / 8;
    if constexpr (F::KIND == SCALES_K) {
        const uint8_t *b =
            row + (int64_t)(u / 8) * (F::HIGH ? sizeof(moa_block_q5_k) : sizeof(moa_block_q4_k));
        uint32_t w[3] = {};
#pragma unroll
        for (int j = 0; j < 8; j++) {
            uint8_t scale, min;
            moa_q4_k_scale(b + 4, j, &scale, &min);
            const uint32_t field = scale | (uint32_t)min << 6;
            w[12 * j / 32] |= field << 12 * j % 32;
            if (12 * j % 32 > 20) w[12 * j / 32 + 1] |= field >> (32 - 12 * j % 32);
        }
        reinterpret_cast<uint4 *>(v.head)[at] =
            make_uint4(half_at(b) | half_at(b + 2) << 16, w[0], w[1], w[2]);
    }
    if constexpr (F::KIND == SCALES_K6)
        reinterpret_cast<uint16_t *>(v.head)[at] =
            (uint16_t)half_at(row + (int64_t)(u / 8) * sizeof(moa_block_q6_k) + 208);
}

#endif
