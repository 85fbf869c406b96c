#include "router/openai_answer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/openai_admit.h"
#include "router/openai_logprobs.h"
#include "router/openai_prompt.h"
#include "router/openai_response.h"
#include "router/openai_sampling.h"
#include "router/request_id.h"

struct generation {
    struct rt_openai_answer *answer;
    uint64_t request; /* of the service; live until on_end or abandon */
    bool live;
    bool counts_prompt; /* the first of its prompt: usage counts a prompt once */
    uint32_t resume;    /* tokens that its client has */
    uint32_t tokens;    /* that usage counts already */
    const char *finish_reason;
    struct rt_openai_choice choice;
};

/* The ids of one prompt, and until they are there the job that makes them. */
struct prompt {
    struct rt_openai_answer *answer;
    struct rt_tokenization_job *job;
    struct bt_token_buffer ids;
};

struct rt_openai_answer {
    struct rt_service *service;
    struct rt_openai_request request; /* until it is submitted */
    int64_t arrival_ns, deadline_ns;
    struct prompt *prompts;
    size_t prompt_count, encoding;
    struct rt_openai_form form;
    bool timing;
    rt_openai_answer_fn *on_change;
    void *context;
    enum rt_openai_answer_state state;
    struct rt_openai_error error;
    struct rt_openai_usage usage;
    struct rt_openai_json out;
    struct rt_openai_json *timings; /* one a generation, whole responses only */
    struct generation *generations;
    uint32_t *progress; /* [generation_count], of a stream: tokens that its client has */
    size_t generation_count, unfinished;
    size_t held_bytes; /* by all choices, whole responses only */
    bool abandoned;
};

/* ------------------------------------------------------------------ output */

static bool over(const struct rt_openai_answer *answer)
{
    return answer->abandoned || answer->state >= RT_ANSWER_DONE;
}

static void fail(struct rt_openai_answer *answer, enum bt_status status, const char *text)
{
    rt_openai_error_from(&answer->error, status, NULL, text);
    if (answer->state == RT_ANSWER_WAITING) {
        answer->state = RT_ANSWER_FAILED;
        return;
    }
    rt_openai_json_literal(&answer->out, "data: ");
    rt_openai_error_write(&answer->error, &answer->out);
    rt_openai_json_literal(&answer->out, "\n\n");
    answer->state = answer->out.failed ? RT_ANSWER_OVERFLOWN : RT_ANSWER_BROKEN;
}

static void stream_changed(struct rt_openai_answer *answer)
{
    size_t size;
    rt_openai_json_unread(&answer->out, &size);
    if (answer->out.failed) {
        answer->state = RT_ANSWER_OVERFLOWN;
        rt_openai_error_set(&answer->error, BT_ERR_EXHAUSTED, NULL, "slow_reader",
                            "the client reads too slowly: %u bytes wait", RT_OPENAI_STREAM_LIMIT);
    } else if (size > 0 && answer->state == RT_ANSWER_WAITING) {
        answer->state = RT_ANSWER_STREAMING;
    }
}

/* More came for a choice of a whole response, which held `before` bytes. */
static void whole_changed(struct rt_openai_answer *answer, const struct rt_openai_choice *choice,
                          size_t before)
{
    answer->held_bytes += rt_openai_choice_size(choice) - before;
    if (answer->held_bytes <= RT_OPENAI_WHOLE_LIMIT)
        return;
    rt_openai_error_set(&answer->error, BT_ERR_INVALID_ARGUMENT, NULL, "response_too_large",
                        "the response is larger than %u bytes: ask for less, or for a stream",
                        RT_OPENAI_WHOLE_LIMIT);
    answer->state = RT_ANSWER_FAILED;
    answer->on_change(answer->context);
}

static void write_timings(struct rt_openai_answer *answer, struct rt_openai_json *out)
{
    if (answer->generation_count == 1) {
        size_t size;
        const char *text = rt_openai_json_unread(&answer->timings[0], &size);
        rt_openai_json_raw(out, text, size);
        return;
    }
    for (size_t i = 0; i < answer->generation_count; i++) {
        size_t size;
        const char *text = rt_openai_json_unread(&answer->timings[i], &size);
        rt_openai_json_literal(out, i == 0 ? "[" : ",");
        rt_openai_json_raw(out, size > 0 ? text : "null", size > 0 ? size : 4);
    }
    rt_openai_json_literal(out, "]");
}

static void write_whole(struct rt_openai_answer *answer)
{
    struct rt_openai_json timings = {0};
    if (answer->timing)
        write_timings(answer, &timings);
    rt_openai_write_head(&answer->form, &answer->out);
    for (size_t i = 0; i < answer->generation_count; i++)
        rt_openai_write_choice(&answer->form, &answer->generations[i].choice,
                               answer->generations[i].finish_reason, &answer->out);
    rt_openai_write_tail(&answer->usage, &timings, &answer->out);
    rt_openai_json_finish(&timings);
    answer->state = RT_ANSWER_DONE;
    if (!answer->out.failed)
        return;
    answer->state = RT_ANSWER_WAITING;
    fail(answer, BT_ERR_NO_MEMORY, "no memory for the response");
}

/* All generations ended well. */
static void complete(struct rt_openai_answer *answer)
{
    if (!answer->form.stream) {
        write_whole(answer);
        return;
    }
    if (answer->form.include_usage)
        rt_openai_write_usage_chunk(&answer->form, &answer->usage, &answer->out);
    rt_openai_write_done(&answer->out);
    stream_changed(answer);
    if (answer->state != RT_ANSWER_OVERFLOWN)
        answer->state = RT_ANSWER_DONE;
}

/* ------------------------------------------------------------------ what the service says */

static void count(struct generation *generation, uint32_t tokens)
{
    generation->answer->usage.completion_tokens += (uint64_t)tokens - generation->tokens;
    generation->tokens = tokens;
}

/* Tokens that the client has are passed over; of the rest it is noted how far it gets. Returns how
 * many are passed over. */
static size_t progress(struct generation *generation, const Baton__V1__Token *tokens,
                       size_t token_count)
{
    struct rt_openai_answer *answer = generation->answer;
    uint32_t *has = &answer->progress[generation->choice.index];
    size_t passed = 0;
    while (passed < token_count && tokens[passed].index < generation->resume)
        passed++;
    rt_openai_logprobs_pass(&answer->form, &generation->choice, tokens, passed);
    if (token_count > 0)
        count(generation, tokens[token_count - 1].index + 1);
    if (token_count > passed)
        *has = tokens[token_count - 1].index + 1;
    else if (token_count == 0)
        *has += 1; /* what was held back until the end */
    return passed;
}

static void on_output(void *context, const char *text, size_t size, const Baton__V1__Token *tokens,
                      size_t token_count)
{
    struct generation *generation = context;
    struct rt_openai_answer *answer = generation->answer;
    if (over(answer))
        return;
    size_t passed = progress(generation, tokens, token_count);
    if (passed > 0 && passed == token_count)
        return;
    tokens += passed;
    token_count -= passed;
    size_t before = rt_openai_choice_size(&generation->choice);
    rt_openai_write_output(&answer->form, &generation->choice, text, size, tokens, token_count,
                           &answer->out);
    if (!answer->form.stream) {
        whole_changed(answer, &generation->choice, before);
        return;
    }
    stream_changed(answer);
    answer->on_change(answer->context);
}

static void finish_generation(struct generation *generation, const struct rt_result *result)
{
    struct rt_openai_answer *answer = generation->answer;
    generation->finish_reason = result->finish == RT_FINISH_LENGTH ? "length" : "stop";
    count(generation, result->completion_tokens);
    answer->usage.cached_tokens += generation->counts_prompt ? result->cached_tokens : 0;
    const Baton__V1__Timing *timing = answer->timing ? result->timing : NULL;
    if (answer->form.stream) {
        rt_openai_write_finish(&answer->form, &generation->choice, generation->finish_reason,
                               timing, &answer->out);
        stream_changed(answer);
    } else if (timing != NULL) {
        rt_openai_write_timing(timing, &answer->timings[generation->choice.index]);
    }
    if (--answer->unfinished == 0 && !over(answer))
        complete(answer);
}

static void on_end(void *context, const struct rt_result *result)
{
    struct generation *generation = context;
    struct rt_openai_answer *answer = generation->answer;
    generation->live = false;
    if (over(answer))
        return;
    switch (result->finish) {
    case RT_FINISH_STOP:
    case RT_FINISH_LENGTH:
        finish_generation(generation, result);
        break;
    case RT_FINISH_CANCELLED:
        fail(answer, BT_ERR_CANCELLED, "the request was cancelled");
        break;
    case RT_FINISH_DEADLINE:
        fail(answer, BT_ERR_DEADLINE, "the request took longer than its deadline allows");
        break;
    default:
        fail(answer, result->status != BT_OK ? result->status : BT_ERR_INTERNAL, result->text);
        break;
    }
    answer->on_change(answer->context);
}

/* ------------------------------------------------------------------ start */

static void abandon_live(struct rt_openai_answer *answer)
{
    for (size_t i = 0; i < answer->prompt_count; i++) {
        if (answer->prompts[i].job != NULL)
            rt_tokenization_cancel(answer->prompts[i].job);
        answer->prompts[i].job = NULL;
    }
    for (size_t i = 0; i < answer->generation_count; i++) {
        struct generation *generation = &answer->generations[i];
        if (!generation->live)
            continue;
        generation->live = false;
        rt_service_abandon(answer->service, generation->request);
    }
}

static enum bt_status submit_one(struct rt_openai_answer *answer,
                                 const struct rt_generation *description,
                                 struct generation *generation, struct rt_openai_error *error)
{
    const struct rt_sink sink = {.context = generation, .on_output = on_output, .on_end = on_end};
    struct bt_error reason = {0};
    enum bt_status status =
        rt_service_submit(answer->service, description, &sink, &reason, &generation->request);
    generation->live = status == BT_OK;
    return status == BT_OK ? BT_OK : rt_openai_refused(answer->service, status, reason.text, error);
}

static struct rt_generation describe(const struct rt_openai_answer *answer,
                                     const struct prompt *prompt)
{
    const struct rt_openai_request *request = &answer->request;
    return (struct rt_generation){
        .prompt = prompt->ids.ids,
        .prompt_tokens = (uint32_t)prompt->ids.count,
        .sampling = request->sampling,
        .stop = request->stop,
        .stop_count = request->stop_count,
        .arrival_ns = answer->arrival_ns,
        .deadline_ns = answer->deadline_ns,
        .keep_special = request->keep_special,
        .caller = request->caller,
        .tenant_name = request->caller.tenant_name,
        .trace = request->trace,
        .has_seed = request->has_seed,
        .request_id = request->request_id,
        .named = request->named,
    };
}

/* So that none is begun for a request that is refused for its others, again and again. What is gone
 * on with was paid for. */
static enum bt_status check_several(struct rt_openai_answer *answer, struct rt_openai_error *error)
{
    const struct rt_openai_request *request = &answer->request;
    if (answer->generation_count == 1 || request->resume != NULL)
        return BT_OK;
    uint64_t tokens = 0;
    for (size_t i = 0; i < answer->prompt_count; i++) {
        struct rt_generation description = describe(answer, &answer->prompts[i]);
        tokens += request->n * rt_service_price(answer->service, &description);
    }
    struct bt_error reason = {0};
    enum bt_status status = rt_service_check_several(answer->service, request->caller.tenant,
                                                     answer->generation_count, tokens, &reason);
    return status == BT_OK ? BT_OK : rt_openai_refused(answer->service, status, reason.text, error);
}

/* For each of the n choices of one prompt; a given seed is that of the first, and one more for each
 * of the others. */
static enum bt_status submit_prompt(struct rt_openai_answer *answer, const struct prompt *prompt,
                                    struct generation *generations, struct rt_openai_error *error)
{
    const struct rt_openai_request *request = &answer->request;
    struct rt_generation description = describe(answer, prompt);
    enum bt_status status = BT_OK;
    for (uint32_t i = 0; status == BT_OK && i < request->n; i++) {
        description.sampling.seed = request->has_seed ? request->sampling.seed + i : 0;
        description.index = generations[i].choice.index;
        description.resume_tokens = generations[i].resume;
        generations[i].counts_prompt = i == 0;
        status = submit_one(answer, &description, &generations[i], error);
    }
    return status;
}

static void free_input(struct rt_openai_answer *answer)
{
    for (size_t i = 0; i < answer->prompt_count; i++)
        free(answer->prompts[i].ids.ids);
    free(answer->prompts);
    answer->prompts = NULL;
    answer->prompt_count = 0;
    rt_openai_request_finish(&answer->request);
}

/* All ids are there and checked. */
static enum bt_status submit(struct rt_openai_answer *answer, struct rt_openai_error *error)
{
    enum bt_status status = check_several(answer, error);
    for (size_t i = 0; status == BT_OK && i < answer->prompt_count; i++) {
        answer->usage.prompt_tokens += answer->prompts[i].ids.count;
        status = submit_prompt(answer, &answer->prompts[i],
                               &answer->generations[i * answer->request.n], error);
    }
    free_input(answer);
    if (status != BT_OK)
        return status;
    /* The service's id is in all logs. */
    snprintf(answer->form.id, sizeof answer->form.id, "%s-%016" PRIx64,
             answer->form.chat ? "chatcmpl" : "cmpl", answer->generations[0].request);
    return BT_OK;
}

/* "messages", "prompt" or "prompt[3]". */
static void prompt_name(const struct rt_openai_answer *answer, size_t index,
                        char name[static RT_OPENAI_PARAM_SIZE])
{
    if (answer->form.chat)
        snprintf(name, RT_OPENAI_PARAM_SIZE, "messages");
    else
        snprintf(name, RT_OPENAI_PARAM_SIZE, answer->prompt_count > 1 ? "prompt[%zu]" : "prompt",
                 index);
}

static enum bt_status check_prompt(const struct rt_openai_answer *answer,
                                   const struct prompt *prompt, struct rt_openai_error *error)
{
    char name[RT_OPENAI_PARAM_SIZE];
    prompt_name(answer, (size_t)(prompt - answer->prompts), name);
    return rt_openai_prompt_check_ids(answer->service, prompt->ids.ids, prompt->ids.count,
                                      answer->request.sampling.max_tokens, name, error);
}

static void on_tokenized(void *context, enum bt_status status, const char *text,
                         struct bt_token_buffer *ids)
{
    struct prompt *prompt = context;
    struct rt_openai_answer *answer = prompt->answer;
    char name[RT_OPENAI_PARAM_SIZE];
    prompt->job = NULL;
    prompt->ids = *ids;
    answer->encoding--;
    prompt_name(answer, (size_t)(prompt - answer->prompts), name);
    status = rt_openai_prompt_result(status, name, text, &answer->error);
    if (status == BT_OK)
        status = check_prompt(answer, prompt, &answer->error);
    if (status == BT_OK && answer->encoding == 0)
        status = submit(answer, &answer->error);
    if (status == BT_OK)
        return;
    abandon_live(answer);
    free_input(answer);
    answer->state = RT_ANSWER_FAILED;
    answer->on_change(answer->context);
}

static enum bt_status check_bias(const struct rt_service *service,
                                 const Baton__V1__SamplingParams *sampling,
                                 struct rt_openai_error *error)
{
    uint32_t vocab_size = bt_tokenizer_vocab_size(rt_service_tokenizer(service));
    enum bt_status status = BT_OK;
    for (size_t i = 0; status == BT_OK && i < sampling->n_logit_bias_token; i++)
        status = rt_sampling_check_bias(sampling->logit_bias_token[i],
                                        sampling->logit_bias_value[i], vocab_size, error);
    return status;
}

/* Ids are taken as they are, the rest goes to the tokenizer's threads. */
static enum bt_status encode(struct rt_openai_answer *answer, size_t index,
                             struct rt_openai_error *error)
{
    const struct rt_openai_request *request = &answer->request;
    struct prompt *prompt = &answer->prompts[index];
    const struct rt_openai_prompt_sink sink = {
        .deadline_ns = answer->deadline_ns, .fn = on_tokenized, .context = prompt};
    struct rt_openai_prompt *given = answer->form.chat ? NULL : &request->prompts[index];
    enum bt_status status;
    if (given != NULL && given->text == NULL) {
        prompt->ids = (struct bt_token_buffer){given->ids, given->count, given->count};
        given->ids = NULL;
        return check_prompt(answer, prompt, error);
    }
    char name[RT_OPENAI_PARAM_SIZE];
    prompt_name(answer, index, name);
    if (given != NULL)
        status = rt_openai_prompt_encode_text(answer->service, given->text, given->size,
                                              request->add_special_tokens, name, &sink, error,
                                              &prompt->job);
    else
        status = rt_openai_prompt_encode_messages(
            answer->service, request->messages, request->message_count, &sink, error, &prompt->job);
    answer->encoding += status == BT_OK;
    return status;
}

/* Everything is checked before anything is submitted. */
static enum bt_status start(struct rt_openai_answer *answer, struct rt_openai_error *error)
{
    enum bt_status status = check_bias(answer->service, &answer->request.sampling, error);
    for (size_t i = 0; status == BT_OK && i < answer->prompt_count; i++)
        status = encode(answer, i, error);
    if (status != BT_OK)
        return status;
    rt_openai_request_drop_input(&answer->request);
    return answer->encoding == 0 ? submit(answer, error) : BT_OK;
}

/* Who names no limit is not refused for that of the API, but cut to his own. */
static void cut_usual_length(struct rt_openai_answer *answer)
{
    struct rt_openai_request *request = &answer->request;
    struct rt_access *access = rt_service_access(answer->service);
    uint32_t limit =
        access != NULL ? rt_access_tenant(access, request->caller.tenant)->max_output_tokens : 0;
    if (request->usual_length && limit > 0 && limit < request->sampling.max_tokens)
        request->sampling.max_tokens = limit;
}

static void fill_form(struct rt_openai_answer *answer, const struct rt_openai_request *request)
{
    answer->form = (struct rt_openai_form){
        .tokenizer = rt_service_tokenizer(answer->service),
        .model = rt_service_model_name(answer->service),
        .created = bt_clock_unix_ns() / BT_NS_PER_S,
        .chat = request->kind == RT_OPENAI_CHAT,
        .stream = request->stream,
        .logprobs = request->sampling.logprobs >= 0,
        .include_usage = request->include_usage,
        .so_far = request->include_usage && request->continuous_usage ? &answer->usage : NULL,
        .token_ids = request->return_token_ids,
        .keep_special = request->keep_special,
    };
    uint64_t hash = rt_service_model_hash(answer->service);
    if (hash != 0)
        snprintf(answer->form.fingerprint, sizeof answer->form.fingerprint, "fp_%016" PRIx64, hash);
}

static struct rt_openai_answer *allocate(struct rt_service *service, size_t prompt_count,
                                         size_t generation_count)
{
    struct rt_openai_answer *answer = calloc(1, sizeof *answer);
    if (answer == NULL)
        return NULL;
    answer->service = service;
    answer->prompts = calloc(prompt_count, sizeof *answer->prompts);
    answer->generations = calloc(generation_count, sizeof *answer->generations);
    answer->timings = calloc(generation_count, sizeof *answer->timings);
    answer->progress = calloc(generation_count, sizeof *answer->progress);
    if (answer->prompts == NULL || answer->generations == NULL || answer->timings == NULL ||
        answer->progress == NULL) {
        rt_openai_answer_destroy(answer);
        return NULL;
    }
    answer->prompt_count = prompt_count;
    for (size_t i = 0; i < prompt_count; i++)
        answer->prompts[i].answer = answer;
    answer->generation_count = answer->unfinished = generation_count;
    for (size_t i = 0; i < generation_count; i++) {
        answer->generations[i].answer = answer;
        answer->generations[i].choice.index = (uint32_t)i;
    }
    return answer;
}

/* What the client has of each choice. */
static enum bt_status read_resume(struct rt_openai_answer *answer, struct rt_openai_error *error)
{
    struct bt_error reason = {0};
    const char *text = answer->request.resume;
    size_t count = answer->generation_count;
    enum bt_status status = BT_OK;
    /* Who does not name requests does not come back; and many read lines of "data:" only. */
    if (answer->form.stream && answer->request.named) {
        answer->form.progress = answer->progress;
        answer->form.progress_count = count;
    }
    if (text == NULL)
        return BT_OK;
    status = rt_resume_parse(text, answer->progress, count, &reason, &count);
    if (status != BT_OK)
        return rt_openai_error_field(error, "Last-Event-ID", "%s", reason.text);
    if (count != answer->generation_count)
        return rt_openai_error_field(error, "Last-Event-ID",
                                     "has numbers of %zu choices, the request has %zu", count,
                                     answer->generation_count);
    for (size_t i = 0; i < count; i++) {
        answer->generations[i].resume = answer->progress[i];
        answer->generations[i].choice.begun = answer->progress[i] > 0;
    }
    return BT_OK;
}

enum bt_status rt_openai_answer_create(struct rt_service *service,
                                       struct rt_openai_request *request,
                                       rt_openai_answer_fn *on_change, void *context,
                                       struct rt_openai_error *error,
                                       struct rt_openai_answer **ret_answer)
{
    size_t prompt_count = request->kind == RT_OPENAI_CHAT ? 1 : request->prompt_count;
    struct rt_openai_answer *answer = NULL;
    enum bt_status status = rt_openai_prompt_check_model(service, request->model, error);
    if (status == BT_OK) {
        answer = allocate(service, prompt_count, prompt_count * request->n);
        if (answer == NULL)
            status =
                rt_openai_error_set(error, BT_ERR_NO_MEMORY, NULL, NULL, "no memory for a request");
    }
    if (status != BT_OK) {
        rt_openai_request_finish(request);
        return status;
    }
    answer->on_change = on_change;
    answer->context = context;
    answer->timing = request->timing;
    answer->out.limit = request->stream ? RT_OPENAI_STREAM_LIMIT : 0;
    answer->arrival_ns = bt_clock_now_ns();
    answer->deadline_ns = rt_service_deadline_ns(service, answer->arrival_ns, BT_NEVER_NS);
    fill_form(answer, request);
    answer->request = *request;
    *request = (struct rt_openai_request){0};
    cut_usual_length(answer);
    status = read_resume(answer, error);
    if (status == BT_OK)
        status = start(answer, error);
    if (status != BT_OK) {
        rt_openai_answer_destroy(answer);
        return status;
    }
    *ret_answer = answer;
    return BT_OK;
}

/* ------------------------------------------------------------------ end */

void rt_openai_answer_destroy(struct rt_openai_answer *answer)
{
    if (answer == NULL)
        return;
    rt_openai_answer_abandon(answer);
    free_input(answer);
    for (size_t i = 0; i < answer->generation_count; i++) {
        rt_openai_choice_finish(&answer->generations[i].choice);
        rt_openai_json_finish(&answer->timings[i]);
    }
    rt_openai_json_finish(&answer->out);
    rt_openai_form_finish(&answer->form);
    free(answer->generations);
    free(answer->progress);
    free(answer->timings);
    free(answer);
}

void rt_openai_answer_settle(struct rt_openai_answer *answer)
{
    if (answer->state >= RT_ANSWER_FAILED)
        abandon_live(answer);
}

void rt_openai_answer_abandon(struct rt_openai_answer *answer)
{
    answer->abandoned = true;
    abandon_live(answer);
}

enum rt_openai_answer_state rt_openai_answer_state(const struct rt_openai_answer *answer)
{
    return answer->state;
}

bool rt_openai_answer_is_stream(const struct rt_openai_answer *answer)
{
    return answer->form.stream;
}

const struct rt_openai_error *rt_openai_answer_error(const struct rt_openai_answer *answer)
{
    return &answer->error;
}

const char *rt_openai_answer_id(const struct rt_openai_answer *answer)
{
    return answer->form.id;
}

uint64_t rt_openai_answer_request(const struct rt_openai_answer *answer)
{
    return answer->generations[0].request;
}

struct rt_openai_json *rt_openai_answer_output(struct rt_openai_answer *answer)
{
    return &answer->out;
}
