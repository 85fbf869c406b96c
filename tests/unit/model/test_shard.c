/*
 * One rank's part of a model: its weights are those of the whole model where they should be, it
 * needs memory for them alone, and what can't be cut is refused by name. Experts come and go.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/kernels/tiles.h"
#include "common/kernels/weight.h"
#include "common/model/experts.h"
#include "tests/unit/model/quantised.h"

#define TINY    TESTS_MODELS "/tiny"
#define HEADS   8
#define EXPERTS 16
#define LAYERS  6 /* the first is dense */
#define HUGE    ((size_t)2 << 20)

static struct bt_model *load(const struct bt_model_options *options)
{
    struct bt_error error = {0};
    struct bt_model *model;
    if (bt_model_load(options, &error, &model) != BT_OK)
        fail_msg("%s", error.text);
    return model;
}

static struct bt_placement *place(enum bt_placement_kind kind, uint32_t layers, uint32_t ranks)
{
    struct bt_error error = {0};
    struct bt_placement *placement;
    const struct bt_placement_options options = {.kind = kind,
                                                 .layers = layers,
                                                 .experts = EXPERTS,
                                                 .ranks = ranks,
                                                 .machines = 1,
                                                 .groups = 1};
    if (bt_placement_create(&options, &error, &placement) != BT_OK)
        fail_msg("%s", error.text);
    return placement;
}

/* The weight itself, of either layout. */
static double value_at(const struct bt_matrix *m, size_t row, size_t col)
{
    if (m->layout == BT_LAYOUT_ROWS)
        return (double)bt_weight_at(m, row * m->cols + col);
    double scale = m->dtype == BT_I8 || m->dtype == BT_I4 ? (double)m->scales[row] : 1;
    return (double)bt_tiles_at(m, row, col) * scale;
}

/* part [row][col] is whole [row + first_row][col + first_col]. */
static void assert_part(const char *what, const struct bt_matrix *part,
                        const struct bt_matrix *whole, uint32_t first_row, uint32_t first_col)
{
    assert_int_equal(part->dtype, whole->dtype);
    assert_int_equal(part->layout, whole->layout);
    for (size_t row = 0; row < part->rows; row++)
        for (size_t col = 0; col < part->cols; col++)
            if (value_at(part, row, col) != value_at(whole, row + first_row, col + first_col))
                fail_msg("%s: element %zu, %zu is %g, not %g", what, row, col,
                         value_at(part, row, col),
                         value_at(whole, row + first_row, col + first_col));
}

/* Packed, the operands of a head are one block. */
static void assert_kv_b(const struct bt_model *part, const struct bt_matrix *ours,
                        const struct bt_matrix *whole, uint32_t first_head)
{
    if (ours->layout == BT_LAYOUT_ROWS) {
        assert_part("kv_b", ours, whole,
                    first_head * (whole->rows / part->config.num_attention_heads), 0);
        return;
    }
    size_t bytes = part->kernels->packed_bytes(ours, BT_USE_KV_B, &part->mla);
    const char *from = (const char *)whole->data + bytes / part->mla.heads * first_head;
    assert_memory_equal(ours->data, from, bytes);
}

static void compare_heads(const struct bt_model *whole, const struct bt_model *part)
{
    uint32_t all_heads = part->config.num_attention_heads;
    uint32_t heads = all_heads / part->shard.tp_size, first = heads * part->shard.tp_rank;
    assert_int_equal(part->mla.heads, heads);
    for (uint32_t i = 0; i < part->config.num_hidden_layers; i++) {
        const struct bt_layer_weights *ours = &part->layers[i], *all = &whole->layers[i];
        bool lora = part->config.q_lora_rank > 0;
        const struct bt_matrix *q = lora ? &ours->q_b : &ours->q;
        const struct bt_matrix *all_q = lora ? &all->q_b : &all->q;
        assert_int_equal(q->rows, all_q->rows / part->shard.tp_size);
        assert_part("q", q, all_q, first * (all_q->rows / all_heads), 0);
        assert_int_equal(ours->kv_b.rows, all->kv_b.rows / part->shard.tp_size);
        assert_kv_b(part, &ours->kv_b, &all->kv_b, first);
        assert_int_equal(ours->o.cols, all->o.cols / part->shard.tp_size);
        assert_part("o", &ours->o, &all->o, 0, first * (all->o.cols / all_heads));
        assert_part("kv_a", &ours->kv_a, &all->kv_a, 0, 0);
        assert_part("gate", &ours->mlp.gate, &all->mlp.gate, 0, 0);
    }
}

static void compare_parts(const char *dir, enum bt_model_dtype dtype, uint32_t tp_size)
{
    struct bt_model_options options = {.dir = dir, .kernels = "ref", .dtype = dtype};
    struct bt_fingerprint theirs, ours;
    struct bt_model *whole = load(&options);
    bt_model_fingerprint(whole, "tiny", BT_BF16, &theirs);
    options.tp_size = tp_size;
    for (options.tp_rank = 0; options.tp_rank < tp_size; options.tp_rank++) {
        struct bt_model *part = load(&options);
        compare_heads(whole, part);
        bt_model_fingerprint(part, "tiny", BT_BF16, &ours);
        assert_int_equal(bt_fingerprint_compare(&ours, &theirs, NULL), BT_OK);
        bt_model_destroy(part);
    }
    bt_model_destroy(whole);
}

static void test_heads(void **state)
{
    (void)state;
    for (uint32_t size = 2; size <= HEADS; size *= 2) {
        compare_parts(TINY, BT_MODEL_FLOAT32, size);
        compare_parts(TINY, BT_MODEL_BFLOAT16, size);
    }
    compare_parts(TESTS_MODELS "/v2-lite", BT_MODEL_FLOAT32, 4); /* without q_lora_rank */
    compare_parts(TESTS_MODELS "/v2-lite", BT_MODEL_BFLOAT16, 2);
    compare_parts(TESTS_MODELS "/v3-tied", BT_MODEL_BFLOAT16, 2);
}

static void test_heads_of_quantised_weights(void **state)
{
    (void)state;
    for (int kind = QUANTISED_FP8; kind <= QUANTISED_INT4; kind++) {
        struct scratch scratch;
        quantised_open((enum quantised_kind)kind, &scratch);
        compare_parts(scratch.dir, BT_MODEL_FLOAT32, 2);
        compare_parts(scratch.dir, BT_MODEL_BFLOAT16, 2);
        if (kind == QUANTISED_INT8)
            compare_parts(scratch.dir, BT_MODEL_BFLOAT16, 8);
        scratch_close(&scratch);
    }
}

static void expect_refused(const struct bt_model_options *options, const char *a, const char *b)
{
    struct bt_error error = {0};
    struct bt_model *model = NULL;
    assert_int_equal(bt_model_load(options, &error, &model), BT_ERR_INVALID_ARGUMENT);
    assert_null(model);
    if (!strstr(error.text, a) || !strstr(error.text, b) || !strstr(error.text, options->dir))
        fail_msg("\"%s\" does not say \"%s\" and \"%s\"", error.text, a, b);
}

static void test_what_is_refused(void **state)
{
    (void)state;
    struct bt_model_options options = {.dir = TINY, .kernels = "ref", .tp_size = 3};
    expect_refused(&options, "num_attention_heads 8", "3 tp ranks");
    options.tp_rank = options.tp_size = 2;
    expect_refused(&options, "tp rank 2 of 2", "");
    options = (struct bt_model_options){.dir = TINY, .kernels = "ref"};
    struct bt_placement *placement = place(BT_PLACEMENT_ROUND_ROBIN, LAYERS, 4);
    options.placement = placement;
    expect_refused(&options, "5 MoE layers of 16 experts", "6 layers of 16 experts on 4 ranks");
    bt_placement_destroy(placement);
    options.placement = placement = place(BT_PLACEMENT_ROUND_ROBIN, LAYERS - 1, 4);
    options.ep_rank = 4;
    expect_refused(&options, "ep rank 4", "on 4 ranks");
    bt_placement_destroy(placement);
}

/* On every rank alike, so that no rank waits for one that is not there. */
static void test_blocks_are_not_cut(void **state)
{
    (void)state;
    struct scratch scratch;
    quantised_open(QUANTISED_FP8, &scratch);
    struct bt_model_options options = {.dir = scratch.dir, .kernels = "ref", .tp_size = 4};
    for (; options.tp_rank < 4; options.tp_rank++)
        expect_refused(&options, "self_attn.o_proj.weight",
                       "64 inputs for each of 4 ranks of a tp group, f8_e4m3 is cut by 128");
    options = (struct bt_model_options){.dir = scratch.dir, .kernels = "ref", .tp_size = 8};
    expect_refused(&options, "self_attn.kv_b_proj.weight", "64 outputs for each of 8 ranks");
    scratch_close(&scratch);
    quantised_open(QUANTISED_INT4, &scratch);
    options = (struct bt_model_options){.dir = scratch.dir, .kernels = "ref", .tp_size = 4};
    expect_refused(&options, "self_attn.o_proj.weight", "i4 is cut by 128");
    scratch_close(&scratch);
}

/* ---- experts ---- */

static bool is_here(const struct bt_placement *placement, uint32_t layer, uint32_t expert,
                    uint32_t rank)
{
    uint32_t experts[EXPERTS];
    uint32_t count = bt_placement_experts_of(placement, layer, rank, experts, EXPERTS);
    for (uint32_t i = 0; i < count; i++)
        if (experts[i] == expert)
            return true;
    return false;
}

/* The model has the placement's experts and no others, with the weights of the whole one. */
static void compare_experts(const struct bt_model *whole, const struct bt_model *part,
                            const struct bt_placement *const *placements)
{
    for (uint32_t i = 1; i < LAYERS; i++) {
        const struct bt_expert_weights *ours = &part->layers[i].experts;
        const struct bt_expert_weights *all = &whole->layers[i].experts;
        assert_int_equal(part->layers[i].moe_index, i - 1);
        for (uint32_t e = 0; e < EXPERTS; e++) {
            bool here = is_here(placements[i - 1], i - 1, e, part->shard.ep_rank);
            assert_int_equal(ours->gate[e].data != NULL, here);
            assert_int_equal(ours->up[e].data != NULL, here);
            assert_int_equal(ours->down[e].data != NULL, here);
            assert_int_equal(ours->gate[e].rows, all->gate[e].rows);
            if (!here)
                continue;
            assert_part("gate", &ours->gate[e], &all->gate[e], 0, 0);
            assert_part("up", &ours->up[e], &all->up[e], 0, 0);
            assert_part("down", &ours->down[e], &all->down[e], 0, 0);
        }
    }
}

static void test_experts(void **state)
{
    (void)state;
    for (int dtype = BT_MODEL_FLOAT32; dtype <= BT_MODEL_BFLOAT16; dtype++) {
        struct bt_model_options options = {
            .dir = TINY, .kernels = "ref", .dtype = (enum bt_model_dtype)dtype};
        struct bt_model *whole = load(&options);
        for (int kind = BT_PLACEMENT_CONTIGUOUS; kind <= BT_PLACEMENT_ROUND_ROBIN; kind++) {
            struct bt_placement *placement = place((enum bt_placement_kind)kind, LAYERS - 1, 4);
            const struct bt_placement *all[LAYERS - 1] = {placement, placement, placement,
                                                          placement, placement};
            options.placement = placement;
            for (options.ep_rank = 0; options.ep_rank < 4; options.ep_rank++) {
                struct bt_model *part = load(&options);
                compare_experts(whole, part, all);
                bt_model_destroy(part);
            }
            options.placement = NULL;
            bt_placement_destroy(placement);
        }
        bt_model_destroy(whole);
    }
}

/* Scales of another rank's expert may be anything: they are not read. */
static void test_what_is_elsewhere_is_not_read(void **state)
{
    (void)state;
    static const char tensor[] = "model.layers.2.mlp.experts.5.gate_proj.weight_scale";
    struct scratch scratch;
    struct bt_safetensors *file;
    size_t bytes;
    quantised_open(QUANTISED_INT8, &scratch);
    uint8_t *data = scratch_read(&scratch, "model.safetensors", &bytes);
    assert_int_equal(bt_safetensors_open(scratch.dir, NULL, &file), BT_OK);
    const struct bt_tensor *scales = bt_safetensors_find(file, tensor);
    const float bad = NAN;
    uint8_t *place_of = memmem(data, bytes, scales->data, scales->bytes);
    assert_non_null(place_of);
    memcpy(place_of, &bad, sizeof(bad));
    bt_safetensors_close(file);
    scratch_write(&scratch, "model.safetensors", data, bytes);
    free(data);

    struct bt_placement *placement = place(BT_PLACEMENT_ROUND_ROBIN, LAYERS - 1, 4);
    struct bt_model_options options = {
        .dir = scratch.dir, .kernels = "ref", .placement = placement, .ep_rank = 5 % 4};
    expect_refused(&options, tensor, "not a scale");
    options.ep_rank = 2;
    bt_model_destroy(load(&options));
    bt_placement_destroy(placement);
    scratch_close(&scratch);
}

/* ---- memory ---- */

static size_t packed(const struct bt_model *model, uint32_t rows, uint32_t cols)
{
    const struct bt_matrix matrix = {.rows = rows, .cols = cols, .dtype = BT_BF16};
    return (model->kernels->packed_bytes(&matrix, BT_USE_LINEAR, NULL) + 63) / 64 * 64;
}

/* By config.json of tiny: hidden 256, heads of 32 + 16 and 32, q 96, latent 64. */
static size_t expected_bytes(const struct bt_model *model, uint32_t heads, uint32_t experts)
{
    const struct bt_matrix kv_b = {.rows = heads * 64, .cols = 64, .dtype = BT_BF16};
    size_t attention =
        packed(model, 96, 256) + packed(model, heads * 48, 96) + packed(model, 80, 256) +
        packed(model, 256, heads * 32) +
        (model->kernels->packed_bytes(&kv_b, BT_USE_KV_B, &model->mla) + 63) / 64 * 64;
    size_t dense = 2 * packed(model, 768, 256) + packed(model, 256, 768);
    size_t expert = 2 * packed(model, 64, 256) + packed(model, 256, 64);
    size_t all = packed(model, 2048, 256) + LAYERS * attention + dense +
                 (LAYERS - 1) * (1 + experts) * expert; /* one is shared */
    return (all + HUGE - 1) / HUGE * HUGE;
}

static void test_memory(void **state)
{
    (void)state;
    struct bt_placement *placement = place(BT_PLACEMENT_CONTIGUOUS, LAYERS - 1, 8);
    struct bt_model_options options = {.dir = TINY, .kernels = "ref", .dtype = BT_MODEL_BFLOAT16};
    struct bt_model *whole = load(&options);
    assert_int_equal(whole->memory.bytes, expected_bytes(whole, HEADS, EXPERTS));
    options.tp_rank = 1;
    options.tp_size = 4;
    options.placement = placement;
    options.ep_rank = 5;
    struct bt_model *part = load(&options);
    assert_int_equal(part->memory.bytes, expected_bytes(part, HEADS / 4, EXPERTS / 8));
    assert_true(part->memory.bytes < whole->memory.bytes);
    bt_model_destroy(part);
    /* f32 of a bf16 file is the file itself; only o's inputs are copied. */
    options.dtype = BT_MODEL_FLOAT32;
    part = load(&options);
    assert_true(part->memory.bytes == HUGE);
    bt_model_destroy(part);
    bt_model_destroy(whole);
    bt_placement_destroy(placement);
}

static size_t resident_bytes(const struct bt_weight_memory *memory)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = memory->bytes / page, count = 0;
    unsigned char *present = calloc(pages, 1);
    assert_int_equal(mincore(memory->data, memory->bytes, present), 0);
    for (size_t i = 0; i < pages; i++)
        count += present[i] & 1;
    free(present);
    return count * page;
}

static uint32_t block_count(const struct bt_model *model)
{
    uint32_t count = 0;
    for (const struct bt_expert_memory *block = model->expert_memory; block; block = block->next)
        count++;
    return count;
}

static void change_layer(struct bt_model *model, uint32_t layer, const struct bt_placement *to)
{
    struct bt_error error = {0};
    struct bt_expert_change *change;
    if (bt_model_load_experts(model, layer, to, NULL, &error, &change) != BT_OK)
        fail_msg("%s", error.text);
    bt_model_switch_experts(model, change);
}

/* Layer after layer to another placement and back again, and what is not needed is freed. */
static void change_placements(enum bt_model_dtype dtype)
{
    struct bt_model_options options = {.dir = TINY, .kernels = "ref", .dtype = dtype};
    struct bt_model *whole = load(&options);
    struct bt_placement *from = place(BT_PLACEMENT_CONTIGUOUS, LAYERS - 1, 4);
    struct bt_placement *to = place(BT_PLACEMENT_ROUND_ROBIN, LAYERS - 1, 4);
    const struct bt_placement *now[LAYERS - 1] = {from, from, from, from, from};
    options.placement = from;
    options.ep_rank = 1; /* 4 5 6 7, then 1 5 9 13 */
    struct bt_model *part = load(&options);
    bool is_packed = dtype == BT_MODEL_BFLOAT16;
    size_t before = is_packed ? resident_bytes(&part->memory) : 0;
    for (uint32_t i = 0; i < LAYERS - 1; i++) {
        change_layer(part, i, to);
        now[i] = to;
        compare_experts(whole, part, now);
    }
    assert_int_equal(block_count(part), is_packed ? LAYERS - 1 : 0);
    /* three experts of a layer are gone, with three matrices of 32 KiB and their whole pages */
    if (is_packed)
        assert_true(before - resident_bytes(&part->memory) >=
                    (LAYERS - 1) * 3 * 3 * (size_t)(32 - 4) * 1024);
    for (uint32_t i = 0; i < LAYERS - 1; i++) {
        change_layer(part, i, from);
        now[i] = from;
        compare_experts(whole, part, now);
    }
    assert_int_equal(block_count(part), is_packed ? LAYERS - 1 : 0);
    bt_model_destroy(part);
    bt_model_destroy(whole);
    bt_placement_destroy(from);
    bt_placement_destroy(to);
}

static void test_experts_come_and_go(void **state)
{
    (void)state;
    change_placements(BT_MODEL_FLOAT32);
    change_placements(BT_MODEL_BFLOAT16);
}

/* A change that fails or is not wanted leaves the model as it was. */
static void test_change_is_not_made(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_expert_change *change = NULL;
    struct bt_placement *from = place(BT_PLACEMENT_CONTIGUOUS, LAYERS - 1, 4);
    struct bt_placement *to = place(BT_PLACEMENT_ROUND_ROBIN, LAYERS - 1, 4);
    struct bt_placement *wrong = place(BT_PLACEMENT_ROUND_ROBIN, LAYERS, 4);
    const struct bt_placement *now[LAYERS - 1] = {from, from, from, from, from};
    struct bt_model_options options = {.dir = TINY, .kernels = "ref", .dtype = BT_MODEL_BFLOAT16};
    struct bt_model *whole = load(&options);
    options.placement = from;
    struct bt_model *part = load(&options);
    assert_int_equal(bt_model_load_experts(part, 0, wrong, NULL, &error, &change),
                     BT_ERR_INVALID_ARGUMENT);
    assert_null(change);
    assert_int_equal(bt_model_load_experts(part, 2, to, NULL, &error, &change), BT_OK);
    bt_expert_change_destroy(change);
    atomic_bool cancel = true;
    change = NULL;
    assert_int_equal(bt_model_load_experts(part, 2, to, &cancel, &error, &change),
                     BT_ERR_CANCELLED);
    assert_null(change);
    bt_expert_change_destroy(NULL);
    compare_experts(whole, part, now);
    assert_int_equal(block_count(part), 0);
    bt_model_destroy(part);
    bt_model_destroy(whole);
    bt_placement_destroy(from);
    bt_placement_destroy(to);
    bt_placement_destroy(wrong);
}

/* Experts that come need room beside those that are there. */
static void test_no_room_for_experts(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_expert_change *change = NULL;
    struct bt_placement *from = place(BT_PLACEMENT_CONTIGUOUS, LAYERS - 1, 4);
    struct bt_placement *to = place(BT_PLACEMENT_ROUND_ROBIN, LAYERS - 1, 4);
    struct bt_model_options options = {
        .dir = TINY, .kernels = "ref", .dtype = BT_MODEL_BFLOAT16, .placement = from};
    struct bt_model *part = load(&options);
    options.memory_bytes = part->memory.bytes;
    bt_model_destroy(part);
    part = load(&options);
    assert_int_equal(bt_model_load_experts(part, 0, to, NULL, &error, &change), BT_ERR_NO_MEMORY);
    assert_null(change);
    part->memory_limit += HUGE; /* one block */
    change_layer(part, 0, to);
    part->memory_limit -= HUGE / 2;
    assert_int_equal(bt_model_load_experts(part, 1, to, NULL, &error, &change), BT_ERR_NO_MEMORY);
    part->memory_limit += HUGE;
    change_layer(part, 1, to);
    bt_model_destroy(part);
    bt_placement_destroy(from);
    bt_placement_destroy(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_heads_of_quantised_weights),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_blocks_are_not_cut),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_what_is_elsewhere_is_not_read),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_experts_come_and_go),
        cmocka_unit_test(test_change_is_not_made),
        cmocka_unit_test(test_no_room_for_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
