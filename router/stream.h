/*
 * One generation between the core and its front: what was asked for, the text so far, its times.
 * Internal to the service.
 */
#ifndef BATON_ROUTER_STREAM_H
#define BATON_ROUTER_STREAM_H

#include "common/text/detokenizer.h"
#include "proto/worker.pb-c.h"
#include "router/request_id.h"
#include "router/service.h"
#include "router/service_metrics.h"
#include "router/stages.h"
#include "router/worker_link.h"

struct rt_stream {
    uint64_t id;
    char *name;           /* that the client knows it by */
    struct rt_digest key; /* of all that decides the answer */
    bool named;
    struct rt_sink sink;
    bool abandoned; /* the sink is forgotten */
    bool ended;     /* its end was told */
    bool stopped;   /* a stop string: nothing comes after it */

    uint32_t *prompt; /* [prompt_tokens] */
    uint32_t prompt_tokens;
    Baton__V1__SamplingParams sampling; /* owns its arrays */
    struct bt_detokenizer *detokenizer;
    int64_t eos; /* the token that ends and gives no text; -1: none */

    Baton__V1__Landing *landing; /* of the current attempt; protobuf-c allocated */
    struct rt_run *run;          /* the open Run call of the current attempt */
    uint32_t run_attempt;
    int64_t deadline_ns;

    struct rt_caller caller;
    uint64_t expected_tokens, charged_tokens; /* that its tenant pays for, and paid */

    struct rt_stages stages;
    int64_t arrival_ns, dispatched_ns, first_token_ns, last_token_ns;
    uint32_t completion_tokens; /* that went through the detokenizer */
    uint32_t resume_tokens;     /* the sink is not told text of these */
    uint64_t adopted_epoch;     /* of the sequence that was taken over; 0: none */

    /* For a new sink, what came before it: [catch_up_count]. */
    uint32_t *catch_up;
    uint32_t catch_up_count;
    bool catching_up;
    struct rt_stream *next_catching;
    struct rt_stream *successor; /* has the same id and waits for this one's end; owned */
    Baton__V1__PrefillDone done; /* of the last attempt, as far as it got; transport below */
    uint32_t done_attempt;       /* that last told all of it; 0: none */
    char transport[RT_LINK_TRANSPORT_SIZE];
    char prefill_worker[RT_WORKER_ID_SIZE], decode_worker[RT_WORKER_ID_SIZE];
};

/* Buffers that all streams of a service share. */
struct rt_output_buffer {
    char *text;
    size_t text_size, text_capacity;
    Baton__V1__Token *tokens;
    size_t token_count, token_capacity;
};
void rt_output_buffer_finish(struct rt_output_buffer *buffer);

/* `max_tokens` stands for that of the generation. Errors: INVALID_ARGUMENT (stop strings),
 * NO_MEMORY. */
enum bt_status rt_stream_create(const struct bt_tokenizer *tokenizer,
                                const struct rt_generation *generation, uint32_t max_tokens,
                                const struct rt_sink *sink, struct bt_error *error,
                                struct rt_stream **ret_stream);
void rt_stream_destroy(struct rt_stream *stream); /* NULL is fine */

/* Another router or connection could go on with it: its tokens say all there is of its answer. */
bool rt_stream_resumable(const struct rt_stream *stream);
/* The front of `fresh`, a stream of the same request, becomes that of `stream`, for which it has to
 * catch up with tokens[count] first. Of `fresh` only rest is left. False: no memory. */
bool rt_stream_hand_over(struct rt_stream *stream, struct rt_stream *fresh, const uint32_t *tokens,
                         uint32_t count);
/* The new sink gets what came before it. Otherwise as rt_stream_output. */
enum bt_status rt_stream_catch_up(struct rt_stream *stream, struct rt_output_buffer *buffer,
                                  bool *ret_stopped);
/* Tells a sink that its stream is somebody else's now. */
void rt_sink_lost(const struct rt_sink *sink);

/* Tokens whose payload is a Baton__V1__Token or NULL. `ret_stopped`: a stop string is complete now.
 * NO_MEMORY: text is missing, the stream must be ended. Nothing happens after its end. */
enum bt_status rt_stream_output(struct rt_stream *stream, const struct rt_token *tokens,
                                uint32_t count, int64_t now_ns, struct rt_output_buffer *buffer,
                                const struct rt_service_metrics *metrics, bool *ret_stopped);

/* Text that was held back, then on_end, unless it was abandoned. */
void rt_stream_end(struct rt_stream *stream, enum rt_finish finish, enum bt_status status,
                   const char *text, int64_t now_ns, const struct rt_service_metrics *metrics);

#endif
