/*
 * Passes that a device captures and replays. A pass is what it is by its padded counts and where
 * its KV is; the rows themselves are staged, tokens of the step before included, so that a step is
 * one launch.
 */
#include "common/base/log.h"
#include "common/model/forward_state.h"

/* Beyond the smallest ones an eighth of the rows at most is padding. */
uint32_t bt_forward_padded(uint32_t rows, uint32_t most)
{
    uint32_t power = 1, step;
    while (power < rows)
        power *= 2;
    step = power <= 8 ? power : power <= 128 ? 8 : power / 16;
    uint32_t padded = (rows + step - 1) / step * step;
    return padded < most ? padded : most;
}

/* All ranks capture and replay the same passes. */
static bool ranks_replay(const struct bt_forward *f, const struct bt_forward_batch *batch)
{
    if (f->tp)
        return false;
    return !f->ep || (f->groups_queue && batch->is_steady && batch->most_rows > 0 &&
                      bt_group_queues(f->ep, f->dispatch));
}

/* Where a sequence has rows without logits there are too many kinds of batches. */
bool bt_forward_replays(const struct bt_forward *f, const struct bt_forward_batch *batch)
{
    return f->graphs && batch->form == BT_FORWARD_ABSORBED && batch->rows == batch->logit_count &&
           !batch->probe && !batch->layer_done && !batch->every_row && !f->profile &&
           ranks_replay(f, batch);
}

static struct bt_forward_graph_key key_of(const struct bt_forward_pass *pass)
{
    return (struct bt_forward_graph_key){pass->padded_rows, pass->padded_wanted,
                                         pass->batch->draws != NULL, pass->batch->kv_pool,
                                         pass->batch->pool_pages};
}

static bool same(const struct bt_forward_graph_key *a, const struct bt_forward_graph_key *b)
{
    return a->rows == b->rows && a->wanted == b->wanted && a->draws == b->draws &&
           a->kv_pool == b->kv_pool && a->pool_pages == b->pool_pages;
}

/* NULL: it is new; there is a place for it from now on, if there is one left. */
static struct bt_forward_graph *find(struct bt_forward *f, const struct bt_forward_pass *pass)
{
    const struct bt_forward_graph_key key = key_of(pass);
    for (uint32_t i = 0; i < f->graph_count; i++)
        if (same(&f->graphs[i].key, &key))
            return &f->graphs[i];
    if (f->graph_count < BT_FORWARD_GRAPHS)
        f->graphs[f->graph_count++] = (struct bt_forward_graph){.key = key};
    return NULL;
}

static struct bt_group_traffic traffic_of(const struct bt_forward *f)
{
    struct bt_group_traffic traffic = {0};
    if (f->ep)
        bt_group_traffic(f->ep, &traffic);
    return traffic;
}

static enum bt_status capture(struct bt_forward *f, const struct bt_forward_pass *pass,
                              struct bt_forward_graph *graph)
{
    const struct bt_device_ops *ops = f->device->ops;
    enum bt_status status = ops->capture_begin(f->stream, &f->error), ended;
    if (status != BT_OK)
        return status;
    const struct bt_group_traffic before = traffic_of(f);
    status = bt_forward_layers(f, pass);
    ended = ops->capture_end(f->stream, &f->error, &graph->graph);
    if (status != BT_OK && ended == BT_OK) { /* a part of a pass */
        ops->graph_destroy(graph->graph);
        graph->graph = NULL;
    }
    status = status == BT_OK ? ended : status;
    graph->traffic = traffic_of(f);
    graph->traffic.dispatch -= before.dispatch;
    graph->traffic.combine -= before.combine;
    if (status == BT_OK)
        atomic_fetch_add_explicit(&f->captured, 1, memory_order_relaxed);
    return status;
}

enum bt_status bt_forward_replay(struct bt_forward *f, const struct bt_forward_pass *pass)
{
    struct bt_forward_graph *graph = find(f, pass);
    if (!graph)
        return bt_forward_layers(f, pass);
    enum bt_status status = BT_OK;
    if (!graph->graph)
        status = capture(f, pass, graph);
    else if (f->ep)
        status = bt_group_repeat(f->ep, graph->traffic.dispatch, graph->traffic.combine);
    if (status != BT_OK)
        return status;
    f->device->ops->graph_launch(graph->graph, f->stream);
    atomic_fetch_add_explicit(&f->launches, 1, memory_order_relaxed);
    return BT_OK;
}

void bt_forward_forget_graphs(struct bt_forward *f)
{
    for (uint32_t i = 0; i < f->graph_count; i++)
        if (f->graphs[i].graph)
            f->device->ops->graph_destroy(f->graphs[i].graph);
    f->graph_count = 0;
    atomic_store_explicit(&f->captured, 0, memory_order_relaxed);
}
