/* ramp.h -- from a number in 0..1 to something that looks like it, on any terminal.
 *
 *   24 bits   64 levels of cividis (made for colour-blind readers), magma, or grey: lightness rises at every step
 *   256       hand-picked: nearest colours of cividis rise in lightness only 11 times, a chosen list always does
 *   8, mono, ASCII    ` .:-=+*#%@`, one value a cell
 *
 * The diverging ramp is for differences: 0.5 is "no difference", blue below, red above; without colours the glyphs
 * carry the sign. Colour data: cividis (Nunez, Anderton, Renslow 2018) and magma (matplotlib, CC0). */
#ifndef VIZ_RAMP_H
#define VIZ_RAMP_H

#include <stdbool.h>
#include <stdint.h>

#include "viz/canvas.h"

#define VIZ_RAMP_MAP(X) X(CIVIDIS, "cividis") X(MAGMA, "magma") X(GREY, "grey") X(DIVERGE, "diverge")
typedef enum viz_ramp {
#define X(name, text) VIZ_RAMP_##name,
    VIZ_RAMP_MAP(X)
#undef X
        VIZ_RAMP_COUNT
} viz_ramp;

const char *viz_ramp_name(viz_ramp ramp);
bool viz_ramp_find(const char *name, viz_ramp *out);

/* level 0..63 of t (clamped; NAN: 0) */
int viz_ramp_level(double t);
/* 0xRRGGBB of a level; dimmed: mixed towards the background so that outside the window is dark but never gone */
uint32_t viz_ramp_rgb(viz_ramp ramp, int level, bool dimmed);
/* 256-colour index of a level; dimmed: the lower half of the ramp */
int viz_ramp_256(viz_ramp ramp, int level, bool dimmed);
/* how many different 256-colour entries the ramp has */
int viz_ramp_256_count(viz_ramp ramp);
/* one of " .:-=+*#%@"; DIVERGE: "O0o-, .:+*#", from a large decrease over none to a large increase */
char viz_ramp_glyph(viz_ramp ramp, double t);
/* relative luminance 0..1 of 0xRRGGBB, for tests and for choosing text on a ground */
double viz_luminance(uint32_t rgb);

/* the colour of t on this ramp */
static inline viz_color viz_ramp_color(viz_ramp ramp, double t, bool dimmed) { return viz_heat_color((int)ramp, viz_ramp_level(t), dimmed); }

#endif
