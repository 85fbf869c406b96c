#include "tests/unit/router/fake_service.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/text/detokenizer.h"
#include "router/openai_json.h"

#define DEFAULT_TOKENS 12
#define PUMP_NS        (BT_NS_PER_MS / 5)

static void pump(void *context)
{
    struct rt_service *service = context;
    size_t count = service->request_count;
    for (uint32_t burst = 0; service->automatic && burst < service->burst; burst++)
        for (size_t i = 0; i < count; i++)
            if (service->requests[i].live)
                fake_step(service, &service->requests[i]);
    bt_loop_timer_set(service->timer, service->automatic && service->live > 0
                                          ? bt_clock_now_ns() + PUMP_NS
                                          : BT_NEVER_NS);
}

struct rt_service *fake_service_create(struct bt_loop *loop)
{
    struct bt_error error = {0};
    struct rt_service *service = calloc(1, sizeof *service);
    assert_non_null(service);
    service->loop = loop;
    service->timer = bt_loop_add_timer(loop, BT_NEVER_NS, pump, service);
    if (bt_tokenizer_load(MODEL_DIR, &error, &service->tokenizer) != BT_OK ||
        bt_chat_form_load(MODEL_DIR, service->tokenizer, &error, &service->form) != BT_OK)
        fail_msg("%s", error.text);
    assert_int_equal(bt_tokenizer_encode(service->tokenizer, FAKE_TEXT, strlen(FAKE_TEXT), true,
                                         &error, &service->says),
                     BT_OK);
    const struct rt_tokenization_options options = {.pool = {.tokenizer = service->tokenizer,
                                                             .chat_form = service->form,
                                                             .thread_count = 1,
                                                             .max_jobs = FAKE_MAX_JOBS,
                                                             .max_bytes = 64 << 20}};
    assert_int_equal(rt_tokenization_create(loop, &options, &error, &service->tokenization), BT_OK);
    fake_reset(service);
    return service;
}

static void release(struct fake_request *request)
{
    free(request->prompt);
    bt_detokenizer_destroy(request->detokenizer);
    request->prompt = NULL;
    request->detokenizer = NULL;
}

void fake_reset(struct rt_service *service)
{
    assert_int_equal(service->live, 0);
    for (size_t i = 0; i < service->request_count; i++)
        release(&service->requests[i]);
    service->request_count = service->abandoned = service->ended = 0;
    service->ready = service->automatic = true;
    service->draining = false;
    service->timeout_ns = BT_NS_PER_S * 600;
    service->context = 4096;
    service->tokens_left = UINT64_MAX;
    service->burst = 1;
    service->refuse = service->admit = BT_OK;
    service->access = NULL;
    service->refusal = (struct rt_refusal){0};
    service->admitted = 0;
    service->refuse_after = 0;
    service->fail_at = -1;
    service->fail_finish = RT_FINISH_ERROR;
    service->fail_status = BT_ERR_PEER_LOST;
}

void fake_service_destroy(struct rt_service *service)
{
    for (size_t i = 0; i < service->request_count; i++)
        release(&service->requests[i]);
    bt_loop_remove(service->timer);
    rt_tokenization_destroy(service->tokenization);
    free(service->says.ids);
    bt_chat_form_destroy(service->form);
    bt_tokenizer_destroy(service->tokenizer);
    free(service);
}

uint32_t fake_token(const struct rt_service *service, uint32_t index)
{
    return service->says.ids[index % service->says.count];
}

float fake_logprob(uint32_t index)
{
    return -0.1f - (float)index / 7.0f;
}

/* ------------------------------------------------------------------ generations */

void fake_end(struct rt_service *service, struct fake_request *request, enum rt_finish finish,
              enum bt_status status, const char *text)
{
    static char transport[] = "shm";
    Baton__V1__Timing timing = BATON__V1__TIMING__INIT;
    timing.ttft_ms = 12.5;
    timing.kv_bytes = 4711;
    timing.layerwise = true;
    timing.transport = transport;
    const struct rt_result result = {.finish = finish,
                                     .status = status,
                                     .text = text,
                                     .prompt_tokens = request->prompt_tokens,
                                     .completion_tokens = request->produced,
                                     .timing = &timing};
    assert_true(request->live);
    request->live = false;
    service->live--;
    service->ended++;
    request->sink.on_end(request->sink.context, &result);
}

static void end_after_text(struct rt_service *service, struct fake_request *request)
{
    const char *text;
    size_t size;
    bt_detokenizer_finish(request->detokenizer, &text, &size);
    if (size > 0 && request->resume_tokens <= request->produced)
        request->sink.on_output(request->sink.context, text, size, NULL, 0);
    if (request->live)
        fake_end(service, request, RT_FINISH_LENGTH, BT_OK, NULL);
}

void fake_step(struct rt_service *service, struct fake_request *request)
{
    if (service->fail_at == (int64_t)request->produced) {
        fake_end(service, request, service->fail_finish, service->fail_status, "worker is gone");
        return;
    }
    Baton__V1__Token token = BATON__V1__TOKEN__INIT;
    Baton__V1__TokenLogprob top[20];
    Baton__V1__TokenLogprob *pointers[20];
    token.index = request->produced;
    token.token = fake_token(service, request->produced++);
    if (request->logprobs >= 0) {
        token.has_logprob = true;
        token.logprob = fake_logprob(token.index);
        token.n_top = (size_t)request->logprobs;
        token.top = pointers;
    }
    for (size_t i = 0; i < token.n_top; i++) {
        baton__v1__token_logprob__init(&top[i]);
        top[i].token = i == 0 ? token.token : 300 + (uint32_t)i;
        top[i].logprob = token.logprob - (float)i;
        pointers[i] = &top[i];
    }
    const char *text;
    size_t size;
    bool stopped = bt_detokenizer_push(request->detokenizer, token.token, &text, &size);
    if (token.index < request->resume_tokens)
        size = 0;
    request->sink.on_output(request->sink.context, text, size, &token, 1);
    if (request->live && stopped)
        fake_end(service, request, RT_FINISH_STOP, BT_OK, NULL);
    else if (request->live && request->produced >= request->max_tokens)
        end_after_text(service, request);
}

enum bt_status rt_service_submit(struct rt_service *service, const struct rt_generation *generation,
                                 const struct rt_sink *sink, struct bt_error *error,
                                 uint64_t *ret_request)
{
    if (service->refuse != BT_OK && service->request_count >= service->refuse_after)
        return bt_error_set(error, service->refuse, "the fake refuses");
    assert_true(service->request_count < FAKE_MAX_REQUESTS);
    struct fake_request *request = &service->requests[service->request_count];
    memset(request, 0, sizeof *request);
    enum bt_status status =
        bt_detokenizer_create(service->tokenizer, generation->stop, generation->stop_count,
                              !generation->keep_special, error, &request->detokenizer);
    assert_int_equal(status, BT_OK);
    request->id = 1000 + service->request_count++;
    request->live = true;
    request->sink = *sink;
    request->prompt_tokens = generation->prompt_tokens;
    request->prompt = malloc(generation->prompt_tokens * sizeof(uint32_t));
    memcpy(request->prompt, generation->prompt, generation->prompt_tokens * sizeof(uint32_t));
    request->seed = generation->sampling.seed;
    request->has_seed = generation->has_seed;
    request->named = generation->named;
    request->index = generation->index;
    request->resume_tokens = generation->resume_tokens;
    if (generation->request_id)
        snprintf(request->name, sizeof request->name, "%s", generation->request_id);
    request->temperature = generation->sampling.temperature;
    request->logprobs = generation->sampling.logprobs;
    request->bias_count = generation->sampling.n_logit_bias_token;
    request->stop_count = generation->stop_count;
    for (size_t i = 0; i < request->bias_count; i++)
        request->bias_sum += generation->sampling.logit_bias_token[i] +
                             (double)generation->sampling.logit_bias_value[i];
    service->caller = generation->caller;
    request->arrival_ns = generation->arrival_ns;
    request->deadline_ns = generation->deadline_ns;
    request->max_tokens = generation->sampling.max_tokens;
    if (request->max_tokens == 0)
        request->max_tokens = DEFAULT_TOKENS;
    service->live++;
    if (service->automatic)
        bt_loop_timer_set(service->timer, bt_clock_now_ns());
    *ret_request = request->id;
    return BT_OK;
}

void rt_service_abandon(struct rt_service *service, uint64_t id)
{
    assert_true(id >= 1000 && id < 1000 + service->request_count);
    struct fake_request *request = &service->requests[id - 1000];
    assert_true(request->live);
    request->live = false;
    service->live--;
    service->abandoned++;
}

/* ------------------------------------------------------------------ the rest of the interface */

struct rt_access *rt_service_access(struct rt_service *service)
{
    return service->access;
}

enum bt_status rt_service_admit(struct rt_service *service, uint32_t tenant, struct bt_error *error)
{
    (void)tenant;
    service->admitted += service->admit == BT_OK;
    return service->admit == BT_OK ? BT_OK
                                   : bt_error_set(error, service->admit, "the fake lets nobody in");
}

const struct rt_refusal *rt_service_refusal(const struct rt_service *service)
{
    return &service->refusal;
}

uint64_t rt_service_price(const struct rt_service *service, const struct rt_generation *generation)
{
    (void)service;
    return generation->prompt_tokens + generation->sampling.max_tokens;
}

enum bt_status rt_service_check_several(struct rt_service *service, uint32_t tenant, size_t count,
                                        uint64_t tokens, struct bt_error *error)
{
    (void)tenant;
    assert_true(count > 1);
    service->asked_tokens = tokens;
    return tokens <= service->tokens_left
               ? BT_OK
               : bt_error_set(error, BT_ERR_EXHAUSTED, "the fake has no tokens for it");
}

uint32_t rt_service_priority(const struct rt_service *service, uint32_t tenant, int64_t asked)
{
    (void)service;
    (void)tenant;
    return asked > 0 && asked < RT_PRIORITIES ? (uint32_t)asked : 0;
}

const struct bt_tokenizer *rt_service_tokenizer(const struct rt_service *service)
{
    return service->tokenizer;
}

struct rt_tokenization *rt_service_tokenization(struct rt_service *service)
{
    return service->tokenization;
}

int64_t rt_service_deadline_ns(const struct rt_service *service, int64_t arrival_ns,
                               int64_t deadline_ns)
{
    int64_t latest_ns = arrival_ns + service->timeout_ns;
    return deadline_ns < latest_ns ? deadline_ns : latest_ns;
}

bool rt_service_draining(const struct rt_service *service)
{
    return service->draining;
}

const char *rt_service_model_name(const struct rt_service *service)
{
    (void)service;
    return FAKE_MODEL;
}

uint32_t rt_service_max_model_len(const struct rt_service *service)
{
    return service->context;
}

uint64_t rt_service_model_hash(const struct rt_service *service)
{
    (void)service;
    return 0xABCDEF;
}

int64_t rt_service_started_unix(const struct rt_service *service)
{
    (void)service;
    return 1700000000;
}

bool rt_service_ready(const struct rt_service *service, const char **ret_why)
{
    if (!service->ready)
        *ret_why = "no decode worker is ready";
    return service->ready;
}

Baton__V1__StatusResponse *rt_service_status(const struct rt_service *service)
{
    Baton__V1__StatusResponse *status = malloc(sizeof *status);
    assert_non_null(status);
    baton__v1__status_response__init(status);
    status->queued = (uint32_t)service->live;
    return status;
}

/* The window is what was asked for. */
Baton__V1__StatsResponse *rt_service_stats(const struct rt_service *service,
                                           const Baton__V1__StatsRequest *request)
{
    Baton__V1__StatsResponse *stats = malloc(sizeof *stats);
    assert_non_null(stats);
    baton__v1__stats_response__init(stats);
    stats->queued = (uint32_t)service->live;
    stats->window_s = request->window_s;
    return stats;
}

char *rt_service_metrics(struct rt_service *service, size_t *ret_size)
{
    (void)service;
    char *text = strdup("# TYPE fake counter\nfake 1\n");
    *ret_size = strlen(text);
    return text;
}

void rt_service_write_status(struct rt_service *service, const struct rt_status_query *query,
                             struct rt_openai_json *json)
{
    (void)service;
    rt_openai_json_literal(json, "[");
    rt_openai_json_int(json, (int64_t)query->after);
    rt_openai_json_literal(json, query->ranks ? ",true," : ",false,");
    rt_openai_json_int(json, (int64_t)query->offset);
    rt_openai_json_literal(json, "]");
}

/* ------------------------------------------------------------------ traces */

void rt_service_trace_begin(const struct rt_service *service, const char *traceparent,
                            struct rt_trace_context *ret_context)
{
    (void)service;
    rt_trace_context_begin(traceparent, 0, ret_context);
}

Baton__V1__TraceResponse *rt_service_trace(const struct rt_service *service,
                                           const Baton__V1__TraceRequest *request)
{
    (void)service;
    (void)request;
    return NULL;
}

/* ------------------------------------------------------------------ metrics of workers */

bool rt_service_scrape(struct rt_service *service, struct rt_scrape_waiter *waiter)
{
    (void)service;
    (void)waiter;
    return true;
}

void rt_service_scrape_cancel(struct rt_service *service, struct rt_scrape_waiter *waiter)
{
    (void)service;
    (void)waiter;
}

char *rt_service_scraped(const struct rt_service *service, size_t *ret_size)
{
    (void)service;
    static const char page[] = "fake_up 1\n";
    *ret_size = sizeof page - 1;
    return strdup(page);
}
