/* core/cpu/pool: every task once, whatever the sizes and the moments of sleeping; idle threads cost nothing */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "core/cpu/half.h"
#include "core/cpu/pool.h"

typedef struct tally {
    unsigned char *
        times; /* a task was run; plain memory: a task run twice or by nobody is seen, and a race is ThreadSanitizer's */
    int32_t n_threads;
    atomic_int bad_thread;
} tally;

static void count_task(void *ctx, int32_t task, int32_t thread) {
    tally *t = ctx;
    t->times[task]++;
    if (thread < 0 || thread >= t->n_threads) atomic_store(&t->bad_thread, 1);
}

static void check_run(moa_pool *pool, int32_t n_threads, int32_t n_task) {
    tally t = {.times = calloc((size_t)n_task + 1, 1), .n_threads = n_threads};
    assert_non_null(t.times);
    moa_pool_run(pool, count_task, &t, n_task);
    for (int32_t i = 0; i < n_task; i++)
        assert_int_equal(t.times[i], 1);
    assert_int_equal(t.times[n_task], 0);
    assert_int_equal(atomic_load(&t.bad_thread), 0);
    free(t.times);
}

static void test_every_task_once(void **state) {
    (void)state;
    static const int32_t threads[] = {1, 2, 3, 8}, sizes[] = {0, 1, 2, 3, 7, 64, 1000, 65535, 65536, 200001};
    for (int k = 0; k < 4; k++) {
        moa_pool *pool = NULL;
        moa_err err = {0};
        assert_int_equal(moa_pool_open(&pool, threads[k], &err), MOA_OK);
        for (int s = 0; s < 10; s++)
            check_run(pool, threads[k], sizes[s]);
        moa_pool_close(&pool);
        assert_null(pool);
        moa_pool_close(&pool);
    }
}

/* many jobs back to back, with pauses around the time after which threads fall asleep */
static void test_many_small_jobs(void **state) {
    (void)state;
    moa_pool *pool = NULL;
    moa_err err = {0};
    assert_int_equal(moa_pool_open(&pool, 3, &err), MOA_OK);
    for (int i = 0; i < 5000; i++) {
        check_run(pool, 3, 1 + i % 17);
        for (volatile int wait = 0; i % 3 == 0 && wait < i * 2; wait++) {
        }
        if (i % 500 == 0) (void)usleep(300);
    }
    moa_pool_close(&pool);
}

static double cpu_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void test_idle_threads_sleep(void **state) {
    (void)state;
    moa_pool *pool = NULL;
    moa_err err = {0};
    assert_int_equal(moa_pool_open(&pool, 4, &err), MOA_OK);
    check_run(pool, 4, 100);
    (void)usleep(20000);
    const double before = cpu_s();
    (void)usleep(200000);
    assert_true(cpu_s() - before < 0.02);
    moa_pool_close(&pool);
}

static void test_limits(void **state) {
    (void)state;
    moa_pool *pool = NULL;
    moa_err err = {0};
    assert_int_equal(moa_pool_open(&pool, 0, &err), MOA_E_USAGE);
    assert_int_equal(moa_pool_open(&pool, 100000, &err), MOA_E_USAGE);
    assert_null(pool);
    assert_string_equal(err.text, "100000 threads: 1 to 1024 are possible");
}

/* all 65536 halves survive, and rounding goes to the nearest, ties to even */
static void test_half(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        const bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        assert_int_equal(moa_float_to_half(moa_half_to_float((uint16_t)h)), nan ? h | 0x200 : h);
    }
    for (uint32_t h = 0; h < 0x7bff; h++) {
        const float a = moa_half_to_float((uint16_t)h), b = moa_half_to_float((uint16_t)(h + 1)),
                    middle = (a + b) / 2;
        assert_int_equal(moa_float_to_half(middle), h % 2 ? h + 1 : h);
        assert_int_equal(moa_float_to_half(-middle), 0x8000 | (h % 2 ? h + 1 : h));
        assert_int_equal(moa_float_to_half(middle + (b - a) / 64), h + 1);
        assert_int_equal(moa_float_to_half(middle - (b - a) / 64), h);
    }
    assert_int_equal(moa_float_to_half(65519.0f), 0x7bff);
    assert_int_equal(moa_float_to_half(65520.0f), 0x7c00);
    assert_int_equal(moa_float_to_half(1e30f), 0x7c00);
    assert_int_equal(moa_float_to_half(-1e-30f), 0x8000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_task_once),
        cmocka_unit_test(test_many_small_jobs),
        cmocka_unit_test(test_idle_threads_sleep),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
