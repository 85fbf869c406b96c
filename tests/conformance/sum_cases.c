/* Sums that the target computes early, and those of several sources together. */
#include "tests/conformance/cases.h"

#include <poll.h>

#include "kvtransfer/checksum.h"
#include "tests/conformance/rig.h"

/* The pages of one prompt by `shares` sources, as by the ranks of a group: one incarnation, the
 * same bytes in a pool of each. The target has all of them, and what they sum adds up. */
static void push_in_shares(struct rig *rigs, uint32_t shares, uint32_t tokens)
{
    struct rig *rig = &rigs[0];
    uint64_t sum = 0, bytes = 0, expected;

    draw_transfer(rig, tokens, &transfers[0]);
    for (uint32_t i = 0; i < shares; i++) {
        transfers[i] = transfers[0];
        transfers[i].share = (struct kvt_share){.index = i, .count = shares};
        open_push(&rigs[i], &transfers[i], true);
        lease_long(&transfers[i]);
    }
    target_host_expect(rig->host, 12, transfers[0].target_pages, tokens);
    for (uint32_t i = 0; i < shares; i++) {
        compute_chunks(&rigs[i], &transfers[i], 300);
        kvt_push_finish(transfers[i].push);
        struct kvt_push_event event = take_event(&rigs[i]);
        for (int turn = 0; turn < 3; turn++) /* the target looks what it can sum */
            target_host_checksum(rig->host, transfers[0].target_pages, 1);
        CHECK(event.status == BT_OK && event.quiesced && event.user == &transfers[i]);
        sum += event.checksum;
        bytes += event.bytes;
    }
    expected = kvt_checksum_sequence(&rig->layout, kvt_source_pool(rig->source), rig->source_pages,
                                     transfers[0].source_pages, tokens);
    CHECK(sum == expected && bytes == transfer_bytes(rig, &transfers[0]));
    CHECK(target_host_verify(rig->host, 12, transfers[0].target_pages, tokens) == expected);
    CHECK(target_host_was_early(rig->host) == !target_on_device);
    CHECK(target_host_touched_outside(rig->host, transfers[0].target_pages, tokens) == 0);
    target_host_fill(rig->host);
    for (uint32_t i = 0; i < shares; i++)
        kvt_push_close(transfers[i].push);
    for (uint32_t i = 0; i < shares; i++)
        transfers[i].share = (struct kvt_share){0};
}

void case_shares(void)
{
    static const uint32_t counts[] = {2, 3, 4};
    struct rig rigs[4] = {0};

    rig_init(&rigs[0]);
    for (size_t i = 1; i < 4; i++) {
        rigs[i] = rigs[0];
        start_source(&rigs[i], SOURCE_INCARNATION);
        connect_target(&rigs[i]);
    }
    for (size_t i = 0; i < 3; i++) {
        push_in_shares(rigs, counts[i], 1 + draw(&rigs[0], 2000));
        push_in_shares(rigs, counts[i], 30); /* a page for the first share alone */
    }
    struct kvt_push_spec wrong = {.link = rigs[0].link,
                                  .source_pages = transfers[0].source_pages,
                                  .target_pages = transfers[0].target_pages,
                                  .prompt_tokens = 1,
                                  .share = {.index = 2, .count = 2}};
    struct kvt_push *push;
    CHECK(kvt_push_open(rigs[0].source, &wrong, NULL, &push) == BT_ERR_INVALID_ARGUMENT);
    for (size_t i = 1; i < 4; i++) {
        kvt_link_release(rigs[i].link);
        kvt_source_destroy(rigs[i].source);
    }
    rig_finish(&rigs[0]);
}

/* One push of which the target may sum what is there before the end; returns how many bytes it did.
 */
static uint64_t push_expected(struct rig *rig, struct transfer *t, bool layerwise)
{
    struct kvt_push_event event;
    uint64_t early_bytes;

    open_push(rig, t, layerwise);
    target_host_expect(rig->host, 12, t->target_pages, t->tokens);
    lease_long(t);
    compute_chunks(rig, t, 300);
    if (layerwise)
        while (target_host_touched_inside(rig->host, t->target_pages, t->tokens) == 0)
            poll(NULL, 0, 1);
    for (int turn = 0; turn < 3; turn++) /* the target looks what it can sum */
        target_host_checksum(rig->host, t->target_pages, 1);
    kvt_push_finish(t->push);
    event = take_event(rig);
    CHECK(event.status == BT_OK);
    CHECK(target_host_verify(rig->host, 12, t->target_pages, t->tokens) == event.checksum);
    CHECK(target_host_was_early(rig->host));
    early_bytes = target_host_early_bytes(rig->host);
    CHECK(target_host_verify(rig->host, 12, t->target_pages, t->tokens) == event.checksum);
    CHECK(!target_host_was_early(rig->host) && target_host_early_bytes(rig->host) == 0);
    kvt_push_close(t->push);
    target_host_fill(rig->host);
    return early_bytes;
}

/* What came early is summed early, once; the second time it is summed from the beginning. How much
 * of it was there in time depends on the host, but some of it is once. */
void case_early_sums(void)
{
    int64_t deadline_ns = bt_clock_now_ns() + 120 * BT_NS_PER_S;
    struct rig rig = {0};
    struct transfer *t = &transfers[0];
    uint64_t early_bytes = 0;

    rig_init(&rig);
    for (int i = 0; i < 6 || early_bytes == 0; i++) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        draw_transfer(&rig, 1 + draw(&rig, 3000), t);
        early_bytes += push_expected(&rig, t, i % 2 == 0);
    }
    rig_finish(&rig);
}
