#include "decode-node/ranks.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "proto/worker.pb-c.h"

#define WAKE_NS         BT_NS_PER_S /* a heartbeat has come by then */
#define WORKER_ID_BYTES 128
#define ENDPOINT_BYTES  (BT_RANK_CARD_BYTES - WORKER_ID_BYTES)

struct card {
    char worker_id[WORKER_ID_BYTES];
    char endpoint[ENDPOINT_BYTES];
};

struct dc_ranks {
    struct bt_rank *rank;
    uint32_t size;
    struct card *cards;             /* [size] */
    struct bt_rpc_client **clients; /* [size], NULL at this rank */
    Baton__V1__GroupMember member;
    uint64_t woken;
};

static enum bt_status make_card(const struct dc_ranks_options *options, struct bt_error *error,
                                struct card *ret_card)
{
    *ret_card = (struct card){0};
    size_t id = strlen(options->worker_id), endpoint = strlen(options->endpoint);
    if (id >= WORKER_ID_BYTES || endpoint >= ENDPOINT_BYTES) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "worker id or endpoint of a rank is too long: %s at %s",
                            options->worker_id, options->endpoint);
    }
    memcpy(ret_card->worker_id, options->worker_id, id);
    memcpy(ret_card->endpoint, options->endpoint, endpoint);
    return BT_OK;
}

static enum bt_status exchange_cards(struct dc_ranks *ranks, const struct dc_ranks_options *options,
                                     struct bt_error *error)
{
    struct card mine;
    enum bt_status status = make_card(options, error, &mine);
    if (status != BT_OK) {
        return status;
    }
    status = bt_rank_exchange(ranks->rank, &mine, sizeof(mine), ranks->cards);
    if (status != BT_OK) {
        return bt_error_set(error, status, "group: %s", bt_group_error(bt_rank_group(ranks->rank)));
    }
    for (uint32_t r = 0; r < ranks->size; r++) {
        ranks->cards[r].worker_id[WORKER_ID_BYTES - 1] = '\0';
        ranks->cards[r].endpoint[ENDPOINT_BYTES - 1] = '\0';
    }
    return BT_OK;
}

static enum bt_status connect_all(struct dc_ranks *ranks, struct bt_loop *loop,
                                  struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (uint32_t r = 0; r < ranks->size && status == BT_OK; r++) {
        if (r != bt_rank_index(ranks->rank)) {
            status =
                bt_rpc_client_create(loop, ranks->cards[r].endpoint, error, &ranks->clients[r]);
        }
    }
    return status;
}

static enum bt_status meet(struct dc_ranks *ranks, const struct dc_ranks_options *options,
                           struct bt_error *error)
{
    ranks->cards = calloc(ranks->size, sizeof(*ranks->cards));
    ranks->clients = calloc(ranks->size, sizeof(struct bt_rpc_client *));
    if (!ranks->cards || !ranks->clients) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "ranks: no memory");
    }
    enum bt_status status = exchange_cards(ranks, options, error);
    if (status != BT_OK) {
        return status;
    }
    baton__v1__group_member__init(&ranks->member);
    ranks->member.incarnation = bt_rank_incarnation(ranks->rank);
    ranks->member.name = ranks->cards[0].worker_id;
    ranks->member.rank = bt_rank_index(ranks->rank);
    ranks->member.size = ranks->size;
    return connect_all(ranks, options->loop, error);
}

enum bt_status dc_ranks_create(const struct dc_ranks_options *options, struct bt_error *error,
                               struct dc_ranks **ret_ranks)
{
    struct dc_ranks *ranks = calloc(1, sizeof(*ranks));
    if (!ranks) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "ranks: no memory");
    }
    enum bt_status status = BT_OK;
    ranks->rank = options->rank;
    ranks->size = options->rank ? bt_rank_size(options->rank) : 1;
    if (options->rank) {
        bt_rank_metrics(options->rank, options->metrics, options->labels);
        status = bt_rank_start(options->rank, options->model, options->forward, error);
    }
    if (status == BT_OK && ranks->size > 1) {
        status = meet(ranks, options, error);
    }
    if (status != BT_OK) {
        dc_ranks_destroy(ranks);
        return status;
    }
    *ret_ranks = ranks;
    return BT_OK;
}

void dc_ranks_destroy(struct dc_ranks *ranks)
{
    if (!ranks) {
        return;
    }
    for (uint32_t r = 0; ranks->clients && r < ranks->size; r++) {
        bt_rpc_client_destroy(ranks->clients[r]);
    }
    free(ranks->clients);
    free(ranks->cards);
    free(ranks);
}

Baton__V1__GroupMember *dc_ranks_member(struct dc_ranks *ranks)
{
    return ranks->size > 1 ? &ranks->member : NULL;
}

static void on_woken(void *context, enum bt_status status, const char *text,
                     const ProtobufCMessage *response)
{
    (void)context;
    (void)status;
    (void)text;
    (void)response;
}

void dc_ranks_wake(struct dc_ranks *ranks)
{
    Baton__V1__WakeRequest request = BATON__V1__WAKE_REQUEST__INIT;
    struct bt_error error;
    request.group_incarnation = ranks->member.incarnation;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Group/Wake",
        .request = &request.base,
        .deadline_ns = bt_clock_now_ns() + WAKE_NS,
        .on_end = on_woken,
    };
    for (uint32_t r = 0; ranks->clients && r < ranks->size; r++) {
        ranks->woken += ranks->clients[r] &&
                        bt_rpc_client_call(ranks->clients[r], &spec, &error, NULL) == BT_OK;
    }
}

uint64_t dc_ranks_woken(const struct dc_ranks *ranks)
{
    return ranks->woken;
}

void dc_ranks_update_metrics(struct dc_ranks *ranks)
{
    if (ranks->rank) {
        bt_rank_metrics_update(ranks->rank);
    }
}
