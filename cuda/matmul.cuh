/* matmul.cuh -- what the files of the matrix products share.
 *
 *   matmul.cu        which product is made how, and the first version: the readable one      $MOASCOPE_CUDA_MATMUL=v1
 *   matmul_pack.cu   v2: repacking at load (packed.cuh), rows decoded again
 *   matmul_row.cu    v2: one row of x: 16-bit fixed-point x, integer dot products
 *   matmul_few.cu    v2: 2 to 64 rows of x: tensor cores, weights decoded in registers         $MOASCOPE_CUDA_MATMUL=v2
 *   matmul_ring.cu   v3 of the same, where rows are long enough: weights stream through shared memory
 *   matmul_gemm.cu   v2: more: weights decoded to float16, cuBLAS                            $MOASCOPE_CUDA_GEMM */
#ifndef MOA_CUDA_MATMUL_CUH
#define MOA_CUDA_MATMUL_CUH

#include "cuda/packed.cuh"

/* what is done with a product: y = sum (+ bias) (+ y) */
struct matmul_out {
    const float *bias; /* (n_out) or NULL */
    float *y;          /* (n_tok, n_out) */
    int n_tok, n_out;
    bool accumulate;
};
static inline matmul_out matmul_out_of(const moa_args_matmul *a) {
    return {a->bias ? static_cast<const float *>(a->bias->data) : nullptr, a->y, a->n_tok, a->w->n_out,
            a->accumulate};
}
__device__ static inline void matmul_write(const matmul_out &m, int t, int o, float sum) {
    float *y = m.y + (int64_t)t * m.n_out + o;
    *y = sum + (m.bias ? m.bias[o] : 0.0f) + (m.accumulate ? *y : 0.0f);
}

/* A power of two that brings a largest magnitude (its bits) to 2^`to`, so that float16 holds what it is largest of. 0: 1; not
 * finite: NaN, which then reaches every result it should reach. */
__device__ static inline float scale_to(uint32_t max_bits, int to) {
    if (max_bits >= 0x7f800000u) return __uint_as_float(0x7fc00000u);
    if (max_bits == 0) return 1.0f;
    const int e = max((int)(max_bits >> 23) - 127, -60);
    return __uint_as_float((uint32_t)(127 + to - e) << 23);
}
__device__ static inline uint32_t magnitude(float x) {
    return __float_as_uint(x) & 0x7fffffffu;
}
/* largest of a block's bits, the same on all its threads; s: 32 words of shared memory */
__device__ static inline uint32_t block_max_bits(uint32_t x, uint32_t *s) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2)
        x = max(x, __shfl_xor_sync(0xffffffffu, x, lane));
    __syncthreads();
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? s[threadIdx.x % 32] : 0u;
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2)
        x = max(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

/* bytes of a matrix in packed form; 0: the type is kept as stored */
size_t moa_cuda_packed_bytes(const moa_dev_weight *w);
/* Rows of a GGUF matrix on the device (`raw`, n_row of them) become rows row0 .. of w's packed form. */
moa_status moa_cuda_pack_rows(moa_cuda *c, const void *raw, size_t raw_row_bytes, int32_t row0, int32_t n_row,
                              const moa_dev_weight *w, moa_err *err);
/* Finds the largest weight of w, into *most (device, 0 before); and w->f16_scale from it, once it is known. */
moa_status moa_cuda_pack_largest(moa_cuda *c, const moa_dev_weight *w, uint32_t *most, moa_err *err);
void moa_cuda_pack_scale(moa_dev_weight *w, uint32_t most);

/* what is to be decoded: rows row0 .. row0 + n_row - 1 of w, or those that ids (device, n_row) names; ids outside give NaN */
struct moa_cuda_decode {
    const moa_dev_weight *w;
    int32_t row0, n_row;
    const int32_t *ids;
    void *out; /* (n_row, n_in) */
    moa_cuda_elem elem;
};
moa_status moa_cuda_unpack(moa_cuda *c, const moa_cuda_decode *d, moa_err *err); /* of a packed weight */

/* can v2 make this product? */
bool moa_cuda_row_fits(const moa_dev_weight *w);
bool moa_cuda_few_fits(const moa_dev_weight *w);
moa_status moa_cuda_matmul_row(moa_cuda *c, const moa_args_matmul *a, moa_err *err); /* n_tok = 1 */
moa_status moa_cuda_matmul_few(moa_cuda *c, const moa_args_matmul *a, moa_err *err); /* n_tok <= 64 */
/* kept: what x the workspace held, as float16, when the operation began */
moa_status moa_cuda_matmul_gemm(moa_cuda *c, const moa_args_matmul *a, const moa_cuda_half *kept, moa_err *err);
size_t moa_cuda_gemm_bytes(const moa_dev_weight *w, int32_t n_tok); /* of workspace that it takes */
moa_status moa_cuda_blas_fail(moa_cuda *c, int status, const moa_args_matmul *a, moa_err *err);

#endif
