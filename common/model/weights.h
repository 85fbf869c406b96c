/*
 * From the matrices of a checkpoint to those that the kernels multiply. Inside common/model, and
 * for tools that convert checkpoints.
 */
#ifndef BATON_COMMON_MODEL_WEIGHTS_H
#define BATON_COMMON_MODEL_WEIGHTS_H

#include <stdatomic.h>

#include "common/model/model.h"

/* A matrix of the model as it was found in the file, in BT_LAYOUT_ROWS. */
struct bt_weight {
    struct bt_matrix *matrix;
    const struct bt_tensor *tensor;
    enum bt_use use;
    /* Where `matrix` is some of the inputs: all of it (else no data), and the first of them. Data
     * and scales of `matrix` are still those of all. */
    struct bt_matrix whole;
    uint32_t first_input;
    /* Of rows that stay what they are: norms, router, embedding. On a device with memory of its own
     * alone. */
    bool as_it_is;
    /* Weights of the same number lie in memory of their own, which can be let go of; they follow
     * each other. 0: in that of all others. */
    uint32_t block;
    uint32_t moe_index; /* of a block */
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

/* I4: no element is -8, none times its group's scale is beyond 127. All of the matrix, which is
 * of `tensor`, is read. */
enum bt_status bt_weight_check_groups(const char *dir, const struct bt_tensor *tensor,
                                      const struct bt_matrix *matrix, struct bt_team *team,
                                      struct bt_error *error);

/*
 * The weight `tensor` of `file` in ROWS, without a model that knows its shape: F32, BF16 and F16 of
 * one or two dimensions, F8_E4M3 of two with the checked scales of its blocks. INVALID_ARGUMENT, by
 * name: any other.
 */
enum bt_status bt_weight_find(const struct bt_safetensors *file, const char *dir,
                              const struct bt_tensor *tensor, struct bt_error *error,
                              struct bt_matrix *ret_matrix);

/* One row of a matrix in ROWS as f32, [cols]; any dtype. */
void bt_weight_read_row(const struct bt_matrix *matrix, uint32_t row, float *ret_row);

/* f32 rows of a quantised matrix in ROWS, to `out` [rows][cols]. */
void bt_weight_dequantise(const struct bt_matrix *matrix, struct bt_team *team, float *out);

struct bt_preparation {
    const struct bt_model *model;
    struct bt_team *team; /* may be NULL */
    const struct bt_weight *weights;
    size_t count;
    uint64_t limit_bytes; /* see bt_model_options */
    bool tells;           /* logs progress and speed */
    /* May be NULL: looked at before each weight. */
    const atomic_bool *cancel;
};

/*
 * Packs, dequantises or copies all that model->dtype and the parts of the rank ask for, and on a
 * device with memory of its own every weight, into *ret_memory, which has no data where there is
 * nothing to do, and *ret_blocks, a list. What was
 * replaced is dropped from the mapped file. CANCELLED: by preparation->cancel.
 */
enum bt_status bt_weights_prepare(const struct bt_preparation *preparation, struct bt_error *error,
                                  struct bt_weight_memory *ret_memory,
                                  struct bt_expert_memory **ret_blocks);

/* Whose `data` may be NULL. */
void bt_weight_memory_free(const struct bt_model *model, struct bt_weight_memory *memory);
/* All of the list. */
void bt_expert_memory_free(const struct bt_model *model, struct bt_expert_memory *list);

/* Whether weights are in memory that the host can't read. */
static inline bool bt_model_is_remote(const struct bt_model *model)
{
    return model->device->memory != BT_MEMORY_HOST;
}

#endif
