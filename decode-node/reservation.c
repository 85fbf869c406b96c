#include "decode-node/reservation.h"

#include <inttypes.h>

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

/* Only a repetition penalty looks at the prompt. */
static enum bt_status check_prompt(const Baton__V1__ReserveRequest *message,
                                   const struct dc_reservation_limits *limits,
                                   const struct bt_sampling *sampling, struct bt_error *error)
{
    if (message->n_prompt == 0 && sampling->repetition_penalty == 1.0f) {
        return BT_OK;
    }
    if (message->n_prompt != message->prompt_tokens) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prompt: %zu tokens, prompt_tokens says %" PRIu32, message->n_prompt,
                            message->prompt_tokens);
    }
    for (size_t i = 0; i < message->n_prompt; i++) {
        if (message->prompt[i] >= limits->vocab_size) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "prompt[%zu]: token %" PRIu32
                                " is not in the vocabulary of %" PRIu32,
                                i, message->prompt[i], limits->vocab_size);
        }
    }
    return BT_OK;
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
    return BT_OK;
}

static void size_pages(struct dc_reservation *reservation, const Baton__V1__ReserveRequest *message,
                       const struct dc_reservation_limits *limits)
{
    struct bt_sampling *sampling = &reservation->sampling;
    uint32_t room = limits->max_model_len - message->prompt_tokens;
    sampling->max_tokens = sampling->max_tokens < room ? sampling->max_tokens : room;
    uint32_t expected = limits->expected_output_tokens;
    reservation->full = message->full || sampling->max_tokens <= expected;
    reservation->extra_tokens = reservation->full ? sampling->max_tokens : expected;
    reservation->max_pages =
        bt_kv_pages_for((uint64_t)message->prompt_tokens + sampling->max_tokens);
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
    status = check_prompt(message, limits, &reservation->sampling, error);
    if (status == BT_OK) {
        size_pages(reservation, message, limits);
        status = read_history(reservation, message, limits->vocab_size, error);
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
    *reservation = (struct dc_reservation){0};
}
