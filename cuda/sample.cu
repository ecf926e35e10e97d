/* sample.cu -- the next token of each row, chosen on the device: a step can follow a step without the host.
 *
 *   one block a row: each thread takes the best of its columns (ascending, so its first maximum stays), then a tree over the
 *   block in which the larger value wins and, of equal ones, the smaller id. Exact: comparisons only.
 *
 *   version   idea                            H100
 *   v1        as above, 1024 threads a row    not yet measured; 128,256 logits are 0.5 MB a row */
#include "cuda/cuda_common.cuh"

enum { ARGMAX_THREADS = 1024 };

struct pick {
    float value;
    int id; /* INT_MAX: nothing but -inf and NaN so far */
};

__device__ static inline pick better(pick a, pick b) {
    return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ static inline pick warp_best(pick p) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        const pick other = {__shfl_xor_sync(0xffffffffu, p.value, lane),
                            __shfl_xor_sync(0xffffffffu, p.id, lane)};
        p = better(p, other);
    }
    return p;
}

__global__ static void argmax_v1(moa_args_argmax a) {
    __shared__ pick s[ARGMAX_THREADS / 32];
    const int row = blockIdx.x, pos = a.pos[row];
    const float *x = a.logits + (int64_t)row * a.n_vocab;
    pick p = {-INFINITY, 0x7fffffff};
    if (pos < 0) return;
    for (int i = threadIdx.x; i < a.n_vocab; i += ARGMAX_THREADS)
        if (x[i] > p.value) p = {x[i], i};
    p = warp_best(p);
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = p;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    p = warp_best(s[threadIdx.x]);
    if (threadIdx.x != 0) return;
    const int id = p.id == 0x7fffffff ? 0 : p.id;
    bool done = pos + 1 >= a.limit[row];
    for (int i = 0; i < a.n_end; i++)
        done = done || a.end[i] == id;
    a.id[row] = id;
    a.log[(int64_t)row * a.log_stride + pos % a.log_stride] = id;
    a.pos[row] = done ? -1 : pos + 1;
}

moa_status moa_cuda_argmax(moa_backend *b, const moa_args_argmax *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_seq <= 0) return MOA_OK;
    argmax_v1<<<a->n_seq, ARGMAX_THREADS, 0, c->stream>>>(*a);
    MOA_LAUNCHED(c, "argmax");
    return MOA_OK;
}
