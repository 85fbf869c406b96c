/*
 * The simulated network cards (kvtransfer/sim) under the programs, as the one choice of both ends
 * and in some schedules as rails of which single ones fail, and the shadow: an account of who may
 * be written where, kept apart from the programs' own. Each token of each page of each layer
 * carries a tag made of (request, epoch, layer, position); whatever lands in a decode rank's pool
 * has to carry the tag of the landing that was last given away for that page.
 */
#ifndef BATON_TESTS_SIM_FABRIC_H
#define BATON_TESTS_SIM_FABRIC_H

#include <protobuf-c/protobuf-c.h>

#include "decode-node/engine.h"
#include "kvtransfer/sim/sim.h"
#include "tests/sim/world.h"

#define SIM_LAYERS 2

void fabric_begin(uint64_t seed);
void fabric_end(void);
/* The process died: what it had under way becomes stray, what comes for it is lost. */
void fabric_crash(struct node *node);
void fabric_hold(bool held);
void fabric_break_links(void);
/* One of the rails that this node writes over. */
void fabric_break_rail(struct node *node);
/* In how long the thread of this node's transport will see that it has something to do;
 * BT_NEVER_NS. */
int64_t fabric_delay(const struct node *node);
/* As if the prefill worker had more ranks: a message that names cuts names one of a link more.
 * Valid until the next call. */
const ProtobufCMessage *fabric_among_ranks(const ProtobufCMessage *request);

uint32_t kv_tag(uint64_t request, uint64_t epoch, uint32_t layer, uint32_t position);
uint32_t *kv_slot(void *pool, uint32_t pool_pages, uint32_t layer, uint32_t page, uint32_t token);

/* What a server answers, for the shadow to learn of landings. */
void shadow_answer(const char *method, const ProtobufCMessage *response);
/* Every KV entry of a sequence is its own: of the prompt and `output` tokens. */
void shadow_check_sequence(struct node *node, const struct dc_sequence *sequence, uint32_t output);
void *shadow_pool(const struct node *node);
void shadow_set_pool(struct node *node, void *base, size_t bytes);
void shadow_forget(const struct node *node);

#endif
