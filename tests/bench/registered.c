/*
 * What it costs a router that a large cluster is registered and does nothing: the real program,
 * simulated workers that speak the real protocol. Every rank has connections of its own, one each
 * way: all are reached at addresses of their own of this machine (127/8), so that neither ports
 * nor endpoints are shared.
 */
#include <dirent.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "common/messaging/registration.h"
#include "common/messaging/rpc.h"
#include "proto/worker.pb-c.h"
#include "tests/bench/router_bench.h"

#define GROUP_RANKS       32
#define PROCESSES         4
#define PAGES             1024
#define MAX_MODEL_LEN     4096
#define REGISTER_S        300
#define SETTLE_S          5
#define SPARE_DESCRIPTORS 512
#define CPU_LIMIT         1.0            /* of a core */
#define DESCRIPTORS_LIMIT 2.0            /* a connection each way */
#define BYTES_LIMIT       (128.0 * 1024) /* most of it the library's queues */

struct bench_shared *bench_shared;
uint32_t bench_tokens[BENCH_TOKEN_KINDS];

void bench_figure(const char *name, double value, const char *unit, double limit, double ratio)
{
    printf("figure %s %.6g %s %.6g %.6g\n", name, value, unit, limit, ratio);
    fflush(stdout);
}

struct rank {
    char id[32], group_name[32], endpoint[64];
    bool decode, registered;
    struct bt_registration *registration;
    Baton__V1__RegisterRequest identity;
    Baton__V1__KvEndpoint kv;
    Baton__V1__GroupMember group;
};

static uint32_t prefill_workers = 1000, decode_workers = 1000;
static Baton__V1__LayoutFingerprint fingerprint;
static Baton__V1__ProcessId process;

static uint32_t rank_count(void)
{
    return prefill_workers + decode_workers * GROUP_RANKS;
}

static void pause_s(double seconds)
{
    struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&time, NULL);
}

/* ---- the simulated workers */

/* The stream is open: an empty step tells the router that it is. */
static void handle_steps(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)context;
    (void)message;
    Baton__V1__StepEvent event = BATON__V1__STEP_EVENT__INIT;
    bt_rpc_call_send(call, &event.base);
    atomic_fetch_add(&bench_shared->running, 1);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Decode/Steps", &baton__v1__steps_request__descriptor, handle_steps},
    {NULL, NULL, NULL},
};

static void fill_load(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining)
{
    const struct rank *rank = context;
    ret_load->pages_total = ret_load->pages_free = rank->decode ? PAGES : 0;
    ret_load->max_running = 64;
    *ret_draining = false;
}

static void on_registered(void *context)
{
    struct rank *rank = context;
    atomic_fetch_add(&bench_shared->registered, !rank->registered);
    rank->registered = true;
}

static void on_refused(void *context, enum bt_status status, const char *text)
{
    const struct rank *rank = context;
    bench_die("%s is refused: %s (%s)", rank->id, text, bt_status_name(status));
}

static void address_of(uint32_t number, const char *port, char *ret_text, size_t size)
{
    snprintf(ret_text, size, "tcp://127.%u.%u.%u:%s", 1 + (number >> 16), number >> 8 & 255,
             number & 255, port);
}

static void fill_decode(struct rank *rank, uint32_t number)
{
    uint32_t worker = (number - prefill_workers) / GROUP_RANKS;
    uint32_t place = (number - prefill_workers) % GROUP_RANKS;
    snprintf(rank->group_name, sizeof rank->group_name, "decode-%u", worker);
    snprintf(rank->id, sizeof rank->id, place ? "decode-%u.%u" : "decode-%u", worker, place);
    baton__v1__group_member__init(&rank->group);
    rank->group.incarnation = 1 + worker;
    rank->group.name = rank->group_name;
    rank->group.rank = place;
    rank->group.size = GROUP_RANKS;
    baton__v1__kv_endpoint__init(&rank->kv);
    rank->kv.worker_id = rank->id;
    rank->kv.incarnation = 1000 + number;
    rank->kv.transport_address = (ProtobufCBinaryData){4, (uint8_t *)"none"};
    rank->kv.pool_key = (ProtobufCBinaryData){4, (uint8_t *)"none"};
    rank->kv.pool_pages = PAGES;
    rank->kv.fingerprint = &fingerprint;
    rank->kv.process = &process;
    rank->kv.control_endpoint = rank->endpoint;
    rank->identity.kv = &rank->kv;
    rank->identity.group = &rank->group;
}

static void fill_rank(struct rank *rank, uint32_t number, const char *port)
{
    rank->decode = number >= prefill_workers;
    address_of(number, port, rank->endpoint, sizeof rank->endpoint);
    snprintf(rank->id, sizeof rank->id, "prefill-%u", number);
    baton__v1__register_request__init(&rank->identity);
    rank->identity.worker_id = rank->id;
    rank->identity.incarnation = 1000 + number;
    rank->identity.role =
        rank->decode ? BATON__V1__WORKER_ROLE__ROLE_DECODE : BATON__V1__WORKER_ROLE__ROLE_PREFILL;
    rank->identity.control_endpoint = rank->endpoint;
    rank->identity.fingerprint = &fingerprint;
    rank->identity.process = &process;
    rank->identity.max_model_len = MAX_MODEL_LEN;
    rank->identity.transport = (char *)"shm";
    if (rank->decode) {
        fill_decode(rank, number);
    }
}

static void fill_common(void)
{
    bench_fill_common(&process, &fingerprint);
}

/* Every PROCESSES-th rank. One server is behind all their addresses. */
_Noreturn static void workers_run(uint32_t first, const char *router_port)
{
    struct bt_error error;
    struct bt_rpc_server *server;
    bt_log_init("simulated", BT_LOG_ERROR);
    fill_common();
    struct bt_loop *loop = bt_loop_create(&error);
    if (!loop || bt_rpc_server_create(loop, "tcp://0.0.0.0:*", methods, NULL, &error, &server)) {
        bench_die("simulated workers: %s", error.text);
    }
    const char *port = strrchr(bt_rpc_server_endpoint(server), ':') + 1;
    struct rank *ranks = calloc(rank_count() / PROCESSES + 1, sizeof *ranks);
    for (uint32_t number = first; ranks && number < rank_count(); number += PROCESSES) {
        struct rank *rank = &ranks[number / PROCESSES];
        char router[64];
        fill_rank(rank, number, port);
        address_of(number, router_port, router, sizeof router);
        const struct bt_registration_events events = {
            .load = fill_load, .registered = on_registered, .refused = on_refused, .context = rank};
        if (bt_registration_create(loop, router, &rank->identity, &events, &error,
                                   &rank->registration) != BT_OK) {
            bench_die("simulated workers: %s", error.text);
        }
    }
    bt_loop_run(loop, &error);
    exit(0);
}

/* ---- what is measured */

static double descriptors(pid_t pid)
{
    char path[64];
    double count = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *directory = opendir(path);
    while (directory && readdir(directory)) {
        count++;
    }
    if (directory) {
        closedir(directory);
    }
    return count;
}

/* All are registered, and the router has all the streams of the decode ranks. */
static double wait_registered(void)
{
    double start = bench_now_s();
    while (atomic_load(&bench_shared->registered) < rank_count() ||
           atomic_load(&bench_shared->running) < decode_workers * GROUP_RANKS) {
        if (bench_now_s() - start > REGISTER_S) {
            bench_die("only %" PRIu64 " ranks are registered, and %" PRIu64 " streams are open",
                      atomic_load(&bench_shared->registered), atomic_load(&bench_shared->running));
        }
        pause_s(0.01);
    }
    return bench_now_s() - start;
}

/* Only who may raise the limit has all of them. */
static void fit_descriptors(void)
{
    struct rlimit limit;
    bench_raise_descriptors(2ull * rank_count() + SPARE_DESCRIPTORS);
    bt_process_raise_file_limit();
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
        limit.rlim_cur < 2ull * rank_count() + SPARE_DESCRIPTORS) {
        uint32_t ranks = (uint32_t)(limit.rlim_cur - SPARE_DESCRIPTORS) / 2;
        decode_workers = ranks / (GROUP_RANKS + 1);
        prefill_workers = decode_workers;
    }
}

static void measure(const struct bench_options *options)
{
    uint32_t wanted = rank_count();
    struct bench_router router;
    struct bench_cpu before, used;
    pid_t workers[PROCESSES];
    fit_descriptors();
    bench_router_start(options, NULL, &router);
    double memory = bench_rss_bytes(router.pid), held = descriptors(router.pid);
    bench_cpu_read(router.pid, &before);
    for (uint32_t i = 0; i < PROCESSES; i++) {
        workers[i] = bench_fork();
        if (workers[i] == 0) {
            workers_run(i, strrchr(router.rpc, ':') + 1);
        }
    }
    double register_s = wait_registered();
    used = bench_cpu_since(router.pid, &before);
    printf("# %" PRIu32 " prefill workers, %" PRIu32
           " decode workers of %d ranks; to register took "
           "the router's loop %.1f s, its socket thread %.1f s\n",
           prefill_workers, decode_workers, GROUP_RANKS, used.loop, used.io);
    pause_s(SETTLE_S);
    bench_cpu_read(router.pid, &before);
    double start = bench_now_s();
    pause_s(options->seconds);
    double seconds = bench_now_s() - start;
    used = bench_cpu_since(router.pid, &before);
    printf("# of it the loop takes %.3f, its socket thread %.3f\n", used.loop / seconds,
           used.io / seconds);
    double ranks = rank_count(), share = used.all / seconds;
    double bytes = (bench_rss_bytes(router.pid) - memory) / ranks;
    double each = (descriptors(router.pid) - held) / ranks;
    bench_figure("registered_ranks", ranks, "ranks", wanted, ranks / wanted);
    bench_figure("register_s", register_s, "s", register_s, register_s);
    bench_figure("heartbeat_cpu_share", share, "cores", CPU_LIMIT, share / CPU_LIMIT);
    bench_figure("descriptors_per_rank", each, "descriptors", DESCRIPTORS_LIMIT,
                 each / DESCRIPTORS_LIMIT);
    bench_figure("bytes_per_rank", bytes, "bytes", BYTES_LIMIT, bytes / BYTES_LIMIT);
    for (uint32_t i = 0; i < PROCESSES; i++) {
        bench_kill(workers[i]);
    }
    bench_kill(router.pid);
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"router", required_argument, NULL, 'r'},  {"model", required_argument, NULL, 'm'},
        {"prefill", required_argument, NULL, 'p'}, {"decode", required_argument, NULL, 'd'},
        {"seconds", required_argument, NULL, 's'}, {0}};
    struct bench_options options = {.seconds = 10, .workers_at = "tcp://0.0.0.0:*"};
    int option;
    while ((option = getopt_long(argc, argv, "", names, NULL)) >= 0) {
        switch (option) {
        case 'r':
            options.router = optarg;
            break;
        case 'm':
            options.model_dir = optarg;
            break;
        case 'p':
            prefill_workers = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 'd':
            decode_workers = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case 's':
            options.seconds = strtod(optarg, NULL);
            break;
        default:
            return 2;
        }
    }
    if (!options.router || !options.model_dir || rank_count() == 0) {
        fprintf(stderr, "usage: registered --router PROGRAM --model DIR [--prefill N] "
                        "[--decode N] [--seconds S]\n");
        return 2;
    }
    bench_shared =
        mmap(NULL, sizeof *bench_shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (bench_shared == MAP_FAILED) {
        bench_die("no memory");
    }
    measure(&options);
    return 0;
}
