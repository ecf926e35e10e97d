/* bwd.cu -- gradients of the operations that work row by row, for the influence profile.
 *
 *   matmul_t        W is decoded to float32, at most TILE_BYTES of it at a time, and multiplied by cuBLAS: dx = dy W. Tiles are
 *                   rows of W, so their products add up, in order. $MOASCOPE_CUDA_GEMM=f32, or tf32 with tf32 and bf16; f16, the
 *                   default, is matmul_gemm.cu's
 *   rmsnorm_bwd     one warp a row, 16 bytes a lane (v2); rows of any length and alignment: one block a row (v1)
 *   silu_mul_bwd    an element a thread
 *   cross_entropy   one block a row: maximum, sum, gradient: three passes over the row
 *
 *   measured as part of whole items: docs/measurements/2026-11-24-h100-profile.md */
#include "cuda/bwd.cuh"

enum { THREADS = 256 };
static const size_t TILE_BYTES = (size_t)64 << 20;

/* --- matmul_t -------------------------------------------------------------------------------------------- */

moa_status moa_cuda_matmul_t(moa_backend *b, const moa_args_matmul_t *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    const moa_dev_weight *w = a->w;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    if (c->gemm == MOA_GEMM_F16) return moa_cuda_matmul_t_gemm(c, a, err);
    const size_t row = sizeof(float) * (size_t)w->n_in, fit = TILE_BYTES / row;
    const int32_t most = fit < 1 ? 1 : fit < (size_t)w->n_out ? (int32_t)fit : w->n_out;
    void *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, (size_t)most * row, &space, err));
    for (int32_t row0 = 0; row0 < w->n_out; row0 += most) {
        const int32_t n_row = w->n_out - row0 < most ? w->n_out - row0 : most;
        MOA_RETURN(moa_cuda_decode_rows(c, w, row0, n_row, space, MOA_ELEM_F32, err));
        moa_cuda_product p = {};
        p.m = a->n_tok, p.n = w->n_in, p.k = n_row;
        p.a = a->dy + row0, p.lda = w->n_out;
        p.b = static_cast<const float *>(space), p.ldb = w->n_in;
        p.c = a->dx, p.ldc = w->n_in;
        p.alpha = 1, p.beta = a->accumulate || row0 > 0 ? 1 : 0;
        p.batch = 1;
        MOA_RETURN(moa_cuda_multiply(c, &p, err));
    }
    return MOA_OK;
}

/* --- rmsnorm_bwd ----------------------------------------------------------------------------------------- */

/* x, dy, dx (n_tok, n), w (n):  dx = r w dy - x r^3 / n sum(w dy x) (+ dx) */
__global__ static void rmsnorm_bwd_v1(const float *__restrict__ x, const float *__restrict__ w,
                                      const float *__restrict__ dy, float *__restrict__ dx, int n, float eps,
                                      bool accumulate) {
    __shared__ float s[32];
    const int64_t row = (int64_t)blockIdx.x * n;
    x += row, dy += row, dx += row;
    float square = 0, dot = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        square += x[i] * x[i];
        dot += x[i] * w[i] * dy[i];
    }
    square = block_sum(square, s);
    dot = block_sum(dot, s);
    const float r = rsqrtf(square / (float)n + eps), back = r * r * r * dot / (float)n;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        dx[i] = (accumulate ? dx[i] : 0.0f) + (r * w[i] * dy[i] - back * x[i]);
}

/* the same, a warp a row, 16 bytes a lane; n a multiple of 4 and everything 16-byte aligned. What is read twice is still in the L1 */
__global__ static void __launch_bounds__(THREADS) rmsnorm_bwd_v2(const float *__restrict__ x, const float *__restrict__ w,
                                                                 const float *__restrict__ dy, float *__restrict__ dx, int n_tok, int n,
                                                                 float eps, bool accumulate) {
    const int64_t row = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const int lane = threadIdx.x % 32, n4 = n / 4;
    if (row >= n_tok) return;
    const float4 *x4 = reinterpret_cast<const float4 *>(x + row * n), *y4 = reinterpret_cast<const float4 *>(dy + row * n),
                 *w4 = reinterpret_cast<const float4 *>(w);
    float4 *to = reinterpret_cast<float4 *>(dx + row * n);
    float square = 0, dot = 0;
#pragma unroll 4
    for (int i = lane; i < n4; i += 32) {
        const float4 a = x4[i], b = w4[i], d = y4[i];
        square += a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w;
        dot += a.x * b.x * d.x + a.y * b.y * d.y + a.z * b.z * d.z + a.w * b.w * d.w;
    }
    square = warp_sum(square);
    dot = warp_sum(dot);
    const float r = rsqrtf(square / (float)n + eps), back = r * r * r * dot / (float)n;
#pragma unroll 4
    for (int i = lane; i < n4; i += 32) {
        const float4 a = x4[i], b = w4[i], d = y4[i];
        float4 y = accumulate ? to[i] : make_float4(0, 0, 0, 0);
        y.x += r * b.x * d.x - back * a.x, y.y += r * b.y * d.y - back * a.y;
        y.z += r * b.z * d.z - back * a.z, y.w += r * b.w * d.w - back * a.w;
        to[i] = y;
    }
}

static bool is_wide(const void *p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

moa_status moa_cuda_rmsnorm_bwd(moa_backend *b, const moa_args_rmsnorm_bwd *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    const float *w = static_cast<const float *>(a->w->data);
    if (a->n % 4 == 0 && is_wide(a->x) && is_wide(w) && is_wide(a->dy) && is_wide(a->dx))
        rmsnorm_bwd_v2<<<(unsigned)moa_ceil_div(a->n_tok, THREADS / 32), THREADS, 0, c->stream>>>(a->x, w, a->dy, a->dx, a->n_tok, a->n,
                                                                                              a->eps, a->accumulate);
    else
        rmsnorm_bwd_v1<<<a->n_tok, THREADS, 0, c->stream>>>(a->x, w, a->dy, a->dx, a->n, a->eps, a->accumulate);
    MOA_LAUNCHED(c, "the gradient of rmsnorm");
    return MOA_OK;
}

/* --- silu_mul_bwd ---------------------------------------------------------------------------------------- */

/* d_gate, d_up may be gate and up. With h = exp(-|g|) nothing overflows. */
__global__ static void silu_mul_bwd_v1(const float *gate, const float *up, const float *__restrict__ dy, float *d_gate,
                                       float *d_up, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const float g = gate[i], u = up[i], d = dy[i], h = expf(-fabsf(g));
        const float large = 1.0f / (1.0f + h), small = h * large;
        const float s = g >= 0 ? large : small, rest = g >= 0 ? small : large;
        d_gate[i] = d * u * s * (1.0f + g * rest);
        d_up[i] = d * g * s;
    }
}

moa_status moa_cuda_silu_mul_bwd(moa_backend *b, const moa_args_silu_mul_bwd *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n <= 0) return MOA_OK;
    const int64_t blocks = moa_ceil_div<int64_t>(a->n, THREADS), most = (int64_t)c->n_sm * 16;
    silu_mul_bwd_v1<<<(unsigned)(blocks < most ? blocks : most), THREADS, 0, c->stream>>>(a->gate, a->up, a->dy,
                                                                                          a->d_gate, a->d_up, a->n);
    MOA_LAUNCHED(c, "the gradient of silu_mul");
    return MOA_OK;
}

/* --- cross_entropy --------------------------------------------------------------------------------------- */

__device__ static inline float block_max(float x, float *s) {
    x = group_max<32>(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = x;
    __syncthreads();
    return group_max<32>(threadIdx.x % 32 < blockDim.x / 32 ? s[threadIdx.x % 32] : -INFINITY);
}

/* z (n_row, n_vocab) becomes scale (softmax - [target]), with margin that divided by 1 - p of the target; a target outside gives NaN */
__global__ static void cross_entropy_v1(float *z, const int32_t *__restrict__ target, float *__restrict__ loss,
                                        int n_vocab, float scale, bool margin) {
    __shared__ float s[32];
    z += (int64_t)blockIdx.x * n_vocab;
    const int t = target[blockIdx.x];
    const bool inside = t >= 0 && t < n_vocab;
    const float at_target = inside ? z[t] : NAN;
    float max = -INFINITY, others = 0; /* all but the target, which is not taken off the sum: 1 - p would cancel */
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x)
        max = fmaxf(max, z[i]);
    max = block_max(max, s);
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x)
        if (i != t) others += expf(z[i] - max);
    others = block_sum(others, s);
    const float sum = others + expf(at_target - max);
    const float factor = inside ? scale / (margin ? fmaxf(others, (float)MOA_MARGIN_TINY * sum) : sum) : NAN;
    for (int i = threadIdx.x; i < n_vocab; i += blockDim.x)
        z[i] = factor * (i == t ? -others : expf(z[i] - max));
    if (threadIdx.x == 0) loss[blockIdx.x] = (max - at_target) + logf(sum);
}

moa_status moa_cuda_cross_entropy(moa_backend *b, const moa_args_cross_entropy *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_row <= 0) return MOA_OK;
    cross_entropy_v1<<<a->n_row, 1024, 0, c->stream>>>(a->logits, a->target, a->loss, a->n_vocab, a->scale,
                                                        a->margin);
    MOA_LAUNCHED(c, "cross entropy");
    return MOA_OK;
}
