/* quant.h -- the packed kernels' names: moa_qdot_ISA_TYPE_TILE, and the macros that make them from one inline function. */
#ifndef MOA_CPU_QUANT_H
#define MOA_CPU_QUANT_H

#include "core/cpu/kern.h"

/* body(bits, scale form, tokens, ..) is inline: each function here is it with constants */
#define MOA_QDOT_ONE(body, isa, xtype, type, bits, form, n_tok)                                              \
    static void qdot_##type##_##n_tok(const moa_pack_group *g, int32_t n_block, const void *x,               \
                                      const moa_xmeta *meta, float *out) {                                   \
        body(bits, MOA_SCALE_##form, n_tok, g, n_block, (xtype)x, meta, out);                                \
    }
#define MOA_QDOT_TYPE(body, isa, xtype, type, bits, form)                                                    \
    MOA_QDOT_ONE(body, isa, xtype, type, bits, form, 1)                                                      \
    MOA_QDOT_ONE(body, isa, xtype, type, bits, form, 2)                                                      \
    MOA_QDOT_ONE(body, isa, xtype, type, bits, form, 4)                                                      \
    MOA_QDOT_ONE(body, isa, xtype, type, bits, form, 8)

#define MOA_QDOT_ROW(type) {qdot_##type##_1, qdot_##type##_2, qdot_##type##_4, qdot_##type##_8},
/* the functions of all types and the table moa_qdot_ISA of them, [type][log2 of the tile]. The list is MOA_PACK_MAP's: a macro
 * cannot pass its own arguments through that one. */
#define MOA_QDOT_FUNCTIONS(body, isa, xtype)                                                                 \
    MOA_QDOT_TYPE(body, isa, xtype, Q4_0, 4, D)                                                              \
    MOA_QDOT_TYPE(body, isa, xtype, Q4_1, 4, DM)                                                             \
    MOA_QDOT_TYPE(body, isa, xtype, Q5_0, 5, D)                                                              \
    MOA_QDOT_TYPE(body, isa, xtype, Q5_1, 5, DM)                                                             \
    MOA_QDOT_TYPE(body, isa, xtype, Q8_0, 8, D)                                                              \
    MOA_QDOT_TYPE(body, isa, xtype, Q4_K, 4, K)                                                              \
    MOA_QDOT_TYPE(body, isa, xtype, Q5_K, 5, K)                                                              \
    MOA_QDOT_TYPE(body, isa, xtype, Q6_K, 6, S6)                                                             \
    const moa_qdot_fn moa_qdot_##isa[MOA_N_PACK][MOA_N_TILE] = {                                             \
        MOA_QDOT_ROW(Q4_0) MOA_QDOT_ROW(Q4_1) MOA_QDOT_ROW(Q5_0) MOA_QDOT_ROW(Q5_1) MOA_QDOT_ROW(Q8_0)       \
            MOA_QDOT_ROW(Q4_K) MOA_QDOT_ROW(Q5_K) MOA_QDOT_ROW(Q6_K)};

#define MOA_QUANT_DECLARE(isa)                                                                               \
    extern const moa_qdot_fn moa_qdot_##isa[MOA_N_PACK][MOA_N_TILE];                                         \
    void moa_quantize_##isa(const float *x, int64_t stride, int32_t n_tok, int32_t n_block, int32_t zero,    \
                            bool halves, void *out, moa_xmeta *meta);
MOA_QUANT_DECLARE(c)
#if defined(__x86_64__)
MOA_QUANT_DECLARE(avx2)
MOA_QUANT_DECLARE(avx512)
#endif

#endif
