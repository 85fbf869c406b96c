/* One side of a deployment in one layout, before it is known how many instances there are: what
 * does not depend on the load is computed once. Inside common/planner only. */
#ifndef BATON_COMMON_PLANNER_SIDES_H
#define BATON_COMMON_PLANNER_SIDES_H

#include "common/planner/planner.h"

struct bt_plan_prompt bt_plan_prompt_of(const struct bt_plan_question *question);
struct bt_plan_decoding bt_plan_decoding_of(const struct bt_plan_question *question, double batch);

struct bt_plan_prefiller {
    struct bt_plan_instance instance;
    struct bt_plan_cost cost;
    struct bt_plan_memory memory;
};
struct bt_plan_prefiller bt_plan_prefiller_of(const struct bt_plan_question *question,
                                              const struct bt_plan_hardware *hardware,
                                              const struct bt_plan_pool *pool);

struct bt_plan_decoder {
    struct bt_plan_instance instance;
    double other_bytes;  /* of a card's memory, that something else takes */
    uint32_t max_batch;  /* 0: not even one sequence; see `fits` for why */
    bool fits;           /* one sequence, in memory */
    double least_tpot_s; /* of one sequence */
};
struct bt_plan_decoder bt_plan_decoder_of(const struct bt_plan_question *question,
                                          const struct bt_plan_hardware *hardware,
                                          const struct bt_plan_pool *pool, double other_bytes);
/* Steps are made for one sequence at least. */
double bt_plan_decoder_tpot(const struct bt_plan_question *question,
                            const struct bt_plan_decoder *decoder, double batch);
/* The batch up to which a group is used. */
double bt_plan_decoder_usable(const struct bt_plan_question *question,
                              const struct bt_plan_decoder *decoder);
/* Requests/s that one instance keeps up with at that batch; INFINITY where nothing is decoded. */
double bt_plan_decoder_rate(const struct bt_plan_question *question,
                            const struct bt_plan_decoder *decoder);

/* TTFT of `instances` at a rate, and both conditions of it. */
double bt_plan_prefiller_wait(const struct bt_plan_question *question,
                              const struct bt_plan_prefiller *prefiller, uint32_t instances,
                              double requests_per_s);
/* TTFT of a request that waits for nobody. */
double bt_plan_prefiller_ttft(const struct bt_plan_question *question,
                              const struct bt_plan_prefiller *prefiller,
                              const struct bt_plan_handoff *handoff);
bool bt_plan_prefiller_bears(const struct bt_plan_question *question,
                             const struct bt_plan_prefiller *prefiller,
                             const struct bt_plan_handoff *handoff, uint32_t instances,
                             double requests_per_s);

struct bt_plan_handoff bt_plan_handoff_of(const struct bt_plan_question *question,
                                          const struct bt_plan_prefiller *prefiller,
                                          const struct bt_plan_decoder *decoder);

struct bt_plan_outcome bt_plan_outcome_of(const struct bt_plan_question *question,
                                          const struct bt_plan_prefiller *prefiller,
                                          const struct bt_plan_decoder *decoder,
                                          uint32_t prefill_instances, uint32_t decode_instances);
/* `prefiller` and `decoder` of the same cards. */
struct bt_plan_outcome bt_plan_aggregated_of(const struct bt_plan_question *question,
                                             const struct bt_plan_prefiller *prefiller,
                                             const struct bt_plan_decoder *decoder,
                                             uint32_t instances, double requests_per_s);

#endif
