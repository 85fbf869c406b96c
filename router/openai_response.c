#include "router/openai_response.h"

#include <string.h>

#include "router/openai_logprobs.h"

void rt_openai_choice_finish(struct rt_openai_choice *choice)
{
    rt_openai_json_finish(&choice->text);
    rt_openai_json_finish(&choice->token_ids);
    rt_openai_json_finish(&choice->tokens);
    rt_openai_json_finish(&choice->logprobs);
    rt_openai_json_finish(&choice->top_logprobs);
    rt_openai_json_finish(&choice->offsets);
}

void rt_openai_form_finish(struct rt_openai_form *form)
{
    rt_openai_json_finish(&form->head);
}

size_t rt_openai_choice_size(const struct rt_openai_choice *choice)
{
    return choice->text.end + choice->token_ids.end + choice->tokens.end + choice->logprobs.end +
           choice->top_logprobs.end + choice->offsets.end;
}

static void write_counts(const struct rt_openai_usage *usage, struct rt_openai_json *out)
{
    rt_openai_json_literal(out, "\"usage\":{\"prompt_tokens\":");
    rt_openai_json_int(out, (int64_t)usage->prompt_tokens);
    rt_openai_json_literal(out, ",\"completion_tokens\":");
    rt_openai_json_int(out, (int64_t)usage->completion_tokens);
    rt_openai_json_literal(out, ",\"total_tokens\":");
    rt_openai_json_int(out, (int64_t)(usage->prompt_tokens + usage->completion_tokens));
}

static void write_usage(const struct rt_openai_usage *usage, struct rt_openai_json *out)
{
    write_counts(usage, out);
    rt_openai_json_literal(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    rt_openai_json_int(out, (int64_t)usage->cached_tokens);
    rt_openai_json_literal(out, "}}");
}

void rt_openai_write_head(const struct rt_openai_form *form, struct rt_openai_json *out)
{
    rt_openai_json_literal(out, "{\"id\":");
    rt_openai_json_cstring(out, form->id);
    rt_openai_json_literal(out, ",\"object\":");
    if (form->chat)
        rt_openai_json_cstring(out, form->stream ? "chat.completion.chunk" : "chat.completion");
    else
        rt_openai_json_cstring(out, "text_completion");
    rt_openai_json_literal(out, ",\"created\":");
    rt_openai_json_int(out, form->created);
    rt_openai_json_literal(out, ",\"model\":");
    rt_openai_json_cstring(out, form->model);
    rt_openai_json_literal(out, ",\"system_fingerprint\":");
    rt_openai_json_cstring(out, form->fingerprint[0] != '\0' ? form->fingerprint : NULL);
    rt_openai_json_literal(out, ",\"choices\":[");
}

void rt_openai_write_tail(const struct rt_openai_usage *usage, const struct rt_openai_json *timings,
                          struct rt_openai_json *out)
{
    rt_openai_json_literal(out, "],");
    write_usage(usage, out);
    size_t size = 0;
    const char *text = timings != NULL ? rt_openai_json_unread(timings, &size) : NULL;
    if (size > 0) {
        rt_openai_json_literal(out, ",\"baton\":");
        rt_openai_json_raw(out, text, size);
    }
    rt_openai_json_literal(out, "}");
}

/* ------------------------------------------------------------------ streams */

static void begin_event(struct rt_openai_form *form, struct rt_openai_json *out)
{
    size_t size;
    rt_openai_json_seal(out);
    const char *head = rt_openai_json_unread(&form->head, &size);
    if (head == NULL) {
        rt_openai_json_literal(&form->head, "data: ");
        rt_openai_write_head(form, &form->head);
        head = rt_openai_json_unread(&form->head, &size);
        out->failed = out->failed || form->head.failed;
    }
    rt_openai_json_raw(out, head, size);
}

/* What the client would have to give back as Last-Event-ID after this event. It is behind the data,
 * so that a chunk which is written anew ends with that of its last token. */
static void write_event_id(const struct rt_openai_form *form, struct rt_openai_json *out)
{
    for (size_t i = 0; i < form->progress_count; i++) {
        rt_openai_json_literal(out, i == 0 ? "\nid: " : ",");
        rt_openai_json_int(out, form->progress[i]);
    }
}

static void begin_chunk(struct rt_openai_form *form, const struct rt_openai_choice *choice,
                        struct rt_openai_json *out)
{
    begin_event(form, out);
    rt_openai_json_literal(out, "{\"index\":");
    rt_openai_json_int(out, choice->index);
}

static void end_chunk(const struct rt_openai_form *form, const char *finish_reason,
                      const Baton__V1__Timing *timing, struct rt_openai_json *out)
{
    rt_openai_json_literal(out, ",\"finish_reason\":");
    rt_openai_json_cstring(out, finish_reason);
    rt_openai_json_literal(out, "}]");
    if (form->so_far != NULL) { /* what is cached is known at the end */
        rt_openai_json_literal(out, ",");
        write_counts(form->so_far, out);
        rt_openai_json_literal(out, "}");
    } else if (form->include_usage) {
        rt_openai_json_literal(out, ",\"usage\":null");
    }
    if (timing != NULL) {
        rt_openai_json_literal(out, ",\"baton\":");
        rt_openai_write_timing(timing, out);
    }
    rt_openai_json_literal(out, "}");
}

static void end_event(struct rt_openai_json *out)
{
    rt_openai_json_literal(out, "\n\n");
}

static void write_role_chunk(struct rt_openai_form *form, struct rt_openai_choice *choice,
                             struct rt_openai_json *out)
{
    if (!form->chat || choice->begun)
        return;
    choice->begun = true;
    begin_chunk(form, choice, out);
    rt_openai_json_literal(out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                                "\"logprobs\":null");
    end_chunk(form, NULL, NULL, out);
    end_event(out);
}

static void write_ids(const Baton__V1__Token *tokens, size_t token_count,
                      struct rt_openai_json *out)
{
    for (size_t i = 0; i < token_count; i++) {
        if (i > 0)
            rt_openai_json_literal(out, ",");
        rt_openai_json_int(out, tokens[i].token);
    }
}

/* Chunks of text alone differ in nothing but the text and the id behind it. */
static void write_text_chunk(struct rt_openai_form *form, const struct rt_openai_choice *choice,
                             const char *text, size_t size, struct rt_openai_json *out)
{
    if (!rt_openai_json_reopen(out, choice->index)) {
        begin_chunk(form, choice, out);
        rt_openai_json_literal(out, form->chat ? ",\"delta\":{\"content\":\"" : ",\"text\":\"");
    }
    rt_openai_json_text(out, text, size);
    rt_openai_json_open(out, choice->index);
    rt_openai_json_literal(out, form->chat ? "\"},\"logprobs\":null" : "\",\"logprobs\":null");
    end_chunk(form, NULL, NULL, out);
    write_event_id(form, out);
    end_event(out);
}

static void write_output_chunk(struct rt_openai_form *form, struct rt_openai_choice *choice,
                               const char *text, size_t size, const Baton__V1__Token *tokens,
                               size_t token_count, struct rt_openai_json *out)
{
    begin_chunk(form, choice, out);
    rt_openai_json_literal(out, form->chat ? ",\"delta\":{\"content\":" : ",\"text\":");
    rt_openai_json_string(out, text != NULL ? text : "", size);
    rt_openai_json_literal(out, form->chat ? "},\"logprobs\":" : ",\"logprobs\":");
    rt_openai_logprobs_add(form, choice, tokens, token_count);
    rt_openai_logprobs_write(form, choice, out);
    if (form->token_ids) {
        rt_openai_json_literal(out, ",\"token_ids\":[");
        write_ids(tokens, token_count, out);
        rt_openai_json_literal(out, "]");
    }
    end_chunk(form, NULL, NULL, out);
    write_event_id(form, out);
    end_event(out);
}

void rt_openai_write_output(struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const char *text, size_t size, const Baton__V1__Token *tokens,
                            size_t token_count, struct rt_openai_json *out)
{
    if (form->stream) {
        write_role_chunk(form, choice, out);
        bool detailed = form->logprobs || form->token_ids;
        if (size > 0 && !detailed)
            write_text_chunk(form, choice, text, size, out);
        else if (size > 0 || (token_count > 0 && detailed))
            write_output_chunk(form, choice, text, size, tokens, token_count, out);
        return;
    }
    rt_openai_json_raw(&choice->text, text, size);
    rt_openai_logprobs_add(form, choice, tokens, token_count);
    if (!form->token_ids || token_count == 0)
        return;
    if (choice->token_ids.end > 0)
        rt_openai_json_literal(&choice->token_ids, ",");
    write_ids(tokens, token_count, &choice->token_ids);
}

void rt_openai_write_finish(struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const char *finish_reason, const Baton__V1__Timing *timing,
                            struct rt_openai_json *out)
{
    write_role_chunk(form, choice, out);
    begin_chunk(form, choice, out);
    rt_openai_json_literal(out, form->chat ? ",\"delta\":{},\"logprobs\":null"
                                           : ",\"text\":\"\",\"logprobs\":null");
    if (form->token_ids)
        rt_openai_json_literal(out, ",\"token_ids\":[]");
    end_chunk(form, finish_reason, timing, out);
    write_event_id(form, out);
    end_event(out);
}

void rt_openai_write_usage_chunk(struct rt_openai_form *form, const struct rt_openai_usage *usage,
                                 struct rt_openai_json *out)
{
    begin_event(form, out);
    rt_openai_write_tail(usage, NULL, out);
    end_event(out);
}

void rt_openai_write_done(struct rt_openai_json *out)
{
    rt_openai_json_literal(out, "data: [DONE]\n\n");
}

/* ------------------------------------------------------------------ whole responses */

void rt_openai_write_choice(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const char *finish_reason, struct rt_openai_json *out)
{
    size_t size;
    const char *text = rt_openai_json_unread(&choice->text, &size);
    rt_openai_json_literal(out, choice->index > 0 ? ",{\"index\":" : "{\"index\":");
    rt_openai_json_int(out, choice->index);
    rt_openai_json_literal(out, form->chat ? ",\"message\":{\"role\":\"assistant\",\"content\":"
                                           : ",\"text\":");
    rt_openai_json_string(out, size > 0 ? text : "", size);
    rt_openai_json_literal(out, form->chat ? ",\"refusal\":null},\"logprobs\":" : ",\"logprobs\":");
    rt_openai_logprobs_write(form, choice, out);
    if (form->token_ids) {
        const char *ids = rt_openai_json_unread(&choice->token_ids, &size);
        rt_openai_json_literal(out, ",\"token_ids\":[");
        rt_openai_json_raw(out, ids, size);
        rt_openai_json_literal(out, "]");
    }
    rt_openai_json_literal(out, ",\"finish_reason\":");
    rt_openai_json_cstring(out, finish_reason);
    rt_openai_json_literal(out, "}");
    out->failed = out->failed || choice->text.failed || choice->token_ids.failed;
}

static void write_number(struct rt_openai_json *out, const char *name, double value)
{
    rt_openai_json_literal(out, name);
    rt_openai_json_double(out, value);
}

void rt_openai_write_timing(const Baton__V1__Timing *timing, struct rt_openai_json *out)
{
    write_number(out, "{\"queue_ms\":", timing->queue_ms);
    write_number(out, ",\"ttft_ms\":", timing->ttft_ms);
    write_number(out, ",\"tpot_ms\":", timing->tpot_ms);
    write_number(out, ",\"e2e_ms\":", timing->e2e_ms);
    write_number(out, ",\"prefill_compute_ms\":", timing->prefill_compute_ms);
    write_number(out, ",\"visible_transfer_ms\":", timing->visible_transfer_ms);
    rt_openai_json_literal(out, ",\"kv_bytes\":");
    rt_openai_json_int(out, (int64_t)timing->kv_bytes);
    rt_openai_json_literal(out, ",\"kv_bytes_hidden\":");
    rt_openai_json_int(out, (int64_t)timing->kv_bytes_hidden);
    rt_openai_json_literal(out, ",\"kv_writes\":");
    rt_openai_json_int(out, (int64_t)timing->kv_writes);
    rt_openai_json_literal(out, timing->layerwise ? ",\"layerwise\":true" : ",\"layerwise\":false");
    rt_openai_json_literal(out, ",\"transport\":");
    rt_openai_json_cstring(out, timing->transport);
    rt_openai_json_literal(out, ",\"prefill_worker\":");
    rt_openai_json_cstring(out, timing->prefill_worker);
    rt_openai_json_literal(out, ",\"decode_worker\":");
    rt_openai_json_cstring(out, timing->decode_worker);
    write_number(out, ",\"reserve_ms\":", timing->reserve_ms);
    write_number(out, ",\"decode_queue_ms\":", timing->decode_queue_ms);
    write_number(out, ",\"first_step_ms\":", timing->first_step_ms);
    rt_openai_json_literal(out, ",\"attempts\":");
    rt_openai_json_int(out, timing->attempts);
    rt_openai_json_literal(out, ",\"request_id\":");
    rt_openai_json_cstring(out, timing->request_id);
    rt_openai_json_literal(out, ",\"trace_id\":");
    rt_openai_json_cstring(out, timing->trace_id);
    rt_openai_json_literal(out, "}");
}
