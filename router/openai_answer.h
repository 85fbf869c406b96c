/*
 * The answer to one request of the OpenAI API: has its prompts tokenized, submits its generations
 * (prompts x n), turns their output to JSON or SSE in one bounded buffer, and says when there is
 * something to send. Loop thread only; knows nothing of HTTP.
 *
 *   WAITING -> STREAMING -> DONE        what clients hope for; WAITING -> DONE when not a stream
 *   WAITING -> FAILED                   nothing was sent: the error becomes the response
 *   STREAMING -> BROKEN                 the error is the last event of the stream, no [DONE]
 *   STREAMING -> OVERFLOWN              the client reads too slowly: drop it
 */
#ifndef BATON_ROUTER_OPENAI_ANSWER_H
#define BATON_ROUTER_OPENAI_ANSWER_H

#include "router/openai_error.h"
#include "router/openai_request.h"
#include "router/service.h"

/* Bytes of a stream that may wait for its reader. */
#define RT_OPENAI_STREAM_LIMIT (1u << 20)
/* Bytes that are collected for a response that is no stream. */
#define RT_OPENAI_WHOLE_LIMIT (64u << 20)

enum rt_openai_answer_state {
    RT_ANSWER_WAITING,
    RT_ANSWER_STREAMING,
    RT_ANSWER_DONE,
    RT_ANSWER_FAILED,
    RT_ANSWER_BROKEN,
    RT_ANSWER_OVERFLOWN,
};

struct rt_openai_answer;

/* Output or state changed. Runs inside callbacks of the service and of its tokenization: must not
 * destroy the answer. */
typedef void rt_openai_answer_fn(void *context);

/*
 * Takes what is in `request`, which is empty then in any case. Texts are tokenized first; when
 * their ids are there, they are checked against the context and submitted. Errors: what can be said
 * at once; nothing runs then. What comes later is RT_ANSWER_FAILED.
 */
enum bt_status rt_openai_answer_create(struct rt_service *service,
                                       struct rt_openai_request *request,
                                       rt_openai_answer_fn *on_change, void *context,
                                       struct rt_openai_error *error,
                                       struct rt_openai_answer **ret_answer);

/* Abandons what still runs. NULL is fine. */
void rt_openai_answer_destroy(struct rt_openai_answer *answer);

/* Abandons the generations that nobody will see: after FAILED, BROKEN, OVERFLOWN. Outside of the
 * service's callbacks; any number of times. */
void rt_openai_answer_settle(struct rt_openai_answer *answer);

/* The client is gone: abandons everything; the state does not change any more. */
void rt_openai_answer_abandon(struct rt_openai_answer *answer);

enum rt_openai_answer_state rt_openai_answer_state(const struct rt_openai_answer *answer);
bool rt_openai_answer_is_stream(const struct rt_openai_answer *answer);
const struct rt_openai_error *rt_openai_answer_error(const struct rt_openai_answer *answer);
const char *rt_openai_answer_id(const struct rt_openai_answer *answer);
/* The first one, for logs; 0: not submitted yet. */
uint64_t rt_openai_answer_request(const struct rt_openai_answer *answer);

/* Bytes to send: of a stream at any time, of a whole response when DONE. */
struct rt_openai_json *rt_openai_answer_output(struct rt_openai_answer *answer);

#endif
