/*
 * `router [--workers N] [--ranks N] [--decisions N] [--policy NAME] [--router PROGRAM --model DIR
 * [--only PART] [--quick 1] [--seconds S] [--streams N] [--rpc-streams N]]`: what the router costs.
 *
 * Prints `figure NAME VALUE UNIT LIMIT RATIO`; RATIO is LIMIT / VALUE of times and VALUE / LIMIT of
 * rates, so more is better and 1 is the aim. Without an aim the limit is the value.
 *
 *     decision_p50_us, decision_p99_us   one decision (prefill worker and decode rank of the
 *                                        request whose turn it is), with N workers of each role,
 *                                        each decode worker of so many ranks, and a queue that is
 *                                        never empty
 *     decisions_per_s                    of one core, with all events that they bring along: the
 *                                        request's own, and the ranks' reports
 *     report_p99_us                      one load report of a rank, with what it sets in motion
 *     rank_lost_us                       the loss of a whole decode worker, per request that ran
 *                                        there
 *
 * And with --router, of the whole program, all its threads counted:
 *
 *     relay_tokens_per_s_core   tokens from ranks to streams by second of CPU time, as fast as they
 *                               are read
 *     relay_over_bare           the same against a bare relay with as many messages, writes, bytes
 *     relay_events_per_s_core   the same where every token is written alone. All three with 1,000
 *                               streams; _most: with --streams
 *     bytes_per_stream          memory of an open stream of the ZeroMQ API, with a prompt of 100
 *                               tokens
 *     bytes_per_http_stream     of an HTTP stream
 *     cores_at_99rps_100k       cores that 99 prompts of 100,000 tokens a second take, given as
 *                               text, beside those of the tokenizer's threads; _ids: as ids;
 *                               _turns: as turns of conversations
 *     tokenize_over_reference   speed of tokenizing over that of the reference, and what else
 *                               tokenize.py prints; not with --quick
 *
 * --only decisions, relay, streams, prompts or tokenize.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/router_bench.h"

#define DESCRIPTORS 250000 /* where root may */

struct bench_shared *bench_shared;
uint32_t bench_tokens[BENCH_TOKEN_KINDS];

void bench_figure(const char *name, double value, const char *unit, double limit, double ratio)
{
    printf("figure %s %.3f %s %.3f %.3f\n", name, value, unit, limit, ratio);
    fflush(stdout);
}

static enum rt_decode_policy policy_named(const char *name)
{
    enum rt_decode_policy policy = RT_DECODE_KV_UTILIZATION;
    while (rt_decode_policy_names[policy] && strcmp(rt_decode_policy_names[policy], name) != 0) {
        policy++;
    }
    if (!rt_decode_policy_names[policy]) {
        bench_die("no policy is named %s", name);
    }
    return policy;
}

static void set_option(struct bench_options *options, const char *name, const char *value)
{
    uint32_t number = (uint32_t)strtoul(value, NULL, 10);
    if (strcmp(name, "--workers") == 0 && number > 0) {
        options->workers = number;
    } else if (strcmp(name, "--ranks") == 0 && number > 0 && number <= RT_GROUP_SIZE_MAX) {
        options->ranks = number;
    } else if (strcmp(name, "--decisions") == 0 && number > 0) {
        options->decisions = number;
    } else if (strcmp(name, "--policy") == 0) {
        options->policy = policy_named(value);
    } else if (strcmp(name, "--router") == 0) {
        options->router = value;
    } else if (strcmp(name, "--model") == 0) {
        options->model_dir = value;
    } else if (strcmp(name, "--only") == 0) {
        options->only = value;
    } else if (strcmp(name, "--seconds") == 0) {
        options->seconds = strtod(value, NULL);
    } else if (strcmp(name, "--streams") == 0 && number > 0) {
        options->relay_streams = options->http_streams = number;
    } else if (strcmp(name, "--rpc-streams") == 0 && number > 0) {
        options->rpc_streams = number;
    } else if (strcmp(name, "--quick") == 0) {
        options->quick = number != 0;
    } else {
        bench_die("see the head of its source for the options");
    }
}

/* A program of its own, which makes an environment with the reference where it can. */
static void bench_tokenize(const struct bench_options *options)
{
    pid_t pid = fork();
    if (pid == 0) {
        execlp("python3", "python3", BENCH_TOKENIZE_SCRIPT, BENCH_TOKENIZE_PROGRAM,
               options->model_dir, BENCH_TOKENIZE_WORK, NULL);
        _exit(127);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status)) {
        bench_die("tokenize.py did not run");
    }
    if (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 77) {
        bench_die("tokenize.py failed");
    }
}

static bool wanted(const struct bench_options *options, const char *part)
{
    return options->only ? strcmp(options->only, part) == 0 : true;
}

int main(int argc, char **argv)
{
    struct bench_options options = {.workers = 1000,
                                    .ranks = 32,
                                    .decisions = 200000,
                                    .policy = RT_DECODE_KV_UTILIZATION,
                                    .relay_streams = 10000,
                                    .http_streams = 10000,
                                    .rpc_streams = 100000,
                                    .seconds = 3};
    for (int i = 1; i + 1 < argc; i += 2) {
        set_option(&options, argv[i], argv[i + 1]);
    }
    if (wanted(&options, "decisions")) {
        bench_decisions(&options);
    }
    if (!options.router || !options.model_dir) {
        return 0;
    }
    bench_shared =
        mmap(NULL, sizeof *bench_shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (bench_shared == MAP_FAILED) {
        bench_die("no memory");
    }
    bench_raise_descriptors(DESCRIPTORS);
    if (wanted(&options, "relay")) {
        bench_relay(&options);
    }
    if (wanted(&options, "streams")) {
        bench_streams(&options);
    }
    if (wanted(&options, "prompts")) {
        bench_prompts(&options);
    }
    if (wanted(&options, "tokenize") && !options.quick) {
        bench_tokenize(&options);
    }
    return 0;
}
