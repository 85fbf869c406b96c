#include "common/parallel/meeting.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/parallel/endpoint.h"
#include "common/parallel/siphash.h"

#define MAGIC       UINT64_C(0x31474e5441420000)
#define VERSION     1
#define NONCE_BYTES 16
#define RETRY_MS    20
#define GRACE_NS    (2 * BT_NS_PER_S) /* a rank waits longer for rank 0's word than rank 0 itself */

/* The wire, in the byte order of both ends (another one fails the magic). */
struct greeting {
    uint64_t magic;
    uint32_t version, size;
    unsigned char nonce[NONCE_BYTES];
};
struct hello {
    uint64_t magic;
    uint32_t version, size, rank, unused;
    unsigned char nonce[NONCE_BYTES];
    uint64_t proof; /* over the greeting and all above */
};
struct welcome {
    uint64_t magic;
    uint64_t proof; /* over greeting and hello; another one: the secrets differ */
    int64_t status;
    char text[BT_ERROR_TEXT_SIZE];
};
struct verdict {
    int64_t status;
    char text[BT_ERROR_TEXT_SIZE];
};

/* A connection on rank 0 that has not proved anything yet. */
struct stranger {
    int fd; /* -1: none */
    int64_t deadline_ns;
    struct greeting greeting;
    struct hello hello;
    size_t got; /* of the hello */
};

struct bt_meeting {
    uint32_t rank, size;
    const char *endpoint;
    struct bt_siphash_key key;
    int64_t timeout_ns, deadline_ns;
    struct bt_listener listener;
    int fds[BT_GROUP_RANKS_MAX]; /* rank 0: of every rank; others: [0] alone; -1: none */
    uint32_t here;               /* ranks but rank 0 */
    uint32_t refused;
    struct stranger strangers[BT_MEETING_STRANGERS_MAX];
};

/* ---- proofs ---- */

static struct bt_siphash_key key_of(const char *secret)
{
    static const struct bt_siphash_key halves[] = {{{1, 0}}, {{2, 0}}};
    return (struct bt_siphash_key){{bt_siphash(&halves[0], secret, strlen(secret)),
                                    bt_siphash(&halves[1], secret, strlen(secret))}};
}

static uint64_t proof_of(const struct bt_siphash_key *key, const char *who,
                         const struct greeting *greeting, const struct hello *hello)
{
    struct {
        char who[8];
        struct greeting greeting;
        struct hello hello;
    } all = {.greeting = *greeting, .hello = *hello};
    memcpy(all.who, who, strlen(who));
    all.hello.proof = 0;
    return bt_siphash(key, &all, sizeof(all));
}

/* ---- sockets ---- */

static int left_ms(int64_t deadline_ns)
{
    int64_t left_ns = deadline_ns - bt_clock_now_ns();
    if (left_ns <= 0)
        return 0;
    int64_t ms = (left_ns + BT_NS_PER_MS - 1) / BT_NS_PER_MS;
    return ms > 1000000 ? 1000000 : (int)ms;
}

/* All of it before the deadline. errno: 0 when the other end closed, ETIMEDOUT. */
static bool read_all(int fd, void *data, size_t bytes, int64_t deadline_ns)
{
    for (size_t got = 0; got < bytes;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        ssize_t n = recv(fd, (char *)data + got, bytes - got, MSG_DONTWAIT);
        if (n > 0) {
            got += (size_t)n;
            continue;
        }
        if (n == 0)
            errno = 0;
        if (n == 0 || (errno != EAGAIN && errno != EINTR))
            return false;
        errno = ETIMEDOUT;
        if (left_ms(deadline_ns) == 0)
            return false;
        poll(&wait, 1, left_ms(deadline_ns));
    }
    return true;
}

static bool write_all(int fd, const void *data, size_t bytes, int64_t deadline_ns)
{
    for (size_t sent = 0; sent < bytes;) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        ssize_t n = send(fd, (const char *)data + sent, bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n >= 0) {
            sent += (size_t)n;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return false;
        errno = ETIMEDOUT;
        if (left_ms(deadline_ns) == 0)
            return false;
        poll(&wait, 1, left_ms(deadline_ns));
    }
    return true;
}

static const char *why_not(void)
{
    return errno == 0 ? "connection closed" : strerror(errno);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- rank 0: who comes ---- */

/* A place for a new one; the oldest goes when there is none. */
static struct stranger *stranger_place(struct bt_meeting *meeting)
{
    struct stranger *oldest = &meeting->strangers[0];
    for (size_t i = 0; i < BT_MEETING_STRANGERS_MAX; i++) {
        struct stranger *stranger = &meeting->strangers[i];
        if (stranger->fd < 0)
            return stranger;
        if (stranger->deadline_ns < oldest->deadline_ns)
            oldest = stranger;
    }
    close_fd(&oldest->fd);
    return oldest;
}

static void greet(struct bt_meeting *meeting)
{
    const int one = 1;
    int fd = accept4(meeting->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    struct stranger *stranger = stranger_place(meeting);
    *stranger = (struct stranger){
        .fd = fd,
        .deadline_ns = bt_clock_now_ns() + BT_MEETING_STRANGER_MS * BT_NS_PER_MS,
        .greeting = {.magic = MAGIC, .version = VERSION, .size = meeting->size},
    };
    /* The buffer of a fresh socket takes these few bytes whole. */
    if (getrandom(stranger->greeting.nonce, NONCE_BYTES, 0) != NONCE_BYTES ||
        send(fd, &stranger->greeting, sizeof(stranger->greeting), MSG_NOSIGNAL) !=
            (ssize_t)sizeof(stranger->greeting))
        close_fd(&stranger->fd);
}

static void answer(struct bt_meeting *meeting, struct stranger *stranger,
                   const struct bt_error *error)
{
    struct welcome welcome = {
        .magic = MAGIC,
        .proof = proof_of(&meeting->key, "host", &stranger->greeting, &stranger->hello),
        .status = error->status,
    };
    snprintf(welcome.text, sizeof(welcome.text), "%s", error->text);
    send(stranger->fd, &welcome, sizeof(welcome), MSG_NOSIGNAL);
}

/* A hello is whole. `error`: of the whole group, when this rank can't belong to it. */
static enum bt_status welcome_rank(struct bt_meeting *meeting, struct stranger *stranger,
                                   struct bt_error *error)
{
    const struct hello *hello = &stranger->hello;
    struct bt_error verdict = {.status = BT_OK};
    enum bt_status status = BT_OK;

    if (hello->magic != MAGIC) {
        meeting->refused++;
        close_fd(&stranger->fd);
        return BT_OK;
    }
    if (hello->version != VERSION) {
        bt_error_set(&verdict, BT_ERR_MISMATCH, "rank 0 speaks version %d of the group's protocol",
                     VERSION);
    } else if ((hello->proof ^ proof_of(&meeting->key, "rank", &stranger->greeting, hello)) != 0) {
        bt_error_set(&verdict, BT_ERR_INVALID_ARGUMENT, "secret: rank 0 has another one");
    } else if (hello->size != meeting->size) {
        status =
            bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "rank %u has size %u, rank 0 has size %u",
                         hello->rank, hello->size, meeting->size);
        verdict = *error;
    } else if (hello->rank == 0 || hello->rank >= meeting->size || meeting->fds[hello->rank] >= 0) {
        bt_error_set(&verdict, BT_ERR_INVALID_ARGUMENT, "rank %u is there already", hello->rank);
    }
    answer(meeting, stranger, &verdict);
    if (verdict.status != BT_OK) {
        meeting->refused++;
        close_fd(&stranger->fd);
        return status;
    }
    meeting->fds[hello->rank] = stranger->fd;
    meeting->here++;
    stranger->fd = -1;
    return BT_OK;
}

static enum bt_status hear(struct bt_meeting *meeting, struct stranger *stranger,
                           struct bt_error *error)
{
    ssize_t n = recv(stranger->fd, (char *)&stranger->hello + stranger->got,
                     sizeof(stranger->hello) - stranger->got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return BT_OK;
    if (n <= 0) {
        close_fd(&stranger->fd);
        return BT_OK;
    }
    stranger->got += (size_t)n;
    return stranger->got == sizeof(stranger->hello) ? welcome_rank(meeting, stranger, error)
                                                    : BT_OK;
}

static void forget_rank(struct bt_meeting *meeting, uint32_t rank)
{
    close_fd(&meeting->fds[rank]);
    meeting->here--;
}

static enum bt_status missing(const struct bt_meeting *meeting, struct bt_error *error)
{
    char list[BT_GROUP_RANKS_MAX * 4] = "", refused[64] = "";
    size_t used = 0;
    for (uint32_t r = 1; r < meeting->size; r++)
        if (meeting->fds[r] < 0)
            used += (size_t)snprintf(list + used, sizeof(list) - used, "%s%u", used ? ", " : "", r);
    if (meeting->refused > 0)
        snprintf(refused, sizeof(refused), "; %u others were refused", meeting->refused);
    return bt_error_set(error, BT_ERR_UNAVAILABLE, "group at %s: no rank %s after %.1f s%s",
                        meeting->endpoint, list, (double)meeting->timeout_ns / BT_NS_PER_S,
                        refused);
}

/* One round of waiting. fds: [0] the listener, then strangers, then ranks. */
static enum bt_status gather_step(struct bt_meeting *meeting, struct bt_error *error)
{
    struct pollfd fds[1 + BT_MEETING_STRANGERS_MAX + BT_GROUP_RANKS_MAX];
    int64_t now_ns = bt_clock_now_ns(), wake_ns = meeting->deadline_ns;
    struct pollfd *ranks = fds + 1 + BT_MEETING_STRANGERS_MAX;

    fds[0] = (struct pollfd){.fd = meeting->listener.fd, .events = POLLIN};
    for (size_t i = 0; i < BT_MEETING_STRANGERS_MAX; i++) {
        struct stranger *stranger = &meeting->strangers[i];
        if (stranger->fd >= 0 && stranger->deadline_ns <= now_ns)
            close_fd(&stranger->fd);
        if (stranger->fd >= 0 && stranger->deadline_ns < wake_ns)
            wake_ns = stranger->deadline_ns;
        fds[1 + i] = (struct pollfd){.fd = stranger->fd, .events = POLLIN};
    }
    for (uint32_t r = 0; r < meeting->size; r++)
        ranks[r] = (struct pollfd){.fd = meeting->fds[r], .events = POLLRDHUP};
    if (poll(fds, 1 + BT_MEETING_STRANGERS_MAX + meeting->size, left_ms(wake_ns)) <= 0)
        return BT_OK;
    for (uint32_t r = 1; r < meeting->size; r++)
        if (ranks[r].fd >= 0 && ranks[r].revents != 0)
            forget_rank(meeting, r);
    for (size_t i = 0; i < BT_MEETING_STRANGERS_MAX; i++) {
        if (fds[1 + i].fd < 0 || fds[1 + i].revents == 0)
            continue;
        enum bt_status status = hear(meeting, &meeting->strangers[i], error);
        if (status != BT_OK)
            return status;
    }
    if (fds[0].revents != 0)
        greet(meeting);
    return BT_OK;
}

static void tell(struct bt_meeting *meeting, enum bt_status status, const char *text,
                 const void *table, size_t bytes, int64_t deadline_ns)
{
    struct verdict verdict = {.status = status};
    snprintf(verdict.text, sizeof(verdict.text), "%s", text);
    for (uint32_t r = 1; r < meeting->size; r++)
        if (meeting->fds[r] >= 0 &&
            write_all(meeting->fds[r], &verdict, sizeof(verdict), deadline_ns) && bytes > 0)
            write_all(meeting->fds[r], table, bytes, deadline_ns);
}

static enum bt_status gather(struct bt_meeting *meeting, struct bt_error *error)
{
    enum bt_status status =
        bt_endpoint_listen(meeting->endpoint, meeting->deadline_ns, error, &meeting->listener);
    while (status == BT_OK && meeting->here < meeting->size - 1) {
        status = bt_clock_now_ns() >= meeting->deadline_ns ? missing(meeting, error)
                                                           : gather_step(meeting, error);
        if (status != BT_OK)
            tell(meeting, status, error->text, NULL, 0, bt_clock_now_ns() + GRACE_NS);
    }
    bt_listener_close(&meeting->listener, meeting->endpoint);
    for (size_t i = 0; i < BT_MEETING_STRANGERS_MAX; i++)
        close_fd(&meeting->strangers[i].fd);
    return status;
}

/* ---- the others ---- */

static int connect_to(const struct bt_endpoint *endpoint, uint32_t i, int64_t deadline_ns)
{
    const struct sockaddr *address = (const struct sockaddr *)&endpoint->addresses[i];
    const int one = 1;
    int code = 0;
    socklen_t size = sizeof(code);
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    if (fd < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(fd, address, endpoint->sizes[i]) == 0)
        return fd;
    if (errno == EINPROGRESS) {
        code = poll(&wait, 1, left_ms(deadline_ns)) == 1 ? 0 : ETIMEDOUT;
        if (code == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size) == 0 && code == 0)
            return fd;
        errno = code;
    }
    int saved_errno = errno;
    close(fd);
    errno = saved_errno;
    return -1;
}

/* OK; IN_PROGRESS: try again, *why says what was wrong; or an error that stays. */
static enum bt_status introduce(struct bt_meeting *meeting, int fd, const char **why,
                                struct bt_error *error)
{
    struct greeting greeting;
    struct welcome welcome;
    struct hello hello = {
        .magic = MAGIC, .version = VERSION, .size = meeting->size, .rank = meeting->rank};

    if (getrandom(hello.nonce, NONCE_BYTES, 0) != NONCE_BYTES)
        return bt_error_set(error, BT_ERR_INTERNAL, "getrandom: %m");
    int64_t patience_ns = bt_clock_now_ns() + BT_MEETING_STRANGER_MS * BT_NS_PER_MS;
    if (patience_ns > meeting->deadline_ns)
        patience_ns = meeting->deadline_ns;
    if (!read_all(fd, &greeting, sizeof(greeting), patience_ns)) {
        *why = why_not();
        return BT_IN_PROGRESS;
    }
    if (greeting.magic != MAGIC) {
        *why = "what listens there is no rank of a group";
        return BT_IN_PROGRESS;
    }
    hello.proof = proof_of(&meeting->key, "rank", &greeting, &hello);
    if (!write_all(fd, &hello, sizeof(hello), patience_ns) ||
        !read_all(fd, &welcome, sizeof(welcome), patience_ns)) {
        *why = why_not();
        return BT_IN_PROGRESS;
    }
    if ((welcome.proof ^ proof_of(&meeting->key, "host", &greeting, &hello)) != 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group at %s: secret: rank 0 has another one than rank %u",
                            meeting->endpoint, meeting->rank);
    welcome.text[sizeof(welcome.text) - 1] = '\0';
    if (welcome.status != BT_OK)
        return bt_error_set(error, (enum bt_status)welcome.status, "group at %s: %s",
                            meeting->endpoint, welcome.text);
    return BT_OK;
}

static enum bt_status try_once(struct bt_meeting *meeting, const struct bt_endpoint *endpoint,
                               const char **why, struct bt_error *error)
{
    enum bt_status status = BT_IN_PROGRESS;
    for (uint32_t i = 0; i < endpoint->count && status == BT_IN_PROGRESS; i++) {
        int fd = connect_to(endpoint, i, meeting->deadline_ns);
        if (fd < 0) {
            *why = strerror(errno);
            continue;
        }
        status = introduce(meeting, fd, why, error);
        if (status == BT_OK)
            meeting->fds[0] = fd;
        else
            close(fd);
    }
    return status;
}

static enum bt_status look_for_host(struct bt_meeting *meeting, struct bt_error *error)
{
    const char *why = "";
    struct bt_endpoint endpoint;
    enum bt_status status = BT_IN_PROGRESS;

    for (;;) {
        status = bt_endpoint_resolve(meeting->endpoint, false, error, &endpoint);
        if (status == BT_OK) {
            status = try_once(meeting, &endpoint, &why, error);
        } else if (status == BT_ERR_UNAVAILABLE) { /* a name may come with its host */
            why = "its name is not known";
            status = BT_IN_PROGRESS;
        }
        if (status != BT_IN_PROGRESS)
            return status;
        if (left_ms(meeting->deadline_ns) == 0)
            return bt_error_set(error, BT_ERR_UNAVAILABLE,
                                "group at %s: no rank 0 after %.1f s: %s", meeting->endpoint,
                                (double)meeting->timeout_ns / BT_NS_PER_S, why);
        poll(NULL, 0, RETRY_MS);
    }
}

/* ---- all ---- */

enum bt_status bt_meeting_open(const struct bt_group_options *options, struct bt_error *error,
                               struct bt_meeting **ret_meeting)
{
    struct bt_meeting *meeting = calloc(1, sizeof(*meeting));
    if (!meeting)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "group: no memory to meet");
    *meeting = (struct bt_meeting){
        .rank = options->rank,
        .size = options->size,
        .endpoint = options->endpoint,
        .key = key_of(options->secret),
        .timeout_ns = options->connect_timeout_ns,
        .deadline_ns = bt_clock_now_ns() + options->connect_timeout_ns,
        .listener = {.fd = -1},
    };
    for (uint32_t r = 0; r < BT_GROUP_RANKS_MAX; r++)
        meeting->fds[r] = -1;
    for (size_t i = 0; i < BT_MEETING_STRANGERS_MAX; i++)
        meeting->strangers[i].fd = -1;
    enum bt_status status =
        options->rank == 0 ? gather(meeting, error) : look_for_host(meeting, error);
    if (status != BT_OK) {
        bt_meeting_close(meeting);
        return status;
    }
    *ret_meeting = meeting;
    return BT_OK;
}

void bt_meeting_close(struct bt_meeting *meeting)
{
    if (!meeting)
        return;
    for (uint32_t r = 0; r < BT_GROUP_RANKS_MAX; r++)
        close_fd(&meeting->fds[r]);
    free(meeting);
}

static enum bt_status host_exchange(struct bt_meeting *meeting, const void *card, size_t bytes,
                                    struct bt_error *error, char *cards)
{
    int64_t deadline_ns = bt_clock_now_ns() + meeting->timeout_ns;
    enum bt_status status = BT_OK;

    memcpy(cards, card, bytes);
    for (uint32_t r = 1; r < meeting->size && status == BT_OK; r++)
        if (!read_all(meeting->fds[r], cards + r * bytes, bytes, deadline_ns))
            status = bt_error_set(error, BT_ERR_UNAVAILABLE, "rank %u left while the group met: %s",
                                  r, why_not());
    tell(meeting, status, status == BT_OK ? "" : error->text, cards,
         status == BT_OK ? bytes * meeting->size : 0, bt_clock_now_ns() + GRACE_NS);
    return status;
}

static enum bt_status guest_exchange(struct bt_meeting *meeting, const void *card, size_t bytes,
                                     struct bt_error *error, char *cards)
{
    int64_t start_ns = bt_clock_now_ns();
    int64_t deadline_ns = start_ns > meeting->deadline_ns ? start_ns : meeting->deadline_ns;
    struct verdict verdict;

    deadline_ns += meeting->timeout_ns + GRACE_NS;
    if (!write_all(meeting->fds[0], card, bytes, deadline_ns) ||
        !read_all(meeting->fds[0], &verdict, sizeof(verdict), deadline_ns))
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "rank 0 left while the group met: %s",
                            why_not());
    verdict.text[sizeof(verdict.text) - 1] = '\0';
    if (verdict.status != BT_OK)
        return bt_error_set(error, (enum bt_status)verdict.status, "%s", verdict.text);
    if (!read_all(meeting->fds[0], cards, bytes * meeting->size, deadline_ns))
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "rank 0 left while the group met: %s",
                            why_not());
    return BT_OK;
}

enum bt_status bt_meeting_exchange(struct bt_meeting *meeting, const void *card, size_t bytes,
                                   struct bt_error *error, void *ret_cards)
{
    BT_ASSERT(bytes <= BT_MEETING_CARD_MAX);
    return meeting->rank == 0 ? host_exchange(meeting, card, bytes, error, ret_cards)
                              : guest_exchange(meeting, card, bytes, error, ret_cards);
}

enum bt_status bt_meeting_agree(struct bt_meeting *meeting, enum bt_status mine,
                                struct bt_error *error)
{
    struct verdict own = {.status = mine};
    struct bt_error quiet = {0};
    struct verdict *all = calloc(meeting->size, sizeof(*all));
    if (!all) /* the others see this rank leave */
        return bt_error_set(error, BT_ERR_NO_MEMORY, "group: no memory to meet");
    if (mine != BT_OK && error)
        snprintf(own.text, sizeof(own.text), "%s", error->text);
    enum bt_status status = bt_meeting_exchange(meeting, &own, sizeof(own), &quiet, all);
    if (status != BT_OK)
        status = bt_error_set(error, status, "%s", quiet.text);
    for (uint32_t r = 0; r < meeting->size && status == BT_OK; r++) {
        all[r].text[sizeof(all[r].text) - 1] = '\0';
        if (all[r].status != BT_OK)
            status =
                bt_error_set(error, (enum bt_status)all[r].status, "rank %u: %s", r, all[r].text);
    }
    free(all);
    return status;
}
