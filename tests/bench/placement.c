#include "tests/bench/placement.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/random.h"
#include "common/parallel/placement.h"

#define SEED     UINT64_C(5)
#define LAYERS   58
#define EXPERTS  256
#define RANKS    8
#define REPLICAS 32
#define HOT      32 /* experts of a layer */
#define HOT_RUN  12 /* neighbours, at most */

/* Runs of hot neighbours at random places, until enough are hot; each load within 20 % of its kind.
 */
static void draw_layer(uint32_t layer, uint64_t *loads)
{
    for (uint32_t expert = 0; expert < EXPERTS; expert++)
        loads[expert] = 10000;
    for (uint32_t hot = 0, run = 0; hot < HOT; run++) {
        uint64_t dice = bt_random_u64(SEED, layer, run);
        uint32_t first = (uint32_t)(dice % EXPERTS), length = 1 + (uint32_t)(dice >> 32) % HOT_RUN;
        for (uint32_t i = 0; i < length && first + i < EXPERTS && hot < HOT; i++) {
            hot += loads[first + i] == 10000;
            loads[first + i] = 50000;
        }
    }
    for (uint32_t expert = 0; expert < EXPERTS; expert++) {
        double unit = bt_random_unit(SEED + 1, layer, expert);
        loads[expert] = (uint64_t)((double)loads[expert] * (0.8 + 0.4 * unit));
    }
}

static bool print_figure(const char *name, const struct bt_placement_options *options)
{
    struct bt_placement *placement;
    struct bt_error error;
    if (bt_placement_create(options, &error, &placement) != BT_OK) {
        fprintf(stderr, "%s\n", error.text);
        return false;
    }
    double value = bt_placement_imbalance(placement, options->loads);
    printf("figure %s_max_over_mean %.4f x 1 %.4f\n", name, value, 1 / value);
    bt_placement_destroy(placement);
    return true;
}

static bool print_figures(const char *prefix, struct bt_placement_options options,
                          uint32_t replicas)
{
    static const char *const names[] = {"contiguous", "roundrobin", "balanced"};
    bool done = true;
    for (int kind = 0; kind <= BT_PLACEMENT_BALANCED && done; kind++) {
        char name[64];
        snprintf(name, sizeof(name), "%s%s", prefix, names[kind]);
        options.kind = (enum bt_placement_kind)kind;
        options.replicas = kind == BT_PLACEMENT_BALANCED ? replicas : 0;
        done = print_figure(name, &options);
    }
    return done;
}

bool bench_placement_of(const char *prefix, uint32_t layers, uint32_t experts, uint32_t ranks,
                        const uint64_t *loads)
{
    const struct bt_placement_options options = {.layers = layers,
                                                 .experts = experts,
                                                 .ranks = ranks,
                                                 .machines = 1,
                                                 .groups = 1,
                                                 .loads = loads};
    return print_figures(prefix, options, 0);
}

bool bench_placement(void)
{
    uint64_t *loads = malloc((size_t)LAYERS * EXPERTS * sizeof(*loads));
    if (!loads)
        return false;
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        draw_layer(layer, loads + (size_t)layer * EXPERTS);
    printf("placement: %d layers, %d experts, %d of them hit 5 times as often in runs of "
           "neighbours, %d ranks, %d replicas, seed %" PRIu64 "\n",
           LAYERS, EXPERTS, HOT, RANKS, REPLICAS, SEED);
    const struct bt_placement_options options = {.layers = LAYERS,
                                                 .experts = EXPERTS,
                                                 .ranks = RANKS,
                                                 .machines = 1,
                                                 .groups = 1,
                                                 .loads = loads};
    bool done = print_figures("", options, REPLICAS);
    free(loads);
    return done;
}
