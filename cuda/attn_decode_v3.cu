/* attn_decode_v3.cu -- decode attention where little has to be read: as few steps one after the other as there can be.
 *
 * Up to some 50 MB a layer it is not the reading that takes the time but what each step waits for: position, then span, then table,
 * then page; a part written, a counter, other parts read. v2 has about ten such waits of half a microsecond and more. Here:
 *
 *   item     (sequence, KV head), as in v1. Its pages are dealt out to S blocks in turn, whatever its span: block s has pages s, s + S,
 *            s + 2S, ... as far as they are seen, and warp w of it quarter w of each (a unit). So a block knows its item and its table
 *            entries by its number alone: position, spans and table are read in one round. No line is counted. Units of an item
 *            differ by one a warp; items of different span are not evened out, which costs nothing while all fits in flight at once
 *   early    the launch begins beside the kernels in front (launch.cuh), which may still write the newest key and value and q, and
 *            nothing else that is read here: all units but the newest are asked for before they end
 *   meeting  S blocks are one cluster of up to 16: every warp leaves m, l and o in its block's shared memory, and after one barrier every
 *            block takes its share of o's columns from all warps of all its blocks, a column's parts in the lanes of a warp: one
 *            round of reads. Where an item has more to read than one cluster should, it gets several; the blocks of the same
 *            rank in each meet through global memory and a ticket, each for its own columns
 *
 * Order of summing is fixed: the same bits every time. Needs sm_90 (clusters); what a warp does with a unit is attn_decode_mma.cuh's.
 *
 *   version   H100, f16, one layer, us; N dense, N half (v1 -> v2 -> v3)
 *   SmolLM2 9/3 x 64        4k  14.2 -> 10.7 -> 7.5,   14.5 ->  8.5 ->  6.6
 *   Qwen2.5-1.5B 12/2 x 128 4k  22.9 -> 13.2 -> 10.0,  25.2 -> 11.8 ->  9.8    16k 43.9 -> 20.1 -> 18.0, 35.6 -> 26.6 -> 13.8
 *   Llama-3-8B 32/8 x 128   4k  23.9 -> 19.3 -> 13.4,  24.1 -> 18.1 -> 11.2    16k 48.8 -> 37.2 -> 36.1, 37.2 -> 26.5 -> 22.0
 *                           128k 249 ->  199 ->  228,   140 ->  113 ->  133: not for long heads
 *   v2's half was slower than its dense: the block that comes last merges 106 parts instead of 66, 0.8 us a round of loads
 *   2026-11-24, test_ops_cuda --bench attn_decode (docs/measurements/2026-11-24-h100-decode.md)                          */
#include "cuda/attn_decode_mma.cuh"
#include "cuda/launch.cuh"

static constexpr int WARPS = UNITS_PAGE, THREADS = WARPS * 32;
static constexpr int MAX_CLUSTER = 16;
static constexpr int MAX_PARTS = MAX_CLUSTER * WARPS / 32; /* of a column, a lane */
static constexpr size_t RING_BYTES =
    106 << 10; /* two blocks fit a multiprocessor: of this launch and of the next */
static constexpr size_t SHARE_BYTES = 192 << 10; /* a block gets more only where there are no more blocks */
static constexpr int STATE = 8;                  /* m, l, statistics; for alignment */

struct v3_job {
    mma_job m;
    int cluster, n_cluster; /* blocks of a cluster, clusters of an item: S = cluster * n_cluster */
    bool early;             /* the kernels in front may write only the unit that holds the position */
};
struct v3_shared {
    alignas(8) uint64_t bar[WARPS][MAX_STAGE];
    alignas(16) float state[WARPS][MAX_GROUP][STATE];
    int last;
};

/* --- instructions of clusters --------------------------------------------------------------------------- */

__device__ static inline int cluster_rank() {
    unsigned r = 0;
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
#endif
    return (int)r;
}
__device__ static inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ static inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/* the same place in the shared memory of block `rank` of the cluster */
__device__ static inline unsigned peer_at(unsigned at, int rank) {
#if __CUDA_ARCH__ >= 900
    asm("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
#endif
    return at;
}
__device__ static inline float4 peer16(unsigned at) {
    float4 x = {};
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(at)
                 : "memory");
#endif
    return x;
}
__device__ static inline float2 peer8(unsigned at) {
    float2 x = {};
#if __CUDA_ARCH__ >= 900
    asm volatile("ld.shared::cluster.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(at) : "memory");
#endif
    return x;
}

/* --- a warp's units ------------------------------------------------------------------------------------- */

struct share {
    int first, step;       /* its units are first, first + step, ...: number t is of page split + S t */
    int n_sink, t0, n;     /* how many are seen: n_sink (0 or 1), then numbers t0, t0 + 1, ...; in all */
    int last;              /* the unit that holds the position */
    int base, entry;       /* lane i holds the table's entry for number base + i */
    unsigned stages, bars; /* the warp's ring, shared addresses */
    int n_stage;
    unsigned there; /* bit i: the unit in stage i has a page */
};

__device__ static inline int number_of(const share &w, int i) {
    return i < w.n_sink ? 0 : i - w.n_sink + w.t0;
}
__device__ static inline int unit_of(const share &w, int i) {
    return w.first + w.step * number_of(w, i);
}
__device__ static inline int load_entry(const mma_job &j, const segment &s, int base) {
    const int page = (int)blockIdx.x + (int)gridDim.x * (base + (int)threadIdx.x % 32);
    return page < j.kv.max_pages
               ? j.kv.table[s.seq * j.kv.seq_stride + (int64_t)s.head_kv * j.kv.max_pages + page]
               : -1;
}

/* Block (split, item). Reads position, spans and the first table entries, in one round. */
__device__ static void look_up(const mma_job &j, segment &s, share &w) {
    const int lane = threadIdx.x % 32, n = blockIdx.y, part = n % j.n_part;
    s.n = n;
    s.head_kv = n / j.n_part % j.n_head_kv;
    s.seq = n / j.n_part / j.n_head_kv;
    s.head = s.head_kv * j.group + part * MAX_GROUP;
    s.n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
    w.base = 0;
    w.entry = load_entry(j, s, 0);
    s.pos = j.pos[s.seq];
    int span[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int h = lane % 4 * 2 + i;
        span[i] = h < s.n_head ? j.span[s.seq * j.span_stride + s.head + h] : -1;
    }
    int narrowest = INT32_MAX;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        s.window[i] = span[i] >= 0 ? moa_window(span[i]) : INT32_MAX;
        narrowest = min(narrowest, s.window[i]);
    }
    const int widest = __reduce_max_sync(ALL, max(max(span[0], span[1]), 0));
    s.narrowest = __reduce_min_sync(ALL, narrowest);
    w.first = (int)blockIdx.x * UNITS_PAGE + (int)threadIdx.x / 32;
    w.step = (int)gridDim.x * UNITS_PAGE;
    w.last = s.pos < 0 ? -1 : s.pos / UNIT_TOK;
    const int begin = moa_window_first(widest, s.pos) / UNIT_TOK; /* of the window: at least SINK_UNITS */
    w.n_sink = w.first < SINK_UNITS && w.first <= w.last;
    w.t0 = w.first >= begin ? 0 : (begin - w.first + w.step - 1) / w.step;
    w.n = w.n_sink + (w.last >= w.first ? max((w.last - w.first) / w.step - w.t0 + 1, 0) : 0);
    w.there = 0;
}

/* starts the copies of unit i, in order of i */
template <int D>
__device__ static void issue(const mma_job &j, const segment &s, share &w, int i, int stage) {
    const int t = number_of(w, i), unit = w.first + w.step * t;
    if (t >= w.base + 32) {
        w.base = t;
        w.entry = load_entry(j, s, t);
    }
    const int entry = __shfl_sync(ALL, w.entry, t - w.base);
    const __half *rows =
        entry < 0 ? nullptr
                  : j.kv.pool + ((int64_t)entry * (2 * MOA_PAGE_TOK) + unit % UNITS_PAGE * UNIT_TOK) * D;
    w.there = entry < 0 ? w.there & ~(1u << stage) : w.there | 1u << stage;
    fill_stage<D>(w.stages + (unsigned)(stage * unit_layout<D>::UNIT), w.bars + (unsigned)stage * 8, rows,
                  min(s.pos - unit * UNIT_TOK + 1, UNIT_TOK));
}

template <int D, bool STATS>
__device__ static void attend_share(const mma_job &j, const segment &s, share &w, warp_state<D, STATS> &u) {
    queries<D> q;
    int measure[2] = {s.window[0], s.window[1]}, at = 0;
    unsigned phase = 0;
    load_queries<D>(j, s, q);
    if (STATS && j.probe.measure_span)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int h = (int)threadIdx.x % 4 * 2 + i;
            if (h < s.n_head) measure[i] = moa_window(j.probe.measure_span[s.head + h]);
        }
    for (int i = 0; i < w.n; i++) {
        barrier_wait(w.bars + (unsigned)at * 8, phase);
        if (w.there >> at & 1)
            attend_unit<D, STATS>(j, u, q, s, unit_of(w, i), w.stages + (unsigned)(at * unit_layout<D>::UNIT),
                                  measure);
        __syncwarp(); /* everybody has read the stage */
        if (i + w.n_stage < w.n) issue<D>(j, s, w, i + w.n_stage, at);
        if (++at == w.n_stage) at = 0, phase ^= 1;
    }
}

/* --- meeting -------------------------------------------------------------------------------------------- */

/* what a warp leaves of o stands at the begin of its ring: (n_head, D), 16 bytes further a warp, for the banks */
__device__ static inline unsigned left_at(unsigned rings, int n_stage, int unit_bytes, int warp) {
    return rings + (unsigned)(warp * (n_stage * unit_bytes + 16));
}

template <int D, bool STATS>
__device__ static void leave(const warp_state<D, STATS> &u, const segment &s, unsigned at, v3_shared &sh) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float x[6] = {u.m[h], u.l[h], 0, 0, 0, 0};
        if (STATS) x[2] = u.st[h].t, x[3] = u.st[h].sink, x[4] = u.st[h].window, x[5] = u.st[h].distance;
#pragma unroll
        for (int k = 1; k < (STATS ? 6 : 2); k++)
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                x[k] += __shfl_xor_sync(ALL, x[k], d);
        if (g == 0)
#pragma unroll
            for (int k = 0; k < (STATS ? 6 : 2); k++)
                sh.state[warp][2 * c + h][k] = x[k];
        if (2 * c + h >= s.n_head) continue;
#pragma unroll
        for (int i = 0; i < unit_layout<D>::STEPS; i++)
            asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(
                             at + (unsigned)((2 * c + h) * D + element_of<D>(i, g)) * 4),
                         "f"(u.o[i][h]), "f"(u.o[i][2 + h])
                         : "memory");
    }
}

/* parts of a column in lanes that are WIDTH apart at most become their sum on all of them; m: the reference afterwards */
__device__ static inline void lanes_max(float &m, int width) {
    for (int d = width / 2; d > 0; d /= 2)
        m = fmaxf(m, __shfl_xor_sync(ALL, m, d));
}
__device__ static inline void lanes_sum(float &l, float4 &o, int width) {
    for (int d = width / 2; d > 0; d /= 2) {
        l += __shfl_xor_sync(ALL, l, d);
        o.x += __shfl_xor_sync(ALL, o.x, d), o.y += __shfl_xor_sync(ALL, o.y, d);
        o.z += __shfl_xor_sync(ALL, o.z, d), o.w += __shfl_xor_sync(ALL, o.w, d);
    }
}
__device__ static inline float factor_of(float m, float to) {
    return m == -INFINITY ? 0.0f : exp2_fast(m - to);
}
__device__ static inline void add_part(float &l, float4 &o, float f, float l_part, const float4 &x) {
    l += f * l_part;
    o.x += f * x.x, o.y += f * x.y, o.z += f * x.z, o.w += f * x.w;
}

/* where an item's columns of 4 elements go */
struct columns {
    int all, first, count; /* of the item; of this block */
    float4 *o;             /* (all): the result */
    float4 *part;          /* (n_cluster, all of part_heads, 2): {o}, {m, l, -, -} of each cluster */
    int64_t part_step;     /* float4 a cluster */
};
template <int D> __device__ static columns columns_of(const v3_job &job, const segment &s, int rank) {
    const mma_job &j = job.m;
    columns k;
    k.all = s.n_head * (D / 4);
    const int each = (k.all + job.cluster - 1) / job.cluster;
    k.first = rank * each;
    k.count = min(each, k.all - k.first);
    k.o = reinterpret_cast<float4 *>(j.o + ((int64_t)s.seq * j.n_head + s.head) * D);
    k.part_step = (int64_t)j.part_heads * (D / 4) * 2;
    k.part = reinterpret_cast<float4 *>(j.part_o) + s.n * job.n_cluster * k.part_step;
    return k;
}
__device__ static inline void put_column(float4 *to, float l, const float4 &o) {
    const float inv = l > 0.0f ? 1.0f / l : 0.0f;
    *to = make_float4(o.x * inv, o.y * inv, o.z * inv, o.w * inv);
}

/* This block's columns from all warps of the cluster; rings: shared address of the first warp's. */
template <int D>
__device__ static void merge_cluster(const v3_job &job, const columns &k, unsigned rings, v3_shared &sh) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int n_part = job.cluster * WARPS, width = min(n_part, 32), at_once = 32 / width;
    for (int base = warp * at_once; base < k.count; base += WARPS * at_once) {
        const int c = base + lane / width;
        const bool in = c < k.count;
        const int e = k.first + (in ? c : base), h = e / (D / 4);
        float2 state[MAX_PARTS];
        float4 x[MAX_PARTS], o = {};
        float m = -INFINITY, l = 0;
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++) { /* all reads before any is used */
            const int p = lane % width + i * 32;
            state[i] = make_float2(-INFINITY, 0);
            x[i] = make_float4(0, 0, 0, 0);
            if (p >= n_part) continue;
            state[i] = peer8(peer_at(shared_at(&sh.state[p % WARPS][h][0]), p / WARPS));
            x[i] = peer16(
                peer_at(left_at(rings, job.m.n_stage, unit_layout<D>::UNIT, p % WARPS) + (unsigned)e * 16,
                        p / WARPS));
        }
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++)
            m = fmaxf(m, state[i].x);
        lanes_max(m, width);
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++)
            add_part(l, o, factor_of(state[i].x, m), state[i].y, x[i]);
        lanes_sum(l, o, width);
        if (lane % width != 0 || !in) continue;
        if (job.n_cluster == 1) {
            put_column(k.o + e, l, o);
        } else {
            float4 *part = k.part + (int)blockIdx.x / job.cluster * k.part_step + e * 2;
            part[0] = o;
            part[1] = make_float4(m, l, 0, 0);
        }
    }
}

/* The statistics of the heads that this block sums: head `rank` of the group, and so on. */
__device__ static void merge_stats(const v3_job &job, const segment &s, int rank, v3_shared &sh) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_part = job.cluster * WARPS;
    for (int h = rank + job.cluster * warp; h < s.n_head; h += job.cluster * WARPS) {
        float y[MAX_PARTS][6], x[6] = {-INFINITY, 0, 0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++) {
            const int p = lane + i * 32;
            y[i][0] = -INFINITY;
            if (p >= n_part) continue;
            const unsigned at = peer_at(shared_at(&sh.state[p % WARPS][h][0]), p / WARPS);
            const float4 a = peer16(at);
            const float2 b = peer8(at + 16);
            y[i][0] = a.x, y[i][1] = a.y, y[i][2] = a.z, y[i][3] = a.w, y[i][4] = b.x, y[i][5] = b.y;
        }
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++)
            x[0] = fmaxf(x[0], y[i][0]);
        x[0] = group_max<32>(x[0]);
#pragma unroll
        for (int i = 0; i < MAX_PARTS; i++)
            if (y[i][0] != -INFINITY) add_state<true>(x, y[i], x[0]);
#pragma unroll
        for (int i = 1; i < 6; i++)
            x[i] = warp_sum(x[i]);
        if (lane != 0) continue;
        if (job.n_cluster == 1) {
            write_state(job.m, s, h, x);
        } else {
            float *to =
                job.m.part_state +
                (((int64_t)s.n * job.n_cluster + (int)blockIdx.x / job.cluster) * job.m.part_heads + h) *
                    PART_STATE;
#pragma unroll
            for (int i = 0; i < 6; i++)
                to[i] = x[i];
        }
    }
}

/* whether this block is the last of its rank in the item's clusters: all parts of its columns are there then */
__device__ static bool comes_last(const v3_job &job, const segment &s, int rank, v3_shared &sh) {
    __syncthreads();
    if (threadIdx.x == 0) {
        int *ticket = &job.m.ticket[s.n * job.cluster + rank];
        __threadfence(); /* the block's parts, before the ticket */
        sh.last = atomicAdd(ticket, 1) == job.n_cluster - 1;
        if (sh.last) *ticket = 0; /* for the next launch: nobody else comes */
        __threadfence();          /* the ticket, before the others' parts */
    }
    __syncthreads();
    return sh.last;
}

/* the block's columns from all clusters of the item; then its heads' statistics */
__device__ static void merge_item(const v3_job &job, const columns &k) {
    constexpr int WIDTH = 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int base = warp * (32 / WIDTH); base < k.count; base += THREADS / WIDTH) {
        const int c = base + lane / WIDTH;
        const bool in = c < k.count;
        const int e = k.first + (in ? c : base);
        float m = -INFINITY, l = 0;
        float4 o = {};
        for (int i = lane % WIDTH; i < job.n_cluster; i += WIDTH) {
            const float4 x = __ldcg(k.part + i * k.part_step + e * 2),
                         state = __ldcg(k.part + i * k.part_step + e * 2 + 1);
            const float to = fmaxf(m, state.x), f = factor_of(m, to);
            l *= f, o.x *= f, o.y *= f, o.z *= f, o.w *= f;
            add_part(l, o, factor_of(state.x, to), state.y, x);
            m = to;
        }
        float top = m;
        lanes_max(top, WIDTH);
        const float f = factor_of(m, top);
        l *= f, o.x *= f, o.y *= f, o.z *= f, o.w *= f;
        lanes_sum(l, o, WIDTH);
        if (lane % WIDTH == 0 && in) put_column(k.o + e, l, o);
    }
}
__device__ static void merge_item_stats(const v3_job &job, const segment &s, int rank) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int h = rank + job.cluster * warp; h < s.n_head; h += job.cluster * WARPS) {
        const float *from =
            job.m.part_state + ((int64_t)s.n * job.n_cluster * job.m.part_heads + h) * PART_STATE;
        float x[6] = {-INFINITY, 0, 0, 0, 0, 0};
        for (int i = 0; i < job.n_cluster; i++)
            x[0] = fmaxf(x[0], __ldcg(from + (int64_t)i * job.m.part_heads * PART_STATE));
        for (int i = lane; i < job.n_cluster; i += 32) {
            float y[6];
#pragma unroll
            for (int n = 0; n < 6; n++)
                y[n] = __ldcg(from + (int64_t)i * job.m.part_heads * PART_STATE + n);
            add_state<true>(x, y, x[0]);
        }
#pragma unroll
        for (int i = 1; i < 6; i++)
            x[i] = warp_sum(x[i]);
        if (lane == 0) write_state(job.m, s, h, x);
    }
}

/* --- the kernel ----------------------------------------------------------------------------------------- */

/* grid: (cluster * n_cluster, n_item). Dynamic shared memory: WARPS rings of n_stage units, 16 bytes between them */
template <int D, bool STATS> __global__ static void __launch_bounds__(THREADS) decode_v3(const v3_job job) {
    extern __shared__ __align__(128) float s_dynamic[];
    __shared__ v3_shared sh;
    const mma_job &j = job.m;
    const int warp = threadIdx.x / 32;
    segment s;
    share w;
    look_up(j, s, w);
    w.n_stage = j.n_stage;
    w.stages = left_at(shared_at(s_dynamic), j.n_stage, unit_layout<D>::UNIT, warp);
    w.bars = shared_at(sh.bar[warp]);
    if (threadIdx.x % 32 == 0)
        for (int i = 0; i < j.n_stage; i++)
            barrier_init(w.bars + (unsigned)i * 8);
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::
                     : "memory"); /* the barriers, before copies that count on them */
#endif
    __syncwarp();
    const int ready = min(w.n, j.n_stage), newest = w.n > 0 && unit_of(w, w.n - 1) == w.last;
    const int old = job.early ? min(ready, w.n - newest) : 0;
    int i = 0;
    for (; i < old; i++)
        issue<D>(j, s, w, i, i);
    moa_launch_go();
    moa_launch_wait();
    for (; i < ready; i++)
        issue<D>(j, s, w, i, i);
    {
        warp_state<D, STATS> u;
        u.clear();
        attend_share<D, STATS>(j, s, w, u);
        leave<D, STATS>(u, s, w.stages, sh);
    }
    cluster_arrive();
    cluster_wait();
    const int rank = cluster_rank();
    const columns k = columns_of<D>(job, s, rank);
    merge_cluster<D>(job, k, shared_at(s_dynamic), sh);
    if (STATS) merge_stats(job, s, rank, sh);
    cluster_arrive(); /* this block has read the others' */
    if (job.n_cluster > 1 && comes_last(job, s, rank, sh)) {
        merge_item(job, k);
        if (STATS) merge_item_stats(job, s, rank);
    }
    cluster_wait();
}

/* --- launching ------------------------------------------------------------------------------------------ */

static size_t ring_bytes(int n_stage, int unit_bytes) {
    return (size_t)WARPS * ((size_t)n_stage * (size_t)unit_bytes + 16);
}

/* Blocks of an item: as many as there are multiprocessors for, one cluster unless each would get too much to read. */
static void cut(const moa_cuda *c, const mma_job *j, size_t item_bytes, int largest, v3_job *job) {
    const int most = c->n_sm / j->n_item > 1 ? c->n_sm / j->n_item : 1;
    job->cluster = largest;
    while (job->cluster > most)
        job->cluster /= 2;
    const size_t wanted = moa_ceil_div(item_bytes, SHARE_BYTES * (size_t)job->cluster);
    const int fit = most / job->cluster;
    job->n_cluster = wanted < (size_t)fit ? (wanted > 1 ? (int)wanted : 1) : fit;
}

/* the largest cluster with which all of the grid is on the device at once */
template <int D, bool STATS>
static moa_status place(moa_cuda *c, moa_launch *l, size_t item_bytes, v3_job *job, moa_err *err) {
    MOA_CU(c, cudaFuncSetAttribute(decode_v3<D, STATS>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    for (int largest = MAX_CLUSTER;; largest /= 2) {
        cut(c, &job->m, item_bytes, largest, job);
        l->cluster = job->cluster;
        l->grid = dim3((unsigned)(job->cluster * job->n_cluster), (unsigned)job->m.n_item);
        if (job->cluster <= 2) return MOA_OK;
        if (job->cluster < largest) largest = job->cluster;
        cudaLaunchAttribute attributes[2];
        moa_launch alone = *l;
        alone.early = false;
        const cudaLaunchConfig_t config = moa_launch_config(alone, attributes);
        int fit = 0;
        MOA_CU(c, cudaOccupancyMaxActiveClusters(&fit, decode_v3<D, STATS>, &config));
        if (fit >= job->n_cluster * job->m.n_item) return MOA_OK;
    }
}

template <int D, bool STATS>
static moa_status launch(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err) {
    typedef unit_layout<D> t;
    int most = 0;
    MOA_CU(c, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device));
    int n_stage = (int)(RING_BYTES / (WARPS * t::UNIT));
    if (n_stage < 2) n_stage = 2;
    if (n_stage > MAX_STAGE) n_stage = MAX_STAGE;
    if (ring_bytes(n_stage, t::UNIT) + sizeof(v3_shared) + 1024 > (size_t)most) return MOA_OK;
    const size_t blocks = (size_t)c->n_sm, /* of the grid no more than that; clusters are fewer still */
        o_bytes = blocks * MAX_GROUP * (D / 4) * 2 * sizeof(float4),
                 state_bytes = blocks * MAX_GROUP * PART_STATE * sizeof(float);
    v3_job job = {};
    MOA_RETURN(moa_cuda_decode_job(c, a, o_bytes, state_bytes, &job.m, err));
    job.m.n_stage = n_stage;
    /* several rows of one sequence: each may see what is being stored for another */
    job.early = a->n_seq == 1 || a->kv.table_seq_stride != 0;
    moa_launch l = {dim3(1), dim3(THREADS), ring_bytes(n_stage, t::UNIT), 1, false, c->stream};
    MOA_CU(c, moa_launch_may_be_early(c->device, &l.early));
    MOA_CU(c, moa_allow_shared(decode_v3<D, STATS>, l.shared_bytes));
    MOA_RETURN((place<D, STATS>(c, &l, (size_t)a->kv.max_pages * MOA_PAGE_TOK * D * 4, &job, err)));
    MOA_CU(c, moa_launch_kernel(l, decode_v3<D, STATS>, job));
    MOA_LAUNCHED(c, "attn_decode");
    *taken = true;
    return moa_cuda_decode_hist(c, &job.m, err);
}
template <bool STATS>
static moa_status launch_by_size(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err) {
    switch (a->kv.d_head) {
    case 64: return launch<64, STATS>(c, a, taken, err);
    case 80: return launch<80, STATS>(c, a, taken, err);
    case 96: return launch<96, STATS>(c, a, taken, err);
    case 128: return launch<128, STATS>(c, a, taken, err);
    case 256: return launch<256, STATS>(c, a, taken, err);
    default: return MOA_OK;
    }
}

moa_status moa_cuda_decode_v3(moa_cuda *c, const moa_args_attn_decode *a, size_t most_bytes, bool *taken,
                              moa_err *err) {
    *taken = false;
    int major = 0;
    MOA_CU(c, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device));
    const int64_t n_item =
        (int64_t)a->n_seq * a->kv.n_head_kv * moa_ceil_div(a->n_head / a->kv.n_head_kv, MAX_GROUP);
    if (major < 9 || a->kv.type != MOA_KV_F16 || a->kv.max_pages <= 0 || n_item > c->n_sm) return MOA_OK;
    const double bytes =
        (double)a->n_seq * a->kv.n_head_kv * a->kv.max_pages * MOA_PAGE_TOK * a->kv.d_head * 4;
    if (bytes > (double)most_bytes) return MOA_OK;
    return a->probe.stat || a->probe.hist ? launch_by_size<true>(c, a, taken, err)
                                          : launch_by_size<false>(c, a, taken, err);
}
