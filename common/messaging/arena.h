/*
 * Memory for what lives as long as one message is looked at: taken in pieces, given back at once.
 * Caller-owned, zero-initialised, one thread. It keeps its
 * first block, which is large enough for the messages that come all the time.
 */
#ifndef BATON_COMMON_MESSAGING_ARENA_H
#define BATON_COMMON_MESSAGING_ARENA_H

#include <stddef.h>

#define BT_ARENA_KEPT_BYTES (64u << 10)

struct bt_arena_block;

struct bt_arena {
    struct bt_arena_block *block; /* the one that is being filled; it knows those before */
};

/* What was there at a moment. Marks nest. */
struct bt_arena_mark {
    struct bt_arena_block *block;
    size_t used;
};

void bt_arena_finish(struct bt_arena *arena);

/* Aligned for anything. NULL: no memory. */
void *bt_arena_alloc(struct bt_arena *arena, size_t size);

struct bt_arena_mark bt_arena_mark(const struct bt_arena *arena);
/* Everything that was taken since then is gone. */
void bt_arena_release(struct bt_arena *arena, struct bt_arena_mark mark);

#endif
