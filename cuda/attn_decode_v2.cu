/* attn_decode_v2.cu -- decode attention over 16-bit pages on tensor cores, one kernel; attn_decode.cu (v1) explains the idea in plain code.
 *
 *   line     all pages that items see, one after the other, as v1's; equal stretches to within a page, one a block. What a block reads does
 *            not depend on the kernels in front, but for the newest page: it begins beside them (launch.cuh), its first pages on their way
 *   fetch    one warp of five walks the stretch: position, spans, table, then eight bulk copies a page (sm_90; 16-byte cp.async before) into
 *            a ring of stages, which an mbarrier each counts. It also tells the others what item a stage belongs to
 *   attend   four warps, a quarter of each page (attn_decode_page.cuh); they meet only at the end of an item
 *   letters  an item that several blocks have parts of: each block leaves its part in global memory and takes a share of the item's
 *            columns. A letter is waited for by reading it until no word of it is EMPTY: one way there and one back, where a fence, a
 *            counter and the reading cost three. Blocks wait only when their own work is done, and all of the grid is on the device at once
 *            (two blocks a multiprocessor fit; a later launch gets room only when all of these have begun), so nobody waits in vain
 *   probe    statistics from the same softmax state; for the histogram each warp leaves what its part of a page weighs in the two
 *            bins it may meet, and a small second kernel sums that: K is not read again
 *
 * Order of summing is fixed: the same bits every time. Heads of 64, 80, 96, 128, 256 elements, any group; the rest is v1's.
 *
 *   version                                                     H100, f16, one layer, us a launch in a chain of launches
 *                                                               SmolLM2 4k | 8B 4k, half | 8B 16k, half | 8B 128k | Vicuna 16k, half
 *   a warp its own ring of 16 tokens, last block merges         10.7 | 19.3, 18.1 | 37.2, 26.5 | 199 | 109, 66.0
 *   items dealt to clusters, merged in distributed memory        7.5 | 13.4, 11.2 | 36.1, 22.0 | 228 | 119, 69.8
 *   line of pages, a warp that fetches, last block merges        7.6 | 12.6, 13.1 | 32.8, 22.6 | 189 | 99.8, 54.4
 *   S and O with heads on the side of 16, blocks share merging   7.1 | 11.8, 14.1 | 31.8, 24.0 | 188 | 101, 56.0
 *   letters                                                      5.6 | 11.7, 9.6  | 31.9, 21.4 | 190 | 98.1, 53.5
 *   the same reading alone                                       2   |  5.5, 3.4  | 21.6, 10.9 | 172 | 86.8, 42.9
 *   2026-11-24; today's figures: test_ops_cuda --bench attn_decode                                                          */
#include "cuda/attn_decode_page.cuh"
#include "cuda/launch.cuh"

static constexpr int WARPS = BLOCKS, CONSUMERS = WARPS * 32, THREADS = CONSUMERS + 32;
static constexpr int MAX_STAGE = 8;

/* --- the line ------------------------------------------------------------------------------------------- */

__device__ static inline int pages_of(int pos, int widest, int *first) {
    *first = max(moa_window_first(widest, pos) / MOA_PAGE_TOK, 1);
    return pos < 0 ? 0 : 1 + max(pos / MOA_PAGE_TOK - *first + 1, 0);
}
struct line {
    int each, more; /* pages of a block; the first `more` blocks have one more */
    int used;       /* blocks that have work */
    int at, end;    /* this block's stretch */
    int before;     /* pages before item n */
    int n;          /* the item in which the stretch begins */
    bool any_idle;
    __device__ int begin_of(int block) const { return block * each + min(block, more); }
    __device__ int block_of(int x) const {
        const int head = more * (each + 1);
        return x < head ? x / (each + 1) : more + (x - head) / each;
    }
};
struct line_shared {
    int sum[WARPS + 1], n, before;
};

__device__ static int item_pages(const page_job &j, int n) {
    const int part = n % j.n_part, head_kv = n / j.n_part % j.n_head_kv, seq = n / j.n_part / j.n_head_kv;
    const int head = head_kv * j.group + part * MAX_GROUP,
              n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
    const int pos = j.pos[seq];
    const int32_t *span = j.span + seq * j.span_stride + head;
    int widest = 0, first;
#pragma unroll
    for (int h = 0; h < MAX_GROUP; h++)
        if (h < n_head) widest = max(widest, span[h]);
    return pages_of(pos, widest, &first);
}

__device__ static line count_line(const page_job &j, line_shared *s) {
    const int per = (j.n_item + THREADS - 1) / THREADS, begin = (int)threadIdx.x * per,
              stop = min(begin + per, j.n_item);
    int mine = 0;
    bool idle = false;
#pragma unroll 4
    for (int k = begin; k < stop; k++) {
        const int pages = item_pages(j, k);
        idle |= pages == 0;
        mine += pages;
    }
    int sum = mine; /* inclusive scan */
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(ALL, sum, d);
        if ((int)threadIdx.x % 32 >= d) sum += other;
    }
    if (threadIdx.x % 32 == 31) s->sum[threadIdx.x / 32] = sum;
    line l;
    l.any_idle = __syncthreads_or(idle);
    int total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) {
        if (w < (int)threadIdx.x / 32) sum += s->sum[w];
        total += s->sum[w];
    }
    l.used = min((int)gridDim.x, total);
    l.each = l.more = l.at = l.end = l.before = l.n = 0;
    if ((int)blockIdx.x >= l.used) return l;
    l.each = total / l.used, l.more = total % l.used;
    l.at = l.begin_of(blockIdx.x);
    l.end = l.begin_of(blockIdx.x + 1);
    if (sum - mine <= l.at && l.at < sum) { /* the stretch begins among this thread's items */
        int before = sum - mine;
        for (int k = begin; k < stop; k++) {
            const int pages = per == 1 ? mine : item_pages(j, k);
            if (before <= l.at && l.at < before + pages) s->n = k, s->before = before;
            before += pages;
        }
    }
    __syncthreads();
    l.n = s->n;
    l.before = s->before;
    return l;
}

/* item n or the first later one with pages; *head_kv: of its table; *window: of head lane / 4 */
__device__ static segment find_segment(const page_job &j, int n, int *head_kv, int *window) {
    segment s = {};
    for (;; n++) {
        const int part = n % j.n_part, h = (int)threadIdx.x % 32 / 4;
        *head_kv = n / j.n_part % j.n_head_kv;
        s.n = n;
        s.seq = n / j.n_part / j.n_head_kv;
        s.head = *head_kv * j.group + part * MAX_GROUP;
        s.n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
        s.pos = j.pos[s.seq];
        const int span = h < s.n_head ? j.span[s.seq * j.span_stride + s.head + h] : 0;
        *window = h < s.n_head ? moa_window(span) : INT32_MAX;
        const int widest = __reduce_max_sync(ALL, span);
        s.narrowest = __reduce_min_sync(ALL, *window);
        s.n_page = pages_of(s.pos, widest, &s.first);
        const int begin = moa_window_first(widest, s.pos) - s.first * MOA_PAGE_TOK;
        s.first_tok = max(begin, 0) / BLOCK_TOK * BLOCK_TOK;
        if (s.n_page > 0) return s;
    }
}

/* --- shared memory -------------------------------------------------------------------------------------- */

struct shared_item {
    int seq, head, n_head; /* as a segment's */
    int first, n_part;     /* blocks that have a part */
};
struct block_shared {
    alignas(8) uint64_t full[MAX_STAGE], empty[MAX_STAGE];
    bool there[MAX_STAGE];      /* whether the page in the stage is there */
    segment item_of[MAX_STAGE]; /* where an item begins: what it is, and its heads' windows */
    int window[MAX_STAGE][MAX_GROUP];
    float state[WARPS][MAX_GROUP][N_STATE];
    line_shared line;
    shared_item shared[2]; /* items that other blocks have parts of, too: the first and the last */
};
__device__ static inline void consumers_meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

/* --- the warp that fetches ------------------------------------------------------------------------------ */

/* where the pages of the line go: the stage to be filled or emptied next, and how often that was done */
struct ring_place {
    int stage, round;
    __device__ void step(int n_stage) {
        if (++stage == n_stage) stage = 0, round++;
    }
};

template <int D>
__device__ static void fetch(const page_job &j, const line &l, unsigned stages, block_shared &sh) {
    const int lane = threadIdx.x % 32;
    ring_place r = {};
    int at = l.at, n = l.n, before = l.before;
    bool waited = false;
    while (at < l.end) {
        int head_kv, window, entry = -1;
        const segment s = find_segment(j, n, &head_kv, &window);
        const int32_t *table = j.kv.table + s.seq * j.kv.seq_stride + (int64_t)head_kv * j.kv.max_pages;
        const int from = at - before, to = min(l.end - before, s.n_page);
        for (int k = from; k < to; k++, r.step(j.n_stage)) {
            if ((k - from) % 32 == 0) {
                const int page = s.page(k + lane);
                entry = k + lane < to && page < j.kv.max_pages ? table[page] : -1;
            }
            const int e = __shfl_sync(ALL, entry, (k - from) % 32), page = s.page(k);
            if (r.round > 0) barrier_wait(shared_at(&sh.empty[r.stage]), (r.round - 1) & 1);
            if (!waited && (!j.early || page == s.pos / MOA_PAGE_TOK)) moa_launch_wait(), waited = true;
            if (k == from && lane % 4 == 0) sh.window[r.stage][lane / 4] = window;
            if (k == from && lane == 0) sh.item_of[r.stage] = s;
            if (lane == 0) sh.there[r.stage] = e >= 0;
            __syncwarp(); /* lane 0 arrives for all of them */
            fill_page<D>(stages + (unsigned)(r.stage * page_layout<D>::PAGE), shared_at(&sh.full[r.stage]),
                         e < 0 ? nullptr : j.kv.pool + (int64_t)e * (2 * MOA_PAGE_TOK * D),
                         k == 1 ? s.first_tok : 0, min(s.pos - page * MOA_PAGE_TOK + 1, (int)MOA_PAGE_TOK));
            moa_launch_go();
        }
        at = before + to;
        before += s.n_page;
        n = s.n + 1;
    }
    moa_launch_go(); /* a block without work, too */
    moa_launch_wait();
}

/* --- from warps to the item's result -------------------------------------------------------------------- */

/* a warp's sums to its slot (n_head, D), its state to sh.state */
template <int D, bool STATS>
__device__ static void leave(const warp_state<D, STATS> &u, const segment &s, float *slot, block_shared &sh) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    float x[N_STATE] = {u.m, u.l, 0, 0, 0, 0};
    if (STATS) x[2] = u.st.t, x[3] = u.st.sink, x[4] = u.st.window, x[5] = u.st.distance;
#pragma unroll
    for (int k = 1; k < (STATS ? N_STATE : 2); k++)
        x[k] = group_sum<4>(x[k]);
    if (c == 0)
#pragma unroll
        for (int k = 0; k < (STATS ? N_STATE : 2); k++)
            sh.state[warp][g][k] = x[k];
    if (g >= s.n_head) return;
#pragma unroll
    for (int i = 0; i < page_layout<D>::TILES; i += 2)
#pragma unroll
        for (int e = 0; e < 2; e++)
            *reinterpret_cast<float2 *>(slot + g * D + column_of<D>(i, e, c)) =
                make_float2(u.o[i][e] + u.o[i][e + 2], u.o[i + 1][e] + u.o[i + 1][e + 2]);
}
__device__ static inline float factor_of(float m, float to) {
    return m == -INFINITY ? 0.0f : exp2_fast(m - to);
}
__device__ static inline void add_scaled(float4 &sum, float w, const float4 &x) {
    sum.x += w * x.x, sum.y += w * x.y, sum.z += w * x.z, sum.w += w * x.w;
}

/* --- blocks that share an item ---------------------------------------------------------------------------
 * A letter: four columns of a part, then its m and l; all words EMPTY, a NaN that no arithmetic makes, between launches. Each has one
 * reader, who makes it EMPTY again. Of a block's parts that of the item which it continues lies in slot 2 block, that of the
 * item which begins in it in slot 2 block + 1. */
static constexpr unsigned EMPTY = 0xffffffffu;
__device__ static inline float4 letter_at(const float4 *p) {
    float4 x;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(p)
                 : "memory");
    return x;
}
__device__ static inline bool is_empty(const float4 &x) {
    return __float_as_uint(x.x) == EMPTY || __float_as_uint(x.y) == EMPTY || __float_as_uint(x.z) == EMPTY ||
           __float_as_uint(x.w) == EMPTY;
}
/* who waits long must not be in the way of the others' reading: ns, then twice that, up to half a microsecond */
__device__ static inline unsigned rest_longer(unsigned ns) {
    __nanosleep(ns);
    return min(2 * ns, 512u);
}
__device__ static inline void make_empty(float4 *p) {
    *reinterpret_cast<uint4 *>(p) = make_uint4(EMPTY, EMPTY, EMPTY, EMPTY);
}

/* What the warps left becomes the result, or letters. By the consumers; ends with their barrier. */
template <int D, bool STATS>
__device__ static void gather(const page_job &j, const segment &s, bool whole, bool begins,
                              const block_shared &sh, const float *s_slot) {
    const int columns = s.n_head * (D / 4);
    float4 *out = reinterpret_cast<float4 *>(j.o + ((int64_t)s.seq * j.n_head + s.head) * D);
    float4 *mail = j.mail + (int64_t)(2 * blockIdx.x + begins) * j.mail_step;
    for (int e = threadIdx.x; e < columns; e += CONSUMERS) {
        const int h = e / (D / 4);
        float z[N_STATE] = {-INFINITY, 0, 0, 0, 0, 0};
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            z[0] = fmaxf(z[0], sh.state[w][h][0]);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float f = factor_of(sh.state[w][h][0], z[0]);
            z[1] += f * sh.state[w][h][1];
            add_scaled(sum, f, reinterpret_cast<const float4 *>(s_slot)[w * columns + e]);
        }
        if (whole) {
            const float inv = z[1] > 0.0f ? 1.0f / z[1] : 0.0f;
            out[e] = make_float4(sum.x * inv, sum.y * inv, sum.z * inv, sum.w * inv);
        } else {
            mail[2 * e] = sum;
            mail[2 * e + 1] = make_float4(z[0], z[1], 0, 0);
        }
        if (!STATS || e % (D / 4) != 0) continue;
        z[1] = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            add_state<STATS>(z, sh.state[w][h]);
        if (whole) {
            write_state(j, s.seq, s.head + h, z);
        } else {
            float4 *to = mail + 2 * j.part_heads * (D / 4) + 2 * h;
            to[0] = make_float4(z[0], z[1], z[2], z[3]);
            to[1] = make_float4(z[4], z[5], 0, 0);
        }
    }
    consumers_meet(); /* all have read what the warps left */
}

/* the letters of part p of an item, in the block first + p */
__device__ static inline float4 *mail_of(const page_job &j, const shared_item &s, int p) {
    return j.mail + (int64_t)(2 * (s.first + p) + (p == 0)) * j.mail_step;
}
__device__ static inline float lanes_sum(float x, int width) {
    for (int d = width / 2; d > 0; d /= 2)
        x += __shfl_xor_sync(ALL, x, d);
    return x;
}
__device__ static inline float lanes_max(float x, int width) {
    for (int d = width / 2; d > 0; d /= 2)
        x = fmaxf(x, __shfl_xor_sync(ALL, x, d));
    return x;
}

/* An item of which this block has a part: the block's share of its columns. A column's parts go to neighbouring lanes, up to four of a
 * lane at once on their way. */
template <int D> __device__ static void merge(const page_job &j, const shared_item &s, int warp, int n_warp) {
    constexpr int AHEAD = 4;
    int width = 2; /* lanes of a column */
    while (width < 32 && width < s.n_part)
        width *= 2;
    const int lane = threadIdx.x % 32, rank = (int)blockIdx.x - s.first, mine = lane % width;
    const int columns = s.n_head * (D / 4), begin = rank * columns / s.n_part,
              end = (rank + 1) * columns / s.n_part;
    for (int base = begin + warp * (32 / width); base < end; base += n_warp * (32 / width)) {
        const int e = base + lane / width;
        float m = -INFINITY, l = 0;
        float4 o = make_float4(0, 0, 0, 0);
        for (int i = mine; i < s.n_part && e < end; i += width * AHEAD) {
            float4 x[AHEAD], y[AHEAD];
            for (unsigned rest = 16;; rest = rest_longer(rest)) {
                bool wait = false;
#pragma unroll
                for (int a = 0; a < AHEAD; a++) {
                    y[a] = make_float4(-INFINITY, 0, 0, 0), x[a] = make_float4(0, 0, 0, 0);
                    if (i + a * width >= s.n_part) continue;
                    const float4 *from = mail_of(j, s, i + a * width) + 2 * e;
                    x[a] = letter_at(from), y[a] = letter_at(from + 1);
                }
#pragma unroll
                for (int a = 0; a < AHEAD; a++)
                    wait |= is_empty(x[a]) || is_empty(y[a]);
                if (!wait) break;
            }
            float to = m;
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
                to = fmaxf(to, y[a].x);
            const float f = factor_of(m, to);
            l *= f, o.x *= f, o.y *= f, o.z *= f, o.w *= f, m = to;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const float w = factor_of(y[a].x, to);
                l += w * y[a].y;
                add_scaled(o, w, x[a]);
                if (i + a * width >= s.n_part) continue;
                float4 *from = mail_of(j, s, i + a * width) + 2 * e;
                make_empty(from), make_empty(from + 1);
            }
        }
        const float top = lanes_max(m, width), f = factor_of(m, top);
        l = lanes_sum(l * f, width);
        const float inv = l > 0.0f ? 1.0f / l : 0.0f;
        o = make_float4(lanes_sum(o.x * f, width) * inv, lanes_sum(o.y * f, width) * inv,
                        lanes_sum(o.z * f, width) * inv, lanes_sum(o.w * f, width) * inv);
        if (mine == 0 && e < end)
            reinterpret_cast<float4 *>(j.o + ((int64_t)s.seq * j.n_head + s.head) * D)[e] = o;
    }
}
/* and of its heads' statistics */
template <int D>
__device__ static void merge_stats(const page_job &j, const shared_item &s, int warp, int n_warp) {
    const int lane = threadIdx.x % 32, rank = (int)blockIdx.x - s.first;
    for (int h = rank + s.n_part * warp; h < s.n_head; h += s.n_part * n_warp) {
        float z[N_STATE] = {-INFINITY, 0, 0, 0, 0, 0};
        for (int p = lane; p < s.n_part; p += 32) {
            float4 *from = mail_of(j, s, p) + 2 * j.part_heads * (D / 4) + 2 * h, a, b;
            for (unsigned rest = 16;; rest = rest_longer(rest)) {
                a = letter_at(from), b = letter_at(from + 1);
                if (!is_empty(a) && !is_empty(b)) break;
            }
            make_empty(from), make_empty(from + 1);
            const float y[N_STATE] = {a.x, a.y, a.z, a.w, b.x, b.y};
            state_meet(z, y);
        }
        const float top = lanes_max(z[0], 32), own[N_STATE] = {z[0], z[1], z[2], z[3], z[4], z[5]};
        z[0] = top, z[1] = z[2] = z[3] = z[4] = z[5] = 0;
        if (own[0] != -INFINITY) add_state<true>(z, own);
#pragma unroll
        for (int i = 1; i < N_STATE; i++)
            z[i] = lanes_sum(z[i], 32);
        if (lane == 0) write_state(j, s.seq, s.head + h, z);
    }
}

/* The block's first and last item may be others' too: met when its own work is done, so that nobody waits for one who waits. With two of
 * them half of the warps each. */
template <int D, bool STATS>
__device__ static void meet(const page_job &j, const block_shared &sh, int n_shared) {
    const int warp = threadIdx.x / 32;
    if (n_shared == 0) return;
    const int team = n_shared == 1 ? WARPS : WARPS / 2;
    const shared_item s = sh.shared[warp / team];
    merge<D>(j, s, warp % team, team);
    if (STATS) merge_stats<D>(j, s, warp % team, team);
}

/* results of idle sequences: 0. Block b takes the items b, b + gridDim, ... */
template <int D> __device__ static void clear_idle(const page_job &j) {
    for (int n = blockIdx.x; n < j.n_item; n += gridDim.x) {
        const int seq = n / j.n_part / j.n_head_kv;
        if (j.pos[seq] >= 0) continue;
        const int part = n % j.n_part, head = n / j.n_part % j.n_head_kv * j.group + part * MAX_GROUP;
        const int n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
        const int64_t row = (int64_t)seq * j.n_head + head;
        for (int e = threadIdx.x; e < n_head * D; e += CONSUMERS)
            j.o[row * D + e] = 0;
        for (int e = threadIdx.x; j.probe.stat && e < n_head * MOA_N_STAT; e += CONSUMERS)
            j.probe.stat[row * MOA_N_STAT + e] = 0;
    }
}

template <int D, typename E, bool STATS>
__device__ static void attend(const page_job &j, const line &l, unsigned stages, float *s_slot,
                              block_shared &sh) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    ring_place r = {};
    int at = l.at, before = l.before, n_shared = 0;
    moa_launch_wait();
    while (at < l.end) {
        queries<D> q;
        warp_state<D, STATS> u;
        barrier_wait(shared_at(&sh.full[r.stage]), r.round & 1);
        const segment s = sh.item_of[r.stage];
        const int window = sh.window[r.stage][lane / 4], from = at - before,
                  to = min(l.end - before, s.n_page);
        int measure = window;
        load_queries<D, E>(j, s, q);
        if (STATS && j.probe.measure_span && lane / 4 < s.n_head)
            measure = moa_window(j.probe.measure_span[s.head + lane / 4]);
        u.clear();
        for (int k = from; k < to; k++, r.step(j.n_stage)) {
            barrier_wait(shared_at(&sh.full[r.stage]), r.round & 1);
            if (sh.there[r.stage])
                attend_page<D, E, STATS>(j, u, q, s, k, stages + (unsigned)(r.stage * page_layout<D>::PAGE),
                                         window, measure);
            __syncwarp(); /* everybody has read the stage */
            if (lane == 0) barrier_arrive(shared_at(&sh.empty[r.stage]));
        }
        const bool whole = from == 0 && to == s.n_page;
        leave<D, STATS>(u, s, s_slot + warp * s.n_head * D, sh);
        consumers_meet();
        gather<D, STATS>(j, s, whole, from == 0, sh, s_slot);
        if (!whole && threadIdx.x == 0) {
            const int first = l.block_of(before), n_part = l.block_of(before + s.n_page - 1) - first + 1;
            sh.shared[n_shared] = {s.seq, s.head, s.n_head, first, n_part};
        }
        n_shared += !whole;
        at = before + to;
        before += s.n_page;
    }
    consumers_meet();
    meet<D, STATS>(j, sh, n_shared);
}

/* grid: as many blocks as fit the device at most. Dynamic shared memory: n_stage pages, then what warps leave */
template <int D, typename E, bool STATS>
__global__ static void __launch_bounds__(THREADS, D > 128 ? 1 : 2) decode_v2(const page_job j) {
    extern __shared__ __align__(128) char s_dynamic[];
    __shared__ block_shared sh;
    if ((int)threadIdx.x < j.n_stage) {
        barrier_init(shared_at(&sh.full[threadIdx.x]), FILL_ARRIVALS);
        barrier_init(shared_at(&sh.empty[threadIdx.x]), WARPS);
    }
    barriers_ready();
    const line l = count_line(j, &sh.line); /* its barriers also publish the mbarriers */
    const unsigned stages = shared_at(s_dynamic);
    if (threadIdx.x >= CONSUMERS) {
        fetch<D>(j, l, stages, sh);
        return;
    }
    attend<D, E, STATS>(j, l, stages, reinterpret_cast<float *>(s_dynamic + j.n_stage * page_layout<D>::PAGE),
                        sh);
    if (l.any_idle) clear_idle<D>(j);
}

/* --- the histogram of distances ------------------------------------------------------------------------- */

/* A of head's keys in a page that lie in a bin; bin < 0: all of them. 0 where the head sees none of them or they are not there */
__device__ static float mass_of_page(const page_job &j, int seq, int head, int pos, int span, int page,
                                     int bin, float lse2) {
    const int last = min(page * MOA_PAGE_TOK + MOA_PAGE_TOK - 1, pos);
    if (page * MOA_PAGE_TOK > pos || !moa_sees(span, pos, last)) return 0;
    if (!j.kv.page(seq, head / j.group, page)) return 0;
    const float4 *x = j.mass + (((int64_t)seq * j.n_head + head) * j.kv.max_pages + page) * BLOCKS;
    const int first = mass_bin(pos, page);
    float mass = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float sum = bin < 0            ? x[w].y + x[w].z
                          : bin == first     ? x[w].y
                          : bin == first + 1 ? x[w].z
                                             : 0.0f;
        if (sum > 0.0f) mass += sum * exp2_fast(x[w].x - lse2);
    }
    return mass;
}

/* grid: (ceil((1 + n_bin) / WARPS_HIST), n_head). A warp a bin: 0 the sink, 1 + b keys from 64 on at distances of bin b, the last all
 * beyond. Summed over the sequences in order. */
static constexpr int WARPS_HIST = 4;
__global__ static void __launch_bounds__(WARPS_HIST * 32) hist_v2(const page_job j) {
    const int slot = (int)blockIdx.x * WARPS_HIST + (int)threadIdx.x / 32, lane = threadIdx.x % 32,
              head = blockIdx.y, n_bin = j.probe.n_bin;
    if (slot > n_bin) return;
    for (int seq = 0; seq < j.n_seq; seq++) {
        const int pos = j.pos[seq], bin = slot - 1;
        if (pos < 0) continue;
        const int span = j.span[seq * j.span_stride + head];
        const float lse2 = j.lse[(int64_t)seq * j.n_head + head] * LOG2E;
        float mass = 0;
        if (slot == 0) {
            if (lane == 0) mass = mass_of_page(j, seq, head, pos, span, 0, -1, lse2);
        } else { /* keys at distances bin * 64 and more; the last bin's go back to the sink */
            const int newest = pos - bin * MOA_PAGE_TOK,
                      oldest = slot == n_bin ? MOA_SINK_TOK : newest - MOA_PAGE_TOK + 1;
            for (int page = max(oldest, MOA_SINK_TOK) / MOA_PAGE_TOK + lane; page * MOA_PAGE_TOK <= newest;
                 page += 32) {
                const int first = mass_bin(pos, page);
                if (slot < n_bin)
                    mass += mass_of_page(j, seq, head, pos, span, page, bin, lse2);
                else
                    for (int b = max(first, bin); b <= first + 1; b++)
                        mass += mass_of_page(j, seq, head, pos, span, page, b, lse2);
            }
        }
        mass = warp_sum(mass);
        const int bucket = min(pos / j.probe.bucket_tok, (int)MOA_HIST_BUCKETS - 1);
        if (lane == 0) j.probe.hist[((int64_t)head * MOA_HIST_BUCKETS + bucket) * (1 + n_bin) + slot] += mass;
    }
}

/* --- launching ------------------------------------------------------------------------------------------ */

/* Stages of a block and blocks of a multiprocessor: two, of this launch or of this and the next, where two stages each fit. */
template <int D, bool STATS>
static moa_status place(moa_cuda *c, page_job *j, int *per_sm, size_t *bytes, moa_err *err) {
    typedef page_layout<D> t;
    int most = 0, all = 0;
    MOA_CU(c, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device));
    MOA_CU(c, cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, c->device));
    const int slots = WARPS * j->part_heads * D * (int)sizeof(float),
              fixed = slots + (int)sizeof(block_shared) + 1024, half = (all / 2 - fixed) / t::PAGE,
              fit = (most - fixed) / t::PAGE;
    *per_sm = D <= 128 && half >= 2 ? 2 : 1;
    j->n_stage = *per_sm == 2 ? half : fit;
    if (j->n_stage > MAX_STAGE) j->n_stage = MAX_STAGE;
    *bytes = (size_t)(j->n_stage * t::PAGE + slots);
    return MOA_OK;
}

template <int D, typename E, bool STATS>
static moa_status launch(moa_cuda *c, page_job *j, bool *taken, moa_err *err) {
    int per_sm = 0;
    size_t bytes = 0;
    MOA_RETURN((place<D, STATS>(c, j, &per_sm, &bytes, err)));
    *taken = j->n_stage > 0;
    if (!*taken) return MOA_OK;
    /* one block a multiprocessor where there are but two pages each, or many items: fewer parts to be merged */
    const int64_t pages = (int64_t)j->n_item * (j->kv.max_pages > 0 ? j->kv.max_pages : 1);
    int64_t n_block = (int64_t)c->n_sm * (pages <= 2 * c->n_sm || j->n_item >= c->n_sm ? 1 : per_sm);
    if (n_block > MOA_MAIL_BLOCKS) n_block = MOA_MAIL_BLOCKS;
    if (n_block > pages) n_block = pages;
    j->mail = moa_cuda_mail(c);
    j->mail_step = j->part_heads * (D / 4 + 1) * 2;
    MOA_CU(c, moa_allow_shared(decode_v2<D, E, STATS>, bytes));
    moa_launch l = {dim3((unsigned)n_block), dim3(THREADS), bytes, 1, false, c->stream};
    MOA_CU(c, moa_launch_may_be_early(c->device, &l.early));
    MOA_CU(c, moa_launch_kernel(l, decode_v2<D, E, STATS>, *j));
    MOA_LAUNCHED(c, "attn_decode");
    return MOA_OK;
}
template <typename E, bool STATS>
static moa_status launch_by_size(moa_cuda *c, page_job *j, bool *taken, moa_err *err) {
    switch (j->kv.d_head) {
    case 64: return launch<64, E, STATS>(c, j, taken, err);
    case 80: return launch<80, E, STATS>(c, j, taken, err);
    case 96: return launch<96, E, STATS>(c, j, taken, err);
    case 128: return launch<128, E, STATS>(c, j, taken, err);
    case 256: return launch<256, E, STATS>(c, j, taken, err);
    default: *taken = false; return MOA_OK;
    }
}

template <typename E> static moa_status launch_by_type(moa_cuda *c, page_job *j, bool *taken, moa_err *err) {
    return j->probe.stat || j->probe.hist ? launch_by_size<E, true>(c, j, taken, err)
                                          : launch_by_size<E, false>(c, j, taken, err);
}

/* The job of these arguments, with scratch for the histogram. Outputs of idle sequences are the kernel's. */
static moa_status job_of(moa_cuda *c, const moa_args_attn_decode *a, page_job *j, moa_err *err) {
    const int group = a->n_head / a->kv.n_head_kv;
    *j = {};
    j->q = a->q, j->o = a->o;
    j->kv = moa_kv_of<__half>(&a->kv); /* or bfloat16: only where rows lie matters */
    j->pos = a->pos, j->span = a->span, j->span_stride = a->span_seq_stride;
    j->n_seq = a->n_seq, j->n_head = a->n_head, j->n_head_kv = a->kv.n_head_kv;
    j->group = group, j->n_part = moa_ceil_div(group, MAX_GROUP);
    j->n_item = a->n_seq * a->kv.n_head_kv * j->n_part;
    j->part_heads = group < MAX_GROUP ? group : MAX_GROUP;
    /* several rows of one sequence: each may see what is being stored for another */
    j->early = a->n_seq == 1 || a->kv.table_seq_stride != 0;
    j->scale = a->scale;
    j->probe = a->probe;
    if (!a->probe.hist) return MOA_OK;
    const size_t rows = (size_t)a->n_seq * (size_t)a->n_head,
                 mass_bytes = rows * (size_t)a->kv.max_pages * BLOCKS * sizeof(float4);
    char *space = nullptr;
    MOA_RETURN(
        moa_cuda_scratch(c, mass_bytes + rows * sizeof(float), reinterpret_cast<void **>(&space), err));
    j->mass = reinterpret_cast<float4 *>(space);
    j->lse = reinterpret_cast<float *>(space + mass_bytes);
    return MOA_OK;
}

moa_status moa_cuda_decode_v2(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err) {
    *taken = false;
    const int64_t n_item =
        (int64_t)a->n_seq * a->kv.n_head_kv * moa_ceil_div(a->n_head / a->kv.n_head_kv, MAX_GROUP);
    if ((a->kv.type != MOA_KV_F16 && a->kv.type != MOA_KV_BF16) ||
        n_item * (a->kv.max_pages > 0 ? a->kv.max_pages : 1) > INT32_MAX)
        return MOA_OK;
    page_job j;
    MOA_RETURN(job_of(c, a, &j, err));
    MOA_RETURN(a->kv.type == MOA_KV_F16 ? launch_by_type<__half>(c, &j, taken, err)
                                        : launch_by_type<__nv_bfloat16>(c, &j, taken, err));
    if (!*taken || !a->probe.hist) return MOA_OK;
    const dim3 bins((unsigned)moa_ceil_div(a->probe.n_bin + 1, WARPS_HIST), (unsigned)a->n_head);
    hist_v2<<<bins, WARPS_HIST * 32, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "attn_decode's histogram");
    return MOA_OK;
}
