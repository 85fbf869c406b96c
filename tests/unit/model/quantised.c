#include "tests/unit/model/quantised.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/kernels/dtype.h"
#include "common/model/quantize.h"
#include "common/model/safetensors.h"
#include "common/model/safetensors_writer.h"

#define FILE_NAME "model.safetensors"
#define BLOCK     128

enum form { PLAIN, FP8, INT8, INT4 };

static bool has(const char *name, const char *part)
{
    return strstr(name, part) != NULL;
}

static bool is_product(const char *name)
{
    return has(name, "_proj") && !has(name, "eh_proj") && !has(name, "layers.6.");
}

static enum form form_of(enum quantised_kind kind, const struct bt_tensor *tensor)
{
    const char *name = tensor->name;
    if (!is_product(name))
        return PLAIN;
    if (kind == QUANTISED_FP8)
        return has(name, ".mlp.") || has(name, "kv_b_proj") || has(name, "o_proj") ? FP8 : PLAIN;
    return kind == QUANTISED_INT4 && tensor->dims[1] % BLOCK == 0 ? INT4 : INT8;
}

/* A tensor of the new file and its data. */
struct made {
    char name[160];
    const char *dtype;
    uint64_t dims[2];
    uint32_t dim_count;
    const void *data;
    size_t bytes;
    void *owned;
};

struct file {
    struct made *made;
    size_t count;
};

static void *append(struct file *file, const char *name, const char *ending, const char *dtype,
                    uint64_t rows, uint64_t cols, size_t element_bytes)
{
    struct made *made = &file->made[file->count++];
    size_t bytes = rows * (cols ? cols : 1) * element_bytes;
    *made = (struct made){.dtype = dtype, .dims = {rows, cols}, .dim_count = cols ? 2 : 1};
    made->data = made->owned = calloc(1, bytes);
    made->bytes = bytes;
    snprintf(made->name, sizeof(made->name), "%s%s", name, ending);
    return made->owned;
}

static void make_fp8(struct file *file, const char *name, const float *w, size_t rows, size_t cols)
{
    size_t blocks = (cols + BLOCK - 1) / BLOCK;
    uint8_t *values = append(file, name, "", "F8_E4M3", rows, cols, 1);
    float *scales = append(file, name, "_scale_inv", "F32", (rows + BLOCK - 1) / BLOCK, blocks, 4);
    for (size_t i = 0; i < rows * cols; i++) {
        float *scale = &scales[i / cols / BLOCK * blocks + i % cols / BLOCK];
        *scale = fmaxf(*scale, fabsf(w[i]) / 448);
    }
    for (size_t i = 0; i < rows * cols; i++) {
        float scale = scales[i / cols / BLOCK * blocks + i % cols / BLOCK];
        values[i] = bt_f32_to_f8_e4m3(scale > 0 ? w[i] / scale : 0);
    }
}

static void make_int8(struct file *file, const char *name, const float *w, size_t rows, size_t cols)
{
    int8_t *values = append(file, name, "", "I8", rows, cols, 1);
    float *scales = append(file, name, "_scale", "F32", rows, 0, 4);
    for (size_t row = 0; row < rows; row++)
        scales[row] = bt_quantize_row_i8(w + row * cols, cols, values + row * cols);
}

static void make_int4(struct file *file, const char *name, const float *w, size_t rows, size_t cols)
{
    uint8_t *bytes = append(file, name, "", "U8", rows, cols / 2, 1);
    float *scales = append(file, name, "_scale", "F32", rows, 0, 4);
    uint8_t *groups = append(file, name, "_group_scale", "U8", rows, cols / BLOCK, 1);
    int8_t *values = malloc(cols);
    for (size_t row = 0; row < rows; row++) {
        scales[row] = bt_quantize_row_i4(w + row * cols, cols, NULL, false, values,
                                         groups + row * (cols / BLOCK));
        bt_quantize_pack_i4(values, cols, bytes + row * cols / 2);
    }
    free(values);
}

static void make(struct file *file, const struct bt_tensor *tensor, enum form form)
{
    if (form == PLAIN) {
        struct made *made = &file->made[file->count++];
        *made = (struct made){.dtype = tensor->dtype_name,
                              .dims = {tensor->dims[0], tensor->dims[1]},
                              .dim_count = tensor->dim_count,
                              .data = tensor->data,
                              .bytes = tensor->bytes};
        snprintf(made->name, sizeof(made->name), "%s", tensor->name);
        return;
    }
    size_t rows = tensor->dims[0], cols = tensor->dims[1];
    float *w = malloc(rows * cols * sizeof(*w));
    assert_int_equal(tensor->dtype, BT_BF16);
    for (size_t i = 0; i < rows * cols; i++)
        w[i] = bt_bf16_to_f32(((const uint16_t *)tensor->data)[i]);
    if (form == FP8)
        make_fp8(file, tensor->name, w, rows, cols);
    else if (form == INT8)
        make_int8(file, tensor->name, w, rows, cols);
    else
        make_int4(file, tensor->name, w, rows, cols);
    free(w);
}

static void write_file(const struct file *file, const char *path)
{
    struct bt_error error = {0};
    struct bt_safetensors_writer *writer;
    uint32_t *numbers = calloc(file->count, sizeof(*numbers));
    enum bt_status status = bt_safetensors_writer_create(path, &error, &writer);
    for (size_t i = 0; i < file->count && status == BT_OK; i++)
        status = bt_safetensors_writer_add(writer, file->made[i].name, file->made[i].dtype,
                                           file->made[i].dims, file->made[i].dim_count, &error,
                                           &numbers[i]);
    if (status == BT_OK)
        status = bt_safetensors_writer_begin(writer, &error);
    for (size_t i = 0; i < file->count && status == BT_OK; i++)
        status = bt_safetensors_writer_put(writer, numbers[i], 0, file->made[i].data,
                                           file->made[i].bytes, &error);
    if (status == BT_OK)
        status = bt_safetensors_writer_finish(writer, &error);
    if (status != BT_OK)
        fail_msg("%s", error.text);
    bt_safetensors_writer_destroy(writer);
    free(numbers);
}

void quantised_open(enum quantised_kind kind, struct scratch *ret_scratch)
{
    static const char *const configs[] = {
        [QUANTISED_FP8] = "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}",
        [QUANTISED_INT8] = "{\"quant_method\":\"baton\",\"group_size\":128}",
        [QUANTISED_INT4] = "{\"quant_method\":\"baton\",\"group_size\":128}",
    };
    char path[512];
    struct bt_safetensors *source;
    scratch_open("tiny", ret_scratch);
    assert_int_equal(bt_safetensors_open(TESTS_MODELS "/tiny", NULL, &source), BT_OK);
    size_t tensors = bt_safetensors_count(source);
    struct file file = {calloc(3 * tensors, sizeof(*file.made)), 0};
    for (size_t i = 0; i < tensors; i++)
        make(&file, bt_safetensors_at(source, i), form_of(kind, bt_safetensors_at(source, i)));
    snprintf(path, sizeof(path), "%s/%s", ret_scratch->dir, FILE_NAME);
    scratch_remove(ret_scratch, FILE_NAME);
    write_file(&file, path);
    json_t *config = scratch_read_json(ret_scratch, "config.json");
    json_object_set_new(config, "quantization_config", json_loads(configs[kind], 0, NULL));
    scratch_write_json(ret_scratch, "config.json", config);
    json_decref(config);
    for (size_t i = 0; i < file.count; i++)
        free(file.made[i].owned);
    free(file.made);
    bt_safetensors_close(source);
}
