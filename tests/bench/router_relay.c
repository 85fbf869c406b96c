/*
 * Tokens through the router, from the ranks' messages to the clients' streams, by core of the
 * router; and the same through a bare relay. Once as fast as it goes, where what comes for a stream
 * while another is written goes out with it; once paced, one write a token.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/bench/router_bench.h"

#define A_RANK         250 /* streams */
#define OPEN_S         120
#define AIM            1e6
#define PACED_TOKENS_S 20000 /* little enough that each goes out alone */
#define WARM_S         0.5
#define BARE_ENDPOINT  "ipc:///tmp/bench-bare-%d"

static const char request[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"go on\"}],"
                              "\"stream\":true,\"max_tokens\":500000,\"temperature\":0}";

struct relayed {
    double tokens_s_core, loop_share; /* of the CPU time */
    double tokens_s, event_tokens, token_bytes;
};

static uint32_t ranks_of(uint32_t streams)
{
    return (streams + A_RANK - 1) / A_RANK;
}

/* So many steps a second of each stream that a core is half busy; 0: as fast as it goes. */
static void set_pace(uint32_t streams, double tokens_s)
{
    uint64_t window = (uint64_t)streams * 16;
    atomic_store(&bench_shared->step_ns, tokens_s > 0 ? (int64_t)(streams / tokens_s * 1e9) : 0);
    atomic_store(&bench_shared->window, window > 4096 ? window : 4096);
}

static struct relayed measure(pid_t pid, struct bench_clients *clients, double seconds)
{
    bench_clients_read(clients, WARM_S);
    struct bench_cpu before;
    uint64_t marks = atomic_load(&bench_shared->marks_read);
    uint64_t bytes = bench_clients_bytes(clients), events = bench_clients_events(clients);
    double begin = bench_now_s();
    bench_cpu_read(pid, &before);
    do {
        bench_clients_read(clients, seconds); /* a busy machine may bring nothing for a while */
    } while (atomic_load(&bench_shared->marks_read) == marks && bench_now_s() < begin + OPEN_S);
    struct bench_cpu cpu = bench_cpu_since(pid, &before);
    double spent = bench_now_s() - begin;
    double tokens = (double)(atomic_load(&bench_shared->marks_read) - marks) * BENCH_TOKEN_KINDS;
    bytes = bench_clients_bytes(clients) - bytes;
    events = bench_clients_events(clients) - events;
    if (tokens == 0) {
        bench_die("no token came");
    }
    return (struct relayed){.tokens_s_core = tokens / cpu.all,
                            .loop_share = cpu.loop / cpu.all,
                            .tokens_s = tokens / spent,
                            .event_tokens = events > 0 ? tokens / (double)events : 0,
                            .token_bytes = (double)bytes / tokens};
}

static void tell(const char *what, uint32_t streams, const struct relayed *relayed)
{
    fprintf(stderr,
            "%s, %u streams: %.0f tokens/s of a core (loop %.0f%%), %.0f tokens/s, %.1f tokens "
            "and %.0f bytes an event\n",
            what, streams, relayed->tokens_s_core, 100 * relayed->loop_share, relayed->tokens_s,
            relayed->event_tokens, relayed->event_tokens * relayed->token_bytes);
}

static void through_router(const struct bench_options *options, uint32_t streams,
                           struct relayed *ret_fast, struct relayed *ret_paced)
{
    struct bench_router router;
    const char *arguments[] = {"--max-connections", "65535", NULL};
    memset(bench_shared, 0, sizeof *bench_shared);
    bench_router_start(options, arguments, &router);
    struct bench_workers setup = {router.rpc, ranks_of(streams)};
    pid_t workers = bench_fork();
    if (workers == 0) {
        bench_workers_run(&setup);
    }
    bench_wait_registered(setup.decode_workers + 1);
    struct bench_clients *clients =
        bench_clients_open(router.port, streams, "/v1/chat/completions", request);
    if (!bench_clients_wait(clients, OPEN_S)) {
        bench_die("%u streams do not begin", streams);
    }
    set_pace(streams, 0);
    *ret_fast = measure(router.pid, clients, options->seconds);
    atomic_store(&bench_shared->window, 0);
    bench_clients_read(clients, 0.3);
    set_pace(streams, PACED_TOKENS_S);
    *ret_paced = measure(router.pid, clients, options->seconds);
    bench_clients_close(clients);
    bench_kill(workers);
    bench_kill(router.pid);
}

static struct relayed through_bare(const struct bench_options *options, uint32_t streams,
                                   bool paced, const struct relayed *as)
{
    char endpoint[64];
    uint16_t port;
    uint32_t a_write = paced ? 1 : (uint32_t)(as->event_tokens + 0.5);
    size_t bytes = (size_t)(as->event_tokens * (as->token_bytes - 4));
    memset(bench_shared, 0, sizeof *bench_shared);
    snprintf(endpoint, sizeof endpoint, BARE_ENDPOINT, (int)getpid());
    pid_t bare = bench_bare_start(endpoint, streams, ranks_of(streams), bytes, a_write, &port);
    struct bench_clients *clients = bench_clients_open(port, streams, NULL, NULL);
    pid_t sender = bench_fork();
    if (sender == 0) {
        bench_bare_send(endpoint, streams, ranks_of(streams));
    }
    set_pace(streams, paced ? as->tokens_s : 0);
    atomic_fetch_add(&bench_shared->window, (uint64_t)streams * (a_write + 1));
    struct relayed relayed = measure(bare, clients, options->seconds);
    bench_clients_close(clients);
    bench_kill(sender);
    bench_kill(bare);
    unlink(endpoint + strlen("ipc://"));
    return relayed;
}

void bench_relay(const struct bench_options *options)
{
    uint32_t counts[] = {64, 1000, options->relay_streams};
    for (size_t i = options->quick ? 2 : 0; i < 3; i++) {
        struct relayed fast, paced, bare_fast, bare_paced;
        through_router(options, counts[i], &fast, &paced);
        tell("router", counts[i], &fast);
        tell("router, paced", counts[i], &paced);
        bare_fast = through_bare(options, counts[i], false, &fast);
        tell("bare relay", counts[i], &bare_fast);
        bare_paced = through_bare(options, counts[i], true, &paced);
        tell("bare relay, paced", counts[i], &bare_paced);
        if (i == 0 && !options->quick) {
            continue;
        }
        bool aim = i == 1 || options->quick;
        double events = paced.tokens_s_core / paced.event_tokens;
        double bare_events = bare_paced.tokens_s_core / bare_paced.event_tokens;
        bench_figure(aim ? "relay_tokens_per_s_core" : "relay_tokens_per_s_core_most",
                     fast.tokens_s_core, "1/s", AIM, fast.tokens_s_core / AIM);
        bench_figure(aim ? "relay_over_bare" : "relay_over_bare_most", fast.tokens_s_core, "1/s",
                     bare_fast.tokens_s_core, fast.tokens_s_core / bare_fast.tokens_s_core);
        bench_figure(aim ? "relay_events_per_s_core" : "relay_events_per_s_core_most", events,
                     "1/s", bare_events, events / bare_events);
    }
}
