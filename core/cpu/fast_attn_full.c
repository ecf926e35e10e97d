/* fast_attn_full.c -- causal attention of a whole sequence, dense or under spans, its gradients and the influence of its keys, by panels.
 *
 * A panel is 64 queries of one head against all keys they see, so that every product is one call of OpenBLAS on long rows:
 *
 *              keys 0 .. 64 (qb + 1)
 *   queries   +---------------------+      S = scale Q K^T, A = exp(S - lse), 0 beyond the query       attn_full   O = A V
 *   64 qb ..  |  A, G   (64, n_key) |      G = dO V^T                                                  attn_bwd    dS = A (G - delta) scale
 *             +---------------------+                                                                              dQ = dS K
 *                                                                                                                  dK += dS^T Q, dV += A^T dO
 *   influence: rows of A and G are summed by blocks of 64 keys: mass, mass G, E, |E|. The largest entry of a row, when it is above 1/2,
 *   is taken out first and comes back in the form that does not cancel; the windows are sums of blocks from the diagonal back.
 *   Under spans the products stay whole, and keys that are not seen get A = 0; for the influence their own A, which counts in the windows
 *   alone.
 *
 * attn_full, attn_influence: a task is a panel, the long ones first. attn_bwd: a task is a head, which goes through its panels in order,
 * with dK and dV of its own; a second round sums those over the heads of a group. Memory: O(n_tok) a thread, never n_tok x n_tok.
 * Nothing depends on the number of threads. */
#include <cblas.h>
#include <math.h>
#include <string.h>

#include "core/base/size.h"
#include "core/cpu/cpu.h"

enum { BLOCK = MOA_PAGE_TOK, LANES = 16, ROWS = 32 };

typedef struct full {
    const moa_full *in;
    const moa_kern *kern;
    int32_t nb;
    size_t pad;             /* keys of a panel at most: nb * 64 */
    float *panels;          /* (n_threads, 2, 64, pad) */
    const float *lse, *d_o; /* or NULL */
    const float *o;
    const moa_args_attn_full *fwd; /* what is to be done: one of these */
    const moa_args_attn_bwd *bwd;
    const moa_args_attn_influence *inf;
    float *dk, *dv;  /* bwd: (n_head, n_tok, d_head) each */
    double *sums;   /* influence: (n_threads, 6, nb): block sums of a row, then of a panel */
    double *curves; /* influence: (n_head, nb, nb + 1): joint by panel */
    int32_t *clamped; /* influence: (n_head, nb) rows of a panel */
} full;

typedef struct panel {
    int32_t h, head_kv, first, n_row, n_key;
    float *a, *g; /* (64, pad) */
} panel;

static panel panel_at(const full *f, int32_t h, int32_t qb, int32_t thread) {
    const moa_full *in = f->in;
    panel p = {.h = h, .head_kv = h / (in->n_head / in->n_head_kv), .first = qb * BLOCK};
    p.n_row = in->n_tok - p.first < BLOCK ? in->n_tok - p.first : BLOCK;
    p.n_key = p.first + p.n_row;
    p.a = f->panels + (size_t)thread * 2 * BLOCK * f->pad;
    p.g = p.a + BLOCK * f->pad;
    return p;
}

/* element 0 of row t of head h in (n_tok, n_head, d_head) */
static int64_t at(const full *f, int32_t n_head, int32_t t, int32_t h) {
    return ((int64_t)t * n_head + h) * f->in->d_head;
}

/* to (n_row, n_key) = factor X Y^T: X queries of the panel, Y all keys */
static void against_keys(const full *f, const panel *p, float factor, const float *x, const float *y, float *to) {
    const moa_full *in = f->in;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, p->n_row, p->n_key, in->d_head, factor,
                x + at(f, in->n_head, p->first, p->h), in->n_head * in->d_head, y + at(f, in->n_head_kv, 0, p->head_kv),
                in->n_head_kv * in->d_head, 0, to, (int)f->pad);
}

/* to (n_row of the panel, d_head) = P Y */
static void times_keys(const full *f, const panel *p, const float *m, const float *y, float *to) {
    const moa_full *in = f->in;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, p->n_row, in->d_head, p->n_key, 1, m, (int)f->pad,
                y + at(f, in->n_head_kv, 0, p->head_kv), in->n_head_kv * in->d_head, 0,
                to + at(f, in->n_head, p->first, p->h), in->n_head * in->d_head);
}

static double sum_of(const float *x, int32_t n) {
    double sum = 0;
    int32_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        float lanes[LANES];
        for (int l = 0; l < LANES; l++)
            lanes[l] = x[j + l];
        for (int step = LANES / 2; step > 0; step /= 2)
            for (int l = 0; l < step; l++)
                lanes[l] += lanes[l + step];
        sum += lanes[0];
    }
    for (; j < n; j++)
        sum += x[j];
    return sum;
}

/* row r sees keys [0, from) and [to, n); from = to where nothing is cut */
typedef struct gap {
    int32_t from, to;
} gap;

static gap gap_of(const full *f, const panel *p, int32_t r) {
    const int32_t i = p->first + r, span = f->in->span ? f->in->span[p->h] : INT32_MAX;
    if (moa_n_seen(span, i) == i + 1) return (gap){0, 0};
    return (gap){MOA_SINK_TOK, moa_window_first(span, i)};
}

static float max_seen(const full *f, const float *a, gap g, int32_t n) {
    const float x = f->kern->max(a + g.to, n - g.to);
    return g.from == 0 ? x : fmaxf(x, f->kern->max(a, g.from));
}

/* A of keys not seen, from their scores; false: one of them counts as less than it weighs */
static bool unseen(const full *f, float *a, gap g, float lse) {
    float most = -INFINITY;
    for (int32_t j = g.from; j < g.to; j++) {
        most = fmaxf(most, a[j]);
        a[j] = fminf(a[j], lse + MOA_INFLUENCE_MOST);
    }
    f->kern->exp_shift(a + g.from, g.to - g.from, lse);
    return most - lse <= MOA_INFLUENCE_MOST;
}

/* A of the panel when the log-sum-exp is known; whole blocks: zero from the query's own key on to the end of its block, and, but for the
 * influence, where the row does not see. far (64): rows with a key that counts as less than it weighs, or NULL */
static void probabilities(const full *f, const panel *p, bool *far) {
    against_keys(f, p, f->in->scale, f->in->q, f->in->k, p->a);
    for (int32_t r = 0; r < p->n_row; r++) {
        float *a = p->a + (size_t)r * f->pad;
        const gap g = gap_of(f, p, r);
        const int32_t n = p->first + r + 1, end = p->first + BLOCK;
        const float lse = f->lse[(int64_t)(p->first + r) * f->in->n_head + p->h];
        f->kern->exp_shift(a, g.from, lse);
        f->kern->exp_shift(a + g.to, n - g.to, lse);
        if (far) far[r] = !unseen(f, a, g, lse);
        else memset(a + g.from, 0, sizeof *a * (size_t)(g.to - g.from));
        memset(a + n, 0, sizeof *a * (size_t)(end - n));
    }
}

static double dot(const float *x, const float *y, int32_t n) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

/* sum of A G of a row: dO . O */
static double delta_of(const full *f, const panel *p, int32_t r) {
    const int64_t row = at(f, f->in->n_head, p->first + r, p->h);
    return dot(f->d_o + row, f->o + row, f->in->d_head);
}

/* --- forward --------------------------------------------------------------------------------------------------------- */

static void full_task(void *ctx, int32_t task, int32_t thread) {
    const full *f = ctx;
    const panel p = panel_at(f, task % f->in->n_head, f->nb - 1 - task / f->in->n_head, thread);
    against_keys(f, &p, f->in->scale, f->in->q, f->in->k, p.a);
    for (int32_t r = 0; r < p.n_row; r++) {
        float *a = p.a + (size_t)r * f->pad;
        const gap g = gap_of(f, &p, r);
        const int32_t n = p.first + r + 1;
        const float max = max_seen(f, a, g, n);
        memset(a + g.from, 0, sizeof *a * (size_t)(g.to - g.from));
        f->kern->exp_shift(a, g.from, max);
        f->kern->exp_shift(a + g.to, n - g.to, max);
        const double sum = sum_of(a, n);
        const float inverse = (float)(1 / sum);
        for (int32_t j = 0; j < n; j++)
            a[j] *= inverse;
        memset(a + n, 0, sizeof *a * (size_t)(p.first + BLOCK - n));
        f->fwd->lse[(int64_t)(p.first + r) * f->in->n_head + p.h] = (float)(max + log(sum));
    }
    times_keys(f, &p, p.a, f->in->v, f->fwd->o);
}

/* --- gradients ------------------------------------------------------------------------------------------------------- */

/* dS in place of G */
static void score_gradients(const full *f, const panel *p) {
    for (int32_t r = 0; r < p->n_row; r++) {
        const float *a = p->a + (size_t)r * f->pad;
        float *g = p->g + (size_t)r * f->pad;
        const float delta = (float)delta_of(f, p, r), scale = f->in->scale;
        for (int32_t j = 0; j < p->n_key; j++)
            g[j] = a[j] * (g[j] - delta) * scale;
    }
}

/* to (n_key, d_head) += M^T X, X the panel's queries */
static void add_transposed(const full *f, const panel *p, const float *m, const float *x, float *to) {
    const moa_full *in = f->in;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, p->n_key, in->d_head, p->n_row, 1, m, (int)f->pad,
                x + at(f, in->n_head, p->first, p->h), in->n_head * in->d_head, 1, to, in->d_head);
}

static void bwd_task(void *ctx, int32_t h, int32_t thread) {
    const full *f = ctx;
    const size_t n = (size_t)f->in->n_tok * (size_t)f->in->d_head;
    float *dk = f->dk + (size_t)h * n, *dv = f->dv + (size_t)h * n;
    memset(dk, 0, n * sizeof *dk);
    memset(dv, 0, n * sizeof *dv);
    for (int32_t qb = 0; qb < f->nb; qb++) {
        const panel p = panel_at(f, h, qb, thread);
        probabilities(f, &p, NULL);
        against_keys(f, &p, 1, f->d_o, f->in->v, p.g);
        add_transposed(f, &p, p.a, f->d_o, dv);
        score_gradients(f, &p);
        times_keys(f, &p, p.g, f->in->k, f->bwd->dq);
        add_transposed(f, &p, p.g, f->in->q, dk);
    }
}

/* dk, dv of ROWS tokens: the heads of each group summed in their order */
static void gather_task(void *ctx, int32_t task, int32_t thread) {
    (void)thread;
    const full *f = ctx;
    const moa_full *in = f->in;
    const int32_t group = in->n_head / in->n_head_kv;
    for (int32_t t = task * ROWS; t < (task + 1) * ROWS && t < in->n_tok; t++)
        for (int32_t h = 0; h < in->n_head; h++) {
            const int64_t from = ((int64_t)h * in->n_tok + t) * in->d_head,
                          to = at(f, in->n_head_kv, t, h / group);
            for (int32_t d = 0; d < in->d_head; d++) {
                f->bwd->dk[to + d] = (h % group ? f->bwd->dk[to + d] : 0) + f->dk[from + d];
                f->bwd->dv[to + d] = (h % group ? f->bwd->dv[to + d] : 0) + f->dv[from + d];
            }
        }
}

/* --- influence ------------------------------------------------------------------------------------------------------- */

typedef struct block_sums {
    double *mass, *gain, *e, *abs_e; /* (nb): sums of A, A G, E, |E| over the row's keys of each block */
} block_sums;

/* the entries of one block of a row; those with A = 0 add nothing */
static void sum_block(const float *a, const float *g, float delta, int32_t b, const block_sums *s) {
    float mass[LANES] = {0}, gain[LANES] = {0}, e[LANES] = {0}, abs_e[LANES] = {0};
    for (int32_t j = 0; j < BLOCK; j += LANES)
        for (int l = 0; l < LANES; l++) {
            const float p = a[j + l], x = g[j + l], q = p / (1 - p) * (delta - x);
            mass[l] += p;
            gain[l] += p * x;
            e[l] += q;
            abs_e[l] += fabsf(q);
        }
    s->mass[b] = s->gain[b] = s->e[b] = s->abs_e[b] = 0;
    for (int l = 0; l < LANES; l++) {
        s->mass[b] += mass[l];
        s->gain[b] += gain[l];
        s->e[b] += e[l];
        s->abs_e[b] += abs_e[l];
    }
}

/* sums of A and A G */
typedef struct weight {
    double mass, gain;
} weight;

/* the first `last` keys of block b, which the row does not see */
static void add_unseen(const float *a, const float *g, int32_t last, int32_t b, const block_sums *s) {
    for (int32_t j = 0; j < last; j++) {
        s->mass[b] += a[j];
        s->gain[b] += (double)a[j] * g[j];
    }
}

/* all blocks of a row; seen: what of them the row sees */
static weight sum_blocks(const float *a, const float *g, float delta, int32_t n_block, gap cut, const block_sums *s) {
    weight seen = {0, 0};
    for (int32_t b = 0; b < n_block; b++) {
        const float *x = a + (size_t)b * BLOCK, *y = g + (size_t)b * BLOCK;
        const int32_t n_cut = b * BLOCK < cut.from || b * BLOCK >= cut.to ? 0
                              : cut.to - b * BLOCK < BLOCK               ? cut.to - b * BLOCK
                                                                          : BLOCK;
        float part[BLOCK];
        if (n_cut > 0) {
            memset(part, 0, sizeof *part * (size_t)n_cut);
            memcpy(part + n_cut, x + n_cut, sizeof *part * (size_t)(BLOCK - n_cut));
        }
        sum_block(n_cut > 0 ? part : x, y, delta, b, s);
        seen.mass += s->mass[b];
        seen.gain += s->gain[b];
        add_unseen(x, y, n_cut, b, s);
    }
    return seen;
}

/* the entry above 1/2, -1: none. It is set to 0. */
static int32_t take_peak(const full *f, float *a, gap cut, int32_t n, float *peak) {
    *peak = max_seen(f, a, cut, n);
    if (*peak <= 0.5f) return -1;
    int32_t j = 0;
    while (a[j] != *peak || (j >= cut.from && j < cut.to))
        j++;
    a[j] = 0;
    return j;
}

/* gives the peak back to its block and to what the row sees; false: nothing is left beside it to divide by */
static bool add_peak(const block_sums *s, weight *seen, int32_t j, double peak, double g) {
    const bool ok = seen->mass >= MOA_INFLUENCE_TINY;
    const double e = ok ? peak * (seen->gain / seen->mass - g) : 0;
    s->mass[j / BLOCK] += peak;
    s->gain[j / BLOCK] += peak * g;
    s->e[j / BLOCK] += e;
    s->abs_e[j / BLOCK] += fabs(e);
    seen->mass += peak;
    seen->gain += peak * g;
    return ok;
}

/* curve (nb + 1) += the row's change under every window; cut: the row does not see everything as it is.
 * false: some kept mass was too small to divide by */
static bool add_curve(const block_sums *s, int32_t qb, int32_t nb, bool cut, weight seen, double *curve) {
    double kept = s->mass[0], kept_gain = s->gain[0];
    const double delta = seen.gain / seen.mass;
    int32_t w = 1;
    bool ok = true;
    for (; qb - w + 1 > 1; w++) {
        kept += s->mass[qb - w + 1];
        kept_gain += s->gain[qb - w + 1];
        ok = ok && kept >= MOA_INFLUENCE_TINY;
        curve[w] += kept_gain / (kept >= MOA_INFLUENCE_TINY ? kept : MOA_INFLUENCE_TINY) - delta;
    }
    if (!cut) return ok; /* wider windows change nothing */
    kept += s->mass[1];
    kept_gain += s->gain[1];
    for (; w <= nb; w++)
        curve[w] += kept_gain / kept - delta;
    return ok;
}

/* row r of the panel, its block sums in s; false: clamped */
static bool look_at_row(const full *f, const panel *p, int32_t r, const block_sums *s, double *curve) {
    float *a = p->a + (size_t)r * f->pad, peak;
    const float *g = p->g + (size_t)r * f->pad;
    const int32_t i = p->first + r, n_block = i / BLOCK + 1;
    const gap cut = gap_of(f, p, r);
    if (i == 0) {
        s->mass[0] = a[0];
        s->gain[0] = a[0] * g[0];
        s->e[0] = -s->gain[0];
        s->abs_e[0] = fabs(s->gain[0]);
        return true;
    }
    const int32_t j = take_peak(f, a, cut, i + 1, &peak);
    weight seen = sum_blocks(a, g, (float)delta_of(f, p, r), n_block, cut, s);
    bool ok = j < 0 || add_peak(s, &seen, j, peak, g[j]);
    if (!add_curve(s, n_block - 1, f->nb, cut.to > cut.from, seen, curve)) ok = false;
    return ok;
}

static void influence_task(void *ctx, int32_t task, int32_t thread) {
    const full *f = ctx;
    const int32_t nb = f->nb, h = task % f->in->n_head, qb = nb - 1 - task / f->in->n_head;
    const panel p = panel_at(f, h, qb, thread);
    double *room = f->sums + (size_t)thread * 6 * (size_t)nb,
           *curve = f->curves + ((int64_t)h * nb + qb) * (nb + 1), *e = room + 4 * (size_t)nb, *abs_e = e + nb;
    const block_sums s = {room, room + nb, room + 2 * (size_t)nb, room + 3 * (size_t)nb};
    int32_t clamped = 0;
    bool far[BLOCK];
    memset(e, 0, sizeof *e * 2 * (size_t)nb);
    memset(curve, 0, sizeof *curve * ((size_t)nb + 1));
    probabilities(f, &p, far);
    against_keys(f, &p, 1, f->d_o, f->in->v, p.g);
    for (int32_t r = 0; r < p.n_row; r++) {
        /* keys beyond the sequence: A is 0 there, G must be a number */
        memset(p.g + (size_t)r * f->pad + p.n_key, 0, sizeof *p.g * (size_t)(p.first + BLOCK - p.n_key));
        const bool ok = look_at_row(f, &p, r, &s, curve);
        clamped += !ok || far[r];
        for (int32_t b = 0; b <= qb; b++) {
            e[b] += s.e[b];
            abs_e[b] += s.abs_e[b];
        }
    }
    const int64_t to = ((int64_t)h * nb + qb) * nb;
    for (int32_t b = 0; b < nb; b++) {
        f->inf->abs[to + b] = (float)abs_e[b];
        f->inf->sum[to + b] = (float)e[b];
    }
    f->clamped[(int64_t)h * nb + qb] = clamped;
}

/* panels' curves and counts, in their order */
static void influence_merge(const full *f) {
    const int32_t nb = f->nb;
    for (int32_t h = 0; h < f->in->n_head; h++) {
        for (int32_t w = 0; w <= nb; w++) {
            double sum = 0;
            for (int32_t qb = 0; qb < nb; qb++)
                sum += f->curves[((int64_t)h * nb + qb) * (nb + 1) + w];
            f->inf->joint[(int64_t)h * (nb + 1) + w] = (float)sum;
        }
        for (int32_t qb = 0; qb < nb; qb++)
            *f->inf->clamped += f->clamped[(int64_t)h * nb + qb];
    }
}

/* --- operations ------------------------------------------------------------------------------------------------------ */

/* takes `count` elements of the room; counts only when base is NULL */
static void *take(char *base, size_t *used, size_t count, size_t elem_bytes, bool *ok) {
    size_t bytes = 0;
    void *p = base ? base + *used : NULL;
    *ok = *ok && moa_size_mul(count, elem_bytes, &bytes) && moa_size_pad(bytes, 64, &bytes) &&
          moa_size_add(*used, bytes, used);
    return p;
}

static bool lay(full *f, int32_t n_threads, char *base, size_t *used) {
    const size_t n_head = (size_t)f->in->n_head, nb = (size_t)f->nb,
                 n = n_head * (size_t)f->in->n_tok * (size_t)f->in->d_head;
    bool ok = true;
    *used = 0;
    f->panels = take(base, used, (size_t)n_threads * 2 * BLOCK, f->pad * sizeof(float), &ok);
    if (f->bwd) {
        f->dk = take(base, used, n, sizeof *f->dk, &ok);
        f->dv = take(base, used, n, sizeof *f->dv, &ok);
    }
    if (f->inf) {
        f->sums = take(base, used, (size_t)n_threads * 6 * nb, sizeof *f->sums, &ok);
        f->curves = take(base, used, n_head * nb, (nb + 1) * sizeof *f->curves, &ok);
        f->clamped = take(base, used, n_head * nb, sizeof *f->clamped, &ok);
    }
    return ok;
}

static moa_status prepare(moa_cpu *cpu, full *f, const moa_full *in, moa_err *err) {
    size_t bytes;
    f->in = in;
    f->kern = cpu->kern;
    f->nb = (in->n_tok - 1) / BLOCK + 1;
    f->pad = (size_t)f->nb * BLOCK;
    if (!lay(f, cpu->n_threads, NULL, &bytes))
        return moa_fail(err, MOA_E_MEMORY, "the scratch for %d tokens does not fit the address space", in->n_tok);
    char *base = moa_cpu_room(cpu, bytes, err);
    if (!base) return MOA_E_MEMORY;
    (void)lay(f, cpu->n_threads, base, &bytes);
    return MOA_OK;
}

moa_status moa_fast_attn_full(moa_backend *b, const moa_args_attn_full *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    full f = {.fwd = a};
    if (a->in.n_tok <= 0) return MOA_OK;
    const moa_status s = prepare(cpu, &f, &a->in, err);
    if (s == MOA_OK) moa_pool_run(cpu->pool, full_task, &f, f.nb * a->in.n_head);
    return s;
}

moa_status moa_fast_attn_bwd(moa_backend *b, const moa_args_attn_bwd *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    full f = {.bwd = a, .lse = a->lse, .o = a->o, .d_o = a->d_o};
    if (a->in.n_tok <= 0) return MOA_OK;
    const moa_status s = prepare(cpu, &f, &a->in, err);
    if (s != MOA_OK) return s;
    moa_pool_run(cpu->pool, bwd_task, &f, a->in.n_head);
    moa_pool_run(cpu->pool, gather_task, &f, (a->in.n_tok - 1) / ROWS + 1);
    return MOA_OK;
}

moa_status moa_fast_attn_influence(moa_backend *b, const moa_args_attn_influence *a, moa_err *err) {
    moa_cpu *cpu = (moa_cpu *)b;
    full f = {.inf = a, .lse = a->lse, .o = a->o, .d_o = a->d_o};
    if (a->in.n_tok <= 0) return MOA_OK;
    const moa_status s = prepare(cpu, &f, &a->in, err);
    if (s != MOA_OK) return s;
    moa_pool_run(cpu->pool, influence_task, &f, f.nb * a->in.n_head);
    influence_merge(&f);
    return MOA_OK;
}
