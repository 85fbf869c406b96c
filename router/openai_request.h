/*
 * Bodies of the OpenAI-compatible API: JSON text to a checked request. Knows fields, types, ranges
 * and what is refused; knows no tokenizer and no model, so that it can be tested and fuzzed alone.
 *
 * Fields that nobody knows are ignored, as OpenAI-compatible servers do. Known ones that would
 * change the result and are not offered here are refused by name.
 */
#ifndef BATON_ROUTER_OPENAI_REQUEST_H
#define BATON_ROUTER_OPENAI_REQUEST_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/chat.h"
#include "proto/types.pb-c.h"
#include "router/caller.h"
#include "router/openai_cut.h"
#include "router/openai_error.h"
#include "router/trace_context.h"

#define RT_OPENAI_MAX_DEPTH   64
#define RT_OPENAI_MAX_PROMPTS 64
#define RT_OPENAI_MAX_N       16

enum rt_openai_kind {
    RT_OPENAI_CHAT,
    RT_OPENAI_COMPLETION,
    RT_OPENAI_TOKENIZE,
    RT_OPENAI_DETOKENIZE
};

/* Either text or ids. */
struct rt_openai_prompt {
    const char *text; /* NULL: ids */
    size_t size;
    uint32_t *ids; /* owned */
    size_t count;
};

struct rt_openai_request {
    enum rt_openai_kind kind;
    json_t *root;      /* owns the strings that others point into */
    const struct rt_openai_cut *cut; /* while it is parsed */
    const char *model; /* NULL: not given */
    struct bt_chat_message *messages;
    char **joined; /* content given in parts, one entry a message, NULL where it was a string */
    size_t message_count;
    struct rt_openai_prompt *prompts;
    size_t prompt_count;
    bool add_special_tokens;            /* text prompts: BOS */
    Baton__V1__SamplingParams sampling; /* max_tokens 0: not given; bias arrays are owned */
    bool usual_length;                  /* max_tokens is what it is when nobody says */
    bool has_seed;
    const char **stop;
    size_t stop_count;
    uint32_t n;
    bool stream, include_usage, continuous_usage;
    bool return_token_ids, timing, keep_special;
    int64_t priority; /* as asked for: greater goes later; 0: as its tenant */
    struct rt_caller caller;
    struct rt_trace_context trace; /* of the HTTP request, not of the body */
    /* Not of the body; borrowed for as long as the answer. NULL: none. */
    const char *request_id;
    bool named;         /* by the client */
    const char *resume; /* what the client has: request_id.h */
};

/* `ret_request` is written on success only; release it with rt_openai_request_finish. */
enum bt_status rt_openai_request_parse(enum rt_openai_kind kind, const char *body, size_t size,
                                       struct rt_openai_error *error,
                                       struct rt_openai_request *ret_request);
void rt_openai_request_finish(struct rt_openai_request *request);

/* Messages and prompts are forgotten: what is large, and what nobody reads once it was tokenized.
 */
void rt_openai_request_drop_input(struct rt_openai_request *request);

#endif
