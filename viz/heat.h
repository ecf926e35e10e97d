/* heat.h -- a pooled attention map as cells.
 *
 *        sink | key ->                         two map rows a cell row where there are half blocks (▀: fg upper, bg lower),
 *     q  ##   | ▏..:=*%·   ·                   else one glyph a cell
 *     |  #*   |    ▏..:=*%·   ·                ▏ first key inside the window; left of it: dimmed, never hidden
 *     v  ##   |       ▏..:=*%·   ·             · the future (masked): sparse dots, not black; black means zero
 *
 * Plain arrays in, cells out; nothing here knows spans or engines: the window's edge and the diagonal come as one number a
 * row, in columns, so the caller draws the edge the kernel really uses. Values are 0..1 already; scaling is in viz_scale_*.
 *
 * Pooling: mass is additive (the sum over keys, the mean over queries): rows sum to 1 at every zoom. max answers "is there a
 * needle here?". Scaling: lift = mass / the mass a uniform causal attention would put there; log10 of it from -2 to +2, so that
 * 0.5 is "as uniform" at any length. */
#ifndef VIZ_HEAT_H
#define VIZ_HEAT_H

#include <stdbool.h>
#include <stdint.h>

#include "viz/canvas.h"
#include "viz/ramp.h"

/* --- grids -------------------------------------------------------------------------------------------------------------- */

/* Resamples (rows, cols) to (out_rows, out_cols): where the output is coarser, sums along columns and means along rows (mass) or
 * maxima (use_max) of the source cells it covers, by area for mass; where it is finer, mass is shared out equally so that rows
 * keep their sum. NAN (masked) cells count nothing; an output cell that covers only such is NAN. */
void viz_pool(const float *in, int rows, int cols, float *out, int out_rows, int out_cols, bool use_max);

#define VIZ_SCALE_MAP(X) X(LIFT, "lift") X(LOG, "log") X(LINEAR, "linear") X(RANK, "rank")
typedef enum viz_scale {
#define X(name, text) VIZ_SCALE_##name,
    VIZ_SCALE_MAP(X)
#undef X
        VIZ_SCALE_COUNT
} viz_scale;
const char *viz_scale_name(viz_scale s);

/* where a grid of (rows, cols) lies: queries [q0, q1) and keys [k0, k1), cut into equal parts */
typedef struct viz_extent {
    int32_t q0, q1, k0, k1;
} viz_extent;

/* mass (rows, cols; sums over keys, means over queries) -> t (rows, cols) in 0..1, NAN where no query of the row sees any key of
 * the column. lo, hi: the range in the scale's own unit that became 0..1 (legend). lo_hi NULL: not wanted. skip_first: that many
 * columns are left out of the range (the sink). */
void viz_scale_map(const float *mass, int rows, int cols, viz_extent e, viz_scale scale, int skip_first, float *t, float lo_hi[2]);

/* first column (fraction of a column) at or after which row r's queries may see keys, given the first visible key of the middle query */
static inline float viz_key_col(viz_extent e, int cols, int32_t key) {
    const double span = (double)e.k1 - e.k0;
    return span > 0 ? (float)(((double)key - e.k0) / span * cols) : 0.0f;
}

/* --- drawing --------------------------------------------------------------------------------------------------------------- */

typedef struct viz_heat {
    int rows, cols;     /* of t; rows counts half cells when viz_caps_half */
    const float *t;     /* (rows, cols) 0..1; NAN: future */
    const float *edge;  /* (rows) column at which the window begins, or NULL; <= 0: none in sight */
    const float *edge2; /* (rows) the edge before the edit, drawn ┊, or NULL */
    const float *sink;  /* (rows) 0..1 for the gutter of 2 cells left of a bar, or NULL: no gutter */
    viz_ramp ramp;
    int cursor_row, cursor_col; /* in t, -1: none */
    int keep_cols;      /* first columns that are never dimmed: a sink shown in place */
} viz_heat;

/* cells the picture takes: rows of cells for n map rows, and the gutter's cells (0 or 3) */
static inline int viz_heat_rows(viz_caps caps, int cell_rows) { return viz_caps_half(caps) ? 2 * cell_rows : cell_rows; }
static inline int viz_heat_gutter(bool sink) { return sink ? 3 : 0; }
/* draws at the pane's upper left; what does not fit is clipped */
void viz_heat_draw(viz_pane p, const viz_heat *h);

/* "lo [ .:-=+*#%@] hi unit" with the ramp of this canvas; returns its cells */
int viz_legend(viz_pane p, int y, int x, viz_ramp ramp, const char *lo, const char *hi, const char *unit);

/* one number a cell, for grids of heads: half blocks pair rows 2r and 2r+1 when half is set; cell_w cells a column */
typedef struct viz_grid {
    int rows, cols;
    const float *t; /* (rows, cols) 0..1; NAN: unknown, drawn `-` (or blank half) */
    int cell_w;     /* cells a column: 1, 2 */
    bool half;      /* two rows a cell row (needs viz_caps_half) */
    viz_ramp ramp;
} viz_grid;
void viz_grid_draw(viz_pane p, const viz_grid *g);

#endif
