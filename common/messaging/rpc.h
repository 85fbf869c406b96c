/*
 * RPC over ZeroMQ: unary and server-streaming calls with deadlines, cancel and keepalive.
 *
 * The wire is in proto/README.md: multipart messages [Frame][payload], a DEALER on the client and
 * a ROUTER on the server. Loop thread only. A call always ends exactly once, with one on_end: by
 * the server's END, by its deadline, by the loss of the peer, by cancel or by closing the client.
 *
 * Peers are not trusted: a frame that does not parse, is too large, names an unknown method or
 * call, or comes in the wrong state is answered or dropped and counted, never acted on.
 */
#ifndef BATON_COMMON_MESSAGING_RPC_H
#define BATON_COMMON_MESSAGING_RPC_H

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/loop.h"

#define BT_RPC_MAX_MESSAGE_BYTES (64u << 20)
#define BT_RPC_MAX_CALLS_PER_PEER 4096
#define BT_RPC_KEEPALIVE_MS 1000
#define BT_RPC_PEER_TIMEOUT_MS 10000

/* ------------------------------------------------------------------ server */

struct bt_rpc_server;
struct bt_rpc_call; /* one call on the server, until bt_rpc_call_end returns */

/*
 * A new call. `request` was unpacked and checked for encoding, not for meaning; submessages may be
 * NULL; it is freed after `handle` returns. The handler (or somebody later) must end the call. The
 * deadline, if any, is bt_rpc_call_deadline_ns; when it passes, or the client cancels or goes
 * away, on_cancel of the call fires once (if set) and the call must still be ended.
 */
typedef void bt_rpc_handle_fn(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *request);

struct bt_rpc_method {
    const char *name; /* "baton.v1.Decode/Reserve" */
    const ProtobufCMessageDescriptor *request;
    bt_rpc_handle_fn *handle;
};

/*
 * Binds `endpoint` ("tcp://127.0.0.1:*" for an ephemeral port, "ipc://…"); the table ends with a
 * NULL name and must outlive the server.
 */
enum bt_status bt_rpc_server_create(struct bt_loop *loop, const char *endpoint,
                                    const struct bt_rpc_method *methods, void *context,
                                    struct bt_error *error, struct bt_rpc_server **ret_server);

/* The endpoint with the real port, as others connect to it. Valid as long as the server. */
const char *bt_rpc_server_endpoint(const struct bt_rpc_server *server);

/* Ends all calls with UNAVAILABLE (on_cancel fires first). NULL is fine. */
void bt_rpc_server_destroy(struct bt_rpc_server *server);

typedef void bt_rpc_cancel_fn(void *context, struct bt_rpc_call *call);
void bt_rpc_call_on_cancel(struct bt_rpc_call *call, bt_rpc_cancel_fn *fn, void *context);

int64_t bt_rpc_call_deadline_ns(const struct bt_rpc_call *call); /* BT_NEVER_NS: none */

/*
 * One message of a stream. BT_ERR_EXHAUSTED when the peer's send queue is full: the message was
 * not sent, and the caller decides (end the call, or try again later). After the peer is gone,
 * sends are dropped quietly; on_cancel tells.
 */
enum bt_status bt_rpc_call_send(struct bt_rpc_call *call, const ProtobufCMessage *message);

/* Ends the call and frees it. `response` (may be NULL) goes along on success; `text` (may be
 * NULL) explains an error. */
void bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                     const ProtobufCMessage *response);

/* ------------------------------------------------------------------ client */

struct bt_rpc_client;
struct bt_rpc_pending; /* one call on the client, until on_end returns */

/* Connects in the background and reconnects for ever. NULL endpoint is a programmer error. */
enum bt_status bt_rpc_client_create(struct bt_loop *loop, const char *endpoint,
                                    struct bt_error *error, struct bt_rpc_client **ret_client);

/* Ends all calls with CANCELLED (their on_end runs in here). NULL is fine. */
void bt_rpc_client_destroy(struct bt_rpc_client *client);

/* Called when the peer stops answering (BT_RPC_PEER_TIMEOUT_MS without any frame while calls or
 * keepalives are out, or the connection was refused/reset) and when it answers again. */
typedef void bt_rpc_peer_fn(void *context, bool up);
void bt_rpc_client_on_peer(struct bt_rpc_client *client, bt_rpc_peer_fn *fn, void *context);

/* `message` is valid during the callback. */
typedef void bt_rpc_data_fn(void *context, const ProtobufCMessage *message);
/* `response` is NULL unless status is BT_OK; valid during the callback. `text` is "" or reason. */
typedef void bt_rpc_end_fn(void *context, enum bt_status status, const char *text,
                           const ProtobufCMessage *response);

struct bt_rpc_call_spec {
    const char *method;
    const ProtobufCMessage *request;
    const ProtobufCMessageDescriptor *data;     /* stream messages; NULL for unary */
    const ProtobufCMessageDescriptor *response; /* NULL: END carries nothing of use */
    int64_t deadline_ns;                        /* BT_NEVER_NS: none */
    bt_rpc_data_fn *on_data;                    /* NULL for unary */
    bt_rpc_end_fn *on_end;
    void *context;
};

/*
 * Starts a call; on_end will run exactly once, never inside this function. Errors (no call was
 * started, on_end will not run): EXHAUSTED (queue or BT_RPC_MAX_CALLS_PER_PEER), NO_MEMORY.
 * `ret_pending` may be NULL.
 */
enum bt_status bt_rpc_client_call(struct bt_rpc_client *client, const struct bt_rpc_call_spec *spec,
                                  struct bt_error *error, struct bt_rpc_pending **ret_pending);

/* Asks the server to stop; on_end comes with the server's answer, or CANCELLED at the latest
 * after BT_RPC_PEER_TIMEOUT_MS. */
void bt_rpc_pending_cancel(struct bt_rpc_pending *pending);

/* Blocking unary call on a loop of its own use (operator CLI, tests): runs the loop until the end.
 * `ret_response` is malloc'd by protobuf-c: free with protobuf_c_message_free_unpacked. */
enum bt_status bt_rpc_client_call_wait(struct bt_rpc_client *client,
                                       const struct bt_rpc_call_spec *spec, struct bt_error *error,
                                       ProtobufCMessage **ret_response);

#endif
