/* bwd.cuh -- what the files of the influence profile share: matrix products of float32 by cuBLAS, in the rows-first order of the
 * rest of the program, batched. */
#ifndef MOA_CUDA_BWD_CUH
#define MOA_CUDA_BWD_CUH

#include "cuda/cuda_common.cuh"

#define X(name, text)                                                                                        \
    moa_status moa_cuda_##name(moa_backend *b, const struct moa_args_##name *a, moa_err *err);
MOA_BWD_MAP(X)
#undef X

/* dx = dy W (+ dx) in half precision with float32 sums (matmul_gemm.cu) */
moa_status moa_cuda_matmul_t_gemm(moa_cuda *c, const moa_args_matmul_t *a, moa_err *err);

/* c (m, n) = alpha a (m, k) b (k, n) + beta c, `batch` times, each the strides further; rows lda, ldb, ldc apart, in elements.
 * a_across: a is stored as (k, m). b_across: b is stored as (n, k). */
struct moa_cuda_product {
    int32_t m, n, k;
    const float *a, *b;
    float *c;
    int64_t lda, ldb, ldc, a_stride, b_stride, c_stride;
    bool a_across, b_across;
    float alpha, beta;
    int32_t batch;
};

/* float32 sums; products in float32 or, when $MOASCOPE_CUDA_GEMM asks for speed, in tf32 */
static inline moa_status moa_cuda_multiply(moa_cuda *c, const moa_cuda_product *p, moa_err *err) {
    const cublasComputeType_t compute = c->gemm == MOA_GEMM_F32 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_FAST_TF32;
    /* cuBLAS counts columns first: it sees every matrix transposed, so c^T = b^T a^T */
    const cublasStatus_t s = cublasGemmStridedBatchedEx(
        c->blas, p->b_across ? CUBLAS_OP_T : CUBLAS_OP_N, p->a_across ? CUBLAS_OP_T : CUBLAS_OP_N, p->n, p->m, p->k,
        &p->alpha, p->b, CUDA_R_32F, (int)p->ldb, p->b_stride, p->a, CUDA_R_32F, (int)p->lda, p->a_stride, &p->beta, p->c,
        CUDA_R_32F, (int)p->ldc, p->c_stride, p->batch, compute, CUBLAS_GEMM_DEFAULT);
    if (s == CUBLAS_STATUS_SUCCESS) return MOA_OK;
    (void)cudaGetLastError();
    return moa_fail(err, s == CUBLAS_STATUS_ALLOC_FAILED ? MOA_E_MEMORY : MOA_E_DEVICE,
                    "GPU %d: %d matrix products %d x %d x %d failed: %s", c->device, p->batch, p->m, p->n, p->k,
                    cublasGetStatusString(s));
}

#endif
