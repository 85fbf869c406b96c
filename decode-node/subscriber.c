#include "decode-node/subscriber.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/base/log.h"
#include "common/model/token_message.h"

/* What happened to one sequence, and the message it becomes. The message points into its own item:
 * it is filled when no item moves any more. */
struct item {
    struct dc_news news;
    struct bt_sample sample;
    Baton__V1__SequenceStep sequence;
    Baton__V1__SequenceStart start;
    struct dc_prefill_told prefill;
    struct bt_token_message token;
    Baton__V1__Token *token_list[1];
};

struct subscriber {
    struct dc_subscribers *owner;
    uint64_t incarnation;
    struct bt_rpc_call *call;
    uint64_t step;
    struct item *items;
    Baton__V1__SequenceStep **list; /* [item_capacity] */
    size_t item_count, item_capacity;
    bool broken; /* no memory for news: ends with the next flush */
};

struct dc_subscribers {
    struct dc_subscribers_events events;
    struct subscriber *list[DC_MAX_SUBSCRIBERS];
    uint32_t count;
};

struct dc_subscribers *dc_subscribers_create(const struct dc_subscribers_events *events)
{
    struct dc_subscribers *subscribers = calloc(1, sizeof(*subscribers));
    if (subscribers) {
        subscribers->events = *events;
    }
    return subscribers;
}

static void subscriber_free(struct subscriber *subscriber)
{
    free(subscriber->items);
    free(subscriber->list);
    free(subscriber);
}

void dc_subscribers_destroy(struct dc_subscribers *subscribers)
{
    if (!subscribers) {
        return;
    }
    for (uint32_t i = 0; i < subscribers->count; i++) {
        subscriber_free(subscribers->list[i]);
    }
    free(subscribers);
}

static struct subscriber *find(const struct dc_subscribers *subscribers, uint64_t incarnation)
{
    for (uint32_t i = 0; i < subscribers->count; i++) {
        if (subscribers->list[i]->incarnation == incarnation) {
            return subscribers->list[i];
        }
    }
    return NULL;
}

bool dc_subscribers_has(const struct dc_subscribers *subscribers, uint64_t router_incarnation)
{
    return find(subscribers, router_incarnation) != NULL;
}

uint32_t dc_subscribers_count(const struct dc_subscribers *subscribers)
{
    return subscribers->count;
}

/* Out of the list first: `gone` may add news for this router, which has nobody to hear them. */
static void subscriber_end(struct subscriber *subscriber, enum bt_status status, const char *text)
{
    struct dc_subscribers *subscribers = subscriber->owner;
    uint64_t incarnation = subscriber->incarnation;
    for (uint32_t i = 0; i < subscribers->count; i++) {
        if (subscribers->list[i] == subscriber) {
            subscribers->list[i] = subscribers->list[--subscribers->count];
            break;
        }
    }
    bt_rpc_call_on_cancel(subscriber->call, NULL, NULL);
    bt_rpc_call_end(subscriber->call, status, text, NULL);
    subscriber_free(subscriber);
    bt_log_info(0, "router %016jx left: %s", (uintmax_t)incarnation, text);
    subscribers->events.gone(subscribers->events.context, incarnation);
}

static void on_cancel(void *context, struct bt_rpc_call *call)
{
    (void)call;
    subscriber_end(context, BT_ERR_CANCELLED, "the stream was closed");
}

void dc_prefill_told_keep(const Baton__V1__PrefillDone *message, struct dc_prefill_told *ret_told)
{
    ret_told->message = *message;
    ret_told->message.base = /* what points to memory of the message goes, as do unknown fields */
        (ProtobufCMessage)PROTOBUF_C_MESSAGE_INIT(&baton__v1__prefill_done__descriptor);
    ret_told->message.layers = NULL;
    ret_told->message.n_layers = 0;
    ret_told->message.transport = NULL;
    snprintf(ret_told->transport, sizeof(ret_told->transport), "%s", message->transport);
}

static void step_tell_prefill(Baton__V1__SequenceStep *sequence, struct dc_prefill_told *told)
{
    told->message.transport = told->transport;
    sequence->prefill = &told->message;
}

static void item_fill(struct item *item)
{
    baton__v1__sequence_step__init(&item->sequence);
    item->sequence.request_id = item->news.request;
    item->sequence.epoch = item->news.epoch;
    item->sequence.finish = item->news.finish;
    if (item->news.text) {
        item->sequence.error = (char *)item->news.text;
    }
    item->sequence.prompt_compute_ns = item->news.prompt_compute_ns;
    if (item->news.starts) {
        baton__v1__sequence_start__init(&item->start);
        item->start.wait_ns = item->news.wait_ns;
        item->start.step_ns = item->news.step_ns;
        item->start.begin_unix_ns = item->news.begin_unix_ns;
        item->sequence.start = &item->start;
    }
    if (item->news.prefill) {
        step_tell_prefill(&item->sequence, &item->prefill);
    }
    if (item->news.sample) {
        bt_token_message_fill(&item->token, item->news.index, &item->sample,
                              item->news.with_logprobs);
        item->token_list[0] = &item->token.token;
        item->sequence.tokens = item->token_list;
        item->sequence.n_tokens = 1;
    }
}

static enum bt_status send_event(struct subscriber *subscriber, Baton__V1__SequenceStep **sequences,
                                 size_t count)
{
    const struct dc_subscribers_events *events = &subscriber->owner->events;
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    events->load(events->context, &load);
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    event.step = subscriber->step++;
    event.load = &load;
    event.sequences = sequences;
    event.n_sequences = count;
    return bt_rpc_call_send(subscriber->call, &event.base);
}

static enum bt_status subscriber_send(struct subscriber *subscriber)
{
    for (size_t i = 0; i < subscriber->item_count; i++) {
        item_fill(&subscriber->items[i]);
        subscriber->list[i] = &subscriber->items[i].sequence;
    }
    size_t count = subscriber->item_count;
    subscriber->item_count = 0;
    return send_event(subscriber, subscriber->list, count);
}

void dc_subscribers_open(struct dc_subscribers *subscribers, struct bt_rpc_call *call,
                         const Baton__V1__StepsRequest *message)
{
    if (message->router_incarnation == 0) {
        bt_rpc_call_end(call, BT_ERR_INVALID_ARGUMENT, "router_incarnation is 0", NULL);
        return;
    }
    struct subscriber *before = find(subscribers, message->router_incarnation);
    if (before) {
        subscriber_end(before, BT_ERR_STALE, "the router opened another stream");
    }
    subscribers->events.opens(subscribers->events.context, message->router_incarnation);
    if (subscribers->count == DC_MAX_SUBSCRIBERS) {
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "too many routers", NULL);
        return;
    }
    struct subscriber *subscriber = calloc(1, sizeof(*subscriber));
    if (!subscriber) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory", NULL);
        return;
    }
    subscriber->owner = subscribers;
    subscriber->incarnation = message->router_incarnation;
    subscriber->call = call;
    subscribers->list[subscribers->count++] = subscriber;
    bt_rpc_call_on_cancel(call, on_cancel, subscriber);
    bt_log_info(0, "router %016jx listens", (uintmax_t)subscriber->incarnation);
    if (subscriber_send(subscriber) != BT_OK) {
        subscriber_end(subscriber, BT_ERR_EXHAUSTED, "the router does not read");
    }
}

static bool reserve_item(struct subscriber *subscriber)
{
    if (subscriber->item_count < subscriber->item_capacity) {
        return true;
    }
    size_t capacity = subscriber->item_capacity ? 2 * subscriber->item_capacity : 64;
    struct item *items = realloc(subscriber->items, capacity * sizeof(*items));
    if (!items) {
        return false;
    }
    subscriber->items = items;
    Baton__V1__SequenceStep **list = realloc(subscriber->list, capacity * sizeof(*list));
    if (!list) {
        return false;
    }
    subscriber->list = list;
    subscriber->item_capacity = capacity;
    return true;
}

void dc_subscribers_add(struct dc_subscribers *subscribers, uint64_t router_incarnation,
                        const struct dc_news *news)
{
    struct subscriber *subscriber = find(subscribers, router_incarnation);
    if (!subscriber) {
        return;
    }
    if (!reserve_item(subscriber)) {
        subscriber->broken = true;
        return;
    }
    struct item *item = &subscriber->items[subscriber->item_count++];
    item->news = *news;
    if (news->sample) {
        item->sample = *news->sample;
    }
    if (news->prefill) {
        item->prefill = *news->prefill;
    }
}

static enum bt_status send_history(struct subscriber *subscriber, const struct dc_history *history,
                                   Baton__V1__Token *tokens, Baton__V1__Token **list)
{
    enum bt_status status = BT_OK;
    struct dc_prefill_told prefill;
    uint32_t sent = 0;
    do {
        uint32_t left = history->count - sent;
        uint32_t count = left < DC_DELIVERED_TOKENS ? left : DC_DELIVERED_TOKENS;
        for (uint32_t i = 0; i < count; i++) {
            baton__v1__token__init(&tokens[i]);
            tokens[i].index = sent + i;
            tokens[i].token = history->tokens[sent + i];
            list[i] = &tokens[i];
        }
        sent += count;
        Baton__V1__SequenceStep sequence = BATON__V1__SEQUENCE_STEP__INIT, *sequences = &sequence;
        sequence.request_id = history->request;
        sequence.epoch = history->epoch;
        if (history->prefill && sent == count) {
            prefill = *history->prefill;
            step_tell_prefill(&sequence, &prefill);
        }
        sequence.tokens = list;
        sequence.n_tokens = count;
        if (sent == history->count) {
            sequence.finish = history->finish;
        }
        status = send_event(subscriber, &sequences, 1);
    } while (status == BT_OK && sent < history->count);
    return status;
}

void dc_subscribers_deliver(struct dc_subscribers *subscribers, uint64_t router_incarnation,
                            const struct dc_history *history)
{
    struct subscriber *subscriber = find(subscribers, router_incarnation);
    if (!subscriber) {
        return;
    }
    uint32_t room = history->count < DC_DELIVERED_TOKENS ? history->count : DC_DELIVERED_TOKENS;
    Baton__V1__Token *tokens = calloc((size_t)room + 1, sizeof(*tokens));
    Baton__V1__Token **list = calloc((size_t)room + 1, sizeof(*list));
    if (!tokens || !list) {
        subscriber_end(subscriber, BT_ERR_NO_MEMORY, "no memory for the stream");
    } else if (send_history(subscriber, history, tokens, list) != BT_OK) {
        subscriber_end(subscriber, BT_ERR_EXHAUSTED, "the router does not read");
    }
    free(tokens);
    free(list);
}

void dc_subscribers_flush(struct dc_subscribers *subscribers)
{
    for (uint32_t i = subscribers->count; i-- > 0;) {
        if (i >= subscribers->count) {
            continue;
        }
        struct subscriber *subscriber = subscribers->list[i];
        if (subscriber->broken) {
            subscriber_end(subscriber, BT_ERR_NO_MEMORY, "no memory for the stream");
        } else if (subscriber->item_count > 0 && subscriber_send(subscriber) != BT_OK) {
            subscriber_end(subscriber, BT_ERR_EXHAUSTED, "the router does not read");
        }
    }
}
