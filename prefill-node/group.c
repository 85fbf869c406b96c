#include "prefill-node/group.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/kvcache/layout.h"
#include "kvtransfer/push.h"

/* A rank that was told to stop may have to flush to a peer that does not answer. */
#define CANCEL_WAIT_NS (KVT_FLUSH_NS + 10 * BT_NS_PER_S)

/* One rank's push, from the call to its end; it outlives the joint when the group is abandoned. */
struct rank_push {
    struct pf_joint *joint; /* NULL: abandoned */
    uint32_t rank;
    bool opened;
    struct bt_rpc_pending *pending;
    struct rank_push *next; /* of the joint */
    struct rank_push *group_next, **group_at;
};

struct pf_group {
    struct pf_group_options options;
    struct bt_rpc_client **clients; /* [size]; NULL: this rank */
    uint32_t connecting;            /* Connect calls that are out */
    struct rank_push *pushes;       /* of all joints */
    bool lost;
};

/* ---- outcomes ---- */

static void push_link(struct rank_push *push, struct pf_group *group)
{
    push->group_next = group->pushes;
    push->group_at = &group->pushes;
    if (push->group_next) {
        push->group_next->group_at = &push->group_next;
    }
    group->pushes = push;
}

/* The joint does not wait for it any more. */
static void push_unlink(struct rank_push *push)
{
    struct rank_push **at = &push->joint->list;
    while (*at != push) {
        at = &(*at)->next;
    }
    *at = push->next;
    *push->group_at = push->group_next;
    if (push->group_next) {
        push->group_next->group_at = push->group_at;
    }
    push->joint->running--;
    push->joint->opening -= !push->opened;
    push->joint = NULL;
    push->pending = NULL;
}

static void joint_fail(struct pf_joint *joint, enum bt_status status, uint32_t rank,
                       const char *text)
{
    if (joint->status == BT_OK) {
        joint->status = status;
        snprintf(joint->text, sizeof(joint->text), "rank %" PRIu32 ": %.200s", rank, text);
    }
}

static void add_outcome(struct pf_joint *joint, uint32_t rank,
                        const Baton__V1__RankPushOutcome *outcome)
{
    enum bt_status status = strcmp(outcome->status, bt_status_name(BT_OK)) == 0
                                ? BT_OK
                                : bt_status_from_name(outcome->status);
    if (status != BT_OK) {
        joint_fail(joint, status, rank, outcome->message);
    }
    joint->leased = joint->leased || outcome->leased;
    joint->checksum += outcome->checksum;
    joint->kv_bytes += outcome->kv_bytes;
    joint->writes += outcome->writes;
    joint->hidden_bytes += outcome->hidden_bytes;
    joint->visible_ns =
        outcome->visible_ns > joint->visible_ns ? outcome->visible_ns : joint->visible_ns;
    joint->write_ns = outcome->write_ns > joint->write_ns ? outcome->write_ns : joint->write_ns;
    if (outcome->cut) {
        pf_cuts_add(&joint->cuts, (struct pf_cut){outcome->cut->link, outcome->cut->lines});
    }
}

/* No answer of the rank: it may have begun, and nobody knows what it does now. */
static bool says_nothing(enum bt_status status)
{
    return status == BT_ERR_UNAVAILABLE || status == BT_ERR_PEER_LOST ||
           status == BT_ERR_DEADLINE || status == BT_ERR_CANCELLED || status == BT_ERR_PROTOCOL;
}

static void group_lose(struct pf_group *group, uint32_t rank, const char *text)
{
    char why[256];
    if (group->lost) {
        return;
    }
    group->lost = true;
    snprintf(why, sizeof(why), "rank %" PRIu32 " does not answer: %.200s", rank, text);
    group->options.lost(group->options.context, why);
}

static void on_push_data(void *context, const ProtobufCMessage *message)
{
    struct rank_push *push = context;
    (void)message;
    if (!push->joint || push->opened) {
        return;
    }
    push->opened = true;
    push->joint->opening--;
    push->joint->changed(push->joint->context);
}

static void on_push_end(void *context, enum bt_status status, const char *text,
                        const ProtobufCMessage *response)
{
    struct rank_push *push = context;
    struct pf_joint *joint = push->joint;
    uint32_t rank = push->rank;
    if (!joint) {
        free(push);
        return;
    }
    struct pf_group *group = joint->group;
    push_unlink(push);
    free(push);
    if (status == BT_OK && response) {
        add_outcome(joint, rank, (const Baton__V1__RankPushOutcome *)response);
        joint->changed(joint->context);
    } else if (status == BT_OK || says_nothing(status)) {
        joint_fail(joint, BT_ERR_UNAVAILABLE, rank, text);
        joint->unknown = true;
        joint->changed(joint->context);
        group_lose(group, rank, text);
    } else {
        joint_fail(joint, status, rank, text);
        joint->changed(joint->context);
    }
}

/* ---- asking ---- */

struct source_runs {
    struct bt_page_run *runs;
    Baton__V1__PageRun *messages, **list;
    uint32_t count;
};

static void runs_finish(struct source_runs *runs)
{
    free(runs->runs);
    free(runs->messages);
    free(runs->list);
}

static bool runs_init(struct source_runs *runs, const uint32_t *pages, uint32_t page_count)
{
    runs->runs = calloc(page_count, sizeof(*runs->runs));
    runs->messages = calloc(page_count, sizeof(*runs->messages));
    runs->list = calloc(page_count, sizeof(Baton__V1__PageRun *));
    if (!runs->runs || !runs->messages || !runs->list) {
        runs_finish(runs);
        return false;
    }
    runs->count = bt_page_runs(pages, page_count, runs->runs);
    for (uint32_t i = 0; i < runs->count; i++) {
        baton__v1__page_run__init(&runs->messages[i]);
        runs->messages[i].first = runs->runs[i].first;
        runs->messages[i].count = runs->runs[i].count;
        runs->list[i] = &runs->messages[i];
    }
    return true;
}

static enum bt_status ask(struct pf_joint *joint, uint32_t rank, const ProtobufCMessage *request,
                          struct bt_error *error)
{
    struct pf_group *group = joint->group;
    struct rank_push *push = calloc(1, sizeof(*push));
    if (!push) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    }
    push->joint = joint;
    push->rank = rank;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.PrefillRank/Push",
        .request = request,
        .data = &baton__v1__rank_push_opened__descriptor,
        .response = &baton__v1__rank_push_outcome__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .cancel_wait_ns = CANCEL_WAIT_NS,
        .on_data = on_push_data,
        .on_end = on_push_end,
        .context = push,
    };
    enum bt_status status = bt_rpc_client_call(group->clients[rank], &spec, error, &push->pending);
    if (status != BT_OK) {
        free(push);
        return status;
    }
    push->next = joint->list;
    joint->list = push;
    push_link(push, group);
    joint->running++;
    joint->opening++;
    return BT_OK;
}

static void ask_all(struct pf_joint *joint, const struct pf_joint_spec *spec,
                    const struct source_runs *runs)
{
    Baton__V1__RankPushRequest request = BATON__V1__RANK_PUSH_REQUEST__INIT;
    request.group_incarnation = joint->group->options.incarnation;
    request.serial = spec->serial;
    request.request_id = spec->request;
    request.prompt_tokens = spec->prompt_tokens;
    request.landing = (Baton__V1__Landing *)spec->landing;
    request.source = runs->list;
    request.n_source = runs->count;
    request.layerwise = spec->layerwise;
    request.probe = spec->probe;
    request.cached_tokens = spec->cached_tokens;
    for (uint32_t rank = 0; rank < joint->group->options.size; rank++) {
        struct bt_error error;
        if (!joint->group->clients[rank]) {
            continue;
        }
        enum bt_status status = ask(joint, rank, &request.base, &error);
        if (status != BT_OK) {
            joint_fail(joint, status, rank, error.text);
        }
    }
}

void pf_joint_open(struct pf_joint *joint, struct pf_group *group, const struct pf_joint_spec *spec)
{
    *joint = (struct pf_joint){.group = group, .changed = spec->changed, .context = spec->context};
    struct source_runs runs;
    if (group->lost) {
        joint_fail(joint, BT_ERR_UNAVAILABLE, 0, "the group is over");
        return;
    }
    if (!runs_init(&runs, spec->pages, bt_kv_pages_for(spec->prompt_tokens))) {
        joint_fail(joint, BT_ERR_NO_MEMORY, 0, "no memory");
        return;
    }
    ask_all(joint, spec, &runs);
    runs_finish(&runs);
}

void pf_joint_cancel(struct pf_joint *joint)
{
    for (struct rank_push *push = joint->list; push; push = push->next) {
        if (push->pending) {
            bt_rpc_pending_cancel(push->pending);
            push->pending = NULL;
        }
    }
}

void pf_group_abandon(struct pf_group *group)
{
    group->lost = true;
    while (group->pushes) {
        struct rank_push *push = group->pushes;
        struct pf_joint *joint = push->joint;
        joint_fail(joint, BT_ERR_UNAVAILABLE, push->rank, "the group is over");
        joint->unknown = true;
        push_unlink(push);
        joint->changed(joint->context);
    }
}

/* ---- connecting ---- */

struct connect_call {
    struct pf_group *group;
    uint32_t rank;
};

static void on_connected(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *response)
{
    struct connect_call *call = context;
    struct pf_group *group = call->group;
    (void)response;
    group->connecting--;
    if (status != BT_OK && status != BT_ERR_CANCELLED) {
        bt_log_warn(0, "rank %" PRIu32 " was told of decode ranks: %s", call->rank, text);
    }
    free(call);
    if (group->connecting == 0 && status != BT_ERR_CANCELLED) {
        group->options.warm(group->options.context);
    }
}

static enum bt_status connect_rank(struct pf_group *group, uint32_t rank,
                                   const ProtobufCMessage *request, struct bt_error *error)
{
    struct connect_call *call = calloc(1, sizeof(*call));
    if (!call) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    }
    *call = (struct connect_call){group, rank};
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.PrefillRank/Connect",
        .request = request,
        .response = &baton__v1__rank_connect_response__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_end = on_connected,
        .context = call,
    };
    enum bt_status status = bt_rpc_client_call(group->clients[rank], &spec, error, NULL);
    if (status != BT_OK) {
        free(call);
        return status;
    }
    group->connecting++;
    return BT_OK;
}

void pf_group_connect(struct pf_group *group, Baton__V1__KvEndpoint *const *ranks, size_t count)
{
    Baton__V1__RankConnectRequest request = BATON__V1__RANK_CONNECT_REQUEST__INIT;
    request.group_incarnation = group->options.incarnation;
    request.decode = (Baton__V1__KvEndpoint **)ranks;
    request.n_decode = count;
    for (uint32_t rank = 0; rank < group->options.size; rank++) {
        struct bt_error error;
        if (group->clients[rank] && !group->lost &&
            connect_rank(group, rank, &request.base, &error) != BT_OK) {
            bt_log_warn(0, "rank %" PRIu32 " can't be told of decode ranks: %s", rank, error.text);
        }
    }
}

bool pf_group_warm(const struct pf_group *group)
{
    return group->connecting == 0;
}

/* ---- the group ---- */

enum bt_status pf_group_create(const struct pf_group_options *options, struct bt_error *error,
                               struct pf_group **ret_group)
{
    struct pf_group *group = calloc(1, sizeof(*group));
    if (!group) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "group: no memory");
    }
    group->options = *options;
    group->options.endpoints = NULL;
    group->clients = calloc(options->size, sizeof(struct bt_rpc_client *));
    enum bt_status status =
        group->clients ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "group: no memory");
    for (uint32_t rank = 1; rank < options->size && status == BT_OK; rank++) {
        status = bt_rpc_client_create(options->loop, options->endpoints[rank], error,
                                      &group->clients[rank]);
        if (status == BT_OK) {
            bt_rpc_client_set_keepalive(group->clients[rank], options->keepalive_ms);
        }
    }
    if (status != BT_OK) {
        pf_group_destroy(group);
        return status;
    }
    *ret_group = group;
    return BT_OK;
}

void pf_group_destroy(struct pf_group *group)
{
    if (!group) {
        return;
    }
    BT_ASSERT(!group->pushes);
    for (uint32_t rank = 0; group->clients && rank < group->options.size; rank++) {
        bt_rpc_client_destroy(group->clients[rank]);
    }
    free(group->clients);
    free(group);
}
