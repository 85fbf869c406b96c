/*
 * Activation-aware scaling (arXiv 2306.00978) of one MoE layer: inputs that carry large activations
 * are made larger in the weights before they are rounded to int4, and smaller where they come from.
 * The scale of the experts' common input goes into the norm and the router before them; that of an
 * expert's inner row into the rows of its up projection.
 */
#ifndef BATON_DEPLOY_BATONCTL_AWQ_H
#define BATON_DEPLOY_BATONCTL_AWQ_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/team.h"

/* Row `row` of a weight matrix as f32; any thread. */
typedef void ctl_row_fn(const void *context, uint32_t row, float *ret_row);

struct ctl_weights {
    ctl_row_fn *row;
    const void *context;
    uint32_t rows, cols;
};

/* gate and up [inner][hidden], down [hidden][inner]. */
struct ctl_expert {
    struct ctl_weights gate, up, down;
};

struct ctl_awq_layer {
    uint32_t hidden;
    uint32_t expert_count;            /* routed, then the shared one if there is one */
    const struct ctl_expert *experts; /* [expert_count] */
    bool has_shared;                  /* the last one; it sees every row */
    const float *x;                   /* [rows][hidden] */
    const uint32_t *choices;          /* [rows][experts_per_token] */
    uint32_t rows, experts_per_token;
};

/* Relative errors of what the sampled experts give, root of (error² / output²). */
struct ctl_awq_errors {
    double plain, scaled; /* int4 without and with the scales */
    double input_alpha;   /* the exponent chosen for the common input */
};

/*
 * ret_input [hidden] and ret_inner [expert_count][widest inner, `inner_stride` apart]: weights are
 * multiplied by them along their inputs before rounding. All ones where nothing was seen, and for a
 * down whose inputs do not fill groups.
 */
enum bt_status ctl_awq_search(const struct ctl_awq_layer *layer, struct bt_team *team,
                              float *ret_input, float *ret_inner, uint32_t inner_stride,
                              struct ctl_awq_errors *ret_errors, struct bt_error *error);

#endif
