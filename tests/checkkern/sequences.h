/* Sequences over a pool with shuffled pages, for the operations that see positions. */
#ifndef BATON_TESTS_CHECKKERN_SEQUENCES_H
#define BATON_TESTS_CHECKKERN_SEQUENCES_H

#include "tests/checkkern/check.h"

#define CHECK_MAX_SEQUENCES 4
#define CHECK_MAX_POSITION  512

struct check_layout {
    const char *name;
    uint32_t count;
    struct {
        uint32_t start, rows;
    } sequences[CHECK_MAX_SEQUENCES];
};

extern const struct check_layout check_layouts[];
extern const unsigned check_layout_count;

struct check_batch {
    struct bt_sequence_rows sequences[CHECK_MAX_SEQUENCES];
    uint32_t count, rows;
    uint32_t page_count; /* of the pool, more than are used */
};

/* Gives each sequence pages of its own in random order out of a pool with some to spare. */
void check_batch_init(struct check *check, const struct check_layout *layout,
                      struct check_batch *batch);

/* A pool layer of batch->page_count pages, all of it the pattern of check_buffer. */
struct bt_kv_layer check_pool(struct check *check, const struct check_batch *batch,
                              enum bt_dtype dtype, uint32_t lora, uint32_t rope);
size_t check_pool_bytes(const struct check_batch *batch, const struct bt_kv_layer *kv);

/* Angles of position * 10000^(-i/half). */
struct bt_rope_table check_rope(struct check *check, uint32_t dim);

#endif
