/* thread_cases.h -- under the thread sanitizer, of a program with cases of one thread and of many, only those of many are worth their time
 * (ten times the usual). After <cmocka.h>. */
#ifndef MOA_TESTS_THREAD_CASES_H
#define MOA_TESTS_THREAD_CASES_H

#include <stdio.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MOA_THREAD_CASES 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define MOA_THREAD_CASES 1
#endif

/* runs, under that sanitizer, only the cases whose names fit, and says so */
static inline void thread_cases(const char *program, const char *names) {
#ifdef MOA_THREAD_CASES
    cmocka_set_test_filter(names);
    (void)printf("not tested: %s: cases but %s, which start no thread of their own or the same threads again\n", program, names);
#else
    (void)program;
    (void)names;
#endif
}

#endif
