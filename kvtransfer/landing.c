#include "kvtransfer/landing.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/map.h"
#include "common/kvcache/layout.h"

struct kvt_landing_table {
    struct bt_page_pool *pool;
    uint64_t next_epoch;
    int64_t lease_ns;
    kvt_landing_failed_fn *failed;
    void *context;
    struct bt_map by_epoch;   /* all */
    struct bt_map by_request; /* live ones */
    uint32_t counts[KVT_LANDING_QUARANTINED + 1];
};

struct kvt_landing_table *kvt_landing_table_create(struct bt_page_pool *pool, uint64_t first_epoch,
                                                   int64_t lease_ns, kvt_landing_failed_fn *failed,
                                                   void *context)
{
    struct kvt_landing_table *table = calloc(1, sizeof(*table));

    if (table == NULL)
        return NULL;
    table->pool = pool;
    table->next_epoch = first_epoch == 0 ? 1 : first_epoch; /* 0 means "any" in cancel */
    table->lease_ns = lease_ns;
    table->failed = failed;
    table->context = context;
    bt_map_init(&table->by_epoch);
    bt_map_init(&table->by_request);
    return table;
}

static void landing_free(struct kvt_landing *landing)
{
    free(landing->pages);
    free(landing->writers);
    free(landing);
}

void kvt_landing_table_destroy(struct kvt_landing_table *table)
{
    size_t cursor = 0;
    uint64_t epoch;
    void *landing;

    if (table == NULL)
        return;
    while (bt_map_next(&table->by_epoch, &cursor, &epoch, &landing))
        landing_free(landing);
    bt_map_finish(&table->by_epoch);
    bt_map_finish(&table->by_request);
    free(table);
}

static enum bt_page_state page_state(enum kvt_landing_state state)
{
    switch (state) {
    case KVT_LANDING_RESERVED:
        return BT_PAGE_RESERVED;
    case KVT_LANDING_LANDING:
    case KVT_LANDING_VERIFYING:
        return BT_PAGE_LANDING;
    case KVT_LANDING_READY:
        return BT_PAGE_READY;
    case KVT_LANDING_QUARANTINED:
        return BT_PAGE_QUARANTINED;
    }
    BT_ASSERT(false);
}

static void move_pages(struct kvt_landing_table *table, const struct kvt_landing *landing,
                       enum bt_page_state to)
{
    struct bt_page_owner owner = {.request = landing->request, .epoch = landing->epoch};

    bt_page_pool_move(table->pool, landing->pages, landing->page_count, owner,
                      page_state(landing->state), to);
}

static void set_state(struct kvt_landing_table *table, struct kvt_landing *landing,
                      enum kvt_landing_state state)
{
    if (page_state(landing->state) != page_state(state))
        move_pages(table, landing, page_state(state));
    table->counts[landing->state]--;
    table->counts[state]++;
    landing->state = state;
}

/* No longer live: the request may have a new landing from now on. */
static void retire(struct kvt_landing_table *table, const struct kvt_landing *landing)
{
    if (bt_map_get(&table->by_request, landing->request) == landing)
        bt_map_remove(&table->by_request, landing->request);
}

static void quarantine(struct kvt_landing_table *table, struct kvt_landing *landing)
{
    retire(table, landing);
    set_state(table, landing, KVT_LANDING_QUARANTINED);
}

/* Only where no write can be under way. The caller frees the struct. */
static void drop(struct kvt_landing_table *table, struct kvt_landing *landing)
{
    retire(table, landing);
    move_pages(table, landing, BT_PAGE_FREE);
    table->counts[landing->state]--;
    bt_map_remove(&table->by_epoch, landing->epoch);
}

static void fail_and_drop(struct kvt_landing_table *table, struct kvt_landing *landing,
                          enum bt_status status, const char *why)
{
    drop(table, landing);
    table->failed(table->context, landing, status, why);
    landing_free(landing);
}

static void fail_and_quarantine(struct kvt_landing_table *table, struct kvt_landing *landing,
                                enum bt_status status, const char *why)
{
    quarantine(table, landing);
    table->failed(table->context, landing, status, why);
}

static struct kvt_landing *find_live(const struct kvt_landing_table *table, uint64_t request,
                                     uint64_t epoch)
{
    struct kvt_landing *landing = bt_map_get(&table->by_request, request);

    return landing != NULL && landing->epoch == epoch ? landing : NULL;
}

static struct kvt_landing *find_any(const struct kvt_landing_table *table, uint64_t request,
                                    uint64_t epoch)
{
    struct kvt_landing *landing = bt_map_get(&table->by_epoch, epoch);

    return landing != NULL && landing->request == request ? landing : NULL;
}

static enum bt_status landing_create(struct kvt_landing_table *table, uint64_t request,
                                     uint32_t page_count, struct bt_error *error,
                                     struct kvt_landing **ret_landing)
{
    struct kvt_landing *landing = calloc(1, sizeof(*landing));
    uint64_t epoch = table->next_epoch;

    if (landing == NULL)
        goto err_memory;
    landing->request = request;
    landing->epoch = epoch;
    landing->page_count = page_count;
    landing->pages = malloc(page_count * sizeof(*landing->pages));
    if (landing->pages == NULL)
        goto err_landing;
    if (!bt_map_put(&table->by_epoch, epoch, landing))
        goto err_landing;
    if (!bt_map_put(&table->by_request, request, landing))
        goto err_epoch;
    table->next_epoch++;
    *ret_landing = landing;
    return BT_OK;

err_epoch:
    bt_map_remove(&table->by_epoch, epoch);
err_landing:
    landing_free(landing);
err_memory:
    return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a landing of %" PRIu32 " pages",
                        page_count);
}

enum bt_status kvt_landing_reserve(struct kvt_landing_table *table, uint64_t request,
                                   uint32_t prompt_tokens, uint32_t extra_tokens, int64_t now_ns,
                                   struct bt_error *error, struct kvt_landing **ret_landing)
{
    uint32_t page_count = bt_kv_pages_for((uint64_t)prompt_tokens + extra_tokens);
    uint32_t free_count = bt_page_pool_count(table->pool, BT_PAGE_FREE);
    struct kvt_landing *landing = NULL;
    struct bt_page_owner owner;
    enum bt_status status;

    if (prompt_tokens == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "prompt_tokens is 0");
    if (bt_map_get(&table->by_request, request) != NULL)
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "the request has a landing here");
    if (page_count > free_count)
        return bt_error_set(error, BT_ERR_EXHAUSTED,
                            "%" PRIu32 " pages needed, %" PRIu32 " of %" PRIu32 " are free",
                            page_count, free_count, bt_page_pool_total(table->pool));
    status = landing_create(table, request, page_count, error, &landing);
    if (status != BT_OK)
        return status;
    landing->state = KVT_LANDING_RESERVED;
    landing->prompt_tokens = prompt_tokens;
    landing->lease_until_ns = now_ns + KVT_RESERVED_LEASES * table->lease_ns;
    owner = (struct bt_page_owner){.request = request, .epoch = landing->epoch};
    BT_ASSERT(bt_page_pool_alloc(table->pool, page_count, owner, landing->pages));
    table->counts[KVT_LANDING_RESERVED]++;
    *ret_landing = landing;
    return BT_OK;
}

void kvt_landing_own(struct kvt_landing_table *table, struct kvt_landing *landing)
{
    BT_ASSERT(landing->state == KVT_LANDING_RESERVED);
    set_state(table, landing, KVT_LANDING_READY);
}

struct kvt_landing *kvt_landing_find(struct kvt_landing_table *table, uint64_t request)
{
    return bt_map_get(&table->by_request, request);
}

const struct kvt_landing *kvt_landing_of(const struct kvt_landing_table *table, uint64_t request,
                                         uint64_t epoch)
{
    return find_any(table, request, epoch);
}

static bool same_process(const struct bt_process_id *a, const struct bt_process_id *b)
{
    return a->pid == b->pid && a->start_ticks == b->start_ticks &&
           strncmp(a->host, b->host, sizeof(a->host)) == 0;
}

static bool writer_add(struct kvt_landing *landing, const struct bt_process_id *process)
{
    struct bt_process_id *writers;

    for (uint32_t i = 0; i < landing->writer_count; i++)
        if (same_process(&landing->writers[i], process))
            return true;
    if (landing->writer_count == KVT_WRITERS_MAX)
        return false;
    writers = realloc(landing->writers, (landing->writer_count + 1) * sizeof(*writers));
    if (writers == NULL)
        return false;
    landing->writers = writers;
    landing->lost = false;
    writers[landing->writer_count++] = *process;
    return true;
}

bool kvt_landing_lease(struct kvt_landing_table *table, uint64_t request, uint64_t epoch,
                       uint64_t peer_incarnation, const struct bt_process_id *peer, int64_t now_ns)
{
    struct kvt_landing *landing = find_live(table, request, epoch);

    if (landing == NULL)
        return false;
    if (landing->state == KVT_LANDING_RESERVED) {
        if (!writer_add(landing, peer))
            return false;
        landing->peer_incarnation = peer_incarnation;
        landing->lease_until_ns = now_ns + table->lease_ns;
        set_state(table, landing, KVT_LANDING_LANDING);
        return true;
    }
    if (landing->state != KVT_LANDING_LANDING || landing->peer_incarnation != peer_incarnation ||
        !writer_add(landing, peer))
        return false;
    if (landing->lease_until_ns < now_ns + table->lease_ns)
        landing->lease_until_ns = now_ns + table->lease_ns;
    return true;
}

static enum kvt_done_verdict done_while_landing(struct kvt_landing_table *table,
                                                struct kvt_landing *landing, uint32_t prompt_tokens,
                                                uint32_t page_count, struct bt_error *error)
{
    uint32_t expected = bt_kv_pages_for(landing->prompt_tokens);

    if (prompt_tokens == landing->prompt_tokens && page_count == expected) {
        set_state(table, landing, KVT_LANDING_VERIFYING);
        return KVT_DONE_VERIFY;
    }
    bt_error_set(error, BT_ERR_CORRUPT,
                 "done says %" PRIu32 " tokens in %" PRIu32 " pages, reserved were %" PRIu32
                 " in %" PRIu32,
                 prompt_tokens, page_count, landing->prompt_tokens, expected);
    fail_and_quarantine(table, landing, BT_ERR_CORRUPT, "done with wrong counts");
    return KVT_DONE_REFUSED;
}

enum kvt_done_verdict kvt_landing_done(struct kvt_landing_table *table, uint64_t request,
                                       uint64_t epoch, uint32_t prompt_tokens, uint32_t page_count,
                                       struct bt_error *error, struct kvt_landing **ret_landing)
{
    struct kvt_landing *landing = find_live(table, request, epoch);
    enum kvt_done_verdict verdict = KVT_DONE_REFUSED;

    if (landing == NULL) {
        bt_error_set(error, BT_ERR_STALE, "no live landing has epoch %" PRIu64, epoch);
        return KVT_DONE_REFUSED;
    }
    switch (landing->state) {
    case KVT_LANDING_RESERVED:
        bt_error_set(error, BT_ERR_PROTOCOL, "done without a lease");
        break;
    case KVT_LANDING_LANDING:
        verdict = done_while_landing(table, landing, prompt_tokens, page_count, error);
        break;
    case KVT_LANDING_VERIFYING:
        verdict = KVT_DONE_WAIT;
        break;
    case KVT_LANDING_READY:
        verdict = KVT_DONE_DUPLICATE;
        break;
    case KVT_LANDING_QUARANTINED:
        BT_ASSERT(false);
    }
    if (verdict != KVT_DONE_REFUSED)
        *ret_landing = landing;
    return verdict;
}

enum bt_status kvt_landing_verified(struct kvt_landing_table *table, uint64_t request,
                                    uint64_t epoch, bool checksum_equal,
                                    struct kvt_landing **ret_landing)
{
    struct kvt_landing *landing = find_any(table, request, epoch);
    enum bt_status status;

    if (landing == NULL || landing->state != KVT_LANDING_VERIFYING)
        return BT_ERR_STALE;
    if (!landing->cancelled && checksum_equal) {
        set_state(table, landing, KVT_LANDING_READY);
        *ret_landing = landing;
        return BT_OK;
    }
    status = landing->cancelled ? BT_ERR_CANCELLED : BT_ERR_CORRUPT;
    drop(table, landing);
    landing_free(landing);
    return status;
}

enum bt_status kvt_landing_cancel(struct kvt_landing_table *table, uint64_t request, uint64_t epoch)
{
    struct kvt_landing *landing = bt_map_get(&table->by_request, request);

    if (landing == NULL)
        return BT_ERR_NOT_FOUND;
    if (epoch != 0 && landing->epoch != epoch)
        return BT_ERR_STALE;
    switch (landing->state) {
    case KVT_LANDING_RESERVED:
        drop(table, landing);
        landing_free(landing);
        break;
    case KVT_LANDING_LANDING:
        quarantine(table, landing);
        break;
    case KVT_LANDING_VERIFYING:
        landing->cancelled = true;
        retire(table, landing);
        break;
    case KVT_LANDING_READY:
        return BT_ERR_ALREADY_EXISTS;
    case KVT_LANDING_QUARANTINED:
        BT_ASSERT(false);
    }
    return BT_OK;
}

void kvt_landing_quiesced(struct kvt_landing_table *table, uint64_t request, uint64_t epoch)
{
    struct kvt_landing *landing = find_any(table, request, epoch);

    if (landing == NULL)
        return;
    switch (landing->state) {
    case KVT_LANDING_RESERVED:
    case KVT_LANDING_LANDING:
        fail_and_drop(table, landing, BT_ERR_CANCELLED, "the prefill worker gave it up");
        break;
    case KVT_LANDING_QUARANTINED:
        drop(table, landing);
        landing_free(landing);
        break;
    case KVT_LANDING_VERIFYING:
    case KVT_LANDING_READY:
        break;
    }
}

void kvt_landing_retire(struct kvt_landing_table *table, struct kvt_landing *landing)
{
    BT_ASSERT(landing->state == KVT_LANDING_READY);
    retire(table, landing);
}

void kvt_landing_release(struct kvt_landing_table *table, uint64_t request, uint64_t epoch)
{
    struct kvt_landing *landing = find_any(table, request, epoch);

    BT_ASSERT(landing != NULL && landing->state == KVT_LANDING_READY);
    drop(table, landing);
    landing_free(landing);
}

enum bt_status kvt_landing_grow(struct kvt_landing_table *table, struct kvt_landing *landing,
                                uint32_t page_count)
{
    struct bt_page_owner owner = {.request = landing->request, .epoch = landing->epoch};
    uint32_t *pages;

    BT_ASSERT(landing->state == KVT_LANDING_READY);
    if (page_count > bt_page_pool_count(table->pool, BT_PAGE_FREE))
        return BT_ERR_EXHAUSTED;
    pages = realloc(landing->pages, ((size_t)landing->page_count + page_count) * sizeof(*pages));
    if (pages == NULL)
        return BT_ERR_NO_MEMORY;
    landing->pages = pages;
    pages += landing->page_count;
    BT_ASSERT(bt_page_pool_alloc(table->pool, page_count, owner, pages));
    bt_page_pool_move(table->pool, pages, page_count, owner, BT_PAGE_RESERVED, BT_PAGE_READY);
    landing->page_count += page_count;
    return BT_OK;
}

static bool has_deadline(const struct kvt_landing *landing)
{
    return landing->state == KVT_LANDING_RESERVED || landing->state == KVT_LANDING_LANDING;
}

void kvt_landing_tick(struct kvt_landing_table *table, int64_t now_ns)
{
    size_t cursor = 0;
    uint64_t epoch;
    void *value;

    while (bt_map_next(&table->by_epoch, &cursor, &epoch, &value)) {
        struct kvt_landing *landing = value;
        if (!has_deadline(landing) || landing->lease_until_ns > now_ns)
            continue;
        if (landing->state == KVT_LANDING_RESERVED)
            fail_and_drop(table, landing, BT_ERR_DEADLINE, "nobody took its lease");
        else
            fail_and_quarantine(table, landing, BT_ERR_DEADLINE, "its lease expired");
    }
}

int64_t kvt_landing_next_deadline_ns(const struct kvt_landing_table *table)
{
    int64_t deadline_ns = BT_NEVER_NS;
    size_t cursor = 0;
    uint64_t epoch;
    void *value;

    while (bt_map_next(&table->by_epoch, &cursor, &epoch, &value)) {
        const struct kvt_landing *landing = value;
        if (has_deadline(landing) && landing->lease_until_ns < deadline_ns)
            deadline_ns = landing->lease_until_ns;
    }
    return deadline_ns;
}

bool kvt_landing_is_open(const struct kvt_landing *landing)
{
    return landing != NULL &&
           (landing->state == KVT_LANDING_LANDING || landing->state == KVT_LANDING_QUARANTINED);
}

static bool peer_listed(const uint64_t *incarnations, uint32_t count, uint64_t incarnation)
{
    for (uint32_t i = 0; i < count; i++)
        if (incarnations[i] == incarnation)
            return true;
    return false;
}

uint32_t kvt_landing_peers(const struct kvt_landing_table *table, size_t *cursor,
                           uint64_t *ret_incarnations, uint32_t max)
{
    uint32_t count = 0;
    uint64_t epoch;
    void *value;

    while (count < max) {
        if (!bt_map_next(&table->by_epoch, cursor, &epoch, &value)) {
            *cursor = 0;
            break;
        }
        const struct kvt_landing *landing = value;
        if (kvt_landing_is_open(landing) &&
            !peer_listed(ret_incarnations, count, landing->peer_incarnation))
            ret_incarnations[count++] = landing->peer_incarnation;
    }
    return count;
}

/* The least that holds for all of them. */
static enum kvt_writer_state writers_state(const struct kvt_landing *landing,
                                           kvt_writer_state_fn *state_of, void *context)
{
    enum kvt_writer_state result = KVT_WRITER_DEAD;

    for (uint32_t i = 0; i < landing->writer_count; i++) {
        enum kvt_writer_state state = state_of(context, &landing->writers[i]);
        if (state == KVT_WRITER_ALIVE)
            return state;
        result = state == KVT_WRITER_ELSEWHERE ? state : result;
    }
    return result;
}

static struct kvt_landing *next_open_of(const struct kvt_landing_table *table, uint64_t incarnation,
                                        size_t *cursor)
{
    uint64_t epoch;
    void *value;

    while (bt_map_next(&table->by_epoch, cursor, &epoch, &value)) {
        struct kvt_landing *landing = value;
        if (kvt_landing_is_open(landing) && landing->peer_incarnation == incarnation)
            return landing;
    }
    return NULL;
}

bool kvt_landing_peer_lost(struct kvt_landing_table *table, uint64_t incarnation,
                           kvt_writer_state_fn *state_of, void *context, int64_t silent_ns)
{
    struct kvt_landing *landing;
    bool elsewhere = false, silent = true, any = false;

    for (size_t cursor = 0; (landing = next_open_of(table, incarnation, &cursor)) != NULL;) {
        enum kvt_writer_state state = writers_state(landing, state_of, context);
        if (state == KVT_WRITER_ALIVE)
            return false;
        elsewhere = elsewhere || state == KVT_WRITER_ELSEWHERE;
        silent = silent && landing->state == KVT_LANDING_QUARANTINED &&
                 landing->lease_until_ns < silent_ns;
    }
    if (elsewhere && !silent)
        return false;
    for (size_t cursor = 0; (landing = next_open_of(table, incarnation, &cursor)) != NULL;)
        any = landing->lost = true;
    return any;
}

void kvt_landing_peer_gone(struct kvt_landing_table *table, uint64_t incarnation)
{
    size_t cursor = 0;
    uint64_t epoch;
    void *value;

    while (bt_map_next(&table->by_epoch, &cursor, &epoch, &value)) {
        struct kvt_landing *landing = value;
        if (!kvt_landing_is_open(landing) || !landing->lost ||
            landing->peer_incarnation != incarnation)
            continue;
        if (landing->state == KVT_LANDING_LANDING) {
            fail_and_drop(table, landing, BT_ERR_PEER_LOST, "the prefill worker is gone");
        } else {
            drop(table, landing);
            landing_free(landing);
        }
    }
}

uint32_t kvt_landing_count(const struct kvt_landing_table *table, enum kvt_landing_state state)
{
    BT_ASSERT((unsigned)state <= KVT_LANDING_QUARANTINED);
    return table->counts[state];
}

const struct kvt_landing *kvt_landing_next(const struct kvt_landing_table *table, size_t *cursor)
{
    uint64_t epoch;
    void *landing;

    return bt_map_next(&table->by_epoch, cursor, &epoch, &landing) ? landing : NULL;
}
