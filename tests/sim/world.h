/*
 * The world of the simulator: one thread, a fake clock, an ordered queue of events, processes
 * ("nodes") that can be killed, stopped and started again, and the threads inside them, run as
 * coroutines. Everything that happens is drawn from one seed.
 *
 * The simulator links the real programs' libraries and puts itself underneath them: clock, threads,
 * queues, event loop, RPC, process table and transport are defined here (world.c, loop.c, rpc.c,
 * fabric.c), engines and text in engines.c and front.c. All else is the code that ships.
 */
#ifndef BATON_TESTS_SIM_WORLD_H
#define BATON_TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/base/status.h"

#define SIM_US   INT64_C(1000)
#define SIM_MS   BT_NS_PER_MS
#define SIM_S    BT_NS_PER_S
#define MAX_NODE 5

enum role { ROLE_ROUTER, ROLE_PREFILL, ROLE_DECODE };

struct thread; /* a coroutine */
struct kvt_transport;

/* A process; its slot keeps name and address over restarts. */
struct node {
    enum role role;
    uint32_t slot;
    uint64_t instance; /* of all starts of all nodes, from 1 */
    bool alive;
    int64_t stalled_until; /* stopped as by SIGSTOP; 0: runs */
    char id[16], endpoint[32];
    struct bt_loop *loop;
    void *program; /* struct pf_worker, dc_worker or rt_service */
    struct bt_page_pool *pages;
    struct kvt_landing_table *landings;
    struct kvt_transport *transport;
    uint32_t kv_pages;
};

struct faults {
    bool on;
    uint32_t lose, duplicate, reorder, slow; /* of 1000 messages */
    uint32_t stall;                          /* of 1000 looks at the clock by a thread */
    uint32_t corrupt;                        /* of 1000 writes that land */
    uint32_t lie;                            /* of 1000 records of progress that land */
    bool remote;                             /* each node on a host of its own: no proof of death */
    bool rails;                              /* one to three of each card */
    bool honest;                             /* no message comes but from the programs */
};

struct world {
    uint64_t seed, random;
    int64_t now_ns;
    uint64_t hash; /* of the log so far */
    uint64_t events;
    bool trace;
    struct node nodes[MAX_NODE];
    uint32_t node_count;
    struct node *current; /* whose code runs; NULL: the simulator's */
    struct faults faults;
    uint64_t instances;
    const char *failure; /* NULL: none so far */
    char failure_text[256];
};
extern struct world world;

void world_begin(uint64_t seed, bool trace);
void world_end(void);
/* One event; false: there is none. */
bool world_step(void);

uint32_t draw(uint32_t bound); /* 0 .. bound - 1 */
bool chance(uint32_t per_mille);
int64_t draw_ns(int64_t low_ns, int64_t high_ns);

/* The log: hashed always, printed when traced. */
void note(const char *what, uint64_t a, uint64_t b, uint64_t c);
/* The invariant that broke; the first one counts. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- events */

typedef void event_fn(void *object, uint64_t argument);
/* With a node: runs as its code; not at all once that instance is dead, later while it is stalled.
 */
void event_at(int64_t when_ns, struct node *node, event_fn *fn, void *object, uint64_t argument);

/* ---- nodes */

struct node *node_by_endpoint(const char *endpoint);
/* Runs `fn` as code of the node, then the end of its loop's round. */
void node_run(struct node *node, event_fn *fn, void *object, uint64_t argument);
void node_stall(struct node *node, int64_t duration_ns);
bool node_stalled(const struct node *node);
/* Its memory is gone, its threads are gone. */
void node_free(struct node *node);

/* ---- memory of no node */

void *world_malloc(size_t size);
void *world_calloc(size_t count, size_t size);

/* ---- threads */

/* Sleeps the running thread until `when_ns` or a wake. */
void thread_wait(int64_t when_ns);
void thread_wake(struct kvt_transport *transport, int64_t when_ns);
/* Wakes threads whose transport has something to do. */
void threads_look(void);

#endif
