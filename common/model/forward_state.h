/*
 * The inside of a forward pass: forward_create.c makes it, forward.c has the layers, forward_run.c
 * begins and finishes runs, forward_graphs.c replays them.
 */
#ifndef BATON_COMMON_MODEL_FORWARD_STATE_H
#define BATON_COMMON_MODEL_FORWARD_STATE_H

#include <stdatomic.h>

#include "common/kernels/device.h"
#include "common/model/draws.h"
#include "common/model/forward.h"

/* Of one run that was begun, until it is finished. */
struct bt_forward_slot {
    enum bt_status status; /* of what was queued */
    struct bt_event *done; /* all of it */
    uint32_t logit_count;
    bool draws, logprobs_wanted, logits; /* are to be had */
    bt_forward_layer_fn *layer_done;
    void *context;
    uint32_t told; /* layers */
    /* Of the host, pinned where the device is none. */
    uint32_t *tokens;             /* [max_logits] */
    struct bt_logprobs *logprobs; /* likewise */
    uint32_t *begins;             /* as those of the pass, which they are on a CPU */
    uint32_t *routed;             /* [MoE layers] rows that chose experts */
};

/* Of a captured pass: what else than the staged rows it depends on. */
struct bt_forward_graph_key {
    uint32_t rows, wanted; /* padded */
    bool draws;
    void *kv_pool;
    uint32_t pool_pages;
};

/* A kind of pass is run as it is when it comes for the first time, which loads whatever the device
 * loads late, and captured the second time. */
struct bt_forward_graph {
    struct bt_forward_graph_key key;
    struct bt_graph *graph;          /* NULL: not captured yet */
    struct bt_group_traffic traffic; /* of one run */
};

struct bt_forward {
    const struct bt_model *model;
    struct bt_device *device;
    bool queues; /* the device does its work later */
    const struct bt_kernels *k;
    struct bt_profile *profile; /* NULL: off */
    struct bt_stream *stream;
    struct bt_mla_shape mla;
    uint32_t max_rows, max_logits, max_sequences;
    uint32_t share_rows;      /* S at most */
    struct bt_group *tp, *ep; /* NULL: alone */
    bool groups_queue;        /* they are behind what is on the stream */
    enum bt_dispatch_mode dispatch;
    struct bt_expert_loads *loads; /* may be NULL */

    /* Of the device. */
    float *x;                     /* [S][H] the residual stream */
    float *normed;                /* [R][H] */
    float *update;                /* [R][H] what a block adds to x */
    float *summed;                /* [S][H] with tp: the sum of all ranks' updates */
    float *q_a;                   /* [R][q_lora_rank] */
    float *q;                     /* [R][A][N + P] */
    float *kv_a;                  /* [R][L + P] */
    float *heads;                 /* [R][A][V] */
    struct bt_routing routing;    /* of S rows; begin: of the layer */
    uint32_t *begins;             /* [MoE layers, or 1 without loads][experts + 1] */
    float *logits;                /* [max_logits][vocab_size] */
    uint32_t *drawn;              /* [max_logits] */
    struct bt_logprobs *logprobs; /* likewise */

    /* Of the host. */
    float *host_logits;               /* pinned; on a CPU those above */
    struct bt_sequence_rows *wanted;  /* [max_logits] */
    uint32_t *wanted_mine;            /* [max_logits] those of the share, counted from its first */
    float *probed_x, *probed_weights; /* of the first probe on */
    uint32_t *probed_experts;

    /* Runs. */
    struct bt_forward_slot slots[BT_FORWARD_DEPTH];
    uint32_t begun, finished;     /* runs; the difference are under way */
    struct bt_event **layer_done; /* [layers] where it queues; of the one run that asks for them */
    struct bt_event *here;        /* of bt_forward_await */
    struct bt_error error;

    struct bt_forward_graph *graphs; /* [BT_FORWARD_GRAPHS]; NULL: the device has none */
    uint32_t graph_count;            /* kinds of passes that came */
    atomic_uint captured;
    atomic_ullong launches;

    /* With ep, of MoE layers. */
    const struct bt_placement_layer **placements;
    enum bt_dtype *payloads;
    uint32_t arriving_rows; /* at most, of all ranks */
    void *y;                /* [arriving rows * K][H] of y_dtype: what experts make of them */
    enum bt_dtype y_dtype;
};

/* Kinds of passes that are kept; of a kind that comes when there are as many nothing is. */
#define BT_FORWARD_GRAPHS 128

/* What the layers work on: at first the whole batch, at the end only the rows with logits. */
struct bt_forward_rows {
    uint32_t count; /* with padding */
    const struct bt_sequence_rows *sequences;
    uint32_t sequence_count;
    struct bt_share mine;
    float *x, *summed; /* of the pass; they change places when a tp group narrows down */
};

/* A run as the layers see it. */
struct bt_forward_pass {
    const struct bt_forward_batch *batch;
    struct bt_forward_slot *slot;
    uint32_t padded_rows, padded_wanted;
    bool every_row;                 /* also of the last layer */
    uint32_t wanted_sequence_count; /* in `wanted` */
};

static inline struct bt_share bt_forward_share(const struct bt_forward *f, uint32_t rows)
{
    return f->tp ? bt_group_share(f->tp, bt_group_rank(f->tp), rows) : (struct bt_share){0, rows};
}

/* forward.c: queues all operations of the pass, or does them. Nothing else, so that it may be
 * captured. */
enum bt_status bt_forward_layers(struct bt_forward *f, const struct bt_forward_pass *pass);
/* How many rows choose experts in the last layer, and in those before it. */
void bt_forward_count_routed(const struct bt_forward *f, const struct bt_forward_pass *pass);

/* forward_run.c: for an event, NULL: for what is queued so far; no longer than groups would wait
 * for their ranks. */
enum bt_status bt_forward_await(struct bt_forward *f, struct bt_event *event);

/* forward_graphs.c */
/* Whether passes like this one may be captured, and are padded for it. */
bool bt_forward_replays(const struct bt_forward *f, const struct bt_forward_batch *batch);
/* Captures or replays, or runs it as it is. */
enum bt_status bt_forward_replay(struct bt_forward *f, const struct bt_forward_pass *pass);
/* After this all are captured anew. Nothing may be under way. */
void bt_forward_forget_graphs(struct bt_forward *f);

#endif
