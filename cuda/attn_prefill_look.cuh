/* attn_prefill_look.cuh -- the probe's look at the scores of a prompt: statistics and histogram of 64 queries of one head, by tensor cores.
 *
 *   look     a block of 64 queries, at a multiple of 64: against a page of 64 keys a tile whose distance bins are two triangles
 *
 *                     keys 0..31   32..63         at and below the diagonal: bin of (block - page), above it: one nearer
 *     queries  0..31  warp 0 \     warp 1         so a warp off the diagonal has one bin for all its 32 x 32 masses
 *             32..63  warp 2       warp 3 \
 *
 *   team     four warps at such a tile; WARPS / 4 teams take the head's pages in turn, each with two buffers of K and a barrier of its own
 *   first    each row's log-sum-exp, unless it is known from the attention: then nothing of this waits for that
 *   second   S again, normalised probabilities, sums; parts of teams and halves meet in shared memory, in order
 *
 * Which blocks: all, or those that probe_rows.h draws, by whose weight the histogram counts; histogram sums are added with float atomics
 * (their last bits may differ), nothing else depends on the order.
 *
 * Sampled, it is some blocks more in the launch of the attention itself, first in the grid: a launch of its own costs a small model more
 * than the work does, and the last wave of the attention leaves multiprocessors idle. All, it is a kernel after the attention.
 *
 * Precision: q is rounded as in attn_prefill_mma.cu with 1 part. Heads of 64, 80, 96, 128, 256 in a cache of halves.
 *
 *   version   idea                                          H100, whole prompts of 4096, more than without: SmolLM2    8B Q4_0
 *             the probe of attn_prefill_mma.cu, all rows                                                +39 %      +12 %
 *   v1        sampled; branches in the sums                                                             +10.6 %    +3.5 %
 *   v2        one block of code for a tile's sums, a pass for each bucket of rows                       -          +3.0 %
 *   v3        pages counted and copied in fewer instructions                                            +3.7 %     +2.6 %      <- best
 *             v3, all rows (two teams a block for heads of up to 80)                                    +35 %      +13 %
 *   A warp takes some 800 instructions a page, one in 5.8 cycles: what it waits for is itself. Goals: 1 % sampled, 8 % of all at 8k
 *   measured 2026-11-24  (docs/measurements/2026-11-24-h100-sampled.md) */
#ifndef MOA_CUDA_ATTN_PREFILL_LOOK_CUH
#define MOA_CUDA_ATTN_PREFILL_LOOK_CUH

#include "cuda/attn_prefill.cuh"
#include "cuda/mma.cuh"

/* negated lse2 of a row that saw nothing or is not looked at now: makes every p 0, and p y too */
static constexpr float LOOK_NOTHING = -1e30f;

struct look_job {
    const float *q; /* (n_tok, n_head, d_head) */
    moa_kv<__half> kv;
    const int32_t *span; /* (n_head) */
    int seq, pos0, n_tok, n_head, group;
    float scale2; /* scale log2(e) */
    moa_probe probe;
    const float *
        lse2; /* (n_tok, n_head) of the attention, log2 of the sum of 2^score, -inf: saw nothing; NULL: found here */
    int first,
        n_block; /* number of the first block of queries taken (all: its place), how many; each for n_head heads */
};

/* a job's blocks: n_block 0 where nothing is wanted */
static inline look_job look_job_of(const moa_args_attn_prefill *a, const float *lse2) {
    look_job j = {};
    j.q = a->q, j.kv = moa_kv_of<__half>(&a->kv), j.span = a->span;
    j.seq = a->seq, j.pos0 = a->pos0, j.n_tok = a->n_tok, j.n_head = a->n_head;
    j.group = a->n_head / a->kv.n_head_kv;
    j.scale2 = a->scale * 1.44269504f;
    j.probe = a->probe;
    j.lse2 = lse2;
    if (!a->probe.stat && !a->probe.hist) return j;
    j.first = a->pos0 / MOA_PAGE_TOK;
    j.n_block = (a->pos0 + a->n_tok - 1) / MOA_PAGE_TOK - j.first + 1;
    if (a->probe.rows.every > 0) j.n_block = moa_probe_taken_in(&a->probe.rows, a->pos0, a->n_tok, &j.first);
    return j;
}

template <int D_, int WARPS_> struct look_tile {
    static constexpr int D = D_, WARPS = WARPS_, THREADS = WARPS * 32, TEAMS = WARPS / 4, PARTS = 2 * TEAMS;
    static constexpr int STRIDE =
        2 * D + 16; /* bytes of a row: the 8 rows of an 8 x 8 matrix lie in different banks */
    static constexpr int PAGE = MOA_PAGE_TOK * STRIDE;
    static constexpr int COEF_AT = PARTS * MOA_PAGE_TOK * 16, LSE_AT = COEF_AT + MOA_PAGE_TOK * 4,
                         SINK_AT = LSE_AT + MOA_PAGE_TOK * 4, Q_AT = SINK_AT + 2 * MOA_PAGE_TOK * 4,
                         K_AT = Q_AT + PAGE, END = K_AT + TEAMS * 2 * PAGE;
    static constexpr bool Q_IN_REGISTERS = D <= 128;
    static_assert(WARPS % 4 == 0 && D % 16 == 0, "whole teams and fragments");
};

/* where a warp stands */
struct look_place {
    int head, head_kv, span, window, measure;
    int i0;          /* position of the block's first row */
    int first, last; /* of the rows that there are */
    int weight;
    page_list pages;
    int team, rows, keys; /* this warp's: first row and first key of its 32 x 32 */
};

template <class T> __device__ static inline look_place look_place_of(const look_job &j, int number) {
    look_place w;
    const int block = j.first + j.n_block - 1 - number / j.n_head,
              warp = (int)threadIdx.x / 32; /* the longest first */
    w.weight = 1;
    w.head = number % j.n_head;
    w.head_kv = w.head / j.group;
    w.span = j.span[w.head];
    w.window = moa_window(w.span);
    w.measure = j.probe.measure_span ? moa_window(j.probe.measure_span[w.head]) : w.window;
    w.i0 = (j.probe.rows.every > 0 ? moa_probe_taken(&j.probe.rows, block, &w.weight) : block) * MOA_PAGE_TOK;
    w.first = max(w.i0, j.pos0);
    w.last = min(w.i0 + MOA_PAGE_TOK, j.pos0 + j.n_tok) - 1;
    w.pages = pages_of(w.span, w.first, w.last);
    w.team = warp / 4;
    w.rows = warp % 4 / 2 * 32;
    w.keys = warp % 2 * 32;
    return w;
}

/* the 64 rows of q as halves, each by a power of two that coef takes back; rows that there are not are zero */
template <class T>
__device__ static inline void look_load(const look_job &j, const look_place &w, unsigned char *to,
                                        float *coef) {
    constexpr int VEC = T::D / 4, PER_LANE = (VEC + 31) / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll 4
    for (int r = (int)threadIdx.x / 32; r < MOA_PAGE_TOK; r += T::WARPS) {
        float4 x[PER_LANE];
        float top = 0;
#pragma unroll
        for (int v = 0; v < PER_LANE; v++) {
            const int c = lane + 32 * v, i = w.i0 + r;
            x[v] = make_float4(0, 0, 0, 0);
            if (i >= w.first && i <= w.last && c < VEC)
                x[v] = reinterpret_cast<const float4 *>(j.q + ((int64_t)(i - j.pos0) * j.n_head + w.head) *
                                                                  T::D)[c];
            float4 &y = x[v];
            y.x *= j.scale2, y.y *= j.scale2, y.z *= j.scale2, y.w *= j.scale2;
            top = fmaxf(fmaxf(top, fmaxf(fabsf(y.x), fabsf(y.y))), fmaxf(fabsf(y.z), fabsf(y.w)));
        }
        top = group_max<32>(top);
        /* largest element to [2^12, 2^13); zero rows take any power */
        const int power = max(-120, min(12 - ((__float_as_int(top) >> 23) - 127), 120));
        const float up = __int_as_float((power + 127) << 23);
        if (lane == 0) coef[r] = __int_as_float((127 - power) << 23);
#pragma unroll
        for (int v = 0; v < PER_LANE; v++) {
            const int c = lane + 32 * v;
            if (c < VEC)
                *reinterpret_cast<uint2 *>(to + r * T::STRIDE + c * 8) =
                    make_uint2(pack_halves(x[v].x * up, x[v].y * up), pack_halves(x[v].z * up, x[v].w * up));
        }
    }
}

/* K of a page to shared memory by the team's 128 threads; rows from n_row on are zero: they are not written yet and may be NaN */
template <class T> __device__ static inline void look_copy(const __half *page, int n_row, uint32_t to) {
    constexpr int CHUNKS = T::D / 8, N = MOA_PAGE_TOK * CHUNKS / 128;
    constexpr bool ALIKE = 128 % CHUNKS == 0; /* a thread copies the same columns of several rows */
    static_assert(MOA_PAGE_TOK * CHUNKS % 128 == 0, "every thread copies alike");
    const int tid = (int)threadIdx.x % 128;
    const __half *from = page + tid * 8;
    const uint32_t at = to + tid / CHUNKS * T::STRIDE + tid % CHUNKS * 16;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int e = tid + i * 128, row = ALIKE ? tid / CHUNKS + i * (128 / CHUNKS) : e / CHUNKS;
        copy16_async(ALIKE ? at + i * (128 / CHUNKS) * T::STRIDE : to + row * T::STRIDE + e % CHUNKS * 16,
                     from + i * 1024, row < n_row);
    }
}

/* work(page, its K in shared memory) for each present page of the team, in order. The table is read a page ahead. */
template <class T, class F>
__device__ static inline void look_pages(const look_job &j, const look_place &w, uint32_t k_at, F work) {
    constexpr size_t PAGE = 2 * MOA_PAGE_TOK * T::D; /* elements in the pool */
    const int n = w.pages.count();
    const int32_t *table = j.kv.table + j.seq * j.kv.seq_stride + (int64_t)w.head_kv * j.kv.max_pages;
    int page = -1, from = -1, after = -1,
        slot = -1; /* in shared memory; to be copied next, and where it lies in the pool */
    int k = w.team, buffer = 0;
    auto look_up = [&]() { /* the next one that is there: after, slot */
                           for (slot = -1; k < n && slot < 0; k += T::TEAMS)
                               after = w.pages.at(k), slot = after < j.kv.max_pages ? table[after] : -1;
    };
    look_up();
    while (page >= 0 || slot >= 0 || from >= 0) {
        if (page >= 0 || from >= 0) copies_wait<0>();
        asm volatile("bar.sync %0, 128;" ::"r"(1 + w.team)
                     : "memory"); /* this page is here for all, the other buffer is free */
        page = from;
        from = slot >= 0 ? after : -1;
        if (slot >= 0)
            look_copy<T>(j.kv.pool + (size_t)slot * PAGE, w.last + 1 - after * MOA_PAGE_TOK,
                         k_at + buffer * T::PAGE);
        copies_commit();
        look_up();
        buffer ^= 1;
        if (page >= 0) work(page, k_at + buffer * T::PAGE);
    }
}

/* left operands of the warp's 32 rows */
template <class T> struct look_queries {
    uint32_t at, held[T::Q_IN_REGISTERS ? T::D / 16 : 1][2][4];
    __device__ explicit look_queries(uint32_t q_at) : at(q_at) {
#pragma unroll
        for (int kk = 0; kk < (T::Q_IN_REGISTERS ? T::D / 16 : 0); kk++)
#pragma unroll
            for (int mt = 0; mt < 2; mt++)
                ldsm4(held[kk][mt], at + mt * 16 * T::STRIDE + kk * 32);
    }
    /* s: row fragment, 8 keys, element; of 32 keys whose first row is at k_at (this lane's address) */
    __device__ void scores(uint32_t k_at, float s[2][4][4]) const {
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[mt][n][e] = 0;
#pragma unroll
        for (int kk = 0; kk < T::D / 16; kk++) {
            uint32_t a[2][4];
#pragma unroll
            for (int mt = 0; mt < 2; mt++) {
                if (!T::Q_IN_REGISTERS) ldsm4(a[mt], at + mt * 16 * T::STRIDE + kk * 32);
#pragma unroll
                for (int e = 0; e < 4 && T::Q_IN_REGISTERS; e++)
                    a[mt][e] = held[T::Q_IN_REGISTERS ? kk : 0][mt][e];
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                uint32_t b[4];
                ldsm4(b, k_at + n * 16 * T::STRIDE + kk * 32);
#pragma unroll
                for (int mt = 0; mt < 2; mt++) {
                    mma16816(s[mt][2 * n], a[mt], b[0], b[1]);
                    mma16816(s[mt][2 * n + 1], a[mt], b[2], b[3]);
                }
            }
        }
    }
};

/* this thread's row h of fragment mt in the block, and its first key of 8 */
__device__ static inline int look_row(const look_place &w, int mt, int h) {
    return w.rows + mt * 16 + h * 8 + (int)threadIdx.x % 32 / 4;
}
__device__ static inline int look_column() {
    return (int)threadIdx.x % 4 * 2;
}
/* the warp's 32 keys from j0 on: does none of its rows see any, does each see all? */
__device__ static inline bool look_none(const look_place &w, int page, int j0) {
    const int i0 = w.i0 + w.rows;
    return i0 > w.last || i0 + 31 < w.first || j0 > min(i0 + 31, w.last) ||
           (page > 0 && i0 - (j0 + 31) >= w.window);
}
__device__ static inline bool look_whole(const look_place &w, int page, int j0) {
    const int i0 = w.i0 + w.rows;
    return j0 + 31 <= i0 && (page == 0 || i0 + 31 - j0 < w.window);
}

/* what is not seen is -inf */
__device__ static inline void look_mask(const look_place &w, int j0, float s[2][4][4]) {
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int i = w.i0 + look_row(w, mt, h), first = j0 + look_column(), last_seen = i - first,
                      first_seen = j0 < MOA_SINK_TOK ? 0 : moa_window_first(w.span, i) - first;
#pragma unroll
            for (int c = 0; c < 8; c++) {
                float &y = s[mt][c / 2][2 * h + c % 2];
                const int key = c / 2 * 8 + c % 2;
                y = key < first_seen || key > last_seen ? -INFINITY : y;
            }
        }
}

/* sums of a row over this thread's columns */
struct look_rows {
    float coef[2][2], lse2[2][2];                /* lse2: negated */
    float t[2][2], window[2][2], distance[2][2]; /* t: p log2 p */
};
enum look_kind {
    LOOK_EDGE, /* some pair is not seen, or the measured window's edge passes, or the page is the sink */
    LOOK_ONE,  /* all the warp's masses are of one bin */
    LOOK_TWO   /* they are of both: the warp stands on the diagonal */
};

/* What the warp's tile adds. measured: all of it is in the measured window. bin: masses of the far and of the near bin */
template <look_kind KIND>
__device__ static inline void look_sums(look_rows &x, float bin[2], const float s[2][4][4],
                                        const look_place &w, int page, int j0, bool measured) {
    const int column = look_column();
    float total = 0, above = 0;
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = look_row(w, mt, h), i = w.i0 + r;
            float all = 0, place = 0, upper = 0, in_window = 0, t = 0;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float p[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float y = fmaf(s[mt][n][2 * h + e], x.coef[mt][h], x.lse2[mt][h]);
                    if (KIND == LOOK_EDGE)
                        y = fmaxf(y, -1000.0f); /* masked: -inf, whose product with 0 is NaN */
                    p[e] = exp2_fast(y);
                    t = fmaf(p[e], y, t);
                    if (KIND == LOOK_EDGE) {
                        const int c = n * 8 + e + column;
                        in_window += page == 0 || i - (j0 + c) < w.measure ? p[e] : 0.0f;
                        upper += w.keys + c > r ? p[e] : 0.0f;
                    }
                }
                const float pair = p[0] + p[1];
                all += pair;
                place = fmaf(pair, (float)(n * 8), place) + p[1];
                if (KIND == LOOK_TWO) { /* 8 keys against 16 rows: before, across or after the diagonal */
                    const int c = n * 8 + column - (mt * 16 + h * 8 + (int)threadIdx.x % 32 / 4);
                    if (n > 2 * mt + 1)
                        upper += pair;
                    else if (n >= 2 * mt)
                        upper += (c > 0 ? p[0] : 0.0f) + (c >= 0 ? p[1] : 0.0f);
                }
            }
            x.t[mt][h] += t;
            x.distance[mt][h] = fmaf((float)(i - j0 - column), all, x.distance[mt][h]) - place;
            x.window[mt][h] += KIND == LOOK_EDGE ? in_window : measured ? all : 0.0f;
            total += all;
            above += upper;
        }
    if (KIND == LOOK_ONE) above = w.keys > w.rows ? total : 0.0f;
    bin[0] = total - above;
    bin[1] = above;
}

/* a warp's masses of a page, into row: the histogram's of the head and the bucket */
__device__ static inline void look_hist(const look_job &j, const look_place &w, float *row, int page,
                                        const float bin[2]) {
    const bool near = threadIdx.x % 32 >= 16;
    float mine = near ? bin[1] : bin[0];
    mine += __shfl_xor_sync(0xffffffffu, near ? bin[0] : bin[1], 16);
    mine = group_sum<16>(mine);
    const int d = w.i0 / MOA_PAGE_TOK - page - (near ? 1 : 0);
    if (threadIdx.x % 16 == 0 && mine > 0 && (page == 0 || d >= 0))
        atomicAdd(row + (page == 0 ? 0 : 1 + min(d, j.probe.n_bin - 1)), (float)w.weight * mine);
}

/* x.lse2 of the warp's rows, negated: from the attention, or from the scores */
template <class T>
__device__ static inline void look_lse(const look_job &j, const look_place &w, const look_queries<T> &q,
                                       uint32_t k_at, uint32_t mine, float4 *parts, look_rows &x) {
    if (j.lse2) {
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int i = w.i0 + look_row(w, mt, h);
                const float lse2 = i >= w.first && i <= w.last
                                       ? j.lse2[(int64_t)(i - j.pos0) * j.n_head + w.head]
                                       : -INFINITY;
                x.lse2[mt][h] = lse2 == -INFINITY ? LOOK_NOTHING : -lse2;
            }
        return;
    }
    float m[2][2], l[2][2]; /* of this thread's keys */
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            m[mt][h] = -INFINITY, l[mt][h] = 0;
    look_pages<T>(j, w, k_at, [&](int page, uint32_t at) {
        const int j0 = page * MOA_PAGE_TOK + w.keys;
        if (look_none(w, page, j0)) return;
        float s[2][4][4];
        q.scores(at + mine, s);
        if (!look_whole(w, page, j0)) look_mask(w, j0, s);
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float top = m[mt][h], sum[2];
#pragma unroll
                for (int n = 0; n < 4; n++)
                    top = fmaxf(top, fmaxf(s[mt][n][2 * h], s[mt][n][2 * h + 1]));
                const float base = top == -INFINITY ? 0.0f : top * x.coef[mt][h];
                sum[0] = l[mt][h] * exp2_fast(m[mt][h] * x.coef[mt][h] - base); /* m = -inf: 0 */
                sum[1] = 0;
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        sum[e] += exp2_fast(fmaf(s[mt][n][2 * h + e], x.coef[mt][h], -base));
                l[mt][h] = sum[0] + sum[1];
                m[mt][h] = top;
            }
    });
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float top = group_max<4>(m[mt][h]), base = top == -INFINITY ? 0.0f : top * x.coef[mt][h],
                        sum = group_sum<4>(l[mt][h] * exp2_fast(m[mt][h] * x.coef[mt][h] - base));
            if (threadIdx.x % 4 == 0)
                parts[(w.team * 2 + w.keys / 32) * MOA_PAGE_TOK + look_row(w, mt, h)] =
                    make_float4(sum > 0 ? base : -INFINITY, sum, 0, 0);
        }
    __syncthreads();
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = -INFINITY, sum = 0;
            for (int p = 0; p < T::PARTS; p++)
                top = fmaxf(top, parts[p * MOA_PAGE_TOK + look_row(w, mt, h)].x);
            for (int p = 0; p < T::PARTS && top > -INFINITY; p++) {
                const float4 part = parts[p * MOA_PAGE_TOK + look_row(w, mt, h)];
                sum += part.y * exp2_fast(part.x - top);
            }
            const int i = w.i0 + look_row(w, mt, h);
            x.lse2[mt][h] = sum > 0 && i >= w.first && i <= w.last ? -(top + log2f(sum)) : LOOK_NOTHING;
        }
    __syncthreads(); /* parts are written anew */
}

/* x.lse2 to shared memory (64) */
__device__ static inline void look_keep(const look_place &w, float *lse2, const look_rows &x) {
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (threadIdx.x % 4 == 0 && w.team == 0 && w.keys == 0) lse2[look_row(w, mt, h)] = x.lse2[mt][h];
}

/* the parts of each row, in order, to its place in stat; sink: (2, 64), by halves of the page */
template <class T>
__device__ static inline void look_write(const look_job &j, const look_place &w, float4 *parts,
                                         const float *sink, const float *lse2, const look_rows &x) {
    constexpr float LN2 = 0.69314718f;
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = look_row(w, mt, h);
            const float4 part = make_float4(group_sum<4>(x.t[mt][h]), 0, group_sum<4>(x.window[mt][h]),
                                            group_sum<4>(x.distance[mt][h]));
            if (threadIdx.x % 4 == 0) parts[(w.team * 2 + w.keys / 32) * MOA_PAGE_TOK + r] = part;
        }
    __syncthreads();
    const int r = threadIdx.x, i = w.i0 + r;
    if (r >= MOA_PAGE_TOK || i < w.first || i > w.last) return;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int p = 0; p < T::PARTS; p++) {
        const float4 part = parts[p * MOA_PAGE_TOK + r];
        sum.x += part.x, sum.z += part.z, sum.w += part.w;
    }
    float *out = j.probe.stat + ((int64_t)(i - j.pos0) * j.n_head + w.head) * MOA_N_STAT;
    out[MOA_STAT_ENTROPY] = fmaxf(-sum.x * LN2, 0.0f);
    out[MOA_STAT_SINK] = sink[r] + sink[MOA_PAGE_TOK + r];
    out[MOA_STAT_WINDOW] = sum.z;
    out[MOA_STAT_DISTANCE] = sum.w;
    out[MOA_STAT_LSE] = lse2[r] > LOOK_NOTHING ? -lse2[r] * LN2 : 0.0f;
}

/* the last row that counts in first's bucket of the histogram */
__device__ static inline int look_bucket_end(const look_job &j, const look_place &w, int first) {
    const int bucket = j.probe.hist ? first / j.probe.bucket_tok : MOA_HIST_BUCKETS;
    return bucket < MOA_HIST_BUCKETS - 1
               ? (int)min((int64_t)w.last, (int64_t)(bucket + 1) * j.probe.bucket_tok - 1)
               : w.last;
}

/* S again: sums and masses of the rows whose lse2 is not LOOK_NOTHING, all of first's bucket; sink: (2, 64), by halves of the page */
template <class T>
__device__ static inline void look_second(const look_job &j, const look_place &w, const look_queries<T> &q,
                                          uint32_t k_at, uint32_t mine, float *sink, int first,
                                          look_rows &x) {
    float *row = nullptr;
    if (j.probe.hist)
        row = j.probe.hist +
              ((int64_t)w.head * MOA_HIST_BUCKETS + min(first / j.probe.bucket_tok, MOA_HIST_BUCKETS - 1)) *
                  (1 + j.probe.n_bin);
    look_pages<T>(j, w, k_at, [&](int page, uint32_t at) {
        const int j0 = page * MOA_PAGE_TOK + w.keys, i0 = w.i0 + w.rows;
        if (look_none(w, page, j0)) return;
        float s[2][4][4], bin[2];
        q.scores(at + mine, s);
        const bool whole = look_whole(w, page, j0), inside = i0 + 31 - j0 < w.measure,
                   outside = i0 - (j0 + 31) >= w.measure;
        if (!whole) look_mask(w, j0, s);
        if (page == 0 || !whole || !(inside || outside))
            look_sums<LOOK_EDGE>(x, bin, s, w, page, j0, false);
        else if (w.keys == w.rows)
            look_sums<LOOK_TWO>(x, bin, s, w, page, j0, inside);
        else
            look_sums<LOOK_ONE>(x, bin, s, w, page, j0, inside);
        if (row) look_hist(j, w, row, page, bin);
        if (page > 0) return;
#pragma unroll
        for (int mt = 0; mt < 2; mt++) /* the first page: what the window has gathered so far is the sink */
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float mass = group_sum<4>(x.window[mt][h]);
                if (threadIdx.x % 4 == 0 && x.lse2[mt][h] > LOOK_NOTHING)
                    sink[w.keys / 32 * MOA_PAGE_TOK + look_row(w, mt, h)] = mass;
                x.window[mt][h] = x.lse2[mt][h] > LOOK_NOTHING ? 0.0f : x.window[mt][h];
            }
    });
}

/* One look, by all threads of a block; number: of n_block * n_head. shared: T::END bytes, 16-byte aligned */
template <class T> __device__ static void look(const look_job &j, int number, unsigned char *shared) {
    const look_place w = look_place_of<T>(j, number);
    float4 *parts = reinterpret_cast<float4 *>(shared);
    float *coef = reinterpret_cast<float *>(shared + T::COEF_AT),
          *lse2 = reinterpret_cast<float *>(shared + T::LSE_AT);
    float *sink = reinterpret_cast<float *>(shared + T::SINK_AT);
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 2 * MOA_PAGE_TOK) sink[threadIdx.x] = 0;
    look_load<T>(j, w, shared + T::Q_AT, coef);
    __syncthreads();
    const uint32_t q_at = shared_address(shared) + T::Q_AT,
                   k_at = shared_address(shared) + T::K_AT + w.team * 2 * T::PAGE;
    const look_queries<T> q(q_at + (w.rows + lane % 16) * T::STRIDE + lane / 16 * 16);
    look_rows x = {};
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            x.coef[mt][h] = coef[look_row(w, mt, h)];
    const uint32_t mine =
        (w.keys + lane % 8 + lane / 16 * 8) * T::STRIDE + lane / 8 % 2 * 16; /* this lane's key in a page */
    look_lse<T>(j, w, q, k_at, mine, parts, x);
    look_keep(w, lse2, x);
    __syncthreads();
    for (int first = w.first, last; first <= w.last;
         first = last + 1) { /* rows of one bucket at a time: mostly all of them */
        last = look_bucket_end(j, w, first);
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int r = look_row(w, mt, h);
                x.lse2[mt][h] = w.i0 + r >= first && w.i0 + r <= last ? lse2[r] : LOOK_NOTHING;
            }
        if (first > w.first) __syncthreads(); /* the teams' buffers are filled anew */
        look_second<T>(j, w, q, k_at, mine, sink, first, x);
    }
    if (j.probe.stat) look_write<T>(j, w, parts, sink, lse2, x);
}

#endif
