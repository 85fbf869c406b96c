/*
 * baton-solo: one process, no network. The engines of the prefill and the decode worker
 * run side by side on pools of their own; KV is copied from one to the other page by page as the
 * push would write it. What a cluster answers must be the same, bit for bit.
 *
 * Requests are JSON lines on stdin (job.h), answers JSON lines on stdout in the order they end.
 */
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/option.h"
#include "common/kvcache/page_pool.h"
#include "common/model/device_options.h"
#include "kvtransfer/plan.h"
#include "tests/solo/job.h"

struct solo {
    struct bt_team *team;
    struct bt_model *model;
    struct bt_kv_layout layout;
    struct bt_page_pool *source_pages, *pages;
    struct bt_device *device;
    struct bt_stream *stream; /* that copies pages */
    void *source_pool, *pool;
    uint32_t pool_pages;
    struct pf_engine *prefill;
    struct dc_engine *decode;
    struct dc_step step;
    struct solo_job **waiting; /* in order of input */
    size_t waiting_count, waiting_next;
    uint32_t in_decode, max_num_seqs;
};

static struct {
    const char *model;
    int64_t chunked_prefill_size, max_num_seqs, kv_pages;
    int64_t threads;
    const char *cpus, *device;
    int dtype, kv_cache_dtype, kernels;
} arguments;

static const char *const kernels[] = {"auto", "ref", "avx2", "avx512", "avx512_bf16", "amx", NULL};

static const struct bt_option options[] = {
    {"model", BT_OPTION_STRING, &arguments.model, NULL, .metavar = "DIR", .required = true,
     .help = "Checkpoint directory."},
    {"chunked-prefill-size", BT_OPTION_INT, &arguments.chunked_prefill_size, "512", 1, 65536,
     .help = "Tokens of one prefill iteration."},
    {"max-num-seqs", BT_OPTION_INT, &arguments.max_num_seqs, "16", 1, 4096,
     .help = "Requests computed together, in prefill and in decode."},
    {"kv-pages", BT_OPTION_INT, &arguments.kv_pages, "2048", 1, 1 << 24,
     .help = "Pages of each of the two pools."},
    {"dtype", BT_OPTION_CHOICE, &arguments.dtype, "auto", .choices = bt_model_dtype_names,
     .help = "Arithmetic, as of the workers."},
    {"kv-cache-dtype", BT_OPTION_CHOICE, &arguments.kv_cache_dtype, "auto",
     .choices = bt_kv_dtype_names, .help = "Element type of the KV cache, as of the workers."},
    {"cpus", BT_OPTION_STRING, &arguments.cpus, NULL, .metavar = "LIST",
     .help = "Cpus that threads are pinned to."},
    {"threads", BT_OPTION_INT, &arguments.threads, "0", 0, BT_TEAM_MAX_THREADS,
     .help = "Threads; 0: one for each of --cpus, 1 without."},
    BT_DEVICE_OPTION(arguments.device),
    {"kernels", BT_OPTION_CHOICE, &arguments.kernels, "auto", .choices = kernels,
     .help = "Of a CPU."},
    {NULL},
};

static enum bt_status solo_engines(struct solo *solo, struct bt_error *error)
{
    const struct pf_engine_options prefill = {
        .model = solo->model,
        .layout = solo->layout,
        .kv_pool = solo->source_pool,
        .pool_pages = solo->pool_pages,
        .limits = {(uint32_t)arguments.chunked_prefill_size, solo->max_num_seqs,
                   BT_PROMPT_AGEING_TOKENS_PER_S},
        .max_jobs = solo->max_num_seqs,
    };
    enum bt_status status = pf_engine_create(&prefill, error, &solo->prefill);
    if (status != BT_OK) {
        return status;
    }
    const struct dc_engine_options decode = {
        .model = solo->model,
        .layout = solo->layout,
        .kv_pool = solo->pool,
        .pool_pages = solo->pool_pages,
        .max_num_seqs = solo->max_num_seqs,
        .max_sequences = 2 * solo->max_num_seqs,
        .max_model_len = solo->model->config.max_position_embeddings,
    };
    return dc_engine_create(&decode, error, &solo->decode);
}

static enum bt_status solo_init(struct solo *solo, struct bt_error *error)
{
    const struct bt_team_options team = {(uint32_t)arguments.threads, arguments.cpus};
    enum bt_status status = bt_team_create(&team, error, &solo->team);
    if (status != BT_OK) {
        return status;
    }
    status =
        bt_device_open_named(arguments.device, kernels[arguments.kernels], 0, error, &solo->device);
    if (status != BT_OK) {
        return status;
    }
    const struct bt_model_options model = {
        .dir = arguments.model,
        .device = solo->device,
        .dtype = (enum bt_model_dtype)arguments.dtype,
        .team = solo->team,
    };
    status = bt_model_load(&model, error, &solo->model);
    if (status != BT_OK) {
        return status;
    }
    const char *kv_dtype = bt_kv_dtype_names[arguments.kv_cache_dtype];
    solo->layout = bt_model_kv_layout(solo->model, bt_model_kv_dtype(solo->model, kv_dtype));
    solo->pool_pages = (uint32_t)arguments.kv_pages;
    solo->max_num_seqs = (uint32_t)arguments.max_num_seqs;
    size_t bytes = bt_kv_pool_bytes(&solo->layout, solo->pool_pages);
    const struct bt_stream_limits none = {0};
    status = bt_device_alloc(solo->device, bytes, error, &solo->source_pool);
    if (status == BT_OK) {
        status = bt_device_alloc(solo->device, bytes, error, &solo->pool);
    }
    if (status == BT_OK) {
        status = bt_device_stream_create(solo->device, &none, solo->team, error, &solo->stream);
    }
    if (status != BT_OK) {
        return status;
    }
    solo->source_pages = bt_page_pool_create(solo->pool_pages);
    solo->pages = bt_page_pool_create(solo->pool_pages);
    if (!solo->source_pages || !solo->pages || !dc_step_init(&solo->step, 2 * solo->max_num_seqs)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for two pools");
    }
    return solo_engines(solo, error);
}

static void solo_finish(struct solo *solo)
{
    dc_step_finish(&solo->step);
    pf_engine_destroy(solo->prefill);
    dc_engine_destroy(solo->decode);
    bt_page_pool_destroy(solo->source_pages);
    bt_page_pool_destroy(solo->pages);
    if (solo->device) {
        bt_device_stream_destroy(solo->device, solo->stream);
        bt_device_free(solo->device, solo->source_pool);
        bt_device_free(solo->device, solo->pool);
    }
    bt_model_destroy(solo->model);
    bt_device_close(solo->device);
    bt_team_destroy(solo->team);
    free(solo->waiting);
}

static enum bt_status read_jobs(struct solo *solo, FILE *in, struct bt_error *error)
{
    char *line = NULL;
    size_t size = 0;
    enum bt_status status = BT_OK;
    for (unsigned number = 1; status == BT_OK && getline(&line, &size, in) > 0; number++) {
        struct solo_job **grown =
            realloc(solo->waiting, (solo->waiting_count + 1) * sizeof(struct solo_job *));
        if (!grown) {
            status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
            break;
        }
        solo->waiting = grown;
        status =
            solo_job_parse(line, &solo->model->config, error, &solo->waiting[solo->waiting_count]);
        solo->waiting_count += status == BT_OK;
        if (status != BT_OK) {
            bt_error_prefix(error, "line %u", number);
        }
    }
    free(line);
    return status;
}

/* Both ends of a request are reserved before it starts, as the cluster does. */
static bool reserve(struct solo *solo, struct solo_job *job)
{
    uint64_t request = (uint64_t)(uintptr_t)job;
    const struct bt_page_owner owner = {request, 1};
    uint32_t prompt_pages = bt_kv_pages_for(job->prompt_tokens);
    uint32_t total = bt_kv_pages_for((uint64_t)job->prompt_tokens + job->sampling.max_tokens);
    if (bt_page_pool_count(solo->source_pages, BT_PAGE_FREE) < prompt_pages ||
        bt_page_pool_count(solo->pages, BT_PAGE_FREE) < total) {
        return false;
    }
    job->source_pages = calloc(prompt_pages, sizeof(uint32_t));
    job->pages = calloc(total, sizeof(uint32_t));
    job->source_page_count = prompt_pages;
    job->page_count = total;
    return job->source_pages && job->pages &&
           bt_page_pool_alloc(solo->source_pages, prompt_pages, owner, job->source_pages) &&
           bt_page_pool_alloc(solo->pages, total, owner, job->pages);
}

static void start_jobs(struct solo *solo)
{
    while (solo->waiting_next < solo->waiting_count &&
           pf_engine_job_count(solo->prefill) + solo->in_decode < solo->max_num_seqs) {
        struct solo_job *job = solo->waiting[solo->waiting_next];
        if (!reserve(solo, job)) {
            return;
        }
        job->prefill = (struct pf_job){
            .serial = ++solo->waiting_next,
            .request = (uint64_t)(uintptr_t)job,
            .tokens = job->prompt,
            .token_count = job->prompt_tokens,
            .pages = job->source_pages,
            .sampling = &job->sampling,
            .history = job->history,
            .user = job,
        };
        pf_engine_add(solo->prefill, &job->prefill);
    }
}

static void copy_kv(struct solo *solo, const struct solo_job *job)
{
    const struct kvt_plan_side source = {job->source_pages, solo->pool_pages};
    const struct kvt_plan_side target = {job->pages, solo->pool_pages};
    struct kvt_write writes[16];
    for (uint32_t layer = 0; layer < solo->layout.layer_count; layer++) {
        for (uint32_t begin = 0, tokens; begin < job->prompt_tokens; begin += tokens) {
            uint32_t count =
                kvt_plan_layer(&solo->layout, layer, begin, job->prompt_tokens, &source, &target,
                               (struct kvt_share){0, 1}, writes, 16, &tokens);
            for (uint32_t i = 0; i < count; i++) {
                bt_device_copy(
                    solo->device, solo->stream, (char *)solo->pool + writes[i].target_offset,
                    (const char *)solo->source_pool + writes[i].source_offset, writes[i].bytes);
            }
        }
    }
    struct bt_error error;
    if (bt_device_synchronize(solo->device, solo->stream, &error) != BT_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
}

static void hand_over(struct solo *solo, struct solo_job *job)
{
    const struct bt_page_owner owner = {(uint64_t)(uintptr_t)job, 1};
    copy_kv(solo, job);
    bt_page_pool_move(solo->source_pages, job->source_pages, job->source_page_count, owner,
                      BT_PAGE_RESERVED, BT_PAGE_FREE);
    job->decode = (struct dc_sequence){
        .request = owner.request,
        .epoch = owner.epoch,
        .prompt_tokens = job->prompt_tokens,
        .pages = job->pages,
        .page_count = job->page_count,
        .page_capacity = job->page_count,
        .sampling = &job->sampling,
        .history = job->history,
        .last = job->prefill.first,
        .user = job,
    };
    dc_engine_add(solo->decode, &job->decode);
    solo->in_decode++;
}

static void end_job(struct solo *solo, struct solo_job *job, enum dc_finish finish)
{
    const struct bt_page_owner owner = {(uint64_t)(uintptr_t)job, 1};
    bt_page_pool_move(solo->pages, job->pages, job->page_count, owner, BT_PAGE_RESERVED,
                      BT_PAGE_FREE);
    solo->in_decode--;
    job->finish = finish == DC_FINISH_STOP     ? "stop"
                  : finish == DC_FINISH_LENGTH ? "length"
                                               : "error";
    solo_job_print(job, stdout);
    solo_job_destroy(job);
}

static void prefill_iteration(struct solo *solo)
{
    struct pf_jobs jobs;
    pf_engine_begin(solo->prefill, &jobs);
    pf_engine_run(solo->prefill, &jobs);
    for (uint32_t i = 0; i < jobs.count; i++) {
        hand_over(solo, jobs.jobs[i]->user);
    }
}

static void decode_step(struct solo *solo)
{
    dc_engine_step(solo->decode, &solo->step);
    for (uint32_t i = 0; i < solo->step.entry_count; i++) {
        const struct dc_entry *entry = &solo->step.entries[i];
        struct solo_job *job = entry->user;
        if (entry->has_token) {
            BT_ASSERT(entry->index == job->sample_count);
            job->samples[job->sample_count++] = entry->sample;
        }
        if (entry->finish != DC_RUNNING) {
            end_job(solo, job, entry->finish);
        }
    }
}

static enum bt_status solo_run(struct solo *solo, struct bt_error *error)
{
    while (solo->waiting_next < solo->waiting_count || solo->in_decode > 0 ||
           pf_engine_job_count(solo->prefill) > 0) {
        start_jobs(solo);
        if (pf_engine_job_count(solo->prefill) > 0) {
            prefill_iteration(solo);
        } else if (solo->in_decode == 0) {
            return bt_error_set(error, BT_ERR_EXHAUSTED, "--kv-pages %u: too few for request %zu",
                                solo->pool_pages, solo->waiting_next + 1);
        }
        if (dc_engine_runnable(solo->decode)) {
            decode_step(solo);
        }
    }
    return BT_OK;
}

int main(int argc, char **argv)
{
    struct bt_error error = {0};
    struct solo solo = {0};
    bt_log_init("baton-solo", BT_LOG_WARN);
    enum bt_status status =
        bt_option_parse(options, "baton-solo [options] < requests.jsonl", argc, argv, &error, NULL);
    if (status == BT_ERR_CANCELLED) {
        return 0;
    }
    if (status == BT_OK) {
        status = solo_init(&solo, &error);
    }
    if (status == BT_OK) {
        status = read_jobs(&solo, stdin, &error);
    }
    if (status == BT_OK) {
        status = solo_run(&solo, &error);
    }
    while (solo.waiting_next < solo.waiting_count) {
        solo_job_destroy(solo.waiting[solo.waiting_next++]);
    }
    solo_finish(&solo);
    if (status != BT_OK) {
        bt_log_error(0, "%s", error.text);
        return 1;
    }
    return 0;
}
