/*
 * The engine on an emulated GPU of which one call fails (injected.cpp): from each place in the
 * backend's code that calls the runtime or cuBLASLt, a process for each. Every one of them either
 * says what failed, and on which device, or goes on and has the bits of the undisturbed run; and
 * ends, and keeps no memory of the device (BATON_EMULATED_LEAKS).
 *
 *     test-cuda-faults         all of them
 *     test-cuda-faults MODEL   the run alone, which fails as the environment says
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/model/forward.h"

#define PAGES     3
#define PROMPT    3
#define STEPS     3 /* as it is, captured, replayed */
#define SEQUENCES 2

#define TOLD        3 /* how a process ends that was told of a failure */
#define STICKY_EACH 4 /* of so many places one fails for good, too */

static int refuse(const char *text)
{
    printf("TOLD %s\n", text);
    return TOLD;
}

struct engine {
    struct bt_device *device;
    struct bt_model *model;
    struct bt_forward *forward;
    struct bt_kv_layout layout;
    void *pool;
    struct bt_error error;
};

static int engine_open(struct engine *e, const char *model)
{
    const struct bt_forward_options options = {
        .max_rows = SEQUENCES * PROMPT, .max_logits = SEQUENCES, .max_sequences = SEQUENCES};
    enum bt_status status = bt_device_open("cuda", NULL, &e->error, &e->device);
    if (status != BT_OK)
        return refuse(e->error.text);
    const struct bt_model_options load = {.dir = model,
                                          .device = e->device,
                                          .dtype = BT_MODEL_BFLOAT16,
                                          .max_tokens = PAGES * BT_PAGE_TOKENS};
    status = bt_model_load(&load, &e->error, &e->model);
    if (status == BT_OK)
        status = bt_forward_create(e->model, &options, &e->error, &e->forward);
    if (status != BT_OK)
        return refuse(e->error.text);
    e->layout = bt_model_kv_layout(e->model, BT_BF16);
    status = bt_device_alloc(e->device, bt_kv_pool_bytes(&e->layout, PAGES), &e->error, &e->pool);
    return status == BT_OK ? 0 : refuse(e->error.text);
}

static void engine_close(struct engine *e)
{
    bt_forward_destroy(e->forward);
    if (e->pool)
        bt_device_free(e->device, e->pool);
    bt_model_destroy(e->model);
    bt_device_close(e->device);
}

static void on_layer(void *context, uint32_t layer)
{
    (void)context;
    (void)layer;
}

static int run(struct engine *e, uint32_t start, uint32_t each, enum bt_forward_form form)
{
    uint32_t tokens[SEQUENCES * PROMPT], pages[SEQUENCES], rows[SEQUENCES];
    struct bt_sequence_rows sequences[SEQUENCES];
    struct bt_draw draws[SEQUENCES];
    struct bt_forward_result result;
    for (uint32_t i = 0; i < SEQUENCES * each; i++)
        tokens[i] = 3 + (start + i) * 17 % 900;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        pages[i] = PAGES - 1 - i;
        sequences[i] = (struct bt_sequence_rows){&pages[i], start, i * each, each};
        rows[i] = i * each + each - 1;
        draws[i] = (struct bt_draw){.seed = i,
                                    .position = start,
                                    .top_p = 0.9f,
                                    .temperature = 0.7f,
                                    .logprobs = i ? 3 : 0};
    }
    const struct bt_forward_batch batch = {.form = form,
                                           .tokens = tokens,
                                           .rows = SEQUENCES * each,
                                           .sequences = sequences,
                                           .sequence_count = SEQUENCES,
                                           .kv_pool = e->pool,
                                           .layout = e->layout,
                                           .pool_pages = PAGES,
                                           .logit_rows = rows,
                                           .logit_count = SEQUENCES,
                                           .draws = draws,
                                           .layer_done =
                                               form == BT_FORWARD_MULTI_HEAD ? on_layer : NULL};
    enum bt_status status = bt_forward_begin(e->forward, &batch);
    if (status == BT_OK)
        status = bt_forward_finish(e->forward, &result);
    if (status != BT_OK)
        return refuse(bt_forward_error(e->forward));
    uint64_t hash = 1469598103934665603u;
    const unsigned char *bytes = (const void *)result.logits;
    for (size_t i = 0; i < SEQUENCES * sizeof(float) * e->model->config.vocab_size; i++)
        hash = (hash ^ bytes[i]) * 1099511628211u;
    printf("RESULT %016llx %u %u\n", (unsigned long long)hash, result.tokens[0], result.tokens[1]);
    return 0;
}

static int scenario(const char *model)
{
    struct engine e = {0};
    int code = engine_open(&e, model);
    if (code == 0)
        code = run(&e, 0, PROMPT, BT_FORWARD_MULTI_HEAD);
    for (uint32_t step = 0; step < STEPS && code == 0; step++)
        code = run(&e, PROMPT + step, 1, BT_FORWARD_ABSORBED);
    engine_close(&e);
    return code;
}

/* ---- all of them ---- */

#define CALLS_MAX  4096
#define OUTPUT_MAX 4096
#define HANGS_S    300

struct call {
    char name[48], caller[24];
};

struct ending {
    int status;
    char output[OUTPUT_MAX]; /* RESULT and TOLD lines */
};

/* The run as a process of its own; `settings`: NAME=value, NULL at the end. */
static void run_process(char *self, const char *const *settings, struct ending *ret_ending)
{
    static char model[] = TESTS_MODELS "/v3-hf";
    char *const arguments[] = {self, model, NULL};
    int ends[2];
    size_t used = 0;
    BT_ASSERT(pipe(ends) == 0);
    fflush(NULL);
    pid_t child = fork();
    BT_ASSERT(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (; *settings; settings++)
            putenv((char *)(uintptr_t)*settings);
        dup2(ends[1], STDOUT_FILENO);
        alarm(HANGS_S);
        execv(self, arguments);
        _exit(127);
    }
    close(ends[1]);
    for (ssize_t got; (got = read(ends[0], ret_ending->output + used, OUTPUT_MAX - 1 - used)) > 0;)
        used += (size_t)got;
    ret_ending->output[used] = '\0';
    close(ends[0]);
    BT_ASSERT(waitpid(child, &ret_ending->status, 0) == child);
}

static uint32_t read_calls(const char *path, struct call *calls)
{
    FILE *file = fopen(path, "re");
    unsigned number;
    uint32_t count = 0;
    BT_ASSERT(file);
    while (count < CALLS_MAX &&
           fscanf(file, "%u %47s %23s", &number, calls[count].name, calls[count].caller) == 3)
        BT_ASSERT(number == ++count);
    fclose(file);
    return count;
}

static bool is_first(const struct call *calls, uint32_t index)
{
    for (uint32_t i = 0; i < index; i++)
        if (strcmp(calls[i].name, calls[index].name) == 0 &&
            strcmp(calls[i].caller, calls[index].caller) == 0)
            return false;
    return true;
}

/* A call that ends something: nothing hangs on what it says. */
static bool is_end(const char *name)
{
    return strstr(name, "Free") || strstr(name, "Destroy") || strstr(name, "Unregister");
}

/* What is wrong with it; NULL: nothing. */
static const char *judge(const struct ending *ending, const char *calm, bool goes_on)
{
    const char *told = strstr(ending->output, "TOLD ");
    if (!WIFEXITED(ending->status))
        return WTERMSIG(ending->status) == SIGALRM ? "hangs" : "does not end by itself";
    if (WEXITSTATUS(ending->status) == 0)
        return strcmp(ending->output, calm) == 0 ? NULL : "goes on with other results";
    if (WEXITSTATUS(ending->status) != TOLD || !told)
        return "leaks, or ends otherwise";
    if (goes_on)
        return "does not go on";
    if (strncmp(ending->output, calm, (size_t)(told - ending->output)) != 0)
        return "had other results before";
    return strstr(told, "cuda") ? NULL : "does not name the device";
}

static bool fails_well(char *self, uint32_t number, const struct call *call, const char *kind,
                       const char *calm)
{
    char setting[64];
    const char *const settings[] = {setting, NULL};
    struct ending ending;
    snprintf(setting, sizeof(setting), "BATON_EMULATED_FAIL_CALL=%u%s", number, kind);
    run_process(self, settings, &ending);
    const char *wrong = judge(&ending, calm, is_end(call->name) && !*kind);
    if (wrong)
        fprintf(stderr, "%s from %s (%s): %s\n%s\n", call->name, call->caller, setting, wrong,
                ending.output);
    return !wrong;
}

static int fail_each(char *self)
{
    static struct call calls[CALLS_MAX];
    char path[] = "/tmp/baton-faults-XXXXXX", setting[128];
    const char *const settings[] = {setting, NULL};
    struct ending calm;
    uint32_t sites = 0, bad = 0;
    int file = mkstemp(path);
    BT_ASSERT(file >= 0);
    close(file);
    snprintf(setting, sizeof(setting), "BATON_EMULATED_CALLS=%s", path);
    run_process(self, settings, &calm);
    uint32_t count = read_calls(path, calls);
    unlink(path);
    if (calm.status != 0 || count == 0 || count == CALLS_MAX) {
        fprintf(stderr, "undisturbed: status %d, %u calls\n%s", calm.status, count, calm.output);
        return 1;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!is_first(calls, i))
            continue;
        bool is_sticky = sites++ % STICKY_EACH == STICKY_EACH - 1;
        bad += !fails_well(self, i + 1, &calls[i], "", calm.output);
        bad += is_sticky && !fails_well(self, i + 1, &calls[i], ":sticky", calm.output);
    }
    printf("%u calls from %u places: %u do not fail well\n", count, sites, bad);
    return bad > 0;
}

/* ---- a graph ---- */

#define MUST_BE(what)                                                                              \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, error.text);                     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* On a stream at fault, of whose next batch the lists did not come, nothing of it happens. */
static void launch_at_fault(void)
{
    const struct bt_stream_limits limits = {.max_rows = 1};
    struct bt_error error = {0};
    struct bt_device *device;
    struct bt_stream *stream, *other;
    struct bt_graph *graph;
    void *x, *host;
    MUST_BE(bt_device_open("cuda", NULL, &error, &device) == BT_OK);
    const struct bt_device_ops *ops = device->ops;
    MUST_BE(bt_device_stream_create(device, &limits, NULL, &error, &stream) == BT_OK);
    MUST_BE(bt_device_stream_create(device, &limits, NULL, &error, &other) == BT_OK);
    MUST_BE(bt_device_alloc(device, sizeof(float), &error, &x) == BT_OK);
    MUST_BE(bt_device_alloc_host(device, 1000, &error, &host) == BT_OK);
    *(float *)host = 1;
    bt_device_copy(device, stream, x, host, sizeof(float));
    device->kernels->add(stream, x, x, 1);
    MUST_BE(ops->capture_begin(stream, &error) == BT_OK);
    device->kernels->add(stream, x, x, 1);
    MUST_BE(ops->capture_end(stream, &error, &graph) == BT_OK);
    ops->graph_launch(graph, stream);
    MUST_BE(ops->synchronize(stream, &error) == BT_OK);
    bt_device_copy(device, stream, x, host, 1000); /* more than there is */
    ops->graph_launch(graph, stream);
    MUST_BE(ops->synchronize(stream, &error) != BT_OK);
    bt_device_copy(device, other, host, x, sizeof(float));
    MUST_BE(ops->synchronize(other, &error) == BT_OK);
    MUST_BE(*(float *)host == 4);
    ops->graph_destroy(graph);
    bt_device_free_host(device, host);
    bt_device_free(device, x);
    bt_device_stream_destroy(device, other);
    bt_device_stream_destroy(device, stream);
    bt_device_close(device);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1)
        return scenario(argv[1]);
    launch_at_fault();
    return fail_each(argv[0]);
}
