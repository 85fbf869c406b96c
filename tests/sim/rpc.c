/*
 * RPC over a network of the world: the interface of common/messaging/rpc.h with the promises that
 * it makes (a call ends once; a connection that breaks loses its calls, and both ends hear of it),
 * and with the faults that the protocol has to bear: messages of unary calls are lost, come late,
 * come twice, overtake each other. Streams keep their order, as on one connection they do.
 */
#include <stdlib.h>
#include <string.h>

#include "proto/worker.pb-c.h"
#include "tests/sim/fabric.h"
#include "tests/sim/seams.h"

#define MAX_CONNECTIONS 64
#define MAX_CALLS       512
#define UNANSWERED_NS   (BT_RPC_PEER_TIMEOUT_MS * SIM_MS)

struct connection {
    bool open;
    struct bt_rpc_client *client;
    struct node *server;
    uint64_t server_instance, number;
    int64_t last_to_server_ns, last_to_client_ns;
};

struct bt_rpc_client {
    struct node *node, *server;
    uint64_t instance;   /* of node */
    uint64_t connection; /* 0: none */
    bt_rpc_peer_fn *on_peer;
    void *peer_context;
    bool destroyed;
    struct bt_rpc_client *next;
};

struct bt_rpc_pending {
    uint64_t number; /* 0: free */
    struct bt_rpc_client *client;
    struct bt_rpc_call_spec spec;
    uint64_t connection; /* 0: not sent */
    uint8_t *packed;
    size_t packed_size;
    bool cancelled;
};

struct bt_rpc_call {
    uint64_t number; /* 0: free */
    struct node *node;
    uint64_t connection, pending;
    const struct bt_rpc_method *method;
    bool streams, duplicate, cancelled, told;
    int64_t deadline_ns;
    bt_rpc_cancel_fn *on_cancel;
    void *cancel_context;
};

struct bt_rpc_server {
    struct node *node;
    const struct bt_rpc_method *methods;
    void *context;
};

enum message_kind { MESSAGE_REQUEST, MESSAGE_CANCEL, MESSAGE_DATA, MESSAGE_END };

struct message {
    enum message_kind kind;
    uint64_t connection, pending;
    bool duplicate, streams;
    const char *method;
    int64_t deadline_ns;
    enum bt_status status;
    char text[128];
    uint8_t *packed; /* world memory */
    size_t size;
};

static struct connection connections[MAX_CONNECTIONS];
static struct bt_rpc_pending pendings[MAX_CALLS];
static struct bt_rpc_call calls[MAX_CALLS];
static struct bt_rpc_server servers[MAX_NODE];
static struct bt_rpc_client *clients;
static uint64_t next_number = 1;

/* ---- protobuf in memory that goes with its node */

static void *tracked_alloc(void *data, size_t size)
{
    (void)data;
    return malloc(size);
}

static void tracked_free(void *data, void *memory)
{
    (void)data;
    free(memory);
}

static ProtobufCAllocator tracked = {tracked_alloc, tracked_free, NULL};

ProtobufCMessage *__real_protobuf_c_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                                   ProtobufCAllocator *allocator, size_t size,
                                                   const uint8_t *data);
void __real_protobuf_c_message_free_unpacked(ProtobufCMessage *message,
                                             ProtobufCAllocator *allocator);

ProtobufCMessage *__wrap_protobuf_c_message_unpack(const ProtobufCMessageDescriptor *descriptor,
                                                   ProtobufCAllocator *allocator, size_t size,
                                                   const uint8_t *data)
{
    BT_ASSERT(allocator == NULL);
    return __real_protobuf_c_message_unpack(descriptor, &tracked, size, data);
}

void __wrap_protobuf_c_message_free_unpacked(ProtobufCMessage *message,
                                             ProtobufCAllocator *allocator)
{
    BT_ASSERT(allocator == NULL);
    __real_protobuf_c_message_free_unpacked(message, &tracked);
}

/* ---- finding */

static struct connection *connection_get(uint64_t number)
{
    struct connection *connection = &connections[number % MAX_CONNECTIONS];
    return number != 0 && connection->number == number && connection->open ? connection : NULL;
}

static struct bt_rpc_pending *pending_get(uint64_t number)
{
    struct bt_rpc_pending *pending = &pendings[number % MAX_CALLS];
    return number != 0 && pending->number == number ? pending : NULL;
}

/* A number whose slot is free in a table of `size` such numbers. */
static uint64_t new_number(const void *table, size_t stride, size_t size)
{
    for (size_t i = 0; i < size; i++, next_number++) {
        const uint64_t *number =
            (const uint64_t *)((const char *)table + (next_number % size) * stride);
        if (*number == 0) {
            return next_number++;
        }
    }
    BT_ASSERT(false);
}

static void pending_free(struct bt_rpc_pending *pending)
{
    free(pending->packed);
    pending->packed = NULL;
    pending->number = 0;
}

static void pending_end(struct bt_rpc_pending *pending, enum bt_status status, const char *text,
                        const ProtobufCMessage *response)
{
    struct bt_rpc_call_spec spec = pending->spec;
    pending_free(pending);
    spec.on_end(spec.context, status, text, response);
}

/* ---- delivery */

static uint8_t *pack(const ProtobufCMessage *message, size_t *ret_size)
{
    *ret_size = message ? protobuf_c_message_get_packed_size(message) : 0;
    uint8_t *packed = world_malloc(*ret_size + 1);
    if (message) {
        protobuf_c_message_pack(message, packed);
    }
    return packed;
}

static void message_free(struct message *message)
{
    free(message->packed);
    free(message);
}

static void call_tell(struct bt_rpc_call *call)
{
    if (call->cancelled && call->on_cancel && !call->told) {
        call->told = true;
        call->on_cancel(call->cancel_context, call);
    }
}

static void call_tell_event(void *object, uint64_t number)
{
    struct bt_rpc_call *call = object;
    if (call->number == number) {
        call_tell(call);
    }
}

static void call_cancel_event(void *object, uint64_t number)
{
    struct bt_rpc_call *call = object;
    if (call->number == number) {
        call->cancelled = true;
        call_tell(call);
    }
}

static const struct bt_rpc_method *method_find(const struct bt_rpc_server *server, const char *name)
{
    const struct bt_rpc_method *method = server->methods;
    while (method->name && strcmp(method->name, name) != 0) {
        method++;
    }
    return method->name ? method : NULL;
}

/* With the epoch that it is about; of a Lease, the first. */
static void note_request(const char *name, const ProtobufCMessage *request, bool duplicate)
{
    uint64_t id = 0, epoch = 0;
    if (request->descriptor == &baton__v1__lease_request__descriptor) {
        const Baton__V1__LeaseRequest *lease = (const Baton__V1__LeaseRequest *)request;
        id = lease->n_lease > 0 ? lease->lease[0]->request_id : 0;
        epoch = lease->n_lease > 0 ? lease->lease[0]->epoch : 0;
    } else if (request->descriptor == &baton__v1__quiesced_request__descriptor) {
        const Baton__V1__QuiescedRequest *quiesced = (const Baton__V1__QuiescedRequest *)request;
        id = quiesced->request_id;
        epoch = quiesced->epoch;
    } else if (request->descriptor == &baton__v1__handoff_done_request__descriptor) {
        const Baton__V1__HandoffDoneRequest *done = (const Baton__V1__HandoffDoneRequest *)request;
        id = done->request_id;
        epoch = done->epoch;
    } else if (request->descriptor == &baton__v1__cancel_request__descriptor) {
        const Baton__V1__CancelRequest *cancel = (const Baton__V1__CancelRequest *)request;
        id = cancel->request_id;
        epoch = cancel->epoch;
    } else if (request->descriptor == &baton__v1__prefill_request__descriptor) {
        const Baton__V1__PrefillRequest *run = (const Baton__V1__PrefillRequest *)request;
        id = run->request_id;
        epoch = run->landing ? run->landing->epoch : 0;
    }
    note(name, id, epoch, duplicate);
}

static void deliver_request(const struct message *message, struct node *node)
{
    struct bt_rpc_server *server = &servers[node->slot];
    if (server->node != node) {
        return;
    }
    const struct bt_rpc_method *method = method_find(server, message->method);
    BT_ASSERT(method);
    ProtobufCMessage *request =
        protobuf_c_message_unpack(method->request, NULL, message->size, message->packed);
    BT_ASSERT(request);
    uint64_t number = new_number(calls, sizeof(calls[0]), MAX_CALLS);
    struct bt_rpc_call *call = &calls[number % MAX_CALLS];
    *call = (struct bt_rpc_call){.number = number,
                                 .node = node,
                                 .connection = message->connection,
                                 .pending = message->pending,
                                 .method = method,
                                 .streams = message->streams,
                                 .duplicate = message->duplicate,
                                 .deadline_ns = message->deadline_ns};
    if (call->deadline_ns != BT_NEVER_NS) {
        event_at(call->deadline_ns, node, call_cancel_event, call, number);
    }
    note_request(method->name + strlen("baton.v1."), request, message->duplicate);
    method->handle(server->context, call, request);
    protobuf_c_message_free_unpacked(request, NULL);
}

static void deliver_cancel(const struct message *message)
{
    for (uint32_t i = 0; i < MAX_CALLS; i++) {
        if (calls[i].number != 0 && calls[i].pending == message->pending) {
            calls[i].cancelled = true;
            call_tell(&calls[i]);
        }
    }
}

static void deliver_answer(const struct message *message)
{
    struct bt_rpc_pending *pending = pending_get(message->pending);
    if (!pending) {
        return;
    }
    const ProtobufCMessageDescriptor *type =
        message->kind == MESSAGE_DATA ? pending->spec.data : pending->spec.response;
    ProtobufCMessage *body = NULL;
    if (type && message->status == BT_OK) {
        body = protobuf_c_message_unpack(type, NULL, message->size, message->packed);
        BT_ASSERT(body);
    }
    if (message->kind == MESSAGE_DATA) {
        pending->spec.on_data(pending->spec.context, body);
    } else {
        pending_end(pending, message->status, message->text, body);
    }
    if (body) {
        protobuf_c_message_free_unpacked(body, NULL);
    }
}

static void deliver(void *object, uint64_t unused)
{
    struct message *message = object;
    const struct connection *connection = connection_get(message->connection);
    (void)unused;
    if (connection) {
        switch (message->kind) {
        case MESSAGE_REQUEST:
            deliver_request(message, world.current);
            break;
        case MESSAGE_CANCEL:
            deliver_cancel(message);
            break;
        case MESSAGE_DATA:
        case MESSAGE_END:
            deliver_answer(message);
            break;
        }
    }
    message_free(message);
}

static int64_t flight_ns(void)
{
    if (world.faults.on && chance(world.faults.slow)) {
        return draw_ns(0, 3 * SIM_S);
    }
    return draw_ns(20 * SIM_US, 200 * SIM_US);
}

/* Takes the message. */
static void send(const struct connection *connection, struct message *message, bool unary)
{
    struct connection *changed = &connections[connection->number % MAX_CONNECTIONS];
    bool to_server = message->kind == MESSAGE_REQUEST || message->kind == MESSAGE_CANCEL;
    struct node *node = to_server ? connection->server : connection->client->node;
    int64_t *last_ns = to_server ? &changed->last_to_server_ns : &changed->last_to_client_ns;
    int64_t when_ns = world.now_ns + flight_ns();
    bool overtakes = unary && world.faults.on && chance(world.faults.reorder);
    if (!overtakes) {
        when_ns = when_ns > *last_ns ? when_ns : *last_ns;
        *last_ns = when_ns;
    }
    message->connection = connection->number;
    event_at(when_ns, node, deliver, message, 0);
}

/* A request may come again, much later; nobody hears the second answer. */
static void send_again(const struct connection *connection, const struct message *message)
{
    struct message *copy = world_malloc(sizeof(*copy));
    *copy = *message;
    copy->duplicate = true;
    copy->packed = world_malloc(message->size + 1);
    memcpy(copy->packed, message->packed, message->size);
    copy->connection = connection->number;
    event_at(world.now_ns + draw_ns(0, draw(3) ? 5 * SIM_MS : 4 * SIM_S), connection->server,
             deliver, copy, 0);
}

/* ---- server */

enum bt_status bt_rpc_server_create(struct bt_loop *loop, const char *endpoint,
                                    const struct bt_rpc_method *methods, void *context,
                                    struct bt_error *error, struct bt_rpc_server **ret_server)
{
    (void)loop;
    (void)endpoint;
    (void)error;
    struct bt_rpc_server *server = &servers[world.current->slot];
    *server = (struct bt_rpc_server){world.current, methods, context};
    *ret_server = server;
    return BT_OK;
}

const char *bt_rpc_server_endpoint(const struct bt_rpc_server *server)
{
    return server->node->endpoint;
}

enum bt_status bt_rpc_server_advertise(struct bt_rpc_server *server, const char *host,
                                       struct bt_error *error)
{
    (void)server;
    (void)host;
    (void)error;
    BT_ASSERT(false); /* nobody has a name in the world */
}

void bt_rpc_server_destroy(struct bt_rpc_server *server)
{
    (void)server;
    BT_ASSERT(false); /* processes of the world are killed */
}

uint64_t bt_rpc_server_dropped(const struct bt_rpc_server *server)
{
    (void)server;
    return 0;
}

void bt_rpc_call_on_cancel(struct bt_rpc_call *call, bt_rpc_cancel_fn *fn, void *context)
{
    call->on_cancel = fn;
    call->cancel_context = context;
    if (call->cancelled && fn) {
        event_at(world.now_ns, call->node, call_tell_event, call, call->number);
    }
}

int64_t bt_rpc_call_deadline_ns(const struct bt_rpc_call *call)
{
    return call->deadline_ns;
}

static struct message *answer_create(const struct bt_rpc_call *call, enum message_kind kind,
                                     const ProtobufCMessage *body)
{
    struct message *message = world_calloc(1, sizeof(*message));
    message->kind = kind;
    message->pending = call->pending;
    message->packed = pack(body, &message->size);
    return message;
}

enum bt_status bt_rpc_call_send(struct bt_rpc_call *call, const ProtobufCMessage *body)
{
    const struct connection *connection = connection_get(call->connection);
    if (connection && !call->duplicate) {
        send(connection, answer_create(call, MESSAGE_DATA, body), false);
    }
    return BT_OK;
}

void bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                     const ProtobufCMessage *response)
{
    BT_ASSERT(call->number != 0 && call->node == world.current);
    const struct connection *connection = connection_get(call->connection);
    if (status == BT_OK && response) {
        shadow_answer(call->method->name, response);
    }
    if (status == BT_ERR_CORRUPT && world.faults.honest && world.faults.corrupt == 0) {
        fail("%s finds pages damaged that nobody damaged: %s", call->node->id, text);
    }
    note("end call", (uint64_t)-status, 0, 0);
    call->number = 0;
    bool unary = !call->streams && call->deadline_ns != BT_NEVER_NS;
    if (!connection || call->duplicate || (unary && world.faults.on && chance(world.faults.lose))) {
        return;
    }
    struct message *message = answer_create(call, MESSAGE_END, status == BT_OK ? response : NULL);
    message->status = status;
    strncpy(message->text, text ? text : "", sizeof(message->text) - 1);
    send(connection, message, unary);
}

/* ---- client */

static void connect_event(void *object, uint64_t unused);

static void connect_later(struct bt_rpc_client *client, int64_t delay_ns)
{
    event_at(world.now_ns + delay_ns, client->node, connect_event, client, 0);
}

/* Over a connection that broke, and whose end was not noticed yet, it waits for the next. */
static void pending_send(struct bt_rpc_pending *pending)
{
    const struct connection *connection = connection_get(pending->client->connection);
    if (!connection) {
        return;
    }
    const struct bt_rpc_call_spec *spec = &pending->spec;
    bool unary = spec->on_data == NULL, bounded = spec->deadline_ns != BT_NEVER_NS;
    pending->connection = connection->number;
    struct message *message = world_calloc(1, sizeof(*message));
    message->kind = MESSAGE_REQUEST;
    message->pending = pending->number;
    message->method = spec->method;
    message->deadline_ns = spec->deadline_ns;
    message->streams = !unary;
    message->packed = world_malloc(pending->packed_size + 1);
    memcpy(message->packed, pending->packed, pending->packed_size);
    message->size = pending->packed_size;
    bool repeatable = unary || spec->deadline_ns != BT_NEVER_NS; /* all but Steps */
    if (repeatable && world.faults.on && chance(world.faults.duplicate)) {
        send_again(connection, message);
    }
    if (unary && bounded && world.faults.on && chance(world.faults.lose)) {
        message_free(message);
        return;
    }
    send(connection, message, unary);
}

static void flush_pendings(struct bt_rpc_client *client)
{
    for (uint32_t i = 0; i < MAX_CALLS; i++) {
        struct bt_rpc_pending *pending = &pendings[i];
        if (pending->number != 0 && pending->client == client && pending->connection == 0) {
            pending_send(pending);
        }
    }
}

static void connect_event(void *object, uint64_t unused)
{
    struct bt_rpc_client *client = object;
    (void)unused;
    if (client->destroyed || client->connection) {
        return;
    }
    struct node *server = client->server;
    bool listens = server && server->alive && servers[server->slot].node == server;
    if (listens && node_stalled(server)) {
        connect_later(client, draw_ns(10 * SIM_MS, SIM_S));
        return;
    }
    if (listens) {
        uint64_t number =
            new_number(&connections[0].number, sizeof(connections[0]), MAX_CONNECTIONS);
        struct connection *connection = &connections[number % MAX_CONNECTIONS];
        *connection = (struct connection){.open = true,
                                          .client = client,
                                          .server = server,
                                          .server_instance = server->instance,
                                          .number = number};
        client->connection = number;
        flush_pendings(client);
    } else {
        connect_later(client, draw_ns(100 * SIM_MS, 500 * SIM_MS));
    }
    if (client->on_peer) {
        client->on_peer(client->peer_context, listens);
    }
}

/* Only a network is silent: here connections break. */
void bt_rpc_client_set_keepalive(struct bt_rpc_client *client, int64_t keepalive_ms)
{
    (void)client;
    (void)keepalive_ms;
}

void bt_rpc_server_set_keepalive(struct bt_rpc_server *server, int64_t keepalive_ms)
{
    (void)server;
    (void)keepalive_ms;
}

enum bt_status bt_rpc_client_create(struct bt_loop *loop, const char *endpoint,
                                    struct bt_error *error, struct bt_rpc_client **ret_client)
{
    (void)loop;
    (void)error;
    struct bt_rpc_client *client = world_calloc(1, sizeof(*client));
    client->node = world.current;
    client->instance = world.current->instance;
    client->server = node_by_endpoint(endpoint); /* NULL: nobody is there */
    client->next = clients;
    clients = client;
    connect_later(client, draw_ns(50 * SIM_US, 2 * SIM_MS));
    *ret_client = client;
    return BT_OK;
}

void bt_rpc_client_on_peer(struct bt_rpc_client *client, bt_rpc_peer_fn *fn, void *context)
{
    client->on_peer = fn;
    client->peer_context = context;
}

static void pending_deadline(void *object, uint64_t number)
{
    (void)object;
    struct bt_rpc_pending *pending = pending_get(number);
    if (pending) {
        pending_end(pending, BT_ERR_DEADLINE, "deadline", NULL);
    }
}

static void pending_unanswered(void *object, uint64_t number)
{
    (void)object;
    struct bt_rpc_pending *pending = pending_get(number);
    if (pending && pending->cancelled) {
        pending_end(pending, BT_ERR_CANCELLED, "cancelled", NULL);
    } else if (pending && pending->connection == 0) {
        pending_end(pending, BT_ERR_UNAVAILABLE, "no connection", NULL);
    }
}

enum bt_status bt_rpc_client_call(struct bt_rpc_client *client, const struct bt_rpc_call_spec *spec,
                                  struct bt_error *error, struct bt_rpc_pending **ret_pending)
{
    (void)error;
    if (client->destroyed) {
        return BT_ERR_CANCELLED;
    }
    uint64_t number = new_number(pendings, sizeof(pendings[0]), MAX_CALLS);
    struct bt_rpc_pending *pending = &pendings[number % MAX_CALLS];
    *pending = (struct bt_rpc_pending){.number = number, .client = client, .spec = *spec};
    pending->packed = pack(fabric_among_ranks(spec->request), &pending->packed_size);
    if (spec->deadline_ns != BT_NEVER_NS) {
        event_at(spec->deadline_ns, client->node, pending_deadline, NULL, number);
    }
    event_at(world.now_ns + UNANSWERED_NS, client->node, pending_unanswered, NULL, number);
    pending_send(pending);
    if (ret_pending) {
        *ret_pending = pending;
    }
    return BT_OK;
}

void bt_rpc_pending_cancel(struct bt_rpc_pending *pending)
{
    if (pending->cancelled) {
        return;
    }
    pending->cancelled = true;
    event_at(world.now_ns + UNANSWERED_NS, pending->client->node, pending_unanswered, NULL,
             pending->number);
    const struct connection *connection = connection_get(pending->connection);
    if (connection) {
        struct message *message = world_calloc(1, sizeof(*message));
        message->kind = MESSAGE_CANCEL;
        message->pending = pending->number;
        send(connection, message, false);
    }
}

/* ---- hostile peers */

struct injection {
    const struct bt_rpc_method *method;
    ProtobufCMessage *message;
    uint64_t pending;
    bool data;
    enum bt_status status;
};

static void inject_request(void *object, uint64_t unused)
{
    const struct injection *injection = object;
    (void)unused;
    uint64_t number = new_number(calls, sizeof(calls[0]), MAX_CALLS);
    struct bt_rpc_call *call = &calls[number % MAX_CALLS];
    *call = (struct bt_rpc_call){.number = number,
                                 .node = world.current,
                                 .method = injection->method,
                                 .deadline_ns = world.now_ns + SIM_S};
    event_at(call->deadline_ns, world.current, call_cancel_event, call, number);
    injection->method->handle(servers[world.current->slot].context, call, injection->message);
}

bool rpc_inject_request(struct node *node, const char *name, const uint8_t *bytes, size_t size)
{
    const struct bt_rpc_server *server = &servers[node->slot];
    struct injection injection = {.method = server->node ? method_find(server, name) : NULL};
    if (!injection.method) {
        return false;
    }
    injection.message = protobuf_c_message_unpack(injection.method->request, NULL, size, bytes);
    if (!injection.message) {
        return false;
    }
    node_run(node, inject_request, &injection, 0);
    protobuf_c_message_free_unpacked(injection.message, NULL);
    return true;
}

static void inject_answer(void *object, uint64_t unused)
{
    const struct injection *injection = object;
    struct bt_rpc_pending *pending = pending_get(injection->pending);
    (void)unused;
    if (injection->data) {
        pending->spec.on_data(pending->spec.context, injection->message);
    } else {
        pending_end(pending, injection->status, "", injection->message);
    }
}

static struct bt_rpc_pending *pending_choose(uint32_t which, bool data)
{
    for (uint32_t i = 0; i < MAX_CALLS; i++) {
        struct bt_rpc_pending *pending = &pendings[(which + i) % MAX_CALLS];
        if (pending->number != 0 && pending->client->node->alive &&
            (!data || pending->spec.on_data)) {
            return pending;
        }
    }
    return NULL;
}

bool rpc_inject_answer(uint32_t which, bool data, enum bt_status status, const uint8_t *bytes,
                       size_t size)
{
    const struct bt_rpc_pending *pending = pending_choose(which, data);
    if (!pending) {
        return false;
    }
    struct injection injection = {.pending = pending->number, .data = data, .status = status};
    const ProtobufCMessageDescriptor *type = data ? pending->spec.data : pending->spec.response;
    if (type && (data || status == BT_OK)) {
        injection.message = protobuf_c_message_unpack(type, NULL, size, bytes);
        if (!injection.message) {
            return false;
        }
    }
    node_run(pending->client->node, inject_answer, &injection, 0);
    if (injection.message) {
        protobuf_c_message_free_unpacked(injection.message, NULL);
    }
    return true;
}

/* ---- connections that break */

static void server_side_gone(void *object, uint64_t number)
{
    (void)object;
    for (uint32_t i = 0; i < MAX_CALLS; i++) {
        if (calls[i].number != 0 && calls[i].connection == number) {
            calls[i].cancelled = true;
            call_tell(&calls[i]);
        }
    }
}

static void client_side_gone(void *object, uint64_t number)
{
    struct bt_rpc_client *client = object;
    if (client->destroyed || client->connection != number) {
        return;
    }
    if (client->on_peer) {
        client->on_peer(client->peer_context, false);
    }
    for (uint32_t i = 0; i < MAX_CALLS && !client->destroyed; i++) {
        if (pendings[i].number != 0 && pendings[i].client == client &&
            pendings[i].connection == number) {
            pending_end(&pendings[i], BT_ERR_PEER_LOST, "connection lost", NULL);
        }
    }
    if (!client->destroyed) {
        client->connection = 0;
        connect_later(client, draw_ns(SIM_MS, 200 * SIM_MS));
    }
}

static void connection_break(struct connection *connection)
{
    struct bt_rpc_client *client = connection->client;
    uint64_t number = connection->number;
    connection->open = false;
    connection->number = 0;
    note("connection breaks", client->node->slot, connection->server->slot, 0);
    if (connection->server->alive && connection->server->instance == connection->server_instance) {
        event_at(world.now_ns + draw_ns(0, 5 * SIM_MS), connection->server, server_side_gone, NULL,
                 number);
    }
    if (client->node->alive && client->node->instance == client->instance && !client->destroyed) {
        event_at(world.now_ns + draw_ns(0, 5 * SIM_MS), client->node, client_side_gone, client,
                 number);
    }
}

void bt_rpc_client_destroy(struct bt_rpc_client *client)
{
    if (!client) {
        return;
    }
    client->destroyed = true;
    struct connection *connection = connection_get(client->connection);
    if (connection) {
        connection_break(&connections[connection->number % MAX_CONNECTIONS]);
    }
    for (uint32_t i = 0; i < MAX_CALLS; i++) {
        if (pendings[i].number != 0 && pendings[i].client == client) {
            pending_end(&pendings[i], BT_ERR_CANCELLED, "the client is closed", NULL);
        }
    }
}

void rpc_cut(struct node *a, struct node *b)
{
    for (uint32_t i = 0; i < MAX_CONNECTIONS; i++) {
        struct connection *connection = &connections[i];
        const struct node *client = connection->open ? connection->client->node : NULL;
        if ((client == a && connection->server == b) || (client == b && connection->server == a)) {
            connection_break(connection);
        }
    }
}

void rpc_silent(struct node *node)
{
    for (uint32_t i = 0; i < MAX_CONNECTIONS; i++) {
        if (connections[i].open &&
            (connections[i].server == node || connections[i].client->node == node)) {
            connection_break(&connections[i]);
        }
    }
}

void rpc_forget(struct node *node)
{
    servers[node->slot].node = NULL;
    rpc_silent(node);
    for (uint32_t i = 0; i < MAX_CALLS; i++) {
        if (pendings[i].number != 0 && pendings[i].client->node == node) {
            pending_free(&pendings[i]);
        }
        if (calls[i].node == node) {
            calls[i].number = 0;
        }
    }
}

void rpc_end(void)
{
    memset(connections, 0, sizeof(connections));
    clients = NULL;
    next_number = 1;
}

void seams_forget(struct node *node)
{
    rpc_forget(node);
    loop_forget(node);
}

void seams_end(void)
{
    rpc_end();
}
