/* profile.h -- the influence profile: what the loss would gain or lose, to first order, if heads saw less.
 *
 *   ids -> forward, each layer's input kept -> loss of the supervised tokens -> backward, layer by layer
 *                                                                                 recompute the layer from its input
 *                                                                                 d_o of its attention -> influence of every head
 *
 * Gradients of activations only, never of weights. Full causal attention, or attention under a plan's spans, in float32, without pages; nothing of n_tok x n_tok and
 * nothing of n_tok x n_vocab is ever held. Per head and length, with A the attention and G = dL/dA (method of the paper, arXiv 2406.14909):
 *
 *   abs, sum    (nb, nb)   sums over blocks of 64 queries x 64 keys of |E_ij| and E_ij, E_ij = A_ij/(1-A_ij) (sum_n A_in G_in - G_ij)
 *   joint       (nb + 1)   entry w: change of the loss when every row keeps block 0 and the newest w blocks, its own counted
 *
 * Under spans the model is the one that the plan makes, and joint says what another window of one head would change of it: narrower or wider
 * than the head's own. Keys that are not seen have no entry of their own: abs and sum are 0 there. Items take the spans of n_tok tokens.
 *
 * Items are independent of each other, and several may go through at once: their sums are the same as one after the other, but for rounding.
 *
 * L is the mean cross-entropy of the supervised tokens; with margin the gradient is that of log((1 - p) / p) in place of -log p: tokens that
 * are nearly certain have all but no cross-entropy to lose at first order, and are lost all the same. Everything here is backend-independent (backend.h, MOA_BWD_MAP). */
#ifndef MOA_ENGINE_PROFILE_H
#define MOA_ENGINE_PROFILE_H

#include "core/engine/engine.h"

/* Sums over the items of one length. Zero-initialise; moa_influence_free. */
typedef struct moa_influence {
    int32_t n_tok, nb; /* N, ceil(N/64) */
    int32_t n_layer, n_head;
    double *abs, *sum; /* (n_layer, n_head, nb, nb), owned */
    double *joint;     /* (n_layer, n_head, nb + 1), owned */
    int32_t n_item;
    int64_t n_supervised, n_clamped; /* tokens; rows of heads whose masses were too small to divide by */
    double loss;                     /* sum of the items' mean losses, nats */
} moa_influence;
moa_status moa_influence_open(moa_influence *f, const moa_shape *shape, int32_t n_tok, moa_err *err);
void moa_influence_free(moa_influence *f);

typedef struct moa_profile moa_profile;
/* e is borrowed; device memory for items of up to n_tok_max tokens is taken here. E_UNSUPPORTED when the backend has no gradients. */
moa_status moa_profile_open(moa_profile **out, moa_engine *e, int32_t n_tok_max, moa_err *err);
/* The same, told how much memory to take. Kept layers have the same results as others to the last bit. */
#define MOA_PROFILE_KEEP UINT64_MAX
typedef struct moa_profile_config {
    int32_t n_tok_max;
    int32_t n_room;      /* tokens of items that go through together, n_tok_max at least; 0: some thousands where a GPU has room, else n_tok_max */
    uint64_t keep_bytes; /* for what the last layers compute, which then is not computed again in the backward pass. MOA_PROFILE_KEEP: what
                          * a GPU has free, less a reserve; nothing on a CPU */
} moa_profile_config;
moa_status moa_profile_open_as(moa_profile **out, moa_engine *e, const moa_profile_config *c, moa_err *err);
int32_t moa_profile_kept(const moa_profile *p); /* layers that are kept */
void moa_profile_close(moa_profile **p); /* accepts NULL and half-built; before the engine is closed */
/* device memory that is taken at least, bytes; 0: does not fit a size */
uint64_t moa_profile_need(const moa_engine *e, int32_t n_tok_max);

/* what the time of an item goes to */
typedef enum moa_profile_kind {
    MOA_PROFILE_PRODUCTS,  /* of activations with weights, both ways */
    MOA_PROFILE_ATTENTION, /* forward */
    MOA_PROFILE_INFLUENCE, /* and the gradients of attention, which a backend may make on the way */
    MOA_PROFILE_ROWS, /* norms, rope, the gate, copies, both ways */
    MOA_PROFILE_HEAD, /* logits, loss and the way back */
    MOA_PROFILE_HOST, /* adding to the sums */
    MOA_N_PROFILE_KIND
} moa_profile_kind;

typedef struct moa_profile_item {
    const int32_t *ids;     /* (n) */
    int32_t n;              /* 2 .. n_tok_max */
    int32_t supervise_from; /* K, 1 .. n - 1: the loss is the mean over the targets ids[K..n) */
    bool (*cancelled)(void *user);                               /* asked between layers, or NULL */
    void (*progress)(void *user, int32_t done, int32_t total); /* passes through layers, or NULL */
    void *user;
    const moa_rule *rules;  /* (n_layer, n_head); NULL: full attention */
    bool margin;            /* gradients of the mean log((1 - p) / p); the loss stays cross-entropy */
    double *seconds;        /* (MOA_N_PROFILE_KIND), ADDED to: to learn them, each operation is waited for. NULL: not wanted */
} moa_profile_item;

/* Adds the item to `to`, whose n_tok it must not exceed; all of it or, on failure, nothing. loss: of this item, or NULL. */
moa_status moa_profile_add(moa_profile *p, const moa_profile_item *item, moa_influence *to, double *loss,
                           moa_err *err);
/* The same of several, which go through the model together: faster where they are short. cancelled, progress, user and seconds are the first
 * one's. loss (n_item), or NULL. All of them or nothing; E_INVALID where they do not go together. */
moa_status moa_profile_add_all(moa_profile *p, const moa_profile_item *items, int32_t n_item, moa_influence *to, double *loss,
                               moa_err *err);
/* How many of these, from the first on, go together: of the same rules, no more tokens than there is room for; 1 at least, unless n_item is 0. */
int32_t moa_profile_take(const moa_profile *p, const moa_profile_item *items, int32_t n_item);

#endif
