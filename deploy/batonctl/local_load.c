#include "deploy/batonctl/local_load.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/connection.h"

#define STATUS_NS (10 * BT_NS_PER_S)

struct candidate {
    char name[CTL_NAME_SIZE];
    bool serves; /* the router sends it requests */
    uint64_t requests, tokens;
    uint32_t place; /* by age */
};

static void add(struct candidate *candidate, const Baton__V1__WorkerStatus *worker)
{
    candidate->serves |= strcmp(worker->state, "ready") == 0;
    if (!worker->load)
        return;
    candidate->requests += (uint64_t)worker->load->running + worker->load->waiting;
    candidate->tokens += worker->load->kv_tokens + worker->load->waiting_tokens;
}

/* Below zero: `a` goes first. */
static int compare(const void *left, const void *right)
{
    const struct candidate *a = left, *b = right;
    if (a->serves != b->serves)
        return a->serves ? 1 : -1;
    if (a->requests != b->requests)
        return a->requests > b->requests ? 1 : -1;
    if (a->tokens != b->tokens)
        return a->tokens > b->tokens ? 1 : -1;
    return a->place < b->place ? 1 : -1;
}

static enum bt_status fetch(const struct ctl_target *target, const struct ctl_cluster *cluster,
                            struct bt_error *error, Baton__V1__StatusResponse **ret_status)
{
    struct ctl_connection connection;
    struct ctl_target own = {.name = cluster->name, .state_dir = target->state_dir};
    own.timeout_ns = target->timeout_ns > 0 ? target->timeout_ns : STATUS_NS;
    enum bt_status status = ctl_connection_init(&connection, &own, error);
    if (status == BT_OK) {
        status = ctl_connection_status(&connection, error, ret_status);
        ctl_connection_finish(&connection);
    }
    return status;
}

enum bt_status ctl_local_load_sort(const struct ctl_target *target,
                                   const struct ctl_cluster *cluster, char (*names)[CTL_NAME_SIZE],
                                   uint32_t count, struct bt_error *error)
{
    Baton__V1__StatusResponse *answer;
    struct candidate candidates[CTL_MAX_PROCESSES] = {0};
    enum bt_status status = fetch(target, cluster, error, &answer);
    if (status != BT_OK)
        return status;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(candidates[i].name, names[i], CTL_NAME_SIZE);
        candidates[i].place = i;
        for (size_t k = 0; k < answer->n_workers; k++) {
            char worker[CTL_NAME_SIZE];
            ctl_worker_of(answer->workers[k]->worker_id, worker);
            if (strcmp(worker, names[i]) == 0)
                add(&candidates[i], answer->workers[k]);
        }
    }
    baton__v1__status_response__free_unpacked(answer, NULL);
    qsort(candidates, count, sizeof(candidates[0]), compare);
    for (uint32_t i = 0; i < count; i++)
        memcpy(names[i], candidates[i].name, CTL_NAME_SIZE);
    return BT_OK;
}
