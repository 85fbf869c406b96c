/*
 * Tokenization on its own threads: an event loop submits texts and chats and takes their ids when
 * they are ready.
 *
 *   submit ──> waiting, in order ──> a thread of the pool ──> done, bt_tokenize_pool_fd() readable
 *
 * create, submit, take, cancel, fd and destroy belong to one thread, the event loop's; only the
 * work is done elsewhere. Nothing here blocks but destroy, which waits for the texts in work. What
 * is submitted is copied, so nothing of the caller's is looked at later. Bounded: jobs that are not
 * taken yet, and the memory of their texts; ids take at most 4 bytes more for each byte of text.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZE_POOL_H
#define BATON_COMMON_TEXT_TOKENIZE_POOL_H

#include "common/text/chat.h"
#include "common/text/tokenizer.h"

#define BT_TOKENIZE_POOL_MAX_THREADS 64

struct bt_tokenize_pool;
struct bt_tokenize_job;

struct bt_tokenize_pool_options {
    const struct bt_tokenizer *tokenizer; /* outlives the pool, like the next */
    const struct bt_chat_form *chat_form; /* NULL: chats are answered with UNSUPPORTED */
    unsigned thread_count;                /* 1 to BT_TOKENIZE_POOL_MAX_THREADS */
    size_t max_jobs;  /* submitted and neither taken nor cancelled; at least 1 */
    size_t max_bytes; /* of their copies in memory, together */
};

/* Errors: INVALID_ARGUMENT (an option out of its range), NO_MEMORY, INTERNAL (no thread). */
enum bt_status bt_tokenize_pool_create(const struct bt_tokenize_pool_options *options,
                                       struct bt_error *error, struct bt_tokenize_pool **ret_pool);

/* Drops what is not taken. NULL is fine. */
void bt_tokenize_pool_destroy(struct bt_tokenize_pool *pool);

struct bt_tokenize_input {
    /* A chat, as bt_chat_form_encode() takes it … */
    const struct bt_chat_message *messages; /* NULL: a text */
    size_t message_count;
    /* … or a text, as bt_tokenizer_encode() takes it. */
    const char *text;
    size_t size;
    bool special;
    bool add_bos;  /* BOS first where the tokenizer adds one and the text doesn't start with it */
    void *context; /* comes back with the result */
};

/*
 * Errors: EXHAUSTED (the pool is full for now: try again when a result was taken), INVALID_ARGUMENT
 * (it would not fit an empty pool), NO_MEMORY. The job is valid until it is taken or cancelled.
 */
enum bt_status bt_tokenize_pool_submit(struct bt_tokenize_pool *pool,
                                       const struct bt_tokenize_input *input,
                                       struct bt_error *error, struct bt_tokenize_job **ret_job);

struct bt_tokenize_result {
    struct bt_tokenize_job *job; /* to be compared only: it is gone */
    void *context;
    enum bt_status status; /* of bt_tokenizer_encode() or bt_chat_form_encode() */
    struct bt_error error;
    struct bt_token_buffer ids; /* free(ids.ids); empty where the status is not OK */
};

/* False: none is ready, though the descriptor may have said so for one that was cancelled. */
bool bt_tokenize_pool_take(struct bt_tokenize_pool *pool, struct bt_tokenize_result *ret_result);

/* It is never taken from now on; a text in work is finished first and counts until then. */
void bt_tokenize_pool_cancel(struct bt_tokenize_pool *pool, struct bt_tokenize_job *job);

/* Readable while results wait; for poll only. */
int bt_tokenize_pool_fd(const struct bt_tokenize_pool *pool);

struct bt_tokenize_pool_stats {
    size_t waiting, running, done; /* jobs; their sum is what max_jobs bounds */
    size_t bytes;                  /* what max_bytes bounds */
};
void bt_tokenize_pool_read(struct bt_tokenize_pool *pool, struct bt_tokenize_pool_stats *ret_stats);

#endif
