/* The wire's decoder takes any bytes; what it takes, it gives back bit for bit; a stream of the same bytes in pieces finds the same
 * frames. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/engine/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* sums over every borrowed element, so that a length beyond the frame is read and seen by the sanitizer */
static volatile uint64_t sink;
static void touch(const void *data, size_t n) {
    const unsigned char *at = data;
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += at[i];
    sink += sum;
}
#define TOUCH_SCALAR(v) touch(&(v), sizeof(v));
#define TOUCH_ARRAY(v) touch((v).data, (v).n * sizeof *(v).data);
#define TOUCH_u32 TOUCH_SCALAR
#define TOUCH_i32 TOUCH_SCALAR
#define TOUCH_u64 TOUCH_SCALAR
#define TOUCH_f32 TOUCH_SCALAR
#define TOUCH_f64 TOUCH_SCALAR
#define TOUCH_str TOUCH_ARRAY
#define TOUCH_u8s TOUCH_ARRAY
#define TOUCH_i32s TOUCH_ARRAY
#define TOUCH_f32s TOUCH_ARRAY
#define TOUCH_f64s TOUCH_ARRAY

static void touch_msg(const moa_wire_msg *msg) {
    switch (msg->type) {
#define FIELD(kind, field) TOUCH_##kind(m->field)
#define X(NAME, name, number)                                                                                \
    case MOA_WIRE_##NAME: {                                                                                  \
        const moa_msg_##name *m = &msg->u.name;                                                              \
        MOA_MSG_##NAME(FIELD) break;                                                                         \
    }
        MOA_WIRE_MAP(X)
#undef X
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    for (size_t at = 0; at < size;) {
        size_t frame = 0;
        moa_wire_msg m;
        moa_err err = {0};
        if (moa_wire_peek(data + at, size - at, &frame, &err) != MOA_OK || frame == 0) break;
        if (frame > size - at) abort();
        char *copy = malloc(frame); /* aligned, and not a byte more */
        if (!copy) return 0;
        memcpy(copy, data + at, frame);
        if (moa_wire_decode(copy, frame, &m, &err) == MOA_OK) {
            moa_buf back = {0};
            touch_msg(&m);
            if (moa_wire_encode(&m, &back, &err) != MOA_OK || back.size != frame ||
                memcmp(back.data, copy, frame) != 0)
                abort();
            moa_buf_free(&back);
        } else if (!err.text[0])
            abort();
        free(copy);
        at += frame;
    }
    return 0;
}
