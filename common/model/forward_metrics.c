#include "common/model/forward_metrics.h"

static void raise_to(struct bt_counter *counter, uint64_t value)
{
    bt_counter_add(counter, value - bt_counter_value(counter));
}

void bt_forward_metrics(const struct bt_device *device, const struct bt_forward *forward,
                        struct bt_metrics *metrics, const char *labels)
{
    struct bt_forward_counts counts;
    if (device->memory == BT_MEMORY_HOST)
        return;
    raise_to(bt_metrics_counter(metrics, "baton_device_waits_total", labels,
                                "How often threads waited for the device: once a decode step, "
                                "once a layer of a prefill pass."),
             device->ops->waits(device));
    if (!forward)
        return;
    bt_forward_count(forward, &counts);
    raise_to(bt_metrics_counter(metrics, "baton_device_graph_launches_total", labels,
                                "Decode steps that were replayed from a graph."),
             counts.graph_launches);
    bt_gauge_set(bt_metrics_gauge(metrics, "baton_device_graphs", labels,
                                  "Graphs of decode steps that are captured."),
                 counts.graphs);
}
