/* Reading and judging a GGUF header. See gguf.h for the layout.
 *
 * The header's length is not known before it has been read: `want` makes sure that a range of it is in
 * memory, growing the buffer by doubling but never beyond what the file holds. The buffer may move while it
 * grows, so the tables hold positions, not pointers; strings are made from them when asked for. */
#include "core/model/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/size.h"
#include "core/model/dtype.h"

enum {
    FIXED_BYTES = 24,      /* magic, version, two counts */
    MIN_KV_BYTES = 14,     /* a key of one byte and a value of one */
    MIN_TENSOR_BYTES = 33, /* a name of one byte and one dimension */
    FIRST_READ = 64 << 10,
    SHOWN = 80, /* bytes of a name in a message */
};

typedef struct kv_row {
    uint32_t key_at, value_at, n; /* n: elements of an array, else 1; all fit: see the limits */
    uint16_t key_bytes;
    uint8_t type, elem_type;
} kv_row;

typedef struct tensor_row {
    uint32_t name_at;
    uint8_t name_bytes, n_dims;
    uint16_t type;
    uint64_t dims[MOA_GGUF_MAX_DIMS];
    uint64_t offset; /* from the start of the data */
} tensor_row;

struct moa_gguf {
    int fd; /* -1: in memory */
    const uint8_t *memory;
    size_t file_bytes;
    uint8_t *owned; /* the header as read so far, for files */
    const uint8_t *head;
    size_t have, header_bytes, align, data_at;
    uint32_t version;
    kv_row *kv;
    tensor_row *tensor;
    size_t n_kv, n_tensors;
    uint32_t *kv_order, *tensor_order; /* indices sorted by name */
};

/* where we are, for reading and for messages: "metadata entry 12" */
typedef struct cursor {
    moa_gguf *g;
    size_t at;
    const char *kind;
    size_t index;
} cursor;

static uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t load_u64(const uint8_t *p) {
    return load_u32(p) | (uint64_t)load_u32(p + 4) << 32;
}

static const char *type_name(uint32_t type) {
    switch (type) {
#define X(name, id, bytes)                                                                                   \
    case id: return #name;
        MOA_GGUF_TYPE_MAP(X)
#undef X
    default: return "?";
    }
}

/* bytes of one value; for strings the least it can take; 0: no such type */
static size_t type_bytes(uint32_t type) {
    switch (type) {
#define X(name, id, bytes)                                                                                   \
    case id: return bytes ? bytes : 8;
        MOA_GGUF_TYPE_MAP(X)
#undef X
    default: return 0;
    }
}

/* --- reading
 * ------------------------------------------------------------------------------------------------------- */

static moa_status read_at(const moa_gguf *g, size_t at, size_t n, uint8_t *dst, moa_err *err) {
    if (g->fd < 0) {
        memcpy(dst, g->memory + at, n);
        return MOA_OK;
    }
    while (n > 0) {
        const ssize_t got = pread(g->fd, dst, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return moa_fail(err, MOA_E_IO, "reading the model file at byte %zu failed: %s", at,
                            strerror(errno));
        if (got == 0)
            return moa_fail(err, MOA_E_IO,
                            "the model file became shorter while it was read: it ends at byte %zu of %zu", at,
                            g->file_bytes);
        dst += got;
        at += (size_t)got;
        n -= (size_t)got;
    }
    return MOA_OK;
}

/* makes the header's first `end` bytes available; end <= file_bytes */
static moa_status grow(moa_gguf *g, size_t end, moa_err *err) {
    size_t size = g->have ? g->have * 2 : FIRST_READ; /* have <= MAX_HEADER: no overflow */
    if (size < end) size = end;
    if (size > g->file_bytes) size = g->file_bytes;
    uint8_t *bigger = realloc(g->owned, size);
    if (!bigger)
        return moa_fail(err, MOA_E_MEMORY, "no memory for %zu bytes of the model file's header", size);
    g->owned = bigger;
    g->head = bigger;
    const moa_status s = read_at(g, g->have, size - g->have, bigger + g->have, err);
    if (s == MOA_OK) g->have = size;
    return s;
}

static moa_status want(cursor *c, size_t n, const char *what, moa_err *err) {
    moa_gguf *g = c->g;
    if (!moa_size_inside(c->at, n, g->file_bytes))
        return moa_fail(err, MOA_E_INVALID, "%s %zu at byte %zu: %s needs %zu bytes, the file has %zu left",
                        c->kind, c->index, c->at, what, n, g->file_bytes - c->at);
    if (!moa_size_inside(c->at, n, MOA_GGUF_MAX_HEADER))
        return moa_fail(err, MOA_E_INVALID,
                        "%s %zu at byte %zu: %s of %zu bytes makes the header longer than %d bytes", c->kind,
                        c->index, c->at, what, n, MOA_GGUF_MAX_HEADER);
    return c->at + n <= g->have ? MOA_OK : grow(g, c->at + n, err);
}

static moa_status take_u32(cursor *c, const char *what, uint32_t *out, moa_err *err) {
    const moa_status s = want(c, 4, what, err);
    if (s != MOA_OK) return s;
    *out = load_u32(c->g->head + c->at);
    c->at += 4;
    return MOA_OK;
}

static moa_status take_u64(cursor *c, const char *what, uint64_t *out, moa_err *err) {
    const moa_status s = want(c, 8, what, err);
    if (s != MOA_OK) return s;
    *out = load_u64(c->g->head + c->at);
    c->at += 8;
    return MOA_OK;
}

/* a length and that many bytes; *at: where the bytes are */
static moa_status take_string(cursor *c, size_t max, const char *what, size_t *at, size_t *bytes,
                              moa_err *err) {
    const size_t start = c->at;
    uint64_t n = 0;
    moa_status s = take_u64(c, what, &n, err);
    if (s != MOA_OK) return s;
    if (n > max)
        return moa_fail(err, MOA_E_INVALID, "%s %zu at byte %zu: %s of %" PRIu64 " bytes, the limit is %zu",
                        c->kind, c->index, start, what, n, max);
    s = want(c, (size_t)n, what, err);
    if (s != MOA_OK) return s;
    *at = c->at;
    *bytes = (size_t)n;
    c->at += (size_t)n;
    return MOA_OK;
}

static int shown(size_t bytes) {
    return bytes > SHOWN ? SHOWN : (int)bytes;
}

static moa_status check_characters(const cursor *c, size_t at, size_t bytes, bool key, moa_err *err) {
    const uint8_t *text = c->g->head + at;
    if (bytes == 0)
        return moa_fail(err, MOA_E_INVALID, "%s %zu at byte %zu: the name is empty", c->kind, c->index, at);
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t b = text[i];
        const bool word = (b >= 'a' && b <= 'z') || (b >= '0' && b <= '9') || (b >= 'A' && b <= 'Z') ||
                          b == '_' || b == '.' || b == '-';
        if (key ? !word : b <= ' ' || b > '~')
            return moa_fail(err, MOA_E_INVALID, "%s %zu at byte %zu: the name holds byte 0x%02x at place %zu",
                            c->kind, c->index, at, b, i);
    }
    return MOA_OK;
}

/* --- the two tables
 * -------------------------------------------------------------------------------------------------- */

/* rows grow with what has been read, not with what the file claims */
static void *row_for(void **rows, size_t i, size_t row_bytes, size_t *capacity, moa_err *err) {
    if (i >= *capacity) {
        const size_t more = *capacity ? *capacity + *capacity / 2 : 64;
        size_t bytes;
        void *bigger = moa_size_mul(more, row_bytes, &bytes) ? realloc(*rows, bytes) : NULL;
        if (!bigger) {
            (void)moa_fail(err, MOA_E_MEMORY, "no memory for %zu table entries of the model file", more);
            return NULL;
        }
        *rows = bigger;
        *capacity = more;
    }
    void *row = (char *)*rows + i * row_bytes;
    memset(row, 0, row_bytes);
    return row;
}

static moa_status take_array(cursor *c, kv_row *row, moa_err *err) {
    uint32_t elem = 0;
    uint64_t n = 0;
    moa_status s = take_u32(c, "the array's element type", &elem, err);
    if (s != MOA_OK) return s;
    const size_t each = type_bytes(elem), at = c->at;
    if (elem == MOA_GGUF_ARRAY)
        return moa_fail(err, MOA_E_INVALID, "metadata key %.*s at byte %zu: arrays of arrays are not allowed",
                        shown(row->key_bytes), c->g->head + row->key_at, at - 4);
    if (each == 0)
        return moa_fail(err, MOA_E_INVALID, "metadata key %.*s at byte %zu: unknown element type %u",
                        shown(row->key_bytes), c->g->head + row->key_at, at - 4, elem);
    s = take_u64(c, "the array's count", &n, err);
    if (s != MOA_OK) return s;
    if (n > MOA_GGUF_MAX_ARRAY || n > (c->g->file_bytes - c->at) / each)
        return moa_fail(err, MOA_E_INVALID,
                        "metadata key %.*s at byte %zu: array of %" PRIu64
                        " %s, the limit is %d and the file has %zu "
                        "bytes left",
                        shown(row->key_bytes), c->g->head + row->key_at, at, n, type_name(elem),
                        MOA_GGUF_MAX_ARRAY, c->g->file_bytes - c->at);
    row->elem_type = (uint8_t)elem;
    row->n = (uint32_t)n;
    row->value_at = (uint32_t)c->at;
    if (elem != MOA_GGUF_STRING) {
        s = want(c, (size_t)n * each, "the array", err); /* n * each <= file_bytes */
        c->at += (size_t)n * each;
        return s;
    }
    for (uint64_t i = 0; i < n; i++) {
        size_t text_at, bytes;
        s = take_string(c, MOA_GGUF_MAX_STRING, "a string of the array", &text_at, &bytes, err);
        if (s != MOA_OK) return s;
    }
    return MOA_OK;
}

static moa_status take_kv(cursor *c, kv_row *row, moa_err *err) {
    moa_status s;
    size_t at = 0, bytes = 0;
    uint32_t type = 0;
    MOA_TRY(take_string(c, MOA_GGUF_MAX_KEY, "the key", &at, &bytes, err));
    MOA_TRY(check_characters(c, at, bytes, true, err));
    row->key_at = (uint32_t)at;
    row->key_bytes = (uint16_t)bytes;
    MOA_TRY(take_u32(c, "the value's type", &type, err));
    const size_t each = type_bytes(type);
    if (each == 0)
        return moa_fail(err, MOA_E_INVALID, "metadata key %.*s at byte %zu: unknown type %u", shown(bytes),
                        c->g->head + at, c->at - 4, type);
    row->type = row->elem_type = (uint8_t)type;
    row->n = 1;
    row->value_at = (uint32_t)c->at;
    if (type == MOA_GGUF_ARRAY) return take_array(c, row, err);
    if (type == MOA_GGUF_STRING) return take_string(c, MOA_GGUF_MAX_STRING, "the value", &at, &bytes, err);
    MOA_TRY(want(c, each, "the value", err));
    if (type == MOA_GGUF_BOOL && c->g->head[c->at] > 1)
        return moa_fail(err, MOA_E_INVALID, "metadata key %.*s at byte %zu: %u is not a truth value",
                        shown(bytes), c->g->head + row->key_at, c->at, c->g->head[c->at]);
    c->at += each;
out:
    return s;
}

static moa_status take_tensor(cursor *c, tensor_row *row, moa_err *err) {
    moa_status s;
    size_t at = 0, bytes = 0;
    uint32_t n_dims = 0, type = 0, block_len, block_bytes;
    MOA_TRY(take_string(c, MOA_GGUF_MAX_NAME, "the name", &at, &bytes, err));
    MOA_TRY(check_characters(c, at, bytes, false, err));
    row->name_at = (uint32_t)at;
    row->name_bytes = (uint8_t)bytes;
    MOA_TRY(take_u32(c, "the number of dimensions", &n_dims, err));
    if (n_dims < 1 || n_dims > MOA_GGUF_MAX_DIMS)
        return moa_fail(err, MOA_E_INVALID, "tensor %.*s at byte %zu: %u dimensions, expected 1 to %d",
                        (int)bytes, c->g->head + at, c->at - 4, n_dims, MOA_GGUF_MAX_DIMS);
    row->n_dims = (uint8_t)n_dims;
    for (uint32_t i = 0; i < MOA_GGUF_MAX_DIMS; i++) {
        row->dims[i] = 1;
        if (i >= n_dims) continue;
        MOA_TRY(take_u64(c, "a dimension", &row->dims[i], err));
        if (row->dims[i] == 0 || row->dims[i] > INT64_MAX)
            return moa_fail(err, MOA_E_INVALID, "tensor %.*s at byte %zu: dimension %u is %" PRIu64,
                            (int)bytes, c->g->head + at, c->at - 8, i, row->dims[i]);
    }
    MOA_TRY(take_u32(c, "the type", &type, err));
    if (!moa_dtype_gguf_block(type, &block_len, &block_bytes))
        return moa_fail(err, MOA_E_UNSUPPORTED, "tensor %.*s at byte %zu: unknown type %u", (int)bytes,
                        c->g->head + at, c->at - 4, type);
    row->type = (uint16_t)type;
    if (row->dims[0] % block_len != 0)
        return moa_fail(err, MOA_E_INVALID,
                        "tensor %.*s: rows of %" PRIu64 " elements, %s is stored in blocks of %u", (int)bytes,
                        c->g->head + at, row->dims[0], moa_dtype_gguf_name(type), block_len);
    MOA_TRY(take_u64(c, "the offset", &row->offset, err));
out:
    return s;
}

/* elements and bytes of a tensor; false when they do not fit a size_t */
static bool tensor_size(const tensor_row *row, size_t *n_elem, size_t *bytes) {
    uint32_t block_len, block_bytes;
    size_t n = 1;
    for (int i = 0; i < MOA_GGUF_MAX_DIMS; i++) {
        size_t dim;
        if (!moa_size_from_u64(row->dims[i], &dim) || !moa_size_mul(n, dim, &n)) return false;
    }
    if (n > INT64_MAX || !moa_dtype_gguf_block(row->type, &block_len, &block_bytes)) return false;
    *n_elem = n;
    return moa_size_mul(n / block_len, block_bytes, bytes);
}

/* --- names: sorted, unique, found by halving
 * ------------------------------------------------------------------------- */

typedef struct name_table {
    const uint8_t *head;
    const kv_row *kv; /* one of the two */
    const tensor_row *tensor;
} name_table;

static moa_str name_at(const name_table *t, size_t i) {
    if (t->kv) return (moa_str){(const char *)t->head + t->kv[i].key_at, t->kv[i].key_bytes};
    return (moa_str){(const char *)t->head + t->tensor[i].name_at, t->tensor[i].name_bytes};
}

static int compare_names(moa_str a, moa_str b) {
    if (a.size != b.size) return a.size < b.size ? -1 : 1;
    return memcmp(a.data, b.data, a.size);
}

/* *order: 0..n-1 sorted by name (bottom-up merge sort: n log n for any input); a name twice is an error */
static moa_status sort_names(const name_table *t, size_t n, const char *kind, uint32_t **order,
                             moa_err *err) {
    moa_status s = MOA_OK;
    uint32_t *from = malloc((n + 1) * sizeof *from), *to = malloc((n + 1) * sizeof *to);
    if (!from || !to) {
        s = moa_fail(err, MOA_E_MEMORY, "no memory to sort %zu names of the model file", n);
        goto out;
    }
    for (size_t i = 0; i < n; i++)
        from[i] = (uint32_t)i;
    for (size_t run = 1; run < n; run *= 2) {
        for (size_t start = 0; start < n; start += 2 * run) {
            const size_t mid = start + run < n ? start + run : n, end = mid + run < n ? mid + run : n;
            size_t a = start, b = mid;
            for (size_t i = start; i < end; i++) {
                const bool left =
                    b >= end || (a < mid && compare_names(name_at(t, from[a]), name_at(t, from[b])) <= 0);
                to[i] = left ? from[a++] : from[b++];
            }
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    for (size_t i = 1; i < n; i++) {
        const moa_str name = name_at(t, from[i]);
        if (compare_names(name_at(t, from[i - 1]), name) == 0) {
            s = moa_fail(err, MOA_E_INVALID, "%s %.*s is there twice: entries %u and %u", kind,
                         shown(name.size), name.data, from[i - 1], from[i]);
            goto out;
        }
    }
    *order = from;
    from = NULL;
out:
    free(from);
    free(to);
    return s;
}

static size_t find_name(const name_table *t, const uint32_t *order, size_t n, const char *name) {
    const moa_str key = {name, strlen(name)};
    size_t low = 0, high = n;
    while (low < high) {
        const size_t mid = low + (high - low) / 2;
        const int c = compare_names(name_at(t, order[mid]), key);
        if (c == 0) return order[mid];
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return SIZE_MAX;
}

/* --- opening
 * -----------------------------------------------------------------------------------------------------------
 */

static moa_status check_start(moa_gguf *g, moa_err *err) {
    cursor c = {g, 0, "the start", 0};
    if (g->file_bytes < FIXED_BYTES)
        return moa_fail(err, MOA_E_INVALID, "not a GGUF file: %zu bytes, the fixed part alone has %d",
                        g->file_bytes, FIXED_BYTES);
    const moa_status s = want(&c, FIXED_BYTES, "the fixed part", err);
    if (s != MOA_OK) return s;
    const uint8_t *p = g->head;
    if (memcmp(p, "GGUF", 4) != 0)
        return moa_fail(err, MOA_E_INVALID, "not a GGUF file: it starts with bytes %02x %02x %02x %02x", p[0],
                        p[1], p[2], p[3]);
    g->version = load_u32(p + 4);
    const uint32_t swapped = __builtin_bswap32(g->version);
    if (swapped >= 1 && swapped <= 3)
        return moa_fail(err, MOA_E_UNSUPPORTED,
                        "a big-endian GGUF file (version %u); only little-endian is supported", swapped);
    if (g->version != 2 && g->version != 3)
        return moa_fail(err, MOA_E_UNSUPPORTED, "GGUF version %u; 2 and 3 are supported", g->version);
    return MOA_OK;
}

static moa_status check_count(const char *what, uint64_t n, uint64_t limit, size_t left, size_t least,
                              size_t *out, moa_err *err) {
    if (n > limit)
        return moa_fail(err, MOA_E_INVALID, "%" PRIu64 " %s, the limit is %" PRIu64, n, what, limit);
    if (n > left / least)
        return moa_fail(err, MOA_E_INVALID,
                        "%" PRIu64 " %s of at least %zu bytes each, the file has %zu left", n, what, least,
                        left);
    *out = (size_t)n;
    return MOA_OK;
}

static moa_status take_tables(moa_gguf *g, moa_err *err) {
    moa_status s;
    cursor c = {g, FIXED_BYTES, "metadata entry", 0};
    size_t capacity = 0;
    void *rows = NULL;
    const uint64_t n_tensors = load_u64(g->head + 8), n_kv = load_u64(g->head + 16);
    const size_t left = g->file_bytes - FIXED_BYTES;
    MOA_TRY(
        check_count("tensors", n_tensors, MOA_GGUF_MAX_TENSORS, left, MIN_TENSOR_BYTES, &g->n_tensors, err));
    MOA_TRY(check_count("metadata entries", n_kv, MOA_GGUF_MAX_KV, left, MIN_KV_BYTES, &g->n_kv, err));
    for (c.index = 0; c.index < g->n_kv; c.index++) {
        kv_row *row = row_for(&rows, c.index, sizeof *row, &capacity, err);
        if (!row) return MOA_E_MEMORY;
        g->kv = rows;
        MOA_TRY(take_kv(&c, row, err));
    }
    c.kind = "tensor";
    capacity = 0;
    rows = NULL;
    for (c.index = 0; c.index < g->n_tensors; c.index++) {
        tensor_row *row = row_for(&rows, c.index, sizeof *row, &capacity, err);
        if (!row) return MOA_E_MEMORY;
        g->tensor = rows;
        MOA_TRY(take_tensor(&c, row, err));
    }
    g->header_bytes = c.at;
    const name_table keys = {g->head, g->kv, NULL}, names = {g->head, NULL, g->tensor};
    MOA_TRY(sort_names(&keys, g->n_kv, "metadata key", &g->kv_order, err));
    MOA_TRY(sort_names(&names, g->n_tensors, "tensor", &g->tensor_order, err));
out:
    return s;
}

/* contiguous, aligned, inside the file */
static moa_status check_data(moa_gguf *g, moa_err *err) {
    int64_t align = 32;
    if (moa_gguf_has(g, "general.alignment")) {
        const moa_status s =
            moa_gguf_get_int(g, "general.alignment", MOA_GGUF_MIN_ALIGN, MOA_GGUF_MAX_ALIGN, &align, err);
        if (s != MOA_OK) return s;
        if ((align & (align - 1)) != 0)
            return moa_fail(err, MOA_E_INVALID, "metadata key general.alignment: %lld is not a power of two",
                            (long long)align);
    }
    g->align = (size_t)align;
    if (!moa_size_pad(g->header_bytes, g->align, &g->data_at))
        return moa_fail(err, MOA_E_INVALID, "a header of %zu bytes cannot be padded", g->header_bytes);
    size_t next = 0; /* where the next tensor must begin, from the start of the data */
    for (size_t i = 0; i < g->n_tensors; i++) {
        const tensor_row *row = &g->tensor[i];
        const char *name = (const char *)g->head + row->name_at;
        size_t n_elem, bytes, at, end;
        if (!tensor_size(row, &n_elem, &bytes))
            return moa_fail(err, MOA_E_INVALID,
                            "tensor %.*s: %" PRIu64 "x%" PRIu64 "x%" PRIu64 "x%" PRIu64
                            " elements are more than a file can hold",
                            row->name_bytes, name, row->dims[3], row->dims[2], row->dims[1], row->dims[0]);
        if (row->offset != next)
            return moa_fail(err, MOA_E_INVALID,
                            "tensor %.*s: offset %" PRIu64
                            ", expected %zu (one after the other, padded to %zu bytes)",
                            row->name_bytes, name, row->offset, next, g->align);
        if (!moa_size_add(g->data_at, next, &at) || !moa_size_inside(at, bytes, g->file_bytes))
            return moa_fail(
                err, MOA_E_INVALID,
                "tensor %.*s: %zu bytes from byte %zu on, the file has only %zu: it is cut short or damaged",
                row->name_bytes, name, bytes, at, g->file_bytes);
        if (!moa_size_add(next, bytes, &end) || !moa_size_pad(end, g->align, &next))
            return moa_fail(err, MOA_E_INVALID, "tensor %.*s: %zu bytes cannot be padded", row->name_bytes,
                            name, bytes);
    }
    return MOA_OK;
}

static moa_status judge(moa_gguf *g, moa_err *err) {
    moa_status s;
    MOA_TRY(check_start(g, err));
    MOA_TRY(take_tables(g, err));
    MOA_TRY(check_data(g, err));
    if (g->owned) { /* give back what was read beyond the header */
        uint8_t *smaller = realloc(g->owned, g->header_bytes);
        if (smaller) g->owned = smaller;
        g->head = g->owned;
        g->have = g->header_bytes;
    }
out:
    return s;
}

static moa_status open_file(moa_gguf *g, const char *path, moa_err *err) {
    struct stat st;
    /* O_NONBLOCK: a FIFO must not make us wait before we can refuse it */
    g->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (g->fd < 0) return moa_fail(err, MOA_E_IO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(g->fd, &st) != 0) return moa_fail(err, MOA_E_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return moa_fail(err, MOA_E_INVALID, "%s: not a file (%s)", path,
                        S_ISDIR(st.st_mode) ? "a folder" : "a device, pipe or socket");
    if (!moa_size_from_u64((uint64_t)st.st_size, &g->file_bytes))
        return moa_fail(err, MOA_E_INVALID, "%s: %lld bytes do not fit this machine", path,
                        (long long)st.st_size);
    return MOA_OK;
}

static moa_status open_either(moa_gguf **out, const char *path, const void *bytes, size_t n, moa_err *err) {
    *out = NULL;
    moa_status s = MOA_OK;
    moa_gguf *g = calloc(1, sizeof *g);
    if (!g) return moa_fail(err, MOA_E_MEMORY, "no memory to open a model file");
    g->fd = -1;
    if (path)
        MOA_TRY(open_file(g, path, err));
    else {
        g->memory = g->head = bytes;
        g->file_bytes = g->have = n;
    }
    MOA_TRY(judge(g, err));
    *out = g;
    g = NULL;
out:
    moa_gguf_close(&g);
    return s;
}

moa_status moa_gguf_open(moa_gguf **out, const char *path, moa_err *err) {
    return open_either(out, path, NULL, 0, err);
}

moa_status moa_gguf_open_memory(moa_gguf **out, const void *bytes, size_t n, moa_err *err) {
    return open_either(out, NULL, bytes, n, err);
}

void moa_gguf_close(moa_gguf **g) {
    if (!g || !*g) return;
    if ((*g)->fd >= 0) close((*g)->fd);
    free((*g)->owned);
    free((*g)->kv);
    free((*g)->tensor);
    free((*g)->kv_order);
    free((*g)->tensor_order);
    free(*g);
    *g = NULL;
}

/* --- metadata
 * ------------------------------------------------------------------------------------------------------------
 */

uint32_t moa_gguf_version(const moa_gguf *g) {
    return g->version;
}
uint64_t moa_gguf_file_bytes(const moa_gguf *g) {
    return g->file_bytes;
}
moa_str moa_gguf_header(const moa_gguf *g) {
    return (moa_str){(const char *)g->head, g->header_bytes};
}
size_t moa_gguf_n_kv(const moa_gguf *g) {
    return g->n_kv;
}

moa_gguf_kv moa_gguf_kv_at(const moa_gguf *g, size_t i) {
    const kv_row *row = &g->kv[i];
    return (moa_gguf_kv){
        .key = {(const char *)g->head + row->key_at, row->key_bytes},
        .type = (moa_gguf_type)row->type,
        .elem_type = (moa_gguf_type)row->elem_type,
        .n = row->n,
        .file_offset = row->value_at,
    };
}

static const kv_row *find_kv(const moa_gguf *g, const char *key) {
    const name_table keys = {g->head, g->kv, NULL};
    const size_t i = find_name(&keys, g->kv_order, g->n_kv, key);
    return i == SIZE_MAX ? NULL : &g->kv[i];
}

bool moa_gguf_has(const moa_gguf *g, const char *key) {
    return find_kv(g, key) != NULL;
}

static moa_status fail_missing(const char *key, moa_err *err) {
    return moa_fail(err, MOA_E_INVALID, "metadata key %s is missing", key);
}

static moa_status fail_type(const kv_row *row, const char *key, const char *wanted, moa_err *err) {
    return moa_fail(err, MOA_E_INVALID, "metadata key %s at byte %u: %s%s, expected %s", key, row->value_at,
                    row->type == MOA_GGUF_ARRAY ? "an array of " : "", type_name(row->elem_type), wanted);
}

/* false: not an integer type, or above INT64_MAX */
static bool load_int(const uint8_t *p, uint8_t type, int64_t *out) {
    switch (type) {
    case MOA_GGUF_U8: *out = p[0]; return true;
    case MOA_GGUF_I8: *out = (int8_t)p[0]; return true;
    case MOA_GGUF_U16: *out = p[0] | p[1] << 8; return true;
    case MOA_GGUF_I16: *out = (int16_t)(p[0] | p[1] << 8); return true;
    case MOA_GGUF_U32: *out = load_u32(p); return true;
    case MOA_GGUF_I32: *out = (int32_t)load_u32(p); return true;
    case MOA_GGUF_I64: *out = (int64_t)load_u64(p); return true;
    case MOA_GGUF_U64: *out = (int64_t)load_u64(p); return load_u64(p) <= INT64_MAX;
    default: return false;
    }
}

static bool load_float(const uint8_t *p, uint8_t type, double *out) {
    if (type == MOA_GGUF_F32) {
        const uint32_t bits = load_u32(p);
        float f;
        memcpy(&f, &bits, sizeof f);
        *out = (double)f;
        return true;
    }
    if (type != MOA_GGUF_F64) return false;
    const uint64_t bits = load_u64(p);
    memcpy(out, &bits, sizeof *out);
    return true;
}

moa_status moa_gguf_get_int(const moa_gguf *g, const char *key, int64_t low, int64_t high, int64_t *out,
                            moa_err *err) {
    const kv_row *row = find_kv(g, key);
    int64_t value = 0;
    if (!row) return fail_missing(key, err);
    const uint8_t *p = g->head + row->value_at;
    if (!load_int(p, row->type, &value)) {
        if (row->type == MOA_GGUF_U64)
            return moa_fail(err, MOA_E_INVALID,
                            "metadata key %s at byte %u: %" PRIu64 ", expected %lld to %lld", key,
                            row->value_at, load_u64(p), (long long)low, (long long)high);
        return fail_type(row, key, "an integer", err);
    }
    if (value < low || value > high)
        return moa_fail(err, MOA_E_INVALID, "metadata key %s at byte %u: %lld, expected %lld to %lld", key,
                        row->value_at, (long long)value, (long long)low, (long long)high);
    *out = value;
    return MOA_OK;
}

moa_status moa_gguf_get_float(const moa_gguf *g, const char *key, double low, double high, double *out,
                              moa_err *err) {
    const kv_row *row = find_kv(g, key);
    double value = 0;
    if (!row) return fail_missing(key, err);
    if (!load_float(g->head + row->value_at, row->type, &value)) return fail_type(row, key, "a float", err);
    if (!isfinite(value) || value < low || value > high)
        return moa_fail(err, MOA_E_INVALID, "metadata key %s at byte %u: %g, expected %g to %g", key,
                        row->value_at, value, low, high);
    *out = value;
    return MOA_OK;
}

moa_status moa_gguf_get_bool(const moa_gguf *g, const char *key, bool *out, moa_err *err) {
    const kv_row *row = find_kv(g, key);
    if (!row) return fail_missing(key, err);
    if (row->type != MOA_GGUF_BOOL) return fail_type(row, key, "BOOL", err);
    *out = g->head[row->value_at] != 0;
    return MOA_OK;
}

/* the string whose length field stands at `at`; judged when the header was read */
static moa_str load_str(const moa_gguf *g, size_t at) {
    return (moa_str){(const char *)g->head + at + 8, (size_t)load_u64(g->head + at)};
}

moa_status moa_gguf_get_str(const moa_gguf *g, const char *key, size_t max_bytes, moa_str *out,
                            moa_err *err) {
    const kv_row *row = find_kv(g, key);
    if (!row) return fail_missing(key, err);
    if (row->type != MOA_GGUF_STRING) return fail_type(row, key, "STRING", err);
    const moa_str text = load_str(g, row->value_at);
    if (text.size > max_bytes)
        return moa_fail(err, MOA_E_INVALID, "metadata key %s at byte %u: %zu bytes, the limit is %zu", key,
                        row->value_at, text.size, max_bytes);
    *out = text;
    return MOA_OK;
}

void moa_gguf_kv_text(const moa_gguf *g, size_t i, char *out, size_t out_bytes) {
    const kv_row *row = &g->kv[i];
    const uint8_t *p = g->head + row->value_at;
    int64_t integer;
    double real;
    if (row->type == MOA_GGUF_ARRAY)
        (void)snprintf(out, out_bytes, "[%u of %s]", row->n, type_name(row->elem_type));
    else if (row->type == MOA_GGUF_STRING) {
        const moa_str text = load_str(g, row->value_at);
        (void)snprintf(out, out_bytes, "%.*s", (int)text.size, text.data); /* size <= 16 MiB */
    } else if (row->type == MOA_GGUF_BOOL)
        (void)snprintf(out, out_bytes, "%s", p[0] ? "true" : "false");
    else if (row->type == MOA_GGUF_U64)
        (void)snprintf(out, out_bytes, "%" PRIu64, load_u64(p));
    else if (load_int(p, row->type, &integer))
        (void)snprintf(out, out_bytes, "%lld", (long long)integer);
    else if (load_float(p, row->type, &real))
        (void)snprintf(out, out_bytes, "%.9g", real);
}

/* --- arrays
 * ----------------------------------------------------------------------------------------------------------------
 */

/* the row of an array of this element type, with zeroed memory for its n elements */
static moa_status start_array(const moa_gguf *g, const char *key, moa_gguf_type elem, size_t elem_bytes,
                              const kv_row **row, void **out, moa_err *err) {
    char wanted[32];
    *out = NULL;
    *row = find_kv(g, key);
    if (!*row) return fail_missing(key, err);
    (void)snprintf(wanted, sizeof wanted, "an array of %s", type_name(elem));
    if ((*row)->type != MOA_GGUF_ARRAY || (*row)->elem_type != elem) return fail_type(*row, key, wanted, err);
    if ((*row)->n == 0) return MOA_OK;
    *out = calloc((*row)->n, elem_bytes);
    if (!*out)
        return moa_fail(err, MOA_E_MEMORY, "metadata key %s: no memory for %u elements", key, (*row)->n);
    return MOA_OK;
}

moa_status moa_gguf_get_strings(const moa_gguf *g, const char *key, moa_str **out, size_t *n, moa_err *err) {
    const kv_row *row;
    void *memory;
    const moa_status s = start_array(g, key, MOA_GGUF_STRING, sizeof **out, &row, &memory, err);
    if (s != MOA_OK) return s;
    *out = memory;
    *n = row->n;
    size_t at = row->value_at;
    for (size_t i = 0; i < row->n; i++) {
        (*out)[i] = load_str(g, at);
        at += 8 + (*out)[i].size;
    }
    return MOA_OK;
}

moa_status moa_gguf_get_i32s(const moa_gguf *g, const char *key, int32_t **out, size_t *n, moa_err *err) {
    const kv_row *row;
    void *memory;
    const moa_status s = start_array(g, key, MOA_GGUF_I32, sizeof **out, &row, &memory, err);
    if (s != MOA_OK) return s;
    *out = memory;
    *n = row->n;
    for (size_t i = 0; i < row->n; i++)
        (*out)[i] = (int32_t)load_u32(g->head + row->value_at + 4 * i);
    return MOA_OK;
}

moa_status moa_gguf_get_f32s(const moa_gguf *g, const char *key, float **out, size_t *n, moa_err *err) {
    const kv_row *row;
    void *memory;
    const moa_status s = start_array(g, key, MOA_GGUF_F32, sizeof **out, &row, &memory, err);
    if (s != MOA_OK) return s;
    *out = memory;
    *n = row->n;
    for (size_t i = 0; i < row->n; i++) {
        const uint32_t bits = load_u32(g->head + row->value_at + 4 * i);
        memcpy(&(*out)[i], &bits, sizeof bits);
    }
    return MOA_OK;
}

/* --- tensors
 * ---------------------------------------------------------------------------------------------------------------
 */

size_t moa_gguf_n_tensors(const moa_gguf *g) {
    return g->n_tensors;
}

moa_gguf_tensor moa_gguf_tensor_at(const moa_gguf *g, size_t i) {
    const tensor_row *row = &g->tensor[i];
    size_t n_elem = 0, bytes = 0;
    (void)tensor_size(row, &n_elem, &bytes); /* judged by check_data */
    moa_gguf_tensor t = {
        .name = {(const char *)g->head + row->name_at, row->name_bytes},
        .type = row->type,
        .n_dims = row->n_dims,
        .n_elem = n_elem,
        .bytes = bytes,
        .file_offset = g->data_at + row->offset,
    };
    memcpy(t.dims, row->dims, sizeof t.dims);
    return t;
}

size_t moa_gguf_find_tensor(const moa_gguf *g, const char *name) {
    const name_table names = {g->head, NULL, g->tensor};
    return find_name(&names, g->tensor_order, g->n_tensors, name);
}

moa_status moa_gguf_read(const moa_gguf *g, size_t tensor, size_t offset, size_t n, void *dst, moa_err *err) {
    const moa_gguf_tensor t = moa_gguf_tensor_at(g, tensor);
    if (!moa_size_inside(offset, n, t.bytes))
        return moa_fail(err, MOA_E_INVALID, "tensor %.*s: %zu bytes from %zu on, it has %zu",
                        (int)t.name.size, t.name.data, n, offset, t.bytes);
    return read_at(g, (size_t)t.file_offset + offset, n, dst, err);
}
