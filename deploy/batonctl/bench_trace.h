/*
 * Recorded loads: when requests came, and how long they were. Two forms, told apart by their first
 * character:
 *
 *   JSONL, as Mooncake's traces: {"timestamp": MS, "input_length": N, "output_length": N,
 *   "hash_ids": [ID, …]}; each id stands for one block of the prompt, and prompts that begin with
 *   the same ids begin with the same tokens. Without hash_ids nothing is shared.
 *   CSV with a header, as BurstGPT's ("Timestamp" in seconds, "Request tokens", "Response tokens")
 *   and Azure's ("TIMESTAMP" as a date, "ContextTokens", "GeneratedTokens").
 *
 * Nothing in them is trusted. Pure; caller-owned.
 */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_TRACE_H
#define BATON_DEPLOY_BATONCTL_BENCH_TRACE_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define CTL_BENCH_TRACE_BLOCK 512 /* tokens that one hash id stands for */
#define CTL_BENCH_TRACE_MAX   (16u << 20)

struct ctl_bench_trace_entry {
    int64_t at_ns;                        /* since the first */
    uint32_t input_tokens, output_tokens; /* a length of 0 counts as 1 */
    uint32_t hash_count;
    size_t hash_first; /* in hashes */
    size_t line;       /* in the order of the file */
};

struct ctl_bench_trace {
    struct ctl_bench_trace_entry *entries; /* [count], by time; of one time as in the file */
    size_t count, capacity;
    uint64_t *hashes; /* [hash_count] */
    size_t hash_count, hash_capacity;
};

/* INVALID_ARGUMENT: what and in which line; also a trace of nothing. NO_MEMORY. */
enum bt_status ctl_bench_trace_parse(const char *text, size_t size, struct bt_error *error,
                                     struct ctl_bench_trace *ret_trace);
void ctl_bench_trace_finish(struct ctl_bench_trace *trace);

#endif
