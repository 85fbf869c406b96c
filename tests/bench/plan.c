/*
 * plan --model DIR | --shape NAME [--dtype NAME] [--device DEVICE] [--cores N] [--kernels NAME]
 *      [--out DIR] [--quick]
 *
 * The planner against this machine's engine: peaks of the CPU and the engine's prefill and decode
 * times are measured, the planner is calibrated on some lengths and batches, and its estimates are
 * compared with measured times of others. Prints a table, and for each case that was not calibrated
 * with
 *
 *     figure plan_prefill_512_error VALUE % 0 RATIO
 *     figure plan_decode_1024_x4_error VALUE % 0 RATIO
 *
 * with RATIO estimated over measured and VALUE how far it is from 1. With --out two files are made
 * for `batonctl plan`: DIR/catalogue.json, where this machine is called cpu-here, and
 * DIR/calibration.json; and DIR/comparison.json with the table.
 *
 * `--device` as the workers have it: on a GPU (auto: where there is one) peaks and times are that
 * GPU's, names of figures end with _cuda, the catalogue calls it gpu-here, and its links are held
 * to be as fast as copies to pinned memory of the host, until somebody edits them. Exit 77: that
 * device is not here. --quick is then of a few short runs, which say nothing.
 */
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/kernels/kernels.h"
#include "common/kernels/team.h"
#include "common/planner/estimate.h"
#include "common/planner/plan_model.h"
#include "tests/bench/checkpoint.h"
#include "tests/bench/device_bench.h"
#include "tests/bench/engine_model.h"

#define CHUNK       2048
#define CHUNK_FEW   48 /* quick on a device */
#define POOL_TOKENS (40 * 1024)
#define COPY_BYTES  (64u << 20)

static struct {
    const char *model, *shape, *dtype, *kernels, *out, *device;
    uint32_t cores;
    bool quick;
} options = {.dtype = "bf16", .kernels = "auto", .cores = 1, .device = "auto"};

static struct bt_device *device; /* NULL: the CPU */
static uint32_t chunk = CHUNK;

struct run {
    uint32_t tokens, batch; /* batch 0: a prompt of so many; else a step at that context */
    bool calibrates;
    double measured_s, estimated_s;
    double compute_s, memory_s; /* at the peaks */
};

static struct run all_runs[] = {
    {128, 0, true},   {256, 0, false},  {512, 0, false},  {1024, 0, true}, {1536, 0, false},
    {2048, 0, false}, {4096, 0, true},  {256, 1, true},   {256, 8, true},  {512, 1, false},
    {512, 4, false},  {512, 16, false}, {1024, 4, false}, {2048, 1, true}, {2048, 8, true},
    {4096, 2, false}, {4096, 8, true},
};
/* Of an emulated GPU: nobody waits for more. */
static struct run few_runs[] = {
    {16, 0, true}, {32, 0, false}, {64, 0, true}, {16, 1, true}, {32, 2, false}, {64, 2, true},
};
static struct run *runs = all_runs;
static size_t run_count = sizeof(all_runs) / sizeof(all_runs[0]);

/* ---- measuring */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double measure(struct bench_model *bench, const struct run *run)
{
    enum { MOST = 15 };
    double seconds[MOST], spent = 0;
    int count = 0, least = device && options.quick ? 1 : options.quick ? 2 : 3;
    while (count < least || (count < MOST && spent < (options.quick ? 0 : 1))) {
        seconds[count] = run->batch ? bench_decode(bench, run->tokens, run->batch)
                                    : bench_prefill(bench, run->tokens, chunk);
        spent += seconds[count++];
    }
    qsort(seconds, (size_t)count, sizeof(*seconds), compare_doubles);
    return seconds[count / 2];
}

/* What shared memory carries between two processes at most: bytes copied a second. */
static double copy_rate(void)
{
    char *from = malloc(COPY_BYTES), *to = malloc(COPY_BYTES);
    double best = 0;
    if (from && to) {
        memset(from, 1, COPY_BYTES);
        memset(to, 2, COPY_BYTES);
        for (int i = 0; i < 5; i++) {
            int64_t start_ns = bt_clock_now_ns();
            memcpy(to, from, COPY_BYTES);
            __asm__ volatile("" : : "r"(to) : "memory");
            best = fmax(best, COPY_BYTES / ((double)(bt_clock_now_ns() - start_ns) / 1e9));
        }
    }
    free(from);
    free(to);
    return best;
}

/* Bytes a second between the device's memory and pinned memory of the host, each way. */
static void host_rates(double *ret_out, double *ret_in)
{
    size_t bytes = options.quick ? 1 << 16 : COPY_BYTES;
    const struct bt_stream_limits limits = {.max_rows = 1};
    struct bt_stream *stream = NULL;
    struct bt_error error;
    void *host = NULL, *memory = device_take(device, bytes);
    device_must(bt_device_alloc_host(device, bytes, &error, &host), &error);
    device_must(bt_device_stream_create(device, &limits, NULL, &error, &stream), &error);
    *ret_out = device_copy_rate(device, stream, options.quick, host, memory, bytes);
    *ret_in = device_copy_rate(device, stream, options.quick, memory, host, bytes);
    bt_device_stream_destroy(device, stream);
    bt_device_free_host(device, host);
    bt_device_free(device, memory);
}

static struct bench_limits measure_all(struct bench_model *bench)
{
    struct bench_limits limits = bench_limits_probe(bench);
    for (size_t i = 0; i < run_count; i++) {
        if (i == run_count / 2)
            limits = bench_limits_best(limits, bench_limits_probe(bench));
        runs[i].measured_s = measure(bench, &runs[i]);
    }
    return limits;
}

/* ---- the planner's view of this machine */

#define RESERVE 10e9 /* as the catalogue has it, and no more than a tenth of the card */

static struct bt_plan_hardware card_of(const struct bench_limits *limits)
{
    struct bt_plan_hardware hardware = {.name = "gpu-here"};
    struct bt_device_info info;
    double out, in;
    bt_device_info(device, &info);
    host_rates(&out, &in);
    snprintf(hardware.title, sizeof(hardware.title), "%.63s", info.description);
    hardware.figure[BT_PLAN_PEAK + BT_PLAN_BF16] = limits->bf16_flops;
    hardware.figure[BT_PLAN_PEAK + BT_PLAN_FP8] = limits->int8_flops;
    hardware.figure[BT_PLAN_PEAK + BT_PLAN_INT8] = limits->int8_flops;
    hardware.figure[BT_PLAN_MEMORY] = (double)info.total_bytes;
    hardware.figure[BT_PLAN_MEMORY_BANDWIDTH] = limits->read_bytes;
    hardware.figure[BT_PLAN_RESERVE] = fmin(RESERVE, (double)info.total_bytes / 10);
    hardware.figure[BT_PLAN_NODE_CARDS] = device_count();
    hardware.figure[BT_PLAN_INSIDE] = out + in;
    hardware.figure[BT_PLAN_BETWEEN] = out;
    hardware.figure[BT_PLAN_PRICE] = 1;
    hardware.figure[BT_PLAN_CORES] = 1;
    return hardware;
}

static struct bt_plan_hardware hardware_of(const struct bench_limits *limits)
{
    if (device)
        return card_of(limits);
    struct bt_plan_hardware hardware = {.name = "cpu-here"};
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    double copy = copy_rate();
    snprintf(hardware.title, sizeof(hardware.title), "this machine, %u core%s", options.cores,
             options.cores == 1 ? "" : "s");
    hardware.figure[BT_PLAN_PEAK + BT_PLAN_BF16] = limits->bf16_flops;
    hardware.figure[BT_PLAN_PEAK + BT_PLAN_INT8] = limits->int8_flops;
    hardware.figure[BT_PLAN_MEMORY] = memory;
    hardware.figure[BT_PLAN_MEMORY_BANDWIDTH] = limits->read_bytes;
    hardware.figure[BT_PLAN_RESERVE] = 5e8;
    hardware.figure[BT_PLAN_NODE_CARDS] = 1;
    hardware.figure[BT_PLAN_INSIDE] = hardware.figure[BT_PLAN_BETWEEN] = copy;
    hardware.figure[BT_PLAN_PRICE] = 0.05 * options.cores;
    hardware.figure[BT_PLAN_CORES] = options.cores;
    return hardware;
}

static struct bt_plan_cost estimate(const struct bt_plan_instance *instance, const struct run *run)
{
    struct bt_plan_instance phase = *instance;
    if (!run->batch) {
        phase.phase = BT_PLAN_PREFILL;
        struct bt_plan_prompt prompt = {1, run->tokens, 0, chunk};
        return bt_plan_prefill_cost(&phase, &prompt);
    }
    phase.phase = BT_PLAN_DECODE;
    struct bt_plan_decoding decoding = {.batch = run->batch, .context = run->tokens + 1};
    return bt_plan_decode_cost(&phase, &decoding);
}

/* ---- calibration: the shares of the peaks that come nearest to the runs that calibrate */

struct fit {
    double mfu, bandwidth, overhead_s, error; /* error: sum of squares, relative */
};

static double time_of(const struct run *run, enum bt_plan_overlap overlap, double mfu,
                      double bandwidth)
{
    double compute = run->compute_s / mfu, memory = run->memory_s / bandwidth;
    return overlap == BT_PLAN_OVERLAP_NONE ? compute + memory : fmax(compute, memory);
}

/* Steps of a prompt; of decode one. */
static double steps_of(const struct run *run)
{
    return run->batch ? 1 : ceil((double)run->tokens / chunk);
}

/* `overhead_s` below 0: found too. */
static struct fit try_fit(bool decode, enum bt_plan_overlap overlap, double mfu, double bandwidth,
                          double overhead_s)
{
    double above = 0, below = 0;
    struct fit fit = {mfu, bandwidth, fmax(overhead_s, 0), 0};
    for (size_t i = 0; i < run_count; i++) {
        double weight = steps_of(&runs[i]) / runs[i].measured_s;
        if (!runs[i].calibrates || (runs[i].batch > 0) != decode)
            continue;
        above += weight * (1 - time_of(&runs[i], overlap, mfu, bandwidth) / runs[i].measured_s);
        below += weight * weight;
    }
    if (overhead_s < 0)
        fit.overhead_s = fmax(above / below, 0);
    for (size_t i = 0; i < run_count; i++) {
        double time = time_of(&runs[i], overlap, mfu, bandwidth);
        if (!runs[i].calibrates || (runs[i].batch > 0) != decode)
            continue;
        fit.error += pow((time + steps_of(&runs[i]) * fit.overhead_s) / runs[i].measured_s - 1, 2);
    }
    return fit;
}

static struct fit find_fit(bool decode, enum bt_plan_overlap overlap, double overhead_s)
{
    struct fit best = {.error = INFINITY};
    for (int i = 0; i <= 150; i++)
        for (int j = 0; j <= 80; j++) {
            struct fit fit = try_fit(decode, overlap, pow(0.98, i), pow(0.965, j), overhead_s);
            if (fit.error < best.error)
                best = fit;
        }
    return best;
}

static void calibrate(struct bt_plan_instance *instance)
{
    struct bt_plan_calibration *calibration = &instance->calibration;
    double least = INFINITY;
    for (size_t i = 0; i < run_count; i++) {
        struct bt_plan_cost cost = estimate(instance, &runs[i]);
        runs[i].compute_s = cost.compute_s;
        runs[i].memory_s = cost.memory_s;
    }
    for (int overlap = BT_PLAN_OVERLAP_NONE; overlap <= BT_PLAN_OVERLAP_CARD; overlap++) {
        struct fit decode = find_fit(true, (enum bt_plan_overlap)overlap, -1);
        struct fit prefill = find_fit(false, (enum bt_plan_overlap)overlap, decode.overhead_s);
        if (decode.error + prefill.error >= least)
            continue;
        least = decode.error + prefill.error;
        calibration->overlap = (enum bt_plan_overlap)overlap;
        calibration->decode_mfu = decode.mfu;
        calibration->decode_bandwidth = decode.bandwidth;
        calibration->prefill_mfu = prefill.mfu;
        calibration->prefill_bandwidth = prefill.bandwidth;
        calibration->step_overhead_s = decode.overhead_s;
    }
    for (size_t i = 0; i < run_count; i++)
        runs[i].estimated_s = estimate(instance, &runs[i]).seconds;
}

/* ---- what comes out */

static void run_name(const struct run *run, char *name, size_t size)
{
    if (run->batch)
        snprintf(name, size, "plan_decode_%u_x%u", run->tokens, run->batch);
    else
        snprintf(name, size, "plan_prefill_%u", run->tokens);
}

/* A device's times and estimates are there to be compared. */
static void check_run(const char *name, const struct run *run)
{
    if (isfinite(run->measured_s) && isfinite(run->estimated_s) && run->measured_s > 0 &&
        run->estimated_s > 0)
        return;
    fflush(stdout);
    fprintf(stderr, "plan: %s: measured %g s, estimated %g s\n", name, run->measured_s,
            run->estimated_s);
    exit(1);
}

static void print_runs(void)
{
    double worst = 0, sum = 0;
    int count = 0;
    printf("# %-22s %12s %12s %8s\n", "run", "measured/ms", "planned/ms", "error/%");
    for (size_t i = 0; i < run_count; i++) {
        char name[48];
        double error = 100 * (runs[i].estimated_s / runs[i].measured_s - 1);
        run_name(&runs[i], name, sizeof(name));
        check_run(name, &runs[i]);
        printf("# %-22s %12.3f %12.3f %8.1f%s\n", name, 1e3 * runs[i].measured_s,
               1e3 * runs[i].estimated_s, error, runs[i].calibrates ? "  calibrated with" : "");
        if (runs[i].calibrates)
            continue;
        printf("figure %s_error%s %.1f %% 0 %.3f\n", name, device_suffix(device), error,
               runs[i].estimated_s / runs[i].measured_s);
        worst = fmax(worst, fabs(error));
        sum += fabs(error);
        count++;
    }
    printf("figure plan_mean_error%s %.1f %% 0 -\nfigure plan_worst_error%s %.1f %% 0 -\n",
           device_suffix(device), sum / count, device_suffix(device), worst);
}

static json_t *sourced_by(double value, const char *source)
{
    return json_pack("{s:f,s:s}", "value", value, "source", source);
}

static json_t *sourced(double value)
{
    return sourced_by(value, "measured by tests/bench/plan");
}

static json_t *link_json(double bytes)
{
    return device ? sourced_by(bytes / 1e9, "measured by tests/bench/plan: copies to the host, in "
                                            "place of the links, which are to be edited")
                  : sourced(bytes / 1e9);
}

static json_t *price_json(double price)
{
    return device ? sourced_by(price, "not known: a relative weight, to be edited")
                  : sourced(price);
}

static json_t *card_json(const struct bt_plan_hardware *hardware)
{
    const double *figure = hardware->figure;
    json_t *card = json_pack(
        "{s:s,s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "name", hardware->name, "title",
        hardware->title, "memory_gb", sourced(figure[BT_PLAN_MEMORY] / 1e9), "memory_gb_s",
        sourced(figure[BT_PLAN_MEMORY_BANDWIDTH] / 1e9), "bf16_tflops",
        sourced(figure[BT_PLAN_PEAK + BT_PLAN_BF16] / 1e12), "int8_tops",
        sourced(figure[BT_PLAN_PEAK + BT_PLAN_INT8] / 1e12), "node_cards",
        sourced(figure[BT_PLAN_NODE_CARDS]), "inside_gb_s", link_json(figure[BT_PLAN_INSIDE]),
        "between_gb_s", link_json(figure[BT_PLAN_BETWEEN]), "reserve_gb",
        sourced(figure[BT_PLAN_RESERVE] / 1e9), "price_per_hour",
        price_json(figure[BT_PLAN_PRICE]));
    if (device)
        json_object_set_new(card, "fp8_tflops", sourced(figure[BT_PLAN_PEAK + BT_PLAN_FP8] / 1e12));
    else
        json_object_set_new(card, "cores", sourced(figure[BT_PLAN_CORES]));
    return card;
}

static json_t *catalogue_json(const struct bt_plan_hardware *hardware)
{
    return json_pack("{s:[o]}", "accelerators", card_json(hardware));
}

static json_t *calibration_json(const struct bt_plan_calibration *c)
{
    return json_pack("{s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:s,s:s,s:s}", "prefill_mfu", c->prefill_mfu,
                     "decode_mfu", c->decode_mfu, "prefill_bandwidth", c->prefill_bandwidth,
                     "decode_bandwidth", c->decode_bandwidth, "step_overhead_s", c->step_overhead_s,
                     "inside_link", 1.0, "between_link", 1.0, "routing",
                     bt_plan_routing_name(c->routing), "overlap", bt_plan_overlap_name(c->overlap),
                     "source", c->source);
}

static json_t *runs_json(void)
{
    json_t *array = json_array();
    for (size_t i = 0; i < run_count; i++)
        json_array_append_new(
            array, json_pack("{s:s,s:i,s:i,s:b,s:f,s:f}", "phase",
                             runs[i].batch ? "decode" : "prefill", "tokens", (int)runs[i].tokens,
                             "batch", (int)runs[i].batch, "calibrated_with", runs[i].calibrates,
                             "measured_s", runs[i].measured_s, "estimated_s", runs[i].estimated_s));
    return array;
}

static bool write_json(const char *name, json_t *json)
{
    char path[4200];
    snprintf(path, sizeof(path), "%s/%s", options.out, name);
    bool good = json && json_dump_file(json, path, JSON_INDENT(2)) == 0;
    if (!good)
        fprintf(stderr, "plan: %s: %s\n", path, strerror(errno));
    json_decref(json);
    return good;
}

static bool write_files(const struct bt_plan_instance *instance)
{
    if (!options.out)
        return true;
    bool good = write_json("catalogue.json", catalogue_json(&instance->hardware));
    good = write_json("calibration.json", calibration_json(&instance->calibration)) && good;
    return write_json("comparison.json", runs_json()) && good;
}

/* ---- the model */

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
    (void)info;
    (void)type;
    (void)ftw;
    return remove(path);
}

static enum bt_status make_model(char *dir, size_t size, struct bt_error *error)
{
    const struct checkpoint_shape *shape = checkpoint_shape_find(options.shape);
    enum checkpoint_dtype dtype;
    if (!shape || !checkpoint_dtype_find(options.dtype, &dtype))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "lite-slice, v3-slice or lite; bf16, fp8, int8 or w4");
    snprintf(dir, size, "/var/tmp/baton-plan-XXXXXX");
    if (!mkdtemp(dir))
        return bt_error_set(error, BT_ERR_IO, "%s: %s", dir, strerror(errno));
    return checkpoint_write(dir, shape, dtype, 1, error);
}

static enum bt_status compare(const char *dir, struct bt_team *team, struct bt_error *error)
{
    struct bench_model_options load = {
        .dir = dir,
        .kernels = options.kernels,
        .team = team,
        .max_rows = chunk,
        .max_logits = BENCH_MAX_BATCH,
        .pool_tokens = device && options.quick ? 8 * BT_PAGE_TOKENS : POOL_TOKENS,
        .device = device,
        .quick = options.quick,
    };
    struct bt_plan_model_file file;
    struct bench_model *bench;
    enum bt_status status = bt_plan_model_load(dir, error, &file);
    if (status == BT_OK)
        status = bench_model_open(&load, error, &bench);
    if (status != BT_OK)
        return status;
    struct bench_limits limits = measure_all(bench);
    const char *kernels = bench->model->kernels->name;
    struct bt_plan_instance instance = {
        .model = file.model,
        .dtypes = bt_plan_dtypes_of(&file.model, file.weights, false),
        .hardware = hardware_of(&limits),
        .calibration = bt_plan_calibration_published(),
        .layout = {1, 1, 1},
    };
    instance.calibration.score_share = 0;
    instance.calibration.routing = BT_PLAN_ROUTING_EXPECTED;
    if (!device)
        bt_plan_dtypes_on_cpu(file.weights, &instance.dtypes);
    calibrate(&instance);
    char where[64];
    if (device)
        snprintf(where, sizeof(where), "%s", instance.hardware.title);
    else
        snprintf(where, sizeof(where), "%u cores", options.cores);
    snprintf(instance.calibration.source, sizeof(instance.calibration.source),
             "measured by tests/bench/plan: %.40s %.10s, %.20s kernels, %.40s",
             options.shape ? options.shape : dir, bt_plan_weights_name(file.weights), kernels,
             where);
    printf("# %s: bf16 %.1f GFLOP/s, int8 %.1f GOP/s, reads %.1f GB/s, copies %.1f GB/s\n", kernels,
           limits.bf16_flops / 1e9, limits.int8_flops / 1e9, limits.read_bytes / 1e9,
           instance.hardware.figure[BT_PLAN_BETWEEN] / 1e9);
    const struct bt_plan_calibration *c = &instance.calibration;
    printf("# prefill: MFU %.3f, bandwidth %.3f; decode: MFU %.3f, bandwidth %.3f; %.1f us a step; "
           "overlap %s\n",
           c->prefill_mfu, c->prefill_bandwidth, c->decode_mfu, c->decode_bandwidth,
           1e6 * c->step_overhead_s, bt_plan_overlap_name(c->overlap));
    print_runs();
    bench_model_close(bench);
    return write_files(&instance) ? BT_OK : bt_error_set(error, BT_ERR_IO, "files are not written");
}

static bool parse(int argc, char **argv)
{
    static const struct option table[] = {{"model", required_argument, NULL, 'm'},
                                          {"shape", required_argument, NULL, 's'},
                                          {"dtype", required_argument, NULL, 't'},
                                          {"cores", required_argument, NULL, 'c'},
                                          {"kernels", required_argument, NULL, 'k'},
                                          {"out", required_argument, NULL, 'o'},
                                          {"quick", no_argument, NULL, 'q'},
                                          {"device", required_argument, NULL, 'D'},
                                          {NULL, 0, NULL, 0}};
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        const char **text = c == 'm'   ? &options.model
                            : c == 's' ? &options.shape
                            : c == 't' ? &options.dtype
                            : c == 'k' ? &options.kernels
                            : c == 'o' ? &options.out
                            : c == 'D' ? &options.device
                                       : NULL;
        if (text)
            *text = optarg;
        else if (c == 'c')
            options.cores = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c == 'q')
            options.quick = true;
        else
            return false;
    }
    return optind == argc && !options.model != !options.shape && options.cores >= 1 &&
           options.cores <= BT_TEAM_MAX_THREADS;
}

/* 0, with `device` set where it is a GPU; else the exit code. */
static int choose_device(void)
{
    struct bt_device *opened = NULL;
    int refused = device_open("plan", options.device, options.kernels, 0, &opened);
    if (refused || opened->memory == BT_MEMORY_HOST)
        return refused;
    device = opened;
    if (options.quick) {
        runs = few_runs;
        run_count = sizeof(few_runs) / sizeof(few_runs[0]);
        chunk = CHUNK_FEW;
    }
    return 0;
}

int main(int argc, char **argv)
{
    char dir[64] = "";
    struct bt_error error;
    if (!parse(argc, argv)) {
        fprintf(stderr, "usage: plan --model DIR | --shape NAME [--dtype NAME] "
                        "[--device auto|cpu|cuda[:N]] [--cores N] [--kernels NAME] [--out DIR] "
                        "[--quick]\n");
        return 2;
    }
    int refused = choose_device();
    if (refused)
        return refused;
    struct bt_team_options team_options = {.threads = options.cores};
    struct bt_team *team = NULL;
    enum bt_status status = options.shape ? make_model(dir, sizeof(dir), &error) : BT_OK;
    if (status == BT_OK)
        status = bt_team_create(&team_options, &error, &team);
    if (status == BT_OK)
        status = compare(options.model ? options.model : dir, team, &error);
    bt_team_destroy(team);
    bt_device_close(device);
    if (dir[0])
        nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    if (status != BT_OK)
        fprintf(stderr, "plan: %s\n", error.text);
    return status == BT_OK ? 0 : 1;
}
