#include "router/stream.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/generation_limits.h"

void rt_output_buffer_finish(struct rt_output_buffer *buffer)
{
    free(buffer->text);
    free(buffer->tokens);
    *buffer = (struct rt_output_buffer){0};
}

/* ---- what was asked for */

/* True: done, also for nothing. */
static bool copy_array(const void *from, size_t count, size_t size, void *ret_copy)
{
    void *copy = NULL;
    if (count > 0) {
        copy = malloc(count * size);
        if (!copy) {
            return false;
        }
        memcpy(copy, from, count * size);
    }
    memcpy(ret_copy, &copy, sizeof copy);
    return true;
}

static bool copy_name(struct rt_stream *stream, const char *name)
{
    char made[RT_REQUEST_ID_MAX + 1];
    if (!name) {
        rt_request_id_make(made);
        name = made;
    }
    stream->name = strdup(name);
    return stream->name != NULL;
}

static bool copy_generation(struct rt_stream *stream, const struct rt_generation *generation)
{
    const Baton__V1__SamplingParams *from = &generation->sampling;
    stream->sampling = *from;
    stream->sampling.base =
        (ProtobufCMessage)PROTOBUF_C_MESSAGE_INIT(&baton__v1__sampling_params__descriptor);
    stream->sampling.logit_bias_token = NULL;
    stream->sampling.logit_bias_value = NULL;
    stream->prompt_tokens = generation->prompt_tokens;
    stream->resume_tokens = generation->resume_tokens;
    stream->named = generation->named;
    return copy_name(stream, generation->request_id) &&
           copy_array(generation->prompt, generation->prompt_tokens, sizeof(uint32_t),
                      &stream->prompt) &&
           copy_array(from->logit_bias_token, from->n_logit_bias_token, sizeof(uint32_t),
                      &stream->sampling.logit_bias_token) &&
           copy_array(from->logit_bias_value, from->n_logit_bias_value, sizeof(float),
                      &stream->sampling.logit_bias_value);
}

enum bt_status rt_stream_create(const struct bt_tokenizer *tokenizer,
                                const struct rt_generation *generation, uint32_t max_tokens,
                                const struct rt_sink *sink, struct bt_error *error,
                                struct rt_stream **ret_stream)
{
    struct rt_stream *stream = calloc(1, sizeof *stream);
    if (!stream || !copy_generation(stream, generation)) {
        rt_stream_destroy(stream);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
    }
    enum bt_status status =
        bt_detokenizer_create(tokenizer, generation->stop, generation->stop_count,
                              !generation->keep_special, error, &stream->detokenizer);
    if (status != BT_OK) {
        rt_stream_destroy(stream);
        return status;
    }
    stream->sampling.max_tokens = max_tokens;
    stream->eos = generation->sampling.ignore_eos ? -1 : bt_tokenizer_eos(tokenizer);
    stream->sink = *sink;
    *ret_stream = stream;
    return BT_OK;
}

void rt_stream_destroy(struct rt_stream *stream)
{
    if (!stream) {
        return;
    }
    if (stream->landing) {
        baton__v1__landing__free_unpacked(stream->landing, NULL);
    }
    rt_stream_destroy(stream->successor);
    bt_detokenizer_destroy(stream->detokenizer);
    rt_stages_finish(&stream->stages);
    free(stream->catch_up);
    free(stream->name);
    free(stream->sampling.logit_bias_token);
    free(stream->sampling.logit_bias_value);
    free(stream->prompt);
    free(stream);
}

/* ---- output */

/* False: no memory. */
static bool grow(void **memory, size_t needed, size_t size, size_t *capacity)
{
    if (needed <= *capacity) {
        return true;
    }
    void *grown = realloc(*memory, needed * 2 * size);
    if (!grown) {
        return false;
    }
    *memory = grown;
    *capacity = needed * 2;
    return true;
}

static bool add_text(struct rt_output_buffer *buffer, const char *text, size_t size)
{
    void *memory = buffer->text;
    bool room = grow(&memory, buffer->text_size + size + 1, 1, &buffer->text_capacity);
    buffer->text = memory;
    if (room && size > 0) {
        memcpy(buffer->text + buffer->text_size, text, size);
        buffer->text_size += size;
    }
    return room;
}

static bool add_token(struct rt_output_buffer *buffer, const struct rt_token *token)
{
    void *memory = buffer->tokens;
    bool room =
        grow(&memory, buffer->token_count + 1, sizeof *buffer->tokens, &buffer->token_capacity);
    buffer->tokens = memory;
    if (!room) {
        return false;
    }
    Baton__V1__Token *out = &buffer->tokens[buffer->token_count++];
    if (token->payload) {
        *out = *(const Baton__V1__Token *)token->payload;
        out->n_top = out->n_top < RT_MAX_LOGPROBS ? out->n_top : RT_MAX_LOGPROBS;
    } else {
        baton__v1__token__init(out);
        out->index = token->index;
        out->token = token->token;
    }
    return true;
}

static bool add_token_and_text(struct rt_stream *stream, struct rt_output_buffer *buffer,
                               const struct rt_token *token)
{
    if (!add_token(buffer, token)) {
        return false;
    }
    if (token->token == stream->eos) {
        return true;
    }
    const char *text;
    size_t size;
    stream->stopped = bt_detokenizer_push(stream->detokenizer, token->token, &text, &size);
    return token->index < stream->resume_tokens || add_text(buffer, text, size);
}

static void note_times(struct rt_stream *stream, uint32_t count, int64_t now_ns,
                       const struct rt_service_metrics *metrics)
{
    int64_t before_ns = stream->last_token_ns;
    stream->last_token_ns = now_ns;
    if (stream->first_token_ns == 0) {
        stream->first_token_ns = before_ns = now_ns;
        rt_service_metrics_first_token(metrics, stream, now_ns);
        rt_stages_first_token(&stream->stages, now_ns, metrics);
        count--;
    }
    if (stream->stages.detail) {
        rt_trace_detail_output(stream->stages.detail, now_ns, count);
    }
    for (uint32_t i = 0; i < count; i++) {
        double gap_s = (double)(now_ns - before_ns) / 1e9 / count;
        bt_histogram_observe(metrics->inter_token, gap_s);
    }
}

/* Those that it has had already are passed over. */
static enum bt_status take(struct rt_stream *stream, const struct rt_token *tokens, uint32_t count,
                           struct rt_output_buffer *buffer, uint32_t *ret_taken, bool *ret_stopped)
{
    buffer->text_size = buffer->token_count = 0;
    uint32_t taken = 0;
    for (uint32_t i = 0; i < count && !stream->stopped && !stream->ended; i++) {
        if (tokens[i].index < stream->completion_tokens) {
            continue;
        }
        if (!add_token_and_text(stream, buffer, &tokens[i])) {
            return BT_ERR_NO_MEMORY;
        }
        stream->completion_tokens++;
        taken++;
    }
    *ret_taken = taken;
    *ret_stopped = taken > 0 && stream->stopped;
    return BT_OK;
}

static void tell(const struct rt_stream *stream, const struct rt_output_buffer *buffer)
{
    if (!stream->abandoned) {
        stream->sink.on_output(stream->sink.context, buffer->text ? buffer->text : "",
                               buffer->text_size, buffer->tokens, buffer->token_count);
    }
}

enum bt_status rt_stream_output(struct rt_stream *stream, const struct rt_token *tokens,
                                uint32_t count, int64_t now_ns, struct rt_output_buffer *buffer,
                                const struct rt_service_metrics *metrics, bool *ret_stopped)
{
    uint32_t taken = 0;
    enum bt_status status = take(stream, tokens, count, buffer, &taken, ret_stopped);
    if (status != BT_OK || taken == 0) {
        return status;
    }
    note_times(stream, taken, now_ns, metrics);
    bt_counter_add(metrics->generation_tokens, taken);
    tell(stream, buffer);
    return BT_OK;
}

/* ---- another front */

bool rt_stream_resumable(const struct rt_stream *stream)
{
    return stream->sampling.logprobs < 0;
}

bool rt_stream_hand_over(struct rt_stream *stream, struct rt_stream *fresh, const uint32_t *tokens,
                         uint32_t count)
{
    uint32_t *copy;
    if (!copy_array(tokens, count, sizeof *tokens, &copy)) {
        return false;
    }
    free(stream->catch_up);
    stream->catch_up = copy;
    stream->catch_up_count = count;
    struct bt_detokenizer *unused = stream->detokenizer;
    stream->detokenizer = fresh->detokenizer;
    fresh->detokenizer = unused;
    stream->sink = fresh->sink;
    stream->named = fresh->named;
    stream->resume_tokens = fresh->resume_tokens;
    stream->deadline_ns = fresh->deadline_ns;
    stream->completion_tokens = 0;
    return true;
}

enum bt_status rt_stream_catch_up(struct rt_stream *stream, struct rt_output_buffer *buffer,
                                  bool *ret_stopped)
{
    uint32_t count = stream->catch_up_count, taken = 0;
    struct rt_token *tokens = calloc(count > 0 ? count : 1, sizeof *tokens);
    enum bt_status status = tokens ? BT_OK : BT_ERR_NO_MEMORY;
    *ret_stopped = false;
    if (status == BT_OK) {
        for (uint32_t i = 0; i < count; i++) {
            tokens[i] = (struct rt_token){.index = i, .token = stream->catch_up[i]};
        }
        status = take(stream, tokens, count, buffer, &taken, ret_stopped);
    }
    free(tokens);
    free(stream->catch_up);
    stream->catch_up = NULL;
    stream->catch_up_count = 0;
    if (status == BT_OK && taken > 0) {
        tell(stream, buffer);
    }
    return status;
}

void rt_sink_lost(const struct rt_sink *sink)
{
    Baton__V1__Timing timing = BATON__V1__TIMING__INIT;
    struct rt_result result = {.finish = RT_FINISH_ERROR,
                               .status = BT_ERR_ALREADY_EXISTS,
                               .text = "taken over by another connection with this X-Request-Id",
                               .timing = &timing};
    sink->on_end(sink->context, &result);
}

/* ---- the end */

static double ms(int64_t from_ns, int64_t to_ns)
{
    return from_ns > 0 && to_ns > 0 ? (double)(to_ns - from_ns) / 1e6 : 0;
}

static void fill_timing(struct rt_stream *stream, int64_t now_ns, Baton__V1__Timing *ret_timing)
{
    const Baton__V1__PrefillDone *done = &stream->done;
    baton__v1__timing__init(ret_timing);
    ret_timing->queue_ms = ms(stream->arrival_ns, stream->dispatched_ns);
    ret_timing->ttft_ms = ms(stream->arrival_ns, stream->first_token_ns);
    if (stream->completion_tokens > 1) {
        ret_timing->tpot_ms =
            ms(stream->first_token_ns, stream->last_token_ns) / (stream->completion_tokens - 1);
    }
    ret_timing->e2e_ms = ms(stream->arrival_ns, now_ns);
    ret_timing->prefill_compute_ms = (double)done->compute_ns / 1e6;
    ret_timing->visible_transfer_ms = (double)done->visible_transfer_ns / 1e6;
    ret_timing->kv_bytes = done->kv_bytes;
    ret_timing->kv_bytes_hidden = done->hidden_bytes;
    ret_timing->kv_writes = done->writes;
    ret_timing->layerwise = done->layerwise;
    ret_timing->transport = stream->transport;
    ret_timing->prefill_worker = stream->prefill_worker;
    ret_timing->decode_worker = stream->decode_worker;
    ret_timing->request_id = stream->name;
}

/* What waited to become a whole character, or for a stop string that did not come. */
static void flush_text(struct rt_stream *stream)
{
    const char *text;
    size_t size;
    bt_detokenizer_finish(stream->detokenizer, &text, &size);
    if (size > 0 && stream->resume_tokens <= stream->completion_tokens) {
        stream->sink.on_output(stream->sink.context, text, size, NULL, 0);
    }
}

void rt_stream_end(struct rt_stream *stream, enum rt_finish finish, enum bt_status status,
                   const char *text, int64_t now_ns, const struct rt_service_metrics *metrics)
{
    if (stream->ended) {
        return;
    }
    stream->ended = true;
    rt_service_metrics_end(metrics, stream, finish, now_ns);
    bool complete = finish == RT_FINISH_STOP || finish == RT_FINISH_LENGTH;
    if (complete && !stream->stopped && !stream->abandoned) {
        flush_text(stream);
    }
    if (stream->abandoned) {
        return;
    }
    Baton__V1__Timing timing;
    char trace_id[RT_TRACE_ID_SIZE];
    fill_timing(stream, now_ns, &timing);
    rt_stages_fill_timing(&stream->stages, trace_id, &timing);
    struct rt_result result = {
        .finish = finish,
        .status = status,
        .text = text,
        .prompt_tokens = stream->prompt_tokens,
        .completion_tokens = stream->completion_tokens,
        .cached_tokens = stream->done.cached_tokens,
        .timing = &timing,
    };
    stream->sink.on_end(stream->sink.context, &result);
}
