/* Workers that are figures, and what becomes of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/kvcache/layout.h"
#include "tests/sim/router/scale_world.h"

#define PREFILL_BASE_S  0.004
#define PREFILL_TOKEN_S 0.00004
#define STEP_BASE_S     0.008
#define STEP_ROW_S      0.00008
#define STEP_KV_S       0.00000009 /* a token of kv */
#define STEP_TOKENS     4          /* steps an event: messages name so many tokens of a row */
#define CHUNK           256        /* rows of prompts an event, on a rank that computes them */
#define CHUNK_SLOWER    1.5        /* than on a prefill worker */
#define LOCAL_MOST      (1 << 20)
#define LATENCY_NS      (200 * INT64_C(1000))
#define TRANSFER_NS     (3 * SIM_MS)
#define HEARTBEAT_NS    SIM_S
#define FAULT_MS        40000 /* each worker has one about every half of this */
#define RESERVE_OUTPUT  256   /* pages for so many tokens are reserved at first */

double sim_prefill_s(double tokens)
{
    return PREFILL_BASE_S + PREFILL_TOKEN_S * tokens;
}

double sim_step_s(double rows, double kv_tokens)
{
    return STEP_BASE_S + STEP_ROW_S * rows + STEP_KV_S * kv_tokens;
}

static uint32_t number(const struct sim_worker *worker)
{
    return (uint32_t)(worker - sim.workers);
}

static struct sim_worker *rank_of(uint32_t group, uint32_t rank)
{
    return &sim.workers[sim.set.prefill_count + group * sim.set.rank_count + rank];
}

/* Of prompts that the rank computes itself. */
static uint64_t prompts_left(const struct sim_worker *worker, uint32_t *ret_count)
{
    uint64_t left = 0;
    *ret_count = 0;
    for (uint32_t i = 0; i < worker->held_count; i++) {
        left += worker->held[i].prompt_left;
        *ret_count += worker->held[i].prompt_left > 0;
    }
    return left;
}

static struct rt_load load_of(const struct sim_worker *worker)
{
    if (worker->role == RT_ROLE_PREFILL) {
        return (struct rt_load){0};
    }
    uint32_t prompts;
    uint64_t left = prompts_left(worker, &prompts);
    return (struct rt_load){.pages_total = sim.set.rank_pages,
                            .pages_free = sim.set.rank_pages - worker->pages_used,
                            .running = worker->held_count - prompts,
                            .waiting = prompts,
                            .waiting_tokens = left,
                            .max_running = 256,
                            .kv_tokens = worker->kv_tokens};
}

/* ---- requests that kill */

static void die(struct sim_worker *worker);

static void killed_by(struct sim_worker *worker, uint32_t request)
{
    sim.requests[request].kills++;
    sim.groups_killed += worker->role == RT_ROLE_DECODE;
    die(worker);
}

/* It kills the rank in the step that is to bring its next tokens. */
static bool kills_now(const struct sim_held *held)
{
    uint32_t deadly = sim.requests[held->request].deadly;
    if (held->prompt_left > 0) {
        return deadly == 1;
    }
    return held->running && deadly > 1 && deadly - 1 < held->generated + STEP_TOKENS;
}

/* ---- prefill */

uint32_t sim_worker_cached(uint32_t worker, uint32_t request)
{
    const struct sim_request *first = &sim.requests[sim.requests[request].conversation];
    bool same = first->held_tokens > 0 && first->holder == worker &&
                first->holder_incarnation == sim.workers[worker].incarnation &&
                sim.workers[worker].alive;
    uint32_t prompt = sim.requests[request].prompt;
    return !same ? 0 : first->held_tokens < prompt ? first->held_tokens : prompt - 1;
}

static bool sick(const struct sim_worker *worker)
{
    return sim.now_ns < worker->sick_until_ns;
}

/* A PREFILL action: it joins the line before the worker. */
static void run_take(struct sim_worker *worker, const struct sim_event *event)
{
    if (!worker->alive) {
        return; /* its loss ends the run for the router */
    }
    uint32_t tokens = sim.requests[event->request].prompt;
    tokens -= sim_worker_cached(number(worker), event->request);
    double noise = 0.95 + 0.1 * sim_unit();
    int64_t compute_ns = (int64_t)(sim_prefill_s(tokens) * worker->speed * noise * SIM_S);
    int64_t begin_ns = worker->free_ns > sim.now_ns ? worker->free_ns : sim.now_ns;
    worker->free_ns = begin_ns + compute_ns;
    struct sim_event done = *event;
    done.kind = SIM_RUN_DONE;
    done.tokens = tokens;
    done.epoch = event->epoch;
    done.incarnation = worker->incarnation;
    sim_schedule(done, worker->free_ns);
}

static void on_run_done(struct sim_worker *worker, const struct sim_event *event)
{
    if (!worker->alive || worker->incarnation != event->incarnation) {
        return;
    }
    struct sim_request *request = &sim.requests[event->request];
    bool stopped = request->cancelled >= event->attempt;
    if (!stopped && request->deadly == 1) {
        killed_by(worker, event->request);
        return;
    }
    if (stopped || (sick(worker) && sim_draw(2) == 0)) {
        rt_core_prefill_ended(sim.core, event->request, event->attempt,
                              stopped ? BT_ERR_CANCELLED : BT_ERR_CORRUPT, "simulated", sim.now_ns);
        return;
    }
    struct sim_request *first = &sim.requests[request->conversation];
    first->holder = number(worker);
    first->held_tokens = request->prompt;
    first->holder_incarnation = worker->incarnation;
    struct rt_token token = {0, sim_token(event->request, 0), NULL};
    int64_t compute_ns = (int64_t)(sim_prefill_s(event->tokens) * worker->speed * SIM_S);
    rt_core_first_token(sim.core, event->request, event->attempt, &token, sim.now_ns);
    rt_core_prefill_done(sim.core, event->request, event->attempt, compute_ns, event->tokens);
    struct sim_event handoff = *event;
    handoff.kind = SIM_HANDOFF;
    sim_schedule(handoff, sim.now_ns + TRANSFER_NS);
}

/* ---- decode */

static struct sim_held *held_find(struct sim_worker *worker, uint32_t request)
{
    for (uint32_t i = 0; i < worker->held_count; i++) {
        if (worker->held[i].request == request) {
            return &worker->held[i];
        }
    }
    return NULL;
}

static void held_drop(struct sim_worker *worker, struct sim_held *held)
{
    worker->pages_used -= held->pages;
    if (held->running) {
        worker->kv_tokens -= sim.requests[held->request].prompt + held->generated;
    }
    *held = worker->held[--worker->held_count];
}

static void drop_all(struct sim_worker *worker)
{
    worker->held_count = 0;
    worker->pages_used = 0;
    worker->kv_tokens = 0;
}

static enum bt_status rank_take(struct sim_worker *worker, const struct sim_event *event,
                                uint64_t *ret_epoch, uint32_t *ret_pages)
{
    const struct sim_request *request = &sim.requests[event->request];
    if (held_find(worker, event->request)) {
        return BT_ERR_ALREADY_EXISTS;
    }
    uint32_t output =
        event->full || request->max_tokens < RESERVE_OUTPUT ? request->max_tokens : RESERVE_OUTPUT;
    uint32_t pages = bt_kv_pages_for(request->prompt + output);
    if (worker->pages_used + pages > sim.set.rank_pages || (sick(worker) && sim_draw(2) == 0)) {
        return BT_ERR_EXHAUSTED;
    }
    if (worker->held_count == worker->held_capacity) {
        worker->held_capacity = worker->held_capacity ? worker->held_capacity * 2 : 16;
        worker->held = sim_grow(worker->held, worker->held_capacity * sizeof *worker->held);
    }
    *ret_epoch = ++sim.epochs;
    *ret_pages = pages;
    worker->pages_used += pages;
    worker->held[worker->held_count++] =
        (struct sim_held){.request = event->request,
                          .attempt = event->attempt,
                          .pages = pages,
                          .prompt_left = event->local ? request->prompt : 0,
                          .epoch = *ret_epoch,
                          .full = event->full};
    return BT_OK;
}

static void group_begin_step(uint32_t group);

static void on_reserve(struct sim_worker *worker, const struct sim_event *event)
{
    struct sim_event answer = *event;
    answer.kind = SIM_RESERVED;
    answer.epoch = 0;
    bool there = worker->alive && worker->incarnation == event->incarnation;
    answer.status =
        there ? rank_take(worker, event, &answer.epoch, &answer.tokens) : BT_ERR_PEER_LOST;
    sim_schedule(answer, sim.now_ns + LATENCY_NS);
    if (answer.status == BT_OK && event->local && !sim.groups[worker->group].stepping) {
        group_begin_step(worker->group);
    }
}

static void on_cancel(struct sim_worker *worker, const struct sim_event *event)
{
    struct sim_held *held = held_find(worker, event->request);
    bool there = worker->alive && worker->incarnation == event->incarnation;
    if (there && held && (event->epoch == 0 || event->epoch == held->epoch)) {
        held_drop(worker, held);
    }
}

/* The time of a step is that of the slowest rank: they meet in every layer. */
static int64_t group_step_ns(uint32_t group)
{
    double slowest = 0, chunk = 0;
    for (uint32_t i = 0; i < sim.set.rank_count; i++) {
        const struct sim_worker *rank = rank_of(group, i);
        uint32_t prompts;
        uint64_t left = prompts_left(rank, &prompts);
        double step = sim_step_s(rank->held_count - prompts, (double)rank->kv_tokens);
        double rows = left < CHUNK ? (double)left : CHUNK;
        double own = left > 0 ? sim_prefill_s(rows) * CHUNK_SLOWER : 0;
        slowest = rank->kv_tokens > 0 && step > slowest ? step : slowest;
        chunk = own > chunk ? own : chunk;
    }
    return (int64_t)((slowest * STEP_TOKENS + chunk) * SIM_S);
}

static void group_begin_step(uint32_t group)
{
    sim.groups[group].stepping = true;
    for (uint32_t i = 0; i < sim.set.rank_count; i++) {
        struct sim_worker *rank = rank_of(group, i);
        for (uint32_t k = 0; k < rank->held_count; k++) {
            rank->held[k].chunked = rank->held[k].prompt_left > 0;
        }
    }
    struct sim_event step = {.kind = SIM_STEP,
                             .worker = number(rank_of(group, 0)),
                             .incarnation = sim.groups[group].step_serial};
    sim_schedule(step, sim.now_ns + group_step_ns(group));
}

static void on_handoff(struct sim_worker *worker, const struct sim_event *event)
{
    if (!worker->alive || worker->incarnation != event->incarnation) {
        return;
    }
    struct sim_worker *rank = sim_by_ref(event->decode);
    struct sim_held *held = rank && rank->alive ? held_find(rank, event->request) : NULL;
    bool stopped = sim.requests[event->request].cancelled >= event->attempt;
    if (stopped || !held || held->epoch != event->epoch) {
        rt_core_prefill_ended(sim.core, event->request, event->attempt,
                              stopped ? BT_ERR_CANCELLED : BT_ERR_STALE, "simulated", sim.now_ns);
        return;
    }
    held->running = true;
    held->generated = 1;
    rank->kv_tokens += sim.requests[event->request].prompt + 1;
    rt_core_prefill_ended(sim.core, event->request, event->attempt, BT_OK, NULL, sim.now_ns);
    if (!sim.groups[rank->group].stepping) {
        group_begin_step(rank->group);
    }
}

/* Pages for `more` tokens. False: there are none. */
static bool held_grow(struct sim_worker *rank, struct sim_held *held, uint32_t more)
{
    uint32_t pages = bt_kv_pages_for(sim.requests[held->request].prompt + held->generated + more);
    if (pages > held->pages) {
        SIM_REQUIRE(!held->full, "request %u outgrows all that it can need", held->request);
        if (rank->pages_used + pages - held->pages > sim.set.rank_pages) {
            return false;
        }
        rank->pages_used += pages - held->pages;
        held->pages = pages;
    }
    return true;
}

static void step_row(struct sim_worker *rank, struct sim_held *held)
{
    const struct sim_request *request = &sim.requests[held->request];
    struct rt_token tokens[STEP_TOKENS];
    uint32_t left = request->length - held->generated;
    uint32_t count = left < STEP_TOKENS ? left : STEP_TOKENS;
    struct sim_held row = *held;
    if (!held_grow(rank, held, count)) {
        held_drop(rank, held);
        rt_core_decoded(sim.core, rank->ref, row.request, row.epoch, NULL, 0, true, RT_FINISH_ERROR,
                        BT_ERR_PREEMPTED, "simulated", sim.now_ns);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = row.generated + i;
        tokens[i] = (struct rt_token){index, sim_token(row.request, index), NULL};
    }
    held->generated += count;
    rank->kv_tokens += count;
    bool finished = count == left;
    if (finished) {
        held_drop(rank, held);
    }
    rt_core_decoded(sim.core, rank->ref, row.request, row.epoch, tokens, count, finished,
                    request->length < request->max_tokens ? RT_FINISH_STOP : RT_FINISH_LENGTH,
                    BT_OK, NULL, sim.now_ns);
}

/* Its prompt is computed: the first token. */
static void begin_output(struct sim_worker *rank, struct sim_held *held)
{
    const struct sim_request *request = &sim.requests[held->request];
    struct rt_token token = {0, sim_token(held->request, 0), NULL};
    struct sim_held row = *held;
    double compute_s = sim_prefill_s(request->prompt) * CHUNK_SLOWER;
    bool finished = request->length == 1;
    held->running = true;
    held->generated = 1;
    rank->kv_tokens += request->prompt + 1;
    if (finished) {
        held_drop(rank, held);
    }
    rt_core_local_prefill_done(sim.core, rank->ref, row.request, row.epoch,
                               (int64_t)(compute_s * SIM_S));
    rt_core_decoded(sim.core, rank->ref, row.request, row.epoch, &token, 1, finished,
                    request->length < request->max_tokens ? RT_FINISH_STOP : RT_FINISH_LENGTH,
                    BT_OK, NULL, sim.now_ns);
}

/* The eldest first; those that end leave the list, which is gone through backwards then. */
static void compute_prompts(struct sim_worker *rank)
{
    uint32_t rows = CHUNK;
    bool ends[256] = {false};
    for (uint32_t i = 0; i < rank->held_count && i < 256; i++) {
        struct sim_held *held = &rank->held[i];
        uint32_t part = !held->chunked ? 0 : held->prompt_left < rows ? held->prompt_left : rows;
        ends[i] = part > 0 && part == held->prompt_left;
        held->prompt_left -= part;
        rows -= part;
    }
    for (uint32_t i = rank->held_count < 256 ? rank->held_count : 256; i-- > 0;) {
        if (ends[i]) {
            begin_output(rank, &rank->held[i]);
        }
    }
}

static void step_rank(struct sim_worker *rank)
{
    for (uint32_t i = rank->held_count; i-- > 0;) {
        if (rank->held[i].running) {
            step_row(rank, &rank->held[i]);
        }
    }
    compute_prompts(rank);
    struct rt_load load = load_of(rank);
    rt_core_worker_load(sim.core, rank->ref, &load);
}

/* False: a row killed its rank, and with it the group. */
static bool group_survives(uint32_t group)
{
    for (uint32_t i = 0; i < sim.set.rank_count; i++) {
        struct sim_worker *rank = rank_of(group, i);
        for (uint32_t row = 0; row < rank->held_count; row++) {
            if (kills_now(&rank->held[row])) {
                killed_by(rank, rank->held[row].request);
                return false;
            }
        }
    }
    return true;
}

static void on_step(uint32_t group, const struct sim_event *event)
{
    if (sim.groups[group].step_serial != event->incarnation || !group_survives(group)) {
        return;
    }
    uint64_t running = 0;
    sim.groups[group].stepping = false;
    for (uint32_t i = 0; i < sim.set.rank_count; i++) {
        step_rank(rank_of(group, i));
        uint32_t prompts;
        running += rank_of(group, i)->kv_tokens + prompts_left(rank_of(group, i), &prompts);
    }
    if (running > 0) {
        group_begin_step(group);
    }
}

/* ---- coming and going */

bool sim_worker_ready(const struct sim_worker *worker)
{
    bool prefill = worker->role == RT_ROLE_PREFILL;
    for (uint32_t i = 0; i < (prefill ? 1 : sim.set.rank_count); i++) {
        const struct sim_worker *other = prefill ? worker : rank_of(worker->group, i);
        if (!other->told_live || !other->told_connected ||
            sim.now_ns - other->told_ns >= 3 * HEARTBEAT_NS) {
            return false;
        }
    }
    return true;
}

static void told_lost(const struct sim_worker *worker)
{
    if (worker->role == RT_ROLE_PREFILL) {
        sim.workers[number(worker)].told_live = false;
        return;
    }
    for (uint32_t i = 0; i < sim.set.rank_count; i++) {
        rank_of(worker->group, i)->told_live = false;
    }
}

static void on_register(struct sim_worker *worker)
{
    struct rt_worker_info info = {.role = worker->role};
    bool decode = worker->role == RT_ROLE_DECODE;
    worker->alive = true;
    worker->incarnation = info.incarnation = ++sim.incarnations;
    worker->free_ns = 0;
    drop_all(worker);
    snprintf(info.id, sizeof info.id, "%c%u", decode ? 'd' : 'p', number(worker));
    info.load = load_of(worker);
    if (decode) {
        info.local_prefill_tokens = sim.set.local != RT_LOCAL_PREFILL_NEVER ? LOCAL_MOST : 0;
        info.group = (struct rt_group_member){.incarnation = sim.groups[worker->group].incarnation,
                                              .rank = worker->rank,
                                              .size = sim.set.rank_count};
        snprintf(info.group.name, sizeof info.group.name, "g%u", worker->group);
    }
    enum bt_status status =
        rt_core_worker_register(sim.core, &info, sim.now_ns, NULL, &worker->ref);
    SIM_REQUIRE(status == BT_OK, "%s can't register: %s", info.id, bt_status_name(status));
    sim_name_ref(worker->ref, number(worker));
    rt_core_worker_connected(sim.core, worker->ref, sim.now_ns);
    worker->told_live = worker->told_connected = true;
    worker->told_ns = sim.now_ns;
    if (sim.now_ns < worker->flaps_until_ns && sim.now_ns < sim.faults_end_ns) {
        struct sim_event again = {.kind = SIM_FAULT, .worker = number(worker), .tokens = 1};
        sim_schedule(again, sim.now_ns + (int64_t)sim_draw(2000) * SIM_MS);
    }
}

/* All ranks of a group go together; each is noticed by itself. */
static void die(struct sim_worker *worker)
{
    bool prefill = worker->role == RT_ROLE_PREFILL;
    if (!prefill) {
        sim.groups[worker->group].step_serial++;
        sim.groups[worker->group].stepping = false;
        sim.groups[worker->group].gone_seen = 0;
    }
    for (uint32_t i = 0; i < (prefill ? 1 : sim.set.rank_count); i++) {
        struct sim_worker *other = prefill ? worker : rank_of(worker->group, i);
        other->alive = false;
        struct sim_event seen = {
            .kind = SIM_LOST_SEEN, .worker = number(other), .decode = other->ref};
        /* The one that died is seen first. */
        sim_schedule(seen, sim.now_ns + (other == worker ? 1 : 5) * SIM_MS +
                               (int64_t)sim_draw(4000) * 1000);
    }
}

static void on_lost_seen(struct sim_worker *worker)
{
    told_lost(worker);
    rt_core_worker_lost(sim.core, worker->ref, "simulated", sim.now_ns);
    bool prefill = worker->role == RT_ROLE_PREFILL;
    uint32_t count = prefill ? 1 : sim.set.rank_count;
    if (!prefill && ++sim.groups[worker->group].gone_seen < count) {
        return;
    }
    if (!prefill) {
        sim.groups[worker->group].incarnation = ++sim.incarnations;
    }
    int64_t when_ns = sim.now_ns + 200 * SIM_MS + (int64_t)sim_draw(2000) * SIM_MS;
    for (uint32_t i = 0; i < count; i++) {
        struct sim_worker *other = prefill ? worker : rank_of(worker->group, i);
        sim_schedule((struct sim_event){.kind = SIM_REGISTER, .worker = number(other)}, when_ns);
    }
}

static void next_fault(uint32_t worker)
{
    struct sim_event fault = {.kind = SIM_FAULT, .worker = worker};
    sim_schedule(fault, sim.now_ns + (int64_t)(1000 + sim_draw(FAULT_MS)) * SIM_MS);
}

/* tokens 1: of a worker that flaps. */
static void on_fault(struct sim_worker *worker, const struct sim_event *event)
{
    if (sim.now_ns >= sim.faults_end_ns) {
        return;
    }
    if (event->tokens == 1) {
        if (worker->alive) {
            die(worker);
        }
        return;
    }
    next_fault(number(worker));
    if (!worker->alive) {
        return;
    }
    switch (sim_draw(4)) {
    case 0:
        die(worker);
        break;
    case 1:
        worker->quiet_until_ns = sim.now_ns + (int64_t)sim_draw(8000) * SIM_MS;
        break;
    case 2:
        worker->sick_until_ns = sim.now_ns + (int64_t)sim_draw(6000) * SIM_MS;
        break;
    default:
        worker->flaps_until_ns = sim.now_ns + (int64_t)sim_draw(12000) * SIM_MS;
        die(worker);
        break;
    }
}

static void on_heartbeat(struct sim_worker *worker, const struct sim_event *event)
{
    sim_schedule(*event, sim.now_ns + HEARTBEAT_NS);
    if (!worker->alive || sim.now_ns < worker->quiet_until_ns) {
        return;
    }
    char id[RT_WORKER_ID_SIZE];
    snprintf(id, sizeof id, "%c%u", worker->role == RT_ROLE_DECODE ? 'd' : 'p', number(worker));
    struct rt_load load = load_of(worker);
    enum bt_status status =
        rt_core_worker_heartbeat(sim.core, id, worker->incarnation, &load, false, sim.now_ns);
    SIM_REQUIRE(status == (worker->told_live ? BT_OK : BT_ERR_NOT_FOUND), "heartbeat of %s: %s", id,
                bt_status_name(status));
    worker->told_ns = status == BT_OK ? sim.now_ns : worker->told_ns;
}

void sim_workers_event(const struct sim_event *event)
{
    struct sim_worker *worker = &sim.workers[event->worker];
    switch (event->kind) {
    case SIM_RESERVE:
        on_reserve(worker, event);
        break;
    case SIM_CANCEL:
        on_cancel(worker, event);
        break;
    case SIM_RESERVED:
        if (event->status == BT_OK && !event->local) {
            rt_core_landed(sim.core, event->request, event->attempt, event->tokens);
        }
        rt_core_reserved(sim.core, event->request, event->attempt, event->decode, event->status,
                         "simulated", event->epoch, sim.now_ns);
        break;
    case SIM_RUN_DONE:
        if (event->incarnation == 0) {
            run_take(worker, event);
        } else {
            on_run_done(worker, event);
        }
        break;
    case SIM_HANDOFF:
        on_handoff(worker, event);
        break;
    case SIM_STEP:
        on_step(worker->group, event);
        break;
    case SIM_HEARTBEAT:
        on_heartbeat(worker, event);
        break;
    case SIM_FAULT:
        on_fault(worker, event);
        break;
    case SIM_LOST_SEEN:
        on_lost_seen(worker);
        break;
    case SIM_REGISTER:
        on_register(worker);
        break;
    default:
        break;
    }
}

void sim_workers_begin(void)
{
    const struct sim_setting *set = &sim.set;
    sim.worker_count = set->prefill_count + set->decode_count * set->rank_count;
    sim.workers = sim_grow(NULL, sim.worker_count * sizeof *sim.workers);
    sim.groups = sim_grow(NULL, set->decode_count * sizeof *sim.groups);
    memset(sim.workers, 0, sim.worker_count * sizeof *sim.workers);
    memset(sim.groups, 0, set->decode_count * sizeof *sim.groups);
    for (uint32_t i = 0; i < set->decode_count; i++) {
        sim.groups[i].incarnation = ++sim.incarnations;
    }
    for (uint32_t i = 0; i < sim.worker_count; i++) {
        struct sim_worker *worker = &sim.workers[i];
        worker->role = i < set->prefill_count ? RT_ROLE_PREFILL : RT_ROLE_DECODE;
        if (worker->role == RT_ROLE_DECODE) {
            worker->group = (i - set->prefill_count) / set->rank_count;
            worker->rank = (i - set->prefill_count) % set->rank_count;
        }
        worker->speed = 0.8 + 0.4 * sim_unit();
        on_register(worker);
        sim_schedule((struct sim_event){.kind = SIM_HEARTBEAT, .worker = i},
                     sim.now_ns + (int64_t)sim_draw(1000) * SIM_MS);
        if (set->faults) {
            next_fault(i);
        }
    }
}
