/*
 * `scale [--seed N] [--requests N] [--prefill N] [--decode N] [--ranks N] [--load X] [--trace NAME]
 * [--policy NAME] [--local MODE] [--check-every N] [--no-faults] [--twice]`: the router's core in a
 * simulated cluster.
 *
 * By default each trace is run with each policy: undisturbed, beyond what the cluster can do
 * (without and with admission), and with faults; in a small world whose rules are checked after
 * every event.
 * With the first policy each trace is run once more, with faults, where decode ranks compute
 * prompts when the core says so; --local takes that for all. --load takes one load instead. A line
 * a world:
 *
 *     goodput   share of all requests that ended well with TTFT and TPOT within the trace's SLO
 *     skew      largest share of KV pages in use over the mean, less one; mean over time
 *
 * Every world is a function of its arguments; --twice runs each again and compares.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/router/scale_world.h"

static struct sim_setting base = {.seed = 1,
                                  .prefill_count = 6,
                                  .decode_count = 4,
                                  .rank_count = 4,
                                  .rank_pages = 256,
                                  .local = RT_LOCAL_PREFILL_NEVER,
                                  .request_count = 1200,
                                  .check_every = 1};
static double load; /* 0: the world's own */
static int only_trace = -1, only_policy = -1;
static bool no_faults, twice;

static void print_head(void)
{
    printf("%-18s %-16s %5s %7s %9s %9s %8s %8s %6s %6s %6s %6s %6s\n", "trace", "policy", "load",
           "goodput", "ttft p50", "ttft p99", "tpot p50", "tpot p99", "skew", "preem", "shed",
           "retry", "error");
}

static void print_world(const struct sim_setting *set, const struct sim_figures *f)
{
    printf("%-18s %-16s %5.2f %6.1f%% %7.0fms %7.0fms %6.1fms %6.1fms %6.2f %6llu %6llu %6llu "
           "%6llu%s",
           sim_trace_names[set->trace], rt_decode_policy_names[set->policy], set->load,
           100 * f->goodput, f->ttft_p50_ms, f->ttft_p99_ms, f->tpot_p50_ms, f->tpot_p99_ms,
           f->imbalance, (unsigned long long)f->preemptions, (unsigned long long)f->sheds,
           (unsigned long long)f->retries, (unsigned long long)f->errors,
           set->faults      ? "  admission, faults"
           : set->admission ? "  admission"
                            : "");
    if (set->local != RT_LOCAL_PREFILL_NEVER) {
        printf("  %.0f%% local", 100 * f->local);
    }
    printf("\n");
    if (set->faults) {
        printf("    breakers opened %llu, kept out %llu, refusals %llu, poisoned %llu of %llu that "
               "killed, %llu workers at most, %llu decode groups in all\n",
               (unsigned long long)f->breakers, (unsigned long long)f->kept_out,
               (unsigned long long)f->refusals, (unsigned long long)f->poisoned,
               (unsigned long long)f->deadly, (unsigned long long)f->most_kills,
               (unsigned long long)f->groups_killed);
    }
    fflush(stdout);
}

static void run(const struct sim_setting *set)
{
    struct sim_figures figures, again;
    sim_run(set, &figures);
    print_world(set, &figures);
    if (!twice) {
        return;
    }
    struct sim_setting unchecked = *set; /* its rules were checked already */
    unchecked.check_every = UINT32_MAX;
    sim_run(&unchecked, &again);
    if (memcmp(&figures, &again, sizeof figures) != 0) {
        fprintf(stderr, "seed %llu: the second run was another\n", (unsigned long long)set->seed);
        exit(1);
    }
}

static bool chosen(int only, int value)
{
    return only < 0 || only == value;
}

/* Within what the cluster can do; far beyond, with and without admission; and with faults. */
static void run_policy(enum sim_trace trace, enum rt_decode_policy policy)
{
    struct sim_setting set = base;
    set.trace = trace;
    set.policy = policy;
    set.load = load > 0 ? load : 0.8;
    run(&set);
    if (load > 0) {
        return;
    }
    set.load = 1.5;
    run(&set);
    set.admission = true;
    run(&set);
    if (!no_faults) {
        set.faults = true;
        set.load = 1.2;
        run(&set);
        if (policy == RT_DECODE_KV_UTILIZATION && set.local == RT_LOCAL_PREFILL_NEVER) {
            set.local = RT_LOCAL_PREFILL_AUTO;
            run(&set);
        }
    }
}

static void run_all(void)
{
    print_head();
    for (int trace = 0; trace < SIM_TRACES; trace++) {
        for (int policy = 0; rt_decode_policy_names[policy]; policy++) {
            if (chosen(only_trace, trace) && chosen(only_policy, policy)) {
                run_policy((enum sim_trace)trace, (enum rt_decode_policy)policy);
            }
        }
    }
}

static int find(const char *const *names, int count, const char *name)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0) {
            return i;
        }
    }
    fprintf(stderr, "scale: no %s\n", name);
    exit(2);
}

static bool parse_number(const char *option, const char *value)
{
    const struct {
        const char *name;
        uint32_t *number;
    } numbers[] = {{"--requests", &base.request_count}, {"--prefill", &base.prefill_count},
                   {"--decode", &base.decode_count},    {"--ranks", &base.rank_count},
                   {"--pages", &base.rank_pages},       {"--check-every", &base.check_every}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (strcmp(option, numbers[i].name) == 0) {
            *numbers[i].number = (uint32_t)strtoul(value, NULL, 10);
            return *numbers[i].number > 0;
        }
    }
    return false;
}

static bool parse_value(const char *option, const char *value)
{
    if (strcmp(option, "--seed") == 0) {
        base.seed = strtoull(value, NULL, 10);
    } else if (strcmp(option, "--load") == 0) {
        load = strtod(value, NULL);
    } else if (strcmp(option, "--trace") == 0) {
        only_trace = find(sim_trace_names, SIM_TRACES, value);
    } else if (strcmp(option, "--policy") == 0) {
        only_policy = find(rt_decode_policy_names, 5, value);
    } else if (strcmp(option, "--local") == 0) {
        base.local = (enum rt_local_prefill)find(rt_local_prefill_names, 3, value);
    } else {
        return parse_number(option, value);
    }
    return true;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--no-faults") == 0) {
            no_faults = true;
        } else if (strcmp(argv[i], "--twice") == 0) {
            twice = true;
        } else if (i + 1 < argc && parse_value(argv[i], argv[i + 1])) {
            i++;
        } else {
            fprintf(stderr, "scale: %s: see the head of scale.c\n", argv[i]);
            return 2;
        }
    }
    printf("seed %llu\n", (unsigned long long)base.seed);
    run_all();
    return 0;
}
