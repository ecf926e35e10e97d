/* weights.c -- random weights of every type, the same bytes for both backends. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/ops.h"

uint16_t half_bits(float f) { /* by search in double, apart from the program's own conversion */
    const double x = fabs((double)f);
    int e = 0;
    (void)frexp(x, &e);
    const double unit = ldexp(1, e - 11 < -24 ? -24 : e - 11), units = nearbyint(x / unit);
    const double y = units * unit;
    uint16_t sign = signbit(f) ? 0x8000 : 0;
    if (y >= 65536) return sign | 0x7c00;
    if (y < 0x1p-14) return (uint16_t)(sign | (uint16_t)(y * 0x1p24));
    (void)frexp(y, &e);
    return (uint16_t)(sign | (uint16_t)((e + 14) << 10) | (uint16_t)(ldexp(y, 11 - e) - 1024));
}

double half_value(uint16_t h) {
    const int e = h >> 10 & 31;
    const double m = h & 1023, v = e == 0 ? ldexp(m, -24) : ldexp(m + 1024, e - 25);
    return h & 0x8000 ? -v : v;
}

/* where a block's half-precision scales lie, so that random bytes become a weight of sane size */
static const struct scale_place {
    moa_dtype type;
    int n;
    struct {
        int at;
        float size;
    } half[2];
} scale_places[] = {
    {MOA_Q4_0, 1, {{0, .01f}}},
    {MOA_Q4_1, 2, {{0, .01f}, {2, .08f}}},
    {MOA_Q5_0, 1, {{0, .005f}}},
    {MOA_Q5_1, 2, {{0, .005f}, {2, .1f}}},
    {MOA_Q8_0, 1, {{0, .001f}}},
    {MOA_Q4_K, 2, {{0, .0003f}, {2, .002f}}},
    {MOA_Q5_K, 2, {{0, .0002f}, {2, .002f}}},
    {MOA_Q6_K, 1, {{208, .0001f}}},
};

void fill_packed(rig *r, moa_dtype type, unsigned char *out, size_t bytes,
                        const moa_dtype_info *info) {
    if (type == MOA_F32 || type == MOA_F16 || type == MOA_BF16) {
        for (size_t i = 0; i < bytes; i += info->block_bytes) {
            const float x = normal(r) * 0.05f;
            uint32_t bits;
            memcpy(&bits, &x, 4);
            const uint16_t half = type == MOA_F16 ? half_bits(x) : (uint16_t)(bits >> 16);
            memcpy(out + i, type == MOA_F32 ? (const void *)&x : (const void *)&half, info->block_bytes);
        }
        return;
    }
    for (size_t i = 0; i < bytes; i++)
        out[i] = (unsigned char)(next_u64(r) >> 40);
    for (size_t p = 0; p < sizeof scale_places / sizeof *scale_places; p++)
        for (size_t i = 0; scale_places[p].type == type && i < bytes; i += info->block_bytes)
            for (int k = 0; k < scale_places[p].n; k++) {
                /* mins are negative in a _1 format, both signs occur in scales */
                const float size = scale_places[p].half[k].size * (float)(0.5 + uniform(r));
                const uint16_t half = half_bits(below(r, 3) ? size : -size);
                memcpy(out + i + scale_places[p].half[k].at, &half, 2);
            }
}

weight *weight_new(rig *r, moa_dtype type, int32_t n_out, int32_t n_in) {
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    if (!info || r->n_weight == MAX_WEIGHT) abort();
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    unsigned char *data = malloc(bytes);
    if (!data) abort();
    fill_packed(r, type, data, bytes, info);
    weight *w = &r->weights[r->n_weight++];
    for (int i = 0; i < 2; i++) {
        moa_err err = {0};
        const moa_weight m = {
            .name = "test", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
        must(r, r->b[i]->vt->weight_load(r->b[i], &m, false, &w->dev[i], &err), &err);
    }
    free(data);
    return w;
}

const moa_dtype dtypes[N_DTYPE] = {
#define X(name, id, block_len, block_bytes) MOA_##name,
    MOA_DTYPE_MAP(X)
#undef X
};
const int32_t tok_counts[N_TOK_COUNT] = {1, 2, 17, 64, 100, 513};
