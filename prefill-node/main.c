#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "common/model/device_options.h"
#include "prefill-node/budget.h"
#include "prefill-node/follower.h"
#include "prefill-node/options.h"

#define STOP_NS (10 * BT_NS_PER_S)
/* For a goodbye when a rank of the group is lost; and for its last words on their way out. */
#define LOST_NS       (2 * BT_NS_PER_S)
#define LAST_WORDS_NS (100 * BT_NS_PER_MS)
/* A rank that was told to end waits for rank 0, which first ends its runs. */
#define FOLLOWER_STOP_NS (STOP_NS + 5 * BT_NS_PER_S)

/*
 * The runs end and the decode ranks hear of it. What can not be ended in time ends with the
 * process: its death is the proof that no write of it is under way.
 */
static bool stop_in_order(struct bt_loop *loop, struct pf_worker *worker, int64_t limit_ns)
{
    struct bt_error error;
    int64_t until_ns = bt_clock_now_ns() + limit_ns;
    pf_worker_stop(worker);
    while (!pf_worker_quiet(worker) && bt_clock_now_ns() < until_ns) {
        if (bt_loop_run_once(loop, until_ns, &error) != BT_OK) {
            break;
        }
    }
    return pf_worker_idle(worker);
}

static enum bt_status serve_runs(struct bt_loop *loop, const struct bt_model *model,
                                 const struct pf_worker_options *options, struct bt_error *error)
{
    struct pf_worker *worker;
    enum bt_status status = pf_worker_create(loop, model, options, error, &worker);
    bt_process_start_end();
    if (status != BT_OK) {
        return status;
    }
    bt_log_info(0, "serving %s at %s", options->served_model_name, pf_worker_endpoint(worker));
    status = bt_loop_run(loop, error);
    if (status == BT_OK && pf_worker_refused(worker)) {
        status = bt_error_set(error, BT_ERR_MISMATCH, "a router refused this worker");
    }
    bool idle = stop_in_order(loop, worker, pf_worker_lost(worker, NULL) ? LOST_NS : STOP_NS);
    if (pf_worker_lost(worker, NULL)) {
        int64_t until_ns = bt_clock_now_ns() + LAST_WORDS_NS;
        while (bt_clock_now_ns() < until_ns && bt_loop_run_once(loop, until_ns, error) == BT_OK) {
        }
        _exit(1); /* the others know: nothing of a group that is over ends in order */
    }
    if (!idle) {
        bt_log_warn(0, "runs did not end in %d s", (int)(STOP_NS / BT_NS_PER_S));
        _exit(status == BT_OK ? 0 : 1);
    }
    pf_worker_destroy(worker);
    return status;
}

static void run_until(struct bt_loop *loop, const struct pf_follower *follower,
                      bool (*done)(const struct pf_follower *follower), int64_t limit_ns)
{
    struct bt_error error;
    int64_t until_ns = bt_clock_now_ns() + limit_ns;
    while (!done(follower) && bt_clock_now_ns() < until_ns) {
        if (bt_loop_run_once(loop, until_ns, &error) != BT_OK) {
            return;
        }
    }
}

static bool is_over(const struct pf_follower *follower)
{
    return pf_follower_over(follower, NULL);
}

static enum bt_status serve_rank(struct bt_loop *loop, const struct bt_model *model,
                                 const struct pf_worker_options *options, struct bt_error *error)
{
    struct pf_follower *follower;
    struct bt_error over = {0};
    enum bt_status status = pf_follower_create(loop, model, options, error, &follower);
    bt_process_start_end();
    if (status != BT_OK) {
        return status;
    }
    bt_log_info(0, "rank %" PRIu32 " of %" PRIu32 " at %s", bt_rank_index(options->rank),
                bt_rank_size(options->rank), pf_follower_endpoint(follower));
    status = bt_loop_run(loop, error);
    if (!is_over(follower)) {
        pf_follower_stop(follower);
        run_until(loop, follower, is_over, FOLLOWER_STOP_NS);
    }
    pf_follower_cancel(follower);
    run_until(loop, follower, pf_follower_idle, LOST_NS);
    if (!pf_follower_over(follower, &over) || over.status != BT_OK || !pf_follower_idle(follower)) {
        _exit(1);
    }
    pf_follower_destroy(follower);
    return status;
}

static enum bt_status serve(struct bt_loop *loop, const struct bt_model *model,
                            const struct pf_options *options, struct bt_rank *rank,
                            struct bt_error *error)
{
    struct pf_worker_options worker = options->worker;
    char labels[128];
    snprintf(labels, sizeof(labels),
             "arithmetic=\"%s\",kernels=\"%s\",threads=\"%" PRIu32 "\",chunk_tokens=\"%" PRIu32
             "\"",
             bt_model_arithmetic(model), model->kernels->name, bt_team_threads(model->team),
             worker.chunked_prefill_size);
    worker.engine_labels = labels;
    worker.rank = rank;
    return bt_rank_index(rank) == 0 ? serve_runs(loop, model, &worker, error)
                                    : serve_rank(loop, model, &worker, error);
}

/* The longest sequence that there will be: what the model's tables and scratch are made for. */
static uint32_t longest_sequence(const struct pf_worker_options *options)
{
    uint64_t pool_tokens = (uint64_t)options->kv_pages * BT_PAGE_TOKENS;
    uint64_t length = options->max_model_len ? options->max_model_len : UINT32_MAX;
    return (uint32_t)(pool_tokens < length ? pool_tokens : length);
}

/* What depends on the model: the type of its pages, the size of chunks. */
static enum bt_status complete(struct pf_options *options, const struct bt_model *model,
                               struct bt_error *error)
{
    options->worker.kv_dtype = bt_model_kv_dtype(model, options->kv_cache_dtype);
    if (options->worker.chunked_prefill_size) {
        return BT_OK;
    }
    struct bt_kv_layout layout = bt_model_kv_layout(model, options->worker.kv_dtype);
    return pf_budget_find(model, &layout, options->cache_dir, error,
                          &options->worker.chunked_prefill_size);
}

/* The threads of control, of which this is one, may use all cpus of the team. */
static enum bt_status load(struct pf_options *options, const struct bt_rank *rank,
                           struct bt_team *team, struct bt_error *error,
                           struct bt_model **ret_model)
{
    struct bt_model_options model = {
        .dir = options->model,
        .device = options->group.device,
        .dtype = options->dtype,
        .max_tokens = longest_sequence(&options->worker),
        .team = team,
    };
    bt_rank_part(rank, &model);
    enum bt_status status = bt_model_load(&model, error, ret_model);
    if (status == BT_OK) {
        status = complete(options, *ret_model, error);
    }
    bt_team_leave(team);
    return status;
}

static enum bt_status run(struct pf_options *options, struct bt_error *error)
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
        status = bt_device_open_named(options->device, options->kernels, options->group.rank, error,
                                      &device);
    }
    if (status == BT_OK) {
        options->group.device = device;
        options->group.max_rows = options->worker.chunked_prefill_size;
        status = bt_rank_join(&options->group, options->model, error, &rank);
    }
    if (status == BT_OK) {
        status = load(options, rank, team, error, &model);
    }
    if (status == BT_OK) {
        status = serve(loop, model, options, rank, error);
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
    struct pf_options options;
    enum bt_status status = pf_options_parse(argc, argv, &error, &options);
    if (status == BT_ERR_CANCELLED) {
        return EXIT_SUCCESS; /* --help */
    }
    if (status != BT_OK) {
        fprintf(stderr, "baton-prefill: %s\n", error.text);
        return BT_EXIT_USAGE;
    }
    bt_log_init(options.worker.worker_id, options.log_level);
    status = run(&options, &error);
    if (status != BT_OK) {
        bt_log_error(0, "%s", error.text);
    }
    return status == BT_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
