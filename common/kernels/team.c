#include "common/kernels/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/kernels/cpus.h"

/*
 * How long a thread spins. Waking one that sleeps takes some 5 to 50 us, so that spinning for that
 * long at most doubles what waiting costs. Waits that end in sleep halve the time, those that a
 * spin ended double it. A spin that takes far longer by the clock than its instructions shared its
 * core with somebody: that one gets it.
 */
#define SPIN_MAX_NS   INT64_C(40000)
#define SPIN_MIN_NS   INT64_C(1000)
#define SPIN_ROUNDS   32
#define PREEMPTION_NS INT64_C(50000)

#define CALLER_SLEEPS (1u << 31) /* bit of `unfinished` */

struct worker {
    struct bt_team *team;
    uint32_t index;
    pthread_t thread;
};

struct bt_team {
    uint32_t threads;
    struct bt_cpus *cpus; /* NULL: not pinned */

    /* The run. Written before `open` is; read by those who claimed a part of it, and until such a
     * part is done the run is not over. */
    bt_team_fn *fn;
    void *context;
    uint32_t parts;
    int64_t caller_spin_ns;

    /* Number of the run << 32 | parts that nobody claimed: a claim can't hit another run. */
    _Alignas(64) _Atomic uint64_t open;
    _Alignas(64) _Atomic uint32_t unfinished; /* parts; the caller sleeps on it */
    _Alignas(64) _Atomic uint32_t runs;       /* the others sleep on it */
    _Atomic uint32_t sleepers;
    atomic_bool stop, running;

    _Alignas(64) struct worker workers[]; /* [threads - 1] */
};

/* A part is being run by this thread. */
static _Thread_local bool inside;

static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, uint32_t count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count > INT_MAX ? INT_MAX : count, NULL, NULL, 0);
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* The next part, if one is open. */
static bool claim(struct bt_team *team, uint32_t *ret_part)
{
    uint64_t open = atomic_load_explicit(&team->open, memory_order_acquire);
    while ((uint32_t)open > 0) {
        if (atomic_compare_exchange_weak_explicit(&team->open, &open, open - 1,
                                                  memory_order_acquire, memory_order_acquire)) {
            *ret_part = team->parts - (uint32_t)open;
            return true;
        }
    }
    return false;
}

/* Runs parts while there are open ones. */
static void work(struct bt_team *team, uint32_t thread)
{
    uint32_t done = 0, part;
    inside = true;
    while (claim(team, &part)) {
        team->fn(team->context, part, thread);
        done++;
    }
    inside = false;
    if (!done)
        return;
    uint32_t before = atomic_fetch_sub_explicit(&team->unfinished, done, memory_order_acq_rel);
    if (before == (CALLER_SLEEPS | done))
        futex_wake(&team->unfinished, 1);
}

typedef bool ended_fn(struct bt_team *team);

static bool all_done(struct bt_team *team)
{
    return (atomic_load_explicit(&team->unfinished, memory_order_acquire) & ~CALLER_SLEEPS) == 0;
}

static bool something_open(struct bt_team *team)
{
    return (uint32_t)atomic_load_explicit(&team->open, memory_order_relaxed) > 0 ||
           atomic_load_explicit(&team->stop, memory_order_relaxed);
}

/* Whether it ended within *spin_ns, which is adapted. */
static bool spin(struct bt_team *team, ended_fn *ended, int64_t *spin_ns)
{
    if (ended(team))
        return true;
    int64_t start_ns = bt_clock_now_ns(), last_ns = start_ns;
    for (;;) {
        for (int i = 0; i < SPIN_ROUNDS; i++) {
            relax();
            if (ended(team)) {
                *spin_ns = *spin_ns * 2 > SPIN_MAX_NS ? SPIN_MAX_NS : *spin_ns * 2;
                return true;
            }
        }
        int64_t now_ns = bt_clock_now_ns();
        if (now_ns - last_ns > PREEMPTION_NS)
            *spin_ns = SPIN_MIN_NS;
        if (now_ns - start_ns >= *spin_ns)
            break;
        last_ns = now_ns;
    }
    *spin_ns = *spin_ns / 2 < SPIN_MIN_NS ? SPIN_MIN_NS : *spin_ns / 2;
    return false;
}

/*
 * The caller makes parts open, then counts the run, then looks for sleepers; a worker says that it
 * sleeps, then looks whether the run it knows is still the last. One of them sees the other.
 */
static void await_run(struct bt_team *team, int64_t *spin_ns)
{
    if (spin(team, something_open, spin_ns))
        return;
    uint32_t seen = atomic_load(&team->runs);
    atomic_fetch_add(&team->sleepers, 1);
    if (!something_open(team))
        futex_wait(&team->runs, seen);
    atomic_fetch_sub(&team->sleepers, 1);
}

static void await_parts(struct bt_team *team)
{
    if (spin(team, all_done, &team->caller_spin_ns))
        return;
    uint32_t left = atomic_fetch_or(&team->unfinished, CALLER_SLEEPS) | CALLER_SLEEPS;
    while (left != CALLER_SLEEPS) {
        futex_wait(&team->unfinished, left);
        left = atomic_load_explicit(&team->unfinished, memory_order_acquire);
    }
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct bt_team *team = worker->team;
    int64_t spin_ns = SPIN_MAX_NS;
    if (team->cpus)
        bt_cpus_pin(team->cpus, worker->index);
    while (!atomic_load_explicit(&team->stop, memory_order_acquire)) {
        work(team, worker->index);
        await_run(team, &spin_ns);
    }
    return NULL;
}

static void wake(struct bt_team *team, uint32_t wanted)
{
    atomic_fetch_add(&team->runs, 1);
    if (atomic_load(&team->sleepers) > 0)
        futex_wake(&team->runs, wanted);
}

static void stop_workers(struct bt_team *team, uint32_t started)
{
    atomic_store(&team->stop, true);
    wake(team, UINT32_MAX);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(team->workers[i].thread, NULL);
}

/* Signals belong to the threads of control. */
static enum bt_status start_workers(struct bt_team *team, struct bt_error *error)
{
    static const int faults[] = {SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP}; /* not to be blocked */
    sigset_t all, before;
    uint32_t started = 0;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; started < team->threads - 1; started++) {
        struct worker *worker = &team->workers[started];
        *worker = (struct worker){.team = team, .index = started + 1};
        if (pthread_create(&worker->thread, NULL, worker_main, worker))
            break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started == team->threads - 1)
        return BT_OK;
    stop_workers(team, started);
    return bt_error_set(error, BT_ERR_EXHAUSTED, "team: thread %u of %u could not be started",
                        started + 1, team->threads);
}

static enum bt_status check_threads(uint32_t threads, const struct bt_cpus *cpus,
                                    struct bt_error *error, uint32_t *ret_threads)
{
    uint32_t count = cpus ? bt_cpus_count(cpus) : 0;
    if (threads == 0)
        threads = count ? count : 1;
    if (threads > BT_TEAM_MAX_THREADS)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "team: %u threads, the most is %d",
                            threads, BT_TEAM_MAX_THREADS);
    if (cpus && threads > count)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "team: %u threads for %u cpus", threads,
                            count);
    *ret_threads = threads;
    return BT_OK;
}

enum bt_status bt_team_create(const struct bt_team_options *options, struct bt_error *error,
                              struct bt_team **ret_team)
{
    struct bt_cpus *cpus = NULL;
    struct bt_team *team = NULL;
    uint32_t threads = 1;
    enum bt_status status = options->cpus ? bt_cpus_create(options->cpus, error, &cpus) : BT_OK;
    if (status == BT_OK)
        status = check_threads(options->threads, cpus, error, &threads);
    if (status != BT_OK)
        goto err_cpus;
    size_t bytes = sizeof(*team) + threads * sizeof(struct worker);
    team = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!team) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "team: no memory");
        goto err_cpus;
    }
    *team = (struct bt_team){.threads = threads, .cpus = cpus, .caller_spin_ns = SPIN_MAX_NS};
    status = start_workers(team, error);
    if (status != BT_OK)
        goto err_team;
    bt_team_enter(team);
    *ret_team = team;
    return BT_OK;

err_team:
    free(team);
err_cpus:
    bt_cpus_destroy(cpus);
    return status;
}

void bt_team_destroy(struct bt_team *team)
{
    if (!team)
        return;
    BT_ASSERT(!atomic_load(&team->running));
    stop_workers(team, team->threads - 1);
    bt_cpus_destroy(team->cpus);
    free(team);
}

void bt_team_enter(struct bt_team *team)
{
    if (team && team->cpus)
        bt_cpus_pin(team->cpus, 0);
}

void bt_team_leave(struct bt_team *team)
{
    if (team && team->cpus)
        bt_cpus_pin_to_all(team->cpus);
}

uint32_t bt_team_threads(const struct bt_team *team)
{
    return team ? team->threads : 1;
}

uint32_t bt_team_place_memory(const struct bt_team *team, void *start, size_t bytes)
{
    return team && team->cpus ? bt_cpus_place_memory(team->cpus, start, bytes) : 1;
}

static void run_alone(bt_team_fn *fn, void *context, uint32_t parts)
{
    inside = true;
    for (uint32_t part = 0; part < parts; part++)
        fn(context, part, 0);
    inside = false;
}

void bt_team_run(struct bt_team *team, bt_team_fn *fn, void *context, uint32_t parts)
{
    BT_ASSERT(!inside && parts < CALLER_SLEEPS);
    if (!team || team->threads == 1 || parts <= 1) {
        run_alone(fn, context, parts);
        return;
    }
    BT_ASSERT(!atomic_exchange_explicit(&team->running, true, memory_order_acquire));
    team->fn = fn;
    team->context = context;
    team->parts = parts;
    atomic_store_explicit(&team->unfinished, parts, memory_order_relaxed);
    uint64_t number = (atomic_load_explicit(&team->open, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&team->open, number << 32 | parts, memory_order_release);
    wake(team, parts - 1);
    work(team, 0);
    await_parts(team);
    atomic_store_explicit(&team->running, false, memory_order_release);
}
