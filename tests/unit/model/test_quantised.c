/*
 * Checkpoints with quantised weights: what is loaded is what the formats say (README.md of
 * common/model), and each spoiled scale is an error that names file and tensor.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/kernels/tiles.h"
#include "common/model/model.h"
#include "common/model/safetensors_writer.h"
#include "tests/unit/model/scratch.h"

#define FILE_NAME "model.safetensors"
#define SEED      99
#define MAX_ADDED 64
#define EXPERTS   16 /* of tiny */

#define GATE "model.layers.0.mlp.gate_proj.weight"
#define UP   "model.layers.0.mlp.up_proj.weight"
#define DOWN "model.layers.1.mlp.experts.3.down_proj.weight"
#define KV_B "model.layers.0.self_attn.kv_b_proj.weight"

struct added {
    char name[192];
    const char *dtype;
    uint64_t dims[2];
    uint32_t dim_count;
    uint8_t *data;
    size_t bytes;
};

/* What takes the place of tensors of tiny. */
struct changes {
    struct scratch scratch;
    struct added added[MAX_ADDED];
    size_t count;
    const char *quantization; /* of config.json */
};

static uint64_t random_at(uint64_t index)
{
    return bt_random_u64(SEED, index, 0);
}

static struct added *add(struct changes *changes, const char *name, const char *ending,
                         const char *dtype, uint64_t rows, uint64_t cols, size_t element_bytes)
{
    assert_true(changes->count < MAX_ADDED);
    struct added *added = &changes->added[changes->count++];
    *added = (struct added){.dtype = dtype, .dims = {rows, cols}, .dim_count = cols ? 2 : 1};
    snprintf(added->name, sizeof(added->name), "%s%s", name, ending);
    added->bytes = rows * (cols ? cols : 1) * element_bytes;
    added->data = calloc(1, added->bytes);
    return added;
}

static void fill_scales(struct added *added)
{
    for (size_t i = 0; i < added->bytes / sizeof(float); i++)
        ((float *)added->data)[i] = 0.001f * (float)(1 + random_at(i) % 50);
}

static void add_fp8(struct changes *changes, const char *name, uint64_t rows, uint64_t cols)
{
    struct added *values = add(changes, name, "", "F8_E4M3", rows, cols, 1);
    for (size_t i = 0; i < values->bytes; i++) {
        uint8_t bits = (uint8_t)random_at(i);
        values->data[i] = (bits & 0x7f) == 0x7f ? 0 : bits;
    }
    fill_scales(add(changes, name, "_scale_inv", "F32", (rows + 127) / 128, (cols + 127) / 128, 4));
}

static void add_int8(struct changes *changes, const char *name, uint64_t rows, uint64_t cols)
{
    struct added *values = add(changes, name, "", "I8", rows, cols, 1);
    for (size_t i = 0; i < values->bytes; i++)
        values->data[i] = (uint8_t)(random_at(i) % 255 - 127);
    fill_scales(add(changes, name, "_scale", "F32", rows, 0, 4));
}

/* Elements -7 … 7, group scales up to 18: 126 at most. */
static void add_int4(struct changes *changes, const char *name, uint64_t rows, uint64_t cols)
{
    struct added *values = add(changes, name, "", "U8", rows, cols / 2, 1);
    for (size_t i = 0; i < values->bytes; i++) {
        int low = (int)(random_at(2 * i) % 15) - 7, high = (int)(random_at(2 * i + 1) % 15) - 7;
        values->data[i] = (uint8_t)((low & 15) | (high & 15) << 4);
    }
    fill_scales(add(changes, name, "_scale", "F32", rows, 0, 4));
    struct added *groups = add(changes, name, "_group_scale", "U8", rows, cols / 128, 1);
    for (size_t i = 0; i < groups->bytes; i++)
        groups->data[i] = (uint8_t)(1 + random_at(i) % 18);
}

/* `part` of every expert of layer 1. */
static void add_experts(struct changes *changes,
                        void (*fn)(struct changes *, const char *, uint64_t, uint64_t),
                        const char *part, uint64_t rows, uint64_t cols)
{
    char name[96];
    for (int i = 0; i < EXPERTS; i++) {
        snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%d.%s_proj.weight", i, part);
        fn(changes, name, rows, cols);
    }
}

static struct added *find(struct changes *changes, const char *name)
{
    for (size_t i = 0; i < changes->count; i++)
        if (!strcmp(changes->added[i].name, name))
            return &changes->added[i];
    fail_msg("no %s", name);
    return NULL;
}

static void begin(struct changes *changes, const char *quantization)
{
    *changes = (struct changes){.quantization = quantization};
    scratch_open("tiny", &changes->scratch);
}

static void finish(struct changes *changes)
{
    for (size_t i = 0; i < changes->count; i++)
        free(changes->added[i].data);
    scratch_close(&changes->scratch);
}

static void put_tensor(json_t *header, const char *name, const char *dtype, const uint64_t *dims,
                       uint32_t dim_count, const void *data, size_t bytes, uint8_t *out,
                       size_t *used)
{
    json_t *shape = json_array();
    for (uint32_t i = 0; i < dim_count; i++)
        json_array_append_new(shape, json_integer((json_int_t)dims[i]));
    json_object_set_new(header, name,
                        json_pack("{s:s,s:o,s:[I,I]}", "dtype", dtype, "shape", shape,
                                  "data_offsets", (json_int_t)*used, (json_int_t)(*used + bytes)));
    memcpy(out + *used, data, bytes);
    *used += bytes;
}

static bool is_replaced(const struct changes *changes, const char *name)
{
    for (size_t i = 0; i < changes->count; i++)
        if (!strcmp(changes->added[i].name, name))
            return true;
    return false;
}

/* Floats first: their data is aligned then. */
static int compare_dtypes(const void *left, const void *right)
{
    const struct added *a = left, *b = right;
    return (strcmp(a->dtype, "F32") != 0) - (strcmp(b->dtype, "F32") != 0);
}

/* The checkpoint with the changes made. */
static void write_changes(struct changes *changes)
{
    struct bt_safetensors *file;
    char path[512];
    snprintf(path, sizeof(path), "%s/tiny/%s", TESTS_MODELS, FILE_NAME);
    assert_int_equal(bt_safetensors_open_file(path, NULL, &file), BT_OK);
    uint8_t *data = malloc((size_t)32 << 20);
    size_t used = 0;
    json_t *header = json_object();
    qsort(changes->added, changes->count, sizeof(changes->added[0]), compare_dtypes);
    for (size_t i = 0; i < changes->count; i++) {
        const struct added *a = &changes->added[i];
        if (!strcmp(a->dtype, "F32"))
            put_tensor(header, a->name, a->dtype, a->dims, a->dim_count, a->data, a->bytes, data,
                       &used);
    }
    for (size_t i = 0; i < bt_safetensors_count(file); i++) {
        const struct bt_tensor *t = bt_safetensors_at(file, i);
        if (!is_replaced(changes, t->name))
            put_tensor(header, t->name, t->dtype_name, t->dims, t->dim_count, t->data, t->bytes,
                       data, &used);
    }
    for (size_t i = 0; i < changes->count; i++) {
        const struct added *a = &changes->added[i];
        if (strcmp(a->dtype, "F32") != 0)
            put_tensor(header, a->name, a->dtype, a->dims, a->dim_count, a->data, a->bytes, data,
                       &used);
    }
    char *text = json_dumps(header, JSON_COMPACT);
    uint64_t length = (strlen(text) + 7) / 8 * 8;
    uint8_t *whole = malloc(8 + length + used);
    memset(whole, ' ', 8 + length);
    memcpy(whole, &length, sizeof(length));
    memcpy(whole + 8, text, strlen(text));
    memcpy(whole + 8 + length, data, used);
    scratch_write(&changes->scratch, FILE_NAME, whole, 8 + length + used);
    free(whole);
    free(text);
    free(data);
    json_decref(header);
    bt_safetensors_close(file);
    json_t *config = scratch_read_json(&changes->scratch, "config.json");
    if (changes->quantization)
        json_object_set_new(config, "quantization_config",
                            json_loads(changes->quantization, 0, NULL));
    scratch_write_json(&changes->scratch, "config.json", config);
    json_decref(config);
}

static enum bt_status load(const struct changes *changes, enum bt_model_dtype dtype,
                           struct bt_error *error, struct bt_model **ret_model)
{
    const struct bt_model_options options = {
        .dir = changes->scratch.dir, .kernels = "ref", .dtype = dtype};
    return bt_model_load(&options, error, ret_model);
}

static struct bt_model *load_sound(const struct changes *changes, enum bt_model_dtype dtype)
{
    struct bt_error error = {0};
    struct bt_model *model = NULL;
    if (load(changes, dtype, &error, &model) != BT_OK)
        fail_msg("%s", error.text);
    return model;
}

static int int4_at(const struct added *values, size_t index)
{
    int bits = values->data[index / 2] >> (index % 2 ? 4 : 0) & 15;
    return bits > 7 ? bits - 16 : bits;
}

/* By the formats' own words, in double. */
static double expected(struct changes *changes, const char *name, size_t row, size_t col)
{
    char beside[160];
    const struct added *values = find(changes, name);
    bool is_fp8 = !strcmp(values->dtype, "F8_E4M3"), is_int4 = !strcmp(values->dtype, "U8");
    size_t cols = values->dims[1] * (is_int4 ? 2 : 1), groups = (cols + 127) / 128;
    snprintf(beside, sizeof(beside), "%s%s", name, is_fp8 ? "_scale_inv" : "_scale");
    const float *scales = (const float *)find(changes, beside)->data;
    if (is_fp8)
        return (double)bt_f8_e4m3_to_f32(values->data[row * cols + col]) *
               (double)scales[row / 128 * groups + col / 128];
    if (!is_int4)
        return (double)(int8_t)values->data[row * cols + col] * (double)scales[row];
    snprintf(beside, sizeof(beside), "%s_group_scale", name);
    return (double)int4_at(values, row * cols + col) *
           find(changes, beside)->data[row * groups + col / 128] * (double)scales[row];
}

/* Two roundings of f32 at most. */
static void assert_dequantised(struct changes *changes, const char *name,
                               const struct bt_matrix *matrix)
{
    assert_int_equal(matrix->dtype, BT_F32);
    assert_int_equal(matrix->layout, BT_LAYOUT_ROWS);
    for (size_t i = 0; i < (size_t)matrix->rows * matrix->cols; i++) {
        double ours = (double)((const float *)matrix->data)[i];
        double theirs = expected(changes, name, i / matrix->cols, i % matrix->cols);
        if (!(fabs(ours - theirs) <= fabs(theirs) * 0x1p-22))
            fail_msg("%s: element %zu is %g, not %g", name, i, ours, theirs);
    }
}

/* In tiles: the scale of a row is apart for integers; F8 is rounded to bf16 with its scale. */
static void assert_packed(struct changes *changes, const char *name, const struct bt_matrix *matrix,
                          enum bt_dtype dtype)
{
    assert_int_equal(matrix->dtype, dtype);
    assert_int_equal(matrix->layout, BT_LAYOUT_TILES);
    for (size_t row = 0; row < matrix->rows; row += 37) {
        for (size_t col = 0; col < matrix->cols; col++) {
            double ours = (double)bt_tiles_at(matrix, row, col);
            double theirs = expected(changes, name, row, col);
            if (dtype != BT_F8_E4M3)
                ours *= (double)matrix->scales[row];
            if (!(fabs(ours - theirs) <= fabs(theirs) * 0x1p-8))
                fail_msg("%s: element %zu, %zu is %g, not %g", name, row, col, ours, theirs);
        }
    }
}

static const struct bt_matrix *gate_of(const struct bt_model *model)
{
    return &model->layers[0].mlp.gate;
}

static void test_fp8(void **state)
{
    (void)state;
    struct changes changes;
    begin(&changes, "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}");
    add_fp8(&changes, GATE, 768, 256);
    add_fp8(&changes, UP, 768, 256);
    add_experts(&changes, add_fp8, "down", 256, 64);
    add_fp8(&changes, KV_B, 512, 64);
    write_changes(&changes);

    struct bt_model *model = load_sound(&changes, BT_MODEL_AUTO);
    assert_int_equal(model->dtype, BT_MODEL_FLOAT32); /* it is small */
    assert_dequantised(&changes, GATE, gate_of(model));
    assert_dequantised(&changes, DOWN, &model->layers[1].experts.down[3]);
    assert_dequantised(&changes, KV_B, &model->layers[0].kv_b);
    assert_int_equal(model->layers[0].o.dtype, BT_BF16); /* as in the file */
    bt_model_destroy(model);

    model = load_sound(&changes, BT_MODEL_BFLOAT16);
    assert_packed(&changes, GATE, gate_of(model), BT_F8_E4M3);
    assert_packed(&changes, DOWN, &model->layers[1].experts.down[3], BT_F8_E4M3);
    assert_int_equal(model->layers[0].kv_b.dtype, BT_BF16);
    assert_int_equal(model->layers[0].kv_b.layout, BT_LAYOUT_TILES);
    bt_model_destroy(model);
    finish(&changes);
}

#define BATON "{\"quant_method\":\"baton\",\"group_size\":128}"

static void begin_baton(struct changes *changes)
{
    begin(changes, BATON);
    add_int4(changes, GATE, 768, 256);
    add_int4(changes, UP, 768, 256);
    add_experts(changes, add_int8, "down", 256, 64);
}

static void test_int4_and_int8(void **state)
{
    (void)state;
    struct changes changes;
    begin_baton(&changes);
    write_changes(&changes);
    struct bt_model *model = load_sound(&changes, BT_MODEL_FLOAT32);
    assert_dequantised(&changes, GATE, gate_of(model));
    assert_dequantised(&changes, DOWN, &model->layers[1].experts.down[3]);
    bt_model_destroy(model);
    model = load_sound(&changes, BT_MODEL_BFLOAT16);
    assert_packed(&changes, GATE, gate_of(model), BT_I4);
    assert_packed(&changes, DOWN, &model->layers[1].experts.down[3], BT_I8);
    bt_model_destroy(model);
    finish(&changes);
}

/* Both of `words` in the message, and the file. */
static void expect_refused(struct changes *changes, const char *tensor, const char *why)
{
    struct bt_error error = {0};
    struct bt_model *model = NULL;
    write_changes(changes);
    for (int dtype = BT_MODEL_FLOAT32; dtype <= BT_MODEL_BFLOAT16; dtype++) {
        assert_int_equal(load(changes, (enum bt_model_dtype)dtype, &error, &model),
                         BT_ERR_INVALID_ARGUMENT);
        assert_null(model);
        if (!strstr(error.text, tensor) || !strstr(error.text, why) ||
            !strstr(error.text, changes->scratch.dir))
            fail_msg("\"%s\" does not say \"%s\" and \"%s\"", error.text, tensor, why);
    }
    finish(changes);
}

static void test_scales_that_are_no_numbers(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -0.5f};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct changes changes;
        begin_baton(&changes);
        ((float *)find(&changes, GATE "_scale")->data)[767] = bad[i];
        expect_refused(&changes, GATE "_scale", "element 767");
        begin(&changes, "{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}");
        add_fp8(&changes, GATE, 768, 256);
        ((float *)find(&changes, GATE "_scale_inv")->data)[11] = bad[i];
        expect_refused(&changes, GATE "_scale_inv", "element 11");
    }
}

static void test_scales_that_do_not_fit(void **state)
{
    (void)state;
    static const struct {
        const char *tensor, *said;
        uint64_t rows, cols;
        const char *dtype;
        size_t bytes;
    } cases[] = {
        {GATE "_scale", "shape [384]", 384, 0, "F32", 4 * 384},
        {GATE "_scale", "shape [768, 1]", 768, 1, "F32", 4 * 768},
        {GATE "_scale", "dtype BF16", 768, 0, "BF16", 2 * 768},
        {GATE "_group_scale", "shape [768, 1]", 768, 1, "U8", 768},
        {GATE "_group_scale", "dtype I8", 768, 2, "I8", 2 * 768},
        {GATE, "shape [768, 64]", 768, 64, "U8", 768 * 64},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct changes changes;
        begin_baton(&changes);
        struct added *added = find(&changes, cases[i].tensor);
        assert_true(cases[i].bytes <= added->bytes);
        added->dims[0] = cases[i].rows;
        added->dims[1] = cases[i].cols;
        added->dim_count = cases[i].cols ? 2 : 1;
        added->dtype = cases[i].dtype;
        added->bytes = cases[i].bytes;
        expect_refused(&changes, cases[i].tensor, cases[i].said);
    }
}

static void test_missing_scales(void **state)
{
    (void)state;
    static const char *const missing[] = {GATE "_scale", GATE "_group_scale"};
    for (int i = 0; i < 2; i++) {
        struct changes changes;
        begin_baton(&changes);
        struct added *added = find(&changes, missing[i]);
        snprintf(added->name, sizeof(added->name), "elsewhere_%d", i);
        expect_refused(&changes, missing[i], "is missing");
    }
}

static void test_groups_beyond_a_byte(void **state)
{
    (void)state;
    struct changes changes;
    begin_baton(&changes);
    uint8_t *values = find(&changes, GATE)->data,
            *groups = find(&changes, GATE "_group_scale")->data;
    values[700 * 128 + 64] = 0x70; /* 7 in the second group of row 700 */
    groups[700 * 2 + 1] = 19;
    expect_refused(&changes, GATE, "row 700");

    begin_baton(&changes);
    find(&changes, GATE)->data[3 * 128] = 0x08; /* -8 */
    expect_refused(&changes, GATE, "row 3 ");

    /* A large scale of small elements is sound. */
    begin_baton(&changes);
    memset(find(&changes, GATE)->data + 5 * 128, 0x1f, 64); /* -1 and 1 */
    find(&changes, GATE "_group_scale")->data[5 * 2] = 127;
    write_changes(&changes);
    bt_model_destroy(load_sound(&changes, BT_MODEL_BFLOAT16));
    finish(&changes);
}

static void test_only_where_config_says(void **state)
{
    (void)state;
    struct changes changes;
    begin_baton(&changes);
    changes.quantization = NULL;
    expect_refused(&changes, GATE, "dtype U8 is not offered here");
    begin(&changes, BATON);
    add_fp8(&changes, GATE, 768, 256);
    expect_refused(&changes, GATE, "dtype F8_E4M3 is not offered here");
    begin(&changes, BATON);
    add_int8(&changes, "model.embed_tokens.weight", 2048, 256);
    expect_refused(&changes, "model.embed_tokens.weight", "dtype I8 is not offered here");
    /* int4 needs whole groups: tiny's experts have 64 inputs. */
    begin(&changes, BATON);
    add(&changes, DOWN, "", "U8", 256, 32, 1);
    expect_refused(&changes, DOWN, "a multiple of 128");
    /* Scales that nothing asked for. */
    begin_baton(&changes);
    fill_scales(add(&changes, DOWN, "_scale_inv", "F32", 2, 1, 4));
    expect_refused(&changes, DOWN "_scale_inv", "not a tensor of this model");
}

/* What one operation multiplies with is of one kind; the others may differ. */
static void test_weights_of_one_operation(void **state)
{
    (void)state;
    static const char expert[] = "model.layers.1.mlp.experts.5.";
    char gate[96], up[96], down[96];
    struct changes changes;
    snprintf(gate, sizeof(gate), "%sgate_proj.weight", expert);
    snprintf(up, sizeof(up), "%sup_proj.weight", expert);
    snprintf(down, sizeof(down), "%sdown_proj.weight", expert);

    begin(&changes, BATON);
    add_int8(&changes, GATE, 768, 256);
    expect_refused(&changes, "tensor " UP, "bf16, but " GATE);
    begin(&changes, BATON);
    add_int4(&changes, GATE, 768, 256);
    add_int8(&changes, UP, 768, 256);
    expect_refused(&changes, "tensor " UP, "i8, but " GATE);
    begin(&changes, BATON);
    add_int8(&changes, up, 64, 256);
    expect_refused(&changes, up, "i8, but model.layers.1.mlp.experts.5.gate_proj.weight");
    begin(&changes, BATON);
    add_int8(&changes, gate, 64, 256);
    add_int8(&changes, up, 64, 256);
    expect_refused(&changes, gate, "i8, but model.layers.1.mlp.experts.0.gate_proj.weight");
    begin(&changes, BATON);
    add_int8(&changes, down, 256, 64);
    expect_refused(&changes, down, "i8, but model.layers.1.mlp.experts.0.down_proj.weight");

    begin(&changes, BATON);
    add_int8(&changes, "model.layers.0.mlp.down_proj.weight", 256, 768);
    add_int8(&changes, "model.layers.1.mlp.shared_experts.gate_proj.weight", 64, 256);
    add_int8(&changes, "model.layers.1.mlp.shared_experts.up_proj.weight", 64, 256);
    add_int8(&changes, "model.layers.1.self_attn.o_proj.weight", 256, 256);
    add_experts(&changes, add_int8, "down", 256, 64);
    write_changes(&changes);
    bt_model_destroy(load_sound(&changes, BT_MODEL_BFLOAT16));
    finish(&changes);
}

/* A down projection of one input too many, in a file of holes. */
static void test_inputs_beyond_int32(void **state)
{
    (void)state;
    static const uint64_t inner = BT_INT8_MAX_COLS + 1, hidden = 256;
    static const char *const parts[] = {"gate", "up", "down"};
    struct scratch scratch;
    struct bt_safetensors *file;
    struct bt_safetensors_writer *writer;
    struct bt_error error = {0};
    struct bt_model *model = NULL;
    char source[512], path[512], name[128];
    scratch_open("tiny", &scratch);
    snprintf(source, sizeof(source), "%s/tiny/%s", TESTS_MODELS, FILE_NAME);
    snprintf(path, sizeof(path), "%s/%s", scratch.dir, FILE_NAME);
    assert_int_equal(bt_safetensors_open_file(source, NULL, &file), BT_OK);
    scratch_remove(&scratch, FILE_NAME);
    assert_int_equal(bt_safetensors_writer_create(path, NULL, &writer), BT_OK);
    uint32_t number;
    for (size_t i = 0; i < bt_safetensors_count(file); i++) {
        const struct bt_tensor *t = bt_safetensors_at(file, i);
        if (strncmp(t->name, "model.layers.0.mlp.", 19) != 0)
            assert_int_equal(bt_safetensors_writer_add(writer, t->name, t->dtype_name, t->dims,
                                                       t->dim_count, NULL, &number),
                             BT_OK);
    }
    for (int i = 0; i < 3; i++) {
        const uint64_t dims[] = {i == 2 ? hidden : inner, i == 2 ? inner : hidden};
        snprintf(name, sizeof(name), "model.layers.0.mlp.%s_proj.weight", parts[i]);
        assert_int_equal(bt_safetensors_writer_add(writer, name, "I8", dims, 2, NULL, &number),
                         BT_OK);
        strcat(name, "_scale");
        assert_int_equal(bt_safetensors_writer_add(writer, name, "F32", dims, 1, NULL, &number),
                         BT_OK);
    }
    assert_int_equal(bt_safetensors_writer_begin(writer, NULL), BT_OK);
    assert_int_equal(bt_safetensors_writer_finish(writer, NULL), BT_OK);
    bt_safetensors_writer_destroy(writer);
    bt_safetensors_close(file);
    json_t *config = scratch_read_json(&scratch, "config.json");
    json_object_set_new(config, "quantization_config", json_loads(BATON, 0, NULL));
    json_object_set_new(config, "intermediate_size", json_integer((json_int_t)inner));
    scratch_write_json(&scratch, "config.json", config);
    json_decref(config);

    const struct bt_model_options options = {.dir = scratch.dir, .kernels = "ref"};
    assert_int_equal(bt_model_load(&options, &error, &model), BT_ERR_INVALID_ARGUMENT);
    if (!strstr(error.text, "layers.0.mlp.down_proj.weight: too many inputs"))
        fail_msg("%s", error.text);
    scratch_close(&scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_int4_and_int8),
        cmocka_unit_test(test_scales_that_are_no_numbers),
        cmocka_unit_test(test_scales_that_do_not_fit),
        cmocka_unit_test(test_missing_scales),
        cmocka_unit_test(test_groups_beyond_a_byte),
        cmocka_unit_test(test_only_where_config_says),
        cmocka_unit_test(test_weights_of_one_operation),
        cmocka_unit_test(test_inputs_beyond_int32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
