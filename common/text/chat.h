/*
 * The DeepSeek chat form: messages to prompt text.
 *
 * The checkpoint's template is recognised, not interpreted: the published families (V2:
 * "User: …\n\nAssistant: …", V2.5/V3/R1/V3.1: <｜User｜>…<｜Assistant｜>) are told apart by what
 * the template contains; an unknown template is refused at load with a message. Tools are not
 * rendered. Where a template can think or not, it does not.
 *
 * A form is immutable after loading: any thread may use it. It refers to its tokenizer, which must
 * outlive it.
 */
#ifndef BATON_COMMON_TEXT_CHAT_H
#define BATON_COMMON_TEXT_CHAT_H

#include "common/base/status.h"
#include "common/text/tokenizer.h"

struct bt_chat_form;

struct bt_chat_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* UTF-8 */
    size_t content_size;
};

/*
 * Reads `model_dir`/chat_template.jinja where it exists, else the chat_template of
 * tokenizer_config.json (a string, or a list of named ones: "default"). A checkpoint without a
 * template loads; rendering then fails with UNSUPPORTED. Errors: IO, INVALID_ARGUMENT (what in
 * which file), UNSUPPORTED (a template of another family), NO_MEMORY.
 */
enum bt_status bt_chat_form_load(const char *model_dir, const struct bt_tokenizer *tokenizer,
                                 struct bt_error *error, struct bt_chat_form **ret_form);
void bt_chat_form_destroy(struct bt_chat_form *form);

/*
 * Appends the ids of the whole prompt, BOS and generation prompt included. Content is encoded
 * with added tokens recognised as the reference does (`special` of bt_tokenizer_encode true).
 * Errors: INVALID_ARGUMENT naming the message's index and what is wrong with it; UNSUPPORTED (the
 * checkpoint has no template); those of bt_tokenizer_encode(). Nothing is appended then.
 */
enum bt_status bt_chat_form_encode(const struct bt_chat_form *form,
                                   const struct bt_chat_message *messages, size_t message_count,
                                   struct bt_error *error, struct bt_token_buffer *ret_ids);

/* The prompt as text, malloc'd; for tests and /tokenize. */
enum bt_status bt_chat_form_render(const struct bt_chat_form *form,
                                   const struct bt_chat_message *messages, size_t message_count,
                                   struct bt_error *error, char **ret_text, size_t *ret_size);

#endif
