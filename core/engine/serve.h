/* serve.h -- the engine process: jobs come in as messages on one descriptor, answers go out on another (wire.h).
 *
 * One thread. While a job computes, the engine asks between layers whether it is cancelled: that is when what came in is
 * read, so that CANCEL, SELECT_MAP and TOKENIZE are honoured within a layer's time; other jobs wait in a queue. Tokens are
 * queued in memory when the reader is slow (64 MiB, then the engine waits for it); snapshots are made only when the pipe is
 * nearly empty, so that a slow reader gets fewer of them, the newest, and never holds up the run.
 *
 * CANCEL names the job in its frame: a waiting job leaves the queue (FAILED, E_CANCELLED), the running one ends; job 0, or a
 * number not seen yet, is the running one; a number of the past is ignored.
 * TASK (serve_task.c) is a job as RUN is; it uses a sequence of its own, so the conversation and its maps stay.
 * WELCOME comes at once with what is known; asking for GPUs may take the start-up of their driver, so it is left to a child process, and a
 * second WELCOME brings its answer. The last WELCOME counts. */
#ifndef MOA_ENGINE_SERVE_H
#define MOA_ENGINE_SERVE_H

#include "core/base/buf.h"
#include "core/base/status.h"

typedef struct moa_serve_config {
    int in_fd, out_fd;
    /* argv, NULL-terminated, of a program that prints what moa_serve_devices() does; NULL: asked in this process, before WELCOME */
    const char *const *devices_command;
} moa_serve_config;

/* Serves until QUIT or end of input, then gives everything back. Everything it reads is hostile. E_INVALID: the peer sent what is
 * not a message; E_IO: a descriptor failed; E_DEVICE: the device failed in a way that only a new process can mend (the peer got
 * FAILED first). Sets SIGINT and SIGPIPE to ignored, asks to be killed with its parent, makes both descriptors non-blocking;
 * nothing else of the process may write to out_fd. */
moa_status moa_serve(const moa_serve_config *config, moa_err *err);

/* Appends one line a device, as WELCOME carries it ("cuda:0\tNAME\tTOTAL\tFREE\n", last "cpu\t..."), then one line "why\tREASON\n" if
 * there is no GPU. */
void moa_serve_devices(moa_buf *out);

#endif
