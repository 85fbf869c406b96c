#include "tests/unit/model-groups/ranks.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"

#define LIMIT_S      300 /* ends a test only where a rank is stuck */
#define TIMEOUT_NS   (200 * BT_NS_PER_S)
#define MAX_STEPS    20000
#define POOL_PAGES   1
#define WORDS        (BT_RANK_WORDS + 1)
#define CHANGE_BYTES ((size_t)2 << 20)

/* ---- one rank; whatever goes wrong ends the process with a message ---- */

struct runner {
    const struct rank_case *c;
    uint32_t index, size;
    struct rank_outcomes *outcomes;
    struct rank_outcome *outcome;
    struct bt_rank *rank;
    struct bt_model *model;
    struct bt_forward *forward;
    struct bt_kv_layout kv;
    void *pool;
    struct bt_metrics *metrics;
};

static void give_up(const struct runner *r, const char *what, const char *why)
{
    fprintf(stderr, "rank %u: %s: %s\n", r->index, what, why);
    _exit(1);
}

static uint64_t count_of(const struct runner *r, const char *name, const char *labels)
{
    return bt_counter_value(bt_metrics_counter(r->metrics, name, labels, ""));
}

static bool join(struct runner *r)
{
    char endpoint[512], secret[512];
    struct bt_error error = {0};
    struct bt_rank_options options = r->c->options;
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/socket", r->c->scratch);
    snprintf(secret, sizeof(secret), "%s/secret", r->c->scratch);
    options.rank = r->index;
    options.endpoint = endpoint;
    options.secret_file = secret;
    options.connect_timeout_ns = options.wait_timeout_ns = TIMEOUT_NS;
    options.max_rows = ROWS;
    if (r->index == r->c->other)
        options.redundant_experts += options.size;
    if (r->index > 0)
        options.expert_loads_file = NULL; /* rank 0's is all that counts */
    r->outcome->status = bt_rank_join(&options, r->c->dir, &error, &r->rank);
    snprintf(r->outcome->text, sizeof(r->outcome->text), "%s", error.text);
    return r->outcome->status == BT_OK;
}

static void load(struct runner *r)
{
    struct bt_error error = {0};
    struct bt_model_options options = {
        .dir = r->c->dir, .dtype = r->c->dtype, .max_tokens = BT_PAGE_TOKENS};
    struct bt_forward_options forward = {.max_rows = ROWS, .max_logits = ROWS};
    bt_rank_part(r->rank, &options);
    bt_rank_forward(r->rank, &forward);
    if (bt_model_load(&options, &error, &r->model) != BT_OK)
        give_up(r, "model", error.text);
    if (r->index == r->c->poor)
        r->model->memory_limit = r->model->memory.bytes + CHANGE_BYTES;
    if (bt_forward_create(r->model, &forward, &error, &r->forward) != BT_OK)
        give_up(r, "forward", error.text);
    r->kv = bt_model_kv_layout(r->model, BT_F32);
    r->pool = calloc(1, bt_kv_pool_bytes(&r->kv, POOL_PAGES));
    bt_rank_metrics(r->rank, r->metrics, "role=\"test\"");
    if (bt_rank_start(r->rank, r->model, r->forward, &error) != BT_OK)
        give_up(r, "start", error.text);
}

/* tp ranks have the same rows, others their own. */
static bool run(struct runner *r, uint32_t step)
{
    uint32_t tokens[ROWS], wanted[ROWS], page = 0, pattern = step % PATTERNS;
    uint32_t stream = r->c->options.tensor_parallel ? 0 : r->index;
    const struct bt_sequence_rows sequence = {&page, 0, 0, ROWS};
    for (uint32_t i = 0; i < ROWS; i++) {
        tokens[i] = (uint32_t)(bt_random_u64(stream, pattern, i) % r->model->config.vocab_size);
        wanted[i] = i;
    }
    const struct bt_forward_batch batch = {.tokens = tokens,
                                           .rows = ROWS,
                                           .sequences = &sequence,
                                           .sequence_count = 1,
                                           .kv_pool = r->pool,
                                           .layout = r->kv,
                                           .pool_pages = POOL_PAGES,
                                           .logit_rows = wanted,
                                           .logit_count = ROWS};
    const float *logits = NULL;
    r->outcome->status = bt_forward_run(r->forward, &batch, &logits);
    if (r->outcome->status != BT_OK)
        return false;
    uint64_t hash =
        logits ? XXH3_64bits(logits, (size_t)ROWS * r->model->config.vocab_size * sizeof(float))
               : 1;
    if (step >= PATTERNS && r->outcome->logits[pattern] != hash)
        r->outcome->unsteady = true;
    r->outcome->logits[pattern] = hash;
    return true;
}

static void look(struct runner *r)
{
    static const char labels[] = "role=\"test\"";
    bt_rank_metrics_update(r->rank);
    r->outcome->moves = count_of(r, "baton_expert_moves_total", labels);
    r->outcome->rebalances = count_of(r, "baton_expert_rebalances_total", labels);
    r->outcome->ended = count_of(r, "baton_expert_rebalances_ended_total", labels);
    r->outcome->imbalance =
        bt_gauge_value(bt_metrics_gauge(r->metrics, "baton_expert_load_imbalance", labels, ""));
    if (r->size > 1)
        r->outcome->dispatched =
            count_of(r, "baton_group_bytes_total", "role=\"test\",kind=\"dispatch\"");
}

static void look_at_loads(struct runner *r)
{
    const struct bt_model_config *c = &r->model->config;
    for (uint32_t layer = 0; layer < c->num_hidden_layers; layer++) {
        for (uint32_t e = 0; bt_model_layer_is_moe(c, layer) && e < c->n_routed_experts; e++) {
            char labels[128];
            snprintf(labels, sizeof(labels), "role=\"test\",layer=\"%u\",expert=\"%u\"", layer, e);
            r->outcome->loads[layer][e] =
                bt_gauge_value(bt_metrics_gauge(r->metrics, "baton_expert_load", labels, ""));
        }
    }
}

/* Of the first MoE layer: some. */
static bool shows_loads(const struct runner *r)
{
    double sum = 0;
    for (uint32_t e = 0; r->index == 0 && e < r->model->config.n_routed_experts; e++) {
        char labels[128];
        snprintf(labels, sizeof(labels), "role=\"test\",layer=\"1\",expert=\"%u\"", e);
        sum += bt_gauge_value(bt_metrics_gauge(r->metrics, "baton_expert_load", labels, ""));
    }
    return sum > 0;
}

static bool is_over(const struct runner *r, uint32_t step)
{
    bool over[] = {
        [UNTIL_STEPS] = step >= r->c->steps,
        [UNTIL_MOVED] = r->outcome->rebalances > 0 && step >= PATTERNS,
        [UNTIL_GIVEN_UP] = r->outcome->ended >= 2 && step >= PATTERNS,
        [UNTIL_SHOWN] = shows_loads(r) && step >= PATTERNS,
        [UNTIL_KILLED] = false,
    };
    return over[r->c->until] || step >= MAX_STEPS;
}

static void end_in_the_middle(const struct runner *r)
{
    if (r->index != r->c->victim || r->outcome->moves == 0)
        return;
    r->outcomes->killed_ns = bt_clock_now_ns();
    raise(SIGKILL);
}

/* Of what all say. The clock is the count of steps: what comes when does not depend on the machine.
 */
static bool agree(struct runner *r, uint32_t step, bool *ret_over)
{
    struct bt_error error = {0};
    uint64_t mine[WORDS] = {[BT_RANK_WORDS] = is_over(r, step)}, all[MAX_RANKS * WORDS];
    struct bt_group *group = bt_rank_group(r->rank);
    enum bt_status status = BT_OK;
    bt_rank_words(r->rank, (int64_t)(step + 1) * BT_NS_PER_S, mine);
    memcpy(all, mine, sizeof(mine));
    if (group)
        status = bt_group_agree_begin(group, mine, WORDS);
    if (group && status == BT_OK)
        status = bt_group_agree_finish(group, all);
    if (status == BT_OK)
        status = bt_rank_agreed(r->rank, all, WORDS, &error);
    r->outcome->status = status;
    *ret_over = status == BT_OK && all[BT_RANK_WORDS];
    return status == BT_OK;
}

static void serve(struct runner *r)
{
    for (uint32_t step = 0;; step++) {
        bool over = false;
        if (!agree(r, step, &over) || over || !run(r, step))
            break;
        r->outcome->steps = step + 1;
        look(r);
        end_in_the_middle(r);
    }
    r->outcome->lost_ns = bt_clock_now_ns();
    look(r);
    if (r->index == 0)
        look_at_loads(r);
}

static void run_rank(struct runner *r)
{
    r->metrics = bt_metrics_create();
    if (join(r)) {
        load(r);
        serve(r);
        bt_forward_destroy(r->forward);
        bt_rank_leave(r->rank);
        bt_model_destroy(r->model);
        free(r->pool);
    }
    bt_metrics_destroy(r->metrics);
}

/* ---- all of them ---- */

static pid_t start(const struct rank_case *c, uint32_t index, struct rank_outcomes *outcomes)
{
    pid_t parent = getpid(), pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    alarm(LIMIT_S);
    struct runner runner = {.c = c,
                            .index = index,
                            .size = c->options.size,
                            .outcomes = outcomes,
                            .outcome = &outcomes->rank[index]};
    run_rank(&runner);
    fflush(NULL);
    _exit(0);
}

/* Every process has ended when this returns. */
static bool wait_for_all(const struct rank_case *c, const pid_t *pids)
{
    bool sound = true;
    for (uint32_t i = 0; i < c->options.size; i++) {
        int state = 0;
        while (waitpid(pids[i], &state, 0) < 0 && errno == EINTR)
            ;
        bool well = i == c->victim ? WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL
                                   : WIFEXITED(state) && WEXITSTATUS(state) == 0;
        if (!well)
            print_message("rank %u ended with %x\n", i, (unsigned)state);
        sound = sound && well;
    }
    return sound;
}

static void write_secret(const struct rank_case *c)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/secret", c->scratch);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs("a secret of the tests\n", file) >= 0);
    assert_int_equal(fchmod(fileno(file), 0600), 0);
    assert_int_equal(fclose(file), 0);
}

struct rank_outcomes *ranks_run(const struct rank_case *c)
{
    pid_t pids[MAX_RANKS];
    struct rank_outcomes *outcomes =
        mmap(NULL, sizeof(*outcomes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(outcomes != MAP_FAILED && c->options.size <= MAX_RANKS);
    write_secret(c);
    fflush(NULL);
    for (uint32_t i = 0; i < c->options.size; i++)
        pids[i] = start(c, i, outcomes);
    if (!wait_for_all(c, pids))
        fail_msg("a rank failed");
    return outcomes;
}

void ranks_free(struct rank_outcomes *outcomes)
{
    munmap(outcomes, sizeof(*outcomes));
}
