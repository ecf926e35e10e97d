/* attn_map.cu -- attention of one head over a region, summed into cells, from captured q and k; never N x N in memory.
 *
 *            k0  key ranges -> columns  k1        1  rows_v1   each query of the region: log-sum-exp and statistics over ALL keys
 *        q0 +----+----+----+----+                              that the span lets it see, also those outside [k0, k1)
 *           |    |    |    |    |               2  cells_v1   a cell: sum and maximum of e^(s - lse) over its queries and keys
 *   rows    +----+----+----+----+               3  means_v1   a row's statistics: means over its queries
 *           |    |    |    |    |
 *        q1 +----+----+----+----+               scores are computed twice (1, 2) rather than stored
 *
 * A cell belongs to one warp and is summed in order, so a map is the same bits every time. Float32 with one float a key and
 * thread; q is read from shared memory by all lanes at once, k by each lane its own row.
 *
 *   version   idea                                              us
 *   v1        a warp for 4 queries (rows), a warp a cell        not timed yet: maps are asked for by a person           <- best */
#include "cuda/cuda_common.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * 32, NQ = 4, MAX_D = 256;
static constexpr int ROW_FLOATS =
    1 + MOA_N_STAT; /* of the region's queries in scratch: lse, then the statistics */

struct map_job {
    const float *q, *k;
    int d_head, window, span, measure_window;
    int q0, q1, k0, k1, rows, cols;
    float scale;
    float *mass, *max, *stat;
    float *row; /* (q1 - q0, ROW_FLOATS) */
};

__host__ __device__ static inline int cut(int from, int to, int part, int parts) {
    return from + (int)((int64_t)part * (to - from) / parts);
}

/* q rows first .. first + NQ - 1 (those below end) into shared (NQ, MAX_D), scaled; the others zero */
__device__ static inline void load_queries(const map_job &j, int first, int end, float *to) {
    for (int e = threadIdx.x % 32; e < NQ * j.d_head; e += 32) {
        const int n = e / j.d_head, i = e % j.d_head;
        to[n * MAX_D + i] = first + n < end ? j.q[(int64_t)(first + n) * j.d_head + i] * j.scale : 0.0f;
    }
    __syncwarp();
}

/* scores of NQ queries in shared memory with one key */
__device__ static inline void dots(const map_job &j, const float *q, int key, float s[NQ]) {
    const float *k = j.k + (int64_t)key * j.d_head;
#pragma unroll
    for (int n = 0; n < NQ; n++)
        s[n] = 0;
#pragma unroll 2
    for (int c = 0; c < j.d_head; c += 4) {
        const float4 x = *reinterpret_cast<const float4 *>(k + c);
#pragma unroll
        for (int n = 0; n < NQ; n++) {
            const float4 y = *reinterpret_cast<const float4 *>(q + n * MAX_D + c);
            s[n] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
        }
    }
}

__device__ static inline void add_key(moa_soft &f, moa_soft_stat &st, float s, int i, int key, int measure) {
    if (s == -INFINITY) return;
    if (s > f.m) {
        const float factor = soft_factor(f.m, s);
        stat_move(st, f.l, f.m, s, factor);
        f.l *= factor;
        f.m = s;
    }
    const float p = __expf(s - f.m);
    f.l += p;
    stat_key(st, p, s - f.m, i, key, measure);
}

/* the states of a warp's lanes become one, on every lane */
__device__ static inline void merge_lanes(moa_soft &f, moa_soft_stat &st) {
    const float m = group_max<32>(f.m), factor = soft_factor(f.m, m);
    stat_move(st, f.l, f.m, m, factor);
    f.l = warp_sum(f.l * factor);
    f.m = m;
    st.t = warp_sum(st.t);
    st.sink = warp_sum(st.sink);
    st.window = warp_sum(st.window);
    st.distance = warp_sum(st.distance);
}

/* a warp: NQ queries, a key a lane */
__global__ static void __launch_bounds__(THREADS) rows_v1(map_job j) {
    __shared__ alignas(16) float shared[WARPS][NQ * MAX_D];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = j.q0 + ((int)blockIdx.x * WARPS + warp) * NQ, last = min(first + NQ, j.q1) - 1;
    if (first > last) return;
    load_queries(j, first, j.q1, shared[warp]);
    moa_soft f[NQ];
    moa_soft_stat st[NQ];
#pragma unroll
    for (int n = 0; n < NQ; n++)
        f[n] = {-INFINITY, 0}, st[n] = moa_soft_stat();
    const int window_first = moa_window_first(j.span, first);
    for (int key = lane; key <= last; key += 32) {
        if (key >= MOA_SINK_TOK && key < window_first) { /* the cut: go on at its end, in the same lane */
            key += (window_first - key) / 32 * 32;
            if (key < window_first) key += 32;
            if (key > last) break;
        }
        float s[NQ];
        dots(j, shared[warp], key, s);
#pragma unroll
        for (int n = 0; n < NQ; n++)
            if (moa_sees(j.span, first + n, key))
                add_key(f[n], st[n], s[n], first + n, key, j.measure_window);
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < NQ; n++) {
        merge_lanes(f[n], st[n]);
        if (lane != 0 || first + n > last) continue;
        float *row = j.row + (int64_t)(first + n - j.q0) * ROW_FLOATS;
        row[0] = f[n].m + logf(f[n].l);
        stat_write(row + 1, f[n], st[n]);
    }
}

/* a warp: one cell; grid: rows x cols / WARPS */
__global__ static void __launch_bounds__(THREADS) cells_v1(map_job j) {
    __shared__ alignas(16) float shared[WARPS][NQ * MAX_D];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int r = blockIdx.x, c = (int)blockIdx.y * WARPS + warp;
    if (c >= j.cols) return;
    const int q_first = cut(j.q0, j.q1, r, j.rows), q_end = cut(j.q0, j.q1, r + 1, j.rows);
    const int k_first = cut(j.k0, j.k1, c, j.cols), k_end = cut(j.k0, j.k1, c + 1, j.cols);
    float mass = 0, top = 0;
    for (int first = q_first; first < q_end; first += NQ) {
        const int last = min(first + NQ, q_end) - 1;
        if (k_first > last) continue; /* all later than the queries */
        if (k_first >= MOA_SINK_TOK && first - (k_end - 1) >= j.window) continue; /* all cut */
        __syncwarp();
        load_queries(j, first, q_end, shared[warp]);
        float lse[NQ];
#pragma unroll
        for (int n = 0; n < NQ; n++)
            lse[n] = j.row[(int64_t)(min(first + n, last) - j.q0) * ROW_FLOATS];
        for (int key = k_first + lane; key < min(k_end, last + 1); key += 32) {
            float s[NQ];
            dots(j, shared[warp], key, s);
#pragma unroll
            for (int n = 0; n < NQ; n++) {
                if (first + n > last || !moa_sees(j.span, first + n, key)) continue;
                const float p = __expf(s[n] - lse[n]);
                mass += p;
                top = fmaxf(top, p);
            }
        }
    }
    __syncwarp();
    mass = warp_sum(mass);
    top = group_max<32>(top);
    if (lane != 0) return;
    j.mass[(int64_t)r * j.cols + c] = mass;
    if (j.max) j.max[(int64_t)r * j.cols + c] = top;
}

/* a block: one row's means */
__global__ static void means_v1(map_job j) {
    __shared__ float s[32];
    const int first = cut(j.q0, j.q1, blockIdx.x, j.rows), end = cut(j.q0, j.q1, blockIdx.x + 1, j.rows);
    for (int k = 0; k < MOA_N_STAT; k++) {
        float sum = 0;
        for (int i = first + (int)threadIdx.x; i < end; i += blockDim.x)
            sum += j.row[(int64_t)(i - j.q0) * ROW_FLOATS + 1 + k];
        sum = block_sum(sum, s);
        if (threadIdx.x == 0)
            j.stat[(int64_t)blockIdx.x * MOA_N_STAT + k] = end > first ? sum / (float)(end - first) : 0.0f;
    }
}

moa_status moa_cuda_attn_map(moa_backend *b, const moa_args_attn_map *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->rows <= 0 || a->cols <= 0) return MOA_OK;
    if (a->q1 <= a->q0) {
        const size_t cells = sizeof(float) * (size_t)a->rows * (size_t)a->cols;
        MOA_CU(c, cudaMemsetAsync(a->mass, 0, cells, c->stream));
        if (a->max) MOA_CU(c, cudaMemsetAsync(a->max, 0, cells, c->stream));
        if (a->stat)
            MOA_CU(c, cudaMemsetAsync(a->stat, 0, sizeof(float) * MOA_N_STAT * (size_t)a->rows, c->stream));
        return MOA_OK;
    }
    if (a->d_head % 4 != 0 || a->d_head > MAX_D || a->d_head <= 0)
        return moa_fail(err, MOA_E_UNSUPPORTED,
                        "heads of %d elements: the CUDA backend takes multiples of 4 up to %d in maps",
                        a->d_head, MAX_D);
    const int n_query = a->q1 - a->q0;
    float *row = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, sizeof(float) * ROW_FLOATS * (size_t)n_query,
                                reinterpret_cast<void **>(&row), err));
    const map_job j = {a->q,      a->k,
                       a->d_head, moa_window(a->span),
                       a->span,   moa_window(a->measure_span),
                       a->q0,     a->q1,
                       a->k0,     a->k1,
                       a->rows,   a->cols,
                       a->scale,  a->mass,
                       a->max,    a->stat,
                       row};
    rows_v1<<<(unsigned)moa_ceil_div(n_query, WARPS * NQ), THREADS, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "attn_map's rows");
    const dim3 cells((unsigned)a->rows, (unsigned)moa_ceil_div(a->cols, WARPS));
    cells_v1<<<cells, THREADS, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "attn_map's cells");
    if (!a->stat) return MOA_OK;
    means_v1<<<(unsigned)a->rows, 128, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "attn_map's means");
    return MOA_OK;
}
