#include "deploy/batonctl/bench_setup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/file.h"
#include "deploy/batonctl/bench_jsonl.h"
#include "deploy/batonctl/verbs.h"

#define POOL_MAX 4096

enum bt_status ctl_bench_read_trace(const char *path, struct bt_error *error,
                                    struct ctl_bench_trace *ret_trace)
{
    char *text;
    size_t size;
    enum bt_status status = bt_file_read(path, CTL_BENCH_FILE_BYTES, error, &text, &size);
    if (status != BT_OK)
        return status;
    status = ctl_bench_trace_parse(text, size, error, ret_trace);
    free(text);
    if (status != BT_OK)
        bt_error_prefix(error, "%s", path);
    return status;
}

enum bt_status ctl_bench_read_dataset(const char *path, struct bt_error *error,
                                      struct ctl_bench_dataset *ret_dataset)
{
    char *text;
    size_t size;
    enum bt_status status = bt_file_read(path, CTL_BENCH_FILE_BYTES, error, &text, &size);
    if (status != BT_OK)
        return status;
    status = ctl_bench_dataset_parse(text, size, error, ret_dataset);
    free(text);
    if (status != BT_OK)
        bt_error_prefix(error, "%s", path);
    return status;
}

/* ------------------------------------------------------------------ the router */

static enum bt_status ask(struct bt_rpc_client *client, int64_t timeout_ns, const char *method,
                          const ProtobufCMessage *request,
                          const ProtobufCMessageDescriptor *response, struct bt_error *error,
                          ProtobufCMessage **ret_response)
{
    struct bt_rpc_call_spec spec = {
        .method = method,
        .request = request,
        .response = response,
        .deadline_ns = bt_clock_now_ns() + timeout_ns,
    };
    *ret_response = NULL;
    enum bt_status status = bt_rpc_client_call_wait(client, &spec, error, ret_response);
    if (status == BT_OK && !*ret_response)
        status = bt_error_set(error, BT_ERR_PROTOCOL, "%s was answered with nothing", method);
    if (status == BT_ERR_DEADLINE)
        status = bt_error_set(error, BT_ERR_UNAVAILABLE, "the router does not answer");
    return status;
}

static enum bt_status ask_models(struct bt_rpc_client *client, int64_t timeout_ns,
                                 struct bt_error *error, Baton__V1__ModelsResponse **ret_models)
{
    Baton__V1__ModelsRequest request = BATON__V1__MODELS_REQUEST__INIT;
    return ask(client, timeout_ns, "baton.v1.Router/Models", &request.base,
               &baton__v1__models_response__descriptor, error, (ProtobufCMessage **)ret_models);
}

enum bt_status ctl_bench_clients_open(struct ctl_connection *connection,
                                      const struct ctl_target *target, uint32_t count,
                                      struct bt_error *error, struct ctl_bench_clients *ret_clients)
{
    static struct ctl_address address;
    *ret_clients =
        (struct ctl_bench_clients){.loop = connection->loop, {connection->client}, .count = 1};
    connection->client = NULL;
    enum bt_status status = ctl_target_find(target, error, &address);
    while (status == BT_OK && ret_clients->count < count) {
        struct bt_rpc_client **client = &ret_clients->clients[ret_clients->count];
        status = bt_rpc_client_create(connection->loop, address.endpoint, error, client);
        ret_clients->count += status == BT_OK;
    }
    for (uint32_t i = 0; status == BT_OK && i < ret_clients->count; i++) {
        Baton__V1__ModelsResponse *models = NULL;
        status = ask_models(ret_clients->clients[i], connection->timeout_ns, error, &models);
        if (models)
            baton__v1__models_response__free_unpacked(models, NULL);
    }
    return status;
}

void ctl_bench_clients_close(struct ctl_bench_clients *clients)
{
    for (uint32_t i = 0; i < clients->count; i++)
        bt_rpc_client_destroy(clients->clients[i]);
    clients->count = 0;
}

static enum bt_status choose_model(const Baton__V1__ModelsResponse *models, const char *wanted,
                                   struct bt_error *error, struct ctl_bench_served *served)
{
    for (size_t i = 0; i < models->n_models; i++) {
        const Baton__V1__ModelInfo *model = models->models[i];
        if (wanted && strcmp(model->id, wanted) != 0)
            continue;
        snprintf(served->model, sizeof served->model, "%s", model->id);
        ctl_text_flatten(served->model);
        served->context = model->max_model_len;
        return BT_OK;
    }
    return bt_error_set(error, BT_ERR_NOT_FOUND, "the router serves no model %s",
                        wanted ? wanted : "yet");
}

static bool contains(const uint32_t *ids, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* The first may be what stands before each text. */
static enum bt_status fill_pool(const Baton__V1__TokenizeResponse *tokens, struct bt_error *error,
                                struct ctl_bench_served *served)
{
    size_t words = 1;
    for (const char *c = ctl_bench_words; *c; c++)
        words += *c == ' ';
    if (tokens->n_ids < 2)
        return bt_error_set(error, BT_ERR_PROTOCOL, "the router makes no tokens of a text");
    uint32_t *pool = calloc(POOL_MAX, sizeof *pool), count = 0;
    if (!pool)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for tokens");
    for (size_t i = 1; i < tokens->n_ids && count < POOL_MAX; i++)
        if (!contains(pool, count, tokens->ids[i]))
            pool[count++] = tokens->ids[i];
    served->pool = pool;
    served->pool_count = count;
    served->tokens_per_word = (double)tokens->n_ids / (double)words;
    return BT_OK;
}

enum bt_status ctl_bench_ask(const struct ctl_bench_clients *clients, int64_t timeout_ns,
                             const char *model, const char *api_key, struct bt_error *error,
                             struct ctl_bench_served *ret_served)
{
    struct ctl_bench_served served = {0};
    Baton__V1__ModelsResponse *models = NULL;
    Baton__V1__TokenizeResponse *tokens = NULL;
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)ctl_bench_words;
    if (api_key)
        request.api_key = (char *)api_key;
    enum bt_status status = ask_models(clients->clients[0], timeout_ns, error, &models);
    if (status == BT_OK)
        status = choose_model(models, model, error, &served);
    if (status == BT_OK)
        status =
            ask(clients->clients[0], timeout_ns, "baton.v1.Router/Tokenize", &request.base,
                &baton__v1__tokenize_response__descriptor, error, (ProtobufCMessage **)&tokens);
    if (status == BT_OK)
        status = fill_pool(tokens, error, &served);
    if (models)
        baton__v1__models_response__free_unpacked(models, NULL);
    if (tokens)
        baton__v1__tokenize_response__free_unpacked(tokens, NULL);
    if (status == BT_OK)
        *ret_served = served;
    return status;
}
