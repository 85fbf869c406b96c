#include "common/text/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"
#include "common/text/chat_style.h"
#include "common/text/json_file.h"
#include "common/text/tokenizer_config.h"
#include "common/text/utf8.h"

#define END_OF_THINKING "</think>"

struct bt_chat_form {
    const struct bt_tokenizer *tokenizer;
    const struct bt_chat_style *style; /* NULL: the checkpoint has no template */
    char *bos, *eos;                   /* content; empty where the checkpoint names none */
};

/* A list of named templates has the one for chat under "default". */
static enum bt_status find_default(const struct bt_json_file *config, const json_t *list,
                                   struct bt_error *error, const char **ret_template)
{
    const json_t *entry;
    size_t i;
    json_array_foreach(list, i, entry)
    {
        char where[64];
        const char *name, *text;
        enum bt_status status;
        snprintf(where, sizeof where, "chat_template[%zu]", i);
        if (!json_is_object(entry))
            return bt_json_file_error(config, error, "%s must be an object", where);
        if ((status = bt_json_file_string(config, entry, where, "name", error, &name)) ||
            (status = bt_json_file_string(config, entry, where, "template", error, &text)))
            return status;
        if (name && strcmp(name, "default") == 0)
            *ret_template = text;
    }
    return BT_OK;
}

static enum bt_status find_template(const struct bt_json_file *config, struct bt_error *error,
                                    const char **ret_template)
{
    const json_t *value = json_object_get(config->root, "chat_template");
    *ret_template = NULL;
    if (json_is_array(value))
        return find_default(config, value, error, ret_template);
    return bt_json_file_string(config, config->root, "", "chat_template", error, ret_template);
}

/* The marks of the style must be tokens: as plain text a model would not know them. */
static enum bt_status check_marks(const struct bt_chat_style *style, const char *path,
                                  const struct bt_tokenizer *tokenizer, struct bt_error *error)
{
    static const char *const marks[] = {"<｜User｜>", "<｜Assistant｜>"};
    for (size_t i = 0; i < 2; i++) {
        if (strstr(style->has[0], marks[i]) && bt_tokenizer_find(tokenizer, marks[i]) < 0)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s: the chat template uses %s, which is no token of this model",
                                path, marks[i]);
    }
    return BT_OK;
}

/* `text` is changed. */
static enum bt_status recognise(struct bt_chat_form *form, const char *path, char *text,
                                struct bt_error *error)
{
    form->style = bt_chat_style_recognise(text);
    if (!form->style)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "%s: the chat template is none of the DeepSeek forms known here", path);
    return check_marks(form->style, path, form->tokenizer, error);
}

static enum bt_status load_special(const struct bt_json_file *config, const char *key,
                                   struct bt_error *error, char **ret_content)
{
    const char *content;
    enum bt_status status = bt_tokenizer_config_token(config, key, error, &content);
    if (status != BT_OK)
        return status;
    *ret_content = strdup(content ? content : "");
    return *ret_content ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a template");
}

/* The template's text and the file it is from; NULL: the checkpoint has none. */
static enum bt_status read_template(const char *model_dir, const struct bt_json_file *config,
                                    struct bt_error *error, char ret_path[static PATH_MAX],
                                    char **ret_text)
{
    size_t size;
    const char *text;
    int length = snprintf(ret_path, PATH_MAX, "%s/chat_template.jinja", model_dir);
    if (length < 0 || length >= PATH_MAX)
        return bt_error_set(error, BT_ERR_IO, "the path of the model is too long");
    enum bt_status status = bt_file_read(ret_path, BT_JSON_FILE_MAX_BYTES, error, ret_text, &size);
    if (status != BT_ERR_NOT_FOUND)
        return status;
    snprintf(ret_path, PATH_MAX, "%s", config->path);
    if ((status = find_template(config, error, &text)) != BT_OK)
        return status;
    *ret_text = text ? strdup(text) : NULL;
    return text && !*ret_text ? bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a template")
                              : BT_OK;
}

static enum bt_status load_style(struct bt_chat_form *form, const char *model_dir,
                                 const struct bt_json_file *config, struct bt_error *error)
{
    char path[PATH_MAX];
    char *text = NULL;
    enum bt_status status = read_template(model_dir, config, error, path, &text);
    if (status == BT_OK && text)
        status = recognise(form, path, text, error);
    free(text);
    return status;
}

enum bt_status bt_chat_form_load(const char *model_dir, const struct bt_tokenizer *tokenizer,
                                 struct bt_error *error, struct bt_chat_form **ret_form)
{
    struct bt_json_file config = {0};
    struct bt_chat_form *form = calloc(1, sizeof *form);
    if (!form)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a chat form");
    form->tokenizer = tokenizer;
    enum bt_status status = bt_json_file_load(model_dir, BT_TOKENIZER_CONFIG_FILE, error, &config);
    if (status == BT_OK)
        status = load_special(&config, "bos_token", error, &form->bos);
    if (status == BT_OK)
        status = load_special(&config, "eos_token", error, &form->eos);
    if (status == BT_OK)
        status = load_style(form, model_dir, &config, error);
    bt_json_file_finish(&config);
    if (status != BT_OK) {
        bt_chat_form_destroy(form);
        return status;
    }
    *ret_form = form;
    return BT_OK;
}

void bt_chat_form_destroy(struct bt_chat_form *form)
{
    if (!form)
        return;
    free(form->bos);
    free(form->eos);
    free(form);
}

static bool has_role(const struct bt_chat_message *message, const char *role)
{
    return strcmp(message->role, role) == 0;
}

static enum bt_status check_messages(const struct bt_chat_form *form,
                                     const struct bt_chat_message *messages, size_t message_count,
                                     struct bt_error *error)
{
    if (!form->style)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "this model has no chat template");
    if (message_count == 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "messages: at least one is needed");
    size_t total = 0;
    for (size_t i = 0; i < message_count; i++) {
        const struct bt_chat_message *message = &messages[i];
        char shown[64];
        if (!message->role || (!has_role(message, "system") && !has_role(message, "user") &&
                               !has_role(message, "assistant")))
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "messages[%zu].role: \"%s\" is not system, user or assistant", i,
                                bt_json_file_show(message->role ? message->role : "", shown));
        if (message->content_size > BT_TOKENIZER_MAX_TEXT_BYTES - total)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "messages[%zu].content: the messages have more than %u bytes", i,
                                BT_TOKENIZER_MAX_TEXT_BYTES);
        total += message->content_size;
        size_t valid = bt_utf8_valid_size(message->content, message->content_size);
        if (valid != message->content_size)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "messages[%zu].content: not UTF-8 at byte %zu", i, valid);
    }
    return BT_OK;
}

static void put_bytes(FILE *out, const char *bytes, size_t size)
{
    if (size)
        fwrite(bytes, 1, size, out);
}

static void put_front_system(FILE *out, const struct bt_chat_style *style,
                             const struct bt_chat_message *messages, size_t message_count)
{
    const struct bt_chat_message *last = NULL;
    for (size_t i = 0; i < message_count; i++) {
        if (!has_role(&messages[i], "system"))
            continue;
        if (style->system == BT_CHAT_SYSTEM_JOINED) {
            fputs(last ? "\n\n" : "", out);
            put_bytes(out, messages[i].content, messages[i].content_size);
        }
        last = &messages[i];
    }
    if (style->system == BT_CHAT_SYSTEM_LAST && last)
        put_bytes(out, last->content, last->content_size);
}

static void put_reply(FILE *out, const struct bt_chat_style *style,
                      const struct bt_chat_message *message)
{
    const char *at = message->content, *end = at + message->content_size;
    while (style->cut != BT_CHAT_CUT_NOTHING && at < end) {
        const char *mark = memmem(at, (size_t)(end - at), END_OF_THINKING, strlen(END_OF_THINKING));
        if (!mark)
            break;
        at = mark + strlen(END_OF_THINKING);
        if (style->cut == BT_CHAT_CUT_TO_FIRST)
            break;
    }
    put_bytes(out, at, (size_t)(end - at));
}

static bool is_due(enum bt_chat_when when, bool after_user)
{
    return when == BT_CHAT_ALWAYS || (when == BT_CHAT_AFTER_USER) == after_user;
}

static void put_prompt(FILE *out, const struct bt_chat_form *form,
                       const struct bt_chat_message *messages, size_t message_count)
{
    const struct bt_chat_style *style = form->style;
    bool after_user = false;
    fputs(form->bos, out);
    put_front_system(out, style, messages, message_count);
    for (size_t i = 0; i < message_count; i++) {
        const struct bt_chat_message *message = &messages[i];
        if (has_role(message, "user")) {
            fputs(style->user_begin, out);
            put_bytes(out, message->content, message->content_size);
            fputs(style->user_end, out);
            after_user = true;
        } else if (has_role(message, "assistant")) {
            if (is_due(style->reply_begin_when, after_user))
                fputs(style->reply_begin, out);
            put_reply(out, style, message);
            fputs(style->reply_end ? style->reply_end : form->eos, out);
            after_user = false;
        } else if (style->system == BT_CHAT_SYSTEM_IN_PLACE) {
            put_bytes(out, message->content, message->content_size);
            fputs(style->system_end, out);
        }
    }
    if (is_due(style->prompt_end_when, after_user))
        fputs(style->prompt_end, out);
}

enum bt_status bt_chat_form_render(const struct bt_chat_form *form,
                                   const struct bt_chat_message *messages, size_t message_count,
                                   struct bt_error *error, char **ret_text, size_t *ret_size)
{
    enum bt_status status = check_messages(form, messages, message_count, error);
    if (status != BT_OK)
        return status;
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to render a chat");
    put_prompt(out, form, messages, message_count);
    bool failed = ferror(out);
    if (fclose(out) != 0 || failed) {
        free(text);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to render a chat");
    }
    *ret_text = text;
    *ret_size = size;
    return BT_OK;
}

enum bt_status bt_chat_form_encode(const struct bt_chat_form *form,
                                   const struct bt_chat_message *messages, size_t message_count,
                                   struct bt_error *error, struct bt_token_buffer *ret_ids)
{
    char *text;
    size_t size;
    enum bt_status status = bt_chat_form_render(form, messages, message_count, error, &text, &size);
    if (status != BT_OK)
        return status;
    status = bt_tokenizer_encode(form->tokenizer, text, size, true, error, ret_ids);
    free(text);
    return status;
}
