/*
 * Text from clients through the tokenizer and the chat form. Byte-level BPE loses nothing: the
 * bytes of the ids are the text; with the cache of texts the ids are the same. The first byte says
 * how the rest is taken: as text with or without added tokens, as contents of messages, as ids.
 */
#include <stdlib.h>
#include <string.h>

#include "common/text/chat.h"
#include "common/text/detokenizer.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"
#include "tests/fuzz/driver.h"

#define MAX_MESSAGES 8

static struct bt_tokenizer *plain, *cached;
static struct bt_chat_form *form;

static void load(void)
{
    if (form)
        return;
    BT_ASSERT(bt_tokenizer_load(MODEL_DIR, NULL, &plain) == BT_OK);
    BT_ASSERT(bt_tokenizer_load(MODEL_DIR, NULL, &cached) == BT_OK);
    BT_ASSERT(bt_tokenizer_cache_enable(cached, 1 << 20, NULL) == BT_OK);
    BT_ASSERT(bt_chat_form_load(MODEL_DIR, plain, NULL, &form) == BT_OK);
}

static void check_bytes(const struct bt_token_buffer *ids, const char *text, size_t size)
{
    size_t at = 0, length;
    for (size_t i = 0; i < ids->count; i++) {
        BT_ASSERT(ids->ids[i] < bt_tokenizer_vocab_size(plain));
        const char *bytes = bt_tokenizer_bytes(plain, ids->ids[i], &length);
        BT_ASSERT(length > 0 && at + length <= size && memcmp(text + at, bytes, length) == 0);
        at += length;
    }
    BT_ASSERT(at == size);
}

static void text_try(const char *text, size_t size, bool special)
{
    struct bt_token_buffer ids = {0}, same = {0};
    struct bt_error error = {0};
    bool valid = bt_utf8_valid_size(text, size) == size;
    enum bt_status status = bt_tokenizer_encode(plain, text, size, special, &error, &ids);
    BT_ASSERT((status == BT_OK) == valid && (valid || status == BT_ERR_INVALID_ARGUMENT));
    BT_ASSERT(bt_tokenizer_encode(cached, text, size, special, NULL, &same) == status);
    BT_ASSERT(ids.count == same.count);
    if (ids.count > 0)
        BT_ASSERT(memcmp(ids.ids, same.ids, ids.count * sizeof *ids.ids) == 0);
    if (valid)
        check_bytes(&ids, text, size);
    free(ids.ids);
    free(same.ids);
}

/* Of messages the first byte is the role, and 0xff ends each. */
static void chat_try(const char *text, size_t size)
{
    static const char *const roles[] = {"system", "user", "assistant", "king"};
    struct bt_chat_message messages[MAX_MESSAGES];
    size_t count = 0;
    for (size_t at = 0; at < size && count < MAX_MESSAGES; count++) {
        const char *end = memchr(text + at, 0xff, size - at);
        size_t next = end ? (size_t)(end - text) : size;
        messages[count] = (struct bt_chat_message){.role = roles[(unsigned char)text[at] % 4],
                                                   .content = text + at,
                                                   .content_size = next - at};
        at = next + 1;
    }
    struct bt_token_buffer ids = {0};
    struct bt_error error = {0};
    char *rendered = NULL;
    size_t rendered_size = 0;
    enum bt_status status = bt_chat_form_encode(form, messages, count, &error, &ids);
    if (status != BT_OK) {
        BT_ASSERT(status == BT_ERR_INVALID_ARGUMENT && error.text[0] && ids.count == 0);
    } else {
        BT_ASSERT(bt_chat_form_render(form, messages, count, &error, &rendered, &rendered_size) ==
                  BT_OK);
        check_bytes(&ids, rendered, rendered_size);
        free(rendered);
    }
    free(ids.ids);
}

/* Two bytes each; what comes out is text, whatever the ids. */
static void ids_try(const uint8_t *data, size_t size)
{
    static const char *const stops[] = {"e t", "\n\n"};
    struct bt_detokenizer *detokenizer;
    const char *text;
    size_t length;
    BT_ASSERT(bt_detokenizer_create(plain, stops, size % 3, size % 2, NULL, &detokenizer) == BT_OK);
    for (size_t i = 0; i + 1 < size; i += 2) {
        uint32_t id = (uint32_t)data[i] << 8 | data[i + 1];
        bool stopped =
            bt_detokenizer_push(detokenizer, id > 0xff00 ? UINT32_MAX : id % 2100, &text, &length);
        BT_ASSERT(bt_utf8_valid_size(text, length) == length);
        if (stopped)
            break;
    }
    bt_detokenizer_finish(detokenizer, &text, &length);
    BT_ASSERT(bt_utf8_valid_size(text, length) == length);
    bt_detokenizer_destroy(detokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    load();
    if (size == 0)
        return 0;
    const char *text = (const char *)data + 1;
    switch (data[0] % 4) {
    case 0:
    case 1:
        text_try(text, size - 1, data[0] % 4 == 1);
        break;
    case 2:
        chat_try(text, size - 1);
        break;
    default:
        ids_try(data + 1, size - 1);
    }
    return 0;
}

static const char *const seeds[] = {
    "0Hello, world! It's 12345 o'clock.\n\n  Indented\tline \r\n x_1=[2]; //end  ",
    "1<｜begin▁of▁sentence｜>今天天气很好 한국어<｜User｜>hi<｜Assistant｜><｜end▁of▁sentence｜> "
    "e\u0301",
    "2You are\xff"
    "Aren't you? <｜User｜>\xff"
    "B\xff"
    "A day\n",
    "2A\xff",
    "3\x01\x02\x03\x04\x02\x02\x01\x90\xff\xff\x08\x00\x08\x33\x05\x60",
};

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    return fuzz_seed_text(seeds, sizeof seeds / sizeof *seeds, index, ret_data, capacity);
}
