/* The verbs that look: get and status. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/verbs.h"

static const char *role_name(Baton__V1__WorkerRole role)
{
    return role == BATON__V1__WORKER_ROLE__ROLE_PREFILL  ? "prefill"
           : role == BATON__V1__WORKER_ROLE__ROLE_DECODE ? "decode"
                                                         : "?";
}

static void group_text(const Baton__V1__WorkerStatus *worker, char ret_text[80])
{
    const Baton__V1__GroupMember *group = worker->group;
    if (group)
        snprintf(ret_text, 80, "%.40s %u/%u", group->name, group->rank, group->size);
    else
        snprintf(ret_text, 80, "-");
}

static void print_workers(const Baton__V1__StatusResponse *status)
{
    printf("%-16s %-8s %-11s %-14s %8s %8s %6s %6s %6s  %s\n", "WORKER", "ROLE", "STATE", "GROUP",
           "PAGES", "FREE", "QUAR", "RUN", "WAIT", "TRANSPORT");
    for (size_t i = 0; i < status->n_workers; i++) {
        const Baton__V1__WorkerStatus *w = status->workers[i];
        Baton__V1__RankLoad none = BATON__V1__RANK_LOAD__INIT;
        const Baton__V1__RankLoad *load = w->load ? w->load : &none;
        char group[80];
        group_text(w, group);
        printf("%-16s %-8s %-11s %-14s %8u %8u %6u %6u %6u  %s\n", w->worker_id, role_name(w->role),
               w->state, group, load->pages_total, load->pages_free, load->pages_quarantined,
               load->running, load->waiting, w->transport);
    }
}

static void print_requests(const Baton__V1__StatusResponse *status)
{
    printf("%-16s %-11s %8s %10s %7s  %-12s %s\n", "REQUEST", "STATE", "PROMPT", "GENERATED", "AGE",
           "PREFILL", "DECODE");
    for (size_t i = 0; i < status->n_requests; i++) {
        const Baton__V1__RequestStatus *r = status->requests[i];
        printf("%016" PRIx64 " %-11s %8u %10u %6.1fs  %-12s %s\n", r->request_id, r->state,
               r->prompt_tokens, r->generated_tokens, r->age_s, r->prefill_worker,
               r->decode_worker);
    }
}

static json_t *group_json(const Baton__V1__WorkerStatus *worker)
{
    const Baton__V1__GroupMember *group = worker->group;
    if (!group)
        return json_null();
    return json_pack("{s:s,s:I,s:I}", "name", group->name, "rank", (json_int_t)group->rank, "size",
                     (json_int_t)group->size);
}

static json_t *workers_json(const Baton__V1__StatusResponse *status)
{
    json_t *list = json_array();
    for (size_t i = 0; i < status->n_workers; i++) {
        const Baton__V1__WorkerStatus *w = status->workers[i];
        Baton__V1__RankLoad none = BATON__V1__RANK_LOAD__INIT;
        const Baton__V1__RankLoad *load = w->load ? w->load : &none;
        json_array_append_new(
            list,
            json_pack(
                "{s:s,s:s,s:s,s:o,s:s,s:s,s:I,s:f,s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}}", "worker",
                w->worker_id, "role", role_name(w->role), "state", w->state, "group", group_json(w),
                "transport", w->transport, "rpc", w->control_endpoint, "pid", (json_int_t)w->pid,
                "last_heartbeat_s", w->last_heartbeat_s, "load", "pages_total",
                (json_int_t)load->pages_total, "pages_free", (json_int_t)load->pages_free,
                "pages_reserved", (json_int_t)load->pages_reserved, "pages_ready",
                (json_int_t)load->pages_ready, "pages_quarantined",
                (json_int_t)load->pages_quarantined, "running", (json_int_t)load->running,
                "waiting", (json_int_t)load->waiting, "kv_tokens", (json_int_t)load->kv_tokens));
    }
    return list;
}

static json_t *requests_json(const Baton__V1__StatusResponse *status)
{
    json_t *list = json_array();
    for (size_t i = 0; i < status->n_requests; i++) {
        const Baton__V1__RequestStatus *r = status->requests[i];
        char id[20];
        snprintf(id, sizeof(id), "%016" PRIx64, r->request_id);
        json_array_append_new(
            list, json_pack("{s:s,s:s,s:I,s:I,s:s,s:s,s:f}", "request", id, "state", r->state,
                            "prompt_tokens", (json_int_t)r->prompt_tokens, "generated_tokens",
                            (json_int_t)r->generated_tokens, "prefill", r->prefill_worker, "decode",
                            r->decode_worker, "age_s", r->age_s));
    }
    return list;
}

/* 0: the status is there; otherwise the exit code. */
static int fetch(const char *verb, const struct ctl_target *target,
                 Baton__V1__StatusResponse **ret_status)
{
    struct ctl_connection connection;
    struct bt_error error;
    enum bt_status status = ctl_connection_init(&connection, target, &error);
    if (status != BT_OK)
        return ctl_fail(verb, &error);
    status = ctl_connection_status(&connection, &error, ret_status);
    ctl_connection_finish(&connection);
    if (status == BT_ERR_DEADLINE)
        error.status = BT_ERR_UNAVAILABLE;
    return status == BT_OK ? CTL_EXIT_OK : ctl_fail(verb, &error);
}

int ctl_verb_get(int argc, char **argv)
{
    struct ctl_target target;
    int output, used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENDPOINT_OPTIONS(target),
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    static const char usage[] = "batonctl get [OPTIONS] workers|requests\n\n"
                                "  batonctl get --output json workers";
    int code = ctl_parse(options, usage, argc, argv, &used);
    if (code >= 0)
        return code;
    const char *what = used < argc ? argv[used] : "workers";
    bool workers = strcmp(what, "workers") == 0;
    if ((!workers && strcmp(what, "requests") != 0) || used + 1 < argc) {
        fprintf(stderr,
                "batonctl get: expected 'workers' or 'requests' as the last word, got '%s'\n",
                used + 1 < argc ? argv[used + 1] : what);
        return CTL_EXIT_USAGE;
    }
    Baton__V1__StatusResponse *status;
    code = fetch("get", &target, &status);
    if (code != CTL_EXIT_OK)
        return code;
    if (output == CTL_OUTPUT_JSON)
        code = ctl_print_json(workers ? workers_json(status) : requests_json(status));
    else if (workers)
        print_workers(status);
    else
        print_requests(status);
    baton__v1__status_response__free_unpacked(status, NULL);
    return code;
}

int ctl_verb_status(int argc, char **argv)
{
    struct ctl_target target;
    int output;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENDPOINT_OPTIONS(target),
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    int code = ctl_parse(options, "batonctl status [OPTIONS]", argc, argv, NULL);
    if (code >= 0)
        return code;
    Baton__V1__StatusResponse *status;
    code = fetch("status", &target, &status);
    if (code != CTL_EXIT_OK)
        return code;
    if (output == CTL_OUTPUT_JSON) {
        code = ctl_print_json(json_pack("{s:s,s:s,s:f,s:I,s:I,s:o,s:o}", "model", status->model,
                                        "http", status->http_endpoint, "uptime_s", status->uptime_s,
                                        "queued", (json_int_t)status->queued, "queue_capacity",
                                        (json_int_t)status->queue_capacity, "workers",
                                        workers_json(status), "requests", requests_json(status)));
    } else {
        printf("model %s  http %s  up %.0f s  queued %u of %u  requests %zu\n\n", status->model,
               status->http_endpoint, status->uptime_s, status->queued, status->queue_capacity,
               status->n_requests);
        print_workers(status);
        if (status->n_requests > 0) {
            printf("\n");
            print_requests(status);
        }
    }
    baton__v1__status_response__free_unpacked(status, NULL);
    return code;
}
