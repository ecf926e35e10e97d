/* step_pick.cuh -- a whole decode step: by step.cu's kernel of all multiprocessors, or by step_cluster.cu's of sixteen. */
#ifndef MOA_CUDA_STEP_PICK_CUH
#define MOA_CUDA_STEP_PICK_CUH

#include "cuda/cuda_common.cuh"

/* of a layer's matrices; above it other ways are faster */
static constexpr uint64_t CLUSTER_MOST_BYTES = 20ull << 20;

/* Is the model one for the cluster? By size, or as $MOASCOPE_STEP says: "cluster" always, any other word never. */
bool moa_cuda_cluster_wanted(const moa_args_step_decode *a);
/* step_decode by the cluster; *taken false: not a shape for it, nothing was launched */
moa_status moa_cuda_step_cluster(moa_backend *b, const moa_args_step_decode *a, moa_err *err);
/* the operation: one or the other */
moa_status moa_cuda_step_pick(moa_backend *b, const moa_args_step_decode *a, moa_err *err);

/* what both look at before they take a step */
struct step_sizes {
    int d_model, n_q, n_kv, d_ff;
};
static inline step_sizes sizes_of(const moa_args_step_decode *a) {
    return {a->layers[0].wq->n_in, a->n_head * a->kv.d_head, a->kv.n_head_kv * a->kv.d_head,
            a->layers[0].gate->n_out};
}
static inline bool vector_fits(const moa_dev_weight *w, int n) {
    return w->type == MOA_F32 && w->n_out == 1 && w->n_in == n;
}
static inline bool bias_fits(const moa_dev_weight *w, int n) {
    return !w || (w->n_out == 1 && w->n_in == n);
}
static inline const float *floats_of(const moa_dev_weight *w) {
    return w ? static_cast<const float *>(w->data) : nullptr;
}

#endif
