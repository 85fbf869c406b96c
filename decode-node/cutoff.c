#include "decode-node/cutoff.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"

#define PROBE_NS        BT_NS_PER_S
#define PEERS_PER_PROBE 256
#define SILENT_NS       (3 * BT_NS_PER_S) /* since the last lease of a worker elsewhere was over */

/* One of the cuts that a waiter waits for. */
struct ask {
    struct waiter *waiter;
    struct cut *cut; /* NULL: made */
    uint64_t lines;
    bool covered; /* came before the disconnect under way was asked for */
    struct ask *next;
};

/* A Quiesced or HandoffDone call that waits for its cuts. */
struct waiter {
    struct bt_rpc_call *call;
    Baton__V1__HandoffDoneRequest *done; /* owned; NULL: Quiesced */
    uint64_t request, epoch;
    uint32_t ask_count, pending;
    struct ask asks[];
};

/* A disconnect of it is under way. */
struct cut {
    uint64_t incarnation; /* 0: free slot */
    uint64_t link;        /* KVT_ANY_LINK: what kvt_landing_peer_lost found ends; nobody asked */
    struct ask *asks;
};

struct dc_cutoffs {
    struct dc_cutoffs_options options;
    struct bt_loop_source *timer;
    struct cut cuts[DC_MAX_CUTOFFS];
    size_t probe_cursor;
};

/* ------------------------------------------------------------------ what a message names */

static enum bt_status read_cut(const Baton__V1__LinkCut *message, uint64_t incarnation, size_t at,
                               struct bt_error *error, struct kvt_cut *ret_cut)
{
    if (!message || message->link == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cuts[%zu].link is 0", at);
    }
    if (message->lines == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cuts[%zu].lines is 0", at);
    }
    *ret_cut = (struct kvt_cut){
        .incarnation = incarnation, .link = message->link, .lines = message->lines};
    return BT_OK;
}

static void list_add(struct dc_cut_list *list, const struct kvt_cut *cut)
{
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->cuts[i].link == cut->link) {
            list->cuts[i].lines |= cut->lines;
            return;
        }
    }
    list->cuts[list->count++] = *cut;
}

enum bt_status dc_cut_list_read(Baton__V1__LinkCut *const *messages, size_t count,
                                uint64_t incarnation, struct bt_error *error,
                                struct dc_cut_list *ret_list)
{
    struct dc_cut_list list = {0};
    struct kvt_cut cut;
    if (count > KVT_WRITERS_MAX) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "cuts: %zu, at most %d", count,
                            KVT_WRITERS_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        enum bt_status status = read_cut(messages[i], incarnation, i, error, &cut);
        if (status != BT_OK) {
            return status;
        }
        list_add(&list, &cut);
    }
    *ret_list = list;
    return BT_OK;
}

/* ------------------------------------------------------------------ cuts and who waits for them */

static struct cut *cut_find(struct dc_cutoffs *cutoffs, uint64_t incarnation, uint64_t link)
{
    for (uint32_t i = 0; i < DC_MAX_CUTOFFS; i++) {
        if (cutoffs->cuts[i].incarnation == incarnation && cutoffs->cuts[i].link == link) {
            return &cutoffs->cuts[i];
        }
    }
    return NULL;
}

/* Asks for the disconnect that all who wait for this cut now wait for. */
static enum bt_status cut_start(struct dc_cutoffs *cutoffs, struct cut *cut)
{
    struct kvt_cut wanted = {.incarnation = cut->incarnation,
                             .link = cut->link,
                             .lines = cut->link == KVT_ANY_LINK ? KVT_ALL_LINES : 0};
    for (const struct ask *ask = cut->asks; ask; ask = ask->next) {
        wanted.lines |= ask->lines;
    }
    enum bt_status status = kvt_target_cut(cutoffs->options.target, &wanted);
    for (struct ask *ask = cut->asks; status == BT_OK && ask; ask = ask->next) {
        ask->covered = true;
    }
    return status;
}

static void ask_unlink(struct ask *ask)
{
    struct ask **at = &ask->cut->asks;
    while (*at != ask) {
        at = &(*at)->next;
    }
    *at = ask->next;
    ask->cut = NULL;
}

/* Its cuts go on, for nobody. */
static void waiter_free(struct waiter *waiter)
{
    for (uint32_t i = 0; i < waiter->ask_count; i++) {
        if (waiter->asks[i].cut) {
            ask_unlink(&waiter->asks[i]);
        }
    }
    if (waiter->done) {
        baton__v1__handoff_done_request__free_unpacked(waiter->done, NULL);
    }
    free(waiter);
}

static void waiter_refuse(struct waiter *waiter)
{
    bt_rpc_call_end(waiter->call, BT_ERR_EXHAUSTED, "too many links are being cut off", NULL);
    waiter_free(waiter);
}

static void waiter_end(struct dc_cutoffs *cutoffs, struct waiter *waiter)
{
    if (waiter->done) {
        cutoffs->options.handoff_done(cutoffs->options.context, waiter->call, waiter->done);
    } else {
        Baton__V1__QuiescedResponse response = BATON__V1__QUIESCED_RESPONSE__INIT;
        kvt_landing_quiesced(cutoffs->options.landings, waiter->request, waiter->epoch);
        bt_rpc_call_end(waiter->call, BT_OK, NULL, &response.base);
    }
    waiter_free(waiter);
}

static void end_covered(struct dc_cutoffs *cutoffs, struct cut *cut)
{
    struct ask **at = &cut->asks;
    while (*at) {
        struct ask *ask = *at;
        if (!ask->covered) {
            at = &ask->next;
            continue;
        }
        *at = ask->next;
        ask->cut = NULL;
        if (--ask->waiter->pending == 0) {
            waiter_end(cutoffs, ask->waiter);
        }
    }
}

/* No disconnect of it is under way, and none can be asked for. */
static void cut_give_up(struct cut *cut)
{
    while (cut->asks) {
        waiter_refuse(cut->asks->waiter);
    }
    *cut = (struct cut){0};
}

void dc_cutoffs_disconnected(struct dc_cutoffs *cutoffs, uint64_t incarnation, uint64_t link)
{
    struct cut *cut = cut_find(cutoffs, incarnation, link);
    if (!cut) {
        return;
    }
    if (link == KVT_ANY_LINK) {
        bt_log_info(0, "prefill worker %016jx is gone: its connections are closed",
                    (uintmax_t)incarnation);
        kvt_landing_peer_gone(cutoffs->options.landings, incarnation);
    }
    end_covered(cutoffs, cut);
    if (!cut->asks || cut_start(cutoffs, cut) != BT_OK) {
        cut_give_up(cut);
    }
    cutoffs->options.freed(cutoffs->options.context);
}

/* ------------------------------------------------------------------ calls */

static bool has_slots(struct dc_cutoffs *cutoffs, const struct dc_cut_list *list)
{
    uint32_t wanted = 0, free_slots = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        wanted += !cut_find(cutoffs, list->cuts[i].incarnation, list->cuts[i].link);
    }
    for (uint32_t i = 0; i < DC_MAX_CUTOFFS; i++) {
        free_slots += cutoffs->cuts[i].incarnation == 0;
    }
    return wanted <= free_slots;
}

/* False: the waiter was refused. */
static bool ask_for(struct dc_cutoffs *cutoffs, struct ask *ask, const struct kvt_cut *wanted)
{
    struct cut *cut = cut_find(cutoffs, wanted->incarnation, wanted->link);
    bool under_way = cut != NULL;
    cut = cut ? cut : cut_find(cutoffs, 0, 0);
    ask->lines = wanted->lines;
    ask->cut = cut;
    ask->next = cut->asks;
    cut->asks = ask;
    if (under_way) {
        return true;
    }
    cut->incarnation = wanted->incarnation;
    cut->link = wanted->link;
    if (cut_start(cutoffs, cut) != BT_OK) {
        cut_give_up(cut);
        return false;
    }
    return true;
}

/* Takes the waiter. */
static void wait_for_cuts(struct dc_cutoffs *cutoffs, struct waiter *waiter,
                          const struct dc_cut_list *list)
{
    if (!has_slots(cutoffs, list)) {
        waiter_refuse(waiter);
        return;
    }
    for (uint32_t i = 0; i < list->count; i++) {
        if (!ask_for(cutoffs, &waiter->asks[i], &list->cuts[i])) {
            return;
        }
    }
}

static struct waiter *waiter_create(struct bt_rpc_call *call, uint32_t ask_count)
{
    struct waiter *waiter = calloc(1, sizeof(*waiter) + ask_count * sizeof(struct ask));
    if (!waiter) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "cut: no memory", NULL);
        return NULL;
    }
    waiter->call = call;
    waiter->ask_count = waiter->pending = ask_count;
    for (uint32_t i = 0; i < ask_count; i++) {
        waiter->asks[i].waiter = waiter;
    }
    return waiter;
}

void dc_cutoffs_quiesced(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call, uint64_t request,
                         uint64_t epoch, const struct dc_cut_list *list)
{
    struct waiter *waiter = waiter_create(call, list->count);
    if (waiter) {
        waiter->request = request;
        waiter->epoch = epoch;
        wait_for_cuts(cutoffs, waiter, list);
    }
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
                             const Baton__V1__HandoffDoneRequest *message,
                             const struct dc_cut_list *list)
{
    Baton__V1__HandoffDoneRequest *done = copy_done(message);
    if (!done) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "handoff: no memory", NULL);
        return;
    }
    struct waiter *waiter = waiter_create(call, list->count);
    if (!waiter) {
        baton__v1__handoff_done_request__free_unpacked(done, NULL);
        return;
    }
    waiter->done = done;
    wait_for_cuts(cutoffs, waiter, list);
}

/* ------------------------------------------------------------------ peers that are gone */

static void cut_lost(struct dc_cutoffs *cutoffs, uint64_t incarnation)
{
    if (cut_find(cutoffs, incarnation, KVT_ANY_LINK)) {
        return; /* tried again with the next probe */
    }
    struct cut *cut = cut_find(cutoffs, 0, 0);
    if (cut) {
        *cut = (struct cut){.incarnation = incarnation, .link = KVT_ANY_LINK};
        if (cut_start(cutoffs, cut) != BT_OK) {
            cut_give_up(cut);
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
        while (cutoffs->cuts[i].asks) {
            waiter_free(cutoffs->cuts[i].asks->waiter);
        }
    }
    bt_loop_remove(cutoffs->timer);
    free(cutoffs);
}
