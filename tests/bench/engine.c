/*
 * engine [--device DEVICE] [--model DIR] [--cores N] [--kernels NAME] [--dir DIR] [--keep]
 * [--quick]
 *        [--only TEXT]
 *
 * The forward pass of real shapes against what this machine can do at most, measured next to every
 * figure: operations of the matrix unit, or bytes read from memory. Prints
 *
 *     figure NAME VALUE UNIT LIMIT RATIO
 *
 * with tokens a second, tokens a second at the limit, and how much of it was reached; for decode
 * also `serial NAME LIMIT UNIT RATIO`, the limit of a step that does not read weights while it
 * computes attention. Checkpoints
 * are made in DIR (default: a directory under TMPDIR or /var/tmp, removed at the end). `--model`:
 * of that checkpoint alone, as it is, called `model`.
 *
 * `--device` as the workers have it: on a GPU (auto: where there is one) its figures end with
 * _cuda. Prompts and steps are queued as the engines queue them; limits are what gpu.c holds
 * kernels to. Exit 77: that device is not here. Attention alone and cores are not measured there:
 * gpu has the kernels. --quick is then of short prompts and few steps, whose figures say nothing.
 */
#include <errno.h>
#include <ftw.h>
#include <getopt.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/kernels/team.h"
#include "tests/bench/checkpoint.h"
#include "tests/bench/device_bench.h"
#include "tests/bench/engine_model.h"

#define CHUNK      2048 /* rows of one prefill step */
#define CHUNK_FEW  48   /* likewise, quick on a device */
#define POOL_PAGES 64   /* beyond the longest sequences */

static struct {
    uint32_t cores;
    const char *kernels, *dir, *only, *device, *model;
    bool keep, quick;
    char own_dir[64];
} options = {.cores = 1, .kernels = "auto", .device = "auto"};

static struct bt_device *device; /* NULL: the CPU */

static unsigned failures;

static void fail(const struct bt_error *error)
{
    fprintf(stderr, "engine: %s\n", error->text);
    failures++;
}

static bool wanted(const char *name)
{
    return !options.only || strstr(name, options.only);
}

/* ---- teams ---- */

/* What this process may run on, before a team pinned its first thread. */
static cpu_set_t allowed;

/* The lowest of the cpus that share a core with this one. */
static int first_of_core(int cpu)
{
    char path[96];
    int first = cpu;
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
             cpu);
    FILE *file = fopen(path, "r");
    if (!file)
        return cpu;
    if (fscanf(file, "%d", &first) != 1)
        first = cpu;
    fclose(file);
    return first;
}

/* Each of its threads has a cpu of its own, of different cores as far as there are any: what the
 * scheduler does is no part of a figure. */
static struct bt_team *make_team(uint32_t threads)
{
    char cpus[8 * BT_TEAM_MAX_THREADS] = "";
    size_t used = 0;
    uint32_t count = 0;
    for (int second = 0; second < 2; second++) {
        for (int cpu = 0; cpu < CPU_SETSIZE && count < threads; cpu++) {
            if (!CPU_ISSET(cpu, &allowed) || (first_of_core(cpu) != cpu) != second)
                continue;
            used += (size_t)snprintf(cpus + used, sizeof(cpus) - used, count ? ",%d" : "%d", cpu);
            count++;
        }
    }
    struct bt_team_options team = {.threads = threads, .cpus = cpus};
    struct bt_team *made = NULL;
    struct bt_error error;
    if (bt_team_create(&team, &error, &made) != BT_OK)
        fail(&error);
    return made;
}

static void drop_team(struct bt_team *team)
{
    bt_team_destroy(team);
    sched_setaffinity(0, sizeof(allowed), &allowed);
}

/* ---- checkpoints ---- */

static enum bt_status checkpoint_dir(const char *shape, const char *dtype, char *ret_dir,
                                     size_t size, struct bt_error *error)
{
    char file[4200];
    enum checkpoint_dtype kind = CHECKPOINT_BF16;
    struct stat info;
    snprintf(ret_dir, size, "%s/%s-%s", options.dir, shape, dtype);
    snprintf(file, sizeof(file), "%s/model.safetensors", ret_dir);
    if (stat(file, &info) == 0)
        return BT_OK;
    if (mkdir(ret_dir, 0755) && errno != EEXIST)
        return bt_error_set(error, BT_ERR_IO, "%s: %s", ret_dir, strerror(errno));
    checkpoint_dtype_find(dtype, &kind);
    fprintf(stderr, "making %s\n", ret_dir);
    return checkpoint_write(ret_dir, checkpoint_shape_find(shape), kind, 1, error);
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *ftw)
{
    (void)info;
    (void)type;
    (void)ftw;
    return remove(path);
}

/* A checkpoint is only needed until its model is measured. */
static void drop_checkpoint(const char *dir)
{
    if (!options.keep)
        nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* A GPU is there to be measured, an emulated one to see that all of this runs. */
static bool is_short(void)
{
    return device && options.quick;
}

static uint32_t chunk_rows(void)
{
    return is_short() ? CHUNK_FEW : CHUNK;
}

static struct bench_model *load_model(const char *dir, struct bt_team *team, uint32_t pool_tokens)
{
    struct bt_error error;
    struct bench_model *bench = NULL;
    struct bench_model_options load = {.dir = dir,
                                       .kernels = options.kernels,
                                       .team = team,
                                       .max_rows = chunk_rows(),
                                       .max_logits = BENCH_MAX_BATCH,
                                       .pool_tokens = pool_tokens,
                                       .device = device,
                                       .quick = options.quick};
    if (bench_model_open(&load, &error, &bench) != BT_OK)
        fail(&error);
    return bench;
}

static struct bench_model *open_model(const char *shape, const char *dtype, struct bt_team *team,
                                      uint32_t pool_tokens, bool drop)
{
    char dir[4096];
    struct bt_error error;
    if (checkpoint_dir(shape, dtype, dir, sizeof(dir), &error) != BT_OK) {
        fail(&error);
        return NULL;
    }
    struct bench_model *bench = load_model(dir, team, pool_tokens);
    if (drop)
        drop_checkpoint(dir);
    return bench;
}

/* ---- figures ---- */

static void print_figure(const char *name, double tokens, double seconds, double least_seconds)
{
    printf("figure %s%s %.2f tokens/s %.2f %.3f\n", name, device_suffix(device), tokens / seconds,
           tokens / least_seconds, least_seconds / seconds);
    fflush(stdout);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts. */
static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare_doubles);
    return values[count / 2];
}

/* Runs at least three times, and until a second and a half has passed; the median. */
static double prefill_seconds(struct bench_model *bench, uint32_t length)
{
    enum { RUNS = 20 };
    double seconds[RUNS], spent = 0;
    size_t count = 0;
    while (count < 3 || (spent < 1.5 && count < RUNS)) {
        seconds[count] = bench_prefill(bench, length, chunk_rows());
        spent += seconds[count++];
        if (options.quick || spent > 60)
            break;
    }
    return median(seconds, count);
}

static double measure_prefill(struct bench_model *bench, const char *name, uint32_t length)
{
    struct bench_limits limits = bench_limits_probe(bench);
    double seconds = prefill_seconds(bench, length);
    limits = bench_limits_best(limits, bench_limits_probe(bench));
    struct bench_needs needs = bench_prefill_needs(bench, length);
    print_figure(name, length, seconds, bench_seconds(&needs, &limits));
    return seconds;
}

/* Each step has other tokens and experts, so the share of the limit is taken step by step; the
 * figure is the median step's. */
static void measure_decode(struct bench_model *bench, const char *name, uint32_t kv, uint32_t batch)
{
    enum { STEPS = 25 };
    double seconds[STEPS], shares[STEPS], serial[STEPS];
    int steps = is_short() ? 2 : options.quick ? 5 : STEPS;
    struct bench_limits limits = bench_limits_probe(bench);
    struct bench_needs needs[STEPS];
    bench_decode_steps(bench, kv, batch, (uint32_t)steps, seconds, needs);
    limits = bench_limits_best(limits, bench_limits_probe(bench));
    for (int i = 0; i < steps; i++) {
        shares[i] = bench_seconds(&needs[i], &limits) / seconds[i];
        serial[i] = bench_serial_seconds(&needs[i], &limits) / seconds[i];
    }
    double step = median(seconds, (size_t)steps), alone = median(serial, (size_t)steps);
    print_figure(name, batch, step, step * median(shares, (size_t)steps));
    printf("serial %s%s %.2f tokens/s %.3f\n", name, device_suffix(device), batch / step / alone,
           alone);
}

/* ---- time against length ---- */

#define LENGTHS 5

/* y = low * x^power + high * x^(power + 1), its squared relative distances from the points least.
 */
struct fit {
    double low, high, worst; /* worst: the largest relative distance */
};

static struct fit fit_powers(const double *x, const double *y, int power)
{
    double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;
    for (int i = 0; i < LENGTHS; i++) {
        double a = pow(x[i], power) / y[i], b = a * x[i];
        aa += a * a;
        ab += a * b;
        bb += b * b;
        a1 += a;
        b1 += b;
    }
    double det = aa * bb - ab * ab;
    struct fit fit = {(a1 * bb - b1 * ab) / det, (b1 * aa - a1 * ab) / det, 0};
    for (int i = 0; i < LENGTHS; i++) {
        double at = pow(x[i], power) * (fit.low + fit.high * x[i]);
        fit.worst = fmax(fit.worst, fabs(at / y[i] - 1));
    }
    return fit;
}

/* Where attention takes as long as the FFN: both are fitted as a part that grows with the length
 * and one that grows with its square, which the FFN has none of but by chance. */
static double crossing(struct fit attention, struct fit ffn)
{
    double curve = attention.high - ffn.high;
    return curve > 0 ? fmax(0, (ffn.low - attention.low) / curve) : INFINITY;
}

/* By itself, as a device is waited for at each operation of a run with a profile. */
static double profile_prefill(struct bench_model *bench, uint32_t length)
{
    bench->profile = (struct bt_profile){0};
    bench_profile(bench, true);
    double seconds = bench_prefill(bench, length, chunk_rows());
    bench_profile(bench, !device);
    return seconds;
}

static void measure_lengths(struct bench_model *bench, const char *shape)
{
    static const uint32_t all[LENGTHS] = {512, 1024, 2048, 4096, 8192};
    double lengths[LENGTHS], seconds[LENGTHS], attention[LENGTHS], ffn[LENGTHS];
    for (int i = 0; i < LENGTHS; i++) {
        lengths[i] = all[i];
        if (device)
            seconds[i] = bench_prefill(bench, all[i], CHUNK);
        double profiled = profile_prefill(bench, all[i]);
        seconds[i] = device ? seconds[i] : profiled;
        const int64_t *ns = bench->profile.ns;
        attention[i] = (double)ns[BT_PROFILE_MLA_PREFILL] / 1e9;
        ffn[i] = (double)(ns[BT_PROFILE_MLP] + ns[BT_PROFILE_ROUTE] + ns[BT_PROFILE_EXPERTS]) / 1e9;
        printf("length %s%s %u: %.3f s, attention %.3f s, ffn %.3f s\n", shape,
               device_suffix(device), all[i], seconds[i], attention[i], ffn[i]);
    }
    struct fit line = fit_powers(lengths, seconds, 0);
    printf("line %s%s: %.4f s + %.4f ms a token, at most %.1f %% off; attention overtakes ffn at "
           "%.0f tokens\n",
           shape, device_suffix(device), line.low, line.high * 1e3, line.worst * 100,
           crossing(fit_powers(lengths, attention, 1), fit_powers(lengths, ffn, 1)));
}

static void print_breakdown(const struct bench_model *bench, const char *name)
{
    double all = 0;
    for (int i = 0; i < BT_PROFILE_KINDS; i++)
        all += (double)bench->profile.ns[i];
    printf("breakdown %s%s:", name, device_suffix(device));
    for (int i = 0; i < BT_PROFILE_KINDS; i++)
        if (bench->profile.ns[i])
            printf(" %s %.1f%%", bt_profile_kind_name((enum bt_profile_kind)i),
                   100.0 * (double)bench->profile.ns[i] / all);
    printf("\n");
}

/* ---- what is measured ---- */

static void prefill_figures(struct bench_model *bench, const char *shape, const char *dtype)
{
    static const uint32_t all[] = {512, 2048, 3260}, few[] = {70};
    const uint32_t *lengths = is_short() ? few : all;
    for (int i = 0; i < (is_short() ? 1 : 3); i++) {
        char name[64];
        snprintf(name, sizeof(name), "prefill_%s_%u_%s", shape, lengths[i], dtype);
        if (!wanted(name))
            continue;
        bench->profile = (struct bt_profile){0};
        measure_prefill(bench, name, lengths[i]);
        if (device)
            profile_prefill(bench, lengths[i]);
        print_breakdown(bench, name);
    }
}

static void decode_figures(struct bench_model *bench, const char *shape, const char *dtype)
{
    static const struct point {
        uint32_t kv, batch;
    } all[] = {{0, 1}, {3260, 1}, {16384, 1}, {3260, 8}, {3260, 32}}, few[] = {{0, 1}, {70, 3}};
    const struct point *points = is_short() ? few : all;
    for (int i = 0; i < (is_short() ? 2 : 5); i++) {
        char name[64], batch[16] = "";
        if (points[i].batch > 1)
            snprintf(batch, sizeof(batch), "_b%u", points[i].batch);
        snprintf(name, sizeof(name), "decode_%s_%u_%s%s", shape, points[i].kv, dtype, batch);
        if (!wanted(name))
            continue;
        bench->profile = (struct bt_profile){0};
        measure_decode(bench, name, points[i].kv, points[i].batch);
        if (device) {
            bench_profile(bench, true);
            bench_decode(bench, points[i].kv, points[i].batch);
            bench_profile(bench, false);
        }
        print_breakdown(bench, name);
    }
}

static bool any_wanted(const char *shape, const char *dtype)
{
    char text[64];
    if (!options.only)
        return true;
    snprintf(text, sizeof(text), "prefill_%s_x_%s decode_%s_x_%s lengths_%s", shape, dtype, shape,
             dtype, shape);
    bool shape_named = strstr(options.only, "lite") || strstr(options.only, "v3");
    bool dtype_named = strstr(options.only, "bf16") || strstr(options.only, "int8") ||
                       strstr(options.only, "w4") || strstr(options.only, "fp8");
    return (!shape_named || strstr(options.only, shape)) &&
           (!dtype_named || strstr(options.only, dtype)) && !strstr(options.only, "mla_decode") &&
           !strstr(options.only, "cores");
}

static void measure_opened(struct bench_model *bench, const char *shape, const char *dtype,
                           bool lengths)
{
    prefill_figures(bench, shape, dtype);
    if (lengths && wanted("lengths") && !options.quick)
        measure_lengths(bench, shape);
    decode_figures(bench, shape, dtype);
    bench_model_close(bench);
}

/* On a device steps go on from each context: a page more for each sequence. */
static uint32_t pool_tokens(void)
{
    return is_short() ? 8 * BT_PAGE_TOKENS : 32 * (3260 + 2 * BT_PAGE_TOKENS) + POOL_PAGES * 64;
}

static void measure_model(const char *shape, const char *dtype, struct bt_team *team)
{
    char checkpoint[64];
    if (!any_wanted(shape, dtype))
        return;
    snprintf(checkpoint, sizeof(checkpoint), "%s-slice", shape);
    struct bench_model *bench =
        open_model(checkpoint, dtype, team, pool_tokens(),
                   device || strcmp(dtype, "bf16") || strcmp(shape, "lite"));
    if (bench)
        measure_opened(bench, shape, dtype, !strcmp(dtype, "bf16"));
}

static void measure_given_model(struct bt_team *team)
{
    struct bench_model *bench = load_model(options.model, team, pool_tokens());
    if (bench)
        measure_opened(bench, "model", "own", true);
}

/* ---- attention alone ---- */

struct attention {
    /* sequences and kv_b that take turns, so that none is in the cache: all their bytes are read */
    uint32_t heads, tokens, sequences, weights;
    struct bt_mla_shape shape;
    struct bt_matrix kv_b; /* the first */
    size_t weight_bytes;   /* from one to the next */
    void *rows, *packed, *pool;
    uint32_t *pages;
    float *q, *out;
    struct bt_stream *stream;
};

static void attention_free(struct attention *a)
{
    free(a->rows);
    free(a->packed);
    free(a->pool);
    free(a->pages);
    free(a->q);
    free(a->out);
    bt_stream_destroy(a->stream);
}

static void random_bf16(uint16_t *out, size_t count, uint64_t *state)
{
    for (size_t i = 0; i < count; i++) {
        *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
        out[i] = (uint16_t)(0x3d00 | (*state >> 40 & 0x807f));
    }
}

/* As weights and pages are: in huge pages. */
static void *huge_alloc(size_t bytes)
{
    size_t huge = (size_t)2 << 20;
    void *data = aligned_alloc(huge, (bytes + huge - 1) / huge * huge);
    if (data)
        madvise(data, bytes, MADV_HUGEPAGE);
    return data;
}

#define TURNS_BYTES ((size_t)256 << 20) /* of what takes turns; more than caches hold */

static bool attention_make(struct attention *a, const struct bt_kernels *kernels,
                           struct bt_team *team)
{
    struct bt_error error;
    uint64_t random = 1;
    uint32_t per = (a->tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    a->shape = (struct bt_mla_shape){a->heads, 128, 64, 128, 512, 0.07f};
    struct bt_matrix kv_b = {.rows = a->heads * 256, .cols = 512, .dtype = BT_BF16};
    struct bt_stream_limits limits = {.max_rows = 1, .mla = a->shape};
    size_t page_bytes = (size_t)BT_PAGE_TOKENS * 576 * 2;
    a->sequences = (uint32_t)(TURNS_BYTES / (per * page_bytes)) + 1;
    a->weight_bytes = (kernels->packed_bytes(&kv_b, BT_USE_KV_B, &a->shape) + 4095) / 4096 * 4096;
    a->weights = (uint32_t)(TURNS_BYTES / a->weight_bytes) + 1;
    a->rows = aligned_alloc(64, (size_t)kv_b.rows * 512 * 2);
    a->packed = huge_alloc(a->weights * a->weight_bytes);
    a->pool = huge_alloc(a->sequences * per * page_bytes);
    a->pages = calloc((size_t)a->sequences * per, sizeof(*a->pages));
    a->q = calloc((size_t)a->heads * 192, sizeof(float));
    a->out = calloc((size_t)a->heads * 128, sizeof(float));
    if (!a->rows || !a->packed || !a->pool || !a->pages || !a->q || !a->out ||
        bt_stream_create(&limits, team, &error, &a->stream) != BT_OK)
        return false;
    random_bf16(a->rows, (size_t)kv_b.rows * 512, &random);
    random_bf16(a->pool, a->sequences * per * page_bytes / 2, &random);
    for (uint32_t i = 0; i < a->sequences * per; i++)
        a->pages[i] = i;
    for (uint32_t i = 0; i < a->heads * 192; i++)
        a->q[i] = (float)(i % 17) / 17 - 0.5f;
    kv_b.data = a->rows;
    kernels->pack(a->stream, &kv_b, BT_USE_KV_B, &a->shape, a->packed, &a->kv_b);
    for (uint32_t i = 1; i < a->weights; i++)
        memcpy((char *)a->packed + i * a->weight_bytes, a->packed, a->weight_bytes);
    return true;
}

static double attention_seconds(struct attention *a, const struct bt_kernels *kernels,
                                struct bt_team *team)
{
    uint32_t per = (a->tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    struct bt_kv_layer kv = {a->pool, BT_BF16, 512, 64};
    double seconds[200];
    size_t turns = a->sequences > a->weights ? a->sequences : a->weights;
    size_t runs = 3 * turns < 200 ? 3 * turns : 200;
    for (size_t i = 0; i < runs; i++) {
        struct bt_sequence_rows sequence = {a->pages + i % a->sequences * per, a->tokens - 1, 0, 1};
        struct bt_matrix kv_b = a->kv_b;
        kv_b.data = (const char *)kv_b.data + i % a->weights * a->weight_bytes;
        int64_t start_ns = limit_now_ns(team);
        kernels->mla_decode(a->stream, a->q, &a->shape, &kv_b, &sequence, 1, &kv, a->out);
        seconds[i] = (double)(limit_now_ns(team) - start_ns) / 1e9;
    }
    return median(seconds, runs);
}

static void measure_attention(const char *name, uint32_t heads, uint32_t tokens,
                              const struct bt_kernels *kernels, struct bt_team *team)
{
    struct attention a = {.heads = heads, .tokens = tokens};
    if (!wanted(name))
        return;
    if (!attention_make(&a, kernels, team)) {
        attention_free(&a);
        fprintf(stderr, "engine: %s: no memory\n", name);
        failures++;
        return;
    }
    double read = limit_read(team), peak = limit_ops(kernels->name, LIMIT_BF16, team);
    double seconds = attention_seconds(&a, kernels, team);
    read = fmax(read, limit_read(team));
    peak = fmax(peak, limit_ops(kernels->name, LIMIT_BF16, team));
    double bytes = tokens * 1152.0 + heads * 256.0 * 512 * 2;
    double flops = 2.0 * heads * (tokens * 1088.0 + 256.0 * 512);
    double least = fmax(bytes / read, peak > 0 ? flops / peak : 0);
    printf("figure %s %.1f us %.1f %.3f\n", name, seconds * 1e6, least * 1e6, least / seconds);
    fflush(stdout);
    attention_free(&a);
}

static void attention_figures(struct bt_team *team)
{
    const struct bt_kernels *kernels;
    struct bt_error error;
    if (bt_kernels_select(options.kernels, &error, &kernels) != BT_OK) {
        fail(&error);
        return;
    }
    measure_attention("mla_decode_16h_4k", 16, 4096, kernels, team);
    measure_attention("mla_decode_16h_32k", 16, 32768, kernels, team);
    measure_attention("mla_decode_128h_4k", 128, 4096, kernels, team);
    measure_attention("mla_decode_128h_32k", 128, 32768, kernels, team);
}

/* ---- two cores ---- */

struct speed {
    double prefill, decode; /* seconds */
};

static bool lite_speed(uint32_t threads, struct speed *ret_speed)
{
    struct bt_team *team = make_team(threads);
    struct bench_model *bench =
        team ? open_model("lite-slice", "bf16", team, 4096 + POOL_PAGES * 64, false) : NULL;
    if (bench) {
        double steps[15];
        for (int i = 0; i < 15; i++)
            steps[i] = bench_decode(bench, 3260, 1);
        *ret_speed = (struct speed){prefill_seconds(bench, 2048), median(steps, 15)};
    }
    bench_model_close(bench);
    drop_team(team);
    return bench != NULL;
}

/* Against as many threads; decode also against what two threads read more than one. */
static void measure_cores(void)
{
    struct speed one, two;
    if (!wanted("cores_2_over_1"))
        return;
    if (CPU_COUNT(&allowed) < 2) {
        printf("skipped cores_2_over_1: there is one cpu\n");
        return;
    }
    if (!lite_speed(1, &one) || !lite_speed(2, &two))
        return;
    struct bt_team *team = make_team(2);
    double pair = limit_read(team), single = limit_read(NULL);
    drop_team(team);
    double prefill = one.prefill / two.prefill, decode = one.decode / two.decode;
    printf("figure cores_2_over_1 %.3f times 2 %.3f\n", prefill, prefill);
    printf("figure cores_2_over_1_decode %.3f times %.3f %.3f\n", decode, pair / single, decode);
}

/* ---- the program ---- */

static int usage(void)
{
    fprintf(stderr, "usage: engine [--device auto|cpu|cuda[:N]] [--model DIR] [--cores N]"
                    " [--kernels NAME] [--dir DIR] [--keep] [--quick] [--only TEXT]\n");
    return 2;
}

static bool parse(int argc, char **argv)
{
    static const struct option table[] = {{"device", required_argument, NULL, 'D'},
                                          {"model", required_argument, NULL, 'm'},
                                          {"cores", required_argument, NULL, 'c'},
                                          {"kernels", required_argument, NULL, 'k'},
                                          {"dir", required_argument, NULL, 'd'},
                                          {"keep", no_argument, NULL, 'K'},
                                          {"quick", no_argument, NULL, 'q'},
                                          {"only", required_argument, NULL, 'o'},
                                          {NULL, 0, NULL, 0}};
    for (int c; (c = getopt_long(argc, argv, "", table, NULL)) != -1;) {
        if (c == 'D')
            options.device = optarg;
        else if (c == 'm')
            options.model = optarg;
        else if (c == 'c')
            options.cores = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c == 'k')
            options.kernels = optarg;
        else if (c == 'd')
            options.dir = optarg;
        else if (c == 'K')
            options.keep = true;
        else if (c == 'q')
            options.quick = true;
        else if (c == 'o')
            options.only = optarg;
        else
            return false;
    }
    return optind == argc && options.cores >= 1 && options.cores <= BT_TEAM_MAX_THREADS;
}

static bool make_dir(void)
{
    const char *base = getenv("TMPDIR");
    if (options.dir) {
        options.keep = true;
        return mkdir(options.dir, 0755) == 0 || errno == EEXIST;
    }
    snprintf(options.own_dir, sizeof(options.own_dir), "%s/baton-engine-XXXXXX",
             base && strlen(base) < 40 ? base : "/var/tmp");
    options.dir = mkdtemp(options.own_dir);
    return options.dir != NULL;
}

/* fp8 is for devices: CPUs widen it to bf16. */
static void measure_models(struct bt_team *team)
{
    static const char *const shapes[] = {"lite", "v3"};
    static const char *const dtypes[] = {"bf16", "int8", "w4", "fp8"};
    if (options.model) {
        measure_given_model(team);
        return;
    }
    for (int shape = 0; shape < 2; shape++)
        for (int i = 0; i < (device ? 4 : 3); i++)
            measure_model(shapes[shape], dtypes[i], team);
}

/* 0, with `device` set where it is a GPU; else the exit code. */
static int choose_device(void)
{
    struct bt_device *opened = NULL;
    struct bt_device_info info;
    int refused = device_open("engine", options.device, options.kernels, 0, &opened);
    if (refused || opened->memory == BT_MEMORY_HOST)
        return refused;
    device = opened;
    bt_device_info(device, &info);
    printf("# %s: %s\n", device->name, info.description);
    return 0;
}

int main(int argc, char **argv)
{
    if (!parse(argc, argv))
        return usage();
    int refused = choose_device();
    if (refused)
        return refused;
    if (sched_getaffinity(0, sizeof(allowed), &allowed))
        CPU_SET(0, &allowed);
    if (!options.model && !make_dir()) {
        fprintf(stderr, "engine: no directory for checkpoints: %s\n", strerror(errno));
        return 1;
    }
    struct bt_team *team = make_team(options.cores);
    if (team) {
        measure_models(team);
        if (!device && !options.model)
            attention_figures(team);
        drop_team(team);
        if (!device && !options.model)
            measure_cores();
    }
    if (options.own_dir[0] && !options.keep)
        nftw(options.own_dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    bt_device_close(device);
    return failures ? 1 : 0;
}
