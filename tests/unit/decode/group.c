#include "tests/unit/decode/group.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"

/* ------------------------------------------------------------------ registry */

static struct rank *rank_named(struct group *group, const char *worker_id)
{
    for (uint32_t r = 0; r < group->size; r++) {
        if (strcmp(group->ranks[r].worker_id, worker_id) == 0) {
            return &group->ranks[r];
        }
    }
    fail_msg("who is %s?", worker_id);
    return NULL;
}

static void handle_register(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *message)
{
    const Baton__V1__RegisterRequest *request = (const Baton__V1__RegisterRequest *)message;
    Baton__V1__RegisterResponse response = BATON__V1__REGISTER_RESPONSE__INIT;
    struct rank *rank = rank_named(context, request->worker_id);
    assert_non_null(request->group);
    rank->member = *request->group;
    snprintf(rank->member_name, sizeof(rank->member_name), "%s", request->group->name);
    snprintf(rank->endpoint, sizeof(rank->endpoint), "%s", request->control_endpoint);
    rank->registered = true;
    response.heartbeat_ms = 1000;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_heartbeat(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *message)
{
    const Baton__V1__HeartbeatRequest *request = (const Baton__V1__HeartbeatRequest *)message;
    Baton__V1__HeartbeatResponse response = BATON__V1__HEARTBEAT_RESPONSE__INIT;
    rank_named(context, request->worker_id)->draining = request->draining;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_deregister(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *message)
{
    const Baton__V1__DeregisterRequest *request = (const Baton__V1__DeregisterRequest *)message;
    Baton__V1__DeregisterResponse response = BATON__V1__DEREGISTER_RESPONSE__INIT;
    rank_named(context, request->worker_id)->deregistered = true;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Registry/Register", &baton__v1__register_request__descriptor, handle_register},
    {"baton.v1.Registry/Heartbeat", &baton__v1__heartbeat_request__descriptor, handle_heartbeat},
    {"baton.v1.Registry/Deregister", &baton__v1__deregister_request__descriptor, handle_deregister},
    {NULL, NULL, NULL},
};

/* ------------------------------------------------------------------ processes */

static void write_secret(const char *path)
{
    static const char secret[] = "of this test alone\n";
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, secret, sizeof(secret) - 1), sizeof(secret) - 1);
    close(fd);
}

static pid_t spawn(const struct group *group, uint32_t index, const char *const *flags)
{
    char endpoint[128], secret[128], number[16], size[16];
    const char *arguments[64];
    uint32_t count = 0;
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/meet", group->directory);
    snprintf(secret, sizeof(secret), "%s/secret", group->directory);
    snprintf(number, sizeof(number), "%u", index);
    snprintf(size, sizeof(size), "%u", group->size);
    const char *const fixed[] = {
        BATON_DECODE,
        "--model",
        TINY_MODEL,
        "--served-model-name",
        "tiny",
        "--router",
        bt_rpc_server_endpoint(group->registry),
        "--worker-id",
        group->ranks[index].worker_id,
        "--kv-pages",
        "128",
        "--max-num-seqs",
        "8",
        "--max-reserved",
        "32",
        "--die-with-parent",
        "--log-level",
        "warn",
        "--data-parallel-size",
        size,
        "--rank",
        number,
        "--group-endpoint",
        endpoint,
        "--group-secret-file",
        secret,
    };
    for (; count < sizeof(fixed) / sizeof(fixed[0]); count++) {
        arguments[count] = fixed[count];
    }
    for (; *flags; flags++) {
        arguments[count++] = *flags;
    }
    arguments[count] = NULL;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        signal(SIGINT, SIG_DFL); /* who was started in the background may ignore it */
        execv(BATON_DECODE, (char *const *)arguments);
        _exit(127);
    }
    return pid;
}

static void look_at(struct rank *rank, int options)
{
    if (rank->pid > 0 && !rank->exited &&
        waitpid(rank->pid, &rank->exit_status, options) == rank->pid) {
        rank->exited = true;
    }
}

void group_signal(struct group *group, uint32_t rank, int signal)
{
    group->was_away = false;
    group->turn_ns = bt_clock_now_ns();
    assert_int_equal(kill(group->ranks[rank].pid, signal), 0);
}

void group_turn(struct group *group)
{
    struct bt_error error;
    int64_t begin_ns = bt_clock_now_ns();
    assert_int_equal(bt_loop_run_once(group->loop, begin_ns + 50 * BT_NS_PER_MS, &error), BT_OK);
    /* A rank waits a second for the answer to its goodbye. */
    group->was_away |= bt_clock_now_ns() - group->turn_ns > BT_NS_PER_S / 2;
    group->turn_ns = bt_clock_now_ns();
    for (uint32_t r = 0; r < group->size; r++) {
        const struct cluster *cluster = &group->ranks[r].cluster;
        look_at(&group->ranks[r], WNOHANG);
        for (uint32_t i = 0; i < cluster->attempt_count; i++) {
            assert_true(cluster->attempts[i]->finish !=
                            BATON__V1__FINISH_REASON__FINISH_PREEMPTED ||
                        group->ranks[r].deregistered || group->was_away);
        }
    }
}

static bool all_registered(const struct group *group)
{
    bool all = true;
    for (uint32_t r = 0; r < group->size; r++) {
        assert_false(group->ranks[r].exited);
        all = all && group->ranks[r].registered;
    }
    return all;
}

static void connect_rank(struct group *group, struct rank *rank)
{
    struct bt_error error;
    rank->cluster = (struct cluster){
        .loop = group->loop,
        .model = group->model,
        .to_prefill = group->to_prefill,
    };
    assert_int_equal(
        bt_rpc_client_create(group->loop, rank->endpoint, &error, &rank->cluster.to_decode), BT_OK);
    cluster_subscribe(&rank->cluster);
}

static void open_prefill(struct group *group)
{
    struct bt_error error = {0};
    const struct bt_model_options load = {.dir = TINY_MODEL};
    const struct pf_worker_options prefill = cluster_prefill_options();
    if (bt_model_load(&load, &error, &group->model) != BT_OK ||
        pf_worker_create(group->loop, group->model, &prefill, &error, &group->prefill) != BT_OK ||
        bt_rpc_client_create(group->loop, pf_worker_endpoint(group->prefill), &error,
                             &group->to_prefill) != BT_OK) {
        fail_msg("%s", error.text);
    }
}

static void open_around(struct group *group, uint32_t size)
{
    struct bt_error error;
    char path[128];
    *group = (struct group){
        .turn_ns = bt_clock_now_ns(), .size = size, .directory = "/tmp/baton-group-XXXXXX"};
    assert_non_null(mkdtemp(group->directory));
    snprintf(path, sizeof(path), "%s/secret", group->directory);
    write_secret(path);
    group->loop = bt_loop_create(&error);
    assert_non_null(group->loop);
    assert_int_equal(bt_rpc_server_create(group->loop, "tcp://127.0.0.1:*", methods, group, &error,
                                          &group->registry),
                     BT_OK);
    for (uint32_t r = 0; r < size; r++) {
        snprintf(group->ranks[r].worker_id, sizeof(group->ranks[r].worker_id),
                 r == 0 ? "decode-g" : "decode-g.%u", r);
    }
}

void group_open(struct group *group, uint32_t size, const char *const *flags)
{
    open_around(group, size);
    for (uint32_t r = 0; r < size; r++) {
        group->ranks[r].pid = spawn(group, r, flags);
    }
    open_prefill(group);
    group_until(group, all_registered(group));
    for (uint32_t r = 0; r < size; r++) {
        connect_rank(group, &group->ranks[r]);
    }
}

void group_open_one(struct group *group)
{
    char path[128];
    open_around(group, 2);
    snprintf(path, sizeof(path), "%s/meet", group->directory);
    group->ranks[0].pid = spawn(group, 0, (const char *[]){NULL});
    open_prefill(group);
    group_until(group, access(path, F_OK) == 0);
}

void group_close(struct group *group)
{
    char path[128];
    for (uint32_t r = 0; r < group->size; r++) {
        struct rank *rank = &group->ranks[r];
        if (rank->pid > 0 && !rank->exited) {
            kill(rank->pid, SIGKILL);
            look_at(rank, 0);
        }
        bt_rpc_client_destroy(rank->cluster.to_decode);
        for (uint32_t i = 0; i < rank->cluster.attempt_count; i++) {
            attempt_finish(rank->cluster.attempts[i]);
        }
    }
    pf_worker_stop(group->prefill);
    group_until(group, pf_worker_quiet(group->prefill));
    pf_worker_destroy(group->prefill);
    bt_rpc_client_destroy(group->to_prefill);
    bt_rpc_server_destroy(group->registry);
    bt_model_destroy(group->model);
    bt_loop_destroy(group->loop);
    snprintf(path, sizeof(path), "%s/secret", group->directory);
    unlink(path);
    snprintf(path, sizeof(path), "%s/meet", group->directory);
    unlink(path);
    rmdir(group->directory);
}

void group_ends(struct group *group, uint32_t except, int exit_code)
{
    for (uint32_t r = 0; r < group->size; r++) {
        struct rank *rank = &group->ranks[r];
        if (r != except) {
            group_until(group, rank->exited);
            if (!WIFEXITED(rank->exit_status) || WEXITSTATUS(rank->exit_status) != exit_code) {
                fail_msg("rank %u ended with status %x", r, (unsigned)rank->exit_status);
            }
        }
    }
}

double group_metric(struct group *group, uint32_t rank, const char *name, const char *label)
{
    Baton__V1__MetricsRequest request = BATON__V1__METRICS_REQUEST__INIT;
    Baton__V1__MetricsResponse *response = NULL;
    struct cluster *cluster = &group->ranks[rank].cluster;
    double value = -1;
    assert_int_equal(cluster_call(cluster, cluster->to_decode, "baton.v1.Worker/Metrics",
                                  &request.base, &baton__v1__metrics_response__descriptor,
                                  (ProtobufCMessage **)&response),
                     BT_OK);
    size_t length = strlen(name);
    for (char *line = strtok(response->text, "\n"); line; line = strtok(NULL, "\n")) {
        if (strncmp(line, name, length) == 0 && line[length] == '{' && strstr(line, label)) {
            value = strtod(strrchr(line, '}') + 1, NULL);
        }
    }
    protobuf_c_message_free_unpacked(&response->base, NULL);
    assert_true(value >= 0);
    return value;
}
