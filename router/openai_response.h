/*
 * Generated text and tokens to OpenAI's JSON: whole responses and the chunks of streams. Writes
 * into a caller's buffer; holds no text but what one choice of a whole response collects.
 */
#ifndef BATON_ROUTER_OPENAI_RESPONSE_H
#define BATON_ROUTER_OPENAI_RESPONSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/tokenizer.h"
#include "proto/router.pb-c.h"
#include "proto/types.pb-c.h"
#include "router/openai_json.h"

#define RT_OPENAI_ID_SIZE 48

struct rt_openai_usage {
    uint64_t prompt_tokens, completion_tokens, cached_tokens;
};

/* What all chunks of one response have in common. Strings are borrowed. */
struct rt_openai_form {
    const struct bt_tokenizer *tokenizer;
    const char *model;
    char id[RT_OPENAI_ID_SIZE]; /* "chatcmpl-…" or "cmpl-…" */
    char fingerprint[24];       /* "": null */
    int64_t created;            /* unix seconds */
    bool chat, stream;
    bool logprobs;
    bool include_usage; /* of a stream: the other chunks say "usage":null, or this one */
    const struct rt_openai_usage *so_far;
    bool token_ids, keep_special;
    /* Of a stream: tokens of each choice that its client has with the event that is written. */
    const uint32_t *progress;
    size_t progress_count;
    struct rt_openai_json head; /* what all chunks begin with, once one was written */
};

void rt_openai_form_finish(struct rt_openai_form *form);

/* One choice while it is generated. Zero-initialised; rt_openai_choice_finish at the end. */
struct rt_openai_choice {
    uint32_t index;
    uint64_t characters; /* of text, for text_offset */
    bool begun;          /* the role was sent */
    /* Of whole responses: JSON under way. `text` without quotes' ends, lists without brackets. */
    struct rt_openai_json text, token_ids, tokens, logprobs, top_logprobs, offsets;
};

void rt_openai_choice_finish(struct rt_openai_choice *choice);
/* Bytes that it holds of a whole response. */
size_t rt_openai_choice_size(const struct rt_openai_choice *choice);

/* New text and tokens of a choice. A stream's chunks go to `out` ("data: {…}\n\n"), nothing when
 * there is nothing to show; text alone goes into the choice's last chunk, where that is the last
 * thing in `out` and nothing of it was taken. A whole response collects them in the choice. */
void rt_openai_write_output(struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const char *text, size_t size, const Baton__V1__Token *tokens,
                            size_t token_count, struct rt_openai_json *out);

/* Stream: the last chunk of a choice. `timing` may be NULL. */
void rt_openai_write_finish(struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const char *finish_reason, const Baton__V1__Timing *timing,
                            struct rt_openai_json *out);

/* Stream: the chunk without choices, and the end. */
void rt_openai_write_usage_chunk(struct rt_openai_form *form, const struct rt_openai_usage *usage,
                                 struct rt_openai_json *out);
void rt_openai_write_done(struct rt_openai_json *out);

/* Whole response, in this order: head, each choice, tail. */
void rt_openai_write_head(const struct rt_openai_form *form, struct rt_openai_json *out);
void rt_openai_write_choice(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const char *finish_reason, struct rt_openai_json *out);
void rt_openai_write_tail(const struct rt_openai_usage *usage, const struct rt_openai_json *timings,
                          struct rt_openai_json *out);

/* {"queue_ms":…, "ttft_ms":…, …}: every field of Timing under its name. */
void rt_openai_write_timing(const Baton__V1__Timing *timing, struct rt_openai_json *out);

#endif
