#include "tests/sim/world.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "common/base/log.h"
#include "tests/sim/fabric.h"
#include "tests/sim/seams.h"

#define MAX_EVENTS  16384
#define MAX_THREADS 16
#define STACK_BYTES (128u << 10)
#define CLOCK_STEP  (5 * SIM_US) /* what a thread's look at the clock costs */

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define UNPOISON(base, size) __asan_unpoison_memory_region(base, size)
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "quarantine_size_mb=8:detect_stack_use_after_return=0";
}
#else
#define UNPOISON(base, size) ((void)(base), (void)(size))
#endif

struct world world;

/* ---- chance and log */

static uint64_t next_random(void)
{
    uint64_t z = (world.random += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint32_t draw(uint32_t bound)
{
    return (uint32_t)(next_random() % bound);
}

bool chance(uint32_t per_mille)
{
    return per_mille > 0 && draw(1000) < per_mille;
}

int64_t draw_ns(int64_t low_ns, int64_t high_ns)
{
    return low_ns + (int64_t)(next_random() % (uint64_t)(high_ns - low_ns + 1));
}

static void hash_add(uint64_t value)
{
    world.hash = (world.hash ^ value) * UINT64_C(0x100000001b3);
    world.hash ^= world.hash >> 29;
}

void note(const char *what, uint64_t a, uint64_t b, uint64_t c)
{
    for (const char *at = what; *at; at++) {
        hash_add((uint8_t)*at);
    }
    hash_add((uint64_t)world.now_ns);
    hash_add(a);
    hash_add(b);
    hash_add(c);
    if (world.trace) {
        printf("%12.6f %-10s %-28s %016llx %llu %llu\n", (double)world.now_ns * 1e-9,
               world.current ? world.current->id : "-", what, (unsigned long long)a,
               (unsigned long long)b, (unsigned long long)c);
    }
}

void fail(const char *format, ...)
{
    if (world.failure) {
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(world.failure_text, sizeof(world.failure_text), format, arguments);
    va_end(arguments);
    world.failure = world.failure_text;
    note("VIOLATION", 0, 0, 0);
    if (world.trace) {
        printf("             %s\n", world.failure);
    }
}

/* What the programs log is shown in a trace. */
void bt_log(enum bt_log_level level, uint64_t request, const char *format, ...)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (!world.trace) {
        return;
    }
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    printf("%12.6f %-10s   %s: [%016llx] %s\n", (double)world.now_ns * 1e-9,
           world.current ? world.current->id : "-", names[level], (unsigned long long)request,
           text);
}

/* ---- memory: each block belongs to a node, and goes with it */

#define BLOCK_MAGIC UINT64_C(0x626c6f636b626c6f)

struct block {
    struct block *previous, *next;
    uint64_t size, magic;
};
_Static_assert(sizeof(struct block) % 16 == 0, "keeps malloc's alignment");

static struct block arenas[MAX_NODE + 1]; /* the last: of no node */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void __real_free(void *memory);

static void *block_take(struct block *block, struct block *arena, size_t size)
{
    if (block == NULL) {
        return NULL;
    }
    *block = (struct block){arena, arena->next, size, BLOCK_MAGIC};
    arena->next->previous = block;
    arena->next = block;
    return block + 1;
}

static struct block *arena_now(void)
{
    return &arenas[world.current ? world.current->slot : MAX_NODE];
}

void *world_malloc(size_t size)
{
    return block_take(__real_malloc(size + sizeof(struct block)), &arenas[MAX_NODE], size);
}

void *world_calloc(size_t count, size_t size)
{
    return block_take(__real_calloc(1, count * size + sizeof(struct block)), &arenas[MAX_NODE],
                      count * size);
}

void *__wrap_malloc(size_t size)
{
    return block_take(__real_malloc(size + sizeof(struct block)), arena_now(), size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return block_take(__real_calloc(1, count * size + sizeof(struct block)), arena_now(),
                      count * size);
}

void __wrap_free(void *memory)
{
    if (memory == NULL) {
        return;
    }
    struct block *block = (struct block *)memory - 1;
    BT_ASSERT(block->magic == BLOCK_MAGIC);
    block->magic = 0;
    block->previous->next = block->next;
    block->next->previous = block->previous;
    __real_free(block);
}

void *__wrap_realloc(void *memory, size_t size)
{
    void *moved = __wrap_malloc(size);
    if (moved && memory) {
        const struct block *block = (const struct block *)memory - 1;
        memcpy(moved, memory, block->size < size ? block->size : size);
        __wrap_free(memory);
    }
    return moved;
}

char *__wrap_strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = __wrap_malloc(size);
    return copy ? memcpy(copy, text, size) : NULL;
}

char *__wrap_strndup(const char *text, size_t length)
{
    size_t size = strnlen(text, length);
    char *copy = __wrap_calloc(1, size + 1);
    return copy ? memcpy(copy, text, size) : NULL;
}

static void arena_free(struct block *arena)
{
    for (struct block *block = arena->next, *next; block != arena; block = next) {
        next = block->next;
        __real_free(block);
    }
    arena->previous = arena->next = arena;
}

/* ---- events: a heap by (time, order of posting) */

struct event {
    int64_t when_ns;
    uint64_t order;
    struct node *node;
    uint64_t instance;
    event_fn *fn;
    void *object;
    uint64_t argument;
};

static struct event heap[MAX_EVENTS];
static uint32_t heap_size;
static uint64_t next_order;

static bool earlier(const struct event *a, const struct event *b)
{
    return a->when_ns != b->when_ns ? a->when_ns < b->when_ns : a->order < b->order;
}

static void heap_push(const struct event *event)
{
    BT_ASSERT(heap_size < MAX_EVENTS);
    uint32_t at = heap_size++;
    while (at > 0 && earlier(event, &heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = *event;
}

static struct event heap_pop(void)
{
    struct event first = heap[0], last = heap[--heap_size];
    uint32_t at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= heap_size) {
            break;
        }
        if (child + 1 < heap_size && earlier(&heap[child + 1], &heap[child])) {
            child++;
        }
        if (!earlier(&heap[child], &last)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return first;
}

void event_at(int64_t when_ns, struct node *node, event_fn *fn, void *object, uint64_t argument)
{
    struct event event = {.when_ns = when_ns > world.now_ns ? when_ns : world.now_ns,
                          .order = next_order++,
                          .node = node,
                          .instance = node ? node->instance : 0,
                          .fn = fn,
                          .object = object,
                          .argument = argument};
    heap_push(&event);
}

bool world_step(void)
{
    if (heap_size == 0) {
        return false;
    }
    struct event event = heap_pop();
    world.events++;
    if (event.when_ns > world.now_ns) {
        world.now_ns = event.when_ns;
    }
    if (event.node == NULL) {
        event.fn(event.object, event.argument);
    } else if (event.node->alive && event.node->instance == event.instance) {
        if (node_stalled(event.node)) {
            event.when_ns = event.node->stalled_until;
            heap_push(&event);
            return true;
        }
        node_run(event.node, event.fn, event.object, event.argument);
    }
    threads_look();
    return true;
}

/* ---- nodes */

struct node *node_by_endpoint(const char *endpoint)
{
    for (uint32_t i = 0; i < world.node_count; i++) {
        if (strcmp(world.nodes[i].endpoint, endpoint) == 0) {
            return &world.nodes[i];
        }
    }
    return NULL;
}

void node_run(struct node *node, event_fn *fn, void *object, uint64_t argument)
{
    struct node *before = world.current;
    world.current = node;
    fn(object, argument);
    loop_round_end(node);
    world.current = before;
}

bool node_stalled(const struct node *node)
{
    return node->stalled_until > world.now_ns;
}

void node_stall(struct node *node, int64_t duration_ns)
{
    note("stop", node->slot, (uint64_t)duration_ns / 1000000, 0);
    if (node->stalled_until < world.now_ns + duration_ns) {
        node->stalled_until = world.now_ns + duration_ns;
    }
}

bool __wrap_bt_process_same_host(const struct bt_process_id *a, const struct bt_process_id *b)
{
    return strcmp(a->host, b->host) == 0;
}

enum bt_status __wrap_bt_process_self(struct bt_error *error, struct bt_process_id *ret_id)
{
    (void)error;
    memset(ret_id, 0, sizeof(*ret_id));
    snprintf(ret_id->host, sizeof(ret_id->host), "host-%u",
             world.faults.remote ? world.current->slot : 0);
    ret_id->pid = 1 + world.current->slot;
    ret_id->start_ticks = world.current->instance;
    return BT_OK;
}

enum bt_process_state __wrap_bt_process_probe(const struct bt_process_id *id)
{
    struct bt_process_id self;
    __wrap_bt_process_self(NULL, &self);
    if (strcmp(self.host, id->host) != 0) {
        return BT_PROCESS_UNKNOWN;
    }
    if (id->pid < 1 || id->pid > world.node_count) {
        return BT_PROCESS_DEAD; /* as somebody claims */
    }
    const struct node *node = &world.nodes[id->pid - 1];
    return node->alive && node->instance == id->start_ticks ? BT_PROCESS_ALIVE : BT_PROCESS_DEAD;
}

uint64_t __wrap_bt_random_entropy(void)
{
    return next_random() | 1;
}

/* ---- threads */

struct thread {
    ucontext_t context, caller;
    struct node *node; /* NULL: free slot */
    void *(*main)(void *);
    void *argument;
    bool waiting, done;
    bool looked;         /* it will run because its transport has something to do */
    uint64_t generation; /* of the event that runs it next */
    int64_t when_ns;
};

static struct thread threads[MAX_THREADS];
static char stacks[MAX_THREADS][STACK_BYTES] __attribute__((aligned(64)));
static struct thread *running;

static void thread_run_event(void *object, uint64_t generation);

static void thread_at(struct thread *thread, int64_t when_ns)
{
    thread->generation++;
    thread->when_ns = when_ns;
    if (when_ns != BT_NEVER_NS) {
        event_at(when_ns, thread->node, thread_run_event, thread, thread->generation);
    }
}

static void thread_entry(void)
{
    struct thread *thread = running;
    thread->main(thread->argument);
    thread->done = true;
    swapcontext(&thread->context, &thread->caller);
}

static void thread_switch(struct thread *thread)
{
    struct thread *before = running;
    running = thread;
    thread->waiting = thread->looked = false;
    swapcontext(&thread->caller, &thread->context);
    running = before;
}

static void thread_run_event(void *object, uint64_t generation)
{
    struct thread *thread = object;
    if (thread->generation == generation && !thread->done) {
        thread_switch(thread);
    }
}

void thread_wait(int64_t when_ns)
{
    struct thread *thread = running;
    thread->waiting = true;
    thread_at(thread, when_ns);
    swapcontext(&thread->context, &thread->caller);
}

/* Any look at the clock is a place where a thread may be stopped for long: between the check of a
 * lease and the write, for one. */
int64_t bt_clock_now_ns(void)
{
    if (running) {
        world.now_ns += CLOCK_STEP;
        int64_t now_ns = world.now_ns;
        if (world.faults.on && chance(world.faults.stall)) {
            struct thread *thread = running;
            int64_t stall_ns = draw(4) ? draw_ns(0, 20 * SIM_MS) : draw_ns(0, 5 * SIM_S);
            note("thread stalls", thread->node->slot, (uint64_t)stall_ns / 1000, 0);
            thread_at(thread, now_ns + stall_ns);
            swapcontext(&thread->context, &thread->caller);
        }
        return now_ns; /* as it was before it stalled */
    }
    return world.now_ns;
}

int64_t bt_clock_unix_ns(void)
{
    return INT64_C(1700000000) * SIM_S + world.now_ns;
}

static void thread_prepare(struct thread *thread, char *stack)
{
    UNPOISON(stack, STACK_BYTES);
    getcontext(&thread->context);
    thread->context.uc_stack.ss_sp = stack;
    thread->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&thread->context, thread_entry, 0);
}

int __wrap_pthread_create(pthread_t *ret_thread, const pthread_attr_t *attributes,
                          void *(*thread_main)(void *), void *argument)
{
    (void)attributes;
    uint32_t free_slot = 0;
    while (threads[free_slot].node) {
        free_slot++;
        BT_ASSERT(free_slot < MAX_THREADS);
    }
    struct thread *thread = &threads[free_slot];
    *thread = (struct thread){.node = world.current,
                              .main = thread_main,
                              .argument = argument,
                              .generation = thread->generation + 1};
    thread_prepare(thread, stacks[free_slot]);
    thread_at(thread, world.now_ns);
    *ret_thread = (pthread_t)(uintptr_t)thread;
    return 0;
}

int __wrap_pthread_join(pthread_t thread, void **ret_value)
{
    (void)ret_value;
    struct thread *joined = (struct thread *)(uintptr_t)thread;
    while (!joined->done) {
        thread_switch(joined);
    }
    joined->node = NULL;
    return 0;
}

int __wrap_pthread_sigmask(int how, const sigset_t *set, sigset_t *before)
{
    (void)how;
    (void)set;
    (void)before;
    return 0;
}

/* Whoever starts a thread waits for its first words: the thread runs until it said them. */
int __wrap_sem_wait(sem_t *semaphore)
{
    while (sem_trywait(semaphore) != 0) {
        struct thread *newest = NULL;
        for (uint32_t i = 0; i < MAX_THREADS; i++) {
            struct thread *thread = &threads[i];
            if (thread->node == world.current && !thread->done && !thread->waiting) {
                newest = thread;
            }
        }
        BT_ASSERT(newest);
        thread_switch(newest);
    }
    return 0;
}

void thread_wake(struct kvt_transport *transport, int64_t when_ns)
{
    for (uint32_t i = 0; i < MAX_THREADS; i++) {
        struct thread *thread = &threads[i];
        if (thread->node && thread->node->transport == transport && thread->waiting &&
            thread->when_ns > when_ns) {
            thread_at(thread, when_ns);
        }
    }
}

void threads_look(void)
{
    for (uint32_t i = 0; i < MAX_THREADS; i++) {
        struct thread *thread = &threads[i];
        if (!thread->node || !thread->waiting || thread->looked || !thread->node->transport) {
            continue;
        }
        int64_t delay_ns = fabric_delay(thread->node);
        if (delay_ns != BT_NEVER_NS && thread->when_ns > world.now_ns + delay_ns) {
            thread_at(thread, world.now_ns + delay_ns);
            thread->looked = true;
        }
    }
}

void node_free(struct node *node)
{
    for (uint32_t i = 0; i < MAX_THREADS; i++) {
        if (threads[i].node == node) {
            threads[i].node = NULL;
            threads[i].generation++;
            threads[i].waiting = false;
        }
    }
    node->alive = false;
    seams_forget(node);
    arena_free(&arenas[node->slot]);
    node->loop = NULL;
    node->program = NULL;
    node->pages = NULL;
    node->landings = NULL;
    node->transport = NULL;
    node->stalled_until = 0;
}

/* ---- all of it */

void world_begin(uint64_t seed, bool trace)
{
    memset(&world, 0, sizeof(world));
    world.seed = world.random = seed;
    world.trace = trace;
    world.hash = UINT64_C(0xcbf29ce484222325);
    world.now_ns = SIM_S;
    heap_size = 0;
    next_order = 0;
    for (uint32_t i = 0; i <= MAX_NODE; i++) {
        arenas[i].previous = arenas[i].next = &arenas[i];
    }
    draw(2);
}

void world_end(void)
{
    for (uint32_t i = 0; i < world.node_count; i++) {
        node_free(&world.nodes[i]);
    }
    heap_size = 0;
    seams_end();
    arena_free(&arenas[MAX_NODE]);
}
