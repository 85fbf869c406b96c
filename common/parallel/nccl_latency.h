/* Dispatch and combine that are queued as a whole (nccl_latency.c). */
#ifndef BATON_COMMON_PARALLEL_NCCL_LATENCY_H
#define BATON_COMMON_PARALLEL_NCCL_LATENCY_H

#include "common/parallel/nccl_group.h"

/* More rows of a rank than this are not worth the padding. */
#define BT_NCCL_LATENCY_ROWS 128

/* A layer's placement on the device. */
struct bt_nccl_copies {
    const struct bt_placement_layer *placement; /* whose it is; NULL: nobody's */
    uint32_t *ours;                             /* of the host: as it was, begin, then ranks */
    uint32_t *memory;                           /* of the device: first, flags, ranks */
    uint64_t used;                              /* when */
    bool choices;
};

struct bt_nccl_latency {
    uint32_t room;  /* rows that fit */
    uint32_t slots; /* of the dispatch that is under way */
    uint32_t rows;  /* of it, own */
    enum bt_dtype payload;
    uint32_t *words, *all_words;      /* picks of this rank, of all */
    uint32_t *order, *begin, *counts; /* of arrivals */
    uint32_t *faults;                 /* pinned: see arrivals_cuda.h */
    const uint32_t *flags;            /* of the layer's experts */
    struct bt_nccl_copies *copies;    /* [copies_room] */
    uint32_t copies_count, copies_room;
    uint64_t uses;
};

/* Of the limits; fails the group. */
void bt_nccl_latency_create(struct bt_nccl_group *g);
void bt_nccl_latency_destroy(struct bt_nccl_group *g);

enum bt_status bt_nccl_latency_begin(struct bt_nccl_group *g, uint32_t slots, const float *x,
                                     uint32_t rows, const struct bt_routing *routing,
                                     const struct bt_placement_layer *placement,
                                     enum bt_dtype payload);
enum bt_status bt_nccl_latency_finish(struct bt_nccl_group *g, struct bt_arrivals *ret_arrivals);
enum bt_status bt_nccl_latency_combine(struct bt_nccl_group *g, const void *y,
                                       enum bt_dtype payload, const struct bt_routing *routing,
                                       float *out);
/* Of what is done: picks came for experts that are not here. */
bool bt_nccl_latency_is_confused(const struct bt_nccl_group *g);

#endif
