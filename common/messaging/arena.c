#include "common/messaging/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>

struct bt_arena_block {
    struct bt_arena_block *before;
    size_t used, size;
    alignas(max_align_t) unsigned char bytes[];
};

static void blocks_free(struct bt_arena *arena, const struct bt_arena_block *until)
{
    while (arena->block != until) {
        struct bt_arena_block *block = arena->block;
        arena->block = block->before;
        free(block);
    }
}

void bt_arena_finish(struct bt_arena *arena)
{
    blocks_free(arena, NULL);
}

static struct bt_arena_block *block_add(struct bt_arena *arena, size_t size)
{
    struct bt_arena_block *block =
        size <= SIZE_MAX - sizeof *block ? malloc(sizeof *block + size) : NULL;
    if (block) {
        block->before = arena->block;
        block->used = 0;
        block->size = size;
        arena->block = block;
    }
    return block;
}

/* Room for `size` bytes: blocks double, so that few are needed for much. */
static struct bt_arena_block *block_for(struct bt_arena *arena, size_t size)
{
    struct bt_arena_block *block = arena->block;
    if (!block) {
        block = block_add(arena, BT_ARENA_KEPT_BYTES);
    }
    if (!block || size <= block->size - block->used) {
        return block;
    }
    return block_add(arena, size > block->size * 2 ? size : block->size * 2);
}

void *bt_arena_alloc(struct bt_arena *arena, size_t size)
{
    const size_t unit = alignof(max_align_t);
    if (size > SIZE_MAX / 4) {
        return NULL;
    }
    size = (size + unit - 1) / unit * unit;
    struct bt_arena_block *block = block_for(arena, size);
    if (!block) {
        return NULL;
    }
    void *memory = block->bytes + block->used;
    block->used += size;
    return memory;
}

struct bt_arena_mark bt_arena_mark(const struct bt_arena *arena)
{
    return (struct bt_arena_mark){arena->block, arena->block ? arena->block->used : 0};
}

void bt_arena_release(struct bt_arena *arena, struct bt_arena_mark mark)
{
    struct bt_arena_block *block = arena->block;
    while (block != mark.block && block->before) {
        arena->block = block->before;
        free(block);
        block = arena->block;
    }
    if (block) {
        block->used = mark.used;
    }
}
