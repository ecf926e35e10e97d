/* fragment.cuh -- weights as the tensor cores read them: a lane's unit of 32 packed weights, or 16 bytes of single elements, becomes the
 * registers of eight, or two, instructions m16n8k16.
 *
 *   word w of the unit: weights 4w, 4w+1, 4w+2, 4w+3     pairs {0, 2} and {1, 3}, as masking with 0x00ff00ff gives them:
 *                                                        half2 = 0x6400 | code = 1024 + code, minus 1024 + ZERO: exact
 *
 * Weights times a power of two (f16_scale), then rounded to float16: for formats with d alone the exact product rounded once, for those with
 * a minimum step and minimum once each. x in the same order: matmul_few.cu. */
#ifndef MOA_CUDA_FRAGMENT_CUH
#define MOA_CUDA_FRAGMENT_CUH

#include "cuda/matmul.cuh"

__device__ static inline uint32_t as_word(__half2 h) {
    uint32_t u;
    memcpy(&u, &h, 4);
    return u;
}
__device__ static inline __half2 as_half2(uint32_t u) {
    __half2 h;
    memcpy(&h, &u, 4);
    return h;
}
__device__ static inline __half2 both(float x) { /* finite: no weight is beyond float16 after its scale */
    return __float2half2_rn(fminf(fmaxf(x, -65504.0f), 65504.0f));
}

struct fragment_scale { /* scales, decoded */
    __half2 step[2], off;
};
/* u: the unit's number in its row */
template <typename F>
__device__ static inline fragment_scale fragment_prepare(const packed_raw<F> &r, int u, float scale) {
    const packed_step p = packed_scale<F>(r, u);
    return {{both(p.step[0] * scale), both(p.step[1] * scale)}, both(p.off * scale)};
}
/* the two registers of instruction i (0..7) */
template <typename F>
__device__ static inline void fragment_packed(const packed_raw<F> &r, const fragment_scale &p, int i,
                                              uint32_t out[2]) {
    const uint32_t c = packed_codes<F>(r, i) ^ (F::LOW == 2 ? 0x80808080u : 0u);
    const __half2 zero = as_half2((0x6400u + (F::LOW == 2 ? 128u : (uint32_t)F::ZERO)) * 0x10001u);
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const __half2 code = __hsub2(as_half2((c >> 8 * k & 0x00ff00ffu) | 0x64006400u), zero);
        if constexpr (F::KIND == SCALES_DM || F::KIND == SCALES_K)
            out[k] = as_word(__hfma2(code, p.step[0], p.off));
        else
            out[k] = as_word(__hmul2(code, p.step[i / 4]));
    }
}
/* two elements of F16 or BF16 */
template <int ID> __device__ static inline uint32_t fragment_plain(uint32_t two, float scale) {
    if constexpr (ID == moa_f16_id)
        return two;
    else
        return as_word(__floats2half2_rn(__uint_as_float(two << 16) * scale,
                                         __uint_as_float(two & 0xffff0000u) * scale));
}

/* A power of two for a row of x: its largest becomes 2^14. */
__device__ static inline float fragment_x_scale(uint32_t most) {
    return scale_to(most, 14);
}
/* 8 values of x, from a multiple of 8 on, in the order of the codes' pairs or as neighbours */
__device__ static inline uint4 fragment_x(const float v[8], float scale, bool coded) {
    __half2 h[4];
    uint4 four;
#pragma unroll
    for (int p = 0; p < 4; p++) {
        const int one = p / 2 * 4 + p % 2;
        h[p] = coded ? __floats2half2_rn(v[one] * scale, v[one + 2] * scale)
                     : __floats2half2_rn(v[2 * p] * scale, v[2 * p + 1] * scale);
    }
    memcpy(&four, h, 16);
    return four;
}

#endif
