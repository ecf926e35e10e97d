/* canvas.c -- cells, panes and everything that draws into them. */
#include "viz/canvas.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"

/* --- memory ------------------------------------------------------------------------------------------------------------ */

moa_status viz_canvas_open(viz_canvas **out, int rows, int cols, viz_caps caps, moa_err *err) {
    *out = NULL;
    viz_canvas *c = calloc(1, sizeof *c);
    if (!c) return moa_fail(err, MOA_E_MEMORY, "no memory for a canvas");
    c->caps = caps;
    const moa_status s = viz_canvas_resize(c, rows, cols, err);
    if (s != MOA_OK) {
        viz_canvas_close(&c);
        return s;
    }
    *out = c;
    return MOA_OK;
}

void viz_canvas_close(viz_canvas **c) {
    if (!*c) return;
    free((*c)->cells);
    free(*c);
    *c = NULL;
}

moa_status viz_canvas_resize(viz_canvas *c, int rows, int cols, moa_err *err) {
    if (rows < 1 || cols < 1 || rows > VIZ_ROWS_MAX || cols > VIZ_COLS_MAX)
        return moa_fail(err, MOA_E_USAGE, "canvas of %d rows and %d columns: 1x1 to %dx%d are possible", rows, cols,
                        VIZ_ROWS_MAX, VIZ_COLS_MAX);
    viz_cell *cells = realloc(c->cells, sizeof *cells * (size_t)rows * (size_t)cols);
    if (!cells) return moa_fail(err, MOA_E_MEMORY, "no memory for %d x %d cells", rows, cols);
    c->cells = cells;
    c->rows = rows;
    c->cols = cols;
    viz_canvas_clear(c);
    return MOA_OK;
}

void viz_canvas_clear(viz_canvas *c) {
    static const viz_cell blank = {.text = " ", .n = 1, .width = 1, .style = {VIZ_DEFAULT, VIZ_DEFAULT, 0}};
    const size_t n = (size_t)c->rows * (size_t)c->cols;
    for (size_t i = 0; i < n; i++) c->cells[i] = blank;
    c->cursor_y = c->cursor_x = -1;
}

/* --- rectangles and panes ---------------------------------------------------------------------------------------------- */

viz_rect viz_rect_and(viz_rect a, viz_rect b) {
    const int y0 = a.y > b.y ? a.y : b.y, x0 = a.x > b.x ? a.x : b.x;
    const int y1 = a.y + a.h < b.y + b.h ? a.y + a.h : b.y + b.h, x1 = a.x + a.w < b.x + b.w ? a.x + a.w : b.x + b.w;
    viz_rect r = {y0, x0, y1 - y0, x1 - x0};
    if (viz_rect_empty(r)) r.h = r.w = 0;
    return r;
}

viz_pane viz_pane_of(viz_canvas *c, viz_rect r) {
    if (r.h < 0) r.h = 0;
    if (r.w < 0) r.w = 0;
    return (viz_pane){c, r.y, r.x, r.h, r.w, viz_rect_and(r, (viz_rect){0, 0, c->rows, c->cols})};
}

viz_pane viz_pane_all(viz_canvas *c) { return viz_pane_of(c, (viz_rect){0, 0, c->rows, c->cols}); }

viz_pane viz_pane_sub(viz_pane p, int y, int x, int h, int w) {
    const viz_rect r = {p.y + y, p.x + x, h < 0 ? 0 : h, w < 0 ? 0 : w};
    return (viz_pane){p.c, r.y, r.x, r.h, r.w, viz_rect_and(p.clip, r)};
}

static bool inside(viz_rect r, int y, int x) { return y >= r.y && y < r.y + r.h && x >= r.x && x < r.x + r.w; }

/* --- one character ----------------------------------------------------------------------------------------------------- */

/* what stands for a glyph where there is only ASCII; everything else becomes `?` */
static const struct {
    int32_t cp;
    char ascii;
} ascii_of[] = {
    {0x2500, '-'}, {0x2501, '='}, {0x2502, '|'}, {0x2503, '#'}, {0x250a, ':'}, {0x250c, '+'}, {0x250f, '#'},
    {0x2510, '+'}, {0x2513, '#'}, {0x2514, '+'}, {0x2517, '#'}, {0x2518, '+'}, {0x251b, '#'}, {0x251c, '+'},
    {0x2524, '+'}, {0x252c, '+'}, {0x2534, '+'}, {0x253c, '+'}, {0x256d, '+'}, {0x256e, '+'}, {0x256f, '+'},
    {0x2570, '+'}, {0x2580, '^'}, {0x2581, '.'}, {0x2582, ':'}, {0x2583, '-'}, {0x2584, '='}, {0x2585, '+'},
    {0x2586, '*'}, {0x2587, '#'}, {0x2588, '#'}, {0x2589, '#'}, {0x258a, '#'}, {0x258b, '='}, {0x258c, '='},
    {0x258d, '-'}, {0x258e, '-'}, {0x258f, '|'}, {0x2590, '#'}, {0x2591, '.'}, {0x2592, ':'}, {0x2593, '#'},
    {0x2595, '|'}, {0x25a0, '#'}, {0x25b2, '^'}, {0x25b6, '>'}, {0x25b8, '>'}, {0x25bc, 'v'}, {0x25be, 'v'},
    {0x25c0, '<'}, {0x25c2, '<'}, {0x25cb, 'o'}, {0x25cf, '*'}, {0x2022, '*'}, {0x00b7, '.'}, {0x00d7, 'x'},
    {0x2013, '-'}, {0x2014, '-'}, {0x2018, '\''}, {0x2019, '\''}, {0x201c, '"'}, {0x201d, '"'}, {0x2026, '~'},
    {0x2190, '<'}, {0x2191, '^'}, {0x2192, '>'}, {0x2193, 'v'}, {0x21e5, '>'}, {0x23ce, '$'}, {0x2260, '!'}, {0x2578, '-'},
    {0x2264, '<'}, {0x2265, '>'}, {0x2423, '_'}, {0x2713, 'v'}, {0x2717, 'x'}, {0x26a0, '!'}, {0x03b1, 'a'},
    {0x03b2, 'b'}, {0x0394, 'd'}, {0x00b1, '~'}, {0x00b0, 'o'}, {0x2225, '|'}, {0x2212, '-'}, {0x21b5, '$'},
};

static char ascii_for(int32_t cp) {
    for (size_t i = 0; i < sizeof ascii_of / sizeof *ascii_of; i++)
        if (ascii_of[i].cp == cp) return ascii_of[i].ascii;
    return '?';
}

/* a cell that overwrites half of a wide character leaves a blank in the other half */
static void blank_half(viz_canvas *c, int y, int x) {
    viz_cell *cell = viz_canvas_at(c, y, x);
    if (cell->width == 0 && x > 0) {
        viz_cell *left = viz_canvas_at(c, y, x - 1);
        left->text[0] = ' ';
        left->n = left->width = 1;
    } else if (cell->width == 2 && x + 1 < c->cols) {
        viz_cell *right = viz_canvas_at(c, y, x + 1);
        right->text[0] = ' ';
        right->n = right->width = 1;
    }
}

static void put_cell(viz_pane p, int y, int x, viz_style s, const char *text, size_t n, int width) {
    y += p.y;
    x += p.x;
    if (!inside(p.clip, y, x)) return;
    if (width == 2 && !inside(p.clip, y, x + 1)) { /* half of it would be cut: a blank of the same style */
        text = " ";
        n = 1;
        width = 1;
    }
    blank_half(p.c, y, x);
    if (width == 2) blank_half(p.c, y, x + 1);
    viz_cell *cell = viz_canvas_at(p.c, y, x);
    memcpy(cell->text, text, n);
    cell->n = (uint8_t)n;
    cell->width = (uint8_t)width;
    cell->style = s;
    if (width == 2) {
        viz_cell *right = viz_canvas_at(p.c, y, x + 1);
        right->n = right->width = 0;
        right->style = s;
    }
}

/* Reads one character with its marks; what must not reach a terminal comes back as U+FFFD. */
static size_t next_cluster(viz_caps caps, const char *s, size_t n, char out[VIZ_CELL_BYTES], size_t *n_out, int *width) {
    int32_t cp;
    bool valid;
    size_t used = moa_utf8_next(s, n, &cp, &valid);
    if (!valid || cp < 32 || cp == 127 || moa_text_unsafe(cp)) cp = 0xfffd;
    int w = moa_cp_cells(cp);
    if (w == 0) { /* a mark without anything to sit on */
        cp = 0xfffd;
        w = 1;
    }
    if (!caps.utf8 && cp > 126) {
        out[0] = ascii_for(cp);
        *n_out = 1;
        *width = 1;
        if (w == 2) w = 1; /* views measure with moa_text_cells only in UTF-8; one `?` a character otherwise */
        return used;
    }
    *n_out = moa_utf8_put(cp, out);
    *width = w;
    while (used < n) { /* marks */
        int32_t mark;
        const size_t k = moa_utf8_next(s + used, n - used, &mark, &valid);
        if (!valid || mark < 0x300 || moa_cp_cells(mark) != 0 || moa_text_unsafe(mark)) break;
        char bytes[4];
        const size_t m = moa_utf8_put(mark, bytes);
        used += k;
        if (mark == 0x200d || (mark >= 0xfe00 && mark <= 0xfe0f)) continue; /* joiners would change widths behind our back */
        if (*n_out + m > VIZ_CELL_BYTES) continue;
        memcpy(out + *n_out, bytes, m);
        *n_out += m;
    }
    return used;
}

int viz_bytes(viz_pane p, int y, int x, viz_style s, const char *utf8, size_t n) {
    const int x0 = x;
    for (size_t i = 0; i < n;) {
        if ((unsigned char)utf8[i] >= 32 && (unsigned char)utf8[i] < 127 && (i + 1 == n || (unsigned char)utf8[i + 1] < 127)) {
            put_cell(p, y, x++, s, utf8 + i, 1, 1);
            i++;
            continue;
        }
        char text[VIZ_CELL_BYTES];
        size_t m;
        int width;
        i += next_cluster(p.c->caps, utf8 + i, n - i, text, &m, &width);
        put_cell(p, y, x, s, text, m, width);
        x += width;
    }
    return x - x0;
}

int viz_text(viz_pane p, int y, int x, viz_style s, const char *utf8) { return viz_bytes(p, y, x, s, utf8, strlen(utf8)); }

int viz_printf(viz_pane p, int y, int x, viz_style s, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return viz_text(p, y, x, s, text);
}

/* cells of text as this canvas draws it */
static int cells_of(viz_pane p, const char *utf8, size_t n) {
    int cells = 0;
    for (size_t i = 0; i < n;) {
        char text[VIZ_CELL_BYTES];
        size_t m;
        int width;
        i += next_cluster(p.c->caps, utf8 + i, n - i, text, &m, &width);
        cells += width;
    }
    return cells;
}

static void blank(viz_pane p, int y, int x, int w, viz_style s) {
    for (int i = 0; i < w; i++) put_cell(p, y, x + i, s, " ", 1, 1);
}

int viz_text_cut(viz_pane p, int y, int x, int w, viz_style s, const char *utf8) {
    if (w <= 0) return 0;
    const size_t n = strlen(utf8);
    const bool cut = cells_of(p, utf8, n) > w;
    const int room = cut ? w - 1 : w;
    int at = 0;
    for (size_t i = 0; i < n;) {
        char text[VIZ_CELL_BYTES];
        size_t m;
        int width;
        const size_t used = next_cluster(p.c->caps, utf8 + i, n - i, text, &m, &width);
        if (at + width > room) break;
        put_cell(p, y, x + at, s, text, m, width);
        at += width;
        i += used;
    }
    blank(p, y, x + at, w - at, s);
    if (cut) put_cell(p, y, x + w - 1, s, "~", 1, 1);
    return w;
}

/* bytes of the first line of w cells: up to the last space in it when not all fits, at least one cluster */
static size_t line_of(viz_pane p, int w, const char *s, size_t n) {
    size_t i = 0, space = 0;
    for (int cells = 0; i < n;) {
        char text[VIZ_CELL_BYTES];
        size_t m;
        int width;
        const size_t used = next_cluster(p.c->caps, s + i, n - i, text, &m, &width);
        if (s[i] == ' ') space = i;
        if (i > 0 && cells + width > w) return space > 0 ? space : i;
        cells += width;
        i += used;
    }
    return n;
}

int viz_text_wrap(viz_pane p, int y, int x, int w, int n_row, viz_style s, const char *utf8) {
    size_t left = strlen(utf8);
    int row = 0;
    if (w <= 0) return 0;
    do {
        const size_t n = line_of(p, w, utf8, left);
        if (row + 1 == n_row && n < left)
            (void)viz_text_cut(p, y + row, x, w, s, utf8);
        else if (row < n_row)
            (void)viz_bytes(p, y + row, x, s, utf8, n);
        utf8 += n;
        left -= n;
        while (left > 0 && *utf8 == ' ') utf8++, left--;
        row++;
    } while (left > 0);
    return row;
}

int viz_text_right(viz_pane p, int y, int x, int w, viz_style s, const char *utf8) {
    if (w <= 0) return 0;
    const int cells = cells_of(p, utf8, strlen(utf8));
    if (cells >= w) return viz_text_cut(p, y, x, w, s, utf8);
    blank(p, y, x, w - cells, s);
    viz_text(p, y, x + w - cells, s, utf8);
    return w;
}

int viz_clean(viz_pane p, int y, int x, int w, viz_style s, const moa_clean *clean) {
    if (w <= 0) return 0;
    const char *text = moa_clean_text(clean);
    size_t n = moa_clean_bytes(clean), n_mark = 0, mark = 0;
    const moa_clean_mark *marks = clean ? moa_clean_marks(clean, &n_mark) : NULL;
    const bool cut = cells_of(p, text, n) > w;
    const int room = cut ? w - 1 : w;
    int at = 0;
    for (size_t i = 0; i < n;) {
        while (mark < n_mark && marks[mark].at + marks[mark].bytes <= i) mark++;
        viz_style st = s;
        if (mark < n_mark && i >= marks[mark].at) st.attr |= VIZ_A_DIM;
        char cell[VIZ_CELL_BYTES];
        size_t m;
        int width;
        const size_t used = next_cluster(p.c->caps, text + i, n - i, cell, &m, &width);
        if (at + width > room) break;
        put_cell(p, y, x + at, st, cell, m, width);
        at += width;
        i += used;
    }
    if (cut) {
        put_cell(p, y, x + at, s, "~", 1, 1);
        at++;
    }
    return at;
}

void viz_fill(viz_pane p, int y, int x, int h, int w, viz_style s, const char *glyph) {
    for (int r = 0; r < h; r++)
        for (int c = 0; c < w; c++) (void)viz_text(p, y + r, x + c, s, glyph);
}

void viz_restyle(viz_pane p, int y, int x, int h, int w, viz_color bg, uint8_t attr) {
    for (int r = 0; r < h; r++)
        for (int c = 0; c < w; c++) {
            if (!inside(p.clip, p.y + y + r, p.x + x + c)) continue;
            viz_cell *cell = viz_canvas_at(p.c, p.y + y + r, p.x + x + c);
            cell->style.bg = bg;
            cell->style.attr |= attr;
        }
}

void viz_hline(viz_pane p, int y, int x, int w, viz_style s) {
    for (int i = 0; i < w; i++) (void)viz_text(p, y, x + i, s, "─");
}

void viz_vline(viz_pane p, int y, int x, int h, viz_style s) {
    for (int i = 0; i < h; i++) (void)viz_text(p, y + i, x, s, "│");
}

/* --- frames -------------------------------------------------------------------------------------------------------------- */

viz_pane viz_box(viz_pane p, const char *title, const char *note, bool focus) {
    static const char *const round[] = {"╭", "╮", "╰", "╯", "─", "│"}, *const heavy[] = {"┏", "┓", "┗", "┛", "━", "┃"},
                             *const thin[] = {"┌", "┐", "└", "┘", "─", "│"};
    if (p.h < 2 || p.w < 2) return viz_pane_sub(p, 0, 0, 0, 0);
    const bool rich = p.c->caps.depth >= VIZ_256;
    const char *const *g = focus && !rich ? heavy : rich ? round : thin;
    const viz_style s = viz_fg(focus ? VIZ_FRAME_FOCUS : VIZ_FRAME);
    const int w = p.w, h = p.h;
    viz_text(p, 0, 0, s, g[0]);
    viz_text(p, 0, w - 1, s, g[1]);
    viz_text(p, h - 1, 0, s, g[2]);
    viz_text(p, h - 1, w - 1, s, g[3]);
    for (int i = 1; i < w - 1; i++) {
        viz_text(p, 0, i, s, g[4]);
        viz_text(p, h - 1, i, s, g[4]);
    }
    for (int i = 1; i < h - 1; i++) {
        viz_text(p, i, 0, s, g[5]);
        viz_text(p, i, w - 1, s, g[5]);
    }
    int used = 2;
    if (title && *title && w > 8) {
        int room = w - 6;
        const int cells = cells_of(p, title, strlen(title));
        if (cells < room) room = cells;
        viz_text(p, 0, 2, s, " ");
        viz_text_cut(p, 0, 3, room, viz_bold(focus ? VIZ_FRAME_FOCUS : VIZ_TITLE), title);
        viz_text(p, 0, 3 + room, s, " ");
        used = 4 + room;
    }
    if (note && *note) {
        const int cells = cells_of(p, note, strlen(note));
        if (used + cells + 5 <= w) {
            viz_text(p, 0, w - cells - 4, s, " ");
            viz_text(p, 0, w - cells - 3, viz_fg(VIZ_DIM), note);
            viz_text(p, 0, w - 3, s, " ");
        }
    }
    return viz_pane_sub(p, 1, 1, h - 2, w - 2);
}

/* --- bars and charts -------------------------------------------------------------------------------------------------------- */

static const char *const eighth_right[] = {" ", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"};
static const char *const eighth_up[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
static const char glyph_ramp[] = " .:-=+*#%@";

/* a heavy line on a thin, darker one where there are colours: bars under each other stay apart, and a copied text still tells */
static void line_bar(viz_pane p, int y, int x, int w, double v, viz_color fg) {
    const int halves = (int)lround(v * w * 2);
    for (int i = 0; i < w; i++) {
        const int k = halves - 2 * i;
        viz_text(p, y, x + i, viz_fg(k >= 1 ? fg : (viz_color)VIZ_BAR_REST), k == 1 ? "╸" : k > 1 ? "━" : "─");
    }
}

void viz_bar(viz_pane p, int y, int x, int w, double share, viz_color fg) {
    if (w < 3) return;
    const bool unknown = isnan(share);
    const double v = unknown || share < 0 ? 0 : share > 1 ? 1 : share;
    if (p.c->caps.depth >= VIZ_256 && p.c->caps.utf8) line_bar(p, y, x, w, v, fg);
    else {
        viz_text(p, y, x, viz_fg(VIZ_DIM), p.c->caps.utf8 ? "▕" : "[");
        viz_text(p, y, x + w - 1, viz_fg(VIZ_DIM), p.c->caps.utf8 ? "▏" : "]");
        const int eighths = (int)lround(v * (w - 2) * 8);
        for (int i = 0; i < w - 2; i++) {
            int e = eighths - 8 * i;
            if (e < 0) e = 0;
            if (e > 8) e = 8;
            viz_text(p, y, x + 1 + i, viz_fg(fg), p.c->caps.utf8 ? eighth_right[e] : e >= 4 ? "#" : " ");
        }
    }
    if (unknown) viz_text(p, y, x + w / 2, viz_fg(VIZ_DIM), "-");
}

/* mean of the values that fall into cell i of w; NAN if none is known */
static double cell_mean(const float *values, int n, int i, int w) {
    if (n <= w) return n > 0 && i < n ? (double)values[i] : (double)NAN;
    const int a = (int)((int64_t)i * n / w);
    int b = (int)((int64_t)(i + 1) * n / w);
    if (b <= a) b = a + 1;
    double sum = 0;
    int k = 0;
    for (int j = a; j < b && j < n; j++)
        if (!isnan(values[j])) {
            sum += (double)values[j];
            k++;
        }
    return k ? sum / k : (double)NAN;
}

static void own_range(const float *values, int n, float *lo, float *hi) {
    if (*lo < *hi) return;
    float a = INFINITY, b = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (isnan(values[i])) continue;
        if (values[i] < a) a = values[i];
        if (values[i] > b) b = values[i];
    }
    *lo = a <= b ? a : 0;
    *hi = a <= b && b > a ? b : *lo + 1;
}

static double fraction(double v, float lo, float hi) {
    const double t = (v - (double)lo) / ((double)hi - (double)lo);
    return t < 0 ? 0 : t > 1 ? 1 : t;
}

void viz_spark(viz_pane p, int y, int x, int w, viz_style s, const float *values, int n, float lo, float hi) {
    own_range(values, n, &lo, &hi);
    for (int i = 0; i < w; i++) {
        const double v = cell_mean(values, n, i, w);
        if (isnan(v)) {
            viz_text(p, y, x + i, s, " ");
            continue;
        }
        const double t = fraction(v, lo, hi);
        if (p.c->caps.utf8) viz_text(p, y, x + i, s, eighth_up[1 + (int)lround(t * 7)]);
        else {
            const char one[2] = {glyph_ramp[(int)lround(t * 9)], 0};
            viz_text(p, y, x + i, s, one);
        }
    }
}

void viz_columns(viz_pane p, int y, int x, int h, int w, viz_style s, const float *values, int n, float lo, float hi) {
    own_range(values, n, &lo, &hi);
    for (int i = 0; i < w; i++) {
        const double v = cell_mean(values, n, i, w);
        const int eighths = isnan(v) ? 0 : (int)lround(fraction(v, lo, hi) * h * 8);
        for (int r = 0; r < h; r++) {
            int e = eighths - 8 * (h - 1 - r);
            if (e < 0) e = 0;
            if (e > 8) e = 8;
            viz_text(p, y + r, x + i, s, p.c->caps.utf8 ? eighth_up[e] : e >= 6 ? "#" : e >= 2 ? "." : " ");
        }
    }
}

void viz_cursor(viz_pane p, int y, int x) {
    if (!inside(p.clip, p.y + y, p.x + x)) return;
    p.c->cursor_y = p.y + y;
    p.c->cursor_x = p.x + x;
}

/* --- numbers ------------------------------------------------------------------------------------------------------------------ */

char *viz_bytes_text(char out[16], uint64_t bytes) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    int u = 0;
    while (v >= 1023.995 && u < 6) {
        v /= 1024;
        u++;
    }
    if (u == 0) (void)snprintf(out, 16, "%d B", (int)bytes);
    else (void)snprintf(out, 16, v < 9.995 ? "%.2f %s" : v < 99.95 ? "%.1f %s" : "%.0f %s", v, unit[u]);
    return out;
}

char *viz_count_text(char out[24], int64_t n) {
    char digits[24];
    const bool minus = n < 0;
    (void)snprintf(digits, sizeof digits, "%llu", minus ? 0ULL - (unsigned long long)n : (unsigned long long)n);
    const size_t len = strlen(digits);
    size_t at = 0;
    if (minus) out[at++] = '-';
    for (size_t i = 0; i < len && at + 2 < 24; i++) {
        if (i && (len - i) % 3 == 0 && len < 16) out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = 0;
    return out;
}

char *viz_short_text(char out[16], int64_t n) {
    if (n > -10000 && n < 10000) (void)snprintf(out, 16, "%d", (int)n);
    else if (n > -1000000 && n < 1000000) (void)snprintf(out, 16, n % 1000 ? "%.1fk" : "%.0fk", (double)n / 1000);
    else (void)snprintf(out, 16, "%.1fM", (double)n / 1e6);
    return out;
}

char *viz_real_text(char out[24], double v, int decimals) {
    if (isnan(v)) (void)snprintf(out, 24, "-");
    else (void)snprintf(out, 24, "%.*f", decimals, v);
    return out;
}

char *viz_percent_text(char out[16], double share, int decimals) {
    if (isnan(share)) (void)snprintf(out, 16, "-");
    else (void)snprintf(out, 16, "%.*f%%", decimals, 100 * share);
    return out;
}
