/* Starting a local cluster, and more workers for one that runs. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "deploy/batonctl/cluster.h"
#include "deploy/batonctl/cores.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/keys.h"
#include "deploy/batonctl/launch.h"
#include "deploy/batonctl/ready.h"

/* What has not got ready has nothing to end. */
#define TAKE_BACK_NS BT_NS_PER_S

static const struct kind {
    const char *program;
    const char *size_flag; /* what the program calls the ranks of a worker */
} kinds[CTL_ROLES] = {
    [CTL_PREFILL] = {"prefill-node/baton-prefill", "--tensor-parallel-size"},
    [CTL_DECODE] = {"decode-node/baton-decode", "--data-parallel-size"},
};

/* ------------------------------------------------------------------ processes */

/* Before it runs, so that `down` finds it, whatever happens to us. */
static enum bt_status remember(void *context, const struct bt_process_id *process,
                               struct bt_error *error)
{
    struct ctl_cluster *cluster = context;
    cluster->processes[cluster->process_count++].process = *process;
    return ctl_cluster_save(cluster, error);
}

/* `next`, not waited for. */
static enum bt_status start_process(struct ctl_cluster *cluster, const struct ctl_process *next,
                                    struct ctl_command *command, int interrupt,
                                    struct bt_error *error)
{
    enum bt_status status = ctl_interrupt_check(interrupt, error);
    if (status != BT_OK)
        return status;
    BT_ASSERT(cluster->process_count < CTL_MAX_PROCESSES);
    char log[PATH_MAX], ready[PATH_MAX];
    ctl_cluster_path(cluster, next->id, ".log", log);
    ctl_cluster_path(cluster, next->id, ".ready", ready);
    ctl_command_add_all(command, (const char *[]){"--ready-file", ready, NULL});
    if (cluster->curve) {
        struct ctl_keys keys;
        ctl_keys_init(&keys, cluster->dir, next->id);
        ctl_command_add_all(command, (const char *[]){"--curve-secret-file", keys.secret_file,
                                                      "--curve-allow-file", keys.allow_file, NULL});
    }
    uint32_t before = cluster->process_count;
    cluster->processes[before] = *next;
    status = ctl_command_start(command, log, remember, cluster, error);
    if (status != BT_OK && cluster->process_count > before) {
        cluster->process_count = before;
        ctl_cluster_save(cluster, NULL);
    }
    return status;
}

/* ------------------------------------------------------------------ routers */

static void router_id(int64_t index, char ret_id[CTL_NAME_SIZE])
{
    if (index == 0)
        snprintf(ret_id, CTL_NAME_SIZE, "router");
    else
        snprintf(ret_id, CTL_NAME_SIZE, "router-%d", (int)index);
}

/* What routers are told; NULL: nothing. */
static const char *local_prefill_of(const struct ctl_up_options *options)
{
    /* Without prefill workers nobody else is there. */
    return !options->local_prefill && options->prefill == 0 ? "always" : options->local_prefill;
}

void ctl_cluster_handover_path(const struct ctl_cluster *cluster, uint32_t index, char *ret_path)
{
    char file[CTL_NAME_SIZE];
    snprintf(file, sizeof(file), "http-%u", index);
    ctl_cluster_path(cluster, file, ".sock", ret_path);
}

static bool fits_socket(const char *path)
{
    return strlen(path) < sizeof(((struct sockaddr_un *)NULL)->sun_path);
}

/* A router that is about to be. */
struct place {
    char id[CTL_NAME_SIZE];
    uint32_t index;                   /* among the cluster's routers */
    int64_t port;                     /* counts where there is none to take over; 0: any */
    char endpoint[CTL_ENDPOINT_SIZE]; /* for workers */
};

static struct place any_place(uint32_t index, int64_t port)
{
    return (struct place){.index = index, .port = port, .endpoint = "tcp://127.0.0.1:*"};
}

/* Where it was; its key's part of the endpoint is in a file. */
static struct place place_of(const struct ctl_cluster *cluster, uint32_t index)
{
    const struct ctl_router *router = &cluster->routers[index];
    const char *port = strrchr(router->http, ':');
    struct place place = {.index = index, .port = port ? strtol(port + 1, NULL, 10) : 0};
    snprintf(place.id, sizeof(place.id), "%s", router->id);
    snprintf(place.endpoint, sizeof(place.endpoint), "%.*s", (int)strcspn(router->rpc, "#"),
             router->rpc);
    return place;
}

static enum bt_status start_router(struct ctl_cluster *cluster, const struct place *place,
                                   const struct ctl_patience *patience, struct bt_error *error)
{
    struct ctl_command command;
    struct ctl_process next = {.role = "router", .part = -1};
    char port_text[16], handover[PATH_MAX];
    snprintf(next.id, sizeof(next.id), "%s", place->id);
    snprintf(port_text, sizeof(port_text), "%d", (int)place->port);
    ctl_cluster_handover_path(cluster, place->index, handover);
    ctl_command_init(&command, "router/baton-router");
    ctl_command_add_all(&command, (const char *[]){"--model", cluster->model, "--host",
                                                   cluster->host, "--port", port_text,
                                                   "--worker-endpoint", place->endpoint, NULL});
    if (fits_socket(handover))
        ctl_command_add_all(&command, (const char *[]){"--handover", handover, NULL});
    if (cluster->served_model_name[0])
        ctl_command_add_all(
            &command, (const char *[]){"--served-model-name", cluster->served_model_name, NULL});
    if (cluster->local_prefill_mode[0])
        ctl_command_add_all(&command,
                            (const char *[]){"--local-prefill", cluster->local_prefill_mode, NULL});
    ctl_command_add_words(&command, cluster->router_args);
    struct ctl_ready ready;
    uint32_t process = cluster->process_count;
    enum bt_status status = start_process(cluster, &next, &command, patience->interrupt, error);
    if (status == BT_OK)
        status = ctl_ready_wait(cluster, process, patience->interrupt, patience->until_ns, error,
                                &ready);
    if (status != BT_OK)
        return status;
    struct ctl_router *router = &cluster->routers[place->index];
    if (place->index == cluster->router_count)
        cluster->router_count++;
    snprintf(router->id, sizeof(router->id), "%s", place->id);
    snprintf(router->http, sizeof(router->http), "%s", ready.http);
    snprintf(router->rpc, sizeof(router->rpc), "%s", ready.rpc);
    return ctl_cluster_save(cluster, error);
}

static bool is_taken(const struct ctl_cluster *cluster, const char *worker);

/* Those that there were stay among the processes. */
static enum bt_status start_successors(struct ctl_cluster *cluster, uint32_t count,
                                       const struct ctl_patience *patience, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    int64_t number = 0;
    cluster->router_count = 0;
    for (uint32_t i = 0; i < count && status == BT_OK; i++) {
        struct place place = any_place(i, 0);
        char key[PATH_MAX];
        do
            router_id(number++, place.id);
        while (is_taken(cluster, place.id));
        ctl_cluster_path(cluster, place.id, ".key", key);
        if (cluster->curve && access(key, F_OK) != 0)
            status = ctl_keys_add(cluster->dir, place.id, error);
        if (status == BT_OK)
            status = start_router(cluster, &place, patience, error);
    }
    return status;
}

enum bt_status ctl_cluster_succeed_routers(struct ctl_cluster *cluster,
                                           const struct ctl_patience *patience,
                                           struct bt_error *error)
{
    struct ctl_router before[CTL_MAX_ROUTERS];
    char names[CTL_MAX_ROUTERS][CTL_NAME_SIZE], path[PATH_MAX];
    uint32_t count = cluster->router_count, first = cluster->process_count, started = 0;
    BT_ASSERT(cluster->lock >= 0);
    ctl_cluster_handover_path(cluster, count, path);
    if (!fits_socket(path))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--state-dir: routers hand their port over at a socket, whose path is "
                            "too long: %s",
                            path);
    if (first + count > CTL_MAX_PROCESSES)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "too many processes");
    memcpy(before, cluster->routers, sizeof(before));
    enum bt_status status = start_successors(cluster, count, patience, error);
    if (status == BT_OK)
        return BT_OK;
    for (uint32_t i = first; i < cluster->process_count; i++)
        snprintf(names[started++], CTL_NAME_SIZE, "%s", cluster->processes[i].id);
    memcpy(cluster->routers, before, sizeof(before));
    cluster->router_count = count;
    ctl_cluster_end(cluster, (const char(*)[CTL_NAME_SIZE])names, started, TAKE_BACK_NS, NULL);
    return status;
}

enum bt_status ctl_cluster_revive_routers(struct ctl_cluster *cluster,
                                          const struct ctl_patience *patience,
                                          struct bt_error *error)
{
    enum bt_status status = BT_OK;
    BT_ASSERT(cluster->lock >= 0);
    for (uint32_t i = 0; i < cluster->router_count && status == BT_OK; i++) {
        if (!ctl_cluster_router_dead(cluster, &cluster->routers[i]))
            continue;
        struct place place = place_of(cluster, i);
        char id[1][CTL_NAME_SIZE];
        memcpy(id[0], place.id, CTL_NAME_SIZE);
        status = ctl_cluster_end(cluster, (const char(*)[CTL_NAME_SIZE])id, 1, TAKE_BACK_NS, error);
        if (status != BT_OK)
            return status;
        if (cluster->process_count >= CTL_MAX_PROCESSES)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "too many processes");
        status = start_router(cluster, &place, patience, error);
        if (status != BT_OK)
            ctl_cluster_end(cluster, (const char(*)[CTL_NAME_SIZE])id, 1, TAKE_BACK_NS, NULL);
    }
    return status;
}

/* As workers are told: "ENDPOINT,ENDPOINT". */
static void routers_list(const struct ctl_cluster *cluster,
                         char ret_list[CTL_MAX_ROUTERS * CTL_ENDPOINT_SIZE])
{
    size_t size = 0;
    for (uint32_t i = 0; i < cluster->router_count; i++)
        size += (size_t)snprintf(ret_list + size, CTL_MAX_ROUTERS * CTL_ENDPOINT_SIZE - size,
                                 "%s%s", i > 0 ? "," : "", cluster->routers[i].rpc);
}

/* ------------------------------------------------------------------ workers */

static void rank_id(const char *worker, uint32_t rank, char ret_id[CTL_NAME_SIZE])
{
    if (rank == 0)
        snprintf(ret_id, CTL_NAME_SIZE, "%.48s", worker);
    else
        snprintf(ret_id, CTL_NAME_SIZE, "%.48s.%u", worker, rank);
}

static enum bt_status add_cpus(struct ctl_command *command, const struct ctl_workers *workers,
                               int32_t part, uint32_t rank, struct bt_error *error)
{
    char list[CTL_CORES_SIZE];
    if (part < 0)
        return BT_OK;
    enum bt_status status = ctl_cores_share(workers->cpus, workers->parts * workers->ranks,
                                            (uint32_t)part * workers->ranks + rank, error, list);
    if (status == BT_OK)
        ctl_command_add_all(command, (const char *[]){"--cpus", list, NULL});
    return status;
}

/* What the ranks of a worker know each other by. */
static enum bt_status write_secret(const char *path, struct bt_error *error)
{
    char secret[4 * 16 + 1];
    for (int i = 0; i < 4; i++)
        snprintf(secret + i * 16, 17, "%016" PRIx64, bt_random_entropy());
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool written = fd >= 0 && write(fd, secret, sizeof(secret) - 1) == (ssize_t)sizeof(secret) - 1;
    int reason = errno;
    if (fd >= 0)
        close(fd);
    return written ? BT_OK
                   : bt_error_set(error, BT_ERR_IO, "can not write %s: %s", path, strerror(reason));
}

static enum bt_status add_group(struct ctl_command *command, const struct ctl_cluster *cluster,
                                enum ctl_role role, const char *worker, uint32_t rank,
                                struct bt_error *error)
{
    if (cluster->workers[role].ranks == 1)
        return BT_OK;
    char socket[PATH_MAX], endpoint[PATH_MAX + 8], secret[PATH_MAX];
    char size_text[16], rank_text[16];
    ctl_cluster_path(cluster, worker, ".sock", socket);
    ctl_cluster_path(cluster, worker, ".secret", secret);
    snprintf(endpoint, sizeof(endpoint), "ipc://%s", socket);
    snprintf(size_text, sizeof(size_text), "%u", cluster->workers[role].ranks);
    snprintf(rank_text, sizeof(rank_text), "%u", rank);
    ctl_command_add_all(command, (const char *[]){kinds[role].size_flag, size_text, "--rank",
                                                  rank_text, "--group-endpoint", endpoint,
                                                  "--group-secret-file", secret, NULL});
    return rank == 0 ? write_secret(secret, error) : BT_OK;
}

/* A worker that is about to be. */
struct newcomer {
    char name[CTL_NAME_SIZE];
    enum ctl_role role;
    int32_t part;
};

static enum bt_status start_rank(struct ctl_cluster *cluster, const struct newcomer *newcomer,
                                 uint32_t rank, int interrupt, struct bt_error *error)
{
    const struct ctl_workers *workers = &cluster->workers[newcomer->role];
    struct ctl_command command;
    struct ctl_process next = {.part = newcomer->part};
    char routers[CTL_MAX_ROUTERS * CTL_ENDPOINT_SIZE] = "";
    snprintf(next.role, sizeof(next.role), "%s", ctl_role_name(newcomer->role));
    rank_id(newcomer->name, rank, next.id);
    routers_list(cluster, routers);
    ctl_command_init(&command, kinds[newcomer->role].program);
    ctl_command_add_all(&command, (const char *[]){"--model", cluster->model, "--router", routers,
                                                   "--worker-id", next.id, NULL});
    if (cluster->served_model_name[0])
        ctl_command_add_all(
            &command, (const char *[]){"--served-model-name", cluster->served_model_name, NULL});
    if (cluster->dtype[0])
        ctl_command_add_all(&command, (const char *[]){"--dtype", cluster->dtype, NULL});
    if (cluster->device[0])
        ctl_command_add_all(&command, (const char *[]){"--device", cluster->device, NULL});
    enum bt_status status = add_cpus(&command, workers, newcomer->part, rank, error);
    if (status == BT_OK)
        status = add_group(&command, cluster, newcomer->role, newcomer->name, rank, error);
    if (status != BT_OK)
        return status;
    ctl_command_add_words(&command, workers->args);
    return start_process(cluster, &next, &command, interrupt, error);
}

static bool is_taken(const struct ctl_cluster *cluster, const char *worker)
{
    char other[CTL_NAME_SIZE];
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        ctl_worker_of(cluster->processes[i].id, other);
        if (strcmp(other, worker) == 0)
            return true;
    }
    return false;
}

/* The part of the role's cpus that the fewest have. */
static int32_t free_part(const struct ctl_cluster *cluster, enum ctl_role role,
                         const struct newcomer *newcomers, uint32_t count)
{
    const struct ctl_workers *workers = &cluster->workers[role];
    uint32_t users[CTL_MAX_WORKERS] = {0};
    if (!workers->cpus[0] || workers->parts == 0)
        return -1;
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        const struct ctl_process *process = &cluster->processes[i];
        if (strcmp(process->role, ctl_role_name(role)) == 0 && !process->ending &&
            process->part >= 0 && process->part < (int32_t)workers->parts &&
            bt_process_probe(&process->process) == BT_PROCESS_ALIVE)
            users[process->part]++;
    }
    for (uint32_t i = 0; i < count; i++)
        users[newcomers[i].part] += workers->ranks;
    uint32_t best = 0;
    for (uint32_t i = 1; i < workers->parts; i++)
        best = users[i] < users[best] ? i : best;
    return (int32_t)best;
}

/* Names that nobody has, and parts of the cpus. */
static void plan(const struct ctl_cluster *cluster, enum ctl_role role, uint32_t count,
                 struct newcomer *ret_newcomers)
{
    uint32_t number = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct newcomer *newcomer = &ret_newcomers[i];
        newcomer->role = role;
        do
            snprintf(newcomer->name, sizeof(newcomer->name), "%s-%u", ctl_role_name(role),
                     number++);
        while (is_taken(cluster, newcomer->name));
        newcomer->part = free_part(cluster, role, ret_newcomers, i);
    }
}

/* Groups meet at sockets in the cluster's directory. */
static enum bt_status check_socket(const struct ctl_cluster *cluster,
                                   const struct newcomer *newcomer, struct bt_error *error)
{
    char path[PATH_MAX];
    const size_t most = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;
    ctl_cluster_path(cluster, newcomer->name, ".sock", path);
    if (cluster->workers[newcomer->role].ranks > 1 && strlen(path) > most)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--state-dir: the ranks of a group meet at a socket, whose path can "
                            "have %zu bytes, and this one has %zu: %s",
                            most, strlen(path), path);
    return BT_OK;
}

/* One that another of this name had is its, too. */
static enum bt_status make_keys(const struct ctl_cluster *cluster, const struct newcomer *newcomers,
                                uint32_t count, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t ranks = cluster->workers[newcomers[i].role].ranks;
        for (uint32_t rank = 0; rank < ranks && status == BT_OK; rank++) {
            char id[CTL_NAME_SIZE], path[PATH_MAX];
            rank_id(newcomers[i].name, rank, id);
            ctl_cluster_path(cluster, id, ".key", path);
            if (access(path, F_OK) != 0)
                status = ctl_keys_add(cluster->dir, id, error);
        }
    }
    return status;
}

/* All, before any is waited for: the ranks of a group wait for each other. */
static enum bt_status start_workers(struct ctl_cluster *cluster, const struct newcomer *newcomers,
                                    uint32_t count, const struct ctl_patience *patience,
                                    struct bt_error *error)
{
    uint32_t first = cluster->process_count;
    enum bt_status status = BT_OK;
    for (uint32_t i = 0; i < count && status == BT_OK; i++) {
        uint32_t ranks = cluster->workers[newcomers[i].role].ranks;
        for (uint32_t rank = 0; rank < ranks && status == BT_OK; rank++)
            status = start_rank(cluster, &newcomers[i], rank, patience->interrupt, error);
    }
    return status == BT_OK ? ctl_ready_wait(cluster, first, patience->interrupt, patience->until_ns,
                                            error, NULL)
                           : status;
}

enum bt_status ctl_cluster_add(struct ctl_cluster *cluster, enum ctl_role role, uint32_t count,
                               const struct ctl_patience *patience, struct bt_error *error)
{
    struct newcomer newcomers[CTL_MAX_WORKERS];
    char names[CTL_MAX_WORKERS][CTL_NAME_SIZE];
    uint32_t ranks = cluster->workers[role].ranks;
    BT_ASSERT(cluster->lock >= 0);
    if (count == 0)
        return BT_OK;
    if (count > CTL_MAX_WORKERS || cluster->process_count + count * ranks > CTL_MAX_PROCESSES)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%u %s workers more: too many", count,
                            ctl_role_name(role));
    plan(cluster, role, count, newcomers);
    enum bt_status status = check_socket(cluster, &newcomers[count - 1], error);
    if (status == BT_OK && cluster->curve)
        status = make_keys(cluster, newcomers, count, error);
    if (status != BT_OK)
        return status;
    status = start_workers(cluster, newcomers, count, patience, error);
    for (uint32_t i = 0; i < count; i++)
        memcpy(names[i], newcomers[i].name, CTL_NAME_SIZE);
    if (status != BT_OK)
        ctl_cluster_end(cluster, (const char(*)[CTL_NAME_SIZE])names, count, TAKE_BACK_NS, NULL);
    return status;
}

/* ------------------------------------------------------------------ up */

/* Whoever gives cpus or threads in any way has decided. */
static bool cores_are_given(const struct ctl_up_options *options)
{
    const char *const args[] = {options->prefill_args, options->decode_args};
    bool given = options->prefill_cpus || options->decode_cpus || getenv("BATON_CPUS") ||
                 getenv("BATON_THREADS");
    for (int i = 0; i < 2; i++)
        given = given || (args[i] && (strstr(args[i], "--cpus") || strstr(args[i], "--threads")));
    return given;
}

/* True: it is all there. NULL is nothing. */
static bool copy(char *to, size_t size, const char *text)
{
    return snprintf(to, size, "%s", text ? text : "") < (int)size;
}

/* What is asked for, as it is remembered. */
static enum bt_status adopt(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                            struct bt_error *error)
{
    struct ctl_workers *prefill = &cluster->workers[CTL_PREFILL];
    struct ctl_workers *decode = &cluster->workers[CTL_DECODE];
    if (!realpath(options->model, cluster->model))
        return bt_error_set(error, BT_ERR_IO, "--model %s: %s", options->model, strerror(errno));
    prefill->parts = (uint32_t)options->prefill;
    prefill->ranks = (uint32_t)options->prefill_tp;
    decode->parts = (uint32_t)options->decode;
    decode->ranks = (uint32_t)options->decode_dp;
    bool fits = copy(prefill->args, sizeof(prefill->args), options->prefill_args) &&
                copy(decode->args, sizeof(decode->args), options->decode_args) &&
                copy(prefill->cpus, sizeof(prefill->cpus), options->prefill_cpus) &&
                copy(decode->cpus, sizeof(decode->cpus), options->decode_cpus) &&
                copy(cluster->served_model_name, sizeof(cluster->served_model_name),
                     options->served_model_name) &&
                copy(cluster->dtype, sizeof(cluster->dtype), options->dtype) &&
                copy(cluster->device, sizeof(cluster->device), options->device) &&
                copy(cluster->host, sizeof(cluster->host), options->host) &&
                copy(cluster->router_args, sizeof(cluster->router_args), options->router_args) &&
                copy(cluster->local_prefill_mode, sizeof(cluster->local_prefill_mode),
                     local_prefill_of(options));
    if (!fits)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "a text among the options is too long");
    if (!cores_are_given(options) &&
        !ctl_cores_divide(prefill->parts * prefill->ranks, decode->parts * decode->ranks,
                          prefill->cpus, decode->cpus))
        prefill->cpus[0] = decode->cpus[0] = '\0';
    const char *local = local_prefill_of(options);
    cluster->local_prefill =
        (local && strcmp(local, "never") != 0) ||
        (options->router_args && strstr(options->router_args, "--local-prefill") &&
         !strstr(options->router_args, "never"));
    cluster->curve = options->curve;
    return BT_OK;
}

static enum bt_status prepare(struct ctl_cluster *cluster, struct bt_error *error)
{
    static struct ctl_cluster old;
    old = *cluster;
    if (ctl_cluster_load(&old, NULL) == BT_OK && ctl_cluster_alive(&old))
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                            "cluster '%s' is running; stop it with: batonctl down --name %s",
                            cluster->name, cluster->name);
    ctl_cluster_remove_dir(cluster);
    return ctl_cluster_make_dir(cluster->dir, error);
}

/* For all that `up` starts, before anybody reads the list. */
static enum bt_status make_first_keys(struct ctl_cluster *cluster,
                                      const struct ctl_up_options *options, struct bt_error *error)
{
    const int64_t counts[CTL_ROLES] = {
        [CTL_PREFILL] = options->prefill, [CTL_DECODE] = options->decode};
    struct newcomer newcomers[CTL_MAX_WORKERS];
    char id[CTL_NAME_SIZE];
    enum bt_status status = ctl_keys_begin(cluster->dir, error);
    if (status == BT_OK)
        status = ctl_keys_add(cluster->dir, CTL_KEYS_OPERATOR, error);
    for (int64_t i = 0; i < options->routers && status == BT_OK; i++) {
        router_id(i, id);
        status = ctl_keys_add(cluster->dir, id, error);
    }
    for (int role = 0; role < CTL_ROLES && status == BT_OK; role++) {
        plan(cluster, (enum ctl_role)role, (uint32_t)counts[role], newcomers);
        status = make_keys(cluster, newcomers, (uint32_t)counts[role], error);
    }
    return status;
}

static enum bt_status start_routers(struct ctl_cluster *cluster,
                                    const struct ctl_up_options *options,
                                    const struct ctl_patience *patience, struct bt_error *error)
{
    enum bt_status status = cluster->curve ? make_first_keys(cluster, options, error) : BT_OK;
    for (int64_t i = 0; i < options->routers && status == BT_OK; i++) {
        struct place place = any_place((uint32_t)i, options->port > 0 ? options->port + i : 0);
        router_id(i, place.id);
        status = start_router(cluster, &place, patience, error);
    }
    return status;
}

/* Decode ranks first, so that prefill workers find them and warm their links. */
static enum bt_status start_all(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                                const struct ctl_patience *patience, struct bt_error *error)
{
    enum bt_status status = start_routers(cluster, options, patience, error);
    if (status == BT_OK)
        status = ctl_cluster_add(cluster, CTL_DECODE, (uint32_t)options->decode, patience, error);
    if (status == BT_OK)
        status = ctl_cluster_add(cluster, CTL_PREFILL, (uint32_t)options->prefill, patience, error);
    if (status == BT_OK)
        status = ctl_interrupt_check(patience->interrupt, error);
    if (status != BT_OK)
        return status;
    cluster->workers[CTL_PREFILL].wanted = (uint32_t)options->prefill;
    cluster->workers[CTL_DECODE].wanted = (uint32_t)options->decode;
    return ctl_cluster_save(cluster, error);
}

static enum bt_status up_locked(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                                struct bt_error *error)
{
    struct ctl_patience patience = {.until_ns = bt_clock_now_ns() + options->wait_ns};
    enum bt_status status = prepare(cluster, error);
    if (status == BT_OK)
        status = ctl_interrupt_hold(error, &patience.interrupt);
    if (status != BT_OK)
        return status;
    status = start_all(cluster, options, &patience, error);
    if (status != BT_OK)
        ctl_cluster_down(cluster, BT_NS_PER_S, NULL);
    close(patience.interrupt);
    return status;
}

/* The longest name that there will be in this cluster. */
static enum bt_status check_sockets(const struct ctl_cluster *cluster, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (int role = 0; role < CTL_ROLES && status == BT_OK; role++) {
        struct newcomer last = {.role = (enum ctl_role)role};
        uint32_t parts = cluster->workers[role].parts;
        snprintf(last.name, sizeof(last.name), "%s-%u", ctl_role_name(last.role),
                 parts > 0 ? parts - 1 : 0);
        status = check_socket(cluster, &last, error);
    }
    return status;
}

enum bt_status ctl_cluster_up(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                              struct bt_error *error)
{
    enum bt_status status = adopt(cluster, options, error);
    if (status == BT_OK)
        status = check_sockets(cluster, error);
    if (status == BT_OK)
        status = ctl_cluster_lock(cluster, "up", error);
    if (status != BT_OK)
        return status;
    status = up_locked(cluster, options, error);
    ctl_cluster_unlock(cluster);
    return status;
}
