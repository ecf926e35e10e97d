/* The table of element types: names and sizes from dtype.h, decoders from the folder quant (one header a
 * format). A format that has a row but no header, or a header but no row, does not compile. */
#include "core/model/dtype.h"

#include <assert.h>
#include <stdbool.h>

#include "quant_include.h"
#include "quant_list.h"

/* n elements of format id; id is a constant at every call, so the compiler keeps one case */
static inline void decode(int id, const void *packed, float *out, size_t n) {
    const uint8_t *at = packed;
    switch (id) {
#define X(stem)                                                                                              \
    case moa_##stem##_id:                                                                                    \
        for (size_t i = 0; i < n; i += moa_##stem##_len, at += sizeof(moa_block_##stem))                     \
            moa_decode_##stem(at, out + i);                                                                  \
        break;
        MOA_QUANT_LIST(X)
#undef X
    default: assert(false);
    }
}

#define X(stem) +1
enum { n_header = 0 MOA_QUANT_LIST(X) };
#undef X
#define X(name, type_id, len, bytes) +1
enum { n_row = 0 MOA_DTYPE_MAP(X) };
#undef X
_Static_assert((int)n_header == (int)n_row, "every row of MOA_DTYPE_MAP has one header in core/model/quant");

#define X(name, type_id, len, bytes)                                                                         \
    static void decode_##name(const void *packed, float *out, size_t n) {                                    \
        decode(type_id, packed, out, n);                                                                     \
    }
MOA_DTYPE_MAP(X)
#undef X

static const moa_dtype_info infos[] = {
#define X(name, type_id, len, bytes) {#name, MOA_##name, len, bytes, decode_##name},
    MOA_DTYPE_MAP(X)
#undef X
};

const moa_dtype_info *moa_dtype_find(uint32_t gguf_id) {
    for (size_t i = 0; i < sizeof infos / sizeof *infos; i++)
        if ((uint32_t)infos[i].id == gguf_id) return &infos[i];
    return NULL;
}

/* every type GGUF has given a number: files are judged as a whole (sizes, offsets) before one tensor's type
 * is refused */
static const struct {
    uint16_t id, len, bytes;
    const char *name;
} gguf_types[] = {
    {0, 1, 4, "F32"},         {1, 1, 2, "F16"},         {2, 32, 18, "Q4_0"},      {3, 32, 20, "Q4_1"},
    {6, 32, 22, "Q5_0"},      {7, 32, 24, "Q5_1"},      {8, 32, 34, "Q8_0"},      {9, 32, 40, "Q8_1"},
    {10, 256, 84, "Q2_K"},    {11, 256, 110, "Q3_K"},   {12, 256, 144, "Q4_K"},   {13, 256, 176, "Q5_K"},
    {14, 256, 210, "Q6_K"},   {15, 256, 292, "Q8_K"},   {16, 256, 66, "IQ2_XXS"}, {17, 256, 74, "IQ2_XS"},
    {18, 256, 98, "IQ3_XXS"}, {19, 256, 50, "IQ1_S"},   {20, 32, 18, "IQ4_NL"},   {21, 256, 110, "IQ3_S"},
    {22, 256, 82, "IQ2_S"},   {23, 256, 136, "IQ4_XS"}, {24, 1, 1, "I8"},         {25, 1, 2, "I16"},
    {26, 1, 4, "I32"},        {27, 1, 8, "I64"},        {28, 1, 8, "F64"},        {29, 256, 56, "IQ1_M"},
    {30, 1, 2, "BF16"},       {34, 256, 54, "TQ1_0"},   {35, 256, 66, "TQ2_0"},   {39, 32, 17, "MXFP4"},
    {40, 64, 36, "NVFP4"},    {41, 128, 18, "Q1_0"},
};

const char *moa_dtype_gguf_name(uint32_t gguf_id) {
    for (size_t i = 0; i < sizeof gguf_types / sizeof *gguf_types; i++)
        if (gguf_types[i].id == gguf_id) return gguf_types[i].name;
    return "?";
}

bool moa_dtype_gguf_block(uint32_t gguf_id, uint32_t *block_len, uint32_t *block_bytes) {
    for (size_t i = 0; i < sizeof gguf_types / sizeof *gguf_types; i++)
        if (gguf_types[i].id == gguf_id) {
            *block_len = gguf_types[i].len;
            *block_bytes = gguf_types[i].bytes;
            return true;
        }
    return false;
}
