/*
 * What every transport must do, run as `test_transfer sim|shm|tcp|rdma`. Each case is a process of
 * its own, forked before UCX is touched; with UCX the target is yet another one. Both end with
 * their parent, and with an alarm.
 */
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/base/random.h"
#include "kvtransfer/blob.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/sim/sim.h"
#include "kvtransfer/transport.h"
#include "tests/conformance/target_host.h"

#define CASE_SECONDS       100
#define SOURCE_INCARNATION 0x5050
#define TARGET_INCARNATION 0x7070
#define MAX_PUSHES         24

static const char *transport;
static uint64_t seed = 4242;

struct rig {
    struct bt_kv_layout layout;
    uint32_t source_pages, target_pages;
    struct kvt_sim *sim;
    struct target_host *host;
    struct kvt_source *source;
    struct kvt_link *link;
    uint64_t draws;
};

static bool is_sim(void)
{
    return strcmp(transport, "sim") == 0;
}

static uint32_t draw(struct rig *rig, uint32_t bound)
{
    return (uint32_t)(bt_random_u64(seed, rig->draws++, 1) % bound);
}

static struct kvt_transport *sim_transport(struct rig *rig)
{
    struct kvt_transport *result = NULL;

    if (is_sim())
        CHECK(kvt_sim_transport_create(rig->sim, NULL, &result) == BT_OK);
    return result;
}

static void start_target(struct rig *rig, uint64_t incarnation)
{
    struct kvt_target_options options = {.transport = transport,
                                         .given = sim_transport(rig),
                                         .layout = rig->layout,
                                         .pool_pages = rig->target_pages,
                                         .max_jobs = 4};

    rig->host = target_host_start(&options, is_sim(), incarnation);
}

static void wait_link(struct kvt_link *link, enum kvt_link_state wanted)
{
    int64_t deadline_ns = bt_clock_now_ns() + 20 * BT_NS_PER_S;

    while (kvt_link_state(link) == KVT_LINK_CONNECTING || kvt_link_state(link) != wanted) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        CHECK(wanted == KVT_LINK_FAILED || kvt_link_state(link) != KVT_LINK_FAILED);
        poll(NULL, 0, 1);
    }
}

static void connect_target(struct rig *rig)
{
    struct bt_error error = {0};
    struct kvt_remote remote;

    target_host_remote(rig->host, &remote);
    CHECK(kvt_source_connect(rig->source, &remote, &error, &rig->link) == BT_OK);
    wait_link(rig->link, KVT_LINK_READY);
    CHECK(strcmp(kvt_link_transport(rig->link), transport) == 0);
}

static void fill_source(struct rig *rig)
{
    uint64_t bytes = bt_kv_pool_bytes(&rig->layout, rig->source_pages);
    unsigned char *pool = kvt_source_pool(rig->source);
    uint64_t value = seed;

    for (uint64_t i = 0; i < bytes; i++) {
        value = value * UINT64_C(6364136223846793005) + 1442695040888963407;
        pool[i] = (unsigned char)(value >> 56);
        if (pool[i] == HOST_FILL)
            pool[i]++; /* so that every byte that arrives is seen */
    }
}

static void start_source(struct rig *rig, uint64_t incarnation)
{
    struct kvt_source_options options = {.transport = transport,
                                         .given = sim_transport(rig),
                                         .layout = rig->layout,
                                         .pool_pages = rig->source_pages,
                                         .incarnation = incarnation,
                                         .checksum = true,
                                         .max_pushes = MAX_PUSHES};
    struct bt_error error = {0};

    if (kvt_source_create(&options, &error, &rig->source) != BT_OK)
        check_failed(error.text, __FILE__, __LINE__);
    for (uint64_t i = 0; i < bt_kv_pool_bytes(&rig->layout, rig->source_pages); i += 4096)
        CHECK(((unsigned char *)kvt_source_pool(rig->source))[i] == 0);
    fill_source(rig);
}

static void rig_init(struct rig *rig)
{
    if (rig->layout.layer_count == 0) {
        rig->layout = (struct bt_kv_layout){
            .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
        rig->source_pages = 90;
        rig->target_pages = 130;
    }
    rig->sim = is_sim() ? kvt_sim_create(seed) : NULL;
    start_target(rig, TARGET_INCARNATION);
    start_source(rig, SOURCE_INCARNATION);
    connect_target(rig);
}

static void rig_finish(struct rig *rig)
{
    if (rig->link != NULL)
        kvt_link_release(rig->link);
    kvt_source_destroy(rig->source);
    target_host_stop(rig->host);
    kvt_sim_destroy(rig->sim);
}

/* `count` distinct pages of a pool, neighbours often. */
static void draw_pages(struct rig *rig, uint32_t pool, uint32_t count, bool *used, uint32_t *pages)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = i > 0 && draw(rig, 3) != 0 ? (pages[i - 1] + 1) % pool : draw(rig, pool);
        while (used[page])
            page = (page + 1) % pool;
        used[page] = true;
        pages[i] = page;
    }
}

struct transfer {
    uint32_t tokens;
    uint32_t source_pages[8192], target_pages[8192];
    struct kvt_push *push;
};

static void open_push(struct rig *rig, struct transfer *transfer, bool layerwise)
{
    struct kvt_push_spec spec = {.request = 11,
                                 .epoch = 12,
                                 .link = rig->link,
                                 .source_pages = transfer->source_pages,
                                 .target_pages = transfer->target_pages,
                                 .prompt_tokens = transfer->tokens,
                                 .layerwise = layerwise,
                                 .user = transfer};
    struct bt_error error = {0};

    CHECK(kvt_push_open(rig->source, &spec, &error, &transfer->push) == BT_OK);
}

static void lease_long(const struct transfer *transfer)
{
    kvt_push_lease(transfer->push, bt_clock_now_ns() + 60 * BT_NS_PER_S);
}

static struct kvt_push_event take_event(struct rig *rig)
{
    struct pollfd fd = {.fd = bt_queue_fd(kvt_source_events(rig->source)), .events = POLLIN};
    struct kvt_push_event event;

    CHECK(poll(&fd, 1, 50000) == 1);
    CHECK(bt_queue_try_pop(kvt_source_events(rig->source), &event));
    return event;
}

static uint64_t transfer_bytes(const struct rig *rig, const struct transfer *transfer)
{
    return rig->layout.layer_count * transfer->tokens * bt_kv_token_bytes(&rig->layout);
}

/* The target has exactly the source's bytes in its pages, and nothing anywhere else. */
static void check_arrived(struct rig *rig, const struct transfer *transfer,
                          const struct kvt_push_event *event)
{
    uint64_t sum =
        kvt_checksum_sequence(&rig->layout, kvt_source_pool(rig->source), rig->source_pages,
                              transfer->source_pages, transfer->tokens);

    CHECK(event->status == BT_OK && event->quiesced && event->user == transfer);
    CHECK(event->bytes == transfer_bytes(rig, transfer));
    CHECK(event->checksum == sum);
    CHECK(target_host_checksum(rig->host, transfer->target_pages, transfer->tokens) == sum);
    CHECK(event->first_write_ns != 0 && event->finish_ns != 0);
    CHECK(event->end_ns >= event->finish_ns && event->end_ns >= event->first_write_ns);
    CHECK(event->hidden_bytes <= event->bytes);
}

static void no_guard_touched(struct rig *rig, const struct transfer *transfer)
{
    CHECK(target_host_touched_outside(rig->host, transfer->target_pages, transfer->tokens) == 0);
}

/* As a compute thread does: chunk after chunk, layer after layer. */
static void compute_chunks(struct rig *rig, const struct transfer *transfer, uint32_t max_chunk)
{
    for (uint32_t at = 0; at < transfer->tokens;) {
        uint32_t chunk = 1 + draw(rig, max_chunk);
        at = chunk < transfer->tokens - at ? at + chunk : transfer->tokens;
        for (uint32_t layer = 0; layer < rig->layout.layer_count; layer++)
            kvt_push_ready(transfer->push, layer, at);
    }
}

static void draw_transfer(struct rig *rig, uint32_t tokens, struct transfer *ret_transfer)
{
    bool used_source[8192] = {false}, used_target[8192] = {false};
    uint32_t count = bt_kv_pages_for(tokens);

    ret_transfer->tokens = tokens;
    draw_pages(rig, rig->source_pages, count, used_source, ret_transfer->source_pages);
    draw_pages(rig, rig->target_pages, count, used_target, ret_transfer->target_pages);
}

static void push_once(struct rig *rig, struct transfer *transfer, bool layerwise)
{
    struct kvt_push_event event;

    open_push(rig, transfer, layerwise);
    lease_long(transfer);
    compute_chunks(rig, transfer, 200);
    kvt_push_finish(transfer->push);
    event = take_event(rig);
    check_arrived(rig, transfer, &event);
    no_guard_touched(rig, transfer);
    kvt_push_close(transfer->push);
    target_host_fill(rig->host);
}

static struct transfer transfers[MAX_PUSHES];

static void case_layerwise_and_whole(void)
{
    static const uint32_t tokens[] = {1, 63, 64, 65, 700, 3000, 1025};
    struct rig rig = {0};

    rig_init(&rig);
    for (size_t i = 0; i < 2 * sizeof(tokens) / sizeof(tokens[0]); i++) {
        draw_transfer(&rig, tokens[i / 2], &transfers[0]);
        push_once(&rig, &transfers[0], i % 2 == 0);
    }
    rig_finish(&rig);
}

static void case_neighbours_are_one_write(void)
{
    struct rig rig = {0};
    struct kvt_push_event event;
    struct transfer *transfer = &transfers[0];

    rig_init(&rig);
    transfer->tokens = 20 * 64 + 5;
    for (uint32_t i = 0; i < 21; i++) {
        transfer->source_pages[i] = 3 + i;
        transfer->target_pages[i] = i < 9 ? 40 + i : 60 + i; /* two runs */
    }
    open_push(&rig, transfer, false);
    lease_long(transfer);
    kvt_push_finish(transfer->push);
    event = take_event(&rig);
    check_arrived(&rig, transfer, &event);
    CHECK(event.writes == 2 * rig.layout.layer_count);
    CHECK(event.hidden_bytes == 0); /* whole: nothing goes before the end */
    kvt_push_close(transfer->push);
    rig_finish(&rig);
}

static void case_many_at_once(void)
{
    struct rig rig = {0};
    bool used_source[8192] = {false}, used_target[8192] = {false};

    rig_init(&rig);
    for (uint32_t i = 0; i < 16; i++) {
        struct transfer *t = &transfers[i];
        t->tokens = 1 + draw(&rig, 320);
        draw_pages(&rig, rig.source_pages, bt_kv_pages_for(t->tokens), used_source,
                   t->source_pages);
        draw_pages(&rig, rig.target_pages, bt_kv_pages_for(t->tokens), used_target,
                   t->target_pages);
        open_push(&rig, t, i % 3 != 0);
        lease_long(t);
    }
    for (uint32_t i = 0; i < 16; i++) {
        compute_chunks(&rig, &transfers[15 - i], 100);
        kvt_push_finish(transfers[15 - i].push);
    }
    for (uint32_t i = 0; i < 16; i++) {
        struct kvt_push_event event = take_event(&rig);
        check_arrived(&rig, event.user, &event);
        kvt_push_close(event.push);
    }
    rig_finish(&rig);
}

/* Everything is ready, and nothing finished, until it is all there. */
static uint64_t push_and_finish_late(struct rig *rig, struct transfer *t)
{
    int64_t deadline_ns = bt_clock_now_ns() + 20 * BT_NS_PER_S;
    struct kvt_push_event event;

    open_push(rig, t, true);
    lease_long(t);
    for (uint32_t layer = 0; layer < rig->layout.layer_count; layer++)
        kvt_push_ready(t->push, layer, t->tokens);
    while (target_host_touched_inside(rig->host, t->target_pages, t->tokens) <
           transfer_bytes(rig, t))
        CHECK(bt_clock_now_ns() < deadline_ns);
    kvt_push_finish(t->push);
    event = take_event(rig);
    check_arrived(rig, t, &event);
    kvt_push_close(t->push);
    target_host_fill(rig->host);
    return event.hidden_bytes;
}

/* The reward of layer-wise pushing: all but what is posted last is there before finish. What the
 * target has seen the source may count a moment later. */
static void case_layers_go_before_finish(void)
{
    int64_t deadline_ns = bt_clock_now_ns() + 30 * BT_NS_PER_S;
    struct rig rig = {0};

    rig_init(&rig);
    draw_transfer(&rig, 640, &transfers[0]);
    while (push_and_finish_late(&rig, &transfers[0]) == 0)
        CHECK(bt_clock_now_ns() < deadline_ns);
    rig_finish(&rig);
}

static void end_cancelled(struct rig *rig, struct transfer *t, bool may_be_done)
{
    struct kvt_push_event event;

    kvt_push_cancel(t->push);
    event = take_event(rig);
    CHECK(event.status == BT_ERR_CANCELLED || (may_be_done && event.status == BT_OK));
    CHECK(event.quiesced);
    no_guard_touched(rig, t);
    kvt_push_close(t->push);
}

static void case_cancel(void)
{
    struct rig rig = {0};
    struct transfer *t = &transfers[0];

    rig_init(&rig);
    draw_transfer(&rig, 1000, t);
    open_push(&rig, t, true); /* before the lease: nothing may have been written */
    compute_chunks(&rig, t, 300);
    end_cancelled(&rig, t, false);
    CHECK(target_host_touched_inside(rig.host, t->target_pages, t->tokens) == 0);

    open_push(&rig, t, true); /* while posting: the last layer never gets ready */
    lease_long(t);
    for (uint32_t layer = 0; layer + 1 < rig.layout.layer_count; layer++)
        kvt_push_ready(t->push, layer, t->tokens);
    end_cancelled(&rig, t, false);

    for (int i = 0; i < 10; i++) { /* after finish: either end is right, once */
        open_push(&rig, t, i % 2 == 0);
        lease_long(t);
        compute_chunks(&rig, t, 300);
        kvt_push_finish(t->push);
        end_cancelled(&rig, t, true);
    }
    target_host_fill(rig.host);
    push_once(&rig, t, true);
    rig_finish(&rig);
}

static void case_lease(void)
{
    struct rig rig = {0};
    struct transfer *t = &transfers[0];
    struct kvt_push_event event;

    rig_init(&rig);
    draw_transfer(&rig, 500, t);
    open_push(&rig, t, true); /* a lease that is over when it comes */
    compute_chunks(&rig, t, 300);
    kvt_push_lease(t->push, bt_clock_now_ns() - 1);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_DEADLINE && event.quiesced);
    CHECK(event.bytes == 0 && event.writes == 0 && event.finish_ns == 0);
    CHECK(target_host_touched_inside(rig.host, t->target_pages, t->tokens) == 0);
    kvt_push_close(t->push);

    open_push(&rig, t, true); /* runs out half way; later work is not posted */
    kvt_push_lease(t->push, bt_clock_now_ns() + 100 * BT_NS_PER_MS);
    kvt_push_ready(t->push, 0, t->tokens);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_DEADLINE && event.quiesced);
    CHECK(event.bytes <= t->tokens * bt_kv_token_bytes(&rig.layout));
    kvt_push_finish(t->push);
    kvt_push_close(t->push);

    target_host_fill(rig.host);
    open_push(&rig, t, true); /* renewed: it goes on past the first end */
    kvt_push_lease(t->push, bt_clock_now_ns() + 200 * BT_NS_PER_MS);
    lease_long(t);
    compute_chunks(&rig, t, 300);
    kvt_push_finish(t->push);
    event = take_event(&rig);
    check_arrived(&rig, t, &event);
    kvt_push_close(t->push);
    rig_finish(&rig);
}

static void case_huge(void)
{
    struct rig rig = {
        .layout = {.layer_count = 2, .kv_lora_rank = 4, .qk_rope_head_dim = 4, .dtype = BT_BF16},
        .source_pages = 4200,
        .target_pages = 4500};
    struct transfer *t = &transfers[0];

    rig_init(&rig);
    t->tokens = 4000 * 64 - 7;
    for (uint32_t i = 0; i < 4000; i++) { /* no two are neighbours: a write a page */
        t->source_pages[i] = 4000 - i;
        t->target_pages[i] = (uint32_t)((uint64_t)i * 1009 % 4500);
    }
    push_once(&rig, t, true);
    for (uint32_t i = 0; i < 4000; i++) {
        t->source_pages[i] = 100 + i;
        t->target_pages[i] = 300 + i;
    }
    push_once(&rig, t, false);
    rig_finish(&rig);
}

static void expect_failed_link(struct rig *rig, const struct kvt_remote *remote)
{
    struct kvt_link *link;

    CHECK(kvt_source_connect(rig->source, remote, NULL, &link) == BT_OK);
    wait_link(link, KVT_LINK_FAILED);
    CHECK(kvt_link_error(link)[0] != '\0');
    kvt_link_release(link);
}

static void case_garbage_remote(void)
{
    struct rig rig = {0};
    unsigned char address[4096], key[4096];
    struct kvt_remote good, bad;
    struct bt_error error;
    struct kvt_link *link;

    rig_init(&rig);
    target_host_remote(rig.host, &good);
    memcpy(address, good.address, good.address_size);
    memcpy(key, good.key, good.key_size);
    bad = good;
    bad.incarnation = 1; /* no link has it: a new connection */
    bad.address = address;
    bad.key = key;
    for (size_t i = 0; i < good.address_size; i += 1 + good.address_size / 16) {
        address[i] ^= 0x41;
        expect_failed_link(&rig, &bad);
        address[i] ^= 0x41;
    }
    for (size_t i = 0; i < good.key_size; i += 1 + good.key_size / 16) {
        key[i] ^= 0x10;
        expect_failed_link(&rig, &bad);
        key[i] ^= 0x10;
    }
    bad.address_size = good.address_size - 1;
    expect_failed_link(&rig, &bad);
    bad.address_size = 0;
    expect_failed_link(&rig, &bad);
    bad.address_size = good.address_size;
    bad.key_size = 3;
    expect_failed_link(&rig, &bad);
    bad.key_size = good.key_size;
    bad.pool_pages = 0;
    CHECK(kvt_source_connect(rig.source, &bad, &error, &link) == BT_ERR_INVALID_ARGUMENT);
    bad.pool_pages = good.pool_pages;
    bad.pool_base = UINT64_MAX - 5;
    CHECK(kvt_source_connect(rig.source, &bad, &error, &link) == BT_ERR_INVALID_ARGUMENT);
    draw_transfer(&rig, 100, &transfers[0]);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

/* A base that is not the key's: no write leaves, the push fails, the source lives. */
static void case_wrong_base(void)
{
    struct rig rig = {0};
    struct kvt_link *good_link;
    struct kvt_push_event event;
    struct kvt_remote remote;

    rig_init(&rig);
    good_link = rig.link;
    target_host_remote(rig.host, &remote);
    remote.incarnation = 2;
    remote.pool_base += UINT64_C(1) << 30;
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    wait_link(rig.link, KVT_LINK_READY);
    draw_transfer(&rig, 100, &transfers[0]);
    open_push(&rig, &transfers[0], true);
    lease_long(&transfers[0]);
    compute_chunks(&rig, &transfers[0], 100);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_PEER_LOST);
    kvt_push_close(transfers[0].push);
    kvt_link_release(rig.link);
    rig.link = good_link;
    CHECK(target_host_touched_outside(rig.host, NULL, 0) == 0);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

static void case_bad_pushes_are_refused(void)
{
    struct rig rig = {0};
    uint32_t source_page = 5, target_page = 6;
    struct kvt_push_spec spec = {.source_pages = &source_page, .target_pages = &target_page};
    struct bt_error error;
    struct kvt_push *push;

    rig_init(&rig);
    spec.link = rig.link;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_INVALID_ARGUMENT);
    spec.prompt_tokens = 3;
    target_page = rig.target_pages;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_INVALID_ARGUMENT);
    CHECK(strstr(error.text, "target page 0 is 130") != NULL);
    target_page = 6;
    source_page = rig.source_pages;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_INVALID_ARGUMENT);
    for (uint32_t i = 0; i < MAX_PUSHES; i++) {
        draw_transfer(&rig, 1, &transfers[i]);
        open_push(&rig, &transfers[i], true);
    }
    source_page = 0;
    CHECK(kvt_push_open(rig.source, &spec, &error, &push) == BT_ERR_EXHAUSTED);
    for (uint32_t i = 0; i < MAX_PUSHES; i++)
        kvt_push_cancel(transfers[i].push);
    for (uint32_t i = 0; i < MAX_PUSHES; i++) {
        struct kvt_push_event event = take_event(&rig);
        CHECK(event.status == BT_ERR_CANCELLED && event.quiesced && event.writes == 0);
        kvt_push_close(event.push);
    }
    rig_finish(&rig);
}

static void case_links_are_shared(void)
{
    struct rig rig = {0};
    struct kvt_remote remote;
    struct kvt_link *again;

    rig_init(&rig);
    target_host_remote(rig.host, &remote);
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &again) == BT_OK);
    CHECK(again == rig.link);
    kvt_link_release(again);
    draw_transfer(&rig, 77, &transfers[0]);
    open_push(&rig, &transfers[0], true);
    kvt_link_release(rig.link); /* the push holds it */
    lease_long(&transfers[0]);
    kvt_push_finish(transfers[0].push);
    CHECK(take_event(&rig).status == BT_OK);
    kvt_push_close(transfers[0].push);
    connect_target(&rig); /* a new one */
    rig_finish(&rig);
}

/* Pushes until the link is seen to be broken; nothing hangs, nothing is promised falsely. */
static void push_into_the_void(struct rig *rig)
{
    int64_t deadline_ns = bt_clock_now_ns() + 30 * BT_NS_PER_S;

    while (kvt_link_state(rig->link) != KVT_LINK_FAILED) {
        struct kvt_push_event event;
        CHECK(bt_clock_now_ns() < deadline_ns);
        draw_transfer(rig, 640, &transfers[0]);
        open_push(rig, &transfers[0], true);
        lease_long(&transfers[0]);
        kvt_push_finish(transfers[0].push);
        event = take_event(rig);
        CHECK(event.status == BT_OK || event.status == BT_ERR_PEER_LOST);
        CHECK(event.status == BT_ERR_PEER_LOST || event.quiesced);
        kvt_push_close(transfers[0].push);
    }
}

static void case_target_dies_and_comes_back(void)
{
    struct rig rig = {0};
    struct target_host *old;
    struct kvt_push_event event;

    rig.layout = (struct bt_kv_layout){
        .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
    rig.source_pages = rig.target_pages = 100;
    start_target(&rig, TARGET_INCARNATION); /* both before this process touches UCX */
    old = rig.host;
    start_target(&rig, TARGET_INCARNATION + 1);
    struct target_host *replacement = rig.host;
    rig.host = old;
    start_source(&rig, SOURCE_INCARNATION);
    connect_target(&rig);
    draw_transfer(&rig, 6000, &transfers[1]);
    open_push(&rig, &transfers[1], true);
    lease_long(&transfers[1]);
    for (uint32_t layer = 0; layer < 3; layer++)
        kvt_push_ready(transfers[1].push, layer, 6000);
    target_host_kill(old);
    kvt_push_finish(transfers[1].push);
    event = take_event(&rig);
    CHECK(event.status == BT_OK || event.status == BT_ERR_PEER_LOST);
    kvt_push_close(transfers[1].push);
    push_into_the_void(&rig);
    kvt_link_release(rig.link);
    rig.host = replacement;
    connect_target(&rig);
    push_once(&rig, &transfers[1], true);
    rig_finish(&rig);
}

/* Never returns: pushes until it is killed. */
static void push_for_ever(int fd)
{
    struct rig rig = {0};
    struct kvt_remote remote;
    size_t sizes[2];
    char address[4096], key[4096];

    CHECK(bt_process_die_with_parent() == BT_OK);
    rig.layout = (struct bt_kv_layout){
        .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
    rig.source_pages = rig.target_pages = 100;
    CHECK(read(fd, &remote, sizeof(remote)) == sizeof(remote));
    CHECK(read(fd, sizes, sizeof(sizes)) == sizeof(sizes));
    CHECK(read(fd, address, sizes[0]) == (ssize_t)sizes[0]);
    CHECK(read(fd, key, sizes[1]) == (ssize_t)sizes[1]);
    remote.address = address;
    remote.key = key;
    start_source(&rig, SOURCE_INCARNATION);
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    for (;;) {
        draw_transfer(&rig, 5000, &transfers[0]);
        open_push(&rig, &transfers[0], true);
        lease_long(&transfers[0]);
        kvt_push_finish(transfers[0].push);
        CHECK(take_event(&rig).status == BT_OK);
        kvt_push_close(transfers[0].push);
    }
}

static struct kvt_target_event target_event(struct kvt_target *target)
{
    struct pollfd fd = {.fd = bt_queue_fd(kvt_target_events(target)), .events = POLLIN};
    struct kvt_target_event event;

    CHECK(poll(&fd, 1, 30000) == 1);
    CHECK(bt_queue_try_pop(kvt_target_events(target), &event));
    return event;
}

/* Looks at memory while it is being written. */
__attribute__((no_sanitize("thread"))) static void wait_for_bytes(const unsigned char *pool,
                                                                  size_t size)
{
    int64_t deadline_ns = bt_clock_now_ns() + 30 * BT_NS_PER_S;
    size_t touched = 0;

    while (touched == 0) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        for (size_t i = 0; i < size; i += 512)
            touched += ((const volatile unsigned char *)pool)[i] != 0;
    }
}

/* Rule 2: after its process is dead and the disconnect is over, nothing of it arrives any more. */
static void case_source_dies(void)
{
    const struct bt_kv_layout layout = {
        .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
    struct kvt_target_options options = {
        .transport = transport, .layout = layout, .pool_pages = 100, .max_jobs = 4};
    size_t pool_bytes = bt_kv_pool_bytes(&layout, 100), sizes[2];
    struct kvt_remote remote = {.incarnation = TARGET_INCARNATION, .pool_pages = 100};
    unsigned char *before = malloc(pool_bytes);
    struct kvt_target *target;
    struct kvt_target_event event;
    int fds[2], status;
    pid_t child;

    CHECK(before != NULL && pipe(fds) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0)
        push_for_ever(fds[0]);
    CHECK(kvt_target_create(&options, NULL, &target) == BT_OK);
    remote.pool_base = (uintptr_t)kvt_target_pool(target);
    kvt_target_address(target, &remote.address, &sizes[0]);
    kvt_target_key(target, &remote.key, &sizes[1]);
    remote.address_size = sizes[0];
    remote.key_size = sizes[1];
    CHECK(write(fds[1], &remote, sizeof(remote)) == sizeof(remote));
    CHECK(write(fds[1], sizes, sizeof(sizes)) == sizeof(sizes));
    CHECK(write(fds[1], remote.address, sizes[0]) == (ssize_t)sizes[0]);
    CHECK(write(fds[1], remote.key, sizes[1]) == (ssize_t)sizes[1]);
    wait_for_bytes(kvt_target_pool(target), pool_bytes);

    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    CHECK(kvt_target_disconnect(target, 99) == BT_OK); /* never seen: fine */
    CHECK(kvt_target_disconnect(target, SOURCE_INCARNATION) == BT_OK);
    for (int i = 0; i < 2; i++) {
        event = target_event(target);
        CHECK(event.kind == KVT_TARGET_DISCONNECTED);
    }
    memcpy(before, kvt_target_pool(target), pool_bytes);
    for (int i = 0; i < 4; i++) { /* what could still arrive would need the target's progress */
        uint32_t page = 0;
        CHECK(kvt_target_checksum(target, 1, 1, &page, 64) == BT_OK);
        CHECK(target_event(target).kind == KVT_TARGET_CHECKSUM);
    }
    CHECK(memcmp(before, kvt_target_pool(target), pool_bytes) == 0);
    kvt_target_destroy(target);
    free(before);
    close(fds[0]);
    close(fds[1]);
}

/* Refused before a page of it is touched: petabytes. */
static void case_pool_beyond_memory(void)
{
    struct kvt_target_options options = {
        .transport = transport,
        .layout = {.layer_count = 61, .kv_lora_rank = 512, .qk_rope_head_dim = 64, .dtype = BT_F32},
        .pool_pages = UINT32_MAX,
        .max_jobs = 1};
    struct kvt_target *target = NULL;
    struct bt_error error = {0};

    CHECK(kvt_target_create(&options, &error, &target) == BT_ERR_NO_MEMORY);
    CHECK(target == NULL && strstr(error.text, "available") != NULL);
}

static void case_target_jobs_are_bounded(void)
{
    struct kvt_target_options options = {
        .transport = transport,
        .layout = {.layer_count = 1, .kv_lora_rank = 4, .qk_rope_head_dim = 4, .dtype = BT_F32},
        .pool_pages = 2,
        .max_jobs = 3};
    struct rig rig = {.sim = is_sim() ? kvt_sim_create(seed) : NULL};
    struct kvt_target *target;
    uint32_t page = 1;

    options.given = sim_transport(&rig);
    CHECK(kvt_target_create(&options, NULL, &target) == BT_OK);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 2; i++)
            CHECK(kvt_target_checksum(target, 1, 1, &page, 9) == BT_OK);
        CHECK(kvt_target_disconnect(target, 7) == BT_OK);
        CHECK(kvt_target_checksum(target, 1, 1, &page, 9) == BT_ERR_EXHAUSTED);
        CHECK(kvt_target_disconnect(target, 7) == BT_ERR_EXHAUSTED);
        for (int i = 0; i < 3; i++)
            target_event(target);
        /* its count of completed jobs follows the event by an instruction or two */
        while (round < 2 && kvt_target_checksum(target, 1, 1, &page, 9) != BT_OK)
            poll(NULL, 0, 1);
        if (round < 2)
            target_event(target);
        while (round < 2 && kvt_target_disconnect(target, 5) != BT_OK)
            poll(NULL, 0, 1);
        if (round < 2)
            target_event(target);
        poll(NULL, 0, 1);
    }
    kvt_target_destroy(target);
    kvt_sim_destroy(rig.sim);
}

/* Sim only: writes in flight when the link breaks arrive later, until the source is cut off. */
static void case_strays_arrive_until_disconnect(void)
{
    struct rig rig = {0};
    struct kvt_push_event event;
    struct transfer *t = &transfers[0];
    uint64_t inside;

    rig_init(&rig);
    draw_transfer(&rig, 2000, t);
    kvt_sim_hold(rig.sim, true);
    open_push(&rig, t, true);
    lease_long(t);
    kvt_push_finish(t->push);
    while (kvt_sim_in_flight(rig.sim) < 10)
        poll(NULL, 0, 1);
    kvt_sim_break_links(rig.sim);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_PEER_LOST && !event.quiesced);
    CHECK(kvt_sim_stray(rig.sim) >= 10);
    kvt_push_close(t->push);
    CHECK(target_host_touched_inside(rig.host, t->target_pages, t->tokens) == 0);
    target_host_disconnect(rig.host, SOURCE_INCARNATION);
    CHECK(kvt_sim_stray(rig.sim) == 0);
    kvt_sim_hold(rig.sim, false);
    inside = target_host_touched_inside(rig.host, t->target_pages, t->tokens);
    CHECK(inside == 0);
    struct kvt_link *broken = rig.link;
    connect_target(&rig); /* a new one, though the broken one is still held */
    CHECK(rig.link != broken);
    kvt_link_release(broken);
    push_once(&rig, t, true);
    rig_finish(&rig);
}

static _Atomic int64_t slow_until_ns;
static _Atomic int slow_writes;
static const struct kvt_transport_ops *fast_ops;

/* The third write returns only when the lease is over. */
static enum bt_status slow_write(struct kvt_peer *peer, const void *source, size_t bytes,
                                 uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    enum bt_status status = fast_ops->write(peer, source, bytes, remote_address, done, context);

    if (status >= 0 && ++slow_writes == 3)
        while (bt_clock_now_ns() < slow_until_ns)
            poll(NULL, 0, 1);
    return status;
}

/* Sim only: rule 3, between two writes of one batch. */
static void case_no_write_after_the_lease(void)
{
    struct rig rig = {
        .layout = {.layer_count = 1, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16},
        .source_pages = 60,
        .target_pages = 60};
    struct kvt_transport_ops slow_ops;
    struct kvt_push_event event;
    struct transfer *t = &transfers[0];

    rig.sim = kvt_sim_create(seed);
    start_target(&rig, TARGET_INCARNATION);
    struct kvt_source_options options = {.given = sim_transport(&rig),
                                         .layout = rig.layout,
                                         .pool_pages = rig.source_pages,
                                         .incarnation = SOURCE_INCARNATION,
                                         .max_pushes = 1};
    fast_ops = options.given->ops;
    slow_ops = *fast_ops;
    slow_ops.write = slow_write;
    options.given->ops = &slow_ops;
    CHECK(kvt_source_create(&options, NULL, &rig.source) == BT_OK);
    connect_target(&rig);
    t->tokens = 30 * 64;
    for (uint32_t i = 0; i < 30; i++)
        t->source_pages[i] = t->target_pages[i] = 2 * i; /* 30 writes in one batch */
    open_push(&rig, t, true);
    slow_until_ns = bt_clock_now_ns() + 300 * BT_NS_PER_MS;
    kvt_push_lease(t->push, slow_until_ns);
    kvt_push_finish(t->push);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_DEADLINE && event.quiesced);
    CHECK(event.writes == 3 && slow_writes == 3);
    kvt_push_close(t->push);
    rig_finish(&rig);
}

/* TCP only: a source that was told a wrong range writes past the pool. The target drops that,
 * closes the connection, and serves others. */
static void case_target_checks_ranges(void)
{
    struct rig rig = {0};
    struct kvt_link *good;
    struct kvt_push_event event;
    struct kvt_remote remote;
    struct kvt_key_range range;
    const void *rkey;
    void *forged;
    size_t rkey_size;

    rig_init(&rig);
    good = rig.link;
    target_host_remote(rig.host, &remote);
    CHECK(kvt_key_unpack(KVT_BLOB_TCP_KEY, remote.key, remote.key_size, NULL, &range, &rkey,
                         &rkey_size) == BT_OK);
    range.base -= 64;
    range.bytes += 64;
    CHECK(kvt_key_pack(KVT_BLOB_TCP_KEY, &range, rkey, rkey_size, NULL, &forged,
                       &remote.key_size) == BT_OK);
    remote.key = forged;
    remote.incarnation = 3;
    remote.pool_base -= 64;
    CHECK(kvt_source_connect(rig.source, &remote, NULL, &rig.link) == BT_OK);
    wait_link(rig.link, KVT_LINK_READY);
    transfers[0].tokens = 5;
    transfers[0].source_pages[0] = transfers[0].target_pages[0] = 0;
    open_push(&rig, &transfers[0], true);
    lease_long(&transfers[0]);
    kvt_push_finish(transfers[0].push);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_PEER_LOST && !event.quiesced);
    kvt_push_close(transfers[0].push);
    kvt_link_release(rig.link);
    free(forged);
    connect_target(&rig); /* the same incarnation of the source comes back */
    CHECK(rig.link == good);
    kvt_link_release(good);
    draw_transfer(&rig, 100, &transfers[0]);
    push_once(&rig, &transfers[0], true);
    rig_finish(&rig);
}

/* Sim only: cancel waits for the flush; until then the push is not quiesced. */
static void case_cancel_waits_for_flush(void)
{
    struct rig rig = {0};
    struct kvt_push_event event;
    struct transfer *t = &transfers[0];
    struct pollfd fd = {.events = POLLIN};

    rig_init(&rig);
    draw_transfer(&rig, 2000, t);
    kvt_sim_hold(rig.sim, true);
    open_push(&rig, t, true);
    lease_long(t);
    kvt_push_finish(t->push);
    while (kvt_sim_in_flight(rig.sim) < 10)
        poll(NULL, 0, 1);
    kvt_push_cancel(t->push);
    fd.fd = bt_queue_fd(kvt_source_events(rig.source));
    CHECK(poll(&fd, 1, 50) == 0);
    kvt_sim_hold(rig.sim, false);
    event = take_event(&rig);
    CHECK(event.quiesced && (event.status == BT_ERR_CANCELLED || event.status == BT_OK));
    CHECK(kvt_sim_in_flight(rig.sim) == 0);
    kvt_push_close(t->push);
    rig_finish(&rig);
}

/* ---- running ---- */

static void run_case(void (*body)(void))
{
    int status;
    pid_t child;

    fflush(NULL);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(CASE_SECONDS);
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        body();
        exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status))
        fail_msg("ended by signal %d", WTERMSIG(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static const char *missing; /* why this transport can't be tested here */

static void probe_in_child(int fd)
{
    const struct kvt_transport_options options = {.name = transport};
    struct kvt_transport *created;
    struct bt_error error = {0};

    if (kvt_transport_create(&options, &error, &created) == BT_OK)
        created->ops->destroy(created);
    CHECK(write(fd, &error, sizeof(error)) == sizeof(error));
    _exit(0);
}

/* UNAVAILABLE only: any other failure is one of the tests. */
static bool is_available(void)
{
    static struct bt_error error;
    int fds[2], status;
    pid_t child;

    if (is_sim())
        return true;
    CHECK(pipe(fds) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0)
        probe_in_child(fds[1]);
    CHECK(read(fds[0], &error, sizeof(error)) == sizeof(error));
    CHECK(waitpid(child, &status, 0) == child);
    close(fds[0]);
    close(fds[1]);
    missing = error.text;
    return error.status != BT_ERR_UNAVAILABLE;
}

static const struct {
    const char *name;
    void (*body)(void);
    enum { EVERYWHERE, SIM_ONLY, PROCESSES_ONLY, TCP_ONLY } where;
} cases[] = {
    {"layerwise and whole", case_layerwise_and_whole, EVERYWHERE},
    {"neighbours are one write", case_neighbours_are_one_write, EVERYWHERE},
    {"many at once", case_many_at_once, EVERYWHERE},
    {"layers go before finish", case_layers_go_before_finish, EVERYWHERE},
    {"cancel", case_cancel, EVERYWHERE},
    {"lease", case_lease, EVERYWHERE},
    {"huge", case_huge, EVERYWHERE},
    {"garbage remote", case_garbage_remote, EVERYWHERE},
    {"wrong base", case_wrong_base, EVERYWHERE},
    {"bad pushes are refused", case_bad_pushes_are_refused, EVERYWHERE},
    {"links are shared", case_links_are_shared, EVERYWHERE},
    {"target jobs are bounded", case_target_jobs_are_bounded, EVERYWHERE},
    {"target dies and comes back", case_target_dies_and_comes_back, PROCESSES_ONLY},
    {"source dies", case_source_dies, PROCESSES_ONLY},
    {"pool beyond memory", case_pool_beyond_memory, PROCESSES_ONLY},
    {"strays arrive until disconnect", case_strays_arrive_until_disconnect, SIM_ONLY},
    {"no write after the lease", case_no_write_after_the_lease, SIM_ONLY},
    {"target checks ranges", case_target_checks_ranges, TCP_ONLY},
    {"cancel waits for flush", case_cancel_waits_for_flush, SIM_ONLY},
};

static bool applies(size_t i)
{
    switch (cases[i].where) {
    case SIM_ONLY:
        return is_sim();
    case PROCESSES_ONLY:
        return !is_sim();
    case TCP_ONLY:
        return strcmp(transport, "tcp") == 0;
    case EVERYWHERE:
        break;
    }
    return true;
}

static void run_cmocka_case(void **state)
{
    run_case(cases[*(size_t *)*state].body);
}

int main(int argc, char **argv)
{
    static size_t indices[sizeof(cases) / sizeof(cases[0])];
    struct CMUnitTest tests[sizeof(cases) / sizeof(cases[0])];
    size_t count = 0;

    CHECK(argc >= 2);
    transport = argv[1];
    if (!is_available()) {
        printf("skipped: %s\n", missing);
        return 77;
    }
    printf("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (!applies(i))
            continue;
        if (argc > 2 && strcmp(argv[2], cases[i].name) != 0)
            continue;
        indices[count] = i;
        tests[count] = (struct CMUnitTest){
            .name = cases[i].name, .test_func = run_cmocka_case, .initial_state = &indices[count]};
        count++;
    }
    return _cmocka_run_group_tests(transport, tests, count, NULL, NULL);
}
