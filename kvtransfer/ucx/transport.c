#include <dirent.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "kvtransfer/ucx/internal.h"
#include "kvtransfer/ucx/ucx.h"

static const char *const mode_names[] = {"auto", "shm", "tcp", "rdma"};
/* tcp beside shared memory carries UCX's connection messages; check_transport sees who carries
 * data. */
static const char *const mode_tls[] = {NULL, "posix,sysv,tcp", "tcp", "ib"};

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

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        ucs_debug_disable_signal(signals[i]);
    ucs_log_push_handler(on_ucx_log);
}

static enum bt_status resolve(const char *host, struct bt_error *error,
                              struct sockaddr_storage *ret_address)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    int code = getaddrinfo(host == NULL ? "127.0.0.1" : host, NULL, &hints, &found);
    bool wildcard;

    if (code != 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "can't resolve the host '%s': %s", host,
                            gai_strerror(code));
    memset(ret_address, 0, sizeof(*ret_address));
    memcpy(ret_address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    if (ret_address->ss_family == AF_INET)
        wildcard = ((struct sockaddr_in *)ret_address)->sin_addr.s_addr == htonl(INADDR_ANY);
    else
        wildcard = IN6_IS_ADDR_UNSPECIFIED(&((struct sockaddr_in6 *)ret_address)->sin6_addr);
    if (wildcard)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "'%s' is no address that peers can reach: name one of this host", host);
    return BT_OK;
}

static bool has_rdma_device(void)
{
    DIR *devices = opendir("/sys/class/infiniband");
    const struct dirent *entry;
    bool found = false;

    while (devices != NULL && (entry = readdir(devices)) != NULL)
        found = found || entry->d_name[0] != '.';
    if (devices != NULL)
        closedir(devices);
    return found;
}

static enum bt_status create_context(struct kvt_ucx *ucx, struct bt_error *error)
{
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES,
        .features = UCP_FEATURE_RMA | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
    };
    ucp_config_t *config;
    ucs_status_t status;

    if (ucx->mode == KVT_UCX_RDMA && !has_rdma_device())
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "no rdma device on this host: /sys/class/infiniband is empty");
    status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_INTERNAL, "ucp_config_read: %s",
                            ucs_status_string(status));
    if (mode_tls[ucx->mode] != NULL)
        status = ucp_config_modify(config, "TLS", mode_tls[ucx->mode]);
    if (status == UCS_OK)
        status = ucp_init(&params, config, &ucx->context);
    ucp_config_release(config);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "ucx offers no '%s' transport here: %s",
                            mode_names[ucx->mode], ucs_status_string(status));
    return BT_OK;
}

static ucs_status_t set_handler(struct kvt_ucx *ucx, unsigned id, ucp_am_recv_callback_t callback)
{
    ucp_am_handler_param_t params = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = id,
        .cb = callback,
        .arg = ucx,
    };
    return ucp_worker_set_am_recv_handler(ucx->worker, &params);
}

static enum bt_status create_worker(struct kvt_ucx *ucx, struct bt_error *error)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucs_status_t status = ucp_worker_create(ucx->context, &params, &ucx->worker);

    if (status == UCS_OK)
        status = set_handler(ucx, KVT_UCX_AM_HELLO, kvt_ucx_on_hello);
    if (status == UCS_OK)
        status = set_handler(ucx, KVT_UCX_AM_ACK, kvt_ucx_on_ack);
    if (status == UCS_OK)
        status = set_handler(ucx, KVT_UCX_AM_WRITE, kvt_ucx_on_write);
    if (status == UCS_OK)
        status = set_handler(ucx, KVT_UCX_AM_FLUSH, kvt_ucx_on_flush);
    if (status == UCS_OK)
        status = set_handler(ucx, KVT_UCX_AM_FLUSHED, kvt_ucx_on_flushed);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_worker_create: %s",
                            ucs_status_string(status));
    if (ucp_worker_get_efd(ucx->worker, &ucx->worker_fd) != UCS_OK)
        ucx->worker_fd = -1;
    return BT_OK;
}

/* Closing may need an answer of the peer, so the wait for it is bounded. */
static void close_endpoints(struct kvt_ucx *ucx)
{
    int64_t deadline_ns = bt_clock_now_ns() + KVT_UCX_DESTROY_MS * BT_NS_PER_MS;

    while (ucx->peers != NULL)
        kvt_ucx_peer_close(ucx->peers);
    kvt_ucx_sources_close(ucx);
    while (ucx->closing > 0 && bt_clock_now_ns() < deadline_ns) {
        if (!ucx->base.ops->progress(&ucx->base))
            ucx->base.ops->wait(&ucx->base, 1);
    }
    kvt_ucx_sources_step(ucx);
}

static void free_lists(struct kvt_ucx *ucx)
{
    while (ucx->abandoned != NULL) {
        struct kvt_ucx_endpoint *endpoint = ucx->abandoned;
        ucx->abandoned = endpoint->next;
        free(endpoint);
    }
    while (ucx->sources != NULL) {
        struct kvt_ucx_source *source = ucx->sources;
        ucx->sources = source->next;
        free(source);
    }
    while (ucx->cuts != NULL) {
        struct kvt_ucx_cut *cut = ucx->cuts;
        ucx->cuts = cut->next;
        cut->done(cut->context, BT_OK); /* the worker is gone: nothing arrives any more */
        free(cut);
    }
}

static void destroy(struct kvt_transport *transport)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;

    if (ucx->listen_local.listener != NULL)
        ucp_listener_destroy(ucx->listen_local.listener);
    if (ucx->listen_all.listener != NULL)
        ucp_listener_destroy(ucx->listen_all.listener);
    if (ucx->worker != NULL) {
        close_endpoints(ucx);
        ucp_worker_destroy(ucx->worker);
    }
    while (ucx->memories != NULL)
        kvt_ucx_memory_free(transport, ucx->memories);
    if (ucx->context != NULL)
        ucp_cleanup(ucx->context);
    free_lists(ucx);
    if (ucx->wake_fd >= 0)
        close(ucx->wake_fd);
    free(ucx->ops);
    free(ucx->chunks);
    free(ucx);
}

static bool progress(struct kvt_transport *transport)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    bool any = ucp_worker_progress(ucx->worker) != 0;

    kvt_ucx_peers_step(ucx);
    return kvt_ucx_sources_step(ucx) || any;
}

static void wait_for_event(struct kvt_transport *transport, int timeout_ms)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct pollfd fds[] = {{.fd = ucx->wake_fd, .events = POLLIN},
                           {.fd = ucx->worker_fd, .events = POLLIN}};
    bool armed = false;
    uint64_t count;

    if (ucx->worker_fd >= 0) {
        ucs_status_t status = ucp_worker_arm(ucx->worker);
        if (status == UCS_ERR_BUSY)
            return; /* something happened since the last progress */
        armed = status == UCS_OK;
    }
    if (!armed && (timeout_ms < 0 || timeout_ms > 1))
        timeout_ms = 1; /* a transport without wake-up has to be looked at */
    if (poll(fds, 2, timeout_ms) > 0 && (fds[0].revents & POLLIN) != 0 &&
        read(ucx->wake_fd, &count, sizeof(count)) < 0)
        BT_ASSERT(errno == EAGAIN);
}

static void wake(struct kvt_transport *transport)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    uint64_t one = 1;

    if (write(ucx->wake_fd, &one, sizeof(one)) < 0)
        BT_ASSERT(errno == EAGAIN); /* the counter is full: it is awake */
}

static int event_fd(const struct kvt_transport *transport)
{
    return ((const struct kvt_ucx *)transport)->worker_fd;
}

static bool arm(struct kvt_transport *transport, int *ret_timeout_ms)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    ucs_status_t status = ucx->worker_fd < 0 ? UCS_ERR_UNSUPPORTED : ucp_worker_arm(ucx->worker);

    if (status != UCS_OK && *ret_timeout_ms != 0)
        *ret_timeout_ms = 1;
    return status != UCS_ERR_BUSY;
}

static const struct kvt_transport_ops ucx_ops = {
    .destroy = destroy,
    .memory_alloc = kvt_ucx_memory_alloc,
    .memory_register = kvt_ucx_memory_register,
    .memory_free = kvt_ucx_memory_free,
    .memory_base = kvt_ucx_memory_base,
    .memory_pack_key = kvt_ucx_memory_pack_key,
    .address = kvt_ucx_address,
    .disconnect = kvt_ucx_disconnect,
    .connect = kvt_ucx_connect,
    .peer_state = kvt_ucx_peer_state,
    .peer_rails = kvt_ucx_peer_rails,
    .peer_error = kvt_ucx_peer_error,
    .peer_transport = kvt_ucx_peer_transport,
    .write = kvt_ucx_write,
    .flush = kvt_ucx_flush,
    .peer_close = kvt_ucx_peer_close,
    .progress = progress,
    .wait = wait_for_event,
    .wake = wake,
    .event_fd = event_fd,
    .arm = arm,
};

static enum bt_status find_mode(const char *name, struct bt_error *error,
                                enum kvt_ucx_mode *ret_mode)
{
    for (size_t i = 0; i < sizeof(mode_names) / sizeof(mode_names[0]); i++) {
        if (strcmp(name, mode_names[i]) == 0) {
            *ret_mode = (enum kvt_ucx_mode)i;
            return BT_OK;
        }
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "transport is '%s', not auto, shm, tcp or rdma", name);
}

static enum bt_status create_parts(struct kvt_ucx *ucx, struct bt_error *error)
{
    enum bt_status status;

    ucx->ops = calloc(KVT_UCX_OPS, sizeof(*ucx->ops));
    ucx->chunks = calloc(KVT_UCX_CHUNKS, sizeof(*ucx->chunks));
    ucx->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ucx->ops == NULL || ucx->chunks == NULL || ucx->wake_fd < 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory or file descriptor for ucx");
    for (size_t i = 0; i < KVT_UCX_OPS; i++) {
        ucx->ops[i].next = ucx->free_ops;
        ucx->free_ops = &ucx->ops[i];
    }
    for (size_t i = 0; i < KVT_UCX_CHUNKS; i++) {
        ucx->chunks[i].next = ucx->free_chunks;
        ucx->free_chunks = &ucx->chunks[i];
    }
    status = bt_process_self(error, &ucx->self);
    if (status == BT_OK)
        status = create_context(ucx, error);
    if (status == BT_OK)
        status = create_worker(ucx, error);
    return status;
}

enum bt_status kvt_ucx_transport_create(const struct kvt_transport_options *options,
                                        struct bt_error *error,
                                        struct kvt_transport **ret_transport)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct kvt_ucx *ucx = calloc(1, sizeof(*ucx));
    enum bt_status status;

    if (ucx == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for ucx");
    pthread_once(&once, set_up_process);
    ucx->base.ops = &ucx_ops;
    ucx->wake_fd = ucx->worker_fd = -1;
    ucx->next_cookie = 1;
    ucx->listen_local = (struct kvt_ucx_listener){.ucx = ucx, .local = true};
    ucx->listen_all = (struct kvt_ucx_listener){.ucx = ucx};
    status = find_mode(options->name, error, &ucx->mode);
    if (status == BT_OK)
        status = resolve(options->bind_host, error, &ucx->bind);
    if (status == BT_OK)
        status = create_parts(ucx, error);
    if (status != BT_OK) {
        destroy(&ucx->base);
        return status;
    }
    *ret_transport = &ucx->base;
    return BT_OK;
}
