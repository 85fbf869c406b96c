#include "kvtransfer/ucx/context.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include "common/base/log.h"
#include "kvtransfer/ucx/ucx.h"

enum bt_status kvt_ucx_status(ucs_status_t status)
{
    switch (status) {
    case UCS_OK:
        return BT_OK;
    case UCS_INPROGRESS:
        return BT_IN_PROGRESS;
    case UCS_ERR_NO_MEMORY:
        return BT_ERR_NO_MEMORY;
    case UCS_ERR_NO_DEVICE:
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_REJECTED:
    case UCS_ERR_BUSY:
        return BT_ERR_UNAVAILABLE;
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_TIMED_OUT:
    case UCS_ERR_CANCELED:
        return BT_ERR_PEER_LOST;
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
        return BT_ERR_INVALID_ARGUMENT;
    case UCS_ERR_UNSUPPORTED:
        return BT_ERR_UNSUPPORTED;
    default:
        return BT_ERR_INTERNAL;
    }
}

/* What UCX calls an error is to us a lost peer, which the code that sees its status reports. */
static ucs_log_func_rc_t on_ucx_log(const char *file, unsigned line, const char *function,
                                    ucs_log_level_t level,
                                    const ucs_log_component_config_t *component,
                                    const char *message, va_list arguments)
{
    char text[512];

    (void)function, (void)component;
    if (level > UCS_LOG_LEVEL_WARN)
        return UCS_LOG_FUNC_RC_CONTINUE; /* asked for by UCX_LOG_LEVEL: goes where UCX says */
    vsnprintf(text, sizeof(text), message, arguments);
    bt_log(level == UCS_LOG_LEVEL_FATAL ? BT_LOG_ERROR : BT_LOG_DEBUG, 0, "ucx %s:%u %s", file,
           line, text);
    return UCS_LOG_FUNC_RC_STOP;
}

/* UCX's library constructor takes over the signals of crashes; the sanitizers and the core need
 * them. */
static void set_up_process(void)
{
    static const int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};

    ucs_log_push_handler(on_ucx_log); /* later versions warn of signals that they did not take */
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        ucs_debug_disable_signal(signals[i]);
}

/* A peer that dies while nothing is under way is noticed by UCX's own keepalive only, every 20 s by
 * default. */
static ucs_status_t look_after_peers(ucp_config_t *config)
{
    if (getenv("UCX_KEEPALIVE_INTERVAL") != NULL)
        return UCS_OK;
    return ucp_config_modify(config, "KEEPALIVE_INTERVAL", "1s");
}

/* What the user says in UCX's own variable counts. A name of a device's table is taken for good and
 * looked up later: 1.13 knows it without the table's prefix, later ones with it, and the latest
 * (1.23) refuse the other name. */
static ucs_status_t choose_gid(ucp_config_t *config, const char *index)
{
    ucs_status_t status, other;

    if (index == NULL || getenv("UCX_IB_GID_INDEX") != NULL)
        return UCS_OK;
    status = ucp_config_modify(config, "IB_GID_INDEX", index);
    other = ucp_config_modify(config, "GID_INDEX", index);
    if (status != UCS_OK || other == UCS_ERR_INVALID_PARAM)
        return status;
    return other;
}

/* The old protocols copy small puts by the host, whatever memory they are from. */
static ucs_status_t choose_protocols(ucp_config_t *config, enum bt_memory_kind memory)
{
    return memory == BT_MEMORY_HOST ? UCS_OK : ucp_config_modify(config, "PROTO_ENABLE", "y");
}

static enum bt_status create_context(struct kvt_ucx *ucx, const struct kvt_ucx_config *wanted,
                                     struct bt_error *error)
{
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = wanted->features};
    ucp_config_t *config;
    ucs_status_t status;

    status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_INTERNAL, "ucp_config_read: %s",
                            ucs_status_string(status));
    status = ucp_config_modify(config, "TLS", wanted->tls);
    if (status == UCS_OK && wanted->devices != NULL)
        status = ucp_config_modify(config, "NET_DEVICES", wanted->devices);
    if (status == UCS_OK)
        status = look_after_peers(config);
    if (status == UCS_OK)
        status = choose_gid(config, wanted->gid_index);
    if (status == UCS_OK)
        status = choose_protocols(config, wanted->memory);
    if (status == UCS_OK)
        status = ucp_init(&params, config, &ucx->context);
    ucp_config_release(config);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "ucx offers no %s on %s here: %s",
                            wanted->tls, wanted->devices == NULL ? "any device" : wanted->devices,
                            ucs_status_string(status));
    return BT_OK;
}

bool kvt_ucx_knows_gpus(unsigned major, unsigned minor)
{
    return major > 1 || (major == 1 && minor >= 16);
}

/* Without its CUDA modules UCX takes a pointer of a GPU for one of the host. */
static enum bt_status check_memory(struct kvt_ucx *ucx, const struct kvt_ucx_config *config,
                                   struct bt_error *error)
{
    ucp_context_attr_t attributes = {.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES};
    unsigned major, minor, release;

    ucx->memory_kind = config->memory;
    if (config->memory == BT_MEMORY_HOST)
        return BT_OK;
    if (ucp_context_query(ucx->context, &attributes) != UCS_OK ||
        (attributes.memory_types & UCS_BIT(UCS_MEMORY_TYPE_CUDA)) == 0)
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "this UCX (%s) does not know memory of GPUs: it is built without CUDA, "
                            "or its CUDA modules are not installed (see `ucx_info -d`)",
                            ucp_get_version_string());
    ucp_get_version(&major, &minor, &release);
    if (!kvt_ucx_knows_gpus(major, minor))
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "this UCX is %s: writes from memory of GPUs need 1.16 or later",
                            ucp_get_version_string());
    return BT_OK;
}

enum bt_status kvt_ucx_open(struct kvt_ucx *ucx, const struct kvt_ucx_config *config,
                            struct bt_error *error)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    enum bt_status result;
    ucs_status_t status;

    pthread_once(&once, set_up_process);
    ucx->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ucx->wake_fd < 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no file descriptor for ucx: %m");
    result = bt_process_self(error, &ucx->self);
    if (result == BT_OK)
        result = create_context(ucx, config, error);
    if (result == BT_OK)
        result = check_memory(ucx, config, error);
    if (result != BT_OK)
        return result;
    status = ucp_worker_create(ucx->context, &params, &ucx->worker);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_worker_create: %s",
                            ucs_status_string(status));
    return BT_OK;
}

void kvt_ucx_close(struct kvt_ucx *ucx)
{
    if (ucx->worker != NULL)
        ucp_worker_destroy(ucx->worker);
    while (ucx->memories != NULL)
        kvt_ucx_memory_free(&ucx->base, ucx->memories);
    if (ucx->context != NULL)
        ucp_cleanup(ucx->context);
    if (ucx->wake_fd >= 0)
        close(ucx->wake_fd);
}

void kvt_ucx_wake(struct kvt_transport *transport)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    uint64_t one = 1;

    if (write(ucx->wake_fd, &one, sizeof(one)) < 0)
        BT_ASSERT(errno == EAGAIN); /* the counter is full: it is awake */
}

void kvt_ucx_drain_wake(struct kvt_ucx *ucx)
{
    uint64_t count;

    if (read(ucx->wake_fd, &count, sizeof(count)) < 0)
        BT_ASSERT(errno == EAGAIN);
}

enum bt_status kvt_ucx_check_gpus(struct bt_error *error, const char **ret_version)
{
    const struct kvt_ucx_config config = {
        .tls = "self,cuda_copy", .memory = BT_MEMORY_CUDA, .features = UCP_FEATURE_RMA};
    struct kvt_ucx ucx = {.wake_fd = -1};
    enum bt_status status = kvt_ucx_open(&ucx, &config, error);

    kvt_ucx_close(&ucx);
    if (status == BT_OK)
        *ret_version = ucp_get_version_string();
    return status;
}
