/* attn_decode_mma.cuh -- what a warp does with 16 tokens of a page on tensor cores; shared by v2 and v3 of decode attention, which differ
 * in how the work is cut and how the parts meet.
 *
 *   unit     16 tokens of a page: a quarter of its K and of its V, brought to shared memory by asynchronous bulk copies (sm_90; 16-byte
 *            cp.async before) that an mbarrier counts
 *   warp     S = K Q^T (16 tokens x 8 heads), then O^T += V^T P^T (d x 8 heads), both mma.m16n8k16: the heads of the group are the
 *            small side of the product, so a group of 1 costs what one of 8 does, and neither is near the limit:
 *            4096 multiply-adds an instruction, 40 instructions for the 8 KB of a unit of 128
 *
 * Float32 precision out of f16 products: q and p are each the sum of two halves (x = hi + lo, two products); K and V are f16
 * as they lie in the cache. q is first scaled by a power of two to just under 2^15. p is taken relative to a reference 2^15 below the largest score, so that
 * a weight of 1e-9 still has its bits; l and the statistics are relative to the same reference, in powers of two.
 *
 *   unit in shared memory:  K: 4 quarters of 4 rows, each quarter 32 bytes further than it need be; then V alike
 *       row r of the product is token 4 Q(r) + W(r) of the unit,  Q = (r/2 % 4) ^ (2 (r % 2)),  W = r % 2 + 2 (r / 8)
 *   A lane reads whole 16-byte pieces: which 16 columns of K form step k of the product does not matter as long as those of Q agree, and
 *   which 16 of V form a tile does not matter as long as o is written accordingly. With Q(r) and the 32 bytes, the 8 lanes
 *   that share a pass touch all 32 banks once, for K and for V. Pairs of tokens are put together by byte permutation. */
#ifndef MOA_CUDA_ATTN_DECODE_MMA_CUH
#define MOA_CUDA_ATTN_DECODE_MMA_CUH

#include "cuda/attn_decode.cuh"

static constexpr int UNIT_TOK = 16, UNITS_PAGE = MOA_PAGE_TOK / UNIT_TOK,
                     SINK_UNITS = MOA_SINK_TOK / UNIT_TOK;
static constexpr int MAX_GROUP = 8, MAX_STAGE = 8;
static constexpr int PART_STATE = 8;
static constexpr float REFERENCE = 15.0f; /* log2 of the weight of the largest score */
static constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
static constexpr unsigned ALL = 0xffffffffu;

/* sizes in bytes of a head size's unit */
template <int D> struct unit_layout {
    static constexpr int ROW = D * 2, QUARTER = 4 * ROW + 32, SIDE = 4 * QUARTER, UNIT = 2 * SIDE;
    static constexpr int STEPS = D / 16; /* products along d, and tiles of o */
};

struct mma_job {
    const float *q; /* (n_seq, n_head, d_head) */
    float *o;
    moa_kv<__half> kv;
    const int32_t *pos, *span;
    int64_t span_stride;
    int n_seq, n_head, n_head_kv, group, n_part, n_item; /* as v1's */
    int part_heads;                                      /* min(group, MAX_GROUP): rows of a slot */
    int n_stage;
    float scale;
    moa_probe probe;
    int *ticket;       /* (n_item) all 0 between launches */
    float *part_o;     /* (n_block + n_item, part_heads, d_head), unscaled sums */
    float *part_state; /* (n_block + n_item, part_heads, PART_STATE): m, l, t, sink, window, distance */
    float *lse;        /* (n_seq, n_head) or NULL */
    float4 *mass; /* (n_seq, n_head, max_pages * UNITS_PAGE) or NULL: what the histogram needs of a unit */
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
__device__ static inline void mma(float c[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                  unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ static inline unsigned transpose8(unsigned x) {
    unsigned y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
__device__ static inline unsigned bits_of(__half2 h) {
    unsigned x;
    memcpy(&x, &h, 4);
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
/* x = hi + lo, both halves, two at a time */
__device__ static inline void split2(float x, float y, unsigned *hi, unsigned *lo) {
    const __half2 h = __floats2half2_rn(x, y);
    const float2 f = __half22float2(h);
    *hi = bits_of(h);
    *lo = bits_of(__floats2half2_rn(x - f.x, y - f.y));
}

/* A barrier counts one phase a filling of its stage. Before sm_90 every lane's copies arrive for themselves. */
__device__ static inline void barrier_init(unsigned bar) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(bar) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    asm volatile("mbarrier.init.shared.b64 [%0], 32;" ::"r"(bar) : "memory");
#endif
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

/* The whole warp: K and V of the first n_row tokens of a unit into stage `to`; k_rows NULL: nothing, the phase passes at once. The
 * rows beyond keep what was there. V lies MOA_PAGE_TOK rows behind K. */
template <int D>
__device__ static void fill_stage(unsigned to, unsigned bar, const __half *k_rows, int n_row) {
    typedef unit_layout<D> t;
    const int lane = threadIdx.x % 32;
    if (!k_rows) n_row = 0;
#if __CUDA_ARCH__ >= 900
    if (lane == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar),
                     "r"(2 * n_row * t::ROW)
                     : "memory");
    __syncwarp();
    const int quarter = lane % 4, rows = min(n_row - quarter * 4, 4);
    if (lane < 8 && rows > 0) {
        const __half *from = k_rows + quarter * 4 * D + (lane / 4) * MOA_PAGE_TOK * D;
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                to + (unsigned)(lane / 4 * t::SIDE + quarter * t::QUARTER)),
            "l"(from), "r"(rows * t::ROW), "r"(bar)
            : "memory");
    }
#else
    constexpr int PIECES = D / 8; /* of a row */
    for (int e = lane; e < 2 * n_row * PIECES; e += 32) {
        const int side = e / (n_row * PIECES), row = e % (n_row * PIECES) / PIECES, piece = e % PIECES;
        const __half *from = k_rows + (side * MOA_PAGE_TOK + row) * D + piece * 8;
        asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                to + (unsigned)(side * t::SIDE + row / 4 * t::QUARTER + row % 4 * t::ROW + piece * 16)),
            "l"(from)
            : "memory");
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(bar) : "memory");
#endif
}

/* the token of a unit that row r of the product is, as its quarter and the row in it */
__device__ static inline int quarter_of(int r) {
    return (r >> 1 & 3) ^ (r & 1) * 2;
}
__device__ static inline int within_of(int r) {
    return (r & 1) + (r >> 3) * 2;
}

/* --- a warp's part of an item --------------------------------------------------------------------------- */

struct segment {
    int n, seq, head_kv, head, n_head; /* item, and its query heads head .. head + n_head - 1 */
    int pos, n_sink, gap, units;       /* of the item */
    int64_t line;                      /* units before the item */
    int from, count;                   /* this warp's units: from, from + WARPS, ... of the item */
    int window[2], narrowest;          /* of this lane's two heads; the least of the group */
    int page, next; /* table entries of 32 of this warp's units and of the following 32, a lane each */
};

/* the queries of a segment as the product wants them: row g of Q^T in lane (g, c); head g's factor brings a raw score to log2 units */
template <int D> struct queries {
    unsigned hi[unit_layout<D>::STEPS][2], lo[unit_layout<D>::STEPS][2];
    float factor[2]; /* of this lane's heads 2c, 2c + 1 */
};
template <int D> __device__ static void load_queries(const mma_job &j, const segment &s, queries<D> &q) {
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
    for (int i = 0; i < unit_layout<D>::STEPS; i++) {
        split2(x[4 * i] * up, x[4 * i + 1] * up, &q.hi[i][0], &q.lo[i][0]);
        split2(x[4 * i + 2] * up, x[4 * i + 3] * up, &q.hi[i][1], &q.lo[i][1]);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
        q.factor[i] = __shfl_sync(ALL, down, (c * 2 + i) * 4);
}

/* a warp's softmax state; of heads 2c and 2c + 1, l and st of this lane's tokens only */
template <int D, bool STATS> struct warp_state {
    float m[2], l[2];
    float o[unit_layout<D>::STEPS][4];
    moa_soft_stat st[STATS ? 2 : 1];
    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            m[i] = -INFINITY, l[i] = 0;
            if (STATS) st[i] = moa_soft_stat();
        }
#pragma unroll
        for (int i = 0; i < unit_layout<D>::STEPS; i++)
            o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0;
    }
    /* brings both heads to the references to[] */
    __device__ void move(const float to[2]) {
        float f[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            f[i] = m[i] == -INFINITY ? 0.0f : exp2_fast(m[i] - to[i]);
            if (STATS) stat_move(st[i], l[i], m[i], to[i], f[i]);
            l[i] *= f[i];
            m[i] = to[i];
        }
#pragma unroll
        for (int i = 0; i < unit_layout<D>::STEPS; i++) {
            o[i][0] *= f[0], o[i][2] *= f[0];
            o[i][1] *= f[1], o[i][3] *= f[1];
        }
    }
};

/* raw scores of a unit: out[0], [1]: row g, heads 2c and 2c + 1; [2], [3]: row g + 8 */
template <int D> __device__ static void score(unsigned k, const queries<D> &q, float out[4]) {
    typedef unit_layout<D> t;
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const unsigned row = k + (unsigned)(quarter_of(g) * t::QUARTER + within_of(g) * t::ROW);
    constexpr int MORE =
        D <= 128 ? 2 : 0; /* four chains, so that none waits for itself; two where registers are short */
    float s[2 + MORE][4] = {};
#pragma unroll
    for (int i = 0; i < D / 32; i++) {
        const uint4 a = shared16(row + (unsigned)(i * 64 + c * 16)),
                    b = shared16(row + (unsigned)(2 * t::ROW + i * 64 + c * 16));
        mma(s[0], a.x, b.x, a.y, b.y, q.hi[2 * i][0], q.hi[2 * i][1]);
        mma(s[1], a.x, b.x, a.y, b.y, q.lo[2 * i][0], q.lo[2 * i][1]);
        mma(s[MORE], a.z, b.z, a.w, b.w, q.hi[2 * i + 1][0], q.hi[2 * i + 1][1]);
        mma(s[MORE + 1], a.z, b.z, a.w, b.w, q.lo[2 * i + 1][0], q.lo[2 * i + 1][1]);
    }
    if (D % 32) {
        constexpr int LAST = D / 32 * 2;
        const uint2 a = shared8(row + (unsigned)(D / 32 * 64 + c * 8)),
                    b = shared8(row + (unsigned)(2 * t::ROW + D / 32 * 64 + c * 8));
        mma(s[0], a.x, b.x, a.y, b.y, q.hi[D % 32 ? LAST : 0][0], q.hi[D % 32 ? LAST : 0][1]);
        mma(s[1], a.x, b.x, a.y, b.y, q.lo[D % 32 ? LAST : 0][0], q.lo[D % 32 ? LAST : 0][1]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        out[e] = MORE ? (s[0][e] + s[MORE][e]) + (s[1][e] + s[MORE + 1][e]) : s[0][e] + s[1][e];
}

/* two tiles' worth of V registers become one tile of o: rows g and g + 8 of the tile are elements e and e + 1 */
__device__ static inline void tile(float o[4], unsigned v0, unsigned v1, unsigned v2, unsigned v3,
                                   const unsigned hi[2], const unsigned lo[2]) {
    const unsigned a0 = __byte_perm(v0, v1, 0x5410), a1 = __byte_perm(v0, v1, 0x7632),
                   a2 = __byte_perm(v2, v3, 0x5410), a3 = __byte_perm(v2, v3, 0x7632);
    mma(o, a0, a1, a2, a3, hi[0], hi[1]);
    mma(o, a0, a1, a2, a3, lo[0], lo[1]);
}

/* o += V^T P^T; p as scores lie */
template <int D> __device__ static void weigh(unsigned v, const float p[4], float o[][4]) {
    typedef unit_layout<D> t;
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    unsigned hi[2], lo[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        split2(p[2 * i], p[2 * i + 1], &hi[i], &lo[i]);
        hi[i] = transpose8(hi[i]);
        lo[i] = transpose8(lo[i]);
    }
    /* tokens of the product's columns 2c, 2c + 1, 2c + 8, 2c + 9 */
    const unsigned r0 = v + (unsigned)(c * t::QUARTER), r1 = v + (unsigned)((c ^ 2) * t::QUARTER + t::ROW),
                   r2 = r0 + 2 * t::ROW, r3 = r1 + 2 * t::ROW;
#pragma unroll
    for (int i = 0; i < D / 64; i++) {
        const unsigned at = (unsigned)(i * 128 + g * 16);
        const uint4 a = shared16(r0 + at), b = shared16(r1 + at), e = shared16(r2 + at),
                    f = shared16(r3 + at);
        tile(o[4 * i], a.x, b.x, e.x, f.x, hi, lo);
        tile(o[4 * i + 1], a.y, b.y, e.y, f.y, hi, lo);
        tile(o[4 * i + 2], a.z, b.z, e.z, f.z, hi, lo);
        tile(o[4 * i + 3], a.w, b.w, e.w, f.w, hi, lo);
    }
    constexpr int REST = D % 64 / 16, BASE = D / 64 * 4;
    if (REST == 1) {
        const unsigned at = (unsigned)(D / 64 * 128 + g * 4);
        tile(o[REST == 1 ? BASE : 0], shared4(r0 + at), shared4(r1 + at), shared4(r2 + at), shared4(r3 + at),
             hi, lo);
    } else if (REST == 2) {
        const unsigned at = (unsigned)(D / 64 * 128 + g * 8);
        const uint2 a = shared8(r0 + at), b = shared8(r1 + at), e = shared8(r2 + at), f = shared8(r3 + at);
        tile(o[REST == 2 ? BASE : 0], a.x, b.x, e.x, f.x, hi, lo);
        tile(o[REST == 2 ? BASE + 1 : 0], a.y, b.y, e.y, f.y, hi, lo);
    }
}
/* the first of the two elements that lane row g has in tile i of o */
template <int D> __device__ static inline int element_of(int i, int g) {
    constexpr int REST = D % 64 / 16;
    return i < D / 64 * 4 ? i / 4 * 64 + g * 8 + i % 4 * 2 : D / 64 * 64 + g * (2 * REST) + i % 4 * 2;
}

/* the rows of V after the newest were not filled: 0 * NaN is not 0 */
template <int D> __device__ static void clear_rows(unsigned v, int n_row) {
    typedef unit_layout<D> t;
    for (int e = (int)threadIdx.x % 32 + n_row * (D / 8); e < UNIT_TOK * (D / 8); e += 32) {
        const int row = e / (D / 8), piece = e % (D / 8);
        asm volatile("st.shared.v4.b32 [%0], {%1,%1,%1,%1};" ::"r"(
                         v + (unsigned)(row / 4 * t::QUARTER + row % 4 * t::ROW + piece * 16)),
                     "r"(0)
                     : "memory");
    }
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::
                     : "memory"); /* the stage is next written by a bulk copy */
#endif
    __syncwarp();
}

/* Distances of a unit lie in at most two bins of 64: mass_bin() and the next. {m, sums of e^(s-m) in the two} of each head. */
__device__ static inline int mass_bin(int pos, int unit) {
    return max(pos - unit * UNIT_TOK - (UNIT_TOK - 1), 0) / MOA_PAGE_TOK;
}
__device__ static void keep_mass(const mma_job &j, const segment &s, int unit, const float p[4],
                                 const int away[2], const float m[2]) {
    const int lane = threadIdx.x % 32, bin = mass_bin(s.pos, unit);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float x[2] = {};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const bool near = away[r] / MOA_PAGE_TOK <= bin; /* a key after the newest weighs nothing */
            x[0] += near ? p[2 * r + i] : 0.0f;
            x[1] += near ? 0.0f : p[2 * r + i];
        }
#pragma unroll
        for (int d = 4; d < 32; d *= 2) {
            x[0] += __shfl_xor_sync(ALL, x[0], d);
            x[1] += __shfl_xor_sync(ALL, x[1], d);
        }
        const int h = lane * 2 + i;
        if (lane < 4 && h < s.n_head)
            j.mass[((int64_t)s.seq * j.n_head + s.head + h) * (j.kv.max_pages * UNITS_PAGE) + unit] =
                make_float4(m[i], x[0], x[1], 0);
    }
}

/* One unit of shared memory for all heads, its K at `k` and its V at `v`; measure: windows of this lane's heads for the
 * statistics. */
template <int D, bool STATS>
__device__ static void attend_unit_at(const mma_job &j, warp_state<D, STATS> &u, const queries<D> &q,
                                      const segment &s, int unit, unsigned k, unsigned v, const int measure[2]) {
    const int g = (int)threadIdx.x % 32 / 4, key0 = unit * UNIT_TOK;
    if (key0 + UNIT_TOK - 1 > s.pos) clear_rows<D>(v, s.pos - key0 + 1);
    float p[4];
    score<D>(k, q, p);
    const bool sink = unit < SINK_UNITS,
               whole = key0 + UNIT_TOK - 1 <= s.pos && (sink || s.pos - key0 < s.narrowest);
    const int away[2] = {s.pos - key0 - (quarter_of(g) * 4 + within_of(g)),
                         s.pos - key0 -
                             (quarter_of(g) * 4 + within_of(g) + 2)}; /* distance of rows g, g + 8 */
    if (!whole) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int d = away[e / 2];
            if (d < 0 || (!sink && d >= s.window[e % 2])) p[e] = -INFINITY;
        }
    }
    float to[2];
    bool moves = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float top = fmaxf(p[i], p[2 + i]);
        top = fmaxf(top, __shfl_xor_sync(ALL, top, 4));
        top = fmaxf(top, __shfl_xor_sync(ALL, top, 8));
        top = fmaxf(top, __shfl_xor_sync(ALL, top, 16));
        to[i] = fmaxf(u.m[i], top * q.factor[i] - REFERENCE);
        moves |= to[i] > u.m[i];
    }
    if (__any_sync(ALL, moves)) u.move(to);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int i = e % 2;
        const float x = p[e] * q.factor[i] - (u.m[i] == -INFINITY ? 0.0f : u.m[i]);
        p[e] = exp2_fast(x);
        u.l[i] += p[e];
        if (STATS && p[e] > 0.0f) {
            u.st[i].t += p[e] * x;
            if (sink)
                u.st[i].sink += p[e];
            else if (away[e / 2] < measure[i])
                u.st[i].window += p[e];
            u.st[i].distance += p[e] * (float)away[e / 2];
        }
    }
    if (STATS && j.mass) keep_mass(j, s, unit, p, away, u.m);
    weigh<D>(v, p, u.o);
}
template <int D, bool STATS>
__device__ static void attend_unit(const mma_job &j, warp_state<D, STATS> &u, const queries<D> &q,
                                   const segment &s, int unit, unsigned stage, const int measure[2]) {
    attend_unit_at<D, STATS>(j, u, q, s, unit, stage, stage + unit_layout<D>::SIDE, measure);
}

/* o's of one head from sums relative to a reference; written by one thread a head */
__device__ static void write_state(const mma_job &j, const segment &s, int h, const float x[6]) {
    const int64_t at = (int64_t)s.seq * j.n_head + s.head + h;
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

/* adds state y to x, both in terms of to */
template <bool STATS> __device__ static void add_state(float x[6], const float y[6], float to) {
    const float f = y[0] == -INFINITY ? 0.0f : exp2_fast(y[0] - to);
    x[1] += f * y[1];
    if (!STATS || f == 0.0f) return;
    x[2] += f * (y[2] + y[1] * (y[0] - to));
#pragma unroll
    for (int i = 3; i < 6; i++)
        x[i] += f * y[i];
}

/* attention of a layer of a whole step; J: step_job or cluster_job */
template <typename J> __device__ static inline mma_job step_attention(const J &j, int layer) {
    mma_job m = {};
    const int64_t at = (int64_t)layer * j.n_head;
    m.kv = j.kv;
    m.n_seq = 1, m.n_head = j.n_head, m.n_head_kv = j.n_head_kv, m.group = j.group;
    m.scale = j.scale;
    if (j.probe.stat) m.probe.stat = j.probe.stat + at * MOA_N_STAT;
    if (j.lse) m.lse = j.lse + at;
    if (j.mass) m.mass = j.mass + at * (j.kv.max_pages * UNITS_PAGE);
    return m;
}

/* --- on the host ---------------------------------------------------------------------------------------- */

/* launches what sums j->mass into the histogram, if one is wanted */
moa_status moa_cuda_decode_hist(moa_cuda *c, const mma_job *j, moa_err *err);
/* Histograms of all layers from what the step left of each unit; J: step_job or cluster_job, one row. */
template <typename J> static moa_status step_histograms(moa_cuda *c, const J &j, moa_err *err) {
    for (int l = 0; l < j.n_layer && j.probe.hist; l++) {
        const int64_t at = (int64_t)l * j.n_head;
        mma_job m = {};
        m.kv = j.kv;
        m.kv.table += l * j.table_layer;
        m.pos = j.pos, m.span = j.span + at, m.span_stride = 0;
        m.n_seq = 1, m.n_head = j.n_head, m.n_head_kv = j.n_head_kv, m.group = j.group;
        m.probe = j.probe;
        m.probe.hist += (size_t)at * MOA_HIST_BUCKETS * (size_t)(1 + j.probe.n_bin);
        m.mass = j.mass + at * (j.kv.max_pages * UNITS_PAGE);
        m.lse = j.lse + at;
        MOA_RETURN(moa_cuda_decode_hist(c, &m, err));
    }
    return MOA_OK;
}

#endif
