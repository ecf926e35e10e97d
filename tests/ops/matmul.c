/* matmul.c -- products with packed weights. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/ops/ops.h"

static void matmul_case(rig *r, moa_dtype type, int32_t n_tok, int32_t n_out, int32_t n_in, input_kind kind,
                        bool bias, bool accumulate) {
    if (!case_begin(r, (uint64_t)n_tok * 7919 + (uint64_t)n_out * 31 + (uint64_t)type,
                    "matmul %s n_tok %d n_out %d n_in %d %s%s%s", moa_dtype_find(type)->name, n_tok, n_out,
                    n_in, input_names[kind], bias ? " bias" : "", accumulate ? " accumulate" : ""))
        return;
    const weight *w = weight_new(r, type, n_out, n_in);
    const weight *bw = bias ? weight_new(r, MOA_F32, 1, n_out) : NULL;
    const size_t nx = (size_t)n_tok * (size_t)n_in, ny = (size_t)n_tok * (size_t)n_out;
    const mem *x = mem_floats(r, floats(r, nx, kind), nx);
    const mem *y =
        accumulate ? mem_floats(r, floats(r, ny, NORMAL), ny) : mem_new(r, NULL, ny * sizeof(float));
    for (int i = 0; i < 2; i++)
        CALL(matmul, i, .x = F(x, i), .w = w->dev[i], .bias = bw ? bw->dev[i] : NULL, .y = F(y, i),
             .n_tok = n_tok, .accumulate = accumulate);
    compare(r, y, MATMUL, "y", 1, NULL, 1);
    case_end(r);
}

void group_matmul(rig *r) {
    static const int32_t n_outs[] = {1, 7, 33, 64, 193, 576};
    for (int d = 0; d < N_DTYPE; d++) {
        const int32_t block = (int32_t)moa_dtype_find(dtypes[d])->block_len;
        const int32_t n_ins[] = {block, block == 1 ? 33 : 3 * block, block == 256 ? 1024 : 576,
                                 block == 256 ? 1536 : 896};
        for (int t = 0; t < N_TOK_COUNT; t++)
            for (int o = 0; o < 6; o++)
                matmul_case(r, dtypes[d], tok_counts[t], n_outs[o], n_ins[(t + o) % 4],
                            (input_kind)((t + o + d) % N_INPUT), (t + o) % 3 == 0, (t + d + o) % 2 == 0);
        static const int32_t small[] = {3, 4, 5, 8, 9, 15, 16};
        for (int t = 0; t < 7; t++)
            matmul_case(r, dtypes[d], small[t], 97, n_ins[2], OUTLIERS, t % 2, t % 3 == 0);
        matmul_case(r, dtypes[d], 1, 300, block == 256 ? 4864 : 4864 + 32, NORMAL, false, false);
    }
}

static void bench_matmul_one(rig *r, moa_dtype type, int32_t n_tok, int32_t n_out, int32_t n_in) {
    enum { MOST = 128 };
    moa_dev_weight *w[MOST];
    const moa_dtype_info *info = moa_dtype_find((uint32_t)type);
    const size_t bytes = (size_t)n_out * ((size_t)n_in / info->block_len) * info->block_bytes;
    int n_w = (int)(((size_t)96 << 20) / bytes); /* beyond the caches, as a model is */
    n_w = n_w < 1 ? 1 : n_w > MOST ? MOST : n_w;
    unsigned char *data = malloc(bytes);
    if (!data) abort();
    fill_packed(r, type, data, bytes, info);
    const moa_weight m = {
        .name = "bench", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
    moa_err err = {0};
    for (int i = 0; i < n_w; i++)
        must(r, r->b[1]->vt->weight_load(r->b[1], &m, false, &w[i], &err), &err);
    free(data);
    float *x = bench_floats(r, (size_t)n_tok * (size_t)n_in),
          *y = bench_floats(r, (size_t)n_tok * (size_t)n_out);
    int calls = 0;
    double best = 1e30, best_cpu = 1e30;
    const double end = now_s() + 0.6;
    while (now_s() < end || calls < 2) { /* the best pass over all weights: the machine is shared */
        const double start = now_s(), start_cpu = cpu_s();
        for (int i = 0; i < n_w; i++)
            CALL(matmul, 1, .x = x, .w = w[i], .y = y, .n_tok = n_tok);
        sync_tested(r);
        best = fmin(best, (now_s() - start) / n_w);
        best_cpu = fmin(best_cpu, (cpu_s() - start_cpu) / n_w);
        calls++;
    }
    const double flop = 2.0 * n_tok * n_out * n_in;
    (void)printf("  matmul %-5s n_tok %4d  %6d x %5d  %9.1f us  %6.2f GB/s  %6.1f GFLOP/s   cpu %9.1f us  "
                 "%6.1f GFLOP/s\n",
                 info->name, n_tok, n_out, n_in, best * 1e6, (double)bytes / best * 1e-9, flop / best * 1e-9,
                 best_cpu * 1e6, flop / best_cpu * 1e-9);
    for (int i = 0; i < n_w; i++)
        r->b[1]->vt->weight_free(r->b[1], w[i]);
    r->b[1]->vt->free(r->b[1], x);
    r->b[1]->vt->free(r->b[1], y);
}

void bench_matmul(rig *r) {
    static const int32_t toks[] = {1, 2, 4, 8, 16, 64, 512};
    for (int t = 0; t < 7; t++)
        bench_matmul_one(r, MOA_Q4_1, toks[t], 1536, 576);
    bench_matmul_one(r, MOA_Q4_1, 1, 576, 1536);
    bench_matmul_one(r, MOA_Q4_1, 1, 192, 576);
    bench_matmul_one(r, MOA_Q8_0, 1, 49152, 576);
    for (int d = 0; d < N_DTYPE; d++) {
        bench_matmul_one(r, dtypes[d], 1, 2048, 1536);
        bench_matmul_one(r, dtypes[d], 4, 2048, 1536);
        bench_matmul_one(r, dtypes[d], 256, 2048, 1536);
    }
}
