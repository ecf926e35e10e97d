/* canvas.h -- a screen of cells that belongs to us: views draw into it, sinks show it.
 *
 *   view --> viz_pane --> viz_canvas (rows x cols cells) --> ncurses (tui/term.c) | plain text | ANSI | SVG
 *            clips        glyph, fg, bg, attributes          one picture, many sinks: goldens and exports are the screen
 *
 * Colours are names until a sink resolves them: a role of the interface ("frame", "warn"), a level of a heat ramp, or 24 bits.
 * So a test can compare names, and every colour depth is the sink's business. Shape is not: what must be drawn otherwise when
 * there are no half blocks or no colours is decided here, by viz_caps (views write UTF-8 freely; without UTF-8 each glyph is
 * replaced cell for cell).
 *
 * A pane is a rectangle with its own origin. Drawing is clipped to it: nothing a view does can touch another pane.
 * No text that commands a terminal can enter a cell: control, bidi and zero-width characters become U+FFFD here, whatever the
 * caller did. (Text of files, models and prompts should come as moa_clean, which shows what it replaced.) */
#ifndef VIZ_CANVAS_H
#define VIZ_CANVAS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/buf.h"
#include "core/base/status.h"
#include "core/base/text.h"

enum { VIZ_ROWS_MAX = 500, VIZ_COLS_MAX = 1000 };

/* --- what the terminal can do -------------------------------------------------------------------------------------- */

typedef enum viz_depth {
    VIZ_MONO, /* bold, underline, reverse only; every picture is complete without colour */
    VIZ_8,    /* roles in 8 colours; heat in glyphs */
    VIZ_256,  /* heat in half blocks, hand-picked ramps */
    VIZ_24BIT,
} viz_depth;

typedef struct viz_caps {
    viz_depth depth;
    bool utf8; /* else: ASCII only */
} viz_caps;

/* two heat values a cell (upper and lower half block) or one glyph? */
static inline bool viz_caps_half(viz_caps caps) { return caps.utf8 && caps.depth >= VIZ_256; }

/* --- colours and styles ---------------------------------------------------------------------------------------------- */

/* role, its 24 bits (-1: the terminal's own), 256-colour index, 8-colour index, attributes it gets without colours */
#define VIZ_ROLE_MAP(X)                                                                                      \
    X(DEFAULT, "default", -1, -1, -1, 0)                                                                     \
    X(TEXT, "text", 0xd4d7dd, 252, -1, 0)                                                                    \
    X(DIM, "dim", 0x8b93a1, 246, -1, VIZ_A_DIM)                                                              \
    X(FAINT, "faint", 0x4d5563, 240, 4, VIZ_A_DIM)                                                           \
    X(FRAME, "frame", 0x3f4857, 238, 4, 0)                                                                   \
    X(FRAME_FOCUS, "frame-focus", 0x7f9fc4, 110, 6, VIZ_A_BOLD)                                              \
    X(TITLE, "title", 0xb9c7dc, 153, 6, VIZ_A_BOLD)                                                          \
    X(ACCENT, "accent", 0xffb454, 215, 3, VIZ_A_BOLD)                                                        \
    X(KEY, "key", 0x8fc7ff, 117, 6, VIZ_A_BOLD)                                                              \
    X(GOOD, "good", 0x7fd1a0, 115, 2, 0)                                                                     \
    X(WARN, "warn", 0xf0c75e, 221, 3, VIZ_A_BOLD)                                                            \
    X(BAD, "bad", 0xff7a72, 210, 1, VIZ_A_BOLD | VIZ_A_UNDERLINE)                                            \
    X(BAR, "bar", 0x6f9fd8, 68, 6, 0)                                                                        \
    X(BAR_REST, "bar-rest", 0x2a313c, 236, -1, 0)                                                            \
    X(RUN_A, "run-a", 0x6fb7ff, 75, 4, 0)                                                                    \
    X(RUN_B, "run-b", 0xffa657, 215, 3, 0)                                                                   \
    X(EDGE, "edge", 0xff5fa2, 205, 5, VIZ_A_BOLD)                                                            \
    X(BG_BAR, "bg-bar", 0x1c222b, 235, -1, 0)                                                                \
    X(BG_SELECT, "bg-select", 0x2c3a50, 24, 4, VIZ_A_REVERSE)                                                \
    X(BG_POPUP, "bg-popup", 0x161b22, 234, -1, 0)                                                            \
    X(BG_DIFF, "bg-diff", 0x5a2b2b, 52, 1, VIZ_A_UNDERLINE)                                                  \
    X(CAT1, "cat1", 0x56b4e9, 74, 6, 0)                                                                      \
    X(CAT2, "cat2", 0xe69f00, 178, 3, 0)                                                                     \
    X(CAT3, "cat3", 0x009e73, 36, 2, 0)                                                                      \
    X(CAT4, "cat4", 0xcc79a7, 175, 5, 0)                                                                     \
    X(CAT5, "cat5", 0xf0e442, 227, 3, 0)                                                                     \
    X(CAT6, "cat6", 0x0072b2, 32, 4, 0)                                                                      \
    X(CAT7, "cat7", 0xd55e00, 166, 1, 0)                                                                     \
    X(CAT8, "cat8", 0xa0a7b4, 248, -1, 0)

typedef enum viz_role {
#define X(name, text, rgb, c256, c8, mono) VIZ_##name,
    VIZ_ROLE_MAP(X)
#undef X
        VIZ_ROLE_COUNT
} viz_role;

enum { VIZ_A_BOLD = 1, VIZ_A_DIM = 2, VIZ_A_UNDERLINE = 4, VIZ_A_REVERSE = 8, VIZ_A_ITALIC = 16 };

/* kind << 24, then: role | dim << 16, ramp << 8, level 0..63 | 0xRRGGBB */
typedef uint32_t viz_color;
enum { VIZ_KIND_ROLE = 0, VIZ_KIND_HEAT = 1, VIZ_KIND_RGB = 2, VIZ_HEAT_LEVELS = 64 };
static inline viz_color viz_rgb(uint32_t rgb) { return (uint32_t)VIZ_KIND_RGB << 24 | (rgb & 0xffffffu); }
/* level 0..63 of a ramp of ramp.h; dimmed: outside the window */
static inline viz_color viz_heat_color(int ramp, int level, bool dimmed) {
    return (uint32_t)VIZ_KIND_HEAT << 24 | (uint32_t)dimmed << 16 | (uint32_t)ramp << 8 | (uint32_t)level;
}
static inline int viz_color_kind(viz_color c) { return (int)(c >> 24); }

typedef struct viz_style {
    viz_color fg, bg; /* a plain role is a viz_color */
    uint8_t attr;     /* VIZ_A_* */
} viz_style;
static inline viz_style viz_fg(viz_color fg) { return (viz_style){fg, VIZ_DEFAULT, 0}; }
static inline viz_style viz_on(viz_color fg, viz_color bg) { return (viz_style){fg, bg, 0}; }
static inline viz_style viz_bold(viz_color fg) { return (viz_style){fg, VIZ_DEFAULT, VIZ_A_BOLD}; }

/* What a colour becomes at a depth. VIZ_24BIT: 0xRRGGBB; VIZ_256: 0..255; VIZ_8: 0..7; -1: the terminal's own. */
int32_t viz_color_resolve(viz_color c, viz_depth depth);
/* Attributes a style needs in VIZ_MONO on top of its own, so that nothing is told by colour alone. */
uint8_t viz_style_mono(viz_style s);
/* "frame", "heat:0:17", "heat:0:17:dim", "#rrggbb"; out at least 24 bytes */
void viz_color_name(viz_color c, char out[24]);

/* --- the canvas --------------------------------------------------------------------------------------------------- */

enum { VIZ_CELL_BYTES = 22 };
typedef struct viz_cell {
    char text[VIZ_CELL_BYTES]; /* one character with its marks, UTF-8, not NUL-terminated */
    uint8_t n;                 /* bytes of text; 0: the right half of a wide character */
    uint8_t width;             /* cells: 1, 2; 0: the right half of a wide character */
    viz_style style;
} viz_cell;

typedef struct viz_canvas {
    int rows, cols;
    viz_caps caps;
    viz_cell *cells; /* (rows, cols), owned */
    int cursor_y, cursor_x; /* where the terminal's cursor goes; -1: hidden */
} viz_canvas;

/* Blank cells in the default style. E_USAGE beyond VIZ_ROWS_MAX x VIZ_COLS_MAX or below 1x1. */
moa_status viz_canvas_open(viz_canvas **out, int rows, int cols, viz_caps caps, moa_err *err);
void viz_canvas_close(viz_canvas **c);
moa_status viz_canvas_resize(viz_canvas *c, int rows, int cols, moa_err *err); /* and clears */
void viz_canvas_clear(viz_canvas *c);
static inline viz_cell *viz_canvas_at(const viz_canvas *c, int y, int x) { return &c->cells[(size_t)y * (size_t)c->cols + (size_t)x]; }

/* --- panes ----------------------------------------------------------------------------------------------------------- */

typedef struct viz_rect {
    int y, x, h, w; /* cells; empty when h or w <= 0 */
} viz_rect;
static inline bool viz_rect_empty(viz_rect r) { return r.h <= 0 || r.w <= 0; }
viz_rect viz_rect_and(viz_rect a, viz_rect b);
static inline viz_rect viz_rect_inset(viz_rect r, int dy, int dx) { return (viz_rect){r.y + dy, r.x + dx, r.h - 2 * dy, r.w - 2 * dx}; }

/* Coordinates of drawing calls count from the pane's upper left; h and w are its size; what leaves clip is not drawn. */
typedef struct viz_pane {
    viz_canvas *c;
    int y, x, h, w;
    viz_rect clip; /* absolute */
} viz_pane;
viz_pane viz_pane_all(viz_canvas *c);
viz_pane viz_pane_of(viz_canvas *c, viz_rect absolute);
viz_pane viz_pane_sub(viz_pane p, int y, int x, int h, int w);
static inline viz_rect viz_pane_rect(viz_pane p) { return (viz_rect){p.y, p.x, p.h, p.w}; }

/* --- drawing --------------------------------------------------------------------------------------------------------- */

/* All return the cells taken on the line (also those clipped away), so that calls can be chained: x += viz_text(...). */
int viz_text(viz_pane p, int y, int x, viz_style s, const char *utf8);
int viz_bytes(viz_pane p, int y, int x, viz_style s, const char *utf8, size_t n);
int viz_printf(viz_pane p, int y, int x, viz_style s, const char *format, ...) __attribute__((format(printf, 5, 6)));
/* exactly w cells: cut with `~` or padded; viz_text_right pads on the left */
int viz_text_cut(viz_pane p, int y, int x, int w, viz_style s, const char *utf8);
int viz_text_right(viz_pane p, int y, int x, int w, viz_style s, const char *utf8);
/* in lines of at most w cells, broken at spaces, the last of n_row cut with `~`. Returns the lines that the whole takes; n_row 0 only counts. */
int viz_text_wrap(viz_pane p, int y, int x, int w, int n_row, viz_style s, const char *utf8);
/* one line of clean text, its replaced parts dim, cut with `~` at w cells; NULL: nothing. Returns the cells taken. */
int viz_clean(viz_pane p, int y, int x, int w, viz_style s, const moa_clean *text);
void viz_fill(viz_pane p, int y, int x, int h, int w, viz_style s, const char *glyph);
/* only the style of cells that are there: a selected row */
void viz_restyle(viz_pane p, int y, int x, int h, int w, viz_color bg, uint8_t attr);
void viz_hline(viz_pane p, int y, int x, int w, viz_style s);
void viz_vline(viz_pane p, int y, int x, int h, viz_style s);

/* A frame around the whole pane with a title left and a note right in the upper edge (either may be NULL), and the pane inside.
 * Focus is drawn as colour and as a heavier frame. */
viz_pane viz_box(viz_pane p, const char *title, const char *note, bool focus);

/* ━━━━━╸──── of w cells (without colours ▕██████▋   ▏); share 0..1, NAN draws an empty bar with `-` */
void viz_bar(viz_pane p, int y, int x, int w, double share, viz_color fg);
/* values (n) -> ▁▂▃▄▅▆▇█, resampled to w cells (mean), scaled to lo..hi (lo >= hi: own range); NAN draws a space.
 * With a mono or ASCII canvas: ` .:-=+*#%@` */
void viz_spark(viz_pane p, int y, int x, int w, viz_style s, const float *values, int n, float lo, float hi);
/* a column chart of h rows with eighth blocks */
void viz_columns(viz_pane p, int y, int x, int h, int w, viz_style s, const float *values, int n, float lo, float hi);
/* the terminal's cursor goes there (screen magnifiers follow it); nothing if clipped away */
void viz_cursor(viz_pane p, int y, int x);

/* --- numbers as people read them (out ends with NUL; returns out) --------------------------------------------------------- */

char *viz_bytes_text(char out[16], uint64_t bytes);   /* 512 B, 1.50 MiB, 2.73 GiB */
char *viz_count_text(char out[24], int64_t n);        /* 31,744 */
char *viz_short_text(char out[16], int64_t n);        /* 31.7k */
char *viz_real_text(char out[24], double v, int decimals); /* NAN: "-" */
char *viz_percent_text(char out[16], double share, int decimals); /* NAN: "-" */

/* --- sinks ------------------------------------------------------------------------------------------------------------ */

/* lines, trailing blanks cut */
void viz_sink_text(const viz_canvas *c, moa_buf *out);
/* the same as text, followed by runs of styles by name: "y x n fg bg attrs" a line (goldens that survive a theme) */
void viz_sink_names(const viz_canvas *c, moa_buf *out);
/* SGR sequences for the canvas's depth */
void viz_sink_ansi(const viz_canvas *c, moa_buf *out);
/* a picture in DejaVu Sans Mono, 24-bit whatever the canvas's depth, on a dark ground */
void viz_sink_svg(const viz_canvas *c, const char *title, moa_buf *out);

#endif
