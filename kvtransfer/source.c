#include "kvtransfer/source.h"

#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "kvtransfer/push.h"

#define LINKS_MAX    1024
#define CONNECT_NS   (INT64_C(10) * BT_NS_PER_S)
#define SPIN_NS      INT64_C(20000) /* while writes are out: shorter than a sleep and its wake-up */
#define WAIT_MAX_MS  60000
#define ACCOUNTS     32 /* of transport and device; more are not counted */
#define WRITER_SHIFT 48 /* a source makes fewer links than that */

enum command_kind { COMMAND_PUSH, COMMAND_CONNECT, COMMAND_DISCARD };

struct command {
    enum command_kind kind;
    void *object;
};

struct kvt_source {
    struct kvt_source_options options;
    struct kvt_transport *transport;
    struct kvt_memory *memory;
    struct bt_queue *events;
    struct bt_queue *commands;
    pthread_t thread;
    sem_t started;
    enum bt_status start_status; /* written before `started` */
    struct bt_error start_error;

    _Atomic uint32_t kicks; /* something is new for the thread */
    _Atomic bool sleeping;
    _Atomic bool stop;
    _Atomic uint32_t links_alive;

    struct kvt_link *known[LINKS_MAX]; /* control thread: with users */
    uint32_t known_count;
    uint32_t open_pushes;
    uint64_t last_link;

    struct kvt_inflight inflight; /* pushing thread */
    struct kvt_choice_info info;  /* written before `started` */
    struct kvt_account accounts[ACCOUNTS];
    _Atomic uint32_t account_count; /* grows only; those below it are set up */
    struct kvt_write_record *records;
    struct kvt_link *links;
    struct kvt_push **active; /* [max_pushes] */
    uint32_t active_count;
};

/* Without a system call unless the thread sleeps. The order of the two matters: the thread says
 * that it sleeps before it looks at `kicks` for the last time. */
static void kick(struct kvt_source *source)
{
    atomic_fetch_add(&source->kicks, 1);
    if (atomic_exchange(&source->sleeping, false))
        source->transport->ops->wake(source->transport);
}

static void command(struct kvt_source *source, enum command_kind kind, void *object)
{
    struct command item = {.kind = kind, .object = object};

    BT_ASSERT(bt_queue_try_push(source->commands, &item)); /* sized for all links and pushes */
    kick(source);
}

/* ---- the pushing thread ---- */

static struct kvt_account *account_of(struct kvt_source *source, const struct kvt_rail_info *rail)
{
    uint32_t count = atomic_load(&source->account_count);

    for (uint32_t i = 0; i < count; i++)
        if (strcmp(source->accounts[i].transport, rail->transport) == 0 &&
            strcmp(source->accounts[i].device, rail->device) == 0)
            return &source->accounts[i];
    if (count == ACCOUNTS)
        return NULL;
    source->accounts[count].transport = rail->transport;
    memcpy(source->accounts[count].device, rail->device, sizeof(rail->device));
    atomic_store(&source->account_count, count + 1);
    return &source->accounts[count];
}

static void link_count(struct kvt_link *link)
{
    for (uint32_t i = 0; i < link->rail_count && i < KVT_RAILS_MAX; i++) {
        struct kvt_account *account = account_of(link->source, &link->rails[i]);
        link->accounts[i] = account;
        if (account != NULL) {
            account->connections++;
            account->links++;
        }
    }
}

static void link_uncount(struct kvt_link *link)
{
    for (uint32_t i = 0; i < KVT_RAILS_MAX; i++) {
        if (link->accounts[i] != NULL)
            link->accounts[i]->links--;
        link->accounts[i] = NULL;
    }
}

/* A push may have flushed already and not have seen it: what it needs of the peer stays. */
static void link_fail(struct kvt_link *link, enum bt_status status, const char *why)
{
    const struct kvt_transport_ops *ops = link->source->transport->ops;
    struct kvt_peer *peer = link->peer;

    if (atomic_load(&link->state) == KVT_LINK_FAILED)
        return;
    if (link->error.status == BT_OK)
        bt_error_set(&link->error, status, "%s", why);
    bt_log_info(0, "kv link to %016" PRIx64 " failed: %s", link->incarnation, link->error.text);
    atomic_store(&link->state, KVT_LINK_FAILED);
    link_uncount(link);
    link->peer = NULL;
    link->mapped = NULL;
    if (peer == NULL)
        return;
    if (ops->peer_cuts != NULL)
        link->cuts = ops->peer_cuts(peer);
    ops->peer_close(peer);
}

static void link_open(struct kvt_link *link)
{
    struct kvt_source *source = link->source;
    const struct kvt_origin origin = {.incarnation = source->options.incarnation,
                                      .link = link->serial};
    enum bt_status status;

    link->next = source->links;
    source->links = link;
    link->deadline_ns = bt_clock_now_ns() + CONNECT_NS;
    status = source->transport->ops->connect(source->transport, link->address, link->address_size,
                                             link->key, link->key_size, &origin, &link->error,
                                             &link->peer);
    if (status != BT_OK)
        link_fail(link, status, "can't connect");
}

static void link_free(struct kvt_link *link)
{
    atomic_fetch_sub(&link->source->links_alive, 1);
    free(link->address);
    free(link->key);
    free(link);
}

static void link_discard(struct kvt_link *link)
{
    struct kvt_link **at = &link->source->links;

    link_uncount(link);
    if (link->peer != NULL)
        link->source->transport->ops->peer_close(link->peer);
    while (*at != link)
        at = &(*at)->next;
    *at = link->next;
    link_free(link);
}

static void log_rails(const struct kvt_link *link)
{
    for (uint32_t i = 0; i < link->rail_count && i < KVT_RAILS_MAX; i++)
        bt_log_info(0, "kv link to %016" PRIx64 " goes over %s %s", link->incarnation,
                    link->rails[i].transport, link->rails[i].device);
}

static bool link_step(struct kvt_link *link, int64_t now_ns)
{
    const struct kvt_transport_ops *ops = link->source->transport->ops;
    int state = atomic_load(&link->state);

    if (state == KVT_LINK_FAILED)
        return false;
    switch (ops->peer_state(link->peer)) {
    case KVT_PEER_FAILED:
        link_fail(link, BT_ERR_PEER_LOST, ops->peer_error(link->peer));
        return true;
    case KVT_PEER_READY:
        if (state == KVT_LINK_READY)
            return false;
        link->transport = ops->peer_transport(link->peer);
        link->mapped =
            ops->map(link->peer, link->pool_base,
                     kvt_progress_memory_bytes(&link->source->options.layout, link->pool_pages));
        link->rail_count = ops->peer_rails(link->peer, link->rails, KVT_RAILS_MAX);
        link->ordered = link->rail_count == 1 && link->rails[0].ordered;
        link_count(link);
        log_rails(link);
        atomic_store(&link->state, KVT_LINK_READY);
        return true;
    case KVT_PEER_CONNECTING:
        if (now_ns < link->deadline_ns)
            return false;
        link_fail(link, BT_ERR_UNAVAILABLE, "no answer while connecting");
        return true;
    }
    return false;
}

static void take_commands(struct kvt_source *source)
{
    struct command item;

    while (bt_queue_try_pop(source->commands, &item)) {
        switch (item.kind) {
        case COMMAND_PUSH:
            source->active[source->active_count++] = item.object;
            break;
        case COMMAND_CONNECT:
            link_open(item.object);
            break;
        case COMMAND_DISCARD:
            link_discard(item.object);
            break;
        }
    }
}

static bool pushes_step(struct kvt_source *source, int64_t now_ns)
{
    bool any = false;

    for (uint32_t i = 0; i < source->active_count;) {
        struct kvt_push *push = source->active[i];
        bool link_lost = false;
        any = kvt_push_step(push, now_ns, &link_lost) || any;
        if (link_lost)
            link_fail(push->link, BT_ERR_PEER_LOST, "writing or flushing failed");
        if (push->phase != KVT_PUSH_ENDED) {
            i++;
            continue;
        }
        source->active[i] = source->active[--source->active_count];
        BT_ASSERT(bt_queue_try_push(source->events, &push->event)); /* the push is not ours now */
    }
    return any;
}

static int sleep_ms(const struct kvt_source *source, int64_t now_ns)
{
    int64_t deadline_ns = BT_NEVER_NS;

    for (uint32_t i = 0; i < source->active_count; i++) {
        int64_t at_ns = kvt_push_next_deadline_ns(source->active[i]);
        deadline_ns = at_ns < deadline_ns ? at_ns : deadline_ns;
    }
    for (const struct kvt_link *link = source->links; link != NULL; link = link->next)
        if (atomic_load(&link->state) == KVT_LINK_CONNECTING && link->deadline_ns < deadline_ns)
            deadline_ns = link->deadline_ns;
    if (deadline_ns == BT_NEVER_NS)
        return -1;
    if (deadline_ns <= now_ns)
        return 0;
    if (deadline_ns - now_ns > WAIT_MAX_MS * BT_NS_PER_MS)
        return WAIT_MAX_MS;
    return (int)((deadline_ns - now_ns + BT_NS_PER_MS - 1) / BT_NS_PER_MS);
}

static bool turn(struct kvt_source *source, int64_t now_ns)
{
    bool any;

    take_commands(source);
    any = source->transport->ops->progress(source->transport);
    for (struct kvt_link *link = source->links; link != NULL; link = link->next)
        any = link_step(link, now_ns) || any;
    return pushes_step(source, now_ns) || any;
}

static void run(struct kvt_source *source)
{
    int64_t busy_ns = 0;

    while (!atomic_load(&source->stop)) {
        uint32_t kicks = atomic_load(&source->kicks);
        int64_t now_ns = bt_clock_now_ns();
        if (turn(source, now_ns)) {
            busy_ns = now_ns;
            continue;
        }
        if (source->inflight.operations > 0 && now_ns - busy_ns < SPIN_NS)
            continue;
        atomic_store(&source->sleeping, true);
        if (atomic_load(&source->kicks) == kicks)
            source->transport->ops->wait(source->transport, sleep_ms(source, now_ns));
        atomic_store(&source->sleeping, false);
    }
}

static enum bt_status make_pool(struct kvt_source *source, struct bt_error *error)
{
    const struct kvt_source_options *options = &source->options;
    const struct kvt_transport_ops *ops = source->transport->ops;
    uint64_t bytes = bt_kv_pool_bytes(&options->layout, options->pool_pages);
    enum bt_status status;

    if (kvt_pool_memory_kind(options->pool_device) == BT_MEMORY_HOST)
        return ops->memory_alloc(source->transport, bytes, error, &source->memory);
    status = kvt_device_pool_create(options->pool_device, &options->layout, options->pool_pages,
                                    bytes, error, &source->inflight.device_pool);
    if (status != BT_OK)
        return status;
    return ops->memory_register(source->transport,
                                kvt_device_pool_base(source->inflight.device_pool), bytes, error,
                                &source->memory);
}

/* The pool is the transport's until that has closed its connections. */
static void close_all(struct kvt_source *source)
{
    source->transport->ops->destroy(source->transport);
    source->transport = NULL;
    kvt_device_pool_destroy(source->inflight.device_pool);
}

static enum bt_status start(struct kvt_source *source, struct bt_error *error)
{
    const struct kvt_source_options *options = &source->options;
    enum bt_status status;

    source->transport = options->given;
    if (source->transport == NULL) {
        const struct kvt_transport_options wanted = {.name = options->transport,
                                                     .bind_host = options->bind_host,
                                                     .device = options->device,
                                                     .forbid_fallback = options->forbid_fallback,
                                                     .pool_device = options->pool_device};
        status = kvt_transport_create(&wanted, error, &source->transport);
        if (status != BT_OK)
            return status;
    }
    status = make_pool(source, error);
    if (status != BT_OK) {
        close_all(source);
        return status;
    }
    source->inflight.ops = source->transport->ops;
    source->inflight.pool = source->transport->ops->memory_base(source->memory);
    if (source->inflight.ops->choice_info != NULL)
        source->inflight.ops->choice_info(source->transport, &source->info);
    return BT_OK;
}

static void *thread_main(void *arg)
{
    struct kvt_source *source = arg;
    enum bt_status status = start(source, &source->start_error);

    source->start_status = status;
    sem_post(&source->started);
    if (status != BT_OK)
        return NULL;
    run(source);
    take_commands(source);
    while (source->links != NULL)
        link_discard(source->links);
    close_all(source);
    return NULL;
}

/* ---- creation ---- */

static void source_free(struct kvt_source *source)
{
    bt_queue_destroy(source->events);
    bt_queue_destroy(source->commands);
    sem_destroy(&source->started);
    free(source->records);
    free(source->active);
    free(source);
}

static struct kvt_source *source_alloc(const struct kvt_source_options *options)
{
    struct kvt_source *source = calloc(1, sizeof(*source));

    if (source == NULL)
        return NULL;
    source->options = *options;
    source->last_link = bt_random_entropy() << 32; /* other processes of one worker differ */
    sem_init(&source->started, 0, 0);
    source->inflight.layout = &source->options.layout;
    source->inflight.pool_pages = options->pool_pages;
    source->inflight.checksum = options->checksum;
    source->events = bt_queue_create(options->max_pushes, sizeof(struct kvt_push_event));
    source->commands =
        bt_queue_create((size_t)options->max_pushes + 2 * LINKS_MAX, sizeof(struct command));
    source->records = calloc(KVT_INFLIGHT_MAX, sizeof(*source->records));
    source->active = calloc(options->max_pushes, sizeof(struct kvt_push *));
    if (source->events == NULL || source->commands == NULL || source->records == NULL ||
        source->active == NULL) {
        source_free(source);
        return NULL;
    }
    for (size_t i = 0; i < KVT_INFLIGHT_MAX; i++) {
        source->records[i].next = source->inflight.free_records;
        source->inflight.free_records = &source->records[i];
    }
    return source;
}

/* Signals stay with the threads that expect them. */
static int start_thread(struct kvt_source *source)
{
    sigset_t all, before;
    int code;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    code = pthread_create(&source->thread, NULL, thread_main, source);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

enum bt_status kvt_source_create(const struct kvt_source_options *options, struct bt_error *error,
                                 struct kvt_source **ret_source)
{
    struct kvt_source *source;
    enum bt_status status;

    BT_ASSERT(options->max_pushes > 0 && options->pool_pages > 0);
    source = source_alloc(options);
    if (source == NULL || start_thread(source) != 0) {
        if (source != NULL)
            source_free(source);
        if (options->given != NULL)
            options->given->ops->destroy(options->given);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory or thread for the kv source");
    }
    while (sem_wait(&source->started) != 0)
        continue;
    if (source->start_status != BT_OK) {
        pthread_join(source->thread, NULL);
        status = source->start_status;
        if (error != NULL)
            *error = source->start_error;
        source_free(source);
        return status;
    }
    *ret_source = source;
    return BT_OK;
}

void kvt_source_destroy(struct kvt_source *source)
{
    if (source == NULL)
        return;
    atomic_store(&source->stop, true);
    kick(source);
    pthread_join(source->thread, NULL);
    BT_ASSERT(source->active_count == 0);
    source_free(source);
}

void *kvt_source_pool(const struct kvt_source *source)
{
    return (void *)source->inflight.pool;
}

struct bt_queue *kvt_source_events(const struct kvt_source *source)
{
    return source->events;
}

/* ---- links: control thread ---- */

static struct kvt_link *find_link(const struct kvt_source *source, uint64_t incarnation)
{
    for (uint32_t i = 0; i < source->known_count; i++) {
        struct kvt_link *link = source->known[i];
        if (link->incarnation == incarnation && atomic_load(&link->state) != KVT_LINK_FAILED)
            return link;
    }
    return NULL;
}

static enum bt_status check_remote(const struct kvt_source *source, const struct kvt_remote *remote,
                                   struct bt_error *error)
{
    uint64_t bytes = kvt_progress_memory_bytes(&source->options.layout, remote->pool_pages);

    if (remote->pool_pages == 0 || remote->address == NULL || remote->key == NULL)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "kv endpoint: no pages, no address or no key");
    if (remote->pool_base > UINT64_MAX - bytes)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "kv endpoint: %" PRIu32 " pages from %" PRIx64
                            " go past the address space",
                            remote->pool_pages, remote->pool_base);
    return BT_OK;
}

static void *copy(const void *bytes, size_t size)
{
    void *result = malloc(size > 0 ? size : 1);

    if (result != NULL)
        memcpy(result, bytes, size);
    return result;
}

static struct kvt_link *link_create(struct kvt_source *source, const struct kvt_remote *remote)
{
    struct kvt_link *link = calloc(1, sizeof(*link));

    if (link == NULL)
        return NULL;
    link->source = source;
    link->incarnation = remote->incarnation;
    link->serial = (uint64_t)source->options.writer << WRITER_SHIFT | ++source->last_link;
    link->address = copy(remote->address, remote->address_size);
    link->address_size = remote->address_size;
    link->key = copy(remote->key, remote->key_size);
    link->key_size = remote->key_size;
    link->pool_base = remote->pool_base;
    link->pool_pages = remote->pool_pages;
    link->transport = "";
    link->users = 1;
    atomic_fetch_add(&source->links_alive, 1);
    if (link->address == NULL || link->key == NULL) {
        link_free(link);
        return NULL;
    }
    return link;
}

enum bt_status kvt_source_connect(struct kvt_source *source, const struct kvt_remote *remote,
                                  struct bt_error *error, struct kvt_link **ret_link)
{
    struct kvt_link *link = find_link(source, remote->incarnation);
    enum bt_status status;

    if (link != NULL) {
        link->users++;
        *ret_link = link;
        return BT_OK;
    }
    status = check_remote(source, remote, error);
    if (status != BT_OK)
        return status;
    if (atomic_load(&source->links_alive) >= LINKS_MAX)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%d kv links are open", LINKS_MAX);
    link = link_create(source, remote);
    if (link == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a kv link");
    source->known[source->known_count++] = link;
    command(source, COMMAND_CONNECT, link);
    *ret_link = link;
    return BT_OK;
}

void kvt_source_cuts_over(struct kvt_source *source, uint64_t link, uint64_t lines)
{
    for (uint32_t i = 0; i < source->known_count; i++)
        if (source->known[i]->serial == link)
            atomic_fetch_or(&source->known[i]->cuts_over, lines);
}

void kvt_link_release(struct kvt_link *link)
{
    struct kvt_source *source = link->source;
    uint32_t at = 0;

    BT_ASSERT(link->users > 0);
    if (--link->users > 0)
        return;
    while (source->known[at] != link)
        at++;
    source->known[at] = source->known[--source->known_count];
    command(source, COMMAND_DISCARD, link);
}

enum kvt_link_state kvt_link_state(const struct kvt_link *link)
{
    return (enum kvt_link_state)atomic_load(&link->state);
}

const char *kvt_link_transport(const struct kvt_link *link)
{
    return kvt_link_state(link) == KVT_LINK_CONNECTING ? "" : link->transport;
}

uint32_t kvt_link_rails(const struct kvt_link *link, struct kvt_rail_info *ret_rails, uint32_t max)
{
    if (kvt_link_state(link) == KVT_LINK_CONNECTING)
        return 0;
    for (uint32_t i = 0; i < link->rail_count && i < max; i++)
        ret_rails[i] = link->rails[i];
    return link->rail_count;
}

uint32_t kvt_source_rails(const struct kvt_source *source, struct kvt_rail_stats *ret_stats,
                          uint32_t max)
{
    const struct kvt_transport *transport = source->transport;

    return transport->ops->rail_stats == NULL
               ? 0
               : transport->ops->rail_stats(transport, ret_stats, max);
}

/* What rails say of themselves is what went over them. */
static void take_rail_stats(const struct kvt_source *source, struct kvt_traffic *traffic)
{
    struct kvt_rail_stats rails[KVT_RAILS_MAX];
    uint32_t count = kvt_source_rails(source, rails, KVT_RAILS_MAX);

    for (uint32_t i = 0; i < count && i < KVT_RAILS_MAX; i++)
        if (strcmp(rails[i].device, traffic->device) == 0 &&
            strcmp(rails[i].transport, traffic->transport) == 0) {
            traffic->bytes = rails[i].bytes;
            traffic->writes = rails[i].writes;
        }
}

uint32_t kvt_source_traffic(const struct kvt_source *source, struct kvt_traffic *ret_traffic,
                            uint32_t max)
{
    uint32_t count = atomic_load(&source->account_count);

    for (uint32_t i = 0; i < count && i < max; i++) {
        const struct kvt_account *account = &source->accounts[i];
        ret_traffic[i] = (struct kvt_traffic){.transport = account->transport,
                                              .bytes = atomic_load(&account->bytes),
                                              .writes = atomic_load(&account->writes),
                                              .connections = atomic_load(&account->connections),
                                              .links = atomic_load(&account->links)};
        memcpy(ret_traffic[i].device, account->device, sizeof(account->device));
        take_rail_stats(source, &ret_traffic[i]);
    }
    return count;
}

uint64_t kvt_source_fallbacks(const struct kvt_source *source)
{
    struct kvt_choice_info info = {0};

    if (source->transport->ops->choice_info != NULL)
        source->transport->ops->choice_info(source->transport, &info);
    return info.fallbacks;
}

const char *kvt_source_offers(const struct kvt_source *source)
{
    return source->info.offers;
}

const char *kvt_link_error(const struct kvt_link *link)
{
    return kvt_link_state(link) == KVT_LINK_FAILED ? link->error.text : "";
}

/* ---- pushes: control and compute threads ---- */

static enum bt_status check_pages(const char *side, const uint32_t *pages, uint32_t count,
                                  uint32_t pool_pages, struct bt_error *error)
{
    for (uint32_t i = 0; i < count; i++)
        if (pages[i] >= pool_pages)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s page %" PRIu32 " is %" PRIu32 ", the pool has %" PRIu32, side,
                                i, pages[i], pool_pages);
    return BT_OK;
}

static enum bt_status check_spec(const struct kvt_source *source, const struct kvt_push_spec *spec,
                                 struct bt_error *error)
{
    uint32_t count = bt_kv_pages_for(spec->prompt_tokens);
    enum bt_status status;

    if (spec->prompt_tokens == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "a push of no tokens");
    if (spec->share.count > KVT_SHARES_MAX ||
        (spec->share.count > 0 && spec->share.index >= spec->share.count))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "share %" PRIu32 " of %" PRIu32 ", at most %d", spec->share.index,
                            spec->share.count, KVT_SHARES_MAX);
    if (source->open_pushes >= source->options.max_pushes)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%" PRIu32 " pushes are open",
                            source->open_pushes);
    status = check_pages("source", spec->source_pages, count, source->options.pool_pages, error);
    if (status == BT_OK)
        status = check_pages("target", spec->target_pages, count, spec->link->pool_pages, error);
    return status;
}

static void push_free(struct kvt_push *push)
{
    free(push->source_pages);
    free(push->target_pages);
    free(push->ready);
    free(push->posted);
    free(push->summed);
    free(push);
}

static struct kvt_push *push_create(struct kvt_source *source, const struct kvt_push_spec *spec)
{
    uint32_t page_count = bt_kv_pages_for(spec->prompt_tokens);
    struct kvt_push *push = calloc(1, sizeof(*push));

    if (push == NULL)
        return NULL;
    push->source = source;
    push->link = spec->link;
    push->inflight = &source->inflight;
    push->prompt_tokens = spec->prompt_tokens;
    push->layer_count = source->options.layout.layer_count;
    push->layerwise = spec->layerwise;
    push->watch = spec->watch;
    push->share = spec->share.count > 0 ? spec->share : (struct kvt_share){.count = 1};
    push->event = (struct kvt_push_event){.push = push,
                                          .request = spec->request,
                                          .epoch = spec->epoch,
                                          .user = spec->user,
                                          .link = spec->link->serial};
    push->source_pages = copy(spec->source_pages, page_count * sizeof(uint32_t));
    push->target_pages = copy(spec->target_pages, page_count * sizeof(uint32_t));
    push->ready = calloc(push->layer_count, sizeof(*push->ready));
    push->posted = calloc(push->layer_count, sizeof(*push->posted));
    push->summed = calloc(push->layer_count, sizeof(*push->summed));
    if (push->source_pages == NULL || push->target_pages == NULL || push->ready == NULL ||
        push->posted == NULL || push->summed == NULL) {
        push_free(push);
        return NULL;
    }
    return push;
}

enum bt_status kvt_push_open(struct kvt_source *source, const struct kvt_push_spec *spec,
                             struct bt_error *error, struct kvt_push **ret_push)
{
    enum bt_status status = check_spec(source, spec, error);
    struct kvt_push *push;

    if (status != BT_OK)
        return status;
    push = push_create(source, spec);
    if (push == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a push");
    push->link->users++;
    source->open_pushes++;
    command(source, COMMAND_PUSH, push);
    *ret_push = push;
    return BT_OK;
}

void kvt_push_lease(struct kvt_push *push, int64_t until_ns)
{
    if (until_ns > atomic_load(&push->lease_until_ns)) {
        atomic_store(&push->lease_until_ns, until_ns);
        kick(push->source);
    }
}

void kvt_push_ready(struct kvt_push *push, uint32_t layer, uint32_t token_end)
{
    BT_ASSERT(layer < push->layer_count && token_end <= push->prompt_tokens);
    atomic_store(&push->ready[layer], token_end);
    if (push->layerwise)
        kick(push->source);
}

void kvt_push_finish(struct kvt_push *push)
{
    push->finish_ns = bt_clock_now_ns();
    push->hidden_bytes = atomic_load(&push->bytes_done);
    atomic_store(&push->finished, true);
    kick(push->source);
}

void kvt_push_cancel(struct kvt_push *push)
{
    atomic_store(&push->cancelled, true);
    kick(push->source);
}

void kvt_push_close(struct kvt_push *push)
{
    push->source->open_pushes--;
    kvt_link_release(push->link);
    push_free(push);
}
