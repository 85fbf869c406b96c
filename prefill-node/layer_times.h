/*
 * When each layer of each chunk of a prompt was computed and written, for a trace. All memory is
 * there from the start; what exceeds it (PF_LAYER_TIMES_MAX entries) is left out.
 *
 * The compute thread writes what it computes, the pushing thread what it writes: other fields, and
 * a chunk is there before its tokens are ready to be written. The control thread reads when both
 * have ended.
 */
#ifndef BATON_PREFILL_NODE_LAYER_TIMES_H
#define BATON_PREFILL_NODE_LAYER_TIMES_H

#include "kvtransfer/source.h"
#include "proto/worker.pb-c.h"

#define PF_LAYER_TIMES_MAX 4096

struct pf_layer_times;

/* cached_tokens > 0: the first chunk, which nobody computes. NULL: no memory. */
struct pf_layer_times *pf_layer_times_create(uint32_t layer_count, uint32_t cached_tokens,
                                             uint32_t prompt_tokens);
void pf_layer_times_destroy(struct pf_layer_times *times); /* NULL is fine */

/* For the push of the prompt; lives as long. */
const struct kvt_push_watch *pf_layer_times_watch(const struct pf_layer_times *times);

/* Compute thread: a chunk up to token_end begins; then each layer of it ends. */
void pf_layer_times_chunk(struct pf_layer_times *times, uint32_t token_end, int64_t now_ns);
void pf_layer_times_computed(struct pf_layer_times *times, uint32_t layer, int64_t now_ns);

/* Sets done->layers, by times after begin_ns, which belong to `times`. Nothing: no memory. */
void pf_layer_times_fill(struct pf_layer_times *times, int64_t begin_ns,
                         Baton__V1__PrefillDone *done);

#endif
