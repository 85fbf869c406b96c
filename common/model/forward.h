/*
 * The forward pass, written once for prefill and decode and every backend.
 *
 * A batch is rows of several sequences. For each layer: norm, MLA (multi-head form when prefilling,
 * absorbed form when decoding), residual, norm, MLP or MoE, residual. Allocation happens in
 * bt_forward_create only, and no run makes a system call but to wake threads of the team.
 */
#ifndef BATON_COMMON_MODEL_FORWARD_H
#define BATON_COMMON_MODEL_FORWARD_H

#include "common/model/model.h"
#include "common/model/profile.h"

enum bt_forward_form { BT_FORWARD_MULTI_HEAD, BT_FORWARD_ABSORBED };

struct bt_forward; /* buffers and stream of one engine thread */

/* `max_rows` of one bt_forward_run, `max_logits` rows of logits of one run. */
enum bt_status bt_forward_create(const struct bt_model *model, uint32_t max_rows,
                                 uint32_t max_logits, struct bt_error *error,
                                 struct bt_forward **ret_forward);
void bt_forward_destroy(struct bt_forward *forward);

/* From the next run on, adds the time of each operation to `profile`, the caller's; NULL: off. */
void bt_forward_profile(struct bt_forward *forward, struct bt_profile *profile);

/*
 * `layer` of all rows is in the pages, the layer's compute is done: its KV may be read and sent.
 */
typedef void bt_forward_layer_fn(void *context, uint32_t layer);

/* For tests: x is the residual stream [rows][hidden] after the embedding (layer == -1) and after
 * each layer; experts/weights [rows][experts_per_token] of a MoE layer, else NULL. */
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
    bt_forward_layer_fn *layer_done; /* may be NULL */
    bt_forward_probe_fn *probe;      /* may be NULL */
    void *context;
};

/*
 * Appends the rows' KV to their pages and computes logits: *ret_logits [logit_count][vocab_size],
 * valid until the next run. Never fails: limits were checked by the caller (asserted).
 */
void bt_forward_run(struct bt_forward *forward, const struct bt_forward_batch *batch,
                    const float **ret_logits);

#endif
