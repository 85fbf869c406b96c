/*
 * What `batonctl plan` says, in figures: computed here, shown as a table, as JSON and as charts.
 */
#ifndef BATON_DEPLOY_BATONCTL_PLAN_REPORT_H
#define BATON_DEPLOY_BATONCTL_PLAN_REPORT_H

#include <jansson.h>

#include "common/planner/planner.h"

#define CTL_PLAN_LENGTHS 10
#define CTL_PLAN_BATCHES 12
#define CTL_PLAN_POINTS  65

/* A prompt of this length alone, and steps of sequences that are this long. */
struct ctl_plan_length {
    double tokens;
    struct bt_plan_cost prefill;
    struct bt_plan_handoff handoff;
    enum bt_plan_bound bound;
    double ttft_s;                   /* without a queue */
    double tpot_s[CTL_PLAN_BATCHES]; /* by `batches`; 0: memory does not hold so many */
    enum bt_plan_bound decode_bound[CTL_PLAN_BATCHES];
    double intensity[CTL_PLAN_BATCHES], achieved[CTL_PLAN_BATCHES]; /* operations/byte, /s */
};

struct ctl_plan_variant {
    enum bt_plan_variant variant;
    bool applies;
    char why_not[BT_ERROR_TEXT_SIZE]; /* it does not apply, or there is no answer */
    bool found;
    struct bt_plan_outcome outcome;
};

struct ctl_plan_report {
    struct bt_plan_question question;
    struct bt_plan_model_file file;
    const char *path;
    enum bt_plan_weights weights;
    bool fp8_kv;
    bool given; /* layouts and instances: judged, nothing is searched */

    struct bt_plan_survey prefill, decode;
    struct bt_plan_answer answer; /* given: only found, best, why_not, and aggregated's */

    /* Instances that what follows is about: the answer's, else the best of those that fit. */
    bool has_pair;
    struct bt_plan_pool prefill_pool, decode_pool;
    uint32_t batches[CTL_PLAN_BATCHES];
    size_t batch_count, length_count;
    struct ctl_plan_length lengths[CTL_PLAN_LENGTHS];
    uint32_t curve_cards;
    struct bt_plan_curve curve;
    struct bt_plan_point points[CTL_PLAN_POINTS];
    struct ctl_plan_variant variants[BT_PLAN_VARIANTS];
    bool explained;
    struct bt_plan_lines lines;

    struct bt_plan_choice choices[2][BT_PLAN_LAYOUTS_MAX];
};

/*
 * Fills what follows from `question`, `given` and, where that is set, the pools. `curve_cards` 0:
 * chosen. `explain`: lines too. INVALID_ARGUMENT: a question that can't be.
 */
enum bt_status ctl_plan_compute(struct ctl_plan_report *report, bool explain,
                                struct bt_error *error);

/* "TP8 DP4 EP32" */
struct ctl_plan_name {
    char text[48];
};
struct ctl_plan_name ctl_plan_layout_name(const struct bt_plan_layout *layout);

void ctl_plan_print(const struct ctl_plan_report *report);
json_t *ctl_plan_json(const struct ctl_plan_report *report);
/* Rooflines of both phases, and goodput against the ratio. */
enum bt_status ctl_plan_draw(const struct ctl_plan_report *report, const char *path,
                             struct bt_error *error);

#endif
