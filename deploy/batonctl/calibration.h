/*
 * What the MoE layers see of a text: samples of their input rows with the experts these chose.
 */
#ifndef BATON_DEPLOY_BATONCTL_CALIBRATION_H
#define BATON_DEPLOY_BATONCTL_CALIBRATION_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/team.h"

#define CTL_CALIBRATION_ROWS 512 /* samples kept of a layer */

struct ctl_calibration_layer {
    uint32_t rows;     /* 0: a dense layer */
    float *x;          /* [rows][hidden] after post_attention_layernorm */
    uint32_t *experts; /* [rows][experts_per_token] */
};

struct ctl_calibration {
    uint32_t layer_count, hidden, experts_per_token, tokens;
    struct ctl_calibration_layer *layers;
};

/* Runs at most `max_tokens` of the text through the model, in the pieces of text_run.h. */
enum bt_status ctl_calibrate(const char *model_dir, const char *text_path, uint32_t max_tokens,
                             struct bt_team *team, struct bt_error *error,
                             struct ctl_calibration *ret_calibration);
void ctl_calibration_finish(struct ctl_calibration *calibration);

#endif
