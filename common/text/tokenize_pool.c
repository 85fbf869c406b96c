#include "common/text/tokenize_pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/queue.h"
#include "common/text/bpe.h"

struct bt_tokenize_job {
    struct bt_tokenize_job *previous, *next; /* in the list of the waiting */
    struct bt_tokenize_input input;          /* pointers into `memory` */
    size_t bytes;
    enum { WAITING, RUNNING, DONE } state;
    bool cancelled;
    struct bt_tokenize_result result;
    char memory[];
};

struct bt_tokenize_pool {
    struct bt_tokenize_pool_options options;
    struct bt_queue *done; /* of struct bt_tokenize_job *; has room for all jobs */
    pthread_t *threads;
    unsigned thread_count;

    pthread_mutex_t mutex; /* of all below, and of state and cancelled of the jobs */
    pthread_cond_t work;
    struct bt_tokenize_job *first, *last;
    struct bt_tokenize_pool_stats stats;
    bool stopping;
};

static size_t *count_of(struct bt_tokenize_pool *pool, const struct bt_tokenize_job *job)
{
    size_t *counts[] = {[WAITING] = &pool->stats.waiting,
                        [RUNNING] = &pool->stats.running,
                        [DONE] = &pool->stats.done};
    return counts[job->state];
}

static void set_state(struct bt_tokenize_pool *pool, struct bt_tokenize_job *job, int state)
{
    --*count_of(pool, job);
    job->state = state;
    ++*count_of(pool, job);
}

static void append(struct bt_tokenize_pool *pool, struct bt_tokenize_job *job)
{
    job->previous = pool->last;
    job->next = NULL;
    *(pool->last ? &pool->last->next : &pool->first) = job;
    pool->last = job;
}

static void unlink_job(struct bt_tokenize_pool *pool, struct bt_tokenize_job *job)
{
    *(job->previous ? &job->previous->next : &pool->first) = job->next;
    *(job->next ? &job->next->previous : &pool->last) = job->previous;
}

/* With the mutex held; the caller frees it afterwards. */
static void release(struct bt_tokenize_pool *pool, const struct bt_tokenize_job *job)
{
    --*count_of(pool, job);
    pool->stats.bytes -= job->bytes;
}

static void job_free(struct bt_tokenize_job *job)
{
    free(job->result.ids.ids);
    free(job);
}

static enum bt_status encode_text(const struct bt_tokenizer *tokenizer,
                                  const struct bt_tokenize_input *input, struct bt_error *error,
                                  struct bt_token_buffer *ret_ids)
{
    int64_t bos = bt_tokenizer_bos(tokenizer);
    bool add_bos = input->add_bos && bos >= 0 && bt_tokenizer_add_bos(tokenizer);
    if (add_bos && !bt_token_buffer_append(ret_ids, (uint32_t)bos))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to encode a text");
    enum bt_status status =
        bt_tokenizer_encode(tokenizer, input->text, input->size, input->special, error, ret_ids);
    if (status == BT_OK && add_bos && ret_ids->count > 1 && ret_ids->ids[1] == (uint32_t)bos) {
        ret_ids->count--;
        memmove(ret_ids->ids, ret_ids->ids + 1, ret_ids->count * sizeof *ret_ids->ids);
    }
    return status;
}

static void job_run(const struct bt_tokenize_pool *pool, struct bt_tokenize_job *job)
{
    const struct bt_tokenize_input *input = &job->input;
    struct bt_tokenize_result *result = &job->result;
    if (!input->messages)
        result->status = encode_text(pool->options.tokenizer, input, &result->error, &result->ids);
    else if (pool->options.chat_form)
        result->status = bt_chat_form_encode(pool->options.chat_form, input->messages,
                                             input->message_count, &result->error, &result->ids);
    else
        result->status =
            bt_error_set(&result->error, BT_ERR_UNSUPPORTED, "this model has no chat template");
    if (result->status != BT_OK) {
        free(result->ids.ids);
        result->ids = (struct bt_token_buffer){0};
    }
}

static void finish(struct bt_tokenize_pool *pool, struct bt_tokenize_job *job)
{
    pthread_mutex_lock(&pool->mutex);
    bool cancelled = job->cancelled;
    if (cancelled)
        release(pool, job);
    else
        set_state(pool, job, DONE);
    pthread_mutex_unlock(&pool->mutex);
    if (cancelled)
        job_free(job);
    else
        BT_ASSERT(bt_queue_try_push(pool->done, &job));
}

static void *work(void *argument)
{
    struct bt_tokenize_pool *pool = argument;
    for (;;) {
        pthread_mutex_lock(&pool->mutex);
        while (!pool->first && !pool->stopping)
            pthread_cond_wait(&pool->work, &pool->mutex);
        struct bt_tokenize_job *job = pool->stopping ? NULL : pool->first;
        if (job) {
            unlink_job(pool, job);
            set_state(pool, job, RUNNING);
        }
        pthread_mutex_unlock(&pool->mutex);
        if (!job)
            return NULL;
        job_run(pool, job);
        finish(pool, job);
    }
}

/* Signals are for the threads that wait for them. */
static enum bt_status start_threads(struct bt_tokenize_pool *pool, struct bt_error *error)
{
    sigset_t all, before;
    int failure = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (!failure && pool->thread_count < pool->options.thread_count) {
        pthread_t *thread = &pool->threads[pool->thread_count];
        failure = pthread_create(thread, NULL, work, pool);
        pool->thread_count += !failure;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failure ? bt_error_set(error, BT_ERR_INTERNAL, "can't start a thread to tokenize: %s",
                                  strerror(failure))
                   : BT_OK;
}

enum bt_status bt_tokenize_pool_create(const struct bt_tokenize_pool_options *options,
                                       struct bt_error *error, struct bt_tokenize_pool **ret_pool)
{
    if (options->thread_count == 0 || options->thread_count > BT_TOKENIZE_POOL_MAX_THREADS)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "1 to %d threads can tokenize, not %u",
                            BT_TOKENIZE_POOL_MAX_THREADS, options->thread_count);
    if (options->max_jobs == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "a pool needs room for a job");
    struct bt_tokenize_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to tokenize");
    pool->options = *options;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pool->done = bt_queue_create(options->max_jobs, sizeof(struct bt_tokenize_job *));
    pool->threads = calloc(options->thread_count, sizeof *pool->threads);
    enum bt_status status = pool->done && pool->threads
                                ? start_threads(pool, error)
                                : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to tokenize");
    if (status != BT_OK) {
        bt_tokenize_pool_destroy(pool);
        return status;
    }
    *ret_pool = pool;
    return BT_OK;
}

void bt_tokenize_pool_destroy(struct bt_tokenize_pool *pool)
{
    struct bt_tokenize_job *job;
    if (!pool)
        return;
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
    for (unsigned i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
    while ((job = pool->first)) {
        unlink_job(pool, job);
        job_free(job);
    }
    while (pool->done && bt_queue_try_pop(pool->done, &job))
        job_free(job);
    bt_queue_destroy(pool->done);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->threads);
    free(pool);
}

/* Bytes that the copy of an input takes behind its job; SIZE_MAX: too many. */
static size_t copy_bytes(const struct bt_tokenize_input *input)
{
    size_t bytes = 0;
    if (!input->messages)
        return input->size;
    if (__builtin_mul_overflow(input->message_count, sizeof *input->messages, &bytes))
        return SIZE_MAX;
    for (size_t i = 0; i < input->message_count; i++) {
        size_t role_bytes = input->messages[i].role ? strlen(input->messages[i].role) + 1 : 0;
        if (__builtin_add_overflow(bytes, input->messages[i].content_size, &bytes) ||
            __builtin_add_overflow(bytes, role_bytes, &bytes))
            return SIZE_MAX;
    }
    return bytes;
}

static const char *copy(char **memory, const char *from, size_t size)
{
    char *to = *memory;
    if (size > 0)
        memcpy(to, from, size);
    *memory += size;
    return to;
}

/* The messages first, as `memory` is aligned for them. */
static void copy_input(struct bt_tokenize_job *job, const struct bt_tokenize_input *input)
{
    char *memory = job->memory;
    job->input = *input;
    if (!input->messages) {
        job->input.text = copy(&memory, input->text, input->size);
        return;
    }
    struct bt_chat_message *messages = (struct bt_chat_message *)memory;
    memory += input->message_count * sizeof *messages;
    job->input.messages = messages;
    for (size_t i = 0; i < input->message_count; i++) {
        const struct bt_chat_message *from = &input->messages[i];
        messages[i].role = from->role ? copy(&memory, from->role, strlen(from->role) + 1) : NULL;
        messages[i].content = copy(&memory, from->content, from->content_size);
        messages[i].content_size = from->content_size;
    }
}

/* Room for a job of so many bytes is taken. */
static enum bt_status reserve(struct bt_tokenize_pool *pool, size_t bytes, struct bt_error *error)
{
    if (bytes > pool->options.max_bytes)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "a text to tokenize has more than %zu bytes", pool->options.max_bytes);
    pthread_mutex_lock(&pool->mutex);
    struct bt_tokenize_pool_stats *stats = &pool->stats;
    bool full = stats->waiting + stats->running + stats->done >= pool->options.max_jobs ||
                bytes > pool->options.max_bytes - stats->bytes;
    if (!full) {
        stats->waiting++;
        stats->bytes += bytes;
    }
    pthread_mutex_unlock(&pool->mutex);
    return full ? bt_error_set(error, BT_ERR_EXHAUSTED, "too many texts wait to be tokenized")
                : BT_OK;
}

enum bt_status bt_tokenize_pool_submit(struct bt_tokenize_pool *pool,
                                       const struct bt_tokenize_input *input,
                                       struct bt_error *error, struct bt_tokenize_job **ret_job)
{
    size_t bytes;
    if (__builtin_add_overflow(copy_bytes(input), sizeof(struct bt_tokenize_job), &bytes))
        bytes = SIZE_MAX;
    enum bt_status status = reserve(pool, bytes, error);
    if (status != BT_OK)
        return status;
    struct bt_tokenize_job *job = malloc(bytes), unused = {.state = WAITING, .bytes = bytes};
    if (job) {
        *job = unused;
        copy_input(job, input);
        job->result.job = job;
        job->result.context = input->context;
    }
    pthread_mutex_lock(&pool->mutex);
    if (job) {
        append(pool, job);
        pthread_cond_signal(&pool->work);
    } else {
        release(pool, &unused);
    }
    pthread_mutex_unlock(&pool->mutex);
    if (!job)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to tokenize a text");
    *ret_job = job;
    return BT_OK;
}

bool bt_tokenize_pool_take(struct bt_tokenize_pool *pool, struct bt_tokenize_result *ret_result)
{
    struct bt_tokenize_job *job;
    bool taken = false;
    while (!taken && bt_queue_try_pop(pool->done, &job)) {
        pthread_mutex_lock(&pool->mutex);
        taken = !job->cancelled;
        release(pool, job);
        pthread_mutex_unlock(&pool->mutex);
        if (taken) {
            *ret_result = job->result;
            job->result.ids = (struct bt_token_buffer){0};
        }
        job_free(job);
    }
    return taken;
}

void bt_tokenize_pool_cancel(struct bt_tokenize_pool *pool, struct bt_tokenize_job *job)
{
    pthread_mutex_lock(&pool->mutex);
    bool waiting = job->state == WAITING;
    job->cancelled = true;
    if (waiting) {
        unlink_job(pool, job);
        release(pool, job);
    }
    pthread_mutex_unlock(&pool->mutex);
    if (waiting)
        job_free(job);
}

int bt_tokenize_pool_fd(const struct bt_tokenize_pool *pool)
{
    return bt_queue_fd(pool->done);
}

void bt_tokenize_pool_read(struct bt_tokenize_pool *pool, struct bt_tokenize_pool_stats *ret_stats)
{
    pthread_mutex_lock(&pool->mutex);
    *ret_stats = pool->stats;
    pthread_mutex_unlock(&pool->mutex);
}
