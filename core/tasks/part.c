#include "core/tasks/part.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/buf.h"
#include "core/base/text.h"

#define PART_MAX ((size_t)1 << 30) /* bytes */

struct moa_part {
    char path[PATH_MAX];
    int fd;
    bool has_lines;
    moa_buf text; /* what was there on opening */
    moa_buf ends; /* size_t: where each line ends in text, the header's first */
    int32_t n;    /* lines without the header */
};

static moa_status io_error(const moa_part *p, const char *what, moa_err *err) {
    return moa_fail(err, MOA_E_IO, "%s: %s: %s", p->path, what, strerror(errno));
}

static moa_status write_all(const moa_part *p, const char *bytes, size_t n, moa_err *err) {
    while (n > 0) {
        const ssize_t w = write(p->fd, bytes, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) return io_error(p, "writing failed", err);
        bytes += w;
        n -= (size_t)w;
    }
    return MOA_OK;
}

static moa_status read_all(moa_part *p, moa_err *err) {
    for (;;) {
        char chunk[65536];
        const ssize_t n = read(p->fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return io_error(p, "reading failed", err);
        if (n == 0) return MOA_OK;
        if (p->text.size + (size_t)n > PART_MAX)
            return moa_fail(err, MOA_E_INVALID, "%s: longer than the limit of %zu bytes", p->path, PART_MAX);
        moa_buf_append(&p->text, chunk, (size_t)n);
        if (!moa_buf_ok(&p->text)) return moa_fail(err, MOA_E_MEMORY, "%s: no memory to read it", p->path);
    }
}

/* whole lines; what stands behind the last line break was cut short by a crash and goes */
static moa_status split(moa_part *p, moa_err *err) {
    size_t end = 0;
    for (size_t i = 0; i < p->text.size; i++) {
        if (p->text.data[i] != '\n') continue;
        moa_buf_append(&p->ends, &i, sizeof i);
        end = i + 1;
    }
    const size_t n = p->ends.size / sizeof(size_t);
    if (!moa_buf_ok(&p->ends) || n > INT32_MAX)
        return moa_fail(err, MOA_E_MEMORY, "%s: no memory for its lines", p->path);
    p->n = n > 0 ? (int32_t)n - 1 : 0;
    if (end < p->text.size && (ftruncate(p->fd, (off_t)end) != 0 || lseek(p->fd, 0, SEEK_END) < 0))
        return io_error(p, "cannot drop its unfinished last line", err);
    p->text.size = end;
    return MOA_OK;
}

static moa_status begin(moa_part *p, const char *key, moa_err *err) {
    moa_buf header = {0};
    moa_status s = MOA_OK;
    moa_buf_str(&header, "{\"moascope-part\":1,\"key\":");
    moa_text_json(key, strlen(key), &header);
    moa_buf_str(&header, "}\n");
    if (!moa_buf_ok(&header)) MOA_TRY(moa_fail(err, MOA_E_MEMORY, "%s: no memory for its header", p->path));
    if (p->text.size == 0) {
        MOA_TRY(write_all(p, header.data, header.size, err));
    } else if (p->text.size < header.size || memcmp(p->text.data, header.data, header.size) != 0) {
        s = moa_fail(err, MOA_E_USAGE,
                     "%s is what an interrupted run with other options left; remove it, or say --force",
                     p->path);
    }
out:
    moa_buf_free(&header);
    return s;
}

static moa_status open_file(moa_part *p, bool fresh, moa_err *err) {
    struct stat st;
    p->fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW, 0644);
    if (p->fd < 0) return io_error(p, "cannot open", err);
    if (fstat(p->fd, &st) != 0) return io_error(p, "cannot look at it", err);
    if (!S_ISREG(st.st_mode)) return moa_fail(err, MOA_E_INVALID, "%s: not a file", p->path);
    if (flock(p->fd, LOCK_EX | LOCK_NB) != 0)
        return moa_fail(err, MOA_E_IO, "%s: another run is writing it", p->path);
    if (fresh && ftruncate(p->fd, 0) != 0) return io_error(p, "cannot empty it", err);
    return MOA_OK;
}

moa_status moa_part_open(moa_part **out, const char *final_path, const char *key, bool fresh, moa_err *err) {
    moa_status s = MOA_OK;
    *out = NULL;
    moa_part *p = calloc(1, sizeof *p);
    if (!p) return moa_fail(err, MOA_E_MEMORY, "%s: no memory", final_path);
    p->fd = -1;
    if (snprintf(p->path, sizeof p->path, "%s.part", final_path) >= (int)sizeof p->path)
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: the path is too long", final_path));
    MOA_TRY(open_file(p, fresh, err));
    MOA_TRY(read_all(p, err));
    MOA_TRY(split(p, err));
    MOA_TRY(begin(p, key, err));
    p->has_lines = p->n > 0;
    *out = p;
    return MOA_OK;
out:
    p->has_lines = true; /* not ours to remove */
    moa_part_close(&p);
    return s;
}

void moa_part_close(moa_part **pp) {
    moa_part *p = *pp;
    if (!p) return;
    if (p->fd >= 0 && !p->has_lines) (void)unlink(p->path);
    if (p->fd >= 0) close(p->fd);
    moa_buf_free(&p->text);
    moa_buf_free(&p->ends);
    free(p);
    *pp = NULL;
}

void moa_part_remove(moa_part **p) {
    if (*p) (*p)->has_lines = false;
    moa_part_close(p);
}

int32_t moa_part_n(const moa_part *p) {
    return p->n;
}

const char *moa_part_path(const moa_part *p) {
    return p->path;
}

const char *moa_part_line(const moa_part *p, int32_t i, size_t *n) {
    const size_t *ends = (const size_t *)(const void *)p->ends.data;
    *n = ends[i + 1] - ends[i] - 1;
    return p->text.data + ends[i] + 1;
}

moa_status moa_part_add(moa_part *p, const char *text, size_t n, moa_err *err) {
    moa_buf line = {0};
    moa_status s = MOA_OK;
    moa_buf_append(&line, text, n);
    moa_buf_str(&line, "\n");
    if (!moa_buf_ok(&line))
        MOA_TRY(moa_fail(err, MOA_E_MEMORY, "%s: no memory for a line of %zu bytes", p->path, n));
    MOA_TRY(write_all(p, line.data, line.size, err));
    p->has_lines = true;
    if (fdatasync(p->fd) != 0 && errno != EINVAL) s = io_error(p, "writing failed", err);
out:
    moa_buf_free(&line);
    return s;
}
