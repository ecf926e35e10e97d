/* part.h -- work that can be resumed: FILE.part beside the file it is to become.
 *
 *     {"moascope-part":1,"key":"..."}        what the work is of: model, options; another key is refused, not mixed
 *     one line for each piece of finished work, appended and synced as it comes
 *
 * A line that a crash cut short is dropped on opening. When all is done the caller saves the final file and removes the part; an
 * interruption leaves it for the next run of the same command. One writer at a time (a lock). */
#ifndef MOA_TASKS_PART_H
#define MOA_TASKS_PART_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"

typedef struct moa_part moa_part;

/* final_path: of the file to be made; key: UTF-8. fresh: drops what is there. E_USAGE when it is of other work. */
moa_status moa_part_open(moa_part **out, const char *final_path, const char *key, bool fresh, moa_err *err);
void moa_part_close(moa_part **p);     /* keeps the file if it has lines */
void moa_part_remove(moa_part **p);    /* the work is done: closes and removes */
int32_t moa_part_n(const moa_part *p); /* lines there were on opening */
/* without its line break; borrowed until close */
const char *moa_part_line(const moa_part *p, int32_t i, size_t *n);
/* Appends a line (text without line breaks). */
moa_status moa_part_add(moa_part *p, const char *text, size_t n, moa_err *err);
const char *moa_part_path(const moa_part *p);

#endif
