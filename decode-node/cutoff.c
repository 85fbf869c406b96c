#include "decode-node/cutoff.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"

#define PROBE_NS        BT_NS_PER_S
#define PEERS_PER_PROBE 256
#define SILENT_NS       (3 * BT_NS_PER_S) /* since the last lease of a worker elsewhere was over */

/* A Quiesced or HandoffDone call that waits for the cut. */
struct waiter {
    struct bt_rpc_call *call;
    Baton__V1__HandoffDoneRequest *done; /* owned; NULL: Quiesced */
    uint64_t lines;
    uint64_t request, epoch;
    bool covered; /* came before the disconnect under way was asked for */
    struct waiter *next;
};

struct cut {
    uint64_t incarnation; /* 0: free slot */
    uint64_t link;
    bool lost; /* what kvt_landing_peer_lost found ends */
    struct waiter *waiters;
};

struct dc_cutoffs {
    struct dc_cutoffs_options options;
    struct bt_loop_source *timer;
    struct cut cuts[DC_MAX_CUTOFFS];
    size_t probe_cursor;
};

static struct cut *cut_find(struct dc_cutoffs *cutoffs, uint64_t incarnation, uint64_t link)
{
    for (uint32_t i = 0; i < DC_MAX_CUTOFFS; i++) {
        if (cutoffs->cuts[i].incarnation == incarnation && cutoffs->cuts[i].link == link) {
            return &cutoffs->cuts[i];
        }
    }
    return NULL;
}

/* Asks for the disconnect that all present waiters wait for. */
static enum bt_status cut_start(struct dc_cutoffs *cutoffs, struct cut *cut)
{
    struct kvt_cut wanted = {
        .incarnation = cut->incarnation, .link = cut->link, .lines = cut->lost ? KVT_ALL_LINES : 0};
    for (const struct waiter *waiter = cut->waiters; waiter; waiter = waiter->next) {
        wanted.lines |= waiter->lines;
    }
    enum bt_status status = kvt_target_cut(cutoffs->options.target, &wanted);
    for (struct waiter *waiter = cut->waiters; status == BT_OK && waiter; waiter = waiter->next) {
        waiter->covered = true;
    }
    return status;
}

static void waiter_free(struct waiter *waiter)
{
    if (waiter->done) {
        baton__v1__handoff_done_request__free_unpacked(waiter->done, NULL);
    }
    free(waiter);
}

static void waiter_end(struct dc_cutoffs *cutoffs, struct waiter *waiter, enum bt_status status)
{
    Baton__V1__QuiescedResponse response = BATON__V1__QUIESCED_RESPONSE__INIT;
    if (status == BT_OK && waiter->done) {
        cutoffs->options.handoff_done(cutoffs->options.context, waiter->call, waiter->done);
        waiter_free(waiter);
        return;
    }
    if (status == BT_OK) {
        kvt_landing_quiesced(cutoffs->options.landings, waiter->request, waiter->epoch);
    }
    bt_rpc_call_end(waiter->call, status, status == BT_OK ? NULL : "can not cut off now",
                    status == BT_OK ? &response.base : NULL);
    waiter_free(waiter);
}

static void end_waiters(struct dc_cutoffs *cutoffs, struct cut *cut, bool covered_only,
                        enum bt_status status)
{
    struct waiter **at = &cut->waiters;
    while (*at) {
        struct waiter *waiter = *at;
        if (covered_only && !waiter->covered) {
            at = &waiter->next;
            continue;
        }
        *at = waiter->next;
        waiter_end(cutoffs, waiter, status);
    }
}

void dc_cutoffs_disconnected(struct dc_cutoffs *cutoffs, uint64_t incarnation, uint64_t link)
{
    struct cut *cut = cut_find(cutoffs, incarnation, link);
    if (!cut) {
        return;
    }
    if (cut->lost) {
        bt_log_info(0, "prefill worker %016jx is gone: its connections are closed",
                    (uintmax_t)incarnation);
        kvt_landing_peer_gone(cutoffs->options.landings, incarnation);
    }
    end_waiters(cutoffs, cut, true, BT_OK);
    if (cut->waiters && cut_start(cutoffs, cut) == BT_OK) {
        cutoffs->options.freed(cutoffs->options.context);
        return;
    }
    end_waiters(cutoffs, cut, false, BT_ERR_EXHAUSTED);
    *cut = (struct cut){0};
    cutoffs->options.freed(cutoffs->options.context);
}

/* Takes the waiter, which may be NULL: no memory. */
static void wait_for_cut(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call,
                         struct waiter *waiter, uint64_t incarnation, uint64_t link)
{
    struct cut *cut = cut_find(cutoffs, incarnation, link);
    bool under_way = cut != NULL;
    cut = cut ? cut : cut_find(cutoffs, 0, 0);
    if (!waiter || !cut) {
        if (waiter) {
            waiter_free(waiter);
        }
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "too many workers are being cut off", NULL);
        return;
    }
    waiter->next = cut->waiters;
    cut->waiters = waiter;
    if (under_way) {
        return;
    }
    cut->incarnation = incarnation;
    cut->link = link;
    if (cut_start(cutoffs, cut) != BT_OK) {
        end_waiters(cutoffs, cut, false, BT_ERR_EXHAUSTED);
        *cut = (struct cut){0};
    }
}

void dc_cutoffs_quiesced(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call, uint64_t request,
                         uint64_t epoch, const struct kvt_cut *cut)
{
    struct waiter *waiter = calloc(1, sizeof(*waiter));
    if (waiter) {
        *waiter =
            (struct waiter){.call = call, .request = request, .epoch = epoch, .lines = cut->lines};
    }
    wait_for_cut(cutoffs, call, waiter, cut->incarnation, cut->link);
}

/* The message is the call's, which goes when its handler returns. */
static Baton__V1__HandoffDoneRequest *copy_done(const Baton__V1__HandoffDoneRequest *message)
{
    size_t size = baton__v1__handoff_done_request__get_packed_size(message);
    uint8_t *bytes = malloc(size > 0 ? size : 1);
    if (!bytes) {
        return NULL;
    }
    baton__v1__handoff_done_request__pack(message, bytes);
    Baton__V1__HandoffDoneRequest *copy =
        baton__v1__handoff_done_request__unpack(NULL, size, bytes);
    free(bytes);
    return copy;
}

void dc_cutoffs_handoff_done(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call,
                             const Baton__V1__HandoffDoneRequest *message, uint64_t incarnation)
{
    struct waiter *waiter = calloc(1, sizeof(*waiter));
    Baton__V1__HandoffDoneRequest *done = copy_done(message);
    if (!waiter || !done) {
        free(waiter);
        if (done) {
            baton__v1__handoff_done_request__free_unpacked(done, NULL);
        }
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "handoff: no memory", NULL);
        return;
    }
    *waiter = (struct waiter){.call = call, .done = done, .lines = message->cut_lines};
    wait_for_cut(cutoffs, call, waiter, incarnation, message->link);
}

static void cut_lost(struct dc_cutoffs *cutoffs, uint64_t incarnation)
{
    struct cut *cut = cut_find(cutoffs, incarnation, KVT_ANY_LINK);
    if (cut) {
        return; /* tried again with the next probe */
    }
    cut = cut_find(cutoffs, 0, 0);
    if (cut) {
        *cut = (struct cut){.incarnation = incarnation, .lost = true};
        if (cut_start(cutoffs, cut) != BT_OK) {
            *cut = (struct cut){0};
        }
    }
}

static enum kvt_writer_state writer_state(void *context, const struct bt_process_id *process)
{
    const struct dc_cutoffs *cutoffs = context;
    if (!bt_process_same_host(&cutoffs->options.process, process)) {
        return KVT_WRITER_ELSEWHERE;
    }
    return bt_process_probe(process) == BT_PROCESS_DEAD ? KVT_WRITER_DEAD : KVT_WRITER_ALIVE;
}

static void on_probe(void *context)
{
    struct dc_cutoffs *cutoffs = context;
    struct kvt_landing_table *landings = cutoffs->options.landings;
    int64_t now_ns = bt_clock_now_ns();
    uint64_t peers[PEERS_PER_PROBE];
    uint32_t count = kvt_landing_peers(landings, &cutoffs->probe_cursor, peers, PEERS_PER_PROBE);
    for (uint32_t i = 0; i < count; i++) {
        if (kvt_landing_peer_lost(landings, peers[i], writer_state, cutoffs, now_ns - SILENT_NS)) {
            cut_lost(cutoffs, peers[i]);
        }
    }
    bt_loop_timer_set(cutoffs->timer, now_ns + PROBE_NS);
}

struct dc_cutoffs *dc_cutoffs_create(const struct dc_cutoffs_options *options)
{
    struct dc_cutoffs *cutoffs = calloc(1, sizeof(*cutoffs));
    if (!cutoffs) {
        return NULL;
    }
    cutoffs->options = *options;
    cutoffs->timer =
        bt_loop_add_timer(options->loop, bt_clock_now_ns() + PROBE_NS, on_probe, cutoffs);
    if (!cutoffs->timer) {
        free(cutoffs);
        return NULL;
    }
    return cutoffs;
}

void dc_cutoffs_destroy(struct dc_cutoffs *cutoffs)
{
    if (!cutoffs) {
        return;
    }
    for (uint32_t i = 0; i < DC_MAX_CUTOFFS; i++) {
        while (cutoffs->cuts[i].waiters) {
            struct waiter *waiter = cutoffs->cuts[i].waiters;
            cutoffs->cuts[i].waiters = waiter->next;
            waiter_free(waiter);
        }
    }
    bt_loop_remove(cutoffs->timer);
    free(cutoffs);
}
