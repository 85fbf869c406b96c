#include "tests/checkkern/sequences.h"

#include <math.h>

#include "common/kernels/weight.h"

const struct check_layout check_layouts[] = {
    {"one", 1, {{0, 1}}},
    {"three", 1, {{0, 3}}},
    {"page-1", 1, {{0, 63}}},
    {"page", 1, {{0, 64}}},
    {"page+1", 1, {{0, 65}}},
    {"long", 1, {{0, 200}}},
    {"late", 1, {{129, 17}}},
    {"mixed", 4, {{0, 65}, {63, 3}, {64, 17}, {130, 1}}},
    {"empty", 3, {{0, 1}, {70, 0}, {127, 2}}},
};
const unsigned check_layout_count = sizeof(check_layouts) / sizeof(check_layouts[0]);

static uint32_t pages_of(const struct bt_sequence_rows *sequence)
{
    return (sequence->start + sequence->row_count + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
}

void check_batch_init(struct check *check, const struct check_layout *layout,
                      struct check_batch *batch)
{
    uint32_t used = 0;
    *batch = (struct check_batch){.count = layout->count};
    for (uint32_t s = 0; s < layout->count; s++) {
        batch->sequences[s].start = layout->sequences[s].start;
        batch->sequences[s].row_count = layout->sequences[s].rows;
        batch->sequences[s].first_row = batch->rows;
        batch->rows += layout->sequences[s].rows;
        used += pages_of(&batch->sequences[s]);
    }
    batch->page_count = used + 3;
    uint32_t *pages = check_buffer(check, batch->page_count * sizeof(*pages));
    for (uint32_t i = 0; i < batch->page_count; i++) {
        uint32_t j = check_below(check, i + 1);
        pages[i] = pages[j];
        pages[j] = i;
    }
    for (uint32_t s = 0; s < batch->count; s++) {
        batch->sequences[s].pages = pages;
        pages += pages_of(&batch->sequences[s]);
    }
}

size_t check_pool_bytes(const struct check_batch *batch, const struct bt_kv_layer *kv)
{
    return (size_t)batch->page_count * BT_PAGE_TOKENS * bt_kv_token_size(kv);
}

struct bt_kv_layer check_pool(struct check *check, const struct check_batch *batch,
                              enum bt_dtype dtype, uint32_t lora, uint32_t rope)
{
    struct bt_kv_layer kv = {NULL, dtype, lora, rope};
    kv.data = check_buffer(check, check_pool_bytes(batch, &kv));
    return kv;
}

struct bt_rope_table check_rope(struct check *check, uint32_t dim)
{
    uint32_t half = dim / 2;
    float *cosines = check_floats(check, (size_t)CHECK_MAX_POSITION * half);
    float *sines = check_floats(check, (size_t)CHECK_MAX_POSITION * half);
    for (uint32_t p = 0; p < CHECK_MAX_POSITION; p++) {
        for (uint32_t i = 0; i < half; i++) {
            double angle = p * pow(10000, -(double)i / half);
            cosines[p * half + i] = (float)cos(angle);
            sines[p * half + i] = (float)sin(angle);
        }
    }
    return (struct bt_rope_table){cosines, sines, half, CHECK_MAX_POSITION};
}
