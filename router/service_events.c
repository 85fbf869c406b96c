/* What happens in the service, as events that operators can follow. */
#include <inttypes.h>

#include "router/service_state.h"

static const char *state_kind(const struct rt_change *change)
{
    switch (change->state) {
    case RT_WORKER_CONNECTING:
        return "worker-connecting";
    case RT_WORKER_READY:
        return change->before == RT_WORKER_DRAINING ? "worker-resumed" : "worker-ready";
    case RT_WORKER_SILENT:
        return "worker-silent";
    case RT_WORKER_DRAINING:
        return "worker-draining";
    case RT_WORKER_LOST:
        return "worker-lost";
    }
    return "worker";
}

static void tell_state(struct rt_events *events, const struct rt_change *change)
{
    static const char *const texts[] = {
        [RT_WORKER_CONNECTING] = "it registered, and is being connected",
        [RT_WORKER_READY] = "it gets requests",
        [RT_WORKER_SILENT] = "its heartbeats are late: it gets nothing new",
        [RT_WORKER_DRAINING] = "it gets nothing new, and ends what it has",
    };
    const char *role = rt_role_names[change->role];
    if (change->state == RT_WORKER_LOST)
        rt_events_add(events, state_kind(change), change->worker_id, "%s: %s", role, change->why);
    else
        rt_events_add(events, state_kind(change), change->worker_id, "%s: %s", role,
                      texts[change->state]);
}

void rt_service_on_change(void *context, const struct rt_change *change)
{
    struct rt_service *service = context;
    switch (change->kind) {
    case RT_CHANGE_STATE:
        tell_state(service->events, change);
        break;
    case RT_CHANGE_BREAKER:
        rt_events_add(
            service->events, change->open ? "breaker-open" : "breaker-closed", change->worker_id,
            change->open ? "it failed too often, and gets nothing for a while" : "it works again");
        break;
    case RT_CHANGE_POISONED:
        rt_events_add(service->events, "request-poisoned", change->worker_id,
                      "request %016" PRIx64 " ends: %u workers were lost while it ran there, the "
                      "last by this: %s",
                      change->request, change->deaths, change->why);
        break;
    }
}

void rt_service_on_reload(void *context, enum bt_status status, const char *text)
{
    struct rt_service *service = context;
    if (status == BT_OK)
        rt_events_add(service->events, "keys-reloaded", "", "the file of keys changed");
    else
        rt_events_add(service->events, "keys-refused", "", "%s; those before stay in force", text);
}

void rt_service_tell_refused(struct rt_service *service, const char *worker_id, const char *why)
{
    rt_events_add(service->events, "worker-refused", worker_id, "%s", why);
}

static void handle_events(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    const struct rt_service *service = context;
    const Baton__V1__EventsRequest *request = (const Baton__V1__EventsRequest *)message;
    rt_events_serve(service->events, call, request->since, request->follow);
}

const struct bt_rpc_method rt_events_methods[] = {
    {"baton.v1.Router/Events", &baton__v1__events_request__descriptor, handle_events},
    {NULL, NULL, NULL},
};
