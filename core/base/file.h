/* file.h -- whole files: bounded reading, and saving that leaves either the old file or the new one. */
#ifndef MOA_BASE_FILE_H
#define MOA_BASE_FILE_H

#include <stddef.h>

#include "core/base/buf.h"
#include "core/base/status.h"

/* Reads a regular file, a pipe, or "-" (standard input), whole, into out (appended; caller frees).
 * A directory or device, or more than max_bytes, is an error that names path and limit. */
moa_status moa_file_read(const char *path, size_t max_bytes, moa_buf *out, moa_err *err);

/* Saves bytes under path: temporary file in the same folder (0600 & umask semantics of a new file: mode), written whole,
 * fsync, rename, fsync of the folder. On failure the old file is untouched and no temporary stays.
 * With keep_backup the file that stood there is kept as `path~`. */
moa_status moa_file_save(const char *path, const void *bytes, size_t n, int mode, int keep_backup, moa_err *err);

/* mkdir -p with mode 0700 for what is missing */
moa_status moa_dir_make(const char *path, moa_err *err);

#endif
