/*
 * The planner: which layouts, and how many prefill and decode instances, serve a load within its
 * limits of latency at the lowest cost; what disaggregation is worth against aggregated serving.
 * Pure: a question in, an answer out; no memory is kept, any thread.
 *
 * Arrivals are Poisson. A prefill instance computes one prompt in each attention group; prompts
 * wait for the first free group of all instances (queueing.h). Decode is in its steady state: by
 * Little's law a group holds rate * (output - 1) * TPOT sequences, which TPOT depends on; both are
 * solved together. Lengths enter by their means.
 *
 * Aggregated serving is the same cards doing both: each chunk of a prompt takes one decode step of
 * its group along, so that a prompt takes chunks * step longer, and decode has what time prefill
 * leaves: TPOT = step / (1 - share of prefill). Its chunks may be smaller than asked for, down to
 * 256, where that is cheaper within the limits.
 */
#ifndef BATON_COMMON_PLANNER_PLANNER_H
#define BATON_COMMON_PLANNER_PLANNER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/planner/estimate.h"
#include "common/planner/plan_model.h"

struct bt_plan_load {
    double requests_per_s;
    double input_tokens, output_tokens; /* means */
    double cached_share;                /* of the input, found in the prefix cache */
    double variation;                   /* of prefill times: standard deviation over the mean */
};

struct bt_plan_slo {
    double ttft_s, tpot_s;
    double quantile; /* of TTFT: 0 the mean, 0.9 the p90 */
    double gap_s;    /* longest between two tokens; 0: not asked for */
};

struct bt_plan_policy {
    double chunk_tokens;          /* of prefill; 0: whole prompts */
    double layerwise_from_tokens; /* KV is pushed layer by layer from this length */
    double max_utilisation;       /* of prefill groups' time and of decode's batch, (0, 1] */
    uint32_t drafts;              /* MTP */
    double acceptance;
};

struct bt_plan_limits {
    uint32_t max_cards;          /* in all */
    uint32_t max_instance_cards; /* of one instance */
    uint32_t max_batch;          /* sequences of one decode group */
    uint32_t prefill_dp;         /* most attention groups of a prefill instance; 0: any */
    uint32_t decode_tp;          /* most cards of a decode group; 0: any */
    struct bt_plan_layout prefill_layout, decode_layout; /* the only one there; all 0: searched */
};

struct bt_plan_question {
    struct bt_plan_model model;
    struct bt_plan_dtypes dtypes;
    struct bt_plan_hardware prefill_hardware, decode_hardware;
    struct bt_plan_calibration calibration;
    struct bt_plan_load load;
    struct bt_plan_slo slo;
    struct bt_plan_policy policy;
    struct bt_plan_limits limits;
};

/* Instances of one layout. */
struct bt_plan_pool {
    struct bt_plan_layout layout;
    uint32_t redundant; /* copies of experts, so that EP divides them */
    uint32_t instances;
};

struct bt_plan_prefill_side {
    struct bt_plan_pool pool;
    struct bt_plan_cost cost;     /* of a prompt */
    struct bt_plan_memory memory; /* aggregated: all zeros, see decode's */
    enum bt_plan_bound bound;
    double service_s; /* how long a prompt keeps its group; aggregated: with decode steps between */
    double utilisation; /* of groups; 1 and above: the queue grows without end */
    double wait_s;      /* mean, or the SLO's quantile */
    double mfu;         /* operations of a prompt over what the card could do meanwhile */
};

struct bt_plan_decode_side {
    struct bt_plan_pool pool;
    struct bt_plan_cost cost;     /* of a step at `batch` */
    struct bt_plan_memory memory; /* with max_batch sequences */
    enum bt_plan_bound bound;
    uint32_t max_batch;     /* of a group, by memory, TPOT and limits; 0: not even one */
    double batch;           /* of a group, at this load; INFINITY: it does not keep up */
    double utilisation;     /* batch / max_batch */
    double tokens_of_step;  /* of a sequence */
    double bandwidth_share; /* bytes of a step over what memory could bring meanwhile */
};

struct bt_plan_outcome {
    bool aggregated; /* then both pools are the same cards */
    struct bt_plan_hardware prefill_hardware, decode_hardware;
    struct bt_plan_prefill_side prefill;
    struct bt_plan_decode_side decode;
    struct bt_plan_handoff handoff;
    double ttft_s;       /* wait + prefill + what is seen of the handoff */
    double tpot_s;       /* mean */
    double worst_gap_s;  /* between two tokens: aggregated, a chunk comes between */
    double chunk_tokens; /* of prefill; 0: whole prompts */
    double cost_per_hour;
    uint32_t cards;
    bool fits;   /* memory, both */
    bool stable; /* utilisations within policy's limit */
    bool meets_ttft, meets_tpot, meets_gap;
    bool good; /* all five */
};

struct bt_plan_answer {
    bool found;
    struct bt_plan_outcome best; /* disaggregated; where not found, not set */
    bool aggregated_found;
    struct bt_plan_outcome aggregated; /* the cheapest of the same cards' kinds */
    bool disaggregate;                 /* found, and no dearer than aggregated */
    double saving;                     /* 1 - cost / aggregated cost; 0 unless both are found */
    double ttft_cost_s;                /* what the handoff adds to TTFT */
    char verdict[320];                 /* a sentence or two with figures */
    char why_not[320];                 /* what stood in the way, where not found */
    uint32_t pairs_tried;
};

/* Zeros, then defaults: chunks of 8192, layer-wise from 8192, utilisation up to 0.9, MTP off with
 * acceptance 0.85, 1024 cards, 64 of an instance, batches up to 512, default calibration. */
void bt_plan_question_init(struct bt_plan_question *ret_question);
/* INVALID_ARGUMENT naming the field. Everything below but explain asserts that this is BT_OK. */
enum bt_status bt_plan_question_check(const struct bt_plan_question *question,
                                      struct bt_error *error);

/* A given deployment under the question's load. INVALID_ARGUMENT for a layout that can't be. */
enum bt_status bt_plan_evaluate(const struct bt_plan_question *question,
                                const struct bt_plan_pool *prefill,
                                const struct bt_plan_pool *decode, struct bt_error *error,
                                struct bt_plan_outcome *ret_outcome);
enum bt_status bt_plan_evaluate_aggregated(const struct bt_plan_question *question,
                                           const struct bt_plan_hardware *hardware,
                                           const struct bt_plan_pool *pool, struct bt_error *error,
                                           struct bt_plan_outcome *ret_outcome);

/* The cheapest good outcome over all layouts and counts; then the lowest TTFT, fewest cards. */
enum bt_status bt_plan_solve(const struct bt_plan_question *question, struct bt_error *error,
                             struct bt_plan_answer *ret_answer);

/* ---- all layouts, each for itself */

#define BT_PLAN_LAYOUTS_MAX 512

/* One instance in one layout, with as many requests as it bears by memory and TPOT; waiting, and so
 * the limit of TTFT, is left out. */
struct bt_plan_choice {
    struct bt_plan_pool pool; /* `instances` is 1 */
    uint32_t cards;
    struct bt_plan_memory memory; /* prefill: of a prompt; decode: of one sequence in each group */
    struct bt_plan_cost cost;     /* of a prompt; of a step with max_batch, or 1 where that is 0 */
    enum bt_plan_bound bound;
    uint32_t max_batch;    /* decode: of a group, by memory, TPOT and limits */
    double tpot_s;         /* decode: at max_batch, or 1 */
    double requests_per_s; /* within policy's limit of utilisation; 0: does not fit */
};

/* Those that a search tries, by rising cards. */
struct bt_plan_survey {
    struct bt_plan_choice *choices; /* [capacity]; the caller's */
    size_t capacity, count;
};
enum bt_status bt_plan_survey(const struct bt_plan_question *question, enum bt_plan_phase phase,
                              struct bt_error *error, struct bt_plan_survey *survey);

/* The instance that a pool of this question's cards of the phase is made of. */
struct bt_plan_instance bt_plan_instance_of(const struct bt_plan_question *question,
                                            enum bt_plan_phase phase,
                                            const struct bt_plan_hardware *hardware,
                                            const struct bt_plan_pool *pool);

/* ---- goodput against the ratio */

struct bt_plan_point {
    uint32_t prefill_instances, decode_instances;
    uint32_t prefill_cards, decode_cards;
    double prefill_limit, decode_limit; /* requests/s that each side bears within the SLOs */
    double goodput;                     /* the lesser */
};

struct bt_plan_curve {
    struct bt_plan_point *points; /* by rising share of prefill; the caller's */
    size_t capacity, count, best; /* best: index, where count > 0 */
    double aggregated;            /* requests/s of as many cards doing both, in decode's layout */
};

/* Splits `total_cards` between instances of these layouts; whole instances, the rest idle. Fills at
 * most `capacity` points, evenly taken where there are more. */
enum bt_status bt_plan_goodput(const struct bt_plan_question *question,
                               const struct bt_plan_pool *prefill,
                               const struct bt_plan_pool *decode, uint32_t total_cards,
                               struct bt_error *error, struct bt_plan_curve *curve);

/* ---- what if */

enum bt_plan_variant {
    BT_PLAN_AS_ASKED,
    BT_PLAN_WITH_W4A8,
    BT_PLAN_WITH_FP8_KV,
    BT_PLAN_WITH_MTP,
    BT_PLAN_WITH_DSA, /* k 2048, 64 heads of 128, as V3.2 */
    BT_PLAN_WITH_MHC, /* 4 streams */
    BT_PLAN_VARIANTS,
};
const char *bt_plan_variant_name(enum bt_plan_variant variant);
/* UNSUPPORTED where the model has no such part: no experts for W4A8, no module for MTP; or has it
 * already (ALREADY_EXISTS). */
enum bt_status bt_plan_variant_apply(const struct bt_plan_question *question,
                                     enum bt_plan_variant variant, struct bt_error *error,
                                     struct bt_plan_question *ret_question);

/* ---- explanation */

#define BT_PLAN_LINE_SIZE 256
#define BT_PLAN_LINES_MAX 96

/* Lines "name = formula = numbers = value unit". */
struct bt_plan_lines {
    char line[BT_PLAN_LINES_MAX][BT_PLAN_LINE_SIZE];
    size_t count;
};

/* Every figure of an outcome, from the parts up. */
void bt_plan_explain(const struct bt_plan_question *question, const struct bt_plan_outcome *outcome,
                     struct bt_plan_lines *ret_lines);

#endif
