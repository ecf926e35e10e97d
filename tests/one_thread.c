/* one_thread.c -- linked into the programs that tests/CMakeLists.txt leaves out under the thread sanitizer because they start no thread
 * (the linker turns their pthread_create into this): one that does must say so, or its races would go unseen. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *user);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *user) {
    (void)thread;
    (void)attributes;
    (void)run;
    (void)user;
    (void)fprintf(stderr, "this program starts threads: take it off the list `one_thread` in tests/CMakeLists.txt\n");
    abort();
}
