/* sample.c -- argmax and sample: the same token on every backend. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/ops/ops.h"

/* the largest logit: exact on every backend */
void group_argmax(rig *r) {
    static const int32_t vocabs[] = {1, 2, 31, 1000, 8192, 8193, 32000, 128256};
    enum { N_SEQ_MAX = 9, LOG = 5, N_END = 3 };
    for (int k = 0; k < 8 * 4; k++) {
        const int32_t n_vocab = vocabs[k / 4], n_seq = (int32_t[]){1, 2, 9, 4}[k % 4];
        if (!case_begin(r, (uint64_t)k, "argmax n_vocab %d n_seq %d", n_vocab, n_seq)) continue;
        const size_t count = (size_t)n_seq * (size_t)n_vocab;
        float *x = floats(r, count, k % 4 == 3 ? ONE_HOT : NORMAL);
        int32_t pos[N_SEQ_MAX], limit[N_SEQ_MAX], id[N_SEQ_MAX], log[N_SEQ_MAX * LOG], end[N_END];
        for (int32_t s = 0; s < n_seq; s++) {
            float *row = x + (size_t)s * (size_t)n_vocab;
            pos[s] = s % 4 == 3 ? -1 : 100 + s;
            limit[s] = s % 4 == 1 ? pos[s] + 1 : 1000;
            id[s] = 7 + s;
            /* the largest twice, at the ends of the vocabulary; NaN beside it; a row of nothing; a row whose choice is an end */
            if (s % 3 == 0) row[0] = row[n_vocab - 1] = 9;
            if (s == 2 || s == 5) row[n_vocab / 2] = NAN;
            for (int32_t i = 0; s == 4 && i < n_vocab; i++)
                row[i] = i % 2 ? -INFINITY : NAN;
            if (s == 6) row[n_vocab / 3] = 100;
            if (s == 1) row[0] = row[n_vocab / 2] = NAN, row[n_vocab - 1] = 50;
            if (s == 8) row[0] = NAN, row[(n_vocab > 300 ? 256 : 0)] = NAN, row[n_vocab > 300 ? 256 + 16 : 0] = 50;
        }
        for (int i = 0; i < N_SEQ_MAX * LOG; i++)
            log[i] = -5;
        for (int i = 0; i < N_END; i++)
            end[i] = i == 1 ? n_vocab / 3 : n_vocab + i;
        const mem *l = mem_floats(r, x, count), *m = mem_new(r, limit, sizeof *limit * (size_t)n_seq),
                  *e = mem_new(r, end, sizeof end), *i_ = mem_new(r, id, sizeof *id * (size_t)n_seq),
                  *p = mem_new(r, pos, sizeof *pos * (size_t)n_seq),
                  *g = mem_new(r, log, sizeof *log * (size_t)n_seq * LOG);
        for (int i = 0; i < 2; i++)
            CALL(argmax, i, .logits = F(l, i), .id = (int32_t *)(void *)i_->dev[i],
                 .pos = (int32_t *)(void *)p->dev[i], .limit = I(m, i), .log = (int32_t *)(void *)g->dev[i],
                 .end = I(e, i), .n_seq = n_seq, .n_vocab = n_vocab, .log_stride = LOG, .n_end = N_END);
        compare_bytes(r, i_, "id");
        compare_bytes(r, p, "pos");
        compare_bytes(r, g, "log");
        case_end(r);
    }
}

/* --- sample: the same token on every backend, whatever the logits ------------------------------------------------------ */

enum { N_ROW_KIND = 10 };

static void sample_row(rig *r, float *row, int32_t n, int kind) {
    for (int32_t i = 0; i < n; i++)
        switch (kind) {
        case 1: row[i] = 2.5f; break;
        case 2: row[i] = i % 2 ? -INFINITY : NAN; break;
        case 3: row[i] = normal(r) + (i == n / 3 ? 300 : 0); break;
        case 4: row[i] = floorf(4 * normal(r)) / 4; break; /* ties by the thousand */
        case 5: row[i] = below(r, 3) ? normal(r) * 2 : below(r, 2) ? NAN : -INFINITY; break;
        case 6: row[i] = normal(r) * 1000; break;
        case 7: row[i] = below(r, 2) ? 0.0f : -0.0f; break;
        case 8: row[i] = i < 5 ? 1 : i % 7 == 0 ? 0.999999f : -40; break;
        default: row[i] = normal(r) * 3; break;
        }
    if (kind == 9) row[0] = row[n - 1] = 20;
}

/* what is told, as near as float32 exponentials bring it */
static void compare_told(rig *r, const mem *m, size_t n) {
    unsigned char *image[2] = {fetch(r, m, 0), fetch(r, m, 1)};
    const moa_told *a = (const moa_told *)(const void *)(image[0] + GUARD_BYTES),
                   *b = (const moa_told *)(const void *)(image[1] + GUARD_BYTES);
    r->cases++;
    for (size_t i = 0; i < n; i++) {
        bool same = a[i].stamp == b[i].stamp && a[i].id == b[i].id && a[i].pos == b[i].pos && a[i].n_top == b[i].n_top;
        double worst = 0;
        for (int k = -2; k < MOA_TOP_MAX && a[i].stamp != 0x7fc5a5a5u; k++) {
            const double x = (double)(k == -2 ? a[i].logprob : k == -1 ? a[i].entropy : a[i].top[k].logprob),
                         y = (double)(k == -2 ? b[i].logprob : k == -1 ? b[i].entropy : b[i].top[k].logprob);
            if (k >= 0) same = same && a[i].top[k].id == b[i].top[k].id;
            if (isfinite(x) && isfinite(y))
                worst = fmax(worst, fabs(x - y) / (1 + fabs(x)));
            else
                same = same && (isnan(x) ? isnan(y) : x == y);
        }
        if (same && worst <= (r->exact ? 0 : 2e-6)) continue;
        char text[160];
        (void)snprintf(text, sizeof text, "told[%zu]: id %d pos %d stamp %u, reference %d %d %u; numbers off by %.1e", i, b[i].id,
                       b[i].pos, b[i].stamp, a[i].id, a[i].pos, a[i].stamp, worst);
        fail(r, text);
        break;
    }
    free(image[0]);
    free(image[1]);
}

void group_sample(rig *r) {
    static const int32_t vocabs[] = {1, 2, 31, 1000, 16384, 49153, 128256, 151936};
    static const moa_sampling hows[] = {
        {.temp = .8f, .top_k = 40, .top_p = .95f, .min_p = .05f, .seed = 11},
        {.temp = 1, .top_k = 0, .top_p = 1, .seed = 1},
        {.temp = 0, .top_p = 1},
        {.temp = 1, .top_k = 0, .top_p = .9f, .seed = 77},
        {.temp = .3f, .top_k = 0, .top_p = 1, .min_p = .1f, .seed = 0xfedcba9876543210u},
        {.temp = 2, .top_k = 2000, .top_p = .99f, .seed = 5},
        {.temp = 1, .top_k = 1, .top_p = 1, .seed = 6},
        {.temp = 100, .top_k = 1024, .top_p = .5f, .seed = 7},
        {.temp = 1e-3f, .top_k = 0, .top_p = 1e-6f, .min_p = 1, .seed = 8},
    };
    enum { N_HOW = sizeof hows / sizeof *hows, N_SEQ_MAX = N_ROW_KIND + 1, LOG = 5, RING = 3, N_END = 2 };
    for (int k = 0; k < 8 * N_HOW; k++) {
        const int32_t n_vocab = vocabs[k / N_HOW], n_seq = n_vocab > 20000 ? 3 : N_SEQ_MAX;
        const moa_sampling how = hows[k % N_HOW];
        if (!case_begin(r, (uint64_t)k, "sample n_vocab %d n_seq %d temp %g top_k %d top_p %g min_p %g", n_vocab, n_seq,
                        (double)how.temp, how.top_k, (double)how.top_p, (double)how.min_p))
            continue;
        const size_t count = (size_t)n_seq * (size_t)n_vocab;
        float *x = floats(r, count, NORMAL);
        int32_t pos[N_SEQ_MAX], limit[N_SEQ_MAX], id[N_SEQ_MAX], log[N_SEQ_MAX * LOG], end[N_END] = {n_vocab / 3, n_vocab};
        uint32_t step[N_SEQ_MAX];
        for (int32_t s = 0; s < n_seq; s++) {
            pos[s] = s == N_SEQ_MAX - 1 ? -1 : 100 + s + k;
            limit[s] = s % 4 == 1 ? pos[s] + 1 : 10000;
            id[s] = 7 + s;
            step[s] = (uint32_t)(40 + s);
            sample_row(r, x + (size_t)s * (size_t)n_vocab, n_vocab, n_vocab > 20000 ? (k + s * 3) % N_ROW_KIND : s);
        }
        for (int i = 0; i < N_SEQ_MAX * LOG; i++)
            log[i] = -5;
        const bool told = k % 5 != 4;
        const mem *l = mem_floats(r, x, count), *m = mem_new(r, limit, sizeof *limit * (size_t)n_seq),
                  *e = mem_new(r, end, sizeof end), *i_ = mem_new(r, id, sizeof *id * (size_t)n_seq),
                  *p = mem_new(r, pos, sizeof *pos * (size_t)n_seq), *g = mem_new(r, log, sizeof *log * (size_t)n_seq * LOG),
                  *st = mem_new(r, step, sizeof *step * (size_t)n_seq),
                  *t = mem_new(r, NULL, sizeof(moa_told) * (size_t)n_seq * RING);
        for (int again = 0; again < 4; again++) /* rows that went idle stay as they are */
            for (int i = 0; i < 2; i++)
                CALL(sample, i, .logits = F(l, i), .how = how, .id = (int32_t *)(void *)i_->dev[i],
                     .pos = (int32_t *)(void *)p->dev[i], .limit = I(m, i), .end = I(e, i),
                     .log = k % 2 ? (int32_t *)(void *)g->dev[i] : NULL, .told = told ? (moa_told *)(void *)t->dev[i] : NULL,
                     .step = told ? (uint32_t *)(void *)st->dev[i] : NULL, .n_seq = n_seq, .n_vocab = n_vocab, .n_end = N_END,
                     .log_stride = LOG, .told_stride = RING, .n_top = k % 3 == 2 ? 0 : n_vocab < 5 ? n_vocab : 5);
        compare_bytes(r, i_, "id");
        compare_bytes(r, p, "pos");
        compare_bytes(r, g, "log");
        compare_bytes(r, st, "step");
        if (told) compare_told(r, t, (size_t)n_seq * RING);
        case_end(r);
    }
}

/* microseconds of a draw from one row and from 16, calls queued one after the other */
void bench_sample(rig *r) {
    static const int32_t vocabs[] = {49152, 128256, 151936};
    static const moa_sampling hows[] = {{.temp = 0, .top_p = 1},
                                        {.temp = .8f, .top_k = 40, .top_p = .95f, .min_p = .05f},
                                        {.temp = .8f, .top_p = .95f},
                                        {.temp = 1, .top_p = 1}};
    enum { N_SEQ = 16, RING = 4 };
    for (int v = 0; v < 3; v++) {
        const int32_t n_vocab = vocabs[v], n_call = r->cuda ? 200 : 3;
        int32_t pos[N_SEQ] = {0}, limit[N_SEQ];
        (void)case_begin(r, 1, "bench");
        for (int s = 0; s < N_SEQ; s++)
            limit[s] = INT32_MAX;
        float *x = floats(r, (size_t)N_SEQ * (size_t)n_vocab, NORMAL);
        for (size_t i = 0; i < (size_t)N_SEQ * (size_t)n_vocab; i++)
            x[i] *= 3;
        const mem *l = mem_floats(r, x, (size_t)N_SEQ * (size_t)n_vocab), *p = mem_new(r, pos, sizeof pos),
                  *m = mem_new(r, limit, sizeof limit), *id = mem_new(r, pos, sizeof pos), *step = mem_new(r, pos, sizeof pos),
                  *t = mem_new(r, NULL, sizeof(moa_told) * N_SEQ * RING);
        for (int k = 0; k < 8; k++) {
            const int32_t n_seq = k % 2 ? N_SEQ : 1;
            double best = 1;
            for (int i = 0; i < 5; i++) {
                sync_tested(r);
                const double start = now_s();
                for (int c = 0; c < n_call; c++)
                    CALL(sample, 1, .logits = F(l, 1), .how = hows[k / 2], .id = (int32_t *)(void *)id->dev[1],
                         .pos = (int32_t *)(void *)p->dev[1], .limit = I(m, 1), .end = I(id, 1), .told = (moa_told *)(void *)t->dev[1],
                         .step = (uint32_t *)(void *)step->dev[1], .n_seq = n_seq, .n_vocab = n_vocab, .told_stride = RING, .n_top = 5);
                sync_tested(r);
                best = fmin(best, (now_s() - start) / n_call);
            }
            (void)printf("  %6d tokens, %2d rows, temp %.1f top-k %2d top-p %.2f: %7.1f us\n", n_vocab, n_seq,
                         (double)hows[k / 2].temp, hows[k / 2].top_k, (double)hows[k / 2].top_p, best * 1e6);
        }
        case_end(r);
    }
}
