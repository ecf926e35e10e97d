/* fused.cu -- a decode step of one row in five launches a layer, each of which reads weights from its first instant to its last.
 *
 *   norm, q k v, rope, store  |  attention  |  o + residual  |  norm, gate up, silu  |  down + residual
 *
 *   block      two a multiprocessor. While the kernel before still runs (launch.cuh), each warp's first weights are on their
 *              way and so is the norm's vector; then it waits, copies x to shared memory, normalises it, turns it into fixed point (row.cuh)
 *   warp       pairs of outputs, 32/G of them at a time, G lanes side by side on both rows: what was read of x serves two
 *                  product      outputs 2 p and 2 p + 1
 *                  gate, up     output p of each: silu(gate) * up is made where they meet
 *                  q, k         the two that rope turns into each other; v: neighbours
 *              so that whatever follows the products needs nobody else
 *   lane       DEEP buffers of U units of both rows; a buffer is filled again as soon as it has been used. Bytes on the way:
 *              16 warps x 32 lanes x DEEP x 2 U x (16 + scale), about 70 KB a multiprocessor (3 TB/s x 1 us / 132 = 23 KB)
 *
 *   shared     x in fixed point | x as it came | norm | cosines, sines | pages of the KV heads
 *
 * These kernels let the next one come before they have waited themselves, which launch.cuh's rule does not foresee: the next may then
 * read before its wait only what no kernel of the step writes (weights, ids, positions, tables, spans, pages but for the newest token's row).
 *
 * q, k and v of different types are as many launches as there are types. Sums are float32 in a fixed order: the same bits each
 * time. The single operations are the check (tests/test_ops_fused.c), $MOASCOPE_FUSED=0 goes by them.
 *
 *   H100, a whole step   SmolLM2 Q4_1 1081 us by single operations (attention v3), 600 fused, 713 without early launches
 *                        Llama-3-8B Q4_0 4204 (attention v1), 2629 fused: 51 % of what reading allows; BF16 6196: 77 %
 *   2026-11-24, moascope bench --what step (docs/measurements/2026-11-24-h100-decode.md) */
#include <cuda_bf16.h>

#include "cuda/matmul_ring.cuh"
#include "cuda/row.cuh"

static constexpr int THREADS = 256, BLOCKS_SM = 2, MAX_PART = 3, MAX_KV = 64, MAX_SHARED = 200 << 10;

enum fused_kind { FUSED_PLAIN, FUSED_GATED, FUSED_Q, FUSED_K, FUSED_V };

/* pairs of outputs of one matrix, or of two */
struct fused_part {
    packed_view a, b; /* of the first and of the second of a pair */
    const float *bias;
    float *y; /* V: only where the cache is q8 */
    int end;  /* pairs of this part and those before it */
    int n_out;
    fused_kind kind;
};

struct fused_rope {
    const float *factors; /* (half) or NULL */
    int half;             /* rope_dim / 2 */
    bool pairs;
    double log2_theta, scale;
};

struct fused_job {
    const float *x, *norm;
    float eps;
    int n_in, n_unit, n_part, n_pair, x_bytes; /* x_bytes: of x in fixed point */
    bool accumulate;
    fused_part part[MAX_PART];
    /* of q, k, v */
    fused_rope rope;
    int d_head, n_head_kv;
    moa_kv_type kv_type; /* q8: k and v go to rows of their own, and from there to the pages (kv.cu) */
    moa_kv<__half> kv;   /* whatever the type: page() is not used */
    const int32_t *pos, *seq;
};

__device__ static inline void copy_async(void *shared, const void *from) {
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)),
        "l"(from)
        : "memory");
}
__device__ static inline void copies_wait() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* --- where a warp is ------------------------------------------------------------------------------------ */

struct fused_place {
    int pair, part; /* this lane's; part < 0: beyond the last pair */
    int a, b;       /* rows; b is a again where the number of outputs is odd */
    int in_head;    /* q, k, v: number of the pair in its head */
};

__device__ static inline fused_place place_of(const fused_job &j, int pair) {
    fused_place p = {pair, -1, 0, 0, 0};
    if (pair >= j.n_pair) return p;
    p.part = 0;
    while (pair >= j.part[p.part].end)
        p.part++;
    const int local = p.part ? pair - j.part[p.part - 1].end : pair;
    const fused_kind kind = j.part[p.part].kind;
    p.a = 2 * local;
    if (kind == FUSED_GATED) {
        p.a = p.b = local;
    } else if (kind == FUSED_PLAIN) {
        p.b = min(p.a + 1, j.part[p.part].n_out - 1);
    } else {
        const int each = j.d_head / 2, head = local / each;
        p.in_head = local - head * each;
        p.b = p.a + 1;
        if (kind != FUSED_V && p.in_head < j.rope.half && !j.rope.pairs) {
            p.a = head * j.d_head + p.in_head;
            p.b = p.a + j.rope.half;
        }
    }
    return p;
}

template <typename T, int G> struct fused_walk {
    static constexpr int R = 32 / G; /* pairs a warp */
    static constexpr int U = T::UNIT == 32 ? 2 : 4;
    static constexpr int DEEP = sizeof(typename T::raw) * U <= 40 ? 3 : 2;
    typename T::raw a[U], b[U];

    __device__ static inline int unit(int step, int i) {
        return (step * U + i) * G + (int)(threadIdx.x % 32) % G;
    }
    __device__ inline void load(const fused_job &j, const fused_place &p, int step) {
        if (p.part < 0) return;
        const fused_part &part = j.part[p.part];
#pragma unroll
        for (int i = 0; i < U; i++) {
            if (unit(step, i) >= j.n_unit) continue;
            T::load(part.a, p.a, unit(step, i), a[i]);
            T::load(part.b, p.b, unit(step, i), b[i]);
        }
    }
    __device__ inline void use(const fused_job &j, const fused_place &p, int step, const uint4 *s,
                               float sum[2]) const {
        if (p.part < 0) return;
#pragma unroll
        for (int i = 0; i < U; i++) {
            if (unit(step, i) >= j.n_unit) continue;
            sum[0] += T::dot(s, j.n_unit, a[i], unit(step, i));
            sum[1] += T::dot(s, j.n_unit, b[i], unit(step, i));
        }
    }
};

/* --- before the products -------------------------------------------------------------------------------- */

struct fused_shared {
    uint4 *x;           /* as T::put leaves it */
    float4 *raw, *norm; /* (n_in / 4); norm not there without one */
    float *turn;        /* cosines (half), sines (half) */
    uint8_t **page;     /* (n_head_kv): the row of the page that K of the token goes to, or NULL */
    float *sum;         /* 32 */
};

__device__ static inline fused_shared shared_of(const fused_job &j, uint4 *all) {
    fused_shared s;
    s.x = all;
    s.raw = reinterpret_cast<float4 *>(all + j.x_bytes / 16);
    s.norm = s.raw + j.n_in / 4;
    float4 *const rest = s.norm + (j.norm ? j.n_in / 4 : 0);
    s.page = reinterpret_cast<uint8_t **>(rest);
    s.sum = reinterpret_cast<float *>(s.page + MAX_KV);
    s.turn = s.sum + 32;
    return s;
}

/* x, by the thread that copied it: nobody else needs it before block_sum()'s barrier */
template <typename T> __device__ static inline void prepare_x(const fused_job &j, const fused_shared &s) {
    const int n = j.n_in / 4;
    float factor = 1;
    if (j.norm) {
        float sum = 0;
        for (int i = threadIdx.x; i < n; i += (int)blockDim.x) {
            const float4 v = s.raw[i];
            sum += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
        }
        factor = rsqrtf(block_sum(sum, s.sum) / (float)j.n_in + j.eps);
    }
    for (int i0 = 0; i0 < n; i0 += (int)blockDim.x) { /* whole warps */
        const int i = i0 + (int)threadIdx.x;
        float4 v = i < n ? s.raw[i] : make_float4(0, 0, 0, 0);
        if (j.norm && i < n) {
            const float4 w = s.norm[i];
            v = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
        }
        T::put(s.x, j.n_unit, i, v);
    }
}

/* how far pair i of a head turns a position */
__device__ static inline double turn_rate(const fused_rope &r, int i) {
    const double rate = r.scale * exp2(-(double)i / r.half * r.log2_theta);
    return r.factors ? rate / (double)r.factors[i] : rate;
}
__device__ static inline void prepare_turn(const fused_job &j, int i, double rate, int pos, float *turn) {
    const double angle = (double)pos * rate, turns = rint(angle * 0.15915494309189535);
    const float rest = (float)fma(-turns, 6.283185307179586, angle);
    sincosf(rest, &turn[j.rope.half + i], &turn[i]);
}
__device__ static inline uint8_t *row_of_page(const fused_job &j, int head, int pos) {
    if (pos < 0 || pos / MOA_PAGE_TOK >= j.kv.max_pages) return nullptr;
    const int seq = j.seq ? j.seq[0] : 0;
    const int32_t at =
        j.kv.table[seq * j.kv.seq_stride + (int64_t)head * j.kv.max_pages + pos / MOA_PAGE_TOK];
    if (at < 0) return nullptr;
    return reinterpret_cast<uint8_t *>(j.kv.pool) + (int64_t)at * (int64_t)moa_kv_page_bytes(j.kv_type, j.d_head) +
           pos % MOA_PAGE_TOK * (int)moa_kv_row_bytes(j.kv_type, j.d_head);
}

/* --- after them ----------------------------------------------------------------------------------------- */

/* as in elementwise.cu */
__device__ static inline float silu_times(float gate, float up) {
    const float h = expf(-0.5f * fabsf(gate)), rest = 1.0f + h * h;
    return gate < 0 ? gate * h / rest * (h * up) : gate / rest * up;
}

__device__ static inline void store_element(const fused_job &j, uint8_t *row, int i, float x) {
    if (j.kv_type == MOA_KV_F16)
        reinterpret_cast<__half *>(row)[i] = __float2half_rn(x);
    else if (j.kv_type == MOA_KV_BF16)
        reinterpret_cast<__nv_bfloat16 *>(row)[i] = __float2bfloat16_rn(x);
    else
        reinterpret_cast<float *>(row)[i] = x;
}
/* to the token's row of its page; side 1: V */
__device__ static inline void store_pair(const fused_job &j, const fused_shared &s, const fused_place &p,
                                         int side, float a, float b) {
    const int head = p.a / j.d_head, first = head * j.d_head;
    uint8_t *const row = s.page[head];
    if (!row) return;
    const int shift = side * MOA_PAGE_TOK * j.d_head;
    store_element(j, row, shift + p.a - first, a);
    store_element(j, row, shift + p.b - first, b);
}

/* y + bias of a pair, fetched while its products are under way */
__device__ static inline float2 added_to(const fused_job &j, const fused_place &p) {
    float2 add = make_float2(0, 0);
    if (p.part < 0) return add;
    const fused_part &part = j.part[p.part];
    if (part.bias) add = make_float2(part.bias[p.a], part.bias[p.b]);
    if (j.accumulate) add.x += part.y[p.a], add.y += part.y[p.b];
    return add;
}

__device__ static inline void finish_pair(const fused_job &j, const fused_shared &s, const fused_place &p,
                                          float a, float b) {
    const fused_part &part = j.part[p.part];
    switch (part.kind) {
    case FUSED_GATED: part.y[p.a] = silu_times(a, b); return;
    case FUSED_V:
        if (j.kv_type == MOA_KV_Q8) break;
        store_pair(j, s, p, 1, a, b);
        return;
    case FUSED_Q:
    case FUSED_K:
        if (p.in_head < j.rope.half) {
            const float cosine = s.turn[p.in_head], sine = s.turn[j.rope.half + p.in_head], a0 = a;
            a = a0 * cosine - b * sine;
            b = a0 * sine + b * cosine;
        }
        if (part.kind == FUSED_K && j.kv_type != MOA_KV_Q8) store_pair(j, s, p, 0, a, b);
        break;
    case FUSED_PLAIN: break;
    }
    part.y[p.a] = a;
    if (p.b != p.a) part.y[p.b] = b;
}

/* --- the kernel ----------------------------------------------------------------------------------------- */

template <typename T, int G> struct fused_state {
    typedef fused_walk<T, G> walk;
    fused_place from, at;   /* what is loaded next, what is used next */
    int from_step, at_step; /* of n_step */
    int from_group, at_group, n_step, n_warp;
    float sum[2];
    float2 add;

    __device__ inline int pair(int group) const { return group * walk::R + (int)(threadIdx.x % 32) / G; }
    __device__ inline bool more(const fused_job &j) const { return at_group * walk::R < j.n_pair; }

    __device__ inline void begin(const fused_job &j) {
        n_warp = (int)(gridDim.x * blockDim.x) / 32;
        n_step = (j.n_unit + G * walk::U - 1) / (G * walk::U);
        from_group = at_group = (int)(blockIdx.x * blockDim.x + threadIdx.x) / 32;
        from_step = at_step = 0;
        from = at = place_of(j, pair(at_group));
        sum[0] = sum[1] = 0;
        add = make_float2(0, 0);
    }
    __device__ inline void fill(const fused_job &j, walk &w) {
        w.load(j, from, from_step);
        if (++from_step < n_step) return;
        from_step = 0;
        from_group += n_warp;
        from = place_of(j, pair(from_group));
    }
    __device__ inline void use(const fused_job &j, const fused_shared &s, const walk &w) {
        if (at_step == 0 && threadIdx.x % G == 0) add = added_to(j, at);
        w.use(j, at, at_step, s.x, sum);
        if (++at_step < n_step) return;
        const float a = group_sum<G>(sum[0]), b = group_sum<G>(sum[1]);
        if (threadIdx.x % G == 0 && at.part >= 0) finish_pair(j, s, at, a + add.x, b + add.y);
        at_step = 0;
        sum[0] = sum[1] = 0;
        at_group += n_warp;
        at = place_of(j, pair(at_group));
    }
};

template <typename T, int G>
__global__ static void __launch_bounds__(THREADS, BLOCKS_SM) fused_v1(const __grid_constant__ fused_job j) {
    extern __shared__ uint4 row_shared[];
    typedef fused_walk<T, G> walk;
    walk w[walk::DEEP];
    fused_state<T, G> st;
    const fused_shared s = shared_of(j, row_shared);
    moa_launch_go();
    st.begin(j);
#pragma unroll
    for (int k = 0; k < walk::DEEP; k++)
        st.fill(j, w[k]);
    for (int i = threadIdx.x; j.norm && i < j.n_in / 4; i += (int)blockDim.x)
        copy_async(s.norm + i, j.norm + 4 * i);
    const bool turns = (int)threadIdx.x < j.rope.half;
    const double rate = turns ? turn_rate(j.rope, threadIdx.x) : 0.0;
    moa_launch_wait();
    for (int i = threadIdx.x; i < j.n_in / 4; i += (int)blockDim.x)
        copy_async(s.raw + i, j.x + 4 * i);
    if (j.pos) {
        const int pos = j.pos[0];
        if (turns) prepare_turn(j, threadIdx.x, rate, pos, s.turn);
        if ((int)threadIdx.x < j.n_head_kv) s.page[threadIdx.x] = row_of_page(j, threadIdx.x, pos);
    }
    copies_wait();
    prepare_x<T>(j, s);
    __syncthreads();
    while (st.more(j)) {
#pragma unroll
        for (int k = 0; k < walk::DEEP; k++) {
            if (!st.more(j)) break;
            st.use(j, s, w[k]);
            st.fill(j, w[k]);
        }
    }
}

/* --- launching ------------------------------------------------------------------------------------------ */

struct fused_shape {
    int lanes;
    unsigned warps, blocks;
};

/* Lanes a row: enough for the units, more while there are too few pairs to go round. Then as many warps a block, of two a multiprocessor,
 * as make the last round a full one. */
static fused_shape shape_of(const moa_cuda *c, int n_pair, int n_unit, int deep_units) {
    const int at_once = n_unit / deep_units; /* lanes that one step keeps busy */
    int lanes = at_once <= 8 ? 8 : at_once <= 16 ? 16 : 32;
    while (lanes < 32 && (int64_t)n_pair * lanes / 32 < (int64_t)c->n_sm * 16)
        lanes *= 2;
    const int tasks = moa_ceil_div(n_pair, 32 / lanes), each = moa_ceil_div(tasks, c->n_sm * BLOCKS_SM),
              rounds = moa_ceil_div(each, THREADS / 32);
    int warps = moa_ceil_div(each, rounds);
    if (warps < 4) warps = 4;
    return {lanes, (unsigned)warps, (unsigned)moa_ceil_div(tasks, warps * rounds)};
}

static size_t shared_bytes_of(const fused_job &j) {
    return (size_t)j.x_bytes + (size_t)j.n_in * sizeof(float) * (j.norm ? 2 : 1) + MAX_KV * sizeof(void *) +
           (32 + 2 * (size_t)j.rope.half) * sizeof(float);
}

template <typename T, int G>
static moa_status launch_as(moa_cuda *c, const fused_job &j, const fused_shape &s, moa_err *err) {
    const size_t shared = shared_bytes_of(j);
    MOA_CU(c, moa_allow_shared(fused_v1<T, G>, shared));
    moa_launch how = {dim3(s.blocks), dim3(s.warps * 32), shared, 1, false, c->stream};
    MOA_CU(c, moa_launch_may_be_early(c->device, &how.early));
    MOA_CU(c, moa_launch_kernel(how, fused_v1<T, G>, j));
    return MOA_OK;
}
template <typename T> static moa_status launch(moa_cuda *c, fused_job &j, moa_err *err) {
    j.n_unit = j.n_in / T::UNIT;
    for (int i = 0; i < j.n_part; i++)
        j.part[i].a.n_unit = j.part[i].b.n_unit = j.n_unit;
    const fused_shape s = shape_of(c, j.n_pair, j.n_unit, fused_walk<T, 32>::U);
    return s.lanes == 8    ? launch_as<T, 8>(c, j, s, err)
           : s.lanes == 16 ? launch_as<T, 16>(c, j, s, err)
                           : launch_as<T, 32>(c, j, s, err);
}

static moa_status launch_by_type(moa_cuda *c, moa_dtype type, fused_job &j, moa_err *err) {
    switch ((int)type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: return launch<row_packed<packed_##stem>>(c, j, err);
        MOA_PACKED_MAP(X)
#undef X
    case moa_f32_id: return launch<row_plain<moa_f32_id>>(c, j, err);
    case moa_f16_id: return launch<row_plain<moa_f16_id>>(c, j, err);
    case moa_bf16_id: return launch<row_plain<moa_bf16_id>>(c, j, err);
    default: return moa_fail(err, MOA_E_UNSUPPORTED, "weight type %d has no CUDA product", (int)type);
    }
}

static packed_view view_of(const moa_dev_weight *w) {
    uint8_t *const data = static_cast<uint8_t *>(w->data);
    packed_view v = {data, data, data, data, 0};
    if (!w->packed) return v;
    switch ((int)w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: (void)packed_place<packed_##stem>(data, w->n_out, w->n_in / 32, &v); break;
        MOA_PACKED_MAP(X)
#undef X
    default: break;
    }
    return v;
}
static const float *floats_of(const moa_dev_weight *w) {
    return w ? static_cast<const float *>(w->data) : nullptr;
}

/* Is w one that these kernels read, with that x? In a packed build every type but the plain ones is packed. */
static bool weight_fits(const moa_cuda *c, const moa_dev_weight *w, int n_in) {
    const bool plain = w->type == MOA_F32 || w->type == MOA_F16 || w->type == MOA_BF16;
    return c->matmul == 2 && w->n_in == n_in && w->packed != plain && row_shared_bytes(w) > 0;
}
static bool input_fits(const moa_fused_in *in) {
    return reinterpret_cast<uintptr_t>(in->x) % 16 == 0 && (!in->norm || in->norm->type == MOA_F32);
}
static fused_job job_of(const moa_fused_in *in, const moa_dev_weight *w) {
    fused_job j = {};
    j.x = in->x, j.norm = floats_of(in->norm), j.eps = in->eps;
    j.n_in = w->n_in;
    j.x_bytes = (int)((row_shared_bytes(w) + 15) & ~(size_t)15);
    return j;
}
/* appends pairs of a's outputs, or of a's and b's */
static void add_part(fused_job *j, fused_kind kind, const moa_dev_weight *a, const moa_dev_weight *b,
                     const moa_dev_weight *bias, float *y) {
    const int n_pair = kind == FUSED_GATED ? a->n_out : moa_ceil_div(a->n_out, 2);
    j->n_pair += n_pair;
    j->part[j->n_part++] = {view_of(a), view_of(b), floats_of(bias), y, j->n_pair, a->n_out, kind};
}

moa_status moa_cuda_fused_product(moa_backend *b, const moa_args_fused_product *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->in.n_tok > 1) return moa_cuda_rows_product(c, a, err);
    fused_job j = job_of(&a->in, a->w);
    j.accumulate = a->accumulate;
    *a->taken = input_fits(&a->in) && weight_fits(c, a->w, a->w->n_in) && shared_bytes_of(j) <= MAX_SHARED;
    if (!*a->taken) return MOA_OK;
    add_part(&j, FUSED_PLAIN, a->w, a->w, nullptr, a->y);
    return launch_by_type(c, a->w->type, j, err);
}

moa_status moa_cuda_fused_gate_up(moa_backend *b, const moa_args_fused_gate_up *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->in.n_tok > 1) return moa_cuda_rows_gate_up(c, a, err);
    fused_job j = job_of(&a->in, a->gate);
    *a->taken = input_fits(&a->in) && weight_fits(c, a->gate, a->gate->n_in) &&
                weight_fits(c, a->up, a->gate->n_in) && a->up->type == a->gate->type &&
                a->up->n_out == a->gate->n_out && shared_bytes_of(j) <= MAX_SHARED;
    if (!*a->taken) return MOA_OK;
    add_part(&j, FUSED_GATED, a->gate, a->up, nullptr, a->y);
    return launch_by_type(c, a->gate->type, j, err);
}

static bool qkv_fits(const moa_cuda *c, const moa_args_fused_qkv *a) {
    const int n_in = a->wq->n_in, d = a->kv.d_head, rope = a->rope.rope_dim < 2 ? 0 : a->rope.rope_dim;
    const bool weights =
        weight_fits(c, a->wq, n_in) && weight_fits(c, a->wk, n_in) && weight_fits(c, a->wv, n_in);
    /* 128 threads at least, one for each rotation and each KV head */
    const bool heads = d % 2 == 0 && rope % 2 == 0 && rope <= d && rope <= 256 && a->kv.n_head_kv <= MAX_KV;
    return weights && heads && input_fits(&a->in) && a->wq->n_out == a->n_head * d &&
           a->wk->n_out == a->kv.n_head_kv * d && a->wv->n_out == a->kv.n_head_kv * d &&
           (a->kv.type != MOA_KV_Q8 || a->v);
}

static fused_job qkv_job(const moa_args_fused_qkv *a, const moa_dev_weight *w) {
    fused_job j = job_of(&a->in, w);
    if (a->rope.rope_dim >= 2)
        j.rope = {floats_of(a->rope.freq_factors), a->rope.rope_dim / 2, a->rope.kind == MOA_ROPE_PAIRS,
                  log2((double)a->rope.theta), (double)a->rope.scale};
    j.d_head = a->kv.d_head, j.n_head_kv = a->kv.n_head_kv;
    j.kv_type = a->kv.type;
    j.kv = moa_kv_of<__half>(&a->kv);
    j.pos = a->rope.pos, j.seq = a->seq;
    return j;
}

moa_status moa_cuda_fused_qkv(moa_backend *b, const moa_args_fused_qkv *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    const moa_dev_weight *const w[MAX_PART] = {a->wq, a->wk, a->wv}, *const bias[MAX_PART] = {a->bq, a->bk,
                                                                                              a->bv};
    float *const y[MAX_PART] = {a->q, a->k, a->v};
    const fused_kind kind[MAX_PART] = {FUSED_Q, FUSED_K, FUSED_V};
    bool done[MAX_PART] = {};
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->in.n_tok > 1) return moa_cuda_rows_qkv(c, a, err);
    *a->taken = qkv_fits(c, a);
    for (int i = 0; i < MAX_PART && *a->taken; i++)
        *a->taken = shared_bytes_of(qkv_job(a, w[i])) <= MAX_SHARED;
    for (int i = 0; i < MAX_PART && *a->taken; i++) {
        if (done[i]) continue;
        fused_job j = qkv_job(a, w[i]);
        for (int k = i; k < MAX_PART; k++) {
            if (done[k] || w[k]->type != w[i]->type) continue;
            add_part(&j, kind[k], w[k], w[k], bias[k], y[k]);
            done[k] = true;
        }
        MOA_RETURN(launch_by_type(c, w[i]->type, j, err));
    }
    if (!*a->taken || a->kv.type != MOA_KV_Q8) return MOA_OK;
    const moa_args_kv_store store = {a->k, a->v, a->kv, a->seq, a->rope.pos, 1};
    return moa_cuda_kv_store(b, &store, err);
}
