/* dtype.h -- element types of stored tensors, with the numbers GGUF gives them.
 *
 * What a block looks like and how it decodes is one header a format, core/model/quant/NAME.h, usable on host and device;
 * moa_dtype_info() knows them all. */
#ifndef MOA_MODEL_DTYPE_H
#define MOA_MODEL_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* name, GGUF type id, elements a block, bytes a block */
#define MOA_DTYPE_MAP(X)                                                                                     \
    X(F32, 0, 1, 4)                                                                                          \
    X(F16, 1, 1, 2)                                                                                          \
    X(BF16, 30, 1, 2)                                                                                        \
    X(Q4_0, 2, 32, 18)                                                                                       \
    X(Q4_1, 3, 32, 20)                                                                                       \
    X(Q5_0, 6, 32, 22)                                                                                       \
    X(Q5_1, 7, 32, 24)                                                                                       \
    X(Q8_0, 8, 32, 34)                                                                                       \
    X(Q4_K, 12, 256, 144)                                                                                    \
    X(Q5_K, 13, 256, 176)                                                                                    \
    X(Q6_K, 14, 256, 210)

typedef enum moa_dtype {
#define X(name, id, block_len, block_bytes) MOA_##name = id,
    MOA_DTYPE_MAP(X)
#undef X
} moa_dtype;

typedef struct moa_dtype_info {
    const char *name;     /* "Q4_1" */
    moa_dtype id;         /* GGUF's number */
    uint32_t block_len;   /* elements */
    uint32_t block_bytes; /* bytes */
    /* n elements (a multiple of block_len) of packed data, any alignment, to float */
    void (*decode)(const void *packed, float *out, size_t n);
} moa_dtype_info;

/* NULL for an id this program does not read; the table lives as long as the program */
const moa_dtype_info *moa_dtype_find(uint32_t gguf_id);

/* GGUF's own name of any type id, also of those not supported ("IQ2_XS"), "?" if unknown: for messages */
const char *moa_dtype_gguf_name(uint32_t gguf_id);

/* elements and bytes of a block of any type GGUF knows, also of those not supported; false for an unknown id */
bool moa_dtype_gguf_block(uint32_t gguf_id, uint32_t *block_len, uint32_t *block_bytes);

#ifdef __cplusplus
}
#endif
#endif
