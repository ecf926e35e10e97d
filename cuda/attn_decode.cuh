/* attn_decode.cuh -- what the versions of decode attention share. */
#ifndef MOA_CUDA_ATTN_DECODE_CUH
#define MOA_CUDA_ATTN_DECODE_CUH

#include "cuda/cuda_common.cuh"

/* *taken false: this shape is not one of v2's (or the device has too little shared memory), nothing was launched */
moa_status moa_cuda_decode_v2(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err);

#endif
