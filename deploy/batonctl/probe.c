/* The verb that asks one process how it is, for those that start and end containers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

#include "common/base/clock.h"
#include "common/base/file.h"
#include "deploy/batonctl/connection.h"
#include "proto/worker.pb-c.h"

#define MAX_READY_FILE_BYTES (64u << 10)
#define MAX_ANSWER_BYTES     4096
#define MAX_URL_BYTES        600

enum question { STARTUP, READY, LIVE, QUESTIONS };
static const char *const questions[QUESTIONS] = {"startup", "ready", "live"};

struct probe {
    enum question question;
    const char *worker, *router, *ready_file;
    struct bt_security_values security;
    int64_t timeout_ns;
    int output;
    json_t *file; /* what the ready file says: worker and router point into it */
};

/* ------------------------------------------------------------------ a worker */

static enum bt_status call_worker(const struct probe *probe, struct bt_loop *loop,
                                  struct bt_error *error)
{
    char endpoint[CTL_WORKER_ENDPOINT_SIZE];
    struct bt_rpc_client *client;
    ProtobufCMessage *message = NULL;
    Baton__V1__PreflightRequest request = BATON__V1__PREFLIGHT_REQUEST__INIT;
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Worker/Preflight",
        .request = &request.base,
        .response = &baton__v1__preflight_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + probe->timeout_ns,
    };
    request.brief = true;
    enum bt_status status = ctl_worker_endpoint(loop, probe->worker, error, endpoint);
    if (status == BT_OK)
        status = bt_rpc_client_create(loop, endpoint, error, &client);
    if (status != BT_OK)
        return status;
    status = bt_rpc_client_call_wait(client, &spec, error, &message);
    if (status == BT_OK) {
        const char *not_ready = ((Baton__V1__PreflightResponse *)message)->not_ready;
        if (probe->question == READY && not_ready && not_ready[0])
            status = bt_error_set(error, BT_ERR_UNAVAILABLE, "%s", not_ready);
        protobuf_c_message_free_unpacked(message, NULL);
    }
    bt_rpc_client_destroy(client);
    return status;
}

static enum bt_status probe_worker(const struct probe *probe, struct bt_error *error)
{
    struct bt_loop *loop = bt_loop_create(error);
    if (!loop)
        return error->status;
    enum bt_status status = bt_loop_secure(loop, &probe->security, error);
    if (status == BT_OK)
        status = call_worker(probe, loop, error);
    bt_loop_destroy(loop);
    return status;
}

/* ------------------------------------------------------------------ a router */

struct answer {
    char text[MAX_ANSWER_BYTES];
    size_t size;
};

static size_t on_body(char *data, size_t one, size_t size, void *context)
{
    struct answer *answer = context;
    size_t room = sizeof(answer->text) - 1 - answer->size;
    size_t taken = size * one < room ? size * one : room;
    memcpy(answer->text + answer->size, data, taken);
    answer->size += taken;
    answer->text[answer->size] = '\0';
    return size * one;
}

/* "no decode worker is ready", or the whole answer. */
static void explain(long code, const struct answer *answer, struct bt_error *error)
{
    json_t *root = json_loads(answer->text, 0, NULL);
    const char *reason = json_string_value(json_object_get(root, "reason"));
    bt_error_set(error, BT_ERR_UNAVAILABLE, "HTTP %ld: %.200s", code,
                 reason ? reason : answer->text);
    json_decref(root);
}

static enum bt_status get(CURL *curl, const struct probe *probe, struct bt_error *error)
{
    static struct answer answer;
    char url[MAX_URL_BYTES];
    long code = 0;
    size_t length = strlen(probe->router);
    while (length > 0 && probe->router[length - 1] == '/')
        length--;
    if (length > MAX_URL_BYTES - 16)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--router: name too long");
    snprintf(url, sizeof(url), "%.*s%s", (int)length, probe->router,
             probe->question == READY ? "/ready" : "/health");
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(probe->timeout_ns / BT_NS_PER_MS));
    /* As the kubelet's own: the process next to this one is asked, by an address that its
     * certificate does not name, and told nothing. */
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 0L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 0L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
    CURLcode result = curl_easy_perform(curl);
    if (result != CURLE_OK)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "%s: %s", url, curl_easy_strerror(result));
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &code);
    if (code == 200)
        return BT_OK;
    explain(code, &answer, error);
    return BT_ERR_UNAVAILABLE;
}

static enum bt_status probe_router(const struct probe *probe, struct bt_error *error)
{
    CURL *curl = curl_easy_init();
    if (!curl)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    enum bt_status status = get(curl, probe, error);
    curl_easy_cleanup(curl);
    curl_global_cleanup();
    return status;
}

/* ------------------------------------------------------------------ which */

static bool is_url(const char *text)
{
    return strncmp(text, "http://", 7) == 0 || strncmp(text, "https://", 8) == 0;
}

/* What --ready-file of the process next to us says: a router's has its URL. */
static enum bt_status read_ready_file(struct probe *probe, struct bt_error *error)
{
    char *text;
    size_t size;
    enum bt_status status =
        bt_file_read(probe->ready_file, MAX_READY_FILE_BYTES, error, &text, &size);
    if (status != BT_OK)
        return status;
    probe->file = json_loadb(text, size, JSON_DISABLE_EOF_CHECK, NULL);
    free(text);
    probe->router = json_string_value(json_object_get(probe->file, "http"));
    if (!probe->router)
        probe->worker = json_string_value(json_object_get(probe->file, "rpc"));
    if ((probe->router && !is_url(probe->router)) || (!probe->router && !probe->worker))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: is not what --ready-file writes",
                            probe->ready_file);
    return BT_OK;
}

static enum bt_status run(struct probe *probe, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    if (!probe->worker && !probe->router)
        status = read_ready_file(probe, error);
    if (status == BT_OK)
        status = probe->router ? probe_router(probe, error) : probe_worker(probe, error);
    return status;
}

static int print(const struct probe *probe, enum bt_status status, struct bt_error *error)
{
    bool ok = status == BT_OK;
    if (!ok)
        ctl_text_flatten(error->text);
    if (probe->output == CTL_OUTPUT_JSON) {
        int printed = ctl_print_json(json_pack("{s:s,s:b,s:s}", "probe", questions[probe->question],
                                               "ok", ok, "problem", ok ? "" : error->text));
        return ok ? printed : CTL_EXIT_FAILED;
    }
    if (ok)
        printf("ok\n");
    else
        fprintf(stderr, "batonctl probe: %s\n", error->text);
    return ok ? CTL_EXIT_OK : CTL_EXIT_FAILED;
}

static int refuse(const char *text)
{
    fprintf(stderr, "batonctl probe: %s\n", text);
    return CTL_EXIT_USAGE;
}

int ctl_verb_probe(int argc, char **argv)
{
    struct probe probe = {.question = QUESTIONS};
    const struct bt_option options[] = {
        {"worker", BT_OPTION_STRING, &probe.worker, NULL, 0, 0, NULL, "ENDPOINT",
         "a worker, tcp://HOST:PORT; without #KEY of a secured one, its key is taken to be ours",
         false},
        {"router", BT_OPTION_STRING, &probe.router, NULL, 0, 0, NULL, "URL",
         "a router, http://HOST:PORT or https:// (whose certificate is not looked at)", false},
        {"ready-file", BT_OPTION_STRING, &probe.ready_file, NULL, 0, 0, NULL, "FILE",
         "of neither: what a process's --ready-file says, which is there when it once was ready",
         false},
        BT_SECURITY_OPTIONS(probe.security),
        {"timeout", BT_OPTION_DURATION, &probe.timeout_ns, "2s", 0.001, 60, NULL, NULL,
         "no answer for so long is one", false},
        CTL_OUTPUT_OPTION(probe.output),
        {0},
    };
    int used = argc;
    int code =
        ctl_parse(options,
                  "batonctl probe [OPTIONS] startup|ready|live\n\n"
                  "  batonctl probe --worker tcp://127.0.0.1:5601 ready\n"
                  "  batonctl probe --router http://127.0.0.1:8000 live\n\n"
                  "startup and live: it answers. ready: it takes requests; a worker that no\n"
                  "router knows or that drains does not, and a router without workers.",
                  argc, argv, &used);
    if (code >= 0)
        return code;
    for (int i = 0; used + 1 == argc && i < QUESTIONS; i++)
        if (strcmp(argv[used], questions[i]) == 0)
            probe.question = (enum question)i;
    if (probe.question == QUESTIONS)
        return refuse("one of startup, ready, live is wanted");
    if (probe.worker || (probe.router && !is_url(probe.router)))
        probe.router = NULL; /* BATON_ROUTER of a worker's container is where it registers */
    if (!probe.worker && !probe.router && !probe.ready_file)
        return refuse("--worker, --router http://… or --ready-file is wanted");
    struct bt_error error;
    enum bt_status status = run(&probe, &error);
    code = print(&probe, status, &error);
    json_decref(probe.file);
    return code;
}
