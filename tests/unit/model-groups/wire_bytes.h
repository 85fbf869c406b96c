/*
 * Bytes that the ranks of a group send each other for a token, counted and predicted. The
 * prediction is formulas 26 to 28 of the four-resource model, adapted to how the ranks share the
 * work out:
 *
 *     reduce     28: 2 L rows x hidden floats, all ranks together T - 1 times: reduce-scatter and
 *                all-gather. In f32; the first layer gathers nothing, as embeddings need nobody;
 *                the last one gathers and reduces the rows with logits alone, and reduces them once
 *                more where they are shared out anew.
 *     dispatch   27, one way: of a row's k experts those that are remote, once for each rank.
 *     combine    27, the way back: of a row's k experts those that are remote, each.
 *
 * Which experts are remote is told by the routing of the model run alone.
 */
#ifndef BATON_TESTS_UNIT_MODEL_GROUPS_WIRE_BYTES_H
#define BATON_TESTS_UNIT_MODEL_GROUPS_WIRE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_FIGURES_MAX 16
#define WIRE_LAYERS_MAX  8
#define WIRE_EXPERTS_MAX 32

struct wire_figure {
    char name[64];          /* "tp2_ep2_dispatch" */
    double sent, predicted; /* bytes a token, all ranks together */
};

struct wire_report {
    struct wire_figure figures[WIRE_FIGURES_MAX];
    size_t count;
    uint32_t layers, experts;                           /* MoE layers */
    uint64_t loads[WIRE_LAYERS_MAX * WIRE_EXPERTS_MAX]; /* [layers][experts] of the prompts */
};

/* The tiny model of `models` in bfloat16, a prompt for each tp group: TP2, TP2+EP2, TP4+EP4, EP2,
 * EP4. False: it failed, and was said. */
bool wire_bytes_measure(const char *models, struct wire_report *ret_report);

#endif
