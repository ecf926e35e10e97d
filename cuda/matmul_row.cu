/* matmul_row.cu -- y = x W^T for one row of x: the weights are read once, everything else must hide behind that.
 *
 *   block      one a multiprocessor, up to 16 warps. It turns x into fixed point in shared memory once; the first weights are already
 *              on their way then
 *   warp       32/G outputs at a time, G lanes (8, 16, 32) side by side on a row: few units a row want few lanes
 *   lane       U units, G apart: U loads of 16 bytes in flight, and the next U before these are used
 *
 *   x          of every 32 values, largest magnitude M:     x = M/32512 * (256 hi + lo)      hi, lo: int8
 *              so that a product with codes is two integer dot products of four bytes each instruction, exact; the error of x is
 *              2^-16 of the largest of its 32. (NumPy, rows of Q4_1,
 *              Q8_0 and Q4_K models: NMSE 4e-10, with outliers 2e-9; with 8 bits of x alone 3e-5 and 1e-4, over the limit of 1e-6)
 *
 *      w = step (code - ZERO) + off     =>     sum w x = M/32512 * (step * (sum code q - ZERO * sum q) + off * sum q)     q = 256 hi + lo
 *
 *   shared     [4][n_unit] 16 bytes: hi of 0..15, hi of 16..31, lo, lo      [n_unit] M/32512      [n_unit] sum of q      [n_unit] of its second half
 *              neighbouring lanes read neighbouring 16 bytes: no bank twice
 *
 * F32, F16, BF16: a unit is 16 bytes; x stays float32, in planes of 4. Sums are float32 in a fixed order: the same bits each time.
 *
 * What an H100 can do: 3.0 TB/s are 13.4 bytes a clock and multiprocessor, of Q4 27 weights; a unit of 32 costs about 30 instructions and
 * 76 bytes of shared memory: 25 of 128 issue slots and 64 of 128 bytes a clock. */
#include "cuda/row.cuh"

static constexpr int MAX_WARPS = 16, MAX_SHARED = 200 << 10;

struct row_job {
    const float *x; /* (n_in) */
    packed_view w;  /* plain types: low is the matrix */
    matmul_out out;
    int n_in;
    bool wide_x; /* x is 16-byte aligned */
};

__device__ static inline float4 load_x4(const row_job &j, int i) {
    if (j.wide_x) return *reinterpret_cast<const float4 *>(j.x + i);
    return make_float4(j.x[i], j.x[i + 1], j.x[i + 2], j.x[i + 3]);
}
/* --- the product ------------------------------------------------------------------------------------------ */

/* where a warp is: its group of outputs and the step along n_in */
struct row_place {
    int group, step;
};

template <typename T, int G> struct row_walk {
    static constexpr int R = 32 / G;
    typename T::raw r[T::U];

    __device__ static inline int row(const row_place &p) { return p.group * R + (int)(threadIdx.x % 32) / G; }
    __device__ static inline int unit(const row_place &p, int i) {
        return (p.step * T::U + i) * G + (int)(threadIdx.x % 32) % G;
    }
    __device__ inline void load(const row_job &j, const row_place &p) {
        if (row(p) >= j.out.n_out) return;
#pragma unroll
        for (int i = 0; i < T::U; i++)
            if (unit(p, i) < j.w.n_unit) T::load(j.w, row(p), unit(p, i), r[i]);
    }
    __device__ inline float use(const row_job &j, const row_place &p, const uint4 *s) const {
        float sum = 0;
        if (row(p) >= j.out.n_out) return 0;
#pragma unroll
        for (int i = 0; i < T::U; i++)
            if (unit(p, i) < j.w.n_unit) sum += T::dot(s, j.w.n_unit, r[i], unit(p, i));
        return sum;
    }
};

template <typename T, int G>
__global__ static void __launch_bounds__(MAX_WARPS * 32, 1) matvec_v2(row_job j) {
    extern __shared__ uint4 row_shared[];
    uint4 *const s = row_shared;
    typedef row_walk<T, G> walk;
    const int n_warp = (int)(gridDim.x * blockDim.x) / 32;
    const int n_group = (j.out.n_out + walk::R - 1) / walk::R,
              n_step = (j.w.n_unit + G * T::U - 1) / (G * T::U);
    row_place at = {(int)(blockIdx.x * blockDim.x + threadIdx.x) / 32, 0};
    walk a, b;
    if (at.group < n_group) a.load(j, at);
    for (int i0 = 0; i0 < j.n_in / 4; i0 += (int)blockDim.x) { /* whole warps */
        const int i = i0 + (int)threadIdx.x;
        T::put(s, j.w.n_unit, i, i < j.n_in / 4 ? load_x4(j, 4 * i) : make_float4(0, 0, 0, 0));
    }
    __syncthreads();
    float sum = 0;
    /* `now` is used while what follows it is loaded into `next` */
    const auto advance = [&](walk &now, walk &next) {
        const row_place here = at;
        if (++at.step == n_step) at = {at.group + n_warp, 0};
        if (at.group < n_group) next.load(j, at);
        sum += now.use(j, here, s);
        if (at.step != 0) return;
        sum = group_sum<G>(sum);
        if (threadIdx.x % G == 0 && walk::row(here) < j.out.n_out)
            matmul_write(j.out, 0, walk::row(here), sum);
        sum = 0;
    };
    while (at.group < n_group) {
        advance(a, b);
        if (at.group >= n_group) break;
        advance(b, a);
    }
}

/* --- launchers ------------------------------------------------------------------------------------------ */

struct row_shape {
    int lanes, warps, blocks; /* G, of a block, of the grid */
};

/* Lanes a row: enough for the units, more while there are too few rows to go round. Then one block a multiprocessor with as
 * many warps as it takes. */
static row_shape shape_of(const moa_cuda *c, int n_out, int n_unit) {
    row_shape s = {n_unit <= 32 ? 8 : n_unit <= 64 ? 16 : 32, 0, 0};
    while (s.lanes < 32 && (int64_t)n_out * s.lanes / 32 < (int64_t)c->n_sm * 4)
        s.lanes *= 2;
    const int tasks = moa_ceil_div(n_out, 32 / s.lanes), each = moa_ceil_div(tasks, c->n_sm),
              rounds = moa_ceil_div(each, MAX_WARPS);
    s.warps = moa_ceil_div(each, rounds);
    if (s.warps < 4) s.warps = 4;
    s.blocks = moa_ceil_div(tasks, s.warps * rounds);
    return s;
}

template <typename T, int G>
static moa_status row_launch_as(moa_cuda *c, const row_job &j, const row_shape &s, size_t shared,
                                moa_err *err) {
    MOA_CU(c, moa_allow_shared(matvec_v2<T, G>, shared));
    const unsigned grid = (unsigned)s.blocks, threads = (unsigned)s.warps * 32;
    matvec_v2<T, G><<<grid, threads, shared, c->stream>>>(j);
    MOA_LAUNCHED(c, "matrix-vector product");
    return MOA_OK;
}

template <typename T> static moa_status row_launch(moa_cuda *c, row_job j, size_t shared, moa_err *err) {
    j.w.n_unit = j.n_in / T::UNIT;
    const row_shape s = shape_of(c, j.out.n_out, j.w.n_unit);
    return s.lanes == 8    ? row_launch_as<T, 8>(c, j, s, shared, err)
           : s.lanes == 16 ? row_launch_as<T, 16>(c, j, s, shared, err)
                           : row_launch_as<T, 32>(c, j, s, shared, err);
}

bool moa_cuda_row_fits(const moa_dev_weight *w) {
    const size_t bytes = row_shared_bytes(w);
    return bytes > 0 && bytes <= MAX_SHARED;
}

moa_status moa_cuda_matmul_row(moa_cuda *c, const moa_args_matmul *a, moa_err *err) {
    row_job j = {a->x, {}, matmul_out_of(a), a->w->n_in, reinterpret_cast<uintptr_t>(a->x) % 16 == 0};
    const size_t shared = row_shared_bytes(a->w);
    uint8_t *const data = static_cast<uint8_t *>(a->w->data);
    switch ((int)a->w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id:                                                                                    \
        (void)packed_place<packed_##stem>(data, a->w->n_out, a->w->n_in / 32, &j.w);                         \
        return row_launch<row_packed<packed_##stem>>(c, j, shared, err);
        MOA_PACKED_MAP(X)
#undef X
    default: break;
    }
    j.w.low = data;
    if (a->w->type == MOA_F32) return row_launch<row_plain<moa_f32_id>>(c, j, shared, err);
    if (a->w->type == MOA_F16) return row_launch<row_plain<moa_f16_id>>(c, j, shared, err);
    if (a->w->type == MOA_BF16) return row_launch<row_plain<moa_bf16_id>>(c, j, shared, err);
    return moa_fail(err, MOA_E_UNSUPPORTED, "weight type %d has no CUDA product", (int)a->w->type);
}
