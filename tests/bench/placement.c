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

static bool print_figure(const char *name, enum bt_placement_kind kind, const uint64_t *loads)
{
    struct bt_placement_options options = {
        .kind = kind,
        .layers = LAYERS,
        .experts = EXPERTS,
        .ranks = RANKS,
        .machines = 1,
        .groups = 1,
        .replicas = kind == BT_PLACEMENT_BALANCED ? REPLICAS : 0,
        .loads = loads,
    };
    struct bt_placement *placement;
    struct bt_error error;
    if (bt_placement_create(&options, &error, &placement) != BT_OK) {
        fprintf(stderr, "%s\n", error.text);
        return false;
    }
    double value = bt_placement_imbalance(placement, loads);
    printf("figure %s_max_over_mean %.4f x 1 %.4f\n", name, value, 1 / value);
    bt_placement_destroy(placement);
    return true;
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
    bool done = print_figure("contiguous", BT_PLACEMENT_CONTIGUOUS, loads) &&
                print_figure("roundrobin", BT_PLACEMENT_ROUND_ROBIN, loads) &&
                print_figure("balanced", BT_PLACEMENT_BALANCED, loads);
    free(loads);
    return done;
}
