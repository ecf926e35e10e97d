/* sink.c -- what a canvas becomes outside: colours by depth, plain text, names, ANSI, SVG. ncurses is tui/term.c. */
#include <stdio.h>
#include <string.h>

#include "viz/canvas.h"
#include "viz/ramp.h"

static const struct role {
    const char *name;
    int32_t rgb, c256, c8;
    uint8_t mono;
} roles[VIZ_ROLE_COUNT] = {
#define X(name, text, rgb, c256, c8, mono) {text, rgb, c256, c8, mono},
    VIZ_ROLE_MAP(X)
#undef X
};

/* nearest entry of the 6x6x6 cube and the grey line */
static int nearest_256(uint32_t rgb) {
    static const int step[] = {0, 95, 135, 175, 215, 255};
    const int v[3] = {(int)(rgb >> 16 & 255), (int)(rgb >> 8 & 255), (int)(rgb & 255)};
    int best = 16, at[3];
    long d_best = 0;
    for (int i = 0; i < 3; i++) {
        at[i] = 0;
        for (int k = 1; k < 6; k++)
            if ((v[i] - step[k]) * (v[i] - step[k]) < (v[i] - step[at[i]]) * (v[i] - step[at[i]])) at[i] = k;
        d_best += (long)(v[i] - step[at[i]]) * (v[i] - step[at[i]]);
    }
    best = 16 + 36 * at[0] + 6 * at[1] + at[2];
    for (int g = 0; g < 24; g++) {
        long d = 0;
        for (int i = 0; i < 3; i++) d += (long)(v[i] - 8 - 10 * g) * (v[i] - 8 - 10 * g);
        if (d < d_best) {
            d_best = d;
            best = 232 + g;
        }
    }
    return best;
}

static int nearest_8(uint32_t rgb) {
    return (int)((rgb >> 23 & 1) | (rgb >> 15 & 1) << 1 | (rgb >> 7 & 1) << 2);
}

int32_t viz_color_resolve(viz_color c, viz_depth depth) {
    if (depth == VIZ_MONO) return -1;
    const int kind = viz_color_kind(c);
    if (kind == VIZ_KIND_ROLE) {
        const uint32_t role = c & 0xffff;
        if (role >= VIZ_ROLE_COUNT) return -1;
        return depth == VIZ_24BIT ? roles[role].rgb : depth == VIZ_256 ? roles[role].c256 : roles[role].c8;
    }
    if (kind == VIZ_KIND_HEAT) {
        const viz_ramp ramp = (viz_ramp)((c >> 8 & 255) % VIZ_RAMP_COUNT);
        const int level = (int)(c & 255);
        const bool dim = c >> 16 & 1;
        if (depth == VIZ_24BIT) return (int32_t)viz_ramp_rgb(ramp, level, dim);
        if (depth == VIZ_256) return viz_ramp_256(ramp, level, dim);
        return -1; /* glyphs carry it */
    }
    const uint32_t rgb = c & 0xffffff;
    return depth == VIZ_24BIT ? (int32_t)rgb : depth == VIZ_256 ? nearest_256(rgb) : nearest_8(rgb);
}

uint8_t viz_style_mono(viz_style s) {
    uint8_t attr = s.attr;
    const viz_color both[] = {s.fg, s.bg};
    for (int i = 0; i < 2; i++)
        if (viz_color_kind(both[i]) == VIZ_KIND_ROLE && (both[i] & 0xffff) < VIZ_ROLE_COUNT) attr |= roles[both[i] & 0xffff].mono;
    return attr;
}

void viz_color_name(viz_color c, char out[24]) {
    const int kind = viz_color_kind(c);
    if (kind == VIZ_KIND_ROLE) (void)snprintf(out, 24, "%s", (c & 0xffff) < VIZ_ROLE_COUNT ? roles[c & 0xffff].name : "?");
    else if (kind == VIZ_KIND_HEAT)
        (void)snprintf(out, 24, "heat:%u:%u%s", c >> 8 & 255u, c & 255u, c >> 16 & 1u ? ":dim" : "");
    else (void)snprintf(out, 24, "#%06x", c & 0xffffffu);
}

/* --- text ------------------------------------------------------------------------------------------------------------------ */

/* one past the last cell of a row that is not blank; styled: a ground colour counts as something */
static int row_end(const viz_canvas *c, int y, bool styled) {
    int x = c->cols;
    while (x > 0) {
        const viz_cell *cell = viz_canvas_at(c, y, x - 1);
        if (!(cell->n == 1 && cell->text[0] == ' ')) break;
        if (styled && (cell->style.bg != VIZ_DEFAULT || cell->style.attr & (VIZ_A_REVERSE | VIZ_A_UNDERLINE))) break;
        x--;
    }
    return x;
}

void viz_sink_text(const viz_canvas *c, moa_buf *out) {
    for (int y = 0; y < c->rows; y++) {
        const int end = row_end(c, y, false);
        for (int x = 0; x < end; x++) {
            const viz_cell *cell = viz_canvas_at(c, y, x);
            moa_buf_append(out, cell->text, cell->n);
        }
        moa_buf_append(out, "\n", 1);
    }
}

static bool style_equal(viz_style a, viz_style b) { return a.fg == b.fg && a.bg == b.bg && a.attr == b.attr; }

void viz_sink_names(const viz_canvas *c, moa_buf *out) {
    viz_sink_text(c, out);
    for (int y = 0; y < c->rows; y++)
        for (int x = 0; x < c->cols;) {
            const viz_style s = viz_canvas_at(c, y, x)->style;
            int n = 1;
            while (x + n < c->cols && style_equal(viz_canvas_at(c, y, x + n)->style, s)) n++;
            if (s.fg != VIZ_DEFAULT || s.bg != VIZ_DEFAULT || s.attr) {
                char fg[24], bg[24];
                viz_color_name(s.fg, fg);
                viz_color_name(s.bg, bg);
                moa_buf_printf(out, "%d %d %d %s %s %s%s%s%s%s\n", y, x, n, fg, bg, s.attr & VIZ_A_BOLD ? "b" : "",
                               s.attr & VIZ_A_DIM ? "d" : "", s.attr & VIZ_A_UNDERLINE ? "u" : "",
                               s.attr & VIZ_A_REVERSE ? "r" : "", s.attr ? "" : "-");
            }
            x += n;
        }
}

static void sgr(viz_style s, viz_depth depth, moa_buf *out) {
    const uint8_t attr = depth == VIZ_MONO ? viz_style_mono(s) : s.attr;
    moa_buf_str(out, "\x1b[0");
    if (attr & VIZ_A_BOLD) moa_buf_str(out, ";1");
    if (attr & VIZ_A_DIM) moa_buf_str(out, ";2");
    if (attr & VIZ_A_ITALIC) moa_buf_str(out, ";3");
    if (attr & VIZ_A_UNDERLINE) moa_buf_str(out, ";4");
    if (attr & VIZ_A_REVERSE) moa_buf_str(out, ";7");
    for (int ground = 0; ground < 2; ground++) {
        const int32_t v = viz_color_resolve(ground ? s.bg : s.fg, depth);
        if (v < 0) continue;
        if (depth == VIZ_24BIT) moa_buf_printf(out, ";%d;2;%d;%d;%d", ground ? 48 : 38, v >> 16 & 255, v >> 8 & 255, v & 255);
        else if (depth == VIZ_256) moa_buf_printf(out, ";%d;5;%d", ground ? 48 : 38, v);
        else moa_buf_printf(out, ";%d", (ground ? 40 : 30) + v);
    }
    moa_buf_str(out, "m");
}

void viz_sink_ansi(const viz_canvas *c, moa_buf *out) {
    for (int y = 0; y < c->rows; y++) {
        const int end = row_end(c, y, true);
        viz_style now = {VIZ_DEFAULT, VIZ_DEFAULT, 0};
        for (int x = 0; x < end; x++) {
            const viz_cell *cell = viz_canvas_at(c, y, x);
            if (!style_equal(now, cell->style)) sgr(now = cell->style, c->caps.depth, out);
            moa_buf_append(out, cell->text, cell->n);
        }
        if (!style_equal(now, (viz_style){VIZ_DEFAULT, VIZ_DEFAULT, 0})) moa_buf_str(out, "\x1b[0m");
        moa_buf_append(out, "\n", 1);
    }
}

/* --- SVG -------------------------------------------------------------------------------------------------------------------- */

enum { SVG_W = 84, SVG_H = 176, SVG_GROUND = 0x0d1117, SVG_INK = 0xd4d7dd }; /* tenths of a pixel a cell */

static void svg_colors(viz_style s, uint32_t *fg, uint32_t *bg) {
    int32_t f = viz_color_resolve(s.fg, VIZ_24BIT), b = viz_color_resolve(s.bg, VIZ_24BIT);
    if (f < 0) f = SVG_INK;
    if (b < 0) b = SVG_GROUND;
    *fg = (uint32_t)(s.attr & VIZ_A_REVERSE ? b : f);
    *bg = (uint32_t)(s.attr & VIZ_A_REVERSE ? f : b);
}

static void svg_rect(moa_buf *out, double x, double y, double w, double h, uint32_t rgb) {
    moa_buf_printf(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"#%06x\"/>\n", x, y, w, h, rgb);
}

/* block glyphs as rectangles: exact on any font. False: not a block. */
static bool svg_block(const viz_cell *cell, double x, double y, uint32_t fg, moa_buf *out) {
    int32_t cp;
    if (cell->n != 3) return false;
    (void)moa_utf8_next(cell->text, cell->n, &cp, NULL);
    const double w = SVG_W / 10.0, h = SVG_H / 10.0;
    if (cp == 0x2580) svg_rect(out, x, y, w, h / 2, fg);
    else if (cp >= 0x2581 && cp <= 0x2588) {
        const double part = h * (cp - 0x2580) / 8;
        svg_rect(out, x, y + h - part, w, part, fg);
    } else if (cp >= 0x2589 && cp <= 0x258f) svg_rect(out, x, y, w * (0x2590 - cp) / 8, h, fg);
    else if (cp == 0x2595) svg_rect(out, x + w * 7 / 8, y, w / 8, h, fg);
    else return false;
    return true;
}

static void svg_row(const viz_canvas *c, int y, moa_buf *out) {
    const double cw = SVG_W / 10.0, ch = SVG_H / 10.0, top = y * ch;
    uint32_t fg, bg;
    for (int x = 0; x < c->cols;) { /* grounds first, in runs */
        svg_colors(viz_canvas_at(c, y, x)->style, &fg, &bg);
        int n = 1;
        uint32_t fg2, bg2;
        while (x + n < c->cols && (svg_colors(viz_canvas_at(c, y, x + n)->style, &fg2, &bg2), bg2 == bg)) n++;
        if (bg != SVG_GROUND) svg_rect(out, x * cw, top, n * cw, ch, bg);
        x += n;
    }
    for (int x = 0; x < c->cols;) {
        const viz_cell *cell = viz_canvas_at(c, y, x);
        svg_colors(cell->style, &fg, &bg);
        if (cell->n == 0 || (cell->n == 1 && cell->text[0] == ' ') || svg_block(cell, x * cw, top, fg, out)) {
            x++;
            continue;
        }
        int n = 0;
        moa_buf run = {0};
        while (x + n < c->cols) { /* one text element for a run of narrow characters of one style */
            const viz_cell *k = viz_canvas_at(c, y, x + n);
            if (!style_equal(k->style, cell->style) || k->n == 0 || (k->n > 1 && n > 0 && k->width == 2)) break;
            if (n > 0 && k->n == 1 && k->text[0] == ' ' && x + n + 1 < c->cols && viz_canvas_at(c, y, x + n + 1)->text[0] == ' ') break;
            int32_t cp;
            (void)moa_utf8_next(k->text, k->n, &cp, NULL);
            if (n > 0 && cp >= 0x2580 && cp <= 0x2595) break;
            moa_text_xml(k->text, k->n, &run);
            n += k->width;
            if (k->width == 2) break;
        }
        if (n == 0) {
            x++;
            moa_buf_free(&run);
            continue;
        }
        moa_buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" textLength=\"%.1f\" fill=\"#%06x\"%s%s%s>%s</text>\n", x * cw, top + ch * 0.76,
                       n * cw, fg, cell->style.attr & VIZ_A_BOLD ? " font-weight=\"bold\"" : "",
                       cell->style.attr & VIZ_A_DIM ? " opacity=\"0.65\"" : "",
                       cell->style.attr & VIZ_A_UNDERLINE ? " text-decoration=\"underline\"" : "", run.data ? run.data : "");
        moa_buf_free(&run);
        x += n;
    }
}

void viz_sink_svg(const viz_canvas *c, const char *title, moa_buf *out) {
    const double w = c->cols * SVG_W / 10.0, h = c->rows * SVG_H / 10.0;
    moa_buf_printf(out,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.1f %.1f\" "
                   "font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"13.9\" xml:space=\"preserve\">\n<title>",
                   w, h, w, h);
    moa_text_xml(title, strlen(title), out);
    moa_buf_printf(out, "</title>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#%06x\"/>\n", SVG_GROUND);
    for (int y = 0; y < c->rows; y++) svg_row(c, y, out);
    moa_buf_str(out, "</svg>\n");
}
