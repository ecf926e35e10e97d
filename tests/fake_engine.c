/* fake_engine.c -- an engine process without a model: it speaks the wire, answers at once, and always the same.
 *
 *   moascope --engine "build/fake_engine --script F"        each line of F, and each other argument: KEY VALUE or KEY=VALUE
 *
 *   name TEXT | shape L H KV D VOCAB CTX | device TEXT | memory TOTAL FREE    what LOAD answers
 *   answer TEXT      what RUN says (\n as in C); repeated until n_gen, so that any length can be had; end N: the model ends after N tokens
 *   load_ms N, prefill_tok_s N, tok_s N    0: as fast as possible
 *   item_ms N        an item of a task; fail_item N, die_item N, odd_item N: the N-th fails, ends the process, is told with counts that lie
 *   stand_in X       heads half a layer apart stand in for one another: X nats times what both cut, which full attention's influence has not
 *   load_fail STATUS TEXT | fail_after N STATUS TEXT | die_after N SIGNAL | garbage_after N | hang_after N | exit_after N CODE
 *                    STATUS by name without MOA_ (E_MEMORY). N counts generated tokens; -1: in prefill
 *   deaf 1           after a run it closes its input but lives: the next request finds no reader
 *   welcome_version N
 *
 * Attention is invented but consistent: query i >= 64 gives the share s of its mass to the 64 sink keys, evenly, and the rest to the
 * keys behind it with weight exp(-distance / tau), cut to the span and normalised again. Statistics, histograms and maps are
 * the closed forms of that one law, so what a screen predicts from one can be checked against the other. */
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/size.h"
#include "core/engine/backend.h"
#include "core/engine/engine.h"
#include "core/engine/spans.h"
#include "core/engine/wire.h"

enum { BUCKETS = MOA_HIST_BUCKETS, CHUNK = 512, CELLS_MAX = 1 << 20, NEVER = -2, QUEUE_MAX = 16 };

typedef struct script {
    char name[256], device[256], answer[8192];
    int32_t n_layer, n_head, n_head_kv, d_head, n_vocab, n_ctx;
    uint64_t memory_total, memory_free;
    double load_ms, prefill_tok_s, tok_s, item_ms, stand_in;
    int32_t fail_item, die_item, odd_item;
    int32_t end, welcome_version, deaf;
    int32_t fail_after, die_after, garbage_after, hang_after, exit_after;
    int32_t die_signal, exit_code;
    moa_status fail_status, load_status;
    char fail_text[256], load_text[256];
} script;

typedef struct fake {
    script s;
    moa_wire_reader in;
    bool loaded, closed, quit, cancelled;
    uint32_t job;             /* running, 0: none */
    moa_buf queue[QUEUE_MAX]; /* frames of jobs that wait for it */
    int n_queue;
    /* the conversation: tokens as byte pieces; ids are a hash of the piece */
    moa_buf pieces;
    int32_t *ends, *ids, n_past, capacity;
    int32_t n_reserved;
    moa_rule *rules, *measure; /* (n_layer, n_head) */
    int32_t *spans;
    uint32_t watch;
    moa_msg_select_map map;
    uint32_t map_job;
    bool map_wanted;
    uint64_t peak_bytes;
    int32_t lost;
} fake;

static void die(const char *text) {
    (void)fprintf(stderr, "fake_engine: %s\n", text);
    exit(1);
}

static void *must(void *memory) {
    if (!memory) die("out of memory");
    return memory;
}

static double now_s(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- the script ---------------------------------------------------------------------------------------------------------- */

static moa_status status_by_name(const char *name) {
#define X(id, code, text)                                                                                    \
    if (strcmp(name, #id) == 0) return MOA_##id;
    MOA_STATUS_MAP(X)
#undef X
    die("unknown status in the script");
    return MOA_OK;
}

static void unescape(const char *from, char *to, size_t n) {
    size_t at = 0;
    for (; *from && at + 1 < n; from++)
        if (from[0] == '\\' && from[1] == 'n')
            to[at++] = '\n', from++;
        else if (from[0] == '\\' && from[1] == 'x' && from[2] && from[3]) {
            const char hex[3] = {from[2], from[3], 0};
            to[at++] = (char)strtol(hex, NULL, 16);
            from += 3;
        } else
            to[at++] = *from;
    to[at] = 0;
}

static void script_set(script *s, char *line) {
    char *value = line + strcspn(line, " =\n");
    if (*value) *value++ = 0;
    value[strcspn(value, "\n")] = 0;
    char word[64] = "";
    int used = 0;
    if (line[0] == 0 || line[0] == '#') return;
#define NUMBER(key)                                                                                          \
    if (strcmp(line, #key) == 0) {                                                                           \
        s->key = (__typeof__(s->key))strtod(value, NULL);                                                    \
        return;                                                                                              \
    }
    NUMBER(load_ms)
    NUMBER(prefill_tok_s)
    NUMBER(tok_s) NUMBER(end) NUMBER(welcome_version) NUMBER(garbage_after) NUMBER(hang_after) NUMBER(deaf)
        NUMBER(item_ms) NUMBER(stand_in) NUMBER(fail_item) NUMBER(die_item) NUMBER(odd_item)
#undef NUMBER
            if (strcmp(line, "name") == 0)(void) snprintf(s->name, sizeof s->name, "%.200s", value);
    else if (strcmp(line, "device") == 0)(void) snprintf(s->device, sizeof s->device, "%.200s", value);
    else if (strcmp(line, "answer") == 0) unescape(value, s->answer, sizeof s->answer);
    else if (strcmp(line, "memory") == 0) {
        unsigned long long total = 0, left = 0;
        if (sscanf(value, "%llu %llu", &total, &left) != 2) die("memory TOTAL FREE");
        s->memory_total = total, s->memory_free = left;
    }
    else if (strcmp(line, "shape") == 0) {
        if (sscanf(value, "%d %d %d %d %d %d", &s->n_layer, &s->n_head, &s->n_head_kv, &s->d_head,
                   &s->n_vocab, &s->n_ctx) != 6)
            die("shape L H KV D VOCAB CTX");
    }
    else if (strcmp(line, "load_fail") == 0) {
        if (sscanf(value, "%63s %n", word, &used) < 1) die("load_fail STATUS TEXT");
        s->load_status = status_by_name(word);
        (void)snprintf(s->load_text, sizeof s->load_text, "%.200s", value + used);
    }
    else if (strcmp(line, "fail_after") == 0) {
        if (sscanf(value, "%d %63s %n", &s->fail_after, word, &used) < 2) die("fail_after N STATUS TEXT");
        s->fail_status = status_by_name(word);
        (void)snprintf(s->fail_text, sizeof s->fail_text, "%.200s", value + used);
    }
    else if (strcmp(line, "die_after") == 0) {
        if (sscanf(value, "%d %d", &s->die_after, &s->die_signal) != 2) die("die_after N SIGNAL");
    }
    else if (strcmp(line, "exit_after") == 0) {
        if (sscanf(value, "%d %d", &s->exit_after, &s->exit_code) != 2) die("exit_after N CODE");
    }
    else {
        (void)fprintf(stderr, "fake_engine: unknown key %s\n", line);
        exit(1);
    }
}

static void script_load(script *s, int argc, char **argv) {
    *s = (script){.n_layer = 30,
                  .n_head = 9,
                  .n_head_kv = 3,
                  .d_head = 64,
                  .n_vocab = 49152,
                  .n_ctx = 8192,
                  .memory_total = 80ull << 30,
                  .memory_free = 78ull << 30,
                  .prefill_tok_s = 8000,
                  .tok_s = 100,
                  .fail_item = -1,
                  .die_item = -1,
                  .odd_item = -1,
                  .end = -1,
                  .welcome_version = MOA_WIRE_VERSION,
                  .fail_after = NEVER,
                  .die_after = NEVER,
                  .garbage_after = NEVER,
                  .hang_after = NEVER,
                  .exit_after = NEVER};
    (void)snprintf(s->name, sizeof s->name, "Fake 135M");
    (void)snprintf(s->device, sizeof s->device, "Fake GPU");
    (void)snprintf(s->answer, sizeof s->answer,
                   " The passkey is 71492, and it stood in the middle of the text: every head looks back "
                   "over its own span of"
                   " tokens, the first sixty-four are never dropped.\n");
    for (int i = 1; i < argc; i++) {
        char line[8192];
        if (strcmp(argv[i], "--script") != 0) {
            (void)snprintf(line, sizeof line, "%s", argv[i]);
            script_set(s, line);
            continue;
        }
        FILE *f = i + 1 < argc ? fopen(argv[++i], "re") : NULL;
        if (!f) die("--script: the file cannot be opened");
        while (fgets(line, sizeof line, f))
            script_set(s, line);
        (void)fclose(f);
    }
    if (s->n_layer < 1 || s->n_layer > 1024 || s->n_head < 1 || s->n_head > 1024 || s->n_head_kv < 1 ||
        s->n_head % s->n_head_kv != 0 || s->d_head < 1 || s->d_head > 4096 || s->n_vocab < 2 ||
        s->n_ctx < 1 || s->n_ctx > MOA_N_MAX)
        die("a shape nobody can have");
}

/* --- the wire ------------------------------------------------------------------------------------------------------------ */

static void write_all(const char *bytes, size_t n) {
    while (n > 0) {
        const ssize_t w = write(STDOUT_FILENO, bytes, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) exit(0); /* the screen has gone */
        bytes += w;
        n -= (size_t)w;
    }
}

static void send_msg(uint32_t job, moa_wire_msg *m) {
    moa_buf out = {0};
    moa_err err = {0};
    m->job = job;
    if (moa_wire_encode(m, &out, &err) != MOA_OK) die(err.text);
    write_all(out.data, out.size);
    moa_buf_free(&out);
}

static moa_wire_str str(const char *text) {
    return (moa_wire_str){text, (uint32_t)strlen(text)};
}

static void send_failed(uint32_t job, moa_status s, const char *text) {
    moa_wire_msg m = {.type = MOA_WIRE_FAILED, .u.failed = {.status = (int32_t)s, .text = str(text)}};
    send_msg(job, &m);
}

static void send_progress(const fake *f, uint32_t phase, double done, double total, double seconds) {
    moa_wire_msg m = {
        .type = MOA_WIRE_PROGRESS,
        .u.progress = {.phase = phase, .done = (uint64_t)done, .total = (uint64_t)total, .seconds = seconds}};
    send_msg(f->job, &m);
}

static void handle(fake *f, const moa_wire_msg *m);

/* Takes what has come in, waiting up to seconds for it (< 0: as long as it takes). */
static void pump(fake *f, double seconds) {
    const double until = now_s() + seconds;
    for (;;) {
        moa_wire_msg m;
        moa_err err = {0};
        bool got = false;
        if (moa_wire_next(&f->in, &m, &got, &err) != MOA_OK) die(err.text);
        if (got) {
            handle(f, &m);
            if (f->job == 0 || f->cancelled || f->quit) return;
            continue;
        }
        const double left = until - now_s();
        if (f->closed || (seconds >= 0 && left <= 0 && seconds > 0)) return;
        struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
        const int n = poll(&p, 1, seconds < 0 ? -1 : left > 0 ? (int)ceil(left * 1e3) : 0);
        if (n <= 0) {
            if (seconds >= 0) return;
            continue;
        }
        if (moa_wire_fill(&f->in, STDIN_FILENO, &f->closed, &err) != MOA_OK) die(err.text);
        if (f->closed) f->quit = f->cancelled = true;
    }
}

/* --- the law of attention -------------------------------------------------------------------------------------------------- */

typedef struct law {
    double sink, tau; /* share of the mass on the sink, decay of the rest in tokens */
} law;

static law law_of(const fake *f, int32_t layer, int32_t head) {
    uint32_t h = (uint32_t)layer * 2654435761u + (uint32_t)head * 40503u + 1;
    for (int k = 0; k < 2; k++)
        h = (h ^ h >> 16) * 0x45d9f3bu;
    const uint32_t kind = (h >> 13) % 10;
    const double u = (double)((h >> 3) % 997) / 997.0, depth = (double)layer / (double)f->s.n_layer;
    if (kind < 5) return (law){0.15 + 0.5 * u * depth, 12 + 90 * u}; /* local */
    if (kind < 8) return (law){0.55 + 0.35 * u, 200 + 600 * u};      /* sink */
    if (kind < 9) return (law){0.10 + 0.1 * u, 1500 + 3000 * u};     /* broad */
    return (law){0.05, 20000};                                       /* nearly even: retrieval */
}

static double geo(double tau, double from, double to) {
    return tau * (exp(-from / tau) - exp(-to / tau));
}

typedef struct view { /* one query of one head, normalised */
    law l;
    int32_t i, first;        /* keys [0, min(64,i+1)) and [first, i] are seen */
    double sink_mass, scale; /* mass of the sink keys together; factor of exp(-distance/tau) of the others */
} view;

static view view_of(law l, int32_t span, int32_t i) {
    view v = {.l = l, .i = i, .first = moa_window_first(span, i), .sink_mass = 1};
    if (i < MOA_SINK_TOK || v.first > i) return v;
    const double all = geo(l.tau, 0, i + 1 - MOA_SINK_TOK), kept = geo(l.tau, 0, i + 1 - v.first);
    const double rest = (1 - l.sink) * kept / all, total = l.sink + rest;
    v.sink_mass = l.sink / total;
    v.scale = rest / total / kept;
    return v;
}

/* mass of query v on keys [a, b) */
static double view_mass(const view *v, int32_t a, int32_t b) {
    const int32_t n_sink = v->i + 1 < MOA_SINK_TOK ? v->i + 1 : MOA_SINK_TOK;
    const int32_t s0 = a < n_sink ? a : n_sink, s1 = b < n_sink ? b : n_sink;
    double mass = v->sink_mass * (double)(s1 - s0) / n_sink;
    const int32_t w0 = a > v->first ? a : v->first, w1 = b < v->i + 1 ? b : v->i + 1;
    if (v->scale > 0 && w1 > w0) mass += v->scale * geo(v->l.tau, v->i + 1 - w1, v->i + 1 - w0);
    return mass;
}

static void view_stat(const view *v, int32_t measure_span, float stat[MOA_N_STAT]) {
    const int32_t n_sink = v->i + 1 < MOA_SINK_TOK ? v->i + 1 : MOA_SINK_TOK;
    const double m = 1 - v->sink_mass, tau = v->l.tau, n = v->i + 1 - v->first;
    const double mean = m > 0 ? tau - n * exp(-n / tau) / (1 - exp(-n / tau)) : 0;
    double entropy = v->sink_mass > 0 ? -v->sink_mass * log(v->sink_mass / n_sink) : 0;
    if (v->scale > 0) entropy += m * (mean / tau - log(v->scale));
    const int32_t first = moa_window_first(measure_span, v->i);
    stat[MOA_STAT_ENTROPY] = (float)(entropy > 0 ? entropy : 0);
    stat[MOA_STAT_SINK] = (float)v->sink_mass;
    stat[MOA_STAT_WINDOW] = v->i >= MOA_SINK_TOK ? (float)view_mass(v, first, v->i + 1) : 0;
    stat[MOA_STAT_DISTANCE] = (float)(v->sink_mass * (v->i - 0.5 * (n_sink - 1)) + m * mean);
    stat[MOA_STAT_LSE] = (float)(4 + 0.3 * log(v->i + 1.0));
}

/* --- snapshots ------------------------------------------------------------------------------------------------------------- */

static int32_t sample_query(int32_t q0, int32_t q1, int k, int n) {
    return q0 + (int32_t)((int64_t)(q1 - q0) * (2 * k + 1) / (2 * n));
}

static void send_stats(fake *f) {
    const int32_t cells = f->s.n_layer * f->s.n_head;
    float *x = must(calloc((size_t)cells * 5, sizeof *x));
    int32_t *worst = must(calloc((size_t)cells, sizeof *worst));
    for (int32_t c = 0; c < cells; c++) {
        const law l = law_of(f, c / f->s.n_head, c % f->s.n_head);
        x[4 * cells + c] = 2;
        worst[c] = -1;
        for (int k = 0; k < 16; k++) { /* the mean over queries by 16 of them */
            const int32_t i = sample_query(0, f->n_past, k, 16);
            float stat[MOA_N_STAT];
            const view v = view_of(l, f->spans[c], i);
            view_stat(&v, moa_span(f->measure[c], f->n_reserved), stat);
            for (int w = 0; w < 4; w++)
                x[w * cells + c] += stat[w] / 16;
            const float cover = stat[MOA_STAT_SINK] + stat[MOA_STAT_WINDOW];
            if (cover < x[4 * cells + c]) x[4 * cells + c] = cover, worst[c] = i;
        }
    }
    const uint32_t n = (uint32_t)cells;
    moa_wire_msg m = {.type = MOA_WIRE_STATS,
                      .u.stats = {.n_past = f->n_past,
                                  .n_layer = f->s.n_layer,
                                  .n_head = f->s.n_head,
                                  .n_query = (uint64_t)f->n_past,
                                  .n_seen = (uint64_t)f->n_past,
                                  .every = 1,
                                  .entropy = {x, n},
                                  .sink = {x + cells, n},
                                  .window = {x + 2 * cells, n},
                                  .distance = {x + 3 * cells, n},
                                  .worst_cover = {x + 4 * cells, n},
                                  .worst_query = {worst, n}}};
    send_msg(f->job, &m);
    free(x);
    free(worst);
}

static void send_hist(fake *f, int32_t layer) {
    const int32_t n_bin = (f->n_reserved + 63) / 64, bucket_tok = (f->n_reserved + BUCKETS - 1) / BUCKETS;
    const size_t row = 1 + (size_t)n_bin, n = (size_t)f->s.n_head * BUCKETS * row;
    float *hist = must(calloc(n, sizeof *hist));
    double queries[BUCKETS] = {0};
    for (int b = 0; b < BUCKETS; b++) {
        const int32_t q0 = b * bucket_tok,
                      q1 = b == BUCKETS - 1 || f->n_past < q0 + bucket_tok ? f->n_past : q0 + bucket_tok;
        if (q1 <= q0) continue;
        queries[b] = q1 - q0;
        for (int32_t h = 0; h < f->s.n_head; h++)
            for (int k = 0; k < 4; k++) {
                const view v = view_of(law_of(f, layer, h), f->spans[layer * f->s.n_head + h],
                                       sample_query(q0, q1, k, 4));
                float *at = hist + ((size_t)h * BUCKETS + (size_t)b) * row;
                const double weight = queries[b] / 4;
                at[0] += (float)(weight * v.sink_mass);
                for (int32_t d = 0; d < n_bin && v.i - 64 * d >= v.first && v.scale > 0; d++)
                    at[1 + d] += (float)(weight * v.scale *
                                         geo(v.l.tau, 64 * d, fmin(64 * d + 64, v.i + 1 - v.first)));
            }
    }
    moa_wire_msg m = {.type = MOA_WIRE_HIST,
                      .u.hist = {.n_past = f->n_past,
                                 .layer = layer,
                                 .n_head = f->s.n_head,
                                 .n_bin = n_bin,
                                 .bucket_tok = bucket_tok,
                                 .queries = {queries, BUCKETS},
                                 .hist = {hist, (uint32_t)n}}};
    send_msg(f->job, &m);
    free(hist);
}

static int32_t group_span(const fake *f, int32_t layer, int32_t kv) {
    const int32_t g = f->s.n_head / f->s.n_head_kv;
    int32_t widest = 0;
    for (int32_t h = 0; h < g; h++)
        if (f->spans[layer * f->s.n_head + kv * g + h] > widest)
            widest = f->spans[layer * f->s.n_head + kv * g + h];
    return widest;
}

static uint64_t page_bytes(const fake *f) {
    return (uint64_t)64 * 2 * 2 * (uint64_t)f->s.d_head;
}

static uint64_t kv_used(const fake *f) {
    uint64_t pages = 0;
    for (int32_t l = 0; l < f->s.n_layer; l++)
        for (int32_t k = 0; k < f->s.n_head_kv; k++)
            pages += (uint64_t)moa_n_pages(group_span(f, l, k), f->n_past);
    return pages * page_bytes(f);
}

static uint64_t kv_dense(const fake *f) {
    return (uint64_t)f->s.n_layer * (uint64_t)f->s.n_head_kv * (uint64_t)((f->n_past + 63) / 64) *
           page_bytes(f);
}

static void send_pages(fake *f) {
    const int32_t max_pages = (f->n_reserved + 63) / 64;
    const size_t n = (size_t)f->s.n_layer * (size_t)f->s.n_head_kv * (size_t)max_pages;
    uint8_t *held = must(calloc(n, 1));
    for (int32_t l = 0; l < f->s.n_layer; l++)
        for (int32_t k = 0; k < f->s.n_head_kv; k++)
            for (int32_t p = 0; p * 64 < f->n_past; p++)
                held[((size_t)l * (size_t)f->s.n_head_kv + (size_t)k) * (size_t)max_pages + (size_t)p] =
                    moa_keep(group_span(f, l, k), f->n_past, p);
    const uint64_t used = kv_used(f), pool = (uint64_t)n * page_bytes(f);
    if (used > f->peak_bytes) f->peak_bytes = used;
    moa_wire_msg m = {.type = MOA_WIRE_PAGES,
                      .u.pages = {.n_past = f->n_past,
                                  .n_reserved = f->n_reserved,
                                  .n_layer = f->s.n_layer,
                                  .n_head_kv = f->s.n_head_kv,
                                  .max_pages = max_pages,
                                  .page_bytes = page_bytes(f),
                                  .used_bytes = used,
                                  .peak_bytes = f->peak_bytes,
                                  .pool_bytes = pool,
                                  .formula_plan = used,
                                  .formula_dense = kv_dense(f),
                                  .formula_mha = kv_dense(f) * (uint64_t)(f->s.n_head / f->s.n_head_kv),
                                  .device_total_bytes = f->s.memory_total,
                                  .device_free_bytes = f->s.memory_free - used,
                                  .capture_bytes = 0,
                                  .lost = f->lost,
                                  .workspace_bytes = 64 << 20,
                                  .held = {held, (uint32_t)n}}};
    send_msg(f->job, &m);
    free(held);
}

static const char *map_check(const fake *f, moa_msg_select_map *r) {
    if (r->q1 == 0 || r->q1 > f->n_past) r->q1 = f->n_past;
    if (r->k1 == 0 || r->k1 > f->n_past) r->k1 = f->n_past;
    if (r->layer < 0 || r->layer >= f->s.n_layer || r->head < 0 || r->head >= f->s.n_head)
        return "no such layer or head";
    if (r->q0 < 0 || r->k0 < 0 || r->q0 >= r->q1 || r->k0 >= r->k1) return "an empty range";
    if (r->rows > r->q1 - r->q0) r->rows = r->q1 - r->q0;
    if (r->cols > r->k1 - r->k0) r->cols = r->k1 - r->k0;
    if (r->rows < 1 || r->cols < 1 || (int64_t)r->rows * r->cols > CELLS_MAX)
        return "too many cells, or none";
    return NULL;
}

static void send_map(fake *f) {
    moa_msg_select_map r = f->map;
    const char *wrong = map_check(f, &r);
    if (wrong) {
        send_failed(f->map_job, MOA_E_INVALID, wrong);
        f->map_wanted = false;
        return;
    }
    const size_t cells = (size_t)r.rows * (size_t)r.cols;
    float *mass = must(calloc(cells, sizeof *mass)), *max = must(calloc(cells, sizeof *max));
    float *stat = must(calloc((size_t)r.rows * MOA_N_STAT, sizeof *stat));
    const int32_t c = r.layer * f->s.n_head + r.head;
    const int32_t span = r.span > 0 ? r.span : f->spans[c];
    const int32_t measure = r.measure_span > 0 ? r.measure_span : moa_span(f->measure[c], f->n_reserved);
    for (int32_t row = 0; row < r.rows; row++) {
        const int32_t a = r.q0 + (int32_t)((int64_t)row * (r.q1 - r.q0) / r.rows);
        const int32_t b = r.q0 + (int32_t)((int64_t)(row + 1) * (r.q1 - r.q0) / r.rows);
        const int n = b - a < 8 ? b - a : 8;
        for (int k = 0; k < n; k++) {
            const view v = view_of(law_of(f, r.layer, r.head), span, sample_query(a, b, k, n));
            float s[MOA_N_STAT];
            view_stat(&v, measure, s);
            for (int w = 0; w < MOA_N_STAT; w++)
                stat[row * MOA_N_STAT + w] += s[w] / (float)n;
            for (int32_t col = 0; col < r.cols; col++) {
                const int32_t x = r.k0 + (int32_t)((int64_t)col * (r.k1 - r.k0) / r.cols);
                const int32_t y = r.k0 + (int32_t)((int64_t)(col + 1) * (r.k1 - r.k0) / r.cols);
                const double cell = view_mass(&v, x, y);
                mass[(size_t)row * (size_t)r.cols + (size_t)col] += (float)(cell * (b - a) / n);
                const float top = (float)(y > x ? cell / (y - x) : 0);
                if (top > max[(size_t)row * (size_t)r.cols + (size_t)col])
                    max[(size_t)row * (size_t)r.cols + (size_t)col] = top;
            }
        }
    }
    moa_wire_msg m = {.type = MOA_WIRE_MAP,
                      .u.map = {.layer = r.layer,
                                .head = r.head,
                                .span = span,
                                .measure_span = measure,
                                .q0 = r.q0,
                                .q1 = r.q1,
                                .k0 = r.k0,
                                .k1 = r.k1,
                                .rows = r.rows,
                                .cols = r.cols,
                                .n_past = f->n_past,
                                .mass = {mass, (uint32_t)cells},
                                .max = {max, (uint32_t)cells},
                                .stat = {stat, (uint32_t)(r.rows * MOA_N_STAT)}}};
    send_msg(f->map_job, &m);
    free(mass);
    free(max);
    free(stat);
}

static void send_snapshots(fake *f) {
    send_pages(f);
    if (f->watch & MOA_WATCH_STATS) {
        send_stats(f);
        for (int32_t l = 0; l < f->s.n_layer; l++)
            send_hist(f, l);
    }
    if (f->map_wanted && (f->watch & MOA_WATCH_CAPTURE)) {
        send_map(f);
        f->map_wanted = f->map_wanted && f->map.follow;
    }
}

/* --- tokens ------------------------------------------------------------------------------------------------------------------ */

/* a token: a leading space or newline and what follows up to the next one, 12 bytes at most */
static uint32_t piece_len(const char *text, uint32_t n) {
    uint32_t len = 1;
    while (len < n && len < 12 && text[len] != ' ' && text[len] != '\n')
        len++;
    return len;
}

static int32_t piece_id(const fake *f, const char *text, uint32_t n) {
    uint32_t h = 2166136261u;
    for (uint32_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)text[i]) * 16777619u;
    return (int32_t)(h % (uint32_t)f->s.n_vocab);
}

static void append_token(fake *f, const char *text, uint32_t n) {
    if (f->n_past == f->capacity) {
        f->capacity = f->capacity ? 2 * f->capacity : 1024;
        f->ends = must(realloc(f->ends, (size_t)f->capacity * sizeof *f->ends));
        f->ids = must(realloc(f->ids, (size_t)f->capacity * sizeof *f->ids));
    }
    moa_buf_append(&f->pieces, text, n);
    f->ids[f->n_past] = piece_id(f, text, n);
    f->ends[f->n_past++] = (int32_t)f->pieces.size;
}

static void append_text(fake *f, const char *text, uint32_t n) {
    for (uint32_t at = 0; at < n;) {
        const uint32_t len = piece_len(text + at, n - at);
        append_token(f, text + at, len);
        at += len;
    }
}

static void send_tokens(fake *f, uint32_t job, const moa_msg_tokenize *t) {
    fake whole = {.s = f->s};
    append_text(&whole, t->text.data, t->text.n);
    moa_wire_msg m = {.type = MOA_WIRE_TOKENS,
                      .u.tokens = {.ids = {whole.ids, (uint32_t)whole.n_past},
                                   .pieces = {(uint8_t *)whole.pieces.data, (uint32_t)whole.pieces.size},
                                   .ends = {whole.ends, (uint32_t)whole.n_past}}};
    send_msg(job, &m);
    moa_buf_free(&whole.pieces);
    free(whole.ids);
    free(whole.ends);
}

static void send_token(fake *f, int32_t index, const char *piece, uint32_t n, bool control, bool compared) {
    int32_t top_ids[8], top_ends[8];
    float top_logprobs[8];
    char top[64] = "";
    uint32_t used = 0;
    const uint32_t h = (uint32_t)index * 2654435761u;
    const float p = 0.35f + 0.6f * (float)((h >> 8) % 1000) / 1000.0f;
    for (int t = 0; t < 8; t++) {
        top_ids[t] = t == 0 ? piece_id(f, piece, n) : (int32_t)((h >> t) % (uint32_t)f->s.n_vocab);
        top_logprobs[t] = t == 0 ? logf(p) : logf((1 - p) / (float)(1 << t));
        if (t == 0)
            memcpy(top, piece, used = n);
        else
            used += (uint32_t)snprintf(top + used, sizeof top - used, " w%d", t);
        top_ends[t] = (int32_t)used;
    }
    const float kl =
        compared ? 0.002f + 0.4f * (float)((h >> 20) % 64 == 0) + 0.01f * (float)((h >> 12) % 7) : NAN;
    moa_wire_msg m = {.type = MOA_WIRE_TOKEN,
                      .u.token = {.index = index,
                                  .pos = f->n_past - 1,
                                  .id = top_ids[0],
                                  .piece = {(const uint8_t *)piece, n},
                                  .control = control,
                                  .logprob = logf(p),
                                  .entropy = 2.5f * (1 - p),
                                  .kl = kl,
                                  .top_ids = {top_ids, 8},
                                  .top_logprobs = {top_logprobs, 8},
                                  .top_pieces = {(uint8_t *)top, used},
                                  .top_ends = {top_ends, 8}}};
    send_msg(f->job, &m);
}

/* --- jobs -------------------------------------------------------------------------------------------------------------------- */

static void send_welcome(const fake *f, uint32_t job) {
    char devices[512];
    (void)snprintf(devices, sizeof devices, "cuda:0\t%.200s\t%llu\t%llu\ncpu\tFake CPU\t%llu\t%llu\n",
                   f->s.device, (unsigned long long)f->s.memory_total, (unsigned long long)f->s.memory_free,
                   16ull << 30, 8ull << 30);
    moa_wire_msg m = {.type = MOA_WIRE_WELCOME,
                      .u.welcome = {.version = (uint32_t)f->s.welcome_version,
                                    .program = str("fake_engine"),
                                    .devices = str(devices),
                                    .why = str("")}};
    send_msg(job, &m);
}

static void load(fake *f, const moa_msg_load *r) {
    const script *s = &f->s;
    const uint64_t d = (uint64_t)s->n_head * (uint64_t)s->d_head,
                   n_param = 12 * (uint64_t)s->n_layer * d * d + (uint64_t)s->n_vocab * d;
    char path[1024], device[64];
    (void)snprintf(path, sizeof path, "%.*s", (int)(r->path.n < 1000 ? r->path.n : 1000),
                   r->path.data ? r->path.data : "");
    (void)snprintf(device, sizeof device, "%.*s", (int)(r->device.n < 60 ? r->device.n : 60),
                   r->device.data ? r->device.data : "");
    f->loaded = false;
    const double start = now_s();
    for (int k = 0; k < 20 && s->load_ms > 0 && !f->cancelled; k++) {
        send_progress(f, 0, (double)n_param * k / 20, (double)n_param, now_s() - start);
        pump(f, s->load_ms / 20 / 1e3);
    }
    if (f->cancelled) {
        send_failed(f->job, MOA_E_CANCELLED, "loading was cancelled");
        return;
    }
    if (s->load_status != MOA_OK) {
        send_failed(f->job, s->load_status, s->load_text);
        return;
    }
    const bool cpu = strcmp(device, "cpu") == 0;
    moa_wire_msg m = {
        .type = MOA_WIRE_LOADED,
        .u.loaded = {.path = str(path),
                     .name = str(s->name),
                     .arch = str("llama"),
                     .quant = str("Q4_1"),
                     .fingerprint = str("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
                     .chat_template = str("chatml"),
                     .device = str(cpu ? "cpu" : "cuda:0"),
                     .device_why =
                         str(cpu ? "Fake CPU: as asked" : "cuda:0 (Fake GPU): the first usable GPU"),
                     .n_layer = s->n_layer,
                     .n_head = s->n_head,
                     .n_head_kv = s->n_head_kv,
                     .d_head = s->d_head,
                     .d_model = (int32_t)d,
                     .d_ff = (int32_t)(3 * d),
                     .n_vocab = s->n_vocab,
                     .n_ctx = s->n_ctx,
                     .kv_elem_bytes = 2,
                     .weight_bytes = n_param * 5 / 8,
                     .n_param = n_param,
                     .device_total_bytes = s->memory_total,
                     .device_free_bytes = s->memory_free}};
    f->loaded = true;
    f->n_past = 0;
    moa_buf_clear(&f->pieces);
    const size_t cells = (size_t)s->n_layer * (size_t)s->n_head;
    f->rules = must(realloc(f->rules, cells * sizeof *f->rules));
    f->measure = must(realloc(f->measure, cells * sizeof *f->measure));
    f->spans = must(realloc(f->spans, cells * sizeof *f->spans));
    send_msg(f->job, &m);
}

static bool take_rules(const fake *f, moa_wire_f64s a, moa_wire_f64s b, moa_rule *rules,
                       const moa_rule *otherwise) {
    const uint32_t cells = (uint32_t)(f->s.n_layer * f->s.n_head);
    if (a.n != b.n || (a.n != 0 && a.n != cells)) return false;
    for (uint32_t i = 0; i < cells; i++) {
        rules[i] = a.n ? (moa_rule){a.data[i], b.data[i]} : otherwise ? otherwise[i] : (moa_rule){0, 1};
        if (!isfinite(rules[i].alpha) || !isfinite(rules[i].beta)) return false;
    }
    return true;
}

static void send_done(fake *f, const char *stop, int32_t n_prompt, int32_t n_gen, double prefill_s,
                      double decode_s) {
    int32_t lo = INT32_MAX, hi = 0;
    double sum = 0;
    const int32_t cells = f->s.n_layer * f->s.n_head;
    for (int32_t c = 0; c < cells; c++) {
        if (f->spans[c] < lo) lo = f->spans[c];
        if (f->spans[c] > hi) hi = f->spans[c];
        sum += f->spans[c];
    }
    const uint64_t used = kv_used(f), dense = kv_dense(f);
    moa_wire_msg m = {.type = MOA_WIRE_DONE,
                      .u.done = {.stop = str(stop),
                                 .n_prompt = n_prompt,
                                 .n_gen = n_gen,
                                 .n_reserved = f->n_reserved,
                                 .prefill_s = prefill_s,
                                 .decode_s = decode_s,
                                 .ttft_s = prefill_s + 0.01,
                                 .kv_bytes = used,
                                 .kv_peak_bytes = f->peak_bytes,
                                 .kv_plan = used,
                                 .kv_dense = dense,
                                 .kv_mha = dense * (uint64_t)(f->s.n_head / f->s.n_head_kv),
                                 .kv_density = dense ? (double)used / (double)dense : 0,
                                 .span_min = lo,
                                 .span_mean = sum / cells,
                                 .span_max = hi,
                                 .device_bytes = 512 << 20}};
    send_msg(f->job, &m);
}

/* What the script does to a run at this token; true: the job is over. */
static bool inject(fake *f, int32_t index) {
    const script *s = &f->s;
    if (index == s->die_after) (void)raise(s->die_signal);
    if (index == s->exit_after) exit(s->exit_code);
    if (index == s->garbage_after)
        write_all("this is no frame at all, it is what a shell profile prints", 58);
    if (index == s->hang_after)
        for (;;)
            (void)pause();
    if (index == s->fail_after) send_failed(f->job, s->fail_status, s->fail_text);
    return index == s->fail_after;
}

static void run(fake *f, const moa_msg_run *borrowed) {
    const double start = now_s();
    if (borrowed->fresh) {
        f->n_past = 0;
        f->peak_bytes = 0;
        moa_buf_clear(&f->pieces);
    }
    if (!take_rules(f, borrowed->alphas, borrowed->betas, f->rules, NULL) ||
        !take_rules(f, borrowed->measure_alphas, borrowed->measure_betas, f->measure, f->rules)) {
        send_failed(f->job, MOA_E_INVALID, "the plan does not fit the model");
        return;
    }
    const int32_t before = f->n_past,
                  n_gen = borrowed->n_gen > (1u << 24) ? 1 << 24 : (int32_t)borrowed->n_gen;
    const bool compared = borrowed->against_reference != 0;
    const int32_t every = (int32_t)(borrowed->stats_every & 0xffffff);
    f->watch = borrowed->watch;
    if (borrowed->ids.n)
        for (uint32_t i = 0; i < borrowed->ids.n; i++) {
            char piece[16];
            append_token(f, piece, (uint32_t)snprintf(piece, sizeof piece, " %d", borrowed->ids.data[i]));
        }
    else
        append_text(f, borrowed->text.data, borrowed->text.n);
    /* the message's memory goes with the next pump: nothing of it is used below */
    const int32_t n_prompt = f->n_past - before;
    if (n_prompt < 1 || f->n_past + n_gen > f->s.n_ctx) {
        char text[128];
        (void)snprintf(text, sizeof text, "%d tokens and %d to generate do not fit the context of %d",
                       f->n_past, n_gen, f->s.n_ctx);
        f->n_past = before;
        send_failed(f->job, MOA_E_INVALID, text);
        return;
    }
    f->n_reserved = f->n_past + n_gen;
    const int32_t cells = f->s.n_layer * f->s.n_head;
    for (int32_t c = 0; c < cells; c++)
        f->spans[c] = moa_span(f->rules[c], f->n_reserved);
    moa_wire_msg m = {.type = MOA_WIRE_STARTED,
                      .u.started = {.ids = {f->ids, (uint32_t)f->n_past},
                                    .pieces = {(uint8_t *)f->pieces.data, (uint32_t)f->pieces.size},
                                    .ends = {f->ends, (uint32_t)f->n_past},
                                    .n_new = n_prompt,
                                    .n_reserved = f->n_reserved,
                                    .spans = {f->spans, (uint32_t)cells},
                                    .note = str("")}};
    send_msg(f->job, &m);
    if (inject(f, -1)) return;
    for (int32_t done = 0; done < n_prompt && !f->cancelled; done += CHUNK) {
        const int32_t n = n_prompt - done < CHUNK ? n_prompt - done : CHUNK;
        pump(f, f->s.prefill_tok_s > 0 ? n / f->s.prefill_tok_s : 0);
        send_progress(f, 1, done + n, n_prompt, now_s() - start);
    }
    const double prefill_s = now_s() - start;
    const char *stop = "length";
    const uint32_t n_answer = (uint32_t)strlen(f->s.answer);
    int32_t index = 0;
    if (!f->cancelled) send_snapshots(f);
    for (uint32_t at = 0; index < n_gen && !f->cancelled && n_answer > 0; index++) {
        /* before the pause: who sees N tokens and cancels has a hung engine, not one that listens until the next token is due */
        if (index == f->s.hang_after && inject(f, index)) return;
        pump(f, f->s.tok_s > 0 ? 1 / f->s.tok_s : 0);
        if (f->cancelled) break;
        if (inject(f, index)) return;
        const bool end = index == f->s.end;
        const uint32_t len = piece_len(f->s.answer + at, n_answer - at);
        if (end)
            append_token(f, "<|im_end|>", 10);
        else
            append_token(f, f->s.answer + at, len);
        send_token(f, index, end ? "<|im_end|>" : f->s.answer + at, end ? 10 : len, end, compared);
        at = (at + len) % n_answer;
        if (every > 0 && index > 0 && index % every == 0) send_snapshots(f);
        if (end) {
            stop = "end";
            index++;
            break;
        }
    }
    if (f->cancelled) stop = "cancelled";
    if (f->closed) return;
    send_snapshots(f);
    if (f->s.deaf) (void)close(STDIN_FILENO);
    send_done(f, stop, n_prompt, index, prefill_s, now_s() - start - prefill_s);
    while (f->s.deaf)
        (void)pause();
}

/* --- tasks of the search: influence follows from the same law ---------------------------------------------------------------- */

/* what a head's mass is worth, nats; one head in five is worth much */
static double worth(int32_t layer, int32_t head) {
    const uint32_t h = (uint32_t)(layer * 31 + head * 17) * 2654435761u;
    return (h >> 8) % 5 == 0 ? 0.2 : 0.004 + 0.01 * (double)((h >> 16) % 7) / 7;
}

/* mean mass of the queries of n_tok tokens that a window of w blocks cuts */
static double cut_mass(law l, int32_t n_tok, int32_t w) {
    double sum = 0;
    for (int k = 0; k < 8; k++) {
        const int32_t i = sample_query(0, n_tok, k, 8);
        const view dense = view_of(l, MOA_N_MAX, i);
        const int32_t first = (i / MOA_PAGE_TOK - w + 1) * MOA_PAGE_TOK;
        if (first > MOA_SINK_TOK) sum += view_mass(&dense, MOA_SINK_TOK, first) / 8;
    }
    return sum;
}

/* of a head under rules; NULL: full attention */
static double cut_under(const fake *f, const moa_rule *rules, int32_t layer, int32_t head, int32_t n_tok) {
    return rules ? cut_mass(law_of(f, layer, head), n_tok, moa_window(moa_span(rules[layer * f->s.n_head + head], n_tok)) / MOA_PAGE_TOK) : 0;
}

static int32_t twin(const fake *f, int32_t head) {
    return (head + f->s.n_head / 2) % f->s.n_head;
}

static double plan_loss(const fake *f, const moa_rule *rules, int32_t n_tok) {
    double sum = 0;
    for (int32_t c = 0; c < f->s.n_layer * f->s.n_head; c++) {
        const int32_t layer = c / f->s.n_head, head = c % f->s.n_head;
        const double cut = cut_under(f, rules, layer, head, n_tok);
        sum += worth(layer, head) * cut;
        if (f->s.stand_in > 0) sum += f->s.stand_in / 2 * cut * cut_under(f, rules, layer, twin(f, head), n_tok); /* a pair is met twice */
    }
    return sum;
}

/* under a plan the curves alone, of the loss that its other heads leave */
static void send_influence(fake *f, int32_t n_tok, int32_t n_item, const moa_rule *plan) {
    const int32_t nb = (n_tok + MOA_PAGE_TOK - 1) / MOA_PAGE_TOK, n_head = f->s.n_head;
    const size_t map = (size_t)n_head * (size_t)nb * (size_t)nb, curve = (size_t)n_head * (size_t)(nb + 1);
    float *abs_of = must(calloc(map, sizeof *abs_of)), *sum = must(calloc(map, sizeof *sum)),
          *joint = must(calloc(curve, sizeof *joint));
    for (int32_t layer = 0; layer < f->s.n_layer; layer++) {
        for (int32_t h = 0; h < n_head; h++) {
            const law l = law_of(f, layer, h);
            const double value = worth(layer, h) + f->s.stand_in * cut_under(f, plan, layer, twin(f, h), n_tok);
            for (int32_t w = 1; w <= nb; w++)
                joint[(size_t)h * (size_t)(nb + 1) + (size_t)w] =
                    (float)(value * (cut_mass(l, n_tok, w) - cut_under(f, plan, layer, h, n_tok)));
            for (int32_t q = 0; q < nb; q++)
                for (int32_t k = 0; k <= q; k++) {
                    const view v = view_of(l, MOA_N_MAX, q * MOA_PAGE_TOK + 32);
                    const float e = (float)(worth(layer, h) *
                                            view_mass(&v, k * MOA_PAGE_TOK, (k + 1) * MOA_PAGE_TOK) / nb);
                    abs_of[((size_t)h * (size_t)nb + (size_t)q) * (size_t)nb + (size_t)k] = e;
                    sum[((size_t)h * (size_t)nb + (size_t)q) * (size_t)nb + (size_t)k] =
                        (q + k) % 3 == 0 ? -e : e;
                }
        }
        moa_wire_msg m = {.type = MOA_WIRE_INFLUENCE,
                          .u.influence = {.n_tok = n_tok,
                                          .nb = nb,
                                          .layer = layer,
                                          .n_head = n_head,
                                          .n_item = n_item,
                                          .n_supervised = 20 * (uint64_t)n_item,
                                          .loss = 2,
                                          .abs = {abs_of, plan ? 0 : (uint32_t)map},
                                          .sum = {sum, plan ? 0 : (uint32_t)map},
                                          .joint = {joint, (uint32_t)curve}}};
        send_msg(f->job, &m);
    }
    free(abs_of), free(sum), free(joint);
}

typedef struct job_work {
    uint32_t kind;
    int32_t lengths[MOA_WIRE_LENGTHS_MAX], n_length, n_plan, n_item;
    int32_t n[MOA_WIRE_PLANS_MAX * MOA_WIRE_LENGTHS_MAX], right[MOA_WIRE_PLANS_MAX * MOA_WIRE_LENGTHS_MAX];
    double loss[MOA_WIRE_PLANS_MAX * MOA_WIRE_LENGTHS_MAX], start;
    moa_rule *rules;
} job_work;

static void send_result(fake *f, const job_work *w, moa_wire_result state, bool lie) {
    const uint32_t n = (uint32_t)(w->n_plan * w->n_length);
    moa_wire_msg m = {.type = MOA_WIRE_RESULT,
                      .u.result = {.kind = w->kind,
                                   .state = state,
                                   .lengths = {w->lengths, (uint32_t)w->n_length},
                                   .n_plan = w->n_plan,
                                   .n_want = w->n_item,
                                   .n = {w->n, lie ? n - 1 : n},
                                   .right = {w->right, n},
                                   .loss = {w->loss, n},
                                   .seconds = now_s() - w->start,
                                   .note = str("")}};
    send_msg(f->job, &m);
}

/* item i of a length under every plan */
static void work_item(const fake *f, job_work *w, int32_t l, int32_t i) {
    const size_t cells = (size_t)f->s.n_layer * (size_t)f->s.n_head;
    for (int32_t p = 0; p < w->n_plan; p++) {
        const int32_t c = p * w->n_length + l;
        const double loss = w->rules ? plan_loss(f, w->rules + (size_t)p * cells, w->lengths[l]) : 0;
        w->n[c]++;
        w->loss[c] = w->kind == MOA_WIRE_PROFILE || w->kind == MOA_WIRE_VALIDATE ? 2 + loss : (double)NAN;
        w->right[c] += w->kind == MOA_WIRE_CALIBRATE
                           ? i % 2 == 0
                           : w->kind == MOA_WIRE_EVAL && (i * 7 + 3) % 10 >= 8 * loss;
    }
}

static void task(fake *f, const moa_msg_task *t) {
    job_work *w = must(calloc(1, sizeof *w));
    const size_t cells = (size_t)f->s.n_layer * (size_t)f->s.n_head;
    *w = (job_work){.kind = t->kind,
                    .n_length = (int32_t)t->lengths.n,
                    .n_plan = t->kind < MOA_WIRE_VALIDATE ? 1 : t->n_plan,
                    .n_item = t->n_item,
                    .start = now_s()};
    if (w->n_length < 1 || w->n_length > MOA_WIRE_LENGTHS_MAX || w->n_plan < 1 ||
        w->n_plan > MOA_WIRE_PLANS_MAX ||
        ((t->kind >= MOA_WIRE_VALIDATE || t->alphas.n > 0) &&
         (t->alphas.n != cells * (size_t)w->n_plan || t->betas.n != t->alphas.n))) {
        send_failed(f->job, MOA_E_INVALID, "the task does not fit the model");
        free(w);
        return;
    }
    memcpy(w->lengths, t->lengths.data, (size_t)w->n_length * sizeof *w->lengths);
    w->rules = t->alphas.n ? must(malloc(t->alphas.n * sizeof *w->rules)) : NULL;
    for (uint32_t i = 0; i < t->alphas.n; i++)
        w->rules[i] = (moa_rule){t->alphas.data[i], t->betas.data[i]};
    /* the message's memory goes with the next pump: nothing of it is used below */
    bool failed = false;
    for (int32_t l = 0, done = 0; l < w->n_length && !f->cancelled && !failed; l++) {
        for (int32_t i = 0; i < w->n_item && !f->cancelled && !failed; i++, done++) {
            pump(f, f->s.item_ms / 1e3);
            if (f->cancelled) break;
            if (done == f->s.die_item) (void)raise(SIGKILL);
            failed = done == f->s.fail_item;
            if (failed) break;
            work_item(f, w, l, i);
            send_progress(f, 2 + w->kind, done + 1, w->n_length * w->n_item, now_s() - w->start);
            send_result(f, w, MOA_WIRE_GOES_ON, done == f->s.odd_item);
        }
        if (w->kind == MOA_WIRE_PROFILE && w->n[l] > 0 && !failed) send_influence(f, w->lengths[l], w->n[l], w->rules);
    }
    if (failed)
        send_failed(f->job, MOA_E_FAILED, "the item went wrong");
    else if (!f->closed)
        send_result(f, w, f->cancelled ? MOA_WIRE_CANCELLED : MOA_WIRE_FINISHED, false);
    free(w->rules);
    free(w);
}

static void handle(fake *f, const moa_wire_msg *m) {
    const bool work = m->type == MOA_WIRE_LOAD || m->type == MOA_WIRE_RUN || m->type == MOA_WIRE_TASK;
    switch (m->type) {
    case MOA_WIRE_HELLO: send_welcome(f, m->job); return;
    case MOA_WIRE_QUIT: f->quit = f->cancelled = true; return;
    case MOA_WIRE_CANCEL: f->cancelled = f->job != 0; return;
    case MOA_WIRE_TOKENIZE: send_tokens(f, m->job, &m->u.tokenize); return;
    case MOA_WIRE_SELECT_MAP:
        f->map = m->u.select_map;
        f->map_job = m->job;
        f->map_wanted = true;
        if (f->loaded && f->n_past > 0 && f->spans && (f->watch & MOA_WATCH_CAPTURE)) {
            send_map(f);
            f->map_wanted = f->map_wanted && f->map.follow;
        }
        return;
    default: break;
    }
    if (work && f->job != 0) {
        moa_err err = {0};
        if (f->n_queue == QUEUE_MAX)
            send_failed(m->job, MOA_E_USAGE, "16 jobs are waiting already");
        else if (moa_wire_encode(m, &f->queue[f->n_queue++], &err) != MOA_OK)
            die(err.text);
        return;
    }
    if (!work) {
        send_failed(m->job, MOA_E_INVALID, "an engine does not take this message");
        return;
    }
    f->job = m->job ? m->job : 1;
    f->cancelled = false;
    if (m->type == MOA_WIRE_LOAD)
        load(f, &m->u.load);
    else if (!f->loaded)
        send_failed(f->job, MOA_E_USAGE, "no model is loaded");
    else if (m->type == MOA_WIRE_TASK)
        task(f, &m->u.task);
    else
        run(f, &m->u.run);
    f->job = 0;
}

int main(int argc, char **argv) {
    static fake f;
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGPIPE, SIG_IGN);
    script_load(&f.s, argc, argv);
    while (!f.quit) {
        if (f.n_queue == 0) {
            pump(&f, -1);
            continue;
        }
        moa_buf frame = f.queue[0];
        moa_wire_msg m;
        moa_err err = {0};
        memmove(f.queue, f.queue + 1, sizeof *f.queue * (size_t)--f.n_queue);
        f.queue[f.n_queue] = (moa_buf){0};
        if (moa_wire_decode(frame.data, frame.size, &m, &err) != MOA_OK) die(err.text);
        handle(&f, &m);
        moa_buf_free(&frame);
    }
    moa_wire_reader_free(&f.in);
    moa_buf_free(&f.pieces);
    free(f.ends), free(f.ids), free(f.rules), free(f.measure), free(f.spans);
    return 0;
}
