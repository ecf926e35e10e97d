/* step_flow.cuh -- how the activations of a whole decode step go from the blocks that make them to those that read them.
 *
 *   flow      what one phase of one layer reads, in global memory, laid out as it will lie in shared memory. Before the launch every
 *             word of it is MISSING. Whoever makes a value writes it there in its final form; a reader asks for all its vectors at once and
 *             again for those of which a word is MISSING still. No counter, no fence, no second round trip: what a reader sees there is
 *             data, and nothing else that a block writes is read by another before the launch ends (parts of long attention have a
 *             ticket of their own). Each phase of each layer has words of its own: none is written twice
 *   group     16 values, made by one block and put to fixed point there, once: q = 255 hi + lo with hi and lo in -127..127, so that no
 *             byte of them is 0x80 and a word of them never MISSING; floats that would be are 0 instead (they are -1e-38)
 *
 *   packed    uint4 hi of groups 0, 2, 4 .. [n_unit] | hi of 1, 3 .. | lo of 0, 2 .. | lo of 1, 3 .. | float4 {f0, f0 sum0, f1, f1 sum1}
 *             a unit is 32 values, x = f q
 *   plain     planes of float4, as row.cuh's
 *   norm      the values are x times the norm's vector; behind them stands the sum of squares of x of every group. What a row's factor
 *             1 / sqrt(mean + eps) multiplies is the finished sum of products, so nobody waits for it before them */
#ifndef MOA_CUDA_STEP_FLOW_CUH
#define MOA_CUDA_STEP_FLOW_CUH

#include "cuda/step_ring.cuh"

static constexpr uint32_t MISSING = 0x80808080u;

/* vectors of 16 bytes that n_unit units take, for the products of a type */
__host__ __device__ static inline int flow_vectors(int type, int n_unit) {
    return type < TYPE_f32 ? 5 * n_unit : type == TYPE_f32 ? n_unit : 2 * n_unit;
}

__device__ static inline float never_missing(float x) {
    return __float_as_uint(x) == MISSING ? 0.0f : x;
}
__device__ static inline float4 never_missing(const float4 &v) {
    return make_float4(never_missing(v.x), never_missing(v.y), never_missing(v.z), never_missing(v.w));
}
__device__ static inline bool is_missing(const uint4 &v) {
    return v.x == MISSING || v.y == MISSING || v.z == MISSING || v.w == MISSING;
}
__device__ static inline uint4 flow_load(const uint4 *p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
/* GLOBAL: into a flow; otherwise to shared memory, where nobody waits for a word */
template <bool GLOBAL> __device__ static inline void flow_store(uint32_t *p, uint32_t x) {
    if constexpr (GLOBAL)
        asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
    else
        *p = x;
}
template <bool GLOBAL> __device__ static inline void flow_store(float2 *p, const float2 &x) {
    if constexpr (GLOBAL)
        asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x.x), "f"(x.y) : "memory");
    else
        *p = x;
}
template <bool GLOBAL> __device__ static inline void flow_store(float4 *p, const float4 &x) {
    if constexpr (GLOBAL)
        asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(x.x), "f"(x.y),
                     "f"(x.z), "f"(x.w)
                     : "memory");
    else
        *p = x;
}

__device__ static inline uint32_t four_bytes(const int q[4]) {
    return __byte_perm(__byte_perm((uint32_t)q[0], (uint32_t)q[1], 0x0040),
                       __byte_perm((uint32_t)q[2], (uint32_t)q[3], 0x0040), 0x5410);
}

/* Values 4 e .. 4 e + 3 of group g by lane e = lane % 4; whole warps, which exchange; what is not `valid` is not written. */
template <bool GLOBAL>
__device__ static inline void flow_put(uint4 *to, int type, int n_unit, int g, float4 v, bool valid) {
    const int e = threadIdx.x % 4;
    if (type >= TYPE_f32) {
        const int planes = type == TYPE_f32 ? 1 : 2, i = 4 * g + e;
        if (valid)
            flow_store<GLOBAL>(reinterpret_cast<float4 *>(to + i % planes * n_unit + i / planes),
                               never_missing(v));
        return;
    }
    uint32_t most = max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
    most = max(most, __shfl_xor_sync(ALL, most, 1));
    most = max(most, __shfl_xor_sync(ALL, most, 2));
    const float m = __uint_as_float(most), inverse = m > 1e-30f ? 32512.0f / m : 0.0f;
    const float x[4] = {v.x, v.y, v.z, v.w};
    int sum = 0, hi[4], lo[4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int q =
            max(min(__float2int_rn(x[k] * inverse), 32512), -32512); /* of infinity and NaN as well */
        hi[k] = __float2int_rn((float)q * (1.0f / 255.0f));
        lo[k] = q - 255 * hi[k];
        sum += q;
    }
    sum += __shfl_xor_sync(ALL, sum, 1);
    sum += __shfl_xor_sync(ALL, sum, 2);
    if (!valid) return;
    uint32_t *const high = reinterpret_cast<uint32_t *>(to + g % 2 * n_unit + g / 2) + e;
    flow_store<GLOBAL>(high, four_bytes(hi));
    flow_store<GLOBAL>(high + 8 * n_unit, four_bytes(lo));
    if (e != 0) return;
    const float f = most >= 0x7f800000u ? __uint_as_float(0x7fc00000u) : m > 1e-30f ? m / 32512.0f : 0.0f;
    flow_store<GLOBAL>(reinterpret_cast<float2 *>(to + 4 * n_unit) + g,
                       make_float2(f, never_missing(f * (float)sum)));
}
__device__ static inline float squares(const float4 &v) {
    return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
}
/* the same where a norm follows: w of these four; squares is where the sums of the groups go */
template <bool GLOBAL>
__device__ static inline void flow_put_norm(uint4 *to, float *sums, int type, int n_unit, int g, float4 v,
                                            const float4 &w, bool valid) {
    float sum = squares(v);
    sum += __shfl_xor_sync(ALL, sum, 1);
    sum += __shfl_xor_sync(ALL, sum, 2);
    if (valid && threadIdx.x % 4 == 0)
        flow_store<GLOBAL>(reinterpret_cast<uint32_t *>(sums) + g, __float_as_uint(sum));
    flow_put<GLOBAL>(to, type, n_unit, g, make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w), valid);
}

/* n vectors of a flow to shared memory, by the whole block; a barrier is the caller's */
__device__ static inline void flow_take(const uint4 *from, uint4 *to, int n) {
    constexpr int R = 9; /* 14336 values in one go */
    for (int base = threadIdx.x; base < n; base += R * STEP_THREADS) {
        uint4 v[R];
#pragma unroll
        for (int r = 0; r < R; r++)
            if (base + r * STEP_THREADS < n) v[r] = flow_load(from + base + r * STEP_THREADS);
        for (bool again = true; again;) {
            again = false;
#pragma unroll
            for (int r = 0; r < R; r++)
                if (base + r * STEP_THREADS < n && is_missing(v[r])) {
                    v[r] = flow_load(from + base + r * STEP_THREADS);
                    again = true;
                }
        }
#pragma unroll
        for (int r = 0; r < R; r++)
            if (base + r * STEP_THREADS < n) to[base + r * STEP_THREADS] = v[r];
    }
}

/* a unit's product with x as flow_put() leaves it */
template <typename F> struct flow_packed {
    __device__ static inline float dot(const uint4 *s, int n, const packed_raw<F> &r, int u) {
        const float4 f = reinterpret_cast<const float4 *>(s + 4 * n)[u];
        float sum[2];
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint4 hi = s[k * n + u], lo = s[(2 + k) * n + u];
            const int c0 = (int)packed_codes<F>(r, 4 * k), c1 = (int)packed_codes<F>(r, 4 * k + 1),
                      c2 = (int)packed_codes<F>(r, 4 * k + 2), c3 = (int)packed_codes<F>(r, 4 * k + 3);
            const int high =
                dot4(c0, (int)hi.x, dot4(c1, (int)hi.y, dot4(c2, (int)hi.z, dot4(c3, (int)hi.w, 0))));
            const int low =
                dot4(c0, (int)lo.x, dot4(c1, (int)lo.y, dot4(c2, (int)lo.z, dot4(c3, (int)lo.w, 0))));
            sum[k] = (float)(255 * high + low); /* at most 16 * 128 * 32512 */
        }
        const packed_step p = packed_scale<F>(r, u);
        float t;
        if constexpr (F::KIND == SCALES_K6)
            t = p.step[0] * (f.x * sum[0] - (float)F::ZERO * f.y) +
                p.step[1] * (f.z * sum[1] - (float)F::ZERO * f.w);
        else
            t = p.step[0] * (f.x * sum[0] + f.z * sum[1] - (float)F::ZERO * (f.y + f.w));
        if constexpr (F::KIND == SCALES_DM || F::KIND == SCALES_K) t += p.off * (f.y + f.w);
        return t;
    }
};

#endif
