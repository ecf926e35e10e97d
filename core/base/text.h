/* text.h -- text from models, files, prompts and wires on its way to people and to other programs.
 *
 *   bytes --strict UTF-8--> code points --what may be shown--> clean text --cells--> the screen
 *
 * Strict: overlong forms, surrogates, values above U+10FFFF and cut sequences become U+FFFD, one for each maximal part
 * that could have begun a character (what Python's errors="replace" and the Unicode standard, 3.9, do).
 *
 * Shown: nothing that could command a terminal or disguise text gets through, and nothing is dropped silently.
 *
 *   C0 but \n and \t, DEL          U+2400 pictures; ^X with MOA_TEXT_ASCII
 *   C1                             U+FFFD
 *   bidi controls, zero-width, tags, BOM, fillers, line separators, unassigned   <U+202E>
 *   ZWJ between two emoji          kept, at most 8 a cluster; elsewhere <U+200D>
 *   variation selectors            one after a character; further ones <U+FE0F>
 *   marks that take no cell        8 a cell, then <+n>; without a character to sit on they get U+25CC
 *
 * The state of a moa_text_stream lasts over pushes: the output does not depend on where a stream was cut.
 * A moa_clean is such text as a type: only these functions make one, so a screen that takes moa_clean cannot be given
 * raw bytes. Cell widths come from utf8proc's one table, whatever the locale. */
#ifndef MOA_BASE_TEXT_H
#define MOA_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/buf.h"

/* --- UTF-8 ------------------------------------------------------------------------------------------------------- */

/* Reads one code point of s (n >= 1 bytes) and returns how many bytes it took, 1 to 4. Invalid: *cp = 0xFFFD, *valid
 * false, and the bytes of the maximal part. valid may be NULL. */
size_t moa_utf8_next(const char *s, size_t n, int32_t *cp, bool *valid);
/* Bytes at the end of s that begin a character and want more bytes: 0 to 3. */
size_t moa_utf8_tail(const char *s, size_t n);
/* Writes cp (a Unicode scalar value; anything else is written as U+FFFD) and returns the bytes written, 1 to 4. */
size_t moa_utf8_put(int32_t cp, char out[4]);
bool moa_utf8_valid(const char *s, size_t n);
/* Appends s with its invalid parts replaced by U+FFFD. */
void moa_utf8_replace(const char *s, size_t n, moa_buf *out);

/* --- what may be shown --------------------------------------------------------------------------------------------- */

enum {
    MOA_TEXT_ASCII = 1, /* the terminal shows ASCII only: ^X, and <U+00E9> for everything else */
    MOA_TEXT_LINE = 2,  /* one line: \n and \t become pictures too (names, titles, table cells) */
};

/* Would this code point command, disguise or reorder the text around it? (then it is never shown raw) */
bool moa_text_unsafe(int32_t cp);

/* Zero-initialise, set flags. Holds no memory. */
typedef struct moa_text_stream {
    int flags;
    /* private */
    unsigned char n_held; /* bytes of a character not yet whole */
    char held[4];
    bool has_base, pictograph, vs_seen, zwj_held;
    unsigned char n_mark, n_zwj;
    uint64_t n_over; /* marks over the cap, not yet told */
    moa_buf *marks;  /* moa_clean's list of replaced parts, or NULL */
} moa_text_stream;

/* Appends to out what of the stream is certain so far; valid UTF-8 after every call. */
void moa_text_push(moa_text_stream *s, const char *bytes, size_t n, moa_buf *out);
/* The stream ends (or the writer of its text changes): what was held comes out, the state starts anew. */
void moa_text_flush(moa_text_stream *s, moa_buf *out);
/* both at once */
void moa_text_clean(const char *bytes, size_t n, int flags, moa_buf *out);

/* Clean text as a type. Opaque: nobody but text.c can put bytes into it. */
typedef struct moa_clean moa_clean;

/* A part that stands for something not shown raw ("<U+202E>", a picture): screens draw it dim. Offsets into the text. */
typedef struct moa_clean_mark {
    size_t at, bytes;
} moa_clean_mark;

moa_clean *moa_clean_open(int flags); /* empty, to be pushed to; NULL without memory */
moa_clean *moa_clean_of(const char *bytes, size_t n, int flags); /* pushed and ended; NULL without memory */
void moa_clean_close(moa_clean **c);
bool moa_clean_push(moa_clean *c, const char *bytes, size_t n); /* false without memory: that push is lost */
bool moa_clean_end(moa_clean *c);                               /* flushes; more may be pushed after it */
void moa_clean_clear(moa_clean *c);
/* NUL-terminated, never NULL, borrowed until the next push/end/clear/close; also of NULL: "" */
const char *moa_clean_text(const moa_clean *c);
size_t moa_clean_bytes(const moa_clean *c);
const moa_clean_mark *moa_clean_marks(const moa_clean *c, size_t *n); /* in order of at */

/* --- cells ---------------------------------------------------------------------------------------------------------- */

int moa_cp_cells(int32_t cp);                /* 0, 1 or 2; control characters 0 */
int moa_text_cells(const char *s, size_t n); /* cells of clean text without \n and \t (they count 0) */
/* Bytes of the longest beginning of s that fits `cells` cells; a character keeps its marks. *used: its cells (may be NULL). */
size_t moa_text_prefix(const char *s, size_t n, int cells, int *used);
/* Appends s, or when it is wider than `cells` its beginning and `~`, so that at most `cells` cells are taken.
 * Returns the cells taken. */
int moa_text_cut(const char *s, size_t n, int cells, moa_buf *out);

/* --- for other programs ------------------------------------------------------------------------------------------------ */

/* "..." with the quotes. Lossless for valid UTF-8: what is unsafe to show is \u-escaped; invalid parts become U+FFFD. */
void moa_text_json(const char *s, size_t n, moa_buf *out);
/* Text of an XML element or attribute value: cleaned as above (XML has no way to carry control characters), then escaped. */
void moa_text_xml(const char *s, size_t n, moa_buf *out);
/* A field of a tab-separated file: \\ \n \t \r as backslash escapes, the rest cleaned. */
void moa_text_tsv(const char *s, size_t n, moa_buf *out);
/* A name as a shell word, for messages a user may copy: 'it'\''s', or $'..' when it holds unsafe or invalid bytes. */
void moa_text_shell(const char *s, size_t n, moa_buf *out);

#endif
