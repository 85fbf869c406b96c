/* The verbs that take one worker out of service, and back. */
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/scaling.h"
#include "deploy/batonctl/worker_calls.h"

struct one_worker {
    const char *verb;
    struct ctl_scaling scaling; /* what of it there is */
    const char *endpoint;       /* --worker: no engine, and no router */
    const char *name;
    int64_t deadline_ns;
    bool resumes;
};

#define ONE_WORKER_OPTIONS(one)                                                                    \
    CTL_TARGET_OPTIONS((one).scaling.target), CTL_ENDPOINT_OPTIONS((one).scaling.target),          \
        CTL_ENGINE_OPTIONS((one).scaling.values), CTL_OUTPUT_OPTION((one).scaling.output),         \
    {                                                                                              \
        "worker", BT_OPTION_STRING, &(one).endpoint, NULL, 0, 0, NULL, "ENDPOINT",                 \
            "the worker's own endpoint, tcp://HOST:PORT, instead of a name: no router and no "     \
            "cluster is asked; without #KEY of a secured one, its key is taken to be ours",        \
            false                                                                                  \
    }

/* The worker itself, from where it is: as a hook before its end. */
static enum bt_status call_directly(const struct one_worker *one, struct bt_error *error)
{
    struct ctl_worker_call call = {.name = one->endpoint, .endpoint = one->endpoint};
    struct ctl_worker_calls calls = {
        .verb = one->resumes ? CTL_WORKER_RESUME : CTL_WORKER_DRAIN,
        .security = one->scaling.target.security,
        .until_ns =
            bt_clock_now_ns() + (one->resumes ? one->scaling.target.timeout_ns : one->deadline_ns),
        .interrupt = -1,
        .calls = &call,
        .count = 1,
    };
    enum bt_status status = ctl_worker_calls_wait(&calls, error);
    if (status != BT_OK || call.error.status == BT_OK)
        return status;
    if (call.error.status == BT_ERR_DEADLINE && !one->resumes)
        return bt_error_set(error, BT_ERR_DEADLINE,
                            "the worker still has requests; it takes nothing new, and goes on "
                            "with these");
    *error = call.error;
    return error->status;
}

static enum bt_status call_by_name(const struct one_worker *one, struct ctl_engine *engine,
                                   struct bt_error *error)
{
    return one->resumes ? engine->ops->resume(engine, one->name, error)
                        : engine->ops->drain(engine, one->name, one->deadline_ns, error);
}

static int print(const struct one_worker *one, enum bt_status status)
{
    const char *name = one->endpoint ? one->endpoint : one->name;
    const char *state = one->resumes ? "serving" : status == BT_OK ? "drained" : "draining";
    if (one->scaling.output == CTL_OUTPUT_JSON)
        return ctl_print_json(json_pack("{s:s, s:s}", "worker", name, "state", state));
    if (status == BT_OK)
        printf("%s %s\n", name, one->resumes ? "takes requests again" : "has nothing left");
    return CTL_EXIT_OK;
}

static int run(struct one_worker *one)
{
    struct bt_error error;
    enum bt_status status;
    one->scaling.verb = one->verb;
    if (one->endpoint) {
        status = call_directly(one, &error);
    } else {
        struct ctl_engine *engine;
        int code = ctl_scaling_open(&one->scaling, &engine);
        if (code != CTL_EXIT_OK)
            return code;
        status = call_by_name(one, engine, &error);
        ctl_engine_close(engine);
    }
    if (status == BT_OK)
        return print(one, status);
    if (status == BT_ERR_DEADLINE && !one->resumes)
        print(one, status);
    return ctl_fail(one->verb, &error);
}

/* The word behind the options is the worker, unless --worker says where it is. */
static int take_name(struct one_worker *one, int argc, char **argv, int used)
{
    if ((one->endpoint && used == argc) || (!one->endpoint && used + 1 == argc)) {
        one->name = argv[used];
        return CTL_EXIT_OK;
    }
    fprintf(stderr,
            "batonctl %s: expected either a worker's name behind the options, or "
            "--worker ENDPOINT\n",
            one->verb);
    return CTL_EXIT_USAGE;
}

static int run_named(struct one_worker *one, int argc, char **argv, int used)
{
    int code = take_name(one, argc, argv, used);
    return code == CTL_EXIT_OK ? run(one) : code;
}

int ctl_verb_drain(int argc, char **argv)
{
    struct one_worker one = {.verb = "drain"};
    int used;
    const struct bt_option options[] = {
        ONE_WORKER_OPTIONS(one),
        {"deadline", BT_OPTION_DURATION, &one.deadline_ns, "60s", 0, 86400, NULL, NULL,
         "how long to wait until nothing is left on it", false},
        {0},
    };
    int code = ctl_parse(options,
                         "batonctl drain WORKER [OPTIONS]\n\n"
                         "The worker takes nothing new, until it is resumed or ends. Exit code 1: "
                         "something is left\non it at the deadline.\n\n"
                         "  batonctl drain decode-1\n"
                         "  batonctl drain --worker tcp://127.0.0.1:6001 --deadline 25s",
                         argc, argv, &used);
    return code < 0 ? run_named(&one, argc, argv, used) : code;
}

int ctl_verb_resume(int argc, char **argv)
{
    struct one_worker one = {.verb = "resume", .resumes = true};
    int used;
    const struct bt_option options[] = {ONE_WORKER_OPTIONS(one), {0}};
    int code = ctl_parse(options,
                         "batonctl resume WORKER [OPTIONS]\n\n"
                         "It takes requests again after a drain.\n\n"
                         "  batonctl resume decode-1",
                         argc, argv, &used);
    return code < 0 ? run_named(&one, argc, argv, used) : code;
}
