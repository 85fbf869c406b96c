/*
 * `groups [--device DEVICE] [--rounds N] [--quick] [--rows A,B]`: what the collectives of a group
 * cost, between two processes on two CPUs, against limits that are measured in the same run, in
 * turns with them.
 *
 * Prints `figure NAME VALUE UNIT LIMIT RATIO`.
 *
 *     dispatch_Nrows, combine_Nrows   us of a call as decode makes it: N rows a rank, hidden 7168,
 *                                     top 8 of 256 experts that are dealt out in turn, bf16 both
 *                                     ways. LIMIT: a memcpy of the bytes that come in, out of
 *                                     memory that is in no cache; for 1 row also the time that a
 *                                     flag in shared memory takes from one process to the other,
 *                                     which is what the transport itself takes.
 *     dispatch_Nrows_bandwidth, …     GB/s of the bytes that come in, in that time.
 *     allreduce_4m                    us for 4 MiB. LIMIT: a memcpy of the bytes that come in.
 *     wire_bytes_over_formula         bytes counted over formulas 26 and 27 of the resource model
 *                                     for this layout: rows that have an expert on the other rank,
 *                                     once a rank, and every remote expert's row on its way back.
 *
 *     bytes_LAYOUT_KIND_per_token     what all ranks together send for a token of the tiny model;
 * LIMIT is the prediction of wire_bytes.h, RATIO VALUE / LIMIT.
 *
 * And what placement.h and steps.h say. `--rows A,B`: the median step of bench_uneven_steps alone.
 *
 * `--device` as the workers have it: where it is a GPU, the collectives alone, over NCCL between
 * two of them (groups_device.h); exit 77 where there are no two. --quick is for these alone.
 *
 * RATIO is LIMIT / VALUE, the share of the limit that is reached; of wire_bytes_over_formula,
 * VALUE / LIMIT. Both ranks work on random rows that are new in every call.
 */
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/base/random.h"
#include "common/parallel/group.h"
#include "tests/bench/groups_device.h"
#include "tests/bench/placement.h"
#include "tests/bench/steps.h"
#include "tests/unit/model-groups/wire_bytes.h"

#define SIZE         2
#define HIDDEN       7168
#define EXPERTS      256
#define PER_TOKEN    8
#define ROWS_MOST    128
#define REDUCE_BYTES ((size_t)4 << 20)
#define COLD_BYTES   ((size_t)256 << 20)
#define PINGS        2000

static int rounds = 31;

static const uint32_t row_counts[] = {1, 8, 32, 128};
#define ROW_COUNTS (sizeof(row_counts) / sizeof(row_counts[0]))

/* What both processes see. */
struct shared {
    _Alignas(128) _Atomic uint32_t ping;
    _Alignas(128) _Atomic uint32_t pong;
};

struct bench {
    uint32_t rank;
    struct shared *shared;
    struct bt_group *group;
    float *x, *out;
    uint16_t *y;
    uint32_t experts[ROWS_MOST * PER_TOKEN];
    float weights[ROWS_MOST * PER_TOKEN];
    uint32_t begin[EXPERTS + 1], ranks[EXPERTS];
    char *cold, *to;
    size_t cold_at;
    uint64_t rows_sent, picks_returned; /* to the other rank; by the formula */
};

static void die(const char *what)
{
    fprintf(stderr, "groups: %s\n", what);
    _exit(1);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values)
{
    qsort(values, (size_t)rounds, sizeof(*values), compare);
    return values[rounds / 2];
}

static double now_us(void)
{
    return (double)bt_clock_now_ns() / 1e3;
}

/* ---- limits ---- */

/* One way, both spinning. */
static double flag_us(struct bench *b)
{
    double start = 0;
    atomic_store(&b->shared->ping, 0);
    atomic_store(&b->shared->pong, 0);
    bt_group_barrier(b->group);
    for (uint32_t i = 1; i <= PINGS; i++) {
        if (i == PINGS / 10)
            start = now_us();
        if (b->rank == 0)
            atomic_store_explicit(&b->shared->ping, i, memory_order_release);
        _Atomic uint32_t *flag = b->rank == 0 ? &b->shared->pong : &b->shared->ping;
        while (atomic_load_explicit(flag, memory_order_acquire) != i)
            __builtin_ia32_pause();
        if (b->rank != 0)
            atomic_store_explicit(&b->shared->pong, i, memory_order_release);
    }
    return (now_us() - start) / (PINGS - PINGS / 10) / 2;
}

/* Source memory that was not touched for as long as the caches hold something. */
static double memcpy_us(struct bench *b, size_t bytes)
{
    if (b->cold_at + bytes > COLD_BYTES)
        b->cold_at = 0;
    bt_group_barrier(b->group); /* both ranks copy at once, as they do in the calls */
    double start = now_us();
    memcpy(b->to, b->cold + b->cold_at, bytes);
    double took = now_us() - start;
    b->cold_at += bytes;
    return took;
}

/* ---- calls ---- */

/* Distinct experts, in no order, and rows that no cache knows. */
static void new_rows(struct bench *b, uint32_t rows, uint64_t round)
{
    uint8_t deck[EXPERTS];
    for (uint32_t e = 0; e < EXPERTS; e++)
        deck[e] = (uint8_t)e;
    for (uint32_t pick = 0; pick < rows * PER_TOKEN; pick++) {
        uint32_t place = pick % PER_TOKEN;
        uint64_t draw = bt_random_u64(b->rank, round << 20 | pick, 0);
        uint32_t other = place + (uint32_t)(draw % (EXPERTS - place));
        uint8_t expert = deck[other];
        deck[other] = deck[place];
        deck[place] = expert;
        b->experts[pick] = expert;
        b->weights[pick] = 0.125f;
    }
    for (size_t i = 0; i < (size_t)rows * HIDDEN; i++)
        b->x[i] = (float)((i * 37 + round) % 1000) * 1e-3f;
}

/* Formula 27 for this layout: only what is remote, one copy a rank. */
static void count_formula(struct bench *b, uint32_t rows, const struct bt_arrivals *arrivals)
{
    uint32_t own_picks = 0;
    for (uint32_t row = 0; row < rows; row++) {
        bool remote = false;
        for (uint32_t place = 0; place < PER_TOKEN; place++) {
            bool there = b->experts[row * PER_TOKEN + place] % SIZE != b->rank;
            remote = remote || there;
            own_picks += !there;
        }
        b->rows_sent += remote;
    }
    b->picks_returned += arrivals->picks - own_picks;
}

struct times {
    double dispatch, combine;
    size_t dispatch_bytes, combine_bytes; /* that came in */
};

static struct times call_once(struct bench *b, uint32_t rows, uint64_t round)
{
    const struct bt_routing routing = {.experts = b->experts, .weights = b->weights};
    const struct bt_placement_layer placement = {.begin = b->begin, .ranks = b->ranks};
    struct bt_group_traffic before, after;
    struct bt_arrivals arrivals;
    struct times times = {0};
    uint64_t in[2 * SIZE], sent[2];

    new_rows(b, rows, round);
    bt_group_traffic(b->group, &before);
    bt_group_barrier(b->group);
    double start = now_us();
    if (bt_group_dispatch_begin(b->group, BT_DISPATCH_LATENCY, b->x, rows, &routing, &placement,
                                BT_BF16) != BT_OK ||
        bt_group_dispatch_finish(b->group, &arrivals) != BT_OK)
        die(bt_group_error(b->group));
    times.dispatch = now_us() - start;
    memset(b->y, (int)round & 0x3f, (size_t)arrivals.picks * HIDDEN * sizeof(*b->y));
    bt_group_barrier(b->group);
    start = now_us();
    if (bt_group_combine(b->group, b->y, BT_BF16, &routing, b->out) != BT_OK)
        die(bt_group_error(b->group));
    times.combine = now_us() - start;
    bt_group_traffic(b->group, &after);
    count_formula(b, rows, &arrivals);
    sent[0] = after.dispatch - before.dispatch;
    sent[1] = after.combine - before.combine;
    bt_group_agree_begin(b->group, sent, 2);
    bt_group_agree_finish(b->group, in);
    times.dispatch_bytes = in[2 * (1 - b->rank)];
    times.combine_bytes = in[2 * (1 - b->rank) + 1];
    return times;
}

static double reduce_us(struct bench *b)
{
    bt_group_barrier(b->group);
    double start = now_us();
    if (bt_group_all_reduce(b->group, b->x, REDUCE_BYTES / sizeof(float)) != BT_OK)
        die(bt_group_error(b->group));
    return now_us() - start;
}

/* ---- figures ---- */

static void print_figure(const char *name, double value, const char *unit, double limit,
                         double ratio)
{
    printf("figure %s %.4g %s %.4g %.3f\n", name, value, unit, limit, ratio);
    fflush(stdout);
}

/* The time, and what bandwidth of the bytes that come in it is. */
static void print_call(const char *call, uint32_t rows, double us, double limit_us, double bytes)
{
    char name[40];
    snprintf(name, sizeof(name), "%s_%urows", call, rows);
    print_figure(name, us, "us", limit_us, limit_us / us);
    snprintf(name, sizeof(name), "%s_%urows_bandwidth", call, rows);
    print_figure(name, bytes / us * 1e-3, "GB/s", bytes / limit_us * 1e-3, limit_us / us);
}

static void measure_experts(struct bench *b, uint32_t rows)
{
    double *values = calloc((size_t)rounds * 5, sizeof(*values)), *dispatch = values;
    double *combine = dispatch + rounds, *dispatch_limit = combine + rounds;
    double *combine_limit = dispatch_limit + rounds, *flags = combine_limit + rounds;
    double dispatch_bytes = 0, combine_bytes = 0;

    if (!values)
        die("no memory");
    for (int i = -3; i < rounds; i++) { /* some to warm up */
        int at = i < 0 ? 0 : i;
        struct times times = call_once(b, rows, (uint64_t)(i + 3));
        dispatch[at] = times.dispatch;
        combine[at] = times.combine;
        dispatch_bytes += (double)times.dispatch_bytes / (rounds + 3);
        combine_bytes += (double)times.combine_bytes / (rounds + 3);
        flags[at] = rows == 1 ? flag_us(b) : 0;
        dispatch_limit[at] = memcpy_us(b, times.dispatch_bytes) + flags[at];
        combine_limit[at] = memcpy_us(b, times.combine_bytes) + flags[at];
    }
    if (b->rank == 0) {
        print_call("dispatch", rows, median(dispatch), median(dispatch_limit), dispatch_bytes);
        print_call("combine", rows, median(combine), median(combine_limit), combine_bytes);
    }
    free(values);
}

static void measure_reduce(struct bench *b)
{
    double *values = calloc((size_t)rounds * 2, sizeof(*values)), *limits = values + rounds;
    if (!values)
        die("no memory");
    for (int i = -3; i < rounds; i++) {
        values[i < 0 ? 0 : i] = reduce_us(b);
        limits[i < 0 ? 0 : i] = memcpy_us(b, REDUCE_BYTES);
    }
    double took = median(values), limit = median(limits);
    if (b->rank == 0)
        print_figure("allreduce_4m", took, "us", limit, limit / took);
    free(values);
}

static void measure_all(struct bench *b)
{
    struct bt_group_traffic traffic;
    for (size_t i = 0; i < ROW_COUNTS; i++)
        measure_experts(b, row_counts[i]);
    measure_reduce(b);
    bt_group_traffic(b->group, &traffic);
    double formula = (double)(b->rows_sent + b->picks_returned) * HIDDEN * 2;
    double counted = (double)(traffic.dispatch + traffic.combine);
    if (b->rank == 0)
        print_figure("wire_bytes_over_formula", counted / formula, "-", 1, counted / formula);
}

/* ---- processes ---- */

static void *allocate(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory)
        die("no memory");
    memset(memory, 1, bytes);
    return memory;
}

static void run_rank(uint32_t rank, const char *endpoint, struct shared *shared)
{
    const struct bt_group_options options = {
        .transport = "ucx",
        .rank = rank,
        .size = SIZE,
        .endpoint = endpoint,
        .secret = "of a benchmark",
        .connect_timeout_ns = 30 * BT_NS_PER_S,
        .wait_timeout_ns = 60 * BT_NS_PER_S,
        .limits = {.floats = REDUCE_BYTES / sizeof(float),
                   .rows = ROWS_MOST,
                   .hidden = HIDDEN,
                   .experts = EXPERTS,
                   .experts_per_token = PER_TOKEN},
    };
    size_t floats = REDUCE_BYTES / sizeof(float);
    struct bench *b = allocate(sizeof(*b));
    struct bt_error error = {0};

    memset(b, 0, sizeof(*b));
    b->rank = rank;
    b->shared = shared;
    b->x = allocate(floats * sizeof(*b->x)); /* of a reduction and of rows */
    b->out = allocate((size_t)ROWS_MOST * HIDDEN * sizeof(*b->out));
    b->y = allocate((size_t)SIZE * ROWS_MOST * PER_TOKEN * HIDDEN * sizeof(*b->y));
    b->cold = allocate(COLD_BYTES);
    b->to = allocate((size_t)SIZE * ROWS_MOST * PER_TOKEN * HIDDEN * sizeof(*b->y));
    for (uint32_t e = 0; e <= EXPERTS; e++)
        b->begin[e] = e;
    for (uint32_t e = 0; e < EXPERTS; e++)
        b->ranks[e] = e % SIZE;
    if (bt_group_create(&options, &error, &b->group) != BT_OK)
        die(error.text);
    measure_all(b);
    bt_group_destroy(b->group);
    exit(0);
}

static void pin(uint32_t rank)
{
    cpu_set_t all, one;
    uint32_t seen = 0;
    if (sched_getaffinity(0, sizeof(all), &all) != 0)
        return;
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && seen++ == rank)
            CPU_SET(cpu, &one);
    if (CPU_COUNT(&one) == 1)
        sched_setaffinity(0, sizeof(one), &one);
}

/* Bound, and not listening: the kernel gives the port to nobody else. */
static void reserve_endpoint(char *ret_endpoint, size_t size)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    const int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
        bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        die("no port");
    snprintf(ret_endpoint, size, "tcp://127.0.0.1:%u", ntohs(address.sin_port));
}

static int run_collectives(void)
{
    struct shared *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char endpoint[64];
    pid_t pids[SIZE];
    int failed = 0;

    if (shared == MAP_FAILED)
        die("no memory");
    reserve_endpoint(endpoint, sizeof(endpoint));
    for (uint32_t rank = 0; rank < SIZE; rank++) {
        pids[rank] = fork();
        if (pids[rank] < 0)
            die("no process");
        if (pids[rank] != 0)
            continue;
        pin(rank);
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        run_rank(rank, endpoint, shared);
    }
    for (uint32_t rank = 0; rank < SIZE; rank++) {
        int status;
        failed |= waitpid(pids[rank], &status, 0) != pids[rank] || status != 0;
    }
    munmap(shared, sizeof(*shared));
    return failed;
}

static int run_placement(void)
{
    return bench_placement() ? 0 : 1;
}

static int run_steps(void)
{
    return bench_steps((uint32_t)rounds) ? 0 : 1;
}

/* What ranks of the tiny model send each other for a token, over what the model of it says; and how
 * evenly four of them are loaded. */
static int run_bytes(void)
{
    struct wire_report report;
    if (!wire_bytes_measure(TESTS_MODELS, &report))
        return 1;
    for (size_t i = 0; i < report.count; i++) {
        const struct wire_figure *figure = &report.figures[i];
        char name[96];
        snprintf(name, sizeof(name), "bytes_%.64s_per_token", figure->name);
        print_figure(name, figure->sent, "B", figure->predicted, figure->sent / figure->predicted);
    }
    return bench_placement_of("tiny_", report.layers, report.experts, 4, report.loads) ? 0 : 1;
}

/* Each prints its figures; 0: well. */
static int (*const sections[])(void) = {run_collectives, run_placement, run_steps, run_bytes};

int main(int argc, char **argv)
{
    uint32_t rows[2];
    int failed = 0;
    bool uneven = false, quick = false;
    const char *device = "auto";
    for (int i = 1; i < argc; i += 2) {
        bool more = i + 1 < argc;
        if (more && strcmp(argv[i], "--rounds") == 0 && atoi(argv[i + 1]) > 0) {
            rounds = atoi(argv[i + 1]);
        } else if (more && strcmp(argv[i], "--device") == 0) {
            device = argv[i + 1];
        } else if (strcmp(argv[i], "--quick") == 0) {
            quick = true;
            i--;
        } else if (more && strcmp(argv[i], "--rows") == 0 &&
                   sscanf(argv[i + 1], "%u,%u", &rows[0], &rows[1]) == 2) {
            uneven = true;
        } else {
            fprintf(stderr, "usage: groups [--device auto|cpu|cuda] [--rounds N] [--quick] "
                            "[--rows A,B]\n");
            return 2;
        }
    }
    if (uneven)
        return bench_uneven_steps((uint32_t)rounds, rows) ? 0 : 1;
    int on_device = groups_device_look(device);
    if (on_device >= 0)
        return on_device ? on_device : groups_device_run(quick ? 2 : (unsigned)rounds, quick);
    for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]); i++)
        failed |= sections[i]();
    return failed;
}
