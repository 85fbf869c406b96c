/*
 * `transfer [--device DEVICE] [--quick] [--svg FILE] [SECTION...]`: what the handoff costs, against
 * limits that are measured in the same run, in turns with it. Sections: shm, tcp, posts, visible,
 * slowdown; none: all. `--device` as the workers have it: where it is a GPU, pools are in its
 * memory (see transfer_device.h), names of figures end with _cuda, and sections are ipc, staged and
 * rdma;
 * --quick is for those alone. Exit 77: that device is not here.
 *
 * Prints `figure NAME VALUE UNIT LIMIT RATIO`; RATIO is the share of the limit that is reached
 * (above 1: better). Source and target are two processes; the checksum is on, as in the workers.
 *
 * The pushes are of 3260 tokens of 576 bf16 in 27 or 61 layers, in pages that are neighbours. The
 * limits move the same number of bytes between memory of the same size, larger than the caches:
 * memcpy in one call, and `ucx_perftest` with one message of that size, its two processes spinning
 * on a core each, in its fastest test (put over shared memory; active messages over TCP, where its
 * puts are emulated).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <arpa/inet.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/process.h"
#include "deploy/batonctl/chart.h"
#include "tests/bench/transfer_device.h"
#include "tests/conformance/target_host.h"

#define ROUNDS       5
#define PUSHES       3 /* a round */
#define TOKENS       3260
#define PAGES        51
#define CHUNK_TOKENS 512 /* the prefill worker's default */

static struct bt_kv_layout make_layout(uint32_t layers)
{
    return (struct bt_kv_layout){
        .layer_count = layers, .kv_lora_rank = 512, .qk_rope_head_dim = 64, .dtype = BT_BF16};
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare);
    return values[count / 2];
}

static double cpu_s(void)
{
    struct timespec spent;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    return (double)spent.tv_sec + (double)spent.tv_nsec / 1e9;
}

static double seconds_since(int64_t begin_ns)
{
    return (double)(bt_clock_now_ns() - begin_ns) / 1e9;
}

static void figure(const char *name, double value, const char *unit, double limit, double ratio)
{
    printf("figure %s %.4g %s %.4g %.3f\n", name, value, unit, limit, ratio);
    fflush(stdout);
}

/* ---- limits ---- */

static double memcpy_gb_per_s(char *to, const char *from, size_t bytes)
{
    int64_t begin_ns = bt_clock_now_ns();

    memcpy(to, from, bytes);
    return (double)bytes / 1e9 / seconds_since(begin_ns);
}

static int free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, size) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    close(fd);
    return ntohs(address.sin_port);
}

static void run_perftest(const char *transport, int port, size_t bytes, bool client)
{
    bool shm = strcmp(transport, "shm") == 0;
    char port_text[16], bytes_text[32];

    setenv("UCX_TLS", shm ? "posix,sysv" : "tcp", 1);
    setenv("UCX_NET_DEVICES", "lo", 1);
    snprintf(port_text, sizeof(port_text), "%d", port);
    snprintf(bytes_text, sizeof(bytes_text), "%zu", bytes);
    if (client)
        execlp("ucx_perftest", "ucx_perftest", "127.0.0.1", "-p", port_text, "-t",
               shm ? "ucp_put_bw" : "ucp_am_bw", "-s", bytes_text, "-n", "6", "-w", "2", "-f", "-c",
               "1", (char *)NULL);
    else
        execlp("ucx_perftest", "ucx_perftest", "-p", port_text, "-c", "0", (char *)NULL);
    _exit(127);
}

static pid_t spawn_perftest(const char *transport, int port, size_t bytes, int *ret_fd)
{
    int fds[2] = {-1, -1};
    pid_t child;

    CHECK(ret_fd == NULL || pipe(fds) == 0);
    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int null = open("/dev/null", 2);
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        dup2(ret_fd == NULL ? null : fds[1], 1);
        dup2(null, 2);
        run_perftest(transport, port, bytes, ret_fd != NULL);
    }
    if (ret_fd != NULL) {
        close(fds[1]);
        *ret_fd = fds[0];
    }
    return child;
}

/* Waits until somebody listens, or ends. */
static bool is_listening(int port, pid_t server)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_ANY)};
    int status;

    for (int i = 0; i < 2000; i++) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        bool taken = bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0;
        close(fd);
        if (taken)
            return true;
        if (waitpid(server, &status, WNOHANG) == server)
            return false;
        poll(NULL, 0, 5);
    }
    return false;
}

/* GB/s, NAN where it is not installed or says nothing. */
static double perftest_gb_per_s(const char *transport, size_t bytes)
{
    int port = free_port(), fd, status;
    pid_t server = spawn_perftest(transport, port, bytes, NULL), client;
    double rate = NAN, columns[8];
    char line[512];
    FILE *out;

    if (!is_listening(port, server))
        return NAN;
    client = spawn_perftest(transport, port, bytes, &fd);
    out = fdopen(fd, "r");
    while (out != NULL && fgets(line, sizeof(line), out) != NULL) {
        /* "Final: iterations 50% average overall MB/s-average MB/s-overall msg/s msg/s", in MiB */
        const char *final = strstr(line, "Final:");
        const char *numbers = final != NULL ? final + 6 : line;
        if (sscanf(numbers, "%lf %lf %lf %lf %lf %lf", &columns[0], &columns[1], &columns[2],
                   &columns[3], &columns[4], &columns[5]) == 6)
            rate = columns[5] * 1048576 / 1e9;
    }
    fclose(out);
    waitpid(client, &status, 0);
    kill(server, SIGTERM);
    waitpid(server, &status, 0);
    return rate;
}

/* ---- two ends ---- */

struct ends {
    struct bt_kv_layout layout;
    uint32_t pool_pages;
    struct target_host *host;
    struct kvt_source *source;
    struct kvt_link *link;
    uint64_t epoch;
};

/* The source's thread inherits the affinity of the caller. */
static void ends_open(struct ends *ends, const char *transport, const struct bt_kv_layout *layout,
                      uint32_t pool_pages)
{
    struct kvt_target_options target = {
        .transport = transport, .layout = *layout, .pool_pages = pool_pages, .max_jobs = 4};
    struct kvt_source_options options = {.transport = transport,
                                         .layout = *layout,
                                         .pool_pages = pool_pages,
                                         .incarnation = 1,
                                         .checksum = true,
                                         .max_pushes = 4};
    struct kvt_remote remote;

    *ends = (struct ends){.layout = *layout, .pool_pages = pool_pages, .epoch = 100};
    fflush(NULL);
    ends->host = target_host_start(&target, false, 7);
    CHECK(kvt_source_create(&options, NULL, &ends->source) == BT_OK);
    memset(kvt_source_pool(ends->source), 3, bt_kv_pool_bytes(layout, pool_pages));
    target_host_remote(ends->host, &remote);
    CHECK(kvt_source_connect(ends->source, &remote, NULL, &ends->link) == BT_OK);
    while (kvt_link_state(ends->link) == KVT_LINK_CONNECTING)
        poll(NULL, 0, 1);
    CHECK(strcmp(kvt_link_transport(ends->link), transport) == 0);
}

static void ends_close(struct ends *ends)
{
    kvt_link_release(ends->link);
    kvt_source_destroy(ends->source);
    target_host_stop(ends->host);
}

static struct kvt_push *open_push(struct ends *ends, const uint32_t *pages, uint32_t tokens,
                                  bool layerwise)
{
    struct kvt_push_spec spec = {.request = 1,
                                 .epoch = ++ends->epoch,
                                 .link = ends->link,
                                 .source_pages = pages,
                                 .target_pages = pages,
                                 .prompt_tokens = tokens,
                                 .layerwise = layerwise};
    struct kvt_push *push;

    CHECK(kvt_push_open(ends->source, &spec, NULL, &push) == BT_OK);
    kvt_push_lease(push, bt_clock_now_ns() + 60 * BT_NS_PER_S);
    return push;
}

static struct kvt_push_event end_push(struct ends *ends, struct kvt_push *push)
{
    struct kvt_push_event event;

    CHECK(bt_queue_pop(kvt_source_events(ends->source), &event) && event.status == BT_OK);
    kvt_push_close(push);
    return event;
}

static double push_seconds(struct ends *ends, const uint32_t *pages, uint32_t tokens,
                           bool layerwise, struct kvt_push_event *ret_event)
{
    struct kvt_push *push = open_push(ends, pages, tokens, layerwise);
    int64_t begin_ns = bt_clock_now_ns();

    for (uint32_t layer = 0; layer < ends->layout.layer_count; layer++)
        kvt_push_ready(push, layer, tokens);
    kvt_push_finish(push);
    *ret_event = end_push(ends, push);
    return (double)(ret_event->end_ns - begin_ns) / 1e9;
}

static void neighbours(uint32_t *pages, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        pages[i] = i;
}

/* ---- rates ---- */

struct rates {
    double layerwise[ROUNDS], whole[ROUNDS], perftest[ROUNDS], memcpy[ROUNDS];
    double cpu_per_gb[ROUNDS], memcpy_cpu_per_gb[ROUNDS];
};

static double best_rate(struct ends *ends, bool layerwise, double *ret_cpu_per_gb)
{
    uint32_t pages[PAGES];
    double best = 0, cpu, gb = 0;
    struct kvt_push_event event;

    neighbours(pages, PAGES);
    cpu = cpu_s() + (double)target_host_cpu_ns(ends->host) / 1e9;
    for (int i = 0; i < PUSHES; i++) {
        double seconds = push_seconds(ends, pages, TOKENS, layerwise, &event);
        best = fmax(best, (double)event.bytes / 1e9 / seconds);
        gb += (double)event.bytes / 1e9;
    }
    *ret_cpu_per_gb = (cpu_s() + (double)target_host_cpu_ns(ends->host) / 1e9 - cpu) / gb;
    return best;
}

static double best_memcpy(size_t bytes, double *ret_cpu_per_gb)
{
    char *pools = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    double best = 0, cpu;

    CHECK(pools != MAP_FAILED);
    cpu = cpu_s();
    for (int i = 0; i < PUSHES; i++)
        best = fmax(best, memcpy_gb_per_s(pools + bytes, pools, bytes));
    *ret_cpu_per_gb = (cpu_s() - cpu) / ((double)bytes / 1e9 * PUSHES);
    munmap(pools, 2 * bytes);
    return best;
}

static double largest(const double *values, size_t count)
{
    double result = values[0];

    for (size_t i = 1; i < count; i++)
        result = fmax(result, values[i]);
    return result;
}

/* The best round of each: others on the machine only ever make it slower. */
static void against(const char *name, const double *values, const double *limits,
                    const char *suffix)
{
    double value = largest(values, ROUNDS), limit = largest(limits, ROUNDS);
    char full[96];

    snprintf(full, sizeof(full), "%s%s", name, suffix);
    figure(full, value, "GB/s", limit, value / limit);
}

static void print_rates(const char *transport, uint32_t layers, struct rates *rates)
{
    char name[64];

    for (int mode = 0; mode < 2; mode++) {
        const double *values = mode == 0 ? rates->layerwise : rates->whole;
        snprintf(name, sizeof(name), "%s_%s_%u", transport, mode == 0 ? "layerwise" : "whole",
                 layers);
        if (isnan(largest(rates->perftest, ROUNDS)))
            printf("# %s: no limit, ucx_perftest is not here\n", name);
        else
            against(name, values, rates->perftest, "");
        against(name, values, rates->memcpy, "_memcpy");
    }
    snprintf(name, sizeof(name), "cpu_s_per_gb_%s_%u", transport, layers);
    double cpu = median(rates->cpu_per_gb, ROUNDS);
    double limit = median(rates->memcpy_cpu_per_gb, ROUNDS);
    figure(name, cpu, "s/GB", limit, limit / cpu);
}

static void measure_rates(const char *transport, uint32_t layers)
{
    struct bt_kv_layout layout = make_layout(layers);
    size_t bytes = (size_t)layers * TOKENS * bt_kv_token_bytes(&layout);
    struct rates rates;
    struct ends ends;

    for (int i = 0; i < ROUNDS; i++)
        rates.perftest[i] = NAN;
    ends_open(&ends, transport, &layout, PAGES);
    best_rate(&ends, true, &rates.cpu_per_gb[0]); /* to warm up */
    for (int i = 0; i < ROUNDS; i++) {
        rates.layerwise[i] = best_rate(&ends, true, &rates.cpu_per_gb[i]);
        rates.perftest[i] = perftest_gb_per_s(transport, bytes);
        rates.whole[i] = best_rate(&ends, false, &rates.cpu_per_gb[i]);
        rates.memcpy[i] = best_memcpy(bytes, &rates.memcpy_cpu_per_gb[i]);
    }
    ends_close(&ends);
    print_rates(transport, layers, &rates);
}

static void section_shm_27(void)
{
    measure_rates("shm", 27);
}

static void section_shm_61(void)
{
    measure_rates("shm", 61);
}

static void section_tcp_27(void)
{
    measure_rates("tcp", 27);
}

static void section_tcp_61(void)
{
    measure_rates("tcp", 61);
}

/* Small pages that are no neighbours: each is a write of its own. */
static void measure_posts(const char *transport)
{
    const struct bt_kv_layout layout = {
        .layer_count = 61, .kv_lora_rank = 4, .qk_rope_head_dim = 4, .dtype = BT_BF16};
    uint32_t pages[512];
    double rates[ROUNDS];
    struct kvt_push_event event;
    struct ends ends;
    char name[64];

    ends_open(&ends, transport, &layout, 1024);
    for (uint32_t i = 0; i < 512; i++)
        pages[i] = 2 * (i * 201 % 512);
    for (int i = -1; i < ROUNDS; i++) {
        double seconds = push_seconds(&ends, pages, 512 * 64, false, &event);
        if (i >= 0)
            rates[i] = (double)event.writes / seconds;
    }
    ends_close(&ends);
    snprintf(name, sizeof(name), "posts_per_second_%s", transport);
    printf("figure %s %.0f 1/s - -\n", name, median(rates, ROUNDS));
    fflush(stdout);
}

static void section_posts(void)
{
    measure_posts("shm");
}

static void section_posts_tcp(void)
{
    measure_posts("tcp");
}

/* ---- visible time ---- */

#define NS_PER_TOKEN_LAYER 1000 /* of the computation that is simulated */
#define VISIBLE_ROUNDS     7
#define LENGTHS            11 /* 32, 64, ... 32768 */
#define SHORT              3  /* the index of 256 */

static const char *svg_path;

static void sleep_until(int64_t at_ns)
{
    struct timespec at = {.tv_sec = at_ns / BT_NS_PER_S, .tv_nsec = at_ns % BT_NS_PER_S};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        continue;
}

/* As the prefill worker: chunk after chunk, layer after layer. Returns when the last is done. */
static void compute(struct kvt_push *push, uint32_t layers, uint32_t tokens)
{
    int64_t at_ns = bt_clock_now_ns();

    for (uint32_t token = 0; token < tokens;) {
        uint32_t chunk = tokens - token < CHUNK_TOKENS ? tokens - token : CHUNK_TOKENS;
        token += chunk;
        for (uint32_t layer = 0; layer < layers; layer++) {
            at_ns += (int64_t)chunk * NS_PER_TOKEN_LAYER;
            sleep_until(at_ns);
            kvt_push_ready(push, layer, token);
        }
    }
}

/* From the end of the last layer to READY at the target, in milliseconds. */
static double visible_ms(struct ends *ends, uint32_t tokens, bool layerwise)
{
    uint32_t pages[32768 / 64];
    struct kvt_push_event event;
    struct kvt_push *push;
    int64_t begin_ns;

    neighbours(pages, 32768 / 64);
    push = open_push(ends, pages, tokens, layerwise);
    target_host_expect(ends->host, ends->epoch, pages, tokens);
    compute(push, ends->layout.layer_count, tokens);
    begin_ns = bt_clock_now_ns();
    kvt_push_finish(push);
    event = end_push(ends, push);
    CHECK(target_host_verify(ends->host, event.epoch, pages, tokens) == event.checksum);
    return seconds_since(begin_ns) * 1e3;
}

static uint64_t available_bytes(void)
{
    return (uint64_t)sysconf(_SC_AVPHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* The longest prompt for which pushing it as a whole is no slower to be seen. */
static unsigned find_threshold(const double *x, double (*values)[LENGTHS])
{
    unsigned result = 0;

    for (size_t i = 0; i < LENGTHS; i++)
        if (values[1][i] <= values[0][i])
            result = (unsigned)x[i];
    return result;
}

static void print_visible(uint32_t layers, const double *x, double (*values)[LENGTHS])
{
    const struct ctl_chart_series series[] = {
        {"layer by layer", CTL_CHART_LINE_POINTS, false, x, values[0], LENGTHS},
        {"whole", CTL_CHART_LINE_POINTS, false, x, values[1], LENGTHS},
    };
    const struct ctl_chart chart = {.title = "Visible transfer time",
                                    .x = {.name = "prompt tokens", .scale = CTL_CHART_LOG2},
                                    .y = {.name = "ms", .scale = CTL_CHART_LOG10},
                                    .series = series,
                                    .series_count = 2};

    printf("# visible time (last layer computed to READY), shm, %u layers, computing at %d ns per "
           "token and layer in chunks of %d\n# %8s %14s %14s\n",
           layers, NS_PER_TOKEN_LAYER, CHUNK_TOKENS, "tokens", "layerwise/ms", "whole/ms");
    for (size_t i = 0; i < LENGTHS; i++)
        printf("# %8.0f %14.3f %14.3f\n", x[i], values[0][i], values[1][i]);
    figure("visible_256", values[0][SHORT], "ms", values[1][SHORT],
           values[1][SHORT] / values[0][SHORT]);
    figure("visible_32k", values[0][LENGTHS - 1], "ms", values[1][LENGTHS - 1],
           values[1][LENGTHS - 1] / values[0][LENGTHS - 1]);
    figure("visible_32k_over_256", values[0][LENGTHS - 1] / values[0][SHORT], "x", 1,
           values[0][SHORT] / values[0][LENGTHS - 1]);
    printf("figure layerwise_threshold %u tokens - -\n", find_threshold(x, values));
    if (svg_path != NULL)
        CHECK(ctl_charts_write(&chart, 1, svg_path, NULL) == BT_OK);
}

static void section_visible(void)
{
    struct bt_kv_layout layout = make_layout(27);
    double x[LENGTHS], values[2][LENGTHS], rounds[VISIBLE_ROUNDS];
    struct ends ends;

    if (available_bytes() < UINT64_C(5) << 30)
        layout.layer_count = 4;
    if (available_bytes() < UINT64_C(1) << 30) {
        printf("# visible time skipped: less than 1 GiB of memory is free\n");
        return;
    }
    ends_open(&ends, "shm", &layout, 32768 / 64);
    visible_ms(&ends, 32768, true); /* to touch all pages at both ends */
    for (size_t i = 0; i < LENGTHS; i++) {
        x[i] = 32 << i;
        for (int mode = 0; mode < 2; mode++) {
            for (int round = 0; round < VISIBLE_ROUNDS; round++)
                rounds[round] = visible_ms(&ends, (uint32_t)x[i], mode == 0);
            values[mode][i] = median(rounds, VISIBLE_ROUNDS);
        }
    }
    ends_close(&ends);
    print_visible(layout.layer_count, x, values);
}

/* ---- what the pushing thread costs the computation ---- */

#define MATRIX          512 /* f32, squared: 1 MiB */
#define SLOWDOWN_ROUNDS 7
#define SLOWDOWN_NS     (250 * BT_NS_PER_MS)

static void pin_to(int core)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(core, &set);
    CHECK(sched_setaffinity(0, sizeof(set), &set) == 0);
}

/* A linear layer, over and over: rows a second. */
static double compute_rate(const float *weights, const float *input, float *output)
{
    int64_t begin_ns = bt_clock_now_ns();
    uint64_t rows = 0;

    while (bt_clock_now_ns() - begin_ns < SLOWDOWN_NS) {
        for (int row = 0; row < MATRIX; row++) {
            float sums[16] = {0};
            for (int column = 0; column < MATRIX; column += 16)
                for (int lane = 0; lane < 16; lane++)
                    sums[lane] += weights[row * MATRIX + column + lane] * input[column + lane];
            output[row] = sums[0] + sums[7] + sums[15];
        }
        rows += MATRIX;
    }
    return (double)rows / seconds_since(begin_ns);
}

struct pusher {
    struct ends *ends;
    _Atomic bool stop;
};

/* Prompts of 4096 tokens, one after the other, at the pace of `compute`. */
static void *push_always(void *arg)
{
    struct pusher *pusher = arg;
    uint32_t pages[64];

    neighbours(pages, 64);
    while (!atomic_load(&pusher->stop)) {
        struct kvt_push *push = open_push(pusher->ends, pages, 64 * 64, true);
        compute(push, pusher->ends->layout.layer_count, 64 * 64);
        kvt_push_finish(push);
        end_push(pusher->ends, push);
    }
    return NULL;
}

static double rate_while_pushing(struct ends *ends, const float *weights, const float *input,
                                 float *output)
{
    struct pusher pusher = {.ends = ends};
    pthread_t thread;
    double rate;

    CHECK(pthread_create(&thread, NULL, push_always, &pusher) == 0);
    rate = compute_rate(weights, input, output);
    atomic_store(&pusher.stop, true);
    CHECK(pthread_join(thread, NULL) == 0);
    return rate;
}

static void measure_slowdown(const char *name, int pushing_core, int computing_core)
{
    struct bt_kv_layout layout = make_layout(27);
    float *weights = calloc((size_t)MATRIX * MATRIX, sizeof(float));
    float *vectors = calloc((size_t)2 * MATRIX, sizeof(float));
    double ratios[SLOWDOWN_ROUNDS];
    struct ends ends;
    double ratio;

    CHECK(weights != NULL && vectors != NULL);
    pin_to(pushing_core);
    ends_open(&ends, "shm", &layout, 64);
    pin_to(computing_core);
    compute_rate(weights, vectors, vectors + MATRIX);
    for (int i = 0; i < SLOWDOWN_ROUNDS; i++) {
        double alone = compute_rate(weights, vectors, vectors + MATRIX);
        ratios[i] = rate_while_pushing(&ends, weights, vectors, vectors + MATRIX) / alone;
    }
    ends_close(&ends);
    free(weights);
    free(vectors);
    ratio = median(ratios, SLOWDOWN_ROUNDS);
    figure(name, 1 / ratio, "x", 1, ratio);
}

static void section_slowdown(void)
{
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);

    measure_slowdown("compute_slowdown", cores > 1, 0);
}

static void section_slowdown_same_core(void)
{
    measure_slowdown("compute_slowdown_same_core", 0, 0);
}

/* ---- on a device ---- */

static struct transfer_device on = {.name = "auto"};

static void section_device_ipc(void)
{
    transfer_device_ipc(&on);
}

static void section_device_shm(void)
{
    transfer_device_staged(&on, "shm");
}

static void section_device_tcp(void)
{
    transfer_device_staged(&on, "tcp");
}

static void section_device_rdma(void)
{
    transfer_device_rdma(&on);
}

/* ---- running ---- */

struct section {
    const char *group;
    void (*run)(void);
};

static const struct section host_sections[] = {
    {"shm", section_shm_27},
    {"shm", section_shm_61},
    {"tcp", section_tcp_27},
    {"tcp", section_tcp_61},
    {"posts", section_posts},
    {"posts", section_posts_tcp},
    {"visible", section_visible},
    {"slowdown", section_slowdown},
    {"slowdown", section_slowdown_same_core},
    {NULL, NULL},
};

static const struct section device_sections[] = {
    {"ipc", section_device_ipc},
    {"staged", section_device_shm},
    {"staged", section_device_tcp},
    {"rdma", section_device_rdma},
    {NULL, NULL},
};

/* Each in a process of its own: UCX is not made for fork. */
static bool run_section(void (*run)(void))
{
    int status;
    pid_t child;

    fflush(NULL);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        run();
        exit(0);
    }
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static bool is_wanted(const char *group, int count, char **wanted)
{
    for (int i = 0; i < count; i++)
        if (strcmp(wanted[i], group) == 0)
            return true;
    return count == 0;
}

static bool parse(int argc, char **argv)
{
    static const struct option table[] = {{"svg", required_argument, NULL, 's'},
                                          {"device", required_argument, NULL, 'd'},
                                          {"quick", no_argument, NULL, 'q'},
                                          {NULL, 0, NULL, 0}};

    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        if (c == 's')
            svg_path = optarg;
        else if (c == 'd')
            on.name = optarg;
        else if (c == 'q')
            on.quick = true;
        else
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    bool good = true;
    int device;

    if (!parse(argc, argv)) {
        fprintf(stderr, "usage: transfer [--device auto|cpu|cuda[:N]] [--quick] [--svg FILE] "
                        "[SECTION...]\n");
        return 2;
    }
    bt_log_init("bench", BT_LOG_WARN);
    device = transfer_device_look(&on);
    if (device > 0)
        return device;
    for (const struct section *section = device == 0 ? device_sections : host_sections;
         section->group != NULL; section++)
        if (is_wanted(section->group, argc - optind, argv + optind))
            good = run_section(section->run) && good;
    return good ? 0 : 1;
}
