/* step_cluster.cuh -- how the blocks of step_cluster.cu are fed and how they speak to each other.
 *
 *   ring      A block's weights, vectors and old keys come in the order of the program, as chunks of any size, into one ring of shared
 *             memory. A warp of its own, the feeder, finds room, says in a note where the chunk lies, and starts its bulk copies; it
 *             depends on no activation and runs ahead over phases and layers by what the ring holds. Two mbarriers a chunk: `full`
 *             counts its bytes, `empty` the warps that have read it
 *
 *   chunk     rows of a matrix:  [row][row].. of low, each row so placed that two rows of a product lie in different banks
 *                                | high | scale | head, as packed.cuh has them, from the 16 bytes in front on
 *             vectors:           norm | biases of this block's rows
 *             keys and values:   8 units of 16 tokens, each as attn_decode_mma.cuh wants it
 *
 *   exchange  What a block computes it sends to all of its cluster as 16-byte st.async, which add to an mbarrier there: a phase begins when the
 *             bytes of its input are counted, and nobody meets. A block enters a phase only with parts from all others, so none is more
 *             than one phase ahead, and what a phase reads is written again only two phases later: no other barrier is needed */
#ifndef MOA_CUDA_STEP_CLUSTER_CUH
#define MOA_CUDA_STEP_CLUSTER_CUH

#include "cuda/attn_decode_mma.cuh"
#include "cuda/row.cuh"

static constexpr int MOST_BLOCKS = 16, WARPS = 8, THREADS = WARPS * 32, NOTES = 16, KEY_UNITS = 8,
                     MAX_LAYER = 128, MAX_FORM = 24, STATE = 8, TILE = 16, GROUP_UNITS = 4;

enum cluster_matrix { MATRIX_Q, MATRIX_K, MATRIX_V, MATRIX_O, MATRIX_GATE, MATRIX_UP, MATRIX_DOWN, N_MATRIX };
enum cluster_input { INPUT_QKV, INPUT_O, INPUT_X, INPUT_GATE, N_INPUT };
enum cluster_type {
#define X(stem) TYPE_##stem,
    MOA_PACKED_MAP(X)
#undef X
        N_TYPE
};

/* All that depends on a matrix's type and size alone. Streams: high, scale, head. */
struct cluster_form {
    uint32_t begin16[3];               /* in the matrix, in 16s of bytes */
    uint32_t at[3];                    /* in a chunk */
    uint32_t low_bytes, stride, bytes; /* of a row of low: in memory, in a chunk; of a chunk */
    uint16_t unit8[3];                 /* eighths of a byte a unit */
    uint16_t n_unit, rows, chunk_rows, n_chunk, n_group,
        type; /* rows: of a block; n_group: of GROUP_UNITS units a row */
    uint16_t step, n_part,
        by_part; /* a warp's piece of a tile: step groups; pieces of a tile; 65536 / n_part, up */
};
struct cluster_layer {
    const uint8_t *w[N_MATRIX];
    const float *bias[3], *norm[2];
    uint8_t form[N_MATRIX + 1];
};
/* a KV head's part of a layer's attention; seen units are numbered from 0: the sink's, then those of the window */
struct cluster_share {
    int n_seen, begin, n_block; /* begin: the window's first unit; n_block: that share the head */
};
/* offsets in shared memory */
struct cluster_places {
    int ring, ring_bytes, x, qkv, gate, o_part, o_state, fixed, parts, bias, own, turn, share, layers, forms,
        bars, bytes;
    int red_floats; /* of a part of a phase */
};

struct cluster_job {
    float *x;   /* (n_tok, d_model); a cluster a row */
    int blocks; /* of a cluster: 8 or 16 */
    int n_layer, n_form, d_model, n_q, n_kv, d_ff;
    float eps, scale;
    const float *factors; /* rope: (half) or NULL */
    int half;             /* rope_dim / 2 */
    bool pairs;
    double log2_theta, rope_scale;
    moa_kv<__half> kv; /* of layer 0 */
    int64_t table_layer;
    const int32_t *pos, *seq,
        *span; /* (n_tok); span: (n_layer, n_head) of a row, span_stride to the next row's */
    int64_t span_stride;
    int n_head, n_head_kv, group, n_split; /* n_split: blocks of a KV head at most */
    moa_probe probe;
    float4 *mass; /* (n_layer, n_head, max_pages * UNITS_PAGE) or NULL */
    float *lse;   /* (n_layer, n_head) or NULL */
    cluster_places at;
    cluster_form form[MAX_FORM];
    cluster_layer layer[MAX_LAYER];
};

struct cluster_note {
    unsigned at, mask; /* in the ring; units that are there */
};
struct cluster_bars {
    uint64_t full[NOTES], empty[NOTES], input[N_INPUT];
    cluster_note note[NOTES];
};

/* shared memory as this block sees it */
struct cluster_view {
    uint8_t *base;
    cluster_bars *bars;
    const cluster_layer *layers;
    const cluster_form *forms;
    const cluster_share *shares;
    unsigned rank;
    int row;

    template <typename T> __device__ inline T *at(int offset) const {
        return reinterpret_cast<T *>(base + offset);
    }
    __device__ inline const cluster_form &form(int layer, int matrix) const {
        return forms[layers[layer].form[matrix]];
    }
};
__device__ static inline cluster_view view_of(const cluster_job &j, uint8_t *base) {
    cluster_view s;
    s.base = base;
    s.bars = s.at<cluster_bars>(j.at.bars);
    s.layers = s.at<cluster_layer>(j.at.layers);
    s.forms = s.at<cluster_form>(j.at.forms);
    s.shares = s.at<cluster_share>(j.at.share);
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(s.rank));
    s.row = (int)blockIdx.x / j.blocks;
    return s;
}

/* --- instructions ----------------------------------------------------------------------------------------- */

__device__ static inline void bar_init(uint64_t *bar, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_at(bar)), "r"(count) : "memory");
}
__device__ static inline void bar_expect(uint64_t *bar, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_at(bar)), "r"(bytes)
                 : "memory");
#endif
}
__device__ static inline void bar_arrive(uint64_t *bar) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_at(bar)) : "memory");
#endif
}
/* what other blocks have sent is there too */
__device__ static inline void bar_wait_cluster(uint64_t *bar, unsigned parity) {
#if __CUDA_ARCH__ >= 900
    unsigned done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
                     "selp.b32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(shared_at(bar)), "r"(parity)
                     : "memory");
    } while (!done);
#endif
}
__device__ static inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ static inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
/* all warps but the feeder */
__device__ static inline void meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
}
__device__ static inline void copy_in(unsigned to, const void *from, unsigned bytes, unsigned bar) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(from), "r"(bytes), "r"(bar)
        : "memory");
#endif
}
__device__ static inline void mma_k32(int c[4], const unsigned a[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ static inline void mma_k16(int c[4], unsigned a0, unsigned a1, unsigned b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}

/* --- sending ------------------------------------------------------------------------------------------------ */

/* the windows of this lane's blocks: 4 t + lane % 4 */
struct cluster_peers {
    unsigned base, peer[MOST_BLOCKS / 4], blocks;

    __device__ inline void find(const cluster_job &j, const cluster_view &s) {
        base = shared_at(s.base);
        blocks = (unsigned)j.blocks;
#pragma unroll
        for (unsigned t = 0; t < MOST_BLOCKS / 4; t++) {
            peer[t] = base;
#if __CUDA_ARCH__ >= 900
            if (4 * t < blocks)
                asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                             : "=r"(peer[t])
                             : "r"(base), "r"(4 * t + threadIdx.x % 4));
#endif
        }
    }
    /* by the four lanes of a quad with the same v: it becomes v at `to` in all blocks */
    __device__ inline void send(const void *to, float4 v, const uint64_t *bar) const {
        const unsigned d = shared_at(to) - base, b = shared_at(bar) - base;
#if __CUDA_ARCH__ >= 900
#pragma unroll
        for (unsigned t = 0; t < MOST_BLOCKS / 4; t++)
            if (4 * t < blocks)
                asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], "
                             "{%1,%2,%3,%4}, [%5];" ::"r"(peer[t] + d),
                             "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)),
                             "r"(__float_as_uint(v.w)), "r"(peer[t] + b)
                             : "memory");
#endif
    }
};

/* --- attention's shares ------------------------------------------------------------------------------------- */

__device__ static inline int sink_units(int pos) {
    return pos < 0 ? 0 : min(pos / UNIT_TOK + 1, (int)SINK_UNITS);
}
__device__ static inline cluster_share share_of(int pos, int widest, int n_split) {
    cluster_share s;
    const int last = pos < 0 ? -1 : pos / UNIT_TOK;
    s.begin = max(moa_window_first(widest, pos) / UNIT_TOK, (int)SINK_UNITS);
    s.n_seen = sink_units(pos) + max(last - s.begin + 1, 0);
    s.n_block = max(1, min(n_split, (s.n_seen + KEY_UNITS - 1) / KEY_UNITS));
    return s;
}
__device__ static inline int unit_of(const cluster_share &s, int pos, int v) {
    const int n_sink = sink_units(pos);
    return v < n_sink ? v : v - n_sink + s.begin;
}
/* this block's units are split, split + n_block, ...: how many */
__device__ static inline int local_units(const cluster_share &s, int split) {
    return split < s.n_block ? (s.n_seen - split + s.n_block - 1) / s.n_block : 0;
}

/* --- the feeder ---------------------------------------------------------------------------------------------- */

template <int D> struct cluster_feeder {
    const cluster_job &j;
    const cluster_view &s;
    unsigned made, gone, head;
    unsigned to, bar;    /* of the chunk that has been begun */
    int pos, seq, entry; /* entry: of the page of this lane's unit in the next chunk of keys */

    __device__ inline cluster_feeder(const cluster_job &job, const cluster_view &view)
        : j(job), s(view), made(0), gone(0), head(0), to(0), bar(0), pos(-1), seq(0), entry(-1) {}
    __device__ static inline int lane() { return (int)(threadIdx.x % 32); }

    /* Waits for chunks to be read until the next fits in front of or behind those that are not. */
    __device__ inline unsigned room(unsigned bytes) {
        for (;;) {
            if (made == gone) return 0;
            if (made - gone < NOTES) {
                const unsigned tail = s.bars->note[gone % NOTES].at;
                if (head > tail) {
                    if (head + bytes <= (unsigned)j.at.ring_bytes) return head;
                    if (bytes <= tail) return 0;
                } else if (head + bytes <= tail) {
                    return head;
                }
            }
            barrier_wait(shared_at(&s.bars->empty[gone % NOTES]), gone / NOTES & 1);
            gone++;
        }
    }
    __device__ inline void begin(unsigned bytes, unsigned arriving, unsigned mask) {
        const unsigned at = room(bytes), i = made % NOTES;
        head = at + bytes;
        made++;
        to = shared_at(s.base + j.at.ring) + at;
        bar = shared_at(&s.bars->full[i]);
        if (lane() == 0) {
            s.bars->note[i] = {at, mask};
            bar_expect(&s.bars->full[i], arriving);
        }
        __syncwarp();
    }

    __device__ inline void vectors(int layer, int which) {
        const cluster_layer &y = s.layers[layer];
        const unsigned norm = (unsigned)j.d_model * 4;
        const float *from = lane() == 0 ? y.norm[which] : nullptr;
        unsigned bytes = lane() == 0 ? norm : 0, at = 0, all = norm;
        if (which == 0)
            for (int i = 0; i < 3; i++) {
                const unsigned rows = s.form(layer, MATRIX_Q + i).rows;
                if (lane() == i + 1 && y.bias[i]) {
                    from = y.bias[i] + s.rank * rows;
                    bytes = rows * 4, at = all;
                }
                all += rows * 4;
            }
        begin((all + 127) & ~127u, __reduce_add_sync(ALL, bytes), 0);
        if (bytes) copy_in(to + at, from, bytes, bar);
    }
    __device__ inline void rows(int layer, int matrix, int chunk) {
        const cluster_form &f = s.form(layer, matrix);
        const uint8_t *w = s.layers[layer].w[matrix];
        const unsigned first = s.rank * f.rows + (unsigned)(chunk * f.chunk_rows),
                       n = (unsigned)min((int)f.chunk_rows, f.rows - chunk * f.chunk_rows);
        unsigned bytes = 0, at = 0;
        const uint8_t *from = nullptr;
        if (lane() < 3 && f.unit8[lane()]) {
            const uint64_t begin8 = (uint64_t)first * f.n_unit * f.unit8[lane()],
                           end8 = (uint64_t)(first + n) * f.n_unit * f.unit8[lane()];
            const uint64_t a = begin8 / 8 & ~(uint64_t)15, b = (end8 / 8 + 15) & ~(uint64_t)15;
            from = w + (uint64_t)f.begin16[lane()] * 16 + a;
            bytes = (unsigned)(b - a), at = f.at[lane()];
        }
        begin(f.bytes, __reduce_add_sync(ALL, bytes) + n * f.low_bytes, 0);
        if (bytes) copy_in(to + at, from, bytes, bar);
#pragma unroll 1
        for (unsigned r = (unsigned)lane(); r < n; r += 32)
            copy_in(to + r * f.stride, w + (uint64_t)(first + r) * f.low_bytes, f.low_bytes, bar);
    }
    /* table entry of local unit i of a layer */
    __device__ inline int load_entry(int layer, int head_kv, int split, int i) const {
        if (layer >= j.n_layer) return -1;
        const cluster_share k = s.shares[layer * j.n_head_kv + head_kv];
        if (i >= local_units(k, split)) return -1;
        const int page = unit_of(k, pos, split + i * k.n_block) / UNITS_PAGE;
        if (page >= j.kv.max_pages) return -1;
        return __ldg(j.kv.table + layer * j.table_layer + seq * j.kv.seq_stride +
                     (int64_t)head_kv * j.kv.max_pages + page);
    }
    /* lanes 4 i .. 4 i + 3: the quarters of K and of V of unit i */
    __device__ inline void keys(int layer) {
        typedef unit_layout<D> t;
        const int head_kv = (int)s.rank / j.n_split, split = (int)s.rank % j.n_split, mine = lane() / 4,
                  quarter = lane() % 4;
        if (head_kv >= j.n_head_kv) return;
        const cluster_share k = s.shares[layer * j.n_head_kv + head_kv];
        const int n = local_units(k, split);
#pragma unroll 1
        for (int first = 0; first < n; first += KEY_UNITS) {
            const unsigned there = __ballot_sync(ALL, entry >= 0);
            const int unit = unit_of(k, pos, split + (first + mine) * k.n_block);
            begin(KEY_UNITS * t::UNIT, (unsigned)__popc(there) * 2 * 4 * t::ROW, there);
            if (entry >= 0) {
                const __half *from =
                    j.kv.pool +
                    ((int64_t)entry * (2 * MOA_PAGE_TOK) + unit % UNITS_PAGE * UNIT_TOK + quarter * 4) * D;
                const unsigned at = to + (unsigned)(mine * t::UNIT + quarter * t::QUARTER);
                copy_in(at, from, 4 * t::ROW, bar);
                copy_in(at + t::SIDE, from + MOA_PAGE_TOK * D, 4 * t::ROW, bar);
            }
            entry = first + KEY_UNITS < n ? load_entry(layer, head_kv, split, first + KEY_UNITS + mine)
                                          : load_entry(layer + 1, head_kv, split, mine);
        }
        if (n == 0) entry = load_entry(layer + 1, head_kv, split, mine);
    }
    __device__ inline void start_keys() {
        const int head_kv = (int)s.rank / j.n_split;
        if (head_kv < j.n_head_kv) entry = load_entry(0, head_kv, (int)s.rank % j.n_split, lane() / 4);
    }
};

/* --- the readers' way through the chunks ------------------------------------------------------------------------ */

struct cluster_reader {
    unsigned seen;

    /* waits for the next chunk; its number goes to leave() when it has been read */
    __device__ inline unsigned take(const cluster_view &s) {
        barrier_wait(shared_at(&s.bars->full[seen % NOTES]), seen / NOTES & 1);
        return seen++ % NOTES;
    }
    /* the whole warp has read it */
    __device__ inline void leave(const cluster_view &s, unsigned i) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) bar_arrive(&s.bars->empty[i]);
    }
};

/* --- x in fixed point --------------------------------------------------------------------------------------------- */

/* Planes as row_packed's put() has them (hi 0..15, hi 16..31, lo 0..15, lo 16..31; n units each), then {factor, sum} and the sum of
 * 16..31 of each unit. */
struct cluster_fixed {
    uint4 *x;
    float2 *meta;
    int *half;
    int n;
};
__device__ static inline cluster_fixed fixed_of(const cluster_job &j, const cluster_view &s, int n_in) {
    cluster_fixed f;
    f.n = n_in / 32;
    f.x = s.at<uint4>(j.at.fixed);
    f.meta = reinterpret_cast<float2 *>(f.x + 4 * f.n);
    f.half = reinterpret_cast<int *>(f.meta + f.n);
    return f;
}
/* values 4 i .. 4 i + 3, by whole warps; beyond x nothing is written */
__device__ static inline void put_fixed(const cluster_fixed &f, int i, float4 v) {
    const int u = i / 8, e = i % 8;
    uint32_t *words = reinterpret_cast<uint32_t *>(f.x);
    uint32_t most = max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2)
        most = max(most, __shfl_xor_sync(ALL, most, lane));
    const float m = __uint_as_float(most), inverse = m > 1e-30f ? __fdividef(32512.0f, m) : 0.0f;
    const int q0 = __float2int_rn(v.x * inverse), q1 = __float2int_rn(v.y * inverse),
              q2 = __float2int_rn(v.z * inverse), q3 = __float2int_rn(v.w * inverse);
    int sum = (q0 + q1) + (q2 + q3);
    sum += __shfl_xor_sync(ALL, sum, 1);
    sum += __shfl_xor_sync(ALL, sum, 2);
    const int other = __shfl_xor_sync(ALL, sum, 4);
    if (u >= f.n) return;
    typedef row_packed<packed_q4_0> T;
    words[(e / 4 * f.n + u) * 4 + e % 4] =
        T::bytes((q0 + 128) >> 8, (q1 + 128) >> 8, (q2 + 128) >> 8, (q3 + 128) >> 8);
    words[((2 + e / 4) * f.n + u) * 4 + e % 4] = T::bytes(q0, q1, q2, q3);
    if (e != 4) return; /* of the second half */
    const float step = most >= 0x7f800000u ? __uint_as_float(0x7fc00000u)
                       : m > 1e-30f        ? m * (1.0f / 32512.0f)
                                           : 0.0f;
    f.meta[u] = make_float2(step, __int_as_float(sum + other));
    f.half[u] = sum;
}

/* --- products ------------------------------------------------------------------------------------------------------ */

/* A chunk's rows as the products find them. The product is m16n8k32: sixteen rows, and lane (g, c) brings all of unit c of four for rows
 * g and g + 8, 8 bytes of it at a time; x is the small side, its columns 2 c and 2 c + 1 the high and the low bytes of unit c and zero
 * for the other units. So the sums of unit c come to the lanes that have its scales, nothing is reduced and no column is wasted. */
struct cluster_rows {
    const uint8_t *low, *stream[3];
    int rows;
};
__device__ static inline cluster_rows rows_of(const cluster_view &s, const cluster_form &f,
                                              const uint8_t *chunk, int number) {
    cluster_rows r;
    const unsigned first = s.rank * f.rows + (unsigned)(number * f.chunk_rows);
    r.low = chunk;
    r.rows = min((int)f.chunk_rows, f.rows - number * f.chunk_rows);
#pragma unroll
    for (int k = 0; k < 3; k++) /* low bits of the offset are all that count */
        r.stream[k] = chunk + f.at[k] + (first * f.n_unit * f.unit8[k] / 8 & 15);
    return r;
}
template <typename F>
__device__ static inline void load_unit(const cluster_form &f, const cluster_rows &r, int row, int u,
                                        packed_raw<F> &q) {
    const uint4 *low = reinterpret_cast<const uint4 *>(r.low + (unsigned)row * f.stride) + u;
    const int at = row * f.n_unit + u;
    store4(q.q, low[0]);
    if constexpr (F::LOW == 2) store4(q.q + 4, low[f.n_unit]);
    if constexpr (F::HIGH == 4) q.h[0] = *reinterpret_cast<const uint32_t *>(r.stream[0] + 4 * at);
    if constexpr (F::HIGH == 8) {
        const uint2 h = *reinterpret_cast<const uint2 *>(r.stream[0] + 8 * at);
        q.h[0] = h.x, q.h[F::HIGH / 4 - 1] = h.y;
    }
    if constexpr (F::SCALE == 2) q.s[0] = *reinterpret_cast<const uint16_t *>(r.stream[1] + 2 * at);
    if constexpr (F::SCALE == 4) q.s[0] = *reinterpret_cast<const uint32_t *>(r.stream[1] + 4 * at);
    if constexpr (F::KIND == SCALES_K)
        store4(q.s, *reinterpret_cast<const uint4 *>(r.stream[2] + at / 8 * 16));
    if constexpr (F::KIND == SCALES_K6)
        q.s[1 % (sizeof q.s / 4)] = *reinterpret_cast<const uint16_t *>(r.stream[2] + at / 8 * 2);
}
template <typename F>
__device__ static inline float scaled(const packed_raw<F> &r, int u, int first, int second, float2 meta,
                                      int half) {
    const packed_step p = packed_scale<F>(r, u);
    const int all = __float_as_int(meta.y);
    float t;
    if constexpr (F::KIND == SCALES_K6)
        t = p.step[0] * (float)(first - F::ZERO * (all - half)) +
            p.step[1] * (float)(second - F::ZERO * half);
    else
        t = p.step[0] * (float)(first - (F::ZERO ? F::ZERO * all : 0));
    if constexpr (F::KIND == SCALES_DM || F::KIND == SCALES_K) t += p.off * (float)all;
    return meta.x * t;
}
/* groups k0 .. k0 + n - 1 of a tile of 16 rows: what this lane has of rows g and g + 8 */
template <typename F>
__device__ static inline void use_tile(const cluster_form &f, const cluster_rows &r, const cluster_fixed &x,
                                       int tile, int k0, int n, float sum[2]) {
    const int g = (int)threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int a = min(tile * TILE + g, r.rows - 1), b = min(tile * TILE + g + 8, r.rows - 1);
    const bool mine = g / 2 == c;
    const uint4 *plane = x.x + (g % 2 ? 2 * x.n : 0);
#pragma unroll 1
    for (int k = k0; k < k0 + n; k++) {
        const int u0 = k * GROUP_UNITS + c, u = min(u0, x.n - 1);
        const bool there = u0 < x.n;
        packed_raw<F> ra, rb;
        load_unit<F>(f, r, a, u, ra);
        load_unit<F>(f, r, b, u, rb);
        uint32_t x0[4] = {}, x1[4] = {};
        if (mine && there) store4(x0, plane[u]), store4(x1, plane[x.n + u]);
        const float2 meta = x.meta[u];
        int s[2][4] = {},
            half = 0; /* the halves of a unit apart where their scales are, else products 0, 1 and 2, 3 */
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const unsigned w[4] = {packed_codes<F>(ra, t), packed_codes<F>(rb, t), packed_codes<F>(ra, 4 + t),
                                   packed_codes<F>(rb, 4 + t)};
            if constexpr (F::KIND == SCALES_K6) {
                mma_k16(s[0], w[0], w[1], x0[t]);
                mma_k16(s[1], w[2], w[3], x1[t]);
            } else {
                mma_k32(s[t / 2], w, x0[t], x1[t]);
            }
        }
        int p[2], q[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            p[i] = 256 * s[0][2 * i] + s[0][2 * i + 1];
            q[i] = 256 * s[1][2 * i] + s[1][2 * i + 1];
            if (F::KIND != SCALES_K6) p[i] += q[i];
        }
        if constexpr (F::KIND == SCALES_K6) half = x.half[u];
        const float ya = scaled<F>(ra, u, p[0], q[0], meta, half),
                    yb = scaled<F>(rb, u, p[1], q[1], meta, half);
        sum[0] += there ? ya : 0.0f;
        sum[1] += there ? yb : 0.0f;
    }
}
__device__ static inline void use_tile_of(const cluster_form &f, const cluster_rows &r,
                                          const cluster_fixed &x, int tile, int k0, int n, float sum[2]) {
    switch (f.type) {
#define X(stem)                                                                                              \
    case TYPE_##stem: use_tile<packed_##stem>(f, r, x, tile, k0, n, sum); return;
        MOA_PACKED_MAP(X)
#undef X
    default: return;
    }
}

/* piece i of a chunk: n_part pieces a tile; its sums go to part i of red (64 floats: row, c) */
__device__ static inline void use_piece(const cluster_form &f, const cluster_rows &r, const cluster_fixed &x,
                                        float *red, int i) {
    const int tile = f.n_part == 1 ? i : i * f.by_part >> 16, k = (i - tile * f.n_part) * f.step,
              lane = threadIdx.x % 32;
    float sum[2] = {};
    use_tile_of(f, r, x, tile, k, min((int)f.step, f.n_group - k), sum);
    red[i * 64 + lane] = sum[0];
    red[i * 64 + 32 + lane] = sum[1];
}
/* the sum of a row of the chunk, of its parts in order */
__device__ static inline float sum_of(const cluster_form &f, const float *red, int row) {
    const float4 *part = reinterpret_cast<const float4 *>(red) + row / TILE * f.n_part * 16 + row % TILE;
    float sum = 0;
#pragma unroll 2
    for (int p = 0; p < f.n_part; p++) {
        const float4 v = part[p * 16];
        sum += (v.x + v.y) + (v.z + v.w);
    }
    return sum;
}

#endif
