/*
 * baton.v1.Registry: workers come, say how they are, and go. Everything a worker says is checked
 * here, field by field, before the core or another worker hears of it.
 */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/service_state.h"

#define MAX_TRANSPORT_ADDRESS_BYTES (64u << 10)
#define MAX_POOL_KEY_BYTES          (64u << 10)

/* ---- checks */

static enum bt_status bad_field(struct bt_error *error, const char *field, const char *what)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %s", field, what);
}

static bool good_id(const char *id)
{
    size_t size = strlen(id);
    if (size == 0 || size >= RT_WORKER_ID_SIZE) {
        return false;
    }
    for (; *id; id++) {
        if (!isalnum((unsigned char)*id) && !strchr("-_.:/", *id)) {
            return false;
        }
    }
    return true;
}

/* Operators are shown it, so it must be text. */
static bool good_endpoint(const char *endpoint)
{
    bool known = strncmp(endpoint, "tcp://", 6) == 0 || strncmp(endpoint, "ipc://", 6) == 0;
    size_t size = 0;
    while (isgraph((unsigned char)endpoint[size])) {
        size++;
    }
    return known && endpoint[size] == '\0' && size < RT_LINK_ENDPOINT_SIZE;
}

static enum bt_status check_group(const Baton__V1__RegisterRequest *request, struct bt_error *error)
{
    const Baton__V1__GroupMember *group = request->group;
    if (!group) {
        return BT_OK;
    }
    if (group->incarnation == 0) {
        return bad_field(error, "group.incarnation", "must not be 0");
    }
    if (!good_id(group->name)) {
        return bad_field(error, "group.name", "must be a worker id");
    }
    if (group->size < 2 || group->size > RT_GROUP_SIZE_MAX) {
        return bad_field(error, "group.size", "must be 2 to 64");
    }
    if (group->rank >= group->size) {
        return bad_field(error, "group.rank", "must be less than group.size");
    }
    if (group->rank > 0 && request->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL) {
        return bad_field(error, "group.rank",
                         "must be 0: only that rank of a prefill group registers");
    }
    if ((group->rank == 0) != (strcmp(group->name, request->worker_id) == 0)) {
        return bad_field(error, "group.name", "must be the worker_id of rank 0");
    }
    return BT_OK;
}

static enum bt_status check_worker(const Baton__V1__RegisterRequest *request,
                                   struct bt_error *error)
{
    if (!good_id(request->worker_id)) {
        return bad_field(error, "worker_id", "must be 1 to 63 of letters, digits and -_.:/");
    }
    if (request->incarnation == 0) {
        return bad_field(error, "incarnation", "must not be 0");
    }
    if (request->role != BATON__V1__WORKER_ROLE__ROLE_PREFILL &&
        request->role != BATON__V1__WORKER_ROLE__ROLE_DECODE) {
        return bad_field(error, "role", "must be prefill or decode");
    }
    if (!good_endpoint(request->control_endpoint)) {
        return bad_field(error, "control_endpoint", "must be tcp://… or ipc://… and not longer");
    }
    if (request->max_model_len == 0) {
        return bad_field(error, "max_model_len", "must not be 0");
    }
    if (request->local_prefill_tokens > 0 && request->role != BATON__V1__WORKER_ROLE__ROLE_DECODE) {
        return bad_field(error, "local_prefill_tokens", "is for decode workers");
    }
    if (!request->process || strlen(request->process->host) >= BT_HOST_ID_SIZE) {
        return bad_field(error, "process", "is missing or its host is too long");
    }
    if (!request->load) {
        return bad_field(error, "load", "is missing");
    }
    return check_group(request, error);
}

static enum bt_status check_kv(const Baton__V1__RegisterRequest *request,
                               const struct bt_fingerprint *fingerprint, struct bt_error *error)
{
    const Baton__V1__KvEndpoint *kv = request->kv;
    if (!kv) {
        return bad_field(error, "kv", "is missing; a decode worker needs it");
    }
    if (strcmp(kv->worker_id, request->worker_id) != 0 || kv->incarnation != request->incarnation) {
        return bad_field(error, "kv", "names another worker or incarnation");
    }
    if (kv->transport_address.len == 0 || kv->transport_address.len > MAX_TRANSPORT_ADDRESS_BYTES ||
        kv->pool_key.len > MAX_POOL_KEY_BYTES) {
        return bad_field(error, "kv", "its transport_address or pool_key is empty or too long");
    }
    if (kv->pool_pages == 0 || request->load->pages_total == 0 ||
        request->load->pages_total > kv->pool_pages) {
        return bad_field(error, "load.pages_total", "must be 1 to kv.pool_pages");
    }
    if (!good_endpoint(kv->control_endpoint)) {
        return bad_field(error, "kv.control_endpoint", "must be tcp://… or ipc://…");
    }
    struct bt_fingerprint of_kv;
    enum bt_status status = bt_fingerprint_from_message(kv->fingerprint, error, &of_kv);
    if (status == BT_OK) {
        status = bt_fingerprint_compare(fingerprint, &of_kv, error);
    }
    if (status != BT_OK) {
        bt_error_prefix(error, "kv.fingerprint");
    }
    return status;
}

/* Against the cluster's, which is that of its first worker. */
static enum bt_status check_fingerprint(const struct rt_service *service,
                                        const struct bt_fingerprint *fingerprint,
                                        struct bt_error *error)
{
    if (!service->has_fingerprint || !rt_service_has_live_worker(service)) {
        return BT_OK;
    }
    return bt_fingerprint_compare(&service->fingerprint, fingerprint, error);
}

static enum bt_status check_registration(const struct rt_service *service,
                                         const Baton__V1__RegisterRequest *request,
                                         struct bt_error *error,
                                         struct bt_fingerprint *ret_fingerprint)
{
    enum bt_status status = check_worker(request, error);
    if (status == BT_OK) {
        status = bt_fingerprint_from_message(request->fingerprint, error, ret_fingerprint);
    }
    if (status == BT_OK && request->role == BATON__V1__WORKER_ROLE__ROLE_DECODE) {
        status = check_kv(request, ret_fingerprint, error);
    }
    if (status == BT_OK) {
        status = check_fingerprint(service, ret_fingerprint, error);
    }
    return status;
}

/* ---- registering */

/* A predecessor with this id that is provably gone makes room: its process is dead, or nobody
 * listens where it did. One that is only silent does not. */
static void retire_predecessor(struct rt_service *service,
                               const Baton__V1__RegisterRequest *request)
{
    struct rt_worker_link *link = NULL;
    while ((link = rt_worker_links_namesake(&service->links, request->worker_id, link))) {
        if (link->incarnation == request->incarnation) {
            continue;
        }
        bool dead = bt_process_probe(&link->process) == BT_PROCESS_DEAD;
        if (dead || link->refused || link->broken) {
            rt_core_worker_lost(service->core, link->ref,
                                dead ? "its process is dead" : "nobody listens at its endpoint",
                                bt_clock_now_ns());
            rt_service_trouble(link);
        }
    }
}

static bool fill_kv(struct rt_worker_link *link, const Baton__V1__KvEndpoint *kv)
{
    size_t size = baton__v1__kv_endpoint__get_packed_size(kv);
    uint8_t *packed = malloc(size + 1);
    if (!packed) {
        return false;
    }
    baton__v1__kv_endpoint__pack(kv, packed);
    Baton__V1__KvEndpoint *copy = baton__v1__kv_endpoint__unpack(NULL, size, packed);
    free(packed);
    if (!copy) {
        return false;
    }
    if (link->kv) {
        baton__v1__kv_endpoint__free_unpacked(link->kv, NULL);
    }
    link->kv = copy;
    return true;
}

static bool fill_link(struct rt_worker_link *link, const Baton__V1__RegisterRequest *request)
{
    if (!rt_worker_links_set_group(&link->service->links, link,
                                   request->group ? request->group->incarnation : 0)) {
        return false;
    }
    link->left = false;
    link->role =
        request->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL ? RT_ROLE_PREFILL : RT_ROLE_DECODE;
    link->max_model_len = request->max_model_len;
    snprintf(link->endpoint, sizeof link->endpoint, "%s", request->control_endpoint);
    rt_transport_copy(request->transport, link->transport);
    snprintf(link->process.host, sizeof link->process.host, "%s", request->process->host);
    link->process.pid = request->process->pid;
    link->process.start_ticks = request->process->start_ticks;
    return link->role == RT_ROLE_PREFILL || fill_kv(link, request->kv);
}

static struct rt_worker_link *link_add(struct rt_service *service, rt_worker_ref ref,
                                       const Baton__V1__RegisterRequest *request)
{
    struct rt_worker_link *link = rt_worker_link_create(service, service->loop, ref);
    if (!link) {
        return NULL;
    }
    snprintf(link->id, sizeof link->id, "%s", request->worker_id);
    link->incarnation = request->incarnation;
    if (!rt_worker_links_add(&service->links, link)) {
        rt_worker_link_destroy(link);
        return NULL;
    }
    rt_worker_prefixes_forget(service->prefixes, ref); /* another's that had this number */
    rt_orphans_forget(service->orphans, ref);
    return link;
}

/* The link of a worker that the core has accepted, opened. */
static enum bt_status link_up(struct rt_service *service, rt_worker_ref ref,
                              const Baton__V1__RegisterRequest *request, struct bt_error *error,
                              struct rt_worker_link **ret_link)
{
    struct rt_worker_link *link = rt_service_link(service, ref);
    if (!link) {
        link = link_add(service, ref, request);
    }
    if (!link) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a worker");
    }
    /* A connection of before it left would not be reported as up again. */
    if (link->client && (link->broken || link->left)) {
        rt_worker_link_close(link);
    }
    if (!fill_link(link, request)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a worker");
    }
    enum bt_status status = BT_OK;
    if (!link->client) {
        status = rt_worker_link_open(link, service->loop, service->incarnation, error);
        if (link->role == RT_ROLE_DECODE && !rt_worker_links_appear(&service->links, link)) {
            bt_log_warn(0, "worker %s: no memory to announce it", link->id);
        }
    }
    if (status == BT_OK) {
        *ret_link = link;
    }
    return status;
}

/* The decode ranks that this worker, if it is a prefill worker, was not told of yet, as many as one
 * message takes. */
static size_t announce(struct rt_service *service, struct rt_worker_link *link,
                       Baton__V1__KvEndpoint *ret_endpoints[RT_ANNOUNCED_AT_ONCE])
{
    return link->role == RT_ROLE_PREFILL
               ? rt_worker_links_announce(&service->links, link, ret_endpoints)
               : 0;
}

static void respond_registered(struct rt_service *service, struct bt_rpc_call *call,
                               struct rt_worker_link *link)
{
    Baton__V1__RegisterResponse response = BATON__V1__REGISTER_RESPONSE__INIT;
    Baton__V1__KvEndpoint *endpoints[RT_ANNOUNCED_AT_ONCE];
    response.heartbeat_ms = service->options.heartbeat_ms;
    link->told = link->told_count = 0;
    response.decode = endpoints;
    response.n_decode = announce(service, link, endpoints);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static enum bt_status register_worker(struct rt_service *service,
                                      const Baton__V1__RegisterRequest *request,
                                      struct bt_error *error, struct rt_worker_link **ret_link)
{
    struct bt_fingerprint fingerprint;
    enum bt_status status = check_registration(service, request, error, &fingerprint);
    if (status != BT_OK) {
        return status;
    }
    retire_predecessor(service, request);
    struct rt_worker_info info = {
        .incarnation = request->incarnation,
        .role = request->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL ? RT_ROLE_PREFILL
                                                                      : RT_ROLE_DECODE,
        .max_model_len = request->max_model_len,
        .local_prefill_tokens = request->local_prefill_tokens,
    };
    snprintf(info.id, sizeof info.id, "%s", request->worker_id);
    if (request->group) {
        info.group.incarnation = request->group->incarnation;
        info.group.rank = request->group->rank;
        info.group.size = request->group->size;
        snprintf(info.group.name, sizeof info.group.name, "%s", request->group->name);
    }
    rt_load_from_message(request->load, &info.load);
    bool first = !service->has_fingerprint || !rt_service_has_live_worker(service);
    rt_worker_ref ref;
    int64_t now_ns = bt_clock_now_ns();
    status = rt_core_worker_register(service->core, &info, now_ns, error, &ref);
    if (status != BT_OK) {
        return status;
    }
    status = link_up(service, ref, request, error, ret_link);
    if (status != BT_OK) {
        rt_core_worker_lost(service->core, ref, "its endpoint can't be connected to", now_ns);
        return status;
    }
    if (first) {
        service->fingerprint = fingerprint;
        service->has_fingerprint = true;
    }
    return BT_OK;
}

static void handle_register(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *message)
{
    struct rt_service *service = context;
    const Baton__V1__RegisterRequest *request = (const Baton__V1__RegisterRequest *)message;
    struct bt_error error = {0};
    struct rt_worker_link *link = NULL;
    enum bt_status status = register_worker(service, request, &error, &link);
    if (status != BT_OK) {
        /* A successor asks until its predecessor is proven gone. */
        bt_log(status == BT_ERR_ALREADY_EXISTS ? BT_LOG_INFO : BT_LOG_WARN, 0,
               "worker '%.64s' is not registered: %s", request->worker_id, error.text);
        rt_service_tell_refused(service, request->worker_id, error.text);
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    char rank[48] = "";
    if (request->group) {
        snprintf(rank, sizeof rank, ", rank %" PRIu32 " of %" PRIu32, request->group->rank,
                 request->group->size);
    }
    bt_log_info(0, "worker %s registered as %s%s at %s, transport %s", link->id,
                link->role == RT_ROLE_PREFILL ? "prefill" : "decode", rank, link->endpoint,
                link->transport);
    respond_registered(service, call, link);
    rt_service_hear_orphans(service, link, request->orphans, request->n_orphans);
}

/* ---- heartbeats and leaving */

static void handle_heartbeat(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *message)
{
    struct rt_service *service = context;
    const Baton__V1__HeartbeatRequest *request = (const Baton__V1__HeartbeatRequest *)message;
    struct rt_worker_link *link =
        rt_worker_links_find(&service->links, request->worker_id, request->incarnation);
    if (!request->load) {
        bt_rpc_call_end(call, BT_ERR_INVALID_ARGUMENT, "load: is missing", NULL);
        return;
    }
    struct rt_load load;
    rt_load_from_message(request->load, &load);
    enum bt_status status = BT_ERR_NOT_FOUND;
    if (link) {
        status = rt_core_worker_heartbeat(service->core, request->worker_id, request->incarnation,
                                          &load, request->draining, bt_clock_now_ns());
    }
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, "not registered here: register again", NULL);
        return;
    }
    Baton__V1__HeartbeatResponse response = BATON__V1__HEARTBEAT_RESPONSE__INIT;
    Baton__V1__KvEndpoint *endpoints[RT_ANNOUNCED_AT_ONCE];
    response.decode = endpoints;
    response.n_decode = announce(service, link, endpoints);
    if (link->role == RT_ROLE_PREFILL) {
        response.prefix_version =
            rt_worker_prefixes_hear(service->prefixes, link->ref, request->prefix);
    }
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    rt_service_hear_orphans(service, link, request->orphans, request->n_orphans);
}

/* A group leaves as one. */
static void leave(struct rt_service *service, struct rt_worker_link *link)
{
    bt_log_info(0, "worker %s leaves", link->id);
    link->left = true;
    struct rt_worker_link *other =
        link->group ? rt_worker_links_group(&service->links, link->group) : NULL;
    for (; other; other = other->same_group) {
        other->left = true;
    }
    rt_core_worker_left(service->core, link->ref, bt_clock_now_ns());
    rt_service_trouble(link);
}

static void handle_deregister(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *message)
{
    struct rt_service *service = context;
    const Baton__V1__DeregisterRequest *request = (const Baton__V1__DeregisterRequest *)message;
    struct rt_worker_link *link =
        rt_worker_links_find(&service->links, request->worker_id, request->incarnation);
    if (link) {
        leave(service, link);
    }
    Baton__V1__DeregisterResponse response = BATON__V1__DEREGISTER_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

const struct bt_rpc_method rt_registry_methods[] = {
    {"baton.v1.Registry/Register", &baton__v1__register_request__descriptor, handle_register},
    {"baton.v1.Registry/Heartbeat", &baton__v1__heartbeat_request__descriptor, handle_heartbeat},
    {"baton.v1.Registry/Deregister", &baton__v1__deregister_request__descriptor, handle_deregister},
    {NULL, NULL, NULL},
};
