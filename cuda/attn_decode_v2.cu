/* attn_decode_v2.cu -- decode attention over pages of 16-bit numbers or 8-bit codes on tensor cores, one kernel; attn_decode.cu (v1) explains
 * the idea in plain code.
 *
 *   line     all pages that items see, one after the other, as v1's; equal stretches to within a page, one a block. Where stretches are short
 *            an item takes a whole number of them, so that no block has two. What a block reads does
 *            not depend on the kernels in front, but for the newest page: it begins beside them (launch.cuh), its first pages on their way
 *   fetch    one warp of five walks the stretch: position, spans, table, then eight bulk copies a page (sm_90; 16-byte cp.async before) into
 *            a ring of stages, which an mbarrier each counts. It also tells the others what part of what item a stage begins
 *   attend   four warps, a quarter of each page (attn_decode_page.cuh); they meet only at the end of an item
 *   letters  an item that several blocks have parts of: each block leaves its part in global memory; half of them stay and take a share of the
 *            item's columns each, the others leave: the launch behind this one then has room to begin to read. A letter is waited for by
 *            reading it until no word of it is EMPTY: one way there and one back, where a fence, a
 *            counter and the reading cost three. Blocks wait only when their own work is done, and all of the grid is on the device at once
 *            (two blocks a multiprocessor fit; a later launch gets room only when all of these have begun), so nobody waits in vain
 *   probe    statistics from the same softmax state; for the histogram each warp leaves what its part of a page weighs in the two
 *            bins it may meet, and a small second kernel sums that: K is not read again
 *
 * Order of summing is fixed: the same bits every time. Heads of 64, 80, 96, 128, 256 elements, any group; the rest is v1's.
 *
 *   version                                                     H100, f16, one layer, us a launch in a chain of launches
 *                                                               SmolLM2 4k | 8B 4k, half | 8B 16k, half | 8B 128k, half | Vicuna 16k, half
 *   a warp its own ring of 16 tokens, last block merges         10.7 | 19.3, 18.1 | 37.2, 26.5 | 199, 113 | 109, 66.0
 *   items dealt to clusters, merged in distributed memory        7.5 | 13.4, 11.2 | 36.1, 22.0 | 228, 133 | 119, 69.8
 *   line of pages, a warp that fetches, last block merges        7.6 | 12.6, 13.1 | 32.8, 22.6 | 189      | 99.8, 54.4
 *   S and O with heads on the side of 16, blocks share merging   7.1 | 11.8, 14.1 | 31.8, 24.0 | 188      | 101, 56.0
 *   letters                                                      5.6 | 11.7, 9.6  | 31.9, 21.2 | 189, 101 | 96.5, 51.5
 *   (tried) a tenth of each stretch handed out by a counter      -   |  -         | 31.9, 26.6 | 197, 109 | 98.8, 53.5
 *   read once, half of the blocks merge, two a multiprocessor     5.5 | 10.5, 9.7  | 26.9, 15.2 | 183, 94.8 | 93.6, 48.9
 *   the same reading alone                                       2   |  5.5, 3.4  | 21.6, 10.9 | 172, 87  | 86.8, 42.9
 *   2026-11-24; today's figures: test_ops_cuda --bench attn_decode                                                          */
#include "cuda/attn_decode_page.cuh"
#include "cuda/launch.cuh"

static constexpr int WARPS = BLOCKS, CONSUMERS = WARPS * 32, THREADS = CONSUMERS + 32;
static constexpr int MAX_STAGE = 8;
/* where each block gets one item: blocks an item at least; pages of a block, less than */
static constexpr int FEW_ITEMS = 8, SHORT_STRETCH = 8;
/* K and V reserved a multiprocessor: up to here one block each */
static constexpr int LITTLE_BYTES = 128 << 10;

/* --- the line ------------------------------------------------------------------------------------------- */

__device__ static inline int pages_of(int pos, int widest, int *first) {
    *first = max(moa_window_first(widest, pos) / MOA_PAGE_TOK, 1);
    return pos < 0 ? 0 : 1 + max(pos / MOA_PAGE_TOK - *first + 1, 0);
}
struct line {
    int each, more; /* pages of a stretch; the first `more` have one more */
    int used;       /* blocks that have a stretch */
    int unit; /* an item takes a whole number of units: not 1 where stretches are short, and then none has two items */
    bool any_idle;
    __device__ int begin_of(int block) const { return block * each + min(block, more); }
    __device__ int block_of(int x) const {
        const int head = more * (each + 1);
        return x < head ? x / (each + 1) : more + (x - head) / each;
    }
    __device__ int length_of(int pages) const { return (pages + unit - 1) / unit * unit; }
    /* of the blocks that have a part of an item half put it together, and the others leave: a launch behind this one may then begin to read */
    __device__ int mergers_of(int n_part) const { return each > 1 ? (n_part + 1) / 2 : n_part; }
};
struct line_shared {
    int warp[WARPS + 1], upto[THREADS]; /* pages of a warp's items; of those of its threads up to this one */
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
__device__ static inline int sum_upto(int x) {
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int other = __shfl_up_sync(ALL, x, d);
        if ((int)threadIdx.x % 32 >= d) x += other;
    }
    return x;
}

/* pages of all items up to this thread's; s: what find_item() needs */
__device__ static inline void scan_line(int mine, line_shared *s) {
    const int upto = sum_upto(mine);
    s->upto[threadIdx.x] = upto;
    if (threadIdx.x % 32 == 31) s->warp[threadIdx.x / 32] = upto;
}
__device__ static inline int line_length(const line_shared *s) {
    int total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++)
        total += s->warp[w];
    return total;
}
__device__ static line count_line(const page_job &j, line_shared *s) {
    const int per = (j.n_item + THREADS - 1) / THREADS, begin = (int)threadIdx.x * per,
              stop = min(begin + per, j.n_item), n_block = gridDim.x;
    int mine = 0;
    bool idle = false;
#pragma unroll 4
    for (int k = begin; k < stop; k++) {
        const int pages = item_pages(j, k);
        idle |= pages == 0;
        mine += pages;
    }
    scan_line(mine, s);
    line l = {};
    l.any_idle = __syncthreads_or(idle);
    int total = line_length(s);
    l.unit = 1;
    if (j.n_item * FEW_ITEMS <= n_block && total < n_block * SHORT_STRETCH) {
        /* items add up to n_block units at most */
        l.unit = max((total + n_block - j.n_item - 1) / (n_block - j.n_item), 1);
        __syncthreads();
        scan_line(l.length_of(mine), s); /* an item a thread, at most */
        __syncthreads();
        total = line_length(s);
        l.used = total / l.unit, l.each = l.unit;
        return l;
    }
    l.used = min(n_block, total);
    if (l.used > 0) l.each = total / l.used, l.more = total % l.used;
    return l;
}

/* the item that page x of the line belongs to, and the pages before it; by a warp */
__device__ static void find_item(const page_job &j, const line_shared *s, int x, int *n, int *before) {
    const int lane = threadIdx.x % 32, per = (j.n_item + THREADS - 1) / THREADS;
    int base = 0, t = 0;
    for (int w = 0; w < WARPS && x >= base + s->warp[w]; w++)
        base += s->warp[w], t += 32;
    t += __popc(__ballot_sync(ALL, x >= base + s->upto[t + lane]));
    *n = t * per;
    *before = base + (t % 32 ? s->upto[t - 1] : 0);
    while (per > 1) {
        const int pages = *n + lane < j.n_item ? item_pages(j, *n + lane) : 0, upto = sum_upto(pages);
        const int past = __popc(__ballot_sync(ALL, x >= *before + upto));
        *before += past == 0 ? 0 : __shfl_sync(ALL, upto, past - 1);
        *n += past;
        if (past < 32) break;
    }
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

/* the part of an item that lies in this block's stretch */
struct run {
    segment s;
    int from, to;      /* its pages; to 0: nothing comes any more */
    int first, n_part; /* blocks that have a part of the item */
};
struct shared_item {
    int seq, head, n_head; /* as a segment's */
    int first, n_part;     /* as a run's */
    int rank, n_rank;      /* of those that merge it */
};
struct block_shared {
    alignas(8) uint64_t full[MAX_STAGE], empty[MAX_STAGE];
    bool there[MAX_STAGE]; /* whether the page in the stage is there */
    run run_of[MAX_STAGE]; /* where a run begins: what it is, and its heads' windows */
    int window[MAX_STAGE][MAX_GROUP];
    float state[WARPS][MAX_GROUP][N_STATE];
    line_shared line;
    shared_item shared[2]; /* items of which others have parts, too: the first and the last */
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

template <int D, typename E>
__device__ static void fetch(const page_job &j, const line &l, unsigned stages, block_shared &sh) {
    const int lane = threadIdx.x % 32, block = blockIdx.x, end = l.begin_of(block + 1);
    ring_place r = {};
    int at = block < l.used ? l.begin_of(block) : end, n = 0, before = 0;
    const uint64_t policy = read_once();
    bool waited = false;
    if (at < end) find_item(j, &sh.line, at, &n, &before);
    while (at < end) {
        int head_kv, window, entry = -1;
        const segment s = find_segment(j, n, &head_kv, &window);
        const int32_t *table = j.kv.table + s.seq * j.kv.seq_stride + (int64_t)head_kv * j.kv.max_pages;
        const int from = at - before, to = min(end - before, s.n_page), length = l.length_of(s.n_page);
        for (int k = from; k < to; k++, r.step(j.n_stage)) {
            if ((k - from) % 32 == 0) {
                const int page = s.page(k + lane);
                entry = k + lane < to && page < j.kv.max_pages ? table[page] : -1;
            }
            const int e = __shfl_sync(ALL, entry, (k - from) % 32), page = s.page(k);
            if (r.round > 0) barrier_wait(shared_at(&sh.empty[r.stage]), (r.round - 1) & 1);
            if (!waited && (!j.early || page == s.pos / MOA_PAGE_TOK)) moa_launch_wait(), waited = true;
            if (k == from && lane % 4 == 0) sh.window[r.stage][lane / 4] = window;
            if (k == from && lane == 0) {
                const int first = l.block_of(before);
                sh.run_of[r.stage] = {s, from, to, first, l.block_of(before + s.n_page - 1) - first + 1};
            }
            if (lane == 0) sh.there[r.stage] = e >= 0;
            __syncwarp(); /* lane 0 arrives for all of them */
            fill_page<D, E>(
                stages + (unsigned)(r.stage * page_layout<D, E>::PAGE), shared_at(&sh.full[r.stage]),
                e < 0 ? nullptr
                      : reinterpret_cast<const char *>(j.kv.pool) + (int64_t)e * page_layout<D, E>::WHOLE,
                k == 1 ? s.first_tok : 0, min(s.pos - page * MOA_PAGE_TOK + 1, (int)MOA_PAGE_TOK), policy);
            moa_launch_go();
        }
        at = before + length;
        before += length;
        n = s.n + 1;
    }
    if (r.round > 0) barrier_wait(shared_at(&sh.empty[r.stage]), (r.round - 1) & 1);
    if (lane == 0) sh.run_of[r.stage].to = 0;
    __syncwarp();
    fill_page<D, E>(0, shared_at(&sh.full[r.stage]), nullptr, 0, 0, policy);
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
    const float unit = u.v_field ? __uint_as_float((unsigned)(u.v_field + 1) << 23) : 1.0f; /* of coded V */
#pragma unroll
    for (int i = 0; i < D / 8; i += 2)
#pragma unroll
        for (int e = 0; e < 2; e++)
            *reinterpret_cast<float2 *>(slot + g * D + column_of<D>(i, e, c)) =
                make_float2((u.o[i][e] + u.o[i][e + 2]) * unit, (u.o[i + 1][e] + u.o[i + 1][e + 2]) * unit);
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
    constexpr int AHEAD = 5;
    const int columns = s.n_head * (D / 4), begin = s.rank * columns / s.n_rank,
              end = (s.rank + 1) * columns / s.n_rank;
    int width = 2; /* lanes of a column: enough for its parts, and few enough for all columns at once */
    while (width < 32 && width < s.n_part)
        width *= 2;
    while (width > 4 && n_warp * (32 / width) < end - begin)
        width /= 2;
    const int lane = threadIdx.x % 32, mine = lane % width;
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
    const int lane = threadIdx.x % 32;
    for (int h = s.rank + s.n_rank * warp; h < s.n_head; h += s.n_rank * n_warp) {
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
    int n_shared = 0;
    moa_launch_wait();
    for (;;) {
        queries<D> q;
        warp_state<D, STATS> u;
        barrier_wait(shared_at(&sh.full[r.stage]), r.round & 1);
        const run w = sh.run_of[r.stage];
        if (w.to == 0) break;
        const segment &s = w.s;
        const int window = sh.window[r.stage][lane / 4];
        int measure = window;
        load_queries<D, E>(j, s, q);
        if (STATS && j.probe.measure_span && lane / 4 < s.n_head)
            measure = moa_window(j.probe.measure_span[s.head + lane / 4]);
        u.clear();
        for (int k = w.from; k < w.to; k++, r.step(j.n_stage)) {
            barrier_wait(shared_at(&sh.full[r.stage]), r.round & 1);
            if (sh.there[r.stage])
                attend_page<D, E, STATS>(
                    j, u, q, s, k, stages + (unsigned)(r.stage * page_layout<D, E>::PAGE), window, measure);
            __syncwarp(); /* everybody has read the stage */
            if (lane == 0) barrier_arrive(shared_at(&sh.empty[r.stage]));
        }
        const bool whole = w.from == 0 && w.to == s.n_page;
        leave<D, STATS>(u, s, s_slot + warp * s.n_head * D, sh);
        consumers_meet();
        gather<D, STATS>(j, s, whole, w.from == 0, sh, s_slot);
        const int rank = (int)blockIdx.x - w.first, n_rank = l.mergers_of(w.n_part);
        if (!whole && rank < n_rank) {
            if (threadIdx.x == 0)
                sh.shared[n_shared] = {s.seq, s.head, s.n_head, w.first, w.n_part, rank, n_rank};
            n_shared++;
        }
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
    const line l = count_line(j, &sh.line); /* its barrier also publishes the mbarriers */
    const unsigned stages = shared_at(s_dynamic);
    if (threadIdx.x >= CONSUMERS) {
        fetch<D, E>(j, l, stages, sh);
        return;
    }
    attend<D, E, STATS>(j, l, stages,
                        reinterpret_cast<float *>(s_dynamic + j.n_stage * page_layout<D, E>::PAGE), sh);
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

/* Stages of a block and blocks of a multiprocessor: two, where two stages each fit. Two even where there is an item for each multiprocessor: with
 * room for two, those of an early launch go where there is room first, and with one for each some multiprocessors would get two, others none
 * (a step of 8 x 8192 tokens of Vicuna-7B's shape: 15.6 ms against 14.6). */
template <int D, typename E, bool STATS>
static moa_status place(moa_cuda *c, page_job *j, int *per_sm, size_t *bytes, moa_err *err) {
    typedef page_layout<D, E> t;
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
    MOA_RETURN((place<D, E, STATS>(c, j, &per_sm, &bytes, err)));
    *taken = j->n_stage > 0;
    if (!*taken) return MOA_OK;
    /* one where there is little to read: fewer parts to be merged, and the next launch finds room beside this one */
    const int64_t pages = (int64_t)j->n_item * (j->kv.max_pages > 0 ? j->kv.max_pages : 1);
    int64_t n_block =
        (int64_t)c->n_sm * (pages * page_layout<D, E>::WHOLE <= (int64_t)LITTLE_BYTES * c->n_sm ? 1 : per_sm);
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
    if (a->kv.type == MOA_KV_F32 || n_item * (a->kv.max_pages > 0 ? a->kv.max_pages : 1) > INT32_MAX)
        return MOA_OK;
    page_job j;
    MOA_RETURN(job_of(c, a, &j, err));
    switch (a->kv.type) {
    case MOA_KV_BF16: MOA_RETURN(launch_by_type<__nv_bfloat16>(c, &j, taken, err)); break;
    case MOA_KV_Q8: MOA_RETURN(launch_by_type<moa_q8>(c, &j, taken, err)); break;
    default: MOA_RETURN(launch_by_type<__half>(c, &j, taken, err)); break;
    }
    if (!*taken || !a->probe.hist) return MOA_OK;
    const dim3 bins((unsigned)moa_ceil_div(a->probe.n_bin + 1, WARPS_HIST), (unsigned)a->n_head);
    hist_v2<<<bins, WARPS_HIST * 32, 0, c->stream>>>(j);
    MOA_LAUNCHED(c, "attn_decode's histogram");
    return MOA_OK;
}
