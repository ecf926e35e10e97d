/* sample.cu -- the next token of each row, chosen on the device: a step can follow a step without the host.
 *
 *   Of equal logits the smaller id wins; NaN and -inf never do. Only comparisons: exact, whatever the order.
 *
 *   version   idea                                                      H100
 *   v1        one block a row, a tree over its threads                  one multiprocessor reads the row: for short ones
 *   v2        a row in stretches of 4096, one block each, their best    not yet measured; 128,256 logits are 0.5 MB a row
 *             to the workspace; then a warp a row                       */
#include "cuda/cuda_common.cuh"

enum { V1_THREADS = 1024, V2_THREADS = 256, STRETCH = 4096, NONE = 0x7fffffff };

struct pick {
    float value;
    int id; /* NONE: nothing but -inf and NaN so far */
};

__device__ static inline pick better(pick a, pick b) {
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ static inline pick warp_best(pick p) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        const float value = __shfl_xor_sync(0xffffffffu, p.value, lane);
        const int id = __shfl_xor_sync(0xffffffffu, p.id, lane);
        p = better(p, pick{value, id});
    }
    return p;
}

/* on the first warp; s: one pick a warp */
__device__ static inline pick block_best(pick p, pick *s) {
    p = warp_best(p);
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = p;
    __syncthreads();
    p = threadIdx.x < blockDim.x / 32 ? s[threadIdx.x] : pick{-INFINITY, NONE};
    return warp_best(p);
}

/* one thread a row: the id is known, the row moves on */
__device__ static inline void move_on(const moa_args_argmax &a, int row, int pos, int best) {
    const int id = best == NONE ? 0 : best;
    bool done = pos + 1 >= a.limit[row];
    for (int i = 0; i < a.n_end; i++)
        done = done || a.end[i] == id;
    a.id[row] = id;
    a.log[(int64_t)row * a.log_stride + pos % a.log_stride] = id;
    a.pos[row] = done ? -1 : pos + 1;
}

/* columns of a thread ascend, so that its first maximum stays */
__global__ static void argmax_v1(moa_args_argmax a) {
    __shared__ pick s[V1_THREADS / 32];
    const int row = blockIdx.x, pos = a.pos[row];
    const float *x = a.logits + (int64_t)row * a.n_vocab;
    pick p = {-INFINITY, NONE};
    if (pos < 0) return;
    for (int i = threadIdx.x; i < a.n_vocab; i += V1_THREADS)
        if (x[i] > p.value) p = pick{x[i], i};
    p = block_best(p, s);
    if (threadIdx.x == 0) move_on(a, row, pos, p.id);
}

/* block (stretch, row) -> found (n_seq, n_stretch); four: rows are 16-byte aligned */
template <bool FOUR> __global__ static void argmax_v2_stretch(moa_args_argmax a, pick *found) {
    __shared__ pick s[V2_THREADS / 32];
    const int row = blockIdx.y, first = blockIdx.x * STRETCH;
    const int end = min(first + STRETCH, a.n_vocab);
    const float *x = a.logits + (int64_t)row * a.n_vocab;
    pick p = {-INFINITY, NONE};
    if (a.pos[row] < 0) return;
    if (FOUR) {
#pragma unroll 4
        for (int i = first + 4 * (int)threadIdx.x; i < end; i += 4 * V2_THREADS) {
            const float4 v = *reinterpret_cast<const float4 *>(x + i);
            if (v.x > p.value) p = pick{v.x, i};
            if (v.y > p.value) p = pick{v.y, i + 1};
            if (v.z > p.value) p = pick{v.z, i + 2};
            if (v.w > p.value) p = pick{v.w, i + 3};
        }
    } else {
        for (int i = first + (int)threadIdx.x; i < end; i += V2_THREADS)
            if (x[i] > p.value) p = pick{x[i], i};
    }
    p = block_best(p, s);
    if (threadIdx.x == 0) found[(int64_t)row * gridDim.x + blockIdx.x] = p;
}

/* one warp a row */
__global__ static void argmax_v2_row(moa_args_argmax a, const pick *found, int n_stretch) {
    const int row = blockIdx.x, pos = a.pos[row];
    pick p = {-INFINITY, NONE};
    if (pos < 0) return;
    for (int i = threadIdx.x; i < n_stretch; i += 32)
        p = better(p, found[(int64_t)row * n_stretch + i]);
    p = warp_best(p);
    if (threadIdx.x == 0) move_on(a, row, pos, p.id);
}

static moa_status in_stretches(moa_cuda *c, const moa_args_argmax *a, moa_err *err) {
    const int n_stretch = moa_ceil_div(a->n_vocab, (int)STRETCH);
    const bool four = a->n_vocab % 4 == 0 && reinterpret_cast<uintptr_t>(a->logits) % 16 == 0;
    const int rows_a_launch = 65535; /* of a grid's second dimension */
    void *found = nullptr;
    if (a->n_seq > rows_a_launch)
        return moa_fail(err, MOA_E_UNSUPPORTED, "argmax of %d rows; %d at most", a->n_seq, rows_a_launch);
    MOA_RETURN(moa_cuda_scratch(c, (size_t)a->n_seq * (size_t)n_stretch * sizeof(pick), &found, err));
    const dim3 grid(n_stretch, a->n_seq);
    if (four)
        argmax_v2_stretch<true><<<grid, V2_THREADS, 0, c->stream>>>(*a, static_cast<pick *>(found));
    else
        argmax_v2_stretch<false><<<grid, V2_THREADS, 0, c->stream>>>(*a, static_cast<pick *>(found));
    MOA_LAUNCHED(c, "argmax");
    argmax_v2_row<<<a->n_seq, 32, 0, c->stream>>>(*a, static_cast<const pick *>(found), n_stretch);
    MOA_LAUNCHED(c, "argmax");
    return MOA_OK;
}

moa_status moa_cuda_argmax(moa_backend *b, const moa_args_argmax *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_seq <= 0) return MOA_OK;
    if (a->n_vocab > STRETCH) return in_stretches(c, a, err);
    argmax_v1<<<a->n_seq, V1_THREADS, 0, c->stream>>>(*a);
    MOA_LAUNCHED(c, "argmax");
    return MOA_OK;
}
