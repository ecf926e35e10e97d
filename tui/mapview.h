/* mapview.h -- what the map screen shows, apart from how: which part of which head is asked for, where it goes, exact figures.
 *
 *   view state (level, corner) + cursor + pane  ->  geometry, window  ->  tui_map_request   a pooled map
 *                                                                     ->  tui_row_request   the cursor's query, key by key
 *
 * The row is always asked for without a mask: what a span keeps and cuts, and what the run itself gave (A / kept mass where it saw, 0
 * elsewhere), both follow from it. So the map, the list and every figure agree, and moving an edge needs no answer. */
#ifndef TUI_MAPVIEW_H
#define TUI_MAPVIEW_H

#include "tui/app.h"
#include "viz/attn.h"
#include "viz/axis.h"

/* view state */
enum {
    V_LEVEL,      /* of zoom */
    V_Q0, V_K0,   /* first query and key shown */
    V_MAX,        /* pooled as maximum, not mass */
    V_SCALE,      /* viz_scale */
    V_RANGE,      /* TUI_RANGE_* */
    V_SINK,       /* TUI_SINK_* */
    V_OVERLAY_OFF,
    V_NO_MASK,    /* the map without the run's mask */
    V_SIDE,       /* 0 row, 1 distances */
    V_ROW_AT,     /* selected line of the row list */
    V_FOLLOW_OFF, /* the cursor does not go with the newest token */
    V_INFLUENCE,  /* the head's influence in place of its attention */
    V_SIGNED,     /* of its influence: signed, not absolute */
    V_TEXT,       /* the text tinted by the query's row in place of the map: cells of a line + 1; 0: the map */
};
enum { TUI_RANGE_AUTO, TUI_RANGE_OWN, TUI_RANGE_FIXED, TUI_RANGE_N };
enum { TUI_SINK_SPLIT, TUI_SINK_SHOW, TUI_SINK_RENORM, TUI_SINK_HIDE, TUI_SINK_N };
enum { TUI_MAP_VALUE_CELLS = 6 }; /* of a token when figures are shown in the map */

const char *tui_map_sink_name(int mode);

/* where the parts of the map pane go; absolute */
typedef struct tui_map_geo {
    viz_rect in;      /* inside the frame, if there is one */
    bool framed;
    viz_rect plot;    /* the map's cells, without axes and gutter */
    int left, top;    /* cells of the axes */
    int gutter;       /* 0, or 3: sink and bar */
    int n_strip;      /* 1, 2: coverage, entropy */
    bool whose;       /* a line that says whose attention it is */
    int half;         /* map rows a cell row: 2 with half blocks */
} tui_map_geo;
/* tokens: single tokens with their text on both axes */
tui_map_geo tui_map_geometry(viz_rect pane, viz_caps caps, bool tokens, bool gutter, int label_cells);

/* what is to be seen now */
typedef struct tui_map_window {
    tui_map_geo geo;
    viz_zoom q, k;
    int level, levels, last; /* last: highest level */
    int32_t n_q, n_k;        /* tokens shown */
    bool tokens;             /* token texts on the axes */
} tui_map_window;

/* false: there is no run to look at */
bool tui_map_window_of(tui_app *app, tui_view_state *v, viz_rect pane, tui_map_window *out);
/* moves the corner so that the cursor is inside */
void tui_map_scroll(tui_app *app, tui_view_state *v, const tui_map_window *w);
/* asks the engine for what w shows, and for the cursor's row */
void tui_map_ask_for(tui_app *app, const tui_view_state *v, const tui_map_window *w);
void tui_map_ask_row(tui_app *app);

int32_t tui_map_n(const tui_app *app);  /* tokens the newest run has seen, as far as known; 0: none */
int32_t tui_map_sink_tok(const tui_view_state *v, int32_t n); /* keys that are not on the key axis: 64 or 0 */
int32_t tui_map_plan_span(const tui_app *app, int32_t layer, int32_t head);         /* of the plan now, at N; 0: no plan */
int32_t tui_map_run_span(const tui_app *app, const tui_run *r, int32_t layer, int32_t head); /* the run's own; MOA_N_MAX: dense */

/* the axes of the map that is there */
void tui_map_axes(const tui_map *m, const tui_map_geo *g, viz_axis *q, viz_axis *k);
/* For each row of q (cells) the column of the first key its first query sees behind the sink: cells left of it are cut whole. 0: nothing on
 * the axis is cut; k->cells: everything is. */
void tui_map_edges(int32_t span, const viz_axis *q, const viz_axis *k, float *edge);

/* the cursor's row, if it is there: attention to keys 0..q without a mask; NULL else */
const float *tui_map_row(const tui_app *app, int32_t *n);
typedef struct tui_row_figures {
    double a;        /* of the cursor's key: without a mask */
    double a_run;    /* as the run's mask made it; NAN: unknown */
    int32_t rank;    /* 1: the largest (without a mask); 0: unknown */
    double cut;      /* mass that the plan's span cuts */
    double run_cut;  /* that the run's span cut */
    double sink;
} tui_row_figures;
bool tui_map_row_figures(const tui_app *app, tui_row_figures *out);
/* keys of the largest values, falling; returns how many (<= max) */
int32_t tui_map_top(const float *row, int32_t n, int32_t *keys, int32_t max);

#endif
