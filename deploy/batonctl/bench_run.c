#include "deploy/batonctl/bench_run.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/verbs.h"
#include "proto/generate.pb-c.h"
#include "proto/router.pb-c.h"

#define SENDS_A_ROUND 64 /* then what came is read */
#define PROGRESS_NS   (500 * BT_NS_PER_MS)
#define NAME_SIZE     80

struct run {
    struct ctl_bench_clients *clients;
    const struct ctl_bench_load *load;
    struct ctl_bench_result *result;
    ctl_bench_ended_fn *ended;
    void *context;

    int64_t start_ns;
    struct ctl_bench_arrivals arrivals;
    uint64_t sent;   /* warm-up too */
    uint64_t total;  /* UINT64_MAX: no limit */
    int64_t next_ns; /* when the next one is due, since the start; of an open loop */
    uint32_t next_client;
    uint32_t open;
    bool all_sent, over, ending;

    uint32_t free_places; /* of a closed loop */
    int64_t *paused;      /* ring [concurrency]: when places are free again */
    uint32_t paused_head, paused_count;

    int timer_fd;
    struct bt_loop_source *timer, *progress;
    uint32_t *ids; /* scratch [ids_capacity] */
    size_t ids_capacity;
    uint64_t shown_sent;
    int64_t shown_ns;
};

struct request {
    struct run *run;
    struct ctl_bench_outcome outcome;
    uint32_t tokens; /* that came */
    bool has_usage;
    double router_ttft_s;
    char request_id[NAME_SIZE], finish_reason[16], prefill_worker[NAME_SIZE],
        decode_worker[NAME_SIZE];
};

static int64_t since_start(const struct run *run)
{
    return bt_clock_now_ns() - run->start_ns;
}

/* ------------------------------------------------------------------ what a request is */

struct shape {
    uint32_t input, output; /* input: without the prefix */
    const struct ctl_bench_trace_entry *entry;
    const struct ctl_bench_sample *sample;
};

static uint32_t scaled(uint32_t length, double scale)
{
    return (uint32_t)fmin(fmax(round(length * scale), 1), CTL_BENCH_LENGTH_MAX);
}

static void shape_of(const struct ctl_bench_load *load, uint64_t number, uint64_t index,
                     struct shape *ret_shape)
{
    struct shape shape = {0};
    uint64_t seed = load->prompts.seed;
    shape.input = ctl_bench_lengths_draw(&load->input, seed ^ 1, index);
    shape.output = ctl_bench_lengths_draw(&load->output, seed ^ 2, index);
    if (load->trace) {
        shape.entry = &load->trace->entries[number];
        shape.input = scaled(shape.entry->input_tokens, load->length_scale);
        shape.output = scaled(shape.entry->output_tokens, load->length_scale);
    } else if (load->dataset) {
        shape.sample = &load->dataset->samples[index % load->dataset->count];
        shape.input = 0;
        if (shape.sample->output_tokens)
            shape.output = shape.sample->output_tokens;
    } else if (load->context > load->prompts.prefix_tokens) {
        ctl_bench_lengths_fit(&load->input, &load->output,
                              load->context - load->prompts.prefix_tokens, &shape.input,
                              &shape.output);
    }
    *ret_shape = shape;
}

static bool reserve_ids(struct run *run, size_t count)
{
    if (count <= run->ids_capacity)
        return true;
    uint32_t *grown = realloc(run->ids, count * sizeof *grown);
    if (!grown)
        return false;
    run->ids = grown;
    run->ids_capacity = count;
    return true;
}

/* False: no memory. `ret_text` is to be freed. */
static bool make_prompt(struct run *run, uint64_t index, const struct shape *shape,
                        Baton__V1__GenerateRequest *request, char **ret_text)
{
    const struct ctl_bench_load *load = run->load;
    const struct ctl_bench_prompts *prompts = &load->prompts;
    if (load->text && !shape->entry)
        return (request->prompt = *ret_text = ctl_bench_prompt_text(prompts, index, shape->input));
    size_t count = shape->input + (shape->entry ? 0 : (size_t)prompts->prefix_tokens);
    if (!reserve_ids(run, count))
        return false;
    if (shape->entry)
        ctl_bench_prompt_blocks(prompts, index, load->trace->hashes + shape->entry->hash_first,
                                shape->entry->hash_count, shape->input, run->ids);
    else
        ctl_bench_prompt_ids(prompts, index, shape->input, run->ids);
    request->prompt_ids = run->ids;
    request->n_prompt_ids = count;
    return true;
}

/* ------------------------------------------------------------------ the end of a request */

static void pump(struct run *run);

static void place_is_free(struct run *run, bool failed)
{
    if (run->load->arrivals.kind != CTL_BENCH_CLOSED)
        return;
    if (!failed) {
        run->free_places++;
        return;
    }
    uint32_t at = (run->paused_head + run->paused_count++) % run->load->concurrency;
    run->paused[at] = since_start(run) + CTL_BENCH_PAUSE_MS * BT_NS_PER_MS;
}

static void request_end(struct request *request, enum bt_status status, const char *text)
{
    struct run *run = request->run;
    struct ctl_bench_outcome *outcome = &request->outcome;
    char reason[CTL_BENCH_ERROR_TEXT];
    if (status == BT_OK && !request->has_usage) {
        status = BT_ERR_PROTOCOL;
        text = "the stream ended without usage";
    }
    snprintf(reason, sizeof reason, "%s", text ? text : "");
    ctl_text_flatten(reason);
    outcome->end_ns = since_start(run);
    outcome->unfinished = run->ending;
    outcome->status = status;
    outcome->text = reason;
    run->open--;
    ctl_bench_result_add(run->result, outcome);
    const struct ctl_bench_answer answer = {request->request_id, request->finish_reason,
                                            request->prefill_worker, request->decode_worker,
                                            request->router_ttft_s};
    if (run->ended)
        run->ended(run->context, outcome, &answer);
    place_is_free(run, status != BT_OK);
    free(request);
}

static void keep_text(char *into, size_t size, const char *text)
{
    snprintf(into, size, "%s", text);
    ctl_text_flatten(into);
}

static void read_usage(struct request *request, const Baton__V1__GenerateEvent *event)
{
    struct ctl_bench_outcome *outcome = &request->outcome;
    request->has_usage = true;
    outcome->prompt_tokens = event->usage->prompt_tokens;
    outcome->output_tokens = event->usage->completion_tokens;
    outcome->cached_tokens = event->usage->cached_tokens;
    keep_text(request->finish_reason, sizeof request->finish_reason, event->finish_reason);
    if (event->timing) {
        double ttft_ms = event->timing->ttft_ms;
        request->router_ttft_s = isfinite(ttft_ms) ? ttft_ms / 1e3 : 0;
        keep_text(request->prefill_worker, NAME_SIZE, event->timing->prefill_worker);
        keep_text(request->decode_worker, NAME_SIZE, event->timing->decode_worker);
    }
}

static void on_data(void *context, const ProtobufCMessage *message)
{
    struct request *request = context;
    const Baton__V1__GenerateEvent *event = (const Baton__V1__GenerateEvent *)message;
    struct ctl_bench_outcome *outcome = &request->outcome;
    if (event->request_id[0])
        keep_text(request->request_id, sizeof request->request_id, event->request_id);
    if (event->delivered_tokens > request->tokens) {
        int64_t now = since_start(request->run);
        uint32_t more = event->delivered_tokens - request->tokens;
        bool first = request->tokens == 0;
        ctl_bench_result_tokens(request->run->result, now, now - outcome->last_ns, more, first,
                                outcome->warmup);
        if (first)
            outcome->first_ns = now;
        outcome->last_ns = now;
        request->tokens += more;
    }
    if (event->usage && !request->has_usage)
        read_usage(request, event);
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    (void)response;
    struct request *request = context;
    struct run *run = request->run;
    if (request->outcome.first_ns == 0) /* no token came */
        request->outcome.first_ns = request->outcome.last_ns = since_start(run);
    request_end(request, status, text);
    pump(run);
}

/* ------------------------------------------------------------------ the beginning of one */

/* The next client that has room. */
static enum bt_status call(struct run *run, const struct bt_rpc_call_spec *spec,
                           struct bt_error *error)
{
    enum bt_status status = BT_ERR_UNAVAILABLE;
    for (uint32_t i = 0; i < run->clients->count; i++) {
        uint32_t at = run->next_client++ % run->clients->count;
        status = bt_rpc_client_call(run->clients->clients[at], spec, error, NULL);
        if (status != BT_ERR_EXHAUSTED)
            break;
    }
    return status;
}

static void set_parameters(const struct ctl_bench_load *load, uint64_t index,
                           const struct shape *shape, Baton__V1__GenerateRequest *request)
{
    request->has_max_tokens = request->has_temperature = request->has_seed = true;
    request->max_tokens = shape->output;
    request->temperature = (float)load->temperature;
    request->seed = index;
    request->has_ignore_eos = request->ignore_eos = !load->natural_end;
    request->has_token_ids = request->token_ids = true; /* so that each token is told */
    if (load->model)
        request->model = (char *)load->model;
    if (load->api_key)
        request->api_key = (char *)load->api_key;
}

static enum bt_status send_request(struct run *run, struct request *request, uint64_t index,
                                   const struct shape *shape, struct bt_error *error)
{
    Baton__V1__GenerateRequest message = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__ChatMessage *messages = NULL, **pointers = NULL;
    char *text = NULL;
    bool made = true;
    set_parameters(run->load, index, shape, &message);
    if (!shape->sample) {
        made = make_prompt(run, index, shape, &message, &text);
    } else if (shape->sample->prompt) {
        message.prompt = shape->sample->prompt;
    } else {
        message.n_messages = shape->sample->message_count;
        messages = calloc(message.n_messages, sizeof *messages);
        message.messages = pointers = calloc(message.n_messages, sizeof *pointers);
        made = messages && pointers;
        for (size_t i = 0; made && i < message.n_messages; i++) {
            messages[i] = (Baton__V1__ChatMessage)BATON__V1__CHAT_MESSAGE__INIT;
            messages[i].role = shape->sample->messages[i].role;
            messages[i].content = shape->sample->messages[i].content;
            pointers[i] = &messages[i];
        }
    }
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Router/Generate",
        .request = &message.base,
        .data = &baton__v1__generate_event__descriptor,
        .deadline_ns = bt_clock_now_ns() + run->load->request_timeout_ns,
        .on_data = on_data,
        .on_end = on_end,
        .context = request,
    };
    enum bt_status status = made ? call(run, &spec, error)
                                 : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a prompt");
    free(text);
    free(messages);
    free(pointers);
    return status;
}

static enum bt_status start(struct run *run, int64_t scheduled_ns, struct bt_error *error)
{
    uint64_t number = run->sent++, index = run->load->first_index + number;
    struct request *request = calloc(1, sizeof *request);
    if (!request)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
    struct shape shape;
    shape_of(run->load, number, index, &shape);
    request->run = run;
    request->outcome = (struct ctl_bench_outcome){
        .index = number,
        .warmup = number < run->load->warmup,
        .scheduled_ns = scheduled_ns,
        .input_asked =
            shape.input + (shape.entry || shape.sample ? 0 : run->load->prompts.prefix_tokens),
        .output_asked = shape.output,
    };
    struct bt_error reason;
    enum bt_status status = send_request(run, request, index, &shape, &reason);
    request->outcome.sent_ns = since_start(run);
    run->open++;
    ctl_bench_result_sent(run->result, &request->outcome);
    if (status != BT_OK)
        request_end(request, status, reason.text);
    return BT_OK;
}

/* ------------------------------------------------------------------ what is due */

static int64_t due_ns(struct run *run)
{
    const struct ctl_bench_load *load = run->load;
    if (load->arrivals.kind != CTL_BENCH_TRACE)
        return ctl_bench_arrivals_next(&run->arrivals);
    if (run->sent >= load->trace->count)
        return BT_NEVER_NS;
    double at = (double)load->trace->entries[run->sent].at_ns * load->time_scale;
    return (int64_t)fmin(at, CTL_BENCH_LONGEST_S * 1e9);
}

static bool place_due(struct run *run, int64_t now)
{
    while (run->paused_count > 0 && run->paused[run->paused_head] <= now) {
        run->paused_head = (run->paused_head + 1) % run->load->concurrency;
        run->paused_count--;
        run->free_places++;
    }
    return run->free_places > 0;
}

/* False: nothing is due now. */
static bool next_due(struct run *run, int64_t *ret_scheduled_ns)
{
    int64_t now = since_start(run), duration = run->load->duration_ns;
    bool closed = run->load->arrivals.kind == CTL_BENCH_CLOSED;
    int64_t next = closed ? now : run->next_ns;
    if (run->sent >= run->total || (duration && next >= duration))
        run->all_sent = true;
    if (run->all_sent || run->ending || next > now || (closed && !place_due(run, now)))
        return false;
    if (closed)
        run->free_places--;
    *ret_scheduled_ns = next;
    return true;
}

/* Wakes at `at_ns` since the start, to the nanosecond where the kernel can. */
static void wake_at(struct run *run, int64_t at_ns)
{
    int64_t at = run->start_ns + at_ns;
    struct itimerspec when = {
        .it_value = {.tv_sec = at / BT_NS_PER_S, .tv_nsec = at % BT_NS_PER_S}};
    timerfd_settime(run->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static void set_timer(struct run *run)
{
    if (run->all_sent || run->ending)
        return;
    if (run->load->arrivals.kind != CTL_BENCH_CLOSED)
        wake_at(run, run->next_ns);
    else if (run->free_places > 0)
        wake_at(run, 0);
    else if (run->paused_count > 0)
        wake_at(run, run->paused[run->paused_head]);
}

static void stop(struct run *run)
{
    run->over = true;
    bt_loop_stop(run->clients->loop);
}

static void pump(struct run *run)
{
    int64_t scheduled;
    for (int i = 0; i < SENDS_A_ROUND && next_due(run, &scheduled); i++) {
        if (start(run, scheduled, NULL) != BT_OK)
            run->all_sent = true;
        if (run->load->arrivals.kind != CTL_BENCH_CLOSED)
            run->next_ns = run->sent < run->total ? due_ns(run) : BT_NEVER_NS;
    }
    if (run->sent >= run->total)
        run->all_sent = true;
    set_timer(run);
    if (run->all_sent && run->open == 0 && !run->ending)
        stop(run);
}

static void on_timer(void *context)
{
    struct run *run = context;
    uint64_t times;
    if (read(run->timer_fd, &times, sizeof times) == (ssize_t)sizeof times)
        pump(run);
}

/* ------------------------------------------------------------------ progress */

static void show_progress(void *context)
{
    struct run *run = context;
    const struct ctl_bench_result *result = run->result;
    int64_t now = since_start(run);
    double rate = (double)(run->sent - run->shown_sent) * 1e9 / (double)(now - run->shown_ns + 1);
    char of[32] = "";
    if (run->total != UINT64_MAX)
        snprintf(of, sizeof of, "/%" PRIu64, run->total);
    fprintf(stderr,
            "\r\033[K%.1f s  sent %" PRIu64 "%s  %.1f/s  running %u  done %" PRIu64
            "  failed %" PRIu64 "  p50 TTFT %.1f ms, E2E %.1f ms",
            (double)now / 1e9, run->sent, of, rate, run->open, result->succeeded, result->failed,
            ctl_bench_samples_about_s(&result->ttft, 0.5) * 1e3,
            ctl_bench_samples_about_s(&result->e2e, 0.5) * 1e3);
    fflush(stderr);
    run->shown_sent = run->sent;
    run->shown_ns = now;
    bt_loop_timer_set(run->progress, bt_clock_now_ns() + PROGRESS_NS);
}

/* ------------------------------------------------------------------ a run */

static enum bt_status run_init(struct run *run, bool progress, struct bt_error *error)
{
    const struct ctl_bench_load *load = run->load;
    struct bt_loop *loop = run->clients->loop;
    run->arrivals = load->arrivals;
    run->total = load->requests ? load->warmup + load->requests : UINT64_MAX;
    if (load->trace && run->total > load->trace->count)
        run->total = load->trace->count;
    run->free_places = load->concurrency;
    run->paused = calloc((size_t)load->concurrency + 1, sizeof *run->paused);
    run->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (run->timer_fd < 0)
        return bt_error_set(error, BT_ERR_IO, "timerfd: %s", strerror(errno));
    run->timer = bt_loop_add_fd(loop, run->timer_fd, on_timer, run);
    if (progress)
        run->progress =
            bt_loop_add_timer(loop, bt_clock_now_ns() + PROGRESS_NS, show_progress, run);
    if (!run->paused || !run->timer || (progress && !run->progress))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a run");
    run->result->slo = load->slo;
    run->start_ns = bt_clock_now_ns();
    if (load->arrivals.kind != CTL_BENCH_CLOSED)
        run->next_ns = due_ns(run);
    return BT_OK;
}

static void run_finish(struct run *run)
{
    bt_loop_remove(run->timer);
    bt_loop_remove(run->progress);
    if (run->timer_fd >= 0)
        close(run->timer_fd);
    free(run->paused);
    free(run->ids);
}

/* Ends what is open, as unfinished. */
static void interrupt(struct run *run)
{
    run->ending = true;
    run->result->interrupted = true;
    for (uint32_t i = 0; i < run->clients->count; i++)
        bt_rpc_client_destroy(run->clients->clients[i]);
    run->clients->count = 0;
}

static double cpu_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

enum bt_status ctl_bench_run(struct ctl_bench_clients *clients, const struct ctl_bench_load *load,
                             bool progress, ctl_bench_ended_fn *ended, void *context,
                             struct bt_error *error, struct ctl_bench_result *ret_result)
{
    struct run run = {.clients = clients,
                      .load = load,
                      .result = ret_result,
                      .ended = ended,
                      .context = context,
                      .timer_fd = -1};
    memset(ret_result, 0, sizeof *ret_result);
    double before = cpu_s();
    enum bt_status status = run_init(&run, progress, error);
    if (status == BT_OK) {
        pump(&run);
        status = bt_loop_run(clients->loop, error);
        if (!run.over)
            interrupt(&run);
    }
    if (progress)
        fprintf(stderr, "\r\033[K");
    ret_result->cpu_s = cpu_s() - before;
    run_finish(&run);
    return status;
}
