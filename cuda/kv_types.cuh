/* kv_types.cuh -- how kernels read the cache's types (kv_page.h). An element type T stands for each:
 *
 *   float  __half  __nv_bfloat16      load8() gives eight values
 *   moa_q8                            load8() gives eight codes; kv_scale makes values of them
 *
 * kv_scale<T> is a page's scales as one thread needs them, its columns c .. c + 7 of K and a token at a time of V. For the types
 * without scales it is empty and its factors are the constant 1, so that one kernel serves all types at no cost to these. */
#ifndef MOA_CUDA_KV_TYPES_CUH
#define MOA_CUDA_KV_TYPES_CUH

#include <cuda_bf16.h>

#include "cuda/cuda_common.cuh"

struct moa_q8 {
    int8_t code;
};

/* pages of q8 are not 128 rows alone */
template <> __device__ inline moa_q8 *moa_kv<moa_q8>::page(int seq, int head_kv, int p) const {
    if (p >= max_pages) return nullptr;
    const int32_t at = table[seq * seq_stride + (int64_t)head_kv * max_pages + p];
    return at < 0 ? nullptr : pool + at * (int64_t)moa_kv_page_bytes(MOA_KV_Q8, d_head);
}

__device__ static inline void load8(const __nv_bfloat16 *p, float out[8]) {
    const uint4 raw = *reinterpret_cast<const uint4 *>(p);
    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[2 * i] = __uint_as_float(word[i] << 16);
        out[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}
/* four codes as floats */
__device__ static inline void codes4(uint32_t word, float out[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = (float)(int8_t)(word >> 8 * i);
}
__device__ static inline void load8(const moa_q8 *p, float out[8]) {
    const uint2 raw = *reinterpret_cast<const uint2 *>(p);
    codes4(raw.x, out);
    codes4(raw.y, out + 4);
}

template <typename T> struct kv_scale {
    __device__ inline void of_k(const T *, int, int) {}
    __device__ inline void apply_k(float *) const {}
    __device__ static inline float of_v(const T *, int, int) { return 1.0f; }
};
template <> struct kv_scale<moa_q8> {
    float step[8];
    /* columns c .. c + 7 of K */
    __device__ inline void of_k(const moa_q8 *page, int d_head, int c) {
        const uint2 raw =
            *reinterpret_cast<const uint2 *>(page + (int)moa_kv_k_exponent_at(d_head) + c);
#pragma unroll
        for (int i = 0; i < 8; i++)
            step[i] = __uint_as_float(((i < 4 ? raw.x : raw.y) >> 8 * (i % 4) & 255u) << 23);
    }
    __device__ inline void apply_k(float x[8]) const {
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] = (x[i] + 0.5f) * step[i];
    }
    /* of the page's token r */
    __device__ static inline float of_v(const moa_q8 *page, int d_head, int r) {
        return reinterpret_cast<const float *>(page + (int)moa_kv_v_scale_at(d_head))[r];
    }
};

/* columns c .. c + 7 of K and of V of a page's token r, as values */
template <typename T> __device__ static inline void load8_k(const T *page, int d_head, int r, int c, float out[8]) {
    kv_scale<T> scale;
    scale.of_k(page, d_head, c);
    load8(page + r * d_head + c, out);
    scale.apply_k(out);
}
template <typename T> __device__ static inline void load8_v(const T *page, int d_head, int r, int c, float out[8]) {
    const float scale = kv_scale<T>::of_v(page, d_head, r);
    load8(page + (MOA_PAGE_TOK + r) * d_head + c, out);
#pragma unroll
    for (int i = 0; i < 8; i++)
        out[i] *= scale;
}

/* Calls do_it(T()) with the element type of a cache; a host function's way from the enum to a template. */
template <typename F> static inline auto kv_with_type(moa_kv_type type, F do_it) {
    switch (type) {
    case MOA_KV_F32: return do_it(float());
    case MOA_KV_BF16: return do_it(__nv_bfloat16());
    case MOA_KV_Q8: return do_it(moa_q8());
    default: return do_it(__half());
    }
}

#endif
