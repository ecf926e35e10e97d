/* attn_prefill_half.cu -- bf16 and q8 for the prefill kernels of tensor cores, which read halves: the pages that a chunk sees, once more, as
 * float16 pages with a table of their own.
 *
 *      pool of the cache   ..[p7]....[p2]..[p9]..        table  2 -1 9 7 ..
 *                              \      \     \
 *      halves              [ p2 ][ p9 ][ p7 ]            table  0 -1 1 2 ..        lives for one operation
 *
 * A page is read and written once a chunk (1 + 2 bytes an element of q8), while each of the chunk's n_tok queries multiplies with all of it:
 * for 512 tokens or more the copy is a few per cent of the attention, and every version of the kernels serves every type.
 *
 * What halves lose: of q8's K nothing (9 bits), but for what is below 2^-14; of its V the 12th bit; of bf16 nothing between 2^-14 and
 * 65504; beyond, infinity, which shows. The memory is the layer's visible pages in halves, taken from the stream's pool and
 * given back when the operation ends; where there is none, the first version reads the cache as it is. */
#include "cuda/attn_prefill.cuh"
#include "cuda/kv_types.cuh"

static constexpr int THREADS = 256;

template <typename T> struct half_job {
    moa_kv<T> kv;
    __half *pages;
    int32_t *table; /* (n_head_kv, max_pages) */
    int seq, first, n_page; /* pages 0, first, first + 1, ...: n_page of them */
    int end;                /* tokens that are there */
};

/* grid: n_page x n_head_kv */
template <typename T> __global__ static void __launch_bounds__(THREADS) to_halves(const half_job<T> j) {
    const int p = blockIdx.x == 0 ? 0 : j.first + (int)blockIdx.x - 1, h = blockIdx.y, d = j.kv.d_head;
    const T *from = j.kv.page(j.seq, h, p);
    const int slot = h * j.n_page + (int)blockIdx.x, n_row = min(j.end - p * MOA_PAGE_TOK, (int)MOA_PAGE_TOK);
    if (threadIdx.x == 0) j.table[h * j.kv.max_pages + p] = from ? slot : -1;
    if (!from) return;
    __half *to = j.pages + (int64_t)slot * 2 * MOA_PAGE_TOK * d;
    for (int e = threadIdx.x; e < 2 * MOA_PAGE_TOK * (d / 8); e += THREADS) {
        const int r = e / (d / 8), row = r % MOA_PAGE_TOK, c = e % (d / 8) * 8;
        float x[8] = {}; /* rows that are not written yet may hold anything */
        if (row < n_row) {
            if (r < MOA_PAGE_TOK)
                load8_k(from, d, row, c, x);
            else
                load8_v(from, d, row, c, x);
        }
        __half2 y[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            y[i] = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
        *reinterpret_cast<uint4 *>(to + r * d + c) = *reinterpret_cast<const uint4 *>(y);
    }
}

struct halves_with {
    moa_cuda *c;
    const moa_args_attn_prefill *a;
    __half *pages;
    int32_t *table;
    int first, n_page;
    template <typename T> void operator()(T) const {
        const half_job<T> j = {moa_kv_of<T>(&a->kv), pages, table, a->seq, first, n_page, a->pos0 + a->n_tok};
        to_halves<T><<<dim3((unsigned)n_page, (unsigned)a->kv.n_head_kv), THREADS, 0, c->stream>>>(j);
    }
};

moa_status moa_cuda_prefill_halves(moa_cuda *c, const moa_args_attn_prefill *a, moa_args_attn_prefill *out, void **space,
                                   moa_err *err) {
    const int last = (a->pos0 + a->n_tok - 1) / MOA_PAGE_TOK, d = a->kv.d_head;
    int widest = 0;
    *space = nullptr;
    if (c->recording || d % 8 != 0) return MOA_OK;
    for (int h = 0; h < a->n_head; h++)
        widest = a->span_host[h] > widest ? a->span_host[h] : widest;
    int first = moa_window_first(widest, a->pos0) / MOA_PAGE_TOK;
    if (first < 1) first = 1;
    const int n_page = 1 + (last >= first ? last - first + 1 : 0);
    const size_t n_head = (size_t)a->kv.n_head_kv,
                 table_bytes = (n_head * (size_t)a->kv.max_pages * sizeof(int32_t) + 255) & ~(size_t)255,
                 bytes = table_bytes + n_head * (size_t)n_page * moa_kv_page_bytes(MOA_KV_F16, d);
    if (cudaMallocAsync(space, bytes, c->stream) != cudaSuccess) { /* not an error: see above */
        (void)cudaGetLastError();
        *space = nullptr;
        return MOA_OK;
    }
    int32_t *table = static_cast<int32_t *>(*space);
    __half *pages = reinterpret_cast<__half *>(static_cast<char *>(*space) + table_bytes);
    cudaError_t e = cudaMemsetAsync(table, 0xff, table_bytes, c->stream); /* -1: no page */
    if (e == cudaSuccess) {
        kv_with_type(a->kv.type, halves_with{c, a, pages, table, first, n_page});
        e = cudaGetLastError();
    }
    if (e != cudaSuccess) {
        (void)cudaFreeAsync(*space, c->stream);
        *space = nullptr;
        return moa_cuda_fail(c, e, "the cache as halves", err);
    }
    *out = *a;
    out->kv.pool = pages;
    out->kv.table = table;
    out->kv.table_seq_stride = 0;
    out->kv.type = MOA_KV_F16;
    return MOA_OK;
}
