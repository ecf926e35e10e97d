#include "core/engine/serve_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/size.h"
#include "core/model/chat.h"
#include "version.h"

enum { OUT_MAX = 64 << 20, OUT_COMPACT = 1 << 20, DEVICES_MAX = 64 << 10, WELCOME_WAIT_MS = 30 };

double moa_serve_now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool moa_ids_append(moa_ids *ids, const int32_t *more, size_t n) {
    if (n > (size_t)(INT32_MAX - ids->n)) return false;
    const int32_t need = ids->n + (int32_t)n;
    if (need > ids->capacity) {
        const int32_t capacity = need > INT32_MAX / 2 ? INT32_MAX : 2 * need;
        int32_t *data = realloc(ids->data, (size_t)capacity * sizeof *data);
        if (!data) return false;
        ids->data = data;
        ids->capacity = capacity;
    }
    if (n) memcpy(ids->data + ids->n, more, n * sizeof *more);
    ids->n = need;
    return true;
}

/* --- out ---------------------------------------------------------------------------------------------------------------- */

static void leave(moa_serve_state *sv, moa_status s, const moa_err *err) {
    sv->closed = true;
    if (sv->closed_status != MOA_OK || s == MOA_OK) return;
    sv->closed_status = s;
    if (err) sv->closed_err = *err;
}

size_t moa_serve_waiting(const moa_serve_state *sv) {
    return sv->out.size - sv->out_at;
}

static void write_some(moa_serve_state *sv) {
    while (moa_serve_waiting(sv) > 0) {
        const ssize_t n = write(sv->config.out_fd, sv->out.data + sv->out_at, moa_serve_waiting(sv));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
        if (n <= 0) { /* nobody reads any more: nothing is left to be said */
            sv->out_at = sv->out.size;
            leave(sv, MOA_OK, NULL);
            break;
        }
        sv->out_at += (size_t)n;
    }
    if (sv->out_at == sv->out.size) {
        moa_buf_clear(&sv->out);
        sv->out_at = 0;
    } else if (sv->out_at >= OUT_COMPACT) {
        memmove(sv->out.data, sv->out.data + sv->out_at, moa_serve_waiting(sv));
        sv->out.size -= sv->out_at;
        sv->out_at = 0;
    }
}

void moa_serve_send(moa_serve_state *sv, uint32_t job, moa_wire_msg *m) {
    moa_err err = {0};
    m->job = job;
    const moa_status s = moa_wire_encode(m, &sv->out, &err);
    if (s == MOA_E_MEMORY) leave(sv, s, &err);
    if (s == MOA_E_INVALID && m->type != MOA_WIRE_NOTE) { /* larger than a message can be: say so instead */
        moa_wire_msg note = {.type = MOA_WIRE_NOTE, .u.note = {.text = moa_serve_str(err.text)}};
        moa_serve_send(sv, job, &note);
    }
    write_some(sv);
    if (moa_serve_waiting(sv) > OUT_MAX) moa_serve_drain(sv, OUT_MAX / 2);
}

void moa_serve_fail(moa_serve_state *sv, uint32_t job, moa_status s, const moa_err *err) {
    const char *text = err && err->text[0] ? err->text : moa_status_text(s);
    moa_wire_msg m = {.type = MOA_WIRE_FAILED,
                      .u.failed = {.status = (int32_t)s, .text = moa_serve_str(text)}};
    moa_serve_send(sv, job, &m);
}

static void fail_text(moa_serve_state *sv, uint32_t job, moa_status s, const char *text) {
    moa_err err;
    (void)moa_fail(&err, s, "%s", text);
    moa_serve_fail(sv, job, s, &err);
}

/* --- devices -------------------------------------------------------------------------------------------------------------- */

static void device_line(moa_buf *out, const char *label, const moa_device_info *info) {
    moa_buf_printf(out, "%s\t", label);
    for (const char *c = info->name; *c; c++)
        moa_buf_append(out, *c == '\t' || *c == '\n' ? " " : c, 1);
    moa_buf_printf(out, "\t%llu\t%llu\n", (unsigned long long)info->memory_bytes,
                   (unsigned long long)info->free_bytes);
}

static void cpu_line(moa_buf *out) {
    const moa_backend_config config = {0};
    moa_device_info info = {0};
    moa_backend *cpu = NULL;
    if (moa_cpu_open(&cpu, &config, NULL) == MOA_OK) (void)cpu->vt->info(cpu, &info, NULL);
    moa_backend_close(&cpu);
    device_line(out, "cpu", &info);
}

void moa_serve_devices(moa_buf *out) {
    moa_err why = {0};
    const moa_backend_module *module = moa_cuda_module(&why);
    const int32_t n = module ? module->n_devices(&why) : 0;
    for (int32_t d = 0; d < n; d++) {
        moa_device_info info = {0};
        char label[32];
        (void)snprintf(label, sizeof label, "cuda:%d", d);
        if (module->device_info(d, &info, &why) == MOA_OK) device_line(out, label, &info);
    }
    cpu_line(out);
    if (n <= 0) moa_buf_printf(out, "why\t%s\n", why.text[0] ? why.text : "no GPU is visible");
}

/* sv->devices as WELCOME: the "why" line apart */
static void send_welcome(moa_serve_state *sv) {
    const char *text = sv->devices.data ? sv->devices.data : "", *why = strstr(text, "why\t");
    if (why && why != text && why[-1] != '\n') why = NULL;
    moa_wire_msg m = {
        .type = MOA_WIRE_WELCOME,
        .u.welcome = {.version = MOA_WIRE_VERSION, .program = moa_serve_str("moascope " MOA_VERSION)}};
    m.u.welcome.devices = (moa_wire_str){text, (uint32_t)(why ? (size_t)(why - text) : strlen(text))};
    if (why) m.u.welcome.why = (moa_wire_str){why + 4, (uint32_t)strcspn(why + 4, "\n")};
    moa_serve_send(sv, sv->hello_job, &m);
}

static void devices_end(moa_serve_state *sv) {
    if (sv->devices_pid > 0) {
        (void)kill(sv->devices_pid, SIGKILL); /* it may hang in a driver; it holds nothing of ours */
        (void)waitpid(sv->devices_pid, NULL, 0);
        (void)close(sv->devices_fd);
    }
    sv->devices_pid = 0;
    sv->devices_fd = -1;
}

static bool devices_begin(moa_serve_state *sv) {
    extern char **environ;
    int fds[2];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t restored;
    if (!sv->config.devices_command || pipe2(fds, O_CLOEXEC) != 0) return false;
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    (void)posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO);
    (void)posix_spawnattr_init(&attributes); /* ends without a word when we are gone */
    (void)sigemptyset(&restored);
    (void)sigaddset(&restored, SIGPIPE);
    (void)posix_spawnattr_setsigdefault(&attributes, &restored);
    (void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    const int failed = posix_spawn(&sv->devices_pid, sv->config.devices_command[0], &actions, &attributes,
                                   (char *const *)(uintptr_t)sv->config.devices_command, environ);
    (void)posix_spawn_file_actions_destroy(&actions);
    (void)posix_spawnattr_destroy(&attributes);
    (void)close(fds[1]);
    sv->devices_fd = fds[0];
    if (!failed) return true;
    (void)close(fds[0]);
    sv->devices_pid = 0;
    sv->devices_fd = -1;
    return false;
}

/* More of the child's answer; at its end the WELCOME that counts. */
static void devices_read(moa_serve_state *sv) {
    char chunk[4096];
    const ssize_t n = read(sv->devices_fd, chunk, sizeof chunk);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n > 0 && sv->devices.size + (size_t)n <= DEVICES_MAX) {
        moa_buf_append(&sv->devices, chunk, (size_t)n);
        return;
    }
    devices_end(sv);
    if (sv->devices.size == 0) {
        cpu_line(&sv->devices);
        moa_buf_str(&sv->devices, "why\tlooking for GPUs failed\n");
    }
    send_welcome(sv);
}

static void hello(moa_serve_state *sv, uint32_t job, const moa_msg_hello *h) {
    char text[128];
    if (h->version != MOA_WIRE_VERSION) {
        (void)snprintf(text, sizeof text, "the screen speaks version %u of the wire, this engine version %d",
                       h->version, MOA_WIRE_VERSION);
        fail_text(sv, job, MOA_E_UNSUPPORTED, text);
        leave(sv, MOA_OK, NULL);
        return;
    }
    sv->hello_job = job;
    sv->greeted = true;
    devices_end(sv);
    moa_buf_clear(&sv->devices);
    if (!devices_begin(sv)) {
        moa_serve_devices(&sv->devices);
        send_welcome(sv);
        return;
    }
    /* without a GPU driver the answer is there in milliseconds: then there is one WELCOME */
    const double until = moa_serve_now() + WELCOME_WAIT_MS / 1e3;
    while (sv->devices_pid > 0 && moa_serve_now() < until) {
        struct pollfd p = {.fd = sv->devices_fd, .events = POLLIN};
        if (poll(&p, 1, 5) > 0) devices_read(sv);
    }
    if (sv->devices_pid == 0) return;
    moa_buf known = sv->devices; /* what came so far is kept for the second one */
    sv->devices = (moa_buf){0};
    cpu_line(&sv->devices);
    moa_buf_str(&sv->devices, "why\tlooking for GPUs\n");
    send_welcome(sv);
    moa_buf_free(&sv->devices);
    sv->devices = known;
}

/* --- in ------------------------------------------------------------------------------------------------------------------- */

static void cancel(moa_serve_state *sv, uint32_t job) {
    for (int i = 0; i < sv->n_queue; i++)
        if (job != 0 && sv->queue_job[i] == job) {
            moa_buf_free(&sv->queue[i]);
            sv->n_queue--;
            memmove(&sv->queue[i], &sv->queue[i + 1], (size_t)(sv->n_queue - i) * sizeof *sv->queue);
            memmove(&sv->queue_job[i], &sv->queue_job[i + 1],
                    (size_t)(sv->n_queue - i) * sizeof *sv->queue_job);
            sv->queue[sv->n_queue] = (moa_buf){0};
            moa_serve_fail(sv, job, MOA_E_CANCELLED, NULL);
            return;
        }
    if (sv->busy && (job == 0 || job >= sv->job)) sv->cancelled = true;
}

static void enqueue(moa_serve_state *sv, const moa_wire_msg *m) {
    moa_err err = {0};
    moa_status s = MOA_E_USAGE;
    if (sv->n_queue == MOA_SERVE_QUEUE)
        (void)moa_fail(&err, s, "%d jobs are waiting already", MOA_SERVE_QUEUE);
    else
        s = moa_wire_encode(m, &sv->queue[sv->n_queue], &err);
    if (s != MOA_OK)
        moa_serve_fail(sv, m->job, s, &err);
    else
        sv->queue_job[sv->n_queue++] = m->job;
}

static void take(moa_serve_state *sv, const moa_wire_msg *m) {
    if (!sv->greeted && m->type != MOA_WIRE_HELLO && m->type != MOA_WIRE_QUIT) {
        fail_text(sv, m->job, MOA_E_INVALID, "the first message must be HELLO");
        return;
    }
    switch (m->type) {
    case MOA_WIRE_HELLO: hello(sv, m->job, &m->u.hello); break;
    case MOA_WIRE_LOAD:
    case MOA_WIRE_TASK:
    case MOA_WIRE_RUN: enqueue(sv, m); break;
    case MOA_WIRE_CANCEL: cancel(sv, m->job); break;
    case MOA_WIRE_QUIT:
        sv->cancelled = true;
        leave(sv, MOA_OK, NULL);
        break;
    case MOA_WIRE_TOKENIZE: moa_serve_tokenize(sv, m->job, &m->u.tokenize); break;
    case MOA_WIRE_SELECT_MAP:
        sv->map = m->u.select_map;
        sv->map_job = m->job;
        sv->map_now = true;
        sv->map_follow = m->u.select_map.follow != 0;
        break;
    default: fail_text(sv, m->job, MOA_E_INVALID, "an engine does not take this message"); break;
    }
}

/* Reads and writes what can be, after waiting up to wait_ms (-1: without end) for something. */
static void pump(moa_serve_state *sv, int wait_ms) {
    struct pollfd fds[3] = {{.fd = sv->closed ? -1 : sv->config.in_fd, .events = POLLIN},
                            {.fd = moa_serve_waiting(sv) ? sv->config.out_fd : -1, .events = POLLOUT},
                            {.fd = sv->devices_pid > 0 ? sv->devices_fd : -1, .events = POLLIN}};
    if (poll(fds, 3, wait_ms) <= 0) return;
    if (fds[1].revents) write_some(sv);
    if (fds[2].revents) devices_read(sv);
    if (!fds[0].revents) return;
    moa_err err = {0};
    moa_wire_msg m;
    bool end = false, got = true;
    moa_status s = moa_wire_fill(&sv->in, sv->config.in_fd, &end, &err);
    while (s == MOA_OK && got && !sv->closed) {
        s = moa_wire_next(&sv->in, &m, &got, &err);
        if (s == MOA_OK && got) take(sv, &m);
    }
    if (s != MOA_OK) {
        moa_serve_fail(sv, 0, s, &err);
        leave(sv, s, &err);
    }
    if (end) leave(sv, MOA_OK, NULL);
    if (sv->closed) sv->cancelled = true;
}

bool moa_serve_cancelled(void *state) {
    moa_serve_state *sv = state;
    pump(sv, 0);
    return sv->cancelled;
}

void moa_serve_drain(moa_serve_state *sv, size_t bytes) {
    while (moa_serve_waiting(sv) > bytes && !sv->closed)
        pump(sv, -1);
}

/* --- loading ---------------------------------------------------------------------------------------------------------------- */

static void unload(moa_serve_state *sv) {
    moa_serve_forget(sv);
    moa_serve_items_close(&sv->items);
    moa_seq_close(&sv->seq);
    moa_engine_close(&sv->engine);
    moa_model_close(&sv->model);
}

/* a CPU: reading the file is the first half, what the engine makes of the weights the second. A GPU's engine reads them itself. */
static bool load_progress(void *user, uint64_t done, uint64_t total) {
    moa_serve_state *sv = user;
    const double now = moa_serve_now();
    if (now - sv->phase_told >= 0.05 || done == total) {
        sv->phase_told = now;
        moa_wire_msg m = {.type = MOA_WIRE_PROGRESS,
                          .u.progress = {.done = sv->load_whole ? done : done / 2 + (sv->load_stage ? total / 2 : 0),
                                         .total = total,
                                         .seconds = now - sv->phase_start}};
        moa_serve_send(sv, sv->job, &m);
    }
    return !moa_serve_cancelled(sv);
}

/* a string of the wire as one of C; false: too long, or a NUL in it */
static bool copy_text(moa_wire_str from, char *to, size_t bytes) {
    if (from.n >= bytes || (from.n && memchr(from.data, 0, from.n))) return false;
    if (from.n) memcpy(to, from.data, from.n);
    to[from.n] = 0;
    return true;
}

static moa_status load_model(moa_serve_state *sv, const moa_msg_load *r, moa_err *err) {
    moa_status s = MOA_OK;
    char name[PATH_MAX], path[PATH_MAX], device[32], kv[8];
    moa_backend *backend = NULL;
    if (!copy_text(r->path, name, sizeof name) || !name[0])
        return moa_fail(err, MOA_E_USAGE, "the path of the model is empty or too long");
    if (!copy_text(r->device, device, sizeof device))
        return moa_fail(err, MOA_E_USAGE, "the name of the device is too long");
    moa_kv_type kv_type = MOA_KV_F16;
    if (!copy_text(r->kv_type, kv, sizeof kv) || (kv[0] && !moa_kv_type_find(kv, &kv_type)))
        return moa_fail(err, MOA_E_USAGE, "the type of K and V must be " MOA_KV_TYPE_NAMES);
    if (r->n_threads > 1024) return moa_fail(err, MOA_E_USAGE, "%u threads; at most 1024", r->n_threads);
    const moa_backend_config backend_config = {.n_threads = (int32_t)r->n_threads,
                                               .reference = r->reference != 0};
    const moa_engine_config config = {.kv_type = kv_type, .capture_limit_bytes = r->capture_limit_bytes};
    MOA_TRY(moa_model_find(name, path, sizeof path, err));
    sv->load_stage = 0;
    MOA_TRY(moa_model_open_lazy(&sv->model, path, err));
    MOA_TRY(moa_backend_open(&backend, device[0] ? device : "auto", &backend_config, sv->device_why,
                             sizeof sv->device_why, err));
    (void)snprintf(sv->device, sizeof sv->device, "%.*s",
                   strncmp(sv->device_why, "cuda:", 5) == 0 ? (int)strcspn(sv->device_why, " ") : 31,
                   strncmp(sv->device_why, "cuda:", 5) == 0 ? sv->device_why : backend->vt->name);
    sv->load_whole = backend->vt->reads_files;
    if (!sv->load_whole) MOA_TRY(moa_model_read(sv->model, load_progress, sv, err));
    sv->load_stage = 1;
    MOA_TRY(moa_engine_open(&sv->engine, sv->model, backend, &config, load_progress, sv, err));
    MOA_TRY(moa_seq_open(&sv->seq, sv->engine, err));
out:
    return s;
}

static void load(moa_serve_state *sv, const moa_msg_load *r) {
    moa_err err = {0};
    moa_device_info info = {0};
    unload(sv);
    sv->phase_start = moa_serve_now();
    sv->phase_told = 0;
    const moa_status s = load_model(sv, r, &err);
    if (s != MOA_OK) {
        unload(sv);
        moa_serve_fail(sv, sv->job, s, &err);
        return;
    }
    const moa_model *model = sv->model;
    const moa_shape *shape = &model->shape;
    const char *chat = moa_chat_template_name(model, NULL);
    moa_backend *backend = moa_engine_backend(sv->engine);
    (void)backend->vt->info(backend, &info, NULL);
    moa_wire_msg m = {
        .type = MOA_WIRE_LOADED,
        .u.loaded = {.path = moa_serve_str(model->path),
                     .name = moa_serve_str(model->name),
                     .arch = moa_serve_str(model->arch),
                     .quant = moa_serve_str(model->quant),
                     .fingerprint = moa_serve_str(model->fingerprint),
                     .chat_template = moa_serve_str(chat),
                     .device = moa_serve_str(sv->device),
                     .device_why = moa_serve_str(sv->device_why),
                     .n_layer = shape->n_layer,
                     .n_head = shape->n_head,
                     .n_head_kv = shape->n_head_kv,
                     .d_head = shape->d_head,
                     .d_model = shape->d_model,
                     .d_ff = shape->d_ff,
                     .n_vocab = shape->n_vocab,
                     .n_ctx = shape->n_ctx,
                     .kv_elem_bytes = (uint32_t)moa_kv_elem_bytes(moa_engine_kv_type(sv->engine)),
                     .weight_bytes = model->weight_bytes,
                     .n_param = model->n_param,
                     .device_total_bytes = info.memory_bytes,
                     .device_free_bytes = info.free_bytes}};
    moa_serve_send(sv, sv->job, &m);
}

/* --- the loop ---------------------------------------------------------------------------------------------------------------- */

static void work(moa_serve_state *sv) {
    moa_buf frame = sv->queue[0];
    moa_err err = {0};
    moa_wire_msg m;
    sv->n_queue--;
    memmove(sv->queue, sv->queue + 1, (size_t)sv->n_queue * sizeof *sv->queue);
    memmove(sv->queue_job, sv->queue_job + 1, (size_t)sv->n_queue * sizeof *sv->queue_job);
    sv->queue[sv->n_queue] = (moa_buf){0};
    const moa_status s = moa_wire_decode(frame.data, frame.size, &m, &err); /* we encoded it ourselves */
    sv->job = m.job;
    sv->busy = true;
    sv->cancelled = false;
    if (s != MOA_OK)
        moa_serve_fail(sv, m.job, s, &err);
    else if (m.type == MOA_WIRE_LOAD)
        load(sv, &m.u.load);
    else if (!sv->seq)
        fail_text(sv, m.job, MOA_E_USAGE, "no model is loaded");
    else if (m.type == MOA_WIRE_TASK)
        moa_serve_task(sv, &m.u.task);
    else
        moa_serve_run(sv, &m.u.run);
    sv->busy = false;
    moa_buf_free(&frame);
    if (sv->fatal) leave(sv, MOA_E_DEVICE, &sv->closed_err);
}

static moa_status set_up(const moa_serve_config *config, moa_err *err) {
    const int fds[] = {config->in_fd, config->out_fd};
    (void)signal(
        SIGINT,
        SIG_IGN); /* the terminal sends ^C to the whole process group; the screen decides what it means */
    (void)signal(SIGPIPE, SIG_IGN);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 0; i < 2; i++) {
        const int flags = fcntl(fds[i], F_GETFL);
        if (flags < 0 || fcntl(fds[i], F_SETFL, flags | O_NONBLOCK) != 0)
            return moa_fail(err, MOA_E_IO, "descriptor %d of the wire: %s", fds[i], strerror(errno));
    }
    return MOA_OK;
}

moa_status moa_serve(const moa_serve_config *config, moa_err *err) {
    moa_status s = set_up(config, err);
    if (s != MOA_OK) return s;
    moa_serve_state *sv = calloc(1, sizeof *sv);
    if (!sv) return moa_fail(err, MOA_E_MEMORY, "no memory for the engine process");
    sv->config = *config;
    sv->devices_fd = -1;
    while (!sv->closed) {
        if (sv->n_queue > 0)
            work(sv);
        else if (moa_serve_map_ready(sv))
            moa_serve_map(sv);
        else
            pump(sv, -1);
    }
    for (int tries = 0; moa_serve_waiting(sv) > 0 && tries < 10; tries++)
        pump(sv, 100); /* last words, if somebody listens */
    s = sv->closed_status;
    if (s != MOA_OK && err) *err = sv->closed_err;
    devices_end(sv);
    unload(sv);
    for (int i = 0; i < sv->n_queue; i++)
        moa_buf_free(&sv->queue[i]);
    moa_buf_free(&sv->devices);
    moa_buf_free(&sv->out);
    moa_wire_reader_free(&sv->in);
    free(sv);
    return s;
}
