/* The cluster as operators see it: baton.v1.Router/Status. */
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/service_state.h"

const char *const rt_role_names[] = {[RT_ROLE_PREFILL] = "prefill", [RT_ROLE_DECODE] = "decode"};

const char *const rt_worker_state_names[] = {
    [RT_WORKER_CONNECTING] = "connecting",
    [RT_WORKER_READY] = "ready",
    [RT_WORKER_SILENT] = "silent",
    [RT_WORKER_DRAINING] = "draining",
    [RT_WORKER_LOST] = "lost",
};

const char *const rt_request_state_names[] = {
    [RT_QUEUED] = "queued",
    [RT_RESERVING] = "reserving",
    [RT_PREFILLING] = "prefilling",
    [RT_DECODING] = "decoding",
};

/* False: no memory. protobuf-c frees its strings, except its own empty one. */
static bool set_string(char **field, const char *value)
{
    char *copy = strdup(value);
    if (copy) {
        *field = copy;
    }
    return copy != NULL;
}

static double seconds_ago(int64_t then_ns)
{
    return (double)(bt_clock_now_ns() - then_ns) / 1e9;
}

static Baton__V1__RankLoad *load_message(const struct rt_load *load)
{
    Baton__V1__RankLoad *message = malloc(sizeof *message);
    if (!message) {
        return NULL;
    }
    baton__v1__rank_load__init(message);
    message->pages_total = load->pages_total;
    message->pages_free = load->pages_free;
    message->pages_reserved = load->pages_reserved;
    message->pages_ready = load->pages_ready;
    message->pages_quarantined = load->pages_quarantined;
    message->running = load->running;
    message->waiting = load->waiting;
    message->max_running = load->max_running;
    message->waiting_tokens = load->waiting_tokens;
    message->kv_tokens = load->kv_tokens;
    return message;
}

/* NULL: no memory. */
static Baton__V1__GroupMember *group_message(const struct rt_group_member *group)
{
    Baton__V1__GroupMember *message = malloc(sizeof *message);
    if (!message) {
        return NULL;
    }
    baton__v1__group_member__init(message);
    message->incarnation = group->incarnation;
    message->rank = group->rank;
    message->size = group->size;
    if (!set_string(&message->name, group->name)) {
        free(message);
        return NULL;
    }
    return message;
}

static bool fill_worker(const struct rt_worker_link *link, const struct rt_worker_view *view,
                        Baton__V1__WorkerStatus *status)
{
    status->role = view->info->role == RT_ROLE_PREFILL ? BATON__V1__WORKER_ROLE__ROLE_PREFILL
                                                       : BATON__V1__WORKER_ROLE__ROLE_DECODE;
    status->incarnation = view->info->incarnation;
    status->last_heartbeat_s = seconds_ago(view->last_heartbeat_ns);
    status->load = load_message(&view->info->load);
    bool filled = status->load && set_string(&status->worker_id, view->info->id) &&
                  set_string(&status->state, rt_worker_state_names[view->state]);
    if (filled && view->info->group.incarnation != 0) {
        status->group = group_message(&view->info->group);
        filled = status->group != NULL;
    }
    if (filled && link) {
        status->pid = link->process.pid;
        filled = set_string(&status->transport,
                            link->used_transport[0] ? link->used_transport : link->transport) &&
                 set_string(&status->control_endpoint, link->endpoint);
    }
    return filled;
}

static bool add_workers(const struct rt_service *service, Baton__V1__StatusResponse *response)
{
    size_t count = 0, cursor = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    while (rt_core_next_worker(service->core, &cursor, &ref)) {
        count++;
    }
    response->workers = calloc(count + 1, sizeof *response->workers);
    if (!response->workers) {
        return false;
    }
    for (cursor = 0; rt_core_next_worker(service->core, &cursor, &ref);) {
        Baton__V1__WorkerStatus *status = malloc(sizeof *status);
        if (!status) {
            return false;
        }
        baton__v1__worker_status__init(status);
        response->workers[response->n_workers++] = status;
        rt_core_worker(service->core, ref, &view);
        if (!fill_worker(rt_service_link(service, ref), &view, status)) {
            return false;
        }
    }
    return true;
}

static const char *worker_id(const struct rt_service *service, rt_worker_ref ref)
{
    struct rt_worker_view view;
    return ref != RT_NO_WORKER && rt_core_worker(service->core, ref, &view) ? view.info->id : "";
}

static bool fill_request(const struct rt_service *service, const struct rt_request_view *view,
                         Baton__V1__RequestStatus *status)
{
    status->request_id = view->id;
    status->prompt_tokens = view->prompt_tokens;
    status->generated_tokens = view->generated_tokens;
    status->age_s = seconds_ago(view->arrival_ns);
    return set_string(&status->state, rt_request_state_names[view->state]) &&
           set_string(&status->prefill_worker, worker_id(service, view->prefill)) &&
           set_string(&status->decode_worker, worker_id(service, view->decode));
}

static bool add_requests(const struct rt_service *service, Baton__V1__StatusResponse *response)
{
    response->requests = calloc(service->streams.size + 1, sizeof *response->requests);
    if (!response->requests) {
        return false;
    }
    size_t cursor = 0;
    struct rt_request_view view;
    while (response->n_requests < service->streams.size &&
           rt_core_next_request(service->core, &cursor, &view)) {
        Baton__V1__RequestStatus *status = malloc(sizeof *status);
        if (!status) {
            return false;
        }
        baton__v1__request_status__init(status);
        response->requests[response->n_requests++] = status;
        if (!fill_request(service, &view, status)) {
            return false;
        }
    }
    return true;
}

Baton__V1__StatusResponse *rt_service_status(const struct rt_service *service)
{
    Baton__V1__StatusResponse *response = malloc(sizeof *response);
    if (!response) {
        return NULL;
    }
    baton__v1__status_response__init(response);
    response->queued = rt_core_queued(service->core);
    response->queue_capacity = service->options.core.queue_capacity;
    response->uptime_s = seconds_ago(service->started_ns);
    if (!set_string(&response->http_endpoint, service->http_endpoint) ||
        !set_string(&response->model, service->model_name) || !add_workers(service, response) ||
        !add_requests(service, response)) {
        baton__v1__status_response__free_unpacked(response, NULL);
        return NULL;
    }
    return response;
}
