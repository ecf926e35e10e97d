/* viz axis: tokens to cells and back at every zoom; windows that hold the cursor; labels that never touch */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "viz/axis.h"

/* the parts of an axis cover each token once, in order, and a cell's tokens lead back to it */
static void there_and_back(const viz_axis *a) {
    const int n = viz_axis_buckets(a);
    assert_int_equal(viz_axis_bucket_first(a, 0), a->t0);
    assert_int_equal(viz_axis_bucket_end(a, n - 1), a->t1);
    for (int b = 0; b < n; b++) {
        assert_true(viz_axis_bucket_first(a, b) < viz_axis_bucket_end(a, b)); /* no part is empty */
        if (b + 1 < n) assert_int_equal(viz_axis_bucket_end(a, b), viz_axis_bucket_first(a, b + 1));
    }
    for (int c = 0; c < a->cells; c++)
        for (int32_t t = viz_axis_first(a, c); t < viz_axis_end(a, c); t++) {
            const int back = viz_axis_cell(a, t);
            assert_int_equal(viz_axis_bucket_of_cell(a, back), viz_axis_bucket_of_cell(a, c));
            assert_true(back <= c && (a->per ? c - back < a->per : back == c));
        }
    assert_int_equal(viz_axis_cell(a, a->t0 - 1), -1);
    assert_int_equal(viz_axis_cell(a, a->t1), -1);
}

static void test_cells(void **state) {
    (void)state;
    for (int n = 1; n <= 400; n += n < 20 ? 1 : 13)
        for (int room = 1; room <= 200; room += room < 12 ? 1 : 17)
            for (int per = 1; per <= 7; per += 3) {
                const viz_axis a = viz_axis_of(64, 64 + n, n < room ? n : room, room, per);
                assert_true(a.cells <= room);
                if (n <= room) assert_int_equal(a.per, room / n < per ? room / n : per);
                there_and_back(&a);
            }
    const viz_axis big = viz_axis_of(0, 1 << 24, 97, 97, 2); /* products beyond 32 bits */
    for (int c = 0; c < 97; c++) assert_int_equal(viz_axis_cell(&big, viz_axis_first(&big, c)), c);
    assert_int_equal(viz_axis_cell(&big, (1 << 24) - 1), 96);
}

/* what the engine cuts: row r covers q0 + r*(q1-q0)/rows .. q0 + (r+1)*(q1-q0)/rows - 1 */
static void test_as_maps_are_cut(void **state) {
    (void)state;
    const viz_axis a = viz_axis_of(10, 617, 58, 58, 1);
    for (int r = 0; r < 58; r++) {
        assert_int_equal(viz_axis_bucket_first(&a, r), 10 + r * (617 - 10) / 58);
        assert_int_equal(viz_axis_bucket_end(&a, r), 10 + (r + 1) * (617 - 10) / 58);
    }
}

static void one_zoom(const viz_zoom *q, const viz_zoom *k) {
    const int levels = viz_zoom_levels(q, k);
    const viz_zoom *both[] = {q, k};
    for (int i = 0; i < 2; i++) {
        const viz_zoom *z = both[i];
        const int32_t all = z->hi - z->lo;
        int32_t last = all + 1;
        for (int level = 0; level <= levels + 1; level++) {
            const int32_t n = viz_zoom_count(z, level, levels);
            assert_true(n >= 1 && n <= all && n <= last); /* closer never shows more */
            if (level == 0 && levels > 0) assert_int_equal(n, all);
            if (level > 0 && level < levels && n < all && n > z->cells) assert_int_equal(n % z->cells, 0); /* whole tokens a cell */
            if (level >= levels) assert_true(n <= z->cells / z->unit || n == 1); /* single tokens */
            last = n;
        }
    }
}

static void test_zoom(void **state) {
    (void)state;
    srand(7);
    for (int i = 0; i < 3000; i++) {
        const int32_t lo = rand() % 2 ? 64 : 0, hi = lo + 1 + rand() % (i % 3 ? 2000 : 200000);
        const viz_zoom q = {0, hi, 1 + rand() % 90, 1 + rand() % 2, 2}, k = {lo, hi, 1 + rand() % 180, 1, 6};
        one_zoom(&q, &k);
        const int levels = viz_zoom_levels(&q, &k), level = rand() % (levels + 2);
        const int32_t n = viz_zoom_count(&k, level, levels), at = lo + rand() % (hi - lo);
        const int32_t t0 = viz_zoom_scroll(&k, n, rand() % (hi + 100) - 50, at);
        assert_true(t0 >= lo && t0 + n <= hi && at >= t0 && at < t0 + n);
        assert_int_equal(viz_zoom_scroll(&k, n, t0, at), t0); /* in sight: nothing moves */
        /* zooming keeps the token in its place, within a cell or at the border, and comes back */
        const int32_t m = viz_zoom_count(&k, level ? level - 1 : 0, levels), to = viz_zoom_around(&k, m, t0, n, at);
        assert_true(to >= lo && to + m <= hi && at >= to && at < to + m);
        const double before = (double)(at - t0) / n, after = (double)(at - to) / m;
        if (to > lo && to + m < hi) assert_true(after - before < 1.01 / m && before - after < 1.01 / m);
    }
}

static void test_labels_never_touch(void **state) {
    (void)state;
    srand(8);
    int labelled = 0;
    for (int i = 0; i < 20000; i++) {
        const int32_t t0 = rand() % (i % 2 ? 300 : 100000), n = 1 + rand() % (i % 3 ? 3000 : 130000);
        const int room = 1 + rand() % 200, gap = 1 + rand() % 4;
        const bool across = rand() % 2;
        const viz_axis a = viz_axis_of(t0, t0 + n, n < room ? n : room, room, 1 + rand() % 7);
        viz_tick t[64];
        const int k = viz_axis_ticks(&a, across, gap, t, 64);
        assert_true(k >= 0 && k <= 64);
        labelled += k > 1;
        for (int j = 0; j < k; j++) {
            const int size = across ? (int)strlen(t[j].label) : 1;
            assert_true(t[j].cell >= 0 && t[j].cell + size <= a.cells);
            assert_int_equal(t[j].cell, viz_axis_cell(&a, t[j].token)); /* it stands where its token is */
            if (j > 0) assert_true(t[j].cell >= t[j - 1].cell + (across ? (int)strlen(t[j - 1].label) : 1) + gap);
            const size_t len = strlen(t[j].label);
            const long value = strtol(t[j].label, NULL, 10) * (t[j].label[len - 1] == 'k' ? 1000 : 1);
            assert_int_equal(value, t[j].token); /* a label is the number, not a rounded one */
        }
    }
    assert_true(labelled > 10000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cells),
        cmocka_unit_test(test_as_maps_are_cut),
        cmocka_unit_test(test_zoom),
        cmocka_unit_test(test_labels_never_touch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
