/* flow.h -- tokens of a run as wrapped lines of shown text, so that every cell knows its token. */
#ifndef TUI_FLOW_H
#define TUI_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/buf.h"
#include "tui/app.h"

/* Zero-initialise; tui_flow_free. Text is clean. */
typedef struct tui_flow {
    moa_buf text;
    uint32_t *ends; /* (n_tok) byte end of each token's shown text; owned */
    int32_t n_tok;
    struct {
        uint32_t at, n; /* bytes */
    } *lines; /* owned */
    int32_t n_line;
} tui_flow;

/* Tokens [from, from + n) of positions (prompt or output); control tokens are shown as their names when `control`. A character cut
 * between tokens belongs to the token that completes it. */
bool tui_flow_tokens(tui_flow *f, const tui_run *run, int32_t from, int32_t n, bool control, bool ascii);
bool tui_flow_text(tui_flow *f, const char *clean, size_t n); /* already clean text, as one token */
/* Lines of at most w cells, broken at blanks where there are any. */
bool tui_flow_wrap(tui_flow *f, int w);
int32_t tui_flow_token_at(const tui_flow *f, uint32_t byte);      /* index in 0..n_tok */
int32_t tui_flow_line_of(const tui_flow *f, int32_t token);       /* line where it begins */
int32_t tui_flow_token_under(const tui_flow *f, int32_t line, int x); /* the token at a cell of a line, -1: none */
/* Draws lines first.. into p; style of a token by the callback. */
typedef viz_style (*tui_flow_style)(void *user, int32_t token);
void tui_flow_draw(const tui_flow *f, viz_pane p, int32_t first, tui_flow_style style, void *user);
void tui_flow_free(tui_flow *f);

#endif
