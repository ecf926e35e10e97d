/* step.cu -- a whole decode step of one row as one kernel: from the embedding to the logits.
 *
 *   block      one a multiprocessor, all at once (a cooperative launch: they wait for each other). Eight warps, each with a ring of
 *              shared memory that its own bulk copies fill (step_ring.cuh): weights and old keys and values do not depend on
 *              activations, so they are fetched ahead over phases and layers, 150 KB a multiprocessor on the way
 *   phase      norm, q k v, rope, store | attention | o + residual | norm, gate up, silu | down + residual; at the end norm, head.
 *              The blocks never meet: a phase begins in a block as soon as what it reads is there (step_flow.cuh), already in the form
 *              that its products want, and 16 outputs that share a scale are made by one block
 *   products   a warp has pairs of outputs as in fused.cu, the whole warp side by side on both rows; the same products and epilogues,
 *              x in fixed point by groups of 16
 *   attention  blocks go to the KV heads so that the head with most units of 16 tokens for each of its blocks has as few as can be;
 *              a head's units are dealt out to its blocks' warps. Warps meet in shared memory, blocks through global memory
 *              and a ticket. The newest unit, whose last row comes from the phase before, is put together in shared memory. What a warp
 *              does with a unit is attn_decode_mma.cuh's, statistics included; histograms are launches of their own behind
 *
 * The description of the step (pointers of all layers) is the kernel's argument: a recording holds it, and the memset in front that empties the
 * flows. Sums are in a fixed order: the same bits each time. Needs sm_90; K and V in float16, groups of up to 8, heads of 64 and
 * 128, d_model by 64, d_ff by 16, the weight types of fused.cu. Anything else is not taken. The single operations are the check
 * (tests/test_ops_step.c).
 *
 *   H100, us a step            fused.cu   v1     v2       test_ops_step cuda bench: without embedding and argmax, a head of 32768 outputs
 *   8B shape Q4_0                2617     2177   1938     fused.cu: all of the step
 *   8B shape BF16                6196      -     5318
 *   v1: all blocks met after every phase (a counter; 5000 clocks with the wait for the slowest) and each put all of x to fixed point itself
 *   (3300 clocks, of down 9700)                                                                                      2026-11-24 */
#include <new>

#include "cuda/launch.cuh"
#include "cuda/step_flow.cuh"
#include "cuda/step_pick.cuh"

static constexpr int MIN_SLOT = 2, MAX_SLOT = 8, STATE = 8, MAX_HEAD_KV = 128;

/* --- shared memory ---------------------------------------------------------------------------------------- */

struct step_shared {
    uint8_t *slots;  /* (STEP_WARPS, n_slot, STEP_SLOT) */
    uint8_t *newest; /* K and V of the newest unit */
    uint4 *x;        /* a flow, sums of squares behind it; while attention meets: parts */
    float *q;        /* (group, d_head) of this block's KV head */
    float *out;      /* outputs of this block's groups */
    float *turn;     /* cosines (half), sines (half) */
    int *last;
    step_seat *seat;    /* (n_layer) */
    step_layer *layers; /* (n_layer) */
    step_form *forms;   /* (STEP_MAX_FORM) */
    uint64_t *bars;  /* (STEP_WARPS, n_slot) */
};
__device__ static inline step_shared shared_of(const step_job &j, uint8_t *all) {
    step_shared s;
    s.slots = all;
    s.newest = all + j.newest_at;
    s.x = reinterpret_cast<uint4 *>(all + j.x_at);
    s.q = reinterpret_cast<float *>(all + j.q_at);
    s.out = reinterpret_cast<float *>(all + j.out_at);
    s.bars = reinterpret_cast<uint64_t *>(all + j.rest_at);
    s.turn = reinterpret_cast<float *>(s.bars + STEP_WARPS * MAX_SLOT);
    s.last = reinterpret_cast<int *>(s.turn + 256);
    s.seat = reinterpret_cast<step_seat *>(s.last + 4);
    s.forms = reinterpret_cast<step_form *>(s.seat + STEP_MAX_LAYER);
    s.layers = reinterpret_cast<step_layer *>(s.forms + STEP_MAX_FORM);
    return s;
}
static constexpr size_t REST_BYTES = (size_t)STEP_WARPS * MAX_SLOT * 8 + (256 + 4) * 4 +
                                     STEP_MAX_LAYER * sizeof(step_seat) + STEP_MAX_FORM * sizeof(step_form);
static_assert(REST_BYTES % 8 == 0 && sizeof(step_layer) % 8 == 0 && sizeof(step_form) % 8 == 0, "copied by words of 8");

/* --- x of a phase ------------------------------------------------------------------------------------------- */

/* what a phase of a layer reads, as it lies in its flow and then in shared memory */
struct step_input {
    uint4 *flow;
    const float *norm; /* NULL: as it is */
    int n_in, n_unit, type, n_vec; /* n_vec: without the sums of squares */
};
__device__ static inline uint4 *flow_of(const step_job &j, int layer, int phase) {
    const int at = phase == PHASE_HEAD ? (int)PHASE_QKV : phase;
    return reinterpret_cast<uint4 *>(j.flow + (size_t)layer * j.flow_layer + j.flow_at[at]);
}
__device__ static inline step_input input_of(const step_job &j, const step_shared &s, int layer, int phase) {
    const step_layer &y = s.layers[min(layer, j.n_layer - 1)];
    const int matrix = phase == PHASE_QKV       ? MATRIX_Q
                       : phase == PHASE_O       ? MATRIX_O
                       : phase == PHASE_GATE_UP ? MATRIX_GATE
                                                : MATRIX_DOWN;
    const step_form &f = s.forms[phase == PHASE_HEAD ? j.head_form : (int)y.form[matrix]];
    step_input in;
    in.flow = flow_of(j, layer, phase);
    in.norm = phase == PHASE_QKV       ? y.norm[0]
              : phase == PHASE_GATE_UP ? y.norm[1]
              : phase == PHASE_HEAD    ? j.head_norm
                                       : nullptr;
    in.n_in = j.n_in[width_of(phase)];
    in.type = f.type;
    in.n_unit = f.cut.n_unit;
    in.n_vec = flow_vectors(f.type, f.cut.n_unit);
    return in;
}
/* sums of squares stand behind x, 4 a vector */
__device__ static inline const float *squares_of(const step_shared &s, const step_input &in) {
    return reinterpret_cast<const float *>(s.x + in.n_vec);
}
/* the row itself, which every block puts to fixed point for the first phase */
__device__ static inline void prepare_first(const step_job &j, const step_shared &s, const step_input &in) {
    const int n = in.n_in / 4;
    for (int base = 0; base < n; base += STEP_THREADS) {
        const int i = base + (int)threadIdx.x;
        const float4 zero = make_float4(0, 0, 0, 0), v = i < n ? __ldcg(reinterpret_cast<const float4 *>(j.x) + i) : zero,
                     w = i < n ? __ldg(reinterpret_cast<const float4 *>(in.norm) + i) : zero;
        flow_put_norm<false>(s.x, reinterpret_cast<float *>(s.x + in.n_vec), in.type, in.n_unit, i / 4, v, w, i < n);
    }
}
__device__ static inline void take_x(const step_job &j, const step_shared &s, const step_input &in, bool first) {
    if (first)
        prepare_first(j, s, in);
    else
        flow_take(in.flow, s.x, in.n_vec + (in.norm ? in.n_in / (4 * STEP_GROUP) : 0));
    __syncthreads();
}

/* --- outputs of a block, 16 at a time ------------------------------------------------------------------------- */

/* Groups blockIdx.x, + gridDim.x, .. of the outputs of a phase are this block's, made by all of its warps, left in s.out by finish(). */
struct step_given {
    step_input to;
    float4 norm; /* of this lane's values of the first 8 groups */
    int n_group, mine;
};
__device__ static inline const float4 *norm_of(const step_given &g, int group) {
    return reinterpret_cast<const float4 *>(g.to.norm) + 4 * group + threadIdx.x % 4;
}
__device__ static inline step_given given_of(const step_job &j, const step_shared &s, int layer, int phase) {
    step_given g;
    const bool down = phase == PHASE_DOWN, last = down && layer + 1 == j.n_layer;
    g.to = input_of(j, s, down ? layer + 1 : layer, last ? PHASE_HEAD : down ? PHASE_QKV : phase + 1);
    g.n_group = g.to.n_in / STEP_GROUP;
    g.mine = last && !j.logits ? 0 : max((g.n_group - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x, 0);
    g.norm = make_float4(0, 0, 0, 0);
    const int at = (int)(threadIdx.x % 32) / 4;
    if (g.to.norm && at < g.mine) g.norm = __ldg(norm_of(g, (int)blockIdx.x + at * (int)gridDim.x));
    return g;
}
/* one warp */
__device__ static inline void give(const step_shared &s, const step_given &g) {
    for (int base = 0; base < g.mine; base += 8) {
        const int at = base + (int)(threadIdx.x % 32) / 4, group = (int)blockIdx.x + at * (int)gridDim.x;
        const bool valid = at < g.mine;
        float4 v = make_float4(0, 0, 0, 0);
        if (valid) v = reinterpret_cast<const float4 *>(s.out)[at * 4 + (int)(threadIdx.x % 4)];
        if (!g.to.norm) {
            flow_put<true>(g.to.flow, g.to.type, g.to.n_unit, group, v, valid);
            continue;
        }
        const float4 w = base == 0 ? g.norm : valid ? __ldg(norm_of(g, group)) : v;
        flow_put_norm<true>(g.to.flow, reinterpret_cast<float *>(g.to.flow + g.to.n_vec), g.to.type, g.to.n_unit, group,
                            v, w, valid);
    }
}

/* --- a warp's way through the program ------------------------------------------------------------------------ */

template <int D> struct step_warp {
    step_ring ring;
    step_cursor<D> ahead;
    int slot;
    unsigned parity;
    int pos, seq;
    int owed; /* slots that are read and not yet filled again */

    __device__ inline unsigned slot_at() const { return ring.slots + (unsigned)slot * STEP_SLOT; }
    __device__ inline void wait() const { barrier_wait(ring.bars + (unsigned)slot * 8, parity); }
    __device__ inline void next() {
        if (++slot == ring.n_slot) slot = 0, parity ^= 1;
    }
    /* what can wait until the block's outputs are on their way */
    __device__ inline void pay(const step_job &j) {
        for (; owed > 0; owed--)
            ahead.fetch(j, ring);
    }
};

/* --- products ------------------------------------------------------------------------------------------------- */

/* what one lane adds to a pair, and where it goes; fetched before the products are made */
struct step_out {
    float2 add;
    float *y;      /* or NULL: to the group alone */
    __half *row;   /* K, V: of the page; NULL: it is gone */
    int first;     /* K, V: first output of the head */
};
template <int D>
__device__ static inline step_out out_of(const step_job &j, const step_warp<D> &w, const step_shared &s,
                                         int layer, int phase, const step_task &t) {
    step_out o = {make_float2(0, 0), nullptr, nullptr, 0};
    switch (t.kind) {
    case KIND_PLAIN:
        o.y = phase == PHASE_HEAD ? j.logits : j.x;
        if (phase != PHASE_HEAD) o.add = make_float2(__ldcg(o.y + t.a), __ldcg(o.y + t.b));
        return o;
    case KIND_GATED: return o;
    case KIND_Q: break;
    default: {
        const int head = t.a / D, page = w.pos / MOA_PAGE_TOK;
        o.first = head * D;
        if (w.pos < 0 || page >= j.kv.max_pages) break;
        const int32_t at = __ldg(j.kv.table + layer * j.table_layer + w.seq * j.kv.seq_stride +
                                 (int64_t)head * j.kv.max_pages + page);
        if (at >= 0)
            o.row = j.kv.pool + ((int64_t)at * (2 * MOA_PAGE_TOK) + w.pos % MOA_PAGE_TOK +
                                 (t.kind == KIND_V ? MOA_PAGE_TOK : 0)) *
                                    D;
    }
    }
    const float *bias = s.layers[layer].bias[t.kind - KIND_Q];
    if (bias) o.add = make_float2(__ldg(bias + t.a), __ldg(bias + t.b));
    return o;
}

/* as in elementwise.cu */
__device__ static inline float silu_times(float gate, float up) {
    const float h = expf(-0.5f * fabsf(gate)), rest = 1.0f + h * h;
    return gate < 0 ? gate * h / rest * (h * up) : gate / rest * up;
}

/* values of q, k, v where attention finds them: q (n_head, d_head), k and v (n_head_kv, d_head) each */
__device__ static inline int begin_of(const step_job &j, step_kind kind) {
    return kind == KIND_Q ? 0 : j.n_in[WIDTH_Q] + (kind == KIND_V ? j.n_kv : 0);
}
/* group: where the pair's outputs stand in s.out */
__device__ static inline void finish(const step_job &j, const step_shared &s, int layer, const step_task &t,
                                     const step_out &o, int group, float a, float b) {
    if (t.kind == KIND_GATED) {
        s.out[group] = silu_times(a, b);
        return;
    }
    a += o.add.x, b += o.add.y;
    if (t.kind == KIND_PLAIN) {
        o.y[t.a] = a;
        if (t.b != t.a) o.y[t.b] = b;
        if (group >= 0) s.out[group] = a, s.out[group + 1] = b;
        return;
    }
    if (t.kind != KIND_V && t.in_head < j.half) {
        const float cosine = s.turn[t.in_head], sine = s.turn[j.half + t.in_head], a0 = a;
        a = a0 * cosine - b * sine;
        b = a0 * sine + b * cosine;
    }
    uint32_t *const to = reinterpret_cast<uint32_t *>(flow_of(j, layer, PHASE_ATTN)) + begin_of(j, t.kind);
    flow_store<true>(to + t.a, __float_as_uint(never_missing(a)));
    flow_store<true>(to + t.b, __float_as_uint(never_missing(b)));
    if (o.row) {
        o.row[t.a - o.first] = __float2half_rn(a);
        o.row[t.b - o.first] = __float2half_rn(b);
    }
}
__device__ static inline int group_place(int phase, int round) {
    const int warp = (int)(threadIdx.x / 32);
    return phase == PHASE_HEAD      ? -1
           : phase == PHASE_GATE_UP ? round * 8 + warp
                                    : round * STEP_GROUP + 2 * warp;
}

/* The first is what the warp adds to its first pair: it was asked for before x was there. */
template <int D>
__device__ static void products(const step_job &j, step_warp<D> &w, const step_shared &s, const step_input &in,
                                int layer, int phase, const step_out &first) {
    const int n_pair = pairs_of(j, phase), lane = threadIdx.x % 32;
    const step_tables tables = {s.layers, s.forms};
    step_out o = first;
    float factor = 1;
    for (int pair = first_pair(phase), next, round = 0; pair < n_pair; pair = next, round++) {
        const step_task t = task_of<D>(j, phase, pair);
        const step_form &f = form_of(j, tables, layer, t.matrix);
        const int type = f.type;
        step_tile tile = {nullptr, t.a, t.b, 0, 0, f.cut, s.x};
        float sum[2] = {};
        next = pair + pair_step(phase, pair);
        if (round && lane == 0) o = out_of<D>(j, w, s, layer, phase, t);
        for (int chunk = 0; chunk < tile.cut.n_chunk; chunk++) {
            tile.slot = s.slots + ((int)(threadIdx.x / 32) * w.ring.n_slot + w.slot) * STEP_SLOT;
            tile.u0 = chunk * tile.cut.chunk;
            tile.n = min((int)tile.cut.chunk, tile.cut.n_unit - tile.u0);
            w.wait();
            use_tile<flow_packed>(type, tile, sum);
            __syncwarp(); /* everybody has read the slot */
            w.next();
            if (next >= n_pair && chunk + 1 == tile.cut.n_chunk)
                w.owed++;
            else
                w.ahead.fetch(j, w.ring);
        }
        if (in.norm && round == 0) {
            const float *const squares = squares_of(s, in);
            float all = 0;
            for (int i = lane; i < in.n_in / STEP_GROUP; i += 32)
                all += squares[i];
            factor = rsqrtf(warp_sum(all) / (float)in.n_in + j.eps);
        }
        sum[0] = warp_sum(sum[0]) * factor, sum[1] = warp_sum(sum[1]) * factor;
        if (lane == 0) finish(j, s, layer, t, o, group_place(phase, round), sum[0], sum[1]);
    }
}

/* --- attention ------------------------------------------------------------------------------------------------ */

struct step_heads {
    segment s;      /* seq is 0: a row's outputs */
    int measure[2]; /* windows of this lane's two heads for the statistics */
};
/* windows of the heads of this block, which do not depend on any phase */
template <bool STATS>
__device__ static inline void heads_of(const step_job &j, int layer, int pos, int head_kv, step_heads &h) {
    int narrowest = INT32_MAX;
    h.s = {};
    h.s.head_kv = head_kv, h.s.head = head_kv * j.group, h.s.n_head = j.group, h.s.pos = pos;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = (int)threadIdx.x % 4 * 2 + i;
        h.s.window[i] = h.measure[i] = INT32_MAX;
        if (at >= j.group) continue;
        const int64_t from = (int64_t)layer * j.n_head + h.s.head + at;
        h.s.window[i] = h.measure[i] = moa_window(__ldg(j.span + from));
        if (STATS && j.probe.measure_span) h.measure[i] = moa_window(__ldg(j.probe.measure_span + from));
        narrowest = min(narrowest, h.s.window[i]);
    }
    h.s.narrowest = __reduce_min_sync(ALL, narrowest);
}

/* where 8 values of a row of the newest unit stand in shared memory */
template <int D> __device__ static inline uint8_t *newest_at(const step_shared &s, int side, int row, int piece) {
    typedef unit_layout<D> t;
    return s.newest + side * t::SIDE + row / 4 * t::QUARTER + row % 4 * t::ROW + piece * 16;
}
/* the rows of the newest unit that earlier steps have left, by the whole block; false: its page is gone */
template <int D>
__device__ static bool copy_newest(const step_job &j, const step_warp<D> &w, const step_shared &s, int layer,
                                   int head_kv) {
    const int unit = w.pos / UNIT_TOK, n_row = w.pos % UNIT_TOK;
    const int32_t page = __ldg(j.kv.table + layer * j.table_layer + w.seq * j.kv.seq_stride +
                               (int64_t)head_kv * j.kv.max_pages + unit / UNITS_PAGE);
    if (page < 0) return false;
    const uint4 *from = reinterpret_cast<const uint4 *>(
        j.kv.pool + ((int64_t)page * (2 * MOA_PAGE_TOK) + unit % UNITS_PAGE * UNIT_TOK) * D);
    constexpr int PIECES = D / 8; /* of a row */
    for (int e = threadIdx.x; e < 2 * UNIT_TOK * PIECES; e += STEP_THREADS) {
        const int side = e / (UNIT_TOK * PIECES), row = e / PIECES % UNIT_TOK, piece = e % PIECES;
        if (row < n_row)
            *reinterpret_cast<uint4 *>(newest_at<D>(s, side, row, piece)) =
                __ldcg(from + (side * MOA_PAGE_TOK + row) * PIECES + piece);
    }
    return true;
}
/* q of the group to shared memory, the newest row of k and v, where this block has it, to its unit: by the whole block */
template <int D>
__device__ static void take_qkv(const step_job &j, const step_warp<D> &w, const step_shared &s, int layer,
                                int head_kv, bool newest) {
    const uint4 *const from = flow_of(j, layer, PHASE_ATTN);
    const int n_q = j.group * (D / 4), n = n_q + (newest ? 2 * (D / 4) : 0), row = w.pos % UNIT_TOK;
    for (int i = threadIdx.x; i < n; i += STEP_THREADS) {
        const int side = (i - n_q) / (D / 4), c = (i - n_q) % (D / 4);
        const uint4 *const at = from + (i < n_q ? head_kv * n_q + i
                                                : (begin_of(j, side ? KIND_V : KIND_K) + head_kv * D) / 4 + c);
        uint4 v = flow_load(at);
        while (is_missing(v))
            v = flow_load(at);
        if (i < n_q) {
            reinterpret_cast<uint4 *>(s.q)[i] = v;
            continue;
        }
        __half2 *const to = reinterpret_cast<__half2 *>(newest_at<D>(s, side, row, c / 2) + c % 2 * 8);
        to[0] = __floats2half2_rn(__uint_as_float(v.x), __uint_as_float(v.y));
        to[1] = __floats2half2_rn(__uint_as_float(v.z), __uint_as_float(v.w));
    }
}

template <int D, bool STATS>
__device__ static void attend(const step_job &j, step_warp<D> &w, const step_shared &s, const mma_job &m,
                              const step_heads &h, const step_share &k, int layer, bool newest,
                              warp_state<D, STATS> &u) {
    typedef unit_layout<D> t;
    queries<D> q;
    u.clear();
    if (k.first >= k.n_seen) return;
    load_queries<D>(m, h.s, q);
    int v = k.first;
    for (; v < k.n_seen - 1; v += k.step) {
        const int unit = unit_of(k, v);
        const int32_t page = __ldg(j.kv.table + layer * j.table_layer + w.seq * j.kv.seq_stride +
                                   (int64_t)h.s.head_kv * j.kv.max_pages + unit / UNITS_PAGE);
        const unsigned keys = w.slot_at();
        w.wait();
        w.next();
        const unsigned values = w.slot_at();
        w.wait();
        w.next();
        if (page >= 0) attend_unit_at<D, STATS>(m, u, q, h.s, unit, keys, values, h.measure);
        __syncwarp();
        w.owed += 2;
        if (v + k.step < k.n_seen - 1) w.pay(j);
    }
    if (v == k.n_seen - 1 && newest) {
        const unsigned at = shared_at(s.newest);
        attend_unit_at<D, STATS>(m, u, q, h.s, unit_of(k, v), at, at + t::SIDE, h.measure);
    }
}

/* where a warp leaves its parts: states (STEP_WARPS, MAX_GROUP, STATE), then o (STEP_WARPS, group, D), 4 floats further a warp */
__device__ static inline float *part_state(const step_shared &s, int warp, int head) {
    return reinterpret_cast<float *>(s.x) + (warp * MAX_GROUP + head) * STATE;
}
template <int D> __device__ static inline float *part_of(const step_job &j, const step_shared &s, int warp) {
    return reinterpret_cast<float *>(s.x) + STEP_WARPS * MAX_GROUP * STATE + warp * (j.group * D + 4);
}

template <int D, bool STATS>
__device__ static void leave_part(const step_job &j, const step_shared &s, const warp_state<D, STATS> &u) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
    float *const o = part_of<D>(j, s, warp);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float x[6] = {u.m[h], u.l[h], 0, 0, 0, 0};
        if (STATS) x[2] = u.st[h].t, x[3] = u.st[h].sink, x[4] = u.st[h].window, x[5] = u.st[h].distance;
#pragma unroll
        for (int k = 1; k < (STATS ? 6 : 2); k++)
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                x[k] += __shfl_xor_sync(ALL, x[k], d);
        const int head = 2 * c + h;
        if (g == 0)
#pragma unroll
            for (int k = 0; k < (STATS ? 6 : 2); k++)
                part_state(s, warp, head)[k] = x[k];
        if (head >= j.group) continue;
#pragma unroll
        for (int i = 0; i < unit_layout<D>::STEPS; i++)
            *reinterpret_cast<float2 *>(o + head * D + element_of<D>(i, g)) =
                make_float2(u.o[i][h], u.o[i][2 + h]);
    }
}

__device__ static inline float factor_of(float m, float to) {
    return m == -INFINITY ? 0.0f : exp2_fast(m - to);
}
__device__ static inline void add_part(float &l, float4 &o, float f, float l_part, const float4 &x) {
    l += f * l_part;
    o.x += f * x.x, o.y += f * x.y, o.z += f * x.z, o.w += f * x.w;
}
__device__ static inline float4 column_of(float l, const float4 &o) {
    const float inv = l > 0.0f ? 1.0f / l : 0.0f;
    return make_float4(o.x * inv, o.y * inv, o.z * inv, o.w * inv);
}

/* parts of the warps become the block's: o itself in its flow, or its part in global memory: {o}, {m, l} a column of 4 */
template <int D, bool STATS>
__device__ static void merge_block(const step_job &j, const step_shared &s, const mma_job &m,
                                   const segment &g, const step_input &to_o, int n_block) {
    const int n = j.group * (D / 4), slot = blockIdx.x;
    for (int base = 0; base < n; base += STEP_THREADS) {
        if (base + (int)(threadIdx.x & ~31u) >= n) break; /* whole warps: they exchange */
        const int c = min(base + (int)threadIdx.x, n - 1), h = c / (D / 4);
        float top = -INFINITY, l = 0;
        float4 o = {};
#pragma unroll
        for (int w = 0; w < STEP_WARPS; w++)
            top = fmaxf(top, part_state(s, w, h)[0]);
#pragma unroll
        for (int w = 0; w < STEP_WARPS; w++) {
            const float *x = part_state(s, w, h);
            add_part(l, o, factor_of(x[0], top), x[1],
                     *reinterpret_cast<const float4 *>(part_of<D>(j, s, w) + 4 * c));
        }
        const bool valid = base + (int)threadIdx.x < n;
        if (n_block == 1) {
            flow_put<true>(to_o.flow, to_o.type, to_o.n_unit, g.head * (D / STEP_GROUP) + c / 4, column_of(l, o), valid);
        } else if (valid) {
            float4 *to = reinterpret_cast<float4 *>(j.part_o) + ((int64_t)slot * n + c) * 2;
            to[0] = o;
            to[1] = make_float4(top, l, 0, 0);
        }
    }
    if (!STATS || (int)threadIdx.x >= j.group) return;
    float x[6] = {-INFINITY, 0, 0, 0, 0, 0};
    for (int w = 0; w < STEP_WARPS; w++)
        x[0] = fmaxf(x[0], part_state(s, w, threadIdx.x)[0]);
    for (int w = 0; w < STEP_WARPS; w++)
        if (part_state(s, w, threadIdx.x)[0] != -INFINITY) add_state<true>(x, part_state(s, w, threadIdx.x), x[0]);
    if (n_block == 1) {
        write_state(m, g, threadIdx.x, x);
        return;
    }
    float *to = j.part_state + ((int64_t)slot * j.group + threadIdx.x) * STATE;
    for (int i = 0; i < 6; i++)
        to[i] = x[i];
}

__device__ static inline bool comes_last(const step_job &j, const step_shared &s, int head_kv, int n_block) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        *s.last = atomicAdd(j.ticket + head_kv, 1) == n_block - 1;
        if (*s.last) j.ticket[head_kv] = 0;
        __threadfence();
    }
    __syncthreads();
    return *s.last;
}

/* the blocks' parts, from `slot` on, of a column meet in eight lanes, those of a head's state in a warp */
template <int D, bool STATS>
__device__ static void merge_head(const step_job &j, const mma_job &m, const segment &g, const step_input &to_o,
                                  int slot, int n_block) {
    constexpr int WIDTH = 8;
    const int n = j.group * (D / 4), lane = threadIdx.x % 32;
    for (int base = (int)(threadIdx.x / 32) * (32 / WIDTH); base < n; base += STEP_THREADS / WIDTH) {
        const int c = min(base + lane / WIDTH, n - 1);
        const float4 *from = reinterpret_cast<const float4 *>(j.part_o) + ((int64_t)slot * n + c) * 2;
        float top = -INFINITY, l = 0;
        float4 o = {};
#pragma unroll 2
        for (int b = lane % WIDTH; b < n_block; b += WIDTH) {
            const float4 x = __ldcg(from + (int64_t)b * n * 2), state = __ldcg(from + (int64_t)b * n * 2 + 1);
            const float to = fmaxf(top, state.x), f = factor_of(top, to);
            l *= f, o.x *= f, o.y *= f, o.z *= f, o.w *= f;
            add_part(l, o, factor_of(state.x, to), state.y, x);
            top = to;
        }
        const float all = group_max<WIDTH>(top), f = factor_of(top, all);
        l = group_sum<WIDTH>(l * f);
        o = make_float4(group_sum<WIDTH>(o.x * f), group_sum<WIDTH>(o.y * f), group_sum<WIDTH>(o.z * f),
                        group_sum<WIDTH>(o.w * f));
        /* four columns a warp are a group: D is a multiple of 64 */
        o = column_of(l, o);
        const int from_lane = lane % 4 * WIDTH;
        o = make_float4(__shfl_sync(ALL, o.x, from_lane), __shfl_sync(ALL, o.y, from_lane),
                        __shfl_sync(ALL, o.z, from_lane), __shfl_sync(ALL, o.w, from_lane));
        flow_put<true>(to_o.flow, to_o.type, to_o.n_unit, g.head * (D / STEP_GROUP) + base / 4, o, lane < 4);
    }
    for (int h = threadIdx.x / 32; STATS && h < j.group; h += STEP_WARPS) {
        const float *from = j.part_state + ((int64_t)slot * j.group + h) * STATE;
        float x[6] = {-INFINITY, 0, 0, 0, 0, 0};
        for (int b = lane; b < n_block; b += 32)
            x[0] = fmaxf(x[0], __ldcg(from + (int64_t)b * j.group * STATE));
        x[0] = group_max<32>(x[0]);
        for (int b = lane; b < n_block; b += 32) {
            float y[6];
#pragma unroll
            for (int i = 0; i < 6; i++)
                y[i] = __ldcg(from + (int64_t)b * j.group * STATE + i);
            if (y[0] != -INFINITY) add_state<true>(x, y, x[0]);
        }
#pragma unroll
        for (int i = 1; i < 6; i++)
            x[i] = warp_sum(x[i]);
        if (lane == 0) write_state(m, g, h, x);
    }
}

template <int D, bool STATS>
__device__ static void attention(const step_job &j, step_warp<D> &w, const step_shared &s, int layer) {
    const step_seat seat = s.seat[layer];
    if (seat.n_block == 0) return;
    const step_share k = share_of(w.pos, seat);
    const step_input to_o = input_of(j, s, layer, PHASE_O);
    mma_job m = step_attention(j, layer);
    step_heads h;
    heads_of<STATS>(j, layer, w.pos, seat.head, h);
    bool newest = k.n_seen > 0 && (k.n_seen - 1) % seat.n_block == seat.split;
    if (newest) newest = copy_newest<D>(j, w, s, layer, seat.head);
    take_qkv<D>(j, w, s, layer, seat.head, newest);
    m.q = s.q - h.s.head * D;
    __syncthreads();
    {
        warp_state<D, STATS> u;
        attend<D, STATS>(j, w, s, m, h, k, layer, newest, u);
        leave_part<D, STATS>(j, s, u);
    }
    __syncthreads();
    merge_block<D, STATS>(j, s, m, h.s, to_o, seat.n_block);
    if (seat.n_block > 1 && comes_last(j, s, seat.head, seat.n_block))
        merge_head<D, STATS>(j, m, h.s, to_o, (int)blockIdx.x - seat.split, seat.n_block);
}

/* --- the kernel ------------------------------------------------------------------------------------------------ */

/* blocks that KV head `head` gets when one has at most `most` units of it; few units are not shared */
__device__ static inline int blocks_for(int n_seen, int most) {
    return n_seen <= max(most, 4 * STEP_WARPS) ? 1 : (n_seen + most - 1) / most;
}
__device__ static inline int widest_of(const step_job &j, int layer, int head) {
    int widest = 0;
    for (int i = 0; i < j.group; i++)
        widest = max(widest, __ldg(j.span + (int64_t)layer * j.n_head + head * j.group + i));
    return widest;
}
/* Blocks go to the KV heads so that the one with most units to read has as few as can be: by one warp, the same in each block. */
__device__ static void take_seat(const step_job &j, const step_shared &s, int pos, int layer) {
    constexpr int R = MAX_HEAD_KV / 32;
    const int lane = threadIdx.x % 32;
    int widest[R], seen[R], most = 0;
#pragma unroll
    for (int r = 0; r < R; r++) {
        widest[r] = r * 32 + lane < j.n_head_kv ? widest_of(j, layer, r * 32 + lane) : 0;
        seen[r] = seen_of(pos, widest[r]).n_seen;
        most = max(most, r * 32 + lane < j.n_head_kv ? seen[r] : 0);
    }
    int low = 2 * STEP_WARPS, high = max(__reduce_max_sync(ALL, most), low); /* high is enough for all */
    while (low < high) {
        const int middle = (low + high) / 2;
        int n = 0;
#pragma unroll
        for (int r = 0; r < R; r++)
            if (r * 32 + lane < j.n_head_kv) n += blocks_for(seen[r], middle);
        if (__reduce_add_sync(ALL, n) <= (int)gridDim.x)
            high = middle;
        else
            low = middle + 1;
    }
    int before = 0;
    if (lane == 0) s.seat[layer] = {};
    __syncwarp();
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int mine = r * 32 + lane < j.n_head_kv ? blocks_for(seen[r], high) : 0;
        int end = mine;
#pragma unroll
        for (int d = 1; d < 32; d *= 2) {
            const int other = __shfl_up_sync(ALL, end, d);
            if (lane >= d) end += other;
        }
        const int split = (int)blockIdx.x - (before + end - mine);
        if (split >= 0 && split < mine)
            s.seat[layer] = {widest[r], (uint8_t)(r * 32 + lane), (uint8_t)split, (uint8_t)mine, 0};
        before += __shfl_sync(ALL, end, 31);
    }
}

/* cosines and sines */
__device__ static inline void prepare_turn(const step_job &j, const step_shared &s, int pos) {
    for (int i = threadIdx.x; i < j.half; i += STEP_THREADS) {
        double rate = j.rope_scale * exp2(-(double)i / j.half * j.log2_theta);
        if (j.factors) rate /= (double)j.factors[i];
        const double angle = (double)pos * rate, turns = rint(angle * 0.15915494309189535);
        const float rest = (float)fma(-turns, 6.283185307179586, angle);
        sincosf(rest, &s.turn[j.half + i], &s.turn[i]);
    }
}
__device__ static inline void copy_tables(const step_job &j, const step_shared &s) {
    uint64_t *const to = reinterpret_cast<uint64_t *>(s.layers);
    for (int i = threadIdx.x; i < j.n_layer * (int)(sizeof(step_layer) / 8); i += STEP_THREADS)
        to[i] = reinterpret_cast<const uint64_t *>(j.layer)[i];
    uint64_t *const forms = reinterpret_cast<uint64_t *>(s.forms);
    for (int i = threadIdx.x; i < j.n_form * (int)(sizeof(step_form) / 8); i += STEP_THREADS)
        forms[i] = reinterpret_cast<const uint64_t *>(j.form)[i];
}

/* The rings begin as soon as all seats are known; cosines while their first bytes are on the way. */
template <int D>
__device__ static inline void start_warp(const step_job &j, const step_shared &s, step_warp<D> &w) {
    const int warp = threadIdx.x / 32;
    w.pos = j.pos[0], w.seq = j.seq ? j.seq[0] : 0;
    w.slot = 0, w.parity = 0, w.owed = 0;
    w.ring = {shared_at(s.slots) + (unsigned)(warp * j.n_slot) * STEP_SLOT,
              shared_at(s.bars) + (unsigned)(warp * j.n_slot) * 8, j.n_slot};
    if (threadIdx.x % 32 == 0)
        for (int i = 0; i < j.n_slot; i++)
            asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(w.ring.bars + (unsigned)i * 8),
                         "r"(STEP_PIECES)
                         : "memory");
#if __CUDA_ARCH__ >= 900 /* before it the kernel is not launched */
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* the barriers, before copies that count on them */
#endif
    copy_tables(j, s);
    for (int l = warp; l < j.n_layer; l += STEP_WARPS) /* all: the ring of a block with few products begins layers ahead */
        take_seat(j, s, w.pos, l);
    __syncthreads();
    w.ahead.pos = w.pos, w.ahead.seq = w.seq, w.ahead.seats = s.seat, w.ahead.tables = {s.layers, s.forms};
    w.ahead.start(j);
    for (int i = 0; i < j.n_slot; i++)
        w.ahead.fetch(j, w.ring);
    prepare_turn(j, s, w.pos);
}

#ifdef STEP_CLOCK /* clocks of waiting and of work a phase, summed over layers, left in j.clock (n_block, 8, 2) */
struct step_clock {
    float *sum;
    long long last;
    __device__ inline void begin() {
        __shared__ float sums[16];
        sum = sums;
        if (threadIdx.x < 16) sums[threadIdx.x] = 0;
        last = clock64();
    }
    __device__ inline void lap(int phase, int which) {
        const long long now = clock64();
        if (threadIdx.x == 0) sum[phase * 2 + which] += (float)(now - last);
        last = now;
    }
    __device__ inline void end(const step_job &j) {
        __syncthreads();
        if (threadIdx.x < 16) j.clock[blockIdx.x * 16 + threadIdx.x] = sum[threadIdx.x];
    }
};
#else
struct step_clock {
    __device__ inline void begin() {}
    __device__ inline void lap(int, int) {}
    __device__ inline void end(const step_job &) {}
};
#endif

template <int D, bool STATS>
__global__ static void __launch_bounds__(STEP_THREADS, 1) step_v2(const __grid_constant__ step_job j) {
    extern __shared__ __align__(128) uint8_t step_dynamic[];
    const step_shared s = shared_of(j, step_dynamic);
    step_warp<D> w;
    step_clock clock;
    clock.begin();
    start_warp<D>(j, s, w);
    for (int layer = 0, phase = PHASE_QKV; phase != PHASE_END;) {
        if (phase == PHASE_ATTN) {
            attention<D, STATS>(j, w, s, layer);
            __syncthreads(); /* parts are read, x may come */
            w.pay(j);
        } else {
            const step_input in = input_of(j, s, layer, phase);
            const int pair = first_pair(phase);
            step_out o = {};
            step_given g = {};
            if (threadIdx.x % 32 == 0 && pair < pairs_of(j, phase))
                o = out_of<D>(j, w, s, layer, phase, task_of<D>(j, phase, pair));
            take_x(j, s, in, layer == 0 && phase == PHASE_QKV);
            clock.lap(phase, 0);
            const bool gives = threadIdx.x < 32 && phase != PHASE_QKV && phase != PHASE_HEAD;
            if (gives) g = given_of(j, s, layer, phase);
            products<D>(j, w, s, in, layer, phase, o);
            __syncthreads();
            if (gives) give(s, g);
            w.pay(j);
        }
        clock.lap(phase, 1);
        if (phase != PHASE_DOWN)
            phase = phase == PHASE_HEAD ? PHASE_END : phase + 1;
        else
            phase = ++layer < j.n_layer ? PHASE_QKV : j.logits ? PHASE_HEAD : PHASE_END;
    }
    clock.end(j);
}

/* --- launching --------------------------------------------------------------------------------------------------- */

static int type_of(const moa_dev_weight *w) {
    switch ((int)w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: return w->packed ? TYPE_##stem : N_TYPE;
        MOA_PACKED_MAP(X)
#undef X
    case moa_f32_id: return TYPE_f32;
    case moa_f16_id: return TYPE_f16;
    case moa_bf16_id: return TYPE_bf16;
    default: return N_TYPE;
    }
}
static int unit_of_type(int type) {
    return type < TYPE_f32 ? 32 : type == TYPE_f32 ? 4 : 8;
}
/* how x lies for them in shared memory */
static int x_kind(int type) {
    return unit_of_type(type);
}

/* Is w a matrix of that size that the kernel reads? */
static bool matrix_fits(const moa_dev_weight *w, int n_out, int n_in) {
    const int type = type_of(w);
    return type < N_TYPE && w->n_in == n_in && w->n_out == n_out && row_shared_bytes(w) > 0 &&
           n_in / unit_of_type(type) < 65536;
}
static const uint8_t *bytes_of(const moa_dev_weight *w) {
    return static_cast<const uint8_t *>(w->data);
}

static bool layer_fits(const moa_layer_weights *y, const step_sizes &z) {
    const bool shapes = matrix_fits(y->wq, z.n_q, z.d_model) && matrix_fits(y->wk, z.n_kv, z.d_model) &&
                        matrix_fits(y->wv, z.n_kv, z.d_model) && matrix_fits(y->wo, z.d_model, z.n_q) &&
                        matrix_fits(y->gate, z.d_ff, z.d_model) && matrix_fits(y->up, z.d_ff, z.d_model) &&
                        matrix_fits(y->down, z.d_model, z.d_ff);
    if (!shapes || !vector_fits(y->attn_norm, z.d_model) || !vector_fits(y->ffn_norm, z.d_model) ||
        !bias_fits(y->bq, z.n_q) || !bias_fits(y->bk, z.n_kv) || !bias_fits(y->bv, z.n_kv))
        return false;
    const int q = x_kind(type_of(y->wq));
    return q == x_kind(type_of(y->wk)) && q == x_kind(type_of(y->wv)) && type_of(y->gate) == type_of(y->up);
}

static bool shape_fits(const moa_cuda *c, const moa_args_step_decode *a, const step_sizes &z) {
    const int d = a->kv.d_head, rope = a->rope.rope_dim < 2 ? 0 : a->rope.rope_dim;
    if (d != 64 && d != 128) return false;
    if (c->matmul != 2 || a->kv.type != MOA_KV_F16 || a->kv.max_pages <= 0) return false;
    if (a->n_layer < 1 || a->n_layer > STEP_MAX_LAYER || rope % 2 || rope > d) return false;
    if (a->kv.n_head_kv > c->n_sm || a->kv.n_head_kv > MAX_HEAD_KV || c->n_sm > 255) return false;
    if (a->n_head % a->kv.n_head_kv || a->n_head / a->kv.n_head_kv > MAX_GROUP) return false;
    if (z.d_model % (4 * STEP_GROUP) || z.d_ff % STEP_GROUP) return false;
    if ((uintptr_t)a->x % 16 || !vector_fits(a->out_norm, z.d_model) ||
        !matrix_fits(a->output, a->output->n_out, z.d_model))
        return false;
    for (int l = 0; l < a->n_layer; l++)
        if (!layer_fits(&a->layers[l], z)) return false;
    return true;
}

/* units of a tile: multiples of 32 that fit half a slot with room for alignment, rows cut evenly */
static step_cut cut_of(int type, int n_in) {
    const step_format &f = step_formats[type];
    const int n_unit = n_in / unit_of_type(type);
    int most = 0;
    for (int n = 32;; n += 32) {
        int bytes = 0;
        for (int k = 0; k < 4; k++)
            if (f.unit8[k]) bytes += (((n * f.unit8[k]) / 8 + 15) & ~15) + 16;
        if (bytes > STEP_SLOT / 2) break;
        most = n;
    }
    const int n_chunk = moa_ceil_div(n_unit, most);
    const int chunk = n_chunk == 1 ? n_unit : moa_ceil_div(moa_ceil_div(n_unit, n_chunk), 32) * 32;
    return {(uint16_t)n_unit, (uint16_t)chunk, (uint16_t)moa_ceil_div(n_unit, chunk)};
}

/* number of a matrix's form in the table; STEP_MAX_FORM: there are too many */
static int form_in(step_job *j, int type, int n_out, int n_in) {
    const step_format &f = step_formats[type];
    step_form x = {};
    x.cut = cut_of(type, n_in);
    x.type = (uint16_t)type;
    const uint64_t n_unit = x.cut.n_unit, n = (uint64_t)n_out * n_unit;
    uint64_t begin = 0;
    uint32_t to = 0;
    for (int k = 0; k < 4; k++) {
        const uint32_t u8 = (uint32_t)f.unit8[k];
        const bool plane = f.planes && k == 1;
        if (!u8) continue;
        x.stream[k] = {(uint32_t)((plane ? n_unit * 16 : begin) / 16),
                       (uint32_t)(n_unit * (f.planes && k < 2 ? 256 : u8) / 8), u8, to};
        to += ((x.cut.chunk * u8 / 8 + 15) & ~15u) + 16;
        if (!plane) begin += (n * (f.planes && k == 0 ? 256 : u8) / 8 + 255) & ~(uint64_t)255;
    }
    int i = 0;
    while (i < j->n_form && memcmp(&j->form[i], &x, sizeof x) != 0)
        i++;
    if (i == j->n_form && i < STEP_MAX_FORM) j->form[j->n_form++] = x;
    return i;
}

static bool fill_layers(const moa_args_step_decode *a, step_job *j) {
    int most = j->head_form = form_in(j, type_of(a->output), a->output->n_out, a->output->n_in);
    for (int l = 0; l < a->n_layer; l++) {
        const moa_layer_weights *y = &a->layers[l];
        const moa_dev_weight *const w[N_MATRIX] = {y->wq, y->wk, y->wv, y->wo, y->gate, y->up, y->down};
        step_layer *to = &j->layer[l];
        for (int m = 0; m < N_MATRIX; m++) {
            const int form = form_in(j, type_of(w[m]), w[m]->n_out, w[m]->n_in);
            to->w[m] = bytes_of(w[m]);
            to->form[m] = (uint8_t)form;
            if (form > most) most = form;
        }
        to->bias[0] = floats_of(y->bq), to->bias[1] = floats_of(y->bk), to->bias[2] = floats_of(y->bv);
        to->norm[0] = floats_of(y->attn_norm), to->norm[1] = floats_of(y->ffn_norm);
    }
    return most < STEP_MAX_FORM;
}

static size_t align128(size_t x) {
    return (x + 127) & ~(size_t)127;
}
/* of the largest flow whose values are n; sums of squares too, where a norm follows */
static size_t flow_bytes(const step_job *j, int n, bool norm) {
    int most = 0;
    for (int i = 0; i < j->n_form; i++) {
        const step_form *f = &j->form[i];
        const int vectors = flow_vectors(f->type, f->cut.n_unit);
        if (f->cut.n_unit * unit_of_type(f->type) == n && vectors > most) most = vectors;
    }
    return (size_t)most * 16 + (norm ? (size_t)n / STEP_GROUP * sizeof(float) : 0);
}
static size_t flow_of_phase(const step_job *j, int phase) {
    switch (phase) {
    case PHASE_ATTN: return (size_t)(j->n_in[WIDTH_Q] + 2 * j->n_kv) * sizeof(float);
    case PHASE_O: return flow_bytes(j, j->n_in[WIDTH_Q], false);
    case PHASE_DOWN: return flow_bytes(j, j->n_in[WIDTH_FF], false);
    default: return flow_bytes(j, j->n_in[WIDTH_MODEL], true);
    }
}
static void place_flows(step_job *j) {
    size_t at = 0;
    for (int phase = 0; phase < PHASE_HEAD; phase++) {
        j->flow_at[phase] = (uint32_t)at;
        at += align128(flow_of_phase(j, phase));
    }
    j->flow_layer = (uint32_t)at;
}

/* where things lie in shared memory; its size, or 0: too much */
static size_t lay_out(const moa_cuda *c, step_job *j, int d, size_t most) {
    const size_t unit = (size_t)2 * 4 * (4 * (size_t)d * 2 + 32),
                 parts = ((size_t)STEP_WARPS * MAX_GROUP * STATE +
                          (size_t)STEP_WARPS * ((size_t)j->group * (size_t)d + 4)) *
                         sizeof(float);
    const int wide = j->n_in[WIDTH_FF] > j->n_in[WIDTH_MODEL] ? j->n_in[WIDTH_FF] : j->n_in[WIDTH_MODEL];
    const size_t q = (size_t)j->group * (size_t)d * sizeof(float),
                 out = align128((size_t)moa_ceil_div(wide / STEP_GROUP, c->n_sm) * STEP_GROUP * sizeof(float));
    size_t x = parts;
    for (int phase = 0; phase < PHASE_HEAD; phase++)
        if (phase != PHASE_ATTN && flow_of_phase(j, phase) > x) x = flow_of_phase(j, phase);
    x = align128(x);
    const size_t fixed = unit + x + q + out + REST_BYTES + (size_t)j->n_layer * sizeof(step_layer);
    j->n_slot = MAX_SLOT;
    while (j->n_slot >= MIN_SLOT && fixed + (size_t)STEP_WARPS * (size_t)j->n_slot * STEP_SLOT > most)
        j->n_slot--;
    if (j->n_slot < MIN_SLOT) return 0;
    j->newest_at = STEP_WARPS * j->n_slot * STEP_SLOT;
    j->x_at = j->newest_at + (int)unit;
    j->q_at = j->x_at + (int)x;
    j->out_at = j->q_at + (int)q;
    j->rest_at = j->out_at + (int)out;
    return (size_t)j->rest_at + REST_BYTES + (size_t)j->n_layer * sizeof(step_layer);
}

static bool fill_job(const moa_cuda *c, const moa_args_step_decode *a, const step_sizes &z, step_job *j) {
    j->x = a->x, j->logits = a->logits, j->clock = a->gate;
    j->head = bytes_of(a->output), j->head_norm = floats_of(a->out_norm);
    j->n_layer = a->n_layer;
    j->n_in[WIDTH_MODEL] = z.d_model, j->n_in[WIDTH_Q] = z.n_q, j->n_in[WIDTH_FF] = z.d_ff;
    j->n_kv = z.n_kv, j->n_vocab = a->output->n_out;
    j->eps = a->eps, j->scale = a->scale;
    j->factors = floats_of(a->rope.freq_factors);
    j->half = a->rope.rope_dim < 2 ? 0 : a->rope.rope_dim / 2;
    j->pairs = a->rope.kind == MOA_ROPE_PAIRS;
    j->log2_theta = log2((double)a->rope.theta), j->rope_scale = (double)a->rope.scale;
    j->kv = moa_kv_of<__half>(&a->kv);
    j->table_layer = a->table_layer_stride;
    j->pos = a->rope.pos, j->seq = a->seq, j->span = a->span;
    j->n_head = a->n_head, j->n_head_kv = a->kv.n_head_kv, j->group = a->n_head / a->kv.n_head_kv;
    j->probe = a->probe;
    j->ticket = c->ticket;
    if (!fill_layers(a, j)) return false;
    place_flows(j);
    return true;
}

/* flows, without a value yet; parts of the heads, and what the histograms need of each unit */
static moa_status find_space(moa_cuda *c, step_job *j, moa_err *err) {
    const size_t blocks = (size_t)c->n_sm, heads = (size_t)j->n_layer * (size_t)j->n_head,
                 part = blocks * (size_t)j->group * (size_t)j->kv.d_head * 2 * sizeof(float),
                 state = blocks * (size_t)j->group * STATE * sizeof(float),
                 mass = j->probe.hist ? heads * (size_t)j->kv.max_pages * UNITS_PAGE * sizeof(float4) : 0,
                 flow = (size_t)j->flow_layer * (size_t)(j->n_layer + 1);
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, flow + part + state + mass + heads * sizeof(float),
                                reinterpret_cast<void **>(&space), err));
    j->flow = reinterpret_cast<uint8_t *>(space);
    space += flow;
    MOA_CU(c, cudaMemsetAsync(j->flow, (int)(MISSING & 255), flow, c->stream));
    j->part_o = reinterpret_cast<float *>(space);
    j->part_state = reinterpret_cast<float *>(space + part);
    if (!j->probe.hist) return MOA_OK;
    j->mass = reinterpret_cast<float4 *>(space + part + state);
    j->lse = reinterpret_cast<float *>(space + part + state + mass);
    return MOA_OK;
}

template <int D, bool STATS>
static moa_status launch(moa_cuda *c, const step_job *j, size_t shared, bool *taken, moa_err *err) {
    int blocks = 0;
    MOA_CU(c, moa_allow_shared(step_v2<D, STATS>, shared));
    MOA_CU(c, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, step_v2<D, STATS>, STEP_THREADS, shared));
    if (blocks < 1) return MOA_OK;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative; /* all blocks at once or none: they wait for each other */
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)c->n_sm), config.blockDim = dim3(STEP_THREADS);
    config.dynamicSmemBytes = shared;
    config.stream = c->stream;
    config.attrs = &attribute, config.numAttrs = 1;
    MOA_CU(c, cudaLaunchKernelEx(&config, step_v2<D, STATS>, *j));
    MOA_LAUNCHED(c, "step_decode");
    *taken = true;
    return step_histograms(c, *j, err);
}
template <bool STATS>
static moa_status launch_by_size(moa_cuda *c, const step_job *j, size_t shared, bool *taken, moa_err *err) {
    switch (j->kv.d_head) {
    case 64: return launch<64, STATS>(c, j, shared, taken, err);
    case 128: return launch<128, STATS>(c, j, shared, taken, err);
    default: return MOA_OK;
    }
}

moa_status moa_cuda_step_decode(moa_backend *b, const moa_args_step_decode *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    int major = 0, cooperative = 0, most = 0;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    *a->taken = false;
    MOA_CU(c, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device));
    MOA_CU(c, cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, c->device));
    MOA_CU(c, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device));
    if (major < 9 || !cooperative || a->n_layer < 1) return MOA_OK;
    const step_sizes z = sizes_of(a);
    if (!shape_fits(c, a, z)) return MOA_OK;
    step_job *j = new (std::nothrow) step_job();
    if (!j) return moa_fail(err, MOA_E_MEMORY, "no host memory for the description of a step");
    const size_t shared = fill_job(c, a, z, j) ? lay_out(c, j, a->kv.d_head, (size_t)most) : 0;
    moa_status s = shared ? find_space(c, j, err) : MOA_OK;
    if (shared && s == MOA_OK)
        s = a->probe.stat || a->probe.hist ? launch_by_size<true>(c, j, shared, a->taken, err)
                                           : launch_by_size<false>(c, j, shared, a->taken, err);
    delete j;
    return s;
}
