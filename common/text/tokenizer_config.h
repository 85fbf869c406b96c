/* Reading special tokens from tokenizer_config.json, for the tokenizer and the chat form. */
#ifndef BATON_COMMON_TEXT_TOKENIZER_CONFIG_H
#define BATON_COMMON_TEXT_TOKENIZER_CONFIG_H

#include "common/text/json_file.h"

#define BT_TOKENIZER_CONFIG_FILE "tokenizer_config.json"

/*
 * The content of `key` ("bos_token", …), a string or an AddedToken object; NULL when there is none.
 * Valid as long as the file.
 */
enum bt_status bt_tokenizer_config_token(const struct bt_json_file *file, const char *key,
                                         struct bt_error *error, const char **ret_content);

#endif
