/* step_cluster.cu -- the layers of a decode step of a few rows of a small model: a cluster of blocks a row.
 *
 * A small model's layer is read in a microsecond or two by a few multiprocessors; what a step of it costs is its phases: a launch each is
 * 3 us (fused.cu), a meeting of all multiprocessors 2 us (step.cu). Neighbours reach each other's shared memory in half of one, and there
 * is room for several clusters: rows of different sequences need nothing from each other, so up to seven (of sixteen blocks) or fifteen
 * (of eight) take the time of one.
 *
 *   weights    stream into each block's shared memory, far ahead of what is computed (step_cluster.cuh)
 *   x          is in every block, whole: each sends what it makes to all, and the phase that reads it begins when it is there
 *   phase      norm, q k v | rope, store, attention | o + residual | norm, gate up, silu | down + residual. Products by int8 tensor
 *              cores with x in fixed point of 16 bits, exactly the integers of matmul_row.cu; a norm's factor comes after the product
 *   attention  a KV head's units of 16 tokens go in turn to blocks / n_head_kv blocks; their parts meet where o is wanted
 *   head       all multiprocessors by fused.cu or the products of several rows, its first weights on their way before x is there
 *
 * Sums are in a fixed order: the same bits each time. Needs sm_90 and places for the clusters; packed weights, K and V in float16, groups of
 * up to 8, heads of 64, 80, 96 and 128, up to 16 KV heads, sizes that are multiples of 64. Anything else is not taken. The single operations
 * are the check (tests/test_ops_step.c).
 *
 *   H100, us a step of SmolLM2 Q4_1 (Q8_0 head), 40 | 4000 tokens before it
 *   (tried)  one row; eight warps, phases' code apart and unrolled: 188 KB         765 | 1170
 *   (tried)  one row; fifteen warps, a phase's pieces dealt out together           980 | 1250
 *   (tried)  one row; every kind of work in one place of the code: 84 KB           723 | 1200
 *   cluster  four rows; gate and up and down are one round of their phase each     656 | 1176   <- here
 *   (fused)  one row; five launches a layer                                        480 |  630
 *   So one row is left to fused.cu; two to seven take what one does:
 *   us a step, moascope bench --what step        rows    2      4      7      8     15
 *     clusters: of 16 blocks, of 8 from 8 rows on       671    656    667   1076   1085
 *     single operations                                1596   1612   1650   1670   1987
 *     at 4096 tokens, clusters                                1176   1182   2365   2366
 *     at 4096 tokens, single operations                       1978   2048   2090   2637
 *   Where the time goes (clocks a layer and phase): 800 until what others send is there, 1500 x in fixed point, 500 a piece of
 *   four units, 1300 sums and sending: chains of dependent instructions in few warps, not bytes (the same without any copies of
 *   weights).
 *   measured 2026-11-24 (docs/measurements/2026-11-24-h100-small.md) */
#include <cstdlib>
#include <new>

#include "cuda/launch.cuh"
#include "cuda/step_cluster.cuh"
#include "cuda/step_pick.cuh"

/* --- vectors --------------------------------------------------------------------------------------------------- */

__device__ static inline float norm_factor(const cluster_job &j, const float *sq) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        sum += sq[w];
    return rsqrtf(sum / (float)j.d_model + j.eps);
}

__device__ static inline float factor_of(float m, float to) {
    return m == -INFINITY ? 0.0f : exp2_fast(m - to);
}
/* column i of o, where its parts meet: (n_head_kv, n_split, group * D), states (.., MAX_GROUP, STATE) */
template <int D>
__device__ static inline float4 meet_parts(const cluster_job &j, const cluster_view &s, int layer, int i) {
    const int each = j.group * (D / 4), head_kv = i / each, c = i - head_kv * each,
              slot = head_kv * j.n_split, n_block = s.shares[layer * j.n_head_kv + head_kv].n_block;
    const float4 *part = s.at<float4>(j.at.o_part) + slot * each + c;
    const float *state = s.at<float>(j.at.o_state) + (slot * MAX_GROUP + c / (D / 4)) * STATE;
    float top = -INFINITY, l = 0;
    float4 v = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int b = 0; b < n_block; b++) {
        const float4 x = part[b * each];
        const float m = state[b * MAX_GROUP * STATE], to = fmaxf(top, m), k = factor_of(m, to),
                    old = factor_of(top, to);
        l = l * old + k * state[b * MAX_GROUP * STATE + 1];
        v.x = v.x * old + k * x.x, v.y = v.y * old + k * x.y, v.z = v.z * old + k * x.z,
        v.w = v.w * old + k * x.w;
        top = to;
    }
    const float inv = l > 0.0f ? __fdividef(1.0f, l) : 0.0f;
    return make_float4(v.x * inv, v.y * inv, v.z * inv, v.w * inv);
}
/* x of the products from what is there: attention's parts, or `from`, times norm where there is one; sums of squares go to sq (WARPS) */
template <int D>
__device__ static inline void fix_vector(const cluster_job &j, const cluster_view &s, const cluster_fixed &f,
                                         int layer, const float4 *from, const float4 *norm, float *sq) {
    const int n = f.n * 8;
    float sum = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i - (int)(threadIdx.x % 32) < n; i += THREADS) {
        float4 v = make_float4(0, 0, 0, 0);
        if (i < n) v = from ? from[i] : meet_parts<D>(j, s, layer, i);
        if (norm && i < n) {
            const float4 w = norm[i];
            sum += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
            v = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w);
        }
        put_fixed(f, i, v);
    }
    if (!norm) return;
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sq[threadIdx.x / 32] = sum;
}

/* --- the ends of products ------------------------------------------------------------------------------------------ */

/* as in elementwise.cu */
__device__ static inline float silu_times(float gate, float up) {
    const float h = expf(-0.5f * fabsf(gate)), rest = 1.0f + h * h;
    return gate < 0 ? gate * h / rest * (h * up) : gate / rest * up;
}
/* a quad's four values to all blocks; rows row .. of `to` */
__device__ static inline void send_rows(const cluster_peers &peers, float *to, int row, int n, float value,
                                        const uint64_t *bar) {
    const int first = (int)threadIdx.x % 32 & ~3;
    const float4 v = make_float4(__shfl_sync(ALL, value, first), __shfl_sync(ALL, value, first + 1),
                                 __shfl_sync(ALL, value, first + 2), __shfl_sync(ALL, value, first + 3));
    if (row < n) peers.send(to + (row & ~3), v, bar);
}

enum cluster_phase { PHASE_QKV, PHASE_ATTN, PHASE_O, PHASE_GATE_UP, PHASE_DOWN, N_PHASE };
__device__ static inline int matrix_of(int phase) {
    return phase == PHASE_QKV    ? MATRIX_Q
           : phase == PHASE_O    ? MATRIX_O
           : phase == PHASE_DOWN ? MATRIX_DOWN
                                 : MATRIX_GATE;
}
__device__ static inline int matrices_of(int phase) {
    return phase == PHASE_QKV ? 3 : phase == PHASE_GATE_UP ? 2 : 1;
}
__device__ static inline bool is_normed(int phase) {
    return phase == PHASE_QKV || phase == PHASE_GATE_UP;
}

struct cluster_way {
    cluster_reader reader;
    cluster_peers peers;
    int round; /* counts them all: which half of red */
    float *sq; /* (WARPS): sums of squares of x */
};
/* A round of a phase: chunk `number` of each of its matrices. */
struct cluster_round {
    int layer, phase, number;
    float *red; /* sums of matrix m from m * red_floats on */
};
/* rows of the round's chunk of a matrix */
__device__ static inline int rows_in(const cluster_form &f, int number) {
    return max(0, min((int)f.chunk_rows, f.rows - number * f.chunk_rows));
}
/* Sums become results, and these go to all blocks: a warp 32 rows, from one matrix on to the next. gate and up meet here. */
__device__ static inline void end_round(const cluster_job &j, const cluster_view &s, const cluster_way &w,
                                        const cluster_round &r) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, phase = r.phase, matrix = matrix_of(phase);
    const bool last = phase == PHASE_DOWN && r.layer + 1 == j.n_layer;
    const float factor = is_normed(phase) ? norm_factor(j, w.sq) : 1.0f;
    float *const to = s.at<float>(phase == PHASE_QKV       ? j.at.qkv
                                  : phase == PHASE_GATE_UP ? j.at.gate
                                                           : j.at.x);
    const uint64_t *const bar = &s.bars->input[phase == PHASE_QKV       ? INPUT_QKV
                                               : phase == PHASE_GATE_UP ? INPUT_GATE
                                                                        : INPUT_X];
    int from = 0, out = 0, bias_at = 0; /* from: warps that the matrices before have taken */
#pragma unroll 1
    for (int m = 0; m < (phase == PHASE_QKV ? 3 : 1); m++) {
        const cluster_form &f = s.form(r.layer, matrix + m);
        const int n = rows_in(f, r.number), in_block = r.number * f.chunk_rows,
                  first = (int)s.rank * f.rows + in_block;
        const bool biased = phase == PHASE_QKV && s.layers[r.layer].bias[m];
#pragma unroll 1
        for (int base = (warp < from ? warp - from + WARPS : warp - from) * 32; base < n; base += THREADS) {
            const int row = min(base + lane, n - 1);
            float value = factor * sum_of(f, r.red + m * j.at.red_floats, row);
            if (phase == PHASE_GATE_UP)
                value = silu_times(value, factor * sum_of(f, r.red + j.at.red_floats, row));
            else if (phase != PHASE_QKV)
                value += to[first + row];
            else if (biased)
                value += s.at<float>(j.at.bias)[bias_at + in_block + row];
            if (!last)
                send_rows(w.peers, to + out + first, base + lane, n, value, bar);
            else if (base + lane < n)
                j.x[(int64_t)s.row * j.d_model + first + row] = value;
        }
        from = (from + (n + 31) / 32) % WARPS;
        bias_at += f.rows;
        out += m == 0 ? j.n_q : j.n_kv;
    }
}

/* a phase's products and what becomes of them; x of them is in fixed point */
__device__ static inline void products(const cluster_job &j, const cluster_view &s, cluster_way &w, int layer,
                                       int phase) {
    const int matrix = matrix_of(phase), n = matrices_of(phase), warp = threadIdx.x / 32;
    const cluster_fixed x = fixed_of(j, s,
                                     phase == PHASE_O      ? j.n_q
                                     : phase == PHASE_DOWN ? j.d_ff
                                                           : j.d_model);
    cluster_round r = {layer, phase, 0, nullptr};
#pragma unroll 1
    for (bool more = true; more; r.number++) {
        int before = 0; /* pieces of the matrices before */
        more = false;
        r.red = s.at<float>(j.at.parts) + (w.round++ & 1) * 3 * j.at.red_floats;
#pragma unroll 1
        for (int m = 0; m < n; m++) {
            const cluster_form &f = s.form(layer, matrix + m);
            if (r.number >= f.n_chunk) continue;
            more = more || r.number + 1 < f.n_chunk;
            const unsigned i = w.reader.take(s);
            const cluster_rows rows = rows_of(s, f, s.base + j.at.ring + s.bars->note[i].at, r.number);
            const int pieces = (rows.rows + TILE - 1) / TILE * f.n_part;
#pragma unroll 1
            for (int at = (warp + 3 * WARPS - before) % WARPS; at < pieces; at += WARPS)
                use_piece(f, rows, x, r.red + m * j.at.red_floats, at);
            before = (before + pieces) % WARPS;
            w.reader.leave(s, i);
        }
        meet();
        end_round(j, s, w, r);
    }
}

/* --- attention -------------------------------------------------------------------------------------------------------- */

struct cluster_heads {
    segment s;      /* seq is 0: a row's outputs */
    int measure[2]; /* windows of this lane's two heads for the statistics */
};
template <bool STATS>
__device__ static inline void heads_of(const cluster_job &j, const cluster_view &s, int layer, int head_kv,
                                       int pos, cluster_heads &h) {
    int narrowest = INT32_MAX;
    h.s = {};
    h.s.head_kv = head_kv, h.s.head = head_kv * j.group, h.s.n_head = j.group, h.s.pos = pos;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int at = (int)threadIdx.x % 4 * 2 + i;
        h.s.window[i] = h.measure[i] = INT32_MAX;
        if (at >= j.group) continue;
        const int64_t from = (int64_t)layer * j.n_head + h.s.head + at;
        h.s.window[i] = h.measure[i] = moa_window(__ldg(j.span + s.row * j.span_stride + from));
        if (STATS && j.probe.measure_span) h.measure[i] = moa_window(__ldg(j.probe.measure_span + from));
        narrowest = min(narrowest, h.s.window[i]);
    }
    h.s.narrowest = __reduce_min_sync(ALL, narrowest);
}

/* the newest token's row of its page, or NULL: it is gone */
__device__ static inline __half *newest_row(const cluster_job &j, int layer, int head_kv, int seq, int pos) {
    if (pos < 0 || pos / MOA_PAGE_TOK >= j.kv.max_pages) return nullptr;
    const int32_t page = __ldg(j.kv.table + layer * j.table_layer + seq * j.kv.seq_stride +
                               (int64_t)head_kv * j.kv.max_pages + pos / MOA_PAGE_TOK);
    return page < 0 ? nullptr
                    : j.kv.pool + ((int64_t)page * (2 * MOA_PAGE_TOK) + pos % MOA_PAGE_TOK) * j.kv.d_head;
}
/* Own queries after rope (group, D), then the newest K and V as halves (2, D); row: where these go in memory, NULL: nowhere */
template <int D>
__device__ static void turn_heads(const cluster_job &j, const cluster_view &s, int head_kv, __half *row) {
    const float *qkv = s.at<float>(j.at.qkv), *turn = s.at<float>(j.at.turn);
    float *const q = s.at<float>(j.at.own);
    __half *const newest = reinterpret_cast<__half *>(q + j.group * D);
#pragma unroll 1
    for (int e = threadIdx.x; e < (j.group + 2) * (D / 2); e += THREADS) {
        const int head = e / (D / 2), p = e - head * (D / 2);
        const bool turns = head <= j.group && p < j.half;
        const int ia = turns && !j.pairs ? p : 2 * p, ib = turns && !j.pairs ? p + j.half : ia + 1;
        const float *from = qkv + (head < j.group    ? (head_kv * j.group + head) * D
                                   : head == j.group ? j.n_q + head_kv * D
                                                     : j.n_q + j.n_kv + head_kv * D);
        float a = from[ia], b = from[ib];
        if (turns) {
            const float cosine = turn[p], sine = turn[j.half + p], a0 = a;
            a = a0 * cosine - b * sine;
            b = a0 * sine + b * cosine;
        }
        if (head < j.group) {
            q[head * D + ia] = a, q[head * D + ib] = b;
            continue;
        }
        const __half ha = __float2half_rn(a), hb = __float2half_rn(b);
        __half *const to = newest + (head - j.group) * D;
        to[ia] = ha, to[ib] = hb;
        if (!row) continue;
        __half *const out = row + (head - j.group) * MOA_PAGE_TOK * D;
        out[ia] = ha, out[ib] = hb;
    }
}
/* The newest rows into the unit that was fetched before they were made. */
template <int D>
__device__ static void put_newest(const cluster_job &j, const cluster_view &s, uint8_t *unit, int row) {
    typedef unit_layout<D> t;
    constexpr int PIECES = D / 8;
    const uint4 *newest = reinterpret_cast<const uint4 *>(s.at<float>(j.at.own) + j.group * D);
    const int lane = threadIdx.x % 32;
    if (lane < 2 * PIECES)
        *reinterpret_cast<uint4 *>(unit + lane / PIECES * t::SIDE + row / 4 * t::QUARTER + row % 4 * t::ROW +
                                   lane % PIECES * 16) = newest[lane];
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::
                     : "memory"); /* the place is next written by a bulk copy */
#endif
    __syncwarp();
}

template <int D, bool STATS>
__device__ static void attend(const cluster_job &j, const cluster_view &s, cluster_way &w, const mma_job &m,
                              const cluster_heads &h, const cluster_share &k, int split,
                              warp_state<D, STATS> &u) {
    typedef unit_layout<D> t;
    const int warp = threadIdx.x / 32, n = local_units(k, split), pos = h.s.pos;
    queries<D> q;
    u.clear();
    if (warp < n) load_queries<D>(m, h.s, q);
#pragma unroll 1
    for (int first = 0; first < n; first += KEY_UNITS) {
        const unsigned i = w.reader.take(s);
        const cluster_note note = s.bars->note[i];
#pragma unroll 1
        for (int at = first + (warp + WARPS - first % WARPS) % WARPS; at < min(first + KEY_UNITS, n);
             at += WARPS) {
            const int v = split + at * k.n_block, unit = unit_of(k, pos, v);
            uint8_t *const place = s.base + j.at.ring + note.at + (at - first) * t::UNIT;
            if (!(note.mask >> 4 * (at - first) & 1)) continue;
            if (v == k.n_seen - 1) put_newest<D>(j, s, place, pos % UNIT_TOK);
            attend_unit_at<D, STATS>(m, u, q, h.s, unit, shared_at(place), shared_at(place) + t::SIDE,
                                     h.measure);
        }
        w.reader.leave(s, i);
    }
}

/* where a warp leaves its parts: states (WARPS, MAX_GROUP, STATE), then o (WARPS, group, D), 4 floats further a warp */
__device__ static inline float *part_state(const cluster_job &j, const cluster_view &s, int warp, int head) {
    return s.at<float>(j.at.parts) + (warp * MAX_GROUP + head) * STATE;
}
template <int D>
__device__ static inline float *part_of(const cluster_job &j, const cluster_view &s, int warp) {
    return s.at<float>(j.at.parts) + WARPS * MAX_GROUP * STATE + warp * (j.group * D + 4);
}
template <int D, bool STATS>
__device__ static void leave_part(const cluster_job &j, const cluster_view &s,
                                  const warp_state<D, STATS> &u) {
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
                part_state(j, s, warp, head)[k] = x[k];
        if (head >= j.group) continue;
#pragma unroll
        for (int i = 0; i < unit_layout<D>::STEPS; i++)
            *reinterpret_cast<float2 *>(o + head * D + element_of<D>(i, g)) =
                make_float2(u.o[i][h], u.o[i][2 + h]);
    }
}

/* the parts of n_warp warps become the block's, in all blocks; a quad a column of 4 */
template <int D, bool STATS>
__device__ static void send_part(const cluster_job &j, const cluster_view &s, const cluster_peers &peers,
                                 int n_warp, int slot) {
    const int n = j.group * (D / 4);
    uint64_t *const bar = &s.bars->input[INPUT_O];
#pragma unroll 1
    for (int c = threadIdx.x / 4; c < n; c += THREADS / 4) {
        const int h = c / (D / 4);
        float top = -INFINITY;
        float4 o = {};
#pragma unroll 1
        for (int w = 0; w < n_warp; w++)
            top = fmaxf(top, part_state(j, s, w, h)[0]);
#pragma unroll 1
        for (int w = 0; w < n_warp; w++) {
            const float f = factor_of(part_state(j, s, w, h)[0], top);
            const float4 x = *reinterpret_cast<const float4 *>(part_of<D>(j, s, w) + 4 * c);
            o.x += f * x.x, o.y += f * x.y, o.z += f * x.z, o.w += f * x.w;
        }
        peers.send(s.at<float4>(j.at.o_part) + slot * n + c, o, bar);
    }
    const int h = (int)threadIdx.x / 4; /* a quad a head */
    if (h >= j.group) return;
    float x[6] = {-INFINITY, 0, 0, 0, 0, 0};
#pragma unroll 1
    for (int w = 0; w < n_warp; w++)
        x[0] = fmaxf(x[0], part_state(j, s, w, h)[0]);
#pragma unroll 1
    for (int w = 0; w < n_warp; w++)
        if (part_state(j, s, w, h)[0] != -INFINITY) add_state<STATS>(x, part_state(j, s, w, h), x[0]);
    float *const to = s.at<float>(j.at.o_state) + (slot * MAX_GROUP + h) * STATE;
    peers.send(to, make_float4(x[0], x[1], x[2], x[3]), bar);
    peers.send(to + 4, make_float4(x[4], x[5], 0, 0), bar);
}

struct cluster_token {
    int pos, seq;
};
template <int D, bool STATS>
__device__ static void phase_attention(const cluster_job &j, const cluster_view &s, cluster_way &w, int layer,
                                       const cluster_token &token) {
    const int head_kv = (int)s.rank / j.n_split, split = (int)s.rank % j.n_split;
    const bool head = head_kv < j.n_head_kv;
    const cluster_share k = s.shares[layer * j.n_head_kv + min(head_kv, j.n_head_kv - 1)];
    const bool active = head && split < k.n_block;
    cluster_heads h;
    __half *row = nullptr;
    if (active) {
        heads_of<STATS>(j, s, layer, head_kv, token.pos, h);
        if (split == 0) row = newest_row(j, layer, head_kv, token.seq, token.pos);
    }
    bar_wait_cluster(&s.bars->input[INPUT_QKV], layer & 1);
    if (threadIdx.x == 0) bar_expect(&s.bars->input[INPUT_QKV], (unsigned)(j.n_q + 2 * j.n_kv) * 4);
    if (!active) return;
    turn_heads<D>(j, s, head_kv, row);
    meet();
    mma_job m = step_attention(j, layer);
    m.q = s.at<float>(j.at.own) - (int64_t)h.s.head * D;
    {
        warp_state<D, STATS> u;
        attend<D, STATS>(j, s, w, m, h, k, split, u);
        leave_part<D, STATS>(j, s, u);
    }
    meet();
    send_part<D, STATS>(j, s, w.peers, max(1, min(WARPS, local_units(k, split))), (int)s.rank);
}

/* what a layer's blocks send of attention */
template <int D>
__device__ static inline unsigned attention_bytes(const cluster_job &j, const cluster_view &s, int layer) {
    int n = 0;
#pragma unroll 1
    for (int k = 0; k < j.n_head_kv; k++)
        n += s.shares[layer * j.n_head_kv + k].n_block;
    return (unsigned)(n * j.group * (D + STATE) * 4);
}
/* by the head's first block, where all states are */
__device__ static inline void write_stats(const cluster_job &j, const cluster_view &s, int layer, int pos) {
    const int head_kv = (int)s.rank / j.n_split, h = (int)threadIdx.x;
    if ((int)s.rank % j.n_split || head_kv >= j.n_head_kv || h >= j.group) return;
    const int n_block = s.shares[layer * j.n_head_kv + head_kv].n_block;
    const float *state = s.at<float>(j.at.o_state) + ((int)s.rank * MAX_GROUP + h) * STATE;
    float x[6] = {-INFINITY, 0, 0, 0, 0, 0};
#pragma unroll 1
    for (int b = 0; b < n_block; b++)
        x[0] = fmaxf(x[0], state[b * MAX_GROUP * STATE]);
#pragma unroll 1
    for (int b = 0; b < n_block; b++)
        if (state[b * MAX_GROUP * STATE] != -INFINITY)
            add_state<true>(x, state + b * MAX_GROUP * STATE, x[0]);
    segment g = {};
    g.head = head_kv * j.group, g.n_head = j.group, g.pos = pos;
    write_state(step_attention(j, layer), g, h, x);
}

/* --- what the products read ------------------------------------------------------------------------------------------------ */

/* waits for a phase's input, and says what the barrier is to count next */
__device__ static inline void await(const cluster_view &s, int input, unsigned parity, unsigned next_bytes) {
    bar_wait_cluster(&s.bars->input[input], parity);
    if (threadIdx.x == 0) bar_expect(&s.bars->input[input], next_bytes);
}
template <int D, bool STATS>
__device__ static inline void fix_input(const cluster_job &j, const cluster_view &s, cluster_way &w,
                                        int layer, int phase, int pos) {
    const bool normed = is_normed(phase);
    unsigned chunk = 0;
    const float *vectors = nullptr; /* norm, biases */
    if (normed) {
        chunk = w.reader.take(s);
        vectors = reinterpret_cast<const float *>(s.base + j.at.ring + s.bars->note[chunk].at);
    }
    const int input = phase == PHASE_O ? INPUT_O : phase == PHASE_DOWN ? INPUT_GATE : INPUT_X;
    if (phase != PHASE_QKV || layer > 0) {
        const unsigned next = phase == PHASE_DOWN     ? (unsigned)j.d_ff * 4
                              : phase != PHASE_O      ? (unsigned)j.d_model * 4
                              : layer + 1 < j.n_layer ? attention_bytes<D>(j, s, layer + 1)
                                                      : 16u;
        await(s, input, normed ? phase == PHASE_QKV : layer & 1, next);
    }
    fix_vector<D>(j, s,
                  fixed_of(j, s,
                           normed             ? j.d_model
                           : phase == PHASE_O ? j.n_q
                                              : j.d_ff),
                  layer, phase == PHASE_O ? nullptr : s.at<float4>(normed ? j.at.x : j.at.gate),
                  reinterpret_cast<const float4 *>(vectors), w.sq);
    if (STATS && phase == PHASE_O) write_stats(j, s, layer, pos);
    if (phase == PHASE_QKV)
#pragma unroll 1
        for (int i = threadIdx.x; i < (j.n_q + 2 * j.n_kv) / j.blocks; i += THREADS)
            s.at<float>(j.at.bias)[i] = vectors[j.d_model + i];
    if (normed) w.reader.leave(s, chunk);
}

/* --- the kernel ------------------------------------------------------------------------------------------------------------ */

__device__ static inline void copy_words(void *to, const void *from, int bytes) {
#pragma unroll 1
    for (int i = threadIdx.x; i < bytes / 4; i += (int)blockDim.x)
        static_cast<uint32_t *>(to)[i] = static_cast<const uint32_t *>(from)[i];
}
/* what needs neither position nor x */
__device__ static void prepare(const cluster_job &j, const cluster_view &s) {
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int i = 0; i < NOTES; i++) {
            bar_init(&s.bars->full[i], 1);
            bar_init(&s.bars->empty[i], WARPS);
        }
#pragma unroll 1
        for (int i = 0; i < N_INPUT; i++)
            bar_init(&s.bars->input[i], 1);
#if __CUDA_ARCH__ >= 900
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    }
    copy_words(s.base + j.at.layers, j.layer, j.n_layer * (int)sizeof(cluster_layer));
    copy_words(s.base + j.at.forms, j.form, j.n_form * (int)sizeof(cluster_form));
    __syncthreads();
    cluster_arrive();
}
__device__ static inline double turn_rate(const cluster_job &j, int i) {
    const double rate = j.rope_scale * exp2(-(double)i / j.half * j.log2_theta);
    return j.factors ? rate / (double)j.factors[i] : rate;
}
__device__ static void prepare_token(const cluster_job &j, const cluster_view &s, double rate, int pos) {
    float *const turn = s.at<float>(j.at.turn);
    if ((int)threadIdx.x < j.half) {
        const double angle = (double)pos * rate, turns = rint(angle * 0.15915494309189535);
        const float rest = (float)fma(-turns, 6.283185307179586, angle);
        sincosf(rest, &turn[j.half + threadIdx.x], &turn[threadIdx.x]);
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < j.n_layer * j.n_head_kv; i += THREADS) {
        int widest = 0;
#pragma unroll 1
        for (int h = 0; h < j.group; h++)
            widest = max(widest, j.span[s.row * j.span_stride + (int64_t)i * j.group + h]);
        s.at<cluster_share>(j.at.share)[i] = share_of(pos, widest, j.n_split);
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < j.d_model / 4; i += THREADS)
        s.at<float4>(j.at.x)[i] = reinterpret_cast<const float4 *>(j.x + (int64_t)s.row * j.d_model)[i];
}

/* All kinds of chunks have one place each in the code: what a phase runs through must stay in the instruction cache. */
template <int D> __device__ static void feed(const cluster_job &j, const cluster_view &s) {
    cluster_feeder<D> f(j, s);
#pragma unroll 1
    for (int i = 0; i < j.n_layer * N_PHASE; i++) {
        const int layer = i / N_PHASE, phase = i - layer * N_PHASE, matrix = matrix_of(phase),
                  n = matrices_of(phase);
        if (phase == PHASE_ATTN) {
            if (layer == 0) {
                moa_launch_wait();
                f.pos = j.pos[s.row], f.seq = j.seq ? j.seq[s.row] : 0;
                __syncthreads(); /* shares */
                f.start_keys();
            }
            f.keys(layer);
            continue;
        }
        if (is_normed(phase)) f.vectors(layer, phase == PHASE_GATE_UP);
        int m = 0, chunk = 0, left = 0;
#pragma unroll 1
        for (;;) {
            const int n_chunk = s.form(layer, matrix + m).n_chunk;
            if (chunk < n_chunk) f.rows(layer, matrix + m, chunk);
            left += chunk + 1 < n_chunk;
            if (++m < n) continue;
            if (left == 0) break;
            m = left = 0, chunk++;
        }
    }
}

template <int D, bool STATS> __device__ static void compute(const cluster_job &j, const cluster_view &s) {
    __shared__ float sq[WARPS];
    cluster_way w = {};
    w.sq = sq;
    const double rate = (int)threadIdx.x < j.half ? turn_rate(j, threadIdx.x) : 0.0;
    w.peers.find(j, s);
    moa_launch_wait();
    const cluster_token token = {j.pos[s.row], j.seq ? j.seq[s.row] : 0};
    prepare_token(j, s, rate, token.pos);
    __syncthreads();
    if (threadIdx.x == 0) {
        bar_expect(&s.bars->input[INPUT_QKV], (unsigned)(j.n_q + 2 * j.n_kv) * 4);
        bar_expect(&s.bars->input[INPUT_O], attention_bytes<D>(j, s, 0));
        bar_expect(&s.bars->input[INPUT_X], (unsigned)j.d_model * 4);
        bar_expect(&s.bars->input[INPUT_GATE], (unsigned)j.d_ff * 4);
    }
    __syncwarp();
    cluster_wait(); /* all blocks have their barriers */
#pragma unroll 1
    for (int layer = 0; layer < j.n_layer; layer++)
#pragma unroll 1
        for (int phase = 0; phase < N_PHASE; phase++) {
            if (phase == PHASE_ATTN) {
                phase_attention<D, STATS>(j, s, w, layer, token);
                continue;
            }
            fix_input<D, STATS>(j, s, w, layer, phase, token.pos);
            meet();
            products(j, s, w, layer, phase);
        }
}

template <int D, bool STATS>
__global__ static void __launch_bounds__(THREADS + 32, 1) cluster_v1(const __grid_constant__ cluster_job j) {
    extern __shared__ __align__(128) uint8_t cluster_dynamic[];
    const cluster_view s = view_of(j, cluster_dynamic);
    moa_launch_go();
    prepare(j, s);
    if (threadIdx.x >= THREADS) {
        feed<D>(j, s);
        cluster_wait();
    } else {
        compute<D, STATS>(j, s);
    }
    __syncwarp();
    cluster_arrive(); /* nobody leaves while others may still send to it */
    cluster_wait();
}

/* --- launching --------------------------------------------------------------------------------------------------------------- */

static constexpr int MAX_PART = 8, MOST_PARTS = 8192; /* of a tile; floats of attention's parts */

static int type_of(const moa_dev_weight *w) {
    if (!w->packed) return N_TYPE;
    switch ((int)w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: return TYPE_##stem;
        MOA_PACKED_MAP(X)
#undef X
    default: return N_TYPE;
    }
}
static bool matrix_fits(const moa_dev_weight *w, int n_out, int n_in) {
    return type_of(w) < N_TYPE && w->n_in == n_in && w->n_out == n_out && n_out % 64 == 0 && n_in % 64 == 0 &&
           n_out < 65536 && n_in < 65536;
}

static bool layer_fits(const moa_layer_weights *y, const step_sizes &z) {
    return matrix_fits(y->wq, z.n_q, z.d_model) && matrix_fits(y->wk, z.n_kv, z.d_model) &&
           matrix_fits(y->wv, z.n_kv, z.d_model) && matrix_fits(y->wo, z.d_model, z.n_q) &&
           matrix_fits(y->gate, z.d_ff, z.d_model) && matrix_fits(y->up, z.d_ff, z.d_model) &&
           matrix_fits(y->down, z.d_model, z.d_ff) && type_of(y->gate) == type_of(y->up) &&
           vector_fits(y->attn_norm, z.d_model) && vector_fits(y->ffn_norm, z.d_model) &&
           bias_fits(y->bq, z.n_q) && bias_fits(y->bk, z.n_kv) && bias_fits(y->bv, z.n_kv);
}
static bool shape_fits(const moa_cuda *c, const moa_args_step_decode *a, const step_sizes &z) {
    const int d = a->kv.d_head, rope = a->rope.rope_dim < 2 ? 0 : a->rope.rope_dim;
    if (d != 64 && d != 80 && d != 96 && d != 128) return false;
    if (c->matmul != 2 || a->kv.type != MOA_KV_F16 || a->kv.max_pages <= 0) return false;
    if (a->n_layer < 1 || a->n_layer > MAX_LAYER || rope % 2 || rope > d || rope / 2 > THREADS) return false;
    if (a->kv.n_head_kv < 1 || a->kv.n_head_kv > MOST_BLOCKS || a->n_head % a->kv.n_head_kv ||
        a->n_head / a->kv.n_head_kv > MAX_GROUP || (uintptr_t)a->x % 16)
        return false;
    for (int l = 0; l < a->n_layer; l++)
        if (!layer_fits(&a->layers[l], z)) return false;
    return true;
}

struct cluster_format {
    int low, unit8[3]; /* bytes of low a unit; eighths of a byte a unit */
};
#define X(stem)                                                                                              \
    {16 * packed_##stem::LOW, {packed_##stem::HIGH * 8, packed_##stem::SCALE * 8, packed_##stem::HEAD}},
static constexpr cluster_format formats[N_TYPE] = {MOA_PACKED_MAP(X)};
#undef X

/* bytes of a chunk of that many rows; also where its streams begin */
static uint32_t chunk_bytes(cluster_form *f, int rows) {
    uint32_t at = f->stride * (uint32_t)rows;
    for (int k = 0; k < 3; k++) {
        f->at[k] = at;
        if (f->unit8[k]) at += (((uint32_t)rows * f->n_unit * f->unit8[k] / 8 + 15) & ~15u) + 16;
    }
    return (at + 127) & ~127u;
}
/* A row's 16 bytes of four units must not lie in the banks of the next row's: strides are odd multiples of 64. */
static cluster_form form_of(int type, int n_out, int n_in, int blocks, uint32_t most) {
    cluster_form f = {};
    const uint64_t n = (uint64_t)n_out * (uint64_t)(n_in / 32);
    uint64_t begin = (n * (uint64_t)formats[type].low + 255) & ~(uint64_t)255;
    f.type = (uint16_t)type;
    f.n_unit = (uint16_t)(n_in / 32), f.rows = (uint16_t)(n_out / blocks);
    f.n_group = (uint16_t)moa_ceil_div((int)f.n_unit, GROUP_UNITS);
    f.low_bytes = (uint32_t)(f.n_unit * formats[type].low);
    f.stride = f.low_bytes % 128 == 64 ? f.low_bytes : (f.low_bytes + 63) / 128 * 128 + 64;
    for (int k = 0; k < 3; k++) {
        f.unit8[k] = (uint16_t)formats[type].unit8[k];
        f.begin16[k] = (uint32_t)(begin / 16);
        begin += (n * f.unit8[k] / 8 + 255) & ~(uint64_t)255;
    }
    int rows = 128; /* whole tiles where there is more than one chunk, evenly */
    while (rows > TILE && chunk_bytes(&f, rows) > most)
        rows -= TILE;
    const int n_chunk = moa_ceil_div((int)f.rows, rows), each = moa_ceil_div((int)f.rows, n_chunk);
    f.chunk_rows = (uint16_t)(n_chunk == 1 ? f.rows : moa_ceil_div(each, (int)TILE) * TILE);
    f.n_chunk = (uint16_t)moa_ceil_div((int)f.rows, (int)f.chunk_rows);
    f.bytes = chunk_bytes(&f, f.chunk_rows);
    return f;
}
static int tiles_of(const cluster_form *f) {
    return moa_ceil_div((int)f->chunk_rows, (int)TILE);
}
/* Groups a piece: what is over soonest with so many tiles in a round; a piece costs as much as half a group beside. */
static void cut_tiles(cluster_form *f, int n_tile) {
    int best = INT32_MAX;
    for (int step = 1; step <= f->n_group; step++) {
        const int n_part = moa_ceil_div((int)f->n_group, step),
                  cost = moa_ceil_div(n_tile * n_part, (int)WARPS) * (2 * step + 1);
        if (n_part > MAX_PART || cost >= best) continue;
        best = cost;
        f->step = (uint16_t)step, f->n_part = (uint16_t)n_part;
        f->by_part = (uint16_t)(n_part == 1 ? 0 : 65536 / n_part + 1);
    }
}
/* number of a form in the table, or MAX_FORM: there are too many */
static int form_in(cluster_job *j, const cluster_form &f) {
    int i = 0;
    while (i < j->n_form && memcmp(&j->form[i], &f, sizeof f) != 0)
        i++;
    if (i == j->n_form && i < MAX_FORM) j->form[j->n_form++] = f;
    return i;
}
/* the forms of all matrices with chunks of at most that many bytes */
static bool fill_layers(const moa_args_step_decode *a, cluster_job *j, uint32_t most) {
    bool room = true;
    j->n_form = 0;
    for (int l = 0; l < a->n_layer; l++) {
        const moa_layer_weights *y = &a->layers[l];
        const moa_dev_weight *const w[N_MATRIX] = {y->wq, y->wk, y->wv, y->wo, y->gate, y->up, y->down};
        cluster_layer *to = &j->layer[l];
        static const uint8_t first[N_MATRIX] = {0, 0, 0, 3, 4, 4, 6},
                             behind[N_MATRIX] = {3, 3, 3, 4, 6, 6, 7};
        cluster_form f[N_MATRIX]; /* those of a phase together */
        for (int m = 0; m < N_MATRIX; m++)
            f[m] = form_of(type_of(w[m]), w[m]->n_out, w[m]->n_in, j->blocks, most);
        for (int m = 0; m < N_MATRIX; m++) {
            int n_tile = 0;
            for (int k = first[m]; k < behind[m]; k++)
                n_tile += tiles_of(&f[k]);
            cut_tiles(&f[m], n_tile);
            const int form = form_in(j, f[m]);
            to->w[m] = static_cast<const uint8_t *>(w[m]->data);
            to->form[m] = (uint8_t)form;
            room = room && form < MAX_FORM && j->form[form].bytes <= most;
        }
        to->bias[0] = floats_of(y->bq), to->bias[1] = floats_of(y->bk), to->bias[2] = floats_of(y->bv);
        to->norm[0] = floats_of(y->attn_norm), to->norm[1] = floats_of(y->ffn_norm);
    }
    return room;
}

static int place(int *end, size_t bytes) {
    const int at = *end;
    *end += (int)((bytes + 127) & ~(size_t)127);
    return at;
}
static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}
/* where things lie in shared memory; the ring has what is left of `most` */
static bool lay_out(cluster_job *j, int d, size_t most) {
    const size_t g = (size_t)j->group * (size_t)d, slots = (size_t)(j->n_head_kv * j->n_split);
    cluster_places *p = &j->at;
    size_t widest = (size_t)j->d_model, red = 0;
    int end = 0;
    for (int i = 0; i < j->n_form; i++)
        red = larger(red, (size_t)(tiles_of(&j->form[i]) * j->form[i].n_part) * 64);
    widest = larger(larger(widest, (size_t)j->n_q), (size_t)j->d_ff);
    p->red_floats = (int)red;
    p->x = place(&end, (size_t)j->d_model * 4);
    p->qkv = place(&end, (size_t)(j->n_q + 2 * j->n_kv) * 4);
    p->gate = place(&end, (size_t)j->d_ff * 4);
    p->o_part = place(&end, slots * g * 4);
    p->o_state = place(&end, slots * MAX_GROUP * STATE * 4);
    p->fixed = place(&end, widest / 32 * 76);
    p->parts = place(&end, 4 * larger(6 * red, (size_t)WARPS * (MAX_GROUP * STATE + g + 4)));
    p->bias = place(&end, (size_t)((j->n_q + 2 * j->n_kv) / j->blocks) * 4);
    p->own = place(&end, g * 4 + (size_t)d * 4);
    p->turn = place(&end, (size_t)j->half * 8);
    p->share = place(&end, (size_t)(j->n_layer * j->n_head_kv) * sizeof(cluster_share));
    p->layers = place(&end, (size_t)j->n_layer * sizeof(cluster_layer));
    p->forms = place(&end, MAX_FORM * sizeof(cluster_form));
    p->bars = place(&end, sizeof(cluster_bars));
    p->ring = end;
    if ((size_t)end + (16u << 10) > most) return false;
    p->ring_bytes = (int)((most - (size_t)end) & ~(size_t)127);
    p->bytes = end + p->ring_bytes;
    return true;
}
/* Chunks of a quarter of the ring at most, or of half where a tile needs that; vectors and units must fit. */
static bool fit_ring(const moa_args_step_decode *a, cluster_job *j, size_t most) {
    const int d = a->kv.d_head, unit = 2 * 4 * (4 * d * 2 + 32);
    bool fits = false;
    for (uint32_t share = 4; share >= 2 && !fits; share /= 2)
        for (uint32_t chunk = 64u << 10; chunk >= 4u << 10 && !fits;
             chunk -= 2u << 10) /* the larger, the fewer rounds a phase */
            fits = fill_layers(a, j, chunk) && lay_out(j, d, most) &&
                   chunk * share <= (uint32_t)j->at.ring_bytes;
    return fits && KEY_UNITS * unit <= j->at.ring_bytes &&
           j->d_model * 4 + (j->n_q + 2 * j->n_kv) / j->blocks * 4 + 128 <= j->at.ring_bytes;
}

static void fill_job(const moa_args_step_decode *a, const step_sizes &z, cluster_job *j) {
    j->x = a->x;
    j->n_layer = a->n_layer;
    j->d_model = z.d_model, j->n_q = z.n_q, j->n_kv = z.n_kv, j->d_ff = z.d_ff;
    j->eps = a->eps, j->scale = a->scale;
    j->factors = floats_of(a->rope.freq_factors);
    j->half = a->rope.rope_dim < 2 ? 0 : a->rope.rope_dim / 2;
    j->pairs = a->rope.kind == MOA_ROPE_PAIRS;
    j->log2_theta = log2((double)a->rope.theta), j->rope_scale = (double)a->rope.scale;
    j->kv = moa_kv_of<__half>(&a->kv);
    j->table_layer = a->table_layer_stride;
    j->pos = a->rope.pos, j->seq = a->seq, j->span = a->span, j->span_stride = a->span_seq_stride;
    j->n_head = a->n_head, j->n_head_kv = a->kv.n_head_kv, j->group = a->n_head / a->kv.n_head_kv;
    j->n_split = j->blocks / j->n_head_kv;
    while (j->n_split > 1 && j->n_split * j->n_head_kv * j->group * a->kv.d_head > MOST_PARTS)
        j->n_split--;
    j->probe = a->probe;
}

/* what the histograms need of each unit */
static moa_status find_space(moa_cuda *c, cluster_job *j, moa_err *err) {
    const size_t heads = (size_t)j->n_layer * (size_t)j->n_head,
                 mass = heads * (size_t)j->kv.max_pages * UNITS_PAGE * sizeof(float4);
    char *space = nullptr;
    if (!j->probe.hist) return MOA_OK;
    MOA_RETURN(moa_cuda_scratch(c, mass + heads * sizeof(float), reinterpret_cast<void **>(&space), err));
    j->mass = reinterpret_cast<float4 *>(space);
    j->lse = reinterpret_cast<float *>(space + mass);
    return MOA_OK;
}
/* How it is launched: with so many clusters at once. *most: 0 where not even one has a place. */
template <int D, bool STATS>
static moa_status plan(moa_cuda *c, const cluster_job *j, int n_row, moa_launch *how, int *most,
                       moa_err *err) {
    cudaLaunchAttribute attributes[2];
    *how = {dim3((unsigned)(n_row * j->blocks)),
            dim3(THREADS + 32),
            (size_t)j->at.bytes,
            j->blocks,
            false,
            c->stream};
    *most = 0;
    MOA_CU(c, moa_allow_shared(cluster_v1<D, STATS>, how->shared_bytes));
    MOA_CU(c, cudaFuncSetAttribute(cluster_v1<D, STATS>, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    const cudaLaunchConfig_t config = moa_launch_config(*how, attributes);
    if (cudaOccupancyMaxActiveClusters(most, cluster_v1<D, STATS>, &config) != cudaSuccess) {
        (void)cudaGetLastError();
        *most = 0;
    }
    return MOA_OK;
}
template <int D, bool STATS>
static moa_status launch(moa_cuda *c, const cluster_job *j, int n_row, bool all, bool *taken, moa_err *err) {
    moa_launch how;
    int most = 0;
    MOA_RETURN((plan<D, STATS>(c, j, n_row, &how, &most, err)));
    if (most < (all ? 1 : n_row)) return MOA_OK;
    MOA_CU(c, moa_launch_may_be_early(c->device, &how.early));
    MOA_CU(c, moa_launch_kernel(how, cluster_v1<D, STATS>, *j));
    *taken = true;
    return step_histograms(c, *j, err);
}
/* all: though not all rows have a place at once */
template <bool STATS>
static moa_status launch_by_size(moa_cuda *c, const cluster_job *j, int n_row, bool all, bool *taken,
                                 moa_err *err) {
    switch (j->kv.d_head) {
    case 64: return launch<64, STATS>(c, j, n_row, all, taken, err);
    case 80: return launch<80, STATS>(c, j, n_row, all, taken, err);
    case 96: return launch<96, STATS>(c, j, n_row, all, taken, err);
    case 128: return launch<128, STATS>(c, j, n_row, all, taken, err);
    default: return MOA_OK;
    }
}

static int rows_of_step(const moa_args_step_decode *a) {
    return a->n_tok > 1 ? a->n_tok : 1;
}
/* the layers by clusters of that many blocks */
static moa_status layers_by(moa_cuda *c, const moa_args_step_decode *a, int blocks, bool all, moa_err *err) {
    int most = 0;
    const size_t still = 256; /* static shared memory */
    MOA_CU(c, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device));
    if (a->kv.n_head_kv > blocks) return MOA_OK;
    cluster_job *j = new (std::nothrow) cluster_job();
    if (!j) return moa_fail(err, MOA_E_MEMORY, "no host memory for the description of a step");
    j->blocks = blocks;
    fill_job(a, sizes_of(a), j);
    moa_status s = MOA_OK;
    if (fit_ring(a, j, (size_t)most - still)) {
        s = find_space(c, j, err);
        if (s == MOA_OK)
            s = a->probe.stat || a->probe.hist
                    ? launch_by_size<true>(c, j, rows_of_step(a), all, a->taken, err)
                    : launch_by_size<false>(c, j, rows_of_step(a), all, a->taken, err);
    }
    delete j;
    return s;
}

/* the output matrix behind its norm, by all multiprocessors; gate is space */
static moa_status head(moa_backend *b, const moa_args_step_decode *a, moa_err *err) {
    bool taken = false;
    const moa_args_fused_product product = {
        {a->x, a->out_norm, a->eps, rows_of_step(a)}, a->output, a->logits, false, &taken};
    if (!a->logits) return MOA_OK;
    MOA_RETURN(moa_cuda_fused_product(b, &product, err));
    if (taken) return MOA_OK;
    const moa_args_rmsnorm norm = {a->x, a->out_norm, a->gate, rows_of_step(a), a->output->n_in, a->eps};
    const moa_args_matmul matmul = {a->gate, a->output, nullptr, a->logits, rows_of_step(a), false};
    MOA_RETURN(moa_cuda_rmsnorm(b, &norm, err));
    return moa_cuda_matmul(b, &matmul, err);
}

static uint64_t layer_bytes(const moa_layer_weights *y) {
    const moa_dev_weight *const w[N_MATRIX] = {y->wq, y->wk, y->wv, y->wo, y->gate, y->up, y->down};
    uint64_t sum = 0;
    for (int m = 0; m < N_MATRIX; m++)
        sum += (uint64_t)w[m]->n_out * w[m]->row_bytes;
    return sum;
}

static bool forced(void) {
    const char *word = getenv("MOASCOPE_STEP");
    return word && strcmp(word, "cluster") == 0;
}
bool moa_cuda_cluster_wanted(const moa_args_step_decode *a) {
    const char *word = getenv("MOASCOPE_STEP");
    if (word && *word) return forced();
    return a->n_tok > 1 && a->n_layer > 0 && layer_bytes(&a->layers[0]) <= CLUSTER_MOST_BYTES;
}

/* Clusters of eight read old keys at half the rate: below 12 rows the single operations are faster from about 2800 tokens on. */
static bool eight_pay(const moa_args_step_decode *a) {
    return a->n_tok >= 12 || a->kv.max_pages <= 40;
}

moa_status moa_cuda_step_cluster(moa_backend *b, const moa_args_step_decode *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    int major = 0;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    *a->taken = false;
    MOA_CU(c, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, c->device));
    if (major < 9 || a->n_layer < 1 || (a->n_tok > 1 && (a->probe.stat || a->probe.hist))) return MOA_OK;
    const step_sizes z = sizes_of(a);
    if (!shape_fits(c, a, z) || !vector_fits(a->out_norm, z.d_model) || a->output->n_in != z.d_model ||
        z.d_ff < z.d_model)
        return MOA_OK;
    MOA_RETURN(layers_by(c, a, MOST_BLOCKS, false, err));
    if (!*a->taken && rows_of_step(a) > 1 && (forced() || eight_pay(a)))
        MOA_RETURN(layers_by(c, a, MOST_BLOCKS / 2, false, err));
    if (!*a->taken && forced()) MOA_RETURN(layers_by(c, a, MOST_BLOCKS, true, err));
    return *a->taken ? head(b, a, err) : MOA_OK;
}

moa_status moa_cuda_step_pick(moa_backend *b, const moa_args_step_decode *a, moa_err *err) {
    if (moa_cuda_cluster_wanted(a)) return moa_cuda_step_cluster(b, a, err);
    if (a->n_tok <= 1) return moa_cuda_step_decode(b, a, err);
    *a->taken = false;
    return MOA_OK;
}
