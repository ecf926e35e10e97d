/* The operations of the influence profile.
 *
 *   reference   against numerical derivatives and against masking for real: with L = sum of d_o . o the loss is linear in o, so what
 *               masking a key or cutting a window changes is exactly E, not only to first order
 *   tested      the fast CPU operations, or $MOA_TEST_DEVICE, against the reference, over shapes with every kind of edge
 *
 * On a GPU run it twice: as it is, and with MOASCOPE_CUDA_GEMM=f32, which has the limits of the CPU.
 * Every output is NaN beforehand: what is not written is seen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/backend.h"

enum { REF, TESTED, BLOCK = 64, MAX_ARRAY = 32 };

static moa_backend *backends[2];
static uint64_t rng_state = 88172645463325252u;

static void must(moa_status s, const moa_err *err) {
    if (s != MOA_OK) fail_msg("%s", err->text);
}

static double uniform(void) {
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return (double)(rng_state >> 11) * 0x1p-53;
}
static float normal(void) {
    return (float)(sqrt(-2 * log(uniform() + 1e-300)) * cos(6.283185307179586 * uniform()));
}
static float *normals(size_t n, float scale) {
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * normal();
    return x;
}

/* --- arrays on a device: made by host content or NaN, all freed by forget() ------------------------------------------------ */

static struct {
    moa_backend *b;
    void *p;
} arrays[MAX_ARRAY];
static int n_array;

static void *place(moa_backend *b, const void *host, size_t bytes) {
    moa_err err = {0};
    void *p = NULL, *nan = NULL;
    assert_true(n_array < MAX_ARRAY);
    if (!host) {
        nan = malloc(bytes);
        assert_non_null(nan);
        memset(nan, 0xff, bytes);
    }
    must(b->vt->alloc(b, bytes, &p, &err), &err);
    must(b->vt->upload(b, p, host ? host : nan, bytes, &err), &err);
    free(nan);
    arrays[n_array].b = b;
    arrays[n_array++].p = p;
    return p;
}
static float *put(moa_backend *b, const float *host, size_t n) {
    return place(b, host, n * sizeof *host);
}
static float *get(moa_backend *b, const float *p, size_t n) {
    moa_err err = {0};
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    must(b->vt->download(b, x, p, n * sizeof *x, &err), &err);
    return x;
}
static void forget(void) {
    while (n_array > 0) {
        n_array--;
        arrays[n_array].b->vt->free(arrays[n_array].b, arrays[n_array].p);
    }
}

#define CALL(b, op, ...)                                                                                     \
    do {                                                                                                     \
        moa_err call_err = {0};                                                                              \
        must((b)->vt->op((b), &(moa_args_##op){__VA_ARGS__}, &call_err), &call_err);                         \
    } while (0)

/* error of x against y, relative to the norm of y; NaN is infinite */
static double distance(const float *x, const float *y, size_t n) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)x[i] - y[i];
        error += isfinite(x[i]) ? d * d : INFINITY;
        norm += (double)y[i] * y[i];
    }
    return sqrt(error / (norm > 0 ? norm : 1));
}

/* CUDA's products: float32 when $MOASCOPE_CUDA_GEMM says so, else tf32, whose 11 bits of q and k are felt in exp(q.k) */
static bool is_coarse(void) {
    const char *gemm = getenv("MOASCOPE_CUDA_GEMM");
    return getenv("MOA_TEST_DEVICE") && strncmp(getenv("MOA_TEST_DEVICE"), "cuda", 4) == 0 && (!gemm || strcmp(gemm, "f32") != 0);
}
static double limit(void) {
    return is_coarse() ? 0.1 : 2e-5; /* float32 sums of some hundred terms, cancellation included */
}
/* attention in half precision with scales (d_head 64 and 128 on Hopper GPUs) has no such excuse */
static double limit_of(int32_t d_head) {
    return is_coarse() && (d_head == 64 || d_head == 128) ? 2e-2 : limit();
}
/* how near a known answer must be */
static double near(int b, double exact) {
    return b == TESTED && is_coarse() ? 1e-2 : exact;
}

static void assert_close(const char *name, const float *x, const float *y, size_t n, double most) {
    const double far = distance(x, y, n);
    if (getenv("MOA_TEST_TELL")) print_message("%s: relative error %.2e, limit %.0e\n", name, far, most);
    if (!(far <= most)) fail_msg("%s: relative error %.2e, limit %.0e", name, far, most);
}
#define CLOSE(name, x, y, n) assert_close(name, x, y, n, limit())

/* --- attention: what everything is made from -------------------------------------------------------------------------------- */

typedef struct shape {
    int32_t n_tok, n_head, n_head_kv, d_head;
    float q_scale; /* large: sharp attention, entries near 1 */
} shape;

typedef struct input {
    shape s;
    size_t n_q, n_kv;
    float *q, *k, *v, *d_o; /* host */
    int32_t *span;          /* (n_head), or NULL: everything is seen */
} input;

static input input_make(shape s) {
    input in = {.s = s};
    in.n_q = (size_t)s.n_tok * (size_t)s.n_head * (size_t)s.d_head;
    in.n_kv = (size_t)s.n_tok * (size_t)s.n_head_kv * (size_t)s.d_head;
    in.q = normals(in.n_q, s.q_scale);
    in.k = normals(in.n_kv, 1);
    in.v = normals(in.n_kv, 1);
    in.d_o = normals(in.n_q, 1);
    return in;
}
static void input_free(input *in) {
    free(in->q);
    free(in->k);
    free(in->v);
    free(in->d_o);
    free(in->span);
}

/* spans of every kind: the least, some that end within a block of keys, one that a few last rows exceed, one as long as the sequence */
static void give_spans(input *in) {
    const int32_t some[] = {128, 192, 256, moa_roundup64(in->s.n_tok), moa_roundup64(in->s.n_tok / 2 + 64)};
    in->span = malloc((size_t)in->s.n_head * sizeof *in->span);
    assert_non_null(in->span);
    for (int32_t h = 0; h < in->s.n_head; h++)
        in->span[h] = some[h % 5] < MOA_SPAN_MIN ? MOA_SPAN_MIN : some[h % 5];
}

static float scale_of(const shape *s) {
    return (float)(1 / sqrt((double)s->d_head));
}

typedef struct output {
    size_t nb, n_map, n_curve;
    float *o, *lse, *dq, *dk, *dv, *abs, *sum, *joint; /* host */
    int32_t clamped;
} output;

/* all three operations on a backend */
static output attention(moa_backend *b, const input *in) {
    const shape *s = &in->s;
    output r = {.nb = (size_t)(s->n_tok + BLOCK - 1) / BLOCK};
    const size_t n_lse = (size_t)s->n_tok * (size_t)s->n_head;
    const int32_t zero = 0;
    r.n_map = (size_t)s->n_head * r.nb * r.nb;
    r.n_curve = (size_t)s->n_head * (r.nb + 1);
    const moa_full full = {put(b, in->q, in->n_q), put(b, in->k, in->n_kv), put(b, in->v, in->n_kv), s->n_tok,
                           s->n_head,              s->n_head_kv,            s->d_head,               scale_of(s),
                           in->span ? place(b, in->span, (size_t)s->n_head * sizeof *in->span) : NULL};
    const float *d_o = put(b, in->d_o, in->n_q);
    float *o = put(b, NULL, in->n_q), *lse = put(b, NULL, n_lse), *dq = put(b, NULL, in->n_q),
          *dk = put(b, NULL, in->n_kv), *dv = put(b, NULL, in->n_kv), *abs = put(b, NULL, r.n_map),
          *sum = put(b, NULL, r.n_map), *joint = put(b, NULL, r.n_curve);
    int32_t *clamped = place(b, &zero, sizeof zero);
    CALL(b, attn_full, .in = full, .o = o, .lse = lse);
    CALL(b, attn_bwd, .in = full, .o = o, .lse = lse, .d_o = d_o, .dq = dq, .dk = dk, .dv = dv);
    CALL(b, attn_influence, .in = full, .o = o, .lse = lse, .d_o = d_o, .abs = abs, .sum = sum, .joint = joint,
         .clamped = clamped);
    r.o = get(b, o, in->n_q);
    r.lse = get(b, lse, n_lse);
    r.dq = get(b, dq, in->n_q);
    r.dk = get(b, dk, in->n_kv);
    r.dv = get(b, dv, in->n_kv);
    r.abs = get(b, abs, r.n_map);
    r.sum = get(b, sum, r.n_map);
    r.joint = get(b, joint, r.n_curve);
    moa_err err = {0};
    must(b->vt->download(b, &r.clamped, clamped, sizeof r.clamped, &err), &err);
    forget();
    return r;
}
static void output_free(output *r) {
    float *all[] = {r->o, r->lse, r->dq, r->dk, r->dv, r->abs, r->sum, r->joint};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* --- by brute force ------------------------------------------------------------------------------------------------------------ */

/* d_o . o of row i of head h when some keys are not seen, all in double */
typedef struct cut {
    int32_t without; /* key that is masked, -1: none */
    int32_t from;    /* with block 0, keys from here on are kept */
    bool any;        /* the head's span is no matter */
} cut;

static double row_loss(const input *in, int32_t i, int32_t h, cut c) {
    const shape *s = &in->s;
    const int32_t kv = h / (s->n_head / s->n_head_kv);
    const float *q = in->q + ((size_t)i * (size_t)s->n_head + (size_t)h) * (size_t)s->d_head;
    const float *d_o = in->d_o + (q - in->q);
    double mass = 0, sum = 0;
    for (int32_t j = 0; j <= i; j++) {
        const size_t at = ((size_t)j * (size_t)s->n_head_kv + (size_t)kv) * (size_t)s->d_head;
        double score = 0, gain = 0;
        if (j == c.without || (j >= BLOCK && j < c.from)) continue;
        if (in->span && !c.any && !moa_sees(in->span[h], i, j)) continue;
        for (int32_t d = 0; d < s->d_head; d++) {
            score += (double)q[d] * in->k[at + (size_t)d];
            gain += (double)d_o[d] * in->v[at + (size_t)d];
        }
        const double e = exp(score * scale_of(s));
        mass += e;
        sum += e * gain;
    }
    return mass > 0 ? sum / mass : 0;
}

static double loss(const input *in) {
    double sum = 0;
    for (int32_t i = 0; i < in->s.n_tok; i++)
        for (int32_t h = 0; h < in->s.n_head; h++)
            sum += row_loss(in, i, h, (cut){-1, 0});
    return sum;
}

static double slope(const input *in, float *x) {
    const float was = *x, up = was + 1e-3f, down = was - 1e-3f;
    *x = up;
    const double high = loss(in);
    *x = down;
    const double low = loss(in);
    *x = was;
    return (high - low) / ((double)up - (double)down);
}

static void reference_gradients_are_slopes(void **state) {
    (void)state;
    for (int spans = 0; spans < 2; spans++) {
        input in = input_make((shape){spans ? 210 : 70, 6, 2, 8, 1});
        if (spans) give_spans(&in);
        output r = attention(backends[REF], &in);
        for (int t = 0; t < 12; t++) {
            const size_t q = (size_t)(uniform() * (double)in.n_q), k = (size_t)(uniform() * (double)in.n_kv);
            assert_float_equal(r.dq[q], slope(&in, &in.q[q]), 1e-4);
            assert_float_equal(r.dk[k], slope(&in, &in.k[k]), 1e-4);
            assert_float_equal(r.dv[k], slope(&in, &in.v[k]), 1e-4);
        }
        output_free(&r);
        input_free(&in);
    }
}

/* every E is what masking for real changes; every window likewise, under spans the wider ones too */
static void check_influence(shape s, bool spans) {
    input in = input_make(s);
    if (spans) give_spans(&in);
    output r = attention(backends[REF], &in);
    const int32_t nb = (int32_t)r.nb;
    double *abs = calloc(r.n_map, sizeof *abs), *sum = calloc(r.n_map, sizeof *sum),
           *joint = calloc(r.n_curve, sizeof *joint), scale = 0, joint_scale = 0;
    assert_true(abs && sum && joint);
    for (int32_t h = 0; h < s.n_head; h++)
        for (int32_t i = 0; i < s.n_tok; i++) {
            const double whole = row_loss(&in, i, h, (cut){-1, 0});
            for (int32_t j = 0; j <= i; j++) {
                const bool seen = !spans || moa_sees(in.span[h], i, j);
                const double e = seen ? row_loss(&in, i, h, (cut){j, 0}) - whole : 0;
                const int64_t at = ((int64_t)h * nb + i / BLOCK) * nb + j / BLOCK;
                abs[at] += fabs(e);
                sum[at] += e;
            }
            for (int32_t w = 1; w <= nb; w++)
                joint[h * (nb + 1) + w] += row_loss(&in, i, h, (cut){-1, (i / BLOCK - w + 1) * BLOCK, true}) - whole;
        }
    for (size_t i = 0; i < r.n_map; i++)
        scale = fmax(scale, abs[i]);
    for (size_t i = 0; i < r.n_curve; i++)
        joint_scale = fmax(joint_scale, fabs(joint[i]));
    for (size_t i = 0; i < r.n_map; i++) {
        assert_float_equal(r.abs[i], abs[i], 1e-6 * scale);
        assert_float_equal(r.sum[i], sum[i], 1e-6 * scale);
    }
    for (size_t i = 0; i < r.n_curve; i++)
        assert_float_equal(r.joint[i], joint[i], 1e-6 * (joint_scale + 1e-9));
    assert_int_equal(r.clamped, 0);
    free(abs);
    free(sum);
    free(joint);
    output_free(&r);
    input_free(&in);
}

static void reference_influence_is_masking(void **state) {
    (void)state;
    check_influence((shape){200, 2, 1, 8, 1}, false);
    check_influence((shape){259, 1, 1, 4, 4}, false); /* sharp */
    check_influence((shape){64, 3, 3, 4, 1}, false);
}

static void reference_influence_under_spans_is_masking(void **state) {
    (void)state;
    check_influence((shape){200, 2, 1, 8, 1}, true);
    check_influence((shape){323, 5, 1, 4, 1}, true);
    check_influence((shape){259, 4, 2, 4, 4}, true);
    check_influence((shape){64, 3, 3, 4, 1}, true); /* nothing is cut */
}

/* --- known answers, on both ------------------------------------------------------------------------------------------------------ */

/* Row 128 sees A = (.5, .3, .2) on keys 0, 64 and 128 and nothing elsewhere; G = (1, -2, .5). Other rows have d_o = 0. */
static input golden(const double a[3], const double g[3]) {
    input in = input_make((shape){129, 1, 1, 4, 1});
    memset(in.q, 0, in.n_q * sizeof *in.q);
    memset(in.k, 0, in.n_kv * sizeof *in.k);
    memset(in.v, 0, in.n_kv * sizeof *in.v);
    memset(in.d_o, 0, in.n_q * sizeof *in.d_o);
    for (size_t j = 0; j < 129; j++)
        in.k[4 * j] = -400;
    for (size_t n = 0; n < 3; n++) {
        in.k[4 * 64 * n] = (float)(a[n] > 0 ? log(a[n]) : -400);
        in.v[4 * 64 * n] = (float)g[n];
    }
    in.q[4 * 128] = 2; /* times the scale of 1/sqrt(4) */
    in.d_o[4 * 128] = 1;
    return in;
}

static void golden_vector(void **state) {
    (void)state;
    static const double a[3] = {.5, .3, .2}, g[3] = {1, -2, .5}, e[3] = {-1, 6.0 / 7, -.125};
    for (int b = REF; b <= TESTED; b++) {
        input in = golden(a, g);
        output r = attention(backends[b], &in);
        for (int n = 0; n < 3; n++) {
            assert_float_equal(r.sum[2 * 3 + n], e[n], near(b, 2e-6));
            assert_float_equal(r.abs[2 * 3 + n], fabs(e[n]), near(b, 2e-6));
        }
        assert_float_equal(r.joint[1], 6.0 / 7, near(b, 2e-6)); /* block 0 and its own: block 1 is cut */
        assert_float_equal(r.joint[2], 0, 0);
        assert_float_equal(r.joint[3], 0, 0);
        assert_int_equal(r.clamped, 0);
        output_free(&r);
        input_free(&in);
    }
}

static void first_row(void **state) {
    (void)state;
    for (int b = REF; b <= TESTED; b++) {
        input in = input_make((shape){1, 1, 1, 4, 1});
        output r = attention(backends[b], &in);
        double g = 0;
        for (int d = 0; d < 4; d++)
            g += (double)in.d_o[d] * in.v[d];
        assert_float_equal(r.sum[0], -g, near(b, 1e-6));
        assert_float_equal(r.abs[0], fabs(g), near(b, 1e-6));
        assert_float_equal(r.joint[0], 0, 0);
        assert_float_equal(r.joint[1], 0, 0);
        assert_int_equal(r.clamped, 0);
        output_free(&r);
        input_free(&in);
    }
}

/* A = 0.99998: the plain form loses 3 % of it in float32. A = 1: nothing is left beside it, which is counted. */
static void pole(void **state) {
    (void)state;
    static const double a[3] = {0, .99998, .00002}, one[3] = {0, 1, 0}, g[3] = {0, 3, -.3335};
    for (int b = REF; b <= TESTED; b++) {
        input in = golden(a, g);
        output r = attention(backends[b], &in);
        const double e = .99998 * (g[2] - g[1]);
        assert_float_equal(r.sum[2 * 3 + 1], e, near(b, 2e-5) * fabs(e));
        assert_int_equal(r.clamped, 0);
        output_free(&r);
        input_free(&in);
        in = golden(one, g);
        r = attention(backends[b], &in);
        assert_float_equal(r.sum[2 * 3 + 1], 0, 0);
        assert_true(isfinite(r.joint[1])); /* all of it was cut */
        assert_int_equal(r.clamped, 1);
        output_free(&r);
        input_free(&in);
    }
}

/* Row 192 sees keys 0 and 192 (A = 1/2 each, G = 1 and -2) but not 64, whose score is x above theirs and whose G is 3. */
static void unseen_outweighs_all(void **state) {
    (void)state;
    static const double over[] = {0, 5, 50, 200};
    for (int b = REF; b <= TESTED; b++)
        for (size_t t = 0; t < sizeof over / sizeof *over; t++) {
            input in = input_make((shape){193, 1, 1, 4, 1});
            memset(in.q, 0, in.n_q * sizeof *in.q);
            memset(in.k, 0, in.n_kv * sizeof *in.k);
            memset(in.v, 0, in.n_kv * sizeof *in.v);
            memset(in.d_o, 0, in.n_q * sizeof *in.d_o);
            for (size_t j = 0; j < 193; j++)
                in.k[4 * j] = -400;
            in.k[0] = in.k[4 * 192] = 0, in.k[4 * 64] = (float)over[t];
            in.v[0] = 1, in.v[4 * 64] = 3, in.v[4 * 192] = -2;
            in.q[4 * 192] = 2; /* times the scale of 1/sqrt(4) */
            in.d_o[4 * 192] = 1;
            in.span = malloc(sizeof *in.span);
            assert_non_null(in.span);
            in.span[0] = 128;
            output r = attention(backends[b], &in);
            assert_float_equal(r.joint[1], 0, near(b, 1e-5));
            assert_float_equal(r.joint[2], 0, near(b, 1e-5));
            /* exp(score - lse): lse is the logarithm of two keys of weight 1 */
            const double whole = exp(fmin(over[t] - log(2), MOA_INFLUENCE_MOST));
            assert_float_equal(r.joint[3], (-.5 + whole * 3) / (1 + whole) + .5, near(b, 1e-5));
            assert_float_equal(r.joint[4], r.joint[3], 0);
            assert_int_equal(r.clamped, over[t] - log(2) > MOA_INFLUENCE_MOST);
            output_free(&r);
            input_free(&in);
        }
}

/* --- the tested one against the reference ------------------------------------------------------------------------------------------ */

static void attention_as_reference(void **state) {
    (void)state;
    static const shape shapes[] = {{1, 1, 1, 8, 1},    {2, 3, 1, 16, 1},    {63, 2, 2, 32, 1},  {64, 6, 1, 64, 1},
                                   {65, 7, 1, 64, 1},  {128, 9, 3, 64, 2},  {200, 6, 2, 16, 8}, {257, 4, 4, 128, 1},
                                   {320, 12, 2, 24, 1}, {129, 2, 1, 256, 1}, {577, 3, 1, 64, 3},
                                   {705, 4, 2, 128, 1}, {200, 6, 2, 64, 6}};
    for (size_t t = 0; t < 2 * sizeof shapes / sizeof *shapes; t++) {
        input in = input_make(shapes[t / 2]);
        if (t % 2) give_spans(&in);
        output x = attention(backends[TESTED], &in), y = attention(backends[REF], &in);
        const double most = limit_of(in.s.d_head);
        if (getenv("MOA_TEST_TELL"))
            print_message("%d tokens, heads %d/%d x %d, queries of %g, %s\n", in.s.n_tok, in.s.n_head, in.s.n_head_kv, in.s.d_head,
                          (double)in.s.q_scale, t % 2 ? "spans" : "dense");
        assert_close("o", x.o, y.o, in.n_q, most);
        assert_close("lse", x.lse, y.lse, (size_t)in.s.n_tok * (size_t)in.s.n_head, most);
        assert_close("dq", x.dq, y.dq, in.n_q, most);
        assert_close("dk", x.dk, y.dk, in.n_kv, most);
        assert_close("dv", x.dv, y.dv, in.n_kv, most);
        assert_close("abs", x.abs, y.abs, x.n_map, most);
        assert_close("sum", x.sum, y.sum, x.n_map, most);
        assert_close("joint", x.joint, y.joint, x.n_curve, most);
        assert_int_equal(x.clamped, y.clamped);
        output_free(&x);
        output_free(&y);
        input_free(&in);
    }
}

/* a weight of n_out x n_in random values, stored as a type; the bytes are the caller's */
static moa_weight weight_make(moa_dtype type, int32_t n_out, int32_t n_in) {
    const moa_dtype_info *t = moa_dtype_find((uint32_t)type);
    assert_non_null(t);
    const size_t n_block = (size_t)n_out * (size_t)n_in / t->block_len, bytes = n_block * t->block_bytes;
    unsigned char *data = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    assert_non_null(data);
    if (type == MOA_F32)
        for (size_t i = 0; i < n_block; i++)
            ((float *)(void *)data)[i] = normal();
    else /* blocks of random codes under scales of about 1/16 */
        for (size_t i = 0; i < n_block; i++) {
            unsigned char *block = data + i * t->block_bytes;
            for (size_t k = 0; k < t->block_bytes; k++)
                block[k] = (unsigned char)(uniform() * 256);
            const uint16_t d = (uint16_t)(0x2c00 + (int)(uniform() * 256)), zero = 0xb400;
            memcpy(block, &d, 2);
            if (type == MOA_Q4_1) memcpy(block + 2, &zero, 2);
        }
    return (moa_weight){.name = "w", .type = type, .n_out = n_out, .n_in = n_in, .data = data, .bytes = bytes};
}

static void matmul_t_as_definition(void **state) {
    (void)state;
    static const struct {
        moa_dtype type;
        int32_t n_tok, n_out, n_in;
    } cases[] = {{MOA_F32, 5, 7, 12},     {MOA_F32, 200, 96, 300},   {MOA_Q4_0, 3, 33, 64},    {MOA_Q8_0, 130, 65, 288},
                 {MOA_Q4_1, 1, 192, 576}, {MOA_Q4_1, 129, 576, 192}, {MOA_Q8_0, 2, 40000, 256}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int b = REF; b <= TESTED; b++) {
            const int32_t n_tok = cases[c].n_tok, n_out = cases[c].n_out, n_in = cases[c].n_in;
            const size_t n_dy = (size_t)n_tok * (size_t)n_out, n_dx = (size_t)n_tok * (size_t)n_in;
            moa_weight w = weight_make(cases[c].type, n_out, n_in);
            float *dy = normals(n_dy, 1), *start = normals(n_dx, 1), *row = normals((size_t)n_in, 1);
            double *sum = calloc(n_dx, sizeof *sum);
            float *want = malloc(n_dx * sizeof *want);
            assert_true(sum && want);
            const moa_dtype_info *t = moa_dtype_find((uint32_t)w.type);
            for (int32_t o = 0; o < n_out; o++) {
                t->decode((const char *)w.data + (size_t)o * (size_t)n_in / t->block_len * t->block_bytes, row, (size_t)n_in);
                for (int32_t k = 0; k < n_tok; k++)
                    for (int32_t i = 0; i < n_in; i++)
                        sum[(size_t)k * (size_t)n_in + (size_t)i] += (double)dy[(size_t)k * (size_t)n_out + (size_t)o] * row[i];
            }
            moa_err err = {0};
            moa_dev_weight *dev = NULL;
            moa_backend *be = backends[b];
            must(be->vt->weight_load(be, &w, false, &dev, &err), &err);
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                float *dx = put(be, accumulate ? start : NULL, n_dx);
                for (size_t i = 0; i < n_dx; i++)
                    want[i] = (float)(sum[i] + (accumulate ? start[i] : 0));
                CALL(be, matmul_t, .dy = put(be, dy, n_dy), .w = dev, .dx = dx, .n_tok = n_tok, .accumulate = accumulate);
                float *x = get(be, dx, n_dx);
                CLOSE("matmul_t", x, want, n_dx);
                free(x);
                forget();
            }
            be->vt->weight_free(be, dev);
            free((void *)(uintptr_t)w.data);
            free(dy);
            free(start);
            free(row);
            free(sum);
            free(want);
        }
}

/* sum of dy * x / sqrt(mean x^2 + eps) * w of a row, in double */
static double norm_loss(const float *x, const float *w, const float *dy, int32_t n, double eps) {
    double square = 0, sum = 0;
    for (int32_t i = 0; i < n; i++)
        square += (double)x[i] * x[i];
    for (int32_t i = 0; i < n; i++)
        sum += (double)x[i] * w[i] * dy[i];
    return sum / sqrt(square / n + eps);
}

static void check_rmsnorm_bwd(int32_t n_col) {
    enum { N_TOK = 19 };
    const size_t n_in = (size_t)n_col, n = N_TOK * n_in;
    float *x = normals(n, 1), *dy = normals(n, 1), *start = normals(n, 1);
    moa_weight w = weight_make(MOA_F32, 1, n_col);
    float *want = malloc(n * sizeof *want);
    assert_non_null(want);
    for (int b = REF; b <= TESTED; b++) {
        moa_backend *be = backends[b];
        moa_err err = {0};
        moa_dev_weight *dev = NULL;
        must(be->vt->weight_load(be, &w, false, &dev, &err), &err);
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            for (size_t i = 0; i < n; i++) {
                const size_t row = i / n_in * n_in;
                const float was = x[i], up = was + 1e-2f, down = was - 1e-2f;
                x[i] = up;
                const double high = norm_loss(x + row, w.data, dy + row, n_col, 1e-5);
                x[i] = down;
                const double low = norm_loss(x + row, w.data, dy + row, n_col, 1e-5);
                x[i] = was;
                want[i] = (float)((high - low) / ((double)up - (double)down) + (accumulate ? start[i] : 0));
            }
            float *dx = put(be, accumulate ? start : NULL, n);
            CALL(be, rmsnorm_bwd, .x = put(be, x, n), .w = dev, .dy = put(be, dy, n), .dx = dx, .n_tok = N_TOK, .n = n_col,
                 .eps = 1e-5f, .accumulate = accumulate);
            float *got = get(be, dx, n);
            CLOSE("rmsnorm_bwd", got, want, n);
            free(got);
            forget();
        }
        be->vt->weight_free(be, dev);
    }
    free(x);
    free(dy);
    free(start);
    free(want);
    free((void *)(uintptr_t)w.data);
}

static void rmsnorm_bwd_is_slope(void **state) {
    (void)state;
    check_rmsnorm_bwd(101);
    check_rmsnorm_bwd(132); /* whole vectors of four */
}

static double silu(double g) {
    return g / (1 + exp(-g));
}

static void silu_mul_bwd_is_slope(void **state) {
    (void)state;
    const size_t n = 20001;
    float *gate = normals(n, 4), *up = normals(n, 1), *dy = normals(n, 1), *dg = malloc(n * sizeof *dg),
          *du = malloc(n * sizeof *du);
    assert_true(dg && du);
    gate[0] = 0, gate[1] = 90, gate[2] = -90, gate[3] = 300, gate[4] = -300;
    for (size_t i = 0; i < n; i++) {
        dg[i] = (float)(dy[i] * up[i] * (silu(gate[i] + 1e-4) - silu(gate[i] - 1e-4)) / 2e-4);
        du[i] = (float)(dy[i] * silu(gate[i]));
    }
    for (int b = REF; b <= TESTED; b++)
        for (int in_place = 0; in_place < 2; in_place++) {
            moa_backend *be = backends[b];
            float *g = put(be, gate, n), *u = put(be, up, n), *d_gate = in_place ? g : put(be, NULL, n),
                  *d_up = in_place ? u : put(be, NULL, n);
            CALL(be, silu_mul_bwd, .gate = g, .up = u, .dy = put(be, dy, n), .d_gate = d_gate, .d_up = d_up,
                 .n = (int64_t)n);
            float *x = get(be, d_gate, n), *y = get(be, d_up, n);
            CLOSE("d_gate", x, dg, n);
            CLOSE("d_up", y, du, n);
            free(x);
            free(y);
            forget();
        }
    free(gate);
    free(up);
    free(dy);
    free(dg);
    free(du);
}

/* of log sum_{i != target} exp z_i - z_target, by its own form: the softmax of the others, and -1 */
static void margin_gradient(const float *z, const int32_t *target, int32_t n_row, int32_t n_vocab, float *dz) {
    for (int32_t r = 0; r < n_row; r++, z += n_vocab, dz += n_vocab) {
        double max = -INFINITY, sum = 0;
        for (int32_t i = 0; i < n_vocab; i++)
            if (i != target[r]) max = fmax(max, z[i]);
        for (int32_t i = 0; i < n_vocab; i++)
            if (i != target[r]) sum += exp(z[i] - max);
        const double p_least = exp(max - z[target[r]]) * sum; /* (1 - p) / p */
        for (int32_t i = 0; i < n_vocab; i++)
            dz[i] = (float)(.125 * (n_vocab == 1 ? 0 : i == target[r] ? -1 : exp(z[i] - max) / sum));
        assert_true(n_vocab == 1 || p_least > 2 * MOA_MARGIN_TINY);
    }
}

static void cross_entropy_as_definition(void **state) {
    (void)state;
    static const int32_t vocabs[] = {1, 7, 276, 49152};
    for (size_t v = 0; v < sizeof vocabs / sizeof *vocabs; v++)
        for (int b = REF; b <= TESTED; b++) {
            enum { N_ROW = 5 };
            moa_backend *be = backends[b];
            const size_t n = (size_t)vocabs[v] * N_ROW;
            float *z = normals(n, 6), *dz = malloc(n * sizeof *dz), want[N_ROW];
            int32_t target[N_ROW];
            assert_non_null(dz);
            for (size_t r = 0; r < N_ROW; r++) {
                float *row = z + r * (size_t)vocabs[v];
                double sum = 0;
                target[r] = (int32_t)(uniform() * vocabs[v]);
                for (int32_t i = 0; i < vocabs[v]; i++)
                    row[i] += r == 1 ? 500 : r == 2 ? -500 : 0;
                for (int32_t i = 0; i < vocabs[v]; i++)
                    sum += exp((double)row[i] - row[target[r]]);
                want[r] = (float)log(sum);
                for (int32_t i = 0; i < vocabs[v]; i++)
                    dz[r * (size_t)vocabs[v] + (size_t)i] =
                        (float)(.125 * (exp((double)row[i] - row[target[r]]) / sum - (i == target[r])));
            }
            for (int margin = 0; margin < 2; margin++) {
                if (margin) margin_gradient(z, target, N_ROW, vocabs[v], dz);
                float *logits = put(be, z, n), *losses = put(be, NULL, N_ROW);
                CALL(be, cross_entropy, .logits = logits, .target = place(be, target, sizeof target), .loss = losses,
                     .n_row = N_ROW, .n_vocab = vocabs[v], .scale = .125f, .margin = margin);
                float *x = get(be, logits, n), *l = get(be, losses, N_ROW);
                for (int r = 0; r < N_ROW; r++)
                    assert_float_equal(l[r], want[r], 1e-4);
                CLOSE("d logits", x, dz, n);
                free(x);
                free(l);
                forget();
            }
            free(z);
            free(dz);
            forget();
        }
}

/* turning the sign of the scale undoes a rotation: the gradient of rope */
static void rope_back(void **state) {
    (void)state;
    enum { N = 40, HEADS = 3, D = 16 };
    int32_t pos[N];
    for (int i = 0; i < N; i++)
        pos[i] = i * 37;
    for (int b = REF; b <= TESTED; b++)
        for (int kind = 0; kind < 2; kind++) {
            moa_backend *be = backends[b];
            float *x = normals(N * HEADS * D, 1), *d = put(be, x, N * HEADS * D);
            const int32_t *p = place(be, pos, sizeof pos);
            for (float sign = 1; sign >= -1; sign -= 2)
                CALL(be, rope, .x = d, .pos = p, .n_tok = N, .n_head = HEADS, .d_head = D, .rope_dim = D,
                     .kind = kind ? MOA_ROPE_HALVES : MOA_ROPE_PAIRS, .theta = 10000, .scale = sign * .5f);
            float *y = get(be, d, N * HEADS * D);
            CLOSE("rope there and back", y, x, N * HEADS * D);
            free(x);
            free(y);
            forget();
        }
}

/* the same bits whatever the number of threads */
static void threads_change_nothing(void **state) {
    (void)state;
    if (getenv("MOA_TEST_DEVICE")) return; /* there are no threads of ours */
    moa_err err = {0};
    moa_backend *one = NULL;
    must(moa_cpu_open(&one, &(moa_backend_config){.n_threads = 1}, &err), &err);
    input in = input_make((shape){300, 6, 2, 32, 1});
    output x = attention(one, &in), y = attention(backends[TESTED], &in);
    assert_memory_equal(x.dq, y.dq, in.n_q * sizeof *x.dq);
    assert_memory_equal(x.dk, y.dk, in.n_kv * sizeof *x.dk);
    assert_memory_equal(x.sum, y.sum, x.n_map * sizeof *x.sum);
    assert_memory_equal(x.joint, y.joint, x.n_curve * sizeof *x.joint);
    output_free(&x);
    output_free(&y);
    input_free(&in);
    moa_backend_close(&one);
}

static int open_all(void **state) {
    (void)state;
    moa_err err = {0};
    char why[256];
    const char *device = getenv("MOA_TEST_DEVICE");
    if (moa_cpu_open(&backends[REF], &(moa_backend_config){.reference = true}, &err) != MOA_OK ||
        moa_backend_open(&backends[TESTED], device ? device : "cpu", &(moa_backend_config){.n_threads = 2}, why, sizeof why,
                         &err) != MOA_OK) {
        (void)fprintf(stderr, "test_ops_bwd: %s\n", err.text);
        return -1;
    }
    return 0;
}
static int close_all(void **state) {
    (void)state;
    moa_backend_close(&backends[REF]);
    moa_backend_close(&backends[TESTED]);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reference_gradients_are_slopes),
                                       cmocka_unit_test(reference_influence_is_masking),
                                       cmocka_unit_test(reference_influence_under_spans_is_masking),
                                       cmocka_unit_test(unseen_outweighs_all),
                                       cmocka_unit_test(golden_vector),
                                       cmocka_unit_test(first_row),
                                       cmocka_unit_test(pole),
                                       cmocka_unit_test(attention_as_reference),
                                       cmocka_unit_test(matmul_t_as_definition),
                                       cmocka_unit_test(rmsnorm_bwd_is_slope),
                                       cmocka_unit_test(silu_mul_bwd_is_slope),
                                       cmocka_unit_test(cross_entropy_as_definition),
                                       cmocka_unit_test(rope_back),
                                       cmocka_unit_test(threads_change_nothing)};
    return cmocka_run_group_tests(tests, open_all, close_all);
}
