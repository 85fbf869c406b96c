/*
 * A whole handoff, landing table and page pool included, that is cancelled or loses a side in each
 * of its states. Rules 2, 4, 5 and 6.
 */
#include "tests/conformance/cases.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/process.h"
#include "common/kvcache/page_pool.h"
#include "kvtransfer/choice/choice.h"
#include "kvtransfer/landing.h"
#include "tests/conformance/rig.h"

#define POOL_PAGES 130
#define TOKENS     3000
#define LEASE_NS   (5 * BT_NS_PER_S)
#define REQUEST    77

/* How far a handoff got when something happens to it. */
enum stage { RESERVED, LEASED, WRITING, FLUSHED, VERIFYING, READY, STAGES };

struct handoff {
    struct bt_page_pool *pages;
    struct kvt_landing_table *table;
    struct kvt_landing *landing;
    uint64_t epoch;
    uint32_t failures;
};

static void on_failed(void *context, const struct kvt_landing *landing, enum bt_status status,
                      const char *why)
{
    struct handoff *handoff = context;

    CHECK(landing->request == REQUEST && status != BT_OK && why[0] != '\0');
    handoff->failures++;
}

static void handoff_init(struct handoff *handoff)
{
    *handoff = (struct handoff){.pages = bt_page_pool_create(POOL_PAGES)};
    handoff->table = kvt_landing_table_create(handoff->pages, 1000, LEASE_NS, on_failed, handoff);
    CHECK(handoff->pages != NULL && handoff->table != NULL);
}

static void handoff_finish(struct handoff *handoff)
{
    CHECK(bt_page_pool_count(handoff->pages, BT_PAGE_FREE) == POOL_PAGES);
    kvt_landing_table_destroy(handoff->table);
    bt_page_pool_destroy(handoff->pages);
}

static void reserve(struct handoff *handoff)
{
    CHECK(kvt_landing_reserve(handoff->table, REQUEST, TOKENS, 0, bt_clock_now_ns(), NULL,
                              &handoff->landing) == BT_OK);
    handoff->epoch = handoff->landing->epoch;
}

static void lease(struct handoff *handoff, const struct bt_process_id *holder)
{
    CHECK(kvt_landing_lease(handoff->table, REQUEST, handoff->epoch, SOURCE_INCARNATION, holder,
                            bt_clock_now_ns()));
}

static uint32_t free_pages(const struct handoff *handoff)
{
    return bt_page_pool_count(handoff->pages, BT_PAGE_FREE);
}

/* Nobody gets a page of it: all that is free is what it never had. */
static void pages_are_kept(const struct handoff *handoff)
{
    struct kvt_landing *other;

    CHECK(free_pages(handoff) == POOL_PAGES - bt_kv_pages_for(TOKENS));
    CHECK(kvt_landing_reserve(handoff->table, 99, POOL_PAGES * 64, 0, 0, NULL, &other) ==
          BT_ERR_EXHAUSTED);
}

static void done(struct handoff *handoff)
{
    CHECK(kvt_landing_done(handoff->table, REQUEST, handoff->epoch, TOKENS, bt_kv_pages_for(TOKENS),
                           NULL, &handoff->landing) == KVT_DONE_VERIFY);
}

/* ---- cancel ---- */

/* Up to the stage; the push is open from LEASED on, and its event taken from FLUSHED on. */
static void go_to(struct rig *rig, struct handoff *handoff, struct transfer *t, enum stage stage)
{
    const struct bt_process_id self = {.host = "here", .pid = 1, .start_ticks = 1};
    struct kvt_push_event event;

    handoff_init(handoff);
    reserve(handoff);
    t->tokens = TOKENS;
    for (uint32_t i = 0; i < bt_kv_pages_for(TOKENS); i++) {
        t->source_pages[i] = i;
        t->target_pages[i] = handoff->landing->pages[i];
    }
    if (stage == RESERVED)
        return;
    open_push(rig, t, true);
    lease(handoff, &self);
    if (stage == LEASED)
        return;
    lease_long(t);
    for (uint32_t layer = 0; layer + 1 < rig->layout.layer_count; layer++)
        kvt_push_ready(t->push, layer, TOKENS);
    if (stage == WRITING) {
        while (target_host_touched_inside(rig->host, t->target_pages, TOKENS) == 0)
            continue;
        return;
    }
    kvt_push_finish(t->push);
    event = take_event(rig);
    check_arrived(rig, t, &event);
    kvt_push_close(t->push);
    if (stage >= VERIFYING)
        done(handoff);
    if (stage == READY)
        CHECK(kvt_landing_verified(handoff->table, REQUEST, handoff->epoch, true,
                                   &handoff->landing) == BT_OK);
}

/* The prefill side hears of it and stops; only then are the pages anybody's. */
static void quiesce(struct rig *rig, struct handoff *handoff, struct transfer *t, bool push_open)
{
    struct kvt_push_event event;

    pages_are_kept(handoff);
    CHECK(!kvt_landing_lease(handoff->table, REQUEST, handoff->epoch, SOURCE_INCARNATION,
                             &(struct bt_process_id){.pid = 1}, bt_clock_now_ns()));
    if (push_open) {
        kvt_push_cancel(t->push);
        event = take_event(rig);
        CHECK(event.status == BT_ERR_CANCELLED && event.quiesced);
        kvt_push_close(t->push);
    }
    target_host_fill(rig->host);
    pages_are_kept(handoff);
    kvt_landing_quiesced(handoff->table, REQUEST, handoff->epoch);
    CHECK(free_pages(handoff) == POOL_PAGES);
    kvt_landing_quiesced(handoff->table, REQUEST, handoff->epoch); /* once more: harmless */
    CHECK(target_host_touched_outside(rig->host, NULL, 0) == 0);
}

static void cancel_at(struct rig *rig, struct transfer *t, enum stage stage)
{
    struct handoff handoff;
    enum bt_status status;

    go_to(rig, &handoff, t, stage);
    status = kvt_landing_cancel(handoff.table, REQUEST, handoff.epoch);
    CHECK(status == (stage == READY ? BT_ERR_ALREADY_EXISTS : BT_OK));
    switch (stage) {
    case LEASED:
    case WRITING:
        quiesce(rig, &handoff, t, true);
        break;
    case FLUSHED:
        quiesce(rig, &handoff, t, false);
        break;
    case VERIFYING:
        pages_are_kept(&handoff);
        CHECK(kvt_landing_verified(handoff.table, REQUEST, handoff.epoch, true, &handoff.landing) ==
              BT_ERR_CANCELLED);
        break;
    case READY:
        pages_are_kept(&handoff);
        kvt_landing_release(handoff.table, REQUEST, handoff.epoch);
        break;
    case RESERVED:
    case STAGES:
        break;
    }
    target_host_fill(rig->host);
    handoff_finish(&handoff);
}

void case_cancel_at_each_state(void)
{
    struct rig rig = {0};

    rig_init(&rig);
    for (enum stage stage = RESERVED; stage < STAGES; stage++)
        cancel_at(&rig, &transfers[0], stage);
    rig_finish(&rig);
}

/* ---- the source dies ---- */

static void read_whole(int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = read(fd, (char *)bytes + at, size - at);
        CHECK(got > 0);
        at += (size_t)got;
    }
}

struct orders {
    struct kvt_remote remote;
    char address[4096], key[4096];
    uint32_t pages[64];
};

static const struct bt_kv_layout small_layout = {
    .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};

/* Goes to the stage, says so, and waits to be killed. */
static void play_source(int in, int out, enum stage stage)
{
    static struct orders orders;
    struct rig rig = {.layout = small_layout, .source_pages = 90, .target_pages = POOL_PAGES};
    struct transfer *t = &transfers[0];

    CHECK(bt_process_die_with_parent() == BT_OK);
    read_whole(in, &orders, sizeof(orders));
    orders.remote.address = orders.address;
    orders.remote.key = orders.key;
    start_source(&rig, SOURCE_INCARNATION);
    CHECK(kvt_source_connect(rig.source, &orders.remote, NULL, &rig.link) == BT_OK);
    wait_link(rig.link, KVT_LINK_READY);
    t->tokens = TOKENS;
    for (uint32_t i = 0; i < bt_kv_pages_for(TOKENS); i++) {
        t->source_pages[i] = i;
        t->target_pages[i] = orders.pages[i];
    }
    open_push(&rig, t, true);
    if (stage >= WRITING) {
        lease_long(t);
        for (uint32_t layer = 0; layer < 3; layer++)
            kvt_push_ready(t->push, layer, TOKENS);
    }
    if (stage >= FLUSHED) {
        kvt_push_finish(t->push);
        CHECK(take_event(&rig).status == BT_OK);
    }
    CHECK(write(out, "x", 1) == 1);
    for (;;)
        pause();
}

struct actor {
    pid_t pid;
    int orders, news;
};

static struct actor start_actor(enum stage stage)
{
    struct actor actor;
    int in[2], out[2];

    CHECK(pipe(in) == 0 && pipe(out) == 0);
    actor.pid = fork();
    CHECK(actor.pid >= 0);
    if (actor.pid == 0)
        play_source(in[0], out[1], stage);
    close(in[0]);
    close(out[1]);
    actor.orders = in[1];
    actor.news = out[0];
    return actor;
}

static void give_orders(const struct actor *actor, struct kvt_target *target,
                        const struct kvt_landing *landing)
{
    static struct orders orders;
    const void *bytes;

    orders.remote = (struct kvt_remote){.incarnation = TARGET_INCARNATION,
                                        .pool_base = (uintptr_t)kvt_target_pool(target),
                                        .pool_pages = POOL_PAGES};
    kvt_target_address(target, &bytes, &orders.remote.address_size);
    CHECK(orders.remote.address_size <= sizeof(orders.address));
    memcpy(orders.address, bytes, orders.remote.address_size);
    kvt_target_key(target, &bytes, &orders.remote.key_size);
    CHECK(orders.remote.key_size <= sizeof(orders.key));
    memcpy(orders.key, bytes, orders.remote.key_size);
    memcpy(orders.pages, landing->pages, landing->page_count * sizeof(uint32_t));
    CHECK(write(actor->orders, &orders, sizeof(orders)) == sizeof(orders));
}

static struct kvt_target_event wait_target(struct kvt_target *target)
{
    struct pollfd fd = {.fd = bt_queue_fd(kvt_target_events(target)), .events = POLLIN};
    struct kvt_target_event event;

    CHECK(poll(&fd, 1, 30000) == 1);
    CHECK(bt_queue_try_pop(kvt_target_events(target), &event));
    return event;
}

static enum kvt_writer_state by_probe(void *context, const struct bt_process_id *process)
{
    (void)context;
    return bt_process_probe(process) == BT_PROCESS_DEAD ? KVT_WRITER_DEAD : KVT_WRITER_ALIVE;
}

/* As the decode worker does: proof, cut, and only then the pages. */
static void mourn(struct handoff *handoff, struct kvt_target *target,
                  const struct bt_process_id *process, const struct actor *actor)
{
    size_t cursor = 0;
    uint64_t peer;
    int status;

    CHECK(bt_process_probe(process) == BT_PROCESS_ALIVE);
    CHECK(!kvt_landing_peer_lost(handoff->table, SOURCE_INCARNATION, by_probe, NULL, INT64_MAX));
    CHECK(kvt_landing_peers(handoff->table, &cursor, &peer, 1) <= 1);
    kill(actor->pid, SIGKILL);
    CHECK(waitpid(actor->pid, &status, 0) == actor->pid && WIFSIGNALED(status));
    CHECK(bt_process_probe(process) == BT_PROCESS_DEAD);
    pages_are_kept(handoff);
    kvt_landing_peer_lost(handoff->table, SOURCE_INCARNATION, by_probe, NULL, 0);
    CHECK(kvt_target_disconnect(target, SOURCE_INCARNATION) == BT_OK);
    CHECK(wait_target(target).kind == KVT_TARGET_DISCONNECTED);
    kvt_landing_peer_gone(handoff->table, SOURCE_INCARNATION);
}

static void nothing_arrives(struct kvt_target *target)
{
    size_t bytes = bt_kv_pool_bytes(&small_layout, POOL_PAGES);
    unsigned char *before = malloc(bytes);
    uint32_t page = 0;

    CHECK(before != NULL);
    memcpy(before, kvt_target_pool(target), bytes);
    for (int i = 0; i < 3; i++) { /* what could still arrive would need the target's turns */
        CHECK(kvt_target_checksum(target, 1, 1, &page, 64) == BT_OK);
        CHECK(wait_target(target).kind == KVT_TARGET_CHECKSUM);
    }
    CHECK(memcmp(before, kvt_target_pool(target), bytes) == 0);
    CHECK(kvt_target_checksum(target, 1, 1, &page, 64) == BT_OK); /* orders this look and the */
    wait_target(target);                                          /* thread's next writes */
    free(before);
}

static void source_dies_at(struct kvt_target *target, const struct actor *actor, enum stage stage)
{
    struct handoff handoff;
    struct bt_process_id process;
    char news;

    handoff_init(&handoff);
    reserve(&handoff);
    give_orders(actor, target, handoff.landing);
    CHECK(bt_process_of(actor->pid, NULL, &process) == BT_OK);
    if (stage >= LEASED)
        lease(&handoff, &process);
    read_whole(actor->news, &news, 1);
    if (stage >= VERIFYING)
        done(&handoff);
    if (stage == READY)
        CHECK(kvt_landing_verified(handoff.table, REQUEST, handoff.epoch, true, &handoff.landing) ==
              BT_OK);
    mourn(&handoff, target, &process, actor);
    switch (stage) {
    case RESERVED: /* nobody was ever allowed to write: time ends it */
        pages_are_kept(&handoff);
        kvt_landing_tick(handoff.table, bt_clock_now_ns() + KVT_RESERVED_LEASES * LEASE_NS);
        break;
    case VERIFYING: /* all had been flushed: its death changes nothing */
        pages_are_kept(&handoff);
        CHECK(kvt_landing_verified(handoff.table, REQUEST, handoff.epoch, true, &handoff.landing) ==
              BT_OK);
        kvt_landing_release(handoff.table, REQUEST, handoff.epoch);
        break;
    case READY:
        pages_are_kept(&handoff);
        kvt_landing_release(handoff.table, REQUEST, handoff.epoch);
        break;
    default:
        break;
    }
    CHECK(handoff.failures == (stage < VERIFYING));
    handoff_finish(&handoff);
    nothing_arrives(target);
    close(actor->orders);
    close(actor->news);
}

void case_source_dies_at_each_state(void)
{
    struct kvt_target_options options = {
        .transport = transport, .layout = small_layout, .pool_pages = POOL_PAGES, .max_jobs = 4};
    options.pool_device = target_device();
    struct actor actors[STAGES];
    struct kvt_target *target;

    for (enum stage stage = RESERVED; stage < STAGES; stage++) /* before this one touches UCX */
        actors[stage] = start_actor(stage);
    CHECK(kvt_target_create(&options, NULL, &target) == BT_OK);
    for (enum stage stage = RESERVED; stage < STAGES; stage++)
        source_dies_at(target, &actors[stage], stage);
    kvt_target_destroy(target);
}

/* ---- the target dies ---- */

/* The push ends once, in time, and never says OK for what was not flushed. */
static void target_dies_at(struct rig *rig, struct transfer *t, enum stage stage)
{
    struct kvt_push_event event;

    connect_target(rig);
    t->tokens = TOKENS;
    for (uint32_t i = 0; i < bt_kv_pages_for(TOKENS); i++)
        t->source_pages[i] = t->target_pages[i] = i;
    open_push(rig, t, true);
    if (stage >= WRITING) {
        lease_long(t);
        for (uint32_t layer = 0; layer < 3; layer++)
            kvt_push_ready(t->push, layer, TOKENS);
        while (target_host_touched_inside(rig->host, t->target_pages, TOKENS) == 0)
            continue;
    }
    if (stage >= FLUSHED) {
        kvt_push_finish(t->push);
        event = take_event(rig);
        check_arrived(rig, t, &event);
        kvt_push_close(t->push);
        target_host_kill(rig->host);
        wait_link(rig->link, KVT_LINK_FAILED);
    } else {
        target_host_kill(rig->host);
        wait_link(rig->link, KVT_LINK_FAILED);
        lease_long(t);
        kvt_push_finish(t->push);
        event = take_event(rig);
        CHECK(event.status == BT_ERR_PEER_LOST);
        CHECK(event.quiesced == (stage < WRITING)); /* what was written was never flushed */
        kvt_push_close(t->push);
    }
    CHECK(kvt_link_error(rig->link)[0] != '\0');
    kvt_link_release(rig->link);
}

void case_target_dies_at_each_state(void)
{
    static const enum stage stages[] = {RESERVED, WRITING, FLUSHED};
    struct rig rig = {.layout = small_layout, .source_pages = 90, .target_pages = POOL_PAGES};
    struct target_host *hosts[4];

    for (uint64_t i = 0; i < 4; i++) {
        start_target(&rig, TARGET_INCARNATION + i);
        hosts[i] = rig.host;
    }
    start_source(&rig, SOURCE_INCARNATION);
    for (size_t i = 0; i < 3; i++) {
        rig.host = hosts[i];
        target_dies_at(&rig, &transfers[0], stages[i]);
    }
    rig.host = hosts[3];
    connect_target(&rig);
    draw_transfer(&rig, 1000, &transfers[0]);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

/* ---- falling back ---- */

static struct kvt_transport *make_choice(struct kvt_sim *fast, struct kvt_sim *slow, bool forbid)
{
    struct kvt_choice choices[2] = {{.name = "fast"}, {.name = "slow"}};
    struct kvt_transport *result;
    uint32_t count = 0;

    if (fast != NULL)
        CHECK(kvt_sim_transport_create(fast, NULL, &choices[count++].transport) == BT_OK);
    if (fast == NULL)
        choices[0].name = "slow";
    if (slow != NULL)
        CHECK(kvt_sim_transport_create(slow, NULL, &choices[count++].transport) == BT_OK);
    CHECK(kvt_choice_create(choices, count, forbid, NULL, &result) == BT_OK);
    return result;
}

struct ends {
    struct kvt_sim *target_fast, *source_fast, *slow;
    struct kvt_transport *bystander; /* so that the target's number means nothing elsewhere */
    struct rig rig;
};

/* Two fabrics in which both ends are, or a fast one that parts them. */
static void ends_init(struct ends *ends, bool parted, bool target_slow, bool forbid)
{
    struct kvt_target_options target = {
        .layout = small_layout, .pool_pages = POOL_PAGES, .max_jobs = 4};
    struct kvt_source_options source = {.layout = small_layout,
                                        .pool_pages = 90,
                                        .incarnation = SOURCE_INCARNATION,
                                        .checksum = true,
                                        .max_pushes = MAX_PUSHES};

    ends->target_fast = kvt_sim_create(seed);
    ends->source_fast = parted ? kvt_sim_create(seed + 1) : ends->target_fast;
    ends->slow = kvt_sim_create(seed + 2);
    CHECK(kvt_sim_transport_create(ends->target_fast, NULL, &ends->bystander) == BT_OK);
    ends->rig =
        (struct rig){.layout = small_layout, .source_pages = 90, .target_pages = POOL_PAGES};
    target.given = make_choice(ends->target_fast, target_slow ? ends->slow : NULL, false);
    ends->rig.host = target_host_start(&target, true, TARGET_INCARNATION);
    source.given = make_choice(ends->source_fast, ends->slow, forbid);
    CHECK(kvt_source_create(&source, NULL, &ends->rig.source) == BT_OK);
    CHECK(strcmp(kvt_source_offers(ends->rig.source), "fast,slow") == 0);
}

static void ends_finish(struct ends *ends)
{
    kvt_source_destroy(ends->rig.source);
    target_host_stop(ends->rig.host);
    ends->bystander->ops->destroy(ends->bystander);
    if (ends->source_fast != ends->target_fast)
        kvt_sim_destroy(ends->source_fast);
    kvt_sim_destroy(ends->target_fast);
    kvt_sim_destroy(ends->slow);
}

/* Rule 10. */
static void expect_way(bool parted, bool target_slow, bool forbid, enum kvt_link_state wanted,
                       uint64_t fallbacks)
{
    struct kvt_remote remote;
    struct ends ends;

    ends_init(&ends, parted, target_slow, forbid);
    target_host_remote(ends.rig.host, &remote);
    CHECK(kvt_source_connect(ends.rig.source, &remote, NULL, &ends.rig.link) == BT_OK);
    wait_link(ends.rig.link, wanted);
    CHECK(kvt_source_fallbacks(ends.rig.source) == fallbacks);
    if (wanted == KVT_LINK_READY) {
        draw_transfer(&ends.rig, 500, &transfers[0]);
        push_once(&ends.rig, &transfers[0], true);
    } else if (target_slow) { /* both are named */
        CHECK(strstr(kvt_link_error(ends.rig.link), "fast") != NULL);
        CHECK(strstr(kvt_link_error(ends.rig.link), "slow is forbidden") != NULL);
    } else {
        CHECK(kvt_link_error(ends.rig.link)[0] != '\0');
    }
    kvt_link_release(ends.rig.link);
    ends_finish(&ends);
}

void case_fallback(void)
{
    expect_way(false, true, true, KVT_LINK_READY, 0);  /* the best does: nothing to forbid */
    expect_way(true, true, false, KVT_LINK_READY, 1);  /* said and counted */
    expect_way(true, true, true, KVT_LINK_FAILED, 0);  /* forbidden */
    expect_way(false, false, true, KVT_LINK_READY, 0); /* the target has no slow one: fine */
    expect_way(true, false, false, KVT_LINK_FAILED, 0);
}

/* Rule 10: ends that have nothing in common say what each has. */
void case_nothing_in_common(void)
{
    struct kvt_source_options source = {
        .layout = small_layout, .pool_pages = 90, .incarnation = 5, .max_pushes = 1};
    struct kvt_target_options target = {
        .layout = small_layout, .pool_pages = POOL_PAGES, .max_jobs = 1};
    struct kvt_sim *fast = kvt_sim_create(seed), *slow = kvt_sim_create(seed);
    struct rig rig = {0};
    struct kvt_remote remote;

    target.given = make_choice(fast, NULL, false);
    rig.host = target_host_start(&target, true, TARGET_INCARNATION);
    source.given = make_choice(NULL, slow, false);
    CHECK(kvt_source_create(&source, NULL, &rig.source) == BT_OK);
    target_host_remote(rig.host, &remote);
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    wait_link(rig.link, KVT_LINK_FAILED);
    CHECK(strstr(kvt_link_error(rig.link), "slow here, fast there") != NULL);
    kvt_link_release(rig.link);
    kvt_source_destroy(rig.source);
    target_host_stop(rig.host);
    kvt_sim_destroy(fast);
    kvt_sim_destroy(slow);
}
