#include "kvtransfer/choice/choice.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/process.h"
#include "kvtransfer/choice/blob.h"

#define EVENTS_MAX 8

struct choice {
    struct kvt_transport base;
    struct kvt_choice choices[KVT_CHOICES_MAX];
    uint32_t count;
    bool forbid_fallback;
    _Atomic uint64_t fallbacks;
    struct bt_process_id self;
    int epoll_fd, wake_fd;
    struct kvt_memory *memories;
    struct kvt_peer *peers;
};

struct kvt_memory {
    void *base;
    struct kvt_memory *parts[KVT_CHOICES_MAX];
    struct kvt_memory *next;
};

struct kvt_peer {
    struct choice *choice;
    uint32_t index;         /* of the choice in use */
    struct kvt_peer *inner; /* its peer; NULL: none could be opened */
    bool settled;           /* it was READY once */
    struct bt_error error;
    struct kvt_origin origin;
    void *address, *key; /* for the next try; parts point into them */
    struct kvt_choice_part addresses[KVT_CHOICES_MAX], keys[KVT_CHOICES_MAX];
    uint32_t address_count, key_count;
    struct kvt_peer *next;
};

static const struct kvt_transport_ops *ops_of(const struct kvt_peer *peer)
{
    return peer->choice->choices[peer->index].transport->ops;
}

/* ---- memory ---- */

static void drop(struct choice *choice, uint32_t at)
{
    struct kvt_transport *transport = choice->choices[at].transport;

    choice->count--;
    memmove(&choice->choices[at], &choice->choices[at + 1],
            (choice->count - at) * sizeof(choice->choices[0]));
    transport->ops->destroy(transport);
}

static enum bt_status alloc_first(struct choice *choice, size_t bytes, struct bt_error *error,
                                  struct kvt_memory **ret_part)
{
    struct bt_error why = {0};

    for (;;) {
        struct kvt_transport *transport = choice->choices[0].transport;
        enum bt_status status = transport->ops->memory_alloc(transport, bytes, &why, ret_part);
        if (status != BT_ERR_UNAVAILABLE || choice->count == 1 || choice->memories != NULL ||
            choice->forbid_fallback) {
            if (status != BT_OK && error != NULL)
                *error = why;
            return status;
        }
        bt_log_warn(0, "kv transport %s is not offered: %s", choice->choices[0].name, why.text);
        drop(choice, 0);
    }
}

static void memory_free(struct kvt_transport *base, struct kvt_memory *memory)
{
    struct choice *choice = (struct choice *)base;
    struct kvt_memory **link = &choice->memories;

    if (memory == NULL)
        return;
    for (uint32_t i = choice->count; i-- > 0;) { /* the first owns what the others registered */
        struct kvt_transport *transport = choice->choices[i].transport;
        if (memory->parts[i] != NULL)
            transport->ops->memory_free(transport, memory->parts[i]);
    }
    while (*link != memory)
        link = &(*link)->next;
    *link = memory->next;
    free(memory);
}

/* The choices from `first` on. */
static enum bt_status register_parts(struct choice *choice, struct kvt_memory *memory,
                                     uint32_t first, size_t bytes, struct bt_error *error)
{
    enum bt_status status = BT_OK;

    for (uint32_t i = first; i < choice->count && status == BT_OK; i++) {
        struct kvt_transport *transport = choice->choices[i].transport;
        status = transport->ops->memory_register(transport, memory->base, bytes, error,
                                                 &memory->parts[i]);
    }
    return status;
}

static enum bt_status memory_alloc(struct kvt_transport *base, size_t bytes, struct bt_error *error,
                                   struct kvt_memory **ret_memory)
{
    struct choice *choice = (struct choice *)base;
    struct kvt_memory *memory = calloc(1, sizeof(*memory));
    enum bt_status status;

    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    status = alloc_first(choice, bytes, error, &memory->parts[0]);
    memory->next = choice->memories;
    choice->memories = memory;
    if (status == BT_OK) {
        memory->base = choice->choices[0].transport->ops->memory_base(memory->parts[0]);
        status = register_parts(choice, memory, 1, bytes, error);
    }
    if (status != BT_OK) {
        memory_free(base, memory);
        return status;
    }
    *ret_memory = memory;
    return BT_OK;
}

static enum bt_status memory_register(struct kvt_transport *base, void *memory_base, size_t bytes,
                                      struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct choice *choice = (struct choice *)base;
    struct kvt_memory *memory = calloc(1, sizeof(*memory));
    enum bt_status status;

    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memory->base = memory_base;
    memory->next = choice->memories;
    choice->memories = memory;
    status = register_parts(choice, memory, 0, bytes, error);
    if (status != BT_OK) {
        memory_free(base, memory);
        return status;
    }
    *ret_memory = memory;
    return BT_OK;
}

static void *memory_base_of(const struct kvt_memory *memory)
{
    return memory->base;
}

/* ---- what the target tells ---- */

static enum bt_status pack_parts(enum kvt_blob_kind kind, struct choice *choice,
                                 const struct kvt_memory *memory, struct bt_error *error,
                                 void **ret_blob, size_t *ret_size)
{
    struct kvt_choice_part parts[KVT_CHOICES_MAX] = {0};
    enum bt_status status = BT_OK;
    uint32_t count = 0;

    while (count < choice->count && status == BT_OK) {
        struct kvt_transport *transport = choice->choices[count].transport;
        void *bytes = NULL;
        snprintf(parts[count].name, sizeof(parts[count].name), "%s", choice->choices[count].name);
        status = memory == NULL
                     ? transport->ops->address(transport, error, &bytes, &parts[count].size)
                     : transport->ops->memory_pack_key(transport, memory->parts[count], error,
                                                       &bytes, &parts[count].size);
        parts[count].bytes = bytes;
        count += status == BT_OK;
    }
    if (status == BT_OK)
        status = kvt_choice_pack(kind, parts, count, error, ret_blob, ret_size);
    for (uint32_t i = 0; i < count; i++)
        free((void *)parts[i].bytes);
    return status;
}

static enum bt_status memory_pack_key(struct kvt_transport *base, const struct kvt_memory *memory,
                                      struct bt_error *error, void **ret_key, size_t *ret_size)
{
    return pack_parts(KVT_BLOB_CHOICE_KEY, (struct choice *)base, memory, error, ret_key, ret_size);
}

static enum bt_status address(struct kvt_transport *base, struct bt_error *error,
                              void **ret_address, size_t *ret_size)
{
    return pack_parts(KVT_BLOB_CHOICE_ADDRESS, (struct choice *)base, NULL, error, ret_address,
                      ret_size);
}

struct disconnect {
    uint32_t left;
    kvt_completion_fn *done;
    void *context;
};

static void on_disconnected(void *context, enum bt_status status)
{
    struct disconnect *disconnect = context;

    (void)status;
    if (--disconnect->left > 0)
        return;
    disconnect->done(disconnect->context, BT_OK);
    free(disconnect);
}

static void disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                       kvt_completion_fn *done, void *context)
{
    struct choice *choice = (struct choice *)base;
    struct disconnect *disconnect = malloc(sizeof(*disconnect));
    uint32_t count = choice->count;

    BT_ASSERT(disconnect != NULL); /* a lost cut would keep pages in quarantine for ever */
    *disconnect = (struct disconnect){.left = count, .done = done, .context = context};
    for (uint32_t i = 0; i < count; i++) {
        struct kvt_transport *transport = choice->choices[i].transport;
        transport->ops->disconnect(transport, cut, on_disconnected, disconnect);
    }
}

static uint32_t rail_stats(const struct kvt_transport *base, struct kvt_rail_stats *ret_stats,
                           uint32_t max)
{
    const struct choice *choice = (const struct choice *)base;

    for (uint32_t i = 0; i < choice->count; i++) {
        const struct kvt_transport *transport = choice->choices[i].transport;
        if (transport->ops->rail_stats != NULL)
            return transport->ops->rail_stats(transport, ret_stats, max);
    }
    return 0;
}

/* "shm,tcp" */
static void list_choices(const struct choice *choice, char *ret_text, size_t size)
{
    size_t length = 0;

    ret_text[0] = '\0';
    for (uint32_t i = 0; i < choice->count && length < size; i++)
        length += (size_t)snprintf(ret_text + length, size - length, "%s%s", i > 0 ? "," : "",
                                   choice->choices[i].name);
}

static void choice_info(const struct kvt_transport *base, struct kvt_choice_info *ret_info)
{
    const struct choice *choice = (const struct choice *)base;

    list_choices(choice, ret_info->offers, sizeof(ret_info->offers));
    ret_info->fallbacks = atomic_load(&choice->fallbacks);
}

/* ---- peers ---- */

/* Whether both ends have it; what maps the peer's memory counts on one host only. */
static bool both_have(const struct kvt_peer *peer, uint32_t index)
{
    const char *name = peer->choice->choices[index].name;
    const struct kvt_choice_part *part =
        kvt_choice_find(peer->addresses, peer->address_count, name);
    enum kvt_blob_kind kind =
        strcmp(name, "shm") == 0 ? KVT_BLOB_SHM_ADDRESS : KVT_BLOB_CUDA_IPC_ADDRESS;
    struct bt_process_id process;
    const void *worker;
    size_t worker_size;

    if (part == NULL || kvt_choice_find(peer->keys, peer->key_count, name) == NULL)
        return false;
    if ((strcmp(name, "shm") != 0 && strcmp(name, "cuda_ipc") != 0) || peer->choice->count == 1)
        return true; /* a pinned one says itself what is wrong */
    return kvt_worker_address_unpack(kind, part->bytes, part->size, NULL, &process, &worker,
                                     &worker_size) == BT_OK &&
           bt_process_same_host(&peer->choice->self, &process);
}

static enum bt_status open_inner(struct kvt_peer *peer, struct bt_error *error)
{
    const struct kvt_choice *chosen = &peer->choice->choices[peer->index];
    const struct kvt_choice_part *to =
        kvt_choice_find(peer->addresses, peer->address_count, chosen->name);
    const struct kvt_choice_part *key = kvt_choice_find(peer->keys, peer->key_count, chosen->name);

    return chosen->transport->ops->connect(chosen->transport, to->bytes, to->size, key->bytes,
                                           key->size, &peer->origin, error, &peer->inner);
}

static uint32_t next_choice(const struct kvt_peer *peer, uint32_t index)
{
    while (index < peer->choice->count && !both_have(peer, index))
        index++;
    return index;
}

static enum bt_status nothing_in_common(const struct kvt_peer *peer, struct bt_error *error)
{
    char ours[KVT_OFFERS_SIZE], theirs[KVT_CHOICES_MAX * (KVT_CHOICE_NAME_SIZE + 1)] = "";
    size_t length = 0;

    list_choices(peer->choice, ours, sizeof(ours));
    for (uint32_t i = 0; i < peer->address_count; i++)
        length += (size_t)snprintf(theirs + length, sizeof(theirs) - length, "%s%s",
                                   i > 0 ? "," : "", peer->addresses[i].name);
    return bt_error_set(error, BT_ERR_UNAVAILABLE,
                        "the two ends have no transport in common: %s here, %s there", ours,
                        theirs);
}

/* Opens the first from `index` on that can be; `why`: what was wrong with the one before, or "". */
static enum bt_status open_from(struct kvt_peer *peer, uint32_t index, const char *why)
{
    struct choice *choice = peer->choice;
    struct bt_error error = {0};

    if (why[0] == '\0')
        nothing_in_common(peer, &error);
    else
        bt_error_set(&error, BT_ERR_UNAVAILABLE, "%s", why);
    for (index = next_choice(peer, index); index < choice->count;
         index = next_choice(peer, index + 1)) {
        if (why[0] != '\0' && choice->forbid_fallback)
            return bt_error_set(&peer->error, BT_ERR_UNAVAILABLE,
                                "%s does not reach the peer (%s), and falling back to %s is "
                                "forbidden",
                                choice->choices[peer->index].name, why,
                                choice->choices[index].name);
        if (why[0] != '\0')
            bt_log_warn(0, "kv link: %s does not reach the peer (%s), falling back to %s",
                        choice->choices[peer->index].name, why, choice->choices[index].name);
        choice->fallbacks += why[0] != '\0';
        peer->index = index;
        if (open_inner(peer, &error) == BT_OK)
            return BT_OK;
        if (error.status == BT_ERR_PROTOCOL || error.status == BT_ERR_PEER_LOST)
            break; /* no other one would help */
        why = error.text;
    }
    peer->error = error;
    return error.status;
}

static void peer_free(struct kvt_peer *peer)
{
    free(peer->address);
    free(peer->key);
    free(peer);
}

static void *copy(const void *bytes, size_t size)
{
    void *result = malloc(size + 1);

    if (result != NULL && size > 0)
        memcpy(result, bytes, size);
    return result;
}

static enum bt_status connect_peer(struct kvt_transport *base, const void *address,
                                   size_t address_size, const void *key, size_t key_size,
                                   const struct kvt_origin *origin, struct bt_error *error,
                                   struct kvt_peer **ret_peer)
{
    struct choice *choice = (struct choice *)base;
    struct kvt_peer *peer = calloc(1, sizeof(*peer));
    enum bt_status status;

    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a peer");
    peer->choice = choice;
    peer->origin = *origin;
    peer->address = copy(address, address_size);
    peer->key = copy(key, key_size);
    if (peer->address == NULL || peer->key == NULL) {
        peer_free(peer);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a peer");
    }
    status = kvt_choice_unpack(KVT_BLOB_CHOICE_ADDRESS, peer->address, address_size, &peer->error,
                               peer->addresses, &peer->address_count);
    if (status == BT_OK)
        status = kvt_choice_unpack(KVT_BLOB_CHOICE_KEY, peer->key, key_size, &peer->error,
                                   peer->keys, &peer->key_count);
    if (status == BT_OK)
        status = open_from(peer, 0, "");
    if (status != BT_OK) {
        if (error != NULL)
            *error = peer->error;
        peer_free(peer);
        return status;
    }
    peer->next = choice->peers;
    choice->peers = peer;
    *ret_peer = peer;
    return BT_OK;
}

/* Tries the next choice when one fails before it was ready. */
static bool peer_step(struct kvt_peer *peer)
{
    struct kvt_peer *failed = peer->inner;
    const struct kvt_transport_ops *ops = ops_of(peer);
    char why[BT_ERROR_TEXT_SIZE];

    if (failed == NULL || peer->settled)
        return false;
    switch (ops->peer_state(failed)) {
    case KVT_PEER_CONNECTING:
        return false;
    case KVT_PEER_READY:
        peer->settled = true;
        return true;
    case KVT_PEER_FAILED:
        break;
    }
    snprintf(why, sizeof(why), "%s", ops->peer_error(failed));
    peer->inner = NULL;
    ops->peer_close(failed);
    open_from(peer, peer->index + 1, why[0] == '\0' ? "it failed" : why);
    return true;
}

static enum kvt_peer_state peer_state(const struct kvt_peer *peer)
{
    enum kvt_peer_state state;

    if (peer->inner == NULL)
        return KVT_PEER_FAILED;
    state = ops_of(peer)->peer_state(peer->inner);
    return state == KVT_PEER_FAILED && !peer->settled ? KVT_PEER_CONNECTING : state;
}

static const char *peer_transport(const struct kvt_peer *peer)
{
    return peer->inner == NULL ? "" : ops_of(peer)->peer_transport(peer->inner);
}

static uint32_t peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                           uint32_t max)
{
    return peer->inner == NULL ? 0 : ops_of(peer)->peer_rails(peer->inner, ret_rails, max);
}

static const char *peer_error(const struct kvt_peer *peer)
{
    return peer->inner == NULL ? peer->error.text : ops_of(peer)->peer_error(peer->inner);
}

static uint64_t peer_cuts(const struct kvt_peer *peer)
{
    if (peer->inner == NULL || ops_of(peer)->peer_cuts == NULL)
        return 0;
    return ops_of(peer)->peer_cuts(peer->inner);
}

static void *map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes)
{
    return peer->inner == NULL ? NULL : ops_of(peer)->map(peer->inner, remote_address, bytes);
}

static enum bt_status write_to(struct kvt_peer *peer, const void *source, size_t bytes,
                               uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    if (peer->inner == NULL)
        return BT_ERR_PEER_LOST;
    return ops_of(peer)->write(peer->inner, source, bytes, remote_address, done, context);
}

static enum bt_status flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    return peer->inner == NULL ? BT_ERR_PEER_LOST : ops_of(peer)->flush(peer->inner, done, context);
}

static void peer_close(struct kvt_peer *peer)
{
    struct kvt_peer **link = &peer->choice->peers;

    if (peer->inner != NULL)
        ops_of(peer)->peer_close(peer->inner);
    while (*link != peer)
        link = &(*link)->next;
    *link = peer->next;
    peer_free(peer);
}

/* ---- progress ---- */

static bool progress(struct kvt_transport *base)
{
    struct choice *choice = (struct choice *)base;
    bool any = false;

    for (uint32_t i = 0; i < choice->count; i++) {
        struct kvt_transport *transport = choice->choices[i].transport;
        any = transport->ops->progress(transport) || any;
    }
    for (struct kvt_peer *peer = choice->peers; peer != NULL; peer = peer->next)
        any = peer_step(peer) || any;
    return any;
}

static bool arm(struct kvt_transport *base, int *ret_timeout_ms)
{
    struct choice *choice = (struct choice *)base;

    for (uint32_t i = 0; i < choice->count; i++) {
        struct kvt_transport *transport = choice->choices[i].transport;
        if (!transport->ops->arm(transport, ret_timeout_ms))
            return false;
    }
    return true;
}

static void wait_for_event(struct kvt_transport *base, int timeout_ms)
{
    struct choice *choice = (struct choice *)base;
    struct epoll_event events[EVENTS_MAX];
    uint64_t kicks;

    if (!arm(base, &timeout_ms))
        return;
    if (epoll_wait(choice->epoll_fd, events, EVENTS_MAX, timeout_ms) > 0 &&
        read(choice->wake_fd, &kicks, sizeof(kicks)) < 0)
        BT_ASSERT(errno == EAGAIN);
}

static void wake(struct kvt_transport *base)
{
    struct choice *choice = (struct choice *)base;
    uint64_t one = 1;

    if (write(choice->wake_fd, &one, sizeof(one)) < 0)
        BT_ASSERT(errno == EAGAIN); /* the counter is full: it is awake */
}

static int event_fd(const struct kvt_transport *base)
{
    return ((const struct choice *)base)->epoll_fd;
}

static void destroy(struct kvt_transport *base)
{
    struct choice *choice = (struct choice *)base;

    while (choice->peers != NULL)
        peer_close(choice->peers);
    for (uint32_t i = choice->count; i-- > 0;) { /* frees what is registered before its owner */
        struct kvt_transport *transport = choice->choices[i].transport;
        transport->ops->destroy(transport);
    }
    while (choice->memories != NULL) {
        struct kvt_memory *memory = choice->memories;
        choice->memories = memory->next;
        free(memory);
    }
    if (choice->epoll_fd >= 0)
        close(choice->epoll_fd);
    if (choice->wake_fd >= 0)
        close(choice->wake_fd);
    free(choice);
}

static const struct kvt_transport_ops choice_ops = {
    .destroy = destroy,
    .memory_alloc = memory_alloc,
    .memory_register = memory_register,
    .memory_free = memory_free,
    .memory_base = memory_base_of,
    .memory_pack_key = memory_pack_key,
    .address = address,
    .disconnect = disconnect,
    .connect = connect_peer,
    .peer_state = peer_state,
    .peer_transport = peer_transport,
    .peer_rails = peer_rails,
    .peer_error = peer_error,
    .peer_cuts = peer_cuts,
    .map = map,
    .write = write_to,
    .flush = flush,
    .peer_close = peer_close,
    .progress = progress,
    .wait = wait_for_event,
    .wake = wake,
    .event_fd = event_fd,
    .arm = arm,
    .rail_stats = rail_stats,
    .choice_info = choice_info,
};

static enum bt_status watch(const struct choice *choice, struct bt_error *error)
{
    struct epoll_event event = {.events = EPOLLIN};
    bool good = choice->epoll_fd >= 0 && choice->wake_fd >= 0 &&
                epoll_ctl(choice->epoll_fd, EPOLL_CTL_ADD, choice->wake_fd, &event) == 0;

    for (uint32_t i = 0; i < choice->count; i++) {
        int fd = choice->choices[i].transport->ops->event_fd(choice->choices[i].transport);
        if (fd >= 0)
            good = good && epoll_ctl(choice->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
    }
    if (!good)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't wait for several transports: %m");
    return BT_OK;
}

enum bt_status kvt_choice_create(const struct kvt_choice *choices, uint32_t count,
                                 bool forbid_fallback, struct bt_error *error,
                                 struct kvt_transport **ret_transport)
{
    struct choice *choice = calloc(1, sizeof(*choice));
    enum bt_status status;

    BT_ASSERT(count > 0 && count <= KVT_CHOICES_MAX);
    if (choice == NULL) {
        for (uint32_t i = 0; i < count; i++)
            choices[i].transport->ops->destroy(choices[i].transport);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    }
    choice->base.ops = &choice_ops;
    memcpy(choice->choices, choices, count * sizeof(*choices));
    choice->count = count;
    choice->forbid_fallback = forbid_fallback;
    choice->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    choice->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    status = bt_process_self(error, &choice->self);
    if (status == BT_OK)
        status = watch(choice, error);
    if (status != BT_OK) {
        destroy(&choice->base);
        return status;
    }
    *ret_transport = &choice->base;
    return BT_OK;
}
