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
 * Codes of 8 bits (kv_page.h) become halves on their way from shared memory, exactly. K's powers of two, one a channel and page, are taken
 * relative to the page's largest; V's scale of a token goes to its weight. Nothing more is rounded than for f16.
 *
 * A lane reads whole 16-byte pieces (8 of codes): which 16 columns of K form step k of the product does not matter as long as those of Q agree, and
 * which 8 of V form a tile does not matter as long as o is written accordingly. With Q(r) and the 32 bytes the 8 lanes that share a
 * pass touch all 32 banks once, for K and for V (heads of 64, 128, 256). Pairs of tokens of V are put together by byte permutation. */
#ifndef MOA_CUDA_ATTN_DECODE_PAGE_CUH
#define MOA_CUDA_ATTN_DECODE_PAGE_CUH

#include "cuda/attn_decode.cuh"
#include "cuda/kv_types.cuh"

static constexpr int MAX_GROUP = 8;                                 /* heads of an item */
static constexpr int BLOCKS = 4, BLOCK_TOK = MOA_PAGE_TOK / BLOCKS; /* of a page */
static constexpr float REFERENCE =
    8.0f; /* log2 of the weight that the largest score gets when the reference moves */
static constexpr float REFERENCE_MAX =
    15.5f; /* and of what it may grow to before it moves again: a half ends at 2^16 */
static constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
static constexpr unsigned ALL = 0xffffffffu;
static constexpr int N_STATE = 6; /* m, l, t, sink, window, distance */

/* bytes of a head size's page in shared memory; E: what K and V are, __half, __nv_bfloat16 or moa_q8 */
template <int D, typename E> struct page_layout {
    static constexpr bool CODED = sizeof(E) == 1;
    static constexpr int ROW = D * (int)sizeof(E), BLOCK = BLOCK_TOK * ROW + 32, SIDE = BLOCKS * BLOCK;
    static constexpr int SCALES = 2 * SIDE,
                         SCALE_BYTES = CODED ? MOA_PAGE_TOK * 4 + D : 0; /* V's, then K's exponents */
    static constexpr int PAGE = SCALES + SCALE_BYTES;
    static constexpr int WHOLE = (2 * MOA_PAGE_TOK * ROW + SCALE_BYTES + 15) / 16 * 16; /* in the cache */
    static constexpr int STEPS = D / 16, TILES = D / 8; /* products along d, tiles of o */
    static_assert(BLOCK % 16 == 0 && PAGE % 16 == 0 && SCALE_BYTES % 16 == 0, "bulk copies");
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
__device__ static inline unsigned shared2(unsigned at) {
    unsigned short x;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(x) : "r"(at) : "memory");
    return x;
}

/* Eight, four or two neighbours as pairs of 16 bits. Codes become halves, exactly: 0x6400 | u is 1024 + u. */
__device__ static inline uint2 halves_of(unsigned codes) {
    const __half2 zero = __floats2half2_rn(1152, 1152);
    const unsigned u = codes ^ 0x80808080u, x = __byte_perm(u, 0x64646464u, 0x4140),
                   y = __byte_perm(u, 0x64646464u, 0x4342);
    __half2 a, b;
    memcpy(&a, &x, 4), memcpy(&b, &y, 4);
    return make_uint2(bits_of(__hsub2(a, zero)), bits_of(__hsub2(b, zero)));
}
template <typename E> struct pairs {
    typedef E number; /* what the products get */
    static __device__ inline uint4 of8(unsigned at) { return shared16(at); }
    static __device__ inline uint2 of4(unsigned at) { return shared8(at); }
    static __device__ inline unsigned of2(unsigned at) { return shared4(at); }
};
template <> struct pairs<moa_q8> {
    typedef __half number;
    static __device__ inline uint4 of8(unsigned at) {
        const uint2 raw = shared8(at), a = halves_of(raw.x), b = halves_of(raw.y);
        return make_uint4(a.x, a.y, b.x, b.y);
    }
    static __device__ inline uint2 of4(unsigned at) { return halves_of(shared4(at)); }
    static __device__ inline unsigned of2(unsigned at) { return halves_of(shared2(at)).x; }
};
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

/* for what is read once a step: it need not push out of the L2 what others left there, their partial results first of all */
__device__ static inline uint64_t read_once() {
    uint64_t policy = 0;
#if __CUDA_ARCH__ >= 900
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    return policy;
}
__device__ static inline void copy_bulk(unsigned to, const void *from, int bytes, unsigned bar,
                                        uint64_t policy) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
                 "[%1], %2, [%3], %4;" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar), "l"(policy)
                 : "memory");
#else
    (void)to, (void)from, (void)bytes, (void)bar, (void)policy;
#endif
}
__device__ static inline void copy_16(unsigned to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

/* The whole warp: tokens first .. n_tok - 1 of a page (first a multiple of 16) to `to`; page NULL: nothing, the phase passes at once */
template <int D, typename E>
__device__ static void fill_page(unsigned to, unsigned bar, const char *page, int first, int n_tok,
                                 uint64_t policy) {
    typedef page_layout<D, E> t;
    const int lane = threadIdx.x % 32;
    if (!page) n_tok = first;
#if __CUDA_ARCH__ >= 900
    if (lane == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar),
                     "r"(2 * (n_tok - first) * t::ROW + (page ? t::SCALE_BYTES : 0))
                     : "memory");
    __syncwarp();
    const int block = lane % BLOCKS, side = lane / BLOCKS, n_row = min(n_tok - block * BLOCK_TOK, BLOCK_TOK);
    if (lane < 2 * BLOCKS && block * BLOCK_TOK >= first && n_row > 0)
        copy_bulk(to + (unsigned)(side * t::SIDE + block * t::BLOCK),
                  page + (side * MOA_PAGE_TOK + block * BLOCK_TOK) * t::ROW, n_row * t::ROW, bar, policy);
    if (t::CODED && page && lane == 2 * BLOCKS)
        copy_bulk(to + t::SCALES, page + 2 * MOA_PAGE_TOK * t::ROW, t::SCALE_BYTES, bar, policy);
#else
    constexpr int PIECES = t::ROW / 16; /* of a row */
    for (int e = lane; e < 2 * (n_tok - first) * PIECES; e += 32) {
        const int piece = e % PIECES, row = first + e / PIECES % (n_tok - first),
                  side = e / PIECES / (n_tok - first);
        copy_16(to + (unsigned)(side * t::SIDE + row / BLOCK_TOK * t::BLOCK + row % BLOCK_TOK * t::ROW +
                                piece * 16),
                page + (side * MOA_PAGE_TOK + row) * t::ROW + piece * 16);
    }
    for (int e = lane; page && e < t::SCALE_BYTES / 16; e += 32)
        copy_16(to + (unsigned)(t::SCALES + e * 16), page + 2 * MOA_PAGE_TOK * t::ROW + e * 16);
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
    unsigned a[D / 16][4]; /* rows 0 .. 7 of the product are q's upper halves, 8 .. 15 the lower */
    float factor;          /* brings a raw score of head g to log2 units */
};
template <int D, typename E>
__device__ static void load_queries(const page_job &j, const segment &s, queries<D> &q) {
    typedef typename pairs<E>::number N;
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
    for (int i = 0; i < D / 16; i++) {
        split2<N>(x[4 * i] * up, x[4 * i + 1] * up, &q.a[i][0], &q.a[i][1]);
        split2<N>(x[4 * i + 2] * up, x[4 * i + 3] * up, &q.a[i][2], &q.a[i][3]);
    }
    q.factor = down;
}

/* a warp's softmax state of head g = lane / 4; l and st of this lane's tokens only; o: see column_of() */
template <int D, bool STATS> struct warp_state {
    float m, l;
    float o[D / 8][4];
    moa_soft_stat st;
    int v_field; /* coded V: o is in units of 2^(v_field - 126) */
    __device__ void clear() {
        m = -INFINITY, l = 0, v_field = 0;
        if (STATS) st = moa_soft_stat();
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
    }
    __device__ void move(float to) {
        const float f = m == -INFINITY ? 0.0f : exp2_fast(m - to);
        if (STATS) stat_move(st, l, m, to, f);
        l *= f;
        m = to;
        times(f);
    }
    __device__ void times(float f) {
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            o[i][0] *= f, o[i][1] *= f, o[i][2] *= f, o[i][3] *= f;
    }
};

/* Coded K: (code + 1/2) 2^(E - most + 8) is a half for every channel that counts: less than 2^15, and exact down to 2^-31 of that. */
struct k_scale {
    __half2 step, half;
};
/* of two channels, in the lower half of `exponents` */
__device__ static inline k_scale k_scale_of(unsigned exponents, int most) {
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int e = (int)(exponents >> 8 * i & 255u), field = e - most + 23;
        unsigned h = field > 0 ? (unsigned)field << 10 : field > -10 ? 0x400u >> (1 - field) : 0u;
        if (e == 255) h = 0x7c00u;
        bits |= (e ? h : 0u) << 16 * i;
    }
    k_scale s;
    memcpy(&s.step, &bits, 4);
    s.half = __hmul2(s.step, __floats2half2_rn(0.5f, 0.5f));
    return s;
}
__device__ static inline unsigned k_value(unsigned codes, const k_scale &s) {
    __half2 x;
    memcpy(&x, &codes, 4);
    return bits_of(__hfma2(x, s.step, s.half));
}
/* the largest exponent of a page's channels below 255; at: in shared memory */
template <int D> __device__ static inline int k_most(unsigned at) {
    unsigned most = 0;
#pragma unroll
    for (int i = 0; i < (D / 4 + 31) / 32; i++) {
        const int word = i * 32 + (int)threadIdx.x % 32;
        const unsigned x = word < D / 4 ? shared4(at + (unsigned)word * 4) : 0;
#pragma unroll
        for (int b = 0; b < 4; b++) {
            const unsigned e = x >> 8 * b & 255u;
            if (e != 255) most = max(most, e);
        }
    }
    return (int)__reduce_max_sync(ALL, most);
}

/* Raw scores of a warp's 16 tokens and head g: tokens that are rows 2c, 2c + 1, 2c + 8, 2c + 9. k: this warp's rows of block 0;
 * exponents, most: of coded K */
template <int D, typename E>
__device__ static void score(unsigned k, const queries<D> &q, unsigned exponents, int most, float out[4]) {
    typedef page_layout<D, E> t;
    typedef typename pairs<E>::number N;
    constexpr int B = sizeof(E);
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const unsigned row = k + (unsigned)(block_of_row(g) * t::BLOCK + row_in_block(g) * t::ROW);
    float s[2][2][4] = {}; /* of rows g and g + 8, two chains each, so that none waits for itself */
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        uint4 a = pairs<E>::of8(row + (unsigned)((i * 32 + c * 8) * B)),
              b = pairs<E>::of8(row + (unsigned)(2 * t::ROW + (i * 32 + c * 8) * B));
        if (t::CODED) {
            const uint2 e = shared8(exponents + (unsigned)(i * 32 + c * 8));
            const k_scale s0 = k_scale_of(e.x, most), s1 = k_scale_of(e.x >> 16, most),
                          s2 = k_scale_of(e.y, most), s3 = k_scale_of(e.y >> 16, most);
            a = make_uint4(k_value(a.x, s0), k_value(a.y, s1), k_value(a.z, s2), k_value(a.w, s3));
            b = make_uint4(k_value(b.x, s0), k_value(b.y, s1), k_value(b.z, s2), k_value(b.w, s3));
        }
        mma<N>(s[0][0], q.a[2 * i], a.x, a.y);
        mma<N>(s[1][0], q.a[2 * i], b.x, b.y);
        mma<N>(s[0][1], q.a[2 * i + 1], a.z, a.w);
        mma<N>(s[1][1], q.a[2 * i + 1], b.z, b.w);
    }
    if (D % 32) {
        constexpr int LAST = D % 32 ? D / 32 * 2 : 0;
        uint2 a = pairs<E>::of4(row + (unsigned)((D / 32 * 32 + c * 4) * B)),
              b = pairs<E>::of4(row + (unsigned)(2 * t::ROW + (D / 32 * 32 + c * 4) * B));
        if (t::CODED) {
            const unsigned e = shared4(exponents + (unsigned)(D / 32 * 32 + c * 4));
            const k_scale s0 = k_scale_of(e, most), s1 = k_scale_of(e >> 16, most);
            a = make_uint2(k_value(a.x, s0), k_value(a.y, s1));
            b = make_uint2(k_value(b.x, s0), k_value(b.y, s1));
        }
        mma<N>(s[0][0], q.a[LAST], a.x, a.y);
        mma<N>(s[1][0], q.a[LAST], b.x, b.y);
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
    typedef page_layout<D, E> t;
    typedef typename pairs<E>::number N;
    constexpr int B = sizeof(E);
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    unsigned a[4];
    split2<N>(p[0], p[1], &a[0], &a[1]);
    split2<N>(p[2], p[3], &a[2], &a[3]);
    /* tokens of the product's rows 2c, 2c + 1, 2c + 8, 2c + 9 */
    const unsigned r0 = v + (unsigned)(c * t::BLOCK), r1 = v + (unsigned)((c ^ 2) * t::BLOCK + t::ROW),
                   r2 = r0 + 2 * t::ROW, r3 = r1 + 2 * t::ROW;
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
        const unsigned at = (unsigned)((i * 64 + g * 8) * B);
        const uint4 x = pairs<E>::of8(r0 + at), y = pairs<E>::of8(r1 + at), z = pairs<E>::of8(r2 + at),
                    w = pairs<E>::of8(r3 + at);
        tiles<N>(o + 8 * i, x.x, y.x, z.x, w.x, a);
        tiles<N>(o + 8 * i + 2, x.y, y.y, z.y, w.y, a);
        tiles<N>(o + 8 * i + 4, x.z, y.z, z.z, w.z, a);
        tiles<N>(o + 8 * i + 6, x.w, y.w, z.w, w.w, a);
    }
    constexpr int REST = D % 64 / 16, BASE = D / 64 * 8;
    if (REST == 1) {
        const unsigned at = (unsigned)((D / 64 * 64 + g * 2) * B);
        tiles<N>(o + (REST == 1 ? BASE : 0), pairs<E>::of2(r0 + at), pairs<E>::of2(r1 + at),
                 pairs<E>::of2(r2 + at), pairs<E>::of2(r3 + at), a);
    } else if (REST == 2) {
        const unsigned at = (unsigned)((D / 64 * 64 + g * 4) * B);
        const uint2 x = pairs<E>::of4(r0 + at), y = pairs<E>::of4(r1 + at), z = pairs<E>::of4(r2 + at),
                    w = pairs<E>::of4(r3 + at);
        tiles<N>(o + (REST == 2 ? BASE : 0), x.x, y.x, z.x, w.x, a);
        tiles<N>(o + (REST == 2 ? BASE + 2 : 0), x.y, y.y, z.y, w.y, a);
    }
}
/* Coded V: the scale of a token goes to its weight. In units of a power of two just above the largest scale of the warp's tokens so far, for
 * weights are halves. scales: of block 0's rows of this warp, in shared memory; 0 for tokens that are not there, whose scales are anything. */
template <int D, bool STATS>
__device__ static inline void scale_weights(warp_state<D, STATS> &u, unsigned scales, const int away[4],
                                            int oldest, float p[4]) {
    const int c = threadIdx.x % 4;
    const unsigned r0 = scales + (unsigned)(c * BLOCK_TOK * 4),
                   r1 = scales + (unsigned)(((c ^ 2) * BLOCK_TOK + 1) * 4);
    unsigned s[4] = {shared4(r0), shared4(r1), shared4(r0 + 8), shared4(r1 + 8)}, top = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (away[e] < 0 || away[e] > oldest) s[e] = 0;
        top = max(top, s[e]);
    }
    const int field = min((int)(__reduce_max_sync(ALL, top) >> 23), 252);
    if (field > u.v_field) {
        if (u.v_field) u.times(exp2_fast((float)(u.v_field - field)));
        u.v_field = field;
    }
    const float down = __uint_as_float((unsigned)(253 - u.v_field) << 23); /* 2^(126 - field) */
#pragma unroll
    for (int e = 0; e < 4; e++)
        p[e] *= __uint_as_float(s[e]) * down;
}
/* Where element e (0, 1; 2 and 3 are added to them) of tile i lies in head g's row, c = lane % 4: a lane's tiles of 64 columns are 16
 * neighbours, those of the rest 4 or 8. */
template <int D> __device__ static inline int column_of(int i, int e, int c) {
    constexpr int EACH = D % 64 / 8; /* tiles of the rest */
    return i < D / 64 * 8 ? i / 8 * 64 + c * 16 + e * 8 + i % 8
                          : D / 64 * 64 + c * (2 * EACH) + e * EACH + i % 8;
}

/* this warp's rows of V that were not filled, tokens before first and from n_tok on: 0 * NaN is not 0 */
template <int D, typename E> __device__ static void clear_rows(unsigned v, int warp, int first, int n_tok) {
    typedef page_layout<D, E> t;
    constexpr int PIECES = t::ROW / 16;
    for (int e = (int)threadIdx.x % 32; e < 16 * PIECES; e += 32) {
        const int row = e / PIECES, piece = e % PIECES, block = row / 4,
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
    typedef page_layout<D, E> t;
    const int c = threadIdx.x % 4, warp = threadIdx.x / 32, page = s.page(k), key0 = page * MOA_PAGE_TOK;
    const bool sink = page == 0, full = key0 + MOA_PAGE_TOK - 1 <= s.pos;
    const unsigned rows = stage + (unsigned)(warp * 4 * t::ROW);
    if (!t::CODED && (!full || (k == 1 && s.first_tok > 0))) /* codes are numbers, whatever they are */
        clear_rows<D, E>(rows + t::SIDE, warp, k == 1 ? s.first_tok : 0, s.pos - key0 + 1);
    float x[4];
    const unsigned exponents = stage + (unsigned)(t::SCALES + MOA_PAGE_TOK * 4);
    const int most = t::CODED ? k_most<D>(exponents) : 0;
    score<D, E>(rows, q, exponents, most, x);
    const float factor = !t::CODED ? q.factor : most > 8 ? q.factor * __int_as_float((most - 8) << 23) : 0.0f;
    /* distances of rows 2c, 2c + 1, 2c + 8, 2c + 9 */
    const int near = s.pos - key0 - (c * BLOCK_TOK + warp * 4),
              other = s.pos - key0 - ((c ^ 2) * BLOCK_TOK + warp * 4 + 1);
    const int away[4] = {near, other, near - 2, other - 2};
    const bool masked = !full || !(sink || s.pos - key0 < s.narrowest);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        x[e] *= factor;
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
    if (t::CODED)
        scale_weights(u, stage + (unsigned)(t::SCALES + warp * 16), away,
                      k == 1 ? s.pos - key0 - s.first_tok : INT32_MAX, p);
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
