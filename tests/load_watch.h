/* load_watch.h -- who watches a load in tests: progress only grows; the watcher can say that it is enough. */
#ifndef MOA_TESTS_LOAD_WATCH_H
#define MOA_TESTS_LOAD_WATCH_H

typedef struct watcher {
    int n_calls, stop_at; /* false is answered at call number stop_at; 0: never */
    uint64_t last, total; /* bytes */
} watcher;

static bool watch(void *user, uint64_t done, uint64_t total) {
    watcher *w = user;
    assert_true(done > w->last && done <= total);
    w->last = done;
    w->total = total;
    return ++w->n_calls != w->stop_at;
}

#endif
