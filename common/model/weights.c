#include "common/model/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/model/slice.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define ALIGN_BYTES     ((size_t)64)
#define PROGRESS_NS     (3 * BT_NS_PER_S)
#define GROUP           128 /* inputs of a group of I4, sides of a block of F8 */
#define PART_ROWS       64

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

/* ---- all of a model ---- */

struct preparation {
    const struct bt_preparation *asked;
    const struct bt_model *model;
    struct bt_weight_memory memory;
    struct bt_stream *stream;
    size_t used_bytes;
    uint64_t source_bytes, source_total; /* of the file, for progress */
    int64_t start_ns, said_ns;
};

static bool is_replaced(const struct bt_model *model, const struct bt_weight *weight)
{
    return model->dtype == BT_MODEL_BFLOAT16 || bt_dtype_is_quantised(weight->matrix->dtype) ||
           weight->whole.data;
}

/* Without rounding up. */
static size_t result_bytes(const struct bt_model *model, const struct bt_weight *weight)
{
    const struct bt_matrix *matrix = weight->matrix;
    if (model->dtype == BT_MODEL_BFLOAT16)
        return model->kernels->packed_bytes(matrix, weight->use, &model->mla);
    enum bt_dtype dtype = bt_dtype_is_quantised(matrix->dtype) ? BT_F32 : matrix->dtype;
    return (size_t)matrix->rows * matrix->cols * bt_dtype_bytes(dtype);
}

static size_t prepared_bytes(const struct bt_model *model, const struct bt_weight *weight)
{
    return (result_bytes(model, weight) + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
}

/* `source` as it is computed with, to `out`. */
static enum bt_status convert(struct preparation *p, const struct bt_matrix *source,
                              const struct bt_weight *weight, void *out, struct bt_error *error)
{
    if (source->dtype == BT_I4) {
        enum bt_status status =
            bt_weight_check_groups(p->model->dir, weight->tensor, source, p->asked->team, error);
        if (status != BT_OK)
            return status;
    }
    if (p->model->dtype == BT_MODEL_BFLOAT16) {
        p->model->kernels->pack(p->stream, source, weight->use, &p->model->mla, out,
                                weight->matrix);
        return BT_OK;
    }
    bt_weight_dequantise(source, p->asked->team, out);
    *weight->matrix = (struct bt_matrix){
        .data = out, .rows = source->rows, .cols = source->cols, .dtype = BT_F32};
    return BT_OK;
}

/* Some of the inputs: cut out first, unless they are computed with as they are. */
static enum bt_status convert_inputs(struct preparation *p, const struct bt_weight *weight,
                                     void *out, struct bt_error *error)
{
    const struct bt_matrix *whole = &weight->whole;
    uint32_t first = weight->first_input, count = weight->matrix->cols;
    if (p->model->dtype != BT_MODEL_BFLOAT16 && !bt_dtype_is_quantised(whole->dtype)) {
        *weight->matrix = bt_slice_inputs(whole, first, count, out);
        return BT_OK;
    }
    size_t bytes = bt_slice_inputs_bytes(whole, count);
    void *cut = malloc(bytes);
    if (!cut)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for %zu bytes of tensor %s",
                            p->model->dir, bytes, weight->tensor->name);
    struct bt_matrix source = bt_slice_inputs(whole, first, count, cut);
    enum bt_status status = convert(p, &source, weight, out, error);
    free(cut);
    return status;
}

static enum bt_status prepare_one(struct preparation *p, const struct bt_weight *weight,
                                  struct bt_error *error)
{
    void *out = (char *)p->memory.data + p->used_bytes;
    const struct bt_matrix source = *weight->matrix;
    p->used_bytes += prepared_bytes(p->model, weight);
    if (weight->whole.data)
        return convert_inputs(p, weight, out, error);
    return convert(p, &source, weight, out, error);
}

static double seconds(int64_t ns)
{
    return ns > 0 ? (double)ns / 1e9 : 1e-9;
}

static double mib(uint64_t bytes)
{
    return (double)bytes / (double)(1 << 20);
}

static void say_progress(struct preparation *p)
{
    int64_t now_ns = bt_clock_now_ns();
    if (!p->asked->tells || now_ns - p->said_ns < PROGRESS_NS)
        return;
    p->said_ns = now_ns;
    bt_log_info(0, "loading %s: %.0f %% of %.1f MiB, %.2f GB/s", p->model->dir,
                100.0 * (double)p->source_bytes / (double)p->source_total, mib(p->source_total),
                (double)p->source_bytes / 1e9 / seconds(now_ns - p->start_ns));
}

static void say_done(const struct preparation *p, size_t bytes)
{
    double took = seconds(bt_clock_now_ns() - p->start_ns);
    if (p->asked->tells)
        bt_log_info(0, "%s: %.1f MiB of weights for %s in %.2f s (%.2f GB/s, %u threads)",
                    p->model->dir, mib(bytes), bt_model_dtype_name(p->model->dtype), took,
                    (double)p->source_total / 1e9 / took, bt_team_threads(p->asked->team));
}

static enum bt_status prepare_all(struct preparation *p, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (size_t i = 0; i < p->asked->count && status == BT_OK; i++) {
        const struct bt_weight *weight = &p->asked->weights[i];
        if (!is_replaced(p->model, weight))
            continue;
        if (p->asked->cancel && atomic_load(p->asked->cancel))
            return bt_error_set(error, BT_ERR_CANCELLED, "%s: no longer wanted", p->model->dir);
        status = prepare_one(p, weight, error);
        /* Of the embedding the rows stay in use. */
        if (weight->tensor->data != p->model->embed.data)
            bt_safetensors_drop(weight->tensor);
        p->source_bytes += weight->tensor->bytes;
        say_progress(p);
    }
    return status;
}

/* Touched first by the threads that pack. */
static enum bt_status reserve(struct preparation *p, size_t bytes, struct bt_error *error)
{
    const struct bt_model *model = p->model;
    uint64_t limit = p->asked->limit_bytes;
    uint64_t free_bytes = limit ? limit : bt_memory_available_bytes();
    if (bytes > free_bytes)
        return bt_error_set(error, BT_ERR_NO_MEMORY,
                            "%s: its weights need %.1f MiB in %s, %.1f MiB of memory are free",
                            model->dir, mib(bytes), bt_model_dtype_name(model->dtype),
                            mib(free_bytes));
    bytes = (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for %.1f MiB of weights",
                            model->dir, mib(bytes));
    p->memory = (struct bt_weight_memory){data, bytes};
    (void)madvise(data, bytes, MADV_HUGEPAGE);
    bt_team_place_memory(model->team, data, bytes);
    return BT_OK;
}

enum bt_status bt_weights_prepare(const struct bt_preparation *asked, struct bt_error *error,
                                  struct bt_weight_memory *ret_memory)
{
    const struct bt_model *model = asked->model;
    struct preparation p = {.asked = asked, .model = model, .start_ns = bt_clock_now_ns()};
    const struct bt_stream_limits limits = {.mla = model->mla};
    size_t bytes = 0;
    p.said_ns = p.start_ns;
    for (size_t i = 0; i < asked->count; i++) {
        if (!is_replaced(model, &asked->weights[i]))
            continue;
        bytes += prepared_bytes(model, &asked->weights[i]);
        p.source_total += asked->weights[i].tensor->bytes;
    }
    if (bytes == 0) {
        *ret_memory = (struct bt_weight_memory){0};
        return BT_OK;
    }
    enum bt_status status = reserve(&p, bytes, error);
    if (status == BT_OK)
        status = bt_stream_create(&limits, asked->team, error, &p.stream);
    if (status == BT_OK)
        status = prepare_all(&p, error);
    bt_stream_destroy(p.stream);
    if (status != BT_OK) {
        if (p.memory.data)
            munmap(p.memory.data, p.memory.bytes);
        return status;
    }
    say_done(&p, bytes);
    *ret_memory = p.memory;
    return BT_OK;
}
