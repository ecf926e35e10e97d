/* viz: ramps rise in lightness in every depth; pooling keeps mass; scales; the picture of a map in every mode */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "viz/heat.h"
#include "viz/png.h"

static uint32_t rgb_of_256(int i) {
    static const int step[] = {0, 95, 135, 175, 215, 255};
    if (i >= 232) return (uint32_t)(8 + 10 * (i - 232)) * 0x010101u;
    i -= 16;
    return (uint32_t)step[i / 36] << 16 | (uint32_t)step[i / 6 % 6] << 8 | (uint32_t)step[i % 6];
}

static void test_ramps_rise(void **state) {
    (void)state;
    static const viz_ramp ramps[] = {VIZ_RAMP_CIVIDIS, VIZ_RAMP_MAGMA, VIZ_RAMP_GREY};
    for (size_t k = 0; k < 3; k++) {
        for (int i = 1; i < VIZ_HEAT_LEVELS; i++) {
            assert_true(viz_luminance(viz_ramp_rgb(ramps[k], i, false)) > viz_luminance(viz_ramp_rgb(ramps[k], i - 1, false)));
            assert_true(viz_luminance(viz_ramp_rgb(ramps[k], i, true)) >= viz_luminance(viz_ramp_rgb(ramps[k], i - 1, true)));
            assert_true(viz_luminance(viz_ramp_rgb(ramps[k], i, true)) < 0.25);
        }
        int steps = 0, last = -1;
        for (int i = 0; i < VIZ_HEAT_LEVELS; i++) {
            const int c = viz_ramp_256(ramps[k], i, false);
            if (c == last) continue;
            if (last >= 0) assert_true(viz_luminance(rgb_of_256(c)) > viz_luminance(rgb_of_256(last)));
            last = c;
            steps++;
        }
        assert_int_equal(steps, viz_ramp_256_count(ramps[k])); /* no entry is skipped */
        assert_true(steps >= 12);
    }
    /* the diverging ramp gets lighter away from the middle, on both sides */
    for (int i = 1; i < 31; i++) {
        assert_true(viz_luminance(viz_ramp_rgb(VIZ_RAMP_DIVERGE, 31 - i - 1, false)) > viz_luminance(viz_ramp_rgb(VIZ_RAMP_DIVERGE, 31 - i, false)));
        assert_true(viz_luminance(viz_ramp_rgb(VIZ_RAMP_DIVERGE, 32 + i + 1, false)) > viz_luminance(viz_ramp_rgb(VIZ_RAMP_DIVERGE, 32 + i, false)));
    }
    const char *order = " .:-=+*#%@";
    for (int i = 0; i < 10; i++) assert_int_equal(viz_ramp_glyph(VIZ_RAMP_GREY, (i + 0.5) / 10), order[i]);
    assert_int_equal(viz_ramp_glyph(VIZ_RAMP_DIVERGE, 0.5), ' '); /* no difference: nothing */
    assert_int_not_equal(viz_ramp_glyph(VIZ_RAMP_DIVERGE, 0), viz_ramp_glyph(VIZ_RAMP_DIVERGE, 1));
    assert_int_equal(viz_ramp_level((double)NAN), 0);
    assert_int_equal(viz_ramp_level(-3), 0);
    assert_int_equal(viz_ramp_level(7), 63);
    viz_ramp r;
    assert_true(viz_ramp_find("magma", &r));
    assert_false(viz_ramp_find("jet", &r));
}

/* a causal attention of n tokens with rows that sum to 1 */
static float *attention(int n) {
    float *a = calloc((size_t)n * (size_t)n, sizeof *a);
    assert_non_null(a);
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j <= i; j++) sum += 1.0 / (1 + (i - j) % 7);
        for (int j = 0; j <= i; j++) a[i * n + j] = (float)(1.0 / (1 + (i - j) % 7) / sum);
    }
    return a;
}

static void test_pooling_keeps_mass(void **state) {
    (void)state;
    enum { N = 60 };
    static const int sizes[][2] = {{60, 60}, {10, 12}, {7, 13}, {1, 1}, {120, 90}, {61, 3}};
    float *a = attention(N);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        const int rows = sizes[k][0], cols = sizes[k][1];
        float *out = malloc(sizeof *out * (size_t)(rows * cols));
        assert_non_null(out);
        viz_pool(a, N, N, out, rows, cols, false);
        for (int r = 0; r < rows; r++) {
            double sum = 0;
            for (int c = 0; c < cols; c++) sum += (double)out[r * cols + c];
            assert_true(fabs(sum - 1) < 1e-5); /* at every zoom */
        }
        free(out);
    }
    float out[6 * 6]; /* exact on blocks: sums along keys, means along queries */
    viz_pool(a, N, N, out, 6, 6, false);
    for (int r = 0; r < 6; r++)
        for (int c = 0; c < 6; c++) {
            double sum = 0;
            for (int i = 0; i < 10; i++)
                for (int j = 0; j < 10; j++) sum += (double)a[(10 * r + i) * N + 10 * c + j];
            assert_true(fabs(sum / 10 - (double)out[r * 6 + c]) < 1e-6);
        }
    a[33 * N + 5] = 0.9f;
    viz_pool(a, N, N, out, 6, 6, true);
    assert_true(out[3 * 6 + 0] == 0.9f); /* a needle survives max pooling */
    float masked[4] = {NAN, NAN, 0.5f, NAN}, one[2];
    viz_pool(masked, 2, 2, one, 1, 2, false);
    assert_true(fabs((double)one[0] - 0.25) < 1e-6); /* the masked query's mass is 0, the row's mean stays a mean */
    assert_true(isnan(one[1]));
    free(a);
}

static void test_scales(void **state) {
    (void)state;
    enum { N = 8 };
    float uniform[N * N], t[N * N], lo_hi[2];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) uniform[i * N + j] = j <= i ? 1.0f / (float)(i + 1) : 0;
    const viz_extent e = {0, N, 0, N};
    viz_scale_map(uniform, N, N, e, VIZ_SCALE_LIFT, 0, t, lo_hi);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            if (j > i) assert_true(isnan(t[i * N + j]));
            else assert_true(fabs((double)t[i * N + j] - 0.5) < 1e-6); /* as uniform: the middle, at any length */
        }
    assert_true(lo_hi[0] == -2 && lo_hi[1] == 2);
    viz_scale_map(uniform, N, N, e, VIZ_SCALE_LINEAR, 0, t, lo_hi);
    assert_true(t[0] == 1.0f && fabs((double)t[7 * N] - 0.125) < 1e-6);
    viz_scale_map(uniform, N, N, e, VIZ_SCALE_RANK, 0, t, lo_hi);
    assert_true(t[0] == 1.0f && t[7 * N] == 0.0f);
    viz_scale_map(uniform, N, N, e, VIZ_SCALE_LOG, 0, t, lo_hi);
    assert_true(t[0] == 1.0f && t[7 * N] < 1.0f && t[7 * N] > 0.7f);
    viz_scale_map(uniform, N, N, e, VIZ_SCALE_LINEAR, 1, t, lo_hi); /* the sink's column does not set the range */
    assert_true(fabs((double)lo_hi[1] - 0.5) < 1e-6);
}

static void draw(viz_caps caps, int rows, const float *edge, const char *want) {
    enum { COLS = 6 };
    float t[8 * COLS], sink[8];
    for (int r = 0; r < rows; r++) {
        sink[r] = 0.95f;
        for (int c = 0; c < COLS; c++) t[r * COLS + c] = c * rows > (r + 1) * COLS - 1 ? NAN : (float)c / COLS;
    }
    viz_canvas *c;
    moa_err err = {0};
    assert_int_equal(viz_canvas_open(&c, 4, 12, caps, &err), MOA_OK);
    const viz_heat h = {.rows = rows, .cols = COLS, .t = t, .edge = edge, .sink = sink, .ramp = VIZ_RAMP_CIVIDIS, .cursor_row = -1, .cursor_col = -1};
    viz_heat_draw(viz_pane_all(c), &h);
    moa_buf b = {0};
    viz_sink_text(c, &b);
    assert_string_equal(b.data, want);
    moa_buf_free(&b);
    viz_canvas_close(&c);
}

static void test_pictures(void **state) {
    (void)state;
    const float edge[8] = {0, 0, 0, 0, 1.2f, 1.8f, 2.5f, 3.1f};
    draw((viz_caps){VIZ_24BIT, true}, 8, edge, "▀▀│ ▄  ·\n▀▀│\n▀▀│ ▏  ▄\n▀▀│  ▏\n");
    draw((viz_caps){VIZ_MONO, false}, 4, edge, "@@| .  .\n@@| .-\n@@| .-+*\n@@| .-+*%\n");
    /* dimming says "outside the window" in both */
    viz_canvas *c;
    moa_err err = {0};
    assert_int_equal(viz_canvas_open(&c, 1, 8, (viz_caps){VIZ_24BIT, true}, &err), MOA_OK);
    const float t[8] = {.5f, .5f, .5f, .5f, .5f, .5f, .5f, .5f}, e[2] = {2, 2};
    const viz_heat h = {.rows = 2, .cols = 4, .t = t, .edge = e, .ramp = VIZ_RAMP_CIVIDIS, .cursor_row = 0, .cursor_col = 3};
    viz_heat_draw(viz_pane_all(c), &h);
    assert_int_equal(viz_canvas_at(c, 0, 0)->style.fg, viz_heat_color(VIZ_RAMP_CIVIDIS, 32, true));
    assert_int_equal(viz_canvas_at(c, 0, 3)->style.fg, viz_heat_color(VIZ_RAMP_CIVIDIS, 32, false));
    assert_int_equal(c->cursor_x, 3);
    viz_canvas_close(&c);
}

static void test_grid(void **state) {
    (void)state;
    const float t[6] = {0, 0.5f, 1, NAN, 0.5f, 1};
    viz_canvas *c;
    moa_err err = {0};
    assert_int_equal(viz_canvas_open(&c, 2, 8, (viz_caps){VIZ_MONO, false}, &err), MOA_OK);
    const viz_grid g = {.rows = 2, .cols = 3, .t = t, .cell_w = 2, .half = true, .ramp = VIZ_RAMP_CIVIDIS};
    viz_grid_draw(viz_pane_all(c), &g); /* no half blocks here: a row each */
    moa_buf b = {0};
    viz_sink_text(c, &b);
    assert_string_equal(b.data, "  ++@@\n. ++@@\n");
    moa_buf_free(&b);
    viz_canvas_close(&c);
}

/* --- a picture file, read back by libpng --------------------------------------------------------------------------------------- */

static void test_png(void **state) {
    (void)state;
    static const float t[] = {0, NAN, .5f, 1}, edge[] = {0, 1};
    const viz_heat h = {.rows = 2, .cols = 2, .t = t, .edge = edge, .ramp = VIZ_RAMP_CIVIDIS};
    const viz_png_text texts[] = {{"Title", "L14 H03, \xc3\xa9 \xe4\xbd\x9c\n"}};
    moa_buf b = {0};
    moa_err err = {0};
    assert_int_equal(viz_heat_png(&h, 9, texts, 1, &b, &err), MOA_OK);
    assert_non_null(memmem(b.data, b.size, "Title\0L14 H03, \xe9 ??", 19));
    png_image image = {.version = PNG_IMAGE_VERSION};
    assert_true(png_image_begin_read_from_memory(&image, b.data, b.size));
    assert_int_equal(image.width, 18);
    assert_int_equal(image.height, 18);
    image.format = PNG_FORMAT_RGB;
    unsigned char rgb[18 * 18 * 3];
    assert_true(png_image_finish_read(&image, NULL, rgb, 0, NULL));
    for (int y = 0; y < 18; y++)
        for (int x = 0; x < 18; x++) {
            const unsigned char *p = rgb + 3 * (18 * y + x);
            const uint32_t got = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
            const uint32_t want = y < 9 ? (x < 9 ? viz_ramp_rgb(VIZ_RAMP_CIVIDIS, 0, false) : 0x0b1016)
                                  : x < 9 ? viz_ramp_rgb(VIZ_RAMP_CIVIDIS, viz_ramp_level(.5), true) /* left of the edge */
                                  : x < 11 ? 0xff5fa2
                                           : viz_ramp_rgb(VIZ_RAMP_CIVIDIS, 63, false);
            if (got != want) fail_msg("pixel %d %d is %06x, not %06x", x, y, (unsigned)got, (unsigned)want);
        }
    moa_buf_free(&b);
    assert_int_equal(viz_heat_png(&h, VIZ_PNG_SIDE_MAX, texts, 1, &b, &err), MOA_E_USAGE);
    assert_int_equal(viz_heat_png(&(viz_heat){.rows = 0, .cols = 2, .t = t}, 1, NULL, 0, &b, &err), MOA_E_USAGE);
    assert_int_equal(b.size, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_png), cmocka_unit_test(test_ramps_rise), cmocka_unit_test(test_pooling_keeps_mass), cmocka_unit_test(test_scales),
        cmocka_unit_test(test_pictures),   cmocka_unit_test(test_grid),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
