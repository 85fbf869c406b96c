/*
 * batonctl trace: where the time of requests went, as Chrome trace JSON, which chrome://tracing and
 * Perfetto open, or in lines. Clocks are those of the processes: what happened on several machines
 * is shifted by what their clocks differ.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/verbs.h"

#define LAST_MAX      1000
#define LANES_MAX     64
#define DEPTH_MAX     32
#define PROCESSES_MAX 4096
#define TRACKS_MAX    256             /* of a request; what comes then is with the last */
#define FAR_NS        (INT64_MAX / 4) /* times are cut to this, so that sums have room */

enum output { OUTPUT_JSON, OUTPUT_TABLE };
static const char *const output_names[] = {"json", "table", NULL};

/* ---- lanes: spans of one row are inside each other or apart, as the viewers want it */

struct lane {
    int64_t open_until_ns[DEPTH_MAX]; /* outermost first */
    uint32_t depth;
};

/* Of one track of one request. */
struct track {
    const char *process, *name;
    struct lane lanes[LANES_MAX];
    uint32_t lane_count;
    int64_t first_row;
};

static int64_t end_of(const Baton__V1__TraceSpan *span)
{
    return span->begin_unix_ns + (int64_t)span->duration_ns;
}

static bool lane_take(struct lane *lane, int64_t begin_ns, int64_t end_ns)
{
    uint32_t depth = lane->depth;
    while (depth > 0 && lane->open_until_ns[depth - 1] <= begin_ns)
        depth--;
    if (depth == DEPTH_MAX || (depth > 0 && end_ns > lane->open_until_ns[depth - 1]))
        return false;
    lane->open_until_ns[depth] = end_ns;
    lane->depth = depth + 1;
    return true;
}

/* Spans come by begin. */
static uint32_t track_lane(struct track *track, const Baton__V1__TraceSpan *span)
{
    uint32_t lane = 0;
    while (lane < track->lane_count &&
           !lane_take(&track->lanes[lane], span->begin_unix_ns, end_of(span)))
        lane++;
    if (lane < track->lane_count)
        return lane;
    if (lane == LANES_MAX)
        return LANES_MAX - 1;
    track->lanes[track->lane_count++] = (struct lane){{end_of(span)}, 1};
    return lane;
}

/* ---- JSON */

struct writer {
    json_t *events;
    const char **processes; /* [PROCESSES_MAX] */
    uint32_t process_count;
    struct track *tracks; /* of the request at hand */
    uint32_t track_count, track_capacity;
    int64_t rows;
    int64_t base_ns; /* of all */
};

static void add_name(struct writer *writer, const char *what, uint32_t process, int64_t row,
                     const char *name)
{
    json_array_append_new(writer->events, json_pack("{s:s,s:s,s:I,s:I,s:{s:s}}", "name", what, "ph",
                                                    "M", "pid", (json_int_t)process, "tid",
                                                    (json_int_t)row, "args", "name", name));
}

/* From 1; they are few, or all are of one cluster. */
static uint32_t process_number(struct writer *writer, const char *name)
{
    for (uint32_t i = 0; i < writer->process_count; i++)
        if (strcmp(writer->processes[i], name) == 0)
            return i + 1;
    if (writer->process_count == PROCESSES_MAX)
        return PROCESSES_MAX;
    writer->processes[writer->process_count++] = name;
    add_name(writer, "process_name", writer->process_count, 0, name);
    return writer->process_count;
}

/* NULL: no memory. */
static struct track *find_track(struct writer *writer, const Baton__V1__TraceSpan *span)
{
    for (uint32_t i = 0; i < writer->track_count; i++) {
        struct track *track = &writer->tracks[i];
        if (strcmp(track->process, span->process) == 0 && strcmp(track->name, span->track) == 0)
            return track;
    }
    if (writer->track_count == TRACKS_MAX)
        return &writer->tracks[TRACKS_MAX - 1];
    if (writer->track_count == writer->track_capacity) {
        uint32_t capacity = writer->track_capacity * 2 + 8;
        struct track *grown = realloc(writer->tracks, capacity * sizeof(*grown));
        if (!grown)
            return NULL;
        writer->tracks = grown;
        writer->track_capacity = capacity;
    }
    struct track *track = &writer->tracks[writer->track_count++];
    memset(track, 0, sizeof(*track));
    track->process = span->process;
    track->name = span->track;
    track->first_row = writer->rows;
    writer->rows += LANES_MAX;
    return track;
}

/* A number where it is one. */
static json_t *value_of(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    if (digits > 0 && digits < 19 && text[digits] == '\0')
        return json_integer(strtoll(text, NULL, 10));
    return json_string(text);
}

static json_t *args_of(const Baton__V1__TraceSpan *span)
{
    json_t *args = json_object();
    for (size_t i = 0; i < span->n_arg; i++) {
        const char *equals = strchr(span->arg[i], '=');
        char name[64];
        if (!equals || (size_t)(equals - span->arg[i]) >= sizeof(name))
            continue;
        snprintf(name, sizeof(name), "%.*s", (int)(equals - span->arg[i]), span->arg[i]);
        json_object_set_new(args, name, value_of(equals + 1));
    }
    return args;
}

static const char *name_of(const Baton__V1__RequestTrace *trace, char number[20])
{
    snprintf(number, 20, "%016" PRIx64, trace->request_id);
    return trace->client_request_id[0] ? trace->client_request_id : number;
}

static bool add_span(struct writer *writer, const Baton__V1__RequestTrace *trace,
                     const Baton__V1__TraceSpan *span)
{
    struct track *track = find_track(writer, span);
    if (!track)
        return false;
    char number[20], row_name[256];
    uint32_t process = process_number(writer, span->process);
    uint32_t lanes_before = track->lane_count;
    int64_t row = track->first_row + track_lane(track, span);
    if (track->lane_count > lanes_before) {
        snprintf(row_name, sizeof(row_name), "%.150s %.60s", name_of(trace, number), span->track);
        add_name(writer, "thread_name", process, row, row_name);
    }
    json_t *args = args_of(span);
    json_object_set_new(args, "request", json_string(name_of(trace, number)));
    json_object_set_new(args, "trace_id", json_string(trace->trace_id));
    json_t *event =
        json_pack("{s:s,s:s,s:s,s:I,s:I,s:f,s:f,s:o}", "name", span->name, "cat", span->track, "ph",
                  "X", "pid", (json_int_t)process, "tid", (json_int_t)row, "ts",
                  (double)(span->begin_unix_ns - writer->base_ns) / 1e3, "dur",
                  (double)span->duration_ns / 1e3, "args", args);
    return event && json_array_append_new(writer->events, event) == 0;
}

static int64_t earliest(const Baton__V1__TraceResponse *traces)
{
    int64_t first_ns = INT64_MAX;
    for (size_t i = 0; i < traces->n_traces; i++)
        for (size_t k = 0; k < traces->traces[i]->n_spans; k++)
            if (traces->traces[i]->spans[k]->begin_unix_ns < first_ns)
                first_ns = traces->traces[i]->spans[k]->begin_unix_ns;
    return first_ns == INT64_MAX ? 0 : first_ns;
}

/* NULL: no memory. */
static json_t *to_json(const Baton__V1__TraceResponse *traces)
{
    struct writer writer = {.events = json_array(),
                            .processes = calloc(PROCESSES_MAX, sizeof(char *)),
                            .rows = 1,
                            .base_ns = earliest(traces)};
    bool written = writer.events && writer.processes;
    for (size_t i = 0; written && i < traces->n_traces; i++) {
        const Baton__V1__RequestTrace *trace = traces->traces[i];
        writer.track_count = 0;
        for (size_t k = 0; written && k < trace->n_spans; k++)
            written = add_span(&writer, trace, trace->spans[k]);
    }
    free(writer.processes);
    free(writer.tracks);
    char base[24];
    snprintf(base, sizeof(base), "%" PRId64, writer.base_ns);
    if (!written) {
        json_decref(writer.events);
        return NULL;
    }
    return json_pack("{s:o,s:s,s:{s:s,s:s}}", "traceEvents", writer.events, "displayTimeUnit", "ms",
                     "otherData", "begin_unix_ns", base, "producer", "batonctl trace");
}

/* ---- lines */

static bool is_detail(const Baton__V1__TraceSpan *span)
{
    return strcmp(span->track, "compute") == 0 || strcmp(span->track, "transfer") == 0 ||
           strcmp(span->track, "output") == 0;
}

static void print_table(FILE *out, const Baton__V1__TraceResponse *traces)
{
    for (size_t i = 0; i < traces->n_traces; i++) {
        const Baton__V1__RequestTrace *trace = traces->traces[i];
        int64_t begin_ns = trace->n_spans > 0 ? trace->spans[0]->begin_unix_ns : 0;
        size_t details = 0;
        char number[20];
        fprintf(out, "%s  trace %s\n", name_of(trace, number), trace->trace_id);
        fprintf(out, "  %12s %12s  %-16s %s\n", "BEGIN ms", "TIME ms", "WHERE", "WHAT");
        for (size_t k = 0; k < trace->n_spans; k++) {
            const Baton__V1__TraceSpan *span = trace->spans[k];
            details += is_detail(span);
            if (is_detail(span))
                continue;
            fprintf(out, "  %12.3f %12.3f  %-16s %s",
                    (double)(span->begin_unix_ns - begin_ns) / 1e6, (double)span->duration_ns / 1e6,
                    span->process, span->name);
            for (size_t a = 0; a < span->n_arg; a++)
                fprintf(out, " %s", span->arg[a]);
            fprintf(out, "\n");
        }
        if (details > 0)
            fprintf(out, "  and %zu spans of layers and steps\n", details);
    }
}

/* ---- the verb */

/* A router is believed no time and no count. */
static void bound(Baton__V1__TraceResponse *traces, uint32_t last)
{
    while (traces->n_traces > last)
        baton__v1__request_trace__free_unpacked(traces->traces[--traces->n_traces], NULL);
    for (size_t i = 0; i < traces->n_traces; i++) {
        for (size_t k = 0; k < traces->traces[i]->n_spans; k++) {
            Baton__V1__TraceSpan *span = traces->traces[i]->spans[k];
            int64_t begin_ns = span->begin_unix_ns;
            span->begin_unix_ns = begin_ns < -FAR_NS  ? -FAR_NS
                                  : begin_ns < FAR_NS ? begin_ns
                                                      : FAR_NS;
            if (span->duration_ns > (uint64_t)FAR_NS)
                span->duration_ns = (uint64_t)FAR_NS;
        }
    }
}

static enum bt_status fetch(const struct ctl_target *target, const char *request, uint32_t last,
                            struct bt_error *error, Baton__V1__TraceResponse **ret_traces)
{
    struct ctl_connection connection;
    enum bt_status status = ctl_connection_init(&connection, target, error);
    if (status != BT_OK)
        return status;
    Baton__V1__TraceRequest message = BATON__V1__TRACE_REQUEST__INIT;
    message.request_id = (char *)request;
    message.last = last;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Router/Trace",
        .request = &message.base,
        .response = &baton__v1__trace_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + connection.timeout_ns,
    };
    ProtobufCMessage *response = NULL;
    status = bt_rpc_client_call_wait(connection.client, &spec, error, &response);
    ctl_connection_finish(&connection);
    if (status == BT_ERR_DEADLINE)
        error->status = BT_ERR_UNAVAILABLE;
    if (status == BT_OK) {
        ctl_message_flatten(response);
        *ret_traces = (Baton__V1__TraceResponse *)response;
        bound(*ret_traces, LAST_MAX);
    }
    return status;
}

static int print(FILE *out, enum output output, const Baton__V1__TraceResponse *traces)
{
    if (output == OUTPUT_TABLE) {
        print_table(out, traces);
        return CTL_EXIT_OK;
    }
    json_t *json = to_json(traces);
    int failed = json ? json_dumpf(json, out, JSON_COMPACT) : -1;
    json_decref(json);
    fprintf(out, "\n");
    return failed ? CTL_EXIT_FAILED : CTL_EXIT_OK;
}

static int write_out(const char *path, enum output output, const Baton__V1__TraceResponse *traces)
{
    if (!path)
        return print(stdout, output, traces);
    FILE *file = fopen(path, "we");
    int code = file ? print(file, output, traces) : CTL_EXIT_FAILED;
    if (file && fclose(file) != 0)
        code = CTL_EXIT_FAILED;
    if (code != CTL_EXIT_OK)
        fprintf(stderr, "batonctl trace: %s: %s\n", path, strerror(errno));
    return code;
}

int ctl_verb_trace(int argc, char **argv)
{
    struct ctl_target target;
    const char *path;
    int64_t last;
    int output, used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENDPOINT_OPTIONS(target),
        {"last", BT_OPTION_INT, &last, "1", .min = 1, .max = LAST_MAX,
         .help = "without REQUEST: so many requests that ended last"},
        {"output", BT_OPTION_CHOICE, &output, "json", .choices = output_names, .letter = 'o',
         .help = "Chrome trace JSON, or lines"},
        {"file", BT_OPTION_STRING, &path, NULL, .metavar = "FILE",
         .help = "where to write instead of to the standard output"},
        {0},
    };
    static const char usage[] =
        "batonctl trace [OPTIONS] [REQUEST]\n\n"
        "  batonctl trace --output table       the last request, in lines\n"
        "  batonctl trace --last 100 --file trace.json\n\n"
        "REQUEST is the client's X-Request-Id, the router's number or a trace id.\n"
        "Open the JSON at https://ui.perfetto.dev or in chrome://tracing.";
    int code = ctl_parse(options, usage, argc, argv, &used);
    if (code >= 0)
        return code;
    if (used + 1 < argc) {
        fprintf(stderr, "batonctl trace: one REQUEST at most, got '%s' too\n", argv[used + 1]);
        return CTL_EXIT_USAGE;
    }
    const char *request = used < argc ? argv[used] : "";
    struct bt_error error;
    Baton__V1__TraceResponse *traces;
    enum bt_status status = fetch(&target, request, (uint32_t)last, &error, &traces);
    if (status != BT_OK)
        return ctl_fail("trace", &error);
    if (traces->n_traces == 0) {
        fprintf(stderr, "batonctl trace: the router remembers no such request\n");
        code = CTL_EXIT_FAILED;
    } else {
        code = write_out(path, (enum output)output, traces);
    }
    baton__v1__trace_response__free_unpacked(traces, NULL);
    return code;
}
