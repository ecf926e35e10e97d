/* docs.h -- long documents from the user's files: what calibration, perplexity and needle tests read.
 *
 *   FILE          plain text, whole; invalid UTF-8 and NUL become U+FFFD
 *   FILE.jsonl    one object a line: "text", else "context", else "prompt" is the document; a "question" is kept
 *   FOLDER        its .txt, .text, .md and .jsonl files, sorted by name, not those of folders in it */
#ifndef MOA_TASKS_DOCS_H
#define MOA_TASKS_DOCS_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/model/model.h"

#define MOA_DOCS_MAX_BYTES ((size_t)1 << 30)

typedef struct moa_doc {
    char *name; /* "file.txt", "file.jsonl:3"; owned */
    char *text; /* UTF-8 without NUL inside, owned */
    size_t n_bytes;
    char *question; /* owned, or NULL */
} moa_doc;
typedef struct moa_docs {
    moa_doc *data; /* (n), owned */
    int32_t n;
    size_t n_bytes;
} moa_docs;

/* Adds a file or folder; zero-initialise before the first. E_INVALID names file and line. */
moa_status moa_docs_add(moa_docs *docs, const char *path, moa_err *err);
void moa_docs_free(moa_docs *docs);

/* A part of a document of at most n_tok tokens (of the text alone), from near the share `at` (0..1) of it on, beginning at a line or
 * sentence and made of whole characters. *text: malloc'ed, NUL-terminated, the caller's; *n_out: tokens it has. */
moa_status moa_doc_part(const moa_model *m, const moa_doc *doc, double at, int32_t n_tok, char **text,
                        int32_t *n_out, moa_err *err);

#endif
