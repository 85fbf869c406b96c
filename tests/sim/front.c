#include "tests/sim/front.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/metrics.h"
#include "common/kvcache/layout.h"
#include "router/rpc_front.h"
#include "router/service_state.h"
#include "tests/sim/engines.h"
#include "tests/sim/seams.h"

struct client clients_of_router[MAX_CLIENT];
uint32_t client_count;

/* ---- text and numbers that nobody reads */

const struct bt_rpc_method rt_rpc_front_methods[] = {{NULL, NULL, NULL}};

enum bt_status rt_checkpoint_read(const char *model_dir, struct bt_error *error,
                                  struct rt_checkpoint *ret_checkpoint)
{
    (void)model_dir;
    (void)error;
    *ret_checkpoint = (struct rt_checkpoint){SIM_MAX_LENGTH, SIM_VOCABULARY};
    return BT_OK;
}

enum bt_status bt_tokenizer_load(const char *model_dir, struct bt_error *error,
                                 struct bt_tokenizer **ret_tokenizer)
{
    (void)model_dir;
    (void)error;
    *ret_tokenizer = NULL;
    return BT_OK;
}

void bt_tokenizer_destroy(struct bt_tokenizer *tokenizer)
{
    (void)tokenizer;
}

enum bt_status bt_chat_form_load(const char *model_dir, const struct bt_tokenizer *tokenizer,
                                 struct bt_error *error, struct bt_chat_form **ret_form)
{
    (void)model_dir;
    (void)tokenizer;
    (void)error;
    *ret_form = NULL;
    return BT_OK;
}

void bt_chat_form_destroy(struct bt_chat_form *form)
{
    (void)form;
}

enum bt_status bt_tokenizer_cache_enable(struct bt_tokenizer *tokenizer, size_t capacity_bytes,
                                         struct bt_error *error)
{
    (void)tokenizer;
    (void)capacity_bytes;
    (void)error;
    return BT_OK;
}

enum bt_status rt_tokenization_create(struct bt_loop *loop,
                                      const struct rt_tokenization_options *options,
                                      struct bt_error *error,
                                      struct rt_tokenization **ret_tokenization)
{
    (void)loop;
    (void)options;
    (void)error;
    *ret_tokenization = NULL;
    return BT_OK;
}

void rt_tokenization_destroy(struct rt_tokenization *tokenization)
{
    (void)tokenization;
}

void rt_tokenization_close(struct rt_tokenization *tokenization)
{
    (void)tokenization;
}

void rt_tokenization_stop(struct rt_tokenization *tokenization)
{
    (void)tokenization;
}

size_t rt_tokenization_open(const struct rt_tokenization *tokenization)
{
    (void)tokenization;
    return 0;
}

void rt_tokenization_read(struct rt_tokenization *tokenization,
                          struct bt_tokenize_pool_stats *ret_stats)
{
    (void)tokenization;
    *ret_stats = (struct bt_tokenize_pool_stats){0};
}

void bt_tokenizer_cache_read(const struct bt_tokenizer *tokenizer,
                             struct bt_tokenizer_cache_stats *ret_stats)
{
    (void)tokenizer;
    *ret_stats = (struct bt_tokenizer_cache_stats){0};
}

struct bt_metrics *bt_metrics_create(void)
{
    static char nothing;
    return (struct bt_metrics *)&nothing;
}

void bt_metrics_destroy(struct bt_metrics *metrics)
{
    (void)metrics;
}

struct bt_counter *bt_metrics_counter(struct bt_metrics *metrics, const char *name,
                                      const char *labels, const char *help)
{
    (void)metrics;
    (void)name;
    (void)labels;
    (void)help;
    return NULL;
}

struct bt_gauge *bt_metrics_gauge(struct bt_metrics *metrics, const char *name, const char *labels,
                                  const char *help)
{
    (void)metrics;
    (void)name;
    (void)labels;
    (void)help;
    return NULL;
}

struct bt_histogram *bt_metrics_histogram(struct bt_metrics *metrics, const char *name,
                                          const char *labels, const char *help,
                                          const double *bounds, size_t bound_count)
{
    (void)metrics;
    (void)name;
    (void)labels;
    (void)help;
    (void)bounds;
    (void)bound_count;
    return NULL;
}

void bt_counter_add(struct bt_counter *counter, uint64_t amount)
{
    (void)counter;
    (void)amount;
}

void bt_gauge_set(struct bt_gauge *gauge, double value)
{
    (void)gauge;
    (void)value;
}

void bt_histogram_observe(struct bt_histogram *histogram, double value)
{
    (void)histogram;
    (void)value;
}

uint64_t bt_counter_value(const struct bt_counter *counter)
{
    (void)counter;
    return 0;
}

double bt_gauge_value(const struct bt_gauge *gauge)
{
    (void)gauge;
    return 0;
}

char *bt_metrics_render(const struct bt_metrics *metrics, size_t *ret_size)
{
    (void)metrics;
    (void)ret_size;
    return NULL;
}

/* ---- streams */

void rt_output_buffer_finish(struct rt_output_buffer *buffer)
{
    (void)buffer;
}

enum bt_status rt_stream_create(const struct bt_tokenizer *tokenizer,
                                const struct rt_generation *generation, uint32_t max_tokens,
                                const struct rt_sink *sink, struct bt_error *error,
                                struct rt_stream **ret_stream)
{
    (void)tokenizer;
    (void)error;
    struct rt_stream *stream = calloc(1, sizeof(*stream));
    stream->prompt = calloc(generation->prompt_tokens, sizeof(uint32_t));
    memcpy(stream->prompt, generation->prompt, generation->prompt_tokens * sizeof(uint32_t));
    stream->prompt_tokens = generation->prompt_tokens;
    stream->sampling = generation->sampling;
    stream->sampling.max_tokens = max_tokens;
    stream->sink = *sink;
    char name[16];
    snprintf(name, sizeof(name), "%zu",
             (size_t)((struct client *)sink->context - clients_of_router));
    stream->name = strdup(name);
    *ret_stream = stream;
    return BT_OK;
}

void rt_stream_destroy(struct rt_stream *stream)
{
    if (stream) {
        if (stream->landing) {
            baton__v1__landing__free_unpacked(stream->landing, NULL);
        }
        rt_stream_destroy(stream->successor);
        free(stream->prompt);
        free(stream->name);
        free(stream);
    }
}

/* No gap, no repeat, no other token, nothing after the end. */
enum bt_status rt_stream_output(struct rt_stream *stream, const struct rt_token *tokens,
                                uint32_t count, int64_t now_ns, struct rt_output_buffer *buffer,
                                const struct rt_service_metrics *metrics, bool *ret_stopped)
{
    (void)now_ns;
    (void)buffer;
    (void)metrics;
    struct client *client = stream->sink.context;
    *ret_stopped = false;
    if (stream->successor) { /* its client waits with another */
        return BT_OK;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (tokens[i].index < stream->completion_tokens) {
            continue;
        }
        if (tokens[i].index != client->tokens) {
            fail("request %016llx: token %u came instead of %u", (unsigned long long)stream->id,
                 tokens[i].index, client->tokens);
        } else if (tokens[i].token != token_of(stream->id, tokens[i].index)) {
            fail("request %016llx: token %u is another one", (unsigned long long)stream->id,
                 tokens[i].index);
        } else if (client->ends > 0) {
            fail("request %016llx: a token after its end", (unsigned long long)stream->id);
        }
        client->tokens++;
    }
    return BT_OK;
}

void rt_sink_lost(const struct rt_sink *sink)
{
    (void)sink; /* the client itself has come again */
}

bool rt_stream_resumable(const struct rt_stream *stream)
{
    return stream->sampling.logprobs < 0;
}

bool rt_stream_hand_over(struct rt_stream *stream, struct rt_stream *fresh, const uint32_t *tokens,
                         uint32_t count)
{
    (void)tokens;
    stream->sink = fresh->sink;
    stream->catch_up_count = count;
    return true;
}

/* The client has all of these now; what was on its way of them comes again. */
enum bt_status rt_stream_catch_up(struct rt_stream *stream, struct rt_output_buffer *buffer,
                                  bool *ret_stopped)
{
    (void)buffer;
    struct client *client = stream->sink.context;
    *ret_stopped = false;
    if (client->tokens > 0) {
        fail("request %016llx: it is handed over twice", (unsigned long long)stream->id);
    }
    client->tokens = stream->completion_tokens = stream->catch_up_count;
    return BT_OK;
}

/* What its usage and timing are made of, whichever connection was slow. Of a rank that computed the
 * prompt itself, or of another router's prefill worker, nobody has to tell. */
static bool prefill_told(const struct rt_stream *stream)
{
    return strcmp(stream->prefill_worker, stream->decode_worker) == 0 || stream->done.kv_bytes > 0;
}

void rt_stream_end(struct rt_stream *stream, enum rt_finish finish, enum bt_status status,
                   const char *text, int64_t now_ns, const struct rt_service_metrics *metrics)
{
    (void)text;
    (void)now_ns;
    (void)metrics;
    struct client *client = stream->sink.context;
    if (stream->successor) {
        return;
    }
    note("request ends", stream->id, finish, (uint64_t)-status);
    if (++client->ends > 1) {
        fail("request %016llx ended twice", (unsigned long long)stream->id);
    }
    client->finished = finish == RT_FINISH_LENGTH;
    if (finish == RT_FINISH_LENGTH && client->tokens != client->max_tokens) {
        fail("request %016llx ended with %u of %u tokens", (unsigned long long)stream->id,
             client->tokens, client->max_tokens);
    }
    if (finish == RT_FINISH_LENGTH && !prefill_told(stream)) {
        fail("request %016llx ended before it was known what its prefill did",
             (unsigned long long)stream->id);
    }
}

/* ---- clients */

static bool submit(struct node *router, struct client *client)
{
    static uint32_t prompt[3 * BT_PAGE_TOKENS];
    struct rt_generation generation = {
        .prompt = prompt, .prompt_tokens = client->prompt_tokens, .deadline_ns = BT_NEVER_NS};
    baton__v1__sampling_params__init(&generation.sampling);
    generation.sampling.top_p = 1;
    generation.sampling.repetition_penalty = 1;
    generation.sampling.logprobs = -1;
    generation.sampling.max_tokens = client->max_tokens;
    if (client->hurried) {
        generation.deadline_ns = world.now_ns + draw_ns(5 * SIM_MS, 5 * SIM_S);
    }
    const struct rt_sink sink = {.context = client};
    struct bt_error error = {0};
    if (rt_service_submit(router->program, &generation, &sink, &error, &client->request) == BT_OK) {
        note("submitted", client->request, client->prompt_tokens, client->max_tokens);
        return true;
    }
    return false;
}

/* One whose router is gone, or who has lost patience with its connection. NULL: there is none. */
static struct client *client_to_return(const struct node *router)
{
    uint32_t first = client_count > 0 ? draw(client_count) : 0;
    for (uint32_t i = 0; i < client_count; i++) {
        struct client *client = &clients_of_router[(first + i) % client_count];
        bool lost = client->router != router->instance;
        if (client->ends == 0 && !client->abandoned && draw(lost ? 2 : 24) == 0) {
            return client;
        }
    }
    return NULL;
}

/* The same request again, from its first token on. */
static void client_return(struct node *router, struct client *client)
{
    struct client before = *client;
    client->tokens = 0;
    client->router = router->instance;
    note("comes again", before.request, before.tokens, before.router == client->router);
    if (!submit(router, client)) {
        if (before.router == router->instance) {
            fail("request %016llx: what runs can not be taken over",
                 (unsigned long long)before.request);
        }
        *client = before;
    } else if (client->request != before.request) {
        fail("request %016llx has another number now", (unsigned long long)before.request);
    }
}

void client_submit(struct node *router)
{
    struct client *again = draw(8) > 0 ? client_to_return(router) : NULL;
    if (again) {
        client_return(router, again);
        return;
    }
    struct client *client = &clients_of_router[client_count];
    if (client_count == MAX_CLIENT) {
        return;
    }
    *client = (struct client){.router = router->instance,
                              .prompt_tokens = 1 + draw(3 * BT_PAGE_TOKENS),
                              .max_tokens = 1 + draw(draw(3) ? 6 : 80)};
    client->hurried = draw(4) == 0;
    client_count += submit(router, client);
}

const struct client *client_submit_fresh(struct node *router)
{
    struct client *client = &clients_of_router[client_count];
    BT_ASSERT(client_count < MAX_CLIENT);
    *client = (struct client){.router = router->instance,
                              .prompt_tokens = 1 + draw(BT_PAGE_TOKENS),
                              .max_tokens = 1 + draw(6)};
    bool submitted = submit(router, client);
    client_count += submitted;
    return submitted ? client : NULL;
}

void client_abandon(struct node *router, uint32_t index)
{
    struct client *client = &clients_of_router[index];
    if (client->router == router->instance && client->ends == 0) {
        note("abandoned", client->request, 0, 0);
        client->abandoned = true;
        rt_service_abandon(router->program, client->request);
    }
}

bool clients_all_ended(const struct node *router)
{
    for (uint32_t i = 0; i < client_count; i++) {
        if (clients_of_router[i].ends == 0 && clients_of_router[i].router == router->instance) {
            return false;
        }
    }
    return true;
}

void clients_check(const struct node *router)
{
    for (uint32_t i = 0; i < client_count; i++) {
        const struct client *client = &clients_of_router[i];
        if (client->router == router->instance && client->ends != 1) {
            fail("request %016llx ended %u times", (unsigned long long)client->request,
                 client->ends);
        }
    }
}
