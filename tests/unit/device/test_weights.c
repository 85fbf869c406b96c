/*
 * Weights in the memory of a (emulated) GPU: downloaded, they are bit for bit those of a model on
 * the CPU where rows are multiplied, and those that pack's format (cuda/weights.h) says where tiles
 * are.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/kernels/cuda/weights.h"
#include "common/model/experts.h"
#include "tests/unit/model/quantised.h"

static struct bt_device *gpu;
static struct bt_stream *stream;

/* A model's memory as a whole: thousands of downloads take long on the emulated GPU. */
static struct {
    const char *begin;
    size_t bytes;
    char *copy;
} image;

static void *download_now(const void *from, size_t bytes)
{
    struct bt_error error = {0};
    void *pinned = NULL, *copy = malloc(bytes + 1);
    assert_int_equal(bt_device_alloc_host(gpu, bytes, &error, &pinned), BT_OK);
    bt_device_copy(gpu, stream, pinned, from, bytes);
    if (bt_device_synchronize(gpu, stream, &error) != BT_OK)
        fail_msg("%s", error.text);
    memcpy(copy, pinned, bytes);
    bt_device_free_host(gpu, pinned);
    return copy;
}

static void *download(const void *from, size_t bytes)
{
    const char *begin = from;
    if (!image.copy || begin < image.begin || begin + bytes > image.begin + image.bytes)
        return download_now(from, bytes);
    return memcpy(malloc(bytes + 1), image.copy + (begin - image.begin), bytes);
}

static void take_image(const struct bt_model *model)
{
    free(image.copy);
    image.begin = model->memory.data;
    image.bytes = model->memory.bytes;
    image.copy = download_now(image.begin, image.bytes);
}

static void drop_image(void)
{
    free(image.copy);
    image.copy = NULL;
}

static struct bt_model *load(const struct bt_model_options *options)
{
    struct bt_error error = {0};
    struct bt_model *model = NULL;
    if (bt_model_load(options, &error, &model) != BT_OK)
        fail_msg("%s", error.text);
    return model;
}

/* ---- all matrices of a model ---- */

typedef void visit_fn(void *context, const struct bt_model *model, const struct bt_matrix *matrix,
                      enum bt_use use, bool stays_rows);

static void visit_mlp(visit_fn *visit, void *context, const struct bt_model *model,
                      const struct bt_mlp *mlp)
{
    visit(context, model, &mlp->gate, BT_USE_LINEAR, false);
    visit(context, model, &mlp->up, BT_USE_LINEAR, false);
    visit(context, model, &mlp->down, BT_USE_LINEAR, false);
}

static void visit_layer(visit_fn *visit, void *context, const struct bt_model *model,
                        const struct bt_layer_weights *layer)
{
    const struct bt_matrix *rows[] = {&layer->input_norm, &layer->post_attention_norm,
                                      &layer->q_a_norm,   &layer->kv_a_norm,
                                      &layer->router,     &layer->router_bias};
    const struct bt_matrix *products[] = {&layer->q_a, &layer->q_b, &layer->q, &layer->kv_a,
                                          &layer->o};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        visit(context, model, rows[i], BT_USE_LINEAR, true);
    for (size_t i = 0; i < sizeof(products) / sizeof(products[0]); i++)
        visit(context, model, products[i], BT_USE_LINEAR, false);
    visit(context, model, &layer->kv_b, BT_USE_KV_B, false);
    visit_mlp(visit, context, model, &layer->mlp);
    for (uint32_t e = 0; e < layer->experts.experts; e++) {
        const struct bt_mlp expert = {layer->experts.gate[e], layer->experts.up[e],
                                      layer->experts.down[e]};
        visit_mlp(visit, context, model, &expert);
    }
}

static void visit_all(visit_fn *visit, void *context, const struct bt_model *model)
{
    visit(context, model, &model->embed, BT_USE_LINEAR, true);
    visit(context, model, &model->final_norm, BT_USE_LINEAR, true);
    visit(context, model, &model->lm_head, BT_USE_LINEAR, false);
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++)
        visit_layer(visit, context, model, &model->layers[i]);
}

struct list {
    struct {
        struct bt_matrix matrix;
        enum bt_use use;
        bool stays_rows;
    } items[4096];
    size_t count;
};

static void add(void *context, const struct bt_model *model, const struct bt_matrix *matrix,
                enum bt_use use, bool stays_rows)
{
    struct list *list = context;
    (void)model;
    assert_true(list->count < sizeof(list->items) / sizeof(list->items[0]));
    list->items[list->count].matrix = *matrix;
    list->items[list->count].use = use;
    list->items[list->count++].stays_rows = stays_rows;
}

static struct list *matrices_of(const struct bt_model *model)
{
    struct list *list = calloc(1, sizeof(*list));
    visit_all(add, list, model);
    return list;
}

/* ---- comparing ---- */

static void assert_rows(const struct bt_matrix *ours, const struct bt_matrix *theirs)
{
    assert_int_equal(ours->layout, BT_LAYOUT_ROWS);
    assert_int_equal(ours->dtype, theirs->dtype);
    assert_null(ours->scales);
    assert_null(ours->group_scales);
    size_t bytes = (size_t)ours->rows * ours->cols * bt_dtype_bytes(ours->dtype);
    void *found = download(ours->data, bytes);
    assert_memory_equal(found, theirs->data, bytes);
    free(found);
}

/* `source` in rows, with the scales of the file. */
static void assert_packed(const struct bt_model *model, const struct bt_matrix *ours,
                          const struct bt_matrix *source, enum bt_use use)
{
    const struct bt_cuda_layout layout = bt_cuda_layout_of(source, use, &model->mla);
    unsigned char *wanted = calloc(1, layout.bytes), *found = download(ours->data, layout.bytes);
    assert_int_equal(ours->layout, BT_LAYOUT_TILES);
    assert_int_equal(ours->dtype, layout.dtype);
    for (uint32_t i = 0; i < layout.chunks; i++)
        bt_cuda_pack_chunks(source, use, &model->mla, i, 1, wanted + i * layout.chunk_bytes);
    if (layout.scales_offset < layout.bytes)
        bt_cuda_pack_scales(source, use, &model->mla, wanted + layout.scales_offset);
    assert_memory_equal(found, wanted, layout.bytes);
    free(wanted);
    free(found);
}

static void assert_rope(const struct bt_model *ours, const struct bt_model *theirs)
{
    size_t bytes = (size_t)ours->rope.max_position * ours->rope.half_dim * sizeof(float);
    float *cosines = download(ours->rope.cos, bytes), *sines = download(ours->rope.sin, bytes);
    assert_int_equal(ours->rope.half_dim, theirs->rope.half_dim);
    assert_memory_equal(cosines, theirs->rope.cos, bytes);
    assert_memory_equal(sines, theirs->rope.sin, bytes);
    free(cosines);
    free(sines);
}

/* Exact arithmetic: rows, dequantised where they were quantised. */
static void check_float32(const char *dir, uint32_t tp_rank, uint32_t tp_size)
{
    struct bt_model_options options = {.dir = dir,
                                       .kernels = "ref",
                                       .dtype = BT_MODEL_FLOAT32,
                                       .tp_rank = tp_rank,
                                       .tp_size = tp_size};
    struct bt_model *cpu = load(&options);
    options.device = gpu;
    options.kernels = NULL;
    struct bt_model *model = load(&options);
    take_image(model);
    struct list *ours = matrices_of(model), *theirs = matrices_of(cpu);
    assert_int_equal(ours->count, theirs->count);
    for (size_t i = 0; i < ours->count; i++) {
        assert_int_equal(ours->items[i].matrix.data != NULL, theirs->items[i].matrix.data != NULL);
        if (ours->items[i].matrix.data)
            assert_rows(&ours->items[i].matrix, &theirs->items[i].matrix);
    }
    drop_image();
    assert_rope(model, cpu);
    free(ours);
    free(theirs);
    bt_model_destroy(model);
    bt_model_destroy(cpu);
}

/* The file's own rows are what a CPU's model without anything to prepare has: for the sources of
 * tiles the matrices are found by name. */
static struct bt_matrix source_of(const struct bt_model *model, const char *name)
{
    const struct bt_tensor *tensor = bt_safetensors_find(model->checkpoint, name);
    char beside[160];
    if (!tensor)
        fail_msg("no %s", name);
    struct bt_matrix matrix = {.data = tensor->data,
                               .rows = (uint32_t)tensor->dims[0],
                               .cols = (uint32_t)tensor->dims[1],
                               .dtype = tensor->dtype};
    bool is_f8 = !strcmp(tensor->dtype_name, "F8_E4M3"), is_i4 = !strcmp(tensor->dtype_name, "U8");
    if (tensor->is_float)
        return matrix;
    matrix.dtype = is_f8 ? BT_F8_E4M3 : is_i4 ? BT_I4 : BT_I8;
    matrix.cols *= is_i4 ? 2 : 1;
    snprintf(beside, sizeof(beside), "%s%s", name, is_f8 ? "_scale_inv" : "_scale");
    matrix.scales = bt_safetensors_find(model->checkpoint, beside)->data;
    snprintf(beside, sizeof(beside), "%s_group_scale", name);
    if (is_i4)
        matrix.group_scales = bt_safetensors_find(model->checkpoint, beside)->data;
    return matrix;
}

static void check_packed(const struct bt_model *model, const char *name, enum bt_use use,
                         const struct bt_matrix *ours)
{
    const struct bt_matrix source = source_of(model, name);
    assert_packed(model, ours, &source, use);
}

static void check_bfloat16(const char *dir)
{
    struct bt_model *model =
        load(&(struct bt_model_options){.dir = dir, .device = gpu, .dtype = BT_MODEL_BFLOAT16});
    static const char *const parts[] = {"gate", "up", "down"};
    char name[128];
    for (uint32_t i = 0; i < model->config.num_hidden_layers; i++) {
        const struct bt_layer_weights *layer = &model->layers[i];
        const struct bt_matrix *experts[] = {layer->experts.gate, layer->experts.up,
                                             layer->experts.down};
        snprintf(name, sizeof(name), "model.layers.%u.self_attn.kv_b_proj.weight", i);
        check_packed(model, name, BT_USE_KV_B, &layer->kv_b);
        snprintf(name, sizeof(name), "model.layers.%u.self_attn.o_proj.weight", i);
        check_packed(model, name, BT_USE_LINEAR, &layer->o);
        for (uint32_t e = 0; e < layer->experts.experts; e++) {
            for (int k = 0; k < 3; k++) {
                snprintf(name, sizeof(name), "model.layers.%u.mlp.experts.%u.%s_proj.weight", i, e,
                         parts[k]);
                check_packed(model, name, BT_USE_LINEAR, &experts[k][e]);
            }
        }
        const struct bt_matrix norm = source_of(model, "model.norm.weight");
        const struct bt_matrix vector = {
            .data = norm.data, .rows = 1, .cols = norm.rows, .dtype = norm.dtype};
        assert_rows(&model->final_norm, &vector);
    }
    const struct bt_matrix embed = source_of(model, "model.embed_tokens.weight");
    assert_rows(&model->embed, &embed);
    drop_image();
    bt_model_destroy(model);
}

static void test_float32(void **state)
{
    (void)state;
    check_float32(TESTS_MODELS "/tiny", 0, 1);
    check_float32(TESTS_MODELS "/v3-tied", 0, 1);
    check_float32(TESTS_MODELS "/tiny", 1, 2);
}

static void test_dtypes(void **state)
{
    static const enum quantised_kind kinds[] = {QUANTISED_FP8, QUANTISED_INT8, QUANTISED_INT4};
    (void)state;
    check_bfloat16(TESTS_MODELS "/tiny");
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        struct scratch scratch;
        quantised_open(kinds[i], &scratch);
        if (kinds[i] != QUANTISED_INT8)
            check_float32(scratch.dir, 0, 1);
        check_bfloat16(scratch.dir);
        scratch_close(&scratch);
    }
}

/* Inputs of a rank, cut out of all. */
static void test_slices(void **state)
{
    (void)state;
    struct bt_model_options options = {.dir = TESTS_MODELS "/tiny",
                                       .device = gpu,
                                       .dtype = BT_MODEL_BFLOAT16,
                                       .tp_rank = 1,
                                       .tp_size = 2};
    struct bt_model *model = load(&options);
    struct bt_matrix whole = source_of(model, "model.layers.1.self_attn.o_proj.weight");
    struct bt_matrix half = whole;
    half.cols /= 2;
    size_t bytes = bt_dtype_bytes(whole.dtype);
    char *cut = malloc(half.rows * half.cols * bytes);
    for (size_t row = 0; row < half.rows; row++)
        memcpy(cut + row * half.cols * bytes,
               (const char *)whole.data + (row * whole.cols + half.cols) * bytes,
               half.cols * bytes);
    half.data = cut;
    assert_packed(model, &model->layers[1].o, &half, BT_USE_LINEAR);
    free(cut);
    bt_model_destroy(model);
}

/* What a fingerprint says: rows for f8 weights have other bits than on a CPU. */
static void test_fingerprint(void **state)
{
    struct scratch scratch;
    struct bt_fingerprint ours, theirs;
    struct bt_error error;
    (void)state;
    quantised_open(QUANTISED_FP8, &scratch);
    struct bt_model_options options = {.dir = scratch.dir, .dtype = BT_MODEL_BFLOAT16};
    struct bt_model *cpu = load(&options);
    options.device = gpu;
    struct bt_model *model = load(&options);
    bt_model_fingerprint(cpu, "m", BT_BF16, &theirs);
    bt_model_fingerprint(model, "m", BT_BF16, &ours);
    assert_string_equal(theirs.arithmetic, "bfloat16");
    assert_string_equal(ours.arithmetic, "bfloat16+fp8");
    bt_model_destroy(cpu);
    bt_model_destroy(model);
    options.dtype = BT_MODEL_FLOAT32;
    model = load(&options);
    bt_model_fingerprint(model, "m", BT_F32, &ours);
    assert_string_equal(ours.arithmetic, "float32");
    bt_model_destroy(model);
    scratch_close(&scratch);
    options = (struct bt_model_options){
        .dir = TESTS_MODELS "/tiny", .device = gpu, .dtype = BT_MODEL_BFLOAT16, .memory_bytes = 1};
    assert_int_equal(bt_model_load(&options, &error, &model), BT_ERR_NO_MEMORY);
    assert_non_null(strstr(error.text, "MiB of memory of cuda:0 are free"));
}

/* Where cuBLASLt lacks such products, own kernels make them, and nobody takes the bits for the
 * same. */
static void test_fingerprint_without_the_library(void **state)
{
    struct scratch scratch;
    struct bt_fingerprint ours, theirs;
    struct bt_error error = {0};
    struct bt_device *other;
    (void)state;
    quantised_open(QUANTISED_FP8, &scratch);
    struct bt_model_options options = {
        .dir = scratch.dir, .dtype = BT_MODEL_BFLOAT16, .device = gpu};
    struct bt_model *model = load(&options);
    bt_model_fingerprint(model, "m", BT_BF16, &theirs);
    bt_model_destroy(model);
    assert_int_equal(bt_device_open("cuda:1", NULL, &error, &other), BT_OK);
    setenv("BATON_EMULATED_BLOCK_SCALES", "none", 1);
    options.device = other;
    model = load(&options);
    bt_model_fingerprint(model, "m", BT_BF16, &ours);
    unsetenv("BATON_EMULATED_BLOCK_SCALES");
    assert_string_equal(ours.arithmetic, "bfloat16+fp8_own");
    assert_int_equal(bt_fingerprint_compare(&ours, &theirs, &error), BT_ERR_MISMATCH);
    bt_model_destroy(model);
    bt_device_close(other);
    scratch_close(&scratch);
}

/* Two ranks of experts; then all experts of a layer go to this one, and back. */
static void test_experts_move(void **state)
{
    struct bt_error error = {0};
    struct bt_model_options options = {.dir = TESTS_MODELS "/tiny", .dtype = BT_MODEL_BFLOAT16};
    struct bt_model *all = load(&options);
    uint32_t experts = all->config.n_routed_experts, layers = bt_model_moe_layers(&all->config);
    struct bt_placement_options placement = {.kind = BT_PLACEMENT_CONTIGUOUS,
                                             .layers = layers,
                                             .experts = experts,
                                             .ranks = 2,
                                             .machines = 1};
    struct bt_placement *halves = NULL, *whole = NULL;
    struct bt_device_info before, after;
    (void)state;
    assert_int_equal(bt_placement_create(&placement, &error, &halves), BT_OK);
    placement.ranks = 1;
    assert_int_equal(bt_placement_create(&placement, &error, &whole), BT_OK);
    options.placement = halves;
    options.device = gpu;
    struct bt_model *model = load(&options);
    bt_device_info(gpu, &before);
    for (int round = 0; round < 3; round++) {
        struct bt_expert_change *change = NULL;
        if (bt_model_load_experts(model, 0, whole, NULL, &error, &change) != BT_OK)
            fail_msg("%s", error.text);
        bt_model_switch_experts(model, change);
        uint32_t layer = 0;
        while (!model->layers[layer].experts.experts)
            layer++;
        for (uint32_t e = 0; e < experts; e++) {
            char name[96];
            snprintf(name, sizeof(name), "model.layers.%u.mlp.experts.%u.down_proj.weight", layer,
                     e);
            check_packed(model, name, BT_USE_LINEAR, &model->layers[layer].experts.down[e]);
        }
        if (bt_model_load_experts(model, 0, halves, NULL, &error, &change) != BT_OK)
            fail_msg("%s", error.text);
        bt_model_switch_experts(model, change);
        assert_null(model->layers[layer].experts.down[experts - 1].data);
        bt_device_info(gpu, &after);
        assert_int_equal(after.free_bytes, before.free_bytes);
    }
    bt_model_destroy(model);
    bt_model_destroy(all);
    bt_placement_destroy(halves);
    bt_placement_destroy(whole);
}

/* A buffer is waited for when all are in use, not before: so a matrix of four of them waits twice,
 * and a fault of the device is told at the end. */
static void test_waits(void **state)
{
    struct bt_error error = {0};
    uint32_t cols = 4096, rows = 8192; /* 64 MiB of bf16 */
    struct bt_matrix source = {
        .data = calloc(rows, cols * 2), .rows = rows, .cols = cols, .dtype = BT_BF16};
    struct bt_matrix packed;
    const struct bt_kernels *kernels = gpu->kernels;
    size_t bytes = kernels->packed_bytes(&source, BT_USE_LINEAR, NULL);
    void *memory = NULL;
    (void)state;
    assert_int_equal(bytes, (size_t)rows * cols * 2);
    assert_int_equal(bt_device_alloc(gpu, bytes, &error, &memory), BT_OK);
    struct bt_stream *packing = NULL;
    const struct bt_stream_limits none = {0};
    assert_int_equal(bt_device_stream_create(gpu, &none, NULL, &error, &packing), BT_OK);
    uint64_t before = gpu->ops->waits(gpu);
    kernels->pack(packing, &source, BT_USE_LINEAR, NULL, memory, &packed);
    assert_int_equal(gpu->ops->waits(gpu) - before, 4 - 2);
    assert_int_equal(bt_device_synchronize(gpu, packing, &error), BT_OK);
    assert_ptr_equal(packed.data, memory);
    bt_device_stream_destroy(gpu, packing);
    bt_device_free(gpu, memory);
    free((void *)source.data);
}

static int start(void **state)
{
    struct bt_error error = {0};
    const struct bt_stream_limits none = {0};
    (void)state;
    if (bt_device_open("cuda:0", NULL, &error, &gpu) != BT_OK ||
        bt_device_stream_create(gpu, &none, NULL, &error, &stream) != BT_OK) {
        fprintf(stderr, "%s\n", error.text);
        return -1;
    }
    return 0;
}

static int stop(void **state)
{
    (void)state;
    bt_device_stream_destroy(gpu, stream);
    bt_device_close(gpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float32),
        cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_fingerprint),
        cmocka_unit_test(test_fingerprint_without_the_library),
        cmocka_unit_test(test_experts_move),
        cmocka_unit_test(test_waits),
    };
    return cmocka_run_group_tests_name("device-weights", tests, start, stop);
}
