#include "tests/bench/groups_device.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/base/random.h"
#include "common/parallel/group.h"
#include "tests/bench/device_bench.h"

#define SIZE         2
#define EXPERTS      256
#define PER_TOKEN    8
#define ROWS_MOST    128
#define WARM_UP      2
#define ROUNDS_MOST  1000
#define REDUCE_BYTES ((size_t)4 << 20)
#define ONE_BF16     0x3f80

static const uint32_t row_counts[] = {1, 8, 32, 128};

struct bench {
    uint32_t rank, rounds, hidden;
    bool quick;
    size_t reduce_floats;
    struct bt_device *device;
    struct bt_stream *stream;
    struct bt_event *event;
    struct bt_group *group;
    float *x, *reduced, *out, *zeros;
    void *y;                  /* ones */
    void *mine, *theirs, *to; /* memory of this GPU, and of the other: for the limit */
    uint32_t *experts;        /* the device's, like weights and picks */
    float *weights;
    uint32_t *picks; /* routing.begin: only the last is read */
    void *pinned;
    size_t pinned_bytes;
    uint32_t chosen[ROWS_MOST * PER_TOKEN];
    uint32_t begin[EXPERTS + 1], ranks[EXPERTS];
    uint64_t formula_rows; /* that went to the other rank and, as picks, came back */
};

static _Noreturn void die(const char *what)
{
    fflush(stdout);
    fprintf(stderr, "groups: %s\n", what);
    _exit(1);
}

static void must(const struct bench *b, enum bt_status status)
{
    if (status != BT_OK)
        die(bt_group_error(b->group));
}

static double now_us(void)
{
    return (double)bt_clock_now_ns() / 1e3;
}

static bool has_come(void *context)
{
    const struct bench *b = context;
    return b->device->ops->event_query(b->event);
}

static void await(struct bench *b)
{
    b->device->ops->event_record(b->event, b->stream);
    must(b, bt_group_await(b->group, has_come, b));
}

/* By pinned memory; waits. */
static void put(struct bench *b, void *to, const void *from, size_t bytes)
{
    if (bytes > b->pinned_bytes)
        die("too much for the pinned memory");
    memcpy(b->pinned, from, bytes);
    bt_device_copy(b->device, b->stream, to, b->pinned, bytes);
    device_wait(b->device, b->stream);
}

static const void *get(struct bench *b, const void *from, size_t bytes)
{
    if (bytes > b->pinned_bytes)
        die("too much for the pinned memory");
    bt_device_copy(b->device, b->stream, b->pinned, from, bytes);
    device_wait(b->device, b->stream);
    return b->pinned;
}

/* ---- limits ---- */

/* Of one copy from the other GPU, both at once, as in the calls. */
static double copy_us(struct bench *b, size_t bytes)
{
    must(b, bt_group_barrier(b->group));
    double start = now_us();
    bt_device_copy(b->device, b->stream, b->to, b->theirs, bytes);
    await(b);
    return now_us() - start;
}

/* ---- calls ---- */

/* Distinct experts, in no order. */
static void choose(struct bench *b, uint32_t rows, uint64_t round)
{
    static float weights[ROWS_MOST * PER_TOKEN];
    uint32_t picks = rows * PER_TOKEN;
    uint16_t deck[EXPERTS];
    for (uint32_t e = 0; e < EXPERTS; e++)
        deck[e] = (uint16_t)e;
    for (uint32_t pick = 0; pick < picks; pick++) {
        uint32_t place = pick % PER_TOKEN;
        uint64_t draw = bt_random_u64(b->rank, round << 20 | pick, 0);
        uint32_t other = place + (uint32_t)(draw % (EXPERTS - place));
        uint16_t expert = deck[other];
        deck[other] = deck[place];
        deck[place] = expert;
        b->chosen[pick] = expert;
        weights[pick] = 1.0f / PER_TOKEN;
    }
    put(b, b->experts, b->chosen, picks * sizeof(*b->chosen));
    put(b, b->weights, weights, picks * sizeof(*weights));
    put(b, b->picks + EXPERTS, &picks, sizeof(picks));
    bt_device_copy(b->device, b->stream, b->out, b->zeros,
                   (size_t)rows * b->hidden * sizeof(*b->out));
    device_wait(b->device, b->stream);
}

/* Rows that go to the other rank, and picks that come back from it. */
static void count_formula(const struct bench *b, uint32_t rows, uint32_t *ret_rows,
                          uint32_t *ret_picks)
{
    *ret_rows = *ret_picks = 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t there = 0;
        for (uint32_t place = 0; place < PER_TOKEN; place++)
            there += b->chosen[row * PER_TOKEN + place] % SIZE != b->rank;
        *ret_rows += there > 0;
        *ret_picks += there;
    }
}

/* All of y is 1, and the weights of a row add up to 1. */
static void check_out(struct bench *b, uint32_t rows)
{
    for (uint32_t row = 0; row < rows; row++) {
        const float *out = get(b, b->out + (size_t)row * b->hidden, b->hidden * sizeof(float));
        for (uint32_t i = 0; i < b->hidden; i++)
            if (out[i] != 1.0f)
                die("a combined row is not the sum of what its experts gave");
    }
}

struct times {
    double dispatch, combine;
    size_t dispatch_bytes, combine_bytes; /* that came in */
};

static struct times call_once(struct bench *b, uint32_t rows, uint64_t round)
{
    const struct bt_routing routing = {
        .experts = b->experts, .weights = b->weights, .begin = b->picks};
    const struct bt_placement_layer placement = {.begin = b->begin, .ranks = b->ranks};
    struct bt_arrivals arrivals;
    struct times times;
    uint32_t rows_out, picks_in;
    uint64_t own[2], all[2 * SIZE];
    choose(b, rows, round);
    must(b, bt_group_barrier(b->group));
    double start = now_us();
    must(b, bt_group_dispatch_begin(b->group, BT_DISPATCH_LATENCY, b->x, rows, &routing, &placement,
                                    BT_BF16));
    must(b, bt_group_dispatch_finish(b->group, &arrivals));
    await(b);
    times.dispatch = now_us() - start;
    must(b, bt_group_barrier(b->group));
    start = now_us();
    must(b, bt_group_combine(b->group, b->y, BT_BF16, &routing, b->out));
    await(b);
    times.combine = now_us() - start;
    check_out(b, rows);
    count_formula(b, rows, &rows_out, &picks_in);
    b->formula_rows += rows_out;
    own[0] = rows_out;
    own[1] = picks_in;
    must(b, bt_group_agree_begin(b->group, own, 2));
    must(b, bt_group_agree_finish(b->group, all));
    b->formula_rows += all[2 * (1 - b->rank) + 1];
    times.dispatch_bytes = all[2 * (1 - b->rank)] * b->hidden * 2;
    times.combine_bytes = (size_t)picks_in * b->hidden * 2;
    return times;
}

static double reduce_us(struct bench *b)
{
    size_t bytes = b->reduce_floats * sizeof(float);
    bt_device_copy(b->device, b->stream, b->reduced, b->x, bytes);
    device_wait(b->device, b->stream);
    must(b, bt_group_barrier(b->group));
    double start = now_us();
    must(b, bt_group_all_reduce(b->group, b->reduced, b->reduce_floats));
    await(b);
    double took = now_us() - start;
    size_t seen = 1024 * sizeof(float);
    static float before[1024];
    memcpy(before, get(b, b->x, seen), seen);
    const float *after = get(b, b->reduced, seen);
    for (int i = 0; i < 1024; i++)
        if (after[i] != SIZE * before[i]) /* x is the same on both */
            die("a sum of all ranks is not that of what went in");
    return took;
}

/* ---- figures ---- */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, uint32_t count)
{
    qsort(values, count, sizeof(*values), compare);
    return values[count / 2];
}

static void figure(const struct bench *b, const char *name, double value, const char *unit,
                   double limit, double ratio)
{
    if (!isfinite(value) || !isfinite(limit) || value <= 0 || limit <= 0)
        die("a figure is none");
    if (b->rank == 0)
        printf("figure %s_cuda %.4g %s %.4g %.3f\n", name, value, unit, limit, ratio);
    fflush(stdout);
}

static void measure_experts(struct bench *b, uint32_t rows)
{
    static double dispatch[ROUNDS_MOST], combine[ROUNDS_MOST], in[ROUNDS_MOST], back[ROUNDS_MOST];
    char name[40];
    bt_group_expect_rows(b->group, rows);
    for (uint32_t i = 0; i < b->rounds + WARM_UP; i++) {
        uint32_t at = i < WARM_UP ? 0 : i - WARM_UP;
        struct times times = call_once(b, rows, i);
        dispatch[at] = times.dispatch;
        combine[at] = times.combine;
        in[at] = copy_us(b, times.dispatch_bytes);
        back[at] = copy_us(b, times.combine_bytes);
    }
    double took = median(dispatch, b->rounds), limit = median(in, b->rounds);
    snprintf(name, sizeof(name), "dispatch_%urows", rows);
    figure(b, name, took, "us", limit, limit / took);
    took = median(combine, b->rounds);
    limit = median(back, b->rounds);
    snprintf(name, sizeof(name), "combine_%urows", rows);
    figure(b, name, took, "us", limit, limit / took);
}

static void measure_reduce(struct bench *b)
{
    static double took[ROUNDS_MOST], limits[ROUNDS_MOST];
    for (uint32_t i = 0; i < b->rounds + WARM_UP; i++) {
        uint32_t at = i < WARM_UP ? 0 : i - WARM_UP;
        took[at] = reduce_us(b);
        limits[at] = copy_us(b, b->reduce_floats * sizeof(float));
    }
    double us = median(took, b->rounds), limit = median(limits, b->rounds);
    figure(b, "allreduce_4m", us, "us", limit, limit / us);
}

static void measure_all(struct bench *b)
{
    struct bt_group_traffic traffic;
    for (size_t i = 0; i < (b->quick ? 2 : sizeof(row_counts) / sizeof(row_counts[0])); i++)
        measure_experts(b, row_counts[i]);
    measure_reduce(b);
    bt_group_traffic(b->group, &traffic);
    double ratio =
        (double)(traffic.dispatch + traffic.combine) / ((double)b->formula_rows * b->hidden * 2);
    figure(b, "wire_bytes_over_formula", ratio, "-", 1, ratio);
}

/* ---- ranks ---- */

static void make_memory(struct bench *b)
{
    size_t rows_bytes = (size_t)ROWS_MOST * b->hidden * sizeof(float);
    size_t y_bytes = (size_t)SIZE * ROWS_MOST * PER_TOKEN * b->hidden * 2;
    size_t reduce_bytes = b->reduce_floats * sizeof(float);
    size_t x_bytes = rows_bytes > reduce_bytes ? rows_bytes : reduce_bytes;
    size_t most = y_bytes > x_bytes ? y_bytes : x_bytes;
    struct bt_error error;
    b->pinned_bytes = 1 << 20;
    device_must(bt_device_alloc_host(b->device, b->pinned_bytes, &error, &b->pinned), &error);
    b->x = device_take(b->device, x_bytes);
    b->reduced = device_take(b->device, reduce_bytes);
    b->out = device_take(b->device, rows_bytes);
    b->zeros = device_take(b->device, rows_bytes);
    b->y = device_take(b->device, y_bytes);
    b->mine = device_take(b->device, most);
    b->to = device_take(b->device, most);
    b->experts = device_take(b->device, sizeof(b->chosen));
    b->weights = device_take(b->device, sizeof(b->chosen));
    b->picks = device_take(b->device, (EXPERTS + 1) * sizeof(*b->picks));
    device_fill(b->device, b->stream, b->x, x_bytes / sizeof(float));
    static uint16_t ones[1 << 15];
    for (size_t i = 0; i < sizeof(ones) / sizeof(ones[0]); i++)
        ones[i] = ONE_BF16;
    for (size_t at = 0; at < y_bytes; at += sizeof(ones))
        put(b, (char *)b->y + at, ones, y_bytes - at < sizeof(ones) ? y_bytes - at : sizeof(ones));
    for (uint32_t e = 0; e <= EXPERTS; e++)
        b->begin[e] = e;
    for (uint32_t e = 0; e < EXPERTS; e++)
        b->ranks[e] = e % SIZE;
}

static void free_memory(struct bench *b)
{
    void *const blocks[] = {b->x,    b->reduced, b->out,     b->zeros,   b->y,
                            b->mine, b->to,      b->experts, b->weights, b->picks};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        bt_device_free(b->device, blocks[i]);
    bt_device_free_host(b->device, b->pinned);
}

/* Each rank sees the other's memory. */
static void attach(struct bench *b)
{
    struct bt_shared_memory handles[SIZE];
    struct bt_error error;
    size_t bytes;
    device_must(b->device->ops->share(b->device, b->mine, &error, &handles[b->rank]), &error);
    for (uint32_t rank = 0; rank < SIZE; rank++)
        must(b, bt_group_broadcast(b->group, rank, &handles[rank], sizeof(handles[rank]), NULL));
    device_must(
        b->device->ops->attach(b->device, &handles[1 - b->rank], &error, &b->theirs, &bytes),
        &error);
}

static void run_rank(struct bench *b, const char *endpoint)
{
    const struct bt_stream_limits limits = {.max_rows = 1};
    struct bt_error error = {0};
    if (device_open("groups", "cuda", NULL, b->rank, &b->device))
        _exit(1);
    device_must(bt_device_stream_create(b->device, &limits, NULL, &error, &b->stream), &error);
    device_must(b->device->ops->event_create(b->device, &error, &b->event), &error);
    make_memory(b);
    const struct bt_group_options options = {
        .transport = "nccl",
        .rank = b->rank,
        .size = SIZE,
        .endpoint = endpoint,
        .secret = "of a benchmark",
        .connect_timeout_ns = 60 * BT_NS_PER_S,
        .wait_timeout_ns = 60 * BT_NS_PER_S,
        .limits = {.floats = b->reduce_floats,
                   .broadcast_bytes = sizeof(struct bt_shared_memory),
                   .rows = ROWS_MOST,
                   .hidden = b->hidden,
                   .experts = EXPERTS,
                   .experts_per_token = PER_TOKEN},
    };
    if (bt_group_create(&options, &error, &b->group) != BT_OK)
        die(error.text);
    attach(b);
    if (!bt_group_use_stream(b->group, b->stream))
        die("this group knows no streams");
    measure_all(b);
    must(b, bt_group_barrier(b->group)); /* nobody reads the other's memory any more */
    b->device->ops->detach(b->device, b->theirs);
    must(b, bt_group_barrier(b->group));
    bt_group_use_stream(b->group, NULL);
    bt_group_destroy(b->group);
    free_memory(b);
    b->device->ops->event_destroy(b->event);
    bt_device_stream_destroy(b->device, b->stream);
    bt_device_close(b->device);
}

int groups_device_run(unsigned rounds, bool quick)
{
    static struct bench b;
    char dir[] = "/tmp/baton-groups-XXXXXX", endpoint[64];
    pid_t pids[SIZE];
    int failed = 0;
    if (!mkdtemp(dir))
        die("no directory");
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/group", dir);
    b.rounds = rounds < ROUNDS_MOST ? rounds : ROUNDS_MOST;
    b.quick = quick;
    b.hidden = quick ? 128 : 7168;
    b.reduce_floats = (quick ? REDUCE_BYTES / 64 : REDUCE_BYTES) / sizeof(float);
    fflush(NULL);
    for (b.rank = 0; b.rank < SIZE; b.rank++) {
        pids[b.rank] = fork();
        if (pids[b.rank] < 0)
            die("no process");
        if (pids[b.rank] != 0)
            continue;
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        run_rank(&b, endpoint);
        exit(0);
    }
    for (uint32_t rank = 0; rank < SIZE; rank++) {
        int status;
        failed |= waitpid(pids[rank], &status, 0) != pids[rank] || status != 0;
    }
    rmdir(dir);
    return failed;
}

/* ---- whether there are two ---- */

#define CPU 3 /* exit code of who looked */

static int look(const char *name)
{
    struct bt_device *device = NULL;
    if (strncmp(name, "cuda:", strlen("cuda:")) == 0) {
        fprintf(stderr, "groups: device %s: two ranks take two GPUs: --device cuda\n", name);
        return 2;
    }
    int refused = device_open("groups", name, NULL, 0, &device);
    if (refused)
        return refused;
    bool host = device->memory == BT_MEMORY_HOST;
    uint32_t count = host ? 0 : device_count();
    bt_device_close(device);
    if (host)
        return CPU;
    if (count >= SIZE)
        return 0;
    fprintf(stderr, "groups: device %s: two ranks over nccl take two GPUs, and there is %u here\n",
            name, count);
    return strcmp(name, "auto") == 0 ? CPU : DEVICE_SKIPPED;
}

int groups_device_look(const char *name)
{
    int status;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        int code = look(name);
        fflush(NULL);
        _exit(code);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        fprintf(stderr, "groups: device %s: the process that looked for it did not end well\n",
                name);
        return 1;
    }
    return WEXITSTATUS(status) == CPU ? -1 : WEXITSTATUS(status);
}
