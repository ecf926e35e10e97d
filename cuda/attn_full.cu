/* attn_full.cu -- causal attention of a whole sequence, dense or under spans, its gradients and the influence of its keys, by panels.
 *
 * A panel is some rows of queries of ALL heads against all keys they see; cuBLAS makes the products, batched over the KV heads, a
 * call for each query head of the group; the kernels between them go through the panel once.
 *
 *                 keys 0 .. n_key              products (heads h = kv * group + u, batched over kv)       between them
 *   queries      +---------------+
 *   first ..     |  S then A     |   x heads   S = scale Q K^T                         attn_full          softmax_v1     O = A V
 *   first+n_row  |  G then dS    |             S, G = dO V^T      dQ = dS K            attn_bwd           gradients_v1
 *                +---------------+                                dK += dS^T Q, dV += A^T dO
 *                                              S, G                                    attn_influence     rows_v1, blocks_v1, curves_v1
 *
 * Influence: rows_v1 sums each row by blocks of 64 keys: mass A, gain A G, E, |E|; an entry above 1/2 (at most one a row) is left out
 * and comes back in the form that does not cancel. blocks_v1 sums 64 rows to a block of the map and walks the windows outward from the
 * diagonal; curves_v1 sums the panels' curves. Everything in a fixed order: the same bits every time.
 * Under spans the products stay whole; the kernels between them give keys that are not seen A = 0, and in rows_v1 an A of their own, which
 * counts in the windows alone.
 * Memory: two panels, at most PANEL_BYTES unless 64 rows need more: O(n_tok), never n_tok x n_tok.
 *
 *   version   idea                                          H100
 *   v1        panels by cuBLAS, float32 (tf32 on request)   not timed alone
 *   v2        on Hopper GPUs: attn_full_wgmma.cu            docs/measurements/2026-11-24-h100-profile.md */
#include "cuda/attn_full.cuh"

enum { BLOCK = MOA_PAGE_TOK, THREADS = 256, WARPS = THREADS / 32, ROWS_MAX = 512 };
static const size_t PANEL_BYTES = (size_t)512 << 20;

struct panel {
    moa_full in;
    int32_t group, nb, pad; /* pad: keys of a row of the panel: nb * 64 */
    int32_t rows;           /* most of a panel, a multiple of 64 */
    int32_t first, n_row, n_key;
    float *a, *g; /* (n_head, rows, pad) */
};

/* of one row of one head, in a panel */
struct row_sums {
    float *mass, *gain, *e, *abs_e; /* (n_head, rows, nb) */
    float2 *seen;                   /* (n_head, rows): mass and gain of the keys that the row sees; used under spans */
    int32_t *clamped;               /* (n_head, rows): 0 or 1 */
    float *curve;                   /* (n_head, nb, nb + 1): of each block of queries */
};

/* --- kernels --------------------------------------------------------------------------------------------- */

/* block: row (x) of head (y) */
struct place {
    int h, r, i;
    int64_t row;  /* (n_tok, n_head) */
    int64_t at;   /* of the panel */
    int end;      /* keys of the panel's products: those from i + 1 to end are to be 0 */
    int span;
};
__device__ static inline place place_of(const panel &p) {
    place x;
    x.h = blockIdx.y, x.r = blockIdx.x, x.i = p.first + x.r;
    x.row = (int64_t)x.i * p.in.n_head + x.h;
    x.at = ((int64_t)x.h * p.rows + x.r) * p.pad;
    x.end = p.n_key;
    x.span = p.in.span ? p.in.span[x.h] : INT32_MAX;
    return x;
}
__device__ static inline bool sees(const place &x, int j) {
    return moa_sees(x.span, x.i, j);
}

__device__ static inline float block_max(float x, float *s) {
    x = group_max<32>(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = x;
    __syncthreads();
    return group_max<32>(threadIdx.x % 32 < blockDim.x / 32 ? s[threadIdx.x % 32] : -INFINITY);
}

__global__ static void __launch_bounds__(THREADS) softmax_v1(panel p, float *__restrict__ lse) {
    __shared__ float s[32];
    const place x = place_of(p);
    float *a = p.a + x.at, max = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j <= x.i; j += THREADS)
        if (sees(x, j)) max = fmaxf(max, a[j]);
    max = block_max(max, s);
    for (int j = threadIdx.x; j <= x.i; j += THREADS) {
        const float e = sees(x, j) ? expf(a[j] - max) : 0.0f;
        a[j] = e;
        sum += e;
    }
    sum = block_sum(sum, s);
    const float inverse = 1.0f / sum;
    for (int j = threadIdx.x; j < x.end; j += THREADS)
        a[j] = j <= x.i ? a[j] * inverse : 0.0f; /* its own elements: no wait is needed */
    if (threadIdx.x == 0) lse[x.row] = max + logf(sum);
}

/* sum over the keys of A G: dO . O */
__device__ static inline float delta_of(const panel &p, const place &x, const float *o, const float *d_o, float *s) {
    float sum = 0;
    for (int d = threadIdx.x; d < p.in.d_head; d += THREADS)
        sum += o[x.row * p.in.d_head + d] * d_o[x.row * p.in.d_head + d];
    return block_sum(sum, s);
}

/* S and G become A and dS */
__global__ static void __launch_bounds__(THREADS) gradients_v1(panel p, const float *__restrict__ lse,
                                                               const float *__restrict__ o, const float *__restrict__ d_o) {
    __shared__ float s[32];
    const place x = place_of(p);
    float *a = p.a + x.at, *g = p.g + x.at;
    const float delta = delta_of(p, x, o, d_o, s), shift = lse[x.row];
    for (int j = threadIdx.x; j < x.end; j += THREADS) {
        const bool seen = sees(x, j); /* not beyond i either */
        const float e = seen ? expf(a[j] - shift) : 0.0f;
        a[j] = e;
        g[j] = seen ? e * (g[j] - delta) * p.in.scale : 0.0f;
    }
}

/* A row's sums by blocks of 64 keys: a warp a block, two keys a lane */
__global__ static void __launch_bounds__(THREADS) rows_v1(panel p, row_sums t, const float *__restrict__ lse,
                                                          const float *__restrict__ o, const float *__restrict__ d_o) {
    __shared__ float s[32], peak_a, peak_g;
    __shared__ int peak_j;
    const place x = place_of(p);
    const float *a = p.a + x.at, *g = p.g + x.at;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_block = x.i / BLOCK + 1;
    const int64_t to = ((int64_t)x.h * p.rows + x.r) * p.nb;
    if (threadIdx.x == 0) peak_j = -1;
    const float delta = delta_of(p, x, o, d_o, s), shift = lse[x.row]; /* waits: peak_j is set */
    float rest_mass = 0, rest_gain = 0; /* seen, without the peak */
    bool far = false;                   /* a key that is not seen counts as less than it weighs */
    for (int b = warp; b < n_block; b += WARPS) {
        float mass = 0, gain = 0, e = 0, abs_e = 0, unseen_mass = 0, unseen_gain = 0;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int j = b * BLOCK + k * 32 + lane;
            if (j > x.i) continue;
            const float score = a[j] - shift, v = g[j];
            if (!sees(x, j)) {
                const float w = expf(fminf(score, (float)MOA_INFLUENCE_MOST));
                far = far || score > (float)MOA_INFLUENCE_MOST;
                unseen_mass += w, unseen_gain += w * v;
                continue;
            }
            const float w = expf(score);
            if (w > 0.5f && x.i > 0) { /* at most one thread of the block comes here */
                peak_j = j, peak_a = w, peak_g = v;
                continue;
            }
            const float q = x.i > 0 ? w / (1.0f - w) * (delta - v) : -v * w;
            mass += w, gain += w * v, e += q, abs_e += fabsf(q);
        }
        mass = warp_sum(mass), gain = warp_sum(gain), e = warp_sum(e), abs_e = warp_sum(abs_e);
        unseen_mass = warp_sum(unseen_mass), unseen_gain = warp_sum(unseen_gain);
        if (lane == 0) {
            t.mass[to + b] = mass + unseen_mass, t.gain[to + b] = gain + unseen_gain;
            t.e[to + b] = e, t.abs_e[to + b] = abs_e;
            rest_mass += mass, rest_gain += gain;
        }
    }
    rest_mass = block_sum(rest_mass, s);
    rest_gain = block_sum(rest_gain, s);
    far = __syncthreads_or(far);
    if (threadIdx.x != 0) return;
    bool ok = true;
    if (peak_j >= 0) {
        const int64_t b = to + peak_j / BLOCK;
        ok = rest_mass >= (float)MOA_INFLUENCE_TINY;
        const float q = ok ? peak_a * (rest_gain / rest_mass - peak_g) : 0.0f;
        t.mass[b] += peak_a, t.gain[b] += peak_a * peak_g, t.e[b] += q, t.abs_e[b] += fabsf(q);
        rest_mass += peak_a, rest_gain += peak_a * peak_g;
    }
    t.seen[(int64_t)x.h * p.rows + x.r] = make_float2(rest_mass, rest_gain);
    t.clamped[(int64_t)x.h * p.rows + x.r] = !ok || far;
}

/* over 64 threads, to all of them */
__device__ static inline double sum_64(double x, double *half) {
#pragma unroll
    for (int l = 16; l > 0; l /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, l);
    if (threadIdx.x % 32 == 0) half[threadIdx.x / 32] = x;
    __syncthreads();
    x = half[0] + half[1];
    __syncthreads();
    return x;
}

/* 64 threads: block of queries (x, within the panel) of head (y) */
__global__ static void __launch_bounds__(BLOCK) blocks_v1(panel p, row_sums t, float *__restrict__ abs_out,
                                                          float *__restrict__ sum_out, int32_t *clamped) {
    __shared__ double half[2];
    const int h = blockIdx.y, qb = p.first / BLOCK + (int)blockIdx.x, r0 = (int)blockIdx.x * BLOCK;
    const int n_row = min(BLOCK, p.n_row - r0), r = threadIdx.x, lane = threadIdx.x % 32;
    const int64_t rows = ((int64_t)h * p.rows + r0) * p.nb, out = ((int64_t)h * p.nb + qb) * p.nb;
    for (int b = threadIdx.x; b < p.nb; b += BLOCK) {
        float e = 0, abs_e = 0;
        for (int k = 0; k < n_row && b <= qb; k++) {
            e += t.e[rows + (int64_t)k * p.nb + b];
            abs_e += t.abs_e[rows + (int64_t)k * p.nb + b];
        }
        sum_out[out + b] = e;
        abs_out[out + b] = abs_e;
    }
    /* a thread a row: the windows, from the row's own block back */
    const float *mass = t.mass + rows + (int64_t)r * p.nb, *gain = t.gain + rows + (int64_t)r * p.nb;
    float *curve = t.curve + ((int64_t)h * p.nb + qb) * (p.nb + 1);
    const bool inside = r < n_row;
    bool ok = true;
    double all = 0, all_gain = 0;
    for (int b = 0; inside && b <= qb; b++)
        all += mass[b], all_gain += gain[b];
    const place x = {h, r, p.first + r0 + r, 0, 0, 0, p.in.span ? p.in.span[h] : INT32_MAX};
    const bool cut = inside && moa_n_seen(x.span, x.i) <= x.i; /* the row does not see everything as it is */
    const float2 seen = cut ? t.seen[(int64_t)h * p.rows + r0 + r] : make_float2(1, 0);
    const double delta = !inside ? 0 : cut ? (double)seen.y / seen.x : all_gain / all;
    const double wide = sum_64(cut ? all_gain / all - delta : 0, half); /* of windows that cut nothing */
    double kept = inside ? mass[0] : 0, kept_gain = inside ? gain[0] : 0;
    for (int w = 0; w <= p.nb; w++) {
        const int b = qb - w + 1; /* the block that this window adds; nothing is cut when it is the first or second */
        double change = 0;
        if (w >= 1 && b > 1 && inside) {
            kept += mass[b];
            kept_gain += gain[b];
            ok = ok && kept >= MOA_INFLUENCE_TINY;
            change = kept_gain / fmax(kept, MOA_INFLUENCE_TINY) - delta;
        }
        if (w >= 1 && b > 1) change = sum_64(change, half); /* the same for all threads */
        if (threadIdx.x == 0) curve[w] = (float)(w < 1 ? 0 : b > 1 ? change : wide);
    }
    const bool bad = inside && (!ok || t.clamped[(int64_t)h * p.rows + r0 + r]);
    const int n_bad = __popc(__ballot_sync(0xffffffffu, bad));
    if (lane == 0 && n_bad > 0) atomicAdd(clamped, n_bad);
}

/* joint (n_head, nb + 1): the curves of all blocks of queries */
__global__ static void curves_v1(const float *__restrict__ curve, float *__restrict__ joint, int nb) {
    const int h = blockIdx.x;
    for (int w = threadIdx.x; w <= nb; w += blockDim.x) {
        double sum = 0;
        for (int qb = 0; qb < nb; qb++)
            sum += curve[((int64_t)h * nb + qb) * (nb + 1) + w];
        joint[(int64_t)h * (nb + 1) + w] = (float)sum;
    }
}

/* --- products -------------------------------------------------------------------------------------------- */

/* what of a (n_tok, heads, d_head) array a product takes */
static int64_t of_queries(const panel &p, int u) {
    return (int64_t)p.first * p.in.n_head * p.in.d_head + (int64_t)u * p.in.d_head;
}

/* to = factor X Y^T: x queries of the panel (n_tok, n_head, d_head), y keys (n_tok, n_head_kv, d_head), to a panel */
static moa_status against_keys(moa_cuda *c, const panel &p, float factor, const float *x, const float *y, float *to,
                               moa_err *err) {
    const int64_t d = p.in.d_head, plane = (int64_t)p.rows * p.pad;
    for (int u = 0; u < p.group; u++) {
        moa_cuda_product m = {};
        m.m = p.n_row, m.n = p.n_key, m.k = p.in.d_head, m.batch = p.in.n_head_kv;
        m.a = x + of_queries(p, u), m.lda = p.in.n_head * d, m.a_stride = p.group * d;
        m.b = y, m.ldb = p.in.n_head_kv * d, m.b_stride = d, m.b_across = true;
        m.c = to + u * plane, m.ldc = p.pad, m.c_stride = p.group * plane;
        m.alpha = factor, m.beta = 0;
        MOA_RETURN(moa_cuda_multiply(c, &m, err));
    }
    return MOA_OK;
}

/* to (queries of the panel) = M Y */
static moa_status times_keys(moa_cuda *c, const panel &p, const float *from, const float *y, float *to, moa_err *err) {
    const int64_t d = p.in.d_head, plane = (int64_t)p.rows * p.pad;
    for (int u = 0; u < p.group; u++) {
        moa_cuda_product m = {};
        m.m = p.n_row, m.n = p.in.d_head, m.k = p.n_key, m.batch = p.in.n_head_kv;
        m.a = from + u * plane, m.lda = p.pad, m.a_stride = p.group * plane;
        m.b = y, m.ldb = p.in.n_head_kv * d, m.b_stride = d;
        m.c = to + of_queries(p, u), m.ldc = p.in.n_head * d, m.c_stride = p.group * d;
        m.alpha = 1, m.beta = 0;
        MOA_RETURN(moa_cuda_multiply(c, &m, err));
    }
    return MOA_OK;
}

/* to (keys) += M^T X, the heads of a group one after the other */
static moa_status add_transposed(moa_cuda *c, const panel &p, const float *from, const float *x, float *to,
                                 moa_err *err) {
    const int64_t d = p.in.d_head, plane = (int64_t)p.rows * p.pad;
    for (int u = 0; u < p.group; u++) {
        moa_cuda_product m = {};
        m.m = p.n_key, m.n = p.in.d_head, m.k = p.n_row, m.batch = p.in.n_head_kv;
        m.a = from + u * plane, m.lda = p.pad, m.a_stride = p.group * plane, m.a_across = true;
        m.b = x + of_queries(p, u), m.ldb = p.in.n_head * d, m.b_stride = p.group * d;
        m.c = to, m.ldc = p.in.n_head_kv * d, m.c_stride = d;
        m.alpha = 1, m.beta = 1;
        MOA_RETURN(moa_cuda_multiply(c, &m, err));
    }
    return MOA_OK;
}

/* --- operations ------------------------------------------------------------------------------------------ */

static char *take(char *base, size_t *used, size_t bytes) {
    char *at = base ? base + *used : nullptr;
    *used += (bytes + 255) & ~(size_t)255;
    return at;
}

static size_t lay(panel &p, row_sums *t, char *base) {
    const size_t heads = (size_t)p.in.n_head, nb = (size_t)p.nb, rows = heads * (size_t)p.rows;
    const size_t plane = sizeof(float) * rows * (size_t)p.pad;
    size_t used = 0;
    p.a = reinterpret_cast<float *>(take(base, &used, plane));
    p.g = reinterpret_cast<float *>(take(base, &used, plane));
    if (!t) return used;
    t->mass = reinterpret_cast<float *>(take(base, &used, sizeof(float) * rows * nb));
    t->gain = reinterpret_cast<float *>(take(base, &used, sizeof(float) * rows * nb));
    t->e = reinterpret_cast<float *>(take(base, &used, sizeof(float) * rows * nb));
    t->abs_e = reinterpret_cast<float *>(take(base, &used, sizeof(float) * rows * nb));
    t->seen = reinterpret_cast<float2 *>(take(base, &used, sizeof(float2) * rows));
    t->clamped = reinterpret_cast<int32_t *>(take(base, &used, sizeof(int32_t) * rows));
    t->curve = reinterpret_cast<float *>(take(base, &used, sizeof(float) * heads * nb * (nb + 1)));
    return used;
}

/* the panels of a sequence, scratch taken */
static moa_status prepare(moa_cuda *c, const moa_full &in, panel &p, row_sums *t, moa_err *err) {
    void *base = nullptr;
    p = panel();
    p.in = in;
    p.group = in.n_head / in.n_head_kv;
    p.nb = (in.n_tok - 1) / BLOCK + 1;
    p.pad = p.nb * BLOCK;
    const size_t row_bytes = 2 * sizeof(float) * (size_t)in.n_head * (size_t)p.pad;
    const size_t fit = PANEL_BYTES / row_bytes / BLOCK * BLOCK, most = p.nb < 32 ? ROWS_MAX / 2 : ROWS_MAX;
    p.rows = fit < BLOCK ? BLOCK : fit < most ? (int32_t)fit : (int32_t)most;
    if (p.rows > p.pad) p.rows = p.pad;
    MOA_RETURN(moa_cuda_scratch(c, lay(p, t, nullptr), &base, err));
    (void)lay(p, t, static_cast<char *>(base));
    return MOA_OK;
}

static void aim(panel &p, int32_t first) {
    p.first = first;
    p.n_row = p.in.n_tok - first < p.rows ? p.in.n_tok - first : p.rows;
    p.n_key = first + p.n_row;
}

static dim3 row_grid(const panel &p) {
    return dim3((unsigned)p.n_row, (unsigned)p.in.n_head);
}

moa_status moa_cuda_attn_full(moa_backend *b, const moa_args_attn_full *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    panel p;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->in.n_tok <= 0) return MOA_OK;
#ifdef MOA_CUDA_HOPPER
    if (moa_cuda_full_wgmma_takes(c, &a->in)) return moa_cuda_full_wgmma(c, a, err);
#endif
    MOA_RETURN(prepare(c, a->in, p, nullptr, err));
    for (int32_t first = 0; first < a->in.n_tok; first += p.rows) {
        aim(p, first);
        MOA_RETURN(against_keys(c, p, a->in.scale, a->in.q, a->in.k, p.a, err));
        softmax_v1<<<row_grid(p), THREADS, 0, c->stream>>>(p, a->lse);
        MOA_LAUNCHED(c, "softmax of a panel");
        MOA_RETURN(times_keys(c, p, p.a, a->in.v, a->o, err));
    }
    return MOA_OK;
}

moa_status moa_cuda_attn_bwd(moa_backend *b, const moa_args_attn_bwd *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    [[maybe_unused]] const moa_cuda_half kept = c->half;
    panel p;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->in.n_tok <= 0) return MOA_OK;
#ifdef MOA_CUDA_HOPPER
    if (moa_cuda_full_wgmma_takes(c, &a->in)) return moa_cuda_full_wgmma_bwd(c, a, &kept, err);
#endif
    MOA_RETURN(prepare(c, a->in, p, nullptr, err));
    const size_t kv_bytes = sizeof(float) * (size_t)a->in.n_tok * (size_t)a->in.n_head_kv * (size_t)a->in.d_head;
    MOA_CU(c, cudaMemsetAsync(a->dk, 0, kv_bytes, c->stream));
    MOA_CU(c, cudaMemsetAsync(a->dv, 0, kv_bytes, c->stream));
    for (int32_t first = 0; first < a->in.n_tok; first += p.rows) {
        aim(p, first);
        MOA_RETURN(against_keys(c, p, a->in.scale, a->in.q, a->in.k, p.a, err));
        MOA_RETURN(against_keys(c, p, 1, a->d_o, a->in.v, p.g, err));
        gradients_v1<<<row_grid(p), THREADS, 0, c->stream>>>(p, a->lse, a->o, a->d_o);
        MOA_LAUNCHED(c, "gradients of a panel");
        MOA_RETURN(times_keys(c, p, p.g, a->in.k, a->dq, err));
        MOA_RETURN(add_transposed(c, p, p.g, a->in.q, a->dk, err));
        MOA_RETURN(add_transposed(c, p, p.a, a->d_o, a->dv, err));
    }
    return MOA_OK;
}

moa_status moa_cuda_attn_influence(moa_backend *b, const moa_args_attn_influence *a, moa_err *err) {
    moa_cuda *c = moa_cuda_self(b);
    panel p;
    row_sums t;
    MOA_RETURN(moa_cuda_enter_op(c, err));
    if (a->in.n_tok <= 0) return MOA_OK;
#ifdef MOA_CUDA_HOPPER
    if (moa_cuda_full_wgmma_takes(c, &a->in)) return moa_cuda_full_wgmma_influence(c, a, err);
#endif
    MOA_RETURN(prepare(c, a->in, p, &t, err));
    for (int32_t first = 0; first < a->in.n_tok; first += p.rows) {
        aim(p, first);
        MOA_RETURN(against_keys(c, p, a->in.scale, a->in.q, a->in.k, p.a, err));
        MOA_RETURN(against_keys(c, p, 1, a->d_o, a->in.v, p.g, err));
        rows_v1<<<row_grid(p), THREADS, 0, c->stream>>>(p, t, a->lse, a->o, a->d_o);
        MOA_LAUNCHED(c, "influence of a panel");
        const dim3 grid((unsigned)moa_ceil_div(p.n_row, (int32_t)BLOCK), (unsigned)p.in.n_head);
        blocks_v1<<<grid, BLOCK, 0, c->stream>>>(p, t, a->abs, a->sum, a->clamped);
        MOA_LAUNCHED(c, "influence by blocks");
    }
    curves_v1<<<(unsigned)p.in.n_head, THREADS, 0, c->stream>>>(t.curve, a->joint, p.nb);
    MOA_LAUNCHED(c, "influence by windows");
    return MOA_OK;
}
