/* attn_prefill_wgmma.cu -- prefill attention, third version, for Hopper GPUs alone: warpgroup products fed by tensor maps.
 *
 *   block    128 queries of one head (heads of 64: 192), 64 a warpgroup, and one warpgroup that only loads
 *   step     128 keys, two pages; the pages are v2's list, two by two
 *
 *            loading warps    K 0 | K 1  V 0 | K 2  V 1 | ...          boxes of 64 x 64 by tensor map, a ring for K and one for V
 *            warpgroup 0      S 0 softmax | S 1, P V 0 | softmax     | S 2, P V 1 | softmax     |
 *            warpgroup 1      S 0 softmax |            | S 1, P V 0  | softmax    | S 2, P V 1  |
 *                                           \_ turns: one has the tensor cores while the other is at its exponentials
 *
 *   S        Q (half) x K of the next step runs while P V of the last one does; both while the other warpgroup computes softmax
 *   P        S's sums are already a left operand in registers: exp2, round to half, multiply
 *   pages    a pool is a tensor (pages x 2, 64, d_head), so that the table's numbers are coordinates. Rows that hold no token yet are
 *            read through a second map that ends before them: zero, whatever lies there. A page that is gone, or makes a step
 *            whole, is a box outside the tensor: zero too, and at a place that no query sees
 *   masks    only where a page is not seen whole by the warpgroup's 64 queries: a row sees a run of its keys
 *
 * Precision, the rounding of q, the softmax's lazy maximum, the order of blocks and the probe's second pass are v2's: see
 * attn_prefill_mma.cu. It takes heads of 64 and 128 in a cache of halves; others are v2's and v1's.
 *
 *   version   idea                                          H100, f16 cache, TFLOP/s of the visible pairs (us), one layer
 *                                                           Llama-3-8B dense 2k, 8k, 16k, 32k; 8k span 512  SmolLM2 dense 2k, 8k, 32k
 *   v2        mma.sync, asynchronous copies                 235      316        -    323;       188            85      227      285
 *   v3        this: $MOASCOPE_CUDA_PREFILL=v3               403 (85) 605 (909)  585  619;       264 (252)     159 (30) 381      503   <- default from 66 tiles on
 *   cuDNN     PyTorch 2.11, same run or the one before      373 (92) 599 (918)  631  611
 *   tried     blocks that stay and draw their tiles         386      597        571  598;       232
 *             and two loading warps that also convert q     345      589         -    -;        198
 *   A step of 128 x 128 takes 2,300 to 2,500 cycles where the tensor cores need 2,048; a tile costs 8,000 beyond its steps: half of it
 *   the reading and rounding of q, a quarter the writing of o
 *   measured 2026-11-24  (docs/measurements/2026-11-24-h100-prefill-v3.md)
 */
#include <limits.h>

#include "cuda/attn_full.cuh"
#include "cuda/attn_prefill_look.cuh"
#include "cuda/wgmma.cuh"

static constexpr float BIAS = 10.0f,
                       GROWTH = 5.0f;         /* as attn_prefill_mma.cu, which also says what halves cost */
static constexpr int NOWHERE = INT_MAX / 2;   /* place of a page that is gone or padding: no query sees it */
static constexpr int KEYS = 2 * MOA_PAGE_TOK; /* of a step: two pages */
static constexpr int NEVER = -1;              /* a page number outside the tensor: its box is zero */

struct wgmma_job {
    CUtensorMap pages,
        tail; /* (2 pages, 64, d_head) of the pool: K of page p at 2 p, V at 2 p + 1. tail: the sequence's last page,
                              * rows that hold no token yet are outside and read as zero: they may be NaN */
    const float *q; /* (n_tok, n_head, d_head) */
    float *o;
    const int32_t *span;  /* (n_head) */
    const int32_t *table; /* of the sequence: (n_head_kv, max_pages) */
    int max_pages, pos0, n_tok, n_head, group;
    float scale2; /* scale log2(e) */
    float *lse2; /* (n_tok, n_head), log2 of the sum of 2^score; -inf: saw nothing. NULL: not wanted */
    look_job look; /* n_block > 0: in the same launch */
};

/* D: head size; WG: warpgroups that compute, 64 queries each; STAGES: steps of K, and of V, in shared memory */
template <int D_, int WG_, int STAGES_> struct hopper_tile {
    static constexpr int D = D_, WG = WG_, STAGES = STAGES_;
    static constexpr int BM = 64 * WG, THREADS = 128 * (WG + 1), PANELS = D / WG_TILE_COLUMNS;
    static constexpr int Q_PANEL = 64 * WG_TILE_ROW, Q = PANELS * Q_PANEL; /* bytes, of a warpgroup */
    static constexpr int PANEL = KEYS * WG_TILE_ROW, STAGE = PANELS * PANEL;
    static constexpr int K_AT = WG * Q, V_AT = K_AT + STAGES * STAGE, END = V_AT + STAGES * STAGE;
    static constexpr size_t bytes() { return END + 1024; } /* to begin at a multiple of 1024 */
    /* Registers of a thread: START as launched, the most that fits; then the loading warpgroup gives away most of its own. What the
     * others ask for must have been given, or they wait for ever. */
    static constexpr int START = WG == 2 ? 168 : 128, FEW = WG == 2 ? 24 : 32, MANY = WG == 2 ? 240 : 160;
    static_assert(FEW + WG * MANY <= (WG + 1) * START && (WG + 1) * START <= 512, "registers there are");
    static_assert(D % WG_TILE_COLUMNS == 0 && (WG == 2 || WG == 3), "whole panels, enough registers");
};

/* what the loading warps and the computing ones tell each other, in shared memory */
template <class T> struct mailbox {
    uint64_t k_full[T::STAGES], k_free[T::STAGES], v_full[T::STAGES], v_free[T::STAGES];
    int place[T::STAGES][2]; /* position of the first key of each page of a step of K */
};

/* a block's work: BM queries of a head, and of the pages that one of them sees, two a step */
struct hopper_work {
    int head, tok0, span;
    page_list pages;
    int n_step;
};
/* Blocks are numbered as in v2: the last tile first, heads fastest. */
template <class T> __device__ static inline hopper_work work_of(const wgmma_job &j, int number) {
    hopper_work w;
    const int n_tile = (j.n_tok + T::BM - 1) / T::BM, rank = number / j.n_head;
    w.head = number % j.n_head;
    w.span = j.span[w.head];
    w.tok0 = (n_tile - 1 - rank) * T::BM;
    w.pages = pages_of(w.span, j.pos0 + w.tok0, j.pos0 + min(w.tok0 + T::BM, j.n_tok) - 1);
    w.n_step = (w.pages.count() + 1) / 2;
    return w;
}

/* --- the loading warps ----------------------------------------------------------------------------------- */

/* One warp: all K (IS_V = 0) or all V (1) of the block's pages, two a step. The table is read 32 pages at a time. */
template <class T, int IS_V>
__device__ static inline void load_pages(const wgmma_job &j, const hopper_work &w, mailbox<T> *box,
                                         uint32_t to) {
    const int lane = threadIdx.x % 32, n_page = w.pages.count(), last = (j.pos0 + j.n_tok - 1) / MOA_PAGE_TOK;
    const int32_t *table = j.table + (int64_t)(w.head / j.group) * j.max_pages;
    int mine = NEVER;
    for (int step = 0; step < w.n_step; step++) {
        const int stage = step % T::STAGES, round = step / T::STAGES, k = 2 * step;
        if (step % 16 == 0) {
            const int page = k + lane < n_page ? w.pages.at(k + lane) : j.max_pages;
            mine = page < j.max_pages ? max(table[page], NEVER) : NEVER;
        }
        const int first = __shfl_sync(0xffffffffu, mine, 2 * step % 32),
                  second = __shfl_sync(0xffffffffu, mine, 2 * step % 32 + 1);
        if (lane == 0) {
            const uint32_t full = shared_address(IS_V ? &box->v_full[stage] : &box->k_full[stage]),
                           unused = shared_address(IS_V ? &box->v_free[stage] : &box->k_free[stage]);
            if (round > 0) barrier_wait(unused, (round - 1) & 1);
            if (!IS_V) {
                box->place[stage][0] = first < 0 ? NOWHERE : w.pages.at(k) * MOA_PAGE_TOK;
                box->place[stage][1] = second < 0 ? NOWHERE : w.pages.at(k + 1) * MOA_PAGE_TOK;
            }
            barrier_expect(full, T::STAGE);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int at = half ? second : first;
                const CUtensorMap *map = w.pages.at(k + half) == last ? &j.tail : &j.pages;
#pragma unroll
                for (int panel = 0; panel < T::PANELS; panel++)
                    copy_box(to + stage * T::STAGE + panel * T::PANEL + half * (T::PANEL / 2), map,
                             panel * WG_TILE_COLUMNS, 0, at < 0 ? NEVER : 2 * at + IS_V, full);
            }
        }
        __syncwarp();
    }
}

/* --- the computing warpgroups ----------------------------------------------------------------------------- */

/* rows g and g + 8 of the warp's 16 */
template <class T> struct hopper_rows {
    float o[T::D / 2];
    float m[2], l[2], coef[2];
};

/* The warp's 16 rows of q as halves, tiles of 64 columns; coef[r] gives scores of row r back their size. Rows past n_row are zero. */
template <class T>
__device__ static void load_queries(const float *q, int64_t stride, int n_row, float scale2, int row0,
                                    unsigned char *to, float *coef) {
    constexpr int BATCH = 8, VEC = T::D / 4; /* a row: VEC lanes of 4 elements */
    constexpr int SIDE = 32 / VEC;           /* rows that a warp holds side by side */
    const int lane = threadIdx.x % 32, c = lane % VEC * 4;
    for (int r0 = 0; r0 < 16; r0 += BATCH * SIDE) {
        float4 x[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int r = r0 + b * SIDE + lane / VEC;
            x[b] = make_float4(0, 0, 0, 0);
            if (r < n_row) x[b] = *reinterpret_cast<const float4 *>(q + r * stride + c);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int r = r0 + b * SIDE + lane / VEC;
            float4 &y = x[b];
            y.x *= scale2, y.y *= scale2, y.z *= scale2, y.w *= scale2;
            const float top =
                group_max<VEC>(fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w))));
            /* largest element to [2^12, 2^13); zero rows take any power */
            const int power = max(-120, min(12 - ((__float_as_int(top) >> 23) - 127), 120));
            const float up = __int_as_float((power + 127) << 23);
            if (lane % VEC == 0) coef[r] = __int_as_float((127 - power) << 23);
            const uint2 halves = make_uint2(pack_halves(y.x * up, y.y * up), pack_halves(y.z * up, y.w * up));
            unsigned char *tile = to + c / WG_TILE_COLUMNS * T::Q_PANEL;
            *reinterpret_cast<uint2 *>(tile + wgmma_place(row0 + r, c % WG_TILE_COLUMNS) + c % 8 * 2) =
                halves;
        }
    }
}

/* issues S = Q K^T */
template <class T> __device__ static inline void issue_scores(float (&s)[64], uint64_t q, uint64_t k) {
    wgmma_hold(s);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < T::D / 16; kk++)
        wgmma_128_shared(s, wgmma_ahead(q, kk / 4 * T::Q_PANEL + kk % 4 * 32),
                         wgmma_ahead(k, kk / 4 * T::PANEL + kk % 4 * 32), kk > 0);
    wgmma_commit();
}
/* issues O = P V of a work's first step, O += P V of the others */
template <class T>
__device__ static inline void issue_values(float (&o)[T::D / 2], uint32_t (&p)[32], uint64_t v, bool first) {
    wgmma_hold(o);
    wgmma_hold(p);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < KEYS / 16; kk++)
        wgmma_registers(o, p + kk * 4, wgmma_ahead(v, kk * 2 * WG_TILE_GROUP), kk > 0 || !first);
    wgmma_commit();
}

/* What of a page the 64 queries from i0 on do not see is -inf; HALF: which page of the step. A row sees a run of a page's keys. */
template <int HALF>
__device__ static inline void mask_page(float (&s)[64], int span, int i0, int row, int place) {
    const bool sink = place == 0,
               whole = place + MOA_PAGE_TOK - 1 <= i0 && (sink || i0 + 63 - place < moa_window(span));
    if (whole) return;
    const int first = place + (int)threadIdx.x % 4 * 2; /* this thread's first key */
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = i0 + row + h * 8, last_seen = i - first,
                  first_seen = sink ? 0 : moa_window_first(span, i) - first;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[HALF * 32 + n * 4 + h * 2 + e];
                x = n * 8 + e < first_seen || n * 8 + e > last_seen ? -INFINITY : x;
            }
    }
}

/* a step of K whose scores are there: its buffer is free again */
template <class T>
__device__ static inline void mask_step(float (&s)[64], int span, int i0, int row, mailbox<T> *box,
                                        unsigned stage) {
    const int place[2] = {box->place[stage][0], box->place[stage][1]};
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(&box->k_free[stage]));
    mask_page<0>(s, span, i0, row, place[0]);
    mask_page<1>(s, span, i0, row, place[1]);
}

/* Scores to p, with the rows' maxima and sums. True: a maximum has moved, and O is to be multiplied by factor. */
template <class T>
__device__ static inline bool softmax_step(hopper_rows<T> &x, float (&s)[64], float factor[2]) {
    float top[2];
    bool grown = false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float t = fmaxf(s[2 * h], s[2 * h + 1]);
#pragma unroll
        for (int n = 1; n < 16; n++)
            t = fmaxf(t, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
        top[h] = fmaxf(x.m[h], group_max<4>(t));
        grown |= (top[h] - x.m[h]) * x.coef[h] > GROWTH; /* false for -inf - -inf */
    }
    grown = __any_sync(0xffffffffu, grown);
    if (grown)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float base = top[h] == -INFINITY ? 0.0f : top[h];
            factor[h] = exp2_fast((x.m[h] - base) * x.coef[h]); /* m = -inf: 0 */
            x.m[h] = top[h];
            x.l[h] *= factor[h];
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float base = x.m[h] == -INFINITY ? 0.0f : x.m[h] * x.coef[h] - BIAS;
        float sum[2] = {0, 0};
#pragma unroll
        for (int n = 0; n < 16; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &p = s[4 * n + 2 * h + e];
                p = exp2_fast(p * x.coef[h] - base);
                sum[e] += p;
            }
        x.l[h] += sum[0] + sum[1];
    }
    return grown;
}

template <class T> __device__ static inline void rescale(hopper_rows<T> &x, const float factor[2]) {
#pragma unroll
    for (int c = 0; c < T::D / 8; c++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            x.o[4 * c + e] *= factor[e / 2];
}

/* left operands of 16 keys each */
__device__ static inline void pack(const float (&s)[64], uint32_t (&p)[32]) {
#pragma unroll
    for (int i = 0; i < 32; i++)
        p[i] = pack_halves(s[2 * i], s[2 * i + 1]);
}

template <class T>
__device__ static inline void write_rows(const wgmma_job &j, const hopper_work &w, int tok0, int row,
                                         hopper_rows<T> &x) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int tok = tok0 + row + h * 8;
        const float l = group_sum<4>(x.l[h]), inv = l > 0 ? 1.0f / l : 0.0f;
        if (tok >= j.n_tok) continue;
        const int64_t at = (int64_t)tok * j.n_head + w.head;
        float *o = j.o + at * T::D + column;
#pragma unroll
        for (int c = 0; c < T::D / 8; c++)
            *reinterpret_cast<float2 *>(o + c * 8) =
                make_float2(x.o[4 * c + 2 * h] * inv, x.o[4 * c + 2 * h + 1] * inv);
        if (j.lse2 && column == 0) j.lse2[at] = l > 0 ? x.m[h] * x.coef[h] + (log2f(l) - BIAS) : -INFINITY;
    }
}

/* One warpgroup's 64 queries. While one computes softmax, the next has its products done: they take turns. */
template <class T>
__device__ static inline void attend(const wgmma_job &j, const hopper_work &w, mailbox<T> *box,
                                     unsigned char *shared, const float *coef, int wg) {
    const uint32_t base = shared_address(shared);
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const int tok0 = w.tok0 + wg * 64, i0 = j.pos0 + tok0;
    const uint64_t q = wgmma_operand(base + wg * T::Q, 0), k = wgmma_operand(base + T::K_AT, 0),
                   v = wgmma_operand(base + T::V_AT, T::PANEL);
    const int my_turn = 1 + wg, next_turn = 1 + (wg + 1) % T::WG;
    float s[64], factor[2] = {1, 1};
    uint32_t p[32];
    hopper_rows<T> x;
#pragma unroll
    for (int h = 0; h < 2; h++)
        x.m[h] = -INFINITY, x.l[h] = 0, x.coef[h] = coef[wg * 64 + row + h * 8];

    barrier_wait(shared_address(&box->k_full[0]), 0);
    issue_scores<T>(s, q, k);
    wgmma_wait<0>();
    wgmma_hold(s);
    mask_step<T>(s, w.span, i0, row, box, 0);
    softmax_step<T>(x, s, factor);
    pack(s, p);
    if (wg == T::WG - 1 && w.n_step > 1) turn_give(1, 256);
#pragma unroll 1
    for (int step = 1; step < w.n_step; step++) {
        const int k_stage = step % T::STAGES, v_stage = (step - 1) % T::STAGES;
        barrier_wait(shared_address(&box->k_full[k_stage]), step / T::STAGES & 1);
        turn_wait(my_turn, 256);
        issue_scores<T>(s, q, wgmma_ahead(k, k_stage * T::STAGE));
        barrier_wait(shared_address(&box->v_full[v_stage]), (step - 1) / T::STAGES & 1);
        issue_values<T>(x.o, p, wgmma_ahead(v, v_stage * T::STAGE), step == 1);
        if (wg < T::WG - 1 || step < w.n_step - 1) turn_give(next_turn, 256);
        wgmma_wait<1>();
        wgmma_hold(s);
        mask_step<T>(s, w.span, i0, row, box, k_stage);
        const bool grown = softmax_step<T>(x, s, factor);
        wgmma_wait<0>();
        wgmma_hold(x.o);
        wgmma_hold(p);
        if (lane == 0) barrier_arrive(shared_address(&box->v_free[v_stage]));
        if (grown) rescale<T>(x, factor);
        pack(s, p);
    }
    const int v_stage = (w.n_step - 1) % T::STAGES;
    barrier_wait(shared_address(&box->v_full[v_stage]), (w.n_step - 1) / T::STAGES & 1);
    issue_values<T>(x.o, p, wgmma_ahead(v, v_stage * T::STAGE), w.n_step == 1);
    wgmma_wait<0>();
    wgmma_hold(x.o);
    write_rows<T>(j, w, tok0, row, x);
}

/* grid: looks x heads, then tiles x heads, the last tile first */
template <class T, bool LOOK>
__global__ static void __launch_bounds__(T::THREADS, 1) attend_v3(const __grid_constant__ wgmma_job j) {
    extern __shared__ unsigned char raw[];
    __shared__ mailbox<T> box;
    __shared__ float coef[T::BM];
    unsigned char *shared = raw + (1024 - shared_address(raw) % 1024) % 1024;
    const int number = (int)blockIdx.x - (LOOK ? j.look.n_block * j.n_head : 0);
    if (LOOK && number < 0) {
        look<look_tile<T::D, T::THREADS / 32>>(j.look, (int)blockIdx.x, shared);
        return;
    }
    const hopper_work w = work_of<T>(j, number);
    const int wg = (int)threadIdx.x / 128 - 1, warp = (int)threadIdx.x / 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < T::STAGES; i++) {
            barrier_open(shared_address(&box.k_full[i]), 1);
            barrier_open(shared_address(&box.v_full[i]), 1);
            barrier_open(shared_address(&box.k_free[i]), T::WG * 4);
            barrier_open(shared_address(&box.v_free[i]), T::WG * 4);
        }
        barriers_opened();
    }
    __syncthreads();
    if (wg < 0) {
        registers_fewer<T::FEW>();
        if (warp == 0) load_pages<T, 0>(j, w, &box, shared_address(shared) + T::K_AT);
        if (warp == 1) load_pages<T, 1>(j, w, &box, shared_address(shared) + T::V_AT);
    } else {
        registers_more<T::MANY>();
        const int row0 = warp % 4 * 16, tok0 = w.tok0 + wg * 64 + row0;
        load_queries<T>(j.q + ((int64_t)tok0 * j.n_head + w.head) * T::D, (int64_t)j.n_head * T::D,
                        j.n_tok - tok0, j.scale2, row0, shared + wg * T::Q, coef + wg * 64 + row0);
        async_fence();
        turn_wait(1 + T::WG + wg, 128); /* this warpgroup's queries are here */
        attend<T>(j, w, &box, shared, coef, wg);
    }
}

/* --- host side ------------------------------------------------------------------------------------------- */

/* (pages, n_row, d_head) of a pool as a tensor whose boxes are tiles of 64 x 64; pages are counted in halves, K's and V's */
static moa_status map_pool(moa_cuda *c, const moa_kv_view *kv, int n_row, CUtensorMap *out, moa_err *err) {
    const cuuint64_t row = 2 * (cuuint64_t)kv->d_head,
                     size[3] = {(cuuint64_t)kv->d_head, (cuuint64_t)n_row, (cuuint64_t)INT_MAX},
                     stride[2] = {row, MOA_PAGE_TOK * row};
    return wg_tensor_map(c, kv->pool, size, stride, out, err);
}

template <class T, bool LOOK> static cudaError_t run_with(moa_cuda *c, const wgmma_job &j) {
    constexpr size_t look = look_tile<T::D, T::THREADS / 32>::END + 1024,
                     bytes = LOOK && look > T::bytes() ? look : T::bytes();
    const cudaError_t e = moa_allow_shared(attend_v3<T, LOOK>, bytes);
    if (e != cudaSuccess) return e;
    const unsigned n_block = (unsigned)((j.look.n_block + moa_ceil_div(j.n_tok, T::BM)) * j.n_head);
    attend_v3<T, LOOK><<<n_block, T::THREADS, bytes, c->stream>>>(j);
    return cudaGetLastError();
}
template <class T> static cudaError_t run(moa_cuda *c, const wgmma_job &j) {
    return j.look.n_block > 0 ? run_with<T, true>(c, j) : run_with<T, false>(c, j);
}

/* a launch, and what it is made of */
struct wgmma_plan {
    cudaError_t (*run)(moa_cuda *c, const wgmma_job &j);
    int rows; /* of a tile */
};
template <class T> static wgmma_plan plan_with() {
    return {run<T>, T::BM};
}

/* warpgroups of 64 rows two by two while that gives more multiprocessors work, three by three where there is enough */
static wgmma_plan plan_of(const moa_cuda *c, const moa_args_attn_prefill *a) {
    typedef hopper_tile<64, 3, 3> large;
    if (a->kv.d_head == 128) return plan_with<hopper_tile<128, 2, 2>>();
    return 2 * moa_ceil_div(a->n_tok, large::BM) * a->n_head >= 3 * c->n_sm
               ? plan_with<large>()
               : plan_with<hopper_tile<64, 2, 3>>();
}

/* does it fill the multiprocessors better than v2's smaller tiles? */
bool moa_cuda_prefill_wgmma_fits(const moa_cuda *c, const moa_args_attn_prefill *a) {
    return 2 * moa_ceil_div(a->n_tok, plan_of(c, a).rows) * a->n_head >= c->n_sm;
}

bool moa_cuda_prefill_wgmma_takes(const moa_cuda *c, const moa_args_attn_prefill *a) {
    int major = 0, minor = 0;
    if ((a->kv.d_head != 64 && a->kv.d_head != 128) || !moa_cuda_prefill_mma_takes(a)) return false;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c->device) != cudaSuccess)
        return false;
    return major == 9 && minor == 0;
}

static moa_status job_of(moa_cuda *c, const moa_args_attn_prefill *a, wgmma_job *j, moa_err *err) {
    static constexpr float LOG2E = 1.44269504f;
    *j = {};
    MOA_RETURN(map_pool(c, &a->kv, MOA_PAGE_TOK, &j->pages, err));
    MOA_RETURN(map_pool(c, &a->kv, (a->pos0 + a->n_tok - 1) % MOA_PAGE_TOK + 1, &j->tail, err));
    j->q = a->q;
    j->o = a->o;
    j->span = a->span;
    j->table = a->kv.table + a->seq * a->kv.table_seq_stride;
    j->max_pages = a->kv.max_pages;
    j->pos0 = a->pos0;
    j->n_tok = a->n_tok;
    j->n_head = a->n_head;
    j->group = a->n_head / a->kv.n_head_kv;
    j->scale2 = a->scale * LOG2E;
    return MOA_OK;
}

moa_status moa_cuda_prefill_wgmma(moa_cuda *c, const moa_args_attn_prefill *a, moa_err *err) {
    wgmma_job j;
    MOA_RETURN(job_of(c, a, &j, err));
    const bool sampled = a->probe.rows.every > 0;
    if (sampled) j.look = look_job_of(a, nullptr);
    if (!sampled && (a->probe.stat || a->probe.hist))
        MOA_RETURN(moa_cuda_scratch(c, sizeof(float) * (size_t)a->n_tok * (size_t)a->n_head,
                                    reinterpret_cast<void **>(&j.lse2), err));
    MOA_CU(c, plan_of(c, a).run(c, j));
    return j.lse2 ? moa_cuda_prefill_look(c, a, j.lse2, err) : MOA_OK;
}

moa_status moa_cuda_prefill_wgmma_lse(moa_cuda *c, const moa_args_attn_prefill *a, float *lse2, moa_err *err) {
    wgmma_job j;
    MOA_RETURN(job_of(c, a, &j, err));
    j.lse2 = lse2;
    MOA_CU(c, plan_of(c, a).run(c, j));
    return MOA_OK;
}
