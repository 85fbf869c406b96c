/* batonctl describe: of one thing everything that its router, and it itself, say. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/events.h"
#include "deploy/batonctl/stats.h"
#include "deploy/batonctl/status_view.h"
#include "deploy/batonctl/verbs.h"
#include "proto/worker.pb-c.h"

#define EVENTS_SHOWN 10

struct describe {
    struct ctl_target target;
    struct ctl_connection connection;
    Baton__V1__StatusResponse *status;
    json_t *events; /* of the thing, the last ones */
    const char *worker;
};

/* ------------------------------------------------------------------ what is asked */

static void keep_event(void *context, const Baton__V1__ClusterEvent *event)
{
    struct describe *describe = context;
    if (describe->worker && strcmp(event->worker_id, describe->worker) != 0)
        return;
    json_array_append_new(describe->events, ctl_event_json(event));
    if (json_array_size(describe->events) > EVENTS_SHOWN)
        json_array_remove(describe->events, 0);
}

/* NULL: it does not answer. */
static Baton__V1__PreflightResponse *ask_worker(const struct describe *describe,
                                                const char *endpoint)
{
    Baton__V1__PreflightRequest request = BATON__V1__PREFLIGHT_REQUEST__INIT;
    struct bt_rpc_client *client;
    struct bt_error error;
    if (bt_rpc_client_create(describe->connection.loop, endpoint, &error, &client) != BT_OK)
        return NULL;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Worker/Preflight",
        .request = &request.base,
        .response = &baton__v1__preflight_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + describe->connection.timeout_ns,
    };
    ProtobufCMessage *response = NULL;
    if (bt_rpc_client_call_wait(client, &spec, &error, &response) == BT_OK)
        ctl_message_flatten(response);
    bt_rpc_client_destroy(client);
    return (Baton__V1__PreflightResponse *)response;
}

static json_t *fingerprint_json(const Baton__V1__LayoutFingerprint *fingerprint)
{
    if (!fingerprint)
        return json_null();
    char hash[20];
    snprintf(hash, sizeof(hash), "%016" PRIx64, fingerprint->model_hash);
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:I,s:I,s:I,s:I}", "model", fingerprint->model_name,
                     "model_hash", hash, "layout_version", (json_int_t)fingerprint->layout_version,
                     "kv_dtype", fingerprint->kv_dtype, "arithmetic", fingerprint->arithmetic,
                     "page_tokens", (json_int_t)fingerprint->page_tokens, "layers",
                     (json_int_t)fingerprint->layer_count, "kv_lora_rank",
                     (json_int_t)fingerprint->kv_lora_rank, "qk_rope_head_dim",
                     (json_int_t)fingerprint->qk_rope_head_dim);
}

/* ------------------------------------------------------------------ a worker */

static void add_own_words(const struct describe *describe, const Baton__V1__WorkerStatus *worker,
                          json_t *json)
{
    bool gone = strcmp(worker->state, "lost") == 0 || !worker->control_endpoint[0];
    Baton__V1__PreflightResponse *own =
        gone ? NULL : ask_worker(describe, worker->control_endpoint);
    json_object_set_new(json, "answers", json_boolean(own != NULL));
    if (!own)
        return;
    json_object_set_new(json, "fingerprint", fingerprint_json(own->fingerprint));
    json_object_set_new(json, "offers", json_string(own->transport));
    json_object_set_new(json, "not_ready", json_string(own->not_ready));
    json_object_set_new(json, "host", json_string(own->process ? own->process->host : ""));
    json_object_set_new(json, "shm_bytes", json_integer((json_int_t)own->shm_bytes));
    json_object_set_new(json, "shm_free_bytes", json_integer((json_int_t)own->shm_free_bytes));
    baton__v1__preflight_response__free_unpacked(own, NULL);
}

/* NULL: there is no such worker. */
static json_t *describe_worker(struct describe *describe, const char *name)
{
    const Baton__V1__StatusResponse *status = describe->status;
    const Baton__V1__WorkerStatus *worker = NULL;
    json_t *requests = json_array(), *mates = json_array();
    for (size_t i = 0; i < status->n_workers && !worker; i++)
        if (strcmp(status->workers[i]->worker_id, name) == 0)
            worker = status->workers[i];
    for (size_t i = 0; worker && i < status->n_requests; i++)
        if (strcmp(status->requests[i]->prefill_worker, name) == 0 ||
            strcmp(status->requests[i]->decode_worker, name) == 0)
            json_array_append_new(requests, ctl_view_request_json(status->requests[i]));
    for (size_t i = 0; worker && worker->group && i < status->n_workers; i++) {
        const Baton__V1__WorkerStatus *other = status->workers[i];
        if (other != worker && other->group &&
            other->group->incarnation == worker->group->incarnation)
            json_array_append_new(mates, json_string(other->worker_id));
    }
    json_t *json = worker ? ctl_view_worker_json(worker) : NULL;
    if (json) {
        char incarnation[20];
        snprintf(incarnation, sizeof(incarnation), "%016" PRIx64, worker->incarnation);
        json_object_set_new(json, "incarnation", json_string(incarnation));
        add_own_words(describe, worker, json);
    }
    json_object_set(json, "mates", mates);
    json_object_set(json, "requests", requests);
    json_object_set(json, "events", describe->events);
    json_decref(mates);
    json_decref(requests);
    return json;
}

/* ------------------------------------------------------------------ a request, the cluster */

static json_t *find_worker_state(const struct describe *describe, const char *name)
{
    for (size_t i = 0; i < describe->status->n_workers; i++)
        if (strcmp(describe->status->workers[i]->worker_id, name) == 0)
            return json_string(describe->status->workers[i]->state);
    return json_null();
}

static json_t *describe_request(struct describe *describe, const char *name)
{
    char id[20];
    for (size_t i = 0; i < describe->status->n_requests; i++) {
        const Baton__V1__RequestStatus *request = describe->status->requests[i];
        snprintf(id, sizeof(id), "%016" PRIx64, request->request_id);
        if (strcmp(id, name) != 0)
            continue;
        json_t *json = ctl_view_request_json(request);
        json_object_set_new(json, "prefill_state",
                            find_worker_state(describe, request->prefill_worker));
        json_object_set_new(json, "decode_state",
                            find_worker_state(describe, request->decode_worker));
        return json;
    }
    return NULL;
}

static json_t *quantiles_json(const Baton__V1__Quantiles *quantiles)
{
    return json_pack("{s:I,s:f,s:f,s:f}", "count", (json_int_t)quantiles->count, "p50_s",
                     quantiles->p50_s, "p90_s", quantiles->p90_s, "p99_s", quantiles->p99_s);
}

static json_t *describe_cluster(struct describe *describe)
{
    const Baton__V1__StatusResponse *status = describe->status;
    Baton__V1__StatsResponse *stats = NULL;
    struct bt_error error;
    json_t *json =
        json_pack("{s:s,s:s,s:f,s:I,s:I,s:o,s:o,s:O}", "model", status->model, "http",
                  status->http_endpoint, "uptime_s", ctl_view_number(status->uptime_s), "queued",
                  (json_int_t)status->queued, "queue_capacity", (json_int_t)status->queue_capacity,
                  "workers", ctl_view_workers_json(status), "requests",
                  ctl_view_requests_json(status), "events", describe->events);
    if (ctl_connection_stats(&describe->connection, 0, &error, &stats) != BT_OK)
        return json;
    json_object_set_new(json, "last_minute",
                        json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:o,s:o}", "requests_s",
                                  stats->requests_s, "failed_s", stats->failed_s, "shed_s",
                                  stats->shed_s, "prompt_tokens_s", stats->prompt_tokens_s,
                                  "generated_tokens_s", stats->generated_tokens_s, "kv_bytes_s",
                                  stats->kv_bytes_s, "ttft", quantiles_json(stats->ttft), "tpot",
                                  quantiles_json(stats->tpot)));
    baton__v1__stats_response__free_unpacked(stats, NULL);
    return json;
}

/* ------------------------------------------------------------------ as text */

static void print_scalar(const json_t *value)
{
    if (json_is_string(value))
        printf("%s", json_string_length(value) > 0 ? json_string_value(value) : "-");
    else if (json_is_integer(value))
        printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        printf("%.6g", json_real_value(value));
    else
        printf("%s", json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "-");
}

static void print_list(const json_t *list, int indent);

/* "Name:   value" in lines, what is in it further in. */
static void print_object(const json_t *object, int indent)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        if (json_is_object(value)) {
            printf("%*s%s:\n", indent, "", key);
            print_object(value, indent + 2);
        } else if (json_is_array(value)) {
            printf("%*s%s:%s\n", indent, "", key, json_array_size(value) > 0 ? "" : " none");
            print_list(value, indent + 2);
        } else {
            int width = 22 - indent - (int)strlen(key);
            printf("%*s%s:%*s", indent, "", key, width > 1 ? width : 1, "");
            print_scalar(value);
            printf("\n");
        }
    }
}

static void print_list(const json_t *list, int indent)
{
    size_t i;
    json_t *item, *value;
    const char *key;
    json_array_foreach((json_t *)list, i, item)
    {
        printf("%*s", indent, "");
        if (!json_is_object(item)) {
            print_scalar(item);
        } else if (json_object_get(item, "kind")) {
            printf("%-24s %-18s %-16s %s", json_string_value(json_object_get(item, "time")),
                   json_string_value(json_object_get(item, "kind")),
                   json_string_value(json_object_get(item, "worker")),
                   json_string_value(json_object_get(item, "text")));
        } else {
            json_object_foreach(item, key, value)
            {
                if (json_is_object(value) || json_is_array(value))
                    continue;
                printf("%s=", key);
                print_scalar(value);
                printf(" ");
            }
        }
        printf("\n");
    }
}

/* ------------------------------------------------------------------ the verb */

static enum bt_status ask(struct describe *describe, const char *kind, const char *name,
                          struct bt_error *error, json_t **ret_json)
{
    enum bt_status status = ctl_connection_status(&describe->connection, error, &describe->status);
    if (status == BT_ERR_DEADLINE)
        status = error->status = BT_ERR_UNAVAILABLE;
    if (status != BT_OK)
        return status;
    describe->worker = kind[0] == 'w' ? name : NULL;
    struct bt_error without;
    if (kind[0] != 'r') /* a router that has none of them is described all the same */
        ctl_connection_events(&describe->connection, 0, false, keep_event, describe, &without);
    *ret_json = kind[0] == 'w'   ? describe_worker(describe, name)
                : kind[0] == 'r' ? describe_request(describe, name)
                                 : describe_cluster(describe);
    baton__v1__status_response__free_unpacked(describe->status, NULL);
    if (!*ret_json)
        return bt_error_set(error, BT_ERR_INTERNAL, "the router knows no %s '%.200s'", kind, name);
    return BT_OK;
}

static bool is_asked_well(int argc, char **argv, int used)
{
    bool cluster = used < argc && strcmp(argv[used], "cluster") == 0;
    if (cluster && used + 1 == argc)
        return true;
    if (!cluster && used + 2 == argc &&
        (strcmp(argv[used], "worker") == 0 || strcmp(argv[used], "request") == 0))
        return true;
    fprintf(stderr,
            "batonctl describe: expected 'worker NAME', 'request NUMBER' or 'cluster' after the "
            "options\n");
    return false;
}

int ctl_verb_describe(int argc, char **argv)
{
    static struct describe describe;
    int output, used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(describe.target),
        CTL_ENDPOINT_OPTIONS(describe.target),
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    static const char usage[] = "batonctl describe [OPTIONS] worker NAME|request NUMBER|cluster\n\n"
                                "  batonctl describe worker decode-0\n"
                                "  batonctl describe cluster\n\n"
                                "Group, load, transport, fingerprint, what runs on it, and what "
                                "happened to it last.";
    int code = ctl_parse(options, usage, argc, argv, &used);
    if (code >= 0)
        return code;
    if (!is_asked_well(argc, argv, used))
        return CTL_EXIT_USAGE;
    struct bt_error error;
    json_t *json = NULL;
    enum bt_status status = ctl_connection_init(&describe.connection, &describe.target, &error);
    if (status == BT_OK) {
        describe.events = json_array();
        status = ask(&describe, argv[used], used + 1 < argc ? argv[used + 1] : "", &error, &json);
        json_decref(describe.events);
        ctl_connection_finish(&describe.connection);
    }
    if (status != BT_OK)
        return ctl_fail("describe", &error);
    if (output == CTL_OUTPUT_JSON)
        return ctl_print_json(json);
    print_object(json, 0);
    json_decref(json);
    return CTL_EXIT_OK;
}
