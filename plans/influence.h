/* influence.h -- what a shorter span would cost every head: curves of loss over spans, from an influence profile.
 *
 *   INFLUENCE.npz   joint_N (n_layer, n_head, nb + 1)         curve as it stands
 *                   abs_N, signed_N (n_layer, n_head, nb, nb)  summed over what a window cuts
 *
 *   span_N (n_layer, n_head)   the profile is of a model under spans: joint_N is moved so that seeing everything is 0 there too, as it is in
 *                              a profile of full attention; the maps say nothing of wider windows, and are refused
 *
 *   curve[w]   change of the loss, nats, when every row keeps block 0 and its newest w blocks of 64 (its own counted)
 *   a rule's span S at N keeps w = S/64 - 1; S >= N is w = nb - 1: nothing is cut, 0
 *
 * Block (qb, kb) of a map is cut when 1 <= kb <= qb - w: a block of which a row sees a part counts as cut. The files are untrusted. */
#ifndef MOA_PLANS_INFLUENCE_H
#define MOA_PLANS_INFLUENCE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/status.h"
#include "core/engine/spans.h"

enum { MOA_LOSSES_LENGTH_MAX = 16 };
#define MOA_LOSSES_FILE_MAX ((size_t)8 << 30) /* bytes of elements read */

#define MOA_MEASURE_MAP(X) X(JOINT, "joint") X(ABS, "abs") X(SIGNED, "signed")
typedef enum moa_measure {
#define X(NAME, name) MOA_MEASURE_##NAME,
    MOA_MEASURE_MAP(X)
#undef X
        MOA_MEASURE_COUNT
} moa_measure;
const char *moa_measure_name(moa_measure m);

typedef struct moa_losses {
    int32_t n_layer, n_head, n_head_kv; /* n_head_kv = n_head where the file does not say */
    int32_t n_length;
    int32_t length[MOA_LOSSES_LENGTH_MAX]; /* tokens, ascending */
    int32_t nb[MOA_LOSSES_LENGTH_MAX];     /* ceil(length / 64) */
    double dense[MOA_LOSSES_LENGTH_MAX];   /* loss of full attention, nats; NAN: unknown */
    double *curve[MOA_LOSSES_LENGTH_MAX];  /* (n_layer, n_head, nb + 1), entry 0 unused; owned */
    char model[256], arch[64], fingerprint[65];
    uint8_t kv_known; /* n_head_kv is from the file */
    uint8_t planned;  /* profiled under a plan's spans */
} moa_losses;

/* Empty curves (zeros) of this shape, to be filled by the caller; lengths ascending. E_INVALID beyond the limits of plan.h. */
moa_status moa_losses_open(moa_losses **out, int32_t n_layer, int32_t n_head, int32_t n_head_kv,
                           const int32_t *length, int32_t n_length, moa_err *err);
void moa_losses_close(moa_losses **l);
static inline double *moa_losses_at(const moa_losses *l, int32_t i, int32_t layer, int32_t head) {
    return l->curve[i] + ((size_t)layer * (size_t)l->n_head + (size_t)head) * ((size_t)l->nb[i] + 1);
}
/* curve (nb + 1) of one head's map (nb, nb) */
void moa_losses_from_map(const float *map, int32_t nb, double *curve);
/* loss of a head under a rule at the i-th length */
double moa_losses_rule(const moa_losses *l, int32_t i, int32_t layer, int32_t head, moa_rule rule);

/* Gains that a first-order curve predicts of a cut (entries below 0) count as 0. They do not add up: of a profile's many heads whose cut
 * helps a little by that account, a search takes all, and the sum it promises is more than the loss there is to lose. */
void moa_losses_drop_gains(moa_losses *l);

/* Curves of a model under spans (profile.h): moved so that seeing everything is 0, as it is in a profile of full attention. A file's are. */
void moa_losses_rebase(moa_losses *l, int32_t i);

/* Adds lengths longer than any there (those that are not are passed over): the longest one's curves, stretched. A head that keeps a share of
 * the document at E tokens loses what it loses there with the same share; between blocks the curve is a line, below one block it is flat. So
 * rules are told apart that have the same spans at every profiled length and not beyond. E_INVALID beyond the limits of plan.h. */
moa_status moa_losses_stretch(moa_losses *l, const int32_t *length, int32_t n, moa_err *err);

/* lengths: those to take, NULL: all there are. n_head_kv: 0 takes the file's. A file of one plain array [layers][heads][nb][nb] under any
 * name is taken as a map of length nb*64, whatever the measure. E_INVALID names array and shape that do not fit. */
typedef struct moa_losses_config {
    const char *path;
    moa_measure measure;
    const int32_t *length;
    int32_t n_length;
    int32_t n_head_kv;
} moa_losses_config;
moa_status moa_losses_load(moa_losses **out, const moa_losses_config *config, moa_err *err);

#endif
