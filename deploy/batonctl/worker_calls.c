#include "deploy/batonctl/worker_calls.h"

#include <stdio.h>

#include "common/base/clock.h"
#include "common/messaging/rpc.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/interrupt.h"
#include "proto/worker.pb-c.h"

struct line {
    struct waiting *all;
    struct ctl_worker_call *call;
    struct bt_rpc_client *client;
    bool over;
};

struct waiting {
    struct ctl_worker_calls *calls;
    struct bt_loop *loop;
    struct line lines[CTL_WORKER_CALLS_MAX];
    uint32_t left;
};

static void end(struct line *line, enum bt_status status, const char *text)
{
    struct waiting *all = line->all;
    line->over = true;
    all->left--;
    bt_error_set(&line->call->error, status, "%s", status == BT_OK ? "" : text);
    if (all->calls->over)
        all->calls->over(all->calls->context, line->call);
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    struct line *line = context;
    (void)response;
    if (!line->over)
        end(line, status, text[0] ? text : bt_status_name(status));
}

static void call(struct line *line)
{
    static const Baton__V1__DrainRequest drain = BATON__V1__DRAIN_REQUEST__INIT;
    static const Baton__V1__ResumeRequest resume = BATON__V1__RESUME_REQUEST__INIT;
    const struct ctl_worker_calls *calls = line->all->calls;
    bool drains = calls->verb == CTL_WORKER_DRAIN;
    const struct bt_rpc_call_spec spec = {
        .method = drains ? "baton.v1.Worker/Drain" : "baton.v1.Worker/Resume",
        .request = drains ? &drain.base : &resume.base,
        .deadline_ns = calls->until_ns,
        .on_end = on_end,
        .context = line,
    };
    struct bt_error error;
    char endpoint[CTL_WORKER_ENDPOINT_SIZE];
    enum bt_status status =
        ctl_worker_endpoint(line->all->loop, line->call->endpoint, &error, endpoint);
    if (status == BT_OK)
        status = bt_rpc_client_create(line->all->loop, endpoint, &error, &line->client);
    if (status == BT_OK)
        status = bt_rpc_client_call(line->client, &spec, &error, NULL);
    if (status != BT_OK)
        end(line, status, error.text);
}

static enum bt_status wait(struct waiting *all, struct bt_error *error)
{
    const struct ctl_worker_calls *calls = all->calls;
    while (all->left > 0) {
        enum bt_status status = bt_loop_run_once(all->loop, BT_NEVER_NS, error);
        if (status == BT_OK && calls->interrupt >= 0)
            status = ctl_interrupt_check(calls->interrupt, error);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

static void on_interrupt(void *context)
{
    (void)context; /* `wait` looks */
}

/* The signal is taken by who looks, so the loop is only woken for it. */
static enum bt_status run(struct waiting *all, struct bt_error *error)
{
    const struct ctl_worker_calls *calls = all->calls;
    enum bt_status status = bt_loop_secure(all->loop, &calls->security, error);
    if (status == BT_OK && calls->interrupt >= 0 &&
        !bt_loop_add_fd(all->loop, calls->interrupt, on_interrupt, NULL))
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "event loop: no memory");
    if (status != BT_OK)
        return status;
    all->left = calls->count;
    for (uint32_t i = 0; i < calls->count; i++) {
        all->lines[i] = (struct line){.all = all, .call = &calls->calls[i]};
        call(&all->lines[i]);
    }
    status = wait(all, error);
    for (uint32_t i = 0; i < calls->count; i++) {
        if (!all->lines[i].over)
            end(&all->lines[i], status, error->text);
        bt_rpc_client_destroy(all->lines[i].client);
    }
    return status;
}

enum bt_status ctl_worker_calls_wait(struct ctl_worker_calls *calls, struct bt_error *error)
{
    static struct waiting all;
    BT_ASSERT(calls->count <= CTL_WORKER_CALLS_MAX);
    all = (struct waiting){.calls = calls, .loop = bt_loop_create(error)};
    if (!all.loop)
        return BT_ERR_NO_MEMORY;
    enum bt_status status = run(&all, error);
    bt_loop_destroy(all.loop);
    return status;
}
