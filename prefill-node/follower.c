#include "prefill-node/follower.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/messaging/waiting_calls.h"
#include "prefill-node/delivery.h"
#include "prefill-node/follower_compute.h"
#include "prefill-node/forward.h"
#include "prefill-node/node.h"
#include "prefill-node/request.h"

#define WARM_CHECK_NS (20 * BT_NS_PER_MS)

/* A Push call, and then until the compute thread lets go of it. */
struct push {
    struct pf_follower *follower;
    struct bt_rpc_call *call; /* NULL: ended */
    struct pf_rank_push request;
    struct pf_delivery delivery;
    bool lost; /* the lease, or the way to rank 0: why the push was cancelled */
    enum bt_status status;
    char text[BT_ERROR_TEXT_SIZE];
};

struct pf_follower {
    struct pf_node node;
    struct pf_follower_compute *compute;
    struct bt_loop_source *compute_source, *push_source, *warm_timer;
    struct push **list; /* [max_queued] */
    uint32_t count;
    struct bt_waiting_calls connects;
    char rank_0_endpoint[PF_ENDPOINT_SIZE];
    struct bt_rpc_client *rank_0; /* from the first call on that it has to answer */
    bool over;
    struct bt_error error; /* with `over` */
};

/* ------------------------------------------------------------------ the end of a push */

static void push_destroy(struct push *push)
{
    struct pf_follower *follower = push->follower;
    for (uint32_t i = 0; i < follower->count; i++) {
        if (follower->list[i] == push) {
            follower->list[i] = follower->list[--follower->count];
            break;
        }
    }
    pf_delivery_finish(&push->delivery);
    pf_rank_push_finish(&push->request);
    free(push);
}

static void count_bytes(const struct pf_metrics *metrics, const struct kvt_push_event *pushed)
{
    bt_counter_add(metrics->kv_bytes, pushed->bytes);
    bt_counter_add(metrics->kv_bytes_hidden, pushed->hidden_bytes);
    bt_counter_add(metrics->kv_writes, pushed->writes);
}

/* From one to the other; 0 when the first never was, or came after. */
static uint64_t span_ns(int64_t from_ns, int64_t to_ns)
{
    return from_ns != 0 && to_ns > from_ns ? (uint64_t)(to_ns - from_ns) : 0;
}

static void send_outcome(struct push *push)
{
    const struct kvt_push_event *pushed = &push->delivery.pushed;
    char text[BT_ERROR_TEXT_SIZE] = "";
    enum bt_status status = pushed->status;
    if (push->lost && status != BT_OK) {
        status = push->status;
        snprintf(text, sizeof(text), "%s", push->text);
    } else if (status != BT_OK && status != BT_ERR_CANCELLED) {
        pf_delivery_explain(&push->delivery, text, sizeof(text));
    }
    struct pf_cut cut = pf_cut_of(pushed);
    Baton__V1__LinkCut cut_message = BATON__V1__LINK_CUT__INIT;
    cut_message.link = cut.link;
    cut_message.lines = cut.lines;
    Baton__V1__RankPushOutcome outcome = BATON__V1__RANK_PUSH_OUTCOME__INIT;
    outcome.status = (char *)bt_status_name(status);
    outcome.message = text;
    outcome.leased = pf_delivery_leased(&push->delivery);
    outcome.checksum = pushed->checksum;
    outcome.kv_bytes = pushed->bytes;
    outcome.writes = pushed->writes;
    outcome.hidden_bytes = pushed->hidden_bytes;
    outcome.visible_ns = span_ns(pushed->finish_ns, pushed->end_ns);
    outcome.write_ns = span_ns(pushed->first_write_ns, pushed->end_ns);
    outcome.cut = cut.lines != 0 ? &cut_message : NULL;
    outcome.transport = (char *)pf_peer_transport(push->delivery.peer);
    bt_rpc_call_on_cancel(push->call, NULL, NULL);
    bt_rpc_call_end(push->call, BT_OK, NULL, &outcome.base);
    push->call = NULL;
}

static void push_ended(struct push *push)
{
    struct pf_follower *follower = push->follower;
    pf_delivery_drop_lease(&push->delivery);
    if (!push->request.probe && push->delivery.pushed.status == BT_OK) {
        count_bytes(&follower->node.metrics, &push->delivery.pushed);
    }
    send_outcome(push);
    if (pf_follower_compute_remove(follower->compute, push->request.serial)) {
        push_destroy(push);
    }
}

static void on_push(void *context)
{
    struct pf_follower *follower = context;
    struct kvt_push_event event;
    while (bt_queue_try_pop(kvt_source_events(follower->node.source), &event)) {
        struct pf_delivery *delivery = event.user;
        pf_delivery_ended(delivery, &event);
        push_ended(delivery->context);
    }
}

/* ------------------------------------------------------------------ events of the compute thread
 */

static struct push *push_find(const struct pf_follower *follower, uint64_t serial)
{
    for (uint32_t i = 0; i < follower->count; i++) {
        if (follower->list[i]->request.serial == serial) {
            return follower->list[i];
        }
    }
    return NULL;
}

static void on_compute(void *context)
{
    struct pf_follower *follower = context;
    struct pf_follower_event event;
    while (bt_queue_try_pop(pf_follower_compute_events(follower->compute), &event)) {
        if (event.kind == PF_FOLLOWER_RELEASED) {
            push_destroy(push_find(follower, event.serial));
            continue;
        }
        follower->over = true;
        if (event.kind == PF_FOLLOWER_FAILED) {
            follower->error = *event.error;
            bt_log_error(0, "the group is over: %s", event.error->text);
        }
        bt_loop_stop(follower->node.loop);
    }
}

/* ------------------------------------------------------------------ PrefillRank/Push */

static void push_give_up(struct push *push, enum bt_status status, const char *text)
{
    if (push->delivery.push_open && !push->lost) {
        push->lost = true;
        push->status = status;
        snprintf(push->text, sizeof(push->text), "%s", text);
        pf_delivery_cancel(&push->delivery);
    }
}

static void on_lease_lost(void *context, enum bt_status status, const char *text)
{
    push_give_up(context, status, text);
}

static void on_push_cancel(void *context, struct bt_rpc_call *call)
{
    struct push *push = context;
    (void)call;
    pf_delivery_cancel(&push->delivery);
}

static enum bt_status push_begin(struct push *push, const Baton__V1__RankPushRequest *message,
                                 struct bt_error *error)
{
    struct pf_node *node = &push->follower->node;
    const struct pf_rank_push *request = &push->request;
    const struct pf_delivery_spec spec = {
        .endpoint = message->landing->endpoint,
        .request = request->request,
        .epoch = request->epoch,
        .lease_ms = request->lease_ms,
        .lost = on_lease_lost,
        .context = push,
    };
    const struct pf_delivery_pages pages = {
        .source = request->source_pages,
        .target = request->target_pages,
        .prompt_tokens = request->prompt_tokens,
        .layerwise = request->layerwise,
        .share = {node->rank, node->size},
    };
    enum bt_status status = pf_delivery_begin(&push->delivery, node->peers, &spec, error);
    return status == BT_OK ? pf_delivery_open(&push->delivery, node->source, &pages, error)
                           : status;
}

static enum bt_status check_call(const struct pf_follower *follower, uint64_t group_incarnation,
                                 struct bt_error *error)
{
    if (group_incarnation != follower->node.incarnation) {
        return bt_error_set(error, BT_ERR_STALE, "group_incarnation is not that of this group");
    }
    if (follower->over) {
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "the group is over");
    }
    return BT_OK;
}

/* Everything that may fail, before anything is under way. */
static enum bt_status push_create(struct pf_follower *follower,
                                  const Baton__V1__RankPushRequest *message, struct bt_error *error,
                                  struct push **ret_push)
{
    const struct pf_worker_options *options = &follower->node.options;
    const struct pf_rank_limits limits = {options->max_model_len, options->kv_pages};
    enum bt_status status = check_call(follower, message->group_incarnation, error);
    if (status != BT_OK) {
        return status;
    }
    if (push_find(follower, message->serial)) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "serial %" PRIu64 " is being pushed",
                            message->serial);
    }
    if (follower->count == options->max_queued) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%" PRIu32 " pushes are here already",
                            follower->count);
    }
    struct push *push = calloc(1, sizeof(*push));
    if (!push) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "push: no memory");
    }
    push->follower = follower;
    status = pf_rank_push_init(&push->request, message, &limits, error);
    if (status == BT_OK) {
        status = push_begin(push, message, error);
    }
    if (status != BT_OK) {
        push_destroy(push);
        return status;
    }
    *ret_push = push;
    return BT_OK;
}

static void handle_push(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_follower *follower = context;
    struct bt_error error;
    struct push *push = NULL;
    enum bt_status status =
        push_create(follower, (const Baton__V1__RankPushRequest *)request, &error, &push);
    if (status != BT_OK) {
        bt_counter_add(follower->node.metrics.refused, 1);
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    push->call = call;
    follower->list[follower->count++] = push;
    bt_rpc_call_on_cancel(call, on_push_cancel, push);
    if (push->request.probe) {
        kvt_push_finish(push->delivery.push);
    } else {
        const struct pf_follower_push known = {
            push->request.serial, push->delivery.push, push->request.source_pages,
            push->request.prompt_tokens, push->request.cached_tokens};
        BT_ASSERT(pf_follower_compute_add(follower->compute, &known, &error) == BT_OK);
    }
    Baton__V1__RankPushOpened opened = BATON__V1__RANK_PUSH_OPENED__INIT;
    status = bt_rpc_call_send(call, &opened.base);
    if (status != BT_OK) {
        push_give_up(push, status, "rank 0 does not take messages");
    }
}

/* ------------------------------------------------------------------ PrefillRank/Connect */

static void connects_check(void *context)
{
    struct pf_follower *follower = context;
    Baton__V1__RankConnectResponse response = BATON__V1__RANK_CONNECT_RESPONSE__INIT;
    if (follower->connects.count == 0) {
        return;
    }
    if (!pf_peers_warm(follower->node.peers)) {
        bt_loop_timer_set(follower->warm_timer, bt_clock_now_ns() + WARM_CHECK_NS);
        return;
    }
    bt_waiting_calls_end(&follower->connects, &response.base);
}

static void handle_connect(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_follower *follower = context;
    const Baton__V1__RankConnectRequest *message = (const Baton__V1__RankConnectRequest *)request;
    struct bt_error error;
    enum bt_status status = check_call(follower, message->group_incarnation, &error);
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    for (size_t i = 0; i < message->n_decode; i++) {
        struct pf_peer *peer;
        if (pf_peers_get(follower->node.peers, message->decode[i], &error, &peer) != BT_OK) {
            bt_log_warn(0, "decode rank from rank 0: %s", error.text);
        }
    }
    bt_waiting_calls_add(&follower->connects, call, "links");
    connects_check(follower);
}

/* ------------------------------------------------------------------ the rest */

static void handle_metrics(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_follower *follower = context;
    (void)request;
    bt_gauge_set(follower->node.metrics.running, follower->count);
    pf_node_answer_metrics(&follower->node, call);
}

static void handle_preflight(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *request)
{
    const struct pf_follower *follower = context;
    pf_node_answer_preflight(&follower->node, call, (const Baton__V1__PreflightRequest *)request,
                             NULL);
}

/* The worker drains and serves as one, by its rank 0. */
static void ask_rank_0(struct pf_follower *follower, const char *method,
                       const ProtobufCMessageDescriptor *response, struct bt_rpc_call *call,
                       const ProtobufCMessage *request)
{
    struct bt_error error;
    enum bt_status status =
        follower->over ? bt_error_set(&error, BT_ERR_UNAVAILABLE, "the group is over") : BT_OK;
    if (status == BT_OK && !follower->rank_0) {
        status = bt_rpc_client_create(follower->node.loop, follower->rank_0_endpoint, &error,
                                      &follower->rank_0);
    }
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    pf_forward_call(follower->rank_0, method, response, call, request);
}

static void handle_drain(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    ask_rank_0(context, "baton.v1.Worker/Drain", &baton__v1__drain_response__descriptor, call,
               request);
}

static void handle_resume(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    ask_rank_0(context, "baton.v1.Worker/Resume", &baton__v1__resume_response__descriptor, call,
               request);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.PrefillRank/Connect", &baton__v1__rank_connect_request__descriptor, handle_connect},
    {"baton.v1.PrefillRank/Push", &baton__v1__rank_push_request__descriptor, handle_push},
    {"baton.v1.Worker/Metrics", &baton__v1__metrics_request__descriptor, handle_metrics},
    {"baton.v1.Worker/Preflight", &baton__v1__preflight_request__descriptor, handle_preflight},
    {"baton.v1.Worker/Drain", &baton__v1__drain_request__descriptor, handle_drain},
    {"baton.v1.Worker/Resume", &baton__v1__resume_request__descriptor, handle_resume},
    {NULL, NULL, NULL},
};

static enum bt_status create_compute(struct pf_follower *follower, struct bt_error *error)
{
    const struct pf_node *node = &follower->node;
    const struct pf_worker_options *options = &node->options;
    const struct pf_follower_compute_options compute = {
        .pass = {.model = node->model,
                 .rank = options->rank,
                 .layout = node->layout,
                 .kv_pool = pf_node_pool(node),
                 .staging = node->staging,
                 .pool_pages = options->kv_pages,
                 .max_chunks = options->max_num_seqs,
                 .max_rows = options->chunked_prefill_size},
        .limits = {.max_chunks = options->max_num_seqs,
                   .max_rows = options->chunked_prefill_size,
                   .max_tokens = options->max_model_len,
                   .pool_pages = options->kv_pages,
                   .vocab_size = node->model->config.vocab_size},
        .max_pushes = options->max_queued,
    };
    return pf_follower_compute_create(&compute, error, &follower->compute);
}

static enum bt_status create_sources(struct pf_follower *follower, struct bt_error *error)
{
    struct bt_loop *loop = follower->node.loop;
    follower->list = calloc(follower->node.options.max_queued, sizeof(struct push *));
    follower->warm_timer = bt_loop_add_timer(loop, BT_NEVER_NS, connects_check, follower);
    follower->compute_source = bt_loop_add_fd(
        loop, bt_queue_fd(pf_follower_compute_events(follower->compute)), on_compute, follower);
    follower->push_source = bt_loop_add_fd(
        loop, bt_queue_fd(kvt_source_events(follower->node.source)), on_push, follower);
    return follower->list && follower->warm_timer && follower->compute_source &&
                   follower->push_source
               ? BT_OK
               : bt_error_set(error, BT_ERR_NO_MEMORY, "follower: no memory");
}

static void on_peers_changed(void *context)
{
    (void)context; /* nobody here waits for a Quiesced */
}

static enum bt_status meet(struct pf_follower *follower, struct bt_error *error)
{
    char(*endpoints)[PF_ENDPOINT_SIZE] = calloc(follower->node.size, sizeof(*endpoints));
    enum bt_status status = endpoints ? pf_node_meet(&follower->node, endpoints, error)
                                      : bt_error_set(error, BT_ERR_NO_MEMORY, "ranks: no memory");
    if (status == BT_OK) {
        memcpy(follower->rank_0_endpoint, endpoints[0], PF_ENDPOINT_SIZE);
    }
    free(endpoints);
    return status;
}

enum bt_status pf_follower_create(struct bt_loop *loop, const struct bt_model *model,
                                  const struct pf_worker_options *options, struct bt_error *error,
                                  struct pf_follower **ret_follower)
{
    struct pf_follower *follower = calloc(1, sizeof(*follower));
    if (!follower) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "follower: no memory");
    }
    enum bt_status status =
        pf_node_init(&follower->node, loop, model, options, on_peers_changed, follower, error);
    if (status == BT_OK) {
        status = create_compute(follower, error);
    }
    if (status == BT_OK) {
        status = create_sources(follower, error);
    }
    if (status == BT_OK) {
        status = pf_node_serve(&follower->node, methods, follower, error);
    }
    if (status == BT_OK) {
        status = meet(follower, error);
    }
    if (status == BT_OK) {
        status = pf_follower_compute_start(follower->compute, error);
    }
    if (status != BT_OK) {
        pf_follower_destroy(follower);
        return status;
    }
    pf_node_write_ready_file(&follower->node);
    *ret_follower = follower;
    return BT_OK;
}

void pf_follower_destroy(struct pf_follower *follower)
{
    if (!follower) {
        return;
    }
    BT_ASSERT(follower->count == 0);
    bt_rpc_client_destroy(follower->rank_0);
    pf_node_close(&follower->node);
    bt_loop_remove(follower->warm_timer);
    bt_loop_remove(follower->compute_source);
    bt_loop_remove(follower->push_source);
    pf_follower_compute_destroy(follower->compute);
    pf_node_finish(&follower->node);
    free(follower->list);
    free(follower);
}

const char *pf_follower_endpoint(const struct pf_follower *follower)
{
    return pf_node_endpoint(&follower->node);
}

void pf_follower_stop(struct pf_follower *follower)
{
    pf_follower_compute_stop(follower->compute);
}

bool pf_follower_over(const struct pf_follower *follower, struct bt_error *ret_error)
{
    if (follower->over && ret_error) {
        *ret_error = follower->error;
    }
    return follower->over;
}

void pf_follower_cancel(struct pf_follower *follower)
{
    for (uint32_t i = 0; i < follower->count; i++) {
        pf_delivery_cancel(&follower->list[i]->delivery);
    }
}

bool pf_follower_idle(const struct pf_follower *follower)
{
    return follower->count == 0;
}
