/*
 * What the client-facing fronts (HTTP, ZeroMQ RPC) see of the router: submit a generation, get its
 * text and its one end. The service owns the tokenizer, the core and the connections to workers;
 * it detokenizes, looks for stop strings, keeps the times of each request. Loop thread only.
 */
#ifndef BATON_ROUTER_SERVICE_H
#define BATON_ROUTER_SERVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/metrics.h"
#include "common/base/status.h"
#include "common/messaging/loop.h"
#include "common/text/chat.h"
#include "common/text/tokenizer.h"
#include "proto/router.pb-c.h"
#include "proto/types.pb-c.h"
#include "router/access.h"
#include "router/caller.h"
#include "router/core.h"
#include "router/tokenization.h"
#include "router/trace_context.h"
#include "router/worker_metrics.h"

struct rt_service;

struct rt_service_options {
    struct rt_core_options core;
    struct rt_access_options access;
    const char *model_dir;         /* tokenizer and chat form; config for the context length */
    const char *served_model_name; /* NULL: base name of model_dir */
    const char *worker_endpoint;   /* where Registry and Router RPC are bound */
    int64_t request_timeout_ns;    /* default and maximum deadline of a request */
    uint32_t max_model_len;        /* 0: from the checkpoint */
    uint32_t heartbeat_ms;
    double trace_sample;    /* of the requests that say nothing of it, 0 to 1 */
    uint32_t trace_keep;    /* requests whose times are remembered */
    uint32_t prefix_blocks; /* of workers' caches, that are known at once; 0: 4 million */
    unsigned tokenizer_threads;
    size_t tokenizer_max_jobs, tokenizer_max_bytes; /* that wait for their ids */
    size_t tokenizer_cache_bytes;                   /* 0: none */
};

/* Of the request that was refused last. */
struct rt_refusal {
    int64_t retry_after_ns; /* when it may be worth another try; 0: not known */
    const char *code;       /* static, for clients; NULL: that of the status */
};

/* One generation, checked by the front for form; the service checks limits. */
struct rt_generation {
    const uint32_t *prompt; /* copied */
    uint32_t prompt_tokens; /* >= 1 */
    /* Copied deeply. Every field is the front's to set, but `seed` where the client gave none: it
     * follows from who the request is then, since one that is run again must draw the same numbers.
     * max_tokens 0: up to the context. */
    Baton__V1__SamplingParams sampling;
    bool has_seed;
    /* Who it is: request_id.h. The same again, while it runs, takes it over. */
    const char *tenant_name; /* copied; NULL: "" */
    const char *request_id;  /* copied; NULL: a name is made */
    uint32_t index;          /* of the generation in the client's request */
    bool named;              /* the client knows request_id, and may come back with it */
    /* Of the output, that the client has: no text of theirs is told to the sink. One more than
     * there are: what is held back until the end, too. */
    uint32_t resume_tokens;
    const char *const *stop;
    size_t stop_count;
    int64_t arrival_ns;  /* at the front; 0: now. What came before a drain is still taken */
    int64_t deadline_ns; /* BT_NEVER_NS: the default */
    bool keep_special;   /* special tokens appear in the text */
    struct rt_caller caller;
    struct rt_trace_context trace; /* of rt_service_trace_begin; zeros: none */
};

struct rt_result {
    enum rt_finish finish;
    enum bt_status status; /* BT_OK unless RT_FINISH_ERROR */
    const char *text;      /* reason of an error */
    uint32_t prompt_tokens, completion_tokens;
    uint32_t cached_tokens; /* of the prompt, that a prefill worker had computed before */
    const Baton__V1__Timing *timing;
};

/* The front's side of a stream. Both run on the loop, and neither inside its own rt_service_submit;
 * that of another may end it, if it is taken over. */
struct rt_sink {
    void *context;
    /* New text (may be empty) and the tokens that arrived, with logprobs where asked for. Tokens
     * of text that is held back come with the call in which they arrive; what is left of it at the
     * end comes without any. Those that the client has already come, too, but not their text. Valid
     * during the call. */
    void (*on_output)(void *context, const char *text, size_t size, const Baton__V1__Token *tokens,
                      size_t token_count);
    /* Exactly once; the stream is over. */
    void (*on_end)(void *context, const struct rt_result *result);
};

enum bt_status rt_service_create(struct bt_loop *loop, const struct rt_service_options *options,
                                 struct bt_metrics *metrics, struct bt_error *error,
                                 struct rt_service **ret_service);
/* Takes nothing new and ends every stream and every text that is tokenized: their callbacks run in
 * here, with UNAVAILABLE. The loop then still has to carry what fronts and workers are to hear of
 * it. */
void rt_service_stop(struct rt_service *service);
/* After rt_service_stop, which it does where that was not done. NULL is fine. */
void rt_service_destroy(struct rt_service *service);

/* Whose keys are asked for. Never NULL. */
struct rt_access *rt_service_access(struct rt_service *service);
/* Before anything is done for a request of this tenant, and once for each: EXHAUSTED: the queue is
 * full, or a limit of the tenant is reached. UNAVAILABLE: draining, or there never was a worker. */
enum bt_status rt_service_admit(struct rt_service *service, uint32_t tenant,
                                struct bt_error *error);
/* After EXHAUSTED or UNAVAILABLE from rt_service_admit or rt_service_submit. */
const struct rt_refusal *rt_service_refusal(const struct rt_service *service);
/* What a submission takes of its tenant's tokens a minute. */
uint64_t rt_service_price(const struct rt_service *service, const struct rt_generation *generation);
/* Before several are submitted that are one request: whether the tenant has tokens for all, and so
 * many may wait at all. Errors as of rt_service_submit. */
enum bt_status rt_service_check_several(struct rt_service *service, uint32_t tenant, size_t count,
                                        uint64_t tokens, struct bt_error *error);
/* That of the tenant, or a later one that it asks for. */
uint32_t rt_service_priority(const struct rt_service *service, uint32_t tenant, int64_t asked);

/*
 * INVALID_ARGUMENT: prompt or max_tokens beyond the context, a token outside the vocabulary, a
 * sampling value out of range (named as in the API). EXHAUSTED: queue full. UNAVAILABLE: no
 * workers, or draining. ALREADY_EXISTS: another request with this id runs. On success exactly one
 * on_end follows.
 *
 * The same request again takes over what the first has become, which ends for its sink with
 * ALREADY_EXISTS. One that ranks go on with for a router that is gone is taken over as well.
 */
enum bt_status rt_service_submit(struct rt_service *service, const struct rt_generation *generation,
                                 const struct rt_sink *sink, struct bt_error *error,
                                 uint64_t *ret_request);

/* The client went away: on_end does NOT run any more, the sink is forgotten. */
void rt_service_abandon(struct rt_service *service, uint64_t request);

/* What a request of a front may take at most, by the service's own limit and the client's
 * `deadline_ns`. */
int64_t rt_service_deadline_ns(const struct rt_service *service, int64_t arrival_ns,
                               int64_t deadline_ns);

/* Where fronts have prompts tokenized; it takes nothing while draining. */
struct rt_tokenization *rt_service_tokenization(struct rt_service *service);
const struct bt_tokenizer *rt_service_tokenizer(const struct rt_service *service);
const char *rt_service_model_name(const struct rt_service *service);
uint32_t rt_service_max_model_len(const struct rt_service *service);
uint64_t rt_service_model_hash(const struct rt_service *service); /* 0 before a worker registered */
int64_t rt_service_started_unix(const struct rt_service *service); /* seconds */

/* At least one READY worker of each role, and not draining. `ret_why` (static) when not. */
bool rt_service_ready(const struct rt_service *service, const char **ret_why);
/* Takes nothing new; requests that came before go on. */
void rt_service_drain(struct rt_service *service);
bool rt_service_draining(const struct rt_service *service);
/* No request is under way, or no worker is left to go on with one. */
bool rt_service_drained(const struct rt_service *service);

/* Where clients reach the HTTP front, for rt_service_status; copied. */
void rt_service_set_http_endpoint(struct rt_service *service, const char *endpoint);
/* Where workers and RPC clients connect, with the real port; valid as long as the service. */
const char *rt_service_rpc_endpoint(const struct rt_service *service);

/* For operators: fills a malloc'd message; free with baton__v1__status_response__free_unpacked. */
Baton__V1__StatusResponse *rt_service_status(const struct rt_service *service);
/* Likewise. */
Baton__V1__StatsResponse *rt_service_stats(const struct rt_service *service,
                                           const Baton__V1__StatsRequest *request);

#define RT_STATUS_RANKS    512
#define RT_STATUS_REQUESTS 64
struct rt_status_query {
    uint64_t after; /* points of the history that are known already */
    bool ranks;     /* every rank for itself, from number `offset` on, however many there are */
    uint64_t offset;
};
/* The same for the dashboard and for scripts, as JSON (README.md of dashboard/), of bounded size.
 */
struct rt_openai_json;
void rt_service_write_status(struct rt_service *service, const struct rt_status_query *query,
                             struct rt_openai_json *json);

/* The workers' own metrics. True: the page is there; false: the waiter's fn is called when it is. */
bool rt_service_scrape(struct rt_service *service, struct rt_scrape_waiter *waiter);
void rt_service_scrape_cancel(struct rt_service *service, struct rt_scrape_waiter *waiter);
/* The last page, malloc'd; NULL: none, no memory. */
char *rt_service_scraped(const struct rt_service *service, size_t *ret_size);

/* For a new request, by its header `traceparent` (NULL: none). */
void rt_service_trace_begin(const struct rt_service *service, const char *traceparent,
                            struct rt_trace_context *ret_context);
/* Likewise malloc'd. */
Baton__V1__TraceResponse *rt_service_trace(const struct rt_service *service,
                                           const Baton__V1__TraceRequest *request);

/* Exposition text of the router's own metrics, malloc'd. */
char *rt_service_metrics(struct rt_service *service, size_t *ret_size);

#endif
