/* matmul_gemm.cu -- y = x W^T for many rows of x: both become float16, cuBLAS multiplies with float32 sums.
 *
 *   W     decoded to float16 times its power of two (matmul_pack.cu), all of it where TILE_BYTES hold it: of the 14336 inputs of a
 *         feed-forward's last product 64 MiB held 2340 rows, and cuBLAS made the two odd parts at 240 TFLOP/s instead of 600. What must
 *         be cut is cut into equal parts of whole 256 rows. F16 is taken as stored
 *   x     a row as it is where its largest magnitude lies in 2^-8 .. 2^15, else times the power of two that brings it there; what is
 *         already in y is then scaled with it, and all of the row back afterwards. The row stays in registers between
 *         looking for its largest and rounding it. The same x right after (q, k, v; gate, up) is not rounded again
 *
 *   workspace  | x | what undoes its scale | W |      x first: it lies where it lay, whatever W
 *
 * The gradient dx = dy W (the influence profile's) is made likewise, of the same W and of dy in the place of x.
 *
 * Rounding both once costs NMSE 9e-8 (tf32, which cuts both to the same 11 bits but does not round: 1.4e-7 measured, at half the rate
 * of the tensor cores). $MOASCOPE_CUDA_GEMM=f32 is the exact one (matmul.cu), tf32 and bf16 are there to compare. */
#include "cuda/bwd.cuh"
#include "cuda/matmul.cuh"

static const size_t TILE_BYTES = (size_t)128 << 20;
enum { THREADS = 256, X_THREADS = 512, PART_ROWS = 256, FINISH_ROWS = 4 };

/* --- x to float16 --------------------------------------------------------------------------------------- */

struct half_x_job {
    const float *x; /* (n_tok, n_in) */
    __half *to;
    float *back, *y; /* (n_tok); (n_tok, n_out), scaled where the row is and `accumulate` */
    int n_in, n_out;
    bool accumulate;
};

__device__ static inline uint32_t magnitude4(float4 v) {
    return max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
}
__device__ static inline void store_half4(__half *to, float4 v, float scale) {
    __half2 h[2] = {__floats2half2_rn(v.x * scale, v.y * scale), __floats2half2_rn(v.z * scale, v.w * scale)};
    uint2 four;
    memcpy(&four, h, 8);
    *reinterpret_cast<uint2 *>(to) = four;
}

/* `most`: of this thread; the row's scale, on all threads. What is in y is brought to it, and it is noted. */
__device__ static inline float row_scale(const half_x_job &j, uint32_t most, uint32_t *s) {
    most = block_max_bits(most, s);
    const bool fine = most == 0 || (most >= magnitude(0x1p-8f) && most < magnitude(0x1p15f));
    const float scale = fine ? 1.0f : scale_to(most, 10);
    float *y = j.y + (int64_t)blockIdx.x * j.n_out;
    for (int i = threadIdx.x; !fine && j.accumulate && i < j.n_out; i += (int)blockDim.x)
        y[i] *= scale;
    if (threadIdx.x == 0) j.back[blockIdx.x] = 1.0f / scale;
    return scale;
}

/* a block a row, V float4 a thread; x is 16-byte aligned and n_in a multiple of 4 */
template <int V> __global__ static void __launch_bounds__(X_THREADS) half_x_v3(half_x_job j) {
    __shared__ uint32_t s[32];
    const float4 *x = reinterpret_cast<const float4 *>(j.x + (int64_t)blockIdx.x * j.n_in);
    __half *to = j.to + (int64_t)blockIdx.x * j.n_in;
    float4 v[V];
    uint32_t most = 0;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int i = (int)threadIdx.x + k * (int)blockDim.x;
        v[k] = 4 * i < j.n_in ? x[i] : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < V; k++)
        most = max(most, magnitude4(v[k]));
    const float scale = row_scale(j, most, s);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int i = (int)threadIdx.x + k * (int)blockDim.x;
        if (4 * i < j.n_in) store_half4(to + 4 * i, v[k], scale);
    }
}

/* rows of any length and alignment */
__global__ static void __launch_bounds__(X_THREADS) half_x_v2(half_x_job j) {
    __shared__ uint32_t s[32];
    const float *x = j.x + (int64_t)blockIdx.x * j.n_in;
    __half *to = j.to + (int64_t)blockIdx.x * j.n_in;
    uint32_t most = 0;
    for (int i = threadIdx.x; i < j.n_in; i += (int)blockDim.x)
        most = max(most, magnitude(x[i]));
    const float scale = row_scale(j, most, s);
    for (int i = threadIdx.x; i < j.n_in; i += (int)blockDim.x)
        to[i] = __float2half_rn(x[i] * scale);
}

static moa_status half_x(moa_cuda *c, const half_x_job &j, int n_tok, moa_err *err) {
    const bool wide = j.n_in % 4 == 0 && reinterpret_cast<uintptr_t>(j.x) % 16 == 0;
    const int n = j.n_in / 4, each = !wide ? 0 : moa_ceil_div(n, (int)X_THREADS);
    const int v = each <= 1 ? 1 : each <= 2 ? 2 : each <= 4 ? 4 : 8;
    const unsigned rows = (unsigned)n_tok, threads = 32u * (unsigned)moa_ceil_div(moa_ceil_div(n, v), 32);
    if (!wide || each > 8)
        half_x_v2<<<rows, X_THREADS, 0, c->stream>>>(j);
    else if (v == 1)
        half_x_v3<1><<<rows, threads, 0, c->stream>>>(j);
    else if (v == 2)
        half_x_v3<2><<<rows, threads, 0, c->stream>>>(j);
    else if (v == 4)
        half_x_v3<4><<<rows, threads, 0, c->stream>>>(j);
    else
        half_x_v3<8><<<rows, threads, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "rounding to float16");
    return MOA_OK;
}

/* --- W to float16 --------------------------------------------------------------------------------------- */

/* n elements, a multiple of 8, times scale; a thread eight of them. WORD: float32, or the bits of bfloat16 */
template <typename WORD>
__global__ static void __launch_bounds__(THREADS)
    half_w_v2(const WORD *__restrict__ w, int64_t n, float scale, __half *__restrict__ to) {
    constexpr int VECTORS = (int)sizeof(WORD) / 2;
    const int64_t at = 8 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (at >= n) return;
    uint32_t word[4 * VECTORS];
    float x[8];
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        store4(word + 4 * k, load_stream(reinterpret_cast<const uint4 *>(w + at) + k));
#pragma unroll
    for (int k = 0; k < 8; k++)
        x[k] = __uint_as_float(sizeof(WORD) == 4 ? word[k % (4 * VECTORS)]
                               : k % 2           ? word[k / 2] & 0xffff0000u
                                                 : word[k / 2] << 16);
    store_half4(to + at, make_float4(x[0], x[1], x[2], x[3]), scale);
    store_half4(to + at + 4, make_float4(x[4], x[5], x[6], x[7]), scale);
}

static moa_status half_w(moa_cuda *c, const moa_dev_weight *w, int32_t row0, int32_t n_row, void *to,
                         moa_err *err) {
    const bool whole = w->n_in % 8 == 0 && (w->type == MOA_F32 || w->type == MOA_BF16);
    if (!whole) return moa_cuda_decode_rows(c, w, row0, n_row, to, MOA_ELEM_F16, err);
    const int64_t n = (int64_t)n_row * w->n_in;
    const unsigned grid = (unsigned)moa_ceil_div<int64_t>(n / 8, THREADS);
    const char *from = static_cast<const char *>(w->data) + (size_t)row0 * w->row_bytes;
    if (w->type == MOA_F32)
        half_w_v2<<<grid, THREADS, 0, c->stream>>>(reinterpret_cast<const float *>(from), n, w->f16_scale,
                                                   static_cast<__half *>(to));
    else
        half_w_v2<<<grid, THREADS, 0, c->stream>>>(reinterpret_cast<const uint16_t *>(from), n, w->f16_scale,
                                                   static_cast<__half *>(to));
    MOA_LAUNCHED(c, "rounding of a weight to float16");
    return MOA_OK;
}

/* --- the product ------------------------------------------------------------------------------------------ */

/* y = y * back + bias, a block a row */
__global__ static void __launch_bounds__(THREADS)
    finish_v2(float *y, const float *__restrict__ back, const float *__restrict__ bias, int n_out) {
    const float f = back[blockIdx.x];
    y += (int64_t)blockIdx.x * n_out;
    for (int i = threadIdx.x; i < n_out; i += THREADS)
        y[i] = y[i] * f + bias[i];
}
/* y = y * back, a warp some rows: nothing is to be done for most of them, and finding that out should not take a block each */
__global__ static void __launch_bounds__(THREADS) unscale_v2(float *y, const float *__restrict__ back, int n_tok, int n_out) {
    const int lane = threadIdx.x % 32, row = ((int)blockIdx.x * THREADS + (int)threadIdx.x) / 32 * FINISH_ROWS;
    const float mine = lane < FINISH_ROWS && row + lane < n_tok ? back[row + lane] : 1.0f;
    for (int r = 0; r < FINISH_ROWS; r++) {
        const float f = __shfl_sync(0xffffffffu, mine, r);
        if (f == 1.0f) continue;
        float *to = y + (int64_t)(row + r) * n_out;
        for (int i = lane; i < n_out; i += 32)
            to[i] *= f;
    }
}
static moa_status finish(moa_cuda *c, float *y, const float *back, const float *bias, int n_tok, int n_out, moa_err *err) {
    if (bias)
        finish_v2<<<(unsigned)n_tok, THREADS, 0, c->stream>>>(y, back, bias, n_out);
    else
        unscale_v2<<<(unsigned)moa_ceil_div(n_tok, FINISH_ROWS * THREADS / 32), THREADS, 0, c->stream>>>(y, back, n_tok, n_out);
    MOA_LAUNCHED(c, "bias and scale of a product's rows");
    return MOA_OK;
}

static size_t pad256(size_t bytes) {
    return (bytes + 255) & ~(size_t)255;
}

/* rows of W that are decoded at once */
static int32_t part_rows(const moa_dev_weight *w) {
    const size_t fit = TILE_BYTES / (2 * (size_t)w->n_in);
    if (w->type == MOA_F16 || fit >= (size_t)w->n_out) return w->n_out;
    if (fit < PART_ROWS) return fit < 1 ? 1 : (int32_t)fit;
    const int32_t n_part = moa_ceil_div(w->n_out, (int32_t)(fit / PART_ROWS * PART_ROWS));
    return moa_ceil_div(moa_ceil_div(w->n_out, n_part), (int32_t)PART_ROWS) * PART_ROWS;
}

size_t moa_cuda_gemm_bytes(const moa_dev_weight *w, int32_t n_tok) {
    const size_t row = 2 * (size_t)w->n_in;
    const size_t tile = w->type == MOA_F16 ? 0 : (size_t)part_rows(w) * row;
    return pad256((size_t)n_tok * row) + pad256((size_t)n_tok * sizeof(float)) + tile;
}

static bool apart(const moa_args_matmul *a) {
    const float *x_end = a->x + (int64_t)a->n_tok * a->w->n_in, *y_end = a->y + (int64_t)a->n_tok * a->w->n_out;
    return a->y >= x_end || a->x >= y_end;
}

moa_status moa_cuda_matmul_gemm(moa_cuda *c, const moa_args_matmul *a, const moa_cuda_half *kept, moa_err *err) {
    const moa_dev_weight *w = a->w;
    const size_t row = 2 * (size_t)w->n_in, x_bytes = pad256((size_t)a->n_tok * row);
    const int32_t most = part_rows(w);
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, moa_cuda_gemm_bytes(w, a->n_tok), reinterpret_cast<void **>(&space), err));
    const moa_cuda_half here = {a->x, space, a->n_tok, w->n_in};
    __half *const x = reinterpret_cast<__half *>(space);
    float *const back = reinterpret_cast<float *>(space + x_bytes);
    char *const decoded = space + x_bytes + pad256((size_t)a->n_tok * sizeof *back);
    const bool known = !a->accumulate && kept->x == here.x && kept->space == here.space &&
                       kept->n_tok == here.n_tok && kept->n_in == here.n_in;
    if (!known)
        MOA_RETURN(half_x(c, {a->x, x, back, a->y, w->n_in, w->n_out, a->accumulate}, a->n_tok, err));
    const float alpha = 1.0f / w->f16_scale, beta = a->accumulate ? 1.0f : 0.0f;
    for (int32_t row0 = 0; row0 < w->n_out; row0 += most) {
        const int32_t n_row = w->n_out - row0 < most ? w->n_out - row0 : most;
        const void *tile = decoded;
        if (w->type == MOA_F16)
            tile = static_cast<const char *>(w->data) + (size_t)row0 * row;
        else
            MOA_RETURN(half_w(c, w, row0, n_row, decoded, err));
        const cublasStatus_t s =
            cublasGemmEx(c->blas, CUBLAS_OP_T, CUBLAS_OP_N, n_row, a->n_tok, w->n_in, &alpha, tile,
                         CUDA_R_16F, w->n_in, x, CUDA_R_16F, w->n_in, &beta, a->y + row0, CUDA_R_32F,
                         w->n_out, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        if (s != CUBLAS_STATUS_SUCCESS) return moa_cuda_blas_fail(c, s, a, err);
    }
    MOA_RETURN(finish(c, a->y, back, matmul_out_of(a).bias, a->n_tok, w->n_out, err));
    if (apart(a)) c->half = here;
    return MOA_OK;
}

/* --- the gradient ------------------------------------------------------------------------------------------ */

/* dx (n_tok, n_in) = dy (n_tok, n_out) W (+ dx): parts of W are rows that are summed over, in order */
moa_status moa_cuda_matmul_t_gemm(moa_cuda *c, const moa_args_matmul_t *a, moa_err *err) {
    const moa_dev_weight *w = a->w;
    const int32_t most = part_rows(w), n_in = w->n_in, n_out = w->n_out;
    const size_t dy_bytes = pad256(2 * (size_t)n_out * (size_t)a->n_tok), back_bytes = pad256(sizeof(float) * (size_t)a->n_tok);
    const size_t row = 2 * (size_t)n_in, tile_bytes = w->type == MOA_F16 ? 0 : (size_t)most * row;
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, dy_bytes + back_bytes + tile_bytes, reinterpret_cast<void **>(&space), err));
    __half *const dy = reinterpret_cast<__half *>(space);
    float *const back = reinterpret_cast<float *>(space + dy_bytes);
    MOA_RETURN(half_x(c, {a->dy, dy, back, a->dx, n_out, n_in, a->accumulate}, a->n_tok, err));
    const float alpha = 1.0f / w->f16_scale;
    for (int32_t row0 = 0; row0 < n_out; row0 += most) {
        const int32_t n_row = n_out - row0 < most ? n_out - row0 : most;
        const float beta = a->accumulate || row0 > 0 ? 1.0f : 0.0f;
        const void *tile = space + dy_bytes + back_bytes;
        if (w->type == MOA_F16)
            tile = static_cast<const char *>(w->data) + (size_t)row0 * row;
        else
            MOA_RETURN(half_w(c, w, row0, n_row, space + dy_bytes + back_bytes, err));
        const cublasStatus_t s =
            cublasGemmEx(c->blas, CUBLAS_OP_N, CUBLAS_OP_N, n_in, a->n_tok, n_row, &alpha, tile, CUDA_R_16F, n_in, dy + row0,
                         CUDA_R_16F, n_out, &beta, a->dx, CUDA_R_32F, n_in, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        const moa_args_matmul like = {a->dy, w, nullptr, a->dx, a->n_tok, a->accumulate};
        if (s != CUBLAS_STATUS_SUCCESS) return moa_cuda_blas_fail(c, s, &like, err);
    }
    return finish(c, a->dx, back, nullptr, a->n_tok, n_in, err);
}
