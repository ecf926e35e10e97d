/* png.h -- a heat map as a picture file: a square of pixels a value, the ramp's own colours whatever the terminal has, the window's edge as a
 * line, and words that say what it shows (tEXt chunks; `file`, `identify -verbose`, exiftool read them). */
#ifndef VIZ_PNG_H
#define VIZ_PNG_H

#include "core/base/buf.h"
#include "core/base/status.h"
#include "viz/heat.h"

enum { VIZ_PNG_SIDE_MAX = 16384 }; /* pixels */

typedef struct viz_png_text {
    const char *key, *text; /* key: 1 to 79 bytes of Latin-1; text: UTF-8, what is not Latin-1 becomes ? */
} viz_png_text;

/* h->t, edge, edge2, keep_cols and ramp are drawn, px pixels a value each way. Appends the file to out. */
moa_status viz_heat_png(const viz_heat *h, int px, const viz_png_text *texts, int n_text, moa_buf *out, moa_err *err);

#endif
