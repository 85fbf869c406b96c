#include "deploy/batonctl/stats.h"

#include <math.h>
#include <stdlib.h>

#include "common/base/clock.h"

/* No rate, time or share of a router comes near: what does is a lie, and its sums stay finite. */
#define LARGEST 1e15

static void flatten(double *value, double least)
{
    if (!(*value >= least)) { /* NaN, too */
        *value = least;
    } else if (*value > LARGEST) {
        *value = LARGEST;
    }
}

static void flatten_quantiles(Baton__V1__Quantiles *quantiles)
{
    flatten(&quantiles->p50_s, 0);
    flatten(&quantiles->p90_s, 0);
    flatten(&quantiles->p99_s, 0);
}

static void flatten_point(Baton__V1__StatsPoint *point)
{
    double *const values[] = {&point->requests_s,      &point->generated_tokens_s,
                              &point->prompt_tokens_s, &point->kv_bytes_s,
                              &point->kv_mean,         &point->kv_max};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        flatten(values[i], 0);
    }
    flatten(&point->ttft_p90_s, -1);
    flatten(&point->tpot_p90_s, -1);
}

static void flatten_stats(Baton__V1__StatsResponse *stats)
{
    double *const values[] = {&stats->window_s,           &stats->requests_s,
                              &stats->failed_s,           &stats->shed_s,
                              &stats->prompt_tokens_s,    &stats->cached_tokens_s,
                              &stats->generated_tokens_s, &stats->kv_bytes_s,
                              &stats->input_tokens_mean,  &stats->output_tokens_mean};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        flatten(values[i], 0);
    }
    flatten_quantiles(stats->ttft);
    flatten_quantiles(stats->tpot);
    for (size_t i = 0; i < stats->n_stages; i++) {
        flatten(&stats->stages[i]->mean_s, 0);
    }
    for (size_t i = 0; i < stats->n_points; i++) {
        flatten_point(stats->points[i]);
    }
}

/* False: no memory. */
static bool fill_quantiles(Baton__V1__Quantiles **quantiles)
{
    if (!*quantiles) {
        *quantiles = malloc(sizeof **quantiles);
        if (*quantiles) {
            baton__v1__quantiles__init(*quantiles);
        }
    }
    return *quantiles != NULL;
}

enum bt_status ctl_connection_stats(struct ctl_connection *connection, uint32_t window_s,
                                    struct bt_error *error, Baton__V1__StatsResponse **ret_stats)
{
    Baton__V1__StatsRequest request = BATON__V1__STATS_REQUEST__INIT;
    request.window_s = window_s;
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Router/Stats",
        .request = &request.base,
        .response = &baton__v1__stats_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + connection->timeout_ns,
    };
    ProtobufCMessage *response = NULL;
    enum bt_status status = bt_rpc_client_call_wait(connection->client, &spec, error, &response);
    if (status != BT_OK) {
        return status;
    }
    Baton__V1__StatsResponse *stats = (Baton__V1__StatsResponse *)response;
    if (!fill_quantiles(&stats->ttft) || !fill_quantiles(&stats->tpot)) {
        baton__v1__stats_response__free_unpacked(stats, NULL);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the stats");
    }
    ctl_message_flatten(response);
    flatten_stats(stats);
    *ret_stats = stats;
    return BT_OK;
}
