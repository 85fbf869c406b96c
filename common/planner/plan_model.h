/*
 * A model's sizes for the planner, from a published config.json: by common/model's own reader where
 * it takes the file, and leniently where the forward pass here does not run the model (V3.2 with
 * its sparse attention, an unknown quantization). Parameters are counted from the shapes of the
 * matrices; norms and biases are left out.
 */
#ifndef BATON_COMMON_PLANNER_PLAN_MODEL_H
#define BATON_COMMON_PLANNER_PLAN_MODEL_H

#include <stdbool.h>

#include "common/base/status.h"
#include "common/planner/resources.h"

/* How weights are kept and what computes. */
enum bt_plan_weights {
    BT_PLAN_WEIGHTS_BF16,
    BT_PLAN_WEIGHTS_FP8,
    BT_PLAN_WEIGHTS_INT8,
    BT_PLAN_WEIGHTS_W4A8, /* experts int4, all else fp8; products of fp8 */
    BT_PLAN_WEIGHTS_KINDS,
};

struct bt_plan_model_file {
    struct bt_plan_model model;
    enum bt_plan_weights weights;     /* as the file says */
    bool runs;                        /* Baton's forward pass takes it */
    char refusal[BT_ERROR_TEXT_SIZE]; /* why not */
};

/*
 * `path`: a model's directory, or a JSON file. NOT_FOUND, IO, or INVALID_ARGUMENT with the file and
 * the key where even the sizes can't be read.
 */
enum bt_status bt_plan_model_load(const char *path, struct bt_error *error,
                                  struct bt_plan_model_file *ret_file);

/* "bf16", "fp8", "int8", "w4a8"; and back, INVALID_ARGUMENT for another name. */
const char *bt_plan_weights_name(enum bt_plan_weights weights);
enum bt_status bt_plan_weights_parse(const char *name, struct bt_error *error,
                                     enum bt_plan_weights *ret_weights);

/* Bytes as Baton keeps them. fp8_kv: latent e4m3 with a 4-byte scale for 128 values, rope bf16;
 * else bf16. */
struct bt_plan_dtypes bt_plan_dtypes_of(const struct bt_plan_model *model,
                                        enum bt_plan_weights weights, bool fp8_kv);
/* As the kernels for CPUs compute: weights of fp8 are widened to bf16, attention is bf16. */
void bt_plan_dtypes_on_cpu(enum bt_plan_weights weights, struct bt_plan_dtypes *dtypes);

#endif
