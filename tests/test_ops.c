/* test_ops.c -- the one parity test: every operation of every backend against the reference.
 *
 *   test_ops [--device cpu|cuda|cuda:N] [--op NAME] [--threads N] [--every N] [--list] [--bench OP]
 *
 * A group of cases belongs to one operation (or to the reference itself, "golden" and "brute"). Each case builds its inputs
 * from a seed, gives the same bytes to both backends, and compares all that may be written:
 *
 *   - shapes are ugly on purpose: 1, 2, 17, 64, 100, 513 tokens, odd row counts, groups of 1, 3, 4, 6, 7 query heads, spans at,
 *     below and above what is there, sequences of ragged length, idle rows, page tables with freed pages;
 *   - inputs are normal, normal with outliers x20, all equal, or one-hot: softmax and sums behave differently on each;
 *   - outputs are NaN before the call and stand between guards that must come back untouched; free pages and the unwritten tail
 *     of the last page hold NaN too, since a recycled page may hold anything;
 *   - the error is NMSE = sum (a-b)^2 / sum a^2 against the limits in ops/rig.c; a NaN anywhere fails.
 *
 * --every N leaves out all but each N-th case: the default under the sanitizers, which make the naive loops
 * 20 times slower.
 * The CPU runs every group a second time with 1 thread against 3: the bits must be the same.
 * To add an operation: a group function in tests/ops/, a row in `groups`. --bench OP times it and checks nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/ops/ops.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SLOWEST 1
#elif __has_feature(address_sanitizer)
#define SLOW 1
#endif
#endif
#if defined(SLOWEST) || defined(__SANITIZE_THREAD__)
enum { EVERY = 29 }; /* prime to the loops' lengths, so that each value still occurs */
#elif defined(SLOW) || defined(__SANITIZE_ADDRESS__)
enum { EVERY = 7 };
#else
enum { EVERY = 1 };
#endif
enum { SKIP = 77 };

static const struct group {
    const char *name;
    void (*run)(rig *r);
    bool reference_only;
    void (*bench)(rig *r);
} groups[] = {
    {"golden", group_golden, true, NULL},
    {"brute", group_brute, true, NULL},
    {"embed", group_embed, false, NULL},
    {"rmsnorm", group_rmsnorm, false, bench_rest},
    {"matmul", group_matmul, false, bench_matmul},
    {"rope", group_rope, false, bench_rest},
    {"kv_store", group_kv_store, false, NULL},
    {"attn_prefill", group_attn_prefill, false, bench_attn_prefill},
    {"attn_decode", group_attn_decode, false, bench_attn_decode},
    {"silu_mul", group_silu_mul, false, bench_rest},
    {"add", group_add, false, bench_rest},
    {"capture", group_capture, false, NULL},
    {"attn_map", group_attn_map, false, NULL},
    {"argmax", group_argmax, false, NULL},
    {"sample", group_sample, false, bench_sample},
    {"stat_sum", group_stat_sum, false, NULL},
};
enum { N_GROUP = sizeof groups / sizeof *groups };

/* every operation has a group of its name */
static bool groups_complete(void) {
    static const char *const ops[] = {
#define X(name, text) #name,
        MOA_OP_MAP(X)
#undef X
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        bool found = false;
        for (int g = 0; g < N_GROUP; g++)
            found = found || strcmp(groups[g].name, ops[i]) == 0;
        if (!found) {
            (void)printf("FAILED: operation %s has no group of cases\n", ops[i]);
            return false;
        }
    }
    return true;
}

static void run_groups(rig *r, const char *only, bool with_reference) {
    for (int g = 0; g < N_GROUP; g++) {
        if ((only && strcmp(only, groups[g].name) != 0) || (groups[g].reference_only && !with_reference))
            continue;
        const int cases = r->cases, failed = r->failed;
        const double start = now_s();
        r->worst = 0;
        groups[g].run(r);
        (void)printf("%-14s %5d comparisons, worst NMSE %.1e, %6.2f s%s\n", groups[g].name, r->cases - cases,
                     r->worst, now_s() - start, r->failed > failed ? "  FAILED" : "");
        (void)fflush(stdout);
    }
}

typedef struct options {
    const char *device, *op, *bench;
    int threads, every;
    bool list;
} options;

static bool parse(int argc, char **argv, options *o) {
    *o = (options){.device = "cpu", .every = EVERY};
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(a, "--list") == 0) {
            o->list = true;
            continue;
        }
        if (!value) return false;
        if (strcmp(a, "--device") == 0)
            o->device = value;
        else if (strcmp(a, "--op") == 0)
            o->op = value;
        else if (strcmp(a, "--bench") == 0)
            o->bench = value;
        else if (strcmp(a, "--threads") == 0)
            o->threads = atoi(value);
        else if (strcmp(a, "--every") == 0)
            o->every = atoi(value);
        else
            return false;
        i++;
    }
    for (int k = 0; k < 2; k++) {
        const char *name = k ? o->bench : o->op;
        bool known = !name;
        for (int g = 0; g < N_GROUP; g++)
            known = known || (strcmp(groups[g].name, name) == 0 && (!k || groups[g].bench));
        if (!known) return false;
    }
    return true;
}

int main(int argc, char **argv) {
    options o;
    rig r = {.label = "opening"};
    char why[256];
    moa_err err = {0};
    if (!parse(argc, argv, &o)) {
        (void)fprintf(stderr, "usage: test_ops [--device cpu|cuda|cuda:N] [--op NAME] [--threads N] [--every "
                              "N] [--list] [--bench OP]\n");
        return 2;
    }
    for (int g = 0; o.list && g < N_GROUP; g++)
        (void)printf("%s\n", groups[g].name);
    if (o.list) return 0;
    const moa_backend_config reference = {.reference = true}, tested = {.n_threads = o.threads},
                             one = {.n_threads = 1}, three = {.n_threads = 3};
    r.cuda = strncmp(o.device, "cuda", 4) == 0;
    if (moa_backend_open(&r.b[1], o.device, &tested, why, sizeof why, &err) != MOA_OK) {
        (void)printf("test_ops: %s%s\n", err.text, r.cuda ? ": not run" : "");
        return r.cuda ? SKIP : 1;
    }
    (void)printf("tested: %s\n", why);
    r.every = o.bench ? 1 : o.every;
    if (r.every > 1) (void)printf("every %dth case only\n", r.every);
    must(&r, moa_cpu_open(&r.b[0], &reference, &err), &err);
    if (!groups_complete()) r.failed++;
    if (o.bench) {
        for (int g = 0; g < N_GROUP; g++)
            if (strcmp(groups[g].name, o.bench) == 0) groups[g].bench(&r);
    } else {
        run_groups(&r, o.op, true);
    }
    moa_backend_close(&r.b[0]);
    moa_backend_close(&r.b[1]);
    if (!o.bench && !r.cuda) {
        (void)printf("1 thread against 3, bit for bit:\n");
        r.exact = true;
        must(&r, moa_cpu_open(&r.b[0], &one, &err), &err);
        must(&r, moa_cpu_open(&r.b[1], &three, &err), &err);
        run_groups(&r, o.op, false);
        moa_backend_close(&r.b[0]);
        moa_backend_close(&r.b[1]);
    }
    (void)printf("test_ops: %d comparisons, %d failed\n", r.cases, r.failed);
    return r.failed ? 1 : 0;
}
