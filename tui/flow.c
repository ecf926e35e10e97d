#include "tui/flow.h"

#include <stdlib.h>
#include <string.h>

bool tui_flow_tokens(tui_flow *f, const tui_run *run, int32_t from, int32_t n, bool control, bool ascii) {
    moa_text_stream s = {.flags = ascii ? MOA_TEXT_ASCII : 0};
    f->ends = malloc((size_t)(n > 0 ? n : 1) * sizeof *f->ends);
    if (!f->ends) return false;
    for (int32_t i = 0; i < n; i++) {
        const int32_t pos = from + i, out = pos - run->n_prompt;
        size_t bytes;
        const char *piece = tui_run_piece(run, pos, &bytes);
        const bool hidden = out >= 0 && run->tokens[out].control && !control;
        if (!hidden) moa_text_push(&s, piece, bytes, &f->text);
        f->ends[i] = (uint32_t)f->text.size;
    }
    moa_text_flush(&s, &f->text);
    if (n > 0) f->ends[n - 1] = (uint32_t)f->text.size;
    f->n_tok = n;
    return moa_buf_ok(&f->text);
}

bool tui_flow_text(tui_flow *f, const char *clean, size_t n) {
    f->ends = malloc(sizeof *f->ends);
    if (!f->ends) return false;
    moa_buf_append(&f->text, clean, n);
    f->ends[0] = (uint32_t)f->text.size;
    f->n_tok = 1;
    return moa_buf_ok(&f->text);
}

static bool add_line(tui_flow *f, int32_t *cap, uint32_t at, uint32_t n) {
    if (f->n_line == *cap) {
        const int32_t more = *cap ? 2 * *cap : 64;
        void *grown = realloc(f->lines, (size_t)more * sizeof *f->lines);
        if (!grown) return false;
        f->lines = grown;
        *cap = more;
    }
    f->lines[f->n_line].at = at;
    f->lines[f->n_line++].n = n;
    return true;
}

bool tui_flow_wrap(tui_flow *f, int w) {
    const char *s = f->text.data ? f->text.data : "";
    const uint32_t n = (uint32_t)f->text.size;
    int32_t cap = 0;
    if (w < 1) w = 1;
    for (uint32_t at = 0; at < n;) {
        const char *stop = memchr(s + at, '\n', n - at);
        const uint32_t end = stop ? (uint32_t)(stop - s) : n;
        if (at == end && !add_line(f, &cap, at, 0)) return false;
        while (at < end) {
            uint32_t k = (uint32_t)moa_text_prefix(s + at, end - at, w, NULL);
            if (k == 0) { /* a character wider than the pane: one byte sequence at a time */
                int32_t cp;
                k = (uint32_t)moa_utf8_next(s + at, end - at, &cp, NULL);
            }
            uint32_t take = k;
            if (at + k < end) { /* back to the last blank, if the line has one in its second half */
                uint32_t b = k;
                while (b > k / 2 && s[at + b - 1] != ' ' && s[at + b] != ' ') b--;
                if (b > k / 2) take = b;
            }
            if (!add_line(f, &cap, at, take)) return false;
            at += take;
            if (at < end && s[at] == ' ' && at + 1 < end && take == k) at++; /* the blank at the break is not shown */
        }
        at = end + (stop != NULL);
    }
    return true;
}

int32_t tui_flow_token_at(const tui_flow *f, uint32_t byte) {
    int32_t lo = 0, hi = f->n_tok; /* first token that ends after byte */
    while (lo < hi) {
        const int32_t mid = (lo + hi) / 2;
        if (f->ends[mid] > byte) hi = mid;
        else lo = mid + 1;
    }
    return lo;
}

int32_t tui_flow_line_of(const tui_flow *f, int32_t token) {
    if (token < 0 || f->n_tok == 0) return 0;
    if (token >= f->n_tok) token = f->n_tok - 1;
    const uint32_t at = token > 0 ? f->ends[token - 1] : 0;
    int32_t line = 0;
    while (line + 1 < f->n_line && f->lines[line + 1].at <= at) line++;
    return line;
}

void tui_flow_draw(const tui_flow *f, viz_pane p, int32_t first, tui_flow_style style, void *user) {
    for (int y = 0; y < p.h && first + y < f->n_line; y++) {
        if (first + y < 0) continue;
        uint32_t at = f->lines[first + y].at;
        const uint32_t end = at + f->lines[first + y].n;
        for (int x = 0; at < end;) {
            const int32_t token = tui_flow_token_at(f, at);
            uint32_t stop = token < f->n_tok ? f->ends[token] : end;
            if (stop > end || stop <= at) stop = end;
            const viz_style s = style(user, token);
            if (f->text.data[at] == ' ' && stop - at > 1) { /* a word's blank keeps the ground: calmer, and lines end clean */
                x += viz_bytes(p, y, x, (viz_style){s.fg, VIZ_DEFAULT, 0}, " ", 1);
                at++;
            }
            x += viz_bytes(p, y, x, s, f->text.data + at, stop - at);
            at = stop;
        }
    }
}

int32_t tui_flow_token_under(const tui_flow *f, int32_t line, int x) {
    if (line < 0 || line >= f->n_line) return -1;
    uint32_t at = f->lines[line].at;
    const uint32_t end = at + f->lines[line].n;
    while (at < end) {
        const int32_t token = tui_flow_token_at(f, at);
        uint32_t stop = token < f->n_tok ? f->ends[token] : end;
        if (stop > end || stop <= at) stop = end;
        x -= moa_text_cells(f->text.data + at, stop - at);
        if (x < 0) return token;
        at = stop;
    }
    return -1;
}

void tui_flow_free(tui_flow *f) {
    moa_buf_free(&f->text);
    free(f->ends);
    free(f->lines);
    memset(f, 0, sizeof *f);
}
