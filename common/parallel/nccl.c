/*
 * Ranks on GPUs, one each: the device that is current when the group is made. Of reductions the
 * work is queued. Metadata of dispatch and combine are worked out on the host, as on CPUs; rows
 * stay on the device.
 *
 * All work of a group is on one stream at a time, the caller's or its own. On its own, a call but
 * dispatch_begin returns when its work is over, and the caller's work on the buffers must be over
 * before. Routing may be in either memory. The loss of a rank is what NCCL makes of it: an error,
 * or silence until the wait timeout; or an agreement finds it. Then the communicator is aborted,
 * which ends what is queued.
 */
#include "common/parallel/nccl.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "common/kernels/cuda/device_ops.h"
#include "common/parallel/meeting.h"
#include "common/parallel/nccl_group.h"
#include "common/parallel/nccl_latency.h"
#include "common/parallel/rows_cuda.h"

#define LOOK_NS 20000 /* between looks whether the stream is done, after the first few */
#define LOOKS   200
/* A rank's part of a reduction may have a row more than others, which is done in one go up to so
 * many floats. */
#define PART_MORE 16384
/* Of the end of a group: for the others to take what was sent, and for graphs to go. */
#define LEAVE_NS (10 * BT_NS_PER_S)

/* ---- errors ---- */

static void *abort_communicator(void *comm)
{
    ncclCommAbort(comm);
    return NULL;
}

/* Ends what is queued at once, but returns only when no graph holds a call any more, and those are
 * their owner's, who can't give them up while it waits here: so a thread waits. */
static void abandon(struct bt_nccl_group *g)
{
    ncclComm_t comm = g->comm;
    g->comm = NULL;
    if (!comm)
        return;
    g->is_aborting = pthread_create(&g->aborting, NULL, abort_communicator, comm) == 0;
    if (!g->is_aborting)
        abort_communicator(comm);
}

enum bt_status bt_nccl_fail(struct bt_nccl_group *g, enum bt_status status, const char *what)
{
    if (g->error.status == BT_OK) {
        bt_error_set(&g->error, status, "nccl: %s", what);
        if (!g->is_collecting)
            abandon(g);
    }
    return g->error.status;
}

void bt_nccl_collect(struct bt_nccl_group *g)
{
    g->is_collecting = true;
    ncclGroupStart();
}

/* A communicator that has calls in a group is abandoned behind it. */
ncclResult_t bt_nccl_collected(struct bt_nccl_group *g)
{
    ncclResult_t result = ncclGroupEnd();
    g->is_collecting = false;
    if (g->error.status != BT_OK)
        abandon(g);
    return result;
}

static void fail(struct bt_group *base, enum bt_status status, const char *why)
{
    bt_nccl_fail(bt_nccl_group(base), status, why);
}

/* NCCL's own words say which GPU, port or peer it was. */
static void fail_with_reason(struct bt_nccl_group *g, ncclResult_t result)
{
    const char *reason = g->comm ? ncclGetLastError(g->comm) : NULL;
    char what[192];
    snprintf(what, sizeof(what), "%s%s%.120s", ncclGetErrorString(result),
             reason && *reason ? ": " : "", reason ? reason : "");
    bt_nccl_fail(g,
                 result == ncclRemoteError || result == ncclSystemError ? BT_ERR_PEER_LOST
                                                                        : BT_ERR_INTERNAL,
                 what);
}

bool bt_nccl_ok(struct bt_nccl_group *g, ncclResult_t result)
{
    if (result != ncclSuccess && result != ncclInProgress)
        fail_with_reason(g, result);
    return g->error.status == BT_OK;
}

bool bt_nccl_cuda_ok(struct bt_nccl_group *g, cudaError_t result)
{
    if (result != cudaSuccess)
        bt_nccl_fail(g, result == cudaErrorMemoryAllocation ? BT_ERR_NO_MEMORY : BT_ERR_INTERNAL,
                     cudaGetErrorString(result));
    return g->error.status == BT_OK;
}

static bool out_of_time(struct bt_nccl_group *g, int look, int64_t deadline_ns)
{
    const struct timespec pause = {.tv_nsec = LOOK_NS};
    if (bt_clock_now_ns() >= deadline_ns) {
        bt_nccl_fail(g, BT_ERR_DEADLINE, "a rank said nothing in time");
        return true;
    }
    if (look > LOOKS)
        nanosleep(&pause, NULL);
    return false;
}

/* Until the communicator has taken the last call: it does not block. */
static enum bt_status settle(struct bt_nccl_group *g, int64_t timeout_ns)
{
    int64_t deadline_ns = bt_clock_now_ns() + timeout_ns;
    for (int look = 0; g->error.status == BT_OK; look++) {
        ncclResult_t state = ncclSuccess;
        if (!bt_nccl_ok(g, ncclCommGetAsyncError(g->comm, &state)) || !bt_nccl_ok(g, state) ||
            state != ncclInProgress || out_of_time(g, look, deadline_ns))
            break;
    }
    return g->error.status;
}

enum bt_status bt_nccl_settle(struct bt_nccl_group *g)
{
    return settle(g, g->timeout_ns);
}

static enum bt_status await(struct bt_group *base, bool (*is_done)(void *context), void *context)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    int64_t deadline_ns = bt_clock_now_ns() + g->timeout_ns;
    bt_nccl_settle(g);
    for (int look = 0; g->error.status == BT_OK && !is_done(context); look++) {
        ncclResult_t state = ncclSuccess;
        if (!bt_nccl_ok(g, ncclCommGetAsyncError(g->comm, &state)) || !bt_nccl_ok(g, state) ||
            out_of_time(g, look, deadline_ns))
            break;
    }
    if (g->error.status == BT_OK && bt_nccl_latency_is_confused(g))
        bt_nccl_fail(g, BT_ERR_MISMATCH, "rows came for experts that are not here");
    return g->error.status;
}

static bool stream_is_empty(void *context)
{
    struct bt_nccl_group *g = context;
    /* of a launch: what a query says would take its place */
    if (!bt_nccl_cuda_ok(g, cudaGetLastError()))
        return true;
    cudaError_t done = cudaStreamQuery(g->stream);
    if (done == cudaErrorNotReady) {
        (void)cudaGetLastError(); /* it is no error of what comes next */
        return false;
    }
    return done == cudaSuccess || !bt_nccl_cuda_ok(g, done);
}

/* Until the stream is empty: a wait for the device, where it has something to do. */
static enum bt_status finish(struct bt_nccl_group *g)
{
    if (bt_nccl_settle(g) != BT_OK || stream_is_empty(g))
        return g->error.status;
    if (g->callers)
        bt_cuda_count_wait(g->callers->device);
    return await(&g->base, stream_is_empty, g);
}

static bool use_stream(struct bt_group *base, struct bt_stream *stream)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    struct bt_cuda_stream *callers = stream ? bt_cuda_stream(stream) : NULL;
    if (callers != g->callers)
        finish(g);
    g->callers = callers;
    g->stream = callers ? callers->stream : g->own_stream;
    return true;
}

/* What a stream at fault has was not computed: other ranks would draw tokens of it. */
static bool is_fine(struct bt_nccl_group *g)
{
    char what[128];
    if (g->error.status == BT_OK && g->callers && !bt_cuda_is_fine(g->callers)) {
        snprintf(what, sizeof(what), "%s: %s", g->callers->device->base.name,
                 cudaGetErrorString(g->callers->fault));
        bt_nccl_fail(g, BT_ERR_INTERNAL, what);
    }
    return g->error.status == BT_OK;
}

static void copy(struct bt_nccl_group *g, void *to, const void *from, size_t bytes)
{
    if (g->error.status == BT_OK && bytes > 0)
        bt_nccl_cuda_ok(g, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, g->stream));
}

/* To memory of the host, when it is there: a copy to what is not pinned returns when it is done,
 * and would wait for ranks that are lost. */
static enum bt_status copy_down(struct bt_nccl_group *g, void *to, const void *from, size_t bytes)
{
    if (finish(g) != BT_OK)
        return g->error.status;
    copy(g, to, from, bytes);
    if (g->error.status == BT_OK && bytes > 0)
        bt_nccl_cuda_ok(g, cudaStreamSynchronize(g->stream));
    return g->error.status;
}

/* ---- reductions, words ---- */

/* A call that is still on its way into the stream would come behind what is queued next. */
static enum bt_status taken(struct bt_nccl_group *g, ncclResult_t result)
{
    if (bt_nccl_ok(g, result) && result == ncclInProgress)
        settle(g, g->timeout_ns);
    return g->error.status;
}

/* Queued; done, too, where the caller named no stream. */
static enum bt_status run(struct bt_nccl_group *g, ncclResult_t result)
{
    enum bt_status status = taken(g, result);
    return status == BT_OK && !g->callers ? finish(g) : status;
}

/* Of `floats` that are shared out, the part of each rank, contiguous by rank. */
struct parts {
    size_t first[BT_GROUP_RANKS_MAX + 1];
};

/* From `done` of each part on, as much as there is room for: how much of this rank's. */
static size_t piece_of(const struct bt_nccl_group *g, const struct parts *parts, uint32_t rank,
                       size_t done)
{
    size_t count = parts->first[rank + 1] - parts->first[rank];
    size_t left = count > done ? count - done : 0;
    return left < g->device.part_floats ? left : g->device.part_floats;
}

/* NCCL's own reductions add in orders that depend on sizes, roots and channels. */
static void reduce_piece(struct bt_nccl_group *g, const float *x, const struct parts *parts,
                         size_t done, float *out)
{
    uint32_t rank = g->base.rank;
    size_t own = piece_of(g, parts, rank, done);
    if (g->error.status != BT_OK)
        return;
    bt_nccl_collect(g);
    for (uint32_t r = 0; r < g->base.size; r++) {
        size_t theirs = piece_of(g, parts, r, done);
        if (r != rank && theirs > 0)
            bt_nccl_ok(g, ncclSend(x + parts->first[r] + done, theirs * sizeof(*x), ncclUint8,
                                   (int)r, g->comm, g->stream));
        if (r != rank && own > 0)
            bt_nccl_ok(g, ncclRecv(g->device.parts + r * g->device.part_floats, own * sizeof(*x),
                                   ncclUint8, (int)r, g->comm, g->stream));
    }
    if (taken(g, bt_nccl_collected(g)) == BT_OK && own > 0)
        bt_rows_cuda_sum(g->stream, g->device.parts, g->device.part_floats,
                         x + parts->first[rank] + done, rank, g->base.size, own, out + done);
}

/* out [own part] = the sum of all ranks' own part, in ascending order of ranks. */
static void reduce_parts(struct bt_nccl_group *g, const float *x, const struct parts *parts,
                         float *out)
{
    size_t most = 0;
    for (uint32_t r = 0; r < g->base.size; r++) {
        size_t count = parts->first[r + 1] - parts->first[r];
        most = count > most ? count : most;
        if (r != g->base.rank)
            g->base.traffic.reduce += count * sizeof(*x);
    }
    for (size_t done = 0; done < most; done += g->device.part_floats)
        reduce_piece(g, x, parts, done, out);
}

static bool are_equal(const struct parts *parts, uint32_t size)
{
    for (uint32_t r = 0; r < size; r++) {
        if (parts->first[r + 1] != parts->first[1] * (r + 1))
            return false;
    }
    return true;
}

/* to: where the parts of all ranks are, `mine` aside. NCCL has one call for parts of one size. */
static ncclResult_t gather_parts(struct bt_nccl_group *g, const struct parts *parts,
                                 const float *mine, float *to)
{
    uint32_t rank = g->base.rank;
    size_t own = parts->first[rank + 1] - parts->first[rank];
    g->base.traffic.reduce += own * sizeof(*mine) * (g->base.size - 1);
    if (are_equal(parts, g->base.size))
        return ncclAllGather(mine, to, own, ncclFloat, g->comm, g->stream);
    bt_nccl_collect(g);
    for (uint32_t r = 0; r < g->base.size; r++) {
        float *part = to + parts->first[r];
        bt_nccl_ok(g, ncclBroadcast(r == rank ? mine : part, part,
                                    parts->first[r + 1] - parts->first[r], ncclFloat, (int)r,
                                    g->comm, g->stream));
    }
    return bt_nccl_collected(g);
}

static struct parts parts_of_rows(const struct bt_group *base, uint32_t rows, uint32_t width)
{
    struct parts parts = {{0}};
    for (uint32_t r = 0; r < base->size; r++) {
        struct bt_share share = bt_group_share(base, r, rows);
        parts.first[r] = (size_t)share.first * width;
        parts.first[r + 1] = parts.first[r] + (size_t)share.count * width;
    }
    return parts;
}

static enum bt_status all_reduce(struct bt_group *base, float *x, size_t count)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    struct parts parts = {{0}};
    for (uint32_t r = 0; r <= base->size; r++)
        parts.first[r] = count / base->size * r + (r < count % base->size ? r : count % base->size);
    float *mine = x + parts.first[base->rank];
    if (!is_fine(g))
        return g->error.status;
    reduce_parts(g, x, &parts, mine);
    return g->error.status == BT_OK ? run(g, gather_parts(g, &parts, mine, x)) : g->error.status;
}

static enum bt_status reduce_scatter(struct bt_group *base, const float *x, uint32_t rows,
                                     uint32_t width, float *out)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    struct parts parts = parts_of_rows(base, rows, width);
    if (!is_fine(g))
        return g->error.status;
    reduce_parts(g, x, &parts, out);
    return g->error.status == BT_OK ? run(g, ncclSuccess) : g->error.status;
}

static enum bt_status all_gather(struct bt_group *base, const float *mine, uint32_t rows,
                                 uint32_t width, float *out)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    struct parts parts = parts_of_rows(base, rows, width);
    if (!is_fine(g))
        return g->error.status;
    return run(g, gather_parts(g, &parts, mine, out));
}

static enum bt_status gather_words(struct bt_nccl_group *g, const uint64_t *words, uint32_t count)
{
    copy(g, g->device.words, words, count * sizeof(*words));
    if (g->error.status == BT_OK)
        taken(g, ncclAllGather(g->device.words, g->device.all_words, count, ncclUint64, g->comm,
                               g->stream));
    return g->error.status;
}

static enum bt_status barrier(struct bt_group *base)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    enum bt_status status = run(g, ncclAllReduce(g->device.scratch, g->device.scratch, 1, ncclFloat,
                                                 ncclSum, g->comm, g->stream));
    return status == BT_OK ? finish(g) : status;
}

/* Through memory of the device, as `data` may be the host's. */
static enum bt_status broadcast_piece(struct bt_nccl_group *g, uint32_t root, char *data,
                                      size_t bytes, size_t room, size_t piece)
{
    for (size_t at = 0; at < bytes && g->error.status == BT_OK; at += piece) {
        size_t now = bytes - at < piece ? bytes - at : piece;
        size_t kept = at >= room ? 0 : now < room - at ? now : room - at;
        if (g->base.rank == root)
            copy(g, g->device.meta_out, data + at, now);
        if (g->error.status == BT_OK)
            taken(g, ncclBroadcast(g->device.meta_out, g->device.meta_in, now, ncclUint8, (int)root,
                                   g->comm, g->stream));
        if (g->base.rank != root)
            copy_down(g, data + at, g->device.meta_in, kept);
        else
            finish(g);
    }
    return g->error.status;
}

#define PIECE_BYTES ((size_t)1 << 20)

static enum bt_status broadcast(struct bt_group *base, uint32_t root, void *data, size_t bytes,
                                size_t *ret_bytes)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    uint64_t total = bytes;
    copy(g, g->device.scratch, &total, sizeof(total));
    if (g->error.status == BT_OK)
        taken(g, ncclBroadcast(g->device.scratch, g->device.scratch, sizeof(total), ncclUint8,
                               (int)root, g->comm, g->stream));
    if (copy_down(g, &total, g->device.scratch, sizeof(total)) != BT_OK)
        return g->error.status;
    if (base->rank == root)
        base->traffic.other += total * (base->size - 1);
    enum bt_status status = broadcast_piece(g, root, data, total, bytes, PIECE_BYTES);
    if (status == BT_OK && ret_bytes)
        *ret_bytes = total;
    return status == BT_OK && total > bytes ? BT_ERR_EXHAUSTED : status;
}

/* ---- experts ---- */

int bt_nccl_payload_code(enum bt_dtype payload)
{
    return payload == BT_F32 ? 0 : payload == BT_BF16 ? 1 : 2;
}

/* counts [rank] elements to and from each rank, contiguous by rank; the own ones, too. */
static void exchange(struct bt_nccl_group *g, const void *out, const uint32_t *to, void *in,
                     const uint32_t *from, size_t element)
{
    const char *out_at = out;
    char *in_at = in;
    if (g->error.status != BT_OK)
        return;
    bt_nccl_collect(g);
    for (uint32_t r = 0; r < g->base.size; r++) {
        if (to[r] > 0)
            bt_nccl_ok(g, ncclSend(out_at, to[r] * element, ncclUint8, (int)r, g->comm, g->stream));
        if (from[r] > 0)
            bt_nccl_ok(g,
                       ncclRecv(in_at, from[r] * element, ncclUint8, (int)r, g->comm, g->stream));
        out_at += to[r] * element;
        in_at += from[r] * element;
    }
    taken(g, bt_nccl_collected(g));
}

/* How many rows and picks go to each rank, told to all. */
static enum bt_status tell_counts(struct bt_nccl_group *g)
{
    struct bt_experts *e = g->experts;
    uint64_t *held = g->device.words, *held_all = g->device.all_words;

    for (uint32_t r = 0; r < e->size; r++)
        g->own_counts[r] = (uint64_t)e->rows_to[r] << 32 | e->picks_to[r];
    /* not the memory of an agreement, which may be open */
    g->device.words = (uint64_t *)g->device.meta_out;
    g->device.all_words = (uint64_t *)g->device.meta_in;
    gather_words(g, g->own_counts, e->size);
    g->device.words = held;
    g->device.all_words = held_all;
    return g->error.status;
}

static enum bt_status learn_counts(struct bt_nccl_group *g)
{
    struct bt_experts *e = g->experts;
    size_t bytes = (size_t)e->size * e->size * sizeof(*g->counts);
    if (copy_down(g, g->counts, g->device.meta_in, bytes) != BT_OK)
        return g->error.status;
    e->arrived_rows = e->arrived_picks = 0;
    for (uint32_t r = 0; r < e->size; r++) {
        uint64_t count = g->counts[(size_t)r * e->size + e->rank];
        e->rows_of[r] = (uint32_t)(count >> 32);
        e->picks_of[r] = (uint32_t)count;
        if (e->rows_of[r] > g->base.limits.rows || e->picks_of[r] > (uint64_t)e->rows_of[r] * e->k)
            return bt_nccl_fail(g, BT_ERR_PROTOCOL, "a rank sent rows that are none");
        e->base_row[r] = e->arrived_rows;
        e->base_pick[r] = e->arrived_picks;
        e->arrived_rows += e->rows_of[r];
        e->arrived_picks += e->picks_of[r];
    }
    return BT_OK;
}

/* Rows and picks for each rank, one rank's behind the other's. On the host. */
static void make_lists(struct bt_nccl_group *g, uint32_t *rows, struct bt_dispatch_pick *picks)
{
    const struct bt_experts *e = g->experts;
    uint32_t row_at[BT_GROUP_RANKS_MAX], pick_at[BT_GROUP_RANKS_MAX], first = 0, first_pick = 0;
    uint32_t count[BT_GROUP_RANKS_MAX] = {0}, last[BT_GROUP_RANKS_MAX];

    memset(last, 0xff, sizeof(last));
    for (uint32_t r = 0; r < e->size; r++) {
        row_at[r] = first;
        pick_at[r] = first_pick;
        first += e->rows_to[r];
        first_pick += e->picks_to[r];
    }
    for (uint32_t pick = 0; pick < e->rows * e->k; pick++) {
        uint32_t rank = e->dest[pick], row = pick / e->k;
        if (last[rank] != row)
            rows[row_at[rank] + count[rank]++] = row;
        last[rank] = row;
        picks[pick_at[rank] + e->index[pick]] = (struct bt_dispatch_pick){
            .at = (count[rank] - 1) * e->k + pick % e->k, .expert = g->routed[pick]};
    }
}

static enum bt_status take_picks(struct bt_nccl_group *g, const struct bt_dispatch_pick *picks)
{
    struct bt_experts *e = g->experts;
    for (uint32_t r = 0; r < e->size; r++) {
        for (uint32_t i = e->base_pick[r]; i < e->base_pick[r] + e->picks_of[r]; i++) {
            if (picks[i].expert >= e->experts || picks[i].at / e->k >= e->rows_of[r])
                return bt_nccl_fail(g, BT_ERR_PROTOCOL, "a rank sent picks that are none");
            e->pick_expert[i] = picks[i].expert;
            e->pick_at[i] = e->base_row[r] * e->k + picks[i].at;
        }
    }
    return BT_OK;
}

static uint32_t total(const uint32_t *counts, uint32_t size)
{
    uint32_t sum = 0;
    for (uint32_t r = 0; r < size; r++)
        sum += counts[r];
    return sum;
}

/* The lists travel, then the rows. */
static enum bt_status send_rows(struct bt_nccl_group *g, const float *x)
{
    struct bt_experts *e = g->experts;
    uint32_t own_rows = total(e->rows_to, e->size), own_picks = e->rows * e->k;
    uint32_t picks = own_picks > e->arrived_picks ? own_picks : e->arrived_picks;
    size_t row_bytes = bt_row_bytes(e->payload, e->hidden);
    uint32_t *rows = malloc((own_rows + 1) * sizeof(*rows));
    struct bt_dispatch_pick *lists = malloc((picks + 1) * sizeof(*lists));

    if (!rows || !lists) {
        bt_nccl_fail(g, BT_ERR_NO_MEMORY, "no memory for lists");
        goto out;
    }
    make_lists(g, rows, lists);
    copy(g, g->device.meta_out, lists, own_picks * sizeof(*lists));
    copy(g, g->device.list, rows, own_rows * sizeof(*rows));
    exchange(g, g->device.meta_out, e->picks_to, g->device.meta_in, e->picks_of, sizeof(*lists));
    bt_rows_cuda_round(g->stream, bt_nccl_payload_code(e->payload), x, e->rows, g->device.list,
                       own_rows, e->hidden, (uint32_t)row_bytes, g->device.outgoing);
    exchange(g, g->device.outgoing, e->rows_to, g->device.incoming, e->rows_of, row_bytes);
    bt_rows_cuda_expand(g->stream, bt_nccl_payload_code(e->payload), g->device.incoming,
                        e->arrived_rows, e->hidden, (uint32_t)row_bytes, g->device.x);
    if (copy_down(g, lists, g->device.meta_in, e->arrived_picks * sizeof(*lists)) == BT_OK)
        take_picks(g, lists);
    else
        goto out;
    g->base.traffic.dispatch += (own_rows - e->rows_to[e->rank]) * row_bytes;
out:
    free(rows);
    free(lists);
    return g->error.status;
}

/* 0: dispatch waits. */
static uint32_t queued_rows(const struct bt_nccl_group *g, enum bt_dispatch_mode mode)
{
    uint32_t rows = g->expected_rows ? g->expected_rows : g->base.limits.rows;
    return mode == BT_DISPATCH_LATENCY && g->callers && rows <= BT_NCCL_LATENCY_ROWS ? rows : 0;
}

static bool queues(const struct bt_group *base, enum bt_dispatch_mode mode)
{
    return queued_rows((const struct bt_nccl_group *)base, mode) > 0;
}

static void expect_rows(struct bt_group *base, uint32_t rows)
{
    bt_nccl_group(base)->expected_rows = rows;
}

static enum bt_status dispatch_begin(struct bt_group *base, enum bt_dispatch_mode mode,
                                     const float *x, uint32_t rows,
                                     const struct bt_routing *routing,
                                     const struct bt_placement_layer *placement,
                                     enum bt_dtype payload)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    struct bt_experts *e = g->experts;
    uint32_t queued = queued_rows(g, mode);
    BT_ASSERT(rows <= queued || queued == 0);
    if (!is_fine(g))
        return g->error.status;
    g->is_queued = queued > 0;
    if (g->is_queued)
        return bt_nccl_latency_begin(g, queued, x, rows, routing, placement, payload);
    e->payload = payload;
    g->x = x;
    if (copy_down(g, g->routed, routing->experts, (size_t)rows * e->k * sizeof(*g->routed)) !=
        BT_OK)
        return g->error.status;
    bt_experts_choose(e, &g->ranks, g->routed, placement, rows);
    return tell_counts(g);
}

static enum bt_status dispatch_finish(struct bt_group *base, struct bt_arrivals *ret_arrivals)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    struct bt_experts *e = g->experts;
    if (!is_fine(g))
        return g->error.status;
    if (g->is_queued)
        return bt_nccl_latency_finish(g, ret_arrivals);
    if (learn_counts(g) != BT_OK || send_rows(g, g->x) != BT_OK)
        return g->error.status;
    bt_experts_sort(e);
    copy(g, g->device.order, e->order, e->arrived_picks * sizeof(*e->order));
    copy(g, g->device.begin, e->begin, (e->experts + 1) * sizeof(*e->begin));
    if (finish(g) != BT_OK)
        return g->error.status;
    *ret_arrivals =
        (struct bt_arrivals){.rows = e->arrived_rows,
                             .x = g->device.x,
                             .routing = {.order = g->device.order, .begin = g->device.begin},
                             .begin = e->begin,
                             .picks = e->arrived_picks};
    return BT_OK;
}

/* Slots of the incoming rows and their weights, each row's by ascending expert. In place of
 * `routed` and `weights`. */
static void sort_slots(struct bt_nccl_group *g)
{
    const struct bt_experts *e = g->experts;
    uint32_t base[BT_GROUP_RANKS_MAX], next = 0;
    for (uint32_t r = 0; r < e->size; r++) {
        base[r] = next;
        next += e->picks_to[r];
    }
    for (uint32_t row = 0; row < e->rows; row++) {
        uint32_t *experts = g->routed + (size_t)row * e->k, *slots = e->index + (size_t)row * e->k;
        float *weights = g->weights + (size_t)row * e->k;
        for (uint32_t place = 0; place < e->k; place++) {
            uint32_t expert = experts[place], i = place;
            uint32_t slot = base[e->dest[(size_t)row * e->k + place]] + slots[place];
            float weight = weights[place];
            for (; i > 0 && experts[i - 1] > expert; i--) {
                experts[i] = experts[i - 1];
                slots[i] = slots[i - 1];
                weights[i] = weights[i - 1];
            }
            experts[i] = expert;
            slots[i] = slot;
            weights[i] = weight;
        }
    }
}

static enum bt_status combine(struct bt_group *base, const void *y, enum bt_dtype payload,
                              const struct bt_routing *routing, float *out)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    struct bt_experts *e = g->experts;
    size_t row_bytes = e->hidden * bt_dtype_bytes(payload), picks = (size_t)e->rows * e->k;

    if (!is_fine(g))
        return g->error.status;
    if (g->is_queued)
        return bt_nccl_latency_combine(g, y, payload, routing, out);
    copy(g, g->device.list, e->position, e->arrived_picks * sizeof(*e->position));
    bt_rows_cuda_gather(g->stream, y, g->device.list, e->arrived_picks, (uint32_t)(row_bytes / 2),
                        (uint16_t *)g->device.outgoing);
    exchange(g, g->device.outgoing, e->picks_of, g->device.incoming, e->picks_to, row_bytes);
    if (copy_down(g, g->weights, routing->weights, picks * sizeof(*g->weights)) != BT_OK)
        return g->error.status;
    sort_slots(g);
    copy(g, g->device.list, e->index, picks * sizeof(*e->index));
    copy(g, g->device.weights, g->weights, picks * sizeof(*g->weights));
    bt_rows_cuda_add(g->stream, bt_nccl_payload_code(payload), g->device.incoming, g->device.list,
                     g->device.weights, e->rows, e->k, e->hidden, out);
    base->traffic.combine += (e->arrived_picks - e->picks_of[e->rank]) * row_bytes;
    return finish(g);
}

static enum bt_status repeat(struct bt_group *base)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    (void)is_fine(g);
    return g->error.status;
}

/* ---- creation ---- */

/* What the network still has to send of this rank's last call would end with the communicator. */
static void finalize(struct bt_nccl_group *g)
{
    int64_t deadline_ns = bt_clock_now_ns() + LEAVE_NS;
    ncclResult_t state = ncclCommFinalize(g->comm);
    for (int look = 0; state == ncclInProgress; look++) {
        const struct timespec pause = {.tv_nsec = LOOK_NS};
        if (bt_clock_now_ns() >= deadline_ns ||
            ncclCommGetAsyncError(g->comm, &state) != ncclSuccess)
            return;
        if (look > LOOKS)
            nanosleep(&pause, NULL);
    }
}

/* An abort, and no destroy, which waits for the other ranks of the machine. */
static void leave(struct bt_nccl_group *g)
{
    struct timespec until;
    if (g->comm && g->is_whole)
        finalize(g);
    abandon(g);
    if (!g->is_aborting)
        return;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LEAVE_NS / BT_NS_PER_S;
    if (pthread_timedjoin_np(g->aborting, NULL, &until) == 0)
        return;
    bt_log_warn(0, "nccl: a communicator does not end: graphs that use it are still there?");
    pthread_detach(g->aborting);
}

static void destroy(struct bt_group *base)
{
    struct bt_nccl_group *g = bt_nccl_group(base);
    void *const memories[] = {g->device.x,        g->device.outgoing, g->device.incoming,
                              g->device.list,     g->device.weights,  g->device.order,
                              g->device.begin,    g->device.words,    g->device.all_words,
                              g->device.meta_out, g->device.meta_in,  g->device.scratch,
                              g->device.parts};
    leave(g);
    for (size_t i = 0; i < sizeof(memories) / sizeof(memories[0]); i++)
        cudaFree(memories[i]);
    if (g->own_stream)
        cudaStreamDestroy(g->own_stream);
    bt_nccl_latency_destroy(g);
    bt_experts_destroy(g->experts);
    free(g->routed);
    free(g->weights);
    free(g);
}

static const struct bt_error *error_of(const struct bt_group *base)
{
    return &((const struct bt_nccl_group *)base)->error;
}

static const struct bt_group_ops nccl_ops = {
    .destroy = destroy,
    .error = error_of,
    .use_stream = use_stream,
    .await = await,
    .queues = queues,
    .expect_rows = expect_rows,
    .barrier = barrier,
    .broadcast = broadcast,
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
    .all_gather = all_gather,
    .dispatch_begin = dispatch_begin,
    .dispatch_finish = dispatch_finish,
    .combine = combine,
    .repeat = repeat,
    .fail = fail,
};

static void *device_memory(struct bt_nccl_group *g, size_t bytes)
{
    void *memory = NULL;
    if (g->error.status == BT_OK)
        bt_nccl_cuda_ok(g, cudaMalloc(&memory, bytes + 64));
    return memory;
}

static void make_expert_buffers(struct bt_nccl_group *g)
{
    const struct bt_group_limits *limits = &g->base.limits;
    struct bt_nccl_buffers *d = &g->device;
    size_t own = (size_t)limits->rows * limits->experts_per_token, picks = own * g->base.size;
    size_t row = bt_row_bytes(BT_F32, limits->hidden);

    d->x = device_memory(g, (size_t)limits->rows * g->base.size * row);
    d->outgoing = device_memory(g, picks * row);
    d->incoming = device_memory(g, picks * row);
    d->list = device_memory(g, picks * sizeof(*d->list));
    d->weights = device_memory(g, own * sizeof(*d->weights));
    g->routed = malloc((own + 1) * sizeof(*g->routed));
    g->weights = malloc((own + 1) * sizeof(*g->weights));
    if (!g->routed || !g->weights)
        bt_nccl_fail(g, BT_ERR_NO_MEMORY, "no memory for routing");
    d->order = device_memory(g, picks * sizeof(*d->order));
    d->begin = device_memory(g, (limits->experts + 1) * sizeof(*d->begin));
}

static void make_buffers(struct bt_nccl_group *g)
{
    const struct bt_group_limits *limits = &g->base.limits;
    struct bt_nccl_buffers *d = &g->device;
    size_t picks = (size_t)limits->rows * limits->experts_per_token * g->base.size;
    size_t meta = picks * sizeof(struct bt_dispatch_pick), words = BT_GROUP_WORDS_MAX;

    meta = meta > PIECE_BYTES ? meta : PIECE_BYTES;
    d->words = device_memory(g, words * sizeof(*d->words));
    d->all_words = device_memory(g, words * g->base.size * sizeof(*d->words));
    d->meta_out = device_memory(g, meta);
    d->meta_in = device_memory(g, meta);
    d->scratch = device_memory(g, sizeof(uint64_t));
    if (limits->floats > 0) {
        d->part_floats = limits->floats / g->base.size + PART_MORE;
        d->parts = device_memory(g, g->base.size * d->part_floats * sizeof(*d->parts));
    }
    if (limits->rows > 0) {
        make_expert_buffers(g);
        bt_nccl_latency_create(g);
    }
    if (g->error.status == BT_OK)
        bt_nccl_cuda_ok(g, cudaStreamCreateWithFlags(&g->own_stream, cudaStreamNonBlocking));
    g->stream = g->own_stream;
}

/* What ranks tell each other when they meet. */
struct card {
    struct bt_group_limits limits;
    ncclUniqueId id;
    struct bt_process_id process;
    char pci[16]; /* of the GPU, in its machine; "": not known */
};

static void name_gpu(struct card *card)
{
    struct bt_error ignored;
    int device = 0;
    if (bt_process_self(&ignored, &card->process) == BT_OK &&
        cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetPCIBusId(card->pci, sizeof(card->pci), device) == cudaSuccess)
        return;
    (void)cudaGetLastError();
    card->pci[0] = '\0';
}

/* NCCL needs one for each. */
static enum bt_status check_gpus(const struct card *cards, uint32_t count, struct bt_error *error)
{
    for (uint32_t r = 1; r < count; r++)
        for (uint32_t other = 0; other < r; other++)
            if (cards[r].pci[0] && strcmp(cards[r].pci, cards[other].pci) == 0 &&
                bt_process_same_host(&cards[r].process, &cards[other].process))
                return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                    "nccl: ranks %u and %u were given one GPU, %s: each needs its "
                                    "own (--device cuda:N)",
                                    other, r, cards[r].pci);
    return BT_OK;
}

/* Rank 0 draws the id that NCCL's ranks find each other by. */
static enum bt_status meet(const struct bt_group_options *options, struct bt_error *error,
                           ncclUniqueId *ret_id)
{
    struct card mine, all[BT_GROUP_RANKS_MAX];
    struct bt_meeting *meeting = NULL;
    enum bt_status status = BT_OK;

    memset(&mine, 0, sizeof(mine));
    mine.limits = options->limits;
    name_gpu(&mine);
    if (options->rank == 0 && ncclGetUniqueId(&mine.id) != ncclSuccess)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "nccl has no network here");
    all[0] = mine;
    if (options->size > 1)
        status = bt_meeting_open(options, error, &meeting);
    if (status == BT_OK && meeting)
        status = bt_meeting_exchange(meeting, &mine, sizeof(mine), error, all);
    for (uint32_t r = 1; r < options->size && status == BT_OK; r++)
        if (memcmp(&all[r].limits, &all[0].limits, sizeof(mine.limits)) != 0)
            status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                  "rank %u has other limits than rank 0", r);
    if (status == BT_OK)
        status = check_gpus(all, options->size, error);
    bt_meeting_close(meeting);
    if (status == BT_OK)
        *ret_id = all[0].id;
    return status;
}

static enum bt_status open_group(struct bt_nccl_group *g, const struct bt_group_options *options,
                                 struct bt_error *error)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    enum bt_status status = BT_OK;

    if (options->limits.rows > 0)
        status =
            bt_experts_create(&options->limits, options->rank, options->size, error, &g->experts);
    if (status == BT_OK)
        status = meet(options, error, &id);
    if (status != BT_OK)
        return status;
    make_buffers(g);
    config.blocking = 0;
    if (g->error.status == BT_OK)
        bt_nccl_ok(g, ncclCommInitRankConfig(&g->comm, (int)options->size, id, (int)options->rank,
                                             &config));
    settle(g, options->connect_timeout_ns > 0 ? options->connect_timeout_ns : g->timeout_ns);
    if (g->error.status != BT_OK)
        return bt_error_set(error, g->error.status, "%s", g->error.text);
    g->is_whole = true;
    return BT_OK;
}

enum bt_status bt_nccl_group_create(const struct bt_group_options *options, struct bt_error *error,
                                    struct bt_group **ret_group)
{
    bool together[BT_GROUP_RANKS_MAX] = {false};
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "nccl: this machine has no GPU");
    struct bt_nccl_group *g = calloc(1, sizeof(*g));
    if (!g)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a group");
    for (uint32_t r = 0; r < options->size; r++)
        together[r] = options->ranks_per_machine == 0 || r % options->ranks_per_machine != 0;
    bt_ranks_init(&g->ranks, options->rank, options->size, together);
    g->base = (struct bt_group){.ops = &nccl_ops,
                                .rank = options->rank,
                                .size = options->size,
                                .machines = g->ranks.machines,
                                .limits = options->limits};
    g->timeout_ns = options->wait_timeout_ns > 0 ? options->wait_timeout_ns : BT_NS_PER_S;
    enum bt_status status = open_group(g, options, error);
    if (status != BT_OK) {
        destroy(&g->base);
        return status;
    }
    *ret_group = &g->base;
    return BT_OK;
}
