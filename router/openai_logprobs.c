#include "router/openai_logprobs.h"

#include <stdio.h>
#include <string.h>

#include "common/text/utf8.h"

static const char *token_bytes(const struct rt_openai_form *form, uint32_t token, size_t *ret_size)
{
    *ret_size = 0;
    const char *bytes = bt_tokenizer_bytes(form->tokenizer, token, ret_size);
    return bytes != NULL ? bytes : "";
}

static void separate(struct rt_openai_json *list)
{
    if (list->end > 0)
        rt_openai_json_literal(list, ",");
}

/* ------------------------------------------------------------------ chat */

/* "token":…,"logprob":…,"bytes":[…] */
static void write_token(const struct rt_openai_form *form, uint32_t token, float logprob,
                        struct rt_openai_json *out)
{
    size_t size;
    const char *bytes = token_bytes(form, token, &size);
    rt_openai_json_literal(out, "{\"token\":");
    rt_openai_json_string(out, bytes, size);
    rt_openai_json_literal(out, ",\"logprob\":");
    rt_openai_json_float(out, logprob);
    rt_openai_json_literal(out, ",\"bytes\":[");
    for (size_t i = 0; i < size; i++) {
        if (i > 0)
            rt_openai_json_literal(out, ",");
        rt_openai_json_int(out, (unsigned char)bytes[i]);
    }
    rt_openai_json_literal(out, "]");
}

static void add_chat(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                     const Baton__V1__Token *token)
{
    struct rt_openai_json *out = &choice->tokens;
    separate(out);
    write_token(form, token->token, token->logprob, out);
    rt_openai_json_literal(out, ",\"top_logprobs\":[");
    for (size_t i = 0; i < token->n_top; i++) {
        if (i > 0)
            rt_openai_json_literal(out, ",");
        write_token(form, token->top[i]->token, token->top[i]->logprob, out);
        rt_openai_json_literal(out, "}");
    }
    rt_openai_json_literal(out, "]}");
}

/* ------------------------------------------------------------------ completions */

/* Text of a token that is no whole UTF-8 is shown as its bytes, so that names stay distinct. */
static void write_name(const struct rt_openai_form *form, uint32_t token,
                       struct rt_openai_json *out)
{
    size_t size;
    const char *bytes = token_bytes(form, token, &size);
    if (bt_utf8_valid_size(bytes, size) == size) {
        rt_openai_json_string(out, bytes, size);
        return;
    }
    rt_openai_json_literal(out, "\"bytes:");
    for (size_t i = 0; i < size; i++) {
        char text[8];
        snprintf(text, sizeof text, "\\\\x%02x", (unsigned)(unsigned char)bytes[i]);
        rt_openai_json_literal(out, text);
    }
    rt_openai_json_literal(out, "\"");
}

static bool same_name(const struct rt_openai_form *form, uint32_t a, uint32_t b)
{
    size_t a_size, b_size;
    const char *a_bytes = token_bytes(form, a, &a_size), *b_bytes = token_bytes(form, b, &b_size);
    return a_size == b_size && memcmp(a_bytes, b_bytes, a_size) == 0;
}

static bool named_before(const struct rt_openai_form *form, const Baton__V1__Token *token,
                         size_t top)
{
    for (size_t i = 0; i < top; i++)
        if (same_name(form, token->top[i]->token, token->top[top]->token))
            return true;
    return false;
}

/* The best ones and the token itself: {"name":logprob,…}, no name twice. */
static void write_top(const struct rt_openai_form *form, const Baton__V1__Token *token,
                      struct rt_openai_json *out)
{
    bool own = false, first = true;
    rt_openai_json_literal(out, "{");
    for (size_t i = 0; i < token->n_top; i++) {
        own = own || same_name(form, token->top[i]->token, token->token);
        if (named_before(form, token, i))
            continue;
        rt_openai_json_literal(out, first ? "" : ",");
        write_name(form, token->top[i]->token, out);
        rt_openai_json_literal(out, ":");
        rt_openai_json_float(out, token->top[i]->logprob);
        first = false;
    }
    if (!own) {
        rt_openai_json_literal(out, first ? "" : ",");
        write_name(form, token->token, out);
        rt_openai_json_literal(out, ":");
        rt_openai_json_float(out, token->logprob);
    }
    rt_openai_json_literal(out, "}");
}

static bool continues_character(char byte)
{
    return ((unsigned char)byte & 0xC0) == 0x80;
}

/* Where the token's text begins, in characters; a token inside a character begins where that does.
 */
static uint64_t advance(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                        uint32_t token)
{
    size_t size;
    const char *bytes = token_bytes(form, token, &size);
    uint64_t offset = choice->characters;
    if (!form->keep_special && bt_tokenizer_is_special(form->tokenizer, token))
        return offset;
    if (size > 0 && offset > 0 && continues_character(bytes[0]))
        offset--;
    for (size_t i = 0; i < size; i++)
        choice->characters += !continues_character(bytes[i]);
    return offset;
}

static void add_completion(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                           const Baton__V1__Token *token)
{
    separate(&choice->tokens);
    write_name(form, token->token, &choice->tokens);
    separate(&choice->logprobs);
    rt_openai_json_float(&choice->logprobs, token->logprob);
    separate(&choice->top_logprobs);
    write_top(form, token, &choice->top_logprobs);
    separate(&choice->offsets);
    rt_openai_json_int(&choice->offsets, (int64_t)advance(form, choice, token->token));
}

/* ------------------------------------------------------------------ both */

void rt_openai_logprobs_add(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const Baton__V1__Token *tokens, size_t token_count)
{
    for (size_t i = 0; form->logprobs && i < token_count; i++) {
        if (form->chat)
            add_chat(form, choice, &tokens[i]);
        else
            add_completion(form, choice, &tokens[i]);
    }
}

void rt_openai_logprobs_pass(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                             const Baton__V1__Token *tokens, size_t token_count)
{
    for (size_t i = 0; form->logprobs && !form->chat && i < token_count; i++)
        advance(form, choice, tokens[i].token);
}

/* Keeps the memory for the next tokens. */
static void move_list(const char *name, struct rt_openai_json *list, struct rt_openai_json *out)
{
    size_t size;
    const char *text = rt_openai_json_unread(list, &size);
    rt_openai_json_literal(out, name);
    rt_openai_json_raw(out, text, size);
    rt_openai_json_take(list, size);
    out->failed = out->failed || list->failed;
}

void rt_openai_logprobs_write(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                              struct rt_openai_json *out)
{
    if (!form->logprobs) {
        rt_openai_json_literal(out, "null");
        return;
    }
    if (form->chat) {
        move_list("{\"content\":[", &choice->tokens, out);
        rt_openai_json_literal(out, "],\"refusal\":null}");
        return;
    }
    move_list("{\"tokens\":[", &choice->tokens, out);
    move_list("],\"token_logprobs\":[", &choice->logprobs, out);
    move_list("],\"top_logprobs\":[", &choice->top_logprobs, out);
    move_list("],\"text_offset\":[", &choice->offsets, out);
    rt_openai_json_literal(out, "]}");
}
