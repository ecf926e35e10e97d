/* matmul_ring.cu -- y = x W^T for 2 to 64 rows of x, whose weights stream through a ring in shared memory. Compute capability 9.0.
 *
 *   block     one a multiprocessor: 8 or 16 warps multiply, two copy weights, one thread copies x. A tile is up to 128 outputs; so many that the
 *             tiles go evenly into the multiprocessors (14336 outputs: 128 tiles of 112). Where there are too few, a cluster of up to 8
 *             blocks shares a tile, each a part of n_in (ring_plan_of)
 *   ring      2 to 10 stages of 128 bytes a row (256 packed weights, 64 of 16 bits): codes, scales and x's part, a barrier for "full" and one
 *             for "empty" each. Weights depend on nobody: their copies begin while the kernels in front still run (launch.cuh), and go on
 *             while a tile is summed up and written; only the one thread that fetches x waits for them
 *
 *      stage    | 128 rows x 128 bytes (Q8_0: 2 planes) | high bits | scales | heads | x: [2][n_nt][4][32] 16 bytes |
 *               16-byte piece p of row r lies at p ^ 4 (r & 1): eight lanes that read four pieces of two rows meet 32 banks
 *
 *   warp      16 or 32 outputs, half of the stage's n_in; m16n8k16, W decoded in registers as A (fragment.cuh). Warps wait for stages,
 *             not for each other
 *   tile      the warps' sums are added in shared memory, those of a cluster are read from each other's, by each block for its
 *             share of the outputs: + bias, + y, or what fused_rows.cu wants of them. In a fixed order: the same bits each time
 *
 * Before it rows_v3 makes fragments of x: normalised if wanted, each row times a power of two, rounded once. NMSE as matmul_few.cu's.
 *
 *   version  idea (F16 14336 x 4096, 8 | 64 rows, and Q4_0 4096 x 14336, 8 rows; H100, us, with making x's fragments)
 *   few_v2   no ring: registers alone                                                                50.8 | 80.4     22.8
 *   (tried)  copies by all warps, a barrier of the block for each stage; parts of tiles meet in
 *            the workspace, whoever comes last adds them                                             52.9 | 74.1     33.0
 *   (cuBLAS) from 12 rows on, float16 alone                                                          47.1 | 49.1
 *   ring_v3  as above                                                                                43.7 | 52.7 29.1    <- best
 *   From 17 rows on cuBLAS is quicker with F16 matrices of few outputs (4096 x 4096, 32 rows: 17.5 against 22.9): moa_cuda_ring_best().
 *   measured 2026-11-24 with  test_ops_cuda --bench products  (docs/measurements/2026-11-24-h100-rows.md) */
#include <cstdlib>

#include <cuda_bf16.h>

#include "cuda/fragment.cuh"
#include "cuda/matmul_ring.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#pragma nv_diag_suppress 177 /* what only the kernel calls, which is empty then */
#endif

static constexpr int X_THREADS = 512, GROUPS = 2, COPIERS = 64, X_WARP = 32;
static constexpr int SHARED_MOST = 220 << 10, MOST_STAGES = 10, MOST_SPLIT = 8;

/* MT: 16ths of outputs a warp multiplies */
template <int MT> struct ring_warps {
    static constexpr int WARPS = 16 / MT, THREADS = 32 * WARPS, ALL = THREADS + COPIERS + X_WARP;
};

/* --- x ---------------------------------------------------------------------------------------------------- */

struct rows_job {
    ring_x x;
    uint4 *to;
    float *back;
    int n_kt, n_nt;
    bool coded;
    ring_heads heads; /* pos NULL: none */
};

__device__ static inline float4
fresh4(const float *p) { /* behind the wait, and not through the read-only path */
    float4 v;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
__device__ static inline void load8(const float *p, int at, int n, float v[8]) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
        const float4 f = at + 4 * k < n ? fresh4(p + at + 4 * k) : make_float4(0, 0, 0, 0);
        v[4 * k] = f.x, v[4 * k + 1] = f.y, v[4 * k + 2] = f.z, v[4 * k + 3] = f.w;
    }
}

/* cosines and sines of a row, and where its K and V go: its threads share them */
__device__ static inline void rows_heads(const ring_heads &h, int tok) {
    const int pos = h.pos[tok], seq = h.seq ? h.seq[tok] : 0;
    for (int i = threadIdx.x; i < h.half; i += X_THREADS) {
        double angle = (double)pos * h.scale * exp2(-(double)i / h.half * h.log2_theta);
        if (h.factors) angle /= (double)h.factors[i];
        const double turns = rint(angle * 0.15915494309189535);
        const float rest = (float)fma(-turns, 6.283185307179586, angle);
        sincosf(rest, &h.turn[(2 * tok + 1) * h.half + i], &h.turn[2 * tok * h.half + i]);
    }
    for (int i = threadIdx.x; i < h.n_head_kv; i += X_THREADS) {
        int32_t at = -1;
        if (pos >= 0 && pos / MOA_PAGE_TOK < h.kv.max_pages)
            at = h.kv.table[seq * h.kv.seq_stride + (int64_t)i * h.kv.max_pages + pos / MOA_PAGE_TOK];
        h.page[tok * h.n_head_kv + i] =
            at < 0 ? nullptr
                   : reinterpret_cast<uint8_t *>(h.kv.pool) +
                         (int64_t)at * (int64_t)moa_kv_page_bytes(h.kv_type, h.d_head) +
                         pos % MOA_PAGE_TOK * (int)moa_kv_row_bytes(h.kv_type, h.d_head);
    }
}

/* Where piece i of 8 values stands in a row, and where its fragment goes: neighbouring threads write neighbouring lanes. */
__device__ static inline int piece_at(const rows_job &j, int i) {
    const int kt = i / 16, c = i / 4 % 4, t = i % 4;
    return 128 * kt + (j.coded ? 32 * t + 8 * c : 32 * c + 8 * t);
}
__device__ static inline void piece_put(const rows_job &j, int i, uint4 four) {
    const int g = (int)blockIdx.x % 8, nt = (int)blockIdx.x / 8, kt = i / 16, c = i / 4 % 4, t = i % 4;
    j.to[(((int64_t)kt * j.n_nt + nt) * 4 + c) * 32 + 4 * g + t] = four;
}

/* grid: rows, padded to 8. V pieces a thread stay in registers; V 0: any number, read again each time */
template <int V>
__global__ static void __launch_bounds__(X_THREADS) rows_v3(const __grid_constant__ rows_job j) {
    __shared__ float sums[32];
    __shared__ uint32_t largest[32];
    constexpr int N = V ? V : 1;
    const int tok = (int)blockIdx.x, n_piece = j.n_kt * 16, n = j.x.n_in;
    const bool inside = tok < j.x.n_tok;
    const float *x = j.x.x + (int64_t)(inside ? tok : 0) * n;
    float v[N][8], w[N][8];
    moa_launch_go();
#pragma unroll
    for (int k = 0; V && k < V; k++)
        if (j.x.norm) load8(j.x.norm, piece_at(j, (int)threadIdx.x + k * X_THREADS), n, w[k]);
    moa_launch_wait();
    if (j.heads.pos && inside) rows_heads(j.heads, tok);
    float sum = 0, factor = 1;
    uint32_t most = 0;
    const int n_round = V ? V : (n_piece + X_THREADS - 1) / X_THREADS;
    /* what norm makes of piece k */
    auto normed = [&](int k) {
#pragma unroll
        for (int e = 0; j.x.norm && e < 8; e++)
            v[k][e] = v[k][e] * factor * w[k][e];
    };
    auto fetch = [&](int k, int r, bool norm) {
        const int at = piece_at(j, (int)threadIdx.x + r * X_THREADS);
        load8(x, at, inside ? n : 0, v[k]);
        if (!V && norm && j.x.norm) load8(j.x.norm, at, n, w[k]);
    };
    if (j.x.norm || V)
#pragma unroll
        for (int r = 0; r < n_round; r++) {
            const int k = V ? r : 0;
            fetch(k, r, false);
#pragma unroll
            for (int e = 0; e < 8; e++)
                sum += v[k][e] * v[k][e];
        }
    if (j.x.norm) factor = rsqrtf(block_sum(sum, sums) / (float)n + j.x.eps);
#pragma unroll
    for (int r = 0; r < n_round; r++) {
        const int k = V ? r : 0;
        if (!V) fetch(k, r, true);
        normed(k);
#pragma unroll
        for (int e = 0; e < 8; e++)
            most = max(most, magnitude(v[k][e]));
    }
    most = block_max_bits(inside ? most : 0u, largest);
    const float scale = fragment_x_scale(most);
#pragma unroll
    for (int r = 0; r < n_round; r++) {
        const int k = V ? r : 0, i = (int)threadIdx.x + r * X_THREADS;
        if (!V) {
            fetch(k, r, true);
            normed(k);
        }
        if (i < n_piece) piece_put(j, i, fragment_x(v[k], scale, j.coded));
    }
    if (threadIdx.x == 0) j.back[tok] = 1.0f / scale;
}

/* --- copies ----------------------------------------------------------------------------------------------- */

__device__ static inline uint32_t shared_at(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}
/* 16 or 4 bytes, or as many zeros */
__device__ static inline void ring_copy(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
__device__ static inline void ring_copy4(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(there ? 4 : 0)
                 : "memory");
}
/* barriers in shared memory */
__device__ static inline void barrier_init(uint32_t at, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}
__device__ static inline void barrier_arrive(uint32_t at) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(at) : "memory");
}
__device__ static inline void barrier_expect(uint32_t at, uint32_t bytes) { /* arrives too */
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
/* arrives when all copies of this thread have */
__device__ static inline void barrier_copied(uint32_t at) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(at) : "memory");
}
__device__ static inline void barrier_wait(uint32_t at, int parity) {
    asm volatile("{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, "
                 "[%0], %1;\n@p bra done;\nbra "
                 "again;\ndone:\n}" ::"r"(at),
                 "r"(parity)
                 : "memory");
}
__device__ static inline uint32_t of_peer(uint32_t at, int rank) {
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}
__device__ static inline void barrier_tell(uint32_t there) { /* of a peer */
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(there) : "memory");
}
__device__ static inline float4 peer4(uint32_t there) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(there)
                 : "memory");
    return v;
}
__device__ static inline void bulk_copy(uint32_t to, const void *from, uint32_t bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}
/* the multiplying warps alone */
template <int MT> __device__ static inline void sync_warps() {
    asm volatile("bar.sync 1, %0;" ::"n"(ring_warps<MT>::THREADS) : "memory");
}
__device__ static inline uint4 shared16(uint32_t at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}
__device__ static inline uint32_t shared4(uint32_t at) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}
__device__ static inline uint32_t shared2(uint32_t at) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at) : "memory");
    return v;
}

/* the row of its matrix that `line` of a tile is, -1: beyond the last; of RING_GATED the upper 64 are of a, the lower of b */
__device__ static inline int row_of(const ring_part &p, int tile, int line) {
    const int in = p.kind == RING_GATED ? line % (RING_LINES / 2) : line, row = tile * p.lines + in;
    return in < p.lines && row < p.n_out ? row : -1;
}
__device__ static inline float scale_of(const ring_part &p, int line) {
    return p.kind == RING_GATED && line >= RING_LINES / 2 ? p.b.scale : p.a.scale;
}

/* What a copying thread copies of each stage of a tile: a 16-byte piece of every 8th row, and of two rows what goes with the codes. The
 * upper and the lower half of a tile may be of two matrices. */
struct ring_aim {
    static constexpr int ROWS = COPIERS / 8, N = RING_LINES / ROWS;
    const uint8_t *low[2];                  /* of the thread's first row in either half */
    int64_t at[2];                          /* of the rows i0 and i0 + 64: their first unit */
    uint32_t row_bytes, plane, there, side; /* there: a bit for each of N; side: for each of 2 */
};
template <typename T>
__device__ static inline void aim_at(const ring_part &p, int tile, int i0, ring_aim &a) {
    constexpr int HALF = RING_LINES / 2;
    const bool gated = p.kind == RING_GATED;
    const uint8_t *const low[2] = {p.a.v.low, gated ? p.b.v.low : p.a.v.low};
    a.there = a.side = 0;
    a.plane = (uint32_t)p.a.v.n_unit * 16;
    a.row_bytes = a.plane * T::PLANES;
    for (int i = 0; i < ring_aim::N; i++)
        a.there |= (row_of(p, tile, i0 / 8 + ring_aim::ROWS * i) >= 0 ? 1u : 0u) << i;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int side = row_of(p, tile, i0 + h * HALF);
        a.low[h] = low[h] + (int64_t)max(row_of(p, tile, i0 / 8 + h * HALF), 0) * a.row_bytes + i0 % 8 * 16;
        a.at[h] = (int64_t)max(side, 0) * p.a.v.n_unit;
        a.side |= (side >= 0 ? 1u : 0u) << h;
    }
}
template <typename T>
__device__ static inline void copy_low(uint32_t stage, const ring_aim &a, int i0, int step) {
    const int line0 = i0 / 8, piece = i0 % 8 ^ (line0 & 1) << 2; /* rows 8 apart: as odd as the first */
    const uint32_t to = stage + (uint32_t)(line0 * 128 + piece * 16);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint8_t *from = a.low[h] + step * 128;
#pragma unroll
        for (int i = 0; i < ring_aim::N / 2; i++) {
            const int n = h * (ring_aim::N / 2) + i;
            const bool there = a.there >> n & 1;
#pragma unroll
            for (int q = 0; q < T::PLANES; q++)
                ring_copy(to + (uint32_t)((q * RING_LINES + n * ring_aim::ROWS) * 128), from + q * a.plane,
                          there);
            if (there) from += (uint64_t)ring_aim::ROWS * a.row_bytes;
        }
    }
}

/* --- weights: where they lie in a stage, how they become fragments ------------------------------------------ */

template <typename F> struct ring_packed {
    static constexpr int STEP = 256, PLANES = F::LOW; /* weights of a row a stage */
    static constexpr bool CODED = true;
    static constexpr int HIGH_AT = RING_LINES * 128 * F::LOW, SCALE_AT = HIGH_AT + RING_LINES * 8 * F::HIGH,
                         HEAD_AT = SCALE_AT + RING_LINES * 8 * F::SCALE,
                         W_BYTES = HEAD_AT + RING_LINES * (F::HEAD == 2 ? 4 : F::HEAD);
    static constexpr int X_WORDS = 256; /* 16-byte words of x an eight of rows */
    template <int MT> struct lane {
        packed_raw<F> r[MT][2];
        fragment_scale s[MT][2];
    };

    /* n bytes of each row, 16 at a time, a thread a row */
    template <int N> __device__ static inline void copy_side(uint32_t to, const uint8_t *from, bool there) {
#pragma unroll
        for (int i = 0; i < N / 16; i++)
            ring_copy(to + 16 * i, from + 16 * i, there);
    }
    __device__ static inline void copy(uint32_t stage, const ring_part &p, const ring_aim &a, int i0,
                                       int step) {
        copy_low<ring_packed>(stage, a, i0, step);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const bool second = h && p.kind == RING_GATED;
            const uint8_t *const high = second ? p.b.v.high : p.a.v.high,
                                 *const scale = second ? p.b.v.scale : p.a.v.scale,
                                 *const head = second ? p.b.v.head : p.a.v.head;
            const uint32_t line = (uint32_t)(i0 + h * (RING_LINES / 2));
            const int64_t at = a.at[h] + step * 8;
            const bool there = a.side >> h & 1;
            copy_side<8 * F::HIGH>(stage + HIGH_AT + line * 8 * F::HIGH, high + at * F::HIGH, there);
            copy_side<8 * F::SCALE>(stage + SCALE_AT + line * 8 * F::SCALE, scale + at * F::SCALE, there);
            if constexpr (F::HEAD == 16) ring_copy(stage + HEAD_AT + line * 16, head + at * 2, there);
            if constexpr (F::HEAD == 2) /* with its neighbour; the stream is padded */
                ring_copy4(stage + HEAD_AT + line * 4, head + (at / 8 & ~(int64_t)1) * 2, there);
        }
    }
    /* one thread: all of a stage's x, told to the barrier */
    __device__ static inline void copy_x(const ring_job &j, uint32_t to, int step, uint32_t barrier) {
        const uint32_t bytes = (uint32_t)j.n_nt * X_WORDS * 16;
        barrier_expect(barrier, bytes);
        bulk_copy(to, j.x + (int64_t)step * j.n_nt * X_WORDS, bytes, barrier);
    }

    __device__ static inline void load(uint32_t stage, int line, int u, int odd, packed_raw<F> &r) {
#pragma unroll
        for (int q = 0; q < F::LOW; q++)
            store4(r.q + 4 * q,
                   shared16(stage + (uint32_t)((q * RING_LINES + line) * 128 + (u ^ (line & 1) << 2) * 16)));
        if constexpr (F::HIGH == 4) r.h[0] = shared4(stage + (uint32_t)(HIGH_AT + (line * 8 + u) * 4));
        if constexpr (F::HIGH == 8) {
            r.h[0] = shared4(stage + (uint32_t)(HIGH_AT + (line * 8 + u) * 8));
            r.h[F::HIGH / 4 - 1] = shared4(stage + (uint32_t)(HIGH_AT + (line * 8 + u) * 8 + 4));
        }
        if constexpr (F::SCALE == 2) r.s[0] = shared2(stage + (uint32_t)(SCALE_AT + (line * 8 + u) * 2));
        if constexpr (F::SCALE == 4) r.s[0] = shared4(stage + (uint32_t)(SCALE_AT + (line * 8 + u) * 4));
        if constexpr (F::HEAD == 16) {
            uint32_t head[4];
            store4(head, shared16(stage + (uint32_t)(HEAD_AT + line * 16)));
#pragma unroll
            for (int i = 0; i < (int)(sizeof r.s / 4); i++)
                r.s[i] = head[i];
        }
        if constexpr (F::HEAD == 2) {
            const uint32_t two = shared4(stage + (uint32_t)(HEAD_AT + line * 4));
            r.s[sizeof r.s / 4 - 1] = odd ? two >> 16 : two & 0xffffu;
        }
    }
    /* line0: of the warp's 32 */
    template <int MT>
    __device__ static inline void begin(const ring_part &p, int tile, int step, uint32_t stage, int line0,
                                        int group, lane<MT> &l) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, u = 4 * group + t;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int line = line0 + 16 * m + 8 * k + g;
                int odd = 0;
                if constexpr (F::HEAD == 2) {
                    odd = ((max(row_of(p, tile, line), 0) & p.a.v.n_unit / 8) ^ step) & 1;
                }
                load(stage, line, u, odd, l.r[m][k]);
                l.s[m][k] = fragment_prepare<F>(l.r[m][k], u, scale_of(p, line));
            }
    }
    template <int MT>
    __device__ static inline void get(const lane<MT> &l, int m, int k, int i, uint32_t out[2]) {
        fragment_packed<F>(l.r[m][k], l.s[m][k], i, out);
    }
    static constexpr int C = 4; /* 16-byte words of x a lane and eight of rows: two instructions each */
    __device__ static inline uint32_t x_at(const ring_job &j, uint32_t x, int group, int n, int c) {
        return x + (uint32_t)((((group * j.n_nt + n) * 4 + c) * 32 + (int)threadIdx.x % 32) * 16);
    }
};

template <int ID> struct ring_plain {
    static constexpr int STEP = 64, PLANES = 1;
    static constexpr bool CODED = false;
    static constexpr int W_BYTES = RING_LINES * 128, X_WORDS = 64, C = 1;
    template <int MT> struct lane {
        uint32_t q[MT][2][4];
        float scale[MT][2];
    };
    __device__ static inline void copy(uint32_t stage, const ring_part &, const ring_aim &a, int i0,
                                       int step) {
        copy_low<ring_plain>(stage, a, i0, step);
    }
    __device__ static inline void copy_x(const ring_job &j, uint32_t to, int step, uint32_t barrier) {
        const uint4 *from = j.x + ((int64_t)(step / 2) * j.n_nt * 4 + step % 2 * 2) * 32;
        barrier_expect(barrier, (uint32_t)j.n_nt * X_WORDS * 16);
        for (int n = 0; n < j.n_nt; n++)
            bulk_copy(to + (uint32_t)(n * X_WORDS * 16), from + n * 128, X_WORDS * 16, barrier);
    }
    template <int MT>
    __device__ static inline void begin(const ring_part &p, int, int, uint32_t stage, int line0, int group,
                                        lane<MT> &l) {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, u = 4 * group + t;
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int line = line0 + 16 * m + 8 * k + g;
                store4(l.q[m][k], shared16(stage + (uint32_t)(line * 128 + (u ^ (line & 1) << 2) * 16)));
                if (ID != moa_f16_id) l.scale[m][k] = scale_of(p, line);
            }
    }
    template <int MT>
    __device__ static inline void get(const lane<MT> &l, int m, int k, int i, uint32_t out[2]) {
#pragma unroll
        for (int h = 0; h < 2; h++)
            out[h] = fragment_plain<ID>(l.q[m][k][2 * i + h], l.scale[m][k]);
    }
    __device__ static inline uint32_t x_at(const ring_job &, uint32_t x, int group, int n, int) {
        return x + (uint32_t)(((n * 2 + group) * 32 + (int)threadIdx.x % 32) * 16);
    }
};

/* --- a stage ------------------------------------------------------------------------------------------------ */

template <int NT> struct ring_sums { /* of a tile in shared memory: [line][rows + 4] */
    static constexpr int PITCH = 8 * NT + 4, BYTES = RING_LINES * PITCH * 4;
};
template <typename T, int NT> struct ring_shape {
    static constexpr int STAGE = T::W_BYTES + NT * T::X_WORDS * 16, BARRIERS = 256;
    static constexpr int FIT = (SHARED_MOST - BARRIERS - ring_sums<NT>::BYTES) / STAGE,
                         STAGES = FIT < MOST_STAGES ? FIT : MOST_STAGES;
    static constexpr int BYTES = STAGES * STAGE + ring_sums<NT>::BYTES + BARRIERS;
    static_assert(STAGES >= 2, "a ring of less than two stages");
};

__device__ static inline void ring_mma(float d[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* tile `all` of all: of a part */
struct ring_tile {
    int part, tile;
};
__device__ static inline ring_tile tile_of(const ring_job &j, int all) {
    int part = 0;
    while (part + 1 < j.n_part && all >= j.part[part].end)
        part++;
    return {part, part ? all - j.part[part - 1].end : all};
}
/* What a block does: of tiles first, first + by, .. the stages from step0 to step1, its share among the blocks of its cluster. */
struct ring_work {
    int first, by, rank, step0, step1;
};
__device__ static inline ring_work work_of(const ring_job &j) {
    const int cluster = (int)blockIdx.x / j.split, rank = (int)blockIdx.x % j.split;
    return {cluster, (int)gridDim.x / j.split, rank, j.n_step * rank / j.split,
            j.n_step * (rank + 1) / j.split};
}
/* a walk through the ring: slot, and whether the barrier's phase is odd */
struct ring_slot {
    int slot, odd;
};
template <int STAGES> __device__ static inline void slot_next(ring_slot &s) {
    if (++s.slot < STAGES) return;
    s.slot = 0;
    s.odd ^= 1;
}

template <typename T, int NT, int MT>
__device__ static inline void ring_use(const ring_job &j, const ring_tile &at, int step, uint32_t stage,
                                       float acc[MT][NT][4]) {
    const int warp = threadIdx.x / 32, group = warp % GROUPS, line0 = warp / GROUPS * 16 * MT;
    const ring_part &p = j.part[at.part];
    if ((p.kind == RING_GATED ? line0 % (RING_LINES / 2) : line0) >= p.lines)
        return; /* none of them is an output */
    typename T::template lane<MT> w;
    T::begin(p, at.tile, step, stage, line0, group, w);
#pragma unroll
    for (int c = 0; c < T::C; c++) {
        uint4 b[NT];
#pragma unroll
        for (int n = 0; n < NT; n++)
            if (n < j.n_nt) b[n] = shared16(T::x_at(j, stage + T::W_BYTES, group, n, c));
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int m = 0; m < MT; m++) {
                uint32_t top[2], bottom[2];
                T::get(w, m, 0, 2 * c + i, top);
                T::get(w, m, 1, 2 * c + i, bottom);
                const uint32_t a[4] = {top[0], bottom[0], top[1], bottom[1]};
#pragma unroll
                for (int n = 0; n < NT; n++)
                    if (n < j.n_nt) ring_mma(acc[m][n], a, i ? b[n].z : b[n].x, i ? b[n].w : b[n].y);
            }
    }
}

/* --- the end of a tile --------------------------------------------------------------------------------------- */

/* the two halves' sums into s */
template <int NT, int MT>
__device__ static inline void ring_gather(const ring_job &j, float acc[MT][NT][4], float *s) {
    const int warp = threadIdx.x / 32, line0 = warp / GROUPS * 16 * MT + (int)threadIdx.x % 32 / 4,
              t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        if (warp % GROUPS == k) {
#pragma unroll
            for (int m = 0; m < MT; m++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        if (n >= j.n_nt) continue;
                        float2 *to = reinterpret_cast<float2 *>(
                            s + (line0 + 16 * m + 8 * h) * ring_sums<NT>::PITCH + 8 * n + 2 * t);
                        float2 v = make_float2(acc[m][n][2 * h], acc[m][n][2 * h + 1]);
                        if (k) v.x += to->x, v.y += to->y;
                        *to = v;
                    }
        }
        sync_warps<MT>();
    }
}

/* Rows tok .. tok + 3 of what all blocks of the cluster have summed at `at`, in order of their ranks. */
__device__ static inline float4 tile_sum(const ring_job &j, uint32_t at) {
    float4 v[MOST_SPLIT], sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int r = 0; r < MOST_SPLIT; r++)
        if (r < j.split) v[r] = peer4(of_peer(at, r));
#pragma unroll
    for (int r = 0; r < MOST_SPLIT; r++)
        if (r < j.split) sum.x += v[r].x, sum.y += v[r].y, sum.z += v[r].z, sum.w += v[r].w;
    return sum;
}
/* without the scales of rows tok .. tok + 3 */
template <int P>
__device__ static inline float4 scaled(const ring_job &j, uint32_t sums, int line, int tok, float w) {
    const float4 v = tile_sum(j, sums + (uint32_t)((line * P + tok) * 4));
    const float4 back = *reinterpret_cast<const float4 *>(j.back + tok);
    return make_float4(v.x * (back.x * w), v.y * (back.y * w), v.z * (back.z * w), v.w * (back.w * w));
}
__device__ static inline float of4(float4 v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
/* as in elementwise.cu */
__device__ static inline float silu_times(float gate, float up) {
    const float h = expf(-0.5f * fabsf(gate)), rest = 1.0f + h * h;
    return gate < 0 ? gate * h / rest * (h * up) : gate / rest * up;
}

/* this block's share of n lines or pairs, each with all rows of x, four at a time */
struct ring_share {
    int first, n, items;
};
__device__ static inline ring_share share_of(const ring_job &j, int rank, int n) {
    const int each = (n + j.split - 1) / j.split, first = min(rank * each, n), mine = min(each, n - first);
    return {first, mine, mine * ((j.n_tok + 3) / 4)};
}

template <int P, int N>
__device__ static inline void write_plain(const ring_job &j, const ring_part &p, int tile, int rank,
                                          uint32_t sums) {
    const ring_share share = share_of(j, rank, p.lines);
    for (int i = threadIdx.x; i < share.items; i += N) {
        const int line = share.first + i % share.n, tok = i / share.n * 4, o = tile * p.lines + line;
        if (o >= p.n_out) continue;
        const float bias = p.bias ? p.bias[o] : 0.0f;
        const float4 v = scaled<P>(j, sums, line, tok, p.a.back);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (tok + k >= j.n_tok) break;
            float *y = p.y + (int64_t)(tok + k) * p.n_out + o;
            *y = of4(v, k) + bias + (j.accumulate ? *y : 0.0f);
        }
    }
}
template <int P, int N>
__device__ static inline void write_gated(const ring_job &j, const ring_part &p, int tile, int rank,
                                          uint32_t sums) {
    const ring_share share = share_of(j, rank, p.lines);
    for (int i = threadIdx.x; i < share.items; i += N) {
        const int line = share.first + i % share.n, tok = i / share.n * 4, o = tile * p.lines + line;
        if (o >= p.n_out) continue;
        const float4 gate = scaled<P>(j, sums, line, tok, p.a.back),
                     up = scaled<P>(j, sums, line + RING_LINES / 2, tok, p.b.back);
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (tok + k < j.n_tok)
                p.y[(int64_t)(tok + k) * p.n_out + o] = silu_times(of4(gate, k), of4(up, k));
    }
}

__device__ static inline void store_kv(const ring_heads &h, uint8_t *row, int i, float x) {
    if (h.kv_type == MOA_KV_F16)
        reinterpret_cast<__half *>(row)[i] = __float2half_rn(x);
    else if (h.kv_type == MOA_KV_BF16)
        reinterpret_cast<__nv_bfloat16 *>(row)[i] = __float2bfloat16_rn(x);
    else
        reinterpret_cast<float *>(row)[i] = x;
}
/* a and b of token tok, turned if they are to be; in: their numbers in the head */
__device__ static inline void write_pair(const ring_job &j, const ring_part &p, int tok, int head,
                                         const int in[2], int turn, float a, float b) {
    const ring_heads &h = j.heads;
    if (turn >= 0) {
        const float cosine = h.turn[2 * tok * h.half + turn], sine = h.turn[(2 * tok + 1) * h.half + turn],
                    a0 = a;
        a = a0 * cosine - b * sine;
        b = a0 * sine + b * cosine;
    }
    if (p.kind != RING_V) {
        float *y = p.y + (int64_t)tok * p.n_out + head * h.d_head;
        y[in[0]] = a, y[in[1]] = b;
    }
    if (p.kind == RING_Q) return;
    uint8_t *const row = h.page[tok * h.n_head_kv + head];
    if (!row) return;
    const int shift = p.kind == RING_V ? MOA_PAGE_TOK * h.d_head : 0;
    store_kv(h, row, shift + in[0], a);
    store_kv(h, row, shift + in[1], b);
}
/* whole heads a tile */
template <int P, int N>
__device__ static inline void write_heads(const ring_job &j, const ring_part &p, int tile, int rank,
                                          uint32_t sums) {
    const ring_heads &h = j.heads;
    const ring_share share = share_of(j, rank, p.lines / 2);
    for (int k = threadIdx.x; k < share.items; k += N) {
        const int pair = share.first + k % share.n, tok = k / share.n * 4, each = h.d_head / 2,
                  in_tile = pair / each, i = pair - in_tile * each,
                  first = tile * p.lines + in_tile * h.d_head, line = in_tile * h.d_head;
        if (first >= p.n_out) continue;
        const bool turns = p.kind != RING_V && i < h.half, apart = turns && !h.pairs;
        const int in[2] = {apart ? i : 2 * i, apart ? i + h.half : 2 * i + 1};
        const float bias[2] = {p.bias ? p.bias[first + in[0]] : 0.0f, p.bias ? p.bias[first + in[1]] : 0.0f};
        const float4 a = scaled<P>(j, sums, line + in[0], tok, p.a.back),
                     b = scaled<P>(j, sums, line + in[1], tok, p.a.back);
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (tok + e < j.n_tok)
                write_pair(j, p, tok + e, first / h.d_head, in, turns ? i : -1, of4(a, e) + bias[0],
                           of4(b, e) + bias[1]);
    }
}

/* --- the kernel ----------------------------------------------------------------------------------------------- */

/* in shared memory: stages | sums | barriers: full, empty of each stage; all sums are there; all have been read */
template <typename T, int NT> struct ring_memory {
    typedef ring_shape<T, NT> shape;
    uint32_t base;
    __device__ uint32_t stage(int i) const { return base + (uint32_t)(i * shape::STAGE); }
    __device__ uint32_t sums() const { return base + shape::STAGES * shape::STAGE; }
    __device__ uint32_t barrier(int i) const { return sums() + ring_sums<NT>::BYTES + (uint32_t)(8 * i); }
    __device__ uint32_t full(int i) const { return barrier(i); }
    __device__ uint32_t empty(int i) const { return barrier(MOST_STAGES + i); }
    __device__ uint32_t ready() const { return barrier(2 * MOST_STAGES); }
    __device__ uint32_t read() const { return barrier(2 * MOST_STAGES + 1); }
};
static_assert(8 * (2 * MOST_STAGES + 2) <= 256, "room for the barriers");

template <typename T, int NT>
__device__ static inline void ring_copying(const ring_job &j, const ring_memory<T, NT> &m, const ring_work &w,
                                           int i0) {
    constexpr int STAGES = ring_shape<T, NT>::STAGES;
    ring_slot at = {0, 1}; /* a wait for the phase before the first returns at once */
    for (int all = w.first; all < j.part[j.n_part - 1].end; all += w.by) {
        const ring_tile t = tile_of(j, all);
        ring_aim aim;
        aim_at<T>(j.part[t.part], t.tile, i0, aim);
        for (int step = w.step0; step < w.step1; step++) {
            barrier_wait(m.empty(at.slot), at.odd);
            T::copy(m.stage(at.slot), j.part[t.part], aim, i0, step);
            barrier_copied(m.full(at.slot));
            slot_next<STAGES>(at);
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}
template <typename T, int NT>
__device__ static inline void ring_copying_x(const ring_job &j, const ring_memory<T, NT> &m,
                                             const ring_work &w) {
    constexpr int STAGES = ring_shape<T, NT>::STAGES;
    ring_slot at = {0, 1};
    moa_launch_wait();
    for (int all = w.first; all < j.part[j.n_part - 1].end; all += w.by)
        for (int step = w.step0; step < w.step1; step++) {
            barrier_wait(m.empty(at.slot), at.odd);
            T::copy_x(j, m.stage(at.slot) + T::W_BYTES, step, m.full(at.slot));
            slot_next<STAGES>(at);
        }
}

/* a tile's sums meet, and are written; odd: of the barriers' phase */
template <typename T, int NT, int MT>
__device__ static inline void ring_finish(const ring_job &j, const ring_memory<T, NT> &m, const ring_tile &t,
                                          int rank, int odd, float acc[MT][NT][4], float *sums) {
    constexpr int P = ring_sums<NT>::PITCH, N = ring_warps<MT>::THREADS;
    const ring_part &p = j.part[t.part];
    if (j.split > 1) barrier_wait(m.read(), odd ^ 1);
    ring_gather<NT, MT>(j, acc, sums);
    if (j.split > 1) {
        if ((int)threadIdx.x < j.split) {
            asm volatile("fence.acq_rel.cluster;" ::: "memory");
            barrier_tell(of_peer(m.ready(), (int)threadIdx.x));
        }
        barrier_wait(m.ready(), odd);
    }
    if (p.kind == RING_PLAIN)
        write_plain<P, N>(j, p, t.tile, rank, m.sums());
    else if (p.kind == RING_GATED)
        write_gated<P, N>(j, p, t.tile, rank, m.sums());
    else
        write_heads<P, N>(j, p, t.tile, rank, m.sums());
    sync_warps<MT>();
    if (j.split > 1 && (int)threadIdx.x < j.split) barrier_tell(of_peer(m.read(), (int)threadIdx.x));
}

template <typename T, int NT, int MT>
__device__ static inline void ring_multiplying(const ring_job &j, const ring_memory<T, NT> &m,
                                               const ring_work &w, float *sums) {
    constexpr int STAGES = ring_shape<T, NT>::STAGES;
    ring_slot at = {0, 0};
    int odd = 0;
    moa_launch_wait();
    for (int all = w.first; all < j.part[j.n_part - 1].end; all += w.by, odd ^= 1) {
        const ring_tile t = tile_of(j, all);
        float acc[MT][NT][4] = {};
#pragma unroll 1
        for (int step = w.step0; step < w.step1; step++) {
            barrier_wait(m.full(at.slot), at.odd);
            ring_use<T, NT, MT>(j, t, step, m.stage(at.slot), acc);
            __syncwarp();
            if (threadIdx.x % 32 == 0) barrier_arrive(m.empty(at.slot));
            slot_next<STAGES>(at);
        }
        ring_finish<T, NT, MT>(j, m, t, w.rank, odd, acc, sums);
    }
    if (j.split > 1) barrier_wait(m.read(), odd ^ 1); /* peers may still read */
}

template <typename T, int NT, int MT>
__global__ static void __launch_bounds__(ring_warps<MT>::ALL, 1) ring_v3(const __grid_constant__ ring_job j) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ uint4 ring_shared[];
    typedef ring_shape<T, NT> shape;
    constexpr int N = ring_warps<MT>::THREADS;
    const ring_memory<T, NT> m = {shared_at(ring_shared)};
    const ring_work w = work_of(j);
    const int thread = (int)threadIdx.x;
    moa_launch_go();
    if (thread == 0) {
        for (int i = 0; i < shape::STAGES; i++) {
            barrier_init(m.full(i), COPIERS + 1);
            barrier_init(m.empty(i), ring_warps<MT>::WARPS);
        }
        barrier_init(m.ready(), j.split);
        barrier_init(m.read(), j.split);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (j.split > 1) asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
    if (thread >= N + X_WARP)
        ring_copying<T, NT>(j, m, w, thread - N - X_WARP);
    else if (thread == N)
        ring_copying_x<T, NT>(j, m, w);
    __syncwarp();
    if (j.split > 1)
        asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); /* the peers' barriers are there */
    if (thread < N)
        ring_multiplying<T, NT, MT>(
            j, m, w, reinterpret_cast<float *>(ring_shared + shape::STAGES * shape::STAGE / 16));
#endif
}

/* --- launching ------------------------------------------------------------------------------------------------- */

static moa_status rows_launch(moa_cuda *c, const rows_job &j, moa_err *err) {
    const int each = moa_ceil_div(j.n_kt * 16, X_THREADS);
    moa_launch how = {dim3((unsigned)j.n_nt * 8), dim3(X_THREADS), 0, 1, false, c->stream};
    MOA_CU(c, moa_launch_may_be_early(c->device, &how.early));
    MOA_CU(c, each <= 1   ? moa_launch_kernel(how, rows_v3<1>, j)
              : each <= 2 ? moa_launch_kernel(how, rows_v3<2>, j)
              : each <= 4 ? moa_launch_kernel(how, rows_v3<4>, j)
                          : moa_launch_kernel(how, rows_v3<0>, j));
    return MOA_OK;
}

/* Outputs a tile, and blocks that share one: bytes that the busiest block copies, with what the end of a tile costs in bytes. */
struct ring_plan {
    int lines, split, clusters;
    int64_t cost;
};
/* Codes are decoded as fast as 7/8 of a tile's rows come: a stage of fewer rows takes no less time. */
struct ring_stage {
    int w_bytes, x_bytes;
    bool coded;
};
static void ring_set_lines(ring_job &j, int lines) {
    for (int i = 0; i < j.n_part; i++) {
        ring_part &p = j.part[i];
        if (lines) p.lines = lines;
        p.end = (i ? j.part[i - 1].end : 0) + moa_ceil_div(p.n_out, p.lines);
    }
}
static void ring_try(ring_job &j, int lines, int split, int clusters, const ring_stage &b, ring_plan &best) {
    if (clusters < 1 || (split > 1 && j.n_step / split < 2)) return;
    ring_set_lines(j, lines);
    const int tall = lines ? (j.part[0].kind == RING_GATED ? 2 * lines : lines) : RING_LINES;
    const int64_t rounds = moa_ceil_div(j.part[j.n_part - 1].end, clusters),
                  stages = moa_ceil_div(j.n_step, split),
                  stage = (int64_t)b.w_bytes / RING_LINES *
                              (b.coded && tall < RING_LINES * 7 / 8 ? RING_LINES * 7 / 8 : tall) +
                          b.x_bytes / 2,
                  cost = rounds * (stages * stage + (split > 1 ? 36 << 10 : 12 << 10));
    if (best.cost == 0 || cost < best.cost) best = {lines, split, clusters, cost};
}
/* most[]: clusters of 1, 2, 4, 8 blocks that run at once */
static ring_plan ring_plan_of(ring_job &j, const int most[4], const ring_stage &b) {
    ring_plan best = {};
    const bool gated = j.part[0].kind == RING_GATED, free = gated || j.part[0].kind == RING_PLAIN;
    for (int i = 0; i < 4; i++)
        for (int lines = RING_LINES; lines >= (free ? RING_LINES / 2 : RING_LINES); lines -= 8)
            ring_try(j, !free ? 0 : gated ? lines / 2 : lines, 1 << i, most[i], b, best);
    ring_set_lines(j, best.lines);
    return best;
}

template <typename T, int NT, int MT>
static moa_status ring_launch_as(moa_cuda *c, ring_job &j, moa_err *err) {
    typedef ring_shape<T, NT> shape;
    int most[4] = {c->n_sm};
    moa_launch how = {dim3(1), dim3(ring_warps<MT>::ALL), shape::BYTES, 1, false, c->stream};
    MOA_CU(c, moa_allow_shared(ring_v3<T, NT, MT>, shape::BYTES));
    for (int i = 1; i < 4; i++) {
        cudaLaunchAttribute attributes[2];
        how.cluster = 1 << i, how.grid = dim3(1u << i);
        const cudaLaunchConfig_t config = moa_launch_config(how, attributes);
        MOA_CU(c, cudaOccupancyMaxActiveClusters(&most[i], ring_v3<T, NT, MT>, &config));
    }
    const ring_plan plan = ring_plan_of(j, most, {T::W_BYTES, j.n_nt * T::X_WORDS * 16, T::CODED});
    const int tiles = j.part[j.n_part - 1].end, clusters = tiles < plan.clusters ? tiles : plan.clusters;
    j.split = plan.split;
    how.cluster = plan.split, how.grid = dim3((unsigned)(clusters * plan.split));
    MOA_CU(c, moa_launch_may_be_early(c->device, &how.early));
    MOA_CU(c, moa_launch_kernel(how, ring_v3<T, NT, MT>, j));
    return MOA_OK;
}

/* workspace: | x | back | turn | page | */
struct ring_space {
    size_t back, turn, page, end;
};
static size_t pad256(size_t bytes) {
    return (bytes + 255) & ~(size_t)255;
}
static ring_space space_of(const ring_job &j) {
    ring_space s;
    const size_t rows = (size_t)j.n_nt * 8;
    s.back = pad256((size_t)moa_ceil_div(j.n_in, 128) * rows * 256);
    s.turn = s.back + pad256(rows * sizeof(float));
    s.page = s.turn + pad256(rows * 2 * (size_t)j.heads.half * sizeof(float));
    s.end = s.page + pad256(rows * (size_t)j.heads.n_head_kv * sizeof(void *));
    return s;
}

template <typename T> static moa_status ring_launch(moa_cuda *c, ring_job &j, moa_err *err) {
    j.n_step = j.n_in / T::STEP;
    if (j.n_nt == 1) return ring_launch_as<T, 1, 1>(c, j, err);
    if (j.n_nt == 2) return ring_launch_as<T, 2, 1>(c, j, err);
    if (j.n_nt <= 4) return ring_launch_as<T, 4, 1>(c, j, err);
    return ring_launch_as<T, 8, 2>(c, j, err);
}

static bool is_plain(moa_dtype type) {
    return type == MOA_F16 || type == MOA_BF16;
}

moa_status moa_cuda_ring_run(moa_cuda *c, const ring_x *x, moa_dtype type, ring_job *j, bool again,
                             moa_err *err) {
    const ring_space s = space_of(*j);
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, s.end, reinterpret_cast<void **>(&space), err));
    float *const back = reinterpret_cast<float *>(space + s.back);
    j->x = reinterpret_cast<const uint4 *>(space);
    j->back = back;
    j->heads.turn = reinterpret_cast<float *>(space + s.turn);
    j->heads.page = reinterpret_cast<uint8_t **>(space + s.page);
    if (!again) {
        const rows_job r = {*x,      reinterpret_cast<uint4 *>(space),
                            back,    moa_ceil_div(j->n_in, 128),
                            j->n_nt, !is_plain(type),
                            j->heads};
        MOA_RETURN(rows_launch(c, r, err));
    }
    switch ((int)type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: return ring_launch<ring_packed<packed_##stem>>(c, *j, err);
        MOA_PACKED_MAP(X)
#undef X
    case moa_f16_id: return ring_launch<ring_plain<moa_f16_id>>(c, *j, err);
    case moa_bf16_id: return ring_launch<ring_plain<moa_bf16_id>>(c, *j, err);
    default: return moa_fail(err, MOA_E_UNSUPPORTED, "weight type %d has no CUDA product", (int)type);
    }
}

/* --- for the callers --------------------------------------------------------------------------------------------- */

bool moa_cuda_ring_fits(const moa_cuda *c, const moa_dev_weight *w) {
    const char *word = getenv("MOASCOPE_CUDA_MATMUL");
    const bool wanted = c->matmul == 2 && !(word && strncmp(word, "v2", 2) == 0);
    const bool shape = is_plain(w->type) ? w->n_in % 64 == 0 : w->packed && w->n_in % 256 == 0;
    int major = 0;
    return wanted && shape &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device) == cudaSuccess &&
           major >= 9;
}

/* Where few outputs have to be shared among all multiprocessors other ways are quicker: cuBLAS, and registers alone. */
bool moa_cuda_ring_best(const moa_cuda *c, const moa_dev_weight *w, int n_tok) {
    const char *word = getenv("MOASCOPE_CUDA_MATMUL");
    const bool cublas = w->type == MOA_F16 && n_tok > 16 && w->n_out < 8192 && c->gemm == MOA_GEMM_F16,
               few = w->packed && w->n_out > 2048 && w->n_out < 8192;
    return (word && strncmp(word, "v3", 2) == 0) || !(cublas || few);
}

static ring_matrix matrix_of(const moa_dev_weight *w) {
    uint8_t *const data = static_cast<uint8_t *>(w->data);
    ring_matrix m = {{data, data, data, data, w->n_in / 8}, w->f16_scale, 1.0f / w->f16_scale};
    switch (w->packed ? (int)w->type : -1) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: (void)packed_place<packed_##stem>(data, w->n_out, w->n_in / 32, &m.v); break;
        MOA_PACKED_MAP(X)
#undef X
    default: break;
    }
    return m;
}

void moa_cuda_ring_begin(ring_job *j, const ring_x *x) {
    *j = {};
    j->n_tok = x->n_tok;
    j->n_nt = moa_ceil_div(x->n_tok, 8);
    j->n_in = x->n_in;
}

void moa_cuda_ring_add(ring_job *j, ring_kind kind, const moa_dev_weight *a, const moa_dev_weight *b,
                       const moa_dev_weight *bias, float *y) {
    ring_part *p = &j->part[j->n_part];
    const int d = j->heads.d_head;
    *p = {};
    p->a = matrix_of(a);
    p->b = b ? matrix_of(b) : p->a;
    p->bias = bias ? static_cast<const float *>(bias->data) : nullptr;
    p->y = y;
    p->n_out = a->n_out;
    p->kind = kind;
    p->lines = kind == RING_PLAIN ? RING_LINES : kind == RING_GATED ? RING_LINES / 2 : RING_LINES / d * d;
    j->n_part++;
}

moa_status moa_cuda_matmul_ring(moa_cuda *c, const moa_args_matmul *a, moa_err *err) {
    const ring_x x = {a->x, nullptr, 0, a->n_tok, a->w->n_in};
    ring_job j;
    moa_cuda_ring_begin(&j, &x);
    j.accumulate = a->accumulate;
    moa_cuda_ring_add(&j, RING_PLAIN, a->w, nullptr, a->bias, a->y);
    return moa_cuda_ring_run(c, &x, a->w->type, &j, false, err);
}
