/*
 * Where the time of one request goes, stage after stage, as it passes: for metrics, for the timing
 * that clients ask for, and for its trace. Internal to the service.
 *
 * The stages of the time to the first token, in order; they add up to it:
 *
 *   tokenize          arrival at the front -> submitted: reading the request, its prompt's ids
 *   queue             -> Reserve sent: until a prefill worker has room, and a decode rank pages
 *   earlier_attempts  -> Reserve sent by the attempt that gave the token; where others failed
 *   reserve           -> Run sent: the decode rank grants pages
 *   prefill_queue     in the prefill worker, until its first chunk begins
 *   prefill_compute   first chunk -> end of the last layer
 *   delivery          the rest: the way to the worker and back, and drawing token 0
 *   local_prefill     instead of the last three, where the decode rank computed the prompt itself
 *
 * Token 0 comes with prefill, so that what follows is part of the time to the second token:
 *
 *   visible_transfer  end of the last layer -> all KV is in the decode rank's pages
 *   decode_queue      handoff accepted -> begin of the first step
 *   first_step        that step
 */
#ifndef BATON_ROUTER_STAGES_H
#define BATON_ROUTER_STAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/router.pb-c.h"
#include "proto/worker.pb-c.h"
#include "router/trace.h"

enum rt_ttft_stage {
    RT_TTFT_TOKENIZE,
    RT_TTFT_QUEUE,
    RT_TTFT_EARLIER_ATTEMPTS,
    RT_TTFT_RESERVE,
    RT_TTFT_PREFILL_QUEUE,
    RT_TTFT_PREFILL_COMPUTE,
    RT_TTFT_DELIVERY,
    RT_TTFT_LOCAL_PREFILL,
    RT_TTFT_VISIBLE_TRANSFER,
    RT_TTFT_DECODE_QUEUE,
    RT_TTFT_FIRST_STEP,
    RT_TTFT_STAGES,
};
extern const char *const rt_ttft_stage_names[RT_TTFT_STAGES];

struct rt_service_metrics;

/* Times of bt_clock_now_ns; 0: not yet. What workers say is cut to what can be. */
struct rt_stages {
    struct rt_trace_context trace;
    struct rt_trace_detail *detail; /* NULL: not sampled */
    int64_t arrival_ns, submitted_ns;
    int64_t first_reserve_ns, reserve_ns, prefill_ns; /* sent; the last two of the last attempt */
    int64_t first_token_ns;
    uint32_t attempts;      /* RESERVEs */
    uint32_t token_attempt; /* that gave token 0, or is about to */
    bool prefill_told;      /* by that attempt's PrefillDone */
    int64_t prefill_begin_unix_ns;
    uint64_t prefill_queue_ns, prefill_compute_ns, visible_transfer_ns;
    bool step_told;
    int64_t step_begin_unix_ns;
    uint64_t step_wait_ns, step_ns;
};

/* `trace` with a trace id of zeros: nobody asks. */
void rt_stages_init(struct rt_stages *stages, const struct rt_trace_context *trace,
                    int64_t arrival_ns, int64_t submitted_ns);
void rt_stages_finish(struct rt_stages *stages);

void rt_stages_reserve(struct rt_stages *stages, int64_t now_ns);
void rt_stages_prefill(struct rt_stages *stages, uint32_t attempt, int64_t now_ns);
void rt_stages_first_token(struct rt_stages *stages, int64_t now_ns,
                           const struct rt_service_metrics *metrics);
void rt_stages_prefill_done(struct rt_stages *stages, uint32_t attempt,
                            const Baton__V1__PrefillDone *done,
                            const struct rt_service_metrics *metrics);
/* The same of a request that is over: the decode rank's last steps were here first. False: it told
 * nothing new. */
bool rt_stages_late_done(struct rt_trace_record *record, uint32_t attempt,
                         const Baton__V1__PrefillDone *done,
                         const struct rt_service_metrics *metrics);
void rt_stages_step(struct rt_stages *stages, const Baton__V1__SequenceStart *start,
                    const struct rt_service_metrics *metrics);

/* reserve_ms, decode_queue_ms, first_step_ms, attempts; trace_id, with room for it. */
void rt_stages_fill_timing(const struct rt_stages *stages, char trace_id[RT_TRACE_ID_SIZE],
                           Baton__V1__Timing *timing);
/* All of the record that is known here; its detail stays with the stages. */
void rt_stages_fill_record(const struct rt_stages *stages, struct rt_trace_record *record);

#endif
