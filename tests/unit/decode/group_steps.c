#include "tests/unit/decode/group_steps.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "tests/late-device/late_device.h"

#define DIR          TESTS_MODELS "/v3-f32"
#define LIMIT_S      250 /* ends a test only where a rank is stuck */
#define TIMEOUT_NS   (200 * BT_NS_PER_S)
#define HEARTBEAT_NS (10 * BT_NS_PER_MS)
#define POOL_PAGES   (MAX_SUBJECTS * EACH)
#define MAX_LENGTH   192
#define MAX_PROMPT   80
#define CHUNK        16
/* Rank 1 has one short sequence, then for so many steps of the others' none, then the rest. */
#define PAUSE_AFTER 4
#define PAUSE_STEPS 10
/* In mixed scenes; nothing is begun behind a step beside them. The prompt is rank 0's alone. */
#define WITH_PROMPT 2
#define WITH_REPLAY 4

struct subject {
    struct dc_sequence sequence;
    struct bt_sampling sampling;
    struct bt_sampler_history *history;
    uint32_t pages[EACH], granted; /* those that the engine was told of */
    uint32_t prompt[MAX_PROMPT], replay[MAX_OUTPUT];
    uint32_t arrival; /* records that were taken before */
    bool added;
    uint32_t left_pages;
    uint64_t left; /* a hash of its pages when it came back */
};

struct shared {
    struct steps_report reports[MAX_RANKS];
    atomic_uint done;  /* ranks whose sequences have come back */
    atomic_bool moved; /* experts, to any rank */
    atomic_uint behind[MAX_RANKS];
};

struct runner {
    const struct steps_scene *scene;
    const char *folder;
    uint32_t index, of; /* of: whose sequences */
    struct shared *shared;
    struct steps_report *report;
    struct bt_device *device, *late;     /* NULL: the CPU */
    struct bt_rank *rank;                /* NULL: alone */
    struct bt_model *model, view, *used; /* used: the view on the late device, else the model */
    struct bt_kv_layout layout;
    void *pool;
    struct dc_engine *engine;
    struct dc_stepper *stepper;
    struct bt_metrics *metrics;
    struct subject subjects[MAX_SUBJECTS];
    uint32_t records, back;

    /* The step thread's. */
    bool follows; /* the step that ends now was begun behind another */
    bool cancels; /* one far from its end */
    uint64_t waits;
};

static struct runner runner; /* of this process */

static void give_up(const char *what, const char *why)
{
    fprintf(stderr, "rank %u: %s: %s\n", runner.index, what, why);
    _exit(1);
}

static void want(bool right, const char *what)
{
    if (!right)
        give_up("it should be so", what);
}

static uint32_t dice(uint32_t what, uint32_t i, uint32_t sides)
{
    return (uint32_t)(bt_random_u64(runner.scene->seed * 10 + runner.of, what, i) % sides);
}

/* ---- sequences ---- */

static void choose_sampling(uint32_t i, struct bt_sampling *sampling)
{
    const struct steps_scene *scene = runner.scene;
    *sampling = (struct bt_sampling){
        .seed = 10 * runner.of + i,
        .temperature = dice(1, i, 4) == 0 ? 0 : 1.5f,
        .top_p = dice(2, i, 2) ? 0.95f : 1,
        .repetition_penalty = scene->mixed && dice(3, i, 3) == 0 ? 1.3f : 1,
        .logprobs = -1,
        .ignore_eos = scene->eos_count == 0,
        .max_tokens = scene->max_output / 2 + dice(4, i, scene->max_output / 2),
    };
    if (scene->fault != NO_FAULT) /* nobody ends before it comes */
        sampling->max_tokens = MAX_OUTPUT;
    else if (runner.of == 1 && i == 0)
        sampling->max_tokens = PAUSE_AFTER;
}

/* Where no prompt comes with it, KV of what it stands for is zeros. */
static void choose_kind(uint32_t i, struct subject *subject)
{
    struct dc_sequence *sequence = &subject->sequence;
    if (runner.scene->mixed && i == WITH_PROMPT && runner.of == 0) {
        sequence->prompt = subject->prompt;
    } else if (runner.scene->mixed && i == WITH_REPLAY) {
        sequence->replay = subject->replay;
        sequence->replay_count = 1 + dice(7, i, subject->sampling.max_tokens - 1);
    }
    uint32_t pages = bt_kv_pages_for(sequence->prompt_tokens + sequence->replay_count);
    sequence->page_count = subject->granted = pages;
    memcpy(sequence->pages, subject->pages, pages * sizeof(uint32_t));
}

static void subject_init(uint32_t i, struct subject *subject)
{
    choose_sampling(i, &subject->sampling);
    for (uint32_t t = 0; t < MAX_PROMPT; t++)
        subject->prompt[t] = dice(1000 + t, i, 200);
    for (uint32_t t = 0; t < MAX_OUTPUT; t++)
        subject->replay[t] = dice(2000 + t, i, 200);
    for (uint32_t p = 0; p < EACH; p++)
        subject->pages[p] = (p * MAX_SUBJECTS + i) * 7 % POOL_PAGES;
    subject->sequence = (struct dc_sequence){
        .request = i + 1,
        .epoch = 1,
        .prompt_tokens = dice(8, i, 4) == 0 ? BT_PAGE_TOKENS : 1 + dice(9, i, MAX_PROMPT - 1),
        .pages = calloc(EACH, sizeof(uint32_t)),
        .page_capacity = EACH,
        .sampling = &subject->sampling,
        .last = {.token = subject->replay[0]},
        .user = subject,
    };
    choose_kind(i, subject);
    subject->arrival = dice(10, i, 12);
    if (runner.scene->mixed && (i == WITH_PROMPT || i == WITH_REPLAY)) /* while others draw */
        subject->arrival = i == WITH_PROMPT ? 30 : 20 + 4 * runner.of;
    if (bt_sampling_needs_history(&subject->sampling)) {
        struct bt_sampler_history *history = bt_sampler_history_create();
        subject->history = subject->sequence.history = history;
        bt_sampler_history_add_prompt(history, subject->prompt, subject->sequence.prompt_tokens);
        bt_sampler_history_reserve(history, MAX_OUTPUT);
        for (uint32_t t = 0; t < subject->sequence.replay_count && !subject->sequence.prompt; t++)
            bt_sampler_history_add_output(history, subject->replay[t]);
    }
}

/* ---- where a step ends, on the step thread ---- */

enum bt_status __real_dc_engine_end(struct dc_engine *engine, struct dc_step *step,
                                    struct dc_step *next);
enum bt_status __wrap_dc_engine_end(struct dc_engine *engine, struct dc_step *step,
                                    struct dc_step *next);

static void fault_now(enum fault fault)
{
    struct dc_sequence *first = &runner.subjects[0].sequence;
    if (fault == KILLED)
        raise(SIGKILL);
    if (fault == HANGS)
        raise(SIGSTOP);
    if (fault == BREAKS)
        late_device_break(runner.late);
    if (fault == CANCELLED) {
        runner.report->cancelled_at = first->generated;
        dc_stepper_stop(runner.stepper, first->request, first->epoch, DC_FINISH_CANCELLED);
    }
}

/* `step` is under way, and `next` behind it. */
static void disturb(void)
{
    const struct steps_scene *scene = runner.scene;
    const struct dc_sequence *first = &runner.subjects[0].sequence;
    struct steps_report *report = runner.report;
    bool ripe = first->ahead == 2 && first->generated >= 6 && report->cancelled_at == 0;
    if (scene->fault != NO_FAULT && runner.index == scene->victim && ripe)
        fault_now(scene->fault);
    for (uint32_t i = 0; i < scene->subjects && scene->mixed && scene->size > 1; i++) {
        const struct dc_sequence *sequence = &runner.subjects[i].sequence;
        if (sequence->ahead == 0 || sequence->stop != DC_RUNNING)
            continue;
        bool far = sequence->generated + 4 < sequence->sampling->max_tokens;
        bool now = !runner.cancels && far && report->behind >= 10;
        runner.cancels |= now;
        if (now || dice(3000 + report->behind, i, 300) == 0)
            dc_stepper_stop(runner.stepper, i + 1, 1, DC_FINISH_CANCELLED);
    }
}

enum bt_status __wrap_dc_engine_end(struct dc_engine *engine, struct dc_step *step,
                                    struct dc_step *next)
{
    struct steps_report *report = runner.report;
    if (next)
        disturb();
    enum bt_status status = __real_dc_engine_end(engine, step, next);
    uint64_t waits = runner.device ? runner.device->ops->waits(runner.device) : 0;
    if (runner.follows) {
        uint64_t took = waits - runner.waits;
        report->most_waits = took > report->most_waits ? took : report->most_waits;
    }
    runner.waits = waits;
    runner.follows = next != NULL;
    report->steps += !next;
    report->behind += next != NULL;
    atomic_store(&runner.shared->behind[runner.index], report->behind);
    report->empty += next && next->rows == 0;
    return status;
}

/* ---- one rank; whatever goes wrong ends the process with a message ---- */

static void join(void)
{
    char endpoint[128], secret[128];
    struct bt_error error = {0};
    const struct steps_scene *scene = runner.scene;
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/socket", runner.folder);
    snprintf(secret, sizeof(secret), "%s/secret", runner.folder);
    const struct bt_rank_options options = {
        .rank = runner.index,
        .size = scene->size,
        .expert_parallel = true,
        .endpoint = endpoint,
        .secret_file = secret,
        .connect_timeout_ns = TIMEOUT_NS,
        .wait_timeout_ns = scene->timeout_ns ? scene->timeout_ns : TIMEOUT_NS,
        .max_rows = dc_engine_max_rows(MAX_SUBJECTS, CHUNK),
        .device = scene->where == ON_GPU ? runner.device : NULL,
        .dispatch = BT_DISPATCH_LATENCY,
        .placement = scene->moves ? BT_PLACEMENT_BALANCED : BT_PLACEMENT_ROUND_ROBIN,
        .rebalance_interval_ns = scene->moves ? 200 * BT_NS_PER_MS : 0,
        .load_windows = 2,
        .load_span = 16,
    };
    if (scene->size > 1 && bt_rank_join(&options, DIR, &error, &runner.rank) != BT_OK)
        give_up("group", error.text);
}

static void load(void)
{
    struct bt_error error = {0};
    struct bt_model_options options = {
        .dir = DIR, .device = runner.device, .max_tokens = MAX_LENGTH};
    if (runner.rank)
        bt_rank_part(runner.rank, &options);
    if (bt_model_load(&options, &error, &runner.model) != BT_OK)
        give_up("model", error.text);
    struct bt_model_config *config = &runner.model->config;
    config->eos_token_count = runner.scene->eos_count;
    memcpy(config->eos_token_ids, runner.scene->eos, sizeof(runner.scene->eos));
    runner.used = runner.model;
    if (runner.scene->where == ON_LATE_DEVICE) {
        runner.view = *runner.model;
        runner.used = &runner.view;
        runner.device = runner.late = late_device_create(runner.model->kernels);
        runner.view.device = runner.late;
        runner.view.kernels = runner.late->kernels;
    }
}

static void make_pool(void)
{
    struct bt_error error = {0};
    runner.layout = bt_model_kv_layout(runner.model, BT_F32);
    if (bt_device_alloc(runner.used->device, bt_kv_pool_bytes(&runner.layout, POOL_PAGES), &error,
                        &runner.pool) != BT_OK)
        give_up("pool", error.text);
}

static void start(void)
{
    struct bt_error error = {0};
    const struct dc_engine_options options = {
        .model = runner.used,
        .rank = runner.rank,
        .layout = runner.layout,
        .kv_pool = runner.pool,
        .pool_pages = POOL_PAGES,
        .max_num_seqs = MAX_SUBJECTS,
        .max_sequences = MAX_SUBJECTS,
        .max_model_len = MAX_LENGTH,
        .prompt_chunk = runner.scene->mixed ? CHUNK : 0,
    };
    if (dc_engine_create(&options, &error, &runner.engine) != BT_OK)
        give_up("engine", error.text);
    want(dc_engine_overlaps(runner.engine) == (runner.scene->where != ON_CPU), "overlaps");
    if (runner.rank) {
        runner.metrics = bt_metrics_create();
        bt_rank_metrics(runner.rank, runner.metrics, "role=\"test\"");
        if (bt_rank_start(runner.rank, runner.used, dc_engine_forward(runner.engine), &error) !=
            BT_OK)
            give_up("start", error.text);
    }
    const struct dc_stepper_options stepper = {.engine = runner.engine,
                                               .max_sequences = MAX_SUBJECTS,
                                               .rank = runner.rank,
                                               .heartbeat_ns = HEARTBEAT_NS};
    if (dc_stepper_create(&stepper, &error, &runner.stepper) != BT_OK)
        give_up("step thread", error.text);
}

static uint64_t expert_moves(void)
{
    bt_rank_metrics_update(runner.rank);
    return bt_counter_value(
        bt_metrics_counter(runner.metrics, "baton_expert_moves_total", "role=\"test\"", ""));
}

static void finish(void)
{
    dc_stepper_destroy(runner.stepper);
    if (runner.rank) {
        runner.report->moves = expert_moves();
    }
    dc_engine_destroy(runner.engine);
    bt_device_free(runner.used->device, runner.pool);
    bt_rank_leave(runner.rank);
    bt_metrics_destroy(runner.metrics);
    bt_model_destroy(runner.model);
    late_device_destroy(runner.late);
    if (runner.scene->where == ON_GPU)
        bt_device_close(runner.device);
    for (uint32_t i = 0; i < runner.scene->subjects; i++) {
        free(runner.subjects[i].sequence.pages);
        bt_sampler_history_destroy(runner.subjects[i].history);
    }
}

/* ---- the control thread ---- */

static uint64_t pages_hash(const struct subject *subject)
{
    uint64_t hash = 1;
    size_t bytes = bt_kv_offset(&runner.layout, POOL_PAGES, 0, 1, 0) -
                   bt_kv_offset(&runner.layout, POOL_PAGES, 0, 0, 0);
    if (runner.scene->where == ON_GPU)
        return hash;
    for (uint32_t layer = 0; layer < runner.layout.layer_count; layer++)
        for (uint32_t p = 0; p < subject->left_pages; p++) {
            const unsigned char *page =
                (const unsigned char *)runner.pool +
                bt_kv_offset(&runner.layout, POOL_PAGES, layer, subject->pages[p], 0);
            for (size_t b = 0; b < bytes; b++)
                hash = (hash ^ page[b]) * 1099511628211u;
        }
    return hash;
}

static void take_entry(const struct dc_entry *entry)
{
    struct subject *subject = entry->user;
    struct steps_subject *told = &runner.report->subjects[subject - runner.subjects];
    want(told->finish == DC_RUNNING, "nothing comes after the end");
    if (entry->has_token) {
        want(told->token_count < MAX_OUTPUT, "not more tokens than were asked for");
        told->tokens[told->token_count++] = entry->sample.token;
    }
    told->finish = entry->finish;
    if (entry->finish == DC_RUNNING)
        return;
    runner.back++;
    subject->left_pages = subject->granted;
    subject->left = pages_hash(subject);
}

static void take_wish(const struct dc_page_wish *wish)
{
    struct subject *subject = &runner.subjects[wish->request - 1];
    struct steps_subject *told = &runner.report->subjects[wish->request - 1];
    told->stalled |= wish->stalled;
    bool now = wish->stalled || !runner.scene->starves;
    uint32_t most = bt_kv_pages_for(subject->sequence.prompt_tokens + subject->sampling.max_tokens);
    if (now && told->finish == DC_RUNNING && subject->granted < most && subject->granted < EACH) {
        uint32_t page = subject->pages[subject->granted++];
        dc_stepper_grow(runner.stepper, wish->request, wish->epoch, page);
    }
}

static void take_step(const struct dc_step *step)
{
    for (uint32_t i = 0; i < step->entry_count; i++)
        take_entry(&step->entries[i]);
    for (uint32_t i = 0; i < step->wish_count; i++)
        take_wish(&step->wishes[i]);
    runner.records++;
}

/* However long that takes, the last of each rank is computed by experts that have moved. */
static bool awaits_move(const struct subject *subject)
{
    const struct steps_scene *scene = runner.scene;
    if (!scene->moves || !runner.rank || subject != &runner.subjects[scene->subjects - 1])
        return false;
    if (expert_moves() > 0)
        atomic_store(&runner.shared->moved, true);
    return !atomic_load(&runner.shared->moved);
}

static bool arrives(const struct subject *subject, uint32_t inside)
{
    struct shared *shared = runner.shared;
    if (awaits_move(subject))
        return false;
    if (runner.scene->size > 1 && runner.index == 1 && subject != runner.subjects)
        return runner.back > 0 && (atomic_load(&shared->behind[1]) > PAUSE_STEPS ||
                                   atomic_load(&shared->done) + 1 == runner.scene->size);
    return subject->arrival <= runner.records || inside == runner.back;
}

/* Where there is nothing else to do, whoever is next comes at once. */
static void add_subjects(void)
{
    uint32_t inside = 0;
    for (uint32_t i = 0; i < runner.scene->subjects; i++)
        inside += runner.subjects[i].added;
    for (uint32_t i = 0; i < runner.scene->subjects; i++) {
        struct subject *subject = &runner.subjects[i];
        if (subject->added || !arrives(subject, inside))
            continue;
        subject->added = true;
        inside++;
        dc_stepper_add(runner.stepper, &subject->sequence);
    }
}

static bool serve(void)
{
    struct pollfd fds[] = {{.fd = bt_queue_fd(dc_stepper_steps(runner.stepper)), .events = POLLIN},
                           {.fd = dc_stepper_notice_fd(runner.stepper), .events = POLLIN}};
    struct dc_step *step;
    poll(fds, 2, 5);
    while (bt_queue_try_pop(dc_stepper_steps(runner.stepper), &step)) {
        take_step(step);
        dc_stepper_return(runner.stepper, step);
    }
    add_subjects();
    unsigned notices = fds[1].revents ? dc_stepper_take_notices(runner.stepper) : 0;
    runner.report->left |= (notices & DC_NOTICE_LEFT) != 0;
    runner.report->failed |= (notices & DC_NOTICE_FAILED) != 0;
    if (runner.report->failed)
        snprintf(runner.report->error, sizeof(runner.report->error), "%s",
                 dc_stepper_error(runner.stepper));
    return !runner.report->left && !runner.report->failed;
}

static void serve_until_the_end(void)
{
    bool done = false;
    add_subjects();
    while (serve()) {
        if (!done && runner.back == runner.scene->subjects) {
            done = true;
            atomic_fetch_add(&runner.shared->done, 1);
        }
        bool all = atomic_load(&runner.shared->done) == runner.scene->size;
        if (all && runner.scene->size == 1)
            break;
        if (all)
            dc_stepper_tell(runner.stepper, DC_RANK_LEAVES, 0);
    }
    for (uint32_t i = 0; done && i < runner.scene->subjects; i++)
        runner.report->spoilt |= pages_hash(&runner.subjects[i]) != runner.subjects[i].left;
}

static void run_rank(void)
{
    struct bt_error error = {0};
    char name[16];
    snprintf(name, sizeof(name), "cuda:%u", runner.index);
    if (runner.scene->where == ON_GPU &&
        bt_device_open(name, NULL, &error, &runner.device) != BT_OK)
        give_up("device", error.text);
    join();
    load();
    make_pool();
    for (uint32_t i = 0; i < runner.scene->subjects; i++)
        subject_init(i, &runner.subjects[i]);
    start();
    serve_until_the_end();
    finish();
}

/* ---- all of them ---- */

static pid_t launch(const struct steps_scene *scene, uint32_t index, const char *folder,
                    struct shared *shared)
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
    runner.scene = scene;
    runner.folder = folder;
    runner.index = index;
    runner.of = scene->size > 1 ? index : scene->of;
    runner.shared = shared;
    runner.report = &shared->reports[index];
    run_rank();
    fflush(NULL);
    _exit(0);
}

static void write_secret(const char *folder)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/secret", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs("a secret of the tests\n", file) >= 0);
    assert_int_equal(fchmod(fileno(file), 0600), 0);
    assert_int_equal(fclose(file), 0);
}

static void remove_folder(const char *folder)
{
    static const char *const names[] = {"secret", "socket"};
    char path[128];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

/* One that hangs is ended when the others have. */
static bool wait_for_all(const struct steps_scene *scene, const pid_t *pids)
{
    bool dies = scene->fault == KILLED || scene->fault == HANGS, sound = true;
    for (uint32_t n = 0; n < scene->size; n++) {
        uint32_t i = dies ? (scene->victim + 1 + n) % scene->size : n;
        bool victim = dies && i == scene->victim;
        int state = 0;
        if (victim && scene->fault == HANGS)
            kill(pids[i], SIGKILL);
        while (waitpid(pids[i], &state, 0) < 0 && errno == EINTR)
            ;
        bool well = victim ? WIFSIGNALED(state) && WTERMSIG(state) == SIGKILL
                           : WIFEXITED(state) && WEXITSTATUS(state) == 0;
        if (!well)
            print_message("rank %u ended with %x\n", i, (unsigned)state);
        sound = sound && well;
    }
    return sound;
}

struct steps_report *steps_run(const struct steps_scene *scene)
{
    char folder[] = "/tmp/baton-steps-XXXXXX";
    pid_t pids[MAX_RANKS];
    struct shared *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(shared != MAP_FAILED && scene->size <= MAX_RANKS);
    assert_non_null(mkdtemp(folder));
    write_secret(folder);
    for (uint32_t i = 0; i < scene->size; i++)
        pids[i] = launch(scene, i, folder, shared);
    bool sound = wait_for_all(scene, pids);
    remove_folder(folder);
    if (!sound)
        fail_msg("a rank failed");
    return shared->reports;
}

void steps_free(struct steps_report *reports)
{
    munmap(reports, sizeof(struct shared));
}
