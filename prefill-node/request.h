/* A PrefillRequest, or rank 0's RankPushRequest, that was checked field by field, in memory of its
 * own. */
#ifndef BATON_PREFILL_NODE_REQUEST_H
#define BATON_PREFILL_NODE_REQUEST_H

#include "common/model/sampler.h"
#include "proto/worker.pb-c.h"

#define PF_MIN_LEASE_MS 100
#define PF_MAX_LEASE_MS 600000

struct pf_request_limits {
    uint32_t vocab_size;
    uint32_t max_model_len; /* prompt and first token */
};

struct pf_request {
    uint64_t request, epoch;
    uint32_t *prompt; /* [prompt_tokens] */
    uint32_t prompt_tokens;
    uint32_t page_count; /* of the prompt */
    struct bt_sampling sampling;
    struct bt_sampler_history *history; /* with the prompt; NULL: no penalty needs it */
    uint32_t *target_pages;             /* [page_count] in the decode rank's pool */
    uint32_t lease_ms;
    bool probe;   /* pushed and given up: nothing is computed */
    bool sampled; /* layer by layer times are wanted */
};

/* INVALID_ARGUMENT names the field. The landing's endpoint is checked by pf_peers_get. */
enum bt_status pf_request_init(struct pf_request *request, const Baton__V1__PrefillRequest *message,
                               const struct pf_request_limits *limits, struct bt_error *error);
void pf_request_finish(struct pf_request *request);

struct pf_rank_limits {
    uint32_t max_model_len;
    uint32_t pool_pages; /* of this rank */
};

struct pf_rank_push {
    uint64_t serial;
    uint64_t request, epoch;
    uint32_t prompt_tokens, cached_tokens;
    uint32_t *source_pages, *target_pages; /* [bt_kv_pages_for(prompt_tokens)] */
    uint32_t lease_ms;
    bool layerwise, probe;
};

/* INVALID_ARGUMENT names the field; the group's incarnation is the caller's to look at, the
 * landing's endpoint that of pf_peers_get. */
enum bt_status pf_rank_push_init(struct pf_rank_push *push,
                                 const Baton__V1__RankPushRequest *message,
                                 const struct pf_rank_limits *limits, struct bt_error *error);
void pf_rank_push_finish(struct pf_rank_push *push);

#endif
