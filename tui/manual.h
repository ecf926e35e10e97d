/* manual.h -- what others read of the option table: the manual page and the completions of three shells. The texts are made from the rows, as
 * --help is, so that none of them can fall behind. */
#ifndef MOA_TUI_MANUAL_H
#define MOA_TUI_MANUAL_H

#include "core/base/buf.h"
#include "core/base/status.h"

/* moascope.1, for man */
void moa_manual_page(moa_buf *out);

/* shell: bash, zsh or fish; E_USAGE for another */
moa_status moa_manual_completion(const char *shell, moa_buf *out, moa_err *err);

#endif
