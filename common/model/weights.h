/*
 * From the matrices of a checkpoint to those that the kernels multiply. Inside common/model only.
 */
#ifndef BATON_COMMON_MODEL_WEIGHTS_H
#define BATON_COMMON_MODEL_WEIGHTS_H

#include "common/model/model.h"

/* A matrix of the model as it was found in the file, in BT_LAYOUT_ROWS. */
struct bt_weight {
    struct bt_matrix *matrix;
    const struct bt_tensor *tensor;
    enum bt_use use;
};

static inline bool bt_dtype_is_quantised(enum bt_dtype dtype)
{
    return dtype == BT_F8_E4M3 || dtype == BT_I8 || dtype == BT_I4;
}

/*
 * Scales of blocks or rows: each finite and not negative. INVALID_ARGUMENT names the first that is
 * not; `tensor` is theirs.
 */
enum bt_status bt_weight_check_scales(const char *dir, const struct bt_tensor *tensor,
                                      struct bt_error *error);

/* I4: no element is -8, none times its group's scale is beyond 127. The whole tensor is read. */
enum bt_status bt_weight_check_groups(const char *dir, const struct bt_weight *weight,
                                      struct bt_team *team, struct bt_error *error);

/* f32 rows of a quantised matrix in ROWS, to `out` [rows][cols]. */
void bt_weight_dequantise(const struct bt_matrix *matrix, struct bt_team *team, float *out);

/*
 * Packs or dequantises all that model->dtype asks for into model->memory. `limit_bytes`: see
 * bt_model_options. What was replaced is dropped from the mapped file.
 */
enum bt_status bt_weights_prepare(struct bt_model *model, const char *dir,
                                  const struct bt_weight *weights, size_t count,
                                  uint64_t limit_bytes, struct bt_error *error);

#endif
