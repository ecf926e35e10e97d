/* attn_prefill_look.cu -- the probe's look at all queries of a chunk, behind the attention that left each row's log-sum-exp. A block of
 * one team or two a look, the longest first: see attn_prefill_look.cuh. */
#include "cuda/attn_prefill_look.cuh"

/* D: head size; BLOCKS: a multiprocessor should hold. grid: blocks of 64 queries x heads */
template <int D, int WARPS, int BLOCKS>
__global__ static void __launch_bounds__(WARPS * 32, BLOCKS) look_all(const __grid_constant__ look_job j) {
    extern __shared__ __align__(16) unsigned char shared[];
    look<look_tile<D, WARPS>>(j, (int)blockIdx.x, shared);
}

template <int D, int WARPS, int BLOCKS> static cudaError_t run(moa_cuda *c, const look_job &j) {
    constexpr size_t bytes = look_tile<D, WARPS>::END;
    cudaError_t e = moa_allow_shared(look_all<D, WARPS, BLOCKS>, bytes);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(look_all<D, WARPS, BLOCKS>, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
    if (e != cudaSuccess) return e;
    look_all<D, WARPS, BLOCKS><<<(unsigned)(j.n_block * j.n_head), WARPS * 32, bytes, c->stream>>>(j);
    return cudaGetLastError();
}

static cudaError_t run_by_size(moa_cuda *c, const look_job &j) {
    switch (j.kv.d_head) {
    case 64: return run<64, 8, 2>(c, j);
    case 80: return run<80, 8, 2>(c, j);
    case 96: return run<96, 4, 3>(c, j);
    case 128: return run<128, 4, 3>(c, j);
    default: return run<256, 4, 2>(c, j);
    }
}

moa_status moa_cuda_prefill_look(moa_cuda *c, const moa_args_attn_prefill *a, const float *lse2, moa_err *err) {
    const look_job j = look_job_of(a, lse2);
    if (j.n_block > 0) MOA_CU(c, run_by_size(c, j));
    return MOA_OK;
}
