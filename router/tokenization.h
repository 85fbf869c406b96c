/*
 * Texts and chats to ids on threads of their own (bt_tokenize_pool), for fronts that live on the
 * loop: however long a text, the loop goes on. Loop thread only.
 *
 * A job ends once: with its ids or an error, at its deadline, when all is stopped, or unheard when
 * it is cancelled. Bounded as the pool is.
 */
#ifndef BATON_ROUTER_TOKENIZATION_H
#define BATON_ROUTER_TOKENIZATION_H

#include "common/base/metrics.h"
#include "common/messaging/loop.h"
#include "common/text/tokenize_pool.h"

struct rt_tokenization;
struct rt_tokenization_job; /* until it ended or was cancelled */

struct rt_tokenization_options {
    struct bt_tokenize_pool_options pool;
    struct bt_histogram *seconds; /* from start to ids: the wait for a thread and the work */
};

/* On the loop, never inside rt_tokenization_start; the job is gone. `text` says why a status is not
 * OK. The ids are the callee's where it is. */
typedef void rt_tokenized_fn(void *context, enum bt_status status, const char *text,
                             struct bt_token_buffer *ids);

enum bt_status rt_tokenization_create(struct bt_loop *loop,
                                      const struct rt_tokenization_options *options,
                                      struct bt_error *error,
                                      struct rt_tokenization **ret_tokenization);
/* Waits for texts in work; jobs that are left are forgotten. NULL is fine. */
void rt_tokenization_destroy(struct rt_tokenization *tokenization);

/*
 * `input` is copied; its context is not used. Errors: as bt_tokenize_pool_submit, and UNAVAILABLE
 * after a close. Later: those of the tokenizer, DEADLINE, and UNAVAILABLE for a stop.
 */
enum bt_status rt_tokenization_start(struct rt_tokenization *tokenization,
                                     const struct bt_tokenize_input *input, int64_t deadline_ns,
                                     rt_tokenized_fn *fn, void *context, struct bt_error *error,
                                     struct rt_tokenization_job **ret_job);
void rt_tokenization_cancel(struct rt_tokenization_job *job);

/* Takes nothing new; what is there goes on. */
void rt_tokenization_close(struct rt_tokenization *tokenization);
/* The same, and ends what is there. */
void rt_tokenization_stop(struct rt_tokenization *tokenization);

/* Jobs that were neither ended nor cancelled. */
size_t rt_tokenization_open(const struct rt_tokenization *tokenization);
void rt_tokenization_read(struct rt_tokenization *tokenization,
                          struct bt_tokenize_pool_stats *ret_stats);

#endif
