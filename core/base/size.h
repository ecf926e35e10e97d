/* size.h -- the one place where sizes that come from files, wires or users are added and multiplied.
 *
 * Loader bugs of this field are mostly size arithmetic done again at each site, and several fixes were bypassed
 * because another site did its own. So nobody else does: every function returns false instead of wrapping. */
#ifndef MOA_BASE_SIZE_H
#define MOA_BASE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool moa_size_add(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }
static inline bool moa_size_mul(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }

/* value rounded up to a multiple of align (a power of two) */
static inline bool moa_size_pad(size_t value, size_t align, size_t *out) {
    size_t sum;
    if (align == 0 || (align & (align - 1)) != 0) return false;
    if (!moa_size_add(value, align - 1, &sum)) return false;
    *out = sum & ~(align - 1);
    return true;
}

static inline bool moa_size_from_u64(uint64_t value, size_t *out) {
    if (value > SIZE_MAX) return false;
    *out = (size_t)value;
    return true;
}

/* does [offset, offset + bytes) lie inside total? */
static inline bool moa_size_inside(size_t offset, size_t bytes, size_t total) {
    return offset <= total && bytes <= total - offset;
}

#endif
