/* attn_prefill.cuh -- what the versions of prefill attention share: how a block finds its work. */
#ifndef MOA_CUDA_ATTN_PREFILL_CUH
#define MOA_CUDA_ATTN_PREFILL_CUH

#include "cuda/cuda_common.cuh"

/* the pages a tile of queries sees: page 0, then [first, last]; index k of them */
struct page_list {
    int first, last;
    __device__ int count() const { return last >= first ? 2 + last - first : 1; }
    __device__ int at(int k) const { return k == 0 ? 0 : first + k - 1; }
};
__device__ static inline page_list pages_of(int span, int i_first, int i_last) {
    page_list p;
    p.first = max(moa_window_first(span, i_first) / MOA_PAGE_TOK, 1);
    p.last = i_last / MOA_PAGE_TOK;
    return p;
}

/* does the probe look at one of the queries i .. i_end - 1? */
__device__ static inline bool looked_at(const moa_probe_rows &rows, int i, int i_end) {
    for (; i < i_end; i = (i / MOA_PAGE_TOK + 1) * MOA_PAGE_TOK)
        if (moa_probe_weight(&rows, i) > 0) return true;
    return false;
}

/* May the tensor-core version (attn_prefill_mma.cu) do this: a half-precision cache, a head size it was compiled for? */
bool moa_cuda_prefill_mma_takes(const moa_args_attn_prefill *a);
/* Does it, with q in 1 or 2 halves an element. Only where moa_cuda_prefill_mma_takes(). */
moa_status moa_cuda_prefill_mma(moa_cuda *c, const moa_args_attn_prefill *a, int parts, moa_err *err);
/* The probe of all queries, with lse2 from a kernel whose q is rounded as with 1 half: (n_tok, n_head), log2 of the sum of 2^score, -inf
 * where a row saw nothing. Only where moa_cuda_prefill_mma_takes(). attn_prefill_look.cu */
moa_status moa_cuda_prefill_look(moa_cuda *c, const moa_args_attn_prefill *a, const float *lse2, moa_err *err);

/* The same of the version for Hopper GPUs (attn_prefill_wgmma.cu), which only a build for them has (MOA_CUDA_HOPPER). */
bool moa_cuda_prefill_wgmma_takes(const moa_cuda *c, const moa_args_attn_prefill *a);
/* Are there enough queries that it is faster? Only where it takes. */
bool moa_cuda_prefill_wgmma_fits(const moa_cuda *c, const moa_args_attn_prefill *a);
moa_status moa_cuda_prefill_wgmma(moa_cuda *c, const moa_args_attn_prefill *a, moa_err *err);

/* whether caches of bf16 and q8 are attended as halves: all versions but the first do */
bool moa_cuda_prefill_copies(const moa_cuda *c);
/* A cache of bf16 or q8 as one of halves, for those (attn_prefill_half.cu). *out: a, but for its kv, which lies in *space until that goes
 * back to the stream's pool (cudaFreeAsync). *space NULL: there was no memory for it, nothing was done. */
moa_status moa_cuda_prefill_halves(moa_cuda *c, const moa_args_attn_prefill *a, moa_args_attn_prefill *out, void **space,
                                   moa_err *err);

#endif
