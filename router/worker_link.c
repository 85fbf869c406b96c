#include "router/worker_link.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"

#define RESERVE_TIMEOUT_NS (5 * BT_NS_PER_S)
#define CANCEL_RETRY_NS    BT_NS_PER_S

struct rt_cancel {
    struct rt_worker_link *link;
    struct rt_cancel *previous, *next;
    uint64_t request, epoch;
    bool in_flight;
};

/* The context of a Reserve, Adopt or Run call. */
struct rt_run {
    struct rt_worker_link *link;
    uint64_t request;
    uint64_t epoch; /* Adopt */
    uint32_t attempt;
    struct bt_rpc_pending *pending;
};

static void on_retry(void *context);

void rt_transport_copy(const char *name, char ret_name[RT_LINK_TRANSPORT_SIZE])
{
    size_t i = 0;
    for (; i + 1 < RT_LINK_TRANSPORT_SIZE && name[i]; i++) {
        ret_name[i] = name[i] >= ' ' && name[i] <= '~' ? name[i] : '?';
    }
    ret_name[i] = '\0';
}

struct rt_worker_link *rt_worker_link_create(struct rt_service *service, struct bt_loop *loop,
                                             rt_worker_ref ref)
{
    struct rt_worker_link *link = calloc(1, sizeof *link);
    if (!link) {
        return NULL;
    }
    link->service = service;
    link->ref = ref;
    link->retry = bt_loop_add_timer(loop, BT_NEVER_NS, on_retry, link);
    if (!link->retry) {
        free(link);
        return NULL;
    }
    return link;
}

static void cancel_free(struct rt_cancel *cancel)
{
    struct rt_worker_link *link = cancel->link;
    *(cancel->previous ? &cancel->previous->next : &link->cancels) = cancel->next;
    if (cancel->next) {
        cancel->next->previous = cancel->previous;
    }
    link->cancel_count--;
    free(cancel);
}

static void cancels_clear(struct rt_worker_link *link)
{
    while (link->cancels) {
        cancel_free(link->cancels);
    }
}

void rt_worker_link_destroy(struct rt_worker_link *link)
{
    if (!link) {
        return;
    }
    rt_worker_link_close(link);
    cancels_clear(link);
    bt_loop_remove(link->retry);
    if (link->kv) {
        baton__v1__kv_endpoint__free_unpacked(link->kv, NULL);
    }
    free(link->tokens);
    free(link);
}

/* Once a connection. */
static void link_break(struct rt_worker_link *link, const char *why)
{
    if (link->broken) {
        return;
    }
    link->broken = true;
    link->up = false;
    rt_service_on_link_broken(link, why);
}

static void link_is_up(struct rt_worker_link *link)
{
    if (!link->up && !link->broken) {
        link->up = true;
        rt_service_on_link_up(link);
    }
}

/* ---- the connection */

static void on_step(void *context, const ProtobufCMessage *message)
{
    struct rt_worker_link *link = context;
    if (!link->broken) {
        link_is_up(link);
        rt_service_on_step(link, (const Baton__V1__StepEvent *)message);
    }
}

static void on_steps_end(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *response)
{
    (void)response;
    link_break(context, text[0] ? text : bt_status_name(status));
}

static void on_peer(void *context, bool up)
{
    struct rt_worker_link *link = context;
    link->refused = !up;
    if (up && link->role == RT_ROLE_PREFILL) {
        link_is_up(link);
    } else if (!up && (link->up || bt_process_probe(&link->process) == BT_PROCESS_DEAD)) {
        link_break(link, "the connection is gone");
    }
}

static enum bt_status steps_start(struct rt_worker_link *link, uint64_t router_incarnation,
                                  struct bt_error *error)
{
    Baton__V1__StepsRequest request = BATON__V1__STEPS_REQUEST__INIT;
    request.router_incarnation = router_incarnation;
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Steps",
        .request = &request.base,
        .data = &baton__v1__step_event__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_step,
        .on_end = on_steps_end,
        .context = link,
    };
    return bt_rpc_client_call(link->client, &spec, error, NULL);
}

static void cancels_send(struct rt_worker_link *link);

enum bt_status rt_worker_link_open(struct rt_worker_link *link, struct bt_loop *loop,
                                   uint64_t router_incarnation, struct bt_error *error)
{
    BT_ASSERT(!link->client);
    link->router_incarnation = router_incarnation;
    enum bt_status status = bt_rpc_client_create(loop, link->endpoint, error, &link->client);
    if (status != BT_OK) {
        return status;
    }
    link->up = link->broken = link->refused = false;
    bt_rpc_client_on_peer(link->client, on_peer, link);
    cancels_send(link);
    if (link->role == RT_ROLE_DECODE) {
        status = steps_start(link, router_incarnation, error);
        if (status != BT_OK) {
            rt_worker_link_close(link);
        }
    }
    return status;
}

void rt_worker_link_close(struct rt_worker_link *link)
{
    struct bt_rpc_client *client = link->client;
    link->client = NULL; /* ends that come from here start nothing new */
    link->up = false;
    link->broken = true;
    bt_loop_timer_set(link->retry, BT_NEVER_NS);
    bt_rpc_client_destroy(client);
}

/* ---- Reserve, Adopt and Run */

static struct rt_run *run_create(struct rt_worker_link *link, uint64_t request, uint32_t attempt)
{
    struct rt_run *run = calloc(1, sizeof *run);
    if (run) {
        *run = (struct rt_run){.link = link, .request = request, .attempt = attempt};
    }
    return run;
}

static enum bt_status run_start(struct rt_run *run, const struct bt_rpc_call_spec *spec)
{
    struct bt_error error = {0};
    struct rt_worker_link *link = run->link;
    if (!link->client || link->broken) {
        free(run);
        return BT_ERR_UNAVAILABLE;
    }
    enum bt_status status = bt_rpc_client_call(link->client, spec, &error, &run->pending);
    if (status != BT_OK) {
        bt_log_warn(run->request, "%s", error.text);
        free(run);
    }
    return status;
}

static void on_reserve_end(void *context, enum bt_status status, const char *text,
                           const ProtobufCMessage *response)
{
    struct rt_run *run = context;
    if (status == BT_ERR_STALE) {
        link_break(run->link, "the rank has no Steps stream of ours any more");
    }
    rt_service_on_reserved(run->link, run->request, run->attempt, status, text,
                           (const Baton__V1__ReserveResponse *)response);
    free(run);
}

/* A cancel of whatever the rank holds of the request, still to be repeated, would hit the new
 * reservation. What it was for ends by itself at the rank: nobody takes a lease of it. */
static void cancels_supersede(struct rt_worker_link *link, uint64_t request)
{
    struct rt_cancel *next;
    for (struct rt_cancel *cancel = link->cancels; cancel; cancel = next) {
        next = cancel->next;
        if (cancel->request == request && cancel->epoch == 0 && !cancel->in_flight) {
            cancel_free(cancel);
        }
    }
}

static int64_t answer_by_ns(int64_t deadline_ns)
{
    int64_t latest_ns = bt_clock_now_ns() + RESERVE_TIMEOUT_NS;
    return deadline_ns < latest_ns ? deadline_ns : latest_ns;
}

enum bt_status rt_worker_link_reserve(struct rt_worker_link *link, uint32_t attempt,
                                      int64_t deadline_ns, const Baton__V1__ReserveRequest *request)
{
    struct rt_run *run = run_create(link, request->request_id, attempt);
    if (!run) {
        return BT_ERR_NO_MEMORY;
    }
    cancels_supersede(link, request->request_id);
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Reserve",
        .request = &request->base,
        .response = &baton__v1__reserve_response__descriptor,
        .deadline_ns = answer_by_ns(deadline_ns),
        .on_end = on_reserve_end,
        .context = run,
    };
    return run_start(run, &spec);
}

static void on_adopt_end(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *response)
{
    (void)response;
    struct rt_run *run = context;
    if (status == BT_ERR_STALE) {
        link_break(run->link, "the rank has no Steps stream of ours any more");
    }
    rt_service_on_adopted(run->link, run->request, run->epoch, status, text);
    free(run);
}

enum bt_status rt_worker_link_adopt(struct rt_worker_link *link,
                                    const Baton__V1__AdoptRequest *request)
{
    struct rt_run *run = run_create(link, request->request_id, 0);
    if (!run) {
        return BT_ERR_NO_MEMORY;
    }
    run->epoch = request->epoch;
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Adopt",
        .request = &request->base,
        .response = &baton__v1__adopt_response__descriptor,
        .deadline_ns = answer_by_ns(BT_NEVER_NS),
        .on_end = on_adopt_end,
        .context = run,
    };
    return run_start(run, &spec);
}

static void on_run_data(void *context, const ProtobufCMessage *message)
{
    struct rt_run *run = context;
    rt_service_on_run_event(run->link, run->request, run->attempt,
                            (const Baton__V1__PrefillEvent *)message);
}

static void on_run_end(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *response)
{
    (void)response;
    struct rt_run *run = context;
    rt_service_on_run_ended(run->link, run->request, run->attempt, run, status, text);
    free(run);
}

enum bt_status rt_worker_link_run(struct rt_worker_link *link, uint32_t attempt,
                                  int64_t deadline_ns, const Baton__V1__PrefillRequest *request,
                                  struct rt_run **ret_run)
{
    struct rt_run *run = run_create(link, request->request_id, attempt);
    if (!run) {
        return BT_ERR_NO_MEMORY;
    }
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Prefill/Run",
        .request = &request->base,
        .data = &baton__v1__prefill_event__descriptor,
        .deadline_ns = deadline_ns,
        .on_data = on_run_data,
        .on_end = on_run_end,
        .context = run,
    };
    enum bt_status status = run_start(run, &spec);
    if (status == BT_OK) {
        *ret_run = run;
    }
    return status;
}

void rt_run_cancel(struct rt_run *run)
{
    if (run->link->client) {
        bt_rpc_pending_cancel(run->pending);
    }
}

/* ---- Cancel */

/* The rank has it, or will never understand it. A cancel that was sent has no deadline: it is in
 * line before every later Reserve of the connection, and must not be repeated behind one. */
static bool cancel_settled(enum bt_status status)
{
    switch (status) {
    case BT_ERR_UNAVAILABLE:
    case BT_ERR_EXHAUSTED:
    case BT_ERR_PEER_LOST:
    case BT_ERR_CANCELLED:
    case BT_ERR_NO_MEMORY:
        return false;
    default:
        return true;
    }
}

static void retry_later(struct rt_worker_link *link)
{
    if (link->client) {
        bt_loop_timer_set(link->retry, bt_clock_now_ns() + CANCEL_RETRY_NS);
    }
}

static void on_cancel_end(void *context, enum bt_status status, const char *text,
                          const ProtobufCMessage *response)
{
    (void)text;
    (void)response;
    struct rt_cancel *cancel = context;
    cancel->in_flight = false;
    if (cancel_settled(status)) {
        cancel_free(cancel);
    } else {
        retry_later(cancel->link);
    }
}

static void cancel_send(struct rt_cancel *cancel)
{
    struct rt_worker_link *link = cancel->link;
    if (!link->client || link->broken || cancel->in_flight) {
        return;
    }
    Baton__V1__CancelRequest request = BATON__V1__CANCEL_REQUEST__INIT;
    request.request_id = cancel->request;
    request.epoch = cancel->epoch;
    request.router_incarnation = link->router_incarnation;
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Cancel",
        .request = &request.base,
        .deadline_ns = BT_NEVER_NS,
        .on_end = on_cancel_end,
        .context = cancel,
    };
    if (bt_rpc_client_call(link->client, &spec, NULL, NULL) == BT_OK) {
        cancel->in_flight = true;
    } else {
        retry_later(link);
    }
}

static void cancels_send(struct rt_worker_link *link)
{
    for (struct rt_cancel *cancel = link->cancels; cancel; cancel = cancel->next) {
        cancel_send(cancel);
    }
}

static void on_retry(void *context)
{
    cancels_send(context);
}

void rt_worker_link_cancel(struct rt_worker_link *link, uint64_t request, uint64_t epoch)
{
    struct rt_cancel *cancel = NULL;
    if (link->cancel_count < RT_LINK_MAX_CANCELS) {
        cancel = calloc(1, sizeof *cancel);
    }
    if (!cancel) {
        /* Without its Steps stream the rank lets go of everything, this request included. */
        link_break(link, "too many cancels are unanswered");
        return;
    }
    *cancel =
        (struct rt_cancel){.link = link, .next = link->cancels, .request = request, .epoch = epoch};
    if (link->cancels) {
        link->cancels->previous = cancel;
    }
    link->cancels = cancel;
    link->cancel_count++;
    cancel_send(cancel);
}
