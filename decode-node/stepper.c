#include "decode-node/stepper.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/clock.h"

/* Add, stop, and a page for the one wish that is open; and a stop and a page of the one before it.
 */
#define TOLD_WILL             8 /* bits of flags */
#define COMMANDS_PER_SEQUENCE 5
#define BELLS                 2 /* each at most once in the queue */
#define STEP_RECORDS          4 /* steps that the control thread may be behind */

enum command_kind {
    COMMAND_ADD,
    COMMAND_STOP,
    COMMAND_GROW,
    COMMAND_TOLD, /* what this rank says changed */
    COMMAND_WAKE, /* another rank has work */
};

struct command {
    enum command_kind kind;
    struct dc_sequence *sequence; /* ADD */
    uint64_t request, epoch;
    enum dc_finish finish; /* STOP */
    uint32_t page;         /* GROW */
};

struct dc_stepper {
    struct dc_stepper_options options;
    struct dc_engine *engine;
    struct dc_agreement agreement;
    struct bt_queue *commands; /* control -> step thread */
    struct bt_queue *steps;    /* step thread -> control */
    struct bt_queue *idle;     /* records on their way back */
    struct dc_step records[STEP_RECORDS];
    atomic_bool stop;
    pthread_t thread;

    /* Groups. */
    int notice_fd;
    atomic_uint notices;
    atomic_ullong told;       /* enum dc_rank_flag, and above TOLD_WILL the will */
    atomic_bool bells[BELLS]; /* that are in the queue */
    atomic_bool resting;      /* the last agreement found no rows */
    atomic_ullong agreements; /* that ended */
    atomic_ullong waking_for; /* 1 + `agreements` when others were last to be woken */
    atomic_ullong agreed;     /* the will, times two, and one if it has drained */
    atomic_uint rows, largest;
    atomic_ullong heartbeats, woken, waking;
    struct bt_error error; /* before DC_NOTICE_FAILED */
};

static bool stopping(struct dc_stepper *stepper)
{
    return atomic_load_explicit(&stepper->stop, memory_order_relaxed);
}

/* ------------------------------------------------------------------ notices */

static void notice(struct dc_stepper *stepper, unsigned notices)
{
    const uint64_t one = 1;
    atomic_fetch_or(&stepper->notices, notices);
    while (write(stepper->notice_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
}

/* Once for each agreement that found nothing: the others, woken, begin the next one. */
static void notice_work(struct dc_stepper *stepper)
{
    unsigned long long next = atomic_load(&stepper->agreements) + 1;
    if (atomic_exchange(&stepper->waking_for, next) != next) {
        atomic_fetch_add(&stepper->waking, 1);
        notice(stepper, DC_NOTICE_WAKE);
    }
}

static void fail(struct dc_stepper *stepper, const struct bt_error *error)
{
    stepper->error = *error;
    notice(stepper, DC_NOTICE_FAILED);
}

/* ------------------------------------------------------------------ commands */

static void obey(struct dc_stepper *stepper, const struct command *command)
{
    struct dc_engine *engine = stepper->engine;
    switch (command->kind) {
    case COMMAND_ADD:
        dc_engine_add(engine, command->sequence);
        break;
    case COMMAND_STOP:
        dc_engine_stop(engine, command->request, command->epoch, command->finish);
        break;
    case COMMAND_GROW:
        dc_engine_grow(engine, command->request, command->epoch, command->page);
        break;
    case COMMAND_TOLD:
    case COMMAND_WAKE:
        atomic_store(&stepper->bells[command->kind - COMMAND_TOLD], false);
        break;
    }
}

/* How many commands of this rank's own, and how many of other ranks, were waiting. */
static void take_commands(struct dc_stepper *stepper, uint32_t *ret_own, uint32_t *ret_others)
{
    struct command command;
    *ret_own = *ret_others = 0;
    while (bt_queue_try_pop(stepper->commands, &command)) {
        obey(stepper, &command);
        *(command.kind == COMMAND_WAKE ? ret_others : ret_own) += 1;
    }
}

/* Sleeps while this rank has nothing to compute. False: the thread has to end. */
static bool await_commands(struct dc_stepper *stepper)
{
    struct command command;
    uint32_t own, others;
    while (!stopping(stepper) && !dc_engine_runnable(stepper->engine)) {
        if (!bt_queue_pop(stepper->commands, &command)) {
            return false;
        }
        obey(stepper, &command);
    }
    take_commands(stepper, &own, &others);
    return !stopping(stepper);
}

/* ------------------------------------------------------------------ steps */

static void push_step(struct dc_stepper *stepper, struct dc_step *step)
{
    BT_ASSERT(bt_queue_try_push(stepper->steps, &step));
}

/* Steps in which this rank had no part go round unseen. */
static void report(struct dc_stepper *stepper, struct dc_step *step)
{
    if (step->rows > 0 || step->prompt_rows > 0 || step->entry_count > 0 || step->wish_count > 0) {
        push_step(stepper, step);
    } else {
        dc_stepper_return(stepper, step);
    }
}

static void count_step(struct dc_stepper *stepper, uint32_t rows, uint32_t largest)
{
    atomic_store_explicit(&stepper->rows, rows, memory_order_relaxed);
    atomic_store_explicit(&stepper->largest, largest, memory_order_relaxed);
}

static struct dc_intent intent_of(const struct dc_step *step, uint64_t told)
{
    return (struct dc_intent){step->rows, step->prompt_rows, step->drawing,
                              (unsigned)told & ((1u << TOLD_WILL) - 1), told >> TOLD_WILL};
}

/* Why a pass failed: as the group says, or else the device. */
static void broken(const struct dc_stepper *stepper, enum bt_status status, struct bt_error *error)
{
    const struct bt_group *group = stepper->agreement.group;
    const char *why = bt_forward_error(dc_engine_forward(stepper->engine));
    if ((group && *bt_group_error(group)) || !*why) {
        dc_agreement_broken(&stepper->agreement, status, error);
    } else {
        bt_error_set(error, status, "%s", why);
    }
}

static enum bt_status agree_alone(struct dc_stepper *stepper, const struct dc_step *step,
                                  struct bt_error *error)
{
    const struct dc_intent intent = intent_of(step, 0);
    enum bt_status status = dc_agreement_begin(&stepper->agreement, &intent, error);
    return status == BT_OK ? dc_agreement_keep(&stepper->agreement, error) : status;
}

/* *ret_begun: it is under way, else it is over. */
static enum bt_status step_alone(struct dc_stepper *stepper, struct dc_step *step,
                                 struct bt_error *error, bool *ret_begun)
{
    struct dc_engine *engine = stepper->engine;
    dc_engine_begin(engine, step);
    enum dc_pass pass = dc_engine_turn(engine, step->rows > 0, step->prompt_rows > 0);
    *ret_begun = pass == DC_PASS_STEP && dc_engine_overlaps(engine);
    count_step(stepper, step->rows, step->rows);
    enum bt_status status = agree_alone(stepper, step, error);
    if (status != BT_OK) {
        return status;
    }
    if (pass != DC_PASS_NONE) {
        status = *ret_begun ? dc_engine_set_out(engine, step) : dc_engine_run(engine, step, pass);
    }
    if (status != BT_OK) {
        broken(stepper, status, error);
    }
    if (!*ret_begun) {
        dc_engine_account(engine, step);
    }
    return status;
}

/* Ends the step that is under way; *ret_begun: `next` is, then. */
static enum bt_status go_on(struct dc_stepper *stepper, struct dc_step *step, struct dc_step *next,
                            struct bt_error *error, bool *ret_begun)
{
    uint32_t own, others;
    take_commands(stepper, &own, &others);
    enum bt_status status = agree_alone(stepper, step, error);
    if (status == BT_OK) {
        status = dc_engine_go_on(stepper->engine, step, next, ret_begun);
        if (status != BT_OK) {
            broken(stepper, status, error);
        }
    }
    if (status == BT_OK && *ret_begun) {
        count_step(stepper, next->rows, next->rows);
    }
    return status;
}

static void run_alone(struct dc_stepper *stepper)
{
    struct dc_step *step, *under_way = NULL;
    struct bt_error error;
    bool begun = false;
    while (bt_queue_pop(stepper->idle, &step)) {
        if (under_way ? stopping(stepper) : !await_commands(stepper)) {
            break;
        }
        enum bt_status status = under_way ? go_on(stepper, under_way, step, &error, &begun)
                                          : step_alone(stepper, step, &error, &begun);
        if (status != BT_OK) {
            fail(stepper, &error);
            break;
        }
        if (under_way) {
            push_step(stepper, under_way);
            if (!begun) {
                dc_stepper_return(stepper, step);
            }
        } else if (!begun) {
            push_step(stepper, step);
        }
        under_way = begun ? step : NULL;
    }
}

/* ------------------------------------------------------------------ steps of a group */

/* Whatever is here or still comes goes back. */
static void run_closed(struct dc_stepper *stepper)
{
    struct dc_step *step;
    while (bt_queue_pop(stepper->idle, &step)) {
        dc_engine_stop_all(stepper->engine, DC_FINISH_PREEMPTED);
        if (!await_commands(stepper)) {
            break;
        }
        dc_engine_stop_all(stepper->engine, DC_FINISH_PREEMPTED);
        dc_engine_begin(stepper->engine, step);
        dc_engine_account(stepper->engine, step);
        report(stepper, step);
    }
}

/* Until there is something to agree on. */
static void rest(struct dc_stepper *stepper)
{
    struct pollfd poller = {.fd = bt_queue_fd(stepper->commands), .events = POLLIN};
    int64_t until_ns = bt_clock_now_ns() + stepper->options.heartbeat_ns, left_ns;
    uint32_t own, others;
    int ready;
    do {
        left_ns = until_ns - bt_clock_now_ns();
        ready = left_ns <= 0 ? 0 : poll(&poller, 1, (int)((left_ns - 1) / BT_NS_PER_MS) + 1);
    } while (ready < 0 || (ready == 0 && left_ns > 0));
    take_commands(stepper, &own, &others);
    if (own > 0) {
        notice_work(stepper);
    } else if (others > 0) {
        atomic_fetch_add(&stepper->woken, 1);
    } else {
        atomic_fetch_add(&stepper->heartbeats, 1);
    }
}

/* may_rest: without rows nothing follows. */
static void publish(struct dc_stepper *stepper, const struct dc_consent *consent, bool may_rest)
{
    uint64_t agreed = consent->will << 1 | consent->drained;
    uint64_t before = atomic_exchange(&stepper->agreed, agreed);
    atomic_store(&stepper->resting, may_rest && consent->largest == 0 && consent->prompts == 0);
    atomic_fetch_add(&stepper->agreements, 1);
    if (agreed != before) {
        notice(stepper, DC_NOTICE_AGREED);
    }
}

/* The steps of a group, as its step thread has them in hand. */
struct together {
    struct dc_step *under_way; /* NULL: none */
    struct dc_step *last;      /* is over and not reported yet; NULL: none */
    bool left;
};

/* On the step `next`, which is to come behind the one under way where there is one. Reports the
 * last one while the others' words come. */
static enum bt_status agree(struct dc_stepper *stepper, struct together *together,
                            const struct dc_step *next, bool goes_on, struct bt_error *error,
                            struct dc_consent *ret_consent)
{
    struct dc_agreement *agreement = &stepper->agreement;
    struct dc_intent intent = intent_of(next, atomic_load(&stepper->told));
    intent.flags |= goes_on ? DC_RANK_GOES_ON : 0;
    enum bt_status status = dc_agreement_begin(agreement, &intent, error);
    if (together->last) {
        report(stepper, together->last);
        together->last = NULL;
    }
    if (status == BT_OK) {
        status = dc_agreement_end(agreement, error, ret_consent);
    }
    if (status == BT_OK) {
        dc_engine_beside(stepper->engine, ret_consent->drawing);
        publish(stepper, ret_consent, !together->under_way);
    }
    bool keeps = together->under_way ? status == BT_OK && ret_consent->goes_on
                                     : status == BT_OK && !ret_consent->leaves;
    return keeps ? dc_agreement_keep(agreement, error) : status;
}

/* The pass that was agreed on. */
static enum bt_status pass_together(struct dc_stepper *stepper, struct dc_step *step,
                                    const struct dc_consent *consent, enum dc_pass pass)
{
    bool is_step = pass == DC_PASS_STEP;
    count_step(stepper, step->rows, consent->largest);
    dc_engine_together(stepper->engine, is_step ? consent->largest : consent->prompts,
                       is_step && consent->steady);
    return consent->goes_on ? dc_engine_set_out(stepper->engine, step)
                            : dc_engine_run(stepper->engine, step, pass);
}

/* With nothing under way. *ret_rest: nobody has anything to compute. */
static enum bt_status step_together(struct dc_stepper *stepper, struct together *together,
                                    struct dc_step *next, struct bt_error *error, bool *ret_rest)
{
    struct dc_engine *engine = stepper->engine;
    struct dc_consent consent;
    enum dc_pass pass = DC_PASS_NONE;
    dc_engine_begin(engine, next);
    enum bt_status status =
        agree(stepper, together, next, dc_engine_goes_on(engine, next), error, &consent);
    if (status != BT_OK) {
        return status;
    }
    if (consent.leaves) {
        next->rows = next->prompt_rows = 0;
        together->left = true;
    } else {
        pass = dc_engine_turn(engine, consent.largest > 0, consent.prompts > 0);
    }
    if (pass != DC_PASS_NONE) {
        status = pass_together(stepper, next, &consent, pass);
        if (status != BT_OK) {
            broken(stepper, status, error);
            return status;
        }
        if (consent.goes_on) {
            together->under_way = next;
            return BT_OK;
        }
    }
    dc_engine_account(engine, next);
    *ret_rest = pass == DC_PASS_NONE && !consent.leaves;
    together->last = next;
    if (*ret_rest) {
        report(stepper, next);
        together->last = NULL;
    }
    return BT_OK;
}

/* Behind the step under way `next` is begun, if all ranks can; then that one ends. */
static enum bt_status go_on_together(struct dc_stepper *stepper, struct together *together,
                                     struct dc_step *next, struct bt_error *error)
{
    struct dc_engine *engine = stepper->engine;
    struct dc_step *step = together->under_way;
    struct dc_consent consent;
    bool goes_on = dc_engine_look_ahead(engine, step, next);
    enum bt_status status = agree(stepper, together, next, goes_on, error, &consent);
    if (status != BT_OK) {
        return status;
    }
    if (consent.goes_on) {
        count_step(stepper, next->rows, consent.largest);
        dc_engine_together(engine, consent.largest, consent.steady);
        status = dc_engine_set_out_behind(engine, next);
    }
    if (status == BT_OK) {
        status = dc_engine_end(engine, step, consent.goes_on ? next : NULL);
    }
    if (status != BT_OK) {
        broken(stepper, status, error);
        return status;
    }
    together->last = step;
    together->under_way = consent.goes_on ? next : NULL;
    if (!consent.goes_on) {
        dc_stepper_return(stepper, next);
    }
    return BT_OK;
}

/* What is left when the group has agreed to leave. */
static void leave(struct dc_stepper *stepper, struct dc_step *last)
{
    notice(stepper, DC_NOTICE_LEFT);
    report(stepper, last);
    run_closed(stepper);
}

static void run_together(struct dc_stepper *stepper)
{
    struct together together = {NULL, NULL, false};
    struct bt_error error;
    struct dc_step *next;
    bool rests = false;
    uint32_t own, others;
    while (!together.left && !stopping(stepper)) {
        if (rests) {
            rest(stepper);
        } else {
            take_commands(stepper, &own, &others);
        }
        rests = false;
        if (!bt_queue_pop(stepper->idle, &next)) {
            return;
        }
        enum bt_status status = together.under_way
                                    ? go_on_together(stepper, &together, next, &error)
                                    : step_together(stepper, &together, next, &error, &rests);
        if (status != BT_OK) {
            fail(stepper, &error);
            return;
        }
    }
    if (together.left) {
        leave(stepper, together.last);
    }
}

/* ------------------------------------------------------------------ life */

static void *stepper_main(void *argument)
{
    struct dc_stepper *stepper = argument;
    struct bt_error error;
    if (dc_engine_enter(stepper->engine, &error) != BT_OK) {
        fail(stepper, &error);
    } else if (stepper->agreement.group) {
        run_together(stepper);
    } else {
        run_alone(stepper);
    }
    return NULL;
}

static bool stepper_alloc(struct dc_stepper *stepper)
{
    uint32_t max_sequences = stepper->options.max_sequences;
    stepper->commands = bt_queue_create((size_t)max_sequences * COMMANDS_PER_SEQUENCE + BELLS,
                                        sizeof(struct command));
    stepper->steps = bt_queue_create(STEP_RECORDS, sizeof(struct dc_step *));
    stepper->idle = bt_queue_create(STEP_RECORDS, sizeof(struct dc_step *));
    stepper->notice_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!stepper->commands || !stepper->steps || !stepper->idle || stepper->notice_fd < 0 ||
        !dc_agreement_init(&stepper->agreement, stepper->options.rank)) {
        return false;
    }
    for (int i = 0; i < STEP_RECORDS; i++) {
        struct dc_step *step = &stepper->records[i];
        if (!dc_step_init(step, max_sequences)) {
            return false;
        }
        bt_queue_try_push(stepper->idle, &step);
    }
    return true;
}

static void stepper_free(struct dc_stepper *stepper)
{
    for (int i = 0; i < STEP_RECORDS; i++) {
        dc_step_finish(&stepper->records[i]);
    }
    bt_queue_destroy(stepper->commands);
    bt_queue_destroy(stepper->steps);
    bt_queue_destroy(stepper->idle);
    dc_agreement_finish(&stepper->agreement);
    if (stepper->notice_fd >= 0) {
        close(stepper->notice_fd);
    }
    free(stepper);
}

enum bt_status dc_stepper_create(const struct dc_stepper_options *options, struct bt_error *error,
                                 struct dc_stepper **ret_stepper)
{
    struct dc_stepper *stepper = calloc(1, sizeof(*stepper));
    if (!stepper) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "step thread: no memory");
    }
    stepper->options = *options;
    stepper->engine = options->engine;
    stepper->notice_fd = -1;
    if (!stepper_alloc(stepper) ||
        pthread_create(&stepper->thread, NULL, stepper_main, stepper) != 0) {
        stepper_free(stepper);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "step thread: no memory for queues or thread");
    }
    *ret_stepper = stepper;
    return BT_OK;
}

void dc_stepper_destroy(struct dc_stepper *stepper)
{
    if (!stepper) {
        return;
    }
    atomic_store_explicit(&stepper->stop, true, memory_order_relaxed);
    bt_queue_close(stepper->commands);
    bt_queue_close(stepper->idle);
    pthread_join(stepper->thread, NULL);
    stepper_free(stepper);
}

/* ------------------------------------------------------------------ control thread */

/* The step thread may be in an agreement that others sleep through: so they are to be woken from
 * here, too. */
static void command_push(struct dc_stepper *stepper, const struct command *command)
{
    BT_ASSERT(bt_queue_try_push(stepper->commands, command));
    if (command->kind != COMMAND_WAKE && atomic_load(&stepper->resting)) {
        notice_work(stepper);
    }
}

static void ring(struct dc_stepper *stepper, enum command_kind kind)
{
    const struct command command = {.kind = kind};
    if (!atomic_exchange(&stepper->bells[kind - COMMAND_TOLD], true)) {
        command_push(stepper, &command);
    }
}

void dc_stepper_add(struct dc_stepper *stepper, struct dc_sequence *sequence)
{
    const struct command command = {.kind = COMMAND_ADD, .sequence = sequence};
    command_push(stepper, &command);
}

void dc_stepper_stop(struct dc_stepper *stepper, uint64_t request, uint64_t epoch,
                     enum dc_finish finish)
{
    const struct command command = {
        .kind = COMMAND_STOP, .request = request, .epoch = epoch, .finish = finish};
    command_push(stepper, &command);
}

void dc_stepper_grow(struct dc_stepper *stepper, uint64_t request, uint64_t epoch, uint32_t page)
{
    const struct command command = {
        .kind = COMMAND_GROW, .request = request, .epoch = epoch, .page = page};
    command_push(stepper, &command);
}

void dc_stepper_tell(struct dc_stepper *stepper, unsigned flags, uint64_t will)
{
    uint64_t told = will << TOLD_WILL | flags;
    if (atomic_exchange(&stepper->told, told) != told && stepper->agreement.group) {
        ring(stepper, COMMAND_TOLD);
    }
}

void dc_stepper_wake(struct dc_stepper *stepper)
{
    if (stepper->agreement.group) {
        ring(stepper, COMMAND_WAKE);
    }
}

struct bt_queue *dc_stepper_steps(const struct dc_stepper *stepper)
{
    return stepper->steps;
}

void dc_stepper_return(struct dc_stepper *stepper, struct dc_step *step)
{
    /* The queue is closed when the thread has to end; the records are freed after it. */
    bool returned = bt_queue_try_push(stepper->idle, &step);
    BT_ASSERT(returned || stopping(stepper));
}

int dc_stepper_notice_fd(const struct dc_stepper *stepper)
{
    return stepper->notice_fd;
}

unsigned dc_stepper_take_notices(struct dc_stepper *stepper)
{
    uint64_t count;
    while (read(stepper->notice_fd, &count, sizeof(count)) < 0 && errno == EINTR) {
    }
    return atomic_exchange(&stepper->notices, 0);
}

bool dc_stepper_has_notices(const struct dc_stepper *stepper)
{
    return atomic_load(&stepper->notices) != 0;
}

const char *dc_stepper_error(const struct dc_stepper *stepper)
{
    return stepper->error.text;
}

void dc_stepper_look(const struct dc_stepper *stepper, struct dc_stepper_view *ret_view)
{
    uint64_t agreed = atomic_load(&stepper->agreed);
    *ret_view = (struct dc_stepper_view){
        .will = agreed >> 1,
        .drained = agreed & 1,
        .rows = atomic_load(&stepper->rows),
        .largest = atomic_load(&stepper->largest),
        .agreements = atomic_load(&stepper->agreements),
        .heartbeats = atomic_load(&stepper->heartbeats),
        .woken = atomic_load(&stepper->woken),
        .waking = atomic_load(&stepper->waking),
    };
}
