/* cuda_common.cuh -- what the files of the CUDA backend share.
 *
 *   one device, one stream       every operation is a launch on it and returns at once; download() and sync() wait
 *   one scratch block            partial results of split work. Operations run in order, so all of them use the same bytes. It is
 *                                made when the backend opens and grown only when an operation asks for more; a grown-out
 *                                block lives until close(), because a recording may still point into it
 *   errors                       MOA_CU() turns a CUDA code into a moa_status with the CUDA text. A sticky one (illegal address,
 *                                launch failure) poisons the process's context for good: the backend remembers it and
 *                                every later call fails with the first reason; only a new engine process cures it
 *
 * Kernels stand above their launchers; a launcher ends with MOA_LAUNCHED(). */
#ifndef MOA_CUDA_COMMON_CUH
#define MOA_CUDA_COMMON_CUH

#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "core/engine/backend.h"

/* --- host side ------------------------------------------------------------------------------------------ */

struct moa_cuda_block; /* one allocation, in the backend's list */

/* A weight on the device. A matrix keeps its rows as stored, or is repacked when it is loaded (packed.cuh); a vector (n_out == 1) is
 * decoded to float32 then. */
struct moa_dev_weight {
    moa_dtype type;
    int32_t n_out, n_in;
    size_t row_bytes;
    void *data; /* device, n_out * row_bytes; packed: moa_cuda_packed_bytes() */
    bool packed;
    float f16_scale; /* v2: the power of two that the weights are multiplied with where they become float16 */
    moa_dev_weight *prev, *next;
};

enum moa_cuda_gemm { MOA_GEMM_F32, MOA_GEMM_TF32, MOA_GEMM_BF16, MOA_GEMM_F16 };
enum moa_cuda_elem { MOA_ELEM_F32, MOA_ELEM_BF16, MOA_ELEM_F16 }; /* F16: times the weight's f16_scale */

/* the x that the workspace holds as float16; any call but the product that reads it forgets it */
struct moa_cuda_half {
    const float *x;
    const void *space;
    int32_t n_tok, n_in;
};

enum { MOA_STAGE_SLOTS = 16, MOA_STAGE_BYTES = 64 << 10 };
enum { MOA_N_TICKET = 16384 };

typedef struct moa_cuda {
    moa_backend base;
    int device, n_sm;
    char name[80];
    cudaStream_t stream;
    cublasHandle_t blas;
    void *blas_space;       /* device: cuBLAS's own workspace, so that its calls can be recorded */
    moa_cuda_gemm gemm;     /* precision of the matrix product of a prefill */
    int matmul, few_max;    /* version of the products, 1 or 2; 2: most rows of x without cuBLAS */
    bool precise;           /* $MOASCOPE_CUDA_PRECISE: float32 throughout, unless another word says otherwise */
    moa_cuda_half half;
    moa_cuda_block *blocks; /* everything allocated */
    moa_dev_weight *weights;
    void *scratch;
    size_t scratch_bytes;
    int *ticket; /* device (MOA_N_TICKET): counters of kernels that find out which block comes last; 0 between launches */
    char *stage; /* pinned host memory: small uploads go through it, so that they need not wait */
    cudaEvent_t stage_free[MOA_STAGE_SLOTS];
    int stage_next;
    struct moa_cuda_pump *pump;     /* what larger uploads go through (upload.cu), made by the first */
    struct moa_cuda_scales *scales; /* of weights whose largest is still to be told (module.cu) */
    bool recording;
    struct moa_cuda_recording *recordings;
    bool lost; /* a sticky error: nothing works any more */
    char lost_text[256];
    int64_t n_op, fault_at; /* MOA_FAULT: at which operation to break, -1: never */
    int fault;
} moa_cuda;

static inline moa_cuda *moa_cuda_self(moa_backend *b) {
    return reinterpret_cast<moa_cuda *>(b);
}

/* Says what failed; marks the backend lost when the error is sticky. E_MEMORY for cudaErrorMemoryAllocation. */
moa_status moa_cuda_fail(moa_cuda *c, cudaError_t e, const char *what, moa_err *err);
/* Bytes of any number to the device, in order with the stream; host may be reused on return. */
moa_status moa_cuda_pump_send(moa_cuda *c, void *dst, const void *host, size_t bytes, moa_err *err);
void moa_cuda_pump_close(moa_cuda *c);

/* First thing of every call: fails when the device is lost, and makes it this thread's current device. */
moa_status moa_cuda_enter(moa_cuda *c, moa_err *err);
/* The same for an operation: counts it (fault injection of tests). */
moa_status moa_cuda_enter_op(moa_cuda *c, moa_err *err);
/* bytes of scratch, 256-byte aligned, shared by all operations; content undefined */
moa_status moa_cuda_scratch(moa_cuda *c, size_t bytes, void **out, moa_err *err);

#define MOA_CU(c, call)                                                                                      \
    do {                                                                                                     \
        const cudaError_t cu_error_ = (call);                                                                \
        if (cu_error_ != cudaSuccess) return moa_cuda_fail(c, cu_error_, #call, err);                        \
    } while (0)
#define MOA_LAUNCHED(c, name)                                                                                \
    do {                                                                                                     \
        const cudaError_t cu_error_ = cudaGetLastError();                                                    \
        if (cu_error_ != cudaSuccess) return moa_cuda_fail(c, cu_error_, name, err);                         \
    } while (0)
#define MOA_RETURN(call)                                                                                     \
    do {                                                                                                     \
        const moa_status status_ = (call);                                                                   \
        if (status_ != MOA_OK) return status_;                                                               \
    } while (0)

#define X(name, text)                                                                                        \
    moa_status moa_cuda_##name(moa_backend *b, const struct moa_args_##name *a, moa_err *err);
MOA_OP_MAP(X)
MOA_FUSED_MAP(X)
#undef X

/* rows row0 .. row0 + n_row - 1 of a matrix as float32, bfloat16 or float16, (n_row, n_in); any type */
moa_status moa_cuda_decode_rows(moa_cuda *c, const moa_dev_weight *w, int32_t row0, int32_t n_row, void *out,
                                moa_cuda_elem elem, moa_err *err);

template <typename T> static inline T moa_ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

/* a kernel that needs more than 48 KB of shared memory must be told so once; cheap enough to be told each time */
template <typename K> static inline cudaError_t moa_allow_shared(K kernel, size_t bytes) {
    if (bytes <= 48 << 10) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

/* --- device side ---------------------------------------------------------------------------------------- */

template <int WIDTH> __device__ static inline float group_sum(float x) {
#pragma unroll
    for (int lane = WIDTH / 2; lane > 0; lane /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}
template <int WIDTH> __device__ static inline float group_max(float x) {
#pragma unroll
    for (int lane = WIDTH / 2; lane > 0; lane /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}
__device__ static inline float warp_sum(float x) {
    return group_sum<32>(x);
}

/* sum over a block of up to 1024 threads, the same on all of them; s: 32 floats of shared memory */
__device__ static inline float block_sum(float x, float *s) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? s[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

/* 8 consecutive elements of the KV cache, 16-byte aligned */
__device__ static inline void load8(const __half *p, float out[8]) {
    const uint4 raw = *reinterpret_cast<const uint4 *>(p);
    const __half2 *h = reinterpret_cast<const __half2 *>(&raw);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 f = __half22float2(h[i]);
        out[2 * i] = f.x;
        out[2 * i + 1] = f.y;
    }
}
__device__ static inline void load8(const float *p, float out[8]) {
    const float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

/* --- softmax states and what the probe keeps beside them ----------------------------------------------------------------
 * Of a set of keys: m = max s, l = sum e^(s-m), and, relative to the same m, t = sum e^(s-m) (s-m) for the entropy, the parts of l
 * that fall on the sink and inside the measured window, and the part weighted by distance. An empty set is m = -inf, all 0.
 *    entropy = log l - t/l        lse = m + log l        the others: divided by l */
struct moa_soft {
    float m, l;
};
struct moa_soft_stat {
    float t, sink, window, distance;
};

/* factor that brings sums relative to m_old to m_new; 0 for an empty set */
__device__ static inline float soft_factor(float m_old, float m_new) {
    return m_old == -INFINITY ? 0.0f : __expf(m_old - m_new);
}
/* moves s (whose l is l_old, relative to m_old) to m_new; factor as above */
__device__ static inline void stat_move(moa_soft_stat &s, float l_old, float m_old, float m_new,
                                        float factor) {
    s.t = factor == 0.0f ? 0.0f : factor * (s.t + l_old * (m_old - m_new));
    s.sink *= factor;
    s.window *= factor;
    s.distance *= factor;
}
__device__ static inline void stat_add(moa_soft_stat &s, const moa_soft_stat &x) {
    s.t += x.t;
    s.sink += x.sink;
    s.window += x.window;
    s.distance += x.distance;
}
/* one visible key: p = e^(s-m), x = s - m */
__device__ static inline void stat_key(moa_soft_stat &st, float p, float x, int i, int j,
                                       int measure_window) {
    if (p > 0.0f) st.t += p * x;
    if (j < MOA_SINK_TOK)
        st.sink += p;
    else if (i - j < measure_window)
        st.window += p;
    st.distance += p * (float)(i - j);
}
__device__ static inline void stat_write(float *out, const moa_soft &f, const moa_soft_stat &s) {
    const bool any = f.l > 0.0f;
    const float inv = any ? 1.0f / f.l : 0.0f;
    out[MOA_STAT_ENTROPY] = any ? fmaxf(logf(f.l) - s.t * inv, 0.0f) : 0.0f;
    out[MOA_STAT_SINK] = s.sink * inv;
    out[MOA_STAT_WINDOW] = s.window * inv;
    out[MOA_STAT_DISTANCE] = s.distance * inv;
    out[MOA_STAT_LSE] = any ? f.m + logf(f.l) : 0.0f;
}

/* --- the KV cache as kernels see it --------------------------------------------------------------------- */

template <typename T> struct moa_kv {
    T *pool;
    const int32_t *table;
    int64_t seq_stride;
    int32_t max_pages, d_head;

    /* K of the 64 tokens of a page, row-major; NULL: the page is gone, its keys are not there. V lies 64 * d_head further */
    __device__ T *page(int seq, int head_kv, int p) const {
        if (p >= max_pages) return nullptr;
        const int32_t at = table[seq * seq_stride + (int64_t)head_kv * max_pages + p];
        return at < 0 ? nullptr : pool + (int64_t)at * (2 * MOA_PAGE_TOK) * d_head;
    }
};
template <typename T> static inline moa_kv<T> moa_kv_of(const moa_kv_view *v) {
    moa_kv<T> kv = {static_cast<T *>(v->pool), v->table, v->table_seq_stride, v->max_pages, v->d_head};
    return kv;
}

#endif
