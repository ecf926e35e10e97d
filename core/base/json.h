/* json.h -- a strict look at JSON before any tree is built.
 *
 * cJSON accepts duplicate keys, invalid UTF-8, raw control bytes, trailing text, numbers that overflow, "\u0000"; readers that
 * disagree about such files can be played against each other. Everything untrusted passes this check first. It builds nothing: it
 * walks the text once, with a depth limit, and reports where a document stops being JSON. */
#ifndef MOA_BASE_JSON_H
#define MOA_BASE_JSON_H

#include <stddef.h>

#include "core/base/buf.h"
#include "core/base/status.h"

enum { MOA_JSON_DEPTH_MAX = 64, MOA_JSON_MEMBER_MAX = 256 };

/* A member of the top-level object, as bytes of the document (borrowed): key without quotes, still escaped; value as it stands. */
typedef struct moa_json_member {
    const char *key, *value;
    size_t key_bytes, value_bytes;
} moa_json_member;

/* Checks all of text[0..n): one JSON value, strict RFC 8259, valid UTF-8, no NUL, finite numbers, no duplicate key in any object.
 * E_INVALID names the byte. */
moa_status moa_json_check(const char *text, size_t n, moa_err *err);

/* The same, and lists the members of the top-level object (which it must be, with at most max members). */
moa_status moa_json_members(const char *text, size_t n, moa_json_member *members, size_t max, size_t *n_members, moa_err *err);

/* --- writing; strings: moa_text_json() of text.h ---------------------------------------------------------------------------------- */

void moa_json_number(moa_buf *out, double x); /* the shortest decimal that reads back as exactly x; null if not finite */

#endif
