/* row.cuh -- formats as the products of one row of x see them: how x lies in shared memory, how a unit of weights is multiplied
 * with it. matmul_row.cu explains the fixed point of x and its error.
 *
 *   put(s, n, i, v)      values 4 i .. 4 i + 3 of x; n units a row
 *   load(w, row, u, r)   a unit into registers
 *   dot(s, n, r, u)      its product with x */
#ifndef MOA_CUDA_ROW_CUH
#define MOA_CUDA_ROW_CUH

#include "cuda/matmul.cuh"

__device__ static inline int dot4(int codes, int x, int sum) {
    return __dp4a(codes, x, sum);
}

/* --- quantised weights ----------------------------------------------------------------------------------- */

template <typename F> struct row_packed {
    static constexpr int U = 4, UNIT = 32; /* loads in flight; weights a unit */
    typedef packed_raw<F> raw;

    __device__ static inline void load(const packed_view &w, int row, int u, raw &r) {
        packed_load<F>(w, row, u, r);
    }

    /* Eight lanes a unit, four values a lane, by whole warps: they exchange; beyond x is v 0 and nothing is written. */
    __device__ static inline void put(uint4 *s, int n, int i, float4 v) {
        const int u = i / 8, e = i % 8;
        uint32_t *words = reinterpret_cast<uint32_t *>(s);
        float *factor = reinterpret_cast<float *>(s + 4 * n);
        int *all = reinterpret_cast<int *>(factor + n), *half = all + n;
        uint32_t most = max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
#pragma unroll
        for (int lane = 1; lane < 8; lane *= 2)
            most = max(most, __shfl_xor_sync(0xffffffffu, most, lane));
        const float m = __uint_as_float(most), inverse = m > 1e-30f ? 32512.0f / m : 0.0f;
        const int q0 = __float2int_rn(v.x * inverse), q1 = __float2int_rn(v.y * inverse),
                  q2 = __float2int_rn(v.z * inverse), q3 = __float2int_rn(v.w * inverse);
        int sum = q0 + q1 + q2 + q3;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int other = __shfl_xor_sync(0xffffffffu, sum, 4);
        if (u >= n) return;
        /* q = 256 hi + lo with lo in -128..127: the low byte of q is lo, the byte above that of q + 128 is hi */
        words[(e / 4 * n + u) * 4 + e % 4] =
            bytes((q0 + 128) >> 8, (q1 + 128) >> 8, (q2 + 128) >> 8, (q3 + 128) >> 8);
        words[((2 + e / 4) * n + u) * 4 + e % 4] = bytes(q0, q1, q2, q3);
        if (e == 4) { /* of the second half */
            factor[u] = most >= 0x7f800000u ? __uint_as_float(0x7fc00000u) : m > 1e-30f ? m / 32512.0f : 0.0f;
            all[u] = sum + other;
            half[u] = sum;
        }
    }
    __device__ static inline uint32_t bytes(int a, int b, int c, int d) {
        return ((uint32_t)a & 255u) | ((uint32_t)b & 255u) << 8 | ((uint32_t)c & 255u) << 16 |
               (uint32_t)d << 24;
    }

    __device__ static inline float dot(const uint4 *s, int n, const raw &r, int u) {
        const float *factor = reinterpret_cast<const float *>(s + 4 * n);
        const int *all = reinterpret_cast<const int *>(factor + n), *half = all + n;
        int sum[2] = {};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint4 hi = s[k * n + u], lo = s[(2 + k) * n + u];
            const int c0 = (int)packed_codes<F>(r, 4 * k), c1 = (int)packed_codes<F>(r, 4 * k + 1),
                      c2 = (int)packed_codes<F>(r, 4 * k + 2), c3 = (int)packed_codes<F>(r, 4 * k + 3);
            const int high =
                dot4(c0, (int)hi.x, dot4(c1, (int)hi.y, dot4(c2, (int)hi.z, dot4(c3, (int)hi.w, 0))));
            const int low =
                dot4(c0, (int)lo.x, dot4(c1, (int)lo.y, dot4(c2, (int)lo.z, dot4(c3, (int)lo.w, 0))));
            sum[k] = 256 * high + low; /* at most 16 * 128 * 32640 */
        }
        const packed_step p = packed_scale<F>(r, u);
        float t;
        if constexpr (F::KIND == SCALES_K6)
            t = p.step[0] * (float)(sum[0] - F::ZERO * (all[u] - half[u])) +
                p.step[1] * (float)(sum[1] - F::ZERO * half[u]);
        else
            t = p.step[0] * (float)(sum[0] + sum[1] - (F::ZERO ? F::ZERO * all[u] : 0));
        if constexpr (F::KIND == SCALES_DM || F::KIND == SCALES_K) t += p.off * (float)all[u];
        return factor[u] * t;
    }
};

/* --- single elements ------------------------------------------------------------------------------------- */

template <int ID> struct row_plain {
    static constexpr int U = 8, SIZE = ID == moa_f32_id ? 4 : 2, UNIT = 16 / SIZE;
    typedef uint4 raw;

    __device__ static inline void load(const packed_view &w, int row, int u, raw &r) {
        r = load_stream(w.low + 16 * ((int64_t)row * w.n_unit + u));
    }
    /* planes of 4 values: [UNIT / 4][n_unit] float4 */
    __device__ static inline void put(uint4 *s, int n, int i, float4 v) {
        constexpr int P = UNIT / 4;
        if (i / P < n) reinterpret_cast<float4 *>(s)[i % P * n + i / P] = v;
    }
    __device__ static inline float2 pair(uint32_t two) {
        if constexpr (ID == moa_bf16_id)
            return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
        else
            return make_float2(half_bits(two & 0xffffu), half_bits(two >> 16));
    }
    __device__ static inline float dot(const uint4 *s, int n, const raw &r, int u) {
        const float4 *x = reinterpret_cast<const float4 *>(s);
        const float4 a = x[u];
        if constexpr (ID == moa_f32_id)
            return __uint_as_float(r.x) * a.x + __uint_as_float(r.y) * a.y + __uint_as_float(r.z) * a.z +
                   __uint_as_float(r.w) * a.w;
        const float4 b = x[n + u];
        const float2 w0 = pair(r.x), w1 = pair(r.y), w2 = pair(r.z), w3 = pair(r.w);
        return (w0.x * a.x + w0.y * a.y + w1.x * a.z + w1.y * a.w) +
               (w2.x * b.x + w2.y * b.y + w3.x * b.z + w3.y * b.w);
    }
};

/* shared memory that x takes; 0: not for these products */
static inline size_t row_shared_bytes(const moa_dev_weight *w) {
    if (w->packed) return (size_t)(w->n_in / 32) * 76;
    if (w->n_in % (w->type == MOA_F32 ? 4 : 8) != 0) return 0;
    return (size_t)w->n_in * 4;
}

#endif
