/* A group of ranks on GPUs, for the files that make it: nccl.c, nccl_latency.c. */
#ifndef BATON_COMMON_PARALLEL_NCCL_GROUP_H
#define BATON_COMMON_PARALLEL_NCCL_GROUP_H

#include <nccl.h>
#include <pthread.h>

#include "common/kernels/cuda/stream.h"
#include "common/parallel/experts.h"

/* Device memory, and what of it a call uses. */
struct bt_nccl_buffers {
    float *x;                  /* [arrivals][hidden] */
    char *outgoing, *incoming; /* rows or y */
    uint32_t *list;            /* [picks] rows to pack, or slots */
    float *weights;            /* [own picks] */
    uint32_t *order, *begin;   /* of the arrivals' routing */
    uint64_t *words, *all_words;
    char *meta_out, *meta_in; /* lists of picks */
    float *scratch;           /* [share] of an all_reduce that is not used: barrier */
    float *parts;             /* [rank][part_floats] of a reduction */
    size_t part_floats;
};

struct bt_nccl_group {
    struct bt_group base;
    ncclComm_t comm;
    pthread_t aborting; /* its end, under way: is_aborting */
    bool is_aborting;
    bool is_collecting;              /* between bt_nccl_collect and bt_nccl_collected */
    bool is_whole;                   /* all ranks were there */
    cudaStream_t own_stream, stream; /* stream: what calls are queued on */
    struct bt_cuda_stream *callers;  /* whose stream it is; NULL: own_stream */
    int64_t timeout_ns;
    struct bt_error error;
    struct bt_ranks ranks;
    struct bt_experts *experts;
    uint32_t *routed; /* [own pick] on the host; then slots of a combine */
    float *weights;   /* likewise */
    const float *x;   /* of the dispatch that is under way */
    uint64_t own_counts[BT_GROUP_RANKS_MAX], counts[BT_GROUP_RANKS_MAX * BT_GROUP_RANKS_MAX];
    struct bt_nccl_buffers device;
    struct bt_nccl_latency *latency;
    uint32_t expected_rows; /* bt_group_expect_rows */
    bool is_queued;         /* the dispatch that is under way */
};

static inline struct bt_nccl_group *bt_nccl_group(struct bt_group *base)
{
    return (struct bt_nccl_group *)base;
}

/* The first failure ends the group, and stays its status. */
enum bt_status bt_nccl_fail(struct bt_nccl_group *g, enum bt_status status, const char *what);
/* True: nothing has failed, now or before. */
bool bt_nccl_ok(struct bt_nccl_group *g, ncclResult_t result);
bool bt_nccl_cuda_ok(struct bt_nccl_group *g, cudaError_t result);
/* Around calls that NCCL takes as one. A failure in between ends the group behind them. */
void bt_nccl_collect(struct bt_nccl_group *g);
ncclResult_t bt_nccl_collected(struct bt_nccl_group *g);
/* Until NCCL has taken the last call; its work is queued then. */
enum bt_status bt_nccl_settle(struct bt_nccl_group *g);
/* 0: f32, 1: bf16, 2: f8, as rows_cuda.h has it. */
int bt_nccl_payload_code(enum bt_dtype payload);

#endif
