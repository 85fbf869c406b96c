#include "deploy/batonctl/kube_client.h"

#include <ctype.h>
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/verbs.h"

#define PATH_SIZE        1024
#define URL_SIZE         8192
#define QUERY_SIZE       4096
#define FIRST_PAUSE_NS   (100 * BT_NS_PER_MS)
#define MAX_REFUSAL_SIZE 65536 /* of what comes with an error status of a stream */
#define MERGE_PATCH      "Content-Type: application/merge-patch+json"

#define CALL_INFO(name, verb, group, version, resource, subresource, optional)                     \
    {verb, group, version, resource, subresource, optional},
const struct ctl_kube_call_info ctl_kube_calls[CTL_KUBE_CALL_COUNT] = {CTL_KUBE_CALLS(CALL_INFO)};

struct ctl_kube {
    struct ctl_kube_config config;
    CURLM *multi;
    CURL *easy;
    int interrupt_fd;
    bool deaf;
    int64_t timeout_ns;
};

/* One answer as it comes. */
struct answer {
    struct ctl_kube *kube;
    char *bytes; /* with a NUL behind */
    size_t used, size, limit;
    ctl_kube_bytes_fn *fn; /* of a stream that was granted; NULL: all is kept */
    void *context;
    struct bt_error *error;
    enum bt_status failed; /* what ended it on our side */
    uint64_t streamed;
    long code; /* HTTP */
    int64_t pause_ns;
};

struct request {
    enum ctl_kube_call call;
    char url[URL_SIZE];
    char *body; /* NULL: none */
    bool stream;
    int64_t until_ns; /* of a stream */
};

/* ------------------------------------------------------------------ where to */

enum bt_status ctl_kube_path(enum ctl_kube_call call, const char *namespace_, const char *name,
                             struct bt_error *error, char *ret_path, size_t size)
{
    const struct ctl_kube_call_info *info = &ctl_kube_calls[call];
    bool core = !*info->group;
    if (name && !ctl_kube_is_name(name))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "'%.100s' is no name of a kubernetes "
                            "object",
                            name);
    BT_ASSERT(name || !*info->subresource);
    int used =
        snprintf(ret_path, size, "%s%s/%s/namespaces/%s/%s%s%s%s%s", core ? "/api" : "/apis/",
                 info->group, info->version, namespace_, info->resource, name ? "/" : "",
                 name ? name : "", *info->subresource ? "/" : "", info->subresource);
    if (used < 0 || (size_t)used >= size)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "a path of kubernetes is too long");
    return BT_OK;
}

enum bt_status ctl_kube_escape(const char *text, struct bt_error *error, char *ret_text,
                               size_t size)
{
    size_t used = 0;
    for (; *text; text++) {
        bool plain = isalnum((unsigned char)*text) || strchr("-._~", *text);
        if (used + 4 > size)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "a selector is too long");
        used += (size_t)sprintf(ret_text + used, plain ? "%c" : "%%%02X", (unsigned char)*text);
    }
    ret_text[used] = '\0';
    return BT_OK;
}

static enum bt_status request_init(struct ctl_kube *kube, enum ctl_kube_call call, const char *name,
                                   const char *query, struct bt_error *error,
                                   struct request *ret_request)
{
    char path[PATH_SIZE];
    enum bt_status status =
        ctl_kube_path(call, kube->config.namespace_, name, error, path, sizeof(path));
    if (status != BT_OK)
        return status;
    memset(ret_request, 0, sizeof(*ret_request));
    ret_request->call = call;
    int used = snprintf(ret_request->url, URL_SIZE, "%s%s%s%s", kube->config.server, path,
                        query ? "?" : "", query ? query : "");
    if (used < 0 || used >= URL_SIZE)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "a url of kubernetes is too long");
    return BT_OK;
}

/* ------------------------------------------------------------------ one exchange */

static bool keep_bytes(struct answer *answer, const char *bytes, size_t size)
{
    if (size > answer->limit - answer->used) {
        answer->failed = bt_error_set(answer->error, BT_ERR_EXHAUSTED,
                                      "kubernetes sent more than %zu bytes", answer->limit);
        return false;
    }
    if (answer->used + size + 1 > answer->size) {
        size_t wanted = (answer->used + size + 1) * 2;
        char *grown = realloc(answer->bytes, wanted);
        if (!grown) {
            answer->failed = bt_error_set(answer->error, BT_ERR_NO_MEMORY, "out of memory");
            return false;
        }
        answer->bytes = grown;
        answer->size = wanted;
    }
    memcpy(answer->bytes + answer->used, bytes, size);
    answer->used += size;
    answer->bytes[answer->used] = '\0';
    return true;
}

static size_t on_bytes(char *bytes, size_t one, size_t count, void *context)
{
    struct answer *answer = context;
    size_t size = one * count;
    long code = 0;
    curl_easy_getinfo(answer->kube->easy, CURLINFO_RESPONSE_CODE, &code);
    if (!answer->fn || code != 200)
        return keep_bytes(answer, bytes, size) ? size : CURL_WRITEFUNC_ERROR;
    answer->streamed += size;
    answer->failed = answer->fn(answer->context, bytes, size, answer->error);
    return answer->failed == BT_OK ? size : CURL_WRITEFUNC_ERROR;
}

static struct curl_blob blob_of(char *pem)
{
    return (struct curl_blob){pem, pem ? strlen(pem) : 0, CURL_BLOB_NOCOPY};
}

static bool set_tls(struct ctl_kube *kube)
{
    struct ctl_kube_config *config = &kube->config;
    struct curl_blob ca = blob_of(config->ca), certificate = blob_of(config->certificate),
                     key = blob_of(config->key);
    CURLcode bad = CURLE_OK;
    bad |= curl_easy_setopt(kube->easy, CURLOPT_SSL_VERIFYPEER, config->insecure ? 0L : 1L);
    bad |= curl_easy_setopt(kube->easy, CURLOPT_SSL_VERIFYHOST, config->insecure ? 0L : 2L);
    if (config->ca) { /* that one alone, none of the system's */
        bad |= curl_easy_setopt(kube->easy, CURLOPT_CAINFO, NULL);
        bad |= curl_easy_setopt(kube->easy, CURLOPT_CAPATH, NULL);
        bad |= curl_easy_setopt(kube->easy, CURLOPT_CAINFO_BLOB, &ca);
    }
    if (config->certificate) {
        bad |= curl_easy_setopt(kube->easy, CURLOPT_SSLCERT_BLOB, &certificate);
        bad |= curl_easy_setopt(kube->easy, CURLOPT_SSLKEY_BLOB, &key);
    }
    return bad == CURLE_OK;
}

static bool set_method(CURL *easy, const struct request *request)
{
    const char *verb = ctl_kube_calls[request->call].verb;
    const char *method = strcmp(verb, "update") == 0  ? "PUT"
                         : strcmp(verb, "patch") == 0 ? "PATCH"
                                                      : "GET";
    CURLcode bad = curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
    if (request->body) {
        bad |= curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, (long)strlen(request->body));
        bad |= curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request->body);
    }
    bad |= curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
    return bad == CURLE_OK;
}

static struct curl_slist *append(struct curl_slist *list, const char *line)
{
    struct curl_slist *longer = list || line ? curl_slist_append(list, line) : NULL;
    if (!longer)
        curl_slist_free_all(list);
    return longer;
}

/* NULL: no memory. */
static struct curl_slist *headers_of(const struct ctl_kube *kube, const struct request *request)
{
    bool patch = strcmp(ctl_kube_calls[request->call].verb, "patch") == 0;
    struct curl_slist *list = append(NULL, "Accept: application/json, */*;q=0.1");
    if (list)
        list = append(list, "Expect:");
    if (list && request->body)
        list = append(list, patch ? MERGE_PATCH : "Content-Type: application/json");
    if (list && kube->config.token) {
        char *line = NULL;
        if (asprintf(&line, "Authorization: Bearer %s", kube->config.token) < 0) {
            curl_slist_free_all(list);
            return NULL;
        }
        list = append(list, line);
        explicit_bzero(line, strlen(line));
        free(line);
    }
    return list;
}

static bool set_all(struct ctl_kube *kube, const struct request *request, struct answer *answer,
                    const struct curl_slist *headers)
{
    CURL *easy = kube->easy;
    long timeout_ms = (long)(kube->timeout_ns / BT_NS_PER_MS);
    CURLcode bad = CURLE_OK;
    curl_easy_reset(easy);
    bad |= curl_easy_setopt(easy, CURLOPT_URL, request->url);
    bad |= curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    bad |= curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    bad |= curl_easy_setopt(easy, CURLOPT_USERAGENT, "batonctl");
    bad |= curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
    bad |= curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, timeout_ms);
    if (!request->stream)
        bad |= curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, timeout_ms);
    bad |= curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    bad |= curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_bytes);
    bad |= curl_easy_setopt(easy, CURLOPT_WRITEDATA, answer);
    if (kube->config.proxy)
        bad |= curl_easy_setopt(easy, CURLOPT_PROXY, kube->config.proxy);
    return bad == CURLE_OK && set_tls(kube) && set_method(easy, request);
}

static enum bt_status check_interrupt(struct ctl_kube *kube, struct bt_error *error)
{
    return kube->deaf ? BT_OK : ctl_interrupt_check(kube->interrupt_fd, error);
}

/* Until the exchange is over, which is OK, whatever its outcome; or a signal or `until_ns` comes
 * first: CANCELLED, DEADLINE. */
static enum bt_status wait_exchange(struct ctl_kube *kube, int64_t until_ns, struct bt_error *error,
                                    CURLcode *ret_code)
{
    struct curl_waitfd extra = {.fd = kube->interrupt_fd, .events = CURL_WAIT_POLLIN};
    for (;;) {
        int running = 0, left = 0;
        if (curl_multi_perform(kube->multi, &running) != CURLM_OK)
            return bt_error_set(error, BT_ERR_INTERNAL, "libcurl failed");
        for (CURLMsg *message; (message = curl_multi_info_read(kube->multi, &left));)
            if (message->msg == CURLMSG_DONE) {
                *ret_code = message->data.result;
                return BT_OK;
            }
        enum bt_status status = check_interrupt(kube, error);
        if (status != BT_OK)
            return status;
        int64_t left_ns = until_ns == BT_NEVER_NS ? BT_NS_PER_S : until_ns - bt_clock_now_ns();
        if (left_ns <= 0)
            return BT_ERR_DEADLINE;
        if (left_ns > BT_NS_PER_S)
            left_ns = BT_NS_PER_S;
        if (curl_multi_poll(kube->multi, &extra, kube->deaf ? 0 : 1,
                            (int)(left_ns / BT_NS_PER_MS) + 1, NULL) != CURLM_OK)
            return bt_error_set(error, BT_ERR_INTERNAL, "libcurl failed to wait");
    }
}

/* One exchange. `ret_code` is of libcurl where the status is OK. */
static enum bt_status exchange(struct ctl_kube *kube, const struct request *request,
                               struct answer *answer, struct bt_error *error, CURLcode *ret_code)
{
    int64_t until_ns = request->stream ? request->until_ns : BT_NEVER_NS;
    curl_off_t pause_s = 0;
    answer->used = 0;
    answer->code = 0;
    answer->failed = BT_OK;
    struct curl_slist *headers = headers_of(kube, request);
    enum bt_status status = BT_ERR_NO_MEMORY;
    if (!headers || !set_all(kube, request, answer, headers) ||
        curl_multi_add_handle(kube->multi, kube->easy) != CURLM_OK) {
        curl_slist_free_all(headers);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "libcurl takes no request");
    }
    status = wait_exchange(kube, until_ns, error, ret_code);
    curl_easy_getinfo(kube->easy, CURLINFO_RESPONSE_CODE, &answer->code);
    curl_easy_getinfo(kube->easy, CURLINFO_RETRY_AFTER, &pause_s);
    answer->pause_ns = pause_s > CTL_KUBE_MAX_PAUSE_NS / BT_NS_PER_S ? CTL_KUBE_MAX_PAUSE_NS
                                                                     : pause_s * BT_NS_PER_S;
    curl_multi_remove_handle(kube->multi, kube->easy);
    curl_slist_free_all(headers);
    return status == BT_OK ? answer->failed : status;
}

/* ------------------------------------------------------------------ what it means */

/* The message of a Status object, or nothing. */
static void message_of(const struct answer *answer, char ret_text[256])
{
    json_t *root = answer->used ? json_loadb(answer->bytes, answer->used, 0, NULL) : NULL;
    const char *text = json_string_value(json_object_get(root, "message"));
    snprintf(ret_text, 256, "%s", text ? text : "");
    ctl_text_flatten(ret_text);
    json_decref(root);
}

static enum bt_status refuse(const struct ctl_kube *kube, const struct request *request,
                             const struct answer *answer, struct bt_error *error)
{
    const struct ctl_kube_call_info *info = &ctl_kube_calls[request->call];
    const char *slash = *info->subresource ? "/" : "";
    char text[256];
    message_of(answer, text);
    switch (answer->code) {
    case 401:
        return bt_error_set(error, BT_ERR_UNAUTHORISED,
                            "kubernetes does not know who we are (401): the token or certificate "
                            "is missing or over. %s",
                            text);
    case 403:
        return bt_error_set(
            error, BT_ERR_UNAUTHORISED,
            "kubernetes: no right to %s %s%s%s%s%s in namespace %s (403); the role " CTL_KUBE_ROLE
            " of deploy/kubernetes has it. %s",
            info->verb, info->resource, slash, info->subresource, *info->group ? " of " : "",
            info->group, kube->config.namespace_, text);
    case 404:
        return bt_error_set(error, BT_ERR_NOT_FOUND, "kubernetes: %s%s%s: %s", info->resource,
                            slash, info->subresource, *text ? text : "not found (404)");
    case 409:
    case 410:
        return bt_error_set(error, BT_ERR_STALE, "kubernetes: %s: %s", info->resource,
                            *text ? text : "changed in between (409)");
    default:
        return bt_error_set(error,
                            answer->code >= 500 || answer->code == 429 ? BT_ERR_UNAVAILABLE
                                                                       : BT_ERR_PROTOCOL,
                            "kubernetes answered %ld to %s %s%s%s: %s", answer->code, info->verb,
                            info->resource, slash, info->subresource, text);
    }
}

/* What went wrong below HTTP. */
static enum bt_status fail(const struct ctl_kube *kube, CURLcode code, struct bt_error *error)
{
    const char *hint = "";
    if (code == CURLE_PEER_FAILED_VERIFICATION)
        hint = "; its certificate is not of the authority that is known here (--kube-ca-file, "
               "certificate-authority)";
    return bt_error_set(error, BT_ERR_UNAVAILABLE, "kubernetes at %.200s: %s%s",
                        kube->config.server, curl_easy_strerror(code), hint);
}

/* Nothing that a repetition would change. */
static bool is_final(CURLcode code)
{
    return code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_COULDNT_RESOLVE_HOST ||
           code == CURLE_SSL_CONNECT_ERROR || code == CURLE_SSL_CERTPROBLEM ||
           code == CURLE_SSL_CACERT_BADFILE || code == CURLE_URL_MALFORMAT ||
           code == CURLE_OPERATION_TIMEDOUT || code == CURLE_COULDNT_RESOLVE_PROXY;
}

enum bt_status ctl_kube_pause(struct ctl_kube *kube, int64_t span_ns, struct bt_error *error)
{
    int64_t until_ns = bt_clock_now_ns() + span_ns;
    struct curl_waitfd extra = {.fd = kube->interrupt_fd, .events = CURL_WAIT_POLLIN};
    for (;;) {
        enum bt_status status = check_interrupt(kube, error);
        int64_t left_ns = until_ns - bt_clock_now_ns();
        if (status != BT_OK || left_ns <= 0)
            return status;
        curl_multi_poll(kube->multi, &extra, kube->deaf ? 0 : 1, (int)(left_ns / BT_NS_PER_MS) + 1,
                        NULL);
    }
}

/* A new token once, where the one we have is refused. */
static bool has_new_token(struct ctl_kube *kube, bool *used)
{
    if (*used || !kube->config.token_file)
        return false;
    *used = true;
    return ctl_kube_config_read_token(&kube->config, NULL) == BT_OK;
}

/* Until there is an answer of use. */
static enum bt_status attempt(struct ctl_kube *kube, const struct request *request,
                              struct answer *answer, struct bt_error *error)
{
    int64_t pause_ns = FIRST_PAUSE_NS;
    bool token_read = false;
    for (unsigned tries = 1;; tries++) {
        CURLcode code = CURLE_OK;
        enum bt_status status = exchange(kube, request, answer, error, &code);
        if (status != BT_OK)
            return status;
        if (code == CURLE_OK && answer->code == 200)
            return BT_OK;
        if (code == CURLE_OK && answer->code == 401 && has_new_token(kube, &token_read))
            continue;
        status = code == CURLE_OK ? refuse(kube, request, answer, error) : fail(kube, code, error);
        if (request->stream || status != BT_ERR_UNAVAILABLE || is_final(code) ||
            tries == CTL_KUBE_TRIES)
            return status == BT_ERR_UNAVAILABLE && answer->streamed ? BT_ERR_PEER_LOST : status;
        enum bt_status paused =
            ctl_kube_pause(kube, answer->pause_ns ? answer->pause_ns : pause_ns, error);
        if (paused != BT_OK)
            return paused;
        pause_ns *= 2;
    }
}

enum bt_status ctl_kube_do(struct ctl_kube *kube, enum ctl_kube_call call, const char *name,
                           const char *query, const json_t *body, struct bt_error *error,
                           json_t **ret_object)
{
    struct request request;
    struct answer answer = {.kube = kube, .limit = CTL_KUBE_MAX_BODY_BYTES, .error = error};
    enum bt_status status = request_init(kube, call, name, query, error, &request);
    if (status != BT_OK)
        return status;
    if (body && !(request.body = json_dumps(body, JSON_COMPACT)))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    status = attempt(kube, &request, &answer, error);
    if (status == BT_OK) {
        json_error_t where;
        json_t *object = json_loadb(answer.bytes ? answer.bytes : "", answer.used, 0, &where);
        if (json_is_object(object)) {
            *ret_object = object;
        } else {
            json_decref(object);
            status = bt_error_set(error, BT_ERR_PROTOCOL, "%.200s does not speak as kubernetes",
                                  kube->config.server);
        }
    }
    free(request.body);
    free(answer.bytes);
    return status;
}

enum bt_status ctl_kube_stream(struct ctl_kube *kube, enum ctl_kube_call call, const char *name,
                               const char *query, int64_t until_ns, ctl_kube_bytes_fn *fn,
                               void *context, struct bt_error *error)
{
    struct request request;
    struct answer answer = {
        .kube = kube, .limit = MAX_REFUSAL_SIZE, .error = error, .fn = fn, .context = context};
    enum bt_status status = request_init(kube, call, name, query, error, &request);
    if (status != BT_OK)
        return status;
    request.stream = true;
    request.until_ns = until_ns;
    status = attempt(kube, &request, &answer, error);
    free(answer.bytes);
    return status == BT_ERR_DEADLINE ? BT_OK : status;
}

/* ------------------------------------------------------------------ lists */

static enum bt_status page_query(const char *selector, const char *next, struct bt_error *error,
                                 char ret_query[QUERY_SIZE])
{
    char escaped[QUERY_SIZE / 2] = "";
    enum bt_status status = ctl_kube_escape(next, error, escaped, sizeof(escaped));
    if (status != BT_OK)
        return status;
    int used = snprintf(ret_query, QUERY_SIZE, "%s%slimit=%d%s%s", selector, *selector ? "&" : "",
                        CTL_KUBE_PAGE, *next ? "&continue=" : "", escaped);
    if (used < 0 || used >= QUERY_SIZE)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "a selector is too long");
    return BT_OK;
}

/* Puts the page's items behind those that are there. */
static enum bt_status take_page(json_t *page, json_t *items, struct bt_error *error,
                                char *ret_version, size_t version_size, char *ret_next,
                                size_t next_size)
{
    json_t *metadata = json_object_get(page, "metadata"), *more = json_object_get(page, "items");
    const char *version = json_string_value(json_object_get(metadata, "resourceVersion"));
    const char *next = json_string_value(json_object_get(metadata, "continue"));
    if ((more && !json_is_array(more) && !json_is_null(more)) ||
        (version && strlen(version) >= version_size) || (next && strlen(next) >= next_size))
        return bt_error_set(error, BT_ERR_PROTOCOL, "kubernetes sent a list that is none");
    snprintf(ret_version, version_size, "%s", version ? version : "");
    snprintf(ret_next, next_size, "%s", next ? next : "");
    if (json_array_size(items) + json_array_size(more) > CTL_KUBE_MAX_OBJECTS)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "kubernetes: more than %d objects",
                            CTL_KUBE_MAX_OBJECTS);
    if (more && json_is_array(more) && json_array_extend(items, more) != 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    return BT_OK;
}

enum bt_status ctl_kube_list(struct ctl_kube *kube, enum ctl_kube_call call, const char *selector,
                             struct bt_error *error, json_t **ret_items, char *ret_version,
                             size_t version_size)
{
    char query[QUERY_SIZE], next[QUERY_SIZE / 8] = "";
    unsigned restarts = 0, pages = 0;
    json_t *items = json_array(), *page;
    for (;;) {
        enum bt_status status = page_query(selector, next, error, query);
        if (status == BT_OK && ++pages > CTL_KUBE_MAX_OBJECTS / CTL_KUBE_PAGE)
            status = bt_error_set(error, BT_ERR_EXHAUSTED, "kubernetes: a list without end");
        if (status == BT_OK)
            status = ctl_kube_do(kube, call, NULL, query, NULL, error, &page);
        if (status == BT_ERR_STALE && *next && ++restarts < CTL_KUBE_TRIES) {
            json_array_clear(items); /* the list is older than the server remembers */
            *next = '\0';
            continue;
        }
        if (status == BT_OK) {
            status = take_page(page, items, error, ret_version, version_size, next, sizeof(next));
            json_decref(page);
        }
        if (status != BT_OK) {
            json_decref(items);
            return status;
        }
        if (!*next)
            break;
    }
    *ret_items = items;
    return BT_OK;
}

/* ------------------------------------------------------------------ life */

enum bt_status ctl_kube_create(struct ctl_kube_config *config, int interrupt_fd, int64_t timeout_ns,
                               struct bt_error *error, struct ctl_kube **ret_kube)
{
    struct ctl_kube *kube = calloc(1, sizeof(*kube));
    if (kube) {
        kube->config = *config;
        memset(config, 0, sizeof(*config));
        kube->interrupt_fd = interrupt_fd;
        kube->timeout_ns = timeout_ns;
        if (curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK) {
            kube->multi = curl_multi_init();
            kube->easy = curl_easy_init();
        }
        if (kube->multi && kube->easy) {
            *ret_kube = kube;
            return BT_OK;
        }
    }
    ctl_kube_destroy(kube);
    ctl_kube_config_finish(config);
    return bt_error_set(error, BT_ERR_NO_MEMORY, "libcurl did not start");
}

void ctl_kube_destroy(struct ctl_kube *kube)
{
    if (!kube)
        return;
    curl_easy_cleanup(kube->easy);
    curl_multi_cleanup(kube->multi);
    curl_global_cleanup();
    ctl_kube_config_finish(&kube->config);
    free(kube);
}

const char *ctl_kube_namespace(const struct ctl_kube *kube)
{
    return kube->config.namespace_;
}

int64_t ctl_kube_timeout_ns(const struct ctl_kube *kube)
{
    return kube->timeout_ns;
}

int ctl_kube_interrupt_fd(const struct ctl_kube *kube)
{
    return kube->deaf ? -1 : kube->interrupt_fd;
}

void ctl_kube_set_deaf(struct ctl_kube *kube, bool deaf)
{
    kube->deaf = deaf;
}
