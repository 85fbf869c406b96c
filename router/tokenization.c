#include "router/tokenization.h"

#include <stdlib.h>

#include "common/base/clock.h"

/* Results of one round; the rest waits for the next, so that sockets get their turn. */
#define RESULTS_PER_ROUND 32

struct rt_tokenization_job {
    struct rt_tokenization *all;
    struct bt_tokenize_job *pooled;
    struct bt_loop_source *deadline;
    int64_t started_ns;
    rt_tokenized_fn *fn;
    void *context;
    struct rt_tokenization_job *previous, *next;
};

struct rt_tokenization {
    struct bt_loop *loop;
    struct bt_tokenize_pool *pool;
    struct bt_loop_source *source;
    struct bt_histogram *seconds;
    struct rt_tokenization_job *first;
    size_t open;
    bool closed;
};

/* Of the pool it is gone already. */
static void job_free(struct rt_tokenization_job *job)
{
    struct rt_tokenization *all = job->all;
    *(job->previous != NULL ? &job->previous->next : &all->first) = job->next;
    if (job->next != NULL)
        job->next->previous = job->previous;
    all->open--;
    bt_loop_remove(job->deadline);
    free(job);
}

static void job_fail(struct rt_tokenization_job *job, enum bt_status status, const char *text)
{
    rt_tokenized_fn *fn = job->fn;
    void *context = job->context;
    struct bt_token_buffer none = {0};
    rt_tokenization_cancel(job);
    fn(context, status, text, &none);
}

static void on_deadline(void *context)
{
    job_fail(context, BT_ERR_DEADLINE, "the request took longer than its deadline allows");
}

static void on_results(void *context)
{
    struct rt_tokenization *all = context;
    struct bt_tokenize_result result;
    for (int i = 0; i < RESULTS_PER_ROUND && bt_tokenize_pool_take(all->pool, &result); i++) {
        struct rt_tokenization_job *job = result.context;
        rt_tokenized_fn *fn = job->fn;
        void *owner = job->context;
        bt_histogram_observe(all->seconds, (double)(bt_clock_now_ns() - job->started_ns) / 1e9);
        job_free(job);
        fn(owner, result.status, result.error.text, &result.ids);
    }
}

enum bt_status rt_tokenization_create(struct bt_loop *loop,
                                      const struct rt_tokenization_options *options,
                                      struct bt_error *error,
                                      struct rt_tokenization **ret_tokenization)
{
    struct rt_tokenization *all = calloc(1, sizeof *all);
    if (all == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to tokenize");
    all->loop = loop;
    all->seconds = options->seconds;
    enum bt_status status = bt_tokenize_pool_create(&options->pool, error, &all->pool);
    if (status != BT_OK)
        goto err_all;
    all->source = bt_loop_add_fd(loop, bt_tokenize_pool_fd(all->pool), on_results, all);
    if (all->source == NULL) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to tokenize");
        goto err_all;
    }
    *ret_tokenization = all;
    return BT_OK;

err_all:
    rt_tokenization_destroy(all);
    return status;
}

void rt_tokenization_destroy(struct rt_tokenization *tokenization)
{
    if (tokenization == NULL)
        return;
    while (tokenization->first != NULL)
        rt_tokenization_cancel(tokenization->first);
    bt_loop_remove(tokenization->source);
    bt_tokenize_pool_destroy(tokenization->pool);
    free(tokenization);
}

enum bt_status rt_tokenization_start(struct rt_tokenization *tokenization,
                                     const struct bt_tokenize_input *input, int64_t deadline_ns,
                                     rt_tokenized_fn *fn, void *context, struct bt_error *error,
                                     struct rt_tokenization_job **ret_job)
{
    if (tokenization->closed)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "the router takes no new requests");
    struct rt_tokenization_job *job = malloc(sizeof *job);
    if (job == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to tokenize a text");
    *job = (struct rt_tokenization_job){.all = tokenization,
                                        .started_ns = bt_clock_now_ns(),
                                        .fn = fn,
                                        .context = context,
                                        .next = tokenization->first};
    struct bt_tokenize_input pooled = *input;
    pooled.context = job;
    job->deadline = bt_loop_add_timer(tokenization->loop, deadline_ns, on_deadline, job);
    enum bt_status status =
        job->deadline != NULL
            ? bt_tokenize_pool_submit(tokenization->pool, &pooled, error, &job->pooled)
            : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to tokenize a text");
    if (status != BT_OK) {
        bt_loop_remove(job->deadline);
        free(job);
        return status;
    }
    if (tokenization->first != NULL)
        tokenization->first->previous = job;
    tokenization->first = job;
    tokenization->open++;
    *ret_job = job;
    return BT_OK;
}

void rt_tokenization_cancel(struct rt_tokenization_job *job)
{
    bt_tokenize_pool_cancel(job->all->pool, job->pooled);
    job_free(job);
}

void rt_tokenization_close(struct rt_tokenization *tokenization)
{
    tokenization->closed = true;
}

void rt_tokenization_stop(struct rt_tokenization *tokenization)
{
    tokenization->closed = true;
    while (tokenization->first != NULL)
        job_fail(tokenization->first, BT_ERR_UNAVAILABLE, "the router is stopping");
}

size_t rt_tokenization_open(const struct rt_tokenization *tokenization)
{
    return tokenization->open;
}

void rt_tokenization_read(struct rt_tokenization *tokenization,
                          struct bt_tokenize_pool_stats *ret_stats)
{
    bt_tokenize_pool_read(tokenization->pool, ret_stats);
}
