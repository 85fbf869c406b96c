/*
 * The two ends of kvtransfer/tcp against a peer that may say anything, over real sockets. An input
 * is a byte that chooses the end, and steps, [kind][argument, 4 bytes][bytes of its own]:
 *
 *     hello      the right one; with argument % 8 == 7 the argument goes over one of its bytes
 *     frame      a kind (argument % 5), address and value from the bytes behind
 *     write      to the pool's start + argument (signed), of as many bytes as the next two say
 *     raw        as many bytes as the argument says
 *     look       the transport makes progress
 *
 * The target must write inside of its pool only; the source completes each write and flush exactly
 * once, a flush with OK only after the target answered it; both are through with a peer that left.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>

#include "kvtransfer/tcp/internal.h"
#include "tests/fuzz/driver.h"

#define PAGE        4096
#define POOL_BYTES  (4 * PAGE)
#define WRITES      5
#define PATIENCE_NS (120 * BT_NS_PER_S)

enum step { HELLO, FRAME, WRITE, RAW, LOOK, STEPS };

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* ---- the other side: a socket that says what the input says ---- */

struct mouth {
    int fd;
    struct kvt_transport *transport;
    struct kvt_peer *peer; /* of a source; NULL: of a target */
    unsigned char token[KVT_TCP_TOKEN_BYTES];
    uint64_t pool;
    uint64_t flushed; /* flushes that were answered: one more than the highest number */
    bool ready;
};

/* Takes what is there, so that nobody waits for room. False: the transport closed, or, as a source,
 * which closes when its peer does, has given up. */
static bool listen_to(struct mouth *mouth)
{
    char bytes[4096];
    ssize_t count;

    mouth->transport->ops->progress(mouth->transport);
    if (mouth->peer != NULL && mouth->transport->ops->peer_state(mouth->peer) == KVT_PEER_FAILED)
        return false;
    do {
        count = recv(mouth->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    } while (count > 0);
    return count < 0 && (errno == EAGAIN || errno == EINTR);
}

static void say(struct mouth *mouth, const void *bytes, size_t size)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;

    while (size > 0) {
        ssize_t count = send(mouth->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count > 0) {
            bytes = (const char *)bytes + count;
            size -= (size_t)count;
        } else if ((errno != EAGAIN && errno != EINTR) || !listen_to(mouth)) {
            return;
        }
        must(bt_clock_now_ns() < give_up_ns, "the transport takes nothing, and does not close");
    }
}

static void say_hello(struct mouth *mouth, uint32_t argument)
{
    struct kvt_tcp_hello hello = {
        .magic = KVT_TCP_MAGIC, .version = KVT_TCP_VERSION, .incarnation = 5, .link = 6};

    memcpy(hello.token, mouth->token, sizeof(hello.token));
    if (argument % 8 == 7)
        ((uint8_t *)&hello)[(argument >> 8) % sizeof(hello)] = (uint8_t)(argument >> 24);
    say(mouth, &hello, sizeof(hello));
}

static void say_frame(struct mouth *mouth, uint32_t kind, uint64_t address, uint64_t value)
{
    const struct kvt_tcp_frame frame = {
        .magic = KVT_TCP_MAGIC, .kind = kind % 5, .address = address, .value = value};

    mouth->ready = mouth->ready || frame.kind == KVT_TCP_READY;
    if (frame.kind == KVT_TCP_FLUSHED && value >= mouth->flushed)
        mouth->flushed = value < UINT64_MAX ? value + 1 : value;
    say(mouth, &frame, sizeof(frame));
}

/* Up to `size` bytes of the input. */
static size_t take(const uint8_t **data, size_t *left, void *to, size_t size)
{
    if (size > *left)
        size = *left;
    memcpy(to, *data, size);
    *data += size;
    *left -= size;
    return size;
}

static void say_write(struct mouth *mouth, int32_t offset, const uint8_t **data, size_t *left)
{
    uint8_t bytes[POOL_BYTES] = {0};
    uint16_t size = 0;

    take(data, left, &size, sizeof(size));
    say_frame(mouth, KVT_TCP_WRITE, mouth->pool + (uint64_t)(int64_t)offset, size);
    say(mouth, bytes, take(data, left, bytes, size < sizeof(bytes) ? size : sizeof(bytes)));
}

static void say_step(struct mouth *mouth, const uint8_t **data, size_t *left)
{
    uint64_t numbers[2] = {0};
    uint8_t kind = 0, bytes[256];
    uint32_t argument = 0;

    take(data, left, &kind, 1);
    take(data, left, &argument, sizeof(argument));
    switch ((enum step)(kind % STEPS)) {
    case HELLO:
        say_hello(mouth, argument);
        break;
    case FRAME:
        take(data, left, numbers, sizeof(numbers));
        say_frame(mouth, argument, numbers[0], numbers[1]);
        break;
    case WRITE:
        say_write(mouth, (int32_t)argument, data, left);
        break;
    case RAW:
        mouth->ready = true; /* what it is nobody knows */
        mouth->flushed = UINT64_MAX;
        say(mouth, bytes, take(data, left, bytes, argument % sizeof(bytes)));
        break;
    default:
        listen_to(mouth);
    }
}

/* Says all, leaves, and waits until the transport has noticed. */
static void say_all(struct mouth *mouth, const uint8_t *data, size_t size)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;

    while (size > 0)
        say_step(mouth, &data, &size);
    shutdown(mouth->fd, SHUT_WR);
    while (listen_to(mouth)) {
        struct pollfd fd = {.fd = mouth->fd, .events = POLLIN};
        poll(&fd, 1, 1);
        must(bt_clock_now_ns() < give_up_ns, "the transport keeps a peer that left");
    }
}

static void leave(int fd)
{
    const struct linger at_once = {.l_onoff = 1}; /* leaves no port behind */

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(fd);
}

static struct kvt_transport *make_transport(void)
{
    const struct kvt_transport_options options = {.name = "tcp"};
    struct kvt_transport *transport;

    must(kvt_tcp_transport_create(&options, NULL, &transport) == BT_OK, "no transport");
    return transport;
}

/* ---- against a target ---- */

static void check_guards(const unsigned char *buffer)
{
    for (size_t i = 0; i < PAGE; i++)
        must(buffer[i] == 0xa5 && buffer[PAGE + POOL_BYTES + i] == 0xa5, "a write beside the pool");
}

static void against_target(const uint8_t *data, size_t size)
{
    struct mouth mouth = {.transport = make_transport()};
    unsigned char *buffer = aligned_alloc(PAGE, POOL_BYTES + 2 * PAGE);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct kvt_tcp_address *address;
    struct kvt_memory *memory;
    const void *payload;
    size_t blob_size, payload_size;
    void *blob;

    memset(buffer, 0xa5, POOL_BYTES + 2 * PAGE);
    must(mouth.transport->ops->memory_register(mouth.transport, buffer + PAGE, POOL_BYTES, NULL,
                                               &memory) == BT_OK,
         "no memory");
    must(mouth.transport->ops->address(mouth.transport, NULL, &blob, &blob_size) == BT_OK &&
             kvt_blob_unwrap(KVT_BLOB_TCP_ADDRESS, blob, blob_size, NULL, &payload,
                             &payload_size) == BT_OK,
         "no address");
    address = payload;
    memcpy(mouth.token, address->token, sizeof(mouth.token));
    to.sin_port = htons(address->port);
    mouth.pool = (uintptr_t)buffer + PAGE;
    mouth.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    must(connect(mouth.fd, (struct sockaddr *)&to, sizeof(to)) == 0, "can't connect");
    say_all(&mouth, data, size);
    check_guards(buffer);
    leave(mouth.fd);
    mouth.transport->ops->memory_free(mouth.transport, memory);
    mouth.transport->ops->destroy(mouth.transport);
    check_guards(buffer);
    free(blob);
    free(buffer);
}

/* ---- against a source ---- */

struct posted {
    struct mouth *mouth;
    uint64_t flush; /* one more than its number; 0: a write */
    bool out, over;
};

static void on_done(void *context, enum bt_status status)
{
    struct posted *posted = context;

    must(posted->out && !posted->over, "completed twice, or never posted");
    must(status == BT_OK || status == BT_ERR_PEER_LOST, "no such completion");
    must(status != BT_OK || posted->flush <= posted->mouth->flushed, "flushed before its answer");
    posted->over = true;
}

static void note(struct posted *posted, enum bt_status status)
{
    must(status == BT_OK || status == BT_IN_PROGRESS || status == BT_ERR_EXHAUSTED ||
             status == BT_ERR_PEER_LOST,
         "no such result");
    must(status != BT_OK || posted->flush == 0, "a flush is over before anybody was asked");
    if (status != BT_IN_PROGRESS)
        posted->out = false;
}

static void post(struct kvt_transport *transport, struct kvt_peer *peer, struct posted *posted,
                 struct mouth *mouth, uint64_t base)
{
    static const char payload[512];
    uint64_t flushes = 0;

    for (int i = 0; i < 2 * WRITES; i++) {
        posted[i] = (struct posted){.mouth = mouth, .out = true, .flush = i % 2 ? ++flushes : 0};
        note(&posted[i], i % 2 ? transport->ops->flush(peer, on_done, &posted[i])
                               : transport->ops->write(peer, payload, sizeof(payload), base,
                                                       on_done, &posted[i]));
    }
}

static int make_listener(struct kvt_tcp_address *ret_address)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(at);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    must(bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(fd, 1) == 0 &&
             getsockname(fd, (struct sockaddr *)&at, &size) == 0,
         "can't listen");
    *ret_address = (struct kvt_tcp_address){.family = AF_INET, .port = ntohs(at.sin_port)};
    memcpy(ret_address->ip, &at.sin_addr, sizeof(at.sin_addr));
    return fd;
}

static void against_source(const uint8_t *data, size_t size)
{
    static const struct kvt_key_range range = {.base = 1 << 20, .bytes = POOL_BYTES};
    static const struct kvt_origin origin = {.incarnation = 5, .link = 6};
    struct mouth mouth = {.transport = make_transport(), .pool = range.base};
    const struct kvt_transport_ops *ops = mouth.transport->ops;
    struct posted posted[2 * WRITES] = {0};
    struct kvt_tcp_address address;
    struct kvt_peer *peer;
    size_t address_size, key_size;
    void *address_blob, *key_blob;
    int listener = make_listener(&address);
    bool was_ready = false;

    must(kvt_blob_wrap(KVT_BLOB_TCP_ADDRESS, &address, sizeof(address), NULL, &address_blob,
                       &address_size) == BT_OK &&
             kvt_key_pack(KVT_BLOB_TCP_KEY, &range, NULL, 0, NULL, &key_blob, &key_size) == BT_OK &&
             ops->connect(mouth.transport, address_blob, address_size, key_blob, key_size, &origin,
                          NULL, &peer) == BT_OK,
         "can't connect");
    mouth.peer = peer;
    mouth.fd = accept(listener, NULL, NULL);
    must(mouth.fd >= 0, "nobody connects");
    if (data[0] & 1) { /* a right answer first, so that there is something to lose */
        int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
        say_frame(&mouth, KVT_TCP_READY, 0, 0);
        while (ops->peer_state(peer) == KVT_PEER_CONNECTING) {
            listen_to(&mouth);
            must(bt_clock_now_ns() < give_up_ns, "not ready");
        }
        was_ready = true;
        post(mouth.transport, peer, posted, &mouth, range.base);
    }
    say_all(&mouth, data + 1, size - 1);
    must(ops->peer_state(peer) == KVT_PEER_FAILED, "a target that left is still there");
    must(was_ready || mouth.ready || ops->peer_error(peer)[0] != '\0', "no reason");
    ops->peer_close(peer);
    for (int i = 0; i < 2 * WRITES; i++)
        must(!posted[i].out || posted[i].over, "never completed");
    leave(mouth.fd);
    close(listener);
    ops->destroy(mouth.transport);
    free(address_blob);
    free(key_blob);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    if (data[0] % 2 == 0)
        against_target(data + 1, size - 1);
    else
        against_source(data + 1, size - 1);
    return 0;
}

/* ---- seeds ---- */

static uint8_t *add(uint8_t *at, enum step step, uint32_t argument, const void *bytes, size_t size)
{
    *at = (uint8_t)step;
    memcpy(at + 1, &argument, sizeof(argument));
    memcpy(at + 5, bytes, size);
    return at + 5 + size;
}

static uint8_t *add_write(uint8_t *at, int32_t offset, uint16_t size)
{
    at = add(at, WRITE, (uint32_t)offset, &size, sizeof(size));
    memset(at, 0x11, size);
    return at + size;
}

static uint8_t *add_frame(uint8_t *at, enum kvt_tcp_kind kind, uint64_t address, uint64_t value)
{
    const uint64_t numbers[2] = {address, value};

    return add(at, FRAME, kind, numbers, sizeof(numbers));
}

/* A target that takes writes, at the ends of its pool, too; then sources in three moods. */
size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    uint8_t *at = ret_data + 2;

    if (index > 3 || capacity < 4096)
        return 0;
    ret_data[0] = index > 0;
    ret_data[1] = index > 1;
    if (index == 0) {
        at = add(ret_data + 1, HELLO, 0, "", 0);
        at = add_write(at, 0, 100);
        at = add_write(at, POOL_BYTES - 200, 200);
        at = add_frame(at, KVT_TCP_FLUSH, 0, 1);
        at = add(at, LOOK, 0, "", 0);
        at = add_write(at, PAGE, 700);
        at = add_write(at, POOL_BYTES - 50, 60);
        return (size_t)(add_frame(at, KVT_TCP_FLUSH, 0, 2) - ret_data);
    }
    at = add(at, LOOK, 0, "", 0);
    if (index == 1)
        at = add_frame(at, KVT_TCP_READY, 0, 0);
    for (uint64_t i = 0; i < WRITES; i += index) {
        at = add_frame(at, KVT_TCP_FLUSHED, 0, i);
        at = add(at, LOOK, 0, "", 0);
    }
    at = add(at, RAW, 5, "noise", 5);
    return (size_t)(at - ret_data);
}
