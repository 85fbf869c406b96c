#include "kvtransfer/transport.h"

#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "kvtransfer/choice/choice.h"
#include "kvtransfer/cuda_ipc/cuda_ipc.h"
#include "kvtransfer/device_pool.h"
#include "kvtransfer/tcp/tcp.h"

#ifdef KVT_HAVE_UCX
#include "kvtransfer/rails/rdma.h"
#include "kvtransfer/ucx/ucx.h"
#else
static enum bt_status without_ucx(const struct kvt_transport_options *options,
                                  struct bt_error *error, struct kvt_transport **ret_transport)
{
    (void)ret_transport;
    return bt_error_set(error, BT_ERR_UNAVAILABLE, "transport '%s': built without ucx",
                        options->name);
}
#define kvt_shm_transport_create without_ucx
#define kvt_rails_rdma_create    without_ucx
#endif

/* The best first. */
static const struct {
    const char *name;
    enum bt_status (*create)(const struct kvt_transport_options *options, struct bt_error *error,
                             struct kvt_transport **ret_transport);
} transports[] = {
    {"shm", kvt_shm_transport_create},
    {"cuda_ipc", kvt_cuda_ipc_transport_create},
    {"rdma", kvt_rails_rdma_create},
    {"tcp", kvt_tcp_transport_create},
};
#define TRANSPORTS (sizeof(transports) / sizeof(transports[0]))

_Static_assert(TRANSPORTS <= KVT_CHOICES_MAX, "auto takes them all");

static bool is_wanted(const struct kvt_transport_options *options, const char *name)
{
    return strcmp(options->name, "auto") == 0 || strcmp(options->name, name) == 0;
}

/* Everything that was tried, and what else there is. */
static enum bt_status none_reaches_gpus(const char *reasons, struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_UNAVAILABLE,
                        "no kv transport reaches memory of GPUs (%s): --kv-staging host goes "
                        "through memory of the host instead",
                        reasons);
}

static void append_reason(char *reasons, size_t size, const char *name, const char *why)
{
    size_t length = strlen(reasons);

    snprintf(reasons + length, size - length, "%s%s: %.120s", length > 0 ? "; " : "", name, why);
}

/* A pinned one is a choice of one, so that it understands a peer that offers more. */
enum bt_status kvt_transport_create(const struct kvt_transport_options *options,
                                    struct bt_error *error, struct kvt_transport **ret_transport)
{
    struct kvt_choice choices[TRANSPORTS];
    struct bt_error why = {0};
    char reasons[400] = "";
    uint32_t count = 0;

    bt_error_set(&why, BT_ERR_INVALID_ARGUMENT,
                 "transport is '%s', not auto, shm, cuda_ipc, rdma or tcp", options->name);
    for (size_t i = 0; i < TRANSPORTS; i++) {
        if (!is_wanted(options, transports[i].name))
            continue;
        enum bt_status status = transports[i].create(options, &why, &choices[count].transport);
        if (status == BT_ERR_UNAVAILABLE) {
            bt_log_debug(0, "kv transport %s: %s", transports[i].name, why.text);
            append_reason(reasons, sizeof(reasons), transports[i].name, why.text);
            continue;
        }
        if (status != BT_OK) {
            while (count-- > 0)
                choices[count].transport->ops->destroy(choices[count].transport);
            return bt_error_set(error, status, "%s", why.text);
        }
        choices[count++].name = transports[i].name;
    }
    if (count == 0 && kvt_pool_memory_kind(options->pool_device) != BT_MEMORY_HOST &&
        reasons[0] != '\0')
        return none_reaches_gpus(reasons, error);
    if (count == 0)
        return bt_error_set(error, why.status, "%s", why.text);
    return kvt_choice_create(choices, count, options->forbid_fallback, error, ret_transport);
}
