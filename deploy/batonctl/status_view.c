#include "deploy/batonctl/status_view.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *ctl_view_role(const Baton__V1__WorkerStatus *worker)
{
    return worker->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL  ? "prefill"
           : worker->role == BATON__V1__WORKER_ROLE__ROLE_DECODE ? "decode"
                                                                 : "?";
}

void ctl_view_group(const Baton__V1__WorkerStatus *worker, char ret_text[80])
{
    const Baton__V1__GroupMember *group = worker->group;
    if (group)
        snprintf(ret_text, 80, "%.40s %u/%u", group->name, group->rank, group->size);
    else
        snprintf(ret_text, 80, "-");
}

Baton__V1__RankLoad ctl_view_load(const Baton__V1__WorkerStatus *worker)
{
    Baton__V1__RankLoad none = BATON__V1__RANK_LOAD__INIT;
    return worker->load ? *worker->load : none;
}

double ctl_view_number(double value)
{
    return isfinite(value) ? value : 0;
}

/* ------------------------------------------------------------------ rows */

void ctl_view_worker_head(bool wide, char ret_row[CTL_ROW_SIZE])
{
    int size =
        snprintf(ret_row, CTL_ROW_SIZE, "%-16s %-8s %-11s %-14s %8s %8s %6s %6s %6s  %s", "WORKER",
                 "ROLE", "STATE", "GROUP", "PAGES", "FREE", "QUAR", "RUN", "WAIT", "TRANSPORT");
    if (wide)
        snprintf(ret_row + size, CTL_ROW_SIZE - (size_t)size, "%*s  %10s %8s %9s  %s", 1, "",
                 "KV TOKENS", "PID", "HEARTBEAT", "ENDPOINT");
}

void ctl_view_worker_row(const Baton__V1__WorkerStatus *worker, bool wide,
                         char ret_row[CTL_ROW_SIZE])
{
    Baton__V1__RankLoad load = ctl_view_load(worker);
    char group[80];
    ctl_view_group(worker, group);
    int size = snprintf(
        ret_row, CTL_ROW_SIZE, "%-16.64s %-8s %-11.32s %-14s %8u %8u %6u %6u %6u  %.64s",
        worker->worker_id, ctl_view_role(worker), worker->state, group, load.pages_total,
        load.pages_free, load.pages_quarantined, load.running, load.waiting, worker->transport);
    if (wide) {
        int gap = 10 - (int)strnlen(worker->transport, 10);
        snprintf(ret_row + size, CTL_ROW_SIZE - (size_t)size,
                 "%*s  %10" PRIu64 " %8" PRId64 " %8.1fs  %.256s", gap, "", load.kv_tokens,
                 worker->pid, ctl_view_number(worker->last_heartbeat_s), worker->control_endpoint);
    }
}

void ctl_view_request_head(bool wide, char ret_row[CTL_ROW_SIZE])
{
    (void)wide;
    snprintf(ret_row, CTL_ROW_SIZE, "%-16s %-11s %8s %10s %7s  %-12s %s", "REQUEST", "STATE",
             "PROMPT", "GENERATED", "AGE", "PREFILL", "DECODE");
}

void ctl_view_request_row(const Baton__V1__RequestStatus *request, bool wide,
                          char ret_row[CTL_ROW_SIZE])
{
    (void)wide;
    snprintf(ret_row, CTL_ROW_SIZE, "%016" PRIx64 " %-11.32s %8u %10u %6.1fs  %-12.64s %.64s",
             request->request_id, request->state, request->prompt_tokens, request->generated_tokens,
             ctl_view_number(request->age_s), request->prefill_worker, request->decode_worker);
}

void ctl_view_print_workers(const Baton__V1__StatusResponse *status, bool wide)
{
    char row[CTL_ROW_SIZE];
    ctl_view_worker_head(wide, row);
    printf("%s\n", row);
    for (size_t i = 0; i < status->n_workers; i++) {
        ctl_view_worker_row(status->workers[i], wide, row);
        printf("%s\n", row);
    }
}

void ctl_view_print_requests(const Baton__V1__StatusResponse *status, bool wide)
{
    char row[CTL_ROW_SIZE];
    ctl_view_request_head(wide, row);
    printf("%s\n", row);
    for (size_t i = 0; i < status->n_requests; i++) {
        ctl_view_request_row(status->requests[i], wide, row);
        printf("%s\n", row);
    }
}

/* ------------------------------------------------------------------ JSON */

static json_t *group_json(const Baton__V1__WorkerStatus *worker)
{
    const Baton__V1__GroupMember *group = worker->group;
    if (!group)
        return json_null();
    return json_pack("{s:s,s:I,s:I}", "name", group->name, "rank", (json_int_t)group->rank, "size",
                     (json_int_t)group->size);
}

json_t *ctl_view_worker_json(const Baton__V1__WorkerStatus *worker)
{
    Baton__V1__RankLoad load = ctl_view_load(worker);
    return json_pack("{s:s,s:s,s:s,s:o,s:s,s:s,s:I,s:f,s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}}",
                     "worker", worker->worker_id, "role", ctl_view_role(worker), "state",
                     worker->state, "group", group_json(worker), "transport", worker->transport,
                     "rpc", worker->control_endpoint, "pid", (json_int_t)worker->pid,
                     "last_heartbeat_s", ctl_view_number(worker->last_heartbeat_s), "load",
                     "pages_total", (json_int_t)load.pages_total, "pages_free",
                     (json_int_t)load.pages_free, "pages_reserved", (json_int_t)load.pages_reserved,
                     "pages_ready", (json_int_t)load.pages_ready, "pages_quarantined",
                     (json_int_t)load.pages_quarantined, "running", (json_int_t)load.running,
                     "waiting", (json_int_t)load.waiting, "kv_tokens", (json_int_t)load.kv_tokens);
}

json_t *ctl_view_request_json(const Baton__V1__RequestStatus *request)
{
    char id[20];
    snprintf(id, sizeof(id), "%016" PRIx64, request->request_id);
    return json_pack("{s:s,s:s,s:I,s:I,s:s,s:s,s:f}", "request", id, "state", request->state,
                     "prompt_tokens", (json_int_t)request->prompt_tokens, "generated_tokens",
                     (json_int_t)request->generated_tokens, "prefill", request->prefill_worker,
                     "decode", request->decode_worker, "age_s", ctl_view_number(request->age_s));
}

json_t *ctl_view_workers_json(const Baton__V1__StatusResponse *status)
{
    json_t *list = json_array();
    for (size_t i = 0; i < status->n_workers; i++)
        json_array_append_new(list, ctl_view_worker_json(status->workers[i]));
    return list;
}

json_t *ctl_view_requests_json(const Baton__V1__StatusResponse *status)
{
    json_t *list = json_array();
    for (size_t i = 0; i < status->n_requests; i++)
        json_array_append_new(list, ctl_view_request_json(status->requests[i]));
    return list;
}
