/* attn_decode_page.cuh -- what a warp does with its 16 tokens of a page in shared memory, on tensor cores.
 *
 *   page     K and V of 64 tokens, each as four blocks of 16 rows, every block 32 bytes further than it need be
 *   warp     w of four has rows 4w .. 4w + 3 of each block: 16 tokens. S = Q K^T, then O += P V, both mma.m16n8k16 with the heads on
 *            the side of 16: row g is the upper half of head g's q (or p), row g + 8 the lower, so that one product gives both
 *            and a group of 1 costs what one of 8 does. A lane has one head, g = lane / 4, and of its 16 tokens four;
 *            the scores lie as P has to lie for the second product. 64 instructions of it for a page of 128 columns
 *
 * Float32 precision out of 16-bit products: q and p are each the sum of two halves; K and V are as they lie in the cache, halves or
 * bfloat16. q is first scaled by a power of two to just under 2^15. p is taken relative to a reference m that moves only when a weight would reach 2^15.5, and then
 * to 2^8 below the largest score: for most pages no lane asks another, and a weight of 1e-9 still has its bits. l and the
 * statistics are relative to the same reference, in powers of two.
 *
 *   row r of a warp's tokens is of block Q(r) = (r/2 % 4) ^ (2 (r % 2)) the row 4w + W(r),  W = r % 2 + 2 (r / 8)
 *
 * A lane reads whole 16-byte pieces: which 16 columns of K form step k of the product does not matter as long as those of Q agree, and
 * which 8 of V form a tile does not matter as long as o is written accordingly. With Q(r) and the 32 bytes the 8 lanes that share a
 * pass touch all 32 banks once, for K and for V (heads of 64, 128, 256). Pairs of tokens of V are put together by byte permutation. */
#ifndef MOA_CUDA_ATTN_DECODE_PAGE_CUH
#define MOA_CUDA_ATTN_DECODE_PAGE_CUH

#include <cuda_bf16.h>

#include "cuda/attn_decode.cuh"

static constexpr int MAX_GROUP = 8;                                 /* heads of an item */
static constexpr int BLOCKS = 4, BLOCK_TOK = MOA_PAGE_TOK / BLOCKS; /* of a page */
static constexpr float REFERENCE =
    8.0f; /* log2 of the weight that the largest score gets when the reference moves */
static constexpr float REFERENCE_MAX =
    15.5f; /* and of what it may grow to before it moves again: a half ends at 2^16 */
static constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
static constexpr unsigned ALL = 0xffffffffu;
static constexpr int N_STATE = 6; /* m, l, t, sink, window, distance */

/* bytes of a head size's page in shared memory */
template <int D> struct page_layout {
    static constexpr int ROW = D * 2, BLOCK = BLOCK_TOK * ROW + 32, SIDE = BLOCKS * BLOCK, PAGE = 2 * SIDE;
    static constexpr int STEPS = D / 16, TILES = D / 8; /* products along d, tiles of o */
};

struct page_job {
    const float *q; /* (n_seq, n_head, d_head) */
    float *o;
    moa_kv<__half> kv;
    const int32_t *pos, *span;
    int64_t span_stride;
    int n_seq, n_head, n_head_kv, group, n_part, n_item; /* as v1's */
    int part_heads; /* min(group, MAX_GROUP): the most that an item has */
    int n_stage;
    bool early; /* the kernels in front may write only the page that holds the position */
    float scale;
    moa_probe probe;
    float4 *mail; /* (2 n_block, mail_step): blocks that share an item; all EMPTY between launches */
    int mail_step;
    float *lse; /* (n_seq, n_head) or NULL */
    float4 *
        mass; /* (n_seq, n_head, max_pages * BLOCKS) or NULL: what the histogram needs of a warp's part of a page */
};
/* --- instructions --------------------------------------------------------------------------------------- */

__device__ static inline unsigned shared_at(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}
__device__ static inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* E: what K and V are, __half or __nv_bfloat16 */
template <typename E>
__device__ static inline void mma(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__nv_bfloat16>(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <typename T> __device__ static inline unsigned bits_of(T two) {
    unsigned x;
    memcpy(&x, &two, 4);
    return x;
}
__device__ static inline uint4 shared16(unsigned at) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(at)
                 : "memory");
    return x;
}
__device__ static inline uint2 shared8(unsigned at) {
    uint2 x;
    asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at) : "memory");
    return x;
}
__device__ static inline unsigned shared4(unsigned at) {
    unsigned x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
    return x;
}
/* x = hi + lo, two at a time: 22 bits of halves, 16 of bfloat16 */
template <typename E> __device__ static inline void split2(float x, float y, unsigned *hi, unsigned *lo) {
    const __half2 h = __floats2half2_rn(x, y);
    const float2 f = __half22float2(h);
    *hi = bits_of(h);
    *lo = bits_of(__floats2half2_rn(x - f.x, y - f.y));
}
template <> __device__ inline void split2<__nv_bfloat16>(float x, float y, unsigned *hi, unsigned *lo) {
    *hi = bits_of(__floats2bfloat162_rn(x, y));
    *lo = bits_of(
        __floats2bfloat162_rn(x - __uint_as_float(*hi << 16), y - __uint_as_float(*hi & 0xffff0000u)));
}

/* --- shared memory that copies fill --------------------------------------------------------------------- */

/* Before sm_90 every lane's copies arrive for themselves. */
__device__ static inline void barrier_init(unsigned bar, unsigned count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
__device__ static inline void barriers_ready() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ static inline void barrier_arrive(unsigned bar) {
    asm volatile("{.reg .b64 t; mbarrier.arrive.shared.b64 t, [%0];}" ::"r"(bar) : "memory");
}
__device__ static inline void barrier_wait(unsigned bar, unsigned parity) {
    unsigned done;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile(
            "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
            : "=r"(done)
            : "r"(bar), "r"(parity)
            : "memory");
#else
        asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(bar), "r"(parity)
                     : "memory");
#endif
    } while (!done);
}
static constexpr unsigned FILL_ARRIVALS =
#if __CUDA_ARCH__ >= 900
    1;
#else
    32;
#endif

/* The whole warp: tokens first .. n_tok - 1 of a page (first a multiple of 16) to `to`; rows NULL: nothing, the phase passes at once */
template <int D>
__device__ static void fill_page(unsigned to, unsigned bar, const __half *rows, int first, int n_tok) {
    typedef page_layout<D> t;
    const int lane = threadIdx.x % 32;
    if (!rows) n_tok = first;
#if __CUDA_ARCH__ >= 900
    if (lane == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar),
                     "r"(2 * (n_tok - first) * t::ROW)
                     : "memory");
    __syncwarp();
    const int block = lane % BLOCKS, side = lane / BLOCKS, n_row = min(n_tok - block * BLOCK_TOK, BLOCK_TOK);
    if (lane < 2 * BLOCKS && block * BLOCK_TOK >= first && n_row > 0)
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                to + (unsigned)(side * t::SIDE + block * t::BLOCK)),
            "l"(rows + (side * MOA_PAGE_TOK + block * BLOCK_TOK) * D), "r"(n_row * t::ROW), "r"(bar)
            : "memory");
#else
    constexpr int PIECES = D / 8; /* of a row */
    for (int e = lane; e < 2 * (n_tok - first) * PIECES; e += 32) {
        const int piece = e % PIECES, row = first + e / PIECES % (n_tok - first),
                  side = e / PIECES / (n_tok - first);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                         to + (unsigned)(side * t::SIDE + row / BLOCK_TOK * t::BLOCK +
                                         row % BLOCK_TOK * t::ROW + piece * 16)),
                     "l"(rows + (side * MOA_PAGE_TOK + row) * D + piece * 8)
                     : "memory");
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(bar) : "memory");
#endif
}

/* the token of its 16 that row r of a warp's product is: of block block_of_row(r), the row row_in_block(r) */
__device__ static inline int block_of_row(int r) {
    return (r >> 1 & 3) ^ (r & 1) * 2;
}
__device__ static inline int row_in_block(int r) {
    return (r & 1) + (r >> 3) * 2;
}

/* --- an item, and a warp's part of it -------------------------------------------------------------------- */

struct segment {
    int n, seq, head, n_head; /* item, and its query heads head .. head + n_head - 1 */
    int pos, first, n_page;   /* its pages: 0, then first, first + 1, ...; n_page 0: an idle sequence */
    int first_tok;            /* of page `first`: blocks of 16 before it are not seen */
    int narrowest;            /* the least window of the group */
    __device__ int page(int k) const { return k == 0 ? 0 : first + k - 1; }
};

/* the queries of an item as the product wants them */
template <int D> struct queries {
    unsigned a[page_layout<D>::STEPS]
              [4]; /* rows 0 .. 7 of the product are q's upper halves, 8 .. 15 the lower */
    float factor;  /* brings a raw score of head g to log2 units */
};
template <int D, typename E>
__device__ static void load_queries(const page_job &j, const segment &s, queries<D> &q) {
    constexpr int PIECES = D / 32; /* of 8 elements a lane; D % 32 == 16: 4 more */
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const float *row = j.q + ((int64_t)s.seq * j.n_head + s.head + g) * D;
    /* not through the read-only path: in an early launch q is there only after the wait */
    float x[D / 4], top = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) { /* 4 elements at a time: both products of a piece, then the rest */
        const int e = i < PIECES * 2 ? i / 2 * 32 + c * 8 + i % 2 * 4 : PIECES * 32 + c * 4;
        const float4 v = g < s.n_head ? *reinterpret_cast<const float4 *>(row + e) : make_float4(0, 0, 0, 0);
        x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
        top = fmaxf(top, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }
    top = fmaxf(top, __shfl_xor_sync(ALL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(ALL, top, 2));
    const int power = top > 0 ? min(max(14 - ((__float_as_int(top) >> 23) - 127), -113), 120) : 0;
    const float up = __int_as_float((127 + power) << 23),
                down = __int_as_float((127 - power) << 23) * j.scale * LOG2E;
#pragma unroll
    for (int i = 0; i < page_layout<D>::STEPS; i++) {
        split2<E>(x[4 * i] * up, x[4 * i + 1] * up, &q.a[i][0], &q.a[i][1]);
        split2<E>(x[4 * i + 2] * up, x[4 * i + 3] * up, &q.a[i][2], &q.a[i][3]);
    }
    q.factor = down;
}

/* a warp's softmax state of head g = lane / 4; l and st of this lane's tokens only; o: see column_of() */
template <int D, bool STATS> struct warp_state {
    float m, l;
    float o[page_layout<D>::TILES][4];
    moa_soft_stat st;
    __device__ void clear() {
        m = -INFINITY, l = 0;
        if (STATS) st = moa_soft_stat();
#pragma unroll
        for (int i = 0; i < page_layout<D>::TILES; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
    }
    __device__ void move(float to) {
        const float f = m == -INFINITY ? 0.0f : exp2_fast(m - to);
        if (STATS) stat_move(st, l, m, to, f);
        l *= f;
        m = to;
#pragma unroll
        for (int i = 0; i < page_layout<D>::TILES; i++)
            o[i][0] *= f, o[i][1] *= f, o[i][2] *= f, o[i][3] *= f;
    }
};

/* Raw scores of a warp's 16 tokens and head g: tokens that are rows 2c, 2c + 1, 2c + 8, 2c + 9. k: this warp's rows of block 0 */
template <int D, typename E> __device__ static void score(unsigned k, const queries<D> &q, float out[4]) {
    typedef page_layout<D> t;
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const unsigned row = k + (unsigned)(block_of_row(g) * t::BLOCK + row_in_block(g) * t::ROW);
    float s[2][2][4] = {}; /* of rows g and g + 8, two chains each, so that none waits for itself */
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        const uint4 a = shared16(row + (unsigned)(i * 64 + c * 16)),
                    b = shared16(row + (unsigned)(2 * t::ROW + i * 64 + c * 16));
        mma<E>(s[0][0], q.a[2 * i], a.x, a.y);
        mma<E>(s[1][0], q.a[2 * i], b.x, b.y);
        mma<E>(s[0][1], q.a[2 * i + 1], a.z, a.w);
        mma<E>(s[1][1], q.a[2 * i + 1], b.z, b.w);
    }
    if (D % 32) {
        constexpr int LAST = D % 32 ? D / 32 * 2 : 0;
        const uint2 a = shared8(row + (unsigned)(D / 32 * 64 + c * 8)),
                    b = shared8(row + (unsigned)(2 * t::ROW + D / 32 * 64 + c * 8));
        mma<E>(s[0][0], q.a[LAST], a.x, a.y);
        mma<E>(s[1][0], q.a[LAST], b.x, b.y);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) /* upper and lower halves of q */
        out[e] =
            (s[e / 2][0][e % 2] + s[e / 2][1][e % 2]) + (s[e / 2][0][e % 2 + 2] + s[e / 2][1][e % 2 + 2]);
}

/* registers of four tokens, two elements each, become two tiles of o */
template <typename E>
__device__ static inline void tiles(float o[2][4], unsigned v0, unsigned v1, unsigned v2, unsigned v3,
                                    const unsigned p[4]) {
    mma<E>(o[0], p, __byte_perm(v0, v1, 0x5410), __byte_perm(v2, v3, 0x5410));
    mma<E>(o[1], p, __byte_perm(v0, v1, 0x7632), __byte_perm(v2, v3, 0x7632));
}

/* o += P V; p as scores lie */
template <int D, typename E> __device__ static void weigh(unsigned v, const float p[4], float o[][4]) {
    typedef page_layout<D> t;
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    unsigned a[4];
    split2<E>(p[0], p[1], &a[0], &a[1]);
    split2<E>(p[2], p[3], &a[2], &a[3]);
    /* tokens of the product's rows 2c, 2c + 1, 2c + 8, 2c + 9 */
    const unsigned r0 = v + (unsigned)(c * t::BLOCK), r1 = v + (unsigned)((c ^ 2) * t::BLOCK + t::ROW),
                   r2 = r0 + 2 * t::ROW, r3 = r1 + 2 * t::ROW;
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
        const unsigned at = (unsigned)(i * 128 + g * 16);
        const uint4 x = shared16(r0 + at), y = shared16(r1 + at), z = shared16(r2 + at),
                    w = shared16(r3 + at);
        tiles<E>(o + 8 * i, x.x, y.x, z.x, w.x, a);
        tiles<E>(o + 8 * i + 2, x.y, y.y, z.y, w.y, a);
        tiles<E>(o + 8 * i + 4, x.z, y.z, z.z, w.z, a);
        tiles<E>(o + 8 * i + 6, x.w, y.w, z.w, w.w, a);
    }
    constexpr int REST = D % 64 / 16, BASE = D / 64 * 8;
    if (REST == 1) {
        const unsigned at = (unsigned)(D / 64 * 128 + g * 4);
        tiles<E>(o + (REST == 1 ? BASE : 0), shared4(r0 + at), shared4(r1 + at), shared4(r2 + at),
                 shared4(r3 + at), a);
    } else if (REST == 2) {
        const unsigned at = (unsigned)(D / 64 * 128 + g * 8);
        const uint2 x = shared8(r0 + at), y = shared8(r1 + at), z = shared8(r2 + at), w = shared8(r3 + at);
        tiles<E>(o + (REST == 2 ? BASE : 0), x.x, y.x, z.x, w.x, a);
        tiles<E>(o + (REST == 2 ? BASE + 2 : 0), x.y, y.y, z.y, w.y, a);
    }
}
/* Where element e (0, 1; 2 and 3 are added to them) of tile i lies in head g's row, c = lane % 4: a lane's tiles of 64 columns are 16
 * neighbours, those of the rest 4 or 8. */
template <int D> __device__ static inline int column_of(int i, int e, int c) {
    constexpr int EACH = D % 64 / 8; /* tiles of the rest */
    return i < D / 64 * 8 ? i / 8 * 64 + c * 16 + e * 8 + i % 8
                          : D / 64 * 64 + c * (2 * EACH) + e * EACH + i % 8;
}

/* this warp's rows of V that were not filled, tokens before first and from n_tok on: 0 * NaN is not 0 */
template <int D> __device__ static void clear_rows(unsigned v, int warp, int first, int n_tok) {
    typedef page_layout<D> t;
    for (int e = (int)threadIdx.x % 32; e < 16 * (D / 8); e += 32) {
        const int row = e / (D / 8), piece = e % (D / 8), block = row / 4,
                  tok = block * BLOCK_TOK + warp * 4 + row % 4;
        if (tok >= first && tok < n_tok) continue;
        asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(
                         v + (unsigned)(block * t::BLOCK + row % 4 * t::ROW + piece * 16)),
                     "r"(0)
                     : "memory");
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::
                     : "memory"); /* the stage is next written by a bulk copy */
#endif
    __syncwarp();
}

/* Distances of a page lie in at most two bins of 64: mass_bin() and the next. {m, sums of e^(s-m) in the two} of each head. */
__device__ static inline int mass_bin(int pos, int page) {
    return max(pos - page * MOA_PAGE_TOK - (MOA_PAGE_TOK - 1), 0) / MOA_PAGE_TOK;
}
__device__ static void keep_mass(const page_job &j, const segment &s, int page, int warp, const float p[4],
                                 const int away[4], float m) {
    const int lane = threadIdx.x % 32, bin = mass_bin(s.pos, page);
    float x[2] = {};
#pragma unroll
    for (int e = 0; e < 4; e++) /* a key after the newest weighs nothing */
        x[away[e] / MOA_PAGE_TOK <= bin ? 0 : 1] += p[e];
    x[0] = group_sum<4>(x[0]);
    x[1] = group_sum<4>(x[1]);
    if (lane % 4 == 0 && lane / 4 < s.n_head)
        j.mass[(((int64_t)s.seq * j.n_head + s.head + lane / 4) * j.kv.max_pages + page) * BLOCKS + warp] =
            make_float4(m, x[0], x[1], 0);
}

/* page k of the item for all heads; window: of this lane's head; measure: that for the statistics */
template <int D, typename E, bool STATS>
__device__ static void attend_page(const page_job &j, warp_state<D, STATS> &u, const queries<D> &q,
                                   const segment &s, int k, unsigned stage, int window, int measure) {
    typedef page_layout<D> t;
    const int c = threadIdx.x % 4, warp = threadIdx.x / 32, page = s.page(k), key0 = page * MOA_PAGE_TOK;
    const bool sink = page == 0, full = key0 + MOA_PAGE_TOK - 1 <= s.pos;
    const unsigned rows = stage + (unsigned)(warp * 4 * t::ROW);
    if (!full || (k == 1 && s.first_tok > 0))
        clear_rows<D>(rows + t::SIDE, warp, k == 1 ? s.first_tok : 0, s.pos - key0 + 1);
    float x[4];
    score<D, E>(rows, q, x);
    /* distances of rows 2c, 2c + 1, 2c + 8, 2c + 9 */
    const int near = s.pos - key0 - (c * BLOCK_TOK + warp * 4),
              other = s.pos - key0 - ((c ^ 2) * BLOCK_TOK + warp * 4 + 1);
    const int away[4] = {near, other, near - 2, other - 2};
    const bool masked = !full || !(sink || s.pos - key0 < s.narrowest);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        x[e] *= q.factor;
        if (masked && (away[e] < 0 || (!sink && away[e] >= window))) x[e] = -INFINITY;
    }
    const float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    if (__any_sync(ALL, top > u.m + REFERENCE_MAX)) u.move(fmaxf(u.m, group_max<4>(top) - REFERENCE));
    const float base = u.m == -INFINITY ? 0.0f : u.m;
    float p[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        x[e] -= base;
        p[e] = exp2_fast(x[e]);
        if (STATS && p[e] > 0.0f) {
            u.st.t += p[e] * x[e];
            if (sink)
                u.st.sink += p[e];
            else if (away[e] < measure)
                u.st.window += p[e];
            u.st.distance += p[e] * (float)away[e];
        }
    }
    u.l += (p[0] + p[1]) + (p[2] + p[3]);
    if (STATS && j.mass) keep_mass(j, s, page, warp, p, away, u.m);
    weigh<D, E>(rows + t::SIDE, p, u.o);
}

/* o's of one head from sums relative to a reference; written by one thread a head */
__device__ static void write_state(const page_job &j, int seq, int head, const float *x) {
    const int64_t at = (int64_t)seq * j.n_head + head;
    const bool any = x[1] > 0.0f;
    const float inv = any ? 1.0f / x[1] : 0.0f, lse = any ? (x[0] + log2f(x[1])) * LN2 : INFINITY;
    if (j.lse) j.lse[at] = lse;
    if (!j.probe.stat) return;
    float *out = j.probe.stat + at * MOA_N_STAT;
    out[MOA_STAT_ENTROPY] = any ? fmaxf((log2f(x[1]) - x[2] * inv) * LN2, 0.0f) : 0.0f;
    out[MOA_STAT_SINK] = x[3] * inv;
    out[MOA_STAT_WINDOW] = x[4] * inv;
    out[MOA_STAT_DISTANCE] = x[5] * inv;
    out[MOA_STAT_LSE] = any ? lse : 0.0f;
}

/* adds state y to x, both in terms of x[0] */
template <bool STATS> __device__ static void add_state(float *x, const float *y) {
    const float f = y[0] == -INFINITY ? 0.0f : exp2_fast(y[0] - x[0]);
    x[1] += f * y[1];
    if (!STATS || f == 0.0f) return;
    x[2] += f * (y[2] + y[1] * (y[0] - x[0]));
#pragma unroll
    for (int i = 3; i < 6; i++)
        x[i] += f * y[i];
}
/* x and y, each in its own terms, become one */
__device__ static inline void state_meet(float *x, const float *y) {
    const float to = fmaxf(x[0], y[0]);
    if (to == -INFINITY) return;
    const float own[N_STATE] = {x[0], x[1], x[2], x[3], x[4], x[5]};
    x[0] = to, x[1] = x[2] = x[3] = x[4] = x[5] = 0;
    add_state<true>(x, own);
    add_state<true>(x, y);
}

#endif
