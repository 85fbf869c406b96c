#include "router/checkpoint.h"

#include "common/text/json_file.h"
#include "common/text/tokenizer.h"

#define MAX_POSITIONS (1u << 30)

static enum bt_status positive(const struct bt_json_file *file, const char *key, json_int_t limit,
                               struct bt_error *error, uint32_t *ret_value)
{
    const json_t *value = json_object_get(file->root, key);
    if (!json_is_integer(value)) {
        return bt_json_file_error(file, error, "%s: not an integer", key);
    }
    json_int_t number = json_integer_value(value);
    if (number < 1 || number > limit) {
        return bt_json_file_error(file, error,
                                  "%s: %" JSON_INTEGER_FORMAT " is not in 1..%" //
                                  JSON_INTEGER_FORMAT,
                                  key, number, limit);
    }
    *ret_value = (uint32_t)number;
    return BT_OK;
}

enum bt_status rt_checkpoint_read(const char *model_dir, struct bt_error *error,
                                  struct rt_checkpoint *ret_checkpoint)
{
    struct bt_json_file file;
    enum bt_status status = bt_json_file_load(model_dir, "config.json", error, &file);
    if (status != BT_OK) {
        return status;
    }
    struct rt_checkpoint checkpoint;
    status = positive(&file, "max_position_embeddings", MAX_POSITIONS, error,
                      &checkpoint.max_position_embeddings);
    if (status == BT_OK) {
        status =
            positive(&file, "vocab_size", BT_TOKENIZER_MAX_VOCAB, error, &checkpoint.vocab_size);
    }
    if (status == BT_OK) {
        *ret_checkpoint = checkpoint;
    }
    bt_json_file_finish(&file);
    return status;
}
