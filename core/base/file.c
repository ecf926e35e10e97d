#include "core/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

moa_status moa_file_read(const char *path, size_t max_bytes, moa_buf *out, moa_err *err) {
    const int from_stdin = strcmp(path, "-") == 0;
    const int fd = from_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return moa_fail(err, MOA_E_IO, "%s: cannot open: %s", path, strerror(errno));
    moa_status s = MOA_OK;
    struct stat st;
    if (fstat(fd, &st) != 0) {
        s = moa_fail(err, MOA_E_IO, "%s: %s", path, strerror(errno));
        goto out;
    }
    if (!from_stdin && !S_ISREG(st.st_mode) && !S_ISFIFO(st.st_mode)) {
        s = moa_fail(err, MOA_E_INVALID, "%s: not a file (%s)", path,
                     S_ISDIR(st.st_mode) ? "a folder" : "a device or socket");
        goto out;
    }
    if (S_ISREG(st.st_mode) && (unsigned long long)st.st_size > max_bytes) {
        s = moa_fail(err, MOA_E_INVALID, "%s: %lld bytes, the limit is %zu", path, (long long)st.st_size, max_bytes);
        goto out;
    }
    const size_t start = out->size;
    for (;;) {
        char chunk[65536];
        const ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            s = moa_fail(err, MOA_E_IO, "%s: reading failed: %s", path, strerror(errno));
            goto out;
        }
        if (n == 0) break;
        if (out->size - start + (size_t)n > max_bytes) {
            s = moa_fail(err, MOA_E_INVALID, "%s: longer than the limit of %zu bytes", path, max_bytes);
            goto out;
        }
        moa_buf_append(out, chunk, (size_t)n);
        if (!moa_buf_ok(out)) {
            s = moa_fail(err, MOA_E_MEMORY, "%s: no memory after %zu bytes", path, out->size - start);
            goto out;
        }
    }
out:
    if (!from_stdin) close(fd);
    return s;
}

static moa_status write_all(int fd, const char *path, const char *bytes, size_t n, moa_err *err) {
    while (n > 0) {
        const ssize_t w = write(fd, bytes, n);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) return moa_fail(err, MOA_E_IO, "%s: writing failed: %s", path, strerror(w < 0 ? errno : ENOSPC));
        bytes += w;
        n -= (size_t)w;
    }
    return MOA_OK;
}

static void sync_folder(const char *path) {
    char copy[PATH_MAX];
    if (snprintf(copy, sizeof copy, "%s", path) >= (int)sizeof copy) return;
    const int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

moa_status moa_file_save(const char *path, const void *bytes, size_t n, int mode, int keep_backup, moa_err *err) {
    char temp[PATH_MAX], backup[PATH_MAX];
    if (snprintf(temp, sizeof temp, "%s.XXXXXX", path) >= (int)sizeof temp ||
        snprintf(backup, sizeof backup, "%s~", path) >= (int)sizeof backup)
        return moa_fail(err, MOA_E_INVALID, "%s: the path is too long", path);
    moa_status s = MOA_OK;
    int fd = mkostemp(temp, O_CLOEXEC);
    if (fd < 0) return moa_fail(err, MOA_E_IO, "%s: cannot write there: %s", path, strerror(errno));
    MOA_TRY(write_all(fd, path, bytes, n, err));
    const mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, (mode_t)mode & ~mask) != 0 || fsync(fd) != 0) {
        s = moa_fail(err, MOA_E_IO, "%s: saving failed: %s", path, strerror(errno));
        goto out;
    }
    const int closed = close(fd);
    fd = -1;
    if (closed != 0) {
        s = moa_fail(err, MOA_E_IO, "%s: saving failed: %s", path, strerror(errno));
        goto out;
    }
    if (keep_backup) {
        (void)unlink(backup);
        if (link(path, backup) != 0) {} /* absent before: nothing to keep */
    }
    if (rename(temp, path) != 0) {
        s = moa_fail(err, MOA_E_IO, "%s: cannot put the new file in place: %s", path, strerror(errno));
        goto out;
    }
    sync_folder(path);
out:
    if (fd >= 0) close(fd);
    if (s != MOA_OK) (void)unlink(temp);
    return s;
}

moa_status moa_dir_make(const char *path, moa_err *err) {
    char copy[PATH_MAX];
    if (snprintf(copy, sizeof copy, "%s", path) >= (int)sizeof copy)
        return moa_fail(err, MOA_E_INVALID, "%s: the path is too long", path);
    for (char *slash = copy + 1;; slash++) {
        if (*slash != '/' && *slash != 0) continue;
        const char kept = *slash;
        *slash = 0;
        if (mkdir(copy, 0700) != 0 && errno != EEXIST)
            return moa_fail(err, MOA_E_IO, "%s: cannot make the folder: %s", copy, strerror(errno));
        if (kept == 0) return MOA_OK;
        *slash = kept;
    }
}
