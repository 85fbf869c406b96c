#include "router/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/core_state.h"

struct rt_core *rt_core_create(const struct rt_core_options *options)
{
    BT_ASSERT(options->queue_capacity > 0 && options->max_attempts > 0);
    struct rt_core *core = calloc(1, sizeof *core);
    if (core) {
        core->options = *options;
        core->worker_check_ns = BT_NEVER_NS;
        bt_map_init(&core->requests);
    }
    return core;
}

void rt_core_destroy(struct rt_core *core)
{
    if (!core) {
        return;
    }
    size_t cursor = 0;
    uint64_t id;
    void *request;
    while (bt_map_next(&core->requests, &cursor, &id, &request)) {
        rt_request_free(request);
    }
    bt_map_finish(&core->requests);
    rt_deadline_heap_finish(&core->deadlines);
    rt_action_queue_finish(&core->actions);
    rt_worker_table_finish(&core->workers);
    free(core);
}

/* ---- placing */

static void attempt_start(struct rt_core *core, struct rt_request *request,
                          struct rt_worker *prefill, struct rt_worker *decode, uint32_t pages)
{
    rt_request_queue_remove(&core->queue, request);
    request->state = RT_RESERVING;
    request->attempt++;
    request->prefill = prefill->ref;
    request->decode = decode->ref;
    rt_worker_count_prefill(prefill, request);
    rt_worker_count_decode(decode, request, pages);
    rt_core_emit(core, RT_ACTION_RESERVE, request);
}

/* False: the head waits, and so do all behind it: were they let past while pages are short, a
 * large request could wait for ever. */
static bool dispatch_head(struct rt_core *core, struct rt_request *request)
{
    if (core->now_ns >= request->hold_until_ns) {
        request->refusal_count = 0;
    }
    uint32_t pages = rt_request_pages(request, core->options.expected_output_tokens);
    struct rt_worker *prefill =
        rt_placement_prefill(&core->workers, request, core->options.prefill_depth_tokens);
    struct rt_worker *decode = rt_placement_decode(&core->workers, request, pages);
    if (prefill && decode) {
        attempt_start(core, request, prefill, decode, pages);
        return true;
    }
    if (!rt_placement_possible(&core->workers, RT_ROLE_PREFILL, &request->spec) ||
        !rt_placement_possible(&core->workers, RT_ROLE_DECODE, &request->spec)) {
        rt_request_fail(core, request, RT_REST_DECODED, BT_ERR_UNAVAILABLE,
                        "no worker that is left can hold %u prompt and %u output tokens",
                        request->spec.prompt_tokens, request->spec.max_tokens);
        return true;
    }
    return false;
}

static void dispatch(struct rt_core *core)
{
    core->dispatch_due = false;
    while (core->queue.head && dispatch_head(core, core->queue.head)) {
    }
}

/* ---- workers */

static void check_worker_at(struct rt_core *core, int64_t when_ns)
{
    if (when_ns < core->worker_check_ns) {
        core->worker_check_ns = when_ns;
    }
}

static void heard_of(struct rt_core *core, struct rt_worker *worker)
{
    struct rt_worker_life life = worker->life;
    life.silent = false;
    rt_worker_set_life(worker, life);
    worker->last_heartbeat_ns = core->now_ns;
    check_worker_at(core, core->now_ns + core->options.silent_after_ns);
    core->dispatch_due = true;
}

static bool same_member(const struct rt_group_member *a, const struct rt_group_member *b)
{
    return a->incarnation == b->incarnation &&
           (a->incarnation == 0 ||
            (a->rank == b->rank && a->size == b->size && strcmp(a->name, b->name) == 0));
}

static enum bt_status worker_again(struct rt_core *core, struct rt_worker *worker,
                                   const struct rt_worker_info *info, struct bt_error *error)
{
    if (worker->info.role != info->role) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "worker %s: this incarnation registered with another role", info->id);
    }
    enum bt_status status = rt_worker_table_check_group(&core->workers, info, worker, error);
    if (status != BT_OK) {
        return status;
    }
    if (!same_member(&worker->info.group, &info->group)) {
        return bt_error_set(error, BT_ERR_MISMATCH,
                            "group: worker %s was another rank, or of another group", info->id);
    }
    if (worker->life.lost) {
        rt_worker_set_life(worker, (struct rt_worker_life){.lost = false});
        worker->why_lost[0] = '\0';
    }
    worker->info.max_model_len = info->max_model_len;
    rt_worker_set_load(worker, &info->load);
    heard_of(core, worker);
    return BT_OK;
}

enum bt_status rt_core_worker_register(struct rt_core *core, const struct rt_worker_info *info,
                                       int64_t now_ns, struct bt_error *error,
                                       rt_worker_ref *ret_worker)
{
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_worker_table_find(&core->workers, info->id);
    enum bt_status status;
    if (worker && worker->info.incarnation == info->incarnation) {
        status = worker_again(core, worker, info, error);
        if (status == BT_OK) {
            *ret_worker = worker->ref;
        }
        return status;
    }
    if (worker && !worker->life.lost) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                            "worker %s: another process with this id is alive", info->id);
    }
    status = rt_worker_table_check_group(&core->workers, info, NULL, error);
    if (status != BT_OK) {
        return status;
    }
    if (worker) {
        rt_worker_table_remove(&core->workers, worker);
    }
    status = rt_worker_table_add(&core->workers, info, error, &worker);
    if (status == BT_OK) {
        heard_of(core, worker);
        *ret_worker = worker->ref;
    }
    return status;
}

void rt_core_worker_connected(struct rt_core *core, rt_worker_ref ref, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (worker && !worker->life.lost) {
        struct rt_worker_life life = worker->life;
        life.connected = true;
        rt_worker_set_life(worker, life);
        core->dispatch_due = true;
    }
}

enum bt_status rt_core_worker_heartbeat(struct rt_core *core, const char *id, uint64_t incarnation,
                                        const struct rt_load *load, bool draining, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_worker_table_find(&core->workers, id);
    if (!worker || worker->life.lost || worker->info.incarnation != incarnation) {
        return BT_ERR_NOT_FOUND;
    }
    struct rt_worker_life life = worker->life;
    life.draining = draining;
    rt_worker_set_life(worker, life);
    rt_worker_set_load(worker, load);
    heard_of(core, worker);
    return BT_OK;
}

void rt_core_worker_load(struct rt_core *core, rt_worker_ref ref, const struct rt_load *load)
{
    struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (worker && !worker->life.lost) {
        rt_worker_set_load(worker, load);
        core->dispatch_due = true;
    }
}

/* ---- workers that are gone */

static bool is_lost(const struct rt_core *core, rt_worker_ref ref)
{
    const struct rt_worker *worker = rt_core_worker_get(core, ref);
    return worker && worker->life.lost;
}

static void attempt_lost(struct rt_core *core, struct rt_request *request, rt_worker_ref ref)
{
    char text[RT_WHY_LOST_SIZE + 16];
    snprintf(text, sizeof text, "worker lost: %s", rt_core_worker_get(core, ref)->why_lost);
    /* It may be cut off and yet alive, holding pages. */
    rt_attempt_failed(core, request, ref, RT_REST_HELD, BT_ERR_PEER_LOST, text);
}

static void check_request(struct rt_core *core, struct rt_request *request)
{
    if (request->state == RT_QUEUED) {
        return;
    }
    if (is_lost(core, request->decode)) {
        attempt_lost(core, request, request->decode);
    } else if (is_lost(core, request->prefill) && request->state == RT_PREFILLING) {
        attempt_lost(core, request, request->prefill);
    } else if (is_lost(core, request->prefill)) {
        /* RESERVING: another is chosen when pages are there. DECODING: its part is done. */
        rt_worker_uncount_prefill(rt_core_worker_get(core, request->prefill), request);
        request->prefill = RT_NO_WORKER;
        request->run_open = false;
    }
}

static void mark_lost(struct rt_core *core, struct rt_worker *worker, const char *why)
{
    rt_worker_set_life(worker, (struct rt_worker_life){.lost = true});
    worker->lost_ns = core->now_ns;
    snprintf(worker->why_lost, sizeof worker->why_lost, "%s", why);
}

/* `worker` is lost already. */
static void mark_group_lost(struct rt_core *core, const struct rt_worker *worker)
{
    const struct rt_group *group = worker->group;
    char why[RT_WHY_LOST_SIZE];
    snprintf(why, sizeof why, "rank %u (%s) of its group is gone: %.70s", worker->info.group.rank,
             worker->info.id, worker->why_lost);
    for (uint32_t i = 0; i < group->size; i++) {
        if (group->ranks[i]) {
            mark_lost(core, group->ranks[i], why);
        }
    }
}

void rt_core_worker_lost(struct rt_core *core, rt_worker_ref ref, const char *why, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (!worker || worker->life.lost) {
        return;
    }
    mark_lost(core, worker, why);
    if (worker->group) {
        mark_group_lost(core, worker);
    }
    check_worker_at(core, core->now_ns + RT_LOST_KEPT_NS);
    size_t cursor = 0;
    uint64_t id;
    void *request;
    while (bt_map_next(&core->requests, &cursor, &id, &request)) {
        check_request(core, request);
    }
    core->dispatch_due = true;
}

/* Time passed at one worker. Returns when it has to be looked at again. */
static int64_t worker_tick(struct rt_core *core, struct rt_worker *worker)
{
    int64_t silence_ns = core->now_ns - worker->last_heartbeat_ns;
    if (!worker->life.lost && silence_ns >= core->options.lost_after_ns) {
        rt_core_worker_lost(core, worker->ref, "no heartbeat", core->now_ns);
    }
    if (worker->life.lost) {
        return worker->lost_ns + RT_LOST_KEPT_NS;
    }
    struct rt_worker_life life = worker->life;
    life.silent = silence_ns >= core->options.silent_after_ns;
    rt_worker_set_life(worker, life);
    return worker->last_heartbeat_ns +
           (life.silent ? core->options.lost_after_ns : core->options.silent_after_ns);
}

static void check_workers(struct rt_core *core)
{
    core->worker_check_ns = BT_NEVER_NS;
    for (uint32_t i = core->workers.count; i-- > 0;) {
        struct rt_worker *worker = core->workers.workers[i];
        int64_t next_ns = worker_tick(core, worker);
        if (worker->life.lost && next_ns <= core->now_ns) {
            rt_worker_table_remove(&core->workers, worker);
        } else {
            check_worker_at(core, next_ns);
        }
    }
    core->dispatch_due = true;
}

/* ---- requests, from the client's side */

static enum bt_status check_submit(const struct rt_core *core, const struct rt_request_spec *spec,
                                   struct bt_error *error)
{
    for (enum rt_role role = RT_ROLE_PREFILL; role <= RT_ROLE_DECODE; role++) {
        if (!core->workers.known[role]) {
            return bt_error_set(error, BT_ERR_UNAVAILABLE, "no %s worker has registered yet",
                                role == RT_ROLE_PREFILL ? "prefill" : "decode");
        }
    }
    uint32_t pages = rt_request_full_pages(spec);
    uint32_t largest = rt_placement_largest_pool(&core->workers);
    if (largest > 0 && pages > largest) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%u prompt and %u output tokens need %u pages of kv cache, %u more "
                            "than the largest decode worker has",
                            spec->prompt_tokens, spec->max_tokens, pages, pages - largest);
    }
    if (core->queue.count >= core->options.queue_capacity) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "the queue is full: %u requests wait",
                            core->queue.count);
    }
    if (spec->id == 0 || bt_map_get(&core->requests, spec->id)) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "request id is in use");
    }
    return BT_OK;
}

enum bt_status rt_core_submit(struct rt_core *core, const struct rt_request_spec *spec,
                              int64_t now_ns, struct bt_error *error)
{
    BT_ASSERT(spec->prompt_tokens > 0 && spec->max_tokens > 0);
    rt_core_hear_time(core, now_ns);
    enum bt_status status = check_submit(core, spec, error);
    if (status != BT_OK) {
        return status;
    }
    struct rt_request *request = calloc(1, sizeof *request);
    if (!request) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
    }
    request->spec = *spec;
    request->serial = core->next_serial;
    request->prefill = request->decode = RT_NO_WORKER;
    if (!rt_core_reserve_actions(core, ACTIONS_PER_REQUEST) ||
        !bt_map_put(&core->requests, spec->id, request)) {
        goto err_free;
    }
    if (!rt_deadline_heap_insert(&core->deadlines, request)) {
        goto err_map;
    }
    core->next_serial++;
    rt_request_requeue(core, request);
    return BT_OK;

err_map:
    bt_map_remove(&core->requests, spec->id);
err_free:
    rt_request_free(request);
    return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
}

void rt_core_finish(struct rt_core *core, uint64_t id, enum rt_finish finish, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request) {
        return;
    }
    BT_ASSERT(finish != RT_FINISH_ERROR);
    rt_attempt_release(core, request, RT_REST_HELD, true);
    rt_request_end(core, request, finish, BT_OK, NULL);
}

/* ---- requests, from the workers' side */

static void reserve_refused(struct rt_core *core, struct rt_request *request, enum bt_status status,
                            const char *text)
{
    /* Only EXHAUSTED says that nothing was taken: another answer may stand for one that got lost.
     */
    enum rt_rest rest = status == BT_ERR_EXHAUSTED ? RT_REST_DECODED : RT_REST_HELD;
    rt_attempt_failed(core, request, request->decode, rest, status, text);
}

/* The prefill worker chosen at the RESERVE, or another if that one takes nothing new any more. */
static struct rt_worker *settle_prefill(struct rt_core *core, struct rt_request *request)
{
    struct rt_worker *worker = rt_core_worker_get(core, request->prefill);
    if (worker && rt_worker_state(worker) == RT_WORKER_READY) {
        return worker;
    }
    rt_worker_uncount_prefill(worker, request);
    worker = rt_placement_prefill(&core->workers, request, core->options.prefill_depth_tokens);
    request->prefill = worker ? worker->ref : RT_NO_WORKER;
    if (worker) {
        rt_worker_count_prefill(worker, request);
    }
    return worker;
}

void rt_core_reserved(struct rt_core *core, uint64_t id, uint32_t attempt, rt_worker_ref decode,
                      enum bt_status status, const char *text, uint64_t epoch, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request || request->attempt != attempt || request->state != RT_RESERVING) {
        bool held = request && request->attempt == attempt && request->epoch == epoch;
        if (status == BT_OK && !held) {
            rt_core_emit_late_cancel(core, id, attempt, decode, epoch);
        }
        return;
    }
    if (status == BT_OK && epoch == 0) {
        status = BT_ERR_PROTOCOL;
        text = "a landing without epoch";
    }
    if (status != BT_OK) {
        reserve_refused(core, request, status, text);
        return;
    }
    request->epoch = epoch;
    if (!settle_prefill(core, request)) {
        rt_attempt_release(core, request, RT_REST_HELD, true);
        rt_request_requeue(core, request);
        return;
    }
    request->state = RT_PREFILLING;
    request->run_open = true;
    request->dispatched_ns = core->now_ns;
    rt_core_emit(core, RT_ACTION_PREFILL, request);
}

static bool grow_delivered(struct rt_request *request, uint32_t count)
{
    if (count <= request->delivered_capacity) {
        return true;
    }
    uint64_t capacity = (uint64_t)count * 2;
    if (capacity > request->spec.max_tokens) {
        capacity = request->spec.max_tokens;
    }
    uint32_t *grown = realloc(request->delivered, capacity * sizeof *grown);
    if (!grown) {
        return false;
    }
    request->delivered = grown;
    request->delivered_capacity = (uint32_t)capacity;
    return true;
}

/*
 * One token of any attempt: new, or a repeat that has to be the same. Anything but BT_OK breaks a
 * promise: INTERNAL that a token depends on its sequence alone, PROTOCOL that tokens come in order.
 */
static enum bt_status accept_token(struct rt_request *request, const struct rt_token *token,
                                   struct bt_error *error)
{
    if (token->index < request->delivered_count) {
        uint32_t before = request->delivered[token->index];
        return before == token->token
                   ? BT_OK
                   : bt_error_set(error, BT_ERR_INTERNAL,
                                  "not deterministic: token %u was %u and is now %u", token->index,
                                  before, token->token);
    }
    if (token->index > request->delivered_count || token->index >= request->spec.max_tokens) {
        return bt_error_set(error, BT_ERR_PROTOCOL, "token %u after %u tokens of at most %u",
                            token->index, request->delivered_count, request->spec.max_tokens);
    }
    if (!grow_delivered(request, request->delivered_count + 1)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for tokens");
    }
    request->delivered[request->delivered_count++] = token->token;
    return BT_OK;
}

/* Passes on what is new. False: the request is gone or in another attempt. */
static bool deliver(struct rt_core *core, struct rt_request *request, rt_worker_ref source,
                    enum rt_rest rest, const struct rt_token *tokens, uint32_t count)
{
    struct bt_error error = {.status = BT_OK};
    uint32_t delivered_before = request->delivered_count;
    uint32_t accepted = 0;
    uint32_t first_new = 0;
    while (accepted < count && accept_token(request, &tokens[accepted], &error) == BT_OK) {
        accepted++;
        if (request->delivered_count == delivered_before) {
            first_new = accepted;
        }
    }
    /* Repeats come before new ones, or between them only if a peer repeats itself in one message.
     */
    for (uint32_t i = first_new, expected = delivered_before; i < accepted;) {
        uint32_t run = 0;
        while (i + run < accepted && tokens[i + run].index == expected) {
            run++;
            expected++;
        }
        if (run > 0 && !rt_core_emit_tokens(core, request, &tokens[i], run)) {
            rt_request_fail(core, request, rest, BT_ERR_NO_MEMORY, "no memory for tokens");
            return false;
        }
        i += run > 0 ? run : 1;
    }
    if (accepted == count) {
        return true;
    }
    if (error.status == BT_ERR_PROTOCOL) {
        rt_attempt_failed(core, request, source, rest, error.status, error.text);
    } else {
        rt_request_fail(core, request, rest, error.status, "%s: %s",
                        rt_core_worker_name(core, source), error.text);
    }
    return false;
}

void rt_core_first_token(struct rt_core *core, uint64_t id, uint32_t attempt,
                         const struct rt_token *token, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request || request->attempt != attempt || !request->run_open) {
        return;
    }
    rt_worker_uncount_prefill(rt_core_worker_get(core, request->prefill), request);
    core->dispatch_due = true;
    if (token->index != 0) {
        rt_attempt_failed(core, request, request->prefill, RT_REST_HELD, BT_ERR_PROTOCOL,
                          "the first token has another index than 0");
        return;
    }
    deliver(core, request, request->prefill, RT_REST_HELD, token, 1);
}

void rt_core_prefill_ended(struct rt_core *core, uint64_t id, uint32_t attempt,
                           enum bt_status status, const char *text, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request || request->attempt != attempt || !request->run_open) {
        return;
    }
    request->run_open = false;
    rt_worker_uncount_prefill(rt_core_worker_get(core, request->prefill), request);
    core->dispatch_due = true;
    if (request->state == RT_DECODING) {
        return; /* the rank has it, whatever became of the answers to the handoff */
    }
    if (status == BT_OK) {
        request->state = RT_DECODING;
        return;
    }
    rt_attempt_failed(core, request, request->prefill, RT_REST_HELD, status, text);
}

/* The rank ended it, and holds nothing any more. */
static void decode_ended(struct rt_core *core, struct rt_request *request, enum rt_finish finish,
                         enum bt_status status, const char *text)
{
    bool complete = finish == RT_FINISH_STOP || finish == RT_FINISH_LENGTH;
    if (status == BT_OK && complete && request->delivered_count == 0) {
        complete = false;
        text = "a sequence ended without a token";
    }
    if (status == BT_OK && complete) {
        rt_attempt_release(core, request, RT_REST_DECODED, false);
        rt_request_end(core, request, finish, BT_OK, NULL);
    } else if (status == BT_ERR_PREEMPTED) {
        rt_attempt_preempted(core, request, text);
    } else {
        status = status == BT_OK ? BT_ERR_PROTOCOL : status;
        rt_attempt_failed(core, request, request->decode, RT_REST_DECODED, status, text);
    }
}

void rt_core_decoded(struct rt_core *core, rt_worker_ref decode, uint64_t id, uint64_t epoch,
                     const struct rt_token *tokens, uint32_t token_count, bool finished,
                     enum rt_finish finish, enum bt_status status, const char *text, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    bool current = request && request->state >= RT_PREFILLING && request->decode == decode &&
                   request->epoch == epoch;
    if (!current) {
        /* A message may name any number of them. What is not cancelled now is at its next token. */
        if (!finished && core->stray_cancels < CANCEL_SLOTS) {
            core->stray_cancels++;
            rt_core_emit_late_cancel(core, id, 0, decode, epoch);
        }
        return;
    }
    if (token_count > 0) {
        /* It joined the batch: the handoff was accepted. */
        request->state = RT_DECODING;
        rt_worker_uncount_prefill(rt_core_worker_get(core, request->prefill), request);
    }
    enum rt_rest rest = finished ? RT_REST_DECODED : RT_REST_HELD;
    if (deliver(core, request, decode, rest, tokens, token_count) && finished) {
        decode_ended(core, request, finish, status, text);
    }
}

/* ---- time and output */

static bool head_on_hold(const struct rt_core *core)
{
    return core->queue.head && core->queue.head->refusal_count > 0;
}

void rt_core_tick(struct rt_core *core, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request;
    while ((request = rt_deadline_heap_first(&core->deadlines)) != NULL &&
           request->spec.deadline_ns <= core->now_ns) {
        rt_core_finish(core, request->spec.id, RT_FINISH_DEADLINE, core->now_ns);
    }
    if (core->worker_check_ns <= core->now_ns) {
        check_workers(core);
    }
    if (head_on_hold(core) && core->queue.head->hold_until_ns <= core->now_ns) {
        core->dispatch_due = true;
    }
}

int64_t rt_core_next_deadline_ns(const struct rt_core *core)
{
    int64_t next_ns = core->worker_check_ns;
    const struct rt_request *first = rt_deadline_heap_first(&core->deadlines);
    if (first && first->spec.deadline_ns < next_ns) {
        next_ns = first->spec.deadline_ns;
    }
    if (head_on_hold(core) && core->queue.head->hold_until_ns < next_ns) {
        next_ns = core->queue.head->hold_until_ns;
    }
    return next_ns;
}

bool rt_core_next_action(struct rt_core *core, struct rt_action *ret_action)
{
    if (core->actions.count == 0) {
        core->stray_cancels = 0;
        if (core->dispatch_due) {
            dispatch(core);
        }
    }
    return rt_action_queue_pop(&core->actions, ret_action);
}

/* ---- looking in */

static void view_request(const struct rt_request *request, struct rt_request_view *ret_view)
{
    *ret_view = (struct rt_request_view){
        .id = request->spec.id,
        .state = request->state,
        .attempt = request->attempt,
        .prompt_tokens = request->spec.prompt_tokens,
        .generated_tokens = request->delivered_count,
        .prefill = request->prefill,
        .decode = request->decode,
        .arrival_ns = request->spec.arrival_ns,
        .dispatched_ns = request->dispatched_ns,
    };
}

bool rt_core_request(const struct rt_core *core, uint64_t id, struct rt_request_view *ret_view)
{
    const struct rt_request *request = bt_map_get(&core->requests, id);
    if (request) {
        view_request(request, ret_view);
    }
    return request != NULL;
}

bool rt_core_worker(const struct rt_core *core, rt_worker_ref ref, struct rt_worker_view *ret_view)
{
    const struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (worker) {
        *ret_view = (struct rt_worker_view){
            .info = &worker->info,
            .state = rt_worker_state(worker),
            .last_heartbeat_ns = worker->last_heartbeat_ns,
            .projected_pages = (uint32_t)rt_worker_projected_pages(worker),
            .why_lost = worker->why_lost,
        };
    }
    return worker != NULL;
}

bool rt_core_next_request(const struct rt_core *core, size_t *cursor,
                          struct rt_request_view *ret_view)
{
    uint64_t id;
    void *request;
    if (!bt_map_next(&core->requests, cursor, &id, &request)) {
        return false;
    }
    view_request(request, ret_view);
    return true;
}

bool rt_core_next_worker(const struct rt_core *core, size_t *cursor, rt_worker_ref *ret_worker)
{
    if (*cursor >= core->workers.count) {
        return false;
    }
    *ret_worker = core->workers.workers[(*cursor)++]->ref;
    return true;
}

uint32_t rt_core_queued(const struct rt_core *core)
{
    return core->queue.count;
}
