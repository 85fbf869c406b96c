/*
 * Whole checkpoints through the rounding: sources of every dtype give what the loader takes, with
 * the source's weights in it; spoiled ones are refused by name.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/model/model.h"
#include "common/model/safetensors_writer.h"
#include "common/model/weights.h"
#include "deploy/batonctl/quantize.h"
#include "tests/unit/model/scratch.h"

#define FILE_NAME "model.safetensors"
#define BLOCK     128
#define GATE      "model.layers.2.mlp.experts.3.gate_proj.weight"

/* What is done to one tensor of tiny before it is written. */
struct change {
    const char *tensor;
    const char *dtype;    /* NULL: as it is */
    float first;          /* 0: as it is; bf16 ones only */
    bool without;         /* leave it out */
    bool half_the_blocks; /* of the scales */
    const char *extra;    /* one more tensor, of 8 f64 */
};

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

/* All products of the layers, the MTP module's too. */
static bool is_product(const struct bt_tensor *t)
{
    return t->dim_count == 2 && strstr(t->name, "layers.") &&
           (ends_with(t->name, "_proj.weight") || ends_with(t->name, "_with_mqa.weight"));
}

/* e4m3 and the scales of its blocks: the largest of a block becomes 448. */
static void to_fp8(const struct bt_tensor *t, uint8_t *ret_values, float *ret_scales)
{
    size_t rows = t->dims[0], cols = t->dims[1], across = (cols + BLOCK - 1) / BLOCK;
    const uint16_t *w = t->data;
    assert_int_equal(t->dtype, BT_BF16);
    for (size_t i = 0; i < rows * cols; i++) {
        float *scale = &ret_scales[i / cols / BLOCK * across + i % cols / BLOCK];
        *scale = fmaxf(*scale, fabsf(bt_bf16_to_f32(w[i])) / 448);
    }
    for (size_t i = 0; i < rows * cols; i++) {
        float scale = ret_scales[i / cols / BLOCK * across + i % cols / BLOCK];
        ret_values[i] = bt_f32_to_f8_e4m3(scale > 0 ? bt_bf16_to_f32(w[i]) / scale : 0);
    }
}

struct out {
    uint32_t number;
    void *data;
    size_t bytes;
};

static void plan(struct bt_safetensors_writer *writer, const char *name, const char *dtype,
                 const uint64_t *dims, uint32_t dim_count, void *data, size_t bytes,
                 struct out *ret_out)
{
    struct bt_error error = {0};
    *ret_out = (struct out){.data = data, .bytes = bytes};
    if (bt_safetensors_writer_add(writer, name, dtype, dims, dim_count, &error, &ret_out->number) !=
        BT_OK)
        fail_msg("%s", error.text);
}

static void plan_fp8(struct bt_safetensors_writer *writer, const struct bt_tensor *t,
                     const struct change *change, struct out *outs)
{
    char name[320];
    uint64_t dims[] = {(t->dims[0] + BLOCK - 1) / BLOCK, (t->dims[1] + BLOCK - 1) / BLOCK};
    size_t blocks = dims[0] * dims[1];
    uint8_t *values = malloc(t->dims[0] * t->dims[1]);
    float *scales = calloc(blocks, sizeof(float));
    to_fp8(t, values, scales);
    plan(writer, t->name, "F8_E4M3", t->dims, 2, values, t->dims[0] * t->dims[1], &outs[0]);
    snprintf(name, sizeof(name), "%s_scale_inv", t->name);
    bool changed = change && !strcmp(change->tensor, name);
    if (changed && change->half_the_blocks)
        dims[1] = 1, blocks = dims[0];
    if (changed && change->first != 0)
        scales[0] = change->first;
    bool is_bf16 = changed && change->dtype;
    plan(writer, changed && change->without ? "elsewhere" : name, is_bf16 ? "BF16" : "F32", dims, 2,
         scales, blocks * (is_bf16 ? 2 : 4), &outs[1]);
}

static void plan_plain(struct bt_safetensors_writer *writer, const struct bt_tensor *t,
                       const struct change *change, struct out *outs)
{
    bool changed = change && !strcmp(change->tensor, t->name);
    const char *dtype = changed && change->dtype ? change->dtype : t->dtype_name;
    size_t bytes = t->bytes;
    char *data = malloc(t->bytes + 1);
    memcpy(data, t->data, t->bytes);
    if (changed && change->first != 0) {
        uint16_t first = bt_f32_to_bf16(change->first);
        memcpy(data, &first, sizeof(first));
    }
    if (changed && change->dtype)
        bytes = bytes / 2 * bt_safetensors_dtype_bits(dtype) / 8;
    plan(writer, t->name, dtype, t->dims, t->dim_count, data, bytes, &outs[0]);
}

/* A directory like tiny, with `change` (NULL: none); fp8: with all products in it. */
static void source_open(bool fp8, const struct change *change, struct scratch *ret_scratch)
{
    char path[512];
    struct bt_safetensors *file;
    struct bt_safetensors_writer *writer;
    snprintf(path, sizeof(path), "%s/tiny/%s", TESTS_MODELS, FILE_NAME);
    assert_int_equal(bt_safetensors_open_file(path, NULL, &file), BT_OK);
    scratch_open("tiny", ret_scratch);
    scratch_remove(ret_scratch, FILE_NAME);
    snprintf(path, sizeof(path), "%s/%s", ret_scratch->dir, FILE_NAME);
    assert_int_equal(bt_safetensors_writer_create(path, NULL, &writer), BT_OK);
    size_t tensors = bt_safetensors_count(file);
    struct out *outs = calloc(2 * tensors + 1, sizeof(*outs));
    for (size_t i = 0; i < tensors; i++) {
        const struct bt_tensor *t = bt_safetensors_at(file, i);
        if (fp8 && is_product(t))
            plan_fp8(writer, t, change, &outs[2 * i]);
        else
            plan_plain(writer, t, change, &outs[2 * i]);
    }
    if (change && change->extra)
        plan(writer, change->extra, "F64", (uint64_t[]){8}, 1, calloc(8, 8), 64,
             &outs[2 * tensors]);
    assert_int_equal(bt_safetensors_writer_begin(writer, NULL), BT_OK);
    for (size_t i = 0; i <= 2 * tensors; i++) {
        if (outs[i].data)
            assert_int_equal(bt_safetensors_writer_put(writer, outs[i].number, 0, outs[i].data,
                                                       outs[i].bytes, NULL),
                             BT_OK);
        free(outs[i].data);
    }
    assert_int_equal(bt_safetensors_writer_finish(writer, NULL), BT_OK);
    bt_safetensors_writer_destroy(writer);
    bt_safetensors_close(file);
    free(outs);
    if (!fp8)
        return;
    json_t *config = scratch_read_json(ret_scratch, "config.json");
    json_object_set_new(
        config, "quantization_config",
        json_pack("{s:s,s:[i,i]}", "quant_method", "fp8", "weight_block_size", BLOCK, BLOCK));
    scratch_write_json(ret_scratch, "config.json", config);
    json_decref(config);
}

/* An empty directory. */
static void empty_open(struct scratch *ret_scratch)
{
    const char *root = getenv("TMPDIR");
    snprintf(ret_scratch->dir, sizeof(ret_scratch->dir), "%s/baton-quantize-XXXXXX",
             root ? root : "/tmp");
    assert_non_null(mkdtemp(ret_scratch->dir));
}

static enum bt_status quantize(const struct scratch *source, const struct scratch *out,
                               enum ctl_quantize_format format, struct bt_error *error)
{
    const struct ctl_quantize_options options = {.model = source->dir,
                                                 .out = out->dir,
                                                 .format = format,
                                                 .keep_dense = true,
                                                 .keep_head = true};
    struct ctl_quantize_report report;
    enum bt_status status = ctl_quantize(&options, error, &report);
    if (status == BT_OK)
        ctl_quantize_report_finish(&report);
    return status;
}

static struct bt_model *load(const struct scratch *scratch, enum bt_model_dtype dtype)
{
    struct bt_error error = {0};
    struct bt_model *model = NULL;
    const struct bt_model_options options = {.dir = scratch->dir, .kernels = "ref", .dtype = dtype};
    if (bt_model_load(&options, &error, &model) != BT_OK)
        fail_msg("%s", error.text);
    return model;
}

/* Root of (difference² / size²) of two matrices in ROWS. */
static double relative_error(const struct bt_matrix *exact, const struct bt_matrix *other)
{
    double error = 0, size = 0;
    float *a = malloc(exact->cols * sizeof(*a)), *b = malloc(exact->cols * sizeof(*b));
    assert_true(exact->rows == other->rows && exact->cols == other->cols);
    for (uint32_t row = 0; row < exact->rows; row++) {
        bt_weight_read_row(exact, row, a);
        bt_weight_read_row(other, row, b);
        for (uint32_t i = 0; i < exact->cols; i++) {
            error += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
            size += (double)a[i] * (double)a[i];
        }
    }
    free(a);
    free(b);
    return sqrt(error / size);
}

/* Half a step of 1 / 127 of the row's largest, and what the file's and our own f32 lose. */
static void assert_int8(const struct bt_matrix *exact, const struct bt_matrix *rounded)
{
    float *a = malloc(exact->cols * sizeof(*a)), *b = malloc(exact->cols * sizeof(*b));
    bool differs = false;
    assert_true(exact->rows == rounded->rows && exact->cols == rounded->cols);
    for (uint32_t row = 0; row < exact->rows; row++) {
        float most = 0;
        bt_weight_read_row(exact, row, a);
        bt_weight_read_row(rounded, row, b);
        for (uint32_t i = 0; i < exact->cols; i++)
            most = fmaxf(most, fabsf(a[i]));
        for (uint32_t i = 0; i < exact->cols; i++) {
            assert_true(fabsf(a[i] - b[i]) <= most / 254 * 1.001f);
            differs |= a[i] != b[i];
        }
    }
    assert_true(differs);
    free(a);
    free(b);
}

/* Of rows whose largest are three to ten times their root mean square int4 loses that by 7 and by
 * the root of 12; int8 an eighteenth of it. */
static void assert_int4(const struct bt_matrix *exact, const struct bt_matrix *rounded)
{
    double error = relative_error(exact, rounded);
    assert_true(error > 0.03 && error < 0.25);
}

static void assert_bf16(const struct bt_matrix *exact, const struct bt_matrix *rounded)
{
    assert_true(relative_error(exact, rounded) <= 0x1p-9);
}

static void assert_near(const struct bt_model *exact, const struct bt_model *rounded, bool int4)
{
    for (uint32_t i = 0; i < exact->config.num_hidden_layers; i++) {
        const struct bt_layer_weights *a = &exact->layers[i], *b = &rounded->layers[i];
        assert_int8(&a->q_a, &b->q_a);
        assert_int8(&a->q_b, &b->q_b);
        assert_int8(&a->kv_a, &b->kv_a);
        assert_int8(&a->o, &b->o);
        assert_bf16(&a->kv_b, &b->kv_b);
        if (!a->experts.experts) {
            assert_bf16(&a->mlp.gate, &b->mlp.gate);
            assert_bf16(&a->mlp.up, &b->mlp.up);
            assert_bf16(&a->mlp.down, &b->mlp.down);
            continue;
        }
        for (uint32_t e = 0; e < a->experts.experts; e++) {
            (int4 ? assert_int4 : assert_int8)(&a->experts.gate[e], &b->experts.gate[e]);
            (int4 ? assert_int4 : assert_int8)(&a->experts.up[e], &b->experts.up[e]);
            assert_int8(&a->experts.down[e], &b->experts.down[e]); /* 64 inputs: no int4 */
        }
        (int4 ? assert_int4 : assert_int8)(&a->mlp.up, &b->mlp.up);
    }
    assert_true(rounded->mtp.present);
    assert_bf16(&exact->mtp.layer.experts.up[2], &rounded->mtp.layer.experts.up[2]);
    assert_bf16(&exact->mtp.layer.o, &rounded->mtp.layer.o);
}

static void check_format(bool fp8, enum ctl_quantize_format format)
{
    struct scratch source, out;
    struct bt_error error = {0};
    source_open(fp8, NULL, &source);
    empty_open(&out);
    if (quantize(&source, &out, format, &error) != BT_OK)
        fail_msg("%s", error.text);
    struct bt_model *exact = load(&source, BT_MODEL_FLOAT32),
                    *rounded = load(&out, BT_MODEL_FLOAT32);
    /* MTP weights are rows of the file as they are: no f8 may be left. */
    assert_true(rounded->mtp.layer.kv_b.dtype == BT_BF16);
    assert_near(exact, rounded, format == CTL_QUANTIZE_W4A8);
    bt_model_destroy(exact);
    bt_model_destroy(rounded);
    bt_model_destroy(load(&out, BT_MODEL_BFLOAT16));
    scratch_close(&source);
    scratch_close(&out);
}

static void test_formats(void **state)
{
    (void)state;
    for (int fp8 = 0; fp8 < 2; fp8++) {
        check_format(fp8, CTL_QUANTIZE_INT8);
        check_format(fp8, CTL_QUANTIZE_W4A8);
    }
}

static void expect_refused(bool fp8, const struct change *change, const char *tensor,
                           const char *why)
{
    struct scratch source, out;
    struct bt_error error = {0};
    source_open(fp8, change, &source);
    for (int format = 0; format < 2; format++) {
        empty_open(&out);
        assert_int_equal(quantize(&source, &out, (enum ctl_quantize_format)format, &error),
                         BT_ERR_INVALID_ARGUMENT);
        if (!strstr(error.text, tensor) || !strstr(error.text, why) ||
            !strstr(error.text, source.dir))
            fail_msg("\"%s\" does not say \"%s\" and \"%s\"", error.text, tensor, why);
        scratch_close(&out);
    }
    scratch_close(&source);
}

static void test_spoiled_scales(void **state)
{
    (void)state;
    static const char scales[] = GATE "_scale_inv";
    expect_refused(true, &(struct change){.tensor = scales, .without = true}, scales, "missing");
    expect_refused(true, &(struct change){.tensor = scales, .dtype = "BF16"}, scales,
                   "not the scales of");
    expect_refused(true, &(struct change){.tensor = scales, .half_the_blocks = true}, scales,
                   "F32 [1, 2]");
    expect_refused(true, &(struct change){.tensor = scales, .first = -1}, scales, "not a scale");
    expect_refused(true, &(struct change){.tensor = scales, .first = NAN}, scales, "not a scale");
}

static void test_dtypes_that_are_no_weights(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"I8", "U8", "I16", "F8_E5M2"};
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
        expect_refused(false, &(struct change){.tensor = GATE, .dtype = dtypes[i]}, GATE,
                       "can be rounded");
    /* f8 that config.json says nothing of */
    expect_refused(false, &(struct change){.tensor = GATE, .dtype = "F8_E4M3"}, GATE,
                   "quantization_config");
}

static void test_weights_that_are_no_numbers(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        expect_refused(false, &(struct change){.tensor = GATE, .first = bad[i]}, GATE,
                       "row 0 has an element that is not finite");
}

static void test_rounded_already(void **state)
{
    (void)state;
    struct scratch source, out, again;
    struct bt_error error = {0};
    source_open(false, NULL, &source);
    empty_open(&out);
    empty_open(&again);
    assert_int_equal(quantize(&source, &out, CTL_QUANTIZE_W4A8, &error), BT_OK);
    assert_int_equal(quantize(&out, &again, CTL_QUANTIZE_INT8, &error), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "rounded to integers already"));
    scratch_close(&source);
    scratch_close(&out);
    scratch_close(&again);
}

/* Old exports have such buffers; and an expert that config.json does not know is no expert. */
static void test_tensors_beside(void **state)
{
    (void)state;
    static const char *const names[] = {"model.layers.0.self_attn.rotary_emb.inv_freq",
                                        "model.layers.2.mlp.experts.4000000000.gate_proj.weight"};
    for (int i = 0; i < 2; i++) {
        struct scratch source, out;
        struct bt_error error = {0};
        char path[512];
        struct bt_safetensors *file;
        source_open(false, &(struct change){.tensor = "", .extra = names[i]}, &source);
        empty_open(&out);
        if (quantize(&source, &out, CTL_QUANTIZE_W4A8, &error) != BT_OK)
            fail_msg("%s", error.text);
        snprintf(path, sizeof(path), "%s/%s", out.dir, FILE_NAME);
        assert_int_equal(bt_safetensors_open_file(path, NULL, &file), BT_OK);
        const struct bt_tensor *kept = bt_safetensors_find(file, names[i]);
        assert_true(kept && !strcmp(kept->dtype_name, "F64") && kept->bytes == 64);
        bt_safetensors_close(file);
        scratch_close(&source);
        scratch_close(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_spoiled_scales),
        cmocka_unit_test(test_dtypes_that_are_no_weights),
        cmocka_unit_test(test_weights_that_are_no_numbers),
        cmocka_unit_test(test_rounded_already),
        cmocka_unit_test(test_tensors_beside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
