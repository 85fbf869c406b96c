/* The verbs that ask the model: chat and generate. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/api_key.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/verbs.h"

#define MAX_TURNS 256

struct parameters {
    double temperature, top_p;
    int64_t top_k, max_tokens, seed;
    bool timing;
    int output;
    struct ctl_api_key key_source;
    char api_key[CTL_API_KEY_SIZE]; /* "": none */
};

#define PARAMETER_OPTIONS(p)                                                                       \
    {"temperature", BT_OPTION_DOUBLE, &(p).temperature, "1", 0, 100, NULL, NULL, "0: greedy",      \
     false},                                                                                       \
        {"top-p", BT_OPTION_DOUBLE, &(p).top_p, "1", 0, 1, NULL, NULL, "nucleus sampling", false}, \
        {"top-k", BT_OPTION_INT, &(p).top_k, "0", 0, 1 << 30, NULL, NULL, "0: off", false},        \
        {"max-tokens",                                                                             \
         BT_OPTION_INT,                                                                            \
         &(p).max_tokens,                                                                          \
         "0",                                                                                      \
         0,                                                                                        \
         1 << 30,                                                                                  \
         NULL,                                                                                     \
         NULL,                                                                                     \
         "0: up to the model's context",                                                           \
         false},                                                                                   \
        {"seed",                                                                                   \
         BT_OPTION_INT,                                                                            \
         &(p).seed,                                                                                \
         "-1",                                                                                     \
         -1,                                                                                       \
         9007199254740992.0,                                                                       \
         NULL,                                                                                     \
         NULL,                                                                                     \
         "-1: a new one each time",                                                                \
         false},                                                                                   \
        {"timing",                                                                                 \
         BT_OPTION_BOOL,                                                                           \
         &(p).timing,                                                                              \
         "false",                                                                                  \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         NULL,                                                                                     \
         "print where the time went",                                                              \
         false},                                                                                   \
        CTL_API_KEY_OPTIONS((p).key_source), CTL_OUTPUT_OPTION((p).output)

/* One answer as it arrives. */
struct answer {
    struct bt_loop *loop;
    bool quiet; /* not printed as it comes */
    char *text; /* the whole of it, for the next turn of a chat */
    size_t size, capacity;
    Baton__V1__GenerateEvent *last; /* the event with usage and timing */
    enum bt_status status;
    char reason[BT_ERROR_TEXT_SIZE];
    bool ended;
};

static void answer_finish(struct answer *answer)
{
    free(answer->text);
    if (answer->last)
        baton__v1__generate_event__free_unpacked(answer->last, NULL);
    memset(answer, 0, sizeof(*answer));
}

static void keep_text(struct answer *answer, const char *text)
{
    size_t size = strlen(text);
    if (answer->size + size + 1 > answer->capacity) {
        size_t capacity = (answer->size + size + 1) * 2;
        char *grown = realloc(answer->text, capacity);
        if (!grown)
            return;
        answer->text = grown;
        answer->capacity = capacity;
    }
    memcpy(answer->text + answer->size, text, size + 1);
    answer->size += size;
}

/* What a model or a prompt holds may not steer a terminal. */
static void print_text(const char *text)
{
    char *copy = strdup(text);
    if (!copy)
        return;
    ctl_text_clean(copy);
    fputs(copy, stdout);
    fflush(stdout);
    free(copy);
}

static void on_data(void *context, const ProtobufCMessage *message)
{
    struct answer *answer = context;
    const Baton__V1__GenerateEvent *event = (const Baton__V1__GenerateEvent *)message;
    if (!answer->quiet)
        print_text(event->text);
    keep_text(answer, event->text);
    if (!event->usage || answer->last)
        return;
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = malloc(size);
    if (packed) {
        protobuf_c_message_pack(message, packed);
        answer->last = baton__v1__generate_event__unpack(NULL, size, packed);
        free(packed);
    }
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    (void)response;
    struct answer *answer = context;
    answer->status = status;
    snprintf(answer->reason, sizeof(answer->reason), "%s", text);
    answer->ended = true;
    bt_loop_stop(answer->loop);
}

/* Runs one Generate call to its end; Ctrl-C cancels it. */
static enum bt_status ask(struct ctl_connection *connection, Baton__V1__GenerateRequest *request,
                          struct bt_error *error, struct answer *ret_answer)
{
    bool quiet = ret_answer->quiet;
    memset(ret_answer, 0, sizeof(*ret_answer));
    ret_answer->quiet = quiet;
    ret_answer->loop = connection->loop;
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Router/Generate",
        .request = &request->base,
        .data = &baton__v1__generate_event__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_data,
        .on_end = on_end,
        .context = ret_answer,
    };
    struct bt_rpc_pending *pending;
    enum bt_status status = bt_rpc_client_call(connection->client, &spec, error, &pending);
    if (status != BT_OK)
        return status;
    status = bt_loop_run(connection->loop, error);
    if (status == BT_OK && !ret_answer->ended) {
        bt_rpc_pending_cancel(pending);
        while (status == BT_OK && !ret_answer->ended)
            status = bt_loop_run_once(connection->loop, bt_clock_now_ns() + BT_NS_PER_S, error);
    }
    if (status == BT_OK && ret_answer->status != BT_OK)
        status = bt_error_set(error, ret_answer->status, "%s", ret_answer->reason);
    return status;
}

static void set_parameters(Baton__V1__GenerateRequest *request, const struct parameters *parameters)
{
    request->has_temperature = request->has_top_p = request->has_top_k = true;
    request->temperature = (float)parameters->temperature;
    request->top_p = (float)parameters->top_p;
    request->top_k = (int32_t)parameters->top_k;
    request->has_max_tokens = parameters->max_tokens > 0;
    request->max_tokens = (uint32_t)parameters->max_tokens;
    request->has_seed = parameters->seed >= 0;
    request->seed = (uint64_t)parameters->seed;
    request->api_key = (char *)parameters->api_key;
}

static void print_timing(const Baton__V1__GenerateEvent *event)
{
    if (!event || !event->usage || !event->timing)
        return;
    Baton__V1__Timing *t = event->timing;
    ctl_message_flatten(&t->base);
    double hidden = t->kv_bytes ? 100.0 * (double)t->kv_bytes_hidden / (double)t->kv_bytes : 0;
    printf("\n"
           "  %-22s %10.1f ms\n"
           "  %-22s %10.2f ms\n"
           "  %-22s %10u\n"
           "  %-22s %10u\n"
           "  %-22s %10" PRIu64 " bytes in %" PRIu64 " writes\n"
           "  %-22s %9.0f %%  (%s; %.2f ms were waited for)\n"
           "  %-22s %10s\n"
           "  %-22s %10s -> %s\n",
           "TTFT", t->ttft_ms, "TPOT", t->tpot_ms, "prompt tokens", event->usage->prompt_tokens,
           "output tokens", event->usage->completion_tokens, "KV pushed", t->kv_bytes, t->kv_writes,
           "hidden behind compute", hidden,
           t->layerwise ? "layer by layer" : "whole request at once", t->visible_transfer_ms,
           "transport", t->transport, "path", t->prefill_worker, t->decode_worker);
}

/* ---- JSON */

static json_t *usage_json(const Baton__V1__Usage *usage)
{
    if (!usage)
        return json_null();
    return json_pack("{s:I,s:I,s:I}", "prompt_tokens", (json_int_t)usage->prompt_tokens,
                     "completion_tokens", (json_int_t)usage->completion_tokens, "cached_tokens",
                     (json_int_t)usage->cached_tokens);
}

/* JSON has no NaN and no infinity. */
static double ms_to_s(double ms)
{
    return isfinite(ms) ? ms / 1e3 : 0;
}

static json_t *timing_json(Baton__V1__Timing *timing)
{
    if (!timing)
        return json_null();
    ctl_message_flatten(&timing->base);
    return json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:I,s:I,s:I,s:b,s:s,s:s,s:s,s:I,s:s}", "queue_s",
                     ms_to_s(timing->queue_ms), "ttft_s", ms_to_s(timing->ttft_ms), "tpot_s",
                     ms_to_s(timing->tpot_ms), "e2e_s", ms_to_s(timing->e2e_ms),
                     "prefill_compute_s", ms_to_s(timing->prefill_compute_ms), "visible_transfer_s",
                     ms_to_s(timing->visible_transfer_ms), "kv_bytes", (json_int_t)timing->kv_bytes,
                     "kv_hidden_bytes", (json_int_t)timing->kv_bytes_hidden, "kv_writes",
                     (json_int_t)timing->kv_writes, "layerwise", timing->layerwise, "transport",
                     timing->transport, "prefill_worker", timing->prefill_worker, "decode_worker",
                     timing->decode_worker, "attempts", (json_int_t)timing->attempts, "trace_id",
                     timing->trace_id);
}

/* The text as it is, where it is UTF-8. */
static json_t *text_json(char *text)
{
    json_t *json = json_string(text ? text : "");
    if (!json) {
        ctl_text_clean(text);
        json = json_string(text);
    }
    return json;
}

static json_t *answer_json(struct answer *answer)
{
    Baton__V1__GenerateEvent none = BATON__V1__GENERATE_EVENT__INIT;
    Baton__V1__GenerateEvent *last = answer->last ? answer->last : &none;
    if (answer->last)
        ctl_message_flatten(&last->base);
    return json_pack("{s:o,s:s,s:o,s:o}", "text", text_json(answer->text), "finish_reason",
                     last->finish_reason, "usage", usage_json(last->usage), "timing",
                     timing_json(last->timing));
}

/* The positional words as one text; malloc'd, NULL when there are none. */
static char *join_words(int argc, char **argv, int first)
{
    size_t size = 0;
    for (int i = first; i < argc; i++)
        size += strlen(argv[i]) + 1;
    char *text = size ? malloc(size) : NULL;
    if (!text)
        return NULL;
    char *at = text;
    for (int i = first; i < argc; i++)
        at += sprintf(at, i > first ? " %s" : "%s", argv[i]);
    return text;
}

static enum bt_status connect_router(const struct ctl_target *target,
                                     struct ctl_connection *connection, struct bt_error *error)
{
    enum bt_status status = ctl_connection_init(connection, target, error);
    if (status != BT_OK)
        return status;
    status = bt_loop_stop_on_signals(connection->loop, error);
    if (status != BT_OK)
        ctl_connection_finish(connection);
    return status;
}

struct conversation {
    json_t *answers; /* NULL: they are printed */
    Baton__V1__ChatMessage turns[MAX_TURNS];
    Baton__V1__ChatMessage *pointers[MAX_TURNS];
    size_t count;
};

static bool conversation_add(struct conversation *conversation, const char *role,
                             const char *content)
{
    if (conversation->count >= MAX_TURNS)
        return false;
    char *copy = strdup(content ? content : "");
    if (!copy)
        return false;
    Baton__V1__ChatMessage *turn = &conversation->turns[conversation->count];
    baton__v1__chat_message__init(turn);
    turn->role = (char *)role;
    turn->content = copy;
    conversation->pointers[conversation->count++] = turn;
    return true;
}

static void conversation_finish(struct conversation *conversation)
{
    for (size_t i = 0; i < conversation->count; i++)
        free(conversation->turns[i].content);
    json_decref(conversation->answers);
}

static enum bt_status chat_turn(struct ctl_connection *connection,
                                struct conversation *conversation,
                                const struct parameters *parameters, const char *question,
                                struct bt_error *error)
{
    if (!conversation_add(conversation, "user", question))
        return bt_error_set(error, BT_ERR_EXHAUSTED, "a conversation has at most %d turns",
                            MAX_TURNS / 2);
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    request.messages = conversation->pointers;
    request.n_messages = conversation->count;
    set_parameters(&request, parameters);
    struct answer answer = {.quiet = conversation->answers != NULL};
    enum bt_status status = ask(connection, &request, error, &answer);
    if (!answer.quiet)
        printf("\n");
    if (status == BT_OK && !conversation_add(conversation, "assistant", answer.text))
        status = bt_error_set(error, BT_ERR_EXHAUSTED, "a conversation has at most %d turns",
                              MAX_TURNS / 2);
    if (status == BT_OK && answer.quiet)
        json_array_append_new(conversation->answers, answer_json(&answer));
    else if (status == BT_OK && parameters->timing)
        print_timing(answer.last);
    answer_finish(&answer);
    return status;
}

static enum bt_status chat_loop(struct ctl_connection *connection,
                                struct conversation *conversation,
                                const struct parameters *parameters, struct bt_error *error)
{
    bool terminal = isatty(STDIN_FILENO) && !conversation->answers;
    char *line = NULL;
    size_t capacity = 0;
    enum bt_status status = BT_OK;
    while (status == BT_OK) {
        if (terminal) {
            printf("> ");
            fflush(stdout);
        }
        ssize_t size = getline(&line, &capacity, stdin);
        if (size < 0)
            break;
        if (size > 0 && line[size - 1] == '\n')
            line[--size] = '\0';
        if (size > 0)
            status = chat_turn(connection, conversation, parameters, line, error);
    }
    free(line);
    return status;
}

int ctl_verb_chat(int argc, char **argv)
{
    struct ctl_target target;
    struct parameters parameters;
    const char *system;
    int used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENDPOINT_OPTIONS(target),
        PARAMETER_OPTIONS(parameters),
        {"system", BT_OPTION_STRING, &system, NULL, 0, 0, NULL, "TEXT", "a system message first",
         false},
        {0},
    };
    int code = ctl_parse(options,
                         "batonctl chat [OPTIONS] [QUESTION]\n\n"
                         "  batonctl chat 'Who are you?'      one question\n"
                         "  batonctl chat                     a conversation, one line a turn\n\n"
                         "With --output json a question gives one object, a conversation an array "
                         "of them at its end.",
                         argc, argv, &used);
    if (code >= 0)
        return code;
    struct ctl_connection connection;
    struct bt_error error;
    enum bt_status status = ctl_api_key_read(&parameters.key_source, &error, parameters.api_key);
    if (status == BT_OK)
        status = connect_router(&target, &connection, &error);
    if (status != BT_OK)
        return ctl_fail("chat", &error);
    static struct conversation conversation;
    conversation.answers = parameters.output == CTL_OUTPUT_JSON ? json_array() : NULL;
    if (system)
        conversation_add(&conversation, "system", system);
    char *question = join_words(argc, argv, used);
    status = question ? chat_turn(&connection, &conversation, &parameters, question, &error)
                      : chat_loop(&connection, &conversation, &parameters, &error);
    ctl_connection_finish(&connection);
    code = status == BT_OK ? CTL_EXIT_OK : ctl_fail("chat", &error);
    if (status == BT_OK && conversation.answers)
        code = ctl_print_json(question ? json_incref(json_array_get(conversation.answers, 0))
                                       : json_incref(conversation.answers));
    free(question);
    conversation_finish(&conversation);
    return code;
}

static enum bt_status continue_text(struct ctl_connection *connection,
                                    const struct parameters *parameters, char *prompt,
                                    struct bt_error *error, int *ret_code)
{
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    struct answer answer = {.quiet = parameters->output == CTL_OUTPUT_JSON};
    request.prompt = prompt;
    set_parameters(&request, parameters);
    if (!answer.quiet)
        print_text(prompt);
    enum bt_status status = ask(connection, &request, error, &answer);
    if (!answer.quiet)
        printf("\n");
    if (status == BT_OK && answer.quiet)
        *ret_code = ctl_print_json(answer_json(&answer));
    else if (status == BT_OK && parameters->timing)
        print_timing(answer.last);
    answer_finish(&answer);
    return status;
}

int ctl_verb_generate(int argc, char **argv)
{
    struct ctl_target target;
    struct parameters parameters;
    int used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENDPOINT_OPTIONS(target),
        PARAMETER_OPTIONS(parameters),
        {0},
    };
    int code = ctl_parse(options,
                         "batonctl generate [OPTIONS] PROMPT\n\n"
                         "  batonctl generate --max-tokens 50 'Once upon a time'",
                         argc, argv, &used);
    if (code >= 0)
        return code;
    char *prompt = join_words(argc, argv, used);
    if (!prompt) {
        fprintf(stderr, "batonctl generate: a prompt is needed after the options\n");
        return CTL_EXIT_USAGE;
    }
    struct ctl_connection connection;
    struct bt_error error;
    enum bt_status status = ctl_api_key_read(&parameters.key_source, &error, parameters.api_key);
    if (status == BT_OK)
        status = connect_router(&target, &connection, &error);
    code = CTL_EXIT_OK;
    if (status == BT_OK) {
        status = continue_text(&connection, &parameters, prompt, &error, &code);
        ctl_connection_finish(&connection);
    }
    free(prompt);
    return status == BT_OK ? code : ctl_fail("generate", &error);
}
