/*
 * A group: the ranks of one worker, a process each, that compute together. Every function is called
 * by all ranks, in the same order and with the same sizes where nothing else is said; one thread a
 * rank. Buffers are the device's (on a CPU: memory).
 *
 *     self   one rank
 *     ucx    ranks on CPUs: shared memory inside a machine, UCX between machines
 *     nccl   ranks on GPUs, one each
 *
 * Results are fixed by rank order and placement alone: sums are taken in ascending rank order, the
 * rows of experts in ascending expert order, so no timing shows in any bit. nccl alone adds up in
 * NCCL's order, which is fixed by size, count and machines, and not ascending.
 *
 * Every wait has an end. When a rank dies, leaves or is silent for `wait_timeout_ns`, the calls of
 * all others return BT_ERR_PEER_LOST (or BT_ERR_DEADLINE) within that time, and from then on every
 * call returns the same: the group is over, its buffers may be anything. What a rank had done for
 * a call counts, whatever became of it since: after the last call ranks may leave in any order.
 * Ranks that make different calls, or one call with different sizes, get BT_ERR_PROTOCOL.
 *
 * A group takes address space for the largest call, and memory for what was used of it.
 */
#ifndef BATON_COMMON_PARALLEL_GROUP_H
#define BATON_COMMON_PARALLEL_GROUP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/kernels.h"
#include "common/parallel/placement.h"

#define BT_GROUP_RANKS_MAX  64
#define BT_GROUP_WORDS_MAX  64 /* of one agreement */
#define BT_GROUP_SECRET_MIN 8  /* characters */

struct bt_group;

/* What buffers are made for. A call beyond them is a fault of the caller (BT_ASSERT). */
struct bt_group_limits {
    size_t floats;          /* of one all_reduce, reduce_scatter (input), all_gather (output) */
    size_t broadcast_bytes; /* of one broadcast; longer ones are cut by the group itself */
    uint32_t rows;          /* of one rank in one dispatch; 0: no dispatch */
    uint32_t hidden;        /* floats of a row, exactly */
    uint32_t experts, experts_per_token;
};

struct bt_group_options {
    const char *transport; /* "auto" (self for one rank, else ucx), "self", "ucx", "nccl" */
    uint32_t rank, size;
    /*
     * "tcp://HOST:PORT": rank 0 listens there until all have come, the others look for it there.
     * "ipc://PATH": the same at a socket file (mode 0600, 107 bytes at most) on one machine. Rank 0
     * removes it when all have come; what a dead one left behind is replaced; one that lives, or a
     * file that is no socket, is an error. Unused by self.
     */
    const char *endpoint;
    const char *host;   /* address of this machine for the other machines; NULL: loopback */
    const char *secret; /* the same on all ranks of a group: who does not know it is refused */
    /* Ranks of one machine are neighbours: machine = rank / ranks_per_machine. 0: found out by
     * comparing boot id and user. Smaller than the truth: as if there were more machines. */
    uint32_t ranks_per_machine;
    int64_t connect_timeout_ns; /* until all ranks are there */
    int64_t wait_timeout_ns;    /* for the other ranks, in one call */
    struct bt_group_limits limits;
};

/*
 * Meets the other ranks. INVALID_ARGUMENT (sizes, limits or secret differ between ranks: the
 * message names the rank and the field), UNAVAILABLE (nobody there in time: names the ranks that
 * are missing), UNSUPPORTED (a transport that this build or machine lacks).
 */
enum bt_status bt_group_create(const struct bt_group_options *options, struct bt_error *error,
                               struct bt_group **ret_group);
/* Also when the group is over; the others then see this rank leave. */
void bt_group_destroy(struct bt_group *group);

uint32_t bt_group_rank(const struct bt_group *group);
uint32_t bt_group_size(const struct bt_group *group);
uint32_t bt_group_machines(const struct bt_group *group);
/* Why the group is over; "" while it is not. */
const char *bt_group_error(const struct bt_group *group);

/*
 * From here on all calls go behind what is queued on `stream`, a stream of the device that was
 * current when the group was made, and see buffers in its order; nothing has to be waited for
 * before a call. all_reduce, reduce_scatter, all_gather, and dispatch and combine where
 * bt_group_queues, only queue their work and return: what is wrong with it a later call says, or
 * bt_group_await. Agreements have nothing to do with it. The others return when all that is on the
 * stream is done. NULL: as at the
 * beginning. Before the stream goes, and when another is named, what is on it is waited for.
 *
 * False: the group knows no streams (self, ucx); it works on buffers of which nothing is queued,
 * and is done on return.
 */
bool bt_group_use_stream(struct bt_group *group, struct bt_stream *stream);

/* Until is_done(context), which is asked again and again, is true of what was queued; not longer
 * than wait_timeout_ns. MISMATCH: rows came for experts that are not here. */
enum bt_status bt_group_await(struct bt_group *group, bool (*is_done)(void *context),
                              void *context);

enum bt_status bt_group_barrier(struct bt_group *group);

/* data of `root` to everybody's data. Only root's `bytes` need be known: the others give their
 * room, and learn how much came in *ret_bytes (may be NULL). EXHAUSTED: the room was too small and
 * holds the beginning; *ret_bytes tells what is wanted, and the group goes on. */
enum bt_status bt_group_broadcast(struct bt_group *group, uint32_t root, void *data, size_t bytes,
                                  size_t *ret_bytes);

/*
 * Small agreement: every rank learns the words of all ranks, [rank][count]. `begin` posts and
 * returns, so that the wait can be overlapped with other work; no other call of the group in
 * between but dispatch and combine. It goes from host to host, also where ranks are on GPUs: it
 * waits for nothing that is queued there, and may come while that runs.
 */
enum bt_status bt_group_agree_begin(struct bt_group *group, const uint64_t *words, uint32_t count);
enum bt_status bt_group_agree_finish(struct bt_group *group, uint64_t *ret_words);

/* x = the sum of all ranks' x, in ascending rank order: ((x0 + x1) + x2) + … in f32. */
enum bt_status bt_group_all_reduce(struct bt_group *group, float *x, size_t count);

/* Rows that fall to a rank when `rows` are split: the first rows % size ranks have one more. */
struct bt_share {
    uint32_t first, count;
};
struct bt_share bt_group_share(const struct bt_group *group, uint32_t rank, uint32_t rows);

/* out [own share][width] = the sum of all ranks' x [rows][width] there, in ascending rank order. */
enum bt_status bt_group_reduce_scatter(struct bt_group *group, const float *x, uint32_t rows,
                                       uint32_t width, float *out);
/* out [rows][width] = everybody's share; mine may be out's part of it. */
enum bt_status bt_group_all_gather(struct bt_group *group, const float *mine, uint32_t rows,
                                   uint32_t width, float *out);

/* ---- experts ---- */

enum bt_dispatch_mode {
    BT_DISPATCH_THROUGHPUT, /* prefill: many rows, in runs that stay in a cache */
    BT_DISPATCH_LATENCY,    /* decode: few rows, at once */
};

/*
 * Rows on the rank that holds their experts. routing.experts and .weights are not filled; `order`
 * has picks of local experts by ascending expert, then source rank, then source row, as
 * row * experts_per_token + place with `row` in `x`; `begin` is by expert of the model
 * [experts + 1]: experts that are not here have no picks.
 */
struct bt_arrivals {
    /* Queued: rows and picks are more than there are; x has zeros for those that are none, what is
     * known of picks is in routing.begin, the device's. */
    bool on_device;
    uint32_t rows;
    const float *x; /* [rows][hidden], expanded from the payload; the group's until combine */
    struct bt_routing routing;
    const uint32_t *begin; /* as routing.begin, the host's; NULL: on_device */
    uint32_t picks;        /* begin[experts] */
};

/*
 * How many rows the rank that has most will have in the dispatches to come: the same number on all
 * ranks, 0 (as at the beginning) for limits.rows. What is queued is of this size.
 */
void bt_group_expect_rows(struct bt_group *group, uint32_t rows);
/* Whether dispatch and combine of this mode only queue their work. Routing is the device's, then:
 * experts, weights, and begin[experts], the number of its picks, rows after which are padding
 * (NULL: none are); nothing is known of a rank that sends to experts which are not here, but to
 * bt_group_await. */
bool bt_group_queues(const struct bt_group *group, enum bt_dispatch_mode mode);

/* Queued calls were captured in a graph, which is launched again, on all ranks: so much more is
 * sent. Fails as they would. */
enum bt_status bt_group_repeat(struct bt_group *group, uint64_t dispatch_bytes,
                               uint64_t combine_bytes);

/*
 * Sends each row of x [rows][hidden] to the ranks that hold its experts by `placement`, once a
 * rank. Rows differ from rank to rank, and may be 0. payload: F32, BF16 (rounded to nearest even),
 * or F8_E4M3 with an f32 scale (max |x| / 448) for every 128 elements; rows that stay on this rank
 * are rounded alike.
 *
 * Where an expert has several copies, this rank spreads its own picks: those of experts with one
 * copy are counted first, then each other one, by row and place, goes to the copy whose rank has
 * fewest of this call's picks of this rank so far; to copies of this machine alone, where there are
 * some; of equals to this rank, else to the first of the list from (row + rank) % copies on.
 *
 * `begin` sends what goes at once (of THROUGHPUT the first run) and returns; `finish` waits for
 * what others send. Between the two, work that needs no arrivals; x, routing and placement stay as
 * they are, and no other call of the group is made.
 */
enum bt_status bt_group_dispatch_begin(struct bt_group *group, enum bt_dispatch_mode mode,
                                       const float *x, uint32_t rows,
                                       const struct bt_routing *routing,
                                       const struct bt_placement_layer *placement,
                                       enum bt_dtype payload);
enum bt_status bt_group_dispatch_finish(struct bt_group *group, struct bt_arrivals *ret_arrivals);

/*
 * y [picks][hidden], a row for each of arrivals.routing.order, F32 or BF16, travels back; then for
 * each own row: out[row] += weights * y over its picks in ascending expert order, by fused
 * multiply-add in f32. `routing` is that of the dispatch.
 */
enum bt_status bt_group_combine(struct bt_group *group, const void *y, enum bt_dtype payload,
                                const struct bt_routing *routing, float *out);

/*
 * Bytes of payload (f8 with its scales) that this rank has sent to other ranks since it was
 * created, without headers. A row counts once for every rank that it is dispatched to.
 */
struct bt_group_traffic {
    uint64_t reduce, dispatch, combine, other; /* to any other rank */
    uint64_t between_machines; /* of all that, what crossed: a dispatched row once a machine */
};
void bt_group_traffic(const struct bt_group *group, struct bt_group_traffic *ret_traffic);

#endif
