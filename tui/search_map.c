/* search_map.c -- a head's influence as a map in place of its attention: the same picture of queries and keys, another question.
 *
 *   attention   how much a query looks at a key          one screen cell: what the zoom says
 *   influence   how much the loss changes without it     one block of 64 x 64 tokens, from the profile
 *
 * Influence spans many powers of ten: shades are its logarithm over four of them, below the largest block. Signed: the middle of the
 * scale is nothing, above it the loss would rise, below it would fall. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tui/search.h"
#include "viz/heat.h"

enum { DECADES = 4 };

typedef struct part {
    int first, end; /* blocks of a cell */
} part;

static part part_of(int cell, int cells, int blocks) {
    const int first = (int)((int64_t)cell * blocks / cells), end = (int)(((int64_t)cell + 1) * blocks / cells);
    return (part){first, end > first ? end : first + 1};
}

/* sum over the blocks of a cell that lie on or below the diagonal; NAN: none does */
static double cell_of(const float *map, int nb, part q, part k) {
    double sum = 0;
    bool any = false;
    for (int i = q.first; i < q.end; i++)
        for (int j = k.first; j < k.end && j <= i; j++) sum += (double)map[(size_t)i * (size_t)nb + (size_t)j], any = true;
    return any ? sum : (double)NAN;
}

static float shade(double v, double most, bool is_signed) {
    if (isnan(v)) return NAN;
    double t = v != 0 && most > 0 ? 1 + log10(fabs(v) / most) / DECADES : 0;
    if (t < 0) t = 0;
    return (float)(is_signed ? 0.5 + 0.5 * (v < 0 ? -t : t) : t);
}

typedef struct picture {
    const float *map; /* (nb, nb) of the head */
    int nb, rows, cols;
    bool is_signed;
    float *t, *edge; /* (rows, cols), (rows), owned */
    double most;     /* largest cell, absolute */
} picture;

static bool picture_make(picture *p, int32_t span) {
    p->t = malloc((size_t)p->rows * (size_t)p->cols * sizeof *p->t);
    p->edge = calloc((size_t)p->rows, sizeof *p->edge);
    if (!p->t || !p->edge) return false;
    for (int pass = 0; pass < 2; pass++)
        for (int y = 0; y < p->rows; y++)
            for (int x = 0; x < p->cols; x++) {
                const double v = cell_of(p->map, p->nb, part_of(y, p->rows, p->nb), part_of(x, p->cols, p->nb));
                if (pass == 0 && !isnan(v)) p->most = fmax(p->most, fabs(v));
                if (pass == 1) p->t[(size_t)y * (size_t)p->cols + (size_t)x] = shade(v, p->most, p->is_signed);
            }
    const int window = moa_window(span) / MOA_PAGE_TOK;
    for (int y = 0; y < p->rows; y++) { /* first block inside the window, the sink's block apart */
        const int first = part_of(y, p->rows, p->nb).first - window + 1;
        p->edge[y] = first > 1 ? (float)(((int64_t)first * p->cols + p->nb - 1) / p->nb) : 0;
    }
    return true;
}

static void axes(viz_pane in, const picture *p, int left, int h, int32_t n_tok) {
    char t[16];
    viz_text(in, 0, 0, viz_fg(VIZ_DIM), in.c->caps.utf8 ? "q↓ k→" : "q");
    for (int i = 0, end = -2; i < 8; i++) {
        const int32_t tok = (int32_t)((int64_t)n_tok * i / 8 / MOA_PAGE_TOK * MOA_PAGE_TOK);
        const int x = (int)((int64_t)tok * p->cols / ((int64_t)p->nb * MOA_PAGE_TOK)), y = (int)((int64_t)tok * h / ((int64_t)p->nb * MOA_PAGE_TOK));
        (void)snprintf(t, sizeof t, "%d", tok);
        if (x > end + 1 && x + (int)strlen(t) <= p->cols) end = x + viz_text(in, 0, left + x, viz_fg(VIZ_DIM), t);
        if (y < h && (h >= 16 || i % 2 == 0)) viz_text_right(in, 1 + y, 0, left - 1, viz_fg(VIZ_DIM), t);
    }
}

void tui_influence_draw(tui_app *app, viz_canvas *c, viz_rect rect, bool focus, bool is_signed) {
    char title[96], note[96], lo[24], hi[24], a[24];
    const int32_t layer = app->cursor.layer, head = app->cursor.head;
    const int at = tui_influence_for(app, tui_plan_n(app));
    const tui_influence *f = tui_influence_at(app, at);
    const float *map = f ? is_signed ? f->sum : f->abs : NULL;
    enum { LEFT = 6 };
    (void)snprintf(title, sizeof title, "L%02d H%02d  INFLUENCE, %s", layer, head, is_signed ? "signed" : "absolute");
    if (f) (void)snprintf(note, sizeof note, "@%s  1 block = 64x64 tok  i: attention", viz_count_text(a, f->n_tok));
    viz_pane in = viz_box(viz_pane_of(c, rect), title, f && rect.w > 76 ? note : NULL, focus);
    if (!map || layer >= f->n_layer || head >= f->n_head) {
        viz_text_cut(in, 0, 1, in.w - 2, viz_fg(VIZ_DIM), f ? "This influence has curves alone, no maps." : "No influence yet: screen 8 measures it (steps 1 and 2), or :influence open FILE.npz. i: attention");
        return;
    }
    const int half = viz_caps_half(c->caps) ? 2 : 1, h = in.h - 2;
    picture p = {.map = map + ((size_t)layer * (size_t)f->n_head + (size_t)head) * (size_t)f->nb * (size_t)f->nb, .nb = f->nb, .rows = h * half, .cols = in.w - LEFT - 1, .is_signed = is_signed};
    if (h < 2 || p.cols < 8) return;
    const int32_t span = app->plan.now ? moa_span(*moa_plan_at(app->plan.now, layer, head), f->n_tok) : f->n_tok;
    if (picture_make(&p, span)) {
        const viz_heat heat = {.rows = p.rows, .cols = p.cols, .t = p.t, .edge = span < f->n_tok ? p.edge : NULL, .ramp = is_signed ? VIZ_RAMP_DIVERGE : app->ramp,
                               .cursor_row = -1, .cursor_col = -1, .keep_cols = p.cols / f->nb > 0 ? (p.cols + f->nb - 1) / f->nb : 1};
        axes(in, &p, LEFT, h, f->n_tok);
        viz_heat_draw(viz_pane_sub(in, 1, LEFT, h, p.cols), &heat);
        (void)snprintf(hi, sizeof hi, "%+.1e", p.most);
        (void)snprintf(lo, sizeof lo, "%+.1e", is_signed ? -p.most : p.most * pow(10, -DECADES));
        int x = viz_legend(in, in.h - 1, 0, is_signed ? VIZ_RAMP_DIVERGE : app->ramp, lo, hi, "nats") + 2;
        const double cut = tui_influence_loss(app, at, layer, head, span);
        x += viz_printf(in, in.h - 1, x, viz_fg(VIZ_EDGE), "%s", c->caps.utf8 ? "▏" : "|");
        (void)viz_printf(in, in.h - 1, x, viz_fg(VIZ_DIM), "span %s: loss %s", viz_count_text(a, span), tui_loss_text(lo, cut));
    }
    free(p.t);
    free(p.edge);
}
