/* The planner's estimates as the autoscaler's predictor. */
#ifndef BATON_DEPLOY_BATONCTL_AUTOSCALE_PLAN_H
#define BATON_DEPLOY_BATONCTL_AUTOSCALE_PLAN_H

#include "common/planner/estimate.h"
#include "deploy/batonctl/autoscale_model.h"

struct ctl_autoscale_plan {
    struct bt_plan_instance instances[2]; /* [enum ctl_role] */
    struct ctl_autoscale_predictor predictor;
};

/* `calibration` NULL: rules of thumb; "published": those of the published tables. `cores` 0: the
 * machine's. Must stay where it is. */
enum bt_status ctl_autoscale_plan_init(struct ctl_autoscale_plan *plan, const char *model,
                                       const char *hardware, uint32_t cores,
                                       const char *calibration, struct bt_error *error);
/* How many ranks a worker of each role has: prefill's share heads, decode's have sequences of their
 * own. INVALID_ARGUMENT: the model can't be laid out so. */
enum bt_status ctl_autoscale_plan_ranks(struct ctl_autoscale_plan *plan, const uint32_t ranks[2],
                                        struct bt_error *error);

#endif
