/*
 * A rank dies, leaves or stops before each of the calls: the others get the error, in bounded time,
 * and keep it.
 */
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/conformance/parallel/cases.h"

enum call {
    BARRIER,
    BROADCAST,
    AGREE,
    ALL_REDUCE,
    REDUCE_SCATTER,
    ALL_GATHER,
    DISPATCH,
    COMBINE,
    CALLS,
};

enum { HIDDEN = 64, EXPERTS = 8, PER_TOKEN = 4, ROWS = 30, FLOATS = 20000, WIDTH = 100 };

/* Far above what noticing takes, far below the wait timeout of those cases. */
#define NOTICED_NS (60 * BT_NS_PER_S)
#define LONG_NS    (200 * BT_NS_PER_S)
#define SHORT_NS   (6 * BT_NS_PER_S)

struct fault {
    enum call call;
    enum rank_end end; /* RANK_OK: it leaves */
    uint32_t victim;
};

struct buffers {
    float x[FLOATS], out[FLOATS];
    float y[4 * ROWS * PER_TOKEN * HIDDEN];
    uint32_t experts[ROWS * PER_TOKEN];
    float weights[ROWS * PER_TOKEN];
    uint32_t begin[EXPERTS + 1], ranks[EXPERTS];
};

static enum bt_status send_rows(struct bt_group *group, struct buffers *b)
{
    const struct bt_routing routing = {.experts = b->experts, .weights = b->weights};
    const struct bt_placement_layer placement = {.begin = b->begin, .ranks = b->ranks};
    struct bt_arrivals arrivals;
    enum bt_status status = bt_group_dispatch_begin(group, BT_DISPATCH_LATENCY, b->x, ROWS,
                                                    &routing, &placement, BT_BF16);
    return status == BT_OK ? bt_group_dispatch_finish(group, &arrivals) : status;
}

static enum bt_status return_rows(struct bt_group *group, struct buffers *b)
{
    const struct bt_routing routing = {.experts = b->experts, .weights = b->weights};
    return bt_group_combine(group, b->y, BT_F32, &routing, b->out);
}

static enum bt_status make_call(struct bt_group *group, struct buffers *b, enum call call)
{
    uint64_t word = 1, words[BT_GROUP_RANKS_MAX];
    enum bt_status status;
    switch (call) {
    case BARRIER:
        return bt_group_barrier(group);
    case BROADCAST:
        return bt_group_broadcast(group, 1, b->x, sizeof(b->x), NULL);
    case AGREE:
        status = bt_group_agree_begin(group, &word, 1);
        return status == BT_OK ? bt_group_agree_finish(group, words) : status;
    case ALL_REDUCE:
        return bt_group_all_reduce(group, b->x, FLOATS);
    case REDUCE_SCATTER:
        return bt_group_reduce_scatter(group, b->x, FLOATS / WIDTH, WIDTH, b->out);
    case ALL_GATHER:
        return bt_group_all_gather(group, b->x, FLOATS / WIDTH, WIDTH, b->out);
    case DISPATCH:
        return send_rows(group, b);
    default:
        return return_rows(group, b);
    }
}

static struct buffers *make_buffers(uint32_t size)
{
    struct buffers *b = calloc(1, sizeof(*b));
    CHECK(b);
    for (uint32_t i = 0; i < ROWS * PER_TOKEN; i++)
        b->experts[i] = (i % PER_TOKEN * 2 + i / PER_TOKEN) % EXPERTS;
    for (uint32_t e = 0; e <= EXPERTS; e++)
        b->begin[e] = e;
    for (uint32_t e = 0; e < EXPERTS; e++)
        b->ranks[e] = e % size;
    return b;
}

/* All calls once, well; and, so that a combine can come next, a dispatch. */
static void warm_up(struct bt_group *group, struct buffers *b, enum call next)
{
    for (enum call call = 0; call < CALLS; call++)
        CHECK(make_call(group, b, call) == BT_OK);
    if (next == COMBINE)
        CHECK(make_call(group, b, DISPATCH) == BT_OK);
}

static void end_badly(struct bt_group *group, struct buffers *b, enum rank_end end)
{
    if (end == RANK_KILLED)
        raise(SIGKILL);
    if (end == RANK_STOPPED)
        raise(SIGSTOP);
    bt_group_destroy(group);
    free(b);
}

static void suffer(const struct bt_group_options *options, const void *context)
{
    const struct fault *fault = context;
    struct bt_group *group = join(options);
    struct buffers *b = make_buffers(options->size);
    enum bt_status wanted = fault->end == RANK_STOPPED ? BT_ERR_DEADLINE : BT_ERR_PEER_LOST;
    char text[BT_ERROR_TEXT_SIZE], name[16];

    warm_up(group, b, fault->call);
    if (options->rank == fault->victim) {
        end_badly(group, b, fault->end);
        return;
    }
    int64_t start_ns = bt_clock_now_ns();
    enum bt_status status = make_call(group, b, fault->call);
    CHECK(status == wanted);
    CHECK(bt_clock_now_ns() - start_ns < NOTICED_NS);
    snprintf(text, sizeof(text), "%s", bt_group_error(group));
    snprintf(name, sizeof(name), "rank %u", fault->victim);
    CHECK(fault->end == RANK_STOPPED ? strstr(text, "said nothing") : strstr(text, name));
    for (enum call call = 0; call < CALLS; call++)
        CHECK(make_call(group, b, call) == wanted);
    CHECK(strcmp(bt_group_error(group), text) == 0);
    bt_group_destroy(group);
    free(b);
}

static void run_fault(const struct fault *fault, uint32_t size, uint32_t ranks_per_machine)
{
    run_ranks(&(struct rig_case){
        .size = size,
        .ranks_per_machine = ranks_per_machine,
        .limits = {.floats = FLOATS,
                   .broadcast_bytes = 1000,
                   .rows = ROWS,
                   .hidden = HIDDEN,
                   .experts = EXPERTS,
                   .experts_per_token = PER_TOKEN},
        .wait_timeout_ns = fault->end == RANK_STOPPED ? SHORT_NS : LONG_NS,
        .fn = suffer,
        .context = fault,
        .victim = fault->victim,
        .victim_end = fault->end,
    });
}

static void run_faults(enum rank_end end)
{
    for (enum call call = 0; call < CALLS; call++) {
        run_fault(&(struct fault){call, end, 2}, 3, 0);
        run_fault(&(struct fault){call, end, call % 4}, 4, 2);
    }
}

void test_killed(void **state)
{
    (void)state;
    run_faults(RANK_KILLED);
}

void test_left(void **state)
{
    (void)state;
    run_faults(RANK_OK);
}

void test_stopped(void **state)
{
    (void)state;
    run_fault(&(struct fault){ALL_REDUCE, RANK_STOPPED, 0}, 3, 0);
    run_fault(&(struct fault){DISPATCH, RANK_STOPPED, 3}, 4, 2);
}

/* ---- who comes late ---- */

/* Rank 1 begins its dispatch when the others have begun theirs: so nobody waits there. */
static void begin_late(const struct bt_group_options *options, const void *context)
{
    _Atomic uint32_t *begun = *(_Atomic uint32_t *const *)context;
    struct bt_group *group = join(options);
    struct buffers *b = make_buffers(options->size);
    const struct bt_routing routing = {.experts = b->experts, .weights = b->weights};
    const struct bt_placement_layer placement = {.begin = b->begin, .ranks = b->ranks};
    int64_t deadline_ns = bt_clock_now_ns() + NOTICED_NS;
    struct bt_arrivals arrivals;
    warm_up(group, b, BARRIER);
    while (options->rank == 1 && *begun < options->size - 1) {
        CHECK(bt_clock_now_ns() < deadline_ns);
        usleep(1000); /* the others have not begun */
    }
    CHECK(bt_group_dispatch_begin(group, BT_DISPATCH_THROUGHPUT, b->x, ROWS, &routing, &placement,
                                  BT_F32) == BT_OK);
    ++*begun;
    CHECK(bt_group_dispatch_finish(group, &arrivals) == BT_OK && arrivals.rows > 0);
    CHECK(return_rows(group, b) == BT_OK);
    bt_group_destroy(group);
    free(b);
}

void test_late(void **state)
{
    _Atomic uint32_t *begun =
        mmap(NULL, sizeof(*begun), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    (void)state;
    assert_true(begun != MAP_FAILED);
    for (uint32_t per_machine = 0; per_machine <= 2; per_machine += 2) {
        *begun = 0;
        run_ranks(&(struct rig_case){
            .size = 4,
            .ranks_per_machine = per_machine,
            .limits = {.floats = FLOATS,
                       .broadcast_bytes = 1000,
                       .rows = ROWS,
                       .hidden = HIDDEN,
                       .experts = EXPERTS,
                       .experts_per_token = PER_TOKEN},
            .wait_timeout_ns = LONG_NS,
            .fn = begin_late,
            .context = &begun,
            .victim = 4,
        });
    }
    munmap((void *)begun, sizeof(*begun));
}

/* ---- what is left ---- */

static uint32_t entries(const char *path)
{
    DIR *directory = opendir(path);
    uint32_t count = 0;
    assert_non_null(directory);
    for (struct dirent *entry = readdir(directory); entry; entry = readdir(directory))
        count += strstr(entry->d_name, "baton") != NULL;
    closedir(directory);
    return count;
}

/* After a SIGKILL nothing of a group is in /dev/shm. */
void test_nothing_left_behind(void **state)
{
    (void)state;
    uint32_t before = entries("/dev/shm");
    run_fault(&(struct fault){BARRIER, RANK_KILLED, 0}, 3, 0);
    assert_int_equal(entries("/dev/shm"), before);
}
