#include "tests/unit/model-groups/layouts.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/model/experts.h"
#include "tests/late-device/late_device.h"

/* Long enough for any machine: they end a test only where a rank is stuck. */
#define LIMIT_S    500
#define CONNECT_NS (200 * BT_NS_PER_S)
#define WAIT_NS    (200 * BT_NS_PER_S)
#define KILL_LAYER 3
#define KILL_RUN   2
#define PATTERN    0xff /* NaN: what is read without having been written shows */
#define MAX_RUNS   64

/* ---- one rank; whatever goes wrong ends the process with a message ---- */

static void give_up(const char *what, const char *why)
{
    fprintf(stderr, "rank %d: %s: %s\n", (int)getpid(), what, why);
    _exit(1);
}

struct rank {
    const struct layout *layout;
    uint32_t index, tp_rank, tp_group, ep_rank;
    const struct prompt *prompt;
    struct rank_result *result;
    struct bt_placement *placement, *other;
    struct bt_group *tp, *ep;
    struct bt_model *model, view;
    struct bt_device *late; /* NULL: the CPU */
    struct bt_forward *prefill, *decode;
    struct bt_kv_layout kv;
    struct bt_expert_loads *loads;
    uint32_t pages[POOL_PAGES];
    uint32_t done;         /* tokens of the prompt */
    uint32_t runs, layers; /* so far; of the run */
    uint32_t moved;        /* layers */
    uint32_t moving;
    const struct bt_placement *moving_to;
    struct bt_expert_change *change;
};

static struct bt_placement *make_placement(const struct bt_model_config *c,
                                           const struct layout *layout, enum bt_placement_kind kind,
                                           uint32_t hot)
{
    struct bt_error error = {0};
    struct bt_placement *placement;
    uint32_t layers = bt_model_moe_layers(c);
    uint64_t *loads = calloc((size_t)layers * c->n_routed_experts, sizeof(*loads));
    for (uint32_t i = 0; i < layers * c->n_routed_experts; i++)
        loads[i] = (i + hot) % 5 == 0 ? 500 : 100;
    struct bt_placement_options options = {.kind = kind,
                                           .layers = layers,
                                           .experts = c->n_routed_experts,
                                           .ranks = layout->ep,
                                           .machines = 1,
                                           .groups = 1};
    if (layout->replicas == WITH_REPLICAS) {
        options.kind = BT_PLACEMENT_BALANCED;
        options.replicas = layout->ep > 1 ? 8 : 0;
        options.loads = loads;
    }
    if (bt_placement_create(&options, &error, &placement) != BT_OK)
        give_up("placement", error.text);
    free(loads);
    return placement;
}

static struct bt_group *join(const char *endpoint, uint32_t rank, uint32_t size,
                             struct bt_group_limits limits)
{
    struct bt_error error = {0};
    struct bt_group *group;
    limits.broadcast_bytes = 64;
    const struct bt_group_options options = {.transport = "auto",
                                             .rank = rank,
                                             .size = size,
                                             .endpoint = endpoint,
                                             .secret = "a secret of the tests",
                                             .connect_timeout_ns = CONNECT_NS,
                                             .wait_timeout_ns = WAIT_NS,
                                             .limits = limits};
    if (bt_group_create(&options, &error, &group) != BT_OK)
        give_up("group", error.text);
    return group;
}

/* One group where tp and ep are the same ranks. endpoints: one for each tp group, then ep's. */
static void join_groups(struct rank *rank, const struct bt_model_config *c, char (*endpoints)[64])
{
    const struct layout *layout = rank->layout;
    struct bt_group_limits limits = bt_forward_group_limits(c, MAX_CHUNK, layout->tp);
    if (layout->ep)
        rank->ep = join(endpoints[MAX_RANKS], rank->index, layout->ep, limits);
    if (layout->tp == layout->ep && layout->tp > 1) {
        rank->tp = rank->ep;
    } else if (layout->tp > 1) {
        limits.rows = 0;
        rank->tp = join(endpoints[rank->tp_group], rank->tp_rank, layout->tp, limits);
    }
}

static bool is_confused(const struct rank *rank)
{
    return rank->layout->confused_rank && rank->index == rank->layout->confused_rank;
}

static void load(struct rank *rank)
{
    struct bt_error error = {0};
    const struct layout *layout = rank->layout;
    const struct bt_model_options options = {.dir = layout->dir,
                                             .dtype = layout->dtype,
                                             .max_tokens = POOL_PAGES * BT_PAGE_TOKENS,
                                             .tp_rank = rank->tp_rank,
                                             .tp_size = layout->tp,
                                             .placement =
                                                 is_confused(rank) ? NULL : rank->placement,
                                             .ep_rank = rank->ep_rank};
    if (bt_model_load(&options, &error, &rank->model) != BT_OK)
        give_up("model", error.text);
    struct bt_forward_options forward = {.max_rows = MAX_CHUNK,
                                         .max_logits = MAX_LOGITS,
                                         .tp = rank->tp,
                                         .ep = rank->ep,
                                         .placement =
                                             is_confused(rank) ? rank->other : rank->placement,
                                         .payload = layout->payload,
                                         .loads = rank->loads};
    rank->view = *rank->model;
    if (layout->late) {
        rank->view.device = rank->late = late_device_create(rank->model->kernels);
        rank->view.kernels = rank->late->kernels;
    }
    if (bt_forward_create(&rank->view, &forward, &error, &rank->prefill) != BT_OK)
        give_up("prefill", error.text);
    forward.dispatch = BT_DISPATCH_LATENCY;
    if (bt_forward_create(&rank->view, &forward, &error, &rank->decode) != BT_OK)
        give_up("decode", error.text);
    rank->kv = bt_model_kv_layout(rank->model, layout->kv_dtype);
    rank->result->pool_bytes = bt_kv_pool_bytes(&rank->kv, POOL_PAGES);
    rank->result->weight_bytes = rank->model->memory.bytes;
    memset(rank->result->pool, PATTERN, rank->result->pool_bytes);
    for (uint32_t i = 0; i < POOL_PAGES; i++)
        rank->pages[i] = (i * 5 + 3) % POOL_PAGES;
}

static void count_layer(void *context, uint32_t layer)
{
    struct rank *rank = context;
    const struct layout *layout = rank->layout;
    rank->layers++;
    if (layout->kill_rank && rank->index == layout->kill_rank && rank->runs == KILL_RUN &&
        layer == KILL_LAYER)
        raise(SIGKILL);
}

/* Of each layer of experts, all of this rank's rows have some. */
static void see_states(void *context, int32_t layer, const float *x, const uint32_t *experts,
                       const float *weights)
{
    struct rank *rank = context;
    bool is_moe = layer >= 0 && bt_model_layer_is_moe(&rank->model->config, (uint32_t)layer);
    if (!x || !experts != !is_moe || !weights != !is_moe)
        give_up("probe", "not what the layer is");
}

/* `count` rows of the sequence from position `start` on, with the logits that are asked for. */
static bool run(struct rank *rank, enum bt_forward_form form, const uint32_t *tokens,
                uint32_t start, uint32_t count, const uint32_t *wanted, uint32_t wanted_count)
{
    struct bt_sequence_rows sequence = {rank->pages, start, 0, count};
    const struct bt_forward_batch batch = {
        .form = form,
        .tokens = tokens,
        .rows = count,
        .sequences = &sequence,
        .sequence_count = count > 0,
        .kv_pool = rank->result->pool,
        .layout = rank->kv,
        .pool_pages = POOL_PAGES,
        .logit_rows = wanted,
        .logit_count = wanted_count,
        .layer_done = count_layer,
        .probe = rank->layout->probes ? see_states : NULL,
        .context = rank,
    };
    struct rank_result *result = rank->result;
    const float *logits = NULL;
    rank->layers = 0;
    struct bt_forward *forward = form == BT_FORWARD_ABSORBED ? rank->decode : rank->prefill;
    result->status = bt_forward_run(forward, &batch, &logits);
    if (result->status != BT_OK)
        return false;
    rank->runs++;
    if (rank->layers != rank->model->config.num_hidden_layers)
        give_up("layer_done", "not of every layer");
    if (!logits != (rank->tp_rank > 0))
        give_up("logits", "not on tp rank 0 alone");
    size_t row = rank->model->config.vocab_size;
    if (logits && wanted_count) {
        memcpy(result->logits + result->logit_count * row, logits,
               wanted_count * row * sizeof(float));
        result->logit_count += wanted_count;
    }
    return true;
}

/* The next layer goes from the placement that it has to the other one. */
static void *load_experts(void *context)
{
    struct rank *rank = context;
    struct bt_error error = {0};
    uint32_t layers = rank->placement->layers;
    rank->moving = rank->moved % layers;
    rank->moving_to = rank->moved / layers % 2 ? rank->placement : rank->other;
    if (bt_model_load_experts(rank->model, rank->moving, rank->moving_to, NULL, &error,
                              &rank->change) != BT_OK)
        give_up("experts", error.text);
    return NULL;
}

static void switch_experts(struct rank *rank)
{
    bt_model_switch_experts(rank->model, rank->change);
    bt_forward_set_placement(rank->prefill, rank->moving, rank->moving_to);
    bt_forward_set_placement(rank->decode, rank->moving, rank->moving_to);
    rank->moved++;
}

/* A run, and meanwhile, where the layout moves experts, the loading of those of the next one. */
static bool step(struct rank *rank, enum bt_forward_form form, const uint32_t *tokens,
                 uint32_t start, uint32_t count, const uint32_t *wanted, uint32_t wanted_count)
{
    pthread_t thread;
    if (!rank->layout->moves)
        return run(rank, form, tokens, start, count, wanted, wanted_count);
    if (pthread_create(&thread, NULL, load_experts, rank) != 0)
        give_up("experts", "no thread");
    bool done = run(rank, form, tokens, start, count, wanted, wanted_count);
    pthread_join(thread, NULL);
    switch_experts(rank);
    return done;
}

static bool prefill(struct rank *rank)
{
    const struct prompt *prompt = rank->prompt;
    uint32_t chunk = rank->layout->chunk + 7 * rank->tp_group, next = 0;
    for (uint32_t i = 0; i < MAX_RUNS; i++) {
        /* the longest of all prompts in the smallest chunks ends in time */
        uint32_t left = prompt->count - rank->done, count = left < chunk ? left : chunk;
        uint32_t wanted[MAX_LOGITS], wanted_count = 0;
        for (; next < prompt->position_count && prompt->positions[next] < rank->done + count;
             next++)
            wanted[wanted_count++] = prompt->positions[next] - rank->done;
        bool over = !rank->ep && left == 0;
        if (over || (rank->ep && i * rank->layout->chunk >= MAX_CHUNK && left == 0))
            return true;
        if (!step(rank, BT_FORWARD_MULTI_HEAD, prompt->tokens + rank->done, rank->done, count,
                  wanted, wanted_count))
            return false;
        rank->done += count;
    }
    return true;
}

/* Every rank takes part in 2 * STEPS steps, and pauses in some of them. */
static bool decode(struct rank *rank)
{
    const struct prompt *prompt = rank->prompt;
    const uint32_t zero = 0;
    for (uint32_t i = 0, fed = 0; i < 2 * STEPS; i++) {
        bool pauses = fed == STEPS || (i + rank->tp_group) % 3 == 0;
        if (pauses && !rank->ep)
            continue;
        if (!step(rank, BT_FORWARD_ABSORBED, prompt->next + fed, prompt->count + fed, !pauses,
                  &zero, !pauses))
            return false;
        fed += !pauses;
    }
    return true;
}

static void count_picks(struct rank *rank)
{
    const struct bt_model_config *c = &rank->model->config;
    uint32_t layers = bt_model_moe_layers(c);
    uint64_t *loads = calloc((size_t)layers * c->n_routed_experts, sizeof(*loads));
    bool *here = calloc(c->n_routed_experts, sizeof(*here));
    bt_expert_loads_sum(rank->loads, loads);
    for (uint32_t i = 0; i < layers; i++) {
        bt_model_experts_here(rank->model, rank->placement, i, here);
        for (uint32_t e = 0; e < c->n_routed_experts; e++) {
            rank->result->picks += loads[i * c->n_routed_experts + e];
            rank->result->remote_picks += here[e] ? 0 : loads[i * c->n_routed_experts + e];
        }
    }
    free(loads);
    free(here);
}

static void run_rank(struct rank *rank, char (*endpoints)[64])
{
    struct bt_error error = {0};
    struct bt_model_config config;
    const struct layout *layout = rank->layout;
    if (bt_model_config_load(layout->dir, &error, &config) != BT_OK)
        give_up("config", error.text);
    if (layout->ep) {
        rank->placement = make_placement(&config, layout, layout->placement, 0);
        rank->other = make_placement(&config, layout, BT_PLACEMENT_CONTIGUOUS, 3);
    }
    if (bt_expert_loads_create(bt_model_moe_layers(&config), config.n_routed_experts, 2, 1 << 20,
                               &error, &rank->loads) != BT_OK)
        give_up("loads", error.text);
    join_groups(rank, &config, endpoints);
    load(rank);
    bool done = prefill(rank) && decode(rank);
    if (rank->tp)
        bt_group_traffic(rank->tp, &rank->result->tp_traffic);
    if (rank->ep)
        bt_group_traffic(rank->ep, &rank->result->ep_traffic);
    count_picks(rank);
    bool over = rank->result->status != BT_ERR_MISMATCH; /* that ends when this rank leaves */
    if (!done && rank->ep && over && bt_group_barrier(rank->ep) == BT_OK)
        give_up("group", "it goes on after a run that failed");
    bt_forward_destroy(rank->prefill);
    bt_forward_destroy(rank->decode);
    late_device_destroy(rank->late);
    bt_model_destroy(rank->model);
    if (rank->tp != rank->ep)
        bt_group_destroy(rank->tp);
    bt_group_destroy(rank->ep);
    bt_expert_loads_destroy(rank->loads);
    bt_placement_destroy(rank->placement);
    bt_placement_destroy(rank->other);
}

/* ---- all of them ---- */

/* A port that stays this process's until it is closed, and that rank 0 may listen on. */
static int reserve_port(char ret_endpoint[64])
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(at);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    snprintf(ret_endpoint, 64, "tcp://127.0.0.1:%u", ntohs(at.sin_port));
    return fd;
}

static uint32_t rank_count(const struct layout *layout)
{
    uint32_t most = layout->tp > layout->ep ? layout->tp : layout->ep;
    return layout->tp == 1 && layout->ep == 0 ? layout->ranks : most;
}

static void make_results(const struct layout *layout, struct results *ret)
{
    struct bt_model_config c;
    assert_int_equal(bt_model_config_load(layout->dir, NULL, &c), BT_OK);
    struct bt_kv_layout kv = {c.num_hidden_layers, c.kv_lora_rank, c.qk_rope_head_dim,
                              layout->kv_dtype};
    size_t logits = (size_t)MAX_LOGITS * c.vocab_size * sizeof(float);
    size_t pool = (bt_kv_pool_bytes(&kv, POOL_PAGES) + 63) / 64 * 64;
    size_t head = (sizeof(*ret) + 63) / 64 * 64;
    size_t bytes = head + MAX_RANKS * (logits + pool);
    struct results *shared =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED);
    *shared = (struct results){rank_count(layout), c.vocab_size, {{0}}, shared, bytes};
    char *at = (char *)shared + head;
    for (uint32_t i = 0; i < MAX_RANKS; i++, at += logits + pool) {
        shared->rank[i].logits = (float *)at;
        shared->rank[i].pool = at + logits;
    }
    *ret = *shared;
}

static pid_t start_rank(const struct layout *layout, const struct prompt *prompts, uint32_t index,
                        struct results *shared, char (*endpoints)[64])
{
    pid_t parent = getpid(), pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    alarm(LIMIT_S);
    struct rank rank = {.layout = layout,
                        .index = index,
                        .tp_rank = index % layout->tp,
                        .tp_group = index / layout->tp,
                        .ep_rank = layout->ep ? index : 0,
                        .prompt = &prompts[index / layout->tp],
                        .result = &shared->rank[index]};
    run_rank(&rank, endpoints);
    _exit(0);
}

/* Every process has ended when this returns. */
static bool wait_for_all(const struct layout *layout, const pid_t *pids, uint32_t count)
{
    bool sound = true;
    for (uint32_t i = 0; i < count; i++) {
        int state = 0;
        while (waitpid(pids[i], &state, 0) < 0 && errno == EINTR)
            ;
        bool killed = layout->kill_rank && i == layout->kill_rank;
        if (killed ? !WIFSIGNALED(state) || WTERMSIG(state) != SIGKILL
                   : !WIFEXITED(state) || WEXITSTATUS(state) != 0) {
            print_message("%s: rank %u ended with %x\n", layout_name(layout), i, (unsigned)state);
            sound = false;
        }
    }
    return sound;
}

void layout_run(const struct layout *layout, const struct prompt *prompts, struct results *ret)
{
    char endpoints[MAX_RANKS + 1][64];
    int ports[MAX_RANKS + 1];
    pid_t pids[MAX_RANKS];
    make_results(layout, ret);
    struct results *shared = ret->memory;
    uint32_t ranks = shared->ranks;
    assert_true(ranks <= MAX_RANKS);
    for (uint32_t i = 0; i <= MAX_RANKS; i++)
        ports[i] = reserve_port(endpoints[i]);
    fflush(NULL);
    for (uint32_t i = 0; i < ranks; i++)
        pids[i] = start_rank(layout, prompts, i, shared, endpoints);
    bool sound = wait_for_all(layout, pids, ranks);
    for (uint32_t i = 0; i <= MAX_RANKS; i++)
        close(ports[i]);
    *ret = *shared;
    if (!sound)
        fail_msg("%s: a rank failed", layout_name(layout));
}

void results_free(struct results *results)
{
    munmap(results->memory, results->bytes);
}

const char *layout_name(const struct layout *layout)
{
    static const char *const placements[] = {"contiguous", "round-robin", "balanced"};
    static char name[128];
    snprintf(name, sizeof(name), "tp %u ep %u %s%s%s chunk %u", layout->tp, layout->ep,
             layout->replicas ? "replicated" : placements[layout->placement],
             layout->moves ? " moving" : "", layout->payload == BT_PAYLOAD_FP8 ? " fp8" : "",
             layout->chunk);
    return name;
}
