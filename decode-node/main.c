#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "common/model/device_options.h"
#include "decode-node/options.h"

#define STOP_NS   (10 * BT_NS_PER_S)
#define FAILED_NS (2 * BT_NS_PER_S) /* to say goodbye, of a rank whose group is over */

/* Requests are cancelled. What is still written by a peer goes with the process's memory. */
static void stop_in_order(struct bt_loop *loop, struct dc_worker *worker)
{
    struct bt_error error;
    int64_t until_ns = bt_clock_now_ns() + (dc_worker_failed(worker, &error) ? FAILED_NS : STOP_NS);
    dc_worker_stop(worker);
    while (!dc_worker_quiet(worker) && bt_clock_now_ns() < until_ns) {
        if (bt_loop_run_once(loop, until_ns, &error) != BT_OK) {
            break;
        }
    }
}

static enum bt_status serve(struct bt_loop *loop, struct bt_model *model, struct bt_rank *rank,
                            const struct dc_options *options, struct bt_error *error)
{
    struct dc_worker *worker;
    struct dc_worker_options worker_options = options->worker;
    char labels[128];
    snprintf(labels, sizeof(labels), "arithmetic=\"%s\",kernels=\"%s\",threads=\"%" PRIu32 "\"",
             bt_model_arithmetic(model), model->kernels->name, bt_team_threads(model->team));
    worker_options.engine_labels = labels;
    worker_options.rank = rank;
    worker_options.kv_dtype = bt_model_kv_dtype(model, options->kv_cache_dtype);
    enum bt_status status = dc_worker_create(loop, model, &worker_options, error, &worker);
    bt_process_start_end();
    if (status != BT_OK) {
        return status;
    }
    bt_log_info(0, "serving %s at %s", options->worker.served_model_name,
                dc_worker_endpoint(worker));
    status = bt_loop_run(loop, error);
    if (status == BT_OK && dc_worker_refused(worker)) {
        status = bt_error_set(error, BT_ERR_MISMATCH, "a router refused this worker");
    }
    stop_in_order(loop, worker);
    if (dc_worker_failed(worker, error)) {
        status = error->status;
    }
    dc_worker_destroy(worker);
    return status;
}

/* The longest sequence that there will be: what the model's tables and scratch are made for. */
static uint32_t longest_sequence(const struct dc_worker_options *options)
{
    uint64_t pool_tokens = (uint64_t)options->kv_pages * BT_PAGE_TOKENS;
    uint64_t length = options->max_model_len ? options->max_model_len : UINT32_MAX;
    return (uint32_t)(pool_tokens < length ? pool_tokens : length);
}

/* The threads of control, of which this is one, may use all cpus of the team. */
static enum bt_status load(const struct dc_options *options, struct bt_team *team,
                           const struct bt_rank *rank, struct bt_error *error,
                           struct bt_model **ret_model)
{
    struct bt_model_options model = {
        .dir = options->model,
        .device = options->rank.device,
        .dtype = options->dtype,
        .max_tokens = longest_sequence(&options->worker),
        .team = team,
    };
    bt_rank_part(rank, &model);
    enum bt_status status = bt_model_load(&model, error, ret_model);
    bt_team_leave(team);
    return status;
}

static enum bt_status run(struct dc_options *options, struct bt_error *error)
{
    struct bt_model *model = NULL;
    struct bt_team *team = NULL;
    struct bt_rank *rank = NULL;
    struct bt_device *device = NULL;
    struct bt_loop *loop = bt_loop_create(error);
    if (!loop) {
        return error->status;
    }
    bt_process_raise_file_limit();
    enum bt_status status = bt_loop_stop_on_signals(loop, error);
    if (status == BT_OK) {
        status = bt_loop_secure(loop, &options->security, error);
    }
    if (status == BT_OK && options->die_with_parent) {
        status = bt_process_die_with_parent();
    }
    if (status == BT_OK) {
        status = bt_process_start_begin(error);
    }
    if (status == BT_OK) {
        status = bt_team_create(&options->team, error, &team);
    }
    if (status == BT_OK) {
        status = bt_device_open_named(options->device, options->kernels, options->rank.rank, error,
                                      &device);
    }
    if (status == BT_OK) {
        options->rank.device = device;
        status = bt_rank_join(&options->rank, options->model, error, &rank);
    }
    if (status == BT_OK) {
        status = load(options, team, rank, error, &model);
    }
    if (status == BT_OK) {
        status = serve(loop, model, rank, options, error);
    }
    bt_process_start_end();
    bt_rank_leave(rank);
    bt_model_destroy(model);
    bt_device_close(device);
    bt_team_destroy(team);
    bt_loop_destroy(loop);
    return status;
}

int main(int argc, char **argv)
{
    struct bt_error error = {0};
    struct dc_options options;
    enum bt_status status = dc_options_parse(argc, argv, &error, &options);
    if (status == BT_ERR_CANCELLED) {
        return EXIT_SUCCESS; /* --help */
    }
    if (status != BT_OK) {
        fprintf(stderr, "baton-decode: %s\n", error.text);
        return BT_EXIT_USAGE;
    }
    bt_log_init(options.worker.worker_id, options.log_level);
    status = run(&options, &error);
    if (status != BT_OK) {
        bt_log_error(0, "%s", error.text);
    }
    return status == BT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
