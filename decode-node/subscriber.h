/*
 * The routers that listen to this rank: one Steps stream each, by the router's incarnation. What
 * happened to their requests is collected and goes out as one StepEvent per router. Control thread.
 *
 * A router that does not read its stream loses it: what is kept for it is bounded by the RPC
 * layer's send queue.
 */
#ifndef BATON_DECODE_NODE_SUBSCRIBER_H
#define BATON_DECODE_NODE_SUBSCRIBER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/messaging/rpc.h"
#include "common/model/sampler.h"
#include "proto/worker.pb-c.h"

#define DC_MAX_SUBSCRIBERS  64
#define DC_DELIVERED_TOKENS 32768 /* of a history, in one message */
#define DC_TRANSPORT_SIZE   32

struct dc_subscribers;

struct dc_subscribers_events {
    /* The stream ended, for whatever reason: nobody wants this router's requests any more. */
    void (*gone)(void *context, uint64_t router_incarnation);
    /* A new one begins, after the end of another that this router had. */
    void (*opens)(void *context, uint64_t router_incarnation);
    void (*load)(void *context, Baton__V1__RankLoad *ret_load);
    void *context;
};

struct dc_subscribers *dc_subscribers_create(const struct dc_subscribers_events *events);
/* Streams that are open belong to the RPC server, which ends them. `gone` is not called. */
void dc_subscribers_destroy(struct dc_subscribers *subscribers);

/* A new Steps call; says hello with the load at once. A stream that this router had before ends
 * first, with its requests: tokens may have been lost in between. */
void dc_subscribers_open(struct dc_subscribers *subscribers, struct bt_rpc_call *call,
                         const Baton__V1__StepsRequest *message);

bool dc_subscribers_has(const struct dc_subscribers *subscribers, uint64_t router_incarnation);
uint32_t dc_subscribers_count(const struct dc_subscribers *subscribers);

/* What a prefill worker told of its work, to be passed on. */
struct dc_prefill_told {
    Baton__V1__PrefillDone message; /* no layers; the transport is the one below */
    char transport[DC_TRANSPORT_SIZE];
};

struct dc_news {
    uint64_t request, epoch;
    const struct bt_sample *sample; /* NULL: no token */
    uint32_t index;
    bool with_logprobs;
    bool starts; /* the token is the first that was drawn here: the last three are set */
    Baton__V1__FinishReason finish;
    const char *text;           /* with FINISH_ERROR; a constant */
    uint64_t prompt_compute_ns; /* as in SequenceStep */
    uint64_t wait_ns, step_ns;  /* as in SequenceStart */
    int64_t begin_unix_ns;
    const struct dc_prefill_told
        *prefill; /* with the first token; NULL: nothing was told. Copied */
};

void dc_prefill_told_keep(const Baton__V1__PrefillDone *message, struct dc_prefill_told *ret_told);

/* For the next flush. Nothing happens when the router is not there. Never calls back. */
void dc_subscribers_add(struct dc_subscribers *subscribers, uint64_t router_incarnation,
                        const struct dc_news *news);

/* A sequence that the router did not have before. */
struct dc_history {
    uint64_t request, epoch;
    const uint32_t *tokens; /* [count]; from number 0 on */
    uint32_t count;
    Baton__V1__FinishReason finish;
    const struct dc_prefill_told *prefill; /* NULL: nothing was told */
};

/* Sends it at once, of its tokens as many in a message as it may hold. Nothing happens when the
 * router is not there; it is gone after this when it does not read. */
void dc_subscribers_deliver(struct dc_subscribers *subscribers, uint64_t router_incarnation,
                            const struct dc_history *history);

/* Sends what was collected. */
void dc_subscribers_flush(struct dc_subscribers *subscribers);

#endif
