/* layout.h -- sizes in, rectangles out. Pure: no curses, no state, so a test can try every size.
 *
 *   row 0        status line                     fixed columns
 *   row 1        tabs
 *   2 .. H-3     the view's panes                 never overlap, never leave the screen
 *   H-2          prompt, or the newest message
 *   H-1          keys of this view
 *
 * Size classes: large >= 200x50, wide >= 110x30, normal >= 80x24, small >= 60x16 (one pane at a time), tiny: one line that says so;
 * everything goes on working there. */
#ifndef TUI_LAYOUT_H
#define TUI_LAYOUT_H

#include "viz/canvas.h"

typedef enum tui_size { TUI_TINY, TUI_SMALL, TUI_NORMAL, TUI_WIDE, TUI_LARGE } tui_size;

typedef struct tui_frame {
    tui_size size;
    viz_rect status, tabs, body, prompt, footer; /* empty where there is no room (tiny) */
} tui_frame;
tui_frame tui_layout_frame(int rows, int cols);
tui_size tui_layout_size(int rows, int cols);

/* The panes of a view, absolute, in the order of its enum; a pane that has no room is empty (h = w = 0). Views take theirs from here
 * rather than computing in draw(), so that the property test sees them all. */
#define TUI_LAYOUT_MAP(X)                                                                                    \
    X(RUN) X(HEADS) X(MAP) X(PLAN) X(COMPARE) X(MEMORY) X(LOG) X(SEARCH)
typedef enum tui_layout {
#define X(name) TUI_LAYOUT_##name,
    TUI_LAYOUT_MAP(X)
#undef X
        TUI_LAYOUT_COUNT
} tui_layout;

enum { TUI_PANES_MAX = 8 };
enum { TUI_RUN_PROMPT, TUI_RUN_OUT, TUI_RUN_OUT_B, TUI_RUN_TOKEN, TUI_RUN_PROGRESS, TUI_RUN_N };
enum { TUI_HEADS_GRID, TUI_HEADS_INSPECT, TUI_HEADS_COVER, TUI_HEADS_JOBS, TUI_HEADS_N };
enum { TUI_MAP_MAP, TUI_MAP_CURSOR, TUI_MAP_ROW, TUI_MAP_N };
enum { TUI_PLAN_TABLE, TUI_PLAN_UNDO, TUI_PLAN_CLASSES, TUI_PLAN_BUDGET, TUI_PLAN_N };
enum { TUI_COMPARE_A, TUI_COMPARE_B, TUI_COMPARE_KL, TUI_COMPARE_COST, TUI_COMPARE_BLAME, TUI_COMPARE_N };
enum { TUI_MEMORY_TOTAL, TUI_MEMORY_LAYERS, TUI_MEMORY_PAGES, TUI_MEMORY_N };
enum { TUI_SEARCH_STEPS, TUI_SEARCH_PLANS, TUI_SEARCH_FRONT, TUI_SEARCH_CURVE, TUI_SEARCH_N };
enum { TUI_LOG_LIST, TUI_LOG_JOBS, TUI_LOG_N };

/* focus: the pane that a small screen shows. two: the run view shows A and B side by side. Returns how many panes the view has. */
typedef struct tui_layout_ask {
    tui_layout view;
    tui_size size;
    viz_rect body;
    int focus;
    bool two;
} tui_layout_ask;
int tui_layout_panes(const tui_layout_ask *ask, viz_rect out[TUI_PANES_MAX]);

/* cuts h rows / w columns off one side; the rest stays in *r. Never more than there is; a gap of `gap` cells is lost between them */
viz_rect tui_cut_top(viz_rect *r, int h, int gap);
viz_rect tui_cut_bottom(viz_rect *r, int h, int gap);
viz_rect tui_cut_left(viz_rect *r, int w, int gap);
viz_rect tui_cut_right(viz_rect *r, int w, int gap);

#endif
