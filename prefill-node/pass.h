/*
 * One forward pass over chunks of prompts, on every rank of a worker the same: what a layer adds to
 * the pages is given to the pushes at once. The thread that computes.
 */
#ifndef BATON_PREFILL_NODE_PASS_H
#define BATON_PREFILL_NODE_PASS_H

#include "common/model/draws.h"
#include "common/model/rank.h"
#include "kvtransfer/source.h"
#include "kvtransfer/staging.h"
#include "prefill-node/plan.h"

struct pf_pass_options {
    const struct bt_model *model; /* but that `rank` moves experts in it */
    struct bt_rank *rank;         /* NULL: alone */
    struct bt_kv_layout layout;
    void *kv_pool; /* [layer][page][token][dim] */
    struct kvt_staging
        *staging; /* that takes it to where it is pushed from; NULL: that is kv_pool */
    uint32_t pool_pages;
    uint32_t max_chunks, max_rows;
};

struct pf_pass;

/* Starts the rank (bt_rank_start). */
enum bt_status pf_pass_create(const struct pf_pass_options *options, struct bt_error *error,
                              struct pf_pass **ret_pass);
void pf_pass_destroy(struct pf_pass *pass); /* NULL is fine */

/* The calling thread runs it from now on. */
enum bt_status pf_pass_enter(struct pf_pass *pass, struct bt_error *error);

/* Whether the device of the model draws. */
bool pf_pass_draws(const struct pf_pass *pass);

/*
 * `pushes` [count], each NULL or of that chunk's prompt: finished, when the prompt ends with the
 * chunk. A layer is given to the pushes when it is computed, while those after it are. `draws`:
 * what the device draws of the chunks that are last; NULL: nothing, the logits are wanted.
 * *ret_result: of the chunks that are last, valid until the next pass; NULL on ranks other than 0.
 * *ret_computed_ns: after the last layer. Fails as bt_forward_begin does.
 */
enum bt_status pf_pass_run(struct pf_pass *pass, const struct pf_plan_chunk *chunks,
                           struct kvt_push *const *pushes, uint32_t count,
                           const struct bt_draws *draws, struct bt_error *error,
                           struct bt_forward_result *ret_result, int64_t *ret_computed_ns);

#endif
