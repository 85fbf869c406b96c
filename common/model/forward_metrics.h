/* What forward passes on a device cost the host. */
#ifndef BATON_COMMON_MODEL_FORWARD_METRICS_H
#define BATON_COMMON_MODEL_FORWARD_METRICS_H

#include "common/base/metrics.h"
#include "common/kernels/device.h"
#include "common/model/forward.h"

/*
 * Brings baton_device_waits_total up to date and, with a `forward`,
 * baton_device_graph_launches_total and baton_device_graphs; nothing on a CPU. Before rendering, by
 * any one thread. `labels` may be NULL.
 */
void bt_forward_metrics(const struct bt_device *device, const struct bt_forward *forward,
                        struct bt_metrics *metrics, const char *labels);

#endif
