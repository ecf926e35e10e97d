#include "viz/png.h"

#include <math.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/text.h"

enum { FUTURE = 0x0b1016, TEXT_MAX = 8, TEXT_BYTES = 512 };

typedef struct writer {
    moa_buf *out;
    char why[160];
} writer;

static void put(png_structp png, png_bytep bytes, png_size_t n) { moa_buf_append(((writer *)png_get_io_ptr(png))->out, bytes, n); }
static void flush(png_structp png) { (void)png; }
static void failed(png_structp png, png_const_charp why) {
    writer *w = png_get_error_ptr(png);
    (void)snprintf(w->why, sizeof w->why, "%s", why);
    png_longjmp(png, 1);
}
static void warned(png_structp png, png_const_charp why) {
    (void)png;
    (void)why;
}

static void pixel(unsigned char *at, uint32_t rgb) {
    at[0] = (unsigned char)(rgb >> 16);
    at[1] = (unsigned char)(rgb >> 8);
    at[2] = (unsigned char)rgb;
}

/* the px rows of pixels of map row r are alike: one of them */
static void paint_row(const viz_heat *h, int px, int r, unsigned char *row) {
    for (int c = 0; c < h->cols; c++) {
        const float t = h->t[(size_t)r * (size_t)h->cols + (size_t)c];
        const bool cut = h->edge && c >= h->keep_cols && (float)(c + 1) <= h->edge[r];
        const uint32_t rgb = isnan(t) ? FUTURE : viz_ramp_rgb(h->ramp, viz_ramp_level((double)t), cut);
        for (int i = 0; i < px; i++) pixel(row + 3 * ((size_t)c * (size_t)px + (size_t)i), rgb);
    }
    const int line = px >= 8 ? 2 : 1;
    for (int k = 0; k < 2; k++) {
        const float *edge = k ? h->edge : h->edge2; /* today's edge over the old one */
        if (!edge || !(edge[r] > 0) || edge[r] >= (float)h->cols) continue;
        for (int i = 0; i < line && (int)(edge[r] * (float)px) + i < h->cols * px; i++)
            pixel(row + 3 * ((size_t)(edge[r] * (float)px) + (size_t)i), k ? 0xff5fa2 : 0xffb454);
    }
}

static void latin1(const char *utf8, char out[TEXT_BYTES]) {
    const size_t n = strlen(utf8);
    size_t k = 0;
    for (size_t i = 0; i < n && k + 1 < TEXT_BYTES;) {
        int32_t cp;
        bool valid;
        i += moa_utf8_next(utf8 + i, n - i, &cp, &valid);
        out[k++] = (char)(valid && cp >= 32 && cp < 256 && (cp < 127 || cp >= 160) ? cp : '?');
    }
    out[k] = 0;
}

/* everything that libpng may leave by a jump: nothing here is owned or read afterwards */
static void encode(png_structp png, png_infop info, const viz_heat *h, int px, png_textp texts, int n_text, unsigned char *row) {
    png_set_IHDR(png, info, (png_uint_32)(h->cols * px), (png_uint_32)(h->rows * px), 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_text(png, info, texts, n_text);
    png_write_info(png, info);
    for (int r = 0; r < h->rows; r++) {
        paint_row(h, px, r, row);
        for (int i = 0; i < px; i++) png_write_row(png, row);
    }
    png_write_end(png, NULL);
}

moa_status viz_heat_png(const viz_heat *h, int px, const viz_png_text *texts, int n_text, moa_buf *out, moa_err *err) {
    char latin[TEXT_MAX][TEXT_BYTES];
    png_text list[TEXT_MAX] = {0};
    if (h->rows < 1 || h->cols < 1 || px < 1 || h->rows > VIZ_PNG_SIDE_MAX / px || h->cols > VIZ_PNG_SIDE_MAX / px)
        return moa_fail(err, MOA_E_USAGE, "a picture of %d x %d values of %d pixels; a side has 1 to %d pixels", h->cols, h->rows, px, VIZ_PNG_SIDE_MAX);
    const int n = n_text < TEXT_MAX ? n_text : TEXT_MAX;
    for (int i = 0; i < n; i++) {
        latin1(texts[i].text, latin[i]);
        list[i] = (png_text){.compression = PNG_TEXT_COMPRESSION_NONE, .key = (char *)(uintptr_t)texts[i].key, .text = latin[i], .text_length = strlen(latin[i])};
    }
    moa_status s = MOA_OK;
    writer w = {.out = out};
    unsigned char *const row = malloc(3 * (size_t)h->cols * (size_t)px);
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &w, failed, warned);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    if (!row || !info) s = moa_fail(err, MOA_E_MEMORY, "no memory for a picture of %d x %d values", h->cols, h->rows);
    else if (setjmp(png_jmpbuf(png)) != 0) s = moa_fail(err, MOA_E_FAILED, "the picture: %s", w.why);
    else {
        png_set_write_fn(png, &w, put, flush);
        encode(png, info, h, px, list, n, row);
        if (!moa_buf_ok(out)) s = moa_fail(err, MOA_E_MEMORY, "no memory for the picture");
    }
    png_destroy_write_struct(&png, &info);
    free(row);
    return s;
}
