#include "common/messaging/registration.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/messaging/router_names.h"
#include "common/messaging/rpc.h"
#include "common/messaging/security.h"

#define CALL_TIMEOUT_NS       (5 * BT_NS_PER_S)
#define DEREGISTER_TIMEOUT_NS BT_NS_PER_S
#define MIN_RETRY_NS          (100 * BT_NS_PER_MS)
#define MAX_RETRY_NS          (2 * BT_NS_PER_S)
#define MIN_HEARTBEAT_MS      50
#define MAX_HEARTBEAT_MS      60000
#define NAME_INTERVAL_NS      (5 * BT_NS_PER_S)

enum router_state { ROUTER_UNKNOWN, ROUTER_REGISTERED, ROUTER_REFUSED, ROUTER_GONE };

/* Routers that come and go: all that a name stands for. */
struct name {
    struct bt_registration *registration;
    struct bt_router_names *names;
    char *host;
    char *behind; /* ":PORT", ":PORT#KEY" */
    bool complained;
};

struct router {
    struct bt_registration *registration;
    char *endpoint;          /* NULL: this place is free */
    const struct name *name; /* NULL: it was named by its address */
    bool unlisted;           /* its name stands for it no more: forgotten when it does not answer */
    struct bt_rpc_client *client;
    struct bt_loop_source *timer; /* the next Register or Heartbeat */
    enum router_state state;
    bool calling;     /* a Register or Heartbeat is out */
    bool complained;  /* that it is unreachable, since it was last reached */
    bool hurry;       /* another heartbeat right after the one that is out */
    int64_t retry_ns; /* wait after the next failure */
    int64_t heartbeat_ns;
    uint64_t sequence;
    uint64_t prefix_version; /* that the router says it has */
    uint64_t prefix_sent; /* that it has with the heartbeat that is out, if more is to come; or 0 */
};

struct bt_registration {
    const Baton__V1__RegisterRequest *identity;
    struct bt_registration_events events;
    struct bt_loop *loop;
    struct router routers[BT_REGISTRATION_MAX_ROUTERS];
    struct name names[BT_REGISTRATION_MAX_ROUTERS];
    size_t name_count;
    bool crowded; /* and it was told: names stand for more routers than there are places */
    bool leaving;
};

/* NULL: that was the last one. From NULL: the first. */
static struct router *next_router(struct bt_registration *registration, struct router *router)
{
    struct router *end = registration->routers + BT_REGISTRATION_MAX_ROUTERS;
    router = router ? router + 1 : registration->routers;
    while (router < end && !router->endpoint) {
        router++;
    }
    return router < end ? router : NULL;
}

static void tell_decode_ranks(struct bt_registration *registration, Baton__V1__KvEndpoint **ranks,
                              size_t rank_count)
{
    if (rank_count > BT_REGISTRATION_MAX_RANKS) {
        bt_log_warn(0, "a router names %zu decode ranks at once: the first %d are heard of",
                    rank_count, BT_REGISTRATION_MAX_RANKS);
        rank_count = BT_REGISTRATION_MAX_RANKS;
    }
    if (registration->events.decode_ranks && rank_count > 0) {
        registration->events.decode_ranks(registration->events.context, ranks, rank_count);
    }
}

static void router_wait(struct router *router, int64_t delay_ns)
{
    if (!router->registration->leaving) {
        bt_loop_timer_set(router->timer, bt_clock_now_ns() + delay_ns);
    }
}

/* An unreachable router is worth one line, not one a second. */
static void router_failed(struct router *router, const char *what, enum bt_status status,
                          const char *text)
{
    if (!router->complained && !router->registration->leaving) {
        router->complained = true;
        bt_log_warn(0, "router %s: %s: %s (%s); trying again", router->endpoint, what,
                    text[0] ? text : "no answer", bt_status_name(status));
    }
    router_wait(router, router->retry_ns);
    router->retry_ns = router->retry_ns * 2 < MAX_RETRY_NS ? router->retry_ns * 2 : MAX_RETRY_NS;
}

static void router_reached(struct router *router)
{
    router->complained = false;
    router->retry_ns = MIN_RETRY_NS;
}

static int64_t heartbeat_interval_ns(uint32_t heartbeat_ms)
{
    uint32_t ms = heartbeat_ms < MIN_HEARTBEAT_MS ? MIN_HEARTBEAT_MS : heartbeat_ms;
    return (ms > MAX_HEARTBEAT_MS ? MAX_HEARTBEAT_MS : ms) * BT_NS_PER_MS;
}

static void router_refused(struct router *router, enum bt_status status, const char *text)
{
    struct bt_registration *registration = router->registration;
    router->state = ROUTER_REFUSED;
    char line[BT_ERROR_TEXT_SIZE];
    snprintf(line, sizeof(line), "router %s refuses this worker: %s", router->endpoint, text);
    registration->events.refused(registration->events.context, status, line);
}

static void on_registered(void *context, enum bt_status status, const char *text,
                          const ProtobufCMessage *message)
{
    struct router *router = context;
    struct bt_registration *registration = router->registration;
    router->calling = false;
    if (registration->leaving) {
        return;
    }
    if (status == BT_ERR_MISMATCH || status == BT_ERR_INVALID_ARGUMENT) {
        router_refused(router, status, text);
        return;
    }
    if (status != BT_OK || !message) {
        router_failed(router, "register", status, text);
        return;
    }
    const Baton__V1__RegisterResponse *response = (const Baton__V1__RegisterResponse *)message;
    router_reached(router);
    router->state = ROUTER_REGISTERED;
    router->prefix_version = 0;
    router->heartbeat_ns = heartbeat_interval_ns(response->heartbeat_ms);
    router_wait(router, router->hurry ? 0 : router->heartbeat_ns);
    bt_log_info(0, "registered with router %s", router->endpoint);
    tell_decode_ranks(registration, response->decode, response->n_decode);
    registration->events.registered(registration->events.context);
}

static void on_heartbeat(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *message)
{
    struct router *router = context;
    router->calling = false;
    if (router->registration->leaving) {
        return;
    }
    if (status == BT_ERR_NOT_FOUND) {
        bt_log_info(0, "router %s does not know this worker: registering again", router->endpoint);
        router->state = ROUTER_UNKNOWN;
        router_wait(router, 0);
        return;
    }
    if (status != BT_OK || !message) {
        /* The answer may have named decode ranks, which it would not name again: a Register is
         * answered with all of them. */
        router->state = ROUTER_UNKNOWN;
        router_failed(router, "heartbeat", status, text);
        return;
    }
    const Baton__V1__HeartbeatResponse *response = (const Baton__V1__HeartbeatResponse *)message;
    router_reached(router);
    router->prefix_version = response->prefix_version;
    bool more = router->prefix_sent != 0 && router->prefix_version == router->prefix_sent;
    router_wait(router, router->hurry || more ? 0 : router->heartbeat_ns);
    tell_decode_ranks(router->registration, response->decode, response->n_decode);
}

static enum bt_status router_call(struct router *router, const char *method,
                                  const ProtobufCMessage *request,
                                  const ProtobufCMessageDescriptor *response, int64_t timeout_ns,
                                  bt_rpc_end_fn *on_end)
{
    struct bt_error error;
    const struct bt_rpc_call_spec spec = {
        .method = method,
        .request = request,
        .response = response,
        .deadline_ns = bt_clock_now_ns() + timeout_ns,
        .on_end = on_end,
        .context = router,
    };
    enum bt_status status = bt_rpc_client_call(router->client, &spec, &error, NULL);
    router->calling = status == BT_OK;
    if (status != BT_OK) {
        router_failed(router, method, status, error.text);
    }
    return status;
}

static size_t orphans(const struct bt_registration *registration, Baton__V1__Orphan ***ret_orphans)
{
    const struct bt_registration_events *events = &registration->events;
    return events->orphans ? events->orphans(events->context, ret_orphans) : 0;
}

static void router_register(struct router *router)
{
    struct bt_registration *registration = router->registration;
    Baton__V1__RegisterRequest request = *registration->identity;
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    bool draining = false;
    registration->events.load(registration->events.context, &load, &draining);
    request.load = &load;
    request.n_orphans = orphans(registration, &request.orphans);
    router->hurry |= draining; /* which only a heartbeat can say */
    router_call(router, "baton.v1.Registry/Register", &request.base,
                &baton__v1__register_response__descriptor, CALL_TIMEOUT_NS, on_registered);
}

/* False: there is nothing to tell. */
static bool router_prefixes(struct router *router, Baton__V1__PrefixSummary *summary)
{
    const struct bt_registration_events *events = &router->registration->events;
    bool more = false;
    bool any = events->prefixes &&
               events->prefixes(events->context, router->prefix_version, summary, &more);
    router->prefix_sent = any && more ? summary->version : 0;
    return any;
}

static void router_heartbeat(struct router *router)
{
    struct bt_registration *registration = router->registration;
    Baton__V1__HeartbeatRequest request = BATON__V1__HEARTBEAT_REQUEST__INIT;
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    bool draining = false;
    registration->events.load(registration->events.context, &load, &draining);
    request.worker_id = registration->identity->worker_id;
    request.incarnation = registration->identity->incarnation;
    request.load = &load;
    request.draining = draining;
    request.n_orphans = orphans(registration, &request.orphans);
    request.sequence = ++router->sequence;
    Baton__V1__PrefixSummary prefix = BATON__V1__PREFIX_SUMMARY__INIT;
    request.prefix = router_prefixes(router, &prefix) ? &prefix : NULL;
    router->hurry = false;
    router_call(router, "baton.v1.Registry/Heartbeat", &request.base,
                &baton__v1__heartbeat_response__descriptor, CALL_TIMEOUT_NS, on_heartbeat);
}

static void router_finish(struct router *router)
{
    bt_loop_remove(router->timer);
    bt_rpc_client_destroy(router->client);
    free(router->endpoint);
    *router = (struct router){.endpoint = NULL};
}

/* One call at a time: a router that is slow is not asked faster than it answers. */
static void router_fire(void *context)
{
    struct router *router = context;
    if (router->calling || router->registration->leaving) {
        return;
    }
    if (router->unlisted && router->state != ROUTER_REGISTERED) {
        bt_log_info(0, "router %s is gone", router->endpoint);
        router_finish(router);
    } else if (router->state == ROUTER_REGISTERED) {
        router_heartbeat(router);
    } else if (router->state == ROUTER_UNKNOWN) {
        router_register(router);
    }
}

static enum bt_status router_init(struct router *router, struct bt_registration *registration,
                                  const char *endpoint, size_t length, struct bt_error *error)
{
    *router = (struct router){.registration = registration, .retry_ns = MIN_RETRY_NS};
    router->endpoint = strndup(endpoint, length);
    if (!router->endpoint) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "registration: no memory");
    }
    enum bt_status status =
        bt_rpc_client_create(registration->loop, router->endpoint, error, &router->client);
    if (status != BT_OK) {
        bt_error_prefix(error, "router %s", router->endpoint);
        goto err_router;
    }
    router->timer = bt_loop_add_timer(registration->loop, bt_clock_now_ns(), router_fire, router);
    if (!router->timer) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "registration: no memory");
        goto err_router;
    }
    return BT_OK;

err_router:
    router_finish(router);
    return status;
}

static struct router *free_place(struct bt_registration *registration)
{
    for (size_t i = 0; i < BT_REGISTRATION_MAX_ROUTERS; i++) {
        if (!registration->routers[i].endpoint) {
            return &registration->routers[i];
        }
    }
    return NULL;
}

/* ------------------------------------------------------------------ names */

static struct router *find_router(struct bt_registration *registration, const char *endpoint)
{
    for (struct router *r = next_router(registration, NULL); r; r = next_router(registration, r)) {
        if (strcmp(r->endpoint, endpoint) == 0) {
            return r;
        }
    }
    return NULL;
}

/* One that `name` stands for, known already or not. */
static void name_router(struct name *name, const char *address)
{
    struct bt_registration *registration = name->registration;
    char endpoint[sizeof "tcp://" + BT_ROUTER_ADDRESS_SIZE + BT_ENDPOINT_SIZE + BT_KEY_HEX_SIZE];
    snprintf(endpoint, sizeof endpoint, "tcp://%s%s", address, name->behind);
    struct router *router = find_router(registration, endpoint);
    if (router) {
        router->unlisted = false;
        return;
    }
    router = free_place(registration);
    if (!router) {
        if (!registration->crowded) {
            bt_log_warn(0, "%s: more than %d routers; the others are left out", name->host,
                        BT_REGISTRATION_MAX_ROUTERS);
        }
        registration->crowded = true;
        return;
    }
    struct bt_error error;
    if (router_init(router, registration, endpoint, strlen(endpoint), &error) != BT_OK) {
        bt_log_warn(0, "%s: %s", name->host, error.text);
        return;
    }
    router->name = name;
}

static void on_answer(void *context, const struct bt_router_answer *answer)
{
    struct name *name = context;
    struct bt_registration *registration = name->registration;
    if (answer->count == 0) {
        if (!name->complained) {
            bt_log_warn(0, "routers: %s; trying again", answer->problem);
        }
        name->complained = true;
        return;
    }
    name->complained = false;
    for (struct router *r = next_router(registration, NULL); r; r = next_router(registration, r)) {
        r->unlisted |= r->name == name;
    }
    for (size_t i = 0; i < answer->count; i++) {
        name_router(name, answer->addresses[i]);
    }
}

/* "dns+tcp://HOST:PORT" or with "#KEY", of `length`. */
static enum bt_status name_init(struct bt_registration *registration, const char *endpoint,
                                size_t length, struct bt_error *error)
{
    struct name *name = &registration->names[registration->name_count];
    const char *host = endpoint + strlen(BT_ROUTER_NAME_SCHEME);
    const char *end = endpoint + length, *colon = memchr(host, ':', (size_t)(end - host));
    struct bt_key key;
    char address[BT_ENDPOINT_SIZE];
    bool has_key;
    if (!colon || colon == host || colon + 1 == end || colon - host >= BT_ROUTER_HOST_NAME_SIZE ||
        !isdigit((unsigned char)colon[1]) ||
        strspn(colon + 1, "0123456789") != strcspn(colon + 1, "#,")) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "router %.*s: is not " BT_ROUTER_NAME_SCHEME "HOST:PORT", (int)length,
                            endpoint);
    }
    name->registration = registration;
    name->host = strndup(host, (size_t)(colon - host));
    name->behind = strndup(colon, (size_t)(end - colon));
    registration->name_count++;
    if (!name->host || !name->behind) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "registration: no memory");
    }
    enum bt_status status = bt_endpoint_split(name->behind, error, address, &has_key, &key);
    if (status == BT_OK && has_key != (bt_loop_public_key(registration->loop) != NULL)) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              has_key ? "a key without --curve-secret-file"
                                      : "without the routers' key, #KEY");
    }
    if (status != BT_OK) {
        bt_error_prefix(error, "router " BT_ROUTER_NAME_SCHEME "%s", name->host);
        return status;
    }
    return bt_router_names_create(registration->loop, name->host, NAME_INTERVAL_NS, on_answer, name,
                                  error, &name->names);
}

static void names_close(struct bt_registration *registration)
{
    for (size_t i = 0; i < registration->name_count; i++) {
        bt_router_names_destroy(registration->names[i].names);
        registration->names[i].names = NULL;
    }
}

static bool is_name(const char *endpoint)
{
    return strncmp(endpoint, BT_ROUTER_NAME_SCHEME, strlen(BT_ROUTER_NAME_SCHEME)) == 0;
}

static enum bt_status routers_init(struct bt_registration *registration, const char *routers,
                                   struct bt_error *error)
{
    size_t count = 0;
    for (const char *at = routers; *at;) {
        size_t length = strcspn(at, ",");
        if (length > 0 && count == BT_REGISTRATION_MAX_ROUTERS) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "more than %d routers",
                                BT_REGISTRATION_MAX_ROUTERS);
        }
        if (length > 0) {
            count++;
            enum bt_status status = is_name(at) ? name_init(registration, at, length, error)
                                                : router_init(free_place(registration),
                                                              registration, at, length, error);
            if (status != BT_OK) {
                return status;
            }
        }
        at += length + (at[length] == ',');
    }
    return count > 0 ? BT_OK
                     : bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "no router endpoint in '%s'",
                                    routers);
}

enum bt_status bt_registration_create(struct bt_loop *loop, const char *routers,
                                      const Baton__V1__RegisterRequest *identity,
                                      const struct bt_registration_events *events,
                                      struct bt_error *error,
                                      struct bt_registration **ret_registration)
{
    struct bt_registration *registration = calloc(1, sizeof(*registration));
    if (!registration) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "registration: no memory");
    }
    registration->loop = loop;
    registration->identity = identity;
    registration->events = *events;
    enum bt_status status = routers_init(registration, routers, error);
    if (status != BT_OK) {
        bt_registration_destroy(registration);
        return status;
    }
    *ret_registration = registration;
    return BT_OK;
}

void bt_registration_destroy(struct bt_registration *registration)
{
    if (!registration) {
        return;
    }
    registration->leaving = true;
    names_close(registration);
    for (size_t i = 0; i < registration->name_count; i++) {
        free(registration->names[i].host);
        free(registration->names[i].behind);
    }
    for (struct router *r = next_router(registration, NULL); r; r = next_router(registration, r)) {
        router_finish(r);
    }
    free(registration);
}

void bt_registration_hurry(struct bt_registration *registration)
{
    struct router *router = NULL;
    while ((router = next_router(registration, router))) {
        router->hurry = true;
        if (router->state == ROUTER_REGISTERED && !router->calling) {
            router_wait(router, 0);
        }
    }
}

static void on_goodbye(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *message)
{
    struct router *router = context;
    (void)status;
    (void)text;
    (void)message;
    router->state = ROUTER_GONE;
}

void bt_registration_deregister(struct bt_registration *registration)
{
    registration->leaving = true;
    names_close(registration);
    Baton__V1__DeregisterRequest request = BATON__V1__DEREGISTER_REQUEST__INIT;
    request.worker_id = registration->identity->worker_id;
    request.incarnation = registration->identity->incarnation;
    struct router *router = NULL;
    while ((router = next_router(registration, router))) {
        bt_loop_timer_set(router->timer, BT_NEVER_NS);
        /* A Register or Heartbeat that is out may be on its way yet; this comes behind it. */
        bool known = router->state == ROUTER_REGISTERED || router->calling;
        router->state = ROUTER_GONE;
        if (known && router_call(router, "baton.v1.Registry/Deregister", &request.base,
                                 &baton__v1__deregister_response__descriptor, DEREGISTER_TIMEOUT_NS,
                                 on_goodbye) == BT_OK) {
            router->state = ROUTER_REGISTERED;
            router->prefix_version = 0;
        }
    }
}

bool bt_registration_gone(const struct bt_registration *registration)
{
    for (size_t i = 0; i < BT_REGISTRATION_MAX_ROUTERS; i++) {
        const struct router *router = &registration->routers[i];
        if (router->endpoint && router->state != ROUTER_GONE) {
            return false;
        }
    }
    return true;
}

size_t bt_registration_count(const struct bt_registration *registration)
{
    size_t count = 0;
    for (size_t i = 0; registration && i < BT_REGISTRATION_MAX_ROUTERS; i++) {
        const struct router *router = &registration->routers[i];
        count += router->endpoint && router->state == ROUTER_REGISTERED;
    }
    return count;
}

static enum bt_status ready_file_fill(const char *temporary, const char *worker_id, const char *rpc,
                                      struct bt_error *error)
{
    FILE *file = fopen(temporary, "we");
    if (!file) {
        return bt_error_set(error, BT_ERR_IO, "%s: %s", temporary, strerror(errno));
    }
    int written = fprintf(file, "{\"worker_id\":\"%s\",\"rpc\":\"%s\",\"pid\":%jd}\n", worker_id,
                          rpc, (intmax_t)getpid());
    int closed = fclose(file);
    if (written < 0 || closed != 0) {
        return bt_error_set(error, BT_ERR_IO, "%s: %s", temporary, strerror(errno));
    }
    return BT_OK;
}

enum bt_status bt_ready_file_write(const char *path, const char *worker_id, const char *rpc,
                                   struct bt_error *error)
{
    char temporary[4096];
    int length = snprintf(temporary, sizeof(temporary), "%s.%jd", path, (intmax_t)getpid());
    if (length < 0 || (size_t)length >= sizeof(temporary)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "ready file: path is too long");
    }
    enum bt_status status = ready_file_fill(temporary, worker_id, rpc, error);
    if (status == BT_OK && rename(temporary, path) != 0) {
        status = bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    }
    if (status != BT_OK) {
        unlink(temporary);
    }
    return status;
}
