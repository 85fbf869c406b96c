#include "tests/sim/cluster.h"

#include <stdio.h>

#include "common/base/metrics.h"
#include "common/kvcache/page_pool.h"
#include "decode-node/worker.h"
#include "kvtransfer/landing.h"
#include "prefill-node/worker.h"
#include "router/service.h"
#include "tests/sim/engines.h"
#include "tests/sim/fabric.h"
#include "tests/sim/seams.h"

struct cluster cluster;

/* ---- what the programs make, for looking in */

struct bt_page_pool *__real_bt_page_pool_create(uint32_t page_count);
struct bt_page_pool *__wrap_bt_page_pool_create(uint32_t page_count);
struct bt_page_pool *__wrap_bt_page_pool_create(uint32_t page_count)
{
    return world.current->pages = __real_bt_page_pool_create(page_count);
}

struct kvt_landing_table *__real_kvt_landing_table_create(struct bt_page_pool *pool,
                                                          uint64_t first_epoch, int64_t lease_ns,
                                                          kvt_landing_failed_fn *failed,
                                                          void *context);
struct kvt_landing_table *__wrap_kvt_landing_table_create(struct bt_page_pool *pool,
                                                          uint64_t first_epoch, int64_t lease_ns,
                                                          kvt_landing_failed_fn *failed,
                                                          void *context);
struct kvt_landing_table *__wrap_kvt_landing_table_create(struct bt_page_pool *pool,
                                                          uint64_t first_epoch, int64_t lease_ns,
                                                          kvt_landing_failed_fn *failed,
                                                          void *context)
{
    return world.current->landings =
               __real_kvt_landing_table_create(pool, first_epoch, lease_ns, failed, context);
}

/* ---- starting and killing */

static enum bt_status start_prefill(struct node *node, struct bt_error *error)
{
    const struct pf_worker_options options = {.worker_id = node->id,
                                              .listen = node->endpoint,
                                              .routers = world.nodes[0].endpoint,
                                              .served_model_name = "sim",
                                              .transport = "sim",
                                              .kv_dtype = BT_BF16,
                                              .kv_pages = node->kv_pages,
                                              .chunked_prefill_size = 64,
                                              .max_num_seqs = 8,
                                              .max_queued = 12,
                                              .layerwise_threshold = cluster.layerwise_threshold,
                                              .checksum = cluster.checksum};
    return pf_worker_create(node->loop, &sim_model, &options, error,
                            (struct pf_worker **)&node->program);
}

static enum bt_status start_decode(struct node *node, struct bt_error *error)
{
    const struct dc_worker_options options = {.worker_id = node->id,
                                              .listen = node->endpoint,
                                              .routers = world.nodes[0].endpoint,
                                              .served_model_name = "sim",
                                              .transport = "sim",
                                              .kv_dtype = BT_BF16,
                                              .kv_pages = node->kv_pages,
                                              .max_num_seqs = 8,
                                              .max_reserved = 12,
                                              .expected_output_tokens = 16,
                                              .lease_ms = cluster.lease_ms,
                                              .router_grace_ns = 3 * SIM_S,
                                              .checksum = cluster.checksum};
    return dc_worker_create(node->loop, &sim_model, &options, error,
                            (struct dc_worker **)&node->program);
}

static enum bt_status start_router(struct node *node, struct bt_error *error)
{
    const struct rt_service_options options = {.core = {.queue_capacity = 64,
                                                        .max_attempts = 4,
                                                        .expected_output_tokens = 16,
                                                        .prefill_depth_ns = SIM_S,
                                                        .prefill_token_ns = SIM_MS,
                                                        .silent_after_ns = 2 * SIM_S,
                                                        .lost_after_ns = 5 * SIM_S,
                                                        .reserve_retry_ns = 50 * SIM_MS},
                                               .model_dir = "sim",
                                               .served_model_name = "sim",
                                               .worker_endpoint = node->endpoint,
                                               .request_timeout_ns = 30 * SIM_S,
                                               .heartbeat_ms = 1000,
                                               .prefix_blocks = 1024};
    return rt_service_create(node->loop, &options, bt_metrics_create(), error,
                             (struct rt_service **)&node->program);
}

static void start_event(void *object, uint64_t unused)
{
    struct node *node = object;
    struct bt_error error = {0};
    enum bt_status status;
    (void)unused;
    node->loop = loop_create(node);
    switch (node->role) {
    case ROLE_ROUTER:
        status = start_router(node, &error);
        break;
    case ROLE_PREFILL:
        status = start_prefill(node, &error);
        break;
    default:
        status = start_decode(node, &error);
        break;
    }
    if (status != BT_OK) {
        fail("%s does not start: %s", node->id, error.text);
    }
}

void node_start(struct node *node)
{
    if (node->alive) {
        return;
    }
    node->instance = ++world.instances;
    node->alive = true;
    note("start", node->slot, node->instance, 0);
    node_run(node, start_event, node, 0);
}

void node_kill(struct node *node)
{
    if (node->alive) {
        note("kill", node->slot, node->instance, 0);
        fabric_crash(node);
        node_free(node);
    }
}

void node_add(enum role role, uint32_t kv_pages)
{
    static const char *const names[] = {"router", "prefill", "decode"};
    struct node *node = &world.nodes[world.node_count];
    node->role = role;
    node->slot = world.node_count++;
    node->kv_pages = kv_pages;
    snprintf(node->id, sizeof(node->id), "%s-%u", names[role], node->slot);
    snprintf(node->endpoint, sizeof(node->endpoint), "tcp://%s-%u", names[role], node->slot);
}
