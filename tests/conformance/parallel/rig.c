#include "tests/conformance/parallel/rig.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "common/base/process.h"
#include "common/base/random.h"
#include "common/kernels/device.h"

const char *transport;
bool ranks_are_threads;
uint64_t seed;

void check_failed(const char *expression, const char *file, int line)
{
    fprintf(stderr, "%s:%d: %s (seed %llu)\n", file, line, expression, (unsigned long long)seed);
    fflush(NULL);
    _exit(1);
}

float random_float(uint64_t stream, uint64_t index)
{
    return (float)(bt_random_unit(seed + stream, index, 0) * 8 - 4);
}

uint32_t random_below(uint64_t stream, uint64_t index, uint32_t below)
{
    return (uint32_t)(bt_random_u64(seed + stream, index, 1) % below);
}

/* Bound, and not listening: the kernel gives it to nobody, and who sets SO_REUSEADDR may listen. */
void reserve_endpoint(char *ret_endpoint, size_t size)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    const int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        check_failed("reserve_endpoint", __FILE__, __LINE__);
    snprintf(ret_endpoint, size, "tcp://127.0.0.1:%u", ntohs(address.sin_port));
}

struct bt_group *join(const struct bt_group_options *options)
{
    struct bt_error error = {0};
    struct bt_group *group = NULL;
    if (bt_group_create(options, &error, &group) != BT_OK) {
        fprintf(stderr, "rank %u: %s\n", options->rank, error.text);
        CHECK(!"created");
    }
    CHECK(bt_group_rank(group) == options->rank && bt_group_size(group) == options->size);
    CHECK(strcmp(bt_group_error(group), "") == 0);
    return group;
}

/* ---- buffers, which the host and the ranks' devices can read ---- */

static struct bt_device *device; /* of this process; NULL: the CPU */

static void use_device(uint32_t rank)
{
    struct bt_error error = {0};
    char name[16];
    if (strcmp(transport, "nccl") != 0)
        return;
    snprintf(name, sizeof(name), "cuda:%u", rank);
    if (bt_device_open(name, NULL, &error, &device) != BT_OK) {
        fprintf(stderr, "rank %u: %s\n", rank, error.text);
        CHECK(!"opened");
    }
}

void *buffer_alloc(size_t bytes)
{
    struct bt_error error;
    void *buffer = NULL;
    if (device)
        CHECK(bt_device_alloc_host(device, bytes, &error, &buffer) == BT_OK);
    else
        buffer = malloc(bytes);
    CHECK(buffer);
    return buffer;
}

void buffer_free(void *buffer)
{
    if (device)
        bt_device_free_host(device, buffer);
    else
        free(buffer);
}

void *buffer_copy(const void *data, size_t bytes)
{
    struct bt_error error;
    struct bt_stream *stream = NULL;
    struct bt_stream_limits limits = {.max_rows = 1};
    void *copy = buffer_alloc(bytes + 1);
    if (!device) {
        memcpy(copy, data, bytes);
        return copy;
    }
    CHECK(bt_device_stream_create(device, &limits, NULL, &error, &stream) == BT_OK);
    bt_device_copy(device, stream, copy, data, bytes);
    CHECK(bt_device_synchronize(device, stream, &error) == BT_OK);
    bt_device_stream_destroy(device, stream);
    return copy;
}

/* ---- calls that are queued ---- */

static struct bt_stream *queue; /* of this process; NULL: calls are done on return */
static struct bt_event *here;

void queue_calls(struct bt_group *group)
{
    struct bt_error error;
    const struct bt_stream_limits limits = {.max_rows = 1};
    CHECK(bt_device_stream_create(device, &limits, NULL, &error, &queue) == BT_OK);
    CHECK(device->ops->event_create(device, &error, &here) == BT_OK);
    CHECK(bt_group_use_stream(group, queue));
}

void stop_queueing(struct bt_group *group)
{
    CHECK(bt_group_use_stream(group, NULL));
    device->ops->event_destroy(here);
    bt_device_stream_destroy(device, queue);
    queue = NULL;
}

bool calls_are_queued(void)
{
    return queue != NULL;
}

static bool has_come(void *context)
{
    return device->ops->event_query(context);
}

enum bt_status await_calls(struct bt_group *group)
{
    if (!queue)
        return BT_OK;
    device->ops->event_record(here, queue);
    return bt_group_await(group, has_come, here);
}

void record_calls(void)
{
    struct bt_error error;
    CHECK(device->ops->capture_begin(queue, &error) == BT_OK);
}

struct bt_graph *recorded_calls(void)
{
    struct bt_error error;
    struct bt_graph *graph;
    CHECK(device->ops->capture_end(queue, &error, &graph) == BT_OK);
    return graph;
}

void repeat_calls(struct bt_graph *graph)
{
    device->ops->graph_launch(graph, queue);
}

void forget_calls(struct bt_graph *graph)
{
    device->ops->graph_destroy(graph);
}

/* ---- ranks ---- */

struct rank {
    struct bt_group_options options;
    const struct rig_case *rig;
    pid_t pid;
    pthread_t thread;
};

static void set_options(const struct rig_case *rig, const char *endpoint, uint32_t index,
                        struct rank *rank)
{
    rank->rig = rig;
    rank->options = (struct bt_group_options){
        .transport = transport,
        .rank = index,
        .size = rig->size,
        .endpoint = endpoint,
        .secret = "a secret of tests",
        .ranks_per_machine = rig->ranks_per_machine,
        .connect_timeout_ns = 60 * BT_NS_PER_S,
        .wait_timeout_ns = rig->wait_timeout_ns ? rig->wait_timeout_ns : 120 * BT_NS_PER_S,
        .limits = rig->limits,
    };
}

static void *thread_main(void *argument)
{
    const struct rank *rank = argument;
    rank->rig->fn(&rank->options, rank->rig->context);
    return NULL;
}

static void run_threads(struct rank *ranks, uint32_t size)
{
    alarm(CASE_SECONDS);
    for (uint32_t r = 0; r < size; r++)
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, thread_main, &ranks[r]), 0);
    for (uint32_t r = 0; r < size; r++)
        assert_int_equal(pthread_join(ranks[r].thread, NULL), 0);
    alarm(0);
}

static void start_process(struct rank *rank)
{
    fflush(NULL);
    rank->pid = fork();
    assert_true(rank->pid >= 0);
    if (rank->pid != 0)
        return;
    alarm(CASE_SECONDS);
    if (bt_process_die_with_parent() != BT_OK)
        _exit(1);
    use_device(rank->options.rank);
    rank->rig->fn(&rank->options, rank->rig->context);
    exit(0);
}

/* Whether it ended as it should. */
static bool await(const struct rank *rank, enum rank_end wanted)
{
    int status = 0;
    if (wanted == RANK_STOPPED)
        kill(rank->pid, SIGKILL); /* the others are done with it */
    if (waitpid(rank->pid, &status, 0) != rank->pid)
        return false;
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    bool well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (wanted == RANK_OK ? well : killed)
        return true;
    fprintf(stderr, "rank %u ended with status %x\n", rank->options.rank, (unsigned)status);
    return false;
}

static void run_processes(struct rank *ranks, const struct rig_case *rig)
{
    bool well = true;
    for (uint32_t r = 0; r < rig->size; r++)
        start_process(&ranks[r]);
    for (uint32_t r = 0; r < rig->size; r++)
        if (r != rig->victim)
            well = await(&ranks[r], RANK_OK) && well;
    if (rig->victim < rig->size)
        well = await(&ranks[rig->victim], rig->victim_end) && well;
    assert_true(well);
}

void run_ranks(const struct rig_case *rig)
{
    struct rank ranks[BT_GROUP_RANKS_MAX];
    char endpoint[64];

    reserve_endpoint(endpoint, sizeof(endpoint));
    for (uint32_t r = 0; r < rig->size; r++)
        set_options(rig, endpoint, r, &ranks[r]);
    if (ranks_are_threads)
        run_threads(ranks, rig->size);
    else
        run_processes(ranks, rig);
}
