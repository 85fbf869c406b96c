#include "prefill-node/request.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/kvcache/layout.h"
#include "common/kvcache/page_pool.h"

static enum bt_status check_prompt(const Baton__V1__PrefillRequest *message,
                                   const struct pf_request_limits *limits, struct bt_error *error)
{
    if (message->request_id == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "request_id is 0");
    }
    if (message->n_prompt == 0 || message->n_prompt >= limits->max_model_len) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "prompt: %zu tokens, 1 to %" PRIu32,
                            message->n_prompt, limits->max_model_len - 1);
    }
    for (size_t i = 0; i < message->n_prompt; i++) {
        if (message->prompt[i] >= limits->vocab_size) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "prompt[%zu]: token %" PRIu32
                                " is not in the vocabulary of %" PRIu32,
                                i, message->prompt[i], limits->vocab_size);
        }
    }
    return BT_OK;
}

static enum bt_status check_landing(const Baton__V1__PrefillRequest *message,
                                    struct bt_error *error)
{
    const Baton__V1__Landing *landing = message->landing;
    if (!landing || !landing->endpoint) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "landing%s is missing",
                            landing ? ".endpoint" : "");
    }
    if (landing->request_id != message->request_id) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "landing.request_id is of another request");
    }
    if (landing->epoch == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "landing.epoch is 0");
    }
    if (landing->lease_ms < PF_MIN_LEASE_MS || landing->lease_ms > PF_MAX_LEASE_MS) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "landing.lease_ms %" PRIu32 " is not in %d..%d", landing->lease_ms,
                            PF_MIN_LEASE_MS, PF_MAX_LEASE_MS);
    }
    return BT_OK;
}

static int run_compare(const void *left, const void *right)
{
    const struct bt_page_run *a = left, *b = right;
    return a->first < b->first ? -1 : a->first > b->first;
}

/* Each run not empty and inside the pool. */
static enum bt_status check_runs(const Baton__V1__Landing *landing, struct bt_page_run *runs,
                                 struct bt_error *error)
{
    uint32_t pool_pages = landing->endpoint->pool_pages;
    for (size_t i = 0; i < landing->n_runs; i++) {
        const Baton__V1__PageRun *run = landing->runs[i];
        if (!run || run->count == 0 || run->count > pool_pages ||
            run->first > pool_pages - run->count) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "landing.runs[%zu] is not inside the pool of %" PRIu32 " pages", i,
                                pool_pages);
        }
        runs[i] = (struct bt_page_run){run->first, run->count};
    }
    return BT_OK;
}

/* No page twice. Sorts `runs`. */
static enum bt_status check_overlap(struct bt_page_run *runs, size_t count, struct bt_error *error)
{
    qsort(runs, count, sizeof(*runs), run_compare);
    for (size_t i = 1; i < count; i++) {
        if (runs[i - 1].first + runs[i - 1].count > runs[i].first) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "landing.runs: page %" PRIu32 " comes twice", runs[i].first);
        }
    }
    return BT_OK;
}

static enum bt_status read_runs(struct pf_request *request, const Baton__V1__Landing *landing,
                                struct bt_error *error)
{
    if (landing->n_runs > landing->endpoint->pool_pages) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "landing.runs: %zu runs in %" PRIu32 " pages", landing->n_runs,
                            landing->endpoint->pool_pages);
    }
    struct bt_page_run *runs = calloc(landing->n_runs + 1, sizeof(*runs));
    request->target_pages = calloc(request->page_count, sizeof(uint32_t));
    if (!runs || !request->target_pages) {
        free(runs);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "landing: no memory");
    }
    enum bt_status status = check_runs(landing, runs, error);
    uint32_t filled = 0;
    for (size_t i = 0; status == BT_OK && i < landing->n_runs; i++) {
        for (uint32_t k = 0; k < runs[i].count && filled < request->page_count; k++) {
            request->target_pages[filled++] = runs[i].first + k;
        }
    }
    if (status == BT_OK && filled < request->page_count) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              "landing.runs: %" PRIu32 " pages, the prompt needs %" PRIu32, filled,
                              request->page_count);
    }
    if (status == BT_OK) {
        status = check_overlap(runs, landing->n_runs, error);
    }
    free(runs);
    return status;
}

static enum bt_status read_history(struct pf_request *request, struct bt_error *error)
{
    if (!bt_sampling_needs_history(&request->sampling)) {
        return BT_OK;
    }
    request->history = bt_sampler_history_create();
    if (!request->history ||
        !bt_sampler_history_add_prompt(request->history, request->prompt, request->prompt_tokens)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "prompt: no memory");
    }
    return BT_OK;
}

enum bt_status pf_request_init(struct pf_request *request, const Baton__V1__PrefillRequest *message,
                               const struct pf_request_limits *limits, struct bt_error *error)
{
    *request = (struct pf_request){0};
    enum bt_status status = check_prompt(message, limits, error);
    if (status == BT_OK) {
        status = check_landing(message, error);
    }
    if (status == BT_OK) {
        status = bt_sampling_from_message(message->sampling, limits->vocab_size, error,
                                          &request->sampling);
    }
    if (status != BT_OK) {
        return status;
    }
    request->request = message->request_id;
    request->epoch = message->landing->epoch;
    request->lease_ms = message->landing->lease_ms;
    request->probe = message->probe;
    request->prompt_tokens = (uint32_t)message->n_prompt;
    request->page_count = bt_kv_pages_for(message->n_prompt);
    request->prompt = calloc(message->n_prompt, sizeof(uint32_t));
    if (!request->prompt) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "prompt: no memory");
        goto err_request;
    }
    memcpy(request->prompt, message->prompt, message->n_prompt * sizeof(uint32_t));
    status = read_runs(request, message->landing, error);
    if (status == BT_OK) {
        status = read_history(request, error);
    }
    if (status == BT_OK) {
        return BT_OK;
    }
err_request:
    pf_request_finish(request);
    return status;
}

void pf_request_finish(struct pf_request *request)
{
    bt_sampling_finish(&request->sampling);
    bt_sampler_history_destroy(request->history);
    free(request->prompt);
    free(request->target_pages);
    *request = (struct pf_request){0};
}
