/*
 * checkkern [--kernels NAME] [--op NAME] [--seed N] [--bench]
 *
 * Checks every operation of a table of kernels against ref (ref itself against formulas written
 * apart from it), and that the bits of a row depend on that row alone. amx is checked on any CPU
 * with AVX512_BF16, its instructions emulated where need be, and then not timed. cuda is checked on
 * the GPU that bt_device_open finds (BATON_CUDA_MODULE may name another module, an emulated one).
 * Exit 0: all passed, 1: a failure, 77: nothing that could be tested but ref, and ref was not asked
 * for.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/checkkern/check.h"
#include "tests/checkkern/device.h"
#ifdef BT_HAVE_X86_KERNELS
#include "common/kernels/x86/x86.h"
#include "tests/checkkern/amx_emulator.h"
#endif

static const struct {
    const char *name;
    void (*run)(struct check *check);
} ops[] = {
    {"dtype", check_dtype},
    {"pack", check_pack},
    {"expand", check_expand},
    {"embed", check_embed},
    {"rms_norm", check_rms_norm},
#ifdef BT_HAVE_X86_KERNELS
    {"gemm", check_gemm},
#endif
    {"linear", check_linear},
    {"add", check_add},
    {"add_rms_norm", check_add_rms_norm},
    {"zero", check_zero},
    {"gather_rows", check_gather_rows},
    {"rope_q", check_rope_q},
    {"kv_write", check_kv_write},
    {"mla_prefill", check_mla_prefill},
    {"mla_decode", check_mla_decode},
    {"mla_needle", check_mla_needle},
    {"mla_finite", check_mla_finite},
    {"mlp", check_mlp},
    {"moe_route", check_moe_route},
    {"moe_experts", check_moe_experts},
    {"draw", check_draw},
    {"stage", check_stage},
};
#define OP_COUNT (sizeof(ops) / sizeof(ops[0]))

static const char *const variants[] = {"ref", "avx2", "avx512", "avx512_bf16", "amx", "cuda"};

/* Of the layout of tiles that CPUs have. */
static bool is_for_cpus(const char *op)
{
    static const char *const names[] = {"pack", "expand", "gemm"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(op, names[i]) == 0)
            return true;
    return false;
}

static bool is_left_out(const char *op)
{
    if (check_device())
        return is_for_cpus(op);
    return strcmp(op, "stage") == 0 || strcmp(op, "draw") == 0;
}

static const struct bt_kernels *find(const char *name)
{
    const struct bt_kernels *kernels = NULL;
    struct bt_error error;
    if (bt_kernels_select(name, &error, &kernels) == BT_OK)
        return kernels;
    printf("skipped: %s\n", error.text);
    return NULL;
}

/* Where the CPU lacks only the tile instructions, their table is checked all the same. */
static const struct bt_kernels *emulated(const char *name)
{
#ifdef BT_HAVE_X86_KERNELS
    if (strcmp(name, "amx") == 0 && bt_x86_missing_amx() && !bt_x86_missing_avx512_bf16() &&
        amx_emulator_install()) {
        printf("amx: emulated instructions\n");
        return &bt_kernels_amx;
    }
#endif
    (void)name;
    return NULL;
}

static const struct bt_kernels *twin_of(const char *name)
{
    if (strcmp(name, "avx2") == 0)
        return find("avx512");
    return strcmp(name, "avx512") == 0 ? find("avx2") : NULL;
}

static struct bt_team *two_threads(void)
{
    struct bt_team_options options = {.threads = 2};
    struct bt_team *team = NULL;
    struct bt_error error;
    if (bt_team_create(&options, &error, &team) == BT_OK)
        return team;
    printf("FAIL team: %s\n", error.text);
    exit(1);
}

static unsigned run_variant(const struct bt_kernels *kernels, bool is_emulated, const char *op,
                            uint64_t seed)
{
    unsigned failures = 0;
    bool is_ref = strcmp(kernels->name, "ref") == 0;
    struct check check = {.kernels = kernels,
                          .oracle = is_ref ? NULL : find("ref"),
                          .twin = twin_of(kernels->name),
                          .team = two_threads(),
                          .is_emulated = is_emulated,
                          .only_tiles = is_emulated && !check_device(),
                          .seed = seed};
    if (check_device()) {
        check.oracle = check_device_oracle(check.oracle);
        check_device_begin(&check);
    }
    check_set_f8_inputs(kernels->f8_inputs);
    for (size_t i = 0; i < OP_COUNT; i++) {
        if ((op && strcmp(op, ops[i].name) != 0) || is_left_out(ops[i].name))
            continue;
        check.op = ops[i].name;
        check.shapes = check.failures = 0;
        ops[i].run(&check);
        printf("%s %s: %u shapes, %u failures\n", kernels->name, check.op, check.shapes,
               check.failures);
        failures += check.failures;
    }
    bt_team_destroy(check.team);
#ifdef BT_HAVE_X86_KERNELS
    if (is_emulated && !check_device())
        printf("amx: %llu instructions emulated\n", (unsigned long long)amx_emulator_count());
#endif
    return failures;
}

/* False: there is no GPU. One that is emulated says so in its name. */
static bool run_device(const char *name, const char *op, uint64_t seed, unsigned *failures)
{
    struct bt_device_info info;
    if (!check_device_open(name))
        return false;
    bt_device_info(check_device(), &info);
    *failures += run_variant(check_device_kernels(), strncmp(info.description, "Emulated", 8) == 0,
                             op, seed);
    check_device_close();
    return true;
}

static bool known(const char *name, bool is_op)
{
    for (size_t i = 0; is_op && i < OP_COUNT; i++) {
        if (strcmp(name, ops[i].name) == 0)
            return true;
    }
    for (size_t i = 0; !is_op && i < sizeof(variants) / sizeof(variants[0]); i++) {
        if (strcmp(name, variants[i]) == 0)
            return true;
    }
    fprintf(stderr, "checkkern: unknown %s '%s'\n", is_op ? "operation" : "kernels", name);
    return false;
}

static int usage(void)
{
    fprintf(stderr, "usage: checkkern [--kernels NAME] [--op NAME] [--seed N] [--bench]\n");
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"kernels", required_argument, NULL, 'k'},
                                            {"op", required_argument, NULL, 'o'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"bench", no_argument, NULL, 'b'},
                                            {NULL, 0, NULL, 0}};
    const char *wanted = NULL, *op = NULL;
    uint64_t seed = 1;
    bool bench = false;
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'k')
            wanted = optarg;
        else if (c == 'o')
            op = optarg;
        else if (c == 's')
            seed = strtoull(optarg, NULL, 0);
        else if (c == 'b')
            bench = true;
        else
            return usage();
    }
    if (optind != argc || (wanted && !known(wanted, false)) || (op && !known(op, true)))
        return usage();

    setvbuf(stdout, NULL, _IOLBF, 0); /* a crash loses no line of what led to it */
    unsigned failures = 0, tested = 0;
    printf("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof(variants) / sizeof(variants[0]); i++) {
        if (wanted && strcmp(wanted, variants[i]) != 0)
            continue;
        if (strcmp(variants[i], "cuda") == 0) {
            tested += run_device(variants[i], op, seed, &failures);
            continue;
        }
        const struct bt_kernels *kernels = emulated(variants[i]);
        bool is_emulated = kernels != NULL;
        if (!kernels && !(kernels = find(variants[i])))
            continue;
        unsigned failed = run_variant(kernels, is_emulated, op, seed);
        failures += failed;
        tested += i > 0 || wanted;
        if (bench && !failed && i > 0 && !is_emulated) {
            check_bench_tiles(kernels);
            check_bench(kernels);
        }
    }
    if (failures)
        return 1;
    return tested ? 0 : 77;
}
