/*
 * A transport in memory, for tests: two or more of them in one process share a fabric. What it does
 * in which order is drawn from the fabric's seed: writes are done at once or later, reordered, or
 * refused with EXHAUSTED; links take a while to come up. Any thread may call the functions below.
 *
 * When a link breaks or is closed, what was in flight becomes stray, like data in the socket buffer
 * of a dead peer: it reaches the target's memory at some later progress of the target, unless the
 * target disconnects that source first.
 */
#ifndef BATON_KVTRANSFER_SIM_SIM_H
#define BATON_KVTRANSFER_SIM_SIM_H

#include "kvtransfer/transport.h"

struct kvt_sim;

struct kvt_sim *kvt_sim_create(uint64_t seed); /* NULL: no memory */
/* After all its transports. */
void kvt_sim_destroy(struct kvt_sim *sim);

enum bt_status kvt_sim_transport_create(struct kvt_sim *sim, struct bt_error *error,
                                        struct kvt_transport **ret_transport);

/* While held, nothing arrives, nothing completes, nobody connects. */
void kvt_sim_hold(struct kvt_sim *sim, bool held);
/* Every link that is up fails. */
void kvt_sim_break_links(struct kvt_sim *sim);
/* Those of one source. */
void kvt_sim_break_links_of(struct kvt_transport *transport);
/* As if the transport's process was killed: no completion runs; what it had in flight becomes
 * stray, what is under way to it is lost, its memory is gone. Frees the transport. */
void kvt_sim_crash(struct kvt_transport *transport);
/* Links to this target that are up and that the cut covers. */
size_t kvt_sim_healthy(struct kvt_transport *transport, const struct kvt_cut *cut);
/* Something is due for it: `wait` would not sleep. */
bool kvt_sim_busy(struct kvt_transport *transport);
/* Runs after every write that reached a target's memory, with the fabric locked: no calls back. */
typedef void kvt_sim_landed_fn(void *context, void *memory, size_t bytes);
void kvt_sim_observe(struct kvt_sim *sim, kvt_sim_landed_fn *landed, void *context);

size_t kvt_sim_in_flight(struct kvt_sim *sim);
size_t kvt_sim_stray(struct kvt_sim *sim);

#endif
