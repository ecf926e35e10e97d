/* attn_prefill.cu -- attention of consecutive queries of one sequence over its pages, every head under its own span.
 *
 *            keys  page 0 | cut: never loaded | pages that some query of the tile sees          a tile: BM queries of one head
 *     tile   ......|sink  |                   |edge |  full  | ... |  full  |diag|              loops over its own pages only
 *
 *   S = Q K^T       BM x BN in registers, operands from shared memory, transposed so that both are read 16 bytes at once
 *   softmax         online, float32: running max m and sum l a row; 16 threads hold a row and agree by shuffles
 *   O += P V        P goes through shared memory; V takes K's place there
 *
 * The list of pages follows from (span, position) alone: page 0, then from the page of the first key the tile's first query sees to
 * that of its last query. Only pages at an edge test single keys. Tiles of the end of the prompt have most work and start first.
 * A page that is not there (freed before a plan was widened) is passed over: its keys are gone.
 *
 * The probe's statistics are sums carried beside l. Its histogram needs normalised masses, so a second sweep over the pages
 * computes S again once m and l are known; a page and a row meet at most two distance bins. Histogram sums are added
 * with float atomics: their last bits may differ between runs, nothing else does. Off, none of it is compiled in.
 *
 *   version   idea                             H100, f16 cache: us, TFLOP/s of the visible pairs (its FMA units: 60)
 *   v1        64 x 64 tiles, float32 FMA       SmolLM2 9/3 x 64 at 4096: dense 1140 us 17.0, span 512 253 us 17.9; 8B 32/8 x 128
 *                                              at 8192: dense 17.4 ms 31.6, span 4096 13.0 ms 31.7                    <- best
 *   measured 2026-11-24 with  test_ops_cuda --bench attn_prefill  (docs/measurements/2026-11-24-h100-cuda-v1.md)           */
#include <stdlib.h>
#include <string.h>

#include "cuda/attn_prefill.cuh"
#include "cuda/kv_types.cuh"

static constexpr int SIDE = 16, THREADS = SIDE * SIDE, MAX_SLOT = 3;

template <typename T> struct prefill_job {
    const float *q; /* (n_tok, n_head, d_head) */
    float *o;
    moa_kv<T> kv;
    const int32_t *span; /* (n_head) */
    int seq, pos0, n_tok, n_head, group;
    float scale;
    moa_probe probe;
};

/* the shapes of a tile for heads of up to DP elements */
template <int DP> struct tile_of {
    static constexpr int BM = DP <= 128 ? 64 : 32, BN = BM, TM = BM / SIDE, TN = BN / SIDE, TD = DP / SIDE;
    static constexpr int Q = DP * (BM + 4), KV = DP * (BN + 4),
                         P = BN * (BM + 4); /* floats of shared memory */
    static size_t shared_bytes() { return sizeof(float) * (Q + KV + P); }
};

/* rows of a page's K (BN of them, from row0 on) into shared memory, transposed: out[c][r]; c >= d_head is not written */
template <int BN, typename T>
__device__ static inline void load_transposed(const T *page, int row0, int d_head, float *out) {
    for (int e = threadIdx.x; e < BN * (d_head / 8); e += THREADS) {
        const int r = e % BN, c = e / BN * 8;
        float x[8];
        load8_k(page, d_head, row0 + r, c, x);
#pragma unroll
        for (int i = 0; i < 8; i++)
            out[(c + i) * (BN + 4) + r] = x[i];
    }
}
/* the same of V, untransposed: out[r][c]; zero for c >= d_head, and for rows from n_row on: they are not written yet, and what lies
 * there may be NaN */
template <int BN, int DP, typename T>
__device__ static inline void load_values(const T *page, int row0, int n_row, int d_head, float *out) {
    for (int e = threadIdx.x; e < BN * (DP / 8); e += THREADS) {
        const int r = e / (DP / 8), c = e % (DP / 8) * 8;
        float x[8] = {};
        if (c < d_head && r < n_row) load8_v(page, d_head, row0 + r, c, x);
        reinterpret_cast<float4 *>(out + r * DP + c)[0] = make_float4(x[0], x[1], x[2], x[3]);
        reinterpret_cast<float4 *>(out + r * DP + c)[1] = make_float4(x[4], x[5], x[6], x[7]);
    }
}

template <int N> __device__ static inline void read_vector(const float *at, float out[N]) {
    if constexpr (N == 4) {
        const float4 v = *reinterpret_cast<const float4 *>(at);
        out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
    } else {
        static_assert(N == 2, "tiles are 4 or 2 elements a thread");
        const float2 v = *reinterpret_cast<const float2 *>(at);
        out[0] = v.x, out[1] = v.y;
    }
}

/* s (TM, TN) of this thread: rows ty*TM.., keys tx*TN.. of the BN keys in kt */
template <int DP>
__device__ static inline void scores(const float *qt, const float *kt, int d_head,
                                     float s[tile_of<DP>::TM][tile_of<DP>::TN]) {
    typedef tile_of<DP> t;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
#pragma unroll
    for (int a = 0; a < t::TM; a++)
#pragma unroll
        for (int b = 0; b < t::TN; b++)
            s[a][b] = 0;
#pragma unroll 8
    for (int c = 0; c < d_head; c++) {
        float x[t::TM], y[t::TN];
        read_vector<t::TM>(qt + c * (t::BM + 4) + ty * t::TM, x);
        read_vector<t::TN>(kt + c * (t::BN + 4) + tx * t::TN, y);
#pragma unroll
        for (int a = 0; a < t::TM; a++)
#pragma unroll
            for (int b = 0; b < t::TN; b++)
                s[a][b] += x[a] * y[b];
    }
}

/* masses of one swept page sub-tile into the histogram of its head.
 * s: scores; m, l: the rows' softmax; acc: shared (MOA_HIST_BUCKETS, MAX_SLOT), zero on entry and on exit */
template <int DP>
__device__ static void add_hist(const moa_probe &probe, float *hist, int span, int i0, int i_end, int page,
                                int j0, const float s[tile_of<DP>::TM][tile_of<DP>::TN], const float *m,
                                const float *l, float *acc) {
    typedef tile_of<DP> t;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE;
    const int low =
        max((i0 - (page * MOA_PAGE_TOK + MOA_PAGE_TOK - 1)) / MOA_PAGE_TOK, 0); /* the bin of slot 0 */
#pragma unroll
    for (int a = 0; a < t::TM; a++) {
        const int i = i0 + ty * t::TM + a;
        const int bin = (i - page * MOA_PAGE_TOK) /
                        MOA_PAGE_TOK; /* of the page's first key; later keys may be one nearer */
        float far = 0, near = 0;
#pragma unroll
        for (int b = 0; b < t::TN; b++) {
            const int j = j0 + tx * t::TN + b;
            if (i >= i_end || !moa_sees(span, i, j)) continue;
            const float p = __expf(s[a][b] - m[a]) / l[a];
            if (page == 0 || (i - j) / MOA_PAGE_TOK == bin)
                far += p;
            else
                near += p;
        }
        far = group_sum<SIDE>(far);
        near = group_sum<SIDE>(near);
        if (tx != 0 || i >= i_end || i < page * MOA_PAGE_TOK) continue;
        const int bucket = min(i / probe.bucket_tok, MOA_HIST_BUCKETS - 1);
        const int slot = page == 0 ? 0 : bin - low;
        const float weight = (float)moa_probe_weight(&probe.rows, i);
        if (far > 0) atomicAdd(&acc[bucket * MAX_SLOT + slot], weight * far);
        if (near > 0) atomicAdd(&acc[bucket * MAX_SLOT + slot - 1], weight * near);
    }
    __syncthreads();
    if (threadIdx.x < MOA_HIST_BUCKETS * MAX_SLOT) {
        const int bucket = threadIdx.x / MAX_SLOT, slot = threadIdx.x % MAX_SLOT;
        const float mass = acc[threadIdx.x];
        acc[threadIdx.x] = 0;
        const int to = page == 0 ? 0 : 1 + min(low + slot, probe.n_bin - 1);
        if (mass > 0) atomicAdd(&hist[(int64_t)bucket * (1 + probe.n_bin) + to], mass);
    }
    __syncthreads();
}

/* grid: tiles x heads */
template <int DP, typename T, bool PROBE>
__global__ static void __launch_bounds__(THREADS) prefill_v1(const prefill_job<T> j) {
    typedef tile_of<DP> t;
    extern __shared__ __align__(16) float shared[];
    __shared__ float acc[MOA_HIST_BUCKETS * MAX_SLOT];
    float *qt = shared, *kv = qt + t::Q, *pt = kv + t::KV;
    const int tx = threadIdx.x % SIDE, ty = threadIdx.x / SIDE, d_head = j.kv.d_head;
    const int head = blockIdx.y, head_kv = head / j.group;
    const int tok0 = (int)(gridDim.x - 1 - blockIdx.x) * t::BM, n_row = min(t::BM, j.n_tok - tok0);
    const int i0 = j.pos0 + tok0, i_end = i0 + n_row, span = j.span[head], window = moa_window(span);
    const int measure = PROBE && j.probe.measure_span ? moa_window(j.probe.measure_span[head]) : window;

    for (int e = threadIdx.x; e < t::BM * (d_head / 8); e += THREADS) { /* Q, scaled, transposed */
        const int r = e % t::BM, c = e / t::BM * 8;
        float x[8] = {};
        if (r < n_row)
            for (int i = 0; i < 8; i++)
                x[i] = j.q[((int64_t)(tok0 + r) * j.n_head + head) * d_head + c + i];
#pragma unroll
        for (int i = 0; i < 8; i++)
            qt[(c + i) * (t::BM + 4) + r] = x[i] * j.scale;
    }
    float o[t::TM][t::TD] = {}, m[t::TM], l[t::TM] = {};
    moa_soft_stat st[t::TM] = {};
#pragma unroll
    for (int a = 0; a < t::TM; a++)
        m[a] = -INFINITY;

    const page_list pages = pages_of(span, i0, i_end - 1);
    for (int k = 0; k < pages.count(); k++) {
        const T *page = j.kv.page(j.seq, head_kv, pages.at(k));
        if (!page) continue;
        for (int row0 = 0; row0 < MOA_PAGE_TOK; row0 += t::BN) {
            const int j0 = pages.at(k) * MOA_PAGE_TOK + row0;
            if (j0 >= i_end) break;
            load_transposed<t::BN>(page, row0, d_head, kv);
            __syncthreads();
            float s[t::TM][t::TN];
            scores<DP>(qt, kv, d_head, s);
            /* are all keys of the sub-tile seen by all its queries? */
            const bool full = j0 + t::BN - 1 <= i0 && (pages.at(k) == 0 || i_end - 1 - j0 < window);
#pragma unroll
            for (int a = 0; a < t::TM; a++) {
                const int i = i0 + ty * t::TM + a;
                float top = -INFINITY;
#pragma unroll
                for (int b = 0; b < t::TN; b++) {
                    if (!full && !moa_sees(span, i, j0 + tx * t::TN + b)) s[a][b] = -INFINITY;
                    top = fmaxf(top, s[a][b]);
                }
                top = fmaxf(m[a], group_max<SIDE>(top));
                const float factor = soft_factor(m[a], top);
                float sum = 0;
                moa_soft_stat add = {};
#pragma unroll
                for (int b = 0; b < t::TN; b++) {
                    const float x = s[a][b] - top;
                    s[a][b] = top == -INFINITY ? 0.0f : __expf(x);
                    sum += s[a][b];
                    if (PROBE) stat_key(add, s[a][b], x, i, j0 + tx * t::TN + b, measure);
                }
                if (PROBE) { /* each of the row's 16 threads carries its own part of the statistics, and all of l */
                    stat_move(st[a], tx == 0 ? l[a] : 0.0f, m[a], top, factor);
                    stat_add(st[a], add);
                }
                l[a] = l[a] * factor + group_sum<SIDE>(sum);
                m[a] = top;
#pragma unroll
                for (int c = 0; c < t::TD; c++)
                    o[a][c] *= factor;
            }
#pragma unroll
            for (int b = 0; b < t::TN; b++)
#pragma unroll
                for (int a = 0; a < t::TM; a++)
                    pt[(tx * t::TN + b) * (t::BM + 4) + ty * t::TM + a] = s[a][b];
            __syncthreads();
            load_values<t::BN, DP>(page, row0, i_end - j0, d_head, kv);
            __syncthreads();
#pragma unroll 4
            for (int r = 0; r < t::BN; r++) {
                float p[t::TM];
                read_vector<t::TM>(pt + r * (t::BM + 4) + ty * t::TM, p);
#pragma unroll
                for (int c = 0; c < t::TD; c++) {
                    const float v = kv[r * DP + c * SIDE + tx];
#pragma unroll
                    for (int a = 0; a < t::TM; a++)
                        o[a][c] += p[a] * v;
                }
            }
            __syncthreads();
        }
    }
#pragma unroll
    for (int a = 0; a < t::TM; a++) {
        const int r = ty * t::TM + a;
        const int64_t row = (int64_t)(tok0 + r) * j.n_head + head;
        const float inv = l[a] > 0 ? 1.0f / l[a] : 0.0f;
#pragma unroll
        for (int c = 0; c < t::TD; c++)
            if (r < n_row && c * SIDE + tx < d_head) j.o[row * d_head + c * SIDE + tx] = o[a][c] * inv;
        if (PROBE && j.probe.stat) {
            const moa_soft f = {m[a], l[a]};
            const moa_soft_stat whole = {group_sum<SIDE>(st[a].t), group_sum<SIDE>(st[a].sink),
                                         group_sum<SIDE>(st[a].window), group_sum<SIDE>(st[a].distance)};
            if (r < n_row && tx == 0) stat_write(j.probe.stat + row * MOA_N_STAT, f, whole);
        }
    }
    if (!PROBE || !j.probe.hist || !looked_at(j.probe.rows, i0, i_end)) return;

    float *hist = j.probe.hist + (int64_t)head * MOA_HIST_BUCKETS * (1 + j.probe.n_bin);
    if (threadIdx.x < MOA_HIST_BUCKETS * MAX_SLOT) acc[threadIdx.x] = 0;
    for (int k = 0; k < pages.count(); k++) {
        const T *page = j.kv.page(j.seq, head_kv, pages.at(k));
        if (!page) continue;
        for (int row0 = 0; row0 < MOA_PAGE_TOK; row0 += t::BN) {
            const int j0 = pages.at(k) * MOA_PAGE_TOK + row0;
            if (j0 >= i_end) break;
            load_transposed<t::BN>(page, row0, d_head, kv);
            __syncthreads();
            float s[t::TM][t::TN];
            scores<DP>(qt, kv, d_head, s);
            add_hist<DP>(j.probe, hist, span, i0, i_end, pages.at(k), j0, s, m, l, acc);
        }
    }
}

template <int DP, typename T, bool PROBE> static cudaError_t launch(moa_cuda *c, const prefill_job<T> &j) {
    const size_t shared = tile_of<DP>::shared_bytes();
    const cudaError_t e = moa_allow_shared(prefill_v1<DP, T, PROBE>, shared);
    if (e != cudaSuccess) return e;
    const dim3 grid((unsigned)moa_ceil_div(j.n_tok, tile_of<DP>::BM), (unsigned)j.n_head);
    prefill_v1<DP, T, PROBE><<<grid, THREADS, shared, c->stream>>>(j);
    return cudaGetLastError();
}

template <typename T, bool PROBE> static cudaError_t launch_by_size(moa_cuda *c, const prefill_job<T> &j) {
    if (j.kv.d_head <= 64) return launch<64, T, PROBE>(c, j);
    if (j.kv.d_head <= 96) return launch<96, T, PROBE>(c, j);
    if (j.kv.d_head <= 128) return launch<128, T, PROBE>(c, j);
    return launch<256, T, PROBE>(c, j);
}

template <typename T> static cudaError_t attend(moa_cuda *c, const moa_args_attn_prefill *a) {
    const prefill_job<T> j = {a->q,     a->o,      moa_kv_of<T>(&a->kv),        a->span,  a->seq,  a->pos0,
                              a->n_tok, a->n_head, a->n_head / a->kv.n_head_kv, a->scale, a->probe};
    return a->probe.stat || a->probe.hist ? launch_by_size<T, true>(c, j) : launch_by_size<T, false>(c, j);
}
struct prefill_with {
    moa_cuda *c;
    const moa_args_attn_prefill *a;
    template <typename T> cudaError_t operator()(T) const { return attend<T>(c, a); }
};

enum prefill_version { PREFILL_V1, PREFILL_V2, PREFILL_V2X, PREFILL_V3, PREFILL_AUTO };

/* $MOASCOPE_CUDA_PREFILL, else by size ($MOASCOPE_CUDA_PRECISE: v1): a wish, see below */
static moa_status choose(const moa_cuda *c, prefill_version *out, moa_err *err) {
    static const char *const words[] = {"v1", "v2", "v2x", "v3", "auto"}; /* by prefill_version */
    const char *word = getenv("MOASCOPE_CUDA_PREFILL");
    *out = c->precise ? PREFILL_V1 : PREFILL_AUTO;
    if (!word || !*word) return MOA_OK;
    for (int v = PREFILL_V1; v <= PREFILL_AUTO; v++) {
        *out = (prefill_version)v;
        if (strcmp(word, words[v]) == 0) return MOA_OK;
    }
    return moa_fail(err, MOA_E_USAGE, "MOASCOPE_CUDA_PREFILL is \"%s\": auto, v1, v2, v2x or v3", word);
}

bool moa_cuda_prefill_copies(const moa_cuda *c) {
    prefill_version version = PREFILL_V1;
    return choose(c, &version, nullptr) == MOA_OK && version != PREFILL_V1;
}

static moa_status attend_in_halves(moa_cuda *c, const moa_args_attn_prefill *a, bool *taken, moa_err *err) {
    moa_args_attn_prefill halves;
    void *space = nullptr;
    MOA_RETURN(moa_cuda_prefill_halves(c, a, &halves, &space, err));
    *taken = space && moa_cuda_prefill_mma_takes(&halves);
    const moa_status s = *taken ? moa_cuda_attn_prefill(&c->base, &halves, err) : MOA_OK;
    if (space) (void)cudaFreeAsync(space, c->stream);
    return s;
}

/* auto: v3 where it fits; v3 where it can, else v2; v2 and v2x where they can, else v1. Caches of bf16 and q8 become halves for all but v1. */
moa_status moa_cuda_attn_prefill(moa_backend *b, const moa_args_attn_prefill *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    prefill_version version = PREFILL_V1;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    MOA_RETURN(choose(c, &version, err));
    if (a->n_tok <= 0) return MOA_OK;
    if (version != PREFILL_V1 && (a->kv.type == MOA_KV_BF16 || a->kv.type == MOA_KV_Q8)) {
        bool taken = false;
        MOA_RETURN(attend_in_halves(c, a, &taken, err));
        if (taken) return MOA_OK;
    }
#ifdef MOA_CUDA_HOPPER
    if ((version == PREFILL_V3 || version == PREFILL_AUTO) && moa_cuda_prefill_wgmma_takes(c, a) &&
        (version == PREFILL_V3 || moa_cuda_prefill_wgmma_fits(c, a)))
        return moa_cuda_prefill_wgmma(c, a, err);
#endif
    if (version != PREFILL_V1 && moa_cuda_prefill_mma_takes(a))
        return moa_cuda_prefill_mma(c, a, version == PREFILL_V2X ? 2 : 1, err);
    if (a->kv.d_head % 8 != 0 || a->kv.d_head > 256 || a->kv.d_head <= 0)
        return moa_fail(err, MOA_E_UNSUPPORTED,
                        "heads of %d elements: the CUDA backend takes multiples of 8 up to 256",
                        a->kv.d_head);
    MOA_CU(c, kv_with_type(a->kv.type, prefill_with{c, a}));
    return MOA_OK;
}
