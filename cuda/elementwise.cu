/* elementwise.cu -- the operations that touch each element once: rmsnorm, rope, silu_mul, add, capture.
 *
 * All of them are bound by memory and, in a decode step, by the launch: what they do is a few kilobytes a token. They stay
 * separate and plain here; fusing them into their neighbours (norm into the product's prologue, rope and the append into its
 * epilogue) is what a faster step does, and is checked against these.
 *
 *   rmsnorm   one block a row, the row's squares summed in float32 over 256 threads
 *   rope      one block a token: the angles of its d/2 pairs once, for all heads. pos * frequency in double and reduced to
 *             [-pi, pi] before the float sine: at position 30,000 a float product is off by 2e-3 rad
 *   capture   copies; k is rounded to the cache's type first, so that maps show what was attended
 *
 *   version   idea                      H100, us a call
 *   v1        as above                  launch bound in decode; add of 1 GiB: 1146 us, 2811 GB/s            <- best */
#include "cuda/kv_types.cuh"

enum { THREADS = 256 };

/* --- rmsnorm -------------------------------------------------------------------------------------------- */

/* x, y (n_tok, n), w (n); y may be x: a thread reads its elements before it writes them */
__global__ static void rmsnorm_v1(const float *x, const float *__restrict__ w, float *y, int n, float eps) {
    __shared__ float s[32];
    x += (int64_t)blockIdx.x * n;
    y += (int64_t)blockIdx.x * n;
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        sum += x[i] * x[i];
    const float factor = rsqrtf(block_sum(sum, s) / (float)n + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[i] = x[i] * factor * w[i];
}

moa_status moa_cuda_rmsnorm(moa_backend *b, const moa_args_rmsnorm *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    rmsnorm_v1<<<a->n_tok, THREADS, 0, c->stream>>>(a->x, static_cast<const float *>(a->w->data), a->y, a->n,
                                                    a->eps);
    MOA_LAUNCHED(c, "rmsnorm");
    return MOA_OK;
}

/* --- rope ----------------------------------------------------------------------------------------------- */

struct rope_shape {
    int n_head, d_head, half;
    bool pairs;
    double log2_theta, scale;
};

/* x (n_tok, n_head, d_head), pos (n_tok), factors (half) or NULL; shared: cos (half), sin (half) */
__global__ static void rope_v1(float *x, const int32_t *__restrict__ pos, const float *__restrict__ factors,
                               rope_shape r) {
    extern __shared__ float turn[];
    for (int i = threadIdx.x; i < r.half; i += blockDim.x) {
        double angle = (double)pos[blockIdx.x] * r.scale * exp2(-(double)i / r.half * r.log2_theta);
        if (factors) angle /= (double)factors[i];
        const double turns = rint(angle * 0.15915494309189535);
        const float rest = (float)fma(-turns, 6.283185307179586, angle);
        sincosf(rest, &turn[r.half + i], &turn[i]);
    }
    __syncthreads();
    x += (int64_t)blockIdx.x * r.n_head * r.d_head;
    for (int k = threadIdx.x; k < r.n_head * r.half; k += blockDim.x) {
        const int i = k % r.half;
        float *u = x + (k / r.half) * r.d_head + (r.pairs ? 2 * i : i);
        float *v = r.pairs ? u + 1 : u + r.half;
        const float u0 = *u, v0 = *v, cosine = turn[i], sine = turn[r.half + i];
        *u = u0 * cosine - v0 * sine;
        *v = u0 * sine + v0 * cosine;
    }
}

moa_status moa_cuda_rope(moa_backend *b, const moa_args_rope *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0 || a->rope_dim < 2) return MOA_OK;
    const rope_shape r = {
        a->n_head,       a->d_head, a->rope_dim / 2, a->kind == MOA_ROPE_PAIRS, log2((double)a->theta),
        (double)a->scale};
    const float *factors = a->freq_factors ? static_cast<const float *>(a->freq_factors->data) : nullptr;
    const size_t shared = 2 * sizeof(float) * (size_t)r.half;
    rope_v1<<<a->n_tok, THREADS, shared, c->stream>>>(a->x, a->pos, factors, r);
    MOA_LAUNCHED(c, "rope");
    return MOA_OK;
}

/* --- silu_mul, add -------------------------------------------------------------------------------------- */

static int blocks_for(const moa_cuda *c, int64_t n) {
    const int64_t blocks = moa_ceil_div<int64_t>(n, THREADS), most = (int64_t)c->n_sm * 16;
    return (int)(blocks < most ? blocks : most);
}

/* gate * sigmoid(gate) * up. With h = e^(-|gate|/2) nothing overflows, and a tiny result is rounded once, at the end. */
__device__ static inline float silu_mul(float gate, float up) {
    const float h = expf(-0.5f * fabsf(gate)), rest = 1.0f + h * h;
    return gate < 0 ? gate * h / rest * (h * up) : gate / rest * up;
}

/* y may be gate or up */
__global__ static void silu_mul_v1(const float *gate, const float *up, float *y, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        y[i] = silu_mul(gate[i], up[i]);
    }
}

moa_status moa_cuda_silu_mul(moa_backend *b, const moa_args_silu_mul *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n <= 0) return MOA_OK;
    silu_mul_v1<<<blocks_for(c, a->n), THREADS, 0, c->stream>>>(a->gate, a->up, a->y, a->n);
    MOA_LAUNCHED(c, "silu_mul");
    return MOA_OK;
}

__global__ static void add_v1(const float *x, float *y, int64_t n) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)
        y[i] += x[i];
}

moa_status moa_cuda_add(moa_backend *b, const moa_args_add *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n <= 0) return MOA_OK;
    add_v1<<<blocks_for(c, a->n), THREADS, 0, c->stream>>>(a->x, a->y, a->n);
    MOA_LAUNCHED(c, "add");
    return MOA_OK;
}

/* --- capture -------------------------------------------------------------------------------------------- */

/* rows (n_tok, n_head, d_head) -> out (n_head, max_tok, d_head) at row pos[t]; block (t, h); positions outside are skipped */
__global__ static void capture_v1(const float *__restrict__ rows, float *__restrict__ out,
                                  const int32_t *__restrict__ pos, int n_head, int d_head, int max_tok,
                                  moa_kv_type type) {
    const int t = blockIdx.x, h = blockIdx.y, at = pos[t];
    if (at < 0 || at >= max_tok) return;
    const float *from = rows + ((int64_t)t * n_head + h) * d_head;
    float *to = out + ((int64_t)h * max_tok + at) * d_head;
    for (int i = threadIdx.x; i < d_head; i += blockDim.x)
        to[i] = type == MOA_KV_F16    ? __half2float(__float2half_rn(from[i]))
                : type == MOA_KV_BF16 ? __bfloat162float(__float2bfloat16_rn(from[i]))
                                      : from[i];
}

/* the same of k in a cache of q8: read back from its pages; a page that is not there leaves its rows alone */
__global__ static void capture_q8(moa_kv<moa_q8> kv, float *__restrict__ out, const int32_t *__restrict__ pos,
                                  int max_tok) {
    const int t = blockIdx.x, h = blockIdx.y, at = pos[t], d_head = kv.d_head;
    if (at < 0 || at >= max_tok) return;
    const moa_q8 *page = kv.page(0, h, at / MOA_PAGE_TOK);
    if (!page) return;
    const uint8_t *exponents = reinterpret_cast<const uint8_t *>(page) + moa_kv_k_exponent_at(d_head);
    float *to = out + ((int64_t)h * max_tok + at) * d_head;
    for (int i = threadIdx.x; i < d_head; i += blockDim.x)
        to[i] = moa_kv_k_value(page[at % MOA_PAGE_TOK * d_head + i].code, exponents[i]);
}

moa_status moa_cuda_capture(moa_backend *b, const moa_args_capture *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->n_tok <= 0) return MOA_OK;
    const dim3 q_grid((unsigned)a->n_tok, (unsigned)a->n_head),
        k_grid((unsigned)a->n_tok, (unsigned)a->n_head_kv);
    capture_v1<<<q_grid, 64, 0, c->stream>>>(a->q, a->cap_q, a->pos, a->n_head, a->d_head, a->max_tok, MOA_KV_F32);
    MOA_LAUNCHED(c, "capture of q");
    if (a->type == MOA_KV_Q8)
        capture_q8<<<k_grid, 64, 0, c->stream>>>(moa_kv_of<moa_q8>(&a->kv), a->cap_k, a->pos, a->max_tok);
    else
        capture_v1<<<k_grid, 64, 0, c->stream>>>(a->k, a->cap_k, a->pos, a->n_head_kv, a->d_head, a->max_tok,
                                                 a->type);
    MOA_LAUNCHED(c, "capture of k");
    return MOA_OK;
}
