#include "tests/bench/steps.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/process.h"
#include "common/base/random.h"
#include "common/model/forward.h"
#include "tests/bench/checkpoint.h"

#define SIZE       2
#define SEED       UINT64_C(5)
#define ROWS       32
#define EXPERTS    32
#define PER_TOKEN  8
#define MOE_LAYERS 3
#define HOT        8 /* experts of a layer */
#define HOT_RUN    8 /* neighbours, at most */
#define PREFERENCE 0.26F
#define WARM_UP    3
#define POSITION   40 /* of the rows, in a page of their own */

static const struct checkpoint_shape shape = {.name = "steps",
                                              .model_type = "deepseek_v3",
                                              .layers = MOE_LAYERS + 1,
                                              .dense_layers = 1,
                                              .hidden = 1024,
                                              .heads = 4,
                                              .q_lora_rank = 128,
                                              .kv_lora_rank = 128,
                                              .nope = 32,
                                              .rope = 32,
                                              .v = 32,
                                              .intermediate = 512,
                                              .moe_intermediate = 256,
                                              .experts = EXPERTS,
                                              .shared_experts = 1,
                                              .experts_per_token = PER_TOKEN,
                                              .groups = 1,
                                              .groups_per_token = 1,
                                              .vocab = 1024,
                                              .max_position_embeddings = 4096};

/* The steps that are measured in turns. */
enum variant { EVEN, CONTIGUOUS, ROUND_ROBIN, BALANCED, VARIANTS };

struct rank {
    uint32_t index, rounds;
    uint32_t rows[SIZE]; /* of each rank */
    const char *dir;
    struct bt_group *group;
    struct bt_model *model;
    struct bt_placement *placements[VARIANTS];
    struct bt_forward *forwards[VARIANTS];
    struct bt_expert_loads *counted;
    uint64_t loads[MOE_LAYERS * EXPERTS]; /* of all ranks, with preferences */
    float bias[2][MOE_LAYERS][EXPERTS];   /* none; preferences */
    struct bt_kv_layout kv;
    void *pool;
};

static void die(const struct rank *r, const char *what)
{
    fprintf(stderr, "groups: steps: rank %u: %s\n", r->index, what);
    _exit(1);
}

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

/* ---- the model and who prefers what ---- */

static void make_bias(struct rank *r)
{
    for (uint32_t layer = 0; layer < MOE_LAYERS; layer++) {
        float *bias = r->bias[1][layer];
        for (uint32_t hot = 0, run = 0; hot < HOT; run++) {
            uint64_t dice = bt_random_u64(SEED, layer, run);
            uint32_t first = (uint32_t)(dice % EXPERTS);
            uint32_t length = 1 + (uint32_t)(dice >> 32) % HOT_RUN;
            for (uint32_t i = 0; i < length && first + i < EXPERTS && hot < HOT; i++) {
                hot += bias[first + i] == 0;
                bias[first + i] = PREFERENCE;
            }
        }
    }
}

/* The routers' biases are replaced in memory: all else stays the same. */
static void prefer(struct rank *r, bool some)
{
    for (uint32_t i = 0; i < r->model->config.num_hidden_layers; i++) {
        struct bt_layer_weights *w = &r->model->layers[i];
        if (w->experts.experts)
            w->router_bias.data = r->bias[some][w->moe_index];
    }
}

static void place(struct rank *r, enum variant variant, enum bt_placement_kind kind)
{
    struct bt_error error = {0};
    const struct bt_placement_options options = {.kind = kind,
                                                 .layers = MOE_LAYERS,
                                                 .experts = EXPERTS,
                                                 .ranks = SIZE,
                                                 .machines = 1,
                                                 .groups = 1,
                                                 .loads = r->loads};
    struct bt_forward_options forward = {.max_rows = ROWS,
                                         .max_logits = ROWS,
                                         .ep = r->group,
                                         .dispatch = BT_DISPATCH_LATENCY,
                                         .loads = variant == ROUND_ROBIN ? r->counted : NULL};
    if (bt_placement_create(&options, &error, &r->placements[variant]) != BT_OK)
        die(r, error.text);
    forward.placement = r->placements[variant];
    if (bt_forward_create(r->model, &forward, &error, &r->forwards[variant]) != BT_OK)
        die(r, error.text);
}

/* Every rank has all experts, so that it can use some of them by any placement. */
static void open_rank(struct rank *r, const char *endpoint)
{
    struct bt_error error = {0};
    const struct bt_model_options model = {.dir = r->dir,
                                           .dtype = BT_MODEL_BFLOAT16,
                                           .max_tokens = ROWS * BT_PAGE_TOKENS,
                                           .ep_rank = r->index};
    struct bt_group_options group = {.transport = "ucx",
                                     .rank = r->index,
                                     .size = SIZE,
                                     .endpoint = endpoint,
                                     .secret = "of a benchmark",
                                     .connect_timeout_ns = 60 * BT_NS_PER_S,
                                     .wait_timeout_ns = 60 * BT_NS_PER_S};
    if (bt_model_load(&model, &error, &r->model) != BT_OK)
        die(r, error.text);
    group.limits = bt_forward_group_limits(&r->model->config, ROWS, 1);
    group.limits.broadcast_bytes = sizeof(r->loads);
    if (bt_group_create(&group, &error, &r->group) != BT_OK ||
        bt_expert_loads_create(MOE_LAYERS, EXPERTS, 2, 1 << 20, &error, &r->counted) != BT_OK)
        die(r, error.text);
    r->kv = bt_model_kv_layout(r->model, BT_BF16);
    r->pool = calloc(1, bt_kv_pool_bytes(&r->kv, ROWS));
    if (!r->pool)
        die(r, "no memory");
    make_bias(r);
    place(r, EVEN, BT_PLACEMENT_ROUND_ROBIN);
    place(r, CONTIGUOUS, BT_PLACEMENT_CONTIGUOUS);
    place(r, ROUND_ROBIN, BT_PLACEMENT_ROUND_ROBIN);
}

static void close_rank(struct rank *r)
{
    for (int i = 0; i < VARIANTS; i++) {
        bt_forward_destroy(r->forwards[i]);
        bt_placement_destroy(r->placements[i]);
    }
    bt_expert_loads_destroy(r->counted);
    bt_group_destroy(r->group);
    bt_model_destroy(r->model);
    free(r->pool);
}

/* ---- steps ---- */

/* us */
static double step(struct rank *r, enum variant variant, uint32_t round)
{
    uint32_t tokens[ROWS], pages[ROWS], wanted[ROWS], rows = r->rows[r->index];
    struct bt_sequence_rows sequences[ROWS];
    for (uint32_t i = 0; i < rows; i++) {
        tokens[i] = (uint32_t)(bt_random_u64(r->index, round, i) % shape.vocab);
        pages[i] = wanted[i] = i;
        sequences[i] = (struct bt_sequence_rows){&pages[i], POSITION, i, 1};
    }
    const struct bt_forward_batch batch = {.form = BT_FORWARD_ABSORBED,
                                           .tokens = tokens,
                                           .rows = rows,
                                           .sequences = sequences,
                                           .sequence_count = rows,
                                           .kv_pool = r->pool,
                                           .layout = r->kv,
                                           .pool_pages = ROWS,
                                           .logit_rows = wanted,
                                           .logit_count = rows};
    const float *logits;
    prefer(r, variant != EVEN);
    if (bt_group_barrier(r->group) != BT_OK)
        die(r, bt_group_error(r->group));
    int64_t start_ns = bt_clock_now_ns();
    if (bt_forward_run(r->forwards[variant], &batch, &logits) != BT_OK)
        die(r, bt_group_error(r->group));
    if (bt_group_barrier(r->group) != BT_OK) /* the slower one counts */
        die(r, bt_group_error(r->group));
    return (double)(bt_clock_now_ns() - start_ns) / 1e3;
}

/* How often the preferred experts are chosen, on all ranks. */
static void count_loads(struct rank *r)
{
    uint64_t mine[MOE_LAYERS * EXPERTS], theirs[MOE_LAYERS * EXPERTS];
    for (uint32_t round = 0; round < 40; round++)
        step(r, ROUND_ROBIN, 1000000 + round);
    bt_expert_loads_sum(r->counted, mine);
    for (uint32_t from = 0; from < SIZE; from++) {
        memcpy(theirs, mine, sizeof(theirs));
        if (bt_group_broadcast(r->group, from, theirs, sizeof(theirs), NULL) != BT_OK)
            die(r, bt_group_error(r->group));
        for (size_t i = 0; i < MOE_LAYERS * EXPERTS; i++)
            r->loads[i] += theirs[i];
    }
}

static void print_figure(const char *name, const char *what, double value, const char *unit,
                         double limit, double ratio)
{
    printf("figure %s%s %.4g %s %.4g %.3f\n", name, what, value, unit, limit, ratio);
    fflush(stdout);
}

/* Largest over smallest class of loads, for the reader. */
static void print_skew(const struct rank *r)
{
    double hot = 0, others = 0;
    for (uint32_t i = 0; i < MOE_LAYERS * EXPERTS; i++)
        *(r->bias[1][i / EXPERTS][i % EXPERTS] > 0 ? &hot : &others) += (double)r->loads[i];
    printf("steps: %d rows a rank, %d of %d experts chosen %.1f times as often in runs of "
           "neighbours, %d ranks\n",
           ROWS, HOT, EXPERTS, hot / HOT / (others / (EXPERTS - HOT)), SIZE);
}

static void measure_placements(struct rank *r)
{
    static const char *const names[VARIANTS] = {"even", "contiguous", "roundrobin", "balanced"};
    double *values = calloc((size_t)VARIANTS * r->rounds, sizeof(*values)), medians[VARIANTS];
    if (!values)
        die(r, "no memory");
    count_loads(r);
    place(r, BALANCED, BT_PLACEMENT_BALANCED);
    for (uint32_t i = 0; i < WARM_UP + r->rounds; i++)
        for (int v = 0; v < VARIANTS; v++)
            values[(size_t)v * r->rounds + (i < WARM_UP ? 0 : i - WARM_UP)] =
                step(r, (enum variant)v, i);
    for (int v = 0; v < VARIANTS; v++)
        medians[v] = median(values + (size_t)v * r->rounds, r->rounds);
    if (r->index == 0)
        print_skew(r);
    for (int v = CONTIGUOUS; v < VARIANTS && r->index == 0; v++) {
        double spread = bt_placement_imbalance(r->placements[v], r->loads);
        char name[64];
        snprintf(name, sizeof(name), "%s_max_over_mean", names[v]);
        print_figure("skewed_", name, spread, "x", 1, 1 / spread);
    }
    for (int v = CONTIGUOUS; v < VARIANTS && r->index == 0; v++) {
        double limit = medians[v == BALANCED ? EVEN : BALANCED];
        print_figure("step_", names[v], medians[v], "us", limit, limit / medians[v]);
    }
    free(values);
}

static void measure_uneven(struct rank *r)
{
    double *values = calloc(r->rounds, sizeof(*values));
    if (!values)
        die(r, "no memory");
    for (uint32_t i = 0; i < WARM_UP + r->rounds; i++)
        values[i < WARM_UP ? 0 : i - WARM_UP] = step(r, EVEN, i);
    if (r->index == 0)
        printf("step of %u and %u rows: %.1f us\n", r->rows[0], r->rows[1],
               median(values, r->rounds));
    free(values);
}

/* ---- processes ---- */

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

static void run_rank(struct rank *r, void (*measure)(struct rank *))
{
    char endpoint[300];
    pin(r->index);
    if (bt_process_die_with_parent() != BT_OK)
        _exit(1);
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/socket", r->dir);
    open_rank(r, endpoint);
    measure(r);
    close_rank(r);
    fflush(NULL);
    _exit(0);
}

static bool run_ranks(const char *dir, uint32_t rounds, const uint32_t *rows,
                      void (*measure)(struct rank *))
{
    pid_t pids[SIZE];
    bool well = true;
    fflush(NULL);
    for (uint32_t i = 0; i < SIZE; i++) {
        pids[i] = fork();
        if (pids[i] != 0)
            continue;
        struct rank *r = calloc(1, sizeof(*r));
        if (!r)
            _exit(1);
        *r = (struct rank){.index = i, .rounds = rounds, .rows = {rows[0], rows[1]}, .dir = dir};
        run_rank(r, measure);
    }
    for (uint32_t i = 0; i < SIZE; i++) {
        int status = 1;
        well = pids[i] > 0 && waitpid(pids[i], &status, 0) == pids[i] && status == 0 && well;
    }
    return well;
}

static void remove_files(const char *dir)
{
    static const char *const names[] = {"config.json", "model.safetensors", "socket"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[300];
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static bool run(uint32_t rounds, const uint32_t *rows, void (*measure)(struct rank *))
{
    const char *root = getenv("TMPDIR");
    char dir[256];
    struct bt_error error = {0};
    snprintf(dir, sizeof(dir), "%s/baton-steps-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(dir)) {
        perror(dir);
        return false;
    }
    bool well = checkpoint_write(dir, &shape, CHECKPOINT_BF16, SEED, &error) == BT_OK;
    if (!well)
        fprintf(stderr, "groups: %s\n", error.text);
    well = well && run_ranks(dir, rounds, rows, measure);
    remove_files(dir);
    return well;
}

bool bench_steps(uint32_t rounds)
{
    const uint32_t rows[SIZE] = {ROWS, ROWS};
    return run(rounds, rows, measure_placements);
}

bool bench_uneven_steps(uint32_t rounds, const uint32_t rows[SIZE])
{
    if (rows[0] > ROWS || rows[1] > ROWS)
        return false;
    return run(rounds, rows, measure_uneven);
}
