/* step_ring.cuh -- how the weights and old keys and values of a whole decode step reach the warps of step.cu.
 *
 *   program   for each layer: q k v | attention | o | gate up | down; then the head. A warp has pairs gw, gw + all warps, ... of the
 *             outputs of each phase, and units v, v + step, ... of 16 tokens of its block's KV head
 *   tile      what one slot of a warp's ring holds: a stretch of units of the two rows of a pair, each stream of each row (packed.cuh) a
 *             piece of its own; or K, or V, of 16 tokens
 *   cursor    where in the program the next tile to be fetched stands. It does not depend on any activation, so it runs ahead of
 *             what is computed by as many tiles as there are slots, over phases and layers alike; the only thing it may not fetch is
 *             the unit of the newest token
 *
 *   slot      [row a: low | high | scale | head][row b: the same]     pieces begin at the 16 bytes in front of what is wanted,
 *             because that is what bulk copies can: a piece is up to 16 bytes longer than its units
 *
 * Nobody but the warp itself fills or empties its ring: no barrier is needed but the mbarrier that counts a slot's bytes. */
#ifndef MOA_CUDA_STEP_RING_CUH
#define MOA_CUDA_STEP_RING_CUH

#include "cuda/attn_decode_mma.cuh"
#include "cuda/row.cuh"

static constexpr int STEP_WARPS = 8, STEP_THREADS = STEP_WARPS * 32, STEP_SLOT = 5312, STEP_MAX_LAYER = 128;

static constexpr unsigned STEP_PIECES = 8; /* of a tile, and arrivals of a slot's barrier */

enum step_phase { PHASE_QKV, PHASE_ATTN, PHASE_O, PHASE_GATE_UP, PHASE_DOWN, PHASE_HEAD, PHASE_END };
enum step_kind { KIND_PLAIN, KIND_GATED, KIND_Q, KIND_K, KIND_V };
enum step_matrix { MATRIX_Q, MATRIX_K, MATRIX_V, MATRIX_O, MATRIX_GATE, MATRIX_UP, MATRIX_DOWN, N_MATRIX };
enum step_width { WIDTH_MODEL, WIDTH_Q, WIDTH_FF, N_WIDTH }; /* n_in of a matrix */

enum step_type {
#define X(stem) TYPE_##stem,
    MOA_PACKED_MAP(X)
#undef X
        TYPE_f32,
    TYPE_f16,
    TYPE_bf16,
    N_TYPE
};

/* streams of a format: eighths of a byte a unit; planes: the second stream is the other half of low's rows */
struct step_format {
    int unit8[4];
    bool planes;
};
template <typename F> static constexpr step_format step_format_of() {
    return {{128, F::LOW == 2 ? 128 : F::HIGH * 8, F::SCALE * 8, F::HEAD}, F::LOW == 2};
}
#define X(stem) step_format_of<packed_##stem>(),
static constexpr step_format step_formats[N_TYPE] = {
    MOA_PACKED_MAP(X){{128, 0, 0, 0}, false}, {{128, 0, 0, 0}, false}, {{128, 0, 0, 0}, false}};
#undef X

/* how rows of a width and type are cut into tiles */
struct step_cut {
    uint16_t n_unit, chunk, n_chunk; /* units a row, a tile; tiles a row */
};

/* All that depends on a matrix's type and size alone; few are different. */
struct step_stream {
    uint32_t begin16, row_bytes, unit8, to; /* from the matrix's begin on, in 16s of bytes; to: of its pieces in half a slot */
};
struct step_form {
    step_stream stream[4];
    step_cut cut;
    uint16_t type;
};
static constexpr int STEP_MAX_FORM = 24;

struct step_layer {
    const uint8_t *w[N_MATRIX];
    const float *bias[3], *norm[2];
    uint8_t form[N_MATRIX + 1];
};

struct step_job {
    float *x, *logits;
    float *clock; /* STEP_CLOCK: (n_block, 16) */
    const uint8_t *head;
    const float *head_norm;
    int head_form, n_form, n_layer;
    int n_in[N_WIDTH]; /* d_model, n_head * d_head, d_ff */
    int n_kv, n_vocab; /* n_kv: n_head_kv * d_head */
    float eps, scale;
    /* rope */
    const float *factors; /* (half) or NULL */
    int half;             /* rope_dim / 2 */
    bool pairs;
    double log2_theta, rope_scale;
    /* attention */
    moa_kv<__half> kv; /* of layer 0 */
    int64_t table_layer;
    const int32_t *pos, *seq, *span;
    int n_head, n_head_kv, group;
    moa_probe probe;
    float4 *mass; /* (n_layer, n_head, max_pages * UNITS_PAGE) or NULL */
    float *lse;   /* (n_layer, n_head) or NULL */
    float *part_o, *part_state;
    int *ticket;       /* (n_head_kv), 0 between launches */
    /* activations (step_flow.cuh): what a phase of a layer reads; the head: as PHASE_QKV of layer n_layer */
    uint8_t *flow;
    uint32_t flow_layer, flow_at[PHASE_HEAD]; /* bytes */
    /* shared memory */
    int n_slot, newest_at, x_at, q_at, out_at, rest_at;
    step_form form[STEP_MAX_FORM];
    step_layer layer[STEP_MAX_LAYER];
};

/* --- which outputs a warp has ---------------------------------------------------------------------------- */

/* Pairs are dealt out so that 16 neighbouring outputs are one block's: 8 pairs of two outputs, or twice 8 of gate and up. */
static constexpr int STEP_GROUP = 16;
static_assert(STEP_GROUP == 2 * STEP_WARPS, "a pair a warp");

__device__ static inline int first_pair(int phase) {
    return (int)blockIdx.x * (phase == PHASE_GATE_UP ? STEP_GROUP : STEP_WARPS) + (int)(threadIdx.x / 32);
}
/* from a pair of a warp to its next */
__device__ static inline int pair_step(int phase, int pair) {
    return phase != PHASE_GATE_UP            ? STEP_WARPS * (int)gridDim.x
           : pair % STEP_GROUP < STEP_WARPS ? STEP_WARPS
                                             : STEP_GROUP * (int)gridDim.x - STEP_WARPS;
}
__device__ static inline int pairs_of(const step_job &j, int phase) {
    switch (phase) {
    case PHASE_QKV: return j.n_in[WIDTH_Q] / 2 + j.n_kv;
    case PHASE_GATE_UP: return j.n_in[WIDTH_FF];
    case PHASE_HEAD: return (j.n_vocab + 1) / 2;
    default: return (j.n_in[WIDTH_MODEL] + 1) / 2;
    }
}

struct step_task {
    int matrix; /* GATED: of the first of the two */
    step_kind kind;
    int a, b;    /* rows; b is a again where the number of outputs is odd */
    int in_head; /* q, k: number of the pair in its head */
};
template <int D> __device__ static inline step_task task_of(const step_job &j, int phase, int pair) {
    step_task t = {};
    switch (phase) {
    case PHASE_QKV: {
        t.kind = KIND_Q, t.matrix = MATRIX_Q;
        if (pair >= j.n_in[WIDTH_Q] / 2) {
            pair -= j.n_in[WIDTH_Q] / 2;
            t.kind = KIND_K, t.matrix = MATRIX_K;
            if (pair >= j.n_kv / 2) pair -= j.n_kv / 2, t.kind = KIND_V, t.matrix = MATRIX_V;
        }
        const int head = pair / (D / 2);
        t.in_head = pair % (D / 2);
        t.a = 2 * pair, t.b = t.a + 1;
        if (t.kind != KIND_V && t.in_head < j.half && !j.pairs)
            t.a = head * D + t.in_head, t.b = t.a + j.half;
        return t;
    }
    case PHASE_GATE_UP:
        t.kind = KIND_GATED, t.matrix = MATRIX_GATE;
        t.a = t.b = pair;
        return t;
    default:
        t.matrix = phase == PHASE_O ? MATRIX_O : phase == PHASE_DOWN ? MATRIX_DOWN : N_MATRIX;
        t.a = 2 * pair;
        t.b = min(t.a + 1, (phase == PHASE_HEAD ? j.n_vocab : j.n_in[WIDTH_MODEL]) - 1);
        return t;
    }
}

/* tables in shared memory: constant memory has them far away */
struct step_tables {
    const step_layer *layers;
    const step_form *forms;
};
__device__ static inline const step_form &form_of(const step_job &j, const step_tables &t, int layer, int matrix) {
    return t.forms[matrix == N_MATRIX ? j.head_form : (int)t.layers[layer].form[matrix]];
}
__device__ static inline step_width width_of(int phase) {
    return phase == PHASE_O ? WIDTH_Q : phase == PHASE_DOWN ? WIDTH_FF : WIDTH_MODEL;
}

/* --- which keys and values ------------------------------------------------------------------------------- */

/* A block's share of a layer's attention. Seen units of its KV head are numbered from 0: the sink's, then the window's; the last is the
 * newest token's. */
struct step_share {
    int head;                  /* KV head */
    int n_seen, n_sink, begin; /* units; begin: first of the window */
    int n_block;               /* that share the head */
    int first, step;           /* this warp's are first, first + step, ... */
};
__device__ static inline step_share seen_of(int pos, int widest) {
    step_share s = {};
    const int last = pos < 0 ? -1 : pos / UNIT_TOK;
    s.begin = max(moa_window_first(widest, pos) / UNIT_TOK, SINK_UNITS);
    s.n_sink = min(last + 1, (int)SINK_UNITS);
    s.n_seen = s.n_sink + max(last - s.begin + 1, 0);
    return s;
}
/* a block's place at a layer's attention: its KV head, and which of the n_block that share it; n_block 0: none */
struct step_seat {
    int widest; /* span of the group */
    uint8_t head, split, n_block, pad;
};
__device__ static inline step_share share_of(int pos, const step_seat &seat) {
    step_share s = seen_of(pos, seat.widest);
    s.head = seat.head, s.n_block = seat.n_block;
    s.step = seat.n_block * STEP_WARPS;
    s.first = seat.n_block ? seat.split + (int)(threadIdx.x / 32) * seat.n_block : s.n_seen;
    return s;
}
__device__ static inline int unit_of(const step_share &s, int v) {
    return v < s.n_sink ? v : v - s.n_sink + s.begin;
}

/* --- the cursor -------------------------------------------------------------------------------------------- */

struct step_ring {
    unsigned slots, bars; /* shared addresses of this warp's */
    int n_slot;
};

template <int D> struct step_cursor {
    int layer, phase, slot;
    /* products */
    int pair, n_pair, chunk, matrix;
    step_cut cut;
    const uint8_t *at;              /* in this lane's stream, lane % 4 of row lane / 4: where its row begins */
    const uint8_t *base;            /* where the stream begins */
    unsigned row_bytes, unit8, to;  /* to: of the piece in a slot */
    int part_end;                   /* pairs up to here are of the same matrix */
    bool steps;                     /* the next pair's rows are as far away as its number says (not q, k) */
    int rows;                       /* of a pair, in its matrix */
    /* attention */
    step_share share;
    int v, side, entry, entry_at; /* lane i holds the table's entry of a unit; lane entry_at that of unit number v */
    int entry_next;               /* the same for the first units of the next layer: asked for a layer ahead */
    int pos, seq;
    const step_seat *seats;    /* shared memory (n_layer) */
    step_tables tables;

    __device__ inline int load_entry(const step_job &j, const step_share &s, int at_layer, int v0) const {
        const int mine = v0 + (int)(threadIdx.x % 32) * s.step, page = unit_of(s, mine) / UNITS_PAGE;
        if (mine >= s.n_seen) return -1;
        return __ldg(j.kv.table + at_layer * j.table_layer + seq * j.kv.seq_stride +
                     (int64_t)s.head * j.kv.max_pages + page);
    }

    /* this lane's constants of a matrix: row lane / 4's stream lane % 4 */
    __device__ inline void take_matrix(const step_job &j, int m) {
        const int lane = threadIdx.x % 32, of = phase == PHASE_GATE_UP && lane >= 4 ? m + 1 : m;
        const step_form &f = form_of(j, tables, layer, of);
        const step_stream t = f.stream[lane % 4];
        matrix = m;
        cut = f.cut;
        row_bytes = t.row_bytes;
        unit8 = lane < (int)STEP_PIECES ? t.unit8 : 0;
        to = t.to + (unsigned)(lane / 4) * (STEP_SLOT / 2);
        base = (m == N_MATRIX ? j.head : tables.layers[layer].w[of]) + (uint64_t)t.begin16 * 16;
    }
    __device__ inline void begin_pair(const step_job &j) {
        const step_task t = task_of<D>(j, phase, pair);
        if (t.matrix != matrix) {
            take_matrix(j, t.matrix);
            const int q = j.n_in[WIDTH_Q] / 2;
            part_end = t.kind == KIND_Q ? q : t.kind == KIND_K ? q + j.n_kv / 2 : n_pair;
            steps = t.kind != KIND_Q && t.kind != KIND_K;
            rows = t.kind == KIND_GATED ? 1 : 2;
        }
        at = base + (uint64_t)((threadIdx.x % 32 < 4 ? t.a : t.b)) * row_bytes;
        chunk = 0;
    }
    __device__ inline void next_pair(const step_job &j) {
        const int step = pair_step(phase, pair);
        pair += step;
        chunk = 0;
        if (pair >= n_pair)
            next_phase(j);
        else if (steps && pair < last_whole(j))
            at += (uint64_t)(step * rows) * row_bytes;
        else
            begin_pair(j);
    }
    /* pairs up to here have two rows and are of the part that the warp is in */
    __device__ inline int last_whole(const step_job &j) const {
        return part_end - (phase == PHASE_HEAD || phase == PHASE_O || phase == PHASE_DOWN);
    }
    /* is there anything for this warp in the phase? */
    __device__ inline bool enter(const step_job &j) {
        matrix = -1;
        if (phase == PHASE_ATTN) {
            share = share_of(pos, seats[layer]);
            v = share.first, side = entry_at = 0;
            entry = entry_next;
            if (layer + 1 < j.n_layer) {
                const step_share next = share_of(pos, seats[layer + 1]);
                entry_next = load_entry(j, next, layer + 1, next.first);
            }
            return v < share.n_seen - 1; /* the newest is not fetched here */
        }
        pair = first_pair(phase), n_pair = pairs_of(j, phase);
        if (pair >= n_pair) return false;
        begin_pair(j);
        return true;
    }
    __device__ inline void next_phase(const step_job &j) {
        do {
            if (phase == PHASE_DOWN) {
                layer++;
                phase = layer < j.n_layer ? PHASE_QKV : j.logits ? PHASE_HEAD : PHASE_END;
            } else {
                phase = phase == PHASE_HEAD ? PHASE_END : phase + 1;
            }
        } while (phase != PHASE_END && !enter(j));
    }
    __device__ inline void start(const step_job &j) {
        layer = 0, phase = PHASE_QKV, slot = 0;
        share = share_of(pos, seats[0]);
        entry_next = load_entry(j, share, 0, share.first);
        if (!enter(j)) next_phase(j);
    }

    __device__ inline void fetch_products(const step_job &j, const step_ring &r) {
        const unsigned u0 = (unsigned)(chunk * cut.chunk), n = min((unsigned)cut.chunk, cut.n_unit - u0);
        const uint64_t from = (uint64_t)(at + u0 * unit8 / 8), begin = from & ~(uint64_t)15;
        const unsigned bytes = unit8 ? (unsigned)(((from + n * unit8 / 8 + 15) & ~(uint64_t)15) - begin) : 0;
        copy_in(r, to, begin, bytes);
        if (++chunk == cut.n_chunk) next_pair(j);
    }
    /* lanes 0 to 7: a piece each, or none */
    __device__ inline void copy_in(const step_ring &r, unsigned at_slot, uint64_t from, unsigned bytes) const {
        if (threadIdx.x % 32 >= STEP_PIECES) return;
#if __CUDA_ARCH__ >= 900
        const unsigned bar = r.bars + (unsigned)slot * 8;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
        if (bytes)
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
                         "[%3];" ::"r"(r.slots + (unsigned)slot * STEP_SLOT + at_slot),
                         "l"(from), "r"(bytes), "r"(bar)
                         : "memory");
#endif
    }

    __device__ inline void fetch_keys(const step_job &j, const step_ring &r) {
        typedef unit_layout<D> t;
        const int lane = threadIdx.x % 32;
        if (entry_at == 32) {
            entry_at = 0;
            entry = load_entry(j, share, layer, v);
        }
        const int page = __shfl_sync(ALL, entry, entry_at);
        const __half *rows = j.kv.pool + ((int64_t)page * (2 * MOA_PAGE_TOK) + side * MOA_PAGE_TOK +
                                          unit_of(share, v) % UNITS_PAGE * UNIT_TOK + lane * 4) *
                                             D;
        copy_in(r, (unsigned)(lane * t::QUARTER), (uint64_t)rows, lane < 4 && page >= 0 ? 4 * t::ROW : 0);
        side ^= 1;
        if (side == 0) v += share.step, entry_at++;
        if (v >= share.n_seen - 1) next_phase(j);
    }

    /* the whole warp: fills the next slot; nothing beyond the program's end */
    __device__ inline void fetch(const step_job &j, const step_ring &r) {
        if (phase == PHASE_END) return;
        if (phase == PHASE_ATTN)
            fetch_keys(j, r);
        else
            fetch_products(j, r);
        slot = slot + 1 == r.n_slot ? 0 : slot + 1;
    }
};

/* --- reading a tile ---------------------------------------------------------------------------------------- */

__device__ static inline unsigned region_of(int chunk, int bytes8) {
    return bytes8 ? ((unsigned)(chunk * bytes8) / 8 + 15 & ~15u) + 16 : 0;
}

/* pieces of one row of a tile */
template <typename F> struct step_piece {
    const uint8_t *low, *high, *scale, *head;

    __device__ inline void find(const uint8_t *slot, const step_cut &c, int row, int u0) {
        const unsigned high_at = region_of(c.chunk, 128),
                       scale_at = high_at + region_of(c.chunk, F::LOW == 2 ? 128 : F::HIGH * 8),
                       head_at = scale_at + region_of(c.chunk, F::SCALE * 8);
        const unsigned first = (unsigned)row * c.n_unit + (unsigned)u0; /* its low bits are all that count */
        low = slot;
        high = slot + high_at + (F::LOW == 2 ? 0 : first * F::HIGH & 15);
        scale = slot + scale_at + (first * F::SCALE & 15);
        head = slot + head_at + (first / 8 * F::HEAD & 15);
    }
    __device__ inline void load(int i, packed_raw<F> &r) const {
        store4(r.q, *reinterpret_cast<const uint4 *>(low + 16 * i));
        if constexpr (F::LOW == 2) store4(r.q + 4, *reinterpret_cast<const uint4 *>(high + 16 * i));
        if constexpr (F::HIGH == 4) r.h[0] = *reinterpret_cast<const uint32_t *>(high + 4 * i);
        if constexpr (F::HIGH == 8) {
            const uint2 h = *reinterpret_cast<const uint2 *>(high + 8 * i);
            r.h[0] = h.x, r.h[F::HIGH / 4 - 1] = h.y;
        }
        if constexpr (F::SCALE == 2) r.s[0] = *reinterpret_cast<const uint16_t *>(scale + 2 * i);
        if constexpr (F::SCALE == 4) r.s[0] = *reinterpret_cast<const uint32_t *>(scale + 4 * i);
        if constexpr (F::KIND == SCALES_K) store4(r.s, *reinterpret_cast<const uint4 *>(head + 16 * (i / 8)));
        if constexpr (F::KIND == SCALES_K6)
            r.s[1 % (sizeof r.s / 4)] = *reinterpret_cast<const uint16_t *>(head + 2 * (i / 8));
    }
};

struct step_tile {
    const uint8_t *slot;
    int a, b, u0, n; /* rows; units u0 .. u0 + n - 1 */
    step_cut cut;
    const uint4 *x; /* as put() leaves it */
};

template <typename F, typename T> __device__ static inline void use_packed(const step_tile &t, float sum[2]) {
    step_piece<F> a, b;
    a.find(t.slot, t.cut, t.a, t.u0);
    b.find(t.slot + STEP_SLOT / 2, t.cut, t.b, t.u0);
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < t.n; i += 32) {
        packed_raw<F> ra, rb;
        a.load(i, ra);
        b.load(i, rb);
        sum[0] += T::dot(t.x, t.cut.n_unit, ra, t.u0 + i);
        sum[1] += T::dot(t.x, t.cut.n_unit, rb, t.u0 + i);
    }
}
template <int ID> __device__ static inline void use_plain(const step_tile &t, float sum[2]) {
    typedef row_plain<ID> T;
#pragma unroll 4
    for (int i = threadIdx.x % 32; i < t.n; i += 32) {
        const uint4 ra = *reinterpret_cast<const uint4 *>(t.slot + 16 * i),
                    rb = *reinterpret_cast<const uint4 *>(t.slot + STEP_SLOT / 2 + 16 * i);
        sum[0] += T::dot(t.x, t.cut.n_unit, ra, t.u0 + i);
        sum[1] += T::dot(t.x, t.cut.n_unit, rb, t.u0 + i);
    }
}
/* PACKED: products with x as it lies for quantised weights */
template <template <typename> class PACKED>
__device__ static inline void use_tile(int type, const step_tile &t, float sum[2]) {
    switch (type) {
#define X(stem)                                                                                              \
    case TYPE_##stem: use_packed<packed_##stem, PACKED<packed_##stem>>(t, sum); return;
        MOA_PACKED_MAP(X)
#undef X
    case TYPE_f32: use_plain<moa_f32_id>(t, sum); return;
    case TYPE_f16: use_plain<moa_f16_id>(t, sum); return;
    case TYPE_bf16: use_plain<moa_bf16_id>(t, sum); return;
    default: return;
    }
}

#endif
