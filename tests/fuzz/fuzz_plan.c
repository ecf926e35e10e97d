/* The plan reader and the strict JSON check take any bytes; a plan that was read is written and read again without a change. The same
 * bytes also serve as a selector and as a rule edit. */
#include <cJSON.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "plans/plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void round_trip(const moa_plan *p) {
    moa_buf once = {0}, twice = {0};
    moa_plan *again = NULL;
    if (moa_plan_print(p, true, &once, NULL) != MOA_OK) abort();
    if (moa_plan_parse(&again, once.data, once.size, NULL) != MOA_OK) abort();
    if (!moa_plan_equal(p, again)) abort();
    if (moa_plan_print(again, true, &twice, NULL) != MOA_OK) abort();
    if (once.size != twice.size || memcmp(once.data, twice.data, once.size) != 0) abort();
    for (int32_t n = 1; n <= MOA_N_MAX; n *= 16) {
        const moa_plan_at_n d = moa_plan_describe(p, n, p->n_head_kv);
        if (d.span_min < MOA_SPAN_MIN || d.span_max < d.span_min || !(d.kv_density > 0)) abort();
    }
    moa_plan_close(&again);
    moa_buf_free(&once);
    moa_buf_free(&twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    moa_plan *p = NULL;
    moa_err err = {0};
    char *text = malloc(size + 1);
    if (!text) return 0;
    memcpy(text, data, size);
    text[size] = 0;
    if (moa_plan_parse(&p, text, size, &err) == MOA_OK) round_trip(p);
    else if (!err.text[0]) abort(); /* a refusal says why */
    moa_plan_close(&p);
    if (moa_json_check(text, size, NULL) == MOA_OK) { /* what the strict check takes, cJSON must take too */
        cJSON *tree = cJSON_ParseWithLength(text, size);
        if (!tree) abort();
        cJSON_Delete(tree);
    }
    uint8_t mask[4 * 6] = {0};
    moa_rule rule = {0, 1};
    (void)moa_select(text, 4, 6, 2, mask, NULL);
    (void)moa_rule_edit(&rule, text, NULL);
    free(text);
    return 0;
}
