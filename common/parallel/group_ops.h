/*
 * What a transport implements; for the arguments see group.h, where the callers are. group.c has
 * checked them, and calls nothing once the group is over.
 */
#ifndef BATON_COMMON_PARALLEL_GROUP_OPS_H
#define BATON_COMMON_PARALLEL_GROUP_OPS_H

#include "common/parallel/group.h"

struct bt_group_ops {
    void (*destroy)(struct bt_group *group);
    /* Status BT_OK while it is not over. */
    const struct bt_error *(*error)(const struct bt_group *group);
    /* NULL: it knows no streams. */
    bool (*use_stream)(struct bt_group *group, struct bt_stream *stream);
    enum bt_status (*await)(struct bt_group *group, bool (*is_done)(void *), void *context);
    bool (*queues)(const struct bt_group *group, enum bt_dispatch_mode mode);
    void (*expect_rows)(struct bt_group *group, uint32_t rows);
    enum bt_status (*barrier)(struct bt_group *group);
    enum bt_status (*broadcast)(struct bt_group *group, uint32_t root, void *data, size_t bytes,
                                size_t *ret_bytes);
    /* Without these two the group has `words`. */
    enum bt_status (*agree_begin)(struct bt_group *group, const uint64_t *words, uint32_t count);
    enum bt_status (*agree_finish)(struct bt_group *group, uint64_t *ret_words);
    enum bt_status (*all_reduce)(struct bt_group *group, float *x, size_t count);
    enum bt_status (*reduce_scatter)(struct bt_group *group, const float *x, uint32_t rows,
                                     uint32_t width, float *out);
    enum bt_status (*all_gather)(struct bt_group *group, const float *mine, uint32_t rows,
                                 uint32_t width, float *out);
    enum bt_status (*dispatch_begin)(struct bt_group *group, enum bt_dispatch_mode mode,
                                     const float *x, uint32_t rows,
                                     const struct bt_routing *routing,
                                     const struct bt_placement_layer *placement,
                                     enum bt_dtype payload);
    enum bt_status (*dispatch_finish)(struct bt_group *group, struct bt_arrivals *ret_arrivals);
    enum bt_status (*combine)(struct bt_group *group, const void *y, enum bt_dtype payload,
                              const struct bt_routing *routing, float *out);
    /* What was queued is about to be launched again. NULL: nothing is queued. */
    enum bt_status (*repeat)(struct bt_group *group);
    /* With `words`: it is over, and nothing that is queued waits for other ranks any more. */
    void (*fail)(struct bt_group *group, enum bt_status status, const char *why);
};

/* The first member of every transport's group. */
struct bt_group {
    const struct bt_group_ops *ops;
    uint32_t rank, size, machines;
    struct bt_group_limits limits;
    struct bt_group_traffic traffic;
    struct bt_group *words; /* of the same ranks, between hosts: agreements go there; or NULL */
    uint32_t agreeing; /* words of the agreement that is open; 0: none */
    bool dispatching;  /* begun */
    bool dispatched;   /* and not combined */
};

/* self and ucx */
enum bt_status bt_memory_group_create(const struct bt_group_options *options,
                                      struct bt_error *error, struct bt_group **ret_group);

#endif
