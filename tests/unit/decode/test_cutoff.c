/* Cuts of several links, asked for by several messages: what waits for what. The target and the RPC
 * server are this file; the event of a cut comes when a test says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "decode-node/cutoff.h"

#define PEER  UINT64_C(9)
#define CALLS 8

/* ------------------------------------------------------------------ doubles */

static struct kvt_cut asked[2 * DC_MAX_CUTOFFS];
static uint32_t asked_count;
static enum bt_status target_says;

enum bt_status __wrap_kvt_target_cut(struct kvt_target *target, const struct kvt_cut *cut);
enum bt_status __wrap_kvt_target_cut(struct kvt_target *target, const struct kvt_cut *cut)
{
    assert_null(target);
    if (target_says != BT_OK) {
        return target_says;
    }
    assert_true(asked_count < 2 * DC_MAX_CUTOFFS);
    asked[asked_count++] = *cut;
    return BT_OK;
}

static char calls[CALLS]; /* their addresses are the calls */
static int ended[CALLS];  /* how often */
static enum bt_status end_status[CALLS];

static struct bt_rpc_call *call_at(int i)
{
    return (struct bt_rpc_call *)&calls[i];
}

void __wrap_bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                            const ProtobufCMessage *response);
void __wrap_bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                            const ProtobufCMessage *response)
{
    ptrdiff_t i = (char *)call - calls;
    assert_true(i >= 0 && i < CALLS);
    assert_true(status == BT_OK ? response != NULL : text != NULL);
    ended[i]++;
    end_status[i] = status;
}

/* ------------------------------------------------------------------ rig */

struct rig {
    struct bt_loop *loop;
    struct bt_page_pool *pages;
    struct kvt_landing_table *landings;
    struct dc_cutoffs *cutoffs;
    int done_count;
    uint64_t done_request;
};

static void on_freed(void *context)
{
    (void)context;
}

static void on_done(void *context, struct bt_rpc_call *call,
                    const Baton__V1__HandoffDoneRequest *message)
{
    struct rig *rig = context;
    Baton__V1__HandoffDoneResponse response = BATON__V1__HANDOFF_DONE_RESPONSE__INIT;
    rig->done_count++;
    rig->done_request = message->request_id;
    __wrap_bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void on_failed(void *context, const struct kvt_landing *landing, enum bt_status status,
                      const char *why)
{
    (void)context;
    (void)landing;
    (void)why;
    assert_int_equal(status, BT_ERR_CANCELLED);
}

static void rig_open(struct rig *rig)
{
    struct bt_error error;
    *rig = (struct rig){0};
    asked_count = 0;
    target_says = BT_OK;
    memset(ended, 0, sizeof(ended));
    rig->loop = bt_loop_create(&error);
    rig->pages = bt_page_pool_create(16);
    rig->landings = kvt_landing_table_create(rig->pages, 100, 3600 * BT_NS_PER_S, on_failed, NULL);
    const struct dc_cutoffs_options options = {.loop = rig->loop,
                                               .landings = rig->landings,
                                               .freed = on_freed,
                                               .handoff_done = on_done,
                                               .context = rig};
    rig->cutoffs = dc_cutoffs_create(&options);
    assert_non_null(rig->cutoffs);
}

static void rig_close(struct rig *rig)
{
    dc_cutoffs_destroy(rig->cutoffs);
    kvt_landing_table_destroy(rig->landings);
    bt_page_pool_destroy(rig->pages);
    bt_loop_destroy(rig->loop);
}

/* A landing of one page that PEER may write. */
static uint64_t land(struct rig *rig, uint64_t request)
{
    struct bt_error error;
    struct kvt_landing *landing;
    const struct bt_process_id process = {.host = "here", .pid = 1};
    assert_int_equal(
        kvt_landing_reserve(rig->landings, request, 1, 0, bt_clock_now_ns(), &error, &landing),
        BT_OK);
    assert_true(kvt_landing_lease(rig->landings, request, landing->epoch, PEER, &process,
                                  bt_clock_now_ns()));
    return landing->epoch;
}

static struct dc_cut_list list_of(uint32_t count, uint64_t first_link, uint64_t lines)
{
    struct dc_cut_list list = {.count = count};
    for (uint32_t i = 0; i < count; i++) {
        list.cuts[i] = (struct kvt_cut){PEER, first_link + i, lines};
    }
    return list;
}

static void made(struct rig *rig, uint64_t link)
{
    dc_cutoffs_disconnected(rig->cutoffs, PEER, link);
}

static uint32_t free_pages(const struct rig *rig)
{
    return bt_page_pool_count(rig->pages, BT_PAGE_FREE);
}

/* ------------------------------------------------------------------ tests */

static void test_what_a_message_may_name(void **state)
{
    (void)state;
    struct bt_error error;
    struct dc_cut_list list = {.count = 99};
    static Baton__V1__LinkCut cuts[KVT_WRITERS_MAX + 1];
    Baton__V1__LinkCut *messages[KVT_WRITERS_MAX + 1];
    for (uint32_t i = 0; i <= KVT_WRITERS_MAX; i++) {
        baton__v1__link_cut__init(&cuts[i]);
        cuts[i].link = i + 1;
        cuts[i].lines = UINT64_C(1) << i % 64;
        messages[i] = &cuts[i];
    }
    assert_int_equal(dc_cut_list_read(messages, KVT_WRITERS_MAX + 1, PEER, &error, &list),
                     BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "cuts"));
    assert_int_equal(list.count, 99);
    assert_int_equal(dc_cut_list_read(messages, KVT_WRITERS_MAX, PEER, &error, &list), BT_OK);
    assert_int_equal(list.count, KVT_WRITERS_MAX);
    assert_int_equal(list.cuts[63].incarnation, PEER);
    assert_int_equal(list.cuts[63].link, 64);
    assert_true(list.cuts[63].lines == UINT64_C(1) << 63);
    cuts[2].link = 1;
    assert_int_equal(dc_cut_list_read(messages, 3, PEER, &error, &list), BT_OK);
    assert_int_equal(list.count, 2);
    assert_int_equal(list.cuts[0].lines, 1 | 1 << 2);
    assert_int_equal(list.cuts[1].lines, 1 << 1);
    cuts[2].link = 0;
    assert_int_equal(dc_cut_list_read(messages, 3, PEER, &error, &list), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "cuts[2].link"));
    cuts[1].lines = 0;
    assert_int_equal(dc_cut_list_read(messages, 3, PEER, &error, &list), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "cuts[1].lines"));
    messages[0] = NULL;
    assert_int_equal(dc_cut_list_read(messages, 3, PEER, &error, &list), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(dc_cut_list_read(NULL, 0, PEER, &error, &list), BT_OK);
    assert_int_equal(list.count, 0);
}

/* Whatever the order in which the cuts are made, nothing counts before the last. */
static void test_all_of_several(void **state)
{
    (void)state;
    static const uint64_t orders[][3] = {{1, 2, 3}, {3, 2, 1}, {2, 1, 3}};
    for (int o = 0; o < 3; o++) {
        struct rig rig;
        struct dc_cut_list list = list_of(3, 1, 6);
        Baton__V1__HandoffDoneRequest done = BATON__V1__HANDOFF_DONE_REQUEST__INIT;
        rig_open(&rig);
        uint64_t epoch = land(&rig, 5);
        done.request_id = 77;
        dc_cutoffs_quiesced(rig.cutoffs, call_at(0), 5, epoch, &list);
        dc_cutoffs_handoff_done(rig.cutoffs, call_at(1), &done, &list);
        done.request_id = 0; /* it was copied */
        assert_int_equal(asked_count, 3);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(asked[i].link, i + 1);
            assert_int_equal(asked[i].lines, 6);
        }
        for (int i = 0; i < 3; i++) {
            assert_int_equal(ended[0], 0);
            assert_int_equal(free_pages(&rig), 15);
            made(&rig, orders[o][i]);
        }
        assert_int_equal(ended[0], 1);
        assert_int_equal(end_status[0], BT_OK);
        assert_int_equal(free_pages(&rig), 16);
        /* The second came when all three were under way: they are made once more for it. */
        assert_int_equal(asked_count, 6);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(rig.done_count, 0);
            made(&rig, orders[o][i]);
        }
        assert_int_equal(rig.done_count, 1);
        assert_int_equal(rig.done_request, 77);
        made(&rig, 1); /* nobody asked */
        assert_int_equal(asked_count, 6);
        assert_int_equal(ended[0] + ended[1], 2);
        rig_close(&rig);
    }
}

/* A link that two messages name is cut for both, with the lines of each. */
static void test_what_lists_share(void **state)
{
    (void)state;
    struct rig rig;
    struct dc_cut_list one = list_of(2, 1, 1), two = list_of(2, 2, 8), three = list_of(1, 2, 16);
    rig_open(&rig);
    uint64_t epochs[] = {land(&rig, 1), land(&rig, 2), land(&rig, 3)};
    dc_cutoffs_quiesced(rig.cutoffs, call_at(0), 1, epochs[0], &one);
    dc_cutoffs_quiesced(rig.cutoffs, call_at(1), 2, epochs[1], &two);
    dc_cutoffs_quiesced(rig.cutoffs, call_at(2), 3, epochs[2], &three);
    assert_int_equal(asked_count, 3); /* 1, 2 for the first, 3 for the second */
    made(&rig, 3);
    made(&rig, 1);
    assert_int_equal(ended[0] + ended[1] + ended[2], 0);
    made(&rig, 2);
    assert_int_equal(ended[0], 1);
    assert_int_equal(ended[1] + ended[2], 0);
    assert_int_equal(asked_count, 4);
    assert_int_equal(asked[3].link, 2);
    assert_int_equal(asked[3].lines, 8 | 16);
    made(&rig, 2);
    assert_int_equal(ended[1] + ended[2], 2);
    assert_int_equal(free_pages(&rig), 16);
    rig_close(&rig);
}

/* All or nothing: without a slot for each of its cuts a message begins none. */
static void test_no_slot_for_all(void **state)
{
    (void)state;
    struct rig rig;
    rig_open(&rig);
    uint64_t epoch = land(&rig, 1);
    uint64_t link = 1000;
    for (int i = 0; i < DC_MAX_CUTOFFS / KVT_WRITERS_MAX; i++) {
        struct dc_cut_list list = list_of(KVT_WRITERS_MAX - (i == 0), link, 1);
        link += list.count;
        dc_cutoffs_quiesced(rig.cutoffs, call_at(i), 50, 50, &list);
    }
    assert_int_equal(asked_count, DC_MAX_CUTOFFS - 1);
    struct dc_cut_list two = list_of(2, 1, 1);
    dc_cutoffs_quiesced(rig.cutoffs, call_at(6), 1, epoch, &two);
    assert_int_equal(ended[6], 1);
    assert_int_equal(end_status[6], BT_ERR_EXHAUSTED);
    assert_int_equal(asked_count, DC_MAX_CUTOFFS - 1);
    assert_int_equal(free_pages(&rig), 15);
    /* One of a link that is being cut already takes no slot. */
    two.cuts[1].link = 1000;
    dc_cutoffs_quiesced(rig.cutoffs, call_at(7), 1, epoch, &two);
    assert_int_equal(asked_count, DC_MAX_CUTOFFS);
    made(&rig, 1);
    made(&rig, 1000); /* the one that was under way */
    assert_int_equal(ended[7], 0);
    made(&rig, 1000);
    assert_int_equal(ended[7], 1);
    assert_int_equal(end_status[7], BT_OK);
    assert_int_equal(free_pages(&rig), 16);
    rig_close(&rig); /* calls that wait are the server's */
}

/* A target that takes no more jobs: the call ends, and may come again. */
static void test_the_target_takes_no_more(void **state)
{
    (void)state;
    struct rig rig;
    struct dc_cut_list one = list_of(1, 1, 1), three = list_of(3, 1, 2);
    rig_open(&rig);
    uint64_t epoch = land(&rig, 1);
    dc_cutoffs_quiesced(rig.cutoffs, call_at(0), 50, 50, &one);
    target_says = BT_ERR_EXHAUSTED;
    dc_cutoffs_quiesced(rig.cutoffs, call_at(1), 1, epoch, &three); /* 1 is under way, 2 fails */
    assert_int_equal(ended[1], 1);
    assert_int_equal(end_status[1], BT_ERR_EXHAUSTED);
    target_says = BT_OK;
    made(&rig, 1);
    assert_int_equal(ended[0], 1);
    assert_int_equal(asked_count, 1); /* nobody waits for another */

    dc_cutoffs_quiesced(rig.cutoffs, call_at(2), 1, epoch, &three);
    dc_cutoffs_quiesced(rig.cutoffs, call_at(3), 1, epoch, &three);
    target_says = BT_ERR_EXHAUSTED; /* when link 1 has to be cut once more for the second */
    made(&rig, 1);
    assert_int_equal(ended[3], 1);
    assert_int_equal(end_status[3], BT_ERR_EXHAUSTED);
    target_says = BT_OK;
    made(&rig, 2);
    assert_int_equal(free_pages(&rig), 15);
    made(&rig, 3);
    assert_int_equal(ended[2], 1);
    assert_int_equal(end_status[2], BT_OK);
    assert_int_equal(free_pages(&rig), 16);
    assert_int_equal(ended[3], 1);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_a_message_may_name),  cmocka_unit_test(test_all_of_several),
        cmocka_unit_test(test_what_lists_share),         cmocka_unit_test(test_no_slot_for_all),
        cmocka_unit_test(test_the_target_takes_no_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
