/* The verbs that look once, or at what changes: get and status. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/status_view.h"
#include "deploy/batonctl/verbs.h"

enum output { OUTPUT_TABLE, OUTPUT_JSON, OUTPUT_WIDE };
static const char *const output_names[] = {"table", "json", "wide", NULL};

enum what { WORKERS, REQUESTS, ROUTERS };
static const char *const what_names[] = {"workers", "requests", "routers", NULL};

struct get {
    struct ctl_target target;
    enum what what;
    int output;
    bool watch;
    int64_t interval_ns;
    int interrupt; /* of --watch */
    json_t *seen;  /* id -> what was printed of it last */
};

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

/* ------------------------------------------------------------------ routers */

/* One that does not answer has the reason in place of its status. */
static json_t *router_json(const char *name, const char *rpc, const struct ctl_target *target)
{
    struct ctl_connection connection;
    struct bt_error error;
    Baton__V1__StatusResponse *status = NULL;
    enum bt_status result = ctl_connection_init(&connection, target, &error);
    if (result == BT_OK) {
        result = ctl_connection_status(&connection, &error, &status);
        ctl_connection_finish(&connection);
    }
    if (result != BT_OK) {
        ctl_text_flatten(error.text);
        return json_pack("{s:s,s:s,s:s,s:s}", "router", name, "state", "unreachable", "rpc", rpc,
                         "error", error.text);
    }
    json_t *json =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:f,s:I,s:I,s:I,s:I}", "router", name, "state", "ready",
                  "rpc", rpc, "http", status->http_endpoint, "model", status->model, "uptime_s",
                  ctl_view_number(status->uptime_s), "queued", (json_int_t)status->queued,
                  "queue_capacity", (json_int_t)status->queue_capacity, "requests",
                  (json_int_t)status->n_requests, "workers", (json_int_t)status->n_workers);
    baton__v1__status_response__free_unpacked(status, NULL);
    return json;
}

static enum bt_status routers_json(const struct ctl_target *target, struct bt_error *error,
                                   json_t **ret_list)
{
    static struct ctl_address address;
    enum bt_status status = ctl_target_find(target, error, &address);
    if (status != BT_OK)
        return status;
    *ret_list = json_array();
    if (target->endpoint) {
        json_array_append_new(*ret_list, router_json("-", target->endpoint, target));
        return BT_OK;
    }
    for (uint32_t i = 0; i < address.cluster.router_count; i++) {
        struct ctl_target one = *target;
        one.endpoint = address.cluster.routers[i].rpc;
        one.security = address.security;
        json_array_append_new(*ret_list,
                              router_json(address.cluster.routers[i].id, one.endpoint, &one));
    }
    return BT_OK;
}

static const char *text_of(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text ? text : "-";
}

static void router_row(const json_t *router, bool wide, char ret_row[CTL_ROW_SIZE])
{
    char queue[32] = "-", requests[24] = "-", workers[24] = "-", uptime[32] = "-";
    if (json_object_get(router, "uptime_s")) {
        snprintf(queue, sizeof(queue), "%d/%d",
                 (int)json_integer_value(json_object_get(router, "queued")),
                 (int)json_integer_value(json_object_get(router, "queue_capacity")));
        snprintf(requests, sizeof(requests), "%d",
                 (int)json_integer_value(json_object_get(router, "requests")));
        snprintf(workers, sizeof(workers), "%d",
                 (int)json_integer_value(json_object_get(router, "workers")));
        snprintf(uptime, sizeof(uptime), "%.0fs",
                 json_real_value(json_object_get(router, "uptime_s")));
    }
    int size = snprintf(ret_row, CTL_ROW_SIZE, "%-10s %-11s %-28s %9s %8s %7s %8s",
                        text_of(router, "router"), text_of(router, "state"),
                        text_of(router, "http"), queue, requests, workers, uptime);
    if (wide)
        snprintf(ret_row + size, CTL_ROW_SIZE - (size_t)size, "  %-16s %s",
                 text_of(router, "model"), text_of(router, "rpc"));
}

static void router_head(bool wide, char ret_row[CTL_ROW_SIZE])
{
    int size = snprintf(ret_row, CTL_ROW_SIZE, "%-10s %-11s %-28s %9s %8s %7s %8s", "ROUTER",
                        "STATE", "HTTP", "QUEUE", "REQUESTS", "WORKERS", "UP");
    if (wide)
        snprintf(ret_row + size, CTL_ROW_SIZE - (size_t)size, "  %-16s %s", "MODEL", "RPC");
}

/* ------------------------------------------------------------------ once */

static int get_routers(const struct get *get, json_t **ret_list)
{
    struct bt_error error;
    return routers_json(&get->target, &error, ret_list) == BT_OK ? CTL_EXIT_OK
                                                                 : ctl_fail("get", &error);
}

static int print_routers(const struct get *get)
{
    char row[CTL_ROW_SIZE];
    json_t *list = NULL, *router;
    size_t i;
    int code = get_routers(get, &list);
    if (code != CTL_EXIT_OK || get->output == OUTPUT_JSON)
        return code == CTL_EXIT_OK ? ctl_print_json(list) : code;
    router_head(get->output == OUTPUT_WIDE, row);
    printf("%s\n", row);
    json_array_foreach(list, i, router)
    {
        router_row(router, get->output == OUTPUT_WIDE, row);
        printf("%s\n", row);
    }
    json_decref(list);
    return CTL_EXIT_OK;
}

static int print_once(const struct get *get)
{
    Baton__V1__StatusResponse *status;
    if (get->what == ROUTERS)
        return print_routers(get);
    int code = fetch("get", &get->target, &status);
    if (code != CTL_EXIT_OK)
        return code;
    if (get->output == OUTPUT_JSON)
        code = ctl_print_json(get->what == WORKERS ? ctl_view_workers_json(status)
                                                   : ctl_view_requests_json(status));
    else if (get->what == WORKERS)
        ctl_view_print_workers(status, get->output == OUTPUT_WIDE);
    else
        ctl_view_print_requests(status, get->output == OUTPUT_WIDE);
    baton__v1__status_response__free_unpacked(status, NULL);
    return code;
}

/* ------------------------------------------------------------------ --watch */

/* `object` is printed as `row` where it is not what it was, but for the clocks in it. */
static void print_if_new(struct get *get, const char *id, json_t *object, const char *row)
{
    json_t *still = json_deep_copy(object);
    json_object_del(still, "last_heartbeat_s");
    json_object_del(still, "age_s");
    json_object_del(still, "uptime_s");
    if (!json_equal(json_object_get(get->seen, id), still)) {
        if (get->output == OUTPUT_JSON)
            json_dumpf(object, stdout, JSON_COMPACT);
        else
            fputs(row, stdout);
        fputs("\n", stdout);
    }
    json_object_set_new(get->seen, id, still);
    json_decref(object);
}

static int watch_status(struct get *get)
{
    Baton__V1__StatusResponse *status;
    char row[CTL_ROW_SIZE], id[20];
    int code = fetch("get", &get->target, &status);
    if (code != CTL_EXIT_OK)
        return code;
    bool wide = get->output == OUTPUT_WIDE;
    for (size_t i = 0; get->what == WORKERS && i < status->n_workers; i++) {
        ctl_view_worker_row(status->workers[i], wide, row);
        print_if_new(get, status->workers[i]->worker_id, ctl_view_worker_json(status->workers[i]),
                     row);
    }
    for (size_t i = 0; get->what == REQUESTS && i < status->n_requests; i++) {
        ctl_view_request_row(status->requests[i], wide, row);
        snprintf(id, sizeof(id), "%llx", (unsigned long long)status->requests[i]->request_id);
        print_if_new(get, id, ctl_view_request_json(status->requests[i]), row);
    }
    baton__v1__status_response__free_unpacked(status, NULL);
    return CTL_EXIT_OK;
}

static int watch_routers(struct get *get)
{
    char row[CTL_ROW_SIZE];
    json_t *list = NULL, *router;
    size_t i;
    int code = get_routers(get, &list);
    json_array_foreach(list, i, router)
    {
        router_row(router, get->output == OUTPUT_WIDE, row);
        print_if_new(get, text_of(router, "router"), json_incref(router), row);
    }
    json_decref(list);
    return code;
}

/* A table's head, then a row for each that changed, until a signal. */
static int watch(struct get *get)
{
    char head[CTL_ROW_SIZE];
    struct bt_error error;
    if (ctl_interrupt_hold(&error, &get->interrupt) != BT_OK)
        return ctl_fail("get", &error);
    (get->what == WORKERS    ? ctl_view_worker_head
     : get->what == REQUESTS ? ctl_view_request_head
                             : router_head)(get->output == OUTPUT_WIDE, head);
    if (get->output != OUTPUT_JSON)
        printf("%s\n", head);
    get->seen = json_object();
    int code = CTL_EXIT_OK;
    while (code == CTL_EXIT_OK) {
        code = get->what == ROUTERS ? watch_routers(get) : watch_status(get);
        if (fflush(stdout) != 0)
            code = CTL_EXIT_FAILED;
        struct pollfd interrupt = {.fd = get->interrupt, .events = POLLIN};
        if (code == CTL_EXIT_OK && poll(&interrupt, 1, (int)(get->interval_ns / BT_NS_PER_MS)) > 0)
            break;
    }
    json_decref(get->seen);
    close(get->interrupt);
    return code;
}

/* ------------------------------------------------------------------ the verbs */

int ctl_verb_get(int argc, char **argv)
{
    struct get get = {.what = WORKERS};
    int used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(get.target),
        CTL_ENDPOINT_OPTIONS(get.target),
        {"output", BT_OPTION_CHOICE, &get.output, "table", .choices = output_names,
         .help = "table for people, wide with more columns, json for programs", .letter = 'o'},
        {"watch", BT_OPTION_BOOL, &get.watch, "false", .letter = 'w',
         .help = "go on with what changes, a row each; of JSON a line each"},
        {"interval", BT_OPTION_DURATION, &get.interval_ns, "1s", 0.01, 3600,
         .help = "how often --watch looks"},
        {0},
    };
    static const char usage[] = "batonctl get [OPTIONS] workers|requests|routers\n\n"
                                "  batonctl get --output json workers\n"
                                "  batonctl get -o wide --watch requests";
    int code = ctl_parse(options, usage, argc, argv, &used);
    if (code >= 0)
        return code;
    const char *what = used < argc ? argv[used] : what_names[WORKERS];
    while (what_names[get.what] && strcmp(what, what_names[get.what]) != 0)
        get.what++;
    if (!what_names[get.what] || used + 1 < argc) {
        fprintf(stderr,
                "batonctl get: expected 'workers', 'requests' or 'routers' as the last word, got "
                "'%s'\n",
                used + 1 < argc ? argv[used + 1] : what);
        return CTL_EXIT_USAGE;
    }
    return get.watch ? watch(&get) : print_once(&get);
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
    static const char usage[] = "batonctl status [OPTIONS]\n\n"
                                "  batonctl status --output json";
    int code = ctl_parse(options, usage, argc, argv, NULL);
    if (code >= 0)
        return code;
    Baton__V1__StatusResponse *status;
    code = fetch("status", &target, &status);
    if (code != CTL_EXIT_OK)
        return code;
    if (output == CTL_OUTPUT_JSON) {
        code = ctl_print_json(json_pack(
            "{s:s,s:s,s:f,s:I,s:I,s:o,s:o}", "model", status->model, "http", status->http_endpoint,
            "uptime_s", ctl_view_number(status->uptime_s), "queued", (json_int_t)status->queued,
            "queue_capacity", (json_int_t)status->queue_capacity, "workers",
            ctl_view_workers_json(status), "requests", ctl_view_requests_json(status)));
    } else {
        printf("model %s  http %s  up %.0f s  queued %u of %u  requests %zu\n\n", status->model,
               status->http_endpoint, ctl_view_number(status->uptime_s), status->queued,
               status->queue_capacity, status->n_requests);
        ctl_view_print_workers(status, false);
        if (status->n_requests > 0) {
            printf("\n");
            ctl_view_print_requests(status, false);
        }
    }
    baton__v1__status_response__free_unpacked(status, NULL);
    return code;
}
