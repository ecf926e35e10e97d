/* Llama 2 and 3, SmolLM and SmolLM2, Mistral without windows, and what else is saved as "llama". Q and K are
 * stored permuted so that neighbours rotate together. Llama 3.1 and later bring their rotary scaling as
 * rope_freqs.weight. */
#include "core/model/arch.h"

extern const moa_arch moa_arch_llama;

static const moa_arch_tensor model_tensors[] = {MOA_ARCH_MODEL_TENSORS, {0}};
static const moa_arch_tensor layer_tensors[] = {MOA_ARCH_LAYER_TENSORS, MOA_ARCH_QKV_BIAS(true), {0}};

const moa_arch moa_arch_llama = {"llama", MOA_ROPE_PAIRS, model_tensors, layer_tensors};
