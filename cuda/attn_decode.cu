/* attn_decode.cu -- attention of one new query of each sequence over its pages, every head under its own span.
 *
 *   item     (sequence, KV head): its pages are page 0 and those from the first key that the widest span of the group sees up to
 *            the newest. Spans differ, so items do:
 *
 *              items   |0 0 0 0 0 0 0 0 0 0|1 1|2 2 2 2 2 2 2|3 3|          T pages in all
 *              blocks  |  0  |  1  |  2  |   3  |  4  |  5  |  6  |         block w takes pages [w T/W, (w+1) T/W) of the line
 *
 *            so no multiprocessor waits for the one that drew the longest head. W is fixed (it follows from the device and
 *            max_pages); T is counted by every block itself from the positions and spans in device memory. A recorded
 *            step therefore stays right while sequences grow and plans change, and the host plans nothing.
 *   block    for each item in its stretch: all query heads of the group in one pass over K and V. A key's row is held by
 *            d/8 neighbouring lanes, 16 bytes each; such a group of lanes is a unit with its own softmax state
 *            (m, l, o) per head, which meets the others only at the end of the stretch. U rows of K and of V are in flight a unit.
 *            Narrower heads of the group mask by their own span and skip the pages they cannot see.
 *   merge    partial (m, l, o) of an item's stretches, rescaled to the common m: o = sum e^(m_k - m) o_k / sum e^(m_k - m) l_k.
 *            Block w's part of item n lies in slot w + n, which no other pair has. An empty part is m = -inf, l = 0: it counts 0.
 *
 * Groups of more than 8 query heads are cut into parts of 8. A page that is not there is passed over: its keys are gone.
 * Everything is summed in a fixed order: the same bits every time. The probe's statistics are merged like l. Its histogram is
 * a third kernel that runs only when asked for: a block owns a distance bin of a head and sums it in order over the sequences.
 *
 *   version   idea                                         H100, f16, one layer: us, share of the measured 2811 GB/s
 *   v1        equal stretches of pages, 16-byte loads,       Llama-3-8B 32/8 x 128  1 x 4k dense 24.1 us 25 %, half 24.6 us 12 %
 *             merge in a second kernel                                              1 x 16k dense 47.9 us 50 %, half 37.6 us 32 %
 *                                                                                   8 x 16k dense 247 us 77 %, half 139 us 69 %
 *                                                            Vicuna-7B 32/32 x 128  1 x 16k dense 103 us 93 %, half 61.9 us 77 %
 *                                                            SmolLM2 9/3 x 64       1 x 4k dense 14.2 us 8 %            <- best
 *   (tried, slower: merging the parts one after the other in each thread: 33.0 us at 8B 1 x 4k)
 *   measured 2026-11-24 with  test_ops_cuda --bench attn_decode  (docs/measurements/2026-11-24-h100-cuda-v1.md)            */
#include <cstdlib>
#include <cstring>

#include "cuda/attn_decode.cuh"
#include "cuda/kv_types.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * 32, MAX_GROUP = 8, U = 4, MAX_BLOCK = 1024;
static constexpr int PART_STATE = 8; /* floats beside o in a slot: m, l, and moa_soft_stat */

template <typename T> struct decode_job {
    const float *q; /* (n_seq, n_head, d_head) */
    float *o;
    moa_kv<T> kv;
    const int32_t *pos, *span;
    int64_t span_stride;
    int n_seq, n_head, n_head_kv, group;
    int n_part;  /* parts of at most MAX_GROUP heads that a group is cut into */
    int n_item;  /* n_seq * n_head_kv * n_part */
    int n_block; /* W */
    float scale;
    moa_probe probe;
    float *part_o;     /* (n_block + n_item, MAX_GROUP, d_head) */
    float *part_state; /* (n_block + n_item, MAX_GROUP, PART_STATE) */
    float *lse;        /* (n_seq, n_head), for the histogram */
};

/* one item, as its number says */
struct decode_item {
    int seq, head_kv, head, n_head; /* query heads head .. head + n_head - 1 */
    int pos;
    int first, n_page; /* pages: 0, then first, first + 1, ... ; n_page 0: an idle sequence */
    __device__ int page(int k) const { return k == 0 ? 0 : first + k - 1; }
};

template <typename T> __device__ static decode_item item_of(const decode_job<T> &j, int n) {
    decode_item it;
    const int part = n % j.n_part;
    it.head_kv = n / j.n_part % j.n_head_kv;
    it.seq = n / j.n_part / j.n_head_kv;
    it.head = it.head_kv * j.group + part * MAX_GROUP;
    it.n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
    it.pos = j.pos[it.seq];
    it.first = 1;
    it.n_page = 0;
    if (it.pos < 0) return it;
    int widest = 0;
    for (int h = 0; h < it.n_head; h++)
        widest = max(widest, j.span[it.seq * j.span_stride + it.head + h]);
    it.first = max(moa_window_first(widest, it.pos) / MOA_PAGE_TOK, 1);
    it.n_page = 1 + max(it.pos / MOA_PAGE_TOK - it.first + 1, 0);
    return it;
}

/* The line of all items' pages, counted by the whole block. block < 0: item *n is given; else *n becomes the item where the
 * stretch of that block begins. *before: pages of the items before it; *total: T; *used: W, but not more than T, so that
 * every block that works has a page and every slot that merging reads was written. s: shared, WARPS + 2 ints. */
template <typename T>
__device__ static void count_line(const decode_job<T> &j, int block, int *n, int *before, int *total,
                                  int *used, int *s) {
    const int per = (j.n_item + THREADS - 1) / THREADS, begin = threadIdx.x * per,
              end = min(begin + per, j.n_item);
    int mine = 0;
    for (int k = begin; k < end; k++)
        mine += item_of(j, k).n_page;
    int sum = mine; /* inclusive scan over the block */
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, d);
        if ((int)threadIdx.x % 32 >= d) sum += other;
    }
    if (threadIdx.x % 32 == 31) s[threadIdx.x / 32] = sum;
    __syncthreads();
    int all = 0, earlier = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        if (w < (int)threadIdx.x / 32) earlier += s[w];
        all += s[w];
    }
    sum += earlier;
    *total = all;
    *used = min(j.n_block, all);
    __syncthreads();
    if (block >= *used) return;
    /* the thread whose stretch of items holds the one wanted says where it begins */
    const int at = block >= 0 ? (int)((int64_t)block * all / *used) : -1;
    int line = sum - mine;
    for (int k = begin; k < end; k++) {
        const int n_page = per == 1 ? mine : item_of(j, k).n_page;
        if (at >= 0 ? line <= at && at < line + n_page : k == *n) s[0] = k, s[1] = line;
        line += n_page;
    }
    __syncthreads();
    *n = s[0];
    *before = s[1];
    __syncthreads();
}

/* --- the pass over K and V ------------------------------------------------------------------------------ */

/* LPR lanes hold a row; a warp reads ROWS rows at once, a block STEP of them; head sizes up to DP */
template <int DP> struct unit_of {
    static constexpr int LPR = DP / 8, ROWS = 32 / LPR, STEP = WARPS * ROWS * U;
};

/* eight elements of U rows as loaded: 16 bytes (f16, bf16), 32 (f32) or 8 (q8) */
template <typename T> struct raw8;
template <> struct raw8<__half> {
    uint4 x;
    __device__ void load(const __half *p) { x = __ldg(reinterpret_cast<const uint4 *>(p)); }
    __device__ void unpack(float out[8]) const {
        const __half2 *h = reinterpret_cast<const __half2 *>(&x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 f = __half22float2(h[i]);
            out[2 * i] = f.x, out[2 * i + 1] = f.y;
        }
    }
};
template <> struct raw8<__nv_bfloat16> {
    uint4 x;
    __device__ void load(const __nv_bfloat16 *p) { x = __ldg(reinterpret_cast<const uint4 *>(p)); }
    __device__ void unpack(float out[8]) const { load8(reinterpret_cast<const __nv_bfloat16 *>(&x), out); }
};
template <> struct raw8<moa_q8> {
    uint2 x;
    __device__ void load(const moa_q8 *p) { x = __ldg(reinterpret_cast<const uint2 *>(p)); }
    __device__ void unpack(float out[8]) const { load8(reinterpret_cast<const moa_q8 *>(&x), out); }
};
template <> struct raw8<float> {
    float4 x, y;
    __device__ void load(const float *p) {
        x = __ldg(reinterpret_cast<const float4 *>(p));
        y = __ldg(reinterpret_cast<const float4 *>(p) + 1);
    }
    __device__ void unpack(float out[8]) const {
        out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w, out[4] = y.x, out[5] = y.y, out[6] = y.z,
        out[7] = y.w;
    }
};

/* a unit's softmax state for G heads; o: its lane's 8 elements */
template <int G, bool PROBE> struct unit_state {
    moa_soft f[G];
    float o[G][8];
    moa_soft_stat st[PROBE ? G : 1];
    __device__ void clear() {
#pragma unroll
        for (int h = 0; h < G; h++) {
            f[h].m = -INFINITY;
            f[h].l = 0;
#pragma unroll
            for (int i = 0; i < 8; i++)
                o[h][i] = 0;
            if (PROBE) st[h] = moa_soft_stat();
        }
    }
    /* brings head h to the running maximum m */
    __device__ void move(int h, float m) {
        const float factor = soft_factor(f[h].m, m);
        if (PROBE) stat_move(st[h], f[h].l, f[h].m, m, factor);
        f[h].l *= factor;
        f[h].m = m;
#pragma unroll
        for (int i = 0; i < 8; i++)
            o[h][i] *= factor;
    }
};

/* one page for all heads. q: shared (G, DP), scaled; window, measure: shared (G) */
template <int DP, int G, typename T, bool PROBE>
__device__ static void attend_page(unit_state<G, PROBE> &u, const T *page, int p, const decode_item &it,
                                   int d_head, const float *q, const int *window, const int *measure) {
    typedef unit_of<DP> t;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % t::LPR * 8,
              row_in_warp = lane / t::LPR;
    const bool inside = c < d_head;
    kv_scale<T> scale;
    scale.of_k(page, d_head, inside ? c : 0);
    for (int step = 0; step < MOA_PAGE_TOK; step += t::STEP) {
        if (p * MOA_PAGE_TOK + step > it.pos) break;
        raw8<T> k[U], v[U];
        float v_scale[U];
#pragma unroll
        for (int n = 0; n < U; n++) {
            /* rows after the newest are not written yet: what lies there may be NaN, and 0 * NaN is not 0 */
            const int r = min(step + (n * WARPS + warp) * t::ROWS + row_in_warp, it.pos - p * MOA_PAGE_TOK);
            const T *row = page + r * d_head + (inside ? c : 0);
            k[n].load(row);
            v[n].load(row + MOA_PAGE_TOK * d_head);
            v_scale[n] = kv_scale<T>::of_v(page, d_head, r);
        }
#pragma unroll
        for (int h = 0; h < G; h++) {
            if (h >= it.n_head) break;
            if (p > 0 && it.pos - (p * MOA_PAGE_TOK + MOA_PAGE_TOK - 1) >= window[h])
                continue; /* all of it is cut */
            float s[U], x[8], qh[8];
            load8(q + h * DP + c, qh);
            float top = u.f[h].m;
#pragma unroll
            for (int n = 0; n < U; n++) {
                k[n].unpack(x);
                scale.apply_k(x);
                float dot = 0;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    dot += qh[i] * x[i]; /* q is zero where the head has no elements */
                dot = group_sum<t::LPR>(dot);
                const int key = p * MOA_PAGE_TOK + step + (n * WARPS + warp) * t::ROWS + row_in_warp;
                s[n] = moa_sees(window[h] + MOA_SINK_TOK, it.pos, key) ? dot : -INFINITY;
                top = fmaxf(top, s[n]);
            }
            u.move(h, top);
            const float base = top == -INFINITY ? 0.0f : top; /* nothing seen yet: e^(-inf - 0) = 0 */
#pragma unroll
            for (int n = 0; n < U; n++) {
                const int key = p * MOA_PAGE_TOK + step + (n * WARPS + warp) * t::ROWS + row_in_warp;
                const float weight = __expf(s[n] - base);
                u.f[h].l += weight;
                if (PROBE) stat_key(u.st[h], weight, s[n] - base, it.pos, key, measure[h]);
                v[n].unpack(x);
                const float share = weight * v_scale[n];
#pragma unroll
                for (int i = 0; i < 8; i++)
                    u.o[h][i] += share * x[i];
            }
        }
    }
}

/* the units of a block become one partial result in slot `to`. s: shared (WARPS, G, DP), s_state: shared (WARPS, G, PART_STATE) */
template <int DP, int G, typename T, bool PROBE>
__device__ static void write_part(unit_state<G, PROBE> &u, const decode_job<T> &j, const decode_item &it,
                                  int64_t to, float *s, float *s_state) {
    typedef unit_of<DP> t;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % t::LPR * 8, d_head = j.kv.d_head;
#pragma unroll
    for (int h = 0; h < G; h++) {
        if (h >= it.n_head) break;
        float m = u.f[h].m; /* over the units of the warp */
#pragma unroll
        for (int d = t::LPR; d < 32; d *= 2)
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
        u.move(h, m);
#pragma unroll
        for (int d = t::LPR; d < 32; d *= 2) {
            u.f[h].l += __shfl_xor_sync(0xffffffffu, u.f[h].l, d);
#pragma unroll
            for (int i = 0; i < 8; i++)
                u.o[h][i] += __shfl_xor_sync(0xffffffffu, u.o[h][i], d);
            if (PROBE) {
                const moa_soft_stat other = {__shfl_xor_sync(0xffffffffu, u.st[h].t, d),
                                             __shfl_xor_sync(0xffffffffu, u.st[h].sink, d),
                                             __shfl_xor_sync(0xffffffffu, u.st[h].window, d),
                                             __shfl_xor_sync(0xffffffffu, u.st[h].distance, d)};
                stat_add(u.st[h], other);
            }
        }
        if (lane < t::LPR) {
#pragma unroll
            for (int i = 0; i < 8; i++)
                s[(warp * G + h) * DP + c + i] = u.o[h][i];
        }
        if (lane == 0) {
            float *state = s_state + (warp * G + h) * PART_STATE;
            state[0] = u.f[h].m, state[1] = u.f[h].l;
            if (PROBE)
                state[2] = u.st[h].t, state[3] = u.st[h].sink, state[4] = u.st[h].window,
                state[5] = u.st[h].distance;
        }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < it.n_head * d_head; e += THREADS) {
        const int h = e / d_head, i = e % d_head;
        float m = -INFINITY, o = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            m = fmaxf(m, s_state[(w * G + h) * PART_STATE]);
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            o += soft_factor(s_state[(w * G + h) * PART_STATE], m) * s[(w * G + h) * DP + i];
        j.part_o[(to * MAX_GROUP + h) * d_head + i] = o;
        if (i != 0) continue;
        moa_soft f = {m, 0};
        moa_soft_stat st = {};
        for (int w = 0; w < WARPS; w++) {
            const float *state = s_state + (w * G + h) * PART_STATE;
            const float factor = soft_factor(state[0], m);
            f.l += factor * state[1];
            if (!PROBE) continue;
            moa_soft_stat x = {state[2], state[3], state[4], state[5]};
            stat_move(x, state[1], state[0], m, factor);
            stat_add(st, x);
        }
        float *state = j.part_state + (to * MAX_GROUP + h) * PART_STATE;
        state[0] = f.m, state[1] = f.l;
        if (PROBE) state[2] = st.t, state[3] = st.sink, state[4] = st.window, state[5] = st.distance;
    }
    __syncthreads();
}

/* grid: n_block */
template <int DP, int G, typename T, bool PROBE>
__global__ static void __launch_bounds__(THREADS) decode_v1(const decode_job<T> j) {
    __shared__ alignas(16) float q[G * DP], s[WARPS * G * DP];
    __shared__ float s_state[WARPS * G * PART_STATE];
    __shared__ int window[G], measure[G], s_line[WARPS + 2];
    int n = 0, line = 0, total = 0, used = 0;
    count_line(j, (int)blockIdx.x, &n, &line, &total, &used, s_line);
    if ((int)blockIdx.x >= used) return;
    int at = (int)((int64_t)blockIdx.x * total / used);
    const int end = (int)((int64_t)(blockIdx.x + 1) * total / used);
    unit_state<G, PROBE> u;
    while (at < end) {
        const decode_item it = item_of(j, n);
        const int stop = min(end, line + it.n_page);
        if (at < stop) {
            for (int e = threadIdx.x; e < G * DP; e += THREADS) {
                const int h = e / DP, i = e % DP;
                const bool there = h < it.n_head && i < j.kv.d_head;
                q[e] = there ? j.q[((int64_t)it.seq * j.n_head + it.head + h) * j.kv.d_head + i] * j.scale
                             : 0.0f;
            }
            if ((int)threadIdx.x < it.n_head) {
                const int head = it.head + (int)threadIdx.x, span = j.span[it.seq * j.span_stride + head];
                window[threadIdx.x] = moa_window(span);
                measure[threadIdx.x] =
                    moa_window(PROBE && j.probe.measure_span ? j.probe.measure_span[head] : span);
            }
            __syncthreads();
            u.clear();
            for (int k = at - line; k < stop - line; k++) {
                const T *page = j.kv.page(it.seq, it.head_kv, it.page(k));
                if (page)
                    attend_page<DP, G, T, PROBE>(u, page, it.page(k), it, j.kv.d_head, q, window, measure);
            }
            write_part<DP, G, T, PROBE>(u, j, it, (int64_t)blockIdx.x + n, s, s_state);
        }
        at = stop;
        line += it.n_page;
        n++;
    }
}

/* --- the parts become the result ------------------------------------------------------------------------ */

/* block that page x of the line belongs to: the smallest w with (w+1) T/W > x */
__device__ static inline int block_of(int64_t x, int64_t total, int64_t used) {
    return (int)(((x + 1) * used + total - 1) / total) - 1;
}

/* max over a block; s: WARPS floats of shared memory */
__device__ static inline float block_max(float x, float *s) {
    x = group_max<32>(x);
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = x;
    __syncthreads();
    for (int w = 0; w < WARPS; w++)
        x = fmaxf(x, s[w]);
    return x;
}

/* o = inv * sum over the parts k of weight[k] * part k. Warp w takes every WARPS-th part, a lane every 32nd element; s: shared
 * (WARPS, 256). The parts lie MAX_GROUP rows of d_head apart. */
__device__ static void merge_rows(const float *part, int n_part, const float *weight, int d_head, float inv,
                                  float *s, float *o) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t step = (int64_t)MAX_GROUP * d_head;
    for (int i = lane; i < d_head; i += 32) {
        float sum = 0;
#pragma unroll 8
        for (int k = warp; k < n_part; k += WARPS)
            sum += weight[k] * part[k * step + i];
        s[warp * 256 + i] = sum;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < d_head; i += THREADS) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            sum += s[w * 256 + i];
        o[i] = sum * inv;
    }
}

/* grid: n_head x n_seq. First the parts' weights, a part a thread; then the rows. */
template <typename T, bool PROBE>
__global__ static void __launch_bounds__(THREADS) merge_v1(const decode_job<T> j) {
    __shared__ float s_sum[32], s_max[WARPS], weight[MAX_BLOCK], s[WARPS * 256];
    __shared__ int s_line[WARPS + 2];
    const int head = blockIdx.x, seq = blockIdx.y, d_head = j.kv.d_head, head_kv = head / j.group;
    const int h = head % j.group % MAX_GROUP;
    int n = (seq * j.n_head_kv + head_kv) * j.n_part + head % j.group / MAX_GROUP, line = 0, total = 0,
        used = 0;
    count_line(j, -1, &n, &line, &total, &used, s_line);
    const decode_item it = item_of(j, n);
    float *o = j.o + ((int64_t)seq * j.n_head + head) * d_head;
    float *stat =
        PROBE && j.probe.stat ? j.probe.stat + ((int64_t)seq * j.n_head + head) * MOA_N_STAT : nullptr;
    if (it.n_page == 0) {
        for (int i = threadIdx.x; i < d_head; i += THREADS)
            o[i] = 0;
        if (stat && threadIdx.x < MOA_N_STAT) stat[threadIdx.x] = 0;
        return;
    }
    const int first = block_of(line, total, used),
              n_part = block_of(line + it.n_page - 1, total, used) - first + 1;
    const int64_t slot =
        ((int64_t)first + n) * MAX_GROUP + h; /* of the first part; the next lies MAX_GROUP further */
    const float *state = j.part_state + slot * PART_STATE;
    moa_soft f = {-INFINITY, 0};
    moa_soft_stat st = {};
    for (int k = threadIdx.x; k < n_part; k += THREADS)
        f.m = fmaxf(f.m, state[k * MAX_GROUP * PART_STATE]);
    f.m = block_max(f.m, s_max);
    for (int k = threadIdx.x; k < n_part; k += THREADS) {
        const float *x = state + k * MAX_GROUP * PART_STATE, factor = soft_factor(x[0], f.m);
        weight[k] = factor;
        f.l += factor * x[1];
        if (!PROBE) continue;
        moa_soft_stat part = {x[2], x[3], x[4], x[5]};
        stat_move(part, x[1], x[0], f.m, factor);
        stat_add(st, part);
    }
    f.l = block_sum(f.l, s_sum); /* its barriers also make the weights visible */
    if (PROBE) {
        st.t = block_sum(st.t, s_sum);
        st.sink = block_sum(st.sink, s_sum);
        st.window = block_sum(st.window, s_sum);
        st.distance = block_sum(st.distance, s_sum);
    }
    merge_rows(j.part_o + slot * d_head, n_part, weight, d_head, f.l > 0 ? 1.0f / f.l : 0.0f, s, o);
    if (threadIdx.x != 0) return;
    if (stat) stat_write(stat, f, st);
    if (PROBE) j.lse[(int64_t)seq * j.n_head + head] = f.l > 0 ? f.m + logf(f.l) : INFINITY;
}

/* --- the histogram of distances ------------------------------------------------------------------------- */

/* A of key `key` for the query in shared q, 0 where it is not seen or not there */
template <typename T>
__device__ static float mass_of(const decode_job<T> &j, const float *q, int seq, int head_kv, int span,
                                int pos, int key, float lse) {
    if (key < 0 || !moa_sees(span, pos, key)) return 0;
    const T *page = j.kv.page(seq, head_kv, key / MOA_PAGE_TOK);
    if (!page) return 0;
    float dot = 0, x[8];
    for (int c = 0; c < j.kv.d_head; c += 8) {
        load8_k(page, j.kv.d_head, key % MOA_PAGE_TOK, c, x);
#pragma unroll
        for (int i = 0; i < 8; i++)
            dot += q[c + i] * x[i];
    }
    return __expf(dot - lse);
}

/* grid: (1 + n_bin) x n_head; 64 threads, one a key. Block 0: the sink; block 1 + b: keys from 64 on at distances of bin b */
template <typename T> __global__ static void __launch_bounds__(64) hist_v1(const decode_job<T> j) {
    __shared__ float q[256], s[32];
    const int slot = blockIdx.x, head = blockIdx.y, d_head = j.kv.d_head, n_bin = j.probe.n_bin;
    for (int seq = 0; seq < j.n_seq; seq++) {
        const int pos = j.pos[seq], span = j.span[seq * j.span_stride + head];
        if (pos < 0 || (slot > 0 && pos - (slot - 1) * MOA_PAGE_TOK < MOA_SINK_TOK))
            continue; /* no key that far */
        __syncthreads();
        for (int i = threadIdx.x; i < d_head; i += blockDim.x)
            q[i] = j.q[((int64_t)seq * j.n_head + head) * d_head + i] * j.scale;
        __syncthreads();
        const float lse = j.lse[(int64_t)seq * j.n_head + head];
        float mass = 0;
        if (slot == 0) {
            mass = mass_of(j, q, seq, head / j.group, span, pos, (int)threadIdx.x, lse);
        } else {
            const int last =
                slot == n_bin ? pos / MOA_PAGE_TOK : slot - 1; /* the last bin takes all that lie beyond */
            for (int bin = slot - 1; bin <= last && bin * MOA_PAGE_TOK < moa_window(span); bin++) {
                const int key = pos - bin * MOA_PAGE_TOK - (int)threadIdx.x;
                if (key >= MOA_SINK_TOK) mass += mass_of(j, q, seq, head / j.group, span, pos, key, lse);
            }
        }
        mass = block_sum(mass, s);
        const int bucket = min(pos / j.probe.bucket_tok, (int)MOA_HIST_BUCKETS - 1);
        if (threadIdx.x == 0)
            j.probe.hist[((int64_t)head * MOA_HIST_BUCKETS + bucket) * (1 + n_bin) + slot] += mass;
    }
}

/* --- launching ------------------------------------------------------------------------------------------ */

template <int DP, int G, typename T> static void launch(moa_cuda *c, const decode_job<T> &j, bool probe) {
    if (probe)
        decode_v1<DP, G, T, true><<<(unsigned)j.n_block, THREADS, 0, c->stream>>>(j);
    else
        decode_v1<DP, G, T, false><<<(unsigned)j.n_block, THREADS, 0, c->stream>>>(j);
}
template <int DP, typename T> static void launch_by_group(moa_cuda *c, const decode_job<T> &j, bool probe) {
    if (j.group == 1)
        launch<DP, 1>(c, j, probe);
    else if (j.group == 2)
        launch<DP, 2>(c, j, probe);
    else if (j.group <= 4)
        launch<DP, 4>(c, j, probe);
    else
        launch<DP, 8>(c, j, probe);
}

/* Scratch for n_block + n_item partial results; n_block so that every multiprocessor is filled, but no block without a page. */
template <typename T> static moa_status attend(moa_cuda *c, const moa_args_attn_decode *a, moa_err *err) {
    const int group = a->n_head / a->kv.n_head_kv, d_head = a->kv.d_head;
    const int n_part = moa_ceil_div(group, MAX_GROUP), n_item = a->n_seq * a->kv.n_head_kv * n_part;
    const bool probe = a->probe.stat || a->probe.hist;
    /* blocks a multiprocessor holds at once, by the registers of the kernel (96..128, ..168, ..232 of 65536) */
    const int per_sm = group <= 4 && !probe ? 4 : group <= 4 || !probe ? 3 : 2;
    const int64_t pages = (int64_t)n_item * (a->kv.max_pages > 0 ? a->kv.max_pages : 1),
                  full = (int64_t)c->n_sm * per_sm;
    const int64_t most = full < MAX_BLOCK ? full : MAX_BLOCK;
    const int n_block = (int)(pages < most ? pages : most);
    const size_t slots = (size_t)n_block + (size_t)n_item, per = MAX_GROUP * sizeof(float);
    const size_t o_bytes = slots * per * (size_t)d_head, state_bytes = slots * per * PART_STATE;
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c,
                                o_bytes + state_bytes + sizeof(float) * (size_t)a->n_seq * (size_t)a->n_head,
                                reinterpret_cast<void **>(&space), err));
    const decode_job<T> j = {a->q,
                             a->o,
                             moa_kv_of<T>(&a->kv),
                             a->pos,
                             a->span,
                             a->span_seq_stride,
                             a->n_seq,
                             a->n_head,
                             a->kv.n_head_kv,
                             group,
                             n_part,
                             n_item,
                             n_block,
                             a->scale,
                             a->probe,
                             reinterpret_cast<float *>(space),
                             reinterpret_cast<float *>(space + o_bytes),
                             reinterpret_cast<float *>(space + o_bytes + state_bytes)};
    if (d_head <= 64)
        launch_by_group<64>(c, j, probe);
    else if (d_head <= 128)
        launch_by_group<128>(c, j, probe);
    else
        launch_by_group<256>(c, j, probe);
    MOA_LAUNCHED(c, "attn_decode");
    const dim3 heads((unsigned)a->n_head, (unsigned)a->n_seq);
    if (probe)
        merge_v1<T, true><<<heads, THREADS, 0, c->stream>>>(j);
    else
        merge_v1<T, false><<<heads, THREADS, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "attn_decode's merge");
    if (!a->probe.hist) return MOA_OK;
    const dim3 bins((unsigned)a->probe.n_bin + 1, (unsigned)a->n_head);
    hist_v1<<<bins, 64, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "attn_decode's histogram");
    return MOA_OK;
}

/* $MOASCOPE_CUDA_DECODE: v1, v2, or auto, the default: v2. Asked each time, so that one process can compare them. Shapes and types that
 * v2 has not are v1's. */
static moa_status attend_fast(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err) {
    const char *name = getenv("MOASCOPE_CUDA_DECODE");
    *taken = false;
    if (!name || !*name || strcmp(name, "auto") == 0 || strcmp(name, "v2") == 0)
        return moa_cuda_decode_v2(c, a, taken, err);
    if (strcmp(name, "v1") == 0) return MOA_OK;
    return moa_fail(err, MOA_E_USAGE, "MOASCOPE_CUDA_DECODE is \"%s\": v1, v2 or auto", name);
}

struct decode_with {
    moa_cuda *c;
    const moa_args_attn_decode *a;
    moa_err *err;
    template <typename T> moa_status operator()(T) const { return attend<T>(c, a, err); }
};

moa_status moa_cuda_attn_decode(moa_backend *b, const moa_args_attn_decode *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_seq <= 0) return MOA_OK;
    if (a->kv.d_head % 8 != 0 || a->kv.d_head > 256 || a->kv.d_head <= 0)
        return moa_fail(err, MOA_E_UNSUPPORTED,
                        "heads of %d elements: the CUDA backend takes multiples of 8 up to 256",
                        a->kv.d_head);
    bool taken = false;
    MOA_RETURN(attend_fast(c, a, &taken, err));
    if (taken) return MOA_OK;
    return kv_with_type(a->kv.type, decode_with{c, a, err});
}
