/*
 * The router's decisions, pure: events in, actions out, the clock is an argument.
 *
 * The core knows workers (role, load, liveness) and requests (where each is, what it was given,
 * how often it was tried). It does no I/O, reads no clock and holds no text: tests and the
 * simulator drive the same code as the process does. One thread.
 *
 *   QUEUED -> RESERVING (decode rank chosen) -> PREFILLING (prefill worker chosen) -> DECODING ->
 * END
 *
 * or, where the rank computes the prompt itself (prompt_way.h), from RESERVING to DECODING.
 *
 * Whatever happens, a request gets exactly one RT_ACTION_END. A request whose attempt fails through
 * no fault of its own (worker lost, handoff failed, pages preempted) goes back to the queue's head
 * and runs again from its prompt: tokens are a function of (prompt, parameters, seed, position), so
 * those that the client has already are recognised by index and not sent twice.
 *
 * Whose turn it is, says the queue (request_queue.h): priorities, fair shares of tenants, short
 * prompts first with ageing. Who runs it, say predictions: of a prefill worker's time, from what it
 * reported (prefill_line.h), and of a decode rank's pages. A request that would miss its objective
 * is shed when it is submitted. No event and no decision looks at all workers or all requests.
 *
 * A worker may be one rank of a group that serves as one worker: its state is the worst of all
 * ranks, and none is READY before all are there. Of a decode group every rank registers, has its
 * own load and gets its own requests; of a prefill group rank 0 alone.
 */
#ifndef BATON_ROUTER_CORE_H
#define BATON_ROUTER_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define RT_WORKER_ID_SIZE 64
#define RT_MAX_WORKERS    65536 /* ranks */
#define RT_GROUP_SIZE_MAX 64
#define RT_MAX_TENANTS    4096
#define RT_MAX_WEIGHT     10000
#define RT_PRIORITIES     4
#define RT_CACHED_MAX     8
/* A client that was refused is asked to wait for so long at least. */
#define RT_RETRY_AFTER_MIN_NS (INT64_C(100) * 1000000)

enum rt_role { RT_ROLE_PREFILL, RT_ROLE_DECODE };

enum rt_worker_state {
    RT_WORKER_CONNECTING, /* registered; the router's own connection to it, or a rank of its group,
                           * is not up yet */
    RT_WORKER_READY,
    RT_WORKER_SILENT,   /* heartbeats are late: gets nothing new, loses nothing */
    RT_WORKER_DRAINING, /* gets nothing new */
    RT_WORKER_LOST,     /* process or connection gone: its requests run elsewhere */
};

/* Of one rank, as in RankLoad. */
struct rt_load {
    uint32_t pages_total, pages_free, pages_reserved, pages_ready, pages_quarantined;
    uint32_t running, waiting, max_running;
    uint64_t waiting_tokens, kv_tokens;
    uint32_t pages_expected; /* decode: that all its requests are expected to have in the end */
};

/* As GroupMember. incarnation 0: a worker of one rank. */
struct rt_group_member {
    uint64_t incarnation;
    char name[RT_WORKER_ID_SIZE];
    uint32_t rank, size; /* rank < size <= RT_GROUP_SIZE_MAX */
};

struct rt_worker_info {
    char id[RT_WORKER_ID_SIZE];
    uint64_t incarnation;
    enum rt_role role;
    struct rt_group_member group;
    uint32_t max_model_len;
    uint32_t local_prefill_tokens; /* decode: the longest prompt that it computes itself; 0: none */
    struct rt_load load;
};

/* How the core names a worker in actions: an index that is never reused for another incarnation
 * while an action or request may still name it. */
typedef uint32_t rt_worker_ref;
#define RT_NO_WORKER UINT32_MAX

enum rt_request_state { RT_QUEUED, RT_RESERVING, RT_PREFILLING, RT_DECODING };

/* A prefill worker that has the first `tokens` of the prompt in its cache. */
struct rt_cached {
    rt_worker_ref worker;
    uint32_t tokens;
};

struct rt_request_spec {
    uint64_t id; /* new, not 0 */
    uint32_t prompt_tokens;
    uint32_t max_tokens;
    int64_t arrival_ns;
    int64_t deadline_ns;   /* BT_NEVER_NS: none */
    uint32_t tenant;       /* < RT_MAX_TENANTS */
    uint32_t priority;     /* < RT_PRIORITIES; 0 goes first */
    uint32_t prompt_class; /* requests of a tenant that generate alike share a number */
    int64_t slo_ttft_ns;   /* shed if the first token is predicted to come later; 0: never */
    const struct rt_cached *cached; /* [cached_count], most tokens first; copied, RT_CACHED_MAX */
    uint32_t cached_count;
};

/* Of one tenant; until set, weight 1 and no limits. */
struct rt_tenant_limits {
    uint32_t weight;      /* 1..RT_MAX_WEIGHT: its share among tenants that wait */
    uint32_t max_running; /* taken from the queue and not over; 0: no limit */
    uint32_t max_waiting; /* 0: the queue's */
};

enum rt_finish {
    RT_FINISH_STOP, /* EOS, or the service found a stop string */
    RT_FINISH_LENGTH,
    RT_FINISH_CANCELLED, /* by the client */
    RT_FINISH_DEADLINE,
    RT_FINISH_ERROR, /* gave up; status and text say why */
};

/* How a decode rank is chosen among those that have the pages. */
enum rt_decode_policy {
    RT_DECODE_KV_UTILIZATION, /* least share of its pages in use, with the request */
    RT_DECODE_ROUND_ROBIN,
    RT_DECODE_REMAINING_SLOTS, /* most sequences of the usual size would still run at once */
    RT_DECODE_MEAN_KV_LENGTH,  /* shortest sequences: attention of a step costs their length */
    RT_DECODE_POWER_OF_TWO,    /* the less utilised one of two drawn at random */
};
extern const char *const rt_decode_policy_names[]; /* by policy, as in a flag; ends with NULL */

/* Whether decode ranks prefill prompts themselves (prompt_way.h). */
enum rt_local_prefill {
    RT_LOCAL_PREFILL_AUTO, /* where that is cheaper, or no prefill worker is there */
    RT_LOCAL_PREFILL_NEVER,
    RT_LOCAL_PREFILL_ALWAYS, /* no prefill worker gets anything */
};
extern const char *const rt_local_prefill_names[]; /* by value, as in a flag; ends with NULL */

/* Which way an attempt went, and why. */
enum rt_way {
    RT_WAY_REMOTE_ONLY,  /* no rank offered, or the mode is NEVER */
    RT_WAY_REMOTE_BITS,  /* a prefill worker of several ranks is there: other bits */
    RT_WAY_REMOTE_SAFER, /* it lost a worker or failed before */
    RT_WAY_REMOTE_CHEAPER,
    RT_WAY_LOCAL_CHEAPER,
    RT_WAY_LOCAL_ALONE, /* no prefill worker is there */
    RT_WAY_LOCAL_ONLY,  /* the mode is ALWAYS, or the client has tokens with these bits */
};
#define RT_WAYS (RT_WAY_LOCAL_ONLY + 1)
extern const char *const rt_way_names[RT_WAYS]; /* the reason, for metrics */

/* The circuit breaker of a worker: worker_health.h. */
enum rt_breaker { RT_BREAKER_CLOSED, RT_BREAKER_OPEN, RT_BREAKER_HALF_OPEN, RT_BREAKER_PROBING };

/* A generated token as it arrived; `payload` is the I/O layer's (logprobs), passed through. */
struct rt_token {
    uint32_t index;
    uint32_t token;
    const void *payload;
};

enum rt_action_kind {
    RT_ACTION_RESERVE,        /* ask `decode` for pages: answer with rt_core_reserved */
    RT_ACTION_PREFILL,        /* start Prefill/Run on `prefill` with the landing of this attempt */
    RT_ACTION_CANCEL_PREFILL, /* stop the run of this attempt */
    RT_ACTION_CANCEL_DECODE, /* Decode/Cancel for this attempt, also if its Reserve is unanswered */
    RT_ACTION_TOKENS,        /* new tokens in order, none twice */
    RT_ACTION_END,           /* the last one of a request */
};

struct rt_action {
    enum rt_action_kind kind;
    uint64_t request;
    uint32_t attempt;              /* from 1; every RESERVE opens a new one */
    uint64_t epoch;                /* CANCEL_DECODE: 0 while the Reserve is unanswered */
    rt_worker_ref prefill;         /* PREFILL, CANCEL_PREFILL */
    rt_worker_ref decode;          /* RESERVE, PREFILL, CANCEL_DECODE */
    bool full;                     /* RESERVE: pages for max_tokens */
    uint32_t pages;                /* RESERVE: that it is expected to need in the end */
    bool local;                    /* RESERVE: with the prompt; no PREFILL follows */
    const struct rt_token *tokens; /* TOKENS; valid until the next call into the core */
    uint32_t token_count;
    enum rt_finish finish; /* END */
    enum bt_status status; /* END with RT_FINISH_ERROR */
    const char *text;      /* END with RT_FINISH_ERROR; valid until the next call */
};

/* What operators hear of; texts are good during the call. */
enum rt_change_kind { RT_CHANGE_STATE, RT_CHANGE_BREAKER, RT_CHANGE_POISONED };
struct rt_change {
    enum rt_change_kind kind;
    const char *worker_id;
    enum rt_role role;
    enum rt_worker_state state, before; /* STATE; of one that is new, before it is LOST */
    const char *why;                    /* LOST, POISONED */
    bool open;                          /* BREAKER */
    uint64_t request;                   /* POISONED */
    uint32_t deaths;
};
/* Calls nothing of the core. */
typedef void rt_change_fn(void *context, const struct rt_change *change);

struct rt_core_options {
    rt_change_fn *on_change; /* NULL: nobody */
    void *change_context;

    uint32_t queue_capacity; /* waiting requests; more are refused with EXHAUSTED */
    /* Of a request that may fail; refusals, preemptions and lost workers are not counted. */
    uint32_t max_attempts;
    /* Before requests of a class ended: projected KV is prompt + min(max_tokens, this). Later the
     * mean of what they generated takes its place. */
    uint32_t expected_output_tokens;
    int64_t silent_after_ns;  /* without heartbeat */
    int64_t lost_after_ns;    /* silent for so long: its requests are run elsewhere */
    int64_t reserve_retry_ns; /* after every decode rank refused: try again this much later */

    /* A prefill worker is given work while it has less than this ahead; > 0. */
    int64_t prefill_depth_ns;
    /* What a prefill takes before any worker reported one. */
    int64_t prefill_base_ns, prefill_token_ns;

    enum rt_decode_policy decode_policy;
    enum rt_local_prefill local_prefill;
    uint64_t seed; /* of draws */

    /* A prompt lets pass what comes within patience * its expected time (request_queue.h); 0: all
     * in order of submission. */
    double patience;
    int64_t promote_after_ns; /* waiting makes up for a level of priority; 0: never */

    uint32_t breaker_failures; /* of a worker within the window open its breaker; 0: never */
    int64_t breaker_window_ns;
    int64_t breaker_open_ns, breaker_open_max_ns; /* at first, and after doubling */
    uint32_t flap_lives; /* so many lives in a row shorter than flap_life_ns: kept out; 0: never */
    int64_t flap_life_ns;
    uint32_t poison_deaths; /* workers that a request may kill: poison.h; 0: any number */
    uint32_t retry_budget;  /* failed attempts repeated in RT_RETRY_WINDOW_NS; 0: no limit */
};

#define RT_RETRY_WINDOW_NS (INT64_C(10) * 1000000000)

struct rt_core;

struct rt_core *rt_core_create(const struct rt_core_options *options); /* NULL: no memory */
void rt_core_destroy(struct rt_core *core);

/* ---- workers */

/* ALREADY_EXISTS: a live worker has this id with another incarnation, or this rank of this group.
 * MISMATCH: ranks of one group incarnation say different things of it, or this worker said
 * something else before; names the field. The same incarnation again is a re-registration: fine,
 * gives the same ref. */
enum bt_status rt_core_worker_register(struct rt_core *core, const struct rt_worker_info *info,
                                       int64_t now_ns, struct bt_error *error,
                                       rt_worker_ref *ret_worker);
/* The router's connection to the worker (RPC, and for decode the Steps stream) is up: READY. */
void rt_core_worker_connected(struct rt_core *core, rt_worker_ref worker, int64_t now_ns);
/* NOT_FOUND: unknown incarnation, it must register again. */
enum bt_status rt_core_worker_heartbeat(struct rt_core *core, const char *id, uint64_t incarnation,
                                        const struct rt_load *load, bool draining, int64_t now_ns);
/* Load that came with a step, fresher than the heartbeat's. */
void rt_core_worker_load(struct rt_core *core, rt_worker_ref worker, const struct rt_load *load);
/* Process or connection gone; all ranks of its group are lost with it. Any number of times. */
void rt_core_worker_lost(struct rt_core *core, rt_worker_ref worker, const char *why,
                         int64_t now_ns);
/* The same of one that deregistered: nobody is blamed for its end. */
void rt_core_worker_left(struct rt_core *core, rt_worker_ref worker, int64_t now_ns);

/* ---- requests, from the client's side */

/* EXHAUSTED: the queue is full, the tenant has its limit waiting, or the first token would come too
 * late; *ret_retry_after_ns (may be NULL) says when it may be worth another try. INVALID_ARGUMENT:
 * can never fit any registered decode rank (says by how much). UNAVAILABLE: no worker of a role
 * has ever registered; of prefill, where no decode rank computes such prompts itself. */
enum bt_status rt_core_submit(struct rt_core *core, const struct rt_request_spec *spec,
                              int64_t now_ns, struct bt_error *error, int64_t *ret_retry_after_ns);
/* Whether a request of this tenant would find room, whatever it is: EXHAUSTED and UNAVAILABLE as
 * rt_core_submit, but for the time to the first token. One that is refused counts as shed. */
enum bt_status rt_core_room(struct rt_core *core, uint32_t tenant, int64_t now_ns,
                            struct bt_error *error, int64_t *ret_retry_after_ns);
/* The time to the first token of such a request, were it submitted now. 0: nothing is known. */
int64_t rt_core_predict_ttft_ns(struct rt_core *core, const struct rt_request_spec *spec,
                                int64_t now_ns);
/* NO_MEMORY. tenant < RT_MAX_TENANTS, weight in its range. */
enum bt_status rt_core_tenant_set(struct rt_core *core, uint32_t tenant,
                                  const struct rt_tenant_limits *limits);
/*
 * A request that `decode` runs already, as a router before has left it there: it is DECODING at
 * once, waits in no queue and is not shed. Its tokens come by rt_core_decoded, all from number 0.
 * Where it turns out that the rank does not have it, rt_core_decoded says that it ended with
 * UNAVAILABLE, and it runs anew. ALREADY_EXISTS: the id is in use. UNAVAILABLE: the worker is lost,
 * or is no decode worker. NO_MEMORY.
 */
enum bt_status rt_core_adopt(struct rt_core *core, const struct rt_request_spec *spec,
                             rt_worker_ref decode, uint64_t epoch, int64_t now_ns,
                             struct bt_error *error);
/* From now on it has this deadline, BT_NEVER_NS: none. Unknown ids are fine. */
void rt_core_set_deadline(struct rt_core *core, uint64_t request, int64_t deadline_ns);
/* The client went away, or the service found a stop string (then RT_FINISH_STOP). Unknown ids are
 * fine: it ended meanwhile. */
void rt_core_finish(struct rt_core *core, uint64_t request, enum rt_finish finish, int64_t now_ns);

/* ---- requests, from the workers' side. Late and repeated ones (another attempt or epoch, a
 * request that ended) are harmless; where one shows that a worker still holds something of an
 * attempt that is over, the matching cancel action is emitted. */

void rt_core_reserved(struct rt_core *core, uint64_t request, uint32_t attempt,
                      rt_worker_ref decode, enum bt_status status, const char *text, uint64_t epoch,
                      int64_t now_ns);
/* Before rt_core_reserved: so many pages has the rank taken for it, which may be more than the core
 * projected. */
void rt_core_landed(struct rt_core *core, uint64_t request, uint32_t attempt, uint32_t pages);
void rt_core_first_token(struct rt_core *core, uint64_t request, uint32_t attempt,
                         const struct rt_token *token, int64_t now_ns);
/* What the worker reports of its prefill: the prediction learns of it. computed_tokens 0: as many
 * as the core believed. */
void rt_core_prefill_done(struct rt_core *core, uint64_t request, uint32_t attempt,
                          int64_t compute_ns, uint32_t computed_tokens);
/* What a decode rank reports of a prompt that it computed itself, before its first token. */
void rt_core_local_prefill_done(struct rt_core *core, rt_worker_ref decode, uint64_t request,
                                uint64_t epoch, int64_t compute_ns);
/* The Run call ended: BT_OK after the handoff was accepted. */
void rt_core_prefill_ended(struct rt_core *core, uint64_t request, uint32_t attempt,
                           enum bt_status status, const char *text, int64_t now_ns);
/* From Steps. `finished`: the rank ended it with `status` (BT_OK: `finish` is STOP or LENGTH;
 * PREEMPTED, CANCELLED, DEADLINE, or an error). */
void rt_core_decoded(struct rt_core *core, rt_worker_ref decode, uint64_t request, uint64_t epoch,
                     const struct rt_token *tokens, uint32_t token_count, bool finished,
                     enum rt_finish finish, enum bt_status status, const char *text,
                     int64_t now_ns);

/* ---- time and output */

void rt_core_tick(struct rt_core *core, int64_t now_ns);
int64_t rt_core_next_deadline_ns(const struct rt_core *core); /* BT_NEVER_NS: none */

/* False: nothing to do. Call until then after every group of events. */
bool rt_core_next_action(struct rt_core *core, struct rt_action *ret_action);

/* ---- looking in */

struct rt_request_view {
    uint64_t id;
    enum rt_request_state state;
    uint32_t attempt, prompt_tokens, generated_tokens;
    rt_worker_ref prefill, decode;
    uint64_t epoch; /* on the decode rank; 0: it has not answered */
    int64_t arrival_ns, dispatched_ns /* sent to prefill, 0: not yet */;
    uint32_t tenant;
    bool local; /* its attempt is: DECODING from the time that its prompt is computed */
};
struct rt_worker_view {
    const struct rt_worker_info *info; /* with the latest load */
    enum rt_worker_state state;
    int64_t last_heartbeat_ns;
    uint32_t projected_pages; /* decode: what running and coming requests are expected to need */
    const char *why_lost;     /* "" unless LOST */
    enum rt_breaker breaker;
    int64_t breaker_until_ns; /* OPEN: when it is tried again */
    uint32_t requests;        /* of this core, that are on it */
    int64_t ahead_ns;         /* prefill: predicted time until it can begin a new prompt */
    double prefill_base_ns, prefill_token_ns; /* its line, of decode that of local prompts */
};
/* Why a worker was chosen. */
enum rt_choice {
    RT_CHOICE_ONLY,   /* no other of its role gets requests now */
    RT_CHOICE_PREFIX, /* prefill: it has the beginning of the prompt */
    RT_CHOICE_POLICY, /* prefill: the least predicted time; decode: the policy */
    RT_CHOICE_LOCAL,  /* decode: it computes the prompt itself */
    RT_CHOICES,
};
extern const char *const rt_choice_names[RT_CHOICES];
/* What an attempt ended with that was followed by another. */
enum rt_retry_cause {
    RT_RETRY_WORKER_LOST,
    RT_RETRY_REFUSED, /* no room, no breakage */
    RT_RETRY_PREEMPTED,
    RT_RETRY_RESERVE_FAILED,
    RT_RETRY_HANDOFF_FAILED, /* prefill, transfer or what follows */
    RT_RETRY_CAUSES,
};
extern const char *const rt_retry_cause_names[RT_RETRY_CAUSES];
/* Since the core was made. */
struct rt_core_counts {
    uint64_t submitted, decisions;
    uint64_t adopted;                           /* of the submitted */
    uint64_t shed_queue, shed_tenant, shed_slo; /* refused at submit, and why */
    uint64_t ways[RT_WAYS];                     /* decisions, by the way that was chosen */
    uint64_t retries, preemptions, refusals; /* attempts that were followed by another, and why */
    uint64_t poisoned, budget_refused;       /* ended for it */
    uint64_t breakers_opened, kept_out;
    uint64_t chosen[2][RT_CHOICES]; /* [enum rt_role] */
    uint64_t retried[RT_RETRY_CAUSES];
};
bool rt_core_request(const struct rt_core *core, uint64_t id, struct rt_request_view *ret_view);
/* The tokens that its client has, valid until the next call into the core; 0: none, or not known.
 */
uint32_t rt_core_delivered(const struct rt_core *core, uint64_t id, const uint32_t **ret_tokens);
bool rt_core_worker(const struct rt_core *core, rt_worker_ref worker,
                    struct rt_worker_view *ret_view);
/* Start with *cursor = 0; false at the end. */
bool rt_core_next_request(const struct rt_core *core, size_t *cursor,
                          struct rt_request_view *ret_view);
bool rt_core_next_worker(const struct rt_core *core, size_t *cursor, rt_worker_ref *ret_worker);
/* The lost ones that are still known, by time of loss, from RT_NO_WORKER to RT_NO_WORKER. */
rt_worker_ref rt_core_next_lost(const struct rt_core *core, rt_worker_ref worker);
uint32_t rt_core_live_workers(const struct rt_core *core); /* that are not lost */
/* Another one after each change of which workers are live, known, or can hold how much. */
uint64_t rt_core_liveness(const struct rt_core *core);
uint32_t rt_core_queued(const struct rt_core *core);
void rt_core_counts(const struct rt_core *core, struct rt_core_counts *ret_counts);

#endif
