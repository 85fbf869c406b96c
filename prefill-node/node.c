#include "prefill-node/node.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/messaging/registration.h"
#include "common/messaging/security.h"
#include "common/model/device_options.h"
#include "common/model/forward_metrics.h"
#include "kvtransfer/preflight.h"

/* ---- calls of both kinds of ranks ---- */

void pf_node_answer_metrics(struct pf_node *node, struct bt_rpc_call *call)
{
    size_t size;
    pf_metrics_transfer(&node->metrics, node->source);
    pf_metrics_rails(&node->metrics, node->source);
    bt_forward_metrics(node->model->device, NULL, node->metrics.registry, "role=\"prefill\"");
    if (node->options.rank) {
        bt_rank_metrics_update(node->options.rank);
    }
    char *text = bt_metrics_render(node->metrics.registry, &size);
    if (!text) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "metrics: no memory", NULL);
        return;
    }
    Baton__V1__MetricsResponse response = BATON__V1__METRICS_RESPONSE__INIT;
    response.text = text;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    free(text);
}

void pf_node_answer_preflight(const struct pf_node *node, struct bt_rpc_call *call,
                              const Baton__V1__PreflightRequest *request, const char *not_ready)
{
    const struct kvt_preflight_options options = {
        .identity = &node->identity,
        .bind_host = node->options.transport_host,
        .device = node->options.transport_devices,
        .brief = request->brief,
        .not_ready = not_ready,
    };
    Baton__V1__PreflightResponse *response = kvt_preflight_create(&options);
    if (response) {
        bt_rpc_call_end(call, BT_OK, NULL, &response->base);
    } else {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "preflight: no memory", NULL);
    }
    kvt_preflight_destroy(response);
}

/* ---- the ranks' card ---- */

struct card {
    char endpoint[PF_ENDPOINT_SIZE];
    uint64_t model_hash;
    uint32_t kv_pages, chunked_prefill_size, max_num_seqs, max_queued, max_model_len;
    uint32_t kv_dtype, checksum;
    char arithmetic[BT_ARITHMETIC_SIZE];
};
_Static_assert(sizeof(struct card) <= BT_RANK_CARD_BYTES, "a card of bt_rank_exchange");

static void card_fill(const struct pf_node *node, struct card *card)
{
    const struct pf_worker_options *options = &node->options;
    memset(card, 0, sizeof(*card));
    memcpy(card->endpoint, pf_node_endpoint(node), strlen(pf_node_endpoint(node)));
    card->model_hash = node->fingerprint.model_hash;
    card->kv_pages = options->kv_pages;
    card->chunked_prefill_size = options->chunked_prefill_size;
    card->max_num_seqs = options->max_num_seqs;
    card->max_queued = options->max_queued;
    card->max_model_len = options->max_model_len;
    card->kv_dtype = options->kv_dtype;
    card->checksum = options->checksum;
    memcpy(card->arithmetic, node->fingerprint.arithmetic, BT_ARITHMETIC_SIZE);
}

/* The first that differs; NULL: nothing. */
static const char *card_difference(const struct card *a, const struct card *b)
{
    return a->model_hash != b->model_hash                                   ? "--model"
           : strncmp(a->arithmetic, b->arithmetic, BT_ARITHMETIC_SIZE) != 0 ? "--dtype"
           : a->kv_dtype != b->kv_dtype                                     ? "--kv-cache-dtype"
           : a->kv_pages != b->kv_pages                                     ? "--kv-pages"
           : a->chunked_prefill_size != b->chunked_prefill_size ? "--chunked-prefill-size"
           : a->max_num_seqs != b->max_num_seqs                 ? "--max-num-seqs"
           : a->max_queued != b->max_queued                     ? "--max-queued"
           : a->max_model_len != b->max_model_len               ? "--max-model-len"
           : a->checksum != b->checksum                         ? "--checksum"
                                                                : NULL;
}

static enum bt_status cards_read(const struct pf_node *node, const struct card *cards,
                                 char (*ret_endpoints)[PF_ENDPOINT_SIZE], struct bt_error *error)
{
    for (uint32_t rank = 0; rank < node->size; rank++) {
        const char *difference = card_difference(&cards[0], &cards[rank]);
        if (difference) {
            return bt_error_set(error, BT_ERR_MISMATCH,
                                "%s of rank %" PRIu32 " is not that of rank 0", difference, rank);
        }
        memcpy(ret_endpoints[rank], cards[rank].endpoint, PF_ENDPOINT_SIZE);
        ret_endpoints[rank][PF_ENDPOINT_SIZE - 1] = '\0';
    }
    return BT_OK;
}

enum bt_status pf_node_meet(struct pf_node *node, char (*ret_endpoints)[PF_ENDPOINT_SIZE],
                            struct bt_error *error)
{
    struct card mine, *cards = calloc(node->size, sizeof(*cards));
    if (!cards) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "ranks: no memory");
    }
    card_fill(node, &mine);
    enum bt_status status = bt_rank_exchange(node->options.rank, &mine, sizeof(mine), cards);
    if (status == BT_OK) {
        status = cards_read(node, cards, ret_endpoints, error);
    } else {
        bt_error_set(error, status, "group: %s", bt_group_error(bt_rank_group(node->options.rank)));
    }
    free(cards);
    return status;
}

/* ---- putting it together ---- */

static void fill_identity(struct pf_node *node)
{
    bt_fingerprint_to_message(&node->fingerprint, &node->identity_fingerprint);
    baton__v1__process_id__init(&node->identity_process);
    node->identity_process.host = node->process.host;
    node->identity_process.pid = node->process.pid;
    node->identity_process.start_ticks = node->process.start_ticks;
    baton__v1__register_request__init(&node->identity);
    node->identity.worker_id = (char *)node->options.worker_id;
    node->identity.incarnation = node->incarnation;
    node->identity.role = BATON__V1__WORKER_ROLE__ROLE_PREFILL;
    node->identity.control_endpoint = (char *)pf_node_endpoint(node);
    node->identity.fingerprint = &node->identity_fingerprint;
    node->identity.process = &node->identity_process;
    node->identity.max_model_len = node->options.max_model_len;
    node->identity.transport = (char *)kvt_source_offers(node->source);
    if (node->size > 1) {
        baton__v1__group_member__init(&node->identity_group);
        node->identity_group.incarnation = node->incarnation;
        node->identity_group.name = (char *)node->options.worker_id;
        node->identity_group.rank = node->rank;
        node->identity_group.size = node->size;
        node->identity.group = &node->identity_group;
    }
}

/* A prompt has to fit the model and the pool. */
static uint32_t effective_model_len(const struct pf_worker_options *options,
                                    const struct bt_model *model)
{
    uint64_t length = model->config.max_position_embeddings;
    uint64_t pool_tokens = (uint64_t)options->kv_pages * BT_PAGE_TOKENS;
    length =
        options->max_model_len && options->max_model_len < length ? options->max_model_len : length;
    return (uint32_t)(pool_tokens < length ? pool_tokens : length);
}

static enum bt_status create_metrics(struct pf_node *node, const struct bt_model *model,
                                     struct bt_error *error)
{
    const struct pf_worker_options *options = &node->options;
    enum bt_status status =
        pf_metrics_init(&node->metrics, options->served_model_name, options->kv_pages,
                        bt_dtype_name(options->kv_dtype), error);
    if (status == BT_OK && options->engine_labels) {
        pf_metrics_engine(&node->metrics, options->engine_labels);
        bt_device_metrics(model->device, node->metrics.registry, "role=\"prefill\"");
    }
    if (status == BT_OK) {
        bt_loop_export_refused(node->loop, node->metrics.registry);
    }
    if (status == BT_OK && options->rank) {
        bt_rank_metrics(options->rank, node->metrics.registry, "role=\"prefill\"");
    }
    return status;
}

static enum bt_status create_source(struct pf_node *node, struct bt_error *error)
{
    const struct pf_worker_options *options = &node->options;
    const struct kvt_source_options source = {
        .transport = options->transport,
        .bind_host = options->transport_host,
        .forbid_fallback = options->forbid_fallback,
        .device = options->transport_devices,
        .pool_device = options->kv_staging ? NULL : node->model->device,
        .layout = node->layout,
        .pool_pages = options->kv_pages,
        .incarnation = node->incarnation,
        .writer = node->rank,
        .checksum = options->checksum,
        .max_pushes = options->max_queued,
    };
    enum bt_status status = kvt_source_create(&source, error, &node->source);
    if (status != BT_OK || !options->kv_staging || node->model->device->memory == BT_MEMORY_HOST) {
        return status;
    }
    const struct kvt_staging_options staging = {
        .device = node->model->device,
        .layout = node->layout,
        .pool_pages = options->kv_pages,
        .host_pool = kvt_source_pool(node->source),
    };
    return kvt_staging_create(&staging, error, &node->staging);
}

void *pf_node_pool(const struct pf_node *node)
{
    return node->staging ? kvt_staging_pool(node->staging) : kvt_source_pool(node->source);
}

enum bt_status pf_node_init(struct pf_node *node, struct bt_loop *loop,
                            const struct bt_model *model, const struct pf_worker_options *options,
                            void (*changed)(void *context), void *context, struct bt_error *error)
{
    *node = (struct pf_node){.loop = loop, .model = model, .options = *options, .size = 1};
    node->options.max_model_len = effective_model_len(options, model);
    node->layout = bt_model_kv_layout(model, options->kv_dtype);
    if (options->rank) {
        node->rank = bt_rank_index(options->rank);
        node->size = bt_rank_size(options->rank);
    }
    node->incarnation = node->size > 1 ? bt_rank_incarnation(options->rank) : bt_random_entropy();
    bt_model_fingerprint(model, options->served_model_name, options->kv_dtype, &node->fingerprint);
    enum bt_status status = bt_process_self(error, &node->process);
    if (status == BT_OK) {
        status = create_metrics(node, model, error);
    }
    if (status == BT_OK) {
        status = create_source(node, error);
    }
    if (status != BT_OK) {
        return status;
    }
    const struct pf_peers_options peers = {
        .loop = loop,
        .source = node->source,
        .worker_id = options->worker_id,
        .incarnation = node->incarnation,
        .process = node->process,
        .fingerprint = node->fingerprint,
        .changed = changed,
        .context = context,
    };
    node->peers = pf_peers_create(&peers);
    return node->peers ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "decode ranks: no memory");
}

int64_t pf_node_keepalive_ms(const struct pf_node *node)
{
    int64_t least_ms = node->options.group_timeout_ns / BT_RPC_SILENT_TICKS / BT_NS_PER_MS;
    return least_ms > BT_RPC_KEEPALIVE_MS ? least_ms : BT_RPC_KEEPALIVE_MS;
}

enum bt_status pf_node_serve(struct pf_node *node, const struct bt_rpc_method *methods,
                             void *context, struct bt_error *error)
{
    enum bt_status status = bt_rpc_server_create(node->loop, node->options.listen, methods, context,
                                                 error, &node->server);
    if (status == BT_OK && node->options.advertise_host) {
        status = bt_rpc_server_advertise(node->server, node->options.advertise_host, error);
        if (status != BT_OK) {
            bt_error_prefix(error, "--advertise-host");
        }
    }
    if (status == BT_OK && node->rank > 0) { /* whose only client is rank 0 */
        bt_rpc_server_set_keepalive(node->server, pf_node_keepalive_ms(node));
    }
    if (status == BT_OK) {
        fill_identity(node);
    }
    if (status == BT_OK && strlen(pf_node_endpoint(node)) >= PF_ENDPOINT_SIZE) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--listen: %d characters at most",
                              PF_ENDPOINT_SIZE - 1);
    }
    return status;
}

void pf_node_close(struct pf_node *node)
{
    bt_rpc_server_destroy(node->server);
    node->server = NULL;
}

void pf_node_finish(struct pf_node *node)
{
    pf_node_close(node);
    pf_peers_destroy(node->peers);
    kvt_staging_destroy(node->staging);
    kvt_source_destroy(node->source);
    bt_loop_export_refused(node->loop, NULL);
    pf_metrics_finish(&node->metrics);
}

const char *pf_node_endpoint(const struct pf_node *node)
{
    return bt_rpc_server_endpoint(node->server);
}

void pf_node_write_ready_file(const struct pf_node *node)
{
    struct bt_error error;
    if (node->options.ready_file &&
        bt_ready_file_write(node->options.ready_file, node->options.worker_id,
                            pf_node_endpoint(node), &error) != BT_OK) {
        bt_log_error(0, "%s", error.text);
    }
}
