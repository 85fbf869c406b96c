/* A ReserveRequest that was checked field by field, in memory of its own. */
#ifndef BATON_DECODE_NODE_RESERVATION_H
#define BATON_DECODE_NODE_RESERVATION_H

#include "common/model/sampler.h"
#include "proto/worker.pb-c.h"

#define DC_RESUME_KEY_BYTES 32

struct dc_reservation_limits {
    uint32_t vocab_size;
    const uint32_t *eos; /* [eos_count]; borrowed */
    uint32_t eos_count;
    uint32_t max_model_len; /* prompt and output */
    uint32_t expected_output_tokens;
    uint32_t local_prefill_tokens; /* of a prompt that is computed here; 0: none is */
};

struct dc_reservation {
    uint64_t request, router_incarnation;
    uint32_t prompt_tokens;
    uint32_t extra_tokens;              /* of output, to reserve pages for */
    uint32_t max_pages;                 /* of prompt and max_tokens */
    uint32_t expected_pages;            /* by its router, at most max_pages; 0: it did not say */
    bool full;                          /* extra_tokens is all it can need */
    struct bt_sampling sampling;        /* max_tokens cut to the context */
    struct bt_sampler_history *history; /* with the prompt and, but with `prompt`, the replay, and
                                           room for all tokens; NULL: no penalty needs it */
    uint32_t *prompt;                   /* [prompt_tokens] to be computed here; NULL: elsewhere */
    uint32_t *replay;                   /* [replay_count] */
    uint32_t replay_count;              /* less than max_tokens; 0: none */
    bool resumable;                     /* there is a key */
    uint8_t resume_key[DC_RESUME_KEY_BYTES];
};

/* INVALID_ARGUMENT names the field. */
enum bt_status dc_reservation_init(struct dc_reservation *reservation,
                                   const Baton__V1__ReserveRequest *message,
                                   const struct dc_reservation_limits *limits,
                                   struct bt_error *error);
void dc_reservation_finish(struct dc_reservation *reservation);

#endif
