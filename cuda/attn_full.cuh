/* attn_full.cuh -- attention of a whole sequence, its gradients and its influence: what the tensor-core version for Hopper GPUs
 * (attn_full_wgmma.cu, which only a build for them has: MOA_CUDA_HOPPER) offers the panels (attn_full.cu). */
#ifndef MOA_CUDA_ATTN_FULL_CUH
#define MOA_CUDA_ATTN_FULL_CUH

#include "cuda/attn_prefill.cuh"
#include "cuda/bwd.cuh"

/* Hopper, products in half precision allowed, heads of 64 or 128, dense, everything 16-byte aligned? */
bool moa_cuda_full_wgmma_takes(const moa_cuda *c, const moa_full *in);
moa_status moa_cuda_full_wgmma(moa_cuda *c, const moa_args_attn_full *a, moa_err *err);
/* kept: what the workspace held when the operation began (c->half): the operands of an influence right before need not be made again */
moa_status moa_cuda_full_wgmma_bwd(moa_cuda *c, const moa_args_attn_bwd *a, const moa_cuda_half *kept, moa_err *err);
moa_status moa_cuda_full_wgmma_influence(moa_cuda *c, const moa_args_attn_influence *a, moa_err *err);

/* Prefill attention that also gives (n_tok, n_head) the log2 of the sum of 2^score (attn_prefill_wgmma.cu). Only where
 * moa_cuda_prefill_wgmma_takes(). */
moa_status moa_cuda_prefill_wgmma_lse(moa_cuda *c, const moa_args_attn_prefill *a, float *lse2, moa_err *err);

#endif
