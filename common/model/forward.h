/*
 * The forward pass, written once for prefill and decode and every backend.
 *
 * A batch is rows of several sequences. For each layer: norm, MLA (multi-head form when prefilling,
 * absorbed form when decoding), residual, norm, MLP or MoE, residual. Allocation happens in
 * bt_forward_create only (and where a device captures a graph), and no run makes a system call but
 * to wake threads of the team and what groups and the device's driver need.
 *
 * It runs on the device of its model. On a CPU all is done when bt_forward_begin returns. Where a
 * device queues, begin queues the whole run, and finish waits for it, once: nothing in between
 * does, so that the next run may be begun before. Passes of the absorbed form in which every row
 * has logits are padded to a few sizes (bt_forward_padded), captured in graphs and replayed.
 *
 * Groups on GPUs are behind what is queued (bt_group_use_stream): their reductions, and dispatch
 * and combine of few rows, are queued, too. Passes of an ep group are captured where its ranks know
 * them to be alike (most_rows, is_steady); those of a tp group are not. Before a call of another
 * group the device is waited for.
 *
 * Ranks of a tp group run the same batches: each has the KV of all rows in pages of its own, the
 * same bits on all ranks, computes attention of its heads, and keeps the residual stream of its
 * share of the rows (bt_group_share), for which it alone does norms, MLP and MoE. Sums over heads
 * are reduce-scattered, what the next layer reads is all-gathered.
 *
 * Ranks of an ep group run batches of their own, which may be empty, but the same number of them:
 * in each layer of experts all of them meet. Where a rank is in both, the ranks of one tp group are
 * ranks of the ep group.
 *
 * Logits of one tp size have the same bits for every ep size and placement, with payload EXACT
 * those of no ep group.
 */
#ifndef BATON_COMMON_MODEL_FORWARD_H
#define BATON_COMMON_MODEL_FORWARD_H

#include "common/model/model.h"
#include "common/model/profile.h"
#include "common/parallel/expert_loads.h"
#include "common/parallel/group.h"

enum bt_forward_form { BT_FORWARD_MULTI_HEAD, BT_FORWARD_ABSORBED };

struct bt_forward; /* buffers and stream of one engine thread */

/* How rows travel to their experts. */
enum bt_forward_payload {
    BT_PAYLOAD_EXACT, /* bf16 where the experts round their rows to it anyway, else f32 */
    BT_PAYLOAD_BF16,
    BT_PAYLOAD_FP8, /* e4m3 with a scale for every 128 */
};

struct bt_forward_options {
    uint32_t max_rows;      /* of one bt_forward_run; in groups the same on all ranks */
    uint32_t max_logits;    /* rows of logits of one run */
    uint32_t max_sequences; /* of one run, with room on a device; 0: max_rows */
    /* Borrowed; NULL: alone. Rank and size of tp are those of the model's part; rank of ep that of
     * its experts. May be one group. */
    struct bt_group *tp, *ep;
    const struct bt_placement *placement; /* with ep: the model's; read during runs */
    enum bt_forward_payload payload;
    enum bt_dispatch_mode dispatch;
    struct bt_expert_loads *loads; /* counts the picks of this rank's rows; NULL: nobody asks */
};

/* INVALID_ARGUMENT where groups, placement and the model's part do not belong together. */
enum bt_status bt_forward_create(const struct bt_model *model,
                                 const struct bt_forward_options *options, struct bt_error *error,
                                 struct bt_forward **ret_forward);
void bt_forward_destroy(struct bt_forward *forward);

/* What the groups of such passes must be made for; broadcast_bytes stays 0. Where tp and ep are two
 * groups, tp needs no `rows`, and ep no `floats`. */
struct bt_group_limits bt_forward_group_limits(const struct bt_model_config *config,
                                               uint32_t max_rows, uint32_t tp_size);

/*
 * From the next run on, MoE layer `moe_index` sends its rows by `placement`, which is read as long
 * as it is in use. Between the same two steps on all ranks of ep, with bt_model_switch_experts.
 */
void bt_forward_set_placement(struct bt_forward *forward, uint32_t moe_index,
                              const struct bt_placement *placement);

/* From the next run on, adds the time of each operation to `profile`, the caller's; NULL: off. Each
 * operation is waited for where the device queues. */
void bt_forward_profile(struct bt_forward *forward, struct bt_profile *profile);

/*
 * `layer` of all rows is in the pages, the layer's compute is done: its KV may be read and sent.
 * Told by begin on a CPU, by finish where the device queues, while later layers run; in a group,
 * whose calls may wait for the device, by begin, too.
 */
typedef void bt_forward_layer_fn(void *context, uint32_t layer);

/* For tests: x is the residual stream [rows][hidden] after the embedding (layer == -1) and after
 * each layer, in a tp group of this rank's share of the rows; experts/weights
 * [rows][experts_per_token] of a MoE layer, else NULL. */
typedef void bt_forward_probe_fn(void *context, int32_t layer, const float *x,
                                 const uint32_t *experts, const float *weights);

struct bt_forward_batch {
    enum bt_forward_form form;
    const uint32_t *tokens; /* [rows], each < vocab_size */
    uint32_t rows;
    const struct bt_sequence_rows *sequences; /* covering all rows in order */
    uint32_t sequence_count;
    void *kv_pool; /* [layer][page][token][dim] */
    struct bt_kv_layout layout;
    uint32_t pool_pages;
    const uint32_t *logit_rows; /* ascending rows whose logits are wanted */
    uint32_t logit_count;
    /* [logit_count] how the device draws a token of each of them; NULL: it draws none. Only where
     * bt_forward_draws. */
    const struct bt_draw *draws;
    const struct bt_adjust *adjusts; /* [adjust_count] of the draws */
    uint32_t adjust_count;           /* <= BT_DRAWS_ADJUSTS of each of max_logits */
    bool no_logits;                  /* nobody wants to see them: with draws */
    /* [rows] the row of `draws` of the run before, whose token it is, or BT_TOKEN_GIVEN. NULL: all
     * are given. Only where bt_forward_draws, after a run with draws. */
    const uint32_t *token_from;
    /* In an ep group, the same on all ranks: rows of the rank that has most, 0: nobody knows; and
     * that all ranks have logits of all of their rows, in the absorbed form. */
    uint32_t most_rows;
    bool is_steady;
    bool every_row; /* goes through the whole last layer, not only rows with logits; to measure */
    bt_forward_layer_fn *layer_done; /* may be NULL; of one run at a time */
    bt_forward_probe_fn *probe;      /* may be NULL */
    void *context;
};

/* Runs that may be under way: begun and not finished. */
#define BT_FORWARD_DEPTH 2

/* NULL on tp ranks other than 0. */
struct bt_forward_result {
    /* [logit_count][vocab_size], until the next begin; those that draws adjust may have changed;
     * NULL: no_logits */
    const float *logits;
    const uint32_t *tokens; /* [logit_count], until the next but one begin; NULL: no draws */
    /* Likewise, of those whose draw wants them. NULL: none does. */
    const struct bt_logprobs *logprobs;
};

/* Whether its device can draw tokens. */
bool bt_forward_draws(const struct bt_forward *forward);

/*
 * Appends the rows' KV to their pages and computes logits. Limits were checked by the caller
 * (asserted). The batch is read in the call; a run with a probe is done on return. One that wants
 * logits is begun when no other that wants them is under way.
 *
 * Either function may fail, and bt_forward_error says why; then what is under way is finished, and
 * KV of the batch's rows may be anything. On a CPU alone neither does. In a group they fail as the
 * group does (see group.h), or with MISMATCH where another rank has other limits or another
 * placement. Where the device is at fault, INTERNAL, from then on.
 */
enum bt_status bt_forward_begin(struct bt_forward *forward, const struct bt_forward_batch *batch);
/* Of the eldest run under way. */
enum bt_status bt_forward_finish(struct bt_forward *forward, struct bt_forward_result *ret_result);
/* Both, with no other run under way. */
enum bt_status bt_forward_run(struct bt_forward *forward, const struct bt_forward_batch *batch,
                              const float **ret_logits);
/* Why the last one failed, as far as the group does not say; "" if nothing more is known. */
const char *bt_forward_error(const struct bt_forward *forward);

/*
 * Captures graphs of the absorbed form for all sizes up to `rows`, so that no step of these has to:
 * runs of padding alone, which leave the pages as they are. Nothing where the device has no graphs;
 * nor in a group, which captures as it goes. `batch`: where KV is.
 */
enum bt_status bt_forward_warm(struct bt_forward *forward, const struct bt_forward_batch *batch,
                               uint32_t rows);

/* A run of so many rows or logits that is replayed is one of so many; `most`: max_rows, or
 * max_logits. */
uint32_t bt_forward_padded(uint32_t rows, uint32_t most);

/* What runs are queued on: for copies that belong before the next one. */
struct bt_stream *bt_forward_stream(const struct bt_forward *forward);

/* Any thread. */
struct bt_forward_counts {
    uint64_t device_waits;   /* host threads waited for the device, for whatever */
    uint64_t graph_launches; /* runs that were replayed */
    uint32_t graphs;         /* that are captured */
};
void bt_forward_count(const struct bt_forward *forward, struct bt_forward_counts *ret_counts);

#endif
