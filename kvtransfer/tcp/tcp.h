/*
 * TCP with sockets of our own. UCX has no puts over TCP (it emulates them by messages that copy
 * every byte twice more), listens on its own ports, and aborts its process on bytes there that no
 * UCX peer sends. Here a connection has to name the target's token, which travels with the landing
 * over the control channel; each frame is checked; payload goes from the socket
 * straight into the pool.
 */
#ifndef BATON_KVTRANSFER_TCP_TCP_H
#define BATON_KVTRANSFER_TCP_TCP_H

#include "kvtransfer/transport.h"

#define KVT_TCP_OPS           2048 /* writes and flushes out at once, of all peers */
#define KVT_TCP_SOURCES_MAX   1024 /* that named themselves, at once */
#define KVT_TCP_STRANGERS_MAX 64   /* connected and not named yet; the oldest makes room */
#define KVT_TCP_STRANGER_MS   5000 /* to say the hello */

enum bt_status kvt_tcp_transport_create(const struct kvt_transport_options *options,
                                        struct bt_error *error,
                                        struct kvt_transport **ret_transport);

#endif
