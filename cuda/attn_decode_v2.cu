/* attn_decode_v2.cu -- decode attention over f16 pages on tensor cores, one kernel; attn_decode.cu (v1) explains the idea in plain code.
 *
 *   unit     16 tokens of a page: a quarter of its K and of its V. The line of v1 is counted in units, so stretches of blocks are
 *            equal to 16 tokens at any size, and only units that the widest head of the group sees are on it
 *   block    one a multiprocessor. Its warps take the units of its stretch in turn, each on its own: a ring of units in shared
 *            memory that one asynchronous bulk copy a quarter unit fills (sm_90; 16-byte cp.async before), an mbarrier each, no block-wide
 *            barrier before the end of an item. The next item's first units are under way while this one is merged
 *   probe    statistics from the same softmax state; for the histogram each unit leaves what it weighs in the two bins it may meet, and
 *            a small second kernel sums that: K is not read again
 *   item     the block that comes last (a ticket) merges the parts of all. Order of summing is fixed: the same bits every time
 *
 * What a warp does with a unit stands in attn_decode_mma.cuh. Heads of 64, 80, 96, 128, 256 elements, f16 pages; the rest is v1's. */
#include "cuda/attn_decode_mma.cuh"
#include "cuda/launch.cuh"

static constexpr int MAX_BLOCK = 256;
static constexpr int MIN_UNITS = 4; /* a block gets no fewer units, but for the last: parts cost merging */

/* warps of a block, and what they need to merge */
template <int D> struct layout : unit_layout<D> {
    static constexpr int WARPS = D > 128 ? 4 : 8, THREADS = WARPS * 32;
    /* floats for merging: slots of half of the warps, or the weights of an item's parts and what groups of threads sum */
    static constexpr int SLOTS = WARPS / 2 * MAX_GROUP * D, MERGE = MAX_GROUP * MAX_BLOCK + THREADS * 4;
    static constexpr int FLOATS = SLOTS > MERGE ? SLOTS : MERGE;
};

/* --- the line ------------------------------------------------------------------------------------------- */

/* units of the line that a sequence at pos gives to an item of that span: those of the sink, then those from *gap further on */
__device__ static inline int units_of(int pos, int widest, int *n_sink, int *gap) {
    *n_sink = *gap = 0;
    if (pos < 0) return 0;
    const int last = pos / UNIT_TOK;
    *n_sink = min(SINK_UNITS, last + 1);
    const int first = moa_window_first(widest, pos) / UNIT_TOK;
    *gap = first - SINK_UNITS;
    return *n_sink + max(last - first + 1, 0);
}

struct v2_line {
    int64_t total, used; /* units in all; blocks that have work */
    int64_t at, end;     /* this block's stretch */
    int64_t line;        /* units before item n */
    int n;               /* the item in which the stretch begins */
    bool any_idle;       /* some sequence is idle */
};

__device__ static int item_units(const mma_job &j, int n) {
    const int part = n % j.n_part, head_kv = n / j.n_part % j.n_head_kv, seq = n / j.n_part / j.n_head_kv;
    const int head = head_kv * j.group + part * MAX_GROUP,
              n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
    const int pos = j.pos[seq];
    const int32_t *span = j.span + seq * j.span_stride + head;
    int widest = 0, n_sink, gap;
#pragma unroll
    for (int h = 0; h < MAX_GROUP; h++)
        if (h < n_head) widest = max(widest, span[h]);
    return units_of(pos, widest, &n_sink, &gap);
}

/* by the whole block; s: shared */
struct line_shared {
    int64_t sum[8], line;
    int n;
};
template <int THREADS> __device__ static v2_line count_line(const mma_job &j, line_shared *s) {
    const int per = (j.n_item + THREADS - 1) / THREADS, begin = (int)threadIdx.x * per,
              stop = min(begin + per, j.n_item);
    int64_t mine = 0;
    bool idle = false;
    for (int k = begin; k < stop; k++) {
        const int units = item_units(j, k);
        idle |= units == 0;
        mine += units;
    }
    int64_t sum = mine; /* inclusive scan */
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int64_t other = __shfl_up_sync(ALL, sum, d);
        if ((int)threadIdx.x % 32 >= d) sum += other;
    }
    if (threadIdx.x % 32 == 31) s->sum[threadIdx.x / 32] = sum;
    v2_line r;
    r.any_idle = __syncthreads_or(idle);
    r.total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) {
        if (w < (int)threadIdx.x / 32) sum += s->sum[w];
        r.total += s->sum[w];
    }
    r.used = min((int64_t)gridDim.x, (r.total + MIN_UNITS - 1) / MIN_UNITS);
    r.at = r.end = r.line = 0;
    r.n = 0;
    if ((int64_t)blockIdx.x >= r.used) return r;
    r.at = (int64_t)blockIdx.x * r.total / r.used;
    r.end = (int64_t)(blockIdx.x + 1) * r.total / r.used;
    if (sum - mine <= r.at && r.at < sum) { /* the stretch begins among this thread's items */
        int64_t line = sum - mine;
        for (int k = begin; k < stop; k++) {
            const int units = per == 1 ? (int)mine : item_units(j, k);
            if (line <= r.at && r.at < line + units) s->n = k, s->line = line;
            line += units;
        }
    }
    __syncthreads();
    r.n = s->n;
    r.line = s->line;
    return r;
}

/* the block that unit x of the line belongs to: the smallest w with (w+1) T/W > x */
__device__ static inline int block_of(int64_t x, const v2_line &l) {
    return (int)(((x + 1) * l.used + l.total - 1) / l.total) - 1;
}
/* --- a warp's part of an item --------------------------------------------------------------------------- */

template <int WARPS> __device__ static inline int unit_at(const segment &s, int i) {
    const int k = s.from + i * WARPS;
    return k < s.n_sink ? k : k + s.gap;
}
template <int WARPS> __device__ static int load_entry(const mma_job &j, const segment &s, int batch) {
    const int i = batch * 32 + (int)threadIdx.x % 32;
    if (i >= s.count) return -1;
    const int p = unit_at<WARPS>(s, i) / UNITS_PAGE;
    return p < j.kv.max_pages ? j.kv.table[s.seq * j.kv.seq_stride + (int64_t)s.head_kv * j.kv.max_pages + p]
                              : -1;
}

/* The next piece of the block's stretch: item n or the first later one with units. false: the stretch is done. */
template <int WARPS>
__device__ static bool next_segment(const mma_job &j, const v2_line &l, int64_t at, int n, int64_t line,
                                    segment *s) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (at >= l.end) return false;
    for (;; n++) {
        const int part = n % j.n_part;
        s->n = n;
        s->line = line;
        s->head_kv = n / j.n_part % j.n_head_kv;
        s->seq = n / j.n_part / j.n_head_kv;
        s->head = s->head_kv * j.group + part * MAX_GROUP;
        s->n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
        s->pos = j.pos[s->seq];
        int widest = 0;
        s->narrowest = INT32_MAX;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int h = lane % 4 * 2 + i;
            const bool there = h < s->n_head;
            const int span = there ? j.span[s->seq * j.span_stride + s->head + h] : 0;
            s->window[i] = there ? moa_window(span) : INT32_MAX;
            widest = max(widest, span);
            s->narrowest = min(s->narrowest, s->window[i]);
        }
        widest = __reduce_max_sync(ALL, widest);
        s->narrowest = __reduce_min_sync(ALL, s->narrowest);
        s->units = units_of(s->pos, widest, &s->n_sink, &s->gap);
        if (s->units > 0) break; /* at < end <= total: there is one */
    }
    const int first = (int)(at - line), stop = (int)(min(l.end, line + s->units) - line);
    s->from = first + warp;
    s->count = stop > s->from ? (stop - s->from + WARPS - 1) / WARPS : 0;
    s->page = load_entry<WARPS>(j, *s, 0);
    s->next = load_entry<WARPS>(j, *s, 1);
    return true;
}

/* the ring of a warp */
struct ring {
    unsigned stages, bars; /* shared addresses */
    int at;                /* stage of the oldest unit */
    unsigned phase;
};

/* starts the copies of unit i of the segment; batch: the 32 units that s.page is about; stage: of the ring */
template <int D>
__device__ static void issue(const mma_job &j, const segment &s, int batch, int i, const ring &r, int stage) {
    typedef layout<D> t;
    const int entry = __shfl_sync(ALL, i / 32 == batch ? s.page : s.next, i % 32);
    const int unit = unit_at<t::WARPS>(s, i);
    const __half *rows =
        entry < 0 ? nullptr
                  : j.kv.pool + ((int64_t)entry * (2 * MOA_PAGE_TOK) + unit % UNITS_PAGE * UNIT_TOK) * D;
    fill_stage<D>(r.stages + (unsigned)(stage * t::UNIT), r.bars + (unsigned)stage * 8, rows,
                  min(s.pos - unit * UNIT_TOK + 1, UNIT_TOK));
}
template <int D> __device__ static void issue_first(const mma_job &j, const segment &s, const ring &r) {
    for (int i = 0; i < min(j.n_stage, s.count); i++)
        issue<D>(j, s, 0, i, r, (r.at + i) % j.n_stage);
}

/* --- from warps to the item's result -------------------------------------------------------------------- */

template <int D> struct block_shared {
    alignas(8) uint64_t bar[layout<D>::WARPS][MAX_STAGE];
    float state[layout<D>::WARPS][MAX_GROUP][6]; /* m, l, statistics of every warp */
    float all[MAX_GROUP][6];                     /* of the block; later of the item */
    line_shared line;
    int last;
};

/* Sums the warps' states into s_slot (WARPS / 2, n_head, D) and sh.all; ends with a barrier. */
template <int D, bool STATS>
__device__ static void gather(warp_state<D, STATS> &u, const segment &s, block_shared<D> &sh, float *s_slot) {
    typedef layout<D> t;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float x[6] = {u.m[i], u.l[i], 0, 0, 0, 0};
        if (STATS) x[2] = u.st[i].t, x[3] = u.st[i].sink, x[4] = u.st[i].window, x[5] = u.st[i].distance;
#pragma unroll
        for (int k = 1; k < (STATS ? 6 : 2); k++)
#pragma unroll
            for (int d = 4; d < 32; d *= 2)
                x[k] += __shfl_xor_sync(ALL, x[k], d);
        if (g == 0)
#pragma unroll
            for (int k = 0; k < (STATS ? 6 : 2); k++)
                sh.state[warp][2 * c + i][k] = x[k];
    }
    __syncthreads();
    float to[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int w = 0; w < t::WARPS; w++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            to[i] = fmaxf(to[i], sh.state[w][2 * c + i][0]);
    u.move(to);
    if (warp == 0 && g == 0) { /* a lane two heads */
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float x[6] = {to[i], 0, 0, 0, 0, 0};
            for (int w = 0; w < t::WARPS; w++)
                add_state<STATS>(x, sh.state[w][2 * c + i], to[i]);
#pragma unroll
            for (int k = 0; k < 6; k++)
                sh.all[2 * c + i][k] = x[k];
        }
    }
    /* the upper half of the warps leaves its sums, the lower half adds its own at the same places */
    float *slot = s_slot + warp % (t::WARPS / 2) * s.n_head * D;
#pragma unroll
    for (int round = 1; round >= 0; round--) {
        if (warp / (t::WARPS / 2) == round) {
#pragma unroll
            for (int i = 0; i < t::STEPS; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    if (2 * c + h >= s.n_head) continue;
                    float2 *to2 = reinterpret_cast<float2 *>(slot + (2 * c + h) * D + element_of<D>(i, g));
                    float2 x = make_float2(u.o[i][h], u.o[i][2 + h]);
                    if (round == 0) x.x += to2->x, x.y += to2->y;
                    *to2 = x;
                }
        }
        __syncthreads();
    }
}

/* The parts of item s.n, in slots from `slot` on, become its result. By the whole block; s_merge: layout<D>::MERGE floats. */
template <int D, bool STATS>
__device__ static void merge(const mma_job &j, const segment &s, int64_t slot, int n_part,
                             block_shared<D> &sh, float *s_merge) {
    typedef layout<D> t;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int h = warp; h < s.n_head; h += t::WARPS) { /* a warp a head: the parts' weights */
        const float *state = j.part_state + (slot * j.part_heads + h) * PART_STATE;
        const int64_t step = (int64_t)j.part_heads * PART_STATE;
        float x[6] = {-INFINITY, 0, 0, 0, 0, 0};
        for (int k = lane; k < n_part; k += 32)
            x[0] = fmaxf(x[0], __ldcg(state + k * step));
        x[0] = group_max<32>(x[0]);
        for (int k = lane; k < n_part; k += 32) {
            float y[6];
#pragma unroll
            for (int i = 0; i < (STATS ? 6 : 2); i++)
                y[i] = __ldcg(state + k * step + i);
            s_merge[h * MAX_BLOCK + k] = y[0] == -INFINITY ? 0.0f : exp2_fast(y[0] - x[0]);
            add_state<STATS>(x, y, x[0]);
        }
#pragma unroll
        for (int i = 1; i < (STATS ? 6 : 2); i++)
            x[i] = warp_sum(x[i]);
        if (lane == 0) {
            sh.all[h][1] = x[1];
            write_state(j, s, h, x);
        }
    }
    __syncthreads();
    const int columns = s.n_head * (D / 4), step = j.part_heads * (D / 4); /* of 4 elements */
    const float4 *part = reinterpret_cast<const float4 *>(j.part_o + slot * j.part_heads * D);
    float4 *out = reinterpret_cast<float4 *>(j.o + ((int64_t)s.seq * j.n_head + s.head) * D),
           *sums = reinterpret_cast<float4 *>(s_merge + MAX_GROUP * MAX_BLOCK);
    const int teams = max(t::THREADS / columns, 1); /* threads that share a column */
    for (int base = 0; base < columns; base += t::THREADS) {
        const int e = base + (int)threadIdx.x % (teams > 1 ? columns : t::THREADS),
                  team = teams > 1 ? (int)threadIdx.x / columns : 0;
        float4 sum = make_float4(0, 0, 0, 0);
        if (e < columns && team < teams) {
            const float *weight = s_merge + e / (D / 4) * MAX_BLOCK;
            constexpr int AHEAD = D > 128 || (STATS && D > 96) ? 8 : 16; /* as registers allow */
            for (int k = team; k < n_part; k += AHEAD * teams) {
                float4 x[AHEAD];
#pragma unroll
                for (int a = 0; a < AHEAD; a++)
                    if (k + a * teams < n_part) x[a] = __ldcg(part + (int64_t)(k + a * teams) * step + e);
#pragma unroll
                for (int a = 0; a < AHEAD; a++) {
                    if (k + a * teams >= n_part) break;
                    const float w = weight[k + a * teams];
                    sum.x += w * x[a].x, sum.y += w * x[a].y, sum.z += w * x[a].z, sum.w += w * x[a].w;
                }
            }
        }
        if (teams > 1) {
            sums[threadIdx.x] = sum;
            __syncthreads();
            for (int k = 1; k < teams && team == 0; k++) {
                const float4 x = sums[k * columns + e];
                sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
            }
        }
        if (e >= columns || team > 0) continue;
        const float l = sh.all[e / (D / 4)][1], inv = l > 0.0f ? 1.0f / l : 0.0f;
        out[e] = make_float4(sum.x * inv, sum.y * inv, sum.z * inv, sum.w * inv);
    }
}

/* What gather() left becomes the result, when the item lies in this block alone, or a part; the last part's block merges. By the
 * whole block; ends with a barrier. */
template <int D, bool STATS>
__device__ static void deliver(const mma_job &j, const v2_line &l, const segment &s, block_shared<D> &sh,
                               float *s_slot) {
    typedef layout<D> t;
    const int first = block_of(s.line, l), n_part = block_of(s.line + s.units - 1, l) - first + 1;
    const int columns = s.n_head * (D / 4), h = threadIdx.x;
    const int64_t slot = (int64_t)blockIdx.x + s.n;
    const bool whole = n_part == 1;
    float4 *out = whole ? reinterpret_cast<float4 *>(j.o + ((int64_t)s.seq * j.n_head + s.head) * D)
                        : reinterpret_cast<float4 *>(j.part_o + slot * j.part_heads * D);
    for (int e = threadIdx.x; e < columns; e += t::THREADS) {
        const float total = sh.all[e / (D / 4)][1];
        const float factor = !whole ? 1.0f : total > 0.0f ? 1.0f / total : 0.0f;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < t::WARPS / 2; w++) {
            const float4 x = reinterpret_cast<const float4 *>(s_slot)[w * columns + e];
            sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
        }
        out[e] = make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
    }
    if (h < s.n_head) {
        if (whole) {
            write_state(j, s, h, sh.all[h]);
        } else {
            float *state = j.part_state + (slot * j.part_heads + h) * PART_STATE;
#pragma unroll
            for (int i = 0; i < (STATS ? 6 : 2); i++)
                state[i] = sh.all[h][i];
        }
    }
    if (!whole) {
        __threadfence(); /* the part, before the ticket */
        __syncthreads();
        if (threadIdx.x == 0) {
            sh.last = atomicAdd(&j.ticket[s.n], 1) == n_part - 1;
            if (sh.last) j.ticket[s.n] = 0; /* for the next launch: nobody else comes */
            __threadfence();                /* the ticket, before the others' parts */
        }
        __syncthreads();
        if (sh.last) merge<D, STATS>(j, s, (int64_t)first + s.n, n_part, sh, s_slot);
    }
    __syncthreads();
}

/* results of idle sequences: 0. Block b takes the items b, b + gridDim, ... */
template <int D> __device__ static void clear_idle(const mma_job &j) {
    for (int n = blockIdx.x; n < j.n_item; n += gridDim.x) {
        const int seq = n / j.n_part / j.n_head_kv;
        if (j.pos[seq] >= 0) continue;
        const int part = n % j.n_part, head = n / j.n_part % j.n_head_kv * j.group + part * MAX_GROUP;
        const int n_head = min(j.group - part * MAX_GROUP, MAX_GROUP);
        const int64_t row = (int64_t)seq * j.n_head + head;
        for (int e = threadIdx.x; e < n_head * D; e += blockDim.x)
            j.o[row * D + e] = 0;
        for (int e = threadIdx.x; j.probe.stat && e < n_head * MOA_N_STAT; e += blockDim.x)
            j.probe.stat[row * MOA_N_STAT + e] = 0;
    }
}

/* --- the kernel ----------------------------------------------------------------------------------------- */

/* this warp's units of the segment; ring: where its first units are on their way */
template <int D, bool STATS>
__device__ static void attend_segment(const mma_job &j, segment &s, ring &r, warp_state<D, STATS> &u) {
    typedef layout<D> t;
    queries<D> q;
    int measure[2] = {s.window[0], s.window[1]}, batch = 0;
    load_queries<D>(j, s, q);
    if (STATS && j.probe.measure_span)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int h = (int)threadIdx.x % 4 * 2 + i;
            if (h < s.n_head) measure[i] = moa_window(j.probe.measure_span[s.head + h]);
        }
    u.clear();
    for (int i = 0; i < s.count; i++) {
        if (i / 32 != batch) {
            batch++;
            s.page = s.next;
            s.next = load_entry<t::WARPS>(j, s, batch + 1);
        }
        barrier_wait(r.bars + (unsigned)r.at * 8, r.phase);
        if (__shfl_sync(ALL, s.page, i % 32) >= 0)
            attend_unit<D, STATS>(j, u, q, s, unit_at<t::WARPS>(s, i), r.stages + (unsigned)(r.at * t::UNIT),
                                  measure);
        __syncwarp(); /* everybody has read the stage */
        if (i + j.n_stage < s.count) issue<D>(j, s, batch, i + j.n_stage, r, r.at);
        if (++r.at == j.n_stage) r.at = 0, r.phase ^= 1;
    }
}

/* grid: at most MAX_BLOCK. Dynamic shared memory: layout<D>::FLOATS floats, then WARPS * n_stage units */
template <int D, bool STATS>
__global__ static void __launch_bounds__(layout<D>::THREADS, 1) decode_v2(const mma_job j) {
    typedef layout<D> t;
    extern __shared__ __align__(128) float s_dynamic[];
    __shared__ block_shared<D> sh;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    ring r;
    r.stages = shared_at(s_dynamic + t::FLOATS) + (unsigned)(warp * j.n_stage * t::UNIT);
    r.bars = shared_at(sh.bar[warp]);
    r.at = 0, r.phase = 0;
    for (int i = 0; lane == 0 && i < j.n_stage; i++)
        barrier_init(r.bars + (unsigned)i * 8);
    moa_launch_go();
    const v2_line l = count_line<t::THREADS>(j, &sh.line); /* its barriers also publish the mbarriers */
    segment s;
    bool more = next_segment<t::WARPS>(j, l, l.at, l.n, l.line, &s);
    moa_launch_wait();
    if (more) issue_first<D>(j, s, r);
    while (more) {
        segment after;
        warp_state<D, STATS> u;
        constexpr bool AHEAD =
            D <= 128; /* looked up while this one is computed; larger heads have no registers for it */
        if (AHEAD) more = next_segment<t::WARPS>(j, l, s.line + s.units, s.n + 1, s.line + s.units, &after);
        attend_segment<D, STATS>(j, s, r, u);
        if (!AHEAD) more = next_segment<t::WARPS>(j, l, s.line + s.units, s.n + 1, s.line + s.units, &after);
        if (more) issue_first<D>(j, after, r);
        gather<D, STATS>(u, s, sh, s_dynamic);
        deliver<D, STATS>(j, l, s, sh, s_dynamic);
        s = after;
    }
    if (l.any_idle) clear_idle<D>(j);
}

/* --- the histogram of distances ------------------------------------------------------------------------- */

/* A of head's keys in a unit that lie in a bin; bin < 0: all of them. 0 where the head sees none of them or they are not there */
__device__ static float mass_of_unit(const mma_job &j, int seq, int head, int pos, int span, int unit,
                                     int bin, float lse2) {
    const int last = min(unit * UNIT_TOK + UNIT_TOK - 1, pos);
    if (unit * UNIT_TOK > pos || (unit >= SINK_UNITS && !moa_sees(span, pos, last))) return 0;
    if (!j.kv.page(seq, head / j.group, unit / UNITS_PAGE)) return 0;
    const float4 x = j.mass[((int64_t)seq * j.n_head + head) * (j.kv.max_pages * UNITS_PAGE) + unit];
    const int first = mass_bin(pos, unit);
    const float sum = bin < 0 ? x.y + x.z : bin == first ? x.y : bin == first + 1 ? x.z : 0.0f;
    return sum > 0.0f ? sum * exp2_fast(x.x - lse2) : 0.0f;
}

/* grid: (ceil((1 + n_bin) / WARPS_HIST), n_head). A warp a bin: 0 the sink, 1 + b keys from 64 on at distances of bin b, the last all beyond.
 * Summed over the sequences in order. */
static constexpr int WARPS_HIST = 4;
__global__ static void __launch_bounds__(WARPS_HIST * 32) hist_v2(const mma_job j) {
    const int slot = (int)blockIdx.x * WARPS_HIST + (int)threadIdx.x / 32, lane = threadIdx.x % 32,
              head = blockIdx.y, n_bin = j.probe.n_bin;
    if (slot > n_bin) return;
    for (int seq = 0; seq < j.n_seq; seq++) {
        const int pos = j.pos[seq], bin = slot - 1;
        if (pos < 0) continue;
        const int span = j.span[seq * j.span_stride + head];
        const float lse2 = j.lse[(int64_t)seq * j.n_head + head] * LOG2E;
        float mass = 0;
        if (slot == 0) {
            if (lane < SINK_UNITS) mass = mass_of_unit(j, seq, head, pos, span, lane, -1, lse2);
        } else { /* keys at distances bin * 64 and more; the last bin's go back to the sink */
            const int newest = pos - bin * MOA_PAGE_TOK,
                      oldest = slot == n_bin ? MOA_SINK_TOK : newest - MOA_PAGE_TOK + 1;
            for (int unit = max(max(oldest, 0) / UNIT_TOK, SINK_UNITS) + lane; unit * UNIT_TOK <= newest;
                 unit += 32) {
                if (slot < n_bin)
                    mass += mass_of_unit(j, seq, head, pos, span, unit, bin, lse2);
                else
                    for (int b = max(mass_bin(pos, unit), bin); b <= mass_bin(pos, unit) + 1; b++)
                        mass += mass_of_unit(j, seq, head, pos, span, unit, b, lse2);
            }
        }
        mass = warp_sum(mass);
        const int bucket = min(pos / j.probe.bucket_tok, (int)MOA_HIST_BUCKETS - 1);
        if (lane == 0) j.probe.hist[((int64_t)head * MOA_HIST_BUCKETS + bucket) * (1 + n_bin) + slot] += mass;
    }
}

/* --- launching ------------------------------------------------------------------------------------------ */

/* stages that fit a block's shared memory on this device, 0: not one */
template <int D, bool STATS>
static moa_status count_stages(moa_cuda *c, int *n_stage, size_t *bytes, moa_err *err) {
    typedef layout<D> t;
    int most = 0;
    MOA_CU(c, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, c->device));
    const long fixed = t::FLOATS * 4 + (long)sizeof(block_shared<D>) + 1024;
    const long fit = (most - fixed) / (t::WARPS * t::UNIT);
    *n_stage = (int)(fit < 0 ? 0 : fit > MAX_STAGE ? MAX_STAGE : fit);
    *bytes = t::FLOATS * 4 + (size_t)*n_stage * t::WARPS * t::UNIT;
    return MOA_OK;
}

template <int D, bool STATS>
static moa_status launch(moa_cuda *c, mma_job *j, int n_block, bool *taken, moa_err *err) {
    size_t bytes = 0;
    MOA_RETURN((count_stages<D, STATS>(c, &j->n_stage, &bytes, err)));
    *taken = j->n_stage > 0;
    if (!*taken) return MOA_OK;
    MOA_CU(c, moa_allow_shared(decode_v2<D, STATS>, bytes));
    moa_launch l = {dim3((unsigned)n_block), dim3(layout<D>::THREADS), bytes, 1, false, c->stream};
    MOA_CU(c, moa_launch_may_be_early(c->device, &l.early));
    MOA_CU(c, moa_launch_kernel(l, decode_v2<D, STATS>, *j));
    MOA_LAUNCHED(c, "attn_decode");
    return MOA_OK;
}
template <bool STATS>
static moa_status launch_by_size(moa_cuda *c, mma_job *j, int n_block, bool *taken, moa_err *err) {
    switch (j->kv.d_head) {
    case 64: return launch<64, STATS>(c, j, n_block, taken, err);
    case 80: return launch<80, STATS>(c, j, n_block, taken, err);
    case 96: return launch<96, STATS>(c, j, n_block, taken, err);
    case 128: return launch<128, STATS>(c, j, n_block, taken, err);
    case 256: return launch<256, STATS>(c, j, n_block, taken, err);
    default: *taken = false; return MOA_OK;
    }
}

moa_status moa_cuda_decode_job(moa_cuda *c, const moa_args_attn_decode *a, size_t part_o_bytes,
                               size_t part_state_bytes, mma_job *j, moa_err *err) {
    const int group = a->n_head / a->kv.n_head_kv, n_part = moa_ceil_div(group, MAX_GROUP);
    const size_t parts_bytes = part_o_bytes + part_state_bytes,
                 rows = a->probe.hist ? (size_t)a->n_seq * (size_t)a->n_head : 0,
                 mass_bytes = rows * (size_t)a->kv.max_pages * UNITS_PAGE * sizeof(float4);
    char *space = nullptr;
    MOA_RETURN(moa_cuda_scratch(c, parts_bytes + mass_bytes + rows * sizeof(float),
                                reinterpret_cast<void **>(&space), err));
    *j = {};
    j->q = a->q, j->o = a->o;
    j->kv = moa_kv_of<__half>(&a->kv);
    j->pos = a->pos, j->span = a->span, j->span_stride = a->span_seq_stride;
    j->n_seq = a->n_seq, j->n_head = a->n_head, j->n_head_kv = a->kv.n_head_kv;
    j->group = group, j->n_part = n_part, j->n_item = a->n_seq * a->kv.n_head_kv * n_part;
    j->part_heads = group < MAX_GROUP ? group : MAX_GROUP;
    j->scale = a->scale;
    j->probe = a->probe;
    j->ticket = c->ticket;
    j->part_o = reinterpret_cast<float *>(space);
    j->part_state = reinterpret_cast<float *>(space + part_o_bytes);
    if (a->probe.hist) {
        j->mass = reinterpret_cast<float4 *>(space + parts_bytes);
        j->lse = reinterpret_cast<float *>(space + parts_bytes + mass_bytes);
    }
    return MOA_OK;
}

moa_status moa_cuda_decode_hist(moa_cuda *c, const mma_job *j, moa_err *err) {
    if (!j->probe.hist) return MOA_OK;
    const dim3 bins((unsigned)moa_ceil_div(j->probe.n_bin + 1, WARPS_HIST), (unsigned)j->n_head);
    hist_v2<<<bins, WARPS_HIST * 32, 0, c->stream>>>(*j);
    MOA_LAUNCHED(c, "attn_decode's histogram");
    return MOA_OK;
}

moa_status moa_cuda_decode_v2(moa_cuda *c, const moa_args_attn_decode *a, bool *taken, moa_err *err) {
    *taken = false;
    const int group = a->n_head / a->kv.n_head_kv, n_part = moa_ceil_div(group, MAX_GROUP);
    const int64_t n_item = (int64_t)a->n_seq * a->kv.n_head_kv * n_part;
    if (a->kv.type != MOA_KV_F16 || n_item > MOA_N_TICKET) return MOA_OK;
    const int heads = group < MAX_GROUP ? group : MAX_GROUP;
    const int64_t units = n_item * (a->kv.max_pages > 0 ? a->kv.max_pages : 1) * UNITS_PAGE / MIN_UNITS;
    int64_t n_block = c->n_sm < MAX_BLOCK ? c->n_sm : MAX_BLOCK;
    if (units < n_block) n_block = units;
    const size_t slots = (size_t)(n_block + n_item) * (size_t)heads;
    mma_job j;
    MOA_RETURN(moa_cuda_decode_job(c, a, slots * (size_t)a->kv.d_head * sizeof(float),
                                   slots * PART_STATE * sizeof(float), &j, err));
    const bool stats = a->probe.stat || a->probe.hist;
    MOA_RETURN(stats ? launch_by_size<true>(c, &j, (int)n_block, taken, err)
                     : launch_by_size<false>(c, &j, (int)n_block, taken, err));
    return *taken ? moa_cuda_decode_hist(c, &j, err) : MOA_OK;
}
