/* The programs as nodes of the world: made, started, killed. The first node is the router. */
#ifndef BATON_TESTS_SIM_CLUSTER_H
#define BATON_TESTS_SIM_CLUSTER_H

#include "tests/sim/world.h"

/* How workers are started. */
struct cluster {
    uint32_t lease_ms, layerwise_threshold;
    bool checksum;
};
extern struct cluster cluster;

void node_add(enum role role, uint32_t kv_pages);
void node_start(struct node *node); /* unless it is alive */
void node_kill(struct node *node);

#endif
