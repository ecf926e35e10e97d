/* wire.h -- the messages between the screen and the engine process. This table is the whole protocol.
 *
 *   frame   u32 payload bytes | u16 type | u16 zero | u32 job | u32 zero | payload    little-endian, <= MOA_WIRE_MAX payload bytes
 *   payload the fields of the message's row below, in order; arrays and strings: u32 count, padding to 8, elements, padding to 8;
 *           zeros up to a multiple of 8 at the end. Scalars are not padded. Padding is counted from the frame's start.
 *
 * Each row makes a struct, an encoder and a decoder. Sizes and indices only, never pointers. Decoded strings and arrays are
 * borrowed from the frame's buffer (8-byte aligned) until it is reused. A decoder takes any bytes: it checks every count
 * against what is left, and a frame must be used up exactly. Token events are never dropped; snapshots (statistics, maps,
 * pages) are latest-wins, so that a slow screen never holds up the engine. Because this is a byte stream, the engine may be on another
 * machine: `--engine "ssh gpu-box moascope engine"`. */
#ifndef MOA_ENGINE_WIRE_H
#define MOA_ENGINE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/buf.h"
#include "core/base/status.h"

enum { MOA_WIRE_VERSION = 3, MOA_WIRE_MAX = 16 << 20, MOA_WIRE_HEADER = 16 };

/* a borrowed string (not NUL-terminated, any bytes) and borrowed arrays */
typedef struct moa_wire_str { const char *data; uint32_t n; } moa_wire_str;
typedef struct moa_wire_i32s { const int32_t *data; uint32_t n; } moa_wire_i32s;
typedef struct moa_wire_f32s { const float *data; uint32_t n; } moa_wire_f32s;
typedef struct moa_wire_f64s { const double *data; uint32_t n; } moa_wire_f64s;
typedef struct moa_wire_u8s { const uint8_t *data; uint32_t n; } moa_wire_u8s;

/* Field kinds: u32 i32 u64 f32 f64 (scalars), str i32s f32s f64s u8s (counted). F(kind, name) */

/* --- screen to engine --- */
#define MOA_MSG_HELLO(F) F(u32, version) F(str, client)
#define MOA_MSG_LOAD(F)                                                                                      \
    F(str, path) F(str, device) F(str, kv_type) F(u32, n_threads) F(u32, reference) F(u64, capture_limit_bytes)
#define MOA_MSG_TOKENIZE(F) F(str, text) F(u32, chat)
/* One run. ids given: used as they are; else text is tokenised, chat: as the user's turn of the conversation.
 * fresh: forget the sequence first (a rerun); else go on with it (the next turn). alphas, betas: (n_layer, n_head), both empty: dense.
 * force: teacher-forced continuation. keep_reference / against_reference: see moa_run_config. stats_every: head statistics, map and page
 * snapshots after every so many generated tokens, 0: only at the end of prefill and run. */
#define MOA_MSG_RUN(F)                                                                                       \
    F(str, text) F(i32s, ids) F(u32, chat) F(u32, fresh) F(f64s, alphas) F(f64s, betas) F(f64s, measure_alphas)     \
    F(f64s, measure_betas) F(u32, n_gen) F(f32, temp) F(i32, top_k) F(f32, top_p) F(f32, min_p) F(u64, seed)        \
    F(u32, ignore_end) F(i32s, force) F(u32, keep_reference) F(u32, against_reference) F(u32, watch) F(u32, stats_every)
/* The frame's job is the one to cancel: running or waiting; 0, or a number not seen yet: the running one. Ends with DONE (stop "cancelled") or
 * FAILED (E_CANCELLED) of that job; a number of the past is ignored. */
#define MOA_MSG_CANCEL(F) F(u32, reserved)
/* The map the screen looks at: answered with MAP at once if there is anything captured (also while running, between tokens), and again
 * after every stats_every tokens while follow is set. q1 or k1 = 0: up to the newest token. span: 0 the run's, MOA_N_MAX dense. */
#define MOA_MSG_SELECT_MAP(F)                                                                                \
    F(i32, layer) F(i32, head) F(i32, span) F(i32, measure_span) F(i32, q0) F(i32, q1) F(i32, k0) F(i32, k1)         \
    F(i32, rows) F(i32, cols) F(u32, follow)
#define MOA_MSG_QUIT(F) F(u32, reserved)
/* Work on the loaded model beside the conversation, which it leaves alone; answered with RESULT after each item. kind: moa_wire_task.
 *   calibrate  n_item synthetic items a length, answered by the dense model; they stay with the engine for profile (fresh: from none)
 *   profile    influence of every head on the calibrated items of each length: INFLUENCE, one or more a layer. loss: moa_wire_loss, what
 *              the influence is on; n_plan 1: of the model under that plan, curves alone; 0: full attention
 *   validate   cross-entropy under n_plan plans of n_item items a length, made and answered as by calibrate but with this seed
 *   eval       accuracy under n_plan plans on n_item cases a length
 * item_kinds: calibrate, validate: bits of moa_calib_kind; eval: one moa_task. docs: files and folders, one a line, or "".
 * alphas, betas: (n_plan, n_layer, n_head). */
#define MOA_MSG_TASK(F)                                                                                      \
    F(u32, kind) F(i32s, lengths) F(i32, n_item) F(u64, seed) F(u32, item_kinds) F(i32, n_gen) F(str, docs)          \
    F(i32, n_plan) F(f64s, alphas) F(f64s, betas) F(u32, fresh) F(u32, loss)

/* --- engine to screen --- */
/* one device a line: "cuda:0\tNVIDIA H100 ...\t<total bytes>\t<free bytes>\n", last "cpu\t..."; why: why there is no GPU, "" if there is */
#define MOA_MSG_WELCOME(F) F(u32, version) F(str, program) F(str, devices) F(str, why)
/* phase: 0 load (bytes), 1 prefill (tokens), 2 decode (tokens), 2 + moa_wire_task: a task (tokens of its items times plans) */
#define MOA_MSG_PROGRESS(F) F(u32, phase) F(u64, done) F(u64, total) F(f64, seconds)
#define MOA_MSG_LOADED(F)                                                                                    \
    F(str, path) F(str, name) F(str, arch) F(str, quant) F(str, fingerprint) F(str, chat_template) F(str, device)   \
    F(str, device_why) F(i32, n_layer) F(i32, n_head) F(i32, n_head_kv) F(i32, d_head) F(i32, d_model) F(i32, d_ff)    \
    F(i32, n_vocab) F(i32, n_ctx) F(u32, kv_elem_bytes) F(u64, weight_bytes) F(u64, n_param)                         \
    F(u64, device_total_bytes) F(u64, device_free_bytes)
/* tokens of a text: ids, and their raw bytes one after the other: piece t is pieces[ends[t-1] .. ends[t]) */
#define MOA_MSG_TOKENS(F) F(i32s, ids) F(u8s, pieces) F(i32s, ends)
/* A run begins: its prompt as tokens (all of the sequence so far), N, spans (n_layer, n_head); note: a sentence for the user or "" */
#define MOA_MSG_STARTED(F)                                                                                   \
    F(i32s, ids) F(u8s, pieces) F(i32s, ends) F(i32, n_new) F(i32, n_reserved) F(i32s, spans) F(str, note)
#define MOA_MSG_TOKEN(F)                                                                                     \
    F(i32, index) F(i32, pos) F(i32, id) F(u8s, piece) F(u32, control) F(f32, logprob) F(f32, entropy) F(f32, kl)      \
    F(i32s, top_ids) F(f32s, top_logprobs) F(u8s, top_pieces) F(i32s, top_ends)
/* per head (n_layer, n_head): means over n_query queries, of which n_seen were looked at, of the prompt one block in `every`; see
 * moa_head_stats, moa_watched */
#define MOA_MSG_STATS(F)                                                                                     \
    F(i32, n_past) F(i32, n_layer) F(i32, n_head) F(u64, n_query) F(u64, n_seen) F(i32, every) F(f32s, entropy) F(f32s, sink) F(f32s, window)       \
    F(f32s, distance) F(f32s, worst_cover) F(i32s, worst_query)
/* distance histogram of one layer: hist (n_head, 8, 1 + n_bin); queries (8) */
#define MOA_MSG_HIST(F)                                                                                      \
    F(i32, n_past) F(i32, layer) F(i32, n_head) F(i32, n_bin) F(i32, bucket_tok) F(f64s, queries) F(f32s, hist)
/* mass, max (rows, cols); stat (rows, MOA_N_STAT) means of each row's queries. span: what the map was masked with */
#define MOA_MSG_MAP(F)                                                                                       \
    F(i32, layer) F(i32, head) F(i32, span) F(i32, measure_span) F(i32, q0) F(i32, q1) F(i32, k0) F(i32, k1)         \
    F(i32, rows) F(i32, cols) F(i32, n_past) F(f32s, mass) F(f32s, max) F(f32s, stat)
/* held: (n_layer, n_head_kv, max_pages) bytes 0/1 */
#define MOA_MSG_PAGES(F)                                                                                     \
    F(i32, n_past) F(i32, n_reserved) F(i32, n_layer) F(i32, n_head_kv) F(i32, max_pages) F(u64, page_bytes)          \
    F(u64, used_bytes) F(u64, peak_bytes) F(u64, pool_bytes) F(u64, formula_plan) F(u64, formula_dense)              \
    F(u64, formula_mha) F(u64, device_total_bytes) F(u64, device_free_bytes) F(u64, capture_bytes) F(i32, lost)       \
    F(u64, workspace_bytes) F(u8s, held)
#define MOA_MSG_DONE(F)                                                                                      \
    F(str, stop) F(i32, n_prompt) F(i32, n_gen) F(i32, n_reserved) F(f64, prefill_s) F(f64, decode_s) F(f64, ttft_s)   \
    F(u64, kv_bytes) F(u64, kv_peak_bytes) F(u64, kv_plan) F(u64, kv_dense) F(u64, kv_mha) F(f64, kv_density)          \
    F(i32, span_min) F(f64, span_mean) F(i32, span_max) F(u64, device_bytes)
#define MOA_MSG_FAILED(F) F(i32, status) F(str, text)
#define MOA_MSG_NOTE(F) F(str, text)
/* Means over n_item items of one length (profile.h): heads [head0, head0 + n_head) of one layer. abs, sum (n_head, nb, nb) or empty
 * (too large for a message, or under a plan), joint (n_head, nb + 1), under a plan against its spans (profile.h). n_supervised: tokens;
 * loss: of the dense model, or of the one under the plan, nats a token */
#define MOA_MSG_INFLUENCE(F)                                                                                 \
    F(i32, n_tok) F(i32, nb) F(i32, layer) F(i32, head0) F(i32, n_head) F(i32, n_item) F(u64, n_supervised)          \
    F(u64, n_clamped) F(f64, loss) F(f32s, abs) F(f32s, sum) F(f32s, joint)
/* Where a task stands. state: moa_wire_result. n, right, loss: (n_plan, n_length), n_plan at least 1: items done, items right, mean
 * cross-entropy in nats (NAN: not of this kind). n_want: items of a length. A cancelled or failed task keeps what is done. */
#define MOA_MSG_RESULT(F)                                                                                    \
    F(u32, kind) F(u32, state) F(i32s, lengths) F(i32, n_plan) F(i32, n_want) F(i32s, n) F(i32s, right) F(f64s, loss) \
    F(f64, seconds) F(str, note)

typedef enum moa_wire_task { MOA_WIRE_CALIBRATE = 1, MOA_WIRE_PROFILE, MOA_WIRE_VALIDATE, MOA_WIRE_EVAL } moa_wire_task;
typedef enum moa_wire_loss { MOA_WIRE_CROSS_ENTROPY, MOA_WIRE_MARGIN } moa_wire_loss; /* profile.h */
typedef enum moa_wire_result { MOA_WIRE_GOES_ON, MOA_WIRE_FINISHED, MOA_WIRE_CANCELLED } moa_wire_result;
enum { MOA_WIRE_LENGTHS_MAX = 16, MOA_WIRE_ITEMS_MAX = 4096, MOA_WIRE_PLANS_MAX = 64 }; /* of a task */

/* name, type number on the wire (never reused) */
#define MOA_WIRE_MAP(X)                                                                                      \
    X(HELLO, hello, 1)                                                                                       \
    X(LOAD, load, 2)                                                                                         \
    X(TOKENIZE, tokenize, 3)                                                                                 \
    X(RUN, run, 4)                                                                                           \
    X(CANCEL, cancel, 5)                                                                                     \
    X(SELECT_MAP, select_map, 6)                                                                             \
    X(QUIT, quit, 7)                                                                                         \
    X(TASK, task, 8)                                                                                         \
    X(WELCOME, welcome, 65)                                                                                  \
    X(PROGRESS, progress, 66)                                                                                \
    X(LOADED, loaded, 67)                                                                                    \
    X(TOKENS, tokens, 68)                                                                                    \
    X(STARTED, started, 69)                                                                                  \
    X(TOKEN, token, 70)                                                                                      \
    X(STATS, stats, 71)                                                                                      \
    X(HIST, hist, 72)                                                                                        \
    X(MAP, map, 73)                                                                                          \
    X(PAGES, pages, 74)                                                                                      \
    X(DONE, done, 75)                                                                                        \
    X(FAILED, failed, 76)                                                                                    \
    X(NOTE, note, 77)                                                                                        \
    X(INFLUENCE, influence, 78)                                                                              \
    X(RESULT, result, 79)

typedef enum moa_wire_type {
#define X(NAME, name, number) MOA_WIRE_##NAME = number,
    MOA_WIRE_MAP(X)
#undef X
} moa_wire_type;

#define MOA_WIRE_C_u32 uint32_t
#define MOA_WIRE_C_i32 int32_t
#define MOA_WIRE_C_u64 uint64_t
#define MOA_WIRE_C_f32 float
#define MOA_WIRE_C_f64 double
#define MOA_WIRE_C_str moa_wire_str
#define MOA_WIRE_C_i32s moa_wire_i32s
#define MOA_WIRE_C_f32s moa_wire_f32s
#define MOA_WIRE_C_f64s moa_wire_f64s
#define MOA_WIRE_C_u8s moa_wire_u8s

/* struct moa_msg_load { ... }; and so on */
#define MOA_WIRE_FIELD(kind, field) MOA_WIRE_C_##kind field;
#define X(NAME, name, number)                                                                                \
    typedef struct moa_msg_##name {                                                                          \
        MOA_MSG_##NAME(MOA_WIRE_FIELD)                                                                       \
    } moa_msg_##name;
MOA_WIRE_MAP(X)
#undef X

/* A decoded frame: type says which member of the union is valid. */
typedef struct moa_wire_msg {
    moa_wire_type type;
    uint32_t job;
    union {
#define X(NAME, name, number) moa_msg_##name name;
        MOA_WIRE_MAP(X)
#undef X
    } u;
} moa_wire_msg;

/* Appends a whole frame to out. E_INVALID when it would be above MOA_WIRE_MAX, E_MEMORY. Nothing is appended on failure. */
moa_status moa_wire_encode(const moa_wire_msg *msg, moa_buf *out, moa_err *err);

/* Looks at the front of bytes: *frame_bytes = size of the first whole frame, 0 if it is not all there yet.
 * E_INVALID for a bad header (length, type, zero field). */
moa_status moa_wire_peek(const void *bytes, size_t n, size_t *frame_bytes, moa_err *err);

/* Decodes one whole frame (8-byte aligned memory). msg borrows from frame. */
moa_status moa_wire_decode(const void *frame, size_t frame_bytes, moa_wire_msg *msg, moa_err *err);

/* A stream in one direction: bytes in, frames out. Zero-initialise; moa_wire_reader_free. The buffer never grows beyond one
 * frame of MOA_WIRE_MAX and a read of 64 KiB. */
typedef struct moa_wire_reader {
    char *data; /* owned, 8-byte aligned */
    size_t size, start, capacity;
} moa_wire_reader;
/* read() once from fd; *closed at end of file. EAGAIN is MOA_OK with nothing new. */
moa_status moa_wire_fill(moa_wire_reader *r, int fd, bool *closed, moa_err *err);
/* The next frame, if whole: *got. msg borrows from the reader until the next fill or next. */
moa_status moa_wire_next(moa_wire_reader *r, moa_wire_msg *msg, bool *got, moa_err *err);
void moa_wire_reader_free(moa_wire_reader *r);

const char *moa_wire_name(moa_wire_type type); /* "SELECT_MAP", for messages and logs; "?" if unknown */

#endif
