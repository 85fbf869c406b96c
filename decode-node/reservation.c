#include "decode-node/reservation.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/kvcache/layout.h"

static enum bt_status check_ids(const Baton__V1__ReserveRequest *message,
                                const struct dc_reservation_limits *limits, struct bt_error *error)
{
    if (message->request_id == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "request_id is 0");
    }
    if (message->router_incarnation == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "router_incarnation is 0");
    }
    if (message->prompt_tokens == 0 || message->prompt_tokens >= limits->max_model_len) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prompt_tokens %" PRIu32 " is not in 1..%" PRIu32,
                            message->prompt_tokens, limits->max_model_len - 1);
    }
    return BT_OK;
}

static enum bt_status check_tokens(const char *field, const uint32_t *tokens, size_t count,
                                   uint32_t vocab_size, struct bt_error *error)
{
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] >= vocab_size) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s[%zu]: token %" PRIu32 " is not in the vocabulary of %" PRIu32,
                                field, i, tokens[i], vocab_size);
        }
    }
    return BT_OK;
}

/* Only a repetition penalty looks at the prompt. */
static enum bt_status check_prompt(const Baton__V1__ReserveRequest *message,
                                   const struct dc_reservation_limits *limits,
                                   const struct bt_sampling *sampling, struct bt_error *error)
{
    if (message->local_prefill && message->prompt_tokens > limits->local_prefill_tokens) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "local_prefill: prompts of %" PRIu32
                            " tokens at most are computed here, this has %" PRIu32,
                            limits->local_prefill_tokens, message->prompt_tokens);
    }
    if (message->n_prompt == 0 && sampling->repetition_penalty == 1.0f && !message->local_prefill) {
        return BT_OK;
    }
    if (message->n_prompt != message->prompt_tokens) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prompt: %zu tokens, prompt_tokens says %" PRIu32, message->n_prompt,
                            message->prompt_tokens);
    }
    return check_tokens("prompt", message->prompt, message->n_prompt, limits->vocab_size, error);
}

static bool is_eos(const struct dc_reservation_limits *limits, uint32_t token)
{
    for (uint32_t i = 0; i < limits->eos_count; i++) {
        if (limits->eos[i] == token) {
            return true;
        }
    }
    return false;
}

/* After max_tokens was cut: an output that has ended is not to be replayed. */
static enum bt_status check_replay(const Baton__V1__ReserveRequest *message,
                                   const struct dc_reservation_limits *limits,
                                   const struct bt_sampling *sampling, struct bt_error *error)
{
    if (message->n_replay > 0 && message->n_replay >= sampling->max_tokens) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "replay: %zu tokens, at most %" PRIu32
                            " may come before the last of max_tokens or the context",
                            message->n_replay,
                            sampling->max_tokens > 0 ? sampling->max_tokens - 1 : 0);
    }
    enum bt_status status =
        check_tokens("replay", message->replay, message->n_replay, limits->vocab_size, error);
    for (size_t i = 0; i < message->n_replay && status == BT_OK && !sampling->ignore_eos; i++) {
        if (is_eos(limits, message->replay[i])) {
            status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                  "replay[%zu]: token %" PRIu32 " ended the output", i,
                                  message->replay[i]);
        }
    }
    return status;
}

static enum bt_status read_prompt(struct dc_reservation *reservation,
                                  const Baton__V1__ReserveRequest *message, struct bt_error *error)
{
    if (!message->local_prefill) {
        return BT_OK;
    }
    reservation->prompt = calloc(message->n_prompt, sizeof(uint32_t));
    if (!reservation->prompt) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prompt: no memory");
    }
    memcpy(reservation->prompt, message->prompt, message->n_prompt * sizeof(uint32_t));
    return BT_OK;
}

static enum bt_status read_replay(struct dc_reservation *reservation,
                                  const Baton__V1__ReserveRequest *message, struct bt_error *error)
{
    if (message->n_replay == 0) {
        return BT_OK;
    }
    reservation->replay = calloc(message->n_replay, sizeof(uint32_t));
    if (!reservation->replay) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "replay: no memory");
    }
    memcpy(reservation->replay, message->replay, message->n_replay * sizeof(uint32_t));
    reservation->replay_count = (uint32_t)message->n_replay;
    return BT_OK;
}

/* Whoever takes the request over gets the ids of its tokens, no logprobs: they are not kept. */
static enum bt_status read_resume_key(struct dc_reservation *reservation,
                                      const Baton__V1__ReserveRequest *message,
                                      struct bt_error *error)
{
    size_t size = message->resume_key.len;
    if (size != 0 && size != DC_RESUME_KEY_BYTES) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "resume_key: %zu bytes instead of none or %d", size,
                            DC_RESUME_KEY_BYTES);
    }
    if (size != 0 && reservation->sampling.logprobs >= 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "resume_key: not with logprobs, which are not kept");
    }
    reservation->resumable = size != 0;
    if (reservation->resumable) {
        memcpy(reservation->resume_key, message->resume_key.data, size);
    }
    return BT_OK;
}

/* Room was reserved. Where token 0 is drawn here, it is drawn without them. */
static void remember_replay(const struct dc_reservation *reservation)
{
    for (uint32_t i = 0; i < reservation->replay_count && !reservation->prompt; i++) {
        BT_ASSERT(bt_sampler_history_add_output(reservation->history, reservation->replay[i]));
    }
}

static enum bt_status read_history(struct dc_reservation *reservation,
                                   const Baton__V1__ReserveRequest *message, uint32_t vocab_size,
                                   struct bt_error *error)
{
    if (!bt_sampling_needs_history(&reservation->sampling)) {
        return BT_OK;
    }
    reservation->history = bt_sampler_history_create();
    uint32_t outputs = reservation->sampling.max_tokens;
    if (!reservation->history ||
        !bt_sampler_history_add_prompt(reservation->history, message->prompt,
                                       (uint32_t)message->n_prompt) ||
        !bt_sampler_history_reserve(reservation->history,
                                    outputs < vocab_size ? outputs : vocab_size)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prompt: no memory");
    }
    remember_replay(reservation);
    return BT_OK;
}

/* Of what is expected nothing is known but the replay. */
static void size_pages(struct dc_reservation *reservation, const Baton__V1__ReserveRequest *message,
                       const struct dc_reservation_limits *limits)
{
    const struct bt_sampling *sampling = &reservation->sampling;
    uint32_t left = sampling->max_tokens - reservation->replay_count;
    reservation->full = message->full || left <= limits->expected_output_tokens;
    reservation->extra_tokens = reservation->full
                                    ? sampling->max_tokens
                                    : reservation->replay_count + limits->expected_output_tokens;
    reservation->max_pages =
        bt_kv_pages_for((uint64_t)message->prompt_tokens + sampling->max_tokens);
    reservation->expected_pages = message->expected_pages < reservation->max_pages
                                      ? message->expected_pages
                                      : reservation->max_pages;
}

static enum bt_status read_tokens(struct dc_reservation *reservation,
                                  const Baton__V1__ReserveRequest *message,
                                  const struct dc_reservation_limits *limits,
                                  struct bt_error *error)
{
    enum bt_status status = read_resume_key(reservation, message, error);
    if (status == BT_OK) {
        status = check_prompt(message, limits, &reservation->sampling, error);
    }
    if (status == BT_OK) {
        status = check_replay(message, limits, &reservation->sampling, error);
    }
    if (status == BT_OK) {
        status = read_replay(reservation, message, error);
    }
    if (status == BT_OK) {
        status = read_prompt(reservation, message, error);
    }
    return status == BT_OK ? read_history(reservation, message, limits->vocab_size, error) : status;
}

enum bt_status dc_reservation_init(struct dc_reservation *reservation,
                                   const Baton__V1__ReserveRequest *message,
                                   const struct dc_reservation_limits *limits,
                                   struct bt_error *error)
{
    *reservation = (struct dc_reservation){
        .request = message->request_id,
        .router_incarnation = message->router_incarnation,
        .prompt_tokens = message->prompt_tokens,
    };
    enum bt_status status = check_ids(message, limits, error);
    if (status == BT_OK) {
        status = bt_sampling_from_message(message->sampling, limits->vocab_size, error,
                                          &reservation->sampling);
    }
    if (status != BT_OK) {
        return status;
    }
    struct bt_sampling *sampling = &reservation->sampling;
    uint32_t room = limits->max_model_len - message->prompt_tokens;
    sampling->max_tokens = sampling->max_tokens < room ? sampling->max_tokens : room;
    status = read_tokens(reservation, message, limits, error);
    if (status == BT_OK) {
        size_pages(reservation, message, limits);
    }
    if (status != BT_OK) {
        dc_reservation_finish(reservation);
    }
    return status;
}

void dc_reservation_finish(struct dc_reservation *reservation)
{
    bt_sampling_finish(&reservation->sampling);
    bt_sampler_history_destroy(reservation->history);
    free(reservation->prompt);
    free(reservation->replay);
    *reservation = (struct dc_reservation){0};
}
