/* record.h -- runs of the subcommands in the session store: one session a call of the program, one run a prompt or turn.
 *
 * All functions accept NULL (--no-session, or a store that cannot be opened, which is said once on stderr); a store that fails later is
 * said once and left alone: the work goes on. */
#ifndef MOA_TUI_RECORD_H
#define MOA_TUI_RECORD_H

#include "core/engine/run.h"
#include "tui/load.h"

typedef struct moa_record moa_record;

/* kind: "run", "chat"; args and loaded borrowed until moa_record_close */
moa_record *moa_record_open(const moa_args *args, const moa_loaded *loaded, const char *kind);
/* text: the prompt as typed (n_text bytes, raw); config: the run that is about to be made, on seq. The plan as it is now */
void moa_record_begin(moa_record *r, const char *text, size_t n_text, const moa_seq *seq, const moa_run_config *config);
void moa_record_output(moa_record *r, int32_t id, const char *bytes, size_t n); /* of one token, 0 bytes of a control token */
void moa_record_end(moa_record *r, const moa_run_result *result);   /* NULL: it failed */
void moa_record_close(moa_record **r);

#endif
