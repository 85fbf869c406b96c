/* One push or several, from ready to its event. */
#include "tests/conformance/cases.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "tests/conformance/rig.h"

void case_layerwise_and_whole(void)
{
    static const uint32_t tokens[] = {1, 63, 64, 65, 700, 3000, 1025};
    struct rig rig = {0};

    rig_init(&rig);
    for (size_t i = 0; i < 2 * sizeof(tokens) / sizeof(tokens[0]); i++) {
        draw_transfer(&rig, tokens[i / 2], &transfers[0]);
        push_once(&rig, &transfers[0], i % 2 == 0);
    }
    rig_finish(&rig);
}

void case_neighbours_are_one_write(void)
{
    struct rig rig = {0};
    struct kvt_push_event event;
    struct transfer *transfer = &transfers[0];

    rig_init(&rig);
    transfer->tokens = 20 * 64 + 5;
    for (uint32_t i = 0; i < 21; i++) {
        transfer->source_pages[i] = 3 + i;
        transfer->target_pages[i] = i < 9 ? 40 + i : 60 + i; /* two runs */
    }
    open_push(&rig, transfer, false);
    lease_long(transfer);
    kvt_push_finish(transfer->push);
    event = take_event(&rig);
    check_arrived(&rig, transfer, &event);
    CHECK(event.writes == 2 * rig.layout.layer_count);
    CHECK(event.hidden_bytes == 0); /* whole: nothing goes before the end */
    kvt_push_close(transfer->push);
    rig_finish(&rig);
}

void case_many_at_once(void)
{
    struct rig rig = {0};
    bool used_source[8192] = {false}, used_target[8192] = {false};

    rig_init(&rig);
    for (uint32_t i = 0; i < 16; i++) {
        struct transfer *t = &transfers[i];
        t->tokens = 1 + draw(&rig, 320);
        draw_pages(&rig, rig.source_pages, bt_kv_pages_for(t->tokens), used_source,
                   t->source_pages);
        draw_pages(&rig, rig.target_pages, bt_kv_pages_for(t->tokens), used_target,
                   t->target_pages);
        open_push(&rig, t, i % 3 != 0);
        lease_long(t);
    }
    for (uint32_t i = 0; i < 16; i++) {
        compute_chunks(&rig, &transfers[15 - i], 100);
        kvt_push_finish(transfers[15 - i].push);
    }
    for (uint32_t i = 0; i < 16; i++) {
        struct kvt_push_event event = take_event(&rig);
        check_arrived(&rig, event.user, &event);
        kvt_push_close(event.push);
    }
    rig_finish(&rig);
}

/* Everything is ready, and nothing finished, until it is all there. */
static uint64_t push_and_finish_late(struct rig *rig, struct transfer *t)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    struct kvt_push_event event;

    open_push(rig, t, true);
    lease_long(t);
    for (uint32_t layer = 0; layer < rig->layout.layer_count; layer++)
        kvt_push_ready(t->push, layer, t->tokens);
    while (target_host_touched_inside(rig->host, t->target_pages, t->tokens) <
           transfer_bytes(rig, t))
        CHECK(bt_clock_now_ns() < deadline_ns);
    kvt_push_finish(t->push);
    event = take_event(rig);
    check_arrived(rig, t, &event);
    kvt_push_close(t->push);
    target_host_fill(rig->host);
    return event.hidden_bytes;
}

/* The reward of layer-wise pushing: all but what is posted last is there before finish. What the
 * target has seen the source may count a moment later. */
void case_layers_go_before_finish(void)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    struct rig rig = {0};

    rig_init(&rig);
    draw_transfer(&rig, 640, &transfers[0]);
    while (push_and_finish_late(&rig, &transfers[0]) == 0)
        CHECK(bt_clock_now_ns() < deadline_ns);
    rig_finish(&rig);
}

static void end_cancelled(struct rig *rig, struct transfer *t, bool may_be_done)
{
    struct kvt_push_event event;

    kvt_push_cancel(t->push);
    event = take_event(rig);
    CHECK(event.status == BT_ERR_CANCELLED || (may_be_done && event.status == BT_OK));
    CHECK(event.quiesced);
    no_guard_touched(rig, t);
    kvt_push_close(t->push);
}

void case_cancel(void)
{
    struct rig rig = {0};
    struct transfer *t = &transfers[0];

    rig_init(&rig);
    draw_transfer(&rig, 1000, t);
    open_push(&rig, t, true); /* before the lease: nothing may have been written */
    compute_chunks(&rig, t, 300);
    end_cancelled(&rig, t, false);
    CHECK(target_host_touched_inside(rig.host, t->target_pages, t->tokens) == 0);

    open_push(&rig, t, true); /* while posting: the last layer never gets ready */
    lease_long(t);
    for (uint32_t layer = 0; layer + 1 < rig.layout.layer_count; layer++)
        kvt_push_ready(t->push, layer, t->tokens);
    end_cancelled(&rig, t, false);

    for (int i = 0; i < 10; i++) { /* after finish: either end is right, once */
        open_push(&rig, t, i % 2 == 0);
        lease_long(t);
        compute_chunks(&rig, t, 300);
        kvt_push_finish(t->push);
        end_cancelled(&rig, t, true);
    }
    target_host_fill(rig.host);
    push_once(&rig, t, true);
    rig_finish(&rig);
}

/* A push whose lease was renewed before its first end, which is returned. A host may be too slow
 * for the first that is tried. */
static int64_t renew_in_time(struct rig *rig, struct transfer *t)
{
    for (int64_t ms = 200;; ms *= 2) {
        open_push(rig, t, true);
        int64_t until_ns = bt_clock_now_ns() + ms * BT_NS_PER_MS;
        kvt_push_lease(t->push, until_ns);
        lease_long(t);
        if (bt_clock_now_ns() < until_ns)
            return until_ns;
        kvt_push_cancel(t->push);
        take_event(rig);
        kvt_push_close(t->push);
    }
}

void case_lease(void)
{
    struct rig rig = {0};
    struct transfer *t = &transfers[0];
    struct kvt_push_event event;
    int64_t until_ns;

    rig_init(&rig);
    draw_transfer(&rig, 500, t);
    open_push(&rig, t, true); /* a lease that is over when it comes */
    compute_chunks(&rig, t, 300);
    kvt_push_lease(t->push, bt_clock_now_ns() - 1);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_DEADLINE && event.quiesced);
    CHECK(event.bytes == 0 && event.writes == 0 && event.finish_ns == 0);
    CHECK(target_host_touched_inside(rig.host, t->target_pages, t->tokens) == 0);
    kvt_push_close(t->push);

    open_push(&rig, t, true); /* runs out half way; later work is not posted */
    kvt_push_lease(t->push, bt_clock_now_ns() + 100 * BT_NS_PER_MS);
    kvt_push_ready(t->push, 0, t->tokens);
    event = take_event(&rig);
    CHECK(event.status == BT_ERR_DEADLINE && event.quiesced);
    CHECK(event.bytes <= t->tokens * bt_kv_token_bytes(&rig.layout));
    kvt_push_finish(t->push);
    kvt_push_close(t->push);

    target_host_fill(rig.host);
    until_ns = renew_in_time(&rig, t); /* it goes on past the first end */
    while (bt_clock_now_ns() <= until_ns)
        poll(NULL, 0, 1);
    compute_chunks(&rig, t, 300);
    kvt_push_finish(t->push);
    event = take_event(&rig);
    check_arrived(&rig, t, &event);
    kvt_push_close(t->push);
    rig_finish(&rig);
}

void case_huge(void)
{
    struct rig rig = {
        .layout = {.layer_count = 2, .kv_lora_rank = 4, .qk_rope_head_dim = 4, .dtype = BT_BF16},
        .source_pages = 4200,
        .target_pages = 4500};
    struct transfer *t = &transfers[0];

    rig_init(&rig);
    t->tokens = 4000 * 64 - 7;
    for (uint32_t i = 0; i < 4000; i++) { /* no two are neighbours: a write a page */
        t->source_pages[i] = 4000 - i;
        t->target_pages[i] = (uint32_t)((uint64_t)i * 1009 % 4500);
    }
    push_once(&rig, t, true);
    for (uint32_t i = 0; i < 4000; i++) {
        t->source_pages[i] = 100 + i;
        t->target_pages[i] = 300 + i;
    }
    push_once(&rig, t, false);
    rig_finish(&rig);
}
