/* attn_decode.cuh -- what the versions of decode attention share. */
#ifndef MOA_CUDA_ATTN_DECODE_CUH
#define MOA_CUDA_ATTN_DECODE_CUH

#include "cuda/cuda_common.cuh"

/* *taken false: this shape is not one of v2's (or the device has too little shared memory), nothing was launched */
moa_status moa_cuda_decode_v2(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err);

/* What blocks of v2 leave for each other stands behind the counters at moa_cuda.ticket: of two items a block, 8 heads of 256 columns and
 * their statistics. All bits are set between launches. */
enum { MOA_MAIL_BLOCKS = 320 };
static const size_t MOA_MAIL_BYTES = (size_t)MOA_MAIL_BLOCKS * 2 * 8 * (256 / 4 + 1) * 2 * sizeof(float4);
static inline float4 *moa_cuda_mail(const moa_cuda *c) {
    return reinterpret_cast<float4 *>(c->ticket + MOA_N_TICKET);
}

#endif
