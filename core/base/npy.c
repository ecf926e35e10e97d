#include "core/base/npy.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <unzip.h>
#include <zip.h>

#include "core/base/buf.h"
#include "core/base/size.h"

enum { ENTRIES_MAX = 4096, HEADER_MAX = 64 << 10, MAGIC = 10, WATCHED_BYTES = 1 << 22 };

static const struct {
    const char *descr;
    size_t bytes;
} types[] = {
#define X(name, descr, bytes) [MOA_NPY_##name] = {descr, bytes},
    MOA_NPY_MAP(X)
#undef X
};

bool moa_npy_bytes(const moa_npy_shape *s, size_t *bytes) {
    *bytes = types[s->type].bytes;
    for (int d = 0; d < s->n_dim; d++)
        if (!moa_size_mul(*bytes, s->shape[d], bytes)) return false;
    return true;
}

/* --- writing --------------------------------------------------------------------------------------------------------------- */

struct moa_npy_writer {
    char path[PATH_MAX], temp[PATH_MAX];
    int fd;        /* of an .npy file, and of the temporary until the zip takes it over; -1 */
    zipFile zip;   /* of an .npz file */
    bool in_entry; /* an array of the zip is open */
    char name[MOA_NPY_NAME_MAX];
    size_t left; /* bytes of the array still to come */
};

static moa_status write_raw(moa_npy_writer *w, const void *bytes, size_t n, moa_err *err) {
    const char *at = bytes;
    while (n > 0) {
        const size_t part = n < (1u << 30) ? n : 1u << 30;
        if (w->zip) {
            if (zipWriteInFileInZip(w->zip, at, (unsigned)part) != ZIP_OK)
                return moa_fail(err, MOA_E_IO, "%s: writing %s failed: %s", w->path, w->name,
                                strerror(errno ? errno : ENOSPC));
            at += part, n -= part;
            continue;
        }
        const ssize_t done = write(w->fd, at, part);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0)
            return moa_fail(err, MOA_E_IO, "%s: writing failed: %s", w->path,
                            strerror(done < 0 ? errno : ENOSPC));
        at += done, n -= (size_t)done;
    }
    return MOA_OK;
}

static moa_status write_header(moa_npy_writer *w, const moa_npy_shape *s, moa_err *err) {
    moa_buf b = {0};
    moa_buf_append(&b, "\x93NUMPY\x01\0\0\0", MAGIC);
    moa_buf_printf(&b, "{'descr': '%s", types[s->type].descr);
    if (s->type == MOA_NPY_TEXT) moa_buf_printf(&b, "%zu", s->shape[0] ? s->shape[0] : 1);
    moa_buf_str(&b, "', 'fortran_order': False, 'shape': (");
    for (int d = 0; d < s->n_dim && s->type != MOA_NPY_TEXT; d++)
        moa_buf_printf(&b, d + 1 < s->n_dim ? "%zu, " : s->n_dim == 1 ? "%zu," : "%zu", s->shape[d]);
    moa_buf_str(&b, "), }");
    while (moa_buf_ok(&b) && (b.size + 1) % 64 != 0)
        moa_buf_str(&b, " ");
    moa_buf_str(&b, "\n");
    if (!moa_buf_ok(&b)) {
        moa_buf_free(&b);
        return moa_fail(err, MOA_E_MEMORY, "%s: no memory for a header", w->path);
    }
    b.data[8] = (char)((b.size - MAGIC) & 0xff);
    b.data[9] = (char)((b.size - MAGIC) >> 8);
    const moa_status s2 = write_raw(w, b.data, b.size, err);
    moa_buf_free(&b);
    return s2;
}

/* the array that is open must have got all its bytes */
static moa_status end_array(moa_npy_writer *w, moa_err *err) {
    if (w->left)
        return moa_fail(err, MOA_E_FAILED, "%s: array %s lacks %zu bytes", w->path, w->name, w->left);
    if (w->in_entry && zipCloseFileInZip(w->zip) != ZIP_OK) {
        w->in_entry = false;
        return moa_fail(err, MOA_E_IO, "%s: writing %s failed", w->path, w->name);
    }
    w->in_entry = false;
    return MOA_OK;
}

moa_status moa_npy_open(moa_npy_writer **out, const char *path, const moa_npy_shape *shape, moa_err *err) {
    moa_status s = MOA_OK;
    moa_npy_writer *w = *out = calloc(1, sizeof *w);
    if (!w) return moa_fail(err, MOA_E_MEMORY, "%s: no memory for its writer", path);
    w->fd = -1;
    if (snprintf(w->path, sizeof w->path, "%s", path) >= (int)sizeof w->path ||
        snprintf(w->temp, sizeof w->temp, "%s.XXXXXX", path) >= (int)sizeof w->temp) {
        w->temp[0] = 0;
        MOA_TRY(moa_fail(err, MOA_E_INVALID, "%s: the path is too long", path));
    }
    w->fd = mkostemp(w->temp, O_CLOEXEC);
    if (w->fd < 0) {
        w->temp[0] = 0;
        MOA_TRY(moa_fail(err, MOA_E_IO, "%s: cannot write there: %s", path, strerror(errno)));
    }
    const mode_t mask = umask(0);
    umask(mask);
    (void)fchmod(w->fd, 0644 & ~mask);
    if (shape) {
        if (!moa_npy_bytes(shape, &w->left))
            MOA_TRY(moa_fail(err, MOA_E_MEMORY, "%s: an array larger than memory can be", path));
        MOA_TRY(write_header(w, shape, err));
    } else {
        w->zip = zipOpen64(w->temp, APPEND_STATUS_CREATE);
        if (!w->zip) MOA_TRY(moa_fail(err, MOA_E_IO, "%s: cannot write there", path));
    }
out:
    if (s != MOA_OK) moa_npy_close(out);
    return s;
}

moa_status moa_npz_begin(moa_npy_writer *w, const char *name, const moa_npy_shape *shape, moa_err *err) {
    const moa_status s = end_array(w, err);
    if (s != MOA_OK) return s;
    char entry[MOA_NPY_NAME_MAX + 8];
    (void)snprintf(w->name, sizeof w->name, "%s", name);
    (void)snprintf(entry, sizeof entry, "%s.npy", w->name);
    if (!moa_npy_bytes(shape, &w->left))
        return moa_fail(err, MOA_E_MEMORY, "%s: array %s is larger than memory can be", w->path, name);
    if (shape->type == MOA_NPY_TEXT && shape->shape[0] == 0) w->left = 1;
    const zip_fileinfo info = {.dosDate = 0x00210000}; /* 1980-01-01 00:00:00 */
    const int zip64 = w->left > 0xf0000000u;
    if (zipOpenNewFileInZip64(w->zip, entry, &info, NULL, 0, NULL, 0, NULL, 0, 0, zip64) != ZIP_OK)
        return moa_fail(err, MOA_E_IO, "%s: writing %s failed", w->path, name);
    w->in_entry = true;
    return write_header(w, shape, err);
}

moa_status moa_npy_append(moa_npy_writer *w, const void *bytes, size_t n, moa_err *err) {
    if (n > w->left)
        return moa_fail(err, MOA_E_FAILED, "%s: %zu bytes too many in array %s", w->path, n - w->left,
                        w->name);
    w->left -= n;
    return write_raw(w, bytes, n, err);
}

moa_status moa_npz_add(moa_npy_writer *w, const char *name, const moa_npy_shape *shape, const void *data,
                       moa_err *err) {
    const moa_status s = moa_npz_begin(w, name, shape, err);
    return s == MOA_OK ? moa_npy_append(w, data, w->left, err) : s;
}

moa_status moa_npz_text(moa_npy_writer *w, const char *name, const char *text, moa_err *err) {
    const moa_npy_shape shape = {.type = MOA_NPY_TEXT, .n_dim = 1, .shape = {strlen(text)}};
    return moa_npz_add(w, name, &shape, text, err); /* "" has one NUL: NumPy knows no empty string type */
}

moa_status moa_npy_commit(moa_npy_writer **pw, moa_err *err) {
    moa_npy_writer *w = *pw;
    moa_status s = end_array(w, err);
    if (s == MOA_OK && w->zip) {
        const int closed = zipClose(w->zip, NULL);
        w->zip = NULL;
        if (closed != ZIP_OK)
            s = moa_fail(err, MOA_E_IO, "%s: writing failed: %s", w->path, strerror(errno ? errno : ENOSPC));
    }
    if (s == MOA_OK && fsync(w->fd) != 0)
        s = moa_fail(err, MOA_E_IO, "%s: saving failed: %s", w->path, strerror(errno));
    if (s == MOA_OK && rename(w->temp, w->path) != 0)
        s = moa_fail(err, MOA_E_IO, "%s: cannot put the new file in place: %s", w->path, strerror(errno));
    if (s == MOA_OK) w->temp[0] = 0;
    moa_npy_close(pw);
    return s;
}

void moa_npy_close(moa_npy_writer **pw) {
    moa_npy_writer *w = *pw;
    if (!w) return;
    if (w->in_entry) (void)zipCloseFileInZip(w->zip);
    if (w->zip) (void)zipClose(w->zip, NULL);
    if (w->fd >= 0) close(w->fd);
    if (w->temp[0]) (void)unlink(w->temp);
    free(w);
    *pw = NULL;
}

/* --- reading ---------------------------------------------------------------------------------------------------------------- */

/* where the bytes come from: an entry of a zip, or a file */
typedef struct source {
    unzFile zip;
    FILE *file;
    const char *path, *name;
    const moa_npz_watch *watch; /* or NULL */
    uint64_t done, total;
    bool stopped;
} source;

static bool get(source *s, void *to, size_t n) {
    char *at = to;
    const size_t most = s->watch ? WATCHED_BYTES : 1u << 30;
    while (n > 0) {
        const size_t part = n < most ? n : most;
        const long got =
            s->zip ? unzReadCurrentFile(s->zip, at, (unsigned)part) : (long)fread(at, 1, part, s->file);
        if (got <= 0) return false;
        at += got, n -= (size_t)got, s->done += (size_t)got;
        s->stopped = s->watch && !s->watch->go_on(s->watch->user, s->done, s->total);
        if (s->stopped) return false;
    }
    return true;
}

/* the value behind 'key': in a header, NULL: none */
static const char *value_of(const char *header, const char *key) {
    const char *at = strstr(header, key);
    if (!at) return NULL;
    at += strlen(key);
    while (*at == ' ')
        at++;
    if (*at++ != ':') return NULL;
    while (*at == ' ')
        at++;
    return at;
}

static bool parse_type(const char *at, moa_npy_shape *s, size_t *text_bytes) {
    if (!at || *at != '\'') return false;
    at++;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        const size_t n = strlen(types[t].descr);
        if (strncmp(at, types[t].descr, n) != 0) continue;
        s->type = (moa_npy_type)t;
        if (t != MOA_NPY_TEXT) return at[n] == '\'';
        char *end;
        errno = 0;
        *text_bytes = strtoul(at + n, &end, 10);
        return errno == 0 && end != at + n && *end == '\'';
    }
    return false;
}

static bool parse_shape(const char *at, moa_npy_shape *s) {
    if (!at || *at++ != '(') return false;
    for (s->n_dim = 0;;) {
        while (*at == ' ' || *at == ',')
            at++;
        if (*at == ')') return true;
        char *end;
        errno = 0;
        if (*at < '0' || *at > '9' || s->n_dim == MOA_NPY_DIM_MAX) return false;
        const unsigned long long n = strtoull(at, &end, 10);
        if (errno != 0 || n > SIZE_MAX) return false;
        s->shape[s->n_dim++] = (size_t)n;
        at = end;
    }
}

static moa_status read_header(source *src, moa_npy_shape *shape, moa_err *err) {
    unsigned char magic[MAGIC + 2];
    size_t n, text_bytes = 0;
    if (!get(src, magic, MAGIC) || memcmp(magic, "\x93NUMPY", 6) != 0 || magic[6] < 1 || magic[6] > 3)
        return moa_fail(err, MOA_E_INVALID, "%s: %s is not a NumPy array", src->path, src->name);
    n = magic[8] | (size_t)magic[9] << 8;
    if (magic[6] > 1) {
        if (!get(src, magic + MAGIC, 2))
            return moa_fail(err, MOA_E_INVALID, "%s: %s is cut", src->path, src->name);
        n |= (size_t)magic[10] << 16 | (size_t)magic[11] << 24;
    }
    if (n > HEADER_MAX)
        return moa_fail(err, MOA_E_INVALID, "%s: %s has a header of %zu bytes, the limit is %d", src->path,
                        src->name, n, HEADER_MAX);
    char *header = calloc(1, n + 1);
    if (!header) return moa_fail(err, MOA_E_MEMORY, "%s: no memory for a header of %zu bytes", src->path, n);
    moa_status s = MOA_OK;
    if (!get(src, header, n))
        s = moa_fail(err, MOA_E_INVALID, "%s: %s is cut", src->path, src->name);
    else if (!parse_type(value_of(header, "'descr'"), shape, &text_bytes) ||
             !parse_shape(value_of(header, "'shape'"), shape))
        s = moa_fail(err, MOA_E_UNSUPPORTED, "%s: %s has a type or shape this program does not read",
                     src->path, src->name);
    else if (!value_of(header, "'fortran_order'") ||
             strncmp(value_of(header, "'fortran_order'"), "False", 5) != 0)
        s = moa_fail(err, MOA_E_UNSUPPORTED, "%s: %s is in Fortran order", src->path, src->name);
    else if (shape->type == MOA_NPY_TEXT && shape->n_dim != 0)
        s = moa_fail(err, MOA_E_UNSUPPORTED, "%s: %s is an array of strings", src->path, src->name);
    else if (shape->type == MOA_NPY_TEXT) {
        shape->n_dim = 1;
        shape->shape[0] = text_bytes;
    }
    free(header);
    return s;
}

/* stored_bytes: what the archive or file holds of this array, header and all: never more is allocated */
static moa_status read_array(moa_npz *z, source *src, uint64_t stored_bytes, size_t *budget,
                             moa_err *err) {
    moa_npy_array a = {0};
    size_t whole;
    moa_status s = read_header(src, &a.shape, err);
    if (s != MOA_OK) return s;
    if (!moa_npy_bytes(&a.shape, &a.bytes) || a.bytes > stored_bytes)
        return moa_fail(err, MOA_E_INVALID, "%s: %s is shorter than its shape says (%llu bytes)", src->path,
                        src->name, (unsigned long long)stored_bytes);
    if (a.bytes > *budget || !moa_size_add(a.bytes, 1, &whole))
        return moa_fail(err, MOA_E_INVALID, "%s: %s takes %zu bytes, %zu are left of the limit", src->path,
                        src->name, a.bytes, *budget);
    moa_npy_array *arrays = realloc(z->arrays, ((size_t)z->n + 1) * sizeof *arrays);
    if (arrays) z->arrays = arrays;
    a.data = arrays ? calloc(1, whole) : NULL;
    if (!a.data)
        return moa_fail(err, MOA_E_MEMORY, "%s: no memory for %zu bytes of %s", src->path, a.bytes,
                        src->name);
    if (!get(src, a.data, a.bytes)) {
        free(a.data);
        return moa_fail(err, MOA_E_INVALID, "%s: %s is cut or damaged", src->path, src->name);
    }
    *budget -= a.bytes;
    const size_t n = strlen(src->name);
    (void)snprintf(a.name, sizeof a.name, "%.*s",
                   (int)(n > 4 && strcmp(src->name + n - 4, ".npy") == 0 ? n - 4 : n), src->name);
    z->arrays[z->n++] = a;
    return MOA_OK;
}

static bool wanted(const char *entry, const char *const *names) {
    if (!names) return true;
    const size_t n = strlen(entry);
    for (; *names; names++)
        if (n == strlen(*names) + 4 && strncmp(entry, *names, n - 4) == 0) return true;
    return false;
}

static moa_status read_zip(moa_npz *z, source *src, const char *const *names, size_t budget, moa_err *err) {
    moa_status s = MOA_OK;
    int entry = 0;
    for (int at = unzGoToFirstFile(src->zip); at == UNZ_OK; at = unzGoToNextFile(src->zip)) {
        char name[MOA_NPY_NAME_MAX] = "";
        unz_file_info64 info;
        if (entry++ == ENTRIES_MAX)
            return moa_fail(err, MOA_E_INVALID, "%s: more than %d arrays", src->path, ENTRIES_MAX);
        if (unzGetCurrentFileInfo64(src->zip, &info, name, sizeof name, NULL, 0, NULL, 0) != UNZ_OK ||
            info.size_filename >= sizeof name)
            return moa_fail(err, MOA_E_INVALID, "%s: entry %d of the archive is damaged", src->path, entry);
        if (!wanted(name, names)) continue;
        src->name = name;
        if (unzOpenCurrentFile(src->zip) != UNZ_OK)
            return moa_fail(err, MOA_E_INVALID, "%s: %s is damaged", src->path, name);
        s = read_array(z, src, info.uncompressed_size, &budget, err);
        char more;
        if (s == MOA_OK && unzReadCurrentFile(src->zip, &more, 1) != 0)
            s = moa_fail(err, MOA_E_INVALID, "%s: %s is longer than its shape says", src->path, name);
        if (unzCloseCurrentFile(src->zip) != UNZ_OK && s == MOA_OK) /* the checksum */
            s = moa_fail(err, MOA_E_INVALID, "%s: %s is damaged: its checksum differs", src->path, name);
        if (s != MOA_OK) return s;
    }
    if (entry == 0) return moa_fail(err, MOA_E_INVALID, "%s: an empty archive", src->path);
    return MOA_OK;
}

/* what there is to read, as the archive says: for the progress alone */
static uint64_t wanted_bytes(source *src, const char *const *names) {
    uint64_t sum = 0;
    int entry = 0;
    for (int at = unzGoToFirstFile(src->zip); at == UNZ_OK && entry++ < ENTRIES_MAX; at = unzGoToNextFile(src->zip)) {
        char name[MOA_NPY_NAME_MAX] = "";
        unz_file_info64 info;
        if (unzGetCurrentFileInfo64(src->zip, &info, name, sizeof name, NULL, 0, NULL, 0) != UNZ_OK) break;
        if (wanted(name, names) && info.uncompressed_size < UINT64_MAX - sum) sum += info.uncompressed_size;
    }
    return sum;
}

moa_status moa_npz_read(moa_npz *out, const char *path, const char *const *names, size_t max_bytes,
                        moa_err *err) {
    return moa_npz_read_watched(out, path, names, max_bytes, NULL, err);
}

moa_status moa_npz_read_watched(moa_npz *out, const char *path, const char *const *names, size_t max_bytes,
                                const moa_npz_watch *watch, moa_err *err) {
    struct stat st;
    source src = {.path = path, .name = "it", .watch = watch};
    moa_status s = MOA_OK;
    *out = (moa_npz){0};
    if (stat(path, &st) != 0) return moa_fail(err, MOA_E_IO, "%s: cannot open: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return moa_fail(err, MOA_E_INVALID, "%s: not a file", path);
    src.zip = unzOpen64(path);
    src.total = !watch ? 0 : src.zip ? wanted_bytes(&src, names) : (uint64_t)st.st_size;
    if (src.zip)
        s = read_zip(out, &src, names, max_bytes, err);
    else {
        src.file = fopen(path, "rbe");
        if (!src.file) return moa_fail(err, MOA_E_IO, "%s: cannot open: %s", path, strerror(errno));
        s = read_array(out, &src, (uint64_t)st.st_size, &max_bytes, err);
        if (s == MOA_OK) out->arrays[0].name[0] = 0;
    }
    if (src.zip) (void)unzClose(src.zip);
    if (src.file) (void)fclose(src.file);
    if (src.stopped && s != MOA_OK)
        s = moa_fail(err, MOA_E_CANCELLED, "%s: interrupted after %llu of %llu bytes", path,
                     (unsigned long long)src.done, (unsigned long long)src.total);
    if (s != MOA_OK) moa_npz_free(out);
    return s;
}

const moa_npy_array *moa_npz_find(const moa_npz *z, const char *name) {
    for (int i = 0; i < z->n; i++)
        if (strcmp(z->arrays[i].name, name) == 0) return &z->arrays[i];
    return NULL;
}

void moa_npz_free(moa_npz *z) {
    for (int i = 0; i < z->n; i++)
        free(z->arrays[i].data);
    free(z->arrays);
    *z = (moa_npz){0};
}
