/*
 * usage: simulate [--seed N] [--count N] [--trace] [--hash]
 *
 * Runs schedules of faults against a cluster in one process: a router, prefill workers and decode
 * ranks, their real code on a simulated clock, network and card. Each schedule is a function of its
 * seed alone; --seed N --trace shows one as a log of events. Without --seed the first one is drawn
 * and printed. Exits 1 at the first schedule that breaks an invariant, after printing its seed.
 *
 * Held in every schedule: no write lands in a page that is not its request's, or that is not open
 * for writing; no KV of a running sequence is anybody else's; no token is lost, repeated or wrong;
 * every request ends once; when all faults are over, every request ends, every page is free again,
 * and a fresh request to all nodes gets all of its tokens. In all schedules together, where few
 * things went wrong most requests must have got theirs.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/kvcache/page_pool.h"
#include "decode-node/worker.h"
#include "prefill-node/worker.h"
#include "tests/sim/cluster.h"
#include "tests/sim/fabric.h"
#include "tests/sim/front.h"
#include "tests/sim/seams.h"
#include "tests/sim/world.h"

#define DEFAULT_COUNT  100000
#define FAULTS_NS      (3 * SIM_S)
#define QUIET_WITHIN   (400 * SIM_S) /* after the last fault */
#define LOOK_NS        (100 * SIM_MS)
#define FRESH_NS       (3 * SIM_S) /* for all nodes to know each other */
#define EVENTS_AT_MOST 2000000

static struct {
    bool over;  /* the faults */
    bool quiet; /* everything has ended */
    bool mild;  /* few things go wrong */
    int64_t over_ns;
    const struct client *fresh; /* after the first quiet */
    bool waits, asked;          /* it will be, was submitted */
} schedule;

/* ---- faults */

static void restart_event(void *object, uint64_t unused)
{
    (void)unused;
    node_start(object);
}

static void release_event(void *object, uint64_t unused)
{
    (void)object;
    (void)unused;
    note("network goes on", 0, 0, 0);
    fabric_hold(false);
}

static void silent_event(void *object, uint64_t unused)
{
    struct node *node = object;
    (void)unused;
    if (node_stalled(node)) {
        rpc_silent(node);
    }
}

static struct node *draw_node(void)
{
    return &world.nodes[draw(world.node_count)];
}

static void client_event(void *object, uint64_t kind);

/* Clients come back to a router that does. */
static void fault_kill(struct node *node)
{
    node_kill(node);
    if (draw(4)) {
        int64_t back_ns = world.now_ns + draw_ns(0, 2 * SIM_S);
        event_at(back_ns, NULL, restart_event, node, 0);
        for (int i = 0; node->role == ROLE_ROUTER && i < 3; i++) {
            event_at(back_ns + draw_ns(0, 2 * SIM_S), NULL, client_event, NULL, 0);
        }
    }
}

static void fault_stall(struct node *node)
{
    if (node->alive) {
        node_stall(node, draw(3) ? draw_ns(0, 2 * SIM_S) : draw_ns(0, 20 * SIM_S));
        event_at(world.now_ns + BT_RPC_PEER_TIMEOUT_MS * SIM_MS, NULL, silent_event, node, 0);
    }
}

static void fault_event(void *object, uint64_t unused)
{
    (void)object;
    (void)unused;
    struct node *node = draw_node();
    switch (draw(8)) {
    case 0:
        fault_kill(node);
        break;
    case 1:
    case 2:
    case 3:
        fault_stall(node);
        break;
    case 4:
        note("links break", 0, 0, 0);
        fabric_break_links();
        break;
    case 5:
        note("network holds", 0, 0, 0);
        fabric_hold(true);
        event_at(world.now_ns + draw_ns(0, 3 * SIM_S), NULL, release_event, NULL, 0);
        break;
    case 6:
        rpc_cut(node, draw_node());
        break;
    default:
        if (draw(3) == 0) {
            fault_kill(&world.nodes[0]);
        } else {
            rpc_cut(&world.nodes[0], node);
        }
    }
}

static void rail_event(void *object, uint64_t unused)
{
    struct node *node = draw_node();
    (void)object;
    (void)unused;
    if (node->alive && node->role == ROLE_PREFILL) {
        note("a rail fails", node->slot, 0, 0);
        fabric_break_rail(node);
    }
}

/* ---- clients */

static void submit_event(void *object, uint64_t unused)
{
    (void)unused;
    client_submit(object);
}

static void abandon_event(void *object, uint64_t index)
{
    if (index < client_count) {
        client_abandon(object, (uint32_t)index);
    }
}

static void client_event(void *object, uint64_t kind)
{
    struct node *router = &world.nodes[0];
    (void)object;
    if (!router->alive || node_stalled(router)) {
        return;
    }
    if (kind == 0) {
        node_run(router, submit_event, router, 0);
    } else {
        node_run(router, abandon_event, router, draw(MAX_CLIENT) % (client_count + 1));
    }
}

/* ---- the end */

static void check_conserved(const struct node *node)
{
    uint32_t sum = 0;
    for (int state = 0; state < BT_PAGE_STATE_COUNT; state++) {
        sum += bt_page_pool_count(node->pages, (enum bt_page_state)state);
    }
    if (sum != node->kv_pages) {
        fail("%s has %u of %u pages", node->id, sum, node->kv_pages);
    }
}

static bool node_quiet(const struct node *node)
{
    if (!node->alive) {
        return true;
    }
    if (node->role == ROLE_ROUTER) {
        return clients_all_ended(node);
    }
    check_conserved(node);
    uint32_t free_count = bt_page_pool_count(node->pages, BT_PAGE_FREE);
    if (node->role == ROLE_PREFILL) {
        return free_count == node->kv_pages && pf_worker_idle(node->program);
    }
    return free_count == node->kv_pages && dc_worker_requests(node->program) == 0;
}

static void submit_fresh(void *object, uint64_t unused)
{
    (void)unused;
    schedule.fresh = client_submit_fresh(object);
    schedule.asked = schedule.fresh != NULL;
}

/* Workers that could not reach the router try less and less often. */
static void ask_fresh(void *object, uint64_t tries)
{
    struct node *router = object;
    node_run(router, submit_fresh, router, 0);
    if (!schedule.asked && tries < 10) {
        event_at(world.now_ns + FRESH_NS, NULL, ask_fresh, router, tries + 1);
    } else if (!schedule.asked) {
        fail("a fresh request is refused");
    }
}

/* The end is quiet twice: after the faults, and after a fresh request. */
static void schedule_advance(void)
{
    if (schedule.asked) {
        if (!schedule.fresh->finished) {
            fail("request %016llx came after all was over, and did not get its tokens",
                 (unsigned long long)schedule.fresh->request);
        }
        return;
    }
    int64_t begin_ns = world.now_ns;
    for (uint32_t i = 0; i < world.node_count; i++) {
        struct node *node = &world.nodes[i];
        node_start(node);
        begin_ns = node->stalled_until > begin_ns ? node->stalled_until : begin_ns;
    }
    event_at(begin_ns + FRESH_NS, NULL, ask_fresh, &world.nodes[0], 0);
    schedule.waits = true;
}

static void look_event(void *object, uint64_t unused)
{
    (void)object;
    (void)unused;
    bool quiet = schedule.over;
    for (uint32_t i = 0; i < world.node_count; i++) {
        quiet = node_quiet(&world.nodes[i]) && quiet;
    }
    if (quiet && (schedule.asked || !schedule.waits)) {
        schedule.quiet = schedule.asked;
        schedule_advance();
    }
    event_at(world.now_ns + LOOK_NS, NULL, look_event, NULL, 0);
}

/* Whoever is stopped goes on, some of the dead come back. */
static void over_event(void *object, uint64_t unused)
{
    (void)object;
    (void)unused;
    note("faults are over", 0, 0, 0);
    world.faults.on = false;
    fabric_hold(false);
    for (uint32_t i = 0; i < world.node_count; i++) {
        if (!world.nodes[i].alive && draw(4)) {
            node_start(&world.nodes[i]);
        }
    }
    schedule.over = true;
    schedule.over_ns = world.now_ns;
}

/* ---- a schedule */

static uint32_t sometimes(uint32_t per_mille)
{
    return draw(2) ? draw(per_mille) : 0;
}

static void draw_cluster(void)
{
    static const uint32_t leases[] = {100, 300, 1000}, thresholds[] = {0, 100, 1000};
    uint32_t prefills = 1 + draw(2), decodes = 1 + draw(2);
    memset(&schedule, 0, sizeof(schedule));
    schedule.mild = draw(8) == 0;
    cluster.lease_ms = leases[draw(3)];
    cluster.layerwise_threshold = thresholds[draw(3)];
    cluster.checksum = draw(4) > 0;
    world.faults = (struct faults){.on = true,
                                   .lose = sometimes(150),
                                   .duplicate = sometimes(200),
                                   .reorder = sometimes(300),
                                   .slow = sometimes(100),
                                   .stall = sometimes(25),
                                   .corrupt = cluster.checksum ? sometimes(30) : 0,
                                   .lie = sometimes(500),
                                   .remote = draw(3) == 0,
                                   .rails = draw(12) == 0,
                                   .honest = true};
    if (schedule.mild) {
        world.faults = (struct faults){.on = true,
                                       .duplicate = sometimes(100),
                                       .reorder = sometimes(100),
                                       .lie = draw(2) ? 1000 : 0,
                                       .remote = world.faults.remote,
                                       .rails = world.faults.rails,
                                       .honest = true};
    }
    node_add(ROLE_ROUTER, 0);
    for (uint32_t i = 0; i < prefills; i++) {
        node_add(ROLE_PREFILL, 4 + draw(6));
    }
    for (uint32_t i = 0; i < decodes; i++) {
        node_add(ROLE_DECODE, 5 + draw(8));
    }
}

static void draw_events(void)
{
    int64_t begin_ns = world.now_ns;
    for (uint32_t i = 1 + draw(6); i > 0; i--) {
        event_at(begin_ns + draw_ns(10 * SIM_MS, 3 * SIM_S / 2), NULL, client_event, NULL, 0);
    }
    for (uint32_t i = draw(3); i > 0; i--) {
        event_at(begin_ns + draw_ns(10 * SIM_MS, 2 * SIM_S), NULL, client_event, NULL, 1);
    }
    for (uint32_t i = schedule.mild ? 0 : draw(6); i > 0; i--) {
        event_at(begin_ns + draw_ns(0, FAULTS_NS), NULL, fault_event, NULL, 0);
    }
    for (uint32_t i = world.faults.rails ? draw(5) : 0; i > 0; i--) {
        event_at(begin_ns + draw_ns(0, FAULTS_NS), NULL, rail_event, NULL, 0);
    }
    event_at(begin_ns + FAULTS_NS, NULL, over_event, NULL, 0);
    event_at(begin_ns + LOOK_NS, NULL, look_event, NULL, 0);
}

static bool schedule_ends(void)
{
    if (schedule.over && !schedule.quiet && world.now_ns > schedule.over_ns + QUIET_WITHIN) {
        for (uint32_t i = 0; i < world.node_count; i++) {
            if (!node_quiet(&world.nodes[i])) {
                fail("%s is not quiet long after the last fault", world.nodes[i].id);
            }
        }
    } else if (world.events > EVENTS_AT_MOST) {
        fail("no end after %d events", EVENTS_AT_MOST);
    }
    return schedule.quiet || world.failure;
}

static void schedule_run(uint64_t seed, bool trace)
{
    world_begin(seed, trace);
    fabric_begin(seed);
    client_count = 0;
    draw_cluster();
    for (uint32_t i = 0; i < world.node_count; i++) {
        node_start(&world.nodes[i]);
    }
    draw_events();
    while (!schedule_ends() && world_step()) {
    }
    if (world.nodes[0].alive) {
        clients_check(&world.nodes[0]);
    }
    note("end", world.events, 0, 0);
    fabric_end();
    world_end();
}

static struct {
    uint64_t requests, finished;
} mild;

static void count_mild(void)
{
    for (uint32_t i = 0; i < client_count && schedule.mild; i++) {
        const struct client *client = &clients_of_router[i];
        if (!client->abandoned && !client->hurried) {
            mild.requests++;
            mild.finished += client->finished;
        }
    }
}

static bool mild_is_well(void)
{
    return mild.finished * 20 >= mild.requests * 19;
}

/* ---- the program */

struct arguments {
    uint64_t seed, count;
    bool seeded, trace, hash;
};

static bool parse(int argc, char **argv, struct arguments *ret_arguments)
{
    struct arguments parsed = {.count = DEFAULT_COUNT};
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (strcmp(argv[i], "--trace") == 0) {
            parsed.trace = true;
        } else if (strcmp(argv[i], "--hash") == 0) {
            parsed.hash = true;
        } else if (strcmp(argv[i], "--seed") == 0 && more) {
            parsed.seed = strtoull(argv[++i], NULL, 0);
            parsed.seeded = true;
        } else if (strcmp(argv[i], "--count") == 0 && more) {
            parsed.count = strtoull(argv[++i], NULL, 0);
        } else {
            return false;
        }
    }
    if (!parsed.seeded && getrandom(&parsed.seed, sizeof(uint32_t), 0) < 0) {
        return false;
    }
    if (parsed.trace) {
        parsed.count = 1;
    }
    *ret_arguments = parsed;
    return true;
}

int main(int argc, char **argv)
{
    struct arguments arguments;
    if (!parse(argc, argv, &arguments)) {
        fprintf(stderr, "usage: simulate [--seed N] [--count N] [--trace] [--hash]\n");
        return 2;
    }
    printf("first seed %" PRIu64 ", %" PRIu64 " schedules\n", arguments.seed, arguments.count);
    uint64_t hash = 0, events = 0, requests = 0;
    for (uint64_t i = 0; i < arguments.count && (mild.requests < 500 || mild_is_well()); i++) {
        uint64_t seed = arguments.seed + i;
        schedule_run(seed, arguments.trace);
        hash = hash * 31 + world.hash;
        events += world.events;
        requests += client_count;
        count_mild();
        if (world.failure) {
            printf("seed %" PRIu64 ": %s\n", seed, world.failure);
            printf("see it: simulate --seed %" PRIu64 " --trace\n", seed);
            return 1;
        }
    }
    if (!mild_is_well()) {
        printf("of %" PRIu64 " requests that met little trouble only %" PRIu64
               " got their tokens\n",
               mild.requests, mild.finished);
        return 1;
    }
    if (arguments.hash) {
        printf("hash %016" PRIx64 "\n", hash);
    }
    printf("%" PRIu64 " schedules, %" PRIu64 " requests (%" PRIu64 " of %" PRIu64
           " got their tokens where little went wrong), %" PRIu64 " events: all invariants held\n",
           arguments.count, requests, mild.finished, mild.requests, events);
    return 0;
}
