/*
 * Decode steps of ranks on GPUs, one each (emulated ones, unless BATON_CUDA_MODULE says otherwise):
 * a step waits for the device once, where it ends, also where the next one was agreed on and begun
 * before; an ep group's logits and tokens have the bits of one rank alone, whether its steps are
 * captured or not; the loss of a rank ends the step.
 */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/model/forward.h"

#define DIR       TESTS_MODELS "/v3-f32"
#define RANKS     4
#define STEPS     10
#define ROWS      5 /* of one rank at most */
#define MAX_ROWS  8
#define VOCAB     256
#define LIMIT_S   200
#define KILL_STEP 6

struct scene {
    uint32_t tp, ep; /* 0: no group */
    enum bt_model_dtype dtype;
    enum bt_dtype kv_dtype;
    bool copies; /* of experts */
    bool draws;  /* the device draws tokens, which are the next step's */
    bool ahead;  /* likewise, and the next step is begun before the last one is over */
    bool kills;  /* rank 1, before KILL_STEP */
};

struct outcome {
    enum bt_status status;
    uint32_t steps;
    uint64_t waits[STEPS], launches;
    struct bt_group_traffic traffic;
    float logits[STEPS][ROWS][VOCAB];
    uint32_t tokens[STEPS][ROWS]; /* drawn */
};

struct run {
    const struct scene *scene;
    uint32_t rank, of; /* of: whose sequences */
    struct outcome *outcome;
    struct bt_device *device;
    struct bt_placement *placement;
    struct bt_group *group;
    struct bt_model *model;
    struct bt_forward *forward;
    struct bt_kv_layout kv;
    void *pool;
    uint32_t length[ROWS];
};

static void give_up(const char *what, const char *why)
{
    fprintf(stderr, "rank %d: %s: %s\n", (int)getpid(), what, why);
    _exit(1);
}

/* Rows of a rank in a step: one pauses, and all have different ones. */
static uint32_t rows_of(uint32_t rank, uint32_t step)
{
    if (rank == 1 && (step == 3 || step == 7))
        return 0;
    return rank == 0 ? 3 : 1 + (rank * 2 + step / 5) % ROWS;
}

static uint32_t most_rows(const struct scene *scene, uint32_t step)
{
    uint32_t most = 0;
    for (uint32_t r = 0; r < scene->ep; r++)
        most = rows_of(r, step) > most ? rows_of(r, step) : most;
    return most;
}

static void place(struct run *run, const struct bt_model_config *c)
{
    struct bt_error error = {0};
    uint64_t loads[64];
    for (uint32_t i = 0; i < 64; i++)
        loads[i] = i % 3 ? 100 : 400;
    const struct bt_placement_options options = {
        .kind = run->scene->copies ? BT_PLACEMENT_BALANCED : BT_PLACEMENT_ROUND_ROBIN,
        .layers = bt_model_moe_layers(c),
        .experts = c->n_routed_experts,
        .ranks = run->scene->ep,
        .machines = 1,
        .groups = 1,
        .replicas = run->scene->copies ? 4 : 0,
        .loads = loads};
    if (bt_placement_create(&options, &error, &run->placement) != BT_OK)
        give_up("placement", error.text);
}

static void join(struct run *run, const char *endpoint)
{
    struct bt_error error = {0};
    struct bt_model_config c;
    char name[16];
    const struct scene *scene = run->scene;
    uint32_t size = scene->tp ? scene->tp : scene->ep;
    snprintf(name, sizeof(name), "cuda:%u", run->rank);
    if (bt_device_open(name, NULL, &error, &run->device) != BT_OK)
        give_up("device", error.text);
    if (bt_model_config_load(DIR, &error, &c) != BT_OK)
        give_up("config", error.text);
    if (scene->ep)
        place(run, &c);
    const struct bt_group_options options = {
        .transport = "nccl",
        .rank = run->rank,
        .size = size,
        .endpoint = endpoint,
        .secret = "a secret of the tests",
        .connect_timeout_ns = 100 * BT_NS_PER_S,
        .wait_timeout_ns = 100 * BT_NS_PER_S,
        .limits = bt_forward_group_limits(&c, MAX_ROWS, scene->tp ? scene->tp : 1)};
    if (size > 0 && bt_group_create(&options, &error, &run->group) != BT_OK)
        give_up("group", error.text);
}

static void load(struct run *run)
{
    struct bt_error error = {0};
    const struct scene *scene = run->scene;
    const struct bt_model_options model = {.dir = DIR,
                                           .device = run->device,
                                           .dtype = scene->dtype,
                                           .max_tokens = BT_PAGE_TOKENS,
                                           .tp_rank = scene->tp ? run->rank : 0,
                                           .tp_size = scene->tp,
                                           .placement = run->placement,
                                           .ep_rank = scene->ep ? run->rank : 0};
    const struct bt_forward_options forward = {.max_rows = MAX_ROWS,
                                               .max_logits = MAX_ROWS,
                                               .tp = scene->tp ? run->group : NULL,
                                               .ep = scene->ep ? run->group : NULL,
                                               .placement = run->placement,
                                               .dispatch = BT_DISPATCH_LATENCY};
    if (bt_model_load(&model, &error, &run->model) != BT_OK)
        give_up("model", error.text);
    if (bt_forward_create(run->model, &forward, &error, &run->forward) != BT_OK)
        give_up("forward", error.text);
    run->kv = bt_model_kv_layout(run->model, scene->kv_dtype);
    if (bt_device_alloc(run->device, bt_kv_pool_bytes(&run->kv, ROWS), &error, &run->pool) != BT_OK)
        give_up("pool", error.text);
}

static struct bt_forward_counts counts_of(const struct run *run)
{
    struct bt_forward_counts counts;
    bt_forward_count(run->forward, &counts);
    return counts;
}

/* What is fed to a step, and lives while it is begun. */
struct feed {
    uint32_t tokens[ROWS], token_from[ROWS], pages[ROWS], wanted[ROWS];
    struct bt_sequence_rows sequences[ROWS];
    struct bt_draw draws[ROWS];
    uint32_t rows;
};

/* The token that row i drew in the step before, or one of its own. */
static void choose_token(const struct run *run, uint32_t number, uint32_t i, struct feed *feed)
{
    bool goes_on = run->scene->draws && number > 0 && i < rows_of(run->of, number - 1);
    size_t vocab = run->model->config.vocab_size;
    feed->tokens[i] = (uint32_t)(bt_random_u64(run->of, i, run->length[i]) % vocab);
    feed->token_from[i] = BT_TOKEN_GIVEN;
    if (goes_on && run->scene->ahead)
        feed->token_from[i] = i;
    else if (goes_on)
        feed->tokens[i] = run->outcome->tokens[number - 1][i];
}

static void fill_feed(struct run *run, uint32_t number, struct feed *feed)
{
    feed->rows = rows_of(run->of, number);
    for (uint32_t i = 0; i < feed->rows; i++) {
        choose_token(run, number, i, feed);
        feed->pages[i] = (i * 3 + 1) % ROWS;
        feed->wanted[i] = i;
        feed->draws[i] = (struct bt_draw){.seed = 7,
                                          .position = run->length[i],
                                          .temperature = i % 3 == 0 ? 0 : 1.5f,
                                          .top_p = 1};
        feed->sequences[i] = (struct bt_sequence_rows){&feed->pages[i], run->length[i]++, i, 1};
    }
}

/* Step 8 is not known to be like the others', of step 9 nothing is known. */
static void begin(struct run *run, uint32_t number)
{
    struct feed feed;
    const struct scene *scene = run->scene;
    fill_feed(run, number, &feed);
    const struct bt_forward_batch batch = {
        .form = BT_FORWARD_ABSORBED,
        .tokens = feed.tokens,
        .rows = feed.rows,
        .sequences = feed.sequences,
        .sequence_count = feed.rows,
        .kv_pool = run->pool,
        .layout = run->kv,
        .pool_pages = ROWS,
        .logit_rows = feed.wanted,
        .logit_count = feed.rows,
        .draws = scene->draws ? feed.draws : NULL,
        .no_logits = scene->ahead,
        .token_from = scene->ahead && number > 0 ? feed.token_from : NULL,
        .most_rows = scene->ep && number < 9 ? most_rows(scene, number) : 0,
        .is_steady = scene->ep && number < 8};
    run->outcome->status = bt_forward_begin(run->forward, &batch);
}

static void end(struct run *run, uint32_t number)
{
    struct outcome *outcome = run->outcome;
    struct bt_forward_result result = {0};
    size_t vocab = run->model->config.vocab_size;
    uint32_t rows = rows_of(run->of, number);
    if (outcome->status == BT_OK)
        outcome->status = bt_forward_finish(run->forward, &result);
    if (outcome->status != BT_OK)
        return;
    for (uint32_t i = 0; i < rows && result.logits; i++)
        memcpy(outcome->logits[number][i], result.logits + i * vocab, vocab * sizeof(float));
    for (uint32_t i = 0; i < rows && result.tokens; i++)
        outcome->tokens[number][i] = result.tokens[i];
    outcome->steps = number + 1;
}

/* Between hosts: were it behind what is queued, half of the ranks would wait here for a step that
 * the others have not begun. */
static void agree(struct run *run, uint32_t number)
{
    uint64_t word = number * 100 + run->rank, all[RANKS];
    struct outcome *outcome = run->outcome;
    if (outcome->status == BT_OK)
        outcome->status = bt_group_agree_begin(run->group, &word, 1);
    if (outcome->status == BT_OK)
        outcome->status = bt_group_agree_finish(run->group, all);
    for (uint32_t r = 0; r < run->scene->ep && outcome->status == BT_OK; r++)
        if (all[r] != number * 100 + r)
            give_up("agreement", "other words");
}

static void die_here(const struct run *run, uint32_t number)
{
    if (run->scene->kills && run->rank == 1 && number == KILL_STEP)
        raise(SIGKILL);
}

static void run_steps(struct run *run)
{
    uint64_t before = counts_of(run).device_waits;
    for (uint32_t i = 0; i < STEPS && run->outcome->status == BT_OK; i++) {
        die_here(run, i);
        begin(run, i);
        end(run, i);
        uint64_t now = counts_of(run).device_waits;
        run->outcome->waits[i] = now - before;
        before = now;
    }
}

/* Step i is begun, and agreed on with the others, while step i - 1 is under way. One that dies has
 * a step queued, and in the group's words said that it goes on. */
static void run_ahead(struct run *run)
{
    uint64_t before = counts_of(run).device_waits;
    bool agrees_first = run->rank % 2;
    for (uint32_t i = 0; i <= STEPS && run->outcome->status == BT_OK; i++) {
        if (agrees_first)
            agree(run, i);
        die_here(run, i);
        if (i < STEPS && run->outcome->status == BT_OK)
            begin(run, i);
        if (!agrees_first)
            agree(run, i);
        if (i == 0 || run->outcome->status != BT_OK)
            continue;
        end(run, i - 1);
        uint64_t now = counts_of(run).device_waits;
        run->outcome->waits[i - 1] = now - before;
        before = now;
    }
}

static void run_rank(struct run *run, const char *endpoint)
{
    join(run, endpoint);
    load(run);
    if (run->scene->ahead)
        run_ahead(run);
    else
        run_steps(run);
    run->outcome->launches = counts_of(run).graph_launches;
    if (run->group)
        bt_group_traffic(run->group, &run->outcome->traffic);
    bt_forward_destroy(run->forward);
    bt_model_destroy(run->model);
    bt_device_free(run->device, run->pool);
    bt_group_destroy(run->group);
    bt_placement_destroy(run->placement);
    bt_device_close(run->device);
}

static pid_t start(struct run *run, const char *endpoint)
{
    pid_t parent = getpid();
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    alarm(LIMIT_S);
    run_rank(run, endpoint);
    _exit(0);
}

/* [RANKS], shared. `of`: without groups, whose sequences. */
static void run_scene(const struct scene *scene, uint32_t of, struct outcome *outcomes)
{
    char folder[] = "/tmp/baton-ranks-XXXXXX", endpoint[64];
    uint32_t size = scene->tp ? scene->tp : scene->ep ? scene->ep : 1;
    pid_t pids[RANKS];
    bool sound = true;
    memset(outcomes, 0, RANKS * sizeof(*outcomes));
    assert_non_null(mkdtemp(folder));
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/socket", folder);
    for (uint32_t r = 0; r < size; r++) {
        struct run run = {
            .scene = scene, .rank = r, .of = scene->ep ? r : of, .outcome = &outcomes[r]};
        pids[r] = start(&run, endpoint);
    }
    for (uint32_t r = 0; r < size; r++) {
        int state = 0;
        bool killed = scene->kills && r == 1;
        assert_int_equal(waitpid(pids[r], &state, 0), pids[r]);
        sound = sound && (killed ? WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL
                                 : WIFEXITED(state) && WEXITSTATUS(state) == 0);
    }
    unlink(endpoint + 6);
    rmdir(folder);
    assert_true(sound);
}

static struct outcome *make_outcomes(void)
{
    void *memory = mmap(NULL, RANKS * sizeof(struct outcome), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    return memory;
}

static void check_waits(const struct outcome *outcome)
{
    assert_int_equal(outcome->status, BT_OK);
    assert_int_equal(outcome->steps, STEPS);
    for (uint32_t i = 0; i < STEPS; i++)
        assert_int_equal(outcome->waits[i], 1);
}

static void ep_leaves_the_bits(struct scene scene)
{
    struct outcome *got = make_outcomes(), *alone = make_outcomes();
    const struct scene single = {
        .dtype = scene.dtype, .kv_dtype = scene.kv_dtype, .draws = scene.draws};
    run_scene(&scene, 0, got);
    for (uint32_t r = 0; r < scene.ep; r++) {
        check_waits(&got[r]);
        assert_true(got[r].launches > 0);
        assert_int_equal(got[r].launches, got[0].launches);
        assert_int_equal(got[r].traffic.dispatch, got[0].traffic.dispatch);
        run_scene(&single, r, alone);
        check_waits(&alone[0]);
        assert_memory_equal(got[r].tokens, alone[0].tokens, sizeof(alone[0].tokens));
        if (!scene.ahead)
            assert_memory_equal(got[r].logits, alone[0].logits, sizeof(alone[0].logits));
    }
    munmap(got, RANKS * sizeof(*got));
    munmap(alone, RANKS * sizeof(*alone));
}

static void test_ep(void **state)
{
    (void)state;
    ep_leaves_the_bits((struct scene){.ep = 2});
}

static void test_ep_of_copies(void **state)
{
    (void)state;
    ep_leaves_the_bits(
        (struct scene){.ep = 4, .copies = true, .dtype = BT_MODEL_BFLOAT16, .kv_dtype = BT_BF16});
}

static void test_ep_ahead(void **state)
{
    (void)state;
    ep_leaves_the_bits((struct scene){.ep = 2, .draws = true, .ahead = true});
}

static void test_ep_of_copies_ahead(void **state)
{
    (void)state;
    ep_leaves_the_bits((struct scene){.ep = 4,
                                      .copies = true,
                                      .dtype = BT_MODEL_BFLOAT16,
                                      .kv_dtype = BT_BF16,
                                      .draws = true,
                                      .ahead = true});
}

/* Sums of heads in another order. */
static void test_tp(void **state)
{
    struct outcome *got = make_outcomes(), *alone = make_outcomes();
    const struct scene scene = {.tp = 2}, single = {0};
    double largest = 0;
    (void)state;
    run_scene(&scene, 2, got);
    run_scene(&single, 2, alone);
    check_waits(&got[0]);
    check_waits(&got[1]);
    const float *ours = &got[0].logits[0][0][0], *theirs = &alone[0].logits[0][0][0];
    for (size_t i = 0; i < STEPS * ROWS * VOCAB; i++)
        largest = fmax(largest, isnan(ours[i]) ? INFINITY : fabs((double)ours[i] - theirs[i]));
    print_message("logits of tp 2 differ by %g\n", largest);
    assert_true(largest > 0 && largest < 1e-4);
    munmap(got, RANKS * sizeof(*got));
    munmap(alone, RANKS * sizeof(*alone));
}

static void test_loss_of_a_rank(void **state)
{
    struct outcome *got = make_outcomes();
    (void)state;
    run_scene(&(struct scene){.ep = 2, .kills = true}, 0, got);
    assert_int_equal(got[0].status, BT_ERR_PEER_LOST);
    assert_int_equal(got[0].steps, KILL_STEP);
    munmap(got, RANKS * sizeof(*got));
}

/* Between an agreement and the step that it was about, with another one under way: the others learn
 * of it in the next agreement, and what they have queued ends. */
static void test_loss_of_a_rank_ahead(void **state)
{
    struct outcome *got = make_outcomes();
    (void)state;
    run_scene(&(struct scene){.ep = 4, .kills = true, .draws = true, .ahead = true}, 0, got);
    for (uint32_t r = 0; r < 4; r++) {
        if (r == 1)
            continue;
        assert_int_equal(got[r].status, BT_ERR_PEER_LOST);
        /* what rank 1 had queued may have run to its end */
        assert_true(got[r].steps == KILL_STEP - 1 || got[r].steps == KILL_STEP);
    }
    munmap(got, RANKS * sizeof(*got));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ep),
        cmocka_unit_test(test_ep_of_copies),
        cmocka_unit_test(test_ep_ahead),
        cmocka_unit_test(test_ep_of_copies_ahead),
        cmocka_unit_test(test_tp),
        cmocka_unit_test(test_loss_of_a_rank),
        cmocka_unit_test(test_loss_of_a_rank_ahead),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
