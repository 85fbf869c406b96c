/*
 * The text files of a checkpoint: the first byte says which of them is the input, the others are
 * right. What loads must serve: a prompt is rendered to text and encoded to ids of the vocabulary.
 * What does not load says why, in text.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/text/chat.h"
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"
#include "tests/fuzz/driver.h"

enum file { TEMPLATE, CONFIG, TOKENIZER, FILES };
static const char *const names[FILES] = {"chat_template.jinja", "tokenizer_config.json",
                                         "tokenizer.json"};
static const char *const templates[] = {"v2.jinja", "v3.jinja", "v3.1.jinja", "r1.jinja"};
#define TEMPLATES (sizeof templates / sizeof *templates)

static char dir[64];
static char good[FILES][16384];
static size_t good_size[FILES];
static enum file dirty = FILES; /* that is not as it should be */

static void path_of(enum file file, char ret_path[128])
{
    snprintf(ret_path, 128, "%s/%s", dir, names[file]);
}

static void clear(void)
{
    char path[128];
    for (enum file file = 0; file < FILES; file++) {
        path_of(file, path);
        unlink(path);
    }
    rmdir(dir);
}

static void put(enum file file, const void *data, size_t size)
{
    char path[128];
    path_of(file, path);
    FILE *out = fopen(path, "wb");
    BT_ASSERT(out && fwrite(data, 1, size, out) == size && fclose(out) == 0);
}

static size_t get(const char *path, void *ret_data, size_t capacity)
{
    FILE *in = fopen(path, "rb");
    BT_ASSERT(in);
    size_t size = fread(ret_data, 1, capacity, in);
    BT_ASSERT(feof(in) || fgetc(in) == EOF);
    fclose(in);
    return size;
}

static void load(void)
{
    if (dir[0])
        return;
    good_size[TEMPLATE] = get(TEXT_DIR "/chat_templates/v3.jinja", good[TEMPLATE], 16384);
    good_size[CONFIG] = get(TEXT_DIR "/v2-style/tokenizer_config.json", good[CONFIG], 16384);
    good_size[TOKENIZER] = get(TEXT_DIR "/v2-style/tokenizer.json", good[TOKENIZER], 16384);
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%.40s/baton-fuzz-XXXXXX", base ? base : "/tmp");
    BT_ASSERT(mkdtemp(dir));
    atexit(clear);
    for (enum file file = CONFIG; file < FILES; file++)
        put(file, good[file], good_size[file]);
}

/* The template stands alone in its file, or in the configuration. */
static void lay_out(enum file file, const uint8_t *data, size_t size)
{
    char path[128];
    if (dirty != FILES && dirty != TEMPLATE)
        put(dirty, good[dirty], good_size[dirty]);
    path_of(TEMPLATE, path);
    BT_ASSERT(unlink(path) == 0 || errno == ENOENT);
    put(file, data, size);
    dirty = file;
}

static void refused(enum bt_status status, const struct bt_error *error)
{
    BT_ASSERT(status == BT_ERR_INVALID_ARGUMENT || status == BT_ERR_UNSUPPORTED ||
              status == BT_ERR_IO);
    BT_ASSERT(error->text[0] &&
              bt_utf8_valid_size(error->text, strlen(error->text)) == strlen(error->text));
}

static void serve(const struct bt_tokenizer *tokenizer, const struct bt_chat_form *form)
{
    static const struct bt_chat_message messages[] = {{"system", "be", 2},
                                                      {"user", "hello", 5},
                                                      {"assistant", "<think>x</think>hi", 18},
                                                      {"user", "the world\n", 10}};
    struct bt_token_buffer ids = {0};
    struct bt_error error = {0};
    char *text = NULL;
    size_t size = 0;
    enum bt_status status = bt_chat_form_render(form, messages, 4, &error, &text, &size);
    if (status == BT_OK) {
        BT_ASSERT(bt_utf8_valid_size(text, size) == size && memmem(text, size, "the world", 9));
        status = bt_chat_form_encode(form, messages, 4, &error, &ids);
    }
    if (status != BT_OK) /* a vocabulary without some byte, or no template */
        BT_ASSERT(error.text[0]);
    for (size_t i = 0; i < ids.count; i++)
        BT_ASSERT(ids.ids[i] < bt_tokenizer_vocab_size(tokenizer));
    free(ids.ids);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    load();
    if (size == 0)
        return 0;
    lay_out((enum file)(data[0] % FILES), data + 1, size - 1);
    struct bt_tokenizer *tokenizer = NULL;
    struct bt_chat_form *form = NULL;
    struct bt_error error = {0};
    enum bt_status status = bt_tokenizer_load(dir, &error, &tokenizer);
    if (status != BT_OK) {
        refused(status, &error);
        return 0;
    }
    error = (struct bt_error){0};
    status = bt_chat_form_load(dir, tokenizer, &error, &form);
    if (status == BT_OK)
        serve(tokenizer, form);
    else
        refused(status, &error);
    bt_chat_form_destroy(form);
    bt_tokenizer_destroy(tokenizer);
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    if (index >= TEMPLATES + 2)
        return 0;
    load();
    enum file file = index < TEMPLATES ? TEMPLATE : index == TEMPLATES ? CONFIG : TOKENIZER;
    ret_data[0] = (uint8_t)('0' + file); /* has the same remainder by 3 */
    if (file == TEMPLATE) {
        char path[256];
        snprintf(path, sizeof path, TEXT_DIR "/chat_templates/%s", templates[index]);
        return 1 + get(path, ret_data + 1, capacity - 1);
    }
    BT_ASSERT(good_size[file] < capacity);
    memcpy(ret_data + 1, good[file], good_size[file]);
    return 1 + good_size[file];
}
