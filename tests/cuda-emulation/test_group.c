/*
 * Two ranks of a group over NCCL, emulated, a process each: ranks that were given one GPU are told
 * so, and what a rank at fault did not compute is no other's sum, nor launched again.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/kernels/device.h"
#include "common/parallel/group.h"

#define FLOATS 6

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "rank %u: line %d: %s: %s\n", rank, __LINE__, #what, error.text);      \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

static struct bt_error error;

static enum bt_status join(uint32_t rank, const char *endpoint, struct bt_group **ret_group)
{
    const struct bt_group_options options = {.transport = "nccl",
                                             .rank = rank,
                                             .size = 2,
                                             .endpoint = endpoint,
                                             .secret = "of this test",
                                             .connect_timeout_ns = 200 * BT_NS_PER_S,
                                             .wait_timeout_ns = 200 * BT_NS_PER_S,
                                             .limits = {.floats = FLOATS}};
    return bt_group_create(&options, &error, ret_group);
}

static int one_gpu(uint32_t rank, const char *endpoint)
{
    struct bt_device *device;
    struct bt_group *group;
    CHECK(bt_device_open("cuda:0", NULL, &error, &device) == BT_OK);
    CHECK(join(rank, endpoint, &group) == BT_ERR_INVALID_ARGUMENT);
    CHECK(strstr(error.text, "ranks 0 and 1") && strstr(error.text, "9A:00"));
    bt_device_close(device);
    return 0;
}

struct moment {
    struct bt_device *device;
    struct bt_event *event;
};

static bool has_come(void *context)
{
    const struct moment *moment = context;
    return moment->device->ops->event_query(moment->event);
}

/* Rank 1 has a copy that can't be, and knows of it only when it waits; `repeats`: then it would
 * launch what it captured. */
static int run_fault(uint32_t rank, const char *endpoint, bool repeats)
{
    const struct bt_stream_limits limits = {.max_rows = 1};
    struct bt_device *device;
    struct bt_stream *stream;
    struct bt_group *group;
    struct bt_event *event;
    void *x, *host;
    CHECK(bt_device_open(rank ? "cuda:1" : "cuda:0", NULL, &error, &device) == BT_OK);
    CHECK(bt_device_stream_create(device, &limits, NULL, &error, &stream) == BT_OK);
    CHECK(device->ops->event_create(device, &error, &event) == BT_OK);
    CHECK(bt_device_alloc(device, FLOATS * sizeof(float), &error, &x) == BT_OK);
    CHECK(bt_device_alloc_host(device, FLOATS * sizeof(float), &error, &host) == BT_OK);
    CHECK(join(rank, endpoint, &group) == BT_OK);
    CHECK(bt_group_use_stream(group, stream));
    bt_device_copy(device, stream, x, host, (rank ? 1000 : FLOATS) * sizeof(float));
    enum bt_status status =
        rank && repeats ? bt_group_repeat(group, 0, 0) : bt_group_all_reduce(group, x, FLOATS);
    CHECK(!rank || status < 0);
    device->ops->event_record(event, stream);
    if (status == BT_OK)
        status = bt_group_await(group, has_come, &(struct moment){device, event});
    CHECK(status < 0 && status != BT_ERR_DEADLINE);
    CHECK(!rank || strstr(bt_group_error(group), "cuda:1"));
    bt_group_destroy(group);
    device->ops->event_destroy(event);
    bt_device_free_host(device, host);
    bt_device_free(device, x);
    bt_device_stream_destroy(device, stream);
    bt_device_close(device);
    return 0;
}

static int fault(uint32_t rank, const char *endpoint)
{
    return run_fault(rank, endpoint, false);
}

static int fault_repeats(uint32_t rank, const char *endpoint)
{
    return run_fault(rank, endpoint, true);
}

/* A process each; none of the two has asked CUDA for anything before. */
static int run_ranks(const char *name, int (*rank_of)(uint32_t rank, const char *endpoint))
{
    char dir[] = "/tmp/baton-group-XXXXXX", path[64], endpoint[80];
    pid_t children[2];
    int failed = 0;
    BT_ASSERT(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/meeting", dir);
    snprintf(endpoint, sizeof(endpoint), "ipc://%s", path);
    fflush(NULL);
    for (uint32_t rank = 0; rank < 2; rank++) {
        children[rank] = fork();
        BT_ASSERT(children[rank] >= 0);
        if (children[rank] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            exit(rank_of(rank, endpoint));
        }
    }
    for (uint32_t rank = 0; rank < 2; rank++) {
        int status;
        BT_ASSERT(waitpid(children[rank], &status, 0) == children[rank]);
        failed += status != 0;
    }
    unlink(path);
    rmdir(dir);
    printf("%s: %s\n", name, failed ? "failed" : "fine");
    return failed;
}

int main(void)
{
    return run_ranks("one GPU for two", one_gpu) + run_ranks("a rank at fault", fault) +
               run_ranks("a rank at fault that repeats", fault_repeats) >
           0;
}
