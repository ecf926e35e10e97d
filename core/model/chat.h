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

typedef struct moa_message {
    moa_role role;
    const char *text; /* any bytes, borrowed */
    size_t n;
} moa_message;

/* "chatml", "llama3", ...; NULL with the reason in err (E_UNSUPPORTED) when the model has no template we know */
const char *moa_chat_template_name(const moa_model *m, moa_err *err);

/* Appends the ids of one message. first: whether it opens the conversation (BOS, default system message of the template).
 * An assistant message is closed with its end marker. *ids is realloc'ed, the caller's. */
moa_status moa_chat_append(const moa_model *m, bool first, moa_role role, const char *text, size_t n,
                           int32_t **ids, size_t *n_ids, moa_err *err);
/* Appends what asks the assistant to speak ("<|im_start|>assistant\n"). */
moa_status moa_chat_append_reply(const moa_model *m, int32_t **ids, size_t *n_ids, moa_err *err);
/* After a generated reply whose ids are at the end of *ids: appends what the template puts behind a reply (the end marker
 * if generation stopped before it, a line break), so that the next message may follow. */
moa_status moa_chat_append_end(const moa_model *m, int32_t **ids, size_t *n_ids, moa_err *err);

/* A whole conversation at once, from its opening on; reply: ends by asking the assistant to speak. The ids are those of
 * the file's own template (llama2, mistral: only so, since there a system message is part of the user's first one). */
moa_status moa_chat_encode(const moa_model *m, const moa_message *messages, size_t n_messages, bool reply,
                           int32_t **ids, size_t *n_ids, moa_err *err);

#ifdef __cplusplus
}
#endif
#endif
