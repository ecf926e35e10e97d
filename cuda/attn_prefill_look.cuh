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
 * Precision: q is rounded as in attn_prefill_mma.cu with 1 part. Heads of 64, 80, 96, 128, 256 in a cache of halves. */
#ifndef MOA_CUDA_ATTN_PREFILL_LOOK_CUH
#define MOA_CUDA_ATTN_PREFILL_LOOK_CUH

#include "cuda/attn_prefill.cuh"
#include "cuda/mma.cuh"

struct look_job {
    const float *q; /* (n_tok, n_head, d_head) */
    moa_kv<__half> kv;
    const int32_t *span; /* (n_head) */
    int seq, pos0, n_tok, n_head, group;
    float scale2; /* scale log2(e) */
    moa_probe probe;
    const float *lse2; /* (n_tok, n_head) of the attention, log2 of the sum of 2^score, -inf: saw nothing; NULL: found here */
    int first, n_block; /* number of the first block of queries taken (all: its place), how many; each for n_head heads */
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
    static constexpr int STRIDE = 2 * D + 16; /* bytes of a row: the 8 rows of an 8 x 8 matrix lie in different banks */
    static constexpr int PAGE = MOA_PAGE_TOK * STRIDE;
    static constexpr int COEF_AT = PARTS * MOA_PAGE_TOK * 16, SINK_AT = COEF_AT + MOA_PAGE_TOK * 4,
                         Q_AT = SINK_AT + 2 * MOA_PAGE_TOK * 4,
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
    bool one_bucket; /* all 64 rows count in the same bucket of the histogram */
    page_list pages;
    int team, rows, keys; /* this warp's: first row and first key of its 32 x 32 */
};

template <class T> __device__ static inline look_place look_place_of(const look_job &j, int number) {
    look_place w;
    const int block = j.first + j.n_block - 1 - number / j.n_head, warp = (int)threadIdx.x / 32; /* the longest first */
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
    w.one_bucket = !j.probe.hist || min(w.i0 / j.probe.bucket_tok, MOA_HIST_BUCKETS - 1) ==
                                        min((w.i0 + MOA_PAGE_TOK - 1) / j.probe.bucket_tok, MOA_HIST_BUCKETS - 1);
    w.team = warp / 4;
    w.rows = warp % 4 / 2 * 32;
    w.keys = warp % 2 * 32;
    return w;
}

/* the 64 rows of q as halves, each by a power of two that coef takes back; rows that there are not are zero */
template <class T>
__device__ static inline void look_load(const look_job &j, const look_place &w, unsigned char *to, float *coef) {
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
                x[v] = reinterpret_cast<const float4 *>(j.q + ((int64_t)(i - j.pos0) * j.n_head + w.head) * T::D)[c];
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
    constexpr int CHUNKS = T::D / 8;
    static_assert(MOA_PAGE_TOK * CHUNKS % 128 == 0, "every thread copies alike");
#pragma unroll
    for (int i = 0; i < MOA_PAGE_TOK * CHUNKS / 128; i++) {
        const int e = (int)threadIdx.x % 128 + i * 128, row = e / CHUNKS;
        copy16_async(to + row * T::STRIDE + e % CHUNKS * 16, page + e * 8, row < n_row);
    }
}

/* work(page, its K in shared memory) for each present page of the team, in order. The table is read a page ahead. */
template <class T, class F>
__device__ static inline void look_pages(const look_job &j, const look_place &w, uint32_t k_at, F work) {
    const int n = w.pages.count();
    int k = w.team, buffer = 0;
    const __half *ahead = k < n ? j.kv.page(j.seq, w.head_kv, w.pages.at(k)) : nullptr;
    auto next = [&](const __half **at) {
        int page = -1;
        *at = nullptr;
        while (k < n && page < 0) {
            if (ahead) page = w.pages.at(k), *at = ahead;
            k += T::TEAMS;
            ahead = k < n ? j.kv.page(j.seq, w.head_kv, w.pages.at(k)) : nullptr;
        }
        return page;
    };
    const __half *at;
    int page = next(&at);
    if (page >= 0) look_copy<T>(at, w.last + 1 - page * MOA_PAGE_TOK, k_at);
    copies_commit();
    while (page >= 0) {
        copies_wait<0>();
        asm volatile("bar.sync %0, 128;" ::"r"(1 + w.team) : "memory"); /* this page is here for all, the other buffer is free */
        const int after = next(&at);
        if (after >= 0) look_copy<T>(at, w.last + 1 - after * MOA_PAGE_TOK, k_at + (buffer ^ 1) * T::PAGE);
        copies_commit();
        work(page, k_at + buffer * T::PAGE);
        page = after;
        buffer ^= 1;
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
    return i0 > w.last || i0 + 31 < w.first || j0 > min(i0 + 31, w.last) || (page > 0 && i0 - (j0 + 31) >= w.window);
}
__device__ static inline bool look_whole(const look_place &w, int page, int j0) {
    const int i0 = w.i0 + w.rows;
    return j0 + 31 <= i0 && (page == 0 || i0 + 31 - j0 < w.window);
}

/* sums of a row over this thread's columns */
struct look_rows {
    float coef[2][2], lse2[2][2]; /* lse2: negated */
    float t[2][2], window[2][2], distance[2][2]; /* t: p log2 p */
};

/* one row's masses, the same on all lanes of its four, or a warp's: lanes 0 .. n - 1 have those of the far bin, the others of the near one */
__device__ static inline void look_add(const look_job &j, const look_place &w, int page, int i, bool near, float mass) {
    const int bucket = min(i / j.probe.bucket_tok, MOA_HIST_BUCKETS - 1), bin = w.i0 / MOA_PAGE_TOK - page - (near ? 1 : 0);
    float *row = j.probe.hist + ((int64_t)w.head * MOA_HIST_BUCKETS + bucket) * (1 + j.probe.n_bin);
    if (!(mass > 0) || (page > 0 && bin < 0)) return;
    atomicAdd(row + (page == 0 ? 0 : 1 + min(bin, j.probe.n_bin - 1)), (float)w.weight * mass);
}

/* What the warp's tile adds. EDGE: some pair is not seen, or the measured window's edge passes. DIAGONAL: its masses are of both bins.
 * sink: shared, of the block's rows and these keys; bin: masses of the far and the near bin where all rows are of one bucket */
template <class T, bool EDGE, bool DIAGONAL>
__device__ static inline void look_tile_sums(const look_job &j, look_rows &x, float bin[2], float *sink, const float s[2][4][4],
                                             const look_place &w, int page, int j0) {
    const int column = look_column();
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = look_row(w, mt, h), i = w.i0 + r;
            float all = 0, place = 0, upper = 0, in_window = 0, t = x.t[mt][h];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float p[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float y = fmaf(s[mt][n][2 * h + e], x.coef[mt][h], x.lse2[mt][h]);
                    const int key = j0 + column + n * 8 + e;
                    if (EDGE && !moa_sees(w.span, i, key)) y = -1000.0f;
                    p[e] = exp2_fast(y);
                    t = fmaf(p[e], y, t);
                    if (EDGE) in_window += i - key < w.measure ? p[e] : 0.0f;
                }
                const float pair = p[0] + p[1];
                all += pair;
                place = fmaf(pair, (float)(n * 8), place) + p[1];
                if (DIAGONAL) { /* 8 keys against 16 rows: before, across or after the diagonal */
                    if (n > 2 * mt + 1)
                        upper += pair;
                    else if (n >= 2 * mt) {
                        const int c = w.keys + column + n * 8;
                        upper += c > r ? pair : c + 1 > r ? p[1] : 0.0f;
                    }
                }
            }
            x.t[mt][h] = t;
            x.distance[mt][h] = fmaf((float)(i - j0 - column), all, x.distance[mt][h]) - place;
            const float far = DIAGONAL ? all - upper : w.keys < w.rows ? all : 0.0f;
            const float near = DIAGONAL ? upper : w.keys > w.rows ? all : 0.0f;
            bin[0] += far, bin[1] += near;
            if (j.probe.hist && !w.one_bucket) {
                const float row_far = group_sum<4>(far), row_near = group_sum<4>(near);
                if (column == 0) look_add(j, w, page, i, false, row_far);
                if (column == 2) look_add(j, w, page, i, true, row_near);
            }
            if (page == 0) {
                all = group_sum<4>(all);
                if (column == 0) sink[r] = all;
            } else
                x.window[mt][h] += EDGE ? in_window : w.i0 + w.rows + 31 - j0 < w.measure ? all : 0.0f;
        }
}

/* the masses of a warp's tile, whose rows are of one bucket, into the histogram */
__device__ static inline void look_hist(const look_job &j, const look_place &w, int page, const float bin[2]) {
    const bool near = threadIdx.x % 32 >= 16;
    float mine = near ? bin[1] : bin[0];
    mine += __shfl_xor_sync(0xffffffffu, near ? bin[0] : bin[1], 16);
    mine = group_sum<16>(mine);
    if (threadIdx.x % 16 == 0) look_add(j, w, page, w.i0, near, mine);
}

/* x.lse2 of the warp's rows, negated: from the attention, or from the scores */
template <class T>
__device__ static inline void look_lse(const look_job &j, const look_place &w, const look_queries<T> &q, uint32_t k_at,
                                       uint32_t mine, float4 *parts, look_rows &x) {
    constexpr float NOTHING = -1e30f; /* of a row that saw nothing: makes every p 0, and p y too */
    if (j.lse2) {
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int i = w.i0 + look_row(w, mt, h);
                const float lse2 = i >= w.first && i <= w.last
                                       ? j.lse2[(int64_t)(i - j.pos0) * j.n_head + w.head]
                                       : -INFINITY;
                x.lse2[mt][h] = lse2 == -INFINITY ? NOTHING : -lse2;
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
        const bool whole = look_whole(w, page, j0);
#pragma unroll
        for (int mt = 0; mt < 2; mt++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int i = w.i0 + look_row(w, mt, h);
                float top = m[mt][h];
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float &y = s[mt][n][2 * h + e];
                        if (!whole && !moa_sees(w.span, i, j0 + look_column() + n * 8 + e)) y = -INFINITY;
                        top = fmaxf(top, y);
                    }
                const float base = top == -INFINITY ? 0.0f : top * x.coef[mt][h];
                float sum = l[mt][h] * exp2_fast(m[mt][h] * x.coef[mt][h] - base); /* m = -inf: 0 */
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        sum += exp2_fast(fmaf(s[mt][n][2 * h + e], x.coef[mt][h], -base));
                l[mt][h] = sum;
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
            x.lse2[mt][h] = sum > 0 && i >= w.first && i <= w.last ? -(top + log2f(sum)) : NOTHING;
        }
    __syncthreads(); /* parts are written anew */
}

/* the parts of each row, in order, to its place in stat; sink: (2, 64), by halves of the page */
template <class T>
__device__ static inline void look_write(const look_job &j, const look_place &w, float4 *parts, const float *sink,
                                         const look_rows &x) {
    constexpr float LN2 = 0.69314718f;
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = look_row(w, mt, h), i = w.i0 + r;
            const float4 part = make_float4(group_sum<4>(x.t[mt][h]), 0, group_sum<4>(x.window[mt][h]),
                                            group_sum<4>(x.distance[mt][h]));
            if (threadIdx.x % 4 == 0) parts[(w.team * 2 + w.keys / 32) * MOA_PAGE_TOK + r] = part;
            if (threadIdx.x % 4 == 0 && w.team == 0 && w.keys == 0 && i >= w.first && i <= w.last)
                j.probe.stat[((int64_t)(i - j.pos0) * j.n_head + w.head) * MOA_N_STAT + MOA_STAT_LSE] =
                    x.lse2[mt][h] > -1e30f ? -x.lse2[mt][h] * LN2 : 0.0f;
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
}

/* One look, by all threads of a block; number: of n_block * n_head. shared: T::END bytes, 16-byte aligned */
template <class T> __device__ static void look(const look_job &j, int number, unsigned char *shared) {
    const look_place w = look_place_of<T>(j, number);
    float4 *parts = reinterpret_cast<float4 *>(shared);
    float *coef = reinterpret_cast<float *>(shared + T::COEF_AT), *sink = reinterpret_cast<float *>(shared + T::SINK_AT);
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 2 * MOA_PAGE_TOK) sink[threadIdx.x] = 0;
    look_load<T>(j, w, shared + T::Q_AT, coef);
    __syncthreads();
    const uint32_t q_at = shared_address(shared) + T::Q_AT, k_at = shared_address(shared) + T::K_AT + w.team * 2 * T::PAGE;
    const look_queries<T> q(q_at + (w.rows + lane % 16) * T::STRIDE + lane / 16 * 16);
    look_rows x = {};
#pragma unroll
    for (int mt = 0; mt < 2; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            x.coef[mt][h] = coef[look_row(w, mt, h)];
    const uint32_t mine = (w.keys + lane % 8 + lane / 16 * 8) * T::STRIDE + lane / 8 % 2 * 16; /* this lane's key in a page */
    look_lse<T>(j, w, q, k_at, mine, parts, x);
    look_pages<T>(j, w, k_at, [&](int page, uint32_t at) {
        const int j0 = page * MOA_PAGE_TOK + w.keys, i0 = w.i0 + w.rows;
        if (look_none(w, page, j0)) return;
        float s[2][4][4], bin[2] = {0, 0}, *half = sink + w.keys / 32 * MOA_PAGE_TOK;
        q.scores(at + mine, s);
        const bool inside = i0 + 31 - j0 < w.measure, outside = i0 - (j0 + 31) >= w.measure;
        const bool edge = !(look_whole(w, page, j0) && (page == 0 || inside || outside));
        if (w.keys == w.rows) {
            if (edge)
                look_tile_sums<T, true, true>(j, x, bin, half, s, w, page, j0);
            else
                look_tile_sums<T, false, true>(j, x, bin, half, s, w, page, j0);
        } else if (edge)
            look_tile_sums<T, true, false>(j, x, bin, half, s, w, page, j0);
        else
            look_tile_sums<T, false, false>(j, x, bin, half, s, w, page, j0);
        if (j.probe.hist && w.one_bucket) look_hist(j, w, page, bin);
    });
    if (j.probe.stat) look_write<T>(j, w, parts, sink, x);
}

#endif
