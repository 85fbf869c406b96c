/*
 * Drives the tokenizer from another program: requests on standard input, one a line, answers on
 * standard output.
 *
 *   encode_lines MODEL_DIR [CACHE_BYTES]
 *
 *   e <hex>            ids of the text, added tokens recognised: "1 2 3"
 *   o <hex>            ids of the text, added tokens taken as ordinary text
 *   d <ids>            the text of the ids, streamed token by token: hex
 *   c <role> <hex> …   the chat prompt: "<hex of the text> <ids>"
 *
 * An answer that starts with "! " is an error.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/chat.h"
#include "common/text/detokenizer.h"
#include "common/text/tokenizer.h"

#define MAX_MESSAGES 64

/* Decodes in place; returns the number of bytes. */
static size_t unhex(char *hex)
{
    size_t size = strlen(hex) / 2;
    for (size_t i = 0; i < size; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], '\0'};
        hex[i] = (char)strtoul(pair, NULL, 16);
    }
    return size;
}

static void print_hex(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        printf("%02x", (unsigned char)text[i]);
}

static void print_ids(const struct bt_token_buffer *ids)
{
    for (size_t i = 0; i < ids->count; i++)
        printf("%s%u", i ? " " : "", (unsigned)ids->ids[i]);
}

static void encode(const struct bt_tokenizer *tokenizer, char *hex, bool special)
{
    struct bt_error error;
    struct bt_token_buffer ids = {0};
    size_t size = unhex(hex);
    if (bt_tokenizer_encode(tokenizer, hex, size, special, &error, &ids) == BT_OK)
        print_ids(&ids);
    else
        printf("! %s", error.text);
    free(ids.ids);
}

static void decode(const struct bt_tokenizer *tokenizer, char *line)
{
    struct bt_error error;
    struct bt_detokenizer *detokenizer;
    const char *text;
    size_t size;
    if (bt_detokenizer_create(tokenizer, NULL, 0, false, &error, &detokenizer) != BT_OK) {
        printf("! %s", error.text);
        return;
    }
    for (char *rest, *id = strtok_r(line, " ", &rest); id; id = strtok_r(NULL, " ", &rest)) {
        bt_detokenizer_push(detokenizer, (uint32_t)strtoul(id, NULL, 10), &text, &size);
        print_hex(text, size);
    }
    bt_detokenizer_finish(detokenizer, &text, &size);
    print_hex(text, size);
    bt_detokenizer_destroy(detokenizer);
}

static void chat(const struct bt_chat_form *form, char *line)
{
    struct bt_chat_message messages[MAX_MESSAGES];
    struct bt_error error;
    struct bt_token_buffer ids = {0};
    size_t count = 0, size;
    char *text;
    /* "-" is empty content: strtok joins neighbouring separators. */
    for (char *rest, *role = strtok_r(line, " ", &rest); role && count < MAX_MESSAGES;
         role = strtok_r(NULL, " ", &rest)) {
        char *hex = strtok_r(NULL, " ", &rest);
        messages[count++] = (struct bt_chat_message){
            .role = role, .content = hex, .content_size = strcmp(hex, "-") == 0 ? 0 : unhex(hex)};
    }
    if (bt_chat_form_render(form, messages, count, &error, &text, &size) != BT_OK ||
        bt_chat_form_encode(form, messages, count, &error, &ids) != BT_OK) {
        printf("! %s", error.text);
        return;
    }
    print_hex(text, size);
    printf(" ");
    print_ids(&ids);
    free(text);
    free(ids.ids);
}

int main(int argc, char **argv)
{
    struct bt_error error;
    struct bt_tokenizer *tokenizer;
    struct bt_chat_form *form;
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: encode_lines MODEL_DIR [CACHE_BYTES]\n");
        return 2;
    }
    if (bt_tokenizer_load(argv[1], &error, &tokenizer) != BT_OK ||
        bt_chat_form_load(argv[1], tokenizer, &error, &form) != BT_OK ||
        (argc == 3 &&
         bt_tokenizer_cache_enable(tokenizer, strtoull(argv[2], NULL, 10), &error) != BT_OK)) {
        fprintf(stderr, "encode_lines: %s\n", error.text);
        return 1;
    }
    char *line = NULL;
    size_t capacity = 0;
    ssize_t size;
    while ((size = getline(&line, &capacity, stdin)) > 0) {
        if (line[size - 1] == '\n')
            line[size - 1] = '\0';
        char *argument = strlen(line) > 2 ? line + 2 : line + strlen(line);
        if (line[0] == 'c')
            chat(form, argument);
        else if (line[0] == 'd')
            decode(tokenizer, argument);
        else
            encode(tokenizer, argument, line[0] == 'e');
        printf("\n");
        fflush(stdout);
    }
    free(line);
    bt_chat_form_destroy(form);
    bt_tokenizer_destroy(tokenizer);
    return 0;
}
