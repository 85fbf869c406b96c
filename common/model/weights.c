#include "common/model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GROUP     128 /* inputs of a group of I4, sides of a block of F8 */
#define PART_ROWS 64

static enum bt_status fault(const char *dir, const struct bt_tensor *tensor, size_t index,
                            const char *what, double value, struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s/%s: tensor %s: element %zu is %g: %s",
                        dir, tensor->file, tensor->name, index, value, what);
}

enum bt_status bt_weight_check_scales(const char *dir, const struct bt_tensor *tensor,
                                      struct bt_error *error)
{
    const float *scales = tensor->data;
    for (size_t i = 0; i < tensor->bytes / sizeof(float); i++)
        if (!isfinite(scales[i]) || scales[i] < 0)
            return fault(dir, tensor, i, "not a scale", (double)scales[i], error);
    return BT_OK;
}

/* ---- rows shared out to the team ---- */

struct rows_job {
    const struct bt_matrix *matrix;
    float *out;          /* dequantise */
    uint32_t *bad_parts; /* check: [parts] first row of the part that is at fault, or UINT32_MAX */
};

static uint32_t part_count(const struct bt_matrix *matrix)
{
    return (matrix->rows + PART_ROWS - 1) / PART_ROWS;
}

static uint32_t part_end(const struct bt_matrix *matrix, uint32_t part)
{
    uint32_t end = (part + 1) * PART_ROWS;
    return end < matrix->rows ? end : matrix->rows;
}

static int nibble(uint8_t bits)
{
    return (bits & 15) >= 8 ? (bits & 15) - 16 : bits & 15;
}

/* The largest size of the `count` values in bytes; 8 where one is -8, which no size may be. */
static int largest_of(const uint8_t *bytes, size_t count)
{
    int largest = 0;
    for (size_t i = 0; i < count / 2; i++) {
        int low = abs(nibble(bytes[i])), high = abs(nibble((uint8_t)(bytes[i] >> 4)));
        largest = low > largest ? low : largest;
        largest = high > largest ? high : largest;
    }
    return largest;
}

static bool row_is_sound(const struct bt_matrix *matrix, uint32_t row)
{
    size_t groups = matrix->cols / GROUP;
    const uint8_t *bytes = (const uint8_t *)matrix->data + (size_t)row * matrix->cols / 2;
    for (size_t g = 0; g < groups; g++) {
        int largest = largest_of(bytes + g * GROUP / 2, GROUP);
        if (largest == 8 || largest * matrix->group_scales[row * groups + g] > INT8_MAX)
            return false;
    }
    return true;
}

static void check_part(void *context, uint32_t part, uint32_t thread)
{
    const struct rows_job *job = context;
    (void)thread;
    job->bad_parts[part] = UINT32_MAX;
    for (uint32_t row = part * PART_ROWS; row < part_end(job->matrix, part); row++) {
        if (!row_is_sound(job->matrix, row)) {
            job->bad_parts[part] = row;
            return;
        }
    }
}

enum bt_status bt_weight_check_groups(const char *dir, const struct bt_tensor *tensor,
                                      const struct bt_matrix *matrix, struct bt_team *team,
                                      struct bt_error *error)
{
    uint32_t parts = part_count(matrix);
    struct rows_job job = {matrix, NULL, calloc(parts, sizeof(uint32_t))};
    enum bt_status status = BT_OK;
    if (!job.bad_parts)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", dir);
    bt_team_run(team, check_part, &job, parts);
    for (uint32_t i = 0; status == BT_OK && i < parts; i++)
        if (job.bad_parts[i] != UINT32_MAX)
            status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                  "%s/%s: tensor %s: row %u has -8, or an element that its group's "
                                  "scale takes beyond 127",
                                  dir, tensor->file, tensor->name, job.bad_parts[i]);
    free(job.bad_parts);
    return status;
}

static float scale_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    if (matrix->dtype == BT_F8_E4M3)
        return matrix->scales[row / GROUP * ((matrix->cols + GROUP - 1) / GROUP) + col / GROUP];
    if (matrix->dtype == BT_I4)
        return matrix->scales[row] *
               matrix->group_scales[row * (matrix->cols / GROUP) + col / GROUP];
    return matrix->dtype == BT_I8 ? matrix->scales[row] : 1;
}

static float stored_at(const struct bt_matrix *matrix, size_t row, size_t col)
{
    const uint8_t *bytes = matrix->data;
    size_t index = row * matrix->cols + col;
    switch (matrix->dtype) {
    case BT_F32:
        return ((const float *)matrix->data)[index];
    case BT_BF16:
        return bt_bf16_to_f32(((const uint16_t *)matrix->data)[index]);
    case BT_F16:
        return bt_f16_to_f32(((const uint16_t *)matrix->data)[index]);
    case BT_F8_E4M3:
        return bt_f8_e4m3_to_f32(bytes[index]);
    case BT_I8:
        return (int8_t)bytes[index];
    case BT_I4:
        break;
    }
    return (float)nibble((uint8_t)(bytes[index / 2] >> (index % 2 ? 4 : 0)));
}

void bt_weight_read_row(const struct bt_matrix *matrix, uint32_t row, float *ret_row)
{
    for (size_t col = 0; col < matrix->cols; col++)
        ret_row[col] = stored_at(matrix, row, col) * scale_at(matrix, row, col);
}

static void dequantise_part(void *context, uint32_t part, uint32_t thread)
{
    const struct rows_job *job = context;
    const struct bt_matrix *matrix = job->matrix;
    (void)thread;
    for (uint32_t row = part * PART_ROWS; row < part_end(matrix, part); row++)
        bt_weight_read_row(matrix, row, job->out + (size_t)row * matrix->cols);
}

void bt_weight_dequantise(const struct bt_matrix *matrix, struct bt_team *team, float *out)
{
    struct rows_job job = {matrix, out, NULL};
    bt_team_run(team, dequantise_part, &job, part_count(matrix));
}

/* ---- one weight by itself ---- */

/* The scales of the blocks of `tensor`, [rows][cols] of them. */
static enum bt_status find_block_scales(const struct bt_safetensors *file, const char *dir,
                                        const struct bt_tensor *tensor, struct bt_error *error,
                                        const float **ret_scales)
{
    char name[320];
    uint64_t rows = (tensor->dims[0] + GROUP - 1) / GROUP,
             cols = (tensor->dims[1] + GROUP - 1) / GROUP;
    snprintf(name, sizeof(name), "%s_scale_inv", tensor->name);
    const struct bt_tensor *scales = bt_safetensors_find(file, name);
    if (!scales)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: tensor %s is missing", dir, name);
    if (!scales->is_float || scales->dtype != BT_F32 || scales->dim_count != 2 ||
        scales->dims[0] != rows || scales->dims[1] != cols)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s/%s: tensor %s: not the scales of %s, F32 [%llu, %llu]", dir,
                            scales->file, name, tensor->name, (unsigned long long)rows,
                            (unsigned long long)cols);
    *ret_scales = scales->data;
    return bt_weight_check_scales(dir, scales, error);
}

enum bt_status bt_weight_find(const struct bt_safetensors *file, const char *dir,
                              const struct bt_tensor *tensor, struct bt_error *error,
                              struct bt_matrix *ret_matrix)
{
    bool is_f8 = !strcmp(tensor->dtype_name, "F8_E4M3");
    const uint64_t *dims = tensor->dims;
    struct bt_matrix matrix = {.data = tensor->data,
                               .dtype = is_f8 ? BT_F8_E4M3 : tensor->dtype,
                               .rows = tensor->dim_count == 2 ? (uint32_t)dims[0] : 1,
                               .cols = (uint32_t)dims[tensor->dim_count == 2]};
    if (tensor->dim_count < (is_f8 ? 2 : 1) || tensor->dim_count > 2 ||
        (!tensor->is_float && !is_f8) || dims[0] > UINT32_MAX || dims[1] > UINT32_MAX)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%s/%s: tensor %s: %u dimensions of dtype %s are no weight that can be "
                            "read (F32, BF16, F16, F8_E4M3)",
                            dir, tensor->file, tensor->name, tensor->dim_count, tensor->dtype_name);
    if (is_f8) {
        enum bt_status status = find_block_scales(file, dir, tensor, error, &matrix.scales);
        if (status != BT_OK)
            return status;
    }
    *ret_matrix = matrix;
    return BT_OK;
}
