#include "common/model/experts.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/model/loader.h"
#include "common/model/weights.h"

struct bt_expert_change {
    const struct bt_model *model;
    uint32_t moe_index;
    bool *here;                      /* [experts] after the switch */
    struct bt_matrix *matrices;      /* [3][experts] what was loaded, else without data */
    struct bt_expert_memory *blocks; /* of what was packed; NULL: nothing */
};

void bt_model_experts_here(const struct bt_model *model, const struct bt_placement *placement,
                           uint32_t moe_index, bool *ret_here)
{
    for (uint32_t e = 0; e < model->config.n_routed_experts; e++) {
        ret_here[e] = !placement;
        const struct bt_placement_layer *layer = placement ? &placement->layer[moe_index] : NULL;
        for (uint32_t i = layer ? layer->begin[e] : 0; layer && i < layer->begin[e + 1]; i++)
            ret_here[e] = ret_here[e] || layer->ranks[i] == model->shard.ep_rank;
    }
}

/* The model's layer that is MoE layer `moe_index`. */
static uint32_t layer_at(const struct bt_model *model, uint32_t moe_index)
{
    uint32_t layer = 0;
    BT_ASSERT(moe_index < bt_model_moe_layers(&model->config));
    while (!model->layers[layer].experts.experts || model->layers[layer].moe_index != moe_index)
        layer++;
    return layer;
}

static struct bt_matrix *matrices_of(const struct bt_model *model, uint32_t moe_index)
{
    return (struct bt_matrix *)(uintptr_t)model->layers[layer_at(model, moe_index)].experts.gate;
}

/* What is left of the bytes that weights may take; 0: as much as is free. */
static uint64_t room_for_more(const struct bt_model *model)
{
    uint64_t used = model->memory.bytes - model->let_go_bytes;
    for (const struct bt_expert_memory *block = model->expert_memory; block; block = block->next)
        used += block->memory.bytes;
    if (model->memory_limit == 0)
        return 0;
    return used < model->memory_limit ? model->memory_limit - used : 1;
}

static enum bt_status load_missing(const struct bt_model *model, struct bt_expert_change *change,
                                   const atomic_bool *cancel, struct bt_error *error)
{
    uint32_t experts = model->config.n_routed_experts;
    const struct bt_matrix *held = matrices_of(model, change->moe_index);
    bool *missing = calloc(experts, sizeof(*missing));
    if (!missing)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory for the experts", model->dir);
    for (uint32_t e = 0; e < experts; e++)
        missing[e] = change->here[e] && !held[e].data;
    enum bt_status status =
        bt_load_experts(model, layer_at(model, change->moe_index), missing, room_for_more(model),
                        cancel, error, change->matrices, &change->blocks);
    free(missing);
    return status;
}

enum bt_status bt_model_load_experts(const struct bt_model *model, uint32_t moe_index,
                                     const struct bt_placement *to, const atomic_bool *cancel,
                                     struct bt_error *error, struct bt_expert_change **ret_change)
{
    size_t experts = model->config.n_routed_experts;
    enum bt_status status = bt_model_check_placement(model, to, error);
    struct bt_expert_change *change = calloc(1, sizeof(*change));
    if (change)
        change->model = model;
    if (status != BT_OK)
        goto err_change;
    status = BT_ERR_NO_MEMORY;
    if (!change)
        goto err_memory;
    change->moe_index = moe_index;
    change->here = calloc(experts, sizeof(*change->here));
    change->matrices = calloc(3 * experts, sizeof(*change->matrices));
    if (!change->here || !change->matrices)
        goto err_memory;
    bt_model_experts_here(model, to, moe_index, change->here);
    status = load_missing(model, change, cancel, error);
    if (status != BT_OK)
        goto err_change;
    *ret_change = change;
    return BT_OK;

err_memory:
    bt_error_set(error, status, "%s: no memory for the experts", model->dir);
err_change:
    bt_expert_change_destroy(change);
    return status;
}

void bt_expert_change_destroy(struct bt_expert_change *change)
{
    if (!change)
        return;
    bt_expert_memory_free(change->model, change->blocks);
    free(change->matrices);
    free(change->here);
    free(change);
}

static size_t matrix_bytes(const struct bt_model *model, const struct bt_matrix *matrix)
{
    if (matrix->layout == BT_LAYOUT_TILES)
        return model->kernels->packed_bytes(matrix, BT_USE_LINEAR, NULL);
    return (size_t)matrix->rows * matrix->cols * bt_dtype_bits(matrix->dtype) / 8;
}

/* Of the host its whole pages go back to where they came from: the file, or the free memory. Of a
 * device its block does (free_blocks). */
static void let_go_pages(struct bt_model *model, const struct bt_matrix *matrix)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)matrix->data;
    uintptr_t packed = (uintptr_t)model->memory.data;
    bool is_packed = begin >= packed && begin < packed + model->memory.bytes;
    uintptr_t end = (begin + matrix_bytes(model, matrix)) / page * page;
    begin = (begin + page - 1) / page * page;
    if (begin < end) {
        (void)madvise((void *)begin, end - begin, MADV_DONTNEED);
        model->let_go_bytes += is_packed ? end - begin : 0;
    }
}

static void let_go(struct bt_model *model, struct bt_matrix *matrix)
{
    if (!bt_model_is_remote(model))
        let_go_pages(model, matrix);
    *matrix =
        (struct bt_matrix){.rows = matrix->rows, .cols = matrix->cols, .dtype = matrix->dtype};
}

static bool block_is_used(const struct bt_expert_memory *block, const struct bt_matrix *matrices,
                          uint32_t count)
{
    const char *begin = block->memory.data;
    for (uint32_t i = 0; i < count; i++) {
        const char *data = matrices[i].data;
        if (data && data >= begin && data < begin + block->memory.bytes)
            return true;
    }
    return false;
}

/* Blocks of this layer that none of its experts is in any more. */
static void free_blocks(struct bt_model *model, uint32_t moe_index,
                        const struct bt_matrix *matrices)
{
    uint32_t count = 3 * model->config.n_routed_experts;
    for (struct bt_expert_memory **at = &model->expert_memory; *at;) {
        struct bt_expert_memory *block = *at;
        if (block->moe_index != moe_index || block_is_used(block, matrices, count)) {
            at = &block->next;
            continue;
        }
        *at = block->next;
        block->next = NULL;
        bt_expert_memory_free(model, block);
    }
}

void bt_model_switch_experts(struct bt_model *model, struct bt_expert_change *change)
{
    uint32_t experts = model->config.n_routed_experts;
    struct bt_matrix *matrices = matrices_of(model, change->moe_index);
    for (uint32_t i = 0; i < 3 * experts; i++) {
        if (change->here[i % experts] && !matrices[i].data)
            matrices[i] = change->matrices[i];
        else if (!change->here[i % experts] && matrices[i].data)
            let_go(model, &matrices[i]);
    }
    struct bt_expert_memory **last = &change->blocks;
    while (*last)
        last = &(*last)->next;
    *last = model->expert_memory;
    model->expert_memory = change->blocks;
    change->blocks = NULL;
    free_blocks(model, change->moe_index, matrices);
    bt_expert_change_destroy(change);
}
