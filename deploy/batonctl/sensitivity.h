/*
 * What rounding costs, layer by layer: the model as it was, with one layer of the rounded one in
 * its place, against itself on a text.
 */
#ifndef BATON_DEPLOY_BATONCTL_SENSITIVITY_H
#define BATON_DEPLOY_BATONCTL_SENSITIVITY_H

#include "common/kernels/team.h"
#include "common/model/divergence.h"

#define CTL_SENSITIVITY_TOKENS 1024 /* of the text, at most */

/*
 * Both checkpoints of one shape, in bfloat16 arithmetic; KV in bf16. ret_layers
 * [num_hidden_layers]: with that layer alone rounded; *ret_all: all of them, and the head.
 * NO_MEMORY: the two don't fit side by side.
 */
enum bt_status ctl_sensitivity_measure(const char *exact_dir, const char *rounded_dir,
                                       const char *text_path, struct bt_team *team,
                                       struct bt_error *error, struct bt_divergence *ret_layers,
                                       struct bt_divergence *ret_all);

#endif
