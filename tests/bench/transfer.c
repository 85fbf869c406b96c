/*
 * `bench_transfer shm|tcp checksum|plain`: one prompt of 3260 tokens on a model of 27 layers (576
 * bf16 a token), layer by layer and whole, to a target in another process. The limit is memcpy of
 * the same bytes between pools of the same size in the same run, warm like the measured pushes.
 * Prints `figure NAME VALUE UNIT LIMIT RATIO`; milliseconds and GB/s are medians of the rounds.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "tests/conformance/target_host.h"

#define ROUNDS 9
#define TOKENS 3260
#define PAGES  51

static const struct bt_kv_layout layout = {
    .layer_count = 27, .kv_lora_rank = 512, .qk_rope_head_dim = 64, .dtype = BT_BF16};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *values)
{
    qsort(values, ROUNDS, sizeof(*values), compare);
    return values[ROUNDS / 2];
}

static double memcpy_gb_per_s(void)
{
    size_t bytes = bt_kv_pool_bytes(&layout, PAGES);
    char *from = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    double rates[ROUNDS];

    CHECK(from != MAP_FAILED && to != MAP_FAILED);
    memset(from, 1, bytes);
    memset(to, 2, bytes);
    for (int i = 0; i < ROUNDS; i++) {
        int64_t begin_ns = bt_clock_now_ns();
        memcpy(to, from, bytes);
        rates[i] = (double)bytes / (double)(bt_clock_now_ns() - begin_ns);
        from[i] = to[i + 1];
    }
    munmap(from, bytes);
    munmap(to, bytes);
    return median(rates);
}

static struct kvt_push_event push_once(struct kvt_source *source, struct kvt_link *link,
                                       bool layerwise, int64_t *ret_begin_ns)
{
    uint32_t pages[PAGES];
    struct kvt_push_spec spec = {.request = 1,
                                 .epoch = 1,
                                 .link = link,
                                 .source_pages = pages,
                                 .target_pages = pages,
                                 .prompt_tokens = TOKENS,
                                 .layerwise = layerwise};
    struct kvt_push_event event;
    struct kvt_push *push;

    for (uint32_t i = 0; i < PAGES; i++)
        pages[i] = i;
    CHECK(kvt_push_open(source, &spec, NULL, &push) == BT_OK);
    kvt_push_lease(push, bt_clock_now_ns() + 30 * BT_NS_PER_S);
    *ret_begin_ns = bt_clock_now_ns();
    for (uint32_t layer = 0; layer < layout.layer_count; layer++)
        kvt_push_ready(push, layer, TOKENS);
    kvt_push_finish(push);
    CHECK(bt_queue_pop(kvt_source_events(source), &event) && event.status == BT_OK);
    kvt_push_close(push);
    return event;
}

static void measure(const char *transport, struct kvt_source *source, struct kvt_link *link,
                    bool layerwise, double limit)
{
    const char *mode = layerwise ? "layerwise" : "whole";
    double rates[ROUNDS], times[ROUNDS], rate;

    for (int i = -2; i < ROUNDS; i++) { /* two to warm up */
        int64_t begin_ns;
        struct kvt_push_event event = push_once(source, link, layerwise, &begin_ns);
        if (i < 0)
            continue;
        times[i] = (double)(event.end_ns - begin_ns) / 1e6;
        rates[i] = (double)event.bytes / (double)(event.end_ns - begin_ns);
    }
    rate = median(rates);
    printf("figure transfer_%s_%s_rate %.2f GB/s %.2f %.2f\n", transport, mode, rate, limit,
           rate / limit);
    printf("figure transfer_%s_%s_time %.2f ms - -\n", transport, mode, median(times));
}

static void run(const char *transport, bool checksum, double limit)
{
    struct kvt_target_options target = {
        .transport = transport, .layout = layout, .pool_pages = PAGES, .max_jobs = 1};
    struct kvt_source_options options = {.transport = transport,
                                         .layout = layout,
                                         .pool_pages = PAGES,
                                         .incarnation = 1,
                                         .checksum = checksum,
                                         .max_pushes = 1};
    struct target_host *host = target_host_start(&target, false, 7);
    struct kvt_source *source;
    struct kvt_remote remote;
    struct kvt_link *link;

    CHECK(kvt_source_create(&options, NULL, &source) == BT_OK);
    memset(kvt_source_pool(source), 3, bt_kv_pool_bytes(&layout, PAGES));
    target_host_remote(host, &remote);
    CHECK(kvt_source_connect(source, &remote, NULL, &link) == BT_OK);
    while (kvt_link_state(link) == KVT_LINK_CONNECTING)
        poll(NULL, 0, 1);
    CHECK(strcmp(kvt_link_transport(link), transport) == 0);
    printf("# checksum %s\n", checksum ? "on" : "off");
    measure(transport, source, link, true, limit);
    measure(transport, source, link, false, limit);
    kvt_link_release(link);
    kvt_source_destroy(source);
    target_host_stop(host);
}

int main(int argc, char **argv)
{
    double limit;

    CHECK(argc == 3);
    bt_log_init("bench", BT_LOG_WARN);
    limit = memcpy_gb_per_s();
    printf("figure memcpy %.2f GB/s - -\n", limit);
    fflush(stdout); /* before the fork */
    run(argv[1], strcmp(argv[2], "checksum") == 0, limit);
    return 0;
}
