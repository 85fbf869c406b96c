/*
 * The router's side of one worker process: an RPC client to its server, the calls on it, and what
 * the worker said of itself when it registered. Loop thread only.
 *
 * A link is up or down. A decode rank's link lives by its Steps stream, a prefill worker's by its
 * connection: when that ends, the link breaks once, the worker counts as lost, and only a new
 * registration opens the link again. A decode rank whose Steps stream ended lets go of all requests
 * of this router, so what was under way on a broken link may run elsewhere at once.
 *
 * Cancels to a decode rank are kept until the rank has answered them, over a broken link too: they
 * are the first thing the next connection carries.
 */
#ifndef BATON_ROUTER_WORKER_LINK_H
#define BATON_ROUTER_WORKER_LINK_H

#include "common/base/process.h"
#include "common/messaging/rpc.h"
#include "proto/registry.pb-c.h"
#include "proto/worker.pb-c.h"
#include "router/core.h"

#define RT_LINK_ENDPOINT_SIZE  384 /* a host name as long as they come, and a key */
#define RT_LINK_TRANSPORT_SIZE 32
/* More unanswered cancels than this, and the link is cut: the rank then drops everything. */
#define RT_LINK_MAX_CANCELS 4096

struct rt_service;
struct rt_run; /* one Prefill/Run call */

/* What a prefill worker wrote into decode ranks: in all, in this and the last window of time. */
struct rt_pushed {
    uint64_t bytes, window_bytes, before_bytes;
    int64_t window_ns; /* its begin; 0: nothing yet */
};

struct rt_worker_link {
    struct rt_service *service;
    rt_worker_ref ref;
    char id[RT_WORKER_ID_SIZE];
    uint64_t incarnation;
    enum rt_role role;
    uint64_t group; /* incarnation; 0: of one rank */
    uint32_t max_model_len;
    char endpoint[RT_LINK_ENDPOINT_SIZE];
    char transport[RT_LINK_TRANSPORT_SIZE];      /* what it offers, the best first: "shm,tcp" */
    char used_transport[RT_LINK_TRANSPORT_SIZE]; /* of the last handoff; "": none yet */
    struct bt_process_id process;
    Baton__V1__KvEndpoint *kv; /* decode; protobuf-c allocated */
    uint64_t appeared;         /* decode: order of appearance of kv; 0: it has not */
    uint64_t told;             /* prefill: what appeared up to this was told to it */
    uint32_t told_count;       /* and how much */

    uint64_t router_incarnation;  /* as the worker knows us, since the first connection */
    struct bt_rpc_client *client; /* NULL: down */
    bool up;                      /* the worker answered on this connection */
    bool broken;                  /* closed at the next occasion */
    bool left;                    /* it or a rank of its group deregistered: no loss */
    bool refused;                 /* the last that was heard: nobody listens there */
    struct rt_cancel *cancels;
    uint32_t cancel_count;
    struct bt_loop_source *retry; /* cancels that did not get through */

    struct rt_pushed pushed;

    struct rt_token *tokens; /* scratch for a step */
    uint32_t token_capacity;

    /* In the service: worker_links.c. */
    struct rt_worker_link *previous, *next;
    struct rt_worker_link *same_hash, *same_group;
    bool troubled;
    struct rt_worker_link *previous_troubled, *next_troubled;
};

/* A transport's name as a peer gave it: what is not printable ASCII becomes '?', the rest is cut.
 */
void rt_transport_copy(const char *name, char ret_name[RT_LINK_TRANSPORT_SIZE]);

/* NULL: no memory. The caller fills in what the worker said. */
struct rt_worker_link *rt_worker_link_create(struct rt_service *service, struct bt_loop *loop,
                                             rt_worker_ref ref);
void rt_worker_link_destroy(struct rt_worker_link *link); /* NULL is fine */

enum bt_status rt_worker_link_open(struct rt_worker_link *link, struct bt_loop *loop,
                                   uint64_t router_incarnation, struct bt_error *error);
/* Ends every call; rt_service_on_run_ended and on_reserved run in here. */
void rt_worker_link_close(struct rt_worker_link *link);

/* The answer comes by rt_service_on_reserved, unless this fails. `deadline_ns`: of the request. */
enum bt_status rt_worker_link_reserve(struct rt_worker_link *link, uint32_t attempt,
                                      int64_t deadline_ns,
                                      const Baton__V1__ReserveRequest *request);
/* The answer comes by rt_service_on_adopted, unless this fails. */
enum bt_status rt_worker_link_adopt(struct rt_worker_link *link,
                                    const Baton__V1__AdoptRequest *request);
/* Events and the end come by rt_service_on_run_…, unless this fails. `ret_run` is valid until the
 * end was told. */
enum bt_status rt_worker_link_run(struct rt_worker_link *link, uint32_t attempt,
                                  int64_t deadline_ns, const Baton__V1__PrefillRequest *request,
                                  struct rt_run **ret_run);
void rt_run_cancel(struct rt_run *run);

/* epoch 0: whatever the rank holds of the request. */
void rt_worker_link_cancel(struct rt_worker_link *link, uint64_t request, uint64_t epoch);

/* ---- what a link tells the service (dispatch.c) */

void rt_service_on_link_up(struct rt_worker_link *link);
void rt_service_on_link_broken(struct rt_worker_link *link, const char *why);
void rt_service_on_step(struct rt_worker_link *link, const Baton__V1__StepEvent *step);
/* `response` is NULL unless `status` is BT_OK. */
void rt_service_on_reserved(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                            enum bt_status status, const char *text,
                            const Baton__V1__ReserveResponse *response);
void rt_service_on_adopted(struct rt_worker_link *link, uint64_t request, uint64_t epoch,
                           enum bt_status status, const char *text);
void rt_service_on_run_event(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                             const Baton__V1__PrefillEvent *event);
void rt_service_on_run_ended(struct rt_worker_link *link, uint64_t request, uint32_t attempt,
                             struct rt_run *run, enum bt_status status, const char *text);

#endif
