/*
 * Weights on their way from the checkpoint to where they are multiplied: packed, dequantised or as
 * they are, into memory of the host, or of a device. There the file is read, converted by the team
 * and fetched by the device at the same time.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/memory.h"
#include "common/model/slice.h"
#include "common/model/upload.h"
#include "common/model/weights.h"

#define HUGE_PAGE_BYTES    ((size_t)2 << 20)
#define ALIGN_BYTES        ((size_t)64)
#define DEVICE_ALIGN_BYTES ((size_t)256)
#define PROGRESS_NS        (3 * BT_NS_PER_S)
#define PART_ROWS          64

struct preparation {
    const struct bt_preparation *asked;
    const struct bt_model *model;
    struct bt_weight_memory memory;
    size_t used_bytes;
    struct bt_expert_memory *blocks, *last_block;
    uint32_t block; /* number of last_block */
    size_t block_used_bytes;
    struct bt_stream *stream;
    struct bt_upload *upload;            /* NULL: the weights are the host's */
    uint64_t source_bytes, source_total; /* of the file, for progress */
    int64_t start_ns, said_ns;
};

static bool is_replaced(const struct bt_model *model, const struct bt_weight *weight)
{
    return bt_model_is_remote(model) || model->dtype == BT_MODEL_BFLOAT16 ||
           bt_dtype_is_quantised(weight->matrix->dtype) || weight->whole.data;
}

static bool is_packed(const struct bt_model *model, const struct bt_weight *weight)
{
    return model->dtype == BT_MODEL_BFLOAT16 && !weight->as_it_is;
}

/* Without rounding up. */
static size_t result_bytes(const struct bt_model *model, const struct bt_weight *weight)
{
    const struct bt_matrix *matrix = weight->matrix;
    if (is_packed(model, weight))
        return model->kernels->packed_bytes(matrix, weight->use, &model->mla);
    enum bt_dtype dtype = bt_dtype_is_quantised(matrix->dtype) ? BT_F32 : matrix->dtype;
    return (size_t)matrix->rows * matrix->cols * bt_dtype_bytes(dtype);
}

static size_t prepared_bytes(const struct bt_model *model, const struct bt_weight *weight)
{
    size_t align = bt_model_is_remote(model) ? DEVICE_ALIGN_BYTES : ALIGN_BYTES;
    return (result_bytes(model, weight) + align - 1) / align * align;
}

/* ---- onto a device ---- */

struct dequantise_job {
    const struct bt_matrix *matrix;
    struct bt_team *team;
    size_t first, count;
    float *out;
};

static void dequantise_part(void *context, uint32_t part, uint32_t thread)
{
    const struct dequantise_job *job = context;
    size_t row = (size_t)part * PART_ROWS, end = row + PART_ROWS;
    (void)thread;
    for (; row < job->count && row < end; row++)
        bt_weight_read_row(job->matrix, (uint32_t)(job->first + row),
                           job->out + row * job->matrix->cols);
}

static void fill_dequantised(void *context, size_t first, size_t count, unsigned char *out)
{
    struct dequantise_job *job = context;
    job->first = first;
    job->count = count;
    job->out = (float *)(void *)out;
    bt_team_run(job->team, dequantise_part, job, (uint32_t)((count + PART_ROWS - 1) / PART_ROWS));
}

/* In rows: as they are, or as f32. */
static enum bt_status upload(struct preparation *p, const struct bt_matrix *source,
                             const struct bt_weight *weight, void *out, struct bt_error *error)
{
    struct dequantise_job job = {.matrix = source, .team = p->asked->team};
    size_t bytes = result_bytes(p->model, weight);
    bool plain = !bt_dtype_is_quantised(source->dtype);
    enum bt_status status =
        plain ? bt_upload_bytes(p->upload, out, source->data, bytes, p->asked->team, error)
              : bt_upload_rows(p->upload, out, source->rows, source->cols * sizeof(float),
                               fill_dequantised, &job, error);
    *weight->matrix = (struct bt_matrix){.data = out,
                                         .rows = source->rows,
                                         .cols = source->cols,
                                         .dtype = plain ? source->dtype : BT_F32};
    return status;
}

/* The file is read on by itself while this weight's bytes are converted and fetched. */
static void read_ahead(const struct preparation *p, size_t index)
{
    if (p->upload && index < p->asked->count)
        bt_safetensors_want(p->asked->weights[index].tensor);
}

/* ---- one weight ---- */

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
    if (is_packed(p->model, weight)) {
        p->model->kernels->pack(p->stream, source, weight->use, &p->model->mla, out,
                                weight->matrix);
        return BT_OK;
    }
    if (p->upload)
        return upload(p, source, weight, out, error);
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
    if (!p->upload && !is_packed(p->model, weight) && !bt_dtype_is_quantised(whole->dtype)) {
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

/* The next bytes of the weight's block, or of the memory of all. */
static void *place(struct preparation *p, const struct bt_weight *weight)
{
    size_t *used = weight->block ? &p->block_used_bytes : &p->used_bytes;
    char *memory = weight->block ? p->last_block->memory.data : p->memory.data;
    void *out = memory + *used;
    *used += prepared_bytes(p->model, weight);
    return out;
}

static enum bt_status prepare_one(struct preparation *p, const struct bt_weight *weight,
                                  struct bt_error *error)
{
    void *out = place(p, weight);
    const struct bt_matrix source = *weight->matrix;
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

/* ---- memory ---- */

void bt_weight_memory_free(const struct bt_model *model, struct bt_weight_memory *memory)
{
    if (memory->data && bt_model_is_remote(model))
        bt_device_free(model->device, memory->data);
    else if (memory->data)
        munmap(memory->data, memory->bytes);
    *memory = (struct bt_weight_memory){0};
}

void bt_expert_memory_free(const struct bt_model *model, struct bt_expert_memory *list)
{
    while (list) {
        struct bt_expert_memory *block = list;
        list = block->next;
        bt_weight_memory_free(model, &block->memory);
        free(block);
    }
}

static enum bt_status check_room(const struct preparation *p, size_t bytes, struct bt_error *error)
{
    const struct bt_model *model = p->model;
    bool remote = bt_model_is_remote(model);
    uint64_t free_bytes = p->asked->limit_bytes;
    if (remote) {
        struct bt_device_info info;
        bt_device_info(model->device, &info);
        if (info.total_bytes == 0)
            return bt_error_set(error, BT_ERR_INTERNAL, "%s: %s does not say what memory it has",
                                model->dir, model->device->name);
        free_bytes = free_bytes && free_bytes < info.free_bytes ? free_bytes : info.free_bytes;
    } else if (!free_bytes) {
        free_bytes = bt_memory_available_bytes();
    }
    if (bytes <= free_bytes)
        return BT_OK;
    return bt_error_set(error, BT_ERR_NO_MEMORY,
                        "%s: its weights need %.1f MiB in %s, %.1f MiB of memory%s%s are free",
                        model->dir, mib(bytes), bt_model_dtype_name(model->dtype), mib(free_bytes),
                        remote ? " of " : "", remote ? model->device->name : "");
}

/* Of the host: touched first by the threads that pack. */
static enum bt_status allocate(const struct bt_model *model, size_t bytes, struct bt_error *error,
                               struct bt_weight_memory *ret_memory)
{
    void *data;
    if (bt_model_is_remote(model)) {
        enum bt_status status = bt_device_alloc(model->device, bytes, error, &data);
        if (status == BT_OK)
            *ret_memory = (struct bt_weight_memory){data, bytes};
        return status;
    }
    bytes = (bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for %.1f MiB of weights",
                            model->dir, mib(bytes));
    *ret_memory = (struct bt_weight_memory){data, bytes};
    (void)madvise(data, bytes, MADV_HUGEPAGE);
    bt_team_place_memory(model->team, data, bytes);
    return BT_OK;
}

/* Of the weights from `index` on that have its block. */
static enum bt_status begin_block(struct preparation *p, size_t index, struct bt_error *error)
{
    const struct bt_weight *weights = p->asked->weights;
    uint32_t number = weights[index].block;
    size_t bytes = 0;
    for (size_t i = index; i < p->asked->count && weights[i].block == number; i++)
        bytes += is_replaced(p->model, &weights[i]) ? prepared_bytes(p->model, &weights[i]) : 0;
    struct bt_expert_memory *block = calloc(1, sizeof(*block));
    if (!block)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", p->model->dir);
    enum bt_status status = allocate(p->model, bytes, error, &block->memory);
    if (status != BT_OK) {
        free(block);
        return status;
    }
    block->moe_index = weights[index].moe_index;
    if (p->last_block)
        p->last_block->next = block;
    else
        p->blocks = block;
    p->last_block = block;
    p->block = number;
    p->block_used_bytes = 0;
    return BT_OK;
}

/* ---- all ---- */

static enum bt_status prepare_all(struct preparation *p, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (size_t i = 0; i < p->asked->count && status == BT_OK; i++) {
        const struct bt_weight *weight = &p->asked->weights[i];
        if (!is_replaced(p->model, weight))
            continue;
        if (p->asked->cancel && atomic_load(p->asked->cancel))
            return bt_error_set(error, BT_ERR_CANCELLED, "%s: no longer wanted", p->model->dir);
        if (weight->block != p->block && weight->block)
            status = begin_block(p, i, error);
        read_ahead(p, i + 1);
        if (status == BT_OK)
            status = prepare_one(p, weight, error);
        /* Of the embedding the rows stay in use, where the host has them. */
        if (weight->tensor->data != p->model->embed.data)
            bt_safetensors_drop(weight->tensor);
        p->source_bytes += weight->tensor->bytes;
        say_progress(p);
    }
    return status;
}

/* What is to be done, and the memory for it; *ret_bytes of all. */
static enum bt_status reserve(struct preparation *p, struct bt_error *error, size_t *ret_bytes)
{
    size_t all = 0, shared = 0;
    for (size_t i = 0; i < p->asked->count; i++) {
        const struct bt_weight *weight = &p->asked->weights[i];
        if (!is_replaced(p->model, weight))
            continue;
        all += prepared_bytes(p->model, weight);
        shared += weight->block ? 0 : prepared_bytes(p->model, weight);
        p->source_total += weight->tensor->bytes;
    }
    *ret_bytes = all;
    enum bt_status status = check_room(p, all, error);
    return status == BT_OK && shared > 0 ? allocate(p->model, shared, error, &p->memory) : status;
}

static enum bt_status run(struct preparation *p, struct bt_error *error)
{
    const struct bt_stream_limits limits = {.mla = p->model->mla};
    struct bt_device *device = p->model->device;
    enum bt_status status =
        bt_device_stream_create(device, &limits, p->asked->team, error, &p->stream);
    if (status == BT_OK && bt_model_is_remote(p->model))
        status = bt_upload_create(device, p->stream, error, &p->upload);
    if (status == BT_OK)
        status = prepare_all(p, error);
    /* Also after a fault, which is kept: nothing reads the buffers then. */
    if (p->upload) {
        struct bt_error last = {0};
        enum bt_status end = bt_device_synchronize(device, p->stream, &last);
        if (status == BT_OK && end != BT_OK)
            status = bt_error_set(error, end, "%s: %s", p->model->dir, last.text);
    }
    bt_upload_destroy(p->upload);
    bt_device_stream_destroy(device, p->stream);
    return status;
}

enum bt_status bt_weights_prepare(const struct bt_preparation *asked, struct bt_error *error,
                                  struct bt_weight_memory *ret_memory,
                                  struct bt_expert_memory **ret_blocks)
{
    struct preparation p = {.asked = asked, .model = asked->model, .start_ns = bt_clock_now_ns()};
    size_t bytes = 0;
    p.said_ns = p.start_ns;
    enum bt_status status = bt_device_enter(asked->model->device, error);
    if (status == BT_OK)
        status = reserve(&p, error, &bytes);
    if (status == BT_OK && bytes > 0)
        status = run(&p, error);
    if (status != BT_OK) {
        bt_weight_memory_free(asked->model, &p.memory);
        bt_expert_memory_free(asked->model, p.blocks);
        return status;
    }
    if (bytes > 0)
        say_done(&p, bytes);
    *ret_memory = p.memory;
    *ret_blocks = p.blocks;
    return BT_OK;
}
