/* step.cu -- a whole decode step of one row as one kernel: from the embedding to the logits.
 *
 *   block      one a multiprocessor, all at once (a cooperative launch: they wait for each other). Eight warps, each with a ring of
 *              shared memory that its own bulk copies fill (step_ring.cuh): weights and old keys and values do not depend on
 *              activations, so they are fetched ahead over phases and layers, 150 KB a multiprocessor on the way
 *   phase      norm, q k v, rope, store | attention | o + residual | norm, gate up, silu | down + residual; at the end norm, head.
 *              Between two of them all blocks meet: one addition to a counter, one thread of each block looks at it. Before it waits a
 *              block fills what its last products have emptied and looks up what the phase before does not write
 *   products   a warp has pairs of outputs as in fused.cu, the whole warp side by side on both rows: the same fixed point, the
 *              same products, the same epilogues
 *   attention  a KV head's units of 16 tokens are dealt out to warps of one block, or of several from 33 units on; warps meet in
 *              shared memory, blocks through global memory and a ticket. The newest unit, whose last row is new, is read by itself.
 *              What a warp does with a unit is attn_decode_mma.cuh's, statistics included; histograms are launches of their own behind
 *
 * The description of the step (pointers of all layers) is the kernel's argument: a recording holds it. All counters are 0 between
 * launches. Sums are in a fixed order: the same bits each time. Needs sm_90; K and V in float16, groups of up to 8, heads of 64 and 128, the weight
 * types of fused.cu. Anything else is not taken. The single operations are the check (tests/test_ops_step.c).
 *
 *   H100, us a step            fused.cu   here
 *   Llama-3-8B shape Q4_0     2617       2177     test_ops_step cuda bench: without embedding and argmax, a head of 32768 outputs
 *   SmolLM2 Q4_1               596        705     as above, all of its outputs; at 4000 tokens, watched: 1008
 *   Where the time goes (8B, clocks a phase and block): 5000 between phases, 3300 x (of down 9700), the rest products, which read at the
 *   ceiling once they have begun. So the engine takes this for models with much to read a layer alone.
 *   2026-11-24; fused.cu by moascope bench --what step, which by an earlier form of this kernel gave 2481 and 842 */
#include <new>

#include "cuda/launch.cuh"
#include "cuda/step_ring.cuh"

static constexpr int MAX_RAW = 8; /* rounds of x that a thread holds while it is normalised: n_in <= 8192 */
static constexpr int MIN_SLOT = 2, MAX_SLOT = 8, STATE = 8;

/* --- shared memory ---------------------------------------------------------------------------------------- */

struct step_shared {
    uint8_t *slots;  /* (STEP_WARPS, n_slot, STEP_SLOT) */
    uint8_t *newest; /* K and V of the newest unit */
    uint4 *x;        /* x as put() leaves it; while attention meets: parts */
    float *turn;     /* cosines (half), sines (half) */
    float *sum;      /* 32 */
    int *widest;     /* (n_layer) of this block's KV head */
    step_layer *layers; /* (n_layer) */
    step_form *forms;   /* (STEP_MAX_FORM) */
    uint64_t *bars;  /* (STEP_WARPS, n_slot) */
    int *last;
};
__device__ static inline step_shared shared_of(const step_job &j, uint8_t *all) {
    step_shared s;
    s.slots = all;
    s.newest = all + j.newest_at;
    s.x = reinterpret_cast<uint4 *>(all + j.x_at);
    s.bars = reinterpret_cast<uint64_t *>(all + j.rest_at);
    s.turn = reinterpret_cast<float *>(s.bars + STEP_WARPS * MAX_SLOT);
    s.sum = s.turn + 256;
    s.last = reinterpret_cast<int *>(s.sum + 32);
    s.widest = s.last + 4;
    s.forms = reinterpret_cast<step_form *>(s.widest + STEP_MAX_LAYER);
    s.layers = reinterpret_cast<step_layer *>(s.forms + STEP_MAX_FORM);
    return s;
}
static constexpr size_t REST_BYTES = (size_t)STEP_WARPS * MAX_SLOT * 8 + (256 + 32 + 4 + STEP_MAX_LAYER) * 4 +
                                     STEP_MAX_FORM * sizeof(step_form);
static_assert(REST_BYTES % 8 == 0 && sizeof(step_layer) % 8 == 0 && sizeof(step_form) % 8 == 0, "copied by words of 8");

/* --- all blocks meet --------------------------------------------------------------------------------------- */

struct step_meeting {
    unsigned *count;
    unsigned target;
};
/* what any block wrote before it arrived is there for every block that has waited */
__device__ static inline void arrive(step_meeting &m) {
    __syncthreads();
    m.target += gridDim.x;
    if (threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(m.count) : "memory");
}
__device__ static inline void wait_all(const step_meeting &m) {
    unsigned seen = 0;
    while (threadIdx.x == 0 && seen < m.target)
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(m.count) : "memory");
    __syncthreads();
}
/* every block has passed all meetings when the last one says so: the counters are 0 for the next launch */
__device__ static inline void leave_meetings(const step_job &j) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(j.barrier + 1, 1u) != gridDim.x - 1) return;
    j.barrier[0] = 0;
    j.barrier[1] = 0;
}

/* --- x of a phase ------------------------------------------------------------------------------------------- */

struct step_input {
    const float *x, *norm; /* norm NULL: as it is */
    int n_in, n_unit, type;
};
__device__ static inline step_input input_of(const step_job &j, const step_shared &s, int layer, int phase) {
    const step_layer &y = s.layers[min(layer, j.n_layer - 1)];
    const step_width w = width_of(phase);
    const int matrix = phase == PHASE_QKV       ? MATRIX_Q
                       : phase == PHASE_O       ? MATRIX_O
                       : phase == PHASE_GATE_UP ? MATRIX_GATE
                                                : MATRIX_DOWN;
    step_input in;
    const step_form &f = s.forms[phase == PHASE_HEAD ? j.head_form : (int)y.form[matrix]];
    in.type = f.type;
    in.x = phase == PHASE_O ? j.o : phase == PHASE_DOWN ? j.gate : j.x;
    in.norm = phase == PHASE_QKV       ? y.norm[0]
              : phase == PHASE_GATE_UP ? y.norm[1]
              : phase == PHASE_HEAD    ? j.head_norm
                                       : nullptr;
    in.n_in = j.n_in[w];
    in.n_unit = f.cut.n_unit;
    return in;
}
__device__ static inline void put_plain(const step_input &in, uint4 *x, int i, float4 v) {
    if (in.type == TYPE_f32)
        row_plain<moa_f32_id>::put(x, in.n_unit, i, v);
    else
        row_plain<moa_f16_id>::put(x, in.n_unit, i, v);
}
/* row_packed's put() of values i, i + STEP_THREADS, ... R times: what waits for other lanes waits for all of them at once */
template <int R> __device__ static inline void put_packed(uint4 *s, int n, int i, const float4 *v) {
    uint32_t *words = reinterpret_cast<uint32_t *>(s);
    float *factor = reinterpret_cast<float *>(s + 4 * n);
    int *all = reinterpret_cast<int *>(factor + n), *half = all + n;
    const int e = i % 8;
    uint32_t most[R];
    int q[R][4], sum[R], other[R];
#pragma unroll
    for (int r = 0; r < R; r++)
        most[r] = max(max(magnitude(v[r].x), magnitude(v[r].y)), max(magnitude(v[r].z), magnitude(v[r].w)));
#pragma unroll
    for (int lane = 1; lane < 8; lane *= 2)
#pragma unroll
        for (int r = 0; r < R; r++)
            most[r] = max(most[r], __shfl_xor_sync(ALL, most[r], lane));
#pragma unroll
    for (int r = 0; r < R; r++) {
        const float m = __uint_as_float(most[r]), inverse = m > 1e-30f ? 32512.0f / m : 0.0f;
        q[r][0] = __float2int_rn(v[r].x * inverse), q[r][1] = __float2int_rn(v[r].y * inverse);
        q[r][2] = __float2int_rn(v[r].z * inverse), q[r][3] = __float2int_rn(v[r].w * inverse);
        sum[r] = (q[r][0] + q[r][1]) + (q[r][2] + q[r][3]);
    }
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2)
#pragma unroll
        for (int r = 0; r < R; r++)
            sum[r] += __shfl_xor_sync(ALL, sum[r], lane);
#pragma unroll
    for (int r = 0; r < R; r++)
        other[r] = __shfl_xor_sync(ALL, sum[r], 4);
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int u = (i + r * STEP_THREADS) / 8;
        const float m = __uint_as_float(most[r]);
        if (u >= n) continue;
        words[(e / 4 * n + u) * 4 + e % 4] = row_packed<packed_q4_0>::bytes(
            (q[r][0] + 128) >> 8, (q[r][1] + 128) >> 8, (q[r][2] + 128) >> 8, (q[r][3] + 128) >> 8);
        words[((2 + e / 4) * n + u) * 4 + e % 4] =
            row_packed<packed_q4_0>::bytes(q[r][0], q[r][1], q[r][2], q[r][3]);
        if (e != 4) continue; /* of the second half */
        factor[u] = most[r] >= 0x7f800000u ? __uint_as_float(0x7fc00000u) : m > 1e-30f ? m / 32512.0f : 0.0f;
        all[u] = sum[r] + other[r];
        half[u] = sum[r];
    }
}
/* the norm's vector does not depend on the phases before */
__device__ static inline void fetch_norm(const step_input &in, float4 w[MAX_RAW]) {
    if (!in.norm) return;
#pragma unroll
    for (int r = 0; r < MAX_RAW; r++) {
        const int i = r * STEP_THREADS + (int)threadIdx.x;
        if (i < in.n_in / 4) w[r] = __ldg(reinterpret_cast<const float4 *>(in.norm) + i);
    }
}
__device__ static inline void prepare_x(const step_input &in, const float4 w[MAX_RAW], float eps,
                                        const step_shared &s) {
    const int n = in.n_in / 4;
    const float4 *const x = reinterpret_cast<const float4 *>(in.x);
    for (int base = 0; base < n; base += MAX_RAW * STEP_THREADS) {
        float4 v[MAX_RAW];
        float sum = 0, factor = 1;
#pragma unroll
        for (int r = 0; r < MAX_RAW; r++) {
            const int i = base + r * STEP_THREADS + (int)threadIdx.x;
            v[r] = i < n ? __ldcg(x + i) : make_float4(0, 0, 0, 0);
        }
        if (in.norm) { /* one base only */
#pragma unroll
            for (int r = 0; r < MAX_RAW; r++)
                sum += (v[r].x * v[r].x + v[r].y * v[r].y) + (v[r].z * v[r].z + v[r].w * v[r].w);
            sum = warp_sum(sum);
            if (threadIdx.x % 32 == 0) s.sum[threadIdx.x / 32] = sum;
            __syncthreads();
            sum = 0;
#pragma unroll
            for (int k = 0; k < STEP_WARPS; k++)
                sum += s.sum[k];
            factor = rsqrtf(sum / (float)in.n_in + eps);
        }
        if (in.norm)
#pragma unroll
            for (int r = 0; r < MAX_RAW; r++)
                if (base + r * STEP_THREADS + (int)threadIdx.x < n)
                    v[r] = make_float4(v[r].x * factor * w[r].x, v[r].y * factor * w[r].y,
                                       v[r].z * factor * w[r].z, v[r].w * factor * w[r].w);
        const int first = base + (int)threadIdx.x;
        if (in.type < TYPE_f32) { /* whole warps: they exchange */
            if (n <= STEP_THREADS) {
                put_packed<1>(s.x, in.n_unit, first, v);
                continue;
            }
#pragma unroll
            for (int r = 0; r < MAX_RAW; r += 4)
                if (base + r * STEP_THREADS < n)
                    put_packed<4>(s.x, in.n_unit, first + r * STEP_THREADS, v + r);
            continue;
        }
#pragma unroll
        for (int r = 0; r < MAX_RAW; r++)
            if (first + r * STEP_THREADS < n) put_plain(in, s.x, first + r * STEP_THREADS, v[r]);
    }
    __syncthreads();
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
    /* what can wait until the block has arrived at the next meeting */
    __device__ inline void pay(const step_job &j) {
        for (; owed > 0; owed--)
            ahead.fetch(j, ring);
    }
};

/* --- products ------------------------------------------------------------------------------------------------- */

/* what one lane adds to a pair, and where it goes; fetched before the products are made */
struct step_out {
    float2 add;
    float *y;      /* or NULL: to the page alone */
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
    case KIND_GATED: o.y = j.gate; return o;
    case KIND_Q: o.y = j.q; break;
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

__device__ static inline void finish(const step_job &j, const step_shared &s, const step_task &t,
                                     const step_out &o, float a, float b) {
    if (t.kind == KIND_GATED) {
        o.y[t.a] = silu_times(a, b);
        return;
    }
    a += o.add.x, b += o.add.y;
    if ((t.kind == KIND_Q || t.kind == KIND_K) && t.in_head < j.half) {
        const float cosine = s.turn[t.in_head], sine = s.turn[j.half + t.in_head], a0 = a;
        a = a0 * cosine - b * sine;
        b = a0 * sine + b * cosine;
    }
    if (o.row) {
        o.row[t.a - o.first] = __float2half_rn(a);
        o.row[t.b - o.first] = __float2half_rn(b);
    }
    if (!o.y) return;
    o.y[t.a] = a;
    if (t.b != t.a) o.y[t.b] = b;
}

/* The first is what the warp adds to its first pair: it was asked for before the meeting. */
template <int D>
__device__ static void products(const step_job &j, step_warp<D> &w, const step_shared &s, int layer,
                                int phase, const step_out &first) {
    const int n_pair = pairs_of(j, phase);
    const step_tables tables = {s.layers, s.forms};
    step_out o = first;
    for (int pair = first_pair(); pair < n_pair; pair += all_warps()) {
        const step_task t = task_of<D>(j, phase, pair);
        const step_form &f = form_of(j, tables, layer, t.matrix);
        const int type = f.type;
        step_tile tile = {nullptr, t.a, t.b, 0, 0, f.cut, s.x};
        const bool last = pair + all_warps() >= n_pair;
        float sum[2] = {};
        if (pair != first_pair() && threadIdx.x % 32 == 0) o = out_of<D>(j, w, s, layer, phase, t);
        for (int chunk = 0; chunk < tile.cut.n_chunk; chunk++) {
            tile.slot = s.slots + ((int)(threadIdx.x / 32) * w.ring.n_slot + w.slot) * STEP_SLOT;
            tile.u0 = chunk * tile.cut.chunk;
            tile.n = min((int)tile.cut.chunk, tile.cut.n_unit - tile.u0);
            w.wait();
            use_tile(type, tile, sum);
            __syncwarp(); /* everybody has read the slot */
            w.next();
            if (last && chunk + 1 == tile.cut.n_chunk)
                w.owed++;
            else
                w.ahead.fetch(j, w.ring);
        }
        sum[0] = warp_sum(sum[0]), sum[1] = warp_sum(sum[1]);
        if (threadIdx.x % 32 == 0) finish(j, s, t, o, sum[0], sum[1]);
    }
}

/* --- attention ------------------------------------------------------------------------------------------------ */

__device__ static inline mma_job attention_of(const step_job &j, int layer) {
    mma_job m = {};
    const int64_t at = (int64_t)layer * j.n_head;
    m.q = j.q, m.o = j.o;
    m.kv = j.kv;
    m.n_seq = 1, m.n_head = j.n_head, m.n_head_kv = j.n_head_kv, m.group = j.group;
    m.scale = j.scale;
    if (j.probe.stat) m.probe.stat = j.probe.stat + at * MOA_N_STAT;
    if (j.lse) m.lse = j.lse + at;
    if (j.mass) m.mass = j.mass + at * (j.kv.max_pages * UNITS_PAGE);
    return m;
}

struct step_heads {
    segment s;      /* seq is 0: a row's outputs */
    int measure[2]; /* windows of this lane's two heads for the statistics */
};
/* windows of the heads of this block; before the meeting, which they do not depend on */
template <bool STATS>
__device__ static inline void heads_of(const step_job &j, int layer, int pos, step_heads &h) {
    const int head_kv = min((int)blockIdx.x / j.n_split, j.n_head_kv - 1);
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

/* the newest unit, by the warp that has it: its last row was written in the phase before */
template <int D>
__device__ static bool copy_newest(const step_job &j, const step_warp<D> &w, int layer, int head_kv,
                                   uint8_t *to) {
    typedef unit_layout<D> t;
    const int unit = w.pos / UNIT_TOK, n_row = w.pos - unit * UNIT_TOK + 1;
    const int32_t page = __ldg(j.kv.table + layer * j.table_layer + w.seq * j.kv.seq_stride +
                               (int64_t)head_kv * j.kv.max_pages + unit / UNITS_PAGE);
    if (page < 0) return false;
    const uint4 *from = reinterpret_cast<const uint4 *>(
        j.kv.pool +
        ((int64_t)page * (2 * MOA_PAGE_TOK) + unit % UNITS_PAGE * UNIT_TOK) * D);
    constexpr int PIECES = D / 8; /* of a row */
#pragma unroll 8
    for (int e = threadIdx.x % 32; e < 2 * UNIT_TOK * PIECES; e += 32) {
        const int side = e / (UNIT_TOK * PIECES), row = e / PIECES % UNIT_TOK, piece = e % PIECES;
        if (row >= n_row) continue;
        *reinterpret_cast<uint4 *>(to + side * t::SIDE + row / 4 * t::QUARTER + row % 4 * t::ROW + piece * 16) =
            __ldcg(from + (side * MOA_PAGE_TOK + row) * PIECES + piece);
    }
    __syncwarp();
    return true;
}

template <int D, bool STATS>
__device__ static void attend(const step_job &j, step_warp<D> &w, const step_shared &s, const mma_job &m,
                              const step_heads &h, const step_share &k, int layer,
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
    if (v == k.n_seen - 1 && copy_newest<D>(j, w, layer, h.s.head_kv, s.newest)) {
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
__device__ static inline void put_column(float4 *to, float l, const float4 &o) {
    const float inv = l > 0.0f ? 1.0f / l : 0.0f;
    *to = make_float4(o.x * inv, o.y * inv, o.z * inv, o.w * inv);
}

/* parts of the warps become the block's: o itself, or its part in global memory: {o}, {m, l} a column of 4 */
template <int D, bool STATS>
__device__ static void merge_block(const step_job &j, const step_shared &s, const mma_job &m,
                                   const segment &g, int n_block, int slot) {
    const int n = j.group * (D / 4);
    for (int c = threadIdx.x; c < n; c += STEP_THREADS) {
        const int h = c / (D / 4);
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
        if (n_block == 1) {
            put_column(reinterpret_cast<float4 *>(j.o + g.head * D) + c, l, o);
        } else {
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

/* the blocks' parts of a column meet in eight lanes, those of a head's state in a warp */
template <int D, bool STATS>
__device__ static void merge_head(const step_job &j, const mma_job &m, const segment &g, int n_block) {
    constexpr int WIDTH = 8;
    const int n = j.group * (D / 4), slot = g.head_kv * j.n_split, lane = threadIdx.x % 32;
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
        if (lane % WIDTH == 0 && base + lane / WIDTH < n)
            put_column(reinterpret_cast<float4 *>(j.o + g.head * D) + c, l, o);
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
__device__ static void attention(const step_job &j, step_warp<D> &w, const step_shared &s,
                                 const step_heads &h, int layer) {
    const int split = (int)blockIdx.x % j.n_split;
    if ((int)blockIdx.x >= j.n_head_kv * j.n_split) return;
    const step_share k = share_of(j, w.pos, s.widest[layer]);
    if (split >= k.n_block) return;
    const mma_job m = attention_of(j, layer);
    {
        warp_state<D, STATS> u;
        attend<D, STATS>(j, w, s, m, h, k, layer, u);
        leave_part<D, STATS>(j, s, u);
    }
    __syncthreads();
    merge_block<D, STATS>(j, s, m, h.s, k.n_block, (int)blockIdx.x);
    if (k.n_block > 1 && comes_last(j, s, h.s.head_kv, k.n_block)) merge_head<D, STATS>(j, m, h.s, k.n_block);
}

/* --- the kernel ------------------------------------------------------------------------------------------------ */

/* what does not change during the step: cosines and sines, and the widest spans of this block's KV head */
__device__ static inline void prepare_step(const step_job &j, const step_shared &s, int pos) {
    for (int i = threadIdx.x; i < j.half; i += STEP_THREADS) {
        double rate = j.rope_scale * exp2(-(double)i / j.half * j.log2_theta);
        if (j.factors) rate /= (double)j.factors[i];
        const double angle = (double)pos * rate, turns = rint(angle * 0.15915494309189535);
        const float rest = (float)fma(-turns, 6.283185307179586, angle);
        sincosf(rest, &s.turn[j.half + i], &s.turn[i]);
    }
    uint64_t *const to = reinterpret_cast<uint64_t *>(s.layers);
    for (int i = threadIdx.x; i < j.n_layer * (int)(sizeof(step_layer) / 8); i += STEP_THREADS)
        to[i] = reinterpret_cast<const uint64_t *>(j.layer)[i];
    uint64_t *const forms = reinterpret_cast<uint64_t *>(s.forms);
    for (int i = threadIdx.x; i < j.n_form * (int)(sizeof(step_form) / 8); i += STEP_THREADS)
        forms[i] = reinterpret_cast<const uint64_t *>(j.form)[i];
    const int head_kv = min((int)blockIdx.x / j.n_split, j.n_head_kv - 1);
    for (int l = threadIdx.x; l < j.n_layer; l += STEP_THREADS) {
        int widest = 0;
        for (int i = 0; i < j.group; i++)
            widest = max(widest, j.span[(int64_t)l * j.n_head + head_kv * j.group + i]);
        s.widest[l] = widest;
    }
}

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
    prepare_step(j, s, w.pos);
    __syncthreads();
    w.ahead.pos = w.pos, w.ahead.seq = w.seq, w.ahead.widest = s.widest, w.ahead.tables = {s.layers, s.forms};
    w.ahead.start(j);
    for (int i = 0; i < j.n_slot; i++)
        w.ahead.fetch(j, w.ring);
}

template <int D, bool STATS>
__global__ static void __launch_bounds__(STEP_THREADS, 1) step_v1(const __grid_constant__ step_job j) {
    extern __shared__ __align__(128) uint8_t step_dynamic[];
    const step_shared s = shared_of(j, step_dynamic);
    step_meeting m = {j.barrier, 0};
    step_warp<D> w;
    start_warp<D>(j, s, w);
    for (int layer = 0, phase = PHASE_QKV; phase != PHASE_END;) {
        const bool first = layer == 0 && phase == PHASE_QKV;
        if (!first) arrive(m);
        w.pay(j);
        if (phase == PHASE_ATTN) {
            step_heads h;
            heads_of<STATS>(j, layer, w.pos, h);
            wait_all(m);
            attention<D, STATS>(j, w, s, h, layer);
        } else {
            const step_input in = input_of(j, s, layer, phase);
            float4 norm[MAX_RAW];
            step_out o = {};
            fetch_norm(in, norm);
            if (threadIdx.x % 32 == 0 && first_pair() < pairs_of(j, phase))
                o = out_of<D>(j, w, s, layer, phase, task_of<D>(j, phase, first_pair()));
            if (!first) wait_all(m);
            prepare_x(in, norm, j.eps, s);
            products<D>(j, w, s, layer, phase, o);
        }
        if (phase != PHASE_DOWN)
            phase = phase == PHASE_HEAD ? PHASE_END : phase + 1;
        else
            phase = ++layer < j.n_layer ? PHASE_QKV : j.logits ? PHASE_HEAD : PHASE_END;
    }
    leave_meetings(j);
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
static bool vector_fits(const moa_dev_weight *w, int n) {
    return w->type == MOA_F32 && w->n_out == 1 && w->n_in == n;
}
static bool bias_fits(const moa_dev_weight *w, int n) {
    return !w || (w->n_out == 1 && w->n_in == n);
}
static const float *floats_of(const moa_dev_weight *w) {
    return w ? static_cast<const float *>(w->data) : nullptr;
}
static const uint8_t *bytes_of(const moa_dev_weight *w) {
    return static_cast<const uint8_t *>(w->data);
}

struct step_sizes {
    int d_model, n_q, n_kv, d_ff;
};
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
    if (a->kv.n_head_kv > c->n_sm || a->n_head % a->kv.n_head_kv || a->n_head / a->kv.n_head_kv > MAX_GROUP)
        return false;
    if (z.d_model > 4 * MAX_RAW * STEP_THREADS || z.d_model % 4 || z.n_q % 4 || z.d_ff % 4) return false;
    const uintptr_t at = (uintptr_t)a->x | (uintptr_t)a->q | (uintptr_t)a->o | (uintptr_t)a->gate;
    if (at % 16 || !vector_fits(a->out_norm, z.d_model) ||
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

/* the largest x, as it lies in shared memory */
static size_t x_bytes_of(const step_job *j) {
    size_t most = 0;
    for (int i = 0; i < j->n_form; i++) {
        const size_t unit = j->form[i].type < TYPE_f32 ? 76 : j->form[i].type == TYPE_f32 ? 16 : 32;
        if (j->form[i].cut.n_unit * unit > most) most = j->form[i].cut.n_unit * unit;
    }
    return most;
}

/* where things lie in shared memory; its size, or 0: too much */
static size_t lay_out(step_job *j, int d, size_t most) {
    const size_t unit = (size_t)2 * 4 * (4 * (size_t)d * 2 + 32),
                 parts = ((size_t)STEP_WARPS * MAX_GROUP * STATE +
                          (size_t)STEP_WARPS * ((size_t)j->group * (size_t)d + 4)) *
                         sizeof(float);
    size_t x = x_bytes_of(j);
    if (x < parts) x = parts;
    x = (x + 127) & ~(size_t)127;
    const size_t fixed = unit + x + REST_BYTES + (size_t)j->n_layer * sizeof(step_layer);
    j->n_slot = MAX_SLOT;
    while (j->n_slot >= MIN_SLOT && fixed + (size_t)STEP_WARPS * (size_t)j->n_slot * STEP_SLOT > most)
        j->n_slot--;
    if (j->n_slot < MIN_SLOT) return 0;
    j->newest_at = STEP_WARPS * j->n_slot * STEP_SLOT;
    j->x_at = j->newest_at + (int)unit;
    j->rest_at = j->x_at + (int)x;
    return (size_t)j->rest_at + REST_BYTES + (size_t)j->n_layer * sizeof(step_layer);
}

static bool fill_job(const moa_cuda *c, const moa_args_step_decode *a, const step_sizes &z, step_job *j) {
    j->x = a->x, j->q = a->q, j->o = a->o, j->gate = a->gate, j->logits = a->logits;
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
    j->n_split = c->n_sm / j->n_head_kv;
    j->probe = a->probe;
    j->ticket = c->ticket;
    j->barrier = reinterpret_cast<unsigned *>(c->ticket + MOA_N_TICKET - 2);
    return fill_layers(a, j);
}

/* parts of the heads, and what the histograms need of each unit */
static moa_status find_space(moa_cuda *c, step_job *j, moa_err *err) {
    const size_t blocks = (size_t)j->n_head_kv * (size_t)j->n_split, heads = (size_t)j->n_layer * (size_t)j->n_head,
                 part = blocks * (size_t)j->group * (size_t)j->kv.d_head * 2 * sizeof(float),
                 state = blocks * (size_t)j->group * STATE * sizeof(float),
                 mass = j->probe.hist ? heads * (size_t)j->kv.max_pages * UNITS_PAGE * sizeof(float4) : 0;
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, part + state + mass + heads * sizeof(float),
                                reinterpret_cast<void **>(&space), err));
    j->part_o = reinterpret_cast<float *>(space);
    j->part_state = reinterpret_cast<float *>(space + part);
    if (!j->probe.hist) return MOA_OK;
    j->mass = reinterpret_cast<float4 *>(space + part + state);
    j->lse = reinterpret_cast<float *>(space + part + state + mass);
    return MOA_OK;
}

static moa_status histograms(moa_cuda *c, const step_job *j, moa_err *err) {
    for (int l = 0; l < j->n_layer && j->probe.hist; l++) {
        const int64_t at = (int64_t)l * j->n_head;
        mma_job m = {};
        m.kv = j->kv;
        m.kv.table += l * j->table_layer;
        m.pos = j->pos, m.span = j->span + at, m.span_stride = 0;
        m.n_seq = 1, m.n_head = j->n_head, m.n_head_kv = j->n_head_kv, m.group = j->group;
        m.probe = j->probe;
        m.probe.hist += (size_t)at * MOA_HIST_BUCKETS * (size_t)(1 + j->probe.n_bin);
        m.mass = j->mass + at * (j->kv.max_pages * UNITS_PAGE);
        m.lse = j->lse + at;
        MOA_RETURN(moa_cuda_decode_hist(c, &m, err));
    }
    return MOA_OK;
}

template <int D, bool STATS>
static moa_status launch(moa_cuda *c, const step_job *j, size_t shared, bool *taken, moa_err *err) {
    int blocks = 0;
    MOA_CU(c, moa_allow_shared(step_v1<D, STATS>, shared));
    MOA_CU(c, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, step_v1<D, STATS>, STEP_THREADS, shared));
    if (blocks < 1) return MOA_OK;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative; /* all blocks at once or none: they wait for each other */
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)c->n_sm), config.blockDim = dim3(STEP_THREADS);
    config.dynamicSmemBytes = shared;
    config.stream = c->stream;
    config.attrs = &attribute, config.numAttrs = 1;
    MOA_CU(c, cudaLaunchKernelEx(&config, step_v1<D, STATS>, *j));
    MOA_LAUNCHED(c, "step_decode");
    *taken = true;
    return histograms(c, j, err);
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
    const step_sizes z = {a->layers[0].wq->n_in, a->n_head * a->kv.d_head, a->kv.n_head_kv * a->kv.d_head,
                          a->layers[0].gate->n_out};
    if (!shape_fits(c, a, z)) return MOA_OK;
    step_job *j = new (std::nothrow) step_job();
    if (!j) return moa_fail(err, MOA_E_MEMORY, "no host memory for the description of a step");
    const size_t shared = fill_job(c, a, z, j) ? lay_out(j, a->kv.d_head, (size_t)most) : 0;
    moa_status s = shared ? find_space(c, j, err) : MOA_OK;
    if (shared && s == MOA_OK)
        s = a->probe.stat || a->probe.hist ? launch_by_size<true>(c, j, shared, a->taken, err)
                                           : launch_by_size<false>(c, j, shared, a->taken, err);
    delete j;
    return s;
}
