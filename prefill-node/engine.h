/*
 * The prefill engine: chunks of several prompts through the forward pass, layer after layer, until
 * each has its first token. No thread and no queue: compute.h gives it a thread, the single-process
 * program calls it directly. In a group it is rank 0's: the other ranks compute what it plans.
 *
 * The bits of a prompt's KV and logits do not depend on the chunks it was cut into, nor on the
 * prompts beside it (design: determinism).
 */
#ifndef BATON_PREFILL_NODE_ENGINE_H
#define BATON_PREFILL_NODE_ENGINE_H

#include <stdatomic.h>
#include <stdint.h>

#include "common/model/forward.h"
#include "common/model/model.h"
#include "common/model/prompt_schedule.h"
#include "common/model/sampler.h"
#include "kvtransfer/source.h"
#include "prefill-node/agreement.h"

/* One prompt. The engine's from pf_engine_add until it comes back finished or removed; what it
 * points to lives as long. */
struct pf_job {
    uint64_t serial; /* never reused in one engine: names the job where a pointer may be stale */
    uint64_t request;
    const uint32_t *tokens; /* each < vocab_size */
    uint32_t token_count;   /* >= 1 */
    const uint32_t *pages;  /* of the pool, in token order */
    const struct bt_sampling *sampling;
    const struct bt_sampler_history *history; /* NULL: no penalty needs it */
    struct kvt_push *push;                    /* NULL: nobody to push to */
    struct pf_layer_times *times;             /* NULL: nobody asks */
    int64_t arrival_ns;
    void *user;

    /* Tokens; may be read while the engine works. Those whose KV is in the pages already are the
     * caller's to set: < token_count, a multiple of BT_PAGE_TOKENS; their pages are only read. */
    _Atomic uint32_t computed;

    /* Results. */
    int64_t started_ns;     /* before the first chunk; 0: not started */
    int64_t computed_ns;    /* after the last layer of the last chunk */
    struct bt_sample first; /* token 0 */
};

struct pf_engine_options {
    const struct bt_model *model;
    struct bt_rank *rank; /* NULL: alone, and nobody counts experts */
    int64_t heartbeat_ns; /* in a group: the longest time between two agreements */
    struct bt_kv_layout layout;
    void *kv_pool;               /* [layer][page][token][dim] */
    struct kvt_staging *staging; /* see pass.h */
    uint32_t pool_pages;
    struct bt_prompt_limits limits;
    uint32_t max_jobs;   /* in the engine, waiting ones included */
    uint32_t max_tokens; /* of a prompt; in a group */
};

struct pf_engine;

enum bt_status pf_engine_create(const struct pf_engine_options *options, struct bt_error *error,
                                struct pf_engine **ret_engine);
void pf_engine_destroy(struct pf_engine *engine); /* NULL is fine; jobs inside are forgotten */

/* The calling thread will run it from now on: see bt_team_enter. */
enum bt_status pf_engine_enter(struct pf_engine *engine);

/* At most max_jobs at once: asserted, the caller counts. */
void pf_engine_add(struct pf_engine *engine, struct pf_job *job);

/* Between iterations. The job, which is the caller's again, or NULL: it is not here any more. */
struct pf_job *pf_engine_remove(struct pf_engine *engine, uint64_t serial);

uint32_t pf_engine_job_count(const struct pf_engine *engine);

/* The first that was added and is here; NULL: none. */
struct pf_job *pf_engine_first(const struct pf_engine *engine);
bool pf_engine_in_group(const struct pf_engine *engine);
int64_t pf_engine_heartbeat_ns(const struct pf_engine *engine);

struct pf_jobs {
    struct pf_job **jobs; /* valid until the next call into the engine */
    uint32_t count;
};

/* An iteration is begin, agree, then run; at least one job inside. Begin chooses the chunks and
 * gives the jobs whose first chunk is among them. */
void pf_engine_begin(struct pf_engine *engine, struct pf_jobs *ret_started);

/* With a rank, before each run and, in a group, at least every heartbeat, then without begin and
 * run: all ranks learn what begin chose. `mine` without its plan. */
enum bt_status pf_engine_agree(struct pf_engine *engine, const struct pf_intent *mine,
                               struct pf_intent *ret_all);

/* Computes the chunks. Gives the jobs that have token 0 now: out of the engine, push finished.
 * Alone it does not fail; in a group as the group does, and no job has moved then. */
enum bt_status pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished);

/* Of agree or run. */
const struct bt_error *pf_engine_error(const struct pf_engine *engine);

#endif
