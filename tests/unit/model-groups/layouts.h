/*
 * The tiny model run by groups of processes. Each tp group (or rank without one) has a prompt of
 * its own, which it prefills in chunks and then decodes; where it has nothing to do any more, or
 * pauses, it joins the steps of the others with no rows.
 */
#ifndef BATON_TESTS_UNIT_MODEL_GROUPS_LAYOUTS_H
#define BATON_TESTS_UNIT_MODEL_GROUPS_LAYOUTS_H

#include "common/model/forward.h"

#define MAX_RANKS  8
#define MAX_LOGITS 96 /* of one prompt: its positions, then its steps */
#define STEPS      6  /* decode steps of a prompt */
#define POOL_PAGES 8
#define MAX_CHUNK  160

struct prompt {
    const char *name;
    const uint32_t *tokens; /* [count] */
    uint32_t count;
    const uint32_t *positions; /* [position_count] whose logits are kept */
    uint32_t position_count;
    const uint32_t *next; /* [STEPS] fed after the prompt */
};

enum replicas { NO_REPLICAS, WITH_REPLICAS };

struct layout {
    const char *dir;
    enum bt_model_dtype dtype;
    enum bt_dtype kv_dtype;
    uint32_t tp; /* 1: alone */
    uint32_t ep; /* 0: no group; else a multiple of tp */
    enum bt_placement_kind placement;
    enum replicas replicas; /* of the hottest experts; placement is not used then */
    bool moves;  /* during each step one layer's experts are loaded, after it they are used */
    bool late;   /* on a device that does its work as late as it may */
    bool probes; /* which sees all rows of the last layer */
    enum bt_forward_payload payload;
    uint32_t chunk;         /* of tp group 0; others have other ones */
    uint32_t ranks;         /* without groups: how many prompts */
    uint32_t kill_rank;     /* that ends itself in the middle of a step; 0: none */
    uint32_t confused_rank; /* that sends by another placement than the others; 0: none */
};

struct rank_result {
    float *logits; /* [MAX_LOGITS][vocab], tp rank 0 */
    uint32_t logit_count;
    void *pool; /* of all layers */
    size_t pool_bytes;
    struct bt_group_traffic tp_traffic, ep_traffic;
    uint64_t picks, remote_picks; /* of this rank's rows; with no replicas and no moves */
    enum bt_status status;        /* that ended the runs early */
    uint64_t weight_bytes;
};

/* Shared with the processes. */
struct results {
    uint32_t ranks, vocab;
    struct rank_result rank[MAX_RANKS];
    void *memory;
    size_t bytes;
};

/* prompts[tp group]; as many as there are tp groups. A rank that fails otherwise than by the status
 * of a run ends the test. */
void layout_run(const struct layout *layout, const struct prompt *prompts, struct results *ret);
void results_free(struct results *results);

/* "tp 2 ep 4 round-robin" */
const char *layout_name(const struct layout *layout);

#endif
