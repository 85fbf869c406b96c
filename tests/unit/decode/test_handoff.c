/* From Reserve to the last token between a real prefill worker and a real decode rank. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/model/safetensors.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/target.h"
#include "tests/unit/decode/cluster.h"
#include "tests/unit/decode/gate.h"

/* ids and greedy continuation of a golden prompt */
struct golden {
    struct bt_safetensors *file;
    const uint32_t *ids, *greedy;
    uint32_t id_count, greedy_count;
};

static void golden_open(struct golden *golden, const char *name)
{
    struct bt_error error = {0};
    char path[512];
    snprintf(path, sizeof(path), TINY_MODEL "/golden/%s.safetensors", name);
    if (bt_safetensors_open_file(path, &error, &golden->file) != BT_OK) {
        fail_msg("%s", error.text);
    }
    const struct bt_tensor *ids = bt_safetensors_find(golden->file, "ids");
    const struct bt_tensor *greedy = bt_safetensors_find(golden->file, "greedy");
    golden->ids = ids->data;
    golden->id_count = (uint32_t)ids->dims[0];
    golden->greedy = greedy->data;
    golden->greedy_count = (uint32_t)greedy->dims[0];
}

static void expect_golden(const struct golden *golden, const struct attempt *attempt)
{
    assert_int_equal(attempt->run_status, BT_OK);
    assert_true(attempt->handed_off);
    assert_int_equal(attempt->finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(attempt->first_token, golden->greedy[0]);
    assert_int_equal(attempt->token_count, golden->greedy_count);
    assert_memory_equal(attempt->tokens, golden->greedy, golden->greedy_count * sizeof(uint32_t));
}

static void run_goldens(uint32_t layerwise_threshold, const char *transport)
{
    static const char *const names[] = {"short", "recall-150", "chat-recall-600", "story"};
    struct golden goldens[4];
    struct attempt attempts[4];
    struct cluster cluster;
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    prefill.layerwise_threshold = layerwise_threshold;
    prefill.transport = decode.transport = transport;
    cluster_open(&cluster, &prefill, &decode);
    for (int i = 0; i < 4; i++) {
        golden_open(&goldens[i], names[i]);
        attempt_init(&attempts[i], (uint64_t)i + 1, goldens[i].ids, goldens[i].id_count,
                     goldens[i].greedy_count);
        assert_int_equal(cluster_reserve(&cluster, &attempts[i]), BT_OK);
        cluster_run(&cluster, &attempts[i]);
    }
    for (int i = 0; i < 4; i++) {
        cluster_until(&cluster, attempts[i].run_ended && attempts[i].finish != 0);
        expect_golden(&goldens[i], &attempts[i]);
    }
    cluster_close(&cluster);
    for (int i = 0; i < 4; i++) {
        bt_safetensors_close(goldens[i].file);
    }
}

static void test_goldens_layer_by_layer(void **state)
{
    (void)state;
    run_goldens(0, "auto");
}

static void test_goldens_as_a_whole_over_tcp(void **state)
{
    (void)state;
    run_goldens(8192, "tcp");
}

/* ------------------------------------------------------------------ cancel */

enum moment { RESERVED, AT_ONCE, STARTED, FIRST_TOKEN, HANDED_OFF, DECODING, MOMENTS };

static bool moment_reached(enum moment moment, const struct attempt *attempt)
{
    switch (moment) {
    case STARTED:
        return attempt->started;
    case FIRST_TOKEN:
        return attempt->first_token >= 0;
    case HANDED_OFF:
        return attempt->handed_off;
    case DECODING:
        return attempt->token_count >= 5;
    default:
        return true;
    }
}

/* As a router does it: both sides are told, in either order. */
static void cancel_both(struct cluster *cluster, struct attempt *attempt, bool decode_first)
{
    if (decode_first) {
        assert_int_equal(cluster_cancel(cluster, attempt->request, attempt->epoch), BT_OK);
    }
    if (attempt->run) {
        bt_rpc_pending_cancel(attempt->run);
    }
    if (!decode_first) {
        assert_int_equal(cluster_cancel(cluster, attempt->request, attempt->epoch), BT_OK);
    }
}

static void test_cancel_at_every_moment_frees_every_page(void **state)
{
    (void)state;
    struct golden golden;
    golden_open(&golden, "chat-recall-600");
    struct cluster cluster;
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    cluster_open(&cluster, &prefill, &decode);
    struct attempt attempts[MOMENTS * 2];
    for (int i = 0; i < MOMENTS * 2; i++) {
        struct attempt *attempt = &attempts[i];
        attempt_init(attempt, (uint64_t)i + 1, golden.ids, golden.id_count, 400);
        assert_int_equal(cluster_reserve(&cluster, attempt), BT_OK);
        if (i / 2 != RESERVED) {
            cluster_run(&cluster, attempt);
        }
        cluster_until(&cluster, moment_reached(i / 2, attempt));
        cancel_both(&cluster, attempt, i % 2);
        cluster_until(&cluster, i / 2 == RESERVED || attempt->run_ended);
        cluster_until(&cluster, pf_worker_free_pages(cluster.prefill) == prefill.kv_pages &&
                                    dc_worker_free_pages(cluster.decode) == decode.kv_pages);
        assert_int_equal(dc_worker_requests(cluster.decode), 0);
    }
    cluster_close(&cluster);
    bt_safetensors_close(golden.file);
}

static void test_a_router_that_leaves_takes_its_requests_along(void **state)
{
    (void)state;
    struct golden golden;
    golden_open(&golden, "story");
    struct cluster cluster;
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    cluster_open(&cluster, &prefill, &decode);
    struct attempt running, reserved, late;
    attempt_init(&running, 1, golden.ids, golden.id_count, 400);
    attempt_init(&reserved, 2, golden.ids, golden.id_count, 400);
    attempt_init(&late, 3, golden.ids, golden.id_count, 400);
    assert_int_equal(cluster_reserve(&cluster, &running), BT_OK);
    assert_int_equal(cluster_reserve(&cluster, &reserved), BT_OK);
    cluster_run(&cluster, &running);
    cluster_until(&cluster, running.token_count > 2);
    bt_rpc_pending_cancel(cluster.steps);
    cluster_until(&cluster, cluster.steps_ended);
    cluster_until(&cluster, dc_worker_free_pages(cluster.decode) == decode.kv_pages);
    /* Nobody would hear its tokens. */
    assert_int_equal(cluster_reserve(&cluster, &late), BT_ERR_STALE);
    cluster_subscribe(&cluster);
    assert_int_equal(cluster_reserve(&cluster, &late), BT_OK);
    assert_int_equal(cluster_cancel(&cluster, 3, 0), BT_OK);
    cluster_close(&cluster);
    bt_safetensors_close(golden.file);
}

/* ------------------------------------------------------------------ the protocol, played by hand
 */

static void fake_init(struct fake_prefill *fake)
{
    struct bt_error error;
    fake->incarnation = 4711;
    assert_int_equal(bt_process_self(&error, &fake->process), BT_OK);
}

/* The checksum of pages that nobody wrote: a fresh pool is zero. */
static uint64_t checksum_of_zeros(const struct cluster *cluster, uint32_t tokens)
{
    struct bt_kv_layout layout = bt_model_kv_layout(cluster->model, BT_F32);
    uint32_t page_count = bt_kv_pages_for(tokens);
    void *pool = calloc(1, bt_kv_pool_bytes(&layout, page_count));
    uint32_t pages[64];
    for (uint32_t i = 0; i < page_count; i++) {
        pages[i] = i;
    }
    uint64_t checksum = kvt_checksum_sequence(&layout, pool, page_count, pages, tokens);
    free(pool);
    return checksum;
}

struct done {
    Baton__V1__HandoffDoneRequest message;
    Baton__V1__Token token;
};

static void done_init(struct done *done, const struct cluster *cluster,
                      const struct attempt *attempt)
{
    baton__v1__handoff_done_request__init(&done->message);
    baton__v1__token__init(&done->token);
    done->message.request_id = attempt->request;
    done->message.epoch = attempt->epoch;
    done->message.prompt_tokens = attempt->prompt_tokens;
    done->message.page_count = bt_kv_pages_for(attempt->prompt_tokens);
    done->message.has_checksum = true;
    done->message.checksum = checksum_of_zeros(cluster, attempt->prompt_tokens);
    done->message.first_token = &done->token;
    done->token.token = 5;
}

static enum bt_status done_send(struct cluster *cluster, struct done *done)
{
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/HandoffDone",
                        &done->message.base, NULL, NULL);
}

struct cuts {
    Baton__V1__LinkCut cuts[3];
    Baton__V1__LinkCut *list[3];
};

/* One line, one that is not there, all lines of another link. */
static void cuts_init(struct cuts *cuts)
{
    for (int i = 0; i < 3; i++) {
        baton__v1__link_cut__init(&cuts->cuts[i]);
        cuts->list[i] = &cuts->cuts[i];
        cuts->cuts[i].link = i == 2 ? 8 : 7;
    }
    cuts->cuts[0].lines = UINT64_C(1) << 1;
    cuts->cuts[1].lines = UINT64_C(1) << 63;
    cuts->cuts[2].lines = UINT64_MAX;
}

static void open_by_hand(struct cluster *cluster, struct dc_worker_options *decode)
{
    struct pf_worker_options prefill = cluster_prefill_options();
    prefill.kv_pages = 8;
    cluster_open(cluster, &prefill, decode);
}

static const uint32_t hand_prompt[100] = {0};

static void test_a_wrong_checksum_is_refused(void **state)
{
    (void)state;
    struct cluster cluster;
    struct dc_worker_options decode = cluster_decode_options();
    struct fake_prefill fake;
    struct attempt attempt;
    struct done done;
    open_by_hand(&cluster, &decode);
    fake_init(&fake);
    attempt_init(&attempt, 9, hand_prompt, 100, 20);
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_OK);
    assert_true(cluster_lease(&cluster, &fake, 9, attempt.epoch));
    done_init(&done, &cluster, &attempt);
    done.message.checksum ^= 1;
    assert_int_equal(done_send(&cluster, &done), BT_ERR_CORRUPT);
    cluster_until(&cluster, attempt.finish == BATON__V1__FINISH_REASON__FINISH_ERROR);
    assert_int_equal(attempt.token_count, 0);
    assert_int_equal(dc_worker_free_pages(cluster.decode), decode.kv_pages);
    /* And the right one comes too late. */
    done.message.checksum ^= 1;
    assert_int_equal(done_send(&cluster, &done), BT_ERR_STALE);
    cluster_close(&cluster);
}

static enum bt_status no_sum; /* what the target says instead of computing one; OK: nothing */

enum bt_status __real_kvt_target_checksum(struct kvt_target *target, uint64_t request,
                                          uint64_t epoch, const uint32_t *pages, uint32_t tokens);
enum bt_status __wrap_kvt_target_checksum(struct kvt_target *target, uint64_t request,
                                          uint64_t epoch, const uint32_t *pages, uint32_t tokens);
/* What was summed early is thrown away by this. */
static uint64_t forgotten_epoch;
static bool summed_anew; /* the last sum was asked for after its epoch was forgotten */

void __real_kvt_target_forget(struct kvt_target *target, uint64_t epoch);
void __wrap_kvt_target_forget(struct kvt_target *target, uint64_t epoch);
void __wrap_kvt_target_forget(struct kvt_target *target, uint64_t epoch)
{
    forgotten_epoch = epoch;
    __real_kvt_target_forget(target, epoch);
}

enum bt_status __wrap_kvt_target_checksum(struct kvt_target *target, uint64_t request,
                                          uint64_t epoch, const uint32_t *pages, uint32_t tokens)
{
    summed_anew = forgotten_epoch == epoch;
    return no_sum != BT_OK ? no_sum
                           : __real_kvt_target_checksum(target, request, epoch, pages, tokens);
}

/* Rule 6: nothing is READY without a sum; and a sum that there is none of is no wrong one. */
static void test_a_checksum_that_can_not_be_computed(void **state)
{
    (void)state;
    static const enum bt_status reasons[] = {BT_ERR_NO_MEMORY, BT_ERR_EXHAUSTED};
    struct cluster cluster;
    struct dc_worker_options decode = cluster_decode_options();
    struct fake_prefill fake;
    struct attempt attempts[2];
    struct done done;
    open_by_hand(&cluster, &decode);
    fake_init(&fake);
    for (int i = 0; i < 2; i++) {
        attempt_init(&attempts[i], 9, hand_prompt, 100, 20);
        assert_int_equal(cluster_reserve(&cluster, &attempts[i]), BT_OK);
        assert_true(cluster_lease(&cluster, &fake, 9, attempts[i].epoch));
        done_init(&done, &cluster, &attempts[i]);
        no_sum = reasons[i];
        assert_int_equal(done_send(&cluster, &done), reasons[i]);
        no_sum = BT_OK;
        cluster_until(&cluster, attempts[i].finish == BATON__V1__FINISH_REASON__FINISH_ERROR);
        assert_int_equal(attempts[i].token_count, 0);
        assert_int_equal(dc_worker_free_pages(cluster.decode), decode.kv_pages);
        assert_int_equal(done_send(&cluster, &done), BT_ERR_STALE);
    }
    cluster_close(&cluster);
}

static void test_done_again_and_again(void **state)
{
    (void)state;
    struct cluster cluster;
    struct dc_worker_options decode = cluster_decode_options();
    struct fake_prefill fake;
    struct attempt attempt;
    struct done done;
    open_by_hand(&cluster, &decode);
    fake_init(&fake);
    attempt_init(&attempt, 9, hand_prompt, 100, 500);
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_OK);
    done_init(&done, &cluster, &attempt);
    /* Nothing may have been written without a lease. */
    assert_int_equal(done_send(&cluster, &done), BT_ERR_PROTOCOL);
    assert_true(cluster_lease(&cluster, &fake, 9, attempt.epoch));
    done.message.has_checksum = false;
    assert_int_equal(done_send(&cluster, &done), BT_ERR_INVALID_ARGUMENT);
    done.message.has_checksum = true;
    decode_gate(100); /* of 500 */
    assert_int_equal(done_send(&cluster, &done), BT_OK);
    assert_int_equal(done_send(&cluster, &done), BT_OK);
    /* Quiesced and Lease come late: the pages stay the sequence's. */
    assert_int_equal(cluster_quiesced(&cluster, &fake, 9, attempt.epoch, false), BT_OK);
    cluster_until(&cluster, attempt.token_count > 3);
    assert_int_equal(attempt.tokens[0], 5);
    assert_int_equal(dc_worker_requests(cluster.decode), 1);
    done.message.epoch++;
    assert_int_equal(done_send(&cluster, &done), BT_ERR_STALE);
    done.message.epoch--;
    assert_int_equal(cluster_cancel(&cluster, 9, attempt.epoch + 1), BT_OK);
    decode_gate(GATE_OPEN);
    cluster_until(&cluster, attempt.finish != 0);
    assert_int_equal(attempt.finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(attempt.token_count, 500);
    assert_int_equal(done_send(&cluster, &done), BT_ERR_STALE);
    assert_false(cluster_lease(&cluster, &fake, 9, attempt.epoch));
    assert_int_equal(cluster_quiesced(&cluster, &fake, 9, attempt.epoch, false), BT_OK);
    cluster_close(&cluster);
}

/* Links and lines that failed under the push are cut off first; whatever the masks say, nothing is
 * lost. */
static void test_done_after_a_cut(void **state)
{
    (void)state;
    struct cluster cluster;
    struct dc_worker_options decode = cluster_decode_options();
    struct fake_prefill fake;
    struct attempt attempts[2];
    struct done done;
    open_by_hand(&cluster, &decode);
    fake_init(&fake);
    attempt_init(&attempts[0], 9, hand_prompt, 100, 500);
    assert_int_equal(cluster_reserve(&cluster, &attempts[0]), BT_OK);
    done_init(&done, &cluster, &attempts[0]);
    struct cuts cuts;
    cuts_init(&cuts);
    done.message.cuts = cuts.list;
    done.message.n_cuts = 1;
    assert_int_equal(done_send(&cluster, &done), BT_ERR_PROTOCOL); /* nobody to cut off */
    assert_true(cluster_lease(&cluster, &fake, 9, attempts[0].epoch));
    done.message.has_checksum = false; /* what is asked for after the cut is checked as ever */
    assert_int_equal(done_send(&cluster, &done), BT_ERR_INVALID_ARGUMENT);
    done.message.has_checksum = true;
    decode_gate(100); /* of 500 */
    assert_int_equal(done_send(&cluster, &done), BT_OK);
    assert_true(summed_anew); /* pages may have been written between an early sum and the cut */
    done.message.n_cuts = 3;  /* once more, and what is not there */
    assert_int_equal(done_send(&cluster, &done), BT_OK);
    cluster_until(&cluster, attempts[0].token_count > 3);
    assert_int_equal(attempts[0].tokens[0], 5);

    attempt_init(&attempts[1], 10, hand_prompt, 64, 64);
    assert_int_equal(cluster_reserve(&cluster, &attempts[1]), BT_OK);
    assert_true(cluster_lease(&cluster, &fake, 10, attempts[1].epoch));
    Baton__V1__QuiescedRequest quiesced = BATON__V1__QUIESCED_REQUEST__INIT;
    quiesced.request_id = 10;
    quiesced.epoch = attempts[1].epoch;
    quiesced.incarnation = fake.incarnation;
    quiesced.cuts = cuts.list;
    quiesced.n_cuts = 3;
    cuts.cuts[2].link = 0;
    assert_int_equal(cluster_call(&cluster, cluster.to_decode, "baton.v1.Decode/Quiesced",
                                  &quiesced.base, NULL, NULL),
                     BT_ERR_INVALID_ARGUMENT);
    cuts.cuts[2].link = 7;
    assert_int_equal(cluster_call(&cluster, cluster.to_decode, "baton.v1.Decode/Quiesced",
                                  &quiesced.base, NULL, NULL),
                     BT_OK);
    decode_gate(GATE_OPEN);
    cluster_until(&cluster, attempts[0].finish != 0);
    assert_int_equal(attempts[0].token_count, 500);
    cluster_until(&cluster, dc_worker_free_pages(cluster.decode) == decode.kv_pages);
    cluster_close(&cluster);
}

static void test_first_token_may_be_the_last(void **state)
{
    (void)state;
    struct cluster cluster;
    struct dc_worker_options decode = cluster_decode_options();
    struct fake_prefill fake;
    struct attempt attempts[2];
    struct done done;
    open_by_hand(&cluster, &decode);
    fake_init(&fake);
    attempt_init(&attempts[0], 1, hand_prompt, 64, 1);
    attempt_init(&attempts[1], 2, hand_prompt, 65, 50);
    attempts[1].sampling.ignore_eos = false;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cluster_reserve(&cluster, &attempts[i]), BT_OK);
        assert_true(cluster_lease(&cluster, &fake, attempts[i].request, attempts[i].epoch));
        done_init(&done, &cluster, &attempts[i]);
        done.token.token = i == 1 ? cluster.model->config.eos_token_ids[0] : 5;
        assert_int_equal(done_send(&cluster, &done), BT_OK);
        cluster_until(&cluster, attempts[i].finish != 0);
        assert_int_equal(attempts[i].token_count, 1);
    }
    assert_int_equal(attempts[0].finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(attempts[1].finish, BATON__V1__FINISH_REASON__FINISH_STOP);
    cluster_close(&cluster);
}

#define LEASE_MS 600000 /* it runs out when the test says so */

static _Atomic int64_t later_ns; /* that the clock is ahead */

int64_t __real_bt_clock_now_ns(void);
int64_t __wrap_bt_clock_now_ns(void);
int64_t __wrap_bt_clock_now_ns(void)
{
    return __real_bt_clock_now_ns() + later_ns;
}

/* Pages that somebody may still write stay out of use until he says that he does not, or is cut
 * off. */
static void test_quarantine_ends_with_quiesced_only(void **state)
{
    (void)state;
    struct cluster cluster;
    struct dc_worker_options decode = cluster_decode_options();
    struct fake_prefill fake;
    struct attempt attempts[3];
    decode.lease_ms = LEASE_MS;
    open_by_hand(&cluster, &decode);
    fake_init(&fake);
    for (int i = 0; i < 3; i++) {
        attempt_init(&attempts[i], (uint64_t)i + 1, hand_prompt, 64, 64);
        assert_int_equal(cluster_reserve(&cluster, &attempts[i]), BT_OK);
        assert_true(cluster_lease(&cluster, &fake, attempts[i].request, attempts[i].epoch));
    }
    /* The first by cancel, the others by expiry. */
    assert_int_equal(cluster_cancel(&cluster, 1, 0), BT_OK);
    cluster_until(&cluster, dc_worker_requests(cluster.decode) == 2);
    assert_int_equal(dc_worker_free_pages(cluster.decode), decode.kv_pages - 6);
    later_ns += LEASE_MS * BT_NS_PER_MS;
    cluster_until(&cluster, attempts[1].finish != 0 && attempts[2].finish != 0);
    assert_int_equal(attempts[1].finish, BATON__V1__FINISH_REASON__FINISH_ERROR);
    assert_int_equal(attempts[2].finish, BATON__V1__FINISH_REASON__FINISH_ERROR);
    assert_int_equal(dc_worker_requests(cluster.decode), 0);
    assert_int_equal(dc_worker_free_pages(cluster.decode), decode.kv_pages - 6);
    assert_false(cluster_lease(&cluster, &fake, 2, attempts[1].epoch));
    /* Another worker can not speak for the one that held the lease. */
    struct fake_prefill other = fake;
    other.incarnation++;
    assert_int_equal(cluster_quiesced(&cluster, &other, 1, attempts[0].epoch, false), BT_ERR_STALE);
    assert_int_equal(cluster_quiesced(&cluster, &fake, 1, attempts[0].epoch, false), BT_OK);
    assert_int_equal(cluster_quiesced(&cluster, &fake, 2, attempts[1].epoch, true), BT_OK);
    assert_int_equal(dc_worker_free_pages(cluster.decode), decode.kv_pages - 2);
    assert_int_equal(cluster_quiesced(&cluster, &fake, 3, attempts[2].epoch, false), BT_OK);
    assert_int_equal(cluster_quiesced(&cluster, &fake, 3, attempts[2].epoch, false), BT_OK);
    cluster_close(&cluster);
}

static void test_the_dead_write_no_more(void **state)
{
    (void)state;
    struct cluster cluster;
    struct dc_worker_options decode = cluster_decode_options();
    struct fake_prefill fake;
    struct attempt attempt;
    open_by_hand(&cluster, &decode);
    fake_init(&fake);
    attempt_init(&attempt, 1, hand_prompt, 64, 64);
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_OK);
    /* A process that was: its pid with another start time is nobody's. */
    fake.process.start_ticks++;
    assert_true(cluster_lease(&cluster, &fake, 1, attempt.epoch));
    assert_int_equal(dc_worker_free_pages(cluster.decode), decode.kv_pages - 2);
    cluster_until(&cluster, dc_worker_free_pages(cluster.decode) == decode.kv_pages);
    cluster_until(&cluster, attempt.finish == BATON__V1__FINISH_REASON__FINISH_ERROR);
    cluster_close(&cluster);
}

/* ------------------------------------------------------------------ pages run out */

static void test_preemption_gives_pages_to_the_eldest(void **state)
{
    (void)state;
    struct golden golden;
    golden_open(&golden, "short");
    struct cluster cluster;
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    decode.kv_pages = 16;
    decode.expected_output_tokens = 32;
    cluster_open(&cluster, &prefill, &decode);
    /* The first two start with a page each and need all eight that the third, which has all it
     * needs, leaves: one of them has to give way, and not the third, which is the youngest.
     * Nobody draws before all of them are there. */
    struct attempt attempts[3];
    for (int i = 0; i < 3; i++) {
        attempt_init(&attempts[i], (uint64_t)i + 1, golden.ids, golden.id_count,
                     i == 2 ? 470 : 490);
        attempts[i].full = i == 2;
        assert_int_equal(cluster_reserve(&cluster, &attempts[i]), BT_OK);
    }
    decode_gate(0);
    for (int i = 0; i < 3; i++) {
        cluster_run(&cluster, &attempts[i]);
        cluster_until(&cluster, attempts[i].run_ended);
        assert_int_equal(attempts[i].run_status, BT_OK);
    }
    decode_gate(GATE_OPEN);
    for (int i = 0; i < 3; i++) {
        cluster_until(&cluster, attempts[i].finish != 0);
    }
    assert_int_equal(attempts[0].finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(attempts[0].token_count, 490);
    assert_int_equal(attempts[1].finish, BATON__V1__FINISH_REASON__FINISH_PREEMPTED);
    assert_int_equal(attempts[2].finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(attempts[2].token_count, 470);
    /* What was generated until then is the same. */
    for (int i = 1; i < 3; i++) {
        assert_memory_equal(attempts[i].tokens, attempts[0].tokens,
                            attempts[i].token_count * sizeof(uint32_t));
    }
    assert_memory_equal(attempts[0].tokens, golden.greedy, 64 * sizeof(uint32_t));
    cluster_close(&cluster);
    bt_safetensors_close(golden.file);
}

int main(int argc, char **argv)
{
    bt_log_init("test", BT_LOG_ERROR);
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens_layer_by_layer),
        cmocka_unit_test(test_goldens_as_a_whole_over_tcp),
        cmocka_unit_test(test_cancel_at_every_moment_frees_every_page),
        cmocka_unit_test(test_a_router_that_leaves_takes_its_requests_along),
        cmocka_unit_test(test_a_wrong_checksum_is_refused),
        cmocka_unit_test(test_a_checksum_that_can_not_be_computed),
        cmocka_unit_test(test_done_again_and_again),
        cmocka_unit_test(test_done_after_a_cut),
        cmocka_unit_test(test_first_token_may_be_the_last),
        cmocka_unit_test(test_quarantine_ends_with_quiesced_only),
        cmocka_unit_test(test_the_dead_write_no_more),
        cmocka_unit_test(test_preemption_gives_pages_to_the_eldest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
