#include "deploy/batonctl/events.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "deploy/batonctl/verbs.h"

#define KEPT_MAX 4096 /* printed without --follow; a router has 1,024 */

struct reading {
    struct bt_loop *loop;
    ctl_event_fn *told;
    void *context;
    uint64_t count, most; /* 0: no limit */
    enum bt_status status;
    char reason[BT_ERROR_TEXT_SIZE];
    bool ended;
};

static void on_data(void *context, const ProtobufCMessage *message)
{
    struct reading *reading = context;
    ctl_message_flatten((ProtobufCMessage *)message);
    if (reading->most == 0 || reading->count++ < reading->most)
        reading->told(reading->context, (const Baton__V1__ClusterEvent *)message);
    else
        bt_loop_stop(reading->loop);
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    (void)response;
    struct reading *reading = context;
    reading->status = status;
    snprintf(reading->reason, sizeof(reading->reason), "%s", text);
    reading->ended = true;
    bt_loop_stop(reading->loop);
}

enum bt_status ctl_connection_events(struct ctl_connection *connection, uint64_t since, bool follow,
                                     ctl_event_fn *told, void *context, struct bt_error *error)
{
    Baton__V1__EventsRequest request = BATON__V1__EVENTS_REQUEST__INIT;
    struct reading reading = {
        .loop = connection->loop, .told = told, .context = context, .most = follow ? 0 : KEPT_MAX};
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Router/Events",
        .request = &request.base,
        .data = &baton__v1__cluster_event__descriptor,
        .deadline_ns = follow ? BT_NEVER_NS : bt_clock_now_ns() + connection->timeout_ns,
        .cancel_wait_ns = BT_NS_PER_MS,
        .on_data = on_data,
        .on_end = on_end,
        .context = &reading,
    };
    struct bt_rpc_pending *pending;
    request.since = since;
    request.follow = follow;
    enum bt_status status = bt_rpc_client_call(connection->client, &spec, error, &pending);
    if (status != BT_OK)
        return status;
    status = bt_loop_run(connection->loop, error);
    bool stopped = !reading.ended;
    if (stopped) {
        bt_rpc_pending_cancel(pending);
        while (status == BT_OK && !reading.ended)
            status = bt_loop_run_once(connection->loop, bt_clock_now_ns() + BT_NS_PER_S, error);
    }
    if (status == BT_OK && stopped)
        status = bt_error_set(error, BT_ERR_CANCELLED, "interrupted");
    else if (status == BT_OK && reading.status != BT_OK)
        status = bt_error_set(error, reading.status, "%s", reading.reason);
    if (status == BT_ERR_DEADLINE)
        status = error->status = BT_ERR_UNAVAILABLE;
    return status;
}

void ctl_time_text(int64_t unix_ns, char ret_text[CTL_TIME_SIZE])
{
    time_t seconds = (time_t)(unix_ns / BT_NS_PER_S);
    struct tm tm;
    size_t size = 0;
    if (unix_ns >= 0 && gmtime_r(&seconds, &tm))
        size = strftime(ret_text, CTL_TIME_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
    if (size > 0)
        snprintf(ret_text + size, CTL_TIME_SIZE - size, ".%03dZ",
                 (int)(unix_ns % BT_NS_PER_S / BT_NS_PER_MS));
    else
        snprintf(ret_text, CTL_TIME_SIZE, "-");
}

void ctl_event_print(const Baton__V1__ClusterEvent *event)
{
    char time[CTL_TIME_SIZE];
    ctl_time_text(event->unix_ns, time);
    printf("%-24s %-18s %-16s %s\n", time, event->kind,
           event->worker_id[0] ? event->worker_id : "-", event->text);
}

json_t *ctl_event_json(const Baton__V1__ClusterEvent *event)
{
    char time[CTL_TIME_SIZE];
    ctl_time_text(event->unix_ns, time);
    return json_pack("{s:I,s:s,s:f,s:s,s:s,s:s}", "number", (json_int_t)event->number, "time", time,
                     "unix_s", (double)event->unix_ns / 1e9, "kind", event->kind, "worker",
                     event->worker_id, "text", event->text);
}

/* ------------------------------------------------------------------ the verb */

struct printing {
    json_t *list; /* NULL: lines */
    bool follow, json;
};

static void print_event(void *context, const Baton__V1__ClusterEvent *event)
{
    struct printing *printing = context;
    if (printing->list) {
        json_array_append_new(printing->list, ctl_event_json(event));
        return;
    }
    if (printing->json) {
        json_t *json = ctl_event_json(event);
        json_dumpf(json, stdout, JSON_COMPACT);
        json_decref(json);
        printf("\n");
    } else {
        ctl_event_print(event);
    }
    if (printing->follow)
        fflush(stdout);
}

static enum bt_status run(const struct ctl_target *target, int64_t since, struct printing *printing,
                          struct bt_error *error)
{
    struct ctl_connection connection;
    enum bt_status status = ctl_connection_init(&connection, target, error);
    if (status != BT_OK)
        return status;
    status = bt_loop_stop_on_signals(connection.loop, error);
    if (status == BT_OK)
        status = ctl_connection_events(&connection, (uint64_t)since, printing->follow, print_event,
                                       printing, error);
    ctl_connection_finish(&connection);
    return status;
}

int ctl_verb_events(int argc, char **argv)
{
    struct ctl_target target;
    struct printing printing = {0};
    int64_t since;
    int output;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENDPOINT_OPTIONS(target),
        {"follow", BT_OPTION_BOOL, &printing.follow, "false", .letter = 'f',
         .help = "go on with those to come; of JSON a line each"},
        {"since", BT_OPTION_INT, &since, "0", .max = 9007199254740992.0,
         .help = "only events with greater numbers"},
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    static const char usage[] = "batonctl events [OPTIONS]\n\n"
                                "  batonctl events --follow\n\n"
                                "What the router has seen happen, the last 1,024: workers that "
                                "come, are ready, drain, fall\nsilent and go, requests that kill "
                                "workers, breakers, keys.";
    int code = ctl_parse(options, usage, argc, argv, NULL);
    if (code >= 0)
        return code;
    printing.json = output == CTL_OUTPUT_JSON;
    printing.list = printing.json && !printing.follow ? json_array() : NULL;
    if (!printing.json)
        printf("%-24s %-18s %-16s %s\n", "TIME", "KIND", "WORKER", "TEXT");
    struct bt_error error;
    enum bt_status status = run(&target, since, &printing, &error);
    bool asked_to_end = status == BT_ERR_CANCELLED && printing.follow;
    if (status != BT_OK && !asked_to_end) {
        json_decref(printing.list);
        return ctl_fail("events", &error);
    }
    return printing.list ? ctl_print_json(printing.list) : CTL_EXIT_OK;
}
