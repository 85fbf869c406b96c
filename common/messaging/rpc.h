/*
 * RPC over ZeroMQ: unary and server-streaming calls with deadlines, cancel and keepalive.
 *
 * The wire is in proto/README.md: multipart messages [Frame][payload]. All clients of a loop share
 * one socket, and cost one descriptor each. Loop thread only. A call always ends exactly once, with
 * one on_end: by the server's END, by its deadline, by the loss of the peer, by cancel or by
 * closing the client.
 *
 * Peers are not trusted: a frame that does not parse, is too large, names an unknown method or
 * call, or comes in the wrong state is answered or dropped and counted, never acted on.
 *
 * A loop is plain, or secured by CURVE (security.h). Connections that say nothing are broken where
 * they take more than half of the descriptors that the process may still open.
 *
 * What is not bounded: libzmq (4.3) counts whole messages against its queues and limits the size of
 * a part, not the number of parts, so that a peer which never ends a message makes it buffer
 * without limit; there is no option against this. On a plain loop that is whoever reaches the
 * endpoint, on a secured one whoever has an admitted key. Before its handshake a client can make
 * the library hold one part of at most BT_RPC_MAX_MESSAGE_BYTES, for the seconds the handshake may
 * take.
 */
#ifndef BATON_COMMON_MESSAGING_RPC_H
#define BATON_COMMON_MESSAGING_RPC_H

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/loop.h"

#define BT_RPC_MAX_MESSAGE_BYTES   (64u << 20)
#define BT_RPC_MAX_CALLS_PER_PEER  4096
#define BT_RPC_MAX_PEERS           65536 /* with open calls, per server: every rank of a cluster */
#define BT_RPC_SEND_QUEUE_MESSAGES 1000  /* per connection, beside what the kernel buffers */
#define BT_RPC_KEEPALIVE_MS        1000
#define BT_RPC_PEER_TIMEOUT_MS     10000
/* A peer is lost after this many keepalives without any frame of it. Counted in ticks of the own
 * loop, so that a process that was stopped itself does not blame its peers. */
#define BT_RPC_SILENT_TICKS (BT_RPC_PEER_TIMEOUT_MS / BT_RPC_KEEPALIVE_MS)

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

/* The endpoint with the real port, and on a secured loop with our key, as others connect to it; an
 * address that was bound as IPv4 is named as IPv4. Valid as long as the server. */
const char *bt_rpc_server_endpoint(const struct bt_rpc_server *server);

/*
 * The endpoint names `host` from now on: a numeric address or a name by which others reach a server
 * that was bound to all interfaces. INVALID_ARGUMENT: not a host, too long, or the server is not at
 * a TCP port.
 */
enum bt_status bt_rpc_server_advertise(struct bt_rpc_server *server, const char *host,
                                       struct bt_error *error);

/*
 * Ends all calls with UNAVAILABLE: on_cancel fires first, then whatever call its owner has not
 * ended is ended and freed here. Safe in callbacks. NULL is fine.
 */
void bt_rpc_server_destroy(struct bt_rpc_server *server);

/* Messages that broke the protocol and were dropped, since the start. */
uint64_t bt_rpc_server_dropped(const struct bt_rpc_server *server);
size_t bt_rpc_server_open_calls(const struct bt_rpc_server *server);

/* For links that need another pace than BT_RPC_KEEPALIVE_MS; both ends should agree. */
void bt_rpc_server_set_keepalive(struct bt_rpc_server *server, int64_t keepalive_ms);

typedef void bt_rpc_cancel_fn(void *context, struct bt_rpc_call *call);
/* Set in a call that is cancelled already, fn runs in the next round. */
void bt_rpc_call_on_cancel(struct bt_rpc_call *call, bt_rpc_cancel_fn *fn, void *context);
bool bt_rpc_call_cancelled(const struct bt_rpc_call *call);

int64_t bt_rpc_call_deadline_ns(const struct bt_rpc_call *call); /* BT_NEVER_NS: none */

/* Of whom the call came: the name that the allow list gives the client's key, good as long as the
 * call. NULL: the loop is plain. */
const char *bt_rpc_call_key_name(const struct bt_rpc_call *call);

/*
 * One message of a stream. BT_ERR_EXHAUSTED when the peer's send queue is full: the message was
 * not sent, and the caller decides (end the call, or try again later). BT_ERR_INVALID_ARGUMENT when
 * it is over BT_RPC_MAX_MESSAGE_BYTES. After the peer is gone, sends are dropped quietly; on_cancel
 * tells.
 */
enum bt_status bt_rpc_call_send(struct bt_rpc_call *call, const ProtobufCMessage *message);

/*
 * Ends the call and frees it. `response` (may be NULL) goes along on success; `text` (may be NULL)
 * explains an error. An END is not lost to a full queue: it waits and is sent again. What the peers
 * did not take is bounded by BT_RPC_MAX_CALLS_PER_PEER and BT_RPC_MAX_MESSAGE_BYTES each; over the
 * bytes, the response becomes EXHAUSTED.
 */
void bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                     const ProtobufCMessage *response);

/* ------------------------------------------------------------------ client */

struct bt_rpc_client;
struct bt_rpc_pending; /* one call on the client, until on_end returns */

/*
 * Connects in the background and reconnects for ever. NULL endpoint is a programmer error. On a
 * secured loop the endpoint names the server's key, as bt_rpc_server_endpoint gives it:
 * INVALID_ARGUMENT without, UNAVAILABLE where the key is not in the list.
 *
 * A server that refuses the handshake (our key, its key, CURVE on one side alone) ends the calls
 * with UNAVAILABLE and a text that says why; the client goes on trying, at most once a second.
 */
enum bt_status bt_rpc_client_create(struct bt_loop *loop, const char *endpoint,
                                    struct bt_error *error, struct bt_rpc_client **ret_client);

/* Ends all calls with CANCELLED (their on_end runs in here). NULL is fine. */
void bt_rpc_client_destroy(struct bt_rpc_client *client);

/*
 * Called when the peer stops answering (BT_RPC_PEER_TIMEOUT_MS without any frame while calls are
 * open, or the connection was refused or closed) and when it answers: also the first time. On loss
 * it runs before the on_end of the calls; calls started in here go to the next connection.
 *
 * A connection that breaks loses its calls at once: their state is in the memory of the process
 * that was there, and a new connection is a new client to it.
 */
typedef void bt_rpc_peer_fn(void *context, bool up);
void bt_rpc_client_on_peer(struct bt_rpc_client *client, bt_rpc_peer_fn *fn, void *context);

void bt_rpc_client_set_keepalive(struct bt_rpc_client *client, int64_t keepalive_ms);

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
    int64_t cancel_wait_ns;  /* how long a cancelled call waits for its end; 0: the peer timeout */
    bt_rpc_data_fn *on_data; /* NULL for unary */
    bt_rpc_end_fn *on_end;
    void *context;
};

/*
 * Starts a call; on_end will run exactly once, never inside this function. Errors (no call was
 * started, on_end will not run): EXHAUSTED (queue or BT_RPC_MAX_CALLS_PER_PEER), NO_MEMORY,
 * INVALID_ARGUMENT (request over BT_RPC_MAX_MESSAGE_BYTES), UNAVAILABLE (the peer keeps closing the
 * connection, or refused the handshake just now), CANCELLED (the client is being destroyed). While
 * there is no connection yet, calls wait for one, at most until their deadline or
 * BT_RPC_PEER_TIMEOUT_MS (UNAVAILABLE). `ret_pending` may be NULL.
 */
enum bt_status bt_rpc_client_call(struct bt_rpc_client *client, const struct bt_rpc_call_spec *spec,
                                  struct bt_error *error, struct bt_rpc_pending **ret_pending);

/* Asks the server to stop; on_end comes with the server's answer, or CANCELLED at the latest
 * after the spec's cancel_wait_ns. */
void bt_rpc_pending_cancel(struct bt_rpc_pending *pending);

/* Blocking unary call on a loop of its own use (operator CLI, tests; never in a callback): runs the
 * loop until the end. on_data works, on_end and context of on_end are not used. CANCELLED when the
 * loop was stopped. `ret_response` may be NULL.
 * `ret_response` is malloc'd by protobuf-c: free with protobuf_c_message_free_unpacked. */
enum bt_status bt_rpc_client_call_wait(struct bt_rpc_client *client,
                                       const struct bt_rpc_call_spec *spec, struct bt_error *error,
                                       ProtobufCMessage **ret_response);

#endif
