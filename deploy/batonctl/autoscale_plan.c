#include "deploy/batonctl/autoscale_plan.h"

#include <string.h>

#include "common/planner/plan_model.h"
#include "deploy/batonctl/cluster.h"

#define CHUNK_TOKENS 8192

static double prefill_s(void *context, double input_tokens, double cached_share)
{
    const struct ctl_autoscale_plan *plan = context;
    double tokens = input_tokens >= 1 ? input_tokens : 1;
    struct bt_plan_prompt prompt = {.batch = 1,
                                    .tokens = tokens,
                                    .cached =
                                        tokens * (cached_share < 0.999 ? cached_share : 0.999),
                                    .chunk_tokens = CHUNK_TOKENS};
    return bt_plan_prefill_cost(&plan->instances[CTL_PREFILL], &prompt).seconds;
}

/* The batch is a worker's: its groups share it. */
static double step_s(void *context, double batch, double context_tokens)
{
    const struct ctl_autoscale_plan *plan = context;
    const struct bt_plan_instance *instance = &plan->instances[CTL_DECODE];
    double of_group = batch / instance->layout.dp;
    struct bt_plan_decoding decoding = {.batch = of_group >= 1 ? of_group : 1,
                                        .context = context_tokens >= 1 ? context_tokens : 1,
                                        .reserved = context_tokens >= 1 ? context_tokens : 1};
    return bt_plan_decode_cost(instance, &decoding).seconds;
}

static enum bt_status load_calibration(const char *calibration, struct bt_error *error,
                                       struct bt_plan_calibration *ret_calibration)
{
    *ret_calibration = bt_plan_calibration_default();
    if (!calibration) {
        return BT_OK;
    }
    if (strcmp(calibration, "published") == 0) {
        *ret_calibration = bt_plan_calibration_published();
        return BT_OK;
    }
    return bt_plan_calibration_load(calibration, error, ret_calibration);
}

enum bt_status ctl_autoscale_plan_init(struct ctl_autoscale_plan *plan, const char *model,
                                       const char *hardware, uint32_t cores,
                                       const char *calibration, struct bt_error *error)
{
    static struct bt_plan_catalogue catalogue;
    struct bt_plan_model_file file;
    struct bt_plan_instance instance = {0};
    const struct bt_plan_hardware *found;
    enum bt_status status = bt_plan_model_load(model, error, &file);
    if (status == BT_OK) {
        status = load_calibration(calibration, error, &instance.calibration);
    }
    if (status == BT_OK) {
        status = bt_plan_catalogue_load(NULL, error, &catalogue);
    }
    if (status == BT_OK) {
        status = bt_plan_catalogue_find(&catalogue, hardware, error, &found);
    }
    if (status != BT_OK) {
        return status;
    }
    instance.model = file.model;
    instance.dtypes = bt_plan_dtypes_of(&file.model, file.weights, false);
    instance.hardware = *found;
    if (cores > 0) {
        bt_plan_hardware_set_cores(&instance.hardware, cores);
    }
    plan->instances[CTL_PREFILL] = plan->instances[CTL_DECODE] = instance;
    plan->instances[CTL_PREFILL].phase = BT_PLAN_PREFILL;
    plan->instances[CTL_DECODE].phase = BT_PLAN_DECODE;
    plan->predictor = (struct ctl_autoscale_predictor){prefill_s, step_s, plan};
    return ctl_autoscale_plan_ranks(plan, (const uint32_t[2]){1, 1}, error);
}

enum bt_status ctl_autoscale_plan_ranks(struct ctl_autoscale_plan *plan, const uint32_t ranks[2],
                                        struct bt_error *error)
{
    for (int role = 0; role < 2; role++) {
        struct bt_plan_instance *instance = &plan->instances[role];
        uint32_t cards = ranks[role] > 0 ? ranks[role] : 1;
        uint32_t experts = instance->model.routed_experts;
        instance->layout = (struct bt_plan_layout){.tp = role == CTL_PREFILL ? cards : 1,
                                                   .dp = role == CTL_PREFILL ? 1 : cards,
                                                   .ep = experts > 0 ? cards : 1};
        instance->redundant = experts > 0 ? (cards - experts % cards) % cards : 0;
        enum bt_status status = bt_plan_instance_check(instance, error);
        if (status != BT_OK) {
            return status;
        }
    }
    return BT_OK;
}
