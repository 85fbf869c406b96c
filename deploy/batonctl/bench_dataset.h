/*
 * Prompts of a file, JSONL: {"prompt": "…"} or {"messages": [{"role": "…", "content": "…"}, …]},
 * and with it, where wanted, "output_tokens" (or "max_tokens"). Nothing in it is trusted.
 */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_DATASET_H
#define BATON_DEPLOY_BATONCTL_BENCH_DATASET_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define CTL_BENCH_DATASET_MAX  (4u << 20)
#define CTL_BENCH_MESSAGES_MAX 1024

struct ctl_bench_message {
    char *role, *content;
};

struct ctl_bench_sample {
    char *prompt;                       /* NULL: messages */
    struct ctl_bench_message *messages; /* [message_count] */
    size_t message_count;
    uint32_t output_tokens; /* 0: not said */
};

struct ctl_bench_dataset {
    struct ctl_bench_sample *samples; /* [count] */
    size_t count, capacity;
};

/* INVALID_ARGUMENT: what and in which line; also a file of nothing. NO_MEMORY. */
enum bt_status ctl_bench_dataset_parse(const char *text, size_t size, struct bt_error *error,
                                       struct ctl_bench_dataset *ret_dataset);
void ctl_bench_dataset_finish(struct ctl_bench_dataset *dataset);

#endif
