/* matmul.cu -- y = x W^T (+ bias) (+ y) on packed weights, and the rows of the embedding table.
 *
 *   decode, up to 8 rows of x     own kernel on the packed rows: every weight byte is read once and serves all rows of x.
 *                                 A warp owns an output (four when x has 4 rows or more); a lane owns a unit of 32
 *                                 weights (quant.cuh), decodes it into registers and multiplies it with x, which the
 *                                 block keeps in shared memory:
 *
 *         x  (n_tok, 1024 of n_in)   | 32 floats + 4 | 32 + 4 | ...   a unit every 36 floats: eight lanes that read 16
 *                                                                     bytes each then meet 32 different banks
 *   prefill                       W is decoded to float32, at most TILE_BYTES of it at a time, and multiplied by cuBLAS with
 *                                 float32 accumulation. $MOASCOPE_CUDA_GEMM chooses the precision of the product: f32
 *                                 (agrees with the CPU), tf32, bf16 (x and W rounded to bfloat16); f16 is matmul_gemm.cu's
 *   embed                         the decoding kernel with a list of rows
 *
 * This is the first version, $MOASCOPE_CUDA_MATMUL=v1; the second (matmul.cuh) is what runs unless it is asked for.
 *
 * Sums are float32 in a fixed order, so a step repeats bit for bit.
 *
 *   version     idea                                       H100, rows of x: us, share of the measured 2811 GB/s (4096 x 4096)
 *   matvec_v1   a warp an output, a unit a lane, x in      1 row: Q4_0 8.9 us 38 %, Q8_0 12.0 us 53 %, Q4_K 13.1 us 26 %,
 *               shared; four outputs a warp from 4 rows    Q6_K 17.3 us 28 %; 8 rows: Q4_0 45.6 us 7 %                  <- best
 *   plain_v1    a warp an output, neighbouring lanes       BF16 1 row: 17.4 us 69 %, 8 rows: 75.7 us 16 %              <- best
 *               neighbouring elements
 *   (tried, slower: four outputs a warp for plain elements, 98.7 us at 8 rows of BF16)
 *   decode_v1   a unit a thread, transposed through        + cuBLAS, Q4_0 4096 x 4096, 512 rows: f32 389 us (44 TFLOP/s), tf32
 *   + cuBLAS    shared so that the writes are whole lines  81 us, bf16 52 us; NMSE 8e-14, 1.4e-7, 1.1e-5                <- best
 *   measured 2026-11-24 with  test_ops_cuda --bench matmul  (docs/measurements/2026-11-24-h100-cuda-v1.md)                */
#include <cuda_bf16.h>

#include "cuda/matmul_ring.cuh"

static constexpr int WARPS = 4, CHUNK_UNITS = 32, UNIT_STRIDE = 36;
static const size_t TILE_BYTES = (size_t)64 << 20;

/* --- decoding rows -------------------------------------------------------------------------------------- */

__device__ static inline void put(float *to, float x) {
    *to = x;
}
__device__ static inline void put(__nv_bfloat16 *to, float x) {
    *to = __float2bfloat16_rn(x);
}
__device__ static inline void put(__half *to, float x) {
    *to = __float2half_rn(x);
}

/* row blockIdx.x of out (n_in): row ids[blockIdx.x] of w, or row0 + blockIdx.x; a warp does 32 units. Ids outside give NaN. */
template <typename U, typename OUT>
__global__ static void decode_v1(const uint8_t *__restrict__ w, size_t row_bytes, int n_in, int n_out,
                                 int row0, const int32_t *__restrict__ ids, float scale,
                                 OUT *__restrict__ out) {
    __shared__ float tile[WARPS][32][U::len + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = ids ? ids[blockIdx.x] : row0 + (int)blockIdx.x;
    const int first = ((int)blockIdx.y * WARPS + warp) * 32, n_unit = n_in / U::len;
    const bool inside = row >= 0 && row < n_out;
    if (first + lane < n_unit) {
        float x[U::len];
        if (inside) U::decode(w + (size_t)row * row_bytes, first + lane, x);
#pragma unroll
        for (int i = 0; i < U::len; i++)
            tile[warp][lane][i] = inside ? x[i] : NAN;
    }
    __syncwarp();
    out += (int64_t)blockIdx.x * n_in + (int64_t)first * U::len;
    const int n = min(32, n_unit - first) * U::len;
    for (int i = lane; i < n; i += 32)
        put(out + i, scale * tile[warp][i / U::len][i % U::len]);
}

template <typename U, typename OUT>
static void decode_launch_as(moa_cuda *c, const moa_cuda_decode &j, float scale) {
    const uint8_t *data = static_cast<const uint8_t *>(j.w->data);
    const dim3 grid((unsigned)j.n_row, (unsigned)moa_ceil_div(j.w->n_in / (int)U::len, 32 * WARPS));
    decode_v1<U, OUT><<<grid, WARPS * 32, 0, c->stream>>>(data, j.w->row_bytes, j.w->n_in, j.w->n_out, j.row0,
                                                          j.ids, scale, static_cast<OUT *>(j.out));
}
template <typename U> static void decode_launch(moa_cuda *c, const moa_cuda_decode &j) {
    if (j.elem == MOA_ELEM_F32)
        decode_launch_as<U, float>(c, j, 1);
    else if (j.elem == MOA_ELEM_BF16)
        decode_launch_as<U, __nv_bfloat16>(c, j, 1);
    else
        decode_launch_as<U, __half>(c, j, j.w->f16_scale);
}

static moa_status decode_any(moa_cuda *c, const moa_cuda_decode &j, moa_err *err) {
    if (j.w->packed) return moa_cuda_unpack(c, &j, err);
    switch ((int)j.w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: decode_launch<unit_##stem>(c, j); break;
        MOA_QUANT_LIST(X)
#undef X
    default: return moa_fail(err, MOA_E_UNSUPPORTED, "weight type %d has no CUDA decoder", (int)j.w->type);
    }
    MOA_LAUNCHED(c, "decoding of a weight");
    return MOA_OK;
}

moa_status moa_cuda_decode_rows(moa_cuda *c, const moa_dev_weight *w, int32_t row0, int32_t n_row, void *out,
                                moa_cuda_elem elem, moa_err *err) {
    const moa_cuda_decode j = {w, row0, n_row, nullptr, out, elem};
    return decode_any(c, j, err);
}

moa_status moa_cuda_embed(moa_backend *b, const moa_args_embed *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    const moa_cuda_decode j = {a->w, 0, a->n_tok, a->ids, a->y, MOA_ELEM_F32};
    return decode_any(c, j, err);
}

/* --- decode: a few rows of x ---------------------------------------------------------------------------- */

struct matvec_job {
    const float *x; /* (n_tok, n_in) */
    const uint8_t *w;
    size_t row_bytes;
    const float *bias; /* (n_out) or NULL */
    float *y;          /* (n_tok, n_out) */
    int n_tok, n_in, n_out;
    bool accumulate, wide_x; /* wide_x: x is 16-byte aligned */
};

/* 4 floats; `wide`: the whole matrix is 16-byte aligned */
__device__ static inline float4 load4(const float *p, bool wide) {
    if (wide) return *reinterpret_cast<const float4 *>(p);
    return make_float4(p[0], p[1], p[2], p[3]);
}
static bool is_wide(const void *p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

/* acc[t]: this lane's part of output o for row t; the warp's first lanes write */
template <int NT>
__device__ static inline void matvec_write(const matvec_job &j, int o, const float acc[NT]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < NT; t++) {
        const float sum = warp_sum(acc[t]);
        if (lane != t || t >= j.n_tok) continue;
        float *y = j.y + (int64_t)t * j.n_out + o;
        *y = sum + (j.bias ? j.bias[o] : 0.0f) + (j.accumulate ? *y : 0.0f);
    }
}

/* rows of W a warp multiplies at once: with several rows of x the products share what is read of x */
template <int NT> struct rows_of { static constexpr int value = NT >= 4 ? 4 : 1; };

/* Rows of packed blocks, n_in a multiple of the unit's 32; grid: n_out / (WARPS * R) */
template <typename U, int NT> __global__ static void __launch_bounds__(WARPS * 32) matvec_v1(matvec_job j) {
    static_assert(U::len == 32, "a lane multiplies 32 weights");
    constexpr int R = rows_of<NT>::value;
    __shared__ alignas(16) float x[NT][CHUNK_UNITS * UNIT_STRIDE];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int o = ((int)blockIdx.x * WARPS + warp) * R, n_unit = j.n_in / 32;
    float acc[R][NT] = {};
    for (int first = 0; first < n_unit; first += CHUNK_UNITS) {
        const bool inside = first + lane < n_unit;
        float w[32];
        if (R == 1 && inside && o < j.n_out)
            U::decode(j.w + (size_t)o * j.row_bytes, first + lane, w); /* before the wait */
        __syncthreads();
        const int n = min(CHUNK_UNITS, n_unit - first) * 8; /* float4s of x in this chunk */
#pragma unroll
        for (int t = 0; t < NT; t++)
            for (int i = threadIdx.x; t < j.n_tok && i < n; i += WARPS * 32)
                *reinterpret_cast<float4 *>(&x[t][i / 8 * UNIT_STRIDE + i % 8 * 4]) =
                    load4(j.x + (int64_t)t * j.n_in + first * 32 + i * 4, j.wide_x);
        __syncthreads();
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (!inside || o + r >= j.n_out) break;
            if (R > 1) U::decode(j.w + (size_t)(o + r) * j.row_bytes, first + lane, w);
#pragma unroll
            for (int t = 0; t < NT; t++)
                if (t < j.n_tok) {
                    const float4 *at = reinterpret_cast<const float4 *>(&x[t][lane * UNIT_STRIDE]);
#pragma unroll
                    for (int i = 0; i < 8; i++) {
                        const float4 v = at[i];
                        acc[r][t] +=
                            w[4 * i] * v.x + w[4 * i + 1] * v.y + w[4 * i + 2] * v.z + w[4 * i + 3] * v.w;
                    }
                }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++)
        if (o + r < j.n_out) matvec_write<NT>(j, o + r, acc[r]);
}

/* Rows of single elements (F32, F16, BF16): lanes take neighbouring elements, so that the loads are whole lines. V elements at
 * once where the row allows it. */
template <typename U, int NT, int V>
__global__ static void __launch_bounds__(WARPS * 32) matvec_plain_v1(matvec_job j) {
    const int lane = threadIdx.x % 32, o = (int)blockIdx.x * WARPS + (int)threadIdx.x / 32;
    if (o >= j.n_out) return;
    const uint8_t *row = j.w + (size_t)o * j.row_bytes;
    float acc[NT] = {};
#pragma unroll 4
    for (int i = lane * V; i < j.n_in; i += 32 * V) {
        float w[V];
        U::template load<V>(row, i, w);
#pragma unroll
        for (int t = 0; t < NT; t++)
            if (t < j.n_tok) {
                const float *x = j.x + (int64_t)t * j.n_in + i;
                if constexpr (V == 4) {
                    const float4 v = load4(x, j.wide_x);
                    acc[t] += w[0] * v.x + w[1] * v.y + w[2] * v.z + w[3] * v.w;
                } else {
                    acc[t] += w[0] * x[0];
                }
            }
    }
    matvec_write<NT>(j, o, acc);
}

/* V elements from element i on, V * size aligned */
struct plain_f32 {
    template <int V> __device__ static inline void load(const uint8_t *row, int i, float *w) {
        copy_words<uint32_t, 4 * V>(w, row + 4 * (int64_t)i);
    }
};
template <> __device__ inline void plain_f32::load<4>(const uint8_t *row, int i, float *w) {
    copy_words<uint4, 16>(w, row + 4 * (int64_t)i);
}
struct plain_f16 {
    template <int V> __device__ static inline void load(const uint8_t *row, int i, float *w) {
        __half h[V];
        if constexpr (V == 4)
            copy_words<uint2, 8>(h, row + 2 * (int64_t)i);
        else
            copy_words<uint16_t, 2>(h, row + 2 * (int64_t)i);
#pragma unroll
        for (int k = 0; k < V; k++)
            w[k] = __half2float(h[k]);
    }
};
struct plain_bf16 {
    template <int V> __device__ static inline void load(const uint8_t *row, int i, float *w) {
        uint16_t h[V];
        if constexpr (V == 4)
            copy_words<uint2, 8>(h, row + 2 * (int64_t)i);
        else
            copy_words<uint16_t, 2>(h, row + 2 * (int64_t)i);
#pragma unroll
        for (int k = 0; k < V; k++)
            w[k] = __uint_as_float((uint32_t)h[k] << 16);
    }
};

template <typename U, int NT> static void matvec_plain_launch(moa_cuda *c, const matvec_job &j) {
    const unsigned grid = (unsigned)moa_ceil_div(j.n_out, WARPS);
    if (j.n_in % 4 == 0)
        matvec_plain_v1<U, NT, 4><<<grid, WARPS * 32, 0, c->stream>>>(j);
    else
        matvec_plain_v1<U, NT, 1><<<grid, WARPS * 32, 0, c->stream>>>(j);
}
template <typename U, int NT> static void matvec_launch(moa_cuda *c, const matvec_job &j) {
    if constexpr (std::is_same<U, unit_f32>::value)
        matvec_plain_launch<plain_f32, NT>(c, j);
    else if constexpr (std::is_same<U, unit_f16>::value)
        matvec_plain_launch<plain_f16, NT>(c, j);
    else if constexpr (std::is_same<U, unit_bf16>::value)
        matvec_plain_launch<plain_bf16, NT>(c, j);
    else
        matvec_v1<U, NT>
            <<<(unsigned)moa_ceil_div(j.n_out, WARPS * rows_of<NT>::value), WARPS * 32, 0, c->stream>>>(j);
}

template <typename U> static void matvec_by_rows(moa_cuda *c, const matvec_job &j) {
    if (j.n_tok == 1)
        matvec_launch<U, 1>(c, j);
    else if (j.n_tok == 2)
        matvec_launch<U, 2>(c, j);
    else if (j.n_tok <= 4)
        matvec_launch<U, 4>(c, j);
    else
        matvec_launch<U, 8>(c, j);
}

static moa_status matvec(moa_cuda *c, const moa_args_matmul *a, moa_err *err) {
    const matvec_job j = {a->x,
                          static_cast<const uint8_t *>(a->w->data),
                          a->w->row_bytes,
                          a->bias ? static_cast<const float *>(a->bias->data) : nullptr,
                          a->y,
                          a->n_tok,
                          a->w->n_in,
                          a->w->n_out,
                          a->accumulate,
                          is_wide(a->x)};
    switch ((int)a->w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: matvec_by_rows<unit_##stem>(c, j); break;
        MOA_QUANT_LIST(X)
#undef X
    default: return moa_fail(err, MOA_E_UNSUPPORTED, "weight type %d has no CUDA product", (int)a->w->type);
    }
    MOA_LAUNCHED(c, "matrix-vector product");
    return MOA_OK;
}

/* --- prefill: decode, then cuBLAS ----------------------------------------------------------------------- */

/* y (n_tok, n_out) += bias (n_out) */
__global__ static void add_bias_v1(float *y, const float *__restrict__ bias, int n_out, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        y[i] += bias[i % n_out];
}

__global__ static void to_bf16_v1(const float *__restrict__ x, __nv_bfloat16 *__restrict__ y, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        y[i] = __float2bfloat16_rn(x[i]);
}

moa_status moa_cuda_blas_fail(moa_cuda *c, int status, const moa_args_matmul *a, moa_err *err) {
    const cublasStatus_t s = static_cast<cublasStatus_t>(status);
    (void)cudaGetLastError();
    return moa_fail(err, s == CUBLAS_STATUS_ALLOC_FAILED ? MOA_E_MEMORY : MOA_E_DEVICE,
                    "GPU %d: the matrix product %d x %d x %d failed: %s", c->device, a->n_tok, a->w->n_out,
                    a->w->n_in, cublasGetStatusString(s));
}

static unsigned wide_grid(const moa_cuda *c, int64_t n) {
    const int64_t blocks = moa_ceil_div<int64_t>(n, 256), most = (int64_t)c->n_sm * 8;
    return (unsigned)(blocks < most ? blocks : most);
}

static moa_status gemm(moa_cuda *c, const moa_args_matmul *a, moa_err *err) {
    const moa_dev_weight *w = a->w;
    const bool half = c->gemm == MOA_GEMM_BF16;
    const size_t elem = half ? 2 : 4, row = elem * (size_t)w->n_in;
    const bool as_stored = !half && w->type == MOA_F32;
    const size_t fit = TILE_BYTES / row;
    const int32_t most = fit < 1                  ? 1
                         : fit < (size_t)w->n_out ? (int32_t)fit
                                                  : w->n_out; /* rows of W a tile holds */
    const size_t w_bytes = as_stored ? 0 : ((size_t)most * row + 255) & ~(size_t)255;
    const size_t x_bytes = half ? (size_t)a->n_tok * row : 0;
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, w_bytes + x_bytes, reinterpret_cast<void **>(&space), err));
    const void *x = a->x;
    if (half) {
        const int64_t n = (int64_t)a->n_tok * w->n_in;
        x = space + w_bytes;
        to_bf16_v1<<<wide_grid(c, n), 256, 0, c->stream>>>(
            a->x, reinterpret_cast<__nv_bfloat16 *>(space + w_bytes), n);
        MOA_LAUNCHED(c, "rounding to bfloat16");
    }
    const cudaDataType_t type = half ? CUDA_R_16BF : CUDA_R_32F;
    const cublasComputeType_t compute =
        c->gemm == MOA_GEMM_TF32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    const float one = 1.0f, zero = 0.0f, *beta = a->accumulate ? &one : &zero;
    for (int32_t row0 = 0; row0 < w->n_out; row0 += most) {
        const int32_t n_row = w->n_out - row0 < most ? w->n_out - row0 : most;
        const void *tile = space;
        if (as_stored)
            tile = static_cast<const char *>(w->data) + (size_t)row0 * row;
        else
            MOA_RETURN(
                moa_cuda_decode_rows(c, w, row0, n_row, space, half ? MOA_ELEM_BF16 : MOA_ELEM_F32, err));
        /* cuBLAS counts columns first: its W is (n_in, n_row), its x (n_in, n_tok), its y (n_out, n_tok) */
        const cublasStatus_t s = cublasGemmEx(c->blas, CUBLAS_OP_T, CUBLAS_OP_N, n_row, a->n_tok, w->n_in,
                                              &one, tile, type, w->n_in, x, type, w->n_in, beta, a->y + row0,
                                              CUDA_R_32F, w->n_out, compute, CUBLAS_GEMM_DEFAULT);
        if (s != CUBLAS_STATUS_SUCCESS) return moa_cuda_blas_fail(c, s, a, err);
    }
    if (a->bias) {
        const int64_t n = (int64_t)a->n_tok * w->n_out;
        add_bias_v1<<<wide_grid(c, n), 256, 0, c->stream>>>(a->y, static_cast<const float *>(a->bias->data),
                                                            w->n_out, n);
        MOA_LAUNCHED(c, "bias");
    }
    return MOA_OK;
}

moa_status moa_cuda_matmul(moa_backend *b, const moa_args_matmul *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    const moa_cuda_half kept = c->half;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    if (c->matmul == 2 && a->n_tok == 1 && moa_cuda_row_fits(a->w)) return moa_cuda_matmul_row(c, a, err);
    if (c->matmul == 2 && a->n_tok > 1 && a->n_tok <= c->few_max) {
        const bool ring = moa_cuda_ring_fits(c, a->w) && is_wide(a->x);
        const bool best = ring && moa_cuda_ring_best(c, a->w, a->n_tok);
        if (best) return moa_cuda_matmul_ring(c, a, err);
        if (ring && !a->w->packed) return moa_cuda_matmul_gemm(c, a, &kept, err);
        if (moa_cuda_few_fits(a->w)) return moa_cuda_matmul_few(c, a, err);
    }
    if (a->n_tok <= 8 && !a->w->packed) return matvec(c, a, err);
    return c->gemm == MOA_GEMM_F16 ? moa_cuda_matmul_gemm(c, a, &kept, err) : gemm(c, a, err);
}
