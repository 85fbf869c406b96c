/*
 * One run of a load against a router: an event loop that sends what is due and times what comes.
 * Requests of an open loop are sent when they are due, whatever the cluster does, and their times
 * count from then.
 */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_RUN_H
#define BATON_DEPLOY_BATONCTL_BENCH_RUN_H

#include "common/messaging/loop.h"
#include "common/messaging/rpc.h"
#include "deploy/batonctl/bench_arrivals.h"
#include "deploy/batonctl/bench_dataset.h"
#include "deploy/batonctl/bench_lengths.h"
#include "deploy/batonctl/bench_prompt.h"
#include "deploy/batonctl/bench_result.h"
#include "deploy/batonctl/bench_trace.h"

/* Each is one to the router, which allows so many calls of it. */
#define CTL_BENCH_CLIENTS_MAX 16
#define CTL_BENCH_OPEN_MAX    (CTL_BENCH_CLIENTS_MAX * BT_RPC_MAX_CALLS_PER_PEER)
#define CTL_BENCH_PAUSE_MS    100 /* of a closed loop's place whose request failed */

struct ctl_bench_load {
    struct ctl_bench_arrivals arrivals; /* as at the beginning */
    uint32_t concurrency;               /* of a closed loop */
    uint64_t requests;                  /* that count; 0: no limit */
    uint64_t warmup;                    /* that come before them */
    int64_t duration_ns;                /* nothing is sent later; 0: no limit */
    int64_t request_timeout_ns;
    struct ctl_bench_slo slo;

    struct ctl_bench_prompts prompts;
    uint64_t first_index; /* so that the prompts of one run are not those of another */
    struct ctl_bench_lengths input, output;
    uint32_t context; /* what is drawn and does not fit is cut; 0: nothing is known */
    bool text;        /* prompts as text */
    bool natural_end; /* answers may end by themselves */
    double temperature;
    const char *model, *api_key; /* NULL: none */

    const struct ctl_bench_trace *trace; /* NULL: none */
    double time_scale, length_scale;
    const struct ctl_bench_dataset *dataset; /* NULL: none */
};

/* What is told of a request when it is over, beside its outcome. Texts are flat. */
struct ctl_bench_answer {
    const char *request_id, *finish_reason, *prefill_worker, *decode_worker;
    double router_ttft_s; /* as the router timed it; finite */
};
typedef void ctl_bench_ended_fn(void *context, const struct ctl_bench_outcome *outcome,
                                const struct ctl_bench_answer *answer);

struct ctl_bench_clients {
    struct bt_loop *loop;
    struct bt_rpc_client *clients[CTL_BENCH_CLIENTS_MAX];
    uint32_t count;
};

/*
 * Runs until all is over, or the loop is stopped from elsewhere: then what is open is `unfinished`,
 * the clients are destroyed, and the result says that it was interrupted. `progress`: lines on
 * stderr. `ended` may be NULL. Errors are those of this process; what becomes of requests is in the
 * result, which the caller finishes in any case.
 */
enum bt_status ctl_bench_run(struct ctl_bench_clients *clients, const struct ctl_bench_load *load,
                             bool progress, ctl_bench_ended_fn *ended, void *context,
                             struct bt_error *error, struct ctl_bench_result *ret_result);

#endif
