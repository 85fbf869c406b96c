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

static enum bt_status check_landing(const Baton__V1__Landing *landing, uint64_t request_id,
                                    struct bt_error *error)
{
    if (!landing || !landing->endpoint) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "landing%s is missing",
                            landing ? ".endpoint" : "");
    }
    if (landing->request_id != request_id) {
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

struct run_list {
    Baton__V1__PageRun *const *list;
    size_t count;
    uint32_t pool_pages; /* where they lie */
    const char *field;   /* for messages */
};

/* Each run not empty and inside the pool. */
static enum bt_status check_runs(const struct run_list *list, struct bt_page_run *runs,
                                 struct bt_error *error)
{
    for (size_t i = 0; i < list->count; i++) {
        const Baton__V1__PageRun *run = list->list[i];
        if (!run || run->count == 0 || run->count > list->pool_pages ||
            run->first > list->pool_pages - run->count) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s[%zu] is not inside the pool of %" PRIu32 " pages", list->field,
                                i, list->pool_pages);
        }
        runs[i] = (struct bt_page_run){run->first, run->count};
    }
    return BT_OK;
}

/* No page twice. Sorts `runs`. */
static enum bt_status check_overlap(const struct run_list *list, struct bt_page_run *runs,
                                    struct bt_error *error)
{
    qsort(runs, list->count, sizeof(*runs), run_compare);
    for (size_t i = 1; i < list->count; i++) {
        if (runs[i - 1].first + runs[i - 1].count > runs[i].first) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: page %" PRIu32 " comes twice",
                                list->field, runs[i].first);
        }
    }
    return BT_OK;
}

/* *ret_pages [page_count], malloc'd; what the runs have beyond them stays out. */
static enum bt_status read_runs(const struct run_list *list, uint32_t page_count,
                                struct bt_error *error, uint32_t **ret_pages)
{
    if (list->count > list->pool_pages) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: %zu runs in %" PRIu32 " pages",
                            list->field, list->count, list->pool_pages);
    }
    struct bt_page_run *runs = calloc(list->count + 1, sizeof(*runs));
    uint32_t *pages = calloc(page_count, sizeof(uint32_t));
    enum bt_status status =
        runs && pages ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "%s: no memory", list->field);
    if (status == BT_OK) {
        status = check_runs(list, runs, error);
    }
    uint32_t filled = 0;
    for (size_t i = 0; status == BT_OK && i < list->count; i++) {
        for (uint32_t k = 0; k < runs[i].count && filled < page_count; k++) {
            pages[filled++] = runs[i].first + k;
        }
    }
    if (status == BT_OK && filled < page_count) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              "%s: %" PRIu32 " pages, the prompt needs %" PRIu32, list->field,
                              filled, page_count);
    }
    if (status == BT_OK) {
        status = check_overlap(list, runs, error);
    }
    free(runs);
    if (status == BT_OK) {
        *ret_pages = pages;
    } else {
        free(pages);
    }
    return status;
}

static enum bt_status read_target(const Baton__V1__Landing *landing, uint32_t page_count,
                                  struct bt_error *error, uint32_t **ret_pages)
{
    const struct run_list list = {landing->runs, landing->n_runs, landing->endpoint->pool_pages,
                                  "landing.runs"};
    return read_runs(&list, page_count, error, ret_pages);
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
        status = check_landing(message->landing, message->request_id, error);
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
    request->sampled = message->trace && message->trace->sampled && !message->probe;
    request->prompt_tokens = (uint32_t)message->n_prompt;
    request->page_count = bt_kv_pages_for(message->n_prompt);
    request->prompt = calloc(message->n_prompt, sizeof(uint32_t));
    if (!request->prompt) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "prompt: no memory");
        goto err_request;
    }
    memcpy(request->prompt, message->prompt, message->n_prompt * sizeof(uint32_t));
    status = read_target(message->landing, request->page_count, error, &request->target_pages);
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

static enum bt_status check_rank_push(const Baton__V1__RankPushRequest *message,
                                      const struct pf_rank_limits *limits, struct bt_error *error)
{
    if (message->serial == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "serial is 0");
    }
    if (message->request_id == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "request_id is 0");
    }
    if (message->prompt_tokens == 0 || message->prompt_tokens >= limits->max_model_len) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "prompt_tokens %" PRIu32 " is not in 1..%" PRIu32,
                            message->prompt_tokens, limits->max_model_len - 1);
    }
    if (message->cached_tokens >= message->prompt_tokens ||
        message->cached_tokens % BT_PAGE_TOKENS != 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "cached_tokens %" PRIu32 " are not whole pages of a part of the prompt",
                            message->cached_tokens);
    }
    return check_landing(message->landing, message->request_id, error);
}

enum bt_status pf_rank_push_init(struct pf_rank_push *push,
                                 const Baton__V1__RankPushRequest *message,
                                 const struct pf_rank_limits *limits, struct bt_error *error)
{
    *push = (struct pf_rank_push){0};
    enum bt_status status = check_rank_push(message, limits, error);
    if (status != BT_OK) {
        return status;
    }
    uint32_t page_count = bt_kv_pages_for(message->prompt_tokens);
    const struct run_list source = {message->source, message->n_source, limits->pool_pages,
                                    "source"};
    push->serial = message->serial;
    push->request = message->request_id;
    push->epoch = message->landing->epoch;
    push->prompt_tokens = message->prompt_tokens;
    push->cached_tokens = message->cached_tokens;
    push->lease_ms = message->landing->lease_ms;
    push->layerwise = message->layerwise;
    push->probe = message->probe;
    status = read_target(message->landing, page_count, error, &push->target_pages);
    if (status == BT_OK) {
        status = read_runs(&source, page_count, error, &push->source_pages);
    }
    if (status != BT_OK) {
        pf_rank_push_finish(push);
    }
    return status;
}

void pf_rank_push_finish(struct pf_rank_push *push)
{
    free(push->target_pages);
    free(push->source_pages);
    *push = (struct pf_rank_push){0};
}
