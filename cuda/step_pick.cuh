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

#endif
