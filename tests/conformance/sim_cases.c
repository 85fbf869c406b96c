/* What only the simulated transport can be made to do. */
#include "tests/conformance/cases.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "kvtransfer/progress.h"
#include "tests/conformance/rig.h"

/* Sim only: writes in flight when the link breaks arrive later, until the source is cut off. */
void case_strays_arrive_until_disconnect(void)
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
void case_no_write_after_the_lease(void)
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
    /* A host may be too slow to come to the third within the first lease that is tried. */
    for (int64_t ms = 100; slow_writes < 3; ms *= 2) {
        slow_writes = 0;
        open_push(&rig, t, true);
        slow_until_ns = bt_clock_now_ns() + ms * BT_NS_PER_MS;
        kvt_push_lease(t->push, slow_until_ns);
        kvt_push_finish(t->push);
        event = take_event(&rig);
        CHECK(event.status == BT_ERR_DEADLINE && event.quiesced);
        CHECK(event.writes == (uint64_t)slow_writes && event.writes <= 3);
        kvt_push_close(t->push);
    }
    rig_finish(&rig);
}

/* Sim only: cancel waits for the flush; until then the push is not quiesced. */
void case_cancel_waits_for_flush(void)
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

/* A peer whose flush is over, and which has failed when anybody looks again. */
struct last_flush {
    kvt_completion_fn *done;
    void *context;
};
static struct last_flush last_flush;
static _Atomic bool gone;

static void on_last_flush(void *context, enum bt_status status)
{
    const struct last_flush *flushed = context;

    gone = true;
    flushed->done(flushed->context, status);
}

static enum bt_status flush_and_go(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    last_flush = (struct last_flush){.done = done, .context = context};
    return fast_ops->flush(peer, on_last_flush, &last_flush);
}

static enum kvt_peer_state state_until_flush(const struct kvt_peer *peer)
{
    return gone ? KVT_PEER_FAILED : fast_ops->peer_state(peer);
}

static uint64_t two_cuts(const struct kvt_peer *peer)
{
    (void)peer;
    return 6;
}

/* Sim only: rules 4 and 12. The link fails between the completion of the flush and the push's look
 * at it: all has arrived, and the cuts are still told. */
void case_flushed_and_gone_with_cuts(void)
{
    struct rig rig = {0};
    struct kvt_transport_ops going_ops;
    struct kvt_push_event event;
    struct transfer *t = &transfers[0];

    rig_init(&rig);
    kvt_link_release(rig.link);
    kvt_source_destroy(rig.source);
    struct kvt_source_options options = {.given = sim_transport(&rig),
                                         .layout = rig.layout,
                                         .pool_pages = rig.source_pages,
                                         .incarnation = SOURCE_INCARNATION,
                                         .max_pushes = 1};
    fast_ops = options.given->ops;
    going_ops = *fast_ops;
    going_ops.flush = flush_and_go;
    going_ops.peer_state = state_until_flush;
    going_ops.peer_cuts = two_cuts;
    options.given->ops = &going_ops;
    CHECK(kvt_source_create(&options, NULL, &rig.source) == BT_OK);
    connect_target(&rig);
    draw_transfer(&rig, 300, t);
    open_push(&rig, t, true);
    lease_long(t);
    kvt_push_finish(t->push);
    event = take_event(&rig);
    CHECK(event.status == BT_OK && event.quiesced && event.cut_lines == 6);
    CHECK(kvt_link_state(rig.link) == KVT_LINK_FAILED);
    kvt_push_close(t->push);
    rig_finish(&rig);
}

static struct kvt_sim *lying_sim;
static struct kvt_transport *lying_transport;
static struct kvt_progress lie;
static _Atomic uint64_t lie_address;
static _Atomic bool lied, believed;

static void ignore_done(void *context, enum bt_status status)
{
    (void)context, (void)status;
}

/* Before the first write: a record, well sealed, of all that is not there yet. Goes on when the
 * test has seen to it that the target looked. */
static enum bt_status lying_write(struct kvt_peer *peer, const void *source, size_t bytes,
                                  uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    if (bytes == sizeof(lie) && lied)
        return BT_OK; /* its own records would tell the truth */
    if (!lied) {
        enum bt_status status;
        /* it may be refused for now, and lands when it is posted: the fabric is not held */
        do
            status = fast_ops->write(peer, &lie, sizeof(lie), lie_address, ignore_done, NULL);
        while (status == BT_ERR_EXHAUSTED);
        CHECK(status >= 0);
        while (status == BT_IN_PROGRESS && kvt_sim_in_flight(lying_sim) > 0)
            fast_ops->progress(lying_transport);
        lied = true;
        while (!believed)
            poll(NULL, 0, 1);
    }
    return fast_ops->write(peer, source, bytes, remote_address, done, context);
}

/* Sim only: rule 11. A false record is believed no longer than until the sums are compared. */
void case_a_false_record(void)
{
    struct rig rig = {0};
    struct kvt_transport_ops lying_ops;
    struct kvt_push_event event;
    struct kvt_remote remote;
    struct transfer *t = &transfers[0];
    uint64_t sum;

    rig_init(&rig);
    kvt_link_release(rig.link);
    kvt_source_destroy(rig.source);
    struct kvt_source_options options = {.given = sim_transport(&rig),
                                         .layout = rig.layout,
                                         .pool_pages = rig.source_pages,
                                         .incarnation = SOURCE_INCARNATION,
                                         .checksum = true,
                                         .max_pushes = 1};
    fast_ops = options.given->ops;
    lying_sim = rig.sim;
    lying_transport = options.given;
    lying_ops = *fast_ops;
    lying_ops.write = lying_write;
    options.given->ops = &lying_ops;
    CHECK(kvt_source_create(&options, NULL, &rig.source) == BT_OK);
    connect_target(&rig);
    draw_transfer(&rig, 1000, t);
    lie = (struct kvt_progress){.epoch = 12,
                                .layers = rig.layout.layer_count,
                                .tokens_ahead = t->tokens,
                                .tokens_behind = t->tokens,
                                .shares = 1};
    kvt_progress_seal(&lie);
    target_host_remote(rig.host, &remote);
    lie_address =
        remote.pool_base + kvt_progress_offset(&rig.layout, rig.target_pages, t->target_pages[0]);
    open_push(&rig, t, true);
    target_host_expect(rig.host, 12, t->target_pages, t->tokens);
    lease_long(t);
    kvt_push_finish(t->push);
    while (!lied)
        poll(NULL, 0, 1);
    for (uint32_t turn = 0; turn < 2 * rig.layout.layer_count; turn++) /* a layer a turn at least */
        target_host_checksum(rig.host, t->target_pages, 1);
    believed = true;
    event = take_event(&rig);
    CHECK(event.status == BT_OK && event.quiesced);
    sum = target_host_verify(rig.host, 12, t->target_pages, t->tokens);
    CHECK(target_host_was_early(rig.host) && target_host_early_bytes(rig.host) > 0);
    CHECK(sum != event.checksum); /* it was taken in: what the decode worker asks for next counts */
    CHECK(target_host_verify(rig.host, 12, t->target_pages, t->tokens) == event.checksum);
    CHECK(!target_host_was_early(rig.host));
    kvt_push_close(t->push);
    rig_finish(&rig);
}
