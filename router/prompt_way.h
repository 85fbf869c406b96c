/*
 * Whether a prompt is prefilled by a prefill worker, or by the decode rank itself. A model of cost;
 * internal to the core.
 *
 * Of each way it adds up what the request waits for, and what others wait for its sake:
 *
 *     remote  work ahead on the prefill worker + its line at the uncached tokens
 *             + that line for each request behind it in the queue, shared among the workers
 *     local   prompts ahead on the rank + the rank's line at all tokens
 *             + that line for each sequence that runs there, times RT_WAY_HARM
 *
 * and what predictions of the way were short by lately: messages, the visible transfer, steps
 * between chunks. Local has to be cheaper by RT_WAY_MARGIN. What a prefill worker has cached speaks
 * for remote through the uncached tokens; a decode rank has no cache of its own.
 *
 * What kills the rank that computes it takes the rank's whole group with all that runs there. So a
 * request that lost a worker, or failed, goes to a prefill worker while one is there.
 *
 * A prompt longer than the ranks' limits waits for a prefill worker where none is there, and does
 * not keep others waiting that ranks can compute.
 *
 * A local prompt has the bits of a prefill worker of one rank. While a prefill worker of several
 * ranks is there, AUTO sends nothing new to ranks: a retry could find the other bits. A request
 * whose client has tokens goes on with the bits that these have.
 */
#ifndef BATON_ROUTER_PROMPT_WAY_H
#define BATON_ROUTER_PROMPT_WAY_H

#include "router/placement.h"

/*
 * A sequence that runs is delayed once, and has all its output to make up for it: time per token
 * suffers by the delay over the tokens. With objectives of a second to the first token, 50 ms for
 * each after it, and a hundred of them, a delay weighs a fifth of what it weighs before the first.
 */
#define RT_WAY_HARM   0.2
#define RT_WAY_MARGIN 0.8

/* Sliding means of actual - predicted, by whether it was local. */
struct rt_way_misses {
    double ns[2];
};

struct rt_way_question {
    const struct rt_worker_table *workers;
    const struct rt_way_misses *misses;
    const struct rt_request *request;
    uint32_t waiting; /* requests in the queue behind it */
    uint32_t pages;
    int64_t now_ns;
};

struct rt_way_answer {
    enum rt_way way;
    bool local;
    struct rt_worker *prefill; /* NULL: local, or none has room now */
    struct rt_worker *decode;  /* NULL: none has room now */
    int64_t predicted_ns;      /* to the first token, without misses */
};

/* `turns` moves on as the choice of a rank does. */
void rt_way_choose(const struct rt_way_question *question, struct rt_decode_turns *turns,
                   struct rt_way_answer *ret_answer);

/* Whether the workers that are not lost could ever take it, some way. */
bool rt_way_possible(const struct rt_worker_table *workers, const struct rt_request_spec *spec);

/* Whether it waits for a prefill worker and none is there, while ranks compute prompts of others:
 * those need not wait behind it. */
bool rt_way_stranded(const struct rt_worker_table *workers, const struct rt_request *request);

/* The first token came, `actual_ns` after the request was taken. */
void rt_way_learn(struct rt_way_misses *misses, const struct rt_request *request,
                  int64_t actual_ns);

#endif
