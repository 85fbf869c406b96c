/* batonctl tokenize: what the router makes of a text or of a chat. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/api_key.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/verbs.h"

#define TEXT_MAX     (16u << 20)
#define MESSAGES_MAX 4096

struct tokenize {
    struct ctl_target target;
    struct ctl_api_key key_source;
    char api_key[CTL_API_KEY_SIZE];
    const char *messages;
    bool count;
    int output;
};

/* ------------------------------------------------------------------ what is asked */

/* malloc'd; NULL: it can't be read or is too long, as `error` says. */
static char *read_all(FILE *file, struct bt_error *error)
{
    char *text = malloc(TEXT_MAX + 1);
    size_t size = text ? fread(text, 1, TEXT_MAX + 1, file) : 0;
    if (!text || ferror(file) || size > TEXT_MAX || memchr(text, '\0', size)) {
        bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the text %s",
                     !text             ? "finds no memory"
                     : ferror(file)    ? "can't be read"
                     : size > TEXT_MAX ? "is longer than 16 MiB"
                                       : "has a zero in it");
        free(text);
        return NULL;
    }
    text[size] = '\0';
    return text;
}

/* The words as one text, or standard input. */
static char *find_text(int argc, char **argv, int used, struct bt_error *error)
{
    if (used == argc || (used + 1 == argc && strcmp(argv[used], "-") == 0))
        return read_all(stdin, error);
    size_t size = 1;
    for (int i = used; i < argc; i++)
        size += strlen(argv[i]) + 1;
    char *text = calloc(1, size);
    for (int i = used; text && i < argc; i++) {
        strcat(text, i > used ? " " : "");
        strcat(text, argv[i]);
    }
    if (!text)
        bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the text");
    return text;
}

static json_t *read_messages(const char *path, struct bt_error *error)
{
    json_error_t where;
    json_t *json = strcmp(path, "-") == 0 ? json_loadf(stdin, JSON_REJECT_DUPLICATES, &where)
                                          : json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    json_t *list = json_is_object(json) ? json_object_get(json, "messages") : json;
    bool good =
        json_is_array(list) && json_array_size(list) > 0 && json_array_size(list) <= MESSAGES_MAX;
    size_t i;
    json_t *message;
    json_array_foreach(list, i, message)
    {
        good = good && json_is_string(json_object_get(message, "role")) &&
               json_is_string(json_object_get(message, "content"));
    }
    if (!good)
        bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--messages %s: %s", path,
                     json ? "is no list of 1 to 4096 objects with role and content, as texts"
                          : where.text);
    json_t *kept = good ? json_incref(list) : NULL;
    json_decref(json);
    return kept;
}

/* ------------------------------------------------------------------ the call */

static enum bt_status call(const struct tokenize *tokenize, Baton__V1__TokenizeRequest *request,
                           struct bt_error *error, Baton__V1__TokenizeResponse **ret_response)
{
    struct ctl_connection connection;
    enum bt_status status = ctl_connection_init(&connection, &tokenize->target, error);
    if (status != BT_OK)
        return status;
    request->api_key = (char *)tokenize->api_key;
    request->pieces = !tokenize->count;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Router/Tokenize",
        .request = &request->base,
        .response = &baton__v1__tokenize_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + connection.timeout_ns,
    };
    ProtobufCMessage *response = NULL;
    status = bt_rpc_client_call_wait(connection.client, &spec, error, &response);
    ctl_connection_finish(&connection);
    if (status == BT_ERR_DEADLINE)
        error->status = BT_ERR_UNAVAILABLE;
    if (status == BT_OK)
        *ret_response = (Baton__V1__TokenizeResponse *)response;
    return status;
}

static enum bt_status tokenize_messages(const struct tokenize *tokenize, struct bt_error *error,
                                        Baton__V1__TokenizeResponse **ret_response)
{
    json_t *list = read_messages(tokenize->messages, error), *message;
    if (!list)
        return error->status;
    size_t count = json_array_size(list), i;
    Baton__V1__ChatMessage *messages = calloc(count, sizeof(*messages));
    Baton__V1__ChatMessage **pointers = calloc(count, sizeof(*pointers));
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    enum bt_status status = BT_ERR_NO_MEMORY;
    if (messages && pointers) {
        json_array_foreach(list, i, message)
        {
            baton__v1__chat_message__init(&messages[i]);
            messages[i].role = (char *)json_string_value(json_object_get(message, "role"));
            messages[i].content = (char *)json_string_value(json_object_get(message, "content"));
            pointers[i] = &messages[i];
        }
        request.messages = pointers;
        request.n_messages = count;
        status = call(tokenize, &request, error, ret_response);
    } else {
        bt_error_set(error, status, "no memory for messages");
    }
    free(messages);
    free(pointers);
    json_decref(list);
    return status;
}

static enum bt_status tokenize_text(const struct tokenize *tokenize, int argc, char **argv,
                                    int used, struct bt_error *error,
                                    Baton__V1__TokenizeResponse **ret_response)
{
    char *text = find_text(argc, argv, used, error);
    if (!text)
        return error->status;
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = text;
    enum bt_status status = call(tokenize, &request, error, ret_response);
    free(text);
    return status;
}

/* ------------------------------------------------------------------ the answer */

/* As a text, malloc'd: where it is none, or steers terminals, in the bytes' hex, as \x1b. */
static char *piece_text(const ProtobufCBinaryData *piece)
{
    char *text = malloc(piece->len * 4 + 1), *to = text;
    if (!text)
        return NULL;
    memcpy(text, piece->data ? (const char *)piece->data : "", piece->len);
    text[piece->len] = '\0';
    if (!memchr(text, '\0', piece->len)) {
        char *flat = strdup(text);
        if (flat) {
            ctl_text_flatten(flat);
            bool same = strcmp(flat, text) == 0;
            free(flat);
            if (same)
                return text;
        }
    }
    for (size_t i = 0; i < piece->len; i++) {
        unsigned char c = piece->data[i];
        if (c == '\n' || c == '\t')
            to += sprintf(to, "\\%c", c == '\n' ? 'n' : 't');
        else
            to += sprintf(to, c >= ' ' && c < 0x7f ? "%c" : "\\x%02x", c);
    }
    return text;
}

static int print_json(const Baton__V1__TokenizeResponse *response, bool count)
{
    json_t *all = json_pack("{s:I}", "count", (json_int_t)response->n_ids), *tokens = json_array();
    for (size_t i = 0; !count && i < response->n_ids; i++) {
        char *piece = i < response->n_pieces ? piece_text(&response->pieces[i]) : NULL;
        json_array_append_new(
            tokens, json_pack("{s:I,s:s?}", "id", (json_int_t)response->ids[i], "piece", piece));
        free(piece);
    }
    if (!count)
        json_object_set(all, "tokens", tokens);
    json_decref(tokens);
    return ctl_print_json(all);
}

static int print_table(const Baton__V1__TokenizeResponse *response, bool count)
{
    if (count) {
        printf("%zu\n", response->n_ids);
        return CTL_EXIT_OK;
    }
    printf("%10s  %s\n", "ID", "PIECE");
    for (size_t i = 0; i < response->n_ids; i++) {
        char *piece = i < response->n_pieces ? piece_text(&response->pieces[i]) : NULL;
        printf("%10" PRIu32 "  '%s'\n", response->ids[i], piece ? piece : "?");
        free(piece);
    }
    printf("%zu tokens\n", response->n_ids);
    return CTL_EXIT_OK;
}

int ctl_verb_tokenize(int argc, char **argv)
{
    static struct tokenize tokenize;
    int used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(tokenize.target),
        CTL_ENDPOINT_OPTIONS(tokenize.target),
        CTL_API_KEY_OPTIONS(tokenize.key_source),
        {"messages", BT_OPTION_STRING, &tokenize.messages, NULL, .metavar = "FILE",
         .help = "a chat in JSON, in the model's template, instead of a text; -: standard input"},
        {"count", BT_OPTION_BOOL, &tokenize.count, "false",
         .help = "only say how many tokens there are"},
        CTL_OUTPUT_OPTION(tokenize.output),
        {0},
    };
    static const char usage[] =
        "batonctl tokenize [OPTIONS] [TEXT]\n\n"
        "  batonctl tokenize 'Once upon a time'\n"
        "  batonctl tokenize --count < book.txt\n\n"
        "Without TEXT, or with -, it is read from the standard input. --messages has a list of\n"
        "objects with role and content, or a request's body with messages.";
    int code = ctl_parse(options, usage, argc, argv, &used);
    if (code >= 0)
        return code;
    if (tokenize.messages && used < argc) {
        fprintf(stderr, "batonctl tokenize: a text or --messages, not both\n");
        return CTL_EXIT_USAGE;
    }
    struct bt_error error;
    Baton__V1__TokenizeResponse *response = NULL;
    enum bt_status status = ctl_api_key_read(&tokenize.key_source, &error, tokenize.api_key);
    if (status == BT_OK)
        status = tokenize.messages ? tokenize_messages(&tokenize, &error, &response)
                                   : tokenize_text(&tokenize, argc, argv, used, &error, &response);
    if (status != BT_OK)
        return ctl_fail("tokenize", &error);
    code = tokenize.output == CTL_OUTPUT_JSON ? print_json(response, tokenize.count)
                                              : print_table(response, tokenize.count);
    baton__v1__tokenize_response__free_unpacked(response, NULL);
    return code;
}
