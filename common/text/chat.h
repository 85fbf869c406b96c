/*
 * The DeepSeek chat form: messages to prompt text.
 *
 * The template of tokenizer_config.json is recognised, not interpreted: the published families
 * (V2: "User: …\n\nAssistant: …", V2.5/V3/R1: <｜User｜>…<｜Assistant｜>) are told apart by what the template and
 * the added tokens contain; an unknown template is refused at load with a message.
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

/* Reads `model_dir`/tokenizer_config.json (chat_template as a string or as named list: "default").
 * A checkpoint without a template loads; rendering then fails with UNSUPPORTED. */
enum bt_status bt_chat_form_load(const char *model_dir, const struct bt_tokenizer *tokenizer,
                                 struct bt_error *error, struct bt_chat_form **ret_form);
void bt_chat_form_destroy(struct bt_chat_form *form);

/*
 * Appends the ids of the whole prompt, BOS and generation prompt included. Content is encoded
 * with added tokens recognised as the reference does (`special` of bt_tokenizer_encode true).
 * Errors: INVALID_ARGUMENT naming the message's index and what is wrong with it.
 */
enum bt_status bt_chat_form_encode(const struct bt_chat_form *form,
                                   const struct bt_chat_message *messages, size_t message_count,
                                   struct bt_error *error, struct bt_token_buffer *ret_ids);

/* The prompt as text, malloc'd; for tests and /tokenize. */
enum bt_status bt_chat_form_render(const struct bt_chat_form *form,
                                   const struct bt_chat_message *messages, size_t message_count,
                                   struct bt_error *error, char **ret_text, size_t *ret_size);

#endif
