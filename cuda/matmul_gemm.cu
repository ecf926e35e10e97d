/* matmul_gemm.cu -- y = x W^T for many rows of x: both become float16, cuBLAS multiplies with float32 sums.
 *
 *   W     decoded to float16, at most TILE_BYTES at a time, times its power of two (matmul_pack.cu); F16 is taken as stored
 *   x     a row as it is where its largest magnitude lies in 2^-8 .. 2^15, else times the power of two that brings it there; what is
 *         already in y is then scaled with it, and all of the row back afterwards
 *
 * Rounding both once costs NMSE 9e-8 (tf32, which cuts both to the same 11 bits but does not round: 1.4e-7 measured, at half the rate
 * of the tensor cores). $MOASCOPE_CUDA_GEMM=f32 is the exact one (matmul.cu), tf32 and bf16 are there to compare. */
#include "cuda/matmul.cuh"

static const size_t TILE_BYTES = (size_t)64 << 20;
static constexpr int THREADS = 256;

struct half_x_job {
    const float *x; /* (n_tok, n_in) */
    __half *to;
    float *back, *y; /* (n_tok); (n_tok, n_out), scaled where the row is and `accumulate` */
    int n_in, n_out;
    bool accumulate, wide; /* wide: rows are 16-byte aligned and n_in a multiple of 4 */
};

/* a block a row */
__global__ static void __launch_bounds__(THREADS) half_x_v2(half_x_job j) {
    __shared__ uint32_t s[32];
    const float *x = j.x + (int64_t)blockIdx.x * j.n_in;
    __half *to = j.to + (int64_t)blockIdx.x * j.n_in;
    uint32_t most = 0;
    if (j.wide) {
        for (int i = threadIdx.x; i < j.n_in / 4; i += THREADS) {
            const float4 v = reinterpret_cast<const float4 *>(x)[i];
            most = max(most, max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w))));
        }
    } else {
        for (int i = threadIdx.x; i < j.n_in; i += THREADS)
            most = max(most, magnitude(x[i]));
    }
    most = block_max_bits(most, s);
    const bool fine = most == 0 || (most >= magnitude(0x1p-8f) && most < magnitude(0x1p15f));
    const float scale = fine ? 1.0f : scale_to(most, 10);
    if (j.wide) {
        for (int i = threadIdx.x; i < j.n_in / 4; i += THREADS) {
            const float4 v = reinterpret_cast<const float4 *>(x)[i];
            __half2 *h = reinterpret_cast<__half2 *>(to) + 2 * i;
            h[0] = __floats2half2_rn(v.x * scale, v.y * scale);
            h[1] = __floats2half2_rn(v.z * scale, v.w * scale);
        }
    } else {
        for (int i = threadIdx.x; i < j.n_in; i += THREADS)
            to[i] = __float2half_rn(x[i] * scale);
    }
    if (threadIdx.x == 0) j.back[blockIdx.x] = 1.0f / scale;
    float *y = j.y + (int64_t)blockIdx.x * j.n_out;
    for (int i = threadIdx.x; !fine && j.accumulate && i < j.n_out; i += THREADS)
        y[i] *= scale;
}

/* y = y * back (+ bias), a block a row; nothing to do for most rows without a bias */
__global__ static void __launch_bounds__(THREADS)
    finish_v2(float *y, const float *__restrict__ back, const float *__restrict__ bias, int n_out) {
    const float f = back[blockIdx.x];
    if (f == 1.0f && !bias) return;
    y += (int64_t)blockIdx.x * n_out;
    for (int i = threadIdx.x; i < n_out; i += THREADS)
        y[i] = y[i] * f + (bias ? bias[i] : 0.0f);
}

moa_status moa_cuda_matmul_gemm(moa_cuda *c, const moa_args_matmul *a, moa_err *err) {
    const moa_dev_weight *w = a->w;
    const size_t row = 2 * (size_t)w->n_in, fit = TILE_BYTES / row;
    const bool as_stored = w->type == MOA_F16;
    const int32_t most = fit < 1 ? 1 : fit < (size_t)w->n_out ? (int32_t)fit : w->n_out;
    const size_t w_bytes = as_stored ? 0 : ((size_t)most * row + 255) & ~(size_t)255;
    const size_t x_bytes = ((size_t)a->n_tok * row + 255) & ~(size_t)255;
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, w_bytes + x_bytes + (size_t)a->n_tok * sizeof(float),
                                reinterpret_cast<void **>(&space), err));
    __half *const x = reinterpret_cast<__half *>(space + w_bytes);
    float *const back = reinterpret_cast<float *>(space + w_bytes + x_bytes);
    const bool wide = w->n_in % 4 == 0 && reinterpret_cast<uintptr_t>(a->x) % 16 == 0;
    const half_x_job job = {a->x, x, back, a->y, w->n_in, w->n_out, a->accumulate, wide};
    const unsigned rows = (unsigned)a->n_tok;
    half_x_v2<<<rows, THREADS, 0, c->stream>>>(job);
    MOA_LAUNCHED(c, "rounding to float16");
    const float alpha = 1.0f / w->f16_scale, beta = a->accumulate ? 1.0f : 0.0f;
    for (int32_t row0 = 0; row0 < w->n_out; row0 += most) {
        const int32_t n_row = w->n_out - row0 < most ? w->n_out - row0 : most;
        const void *tile = space;
        if (as_stored)
            tile = static_cast<const char *>(w->data) + (size_t)row0 * row;
        else
            MOA_RETURN(moa_cuda_decode_rows(c, w, row0, n_row, space, MOA_ELEM_F16, err));
        const cublasStatus_t s =
            cublasGemmEx(c->blas, CUBLAS_OP_T, CUBLAS_OP_N, n_row, a->n_tok, w->n_in, &alpha, tile,
                         CUDA_R_16F, w->n_in, x, CUDA_R_16F, w->n_in, &beta, a->y + row0, CUDA_R_32F,
                         w->n_out, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        if (s != CUBLAS_STATUS_SUCCESS) return moa_cuda_blas_fail(c, s, a, err);
    }
    finish_v2<<<rows, THREADS, 0, c->stream>>>(a->y, back, matmul_out_of(a).bias, w->n_out);
    MOA_LAUNCHED(c, "bias");
    return MOA_OK;
}
