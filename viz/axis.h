/* axis.h -- one axis of a map: tokens to cells and back, at every zoom.
 *
 *   many tokens a cell   per 0    cell c covers tokens [t0 + c*n/cells, t0 + (c+1)*n/cells)     integer division, as maps are computed
 *   cells a token        per >= 1 token t lies on cells [(t-t0)*per, (t-t0)*per + per)           cells beyond the last token stay empty
 *
 * Zooming has levels: 0 shows everything, `levels` shows single tokens, and both axes of a picture arrive there together; one level
 * more gives every token room for a figure. In between a cell covers a whole number of tokens: else neighbours that hold 1 and 2
 * tokens would draw stripes that are not in the data. */
#ifndef VIZ_AXIS_H
#define VIZ_AXIS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct viz_axis {
    int32_t t0, t1; /* tokens [t0, t1), t1 > t0 */
    int cells;      /* of the picture along this axis, >= 1; per >= 1: the tokens' cells together */
    int per;        /* cells a token; 0: several tokens a cell */
} viz_axis;

/* The axis of `buckets` equal parts of [t0, t1) in at most `room` cells. One part a token: up to per_max cells each. */
viz_axis viz_axis_of(int32_t t0, int32_t t1, int buckets, int room, int per_max);
/* parts that values come in: one a cell, or one a token */
static inline int viz_axis_buckets(const viz_axis *a) { return a->per ? a->t1 - a->t0 : a->cells; }
/* tokens [first, end) of a part; parts are 0 .. viz_axis_buckets - 1 */
static inline int32_t viz_axis_bucket_first(const viz_axis *a, int b) {
    return a->t0 + (a->per ? b : (int32_t)((int64_t)b * (a->t1 - a->t0) / a->cells));
}
static inline int32_t viz_axis_bucket_end(const viz_axis *a, int b) { return viz_axis_bucket_first(a, b + 1); }
static inline int viz_axis_bucket_of_cell(const viz_axis *a, int c) { return a->per ? c / a->per : c; }
/* tokens [first, end) of a cell, 0 <= c < cells */
static inline int32_t viz_axis_first(const viz_axis *a, int c) { return viz_axis_bucket_first(a, viz_axis_bucket_of_cell(a, c)); }
static inline int32_t viz_axis_end(const viz_axis *a, int c) { return viz_axis_bucket_end(a, viz_axis_bucket_of_cell(a, c)); }
/* the (first) cell of token t; -1: not on this axis */
int viz_axis_cell(const viz_axis *a, int32_t t);

/* --- zoom ---------------------------------------------------------------------------------------------------------------- */

typedef struct viz_zoom {
    int32_t lo, hi; /* tokens there are: [lo, hi), hi > lo */
    int cells;      /* room, >= 1 */
    int unit;       /* cells of a token when single tokens are shown, >= 1 */
    int wide;       /* cells of a token on the level beyond that; <= unit: as unit */
} viz_zoom;

/* steps (of about 2) from everything to single tokens, on whichever axis has the longer way */
int viz_zoom_levels(const viz_zoom *a, const viz_zoom *b);
/* tokens shown at level 0 .. levels + 1 */
int32_t viz_zoom_count(const viz_zoom *z, int level, int levels);
/* Where the window of count tokens begins so that token `at` is inside, with a margin, moving it from t0 no more than needed. */
int32_t viz_zoom_scroll(const viz_zoom *z, int32_t count, int32_t t0, int32_t at);
/* Where it begins after zooming from [t0, t0 + old) to `count` tokens: `at` stays in its place on the screen. */
int32_t viz_zoom_around(const viz_zoom *z, int32_t count, int32_t t0, int32_t old, int32_t at);

/* --- labels ---------------------------------------------------------------------------------------------------------------- */

typedef struct viz_tick {
    int cell;
    int32_t token;
    char label[16];
} viz_tick;

/* Round token numbers along the axis, their cells rising; label i takes cells [cell, cell + size). across: labels are written along the
 * axis (size: their length), else across it (size: 1); they stay inside the axis and at least gap cells apart. Returns how many (<= max). */
int viz_axis_ticks(const viz_axis *a, bool across, int gap, viz_tick *out, int max);

#endif
