/* probe.c -- capture, attn_map, stat_sum: what the probe reads beside the attention. */
#include <math.h>
#include <stdlib.h>

#include "tests/ops/ops.h"

/* q8: what was captured is what the pages hold */
static void capture_check(rig *r, const cache *c, const mem *cap_k, const int32_t *pos, int32_t n_tok, int32_t max_tok) {
    unsigned char *image = fetch(r, cap_k, 0);
    const float *got = (const float *)(const void *)(image + GUARD_BYTES);
    int wrong = 0;
    for (int32_t t = 0; t < n_tok; t++)
        for (int32_t h = 0; h < c->n_head_kv && pos[t] >= 0 && pos[t] < max_tok; h++)
            for (int32_t i = 0; i < c->d_head; i++)
                wrong += got[((int64_t)h * max_tok + pos[t]) * c->d_head + i] != host_row(c, c->k, 0, h, pos[t])[i];
    if (wrong) fail(r, "captured k is not what the page holds");
    free(image);
}

void group_capture(rig *r) {
    for (int t = 0; t < N_TOK_COUNT; t++)
        for (int type = 0; type < MOA_N_KV_TYPE; type++) {
            const int32_t n_tok = tok_counts[t], n_head = 6, n_head_kv = 2, d_head = head_sizes[(t + type / 3) % 5],
                          max_tok = 600;
            if (!case_begin(r, (uint64_t)(t * 4 + type), "capture n_tok %d d_head %d %s", n_tok, d_head,
                            type_name((moa_kv_type)type)))
                continue;
            const size_t nq = (size_t)n_tok * 6 * (size_t)d_head, nk = (size_t)n_tok * 2 * (size_t)d_head;
            const mem *q = mem_floats(r, floats(r, nq, OUTLIERS), nq),
                      *k = mem_floats(r, floats(r, nk, OUTLIERS), nk);
            const mem *cq = mem_new(r, NULL, sizeof(float) * 6 * (size_t)max_tok * (size_t)d_head);
            const mem *ck = mem_new(r, NULL, sizeof(float) * 2 * (size_t)max_tok * (size_t)d_head);
            int32_t pos[513], widest[] = {1 << 20, 1 << 20};
            for (int32_t i = 0; i < n_tok; i++)
                pos[i] = i % 7 == 3 ? (i % 2 ? -1 : max_tok) : 80 + i;
            const mem *p = mem_new(r, pos, sizeof *pos * (size_t)n_tok);
            cache c = {.n_seq = 1, .n_head_kv = 2, .d_head = d_head, .max_pages = 10, .type = (moa_kv_type)type};
            c.n_tok = calloc(1, sizeof *c.n_tok);
            c.n_tok[0] = max_tok;
            cache_fill(r, &c, (int32_t[]){max_tok}, widest, false, OUTLIERS);
            for (int i = 0; i < 2; i++)
                CALL(capture, i, .q = F(q, i), .k = F(k, i), .cap_q = F(cq, i), .cap_k = F(ck, i),
                     .pos = I(p, i), .n_tok = n_tok, .n_head = n_head, .n_head_kv = n_head_kv,
                     .d_head = d_head, .max_tok = max_tok, .type = (moa_kv_type)type, .kv = view(&c, i));
            compare_bytes(r, cq, "cap_q");
            compare_bytes(r, ck, "cap_k");
            if (type == MOA_KV_Q8) capture_check(r, &c, ck, pos, n_tok, max_tok);
            cache_free(&c);
            case_end(r);
        }
}

void group_attn_map(rig *r) {
    static const int32_t regions[][6] = {/* q0, q1, k0, k1, rows, cols */
                                         {0, 1, 0, 1, 1, 1},         {0, 100, 0, 100, 100, 100},
                                         {0, 300, 0, 300, 5, 5},     {37, 300, 11, 290, 7, 13},
                                         {200, 201, 0, 201, 1, 20},  {64, 513, 0, 513, 33, 64},
                                         {100, 400, 390, 513, 3, 9}, {0, 513, 0, 64, 9, 1}};
    for (int k = 0; k < 8; k++)
        for (int s = 0; s < 4; s++) {
            const int32_t *g = regions[k], d_head = head_sizes[(k + s) % 5];
            const int32_t span = s == 0 ? 128 : s == 1 ? 192 : s == 2 ? 448 : 1 << 24;
            if (!case_begin(r, (uint64_t)(k * 4 + s),
                            "attn_map q %d..%d k %d..%d cells %dx%d d_head %d span %d", g[0], g[1], g[2],
                            g[3], g[4], g[5], d_head, span))
                continue;
            const size_t n = 513 * (size_t)d_head, cells = (size_t)g[4] * (size_t)g[5];
            const mem *q = mem_floats(r, floats(r, n, (input_kind)(s % N_INPUT)), n),
                      *kk = mem_floats(r, floats(r, n, NORMAL), n);
            const mem *mass = mem_new(r, NULL, cells * sizeof(float)),
                      *max = s % 2 ? mem_new(r, NULL, cells * sizeof(float)) : NULL;
            const mem *stat = s != 1 ? mem_new(r, NULL, sizeof(float) * MOA_N_STAT * (size_t)g[4]) : NULL;
            for (int i = 0; i < 2; i++)
                CALL(attn_map, i, .q = F(q, i), .k = F(kk, i), .d_head = d_head, .span = span, .q0 = g[0],
                     .q1 = g[1], .k0 = g[2], .k1 = g[3], .rows = g[4], .cols = g[5],
                     .scale = 1 / sqrtf((float)d_head), .mass = F(mass, i), .max = F(max, i),
                     .stat = F(stat, i), .measure_span = 256);
            compare(r, mass, ATTENTION, "mass", 1, NULL, 1);
            if (max) compare(r, max, ATTENTION, "max", 1, NULL, 1);
            if (stat) compare(r, stat, STATISTIC, "stat", MOA_N_STAT, NULL, 1);
            case_end(r);
        }
}

void group_stat_sum(rig *r) {
    static const int32_t n_toks[] = {1, 2, 33, 700};
    for (int k = 0; k < 8; k++) {
        const int32_t n_tok = n_toks[k / 2], n_layer = k % 2 ? 3 : 1, n_head = k % 2 ? 9 : 32;
        if (!case_begin(r, (uint64_t)k, "stat_sum n_tok %d n_layer %d n_head %d", n_tok, n_layer, n_head)) continue;
        const size_t n = (size_t)n_layer * (size_t)n_head;
        int32_t pos[700];
        int64_t queries[MOA_HIST_BUCKETS] = {3, 0, 1};
        moa_stat_total total[3 * 32] = {0};
        for (int32_t i = 0; i < n_tok; i++)
            pos[i] = k == 5 && i % 4 == 1 ? -1 : 50 + i;
        for (size_t i = 0; i < n; i++)
            total[i] = i % 2 ? (moa_stat_total){.worst_cover = INFINITY, .worst_query = -1}
                             : (moa_stat_total){1, 2, 3, 4, .1f, 9, 7};
        float *x = floats(r, n * (size_t)n_tok * MOA_N_STAT, NORMAL);
        for (size_t i = 0; i < n * (size_t)n_tok * MOA_N_STAT; i++) /* equal covers among them */
            x[i] = i % MOA_N_STAT == MOA_STAT_DISTANCE ? 100 * fabsf(x[i]) : floorf(8 * fabsf(x[i])) / 32;
        const mem *s = mem_floats(r, x, n * (size_t)n_tok * MOA_N_STAT), *p = mem_new(r, pos, sizeof *pos * (size_t)n_tok),
                  *t = mem_new(r, total, sizeof *total * n), *q = mem_new(r, queries, sizeof queries);
        for (int i = 0; i < 2; i++)
            CALL(stat_sum, i, .stat = F(s, i), .pos = I(p, i), .total = (moa_stat_total *)(void *)t->dev[i],
                 .queries = (int64_t *)(void *)q->dev[i], .n_layer = n_layer, .n_tok = n_tok, .n_head = n_head, .bucket_tok = 40,
                 .rows = {.from = 20, .end = 800, .every = k % 3 == 0 ? 0 : 2 + k / 2, .seed = (uint32_t)k});
        compare_bytes(r, q, "queries");
        unsigned char *image[2] = {fetch(r, t, 0), fetch(r, t, 1)};
        const moa_stat_total *a = (const moa_stat_total *)(const void *)(image[0] + GUARD_BYTES),
                             *b = (const moa_stat_total *)(const void *)(image[1] + GUARD_BYTES);
        for (size_t i = 0; i < n; i++)
            if (fabs(a[i].entropy - b[i].entropy) > 1e-9 * (1 + fabs(a[i].entropy)) || fabs(a[i].sink - b[i].sink) > 1e-9 * (1 + a[i].sink) ||
                fabs(a[i].window - b[i].window) > 1e-9 * (1 + a[i].window) ||
                fabs(a[i].distance - b[i].distance) > 1e-9 * (1 + a[i].distance) || a[i].worst_query != b[i].worst_query ||
                a[i].n_query != b[i].n_query || a[i].worst_cover != b[i].worst_cover)
                fail(r, "a head's sums");
        r->cases++;
        free(image[0]);
        free(image[1]);
        case_end(r);
    }
}
