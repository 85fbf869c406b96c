/*
 * The parts of the router's benchmark: its decisions (the core alone), and the whole program
 * between simulated workers and clients. The simulated workers are a process of their own that
 * speaks the real protocol and computes nothing; so is the bare relay, which is the machine's
 * limit.
 */
#ifndef BATON_TESTS_BENCH_ROUTER_BENCH_H
#define BATON_TESTS_BENCH_ROUTER_BENCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/types.pb-c.h"
#include "router/core.h"

struct bench_options {
    uint32_t workers, ranks, decisions;
    enum rt_decode_policy policy;
    const char *router;     /* program; NULL: the decisions alone */
    const char *model_dir;  /* whose tokenizer is used */
    const char *workers_at; /* where the router listens for workers; NULL: 127.0.0.1 */
    const char *only;       /* one part by its name; NULL: all */
    uint32_t relay_streams, http_streams, rpc_streams;
    double seconds; /* of one measurement */
    bool quick;
};

_Noreturn void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* `figure NAME VALUE UNIT LIMIT RATIO` */
void bench_figure(const char *name, double value, const char *unit, double limit, double ratio);

void bench_decisions(const struct bench_options *options);
void bench_relay(const struct bench_options *options);
void bench_streams(const struct bench_options *options);
void bench_prompts(const struct bench_options *options);

/* ---- what the processes share */

/*
 * Token i of every sequence is bench_tokens[i % 4]; together they are BENCH_TEXT, whose last
 * character is nowhere else in a stream, so that clients count tokens without parsing.
 */
#define BENCH_TEXT        " with said code~"
#define BENCH_TOKEN_KINDS 4
#define BENCH_MARK        '~'
#define BENCH_CPU_ROUTER  0 /* the rest is on the others */

struct bench_shared {
    _Atomic uint64_t marks_read; /* by clients: four tokens each */
    _Atomic uint64_t tokens_sent;
    _Atomic uint64_t runs;       /* prompts that a prefill worker took */
    _Atomic uint64_t running;    /* sequences that decode */
    _Atomic uint64_t window;     /* tokens that may be under way; 0: no steps */
    _Atomic int64_t step_ns;     /* between steps of a rank; 0: as fast as the window allows */
    _Atomic uint64_t registered; /* workers */
};
/* Mapped once, before anything is forked. */
extern struct bench_shared *bench_shared;
extern uint32_t bench_tokens[BENCH_TOKEN_KINDS];

struct bench_workers {
    const char *router;      /* RPC endpoint */
    uint32_t decode_workers; /* beside one prefill worker */
};
/* Runs until its parent ends or kills it. */
_Noreturn void bench_workers_run(const struct bench_workers *workers);

/* ---- processes */

struct bench_router {
    pid_t pid;
    uint16_t port;
    char rpc[128];
};
/* `arguments` ends with NULL. Everything that is started ends with this process. */
void bench_router_start(const struct bench_options *options, const char *const *arguments,
                        struct bench_router *ret_router);
/* 0: the child, which ends with its parent; on the cores that the router leaves, or on the router's
 * own. */
pid_t bench_fork(void);
pid_t bench_fork_router(void);
void bench_kill(pid_t pid);
void bench_wait_registered(uint64_t count);
void bench_raise_descriptors(uint64_t count);

/* CPU seconds of a process's threads so far. */
struct bench_cpu {
    double loop, io, tokenizer, all;
};
void bench_cpu_read(pid_t pid, struct bench_cpu *ret_cpu);
struct bench_cpu bench_cpu_since(pid_t pid, const struct bench_cpu *before);
double bench_rss_bytes(pid_t pid);
/* A gauge or counter of the router's /metrics; -1: not there. */
double bench_metric(uint16_t port, const char *name);
double bench_now_s(void);
/* What all simulated workers of this process say of themselves; valid as long as it. */
void bench_fill_common(Baton__V1__ProcessId *ret_process,
                       Baton__V1__LayoutFingerprint *ret_fingerprint);

/* ---- clients */

struct bench_clients;
/* Of `count` streams at a port of this machine; requests are posted to `path`. */
struct bench_clients *bench_clients_open(uint16_t port, uint32_t count, const char *path,
                                         const char *body);
/* Until all have the head of a response. False: not within `seconds`. */
bool bench_clients_wait(struct bench_clients *clients, double seconds);
/* Reads what comes for so long. */
void bench_clients_read(struct bench_clients *clients, double seconds);
uint64_t bench_clients_bytes(const struct bench_clients *clients);
uint64_t bench_clients_events(const struct bench_clients *clients); /* "data:" lines */
void bench_clients_close(struct bench_clients *clients);

/* ---- the limit */

/* A process that takes the messages of `ranks` ranks from a ZeroMQ socket at `endpoint` and writes
 * for every `a_write` tokens of a sequence what its stream gets: `head` bytes, and their text. It
 * listens for clients at *ret_port. */
pid_t bench_bare_start(const char *endpoint, uint32_t streams, uint32_t ranks, size_t head,
                       uint32_t a_write, uint16_t *ret_port);
/* The same steps as the simulated workers send, without a protocol around them. */
_Noreturn void bench_bare_send(const char *endpoint, uint32_t streams, uint32_t ranks);

#endif
