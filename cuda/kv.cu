/* kv.cu -- puts new K and V rows where the page table says, rounded to the cache's type.
 *
 *   row t of k and v  (n_head_kv, d_head)   ->   page table[seq[t]][head][pos[t] / 64], row pos[t] % 64 of its K and its V half
 *
 * The table and the positions are read on the device, so a recorded step stays valid while pages come and go. A row whose
 * position is negative (an idle sequence) or whose page is not there is left out.
 *
 *   version   idea                                        us a call
 *   v1        a block per (row, KV head), K and V together   launch bound in decode                                  <- best */
#include "cuda/cuda_common.cuh"

__device__ static inline void put(float *to, float x) {
    *to = x;
}
__device__ static inline void put(__half *to, float x) {
    *to = __float2half_rn(x);
}

template <typename T>
__global__ static void kv_store_v1(const float *__restrict__ k, const float *__restrict__ v, moa_kv<T> kv,
                                   const int32_t *__restrict__ seq, const int32_t *__restrict__ pos) {
    const int t = blockIdx.x, h = blockIdx.y, at = pos[t];
    if (at < 0) return;
    T *to = kv.page(seq ? seq[t] : 0, h, at / MOA_PAGE_TOK);
    if (!to) return;
    to += (at % MOA_PAGE_TOK) * kv.d_head;
    const int64_t from = ((int64_t)t * gridDim.y + h) * kv.d_head;
    for (int i = threadIdx.x; i < kv.d_head; i += blockDim.x) {
        put(to + i, k[from + i]);
        put(to + MOA_PAGE_TOK * kv.d_head + i, v[from + i]);
    }
}

moa_status moa_cuda_kv_store(moa_backend *b, const moa_args_kv_store *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    const dim3 grid((unsigned)a->n_tok, (unsigned)a->kv.n_head_kv);
    if (a->kv.type == MOA_KV_F32)
        kv_store_v1<<<grid, 64, 0, c->stream>>>(a->k, a->v, moa_kv_of<float>(&a->kv), a->seq, a->pos);
    else
        kv_store_v1<<<grid, 64, 0, c->stream>>>(a->k, a->v, moa_kv_of<__half>(&a->kv), a->seq, a->pos);
    MOA_LAUNCHED(c, "kv_store");
    return MOA_OK;
}
