/* The group of self and ucx: calls made of exchanges (exchange.h). Internal to this folder. */
#ifndef BATON_COMMON_PARALLEL_MEMORY_GROUP_H
#define BATON_COMMON_PARALLEL_MEMORY_GROUP_H

#include "common/parallel/exchange.h"
#include "common/parallel/group_ops.h"
#include "common/parallel/rows.h"

struct bt_experts;

struct bt_memory_group {
    struct bt_group base;
    struct bt_exchange *exchange;
    const struct bt_ranks *ranks;
    const struct bt_row_ops *row_ops;
    size_t piece_floats;        /* of one exchange of a reduction: all ranks' parts together */
    size_t piece_bytes;         /* of one exchange of a broadcast */
    struct bt_experts *experts; /* NULL: limits.rows is 0 */
};

/* reduce.c */
/* Floats of a parcel that all ranks' parts of `floats` need. */
size_t bt_reduce_parcel_floats(size_t floats, uint32_t size);
enum bt_status bt_memory_all_reduce(struct bt_group *base, float *x, size_t count);
enum bt_status bt_memory_reduce_scatter(struct bt_group *base, const float *x, uint32_t rows,
                                        uint32_t width, float *out);
enum bt_status bt_memory_all_gather(struct bt_group *base, const float *mine, uint32_t rows,
                                    uint32_t width, float *out);

/* experts.c */
/* Bytes of a parcel that dispatch and combine need. */
size_t bt_experts_parcel_bytes(const struct bt_group_limits *limits, uint32_t size);
enum bt_status bt_experts_create(const struct bt_group_limits *limits, uint32_t rank, uint32_t size,
                                 struct bt_error *error, struct bt_experts **ret_experts);
void bt_experts_destroy(struct bt_experts *experts);

/* dispatch.c, combine.c */
enum bt_status bt_memory_dispatch_begin(struct bt_group *base, enum bt_dispatch_mode mode,
                                        const float *x, uint32_t rows,
                                        const struct bt_routing *routing,
                                        const struct bt_placement_layer *placement,
                                        enum bt_dtype payload);
enum bt_status bt_memory_dispatch_finish(struct bt_group *base, struct bt_arrivals *ret_arrivals);
enum bt_status bt_memory_combine(struct bt_group *base, const void *y, enum bt_dtype payload,
                                 const struct bt_routing *routing, float *out);

#endif
