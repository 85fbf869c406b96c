#include "deploy/batonctl/autoscale_look.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/service_name.h"
#include "deploy/batonctl/stats.h"

/* ---- what routers say */

/* A mean of several, each with its weight. */
static void weigh(double *mean, double *total, double value, double weight)
{
    if (weight > 0) {
        *total += weight;
        *mean += (value - *mean) * weight / *total;
    }
}

static double stage_s(const Baton__V1__StatsResponse *stats, const char *name)
{
    for (size_t i = 0; i < stats->n_stages; i++) {
        if (strcmp(stats->stages[i]->name, name) == 0) {
            return stats->stages[i]->mean_s;
        }
    }
    return 0;
}

static struct ctl_autoscale_stages stages_of(const Baton__V1__StatsResponse *stats)
{
    return (struct ctl_autoscale_stages){
        .queue_s = stage_s(stats, "queue") + stage_s(stats, "earlier_attempts"),
        .reserve_s = stage_s(stats, "reserve"),
        .prefill_queue_s = stage_s(stats, "prefill_queue"),
        .compute_s = stage_s(stats, "prefill_compute"),
        .rest_s = stage_s(stats, "tokenize") + stage_s(stats, "delivery") +
                  stage_s(stats, "local_prefill"),
    };
}

struct totals {
    double ttft, tpot, requests, stages[5];
    double prompt_s, cached_s;
};

static void add_stats(const Baton__V1__StatsResponse *stats, struct totals *totals,
                      struct ctl_autoscale_seen *seen)
{
    struct ctl_autoscale_sample *sample = &seen->sample;
    double ttft = (double)stats->ttft->count, tpot = (double)stats->tpot->count, total;
    double rate = stats->requests_s + stats->shed_s;
    seen->ttft_count += stats->ttft->count;
    seen->tpot_count += stats->tpot->count;
    total = totals->ttft;
    weigh(&sample->ttft_s, &total, stats->ttft->p90_s, ttft);
    total = totals->tpot;
    weigh(&sample->tpot_s, &total, stats->tpot->p90_s, tpot);
    weigh(&sample->tpot_median_s, &totals->tpot, stats->tpot->p50_s, tpot);
    const struct ctl_autoscale_stages its = stages_of(stats);
    double *const sums[] = {&sample->stages.queue_s, &sample->stages.reserve_s,
                            &sample->stages.prefill_queue_s, &sample->stages.compute_s,
                            &sample->stages.rest_s};
    const double values[] = {its.queue_s, its.reserve_s, its.prefill_queue_s, its.compute_s,
                             its.rest_s};
    for (int i = 0; i < 5; i++) {
        total = totals->ttft;
        weigh(sums[i], &total, values[i], ttft);
    }
    totals->ttft += ttft;
    if (stats->input_tokens_mean > 0) {
        total = totals->requests;
        weigh(&sample->load.input_tokens, &total, stats->input_tokens_mean, rate);
        weigh(&sample->load.output_tokens, &totals->requests, stats->output_tokens_mean, rate);
    }
    sample->load.requests_s += rate;
    sample->generated_s += stats->generated_tokens_s;
    totals->prompt_s += stats->prompt_tokens_s;
    totals->cached_s += stats->cached_tokens_s;
    seen->queued += stats->queued;
    seen->running += stats->running;
    seen->window_s = seen->window_s == 0 ? stats->window_s : fmin(seen->window_s, stats->window_s);
}

static double fullness(const Baton__V1__RankLoad *load)
{
    double pages = load->pages_total > 0 && load->pages_free < load->pages_total
                       ? 1 - (double)load->pages_free / load->pages_total
                       : 0;
    double places = load->max_running > 0 ? fmin(1, (double)load->running / load->max_running) : 0;
    return fmax(pages, places);
}

static double mean_fullness(const Baton__V1__StatusResponse *status)
{
    double mean = 0, total = 0;
    for (size_t i = 0; i < status->n_workers; i++) {
        const Baton__V1__WorkerStatus *worker = status->workers[i];
        if (worker->role == BATON__V1__WORKER_ROLE__ROLE_DECODE && worker->load &&
            strcmp(worker->state, "ready") == 0) {
            weigh(&mean, &total, fullness(worker->load), 1);
        }
    }
    return mean;
}

void ctl_autoscale_sum(Baton__V1__StatsResponse *const *stats, size_t count,
                       const Baton__V1__StatusResponse *status, struct ctl_autoscale_seen *seen)
{
    struct totals totals = {0};
    for (size_t i = 0; i < count; i++) {
        add_stats(stats[i], &totals, seen);
    }
    if (totals.prompt_s > 0) {
        seen->sample.load.cached_share = fmin(totals.cached_s / totals.prompt_s, 1);
    }
    if (status) {
        seen->sample.full = mean_fullness(status);
    }
}

/* ---- routers */

static enum bt_status add_router(struct ctl_autoscale_looker *looker, const char *endpoint,
                                 size_t size, struct bt_error *error)
{
    if (looker->router_count == CTL_AUTOSCALE_ROUTERS_MAX || size == 0 ||
        size >= CTL_ENDPOINT_SIZE) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--rpc: 1 to %d endpoints with commas between them, not '%.200s'",
                            CTL_AUTOSCALE_ROUTERS_MAX, endpoint);
    }
    snprintf(looker->endpoints[looker->router_count++], CTL_ENDPOINT_SIZE, "%.*s", (int)size,
             endpoint);
    return BT_OK;
}

static enum bt_status list_routers(struct ctl_autoscale_looker *looker,
                                   const struct ctl_target *target, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    if (target->endpoint && ctl_service_is(target->endpoint)) {
        looker->service = target->endpoint;
        return ctl_service_resolve(target->endpoint, CTL_AUTOSCALE_ROUTERS_MAX, error,
                                   looker->endpoints, &looker->router_count);
    }
    if (target->endpoint) {
        for (const char *at = target->endpoint; status == BT_OK && at;) {
            const char *comma = strchr(at, ',');
            status = add_router(looker, at, comma ? (size_t)(comma - at) : strlen(at), error);
            at = comma ? comma + 1 : NULL;
        }
        return status;
    }
    const struct ctl_cluster *cluster = &looker->address.cluster;
    for (uint32_t i = 0; status == BT_OK && i < cluster->router_count; i++) {
        const char *endpoint = cluster->routers[i].rpc;
        status = add_router(looker, endpoint, strlen(endpoint), error);
    }
    return status;
}

static enum bt_status connect_router(struct ctl_autoscale_looker *looker, uint32_t i,
                                     struct bt_error *error)
{
    looker->connections[i] =
        (struct ctl_connection){.loop = looker->loop, .timeout_ns = looker->timeout_ns};
    return bt_rpc_client_create(looker->loop, looker->endpoints[i], error,
                                &looker->connections[i].client);
}

/* Position of the endpoint in the list; its size: it is not there. */
static uint32_t position(char (*endpoints)[CTL_ENDPOINT_SIZE], uint32_t count, const char *endpoint)
{
    uint32_t i = 0;
    while (i < count && strcmp(endpoints[i], endpoint) != 0) {
        i++;
    }
    return i;
}

/* Routers that left the service's name, and came to it. Those that are known stay when the name
 * can't be resolved now. */
static void follow_service(struct ctl_autoscale_looker *looker)
{
    static char now[CTL_AUTOSCALE_ROUTERS_MAX][CTL_ENDPOINT_SIZE];
    struct bt_error error;
    uint32_t count;
    if (!looker->service || ctl_service_resolve(looker->service, CTL_AUTOSCALE_ROUTERS_MAX, &error,
                                                now, &count) != BT_OK) {
        return;
    }
    for (uint32_t i = looker->router_count; i-- > 0;) {
        if (position(now, count, looker->endpoints[i]) == count) {
            bt_rpc_client_destroy(looker->connections[i].client);
            uint32_t last = --looker->router_count;
            looker->connections[i] = looker->connections[last];
            memmove(looker->endpoints[i], looker->endpoints[last], CTL_ENDPOINT_SIZE);
        }
    }
    for (uint32_t k = 0; k < count; k++) {
        uint32_t i = looker->router_count;
        if (position(looker->endpoints, i, now[k]) < i) {
            continue;
        }
        memcpy(looker->endpoints[i], now[k], CTL_ENDPOINT_SIZE);
        if (connect_router(looker, i, &error) == BT_OK) { /* otherwise at the next look */
            looker->router_count++;
        }
    }
}

enum bt_status ctl_autoscale_looker_init(struct ctl_autoscale_looker *looker,
                                         const struct ctl_target *target, struct bt_error *error)
{
    memset(looker, 0, sizeof *looker);
    enum bt_status status = ctl_target_find(target, error, &looker->address);
    if (status == BT_OK) {
        status = list_routers(looker, target, error);
    }
    if (status != BT_OK) {
        return status;
    }
    looker->loop = bt_loop_create(error);
    if (!looker->loop) {
        return BT_ERR_NO_MEMORY;
    }
    looker->timeout_ns = target->timeout_ns;
    status = bt_loop_secure(looker->loop, &looker->address.security, error);
    for (uint32_t i = 0; status == BT_OK && i < looker->router_count; i++) {
        status = connect_router(looker, i, error);
    }
    if (status != BT_OK) {
        ctl_autoscale_looker_finish(looker);
    }
    return status;
}

void ctl_autoscale_looker_finish(struct ctl_autoscale_looker *looker)
{
    for (uint32_t i = 0; i < looker->router_count; i++) {
        bt_rpc_client_destroy(looker->connections[i].client);
    }
    if (looker->loop) {
        bt_loop_destroy(looker->loop);
    }
    free(looker->known);
    free(looker->workers);
    memset(looker, 0, sizeof *looker);
}

static void ask_routers(struct ctl_autoscale_looker *looker, uint32_t window_s,
                        struct ctl_autoscale_seen *seen)
{
    Baton__V1__StatsResponse *stats[CTL_AUTOSCALE_ROUTERS_MAX] = {0};
    Baton__V1__StatusResponse *status = NULL;
    size_t count = 0;
    looker->trouble[0] = '\0';
    follow_service(looker);
    for (uint32_t i = 0; i < looker->router_count; i++) {
        struct bt_error error = {0};
        struct ctl_connection *connection = &looker->connections[i];
        enum bt_status result = ctl_connection_stats(connection, window_s, &error, &stats[count]);
        count += result == BT_OK;
        if (result == BT_OK && !status) {
            result = ctl_connection_status(connection, &error, &status);
        }
        if (result != BT_OK) {
            seen->partial = true;
            snprintf(looker->trouble, sizeof looker->trouble, "%.80s: %.160s", looker->endpoints[i],
                     error.text);
            ctl_text_flatten(looker->trouble);
        }
    }
    if (count > 0) {
        seen->stats_ns = bt_clock_now_ns();
    }
    ctl_autoscale_sum(stats, count, status, seen);
    for (size_t i = 0; i < count; i++) {
        baton__v1__stats_response__free_unpacked(stats[i], NULL);
    }
    if (status) {
        baton__v1__status_response__free_unpacked(status, NULL);
    }
}

/* ---- workers */

static struct ctl_autoscale_known *find_known(struct ctl_autoscale_looker *looker, const char *name)
{
    for (uint32_t i = 0; i < looker->known_count; i++) {
        if (strcmp(looker->known[i].name, name) == 0) {
            return &looker->known[i];
        }
    }
    return NULL;
}

/* Room for all that were known and all that are there. */
static bool make_room(struct ctl_autoscale_looker *looker, uint32_t count)
{
    size_t most = (size_t)looker->known_count + count + 1;
    void *known = realloc(looker->known, most * sizeof *looker->known);
    looker->known = known ? known : looker->known;
    void *workers = realloc(looker->workers, most * sizeof *looker->workers);
    looker->workers = workers ? workers : looker->workers;
    return known && workers;
}

static int64_t age_of(struct ctl_autoscale_looker *looker, const struct ctl_member *member,
                      int64_t now_ns)
{
    struct ctl_autoscale_known *known = find_known(looker, member->name);
    if (!known) {
        known = &looker->known[looker->known_count++];
        snprintf(known->name, sizeof known->name, "%s", member->name);
        known->since_ns = looker->begun ? now_ns : INT64_MIN;
    }
    known->seen = true;
    return known->since_ns == INT64_MIN ? INT64_MAX : now_ns - known->since_ns;
}

/* Those that are not ready, or not there: were they back, they would be new. */
static void forget_others(struct ctl_autoscale_looker *looker)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < looker->known_count; i++) {
        if (looker->known[i].seen) {
            looker->known[kept] = looker->known[i];
            looker->known[kept++].seen = false;
        }
    }
    looker->known_count = kept;
}

static enum bt_status look_at_fleet(struct ctl_autoscale_looker *looker, struct ctl_engine *engine,
                                    struct bt_error *error, struct ctl_autoscale_seen *seen)
{
    struct ctl_fleet fleet;
    enum bt_status status = engine->ops->observe(engine, error, &fleet);
    if (status != BT_OK) {
        return status;
    }
    if (!make_room(looker, fleet.count)) {
        ctl_fleet_finish(&fleet);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the list of workers");
    }
    memcpy(seen->wanted, fleet.wanted, sizeof seen->wanted);
    for (uint32_t i = 0; i < fleet.count; i++) {
        const struct ctl_member *member = &fleet.members[i];
        if (member->gone) { /* nobody waits for it */
            seen->wanted[member->role] -= seen->wanted[member->role] > 0;
            continue;
        }
        looker->ranks[member->role] = member->ranks;
        looker->workers[seen->worker_count++] = (struct ctl_autoscale_worker){
            .role = member->role,
            .ready = member->ready,
            .ending = member->ending,
            .age_ns = member->ready ? age_of(looker, member, seen->now_ns) : 0,
        };
    }
    forget_others(looker);
    looker->begun = true;
    seen->workers = looker->workers;
    ctl_fleet_finish(&fleet);
    return BT_OK;
}

enum bt_status ctl_autoscale_look(struct ctl_autoscale_looker *looker, struct ctl_engine *engine,
                                  uint32_t window_s, struct bt_error *error,
                                  struct ctl_autoscale_seen *ret_seen)
{
    struct ctl_autoscale_seen seen = {0};
    ask_routers(looker, window_s > 0 ? window_s : 1, &seen);
    if (bt_loop_stopping(looker->loop)) {
        return bt_error_set(error, BT_ERR_CANCELLED, "interrupted");
    }
    seen.now_ns = bt_clock_now_ns();
    enum bt_status status = look_at_fleet(looker, engine, error, &seen);
    if (status == BT_OK) {
        *ret_seen = seen;
    }
    return status;
}
