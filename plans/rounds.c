/* rounds.c -- the arithmetic of plans found in rounds. */
#include "plans/rounds.h"

#include <math.h>
#include <string.h>

double moa_rounds_density(const moa_rounds *r, const moa_plan *plan) {
    double most = 0;
    for (int32_t i = 0; i < r->n_length + r->n_extend; i++) {
        const int32_t n = i < r->n_length ? r->length[i] : r->extend[i - r->n_length];
        most = fmax(most, moa_plan_describe(plan, n, r->n_head_kv).kv_density_grouped);
    }
    return most;
}

bool moa_rounds_within(const moa_rounds *r, double density) { return density <= r->density * (1 + 1e-9); }

moa_rounds_aim moa_rounds_aim_from(const moa_rounds *r, double density_now) {
    moa_rounds_aim a = {.there = moa_rounds_within(r, density_now), .density = r->density};
    a.anywhere = !a.there && !r->path;
    /* a full step down is all that the step allows: leave some of it for heads that grow */
    if (!a.there && r->path) a.density = fmax(r->density, density_now - .75 * r->step);
    return a;
}

bool moa_rounds_next(moa_rounds *r, bool there, bool better) {
    if (there && !better) r->step /= 2;
    return r->step >= r->step_first / 16;
}

static size_t n_curve(const moa_losses *l, int32_t i) { return (size_t)l->n_layer * (size_t)l->n_head * ((size_t)l->nb[i] + 1); }

static void name_as(moa_losses *l, const moa_losses *from) {
    l->kv_known = from->kv_known;
    memcpy(l->model, from->model, sizeof l->model);
    memcpy(l->arch, from->arch, sizeof l->arch);
    memcpy(l->fingerprint, from->fingerprint, sizeof l->fingerprint);
}

void moa_rounds_add_times(moa_losses *sum, const moa_losses *now, double by) {
    name_as(sum, now);
    for (int32_t i = 0; i < sum->n_length; i++)
        for (size_t x = 0; x < n_curve(sum, i); x++) sum->curve[i][x] += by * now->curve[i][x];
}

void moa_rounds_add(moa_losses *sum, const moa_losses *now) { moa_rounds_add_times(sum, now, 1); }

double moa_rounds_predict(const moa_losses *l, const moa_plan *plan) {
    double sum = 0;
    for (int32_t i = 0; i < l->n_length; i++)
        for (int32_t layer = 0; layer < l->n_layer; layer++)
            for (int32_t h = 0; h < l->n_head; h++) sum += moa_losses_rule(l, i, layer, h, *moa_plan_at(plan, layer, h));
    return sum / l->n_length;
}

moa_status moa_rounds_losses(const moa_losses *from, double by, const int32_t *extend, int32_t n_extend, moa_losses **out, moa_err *err) {
    const moa_status s = moa_losses_open(out, from->n_layer, from->n_head, from->n_head_kv, from->length, from->n_length, err);
    if (s != MOA_OK) return s;
    moa_losses *l = *out;
    name_as(l, from);
    for (int32_t i = 0; i < l->n_length; i++)
        for (size_t x = 0; x < n_curve(l, i); x++) l->curve[i][x] = from->curve[i][x] * by;
    moa_losses_drop_gains(l);
    return moa_losses_stretch(l, extend, n_extend, err);
}

moa_status moa_rounds_find(const moa_losses *losses, const moa_search_config *config, moa_found *out, moa_err *err) {
    moa_search_result r = {0};
    moa_search_config one = *config;
    one.mean_only = true;
    moa_status s = moa_search_run(losses, &one, &r, err);
    if (s == MOA_OK && r.n_found == 0) s = moa_fail(err, MOA_E_FAILED, "no plan was found");
    if (s == MOA_OK) {
        *out = r.found[0];
        r.found[0].plan = NULL; /* moved */
    }
    moa_search_result_free(&r);
    return s;
}
