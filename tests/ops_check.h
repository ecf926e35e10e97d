/* ops_check.h -- for programs that call operations of a backend and count what is wrong: CHECK counts and goes on, must and CALL end;
 * take and put: device memory, empty and filled. */
#ifndef MOA_TESTS_OPS_CHECK_H
#define MOA_TESTS_OPS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "core/engine/backend.h"

static int n_failed, n_check;

#define CHECK(condition, ...)                                                                                \
    do {                                                                                                     \
        n_check++;                                                                                           \
        if (!(condition)) {                                                                                  \
            n_failed++;                                                                                      \
            (void)printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition);                              \
            (void)printf(__VA_ARGS__);                                                                       \
            (void)printf("\n");                                                                              \
        }                                                                                                    \
    } while (0)

/* a failure after which nothing more can be said */
static void must(moa_status s, const moa_err *err, const char *what) {
    if (s == MOA_OK) return;
    (void)printf("FAILED: %s: %s\n", what, err->text);
    exit(1);
}

#define CALL(b, op, ...)                                                                                     \
    do {                                                                                                     \
        const moa_args_##op args_ = {__VA_ARGS__};                                                           \
        moa_err err_ = {0};                                                                                  \
        must((b)->vt->op((b), &args_, &err_), &err_, #op);                                                   \
    } while (0)

static void *take(moa_backend *b, size_t bytes) {
    void *p = NULL;
    moa_err err = {0};
    must(b->vt->alloc(b, bytes, &p, &err), &err, "alloc");
    return p;
}
static void *put(moa_backend *b, const void *host, size_t bytes) {
    moa_err err = {0};
    void *p = take(b, bytes);
    must(b->vt->upload(b, p, host, bytes, &err), &err, "upload");
    return p;
}

#endif
