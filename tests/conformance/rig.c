#include "tests/conformance/rig.h"

#include <poll.h>
#include <string.h>

#include "common/base/random.h"
#include "kvtransfer/checksum.h"
#include "tests/conformance/pool_device.h"

const char *transport;
bool source_on_device, target_on_device;
uint64_t seed = 4242;

bool is_sim(void)
{
    return strcmp(transport, "sim") == 0;
}

struct bt_device *target_device(void)
{
    return target_on_device ? pool_device() : NULL;
}

uint32_t draw(struct rig *rig, uint32_t bound)
{
    return (uint32_t)(bt_random_u64(seed, rig->draws++, 1) % bound);
}

struct kvt_transport *sim_transport(struct rig *rig)
{
    struct kvt_transport *result = NULL;

    if (is_sim())
        CHECK(kvt_sim_transport_create(rig->sim, NULL, &result) == BT_OK);
    return result;
}

void start_target(struct rig *rig, uint64_t incarnation)
{
    struct kvt_target_options options = {.transport = transport,
                                         .given = sim_transport(rig),
                                         .pool_device = target_device(),
                                         .layout = rig->layout,
                                         .pool_pages = rig->target_pages,
                                         .max_jobs = 4};

    rig->host = target_host_start(&options, is_sim(), incarnation);
}

void wait_link(struct kvt_link *link, enum kvt_link_state wanted)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;

    while (kvt_link_state(link) == KVT_LINK_CONNECTING || kvt_link_state(link) != wanted) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        CHECK(wanted == KVT_LINK_FAILED || kvt_link_state(link) != KVT_LINK_FAILED);
        poll(NULL, 0, 1);
    }
}

void connect_target(struct rig *rig)
{
    struct bt_error error = {0};
    struct kvt_remote remote;

    target_host_remote(rig->host, &remote);
    CHECK(kvt_source_connect(rig->source, &remote, &error, &rig->link) == BT_OK);
    wait_link(rig->link, KVT_LINK_READY);
    /* Both ends are on one host: the best that auto knows. */
    CHECK(strcmp(kvt_link_transport(rig->link),
                 strcmp(transport, "auto") == 0 ? "shm" : transport) == 0);
}

static void fill_source(struct rig *rig)
{
    uint64_t bytes = bt_kv_pool_bytes(&rig->layout, rig->source_pages);
    unsigned char *pool = kvt_source_pool(rig->source);
    uint64_t value = seed;

    for (uint64_t i = 0; i < bytes; i++) {
        value = value * UINT64_C(6364136223846793005) + 1442695040888963407;
        pool[i] = (unsigned char)(value >> 56);
        if (pool[i] == HOST_FILL)
            pool[i]++; /* so that every byte that arrives is seen */
    }
}

void start_source(struct rig *rig, uint64_t incarnation)
{
    struct kvt_source_options options = {.transport = transport,
                                         .given = sim_transport(rig),
                                         .pool_device = source_on_device ? pool_device() : NULL,
                                         .layout = rig->layout,
                                         .pool_pages = rig->source_pages,
                                         .incarnation = incarnation,
                                         .checksum = true,
                                         .max_pushes = MAX_PUSHES};
    struct bt_error error = {0};

    if (kvt_source_create(&options, &error, &rig->source) != BT_OK)
        check_failed(error.text, __FILE__, __LINE__);
    for (uint64_t i = 0; i < bt_kv_pool_bytes(&rig->layout, rig->source_pages); i += 4096)
        CHECK(((unsigned char *)kvt_source_pool(rig->source))[i] == 0);
    fill_source(rig);
}

void rig_init(struct rig *rig)
{
    if (rig->layout.layer_count == 0) {
        rig->layout = (struct bt_kv_layout){
            .layer_count = 5, .kv_lora_rank = 48, .qk_rope_head_dim = 16, .dtype = BT_BF16};
        rig->source_pages = 90;
        rig->target_pages = 130;
    }
    rig->sim = is_sim() ? kvt_sim_create(seed) : NULL;
    start_target(rig, TARGET_INCARNATION);
    start_source(rig, SOURCE_INCARNATION);
    connect_target(rig);
}

void rig_finish(struct rig *rig)
{
    if (rig->link != NULL)
        kvt_link_release(rig->link);
    kvt_source_destroy(rig->source);
    target_host_stop(rig->host);
    kvt_sim_destroy(rig->sim);
    CHECK(pool_device_blocks() == 0);
}

/* `count` distinct pages of a pool, neighbours often. */
void draw_pages(struct rig *rig, uint32_t pool, uint32_t count, bool *used, uint32_t *pages)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = i > 0 && draw(rig, 3) != 0 ? (pages[i - 1] + 1) % pool : draw(rig, pool);
        while (used[page])
            page = (page + 1) % pool;
        used[page] = true;
        pages[i] = page;
    }
}

void open_push(struct rig *rig, struct transfer *transfer, bool layerwise)
{
    struct kvt_push_spec spec = {.request = 11,
                                 .epoch = 12,
                                 .link = rig->link,
                                 .source_pages = transfer->source_pages,
                                 .target_pages = transfer->target_pages,
                                 .prompt_tokens = transfer->tokens,
                                 .layerwise = layerwise,
                                 .share = transfer->share,
                                 .user = transfer};
    struct bt_error error = {0};

    CHECK(kvt_push_open(rig->source, &spec, &error, &transfer->push) == BT_OK);
}

void lease_long(const struct transfer *transfer)
{
    kvt_push_lease(transfer->push, bt_clock_now_ns() + 60 * BT_NS_PER_S);
}

struct kvt_push_event take_event(struct rig *rig)
{
    struct pollfd fd = {.fd = bt_queue_fd(kvt_source_events(rig->source)), .events = POLLIN};
    struct kvt_push_event event;

    CHECK(poll(&fd, 1, 50000) == 1);
    CHECK(bt_queue_try_pop(kvt_source_events(rig->source), &event));
    return event;
}

uint64_t transfer_bytes(const struct rig *rig, const struct transfer *transfer)
{
    return rig->layout.layer_count * transfer->tokens * bt_kv_token_bytes(&rig->layout);
}

/* The target has exactly the source's bytes in its pages, and nothing anywhere else. */
void check_arrived(struct rig *rig, const struct transfer *transfer,
                   const struct kvt_push_event *event)
{
    uint64_t sum =
        kvt_checksum_sequence(&rig->layout, kvt_source_pool(rig->source), rig->source_pages,
                              transfer->source_pages, transfer->tokens);

    CHECK(event->status == BT_OK && event->quiesced && event->user == transfer);
    CHECK(event->bytes == transfer_bytes(rig, transfer));
    CHECK(event->checksum == sum);
    CHECK(target_host_checksum(rig->host, transfer->target_pages, transfer->tokens) == sum);
    CHECK(event->first_write_ns != 0 && event->finish_ns != 0);
    CHECK(event->end_ns >= event->finish_ns && event->end_ns >= event->first_write_ns);
    CHECK(event->hidden_bytes <= event->bytes);
}

void no_guard_touched(struct rig *rig, const struct transfer *transfer)
{
    CHECK(target_host_touched_outside(rig->host, transfer->target_pages, transfer->tokens) == 0);
}

/* As a compute thread does: chunk after chunk, layer after layer. */
void compute_chunks(struct rig *rig, const struct transfer *transfer, uint32_t max_chunk)
{
    for (uint32_t at = 0; at < transfer->tokens;) {
        uint32_t chunk = 1 + draw(rig, max_chunk);
        at = chunk < transfer->tokens - at ? at + chunk : transfer->tokens;
        for (uint32_t layer = 0; layer < rig->layout.layer_count; layer++)
            kvt_push_ready(transfer->push, layer, at);
    }
}

void draw_transfer(struct rig *rig, uint32_t tokens, struct transfer *ret_transfer)
{
    bool used_source[8192] = {false}, used_target[8192] = {false};
    uint32_t count = bt_kv_pages_for(tokens);

    ret_transfer->tokens = tokens;
    draw_pages(rig, rig->source_pages, count, used_source, ret_transfer->source_pages);
    draw_pages(rig, rig->target_pages, count, used_target, ret_transfer->target_pages);
}

void push_once(struct rig *rig, struct transfer *transfer, bool layerwise)
{
    struct kvt_push_event event;

    open_push(rig, transfer, layerwise);
    lease_long(transfer);
    compute_chunks(rig, transfer, 200);
    kvt_push_finish(transfer->push);
    event = take_event(rig);
    check_arrived(rig, transfer, &event);
    no_guard_touched(rig, transfer);
    kvt_push_close(transfer->push);
    target_host_fill(rig->host);
}

struct transfer transfers[MAX_PUSHES];
