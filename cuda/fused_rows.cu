/* fused_rows.cu -- a decode step of 2 to 64 rows in nine launches a layer rather than twenty: the fused operations of fused.cu for several
 * rows, by matmul_ring.cu's kernels.
 *
 *   x: norm, float16  |  q k v, rope, store  |  attention  |  x  |  o + residual  |  x: norm  |  gate up, silu  |  x  |  down + residual
 *
 *   q, k, v     one launch for those of one type; a tile holds whole heads, so that both of a pair that rope turns are there.
 *               Cosines, sines and the pages' rows are made beside x
 *   gate, up    a tile holds 64 outputs of each: silu(gate) * up is made where they meet
 *
 * Taken: weights that the ring takes (rows of whole stages), heads of at most 128, a cache of whole elements (not q8). The rest goes by the single operations. */
#include "cuda/matmul_ring.cuh"

static const float *floats_of(const moa_dev_weight *w) {
    return w ? static_cast<const float *>(w->data) : nullptr;
}
static bool input_fits(const moa_cuda *c, const moa_fused_in *in) {
    return in->n_tok <= c->few_max && in->n_tok <= RING_MAX_TOK &&
           reinterpret_cast<uintptr_t>(in->x) % 16 == 0 && (!in->norm || in->norm->type == MOA_F32);
}
static ring_x input_of(const moa_fused_in *in, const moa_dev_weight *w) {
    return {in->x, floats_of(in->norm), in->eps, in->n_tok, w->n_in};
}

moa_status moa_cuda_rows_product(moa_cuda *c, const moa_args_fused_product *a, moa_err *err) {
    *a->taken = input_fits(c, &a->in) && moa_cuda_ring_fits(c, a->w) &&
                (a->in.norm || moa_cuda_ring_best(c, a->w, a->in.n_tok));
    if (!*a->taken) return MOA_OK;
    const ring_x x = input_of(&a->in, a->w);
    ring_job j;
    moa_cuda_ring_begin(&j, &x);
    j.accumulate = a->accumulate;
    moa_cuda_ring_add(&j, RING_PLAIN, a->w, nullptr, nullptr, a->y);
    return moa_cuda_ring_run(c, &x, a->w->type, &j, false, err);
}

moa_status moa_cuda_rows_gate_up(moa_cuda *c, const moa_args_fused_gate_up *a, moa_err *err) {
    *a->taken = input_fits(c, &a->in) && moa_cuda_ring_fits(c, a->gate) && moa_cuda_ring_fits(c, a->up) &&
                a->up->type == a->gate->type && a->up->n_out == a->gate->n_out &&
                a->up->n_in == a->gate->n_in;
    if (!*a->taken) return MOA_OK;
    const ring_x x = input_of(&a->in, a->gate);
    ring_job j;
    moa_cuda_ring_begin(&j, &x);
    moa_cuda_ring_add(&j, RING_GATED, a->gate, a->up, nullptr, a->y);
    return moa_cuda_ring_run(c, &x, a->gate->type, &j, false, err);
}

static bool qkv_fits(const moa_cuda *c, const moa_args_fused_qkv *a) {
    const int d = a->kv.d_head, rope = a->rope.rope_dim < 2 ? 0 : a->rope.rope_dim;
    const moa_dev_weight *const w[RING_MAX_PART] = {a->wq, a->wk, a->wv};
    for (int i = 0; i < RING_MAX_PART; i++)
        if (!moa_cuda_ring_fits(c, w[i]) || w[i]->n_in != a->wq->n_in) return false;
    return d > 0 && d <= RING_LINES && d % 2 == 0 && rope % 2 == 0 && rope <= d && input_fits(c, &a->in) &&
           a->kv.type != MOA_KV_Q8 && a->wq->n_out == a->n_head * d && a->wk->n_out == a->kv.n_head_kv * d &&
           a->wv->n_out == a->kv.n_head_kv * d;
}

static ring_heads heads_of(const moa_args_fused_qkv *a) {
    ring_heads h = {};
    if (a->rope.rope_dim >= 2) {
        h.factors = floats_of(a->rope.freq_factors);
        h.half = a->rope.rope_dim / 2;
        h.pairs = a->rope.kind == MOA_ROPE_PAIRS;
        h.log2_theta = log2((double)a->rope.theta), h.scale = (double)a->rope.scale;
    }
    h.pos = a->rope.pos, h.seq = a->seq;
    h.kv = moa_kv_of<__half>(&a->kv);
    h.kv_type = a->kv.type;
    h.d_head = a->kv.d_head, h.n_head_kv = a->kv.n_head_kv;
    return h;
}

static bool is_plain(const moa_dev_weight *w) { /* x lies in another order then */
    return w->type == MOA_F16 || w->type == MOA_BF16;
}

moa_status moa_cuda_rows_qkv(moa_cuda *c, const moa_args_fused_qkv *a, moa_err *err) {
    const moa_dev_weight *const w[RING_MAX_PART] = {a->wq, a->wk, a->wv}, *const bias[RING_MAX_PART] = {
                                                                              a->bq, a->bk, a->bv};
    static const ring_kind kind[RING_MAX_PART] = {RING_Q, RING_K, RING_V};
    float *const y[RING_MAX_PART] = {a->q, a->k, nullptr};
    bool done[RING_MAX_PART] = {};
    const moa_dev_weight *before = nullptr; /* what x was made for */
    *a->taken = qkv_fits(c, a);
    if (!*a->taken) return MOA_OK;
    const ring_x x = input_of(&a->in, a->wq);
    for (int i = 0; i < RING_MAX_PART; i++) {
        if (done[i]) continue;
        ring_job j;
        moa_cuda_ring_begin(&j, &x);
        j.heads = heads_of(a);
        for (int k = i; k < RING_MAX_PART; k++) {
            if (w[k]->type != w[i]->type) continue;
            moa_cuda_ring_add(&j, kind[k], w[k], nullptr, bias[k], y[k]);
            done[k] = true;
        }
        const bool again = before && is_plain(before) == is_plain(w[i]);
        MOA_RETURN(moa_cuda_ring_run(c, &x, w[i]->type, &j, again, err));
        before = w[i];
    }
    return MOA_OK;
}
