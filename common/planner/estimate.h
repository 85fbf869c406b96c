/*
 * Times and memory of one instance: a model in some dtypes, on cards of one kind, in one layout,
 * with a calibration. Pure.
 *
 * An instance has dp attention groups of tp cards; its experts lie over ep of its tp * dp cards
 * (over each ep of them where there are more). Groups lie within a node as far as they fit. What is
 * not in the published formulas and is added here, so that figures of real models come out:
 * projections of attention, the head for a prompt's last token only, the mixing of mHC's streams
 * (two connections a layer), drafts of MTP as 1/L of a step each.
 */
#ifndef BATON_COMMON_PLANNER_ESTIMATE_H
#define BATON_COMMON_PLANNER_ESTIMATE_H

#include <stdbool.h>

#include "common/planner/calibration.h"
#include "common/planner/hardware.h"
#include "common/planner/resources.h"

#define BT_PLAN_SINKHORN_ITERATIONS 20

enum bt_plan_phase { BT_PLAN_PREFILL, BT_PLAN_DECODE };

/* What stays the same from step to step. */
struct bt_plan_instance {
    enum bt_plan_phase phase;
    struct bt_plan_model model;
    struct bt_plan_dtypes dtypes;
    struct bt_plan_hardware hardware;
    struct bt_plan_calibration calibration;
    struct bt_plan_layout layout;
    uint32_t redundant; /* copies of experts beyond one of each, over the EP cards */
};

/* The largest share, by the rules of thumb: memory or network dominate when their time is over half
 * of compute's. */
enum bt_plan_bound { BT_PLAN_BOUND_COMPUTE, BT_PLAN_BOUND_MEMORY, BT_PLAN_BOUND_NETWORK };

/* Of one step, or the sum over the steps of a prompt; of one card, the busiest. */
struct bt_plan_cost {
    double attention_operations, projection_operations, mlp_operations, stream_operations;
    double operations;   /* the sum of these */
    double experts_read; /* of each layer; of the last step */
    double weight_bytes, kv_bytes, activation_bytes;
    double expert_bytes, tensor_bytes, inside_bytes, between_bytes;
    double compute_s, memory_s, network_s, overhead_s;
    double seconds; /* as the calibration lets them overlap */
    double steps;
    enum bt_plan_number number; /* that the card computes with */
    double peak;                /* operations/s */
    double attention_peak;      /* of attention_operations */
};

struct bt_plan_memory {
    double weight_bytes, kv_bytes, activation_bytes, reserve_bytes, total_bytes;
    double capacity_bytes;
    double share;
    bool fits; /* share <= memory_limit */
};

struct bt_plan_prompt {
    double batch;        /* prompts that each attention group computes together */
    double tokens;       /* of each */
    double cached;       /* of these, found in the prefix cache */
    double chunk_tokens; /* of each prompt in a step; 0: whole */
};

struct bt_plan_decoding {
    double batch;      /* sequences of each attention group */
    double context;    /* mean KV length */
    double reserved;   /* KV tokens that a sequence holds in memory */
    uint32_t drafts;   /* MTP: tokens proposed a step; 0: none */
    double acceptance; /* of each draft, given that those before it were accepted */
};

/* BT_OK, or INVALID_ARGUMENT with what is wrong: tp does not divide heads, ep does not divide the
 * cards or the experts with their copies, a figure is not there. */
enum bt_status bt_plan_instance_check(const struct bt_plan_instance *instance,
                                      struct bt_error *error);

/* One step, with `busy` of the attention groups at work on as much each. */
struct bt_plan_cost bt_plan_step_cost(const struct bt_plan_instance *instance,
                                      const struct bt_plan_step *step, double busy);

/* All chunks of a prompt, all attention groups busy; `seconds` is the prefill's time. */
struct bt_plan_cost bt_plan_prefill_cost(const struct bt_plan_instance *instance,
                                         const struct bt_plan_prompt *prompt);
struct bt_plan_memory bt_plan_prefill_memory(const struct bt_plan_instance *instance,
                                             const struct bt_plan_prompt *prompt);

/* One step of all attention groups; `seconds` includes drafts. */
struct bt_plan_cost bt_plan_decode_cost(const struct bt_plan_instance *instance,
                                        const struct bt_plan_decoding *decoding);
struct bt_plan_memory bt_plan_decode_memory(const struct bt_plan_instance *instance,
                                            const struct bt_plan_decoding *decoding);
/* Tokens that a sequence gains in a step: 1 + a + a^2 + … over the drafts. */
double bt_plan_tokens_of_step(const struct bt_plan_decoding *decoding);

enum bt_plan_bound bt_plan_bound_of(const struct bt_plan_cost *cost);
const char *bt_plan_bound_name(enum bt_plan_bound bound);

/*
 * What of a prompt's KV transfer is seen after its prefill. Each of `senders` cards pushes over its
 * own link, `receivers` take it in. Layer by layer all but the last layer hides behind the prefill,
 * as far as that lasts; else all of it is seen.
 */
struct bt_plan_handoff {
    double bytes;
    double transfer_s; /* of all of it */
    double visible_s;
    bool layerwise;
};
struct bt_plan_handoff bt_plan_handoff_cost(const struct bt_plan_instance *prefill,
                                            const struct bt_plan_instance *decode, double tokens,
                                            double prefill_s, bool layerwise);

#endif
