/* kv.cu -- puts new K and V rows where the page table says, rounded to the cache's type.
 *
 *   row t of k and v  (n_head_kv, d_head)   ->   page table[seq[t]][head][pos[t] / 64], row pos[t] % 64 of its K and its V half
 *
 * The table and the positions are read on the device, so a recorded step stays valid while pages come and go. A row whose
 * position is negative (an idle sequence) or whose page is not there is left out.
 *
 * q8 (kv_page.h): a page's rows have the exponents of K's channels in common. The first of a page's rows in a call does the work for all of
 * them, so that nobody else writes to the page: a thread a channel of K, a warp a row of V. The codes of tokens stored before follow
 * an exponent that grows, which in decode is seldom.
 *
 *   version   idea                                        us a call
 *   v1        a block per (row, KV head), K and V together   launch bound in decode                                  <- best */
#include "cuda/kv_types.cuh"

__device__ static inline void put(float *to, float x) {
    *to = x;
}
__device__ static inline void put(__half *to, float x) {
    *to = __float2half_rn(x);
}
__device__ static inline void put(__nv_bfloat16 *to, float x) {
    *to = __float2bfloat16_rn(x);
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

/* --- q8 --------------------------------------------------------------------------------------------------- */

static constexpr int Q8_THREADS = 256, Q8_WARPS = Q8_THREADS / 32;

struct store_job {
    const float *k, *v; /* (n_tok, n_head_kv, d_head) */
    moa_kv<moa_q8> kv;
    const int32_t *seq, *pos;
    int n_tok, n_head_kv;
    __device__ int seq_of(int t) const { return seq ? seq[t] : 0; }
    __device__ bool same_page(int t, int u) const {
        return seq_of(t) == seq_of(u) && pos[t] / MOA_PAGE_TOK == pos[u] / MOA_PAGE_TOK;
    }
};

/* rows of the call that are tokens of one page */
struct store_run {
    int n;
    int16_t row[MOA_PAGE_TOK]; /* beyond the first */
    int8_t at[MOA_PAGE_TOK];   /* token of the page */
};

/* the page's channel i of K: grown exponent, earlier codes, new codes */
__device__ static void store_channel(const store_job &j, const store_run &s, int t, int h, int i, int8_t *page) {
    const int d = j.kv.d_head, first = s.at[0];
    uint8_t *exponent = reinterpret_cast<uint8_t *>(page) + moa_kv_k_exponent_at(d) + i;
    const float *k = j.k + ((int64_t)t * j.n_head_kv + h) * d + i;
    const int64_t stride = (int64_t)j.n_head_kv * d;
    const int before = first == 0 ? 0 : *exponent;
    int now = before;
#pragma unroll 4
    for (int r = 0; r < s.n; r++)
        now = max(now, moa_kv_exponent(k[s.row[r] * stride]));
    if (now > before)
        for (int r = 0; r < first; r++)
            page[r * d + i] = moa_kv_k_shift(page[r * d + i], now - before);
    *exponent = (uint8_t)now;
#pragma unroll 4
    for (int r = 0; r < s.n; r++)
        page[s.at[r] * d + i] = moa_kv_k_code(k[s.row[r] * stride], now);
}

/* a row of V, by one warp */
__device__ static void store_values(const store_job &j, const float *v, int at, int8_t *page) {
    const int d = j.kv.d_head, lane = threadIdx.x % 32;
    int8_t *codes = page + moa_kv_v_at(MOA_KV_Q8, d) + at * d;
    unsigned top = 0;
    for (int i = lane; i < d; i += 32)
        top = max(top, moa_kv_bits(v[i]) & 0x7fffffffu);
#pragma unroll
    for (int other = 16; other > 0; other /= 2)
        top = max(top, __shfl_xor_sync(0xffffffffu, top, other));
    const float scale = moa_kv_v_scale(top);
    if (lane == 0) reinterpret_cast<float *>(page + moa_kv_v_scale_at(d))[at] = scale;
    for (int i = lane; i < d; i += 32)
        codes[i] = moa_kv_v_code(v[i], scale);
}

/* grid: n_tok x n_head_kv; only the block of a page's first row works */
__global__ static void __launch_bounds__(Q8_THREADS) kv_store_q8(const store_job j) {
    __shared__ store_run s;
    __shared__ bool leads;
    const int t = blockIdx.x, h = blockIdx.y;
    if (j.pos[t] < 0) return;
    if (threadIdx.x == 0) {
        int before = t - 1;
        while (before >= 0 && j.pos[before] < 0)
            before--;
        leads = before < 0 || !j.same_page(before, t);
        s.n = 0;
        for (int u = t; leads && u < j.n_tok && s.n < MOA_PAGE_TOK; u++) {
            if (j.pos[u] < 0) continue;
            if (!j.same_page(u, t)) break;
            s.row[s.n] = (int16_t)(u - t);
            s.at[s.n++] = (int8_t)(j.pos[u] % MOA_PAGE_TOK);
        }
    }
    __syncthreads();
    if (!leads) return;
    int8_t *page = reinterpret_cast<int8_t *>(j.kv.page(j.seq_of(t), h, j.pos[t] / MOA_PAGE_TOK));
    if (!page) return;
    for (int i = threadIdx.x; i < j.kv.d_head; i += Q8_THREADS)
        store_channel(j, s, t, h, i, page);
    for (int r = (int)threadIdx.x / 32; r < s.n; r += Q8_WARPS)
        store_values(j, j.v + ((int64_t)(t + s.row[r]) * j.n_head_kv + h) * j.kv.d_head, s.at[r], page);
}

/* --- launching -------------------------------------------------------------------------------------------- */

struct store_with {
    const moa_args_kv_store *a;
    cudaStream_t stream;
    template <typename T> void operator()(T) const {
        const dim3 grid((unsigned)a->n_tok, (unsigned)a->kv.n_head_kv);
        kv_store_v1<<<grid, 64, 0, stream>>>(a->k, a->v, moa_kv_of<T>(&a->kv), a->seq, a->pos);
    }
    void operator()(moa_q8) const {
        const dim3 grid((unsigned)a->n_tok, (unsigned)a->kv.n_head_kv);
        const store_job j = {a->k, a->v, moa_kv_of<moa_q8>(&a->kv), a->seq, a->pos, a->n_tok, a->kv.n_head_kv};
        kv_store_q8<<<grid, Q8_THREADS, 0, stream>>>(j);
    }
};

moa_status moa_cuda_kv_store(moa_backend *b, const moa_args_kv_store *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    kv_with_type(a->kv.type, store_with{a, c->stream});
    MOA_LAUNCHED(c, "kv_store");
    return MOA_OK;
}
