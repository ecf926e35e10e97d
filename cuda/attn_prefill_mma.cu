/* attn_prefill_mma.cu -- prefill attention, second version: the first one's tiles and page lists on tensor cores.
 *
 *   block   BM = WARPS x MT x 16 queries of one head; a warp owns MT x 16 of them, so no warp waits for another's softmax
 *   step    one page: K and V arrive by asynchronous copies in one of two buffers while the other is worked on
 *   S       Q (half) x K, 16 x 8 fragments, float32 sums; NK keys at a time, so that S and O fit the registers
 *   P       S's fragment is already the left operand of P V: exp2, round to half, multiply. Nothing passes through memory
 *
 *            K, V in shared memory: rows of D halves + 16 bytes, so that the 8 rows of an 8 x 8 matrix lie in different banks
 *
 * Precision. q is multiplied by scale log2(e) and by a power of two that brings its row's largest element to 2^12 (the softmax
 * takes the power back), so halves neither overflow nor lose small elements: what is lost is 11 bits of mantissa, relative 2.4e-4.
 * p = 2^(s - m + 10): probabilities down to 2^-24 of the row's largest keep full precision. m moves only when a row's maximum has
 * grown by more than 2^5, which keeps p within the range of a half and spares most rescaling of O. Cached keys and values are
 * halves already and lose nothing. With 2 PARTS a second product adds what rounding q left over: scores are then those of float32.
 * K comes from a cache of halves that has lost as much already, so that the second part buys half of the error at best: on SmolLM2
 * (623 tokens, against the CPU) KL is 4.1e-6 with it and 4.4e-6 without.
 *
 *   NMSE of o, emulated in double     normal data    1 in 97 elements 20 x: a whole tensor, one row (99 %, worst of 400)
 *   1 part                            7e-8 to 9e-8   up to 4e-6     8e-6, 2e-5; its log-sum-exp is off by up to 0.08
 *   2 parts                           3e-8 to 4e-8   1e-9           6e-8, 1e-7; its log-sum-exp by 2e-5
 *
 * Work. Blocks are numbered from the last tile of the prompt to the first, heads fastest: the work of a tile never grows from one
 * tile to an earlier one, whatever the head's span, so what starts last is short; and the heads of a KV group, which read the same pages,
 * run side by side and meet them in the L2. Where the large tiles would not fill the GPU, smaller ones are taken.
 *
 * The probe. The kernel only adds the log-sum-exp of each row; what looks at the scores again is attn_prefill_look.cuh, for 1 part. With 2
 * parts it is a kernel here, which computes S again (not P V), has normalised probabilities at once and reduces them to the row's
 * statistics and the histogram: with key j of page p and query i = 64 a + r, the distance bin is a - p for j % 64 <= r and a - p - 1
 * beyond, so a row adds two sums to the histogram per page; the warp's rows that share a bin and a bucket are summed first.
 *
 *   version   idea                                             H100, f16 cache, TFLOP/s of the visible pairs, dense: Llama-3-8B 2k, 8k,
 *                                                              32k; SmolLM2 2k, 8k, 32k
 *   v1        float32 FMA (attn_prefill.cu)                    25 32 -    14 24 -
 *   v2        this, 1 part: $MOASCOPE_CUDA_PREFILL=v2          235 316 323    85 227 285                                <- default but for v3
 *   v2x       this, 2 parts                                    180 228 238    73 192 230
 *   measured 2026-11-24 with  test_ops_cuda --bench attn_prefill  (docs/measurements/2026-11-24-h100-v2.md)             */
#include "cuda/attn_prefill_look.cuh"

static constexpr float BIAS = 10.0f, GROWTH = 5.0f;
static constexpr float NOTHING =
    1e30f; /* lse2 of a row that saw nothing: makes every p 0, and p s too (not so infinity) */

struct mma_job {
    const float *q; /* (n_tok, n_head, d_head) */
    float *o;
    moa_kv<__half> kv;
    const int32_t *span; /* (n_head) */
    int seq, pos0, n_tok, n_head, group;
    float scale2; /* scale log2(e) */
    float *lse2;  /* (n_tok, n_head), log2 of the sum of 2^score; -inf: saw nothing. NULL: not wanted */
    moa_probe probe;
    look_job look; /* n_block > 0: in the same launch */
};

/* D: head size; MT: 16-row fragments of a warp; NK: keys a softmax step; BLOCKS: a multiprocessor should hold; PARTS: halves that
 * an element of q is kept in, 1 or 2 */
template <int D_, int WARPS_, int MT_, int NK_, int BLOCKS_, int PARTS_> struct tile {
    static constexpr int D = D_, WARPS = WARPS_, MT = MT_, NK = NK_, BLOCKS = BLOCKS_, PARTS = PARTS_;
    static constexpr int THREADS = WARPS * 32, ROWS = MT * 16, BM = WARPS * ROWS;
    static constexpr int STRIDE = 2 * D + 16; /* bytes of a row in shared memory */
    static constexpr int PAGE = MOA_PAGE_TOK * STRIDE, Q = BM * STRIDE;
    static constexpr bool Q_IN_REGISTERS = MT == 1 && D <= 128;
    static_assert(D % 16 == 0 && MOA_PAGE_TOK % NK == 0 && NK % 16 == 0, "whole fragments");
    static constexpr size_t attend_bytes() { return PARTS * Q + 4 * PAGE; }
    static constexpr size_t probe_bytes() { return PARTS * Q + 2 * PAGE; }
};

/* where a warp stands: its queries' positions and what they may see */
struct warp_place {
    int head, head_kv, span, window;
    int tok0;   /* of the warp's first row */
    int row0;   /* of it in the tile */
    int i0;     /* its position */
    int i_last; /* position of the warp's last real row; < i0: none */
};

template <class T> __device__ static inline warp_place place_of(const mma_job &j, int number, int *tile_tok0) {
    warp_place w;
    const int n_tile = (j.n_tok + T::BM - 1) / T::BM, rank = number / j.n_head;
    w.head = number % j.n_head;
    w.head_kv = w.head / j.group;
    w.span = j.span[w.head];
    w.window = moa_window(w.span);
    *tile_tok0 = (n_tile - 1 - rank) * T::BM;
    w.row0 = (int)threadIdx.x / 32 * T::ROWS;
    w.tok0 = *tile_tok0 + w.row0;
    w.i0 = j.pos0 + w.tok0;
    w.i_last = min(w.i0 + T::ROWS, j.pos0 + j.n_tok) - 1;
    return w;
}

/* The present pages of a tile in order. The table is read one page ahead, so that nobody waits for it. */
struct walk {
    const mma_job *job;
    int head_kv, k;
    page_list pages;
    const __half *ahead;

    __device__ const __half *look() const {
        return k < pages.count() ? job->kv.page(job->seq, head_kv, pages.at(k)) : nullptr;
    }
    __device__ walk(const mma_job &j, int head_kv_, page_list list)
        : job(&j), head_kv(head_kv_), k(0), pages(list) {
        ahead = look();
    }
    /* the next page's number, -1 after the last */
    __device__ int next(const __half **at) {
        while (!ahead && k < pages.count()) {
            k++;
            ahead = look();
        }
        if (k >= pages.count()) return -1;
        const int page = pages.at(k);
        *at = ahead;
        k++;
        ahead = look();
        return page;
    }
};

/* K (KV = 1), or also V, which follows it (2), of a page to shared memory; rows from n_row on become zero: they are not written yet and may be NaN */
template <class T, int KV>
__device__ static inline void copy_page(const __half *page, int n_row, uint32_t to) {
    constexpr int CHUNKS = T::D / 8, N = KV * MOA_PAGE_TOK * CHUNKS;
    constexpr bool ALIKE = T::THREADS % CHUNKS == 0; /* a thread copies the same columns of several rows */
    static_assert(N % T::THREADS == 0, "every thread copies alike");
    const int tid = threadIdx.x;
#pragma unroll
    for (int i = 0; i < N / T::THREADS; i++) {
        const int e = tid + i * T::THREADS;
        const int row = ALIKE ? tid / CHUNKS + i * (T::THREADS / CHUNKS) : e / CHUNKS;
        const int chunk = ALIKE ? tid % CHUNKS : e % CHUNKS;
        copy16_async(to + row * T::STRIDE + chunk * 16, page + e * 8, row % MOA_PAGE_TOK < n_row);
    }
}

/* The warp's rows of q to shared memory as halves, and Q bytes further what rounding to them left over (PARTS = 2); coef[row] gives scores back their size. Rows past i_last are zero. */
template <class T>
__device__ static void load_queries(const mma_job &j, const warp_place &w, unsigned char *to, float *coef) {
    constexpr int BATCH = 8, VEC = T::D / 4, PER_LANE = (VEC + 31) / 32;
    const int lane = threadIdx.x % 32;
    for (int r0 = 0; r0 < T::ROWS; r0 += BATCH) {
        float4 x[BATCH][PER_LANE];
#pragma unroll
        for (int r = 0; r < BATCH; r++)
#pragma unroll
            for (int v = 0; v < PER_LANE; v++) {
                const int c = lane + 32 * v;
                x[r][v] = make_float4(0, 0, 0, 0);
                if (w.i0 + r0 + r <= w.i_last && c < VEC)
                    x[r][v] = reinterpret_cast<const float4 *>(
                        j.q + ((int64_t)(w.tok0 + r0 + r) * j.n_head + w.head) * T::D)[c];
            }
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            float top = 0;
#pragma unroll
            for (int v = 0; v < PER_LANE; v++) {
                float4 &y = x[r][v];
                y.x *= j.scale2, y.y *= j.scale2, y.z *= j.scale2, y.w *= j.scale2;
                top = fmaxf(fmaxf(top, fmaxf(fabsf(y.x), fabsf(y.y))), fmaxf(fabsf(y.z), fabsf(y.w)));
            }
            top = group_max<32>(top);
            /* largest element to [2^12, 2^13); zero rows take any power */
            const int power = max(-120, min(12 - ((__float_as_int(top) >> 23) - 127), 120));
            const float up = __int_as_float((power + 127) << 23);
            if (lane == 0) coef[r0 + r] = __int_as_float((127 - power) << 23);
#pragma unroll
            for (int v = 0; v < PER_LANE; v++) {
                const float4 y = make_float4(x[r][v].x * up, x[r][v].y * up, x[r][v].z * up, x[r][v].w * up);
                const uint2 halves = make_uint2(pack_halves(y.x, y.y), pack_halves(y.z, y.w));
                const int c = lane + 32 * v;
                uint2 *at = reinterpret_cast<uint2 *>(to + (r0 + r) * T::STRIDE + c * 8);
                if (c >= VEC) continue;
                at[0] = halves;
                if (T::PARTS == 2) {
                    const float2 a = unpack_halves(halves.x), b = unpack_halves(halves.y);
                    at[T::Q / sizeof *at] =
                        make_uint2(pack_halves(y.x - a.x, y.y - a.y), pack_halves(y.z - b.x, y.w - b.y));
                }
            }
        }
    }
    __syncwarp();
}

/* Left operands of 16 columns from kk * 16 on. The first part of q stays in registers where it fits them. */
template <class T> struct queries {
    uint32_t at, held[T::Q_IN_REGISTERS ? T::D / 16 : 1][T::MT][4];

    __device__ void read(int kk, int part, uint32_t a[T::MT][4]) const {
#pragma unroll
        for (int mt = 0; mt < T::MT; mt++)
            ldsm4(a[mt], at + part * T::Q + mt * 16 * T::STRIDE + kk * 32);
    }
    __device__ explicit queries(uint32_t q_at) : at(q_at) {
#pragma unroll
        for (int kk = 0; kk < T::D / 16; kk++)
            if (T::Q_IN_REGISTERS) read(kk, 0, held[T::Q_IN_REGISTERS ? kk : 0]);
    }
    __device__ void get(int kk, int part, uint32_t a[T::MT][4]) const {
        if (part > 0 || !T::Q_IN_REGISTERS) {
            read(kk, part, a);
        } else {
#pragma unroll
            for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    a[mt][e] = held[T::Q_IN_REGISTERS ? kk : 0][mt][e];
        }
    }
};

/* s of NK keys whose first row in shared memory is at k_at (this lane's address of the first matrices) */
template <class T>
__device__ static inline void scores(const queries<T> &q, uint32_t k_at, float s[T::MT][T::NK / 8][4]) {
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int n = 0; n < T::NK / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[mt][n][e] = 0;
#pragma unroll
    for (int kk = 0; kk < T::D / 16; kk++) {
        uint32_t a[T::PARTS][T::MT][4];
#pragma unroll
        for (int part = 0; part < T::PARTS; part++)
            q.get(kk, part, a[part]);
#pragma unroll
        for (int n = 0; n < T::NK / 16; n++) {
            uint32_t b[4];
            ldsm4(b, k_at + n * 16 * T::STRIDE + kk * 32);
#pragma unroll
            for (int part = 0; part < T::PARTS; part++)
#pragma unroll
                for (int mt = 0; mt < T::MT; mt++) {
                    mma16816(s[mt][2 * n], a[part][mt], b[0], b[1]);
                    mma16816(s[mt][2 * n + 1], a[part][mt], b[2], b[3]);
                }
        }
    }
}

/* lane offsets into shared memory: of Q and of V transposed; and of K */
template <class T> __device__ static inline uint32_t offset_rows_first() {
    const int lane = threadIdx.x % 32;
    return (uint32_t)(lane % 16 * T::STRIDE + lane / 16 * 16);
}
template <class T> __device__ static inline uint32_t offset_columns_first() {
    const int lane = threadIdx.x % 32;
    return (uint32_t)((lane % 8 + lane / 16 * 8) * T::STRIDE + lane / 8 % 2 * 16);
}

/* keys j0 .. j0 + n - 1 of a page: does no query of the warp see any, does every one see all? */
__device__ static inline bool sees_none(const warp_place &w, int page, int j0, int n) {
    return w.i0 > w.i_last || j0 > w.i_last || (page > 0 && w.i0 - (j0 + n - 1) >= w.window);
}
__device__ static inline bool sees_all(const warp_place &w, int page, int j0, int n) {
    return j0 + n - 1 <= w.i0 && (page == 0 || w.i_last - j0 < w.window);
}

/* what a thread carries: rows g and g + 8 of each fragment */
template <class T> struct softmax_rows {
    float o[T::MT][T::D / 8][4];
    float m[T::MT][2], l[T::MT][2], coef[T::MT][2];
};

/* scores to p, with the rows' maxima and sums; O follows when a maximum has moved */
template <class T>
__device__ static inline void softmax_step(softmax_rows<T> &x, float s[T::MT][T::NK / 8][4]) {
    float top[T::MT][2];
    bool grown = false;
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float t = -INFINITY;
#pragma unroll
            for (int n = 0; n < T::NK / 8; n++)
                t = fmaxf(t, fmaxf(s[mt][n][2 * h], s[mt][n][2 * h + 1]));
            top[mt][h] = fmaxf(x.m[mt][h], group_max<4>(t));
            grown |= (top[mt][h] - x.m[mt][h]) * x.coef[mt][h] > GROWTH; /* false for -inf - -inf */
        }
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
        for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float base = top[mt][h] == -INFINITY ? 0.0f : top[mt][h];
                const float factor = exp2_fast((x.m[mt][h] - base) * x.coef[mt][h]); /* m = -inf: 0 */
                x.m[mt][h] = top[mt][h];
                x.l[mt][h] *= factor;
#pragma unroll
                for (int c = 0; c < T::D / 8; c++) {
                    x.o[mt][c][2 * h] *= factor;
                    x.o[mt][c][2 * h + 1] *= factor;
                }
            }
    }
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float base = x.m[mt][h] == -INFINITY ? 0.0f : x.m[mt][h] * x.coef[mt][h] - BIAS;
            float sum = 0;
#pragma unroll
            for (int n = 0; n < T::NK / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &p = s[mt][n][2 * h + e];
                    p = exp2_fast(p * x.coef[mt][h] - base);
                    sum += p;
                }
            x.l[mt][h] += sum;
        }
}

/* O += P V; v_at: this lane's address in the first of NK rows of V */
template <class T>
__device__ static inline void add_values(softmax_rows<T> &x, const float p[T::MT][T::NK / 8][4],
                                         uint32_t v_at) {
#pragma unroll
    for (int n = 0; n < T::NK / 16; n++) {
        uint32_t a[T::MT][4];
#pragma unroll
        for (int mt = 0; mt < T::MT; mt++) {
            const float *low = p[mt][2 * n], *high = p[mt][2 * n + 1];
            a[mt][0] = pack_halves(low[0], low[1]);
            a[mt][1] = pack_halves(low[2], low[3]);
            a[mt][2] = pack_halves(high[0], high[1]);
            a[mt][3] = pack_halves(high[2], high[3]);
        }
#pragma unroll
        for (int c = 0; c < T::D / 16; c++) {
            uint32_t b[4];
            ldsm4_transposed(b, v_at + n * 16 * T::STRIDE + c * 32);
#pragma unroll
            for (int mt = 0; mt < T::MT; mt++) {
                mma16816(x.o[mt][2 * c], a[mt], b[0], b[1]);
                mma16816(x.o[mt][2 * c + 1], a[mt], b[2], b[3]);
            }
        }
    }
}

/* position of the thread's row h of fragment mt */
__device__ static inline int row_of(int mt, int h) {
    return mt * 16 + h * 8 + (int)threadIdx.x % 32 / 4;
}

template <class T>
__device__ static inline void mask(const warp_place &w, int j0, float s[T::MT][T::NK / 8][4]) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int n = 0; n < T::NK / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (!moa_sees(w.span, w.i0 + row_of(mt, e / 2), j0 + n * 8 + column + e % 2))
                    s[mt][n][e] = -INFINITY;
}

template <class T>
__device__ static inline void write_rows(const mma_job &j, const warp_place &w, softmax_rows<T> &x) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = row_of(mt, h);
            const float l = group_sum<4>(x.l[mt][h]), inv = l > 0 ? 1.0f / l : 0.0f;
            if (w.i0 + r > w.i_last) continue;
            const int64_t row = (int64_t)(w.tok0 + r) * j.n_head + w.head;
            float *o = j.o + row * T::D + column;
#pragma unroll
            for (int c = 0; c < T::D / 8; c++)
                *reinterpret_cast<float2 *>(o + c * 8) =
                    make_float2(x.o[mt][c][2 * h] * inv, x.o[mt][c][2 * h + 1] * inv);
            if (j.lse2 && column == 0)
                j.lse2[row] = l > 0 ? x.m[mt][h] * x.coef[mt][h] + (log2f(l) - BIAS) : -INFINITY;
        }
}

/* grid: looks x heads, then tiles x heads, the last tile first */
template <class T, bool LOOK>
__global__ static void __launch_bounds__(T::THREADS, T::BLOCKS) attend_v2(const __grid_constant__ mma_job j) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float coef[T::BM];
    int tile_tok0;
    const int number = (int)blockIdx.x - (LOOK ? j.look.n_block * j.n_head : 0);
    if (LOOK && number < 0) {
        look<look_tile<T::D, T::WARPS>>(j.look, (int)blockIdx.x, shared);
        return;
    }
    const warp_place w = place_of<T>(j, number, &tile_tok0);
    const int i_end = j.pos0 + min(tile_tok0 + T::BM, j.n_tok); /* past the tile's last query */
    const uint32_t q_at = shared_address(shared) + w.row0 * T::STRIDE,
                   kv_at = shared_address(shared) + T::PARTS * T::Q;
    walk pages(j, w.head_kv, pages_of(w.span, j.pos0 + tile_tok0, i_end - 1));
    const __half *at = nullptr;
    int page = pages.next(&at), buffer = 0;
    if (page >= 0) copy_page<T, 2>(at, i_end - page * MOA_PAGE_TOK, kv_at);
    copies_commit();
    load_queries<T>(j, w, shared + w.row0 * T::STRIDE, coef + w.row0);
    const queries<T> q(q_at + offset_rows_first<T>());
    softmax_rows<T> x;
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            x.m[mt][h] = -INFINITY, x.l[mt][h] = 0;
            x.coef[mt][h] = coef[w.row0 + row_of(mt, h)];
#pragma unroll
            for (int c = 0; c < T::D / 8; c++)
                x.o[mt][c][2 * h] = x.o[mt][c][2 * h + 1] = 0;
        }
    while (page >= 0) {
        copies_wait<0>();
        __syncthreads(); /* this page is here for all, and all are done with the buffer of the last one */
        const int next = pages.next(&at);
        if (next >= 0) copy_page<T, 2>(at, i_end - next * MOA_PAGE_TOK, kv_at + (buffer ^ 1) * 2 * T::PAGE);
        copies_commit();
        const uint32_t k_at = kv_at + buffer * 2 * T::PAGE + offset_columns_first<T>(),
                       v_at = kv_at + buffer * 2 * T::PAGE + T::PAGE + offset_rows_first<T>();
#pragma unroll 1
        for (int r = 0; r < MOA_PAGE_TOK; r += T::NK) {
            const int j0 = page * MOA_PAGE_TOK + r;
            if (sees_none(w, page, j0, T::NK)) continue;
            float s[T::MT][T::NK / 8][4];
            scores<T>(q, k_at + r * T::STRIDE, s);
            if (!sees_all(w, page, j0, T::NK)) mask<T>(w, j0, s);
            softmax_step<T>(x, s);
            add_values<T>(x, s, v_at + r * T::STRIDE);
        }
        page = next;
        buffer ^= 1;
    }
    write_rows<T>(j, w, x);
}

/* --- the probe of 2 parts: a second look at the scores (of 1: attn_prefill_look.cuh) --------------------- */

/* of a row, this thread's columns: sums over normalised p */
template <class T> struct probe_rows {
    float coef[T::MT][2], lse2[T::MT][2];
    float t[T::MT][2]; /* p (s - lse), log2: minus the entropy */
    float sink[T::MT][2], window[T::MT][2], distance[T::MT][2];
};
/* of a page: masses on keys at or before the row's own place in its page, and after it */
template <class T> struct page_mass { float far[T::MT][2], near[T::MT][2]; };

/* EDGE: some pair is not seen, or the measured window's edge passes; else the page is all sink, all window or all neither */
template <class T, bool EDGE>
__device__ static inline void probe_step(probe_rows<T> &x, page_mass<T> &mass,
                                         const float s[T::MT][T::NK / 8][4], const warp_place &w, int page,
                                         int j0, int measure) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int i = w.i0 + row_of(mt, h), own = i % MOA_PAGE_TOK - j0 % MOA_PAGE_TOK - column;
            float far = 0, near = 0, place = 0, in_window = 0;
#pragma unroll
            for (int n = 0; n < T::NK / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int c = n * 8 + e, key = j0 + column + c;
                    float y = s[mt][n][2 * h + e] * x.coef[mt][h] - x.lse2[mt][h];
                    if (EDGE && !moa_sees(w.span, i, key)) y = -1000.0f;
                    const float p = exp2_fast(y);
                    x.t[mt][h] += p * y;
                    place += p * (float)c;
                    far += c <= own ? p : 0.0f;
                    near += c <= own ? 0.0f : p;
                    if (EDGE) in_window += i - key < measure ? p : 0.0f;
                }
            const float all = far + near;
            if (page == 0)
                x.sink[mt][h] += all;
            else if (EDGE)
                x.window[mt][h] += in_window;
            else
                x.window[mt][h] += w.i_last - j0 < measure ? all : 0.0f;
            x.distance[mt][h] += (float)(i - j0 - column) * all - place;
            mass.far[mt][h] += far;
            mass.near[mt][h] += near;
        }
}

/* the warp's masses of a page into the head's histogram: rows of one bucket and one 64-query block share their bins */
template <class T>
__device__ static inline void add_hist(const moa_probe &probe, const warp_place &w, int page,
                                       const page_mass<T> &mass) {
    float *hist = probe.hist + (int64_t)w.head * MOA_HIST_BUCKETS * (1 + probe.n_bin);
    for (int first = w.i0, last; first <= w.i_last; first = last + 1) {
        const int bucket = min(first / probe.bucket_tok, MOA_HIST_BUCKETS - 1),
                  bin = first / MOA_PAGE_TOK - page;
        const float weight = (float)moa_probe_weight(&probe.rows, first);
        last = min(w.i_last, first / MOA_PAGE_TOK * MOA_PAGE_TOK + MOA_PAGE_TOK - 1);
        if (bucket < MOA_HIST_BUCKETS - 1)
            last = min((int64_t)last, (int64_t)(bucket + 1) * probe.bucket_tok - 1);
        float far = 0, near = 0;
#pragma unroll
        for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int i = w.i0 + row_of(mt, h);
                if (i < first || i > last) continue;
                far += mass.far[mt][h];
                near += mass.near[mt][h];
            }
        far = warp_sum(far);
        near = warp_sum(near);
        if (threadIdx.x % 32 != 0 || weight == 0) continue;
        far *= weight, near *= weight;
        float *row = hist + (int64_t)bucket * (1 + probe.n_bin);
        if (page == 0) {
            atomicAdd(row, far + near);
            continue;
        }
        if (far > 0 && bin >= 0) atomicAdd(row + 1 + min(bin, probe.n_bin - 1), far);
        if (near > 0 && bin >= 1) atomicAdd(row + 1 + min(bin - 1, probe.n_bin - 1), near);
    }
}

template <class T>
__device__ static inline void write_stats(const mma_job &j, const warp_place &w, const probe_rows<T> &x) {
    constexpr float LN2 = 0.69314718f;
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = row_of(mt, h);
            const float t = group_sum<4>(x.t[mt][h]), sink = group_sum<4>(x.sink[mt][h]),
                        window = group_sum<4>(x.window[mt][h]), distance = group_sum<4>(x.distance[mt][h]);
            if (w.i0 + r > w.i_last || threadIdx.x % 4 != 0) continue;
            float *out = j.probe.stat + ((int64_t)(w.tok0 + r) * j.n_head + w.head) * MOA_N_STAT;
            out[MOA_STAT_ENTROPY] = fmaxf(-t * LN2, 0.0f);
            out[MOA_STAT_SINK] = sink;
            out[MOA_STAT_WINDOW] = window;
            out[MOA_STAT_DISTANCE] = distance;
            out[MOA_STAT_LSE] = x.lse2[mt][h] < NOTHING ? x.lse2[mt][h] * LN2 : 0.0f;
        }
}

/* grid as attend_v2, whose lse2 it reads */
template <class T>
__global__ static void __launch_bounds__(T::THREADS, T::BLOCKS) probe_v2(const __grid_constant__ mma_job j) {
    extern __shared__ __align__(16) unsigned char shared[];
    __shared__ float coef[T::BM];
    int tile_tok0;
    const warp_place w = place_of<T>(j, (int)blockIdx.x, &tile_tok0);
    const int i_end = j.pos0 + min(tile_tok0 + T::BM, j.n_tok);
    if (!looked_at(j.probe.rows, j.pos0 + tile_tok0, i_end)) return;
    const int measure = j.probe.measure_span ? moa_window(j.probe.measure_span[w.head]) : w.window;
    const uint32_t q_at = shared_address(shared) + w.row0 * T::STRIDE,
                   kv_at = shared_address(shared) + T::PARTS * T::Q;
    walk pages(j, w.head_kv, pages_of(w.span, j.pos0 + tile_tok0, i_end - 1));
    const __half *at = nullptr;
    int page = pages.next(&at), buffer = 0;
    if (page >= 0) copy_page<T, 1>(at, i_end - page * MOA_PAGE_TOK, kv_at);
    copies_commit();
    load_queries<T>(j, w, shared + w.row0 * T::STRIDE, coef + w.row0);
    const queries<T> q(q_at + offset_rows_first<T>());
    probe_rows<T> x = {};
#pragma unroll
    for (int mt = 0; mt < T::MT; mt++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = row_of(mt, h);
            x.coef[mt][h] = coef[w.row0 + r];
            const float lse2 =
                w.i0 + r <= w.i_last ? j.lse2[(int64_t)(w.tok0 + r) * j.n_head + w.head] : -INFINITY;
            x.lse2[mt][h] = lse2 == -INFINITY ? NOTHING : lse2;
        }
    while (page >= 0) {
        copies_wait<0>();
        __syncthreads();
        const int next = pages.next(&at);
        if (next >= 0) copy_page<T, 1>(at, i_end - next * MOA_PAGE_TOK, kv_at + (buffer ^ 1) * T::PAGE);
        copies_commit();
        const uint32_t k_at = kv_at + buffer * T::PAGE + offset_columns_first<T>();
        page_mass<T> mass = {};
#pragma unroll 1
        for (int r = 0; r < MOA_PAGE_TOK; r += T::NK) {
            const int j0 = page * MOA_PAGE_TOK + r;
            if (sees_none(w, page, j0, T::NK)) continue;
            float s[T::MT][T::NK / 8][4];
            scores<T>(q, k_at + r * T::STRIDE, s);
            const bool measured = w.i_last - j0 < measure, unmeasured = w.i0 - (j0 + T::NK - 1) >= measure;
            if (sees_all(w, page, j0, T::NK) && (page == 0 || measured || unmeasured))
                probe_step<T, false>(x, mass, s, w, page, j0, measure);
            else
                probe_step<T, true>(x, mass, s, w, page, j0, measure);
        }
        if (j.probe.hist && !sees_none(w, page, page * MOA_PAGE_TOK, MOA_PAGE_TOK))
            add_hist<T>(j.probe, w, page, mass);
        page = next;
        buffer ^= 1;
    }
    if (j.probe.stat) write_stats<T>(j, w, x);
}

/* --- host side ------------------------------------------------------------------------------------------- */

template <typename K>
static cudaError_t launch(moa_cuda *c, K kernel, int n_block, int n_thread, size_t bytes, const mma_job &j) {
    cudaError_t e = moa_allow_shared(kernel, bytes);
    if (e == cudaSuccess)
        e = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
    if (e != cudaSuccess) return e;
    kernel<<<(unsigned)n_block, (unsigned)n_thread, bytes, c->stream>>>(j);
    return cudaGetLastError();
}

template <class T> static cudaError_t run(moa_cuda *c, const mma_job &j) {
    typedef look_tile<T::D, T::WARPS> look;
    const int n_block = moa_ceil_div(j.n_tok, T::BM) * j.n_head, n_look = j.look.n_block * j.n_head;
    if constexpr (T::PARTS == 1) {
        const size_t bytes = T::attend_bytes() > (size_t)look::END ? T::attend_bytes() : (size_t)look::END;
        return n_look > 0 ? launch(c, attend_v2<T, true>, n_look + n_block, T::THREADS, bytes, j)
                          : launch(c, attend_v2<T, false>, n_block, T::THREADS, T::attend_bytes(), j);
    } else {
        const cudaError_t e = launch(c, attend_v2<T, false>, n_block, T::THREADS, T::attend_bytes(), j);
        return e != cudaSuccess || !j.lse2 ? e : launch(c, probe_v2<T>, n_block, T::THREADS, T::probe_bytes(), j);
    }
}

/* the large tile when there are enough of them for all multiprocessors */
template <class LARGE, class SMALL> static cudaError_t run_fitting(moa_cuda *c, const mma_job &j) {
    const int64_t n_large = (int64_t)moa_ceil_div(j.n_tok, LARGE::BM) * j.n_head;
    return n_large >= (int64_t)LARGE::BLOCKS * c->n_sm ? run<LARGE>(c, j) : run<SMALL>(c, j);
}

/* Registers allow 8 warps a multiprocessor with 128 elements (2 x 4, or 8 where two blocks' shared memory would not fit), 12 with 64. */
static cudaError_t run_one_half(moa_cuda *c, const mma_job &j) {
    switch (j.kv.d_head) {
    case 64: return run_fitting<tile<64, 4, 2, 32, 3, 1>, tile<64, 4, 1, 32, 4, 1>>(c, j);
    case 80: return run_fitting<tile<80, 4, 2, 32, 2, 1>, tile<80, 4, 1, 32, 3, 1>>(c, j);
    case 96: return run_fitting<tile<96, 4, 2, 32, 2, 1>, tile<96, 4, 1, 32, 3, 1>>(c, j);
    case 128: return run_fitting<tile<128, 4, 2, 32, 2, 1>, tile<128, 4, 1, 64, 2, 1>>(c, j);
    default: return run_fitting<tile<256, 8, 1, 32, 1, 1>, tile<256, 4, 1, 32, 1, 1>>(c, j);
    }
}
static cudaError_t run_two_halves(moa_cuda *c, const mma_job &j) {
    switch (j.kv.d_head) {
    case 64: return run_fitting<tile<64, 4, 2, 32, 3, 2>, tile<64, 4, 1, 32, 4, 2>>(c, j);
    case 80: return run_fitting<tile<80, 4, 2, 32, 2, 2>, tile<80, 4, 1, 32, 3, 2>>(c, j);
    case 96: return run_fitting<tile<96, 4, 2, 32, 2, 2>, tile<96, 4, 1, 32, 2, 2>>(c, j);
    case 128: return run_fitting<tile<128, 8, 1, 64, 1, 2>, tile<128, 4, 1, 64, 2, 2>>(c, j);
    default: return run<tile<256, 4, 1, 32, 1, 2>>(c, j);
    }
}

bool moa_cuda_prefill_mma_takes(const moa_args_attn_prefill *a) {
    const int d = a->kv.d_head;
    const uintptr_t all = (uintptr_t)a->q | (uintptr_t)a->o | (uintptr_t)a->kv.pool;
    return a->kv.type == MOA_KV_F16 && (d == 64 || d == 80 || d == 96 || d == 128 || d == 256) &&
           all % 16 == 0;
}

static mma_job job_of(const moa_args_attn_prefill *a) {
    static constexpr float LOG2E = 1.44269504f;
    return {a->q,     a->o,      moa_kv_of<__half>(&a->kv),   a->span,          a->seq,  a->pos0,
            a->n_tok, a->n_head, a->n_head / a->kv.n_head_kv, a->scale * LOG2E, nullptr, a->probe, {}};
}

moa_status moa_cuda_prefill_mma(moa_cuda *c, const moa_args_attn_prefill *a, int parts, moa_err *err) {
    mma_job j = job_of(a);
    const bool sampled = parts == 1 && a->probe.rows.every > 0;
    if (sampled) j.look = look_job_of(a, nullptr);
    if (!sampled && (a->probe.stat || a->probe.hist))
        MOA_RETURN(moa_cuda_scratch(c, sizeof(float) * (size_t)a->n_tok * (size_t)a->n_head,
                                    reinterpret_cast<void **>(&j.lse2), err));
    MOA_CU(c, parts == 2 ? run_two_halves(c, j) : run_one_half(c, j));
    return parts == 1 && j.lse2 ? moa_cuda_prefill_look(c, a, j.lse2, err) : MOA_OK;
}
