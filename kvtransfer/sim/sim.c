#include "kvtransfer/sim/sim.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/random.h"

#define SIM_MAGIC     UINT64_C(0x73696d2d6b657973)
#define CONNECT_STEPS 4

struct sim_transport {
    struct kvt_transport base;
    struct kvt_sim *sim;
    uint64_t id;
    bool woken;
    struct kvt_memory *memories;
    struct sim_transport *next;
};

struct kvt_memory {
    void *base;
    size_t bytes;
    bool registered; /* somebody else's */
    struct kvt_memory *next;
};

struct sim_blob {
    uint64_t magic;
    uint64_t id;   /* of the transport */
    uint64_t base; /* key only */
    uint64_t bytes;
};

struct kvt_peer {
    struct sim_transport *source;
    struct sim_blob key;
    struct kvt_origin origin;
    enum kvt_peer_state state;
    struct kvt_peer *next;
};

/* A write or flush under way, or a stray write (peer NULL, data copied). */
struct operation {
    struct kvt_peer *peer;
    uint64_t target; /* id of the transport */
    struct kvt_origin origin;
    const void *source;
    void *copied;
    size_t bytes; /* 0: a flush */
    uint64_t remote;
    kvt_completion_fn *done;
    void *context;
    enum bt_status status;
    struct operation *next; /* in the order of posting */
};

struct kvt_sim {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t seed, draws;
    bool held;
    kvt_sim_landed_fn *landed;
    void *landed_context;
    uint64_t next_id;
    struct sim_transport *transports;
    struct kvt_peer *peers;
    struct operation *operations;
};

struct kvt_sim *kvt_sim_create(uint64_t seed)
{
    struct kvt_sim *sim = calloc(1, sizeof(*sim));
    pthread_condattr_t attributes;

    if (sim == NULL)
        return NULL;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&sim->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&sim->mutex, NULL);
    sim->seed = seed;
    sim->next_id = 1;
    return sim;
}

static void operation_free(struct operation *operation)
{
    free(operation->copied);
    free(operation);
}

void kvt_sim_destroy(struct kvt_sim *sim)
{
    if (sim == NULL)
        return;
    BT_ASSERT(sim->transports == NULL && sim->operations == NULL);
    pthread_cond_destroy(&sim->changed);
    pthread_mutex_destroy(&sim->mutex);
    free(sim);
}

static void lock(struct kvt_sim *sim)
{
    pthread_mutex_lock(&sim->mutex);
}

static void unlock(struct kvt_sim *sim)
{
    pthread_cond_broadcast(&sim->changed);
    pthread_mutex_unlock(&sim->mutex);
}

/* All below this line until the operations of the table: mutex held. */

static uint32_t draw(struct kvt_sim *sim, uint32_t bound)
{
    return (uint32_t)(bt_random_u64(sim->seed, sim->draws++, 0) % bound);
}

static struct sim_transport *find_transport(struct kvt_sim *sim, uint64_t id)
{
    struct sim_transport *transport = sim->transports;

    while (transport != NULL && transport->id != id)
        transport = transport->next;
    return transport;
}

static void append(struct kvt_sim *sim, struct operation *operation)
{
    struct operation **link = &sim->operations;

    while (*link != NULL)
        link = &(*link)->next;
    operation->next = NULL;
    *link = operation;
}

/* Moves it from the fabric to `finished`, whose callbacks run after unlocking. */
static void finish(struct operation **link, enum bt_status status, struct operation **finished)
{
    struct operation *operation = *link;

    *link = operation->next;
    operation->status = status;
    operation->next = *finished;
    *finished = operation;
}

static void make_stray(struct kvt_sim *sim, const struct operation *operation)
{
    struct operation *stray = calloc(1, sizeof(*stray));

    BT_ASSERT(stray != NULL);
    stray->target = operation->target;
    stray->origin = operation->origin;
    stray->bytes = operation->bytes;
    stray->remote = operation->remote;
    stray->copied = malloc(operation->bytes);
    BT_ASSERT(stray->copied != NULL);
    memcpy(stray->copied, operation->source, operation->bytes);
    append(sim, stray);
}

static void fail_peer(struct kvt_sim *sim, struct kvt_peer *peer, struct operation **finished)
{
    struct operation **link = &sim->operations;

    peer->state = KVT_PEER_FAILED;
    while (*link != NULL) {
        if ((*link)->peer != peer) {
            link = &(*link)->next;
            continue;
        }
        if ((*link)->bytes > 0 && find_transport(sim, (*link)->target) != NULL) /* not cut off */
            make_stray(sim, *link);
        finish(link, BT_ERR_PEER_LOST, finished);
    }
}

static void apply(const struct kvt_sim *sim, const struct operation *operation)
{
    void *memory = (void *)(uintptr_t)operation->remote;

    memcpy(memory, operation->copied != NULL ? operation->copied : operation->source,
           operation->bytes);
    if (sim->landed != NULL)
        sim->landed(sim->landed_context, memory, operation->bytes);
}

static bool is_first_of_peer(const struct kvt_sim *sim, const struct operation *operation)
{
    const struct operation *other = sim->operations;

    while (other->peer != operation->peer)
        other = other->next;
    return other == operation;
}

/* Of this transport's writes some arrive; a flush once nothing is before it. */
static void deliver(struct sim_transport *transport, struct operation **finished)
{
    struct kvt_sim *sim = transport->sim;
    struct operation **link = &sim->operations;

    while (*link != NULL) {
        struct operation *operation = *link;
        bool mine = operation->peer != NULL && operation->peer->source == transport &&
                    operation->peer->state == KVT_PEER_READY;
        bool stray = operation->peer == NULL && operation->target == transport->id;
        if ((!mine && !stray) || draw(sim, 3) == 0 ||
            (operation->bytes == 0 && !is_first_of_peer(sim, operation))) {
            link = &operation->next;
            continue;
        }
        if (operation->bytes > 0)
            apply(sim, operation);
        finish(link, BT_OK, finished);
    }
}

static void step_connections(struct sim_transport *transport, struct operation **finished)
{
    struct kvt_sim *sim = transport->sim;

    for (struct kvt_peer *peer = sim->peers; peer != NULL; peer = peer->next) {
        if (peer->source != transport || peer->state == KVT_PEER_FAILED)
            continue;
        if (find_transport(sim, peer->key.id) == NULL)
            fail_peer(sim, peer, finished);
        else if (peer->state == KVT_PEER_CONNECTING && draw(sim, CONNECT_STEPS) == 0)
            peer->state = KVT_PEER_READY;
    }
}

static bool has_work(const struct sim_transport *transport)
{
    const struct kvt_sim *sim = transport->sim;

    if (sim->held)
        return false;
    for (const struct kvt_peer *peer = sim->peers; peer != NULL; peer = peer->next)
        if (peer->source == transport && peer->state == KVT_PEER_CONNECTING)
            return true;
    for (const struct operation *op = sim->operations; op != NULL; op = op->next)
        if (op->peer == NULL ? op->target == transport->id
                             : op->peer->source == transport && op->peer->state == KVT_PEER_READY)
            return true;
    return false;
}

/* ---- the operations of the table ---- */

static bool run_finished(struct operation *finished)
{
    bool any = finished != NULL;

    while (finished != NULL) {
        struct operation *operation = finished;
        finished = operation->next;
        if (operation->done != NULL)
            operation->done(operation->context, operation->status);
        operation_free(operation);
    }
    return any;
}

static bool progress(struct kvt_transport *base)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct operation *finished = NULL;

    lock(transport->sim);
    if (!transport->sim->held) {
        step_connections(transport, &finished);
        deliver(transport, &finished);
    }
    unlock(transport->sim);
    return run_finished(finished);
}

static void wait_for_event(struct kvt_transport *base, int timeout_ms)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct kvt_sim *sim = transport->sim;
    int64_t until_ns = timeout_ms < 0 ? BT_NEVER_NS : bt_clock_now_ns() + timeout_ms * BT_NS_PER_MS;
    struct timespec until = {.tv_sec = until_ns / BT_NS_PER_S, .tv_nsec = until_ns % BT_NS_PER_S};

    pthread_mutex_lock(&sim->mutex);
    while (!transport->woken && !has_work(transport) && bt_clock_now_ns() < until_ns) {
        if (timeout_ms < 0)
            pthread_cond_wait(&sim->changed, &sim->mutex);
        else
            pthread_cond_timedwait(&sim->changed, &sim->mutex, &until);
    }
    transport->woken = false;
    pthread_mutex_unlock(&sim->mutex);
}

static int event_fd(const struct kvt_transport *base)
{
    (void)base;
    return -1;
}

static bool arm(struct kvt_transport *base, int *ret_timeout_ms)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    bool idle;

    if (*ret_timeout_ms != 0)
        *ret_timeout_ms = 1;
    pthread_mutex_lock(&transport->sim->mutex);
    idle = !has_work(transport);
    pthread_mutex_unlock(&transport->sim->mutex);
    return idle;
}

static void wake(struct kvt_transport *base)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct kvt_sim *sim = transport->sim;

    lock(sim);
    transport->woken = true;
    unlock(sim);
}

static enum bt_status memory_alloc(struct kvt_transport *base, size_t bytes, struct bt_error *error,
                                   struct kvt_memory **ret_memory)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct kvt_memory *memory = calloc(1, sizeof(*memory));

    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memory->bytes = bytes;
    memory->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory->base == MAP_FAILED) {
        free(memory);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    }
    memory->next = transport->memories;
    transport->memories = memory;
    *ret_memory = memory;
    return BT_OK;
}

static enum bt_status memory_register(struct kvt_transport *base, void *memory_base, size_t bytes,
                                      struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct kvt_memory *memory = calloc(1, sizeof(*memory));

    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memory->base = memory_base;
    memory->bytes = bytes;
    memory->registered = true;
    memory->next = transport->memories;
    transport->memories = memory;
    *ret_memory = memory;
    return BT_OK;
}

static void memory_free(struct kvt_transport *base, struct kvt_memory *memory)
{
    struct kvt_memory **link = &((struct sim_transport *)base)->memories;

    while (*link != memory)
        link = &(*link)->next;
    *link = memory->next;
    if (!memory->registered)
        munmap(memory->base, memory->bytes);
    free(memory);
}

static void *memory_base(const struct kvt_memory *memory)
{
    return memory->base;
}

static enum bt_status pack(const struct sim_blob *blob, struct bt_error *error, void **ret_blob,
                           size_t *ret_size)
{
    void *bytes = malloc(sizeof(*blob));

    if (bytes == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memcpy(bytes, blob, sizeof(*blob));
    *ret_blob = bytes;
    *ret_size = sizeof(*blob);
    return BT_OK;
}

/* The last word of each blob is a function of the others, so that a damaged one is recognised. */
static uint64_t seal(const struct sim_blob *blob)
{
    return bt_random_u64(SIM_MAGIC ^ blob->id, blob->base, 0) ^
           bt_random_u64(SIM_MAGIC, blob->bytes, 1);
}

static enum bt_status memory_pack_key(struct kvt_transport *base, const struct kvt_memory *memory,
                                      struct bt_error *error, void **ret_key, size_t *ret_size)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct sim_blob blob = {
        .id = transport->id, .base = (uintptr_t)memory->base, .bytes = memory->bytes};

    blob.magic = seal(&blob);
    return pack(&blob, error, ret_key, ret_size);
}

static enum bt_status address(struct kvt_transport *base, struct bt_error *error,
                              void **ret_address, size_t *ret_size)
{
    struct sim_blob blob = {.id = ((struct sim_transport *)base)->id};

    blob.magic = seal(&blob);
    return pack(&blob, error, ret_address, ret_size);
}

static void disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                       kvt_completion_fn *done, void *context)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct kvt_sim *sim = transport->sim;
    struct operation *finished = NULL, **link = &sim->operations;

    lock(sim);
    for (struct kvt_peer *peer = sim->peers; peer != NULL; peer = peer->next)
        if (kvt_cut_covers(cut, &peer->origin) && peer->key.id == transport->id) {
            peer->state = KVT_PEER_FAILED; /* its owner closes it; from now on it posts nothing */
            peer->source->woken = true;
        }
    while (*link != NULL) {
        struct operation *operation = *link;
        if (operation->target != transport->id || !kvt_cut_covers(cut, &operation->origin))
            link = &operation->next;
        else if (operation->peer == NULL)
            finish(link, BT_OK, &finished);
        else {
            operation->target = 0; /* never arrives */
            link = &operation->next;
        }
    }
    unlock(sim);
    run_finished(finished);
    done(context, BT_OK);
}

static bool unpack(const void *bytes, size_t size, struct sim_blob *ret_blob)
{
    if (bytes == NULL || size != sizeof(*ret_blob))
        return false;
    memcpy(ret_blob, bytes, sizeof(*ret_blob));
    return ret_blob->magic == seal(ret_blob);
}

static enum bt_status connect(struct kvt_transport *base, const void *target, size_t target_size,
                              const void *key, size_t key_size, const struct kvt_origin *origin,
                              struct bt_error *error, struct kvt_peer **ret_peer)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct sim_blob target_blob, key_blob;
    struct kvt_peer *peer;

    if (!unpack(target, target_size, &target_blob) || !unpack(key, key_size, &key_blob) ||
        target_blob.id != key_blob.id)
        return bt_error_set(error, BT_ERR_PROTOCOL, "sim: bad address or key");
    peer = calloc(1, sizeof(*peer));
    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    peer->source = transport;
    peer->key = key_blob;
    peer->origin = *origin;
    lock(transport->sim);
    peer->next = transport->sim->peers;
    transport->sim->peers = peer;
    unlock(transport->sim);
    *ret_peer = peer;
    return BT_OK;
}

static enum kvt_peer_state peer_state(const struct kvt_peer *peer)
{
    struct kvt_sim *sim = peer->source->sim;
    enum kvt_peer_state state;

    lock(sim);
    state = peer->state;
    unlock(sim);
    return state;
}

static const char *peer_transport(const struct kvt_peer *peer)
{
    (void)peer;
    return "sim";
}

static uint32_t peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                           uint32_t max)
{
    if (peer_state(peer) != KVT_PEER_READY)
        return 0;
    if (max > 0)
        ret_rails[0] = (struct kvt_rail_info){.transport = "sim"};
    return 1;
}

static const char *peer_error(const struct kvt_peer *peer)
{
    return peer_state(peer) == KVT_PEER_FAILED ? "the simulated link broke" : "";
}

static void *map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes)
{
    (void)peer, (void)remote_address, (void)bytes;
    return NULL; /* every write goes through the fabric */
}

/* Mutex held. EXHAUSTED promises that a completion will come. */
static bool has_operations(const struct kvt_peer *peer)
{
    const struct operation *operation = peer->source->sim->operations;

    while (operation != NULL && operation->peer != peer)
        operation = operation->next;
    return operation != NULL;
}

/* Mutex held. */
static enum bt_status post(struct kvt_peer *peer, const struct operation *wanted)
{
    struct operation *operation;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (draw(peer->source->sim, 8) == 0 && !peer->source->sim->held && has_operations(peer))
        return BT_ERR_EXHAUSTED;
    if (wanted->bytes > 0 && draw(peer->source->sim, 4) == 0 && !peer->source->sim->held) {
        apply(peer->source->sim, wanted);
        return BT_OK;
    }
    operation = malloc(sizeof(*operation));
    if (operation == NULL)
        return BT_ERR_EXHAUSTED;
    *operation = *wanted;
    append(peer->source->sim, operation);
    return BT_IN_PROGRESS;
}

static enum bt_status write_to(struct kvt_peer *peer, const void *source, size_t bytes,
                               uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    struct operation operation = {.peer = peer,
                                  .target = peer->key.id,
                                  .origin = peer->origin,
                                  .source = source,
                                  .bytes = bytes,
                                  .remote = remote_address,
                                  .done = done,
                                  .context = context};
    enum bt_status status;

    BT_ASSERT(bytes > 0);
    if (bytes > peer->key.bytes || remote_address < peer->key.base ||
        remote_address - peer->key.base > peer->key.bytes - bytes)
        return BT_ERR_INVALID_ARGUMENT;
    lock(peer->source->sim);
    status = post(peer, &operation);
    unlock(peer->source->sim);
    return status;
}

static enum bt_status flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    struct operation operation = {
        .peer = peer, .target = peer->key.id, .done = done, .context = context};
    enum bt_status status;

    lock(peer->source->sim);
    status = post(peer, &operation);
    unlock(peer->source->sim);
    return status;
}

static void peer_close(struct kvt_peer *peer)
{
    struct kvt_sim *sim = peer->source->sim;
    struct kvt_peer **link = &sim->peers;
    struct operation *finished = NULL;

    lock(sim);
    fail_peer(sim, peer, &finished);
    while (*link != peer)
        link = &(*link)->next;
    *link = peer->next;
    unlock(sim);
    run_finished(finished);
    free(peer);
}

/* Mutex held. */
static void leave_fabric(struct sim_transport *transport, struct operation **finished)
{
    struct kvt_sim *sim = transport->sim;
    struct sim_transport **link = &sim->transports;
    struct operation **at = &sim->operations;

    while (*link != transport)
        link = &(*link)->next;
    *link = transport->next;
    while (*at != NULL) {
        if ((*at)->target == transport->id && (*at)->peer == NULL)
            finish(at, BT_OK, finished); /* stray: its target is gone */
        else
            at = &(*at)->next;
    }
    for (struct kvt_peer *peer = sim->peers; peer != NULL; peer = peer->next)
        if (peer->key.id == transport->id)
            peer->state = KVT_PEER_FAILED; /* memory goes: the next progress would store into it */
    for (struct operation *op = sim->operations; op != NULL; op = op->next)
        if (op->target == transport->id)
            op->target = 0;
}

static void transport_free(struct sim_transport *transport)
{
    while (transport->memories != NULL)
        memory_free(&transport->base, transport->memories);
    free(transport);
}

static void destroy(struct kvt_transport *base)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct operation *finished = NULL;

    lock(transport->sim);
    leave_fabric(transport, &finished);
    unlock(transport->sim);
    run_finished(finished);
    transport_free(transport);
}

static const struct kvt_transport_ops sim_ops = {
    .destroy = destroy,
    .memory_alloc = memory_alloc,
    .memory_register = memory_register,
    .memory_free = memory_free,
    .memory_base = memory_base,
    .memory_pack_key = memory_pack_key,
    .address = address,
    .disconnect = disconnect,
    .connect = connect,
    .peer_state = peer_state,
    .peer_transport = peer_transport,
    .peer_rails = peer_rails,
    .peer_error = peer_error,
    .map = map,
    .write = write_to,
    .flush = flush,
    .peer_close = peer_close,
    .progress = progress,
    .wait = wait_for_event,
    .wake = wake,
    .event_fd = event_fd,
    .arm = arm,
};

enum bt_status kvt_sim_transport_create(struct kvt_sim *sim, struct bt_error *error,
                                        struct kvt_transport **ret_transport)
{
    struct sim_transport *transport = calloc(1, sizeof(*transport));

    if (transport == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    transport->base.ops = &sim_ops;
    transport->sim = sim;
    lock(sim);
    transport->id = sim->next_id++;
    transport->next = sim->transports;
    sim->transports = transport;
    unlock(sim);
    *ret_transport = &transport->base;
    return BT_OK;
}

static void drop_peers(struct sim_transport *transport, struct operation **finished)
{
    struct kvt_peer **link = &transport->sim->peers;

    while (*link != NULL) {
        struct kvt_peer *peer = *link;
        if (peer->source != transport) {
            link = &peer->next;
            continue;
        }
        fail_peer(transport->sim, peer, finished);
        *link = peer->next;
        free(peer);
    }
}

void kvt_sim_crash(struct kvt_transport *base)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    struct operation *finished = NULL;

    lock(transport->sim);
    drop_peers(transport, &finished);
    leave_fabric(transport, &finished);
    unlock(transport->sim);
    while (finished != NULL) {
        struct operation *operation = finished;
        finished = operation->next;
        operation_free(operation);
    }
    transport_free(transport);
}

bool kvt_sim_busy(struct kvt_transport *base)
{
    struct sim_transport *transport = (struct sim_transport *)base;
    bool busy;

    lock(transport->sim);
    busy = has_work(transport);
    unlock(transport->sim);
    return busy;
}

size_t kvt_sim_healthy(struct kvt_transport *base, const struct kvt_cut *cut)
{
    const struct sim_transport *transport = (const struct sim_transport *)base;
    size_t result = 0;

    lock(transport->sim);
    for (const struct kvt_peer *peer = transport->sim->peers; peer != NULL; peer = peer->next)
        result += peer->key.id == transport->id && peer->state == KVT_PEER_READY &&
                  kvt_cut_covers(cut, &peer->origin);
    unlock(transport->sim);
    return result;
}

void kvt_sim_observe(struct kvt_sim *sim, kvt_sim_landed_fn *landed, void *context)
{
    sim->landed = landed;
    sim->landed_context = context;
}

void kvt_sim_hold(struct kvt_sim *sim, bool held)
{
    lock(sim);
    sim->held = held;
    unlock(sim);
}

/* Of `source`, or of all. */
static void break_links(struct kvt_sim *sim, const struct sim_transport *source)
{
    lock(sim);
    for (struct kvt_peer *peer = sim->peers; peer != NULL; peer = peer->next)
        if (source == NULL || peer->source == source)
            peer->state = KVT_PEER_FAILED; /* peer_close turns what is in flight into strays */
    for (struct sim_transport *t = sim->transports; t != NULL; t = t->next)
        t->woken = true;
    unlock(sim);
}

void kvt_sim_break_links(struct kvt_sim *sim)
{
    break_links(sim, NULL);
}

void kvt_sim_break_links_of(struct kvt_transport *transport)
{
    const struct sim_transport *source = (const struct sim_transport *)transport;

    break_links(source->sim, source);
}

static size_t count(struct kvt_sim *sim, bool stray)
{
    size_t result = 0;

    lock(sim);
    for (const struct operation *op = sim->operations; op != NULL; op = op->next)
        result += op->bytes > 0 && (op->peer == NULL) == stray;
    unlock(sim);
    return result;
}

size_t kvt_sim_in_flight(struct kvt_sim *sim)
{
    return count(sim, false);
}

size_t kvt_sim_stray(struct kvt_sim *sim)
{
    return count(sim, true);
}
