/* chat.h -- wraps a conversation in the model's chat template.
 *
 * Templates are recognised (chatml, llama3, ...) from the file's Jinja text and rendered by our own code, never executed.
 * The result is ids, not text: the template's own markers become control ids, the users' text never does. */
#ifndef MOA_MODEL_CHAT_H
#define MOA_MODEL_CHAT_H

#include "core/model/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum moa_role { MOA_ROLE_SYSTEM, MOA_ROLE_USER, MOA_ROLE_ASSISTANT } moa_role;

/* "chatml", "llama3", ...; NULL with the reason in err (E_UNSUPPORTED) when the model has no template we know */
const char *moa_chat_template_name(const moa_model *m, moa_err *err);

/* Appends the ids of one message. first: whether it opens the conversation (BOS, default system message of the template).
 * An assistant message is closed with its end marker. *ids is realloc'ed, the caller's. */
moa_status moa_chat_append(const moa_model *m, bool first, moa_role role, const char *text, size_t n, int32_t **ids,
                           size_t *n_ids, moa_err *err);
/* Appends what asks the assistant to speak ("<|im_start|>assistant\n"). */
moa_status moa_chat_append_reply(const moa_model *m, int32_t **ids, size_t *n_ids, moa_err *err);

#ifdef __cplusplus
}
#endif
#endif
