/*
 * A scripted router service for the tests of the fronts: the functions of router/service.h over a
 * real tokenizer and chat form, with tokens that the test decides.
 *
 * Every generation "says" FAKE_TEXT, token by token, over and over. In automatic mode each pump
 * gives every live generation its next token; otherwise the test calls fake_step and fake_end.
 * Breaking the contract of the service (an unknown or ended request abandoned) fails the test.
 */
#ifndef BATON_TESTS_FAKE_SERVICE_H
#define BATON_TESTS_FAKE_SERVICE_H

#include "router/service.h"

/* Has characters that the tokenizer splits. */
#define FAKE_TEXT         "Once upon a time \xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\xA6\x8A caf\xC3\xA9.\n"
#define FAKE_MODEL        "tiny"
#define FAKE_MAX_REQUESTS 4096
#define FAKE_MAX_JOBS     4 /* that wait to be tokenized */

struct fake_request {
    uint64_t id;
    bool live;
    struct rt_sink sink;
    struct bt_detokenizer *detokenizer;
    uint32_t *prompt;
    uint32_t prompt_tokens, produced, max_tokens;
    uint64_t seed;
    int32_t logprobs;
    size_t bias_count, stop_count;
    float temperature;
    double bias_sum; /* of tokens and values */
    int64_t arrival_ns, deadline_ns;
    char name[140]; /* request_id; "": none */
    bool named, has_seed;
    uint32_t index, resume_tokens;
};

struct rt_service {
    struct bt_loop *loop;
    struct bt_loop_source *timer;
    struct bt_tokenizer *tokenizer;
    struct bt_chat_form *form;
    struct rt_tokenization *tokenization; /* one thread */
    struct bt_token_buffer says;
    struct fake_request requests[FAKE_MAX_REQUESTS];
    size_t request_count, live, abandoned, ended;
    bool ready, automatic, draining;
    int64_t timeout_ns;    /* of requests */
    uint32_t context;      /* max_model_len */
    uint32_t burst;        /* tokens of one pump, 1 */
    enum bt_status refuse; /* BT_OK: takes everything */
    struct rt_access *access;  /* NULL: asks for no keys */
    struct rt_refusal refusal; /* of what is refused */
    enum bt_status admit;      /* BT_OK: lets in whoever comes */
    size_t admitted;
    uint64_t tokens_left;      /* for requests of several generations */
    uint64_t asked_tokens;     /* by the last of them */
    struct rt_caller caller;   /* of the last one submitted */
    size_t refuse_after;   /* submissions that are taken before */
    int64_t fail_at;       /* token index at which generations fail; -1: never */
    enum rt_finish fail_finish;
    enum bt_status fail_status;
};

struct rt_service *fake_service_create(struct bt_loop *loop);
void fake_service_destroy(struct rt_service *service);

/* The tokens of FAKE_TEXT's repetition. */
uint32_t fake_token(const struct rt_service *service, uint32_t index);
/* -index - 0.1f and such: not exact in few digits. */
float fake_logprob(uint32_t index);

/* The next token of one generation; ends it after max_tokens. */
void fake_step(struct rt_service *service, struct fake_request *request);
void fake_end(struct rt_service *service, struct fake_request *request, enum rt_finish finish,
              enum bt_status status, const char *text);
/* Forgets ended requests and counters. */
void fake_reset(struct rt_service *service);

#endif
