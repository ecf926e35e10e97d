/* attn_full_wgmma.cu -- attention of a whole sequence, its gradients and the influence of its keys, for Hopper GPUs alone: nothing of
 * n_tok x n_tok is ever in memory, not even a panel.
 *
 *   prepare     q, k, v, d_o become halves in tiles of 64 tokens, as a KV cache's pages; delta = o . d_o of each row
 *   forward     attn_prefill_wgmma.cu over those pages, with its log-sum-exp
 *   queries     a warpgroup keeps 64 queries (Q, dO) and walks the keys        S = Q K^T, G = dO V^T, A = e^(S - lse)
 *                 gradients   dS = A (G - delta)                               dQ += dS K
 *                 influence   E, |E| of the tile; mass and gain A (G - delta) of each row; the windows outward from the diagonal; and
 *                             dQ, which costs it a product more and spares the backward pass right after it three
 *   keys        a warpgroup keeps 64 keys (K, V) and walks the queries         S^T = K Q^T, G^T = V dO^T
 *                                                                              dV += A^T dO, dK += dS^T Q
 *
 *   order of the keys       the last block | 0 (the sink) | the one before the last | ... | 1      so that each step is the next window;
 *                           the warpgroup whose rows end a block earlier leaves the first step out
 *   block of the GPU        two warpgroups that compute, 64 rows each, and one thread that loads: tiles of 64 x d_head by tensor map
 *
 * Under spans the walks are the same. Where a tile is not seen whole, each of its keys is looked at: unseen ones have A = 0 and, for the
 * windows alone, an A of their own.
 *
 * While the exponentials are made, G is on its way; while dS is, dV. What is multiplied last is already a left operand in registers: S and G come out in the layout in which dS and A go in. Nothing
 * passes through shared memory but the tiles.
 *
 * Precision. Sums are float32. q and d_o are rounded to halves under one power of two for all of them, the one that brings the longest
 * row to 2^10 and 2^6: what is 2^-20 of the largest keeps 11 bits. K and V are rounded as a cache of halves has them. A goes into dV
 * times 2^14, dS times the power of two that keeps it below 2^15 by the Cauchy-Schwarz bound |G| <= |d_o| |v|. delta is made of the
 * rounded d_o, so that it cancels against G. An entry above 1/2 (at most one a row) is left out of E and comes back in the form that
 * does not cancel, from the row's other keys; windows are changes against the sum over all keys of the same products.
 * Everything in a fixed order: the same bits every time.
 *
 *   version   idea                                          H100, ms a layer of 8k tokens: attention; gradients and influence
 *   v1        panels by cuBLAS, float32 or tf32             attn_full.cu
 *   v2        this                                          32/32 heads of 128: 1.2; 5.0        9/3 heads of 64: 0.20; 0.94
 *   measured 2026-11-24 with  moascope bench --what profile  (docs/measurements/2026-11-24-h100-profile.md)             */
#include <limits.h>

#include "cuda/attn_full.cuh"
#include "cuda/wgmma.cuh"

enum { BLOCK = MOA_PAGE_TOK, PAIR = 2 }; /* PAIR: tiles of a page: K and V, or Q and dO */
enum { MAX_Q, MAX_DO, MAX_V, N_MAX };
static constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;
static constexpr float NOTHING = 1e30f; /* lse of a row that is not there: makes every A 0 */
static constexpr int Q_POWER = 10, DO_POWER = 6, A_POWER = 14, DS_POWER = 14;
static constexpr int NEVER = -1; /* a tile outside the tensor: zero */

/* --- what the operations prepare, in the workspace --------------------------------------------------------- */

struct operands {
    moa_full in;
    int nb, group;
    __half *kv;    /* (n_head_kv, nb, 2, 64, d_head): K and V of 64 tokens, zero beyond the last */
    __half *qg;    /* (n_head, nb, 2, 64, d_head): Q scale log2(e) and dO */
    float2 *row;   /* (n_head, nb * 64): log2 of the sum of 2^score, delta in units of the rounded dO */
    uint32_t *max; /* (N_MAX): bits of the longest row's norm */
    int32_t *table, *span; /* (n_head_kv, nb), (n_head): the forward pass's */
    float *lse2;           /* (n_tok, n_head) */
    float *dq; /* (n_tok, n_head, d_head): the influence's by-product, for the backward pass that follows */
    float *dk, *dv; /* (n_tok, n_head, d_head): of each query head where several share keys */
    float2 *e;      /* (n_head, nb, nb, 4): E and |E| of a tile by warp */
    float *curve;   /* (n_head, nb, nb + 1, 4): of each window, sums over a warp's 16 rows */
    float *whole;   /* (n_head, nb, 4): the same of the keys seen */
    float *wide;    /* (n_head, nb, 4): under spans, what all keys would change of that */
    float2 *
        peak; /* (n_head, nb * 64): E of the row's entry above 1/2, and the bits of its block of keys, -1: none */
};

static char *take(char *base, size_t *used, size_t bytes) {
    char *at = base ? base + *used : nullptr;
    *used += (bytes + 1023) & ~(size_t)1023;
    return at;
}
template <typename T> static void take_of(T *&to, char *base, size_t *used, size_t n) {
    to = reinterpret_cast<T *>(take(base, used, n * sizeof(T)));
}

enum purpose { FORWARD, BACKWARD };

/* the backward pass and the influence lay out the same, so that one finds what the other has made */
static size_t lay(operands &o, purpose what, char *base) {
    const size_t heads = (size_t)o.in.n_head, kv = (size_t)o.in.n_head_kv, nb = (size_t)o.nb,
                 d = (size_t)o.in.d_head;
    const size_t page = 2 * BLOCK * d, n_q = (size_t)o.in.n_tok * heads;
    size_t used = 0;
    take_of(o.max, base, &used, N_MAX);
    take_of(o.kv, base, &used, kv * nb * page);
    if (what == FORWARD) {
        take_of(o.table, base, &used, kv * nb);
        take_of(o.span, base, &used, heads);
        take_of(o.lse2, base, &used, n_q);
        return used;
    }
    take_of(o.qg, base, &used, heads * nb * page);
    take_of(o.row, base, &used, heads * nb * BLOCK);
    take_of(o.peak, base, &used, heads * nb * BLOCK);
    take_of(o.whole, base, &used, heads * nb * 4);
    take_of(o.wide, base, &used, heads * nb * 4);
    take_of(o.dq, base, &used, n_q * d);
    size_t gradients = used, influence = used; /* never there at the same time */
    take_of(o.dk, base, &gradients, o.group > 1 ? n_q * d : 0);
    take_of(o.dv, base, &gradients, o.group > 1 ? n_q * d : 0);
    take_of(o.e, base, &influence, heads * nb * nb * 4);
    take_of(o.curve, base, &influence, heads * nb * (nb + 1) * 4);
    return gradients > influence ? gradients : influence;
}

static moa_status open_operands(moa_cuda *c, const moa_full &in, purpose what, operands &o, moa_err *err) {
    void *base = nullptr;
    o = operands();
    o.in = in;
    o.nb = (in.n_tok - 1) / BLOCK + 1;
    o.group = in.n_head / in.n_head_kv;
    MOA_RETURN(moa_cuda_scratch(c, lay(o, what, nullptr), &base, err));
    (void)lay(o, what, static_cast<char *>(base));
    return MOA_OK;
}

/* --- preparing --------------------------------------------------------------------------------------------- */

/* the power of two that brings a norm (its bits) into [2^to, 2^(to + 1)); 1 of 0, infinity and NaN */
__device__ static inline float power_to(uint32_t bits, int to) {
    if (bits == 0 || bits >= 0x7f800000u) return 1.0f;
    const int e = max(-120, min(to + 127 - (int)(bits >> 23), 120));
    return __int_as_float((e + 127) << 23);
}
__device__ static inline uint2 round4(float4 x, float f) {
    return make_uint2(pack_halves(x.x * f, x.y * f), pack_halves(x.z * f, x.w * f));
}

struct arrays {
    const float *x[N_MAX]; /* (n_row, d) */
    int64_t n_row[N_MAX];
};
/* the longest row of each array: LANES lanes a row, a float4 each. grid: (any, N_MAX) */
template <int LANES> __global__ static void __launch_bounds__(256) norms_v2(arrays all, uint32_t *max_bits) {
    __shared__ float s[8];
    const float *__restrict__ x = all.x[blockIdx.y];
    const int64_t n_row = all.n_row[blockIdx.y];
    const int lane = threadIdx.x % 32, sub = threadIdx.x % LANES;
    const int64_t step = (int64_t)gridDim.x * (256 / LANES);
    float top = 0;
    /* all lanes of a warp go round as often: the last rows are read twice rather than not */
    for (int64_t at = (int64_t)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
         at - threadIdx.x / LANES < n_row; at += step) {
        const int64_t row = at < n_row ? at : n_row - 1;
        const float4 v = *reinterpret_cast<const float4 *>(x + row * LANES * 4 + sub * 4);
        const float square = group_sum<LANES>(v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w);
        top = square > top || isnan(square) ? square : top;
    }
    top = group_max<32>(top);
    if (lane == 0) s[threadIdx.x / 32] = top;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < 8; w++)
        top = fmaxf(top, s[w]);
    atomicMax(max_bits + blockIdx.y, __float_as_uint(sqrtf(top)));
}

/* k and v to pages; a thread 4 elements. And, where they are wanted, the page table and the spans. grid: (elements of a page, nb, n_head_kv) */
__global__ static void __launch_bounds__(256) pages_v2(operands o) {
    if (o.table && blockIdx.x == 0 && threadIdx.x == 0)
        o.table[blockIdx.z * o.nb + blockIdx.y] = (int)blockIdx.z * o.nb + (int)blockIdx.y;
    if (o.table && blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0)
        for (int h = threadIdx.x; h < o.in.n_head; h += 256)
            o.span[h] = o.in.span ? o.in.span[h] : INT_MAX / 4;
    const int d = o.in.d_head, e = ((int)blockIdx.x * 256 + (int)threadIdx.x) * 4, tile = BLOCK * d;
    if (e >= 2 * tile) return;
    const int is_v = e / tile, r = e % tile / d, column = e % d, tok = (int)blockIdx.y * BLOCK + r;
    const float *from = (is_v ? o.in.v : o.in.k) + ((int64_t)tok * o.in.n_head_kv + blockIdx.z) * d + column;
    const float4 x = tok < o.in.n_tok ? *reinterpret_cast<const float4 *>(from) : make_float4(0, 0, 0, 0);
    __half *to = o.kv + ((int64_t)blockIdx.z * o.nb + blockIdx.y) * 2 * tile + e;
    *reinterpret_cast<uint2 *>(to) = round4(x, 1.0f);
}

/* q and d_o to pages, and what a row has of its own. LANES lanes a row; grid: (rows of nb * 64, n_head) */
template <int LANES>
__global__ static void __launch_bounds__(256)
    rows_v2(operands o, const float *__restrict__ out, const float *__restrict__ lse,
            const float *__restrict__ d_o) {
    constexpr int D = LANES * 4;
    const int i = (int)blockIdx.x * (256 / LANES) + (int)threadIdx.x / LANES, h = blockIdx.y,
              sub = threadIdx.x % LANES;
    const bool inside = i < o.in.n_tok;
    const int64_t row = (int64_t)i * o.in.n_head + h, at = row * D + sub * 4;
    const float up_q = power_to(o.max[MAX_Q], Q_POWER), up_d = power_to(o.max[MAX_DO], DO_POWER);
    float4 q = make_float4(0, 0, 0, 0), g = q, y = q;
    if (inside) {
        q = *reinterpret_cast<const float4 *>(o.in.q + at);
        g = *reinterpret_cast<const float4 *>(d_o + at);
        y = *reinterpret_cast<const float4 *>(out + at);
    }
    const float s = o.in.scale * LOG2E;
    q.x *= s, q.y *= s, q.z *= s, q.w *= s;
    const uint2 qh = round4(q, up_q), gh = round4(g, up_d);
    const float2 a = unpack_halves(gh.x), b = unpack_halves(gh.y);
    const float delta = group_sum<LANES>(a.x * y.x + a.y * y.y + b.x * y.z + b.y * y.w);
    __half *to = o.qg + (((int64_t)h * o.nb + i / BLOCK) * 2 * BLOCK + i % BLOCK) * D + sub * 4;
    *reinterpret_cast<uint2 *>(to) = qh;
    *reinterpret_cast<uint2 *>(to + BLOCK * D) = gh;
    if (sub == 0)
        o.row[(int64_t)h * o.nb * BLOCK + i] =
            inside ? make_float2(lse[row] * LOG2E, delta) : make_float2(NOTHING, 0);
}

__global__ static void natural_v2(const float *__restrict__ lse2, float *__restrict__ lse, int64_t n) {
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at < n) lse[at] = lse2[at] * LN2;
}

static moa_status make_pages(moa_cuda *c, const operands &o, moa_err *err) {
    const dim3 grid((unsigned)moa_ceil_div(2 * BLOCK * o.in.d_head, 1024), (unsigned)o.nb,
                    (unsigned)o.in.n_head_kv);
    pages_v2<<<grid, 256, 0, c->stream>>>(o);
    MOA_LAUNCHED(c, "keys and values of a sequence to pages");
    return MOA_OK;
}

static moa_status longest(moa_cuda *c, const operands &o, const arrays &all, moa_err *err) {
    const dim3 grid((unsigned)(c->n_sm * 4), N_MAX);
    MOA_CU(c, cudaMemsetAsync(o.max, 0, N_MAX * sizeof *o.max, c->stream));
    if (o.in.d_head == 64)
        norms_v2<16><<<grid, 256, 0, c->stream>>>(all, o.max);
    else
        norms_v2<32><<<grid, 256, 0, c->stream>>>(all, o.max);
    MOA_LAUNCHED(c, "the longest rows");
    return MOA_OK;
}

struct forward_made {
    const float *o, *lse, *d_o;
};
static moa_status prepare(moa_cuda *c, const operands &o, const forward_made &f, moa_err *err) {
    const int64_t n_q = (int64_t)o.in.n_tok * o.in.n_head, n_kv = (int64_t)o.in.n_tok * o.in.n_head_kv;
    arrays all = {};
    all.x[MAX_Q] = o.in.q, all.x[MAX_DO] = f.d_o, all.x[MAX_V] = o.in.v;
    all.n_row[MAX_Q] = all.n_row[MAX_DO] = n_q, all.n_row[MAX_V] = n_kv;
    MOA_RETURN(longest(c, o, all, err));
    MOA_RETURN(make_pages(c, o, err));
    const int lanes = o.in.d_head / 4;
    const dim3 grid((unsigned)(o.nb * BLOCK * lanes / 256), (unsigned)o.in.n_head);
    if (lanes == 16)
        rows_v2<16><<<grid, 256, 0, c->stream>>>(o, f.o, f.lse, f.d_o);
    else
        rows_v2<32><<<grid, 256, 0, c->stream>>>(o, f.o, f.lse, f.d_o);
    MOA_LAUNCHED(c, "queries and gradients of a sequence to pages");
    return MOA_OK;
}

/* --- the kernels' common part ------------------------------------------------------------------------------ */

struct full_job {
    CUtensorMap kv, qg; /* (pages * 2, 64, d_head) */
    operands o;
    float *dq, *dk, *dv; /* (n_tok, n_head, d_head), or NULL */
    bool map;            /* queries: the influence is wanted */
    int32_t *clamped;
};

/* D: head size. Shared memory: the rows that stay (two tiles a warpgroup), then the stages (two tiles each), then their rows' numbers. */
template <int D_> struct full_tile {
    static constexpr int D = D_, WG = 2, STAGES = D == 64 ? 4 : 3;
    static constexpr int BM = BLOCK * WG, THREADS = 128 * (WG + 1), PANELS = D / WG_TILE_COLUMNS;
    static constexpr int PANEL = BLOCK * WG_TILE_ROW, TILE = PANELS * PANEL, STAGE = PAIR * TILE;
    static constexpr int STAGES_AT = WG * PAIR * TILE, ROWS_AT = STAGES_AT + STAGES * STAGE,
                         ROWS = BLOCK * (int)sizeof(float2);
    static constexpr size_t bytes() {
        return ROWS_AT + STAGES * ROWS + 1024;
    }                                          /* to begin at a multiple of 1024 */
    static constexpr int FEW = 24, MANY = 240; /* of 168 as launched */
};

template <class T> struct letters { uint64_t full[T::STAGES], unused[T::STAGES], stays; };

/* a GPU block's work. KEYS: rows are keys */
struct full_work {
    int head, head_kv, tile; /* tile: of 128 rows */
    int last;                /* queries: the last block of keys that one of the two warpgroups sees */
    int n_step;
};
template <class T, bool KEYS> __device__ static inline full_work work_of(const operands &o) {
    full_work w;
    const int n_tile = (o.nb + T::WG - 1) / T::WG, rank = (int)blockIdx.x / o.in.n_head;
    w.head = (int)blockIdx.x % o.in.n_head;
    w.head_kv = w.head / o.group;
    w.tile = KEYS ? rank : n_tile - 1 - rank; /* the longest first */
    w.last = min(w.tile * T::WG + T::WG, o.nb) - 1;
    w.n_step = KEYS ? o.nb - w.tile * T::WG : w.last + 1;
    return w;
}
/* the block that a step walks */
template <class T, bool KEYS> __device__ static inline int block_of(const full_work &w, int step) {
    if (KEYS) return w.tile * T::WG + step;
    return step == 0 ? w.last : step == 1 ? 0 : w.last - step + 1;
}

__device__ static inline void copy_bytes(uint32_t to, const void *from, int bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}
/* the two tiles of a page */
template <class T>
__device__ static inline void load_page(const CUtensorMap *map, int page, uint32_t to, uint32_t barrier) {
#pragma unroll
    for (int k = 0; k < PAIR; k++)
#pragma unroll
        for (int panel = 0; panel < T::PANELS; panel++)
            copy_box(to + k * T::TILE + panel * T::PANEL, map, panel * WG_TILE_COLUMNS, 0,
                     page < 0 ? NEVER : PAIR * page + k, barrier);
}

/* one thread */
template <class T, bool KEYS>
__device__ static inline void load_all(const full_job &j, const full_work &w, letters<T> *box,
                                       uint32_t base) {
    const CUtensorMap *stays = KEYS ? &j.kv : &j.qg, *walks = KEYS ? &j.qg : &j.kv;
    const int head_stays = KEYS ? w.head_kv : w.head, head_walks = KEYS ? w.head : w.head_kv, nb = j.o.nb;
    const uint32_t here = shared_address(&box->stays);
    barrier_expect(here, T::WG * PAIR * T::TILE);
    for (int wg = 0; wg < T::WG; wg++) {
        const int block = w.tile * T::WG + wg;
        load_page<T>(stays, block < nb ? head_stays * nb + block : NEVER, base + wg * PAIR * T::TILE, here);
    }
    for (int step = 0; step < w.n_step; step++) {
        const int stage = step % T::STAGES, round = step / T::STAGES, block = block_of<T, KEYS>(w, step);
        const uint32_t full = shared_address(&box->full[stage]);
        if (round > 0) barrier_wait(shared_address(&box->unused[stage]), (round - 1) & 1);
        barrier_expect(full, T::STAGE + (KEYS ? T::ROWS : 0));
        load_page<T>(walks, head_walks * nb + block, base + T::STAGES_AT + stage * T::STAGE, full);
        if (KEYS)
            copy_bytes(base + T::ROWS_AT + stage * T::ROWS, j.o.row + ((int64_t)w.head * nb + block) * BLOCK,
                       T::ROWS, full);
    }
}

/* c (64 x 64) = a b^T, or += with `add`; a (64 x 16) and b (64 x 16) in shared memory */
__device__ static inline void product_64(float (&c)[32], uint64_t a, uint64_t b, int add) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
                 "%25,%26,%27,%28,%29,"
                 "%30,%31}, %32, %33, p, 1, 1, 0, 0;\n}\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]),
                   "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]),
                   "+f"(c[14]), "+f"(c[15]), "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]),
                   "+f"(c[21]), "+f"(c[22]), "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]),
                   "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
                 : "l"(a), "l"(b), "r"(add));
}

/* issues X Y^T, tiles of 64 rows; the caller commits */
template <class T> __device__ static inline void issue_product(float (&s)[32], uint64_t x, uint64_t y) {
    wgmma_hold(s);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < T::D / 16; kk++) {
        const int at = kk / 4 * T::PANEL + kk % 4 * 32;
        product_64(s, wgmma_ahead(x, at), wgmma_ahead(y, at), kk > 0);
    }
}
/* issues sum += a Y: a in registers (64 x 64), Y a tile; the caller commits */
template <class T>
__device__ static inline void issue_sum(float (&sum)[T::D / 2], uint32_t (&a)[16], uint64_t y) {
    wgmma_hold(sum);
    wgmma_hold(a);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < BLOCK / 16; kk++)
        wgmma_registers(sum, a + kk * 4, wgmma_ahead(y, kk * 2 * WG_TILE_GROUP), 1);
}
__device__ static inline void pack(const float (&x)[32], uint32_t (&to)[16]) {
#pragma unroll
    for (int i = 0; i < 16; i++)
        to[i] = pack_halves(x[2 * i], x[2 * i + 1]);
}

/* what takes sums back to their units */
struct units {
    float score, grad,
        ds; /* scores from Q K^T; gradients from those of the rounded dO; what dS is multiplied with */
};
__device__ static inline units units_of(const operands &o) {
    units u;
    u.score = 1.0f / power_to(o.max[MAX_Q], Q_POWER);
    u.grad = 1.0f / power_to(o.max[MAX_DO], DO_POWER);
    /* |G - delta| <= 2 |d_o| |v| < 2 2^(DO_POWER + 1) |v| */
    u.ds = power_to(o.max[MAX_V], DS_POWER - DO_POWER - 3);
    return u;
}

/* 64 rows of a sum to (n_tok, n_head, D) */
template <class T>
__device__ static inline void write_rows(float *to, const operands &o, int head, int row0,
                                         const float (&sum)[T::D / 2], float factor) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int row = row0 + h * 8;
        if (row >= o.in.n_tok) continue;
        float *at = to + ((int64_t)row * o.in.n_head + head) * T::D + column;
#pragma unroll
        for (int c = 0; c < T::D / 8; c++)
            *reinterpret_cast<float2 *>(at + c * 8) =
                make_float2(sum[4 * c + 2 * h] * factor, sum[4 * c + 2 * h + 1] * factor);
    }
}

/* opens the barriers, starts the loading thread; the warpgroup of this thread, -1: it does not compute */
template <class T, bool KEYS>
__device__ static inline int start(const full_job &j, const full_work &w, letters<T> *box, uint32_t base) {
    const int wg = (int)threadIdx.x / 128 - 1;
    if (threadIdx.x == 0) {
        barrier_open(shared_address(&box->stays), 1);
        for (int i = 0; i < T::STAGES; i++) {
            barrier_open(shared_address(&box->full[i]), 1);
            barrier_open(shared_address(&box->unused[i]), T::WG * 4);
        }
        barriers_opened();
    }
    __syncthreads();
    return wg;
}

/* a warpgroup beyond the last block: it only gives the stages back */
template <class T> __device__ static inline void look_on(const full_work &w, letters<T> *box) {
    for (int step = 0; step < w.n_step; step++) {
        barrier_wait(shared_address(&box->full[step % T::STAGES]), step / T::STAGES & 1);
        if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(&box->unused[step % T::STAGES]));
    }
}

/* A tile that is not seen whole: its first query and key. On the diagonal a query sees the keys up to its own; else a span has its edge in it,
 * or lies beyond */
enum edge { INSIDE, DIAGONAL, CUT };
struct tile_place {
    int span, i0, j0;
};
template <edge EDGE> __device__ static inline bool seen(const tile_place &at, int query, int key) {
    if (EDGE == INSIDE) return true;
    return EDGE == DIAGONAL ? key <= query : moa_sees(at.span, at.i0 + query, at.j0 + key);
}
/* do all queries of a block see all keys of an earlier one? */
__device__ static inline bool all_seen(int span, int block_q, int block_k) {
    return block_k == 0 || (block_q - block_k) * BLOCK + BLOCK - 1 < moa_window(span);
}

/* --- queries stay ------------------------------------------------------------------------------------------ */

/* What the rows g and g + 8 of a warp's 16 have of their own. Gains are of G - delta. */
struct query_rows {
    float lse2[2], delta[2];
    float mass[2], gain[2];           /* of the window so far; the same in the four threads of a row */
    float rest_mass[2], rest_gain[2]; /* of this thread's keys without the peak */
    float peak[2],
        peak_gain[2]; /* the entry above 1/2 among this thread's keys, 0: none, and its G - delta */
    int peak_block[2];
    bool bad[2];
};

/* A in the place of S; the largest of this thread's */
template <edge EDGE>
__device__ static inline float weights_of(const units &u, const query_rows &x, float (&s)[32], int row,
                                          const tile_place &at) {
    const int column = threadIdx.x % 4 * 2;
    float top = 0;
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                float &a = s[4 * n + 2 * h + k];
                a = exp2_fast(a * u.score - x.lse2[h]);
                if (!seen<EDGE>(at, row + h * 8, n * 8 + column + k)) a = 0;
                top = fmaxf(top, a);
            }
    return top;
}

/* dS in the place of G */
__device__ static inline void gradients_of(const units &u, const query_rows &x, const float (&s)[32],
                                           float (&g)[32]) {
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int at = 4 * n + 2 * h + k;
                g[at] = s[at] * u.ds * (g[at] - x.delta[h]);
            }
}

/* of a thread's part of a tile; e is the negative of E */
struct tile_sums {
    float mass[2], gain[2], peak[2], peak_gain[2], e, abs_e;
    float unseen_mass[2], unseen_gain[2];
    bool far[2]; /* a key that is not seen counts as less than it weighs */
};
/* the largest A of the warp decides how A / (1 - A) is made: A (1 + A + A^2) below 2^-6, where the next term is 4e-6 of it; by division; and by
 * division with what is above 1/2 left out */
enum weight_kind { SMALL, LARGE, PEAKED };
static constexpr float SMALL_TOP = 0x1p-6f;

/* A and G summed up; DQ: G becomes dS too */
template <weight_kind KIND, bool DQ>
__device__ static inline tile_sums sums_of(const units &u, const query_rows &x, const float (&s)[32],
                                           float (&g)[32]) {
    tile_sums t = {};
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int at = 4 * n + 2 * h + k;
                float a = s[at];
                const float v = g[at] - x.delta[h];
                if (DQ) g[at] = a * u.ds * v;
                if (KIND == PEAKED && a > 0.5f) t.peak[h] = a, t.peak_gain[h] = v, a = 0;
                const float odds = KIND == SMALL ? fmaf(a, fmaf(a, a, a), a) : __fdividef(a, 1.0f - a),
                            q = odds * v;
                t.mass[h] += a, t.gain[h] += a * v, t.e += q, t.abs_e += fabsf(q);
            }
    return t;
}

/* the same of a tile with unseen keys, from S */
template <bool DQ>
__device__ static inline tile_sums sums_of_cut(const units &u, const query_rows &x, const float (&s)[32],
                                               float (&g)[32], int row, const tile_place &place) {
    const float most = (float)MOA_INFLUENCE_MOST * LOG2E;
    const int column = threadIdx.x % 4 * 2;
    tile_sums t = {};
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int at = 4 * n + 2 * h + k, i = place.i0 + row + h * 8,
                          key = place.j0 + n * 8 + column + k;
                const float v = g[at] - x.delta[h], score = s[at] * u.score - x.lse2[h];
                const bool see = moa_sees(place.span, i, key), other = !see && key <= i;
                float a = see ? exp2_fast(score) : 0.0f;
                const float b = other ? exp2_fast(fminf(score, most)) : 0.0f;
                if (DQ) g[at] = a * u.ds * v;
                if (a > 0.5f) t.peak[h] = a, t.peak_gain[h] = v, a = 0;
                const float q = __fdividef(a, 1.0f - a) * v;
                t.mass[h] += a, t.gain[h] += a * v, t.e += q, t.abs_e += fabsf(q);
                t.unseen_mass[h] += b, t.unseen_gain[h] += b * v;
                t.far[h] = t.far[h] || (other && score > most);
            }
    return t;
}

/* A and G of a tile: to its E, and to the rows' sums. curve: of the window that ends with this tile, or NULL. CUT_TILE: s is still S */
template <bool DQ, bool CUT_TILE>
__device__ static inline void influence_tile(const full_job &j, const units &u, query_rows &x, float top,
                                             const float (&s)[32], float (&g)[32], int row,
                                             const tile_place &place, int64_t tile, float *curve) {
    const int lane = threadIdx.x % 32;
    tile_sums t;
    float change = 0;
    if (CUT_TILE)
        t = sums_of_cut<DQ>(u, x, s, g, row, place);
    else if (__any_sync(0xffffffffu, top > 0.5f))
        t = sums_of<PEAKED, DQ>(u, x, s, g);
    else if (__any_sync(0xffffffffu, top > SMALL_TOP))
        t = sums_of<LARGE, DQ>(u, x, s, g);
    else
        t = sums_of<SMALL, DQ>(u, x, s, g);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        x.rest_mass[h] += t.mass[h], x.rest_gain[h] += t.gain[h];
        if (t.peak[h] > 0)
            x.peak[h] = t.peak[h], x.peak_gain[h] = t.peak_gain[h], x.peak_block[h] = place.j0 / BLOCK;
        x.mass[h] += group_sum<4>(t.mass[h] + t.peak[h] + t.unseen_mass[h]);
        x.gain[h] += group_sum<4>(t.gain[h] + t.peak[h] * t.peak_gain[h] + t.unseen_gain[h]);
        change += __fdividef(x.gain[h], fmaxf(x.mass[h], (float)MOA_INFLUENCE_TINY));
        x.bad[h] = x.bad[h] || t.far[h] || (curve && x.mass[h] < (float)MOA_INFLUENCE_TINY);
    }
    const float e = warp_sum(t.e), abs_e = warp_sum(t.abs_e);
#pragma unroll
    for (int l = 4; l < 32; l *= 2)
        change += __shfl_xor_sync(0xffffffffu, change, l);
    if (lane != 0) return;
    j.o.e[tile * 4 + threadIdx.x % 128 / 32] = make_float2(-e, abs_e);
    if (curve) curve[threadIdx.x % 128 / 32] = change;
}

/* After the last key: the peaks in the form that does not cancel, the sum of the keys seen, what had to be clamped. The rows of a span's head
 * that see everything as it is have all of it from the same sum as those without spans. */
template <bool SPANS>
__device__ static inline void influence_end(const full_job &j, query_rows &x, int head, int block, int row,
                                            int span) {
    const int lane = threadIdx.x % 32, nb = j.o.nb;
    float whole = 0, wide = 0;
    int n_bad = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int i = block * BLOCK + row + h * 8;
        const float mass = group_sum<4>(x.rest_mass[h]), gain = group_sum<4>(x.rest_gain[h]);
        const bool any = group_max<4>(x.peak[h]) > 0, here = x.peak[h] > 0,
                   ok = i == 0 || !any || mass >= (float)MOA_INFLUENCE_TINY;
        float2 *to = j.o.peak + ((int64_t)head * nb + block) * BLOCK + row + h * 8;
        if (here) {
            const float q = i == 0 ? -(x.peak_gain[h] + x.delta[h])
                            : ok   ? gain / mass - x.peak_gain[h]
                                   : 0.0f;
            *to = make_float2(x.peak[h] * q, __int_as_float(x.peak_block[h]));
        }
        if (!any && lane % 4 == 0) *to = make_float2(0, __int_as_float(-1));
        const float all = __fdividef(x.gain[h], fmaxf(x.mass[h], (float)MOA_INFLUENCE_TINY));
        float own = all;
        bool strange = x.bad[h];
        if (SPANS) {
            const float peak = group_sum<4>(x.peak[h]), peak_gain = group_sum<4>(x.peak[h] * x.peak_gain[h]);
            if (moa_n_seen(span, i) <= i)
                own = (gain + peak_gain) / fmaxf(mass + peak, (float)MOA_INFLUENCE_TINY);
            strange = group_max<4>(strange ? 1.0f : 0.0f) > 0; /* one of four threads saw it */
        }
        whole += own, wide += all - own;
        const bool bad = lane % 4 == 0 && i < j.o.in.n_tok && (!ok || strange);
        n_bad += __popc(__ballot_sync(0xffffffffu, bad));
    }
#pragma unroll
    for (int l = 4; l < 32; l *= 2) {
        whole += __shfl_xor_sync(0xffffffffu, whole, l);
        if (SPANS) wide += __shfl_xor_sync(0xffffffffu, wide, l);
    }
    if (lane != 0) return;
    const int64_t to = ((int64_t)head * nb + block) * 4 + threadIdx.x % 128 / 32;
    j.o.whole[to] = whole;
    if (SPANS) j.o.wide[to] = wide;
    if (n_bad > 0) atomicAdd(j.clamped, n_bad);
}

/* One warpgroup's 64 queries. MAP: influence; DQ: the gradient */
template <class T, bool MAP, bool DQ, bool SPANS>
__device__ static inline void walk_keys(const full_job &j, const full_work &w, letters<T> *box, uint32_t base,
                                        int wg) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4, nb = j.o.nb;
    const int mine = w.tile * T::WG + wg, first = mine < w.last, span = SPANS ? j.o.in.span[w.head] : 0;
    const units u = units_of(j.o);
    const uint64_t stay = wgmma_operand(base + wg * PAIR * T::TILE, 0),
                   stage0 = wgmma_operand(base + T::STAGES_AT, 0),
                   across0 = wgmma_operand(base + T::STAGES_AT, T::PANEL);
    float s[32], g[32], sum[DQ ? T::D / 2 : 1] = {};
    uint32_t ds[16] = {};
    query_rows x = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float2 own = j.o.row[((int64_t)w.head * nb + mine) * BLOCK + row + h * 8];
        x.lse2[h] = own.x, x.delta[h] = own.y;
    }
    barrier_wait(shared_address(&box->stays), 0);
    if (first == 1 && lane == 0) barrier_arrive(shared_address(&box->unused[0]));
    int before =
        first; /* the stage whose last product comes next: the first time of nothing, which adds nothing */
#pragma unroll 1
    for (int step = first; step < w.n_step; step++) {
        const int stage = step % T::STAGES, block = block_of<T, false>(w, step);
        barrier_wait(shared_address(&box->full[stage]), step / T::STAGES & 1);
        issue_product<T>(s, stay, wgmma_ahead(stage0, stage * T::STAGE));
        wgmma_commit();
        issue_product<T>(g, wgmma_ahead(stay, T::TILE), wgmma_ahead(stage0, stage * T::STAGE + T::TILE));
        if constexpr (DQ) issue_sum<T>(sum, ds, wgmma_ahead(across0, before * T::STAGE));
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_hold(s);
        const tile_place place = {span, mine * BLOCK, block * BLOCK};
        const bool cut = SPANS && (block == mine || !all_seen(span, mine, block));
        float top = 0;
        if (!SPANS)
            top = block == mine ? weights_of<DIAGONAL>(u, x, s, row, place)
                                : weights_of<INSIDE>(u, x, s, row, place);
        else if (!cut)
            top = weights_of<INSIDE>(u, x, s, row, place);
        else if (!MAP)
            top = weights_of<CUT>(u, x, s, row, place);
        wgmma_wait<0>();
        wgmma_hold(g);
        if constexpr (DQ) {
            wgmma_hold(sum);
            wgmma_hold(ds);
        }
        if (lane == 0 && (!DQ || step > first))
            barrier_arrive(shared_address(&box->unused[DQ ? before : stage]));
        if constexpr (MAP) {
            const int64_t tile = ((int64_t)w.head * nb + mine) * nb + block;
            /* the newest blocks that are in with the sink; as many as `mine` cut nothing */
            const int newest = block > 0 ? (step > 0 ? mine - block + 1 : 0) : 1 - first;
            float *curve = newest > 0 && newest < mine
                               ? j.o.curve + (((int64_t)w.head * nb + mine) * (nb + 1) + newest) * 4
                               : nullptr;
            if (SPANS && cut)
                influence_tile<DQ, true>(j, u, x, top, s, g, row, place, tile, curve);
            else
                influence_tile<DQ, false>(j, u, x, top, s, g, row, place, tile, curve);
        } else {
            (void)top;
            gradients_of(u, x, s, g);
        }
        if constexpr (DQ) {
            pack(g, ds);
            before = stage;
        }
    }
    if constexpr (DQ) {
        issue_sum<T>(sum, ds, wgmma_ahead(across0, before * T::STAGE));
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(sum);
        write_rows<T>(j.dq, j.o, w.head, mine * BLOCK + row, sum, u.grad * j.o.in.scale / u.ds);
    }
    if constexpr (MAP) influence_end<SPANS>(j, x, w.head, mine, row, span);
}

template <class T, bool MAP, bool DQ, bool SPANS>
__global__ static void __launch_bounds__(T::THREADS, 1) queries_v2(const __grid_constant__ full_job j) {
    extern __shared__ unsigned char raw[];
    __shared__ letters<T> box;
    const uint32_t base = shared_address(raw) + (1024 - shared_address(raw) % 1024) % 1024;
    const full_work w = work_of<T, false>(j.o);
    const int wg = start<T, false>(j, w, &box, base);
    if (wg < 0) {
        registers_fewer<T::FEW>();
        if (threadIdx.x == 0) load_all<T, false>(j, w, &box, base);
    } else {
        registers_more<T::MANY>();
        if (w.tile * T::WG + wg < j.o.nb)
            walk_keys<T, MAP, DQ, SPANS>(j, w, &box, base, wg);
        else
            look_on<T>(w, &box);
    }
}

/* --- keys stay --------------------------------------------------------------------------------------------- */

/* S^T becomes A^T 2^A_POWER; own: (lse2, delta) of the tile's queries */
template <edge EDGE>
__device__ static inline void transposed_weights(const units &u, float (&s)[32], const unsigned char *own,
                                                 int row, const tile_place &place) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float4 q = *reinterpret_cast<const float4 *>(own + (n * 8 + column) * sizeof(float2));
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int at = 4 * n + 2 * h + k;
                float a = exp2_fast(s[at] * u.score - ((k ? q.z : q.x) - (float)A_POWER));
                if (!seen<EDGE>(place, n * 8 + column + k, row + h * 8)) a = 0;
                s[at] = a;
            }
    }
}
/* G^T becomes dS^T */
__device__ static inline void transposed_gradients(const units &u, const float (&s)[32], float (&g)[32],
                                                   const unsigned char *own) {
    const int column = threadIdx.x % 4 * 2;
    const float ds = u.ds * (1.0f / (float)(1 << A_POWER));
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float4 q = *reinterpret_cast<const float4 *>(own + (n * 8 + column) * sizeof(float2));
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int k = 0; k < 2; k++) {
                const int at = 4 * n + 2 * h + k;
                g[at] = s[at] * ds * (g[at] - (k ? q.w : q.y));
            }
    }
}

/* One warpgroup's 64 keys */
template <class T, bool SPANS>
__device__ static inline void walk_queries(const full_job &j, const full_work &w, letters<T> *box,
                                           const unsigned char *shared, uint32_t base, int wg) {
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const int mine = w.tile * T::WG + wg, span = SPANS ? j.o.in.span[w.head] : 0;
    const units u = units_of(j.o);
    const uint64_t stay = wgmma_operand(base + wg * PAIR * T::TILE, 0),
                   stage0 = wgmma_operand(base + T::STAGES_AT, 0),
                   across0 = wgmma_operand(base + T::STAGES_AT, T::PANEL);
    float s[32], g[32], dk[T::D / 2] = {}, dv[T::D / 2] = {};
    uint32_t a[16], ds[16];
    barrier_wait(shared_address(&box->stays), 0);
    for (int step = 0; step < wg; step++) /* earlier queries see none of these keys */
        if (lane == 0) barrier_arrive(shared_address(&box->unused[step]));
#pragma unroll 1
    for (int step = wg; step < w.n_step; step++) {
        const int stage = step % T::STAGES, block = block_of<T, true>(w, step);
        barrier_wait(shared_address(&box->full[stage]), step / T::STAGES & 1);
        issue_product<T>(s, stay, wgmma_ahead(stage0, stage * T::STAGE));
        wgmma_commit();
        issue_product<T>(g, wgmma_ahead(stay, T::TILE), wgmma_ahead(stage0, stage * T::STAGE + T::TILE));
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_hold(s);
        const unsigned char *own = shared + T::ROWS_AT + stage * T::ROWS;
        const tile_place place = {span, block * BLOCK, mine * BLOCK};
        if (block == mine)
            transposed_weights<DIAGONAL>(u, s, own, row,
                                         place); /* no span is so short that it has its edge there */
        else if (!SPANS || all_seen(span, block, mine))
            transposed_weights<INSIDE>(u, s, own, row, place);
        else
            transposed_weights<CUT>(u, s, own, row, place);
        pack(s, a);
        const uint64_t y = wgmma_ahead(across0, stage * T::STAGE);
        issue_sum<T>(dv, a, wgmma_ahead(y, T::TILE));
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_hold(g);
        transposed_gradients(u, s, g, own);
        pack(g, ds);
        issue_sum<T>(dk, ds, y);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(dk);
        wgmma_hold(dv);
        wgmma_hold(a);
        wgmma_hold(ds);
        if (lane == 0) barrier_arrive(shared_address(&box->unused[stage]));
    }
    write_rows<T>(j.dk, j.o, w.head, mine * BLOCK + row, dk, u.grad * u.score * LN2 / u.ds);
    write_rows<T>(j.dv, j.o, w.head, mine * BLOCK + row, dv, u.grad / (float)(1 << A_POWER));
}

template <class T, bool SPANS>
__global__ static void __launch_bounds__(T::THREADS, 1) keys_v2(const __grid_constant__ full_job j) {
    extern __shared__ unsigned char raw[];
    __shared__ letters<T> box;
    const uint32_t skip = (1024 - shared_address(raw) % 1024) % 1024, base = shared_address(raw) + skip;
    const full_work w = work_of<T, true>(j.o);
    const int wg = start<T, true>(j, w, &box, base);
    if (wg < 0) {
        registers_fewer<T::FEW>();
        if (threadIdx.x == 0) load_all<T, true>(j, w, &box, base);
    } else {
        registers_more<T::MANY>();
        if (w.tile * T::WG + wg < j.o.nb)
            walk_queries<T, SPANS>(j, w, &box, raw + skip, base, wg);
        else
            look_on<T>(w, &box);
    }
}

/* dk and dv (n_tok, n_head_kv, d) of those of the query heads, in order. A thread 4 elements */
__global__ static void __launch_bounds__(256)
    groups_v2(operands o, float *__restrict__ dk, float *__restrict__ dv) {
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x,
                  n = (int64_t)o.in.n_tok * o.in.n_head_kv * o.in.d_head / 4;
    if (at >= n) return;
    const int per = o.in.d_head / 4;
    const int64_t row = at / per; /* (n_tok, n_head_kv): the heads of a group are neighbours */
    const float4 *from =
        reinterpret_cast<const float4 *>(blockIdx.y ? o.dv : o.dk) + row * o.group * per + at % per;
    float4 sum = from[0];
    for (int u = 1; u < o.group; u++) {
        const float4 x = from[u * per];
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    reinterpret_cast<float4 *>(blockIdx.y ? dv : dk)[at] = sum;
}

/* --- the influence's last steps ---------------------------------------------------------------------------- */

/* a row of the map: the warps' sums, and the peaks. grid: (nb, n_head) */
__global__ static void __launch_bounds__(BLOCK)
    maps_v2(operands o, float *__restrict__ abs_out, float *__restrict__ sum_out) {
    __shared__ float2 peak[BLOCK];
    const int qb = blockIdx.x, nb = o.nb;
    const int64_t row = (int64_t)blockIdx.y * nb + qb;
    const float grad = units_of(o).grad;
    peak[threadIdx.x] = o.peak[row * BLOCK + threadIdx.x];
    __syncthreads();
    for (int b = threadIdx.x; b < nb; b += BLOCK) {
        float e = 0, abs_e = 0;
        if (b <= qb) {
            const float4 *four = reinterpret_cast<const float4 *>(o.e + (row * nb + b) * 4);
            const float4 x = four[0], y = four[1];
            e = x.x + x.z + (y.x + y.z), abs_e = x.y + x.w + (y.y + y.w);
            for (int r = 0; r < BLOCK; r++)
                if (__float_as_int(peak[r].y) == b) e += peak[r].x, abs_e += fabsf(peak[r].x);
        }
        sum_out[row * nb + b] = e * grad;
        abs_out[row * nb + b] = abs_e * grad;
    }
}

/* joint (n_head, nb + 1). Of block qb of queries, the windows 1 .. qb - 1 cut something; the others are as all keys. A warp a window, its
 * lanes the blocks of queries. grid: (any, n_head) */
__global__ static void __launch_bounds__(256) curves_v2(operands o, float *__restrict__ joint) {
    const int h = blockIdx.y, nb = o.nb, lane = threadIdx.x % 32;
    const float grad = units_of(o).grad;
    for (int w = (int)blockIdx.x * 8 + (int)threadIdx.x / 32; w <= nb; w += (int)gridDim.x * 8) {
        double sum = 0;
        for (int qb = w + 1 + lane; w > 0 && qb < nb; qb += 32) {
            const int64_t row = (int64_t)h * nb + qb;
            const float4 x = *reinterpret_cast<const float4 *>(o.curve + (row * (nb + 1) + w) * 4),
                         y = *reinterpret_cast<const float4 *>(o.whole + row * 4);
            sum += (double)(x.x - y.x) + (double)(x.y - y.y) + ((double)(x.z - y.z) + (double)(x.w - y.w));
        }
        for (int qb = lane; o.in.span && w > 0 && qb <= min(w, nb - 1); qb += 32) {
            const float4 x = *reinterpret_cast<const float4 *>(o.wide + ((int64_t)h * nb + qb) * 4);
            sum += (double)x.x + x.y + ((double)x.z + x.w);
        }
#pragma unroll
        for (int l = 16; l > 0; l /= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, l);
        if (lane == 0) joint[(int64_t)h * (nb + 1) + w] = (float)(sum * grad);
    }
}

/* --- host side --------------------------------------------------------------------------------------------- */

/* (pages * 2, 64, d_head) whose boxes are tiles of 64 x 64 */
static moa_status map_pages(moa_cuda *c, const operands &o, __half *pages, int n_page, CUtensorMap *out,
                            moa_err *err) {
    const cuuint64_t row = 2 * (cuuint64_t)o.in.d_head,
                     size[3] = {(cuuint64_t)o.in.d_head, BLOCK, PAIR * (cuuint64_t)n_page},
                     stride[2] = {row, BLOCK * row};
    return wg_tensor_map(c, pages, size, stride, out, err);
}

static moa_status job_of(moa_cuda *c, const operands &o, full_job *j, moa_err *err) {
    *j = {};
    j->o = o;
    MOA_RETURN(map_pages(c, o, o.kv, o.in.n_head_kv * o.nb, &j->kv, err));
    return map_pages(c, o, o.qg, o.in.n_head * o.nb, &j->qg, err);
}

template <class T, typename K> static cudaError_t launch(moa_cuda *c, K kernel, const full_job &j) {
    const cudaError_t e = moa_allow_shared(kernel, T::bytes());
    if (e != cudaSuccess) return e;
    const unsigned n_block = (unsigned)(moa_ceil_div(j.o.nb, (int)T::WG) * j.o.in.n_head);
    kernel<<<n_block, T::THREADS, T::bytes(), c->stream>>>(j);
    return cudaGetLastError();
}

bool moa_cuda_full_wgmma_takes(const moa_cuda *c, const moa_full *in) {
    int major = 0, minor = 0;
    const uintptr_t all = (uintptr_t)in->q | (uintptr_t)in->k | (uintptr_t)in->v;
    if (c->precise || c->gemm != MOA_GEMM_F16 || all % 16 != 0 || (in->d_head != 64 && in->d_head != 128))
        return false;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, c->device) != cudaSuccess)
        return false;
    return major == 9 && minor == 0;
}

moa_status moa_cuda_full_wgmma(moa_cuda *c, const moa_args_attn_full *a, moa_err *err) {
    operands o;
    MOA_RETURN(open_operands(c, a->in, FORWARD, o, err));
    MOA_RETURN(make_pages(c, o, err));
    moa_args_attn_prefill p = {};
    p.q = a->in.q, p.o = a->o;
    p.kv.pool = o.kv, p.kv.table = o.table, p.kv.n_head_kv = a->in.n_head_kv, p.kv.d_head = a->in.d_head;
    p.kv.max_pages = o.nb, p.kv.type = MOA_KV_F16;
    p.span = o.span;
    p.n_tok = a->in.n_tok, p.n_head = a->in.n_head, p.scale = a->in.scale;
    MOA_RETURN(moa_cuda_prefill_wgmma_lse(c, &p, o.lse2, err));
    const int64_t n_row = (int64_t)a->in.n_tok * a->in.n_head;
    natural_v2<<<(unsigned)moa_ceil_div<int64_t>(n_row, 256), 256, 0, c->stream>>>(o.lse2, a->lse, n_row);
    MOA_LAUNCHED(c, "log-sum-exp");
    return MOA_OK;
}

/* what the workspace holds after an influence: the operands of this attention and this gradient */
static moa_cuda_half mark(const moa_full &in, const forward_made &f) {
    const void *all[] = {in.k, in.v, in.span, f.o, f.lse};
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        hash = (hash ^ (uint64_t)(uintptr_t)all[i]) * 1099511628211u;
    return {in.q, f.d_o, in.n_tok, -1 - (int32_t)(hash >> 34)}; /* no product has such an n_in */
}

/* dq_there: the influence has made it */
template <int D>
static moa_status backward(moa_cuda *c, const full_job &j, const moa_args_attn_bwd *a, bool dq_there,
                           moa_err *err) {
    typedef full_tile<D> tile;
    const bool spans = a->in.span != nullptr;
    const size_t dq_bytes = sizeof(float) * (size_t)a->in.n_tok * (size_t)a->in.n_head * D;
    if (dq_there)
        MOA_CU(c, cudaMemcpyAsync(a->dq, j.o.dq, dq_bytes, cudaMemcpyDeviceToDevice, c->stream));
    else
        MOA_CU(c, (launch<tile>(
                      c, spans ? queries_v2<tile, false, true, true> : queries_v2<tile, false, true, false>,
                      j)));
    MOA_CU(c, (launch<tile>(c, spans ? keys_v2<tile, true> : keys_v2<tile, false>, j)));
    if (j.o.group == 1) return MOA_OK;
    const int64_t n = (int64_t)a->in.n_tok * a->in.n_head_kv * (D / 4);
    groups_v2<<<dim3((unsigned)moa_ceil_div<int64_t>(n, 256), 2), 256, 0, c->stream>>>(j.o, a->dk, a->dv);
    MOA_LAUNCHED(c, "gradients of the keys of a group");
    return MOA_OK;
}

moa_status moa_cuda_full_wgmma_bwd(moa_cuda *c, const moa_args_attn_bwd *a, const moa_cuda_half *kept,
                                   moa_err *err) {
    const forward_made f = {a->o, a->lse, a->d_o};
    const moa_cuda_half want = mark(a->in, f);
    operands o;
    full_job j;
    const void *was = c->scratch;
    MOA_RETURN(open_operands(c, a->in, BACKWARD, o, err));
    const bool there = was == c->scratch && kept->x == want.x && kept->space == want.space &&
                       kept->n_tok == want.n_tok && kept->n_in == want.n_in;
    if (!there) MOA_RETURN(prepare(c, o, f, err));
    MOA_RETURN(job_of(c, o, &j, err));
    j.dq = a->dq;
    j.dk = o.group > 1 ? o.dk : a->dk;
    j.dv = o.group > 1 ? o.dv : a->dv;
    return a->in.d_head == 64 ? backward<64>(c, j, a, there, err) : backward<128>(c, j, a, there, err);
}

template <int D> static cudaError_t influence(moa_cuda *c, const full_job &j) {
    typedef full_tile<D> tile;
    return launch<tile>(
        c, j.o.in.span ? queries_v2<tile, true, true, true> : queries_v2<tile, true, true, false>, j);
}

moa_status moa_cuda_full_wgmma_influence(moa_cuda *c, const moa_args_attn_influence *a, moa_err *err) {
    const forward_made f = {a->o, a->lse, a->d_o};
    operands o;
    full_job j;
    MOA_RETURN(open_operands(c, a->in, BACKWARD, o, err));
    MOA_RETURN(prepare(c, o, f, err));
    MOA_RETURN(job_of(c, o, &j, err));
    j.clamped = a->clamped;
    j.dq = o.dq;
    MOA_CU(c, a->in.d_head == 64 ? influence<64>(c, j) : influence<128>(c, j));
    maps_v2<<<dim3((unsigned)o.nb, (unsigned)a->in.n_head), BLOCK, 0, c->stream>>>(o, a->abs, a->sum);
    MOA_LAUNCHED(c, "influence by blocks");
    curves_v2<<<dim3((unsigned)moa_ceil_div(o.nb + 1, 8), (unsigned)a->in.n_head), 256, 0, c->stream>>>(
        o, a->joint);
    MOA_LAUNCHED(c, "influence by windows");
    c->half = mark(a->in, f);
    return MOA_OK;
}
