/* How an exchange comes about: the ranks meet, compare what they were told, and map each other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/parallel/exchange_state.h"
#include "common/parallel/meeting.h"

#define SPIN_FIRST_NS INT64_C(20000)
#define GRACE_NS      (500 * BT_NS_PER_MS) /* for what is still to be sent at the end */

/* What a rank says of itself first. */
struct identity {
    struct bt_process_id process;
    uint64_t user, token;
    struct bt_group_limits limits;
    uint32_t ranks_per_machine, unused;
};

/* And when it knows who its neighbours are. */
struct reach {
    struct bt_window_card window;
    uint64_t address_bytes; /* 0: one machine */
    unsigned char address[BT_NET_ADDRESS_MAX];
};

/* ---- who is there ---- */

static enum bt_status differs(struct bt_error *error, uint32_t rank, const char *field,
                              uint64_t theirs, uint64_t first)
{
    if (theirs == first)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "rank %u has %s %llu, rank 0 has %llu",
                        rank, field, (unsigned long long)theirs, (unsigned long long)first);
}

static enum bt_status compare(const struct identity *all, uint32_t size, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (uint32_t r = 1; r < size && status == BT_OK; r++) {
        const struct bt_group_limits *mine = &all[r].limits, *first = &all[0].limits;
        const struct {
            const char *field;
            uint64_t theirs, first;
        } fields[] = {
            {"ranks_per_machine", all[r].ranks_per_machine, all[0].ranks_per_machine},
            {"limits.floats", mine->floats, first->floats},
            {"limits.broadcast_bytes", mine->broadcast_bytes, first->broadcast_bytes},
            {"limits.rows", mine->rows, first->rows},
            {"limits.hidden", mine->hidden, first->hidden},
            {"limits.experts", mine->experts, first->experts},
            {"limits.experts_per_token", mine->experts_per_token, first->experts_per_token},
        };
        for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]) && status == BT_OK; i++)
            status = differs(error, r, fields[i].field, fields[i].theirs, fields[i].first);
    }
    return status;
}

static void find_machines(struct bt_exchange *x, const struct identity *all,
                          const struct bt_group_options *options)
{
    bool together[BT_GROUP_RANKS_MAX] = {false};
    uint32_t per_machine = options->ranks_per_machine;
    for (uint32_t r = 1; r < options->size; r++)
        together[r] = bt_process_same_host(&all[r].process, &all[r - 1].process) &&
                      all[r].user == all[r - 1].user && (per_machine == 0 || r % per_machine != 0);
    bt_ranks_init(&x->ranks, options->rank, options->size, together);
}

static enum bt_status introduce(struct bt_exchange *x, const struct bt_group_options *options,
                                struct bt_meeting *meeting, struct bt_error *error,
                                uint64_t *ret_token)
{
    struct identity mine = {.user = geteuid(),
                            .token = bt_random_entropy(),
                            .limits = options->limits,
                            .ranks_per_machine = options->ranks_per_machine};
    struct identity all[BT_GROUP_RANKS_MAX];
    enum bt_status status = bt_process_self(error, &mine.process);

    if (status == BT_OK && !meeting)
        all[0] = mine;
    if (status == BT_OK && meeting)
        status = bt_meeting_exchange(meeting, &mine, sizeof(mine), error, all);
    for (uint32_t r = 0; r < options->size && status == BT_OK; r++)
        all[r].process.host[BT_HOST_ID_SIZE - 1] = '\0';
    if (status == BT_OK)
        status = compare(all, options->size, error);
    if (status != BT_OK)
        return status;
    find_machines(x, all, options);
    for (uint32_t r = 0; r < options->size; r++)
        x->processes[r] = all[r].process;
    *ret_token = all[0].token;
    return BT_OK;
}

/* ---- memory ---- */

static enum bt_status make_outgoing(struct bt_exchange *x, struct bt_error *error)
{
    x->outgoing_bytes = 0;
    for (uint32_t c = 0; c < BT_WINDOW_CHANNELS; c++)
        x->outgoing_bytes += 2 * x->ranks.machines * x->channels[c].slot_bytes;
    char *at = mmap(NULL, x->outgoing_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for %llu bytes of parcels",
                            (unsigned long long)x->outgoing_bytes);
    for (uint32_t c = 0; c < BT_WINDOW_CHANNELS; c++) {
        for (uint32_t parity = 0; parity < 2; parity++) {
            x->channels[c].outgoing[parity] = at;
            at += x->ranks.machines * x->channels[c].slot_bytes;
        }
    }
    return BT_OK;
}

static enum bt_status make_reach(struct bt_exchange *x, const struct bt_exchange_options *options,
                                 uint64_t token, struct bt_error *error, struct reach *ret_reach)
{
    struct bt_window *own = &x->windows[x->ranks.rank];
    const struct bt_net_options net = {.rank = x->ranks.rank,
                                       .token = token,
                                       .host = options->group->host,
                                       .fn = bt_exchange_on_message,
                                       .context = x};
    size_t bytes = 0;

    for (uint32_t c = 0; c < BT_WINDOW_CHANNELS; c++) {
        size_t slot = sizeof(struct bt_parcel) + options->capacity[c];
        x->channels[c].slot_bytes = (slot + BT_WINDOW_LINE - 1) / BT_WINDOW_LINE * BT_WINDOW_LINE;
    }
    enum bt_status status =
        bt_window_create(bt_exchange_window_bytes(x, x->ranks.rank), error, own);
    if (status == BT_OK)
        status = bt_window_card_fill(own, error, &ret_reach->window);
    if (status == BT_OK && x->ranks.machines > 1) {
        status = make_outgoing(x, error);
        if (status == BT_OK)
            status = bt_net_open(&net, error, &x->net);
        if (status == BT_OK)
            status = bt_net_address(x->net, error, ret_reach->address, &bytes);
    }
    ret_reach->address_bytes = bytes;
    return status;
}

static enum bt_status reach_neighbour(struct bt_exchange *x, uint32_t rank,
                                      const struct reach *reach, struct bt_error *error)
{
    if (reach->window.bytes < bt_exchange_window_bytes(x, rank) ||
        reach->window.bytes > SIZE_MAX / 2)
        return bt_error_set(error, BT_ERR_PROTOCOL, "the memory of rank %u has %llu bytes", rank,
                            (unsigned long long)reach->window.bytes);
    return bt_window_map(&reach->window, error, &x->windows[rank]);
}

static enum bt_status reach_all(struct bt_exchange *x, const struct reach *all,
                                struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (uint32_t r = 0; r < x->ranks.size && status == BT_OK; r++) {
        uint32_t machine = x->ranks.machine_of[r];
        if (r == x->ranks.rank)
            continue;
        if (bt_ranks_near(&x->ranks, r))
            status = reach_neighbour(x, r, &all[r], error);
        else if (all[r].address_bytes == 0 || all[r].address_bytes > BT_NET_ADDRESS_MAX)
            status = bt_error_set(error, BT_ERR_PROTOCOL, "rank %u has no address", r);
        else if (bt_ranks_relay(&x->ranks, x->ranks.rank, machine) == r)
            status = bt_net_connect(x->net, r, all[r].address, error);
    }
    return status;
}

static enum bt_status reach_out(struct bt_exchange *x, const struct bt_exchange_options *options,
                                struct bt_meeting *meeting, uint64_t token, struct bt_error *error)
{
    struct reach mine = {.window.fd = -1};
    struct reach *all = calloc(options->group->size, sizeof(*all));
    enum bt_status status = make_reach(x, options, token, error, &mine);

    if (!all) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to meet");
        goto out;
    }
    if (!meeting)
        goto out;
    status = bt_meeting_agree(meeting, status, error);
    if (status == BT_OK)
        status = bt_meeting_exchange(meeting, &mine, sizeof(mine), error, all);
    if (status == BT_OK) {
        status = reach_all(x, all, error);
        status = bt_meeting_agree(meeting, status, error);
    }
out:
    free(all);
    return status;
}

enum bt_status bt_exchange_create(const struct bt_exchange_options *options, struct bt_error *error,
                                  struct bt_exchange **ret_exchange)
{
    struct bt_exchange *x = calloc(1, sizeof(*x));
    struct bt_meeting *meeting = NULL;
    uint64_t token = 0;
    enum bt_status status = BT_OK;

    if (!x)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a group");
    x->timeout_ns = options->group->wait_timeout_ns;
    x->spin_ns = SPIN_FIRST_NS;
    for (uint32_t r = 0; r < BT_GROUP_RANKS_MAX; r++)
        x->windows[r].fd = -1;
    if (options->group->size > 1)
        status = bt_meeting_open(options->group, error, &meeting);
    if (status == BT_OK)
        status = introduce(x, options->group, meeting, error, &token);
    if (status == BT_OK)
        status = reach_out(x, options, meeting, token, error);
    bt_meeting_close(meeting);
    if (status != BT_OK) {
        bt_exchange_destroy(x);
        return status;
    }
    *ret_exchange = x;
    return BT_OK;
}

void bt_exchange_destroy(struct bt_exchange *x)
{
    if (!x)
        return;
    if (x->windows[x->ranks.rank].head)
        bt_exchange_leave(x);
    bt_net_close(x->net, GRACE_NS);
    for (uint32_t r = 0; r < BT_GROUP_RANKS_MAX; r++)
        bt_window_release(&x->windows[r]);
    if (x->channels[0].outgoing[0])
        munmap(x->channels[0].outgoing[0], x->outgoing_bytes);
    free(x);
}
