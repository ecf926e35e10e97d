/* Qwen2, Qwen2.5 and Qwen2.5-Coder: biases on Q, K and V, halves of a head rotate against each other. */
#include "core/model/arch.h"

extern const moa_arch moa_arch_qwen2;

static const moa_arch_tensor model_tensors[] = {MOA_ARCH_MODEL_TENSORS, {0}};
static const moa_arch_tensor layer_tensors[] = {MOA_ARCH_LAYER_TENSORS, MOA_ARCH_QKV_BIAS(false), {0}};

const moa_arch moa_arch_qwen2 = {"qwen2", MOA_ROPE_HALVES, model_tensors, layer_tensors};
