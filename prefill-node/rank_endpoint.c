#include "prefill-node/rank_endpoint.h"

#include <stdlib.h>
#include <string.h>

#define MAX_BLOB_BYTES 65536 /* of a transport address or key */
#define MAX_TEXT_BYTES 383

static enum bt_status check_text(const char *text, const char *field, struct bt_error *error)
{
    size_t length = text ? strlen(text) : 0;
    if (length == 0 || length > MAX_TEXT_BYTES) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "endpoint.%s: %zu characters, 1 to %d",
                            field, length, MAX_TEXT_BYTES);
    }
    return BT_OK;
}

static enum bt_status check_blob(const ProtobufCBinaryData *blob, const char *field,
                                 struct bt_error *error)
{
    if (blob->len == 0 || blob->len > MAX_BLOB_BYTES) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "endpoint.%s: %zu bytes, 1 to %d",
                            field, blob->len, MAX_BLOB_BYTES);
    }
    return BT_OK;
}

static enum bt_status check_process(const Baton__V1__ProcessId *process, struct bt_error *error)
{
    if (!process || !process->host || strlen(process->host) >= BT_HOST_ID_SIZE ||
        process->pid <= 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "endpoint.process is not a process id");
    }
    return BT_OK;
}

static enum bt_status check_pool(const Baton__V1__KvEndpoint *message,
                                 const struct bt_fingerprint *ours, struct bt_error *error)
{
    struct bt_fingerprint theirs;
    enum bt_status status = bt_fingerprint_from_message(message->fingerprint, error, &theirs);
    if (status == BT_OK) {
        status = bt_fingerprint_compare(ours, &theirs, error);
    }
    if (status != BT_OK) {
        bt_error_prefix(error, "endpoint.fingerprint");
        return status;
    }
    uint64_t end;
    if (message->pool_pages == 0 ||
        __builtin_add_overflow(message->pool_base,
                               bt_kv_pool_bytes(&ours->layout, message->pool_pages), &end)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "endpoint.pool_pages: no pool of %u pages can be there",
                            message->pool_pages);
    }
    return BT_OK;
}

enum bt_status pf_rank_endpoint_check(const Baton__V1__KvEndpoint *message,
                                      const struct bt_fingerprint *ours, struct bt_error *error)
{
    if (!message) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "endpoint is missing");
    }
    if (message->incarnation == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "endpoint.incarnation is 0");
    }
    enum bt_status status = check_text(message->worker_id, "worker_id", error);
    if (status == BT_OK) {
        status = check_text(message->control_endpoint, "control_endpoint", error);
    }
    if (status == BT_OK) {
        status = check_blob(&message->transport_address, "transport_address", error);
    }
    if (status == BT_OK) {
        status = check_blob(&message->pool_key, "pool_key", error);
    }
    if (status == BT_OK) {
        status = check_process(message->process, error);
    }
    return status == BT_OK ? check_pool(message, ours, error) : status;
}

static void *copy_bytes(const void *bytes, size_t size)
{
    void *copy = malloc(size);
    return copy ? memcpy(copy, bytes, size) : NULL;
}

enum bt_status pf_rank_endpoint_init(struct pf_rank_endpoint *endpoint,
                                     const Baton__V1__KvEndpoint *message, struct bt_error *error)
{
    *endpoint = (struct pf_rank_endpoint){
        .worker_id = strdup(message->worker_id),
        .control_endpoint = strdup(message->control_endpoint),
        .address = copy_bytes(message->transport_address.data, message->transport_address.len),
        .key = copy_bytes(message->pool_key.data, message->pool_key.len),
        .process = {.pid = message->process->pid, .start_ticks = message->process->start_ticks},
    };
    strncpy(endpoint->process.host, message->process->host, BT_HOST_ID_SIZE - 1);
    if (!endpoint->worker_id || !endpoint->control_endpoint || !endpoint->address ||
        !endpoint->key) {
        pf_rank_endpoint_finish(endpoint);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "decode rank: no memory");
    }
    endpoint->remote = (struct kvt_remote){
        .incarnation = message->incarnation,
        .address = endpoint->address,
        .address_size = message->transport_address.len,
        .key = endpoint->key,
        .key_size = message->pool_key.len,
        .pool_base = message->pool_base,
        .pool_pages = message->pool_pages,
    };
    return BT_OK;
}

void pf_rank_endpoint_finish(struct pf_rank_endpoint *endpoint)
{
    free(endpoint->worker_id);
    free(endpoint->control_endpoint);
    free(endpoint->address);
    free(endpoint->key);
    *endpoint = (struct pf_rank_endpoint){0};
}

bool pf_rank_worth_retrying(enum bt_status status)
{
    return status == BT_ERR_UNAVAILABLE || status == BT_ERR_PEER_LOST ||
           status == BT_ERR_DEADLINE || status == BT_ERR_EXHAUSTED || status == BT_ERR_NO_MEMORY;
}
