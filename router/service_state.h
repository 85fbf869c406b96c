/*
 * The inside of the router service, shared by its parts: service.c (life), submission.c (requests
 * as they come), dispatch.c (the core's actions, the workers' events), registry.c (what workers
 * call), service_metrics.c, service_status.c, service_stats.c, status_json.c and monitor.c (looking
 * in). Loop thread only.
 */
#ifndef BATON_ROUTER_SERVICE_STATE_H
#define BATON_ROUTER_SERVICE_STATE_H

#include "common/base/map.h"
#include "common/kvcache/layout.h"
#include "router/checkpoint.h"
#include "router/events.h"
#include "router/monitor.h"
#include "router/orphans.h"
#include "router/request_id.h"
#include "router/service.h"
#include "router/stream.h"
#include "router/trace.h"
#include "router/worker_links.h"
#include "router/worker_prefixes.h"

#define RT_HTTP_ENDPOINT_SIZE 256

struct rt_model_len {
    uint32_t length;
    uint64_t liveness; /* of the core */
};

struct rt_service {
    struct bt_loop *loop;
    struct rt_service_options options; /* strings are not kept */
    char *model_name;
    char http_endpoint[RT_HTTP_ENDPOINT_SIZE];
    struct rt_checkpoint checkpoint;
    struct bt_tokenizer *tokenizer;
    struct bt_chat_form *chat_form;
    struct rt_tokenization *tokenization;

    struct rt_core *core;
    struct rt_access *access;
    struct rt_refusal refusal; /* the last */
    struct bt_rpc_method *methods;
    struct bt_rpc_server *server;
    struct bt_loop_source *timer;
    bool draining;
    int64_t draining_since_ns;
    bool pumping; /* actions are being carried out */
    bool closing;
    int64_t started_ns, started_unix;

    uint64_t incarnation;       /* random, of this process */
    struct bt_map streams;      /* id -> struct rt_stream, until its END */
    struct rt_stream *catching; /* have somebody new who needs all there is: next_catching */
    struct rt_orphans *orphans;
    struct rt_output_buffer output;

    struct rt_worker_links links;       /* as long as the core knows the worker */
    bool links_changed;                 /* one broke: there is something to close */
    uint64_t liveness;                  /* the core's, when links were tended last */
    struct rt_model_len *max_model_len; /* counted when it is asked for and may have changed */
    struct bt_fingerprint fingerprint;  /* of the first worker, while any is left */
    bool has_fingerprint;
    struct rt_worker_prefixes *prefixes;

    struct rt_events *events;
    struct rt_trace_store *traces;
    struct rt_scrape *scrape;

    struct bt_metrics *registry;
    struct rt_service_metrics metrics;
    struct rt_monitor *monitor;
};

/* dispatch.c: time, then actions until there are none. Not from inside a sink or an end of a call;
 * there, the round's end does it. */
void rt_service_pump(struct rt_service *service);

struct rt_worker_link *rt_service_link(const struct rt_service *service, rt_worker_ref ref);
/* service_trace.c: the request is over. */
void rt_service_trace_keep(struct rt_service *service, struct rt_stream *stream,
                           enum rt_finish finish, int64_t now_ns);
/* PrefillDone of one that is over. */
void rt_service_trace_late_done(struct rt_service *service, uint64_t request, uint32_t attempt,
                                const Baton__V1__PrefillDone *done);

/* It is closed or freed in this round. */
void rt_service_trouble(struct rt_worker_link *link);
/* False: only what is lost is left, or nothing. */
bool rt_service_has_live_worker(const struct rt_service *service);

/* service_status.c */
extern const char *const rt_role_names[];          /* [enum rt_role] */
extern const char *const rt_worker_state_names[];  /* [enum rt_worker_state] */
extern const char *const rt_request_state_names[]; /* [enum rt_request_state] */

/* Numbers that contradict each other are cut to what can be. */
void rt_load_from_message(const Baton__V1__RankLoad *message, struct rt_load *ret_load);

/* submission.c: into the core, or onto the rank that runs it. Errors: of rt_core_submit. */
enum bt_status rt_service_enter(struct rt_service *service, struct rt_stream *stream,
                                struct bt_error *error);
/* The same of one whose submission has succeeded long ago; NULL is fine. */
void rt_service_follow(struct rt_service *service, struct rt_stream *stream);
/* What decode rank `link` goes on with by itself, as it says. */
void rt_service_hear_orphans(struct rt_service *service, struct rt_worker_link *link,
                             Baton__V1__Orphan *const *orphans, size_t count);

/* service_events.c: what the service and its parts do, as events. */
rt_change_fn rt_service_on_change;
rt_access_reloaded_fn rt_service_on_reload;
void rt_service_tell_refused(struct rt_service *service, const char *worker_id, const char *why);
extern const struct bt_rpc_method rt_events_methods[];

/* registry.c; handlers get the service. Ends with a NULL name. */
extern const struct bt_rpc_method rt_registry_methods[];

#endif
