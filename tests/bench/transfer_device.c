#include "tests/bench/transfer_device.h"

#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "kvtransfer/preflight.h"
#include "kvtransfer/source.h"
#include "kvtransfer/staging.h"
#include "kvtransfer/target.h"
#include "tests/bench/device_bench.h"

#define BLOB_MAX    65536
#define PAGES_MAX   51
#define TOKENS      3260
#define TOKENS_FEW  130
#define ROUNDS      15
#define WAIT_MS     120000
#define INCARNATION 7

static _Noreturn void die(const char *what, const char *why)
{
    fflush(stdout);
    fprintf(stderr, "transfer: %s: %s\n", what, why);
    _exit(1);
}

static void must(enum bt_status status, const char *what, const struct bt_error *error)
{
    if (status != BT_OK)
        die(what, error->text);
}

static bool read_all(int fd, void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t got = read(fd, (char *)bytes + at, size - at);
        if (got <= 0)
            return false;
        at += (size_t)got;
    }
    return true;
}

static void write_all(int fd, const void *bytes, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t put = write(fd, (const char *)bytes + at, size - at);
        if (put <= 0)
            die("the other process", "is gone");
        at += (size_t)put;
    }
}

/* What is pushed. */
struct load {
    struct bt_kv_layout layout;
    uint32_t tokens, pool_pages;
    uint32_t pages[PAGES_MAX];
    uint64_t bytes; /* of the tokens */
};

static struct load load_of(const struct transfer_device *on, uint32_t layers)
{
    struct load load = {
        .layout = {.layer_count = on->quick ? 3 : layers,
                   .kv_lora_rank = on->quick ? 64 : 512,
                   .qk_rope_head_dim = on->quick ? 16 : 64,
                   .dtype = BT_BF16},
        .tokens = on->quick ? TOKENS_FEW : TOKENS,
    };
    load.pool_pages = bt_kv_pages_for(load.tokens);
    for (uint32_t i = 0; i < load.pool_pages; i++)
        load.pages[i] = i;
    load.bytes = (uint64_t)load.layout.layer_count * load.tokens * bt_kv_token_bytes(&load.layout);
    return load;
}

static uint64_t pool_bytes(const struct load *load)
{
    return bt_kv_pool_bytes(&load->layout, load->pool_pages);
}

static struct bt_stream *make_stream(struct bt_device *device)
{
    const struct bt_stream_limits limits = {.max_rows = 1};
    struct bt_stream *stream = NULL;
    struct bt_error error;
    must(bt_device_stream_create(device, &limits, NULL, &error, &stream), "stream", &error);
    return stream;
}

/* ---- the target's process ---- */

/* How the two ends are. */
struct way {
    const char *transport;
    bool staged;
};

struct offer {
    enum bt_status status;
    char text[256];
    uint64_t pool_base;
    size_t address_size, key_size;
    struct bt_shared_memory shared; /* of as many bytes as are pushed; not staged */
    bool is_shared;
};

enum question { ASK_SUM, ASK_IN, ASK_SAME };

struct ask {
    enum question question;
    uint64_t epoch;
};

struct far_end {
    const struct load *load;
    struct bt_device *device;
    struct bt_stream *stream;
    struct kvt_target *target;
    struct kvt_staging *staging;
    void *scratch;
};

static enum bt_status far_open(struct far_end *far, const struct way *way, struct offer *offer,
                               struct bt_error *error)
{
    const struct kvt_target_options options = {.transport = way->transport,
                                               .pool_device = way->staged ? NULL : far->device,
                                               .layout = far->load->layout,
                                               .pool_pages = far->load->pool_pages,
                                               .max_jobs = 2};
    enum bt_status status = kvt_target_create(&options, error, &far->target);
    if (status != BT_OK)
        return status;
    if (way->staged) {
        const struct kvt_staging_options staging = {.device = far->device,
                                                    .layout = far->load->layout,
                                                    .pool_pages = far->load->pool_pages,
                                                    .host_pool = kvt_target_pool(far->target)};
        return kvt_staging_create(&staging, error, &far->staging);
    }
    far->scratch = device_take(far->device, far->load->bytes);
    struct bt_error unshared;
    offer->is_shared =
        far->device->ops->share &&
        far->device->ops->share(far->device, far->scratch, &unshared, &offer->shared) == BT_OK;
    return BT_OK;
}

static uint64_t sum_of(const struct far_end *far, uint64_t epoch)
{
    struct kvt_target_event event;
    struct pollfd fd = {.fd = bt_queue_fd(kvt_target_events(far->target)), .events = POLLIN};
    if (kvt_target_checksum(far->target, 1, epoch, far->load->pages, far->load->tokens) != BT_OK ||
        poll(&fd, 1, WAIT_MS) != 1 || !bt_queue_try_pop(kvt_target_events(far->target), &event))
        die("target", "no checksum");
    return event.checksum;
}

/* Into the device's pool. */
static uint64_t take_in(const struct far_end *far)
{
    kvt_staging_in(far->staging, far->stream, far->load->pages, far->load->tokens);
    device_wait(far->device, far->stream);
    return true;
}

/* Whether the last layer's first page is in the GPU's pool as the source filled it. */
static uint64_t is_same(const struct far_end *far)
{
    const struct bt_kv_layout *layout = &far->load->layout;
    struct bt_error error;
    void *seen = NULL;
    size_t bytes = BT_PAGE_TOKENS * bt_kv_token_bytes(layout);
    uint64_t offset = bt_kv_offset(layout, far->load->pool_pages, layout->layer_count - 1, 0, 0);
    char *pool = far->staging ? kvt_staging_pool(far->staging) : kvt_target_pool(far->target);
    bool same = true;
    must(bt_device_alloc_host(far->device, bytes, &error, &seen), "pinned", &error);
    bt_device_copy(far->device, far->stream, seen, pool + offset, bytes);
    device_wait(far->device, far->stream);
    for (size_t i = 0; i < bytes / sizeof(float); i++) {
        float expected = device_filler(offset / sizeof(float) + i);
        same = same && memcmp((float *)seen + i, &expected, sizeof(expected)) == 0;
    }
    bt_device_free_host(far->device, seen);
    return same;
}

static void far_close(struct far_end *far)
{
    kvt_staging_destroy(far->staging);
    kvt_target_destroy(far->target);
    bt_device_free(far->device, far->scratch);
    bt_device_stream_destroy(far->device, far->stream);
    bt_device_close(far->device);
}

/* Until the other end closes. */
static void run_target(const struct transfer_device *on, const struct way *way,
                       const struct load *load, int fd)
{
    struct far_end far = {.load = load};
    struct bt_error error = {0};
    struct offer offer = {0};
    const void *address = NULL, *key = NULL;
    struct ask ask;
    if (device_open("transfer", on->name, NULL, 1, &far.device))
        _exit(1);
    far.stream = make_stream(far.device);
    offer.status = far_open(&far, way, &offer, &error);
    snprintf(offer.text, sizeof(offer.text), "%.255s", error.text);
    if (offer.status == BT_OK) {
        offer.pool_base = (uintptr_t)kvt_target_pool(far.target);
        kvt_target_address(far.target, &address, &offer.address_size);
        kvt_target_key(far.target, &key, &offer.key_size);
    }
    write_all(fd, &offer, sizeof(offer));
    write_all(fd, address, offer.address_size);
    write_all(fd, key, offer.key_size);
    while (read_all(fd, &ask, sizeof(ask))) {
        uint64_t answer = ask.question == ASK_SUM  ? sum_of(&far, ask.epoch)
                          : ask.question == ASK_IN ? take_in(&far)
                                                   : is_same(&far);
        write_all(fd, &answer, sizeof(answer));
    }
    far_close(&far);
}

/* ---- the source's ---- */

struct ends {
    struct load load;
    struct way way;
    struct bt_device *device;
    struct bt_stream *stream;
    struct kvt_source *source;
    struct kvt_staging *staging;
    struct kvt_link *link;
    struct offer offer;
    int fd;
    pid_t pid;
    uint64_t epoch;
};

static void start_target(struct ends *ends, const struct transfer_device *on)
{
    int fds[2];
    fflush(NULL);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0 || (ends->pid = fork()) < 0)
        die("target", "no process");
    if (ends->pid == 0) {
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        close(fds[0]);
        run_target(on, &ends->way, &ends->load, fds[1]);
        exit(0);
    }
    close(fds[1]);
    ends->fd = fds[0];
}

static void *own_pool(const struct ends *ends)
{
    return ends->staging ? kvt_staging_pool(ends->staging) : kvt_source_pool(ends->source);
}

static enum bt_status near_open(struct ends *ends, struct bt_error *error)
{
    const struct kvt_source_options options = {.transport = ends->way.transport,
                                               .pool_device =
                                                   ends->way.staged ? NULL : ends->device,
                                               .layout = ends->load.layout,
                                               .pool_pages = ends->load.pool_pages,
                                               .incarnation = 1,
                                               .checksum = true,
                                               .max_pushes = 2};
    enum bt_status status = kvt_source_create(&options, error, &ends->source);
    if (status == BT_OK && ends->way.staged) {
        const struct kvt_staging_options staging = {.device = ends->device,
                                                    .layout = ends->load.layout,
                                                    .pool_pages = ends->load.pool_pages,
                                                    .host_pool = kvt_source_pool(ends->source)};
        status = kvt_staging_create(&staging, error, &ends->staging);
    }
    if (status == BT_OK)
        device_fill(ends->device, ends->stream, own_pool(ends),
                    pool_bytes(&ends->load) / sizeof(float));
    return status;
}

static enum bt_status near_connect(struct ends *ends, struct bt_error *error)
{
    static char address[BLOB_MAX], key[BLOB_MAX];
    struct kvt_remote remote = {.incarnation = INCARNATION,
                                .address = address,
                                .address_size = ends->offer.address_size,
                                .key = key,
                                .key_size = ends->offer.key_size,
                                .pool_base = ends->offer.pool_base,
                                .pool_pages = ends->load.pool_pages};
    if (ends->offer.address_size > BLOB_MAX || ends->offer.key_size > BLOB_MAX ||
        !read_all(ends->fd, address, ends->offer.address_size) ||
        !read_all(ends->fd, key, ends->offer.key_size))
        die("target", "it does not tell its address");
    enum bt_status status = kvt_source_connect(ends->source, &remote, error, &ends->link);
    while (status == BT_OK && kvt_link_state(ends->link) == KVT_LINK_CONNECTING)
        poll(NULL, 0, 1);
    if (status == BT_OK && kvt_link_state(ends->link) == KVT_LINK_FAILED)
        status = bt_error_set(error, BT_ERR_UNAVAILABLE, "%s", kvt_link_error(ends->link));
    return status;
}

static void ends_close(struct ends *ends)
{
    int status;
    if (ends->link)
        kvt_link_release(ends->link);
    kvt_staging_destroy(ends->staging);
    kvt_source_destroy(ends->source);
    bt_device_stream_destroy(ends->device, ends->stream);
    bt_device_close(ends->device);
    close(ends->fd);
    if (waitpid(ends->pid, &status, 0) != ends->pid || !WIFEXITED(status) ||
        WEXITSTATUS(status) != 0)
        die("target", "its process did not end well");
}

/* False: this machine has no such way, which was said. */
static bool ends_open(struct ends *ends, const struct transfer_device *on, struct way way,
                      const struct load *load)
{
    struct bt_error error = {0};
    *ends = (struct ends){.load = *load, .way = way};
    start_target(ends, on);
    if (device_open("transfer", on->name, NULL, 0, &ends->device))
        _exit(1);
    ends->stream = make_stream(ends->device);
    if (!read_all(ends->fd, &ends->offer, sizeof(ends->offer)))
        die("target", "its process ended");
    enum bt_status status = ends->offer.status;
    if (status != BT_OK)
        bt_error_set(&error, status, "%s", ends->offer.text);
    else
        status = near_open(ends, &error);
    if (status == BT_OK)
        status = near_connect(ends, &error);
    if (status == BT_OK)
        return true;
    if (status != BT_ERR_UNAVAILABLE && status != BT_ERR_UNSUPPORTED)
        die(way.transport, error.text);
    printf("# %s%s: not here: %s\n", way.staged ? "staged_" : "", way.transport, error.text);
    ends_close(ends);
    return false;
}

static uint64_t ask_target(const struct ends *ends, enum question question)
{
    const struct ask ask = {question, ends->epoch};
    uint64_t answer;
    write_all(ends->fd, &ask, sizeof(ask));
    if (!read_all(ends->fd, &answer, sizeof(answer)))
        die("target", "its process ended");
    return answer;
}

/* Layer by layer as they are computed: `staged` ones are copied out before. */
static void make_ready(struct ends *ends, struct kvt_push *push)
{
    const struct load *load = &ends->load;
    struct bt_error error;
    for (uint32_t layer = 0; layer < load->layout.layer_count; layer++) {
        if (ends->staging) {
            kvt_staging_out(ends->staging, layer, load->pages, 0, load->tokens);
            must(kvt_staging_wait(ends->staging, &error), "staging", &error);
        }
        kvt_push_ready(push, layer, load->tokens);
    }
}

/* Seconds until it is in the target's GPU. */
static double push_once(struct ends *ends, bool layerwise, struct kvt_push_event *ret_event)
{
    const struct load *load = &ends->load;
    const struct kvt_push_spec spec = {.request = 1,
                                       .epoch = ++ends->epoch,
                                       .link = ends->link,
                                       .source_pages = load->pages,
                                       .target_pages = load->pages,
                                       .prompt_tokens = load->tokens,
                                       .layerwise = layerwise};
    struct bt_error error = {0};
    struct kvt_push *push;
    must(kvt_push_open(ends->source, &spec, &error, &push), "push", &error);
    kvt_push_lease(push, bt_clock_now_ns() + WAIT_MS * BT_NS_PER_MS);
    int64_t begin_ns = bt_clock_now_ns();
    make_ready(ends, push);
    kvt_push_finish(push);
    if (!bt_queue_pop(kvt_source_events(ends->source), ret_event) || ret_event->status != BT_OK)
        die("push", "it failed");
    int64_t end_ns = ret_event->end_ns;
    if (ends->staging) {
        ask_target(ends, ASK_IN);
        end_ns = bt_clock_now_ns();
    }
    kvt_push_close(push);
    return (double)(end_ns - begin_ns) / 1e9;
}

/* GB/s, the best of the rounds; each arrived as it was sent. */
static double push_rate(struct ends *ends, bool layerwise, bool quick)
{
    struct kvt_push_event event;
    double best = 0;
    push_once(ends, layerwise, &event); /* warms up */
    for (int i = 0; i < (quick ? 1 : ROUNDS); i++) {
        double seconds = push_once(ends, layerwise, &event);
        if (event.bytes != ends->load.bytes)
            die("push", "other bytes were written than there are");
        best = fmax(best, (double)event.bytes / 1e9 / seconds);
        if (ask_target(ends, ASK_SUM) != event.checksum)
            die("push", "the target sums up to something else");
    }
    if (!ask_target(ends, ASK_SAME))
        die("push", "the pool of the target's GPU has other bytes than the source's");
    return best;
}

/* ---- figures ---- */

static void figure(const char *name, double value, const char *unit, double limit)
{
    if (!isfinite(value) || !isfinite(limit) || value <= 0 || limit <= 0)
        die(name, "it was not measured");
    printf("figure %s %.4g %s %.4g %.3f\n", name, value, unit, limit, value / limit);
    fflush(stdout);
}

static void both_forms(struct ends *ends, const char *name, uint32_t layers, double limit,
                       bool quick)
{
    for (int whole = 0; whole < 2; whole++) {
        char full[64];
        snprintf(full, sizeof(full), "%s_%s_%u_cuda", name, whole ? "whole" : "layerwise", layers);
        figure(full, push_rate(ends, !whole, quick), "GB/s", limit);
    }
}

/* GB/s of a copy by the source's GPU to memory of the target's. */
static double link_rate(const struct ends *ends, bool quick)
{
    struct bt_error error = {0};
    size_t bytes = 0;
    void *there = NULL;
    if (!ends->offer.is_shared)
        die("cuda_ipc", "the target's GPU shares no memory");
    must(ends->device->ops->attach(ends->device, &ends->offer.shared, &error, &there, &bytes),
         "cuda_ipc", &error);
    double rate = device_copy_rate(ends->device, ends->stream, quick, there, own_pool(ends),
                                   ends->load.bytes);
    ends->device->ops->detach(ends->device, there);
    return rate / 1e9;
}

static const uint32_t layer_counts[] = {27, 61};

/* GB/s of the slowest of the three ways that staged bytes go. */
static double staging_limit(const struct ends *ends, bool quick)
{
    struct bt_error error;
    size_t bytes = ends->load.bytes;
    void *host = NULL, *other = malloc(bytes), *memory = device_take(ends->device, bytes);
    must(bt_device_alloc_host(ends->device, bytes, &error, &host), "pinned", &error);
    if (!other)
        die("staging", "no memory");
    double out = device_copy_rate(ends->device, ends->stream, quick, host, memory, bytes);
    double in = device_copy_rate(ends->device, ends->stream, quick, memory, host, bytes), copy = 0;
    memset(other, 1, bytes);
    for (int i = 0; i < 5; i++) {
        int64_t begin_ns = bt_clock_now_ns();
        memcpy(other, host, bytes);
        __asm__ volatile("" : : "r"(other) : "memory");
        copy = fmax(copy, (double)bytes / ((double)(bt_clock_now_ns() - begin_ns + 1) / 1e9));
    }
    bt_device_free_host(ends->device, host);
    bt_device_free(ends->device, memory);
    free(other);
    return fmin(fmin(out, in), copy) / 1e9;
}

static double rails_rate(const struct ends *ends, bool quick)
{
    const struct kvt_preflight_options options = {0};
    Baton__V1__PreflightResponse *preflight = kvt_preflight_create(&options);
    double rate = preflight ? (double)kvt_preflight_rails_mbps(preflight) / 8000 : 0;
    (void)ends, (void)quick;
    kvt_preflight_destroy(preflight);
    return rate;
}

/* In a process of its own, as its target is one: a driver that was used before does not survive a
 * fork. limit: in GB/s. False: this machine has no such way. */
static bool measure(const struct transfer_device *on, struct way way, const char *name,
                    uint32_t layers, double (*limit)(const struct ends *ends, bool quick))
{
    enum { NONE = 3 };
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        const struct load load = load_of(on, layers);
        struct ends ends;
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        if (!ends_open(&ends, on, way, &load))
            exit(NONE);
        both_forms(&ends, name, layers, limit(&ends, on->quick), on->quick);
        ends_close(&ends);
        exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) ||
        (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != NONE))
        die(name, "its process did not end well");
    return WEXITSTATUS(status) == 0;
}

void transfer_device_ipc(const struct transfer_device *on)
{
    for (size_t i = 0; i < 2; i++) {
        if (!measure(on, (struct way){.transport = "cuda_ipc"}, "cuda_ipc", layer_counts[i],
                     link_rate))
            return;
    }
}

void transfer_device_staged(const struct transfer_device *on, const char *transport)
{
    char name[32];
    snprintf(name, sizeof(name), "staged_%s", transport);
    measure(on, (struct way){.transport = transport, .staged = true}, name, layer_counts[0],
            staging_limit);
}

void transfer_device_rdma(const struct transfer_device *on)
{
    for (size_t i = 0; i < 2; i++) {
        if (!measure(on, (struct way){.transport = "rdma"}, "rdma", layer_counts[i], rails_rate))
            return;
    }
}

int transfer_device_look(const struct transfer_device *on)
{
    enum { CPU = 3 };
    struct bt_device *device = NULL;
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        int refused = device_open("transfer", on->name, NULL, 0, &device);
        bool host = !refused && device->memory == BT_MEMORY_HOST;
        bt_device_close(device);
        fflush(NULL);
        _exit(refused ? refused : host ? CPU : 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        fprintf(stderr, "transfer: device %s: the process that looked for it did not end well\n",
                on->name);
        return 1;
    }
    return WEXITSTATUS(status) == CPU ? -1 : WEXITSTATUS(status);
}
