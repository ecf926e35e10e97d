/* attn_decode.cuh -- what the versions of decode attention share. */
#ifndef MOA_CUDA_ATTN_DECODE_CUH
#define MOA_CUDA_ATTN_DECODE_CUH

#include "cuda/cuda_common.cuh"

/* *taken false: this shape is not one of v2's (or the device has too little shared memory), nothing was launched */
moa_status moa_cuda_decode_v2(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err);
/* The same for v3, which wants sm_90 and no more items than there are multiprocessors. most_bytes: it is left to v2 as well where the
 * sequences' reserved pages are more. */
moa_status moa_cuda_decode_v3(moa_cuda *c, const moa_args_attn_decode *a, size_t most_bytes, bool *taken,
                              moa_err *err);

#endif
