/* matmul_pack.cu -- weights into their packed form and out of it (packed.cuh has the layout).
 *
 *   load     a piece of the GGUF matrix is copied to the workspace, a kernel writes its units into the streams: a thread a unit.
 *            Bytes are read one by one; the copy from the host takes ten times as long
 *   scale    float16 holds 5e-8 to 65504: the largest weight of a matrix is brought to 2^10 by a power of two, exactly, wherever
 *            the weights become float16; products are divided by it. Any matrix of finite weights is safe so
 *   unpack   a thread decodes a unit, the warp writes it through shared memory in whole lines */
#include <cuda_bf16.h>

#include "cuda/matmul.cuh"

static constexpr int THREADS = 128;

struct pack_job {
    const uint8_t *raw;
    size_t row_bytes;
    packed_view to;
    int row0, n_row;
};

#define X(stem)                                                                                              \
    __device__ static inline void unpack_unit(packed_##stem, const uint8_t *row, int u, packed_unit &x) {    \
        packed_unpack_##stem(row, u, x);                                                                     \
    }
/* formats of the same shape would be the same type: the overloads tell them apart, and two that collide do not compile */
MOA_PACKED_MAP(X)
#undef X

template <typename F> __global__ static void __launch_bounds__(THREADS) pack_v2(pack_job j) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (int64_t)j.n_row * j.to.n_unit) return;
    const int r = (int)(i / j.to.n_unit), u = (int)(i % j.to.n_unit);
    const uint8_t *row = j.raw + (size_t)r * j.row_bytes;
    packed_unit x;
    unpack_unit(F(), row, u, x);
    packed_store<F>(j.to, j.row0 + r, u, x);
    if (F::HEAD && u % 8 == 0) packed_head<F>(row, j.to, j.row0 + r, u);
}

/* the largest magnitude of a matrix, as bits, into *out (0 before) */
template <typename F>
__global__ static void __launch_bounds__(THREADS) largest_v2(packed_view v, int n_out, uint32_t *out) {
    __shared__ uint32_t s[32];
    uint32_t most = 0;
    const int64_t n = (int64_t)n_out * v.n_unit, step = (int64_t)gridDim.x * THREADS;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        const int row = (int)(i / v.n_unit), u = (int)(i % v.n_unit);
        packed_raw<F> r;
        float w[32];
        packed_load<F>(v, row, u, r);
        packed_decode<F>(r, u, w);
#pragma unroll
        for (int k = 0; k < 32; k++)
            most = max(most, magnitude(w[k]));
    }
    most = block_max_bits(most, s);
    if (threadIdx.x == 0) atomicMax(out, most);
}
/* WORD: float32's bits, or bfloat16's: their upper half */
template <typename WORD>
__global__ static void __launch_bounds__(THREADS) largest_plain_v2(const WORD *w, int64_t n, uint32_t *out) {
    __shared__ uint32_t s[32];
    uint32_t most = 0;
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS)
        most = max(most, (uint32_t)w[i] << (32 - 8 * (int)sizeof(WORD)) & 0x7fffffffu);
    most = block_max_bits(most, s);
    if (threadIdx.x == 0) atomicMax(out, most);
}

template <typename OUT> struct elem_of;
template <> struct elem_of<float> {
    __device__ static inline float from(float x) { return x; }
};
template <> struct elem_of<__nv_bfloat16> {
    __device__ static inline __nv_bfloat16 from(float x) { return __float2bfloat16_rn(x); }
};
template <> struct elem_of<__half> {
    __device__ static inline __half from(float x) { return __float2half_rn(x); }
};

struct unpack_job {
    packed_view v;
    int n_out, row0;
    const int32_t *ids;
    float scale;
    void *out;
};

/* grid: (rows, units of a row / THREADS) */
template <typename F, typename OUT>
__global__ static void __launch_bounds__(THREADS) unpack_v2(unpack_job j) {
    constexpr int V = 2 * (int)sizeof(OUT), WARPS = THREADS / 32; /* V: 16-byte vectors a unit */
    __shared__ uint4 tile[WARPS][32][V + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = j.ids ? j.ids[blockIdx.x] : j.row0 + (int)blockIdx.x;
    const int first = ((int)blockIdx.y * WARPS + warp) * 32, u = first + lane;
    if (u < j.v.n_unit) {
        const bool inside = row >= 0 && row < j.n_out;
        packed_raw<F> r;
        float w[32];
        OUT out[32];
        if (inside) packed_load<F>(j.v, row, u, r);
        if (inside) packed_decode<F>(r, u, w);
#pragma unroll
        for (int i = 0; i < 32; i++)
            out[i] = elem_of<OUT>::from(inside ? w[i] * j.scale : NAN);
#pragma unroll
        for (int i = 0; i < V; i++)
            memcpy(&tile[warp][lane][i], out + 16 / (int)sizeof(OUT) * i, 16);
    }
    __syncwarp();
    uint4 *to = static_cast<uint4 *>(j.out) + ((int64_t)blockIdx.x * j.v.n_unit + first) * V;
    const int n = min(32, j.v.n_unit - first) * V;
    for (int i = lane; i < n; i += 32)
        to[i] = tile[warp][i / V][i % V];
}

/* --- launchers ------------------------------------------------------------------------------------------ */

#define NO_FORMAT(w) moa_fail(err, MOA_E_UNSUPPORTED, "weight type %d has no packed form", (int)(w)->type)

size_t moa_cuda_packed_bytes(const moa_dev_weight *w) {
    packed_view v;
    switch ((int)w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: return packed_place<packed_##stem>(nullptr, w->n_out, w->n_in / 32, &v);
        MOA_PACKED_MAP(X)
#undef X
    default: return 0;
    }
}

template <typename F> static packed_view view_of(const moa_dev_weight *w) {
    packed_view v;
    (void)packed_place<F>(static_cast<uint8_t *>(w->data), w->n_out, w->n_in / 32, &v);
    return v;
}

template <typename F> static void pack_launch(moa_cuda *c, pack_job j, const moa_dev_weight *w) {
    j.to = view_of<F>(w);
    const unsigned grid = (unsigned)moa_ceil_div<int64_t>((int64_t)j.n_row * j.to.n_unit, THREADS);
    pack_v2<F><<<grid, THREADS, 0, c->stream>>>(j);
}

moa_status moa_cuda_pack_rows(moa_cuda *c, const void *raw, size_t raw_row_bytes, int32_t row0, int32_t n_row,
                              const moa_dev_weight *w, moa_err *err) {
    const pack_job j = {static_cast<const uint8_t *>(raw), raw_row_bytes, {}, row0, n_row};
    switch ((int)w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: pack_launch<packed_##stem>(c, j, w); break;
        MOA_PACKED_MAP(X)
#undef X
    default: return NO_FORMAT(w);
    }
    MOA_LAUNCHED(c, "repacking of a weight");
    return MOA_OK;
}

template <typename F> static void largest_launch(moa_cuda *c, const moa_dev_weight *w, uint32_t *out) {
    const int64_t blocks = moa_ceil_div<int64_t>((int64_t)w->n_out * (w->n_in / 32), THREADS);
    const unsigned grid = (unsigned)(blocks < c->n_sm * 8 ? blocks : c->n_sm * 8);
    largest_v2<F><<<grid, THREADS, 0, c->stream>>>(view_of<F>(w), w->n_out, out);
}

template <typename WORD>
static void largest_plain_launch(moa_cuda *c, const moa_dev_weight *w, uint32_t *out) {
    const unsigned grid = (unsigned)c->n_sm * 8;
    const int64_t n = (int64_t)w->n_out * w->n_in;
    const WORD *data = static_cast<const WORD *>(w->data);
    largest_plain_v2<WORD><<<grid, THREADS, 0, c->stream>>>(data, n, out);
}

moa_status moa_cuda_pack_largest(moa_cuda *c, const moa_dev_weight *w, uint32_t *most, moa_err *err) {
    switch ((int)w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: largest_launch<packed_##stem>(c, w, most); break;
        MOA_PACKED_MAP(X)
#undef X
    case moa_bf16_id: largest_plain_launch<uint16_t>(c, w, most); break;
    case moa_f32_id: largest_plain_launch<uint32_t>(c, w, most); break;
    default: return MOA_OK; /* F16 is multiplied as it is */
    }
    MOA_LAUNCHED(c, "largest weight of a matrix");
    return MOA_OK;
}

void moa_cuda_pack_scale(moa_dev_weight *w, uint32_t most) {
    w->f16_scale = 1;
    if (most == 0 || most >= 0x7f800000u) return; /* a file with infinite weights gets infinite results */
    int e = (int)(most >> 23) - 127;
    if (e < -60) e = -60;
    const uint32_t scale = (uint32_t)(127 + 10 - e) << 23;
    memcpy(&w->f16_scale, &scale, sizeof scale);
}

template <typename F> static void unpack_launch(moa_cuda *c, const moa_cuda_decode *d) {
    const unpack_job j = {view_of<F>(d->w),
                          d->w->n_out,
                          d->row0,
                          d->ids,
                          d->elem == MOA_ELEM_F16 ? d->w->f16_scale : 1.0f,
                          d->out};
    const dim3 grid((unsigned)d->n_row, (unsigned)moa_ceil_div(j.v.n_unit, THREADS));
    if (d->elem == MOA_ELEM_F32)
        unpack_v2<F, float><<<grid, THREADS, 0, c->stream>>>(j);
    else if (d->elem == MOA_ELEM_BF16)
        unpack_v2<F, __nv_bfloat16><<<grid, THREADS, 0, c->stream>>>(j);
    else
        unpack_v2<F, __half><<<grid, THREADS, 0, c->stream>>>(j);
}

moa_status moa_cuda_unpack(moa_cuda *c, const moa_cuda_decode *d, moa_err *err) {
    switch ((int)d->w->type) {
#define X(stem)                                                                                              \
    case moa_##stem##_id: unpack_launch<packed_##stem>(c, d); break;
        MOA_PACKED_MAP(X)
#undef X
    default: return NO_FORMAT(d->w);
    }
    MOA_LAUNCHED(c, "decoding of a weight");
    return MOA_OK;
}
