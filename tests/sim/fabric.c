#include "tests/sim/fabric.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kvcache/layout.h"
#include "common/kvcache/page_pool.h"
#include "kvtransfer/choice/choice.h"
#include "kvtransfer/landing.h"
#include "kvtransfer/progress.h"
#include "kvtransfer/rails/rails.h"
#include "proto/worker.pb-c.h"
#include "tests/sim/engines.h"
#include "tests/sim/seams.h"

#define MAX_PAGES   64
#define MIN_WAIT_MS 20
#define MAX_RAILS   3

struct shadow_page {
    uint64_t request, epoch;
    uint32_t logical;
};

struct shadow {
    char *pool;
    size_t bytes;
    struct shadow_page pages[MAX_PAGES];
};

/* What of the fabric a node has: its rails, one as a rule. */
struct card {
    struct kvt_transport *rails[MAX_RAILS];
    uint32_t count;
    bool woken; /* and its thread has not waited since */
};

static struct kvt_sim *sim;
static struct kvt_transport_ops ops, rail_ops;
static const struct kvt_transport_ops *real_ops; /* of the choice, which has the rails */
static struct card cards[MAX_NODE];
static struct shadow shadows[MAX_NODE];
static bool is_held;

/* ---- tags */

uint32_t kv_tag(uint64_t request, uint64_t epoch, uint32_t layer, uint32_t position)
{
    uint64_t mixed = (request * 31 + epoch) * 131 + layer;
    mixed = (mixed ^ (mixed >> 33)) * UINT64_C(0xff51afd7ed558ccd) + position;
    mixed = (mixed ^ (mixed >> 29)) * UINT64_C(0xc4ceb9fe1a85ec53);
    return (uint32_t)(mixed >> 32) | 1;
}

uint32_t *kv_slot(void *pool, uint32_t pool_pages, uint32_t layer, uint32_t page, uint32_t token)
{
    return (uint32_t *)pool + ((size_t)layer * pool_pages + page) * BT_PAGE_TOKENS + token;
}

/* ---- the shadow */

void *shadow_pool(const struct node *node)
{
    return shadows[node->slot].pool;
}

void shadow_set_pool(struct node *node, void *base, size_t bytes)
{
    shadows[node->slot].pool = base;
    shadows[node->slot].bytes = bytes;
}

void shadow_forget(const struct node *node)
{
    memset(&shadows[node->slot], 0, sizeof(shadows[0]));
}

void shadow_answer(const char *method, const ProtobufCMessage *response)
{
    if (strcmp(method, "baton.v1.Decode/Reserve") != 0) {
        return;
    }
    const Baton__V1__Landing *landing = ((const Baton__V1__ReserveResponse *)response)->landing;
    struct shadow *shadow = &shadows[world.current->slot];
    uint32_t logical = 0;
    note("landing given", landing->request_id, landing->epoch, landing->n_runs);
    for (size_t i = 0; i < landing->n_runs; i++) {
        for (uint32_t k = 0; k < landing->runs[i]->count; k++) {
            uint32_t page = landing->runs[i]->first + k;
            BT_ASSERT(page < MAX_PAGES);
            if (shadow->pages[page].epoch >= landing->epoch) {
                fail("epoch %llu is not above %llu, which had page %u before",
                     (unsigned long long)landing->epoch,
                     (unsigned long long)shadow->pages[page].epoch, page);
            }
            shadow->pages[page] =
                (struct shadow_page){landing->request_id, landing->epoch, logical++};
        }
    }
}

/* Whether the page may be written at all now, by the writer that `ours` says it was. */
static void check_page(const struct node *node, uint32_t page, bool ours)
{
    const struct shadow_page *owner = &shadows[node->slot].pages[page];
    struct bt_page_owner real;
    enum bt_page_state state = bt_page_pool_state(node->pages, page, &real);

    if (!ours) {
        fail("a write landed in page %u of %s that is not of request %016llx, epoch %llu", page,
             node->id, (unsigned long long)owner->request, (unsigned long long)owner->epoch);
    } else if (state != BT_PAGE_LANDING && state != BT_PAGE_QUARANTINED) {
        fail("a write landed in page %u of %s, which is in state %d", page, node->id, state);
    } else if (real.request != owner->request || real.epoch != owner->epoch) {
        fail("page %u of %s belongs to request %016llx by the pool, to %016llx by the landing",
             page, node->id, (unsigned long long)real.request, (unsigned long long)owner->request);
    }
}

static void check_word(const struct node *node, size_t index, uint32_t value)
{
    uint32_t token = (uint32_t)(index % BT_PAGE_TOKENS);
    uint32_t page = (uint32_t)(index / BT_PAGE_TOKENS % node->kv_pages);
    uint32_t layer = (uint32_t)(index / BT_PAGE_TOKENS / node->kv_pages);
    const struct shadow_page *owner = &shadows[node->slot].pages[page];
    check_page(node, page,
               value == kv_tag(owner->request, owner->epoch, layer,
                               owner->logical * BT_PAGE_TOKENS + token));
}

/* Where a push tells how far it is: behind the pages, a slot each. */
static void check_record(const struct node *node, size_t offset, struct kvt_progress *record)
{
    const struct bt_kv_layout layout = bt_model_kv_layout(&sim_model, BT_BF16);
    uint64_t first = kvt_progress_offset(&layout, node->kv_pages, 0);
    uint32_t page = (uint32_t)((offset - first) / KVT_PROGRESS_SLOT_BYTES);
    BT_ASSERT(offset >= first && page < node->kv_pages);
    check_page(node, page, record->epoch == shadows[node->slot].pages[page].epoch);
    if (world.faults.on && chance(world.faults.lie)) { /* all layers are as far as the first */
        record->tokens_behind = record->tokens_ahead;
        kvt_progress_seal(record);
        note("a false record", node->slot, record->epoch, record->tokens_ahead);
    }
}

static void check_landed(struct node *node, size_t offset, void *memory, size_t bytes)
{
    size_t first = offset / sizeof(uint32_t);
    uint32_t *words = memory;
    if (offset >= (size_t)SIM_LAYERS * node->kv_pages * BT_PAGE_TOKENS * sizeof(uint32_t)) {
        check_record(node, offset, memory);
        return;
    }
    for (size_t k = 0; k < bytes / sizeof(uint32_t) && !world.failure; k++) {
        check_word(node, first + k, words[k]);
    }
    if (world.faults.on && chance(world.faults.corrupt)) {
        words[draw((uint32_t)(bytes / sizeof(uint32_t)))] ^= 1u << draw(32);
        note("corrupted", node->slot, 0, 0);
    }
}

static void on_landed(void *context, void *memory, size_t bytes)
{
    (void)context;
    for (uint32_t i = 0; i < world.node_count; i++) {
        struct node *node = &world.nodes[i];
        const struct shadow *shadow = &shadows[i];
        char *at = memory;
        if (node->role != ROLE_DECODE || shadow->pool == NULL || at < shadow->pool ||
            at >= shadow->pool + shadow->bytes) {
            continue;
        }
        note("write lands", node->slot, (uint64_t)(at - shadow->pool), bytes);
        check_landed(node, (size_t)(at - shadow->pool), memory, bytes);
        return;
    }
    fail("a write landed outside of every pool");
}

static void check_token(struct node *node, const struct dc_sequence *sequence, uint32_t position)
{
    uint32_t page = sequence->pages[position / BT_PAGE_TOKENS];
    for (uint32_t layer = 0; layer < SIM_LAYERS; layer++) {
        uint32_t value =
            *kv_slot(shadow_pool(node), node->kv_pages, layer, page, position % BT_PAGE_TOKENS);
        if (value != kv_tag(sequence->request, sequence->epoch, layer, position)) {
            fail("request %016llx on %s: the KV of position %u, layer %u, page %u is not its own",
                 (unsigned long long)sequence->request, node->id, position, layer, page);
            return;
        }
    }
}

void shadow_check_sequence(struct node *node, const struct dc_sequence *sequence, uint32_t output)
{
    for (uint32_t i = 0; i < sequence->prompt_tokens + output && !world.failure; i++) {
        check_token(node, sequence, i);
    }
}

/* ---- the transport */

/* Who only wants to look again soon is woken late: that is cheaper, and no promise. */
static void wait_in_world(struct kvt_transport *transport, int timeout_ms)
{
    struct card *card = &cards[world.current->slot];
    /* its look at the clock may take long */
    if (!real_ops->arm(transport, &timeout_ms) || card->woken) {
        card->woken = false;
        return;
    }
    if (timeout_ms >= 0 && timeout_ms < MIN_WAIT_MS) {
        timeout_ms = MIN_WAIT_MS;
    }
    thread_wait(timeout_ms < 0 ? BT_NEVER_NS : world.now_ns + timeout_ms * SIM_MS);
    card->woken = false;
}

/* The world wakes who has something to do. */
static bool arm_in_world(struct kvt_transport *transport, int *ret_timeout_ms)
{
    (void)transport;
    (void)ret_timeout_ms;
    return true;
}

static void wake_in_world(struct kvt_transport *transport)
{
    cards[world.current->slot].woken = true;
    thread_wake(transport, world.now_ns + draw_ns(SIM_US, 20 * SIM_US));
}

static enum bt_status alloc_in_world(struct kvt_transport *transport, size_t bytes,
                                     struct bt_error *error, struct kvt_memory **ret_memory)
{
    enum bt_status status = real_ops->memory_alloc(transport, bytes, error, ret_memory);
    if (status == BT_OK) {
        shadow_set_pool(world.current, real_ops->memory_base(*ret_memory), bytes);
    }
    return status;
}

/* What is cut off is broken already, or its source is dead, or may be. */
static void disconnect_in_world(struct kvt_transport *transport, const struct kvt_cut *cut,
                                kvt_completion_fn *done, void *context)
{
    const struct card *card = &cards[world.current->slot];
    bool any = cut->link == KVT_ANY_LINK && world.faults.remote;
    note("cut", cut->incarnation, cut->link, cut->lines);
    for (uint32_t i = 0; i < card->count && world.faults.honest && !any; i++) {
        if (kvt_sim_healthy(card->rails[i], cut) > 0) {
            fail("%s cuts off a connection that is up", world.current->id);
        }
    }
    real_ops->disconnect(transport, cut, done, context);
}

/* ---- other ranks of a prefill worker */

/* Beside a cut, before or after it, that of a link which another process had. */
static size_t add_cut(Baton__V1__LinkCut **cuts, size_t count, Baton__V1__LinkCut **ret_cuts)
{
    static Baton__V1__LinkCut other;
    baton__v1__link_cut__init(&other);
    other.link = UINT64_MAX - draw(3);
    other.lines = KVT_ALL_LINES;
    size_t at = draw(2) ? count : 0;
    memcpy(ret_cuts, cuts, count * sizeof(*cuts));
    memmove(&ret_cuts[at + 1], &ret_cuts[at], (count - at) * sizeof(*cuts));
    ret_cuts[at] = &other;
    return count + 1;
}

const ProtobufCMessage *fabric_among_ranks(const ProtobufCMessage *request)
{
    static Baton__V1__LinkCut *cuts[8];
    static Baton__V1__QuiescedRequest quiesced;
    static Baton__V1__HandoffDoneRequest done;
    if (request->descriptor == &baton__v1__quiesced_request__descriptor) {
        memcpy(&quiesced, request, sizeof(quiesced));
        if (quiesced.n_cuts > 0 && quiesced.n_cuts < 8) {
            quiesced.n_cuts = add_cut(quiesced.cuts, quiesced.n_cuts, cuts);
            quiesced.cuts = cuts;
            return &quiesced.base;
        }
    } else if (request->descriptor == &baton__v1__handoff_done_request__descriptor) {
        memcpy(&done, request, sizeof(done));
        if (done.n_cuts > 0 && done.n_cuts < 8) {
            done.n_cuts = add_cut(done.cuts, done.n_cuts, cuts);
            done.cuts = cuts;
            return &done.base;
        }
    }
    return request;
}

static enum bt_status make_rails(struct card *card, uint32_t count, struct bt_error *error,
                                 struct kvt_transport **ret_transport)
{
    struct kvt_rail rails[MAX_RAILS] = {0};
    card->woken = false;
    for (card->count = 0; card->count < count; card->count++) {
        struct kvt_rail *rail = &rails[card->count];
        enum bt_status status = kvt_sim_transport_create(sim, error, &rail->transport);
        if (status != BT_OK) {
            return status;
        }
        rail_ops = *rail->transport->ops;
        rail_ops.arm = arm_in_world;
        rail->transport->ops = &rail_ops;
        rail->rate_mbps = 100000 * (card->count + 1);
        snprintf(rail->device, sizeof(rail->device), "sim_%u:1", card->count);
        card->rails[card->count] = rail->transport;
    }
    if (!world.faults.rails) {
        *ret_transport = rails[0].transport;
        return BT_OK;
    }
    return kvt_rails_create(rails, count, error, ret_transport);
}

enum bt_status kvt_transport_create(const struct kvt_transport_options *options,
                                    struct bt_error *error, struct kvt_transport **ret_transport)
{
    struct kvt_choice choice = {.name = "sim"};
    enum bt_status status =
        make_rails(&cards[world.current->slot], world.faults.rails ? 1 + draw(MAX_RAILS) : 1, error,
                   &choice.transport);
    if (status == BT_OK) {
        status = kvt_choice_create(&choice, 1, options->forbid_fallback, error, ret_transport);
    }
    if (status != BT_OK) {
        return status;
    }
    real_ops = (*ret_transport)->ops;
    ops = *real_ops;
    ops.wait = wait_in_world;
    ops.wake = wake_in_world;
    ops.memory_alloc = alloc_in_world;
    ops.disconnect = disconnect_in_world;
    (*ret_transport)->ops = &ops;
    world.current->transport = *ret_transport;
    return BT_OK;
}

/* Descriptors are for waiting, which the world does. */
int __wrap_epoll_create1(int flags)
{
    (void)flags;
    return 0;
}

int __wrap_eventfd(unsigned int value, int flags)
{
    (void)value;
    (void)flags;
    return 0;
}

int __wrap_epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    (void)epoll;
    (void)operation;
    (void)fd;
    (void)event;
    return 0;
}

static bool card_busy(const struct card *card)
{
    bool busy = false;
    for (uint32_t i = 0; i < card->count; i++) {
        busy = busy || kvt_sim_busy(card->rails[i]);
    }
    return busy;
}

static void card_crash(struct card *card)
{
    while (card->count > 0) {
        kvt_sim_crash(card->rails[--card->count]);
    }
}

/* Stray data of a dead or broken source may lie in the network for long. */
int64_t fabric_delay(const struct node *node)
{
    if (is_held || !card_busy(&cards[node->slot])) {
        return BT_NEVER_NS;
    }
    if (node->role == ROLE_DECODE) {
        return draw(3) ? draw_ns(0, 20 * SIM_MS) : draw_ns(0, 4 * SIM_S);
    }
    return chance(world.faults.on ? 20 : 0) ? draw_ns(0, 50 * SIM_MS)
                                            : draw_ns(SIM_US, 40 * SIM_US);
}

void fabric_crash(struct node *node)
{
    card_crash(&cards[node->slot]);
    shadow_forget(node);
    for (uint32_t i = 0; i < world.node_count; i++) {
        if (world.nodes[i].transport && &world.nodes[i] != node) {
            thread_wake(world.nodes[i].transport, world.now_ns + draw_ns(0, 50 * SIM_MS));
        }
    }
}

void fabric_break_rail(struct node *node)
{
    const struct card *card = &cards[node->slot];
    if (card->count > 0) {
        kvt_sim_break_links_of(card->rails[draw(card->count)]);
        thread_wake(node->transport, world.now_ns + draw_ns(0, 5 * SIM_MS));
    }
}

void fabric_hold(bool held)
{
    is_held = held;
    kvt_sim_hold(sim, held);
}

void fabric_break_links(void)
{
    kvt_sim_break_links(sim);
    for (uint32_t i = 0; i < world.node_count; i++) {
        if (world.nodes[i].transport) {
            thread_wake(world.nodes[i].transport, world.now_ns + draw_ns(0, 5 * SIM_MS));
        }
    }
}

void fabric_begin(uint64_t seed)
{
    sim = kvt_sim_create(seed);
    kvt_sim_observe(sim, on_landed, NULL);
    is_held = false;
}

void fabric_end(void)
{
    for (uint32_t i = 0; i < world.node_count; i++) {
        card_crash(&cards[i]);
        world.nodes[i].transport = NULL;
        shadow_forget(&world.nodes[i]);
    }
    kvt_sim_destroy(sim);
    sim = NULL;
}
