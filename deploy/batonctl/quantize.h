/* Rounding a checkpoint to integers: what batonctl quantize does once its options are read. */
#ifndef BATON_DEPLOY_BATONCTL_QUANTIZE_H
#define BATON_DEPLOY_BATONCTL_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "common/base/status.h"
#include "common/kernels/team.h"
#include "common/model/divergence.h"

enum ctl_quantize_format {
    CTL_QUANTIZE_INT8, /* every product of the layers */
    CTL_QUANTIZE_W4A8, /* experts int4, attention int8 */
};

struct ctl_quantize_options {
    const char *model, *out; /* directories; `out` is made, and must not exist or be empty */
    const char *text;        /* for scaling (w4a8) and for divergences; NULL: neither */
    enum ctl_quantize_format format;
    bool keep_dense, keep_head; /* leave dense layers and lm_head as they are */
    uint32_t calibration_tokens;
    struct bt_team *team;
    FILE *progress; /* NULL: none */
};

/* What was lost, one line a layer. */
struct ctl_quantize_layer {
    uint32_t layer;
    bool is_moe;
    /* root of (rounding error² / weight²) over its attention and its FFN */
    double attention_error, ffn_error;
    /* of what the sampled experts give, without and with scaling; 0: no calibration */
    double plain_error, scaled_error, alpha;
    struct bt_divergence divergence; /* with this layer alone rounded; no rows: no text */
};

struct ctl_quantize_report {
    uint32_t layer_count;
    struct ctl_quantize_layer *layers;
    uint64_t source_bytes, bytes;
    struct bt_divergence divergence; /* of the whole result */
    struct bt_error unmeasured;      /* why divergences are missing although there is a text */
};

enum bt_status ctl_quantize(const struct ctl_quantize_options *options, struct bt_error *error,
                            struct ctl_quantize_report *ret_report);
void ctl_quantize_report_finish(struct ctl_quantize_report *report);

#endif
