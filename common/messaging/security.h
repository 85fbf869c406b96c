/*
 * CURVE on all RPC of a loop: encrypted, and between processes that know each other's public keys.
 *
 * A process has one secret key, in a file that nobody else may read, and one list of the public
 * keys it deals with. Its servers admit clients with a key of the list, and nobody else; its
 * clients connect to servers whose key is in the list and stands in the endpoint, as
 * bt_rpc_server_endpoint() gives it: tcp://HOST:PORT#KEY. A loop is secured or plain as a whole: on
 * a secured loop an endpoint without a key is an error, on a plain one an endpoint with a key is.
 *
 * The list is read again when its file changed and then stood still for a second (replace it by a
 * rename all the same), and by bt_security_reload. A list that can't be read or parsed leaves the
 * one before in force. A key that is gone from the list loses its connections at once: servers
 * break them, with their calls (the client sees peer_lost, and from then on unavailable), clients
 * end their calls with UNAVAILABLE. Connections of other keys notice nothing.
 *
 * Handshakes need the loop to run. Secrets are never logged; the copies here are wiped, the
 * library's are its own.
 */
#ifndef BATON_COMMON_MESSAGING_SECURITY_H
#define BATON_COMMON_MESSAGING_SECURITY_H

#include <stdint.h>

#include "common/base/metrics.h"
#include "common/base/option.h"
#include "common/messaging/key.h"
#include "common/messaging/loop.h"

struct bt_security_values {
    const char *secret_file, *allow_file; /* NULL both: plain */
};

/* Lines of a struct bt_option table; `v` is a struct bt_security_values. */
/* clang-format off */
#define BT_SECURITY_OPTIONS(v) \
    {"curve-secret-file", BT_OPTION_STRING, &(v).secret_file, NULL, .metavar = "PATH", \
     .help = "This process's secret key (batonctl keygen), mode 0600: RPC is encrypted and needs keys."}, \
    {"curve-allow-file", BT_OPTION_STRING, &(v).allow_file, NULL, .metavar = "PATH", \
     .help = "Public keys that RPC is done with, 'KEY NAME' a line; read again when it changes."}
/* clang-format on */

/* INVALID_ARGUMENT: one flag of two. */
enum bt_status bt_security_values_check(const struct bt_security_values *values,
                                        struct bt_error *error);

/*
 * Secures the loop as the flags say; without both of them it stays plain. Once, before any server
 * or client of the loop. Errors: INVALID_ARGUMENT (one flag of two, or what is wrong in which
 * file), NOT_FOUND and IO (a file), UNSUPPORTED (the ZeroMQ library has no CURVE), INTERNAL.
 */
enum bt_status bt_loop_secure(struct bt_loop *loop, const struct bt_security_values *values,
                              struct bt_error *error);

/* Our own in hex, as others put it into their lists; NULL: the loop is plain. */
const char *bt_loop_public_key(const struct bt_loop *loop);

/* Reads the list now. Nothing is called back in here. On errors the old list stays. */
enum bt_status bt_security_reload(struct bt_loop *loop, struct bt_error *error);

/* A new secret key in a new file of mode 0600, never over one that is there (ALREADY_EXISTS), and
 * its public key in hex. */
enum bt_status bt_security_generate(const char *secret_path, struct bt_error *error,
                                    char ret_public_hex[BT_KEY_HEX_SIZE]);

/* ------------------------------------------------------------------ who was refused */

enum bt_refusal {
    BT_REFUSED_KEY,       /* proved a key that is not in the list */
    BT_REFUSED_HANDSHAKE, /* none, or for another server's key, or without CURVE */
    BT_REFUSED_REMOVED,   /* was connected when its key left the list */
    BT_REFUSED_FLOOD,     /* one of too many that connected and said nothing */
    BT_REFUSAL_COUNT
};

/* By all servers of the loop, plain or secured, since its start. */
uint64_t bt_loop_refused(const struct bt_loop *loop, enum bt_refusal reason);

/* Adds baton_rpc_refused_total{reason=…} to `metrics`, which must outlive the loop's last round, or
 * the next call of this. NULL: counts are told to none from now on. */
void bt_loop_export_refused(struct bt_loop *loop, struct bt_metrics *metrics);

#endif
