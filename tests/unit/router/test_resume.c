/* Requests by name: taken over from connections, and from ranks whose router is gone. */
#include "common/base/random.h"
#include "router/service_admit.h"
#include "tests/unit/router/service_driver.h"

static struct rt_generation named(const char *name, uint32_t max_tokens)
{
    struct rt_generation g = generation(max_tokens);
    g.request_id = name;
    g.named = true;
    return g;
}

static struct rt_digest key_of(const struct rt_generation *g)
{
    struct rt_digest key;
    assert_true(rt_request_key(rt_generation_tenant(g), g, &g->sampling, &key));
    return key;
}

static uint64_t id_of(const struct rt_generation *g)
{
    struct rt_digest key = key_of(g);
    return rt_request_number(&key);
}

/* The rank says in a heartbeat that it goes on with this. */
static void tell_orphan(struct fake_worker *worker, uint64_t id, uint64_t epoch,
                        struct rt_digest key)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    load.pages_total = load.pages_free = 100;
    Baton__V1__Orphan orphan = BATON__V1__ORPHAN__INIT;
    Baton__V1__Orphan *orphans[] = {&orphan};
    orphan.request_id = id;
    orphan.epoch = epoch;
    orphan.resume_key = (ProtobufCBinaryData){sizeof key.bytes, key.bytes};
    Baton__V1__HeartbeatRequest request = BATON__V1__HEARTBEAT_REQUEST__INIT;
    request.worker_id = worker->id;
    request.incarnation = worker->incarnation;
    request.load = &load;
    request.n_orphans = 1;
    request.orphans = orphans;
    assert_int_equal(call("baton.v1.Registry/Heartbeat", &request.base,
                          &baton__v1__heartbeat_response__descriptor),
                     BT_OK);
}

/* The bytes of the script's tokens from `first` on. */
static const char *text_from(uint32_t first)
{
    size_t bytes = 0, size;
    for (uint32_t i = 0; i < first; i++) {
        bt_tokenizer_bytes(rt_service_tokenizer(service), script.ids[i], &size);
        bytes += size;
    }
    return script_text + bytes;
}

static void check_text(const struct seen *seen, const char *text)
{
    assert_int_equal(seen->size, strlen(text));
    assert_memory_equal(seen->text, text, seen->size);
}

static void on_any_output(void *context, const char *text, size_t size,
                          const Baton__V1__Token *tokens, size_t token_count)
{
    (void)tokens;
    struct seen *seen = context;
    assert_false(seen->ended);
    memcpy(seen->text + seen->size, text, size);
    seen->size += size;
    seen->token_count += (uint32_t)token_count;
}

/* As submit_to, for tokens that come without logprobs. */
static enum bt_status come(struct seen *seen, const struct rt_generation *g, struct bt_error *error)
{
    struct rt_sink sink = {.context = seen, .on_output = on_any_output, .on_end = on_end};
    *seen = (struct seen){0};
    return rt_service_submit(service, g, &sink, error, &seen->request);
}

static void join_both(void)
{
    join(&p0, "p0", false);
    join(&d0, "d0", true);
}

/* ---- orphans */

static void test_taken_over_from_a_rank(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    struct rt_generation g = named("mine", count);
    join_both();
    tell_orphan(&d0, id_of(&g), 77, key_of(&g));
    assert_int_equal(rt_orphans_count(service->orphans), 1);
    g.resume_tokens = 3;
    assert_int_equal(come(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(d0.adopt_count == 1);
    assert_memory_equal(d0.adopt_key, key_of(&g).bytes, 32);
    assert_int_equal(rt_orphans_count(service->orphans), 0);
    d0.passes_on = 4 + 1;
    fake_decode_step(&d0, 0, count - 1, 0);
    RUN_UNTIL(seen.token_count == count - 1);
    tell_orphan(&d0, id_of(&g), 77, key_of(&g)); /* it was on its way */
    fake_decode_step(&d0, count - 1, 1, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_text(&seen, text_from(3));
    assert_int_equal(seen.result.completion_tokens, count);
    assert_int_equal(p0.run_count, 0);
    /* What another router's prefill worker did is told to the client, and is not our count. */
    assert_int_equal(seen.result.cached_tokens, 4);
    assert_string_equal(seen.transport, "shm");
    assert_int_equal(bt_counter_value(service->metrics.prefix_queries), 0);
    SETTLE();
    assert_int_equal(d0.cancel_count, 0);
}

static void test_a_rank_that_has_it_no_more(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    struct rt_generation g = named("mine", count);
    join_both();
    tell_orphan(&d0, id_of(&g), 77, key_of(&g));
    d0.refuse_adopt = BT_ERR_NOT_FOUND;
    assert_int_equal(come(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    assert_int_equal(d0.adopt_count, 1);
    assert_int_equal(d0.reserve_key_size, 32);
    assert_memory_equal(d0.reserve_key, key_of(&g).bytes, 32);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_text(&seen, script_text);
}

/* Nobody sees what another request had. */
static void test_another_key_gets_nothing(void **state)
{
    (void)state;
    static struct seen seen;
    struct rt_generation g = named("mine", 8), other = named("mine", 9);
    join_both();
    tell_orphan(&d0, id_of(&g), 77, key_of(&other)); /* as if both had one number */
    assert_int_equal(come(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    assert_int_equal(d0.adopt_count, 0);
    RUN_UNTIL(d0.cancel_count == 1);
    assert_int_equal(d0.cancels[0].epoch, 77);
    assert_false(d0.held[0].cancelled);
}

static void test_orphan_of_what_runs_already_is_ended(void **state)
{
    (void)state;
    static struct seen seen;
    struct rt_generation g = named("mine", 8);
    join_both();
    assert_int_equal(come(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    tell_orphan(&d0, id_of(&g), 77, key_of(&g));
    RUN_UNTIL(d0.cancel_count == 1);
    assert_int_equal(d0.cancels[0].epoch, 77);
    assert_false(d0.held[0].cancelled);
}

/* Of each part of what decides the answer, and of who asks. */
static void test_keys_and_numbers(void **state)
{
    (void)state;
    struct rt_generation g = named("mine", 8), other = g;
    const char *stop[] = {"a", "b"}, *joined[] = {"ab"};
    struct rt_digest key = key_of(&g), another = key_of(&other);
    assert_true(rt_digest_equal(&key, &another));
    uint64_t id = id_of(&g);
#define DIFFERS(change)                                                                            \
    do {                                                                                           \
        other = g;                                                                                 \
        change;                                                                                    \
        another = key_of(&other);                                                                  \
        assert_false(rt_digest_equal(&key, &another));                                             \
    } while (0)
    static const uint32_t longer[] = {3, 4, 5, 6, 7, 8};
    DIFFERS(other.prompt = longer; other.prompt_tokens = 6);
    DIFFERS(other.prompt = longer + 1);
    DIFFERS(other.sampling.seed++);
    DIFFERS(other.sampling.temperature = 0.5F);
    DIFFERS(other.sampling.max_tokens++);
    DIFFERS(other.keep_special = true);
    DIFFERS(other.stop = joined; other.stop_count = 1);
    DIFFERS(other.index = 1);
    assert_true(id_of(&other) != id);
    DIFFERS(other.tenant_name = "acme");
    assert_true(id_of(&other) != id);
    DIFFERS(other.tenant_name = "m"; other.request_id = "ine");
    DIFFERS(other.request_id = "mine2");
    uint64_t seed, same, next;
    assert_true(rt_request_seed("acme", "mine", 0, &seed) &&
                rt_request_seed("acme", "mine", 0, &same) &&
                rt_request_seed("acme", "mine", 1, &next));
    assert_true(seed == same && seed != next);
    g.stop = stop;
    g.stop_count = 2;
    key = key_of(&g);
    DIFFERS(other.stop = joined; other.stop_count = 1);
}

/* ---- connections */

static void test_taken_over_from_a_connection(void **state)
{
    (void)state;
    static struct seen first, second;
    uint32_t count = (uint32_t)script.count;
    struct rt_generation g = named("mine", count);
    join_both();
    assert_int_equal(come(&first, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 5, 0);
    RUN_UNTIL(first.token_count == 5);
    struct rt_generation other = named("mine", count - 1); /* of this name, and not the same */
    assert_int_equal(come(&second, &other, NULL), BT_OK);
    assert_int_not_equal(second.request, first.request);
    rt_service_abandon(service, second.request);
    SETTLE();
    assert_false(first.ended);
    g.resume_tokens = 2;
    assert_int_equal(come(&second, &g, NULL), BT_OK);
    assert_int_equal(second.request, first.request);
    struct rt_stream *stream = bt_map_get(&service->streams, second.request);
    rt_service_settle(service, stream); /* as if it ended now: what was generated stays charged */
    assert_int_equal(stream->charged_tokens, g.prompt_tokens + 5);
    assert_true(first.ended);
    assert_int_equal(first.result.status, BT_ERR_ALREADY_EXISTS);
    assert_non_null(strstr(first.error, "taken over"));
    RUN_UNTIL(second.token_count == 5); /* without a word from the rank */
    fake_decode_step(&d0, 5, count - 5, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(second.ended);
    check_text(&second, text_from(2));
    assert_int_equal(second.result.completion_tokens, count);
    assert_int_equal(p0.run_count, 1);
    assert_int_equal(d0.cancel_count, 0);
}

/* Its logprobs are not kept: it runs again. */
static void test_logprobs_are_computed_again(void **state)
{
    (void)state;
    static struct seen first, second;
    uint32_t count = (uint32_t)script.count;
    struct rt_generation g = named("mine", count);
    g.sampling.logprobs = 0;
    join_both();
    assert_int_equal(submit_to(&first, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    assert_int_equal(d0.reserve_key_size, 0);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 5, 0);
    RUN_UNTIL(first.token_count == 5);
    assert_int_equal(submit_to(&second, &g, NULL), BT_OK);
    assert_true(first.ended);
    RUN_UNTIL(p0.run_count == 2);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(second.ended);
    assert_int_equal(second.token_count, count);
    check_text(&second, script_text);
}

/* A client that left and is back at once finds its cancelled request still ending. */
static void test_back_before_the_cancel_is_out(void **state)
{
    (void)state;
    static struct seen first, second, third;
    struct rt_generation g = named("mine", 2);
    join_both();
    assert_int_equal(come(&first, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    rt_service_abandon(service, first.request);
    assert_int_equal(come(&second, &g, NULL), BT_OK);
    assert_int_equal(come(&third, &g, NULL), BT_OK); /* which waits in its place */
    assert_true(second.ended);
    RUN_UNTIL(p0.run_count == 2);
    assert_false(first.ended);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 2, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(third.ended);
    assert_int_equal(third.result.finish, RT_FINISH_LENGTH);
    assert_int_equal(third.token_count, 2);

    assert_int_equal(come(&first, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    rt_service_abandon(service, first.request);
    assert_int_equal(come(&second, &g, NULL), BT_OK);
    rt_service_abandon(service, second.request); /* and leaves again */
    SETTLE();
    assert_false(first.ended || second.ended);
    Baton__V1__StatusResponse *status = rt_service_status(service);
    assert_int_equal(status->n_requests, 0);
    baton__v1__status_response__free_unpacked(status, NULL);
}

static void test_impossible_position(void **state)
{
    (void)state;
    static struct seen seen;
    struct bt_error error = {0};
    struct rt_generation g = named("mine", 8);
    join_both();
    g.resume_tokens = 10; /* 8, and what is held back */
    assert_int_equal(come(&seen, &g, &error), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "Last-Event-ID"));
    g.resume_tokens = 9;
    assert_int_equal(come(&seen, &g, &error), BT_OK);
}

/* ---- text */

/* What was shown by the first N tokens depends on these alone: from any N on, the rest is the rest.
 * Also where bytes of a character and beginnings of stop strings are held back. */
static void test_rest_after_any_token(void **state)
{
    (void)state;
    const struct bt_tokenizer *tokenizer = rt_service_tokenizer(service);
    const char *stop[] = {"the lazy bear", " o", "zz", "\xC3\xA9\xC3\xA9"};
    uint32_t vocab = bt_tokenizer_vocab_size(tokenizer);
    for (uint64_t seed = 1; seed <= 60; seed++) {
        static struct seen whole, rest;
        uint32_t ids[40], shown[42] = {0};
        for (uint32_t i = 0; i < 40; i++) {
            ids[i] = seed % 2 ? (uint32_t)(bt_random_u64(seed, i, 0) % vocab)
                              : 3 + (uint32_t)(bt_random_u64(seed, i, 1) % 256);
        }
        uint32_t last = 40;
        for (uint32_t from = 0; from <= last + 1; from++) {
            struct seen *seen = from == 0 ? &whole : &rest;
            *seen = (struct seen){0};
            struct rt_generation g = named("mine", 40);
            g.stop = stop;
            g.stop_count = seed % 3 ? 4 : 0;
            g.resume_tokens = from;
            const struct rt_sink sink = {
                .context = seen, .on_output = on_any_output, .on_end = on_end};
            struct rt_stream *stream;
            assert_int_equal(rt_stream_create(tokenizer, &g, 40, &sink, NULL, &stream), BT_OK);
            struct rt_output_buffer buffer = {0};
            bool stopped = false;
            for (uint32_t i = 0; i < 40 && !stopped;) {
                struct rt_token tokens[8];
                uint32_t count = from == 0 ? 1 : 1 + (uint32_t)(bt_random_u64(seed, from, i) % 8);
                count = count < 40 - i ? count : 40 - i;
                for (uint32_t k = 0; k < count; k++) {
                    tokens[k] = (struct rt_token){.index = i + k, .token = ids[i + k]};
                }
                assert_int_equal(rt_stream_output(stream, tokens, count, 1, &buffer,
                                                  &service->metrics, &stopped),
                                 BT_OK);
                i += count;
                if (from == 0) {
                    shown[i] = (uint32_t)seen->size;
                    last = i;
                }
            }
            rt_stream_end(stream, RT_FINISH_LENGTH, BT_OK, NULL, 2, &service->metrics);
            assert_int_equal(seen->result.completion_tokens, last);
            size_t before = from == 0 ? 0 : from <= last ? shown[from] : whole.size;
            assert_int_equal(seen->size, whole.size - before);
            assert_memory_equal(seen->text, whole.text + before, seen->size);
            rt_output_buffer_finish(&buffer);
            rt_stream_destroy(stream);
        }
    }
}

static void test_positions_as_text(void **state)
{
    (void)state;
    uint32_t counts[3];
    size_t count;
    assert_int_equal(rt_resume_parse("7,0,12", counts, 3, NULL, &count), BT_OK);
    assert_int_equal(count, 3);
    assert_int_equal(counts[0] + counts[1] + counts[2], 19);
    assert_int_equal(rt_resume_parse("4294967294", counts, 3, NULL, &count), BT_OK);
    assert_int_equal(counts[0], UINT32_MAX - 1);
    static const char *const bad[] = {
        "",  ",",       "1,",  ",1",         "-1", "+1",  " 1",   "1 ",
        "x", "1,2,3,4", "0x1", "4294967295", "1.", "1;2", "1,,2", "18446744073709551617"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(rt_resume_parse(bad[i], counts, 3, NULL, &count), BT_ERR_INVALID_ARGUMENT);
    }
    assert_true(rt_request_id_valid("a"));
    assert_true(rt_request_id_valid("!~-_0"));
    char name[RT_REQUEST_ID_MAX + 2];
    memset(name, 'x', sizeof name);
    name[RT_REQUEST_ID_MAX + 1] = '\0';
    assert_false(rt_request_id_valid(name));
    name[RT_REQUEST_ID_MAX] = '\0';
    assert_true(rt_request_id_valid(name));
    assert_false(rt_request_id_valid(""));
    assert_false(rt_request_id_valid("a b"));
    assert_false(rt_request_id_valid("a\x7f"));
    assert_false(rt_request_id_valid("\xC3\xA9"));
}

int main(void)
{
    bt_log_init("test", BT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        TEST(test_taken_over_from_a_rank),
        TEST(test_a_rank_that_has_it_no_more),
        TEST(test_another_key_gets_nothing),
        TEST(test_orphan_of_what_runs_already_is_ended),
        TEST(test_keys_and_numbers),
        TEST(test_taken_over_from_a_connection),
        TEST(test_logprobs_are_computed_again),
        TEST(test_back_before_the_cancel_is_out),
        TEST(test_impossible_position),
        TEST(test_rest_after_any_token),
        TEST(test_positions_as_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
