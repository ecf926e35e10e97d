/* wire.c -- encoder, decoder and stream reader, all made from the table of wire.h by the preprocessor.
 *
 *   a put_KIND and a get_KIND for each field kind; X() strings them together for each message, so that a new message or
 *   field is a change of the table alone.
 *
 * There is one encoding of a message: paddings are zero and the payload ends on a multiple of 8 bytes. The decoder insists on it,
 * so decode then encode gives the same bytes back (the fuzzer's property), and the frames of a stream stay aligned without
 * being moved. The bytes are the machine's own: the wire is little-endian and so must the machine be. */
#include "core/engine/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/size.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the wire's arrays are used in place: little-endian machines only");
_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE floats");

enum { READ_BYTES = 64 << 10, FRAME_MAX = MOA_WIRE_HEADER + MOA_WIRE_MAX };

typedef struct frame_header {
    uint32_t payload_bytes;
    uint16_t type, zero16;
    uint32_t job, zero32;
} frame_header;
_Static_assert(sizeof(frame_header) == MOA_WIRE_HEADER, "16 bytes, no padding");

const char *moa_wire_name(moa_wire_type type) {
    switch (type) {
#define X(NAME, name, number)                                                                                \
    case MOA_WIRE_##NAME: return #NAME;
        MOA_WIRE_MAP(X)
#undef X
    }
    return "?";
}

static bool known_type(uint32_t type) {
#define X(NAME, name, number)                                                                                \
    if (type == number) return true;
    MOA_WIRE_MAP(X)
#undef X
    return false;
}

/* --- encode ---------------------------------------------------------------------------------------------------------- */

typedef struct writer {
    moa_buf *out;
    size_t start; /* of the frame in out */
    bool too_big;
} writer;

static void put(writer *w, const void *bytes, size_t n) {
    size_t after;
    if (!moa_size_add(w->out->size - w->start, n, &after) || after > FRAME_MAX) w->too_big = true;
    if (!w->too_big) moa_buf_append(w->out, bytes, n);
}

static void put_padding(writer *w) {
    static const char zeros[8] = {0};
    put(w, zeros, (8 - (w->out->size - w->start) % 8) % 8);
}

static void put_counted(writer *w, const void *data, uint32_t n, size_t elem_bytes) {
    size_t bytes;
    put(w, &n, sizeof n);
    put_padding(w);
    if (!moa_size_mul(n, elem_bytes, &bytes))
        w->too_big = true;
    else
        put(w, data, bytes);
    put_padding(w);
}

#define PUT_SCALAR(kind)                                                                                     \
    static void put_##kind(writer *w, MOA_WIRE_C_##kind v) {                                                 \
        put(w, &v, sizeof v);                                                                                \
    }
PUT_SCALAR(u32)
PUT_SCALAR(i32)
PUT_SCALAR(u64)
PUT_SCALAR(f32)
PUT_SCALAR(f64)
#define PUT_COUNTED(kind)                                                                                    \
    static void put_##kind(writer *w, MOA_WIRE_C_##kind v) {                                                 \
        put_counted(w, v.data, v.n, sizeof *v.data);                                                         \
    }
PUT_COUNTED(str)
PUT_COUNTED(i32s)
PUT_COUNTED(f32s)
PUT_COUNTED(f64s)
PUT_COUNTED(u8s)

static void put_fields(writer *w, const moa_wire_msg *msg) {
    switch (msg->type) {
#define PUT_FIELD(kind, field) put_##kind(w, m->field);
#define X(NAME, name, number)                                                                                \
    case MOA_WIRE_##NAME: {                                                                                  \
        const moa_msg_##name *m = &msg->u.name;                                                              \
        MOA_MSG_##NAME(PUT_FIELD) break;                                                                     \
    }
        MOA_WIRE_MAP(X)
#undef X
    }
}

moa_status moa_wire_encode(const moa_wire_msg *msg, moa_buf *out, moa_err *err) {
    if (!known_type(msg->type))
        return moa_fail(err, MOA_E_INVALID, "wire: no message has type %d", (int)msg->type);
    writer w = {out, out->size, false};
    frame_header h = {0, (uint16_t)msg->type, 0, msg->job, 0};
    put(&w, &h, sizeof h);
    put_fields(&w, msg);
    put_padding(&w);
    if (w.too_big || !moa_buf_ok(out)) {
        out->size = w.start;
        if (out->data) out->data[out->size] = 0;
        if (w.too_big)
            return moa_fail(err, MOA_E_INVALID, "wire: a %s message would be above the limit of %d bytes",
                            moa_wire_name(msg->type), MOA_WIRE_MAX);
        return moa_fail(err, MOA_E_MEMORY, "wire: no memory for a %s message", moa_wire_name(msg->type));
    }
    h.payload_bytes = (uint32_t)(out->size - w.start - MOA_WIRE_HEADER);
    memcpy(out->data + w.start, &h, sizeof h);
    return MOA_OK;
}

/* --- decode ---------------------------------------------------------------------------------------------------------- */

typedef struct cursor {
    const char *frame;
    size_t at, size;   /* bytes of the frame */
    const char *field; /* for messages */
    const char *wrong; /* what is wrong with field, NULL: nothing yet */
    uint64_t count;
} cursor;

static const void *take(cursor *c, size_t n) {
    if (c->wrong) return NULL;
    if (!moa_size_inside(c->at, n, c->size)) {
        c->wrong = "does not fit";
        return NULL;
    }
    const void *at = c->frame + c->at;
    c->at += n;
    return at;
}

static void take_padding(cursor *c) {
    const size_t n = (8 - c->at % 8) % 8;
    const char *zeros = take(c, n);
    for (size_t i = 0; zeros && i < n; i++)
        if (zeros[i] != 0) c->wrong = "is padded with something else than zeros";
}

static const void *take_counted(cursor *c, size_t elem_bytes, uint32_t *n) {
    uint32_t count = 0;
    size_t bytes;
    const void *at = take(c, sizeof count);
    *n = 0;
    if (!at) return NULL;
    memcpy(&count, at, sizeof count);
    take_padding(c);
    c->count = count;
    if (!moa_size_mul(count, elem_bytes, &bytes)) c->wrong = "does not fit";
    const void *data = take(c, c->wrong ? 0 : bytes);
    take_padding(c);
    if (c->wrong) return NULL;
    *n = count;
    return data;
}

#define GET_SCALAR(kind)                                                                                     \
    static void get_##kind(cursor *c, MOA_WIRE_C_##kind *v) {                                                \
        const void *at = take(c, sizeof *v);                                                                 \
        if (at) memcpy(v, at, sizeof *v);                                                                    \
    }
GET_SCALAR(u32)
GET_SCALAR(i32)
GET_SCALAR(u64)
GET_SCALAR(f32)
GET_SCALAR(f64)
#define GET_COUNTED(kind)                                                                                    \
    static void get_##kind(cursor *c, MOA_WIRE_C_##kind *v) {                                                \
        v->data = take_counted(c, sizeof *v->data, &v->n);                                                   \
    }
GET_COUNTED(str)
GET_COUNTED(i32s)
GET_COUNTED(f32s)
GET_COUNTED(f64s)
GET_COUNTED(u8s)

static void get_fields(cursor *c, moa_wire_msg *msg) {
    switch (msg->type) {
#define GET_FIELD(kind, name)                                                                                \
    if (!c->wrong) {                                                                                         \
        c->field = #name;                                                                                    \
        c->count = 0;                                                                                        \
        get_##kind(c, &m->name);                                                                             \
    }
#define X(NAME, name, number)                                                                                \
    case MOA_WIRE_##NAME: {                                                                                  \
        moa_msg_##name *m = &msg->u.name;                                                                    \
        MOA_MSG_##NAME(GET_FIELD) break;                                                                     \
    }
        MOA_WIRE_MAP(X)
#undef X
    }
}

moa_status moa_wire_peek(const void *bytes, size_t n, size_t *frame_bytes, moa_err *err) {
    frame_header h;
    *frame_bytes = 0;
    if (n < sizeof h) return MOA_OK;
    memcpy(&h, bytes, sizeof h);
    if (!known_type(h.type))
        return moa_fail(err, MOA_E_INVALID, "wire: unknown message type %u", (unsigned)h.type);
    if (h.zero16 != 0 || h.zero32 != 0)
        return moa_fail(err, MOA_E_INVALID,
                        "wire: the reserved fields of a %s message are %u and %u, expected 0",
                        moa_wire_name(h.type), (unsigned)h.zero16, h.zero32);
    if (h.payload_bytes > MOA_WIRE_MAX || h.payload_bytes % 8 != 0)
        return moa_fail(err, MOA_E_INVALID,
                        "wire: a %s message of %u bytes, expected a multiple of 8 up to %d",
                        moa_wire_name(h.type), h.payload_bytes, MOA_WIRE_MAX);
    if (n - sizeof h >= h.payload_bytes) *frame_bytes = sizeof h + h.payload_bytes;
    return MOA_OK;
}

moa_status moa_wire_decode(const void *frame, size_t frame_bytes, moa_wire_msg *msg, moa_err *err) {
    size_t whole;
    memset(msg, 0, sizeof *msg);
    moa_status s = moa_wire_peek(frame, frame_bytes, &whole, err);
    if (s != MOA_OK) return s;
    if (whole == 0 || whole != frame_bytes)
        return moa_fail(err, MOA_E_INVALID, "wire: a frame of %zu bytes does not hold just one message",
                        frame_bytes);
    frame_header h;
    memcpy(&h, frame, sizeof h);
    msg->type = (moa_wire_type)h.type;
    msg->job = h.job;
    cursor c = {.frame = frame, .at = sizeof h, .size = frame_bytes};
    get_fields(&c, msg);
    if (!c.wrong) {
        c.field = "end";
        take_padding(&c);
    }
    if (c.wrong)
        return moa_fail(err, MOA_E_INVALID, "wire: %s message of %u bytes: field %s (count %llu) %s",
                        moa_wire_name(msg->type), h.payload_bytes, c.field, (unsigned long long)c.count,
                        c.wrong);
    if (c.at != c.size)
        return moa_fail(err, MOA_E_INVALID, "wire: %s message of %u bytes: %zu bytes too many",
                        moa_wire_name(msg->type), h.payload_bytes, c.size - c.at);
    return MOA_OK;
}

/* --- a stream ---------------------------------------------------------------------------------------------------------- */

/* room for one more read behind what is there; a whole frame waiting is always below the limit */
static moa_status make_room(moa_wire_reader *r, moa_err *err) {
    if (r->start > 0) {
        memmove(r->data, r->data + r->start, r->size - r->start);
        r->size -= r->start;
        r->start = 0;
    }
    if (r->capacity - r->size >= READ_BYTES || r->capacity == FRAME_MAX + READ_BYTES) return MOA_OK;
    size_t capacity = r->capacity ? r->capacity * 2 : 2 * READ_BYTES;
    if (capacity > FRAME_MAX + READ_BYTES) capacity = FRAME_MAX + READ_BYTES;
    char *data = realloc(r->data, capacity);
    if (!data) return moa_fail(err, MOA_E_MEMORY, "wire: no memory for a buffer of %zu bytes", capacity);
    r->data = data;
    r->capacity = capacity;
    return MOA_OK;
}

moa_status moa_wire_fill(moa_wire_reader *r, int fd, bool *closed, moa_err *err) {
    *closed = false;
    const moa_status s = make_room(r, err);
    if (s != MOA_OK) return s;
    size_t n = r->capacity - r->size;
    if (n > READ_BYTES) n = READ_BYTES;
    if (n == 0) return MOA_OK; /* frames are waiting to be taken */
    const ssize_t got = read(fd, r->data + r->size, n);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return MOA_OK;
    if (got < 0) return moa_fail(err, MOA_E_IO, "wire: reading failed: %s", strerror(errno));
    if (got == 0) *closed = true;
    r->size += (size_t)got;
    return MOA_OK;
}

moa_status moa_wire_next(moa_wire_reader *r, moa_wire_msg *msg, bool *got, moa_err *err) {
    size_t frame_bytes;
    *got = false;
    if (r->size == r->start) return MOA_OK;
    const char *front = r->data + r->start;
    moa_status s = moa_wire_peek(front, r->size - r->start, &frame_bytes, err);
    if (s != MOA_OK || frame_bytes == 0) return s;
    s = moa_wire_decode(front, frame_bytes, msg, err);
    if (s != MOA_OK) return s;
    r->start += frame_bytes;
    *got = true;
    return MOA_OK;
}

void moa_wire_reader_free(moa_wire_reader *r) {
    free(r->data);
    *r = (moa_wire_reader){0};
}
