/*
 * Shared by the files of kvtransfer/tcp/.
 *
 * The wire, in the byte order of both ends (another one fails the magic): a source connects and
 * sends a hello; the target answers READY; then frames, WRITE followed by its payload. FLUSH is
 * answered by FLUSHED with the same value once all before it is in memory, which on one stream is
 * when it is read; it answers the ones before it, too.
 */
#ifndef BATON_KVTRANSFER_TCP_INTERNAL_H
#define BATON_KVTRANSFER_TCP_INTERNAL_H

#include <sys/socket.h>

#include "common/base/clock.h"
#include "kvtransfer/blob.h"
#include "kvtransfer/tcp/tcp.h"

#define KVT_TCP_MAGIC       UINT32_C(0x42544b56)
#define KVT_TCP_VERSION     2
#define KVT_TCP_TOKEN_BYTES 16
#define KVT_TCP_READ_BYTES  (UINT64_C(1) << 20) /* of one source, before the next has its turn */
#define KVT_TCP_IOVECS      64

enum kvt_tcp_kind {
    KVT_TCP_READY = 1,
    KVT_TCP_WRITE,
    KVT_TCP_FLUSH,
    KVT_TCP_FLUSHED,
};

struct kvt_tcp_hello {
    uint32_t magic, version;
    unsigned char token[KVT_TCP_TOKEN_BYTES];
    uint64_t incarnation, link; /* of kvt_origin */
    uint32_t line, zero;
};

struct kvt_tcp_frame {
    uint32_t magic, kind;
    uint64_t address; /* WRITE */
    uint64_t value;   /* WRITE: bytes that follow; FLUSH, FLUSHED: its number */
};

struct kvt_tcp_address {
    unsigned char token[KVT_TCP_TOKEN_BYTES];
    unsigned char ip[16]; /* network byte order; 4 used for AF_INET */
    uint16_t family;      /* AF_INET, AF_INET6 */
    uint16_t port;
    uint32_t scope; /* of a link-local IPv6 address */
};

/* Data of an epoll event: the first member of all that have a socket. */
enum kvt_tcp_owner { KVT_TCP_WAKE, KVT_TCP_LISTENER, KVT_TCP_PEER, KVT_TCP_SOURCE };
struct kvt_tcp_socket {
    enum kvt_tcp_owner owner;
    int fd;                  /* -1: closed */
    bool readable, writable; /* until a call says EAGAIN */
};

struct kvt_tcp_op {
    struct kvt_tcp_frame frame;
    const char *source;
    size_t sent; /* of frame and payload */
    kvt_completion_fn *done;
    void *context;
    struct kvt_tcp_op *next;
};

struct kvt_tcp_queue {
    struct kvt_tcp_op *first, *last;
};

struct kvt_peer {
    struct kvt_tcp_socket socket;
    struct kvt_tcp *tcp;
    enum kvt_peer_state state;
    bool connected; /* and the hello is on its way */
    struct bt_error error;
    struct kvt_tcp_address address;
    struct kvt_key_range range;
    struct kvt_origin origin;
    struct kvt_tcp_queue unsent;     /* the first may be sent in part */
    struct kvt_tcp_queue unanswered; /* flushes */
    uint64_t flushes;
    struct kvt_tcp_frame answer;
    size_t answer_bytes;
    char device[KVT_DEVICE_NAME_SIZE];
    struct kvt_peer *next;
};

struct kvt_tcp_source {
    struct kvt_tcp_socket socket;
    bool named;
    struct kvt_origin origin;
    int64_t deadline_ns; /* of the hello */
    union {
        struct kvt_tcp_hello hello;
        struct kvt_tcp_frame frame;
    } head;
    size_t head_bytes; /* read so far */
    char *payload;     /* where the rest of the current write goes */
    uint64_t payload_left;
    bool ready_due, flushed_due;
    uint64_t flushed; /* the last flush that came */
    struct kvt_tcp_frame answer;
    size_t answer_left;          /* bytes of it to be sent */
    struct kvt_tcp_source *next; /* the newest first */
};

struct kvt_memory {
    void *base;
    size_t bytes;
    bool registered;
    struct kvt_memory *next;
};

struct kvt_tcp {
    struct kvt_transport base;
    struct sockaddr_storage bind; /* listens there */
    bool bind_source;             /* and connects from there: a device was named */
    unsigned char token[KVT_TCP_TOKEN_BYTES];
    int epoll_fd;
    struct kvt_tcp_socket wake;
    struct kvt_tcp_socket listener;
    int64_t accept_again_ns; /* 0: now */
    struct kvt_memory *memories;
    struct kvt_tcp_op *ops, *free_ops;
    struct kvt_peer *peers;
    struct kvt_tcp_source *sources;
    unsigned named_count, stranger_count;
};

/* transport.c */
socklen_t kvt_tcp_sockaddr_size(const struct sockaddr_storage *address);
bool kvt_tcp_watch(struct kvt_tcp *tcp, struct kvt_tcp_socket *socket, uint32_t events);
void kvt_tcp_socket_close(struct kvt_tcp_socket *socket);
/* No delay, and a host that is gone is noticed within 20 s. */
void kvt_tcp_tune(int fd);
/* NULL: not inside of one memory of ours. */
char *kvt_tcp_memory_at(const struct kvt_tcp *tcp, uint64_t address, uint64_t bytes);

/* peer.c: see kvt_transport_ops */
enum bt_status kvt_tcp_connect(struct kvt_transport *base, const void *address, size_t address_size,
                               const void *key, size_t key_size, const struct kvt_origin *origin,
                               struct bt_error *error, struct kvt_peer **ret_peer);
enum kvt_peer_state kvt_tcp_peer_state(const struct kvt_peer *peer);
const char *kvt_tcp_peer_transport(const struct kvt_peer *peer);
uint32_t kvt_tcp_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                            uint32_t max);
const char *kvt_tcp_peer_error(const struct kvt_peer *peer);
void *kvt_tcp_map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes);
enum bt_status kvt_tcp_write(struct kvt_peer *peer, const void *source, size_t bytes,
                             uint64_t remote_address, kvt_completion_fn *done, void *context);
enum bt_status kvt_tcp_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context);
void kvt_tcp_peer_close(struct kvt_peer *peer);
bool kvt_tcp_peer_step(struct kvt_peer *peer);

/* acceptor.c */
enum bt_status kvt_tcp_address(struct kvt_transport *base, struct bt_error *error,
                               void **ret_address, size_t *ret_size);
void kvt_tcp_disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                        kvt_completion_fn *done, void *context);
bool kvt_tcp_sources_step(struct kvt_tcp *tcp);
void kvt_tcp_sources_close(struct kvt_tcp *tcp);
/* When sources_step wants to be called though nothing happens. */
int64_t kvt_tcp_sources_deadline_ns(const struct kvt_tcp *tcp);

#endif
