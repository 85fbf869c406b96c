#include "common/parallel/net.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <netinet/in.h>
#include <ucp/api/ucp.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/parallel/ranks.h"

#define MESSAGE_ID    1
#define DEVICES_BYTES 1024
#define INFINIBAND    "/sys/class/infiniband"

struct peer {
    struct bt_net *net;
    ucp_ep_h ep; /* NULL: not connected, or closed */
    int64_t lost_ns;
};

struct bt_net {
    uint32_t rank;
    uint64_t token;
    bt_net_fn *fn;
    void *context;
    ucp_context_h ucp;
    ucp_worker_h worker;
    int worker_fd; /* -1: it can't wake anybody */
    uint32_t unsent;
    bool closing;
    struct peer peers[BT_GROUP_RANKS_MAX];
};

/* ---- UCX in this process ---- */

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

/* UCX's library constructor takes over the signals of crashes; others need them. */
static void set_up_process(void)
{
    static const int signals[] = {SIGILL, SIGSEGV, SIGBUS, SIGFPE};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        ucs_debug_disable_signal(signals[i]);
    ucs_log_push_handler(on_ucx_log);
}

/* ---- devices ---- */

static bool same_address(const struct sockaddr *a, const struct sockaddr *b)
{
    if (!a || a->sa_family != b->sa_family)
        return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                  &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

/* The interface that has an address of this machine. */
static enum bt_status find_interface(const char *host, struct bt_error *error, char *ret_name,
                                     size_t size)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *addresses;
    struct ifaddrs *interfaces;
    bool found = false;

    int code = getaddrinfo(host, NULL, &hints, &addresses);
    if (code != 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "group host '%s': %s", host,
                            gai_strerror(code));
    if (getifaddrs(&interfaces) != 0) {
        freeaddrinfo(addresses);
        return bt_error_set(error, BT_ERR_INTERNAL, "getifaddrs: %m");
    }
    for (struct addrinfo *a = addresses; a && !found; a = a->ai_next) {
        for (struct ifaddrs *i = interfaces; i && !found; i = i->ifa_next) {
            found = same_address(i->ifa_addr, a->ai_addr);
            if (found)
                snprintf(ret_name, size, "%s", i->ifa_name);
        }
    }
    freeifaddrs(interfaces);
    freeaddrinfo(addresses);
    if (!found)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "group host '%s' is no address of this machine", host);
    return BT_OK;
}

/* Appends all InfiniBand and RoCE devices; whether there are any. */
static bool add_rdma_devices(char *devices, size_t size)
{
    DIR *directory = opendir(INFINIBAND);
    bool any = false;
    if (!directory)
        return false;
    for (struct dirent *entry = readdir(directory); entry; entry = readdir(directory)) {
        size_t used = strlen(devices);
        if (entry->d_name[0] == '.' || used + strlen(entry->d_name) + 4 > size)
            continue;
        snprintf(devices + used, size - used, ",%s:1", entry->d_name);
        any = true;
    }
    closedir(directory);
    return any;
}

/* A peer that dies while nothing is under way is noticed by UCX's own keepalive only. */
static ucs_status_t configure(ucp_config_t *config, const char *devices, bool rdma)
{
    ucs_status_t status = ucp_config_modify(config, "TLS", rdma ? "tcp,ib" : "tcp");
    if (status == UCS_OK && !getenv("UCX_NET_DEVICES"))
        status = ucp_config_modify(config, "NET_DEVICES", devices);
    if (status == UCS_OK && !getenv("UCX_KEEPALIVE_INTERVAL"))
        status = ucp_config_modify(config, "KEEPALIVE_INTERVAL", "1s");
    return status;
}

static enum bt_status open_context(struct bt_net *net, const char *host, struct bt_error *error)
{
    const ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                                 .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
    char devices[DEVICES_BYTES];
    ucp_config_t *config;
    enum bt_status found =
        find_interface(host ? host : "127.0.0.1", error, devices, sizeof(devices));
    if (found != BT_OK)
        return found;
    bool rdma = host && add_rdma_devices(devices, sizeof(devices));
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status == UCS_OK) {
        status = configure(config, devices, rdma);
        if (status == UCS_OK)
            status = ucp_init(&params, config, &net->ucp);
        ucp_config_release(config);
    }
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "ucx offers nothing on %s: %s", devices,
                            ucs_status_string(status));
    return BT_OK;
}

/* ---- receiving ---- */

static ucs_status_t on_message(void *arg, const void *header, size_t header_size, void *data,
                               size_t size, const ucp_am_recv_param_t *param)
{
    struct bt_net *net = arg;
    struct bt_net_head head;

    if (header_size != sizeof(head) || net->closing ||
        (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0)
        return UCS_OK;
    memcpy(&head, header, sizeof(head));
    if ((head.token ^ net->token) == 0)
        net->fn(net->context, &head, data, size);
    return UCS_OK;
}

/* ---- creation ---- */

static enum bt_status open_worker(struct bt_net *net, struct bt_error *error)
{
    const ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    const ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                      UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = MESSAGE_ID,
        .flags = UCP_AM_FLAG_WHOLE_MSG,
        .cb = on_message,
        .arg = net,
    };
    ucs_status_t status = ucp_worker_create(net->ucp, &params, &net->worker);
    if (status == UCS_OK)
        status = ucp_worker_set_am_recv_handler(net->worker, &handler);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_INTERNAL, "ucp_worker_create: %s",
                            ucs_status_string(status));
    if (ucp_worker_get_efd(net->worker, &net->worker_fd) != UCS_OK)
        net->worker_fd = -1;
    return BT_OK;
}

enum bt_status bt_net_open(const struct bt_net_options *options, struct bt_error *error,
                           struct bt_net **ret_net)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct bt_net *net = calloc(1, sizeof(*net));
    if (!net)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a network");
    pthread_once(&once, set_up_process);
    net->rank = options->rank;
    net->token = options->token;
    net->fn = options->fn;
    net->context = options->context;
    net->worker_fd = -1;
    enum bt_status status = open_context(net, options->host, error);
    if (status == BT_OK)
        status = open_worker(net, error);
    if (status != BT_OK) {
        bt_net_close(net, 0);
        return status;
    }
    *ret_net = net;
    return BT_OK;
}

enum bt_status bt_net_address(struct bt_net *net, struct bt_error *error, void *ret_address,
                              size_t *ret_bytes)
{
    ucp_address_t *address;
    size_t bytes;
    ucs_status_t status = ucp_worker_get_address(net->worker, &address, &bytes);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_INTERNAL, "ucp_worker_get_address: %s",
                            ucs_status_string(status));
    bool fits = bytes <= BT_NET_ADDRESS_MAX;
    if (fits) {
        memcpy(ret_address, address, bytes);
        *ret_bytes = bytes;
    }
    ucp_worker_release_address(net->worker, address);
    return fits ? BT_OK
                : bt_error_set(error, BT_ERR_UNSUPPORTED,
                               "the address of this machine has %zu bytes; UCX_NET_DEVICES makes "
                               "it shorter",
                               bytes);
}

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    struct peer *peer = arg;
    (void)ep;
    if (peer->lost_ns == 0)
        bt_log_debug(0, "group: rank %td is cut off: %s", peer - peer->net->peers,
                     ucs_status_string(status));
    if (peer->lost_ns == 0)
        peer->lost_ns = bt_clock_now_ns();
}

enum bt_status bt_net_connect(struct bt_net *net, uint32_t rank, const void *address,
                              struct bt_error *error)
{
    struct peer *peer = &net->peers[rank];
    const ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = peer},
    };
    peer->net = net;
    ucs_status_t status = ucp_ep_create(net->worker, &params, &peer->ep);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "ucx does not reach rank %u: %s", rank,
                            ucs_status_string(status));
    return BT_OK;
}

/* ---- sending ---- */

struct sending {
    struct bt_net *net;
    struct bt_net_head head; /* lives until it is sent */
};

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    struct sending *sending = user_data;
    (void)status; /* a failure is told by the error handler */
    sending->net->unsent--;
    free(sending);
    ucp_request_free(request);
}

void bt_net_send(struct bt_net *net, uint32_t rank, const struct bt_net_head *head,
                 const void *data, size_t bytes)
{
    struct peer *peer = &net->peers[rank];
    struct sending *sending = peer->lost_ns == 0 ? malloc(sizeof(*sending)) : NULL;
    const ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_AM_SEND_FLAG_EAGER,
        .cb.send = on_sent,
        .user_data = sending,
    };
    if (!sending) {
        if (peer->lost_ns == 0)
            peer->lost_ns = bt_clock_now_ns();
        return;
    }
    sending->net = net;
    sending->head = *head;
    sending->head.token = net->token;
    net->unsent++;
    ucs_status_ptr_t request = ucp_am_send_nbx(peer->ep, MESSAGE_ID, &sending->head,
                                               sizeof(sending->head), data, bytes, &param);
    if (UCS_PTR_IS_PTR(request))
        return;
    net->unsent--;
    free(sending);
    if (UCS_PTR_IS_ERR(request))
        on_error(peer, peer->ep, UCS_PTR_STATUS(request));
}

uint32_t bt_net_unsent(const struct bt_net *net)
{
    return net->unsent;
}

int64_t bt_net_lost_ns(const struct bt_net *net, uint32_t rank)
{
    return net->peers[rank].lost_ns;
}

/* ---- progress ---- */

bool bt_net_progress(struct bt_net *net)
{
    return ucp_worker_progress(net->worker) != 0;
}

void bt_net_wait(struct bt_net *net, int64_t timeout_ns)
{
    struct pollfd fd = {.fd = net->worker_fd, .events = POLLIN};
    const struct timespec timeout = {.tv_sec = timeout_ns / BT_NS_PER_S,
                                     .tv_nsec = timeout_ns % BT_NS_PER_S};
    if (net->worker_fd >= 0 && ucp_worker_arm(net->worker) == UCS_ERR_BUSY)
        return;
    ppoll(&fd, net->worker_fd >= 0, &timeout, NULL);
}

/* ---- the end ---- */

/* Until the request is over or the deadline is. */
static void await(struct bt_net *net, ucs_status_ptr_t request, int64_t deadline_ns)
{
    if (!UCS_PTR_IS_PTR(request))
        return;
    while (ucp_request_check_status(request) == UCS_INPROGRESS && bt_clock_now_ns() < deadline_ns)
        if (!bt_net_progress(net))
            bt_net_wait(net, BT_NS_PER_MS);
    ucp_request_free(request);
}

static void close_peer(struct bt_net *net, struct peer *peer, int64_t deadline_ns)
{
    const ucp_request_param_t forced = {.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
                                        .flags = UCP_EP_CLOSE_FLAG_FORCE};
    const ucp_request_param_t none = {0};
    if (!peer->ep)
        return;
    if (peer->lost_ns == 0)
        await(net, ucp_ep_flush_nbx(peer->ep, &none), deadline_ns);
    await(net, ucp_ep_close_nbx(peer->ep, &forced), deadline_ns + BT_NS_PER_S);
    peer->ep = NULL;
}

void bt_net_close(struct bt_net *net, int64_t grace_ns)
{
    if (!net)
        return;
    int64_t deadline_ns = bt_clock_now_ns() + grace_ns;
    net->closing = true;
    for (uint32_t r = 0; r < BT_GROUP_RANKS_MAX; r++)
        close_peer(net, &net->peers[r], deadline_ns);
    while (net->worker && net->unsent > 0 && bt_clock_now_ns() < deadline_ns + BT_NS_PER_S)
        if (!bt_net_progress(net))
            bt_net_wait(net, BT_NS_PER_MS);
    if (net->worker)
        ucp_worker_destroy(net->worker);
    if (net->ucp)
        ucp_cleanup(net->ucp);
    free(net);
}
