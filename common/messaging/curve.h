/*
 * What servers and clients need of a loop's security. Internal to this folder. Loop thread only.
 *
 * Keys that were ever in the list stay known, with a mark whether they are allowed now: so a
 * pointer to one is good as long as the loop. A message of an admitted connection carries the
 * number of its key, as the handshake of this process said it, beside a random word, since a peer
 * can name itself whatever it likes where no handshake was asked.
 */
#ifndef BATON_COMMON_MESSAGING_CURVE_H
#define BATON_COMMON_MESSAGING_CURVE_H

#include <zmq.h>

#include "common/base/file.h"
#include "common/base/map.h"
#include "common/messaging/key.h"
#include "common/messaging/loop.h"
#include "common/messaging/monitor.h"

#define BT_CURVE_DOMAIN    "baton"
#define BT_CURVE_USER_SIZE 40

struct bt_known_key {
    struct bt_key key;
    char name[BT_KEY_NAME_SIZE];
    size_t number;
    bool allowed;
    bool listed; /* in the list that is being read */
    struct bt_known_key *next_same_hash;
};

/* Told after the list changed; calls nothing back but sets a timer. */
struct bt_curve_watch {
    struct bt_curve_watch *previous; /* in a ring */
    struct bt_curve_watch *next;
    void (*changed)(void *context);
    void *context;
};

struct bt_security {
    struct bt_loop *loop;
    struct bt_key secret_key;
    struct bt_key public_key;
    char public_hex[BT_KEY_HEX_SIZE];
    char *allow_path;
    struct bt_file_watch file;   /* the list */
    struct bt_known_key **known; /* by number */
    size_t known_count;
    struct bt_map known_by_hash;
    size_t allowed_count;
    uint64_t word; /* random */
    void *zap;
    struct bt_loop_source *zap_source;
    struct bt_loop_source *file_timer;
    struct bt_curve_watch watches; /* ring head */
};

/* NULL: plain. Defined by the loop, which destroys it after its last socket was closed. */
struct bt_security *bt_loop_security(const struct bt_loop *loop);
void bt_loop_set_security(struct bt_loop *loop, struct bt_security *security);
/* No socket was added to it yet. */
bool bt_loop_has_no_sockets(const struct bt_loop *loop);
void bt_security_destroy(struct bt_security *security); /* NULL is fine */

/* NULL: never in the list. */
struct bt_known_key *bt_curve_find(const struct bt_security *security, const struct bt_key *key);

void bt_curve_watch_add(struct bt_security *security, struct bt_curve_watch *watch);
void bt_curve_watch_remove(struct bt_curve_watch *watch); /* one that was never added is fine */

/* ------------------------------------------------------------------ sockets */

/*
 * Checks the endpoint of a server or client against the loop and takes the key off.
 * INVALID_ARGUMENT where a key is missing or there without use, and for inproc on a secured loop,
 * which CURVE does not cover. `ret_key` is set for clients on a secured loop alone.
 */
enum bt_status bt_curve_server_address(const struct bt_security *security, const char *endpoint,
                                       struct bt_error *error, char ret_address[BT_ENDPOINT_SIZE]);
enum bt_status bt_curve_client_address(const struct bt_security *security, const char *endpoint,
                                       struct bt_error *error, char ret_address[BT_ENDPOINT_SIZE],
                                       struct bt_key *ret_key);

/* Before bind and connect; nothing on a plain loop. */
enum bt_status bt_curve_server_setup(const struct bt_security *security, void *socket,
                                     struct bt_error *error);
/* UNAVAILABLE: the server's key is not in the list now. */
enum bt_status bt_curve_client_setup(const struct bt_security *security, void *socket,
                                     const struct bt_key *server, struct bt_error *error);

/* The handler of the library's questions whom to admit, on an inproc socket; runs on the loop. */
enum bt_status bt_curve_zap_start(struct bt_security *security, struct bt_error *error);
void bt_curve_zap_stop(struct bt_security *security);

/* Whose connection a message came by; NULL: nobody that this process admitted. */
struct bt_known_key *bt_curve_user(const struct bt_security *security, zmq_msg_t *part);

/* Why a handshake with a server failed, for a person. `waited_ms`: since TCP was connected. */
void bt_curve_explain_server(const struct bt_security *security,
                             const struct bt_monitor_event *event, int64_t waited_ms,
                             char *ret_text, size_t size);
/* And with a client: the value of ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL. */
const char *bt_curve_explain_client(const struct bt_security *security, int32_t value);

#endif
