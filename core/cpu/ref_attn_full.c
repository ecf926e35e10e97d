/* Causal attention of a whole sequence, dense or under spans, its gradients, and what masking keys would change: row by row, in double.
 *
 *   A_ij = softmax_j(scale q_i.k_j) over the keys seen        o_i = sum_j A_ij v_j        G_ij = d_o_i.v_j        delta_i = sum_j A_ij G_ij
 *   dS_ij = A_ij (G_ij - delta_i)
 *   dq_i = scale sum_j dS_ij k_j        dk_j = scale sum_i dS_ij q_i        dv_j = sum_i A_ij d_o_i
 *
 * Influence: the one entry of a row with A > 1/2 takes the form that does not cancel, with the mean of the others
 *
 *   E_ij = A_ij (sum_{n != j} A_in G_in / sum_{n != j} A_in - G_ij)
 *
 * Under spans A of a key that is not seen is 0, but for the windows: there it is exp(scale q.k - lse), as for those seen.
 *
 * Here everything is recomputed from q, k, v and d_o; o and lse are what the faster versions start from. */
#include <math.h>
#include <stdlib.h>

#include "core/cpu/cpu.h"
#include "core/engine/spans.h"

enum { BLOCK = MOA_PAGE_TOK };

/* one row of one head; q, o, d_o: its d_head elements */
typedef struct row {
    const moa_full *in;
    const float *q, *d_o;
    int32_t i, head_kv, span; /* span: INT32_MAX: sees everything */
    double *a, *g; /* (i + 1) */
    double *acc;   /* scratch (d_head) */
    double lse;
    bool far; /* a key not seen counts as less than it weighs */
} row;

static const float *key(const row *r, const float *of, int32_t j) {
    return of + ((int64_t)j * r->in->n_head_kv + r->head_kv) * r->in->d_head;
}

static bool sees(const row *r, int32_t j) {
    return moa_sees(r->span, r->i, j);
}

/* nothing is cut from the row as it is */
static bool sees_all(const row *r) {
    return moa_n_seen(r->span, r->i) == r->i + 1;
}

static double dot(const float *x, const float *y, int32_t n) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += (double)x[i] * y[i];
    return sum;
}

/* fills a, and g where d_o is there; a of keys not seen is above the sum of those seen, and may be more than 1 */
static void look(row *r) {
    const moa_full *in = r->in;
    double max = -INFINITY, sum = 0;
    for (int32_t j = 0; j <= r->i; j++) {
        r->a[j] = in->scale * dot(r->q, key(r, in->k, j), in->d_head);
        if (sees(r, j) && r->a[j] > max) max = r->a[j];
        if (r->d_o) r->g[j] = dot(r->d_o, key(r, in->v, j), in->d_head);
    }
    for (int32_t j = 0; j <= r->i; j++)
        if (sees(r, j)) sum += exp(r->a[j] - max);
    r->lse = max + log(sum);
    r->far = false;
    for (int32_t j = 0; j <= r->i; j++) {
        if (sees(r, j)) r->a[j] = exp(r->a[j] - max) / sum;
        else {
            r->far = r->far || r->a[j] - r->lse > MOA_INFLUENCE_MOST;
            r->a[j] = exp(fmin(r->a[j] - r->lse, MOA_INFLUENCE_MOST));
        }
    }
}

static double delta_of(const row *r) {
    double sum = 0;
    for (int32_t j = 0; j <= r->i; j++)
        if (sees(r, j)) sum += r->a[j] * r->g[j];
    return sum;
}

/* row i of head h; d_o may be NULL */
static void aim(row *r, const float *d_o, int32_t i, int32_t h) {
    const moa_full *in = r->in;
    const int64_t at = ((int64_t)i * in->n_head + h) * in->d_head;
    r->q = in->q + at;
    r->d_o = d_o ? d_o + at : NULL;
    r->i = i;
    r->span = in->span ? in->span[h] : INT32_MAX;
    r->head_kv = h / (in->n_head / in->n_head_kv);
    look(r);
}

static moa_status row_open(row *r, const moa_full *in, moa_err *err) {
    *r = (row){.in = in};
    r->a = moa_cpu_scratch((size_t)in->n_tok, sizeof *r->a, err);
    r->g = moa_cpu_scratch((size_t)in->n_tok, sizeof *r->g, err);
    r->acc = moa_cpu_scratch((size_t)in->d_head, sizeof *r->acc, err);
    return r->a && r->g && r->acc ? MOA_OK : MOA_E_MEMORY;
}

static void row_close(row *r) {
    free(r->acc);
    free(r->a);
    free(r->g);
}

moa_status moa_ref_attn_full(moa_backend *b, const moa_args_attn_full *a, moa_err *err) {
    (void)b;
    const moa_full *in = &a->in;
    row r;
    const moa_status s = row_open(&r, in, err);
    for (int32_t i = 0; i < in->n_tok && s == MOA_OK; i++)
        for (int32_t h = 0; h < in->n_head; h++) {
            const int64_t at = (int64_t)i * in->n_head + h;
            aim(&r, NULL, i, h);
            a->lse[at] = (float)r.lse;
            for (int32_t d = 0; d < in->d_head; d++)
                r.acc[d] = 0;
            for (int32_t j = 0; j <= i; j++)
                for (int32_t d = 0; d < in->d_head && sees(&r, j); d++)
                    r.acc[d] += r.a[j] * key(&r, in->v, j)[d];
            for (int32_t d = 0; d < in->d_head; d++)
                a->o[at * in->d_head + d] = (float)r.acc[d];
        }
    row_close(&r);
    return s;
}

/* --- gradients ------------------------------------------------------------------------------------------------------- */

/* dk, dv (n_tok, n_head_kv, d_head): the sums so far, in double */
static void add_row(const moa_args_attn_bwd *a, const row *r, int32_t h, double *dk, double *dv) {
    const moa_full *in = &a->in;
    const double delta = delta_of(r);
    float *dq = a->dq + ((int64_t)r->i * in->n_head + h) * in->d_head;
    for (int32_t d = 0; d < in->d_head; d++)
        r->acc[d] = 0;
    for (int32_t j = 0; j <= r->i; j++) {
        if (!sees(r, j)) continue;
        const double ds = in->scale * r->a[j] * (r->g[j] - delta);
        const int64_t at = key(r, in->k, j) - in->k;
        for (int32_t d = 0; d < in->d_head; d++) {
            r->acc[d] += ds * in->k[at + d];
            dk[at + d] += ds * r->q[d];
            dv[at + d] += r->a[j] * r->d_o[d];
        }
    }
    for (int32_t d = 0; d < in->d_head; d++)
        dq[d] = (float)r->acc[d];
}

moa_status moa_ref_attn_bwd(moa_backend *b, const moa_args_attn_bwd *a, moa_err *err) {
    (void)b;
    const moa_full *in = &a->in;
    const size_t n = (size_t)in->n_tok * (size_t)in->n_head_kv * (size_t)in->d_head;
    row r;
    moa_status s = row_open(&r, in, err);
    double *dk = moa_cpu_scratch(n, sizeof *dk, err), *dv = moa_cpu_scratch(n, sizeof *dv, err);
    if (!dk || !dv) s = MOA_E_MEMORY;
    for (size_t i = 0; i < n && s == MOA_OK; i++)
        dk[i] = dv[i] = 0;
    for (int32_t i = 0; i < in->n_tok && s == MOA_OK; i++)
        for (int32_t h = 0; h < in->n_head; h++) {
            aim(&r, a->d_o, i, h);
            add_row(a, &r, h, dk, dv);
        }
    for (size_t i = 0; i < n && s == MOA_OK; i++) {
        a->dk[i] = (float)dk[i];
        a->dv[i] = (float)dv[i];
    }
    row_close(&r);
    free(dk);
    free(dv);
    return s;
}

/* --- influence ------------------------------------------------------------------------------------------------------- */

/* E of key j; *clamped where nothing is left beside it to divide by */
static double influence(const row *r, int32_t j, double delta, bool *clamped) {
    if (!sees(r, j)) return 0;
    if (r->i == 0) return -r->g[0] * r->a[0];
    if (r->a[j] <= 0.5) return r->a[j] / (1 - r->a[j]) * (delta - r->g[j]);
    double mass = 0, sum = 0;
    for (int32_t n = 0; n <= r->i; n++) {
        if (n == j || !sees(r, n)) continue;
        mass += r->a[n];
        sum += r->a[n] * r->g[n];
    }
    if (mass < MOA_INFLUENCE_TINY) {
        *clamped = true;
        return 0;
    }
    return r->a[j] * (sum / mass - r->g[j]);
}

/* change of the loss when the row keeps block 0 and the newest w blocks */
static double joint(const row *r, int32_t w, double delta, bool *clamped) {
    const int32_t first = (r->i / BLOCK - w + 1) * BLOCK;
    double mass = 0, sum = 0;
    if (first <= BLOCK && sees_all(r)) return 0; /* nothing is cut */
    for (int32_t j = 0; j <= r->i; j++)
        if (j < BLOCK || j >= first) {
            mass += r->a[j];
            sum += r->a[j] * r->g[j];
        }
    if (mass < MOA_INFLUENCE_TINY) {
        *clamped = true;
        mass = MOA_INFLUENCE_TINY;
    }
    return sum / mass - delta;
}

/* sums: abs (nb, nb), sum (nb, nb), joint (nb + 1) of one head, 0 at first */
static void head_influence(const moa_args_attn_influence *a, row *r, int32_t h, double *sums) {
    const int32_t nb = (a->in.n_tok + BLOCK - 1) / BLOCK;
    double *abs = sums, *sum = abs + (int64_t)nb * nb, *curve = sum + (int64_t)nb * nb;
    for (int32_t i = 0; i < a->in.n_tok; i++) {
        aim(r, a->d_o, i, h);
        bool clamped = r->far;
        const double delta = delta_of(r);
        for (int32_t j = 0; j <= i; j++) {
            const double e = influence(r, j, delta, &clamped);
            const int64_t at = (int64_t)(i / BLOCK) * nb + j / BLOCK;
            abs[at] += fabs(e);
            sum[at] += e;
        }
        for (int32_t w = 1; w <= nb; w++)
            curve[w] += joint(r, w, delta, &clamped);
        *a->clamped += clamped;
    }
}

moa_status moa_ref_attn_influence(moa_backend *b, const moa_args_attn_influence *a, moa_err *err) {
    (void)b;
    const int64_t nb = (a->in.n_tok + BLOCK - 1) / BLOCK, n_map = nb * nb, n_sum = 2 * n_map + nb + 1;
    row r;
    moa_status s = row_open(&r, &a->in, err);
    double *sums = moa_cpu_scratch((size_t)n_sum, sizeof *sums, err);
    if (!sums) s = MOA_E_MEMORY;
    for (int32_t h = 0; h < a->in.n_head && s == MOA_OK; h++) {
        for (int64_t i = 0; i < n_sum; i++)
            sums[i] = 0;
        head_influence(a, &r, h, sums);
        for (int64_t i = 0; i < n_map; i++) {
            a->abs[h * n_map + i] = (float)sums[i];
            a->sum[h * n_map + i] = (float)sums[n_map + i];
        }
        for (int64_t w = 0; w <= nb; w++)
            a->joint[h * (nb + 1) + w] = (float)sums[2 * n_map + w];
    }
    row_close(&r);
    free(sums);
    return s;
}
