/* tokenizer_config.json: the special tokens. The chat template is chat.c's. */
#include <string.h>

#include "common/text/json_file.h"
#include "common/text/tokenizer_config.h"
#include "common/text/tokenizer_data.h"

enum bt_status bt_tokenizer_config_token(const struct bt_json_file *file, const char *key,
                                         struct bt_error *error, const char **ret_content)
{
    const json_t *value = json_object_get(file->root, key);
    if (!json_is_object(value))
        return bt_json_file_string(file, file->root, "", key, error, ret_content);
    return bt_json_file_string(file, value, key, "content", error, ret_content);
}

static enum bt_status load_token(const struct bt_json_file *file, const char *key,
                                 const struct bt_vocabulary *vocabulary, struct bt_error *error,
                                 int64_t *ret_id)
{
    const char *content;
    enum bt_status status = bt_tokenizer_config_token(file, key, error, &content);
    if (status != BT_OK)
        return status;
    *ret_id = content ? bt_vocabulary_find(vocabulary, content, strlen(content)) : -1;
    if (content && *ret_id < 0)
        return bt_json_file_error(file, error, "%s is not a token of tokenizer.json", key);
    return BT_OK;
}

enum bt_status bt_tokenizer_config_load(const char *model_dir, struct bt_error *error,
                                        struct bt_tokenizer *tokenizer)
{
    struct bt_json_file file = {0};
    const char *class_name;
    enum bt_status status = bt_json_file_load(model_dir, BT_TOKENIZER_CONFIG_FILE, error, &file);
    if (status != BT_OK)
        return status;
    const struct bt_vocabulary *vocabulary = &tokenizer->vocabulary;
    if ((status = load_token(&file, "bos_token", vocabulary, error, &tokenizer->bos)) ||
        (status = load_token(&file, "eos_token", vocabulary, error, &tokenizer->eos)) ||
        (status = bt_json_file_string(&file, file.root, "", "tokenizer_class", error, &class_name)))
        goto out;
    /* The Llama classes, which the family's files name, add BOS unless told otherwise. */
    bool llama = class_name && strncmp(class_name, "LlamaTokenizer", 14) == 0;
    status =
        bt_json_file_bool(&file, file.root, "", "add_bos_token", llama, error, &tokenizer->add_bos);
    if (status == BT_OK && tokenizer->bos < 0)
        tokenizer->add_bos = false;
out:
    bt_json_file_finish(&file);
    return status;
}
