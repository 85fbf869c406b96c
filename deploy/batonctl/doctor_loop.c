/* Pushes between two processes of this machine, as workers do them. Each measurement has two
 * children, so that a transport that crashes or hangs is a finding and not the end. */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "deploy/batonctl/doctor.h"
#include "kvtransfer/rails/devices.h"
#include "kvtransfer/source.h"
#include "kvtransfer/target.h"
#include "kvtransfer/transport.h"

#define LAYERS      27
#define POOL_PAGES  16
#define LATENCIES   20
#define ROUNDS      5
#define BLOB_MAX    65536
#define MEMCPY_SIZE (UINT64_C(32) << 20)

static const struct bt_kv_layout layout = {
    .layer_count = LAYERS, .kv_lora_rank = 512, .qk_rope_head_dim = 64, .dtype = BT_BF16};

/* What the target's process tells, then what the source's does. */
struct offer {
    enum bt_status status;
    char text[256];
    uint64_t pool_base;
    size_t address_size, key_size;
};

struct outcome {
    enum bt_status status;
    char text[256];
    struct ctl_transfer transfer;
};

static bool read_all(int fd, void *bytes, size_t size, int64_t until_ns)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};

    while (size > 0) {
        int64_t left_ns = until_ns - bt_clock_now_ns();
        ssize_t count;
        if (left_ns <= 0 || poll(&poll_fd, 1, (int)(left_ns / BT_NS_PER_MS) + 1) <= 0)
            return false;
        count = read(fd, bytes, size);
        if (count <= 0)
            return false;
        bytes = (char *)bytes + count;
        size -= (size_t)count;
    }
    return true;
}

static bool write_all(int fd, const void *bytes, size_t size)
{
    while (size > 0) {
        ssize_t count = write(fd, bytes, size);
        if (count <= 0)
            return false;
        bytes = (const char *)bytes + count;
        size -= (size_t)count;
    }
    return true;
}

/* ---- the target's process ---- */

/* Lives until the other end of `control` closes. */
static void run_target(const char *transport, const char *device, int offers, int control)
{
    const struct kvt_target_options options = {.transport = transport,
                                               .device = device,
                                               .layout = layout,
                                               .pool_pages = POOL_PAGES,
                                               .max_jobs = 1};
    struct kvt_target *target = NULL;
    struct bt_error error = {0};
    struct offer offer = {0};
    const void *address = NULL, *key = NULL;
    char nothing;

    offer.status = kvt_target_create(&options, &error, &target);
    snprintf(offer.text, sizeof(offer.text), "%.255s", error.text);
    if (target != NULL) {
        offer.pool_base = (uintptr_t)kvt_target_pool(target);
        kvt_target_address(target, &address, &offer.address_size);
        kvt_target_key(target, &key, &offer.key_size);
    }
    write_all(offers, &offer, sizeof(offer));
    if (target != NULL && write_all(offers, address, offer.address_size) &&
        write_all(offers, key, offer.key_size))
        while (read(control, &nothing, 1) > 0)
            continue;
    kvt_target_destroy(target);
}

/* ---- the source's process ---- */

static bool wait_until_ready(const struct kvt_link *link, int64_t until_ns)
{
    while (kvt_link_state(link) == KVT_LINK_CONNECTING && bt_clock_now_ns() < until_ns)
        poll(NULL, 0, 1);
    return kvt_link_state(link) == KVT_LINK_READY;
}

static enum bt_status push_once(struct kvt_source *source, struct kvt_link *link, uint32_t tokens,
                                int64_t until_ns, struct kvt_push_event *ret_event)
{
    uint32_t pages[POOL_PAGES];
    struct kvt_push_spec spec = {.request = 1,
                                 .epoch = 1,
                                 .link = link,
                                 .source_pages = pages,
                                 .target_pages = pages,
                                 .prompt_tokens = tokens};
    struct pollfd poll_fd = {.fd = bt_queue_fd(kvt_source_events(source)), .events = POLLIN};
    struct kvt_push *push;
    enum bt_status status;

    for (uint32_t i = 0; i < POOL_PAGES; i++)
        pages[i] = i;
    status = kvt_push_open(source, &spec, NULL, &push);
    if (status != BT_OK)
        return status;
    kvt_push_lease(push, until_ns);
    kvt_push_finish(push);
    while (!bt_queue_try_pop(kvt_source_events(source), ret_event))
        poll(&poll_fd, 1, 100); /* the lease ends it at the latest */
    kvt_push_close(push);
    return ret_event->status;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static enum bt_status measure(struct kvt_source *source, struct kvt_link *link, int64_t until_ns,
                              struct ctl_transfer *ret_transfer)
{
    double times[LATENCIES];
    struct kvt_push_event event;
    enum bt_status status = BT_OK;
    struct kvt_rail_info rail;

    for (int i = 0; i < LATENCIES && status == BT_OK; i++) {
        status = push_once(source, link, 1, until_ns, &event);
        times[i] = (double)(event.end_ns - event.first_write_ns);
    }
    if (status != BT_OK)
        return status;
    qsort(times, LATENCIES, sizeof(times[0]), compare_doubles);
    ret_transfer->latency_us = times[LATENCIES / 2] / 1000;
    for (int i = 0; i < ROUNDS && status == BT_OK; i++) {
        status = push_once(source, link, POOL_PAGES * BT_PAGE_TOKENS, until_ns, &event);
        times[i] = (double)(event.end_ns - event.first_write_ns);
    }
    if (status != BT_OK)
        return status;
    qsort(times, ROUNDS, sizeof(times[0]), compare_doubles);
    ret_transfer->bytes = event.bytes;
    ret_transfer->gbps = (double)event.bytes / times[ROUNDS / 2];
    snprintf(ret_transfer->transport, sizeof(ret_transfer->transport), "%s",
             kvt_link_transport(link));
    if (kvt_link_rails(link, &rail, 1) > 0)
        memcpy(ret_transfer->device, rail.device, sizeof(ret_transfer->device));
    return BT_OK;
}

static void run_source(const char *transport, const char *device, int offers, int64_t until_ns,
                       struct outcome *ret_outcome)
{
    static char address[BLOB_MAX], key[BLOB_MAX];
    const struct kvt_source_options options = {.transport = transport,
                                               .device = device,
                                               .layout = layout,
                                               .pool_pages = POOL_PAGES,
                                               .incarnation = 2,
                                               .max_pushes = 1};
    struct kvt_remote remote = {.incarnation = 1, .pool_pages = POOL_PAGES};
    struct bt_error error = {.status = BT_OK};
    struct kvt_source *source = NULL;
    struct kvt_link *link = NULL;
    struct offer offer;

    if (!read_all(offers, &offer, sizeof(offer), until_ns)) {
        bt_error_set(&error, BT_ERR_PEER_LOST, "the target's process ended or hangs");
    } else if (offer.status != BT_OK) {
        bt_error_set(&error, offer.status, "%s", offer.text);
    } else if (offer.address_size > BLOB_MAX || offer.key_size > BLOB_MAX ||
               !read_all(offers, address, offer.address_size, until_ns) ||
               !read_all(offers, key, offer.key_size, until_ns)) {
        bt_error_set(&error, BT_ERR_PEER_LOST, "the target's process does not tell its address");
    } else if (kvt_source_create(&options, &error, &source) == BT_OK) {
        remote.address = address;
        remote.address_size = offer.address_size;
        remote.key = key;
        remote.key_size = offer.key_size;
        remote.pool_base = offer.pool_base;
        memset(kvt_source_pool(source), 0x5a, bt_kv_pool_bytes(&layout, POOL_PAGES));
        if (kvt_source_connect(source, &remote, &error, &link) == BT_OK) {
            if (!wait_until_ready(link, until_ns))
                bt_error_set(&error, BT_ERR_UNAVAILABLE, "can't connect: %s",
                             kvt_link_error(link)[0] != '\0' ? kvt_link_error(link) : "no answer");
            else if (measure(source, link, until_ns, &ret_outcome->transfer) != BT_OK)
                bt_error_set(&error, BT_ERR_PEER_LOST, "pushing failed: %s",
                             kvt_link_error(link)[0] != '\0' ? kvt_link_error(link)
                                                             : "it takes too long");
        }
    }
    ret_outcome->status = error.status;
    snprintf(ret_outcome->text, sizeof(ret_outcome->text), "%.255s", error.text);
}

/* ---- the two of them ---- */

static pid_t start_child(void)
{
    pid_t child;

    fflush(NULL);
    child = fork();
    if (child == 0 && bt_process_die_with_parent() != BT_OK)
        _exit(1);
    return child;
}

static void end_child(pid_t child, int64_t until_ns)
{
    while (child > 0 && waitpid(child, NULL, WNOHANG) == 0) {
        if (bt_clock_now_ns() >= until_ns)
            kill(child, SIGKILL);
        poll(NULL, 0, 2);
    }
}

static void measure_between_processes(const char *transport, const char *device, int64_t timeout_ns,
                                      struct outcome *ret_outcome)
{
    int64_t until_ns = bt_clock_now_ns() + timeout_ns;
    int offers[2], control[2], outcomes[2];
    pid_t target, source = -1;

    *ret_outcome = (struct outcome){.status = BT_ERR_PEER_LOST};
    snprintf(ret_outcome->text, sizeof(ret_outcome->text), "the measuring process ended or hangs");
    if (pipe(offers) != 0 || pipe(control) != 0 || pipe(outcomes) != 0)
        return;
    target = start_child();
    if (target == 0) {
        close(control[1]);
        run_target(transport, device, offers[1], control[0]);
        _exit(0);
    }
    close(offers[1]);
    if (target > 0)
        source = start_child();
    if (source == 0) {
        struct outcome outcome = {0};
        close(control[1]);
        run_source(transport, device, offers[0], until_ns, &outcome);
        write_all(outcomes[1], &outcome, sizeof(outcome));
        _exit(0);
    }
    close(outcomes[1]);
    struct outcome got;
    if (source > 0 && read_all(outcomes[0], &got, sizeof(got), until_ns + BT_NS_PER_S))
        *ret_outcome = got;
    close(control[1]);
    end_child(source, bt_clock_now_ns() + BT_NS_PER_S);
    end_child(target, bt_clock_now_ns() + BT_NS_PER_S);
    close(offers[0]);
    close(control[0]);
    close(outcomes[0]);
}

double ctl_doctor_memcpy_gbps(void)
{
    char *from = malloc(MEMCPY_SIZE), *to = malloc(MEMCPY_SIZE);
    double best = 0;

    for (int i = 0; i < 4 && from != NULL && to != NULL; i++) {
        int64_t begin_ns;
        memset(from, i, MEMCPY_SIZE);
        begin_ns = bt_clock_now_ns();
        memcpy(to, from, MEMCPY_SIZE);
        __asm__ volatile("" : : "r"(to) : "memory");
        double gbps = (double)MEMCPY_SIZE / (double)(bt_clock_now_ns() - begin_ns);
        best = i > 0 && gbps > best ? gbps : best; /* the first one brings the pages in */
    }
    free(from);
    free(to);
    return best;
}

static void loop_over(struct ctl_report *report, const char *transport, const char *device,
                      double limit_gbps, bool wanted, int64_t timeout_ns)
{
    struct outcome outcome;
    char what[96];

    measure_between_processes(transport, device, timeout_ns, &outcome);
    if (outcome.status == BT_OK) {
        snprintf(outcome.transfer.from, sizeof(outcome.transfer.from), "process");
        snprintf(outcome.transfer.to, sizeof(outcome.transfer.to), "process");
        outcome.transfer.limit_gbps = limit_gbps;
        ctl_report_transfer(report, &outcome.transfer);
        return;
    }
    snprintf(what, sizeof(what), "%s%s%s", transport, device != NULL ? " " : "",
             device != NULL ? device : "");
    ctl_report_add(report,
                   outcome.status == BT_ERR_UNAVAILABLE && !wanted ? CTL_DEGRADED : CTL_BROKEN,
                   what, "%s", outcome.text);
}

void ctl_doctor_loops(struct ctl_report *report, const char *only, int64_t timeout_ns)
{
    static struct kvt_rdma_port ports[KVT_PORTS_MAX];
    uint32_t count = kvt_ports_read(ports), usable = 0;

    if (only == NULL || strcmp(only, "shm") == 0)
        loop_over(report, "shm", NULL, ctl_doctor_memcpy_gbps(), only != NULL, timeout_ns);
    if (only == NULL || strcmp(only, "tcp") == 0)
        loop_over(report, "tcp", NULL, 0, only != NULL, timeout_ns);
    if (only != NULL && strcmp(only, "rdma") != 0)
        return;
    for (uint32_t i = 0; i < count; i++) {
        if (kvt_port_problem(&ports[i]) != NULL)
            continue;
        usable++;
        loop_over(report, "rdma", ports[i].name, ports[i].rate_mbps / 8000.0, true, timeout_ns);
    }
    if (only != NULL && usable == 0)
        ctl_report_add(report, CTL_BROKEN, "rdma", "wanted, and there is no usable port");
}
