/*
 * Short forms for tests that drive the core by hand: one core, a fake clock, actions collected.
 */
#ifndef BATON_TESTS_UNIT_ROUTER_CORE_DRIVER_H
#define BATON_TESTS_UNIT_ROUTER_CORE_DRIVER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "router/core.h"

#define MS BT_NS_PER_MS

static struct rt_core *core;
static int64_t now;

static const struct rt_core_options default_options = {
    .queue_capacity = 8,
    .max_attempts = 3,
    .expected_output_tokens = 64,
    .prefill_depth_ns = 1000 * MS, /* 1000 tokens */
    .prefill_token_ns = MS,
    .silent_after_ns = 3000 * MS,
    .lost_after_ns = 10000 * MS,
    .reserve_retry_ns = 50 * MS,
};

static inline void core_open(const struct rt_core_options *options)
{
    now = BT_NS_PER_S;
    core = rt_core_create(options ? options : &default_options);
    assert_non_null(core);
}

static inline int core_close(void **state)
{
    (void)state;
    rt_core_destroy(core);
    core = NULL;
    return 0;
}

static inline struct rt_worker_info worker_info(const char *id, enum rt_role role, uint32_t pages)
{
    struct rt_worker_info info = {.incarnation = 1, .role = role};
    snprintf(info.id, sizeof info.id, "%s", id);
    info.load.pages_total = info.load.pages_free = pages;
    return info;
}

static inline rt_worker_ref worker_add(const char *id, enum rt_role role, uint32_t pages)
{
    struct rt_worker_info info = worker_info(id, role, pages);
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &info, now, NULL, &ref), BT_OK);
    rt_core_worker_connected(core, ref, now);
    return ref;
}

static inline struct rt_worker_info rank_info(uint64_t group, uint32_t rank, uint32_t size,
                                              enum rt_role role, uint32_t pages)
{
    char id[16] = "g";
    if (rank > 0) {
        snprintf(id, sizeof id, "g.%u", rank);
    }
    struct rt_worker_info info = worker_info(id, role, pages);
    info.incarnation = group * 1000 + rank;
    info.group = (struct rt_group_member){.incarnation = group, .rank = rank, .size = size};
    snprintf(info.group.name, sizeof info.group.name, "g");
    return info;
}

/* Rank `rank` of the decode group "g". */
static inline rt_worker_ref rank_add(uint64_t group, uint32_t rank, uint32_t size, uint32_t pages)
{
    struct rt_worker_info info = rank_info(group, rank, size, RT_ROLE_DECODE, pages);
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &info, now, NULL, &ref), BT_OK);
    rt_core_worker_connected(core, ref, now);
    return ref;
}

static inline enum rt_worker_state worker_state(rt_worker_ref ref)
{
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, ref, &view));
    return view.state;
}

static inline enum bt_status submit_until(uint64_t id, uint32_t prompt, uint32_t max_tokens,
                                          int64_t deadline_ns)
{
    struct rt_request_spec spec = {.id = id,
                                   .prompt_tokens = prompt,
                                   .max_tokens = max_tokens,
                                   .arrival_ns = now,
                                   .deadline_ns = deadline_ns};
    return rt_core_submit(core, &spec, now, NULL, NULL);
}

static inline void submit(uint64_t id, uint32_t prompt, uint32_t max_tokens)
{
    assert_int_equal(submit_until(id, prompt, max_tokens, BT_NEVER_NS), BT_OK);
}

static inline struct rt_action next(enum rt_action_kind kind, uint64_t request)
{
    struct rt_action action;
    assert_true(rt_core_next_action(core, &action));
    assert_int_equal(action.kind, kind);
    assert_int_equal(action.request, request);
    return action;
}

static inline void next_none(void)
{
    struct rt_action action;
    assert_false(rt_core_next_action(core, &action));
}

static inline void next_end(uint64_t request, enum rt_finish finish)
{
    struct rt_action action = next(RT_ACTION_END, request);
    assert_int_equal(action.finish, finish);
}

static inline void next_error(uint64_t request, enum bt_status status, const char *part)
{
    struct rt_action action = next(RT_ACTION_END, request);
    assert_int_equal(action.finish, RT_FINISH_ERROR);
    assert_int_equal(action.status, status);
    assert_non_null(strstr(action.text, part));
}

/* The next action is a RESERVE of `request`; the rank grants it as `epoch`. */
static inline struct rt_action grant(uint64_t request, uint64_t epoch)
{
    struct rt_action reserve = next(RT_ACTION_RESERVE, request);
    rt_core_reserved(core, request, reserve.attempt, reserve.decode, BT_OK, NULL, epoch, now);
    struct rt_action run = next(RT_ACTION_PREFILL, request);
    assert_int_equal(run.epoch, epoch);
    assert_int_equal(run.decode, reserve.decode);
    return run;
}

static inline void decoded(const struct rt_action *run, uint32_t first, uint32_t count,
                           bool finished)
{
    struct rt_token tokens[64];
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = (struct rt_token){.index = first + i, .token = 100 + first + i};
    }
    rt_core_decoded(core, run->decode, run->request, run->epoch, tokens, count, finished,
                    RT_FINISH_LENGTH, BT_OK, NULL, now);
}

static inline void decode_failed(const struct rt_action *run, enum bt_status status)
{
    rt_core_decoded(core, run->decode, run->request, run->epoch, NULL, 0, true, RT_FINISH_ERROR,
                    status, "because", now);
}

static inline void next_tokens(uint64_t request, uint32_t first, uint32_t count)
{
    struct rt_action action = next(RT_ACTION_TOKENS, request);
    assert_int_equal(action.token_count, count);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(action.tokens[i].index, first + i);
        assert_int_equal(action.tokens[i].token, 100 + first + i);
    }
}

static inline void first_token(const struct rt_action *run, uint32_t token)
{
    struct rt_token t = {.index = 0, .token = token};
    rt_core_first_token(core, run->request, run->attempt, &t, now);
}

static inline void run_ended(const struct rt_action *run, enum bt_status status)
{
    rt_core_prefill_ended(core, run->request, run->attempt, status, "because", now);
}

#endif
