/* replay.h -- a kept session's runs once more: the same tokens in, under the same plans, settings and seeds; do the same come out?
 *
 *     given   the ids that a run was given, after n_past tokens of its conversation. A run without them (of the screen, or kept by an older
 *             program) has its prompt made into tokens again; their number must be what it was
 *     made    compared id by id; a run without ids by its text
 *
 * One sequence for the whole session, so that a chat's later turns find in the cache what they found then. The same model (by
 * fingerprint) and cache type; another device or number of threads may round otherwise, which is said. Ends at the first difference. */
#ifndef MOA_TUI_REPLAY_H
#define MOA_TUI_REPLAY_H

#include "core/base/buf.h"
#include "sessions/store.h"
#include "tui/options.h"

/* Word 1 of args: the session, none: the newest. What was compared goes to out, as text or (--json) JSON. E_FAILED at a difference, with
 * what was and what is; out is then whole as well. E_INVALID: cannot be replayed. E_CANCELLED. */
moa_status moa_replay(const moa_args *args, moa_store *store, moa_buf *out, moa_err *err);

#endif
