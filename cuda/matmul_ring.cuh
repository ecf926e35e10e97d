/* matmul_ring.cuh -- products of 2 to 64 rows whose weights stream through shared memory (matmul_ring.cu), and what may follow them at
 * once: a bias, the residual, silu(gate) * up, rope and the way to the pages (fused_rows.cu).
 *
 *   rows     x of up to 64 rows, normalised or not, becomes float16 as the tensor cores read it; a launch
 *   ring     up to three matrices of one type with that x; a launch
 *
 * Both are launched early (launch.cuh) and let the next one come before they have waited, as fused.cu's kernels do. */
#ifndef MOA_CUDA_MATMUL_RING_CUH
#define MOA_CUDA_MATMUL_RING_CUH

#include "cuda/launch.cuh"
#include "cuda/matmul.cuh"

enum ring_kind { RING_PLAIN, RING_GATED, RING_Q, RING_K, RING_V };
enum { RING_MAX_TOK = 64, RING_LINES = 128, RING_MAX_PART = 3 };

struct ring_matrix {
    packed_view v;     /* plain types: low is the matrix */
    float scale, back; /* f16_scale, and what undoes it */
};
struct ring_part {
    ring_matrix a, b; /* b: `up` of RING_GATED, whose a is `gate` */
    const float *bias;
    float *y;              /* (n_tok, n_out); RING_V: not used */
    int n_out, lines, end; /* outputs a tile holds of it; tiles of this part and those before it */
    ring_kind kind;
};

/* rope and pages of q, k, v */
struct ring_heads {
    const float *factors; /* (half) or NULL */
    const int32_t *pos, *seq;
    float *turn;       /* (n_tok, 2 half): cosines, sines; made with x */
    uint8_t **page;    /* (n_tok, n_head_kv): where K of the token goes, or NULL; made with x */
    moa_kv<__half> kv; /* whatever the type: page() is not used */
    double log2_theta, scale;
    int half, d_head, n_head_kv;
    bool pairs;
    moa_kv_type kv_type; /* not q8 */
};

struct ring_x {
    const float *x, *norm; /* (n_tok, n_in), (n_in) or NULL */
    float eps;
    int n_tok, n_in;
};

struct ring_job {
    ring_part part[RING_MAX_PART];
    int n_part, n_tok, n_in, n_nt, n_step; /* n_nt: eights of rows; n_step: stages of a row */
    int split;                             /* blocks that share a tile: a cluster */
    bool accumulate;
    const uint4 *x; /* fragments, [n_in / 128][n_nt][4][32] */
    const float *back;
    ring_heads heads;
};

/* can w be multiplied so? (type, shape, device, $MOASCOPE_CUDA_MATMUL) */
bool moa_cuda_ring_fits(const moa_cuda *c, const moa_dev_weight *w);
/* Is it the quickest way for a product alone? (measured: matmul_ring.cu) */
bool moa_cuda_ring_best(const moa_cuda *c, const moa_dev_weight *w, int n_tok);
/* Fills in what follows from the arguments; parts are added one by one, all of w's type and n_in. */
void moa_cuda_ring_begin(ring_job *j, const ring_x *x);
void moa_cuda_ring_add(ring_job *j, ring_kind kind, const moa_dev_weight *a, const moa_dev_weight *b,
                       const moa_dev_weight *bias, float *y);
/* Both launches. `again`: x, of the same type, lies in the workspace from the call before. */
moa_status moa_cuda_ring_run(moa_cuda *c, const ring_x *x, moa_dtype type, ring_job *j, bool again,
                             moa_err *err);

/* the fused operations for in.n_tok > 1 rows */
moa_status moa_cuda_rows_qkv(moa_cuda *c, const moa_args_fused_qkv *a, moa_err *err);
moa_status moa_cuda_rows_gate_up(moa_cuda *c, const moa_args_fused_gate_up *a, moa_err *err);
moa_status moa_cuda_rows_product(moa_cuda *c, const moa_args_fused_product *a, moa_err *err);

moa_status moa_cuda_matmul_ring(moa_cuda *c, const moa_args_matmul *a, moa_err *err); /* n_tok = 2 .. 64 */

#endif
