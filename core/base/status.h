/* status.h -- how every function of the project reports failure.
 *
 * A function that can fail returns a moa_status and takes a `moa_err *err` last. Whoever knows the facts
 * writes the message once, as one sentence with the numbers in it; everybody above only passes it on.
 * Programmer mistakes are assert(); files, devices, disks and memory are not. */
#ifndef MOA_BASE_STATUS_H
#define MOA_BASE_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

/* name, exit code of the program (cli.md), what it means in general */
#define MOA_STATUS_MAP(X)                                                                                    \
    X(OK, 0, "done")                                                                                         \
    X(E_FAILED, 1, "the work failed")                                                                        \
    X(E_USAGE, 2, "wrong usage")                                                                             \
    X(E_INVALID, 3, "the input is not valid")                                                                \
    X(E_UNSUPPORTED, 3, "the input is not supported")                                                        \
    X(E_IO, 1, "input or output failed")                                                                     \
    X(E_MEMORY, 4, "out of memory")                                                                          \
    X(E_DEVICE, 5, "the device failed")                                                                      \
    X(E_CANCELLED, 130, "interrupted")

typedef enum moa_status {
#define X(name, code, text) MOA_##name,
    MOA_STATUS_MAP(X)
#undef X
        MOA_STATUS_COUNT
} moa_status;

/* Caller-owned; may be NULL wherever it is taken. text is always NUL-terminated UTF-8 without control bytes. */
typedef struct moa_err {
    moa_status status;
    char text[512];
} moa_err;

/* Writes the message (control bytes escaped, so that a hostile name cannot reach the terminal) and returns status. */
moa_status moa_fail(moa_err *err, moa_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

const char *moa_status_text(moa_status status);
int moa_status_exit_code(moa_status status);

/* if a call fails, leave through the function's one exit: `moa_status s = MOA_OK; ... out: close things; return s;` */
#define MOA_TRY(call)                                                                                        \
    do {                                                                                                     \
        s = (call);                                                                                          \
        if (s != MOA_OK) goto out;                                                                           \
    } while (0)

#ifdef __cplusplus
}
#endif
#endif
